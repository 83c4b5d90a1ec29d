//! What a group has committed for its partitions, and what a missing commit means.

use super::Commits;
use super::metadata::CommitMetadata;
use super::offset_store::CommittedOffsets;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::PartitionState;
use crate::core::side_topics::dead_letter_topic;
use crate::group::discard_unreadable;
use crate::group::kafka::errors::unavailable;
use crate::group::kafka::membership::Membership;
use crate::kafka::is_another_topic;
use crate::limits::BROKER_CALL_MAX;
use tokio::time::Instant;

impl Commits {
    /// What was committed for a partition that this member owns. If the group is new, it is initialized first.
    pub(in crate::group::kafka) async fn committed(
        &self,
        member: &Membership,
        partition: u32,
    ) -> Result<Option<PartitionState>, Failure> {
        let partition_count = member.partition_count().max(partition + 1);
        let mut commits = self.offsets.fetch(partition_count).await?;
        if commits.is_empty() && self.has_side_topic().await? {
            // Another partition of this group may have started meanwhile and created the side topic.
            commits = self.offsets.fetch(partition_count).await?;
            if commits.is_empty() {
                self.expired(partition)?;
            }
        }
        if commits.is_empty() {
            commits = self.initialization.commits(&self.offsets, member, partition_count).await?;
        }
        self.read(partition, &commits).await
    }

    /// What every partition has committed, at one moment and from outside the group. Writes nothing.
    pub(in crate::group::kafka) async fn committed_of_all(&self) -> Result<Vec<Option<PartitionState>>, Failure> {
        let commits = self.offsets.fetch(self.partitions_at_open).await?;
        let mut states = Vec::new();
        for partition in 0..self.partitions_at_open {
            states.push(self.read(partition, &commits).await?);
        }
        Ok(states)
    }

    /// Whether a destination has ever been active under this name. A commit counts even if it has expired, is unreadable
    /// or belongs to an earlier topic of this name.
    pub(in crate::group::kafka) async fn has_past_commits(&self) -> Result<bool, Failure> {
        if self.had_commits {
            return Ok(true);
        }
        match self.has_side_topic().await {
            // A destination that created side topics had the right to see them.
            Err(failure) if failure.code == FailureCode::GroupNotAllowed => Ok(false),
            found => found,
        }
    }

    async fn read(&self, partition: u32, commits: &CommittedOffsets) -> Result<Option<PartitionState>, Failure> {
        let Some((offset, metadata)) = commits.get(partition) else {
            return self.without_commit(partition).await;
        };
        let (topic_id, state) = match CommitMetadata::read(offset, metadata) {
            Ok(CommitMetadata::Foreign) => return self.reset_by_another_tool(partition, offset).await.map(Some),
            Ok(CommitMetadata::State { topic_id, state }) => (topic_id, Ok(Some(state))),
            Ok(CommitMetadata::NotStarted { topic_id }) => (topic_id, Ok(None)),
            Ok(CommitMetadata::Pointer { topic_id, pointer }) => {
                (topic_id, self.state_topic.read(partition, offset, pointer).await?.map(Some))
            }
            Err(why) => (self.topic_id, Err(why)),
        };
        if is_another_topic(topic_id, self.topic_id) {
            return self.start_anew(
                FailureCode::TopicRemade,
                format!(
                    "topic {:?} was deleted and created again since partition {partition} was committed",
                    self.log.topic()
                ),
            );
        }
        state.or_else(|why| discard_unreadable(self.group(), partition, &why, self.start_given))
    }

    /// A commit without metadata of ours is an operator's reset with Kafka's own tools. The partition starts at its
    /// offset, and what had been settled after it is delivered again.
    async fn reset_by_another_tool(&self, partition: u32, offset: i64) -> Result<PartitionState, Failure> {
        let (group, topic) = (self.group(), self.log.topic());
        tracing::warn!(group, topic, partition, offset, "another tool has reset the group: starting at its offset");
        // The foreign commit is newer than any reset that eventd was asked for before: the owner would have applied that
        // one first. So it counts as applied.
        let last_reset = self.resets.latest(partition, self.partitions_at_open).await?.map(|reset| reset.id);
        Ok(PartitionState { last_reset, ..PartitionState::at(offset) })
    }

    /// A partition has no commit: the group is new, the partition is new, or the brokers have forgotten the commit.
    async fn without_commit(&self, partition: u32) -> Result<Option<PartitionState>, Failure> {
        let was_added = partition >= self.partitions_at_open;
        if was_added || self.had_commits {
            let earliest = self.log.earliest(partition).await?;
            // An added partition starts at its first event, whatever --start says: producers may have written to it before
            // this process noticed it. A partition from which retention has removed nothing can start there too: it misses
            // no event.
            if was_added || earliest == 0 {
                return Ok(Some(PartitionState::at(earliest)));
            }
        }
        if self.had_commits || self.has_side_topic().await? {
            return self.expired(partition);
        }
        Ok(None)
    }

    fn expired(&self, partition: u32) -> Result<Option<PartitionState>, Failure> {
        let group = self.group();
        self.start_anew(
            FailureCode::CommitExpired,
            format!(
                "the commit of group {group:?} for partition {partition} has expired (brokers delete commits after \
                 offsets.retention.minutes)"
            ),
        )
    }

    /// Whether the destination has left dead letters or a large state, which shows that it was active before.
    async fn has_side_topic(&self) -> Result<bool, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        for topic in [self.state_topic.name(), dead_letter_topic(self.log.topic(), self.group())] {
            if self.cluster.topic(&topic, deadline).await.map_err(unavailable)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Without a usable commit, the partition starts where `--start` says. Without `--start` that is an error which asks
    /// for it.
    fn start_anew(&self, code: FailureCode, why: String) -> Result<Option<PartitionState>, Failure> {
        if self.start_given {
            tracing::warn!(group = self.group(), "{why}: starting anew at --start");
            return Ok(None);
        }
        Err(Failure::refused(code, format!("{why}. Use --start earliest or --start latest to say where to start")))
    }
}
