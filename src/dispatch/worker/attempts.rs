//! From the lanes to the destination, where the breaker and the slots allow it, and what the reports lead to.

use super::{Flight, Happening, Worker};
use crate::core::Moment;
use crate::core::breaker::{Attempt, Gate};
use crate::core::text;
use crate::core::verdict::{Failed, Report, Verdict};
use crate::destination::{Deadline, DeliveryBatch, LeaseDeadline, Run};
use crate::dispatch::dead_letter::Letter;
use crate::dispatch::policy;
use crate::limits;
use anyhow::ensure;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

impl Worker {
    /// Starts what may start. Answers with the moment at which breaker and pace may be asked again, if one said no.
    pub(super) fn start(&mut self, now: Moment) -> Option<Moment> {
        let many = self.limits.runs_max > 1;
        let events_max = self.shared.share(limits::IN_FLIGHT_EVENTS_MAX);
        while self.lanes.has_ready() && self.lanes.in_flight_events() < events_max {
            if many && self.hand_overs >= limits::HAND_OVERS_OF_MANY_MAX {
                break;
            }
            if self.shared.parts.group.lease_deadline().is_some_and(|lease| lease <= Instant::now()) {
                self.slot = None;
                return Some(now + limits::FENCE_LOOK_INTERVAL);
            }
            let allowed = match self.shared.allowance(now) {
                Ok(allowed) => allowed,
                Err(until) => {
                    self.slot = None;
                    return Some(until);
                }
            };
            let Some(slot) = self.slot.take().or_else(|| Arc::clone(&self.shared.slots).try_acquire_owned().ok())
            else {
                self.want_slot();
                break;
            };
            // Two hand-overs take turns: while one is written, the other one fills.
            if let Err(until) = self.launch(slot, (events_max / 2).clamp(1, allowed), now) {
                self.slot = None;
                return until;
            }
        }
        self.slot = None;
        None
    }

    fn want_slot(&mut self) {
        if !std::mem::replace(&mut self.slot_wanted, true) {
            let slots = Arc::clone(&self.shared.slots);
            self.outside.spawn(async move {
                Happening::Slot(slots.acquire_owned().await.expect("the slots of a destination are never closed"))
            });
        }
    }

    /// Hands out what is ready, if the breaker lets it. `Err`: nothing may start, until then or until it moves.
    fn launch(&mut self, slot: OwnedSemaphorePermit, events_max: usize, now: Moment) -> Result<(), Option<Moment>> {
        let (mut events, mut flights, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        {
            // Asked and begun under one lock: two owners never both begin the one probe.
            let mut breaker = self.shared.breaker();
            let probe = match breaker.gate(now) {
                Gate::Closed => false,
                Gate::HalfOpen => true,
                Gate::Open { until } => return Err(until),
            };
            if probe {
                breaker.users_wait(self.partition, self.lanes.each_user());
            }
            let anybody_at = breaker.any_user_probes_at().filter(|at| probe && *at > now);
            while flights.len() < self.limits.runs_max && events.len() < events_max {
                let run_max = self.limits.run_events_max.min(events_max - events.len());
                let started = if probe {
                    let wanted = |user| breaker.prefers_as_probe(user);
                    self.lanes.next_preferred(limits::PROBE_LOOK_MAX, wanted, anybody_at.is_none(), &mut events)
                } else {
                    self.lanes.next(run_max, self.limits.run_bytes_max, &mut events)
                };
                let Some(started) = started else { break };
                runs.push(Run { events: started.events.clone(), attempt: started.attempt, gap: started.gap });
                let attempt = breaker.begin(started.user, now);
                flights.push(Flight { attempt, started });
                if attempt.probe {
                    self.probing = Some(attempt);
                } else if probe {
                    // It found that nobody can tell, and closed the breaker.
                    self.shared.breaker_moved.notify_waiters();
                }
                if probe {
                    break;
                }
            }
            if flights.is_empty() {
                return Err(anybody_at);
            }
        }
        self.hand_overs += 1;
        self.shared.spend(events.len());
        let deadline = Instant::now() + self.shared.config.attempt_timeout;
        let abandoned_at = deadline + limits::ATTEMPT_ABANDON_AFTER;
        let lease = Arc::clone(&self.shared.lease);
        let deadline = Deadline::within_lease(deadline, Arc::clone(&lease));
        let destination = Arc::clone(&self.shared.parts.destination);
        let topic = Arc::clone(&self.shared.topic);
        let hand_over = DeliveryBatch { topic, partition: self.partition, runs, events, deadline };
        self.outside.spawn(async move {
            let count = hand_over.runs.len();
            let answer = tokio::select! {
                biased;
                reports = destination.deliver(hand_over) => Ok(reports),
                failed = abandoned(&*lease, abandoned_at) => Err(failed),
            };
            drop(slot);
            let reports = answer.unwrap_or_else(|failed| vec![Report { delivered: 0, failed: Some(failed) }; count]);
            Happening::Attempted { flights, reports }
        });
        Ok(())
    }

    pub(super) fn attempted(&mut self, flights: Vec<Flight>, reports: Vec<Report>) -> anyhow::Result<()> {
        self.hand_overs -= 1;
        ensure!(flights.len() == reports.len(), "{} runs got {} reports", flights.len(), reports.len());
        let now = self.shared.now();
        let shared = Arc::clone(&self.shared);
        let mut breaker = shared.breaker();
        let (before, was_out) = (breaker.gate(now), breaker.is_out());
        // What was delivered is told first: runs that failed beside it did not fail in an outage.
        let delivered = flights.iter().zip(&reports).filter(|(_, report)| report.delivered > 0);
        let delivered: Vec<Attempt> = delivered.map(|(flight, _)| flight.attempt).collect();
        breaker.delivered_many(&delivered, now);
        let mut letters = Vec::new();
        for (flight, report) in flights.into_iter().zip(reports) {
            let Flight { started, attempt } = flight;
            ensure!(
                report.failed.is_some() == (report.delivered < started.events.len()),
                "a run of {} events reported {} delivered and {:?}",
                started.events.len(),
                report.delivered,
                report.failed
            );
            self.dirty |= report.delivered > 0;
            shared.tally.attempted(&report);
            let (window, progress) = (&mut self.window, &mut self.progress);
            let mut reason = None;
            self.lanes.settle(
                started.token,
                report.delivered,
                |event| {
                    window.remove(event.record.window_bytes());
                    progress.settle(event.offset..event.offset + 1);
                },
                |_, history| {
                    let failed = report.failed.as_ref();
                    let verdict = failed.map_or(Verdict::Drilled, |failed| failed.verdict);
                    let (next, why) =
                        policy::judge(&shared.config, &mut breaker, &attempt, verdict, history, now, shared.random());
                    let answer = failed.map_or("", |failed| failed.answer.as_str());
                    history.answer = text::shown(answer.as_bytes(), limits::STUCK_ANSWER_BYTES_MAX).into();
                    if breaker.is_out() && verdict != Verdict::Drilled {
                        shared.notices.failed_in_outage(verdict, answer);
                    }
                    reason = why;
                    next
                },
            );
            if self.probing.as_ref().is_some_and(|probe| *probe == attempt) {
                self.probing = None;
            }
            if let (Some(reason), Some(failed)) = (reason, report.failed) {
                letters.push((started.token, Letter { reason, answer: failed.answer, failed_at: now, failures: 0 }));
            }
        }
        let after = breaker.gate(now);
        if before != after {
            shared.breaker_moved.notify_waiters();
        }
        let moved = (was_out != breaker.is_out()).then(|| breaker.snapshot(now));
        drop(breaker);
        if let Some(snapshot) = moved {
            shared.notices.waits(self.partition, Some(self.backlog()));
            shared.notices.look(&snapshot, now);
        }
        for (token, letter) in letters {
            self.giving_up.insert(token, letter);
            self.write_letter(token)?;
        }
        Ok(())
    }
}

/// Ready once nobody may wait for an answer any more. The lease is asked again and again, since heartbeats move it on and
/// a suspended machine brings it nearer.
async fn abandoned(lease: &LeaseDeadline, at: Instant) -> Failed {
    loop {
        let (now, lease) = (Instant::now(), lease());
        if lease.is_some_and(|lease| lease <= now) {
            // The next owner may begin, and that is nobody's failure.
            return Failed::new(Verdict::Busy { after: None }, "cut off at the end of the owner's session");
        }
        if at <= now {
            return Failed::new(Verdict::Retry { after: None }, "no answer within --attempt-timeout");
        }
        sleep_until(lease.map_or(at, |lease| at.min(lease).min(now + limits::FENCE_LOOK_INTERVAL))).await;
    }
}
