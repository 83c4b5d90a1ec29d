//! The log on Apache Kafka: topics of a cluster, that any number of processes on any number of machines share.
//!
//! ```text
//!  append(P, records) ─▶ append: one task a topic ─▶ a batch a partition, a request a broker ─▶ acks=all
//!  fetch(P, from) ─▶ fetch: what was left of the last answer, else a long poll of the partition's leader
//!  open(topic) ─▶ topics: is it there, how large may a batch be, make it where that was asked for
//! ```
//!
//! Everything goes over our own connection, [`crate::kafka`]. `rskafka`, which reads well and fast, gives headers
//! as a map: their order and repeated names are lost, a null value and the markers of a transaction are errors for
//! ever, and lz4 and zstd need C. What is stored has to come back as it is, so the one fetch is ours.
//!
//! Offsets have gaps here: markers, aborted records, compacted ones. The *latest* offset is the last stable one: up to
//! there nothing belongs to a transaction that is still open.
//!
//! # What is known after an error
//!
//! An append is resent, the same bytes under the same sequence number, until it is acknowledged or 10 s old: the broker
//! knows the repeat, so nothing is stored twice. [`Certainty::Refused`](crate::core::outcome::Certainty::Refused) is
//! said only where no sending of it ended without an answer; after one that did, only success ends the doubt. The batch
//! behind one that was given up in doubt begins a new producer epoch, which shuts the old one's late arrival out.

mod fetch;
mod producer;
mod topics;

use self::fetch::FetchBuffer;
use self::producer::Producer;
use super::{AppendLimits, CreateTopic, Engine, FetchError, Fetched, Log, OpenError, check_topic};
use crate::BoxFuture;
use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::kafka::{self, Cluster};
use crate::limits::{
    APPEND_BYTES_MAX, BROKER_ANSWER_MAX, BROKER_CALL_MAX, BROKER_START_MAX, FETCH_BYTES_MAX, LEFTOVER_BYTES_MAX,
    PRODUCE_REQUEST_BYTES_MAX, RECORD_BYTES_MAX, RECORD_FRAMING_BYTES_MAX, WRITE_QUEUE_BYTES_MAX,
};
use crate::net;
use crate::vital::{self, Lost};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// Bytes that a process holds at most for the events of a topic on Kafka: what waits to be appended and the requests
/// that are made of it, what fetches left over, and one fetch of each of `readers` as it came and as it is read. A
/// producer that is not eventd may write batches beyond what a fetch asks for; these are not counted.
pub fn memory_bytes_max(readers: usize) -> usize {
    let writing = WRITE_QUEUE_BYTES_MAX + PRODUCE_REQUEST_BYTES_MAX;
    readers.saturating_mul(2 * FETCH_BYTES_MAX).saturating_add(writing + LEFTOVER_BYTES_MAX)
}

/// A Kafka cluster as a log.
#[derive(Debug)]
pub struct Kafka {
    cluster: Arc<Cluster>,
    /// Topics that were opened: side topics take after theirs.
    opened: Mutex<Vec<topics::OpenedTopic>>,
    /// Why nothing can be appended to a topic any more.
    lost: Lost,
}

impl Kafka {
    /// Looks whether a broker answers.
    ///
    /// # Errors
    /// Within 10 s: no broker, or none that lets us in.
    pub async fn connect(settings: net::BrokerSettings) -> Result<Arc<Self>, OpenError> {
        let cluster = Arc::new(Cluster::new(settings));
        let found = topics::is_there(&cluster, Instant::now() + BROKER_START_MAX).await;
        found.map_err(|error| match error {
            kafka::Error::Configuration(detail) => OpenError::Configuration(detail),
            // It told its versions, and then hung up: that is how a broker treats those that do not log in.
            kafka::Error::NoAnswer(detail) if !cluster.logs_in() => OpenError::Unavailable(format!(
                "no broker of {} answers: {detail}: does it ask who we are (--sasl-mechanism)?",
                cluster.addresses()
            )),
            error => OpenError::Unavailable(format!("no broker answers at {}: {error}", cluster.addresses())),
        })?;
        Ok(Arc::new(Self { cluster, opened: Mutex::default(), lost: Lost::default() }))
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The first offset of each partition, where its leader tells it in time.
    pub(crate) async fn earliest(&self, topic: &str) -> HashMap<u32, i64> {
        fetch::earliest(&self.cluster, topic, Instant::now() + BROKER_ANSWER_MAX).await
    }

    /// Removes what is below this offset, from a topic whose writer does that itself.
    pub(crate) async fn trim(&self, topic: &str, partition: u32, below: i64) -> Result<(), Failure> {
        topics::trim(&self.cluster, topic, partition, below).await.map_err(failure)
    }

    /// Removes a side topic that nobody needs any more.
    pub(crate) async fn delete(&self, topic: &str) -> Result<(), Failure> {
        topics::delete(&self.cluster, topic).await.map_err(failure)
    }

    async fn open_topic(&self, name: &str, create: Option<CreateTopic>) -> Result<Arc<dyn Log>, OpenError> {
        check_topic(name)?;
        let deadline = Instant::now() + BROKER_START_MAX;
        let beside = topics::beside(&self.opened.lock().unwrap_or_else(PoisonError::into_inner), name);
        let opened = topics::open(&self.cluster, name, create, beside, deadline).await?;
        let log = KafkaLog {
            cluster: Arc::clone(&self.cluster),
            name: name.into(),
            id: known_id(opened.id),
            max_message_bytes: opened.max_message_bytes,
            batch_bytes_max: Arc::new(AtomicUsize::new(room_in(opened.max_message_bytes).min(APPEND_BYTES_MAX))),
            appender: OnceLock::new(),
            lost: self.lost.clone(),
            leftovers: FetchBuffer::default(),
        };
        let mut all = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        // A topic may be opened again and again, as long as it lacks partitions.
        all.retain(|other| other.name != opened.name);
        all.push(opened);
        drop(all);
        Ok(Arc::new(log))
    }
}

impl Engine for Kafka {
    fn open<'a>(
        &'a self,
        topic: &'a str,
        create: Option<CreateTopic>,
    ) -> BoxFuture<'a, Result<Arc<dyn Log>, OpenError>> {
        Box::pin(self.open_topic(topic, create))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        // What a broker acknowledged is with the broker: nothing that happens here makes it untrue. But an appender that
        // panicked appends nothing any more.
        Box::pin(vital::lost(self.lost.subscribe()))
    }
}

/// One topic of a cluster.
#[derive(Debug)]
struct KafkaLog {
    cluster: Arc<Cluster>,
    name: String,
    /// The first one that a broker told.
    id: OnceLock<Uuid>,
    /// What the topic took a batch when it was opened.
    max_message_bytes: usize,
    /// Bytes that several records may have together: less once a broker refused so many.
    batch_bytes_max: Arc<AtomicUsize>,
    /// Started by the first append.
    appender: OnceLock<Producer>,
    lost: Lost,
    leftovers: FetchBuffer,
}

impl KafkaLog {
    async fn append_all(&self, partition: u32, records: Vec<Record>) -> Result<i64, Failure> {
        let limits = self.append_limits();
        match records.as_slice() {
            [] => return Err(Failure::refused("append-empty", "an append needs at least one record")),
            [record] if record.size_bytes() > limits.record_bytes_max => {
                let (size, max) = (record.size_bytes(), limits.record_bytes_max);
                let detail = format!("the record has {size} bytes, and topic {:?} takes {max}", self.name);
                return Err(Failure::refused("event-too-large", detail));
            }
            [_] => {}
            records => {
                let size: usize = records.iter().map(|record| limits.cost_bytes(record)).sum();
                if size > limits.batch_bytes_max {
                    let max = limits.batch_bytes_max;
                    let detail = format!("{size} bytes in one append, and topic {:?} takes {max} together", self.name);
                    return Err(Failure::refused("append-too-large", detail));
                }
            }
        }
        let deadline = Instant::now() + BROKER_CALL_MAX;
        let count = match self.cluster.cached_topic_with(&self.name, partition, deadline).await {
            Ok(topic) => topic.partitions.len(),
            // The appender asks again, and says what is wrong in the end.
            Err(_) => usize::MAX,
        };
        if partition as usize >= count {
            let detail = format!("topic {:?} has {count} partitions, and no partition {partition}", self.name);
            return Err(Failure::refused("partition-missing", detail));
        }
        let appender = self.appender.get_or_init(|| {
            let batch_bytes_max = Arc::clone(&self.batch_bytes_max);
            Producer::start(Arc::clone(&self.cluster), self.name.clone(), batch_bytes_max, self.lost.clone())
        });
        appender.append(partition, records).await
    }
}

impl Log for KafkaLog {
    fn topic(&self) -> &str {
        &self.name
    }

    fn append_limits(&self) -> AppendLimits {
        let record_bytes_max = room_in(self.max_message_bytes).saturating_sub(RECORD_FRAMING_BYTES_MAX);
        AppendLimits {
            batch_bytes_max: self.batch_bytes_max.load(Ordering::Relaxed),
            record_bytes_max: record_bytes_max.min(RECORD_BYTES_MAX),
        }
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        Box::pin(async move {
            let topic = self.cluster.topic(&self.name, Instant::now() + BROKER_CALL_MAX).await.map_err(failure)?;
            let topic = topic.ok_or_else(|| {
                Failure::refused("topic-missing", format!("topic {:?} is not there any more", self.name))
            })?;
            Ok(u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX))
        })
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(self.append_all(partition, records))
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(self.fetch_from(partition, from, max_bytes, wait))
    }

    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move { self.end(partition, fetch::EARLIEST).await })
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move { self.end(partition, fetch::LATEST).await })
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        // Below zero are the broker's words for the ends.
        Box::pin(self.offset(partition, timestamp_ms.max(0)))
    }
}

/// A topic's id, unless the broker that was asked has no ids.
fn known_id(id: Uuid) -> OnceLock<Uuid> {
    if id.is_nil() { OnceLock::new() } else { OnceLock::from(id) }
}

/// What a batch of this size has for its records.
fn room_in(batch_bytes: usize) -> usize {
    batch_bytes.saturating_sub(kafka::batch::HEADER_BYTES)
}

/// A request that only reads, or that may be repeated, and failed.
fn failure(error: kafka::Error) -> Failure {
    Failure::refused("log-unavailable", error.to_string())
}
