//! What is known while the breaker is open: why, which probes are in flight, and who may be probed next.
//!
//! ```text
//!  the destination answers:         Served, Newcomer ──▶ at once, up to 5 young probes      each ends ──▶ the next one
//!                                   Failed           ──▶ one at a time ── delay: 100 ms, doubled up to 5 s
//!  it cannot be reached:            anyone           ──▶ one at a time ── the same delay
//! ```
//!
//! *One at a time* holds for a second: a probe that hangs for longer does not block the next one. So a user that hangs does
//! not keep the others from showing that the destination is well.
//!
//! A user has no more than one quick probe: if it fails, the user's rank is [`ProbeRank::Failed`]. Quick probes are paced,
//! because an outage may meet very many users: 100 at first, then 20 a second. So an outage of `s` seconds has at most
//! `100 + 20 * s` quick probes.

use super::{Gate, OpenCause, ProbeRank};
use crate::core::Moment;
use crate::limits::{PROBES_AT_ONCE_MAX, PROBES_IN_FLIGHT_MAX};
use std::collections::BTreeMap;
use std::time::Duration;

/// The delay before the first probe of a failed user after the breaker opened. It doubles with each such probe.
const PROBE_DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest delay between two such probes. So the end of an outage is found about as late as this.
pub(super) const PROBE_DELAY_MAX: Duration = Duration::from_secs(5);
/// This many of the quick probes, at most, are of newcomers, so that a served user does not wait for them.
const NEWCOMERS_AT_ONCE_MAX: usize = PROBES_AT_ONCE_MAX - 1;
/// Quick probes that may begin without a pause.
const QUICK_PROBES_AT_ONCE: u32 = 100;
/// After those, one quick probe may begin in this time.
const QUICK_PROBE_EVERY: Duration = Duration::from_millis(50);
/// A probe without an answer is young for this long. Users that hang then no longer keep others from being probed.
const PROBE_YOUNG_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct OpenBreaker {
    pub(super) cause: OpenCause,
    /// Whether the last probe was answered.
    is_reached: bool,
    /// The probes in flight, from the oldest on: at most [`PROBES_IN_FLIGHT_MAX`].
    probes: Vec<Probe>,
    /// When the next probe may begin that has to wait for the delay.
    due: Moment,
    /// The delay that led to `due`.
    delay: Duration,
    /// When [`QUICK_PROBES_AT_ONCE`] quick probes may begin again. Each one moves it by [`QUICK_PROBE_EVERY`].
    quick_full_at: Moment,
    /// For each partition, the last reported number of trusted users that have unsettled events.
    waiting_users: BTreeMap<u32, usize>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    seq: u64,
    begun: Moment,
    /// Whether it had to wait for the delay. Its failure makes the delay longer.
    is_delayed: bool,
}

impl OpenBreaker {
    pub(super) fn new(cause: OpenCause, now: Moment) -> Self {
        Self {
            cause,
            is_reached: cause != OpenCause::Unreachable,
            probes: Vec::new(),
            due: now.saturating_add(PROBE_DELAY_MIN),
            delay: PROBE_DELAY_MIN,
            quick_full_at: now,
            waiting_users: BTreeMap::new(),
        }
    }

    /// Who may be probed now.
    pub(super) fn gate(&self, now: Moment) -> Gate {
        let young_until = |probe: &Probe| probe.begun.saturating_add(PROBE_YOUNG_FOR);
        let young: Vec<&Probe> = self.probes.iter().filter(|probe| young_until(probe) > now).collect();
        let delayed_in_flight = young.iter().any(|probe| probe.is_delayed || !self.is_reached);
        let due = (!delayed_in_flight).then_some(self.due);
        let quick_from = self.quick_from();
        // The oldest one is first, so it is the first that is not young any more.
        let ages = young.first().map(|probe| young_until(probe));
        let quick = (self.is_reached && young.len() < PROBES_AT_ONCE_MAX).then_some(quick_from);
        let until = due.into_iter().chain(quick).filter(|at| *at > now).chain(ages).min();
        let worst = if self.probes.len() >= PROBES_IN_FLIGHT_MAX || young.len() >= PROBES_AT_ONCE_MAX {
            None
        } else if due.is_some_and(|due| due <= now) {
            Some(ProbeRank::Failed)
        } else if !self.is_reached || quick_from > now {
            None
        } else if young.len() < NEWCOMERS_AT_ONCE_MAX {
            Some(ProbeRank::Newcomer)
        } else {
            Some(ProbeRank::Served)
        };
        match worst {
            Some(worst) => Gate::HalfOpen { worst, until },
            None => Gate::Open { until },
        }
    }

    /// When the next quick probe may begin. Its own time has to pass, too, so it is one less than all of them.
    fn quick_from(&self) -> Moment {
        self.quick_full_at.saturating_sub(QUICK_PROBE_EVERY * (QUICK_PROBES_AT_ONCE - 1))
    }

    pub(super) fn is_probing(&self) -> bool {
        !self.probes.is_empty()
    }

    pub(super) fn is_probe(&self, seq: u64) -> bool {
        self.probes.iter().any(|probe| probe.seq == seq)
    }

    /// Begins a probe of a user of this rank, if the [gate](Self::gate) lets it. Returns whether it does.
    pub(super) fn begin_probe(&mut self, seq: u64, rank: ProbeRank, now: Moment) -> bool {
        let is_allowed = matches!(self.gate(now), Gate::HalfOpen { worst, .. } if rank <= worst);
        if is_allowed {
            // Without a quick probe left, any user takes the turn of one that has failed.
            let is_delayed = !self.is_reached || rank == ProbeRank::Failed || self.quick_from() > now;
            if !is_delayed {
                self.quick_full_at = self.quick_full_at.max(now).saturating_add(QUICK_PROBE_EVERY);
            }
            self.probes.push(Probe { seq, begun: now, is_delayed });
        }
        is_allowed
    }

    /// The probe ended without a delivery. `is_answered`: it reached the destination.
    pub(super) fn probe_failed(&mut self, seq: u64, is_answered: bool, now: Moment) {
        let Some(probe) = self.take(seq) else { return };
        let was_reached = std::mem::replace(&mut self.is_reached, is_answered);
        if was_reached != is_answered {
            // The delay starts again from its minimum: what it was for has changed.
            self.delay = PROBE_DELAY_MIN;
        } else if probe.is_delayed {
            self.delay = (self.delay * 2).min(PROBE_DELAY_MAX);
        } else {
            return;
        }
        self.due = now.saturating_add(self.delay);
    }

    /// The probe ended without an answer, which says nothing. Another one may begin at once.
    pub(super) fn probe_abandoned(&mut self, seq: u64) {
        if self.take(seq).is_some_and(|probe| probe.is_delayed) {
            self.due = Moment::ZERO;
        }
    }

    fn take(&mut self, seq: u64) -> Option<Probe> {
        let place = self.probes.iter().position(|probe| probe.seq == seq)?;
        Some(self.probes.remove(place))
    }

    /// Notes how many trusted users have unsettled events in this partition.
    pub(super) fn set_waiting_users(&mut self, partition: u32, users: usize) {
        self.waiting_users.insert(partition, users);
    }

    /// Forgets the users of a partition that has another owner now.
    pub(super) fn released(&mut self, partition: u32) {
        self.waiting_users.remove(&partition);
    }

    /// Trusted users with unsettled events in all partitions, including those whose next attempt is not due.
    pub(super) fn waiting_users(&self) -> usize {
        self.waiting_users.values().sum()
    }

    /// Makes the next probe due now. `false`: it is due already, one was begun less than a second ago, or there are too many.
    pub(super) fn probe_now(&mut self, now: Moment) -> bool {
        let is_due = matches!(self.gate(now), Gate::HalfOpen { worst: ProbeRank::Failed, .. });
        let is_young = |probe: &Probe| now < probe.begun.saturating_add(PROBE_YOUNG_FOR);
        let has_room = self.probes.len() < PROBES_IN_FLIGHT_MAX;
        let waits = !is_due && has_room && !self.probes.iter().any(is_young);
        if waits {
            self.due = now;
        }
        waits
    }
}
