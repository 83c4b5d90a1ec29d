//! Properties of the pools, and a simulation of users, some of whom hang: how long do the others wait?

use super::*;
use crate::core::Moment;
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;

use Standing::{Doubtful, Newcomer, Served};

proptest! {
    #[test]
    fn pools_are_bounded_and_the_queue_of_a_standing_is_first_come_first_served(
        concurrency in 1usize..20, steps in proptest::collection::vec((0u8..6, any::<u8>()), 0..300),
    ) {
        let mut slots = Slots::new(concurrency);
        let (mut held, mut waiting): (Vec<HeldSlot>, [VecDeque<u32>; 3]) = (Vec::new(), Default::default());
        let (mut last_waiter, mut limit, mut is_full_limit) = (0, concurrency, true);
        for (step, number) in steps {
            let standing = Standing::ALL[usize::from(number) % 3];
            let at = usize::from(number) % held.len().max(1);
            let [served, newcomers, doubtful] = Standing::ALL.map(|standing| young(&held, standing));
            let first = served + newcomers;
            match step {
                0 | 1 => match slots.begin(standing) {
                    Some(slot) => {
                        prop_assert!(waiting[standing as usize].is_empty(), "one that waits comes first");
                        let has_own_place = standing == Served && served < limit / 4;
                        let in_pool = if standing == Doubtful { doubtful } else { first };
                        prop_assert!(in_pool < limit || has_own_place, "{} young attempts", in_pool);
                        held.push(slot);
                    }
                    None => {
                        prop_assert!(!is_full_limit || held.len() >= concurrency, "{:?} waits without need", standing);
                        last_waiter += 1;
                        slots.wait(standing, last_waiter);
                        waiting[standing as usize].push_back(last_waiter);
                    }
                },
                2 if !held.is_empty() => slots.became_old(&mut held[at]),
                3 if !held.is_empty() => slots.end(held.swap_remove(at)),
                4 if !held.is_empty() => {
                    let before = (held[at].standing, held[at].is_old);
                    let changed = slots.change_standing(&mut held[at], standing);
                    prop_assert_eq!(held[at].standing, if changed { standing } else { before.0 });
                    prop_assert!(!changed || before.0 == standing || (before.0 != Doubtful && standing != Doubtful));
                    prop_assert_eq!(held[at].is_old, before.1);
                }
                5 => {
                    limit = (usize::from(number) % (concurrency + 3)).clamp(1, concurrency);
                    slots.set_limit(usize::from(number) % (concurrency + 3));
                    is_full_limit = limit == concurrency;
                }
                _ => {}
            }
            while let Some((waiter, slot)) = slots.next_granted() {
                prop_assert_eq!(waiting[slot.standing as usize].pop_front(), Some(waiter));
                held.push(slot);
            }
            prop_assert_eq!(slots.in_flight(), held.len());
            prop_assert!(held.len() <= attempts_max(concurrency));
            prop_assert!(young(&held, Served) + young(&held, Newcomer) <= concurrency + concurrency / 4);
            prop_assert!(held.iter().filter(|slot| slot.standing == Doubtful).count() <= concurrency);
            let has_waiting = waiting.iter().any(|waiting| !waiting.is_empty());
            prop_assert!(!(has_waiting && held.is_empty()), "all wait and nothing is in flight");
            prop_assert!(!(has_waiting && is_full_limit && held.len() < concurrency), "a waiter is forgotten");
        }
    }
}

/// The young attempts of this standing.
fn young(held: &[HeldSlot], standing: Standing) -> usize {
    held.iter().filter(|slot| !slot.is_old && slot.standing == standing).count()
}

#[test]
fn however_many_attempts_hang_in_bad_health_others_get_their_part_of_the_slots() {
    let mut slots = Slots::<()>::new(256);
    slots.set_limit(4);
    let mut hanging = Vec::new();
    // Each second, those that hang take all slots that they may have, until none is left for them.
    while let Some(mut slot) = slots.begin(Doubtful) {
        slots.became_old(&mut slot);
        hanging.push(slot);
    }
    assert_eq!(hanging.len(), 256);
    let served: Vec<_> = std::iter::from_fn(|| slots.begin(Served)).collect();
    assert_eq!(served.len(), 4);
    served.into_iter().for_each(|slot| slots.end(slot));
    assert!(slots.begin(Newcomer).is_some());
}

#[test]
fn slow_attempts_stop_newcomers_if_they_have_half_of_the_second_pool_and_the_first_one_has_room() {
    let mut slots = Slots::<()>::new(8);
    let mut held: Vec<HeldSlot> = Vec::new();
    for (old, expected) in [(0, false), (1, false), (3, false), (4, true), (8, true)] {
        let is_young = |slot: &&mut HeldSlot| !slot.is_old;
        let became_old = held.iter().filter(|slot| slot.is_old).count();
        held.iter_mut().filter(is_young).take(old - became_old).for_each(|slot| slots.became_old(slot));
        held.extend(std::iter::from_fn(|| slots.begin(Newcomer)));
        assert_eq!(slots.slow_attempts_stop_newcomers(), expected, "{old} attempts are slow");
    }
    held.extend(std::iter::from_fn(|| slots.begin(Served)));
    assert!(!slots.slow_attempts_stop_newcomers(), "the first pool is full");
    held.into_iter().for_each(|slot| slots.end(slot));
}

#[test]
fn while_no_attempt_is_slow_there_is_one_pool_of_concurrency_slots() {
    for standing in [Served, Newcomer] {
        let mut slots = Slots::<()>::new(8);
        let held: Vec<_> = std::iter::from_fn(|| slots.begin(standing)).collect();
        assert_eq!(held.len(), 8, "{standing:?}");
    }
}

/// How long an attempt of a user takes that begins at this moment.
type Service = dyn Fn(u64, Moment) -> Duration;

/// Users send events at a steady pace, in turns. Each user is one lane.
#[derive(Clone)]
struct Load {
    users: Range<u64>,
    /// Events of all these users together, in a second.
    per_second: u64,
    from: Moment,
}

const CONCURRENCY: usize = 256;
const TIMEOUT: Duration = Duration::from_secs(15);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// The simulation of one partition.
struct Simulation<'a> {
    slots: Slots<()>,
    paces: UserPaces,
    service: &'a Service,
    /// What happens next: its time, a number that makes it unique, and what it is.
    agenda: BinaryHeap<Reverse<(Moment, u64, Step)>>,
    steps: u64,
    lanes: BTreeMap<u64, Lane>,
    ready: [VecDeque<u64>; 3],
    held: BTreeMap<u64, (HeldSlot, Moment)>,
    /// How long each event waited for an attempt while it was ready.
    waited: BTreeMap<u64, Vec<Duration>>,
    attempts_max: usize,
}

#[derive(Debug, Default)]
struct Lane {
    events: u64,
    failures: u32,
    ready_since: Moment,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrives { user: u64 },
    BecomesOld { user: u64, began: Moment },
    Ends { user: u64, delivered: bool },
    Ready { user: u64 },
}

impl Simulation<'_> {
    fn at(&mut self, moment: Moment, step: Step) {
        self.steps += 1;
        self.agenda.push(Reverse((moment, self.steps, step)));
    }

    fn ready(&mut self, user: u64, now: Moment) {
        self.ready[self.paces.standing(user) as usize].push_back(user);
        self.lanes.get_mut(&user).unwrap().ready_since = now;
    }

    fn start(&mut self, now: Moment) {
        for standing in Standing::ALL {
            while let Some(user) = self.ready[standing as usize].front().copied() {
                let Some(slot) = self.slots.begin(standing) else { break };
                self.ready[standing as usize].pop_front();
                self.waited.entry(user).or_default().push(now - self.lanes[&user].ready_since);
                let takes = (self.service)(user, now);
                self.held.insert(user, (slot, now));
                self.at(now + OLD_AFTER, Step::BecomesOld { user, began: now });
                self.at(now + takes.min(TIMEOUT), Step::Ends { user, delivered: takes < TIMEOUT });
                self.attempts_max = self.attempts_max.max(self.held.len());
            }
        }
    }

    fn step(&mut self, step: Step, now: Moment) {
        match step {
            Step::Arrives { user } => {
                let lane = self.lanes.entry(user).or_default();
                lane.events += 1;
                if lane.events == 1 {
                    self.ready(user, now);
                }
            }
            Step::BecomesOld { user, began } => {
                if let Some((slot, since)) = self.held.get_mut(&user)
                    && *since == began
                {
                    self.slots.became_old(slot);
                }
            }
            Step::Ends { user, delivered } => {
                let (slot, began) = self.held.remove(&user).unwrap();
                self.slots.end(slot);
                self.paces.attempted(user, now - began, delivered);
                let lane = self.lanes.get_mut(&user).unwrap();
                if delivered {
                    (lane.events, lane.failures) = (lane.events - 1, 0);
                    if lane.events > 0 {
                        self.ready(user, now);
                    }
                } else {
                    lane.failures += 1;
                    let delay = Duration::from_millis(100) * 2_u32.pow(lane.failures.min(20) - 1);
                    self.at(now + delay.min(BACKOFF_MAX), Step::Ready { user });
                }
            }
            Step::Ready { user } => self.ready(user, now),
        }
    }
}

/// How long the attempts of some users waited.
#[derive(Debug)]
struct Waits {
    p50: Duration,
    p99: Duration,
    longest: Duration,
    /// The most attempts in flight at one time.
    attempts_max: usize,
}

/// Runs the loads for this long, and measures the users in `of`.
fn simulate(loads: &[Load], until: Moment, service: &Service, of: impl Fn(u64) -> bool) -> Waits {
    let mut simulation = Simulation {
        slots: Slots::new(CONCURRENCY),
        paces: UserPaces::new(100_000),
        service,
        agenda: BinaryHeap::new(),
        steps: 0,
        lanes: BTreeMap::new(),
        ready: Default::default(),
        held: BTreeMap::new(),
        waited: BTreeMap::new(),
        attempts_max: 0,
    };
    for Load { users, per_second, from } in loads {
        let interval = Duration::from_nanos(1_000_000_000 / per_second);
        let mut moment = *from;
        for user in users.clone().cycle() {
            if moment >= until {
                break;
            }
            simulation.at(moment, Step::Arrives { user });
            moment += interval;
        }
    }
    while let Some(Reverse((now, _, step))) = simulation.agenda.pop() {
        if now >= until {
            break;
        }
        simulation.step(step, now);
        simulation.start(now);
    }
    // What still waits has waited until the end.
    for user in simulation.ready.iter().flatten() {
        let waited = until - simulation.lanes[user].ready_since;
        simulation.waited.entry(*user).or_default().push(waited);
    }
    let waited = simulation.waited.into_iter().filter(|(user, _)| of(*user));
    let mut waited: Vec<Duration> = waited.flat_map(|(_, waited)| waited).collect();
    waited.sort_unstable();
    let at = |percent: usize| waited[(waited.len() * percent / 100).min(waited.len() - 1)];
    Waits { p50: at(50), p99: at(99), longest: at(100), attempts_max: simulation.attempts_max }
}

const QUICK: Duration = Duration::from_millis(5);
const HANGS: Duration = Duration::MAX;
/// Users from this one on are hanging or slow.
const BAD: u64 = 1_000_000;

fn seconds(seconds: u64) -> Moment {
    Moment::from_secs(seconds)
}

#[test]
fn users_that_hang_delay_none_of_those_that_were_served_before() {
    let service: &Service = &|user, _| if user >= BAD { HANGS } else { QUICK };
    let others = Load { users: 0..1_000, per_second: 1_000, from: Moment::ZERO };
    for (hanging, within) in [(300, 1), (3_000, 1), (3_000, 10)] {
        let bad = Load { users: BAD..BAD + hanging, per_second: hanging / within, from: seconds(5) };
        let waits = simulate(&[others.clone(), bad], seconds(25), service, |user| user < BAD);
        assert_eq!(waits.longest, Duration::ZERO, "{hanging} users that hang within {within} s: {waits:?}");
        assert!(waits.attempts_max <= attempts_max(CONCURRENCY), "{waits:?}");
    }
}

#[test]
fn slow_users_keep_their_pace_and_delay_no_other() {
    let service: &Service = &|user, _| if user >= BAD { seconds(5) } else { QUICK };
    let others = Load { users: 0..1_000, per_second: 2_000, from: Moment::ZERO };
    let slow = Load { users: BAD..BAD + 100, per_second: 200, from: Moment::ZERO };
    let loads = [others, slow];
    let waits = simulate(&loads, seconds(25), service, |user| user < BAD);
    assert_eq!(waits.longest, Duration::ZERO, "{waits:?}");
    let waits = simulate(&loads, seconds(25), service, |user| user >= BAD);
    assert_eq!(waits.longest, Duration::ZERO, "100 users fit into the second pool: {waits:?}");
}

#[test]
fn newcomers_wait_only_for_newcomers_that_hang_at_the_same_time() {
    let service: &Service = &|user, _| if user >= BAD { HANGS } else { QUICK };
    // Each of the others sends one event, so that all of them are newcomers.
    let others = Load { users: 0..100_000, per_second: 500, from: Moment::ZERO };
    let bad = |users| Load { users: BAD..BAD + users, per_second: users, from: seconds(5) };
    let waits = simulate(&[others.clone(), bad(300)], seconds(40), service, |user| user < BAD);
    assert!(waits.p50.is_zero() && waits.p99 < seconds(2) && waits.longest < seconds(3), "{waits:?}");
    let waits = simulate(&[others.clone(), bad(380)], seconds(40), service, |user| user < BAD);
    assert!(waits.longest < seconds(6), "fewer than 3/2 of 256: {waits:?}");
    // All of these cannot be told apart from 3,000 that hang, until an attempt of each of those has become old.
    let waits = simulate(&[others, bad(3_000)], seconds(40), service, |user| user < BAD);
    assert!(waits.longest > seconds(10), "{waits:?}");
}

#[test]
fn served_users_that_begin_to_hang_do_not_stop_the_others_while_the_slots_suffice() {
    // One of ten shards of the destination hangs from second 5 on: for 300 of 3,000 users.
    let service: &Service = &|user, now| if user % 10 == 0 && now >= seconds(5) { HANGS } else { QUICK };
    let load = Load { users: 0..3_000, per_second: 2_000, from: Moment::ZERO };
    let waits = simulate(&[load], seconds(25), service, |user| user % 10 != 0);
    assert_eq!(waits.longest, Duration::ZERO, "{waits:?}");
}
