//! One FIFO a user: who may be attempted next, and never two at once of one user.
//!
//! ```text
//!             admit            next                    settle: all delivered, more behind
//!  (idle) ──────────▶ Ready ─────────▶ InFlight ─────────────────────────▶ Ready …, or idle: the lane is gone
//!                       ▲                 │ settle: judged
//!                       │                 ├── Retry{at} ──▶ BackingOff ── wake(now) ──▶ Ready
//!                       └── given_up ── Settling ◀── GiveUp (the head's dead letter is being written)
//! ```
//!
//! An idle lane costs nothing: it is removed with its last event. Everything else is O(1) an event, whatever the number
//! of users, and O(log n) for timers. The key of a lane is read from its own head, so no copy of it is kept.
//!
//! What breaks the order of a lane is a panic, in release builds too: the owner of the partition stops with the
//! message, and nothing is delivered out of order.

use super::Moment;
use super::breaker::Refusal;
use super::event::Event;
use crate::limits::LOG_REMINDER_INTERVAL;
use hashbrown::HashTable;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

/// All lanes of one partition.
#[derive(Debug)]
pub struct Lanes {
    /// Finds a lane's place by its user.
    places: HashTable<u32>,
    hasher: RandomState,
    lanes: Vec<Option<Lane>>,
    free: Vec<u32>,
    /// Every lane in the state Ready, once.
    ready: VecDeque<u32>,
    /// Every lane in the state BackingOff, once.
    timers: BTreeSet<(Moment, u32)>,
    /// Every lane whose head has failed, once: when it is looked at as a stuck one.
    stuck: BTreeSet<(Moment, u32)>,
    events: usize,
    in_flight_events: usize,
    next_generation: u64,
    gaps: Gaps,
}

/// Names one run that was handed out. Using it twice, or after the lane moved on, is a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    place: u32,
    generation: u64,
}

/// A run that [`Lanes::next`] handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub token: Token,
    /// Where its events were put.
    pub events: Range<usize>,
    /// How often the first one is tried with this attempt: 1 at first.
    pub attempt: u32,
    /// An earlier event of this user was given up, and this is the next that is attempted.
    pub gap: bool,
    /// Stands for the user while this owner lives; equal for equal users.
    pub user: u64,
}

/// What the head of a lane went through so far. Belongs to the event: it ends with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailureHistory {
    /// Attempts that failed, for whatever reason.
    pub failures: u32,
    /// Of these, tries that count for good.
    pub tries: u32,
    /// Tries counted since the mark below; taken back if that mark turns out void.
    pub tries_since_mark: u32,
    pub mark: u64,
    /// When the first attempt failed, and when the last one did.
    pub first_failure: Moment,
    pub last_failure: Moment,
    /// The beginning of what the destination said last.
    pub answer: Box<str>,
    /// The first of the refusals that nothing but refusals followed.
    pub first_refusal: Option<Refusal>,
}

/// What is to become of the first event of a run that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Attempt it again, not before this moment.
    Retry { at: Moment },
    /// Write its dead letter; the lane stands until [`Lanes::given_up`].
    GiveUp,
}

#[derive(Debug)]
struct Lane {
    state: State,
    head: Event,
    rest: VecDeque<Event>,
    history: Option<Box<FailureHistory>>,
    /// Under which moment the lane is in `stuck`.
    stuck_at: Option<Moment>,
    generation: u64,
    user: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    InFlight { run: u32 },
    BackingOff { until: Moment },
    Settling,
}

impl Lanes {
    /// Remembers the gaps of at most `gaps_max` users.
    pub fn new(gaps_max: usize) -> Self {
        Self {
            places: HashTable::new(),
            hasher: RandomState::new(),
            lanes: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            stuck: BTreeSet::new(),
            events: 0,
            in_flight_events: 0,
            next_generation: 0,
            gaps: Gaps::new(gaps_max),
        }
    }

    /// Puts an event behind those of its user.
    ///
    /// # Panics
    /// Where it is not behind them in the log too.
    pub fn admit(&mut self, event: Event) {
        let user = self.hasher.hash_one(event.record.key());
        let Self { places, lanes, .. } = self;
        self.events += 1;
        let found = places.find(user, |place| lane_at(lanes, *place).head.record.key() == event.record.key());
        if let Some(&place) = found {
            let lane = lane_at_mut(lanes, place);
            let last = lane.rest.back().map_or(lane.head.offset, |last| last.offset);
            assert!(event.offset > last, "order of a lane: offset {} admitted behind {last}", event.offset);
            lane.rest.push_back(event);
            return;
        }
        self.next_generation += 1;
        let lane = Lane {
            state: State::Ready,
            head: event,
            rest: VecDeque::new(),
            history: None,
            stuck_at: None,
            generation: self.next_generation,
            user,
        };
        let place = match self.free.pop() {
            Some(place) => {
                lanes[place as usize] = Some(lane);
                place
            }
            None => {
                lanes.push(Some(lane));
                u32::try_from(lanes.len() - 1).expect("fewer than 4 billion lanes: the window is far smaller")
            }
        };
        places.insert_unique(user, place, |place| lane_at(lanes, *place).user);
        self.ready.push_back(place);
    }

    /// Hands out the next run of a lane that is ready: its events are appended to `out`. At most `events_max` events
    /// and `bytes_max` bytes, unless the first event alone is larger. `None`: no lane is ready.
    pub fn next(&mut self, events_max: usize, bytes_max: usize, out: &mut Vec<Event>) -> Option<Started> {
        let place = self.ready.pop_front()?;
        Some(self.start(place, events_max, bytes_max, out))
    }

    /// The same for a single event, of the first lane among the next `look_max` ready ones whose user is `wanted`; else of
    /// the first, if `or_any`.
    pub fn next_preferred(
        &mut self,
        look_max: usize,
        wanted: impl Fn(u64) -> bool,
        or_any: bool,
        out: &mut Vec<Event>,
    ) -> Option<Started> {
        let mut looked = self.ready.iter().take(look_max);
        let index = looked.position(|place| wanted(lane_at(&self.lanes, *place).user)).or(or_any.then_some(0))?;
        let place = self.ready.remove(index)?;
        Some(self.start(place, 1, 0, out))
    }

    fn start(&mut self, place: u32, events_max: usize, bytes_max: usize, out: &mut Vec<Event>) -> Started {
        let lane = lane_at_mut(&mut self.lanes, place);
        assert_eq!(lane.state, State::Ready, "order of a lane: one attempt at a time");
        let first = out.len();
        let mut bytes = lane.head.record.size_bytes();
        out.push(lane.head.clone());
        // An event that failed before goes alone: what it does concerns nobody else's run.
        if lane.history.is_none() {
            for event in lane.rest.iter().take(events_max.saturating_sub(1)) {
                bytes += event.record.size_bytes();
                if bytes > bytes_max {
                    break;
                }
                out.push(event.clone());
            }
        }
        let run = out.len() - first;
        self.next_generation += 1;
        lane.generation = self.next_generation;
        lane.state = State::InFlight { run: u32::try_from(run).expect("a run is short") };
        self.in_flight_events += run;
        Started {
            token: Token { place, generation: lane.generation },
            events: first..out.len(),
            attempt: lane.history.as_ref().map_or(1, |history| history.failures.saturating_add(1)),
            gap: self.gaps.holds(lane.head.record.key()),
            user: lane.user,
        }
    }

    /// Settles the first `delivered` events of a run (each is shown to `settled`). Where that is not the whole run,
    /// `judge` decides about the next one; those behind it go back untouched.
    ///
    /// # Panics
    /// Where the run is not in flight, or `delivered` is more than it.
    pub fn settle(
        &mut self,
        token: Token,
        delivered: usize,
        mut settled: impl FnMut(&Event),
        judge: impl FnOnce(&Event, &mut FailureHistory) -> Next,
    ) {
        let place = token.place;
        let lane = lane_of(&mut self.lanes, token);
        let State::InFlight { run } = lane.state else { panic!("order of a lane: settled while {:?}", lane.state) };
        let run = run as usize;
        assert!(delivered <= run, "a run of {run} events reported {delivered} delivered");
        self.in_flight_events -= run;
        if delivered > 0 {
            self.gaps.forget(lane.head.record.key());
        }
        for _ in 0..delivered {
            settled(&lane_at(&self.lanes, place).head);
            if !self.pop(place) {
                return;
            }
        }
        let lane = lane_at_mut(&mut self.lanes, place);
        if delivered == run {
            lane.state = State::Ready;
            self.ready.push_back(place);
            return;
        }
        let history = lane.history.get_or_insert_default();
        let next = judge(&lane.head, history);
        if lane.stuck_at.is_none() {
            let at = history.first_failure.saturating_add(LOG_REMINDER_INTERVAL);
            lane.stuck_at = Some(at);
            self.stuck.insert((at, place));
        }
        match next {
            Next::Retry { at } => {
                lane.state = State::BackingOff { until: at };
                self.timers.insert((at, place));
            }
            Next::GiveUp => lane.state = State::Settling,
        }
    }

    /// The event whose dead letter is to be written, and what it went through.
    ///
    /// # Panics
    /// Where the lane is not settling.
    pub fn settling(&self, token: Token) -> (&Event, &FailureHistory) {
        let lane = lane_at(&self.lanes, token.place);
        assert!(lane.generation == token.generation && lane.state == State::Settling, "nothing is settling here");
        (&lane.head, lane.history.as_ref().expect("a failure led to this"))
    }

    /// The dead letter is written: the lane's head is settled (shown to `settled`), and the lane goes on.
    pub fn given_up(&mut self, token: Token, mut settled: impl FnMut(&Event)) {
        let lane = lane_of(&mut self.lanes, token);
        assert_eq!(lane.state, State::Settling, "only an event that is settling is given up");
        self.gaps.remember(lane.head.record.key());
        settled(&lane.head);
        if self.pop(token.place) {
            lane_at_mut(&mut self.lanes, token.place).state = State::Ready;
            self.ready.push_back(token.place);
        }
    }

    /// Makes ready what backed off until `now`.
    pub fn wake(&mut self, now: Moment) {
        while let Some(&(until, place)) = self.timers.first()
            && until <= now
        {
            self.timers.pop_first();
            let lane = lane_at_mut(&mut self.lanes, place);
            assert_eq!(lane.state, State::BackingOff { until }, "a timer is of a lane that backs off");
            lane.state = State::Ready;
            self.ready.push_back(place);
        }
    }

    /// When [`Lanes::wake`] has something to do next.
    pub fn next_wakeup(&self) -> Option<Moment> {
        self.timers.first().map(|(until, _)| *until)
    }

    /// Shows the heads that have failed for [`LOG_REMINDER_INTERVAL`], with what they went through and their users; each
    /// again after as long. Looks at most at so many.
    pub fn look_at_stuck(&mut self, look_max: usize, now: Moment, mut show: impl FnMut(&Event, &FailureHistory, u64)) {
        for _ in 0..look_max {
            let Some(&(at, place)) = self.stuck.first().filter(|(at, _)| *at <= now) else { return };
            self.stuck.remove(&(at, place));
            let again = now.saturating_add(LOG_REMINDER_INTERVAL);
            self.stuck.insert((again, place));
            let lane = lane_at_mut(&mut self.lanes, place);
            lane.stuck_at = Some(again);
            show(&lane.head, lane.history.as_ref().expect("a lane that is stuck has failed"), lane.user);
        }
    }

    /// Whether a lane is ready.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Unsettled events in all lanes.
    pub fn events(&self) -> usize {
        self.events
    }

    /// Users with unsettled events.
    pub fn users(&self) -> usize {
        self.places.len()
    }

    /// The users with unsettled events, in no order, as [`Started::user`] names them.
    pub fn each_user(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().flatten().map(|lane| lane.user)
    }

    /// Events that are handed out and not reported.
    pub fn in_flight_events(&self) -> usize {
        self.in_flight_events
    }

    /// Removes the head. `false`: it was the last, and the lane is gone.
    fn pop(&mut self, place: u32) -> bool {
        self.events -= 1;
        let lane = lane_at_mut(&mut self.lanes, place);
        lane.history = None;
        if let Some(at) = lane.stuck_at.take() {
            self.stuck.remove(&(at, place));
        }
        if let Some(next) = lane.rest.pop_front() {
            assert!(next.offset > lane.head.offset, "order of a lane: {} behind {}", next.offset, lane.head.offset);
            lane.head = next;
            // A lane that was long once must not keep its memory for ever.
            if lane.rest.capacity() > 64 && lane.rest.len() * 4 < lane.rest.capacity() {
                lane.rest.shrink_to(lane.rest.len() * 2);
            }
            return true;
        }
        let user = lane.user;
        let found = self.places.find_entry(user, |at| *at == place);
        found.expect("every lane is found by its user").remove();
        self.lanes[place as usize] = None;
        self.free.push(place);
        false
    }
}

fn lane_at(lanes: &[Option<Lane>], place: u32) -> &Lane {
    lanes[place as usize].as_ref().expect("a place that is named holds a lane")
}

fn lane_at_mut(lanes: &mut [Option<Lane>], place: u32) -> &mut Lane {
    lanes[place as usize].as_mut().expect("a place that is named holds a lane")
}

fn lane_of(lanes: &mut [Option<Lane>], token: Token) -> &mut Lane {
    let lane = lane_at_mut(lanes, token.place);
    assert_eq!(lane.generation, token.generation, "a run is reported once");
    lane
}

/// Bytes that a place in the queue of [`Gaps`] takes on average at most, with the user's id. Usual ids take less; if all
/// are very long, fewer users are remembered.
const GAP_BYTES_MAX: usize = 128;

/// Bytes of such a place without the id.
const GAP_OVERHEAD_BYTES: usize = 64;

/// Users of whom an event was given up and none delivered since: a bounded hint, the oldest is forgotten first.
/// Forgetting leaves a user's place in the queue behind, stale by its number, so that it costs O(1).
#[derive(Debug)]
struct Gaps {
    max: usize,
    /// User → the number under which it stands in `order`.
    users: HashMap<Option<Arc<[u8]>>, u64>,
    order: VecDeque<(u64, Option<Arc<[u8]>>)>,
    /// Bytes that the places in `order` take.
    bytes: usize,
    numbers: u64,
}

impl Gaps {
    fn new(max: usize) -> Self {
        Self { max, users: HashMap::new(), order: VecDeque::new(), bytes: 0, numbers: 0 }
    }

    fn bytes_of(user: Option<&[u8]>) -> usize {
        GAP_OVERHEAD_BYTES + user.map_or(0, <[u8]>::len)
    }

    fn holds(&self, user: Option<&[u8]>) -> bool {
        !self.users.is_empty() && self.users.contains_key(&user.map(Arc::from))
    }

    fn remember(&mut self, user: Option<&[u8]>) {
        let user: Option<Arc<[u8]>> = user.map(Arc::from);
        if self.users.contains_key(&user) {
            return;
        }
        self.numbers += 1;
        self.bytes += Self::bytes_of(user.as_deref());
        self.users.insert(user.clone(), self.numbers);
        self.order.push_back((self.numbers, user));
        let places_max = self.max.saturating_mul(2);
        let bytes_max = places_max.saturating_mul(GAP_BYTES_MAX);
        // The newest stays, however long its id is.
        while self.users.len() > self.max
            || self.order.len() > places_max
            || (self.bytes > bytes_max && self.order.len() > 1)
        {
            let Some((number, oldest)) = self.order.pop_front() else { break };
            self.bytes -= Self::bytes_of(oldest.as_deref());
            if self.users.get(&oldest) == Some(&number) {
                self.users.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, user: Option<&[u8]>) {
        if !self.users.is_empty() {
            self.users.remove(&user.map(Arc::from));
            if self.users.is_empty() {
                self.order.clear();
                self.bytes = 0;
            }
        }
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
