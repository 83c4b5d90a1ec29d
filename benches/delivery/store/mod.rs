//! What the benchmark needs from an engine of the log, and what it does with each through the library: loading, and the
//! limits. An engine joins as a [`Store`] and gets columns in the table.

mod broker;
mod kafka;
mod sqlite;

use crate::child::own_usage;
use crate::report::Measured;
use crate::users::{self, PAYLOAD_BYTES, Users};
use anyhow::Context as _;
use eventd::core::event::{CONTENT_TYPE, ID, Record};
use eventd::core::partition::Partitioner;
use eventd::core::progress::PartitionState;
use eventd::group::{Group, Groups};
use eventd::limits::FETCH_BYTES_MAX;
use eventd::log::{CreateTopic, Engine, Log};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub(crate) use broker::keep as keep_broker;
pub(crate) use kafka::Kafka;
pub(crate) use sqlite::Sqlite;

/// The default number of partitions of a topic.
const PARTITIONS: u32 = 3;

/// Payload bytes of a group of events that are appended together. An append is at most about 1 MB.
const GROUP_BYTES_MAX: usize = 512 * 1024;

/// The events of a log, and how they are distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) users: Users,
    pub(crate) events: u64,
    pub(crate) partitions: u32,
    pub(crate) payload_bytes: usize,
}

impl Content {
    /// These events in the default number of partitions, with the usual payload.
    pub(crate) fn of(users: Users, events: u64) -> Self {
        Self { users, events, partitions: PARTITIONS, payload_bytes: PAYLOAD_BYTES }
    }
}

/// The log from which a case reads its events, or to which it appends them.
#[derive(Debug)]
pub(crate) struct Place {
    /// The value of `--url`.
    pub(crate) url: String,
    /// The value of `--topic`.
    pub(crate) topic: String,
    /// The name of a destination that has settled nothing in it.
    pub(crate) destination: String,
    /// Deleted with the place, if it has files of its own.
    folder: Option<TempDir>,
}

/// Returns how many events a destination has settled. It is called again and again while the destination works.
pub(crate) type Settled = Box<dyn FnMut() -> anyhow::Result<u64>>;

/// What a destination has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Commits {
    /// By how many offsets the commit is behind the end of the log, in the partition where this is most.
    pub(crate) lag: u64,
    /// Users that are parked, in all partitions.
    pub(crate) parked_users: u64,
}

/// Looks at what a destination has committed. It is called again and again while the destination works.
pub(crate) type CommitWatch = Box<dyn FnMut() -> anyhow::Result<Commits> + Send>;

/// An engine of the log, as the benchmark uses it.
pub(crate) trait Store {
    /// The name of its columns.
    fn name(&self) -> &'static str;

    /// A log without events.
    fn empty(&mut self) -> anyhow::Result<Place>;

    /// A log with these events, of which the place's destination has read none. It must not be appended to, because
    /// several cases may share it.
    fn loaded(&mut self, content: Content) -> anyhow::Result<Place>;

    /// Appends these events to an empty log.
    fn load(&self, place: &Place, content: Content) -> anyhow::Result<()>;

    /// Commits everything that is in the log, as if the place's destination had settled it.
    fn settle(&self, place: &Place) -> anyhow::Result<()>;

    /// Watches what the place's destination settles. It reports all events only when they are committed. Before that,
    /// it may report too few.
    fn settled(&self, place: &Place) -> anyhow::Result<Settled>;

    /// Watches what the place's destination commits. Creates the topic if it is missing.
    fn commits(&self, place: &Place) -> anyhow::Result<CommitWatch>;

    /// How fast the engine alone accepts events, in groups of a busy ingest with one appender for each partition.
    fn raw_append(&mut self, events: u64) -> anyhow::Result<Measured>;

    /// How fast the engine alone returns events.
    fn raw_fetch(&mut self, events: u64) -> anyhow::Result<Measured>;

    /// How fast eventd's own log returns events, if that is not the engine alone.
    fn log_fetch(&mut self, _events: u64) -> Option<anyhow::Result<Measured>> {
        None
    }
}

/// Events as ingest would append them, in groups for one partition.
fn groups(content: Content, group_records: usize) -> Vec<(u32, Vec<Record>)> {
    let group_records = group_records.min(GROUP_BYTES_MAX / content.payload_bytes).max(1);
    let (mut full, mut open) = (Vec::new(), vec![Vec::new(); content.partitions as usize]);
    for (partition, record) in records(content) {
        let group = &mut open[partition as usize];
        group.push(record);
        if group.len() == group_records {
            full.push((partition, std::mem::take(group)));
        }
    }
    full.extend((0..).zip(open).filter(|(_, group)| !group.is_empty()));
    full
}

/// Appends the groups: in order within a partition, and all partitions at the same time.
async fn append(log: &Arc<dyn Log>, groups: Vec<(u32, Vec<Record>)>) -> anyhow::Result<()> {
    let mut by_partition = vec![Vec::new(); log.partitions().await? as usize];
    for (partition, group) in groups {
        by_partition[partition as usize].push(group);
    }
    let mut appenders = JoinSet::new();
    for (partition, groups) in (0..).zip(by_partition) {
        let log = Arc::clone(log);
        appenders.spawn(async move {
            for group in groups {
                log.append(partition, group).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = appenders.join_next().await {
        ended??;
    }
    Ok(())
}

/// The records that ingest would make of the events, each with its partition.
fn records(content: Content) -> impl Iterator<Item = (u32, Record)> {
    let Content { users, events, partitions, payload_bytes } = content;
    let payload = users::payload(payload_bytes);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis()).unwrap_or_default();
    let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
    (0..events).zip(users.draw()).map(move |(_, user)| {
        let (user, id) = (users::id(user), uuid::Uuid::now_v7().to_string());
        let headers: [(&str, Option<&[u8]>); 2] =
            [(ID, Some(id.as_bytes())), (CONTENT_TYPE, Some(b"text/plain; charset=utf-8"))];
        let record = Record::new(Some(user.as_bytes()), Some(payload.as_bytes()), &headers, now_ms);
        (Partitioner::default().partition(user.as_bytes(), partitions), record)
    })
}

/// Commits everything that is in the log, and leaves the group.
async fn commit_all(log: &dyn Log, group: &dyn Group) -> anyhow::Result<()> {
    for partition in 0..log.partitions().await? {
        group.commit(partition, PartitionState::at(log.latest(partition).await?)).await?;
    }
    group.leave().await;
    Ok(())
}

/// Opens the topic, and creates it with this many partitions if it is missing.
async fn open(engine: &dyn Engine, topic: &str, partitions: u32) -> anyhow::Result<Arc<dyn Log>> {
    let create = CreateTopic { partitions, retention: None };
    engine.open(topic, Some(create)).await.context("open the topic")
}

/// The number of settled events. Offsets begin at 0 and have no gaps here, so they count events.
fn count(state: &PartitionState) -> anyhow::Result<u64> {
    let above: i64 = state.settled.iter().map(|range| range.end - range.start).sum();
    let settled = u64::try_from(state.watermark + above)?;
    // The list accounts for the events of parked users, so at least one event less is settled.
    let is_parked = state.users.values().any(|user| user.parked.is_some());
    Ok(settled.saturating_sub(is_parked.into()))
}

/// What the destination has committed.
async fn commits(groups: &dyn Groups, destination: &str, log: &Arc<dyn Log>) -> anyhow::Result<Commits> {
    let (mut lag, mut parked_users) = (0, 0);
    for (partition, state) in (0..).zip(groups.committed(destination, log).await?) {
        let state = state.unwrap_or_default();
        lag = lag.max(log.latest(partition).await? - state.watermark);
        parked_users += state.users.values().filter(|user| user.parked.is_some()).count() as u64;
    }
    Ok(Commits { lag: u64::try_from(lag)?, parked_users })
}

/// Reads a partition to its end, and returns the number of events.
async fn fetch_all(log: &dyn Log, partition: u32) -> anyhow::Result<u64> {
    let (mut from, mut events) = (0, 0);
    loop {
        let fetched = log.fetch(partition, from, FETCH_BYTES_MAX, Duration::ZERO).await?;
        events += fetched.events.len() as u64;
        from = fetched.next;
        if from >= fetched.latest {
            return Ok(events);
        }
    }
}

/// Runs the work and measures its time and what this process used.
fn timed(events: u64, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (before, started) = (own_usage()?, Instant::now());
    runtime.block_on(work)?;
    let (elapsed, after) = (started.elapsed(), own_usage()?);
    Ok(Measured {
        events: Some(events as f64),
        events_s: Some(events as f64 / elapsed.as_secs_f64()),
        cpu_s: Some(after.cpu_s - before.cpu_s),
        ..Measured::default()
    })
}
