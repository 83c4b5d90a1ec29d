//! The log on Apache Kafka: topics of a cluster, shared by any number of processes on any number of machines.
//!
//! ```text
//!  append(P, records) ─▶ producer/: one task per topic ─▶ a batch per partition, a request per broker ─▶ acks=all
//!  fetch(P, from) ─▶ fetch.rs: from the buffer of an earlier answer, or a long poll at the partition's leader
//!  open(topic) ─▶ topics.rs: does it exist, how large may a batch be; created only if the caller asks for it
//! ```
//!
//! Records go over our own connection ([`crate::kafka`]), and never through `rskafka`: `docs/kafka.md` says why.
//! Administrative calls are `rskafka`'s.
//!
//! Offsets have gaps: transaction markers, records of aborted transactions, and records that compaction removed. The
//! *latest* offset is Kafka's last stable offset: nothing below it belongs to a transaction that is still open.
//!
//! # What an error of an append means
//!
//! The producer sends a batch again, with the same bytes and the same sequence number, until it is acknowledged or 12 s
//! old. The broker recognizes a repeat, so nothing is stored twice.
//! [`Certainty::Refused`](crate::core::outcome::Certainty::Refused) is reported only if every sending of the batch got an
//! answer that proves that it was not stored. The batch after one with an unknown outcome starts a new producer epoch,
//! so that a late copy of the earlier batch is rejected.

mod fetch;
mod fetch_buffer;
mod offsets;
mod producer;
mod topics;

use self::fetch_buffer::{FETCH_BUFFER_BYTES_MAX, FetchBuffer};
use self::producer::{PRODUCE_REQUEST_BYTES_MAX, Producer};
use self::topics::OpenedTopic;
use super::{AppendLimits, CreateTopic, Engine, FetchError, Fetched, Log, OpenError, check_topic};
use crate::BoxFuture;
use crate::core::event::Record;
use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::{self, Admin, AdminError, Cluster};
use crate::limits::{
    APPEND_BYTES_MAX, BROKER_ANSWER_MAX, BROKER_CALL_MAX, FETCH_BYTES_MAX, RECORD_BYTES_MAX, RECORD_FRAMING_BYTES_MAX,
    WRITE_QUEUE_BYTES_MAX,
};
use crate::net;
use crate::vital::{self, Lost};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How long a start waits for a broker before it gives up.
const BROKER_START_MAX: Duration = Duration::from_secs(10);

/// The most bytes that a process holds for the events of a topic on Kafka: waiting appends and the requests made of them,
/// the fetch buffer, and one fetch of each of `readers` in both its encoded and decoded form. Batches of other producers
/// may be larger than a fetch asks for; the difference is not counted.
pub fn memory_bytes_max(readers: usize) -> usize {
    let writing = WRITE_QUEUE_BYTES_MAX + PRODUCE_REQUEST_BYTES_MAX;
    readers.saturating_mul(2 * FETCH_BYTES_MAX).saturating_add(writing + FETCH_BUFFER_BYTES_MAX)
}

/// A Kafka cluster as a log.
#[derive(Debug)]
pub struct Kafka {
    cluster: Arc<Cluster>,
    admin: Admin,
    /// The topics that were opened. A side topic is created with the settings of its main topic.
    opened: Mutex<Vec<OpenedTopic>>,
    /// Why appending is not possible any more (a defect).
    lost: Lost,
}

impl Kafka {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// Within 10 s: no broker answers, or none accepts the login.
    pub async fn connect(settings: net::BrokerSettings) -> Result<Arc<Self>, OpenError> {
        let admin = Admin::new(settings.clone());
        let cluster = Arc::new(Cluster::new(settings));
        let reachable = topics::check_reachable(&cluster, Instant::now() + BROKER_START_MAX).await;
        reachable.map_err(|error| match error {
            kafka::Error::Configuration(detail) => OpenError::Configuration(detail),
            // The broker reported its versions and then closed the connection. Brokers do this if a client does not
            // log in although the port requires it.
            kafka::Error::NoAnswer(detail) if cluster.settings().sasl.is_none() => OpenError::Unavailable(format!(
                "no broker of {} answers: {detail}: does the port require a login (--sasl-mechanism)?",
                cluster.addresses()
            )),
            error => OpenError::Unavailable(format!("no broker answers at {}: {error}", cluster.addresses())),
        })?;
        Ok(Arc::new(Self { cluster, admin, opened: Mutex::default(), lost: Lost::default() }))
    }

    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The first offset of each partition, as far as the leaders report it in time.
    pub(crate) async fn earliest(&self, topic: &str) -> HashMap<u32, i64> {
        offsets::earliest_of_all(&self.cluster, topic, Instant::now() + BROKER_ANSWER_MAX).await
    }

    /// Removes the records below this offset. Only for topics that eventd trims itself.
    pub(crate) async fn trim(&self, topic: &str, partition: u32, below: i64) -> Result<(), Failure> {
        self.admin.delete_records(topic, partition, below).await.map_err(admin_failure)
    }

    /// Deletes a side topic that is not needed any more. A topic that does not exist is a success.
    pub(crate) async fn delete(&self, topic: &str) -> Result<(), Failure> {
        if self.cluster.hides_controller() {
            return topics::delete(&self.cluster, topic, Instant::now() + BROKER_CALL_MAX).await;
        }
        self.admin.delete_topic(topic).await.map_err(admin_failure)
    }

    async fn open_topic(&self, name: &str, create: Option<CreateTopic>) -> Result<Arc<dyn Log>, OpenError> {
        check_topic(name)?;
        let deadline = Instant::now() + BROKER_START_MAX;
        let main_topic = topics::main_topic_of(&self.opened.lock().unwrap_or_else(PoisonError::into_inner), name);
        let opened = topics::open(&self.cluster, &self.admin, name, create, main_topic, deadline).await?;
        let log = KafkaLog {
            cluster: Arc::clone(&self.cluster),
            name: name.into(),
            id: known_id(opened.id),
            max_message_bytes: opened.max_message_bytes,
            batch_bytes_max: Arc::new(AtomicUsize::new(
                records_bytes_max(opened.max_message_bytes).min(APPEND_BYTES_MAX),
            )),
            producer: OnceLock::new(),
            lost: self.lost.clone(),
            fetch_buffer: FetchBuffer::default(),
            fetch_throttled_until: Mutex::default(),
        };
        let mut all = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        // A side topic is opened again whenever it lacks partitions, so each name is kept once.
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

    fn topics(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async move { self.admin.list_topics(Instant::now() + BROKER_ANSWER_MAX).await.map_err(admin_failure) })
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        // No failure on our side affects what a broker has acknowledged. But after a panic of a producer, nothing can be
        // appended any more.
        Box::pin(vital::lost(self.lost.subscribe()))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One topic of a cluster.
#[derive(Debug)]
struct KafkaLog {
    cluster: Arc<Cluster>,
    name: String,
    /// The id of the topic that was opened. Set by the first broker that reports one.
    id: OnceLock<Uuid>,
    /// The topic's `max.message.bytes` when it was opened.
    max_message_bytes: usize,
    /// Bytes that several records may have together. The producer lowers it when a broker says that a batch is too
    /// large.
    batch_bytes_max: Arc<AtomicUsize>,
    /// Started by the first append.
    producer: OnceLock<Producer>,
    lost: Lost,
    fetch_buffer: FetchBuffer,
    /// The brokers' quota asks for no fetch before this time.
    fetch_throttled_until: Mutex<Option<Instant>>,
}

impl KafkaLog {
    async fn append_records(&self, partition: u32, records: Vec<Record>) -> Result<i64, Failure> {
        self.check_size(&records)?;
        let deadline = Instant::now() + BROKER_CALL_MAX;
        let count = match self.cluster.cached_topic_with(&self.name, partition, deadline).await {
            Ok(topic) => topic.partitions.len(),
            // The producer asks the brokers again, and reports the error if it persists.
            Err(_) => usize::MAX,
        };
        if partition as usize >= count {
            let detail = format!("topic {:?} has {count} partitions, and no partition {partition}", self.name);
            return Err(Failure::refused(FailureCode::PartitionMissing, detail));
        }
        let producer = self.producer.get_or_init(|| {
            let batch_bytes_max = Arc::clone(&self.batch_bytes_max);
            Producer::start(Arc::clone(&self.cluster), self.name.clone(), batch_bytes_max, self.lost.clone())
        });
        producer.append(partition, records).await
    }

    fn check_size(&self, records: &[Record]) -> Result<(), Failure> {
        let (limits, topic) = (self.append_limits(), &self.name);
        match records {
            [] => Err(Failure::refused(FailureCode::AppendEmpty, "an append needs at least one record")),
            [record] if record.size_bytes() > limits.record_bytes_max => {
                let (size, max) = (record.size_bytes(), limits.record_bytes_max);
                let detail = format!("the record has {size} bytes, and topic {topic:?} takes at most {max}");
                Err(Failure::refused(FailureCode::EventTooLarge, detail))
            }
            [_] => Ok(()),
            records => {
                let size: usize = records.iter().map(|record| limits.cost_bytes(record)).sum();
                let max = limits.batch_bytes_max;
                if size <= max {
                    return Ok(());
                }
                let detail = format!("the records have {size} bytes together, and topic {topic:?} takes at most {max}");
                Err(Failure::refused(FailureCode::AppendTooLarge, detail))
            }
        }
    }
}

impl Log for KafkaLog {
    fn topic(&self) -> &str {
        &self.name
    }

    fn append_limits(&self) -> AppendLimits {
        let record_bytes_max = records_bytes_max(self.max_message_bytes).saturating_sub(RECORD_FRAMING_BYTES_MAX);
        AppendLimits {
            batch_bytes_max: self.batch_bytes_max.load(Ordering::Relaxed),
            record_bytes_max: record_bytes_max.min(RECORD_BYTES_MAX),
        }
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        Box::pin(async move {
            let topic = self.cluster.topic(&self.name, Instant::now() + BROKER_CALL_MAX).await.map_err(failure)?;
            let topic = topic.ok_or_else(|| {
                Failure::refused(FailureCode::TopicMissing, format!("topic {:?} does not exist any more", self.name))
            })?;
            Ok(u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX))
        })
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(self.append_records(partition, records))
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
        Box::pin(async move { self.end_offset(partition, offsets::EARLIEST).await })
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move { self.end_offset(partition, offsets::LATEST).await })
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        // The protocol uses negative timestamps for the ends of the log (-1 and -2).
        Box::pin(self.offset(partition, timestamp_ms.max(0)))
    }
}

/// The topic's id. It stays open if the broker that answered reports no ids.
fn known_id(id: Uuid) -> OnceLock<Uuid> {
    if id.is_nil() { OnceLock::new() } else { OnceLock::from(id) }
}

/// How many bytes of a batch of this size are left for its records.
fn records_bytes_max(batch_bytes: usize) -> usize {
    batch_bytes.saturating_sub(kafka::batch::HEADER_BYTES)
}

/// The failure of a request that only reads. It changes nothing, so it counts as refused whatever became of it.
fn failure(error: kafka::Error) -> Failure {
    Failure::refused(FailureCode::LogUnavailable, error.to_string())
}

fn admin_failure(error: AdminError) -> Failure {
    match error {
        AdminError::Refused { .. } | AdminError::NotSent(_) => {
            Failure::refused(FailureCode::LogUnavailable, error.to_string())
        }
        AdminError::Unexplained(_) | AdminError::Unknown(_) => {
            Failure::unknown(FailureCode::LogUnavailable, error.to_string())
        }
    }
}
