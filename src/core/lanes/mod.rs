//! One FIFO a user: which user may be attempted next, and never two attempts of one user at once.
//!
//! ```text
//!             admit            next                    settle: all delivered, more events wait
//!  (no lane) ────────▶ Ready ─────────▶ InFlight ─────────────────────────▶ Ready …, or no lane: it was the last event
//!                       ▲                 │ settle: the first event that was not delivered is judged
//!                       ├─────────────────┤ settle_without_verdict
//!                       │                 ├── Retry{at} ──▶ BackingOff ── wake(now) ──▶ Ready
//!                       └── given_up ── GivingUp ◀── GiveUp (the dead letter of the head is being written)
//! ```
//!
//! A lane exists only while its user has unsettled events, so idle users cost nothing. An event takes constant time, whatever
//! the number of users. A run, a timer, and the removal of a lane take O(log n). The user of a lane is read from its head
//! event, so no copy of it is kept.
//!
//! If an attempt says nothing about the head ([`Verdict::says_nothing`]), the lane is ready again at once, and the head has
//! no failure more. After a batch that failed as a whole, the next runs are shorter (module `run_length`).
//!
//! A call that would break the order of a lane panics, in release builds too. The owner of the partition then stops with
//! that message, which is better than delivering out of order.

mod after_dead_letter;
mod pace;
mod probe_order;
mod ready;
mod run_length;
mod shortening;

pub use self::shortening::{LaneId, LaneView, RemovedLane};

use self::after_dead_letter::UsersAfterDeadLetter;
use self::pace::LanePace;
use self::probe_order::ProbeOrder;
use self::ready::ReadyLanes;
use self::run_length::{LaneRuns, LengthLimit, RunEnd};
use super::Moment;
use super::breaker::{ProbeRank, ProbeRanks, Recovery};
use super::event::Event;
use super::progress::UserKey;
use super::slots::Standing;
use super::tries::{Decision, FailureHistory};
#[cfg(doc)]
use super::verdict::Verdict;
use crate::limits::LOG_REMINDER_INTERVAL;
use hashbrown::HashTable;
use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// A lane whose queue has room for more events than this gives most of that memory back when it has drained. Below it
/// the memory is not worth another allocation.
const QUEUE_CAPACITY_KEPT: usize = 64;

/// All lanes of one partition.
#[derive(Debug)]
pub struct Lanes {
    /// Finds the index of a lane by its user.
    by_user: HashTable<u32>,
    /// Users are named by a hash with this seed.
    seed: u64,
    /// The lanes, and holes where lanes have ended.
    lanes: Vec<Option<Lane>>,
    /// The holes in `lanes`, to be used again.
    free: Vec<u32>,
    /// The lanes in the state Ready, each once, here or in `probe_order`. A lane that has more events after a run goes to
    /// the end, so users take turns.
    ready: ReadyLanes,
    /// The lanes that were ready when a probe was handed out last. They became ready before those in `ready`.
    probe_order: ProbeOrder,
    /// How often a lane became ready.
    ready_count: u64,
    /// Every lane in the state BackingOff, once, by the end of its backoff.
    timers: BTreeSet<(Moment, u32)>,
    /// Every lane whose head has failed, once, by the time when it is shown as stuck next.
    stuck: BTreeSet<(Moment, u32)>,
    events: usize,
    in_flight_events: usize,
    last_generation: u64,
    after_dead_letter: UsersAfterDeadLetter,
    length_limit: LengthLimit,
    /// The time of the last [`Lanes::wake`]. The pace of a lane and the age of its run are measured by it.
    now: Moment,
    /// Listed users whose run has ended since [`Lanes::take_changed`].
    changed: Vec<UserKey>,
    /// Users whose lane has left memory in an outage, and that still count as waiting. At most `LOOK_AHEAD_USERS_MAX`.
    set_aside: BTreeSet<u64>,
}

/// Names one run that was handed out. To use it twice, or after the lane has moved on, is a panic.
///
/// The index of a lane is used again by another user's lane when the first has ended. The generation tells them apart:
/// without it a late report would settle events of another user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    index: u32,
    generation: u64,
}

/// A run that [`Lanes::next`] handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub token: Token,
    /// The place of its events in the list that they were appended to.
    pub events: Range<usize>,
    /// The number of attempts of the first event, this one included: 1 at first.
    pub attempt: u32,
    /// An earlier event of this user was given up, and none was delivered since.
    pub after_dead_letter: bool,
    /// A hash of the user: equal for equal users in all lanes with one seed.
    pub user: u64,
}

#[derive(Debug)]
struct Lane {
    state: LaneState,
    /// The oldest unsettled event of the user. It is apart from the others, so that a lane with one event needs no queue.
    head: Event,
    rest: VecDeque<Event>,
    /// What the head went through, if it has failed.
    history: Option<Box<FailureHistory>>,
    /// The moment under which the lane is in `stuck`.
    stuck_at: Option<Moment>,
    generation: u64,
    user: u64,
    pace: LanePace,
    /// How long its runs are after a batch of it has failed.
    runs: Option<Box<LaneRuns>>,
    /// The user is in the list of parked users.
    is_listed: bool,
    /// The number of the time at which it became ready last: a place in the order of all ready lanes.
    ready_number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneState {
    Ready,
    /// A run of so many events was handed out at `began`.
    InFlight {
        run: u32,
        began: Moment,
    },
    BackingOff {
        until: Moment,
    },
    GivingUp,
}

impl Lanes {
    /// Lanes that remember for `after_dead_letter_max` users that an event of theirs was given up.
    ///
    /// `seed` decides how users are named ([`Started::user`]). A sender of events must not know it, because users with
    /// equal hashes are slow to look up. Lanes that continue those of a partition need their seed, because the
    /// breaker knows the users by these names.
    pub fn new(after_dead_letter_max: usize, seed: u64) -> Self {
        Self {
            by_user: HashTable::new(),
            seed,
            lanes: Vec::new(),
            free: Vec::new(),
            ready: ReadyLanes::default(),
            probe_order: ProbeOrder::default(),
            ready_count: 0,
            timers: BTreeSet::new(),
            stuck: BTreeSet::new(),
            events: 0,
            in_flight_events: 0,
            last_generation: 0,
            after_dead_letter: UsersAfterDeadLetter::new(after_dead_letter_max),
            length_limit: LengthLimit::default(),
            now: Moment::ZERO,
            changed: Vec::new(),
            set_aside: BTreeSet::new(),
        }
    }

    /// Changes for how many users is remembered that an event of theirs was given up.
    pub fn set_after_dead_letter_max(&mut self, users_max: usize) {
        self.after_dead_letter.set_users_max(users_max);
    }

    /// Adds an event to the end of its user's lane, which is returned.
    ///
    /// # Panics
    /// If the lane has an event with the same or a higher offset.
    pub fn admit(&mut self, event: Event) -> LaneId {
        let user = self.user(event.record.key());
        let Self { by_user, lanes, .. } = self;
        self.events += 1;
        let found = by_user.find(user, |index| lane_at(lanes, *index).head.record.key() == event.record.key());
        if let Some(&index) = found {
            let lane = lane_at_mut(lanes, index);
            let last = lane.rest.back().map_or(lane.head.offset, |last| last.offset);
            assert!(event.offset > last, "order of a lane: offset {} admitted after {last}", event.offset);
            lane.rest.push_back(event);
            return LaneId(index);
        }
        if !self.set_aside.is_empty() {
            self.set_aside.remove(&user);
        }
        self.last_generation += 1;
        let lane = Lane {
            state: LaneState::Ready,
            head: event,
            rest: VecDeque::new(),
            history: None,
            stuck_at: None,
            generation: self.last_generation,
            user,
            pace: LanePace::from(self.now),
            runs: None,
            is_listed: false,
            ready_number: 0,
        };
        let index = match self.free.pop() {
            Some(index) => {
                lanes[index as usize] = Some(lane);
                index
            }
            None => {
                lanes.push(Some(lane));
                u32::try_from(lanes.len() - 1).expect("fewer than 4 billion lanes: the window is far smaller")
            }
        };
        by_user.insert_unique(user, index, |index| lane_at(lanes, *index).user);
        self.make_ready(index);
        LaneId(index)
    }

    /// The name of a user in [`Started::user`], whether it has a lane or not.
    pub fn user(&self, key: Option<&[u8]>) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        key.hash(&mut hasher);
        hasher.finish()
    }

    /// Hands out a run of the lane that has been ready longest, and appends its events to `out`. A run has at most
    /// `events_max` events and `bytes_max` bytes, unless its first event alone is larger. `None`: no lane is ready.
    pub fn next(&mut self, events_max: usize, bytes_max: usize, out: &mut Vec<Event>) -> Option<Started> {
        self.end_probing();
        let index = self.ready.pop()?;
        Some(self.start(index, events_max, bytes_max, out))
    }

    /// Like [`Lanes::next`], for the lanes of this standing only. Lanes have one after [`Lanes::sort_ready`].
    pub fn next_of(
        &mut self,
        standing: Standing,
        events_max: usize,
        bytes_max: usize,
        out: &mut Vec<Event>,
    ) -> Option<Started> {
        let index = self.ready.pop_of(standing)?;
        Some(self.start(index, events_max, bytes_max, out))
    }

    /// Asks for the standing of the user of each ready lane that has none yet, at most `lanes_max` of them. A lane keeps
    /// its standing until it is attempted. Returns whether all ready lanes have one now.
    pub fn sort_ready(&mut self, lanes_max: usize, mut standing: impl FnMut(u64) -> Standing) -> bool {
        self.end_probing();
        let Self { ready, lanes, .. } = self;
        for _ in 0..lanes_max {
            if ready.sort_one(|index| standing(lane_at(lanes, index).user)).is_none() {
                break;
            }
        }
        !ready.has_unsorted()
    }

    /// The standings of the ready lanes that have one. The standing of the lane that has been ready longest comes first.
    pub fn ready_standings(&self) -> impl Iterator<Item = Standing> + use<> {
        let mut first = Standing::ALL.map(|standing| self.ready.first_number_of(standing));
        std::iter::from_fn(move || {
            let ready = Standing::ALL.into_iter().filter(|standing| first[*standing as usize].is_some());
            let standing = ready.min_by_key(|standing| first[*standing as usize])?;
            first[standing as usize] = None;
            Some(standing)
        })
    }

    /// Hands out a single event as a probe of an open breaker: of the ready lane whose user has the first `rank` among
    /// `ranks`. Among lanes of one rank it is the one that has been ready longest. The other lanes stay ready.
    pub fn next_probe(
        &mut self,
        ranks: ProbeRanks,
        rank: impl Fn(u64) -> ProbeRank,
        out: &mut Vec<Event>,
    ) -> Option<Started> {
        for (number, index) in self.ready.take_all() {
            self.probe_order.add(rank(lane_at(&self.lanes, index).user), number, index);
        }
        let index = loop {
            let (earlier, index) = self.probe_order.pop(ranks)?;
            // The breaker may have closed and opened again since the lane was ranked. The user may be suspect since
            // then.
            let lane = lane_at(&self.lanes, index);
            let rank = rank(lane.user);
            if rank == earlier {
                break index;
            }
            self.probe_order.add(rank, lane.ready_number, index);
        };
        // One event: if the destination is still out, no more than one event goes through a failed attempt.
        Some(self.start(index, 1, 0, out))
    }

    /// Puts the ready lanes back into the order in which they became ready.
    fn end_probing(&mut self) {
        if !self.probe_order.is_empty() {
            self.ready.add_all(self.probe_order.take_all());
        }
    }

    /// Removes a lane from those that are ready.
    fn remove_ready(&mut self, index: u32) {
        let number = lane_at(&self.lanes, index).ready_number;
        self.ready.remove(number);
        self.probe_order.remove(number);
    }

    fn make_ready(&mut self, index: u32) {
        self.ready_count += 1;
        let lane = lane_at_mut(&mut self.lanes, index);
        (lane.state, lane.ready_number) = (LaneState::Ready, self.ready_count);
        self.ready.add(self.ready_count, index);
    }

    fn start(&mut self, index: u32, events_max: usize, bytes_max: usize, out: &mut Vec<Event>) -> Started {
        let lane = lane_at_mut(&mut self.lanes, index);
        assert_eq!(lane.state, LaneState::Ready, "order of a lane: one attempt at a time");
        let first = out.len();
        let mut bytes = lane.head.record.size_bytes();
        out.push(lane.head.clone());
        // An event that has failed goes alone. Its verdict is then about this event only, and if it fails again, no later
        // event was sent with it in vain.
        if lane.history.is_none() {
            let events_max = events_max.min(self.length_limit.events_max());
            let events_max = lane.runs.as_ref().map_or(events_max, |runs| events_max.min(runs.events_max()));
            for event in lane.rest.iter().take(events_max.saturating_sub(1)) {
                bytes += event.record.size_bytes();
                if bytes > bytes_max {
                    break;
                }
                out.push(event.clone());
            }
        }
        let run = out.len() - first;
        self.last_generation += 1;
        lane.generation = self.last_generation;
        lane.state = LaneState::InFlight { run: u32::try_from(run).expect("a run is short"), began: self.now };
        self.in_flight_events += run;
        self.length_limit.begun(run, self.last_generation);
        Started {
            token: Token { index, generation: lane.generation },
            events: first..out.len(),
            attempt: lane.history.as_ref().map_or(1, |history| history.failures.saturating_add(1)),
            after_dead_letter: self.after_dead_letter.contains(lane.head.record.key()),
            user: lane.user,
        }
    }

    /// Settles the first `delivered` events of a run, and shows each of them to `settled`. If that is not the whole run,
    /// `judge` decides about the next event, and the decision is returned. The events after it are not touched: they
    /// were not attempted.
    ///
    /// # Panics
    /// If the run is not in flight, or is shorter than `delivered`.
    pub fn settle(
        &mut self,
        token: Token,
        delivered: usize,
        settled: impl FnMut(&Event),
        judge: impl FnOnce(&Event, &mut FailureHistory) -> Decision,
    ) -> Option<Decision> {
        let index = token.index;
        let is_whole = delivered == self.run_in_flight(token);
        let end = if is_whole { RunEnd::Delivered } else { RunEnd::Other };
        if !self.settle_delivered(token, delivered, end, settled) {
            return None;
        }
        if is_whole {
            self.make_ready(index);
            return None;
        }
        let lane = lane_at_mut(&mut self.lanes, index);
        if let Some(runs) = &mut lane.runs {
            runs.head_failed();
        }
        let history = lane.history.get_or_insert_default();
        let decision = judge(&lane.head, history);
        if lane.stuck_at.is_none() {
            let at = history.stuck_from();
            lane.stuck_at = Some(at);
            self.stuck.insert((at, index));
        }
        match decision {
            Decision::Retry { at } => {
                lane.state = LaneState::BackingOff { until: at };
                self.timers.insert((at, index));
            }
            Decision::GiveUp(_) | Decision::Hold(_) | Decision::Drop(_) | Decision::Halt(_) => {
                lane.state = LaneState::GivingUp;
            }
        }
        Some(decision)
    }

    /// Like [`Lanes::settle`], for an attempt that [says nothing](Verdict::says_nothing) about the first event that was not
    /// delivered. The lane is ready again, and that event has no failure more. `batch_failed`: the next run has this event
    /// alone, and those after it are shorter.
    ///
    /// # Panics
    /// If the run is not in flight, or not longer than `delivered`.
    pub fn settle_without_verdict(
        &mut self,
        token: Token,
        delivered: usize,
        batch_failed: bool,
        settled: impl FnMut(&Event),
    ) {
        let run = self.run_in_flight(token);
        assert!(delivered < run, "a run of {run} events reported a failure and {delivered} delivered");
        let end = if batch_failed { RunEnd::BatchFailed } else { RunEnd::Other };
        if batch_failed {
            let lane = lane_at_mut(&mut self.lanes, token.index);
            let last_offset = run.checked_sub(2).map_or(lane.head.offset, |place| lane.rest[place].offset);
            match &mut lane.runs {
                Some(runs) => runs.batch_failed(run, last_offset),
                None => lane.runs = Some(Box::new(LaneRuns::after(run, last_offset))),
            }
        }
        if self.settle_delivered(token, delivered, end, settled) {
            self.make_ready(token.index);
        }
    }

    /// The number of events of a run.
    fn run_in_flight(&self, token: Token) -> usize {
        match lane_at(&self.lanes, token.index).state {
            LaneState::InFlight { run, .. } => run as usize,
            state => panic!("order of a lane: settled while {state:?}"),
        }
    }

    /// Ends a run, and settles its first `delivered` events. `false`: the lane has ended with them.
    fn settle_delivered(
        &mut self,
        token: Token,
        delivered: usize,
        end: RunEnd,
        mut settled: impl FnMut(&Event),
    ) -> bool {
        let run = self.run_in_flight(token);
        let lane = lane_of(&mut self.lanes, token);
        assert!(delivered <= run, "a run of {run} events reported {delivered} delivered");
        self.in_flight_events -= run;
        self.length_limit.ended(run, token.generation, end);
        if delivered > 0 {
            self.after_dead_letter.remove(lane.head.record.key());
            lane.pace.add(delivered, self.now);
        }
        if lane.is_listed {
            self.changed.push(lane.head.record.key().map(Arc::from));
        }
        for place in 1..=delivered {
            let lane = lane_at_mut(&mut self.lanes, token.index);
            if place == delivered
                && let Some(runs) = &mut lane.runs
            {
                runs.delivered(delivered, lane.head.offset, &mut self.length_limit);
                lane.runs.take_if(|runs| runs.is_over());
            }
            settled(&lane.head);
            if !self.pop(token.index) {
                return false;
            }
        }
        true
    }

    /// The event whose dead letter is to be written, and what it went through.
    ///
    /// # Panics
    /// If the head of this lane is not being given up.
    pub fn giving_up(&self, token: Token) -> (&Event, &FailureHistory) {
        let lane = lane_at(&self.lanes, token.index);
        let is_giving_up = lane.generation == token.generation && lane.state == LaneState::GivingUp;
        assert!(is_giving_up, "this lane is not giving up an event");
        (&lane.head, lane.history.as_ref().expect("an event is given up after a failure"))
    }

    /// The dead letter is stored: settles the head of the lane, which is shown to `settled`. The next event of the user
    /// may be attempted.
    ///
    /// # Panics
    /// If the head of this lane is not being given up.
    pub fn given_up(&mut self, token: Token, mut settled: impl FnMut(&Event)) {
        let lane = lane_of(&mut self.lanes, token);
        assert_eq!(lane.state, LaneState::GivingUp, "this lane is not giving up an event");
        if lane.is_listed {
            self.changed.push(lane.head.record.key().map(Arc::from));
        }
        self.after_dead_letter.insert(lane.head.record.key());
        if let Some(runs) = &mut lane.runs {
            runs.head_failed();
        }
        settled(&lane.head);
        if self.pop(token.index) {
            self.make_ready(token.index);
        }
    }

    /// Makes every lane ready whose backoff has ended.
    pub fn wake(&mut self, now: Moment) {
        self.now = now;
        while let Some(&(until, index)) = self.timers.first()
            && until <= now
        {
            self.timers.pop_first();
            let lane = lane_at_mut(&mut self.lanes, index);
            assert_eq!(lane.state, LaneState::BackingOff { until }, "a timer belongs to a lane that backs off");
            self.make_ready(index);
        }
    }

    /// Makes every lane ready that backs off and has failed during this outage, which has ended. A lane that waits because
    /// the destination asked for it continues to wait.
    pub fn wake_failed_during(&mut self, outage: &Recovery) {
        let failed_in_outage = |index: u32| {
            let history = lane_at(&self.lanes, index).history.as_ref().expect("a lane that backs off has failed");
            history.has_failed_since(outage.failing_since)
                && !history.has_failed_since(outage.ended_at)
                && !history.is_asked_to_wait()
        };
        let woken: Vec<(Moment, u32)> =
            self.timers.iter().copied().filter(|(_, index)| failed_in_outage(*index)).collect();
        for timer in woken {
            self.timers.remove(&timer);
            self.make_ready(timer.1);
        }
    }

    /// The moment at which [`Lanes::wake`] makes the next lane ready.
    pub fn next_wakeup(&self) -> Option<Moment> {
        self.timers.first().map(|(until, _)| *until)
    }

    /// Shows the heads that have failed for [`LOG_REMINDER_INTERVAL`], with their history, their user and the moment of
    /// their next attempt (`None`: nothing has to be waited for), and shows each again after as long. Looks at no more than
    /// `look_max` lanes, so that one call takes bounded time.
    pub fn look_at_stuck(
        &mut self,
        look_max: usize,
        now: Moment,
        mut show: impl FnMut(&Event, &FailureHistory, u64, Option<Moment>),
    ) {
        for _ in 0..look_max {
            let Some(&(at, index)) = self.stuck.first().filter(|(at, _)| *at <= now) else { return };
            self.stuck.remove(&(at, index));
            let again_at = now.saturating_add(LOG_REMINDER_INTERVAL);
            self.stuck.insert((again_at, index));
            let lane = lane_at_mut(&mut self.lanes, index);
            lane.stuck_at = Some(again_at);
            let next_try = match lane.state {
                LaneState::BackingOff { until } => Some(until),
                _ => None,
            };
            show(&lane.head, lane.history.as_ref().expect("a lane that is stuck has failed"), lane.user, next_try);
        }
    }

    /// Whether a lane is ready.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.probe_order.is_empty()
    }

    /// Whether a lane of this standing is ready: it waits for a slot or for the rate.
    pub fn has_ready_of(&self, standing: Standing) -> bool {
        self.ready.first_number_of(standing).is_some()
    }

    /// Whether a lane is ready that has no standing: it waits for the breaker, or for a batch of many lanes.
    pub fn has_ready_without_standing(&self) -> bool {
        self.ready.has_unsorted() || !self.probe_order.is_empty()
    }

    /// The number of unsettled events in all lanes.
    pub fn events(&self) -> usize {
        self.events
    }

    /// The number of users with unsettled events.
    pub fn users(&self) -> usize {
        self.by_user.len()
    }

    /// The users with unsettled events as [`Started::user`] names them, in any order: those that have a lane, and those that
    /// were [set aside](Lanes::set_aside).
    pub fn each_user(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().flatten().map(|lane| lane.user).chain(self.set_aside.iter().copied())
    }

    /// The number of events that are handed out and not reported.
    pub fn in_flight_events(&self) -> usize {
        self.in_flight_events
    }

    /// Removes the head of a lane. `false`: it was the last event, and the lane has ended.
    fn pop(&mut self, index: u32) -> bool {
        self.events -= 1;
        let lane = lane_at_mut(&mut self.lanes, index);
        lane.history = None;
        if let Some(at) = lane.stuck_at.take() {
            self.stuck.remove(&(at, index));
        }
        if let Some(next) = lane.rest.pop_front() {
            assert!(next.offset > lane.head.offset, "order of a lane: {} after {}", next.offset, lane.head.offset);
            lane.head = next;
            // A user that once had a long backlog must not keep its memory as long as it has events. Shrinking at a
            // quarter to the half keeps the cost of each event constant: at least as many events pass as are moved.
            if lane.rest.capacity() > QUEUE_CAPACITY_KEPT && lane.rest.len() * 4 < lane.rest.capacity() {
                lane.rest.shrink_to(lane.rest.len() * 2);
            }
            return true;
        }
        self.remove(index);
        false
    }

    /// Ends a lane that is in no other index.
    fn remove(&mut self, index: u32) -> Lane {
        let lane = self.lanes[index as usize].take().expect("an index in use leads to a lane");
        let found = self.by_user.find_entry(lane.user, |at| *at == index);
        found.expect("every lane is found by its user").remove();
        self.free.push(index);
        lane
    }
}

fn lane_at(lanes: &[Option<Lane>], index: u32) -> &Lane {
    lanes[index as usize].as_ref().expect("an index in use leads to a lane")
}

fn lane_at_mut(lanes: &mut [Option<Lane>], index: u32) -> &mut Lane {
    lanes[index as usize].as_mut().expect("an index in use leads to a lane")
}

fn lane_of(lanes: &mut [Option<Lane>], token: Token) -> &mut Lane {
    let lane = lane_at_mut(lanes, token.index);
    assert_eq!(lane.generation, token.generation, "a run is reported once");
    lane
}

#[cfg(test)]
mod tests;
