//! Parking: a user whose events do not fit into memory is left in the log, and read from there again when its turn comes.
//! So a user that fails, or is slow, or has a long backlog takes no room from the others, and the watermark moves past it.
//!
//! ```text
//!  log    …  A1  B1  A2  A3  C1  A4  B2  A5  C2 │ A6 …                      user A is parked
//!            ▲       ▲   ▲                      ▲
//!            first   │   next                   edge: the reader has read up to here
//!            └───┬───┘   └──────── left in the log ────────┘
//!           lane of A    A3, A4 and A5, which the sweep reads again later
//! ```
//!
//! Two cursors read the log. The *reader* goes forward once. The *sweep* goes back for events of parked users that were
//! left in the log. For a user of this list:
//!
//! - Its events below `first` are settled, and those from `first` on are not. In the [`Progress`] *all* of them count as
//!   settled as soon as the reader has passed them, because the list accounts for them.
//! - Its events in `first..next` are in its lane. Its events in `next..edge` are only in the log.
//! - If nothing of it is left in the log, it is *returning*: the reader admits its next event after those in its lane. If
//!   the user is held, or has a lane and the window has no room, its next event is left in the log instead.
//!
//! ```text
//!           pressure: its lane is cut, or leaves memory (it is *cold*)
//!  not listed ─────────────────────────────────────────────────▶ left in the log ──▶ the sweep fills its lane ─┐
//!      │  ▲                                                           ▲                                        │
//!      │  └── nothing of it is unsettled below the watermark ──┐      │ pressure       reached the edge        │
//!      └── its head is far behind: parked as it is ─────────▶ returning ◀──────────────────────────────────────┘
//! ```
//!
//! A user leaves the list only when the reader has passed the settled map with which this owner began. Before that, the
//! map may count events as settled that only the list knows to be unsettled.
//!
//! | file | what it decides |
//! |---|---|
//! | `mod` | what happens to an event that the reader or the sweep has read, and what of the list is stored |
//! | `entry` | what is known of one user of the list |
//! | `listing` | which users enter the list and leave it |
//! | `sweep` | where the sweep reads next, and for which users |
//! | `pressure` | who is parked, and who leaves memory |
//! | `look_ahead` | the same if no user in memory is served, or none quickly, because users after them may be |
//! | `orders` | what an operator asks for: hold, release, retry, give up |
//!
//! The owner of the partition calls all of this between two of its steps. So no state here changes while a commit is
//! being made of it.

mod entry;
mod listing;
mod look_ahead;
mod orders;
mod pressure;
mod sweep;

pub use self::look_ahead::SlowLookAhead;
pub use self::orders::HoldError;
pub use self::pressure::Blocked;
pub use self::sweep::SweepRequest;

use self::entry::{FailureAccount, KeyRef, ListedEntry, Rest};
use self::look_ahead::LookAhead;
use self::pressure::Pressure;
use self::sweep::{Sweep, Want};
use super::event::Event;
use super::lanes::Lanes;
use super::progress::{FailedHead, ListedUsers, ParkedUser, PartitionState, Progress, UserKey, UserState};
use super::tries::FailureHistory;
use super::window::Window;
use super::{BothClocks, Moment};
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::RandomState;

/// About how many bytes of a stored state a parked user takes beside its key, and a failure.
const PARKED_STORED_BYTES: usize = 28;
const FAILED_STORED_BYTES: usize = 60;

/// The bounds of parking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkingLimits {
    /// Events of one user that stay in memory under pressure (`--user-backlog`).
    pub user_backlog: usize,
    /// Users in the list (`--parked-users`). At the bound no user is parked, so reading waits.
    pub users_max: usize,
    /// Whether users may be parked. A replay settles arbitrary events of a user, so it parks none.
    pub may_park: bool,
}

/// About how many bytes the listed users take in a stored state.
pub fn listed_bytes(users: &ListedUsers) -> usize {
    let bytes = |(key, user): (&UserKey, &UserState)| {
        key.as_ref().map_or(0, |key| key.len())
            + usize::from(user.parked.is_some()) * PARKED_STORED_BYTES
            + usize::from(user.failed.is_some()) * FAILED_STORED_BYTES
    };
    users.iter().map(bytes).sum()
}

/// Why an event that was read is not admitted.
#[derive(Debug)]
pub enum NotAdmitted {
    /// The window has no room for it.
    NoRoom(Event),
    /// The stored state is wrong about it.
    Misplaced(MisplacedFailure),
}

/// The stored state has failures of an event that is not the next one of its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has failures of the event at offset {offset}, but an earlier event of this user is unsettled, at offset {earlier}"
)]
pub struct MisplacedFailure {
    offset: i64,
    earlier: i64,
}

/// What parking works on: the events in memory, their room, and what is settled.
#[derive(Debug)]
pub struct PartitionMemory<'a> {
    pub lanes: &'a mut Lanes,
    pub window: &'a mut Window,
    pub progress: &'a mut Progress,
}

/// The parked users of one partition, and the failures of events that are not in memory.
#[derive(Debug)]
pub struct ParkedUsers {
    limits: ParkingLimits,
    /// The longest run that the destination takes. While the window has room, a lane is filled up to at least this many
    /// events, within its part of the window.
    run_events_max: usize,
    users: HashMap<UserKey, ListedEntry, RandomState>,
    /// Failures that were stored, by the offset of their event, until the reader has passed it. Their users are not parked.
    stored_failures: BTreeMap<i64, (UserKey, FailureAccount)>,
    /// What a replay stores unchanged: the parked users of its destination.
    carried: ListedUsers,
    sweep: Sweep,
    pressure: Pressure,
    look_ahead: LookAhead,
    /// Users of which an operator has given up events.
    giving_up: BTreeSet<UserKey>,
    /// The users among them whose lane may have an event that is given up next. Those whose events are in the log or in use
    /// are not looked at.
    maybe_give_up: BTreeSet<UserKey>,
    /// Every event below it was read: it is in memory, settled, or left in the log.
    edge: i64,
    /// The end of the settled map with which this owner began.
    settled_until: i64,
    has_changes: bool,
}

impl ParkedUsers {
    /// The list of a stored state. `restore` returns the history of a stored failure, and the moment of the next try.
    pub fn new(
        limits: ParkingLimits,
        run_events_max: usize,
        state: &PartitionState,
        restore: impl Fn(&FailedHead) -> (FailureHistory, Moment),
        now: Moment,
    ) -> Self {
        let mut parked = Self {
            limits,
            run_events_max,
            users: HashMap::with_hasher(RandomState::new()),
            stored_failures: BTreeMap::new(),
            carried: ListedUsers::new(),
            sweep: Sweep::new(),
            pressure: Pressure::default(),
            look_ahead: LookAhead::default(),
            giving_up: BTreeSet::new(),
            maybe_give_up: BTreeSet::new(),
            edge: state.watermark,
            settled_until: state.settled_end(),
            has_changes: false,
        };
        for (key, user) in &state.users {
            let failure = user.failed.as_ref().map(|failed| {
                let (history, next_try) = restore(failed);
                let stuck_at = history.stuck_from();
                FailureAccount { offset: failed.offset, next_try, stuck_at, history: Box::new(history) }
            });
            match user.parked {
                Some(stored) if limits.may_park => parked.restore(key, stored, failure, now),
                stored => {
                    if stored.is_some() {
                        parked.carried.insert(key.clone(), UserState { parked: stored, failed: None });
                    }
                    if let Some(failure) = failure.filter(|failure| failure.offset >= parked.edge) {
                        parked.stored_failures.insert(failure.offset, (key.clone(), failure));
                    }
                }
            }
        }
        parked
    }

    fn restore(&mut self, key: &UserKey, stored: ParkedUser, failure: Option<FailureAccount>, now: Moment) {
        let ParkedUser { first, held, give_up_below } = stored;
        // Everything from the edge on is still to be read. So a user whose events are all there has nothing left behind.
        let rest = if first >= self.edge { Rest::AfterEdge } else { self.sweep.in_log(first) };
        let entry = ListedEntry { is_held: held, give_up_below, failure, ..ListedEntry::new(first, rest) };
        if give_up_below.is_some() {
            self.giving_up.insert(key.clone());
        }
        self.users.insert(key.clone(), entry);
        // Without a lane, nothing depends on the window.
        self.set_want(key, None, &Window::new(1, 1), now);
    }

    /// Changes how many users may be in the list. If there are more, they stay, and no user is parked until there are fewer.
    pub fn set_users_max(&mut self, users_max: usize) {
        self.limits.users_max = users_max;
    }

    /// Whether the list is empty, and every stored failure is in a lane.
    fn is_idle(&self) -> bool {
        self.users.is_empty() && self.stored_failures.is_empty()
    }

    /// The reader offers its next event. It is admitted, or settled already, or left in the log.
    ///
    /// # Errors
    /// Returns the event if the window has no room for it. If the stored state is damaged, the partition cannot continue.
    pub fn read(&mut self, event: Event, memory: &mut PartitionMemory<'_>) -> Result<(), NotAdmitted> {
        let (offset, bytes) = (event.offset, event.record.window_bytes());
        // This is the path of nearly every event, so it looks up nothing.
        let listed = if self.is_idle() { None } else { self.users.get_mut(&KeyRef(event.record.key())) };
        let Some(entry) = listed else {
            if offset < self.settled_until && memory.progress.is_settled(offset) {
                self.passed(offset + 1);
                return Ok(());
            }
            if !memory.window.admits(bytes) {
                return Err(NotAdmitted::NoRoom(event));
            }
            match self.stored_failures.remove(&offset) {
                Some((user, failure)) if user.as_deref() == event.record.key() => {
                    if let Some(id) = memory.lanes.find(event.record.key()) {
                        let earlier = memory.lanes.view(id).head.offset;
                        return Err(NotAdmitted::Misplaced(MisplacedFailure { offset, earlier }));
                    }
                    failure.admit(event, memory.lanes)
                }
                _ => memory.lanes.admit(event),
            };
            memory.window.add(bytes);
            self.passed(offset + 1);
            return Ok(());
        };
        if offset >= entry.first && entry.rest == Rest::AfterEdge {
            if entry.may_admit(offset) {
                if memory.window.admits(bytes) {
                    self.admit_listed(event, memory);
                } else if memory.lanes.find(event.record.key()).is_some() {
                    // The user has earlier events to be attempted. The others must not wait for these.
                    entry.rest = self.sweep.in_log(offset);
                } else {
                    return Err(NotAdmitted::NoRoom(event));
                }
            } else {
                // The user is held, and this is the first of its events that is left in the log.
                if memory.lanes.find(event.record.key()).is_none() {
                    entry.first = offset;
                }
                entry.rest = self.sweep.in_log(offset);
            }
        }
        // In all cases the list accounts for the event from now on.
        memory.progress.settle(offset..offset + 1);
        self.has_changes = true;
        self.passed(offset + 1);
        Ok(())
    }

    /// The reader has passed every offset below this one.
    pub fn passed(&mut self, edge: i64) {
        self.edge = self.edge.max(edge);
        while self.stored_failures.first_key_value().is_some_and(|(offset, _)| *offset < self.edge) {
            self.stored_failures.pop_first();
            self.has_changes = true;
        }
    }

    /// The sweep offers an event that it has read again. It is admitted if its user wants it.
    ///
    /// # Errors
    /// Returns the event if its user wants it, and the window has no room for it.
    pub fn sweep(&mut self, event: Event, memory: &mut PartitionMemory<'_>, now: Moment) -> Result<(), Event> {
        let (offset, bytes) = (event.offset, event.record.window_bytes());
        if offset >= self.edge {
            return Ok(());
        }
        let run = self.sweep.run();
        if let Some((key, entry)) = self.users.get_key_value_mut(&KeyRef(event.record.key()))
            && let Rest::InLog { next, passed_in_run } = entry.rest
            && offset >= next.max(entry.first)
            && self.sweep.has_seen_all_from(next, passed_in_run)
        {
            let is_wanted = entry.want.is_now() && entry.may_admit(offset);
            if is_wanted && !memory.window.admits_parked(bytes) {
                return Err(event);
            }
            let key = key.clone();
            if is_wanted {
                entry.rest = Rest::InLog { next: offset + 1, passed_in_run };
                self.admit_listed(event, memory);
                self.review(&key, memory, now);
            } else {
                // This is the first of its events that are left in the log. The sweep comes back for it.
                entry.rest = Rest::InLog { next: offset, passed_in_run: run };
                self.review(&key, memory, now);
            }
        }
        self.sweep.passed(offset + 1);
        Ok(())
    }

    /// Counts an event as settled, and gives its room in the window back. Call [`ParkedUsers::review_changed`] after the
    /// lanes have moved on.
    pub fn settled(&mut self, event: &Event, window: &mut Window, progress: &mut Progress) {
        let (offset, bytes) = (event.offset, event.record.window_bytes());
        if !self.users.is_empty()
            && let Some(entry) = self.users.get_mut(&KeyRef(event.record.key()))
        {
            entry.first = offset + 1;
            entry.lane_bytes -= bytes;
            window.remove_parked(bytes);
            self.has_changes = true;
        }
        window.remove(bytes);
        progress.settle(offset..offset + 1);
        self.pressure.count_settled();
    }

    /// An attempt failed. Its account is a part of the state.
    pub fn failed(&mut self) {
        self.has_changes = true;
    }

    /// Looks at the listed users whose lane has changed by an attempt or a dead letter.
    pub fn review_changed(&mut self, memory: &mut PartitionMemory<'_>, now: Moment) {
        for key in memory.lanes.take_changed() {
            self.review(&key, memory, now);
        }
    }

    /// Looks at cold users whose next try is due.
    pub fn wake(&mut self, memory: &mut PartitionMemory<'_>, now: Moment) {
        while let Some(key) = self.sweep.take_due(now) {
            if let Some(entry) = self.users.get_mut(&key) {
                entry.want = Want::Nothing;
            }
            self.review(&key, memory, now);
        }
    }

    /// When the next try of a cold user is due, or when to look again for room in the window.
    pub fn next_wakeup(&self, now: Moment) -> Option<Moment> {
        // A look that is overdue waits for the destination, not for time.
        let look_at = self.pressure.next_look_at().filter(|at| *at > now);
        self.sweep.next_due().into_iter().chain(look_at).min()
    }

    /// Whether the state has changed since the last call, apart from what [`Progress`] holds.
    pub fn take_changes(&mut self) -> bool {
        std::mem::take(&mut self.has_changes)
    }

    /// The list as a commit stores it, with the failures of every user's next event.
    ///
    /// `is_void` says whether the tries of an epoch of the breaker were taken back.
    pub fn listed(&self, lanes: &Lanes, is_void: impl Fn(u64) -> bool, now: BothClocks) -> ListedUsers {
        let mut users = self.carried.clone();
        for (key, entry) in &self.users {
            let ListedEntry { first, is_held, give_up_below, failure, .. } = entry;
            // Of a user that has no event, the list must not need offsets that retention removes meanwhile.
            let has_none = entry.rest == Rest::AfterEdge && failure.is_none() && lanes.find(key.as_deref()).is_none();
            let first = if has_none { self.edge.max(*first) } else { *first };
            let parked = ParkedUser { first, held: *is_held, give_up_below: *give_up_below };
            let failed = failure.as_ref().map(|failure| failure.to_stored(&is_void, now));
            users.insert(key.clone(), UserState { parked: Some(parked), failed });
        }
        for (key, failure) in self.stored_failures.values() {
            users.entry(key.clone()).or_default().failed = Some(failure.to_stored(&is_void, now));
        }
        for lane in lanes.each_failed().map(|id| lanes.view(id)) {
            // An event that was given up without a try has no failure to be stored.
            let Some(history) = lane.history.filter(|history| history.failures > 0) else { continue };
            let next_try = lane.backs_off_until.unwrap_or(now.moment);
            let key = lane.head.record.key().map(Into::into);
            let failed = history.to_stored(lane.head.offset, next_try, &is_void, now);
            users.entry(key).or_default().failed = Some(failed);
        }
        users
    }

    /// Whether [`listed`](Self::listed) returns no user apart from those with a lane in memory.
    pub fn lists_no_user(&self) -> bool {
        self.is_idle() && self.carried.is_empty()
    }

    /// Whether the user is in the list.
    pub fn is_listed(&self, key: &UserKey) -> bool {
        self.users.contains_key(key)
    }

    /// The number of users in the list.
    pub fn users(&self) -> usize {
        self.users.len()
    }
}

#[cfg(test)]
mod tests;
