//! What is asked for from outside: moves of the position, as commits of the group `<name>.rewind`, which has no members.
//! The offset is where to, and the metadata are the topic's id and the rest of the [`OffsetReset`].

use super::membership::Identity;
use super::metadata::{self, topic_id_of};
use super::offsets::{Offset, Offsets};
use crate::core::outcome::Failure;
use crate::core::progress::OffsetReset;
use crate::core::side_topics::rewind_group;
use crate::kafka::{Cluster, describe, is_another_topic};
use crate::limits::MOVES_LOOK_INTERVAL;
use crate::log_limiter::LogLimiter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

#[derive(Debug)]
pub(super) struct Moves {
    offsets: Offsets,
    topic_id: Uuid,
    /// What was last read, and when: the owners of all partitions of a process ask one after the other.
    seen: Mutex<Option<(Instant, HashMap<u32, OffsetReset>)>>,
    log_limiter: LogLimiter,
}

impl Moves {
    pub(super) fn new(cluster: &Arc<Cluster>, group: &str, topic: &str, topic_id: Uuid) -> Self {
        Self {
            offsets: Offsets::new(cluster, &rewind_group(group), topic),
            topic_id,
            seen: Mutex::default(),
            log_limiter: LogLimiter::default(),
        }
    }

    /// The last one of the partition, as it was at most half of [`MOVES_LOOK_INTERVAL`] ago.
    pub(super) async fn latest(&self, partition: u32, partitions: u32) -> Result<Option<OffsetReset>, Failure> {
        let mut seen = self.seen.lock().await;
        let moves = match &mut *seen {
            Some((at, moves)) if at.elapsed() < MOVES_LOOK_INTERVAL / 2 => moves,
            seen => {
                let now = Instant::now();
                let moves = self.read(partitions.max(partition + 1)).await?;
                &mut seen.insert((now, moves)).1
            }
        };
        Ok(moves.get(&partition).copied())
    }

    pub(super) async fn read(&self, partitions: u32) -> Result<HashMap<u32, OffsetReset>, Failure> {
        let found = self.offsets.fetch(partitions).await?;
        let mut moves = HashMap::new();
        for (partition, (offset, text)) in found.into_iter().filter(|(_, (offset, _))| *offset >= 0) {
            match topic_id_of(&text).and_then(|(of, rest)| Ok((of, OffsetReset::decode(offset, rest)?))) {
                Ok((of, wanted)) if !is_another_topic(of, self.topic_id) => _ = moves.insert(partition, wanted),
                // Of an older topic of this name: its offsets mean nothing here.
                Ok(_) => {}
                Err(why) => {
                    if let Some(suppressed) = self.log_limiter.allows("unreadable") {
                        let group = &self.offsets.group;
                        tracing::warn!(
                            group,
                            partition,
                            suppressed,
                            "what is asked for cannot be read, and is left: {why}"
                        );
                    }
                }
            }
        }
        Ok(moves)
    }

    /// Asks for them in one request, in place of what was asked for before.
    pub(super) async fn ask(&self, moves: &BTreeMap<u32, OffsetReset>) -> Result<(), Failure> {
        let offset = |(partition, wanted): (&u32, &OffsetReset)| Offset {
            partition: *partition,
            offset: wanted.offset(),
            metadata: metadata::with_topic_id(self.topic_id, &wanted.encode()),
        };
        let offsets = moves.iter().map(offset).collect();
        self.offsets.commit(&Identity::nobody(), offsets).await?.map_err(|error| {
            let detail = format!("the group {:?} takes no commit: {}", self.offsets.group, describe(error));
            Failure::refused("group-unavailable", detail)
        })
    }
}
