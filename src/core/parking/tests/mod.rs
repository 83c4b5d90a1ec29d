//! Runs the owner of one partition in random steps, with crashes and offset resets between any two of them, against a plain
//! set of settled events.
//!
//! The rules: attempts of a user never skip an unsettled event and never step back; a stored state names exactly the
//! unsettled events; held users are not tried; in the end everything is settled.

use super::*;
use crate::core::event::Record;
use crate::core::lanes::{Started, Token};
use crate::core::progress::{OffsetReset, ResetTarget};
use crate::core::slots::Standing;
use crate::core::tries::{Decision, GiveUpReason};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use std::collections::VecDeque;
use std::time::Duration;

const USERS: usize = 6;
const DELAY_MAX: Duration = Duration::from_secs(5);

fn key(user: usize) -> UserKey {
    // The records without a key are a user like any other.
    (user > 0).then(|| format!("user-{user}").into_bytes().into())
}

fn event(offset: i64, user: usize) -> Event {
    Event { offset, record: Record::new(key(user).as_deref(), Some(&[0; 40][..10 + user * 5]), &[], 0) }
}

fn clocks(now: Moment) -> BothClocks {
    BothClocks { moment: now, wall_ms: 1_000_000 + now.as_millis() as i64 }
}

/// Whether a state says that an event is settled.
fn claims(state: &PartitionState, key: &UserKey, offset: i64) -> bool {
    match state.users.get(key).and_then(|user| user.parked) {
        Some(parked) => offset < parked.first,
        None => offset < state.watermark || state.settled.iter().any(|range| range.contains(&offset)),
    }
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    window_events: usize,
    window_bytes: usize,
    backlog: usize,
    users_max: usize,
    run: usize,
}

fn sizes() -> impl Strategy<Value = Sizes> {
    let windows = prop_oneof![Just(1usize), Just(3), Just(8), Just(30)];
    let bytes = prop_oneof![3 => Just(1 << 20), 1 => Just(400usize)];
    let users_max = prop_oneof![4 => Just(100usize), 1 => Just(2)];
    (windows, bytes, 1usize..5, users_max, 1usize..4).prop_map(
        |(window_events, window_bytes, backlog, users_max, run)| Sizes {
            window_events,
            window_bytes,
            backlog,
            users_max,
            run,
        },
    )
}

/// The owner of the partition. It dies with everything that it has in memory.
struct Owner {
    parked: ParkedUsers,
    lanes: Lanes,
    window: Window,
    progress: Progress,
    position: i64,
    pending: VecDeque<Event>,
    sweep_pending: VecDeque<Event>,
    /// The end of the fetch that `sweep_pending` is from.
    sweep_end: Option<i64>,
    in_flight: Vec<(Started, Vec<Event>)>,
    giving_up: Vec<(Token, i64, UserKey)>,
}

macro_rules! memory {
    ($owner:expr) => {
        &mut PartitionMemory { lanes: &mut $owner.lanes, window: &mut $owner.window, progress: &mut $owner.progress }
    };
}

mod look_ahead;
mod pressure;

impl Owner {
    fn new(state: &PartitionState, sizes: Sizes, now: Moment) -> Self {
        let limits = ParkingLimits { user_backlog: sizes.backlog, users_max: sizes.users_max, may_park: true };
        let restore = |stored: &FailedHead| {
            let history = FailureHistory::restored(stored, Duration::ZERO, DELAY_MAX, clocks(now));
            (history, clocks(now).moment_at(stored.next_try_ms))
        };
        let mut lanes = Lanes::new(10, 0);
        lanes.wake(now);
        Self {
            parked: ParkedUsers::new(limits, sizes.run, state, restore, now),
            lanes,
            window: Window::new(sizes.window_events, sizes.window_bytes),
            progress: Progress::new(state),
            position: state.watermark,
            pending: VecDeque::new(),
            sweep_pending: VecDeque::new(),
            sweep_end: None,
            in_flight: Vec::new(),
            giving_up: Vec::new(),
        }
    }

    fn state(&self, now: Moment) -> PartitionState {
        PartitionState { users: self.parked.listed(&self.lanes, |_| false, clocks(now)), ..self.progress.state() }
    }

    /// A fetch of the reader, or what is left of the last one.
    fn read(&mut self, log: &[usize], events_max: usize) {
        if self.pending.is_empty() && self.window.room_bytes() > 0 {
            let end = log.len().min(self.position as usize + events_max);
            self.pending.extend((self.position..end as i64).map(|offset| event(offset, log[offset as usize])));
            self.position = end as i64;
        }
        while let Some(event) = self.pending.pop_front() {
            match self.parked.read(event, memory!(self)) {
                Ok(()) => {}
                Err(NotAdmitted::NoRoom(event)) => return self.pending.push_front(event),
                Err(NotAdmitted::Misplaced(error)) => panic!("{error}"),
            }
        }
        self.parked.passed(self.position);
    }

    /// A fetch of the sweep, or what is left of the last one. Returns whether it did anything.
    fn sweep(&mut self, log: &[usize], events_max: usize, now: Moment) -> bool {
        if self.sweep_end.is_none() {
            let Some(request) = self.parked.next_sweep(memory!(self), now) else { return false };
            let end = (log.len() as i64).min(request.from + events_max as i64);
            self.sweep_pending.extend((request.from..end).map(|offset| event(offset, log[offset as usize])));
            self.sweep_end = Some(end);
        }
        while let Some(event) = self.sweep_pending.pop_front() {
            if let Err(event) = self.parked.sweep(event, memory!(self), now) {
                self.sweep_pending.push_front(event);
                return false;
            }
        }
        let end = self.sweep_end.take().unwrap();
        self.parked.swept(end, memory!(self), now);
        true
    }

    fn blocked(&self) -> Blocked {
        let bytes = |event: &Event| event.record.window_bytes();
        let read = self.pending.front().map(bytes).filter(|bytes| !self.window.admits(*bytes));
        let swept = self.sweep_pending.front().map(bytes).filter(|bytes| !self.window.admits_parked(*bytes));
        Blocked { read, swept }
    }

    fn wake(&mut self, now: Moment) {
        self.lanes.wake(now);
        self.parked.wake(memory!(self), now);
    }
}

struct Model {
    sizes: Sizes,
    log: Vec<usize>,
    now: Moment,
    owner: Owner,
    stored: PartitionState,
    /// What the owner knows to be settled: what was stored when it began, and what was reported to it.
    settled: BTreeSet<i64>,
    /// The users that were held when the owner began or since.
    held: BTreeSet<usize>,
    held_stored: BTreeSet<usize>,
    /// The offsets below which an operator gave up events, by user.
    given_up_below: BTreeMap<usize, i64>,
    /// The users whose tries an operator has let begin anew since the last commit.
    begun_anew: BTreeSet<usize>,
    last_started: BTreeMap<usize, i64>,
    last_reset: u64,
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        user: usize,
        many: usize,
    },
    Read {
        many: usize,
    },
    Sweep {
        many: usize,
    },
    Start,
    Finish {
        which: usize,
        delivered: usize,
        next: u8,
    },
    GivenUp {
        which: usize,
    },
    Wait {
        ms: u64,
    },
    /// `is_slow`: whether slow lanes are their users' own fault.
    Relieve {
        is_slow: bool,
    },
    LookAhead {
        outage: u64,
        users_max: usize,
    },
    Tick {
        may_park: bool,
    },
    Commit,
    Crash,
    Reset {
        percent: i64,
        ahead: bool,
    },
    Hold {
        user: usize,
    },
    Release {
        user: usize,
    },
    RetryNow {
        user: usize,
    },
    GiveUp {
        user: usize,
        more: Option<i64>,
    },
}

fn steps(many: usize) -> impl Strategy<Value = Vec<Step>> {
    let user = || prop_oneof![2 => Just(1usize), 3 => 0..USERS];
    let step = prop_oneof![
        30 => (user(), 1usize..6).prop_map(|(user, many)| Step::Append { user, many }),
        30 => (1usize..12).prop_map(|many| Step::Read { many }),
        25 => (1usize..12).prop_map(|many| Step::Sweep { many }),
        30 => Just(Step::Start),
        40 => (0usize..9, 0usize..4, 0u8..8).prop_map(|(which, delivered, next)| Step::Finish { which, delivered, next }),
        6 => (0usize..9).prop_map(|which| Step::GivenUp { which }),
        12 => (0u64..900).prop_map(|ms| Step::Wait { ms }),
        12 => any::<bool>().prop_map(|is_slow| Step::Relieve { is_slow }),
        8 => (0u64..3, 0usize..6).prop_map(|(outage, users_max)| Step::LookAhead { outage, users_max }),
        8 => any::<bool>().prop_map(|may_park| Step::Tick { may_park }),
        6 => Just(Step::Commit),
        3 => Just(Step::Crash),
        2 => (0i64..110, any::<bool>()).prop_map(|(percent, ahead)| Step::Reset { percent, ahead }),
        3 => (0..USERS).prop_map(|user| Step::Hold { user }),
        4 => (0..USERS).prop_map(|user| Step::Release { user }),
        2 => (0..USERS).prop_map(|user| Step::RetryNow { user }),
        2 => (0..USERS, proptest::option::of(0i64..20)).prop_map(|(user, more)| Step::GiveUp { user, more }),
    ];
    proptest::collection::vec(step, 0..many)
}

type Checked = Result<(), TestCaseError>;

impl Model {
    fn new(sizes: Sizes) -> Self {
        let stored = PartitionState::at(0);
        Self {
            sizes,
            log: Vec::new(),
            now: Moment::ZERO,
            owner: Owner::new(&stored, sizes, Moment::ZERO),
            stored,
            settled: BTreeSet::new(),
            held: BTreeSet::new(),
            held_stored: BTreeSet::new(),
            given_up_below: BTreeMap::new(),
            begun_anew: BTreeSet::new(),
            last_started: BTreeMap::new(),
            last_reset: 0,
        }
    }

    fn begin(&mut self) {
        self.owner = Owner::new(&self.stored, self.sizes, self.now);
        let settled = |offset: &i64| claims(&self.stored, &key(self.log[*offset as usize]), *offset);
        self.settled = (0..self.log.len() as i64).filter(settled).collect();
        self.last_started.clear();
        self.begun_anew.clear();
        self.held = self.held_stored.clone();
        self.given_up_below = (0..USERS)
            .filter_map(|user| Some((user, self.stored.users.get(&key(user))?.parked?.give_up_below?)))
            .collect();
    }

    fn unsettled_of(&self, user: usize) -> impl Iterator<Item = i64> {
        let of_user = move |offset: &i64| self.log[*offset as usize] == user && !self.settled.contains(offset);
        (0..self.log.len() as i64).filter(of_user)
    }

    /// The state names exactly what is settled, as far as the reader has come.
    fn check_state(&self) -> Result<PartitionState, TestCaseError> {
        let state = self.owner.state(self.now);
        for (offset, user) in (0i64..).zip(&self.log) {
            let is_settled = claims(&state, &key(*user), offset);
            prop_assert_eq!(is_settled, self.settled.contains(&offset), "{} of {}: {:?}", offset, user, state);
        }
        for (user, listed) in &state.users {
            if let Some(failed) = &listed.failed {
                prop_assert!(!claims(&state, user, failed.offset), "{:?} has failed: {:?}", user, state);
            }
        }
        for user in (0..USERS).filter(|user| !self.begun_anew.contains(user)) {
            let failed = |state: &PartitionState| state.users.get(&key(user))?.failed.clone();
            let Some(stored) = failed(&self.stored).filter(|stored| !self.settled.contains(&stored.offset)) else {
                continue;
            };
            let is_kept =
                failed(&state).is_some_and(|now| now.offset == stored.offset && now.failures >= stored.failures);
            prop_assert!(is_kept, "the account of {} is lost, {:?}: {:?}", user, stored, state);
        }
        let text = state.encode();
        prop_assert_eq!(PartitionState::decode(state.watermark, &text), Ok(state.clone()));
        Ok(state)
    }

    fn check_memory(&self) -> Checked {
        let Owner { window, lanes, .. } = &self.owner;
        prop_assert_eq!(window.events(), lanes.events());
        prop_assert!(window.events() <= self.sizes.window_events + 1, "{} events", window.events());
        let parked: usize =
            lanes.each_lane().map(|id| lanes.view(id)).filter(|lane| lane.is_listed).map(|lane| lane.events).sum();
        prop_assert_eq!(window.parked_events(), parked);
        for (key, entry) in &self.owner.parked.users {
            let events = lanes.find(key.as_deref()).into_iter().flat_map(|id| lanes.each_event(id));
            let bytes: usize = events.map(|event| event.record.window_bytes()).sum();
            prop_assert_eq!(entry.lane_bytes, bytes, "{:?}", key);
        }
        Ok(())
    }

    fn start(&mut self) -> Checked {
        let mut events = Vec::new();
        self.give_up_next();
        let Some(started) = self.owner.lanes.next(self.sizes.run, usize::MAX, &mut events) else { return Ok(()) };
        let offsets: Vec<i64> = events.iter().map(|event| event.offset).collect();
        let user = self.log[offsets[0] as usize];
        let expected: Vec<i64> = self.unsettled_of(user).take(offsets.len()).collect();
        prop_assert_eq!(&offsets, &expected, "user {} has older events", user);
        prop_assert!(!self.held.contains(&user), "user {} is held, and {:?} are tried", user, offsets);
        let is_given_up = self.given_up_below.get(&user).is_some_and(|below| offsets[0] < *below);
        prop_assert!(!is_given_up, "{} of user {} was given up, and is tried", offsets[0], user);
        let in_flight = self.owner.in_flight.iter().any(|(_, events)| self.log[events[0].offset as usize] == user);
        prop_assert!(!in_flight, "two attempts of user {}", user);
        if let Some(last) = self.last_started.insert(user, offsets[0]) {
            prop_assert!(offsets[0] >= last, "user {} steps back from {} to {}", user, last, offsets[0]);
        }
        self.owner.in_flight.push((started, events));
        Ok(())
    }

    fn give_up_next(&mut self) {
        while let Some(token) = self.owner.parked.next_to_give_up(memory!(self.owner)) {
            let head = self.owner.lanes.giving_up(token).0;
            let entry = (token, head.offset, head.record.key().map(Into::into));
            self.owner.giving_up.push(entry);
        }
    }

    fn finish(&mut self, which: usize, delivered: usize, next: u8) {
        if self.owner.in_flight.is_empty() {
            return;
        }
        let (started, events) = self.owner.in_flight.remove(which % self.owner.in_flight.len());
        let delivered = delivered.min(events.len());
        let Owner { parked, lanes, window, progress, .. } = &mut self.owner;
        let now = self.now;
        let decision = lanes.settle(
            started.token,
            delivered,
            |event| {
                parked.settled(event, window, progress);
                self.settled.insert(event.offset);
            },
            |_, history| {
                history.add_failure(now, Duration::ZERO);
                match next {
                    0 => Decision::GiveUp(GiveUpReason::Exhausted),
                    1 => Decision::Hold(GiveUpReason::Exhausted),
                    _ => Decision::Retry { at: now + Duration::from_millis(u64::from(next) * 150) },
                }
            },
        );
        match decision {
            Some(Decision::GiveUp(_)) => {
                let head = &events[delivered];
                self.owner.giving_up.push((started.token, head.offset, head.record.key().map(Into::into)));
            }
            Some(Decision::Hold(_)) => {
                let user = self.log[events[delivered].offset as usize];
                if self.owner.parked.hold_exhausted(started.token, memory!(self.owner), now).is_ok() {
                    self.held.insert(user);
                }
            }
            _ => {}
        }
        self.owner.parked.failed();
        self.owner.parked.review_changed(memory!(self.owner), now);
    }

    fn given_up(&mut self, which: usize) {
        if self.owner.giving_up.is_empty() {
            return;
        }
        let (token, offset, _) = self.owner.giving_up.remove(which % self.owner.giving_up.len());
        let Owner { parked, lanes, window, progress, .. } = &mut self.owner;
        lanes.given_up(token, |event| parked.settled(event, window, progress));
        self.settled.insert(offset);
        self.owner.parked.review_changed(memory!(self.owner), self.now);
    }

    fn reset(&mut self, percent: i64, ahead: bool) -> Checked {
        let to = self.log.len() as i64 * percent / 100;
        let to = to.min(self.log.len() as i64);
        self.last_reset += 1;
        let reset =
            OffsetReset { id: self.last_reset, to: if ahead { ResetTarget::Ahead(to) } else { ResetTarget::Back(to) } };
        let state = self.check_state()?;
        let held = self.held.clone();
        self.stored = state.with_reset(&reset);
        for (offset, user) in (0i64..).zip(&self.log) {
            let was = self.settled.contains(&offset);
            let expected = if ahead { was || offset < to } else { was && offset < to };
            prop_assert_eq!(claims(&self.stored, &key(*user), offset), expected, "{} after {:?}", offset, reset);
        }
        self.held_stored = held;
        self.begin();
        Ok(())
    }

    fn step(&mut self, step: Step) -> Checked {
        let now = self.now;
        match step {
            Step::Append { user, many } => self.log.extend(std::iter::repeat_n(user, many)),
            Step::Read { many } => self.owner.read(&self.log, many),
            Step::Sweep { many } => _ = self.owner.sweep(&self.log, many, now),
            Step::Start => self.start()?,
            Step::Finish { which, delivered, next } => self.finish(which, delivered, next),
            Step::GivenUp { which } => self.given_up(which),
            Step::Wait { ms } => {
                self.now += Duration::from_millis(ms);
                self.owner.wake(self.now);
            }
            Step::Relieve { is_slow } => {
                let blocked = self.owner.blocked();
                self.owner.parked.relieve(blocked, |_| is_slow, memory!(self.owner), now);
            }
            Step::LookAhead { outage, users_max } => {
                let (blocked, outage) = (self.owner.blocked(), (Duration::from_secs(outage), users_max));
                let parked = self.owner.parked.look_ahead(outage, blocked, memory!(self.owner), now);
                prop_assert!(parked <= users_max, "{} users were parked", parked);
            }
            Step::Tick { may_park } => {
                _ = self.owner.parked.tick(self.sizes.window_events as i64, may_park, memory!(self.owner), now);
            }
            Step::Commit => {
                self.stored = self.check_state()?;
                self.begun_anew.clear();
                self.held_stored = self.held.clone();
            }
            Step::Crash => self.begin(),
            Step::Reset { percent, ahead } => self.reset(percent, ahead)?,
            Step::Hold { user } => {
                if self.owner.parked.hold(&key(user), memory!(self.owner), now).is_ok() {
                    self.held.insert(user);
                }
            }
            Step::Release { user } => {
                let was_held = self.owner.parked.release(&key(user), memory!(self.owner), now);
                prop_assert_eq!(was_held, self.held.remove(&user));
                if was_held {
                    self.begun_anew.insert(user);
                }
            }
            Step::RetryNow { user } => {
                self.owner.parked.retry_now(&key(user), memory!(self.owner), now);
                if self.held.remove(&user) {
                    self.begun_anew.insert(user);
                }
            }
            Step::GiveUp { user, more } => {
                let first = self.unsettled_of(user).next();
                // An offset after the end of the log would give up events that are not appended yet.
                let end = self.log.len() as i64;
                let below = more.and_then(|more| Some((first? + more).min(end)));
                let order = self.owner.parked.give_up(&key(user), below, memory!(self.owner), now);
                if let (Ok(true), Some(below)) = (order, below) {
                    let given_up = self.given_up_below.entry(user).or_insert(below);
                    *given_up = below.max(*given_up);
                }
            }
        }
        self.check_memory()
    }

    /// Everything is released and every attempt succeeds: in the end, everything is settled and the list is empty.
    fn drain(&mut self) -> Checked {
        for user in 0..USERS {
            self.step(Step::Release { user })?;
        }
        for round in 0..20_000 {
            let all_is_read = self.owner.position as usize == self.log.len();
            if self.settled.len() == self.log.len() && all_is_read && self.owner.parked.users() == 0 {
                break;
            }
            prop_assert!(round < 19_999, "lost: {:?}", self.owner.parked);
            self.now += Duration::from_millis(100);
            self.owner.wake(self.now);
            self.owner.read(&self.log, 10);
            self.owner.sweep(&self.log, 10, self.now);
            for _ in 0..4 {
                self.start()?;
            }
            while !self.owner.in_flight.is_empty() {
                self.finish(0, usize::MAX, 9);
            }
            while !self.owner.giving_up.is_empty() {
                self.given_up(0);
            }
            self.step(Step::Relieve { is_slow: true })?;
            self.step(Step::Tick { may_park: true })?;
        }
        let state = self.check_state()?;
        let end = self.log.len() as i64;
        prop_assert_eq!(state, PartitionState { last_reset: self.stored.last_reset, ..PartitionState::at(end) });
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_is_parked_order_is_kept_nothing_is_lost_and_every_state_is_true(sizes in sizes(), steps in steps(300)) {
        let mut model = Model::new(sizes);
        for step in steps {
            model.step(step)?;
        }
        model.drain()?;
    }
}

fn fixed(users: &[usize], window_events: usize, state: &PartitionState) -> Model {
    let sizes = Sizes { window_events, window_bytes: 1 << 20, backlog: 4, users_max: 100, run: 1 };
    let mut model = Model::new(sizes);
    model.log = users.to_vec();
    model.stored = state.clone();
    model.begin();
    model
}

#[test]
fn a_held_user_without_events_needs_nothing_of_the_log() {
    let mut model = fixed(&[2, 2, 2, 1, 2], 10, &PartitionState::at(0));
    model.step(Step::Hold { user: 1 }).unwrap();
    model.owner.read(&model.log, 3);
    let first = |model: &Model| model.owner.state(model.now).users[&key(1)].parked.unwrap().first;
    assert_eq!(first(&model), 3, "it has no event yet");
    model.owner.read(&model.log, 2);
    assert_eq!(first(&model), 3, "its first event is the one at 3");
    model.step(Step::Release { user: 1 }).unwrap();
    let request = model.owner.parked.next_sweep(memory!(model.owner), model.now).unwrap();
    assert_eq!(request.from, 3);
}

#[test]
fn a_held_user_with_settled_events_ahead_of_its_failure_gets_none_of_them_again() {
    // The events of user 1 at 2 and 5 are settled in the map, and the one at 8 has failed.
    let mut history = FailureHistory::default();
    history.add_failure(Moment::ZERO, Duration::ZERO);
    let failed = history.to_stored(8, Duration::from_secs(1), |_| false, clocks(Moment::ZERO));
    let users = ListedUsers::from([(key(1), UserState { parked: None, failed: Some(failed) })]);
    let state = PartitionState { settled: vec![2..3, 5..6], users, ..PartitionState::at(0) };
    let mut model = fixed(&[2, 2, 1, 2, 2, 1, 2, 2, 1, 2], 10, &state);
    model.step(Step::Hold { user: 1 }).unwrap();
    model.owner.read(&model.log, 10);
    model.step(Step::Release { user: 1 }).unwrap();
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn a_failure_that_is_not_of_the_next_event_of_its_user_is_an_error() {
    let mut history = FailureHistory::default();
    history.add_failure(Moment::ZERO, Duration::ZERO);
    let failed = history.to_stored(2, Moment::ZERO, |_| false, clocks(Moment::ZERO));
    let users = ListedUsers::from([(key(1), UserState { parked: None, failed: Some(failed) })]);
    let mut owner = fixed(&[1, 2, 1], 10, &PartitionState { users, ..PartitionState::at(0) }).owner;
    owner.parked.read(event(0, 1), memory!(owner)).unwrap();
    owner.parked.read(event(1, 2), memory!(owner)).unwrap();
    let Err(NotAdmitted::Misplaced(error)) = owner.parked.read(event(2, 1), memory!(owner)) else {
        panic!("the event at 0 is unsettled")
    };
    assert_eq!(error, MisplacedFailure { offset: 2, earlier: 0 });
    assert_eq!((owner.lanes.events(), owner.window.events()), (2, 2));
}

#[test]
fn a_sweep_that_ends_before_the_failed_event_keeps_its_account() {
    // User 1 has no event from 1 on before the one at 3, which has failed. The reader has not read that one yet.
    let mut history = FailureHistory::default();
    history.add_failure(Moment::ZERO, Duration::ZERO);
    let failed = history.to_stored(3, Moment::ZERO, |_| false, clocks(Moment::ZERO));
    let parked = Some(ParkedUser { first: 1, ..ParkedUser::default() });
    let users = ListedUsers::from([(key(1), UserState { parked, failed: Some(failed.clone()) })]);
    let settled = std::iter::once(3..4).collect();
    let state = PartitionState { settled, users, ..PartitionState::at(2) };
    let mut model = fixed(&[2, 2, 2, 1, 2], 10, &state);
    model.owner.wake(model.now);
    assert!(model.owner.sweep(&model.log, 10, model.now), "it looks for the event from 1 on");
    let stored = |model: &Model| model.owner.state(model.now).users[&key(1)].failed.clone();
    assert_eq!(stored(&model), Some(failed.clone()));
    model.owner.read(&model.log, 10);
    assert_eq!(stored(&model), Some(failed), "the lane continues the account");
    let id = model.owner.lanes.find(key(1).as_deref()).unwrap();
    assert_eq!(model.owner.lanes.view(id).history.map(|history| history.failures), Some(1));
    model.drain().unwrap();
}

#[test]
fn users_whose_given_up_events_are_not_in_memory_are_not_looked_at() {
    let users = (1..=1_000).map(|user| {
        let parked = ParkedUser { first: 0, held: true, give_up_below: Some(i64::MAX) };
        (key(user), UserState { parked: Some(parked), failed: None })
    });
    let state = PartitionState { users: users.collect(), ..PartitionState::at(1) };
    let mut owner = fixed(&[1, 2, 2], 10, &state).owner;
    assert_eq!(owner.parked.giving_up.len(), 1_000);
    assert!(owner.parked.maybe_give_up.is_empty());
    owner.parked.read(event(1, 2), memory!(owner)).unwrap();
    assert_eq!(owner.parked.next_to_give_up(memory!(owner)), None, "the event at 0 may be of user 2");
    assert!(owner.sweep(&[1, 2, 2], 10, Moment::ZERO));
    let mut offsets = Vec::new();
    while let Some(token) = owner.parked.next_to_give_up(memory!(owner)) {
        offsets.push(owner.lanes.giving_up(token).0.offset);
        assert!(owner.parked.maybe_give_up.len() <= 1);
    }
    assert_eq!(offsets, [0, 1]);
    assert!(owner.parked.maybe_give_up.is_empty(), "their dead letters are being written");
}

/// Users 2 and 3 have failed with their first events, and wait for a minute.
fn with_two_failing_heads(model: Model) -> Model {
    with_failing_heads(model, 2, Duration::from_secs(60))
}

/// Everything is read that the window has room for, and the first event of so many users fails.
fn with_failing_heads(mut model: Model, users: usize, later: Moment) -> Model {
    model.owner.read(&model.log, model.log.len());
    for _ in 0..users {
        model.start().unwrap();
    }
    for (started, _) in std::mem::take(&mut model.owner.in_flight) {
        let retry = |_: &Event, history: &mut FailureHistory| {
            history.add_failure(Moment::ZERO, Duration::ZERO);
            Decision::Retry { at: later }
        };
        model.owner.lanes.settle(started.token, 0, |_| (), retry);
    }
    model
}

#[test]
fn failing_heads_of_parked_users_leave_room_for_another_parked_user() {
    let mut model = with_two_failing_heads(fixed(&[2, 3, 1], 4, &PartitionState::at(0)));
    model.step(Step::Hold { user: 1 }).unwrap();
    // Both failing users are parked as they are.
    model.owner.parked.tick(0, true, memory!(model.owner), model.now);
    assert_eq!((model.owner.window.parked_events(), model.owner.parked.users()), (2, 3));
    model.step(Step::Release { user: 1 }).unwrap();
    assert!(!model.owner.sweep(&model.log, 10, model.now), "parked users have no room");
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert!(model.owner.sweep(&model.log, 10, model.now));
    model.start().unwrap();
    assert_eq!(model.owner.in_flight[0].1[0].offset, 2);
}

#[test]
fn a_large_event_does_not_wait_for_failing_heads() {
    let large = Event { offset: 2, record: Record::new(Some(b"user-1"), Some(&[0; 500]), &[], 0) };
    let mut model = with_two_failing_heads(fixed(&[2, 3], 100, &PartitionState::at(0)));
    let used = model.owner.window.bytes();
    // Less than half of the window is used, and the event needs more than the rest.
    model.owner.window.resize(100, used + large.record.window_bytes() - 1);
    assert!(!model.owner.window.is_half_full());
    let Err(NotAdmitted::NoRoom(large)) = model.owner.parked.read(large, memory!(model.owner)) else {
        panic!("the window has no room")
    };
    model.owner.pending.push_front(large);
    model.step(Step::Relieve { is_slow: true }).unwrap();
    let large = model.owner.pending.pop_front().unwrap();
    model.owner.parked.read(large, memory!(model.owner)).unwrap();
}

#[test]
fn the_sweep_fills_a_lane_up_to_an_eighth_of_the_window() {
    let mut model = fixed(&[1; 40], 16, &PartitionState::at(0));
    model.owner = Owner::new(&model.stored, Sizes { backlog: 10, ..model.sizes }, model.now);
    model.step(Step::Hold { user: 1 }).unwrap();
    model.owner.read(&model.log, 40);
    model.step(Step::Release { user: 1 }).unwrap();
    model.owner.sweep(&model.log, 40, model.now);
    assert_eq!(model.owner.window.events(), 2);
    model.drain().unwrap();
}

#[test]
fn the_sweep_fills_a_lane_up_to_an_eighth_of_the_bytes_of_the_window_and_one_event() {
    let mut model = fixed(&[1; 40], 1_000, &PartitionState::at(0));
    let bytes = event(0, 1).record.window_bytes();
    // An eighth are two and a half events.
    model.sizes.window_bytes = bytes * 20;
    model.owner = Owner::new(&model.stored, Sizes { backlog: 10, ..model.sizes }, model.now);
    model.step(Step::Hold { user: 1 }).unwrap();
    model.owner.read(&model.log, 40);
    model.step(Step::Release { user: 1 }).unwrap();
    model.owner.sweep(&model.log, 40, model.now);
    assert_eq!(model.owner.window.events(), 3);
    model.drain().unwrap();
}

#[test]
fn slow_users_that_wait_for_a_slot_keep_their_next_event_only() {
    let mut model = fixed(&[1, 2, 3, 1, 2, 3, 4], 6, &PartitionState::at(0));
    model.owner.read(&model.log, 7);
    let has_room = |model: &Model| !model.owner.window.is_half_full();
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert!(!has_room(&model), "their standing is not known yet");
    model.now += Duration::from_millis(100);
    assert!(model.owner.lanes.sort_ready(10, |_| Standing::Doubtful));
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert_eq!(model.owner.lanes.events(), 3, "one of each user");
    model.owner.read(&model.log, 7);
    assert!(model.owner.lanes.find(Some(b"user-4")).is_some(), "reading continues");
    model.drain().unwrap();
}

fn large_event(offset: i64, user: usize, bytes: usize) -> Event {
    Event { offset, record: Record::new(key(user).as_deref(), Some(&vec![0; bytes]), &[], 0) }
}

#[test]
fn an_event_larger_than_the_room_of_parked_users_waits_for_none_of_them() {
    let mut model = fixed(&[1, 2, 3], 100, &PartitionState::at(0));
    for user in [1, 2, 3] {
        model.step(Step::Hold { user }).unwrap();
    }
    model.owner.read(&model.log, 3);
    for user in [1, 2, 3] {
        model.step(Step::Release { user }).unwrap();
    }
    model.owner.window.resize(100, 10_000);
    let owner = &mut model.owner;
    assert_eq!(owner.parked.next_sweep(memory!(*owner), model.now).unwrap().from, 0);
    owner.parked.sweep(event(0, 1), memory!(*owner), model.now).unwrap();
    model.start().unwrap();
    // The attempt of user 1 does not end. The event of user 2 is larger than the half of parked users. It is tried, and then
    // another one is.
    let owner = &mut model.owner;
    owner.parked.sweep(large_event(1, 2, 6_000), memory!(*owner), model.now).unwrap();
    owner.parked.sweep(event(2, 3), memory!(*owner), model.now).unwrap_err();
    model.start().unwrap();
    model.finish(1, 1, 9);
    assert_eq!((model.owner.window.events(), model.owner.in_flight.len()), (1, 1));
    model.owner.parked.sweep(event(2, 3), memory!(model.owner), model.now).unwrap();
}

#[test]
fn a_full_window_leaves_room_for_the_next_event_of_a_parked_user() {
    let mut model = fixed(&[1, 2, 2, 2, 2, 2, 2], 4, &PartitionState::at(0));
    model.step(Step::Hold { user: 1 }).unwrap();
    model.owner.read(&model.log, 7);
    assert_eq!(model.owner.window.events(), 4);
    model.step(Step::Release { user: 1 }).unwrap();
    // Whenever an event ends, the reader has another one for its room.
    model.owner.sweep(&model.log, 1, model.now);
    assert_eq!((model.owner.window.events(), model.owner.window.parked_events()), (5, 1));
    model.check_memory().unwrap();
    model.drain().unwrap();
}

#[test]
fn the_number_of_parked_users_follows_the_share_of_the_partition() {
    let mut model = with_failing_heads(fixed(&[1, 2, 3, 4, 5], 10, &PartitionState::at(0)), 5, Duration::from_secs(60));
    // Every user is far behind, so as many are parked as the list has room for.
    for (users_max, parked) in [(2, 2), (3, 3), (1, 3), (4, 4)] {
        model.owner.parked.set_users_max(users_max);
        model.owner.parked.tick(0, true, memory!(model.owner), model.now);
        assert_eq!(model.owner.parked.users(), parked, "at most {users_max}");
    }
    model.drain().unwrap();
}
