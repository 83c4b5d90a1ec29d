//! The simulation of members: real memberships, each with a model of dispatch as its user, over a model of Kafka's
//! coordinator, in time that stands still while there is anything to do, with seeded trouble.
//!
//! ```text
//!  seed ─▶ driver ── starts, stops, kills, freezes ──▶ processes: Membership ⇄ model of dispatch ──┐ given, taken, lost
//!            │                                             │ join, sync, heartbeat, commit          ▼
//!            └── cut off, slow, moved, grown ──────▶ network ──▶ model of the coordinator ─────▶ oracle
//! ```
//!
//! Some seeds have no trouble: then a change of members may stop no partition that stays, and nothing is ever lost; and
//! if one partition of a member that drains hangs, the others do not wait for it.
//!
//! `EVENTD_SIM_FIRST` and `EVENTD_SIM_SEEDS` choose the seeds; a failing one is printed with the command that replays
//! it exactly.

mod coordinator;
mod driver;
mod network;
mod oracle;
mod process;
mod random;

use coordinator::Group;
use driver::{Outcome, simulate};
use oracle::{Life, Oracle};
use random::Random;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const GROUP: &str = "simulated";

/// Seeds of a plain run.
const SEEDS: u64 = 2_000;
const THREADS: u64 = 2;
/// Seeds that are run twice.
const SEEDS_RUN_TWICE: u64 = 100;
/// Lines of a failing seed's trace that are printed.
const TRACE_LINES: usize = 120;

/// What is outside of every process.
#[derive(Debug)]
struct World {
    state: Mutex<State>,
    /// The coordinator has something to do.
    happened: Notify,
}

#[derive(Debug)]
struct State {
    began: Instant,
    group: Group,
    partitions: u32,
    random: Random,
    /// Of a hundred messages, how many are lost.
    loss: u64,
    /// Until then nobody is the coordinator; it has forgotten what it did not store, if it is another one after that.
    moves_until: Option<Instant>,
    fails_over: bool,
    oracle: Oracle,
    trace: Option<Vec<String>>,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The coordinator's own time.
    async fn coordinate(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.lock();
                let now = Instant::now();
                match state.moves_until {
                    Some(until) if now < until => Some(until),
                    moved => {
                        if moved.is_some() && std::mem::take(&mut state.fails_over) {
                            state.group.fail_over(now);
                            state.note("the coordinator is another one");
                        }
                        state.moves_until = None;
                        let before = (state.group.phase, state.group.generation);
                        state.group.tick(now);
                        let after = (state.group.phase, state.group.generation);
                        if before != after {
                            state.note(format_args!("the coordinator, by its clock: {after:?}"));
                        }
                        state.group.next_moment()
                    }
                }
            };
            let ages = Instant::now() + std::time::Duration::from_secs(3_600);
            tokio::select! {
                biased;
                () = self.happened.notified() => {}
                () = sleep_until(next.unwrap_or(ages)) => {}
            }
        }
    }
}

impl State {
    fn note(&mut self, what: impl fmt::Display) {
        if let Some(trace) = &mut self.trace {
            let (at, phase, generation) = (self.began.elapsed(), self.group.phase, self.group.generation);
            trace.push(format!("{:9.3} {phase:?} {generation:3}: {what}", at.as_secs_f64()));
        }
    }

    fn given(&mut self, life: Life, partition: u32) {
        self.oracle.given(life, partition, Instant::now());
        self.note(format_args!("{partition} is given to {life}"));
    }

    fn taken(&mut self, life: Life, partition: u32) {
        self.oracle.taken(life, partition);
        self.note(format_args!("{partition} is taken from {life}"));
    }

    fn released(&mut self, life: Life, partition: u32) {
        self.oracle.released(life, partition);
        self.note(format_args!("{partition} is let go by {life}"));
    }

    fn lost(&mut self, life: Life, partition: u32) {
        self.oracle.lost(life, partition);
        self.note(format_args!("{partition} is lost by {life}"));
    }

    fn ended(&mut self, life: Life, why: String) {
        self.note(format_args!("{life} ends: {why}"));
        self.oracle.has_ended(life, why);
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Runs a failing seed again, for its story.
fn story(seed: u64) -> String {
    let outcome = simulate(seed, true);
    let from = outcome.trace.len().saturating_sub(TRACE_LINES);
    format!("{}\n{}", outcome.trace[from..].join("\n"), outcome.violation.unwrap_or_else(|| "no violation".into()))
}

#[test]
fn thousands_of_seeds() {
    let (first, seeds) = (number("EVENTD_SIM_FIRST", 0), number("EVENTD_SIM_SEEDS", SEEDS));
    let began = std::time::Instant::now();
    let run = |thread: u64| {
        let mut outcomes = Vec::new();
        for seed in (first..first + seeds).filter(|seed| seed % THREADS == thread) {
            let outcome = simulate(seed, false);
            assert!(
                outcome.violation.is_none(),
                "{}\nreplay: EVENTD_SIM_FIRST={seed} EVENTD_SIM_SEEDS=1 cargo test --lib \
                 group::kafka::membership::simulation::thousands_of_seeds",
                story(seed)
            );
            outcomes.push(outcome);
        }
        outcomes
    };
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.collect::<Result<Vec<_>, _>>().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).concat()
    });
    let sum = |of: fn(&Outcome) -> u64| totals.iter().map(of).sum::<u64>();
    let counted: [(&str, u64); 22] = [
        ("generations", sum(|o| o.generations)),
        ("partitions given", sum(|o| o.counts.given)),
        ("handed over", sum(|o| o.counts.handovers)),
        ("handed over by members that drain", sum(|o| o.counts.drained)),
        ("lost", sum(|o| o.counts.lost)),
        ("commits", sum(|o| o.counts.commits)),
        ("commits refused", sum(|o| o.counts.commits_refused)),
        ("sessions expired", sum(|o| o.expired)),
        ("too late for a rebalance", sum(|o| o.too_late)),
        ("static members replaced", sum(|o| o.replaced)),
        ("assignments inherited", sum(|o| o.inherited)),
        ("starts", sum(|o| o.done.starts)),
        ("stops", sum(|o| o.done.stops)),
        ("kept memberships", sum(|o| o.done.kept)),
        ("drains", sum(|o| o.done.drains)),
        ("kills", sum(|o| o.done.kills)),
        ("kills within a handover", sum(|o| o.done.kills_in_handover)),
        ("freezes", sum(|o| o.done.freezes)),
        ("cut off or slow", sum(|o| o.done.troubles)),
        ("moves of the coordinator", sum(|o| o.done.moves)),
        ("topics grown", sum(|o| o.done.grown)),
        ("changes without trouble", sum(|o| o.done.planned)),
    ];
    println!("# members: {seeds} seeds in {:?}: {counted:?}", began.elapsed());
    if seeds >= 100 {
        for (name, count) in counted {
            assert!(count > seeds / 20, "a run with {count} {name} in {seeds} seeds proves nothing of them");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..SEEDS_RUN_TWICE {
        let (one, two) = (simulate(seed, true), simulate(seed, true));
        let differs = one.trace.iter().zip(&two.trace).position(|(one, two)| one != two);
        assert_eq!(differs.map(|at| (&one.trace[at], &two.trace[at])), None, "seed {seed}");
        assert_eq!(one.trace.len(), two.trace.len(), "seed {seed}");
    }
}
