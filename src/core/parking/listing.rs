//! How a user enters the list and leaves it, and how its lane enters memory and leaves it.

use super::entry::{FailureAccount, KeyRef, ListedEntry, Rest};
use super::sweep::Want;
use super::{ParkedUsers, PartitionMemory};
use crate::core::Moment;
use crate::core::event::Event;
use crate::core::lanes::{LaneId, LaneView, RemovedLane};
use crate::core::progress::UserKey;
use crate::core::window::Window;

impl ParkedUsers {
    /// Brings everything about a listed user up to date: whether its lane stays in memory, whether it leaves the list, and
    /// what it wants from the sweep.
    pub(super) fn review(&mut self, key: &UserKey, memory: &mut PartitionMemory<'_>, now: Moment) {
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
            if lane.is_some() {
                self.maybe_give_up.insert(key.clone());
            }
            let rest_from = match entry.rest {
                Rest::AfterEdge => self.edge,
                Rest::InLog { next, .. } => next,
            };
            if entry.first >= below || (lane.is_none() && rest_from >= below) {
                entry.give_up_below = None;
                self.giving_up.remove(key);
                self.maybe_give_up.remove(key);
                self.has_changes = true;
                // What was admitted to be given up is gone, and a held user has nothing else in memory.
                return self.review(key, memory, now);
            }
        }
        // Other users may have room only because the events of this lane count as those of a parked user.
        let is_in_use = |id| memory.lanes.view(id).busy_events > 0;
        let must_stay = memory.window.is_nearly_full() && lane.is_some_and(is_in_use);
        let may_leave = !must_stay
            && entry.rest == Rest::AfterEdge
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

    pub(super) fn set_want(&mut self, key: &UserKey, lane: Option<LaneView<'_>>, window: &Window, now: Moment) {
        let Some(entry) = self.users.get_mut(key) else { return };
        let backlog = self.limits.user_backlog.max(self.run_events_max);
        let want = entry.wants(lane, backlog, window, now);
        self.sweep.change_want(key, entry, want);
    }

    /// Puts the user of this lane into the list, as it is: all of its events are in memory. `false`: the list is full, or
    /// this partition parks no user, or no more of them while it looks ahead.
    pub(super) fn list(&mut self, id: LaneId, memory: &mut PartitionMemory<'_>) -> bool {
        let PartitionMemory { lanes, window, progress } = memory;
        let view = lanes.view(id);
        if view.is_listed {
            return true;
        }
        if !self.limits.may_park || self.look_ahead.is_used_up() {
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
        entry.counted_since = self.look_ahead.count_listed();
        lanes.set_listed(id, true);
        self.users.insert(key, entry);
        self.has_changes = true;
        true
    }

    /// Takes a user off the list. The events in its lane are unsettled again in the progress.
    pub(super) fn unlist(&mut self, key: &UserKey, lane: Option<LaneId>, memory: &mut PartitionMemory<'_>) {
        let Some(entry) = self.users.get_mut(key) else { return };
        self.sweep.change_want(key, entry, Want::Nothing);
        self.look_ahead.count_unlisted(entry.counted_since);
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
    pub(super) fn leave_memory(&mut self, id: LaneId, memory: &mut PartitionMemory<'_>) {
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
    pub(super) fn admit_listed(&mut self, event: Event, memory: &mut PartitionMemory<'_>) {
        let bytes = event.record.window_bytes();
        memory.window.add(bytes);
        memory.window.add_parked(bytes);
        memory.progress.settle(event.offset..event.offset + 1);
        let key = KeyRef(event.record.key());
        if let Some((key, entry)) = self.users.get_key_value(&key)
            && entry.gives_up(event.offset)
        {
            self.maybe_give_up.insert(key.clone());
        }
        let failure = self.users.get_mut(&key).and_then(|entry| {
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
