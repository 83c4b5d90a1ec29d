//! The durable log: what every engine promises. [`sqlite`] is the embedded one, [`kafka`] a cluster of brokers.
//!
//! ```text
//!  ingest ── append(partition, records) ──▶ ┌─────────────────────────┐
//!                                           │ topic: P0 │ P1 │ P2 …   │ offsets grow, records never change
//!  dispatch ◀── fetch(partition, from) ──── └─────────────────────────┘
//! ```
//!
//! # Order
//!
//! The records of one append are stored together, in their order, at consecutive offsets of one partition: all of
//! them or none. An append that was *started* after another one of the same partition was *answered* has the higher
//! offsets. Appends that are under way at the same time are stored in any order among themselves.
//!
//! # Durability, and what is unknown after an error
//!
//! `Ok` means fsynced (embedded) or acknowledged by all in-sync replicas (Kafka). [`Certainty::Refused`] means surely
//! not stored, now and later. [`Certainty::Unknown`] means that it may be stored, or become so.
//!
//! [`Certainty::Refused`]: crate::core::outcome::Certainty::Refused
//! [`Certainty::Unknown`]: crate::core::outcome::Certainty::Unknown
//!
//! # Fetching
//!
//! A fetch sees every record that was acknowledged before it began, never one that is not durable, and never a record
//! whose bytes changed (that is [`FetchError::Corrupt`]). Offsets may have gaps: `Fetched::next` tells where to go on.

pub mod kafka;
pub mod sqlite;

use crate::BoxFuture;
use crate::core::event::{Event, Record};
use crate::core::names;
use crate::core::outcome::Failure;
use crate::limits::{APPEND_BYTES_MAX, RECORD_BYTES_MAX, RECORD_FRAMING_BYTES_MAX, TOPIC_CHARS_MAX};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One topic of the log.
pub trait Log: Send + Sync + fmt::Debug {
    /// The topic's name.
    fn topic(&self) -> &str;

    /// What one append may hold.
    fn append_limits(&self) -> AppendLimits {
        AppendLimits::default()
    }

    /// How many partitions the topic has now. It may grow, never shrink.
    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>>;

    /// Appends the records to one partition and answers with the offset of the first, once they are durable.
    /// As many as [`Log::append_limits`] says, at least one. Dropping the future leaves the outcome unknown.
    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>>;

    /// Reads from the offset `from` on, at most `max_bytes` (at least one record, whatever its size), and waits up to
    /// `wait` while there is none. `from` may be any offset from the earliest to the latest; the latest waits.
    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>>;

    /// The lowest offset that can be fetched; the latest where there is nothing.
    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>>;

    /// The offset that the next record will get.
    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>>;

    /// The lowest offset of a record with this timestamp (milliseconds since the Unix epoch) or a later one.
    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>>;
}

/// Where topics are.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Opens a topic. With `create`, makes it where it is missing; "already exists" is success, with any number of
    /// partitions.
    fn open<'a>(
        &'a self,
        topic: &'a str,
        create: Option<CreateTopic>,
    ) -> BoxFuture<'a, Result<Arc<dyn Log>, OpenError>>;

    /// Waits until the engine can be trusted no more (an I/O error on commit), and says why. The process then stops
    /// with exit code 1.
    fn lost(&self) -> BoxFuture<'_, String>;

    /// Ends what is under way and closes the log at the end of a command. A database is whole in its one file
    /// afterwards, if no other process has it open. Later calls are refused.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// What one append may hold: a topic may take less than eventd would give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendLimits {
    /// Bytes of several records together, by [`AppendLimits::cost_bytes`].
    pub batch_bytes_max: usize,
    /// Bytes of a record that goes alone.
    pub record_bytes_max: usize,
}

impl Default for AppendLimits {
    fn default() -> Self {
        Self { batch_bytes_max: APPEND_BYTES_MAX, record_bytes_max: RECORD_BYTES_MAX }
    }
}

impl AppendLimits {
    /// What a record counts among several: its bytes, and what stands around it.
    pub fn cost_bytes(&self, record: &Record) -> usize {
        record.size_bytes() + RECORD_FRAMING_BYTES_MAX
    }
}

/// How a topic is made where it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateTopic {
    pub partitions: u32,
    /// How long records are kept. `None`: for ever, or until they are trimmed.
    pub retention: Option<Duration>,
}

/// What a fetch found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// In the order of their offsets, all at or past `from`.
    pub events: Vec<Event>,
    /// Where the next fetch begins: behind the last event, and behind offsets that hold none.
    pub next: i64,
    /// The latest offset when this was read.
    pub latest: i64,
}

/// Why a fetch gave nothing. Every one can be told to a person and acted upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchError {
    /// The position is not in the log (any more).
    OutOfRange { from: i64, earliest: i64, latest: i64 },
    /// The record at this offset is not what was stored. Those before it were given by earlier fetches.
    Corrupt { offset: i64, detail: String },
    /// The topic was deleted and made again under its name: what is at these offsets now is something else.
    TopicRecreated { topic: String },
    /// It may work later: try again.
    Unavailable(String),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { from, earliest, latest } => {
                write!(f, "offset {from} is outside the log, which holds {earliest} to {latest}")
            }
            Self::Corrupt { offset, detail } => write!(f, "the record at offset {offset} is damaged: {detail}"),
            Self::TopicRecreated { topic } => write!(f, "topic {topic:?} was deleted and made again"),
            Self::Unavailable(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for FetchError {}

/// Why a topic could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenError {
    /// It is not there, and was not to be made.
    Missing { topic: String },
    /// Somebody has to change something: a name that is no topic's, a right that is missing, a newer format.
    Configuration(String),
    /// It may work later.
    Unavailable(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { topic } => write!(f, "there is no topic {topic:?}"),
            Self::Configuration(detail) | Self::Unavailable(detail) => f.write_str(detail),
        }
    }
}

impl std::error::Error for OpenError {}

/// Kafka's rule, for every engine, so that a topic can move there.
fn check_topic(name: &str) -> Result<(), OpenError> {
    if !names::is_valid(name, TOPIC_CHARS_MAX) {
        return Err(OpenError::Configuration(format!(
            "{name:?} is no name of a topic: up to {TOPIC_CHARS_MAX} letters, digits, `.`, `_` and `-` make one"
        )));
    }
    Ok(())
}
