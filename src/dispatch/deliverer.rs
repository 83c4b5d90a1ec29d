//! From the lanes to the destination, as far as the breaker, the slots and the rate allow it, and back with the reports.
//!
//! ```text
//!            next_batch                                         ended
//!  lanes ────────────────▶ delivery batch ──▶ destination ──▶ reports ──▶ delivered: settled
//!    ▲   lease? rate? slot?                                           ├──▶ failed: try policy ──▶ retry at a moment
//!    │                                                                ├──▶ says nothing: ready again
//!    │   breaker?                                                     └──▶ given up ──▶ dead letter writer
//!    └───────────────────────────── more events of these users ◀──────────────┘
//! ```
//!
//! A batch has one run (for HTTP: events of one user) or many runs of different lanes (for files). It takes one slot of
//! `--concurrency` either way. If it has one run, the slot and the length of the run depend on the user's [`Standing`]. Many
//! lanes together have no standing: their batches wait until earlier ones end, if too many events are in flight.

use super::context::{DispatchContext, SharedBreaker, Throttle};
use super::slots::{PartitionSlots, SharedSlots, Slot};
use crate::core::Moment;
use crate::core::breaker::{Attempt, Breaker, Gate, ProbeRanks, Recovery};
use crate::core::event::Event;
use crate::core::lanes::{LaneView, Lanes, Started, Token};
use crate::core::slots::{EventsInFlight, LongerRun, OLD_AFTER, RunLimits, Standing, UserPaces};
use crate::core::tries::{Decision, TryPolicy};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::destination::{BatchLimits, Deadline, DeliveryBatch, Destination, LeaseDeadline, Run};
use crate::limits::{ATTEMPT_ABANDON_AFTER, PACED_USERS_MAX, USERS_AFTER_DEAD_LETTER_MAX};
use anyhow::ensure;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Delivery batches in flight of one partition, to a destination that takes many lanes at once. While the destination
/// writes one batch, the next one fills. More batches would only be smaller.
const MULTI_LANE_BATCHES_MAX: usize = 2;

/// Lanes that are sorted by the standing of their users while the breaker is locked once.
const SORT_LANES_MAX: usize = 256;

/// An attempt in flight of which nothing else is known shows after this time that its lane is slow. Meanwhile the attempts of
/// the other partitions have become old, too, so that a destination is seen that is slow for every user.
const SLOW_IN_FLIGHT_AFTER: Duration = Duration::from_secs(2);

/// How often the lease of the group is looked at while it lets nothing start, and while an attempt is in flight.
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The attempts of one partition.
pub(super) struct Deliverer {
    partition: u32,
    limits: BatchLimits,
    pub(super) lanes: Lanes,
    batches_in_flight: usize,
    /// The attempts of this partition that probe an open breaker: at most `PROBES_IN_FLIGHT_MAX` of each rank.
    probes: Vec<Attempt>,
    /// The last outage after which lanes were made ready.
    last_recovery: Option<Recovery>,
    /// How often the shared breaker had changed when this partition looked at it last.
    breaker_changes: u64,
    pub(super) slots: PartitionSlots,
    /// Which users are quick and which are slow, if the destination takes one user at a time.
    pub(super) paces: UserPaces,
    /// What the runs in flight leave to others, if the destination takes one user at a time.
    events_in_flight: EventsInFlight,
}

/// What to do next.
pub(super) enum NextBatch {
    /// Send this batch, then ask again.
    Send(StartedBatch),
    /// Nothing may start before this moment. `None`: another completion, a change of the breaker, or a slot has to come
    /// first.
    Wait { until: Option<Moment> },
}

/// A batch that was taken from the lanes.
pub(super) struct StartedBatch {
    batch: DeliveryBatch,
    runs: Vec<RunInFlight>,
    slot: Slot,
    /// When the attempt becomes old, if the destination takes one user at a time.
    old_at: Option<Instant>,
    abandon_at: Instant,
}

/// A run that was taken from a lane, with its attempt at the breaker.
pub(super) struct RunInFlight {
    started: Started,
    attempt: Attempt,
    began: Moment,
    /// Its events beyond those of its slot. `None`: it has none.
    longer: Option<LongerRun>,
}

/// Runs that the breaker lets start now.
#[derive(Default)]
struct PickedRuns {
    runs: Vec<RunInFlight>,
    events: Vec<Event>,
    /// The breaker found that it cannot be judged by so few users, and closed.
    closed_breaker: bool,
}

/// What decides about the events that a batch did not deliver.
pub(super) struct Judge<'a> {
    pub(super) breaker: &'a mut Breaker,
    pub(super) policy: &'a TryPolicy,
    /// Any number, another one for each call.
    pub(super) random: &'a dyn Fn() -> u64,
    pub(super) now: Moment,
}

/// What the reports of a batch led to.
#[derive(Default)]
pub(super) struct BatchEnd {
    /// Events whose tries have ended. Their lanes wait for what follows.
    pub(super) tries_ended: Vec<TriesEnded>,
    /// The last failure while the breaker was open, or that opened it.
    pub(super) failed_in_outage: Option<(Verdict, String)>,
    /// A run of several events that failed as a whole.
    pub(super) batch_failed: Option<FailedBatch>,
}

/// What is said about a run of several events that failed as a whole.
pub(super) struct FailedBatch {
    pub(super) events: usize,
    pub(super) answer: String,
}

/// The first event of a lane has no further attempt.
pub(super) struct TriesEnded {
    pub(super) token: Token,
    /// What follows. It is not [`Decision::Retry`].
    pub(super) decision: Decision,
    /// The whole answer of the last attempt.
    pub(super) answer: String,
}

impl Deliverer {
    pub(super) fn new(context: &DispatchContext, partition: u32) -> Self {
        let throttle = &context.throttle;
        let lanes = Lanes::new(throttle.share(USERS_AFTER_DEAD_LETTER_MAX), context.user_seed(partition));
        let paces = UserPaces::new(throttle.share(PACED_USERS_MAX));
        Self::with_limits(partition, context.parts.destination.limits(), lanes, paces, &throttle.slots)
    }

    fn with_limits(partition: u32, limits: BatchLimits, lanes: Lanes, paces: UserPaces, slots: &SharedSlots) -> Self {
        Self {
            partition,
            limits,
            lanes,
            batches_in_flight: 0,
            probes: Vec::new(),
            last_recovery: None,
            breaker_changes: 0,
            slots: PartitionSlots::new(slots),
            paces,
            events_in_flight: EventsInFlight::default(),
        }
    }

    /// Takes the shares of this partition of what is remembered of users.
    pub(super) fn take_shares(&mut self, throttle: &Throttle) {
        self.lanes.set_after_dead_letter_max(throttle.share(USERS_AFTER_DEAD_LETTER_MAX));
        self.paces.set_users_max(throttle.share(PACED_USERS_MAX));
    }

    /// Whether a batch is in flight.
    pub(super) fn has_batches_in_flight(&self) -> bool {
        self.batches_in_flight > 0
    }

    /// The batches in flight were cut off. Their events are delivered again.
    pub(super) fn batches_aborted(&mut self) {
        self.batches_in_flight = 0;
        self.events_in_flight = EventsInFlight::default();
    }

    /// The probes in flight, taken away because their answers will not be waited for.
    pub(super) fn take_probes(&mut self) -> Vec<Attempt> {
        std::mem::take(&mut self.probes)
    }

    /// If an outage has ended since the last call, makes the lanes ready that failed in it.
    fn wake_after_outage(&mut self, breaker: &Breaker) {
        let recovery = breaker.last_recovery();
        if let Some(recovery) = recovery.filter(|_| recovery != self.last_recovery) {
            self.lanes.wake_failed_during(&recovery);
            self.last_recovery = Some(recovery);
        }
    }

    /// If the breaker has changed since the last call: makes the lanes ready that failed in an outage which has ended, and tells
    /// the breaker which users wait. It decides by their number.
    pub(super) fn look_at_breaker(&mut self, breaker: &SharedBreaker) {
        let changes = breaker.changes();
        if std::mem::replace(&mut self.breaker_changes, changes) != changes {
            let mut breaker = breaker.lock();
            self.wake_after_outage(&breaker);
            breaker.users_wait(self.partition, self.lanes.each_user());
        }
    }

    /// Takes the next batch from the lanes, if one may start now.
    pub(super) fn next_batch(&mut self, context: &DispatchContext, now: Moment) -> NextBatch {
        let next = self.try_next_batch(context, now);
        if !matches!(next, NextBatch::Send(_)) {
            // Slots that were granted and cannot be used now are for other partitions.
            self.slots.release_granted();
        }
        next
    }

    fn try_next_batch(&mut self, context: &DispatchContext, now: Moment) -> NextBatch {
        let in_flight_max = context.throttle.share(context.config.in_flight_events);
        if !self.lanes.has_ready() || (self.takes_many_lanes() && !self.has_room_for_batch(in_flight_max)) {
            return NextBatch::Wait { until: None };
        }
        if (context.lease)().is_some_and(|lease| lease <= Instant::now()) {
            return NextBatch::Wait { until: Some(now + LEASE_LOOK_INTERVAL) };
        }
        let allowance = match context.throttle.rate.allowance(now) {
            Ok(allowance) => allowance,
            Err(until) => return NextBatch::Wait { until: Some(until) },
        };
        let (standing, slot) = match self.take_slot(context, now) {
            Ok(taken) => taken,
            Err(until) => return NextBatch::Wait { until },
        };
        let throttle = &context.throttle;
        let limits =
            RunLimits::new(context.config.in_flight_events, throttle.concurrency, |events| throttle.share(events));
        let events_max = match self.takes_many_lanes() {
            // Half of the events for each of two batches, which take turns: while one is written, the other one fills.
            true => (in_flight_max / 2).max(1),
            false => self.run_max(standing, limits, now),
        };
        let picked = self.pick(&mut context.breaker.lock(), standing, events_max.min(allowance), now);
        match picked {
            Ok(mut picked) => {
                self.count_run(&mut picked, standing, limits, now);
                NextBatch::Send(self.start(picked, slot, context))
            }
            Err(until) => NextBatch::Wait { until },
        }
    }

    /// Whether another batch of many lanes may begin.
    fn has_room_for_batch(&self, in_flight_max: usize) -> bool {
        self.lanes.in_flight_events() < in_flight_max && self.batches_in_flight < MULTI_LANE_BATCHES_MAX
    }

    /// The most events of a run of a user of this standing. A probe has none.
    fn run_max(&mut self, standing: Option<Standing>, limits: RunLimits, now: Moment) -> usize {
        standing.map_or(limits.of_slot(), |standing| self.events_in_flight.run_max(standing, limits, now))
    }

    /// Counts the events of a run that begins. A run without a standing has no more than those of its slot.
    fn count_run(&mut self, picked: &mut PickedRuns, standing: Option<Standing>, limits: RunLimits, now: Moment) {
        if let (Some(standing), [run]) = (standing, &mut picked.runs[..]) {
            run.longer = Some(self.events_in_flight.begin(standing, picked.events.len(), limits, now));
        }
    }

    /// Whether a batch may have runs of many users.
    pub(super) fn takes_many_lanes(&self) -> bool {
        self.limits.runs_max > 1
    }

    /// Finds users that have a slot now. `None`: any user. If no slot is free, joins the queue, and returns when the breaker
    /// allows more attempts.
    fn take_slot(
        &mut self,
        context: &DispatchContext,
        now: Moment,
    ) -> Result<(Option<Standing>, Slot), Option<Moment>> {
        let (gate, more_at) = {
            let breaker = context.breaker.lock();
            context.throttle.limit_by(&breaker, now);
            (breaker.gate(now), breaker.attempts_allowed_grow_at(now))
        };
        match gate {
            Gate::Open { until } => return Err(until),
            Gate::Closed if !self.takes_many_lanes() => self.sort_ready(context),
            // The breaker lets few attempts through, which may be of any user. Many lanes together have no standing.
            Gate::Closed | Gate::HalfOpen { .. } => {
                if let Some(slot) = self.slots.take(Standing::Served) {
                    return Ok((None, slot));
                }
                self.slots.wait(Standing::Served);
                return Err(more_at);
            }
        }
        for standing in self.lanes.ready_standings() {
            if let Some(slot) = self.slots.take(standing) {
                return Ok((Some(standing), slot));
            }
        }
        self.lanes.ready_standings().for_each(|standing| self.slots.wait(standing));
        Err(more_at)
    }

    /// Sorts the lanes that became ready by the standing of their users.
    fn sort_ready(&mut self, context: &DispatchContext) {
        let Self { lanes, paces, .. } = self;
        loop {
            let breaker = context.breaker.lock();
            let is_sorted = lanes.sort_ready(SORT_LANES_MAX, |user| match breaker.is_suspect(user) {
                true => Standing::Doubtful,
                false => paces.standing(user),
            });
            if is_sorted {
                return;
            }
        }
    }

    /// Tells the breaker which attempts have been in flight for long, and learns which of their users are slow alone.
    pub(super) fn look_at_old_attempts(&mut self, breaker: &SharedBreaker, now: Moment) {
        let old = |id| {
            let lane = self.lanes.view(id);
            let began = lane.in_flight_since.filter(|began| now.saturating_sub(*began) >= OLD_AFTER)?;
            Some((lane.user, began))
        };
        let old: Vec<(u64, Moment)> = self.lanes.each_lane().filter_map(old).collect();
        if old.is_empty() {
            return;
        }
        let mut breaker = breaker.lock();
        for (user, began) in old {
            if breaker.report_old_attempt(user, began, now) {
                self.paces.found_slow_alone(user);
            }
        }
    }

    /// Takes runs from the lanes if the breaker lets them start. The gate is asked and the attempts are begun under one
    /// lock of the breaker, so that the workers together never begin too many probes.
    ///
    /// `Err`: nothing may start before this moment, or before the breaker changes.
    fn pick(
        &mut self,
        breaker: &mut Breaker,
        standing: Option<Standing>,
        events_max: usize,
        now: Moment,
    ) -> Result<PickedRuns, Option<Moment>> {
        match breaker.gate(now) {
            Gate::Open { until } => return Err(until),
            Gate::HalfOpen { ranks, until } => return self.pick_probe(breaker, ranks, until, now),
            Gate::Closed => {}
        }
        let mut picked = PickedRuns::default();
        while picked.runs.len() < self.limits.runs_max && picked.events.len() < events_max {
            let run_events_max = self.limits.run_events_max.min(events_max - picked.events.len());
            let (run_bytes_max, events) = (self.limits.run_bytes_max, &mut picked.events);
            let started = match standing {
                Some(standing) => self.lanes.next_of(standing, run_events_max, run_bytes_max, events),
                None => self.lanes.next(run_events_max, run_bytes_max, events),
            };
            let Some(started) = started else { break };
            let attempt = breaker.begin(started.user, now);
            picked.runs.push(RunInFlight { started, attempt, began: now, longer: None });
        }
        if picked.runs.is_empty() { Err(None) } else { Ok(picked) }
    }

    /// Takes one event as a probe, of a user of the best of these ranks that is ready. Users of other ranks may not be
    /// probed before `until`. The other ready lanes stay ready: they wait for an answer.
    fn pick_probe(
        &mut self,
        breaker: &mut Breaker,
        ranks: ProbeRanks,
        until: Option<Moment>,
        now: Moment,
    ) -> Result<PickedRuns, Option<Moment>> {
        // The breaker decides by the number of users that wait, so it must know them before it begins the probe.
        breaker.users_wait(self.partition, self.lanes.each_user());
        let mut picked = PickedRuns::default();
        let started = self.lanes.next_probe(ranks, |user| breaker.probe_rank(user), &mut picked.events);
        let Some(started) = started else { return Err(until) };
        let attempt = breaker.begin(started.user, now);
        if attempt.probe {
            self.probes.push(attempt);
        } else {
            picked.closed_breaker = true;
        }
        picked.runs.push(RunInFlight { started, attempt, began: now, longer: None });
        Ok(picked)
    }

    fn start(&mut self, picked: PickedRuns, slot: Slot, context: &DispatchContext) -> StartedBatch {
        let PickedRuns { runs, events, closed_breaker } = picked;
        if closed_breaker {
            context.breaker.notify_changed();
        }
        self.batches_in_flight += 1;
        context.throttle.rate.spend(events.len());
        let now = Instant::now();
        let deadline = now + context.config.attempt_timeout;
        let batch = DeliveryBatch {
            topic: Arc::clone(&context.topic),
            partition: self.partition,
            runs: runs.iter().map(RunInFlight::run).collect(),
            events,
            deadline: Deadline::within_lease(deadline, Arc::clone(&context.lease)),
        };
        let old_at = (!self.takes_many_lanes()).then(|| now + OLD_AFTER);
        StartedBatch { batch, runs, slot, old_at, abandon_at: deadline + ATTEMPT_ABANDON_AFTER }
    }

    /// Takes the reports of a batch: settles what was delivered (each event is shown to `settled`), and lets the policy
    /// decide about each event that failed.
    ///
    /// # Errors
    /// The destination broke its contract: the reports do not fit the runs.
    pub(super) fn batch_ended(
        &mut self,
        runs: Vec<RunInFlight>,
        reports: Vec<Report>,
        judge: Judge<'_>,
        mut settled: impl FnMut(&Event),
    ) -> anyhow::Result<BatchEnd> {
        let Judge { breaker, policy, random, now } = judge;
        self.batches_in_flight -= 1;
        ensure!(runs.len() == reports.len(), "{} runs got {} reports", runs.len(), reports.len());
        // Deliveries are told to the breaker first. Otherwise a run that failed in the same batch could open it, although
        // the destination is well.
        let delivered = runs.iter().zip(&reports).filter(|(_, report)| report.delivered > 0);
        let delivered: Vec<Attempt> = delivered.map(|(run, _)| run.attempt).collect();
        breaker.delivered_many(&delivered, now);
        let mut end = BatchEnd::default();
        for (RunInFlight { started, attempt, began, longer }, report) in runs.into_iter().zip(reports) {
            if let Some(longer) = longer {
                self.events_in_flight.end(longer);
            }
            let (delivered, events) = (report.delivered, started.events.len());
            ensure!(
                report.failed.is_some() == (delivered < events),
                "a run of {events} events reported {delivered} delivered, and {} failure",
                if report.failed.is_some() { "a" } else { "no" }
            );
            if !self.takes_many_lanes() {
                self.paces.attempted(started.user, now.saturating_sub(began), delivered > 0);
                if self.paces.is_slow(started.user) && breaker.is_slow_alone(started.user, began, now) {
                    self.paces.found_slow_alone(started.user);
                }
            }
            let silent = report.failed.as_ref().filter(|failed| failed.verdict.says_nothing());
            if let Some(failed) = silent {
                let batch_failed = failed.verdict == Verdict::BatchFailed;
                ensure!(!batch_failed || events > 1, "a run of one event was reported as a failed batch");
                breaker.abandoned(&attempt);
                self.probes.retain(|probe| *probe != attempt);
                self.lanes.settle_without_verdict(started.token, delivered, batch_failed, &mut settled);
                if batch_failed {
                    end.batch_failed = Some(FailedBatch { events, answer: failed.answer.clone() });
                }
                continue;
            }
            let decision = self.lanes.settle(started.token, delivered, &mut settled, |_, history| {
                let failed = report.failed.as_ref().expect("a run that was not delivered has failed");
                let decision = policy.judge(breaker, &attempt, failed, history, now, random());
                if breaker.is_out() && failed.verdict != Verdict::Drilled {
                    end.failed_in_outage = Some((failed.verdict, failed.answer.clone()));
                }
                decision
            });
            self.probes.retain(|probe| *probe != attempt);
            if let (Some(decision), Some(failed)) = (decision, report.failed)
                && !matches!(decision, Decision::Retry { .. })
            {
                end.tries_ended.push(TriesEnded { token: started.token, decision, answer: failed.answer });
            }
        }
        Ok(end)
    }
}

/// Whether a lane that takes long is so because of its user. If `is_slow_for_all`, only what was seen of this user tells.
pub(super) fn is_lane_slow(
    paces: &UserPaces,
    breaker: &Breaker,
    lane: &LaneView<'_>,
    is_slow_for_all: bool,
    now: Moment,
) -> bool {
    if paces.is_slow_alone(lane.user) || breaker.is_suspect(lane.user) {
        return true;
    }
    let is_old = |began| now.saturating_sub(began) >= SLOW_IN_FLIGHT_AFTER;
    let is_known = lane.events_per_s.is_some_and(|events| events > 0)
        || paces.is_slow(lane.user)
        || lane.in_flight_since.is_some_and(is_old);
    is_known && !is_slow_for_all
}

impl RunInFlight {
    fn run(&self) -> Run {
        let Started { events, attempt, after_dead_letter, .. } = &self.started;
        Run { events: events.clone(), attempt: *attempt, after_dead_letter: *after_dead_letter }
    }
}

impl StartedBatch {
    /// Delivers the batch, and answers for it if the destination does not: one report for each run.
    pub(super) async fn deliver(
        self,
        destination: Arc<dyn Destination>,
        lease: Arc<LeaseDeadline>,
    ) -> (Vec<RunInFlight>, Vec<Report>) {
        let Self { batch, runs, mut slot, old_at, abandon_at } = self;
        let reports = tokio::select! {
            biased;
            reports = destination.deliver(batch) => reports,
            failed = abandoned(&*lease, abandon_at, old_at, || slot.became_old()) => {
                vec![Report { delivered: 0, failed: Some(failed) }; runs.len()]
            }
        };
        drop(slot);
        (runs, reports)
    }
}

/// Ready when the answer to an attempt must not be waited for any longer: at `at`, or at the end of the lease. The lease
/// is looked at again and again, because heartbeats extend it, and it ends early if the machine was suspended.
///
/// Calls `became_old` once on the way, at `old_at`.
async fn abandoned(
    lease: &LeaseDeadline,
    at: Instant,
    mut old_at: Option<Instant>,
    mut became_old: impl FnMut(),
) -> Failed {
    loop {
        let (now, lease) = (Instant::now(), lease());
        if lease.is_some_and(|lease| lease <= now) {
            // The next owner may start now. The destination did not fail.
            return Failed::new(Verdict::CutOff, "cut off at the end of the owner's session");
        }
        if at <= now {
            return Failed::new(Verdict::Retry { after: None }, "no answer within --attempt-timeout");
        }
        if old_at.take_if(|old_at| *old_at <= now).is_some() {
            became_old();
        }
        let until = lease.map_or(at, |lease| at.min(lease).min(now + LEASE_LOOK_INTERVAL));
        sleep_until(old_at.map_or(until, |old_at| old_at.min(until))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backoff::Backoff;
    use crate::core::event::Record;
    use crate::core::tries::{GiveUpReason, OnExhausted};

    const ONE_EVENT: BatchLimits = BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: usize::MAX };
    const MANY: BatchLimits = BatchLimits { runs_max: 10, run_events_max: 10, run_bytes_max: usize::MAX };
    const RETRY: Verdict = Verdict::Retry { after: None };

    /// A deliverer with these users, one event for each.
    fn deliverer(limits: BatchLimits, users: &[&str]) -> Deliverer {
        let mut deliverer =
            Deliverer::with_limits(0, limits, Lanes::new(10, 0), UserPaces::new(10), &SharedSlots::new(10));
        for (offset, user) in (0..).zip(users) {
            let record = Record::new(Some(user.as_bytes()), Some(b"payload"), &[], 0);
            deliverer.lanes.admit(Event { offset, record });
        }
        deliverer
    }

    fn report(verdict: Option<Verdict>) -> Report {
        let failed = verdict.map(|verdict| Failed::new(verdict, "the answer"));
        Report { delivered: failed.is_none().into(), failed }
    }

    /// Ends a batch of one event a run, and returns what it led to and the offsets that were settled.
    fn end(
        deliverer: &mut Deliverer,
        breaker: &mut Breaker,
        picked: PickedRuns,
        reports: Vec<Report>,
    ) -> anyhow::Result<(BatchEnd, Vec<i64>)> {
        end_at(Moment::ZERO, deliverer, breaker, picked, reports)
    }

    fn end_at(
        now: Moment,
        deliverer: &mut Deliverer,
        breaker: &mut Breaker,
        picked: PickedRuns,
        reports: Vec<Report>,
    ) -> anyhow::Result<(BatchEnd, Vec<i64>)> {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), false).unwrap();
        let policy = &TryPolicy {
            attempts_max: Some(1),
            give_up_after: None,
            on_exhausted: OnExhausted::DeadLetter,
            backoff,
            retry_after_max: Duration::from_secs(300),
        };
        let mut settled = Vec::new();
        deliverer.batches_in_flight += 1;
        let judge = Judge { breaker, policy, random: &|| 0, now };
        let end = deliverer.batch_ended(picked.runs, reports, judge, |event| settled.push(event.offset))?;
        Ok((end, settled))
    }

    fn offsets(picked: &PickedRuns) -> Vec<i64> {
        picked.events.iter().map(|event| event.offset).collect()
    }

    #[test]
    fn a_batch_has_as_many_lanes_as_the_destination_takes() {
        let mut breaker = Breaker::new();
        let mut one = deliverer(ONE_EVENT, &["a", "b", "c"]);
        assert_eq!(offsets(&one.pick(&mut breaker, None, 10, Moment::ZERO).unwrap()), [0]);
        let mut many = deliverer(MANY, &["a", "b", "a", "c"]);
        let picked = many.pick(&mut breaker, None, 3, Moment::ZERO).unwrap();
        assert_eq!((offsets(&picked), picked.runs.len()), (vec![0, 2, 1], 2), "no more than three events");
    }

    #[test]
    fn an_unreachable_destination_gets_one_probe_and_the_other_lanes_stay_ready() {
        let (mut breaker, now) = (Breaker::new(), Duration::from_secs(10));
        let mut deliverer = deliverer(MANY, &["a", "b", "c"]);
        let unreachable = breaker.begin(99, Moment::ZERO);
        breaker.failed(&unreachable, Verdict::Unreachable, Moment::ZERO);
        assert!(deliverer.pick(&mut breaker, None, 10, Moment::ZERO).is_err(), "no probe is due yet");
        let probe = deliverer.pick(&mut breaker, None, 10, now).unwrap();
        assert_eq!(probe.events.len(), 1);
        assert!(deliverer.lanes.has_ready());
        let until = Some(now + Duration::from_secs(1));
        assert_eq!(deliverer.pick(&mut breaker, None, 10, now).err(), Some(until), "the probe hangs then");
        let (_, settled) = end(&mut deliverer, &mut breaker, probe, vec![report(None)]).unwrap();
        assert_eq!((settled.len(), deliverer.take_probes()), (1, vec![]));
        assert_eq!(deliverer.pick(&mut breaker, None, 10, now).unwrap().events.len(), 2, "the breaker is closed again");
    }

    #[test]
    fn lanes_that_failed_in_an_outage_are_ready_once_it_has_ended() {
        let (mut breaker, now) = (Breaker::new(), Duration::from_secs(10));
        let mut deliverer = deliverer(ONE_EVENT, &["a", "b"]);
        let picked = deliverer.pick(&mut breaker, None, 10, Moment::ZERO).unwrap();
        end(&mut deliverer, &mut breaker, picked, vec![report(Some(Verdict::Unreachable))]).unwrap();
        let probe = deliverer.pick(&mut breaker, None, 10, now).unwrap();
        deliverer.wake_after_outage(&breaker);
        assert!(!deliverer.lanes.has_ready(), "the outage lasts");
        end_at(now, &mut deliverer, &mut breaker, probe, vec![report(None)]).unwrap();
        deliverer.wake_after_outage(&breaker);
        assert_eq!(offsets(&deliverer.pick(&mut breaker, None, 10, now).unwrap()), [0], "long before its backoff ends");
        deliverer.wake_after_outage(&breaker);
    }

    #[test]
    fn the_breaker_learns_which_users_wait_although_the_worker_was_busy_when_it_opened() {
        for looks in [false, true] {
            let (breaker, mut waiting) = (SharedBreaker::default(), deliverer(ONE_EVENT, &["a", "b", "c", "d", "e"]));
            for user in 1..=5 {
                let attempt = breaker.lock().begin(user, Moment::ZERO);
                breaker.lock().failed(&attempt, RETRY, Moment::ZERO);
            }
            breaker.notify_changed();
            if looks {
                waiting.look_at_breaker(&breaker);
            }
            // The users that opened it were tried too long ago to decide.
            let attempt = breaker.lock().begin(6, Duration::from_secs(70));
            assert_eq!(attempt.probe, looks, "with fewer than five users that wait, the breaker closes");
        }
    }

    #[test]
    fn delivered_events_are_settled_and_failed_ones_are_given_up_as_the_policy_says() {
        let mut breaker = Breaker::new();
        let mut deliverer = deliverer(MANY, &["a", "b", "c"]);
        let picked = deliverer.pick(&mut breaker, None, 10, Moment::ZERO).unwrap();
        let reports = vec![report(None), report(Some(RETRY)), report(Some(Verdict::Busy { after: None }))];
        let (end, settled) = end(&mut deliverer, &mut breaker, picked, reports).unwrap();
        assert_eq!(settled, [0]);
        let [TriesEnded { token, decision, answer }] = &end.tries_ended[..] else {
            panic!("{} are given up", end.tries_ended.len())
        };
        assert_eq!((*decision, answer.as_str()), (Decision::GiveUp(GiveUpReason::Exhausted), "the answer"));
        assert_eq!(deliverer.lanes.giving_up(*token).0.offset, 1);
        assert_eq!(end.failed_in_outage, None);
        assert!(!deliverer.has_batches_in_flight());
    }

    #[test]
    fn a_failure_that_opens_the_breaker_is_the_cause_of_the_outage() {
        let mut breaker = Breaker::new();
        let mut deliverer = deliverer(MANY, &["a"]);
        let picked = deliverer.pick(&mut breaker, None, 10, Moment::ZERO).unwrap();
        let (end, settled) =
            end(&mut deliverer, &mut breaker, picked, vec![report(Some(Verdict::Unreachable))]).unwrap();
        assert_eq!(end.failed_in_outage, Some((Verdict::Unreachable, "the answer".into())));
        assert!(settled.is_empty() && end.tries_ended.is_empty());
    }

    #[test]
    fn batches_that_fail_and_attempts_that_are_cut_off_say_nothing() {
        let mut breaker = Breaker::new();
        for user in 0..20 {
            let user = user.to_string();
            let mut deliverer = deliverer(MANY, &[&user, &user]);
            for verdict in [Verdict::BatchFailed, Verdict::CutOff, Verdict::CutOff] {
                let picked = deliverer.pick(&mut breaker, None, 10, Moment::ZERO).unwrap();
                let (end, settled) = end(&mut deliverer, &mut breaker, picked, vec![report(Some(verdict))]).unwrap();
                assert!(settled.is_empty() && end.tries_ended.is_empty() && end.failed_in_outage.is_none());
                assert_eq!(end.batch_failed.map(|batch| batch.events), (verdict == Verdict::BatchFailed).then_some(2));
                assert_eq!(deliverer.lanes.each_failed().count(), 0);
            }
            let picked = deliverer.pick(&mut breaker, None, 10, Moment::ZERO).unwrap();
            assert_eq!((offsets(&picked), picked.runs[0].started.attempt), (vec![0], 1), "the first event goes alone");
        }
        assert!(breaker.is_healthy() && !breaker.is_out(), "twenty users whose batches fail show no outage");
    }

    #[test]
    fn reports_that_do_not_fit_the_runs_are_an_error() {
        let mut breaker = Breaker::new();
        let failed = Some(Failed::new(Verdict::BatchFailed, "a batch of one event"));
        for reports in [vec![], vec![Report { delivered: 0, failed: None }], vec![Report { delivered: 0, failed }]] {
            let mut deliverer = deliverer(ONE_EVENT, &["a"]);
            let picked = deliverer.pick(&mut breaker, None, 10, Moment::ZERO).unwrap();
            assert!(end(&mut deliverer, &mut breaker, picked, reports).is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_without_an_answer_ends_at_its_deadline_or_with_the_lease() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let no_lease: &LeaseDeadline = &|| None;
        assert_eq!(abandoned(no_lease, start + seconds(5), None, || panic!()).await.verdict, RETRY);
        assert_eq!(start.elapsed(), seconds(5));
        let lease: &LeaseDeadline = &move || Some(start + seconds(7));
        let mut old = 0;
        assert_eq!(
            abandoned(lease, start + seconds(100), Some(start + seconds(6)), || old += 1).await.verdict,
            Verdict::CutOff
        );
        assert_eq!((start.elapsed(), old), (seconds(7), 1));
    }
}
