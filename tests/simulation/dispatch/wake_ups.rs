//! What happens in one partition must wake the workers of the others. In the seeds a timer mostly comes to the aid of a
//! wake-up that is lost. In these scenarios none comes in time.

use crate::dispatch::driver::{Outcome, simulate};
use crate::dispatch::end_of;
use crate::dispatch::log_lines::calm;
use crate::dispatch::memory_destination::Outage;
use crate::dispatch::scenario::{Action, Scenario};
use std::time::Duration;

/// Like [`calm`], with several partitions, and timers that are far apart.
fn far_apart(seed: u64, partitions: u32) -> Scenario {
    let mut scenario = calm();
    (scenario.seed, scenario.partitions) = (seed, partitions);
    scenario.users = (0..20).map(|n| Some(format!("user-{n}").into_bytes())).collect();
    scenario.config.commit_interval = Duration::from_secs(60);
    scenario.rates.far_timers = true;
    scenario
}

fn append(scenario: &mut Scenario, at_ms: u64, user: usize, many: u64) {
    scenario.plan.push((Duration::from_millis(at_ms), Action::Append { user, many, bytes: 10 }));
}

/// When events were delivered before this second, in seconds.
fn deliveries(outcome: &Outcome, before: f64) -> Vec<f64> {
    let delivered = outcome.trace.iter().filter(|line| line.ends_with(" answers [(1, None)]"));
    let at = delivered.map(|line| line.trim_start().split(' ').next().unwrap().parse().unwrap());
    at.filter(|at| *at < before).collect()
}

/// The destination cannot be reached for so long that probes are seconds apart.
#[test]
fn the_end_of_an_outage_wakes_every_partition() {
    for seed in 0..20 {
        let mut scenario = far_apart(seed, 4);
        scenario.plan.push((Duration::ZERO, Action::Outage(Some(Outage::Unreachable))));
        for user in 0..scenario.users.len() {
            append(&mut scenario, 1_000, user, 1);
        }
        scenario.plan.push((Duration::from_millis(25_000 + 200 * seed), Action::Outage(None)));
        // Calm begins after the last step of the plan.
        append(&mut scenario, 60_000, 0, 1);
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "seed {seed}: {}", end_of(&outcome));
        let deliveries = deliveries(&outcome, 60.0);
        assert_eq!(deliveries.len(), scenario.users.len(), "seed {seed}: {deliveries:?}");
        assert!(deliveries.last().unwrap() - deliveries[0] < 0.5, "seed {seed}: {deliveries:?}");
    }
}

/// A user that hangs has the whole share of its partition, until the process loses its other partitions.
#[test]
fn a_larger_share_of_the_window_is_used_at_once() {
    for seed in 0..20 {
        let mut scenario = far_apart(seed, 3);
        scenario.slots = 2;
        scenario.config.window_events = 6;
        scenario.config.parking.may_park = false;
        scenario.config.attempt_timeout = Duration::from_secs(30);
        scenario.behaviour.hanging_users = scenario.users[..1].to_vec();
        scenario.others_wait_max = Some(Duration::from_secs(6));
        let move_both =
            |at, slot| [1, 2].map(|partition| (Duration::from_secs(at), Action::MovePartition { partition, slot }));
        scenario.plan.extend(move_both(0, 0));
        append(&mut scenario, 5_000, 0, 2);
        // Every third user is in partition 0.
        for user in [3, 6, 9, 12] {
            append(&mut scenario, 6_000, user, 1);
        }
        scenario.plan.extend(move_both(10, 1));
        // Calm begins after the last step of the plan.
        append(&mut scenario, 60_000, 3, 1);
        let outcome = simulate(&scenario);
        assert_eq!(outcome.violation, None, "seed {seed}: {}", end_of(&outcome));
    }
}
