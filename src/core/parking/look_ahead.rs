//! Parking in an outage by answers, or while the destination is slow for every user: users that fail or are slow must not
//! hide those behind them.
//!
//! ```text
//!  window   A1 A2 B1 B2 C1 C2 … │ A3 B3 C3 … H1      A, B, C … always fail and have opened the breaker, H is healthy
//!           └── all have failed ┘            └── H would close the breaker, but reading waits for room
//! ```
//!
//! Users whose events always fail open the breaker if no other user was served yet. This happens at the first start of a
//! destination, and after a restart in the middle of their backlog. If such users fill the window, nothing ever changes:
//! reading waits for room, so no other user is found, and no try counts. A destination that is down looks the same. So the
//! owner looks ahead, within a bound.
//!
//! While the breaker is open because no user was delivered, the window is full, and the next event of *every* user in it
//! has failed, users make room. If there are many new users, it takes long until all of them have been probed. So after
//! [`HIDDEN_AFTER`] it does not matter that some have not failed yet.
//!
//! 1. Users that have failed keep only their next event, those with the most events first, until half of the window is free.
//!    After that time newcomers do so, too.
//! 2. If more than three quarters are still used, users leave memory: those that back off, and then those that have waited
//!    for a probe for the shortest time. Newcomers come last.
//!
//! The reader continues, and users of whom nothing is known are probed before those that have failed. If one of them is
//! delivered, the breaker closes. In one outage at most `users_max` users make room. Beyond that, reading waits.
//!
//! # How users come back
//!
//! A user that has left memory is not tried for [`PUT_OFF`]. Then the sweep brings its next event, if parked users have
//! room, and the user waits for a probe. It stays until it was tried. If it has failed and another user is due, it leaves
//! memory again. So many users that are due cause no more reading than there are probes. After an outage the users come
//! back as soon as they are due, which is within [`PUT_OFF`] at the latest.
//!
//! The breaker counts users that wait. It must not find that there are too few of them because some have left memory. So
//! these still count ([`Lanes::set_aside`]).
//!
//! # Slow users
//!
//! The log may begin with more than a window of events of users that are slow. As long as only these are in memory, the
//! destination looks slow for every user. So no user is parked for being slow, and reading would wait for hours. If reading
//! waits, and this has lasted for [`SLOW_AFTER`], these users make room as if each was slow alone (module `pressure`).
//! They are tried as before. If a user behind them is served quickly, they are known to be slow alone. If none is,
//! reading waits while `users_max` of them are parked.
//!
//! # New users that wait for slow ones
//!
//! More new users than slots may come at once, and all of them may be slow. They fill the window, and most of them wait for a
//! slot, so it is not known that they are slow. Users behind them that were served before would wait for all of them.
//!
//! If slow attempts keep newcomers from a slot, and reading waits, for [`SLOW_AFTER`], the users that wait for a slot keep
//! only their next event, those that take most of the window first. If each has one event, this makes no room. Then they
//! leave memory, and the sweep brings them back as parked users have room, so the other half of the window is for the
//! reader. They count towards `users_max` like the other slow users. Each quick delivery starts this count anew, because it
//! shows that the destination is not slow for every user.

use super::{Blocked, ParkedUsers, PartitionMemory};
use crate::core::Moment;
use crate::core::lanes::{LaneId, LaneView};
use crate::core::progress::UserKey;
use crate::core::window::Window;
use std::time::Duration;

#[cfg(doc)]
use crate::core::lanes::Lanes;

/// How long a user is not tried that has left memory in an outage.
pub(super) const PUT_OFF: Duration = Duration::from_secs(10);

/// How long the breaker must have been open before users make room although some in memory have not been probed yet.
pub(super) const HIDDEN_AFTER: Duration = Duration::from_secs(10);

/// How long the destination must have been slow for every user before slow users make room. So if it is slow for a few
/// seconds, none of them is parked, also after a time in which it had nothing to do.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(10);

/// How long newcomers count as waiting that were not seen to wait since: slow attempts may leave them a slot now and then.
const SEEN_LATELY: Duration = Duration::from_secs(5);

/// A time in which slow users may hide others behind a full window.
#[derive(Debug, Clone, Copy)]
pub struct SlowLookAhead {
    /// Users make room 10 s after this moment.
    pub since: Moment,
    /// When a user was last served quickly. The users that make room are counted from then on.
    pub counted_since: Moment,
    /// At most so many users make room.
    pub users_max: usize,
    /// Newcomers wait for the slots of slow users, and make room, too.
    pub newcomers: bool,
}

/// The users that have made room in the present outage, or in the last one, and in such a slow time. Each of the two
/// counts its own, because a destination may be slow after an outage.
#[derive(Debug, Default)]
pub(super) struct LookAhead {
    outage: MadeRoom,
    /// Only users that are still in the list. A slow time may last for days, and in it users leave the list and enter
    /// it again.
    slow: MadeRoom,
    /// While slow users make room: at most so many.
    slow_users_max: Option<usize>,
    newcomers_wait: Option<NewcomersWait>,
}

/// A time in which newcomers wait because of slow attempts, and reading waits.
#[derive(Debug, Clone, Copy)]
struct NewcomersWait {
    since: Moment,
    last_seen_at: Moment,
}

/// How many users have made room.
#[derive(Debug, Default)]
struct MadeRoom {
    /// When the breaker opened, or when a user was last served quickly.
    since: Option<Moment>,
    users: usize,
}

impl MadeRoom {
    /// How many of `users_max` users may still make room that are counted `since` then.
    fn left(&self, since: Moment, users_max: usize) -> usize {
        if self.is_over(since) { users_max } else { users_max.saturating_sub(self.users) }
    }

    /// Counts anew, if this moment is later than the known one.
    fn renew(&mut self, since: Moment) {
        if self.is_over(since) {
            (self.since, self.users) = (Some(since), 0);
        }
    }

    fn is_over(&self, since: Moment) -> bool {
        self.since.is_none_or(|known| known < since)
    }
}

impl LookAhead {
    /// Whether slow users make room, and no more of them may be parked.
    pub(super) fn is_used_up(&self) -> bool {
        self.slow_users_max.is_some_and(|users_max| self.slow.users >= users_max)
    }

    /// Counts a user that was parked, if slow users make room. Returns since when these are counted.
    pub(super) fn count_listed(&mut self) -> Option<Moment> {
        self.slow_users_max?;
        self.slow.users += 1;
        self.slow.since
    }

    /// A user has left the list that is counted since this moment.
    pub(super) fn count_unlisted(&mut self, counted_since: Option<Moment>) {
        if counted_since.is_some() && counted_since == self.slow.since {
            self.slow.users -= 1;
        }
    }
}

impl ParkedUsers {
    /// Makes room in the window if it hides users behind it, and returns the number of users that were parked for it. Call
    /// it only while the breaker is open because no user was delivered. It has been open since `outage_since`, and in this
    /// outage at most `users_max` users make room.
    pub fn look_ahead(
        &mut self,
        (outage_since, users_max): (Moment, usize),
        blocked: Blocked,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) -> usize {
        self.look_ahead.outage.renew(outage_since);
        if !self.limits.may_park {
            return 0;
        }
        let users_before = self.users.len();
        let is_full = blocked.read.is_some() || memory.window.room_bytes() == 0;
        let may_make_room = self.look_ahead.outage.users < users_max && self.pressure.may_look(now);
        let is_long = now >= outage_since.saturating_add(HIDDEN_AFTER);
        if is_full && may_make_room && (is_long || memory.lanes.all_have_failed()) {
            let events_before = memory.window.events();
            self.make_room_for_reader(users_max, is_long, blocked, memory, now);
            self.pressure.has_looked(memory.window.events() < events_before, now);
        }
        self.make_room_for_sweep(blocked, memory, now);
        self.users.len().saturating_sub(users_before)
    }

    /// Notes that newcomers wait because of slow attempts. Returns since when, if reading waits meanwhile.
    pub fn newcomers_wait_since(&mut self, blocked: Blocked, window: &Window, now: Moment) -> Option<Moment> {
        if !blocked.stops_reading(window) {
            return None;
        }
        let known = self.look_ahead.newcomers_wait;
        let present = known.filter(|wait| now < wait.last_seen_at.saturating_add(SEEN_LATELY));
        let since = present.map_or(now, |wait| wait.since);
        self.look_ahead.newcomers_wait = Some(NewcomersWait { since, last_seen_at: now });
        Some(since)
    }

    /// Whether [`ParkedUsers::look_ahead_of_slow`] may park a user now.
    pub fn may_look_ahead_of_slow(&self, slow: SlowLookAhead, blocked: Blocked, window: &Window, now: Moment) -> bool {
        let is_due = now >= slow.since.saturating_add(SLOW_AFTER);
        is_due && blocked.stops_reading(window) && self.look_ahead.slow.left(slow.counted_since, slow.users_max) > 0
    }

    /// Like [`ParkedUsers::relieve`], in a time in which slow users may hide others. At most so many users are parked for
    /// this at a time.
    pub fn look_ahead_of_slow(
        &mut self,
        slow: SlowLookAhead,
        blocked: Blocked,
        is_slow: impl Fn(&LaneView<'_>) -> bool,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) -> usize {
        self.look_ahead.slow.renew(slow.counted_since);
        self.look_ahead.slow_users_max = Some(slow.users_max);
        let parked = self.make_room(blocked, is_slow, slow.newcomers, memory, now);
        self.look_ahead.slow_users_max = None;
        parked
    }

    fn make_room_for_reader(
        &mut self,
        users_max: usize,
        is_long: bool,
        blocked: Blocked,
        memory: &mut PartitionMemory<'_>,
        now: Moment,
    ) {
        // Not users that were served: the events of parked users wait for room that those before them have.
        let newcomers: Vec<LaneId> = memory.lanes.each_unprobed_newcomer().rev().take_while(|_| is_long).collect();
        let events = |id: &LaneId| (memory.lanes.view(*id).events, *id);
        let idle = memory.lanes.idle_failed();
        let longer = idle.iter().chain(&newcomers).map(events).filter(|(events, _)| *events > 1);
        let mut longer: Vec<(usize, LaneId)> = longer.collect();
        longer.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id) in longer {
            if !memory.window.is_half_full() || self.look_ahead.outage.users >= users_max || !self.list(id, memory) {
                break;
            }
            self.cut(id, 1, memory, now);
            self.look_ahead.outage.users += 1;
        }
        // Those in the list have a half of the window for themselves, and the reader does not need it.
        let newcomers = newcomers.into_iter().filter(|id| !memory.lanes.view(*id).is_listed);
        let newcomers: Vec<LaneId> = newcomers.collect();
        for id in memory.lanes.idle_failed().into_iter().chain(newcomers) {
            let is_full = memory.window.is_nearly_full() || blocked.lacks_room_to_read(memory.window);
            if !is_full || self.look_ahead.outage.users >= users_max || !self.list(id, memory) {
                break;
            }
            self.put_off(id, memory, now);
            self.look_ahead.outage.users += 1;
        }
    }

    /// Parked users that were tried leave memory if another one wants events. They are in the list already.
    fn make_room_for_sweep(&mut self, blocked: Blocked, memory: &mut PartitionMemory<'_>, now: Moment) {
        let lacks_room = |parked: &Self, window: &Window| {
            parked.lacks_parked_room(blocked, window) && blocked.lacks_parked_room(window)
        };
        if !lacks_room(self, memory.window) {
            return;
        }
        let is_listed = |id: &LaneId| memory.lanes.view(*id).is_listed;
        let tried: Vec<LaneId> = memory.lanes.each_backing_off().rev().filter(is_listed).collect();
        for id in tried {
            self.put_off(id, memory, now);
            if !lacks_room(self, memory.window) {
                return;
            }
        }
    }

    /// Removes the idle lane of a listed user from memory. The sweep brings it back later.
    fn put_off(&mut self, id: LaneId, memory: &mut PartitionMemory<'_>, now: Moment) {
        let key: UserKey = memory.lanes.view(id).head.record.key().map(Into::into);
        memory.lanes.set_aside(id);
        self.leave_memory(id, memory);
        if let Some(failure) = self.users.get_mut(&key).and_then(|entry| entry.failure.as_mut()) {
            failure.next_try = failure.next_try.max(now.saturating_add(PUT_OFF));
        }
        self.review(&key, memory, now);
    }
}
