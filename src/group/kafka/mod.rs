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
use super::{Change, Group, JoinError, Past};
use crate::BoxFuture;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::kafka::{self, Cluster};
use crate::limits::{HOLD_GRACE, SESSION_TIMEOUT};
use crate::log::Log;
use crate::log::kafka::Kafka;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How a destination joins.
#[derive(Debug, Clone)]
pub struct Joining {
    /// Tells a destination from another one under the same name.
    pub digest: String,
    /// Where to begin was asked for: where the commit is gone or of an older topic of this name, the group begins anew.
    pub start_given: bool,
    /// How long after its last heartbeat a member counts as gone.
    pub session_timeout: Duration,
    /// Static membership: a process that starts again under the same id within the session's time-out finds its
    /// partitions where they were.
    pub instance_id: Option<String>,
    /// Leaves without telling, so that a restart under the same `instance_id` moves nothing.
    pub keep_membership: bool,
}

impl Joining {
    /// As the flags have it by default.
    pub fn of(digest: impl Into<String>) -> Self {
        let session_timeout = SESSION_TIMEOUT;
        Self { digest: digest.into(), start_given: false, session_timeout, instance_id: None, keep_membership: false }
    }
}

/// Joins the group `name` for a topic. What it gets is told by [`Group::changed`]; so is why it may not be a member.
pub async fn join(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    joining: Joining,
) -> Result<Arc<dyn Group>, JoinError> {
    Ok(Arc::new(KafkaGroup::join(engine, name, log, joining).await?))
}

/// Joins it, and has all of it: where others are members too, that is an error, and they go on.
pub async fn hold(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    joining: Joining,
) -> Result<Arc<dyn Group>, JoinError> {
    let patience = joining.session_timeout + HOLD_GRACE;
    let group = KafkaGroup::join(engine, name, log, joining).await?;
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
pub async fn past(engine: &Arc<Kafka>, name: &str, log: &Arc<dyn Log>) -> Result<Past, JoinError> {
    match Commits::open(engine, name, log, false).await {
        Ok(commits) => {
            let has_any = commits.has_any().await.map_err(JoinError::Unavailable)?;
            Ok(if has_any { Past::Commits } else { Past::Nothing })
        }
        Err(JoinError::Unavailable(failure)) if failure.code == NOT_ALLOWED => Ok(Past::NotAllowed(failure.detail)),
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
pub async fn requested(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
) -> Result<Vec<Option<OffsetReset>>, JoinError> {
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
        let Some((state, wanted)) = state.zip(wanted).filter(|(state, wanted)| state.awaits(wanted)) else { continue };
        match commits.store(By::Nobody, partition, state.after(wanted)).await {
            Ok(()) => {}
            Err(failure) if failure.code == HAS_MEMBERS => return Ok(false),
            Err(failure) => return Err(JoinError::Unavailable(failure)),
        }
    }
    Ok(true)
}

/// Removes the progress that a group of this topic, which nobody joins any more, has in a topic of its own. Brokers
/// forget its commits by themselves.
pub async fn forget(engine: &Kafka, name: &str, topic: &str) -> Result<(), Failure> {
    engine.delete(&state::name_of(topic, name)).await
}

#[derive(Debug)]
struct KafkaGroup {
    commits: Commits,
    member: Membership,
    /// Whether leaving is told to the broker.
    tells: bool,
}

impl KafkaGroup {
    async fn join(engine: &Arc<Kafka>, name: &str, log: &Arc<dyn Log>, joining: Joining) -> Result<Self, JoinError> {
        let commits = Commits::open(engine, name, log, joining.start_given).await?;
        let settings = membership::Settings {
            group: name.into(),
            topic: log.topic().into(),
            digest: joining.digest,
            session_timeout: joining.session_timeout,
            instance_id: joining.instance_id,
        };
        let member = Membership::start(Arc::<Cluster>::clone(engine.cluster()), settings, commits.opened_with);
        Ok(Self { commits, member, tells: !joining.keep_membership })
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

    fn requested(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
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
