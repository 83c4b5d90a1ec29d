//! A group of a Kafka cluster: any number of processes of a destination share its partitions.
//!
//! ```text
//!  membership ── joins, sends heartbeats, stays; member: what it has, lease: until when: Assigned, Revoked, Lost, the lease
//!  leader, assignor ── who gets which: sticky, and never what another member has yet to let go
//!  commit     ── OffsetCommit as that member: offset = watermark, metadata = topic's id, settled map
//!                 └ over 4,096 characters: records in <topic>.<group>.state, and the metadata point at them (state)
//!  beginning  ── of a new group: one commit that says of every partition that it has not begun
//! ```
//!
//! The offset is what Kafka's own tools show and take away. A commit without our metadata is an operator's reset: the
//! partition goes on from its offset, and what had been settled behind it is delivered again. A commit whose topic id
//! is another one, or that is gone though the group had one, stops the partition until `--start` says what to do.
//!
//! The broker leases members, not partitions: it takes the commit of a live member for a partition that it has just let
//! go. So what is released is refused here.

mod assignor;
mod beginning;
mod clocks;
mod commit;
mod coordinator;
mod leader;
mod lease;
mod member;
mod membership;
mod metadata;
mod moves;
mod offsets;
mod state;
mod subscription;

use self::commit::{By, Commits, HAS_MEMBERS};
use self::membership::Membership;
use super::{Change, Group, Groups, JoinError, JoinOptions, PastCommits};
use crate::BoxFuture;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::core::side_topics::state_topic;
use crate::kafka::{self, Cluster};
use crate::limits::HOLD_GRACE;
use crate::log::Log;
use crate::log::kafka::Kafka;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::{Instant, timeout};

/// The groups of a Kafka cluster.
#[derive(Debug)]
pub struct KafkaGroups(Arc<Kafka>);

impl KafkaGroups {
    pub fn new(engine: Arc<Kafka>) -> Self {
        Self(engine)
    }
}

impl Groups for KafkaGroups {
    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(join(&self.0, name, log, options.clone()))
    }

    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(hold(&self.0, name, log, JoinOptions::new(digest)))
    }

    fn past_commits<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>> {
        Box::pin(past_commits(&self.0, name, log))
    }

    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>> {
        Box::pin(committed(&self.0, name, log))
    }

    fn request_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>> {
        Box::pin(request(&self.0, name, log, resets))
    }

    fn requested_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>> {
        Box::pin(requested(&self.0, name, log))
    }

    fn apply_resets_if_unowned<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        _digest: &'a str,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(apply_unowned(&self.0, name, log, resets))
    }

    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(forget(&self.0, name, log.topic()))
    }
}

/// Joins the group `name` for a topic. What it gets is told by [`Group::changed`]; so is why it may not be a member.
pub async fn join(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    options: JoinOptions,
) -> Result<Arc<dyn Group>, JoinError> {
    Ok(Arc::new(KafkaGroup::join(engine, name, log, options).await?))
}

/// Joins it, and has all of it: where others are members too, that is an error, and they go on.
pub async fn hold(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    options: JoinOptions,
) -> Result<Arc<dyn Group>, JoinError> {
    let patience = options.session_timeout + HOLD_GRACE;
    let group = KafkaGroup::join(engine, name, log, options).await?;
    match timeout(patience, group.member.own_all()).await {
        Ok(Ok(())) => Ok(Arc::new(group)),
        Ok(Err(failure)) => Err(JoinError::Unavailable(failure)),
        Err(_) => {
            group.member.leave(true).await;
            Err(JoinError::Shared { name: name.into() })
        }
    }
}

/// What the group `name` last committed, by partition: read from outside, without joining it or disturbing its members.
pub async fn committed(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
) -> Result<Vec<Option<PartitionState>>, JoinError> {
    Commits::open(engine, name, log, false).await?.all().await.map_err(JoinError::Unavailable)
}

/// Looks whether a destination was at work under this name, without joining the group or reading its progress.
async fn past_commits(engine: &Arc<Kafka>, name: &str, log: &Arc<dyn Log>) -> Result<PastCommits, JoinError> {
    match Commits::open(engine, name, log, false).await {
        Ok(commits) => {
            let has_any = commits.has_any().await.map_err(JoinError::Unavailable)?;
            Ok(if has_any { PastCommits::Found } else { PastCommits::None })
        }
        Err(JoinError::Unavailable(failure)) if failure.code == NOT_ALLOWED => {
            Ok(PastCommits::NotAllowed(failure.detail))
        }
        Err(error) => Err(error),
    }
}

/// Asks for these moves of the group's position, by partition: all of them, or none.
pub async fn request(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    moves: &BTreeMap<u32, OffsetReset>,
) -> Result<(), JoinError> {
    Commits::open(engine, name, log, false).await?.moves.ask(moves).await.map_err(JoinError::Unavailable)
}

/// The last move that was asked for in each partition, applied or not.
async fn requested(engine: &Arc<Kafka>, name: &str, log: &Arc<dyn Log>) -> Result<Vec<Option<OffsetReset>>, JoinError> {
    let commits = Commits::open(engine, name, log, false).await?;
    let moves = commits.moves.read(commits.opened_with).await.map_err(JoinError::Unavailable)?;
    Ok((0..commits.opened_with).map(|partition| moves.get(&partition).copied()).collect())
}

/// Applies them where the group has no members. `false`: it has, and they do it.
pub async fn apply_unowned(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    moves: &BTreeMap<u32, OffsetReset>,
) -> Result<bool, JoinError> {
    let commits = Commits::open(engine, name, log, false).await?;
    let states = commits.all().await.map_err(JoinError::Unavailable)?;
    for (state, partition) in states.into_iter().zip(0u32..) {
        let wanted = moves.get(&partition);
        let Some((state, wanted)) = state.zip(wanted).filter(|(state, wanted)| state.lacks(wanted)) else { continue };
        match commits.store(By::Nobody, partition, state.with_reset(wanted)).await {
            Ok(()) => {}
            Err(failure) if failure.code == HAS_MEMBERS => return Ok(false),
            Err(failure) => return Err(JoinError::Unavailable(failure)),
        }
    }
    Ok(true)
}

/// Removes the progress that a group of this topic, which nobody joins any more, has in a topic of its own. Brokers
/// forget its commits by themselves.
async fn forget(engine: &Kafka, name: &str, topic: &str) -> Result<(), Failure> {
    engine.delete(&state_topic(topic, name)).await
}

#[derive(Debug)]
struct KafkaGroup {
    commits: Commits,
    member: Membership,
    /// Whether leaving is told to the broker.
    tells: bool,
}

impl KafkaGroup {
    async fn join(
        engine: &Arc<Kafka>,
        name: &str,
        log: &Arc<dyn Log>,
        options: JoinOptions,
    ) -> Result<Self, JoinError> {
        let commits = Commits::open(engine, name, log, options.start_given).await?;
        let settings = membership::Settings {
            group: name.into(),
            topic: log.topic().into(),
            digest: options.digest,
            session_timeout: options.session_timeout,
            instance_id: options.instance_id,
        };
        let member = Membership::start(Arc::<Cluster>::clone(engine.cluster()), settings, commits.opened_with);
        Ok(Self { commits, member, tells: !options.keep_membership })
    }
}

impl Group for KafkaGroup {
    fn name(&self) -> &str {
        self.commits.group()
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(self.member.changed())
    }

    fn released(&self, partition: u32) -> BoxFuture<'_, ()> {
        self.member.released(partition);
        Box::pin(std::future::ready(()))
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        Box::pin(self.commits.stored(&self.member, partition))
    }

    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.commits.store(By::Member(&self.member), partition, state))
    }

    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        Box::pin(self.commits.moves.latest(partition, self.member.partitions()))
    }

    fn lease_deadline(&self) -> Option<Instant> {
        Some(self.member.lease_deadline())
    }

    /// With `--keep-membership` the partitions wait for the restarted process instead.
    fn drain(&self) {
        if self.tells {
            self.member.drain();
        }
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.member.leave(self.tells))
    }
}

/// The code of a failure if the brokers refuse us the group, or a side topic of it.
const NOT_ALLOWED: &str = "group-not-allowed";

fn unavailable(error: kafka::Error) -> Failure {
    match error {
        kafka::Error::NotAllowed(why) => Failure::refused(NOT_ALLOWED, why),
        kafka::Error::NoAnswer(why) => Failure::unknown("group-unavailable", why),
        error => Failure::refused("group-unavailable", error.to_string()),
    }
}
