//! The commits of a group: under whom they are made, what they say, and what it means where one is not there.

use super::beginning::{Beginning, is_new};
use super::membership::{Identity, Membership};
use super::metadata::Metadata;
use super::moves::Moves;
use super::offsets::{Offset, Offsets};
use super::state::StateTopic;
use super::{NOT_ALLOWED, unavailable};
use crate::core::outcome::Failure;
use crate::core::progress::PartitionState;
use crate::core::side_topics::dead_letter_topic;
use crate::group::JoinError;
use crate::kafka::{self, Cluster, describe, is_another_topic};
use crate::limits::{
    BROKER_CALL_MAX, COMMIT_METADATA_CHARS_MAX, COMMIT_REBALANCING_MAX, METADATA_INTERVAL_MIN, STATE_COMMIT_INTERVAL,
    STATE_TRIM_INTERVAL,
};
use crate::log::Log;
use crate::log::kafka::Kafka;
use kafka_protocol::ResponseError;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

/// The commit's metadata are larger than the broker takes: never seen outside.
const TOO_LARGE: &str = "commit-metadata-too-large";

#[derive(Debug)]
pub(super) struct Commits {
    cluster: Arc<Cluster>,
    log: Arc<dyn Log>,
    offsets: Offsets,
    /// What is asked for from outside.
    pub(super) moves: Moves,
    topic_id: Uuid,
    /// Where to begin was asked for: then a commit that is gone is no error.
    start_given: bool,
    /// How many partitions the topic had when this was opened, and whether any had a commit.
    pub(super) opened_with: u32,
    had_commits: bool,
    beginning: Beginning,
    state: StateTopic,
    seen: Mutex<HashMap<u32, Seen>>,
}

/// Under whom a commit is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum By<'m> {
    Member(&'m Membership),
    /// A group without members takes commits from anybody.
    Nobody,
}

impl By<'_> {
    fn identity_for(self, partition: u32) -> Option<Identity> {
        match self {
            Self::Member(member) => member.identity_for(partition),
            Self::Nobody => Some(Identity::nobody()),
        }
    }
}

/// The group has members, so nobody else commits.
pub(super) const HAS_MEMBERS: &str = "group-has-members";

/// What is remembered of a partition between two commits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// The log reaches at least this far.
    end: i64,
    /// When a state last went to its topic, and when that was last trimmed.
    stored_at: Option<Instant>,
    trimmed_at: Option<Instant>,
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
        let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let mut commits = Self {
            offsets: Offsets::new(&cluster, group, log.topic()),
            moves: Moves::new(&cluster, group, log.topic(), topic.id),
            cluster,
            log: Arc::clone(log),
            topic_id: topic.id,
            start_given,
            opened_with: partitions,
            had_commits: false,
            beginning: Beginning::new(engine, topic.id, partitions),
            state: StateTopic::new(Arc::clone(engine), log.topic(), group),
            seen: Mutex::default(),
        };
        let found = commits.offsets.fetch(partitions).await.map_err(JoinError::Unavailable)?;
        commits.had_commits = !is_new(&found);
        Ok(commits)
    }

    pub(super) fn group(&self) -> &str {
        &self.offsets.group
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<u32, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn store(&self, by: By<'_>, partition: u32, state: PartitionState) -> Result<(), Failure> {
        self.check_end(partition, &state).await?;
        let inline = Metadata::of_map(self.topic_id, &state);
        if inline.len() <= COMMIT_METADATA_CHARS_MAX {
            match self.offset_commit(by, partition, state.watermark, inline).await {
                // The broker was told to take less.
                Err(failure) if failure.code == TOO_LARGE => {}
                answer => return answer,
            }
        }
        self.store_apart(by, partition, &state).await
    }

    /// How many the topic has, as far as is known.
    fn partitions(&self, by: By<'_>) -> u32 {
        match by {
            By::Member(member) => member.partitions(),
            By::Nobody => self.opened_with,
        }
    }

    /// A commit past the end of the log would settle events that are not there yet.
    async fn check_end(&self, partition: u32, state: &PartitionState) -> Result<(), Failure> {
        let settled_end = state.settled.last().map_or(state.watermark, |range| range.end);
        if settled_end <= self.seen().get(&partition).map_or(0, |seen| seen.end) {
            return Ok(());
        }
        let end = self.log.latest(partition).await?;
        self.seen().entry(partition).or_default().end = end;
        if settled_end > end {
            return Err(Failure::refused(
                "commit-past-end",
                format!("partition {partition} ends at {end}, and the commit says that {settled_end} is settled"),
            ));
        }
        Ok(())
    }

    /// Commits as the member that we are. In the middle of a rebalance, and where a join makes us a later generation, of
    /// which the broker knows before we do, again as what we are then: as nobody, where we are cut off.
    async fn offset_commit(&self, by: By<'_>, partition: u32, offset: i64, metadata: String) -> Result<(), Failure> {
        let deadline = Instant::now() + COMMIT_REBALANCING_MAX;
        loop {
            let identity = by.identity_for(partition).ok_or_else(|| {
                Failure::refused("group-unavailable", format!("partition {partition} is not ours to commit now"))
            })?;
            let offset = Offset { partition, offset, metadata: metadata.clone() };
            let Err(error) = self.offsets.commit(&identity, vec![offset]).await? else { return Ok(()) };
            let moves_on = matches!(error, ResponseError::RebalanceInProgress | ResponseError::IllegalGeneration);
            if !(moves_on && matches!(by, By::Member(_))) || Instant::now() >= deadline {
                let code = match (error, by) {
                    (ResponseError::OffsetMetadataTooLarge, _) => TOO_LARGE,
                    (
                        ResponseError::UnknownMemberId
                        | ResponseError::IllegalGeneration
                        | ResponseError::RebalanceInProgress,
                        By::Nobody,
                    ) => HAS_MEMBERS,
                    _ => "group-unavailable",
                };
                let detail = format!("group {:?} takes no commit: {}", self.group(), describe(error));
                return Err(Failure::refused(code, detail));
            }
            sleep(METADATA_INTERVAL_MIN).await;
        }
    }

    /// Puts the map into the state topic, and commits where it is. At most once a second, whatever the commits' tick:
    /// a map that is large is written whole each time.
    async fn store_apart(&self, by: By<'_>, partition: u32, state: &PartitionState) -> Result<(), Failure> {
        let before = self.seen().get(&partition).copied().unwrap_or_default();
        if let Some(stored_at) = before.stored_at {
            sleep_until(stored_at + STATE_COMMIT_INTERVAL).await;
        }
        let pointer = self.state.store(partition, self.partitions(by), state).await?;
        let metadata = Metadata::of_pointer(self.topic_id, pointer);
        self.offset_commit(by, partition, state.watermark, metadata).await?;
        let now = Instant::now();
        let trim = before.trimmed_at.is_none_or(|at| at + STATE_TRIM_INTERVAL <= now);
        {
            let mut seen = self.seen();
            let seen = seen.entry(partition).or_default();
            (seen.stored_at, seen.trimmed_at) = (Some(now), if trim { Some(now) } else { before.trimmed_at });
        }
        if trim && let Err(failure) = self.state.trim(partition, pointer.offset).await {
            // Nothing depends on it: the next time removes more.
            tracing::debug!(group = self.group(), partition, "the state topic cannot be trimmed: {failure}");
        }
        Ok(())
    }

    /// What was committed for a partition of ours. Of a group that is new, once it has begun.
    pub(super) async fn stored(&self, member: &Membership, partition: u32) -> Result<Option<PartitionState>, Failure> {
        let partitions = member.partitions().max(partition + 1);
        let mut commits = self.offsets.fetch(partitions).await?;
        if is_new(&commits) && self.has_side_topic().await? {
            // Another partition may have begun meanwhile, and made it.
            commits = self.offsets.fetch(partitions).await?;
            if is_new(&commits) {
                self.forgotten(partition)?;
            }
        }
        if is_new(&commits) {
            commits = self.beginning.commits(&self.offsets, member, partitions).await?;
        }
        self.read(partition, &commits).await
    }

    /// What every partition has committed, at one moment, read from outside: nothing is written.
    pub(super) async fn all(&self) -> Result<Vec<Option<PartitionState>>, Failure> {
        let commits = self.offsets.fetch(self.opened_with).await?;
        let mut states = Vec::new();
        for partition in 0..self.opened_with {
            states.push(self.read(partition, &commits).await?);
        }
        Ok(states)
    }

    /// Whether the destination was at work under this name before. A commit counts also if it has expired, cannot be
    /// read or belongs to an earlier topic of this name.
    pub(super) async fn has_any(&self) -> Result<bool, Failure> {
        if self.had_commits {
            return Ok(true);
        }
        match self.has_side_topic().await {
            // A destination that made them had the right to see them.
            Err(failure) if failure.code == NOT_ALLOWED => Ok(false),
            found => found,
        }
    }

    async fn read(
        &self,
        partition: u32,
        commits: &HashMap<u32, (i64, String)>,
    ) -> Result<Option<PartitionState>, Failure> {
        let Some((offset, metadata)) = commits.get(&partition).filter(|(offset, _)| *offset >= 0) else {
            return self.without_commit(partition).await;
        };
        let unreadable = |why: String| {
            let detail = format!("the commit of partition {partition} cannot be read: {why}; --start begins anew");
            Failure::refused("commit-unreadable", detail)
        };
        let (topic_id, state) = match Metadata::read(*offset, metadata) {
            Ok(Metadata::Foreign) => {
                let (group, topic) = (self.group(), self.log.topic());
                tracing::warn!(
                    group,
                    topic,
                    partition,
                    offset,
                    "the group was reset by another tool: going on from there"
                );
                // It is newer than what was asked for before it: else the owner would have seen to that.
                let moved = self.moves.latest(partition, self.opened_with).await?.map(|wanted| wanted.id);
                return Ok(Some(PartitionState { last_reset: moved, ..PartitionState::at(*offset) }));
            }
            Ok(Metadata::Map { topic_id, state }) => (topic_id, Ok(Some(state))),
            Ok(Metadata::NotBegun { topic_id }) => (topic_id, Ok(None)),
            Ok(Metadata::Pointer { topic_id, pointer }) => {
                (topic_id, self.state.read(partition, *offset, pointer).await?.map(Some))
            }
            Err(why) => (self.topic_id, Err(why)),
        };
        if is_another_topic(topic_id, self.topic_id) {
            return self.anew(
                "topic-remade",
                format!(
                    "topic {:?} was deleted and made again since partition {partition} was committed",
                    self.log.topic()
                ),
            );
        }
        match state {
            Ok(state) => Ok(state),
            Err(_) if self.start_given => Ok(None),
            Err(why) => Err(unreadable(why)),
        }
    }

    /// No commit: a new group, a partition that is new, or a commit that the brokers have forgotten.
    async fn without_commit(&self, partition: u32) -> Result<Option<PartitionState>, Failure> {
        let was_added = partition >= self.opened_with;
        if was_added || self.had_commits {
            let earliest = self.log.earliest(partition).await?;
            // A partition that was added begins with its first event, wherever a new group would begin: producers may
            // have been there before us.
            if was_added || earliest == 0 {
                return Ok(Some(PartitionState::at(earliest)));
            }
        }
        if self.had_commits || self.has_side_topic().await? {
            return self.forgotten(partition);
        }
        Ok(None)
    }

    fn forgotten(&self, partition: u32) -> Result<Option<PartitionState>, Failure> {
        let (group, why) = (self.group(), "brokers forget it after offsets.retention.minutes");
        self.anew(
            "commit-expired",
            format!("the group {group:?} has no commit any more for partition {partition} ({why})"),
        )
    }

    /// Whether the destination was at work before: it left dead letters, or a large state.
    async fn has_side_topic(&self) -> Result<bool, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        for topic in [self.state.name(), dead_letter_topic(self.log.topic(), self.group())] {
            if self.cluster.topic(&topic, deadline).await.map_err(unavailable)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Begins anew where a start was asked for; else that is what the error asks for.
    fn anew(&self, code: &'static str, why: String) -> Result<Option<PartitionState>, Failure> {
        if self.start_given {
            tracing::warn!(group = self.group(), "{why}: beginning anew, as --start says");
            return Ok(None);
        }
        Err(Failure::refused(code, format!("{why}: --start earliest or --start latest says where to begin")))
    }
}
