//! A thin connection to Apache Kafka with what the log and the groups need of its protocol. The messages are those of
//! the `kafka-protocol` crate. This module adds frames, versions, deadlines, and the choice of the broker.
//!
//! ```text
//!  Cluster: which broker leads the partition, coordinates the group, or is reachable at all?
//!     │ call(recipient, request, deadline)
//!     ▼
//!  an idle connection to that broker, or a new one: TCP, TLS, ApiVersions, SASL
//!     │ one request at a time
//!     ▼
//!  answer: the connection is kept      error, deadline or dropped future: the connection is closed
//! ```
//!
//! A connection carries one request at a time. So a fetch that waits for records delays no other request, and any future
//! may be dropped at any time. There are as many connections as there are concurrent calls.
//!
//! Some questions can be answered by every broker, for example who leads a partition. They go to the brokers in turn,
//! and the answer with the newest leader epoch wins. Requests to a leader carry its epoch. So a broker that is cut off
//! from the other brokers, and does not know that it was replaced, is noticed and avoided (`topology.rs`).
//!
//! [`batch`] encodes and decodes record batches. `Admin` makes the administrative calls, through the crate `rskafka`.

mod admin;
pub mod batch;
mod broker_order;
mod cluster;
mod compression;
mod connection;
mod requests;
mod topology;

pub(crate) use admin::{Admin, AdminError};
pub use cluster::{Cluster, Recipient, topic_name};
pub use connection::Error;
pub use requests::Request;
pub use topology::{Leader, PartitionEpoch, PartitionMetadata, TopicMetadata, is_another_topic};

use crate::limits::BROKER_CALL_MAX;
use kafka_protocol::ResponseError;

/// The error that a broker's code means. `None`: success.
pub fn response_error(code: i16) -> Option<ResponseError> {
    ResponseError::try_from_code(code)
}

/// How long a broker may take to create, change or delete a topic, as a field of the request.
pub(crate) fn call_timeout_ms() -> i32 {
    i32::try_from(BROKER_CALL_MAX.as_millis()).unwrap_or(i32::MAX)
}

/// An error's name and number, as Kafka's documentation lists them: `NotLeaderOrFollower (6)`.
pub fn describe(error: ResponseError) -> String {
    format!("{error:?} ({})", error.code())
}
