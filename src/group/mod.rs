//! Who owns which partition, and how far it got: what every kind of consumer group promises.
//!
//! ```text
//!             changed()                                commit(partition, state)
//!  group ── Assigned(P) ──▶ owner: committed(P) → deliver ───────────────▶ group
//!        ── Revoked(P) ──▶ stop starting, let end, commit, released(P)
//!        ── Lost(P)  ──▶ stop at once, commit nothing
//!  drain() ──▶ Revoked(P) for every partition, and none is Assigned any more ──▶ … ──▶ leave()
//!
//!  an operator ── request ──▶ <group>.rewind ── requested(P) ──▶ owner: applies it, once ── commit ──▶ group
//! ```
//!
//! A partition has one owner at a time. What is stored under the group is a whole
//! [`PartitionState`]: never a part of it, and of one moment.
//!
//! An [`OffsetReset`] of the position is asked for from outside, whoever owns the partition and whether anybody does. The state
//! that a commit stores holds the id of the last one that is in it, and ids grow: so it is applied once, whoever dies.

mod earlier_name;
pub mod kafka;
pub mod sqlite;

pub use self::earlier_name::keeps_earlier_name;

use crate::BoxFuture;
use crate::core::outcome::Failure;
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
    /// The group's name: the destination's.
    fn name(&self) -> &str;

    /// Waits for the next change of what this member owns. An error ends the membership: every partition is lost.
    /// Dropping the future loses no change.
    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>>;

    /// Tells that a partition that was [`Change::Revoked`] is let go: nothing of it is started or committed any more.
    fn released(&self, partition: u32) -> BoxFuture<'_, ()>;

    /// What was last committed for the partition. `None`: nothing ever, it has not begun.
    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>>;

    /// Stores the state. A watermark past the end of the log is refused. Unknown: the next commit tells. An error that
    /// [`is_final`] says comes back for ever.
    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>>;

    /// The last offset reset that was requested for the partition, applied or not. `None`: none was ever requested.
    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>>;

    /// Until when attempts may be started and may last. `None`: no limit (a lock that dies with the process).
    fn lease_deadline(&self) -> Option<Instant>;

    /// Announces that this member stops. It is assigned nothing from now on, and every partition that it owns is
    /// [`Change::Revoked`], so that each can go to another member as soon as it is released. If no other member may have
    /// them before [`leave`](Self::leave), nothing happens.
    fn drain(&self);

    /// Leaves the group, so that others need not wait. Every partition was released before.
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

    /// Joins a group as its only member, which owns every partition of the log. If the group has another member, that
    /// is an error.
    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>>;

    /// Whether a destination has ever committed under this name.
    fn past_commits<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>>;

    /// What the group last committed in each partition of the log. Does not join the group or disturb its members.
    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>>;

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

/// How a destination joins its group. The embedded log uses the first two fields only.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Tells the destination from another destination under the same name.
    pub digest: String,
    pub when_held: WhenHeld,
    /// The operator gave `--start`. If a commit has expired, or belongs to an older topic of this name, the partition
    /// then starts there instead of failing.
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
    /// This member owns it from now on.
    Assigned(u32),
    /// Hand it over: stop starting attempts, let those in flight end, commit, then [`Group::released`].
    Revoked(u32),
    /// It belongs to somebody else already: stop at once and commit nothing.
    Lost(u32),
}

/// Who holds a destination; the lock file's content, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// When it joined: milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// The digest of its destination.
    pub destination: String,
}

/// Why a group could not be joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinError {
    /// By another process, or another member in this one. `holder` is absent where it has only just taken the lock.
    Held { name: String, holder: Option<Holder> },
    /// By other members of the group, where it is wanted as a whole.
    Shared { name: String },
    /// The topic is not there.
    MissingTopic { topic: String },
    /// Somebody has to change something: the name, a right.
    Configuration(String),
    /// It may work later.
    Unavailable(Failure),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { name, holder: Some(holder) } => {
                write!(f, "destination {name:?} is held by pid {}: stop that one, or use --standby", holder.pid)
            }
            Self::Held { name, holder: None } => {
                write!(f, "destination {name:?} is held by another process, which has just started")
            }
            Self::Shared { name } => {
                write!(f, "others are at work in the group {name:?}: stop every dispatch, or replay, of it first")
            }
            Self::MissingTopic { topic } => write!(f, "there is no topic {topic:?}"),
            Self::Configuration(detail) => f.write_str(detail),
            Self::Unavailable(failure) => failure.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}

/// Whether a commit, or reading one, can never succeed until somebody changes something.
pub fn is_final(failure: &Failure) -> bool {
    matches!(
        failure.code,
        "commit-fenced" | "commit-past-end" | "commit-expired" | "commit-unreadable" | "topic-remade"
    )
}
