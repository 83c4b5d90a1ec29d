//! Runs the real `dispatch::run` with an in-memory log, group and destination in simulated time, with seeded faults and
//! crashes. An oracle that shares no code with dispatch checks the promises of the design.
//!
//! ```text
//!  seed ─▶ scenario ─▶ driver ─ starts, crashes, stops, resets ─▶ dispatch::run ⇄ world (log, group, destination)
//!                                                                                  └─▶ oracle ─▶ violation, or none
//! ```
//!
//! `EVENTD_SIM_FIRST` and `EVENTD_SIM_SEEDS` choose the seeds; a failing one is printed with the command that replays
//! it exactly.

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
mod random;
mod replays;
mod scenario;
mod world;

use self::driver::{Outcome, simulate};
use self::scenario::{Scenario, fixed, fixed_with_replays};
use self::world::{CALLS, Call, Role, Single};

/// Seeds of a plain run.
const SEEDS: u64 = 2_000;
const THREADS: u64 = 2;
/// Seeds that are run twice.
const SEEDS_RUN_TWICE: u64 = 300;
/// Lines of a failing seed's trace that are printed.
const TRACE_LINES: usize = 80;

fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => otherwise,
    }
}

fn end_of_trace(outcome: &Outcome) -> String {
    let from = outcome.trace.len().saturating_sub(TRACE_LINES);
    format!("{}\n{}", outcome.trace[from..].join("\n"), outcome.violation.as_deref().unwrap_or("no violation"))
}

#[test]
fn thousands_of_seeds() {
    let (first, seeds) = (number("EVENTD_SIM_FIRST", 0), number("EVENTD_SIM_SEEDS", SEEDS));
    let began = std::time::Instant::now();
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut outcomes = Vec::new();
                    for seed in (first..first + seeds).filter(|seed| seed % THREADS == thread) {
                        let scenario = Scenario::new(seed);
                        let mut outcome = simulate(&scenario);
                        if outcome.violation.is_some() {
                            eprintln!("{}", end_of_trace(&outcome));
                            eprintln!("{:?} {:?}", scenario.config, scenario.limits);
                            panic!(
                                "replay: EVENTD_SIM_FIRST={seed} EVENTD_SIM_SEEDS=1 cargo test --test simulation \
                                 thousands_of_seeds"
                            );
                        }
                        outcome.trace.clear();
                        outcomes.push(outcome);
                    }
                    outcomes
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.collect::<Result<Vec<_>, _>>().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).concat()
    });
    let sum = |of: fn(&Outcome) -> u64| totals.iter().map(of).sum::<u64>();
    let counted: [(&str, u64); 21] = [
        ("events", sum(|o| o.counts.events)),
        ("attempts", sum(|o| o.counts.attempts)),
        ("failed", sum(|o| o.counts.failed)),
        ("redeliveries", sum(|o| o.counts.redelivered)),
        ("dead letters", sum(|o| o.counts.dead_letters)),
        ("commits", sum(|o| o.counts.commits)),
        ("with a settled map", sum(|o| o.counts.with_settled_map)),
        ("crashes", sum(|o| o.crashes)),
        ("stops", sum(|o| o.stops)),
        ("moves", sum(|o| o.moves)),
        ("sessions lost", sum(|o| o.sessions_lost)),
        ("outages", sum(|o| o.outages)),
        ("requested resets", sum(|o| o.repositions)),
        ("resets applied by owners", sum(|o| o.counts.moved)),
        ("damaged for a while", sum(|o| o.damages)),
        ("outages evident to a process", sum(|o| o.counts.outages_evident)),
        ("replays", sum(|o| o.replayed)),
        ("resumed", sum(|o| o.resumes)),
        ("refused", sum(|o| o.refused)),
        ("events delivered by replays", sum(|o| o.redelivered)),
        ("events given up by replays", sum(|o| o.dead_letters_again)),
    ];
    println!("# simulation: {seeds} seeds in {:?}: {counted:?}", began.elapsed());
    if seeds >= 100 {
        for (name, count) in counted {
            assert!(count > seeds / 20, "a run with {count} {name} in {seeds} seeds proves nothing about them");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..SEEDS_RUN_TWICE {
        let scenario = Scenario::new(seed);
        let (one, two) = (simulate(&scenario), simulate(&scenario));
        let differs = one.trace.iter().zip(&two.trace).position(|(one, two)| one != two);
        assert_eq!(differs.map(|at| (&one.trace[at], &two.trace[at])), None, "seed {seed}");
        assert_eq!((one.trace.len(), one.counts), (two.trace.len(), two.counts), "seed {seed}");
    }
}

/// Most catastrophic failures come from a harmless-looking error that is handled wrongly. So each call fails once, in
/// every way.
fn assert_no_single_failure_breaks_a_promise(scenario: &Scenario, role: Role, made: &[Call]) {
    let whole = simulate(scenario);
    assert_eq!(whole.violation, None, "with nothing failing: {}", end_of_trace(&whole));
    let mut runs = 0;
    let calls: Vec<(Call, u64)> = made.iter().map(|call| (*call, whole.calls[role as usize][*call as usize])).collect();
    for (call, calls) in &calls {
        let call = *call;
        assert!(*calls > 0, "{call:?} is never called, so its failure shows nothing");
        for (index, way) in (0..*calls).flat_map(|index| (0..call.ways()).map(move |way| (index, way))) {
            let single = Single { role, call, index, way };
            let outcome = simulate(&Scenario { single: Some(single), ..scenario.clone() });
            assert!(outcome.violation.is_none(), "{single:?}: {}", end_of_trace(&outcome));
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
        assert!(outcome.violation.is_none(), "{}", end_of_trace(&outcome));
        assert!(
            outcome.calls[Role::Dispatch as usize][Call::Latest as usize] > index,
            "the call that should fail was never made"
        );
    }
}
