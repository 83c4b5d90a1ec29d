//! The topic `<topic>.<group>.state`: settled maps that do not fit into the metadata of a commit.
//!
//! ```text
//!   commit: offset = watermark, metadata = pointer ──┐
//!                                                    ▼
//!   state topic:  … │ snapshot 7, part 0 of 2 │ snapshot 7, part 1 of 2 │ snapshot 8, part 0 of 1 │ …
//! ```
//!
//! Each snapshot has an id of its own and is split into records. Only the snapshot that the commit points at counts. What
//! a crash or a former member leaves behind is never read, and removed by the next trim.

use super::metadata::SnapshotPointer;
use crate::clock::now_ms;
use crate::core::event::{Event, Record};
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::PartitionState;
use crate::core::side_topics::state_topic;
use crate::limits::FETCH_BYTES_MAX;
use crate::log::grow_limiter::GrowLimiter;
use crate::log::kafka::Kafka;
use crate::log::{CreateTopic, Engine, FetchError, Log, OpenError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use uuid::Uuid;

/// Headers that say which topic and destination a record of a side topic belongs to.
const TOPIC: &str = "eventd-topic";
const DESTINATION: &str = "eventd-destination";
/// A header that says which part of which snapshot a record is: `id:part:parts`.
const SNAPSHOT: &str = "eventd-snapshot";

/// The size of one part of a snapshot: well below the 1 MiB that a broker accepts by default.
const STATE_PART_BYTES_MAX: usize = 512 * 1024;

#[derive(Debug)]
pub(super) struct StateTopic {
    engine: Arc<Kafka>,
    topic: String,
    group: String,
    log: OnceCell<Arc<dyn Log>>,
    grow_limiter: GrowLimiter,
}

/// How often eventd tries to add partitions to a topic that lacks some. The commits that need them come every second.
const GROW_INTERVAL: Duration = Duration::from_secs(10);

impl StateTopic {
    pub(super) fn new(engine: Arc<Kafka>, topic: &str, group: &str) -> Self {
        Self {
            engine,
            topic: topic.into(),
            group: group.into(),
            log: OnceCell::new(),
            grow_limiter: GrowLimiter::new(GROW_INTERVAL),
        }
    }

    pub(super) fn name(&self) -> String {
        state_topic(&self.topic, &self.group)
    }

    /// Stores the settled map, and returns where it is. If the topic is missing, it is created with `partition_count`
    /// partitions.
    pub(super) async fn store(
        &self,
        partition: u32,
        partition_count: u32,
        state: &PartitionState,
    ) -> Result<SnapshotPointer, Failure> {
        let create = CreateTopic { partitions: partition_count, retention: None };
        let open = async { self.engine.open(&self.name(), Some(create)).await };
        let log = self.log.get_or_try_init(|| open).await.map_err(|error| {
            let detail = format!("progress is too large for a commit, and its topic cannot be used: {error}");
            Failure::refused(FailureCode::GroupUnavailable, detail)
        })?;
        let map = state.encode();
        let parts: Vec<&[u8]> = map.as_bytes().chunks(STATE_PART_BYTES_MAX).collect();
        let (snapshot, count) = (Uuid::now_v7().as_u128() as u64, parts.len());
        let mut first_offset = None;
        for (number, part) in parts.into_iter().enumerate() {
            let which = format!("{snapshot}:{number}:{count}");
            let headers = [(TOPIC, self.topic.as_str()), (DESTINATION, &self.group), (SNAPSHOT, &which)];
            let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
            let record = Record::new(None, Some(part), &headers, now_ms());
            let offset = match log.append(partition, vec![record.clone()]).await {
                Err(failure) if failure.code == FailureCode::PartitionMissing => {
                    self.grow(partition_count, &failure).await?;
                    log.append(partition, vec![record]).await?
                }
                answer => answer?,
            };
            first_offset.get_or_insert(offset);
        }
        Ok(SnapshotPointer { offset: first_offset.unwrap_or_default(), parts: count as u64, snapshot })
    }

    /// Adds the partitions that the main topic has been given since this topic was created. A snapshot must be in the
    /// partition of its own number: in another one, the owner of that partition would trim it away.
    async fn grow(&self, partition_count: u32, missing: &Failure) -> Result<(), Failure> {
        let unavailable = |why: String| {
            let detail =
                format!("progress is too large for a commit, and {}: add partitions to it ({why})", missing.detail);
            Failure::refused(FailureCode::GroupUnavailable, detail)
        };
        let Some(_turn) = self.grow_limiter.turn().await else {
            return Err(unavailable("tried a moment ago".into()));
        };
        let create = CreateTopic { partitions: partition_count, retention: None };
        self.engine.open(&self.name(), Some(create)).await.map(drop).map_err(|error| unavailable(error.to_string()))
    }

    /// Reads the snapshot that a commit points at. The inner error says why it cannot be used, now or later.
    pub(super) async fn read(
        &self,
        partition: u32,
        watermark: i64,
        pointer: SnapshotPointer,
    ) -> Result<Result<PartitionState, String>, Failure> {
        let unavailable = |why| Failure::refused(FailureCode::GroupUnavailable, why);
        let log = match self.engine.open(&self.name(), None).await {
            Ok(log) => log,
            // If a broker does not let this process in, that says nothing about the topic.
            Err(OpenError::Unavailable(why) | OpenError::Configuration(why)) => return Err(unavailable(why)),
            Err(error @ OpenError::Missing { .. }) => return Ok(Err(error.to_string())),
        };
        let (mut map, mut offset, mut next_part) = (Vec::new(), pointer.offset, 0);
        while next_part < pointer.parts {
            let fetched = match log.fetch(partition, offset, FETCH_BYTES_MAX, Duration::ZERO).await {
                Ok(fetched) => fetched,
                Err(FetchError::Unavailable(why)) => return Err(unavailable(why)),
                Err(error) => return Ok(Err(format!("its settled map in {:?}: {error}", self.name()))),
            };
            if fetched.events.is_empty() && fetched.next >= fetched.latest {
                return Ok(Err(format!("its settled map is not in {:?} at offset {offset}", self.name())));
            }
            // Between two parts there may be records of another member, and a part that was appended twice.
            for event in &fetched.events {
                if self.is_part(event, &format!("{}:{next_part}:{}", pointer.snapshot, pointer.parts)) {
                    map.extend_from_slice(event.record.value().unwrap_or_default());
                    next_part += 1;
                }
            }
            offset = fetched.next;
        }
        let map = String::from_utf8(map).map_err(|error| error.to_string());
        Ok(map.and_then(|map| PartitionState::decode(watermark, &map)))
    }

    fn is_part(&self, event: &Event, which: &str) -> bool {
        let has = |header, value: &str| event.record.header_text(header) == Some(value);
        has(SNAPSHOT, which) && has(TOPIC, &self.topic) && has(DESTINATION, &self.group)
    }

    /// Removes the records below this offset, where the snapshot starts that the last commit points at.
    pub(super) async fn trim(&self, partition: u32, below: i64) -> Result<(), Failure> {
        self.engine.trim(&self.name(), partition, below).await
    }
}
