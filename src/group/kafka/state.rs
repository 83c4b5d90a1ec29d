//! The topic `<topic>.<group>.state`: settled maps that are too large for a commit. A record is a part of a map, `i` of
//! `n` of a snapshot with an id of its own. Only the snapshot that the commit names counts: what a crash, or a member
//! that was cut off, leaves behind is harmless.

use super::metadata::Pointer;
use crate::clock::now_ms;
use crate::core::event::{Event, Record};
use crate::core::outcome::Failure;
use crate::core::progress::PartitionState;
use crate::core::side_topics::state_topic;
use crate::limits::{FETCH_BYTES_MAX, STATE_PART_BYTES_MAX};
use crate::log::kafka::Kafka;
use crate::log::{CreateTopic, Engine, FetchError, Log, OpenError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;
use uuid::Uuid;

/// Whose a record of a side topic is.
const TOPIC: &str = "eventd-topic";
const DESTINATION: &str = "eventd-destination";
/// Which part of which snapshot it is: `id:i:n`.
const SNAPSHOT: &str = "eventd-snapshot";

#[derive(Debug)]
pub(super) struct StateTopic {
    engine: Arc<Kafka>,
    topic: String,
    group: String,
    log: OnceCell<Arc<dyn Log>>,
    /// When adding partitions was last tried.
    grown_at: Mutex<Option<Instant>>,
}

/// How often a topic that lacks partitions is tried to be grown: the commits that need it come each second.
const GROW_INTERVAL: Duration = Duration::from_secs(10);

impl StateTopic {
    pub(super) fn new(engine: Arc<Kafka>, topic: &str, group: &str) -> Self {
        Self { engine, topic: topic.into(), group: group.into(), log: OnceCell::new(), grown_at: Mutex::default() }
    }

    pub(super) fn name(&self) -> String {
        state_topic(&self.topic, &self.group)
    }

    /// Stores the map, and tells where. The topic is made with so many partitions where it is missing.
    pub(super) async fn store(
        &self,
        partition: u32,
        partitions: u32,
        state: &PartitionState,
    ) -> Result<Pointer, Failure> {
        let open = async { self.engine.open(&self.name(), Some(CreateTopic { partitions, retention: None })).await };
        let log = self.log.get_or_try_init(|| open).await.map_err(|error| {
            let detail = format!("progress is too large for a commit, and its topic cannot be used: {error}");
            Failure::refused("group-unavailable", detail)
        })?;
        let map = state.encode_settled();
        let parts: Vec<&[u8]> = map.as_bytes().chunks(STATE_PART_BYTES_MAX).collect();
        let (snapshot, count) = (Uuid::now_v7().as_u128() as u64, parts.len());
        let mut first = None;
        for (place, part) in parts.into_iter().enumerate() {
            let which = format!("{snapshot}:{place}:{count}");
            let headers = [(TOPIC, self.topic.as_str()), (DESTINATION, &self.group), (SNAPSHOT, &which)];
            let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
            let record = Record::new(None, Some(part), &headers, now_ms());
            let offset = match log.append(partition, vec![record.clone()]).await {
                Err(failure) if failure.code == "partition-missing" => {
                    self.grow(partitions, &failure).await?;
                    log.append(partition, vec![record]).await?
                }
                answer => answer?,
            };
            first.get_or_insert(offset);
        }
        Ok(Pointer { offset: first.unwrap_or_default(), parts: count as u64, snapshot })
    }

    /// Adds the partitions that the topic of events has got since this one was made. It must have them: a snapshot in
    /// another partition would be removed when the owner of that one trims it.
    async fn grow(&self, partitions: u32, missing: &Failure) -> Result<(), Failure> {
        let unavailable = |why: String| {
            let detail =
                format!("progress is too large for a commit, and {}: add partitions to it ({why})", missing.detail);
            Failure::refused("group-unavailable", detail)
        };
        let mut grown_at = self.grown_at.lock().await;
        if grown_at.is_some_and(|at| at.elapsed() < GROW_INTERVAL) {
            return Err(unavailable("tried a moment ago".into()));
        }
        *grown_at = Some(Instant::now());
        let create = CreateTopic { partitions, retention: None };
        self.engine.open(&self.name(), Some(create)).await.map(drop).map_err(|error| unavailable(error.to_string()))
    }

    /// The state whose map stands there; the inner `Err` says why it does not.
    pub(super) async fn read(
        &self,
        partition: u32,
        watermark: i64,
        pointer: Pointer,
    ) -> Result<Result<PartitionState, String>, Failure> {
        let unavailable = |why| Failure::refused("group-unavailable", why);
        let log = match self.engine.open(&self.name(), None).await {
            Ok(log) => log,
            // A broker that does not let us in says nothing about the topic.
            Err(OpenError::Unavailable(why) | OpenError::Configuration(why)) => return Err(unavailable(why)),
            Err(error @ OpenError::Missing { .. }) => return Ok(Err(error.to_string())),
        };
        let (mut map, mut at, mut place) = (Vec::new(), pointer.offset, 0);
        while place < pointer.parts {
            let fetched = match log.fetch(partition, at, FETCH_BYTES_MAX, Duration::ZERO).await {
                Ok(fetched) => fetched,
                Err(FetchError::Unavailable(why)) => return Err(unavailable(why)),
                Err(error) => return Ok(Err(format!("its map in {:?}: {error}", self.name()))),
            };
            if fetched.events.is_empty() && fetched.next >= fetched.latest {
                return Ok(Err(format!("its map is not in {:?} at offset {at}", self.name())));
            }
            // Between two parts may stand what another member wrote, and a part that was appended twice.
            for event in &fetched.events {
                if self.is_part(event, &format!("{}:{place}:{}", pointer.snapshot, pointer.parts)) {
                    map.extend_from_slice(event.record.value().unwrap_or_default());
                    place += 1;
                }
            }
            at = fetched.next;
        }
        let map = String::from_utf8(map).map_err(|error| error.to_string());
        Ok(map.and_then(|map| PartitionState::decode(watermark, &map)))
    }

    fn is_part(&self, event: &Event, which: &str) -> bool {
        let is = |name, value: &str| event.record.header_text(name) == Some(value);
        is(SNAPSHOT, which) && is(TOPIC, &self.topic) && is(DESTINATION, &self.group)
    }

    /// Removes what stands before the snapshot that a commit points at.
    pub(super) async fn trim(&self, partition: u32, below: i64) -> Result<(), Failure> {
        self.engine.trim(&self.name(), partition, below).await
    }
}
