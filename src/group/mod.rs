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

pub mod kafka;
pub mod sqlite;

use crate::BoxFuture;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use serde::{Deserialize, Serialize};
use std::fmt;
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

    /// The last move of the position that was asked for in the partition, applied or not. `None`: none ever.
    fn requested(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>>;

    /// Until when attempts may be started and may last. `None`: no limit (a lock that dies with the process).
    fn lease_deadline(&self) -> Option<Instant>;

    /// Announces that this member stops. It is assigned nothing from now on, and every partition that it owns is
    /// [`Change::Revoked`], so that each can go to another member as soon as it is released. If no other member may have
    /// them before [`leave`](Self::leave), nothing happens.
    fn drain(&self);

    /// Leaves the group, so that others need not wait. Every partition was released before.
    fn leave(&self) -> BoxFuture<'_, ()>;
}

/// Under which name the moves of a group's position are asked for.
pub fn moves_of(name: &str) -> String {
    format!("{name}.rewind")
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

/// What a group has committed before, as far as it can be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Past {
    Nothing,
    /// Something: perhaps what cannot be read, or has expired. A join says what to do then.
    Commits,
    /// This process has no right to know. Why, for people.
    NotAllowed(String),
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no commits"),
            Self::Commits => f.write_str("commits"),
            Self::NotAllowed(why) => write!(f, "no right to see commits ({why})"),
        }
    }
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
