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
use std::collections::{BTreeMap, HashMap};
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

/// The parked users of a list and where their unsettled events begin, without anything else.
pub(super) fn parked_only(users: &ListedUsers) -> ListedUsers {
    let parked = users.iter().filter_map(|(user, state)| Some((user, state.parked?.first)));
    let alone = |first| UserState { parked: Some(ParkedUser { first, ..ParkedUser::default() }), failed: None };
    parked.map(|(user, first)| (user.clone(), alone(first))).collect()
}

/// Both lists in one. A user of both is parked from the lower offset on, and has the account of `other`.
pub(super) fn union(users: &ListedUsers, other: &ListedUsers) -> ListedUsers {
    let mut all = users.clone();
    for (user, state) in other {
        let own = all.entry(user.clone()).or_default();
        own.parked = match (own.parked, state.parked) {
            (Some(own), Some(other)) => Some(ParkedUser { first: own.first.min(other.first), ..other }),
            (own, other) => own.or(other),
        };
        own.failed = state.failed.clone().or(own.failed.take());
    }
    all
}

/// The events of parked users that are unsettled, to be looked up event by event.
#[derive(Debug, Clone, Default)]
pub struct ParkedEvents {
    by_key: HashMap<Arc<[u8]>, i64>,
    without_key: Option<i64>,
}

impl ParkedEvents {
    pub fn of(users: &ListedUsers) -> Self {
        let mut parked = Self::default();
        for (user, state) in users {
            let Some(ParkedUser { first, .. }) = state.parked else { continue };
            match user {
                Some(key) => {
                    parked.by_key.insert(Arc::clone(key), first);
                }
                None => parked.without_key = Some(first),
            }
        }
        parked
    }

    /// Whether the event of this user at this offset is one of them.
    pub fn contains(&self, user: Option<&[u8]>, offset: i64) -> bool {
        let first = match user {
            Some(key) => self.by_key.get(key).copied(),
            None => self.without_key,
        };
        first.is_some_and(|first| offset >= first)
    }
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
    /// The last commands that were passed without their effect, by their offset. `eventd control` tells the operator.
    pub failed: Vec<FailedCommand>,
}

/// A command that was passed without its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedCommand {
    /// Its offset in the control topic.
    pub offset: i64,
    pub why: CommandFailure,
}

/// Why a command had no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandFailure {
    #[error("the list of parked users is full (--parked-users): raise --parked-users, or release users that are held")]
    ListIsFull,
    #[error("the partition was not read far enough in time")]
    NotReadInTime,
    #[error("the owner delivers in a way that holds no user")]
    NotPossible,
}

impl CommandFailure {
    /// What the operator can do, in a sentence. `None`: the command will not have an effect at this owner.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::ListIsFull => Some("Then give the command again"),
            Self::NotReadInTime => Some("Give the command again"),
            Self::NotPossible => None,
        }
    }

    /// The number in a stored state.
    pub(super) fn code(self) -> u64 {
        match self {
            Self::ListIsFull => 0,
            Self::NotReadInTime => 1,
            Self::NotPossible => 2,
        }
    }

    pub(super) fn of_code(code: u64) -> Option<Self> {
        [Self::ListIsFull, Self::NotReadInTime, Self::NotPossible].into_iter().find(|why| why.code() == code)
    }
}

/// Who paused the destination, and when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pause {
    /// Milliseconds since the Unix epoch.
    pub since_ms: i64,
    pub by: Box<str>,
    pub reason: Box<str>,
}
