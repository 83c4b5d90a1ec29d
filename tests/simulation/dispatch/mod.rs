//! The simulation: the real `dispatch::run` over an in-memory log, group and destination, in time that stands still
//! while there is anything to do, with seeded faults and crashes. An oracle that shares no code with what it judges
//! holds it to the promises of the design.
//!
//! ```text
//!  seed ─▶ scenario ─▶ driver ─ starts, crashes, stops, moves ─▶ dispatch::run ⇄ world (log, group, destination)
//!                                                                                  └─▶ oracle ─▶ violation, or none
//! ```
//!
//! `EVENTD_SIM_FIRST` and `EVENTD_SIM_SEEDS` choose the seeds; a failing one is printed with the command that replays
//! it exactly.

mod drive;
mod judgement;
mod judges;
mod memory_destination;
mod memory_group;
mod memory_groups;
mod memory_log;
mod oracle;
mod outages;
mod random;
mod replays;
mod scenario;
mod telling;
mod world;

use self::drive::{Outcome, simulate};
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

fn story(outcome: &Outcome) -> String {
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
                            eprintln!("{}", story(&outcome));
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
        ("positions asked for", sum(|o| o.repositions)),
        ("positions moved by owners", sum(|o| o.counts.moved)),
        ("damaged for a while", sum(|o| o.damages)),
        ("evident to a process", sum(|o| o.counts.outages_evident)),
        ("replays", sum(|o| o.replayed)),
        ("resumed", sum(|o| o.resumes)),
        ("refused", sum(|o| o.refused)),
        ("delivered by them", sum(|o| o.redelivered)),
        ("given up by them", sum(|o| o.letters_again)),
    ];
    println!("# simulation: {seeds} seeds in {:?}: {counted:?}", began.elapsed());
    if seeds >= 100 {
        for (name, count) in counted {
            assert!(count > seeds / 20, "a run with {count} {name} in {seeds} seeds proves nothing of them");
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

/// Most catastrophic failures come from a mishandled, harmless-looking error: so each call fails once, in every way.
fn every_call_fails_once(scenario: &Scenario, role: Role, made: &[Call]) {
    let whole = simulate(scenario);
    assert_eq!(whole.violation, None, "with nothing failing: {}", story(&whole));
    let mut runs = 0;
    let calls: Vec<(Call, u64)> = made.iter().map(|call| (*call, whole.calls[role as usize][*call as usize])).collect();
    for (call, calls) in &calls {
        let call = *call;
        assert!(*calls > 0, "{call:?} is never called: its failure shows nothing");
        for (index, way) in (0..*calls).flat_map(|index| (0..call.ways()).map(move |way| (index, way))) {
            let single = Single { role, call, index, way };
            let outcome = simulate(&Scenario { single: Some(single), ..scenario.clone() });
            assert!(outcome.violation.is_none(), "{single:?}: {}", story(&outcome));
            runs += 1;
        }
    }
    println!("# every single call of {role:?} fails once: {runs} runs, {calls:?}");
}

#[test]
fn every_single_call_fails_once() {
    use Call::{Append, Changed, Commit, Committed, Deliver, Earliest, Fetch, Open, Partitions, Requested};
    let made = [Open, Append, Fetch, Partitions, Earliest, Changed, Committed, Commit, Requested, Deliver];
    every_call_fails_once(&fixed(), Role::Dispatch, &made);
}

#[test]
fn every_single_call_of_a_replay_fails_once() {
    // A replay has no position that anybody moves.
    let made: Vec<Call> = CALLS.into_iter().filter(|call| *call != Call::Requested).collect();
    every_call_fails_once(&fixed_with_replays(), Role::Replay, &made);
}

/// The one call that a start at the beginning never makes.
#[test]
fn the_question_where_the_log_ends_fails_once() {
    let mut scenario = fixed();
    scenario.config.start = eventd::dispatch::Start::Latest;
    for index in 0..u64::from(scenario.partitions) {
        scenario.single = Some(Single { role: Role::Dispatch, call: Call::Latest, index, way: 0 });
        let outcome = simulate(&scenario);
        assert!(outcome.violation.is_none(), "{}", story(&outcome));
        assert!(
            outcome.calls[Role::Dispatch as usize][Call::Latest as usize] > index,
            "the call that was to fail was never made"
        );
    }
}
