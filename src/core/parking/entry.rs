//! One user of the list: where its events are, what an operator has asked for, and the failures of its next event while that
//! is not in memory.

use super::sweep::Want;
use crate::core::event::Event;
use crate::core::lanes::{LaneId, Lanes};
use crate::core::progress::{FailedHead, UserKey};
use crate::core::tries::FailureHistory;
use crate::core::{BothClocks, Moment};
use hashbrown::Equivalent;

/// One user of the list.
#[derive(Debug)]
pub(super) struct ListedEntry {
    /// Its events below this offset are settled, the others are not.
    pub(super) first: i64,
    pub(super) rest: Rest,
    pub(super) is_held: bool,
    pub(super) give_up_below: Option<i64>,
    /// The failures of its first event, while that is not in memory.
    pub(super) failure: Option<FailureAccount>,
    /// The bytes of the events in its lane.
    pub(super) lane_bytes: usize,
    pub(super) want: Want,
    /// It has made room, and is counted since this moment (module `look_ahead`).
    pub(super) counted_since: Option<Moment>,
}

/// Where the events of a user are that are not in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// All are after the edge: the user is returning.
    AfterEdge,
    /// From `next` on they are in the log. `passed_in_run`: in this run the sweep has passed one of them.
    InLog { next: i64, passed_in_run: u64 },
}

/// The failures of an event that is not in memory.
#[derive(Debug)]
pub(super) struct FailureAccount {
    pub(super) offset: i64,
    pub(super) next_try: Moment,
    /// When the user is shown as stuck next.
    pub(super) stuck_at: Moment,
    pub(super) history: Box<FailureHistory>,
}

/// Finds a user in the list without a copy of its key.
#[derive(Hash)]
pub(super) struct KeyRef<'a>(pub(super) Option<&'a [u8]>);

impl Equivalent<UserKey> for KeyRef<'_> {
    fn equivalent(&self, key: &UserKey) -> bool {
        self.0 == key.as_deref()
    }
}

impl ListedEntry {
    pub(super) fn new(first: i64, rest: Rest) -> Self {
        let (is_held, give_up_below, failure) = (false, None, None);
        Self { first, rest, is_held, give_up_below, failure, lane_bytes: 0, want: Want::Nothing, counted_since: None }
    }

    /// Whether an operator has given up the event at this offset.
    pub(super) fn gives_up(&self, offset: i64) -> bool {
        self.give_up_below.is_some_and(|below| offset < below)
    }

    /// Whether the event at this offset may be in memory. Of a held user only events may that are being given up.
    pub(super) fn may_admit(&self, offset: i64) -> bool {
        !self.is_held || self.gives_up(offset)
    }
}

impl FailureAccount {
    pub(super) fn admit(self, event: Event, lanes: &mut Lanes) -> LaneId {
        lanes.admit_failed(event, self.history, self.next_try, self.stuck_at)
    }

    pub(super) fn to_stored(&self, is_void: impl Fn(u64) -> bool, now: BothClocks) -> FailedHead {
        self.history.to_stored(self.offset, self.next_try, is_void, now)
    }
}
