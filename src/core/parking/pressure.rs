//! Which users are parked. As long as the window has room, none is.
//!
//! ```text
//!  window   0 ───────── 3/8 ─── 1/2 ──────────────── 3/4 ──────────── 1
//!                        ▲       │ 1. slow lanes keep the   │ 4. lanes that back off leave memory,
//!                        │       │    backlog, and 1/8 of   │    the farthest next try first,
//!                        │       │    the window at most    │    down to 5/8
//!                        │       │ 2. lanes that back off, and those of slow users that wait for a slot, keep
//!                        │       │    their head
//!                        │       │ 3. lanes in flight whose attempts are slow keep their run, and what they deliver in a
//!                        │       │    second
//!                        └───────┘ each step ends here
//! ```
//!
//! If the reader has no room after that, slow lanes in flight are parked as they are. They have the half of parked users
//! then, and the other half is for the others. So an event of any size whose attempt hangs does not stop the reader.
//!
//! A lane is slow if it needs more than a second for its events at its own pace, and its user is the cause: the caller says
//! so. If the destination is slow for every user, no user is.
//!
//! Two more cases make lanes that back off leave memory: the next event of the reader is too large for the room that is
//! left; and the parked users have no room for events that one of them wants. In the second case only parked users leave.
//!
//! The caller asks for this only while the breaker is closed and an attempt could start. Otherwise the destination is the
//! cause: it is in an outage, or slow for every user. Then reading waits, and no user is parked.
//!
//! But the users in memory may be the cause after all. This can be so if for a while no user was delivered, every user was
//! slow, or slow users kept newcomers from a slot. Then module `look_ahead` makes room, for a bounded number of users.
//!
//! So reading never waits for failing users. If the window is full and no attempt is in flight or ready, every lane backs
//! off. Then step 4 frees three eighths of it, unless the list is full.

use super::entry::KeyRef;
use super::sweep::{LANE_PART_OF_WINDOW, SWEPT_EVENTS_MIN};
use super::{ListedEntry, ParkedUsers, PartitionMemory, Rest};
use crate::core::Moment;
use crate::core::lanes::{LaneId, LaneView};
use crate::core::progress::UserKey;
use crate::core::slots::Standing;
use crate::core::window::Window;
use std::time::Duration;

/// How long after a look at all lanes that freed little the next one is. It bounds the time that such looks take.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A look that freed at least this many thousandths of the window has freed much: as many events must come before the next
/// one.
const FREED_MUCH_PERMILLE: usize = 60;

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
    stalled: Option<StalledWatermark>,
    /// Users that may leave the list are not looked for before this moment.
    next_leave_at: Moment,
    /// A user could not be parked because the list is full.
    is_list_full: bool,
}

/// A watermark that does not move.
#[derive(Debug, Clone, Copy)]
struct StalledWatermark {
    watermark: i64,
    since: Moment,
    /// [`Pressure::settled`] at that time.
    settled: u64,
}

impl Blocked {
    /// Whether the reader has no room for its next event, or for any event if that is not known.
    pub(super) fn stops_reading(&self, window: &Window) -> bool {
        self.read.map_or(window.room_bytes() == 0, |bytes| !window.admits(bytes))
    }

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

    /// All lanes were looked at. `freed_much`: the next look need not wait.
    pub(super) fn has_looked(&mut self, freed_much: bool, now: Moment) {
        self.next_look_at = (!freed_much).then(|| now + LOOK_INTERVAL);
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

    /// Whether [`ParkedUsers::relieve`] would look at the lanes now.
    pub fn may_relieve(&self, blocked: Blocked, window: &Window, now: Moment) -> bool {
        self.limits.may_park && self.pressure.may_look(now) && self.needs_room(blocked, window)
    }

    /// The lanes were looked at, and nothing may be parked now. The next look is after a while.
    pub fn does_not_relieve(&mut self, now: Moment) {
        self.pressure.has_looked(false, now);
    }

    /// Makes room in the window if it is needed, and returns the number of users that were parked for it. Call it only
    /// while the breaker is closed and a slot is free.
    ///
    /// `is_slow` says of a lane that is in flight, or ready and waits for a slot of slow users, whether its user is the cause
    /// of that.
    pub fn relieve(
        &mut self,
        blocked: Blocked,
        is_slow: impl Fn(&LaneView<'_>) -> bool,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) -> usize {
        self.make_room(blocked, is_slow, false, memory, now)
    }

    /// Like [`ParkedUsers::relieve`]. `newcomers`: they make room, too, because they wait for the slots of slow users.
    pub(super) fn make_room(
        &mut self,
        blocked: Blocked,
        is_slow: impl Fn(&LaneView<'_>) -> bool,
        newcomers: bool,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) -> usize {
        if !self.may_relieve(blocked, memory.window, now) {
            return 0;
        }
        let users_before = self.users.len();
        let (events_before, bytes_before) = (memory.window.events(), memory.window.bytes());
        if memory.window.is_half_full() {
            self.cut_long_lanes(&is_slow, memory, now);
            self.cut_to_failed_heads(&is_slow, memory, now);
            self.cut_to_runs(&is_slow, memory, now);
            if newcomers {
                self.move_newcomers(blocked, memory, now);
            }
        }
        if blocked.stops_reading(memory.window) {
            self.list_busy_lanes(blocked, &is_slow, memory);
        }
        self.make_cold(blocked, memory, now);
        let window = &*memory.window;
        let freed = window.permille(events_before - window.events(), bytes_before - window.bytes());
        self.pressure.has_looked(freed >= FREED_MUCH_PERMILLE, now);
        self.users.len().saturating_sub(users_before)
    }

    /// Cuts slow lanes that have more than the backlog, or more than a part of the window. The largest ones come first.
    fn cut_long_lanes(
        &mut self,
        is_slow: &impl Fn(&LaneView<'_>) -> bool,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) {
        let backlog = self.limits.user_backlog.max(1);
        let mut long: Vec<(usize, LaneId, usize)> = Vec::new();
        for id in memory.lanes.each_lane() {
            let view = memory.lanes.view(id);
            if !is_slow_lane(&view) {
                continue;
            }
            let keep = backlog.min(events_in_part(id, memory)).max(view.busy_events);
            if view.events > keep && is_own(&view, is_slow) {
                let bytes = memory.lanes.each_event(id).map(|event| event.record.window_bytes()).sum();
                long.push((memory.window.permille(view.events, bytes), id, keep));
            }
        }
        long.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id, keep) in long {
            if !memory.window.is_above_three_eighths() {
                return;
            }
            self.cut(id, keep, memory, now);
        }
    }

    /// Cuts lanes that back off, and those of slow users that wait for a slot, to their next event.
    fn cut_to_failed_heads(
        &mut self,
        is_slow: &impl Fn(&LaneView<'_>) -> bool,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) {
        let head = |id: LaneId| (memory.lanes.view(id).events > 1).then_some((id, 1));
        let backing_off = memory.lanes.each_backing_off().rev().filter_map(head);
        let waiting = memory.lanes.each_ready_of(Standing::Doubtful).filter_map(|id| {
            let view = memory.lanes.view(id);
            let keep = self.kept_while_waiting(&view)?;
            (view.events > keep && is_slow(&view)).then_some((id, keep))
        });
        let longer: Vec<(LaneId, usize)> = backing_off.chain(waiting).collect();
        for (id, keep) in longer {
            if !memory.window.is_above_three_eighths() {
                return;
            }
            self.cut(id, keep, memory, now);
        }
    }

    /// Makes room of newcomers that wait for a slot. Their lanes are cut to their next event, those that take most of the
    /// window first. If the reader still has no room, newcomers leave memory, the last one first. One that is younger than
    /// half a second may still get its slot in time.
    fn move_newcomers(&mut self, blocked: Blocked, memory: &mut PartitionMemory<'_>, now: Moment) {
        let has_waited = |id: &LaneId| memory.lanes.view(*id).events_per_s.is_some();
        let waiting: Vec<LaneId> = memory.lanes.each_ready_of(Standing::Newcomer).filter(has_waited).collect();
        let longer = waiting.iter().filter_map(|id| {
            let view = memory.lanes.view(*id);
            let keep = self.kept_while_waiting(&view)?;
            let bytes = memory.lanes.each_event(*id).map(|event| event.record.window_bytes()).sum();
            (view.events > keep).then_some((memory.window.permille(view.events, bytes), *id, keep))
        });
        let mut longer: Vec<(usize, LaneId, usize)> = longer.collect();
        longer.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id, keep) in longer {
            if !memory.window.is_above_three_eighths() {
                return;
            }
            self.cut(id, keep, memory, now);
        }
        if !blocked.stops_reading(memory.window) {
            return;
        }
        for id in waiting.into_iter().rev() {
            // Those in the list have a half of the window for themselves, and the reader does not need it.
            if memory.lanes.view(id).is_listed {
                continue;
            }
            if !memory.window.is_above_five_eighths() || !self.list(id, memory) {
                return;
            }
            self.park_cold(id, memory, now);
        }
    }

    /// How many events a lane keeps that waits for a slot. `None`: it is filled by the sweep, and too young for a pace.
    fn kept_while_waiting(&self, lane: &LaneView<'_>) -> Option<usize> {
        match self.is_filled_by_sweep(lane) {
            true => Some(events_in_a_second(lane)?.max(SWEPT_EVENTS_MIN)),
            false => Some(1),
        }
    }

    /// Cuts slow lanes that are in flight, or whose dead letter is being written, to what they need for a second.
    fn cut_to_runs(&mut self, is_slow: &impl Fn(&LaneView<'_>) -> bool, memory: &mut PartitionMemory<'_>, now: Moment) {
        if !memory.window.is_above_three_eighths() {
            return;
        }
        let busy = memory.lanes.each_lane().filter_map(|id| {
            let view = memory.lanes.view(id);
            let least = if self.is_filled_by_sweep(&view) { SWEPT_EVENTS_MIN } else { 1 };
            let keep = events_in_a_second(&view)?.max(view.busy_events).max(least);
            (view.busy_events > 0 && view.events > keep && has_slow_attempts(&view, is_slow)).then_some((id, keep))
        });
        let busy: Vec<(LaneId, usize)> = busy.collect();
        for (id, keep) in busy {
            if !memory.window.is_above_three_eighths() {
                return;
            }
            self.cut(id, keep, memory, now);
        }
    }

    /// Puts slow lanes that are in flight into the list as they are, until the reader has room in the half of the others.
    fn list_busy_lanes(
        &mut self,
        blocked: Blocked,
        is_slow: &impl Fn(&LaneView<'_>) -> bool,
        memory: &mut PartitionMemory<'_>,
    ) {
        let busy = memory.lanes.each_lane().filter(|id| {
            let view = memory.lanes.view(*id);
            !view.is_listed && view.busy_events > 0 && is_slow_lane(&view) && has_slow_attempts(&view, is_slow)
        });
        let busy: Vec<LaneId> = busy.collect();
        for id in busy {
            if !blocked.stops_reading(memory.window) || !self.list(id, memory) {
                return;
            }
        }
    }

    /// Whether the sweep fills this lane, and not the reader.
    fn is_filled_by_sweep(&self, lane: &LaneView<'_>) -> bool {
        let entry = lane.is_listed.then(|| self.users.get(&KeyRef(lane.head.record.key()))).flatten();
        entry.is_some_and(|entry| matches!(entry.rest, Rest::InLog { .. }))
    }

    /// Removes lanes that back off from memory, until the window has room and so have parked users.
    fn make_cold(&mut self, blocked: Blocked, memory: &mut PartitionMemory<'_>, now: Moment) {
        let lacks_parked_room = self.lacks_parked_room(blocked, memory.window);
        let was_nearly_full = memory.window.is_nearly_full();
        if !was_nearly_full && !lacks_parked_room && !blocked.lacks_room_to_read(memory.window) {
            return;
        }
        let backing_off: Vec<LaneId> = memory.lanes.each_backing_off().rev().collect();
        for id in backing_off {
            let window = &*memory.window;
            let is_still_full = was_nearly_full && window.is_above_five_eighths();
            let is_full = is_still_full || blocked.lacks_room_to_read(window);
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
        let is_stalled = |at: &StalledWatermark| at.watermark == watermark && may_park && watermark < self.edge;
        let begins = StalledWatermark { watermark, since: now, settled: self.pressure.settled };
        let stalled = self.pressure.stalled.filter(is_stalled).unwrap_or(begins);
        self.pressure.stalled = Some(stalled);
        let is_held_for_long =
            now >= stalled.since.saturating_add(WATERMARK_HELD_MAX) && self.pressure.settled > stalled.settled;
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

/// The events that a lane delivers in a second at its own pace. `None`: it is too young for a pace, and may be a burst that
/// is over at once.
fn events_in_a_second(lane: &LaneView<'_>) -> Option<usize> {
    lane.events_per_s.map(|pace| pace.saturating_mul(SLOW_LANE_S))
}

/// Whether a lane needs more than a second for its events.
fn is_slow_lane(lane: &LaneView<'_>) -> bool {
    events_in_a_second(lane).is_some_and(|events| lane.events > events)
}

/// Whether a slow lane is its user's own fault: it backs off, or waits for its dead letter, or else `is_slow` says so.
fn is_own(lane: &LaneView<'_>, is_slow: &impl Fn(&LaneView<'_>) -> bool) -> bool {
    let is_giving_up = lane.busy_events > 0 && lane.in_flight_since.is_none();
    lane.backs_off_until.is_some() || is_giving_up || is_slow(lane)
}

/// Like [`is_own`], but the pace of the lane alone does not count. A user below its threshold whose deliveries succeed is not
/// parked because it has more events than it gets delivered in a second: after a stop, every user may have.
fn has_slow_attempts(lane: &LaneView<'_>, is_slow: &impl Fn(&LaneView<'_>) -> bool) -> bool {
    is_own(&LaneView { events_per_s: None, ..*lane }, is_slow)
}

/// How many of the first events of a lane are within its part of the window: at least one.
fn events_in_part(id: LaneId, memory: &PartitionMemory<'_>) -> usize {
    let (events_max, bytes_max) = (memory.window.events_max(), memory.window.bytes_max());
    let mut bytes = 0_usize;
    let within = memory.lanes.each_event(id).take(events_max / LANE_PART_OF_WINDOW).take_while(|event| {
        bytes = bytes.saturating_add(event.record.window_bytes());
        bytes <= bytes_max / LANE_PART_OF_WINDOW
    });
    within.count().max(1)
}
