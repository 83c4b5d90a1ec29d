//! Offset resets: an operator asks for another offset, and the worker of the partition applies that.
//!
//! ```text
//!  look ── a reset that the stored state does not have ──▶ drain ──▶ commit the state after it ──▶ begin at the new offset
//! ```
//!
//! The commit holds the id of the reset, so the next owner of the partition knows that it is done. Each reset is applied
//! once, even if a process dies in the middle.

use super::partition_log::PartitionLog;
use crate::core::Moment;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::{OffsetReset, PartitionState};
use crate::group::Group;
use crate::limits::RESET_LOOK_INTERVAL;
use std::time::Duration;
use tokio::time::timeout;

/// How long a look for an offset reset may take while the worker delivers. No one waits for it, so it may take longer
/// than a slow broker does.
pub(super) const RESET_LOOK_MAX: Duration = Duration::from_secs(30);

/// Looks for offset resets of one partition.
pub(super) struct Repositioner {
    /// The reset to be applied next.
    wanted: Option<OffsetReset>,
    /// When to look next. `None`: a look is in flight.
    look_at: Option<Moment>,
}

impl Repositioner {
    pub(super) fn new(now: Moment) -> Self {
        Self { wanted: None, look_at: Some(now) }
    }

    /// Whether to look for a reset now.
    pub(super) fn start_look(&mut self, now: Moment) -> bool {
        let is_due = self.look_at.is_some_and(|at| now >= at);
        if is_due {
            self.look_at = None;
        }
        is_due
    }

    pub(super) fn next_look_at(&self) -> Option<Moment> {
        self.look_at
    }

    /// Takes what a look has found. A reset that the stored state has already is ignored.
    pub(super) fn looked(
        &mut self,
        found: Result<Option<OffsetReset>, Failure>,
        stored: &PartitionState,
        log: &PartitionLog,
        now: Moment,
    ) {
        self.look_at = Some(now + RESET_LOOK_INTERVAL);
        match found {
            Ok(found) => self.wanted = found.filter(|reset| stored.lacks(reset)),
            Err(failure) => {
                if let Some(suppressed) = log.allows("look") {
                    tracing::warn!(
                        destination = log.destination,
                        partition = log.partition,
                        suppressed,
                        "cannot see whether a rewind or fast-forward was asked for: {failure}"
                    );
                }
            }
        }
    }

    /// The reset to be applied now.
    pub(super) fn take_wanted(&mut self) -> Option<OffsetReset> {
        self.wanted.take()
    }
}

/// The last offset reset that was asked for in the partition, if the group answers in time.
pub(super) async fn requested(
    group: &dyn Group,
    partition: u32,
    within: Duration,
) -> Result<Option<OffsetReset>, Failure> {
    let answer = timeout(within, group.requested_reset(partition)).await;
    answer.unwrap_or_else(|_| {
        Err(Failure::refused(FailureCode::GroupUnavailable, format!("no answer within {} s", within.as_secs())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::progress::ResetTarget;

    fn reset(id: u64) -> OffsetReset {
        OffsetReset { id, to: ResetTarget::Back(0) }
    }

    #[test]
    fn a_reset_is_applied_only_if_the_stored_state_does_not_have_it() {
        let (mut repositioner, log) = (Repositioner::new(Moment::ZERO), PartitionLog::new("dest", "events".into(), 0));
        let stored = PartitionState::at(10).with_reset(&reset(5));
        for applied in [5, 4] {
            repositioner.looked(Ok(Some(reset(applied))), &stored, &log, Moment::ZERO);
            assert_eq!(repositioner.take_wanted(), None, "reset {applied}");
        }
        repositioner.looked(Ok(Some(reset(6))), &stored, &log, Moment::ZERO);
        assert_eq!(repositioner.take_wanted(), Some(reset(6)));
        assert_eq!(repositioner.take_wanted(), None);
    }

    #[test]
    fn one_look_is_in_flight_at_a_time_and_the_next_one_is_an_interval_later() {
        let (mut repositioner, log) = (Repositioner::new(Moment::ZERO), PartitionLog::new("dest", "events".into(), 0));
        assert!(repositioner.start_look(Moment::ZERO) && !repositioner.start_look(Duration::from_secs(100)));
        let failure = Failure::refused(FailureCode::GroupUnavailable, "no answer");
        repositioner.looked(Err(failure), &PartitionState::at(0), &log, Duration::from_secs(100));
        assert_eq!(repositioner.next_look_at(), Some(Duration::from_secs(100) + RESET_LOOK_INTERVAL));
    }
}
