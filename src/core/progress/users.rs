//! The users that the state of a partition lists: those that are parked, and those whose next event has failed.
//!
//! ```text
//!   offsets    …  │ 42  43  44  45  46  47  48 …        user A is parked from 43 on, user B has failed at 45
//!                 │  B   A   B   B   A   C   A
//!                 │  ✓   p   ✓   ·   p   ✓   p          p  counts as settled: the list says that 43, 46 and 48 are not
//! ```
//!
//! The settled events of one user are always the first ones of its events. So one offset says for a parked user which of its
//! events wait: all from `first` on. They count as settled in the map and below the watermark. This keeps the map small
//! and lets the watermark move, although the events stay where they are in the log.

use super::{OffsetReset, ResetTarget};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The key of a user's records. `None`: the records without a key.
pub type UserKey = Option<Arc<[u8]>>;

/// The users of a partition that are listed.
pub type ListedUsers = BTreeMap<UserKey, UserState>;

/// What is stored about one user. At least one of the two is present.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserState {
    pub parked: Option<ParkedUser>,
    pub failed: Option<FailedHead>,
}

/// A user whose events wait in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParkedUser {
    /// Every event of this user from this offset on is unsettled, and none below it.
    pub first: i64,
    /// The user is not tried until an operator releases it.
    pub held: bool,
    /// An operator gave up the user's events below this offset. They become dead letters.
    pub give_up_below: Option<i64>,
}

/// The account of a user's next event, which has failed. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailedHead {
    /// The offset of the event.
    pub offset: i64,
    /// Failed attempts, for whatever reason. The backoff grows with this number.
    pub failures: u32,
    /// Failed attempts that count as tries.
    pub tries: u32,
    pub first_failure_ms: i64,
    pub last_failure_ms: i64,
    /// The time since the first failure that counts for `--give-up-after`: without that of an open breaker.
    pub counted_ms: u64,
    /// The event is not tried before.
    pub next_try_ms: i64,
    /// The beginning of the last answer.
    pub answer: Box<str>,
}

impl UserState {
    pub fn is_empty(&self) -> bool {
        self.parked.is_none() && self.failed.is_none()
    }

    /// A copy to which an offset reset has been applied.
    fn with_reset(&self, reset: &OffsetReset) -> Self {
        match reset.to {
            ResetTarget::Back(to) => Self {
                // From `to` on nothing is settled, also not of other users. So the reader delivers these events in its turn.
                // Only a user that is held must stay in the list.
                parked: self
                    .parked
                    .filter(|parked| parked.first < to || parked.held)
                    .map(|parked| ParkedUser { first: parked.first.min(to), ..parked }),
                failed: self.failed.clone().filter(|failed| failed.offset < to),
            },
            ResetTarget::Ahead(to) => Self {
                parked: self.parked.map(|parked| ParkedUser { first: parked.first.max(to), ..parked }),
                failed: self.failed.clone().filter(|failed| failed.offset >= to),
            },
        }
    }
}

/// A copy of the list to which an offset reset has been applied.
pub(super) fn with_reset(users: &ListedUsers, reset: &OffsetReset) -> ListedUsers {
    let users = users.iter().map(|(user, state)| (user.clone(), state.with_reset(reset)));
    users.filter(|(_, state)| !state.is_empty()).collect()
}

/// What of the control topic has been applied to the partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlState {
    /// The offset of the next command in the control topic.
    pub next: i64,
    /// The destination starts no attempt.
    pub paused: Option<Pause>,
    /// Events an hour that an operator allows to attempt. Every rate that can be typed is a whole number of them.
    pub rate_per_hour: Option<u64>,
}

/// Who paused the destination, and when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pause {
    /// Milliseconds since the Unix epoch.
    pub since_ms: i64,
    pub by: Box<str>,
    pub reason: Box<str>,
}
