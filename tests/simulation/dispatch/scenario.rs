//! Turns a seed into a configuration, users, their load, and a plan of faults.

use crate::dispatch::commands::Given;
use crate::dispatch::memory_destination::{Behaviour, Outage};
use crate::dispatch::oracle::{BackoffRule, Rules, User};
use crate::dispatch::replays::RequestedReplay;
use crate::dispatch::world::{Rates, Single};
use crate::harness::Random;
use eventd::core::backoff::Backoff;
use eventd::core::parking::ParkingLimits;
use eventd::core::token_bucket::Rate;
use eventd::core::tries::{OnExhausted, TryPolicy};
use eventd::destination::BatchLimits;
use eventd::dispatch::{Config, OnGap, Start, WhenStopped};
use eventd::replay::position::Position;
use eventd::replay::range::Range;
use eventd::replay::rewind::Reposition;
use eventd::replay::select::Selection;
use std::time::Duration;

/// What the driver does at one moment of simulated time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    /// Appends events of one user with one append.
    Append {
        user: usize,
        many: u64,
        bytes: usize,
    },
    /// Kills a process at once.
    Crash {
        slot: usize,
    },
    /// Kills a process after this many steps, at any await.
    CrashWithin {
        slot: usize,
        steps: u64,
    },
    /// Tells a process to stop, and starts it again later.
    Stop {
        slot: usize,
    },
    /// Assigns a partition to the process in this slot.
    MovePartition {
        partition: u32,
        slot: usize,
    },
    /// Cuts a process off from the group until its session ends.
    CutOff {
        slot: usize,
    },
    /// Begins or ends a phase in which every attempt fails.
    Outage(Option<Outage>),
    /// An operator requests an offset reset to this percentage of what a partition holds.
    Reposition {
        partition: u32,
        percent: i64,
        ahead: bool,
    },
    /// An operator starts the scenario's replay of this number, or starts it again while it runs.
    Replay {
        number: usize,
    },
    /// Kills the replay after this many steps, at any await.
    CrashReplayWithin {
        number: usize,
        steps: u64,
    },
    StopReplay {
        number: usize,
    },
    /// An operator gives a command to every partition.
    Command(Given),
    /// Retention removes this percentage of what a partition holds.
    Trim {
        partition: u32,
        percent: i64,
    },
    /// Makes a record unreadable until the faults end. It is this many offsets from the end of the log, and may not exist
    /// yet.
    Damage {
        partition: u32,
        from_end: i64,
    },
}

/// What an operator requests from a replay.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) request: RequestedReplay,
    pub(crate) rate: Option<Rate>,
    pub(crate) stop_after_failures: u64,
}

/// Everything that defines one simulation.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) partitions: u32,
    pub(crate) users: Vec<User>,
    /// The number of processes that run at a time.
    pub(crate) slots: usize,
    pub(crate) session: Option<Duration>,
    pub(crate) config: Config,
    /// Equal to `config.tries.backoff`, for the oracle.
    pub(crate) backoff: BackoffRule,
    pub(crate) limits: BatchLimits,
    pub(crate) rates: Rates,
    pub(crate) behaviour: Behaviour,
    pub(crate) gaps: u64,
    pub(crate) fetch_events_max: usize,
    pub(crate) plan: Vec<(Duration, Action)>,
    pub(crate) replays: Vec<Request>,
    /// How far the clocks that stamp events are apart, or 0 if all times are in order.
    pub(crate) clocks_apart_ms: i64,
    /// The longest that a user without failures may wait for an event, if it is limited.
    pub(crate) others_wait_max: Option<Duration>,
    pub(crate) single: Option<Single>,
}

impl Scenario {
    /// Among ten seeds, one tests isolation, four test outages, and all others mix everything else.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut scenario = match seed % 10 {
            0 => return isolation(seed, &mut random),
            1..=4 => {
                let mut scenario = troubled(seed, &mut random, 9);
                outages(&mut scenario, &mut random);
                scenario
            }
            _ => troubled(seed, &mut random, 1),
        };
        if seed % 10 > 4 {
            let mut random = Random::new(seed ^ 5);
            if random.chance(30) {
                commands(&mut scenario, &mut random);
            }
        }
        let mut random = Random::new(seed ^ 3);
        if seed % 10 > 4 && scenario.config.on_gap == OnGap::Stop && random.chance(30) {
            damage(&mut scenario, &mut random);
        } else if random.chance(40) {
            replays(&mut scenario, &mut random);
        }
        scenario
    }

    /// Sets the delays between attempts.
    pub(crate) fn set_backoff(&mut self, backoff: BackoffRule) {
        let BackoffRule { first, max, jitter } = backoff;
        self.config.tries.backoff = Backoff::new(first, max, jitter).expect("the first delay is the shortest");
        self.backoff = backoff;
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            attempts: self.config.tries.attempts_max.unwrap_or(u32::MAX),
            window_events: self.config.window_events,
            window_bytes: self.config.window_bytes,
            concurrency: self.config.concurrency,
            limits: self.limits,
            retry_after_max: self.config.tries.retry_after_max,
            drain: self.config.drain,
            commit_interval: self.config.commit_interval,
            backoff: self.backoff,
            fetch_events_max: self.fetch_events_max,
            may_park: self.config.parking.may_park,
            start_latest: self.config.start == Start::Latest,
        }
    }
}

/// One small scenario that makes every call of dispatch, without random faults.
pub(crate) fn fixed() -> Scenario {
    let mut random = Random::new(0);
    let mut scenario = isolation(0, &mut random);
    scenario.partitions = 2;
    scenario.slots = 2;
    scenario.users = users(6, &mut random);
    scenario.others_wait_max = None;
    scenario.config.tries.attempts_max = Some(2);
    scenario.config.attempt_timeout = Duration::from_secs(1);
    scenario.behaviour.failing_user = Some(scenario.users[0].clone());
    scenario.behaviour.refused_user = Some(scenario.users[1].clone());
    scenario.session = Some(Duration::from_secs(10));
    scenario.plan = (0..12)
        .map(|n| (Duration::from_millis(n * 150), Action::Append { user: (n % 6) as usize, many: 2, bytes: 40 }))
        .collect();
    scenario.plan.push((Duration::from_millis(700), Action::MovePartition { partition: 0, slot: 1 }));
    scenario.plan.push((Duration::from_millis(1_200), Action::Stop { slot: 1 }));
    scenario.plan.push((Duration::from_millis(1_500), Action::Reposition { partition: 1, percent: 50, ahead: false }));
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario
}

/// Like [`fixed`], with a replay of everything, one of the dead letters, and a rewind, one after the other.
pub(crate) fn fixed_with_replays() -> Scenario {
    let mut scenario = fixed();
    scenario.plan.retain(|(_, action)| !matches!(action, Action::Reposition { .. }));
    let deliver = |dead| RequestedReplay::Deliver {
        range: Range::default(),
        selection: Selection { dead, ..Selection::default() },
        limit: None,
    };
    let request =
        [deliver(false), deliver(true), RequestedReplay::OffsetReset(Reposition::Rewind(Position::Offset(3)))];
    for (request, number) in request.into_iter().zip(0u32..) {
        scenario.replays.push(Request { request, rate: None, stop_after_failures: 0 });
        let at = Duration::from_secs(20) * (number + 1);
        scenario.plan.push((at, Action::Replay { number: number as usize }));
    }
    scenario
}

fn users(many: usize, random: &mut Random) -> Vec<User> {
    let mut users: Vec<User> = (0..many).map(|n| Some(format!("user-{n}").into_bytes())).collect();
    if many > 2 && random.chance(20) {
        users[2] = None;
    }
    if many > 3 && random.chance(10) {
        users[3] = Some(Vec::new());
    }
    users
}

fn config(random: &mut Random) -> (Config, BackoffRule) {
    let first = random.millis(10, 200);
    let max = first + random.millis(0, 1_500);
    let attempts = random.between(1, 6) as u32;
    let rule = BackoffRule { first, max, jitter: random.chance(30) };
    let backoff = Backoff::new(first, max, rule.jitter).expect("the first delay is the shortest");
    let (attempt_timeout, retry_after_max) = (random.millis(300, 3_000), random.millis(500, 5_000));
    let (attempts_max, on_exhausted) = (Some(attempts), OnExhausted::DeadLetter);
    let mut config = Config {
        tries: TryPolicy { attempts_max, give_up_after: None, on_exhausted, backoff, retry_after_max },
        attempt_timeout,
        concurrency: random.pick(&[1, 2, 4, 16, 256]),
        rate: None,
        window_events: random.pick(&[1, 3, 8, 30, 1_000, 100_000]),
        window_bytes: random.pick(&[200, 3_000, 64 << 20, 64 << 20]),
        commit_interval: random.millis(20, 500),
        start: if random.chance(10) { Start::Latest } else { Start::Earliest },
        on_gap: if random.chance(20) { OnGap::Skip } else { OnGap::Stop },
        when_stopped: WhenStopped::Stay,
        drain: random.millis(100, 5_000),
        dead_retention: Duration::from_secs(3600),
        seed: random.next(),
        parking: ParkingLimits { user_backlog: 100, users_max: 1_000_000, may_park: true },
    };
    // Random numbers of their own, so that the rest of a scenario is that of its seed before there was parking.
    let mut random = Random::new(config.seed ^ 1);
    config.parking.may_park = random.chance(50);
    config.parking.user_backlog = random.pick(&[1, 2, 5, 100]);
    config.parking.users_max = random.pick(&[2, 1_000_000, 1_000_000, 1_000_000]);
    (config, rule)
}

fn limits(random: &mut Random) -> BatchLimits {
    if random.chance(60) {
        BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 }
    } else {
        BatchLimits {
            runs_max: random.between(1, 8) as usize,
            run_events_max: random.between(1, 10) as usize,
            run_bytes_max: random.pick(&[60, 1_000, 1 << 20]),
        }
    }
}

/// Events in bursts. Some users are far busier than others.
fn load(users: usize, events: u64, until: Duration, random: &mut Random) -> Vec<(Duration, Action)> {
    let (mut plan, mut left) = (Vec::new(), events);
    while left > 0 {
        let many = random.between(1, left.min(5));
        let user = if random.chance(20) { 0 } else { random.below(users as u64) as usize };
        let bytes = if random.chance(5) { 4_000 } else { random.between(0, 100) as usize };
        plan.push((random.millis(0, until.as_millis() as u64), Action::Append { user, many, bytes }));
        left -= many;
    }
    plan
}

fn troubled(seed: u64, random: &mut Random, users_min: u64) -> Scenario {
    let partitions = random.between(1, 4) as u32;
    let slots = if random.chance(50) { 2 } else { 1 };
    let session = random.chance(60).then(|| random.millis(1_000, 10_000));
    let users = users(random.between(users_min, users_min + 20) as usize, random);
    let (config, backoff) = config(random);
    let until = random.millis(500, 12_000);
    let mut plan = load(users.len(), random.between(10, 150), until, random);
    let someone = |random: &mut Random| random.below(slots as u64) as usize;
    let mut add = |random: &mut Random, most: u64, action: &dyn Fn(&mut Random) -> Action| {
        for _ in 0..random.between(0, most) {
            let at = random.millis(0, until.as_millis() as u64);
            plan.push((at, action(random)));
        }
    };
    add(random, 2, &|random| Action::Crash { slot: someone(random) });
    add(random, 3, &|random| Action::CrashWithin { slot: someone(random), steps: random.between(1, 150) });
    add(random, 2, &|random| Action::Stop { slot: someone(random) });
    if slots == 2 {
        add(random, 5, &|random| Action::MovePartition {
            partition: random.below(u64::from(partitions)) as u32,
            slot: someone(random),
        });
    }
    if session.is_some() {
        add(random, 2, &|random| Action::CutOff { slot: someone(random) });
    }
    if config.on_gap == OnGap::Skip {
        add(random, 2, &|random| Action::Trim {
            partition: random.below(u64::from(partitions)) as u32,
            percent: random.between(0, 100) as i64,
        });
    }
    if random.chance(50) {
        add(random, 3, &|random| Action::Reposition {
            partition: random.below(u64::from(partitions)) as u32,
            percent: random.between(0, 100) as i64,
            ahead: random.chance(30),
        });
    }
    plan.sort_by_key(|(at, _)| *at);
    let sometimes = |random: &mut Random, most: u64| if random.chance(50) { random.between(1, most) } else { 0 };
    let rates = Rates {
        append_fails: sometimes(random, 50),
        commit_fails: sometimes(random, 40),
        reads_fail: sometimes(random, 20),
        slow: sometimes(random, 30),
        slow_ms_max: random.between(10, 2_000),
        membership_ends_permille: if random.chance(20) { 30 } else { 0 },
    };
    let picked = |random: &mut Random| users[random.below(users.len() as u64) as usize].clone();
    let behaviour = Behaviour {
        outage: None,
        fails: sometimes(random, 30),
        asks_for_patience: sometimes(random, 10),
        refuses: sometimes(random, 10),
        unreachable: sometimes(random, 10),
        hangs: sometimes(random, 5),
        loses_answer: sometimes(random, 10),
        latency_ms_max: random.pick(&[0, 5, 50, 400]),
        failing_user: random.chance(30).then(|| picked(random)),
        refused_user: random.chance(20).then(|| picked(random)),
        busy_users: Vec::new(),
        slow_user: random.chance(20).then(|| (picked(random), random.millis(100, 2_000))),
    };
    Scenario {
        seed,
        partitions,
        users,
        slots,
        session,
        config,
        backoff,
        limits: limits(random),
        rates,
        behaviour,
        gaps: if random.chance(40) { 15 } else { 0 },
        fetch_events_max: random.pick(&[1, 3, 20, 1_000]),
        plan,
        replays: Vec::new(),
        clocks_apart_ms: 0,
        others_wait_max: None,
        single: None,
    }
}

/// Adds commands of operators, also several at one moment, and crashes soon after some of them.
fn commands(scenario: &mut Scenario, random: &mut Random) {
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at) + Duration::from_secs(3);
    for _ in 0..random.between(1, 5) {
        let mut at = random.millis(0, until.as_millis() as u64);
        for _ in 0..random.between(1, 3) {
            let given = match random.below(10) {
                0..=3 => Given::Pause,
                4 | 5 => Given::Resume,
                6 => Given::Rate(Some(random.pick(&[5, 50, 1_000]) * 3600)),
                7 => Given::Rate(None),
                8 => Given::Probe,
                _ => Given::Garbage,
            };
            scenario.plan.push((at, Action::Command(given)));
            at += random.pick(&[Duration::ZERO, Duration::from_millis(300), Duration::from_secs(2)]);
        }
        if random.chance(50) {
            let slot = random.below(scenario.slots as u64) as usize;
            scenario.plan.push((at, Action::CrashWithin { slot, steps: random.between(1, 60) }));
        }
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Adds records that cannot be read. In these scenarios commits do not fail, so what a partition has done before it
/// stopped is committed.
fn damage(scenario: &mut Scenario, random: &mut Random) {
    (scenario.rates.commit_fails, scenario.rates.slow) = (0, 0);
    for _ in 0..random.between(1, 3) {
        let partition = random.below(u64::from(scenario.partitions)) as u32;
        let from_end = random.between(0, 20) as i64 - 15;
        scenario.plan.push((random.millis(0, 8_000), Action::Damage { partition, from_end }));
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Adds one or two outages for every user while many users wait. Some change from one kind to another.
fn outages(scenario: &mut Scenario, random: &mut Random) {
    scenario.config.window_events = scenario.config.window_events.max(100);
    scenario.config.window_bytes = 64 << 20;
    let mut at = random.millis(500, 4_000);
    for _ in 0..random.between(1, 2) {
        let outage = random.pick(&[Outage::Unreachable, Outage::Fails, Outage::Fails, Outage::Refuses, Outage::Hangs]);
        scenario.plan.push((at, Action::Outage(Some(outage))));
        for user in 0..scenario.users.len() {
            let later = at + random.millis(0, 500);
            scenario.plan.push((later, Action::Append { user, many: random.between(1, 2), bytes: 30 }));
        }
        at += random.millis(1_000, 20_000);
        // The destination can be reached again and answers, but still delivers nothing.
        if outage == Outage::Unreachable && random.chance(50) {
            let turned = random.pick(&[Outage::Fails, Outage::Refuses]);
            scenario.plan.push((at, Action::Outage(Some(turned))));
            at += random.millis(1_000, 20_000);
        }
        scenario.plan.push((at, Action::Outage(None)));
        at += random.millis(500, 5_000);
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Only one user fails, and only that user may wait.
fn isolation(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = troubled(seed, random, 8);
    let behaviour = Behaviour { latency_ms_max: 20, ..Behaviour::default() };
    let picked = Some(scenario.users[0].clone());
    scenario.behaviour = match random.below(3) {
        0 => Behaviour { failing_user: picked, ..behaviour },
        1 => Behaviour { refused_user: picked, ..behaviour },
        _ if scenario.limits.runs_max == 1 => {
            Behaviour { slow_user: picked.map(|user| (user, scenario.config.attempt_timeout * 2)), ..behaviour }
        }
        _ => Behaviour { failing_user: picked, ..behaviour },
    };
    scenario.rates = Rates::default();
    scenario.config.concurrency = 16;
    scenario.config.window_events = 1_000;
    scenario.config.window_bytes = 64 << 20;
    scenario.config.start = Start::Earliest;
    let kept = |action: &Action| matches!(action, Action::Append { .. });
    scenario.plan.retain(|(_, action)| kept(action));
    scenario.others_wait_max = Some(Duration::from_secs(5));
    scenario
}

/// Adds one or two replays. Each may crash, be stopped, and be started again while it runs.
fn replays(scenario: &mut Scenario, random: &mut Random) {
    // A replay does not read the list of parked users yet.
    scenario.config.parking.may_park = false;
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at) + Duration::from_secs(10);
    let is_moved = scenario.plan.iter().any(|(_, action)| matches!(action, Action::Reposition { .. }));
    let (mut moves_left, mut first) = (u32::from(!is_moved), None);
    for number in 0..random.between(1, 2) as usize {
        let request = match random.below(10) {
            0 | 1 if moves_left > 0 => {
                moves_left -= 1;
                let place = place(scenario, random);
                RequestedReplay::OffsetReset(if random.chance(50) {
                    Reposition::Rewind(place)
                } else {
                    Reposition::FastForward(place)
                })
            }
            n => {
                let same_letters = scenario.replays.first().is_some_and(|request| request.request.is_of_dead_letters());
                let dead = n > if same_letters { 2 } else { 5 };
                let ends = |random: &mut Random| (!dead && random.chance(50)).then(|| place(scenario, random));
                let (from, until) = (ends(random), ends(random));
                let users = match scenario.users[random.below(scenario.users.len() as u64) as usize].as_deref() {
                    Some(user) if random.chance(20) => [String::from_utf8_lossy(user).into_owned()].into(),
                    _ => [].into(),
                };
                let selection = Selection { dead, users, again: random.chance(20), ..Selection::default() };
                // Events that retention removes between plan and delivery still count towards a limit.
                let may_be_limited = !dead && scenario.config.on_gap == OnGap::Stop;
                let limit = (may_be_limited && random.chance(20)).then(|| random.between(1, 30));
                RequestedReplay::Deliver { range: Range { from, until }, selection, limit }
            }
        };
        let rate = random.chance(30).then(|| random.pick(&["5/s", "50/s", "600/m"]).parse().expect("a rate"));
        let stop_after_failures = if random.chance(30) { random.between(1, 10) } else { 0 };
        scenario.replays.push(Request { request, rate, stop_after_failures });
        // Two replays that find the same dead letters, and a command that is repeated at the very end.
        let begins = match first {
            Some(first) if random.chance(40) => first + random.millis(0, 100),
            _ => random.millis(500, until.as_millis() as u64),
        };
        first = Some(begins);
        let is_impatient = random.chance(30);
        let asked_again = (1..=40).take_while(|_| is_impatient).map(|n| begins + Duration::from_millis(n * 230));
        let times = std::iter::once(begins).chain(asked_again);
        scenario.plan.extend(times.map(|at| (at, Action::Replay { number })));
        for _ in 0..random.below(4) {
            let at = begins + random.millis(0, 4_000);
            let action = match random.below(4) {
                0 => Action::Replay { number },
                1 => Action::StopReplay { number },
                _ => Action::CrashReplayWithin { number, steps: random.between(1, 120) },
            };
            scenario.plan.push((at, action));
        }
    }
    scenario.clocks_apart_ms = random.pick(&[0, 20, 3_000]);
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// One end of a range: an offset, an offset in some partitions, or a time.
fn place(scenario: &Scenario, random: &mut Random) -> Position {
    match random.below(3) {
        0 => Position::Offset(random.between(0, 40) as i64),
        1 => {
            let partitions = (0..scenario.partitions).filter(|_| random.chance(70)).collect::<Vec<_>>();
            Position::Offsets(
                partitions.into_iter().map(|partition| (partition, random.between(0, 40) as i64)).collect(),
            )
        }
        _ => Position::Time(random.between(0, 12_000) as i64),
    }
}
