//! Consumer groups on a Kafka cluster: any number of processes share the partitions of a destination.
//!
//! ```text
//!  dispatch ◀── Assigned, Revoked, Lost ── membership ── JoinGroup, SyncGroup, Heartbeat ──▶ coordinator (a broker)
//!     │                                      │ holds
//!     │                                      ├── member: identity, partitions, lease
//!     │                                      └── assignment: what the leader assigns
//!     └── commit(partition, state) ──▶ commits ── OffsetCommit: offset = watermark, metadata = settled map ──▶ coordinator
//!                                        ├── over 4,096 characters: records in <topic>.<group>.state
//!                                        ├── initialization: the first commit of a new group
//!                                        └── offset resets: commits of the group <group>.rewind
//! ```
//!
//! `membership` says how a partition moves from one member to another, and why two members never work on it at the same
//! time. `commits` says what is stored, and what a missing commit means.
//!
//! The offset of a commit is what Kafka's own tools show and reset. A commit without our metadata is an operator's reset:
//! the partition continues at its offset.
//!
//! A broker checks that a commit comes from a current member, but not that the member owns the partition. So a commit of a
//! partition that was released is refused here, before it is sent.

mod assignment;
mod clocks;
mod commits;
mod coordinator;
mod describe;
mod errors;
mod member;
mod membership;

use self::commits::Commits;
use self::membership::{Membership, MembershipConfig};
use super::{Change, Group, Groups, JoinError, JoinOptions, PastCommits};
use crate::BoxFuture;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::{OffsetReset, PartitionState};
use crate::core::side_topics::state_topic;
use crate::kafka::Cluster;
use crate::log::Log;
use crate::log::kafka::Kafka;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How much longer than the session of a member that has died a member waits to own every partition.
const OWN_ALL_GRACE: Duration = Duration::from_secs(5);

/// The groups of a Kafka cluster.
#[derive(Debug)]
pub struct KafkaGroups(Arc<Kafka>);

impl KafkaGroups {
    pub fn new(engine: Arc<Kafka>) -> Self {
        Self(engine)
    }

    async fn open(&self, name: &str, log: &Arc<dyn Log>) -> Result<Commits, JoinError> {
        Commits::open(&self.0, name, log, false).await
    }
}

impl Groups for KafkaGroups {
    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(async move {
            let group = KafkaGroup::join(&self.0, name, log, options).await?;
            Ok(Arc::new(group) as Arc<dyn Group>)
        })
    }

    fn assigns_at_join(&self) -> bool {
        true
    }

    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(async move {
            let group = KafkaGroup::join(&self.0, name, log, options).await?;
            match timeout(options.session_timeout + OWN_ALL_GRACE, group.membership.own_all()).await {
                Ok(Ok(())) => Ok(Arc::new(group) as Arc<dyn Group>),
                Ok(Err(failure)) => Err(JoinError::Unavailable(failure)),
                Err(_) => {
                    group.membership.leave(true).await;
                    Err(JoinError::Shared { name: name.into() })
                }
            }
        })
    }

    fn past_commits<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>> {
        Box::pin(async move {
            match self.open(name, log).await {
                Ok(commits) => {
                    let has_any = commits.has_past_commits().await.map_err(JoinError::Unavailable)?;
                    Ok(if has_any { PastCommits::Found } else { PastCommits::None })
                }
                Err(JoinError::Unavailable(failure)) if failure.code == FailureCode::GroupNotAllowed => {
                    Ok(PastCommits::NotAllowed(failure.detail))
                }
                Err(error) => Err(error),
            }
        })
    }

    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>> {
        Box::pin(async move { self.open(name, log).await?.committed_of_all().await.map_err(JoinError::Unavailable) })
    }

    fn is_owned<'a>(&'a self, name: &'a str, _log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(async move { describe::has_members(self.0.cluster(), name).await.map_err(JoinError::Unavailable) })
    }

    fn request_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>> {
        Box::pin(
            async move { self.open(name, log).await?.resets.request(resets).await.map_err(JoinError::Unavailable) },
        )
    }

    fn requested_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>> {
        Box::pin(async move {
            let commits = self.open(name, log).await?;
            let resets = commits.resets.read(commits.partitions_at_open).await.map_err(JoinError::Unavailable)?;
            Ok((0..commits.partitions_at_open).map(|partition| resets.get(&partition).copied()).collect())
        })
    }

    fn apply_resets_if_unowned<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        _digest: &'a str,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(async move {
            let commits = self.open(name, log).await?;
            let states = commits.committed_of_all().await.map_err(JoinError::Unavailable)?;
            for (state, partition) in states.into_iter().zip(0u32..) {
                let (Some(state), Some(reset)) = (state, resets.get(&partition)) else { continue };
                if !state.lacks(reset) {
                    continue;
                }
                // Brokers accept the commit only while the group has no members, so nothing else has to be checked.
                let stored = commits.store_as_non_member(partition, state.with_reset(reset)).await;
                if !stored.map_err(JoinError::Unavailable)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Deletes the group's state topic. Brokers delete the commits of a group without members by themselves.
    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move { self.0.delete(&state_topic(log.topic(), name)).await })
    }
}

#[derive(Debug)]
struct KafkaGroup {
    commits: Commits,
    membership: Membership,
    /// Leave without a LeaveGroup request, so that the partitions wait for the restarted process.
    keep_membership: bool,
}

impl KafkaGroup {
    async fn join(
        engine: &Arc<Kafka>,
        name: &str,
        log: &Arc<dyn Log>,
        options: &JoinOptions,
    ) -> Result<Self, JoinError> {
        let commits = Commits::open(engine, name, log, options.start_given).await?;
        let config = MembershipConfig {
            group: name.into(),
            topic: log.topic().into(),
            digest: options.digest.clone(),
            session_timeout: options.session_timeout,
            instance_id: options.instance_id.clone(),
        };
        let coordinator = Arc::<Cluster>::clone(engine.cluster());
        let membership = Membership::start(coordinator, config, commits.partitions_at_open);
        Ok(Self { commits, membership, keep_membership: options.keep_membership })
    }
}

impl Group for KafkaGroup {
    fn name(&self) -> &str {
        self.commits.group()
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(self.membership.changed())
    }

    fn released(&self, partition: u32) -> BoxFuture<'_, ()> {
        self.membership.released(partition);
        Box::pin(std::future::ready(()))
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        Box::pin(self.commits.committed(&self.membership, partition))
    }

    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.commits.store(&self.membership, partition, state))
    }

    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        Box::pin(self.commits.resets.latest(partition, self.membership.partition_count()))
    }

    fn lease_deadline(&self) -> Option<Instant> {
        Some(self.membership.lease_deadline())
    }

    fn drain(&self) {
        // With `--keep-membership` no other member may have the partitions.
        if !self.keep_membership {
            self.membership.drain();
        }
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.membership.leave(!self.keep_membership))
    }
}
