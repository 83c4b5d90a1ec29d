//! Users that hang must not delay the others, even if there are more of them than slots.

use crate::dispatch::driver::simulate;
use crate::dispatch::end_of;
use crate::dispatch::scenario::Scenario;
use crate::dispatch::scenario::hanging::{hanging, hanging_with_long_runs, slow_rather_than_hanging};
use crate::dispatch::scenario::slow::{
    SLOW_FOR_LONG_WINDOW, busy_with_new_users, large_events, many_slow_users, new_hanging_users, new_slow_users,
    slow_for_all, slow_for_long, slow_users_in_front,
};
use crate::harness::Random;
use eventd::limits::LOOK_AHEAD_USERS_MAX;

#[test]
fn more_hanging_users_than_slots_delay_no_user_that_was_served_before() {
    let mut hung = 0;
    for seed in 0..30 {
        let scenario = hanging(seed, &mut Random::new(seed));
        let concurrency = scenario.config.concurrency as u64;
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "seed {seed}, {:?}: {}", scenario.config, end_of(&outcome));
        assert!(outcome.counts.failed > concurrency, "seed {seed}: {} attempts hung", outcome.counts.failed);
        hung += outcome.counts.failed;
    }
    println!("# {hung} attempts hung");
}

#[test]
fn hanging_users_with_long_runs_delay_no_user_that_was_served_before() {
    let mut hung = 0;
    for seed in 0..30 {
        let scenario = hanging_with_long_runs(seed, &mut Random::new(seed));
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "seed {seed}, {:?}: {}", scenario.config, end_of(&outcome));
        hung += outcome.counts.failed;
    }
    assert!(hung > 0, "no attempt hung");
    println!("# {hung} attempts hung");
}

/// Runs so many seeds of a scenario, and returns the most parked users of one of them.
fn most_parked(seeds: u64, scenario: impl Fn(u64, &mut Random) -> Scenario) -> usize {
    let parked = (0..seeds).map(|seed| {
        let scenario = scenario(seed, &mut Random::new(seed));
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "seed {seed}, {:?}: {}", scenario.config, end_of(&outcome));
        outcome.parked_users_max
    });
    parked.max().unwrap_or(0)
}

#[test]
fn more_slow_users_than_slots_delay_no_user_that_was_served_before() {
    most_parked(30, slow_rather_than_hanging);
}

#[test]
fn one_slow_user_with_events_of_any_size_delays_no_other_user() {
    assert!(most_parked(30, large_events) > 0, "its events do not fit into the window");
}

#[test]
fn many_slow_users_with_short_lanes_delay_no_other_user() {
    assert!(most_parked(30, many_slow_users) > 0, "their events do not fit into the window");
}

#[test]
fn more_new_slow_users_than_slots_delay_no_user_that_was_served_before_for_long() {
    assert!(most_parked(30, new_slow_users) > 0, "their events do not fit into the window");
}

#[test]
fn new_users_that_hang_and_open_the_breaker_hide_no_user_that_was_served_before_for_long() {
    assert!(most_parked(12, new_hanging_users) > 0, "their events do not fit into the window");
}

#[test]
fn new_users_that_wait_because_many_are_served_are_not_parked() {
    assert!(most_parked(12, busy_with_new_users) <= 1, "only the user that hangs may be parked");
}

#[test]
fn users_behind_more_than_a_window_of_slow_users_are_found() {
    assert!(most_parked(30, slow_users_in_front) > 0, "their events do not fit into the window");
}

#[test]
fn a_destination_that_is_slow_for_every_user_parks_none_for_10_s() {
    assert_eq!(most_parked(30, slow_for_all), 0);
}

#[test]
fn a_destination_that_stays_slow_for_every_user_parks_a_bounded_number() {
    let parked = most_parked(3, slow_for_long);
    // Users in memory whose next event is more than a window behind the reader are in the list, too.
    assert!((1..=LOOK_AHEAD_USERS_MAX + SLOW_FOR_LONG_WINDOW).contains(&parked), "{parked} users were parked");
}
