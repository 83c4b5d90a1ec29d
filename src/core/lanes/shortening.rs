//! Lanes seen and changed from outside their order of delivery: parking shortens a lane, removes it from memory, and
//! brings it back.
//!
//! ```text
//!  cut:     head │ rest ……… tail     ──▶  head │ rest            the tail is left in the log
//!  remove:  head │ rest, backing off ──▶  (no lane)              the caller keeps the failure history
//!  admit_failed: (no lane)           ──▶  head, backing off      with its failure history
//! ```

use super::{Lane, LaneState, Lanes, Token, lane_at, lane_at_mut, lane_of};
use crate::core::Moment;
use crate::core::breaker::ProbeRank;
use crate::core::event::Event;
use crate::core::progress::UserKey;
use crate::core::slots::Standing;
use crate::core::tries::FailureHistory;
use crate::limits::LOOK_AHEAD_USERS_MAX;

/// Names a lane as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId(pub(super) u32);

/// What a lane shows of itself.
#[derive(Debug, Clone, Copy)]
pub struct LaneView<'a> {
    pub head: &'a Event,
    pub events: usize,
    /// What the head went through, if it has failed.
    pub history: Option<&'a FailureHistory>,
    /// The end of its backoff, if it backs off.
    pub backs_off_until: Option<Moment>,
    /// Events at its beginning that must stay: its run is in flight, or the dead letter of its head is being written.
    pub busy_events: usize,
    /// Events that were delivered a second. `None`: the lane is too young for that.
    pub events_per_s: Option<usize>,
    pub is_listed: bool,
    /// The user as [`Started::user`](super::Started::user) names it.
    pub user: u64,
    /// When its run was handed out that is in flight.
    pub in_flight_since: Option<Moment>,
}

/// A lane that was removed from memory.
#[derive(Debug)]
pub struct RemovedLane {
    /// Its events, in their order.
    pub events: Vec<Event>,
    pub history: Option<Box<FailureHistory>>,
    /// The end of its backoff. Now, if it did not back off.
    pub next_try: Moment,
    /// When the user is shown as stuck next, if its head has failed.
    pub stuck_at: Option<Moment>,
}

impl Lanes {
    /// The lane of a user.
    pub fn find(&self, user: Option<&[u8]>) -> Option<LaneId> {
        let hash = self.user(user);
        let is_of_user = |index: &u32| lane_at(&self.lanes, *index).head.record.key() == user;
        self.by_user.find(hash, is_of_user).copied().map(LaneId)
    }

    pub fn view(&self, id: LaneId) -> LaneView<'_> {
        let lane = lane_at(&self.lanes, id.0);
        LaneView {
            head: &lane.head,
            events: lane.rest.len() + 1,
            history: lane.history.as_deref(),
            backs_off_until: match lane.state {
                LaneState::BackingOff { until } => Some(until),
                LaneState::Ready | LaneState::InFlight { .. } | LaneState::GivingUp => None,
            },
            busy_events: match lane.state {
                LaneState::InFlight { run, .. } => run as usize,
                LaneState::GivingUp => 1,
                LaneState::Ready | LaneState::BackingOff { .. } => 0,
            },
            events_per_s: lane.pace.events_per_s(self.now),
            is_listed: lane.is_listed,
            user: lane.user,
            in_flight_since: match lane.state {
                LaneState::InFlight { began, .. } => Some(began),
                LaneState::Ready | LaneState::BackingOff { .. } | LaneState::GivingUp => None,
            },
        }
    }

    /// When a user is shown as stuck next.
    pub fn next_stuck_at(&self) -> Option<Moment> {
        self.stuck.first().map(|(at, _)| *at)
    }

    /// All lanes, in an order that depends only on the calls before.
    pub fn each_lane(&self) -> impl Iterator<Item = LaneId> {
        (0u32..).zip(&self.lanes).filter(|(_, lane)| lane.is_some()).map(|(index, _)| LaneId(index))
    }

    /// The lanes that back off, by the end of their backoff.
    pub fn each_backing_off(&self) -> impl DoubleEndedIterator<Item = LaneId> {
        self.timers.iter().map(|(_, index)| LaneId(*index))
    }

    /// Whether the head of every lane has failed.
    pub fn all_have_failed(&self) -> bool {
        self.stuck.len() == self.by_user.len()
    }

    /// The lanes whose head has failed and of which nothing is in use: those that back off, the farthest next try first, and
    /// then those that are ready, the one first that became ready last.
    pub fn idle_failed(&self) -> Vec<LaneId> {
        let ready = |id: LaneId| {
            let lane = lane_at(&self.lanes, id.0);
            (lane.state == LaneState::Ready).then_some((lane.ready_number, id))
        };
        let mut ready: Vec<(u64, LaneId)> = self.each_failed().filter_map(ready).collect();
        ready.sort_unstable_by(|a, b| b.cmp(a));
        self.each_backing_off().rev().chain(ready.into_iter().map(|(_, id)| id)).collect()
    }

    /// The ready lanes that an open breaker probes as newcomers, the one that became ready first comes first.
    pub fn each_unprobed_newcomer(&self) -> impl DoubleEndedIterator<Item = LaneId> {
        self.probe_order.each_of(ProbeRank::Newcomer).map(LaneId)
    }

    /// Lets the user of this lane count as one that waits, although its lane leaves memory. It counts until the user has a
    /// lane again, [does not wait](Lanes::does_not_wait), or [`Lanes::forget_set_aside`].
    pub fn set_aside(&mut self, id: LaneId) {
        if self.set_aside.len() < LOOK_AHEAD_USERS_MAX {
            self.set_aside.insert(lane_at(&self.lanes, id.0).user);
        }
    }

    /// Reports that a user without a lane has no unsettled event, or is held. So it does not count as one that waits.
    pub fn does_not_wait(&mut self, user: Option<&[u8]>) {
        if !self.set_aside.is_empty() {
            let user = self.user(user);
            self.set_aside.remove(&user);
        }
    }

    /// Lets only the users count that have a lane.
    pub fn forget_set_aside(&mut self) {
        self.set_aside.clear();
    }

    /// The ready lanes of this standing, the one that has been ready longest first.
    pub fn each_ready_of(&self, standing: Standing) -> impl DoubleEndedIterator<Item = LaneId> {
        self.ready.each_of(standing).map(LaneId)
    }

    /// The lanes whose head has failed.
    pub fn each_failed(&self) -> impl Iterator<Item = LaneId> {
        self.stuck.iter().map(|(_, index)| LaneId(*index))
    }

    /// The events of a lane, in their order.
    pub fn each_event(&self, id: LaneId) -> impl Iterator<Item = &Event> {
        let lane = lane_at(&self.lanes, id.0);
        std::iter::once(&lane.head).chain(&lane.rest)
    }

    /// Says whether the user of this lane is in the list of parked users. If so, [`Lanes::take_changed`] names it after
    /// each of its runs.
    pub fn set_listed(&mut self, id: LaneId, is_listed: bool) {
        lane_at_mut(&mut self.lanes, id.0).is_listed = is_listed;
    }

    /// The listed users whose run has ended, or whose head was given up, since the last call.
    pub fn take_changed(&mut self) -> Vec<UserKey> {
        std::mem::take(&mut self.changed)
    }

    /// Removes the events after the first `keep`, and shows each to `removed`, the last one first.
    ///
    /// # Panics
    /// If an event would be removed that is in flight, or the head.
    pub fn cut(&mut self, id: LaneId, keep: usize, mut removed: impl FnMut(&Event)) {
        let busy = self.view(id).busy_events;
        assert!(keep >= busy.max(1), "order of a lane: cut to {keep} events, {busy} are in use");
        let lane = lane_at_mut(&mut self.lanes, id.0);
        while lane.rest.len() + 1 > keep {
            removed(&lane.rest.pop_back().expect("it has more than the head"));
            self.events -= 1;
        }
        lane.rest.shrink_to(keep);
    }

    /// Removes a lane of which nothing is in use.
    ///
    /// # Panics
    /// If a run is in flight, or a dead letter is being written.
    pub fn remove_idle(&mut self, id: LaneId) -> RemovedLane {
        let index = id.0;
        let next_try = match lane_at(&self.lanes, index).state {
            LaneState::BackingOff { until } => {
                self.timers.remove(&(until, index));
                until
            }
            LaneState::Ready => {
                self.remove_ready(index);
                self.now
            }
            busy @ (LaneState::InFlight { .. } | LaneState::GivingUp) => {
                panic!("order of a lane: removed while {busy:?}")
            }
        };
        self.removed(index, next_try)
    }

    fn removed(&mut self, index: u32, next_try: Moment) -> RemovedLane {
        let Lane { head, rest, history, stuck_at, .. } = self.remove(index);
        if let Some(at) = stuck_at {
            self.stuck.remove(&(at, index));
        }
        self.events -= rest.len() + 1;
        RemovedLane { events: std::iter::once(head).chain(rest).collect(), history, next_try, stuck_at }
    }

    /// Adds the first event of a user, which has failed before, is not tried before `next_try`, and is shown as stuck at
    /// `stuck_at`.
    ///
    /// # Panics
    /// If the user has a lane.
    pub fn admit_failed(
        &mut self,
        event: Event,
        history: Box<FailureHistory>,
        next_try: Moment,
        stuck_at: Moment,
    ) -> LaneId {
        assert!(self.find(event.record.key()).is_none(), "order of a lane: an earlier event is in memory");
        let LaneId(index) = self.admit(event);
        let lane = lane_at_mut(&mut self.lanes, index);
        (lane.history, lane.stuck_at) = (Some(history), Some(stuck_at));
        self.stuck.insert((stuck_at, index));
        // If its next try is due, it is ready, and must not leave memory again before it was tried.
        if next_try > self.now {
            self.ready.remove(lane.ready_number);
            lane.state = LaneState::BackingOff { until: next_try };
            self.timers.insert((next_try, index));
        }
        LaneId(index)
    }

    /// Ends the backoff of a lane. It is tried when its turn comes.
    pub fn end_backoff(&mut self, id: LaneId) {
        if let LaneState::BackingOff { until } = lane_at(&self.lanes, id.0).state {
            self.timers.remove(&(until, id.0));
            self.make_ready(id.0);
        }
    }

    /// Lets a lane back off until this moment whose head has no further try and does not become a dead letter.
    ///
    /// # Panics
    /// If the head of this lane is not being given up.
    pub fn back_off(&mut self, token: Token, until: Moment) -> LaneId {
        let lane = lane_of(&mut self.lanes, token);
        assert_eq!(lane.state, LaneState::GivingUp, "this lane is not giving up an event");
        lane.state = LaneState::BackingOff { until };
        self.timers.insert((until, token.index));
        LaneId(token.index)
    }

    /// Begins to give up the head of a lane that is not in use: its dead letter is to be written. `None`: it is in use.
    pub fn give_up_head(&mut self, id: LaneId) -> Option<Token> {
        let index = id.0;
        match lane_at(&self.lanes, index).state {
            LaneState::BackingOff { until } => _ = self.timers.remove(&(until, index)),
            LaneState::Ready => self.remove_ready(index),
            LaneState::InFlight { .. } | LaneState::GivingUp => return None,
        }
        self.last_generation += 1;
        let lane = lane_at_mut(&mut self.lanes, index);
        (lane.state, lane.generation) = (LaneState::GivingUp, self.last_generation);
        // A head that was never tried gets an empty history, which its dead letter shows. It is not stuck.
        lane.history.get_or_insert_default();
        Some(Token { index, generation: self.last_generation })
    }
}
