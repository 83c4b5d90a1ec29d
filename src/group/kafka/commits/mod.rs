//! The commits of a group: how a member's progress is stored, and what a missing or foreign commit means.
//!
//! ```text
//!   store ── the log ends before what the state settles? refuse
//!         └─ the settled map fits into 4,096 characters? ── yes ─▶ OffsetCommit(watermark, map)
//!                                                        └─ no ──▶ state topic: snapshot ─▶ OffsetCommit(watermark, pointer)
//!
//!   read  ── no commit ──▶ new group (initialize it), added partition, or expired commit
//!         ├─ ours ───────▶ the state, unless the topic was deleted and created again
//!         └─ foreign ────▶ an operator's tool has reset the offset: start there
//! ```

mod initialization;
mod metadata;
mod offset_resets;
mod offset_store;
mod read;
mod state_topic;

use self::initialization::GroupInitialization;
use self::metadata::CommitMetadata;
use self::offset_resets::ResetRequests;
use self::offset_store::{OffsetCommit, OffsetStore};
use self::state_topic::StateTopic;
use super::errors::unavailable;
use super::member::CommitIdentity;
use super::membership::Membership;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::PartitionState;
use crate::group::JoinError;
use crate::kafka::{self, Cluster, describe};
use crate::limits::{BROKER_CALL_MAX, METADATA_INTERVAL_MIN};
use crate::log::Log;
use crate::log::kafka::Kafka;
use kafka_protocol::ResponseError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

/// How much metadata a broker accepts by default (`offset.metadata.max.bytes`). A larger settled map goes to the state
/// topic.
const COMMIT_METADATA_CHARS_MAX: usize = 4_096;

/// How often a state goes to the state topic at most. It is written whole each time.
const STATE_COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How often snapshots that no commit points at any more are removed.
const STATE_TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// How long a commit waits for the end of a rebalance before it fails.
const COMMIT_REBALANCING_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Commits {
    cluster: Arc<Cluster>,
    log: Arc<dyn Log>,
    offsets: OffsetStore,
    pub(super) resets: ResetRequests,
    topic_id: Uuid,
    /// The operator gave `--start`, so a missing commit is not an error.
    start_given: bool,
    /// The number of partitions of the topic when the group was opened.
    pub(super) partitions_at_open: u32,
    /// Whether the group had any commit when it was opened.
    had_commits: bool,
    initialization: GroupInitialization,
    state_topic: StateTopic,
    cache: Mutex<HashMap<u32, PartitionCache>>,
}

/// What is remembered about a partition between two commits.
#[derive(Debug, Clone, Copy, Default)]
struct PartitionCache {
    /// The log reached at least this offset when it was last looked at.
    log_end: i64,
    /// When a state was last stored in the state topic.
    state_stored_at: Option<Instant>,
    /// When the state topic was last trimmed.
    state_trimmed_at: Option<Instant>,
}

/// The role in which a commit is made.
#[derive(Debug, Clone, Copy)]
enum CommitAs<'m> {
    Member(&'m Membership),
    /// Brokers accept commits of a program that is not a member while the group has no members.
    NonMember,
}

impl CommitAs<'_> {
    fn identity(self, partition: u32) -> Option<CommitIdentity> {
        match self {
            Self::Member(member) => member.commit_identity(partition),
            Self::NonMember => Some(CommitIdentity::non_member()),
        }
    }
}

/// Why a commit was not stored.
#[derive(Debug)]
enum CommitError {
    /// The broker accepts less metadata than this commit has.
    MetadataTooLarge(String),
    /// The group has members, and only those may commit.
    HasMembers,
    Failed(Failure),
}

impl From<Failure> for CommitError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Commits {
    pub(super) async fn open(
        engine: &Arc<Kafka>,
        group: &str,
        log: &Arc<dyn Log>,
        start_given: bool,
    ) -> Result<Self, JoinError> {
        let cluster = Arc::clone(engine.cluster());
        let found = cluster.topic(log.topic(), Instant::now() + BROKER_CALL_MAX).await;
        let found = found.map_err(|error| match error {
            kafka::Error::Configuration(detail) | kafka::Error::NotAllowed(detail) => JoinError::Configuration(detail),
            error => JoinError::Unavailable(unavailable(error)),
        })?;
        let topic = found.ok_or_else(|| JoinError::MissingTopic { topic: log.topic().into() })?;
        let partition_count = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let offsets = OffsetStore::new(&cluster, group, log.topic());
        let had_commits = !offsets.fetch(partition_count).await.map_err(JoinError::Unavailable)?.is_empty();
        Ok(Self {
            offsets,
            resets: ResetRequests::new(&cluster, group, log.topic(), topic.id),
            cluster,
            log: Arc::clone(log),
            topic_id: topic.id,
            start_given,
            partitions_at_open: partition_count,
            had_commits,
            initialization: GroupInitialization::new(engine, topic.id, partition_count),
            state_topic: StateTopic::new(Arc::clone(engine), log.topic(), group),
            cache: Mutex::default(),
        })
    }

    pub(super) fn group(&self) -> &str {
        &self.offsets.group
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<u32, PartitionCache>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the state of a partition that this member owns.
    pub(super) async fn store(
        &self,
        member: &Membership,
        partition: u32,
        state: PartitionState,
    ) -> Result<(), Failure> {
        self.store_as(CommitAs::Member(member), partition, &state).await.map_err(|error| match error {
            CommitError::MetadataTooLarge(detail) => Failure::refused(FailureCode::CommitMetadataTooLarge, detail),
            CommitError::HasMembers => {
                Failure::refused(FailureCode::GroupUnavailable, format!("group {:?} has other members", self.group()))
            }
            CommitError::Failed(failure) => failure,
        })
    }

    /// Stores the state of a partition from outside the group. `false` if the group has members.
    pub(super) async fn store_as_non_member(&self, partition: u32, state: PartitionState) -> Result<bool, Failure> {
        match self.store_as(CommitAs::NonMember, partition, &state).await {
            Ok(()) => Ok(true),
            Err(CommitError::HasMembers) => Ok(false),
            Err(CommitError::MetadataTooLarge(detail)) => {
                Err(Failure::refused(FailureCode::CommitMetadataTooLarge, detail))
            }
            Err(CommitError::Failed(failure)) => Err(failure),
        }
    }

    async fn store_as(
        &self,
        commit_as: CommitAs<'_>,
        partition: u32,
        state: &PartitionState,
    ) -> Result<(), CommitError> {
        self.check_log_end(partition, state).await?;
        let inline = CommitMetadata::inline(self.topic_id, state);
        if inline.len() <= COMMIT_METADATA_CHARS_MAX {
            match self.commit_offset(commit_as, partition, state.watermark, inline).await {
                // This broker is set to accept less than the default.
                Err(CommitError::MetadataTooLarge(_)) => {}
                answer => return answer,
            }
        }
        self.store_in_topic(commit_as, partition, state).await
    }

    /// Refuses a state that settles events past the end of the log: they would be skipped when they are written.
    async fn check_log_end(&self, partition: u32, state: &PartitionState) -> Result<(), Failure> {
        let settled_end = state.settled_end();
        // The log only grows, so most commits need no look.
        if settled_end <= self.cache().get(&partition).map_or(0, |cache| cache.log_end) {
            return Ok(());
        }
        let log_end = self.log.latest(partition).await?;
        self.cache().entry(partition).or_default().log_end = log_end;
        if settled_end > log_end {
            return Err(Failure::refused(
                FailureCode::CommitPastEnd,
                format!("partition {partition} ends at {log_end}, but the commit settles events up to {settled_end}"),
            ));
        }
        Ok(())
    }

    /// Commits one offset. During a rebalance the commit is tried again with the identity that the member has then. In
    /// between the coordinator may already know a later generation than this member.
    async fn commit_offset(
        &self,
        commit_as: CommitAs<'_>,
        partition: u32,
        offset: i64,
        metadata: String,
    ) -> Result<(), CommitError> {
        let deadline = Instant::now() + COMMIT_REBALANCING_MAX;
        loop {
            let identity = commit_as.identity(partition).ok_or_else(|| {
                Failure::refused(
                    FailureCode::GroupUnavailable,
                    format!("this member does not own partition {partition} now"),
                )
            })?;
            let commit = OffsetCommit { partition, offset, metadata: metadata.clone() };
            let Err(error) = self.offsets.commit(&identity, vec![commit]).await? else { return Ok(()) };
            let is_rebalancing = matches!(error, ResponseError::RebalanceInProgress | ResponseError::IllegalGeneration);
            if is_rebalancing && matches!(commit_as, CommitAs::Member(_)) && Instant::now() < deadline {
                sleep(METADATA_INTERVAL_MIN).await;
                continue;
            }
            let detail = format!("group {:?} does not accept the commit: {}", self.group(), describe(error));
            return Err(match (error, commit_as) {
                (ResponseError::OffsetMetadataTooLarge, _) => CommitError::MetadataTooLarge(detail),
                (
                    ResponseError::UnknownMemberId
                    | ResponseError::IllegalGeneration
                    | ResponseError::RebalanceInProgress,
                    CommitAs::NonMember,
                ) => CommitError::HasMembers,
                _ => Failure::refused(FailureCode::GroupUnavailable, detail).into(),
            });
        }
    }

    /// Stores the settled map in the state topic, and commits a pointer to it. At most once a second, because a large map
    /// is written whole each time.
    async fn store_in_topic(
        &self,
        commit_as: CommitAs<'_>,
        partition: u32,
        state: &PartitionState,
    ) -> Result<(), CommitError> {
        let before = self.cache().get(&partition).copied().unwrap_or_default();
        if let Some(stored_at) = before.state_stored_at {
            sleep_until(stored_at + STATE_COMMIT_INTERVAL).await;
        }
        let partition_count = match commit_as {
            CommitAs::Member(member) => member.partition_count(),
            CommitAs::NonMember => self.partitions_at_open,
        };
        let pointer = self.state_topic.store(partition, partition_count, state).await?;
        let metadata = CommitMetadata::pointer(self.topic_id, pointer);
        self.commit_offset(commit_as, partition, state.watermark, metadata).await?;
        let now = Instant::now();
        let trims = before.state_trimmed_at.is_none_or(|at| at + STATE_TRIM_INTERVAL <= now);
        {
            let mut cache = self.cache();
            let cache = cache.entry(partition).or_default();
            cache.state_stored_at = Some(now);
            cache.state_trimmed_at = if trims { Some(now) } else { before.state_trimmed_at };
        }
        if trims && let Err(failure) = self.state_topic.trim(partition, pointer.offset).await {
            // The next trim removes what this one has left.
            tracing::debug!(group = self.group(), partition, "cannot trim the state topic: {failure}");
        }
        Ok(())
    }
}
