//! Long outages, with a backoff of minutes.

use crate::dispatch::driver::simulate;
use crate::dispatch::end_of;
use crate::dispatch::log_lines::calm;
use crate::dispatch::memory_destination::Outage;
use crate::dispatch::oracle::BackoffRule;
use crate::dispatch::scenario::{Action, Scenario};
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
