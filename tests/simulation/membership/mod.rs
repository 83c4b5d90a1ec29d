//! The simulation of group members. Real memberships, each used by a model of dispatch, talk to a model of Kafka's
//! coordinator in simulated time, with seeded faults.
//!
//! ```text
//!  seed ─▶ driver ── starts, stops, kills, freezes ──▶ processes: Membership ⇄ model of dispatch ──┐ assigned,
//!            │                                             │ join, sync, heartbeat, commit          ▼ revoked, lost
//!            └── cut off, slow, moved, grown ──────▶ network ──▶ model of the coordinator ─────▶ oracle
//! ```
//!
//! Some seeds have no faults. In these, a change of members must not interrupt a partition that keeps its owner, and no
//! partition is ever lost. If one partition of a draining member hangs, the others must not wait for it.
//!
//! `EVENTD_SIM_FIRST` and `EVENTD_SIM_SEEDS` choose the seeds. A failing seed is printed with the command that replays
//! it exactly.

mod coordinator;
mod driver;
#[path = "../harness/mod.rs"]
mod harness;
mod network;
mod oracle;
mod process;

use coordinator::Group;
use driver::simulate;
use harness::{Random, Seeds, assert_repeatable, end_of_trace};
use oracle::{Life, Oracle};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

const GROUP: &str = "simulated";

/// Seeds of a plain run.
const SEEDS: u64 = 2_000;
/// Seeds that are run twice.
const SEEDS_RUN_TWICE: u64 = 100;

/// Everything outside the processes.
#[derive(Debug)]
struct World {
    state: Mutex<State>,
    /// Notified if the coordinator has something to do.
    happened: Notify,
}

#[derive(Debug)]
struct State {
    began: Instant,
    group: Group,
    partitions: u32,
    random: Random,
    /// The percentage of messages that are lost.
    loss: u64,
    /// Until this time there is no coordinator. If another broker takes over, it has forgotten what was not stored.
    moves_until: Option<Instant>,
    fails_over: bool,
    oracle: Oracle,
    trace: Option<Vec<String>>,
}

impl World {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Runs the coordinator's timers.
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
                            state.note("another broker is the coordinator");
                        }
                        state.moves_until = None;
                        let before = (state.group.phase, state.group.generation);
                        state.group.tick(now);
                        let after = (state.group.phase, state.group.generation);
                        if before != after {
                            state.note(format_args!("the coordinator's timer: {after:?}"));
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

    fn assigned(&mut self, life: Life, partition: u32) {
        self.oracle.assigned(life, partition, Instant::now());
        self.note(format_args!("{partition} is assigned to {life}"));
    }

    fn revoked(&mut self, life: Life, partition: u32) {
        self.oracle.revoked(life, partition);
        self.note(format_args!("{partition} is revoked from {life}"));
    }

    fn released(&mut self, life: Life, partition: u32) {
        self.oracle.released(life, partition);
        self.note(format_args!("{partition} is released by {life}"));
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

#[test]
fn thousands_of_seeds() {
    let run = Seeds::from_environment(SEEDS).run("--lib group::kafka::membership::simulation::", |seed| {
        let outcome = simulate(seed, false);
        match outcome.violation {
            None => Ok(outcome),
            // Recording a trace takes time, so only a failing seed is run again with one.
            Some(_) => {
                let traced = simulate(seed, true);
                Err(end_of_trace(&traced.trace, traced.violation.as_deref()))
            }
        }
    });
    run.report(
        "members",
        &[
            ("generations", run.sum(|o| o.generations)),
            ("partitions assigned", run.sum(|o| o.counts.assigned)),
            ("released", run.sum(|o| o.counts.releases)),
            ("released by draining members", run.sum(|o| o.counts.drained)),
            ("lost", run.sum(|o| o.counts.lost)),
            ("commits", run.sum(|o| o.counts.commits)),
            ("commits refused", run.sum(|o| o.counts.commits_refused)),
            ("sessions expired", run.sum(|o| o.expired)),
            ("too late for a rebalance", run.sum(|o| o.too_late)),
            ("static members replaced", run.sum(|o| o.replaced)),
            ("assignments inherited", run.sum(|o| o.inherited)),
            ("starts", run.sum(|o| o.done.starts)),
            ("stops", run.sum(|o| o.done.stops)),
            ("kept memberships", run.sum(|o| o.done.kept)),
            ("drains", run.sum(|o| o.done.drains)),
            ("kills", run.sum(|o| o.done.kills)),
            ("kills during a release", run.sum(|o| o.done.kills_in_release)),
            ("freezes", run.sum(|o| o.done.freezes)),
            ("cut off or slow", run.sum(|o| o.done.faults)),
            ("moves of the coordinator", run.sum(|o| o.done.moves)),
            ("topics grown", run.sum(|o| o.done.grown)),
            ("changes without faults", run.sum(|o| o.done.planned)),
        ],
    );
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_repeatable(SEEDS_RUN_TWICE, |seed| (simulate(seed, true).trace, ()));
}
