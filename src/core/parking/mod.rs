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
//!   the user is held, its next event is left in the log instead.
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
//! | `mod` | the list, and what happens to an event that the reader or the sweep has read |
//! | `sweep` | where the sweep reads next, and for which users |
//! | `pressure` | who is parked, and who leaves memory |
//! | `look_ahead` | the same in an outage, if no user in memory is served |
//! | `orders` | what an operator asks for: hold, release, retry, give up |
//!
//! The owner of the partition calls all of this between two of its steps. So no state here changes while a commit is
//! being made of it.

mod look_ahead;
mod orders;
mod pressure;
mod sweep;

pub use self::orders::HoldError;
pub use self::pressure::Blocked;
pub use self::sweep::SweepRequest;

use self::look_ahead::LookAhead;
use self::pressure::Pressure;
use self::sweep::{Sweep, Want};
use super::event::Event;
use super::lanes::{LaneId, LaneView, Lanes, RemovedLane};
use super::progress::{FailedHead, ListedUsers, ParkedUser, PartitionState, Progress, UserKey, UserState};
use super::tries::FailureHistory;
use super::window::Window;
use super::{BothClocks, Moment};
use hashbrown::{Equivalent, HashMap};
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
    /// The longest run that the destination takes. A lane is filled up to at least this many events.
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
    /// Every event below it was read: it is in memory, settled, or left in the log.
    edge: i64,
    /// The end of the settled map with which this owner began.
    settled_until: i64,
    has_changes: bool,
}

/// One user of the list.
#[derive(Debug)]
struct ListedEntry {
    /// Its events below this offset are settled, the others are not.
    first: i64,
    rest: Rest,
    is_held: bool,
    give_up_below: Option<i64>,
    /// The failures of its first event, while that is not in memory.
    failure: Option<FailureAccount>,
    /// The bytes of the events in its lane.
    lane_bytes: usize,
    want: Want,
}

/// Where the events of a user are that are not in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// All are after the edge: the user is returning.
    AfterEdge,
    /// From `next` on they are in the log. `passed_in_run`: in this run the sweep has passed one of them.
    InLog { next: i64, passed_in_run: u64 },
}

/// The failures of an event that is not in memory.
#[derive(Debug)]
struct FailureAccount {
    offset: i64,
    next_try: Moment,
    /// When the user is shown as stuck next.
    stuck_at: Moment,
    history: Box<FailureHistory>,
}

/// Finds a user in the list without a copy of its key.
#[derive(Hash)]
struct KeyRef<'a>(Option<&'a [u8]>);

impl Equivalent<UserKey> for KeyRef<'_> {
    fn equivalent(&self, key: &UserKey) -> bool {
        self.0 == key.as_deref()
    }
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

    /// Whether the list is empty, and every stored failure is in a lane.
    fn is_idle(&self) -> bool {
        self.users.is_empty() && self.stored_failures.is_empty()
    }

    /// The reader offers its next event. It is admitted, or settled already, or left in the log. `Err`: the window has no
    /// room for it.
    ///
    /// # Errors
    /// Returns the event if the window has no room for it.
    pub fn read(&mut self, event: Event, memory: &mut PartitionMemory<'_>) -> Result<(), Event> {
        let (offset, bytes) = (event.offset, event.record.window_bytes());
        // This is the path of nearly every event, so it looks up nothing.
        let listed = if self.is_idle() { None } else { self.users.get_mut(&KeyRef(event.record.key())) };
        let Some(entry) = listed else {
            if offset < self.settled_until && memory.progress.is_settled(offset) {
                self.passed(offset + 1);
                return Ok(());
            }
            if !memory.window.admits(bytes) {
                return Err(event);
            }
            memory.window.add(bytes);
            match self.stored_failures.remove(&offset) {
                Some((user, failure)) if user.as_deref() == event.record.key() => failure.admit(event, memory.lanes),
                _ => memory.lanes.admit(event),
            };
            self.passed(offset + 1);
            return Ok(());
        };
        if offset >= entry.first && entry.rest == Rest::AfterEdge {
            if entry.may_admit(offset) {
                if !memory.window.admits(bytes) {
                    return Err(event);
                }
                self.admit_listed(event, memory);
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

    /// Whether the user is in the list.
    pub fn is_listed(&self, key: &UserKey) -> bool {
        self.users.contains_key(key)
    }

    /// The number of users in the list.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// Brings everything about a listed user up to date: whether its lane stays in memory, whether it leaves the list, and
    /// what it wants from the sweep.
    fn review(&mut self, key: &UserKey, memory: &mut PartitionMemory<'_>, now: Moment) {
        let Some(entry) = self.users.get(key) else { return };
        let mut lane = memory.lanes.find(key.as_deref());
        if let Some(id) = lane
            && entry.is_held
        {
            let view = memory.lanes.view(id);
            if view.busy_events == 0 && !entry.gives_up(view.head.offset) {
                self.leave_memory(id, memory);
                lane = None;
            }
        }
        let Some(entry) = self.users.get_mut(key) else { return };
        if lane.is_none() && entry.is_held {
            memory.lanes.does_not_wait(key.as_deref());
        }
        if let Rest::InLog { next, .. } = entry.rest
            && next >= self.edge
        {
            entry.rest = Rest::AfterEdge;
        }
        if lane.is_none() && entry.rest == Rest::AfterEdge {
            // The event that had failed is gone if the reader has passed it: retention has removed it.
            entry.failure = entry.failure.take().filter(|failure| failure.offset >= self.edge);
        }
        if let Some(below) = entry.give_up_below {
            let rest_from = match entry.rest {
                Rest::AfterEdge => self.edge,
                Rest::InLog { next, .. } => next,
            };
            if entry.first >= below || (lane.is_none() && rest_from >= below) {
                entry.give_up_below = None;
                self.giving_up.remove(key);
                self.has_changes = true;
                // What was admitted to be given up is gone, and a held user has nothing else in memory.
                return self.review(key, memory, now);
            }
        }
        let may_leave = entry.rest == Rest::AfterEdge
            && !entry.is_held
            && entry.give_up_below.is_none()
            && entry.failure.is_none()
            && self.edge >= self.settled_until.max(entry.first)
            && lane.is_none_or(|id| memory.lanes.view(id).head.offset >= memory.progress.watermark());
        if may_leave {
            self.unlist(key, lane, memory);
        } else {
            self.set_want(key, lane.map(|id| memory.lanes.view(id)), memory.window, now);
        }
    }

    fn set_want(&mut self, key: &UserKey, lane: Option<LaneView<'_>>, window: &Window, now: Moment) {
        let Some(entry) = self.users.get_mut(key) else { return };
        let backlog = self.limits.user_backlog.max(self.run_events_max);
        let want = entry.wants(lane, backlog, window, now);
        self.sweep.change_want(key, entry, want);
    }

    /// Puts the user of this lane into the list, as it is: all of its events are in memory. `false`: the list is full, or
    /// this partition parks no user.
    fn list(&mut self, id: LaneId, memory: &mut PartitionMemory<'_>) -> bool {
        let PartitionMemory { lanes, window, progress } = memory;
        let view = lanes.view(id);
        if view.is_listed {
            return true;
        }
        if !self.limits.may_park {
            return false;
        }
        if self.users.len() >= self.limits.users_max {
            self.pressure.list_is_full();
            return false;
        }
        let key: UserKey = view.head.record.key().map(Into::into);
        let mut entry = ListedEntry::new(view.head.offset, Rest::AfterEdge);
        for event in lanes.each_event(id) {
            let bytes = event.record.window_bytes();
            progress.settle(event.offset..event.offset + 1);
            window.add_parked(bytes);
            entry.lane_bytes += bytes;
        }
        lanes.set_listed(id, true);
        self.users.insert(key, entry);
        self.has_changes = true;
        true
    }

    /// Takes a user off the list. The events in its lane are unsettled again in the progress.
    fn unlist(&mut self, key: &UserKey, lane: Option<LaneId>, memory: &mut PartitionMemory<'_>) {
        let Some(entry) = self.users.get_mut(key) else { return };
        self.sweep.change_want(key, entry, Want::Nothing);
        self.users.remove(key);
        self.has_changes = true;
        if let Some(id) = lane {
            memory.lanes.set_listed(id, false);
            for event in memory.lanes.each_event(id) {
                memory.progress.reopen(event.offset..event.offset + 1);
                memory.window.remove_parked(event.record.window_bytes());
            }
        } else {
            memory.lanes.does_not_wait(key.as_deref());
        }
    }

    /// Removes the idle lane of a listed user from memory. Its events are left in the log.
    fn leave_memory(&mut self, id: LaneId, memory: &mut PartitionMemory<'_>) {
        let RemovedLane { events, history, next_try, stuck_at } = memory.lanes.remove_idle(id);
        for event in &events {
            memory.window.remove_parked(event.record.window_bytes());
            memory.window.remove(event.record.window_bytes());
        }
        let offset = events[0].offset;
        if let Some(entry) = self.users.get_mut(&KeyRef(events[0].record.key())) {
            (entry.rest, entry.lane_bytes) = (self.sweep.in_log(offset), 0);
            entry.failure = history.map(|history| {
                let stuck_at = stuck_at.unwrap_or_else(|| history.stuck_from());
                FailureAccount { offset, next_try, stuck_at, history }
            });
        }
    }

    /// Admits an event of a listed user to its lane.
    fn admit_listed(&mut self, event: Event, memory: &mut PartitionMemory<'_>) {
        let bytes = event.record.window_bytes();
        memory.window.add(bytes);
        memory.window.add_parked(bytes);
        memory.progress.settle(event.offset..event.offset + 1);
        let failure = self.users.get_mut(&KeyRef(event.record.key())).and_then(|entry| {
            entry.lane_bytes += bytes;
            // If the event that had failed is gone (removed by retention), so is its account.
            entry.failure.take().filter(|failure| failure.offset == event.offset)
        });
        let id = match failure {
            Some(failure) => failure.admit(event, memory.lanes),
            None => memory.lanes.admit(event),
        };
        memory.lanes.set_listed(id, true);
    }
}

impl ListedEntry {
    fn new(first: i64, rest: Rest) -> Self {
        let (is_held, give_up_below, failure) = (false, None, None);
        Self { first, rest, is_held, give_up_below, failure, lane_bytes: 0, want: Want::Nothing }
    }

    /// Whether an operator has given up the event at this offset.
    fn gives_up(&self, offset: i64) -> bool {
        self.give_up_below.is_some_and(|below| offset < below)
    }

    /// Whether the event at this offset may be in memory. Of a held user only events may that are being given up.
    fn may_admit(&self, offset: i64) -> bool {
        !self.is_held || self.gives_up(offset)
    }
}

impl FailureAccount {
    fn admit(self, event: Event, lanes: &mut Lanes) -> LaneId {
        lanes.admit_failed(event, self.history, self.next_try, self.stuck_at)
    }

    fn to_stored(&self, is_void: impl Fn(u64) -> bool, now: BothClocks) -> FailedHead {
        self.history.to_stored(self.offset, self.next_try, is_void, now)
    }
}

#[cfg(test)]
mod tests;
