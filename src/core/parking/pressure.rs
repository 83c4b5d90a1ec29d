//! Which users are parked. As long as the window has room, none is.
//!
//! ```text
//!  window   0 ───────────── 1/2 ────────────── 3/4 ──────────── 1
//!                            │ 1. cut lanes longer than the     │ 3. lanes that back off leave memory,
//!                            │    backlog that are slow          │    the farthest next try first
//!                            │ 2. cut lanes that back off, and those of
//!                            │    slow users that wait for a slot, to
//!                            │    their head
//! ```
//!
//! Two more cases make lanes that back off leave memory: the next event of the reader is too large for the room that is
//! left; and the parked users have no room for events that one of them wants. In the second case only parked users leave.
//!
//! The caller asks for this only while the breaker is closed and an attempt could start. Otherwise the destination is the
//! cause: it is in an outage, or slow for every user. Then reading waits, and no user is parked. One outage is an exception:
//! if no user was delivered, the users in memory may be the cause, and then module `look_ahead` makes room within a bound.
//!
//! So reading never waits for failing users. If the window is full and no attempt is in flight or ready, every lane backs
//! off. Then step 3 frees a quarter of it, unless the list is full.

use super::{ListedEntry, ParkedUsers, PartitionMemory, Rest};
use crate::core::Moment;
use crate::core::lanes::LaneId;
use crate::core::progress::UserKey;
use crate::core::window::Window;
use std::time::Duration;

/// How long after a look at all lanes that freed nothing the next one is. It bounds the time that such looks take.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A lane that would need longer than this at its own pace is slow.
const SLOW_LANE_S: usize = 1;

/// How often the whole list is looked at for users that may leave it.
const LEAVE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a lane may hold the watermark while other users are served.
const WATERMARK_HELD_MAX: Duration = Duration::from_secs(60);

/// Bytes of the events that were read, and for which the window has no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    /// The next event of the reader.
    pub read: Option<usize>,
    /// The next event of the sweep.
    pub swept: Option<usize>,
}

/// When to look for users to park.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    /// All lanes are looked at again at this moment.
    next_look_at: Option<Moment>,
    /// Events that were settled in all.
    settled: u64,
    /// The watermark, since when it is held, and `settled` at that time.
    held: Option<(i64, Moment, u64)>,
    /// Users that may leave the list are not looked for before this moment.
    next_leave_at: Moment,
    /// A user could not be parked because the list is full.
    is_list_full: bool,
}

impl Blocked {
    /// Whether the reader's next event has no room.
    pub(super) fn lacks_room_to_read(&self, window: &Window) -> bool {
        self.read.is_some_and(|bytes| !window.admits(bytes))
    }

    /// Whether what parked users want has so little room that others of them leave memory.
    pub(super) fn lacks_parked_room(&self, window: &Window) -> bool {
        window.is_parked_nearly_full() || self.swept.is_some_and(|bytes| !window.admits_parked(bytes))
    }
}

impl Pressure {
    pub(super) fn count_settled(&mut self) {
        self.settled += 1;
    }

    pub(super) fn next_look_at(&self) -> Option<Moment> {
        self.next_look_at
    }

    /// Whether all lanes may be looked at now.
    pub(super) fn may_look(&self, now: Moment) -> bool {
        self.next_look_at.is_none_or(|at| now >= at)
    }

    /// All lanes were looked at, and so many events have left memory.
    pub(super) fn has_looked(&mut self, freed: usize, now: Moment) {
        self.next_look_at = (freed == 0).then(|| now + LOOK_INTERVAL);
    }

    pub(super) fn list_is_full(&mut self) {
        self.is_list_full = true;
    }
}

impl ParkedUsers {
    /// Whether the window is so full that users are parked, or leave memory.
    pub fn needs_room(&self, blocked: Blocked, window: &Window) -> bool {
        window.is_half_full() || blocked.read.is_some() || self.lacks_parked_room(blocked, window)
    }

    /// Whether parked users have no room for what one of them wants.
    pub(super) fn lacks_parked_room(&self, blocked: Blocked, window: &Window) -> bool {
        blocked.swept.is_some() || (self.sweep.has_wants() && window.parked_room_bytes() == 0)
    }

    /// Makes room in the window if it is needed, and returns the number of users that were parked for it. Call it only
    /// while the breaker is closed and a slot is free.
    pub fn relieve(&mut self, blocked: Blocked, memory: &mut PartitionMemory<'_>, now: Moment) -> usize {
        if !self.needs_room(blocked, memory.window) || !self.pressure.may_look(now) || !self.limits.may_park {
            return 0;
        }
        let (users_before, events_before) = (self.users.len(), memory.window.events());
        if memory.window.is_half_full() {
            self.cut_slow_lanes(memory, now);
        }
        if memory.window.is_half_full() {
            self.cut_to_failed_heads(memory, now);
        }
        self.make_cold(blocked, memory, now);
        self.pressure.has_looked(events_before - memory.window.events(), now);
        self.users.len().saturating_sub(users_before)
    }

    fn cut_slow_lanes(&mut self, memory: &mut PartitionMemory<'_>, now: Moment) {
        let backlog = self.limits.user_backlog.max(1);
        let mut slow: Vec<(usize, LaneId)> = Vec::new();
        for id in memory.lanes.each_lane() {
            let view = memory.lanes.view(id);
            // A lane that is too young for a pace may be a burst that is over at once.
            let is_slow = view.events_per_s.is_some_and(|pace| view.events > pace.saturating_mul(SLOW_LANE_S));
            if is_slow && view.events > backlog.max(view.busy_events) {
                slow.push((view.events, id));
            }
        }
        slow.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id) in slow {
            let keep = backlog.max(memory.lanes.view(id).busy_events);
            self.cut(id, keep, memory, now);
            if !memory.window.is_half_full() {
                return;
            }
        }
    }

    fn cut_to_failed_heads(&mut self, memory: &mut PartitionMemory<'_>, now: Moment) {
        let is_longer = |id: &LaneId| memory.lanes.view(*id).events > 1;
        let waiting = memory.lanes.each_backing_off().rev().chain(memory.lanes.each_doubtful_ready());
        let failed: Vec<LaneId> = waiting.filter(is_longer).collect();
        for id in failed {
            self.cut(id, 1, memory, now);
            if !memory.window.is_half_full() {
                return;
            }
        }
    }

    /// Removes lanes that back off from memory, until the window has room and so have parked users.
    fn make_cold(&mut self, blocked: Blocked, memory: &mut PartitionMemory<'_>, now: Moment) {
        let lacks_parked_room = self.lacks_parked_room(blocked, memory.window);
        let backing_off: Vec<LaneId> = memory.lanes.each_backing_off().rev().collect();
        for id in backing_off {
            let window = &*memory.window;
            let is_full = window.is_nearly_full() || blocked.lacks_room_to_read(window);
            let is_parked_full = lacks_parked_room && blocked.lacks_parked_room(window);
            if !is_full && !is_parked_full {
                return;
            }
            // Users that are in the list already can leave memory although the list is full.
            if memory.lanes.view(id).is_listed || (is_full && self.list(id, memory)) {
                self.park_cold(id, memory, now);
            }
        }
    }

    /// Removes the idle lane of a listed user from memory, and lets the sweep bring it back.
    fn park_cold(&mut self, id: LaneId, memory: &mut PartitionMemory<'_>, now: Moment) {
        let key = memory.lanes.view(id).head.record.key().map(Into::into);
        self.leave_memory(id, memory);
        self.review(&key, memory, now);
    }

    /// Leaves the events of a lane after the first `keep` in the log.
    pub(super) fn cut(&mut self, id: LaneId, keep: usize, memory: &mut PartitionMemory<'_>, now: Moment) {
        if !self.list(id, memory) {
            return;
        }
        let (mut next, mut cut_bytes) = (None, 0);
        memory.lanes.cut(id, keep, |event| {
            let bytes = event.record.window_bytes();
            memory.window.remove_parked(bytes);
            memory.window.remove(bytes);
            (next, cut_bytes) = (Some(event.offset), cut_bytes + bytes);
        });
        let key = memory.lanes.view(id).head.record.key().map(Into::into);
        if let (Some(next), Some(entry)) = (next, self.users.get_mut(&key)) {
            entry.rest = self.sweep.in_log(next);
            entry.lane_bytes -= cut_bytes;
        }
        self.review(&key, memory, now);
    }

    /// Parks users that hold the watermark, as they are, and returns their number: lanes whose head is more than
    /// `offsets_max` offsets behind the reader, and the lane that has held the watermark for a minute while other users
    /// were served. Users that need not be in the list any more leave it.
    ///
    /// Call it once a tick. `may_park`: the breaker is closed, and a slot is free.
    pub fn tick(&mut self, offsets_max: i64, may_park: bool, memory: &mut PartitionMemory<'_>, now: Moment) -> usize {
        if may_park {
            memory.lanes.forget_set_aside();
        }
        let users_before = self.users.len();
        let watermark = memory.progress.watermark();
        let held = self.pressure.held.filter(|(held, _, _)| *held == watermark && may_park && watermark < self.edge);
        let (_, since, settled) = *self.pressure.held.insert(held.unwrap_or((watermark, now, self.pressure.settled)));
        let is_held_for_long = now >= since.saturating_add(WATERMARK_HELD_MAX) && self.pressure.settled > settled;
        if may_park && (is_held_for_long || self.edge.saturating_sub(watermark) > offsets_max) {
            let behind = self.edge.saturating_sub(offsets_max).max(if is_held_for_long { watermark + 1 } else { 0 });
            let is_behind = |id: &LaneId| {
                let view = memory.lanes.view(*id);
                !view.is_listed && view.head.offset < behind
            };
            let lanes: Vec<LaneId> = memory.lanes.each_lane().filter(is_behind).collect();
            for id in lanes {
                self.list(id, memory);
            }
        }
        let parked = self.users.len().saturating_sub(users_before);
        self.let_users_leave(memory, now);
        parked
    }

    /// Takes users off the list of which nothing is left in the log.
    fn let_users_leave(&mut self, memory: &mut PartitionMemory<'_>, now: Moment) {
        if self.users.is_empty() || now < self.pressure.next_leave_at {
            return;
        }
        self.pressure.next_leave_at = now + LEAVE_INTERVAL;
        let may_leave = |(key, entry): (&_, &ListedEntry)| match entry.rest {
            Rest::AfterEdge if !entry.is_held => Some(UserKey::clone(key)),
            Rest::AfterEdge | Rest::InLog { .. } => None,
        };
        // An order to give up ends once the reader has passed its offsets.
        let giving_up = self.giving_up.iter().cloned();
        let mut users: Vec<UserKey> = self.users.iter().filter_map(may_leave).chain(giving_up).collect();
        users.sort_unstable();
        for key in users {
            self.review(&key, memory, now);
        }
    }

    /// Whether a user could not be parked since the last call because the list is full.
    pub fn take_list_is_full(&mut self) -> bool {
        std::mem::take(&mut self.pressure.is_list_full)
    }
}
