//! Slow users whose events fill the window, and a destination that is slow for every user.

use super::worlds::isolation;
use super::{Action, Scenario};
use crate::dispatch::memory_destination::Behaviour;
use crate::dispatch::oracle::User;
use crate::harness::Random;
use eventd::core::parking::ParkingLimits;
use eventd::destination::BatchLimits;
use eventd::limits::LOOK_AHEAD_USERS_MAX;
use std::time::Duration;

/// Until then every other user has had an event.
const SLOW_FROM_MS: u64 = 2_000;

/// How long one of the other users may wait, from the append of its event until it is settled.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// Like [`WAIT_MAX`], if no user was served quickly before. Users that may be slow alone are parked after 10 s.
const FIRST_WAIT_MAX: Duration = Duration::from_secs(15);

/// Like [`FIRST_WAIT_MAX`], if the breaker has opened before. Then users in memory make room 10 s after that.
const HIDDEN_WAIT_MAX: Duration = Duration::from_secs(45);

/// Bytes of the window of each partition.
const WINDOW_BYTES: usize = 200_000;

/// Events of the window of all partitions together in [`slow_for_long`].
pub(crate) const SLOW_FOR_LONG_WINDOW: usize = 200;

fn named(name: &str, count: usize) -> Vec<User> {
    (0..count).map(|n| Some(format!("{name}-{n}").into_bytes())).collect()
}

fn is_named(name: &str, user: &User) -> bool {
    user.as_ref().is_some_and(|user| user.starts_with(name.as_bytes()))
}

/// One partition or more, each with a window of [`WINDOW_BYTES`], and a destination that takes one event at a time.
fn slow(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = isolation(seed, random);
    scenario.slots = 1;
    scenario.partitions = random.between(1, 3) as u32;
    scenario.limits = BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 0 };
    scenario.whole_runs_max = None;
    scenario.config.window_bytes = WINDOW_BYTES * scenario.partitions as usize;
    scenario.config.window_events = 10_000;
    scenario.config.parking = ParkingLimits { user_backlog: 100, users_max: 1_000_000, may_park: true };
    scenario.plan.clear();
    scenario
}

/// The first user is slow or hangs, and its events take more than a window. Its next event may be as large as a part of the
/// window, as nearly all of it, or larger than the window.
pub(crate) fn large_events(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = slow(seed, random);
    let bytes = random.pick(&[WINDOW_BYTES / 20, WINDOW_BYTES / 3, WINDOW_BYTES * 9 / 10, WINDOW_BYTES * 6 / 5]);
    let time = random.millis(2_500, 8_000);
    scenario.config.attempt_timeout = random.pick(&[time / 2, time * 2]);
    scenario.users = [named("slow", 1), named("user", random.between(8, 20) as usize)].concat();
    let slow_users = Some((scenario.users[..1].to_vec(), time));
    scenario.behaviour = Behaviour { slow_users, latency_ms_max: 20, ..Behaviour::default() };
    scenario.others_wait_max = Some(WAIT_MAX);
    let many = (2 * WINDOW_BYTES / bytes + 2) as u64;
    scenario.plan.push((Duration::from_millis(SLOW_FROM_MS), Action::Append { user: 0, many, bytes }));
    add_others(&mut scenario, 1, random);
    scenario
}

/// Many users hang, each with fewer events than `--user-backlog`. Together they have more than a window. Each begins to hang
/// with one event, while the others are served.
pub(crate) fn many_slow_users(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = slow(seed, random);
    let hanging = named("hanging", random.between(12, 30) as usize);
    scenario.config.attempt_timeout = random.millis(5_000, 20_000);
    scenario.config.concurrency = 64;
    scenario.users = [named("user", random.between(8, 20) as usize), hanging.clone()].concat();
    let others = scenario.users.len() - hanging.len();
    for user in others..scenario.users.len() {
        let (many, bytes) = (random.between(10, 40), random.between(2_000, 5_000) as usize);
        let first = random.millis(SLOW_FROM_MS, SLOW_FROM_MS + 1_000);
        scenario.plan.push((first, Action::Append { user, many: 1, bytes }));
        let at = random.millis(4 * SLOW_FROM_MS, 4 * SLOW_FROM_MS + 500);
        scenario.plan.push((at, Action::Append { user, many, bytes }));
    }
    scenario.behaviour = Behaviour { hanging_users: hanging, latency_ms_max: 20, ..Behaviour::default() };
    scenario.others_wait_max = Some(WAIT_MAX);
    add_others(&mut scenario, 0, random);
    scenario
}

/// More new users than slots begin at about one moment, and all are slow. Together they have more than a window of events. The
/// others were served before.
pub(crate) fn new_slow_users(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = new_users(seed, 30, random);
    let slow_users = scenario.users.iter().filter(|user| is_named("new", user)).cloned().collect();
    let slow_users = Some((slow_users, random.millis(2_500, 5_000)));
    scenario.behaviour = Behaviour { slow_users, latency_ms_max: 20, ..Behaviour::default() };
    scenario.others_wait_max = Some(FIRST_WAIT_MAX);
    scenario
}

/// Many new users begin at about one moment. All are served, as quickly as the slots allow, but one user hangs.
pub(crate) fn busy_with_new_users(seed: u64, random: &mut Random) -> Scenario {
    // So many that some wait for more than 10 s. One event each: users that were served are attempted before those that wait.
    let mut scenario = new_users(seed, 400, random);
    let bytes = 2 * WINDOW_BYTES * scenario.partitions as usize / 400;
    let new: Vec<usize> = (0..scenario.users.len()).filter(|user| is_named("new", &scenario.users[*user])).collect();
    scenario.plan.retain(|(_, action)| !matches!(action, Action::Append { user, .. } if new.contains(user)));
    let append = |user| (Duration::from_millis(2 * SLOW_FROM_MS), Action::Append { user, many: 1, bytes });
    scenario.plan.extend(new.into_iter().map(append));
    scenario.plan.sort_by_key(|(at, _)| *at);
    let hanging_users = scenario.users[..1].to_vec();
    scenario.behaviour = Behaviour { hanging_users, latency_ms_min: 200, latency_ms_max: 400, ..Behaviour::default() };
    scenario.others_wait_max = None;
    scenario
}

/// Like [`new_slow_users`], but there are hundreds, and all of them hang for so short a time that their failures open the
/// breaker.
pub(crate) fn new_hanging_users(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = new_users(seed, 200, random);
    scenario.config.concurrency = random.pick(&[8, 64]);
    scenario.config.attempt_timeout = random.millis(3_000, 8_000);
    let hanging_users = scenario.users.iter().filter(|user| is_named("new", user)).cloned().collect();
    scenario.behaviour = Behaviour { hanging_users, latency_ms_max: 20, ..Behaviour::default() };
    scenario.others_wait_max = Some(HIDDEN_WAIT_MAX);
    scenario
}

/// Many new users have more than a window of events, in a few parts each. There are slots for few of them. Their number is
/// between this one and 5/3 of it.
fn new_users(seed: u64, least: u64, random: &mut Random) -> Scenario {
    let mut scenario = slow(seed, random);
    let new = named("new", random.between(least, least * 5 / 3) as usize);
    scenario.config.concurrency = 8;
    scenario.config.attempt_timeout = random.millis(20_000, 60_000);
    scenario.users = [named("user", random.between(8, 20) as usize), new.clone()].concat();
    let windows_permille = random.between(1_200, 3_000) as usize * scenario.partitions as usize;
    let bytes = WINDOW_BYTES * windows_permille / 1_000 / (10 * new.len());
    for user in scenario.users.len() - new.len()..scenario.users.len() {
        for _ in 0..5 {
            let at = random.millis(2 * SLOW_FROM_MS, 2 * SLOW_FROM_MS + 300);
            scenario.plan.push((at, Action::Append { user, many: 2, bytes }));
        }
    }
    add_others(&mut scenario, 0, random);
    // Calm begins after the last step of the plan.
    scenario.plan.push((Duration::from_secs(60), Action::Append { user: 0, many: 1, bytes: 20 }));
    scenario
}

/// The log begins with more than a window of events of users that are slow or hang. No other user was served before.
pub(crate) fn slow_users_in_front(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = slow(seed, random);
    let slow_users = named("slow", random.between(8, 20) as usize);
    scenario.config.concurrency = random.pick(&[16, 64]);
    scenario.config.attempt_timeout = random.millis(20_000, 60_000);
    scenario.users = [slow_users.clone(), named("user", random.between(8, 20) as usize)].concat();
    let behaviour = Behaviour { latency_ms_max: 20, ..Behaviour::default() };
    scenario.behaviour = match random.chance(30) {
        true => Behaviour { hanging_users: slow_users.clone(), ..behaviour },
        false => Behaviour { slow_users: Some((slow_users.clone(), random.millis(2_500, 8_000))), ..behaviour },
    };
    scenario.others_wait_max = Some(FIRST_WAIT_MAX);
    let append = |user, at| (Duration::from_millis(at), Action::Append { user, many: 4, bytes: WINDOW_BYTES / 100 });
    // Each round takes at least a third of a window of each of up to three partitions.
    for round in 0..15 {
        scenario.plan.extend((0..slow_users.len()).map(|user| append(user, round)));
    }
    add_others(&mut scenario, slow_users.len(), random);
    // Calm begins after the last step of the plan.
    scenario.plan.push((Duration::from_secs(60), Action::Append { user: 0, many: 1, bytes: 20 }));
    scenario
}

/// Events of the other users, the first of whom has this number: one of each at first, and then of any of them.
fn add_others(scenario: &mut Scenario, first: usize, random: &mut Random) {
    let count = scenario.users.iter().filter(|user| is_named("user", user)).count() as u64;
    let mut add = |at: Duration, user| scenario.plan.push((at, Action::Append { user, many: 1, bytes: 20 }));
    for user in 0..count as usize {
        add(random.millis(0, SLOW_FROM_MS - 1_000), first + user);
    }
    for _ in 0..random.between(50, 150) {
        add(random.millis(SLOW_FROM_MS, 30_000), first + random.below(count) as usize);
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// For 10 s every attempt takes longer than a second, and the events of every user wait. They take more than half of a window.
/// More than 5 users fit into it: fewer of them could be slow alone.
pub(crate) fn slow_for_all(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = slow(seed, random);
    scenario.config.concurrency = random.pick(&[4, 16, 256]);
    scenario.config.attempt_timeout = Duration::from_secs(10);
    scenario.config.parking.user_backlog = random.pick(&[2, 100]);
    scenario.users = named("user", random.between(20, 40) as usize);
    scenario.others_wait_max = None;
    scenario.behaviour = Behaviour { latency_ms_min: 1_200, latency_ms_max: 2_500, ..Behaviour::default() };
    for user in 0..scenario.users.len() {
        let (many, bytes) = (random.between(8, 12), WINDOW_BYTES / 150);
        let at = random.millis(0, 300);
        scenario.plan.push((at, Action::Append { user, many, bytes }));
    }
    // Calm begins after the last step of the plan.
    scenario.plan.push((Duration::from_secs(10), Action::Append { user: 0, many: 1, bytes: 20 }));
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario
}

/// Like [`slow_for_all`], for 10 minutes and with more users than may be parked for it.
pub(crate) fn slow_for_long(seed: u64, random: &mut Random) -> Scenario {
    let mut scenario = slow_for_all(seed, random);
    scenario.config.window_events = SLOW_FOR_LONG_WINDOW;
    scenario.config.window_bytes = 64 << 20;
    scenario.config.concurrency = 64;
    scenario.users = named("user", LOOK_AHEAD_USERS_MAX + 500);
    let append = |user| (Duration::ZERO, Action::Append { user, many: 3, bytes: 10 });
    scenario.plan = (0..scenario.users.len()).map(append).collect();
    scenario.plan.push((Duration::from_secs(600), Action::Append { user: 0, many: 1, bytes: 20 }));
    scenario
}
