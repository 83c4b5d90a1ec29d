//! The durable log: the contract of every engine. [`sqlite`] is the embedded log, [`kafka`] a cluster of brokers.
//!
//! ```text
//!  ingest ── append(partition, records) ──▶ ┌─────────────────────────┐
//!                                           │ topic: P0 │ P1 │ P2 …   │ offsets grow, records never change
//!  dispatch ◀── fetch(partition, from) ──── └─────────────────────────┘
//! ```
//!
//! # Order
//!
//! The records of one append are stored together, in their order, at consecutive offsets of one partition: all of them
//! or none. If an append starts after another append to the same partition was answered, its offsets are higher.
//! Concurrent appends are stored in any order among themselves.
//!
//! # Durability, and what an error means
//!
//! `Ok` means fsynced (embedded log) or acknowledged by all in-sync replicas (Kafka). [`Certainty::Refused`] means that the
//! records are not stored and never will be. [`Certainty::Unknown`] means that they may be stored, now or later.
//!
//! [`Certainty::Refused`]: crate::core::outcome::Certainty::Refused
//! [`Certainty::Unknown`]: crate::core::outcome::Certainty::Unknown
//!
//! # Fetching
//!
//! A fetch sees every record that was acknowledged before the fetch began. It never sees a record that is not durable,
//! and never a record whose bytes have changed (that is [`FetchError::Corrupt`]). Offsets may have gaps: `Fetched::next`
//! says where the next fetch starts.

pub(crate) mod grow_limiter;
pub mod kafka;
pub mod sqlite;
pub mod url;

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

    /// How many bytes one append may have.
    fn append_limits(&self) -> AppendLimits {
        AppendLimits::default()
    }

    /// How many partitions the topic has now. The number may grow and never shrinks.
    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>>;

    /// Appends the records to one partition, and returns the offset of the first record when all are durable. There
    /// must be at least one record, and no more than [`Log::append_limits`] allows. If the future is dropped, the
    /// outcome is unknown.
    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>>;

    /// Reads events from the offset `from` on: at most `max_bytes`, but at least one event, whatever its size. If there
    /// is none, it waits up to `wait`. `from` may be any offset from the earliest to the latest.
    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>>;

    /// The lowest offset that can be fetched. If the partition is empty, the latest offset.
    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>>;

    /// The offset that the next record will get.
    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>>;

    /// The lowest offset of a record with this timestamp (milliseconds since the Unix epoch) or a later one. `None`: all
    /// records are older.
    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>>;
}

/// Where topics are stored.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Opens a topic. If `create` is given, a missing topic is created. An existing topic is a success, whatever its
    /// number of partitions. On Kafka, a side topic with fewer partitions then gets the missing ones, if the brokers
    /// allow it.
    fn open<'a>(
        &'a self,
        topic: &'a str,
        create: Option<CreateTopic>,
    ) -> BoxFuture<'a, Result<Arc<dyn Log>, OpenError>>;

    /// The names of all topics that this process may see, in any order. Only for messages.
    fn topics(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>>;

    /// Waits until the engine cannot be trusted any more (for example after an I/O error on commit), and returns the
    /// reason. The process then ends with exit code 1.
    fn lost(&self) -> BoxFuture<'_, String>;

    /// Closes the log at the end of a command, after what is in progress has ended. A database then consists of its one
    /// file, if no other process has it open. Later calls are refused.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// How many bytes one append may have. A topic may take less than eventd would send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendLimits {
    /// Bytes of several records together, counted by [`AppendLimits::cost_bytes`].
    pub batch_bytes_max: usize,
    /// Bytes of a single record.
    pub record_bytes_max: usize,
}

impl Default for AppendLimits {
    fn default() -> Self {
        Self { batch_bytes_max: APPEND_BYTES_MAX, record_bytes_max: RECORD_BYTES_MAX }
    }
}

impl AppendLimits {
    /// How many bytes a record takes in an append: its own bytes and its framing.
    pub fn cost_bytes(&self, record: &Record) -> usize {
        record.size_bytes() + RECORD_FRAMING_BYTES_MAX
    }
}

/// How a missing topic is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateTopic {
    pub partitions: u32,
    /// How long records are kept. `None`: the engine's default; a side topic keeps them until they are trimmed.
    pub retention: Option<Duration>,
}

/// What a fetch found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// In the order of their offsets, all at or after `from`.
    pub events: Vec<Event>,
    /// Where the next fetch starts: after the last event, and after offsets that have no event.
    pub next: i64,
    /// The latest offset at the time of this fetch.
    pub latest: i64,
}

/// Why a fetch returned nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The log does not have this offset: it was removed, or was never written.
    #[error("offset {from} is outside the log, which holds {earliest} to {latest}")]
    OutOfRange { from: i64, earliest: i64, latest: i64 },
    /// The record at this offset differs from what was stored. Earlier fetches have returned the records before it.
    #[error("the record at offset {offset} is damaged: {detail}")]
    Corrupt { offset: i64, detail: String },
    /// The topic was deleted and created again under its name. These offsets now belong to other records.
    #[error("topic {topic:?} was deleted and made again")]
    TopicRecreated { topic: String },
    /// A temporary error: a later fetch may succeed.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a topic could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The topic does not exist, and the caller did not ask to create it.
    #[error("topic {topic:?} does not exist")]
    Missing { topic: String },
    /// An operator has to change something first: an invalid topic name, a missing right, a file of a newer format.
    #[error("{0}")]
    Configuration(String),
    /// A temporary error: opening may succeed later.
    #[error("{0}")]
    Unavailable(String),
}

/// Checks the name by Kafka's rule, for every engine, so that a topic can be moved to Kafka.
fn check_topic(name: &str) -> Result<(), OpenError> {
    if !names::is_valid(name, TOPIC_CHARS_MAX) {
        return Err(OpenError::Configuration(format!(
            "{name:?} is not a valid topic name: use 1 to {TOPIC_CHARS_MAX} letters, digits, `.`, `_` and `-`"
        )));
    }
    Ok(())
}
