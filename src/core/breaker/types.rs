//! What callers exchange with the [`Breaker`].

use super::health::Health;
use crate::core::Moment;
use std::time::Duration;

#[cfg(doc)]
use super::Breaker;

/// An attempt that was begun.
///
/// Each ends in exactly one call of [`Breaker::delivered`], [`Breaker::failed`] or [`Breaker::abandoned`]. If only the
/// first events of its run were delivered, `delivered` is called first, then `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The number of the attempt, from 1 on, in the order in which attempts begin.
    pub seq: u64,
    /// The caller's stable hash of topic, partition and key.
    pub user: u64,
    pub began: Moment,
    /// Whether it was begun as a probe of an open breaker.
    pub probe: bool,
}

/// Whether attempts may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Every attempt may begin.
    Closed,
    /// A user of one of these ranks may be probed now.
    HalfOpen {
        ranks: ProbeRanks,
        /// When others may be, if it depends on time alone.
        until: Option<Moment>,
    },
    /// No attempt may begin. `until` is when a probe may begin. `None` means that a probe in flight has to end first.
    Open { until: Option<Moment> },
}

/// The order in which users are probed while the breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeRank {
    /// The user was served lately, and has not failed since.
    Served,
    /// The user was served and has failed since. No delivery has shown that its failures are its own, so they may be
    /// the destination's.
    Interrupted,
    /// Nothing is known of the user.
    Newcomer,
    /// The user has failed. It was never served, or its failures are its own.
    Failed,
}

impl ProbeRank {
    /// All of them, in the order in which they are probed.
    pub const ALL: [Self; 4] = [Self::Served, Self::Interrupted, Self::Newcomer, Self::Failed];
}

/// A set of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeRanks([bool; ProbeRank::ALL.len()]);

impl ProbeRanks {
    /// The ranks for which `contains` returns true.
    pub fn new(contains: impl FnMut(ProbeRank) -> bool) -> Self {
        Self(ProbeRank::ALL.map(contains))
    }

    pub fn is_empty(self) -> bool {
        self.0 == [false; ProbeRank::ALL.len()]
    }

    pub fn contains(self, rank: ProbeRank) -> bool {
        self.0[rank as usize]
    }
}

/// Whether a failed attempt counts as a try of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryJudgement {
    pub counts: bool,
    /// The epoch that the try belongs to if it counts; see [`Breaker::is_void`].
    pub health_epoch: u64,
    /// The destination is down or in bad health, so the failure does not lengthen the backoff of its event. The breaker
    /// decides then how many attempts begin. If users waited longer with each failure, a destination that takes a limited
    /// rate would get less than that, because most users would be waiting.
    pub is_excused: bool,
    /// The longest delay before the next attempt. An open breaker sets it: the end of an outage is found by the attempts
    /// of users that failed in it, and the breaker decides how many of them begin.
    pub delay_max: Option<Duration>,
}

/// The first refusal of an event that has been refused by every attempt since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub user: u64,
    /// A delivered attempt of another user shows that the refusal is the event's own if its number is higher.
    pub since: u64,
    /// When it was refused.
    pub at: Moment,
    /// The epoch of that time. If it becomes void, the refusal was the destination's fault.
    pub health_epoch: u64,
}

/// Why the breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenCause {
    /// An attempt did not reach the destination.
    Unreachable,
    /// The destination was unreachable and answers again, but nothing was delivered yet, and fewer than 5 trusted users
    /// were answered. So it is not known yet whether the events or the destination are at fault.
    Undecided,
    /// None of the last 5 trusted users was delivered.
    NoUserDelivered,
}

/// An outage that a delivery has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// The number of the outage, from 1 on.
    pub number: u64,
    /// When its first attempt failed.
    pub failing_since: Moment,
    /// When the delivery ended it.
    pub ended_at: Moment,
}

/// The state of the breaker at one moment, for log lines and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSnapshot {
    /// When the breaker last changed between closed and open.
    pub since: Moment,
    /// Why it is open. `None` means that it is closed.
    pub open: Option<OpenCause>,
    /// When the first attempt of the outage failed, if there is an outage without a delivery yet. It stays set when the
    /// breaker closes because there are too few users to decide. `None` means that there is no outage.
    pub out_since: Option<Moment>,
    /// When that outage began: the earliest of the failures that opened the breaker. Unlike `out_since`, it does not count
    /// the time in which a single user failed before.
    pub outage_began: Option<Moment>,
    /// Whether probes are in flight.
    pub probing: bool,
    /// The health of the destination by the latest verdicts. While the breaker is open, these are mostly of probes.
    pub health: Health,
}
