//! A destination in memory that does everything that a destination may do: it answers late or never, answers "busy",
//! refuses, accepts an event and loses the answer, always fails for one user, is slow for another, or is in an outage. It
//! may take the events of a run one by one, or as a whole, like an http destination with `--batch`.

use crate::dispatch::oracle::{DeliveredRun, User};
use crate::dispatch::world::{Call, Handle};
use crate::harness::Random;
use eventd::BoxFuture;
use eventd::core::event::Event;
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::{BatchLimits, DeliveryBatch, Destination};
use eventd::limits::ATTEMPT_ABANDON_AFTER;
use std::time::Duration;
use tokio::time::Instant;

/// How the whole destination fails in an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    Unreachable,
    /// Answers every request with 500.
    Fails,
    /// Answers every request with 422.
    Refuses,
    /// Accepts connections and never answers.
    Hangs,
}

/// What the destination does with attempts that begin now. Chances are in percent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    pub(crate) outage: Option<Outage>,
    pub(crate) fails: u64,
    pub(crate) asks_for_patience: u64,
    pub(crate) refuses: u64,
    pub(crate) unreachable: u64,
    pub(crate) hangs: u64,
    /// Accepts the event, but the answer is lost.
    pub(crate) loses_answer: u64,
    pub(crate) latency_ms_min: u64,
    pub(crate) latency_ms_max: u64,
    pub(crate) failing_users: Vec<User>,
    pub(crate) refused_user: Option<User>,
    /// Always get the answer "busy".
    pub(crate) busy_users: Vec<User>,
    /// Get an answer after this time.
    pub(crate) slow_users: Option<(Vec<User>, Duration)>,
    /// Never get an answer.
    pub(crate) hanging_users: Vec<User>,
}

/// What happens to one attempt.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Delivered,
    Failed(Verdict),
    /// Never answers, not even at the deadline.
    Hangs,
}

impl Behaviour {
    /// Removes everything random. Only what lasts is left.
    pub(crate) fn calm(&mut self) {
        *self = Self {
            latency_ms_max: self.latency_ms_max.min(20),
            failing_users: std::mem::take(&mut self.failing_users),
            refused_user: self.refused_user.take(),
            ..Self::default()
        };
    }

    fn fate(&self, event: &Event, random: &mut Random) -> Fate {
        let is = |user: &Option<User>| user.as_ref().is_some_and(|user| user.as_deref() == event.record.key());
        let is_one_of = |users: &[User]| users.iter().any(|user| user.as_deref() == event.record.key());
        let after = |random: &mut Random| random.chance(50).then(|| random.millis(0, 3_000));
        let roll = random.below(100);
        let below = |percents: &[u64]| roll < percents.iter().sum();
        match self.outage {
            Some(Outage::Unreachable) => Fate::Failed(Verdict::Unreachable),
            Some(Outage::Fails) => Fate::Failed(Verdict::Retry { after: None }),
            Some(Outage::Refuses) => Fate::Failed(Verdict::Refused),
            Some(Outage::Hangs) => Fate::Hangs,
            None if is_one_of(&self.failing_users) => Fate::Failed(Verdict::Retry { after: None }),
            None if is(&self.refused_user) => Fate::Failed(Verdict::Refused),
            None if is_one_of(&self.busy_users) => Fate::Failed(Verdict::Busy { after: None }),
            None if is_one_of(&self.hanging_users) => Fate::Hangs,
            None if below(&[self.fails]) => Fate::Failed(Verdict::Retry { after: None }),
            None if below(&[self.fails, self.asks_for_patience]) => {
                let after = after(random);
                Fate::Failed(if random.chance(30) { Verdict::Retry { after } } else { Verdict::Busy { after } })
            }
            None if below(&[self.fails, self.asks_for_patience, self.refuses]) => Fate::Failed(Verdict::Refused),
            None if below(&[self.fails, self.asks_for_patience, self.refuses, self.unreachable]) => {
                Fate::Failed(Verdict::Unreachable)
            }
            None if below(&[self.fails, self.asks_for_patience, self.refuses, self.unreachable, self.hangs]) => {
                Fate::Hangs
            }
            None => Fate::Delivered,
        }
    }

    fn latency(&self, event: &Event, random: &mut Random) -> Duration {
        let is_one_of = |users: &[User]| users.iter().any(|user| user.as_deref() == event.record.key());
        match &self.slow_users {
            // In an outage the destination answers quickly, unless it hangs.
            _ if self.outage.is_some() => random.millis(0, 50),
            Some((users, time)) if is_one_of(users) => *time,
            _ => random.millis(self.latency_ms_min, self.latency_ms_max),
        }
    }
}

/// The fate for a single chosen call.
fn chosen(way: u32) -> Fate {
    let patience = Some(Duration::from_millis(700));
    [
        Fate::Failed(Verdict::Retry { after: None }),
        Fate::Failed(Verdict::Busy { after: patience }),
        Fate::Failed(Verdict::Refused),
        Fate::Failed(Verdict::Unreachable),
        Fate::Failed(Verdict::Drilled),
        Fate::Hangs,
    ][way as usize]
}

/// The destination as one life of dispatch sees it.
#[derive(Debug)]
pub(crate) struct MemoryDestination {
    pub(crate) handle: Handle,
    pub(crate) limits: BatchLimits,
    /// The longest run of several events that it takes, each as a whole. `None`: it takes the events one by one.
    pub(crate) whole_runs_max: Option<usize>,
    pub(crate) attempt_timeout: Duration,
}

/// An attempt without an answer so far. If its caller drops it, the caller never learns what happened.
struct InFlight<'a> {
    destination: &'a MemoryDestination,
    id: Option<u64>,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let Handle { world, life } = &self.destination.handle;
            let now = world.now();
            let is_cut = self.destination.after_lease(now).is_some();
            self.destination.judge_end(id, now);
            let mut state = world.lock();
            state.note(now, *life, format_args!("drops attempt {id}"));
            if let Some(oracle) = state.oracle_of(*life) {
                oracle.dropped(id, is_cut, now);
            }
        }
    }
}

impl MemoryDestination {
    /// How long ago the lease ended. `None` if it has not.
    fn after_lease(&self, now: Duration) -> Option<Duration> {
        let lease = self.handle.world.lock().members.lease_deadline(self.handle.life)?;
        now.checked_sub(self.handle.world.moment(lease))
    }

    /// Checks that a running process does not wait for an attempt longer than its lease allows.
    fn judge_end(&self, id: u64, now: Duration) {
        let Handle { world, life } = &self.handle;
        if !world.is_dying(*life) && self.after_lease(now).is_some_and(|since| !since.is_zero()) {
            world.lock().oracle.fail(format!("life {life} waits for attempt {id} beyond its lease"));
        }
    }

    /// The report of each run, how long the delivery batch takes, and whether it is answered at all.
    fn fates(&self, id: u64, runs: &[DeliveredRun], way: Option<u32>) -> (Vec<Report>, Duration, bool) {
        let mut guard = self.handle.world.lock();
        let state = &mut *guard;
        let (behaviour, random) = (&state.behaviour, &mut state.random);
        let (mut reports, mut time, mut answers) = (Vec::new(), Duration::ZERO, true);
        for run in runs {
            let mut report = Report { delivered: 0, failed: None };
            for event in &run.events {
                time = time.max(behaviour.latency(event, random));
                match way.map_or_else(|| behaviour.fate(event, random), chosen) {
                    Fate::Delivered => report.delivered += 1,
                    Fate::Failed(verdict) => {
                        report.failed = Some(Failed::new(verdict, format!("503 try later ({id}/{})", event.offset)));
                        break;
                    }
                    Fate::Hangs => {
                        answers = false;
                        break;
                    }
                }
            }
            let lost = random.chance(behaviour.loses_answer) && way.is_none();
            if lost {
                report =
                    Report { delivered: 0, failed: Some(Failed::new(Verdict::Retry { after: None }, "no answer")) };
            }
            reports.push(self.as_a_whole(report, run.events.len()));
        }
        (reports, time, answers)
    }

    /// The report of a run of so many events, of which the destination takes all or none.
    fn as_a_whole(&self, report: Report, events: usize) -> Report {
        let Some(events_max) = self.whole_runs_max.filter(|_| events > 1) else { return report };
        match report.failed {
            Some(Failed { verdict: Verdict::Retry { .. } | Verdict::Refused, answer }) => batch_failed(answer),
            Some(failed) => Report { delivered: 0, failed: Some(failed) },
            None if events > events_max => batch_failed(format!("413 {events} events, {events_max} are possible")),
            None => report,
        }
    }
}

fn batch_failed(answer: String) -> Report {
    Report { delivered: 0, failed: Some(Failed::new(Verdict::BatchFailed, answer)) }
}

impl Destination for MemoryDestination {
    fn limits(&self) -> BatchLimits {
        self.limits
    }

    fn deliver(&self, delivery_batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(async move {
            let (handle, world) = (&self.handle, &self.handle.world);
            let way = handle.begin(Call::Deliver).await;
            let runs: Vec<DeliveredRun> = delivery_batch
                .runs
                .iter()
                .map(|run| DeliveredRun {
                    events: delivery_batch.events_of(run).to_vec(),
                    attempt: run.attempt,
                    gap: run.after_dead_letter,
                })
                .collect();
            let (now, deadline) = (world.now(), world.moment(delivery_batch.deadline.at));
            let is_after_lease = self.after_lease(now).is_some();
            let id = {
                let mut guard = world.lock();
                let state = &mut *guard;
                if is_after_lease {
                    state.oracle.fail(format!("life {} begins an attempt after the end of its lease", handle.life));
                }
                let until = now + self.attempt_timeout + ATTEMPT_ABANDON_AFTER;
                let partition = delivery_batch.partition;
                state.replays.attempts(handle.life);
                if !state.is_replay(handle.life) {
                    let keys = delivery_batch.events.iter().map(|event| event.record.key());
                    if let Err(wrong) = state.commands.started(partition, keys, &state.users) {
                        state.oracle.fail(format!("life {}: {wrong}", handle.life));
                    }
                }
                let Some(oracle) = state.oracle_of(handle.life) else { unreachable!("it has joined its group") };
                let runs = oracle.in_place(handle.life, partition, runs.clone());
                let id = oracle.started(handle.life, partition, &runs, until, now);
                let offsets: Vec<Vec<i64>> =
                    runs.iter().map(|run| run.events.iter().map(|event| event.offset).collect()).collect();
                state.note(now, handle.life, format_args!("attempt {id} in {partition}: {offsets:?}"));
                id
            };
            let mut in_flight = InFlight { destination: self, id: Some(id) };
            let (mut reports, time, answers) = self.fates(id, &runs, way);
            if !answers {
                std::future::pending::<()>().await;
            }
            let late = Instant::now() + time > delivery_batch.deadline.at;
            handle.sleep(time.min(deadline.saturating_sub(now))).await;
            handle.end().await;
            if late {
                let failed = Failed::new(Verdict::Retry { after: None }, "no answer in time");
                let report = Report { delivered: 0, failed: Some(failed) };
                reports = runs.iter().map(|run| self.as_a_whole(report.clone(), run.events.len())).collect();
            }
            in_flight.id = None;
            let now = world.now();
            self.judge_end(id, now);
            let mut state = world.lock();
            let said: Vec<_> = reports.iter().map(|r| (r.delivered, r.failed.as_ref().map(|f| f.verdict))).collect();
            state.note(now, handle.life, format_args!("attempt {id} answers {said:?}"));
            if let Some(oracle) = state.oracle_of(handle.life) {
                oracle.reported(id, &reports, now);
            }
            drop(state);
            world.happened.notify_one();
            reports
        })
    }
}
