//! Group initialization: the first commit of a new group writes a "not started" marker for every partition.
//!
//! ```text
//!  owner of partition 0      no commit at all ─▶ one OffsetCommit: a marker for each partition ─▶ starts its partition
//!  owners of the others      no commit at all ─▶ look again ······ until the markers are there ─▶ start theirs
//! ```
//!
//! After that, a partition without a commit in a group that has some has only two explanations: the partition was added
//! later, or the brokers have forgotten its commit. Without the markers there would be a third: its owner died before
//! its first commit, while the owner of another partition had already committed. A broker stores all markers of one
//! request or none, because they are one batch of its topic of commits.
//!
//! A marker never replaces a commit. Partition 0 has one owner, and only that owner writes markers. It first takes its
//! identity, which includes its generation, then looks whether there are commits, and then sends the markers. A
//! request that arrives late is refused, if there is a later generation. If the outcome of a request is unknown, the
//! member starts a later generation before it sends the next one.

use super::metadata::CommitMetadata;
use super::offset_store::{CommittedOffsets, OffsetCommit, OffsetStore};
use crate::core::outcome::{Failure, FailureCode};
use crate::group::kafka::member::CommitIdentity;
use crate::group::kafka::membership::Membership;
use crate::kafka::describe;
use crate::log::kafka::Kafka;
use kafka_protocol::ResponseError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

/// How long the owners of the other partitions wait for the owner of partition 0 before they report that and start
/// to wait again: as long as the default session of an owner that has died.
const INITIALIZATION_WAIT_MAX: Duration = Duration::from_secs(10);

/// How often they look. Writing the markers takes milliseconds, and only one worker of a process looks.
const INITIALIZATION_POLL_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct GroupInitialization {
    engine: Arc<Kafka>,
    topic_id: Uuid,
    /// The number of partitions when the group was joined. A partition that is added later starts at its first event.
    partition_count: u32,
    /// The identity under which markers were sent, if their outcome is unknown. One worker of a process initializes the
    /// group and holds the lock meanwhile.
    unresolved: Mutex<Option<CommitIdentity>>,
}

impl GroupInitialization {
    pub(super) fn new(engine: &Arc<Kafka>, topic_id: Uuid, partition_count: u32) -> Self {
        Self { engine: Arc::clone(engine), topic_id, partition_count, unresolved: Mutex::default() }
    }

    /// Waits until the group is initialized, and returns the commits of its first `partition_count` partitions.
    pub(super) async fn commits(
        &self,
        offsets: &OffsetStore,
        member: &Membership,
        partition_count: u32,
    ) -> Result<CommittedOffsets, Failure> {
        let deadline = Instant::now() + INITIALIZATION_WAIT_MAX;
        loop {
            match self.unresolved.try_lock() {
                Ok(mut unresolved) => {
                    self.initialize(offsets, member, partition_count, &mut unresolved, deadline).await?;
                }
                // Another worker of this process initializes the group: wait until it has ended.
                Err(_) => {
                    let lock = timeout_at(deadline, self.unresolved.lock()).await;
                    drop(lock.map_err(|_| not_initialized(offsets))?);
                }
            }
            let commits = offsets.fetch(partition_count).await?;
            if !commits.is_empty() {
                return Ok(commits);
            }
        }
    }

    /// Returns when the group has commits. If this member owns partition 0, they are the markers that it writes.
    async fn initialize(
        &self,
        offsets: &OffsetStore,
        member: &Membership,
        partition_count: u32,
        unresolved: &mut Option<CommitIdentity>,
        deadline: Instant,
    ) -> Result<(), Failure> {
        loop {
            // The identity is taken before the look. If a commit is stored after the look, it is of a later generation, and
            // the markers under this identity are refused.
            let identity = member.commit_identity(0);
            if !offsets.fetch(partition_count).await?.is_empty() {
                return Ok(());
            }
            match identity {
                // The markers may still arrive. In the next generation they can no longer.
                Some(identity) if unresolved.as_ref() == Some(&identity) => member.request_rejoin(),
                Some(identity) => {
                    let markers = self.markers(&offsets.topic).await;
                    *unresolved = Some(identity.clone());
                    let answer = offsets.commit(&identity, markers).await?;
                    *unresolved = None;
                    match answer {
                        Ok(()) => return Ok(()),
                        // The group rebalances. If this member still owns partition 0 afterwards, it tries again.
                        Err(
                            ResponseError::RebalanceInProgress
                            | ResponseError::IllegalGeneration
                            | ResponseError::UnknownMemberId,
                        ) => {}
                        Err(error) => {
                            let detail = format!("cannot initialize group {:?}: {}", offsets.group, describe(error));
                            return Err(Failure::refused(FailureCode::GroupUnavailable, detail));
                        }
                    }
                }
                None => {}
            }
            if Instant::now() >= deadline {
                return Err(not_initialized(offsets));
            }
            sleep(INITIALIZATION_POLL_INTERVAL).await;
        }
    }

    /// The markers of all partitions. The offset of each is that of the partition's first event, from which Kafka's tools
    /// count the lag.
    async fn markers(&self, topic: &str) -> Vec<OffsetCommit> {
        let earliest = self.engine.earliest(topic).await;
        let metadata = CommitMetadata::not_started(self.topic_id);
        let marker = |partition| {
            // No destination starts at this offset. So a partition that has no leader now does not hold up the others.
            let offset = earliest.get(&partition).copied().unwrap_or(0);
            OffsetCommit { partition, offset, metadata: metadata.clone() }
        };
        (0..self.partition_count).map(marker).collect()
    }
}

fn not_initialized(offsets: &OffsetStore) -> Failure {
    let detail = format!("group {:?} is not initialized yet: waiting for the owner of partition 0", offsets.group);
    Failure::refused(FailureCode::GroupUnavailable, detail)
}
