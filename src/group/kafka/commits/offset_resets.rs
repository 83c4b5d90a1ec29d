//! Offset resets that were requested from outside, by `eventd replay --rewind` or `--fast-forward`.
//!
//! They are commits of the group `<name>.rewind`, which has no members. The offset is the new position. The metadata is
//! the topic's id and the rest of the [`OffsetReset`].

use super::metadata::{split_topic_id, with_topic_id};
use super::offset_store::{OffsetCommit, OffsetStore};
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::OffsetReset;
use crate::core::side_topics::rewind_group;
use crate::group::kafka::member::CommitIdentity;
use crate::kafka::{Cluster, describe, is_another_topic};
use crate::limits::RESET_LOOK_INTERVAL;
use crate::log_limiter::LogLimiter;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

#[derive(Debug)]
pub(in crate::group::kafka) struct ResetRequests {
    offsets: OffsetStore,
    topic_id: Uuid,
    /// What was read last, and when. The owners of all partitions of a process look one after the other, and share one
    /// request.
    cached: Mutex<Option<(Instant, HashMap<u32, OffsetReset>)>>,
    log_limiter: LogLimiter,
}

impl ResetRequests {
    pub(super) fn new(cluster: &Arc<Cluster>, group: &str, topic: &str, topic_id: Uuid) -> Self {
        Self {
            offsets: OffsetStore::new(cluster, &rewind_group(group), topic),
            topic_id,
            cached: Mutex::default(),
            log_limiter: LogLimiter::default(),
        }
    }

    /// The last reset that was requested for the partition. The answer may be old by half of [`RESET_LOOK_INTERVAL`].
    pub(in crate::group::kafka) async fn latest(
        &self,
        partition: u32,
        partition_count: u32,
    ) -> Result<Option<OffsetReset>, Failure> {
        let mut cached = self.cached.lock().await;
        let resets = match &mut *cached {
            Some((at, resets)) if at.elapsed() < RESET_LOOK_INTERVAL / 2 => resets,
            cached => {
                let now = Instant::now();
                let resets = self.read(partition_count.max(partition + 1)).await?;
                &mut cached.insert((now, resets)).1
            }
        };
        Ok(resets.get(&partition).copied())
    }

    pub(in crate::group::kafka) async fn read(
        &self,
        partition_count: u32,
    ) -> Result<HashMap<u32, OffsetReset>, Failure> {
        let commits = self.offsets.fetch(partition_count).await?;
        let mut resets = HashMap::new();
        for (partition, offset, text) in commits.iter() {
            match split_topic_id(text).and_then(|(id, rest)| Ok((id, OffsetReset::decode(offset, rest)?))) {
                Ok((topic_id, reset)) if !is_another_topic(topic_id, self.topic_id) => {
                    resets.insert(partition, reset);
                }
                // An older topic of this name: its offsets mean nothing in this one.
                Ok(_) => {}
                Err(why) => {
                    if let Some(suppressed) = self.log_limiter.allows("unreadable") {
                        tracing::warn!(
                            group = self.offsets.group,
                            partition,
                            suppressed,
                            "ignoring an offset reset that cannot be read: {why}"
                        );
                    }
                }
            }
        }
        Ok(resets)
    }

    /// Requests the resets, which replace those that were requested before. The broker stores all of them or none.
    pub(in crate::group::kafka) async fn request(&self, resets: &BTreeMap<u32, OffsetReset>) -> Result<(), Failure> {
        let commit = |(partition, reset): (&u32, &OffsetReset)| OffsetCommit {
            partition: *partition,
            offset: reset.offset(),
            metadata: with_topic_id(self.topic_id, &reset.encode()),
        };
        let commits = resets.iter().map(commit).collect();
        self.offsets.commit(&CommitIdentity::non_member(), commits).await?.map_err(|error| {
            let detail = format!("group {:?} does not accept the commit: {}", self.offsets.group, describe(error));
            Failure::refused(FailureCode::GroupUnavailable, detail)
        })
    }
}
