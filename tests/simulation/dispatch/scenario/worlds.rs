//! The worlds that a seed chooses from: what is configured, who sends, and which faults there are.

use super::{Action, Scenario};
use crate::dispatch::memory_destination::{Behaviour, Outage};
use crate::dispatch::oracle::{BackoffRule, User};
use crate::dispatch::world::Rates;
use crate::harness::Random;
use eventd::core::backoff::Backoff;
use eventd::core::parking::ParkingLimits;
use eventd::core::tries::{OnExhausted, TryPolicy};
use eventd::destination::BatchLimits;
use eventd::dispatch::{Config, OnGap, Start, WhenStopped};
use eventd::limits::IN_FLIGHT_EVENTS_MAX;
use std::time::Duration;

pub(super) fn users(many: usize, random: &mut Random) -> Vec<User> {
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
        in_flight_events: IN_FLIGHT_EVENTS_MAX,
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

pub(super) fn troubled(seed: u64, random: &mut Random, users_min: u64) -> Scenario {
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
        far_timers: false,
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
        latency_ms_min: 0,
        latency_ms_max: random.pick(&[0, 5, 50, 400]),
        failing_users: random.chance(30).then(|| picked(random)).into_iter().collect(),
        refused_user: random.chance(20).then(|| picked(random)),
        busy_users: Vec::new(),
        slow_users: random.chance(20).then(|| (vec![picked(random)], random.millis(100, 2_000))),
        hanging_users: Vec::new(),
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
        whole_runs_max: None,
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

/// Adds records that cannot be read. In these scenarios commits do not fail, so what a partition has done before it
/// stopped is committed.
pub(super) fn damage(scenario: &mut Scenario, random: &mut Random) {
    (scenario.rates.commit_fails, scenario.rates.slow) = (0, 0);
    for _ in 0..random.between(1, 3) {
        let partition = random.below(u64::from(scenario.partitions)) as u32;
        let from_end = random.between(0, 20) as i64 - 15;
        scenario.plan.push((random.millis(0, 8_000), Action::Damage { partition, from_end }));
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Adds one or two outages for every user while many users wait. Some change from one kind to another.
pub(super) fn outages(scenario: &mut Scenario, random: &mut Random) {
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

/// Limits the time of an event's tries, for some without a limit on their number. In some of them a user fails for long.
pub(super) fn give_up_after(scenario: &mut Scenario, random: &mut Random) {
    scenario.config.tries.give_up_after = Some(random.millis(200, 6_000));
    if random.chance(60) {
        scenario.config.tries.attempts_max = None;
    }
    if random.chance(50) {
        scenario.behaviour.failing_users = vec![scenario.users[0].clone()];
    }
}

/// Makes some destinations that take one event at a time take runs as a whole: runs of any length, of a few events, or
/// only those of one event. Few events may be in flight, so that the others are not delayed by long runs.
pub(super) fn batches(scenario: &mut Scenario, random: &mut Random) {
    if scenario.limits.runs_max == 1 && scenario.limits.run_events_max == 1 && random.chance(30) {
        let (run_events_max, run_bytes_max) = (random.between(2, 16) as usize, random.pick(&[100, 1_000, 1 << 20]));
        scenario.limits = BatchLimits { runs_max: 1, run_events_max, run_bytes_max };
        scenario.whole_runs_max = Some(random.pick(&[1, 3, usize::MAX, usize::MAX]));
        scenario.config.in_flight_events = random.pick(&[1, 8, 50, IN_FLIGHT_EVENTS_MAX]);
    }
}

/// Only one user fails, and only that user may wait.
pub(super) fn isolation(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = troubled(seed, random, 8);
    let behaviour = Behaviour { latency_ms_max: 20, ..Behaviour::default() };
    let picked = Some(scenario.users[0].clone());
    scenario.behaviour = match random.below(3) {
        0 => Behaviour { failing_users: picked.into_iter().collect(), ..behaviour },
        1 => Behaviour { refused_user: picked, ..behaviour },
        _ if scenario.limits.runs_max == 1 => {
            Behaviour { slow_users: picked.map(|user| (vec![user], scenario.config.attempt_timeout * 2)), ..behaviour }
        }
        _ => Behaviour { failing_users: picked.into_iter().collect(), ..behaviour },
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

/// Timers are so far apart that none comes to the aid of a wake-up that is lost: commits, looks for offset resets and for
/// commands, and fetches that find nothing.
pub(super) fn far_timers(scenario: &mut Scenario, random: &mut Random) {
    scenario.config.commit_interval = random.millis(40_000, 80_000);
    scenario.rates.far_timers = true;
}

/// Hours without an event, and one event at their end.
pub(super) fn idle(scenario: &mut Scenario, random: &mut Random) {
    scenario.config.commit_interval = Duration::from_secs(5);
    let user = random.below(scenario.users.len() as u64) as usize;
    scenario.plan.push((random.millis(8_000_000, 12_000_000), Action::Append { user, many: 1, bytes: 10 }));
}
