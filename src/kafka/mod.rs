//! A thin connection to Apache Kafka: what the log and the groups need of its protocol, and no more. The messages are
//! those of the `kafka-protocol` crate; frames, versions, deadlines, and who is asked, are here.
//!
//! ```text
//!  Cluster ── which broker leads, coordinates, or is there at all
//!     │ call(who, request, deadline)
//!     ▼
//!  idle connections of that broker ── else a new one: TCP, TLS, ApiVersions, SASL
//!     │ one request at a time
//!     ▼
//!  answer: the connection is kept      an error, a deadline, a dropped future: it is closed
//! ```
//!
//! No request shares a connection with another one that is under way: a fetch that waits for records delays nobody, and
//! a future may be dropped at any time. There are as many connections as there are calls at the same time.
//!
//! What any broker can tell is asked of each broker in turn. The newest leader epoch wins, and requests to a leader carry
//! it: a broker that is cut off from its peers, and does not know that it was replaced, is left behind (`topology.rs`).
//!
//! [`batch`] is the record batch, as it is appended and fetched.

pub mod batch;
mod cluster;
mod compression;
mod connection;
mod requests;
mod topology;

pub use cluster::{Cluster, Recipient, topic_name};
pub use connection::Error;
pub use requests::Request;
pub use topology::{Leader, PartitionEpoch, PartitionMetadata, TopicMetadata, is_another_topic};

use kafka_protocol::ResponseError;

/// What a broker's code says; `None` is success.
pub fn refusal(code: i16) -> Option<ResponseError> {
    ResponseError::try_from_code(code)
}

/// A code for people: its name and its number, as Kafka's documentation lists them.
pub fn describe(error: ResponseError) -> String {
    format!("{error:?} ({})", error.code())
}
