//! Consumer groups: which process delivers which partition to a destination, and how far it got. Each engine implements
//! this contract.
//!
//! ```text
//!             changed()                                            commit(partition, state)
//!  group ── Assigned(P) ──▶ owner: committed(P), deliver ────────────────────────────▶ group
//!        ── Revoked(P)  ──▶ owner: start no more attempts, let those in flight end, commit, released(P)
//!        ── Lost(P)     ──▶ owner: stop at once, commit nothing
//!
//!  drain() ──▶ Revoked(P) for every partition, and no further Assigned ──▶ … ──▶ leave()
//!
//!  operator ── request_resets ──▶ group <name>.rewind ── requested_reset(P) ──▶ owner: applies it, commits
//! ```
//!
//! A partition has one owner at a time. What a commit stores is a whole [`PartitionState`] of one moment, never a part.
//!
//! An [`OffsetReset`] is requested from outside, whichever process owns the partition and also if no process does. Each
//! has an id, and ids grow. A commit stores the id of the last reset that the state includes, so every reset is applied
//! once, whichever process dies in between.

mod earlier_name;
pub mod kafka;
pub mod sqlite;

pub use self::earlier_name::keeps_earlier_name;

use crate::BoxFuture;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::{OffsetReset, PartitionState};
use crate::limits::SESSION_TIMEOUT;
use crate::log::Log;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One destination's membership in its group, for one topic.
pub trait Group: Send + Sync + fmt::Debug {
    /// The group's name, which is the destination's.
    fn name(&self) -> &str;

    /// Waits for the next change of what this member owns. Dropping the future loses no change. An error ends the
    /// membership: every partition is lost.
    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>>;

    /// Reports that this member has stopped working on a partition that was [`Change::Revoked`]. It starts no attempts and
    /// commits nothing there from now on.
    fn released(&self, partition: u32) -> BoxFuture<'_, ()>;

    /// What was last committed for the partition. `None` if nothing ever was: the partition has not been started.
    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>>;

    /// Stores the state. A state that settles events past the end of the log is refused. If the outcome is unknown, the
    /// next commit includes this progress. If [`is_final`] is true of an error, every later commit fails in the same way.
    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>>;

    /// The last offset reset that was requested for the partition, applied or not. `None`: none was ever requested.
    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>>;

    /// The moment before which every attempt has to end. `None`: there is no limit, because a lock that ends with the
    /// process protects the partitions.
    fn lease_deadline(&self) -> Option<Instant>;

    /// Announces that this member stops. It is assigned nothing from now on, and every partition that it owns is
    /// [`Change::Revoked`], so each can go to another member as soon as it is released. If no other member may have
    /// the partitions before [`leave`](Self::leave), this does nothing.
    fn drain(&self);

    /// Leaves the group, so that other members need not wait for the session time-out. Every partition was released before.
    fn leave(&self) -> BoxFuture<'_, ()>;
}

/// The consumer groups of one engine, by their names.
pub trait Groups: Send + Sync + fmt::Debug {
    /// Joins the group of a destination, to deliver to it. [`Group::changed`] tells which partitions it is assigned.
    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>>;

    /// Whether a member may own partitions as soon as it has joined, also from other members. They wait until it
    /// delivers. If not, [`join`](Self::join) may wait for days, and the holder commits meanwhile.
    fn assigns_at_join(&self) -> bool;

    /// Joins a group as its only member, which owns every partition of the log. If the group has another member, that
    /// is an error.
    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>>;

    /// Whether a destination has ever committed under this name.
    fn past_commits<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>>;

    /// The names of the groups that have commits in the log, in any order and as far as the engine can list them. Only for
    /// messages.
    fn names<'a>(&'a self, _log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<Vec<String>, JoinError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// What the group last committed in each partition of the log. Does not join the group or disturb its members.
    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>>;

    /// Whether a process owns partitions of the group now, or is joining it.
    fn is_owned<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<bool, JoinError>>;

    /// Requests offset resets, by partition. They replace those that were requested before. All of them are stored, or
    /// none.
    fn request_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>>;

    /// The last offset reset that was requested for each partition, applied or not.
    fn requested_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>>;

    /// Applies these offset resets if no process owns any of the group's partitions. `false` if a process does: that
    /// owner applies what was requested.
    fn apply_resets_if_unowned<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>>;

    /// Removes what is stored for a group whose work is done, as far as the engine can.
    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>>;
}

/// How a destination joins its group. The embedded log uses the first three fields only.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Tells the destination from another destination under the same name.
    pub digest: String,
    pub when_held: WhenHeld,
    /// The operator gave `--start`. If a commit cannot be read, has expired, or belongs to an older topic of this name, the
    /// partition then starts there instead of failing.
    pub start_given: bool,
    /// How long after its last heartbeat a member is removed from the group.
    pub session_timeout: Duration,
    /// Static membership: a process that restarts under the same id within the session time-out keeps its partitions.
    pub instance_id: Option<String>,
    /// Leave without a LeaveGroup request, so that a restart under the same `instance_id` moves no partition.
    pub keep_membership: bool,
}

impl JoinOptions {
    /// The options as the flags have them by default.
    pub fn new(digest: impl Into<String>) -> Self {
        Self {
            digest: digest.into(),
            when_held: WhenHeld::Fail,
            start_given: false,
            session_timeout: SESSION_TIMEOUT,
            instance_id: None,
            keep_membership: false,
        }
    }
}

/// What a join does if another process holds the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenHeld {
    /// Fail with an error that names the holder.
    Fail,
    /// Wait until the holder is gone.
    Standby,
}

/// Whether a destination has ever committed under a name, as far as this process can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PastCommits {
    None,
    /// There are commits. They may have expired or be unreadable; a join reports that.
    Found,
    /// This process has no right to see them. The text says why, for people.
    NotAllowed(String),
}

impl fmt::Display for PastCommits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no commits"),
            Self::Found => f.write_str("commits"),
            Self::NotAllowed(why) => write!(f, "no right to see commits ({why})"),
        }
    }
}

/// What happened to the ownership of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// This member owns the partition from now on.
    Assigned(u32),
    /// This member has to release the partition: start no more attempts, let those in flight end, commit, then call
    /// [`Group::released`].
    Revoked(u32),
    /// Another member may already own the partition: stop at once and commit nothing.
    Lost(u32),
}

/// Which process holds a destination. This is the content of the lock file, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// When the process joined, in milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// The digest of its destination.
    pub destination: String,
}

/// Why a group could not be joined, or looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Another process holds the destination, or another member in this process does. `holder` is absent if that process
    /// has taken the lock but not written into it yet.
    #[error("destination {name:?} is held by {}", match holder {
        Some(holder) => format!("pid {}: stop that process", holder.pid),
        None => "another process, which has just started: stop that process".to_owned(),
    })]
    Held { name: String, holder: Option<Holder> },
    /// The group has other members, but one member needs all of it.
    #[error("the group {name:?} has other members: first stop every dispatch and replay of this destination")]
    Shared { name: String },
    #[error("topic {topic:?} does not exist")]
    MissingTopic { topic: String },
    /// A person has to change something: a name, a right, a file.
    #[error("{0}")]
    Configuration(String),
    /// A later attempt may succeed.
    #[error("{0}")]
    Unavailable(Failure),
}

/// A partition has a commit that cannot be read. With `--start` the commit is discarded, and the partition starts there.
/// Without it that is an error: to deliver everything again, or nothing, must not happen by itself.
fn discard_unreadable(
    group: &str,
    partition: u32,
    why: &str,
    start_given: bool,
) -> Result<Option<PartitionState>, Failure> {
    let detail = format!("cannot read the commit of {group:?} in partition {partition}: {why}");
    if start_given {
        tracing::warn!(group, partition, "{detail}: starting anew at --start");
        return Ok(None);
    }
    Err(Failure::refused(
        FailureCode::CommitUnreadable,
        format!(
            "{detail}. Run a version of eventd that can read it. Or use --start earliest or --start latest: this partition \
             then starts there, and the others continue"
        ),
    ))
}

/// Whether every later commit, or read of one, fails in the same way until a person changes something.
pub fn is_final(failure: &Failure) -> bool {
    matches!(
        failure.code,
        FailureCode::CommitFenced
            | FailureCode::CommitPastEnd
            | FailureCode::CommitExpired
            | FailureCode::CommitUnreadable
            | FailureCode::TopicRemade
    )
}
