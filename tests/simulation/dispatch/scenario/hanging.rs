//! More users hang, or are slow, than there are slots, or than there may be events in flight. The others were served before,
//! and must not wait for them.

use super::worlds::isolation;
use super::{Action, Scenario};
use crate::dispatch::memory_destination::Behaviour;
use crate::harness::Random;
use eventd::destination::BatchLimits;
use std::time::Duration;

/// When the first users begin to hang. Until then each of the others has had an event.
const HANG_FROM_MS: u64 = 2_000;

/// By then each of the users that are slow has had its first events, however few slots there are.
const KNOWN_FROM_MS: u64 = 60_000;

/// How long a user may wait that was served before, from the append of its event until it is settled. Far less than an
/// attempt that hangs takes.
const WAIT_MAX: Duration = Duration::from_secs(2);

pub(crate) fn hanging(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = isolation(seed, random);
    let concurrency = random.pick(&[4, 8, 16]);
    let (others, hanging) = (random.between(8, 20) as usize, concurrency * random.between(2, 4) as usize);
    let named = |name: &str, count| (0..count).map(|n| Some(format!("{name}-{n}").into_bytes())).collect::<Vec<_>>();
    let hanging = named("hanging", hanging);
    scenario.users = [named("user", others), hanging.clone()].concat();
    scenario.limits = BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 };
    scenario.config.concurrency = concurrency;
    scenario.config.attempt_timeout = random.millis(5_000, 15_000);
    scenario.behaviour = Behaviour { hanging_users: hanging, latency_ms_max: 20, ..Behaviour::default() };
    scenario.others_wait_max = Some(WAIT_MAX);
    let all = scenario.users.len();
    let until = random.millis(10_000, 40_000).as_millis() as u64;
    scenario.plan.clear();
    let mut add = |at: Duration, user| scenario.plan.push((at, Action::Append { user, many: 1, bytes: 20 }));
    for user in 0..others {
        add(random.millis(0, HANG_FROM_MS - 1_000), user);
    }
    for user in others..all {
        let within = random.pick(&[10, 1_000, 5_000]);
        for _ in 0..random.between(1, 3) {
            add(random.millis(HANG_FROM_MS, HANG_FROM_MS + within), user);
        }
    }
    for _ in 0..random.between(50, 200) {
        add(random.millis(HANG_FROM_MS, until), random.below(others as u64) as usize);
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario
}

/// Like [`hanging`], but these users are delivered, slowly. Once all of them are known to be slow, each has a backlog, and new
/// users come that are quick. These must not wait for them either.
pub(crate) fn slow_rather_than_hanging(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = hanging(seed, random);
    let slow = std::mem::take(&mut scenario.behaviour.hanging_users);
    let others = scenario.users.len() - slow.len();
    let mut add = |at: Duration, user| scenario.plan.push((at, Action::Append { user, many: 1, bytes: 20 }));
    for user in others..scenario.users.len() {
        for _ in 0..random.between(1, 3) {
            add(random.millis(KNOWN_FROM_MS, KNOWN_FROM_MS + 500), user);
        }
    }
    for user in scenario.users.len()..scenario.users.len() + random.between(5, 10) as usize {
        scenario.users.push(Some(format!("new-{user}").into_bytes()));
        add(random.millis(KNOWN_FROM_MS + 1_000, KNOWN_FROM_MS + 10_000), user);
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario.behaviour.slow_users = Some((slow, random.millis(1_500, 4_000)));
    scenario
}

/// Like [`hanging`], with runs of many events. Two to eight runs have as many as may be in flight in each partition. The
/// hanging users have more events than that, and there are slots for all users.
pub(crate) fn hanging_with_long_runs(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = hanging(seed, random);
    let run_events_max = random.between(5, 20) as usize;
    scenario.limits = BatchLimits { runs_max: 1, run_events_max, run_bytes_max: 1 << 20 };
    scenario.whole_runs_max = Some(usize::MAX);
    scenario.config.concurrency = 4 * scenario.users.len();
    scenario.config.in_flight_events = run_events_max * random.between(2, 8) as usize * scenario.partitions as usize;
    scenario.config.window_events = 100_000;
    for (_, action) in &mut scenario.plan {
        if let Action::Append { user, many, .. } = action
            && scenario.behaviour.hanging_users.contains(&scenario.users[*user])
        {
            *many = random.between(1, 3) * run_events_max as u64;
        }
    }
    scenario
}
