//! What callers exchange with the [`Breaker`].

use super::health::Health;
use crate::core::Moment;

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
    /// Whether this is the one attempt that an open breaker allowed.
    pub probe: bool,
}

/// Whether attempts may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Every attempt may begin.
    Closed,
    /// One attempt may begin now, as a probe.
    HalfOpen,
    /// No attempt may begin. `until` is when a probe is due. `None` means that a probe is in flight.
    Open { until: Option<Moment> },
}

/// Whether a failed attempt counts as a try of its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryJudgement {
    pub counts: bool,
    /// The epoch that the try belongs to if it counts; see [`Breaker::is_void`].
    pub health_epoch: u64,
}

/// The first refusal of an event that has been refused by every attempt since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The attempt that was refused.
    pub attempt: Attempt,
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
    /// Whether a probe is in flight.
    pub probing: bool,
    /// The health of the destination by the latest verdicts. While the breaker is open, these are mostly of probes.
    pub health: Health,
}
