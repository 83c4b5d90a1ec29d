//! Long outages, and users that look like one.

use crate::dispatch::driver::simulate;
use crate::dispatch::end_of;
use crate::dispatch::log_lines::calm;
use crate::dispatch::memory_destination::Outage;
use crate::dispatch::oracle::BackoffRule;
use crate::dispatch::scenario::{Action, Scenario};
use eventd::limits::LOOK_AHEAD_USERS_MAX;
use std::time::Duration;

/// Ten users have one event each when the destination fails. Another user sends its first event while they back off for
/// minutes.
fn new_user_in_a_long_outage(outages: &[(u64, Outage)]) -> Scenario {
    let mut scenario = calm();
    let (first, max) = (Duration::from_millis(100), Duration::from_secs(300));
    scenario.set_backoff(BackoffRule { first, max, jitter: false });
    scenario.users = (0..11).map(|n| Some(format!("user-{n}").into_bytes())).collect();
    let mut add = |second, action| scenario.plan.push((Duration::from_secs(second), action));
    for (second, outage) in outages {
        add(*second, Action::Outage(Some(*outage)));
    }
    for user in 0..10 {
        add(1, Action::Append { user, many: 1, bytes: 10 });
    }
    add(1_200, Action::Append { user: 10, many: 1, bytes: 10 });
    add(2_400, Action::Outage(None));
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario
}

#[test]
fn nothing_is_given_up_while_the_other_users_of_an_outage_back_off_for_minutes() {
    for outages in [vec![(0, Outage::Fails)], vec![(0, Outage::Unreachable), (1_190, Outage::Fails)]] {
        let outcome = simulate(&new_user_in_a_long_outage(&outages));
        assert_eq!(outcome.violation, None, "{}", end_of(&outcome));
        assert_eq!(outcome.counts.dead_letters, 0, "{outages:?}: {}", end_of(&outcome));
    }
}

/// Many users in one partition, and a window for few of their events.
fn many_users(users: usize) -> Scenario {
    let mut scenario = calm();
    scenario.users = (0..users).map(|n| Some(format!("user-{n}").into_bytes())).collect();
    scenario.config.window_events = 200;
    scenario.config.window_bytes = 64 << 20;
    scenario.config.parking.may_park = true;
    scenario.config.parking.users_max = 1_000_000;
    scenario.fetch_events_max = 100;
    scenario
}

fn append_at_once(scenario: &mut Scenario, users: std::ops::Range<usize>, many: u64, rounds: usize) {
    let event = |user| (Duration::ZERO, Action::Append { user, many, bytes: 10 });
    for _ in 0..rounds {
        scenario.plan.extend(users.clone().map(event));
    }
}

/// A new destination, whose log begins with 1,000 events of 100 users that always fail.
fn failing_users_in_front(many: u64, restart: Option<(Duration, Action)>) -> Scenario {
    let mut scenario = many_users(110);
    scenario.config.tries.attempts_max = Some(2);
    scenario.behaviour.failing_users = scenario.users[..100].to_vec();
    append_at_once(&mut scenario, 0..100, many, 10 / many as usize);
    append_at_once(&mut scenario, 100..110, 3, 1);
    scenario.plan.extend(restart);
    // The last fault is long after the healthy users must have been served.
    let late = Duration::from_secs(60);
    scenario.plan.extend((100..110).map(|user| (late, Action::Append { user, many: 1, bytes: 10 })));
    // A process that dies starts again within 3 s.
    scenario.others_wait_max = Some(Duration::from_secs(if restart.is_some() { 8 } else { 3 }));
    scenario
}

#[test]
fn healthy_users_behind_a_window_full_of_failing_users_are_served() {
    let restarts = [20, 400, 2_000].map(Duration::from_millis);
    let restarts_with = |many, action| restarts.map(|at| (many, Some((at, action))));
    let crashes = restarts_with(1, Action::Crash { slot: 0 });
    let stops = restarts_with(10, Action::Stop { slot: 0 });
    for (many, restart) in [(1, None), (10, None)].into_iter().chain(crashes).chain(stops) {
        let outcome = simulate(&failing_users_in_front(many, restart));
        assert_eq!(outcome.violation, None, "{many} at once, {restart:?}: {}", end_of(&outcome));
        assert_eq!(outcome.counts.dead_letters, 1_000, "{many} at once, {restart:?}: {}", end_of(&outcome));
    }
}

#[test]
fn an_outage_by_answers_parks_a_bounded_number_of_users_and_loses_nothing() {
    for outage in [Outage::Fails, Outage::Refuses] {
        let mut scenario = many_users(1_500);
        append_at_once(&mut scenario, 0..1_500, 2, 1);
        scenario.plan.insert(0, (Duration::ZERO, Action::Outage(Some(outage))));
        scenario.plan.push((Duration::from_secs(600), Action::Outage(None)));
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "{}", end_of(&outcome));
        let parked = outcome.counts.parked_in_outage_max;
        assert!((1..=LOOK_AHEAD_USERS_MAX as u64).contains(&parked), "{parked} users were parked");
        assert_eq!(outcome.counts.dead_letters, 0, "{}", end_of(&outcome));
    }
}

#[test]
fn a_destination_that_cannot_be_reached_parks_no_user() {
    let mut scenario = many_users(300);
    append_at_once(&mut scenario, 0..300, 2, 1);
    scenario.plan.insert(0, (Duration::ZERO, Action::Outage(Some(Outage::Unreachable))));
    scenario.plan.push((Duration::from_secs(120), Action::Outage(None)));
    let outcome = simulate(&scenario);
    assert_eq!(outcome.violation, None, "{}", end_of(&outcome));
    assert_eq!((outcome.counts.parked_in_outage_max, outcome.counts.dead_letters), (0, 0), "{}", end_of(&outcome));
}
