//! What is known while the breaker is open: why, which probes are in flight, and who may be probed next.
//!
//! ```text
//!  the destination answers:   Served, Newcomer ──▶ at once, up to 5 young quick probes   each ends ──▶ the next one
//!                             Interrupted      ──▶ turns of their own ──┬── one at a time
//!                             Failed           ──▶ the other turns    ──┘   delay: 100 ms, doubled up to 5 s
//!  it cannot be reached:      anyone           ──▶ the other turns
//! ```
//!
//! A user has no more than one quick probe: if it fails, the user's rank is [`ProbeRank::Interrupted`] or
//! [`ProbeRank::Failed`]. Quick probes are paced, because an outage may meet very many users: 100 at first, then 20 a
//! second. So an outage of `s` seconds has at most `100 + 20 * s` quick probes.
//!
//! All other probes take turns. Users that were served before the outage have turns of their own, so they do not wait
//! for users that fail by themselves, however many these are. Turns are *one at a time* for a second: a probe that
//! hangs for longer does not block the next one. So a user that hangs does not keep the others from showing that the
//! destination is well.

use super::{Gate, OpenCause, ProbeRank, ProbeRanks};
use crate::core::Moment;
use crate::limits::{PROBES_AT_ONCE_MAX, PROBES_IN_FLIGHT_MAX};
use std::collections::BTreeMap;
use std::time::Duration;

/// The delay before the first turn after the breaker opened. It doubles with each probe that takes a turn.
const PROBE_DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest delay between two turns. So the end of an outage is found about as late as this.
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
    /// The probes in flight, from the oldest on: at most [`PROBES_IN_FLIGHT_MAX`] of each rank.
    probes: Vec<Probe>,
    /// For each [`TurnsOf`], in their order.
    turns: [ProbeTurns; 2],
    /// When [`QUICK_PROBES_AT_ONCE`] quick probes may begin again. Each one moves it by [`QUICK_PROBE_EVERY`].
    quick_full_at: Moment,
    /// For each partition, the last reported number of trusted users that have unsettled events.
    waiting_users: BTreeMap<u32, usize>,
}

/// Who takes these turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TurnsOf {
    /// Users of the rank [`ProbeRank::Interrupted`], while the destination answers.
    Interrupted,
    /// All others.
    Others,
}

#[derive(Debug, Clone, Copy)]
struct ProbeTurns {
    /// When the next turn is.
    due: Moment,
    /// The delay that led to `due`.
    delay: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    seq: u64,
    begun: Moment,
    rank: ProbeRank,
    /// The turns of which it took one. Its failure makes their delay longer. `None`: it is a quick probe.
    turn: Option<TurnsOf>,
}

impl Probe {
    fn young_until(&self) -> Moment {
        self.begun.saturating_add(PROBE_YOUNG_FOR)
    }
}

impl ProbeTurns {
    fn new(now: Moment) -> Self {
        Self { due: now.saturating_add(PROBE_DELAY_MIN), delay: PROBE_DELAY_MIN }
    }

    fn double_delay(&mut self, now: Moment) {
        self.delay = (self.delay * 2).min(PROBE_DELAY_MAX);
        self.due = now.saturating_add(self.delay);
    }
}

impl OpenBreaker {
    pub(super) fn new(cause: OpenCause, now: Moment) -> Self {
        Self {
            cause,
            is_reached: cause != OpenCause::Unreachable,
            probes: Vec::new(),
            turns: [ProbeTurns::new(now); 2],
            quick_full_at: now,
            waiting_users: BTreeMap::new(),
        }
    }

    /// Who may be probed now.
    pub(super) fn gate(&self, now: Moment) -> Gate {
        let ranks = ProbeRanks::new(|rank| self.may_be_probed(rank, now));
        let turns = if self.is_reached { &self.turns[..] } else { &self.turns[TurnsOf::Others as usize..] };
        let quick_from = self.is_reached.then(|| self.quick_from());
        let ages = self.probes.iter().map(Probe::young_until);
        let until = turns.iter().map(|turns| turns.due).chain(quick_from).chain(ages).filter(|at| *at > now).min();
        if ranks.is_empty() { Gate::Open { until } } else { Gate::HalfOpen { ranks, until } }
    }

    fn may_be_probed(&self, rank: ProbeRank, now: Moment) -> bool {
        self.has_room_for(rank) && (self.may_be_quick(rank, now) || self.may_take_turn(rank, now))
    }

    fn has_room_for(&self, rank: ProbeRank) -> bool {
        let counts = |probe: &&Probe| !self.is_reached || probe.rank == rank;
        self.probes.iter().filter(counts).count() < PROBES_IN_FLIGHT_MAX
    }

    fn may_be_quick(&self, rank: ProbeRank, now: Moment) -> bool {
        let at_once_max = match rank {
            ProbeRank::Served => PROBES_AT_ONCE_MAX,
            ProbeRank::Newcomer => NEWCOMERS_AT_ONCE_MAX,
            ProbeRank::Interrupted | ProbeRank::Failed => return false,
        };
        let young = self.probes.iter().filter(|probe| probe.turn.is_none() && probe.young_until() > now);
        self.is_reached && self.quick_from() <= now && young.count() < at_once_max
    }

    /// Whether the next turn of this rank is due, and not blocked by a young probe.
    fn may_take_turn(&self, rank: ProbeRank, now: Moment) -> bool {
        let turns = self.turns_of(rank);
        let blocks = |probe: &Probe| !self.is_reached || probe.turn == Some(turns);
        let is_blocked = self.probes.iter().any(|probe| blocks(probe) && probe.young_until() > now);
        self.turns[turns as usize].due <= now && !is_blocked
    }

    fn turns_of(&self, rank: ProbeRank) -> TurnsOf {
        match rank {
            ProbeRank::Interrupted if self.is_reached => TurnsOf::Interrupted,
            ProbeRank::Interrupted | ProbeRank::Served | ProbeRank::Newcomer | ProbeRank::Failed => TurnsOf::Others,
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
        if !self.may_be_probed(rank, now) {
            return false;
        }
        // Without a quick probe left, a user takes the turn of one that has failed.
        let turn = (!self.may_be_quick(rank, now)).then(|| self.turns_of(rank));
        if turn.is_none() {
            self.quick_full_at = self.quick_full_at.max(now).saturating_add(QUICK_PROBE_EVERY);
        }
        self.probes.push(Probe { seq, begun: now, rank, turn });
        true
    }

    /// The probe ended without a delivery. `is_answered`: it reached the destination.
    pub(super) fn probe_failed(&mut self, seq: u64, is_answered: bool, now: Moment) {
        let Some(probe) = self.take(seq) else { return };
        let was_reached = std::mem::replace(&mut self.is_reached, is_answered);
        if was_reached != is_answered {
            // The delays start again from their minimum: what they were for has changed.
            self.turns = [ProbeTurns::new(now); 2];
        } else if let Some(turns) = self.turns_taken_by(&probe) {
            turns.double_delay(now);
        }
    }

    /// The probe ended without an answer, which says nothing. Another one may begin at once.
    pub(super) fn probe_abandoned(&mut self, seq: u64) {
        if let Some(probe) = self.take(seq)
            && let Some(turns) = self.turns_taken_by(&probe)
        {
            turns.due = Moment::ZERO;
        }
    }

    /// The turns that depend on the end of this probe.
    fn turns_taken_by(&mut self, probe: &Probe) -> Option<&mut ProbeTurns> {
        let turns = probe.turn.map(|turns| if self.is_reached { turns } else { TurnsOf::Others });
        turns.map(|turns| &mut self.turns[turns as usize])
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
        let is_blocked = self.probes.iter().any(|probe| probe.young_until() > now);
        let waits = !self.may_take_turn(ProbeRank::Failed, now) && !is_blocked && self.has_room_for(ProbeRank::Failed);
        if waits {
            self.turns.iter_mut().for_each(|turns| turns.due = now);
        }
        waits
    }
}
