//! Users, a destination and the breaker with real lanes and real tries, in simulated time. A scenario measures what the
//! breaker is for: who waits and how long, how much gets through, and which tries count.
//!
//! ```text
//!  load ──▶ lanes ── gate, pace, --concurrency ──▶ destination model ── verdict after a latency ──▶ breaker, tries ──┐
//!             ▲                                                                                                     │
//!             └───────────────────────────── backoff, or the end of an outage ◀─────────────────────────────────────┘
//! ```

mod isolation;
mod outages;
mod overload;

use super::*;
use crate::core::backoff::Backoff;
use crate::core::event::{Event, Record};
use crate::core::lanes::{Lanes, Started, Token};
use crate::core::random;
use crate::core::slots::Standing;
use crate::core::tries::{Decision, OnExhausted, TryPolicy};
use crate::core::verdict::Failed;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;

const RETRY: Verdict = Verdict::Retry { after: None };

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What the destination does with an attempt of a user that begins now: the failure if there is one, and how long it takes.
type DestinationModel = dyn FnMut(u32, Moment) -> (Option<Verdict>, Duration);

/// One event of a user at a moment.
type Arrival = (Moment, u32);

struct Scenario {
    concurrency: usize,
    /// The number of attempts in flight, of users that are suspect. The others do not wait for them.
    suspects_max: usize,
    attempts_max: Option<u32>,
    backoff_max: Duration,
    arrivals: Vec<Arrival>,
    destination: Box<DestinationModel>,
}

/// What a scenario measured.
#[derive(Debug, Default)]
struct Measured {
    /// For each event in the order of arrival: its user, when it arrived, and when it was delivered.
    events: Vec<(u32, Moment, Option<Moment>)>,
    /// The users of events that were given up.
    given_up: Vec<u32>,
    /// Failures that counted as tries, for each user. Tries that were taken back are included.
    tries: BTreeMap<u32, u32>,
    /// Each failure: when, of which user, and whether it counted as a try.
    failures: Vec<(Moment, u32, bool)>,
    /// When attempts began.
    attempts: Vec<Moment>,
    /// Attempts that began as probes.
    probes: usize,
    /// The largest number of attempts in flight.
    in_flight_max: usize,
}

impl Scenario {
    fn new(
        arrivals: Vec<Arrival>,
        destination: impl FnMut(u32, Moment) -> (Option<Verdict>, Duration) + 'static,
    ) -> Self {
        Self {
            concurrency: 64,
            suspects_max: usize::MAX,
            attempts_max: None,
            backoff_max: seconds(300),
            arrivals,
            destination: Box::new(destination),
        }
    }

    /// Runs until this moment.
    fn run(self, until: Moment) -> Measured {
        let mut run = ScenarioRun {
            policy: TryPolicy {
                attempts_max: self.attempts_max,
                give_up_after: None,
                on_exhausted: OnExhausted::DeadLetter,
                backoff: Backoff::new(ms(100), self.backoff_max, true).unwrap(),
                retry_after_max: seconds(300),
            },
            breaker: Breaker::new(),
            lanes: Lanes::new(10, 0),
            in_flight: BinaryHeap::new(),
            attempts: BTreeMap::new(),
            recovery: None,
            random: 0,
            measured: Measured::default(),
            concurrency: self.concurrency,
            suspects_max: self.suspects_max,
            destination: self.destination,
        };
        let mut arrivals = self.arrivals;
        arrivals.sort_unstable();
        let mut arrivals = arrivals.into_iter().peekable();
        let mut now = Moment::ZERO;
        while now < until {
            while let Some((at, user)) = arrivals.next_if(|(at, _)| *at <= now) {
                run.arrives(user, at);
            }
            while run.in_flight.peek().is_some_and(|Reverse((at, _))| *at <= now) {
                run.ends(now);
            }
            run.lanes.wake(now);
            let next_start = run.start(now);
            let next_end = run.in_flight.peek().map(|Reverse((at, _))| *at);
            let next_arrival = arrivals.peek().map(|(at, _)| *at);
            let next = [next_start, next_end, next_arrival, run.lanes.next_wakeup()].into_iter().flatten().min();
            let Some(next) = next else { break };
            assert!(next > now, "time stands still at {now:?}");
            now = next;
        }
        run.measured
    }
}

struct ScenarioRun {
    policy: TryPolicy,
    breaker: Breaker,
    lanes: Lanes,
    /// Attempts in flight by their end.
    in_flight: BinaryHeap<Reverse<(Moment, u64)>>,
    attempts: BTreeMap<u64, (Token, Attempt, Option<Verdict>, u32)>,
    recovery: Option<Recovery>,
    random: u64,
    measured: Measured,
    concurrency: usize,
    suspects_max: usize,
    destination: Box<DestinationModel>,
}

impl ScenarioRun {
    /// The next run while the breaker is closed.
    fn next(&mut self, events: &mut Vec<Event>) -> Option<Started> {
        let Self { lanes, breaker, attempts, suspects_max, .. } = self;
        if *suspects_max == usize::MAX {
            return lanes.next(1, usize::MAX, events);
        }
        lanes.sort_ready(
            usize::MAX,
            |user| if breaker.is_suspect(user) { Standing::Doubtful } else { Standing::Served },
        );
        let suspects = attempts.values().filter(|(_, attempt, ..)| breaker.is_suspect(attempt.user)).count();
        let is_free = |standing: &Standing| *standing != Standing::Doubtful || suspects < *suspects_max;
        let standing = lanes.ready_standings().find(is_free)?;
        lanes.next_of(standing, 1, usize::MAX, events)
    }

    fn arrives(&mut self, user: u32, at: Moment) {
        let offset = self.measured.events.len() as i64;
        let record = Record::new(Some(&user.to_be_bytes()), Some(b""), &[], 0);
        self.lanes.admit(Event { offset, record });
        self.measured.events.push((user, at, None));
    }

    /// Starts what may start. Returns when more may start if nothing happens before.
    fn start(&mut self, now: Moment) -> Option<Moment> {
        loop {
            let mut events = Vec::new();
            let (started, until) = match self.breaker.gate(now) {
                Gate::Closed if self.in_flight.len() >= self.breaker.attempts_allowed(self.concurrency, now) => {
                    return self.breaker.attempts_allowed_grow_at(now);
                }
                Gate::Closed => (self.next(&mut events), None),
                Gate::HalfOpen { .. } if self.in_flight.len() >= self.concurrency => return None,
                Gate::HalfOpen { ranks, until } => {
                    self.breaker.users_wait(0, self.lanes.each_user());
                    let breaker = &self.breaker;
                    (self.lanes.next_probe(ranks, |user| breaker.probe_rank(user), &mut events), until)
                }
                Gate::Open { until } => return until,
            };
            let Some(started) = started else { return until };
            let attempt = self.breaker.begin(started.user, now);
            let user = u32::from_be_bytes(events[0].record.key().unwrap().try_into().unwrap());
            let (failure, latency) = (self.destination)(user, now);
            self.in_flight.push(Reverse((now + latency, attempt.seq)));
            self.attempts.insert(attempt.seq, (started.token, attempt, failure, user));
            self.measured.attempts.push(now);
            self.measured.probes += usize::from(attempt.probe);
            self.measured.in_flight_max = self.measured.in_flight_max.max(self.in_flight.len());
        }
    }

    fn ends(&mut self, now: Moment) {
        let Some(Reverse((_, seq))) = self.in_flight.pop() else { return };
        let (token, attempt, failure, user) = self.attempts.remove(&seq).unwrap();
        let delivered = usize::from(failure.is_none());
        if failure.is_none() {
            self.breaker.delivered(&attempt, now);
        }
        self.random += 1;
        let Self { lanes, breaker, measured, policy, .. } = self;
        let random = random::mix(self.random);
        let settled = |event: &Event| measured.events[event.offset as usize].2 = Some(now);
        let mut tries = 0;
        let decision = lanes.settle(token, delivered, settled, |_, history| {
            let failed = Failed::new(failure.unwrap(), "");
            let before = history.tries();
            let decision = policy.judge(breaker, &attempt, &failed, history, now, random);
            tries = history.tries().saturating_sub(before);
            decision
        });
        *measured.tries.entry(user).or_default() += tries;
        if failure.is_some() {
            measured.failures.push((now, user, tries > 0));
        }
        if let Some(Decision::GiveUp(_)) = decision {
            lanes.given_up(token, |_| ());
            measured.given_up.push(user);
        }
        let recovery = breaker.last_recovery();
        if let Some(recovery) = recovery.filter(|_| recovery != self.recovery) {
            self.recovery = Some(recovery);
            lanes.wake_failed_during(&recovery);
        }
    }
}

impl Measured {
    /// The longest time from arrival to delivery, for the events of these users that arrived in this time. An event that was
    /// not delivered is a panic.
    fn longest_wait(&self, users: Range<u32>, arrived: Range<Moment>) -> Duration {
        let events = self.events.iter().filter(|(user, at, _)| users.contains(user) && arrived.contains(at));
        events
            .map(|(user, at, delivered)| {
                delivered.unwrap_or_else(|| panic!("an event of user {user} of {at:?} was not delivered")) - *at
            })
            .max()
            .expect("such events arrived")
    }

    fn delivered(&self, within: Range<Moment>) -> usize {
        self.events.iter().filter(|(_, _, delivered)| delivered.is_some_and(|at| within.contains(&at))).count()
    }

    fn tries(&self, users: Range<u32>) -> u32 {
        self.tries.range(users).map(|(_, tries)| tries).sum()
    }
}

/// Events at a steady rate, of these users in turns.
fn steady(users: Range<u32>, per_second: u64, time: Range<Moment>) -> Vec<Arrival> {
    let events = (time.end - time.start).as_millis() as u64 * per_second / 1_000;
    let at = |event: u64| time.start + Duration::from_micros(event * 1_000_000 / per_second);
    (0..events).zip(users.cycle()).map(|(event, user)| (at(event), user)).collect()
}

/// One event of each of these users at the same moment.
fn burst(users: Range<u32>, at: Moment) -> Vec<Arrival> {
    users.map(|user| (at, user)).collect()
}
