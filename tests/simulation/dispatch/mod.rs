//! Runs the real `dispatch::run` with an in-memory log, group and destination in simulated time, with seeded faults and
//! crashes. An oracle that shares no code with dispatch checks the promises of the design.
//!
//! ```text
//!  seed ─▶ scenario ─▶ driver ─ starts, crashes, stops, resets ─▶ dispatch::run ⇄ world (log, group, destination)
//!                                                                                  └─▶ oracle ─▶ violation, or none
//! ```
//!
//! `EVENTD_SIM_FIRST` and `EVENTD_SIM_SEEDS` choose the seeds. A failing seed is printed with the command that replays it
//! exactly.

mod commands;
mod driver;
mod log_lines;
mod memory_destination;
mod memory_group;
mod memory_groups;
mod memory_log;
mod oracle;
mod oracle_tests;
mod outage_rules;
mod outages;
mod replays;
mod scenario;
mod slow_users;
mod wake_ups;
mod world;

use self::driver::{Outcome, simulate};
use self::scenario::{Scenario, fixed, fixed_with_replays};
use self::world::{CALLS, Call, Role, Single};
use crate::harness::{Seeds, assert_repeatable, end_of_trace};

/// Seeds of a plain run.
const SEEDS: u64 = 2_000;
/// Seeds that are run twice.
const SEEDS_RUN_TWICE: u64 = 300;

/// What a failing scenario is reported with.
fn end_of(outcome: &Outcome) -> String {
    end_of_trace(&outcome.trace, outcome.violation.as_deref())
}

#[test]
fn thousands_of_seeds() {
    let run = Seeds::from_environment(SEEDS).run("--test simulation dispatch::", |seed| {
        let scenario = Scenario::new(seed);
        let mut outcome = simulate(&scenario);
        if outcome.violation.is_some() {
            return Err(format!("{}\n{:?} {:?}", end_of(&outcome), scenario.config, scenario.limits));
        }
        outcome.trace.clear();
        Ok(outcome)
    });
    run.report(
        "simulation",
        &[
            ("events", run.sum(|o| o.counts.events)),
            ("attempts", run.sum(|o| o.counts.attempts)),
            ("failed", run.sum(|o| o.counts.failed)),
            ("redeliveries", run.sum(|o| o.counts.redelivered)),
            ("batches that failed as a whole", run.sum(|o| o.counts.failed_batches)),
            ("dead letters", run.sum(|o| o.counts.dead_letters)),
            ("given up by operators", run.sum(|o| o.counts.given_up_by_operators)),
            ("dropped", run.sum(|o| o.counts.dropped)),
            ("held because their tries ended", run.sum(|o| o.held_by_policy)),
            ("commits", run.sum(|o| o.counts.commits)),
            ("with a settled map", run.sum(|o| o.counts.with_settled_map)),
            ("crashes", run.sum(|o| o.crashes)),
            ("stops", run.sum(|o| o.stops)),
            ("partitions moved", run.sum(|o| o.moves)),
            ("sessions lost", run.sum(|o| o.sessions_lost)),
            ("outages", run.sum(|o| o.outages)),
            ("requested resets", run.sum(|o| o.repositions)),
            ("resets applied by owners", run.sum(|o| o.counts.moved)),
            ("damaged for a while", run.sum(|o| o.damages)),
            ("commands", run.sum(|o| o.commands)),
            ("commands applied", run.sum(|o| o.commands_applied)),
            ("outages evident to a process", run.sum(|o| o.counts.outages_evident)),
            ("replays", run.sum(|o| o.replayed)),
            ("resumed", run.sum(|o| o.resumes)),
            ("refused", run.sum(|o| o.refused)),
            ("events delivered by replays", run.sum(|o| o.redelivered)),
            ("events given up by replays", run.sum(|o| o.dead_letters_again)),
        ],
    );
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_repeatable(SEEDS_RUN_TWICE, |seed| {
        let outcome = simulate(&Scenario::new(seed));
        (outcome.trace, outcome.counts)
    });
}

/// Most catastrophic failures come from a harmless-looking error that is handled wrongly. So each call fails once, in
/// every way.
fn assert_no_single_failure_breaks_a_promise(scenario: &Scenario, role: Role, made: &[Call]) {
    let whole = simulate(scenario);
    assert_eq!(whole.violation, None, "with nothing failing: {}", end_of(&whole));
    let mut runs = 0;
    let calls: Vec<(Call, u64)> = made.iter().map(|call| (*call, whole.calls[role as usize][*call as usize])).collect();
    for (call, calls) in &calls {
        let call = *call;
        assert!(*calls > 0, "{call:?} is never called, so its failure shows nothing");
        for (index, way) in (0..*calls).flat_map(|index| (0..call.ways()).map(move |way| (index, way))) {
            let single = Single { role, call, index, way };
            let outcome = simulate(&Scenario { single: Some(single), ..scenario.clone() });
            assert!(outcome.violation.is_none(), "{single:?}: {}", end_of(&outcome));
            runs += 1;
        }
    }
    println!("# every single call of {role:?} fails once: {runs} runs, {calls:?}");
}

#[test]
fn every_single_call_of_dispatch_fails_once() {
    use Call::{Append, Changed, Commit, Committed, Deliver, Earliest, Fetch, Open, Partitions, Requested};
    let made = [Open, Append, Fetch, Partitions, Earliest, Changed, Committed, Commit, Requested, Deliver];
    assert_no_single_failure_breaks_a_promise(&fixed(), Role::Dispatch, &made);
}

#[test]
fn every_single_call_of_a_replay_fails_once() {
    // A replay has no position that could be reset.
    let made: Vec<Call> = CALLS.into_iter().filter(|call| *call != Call::Requested).collect();
    assert_no_single_failure_breaks_a_promise(&fixed_with_replays(), Role::Replay, &made);
}

/// A start at the earliest event never makes this call.
#[test]
fn reading_the_latest_offset_fails_once() {
    let mut scenario = fixed();
    scenario.config.start = eventd::dispatch::Start::Latest;
    for index in 0..u64::from(scenario.partitions) {
        scenario.single = Some(Single { role: Role::Dispatch, call: Call::Latest, index, way: 0 });
        let outcome = simulate(&scenario);
        assert!(outcome.violation.is_none(), "{}", end_of(&outcome));
        assert!(
            outcome.calls[Role::Dispatch as usize][Call::Latest as usize] > index,
            "the call that should fail was never made"
        );
    }
}
