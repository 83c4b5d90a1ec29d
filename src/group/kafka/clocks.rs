//! Two clocks that are read together: a membership runs out while the machine sleeps, and timers do not.

use std::time::Duration;
use tokio::time::Instant;

/// One moment, on the clock that timers use and on the one that goes on while the machine sleeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    pub(super) timers: Instant,
    awake: Duration,
}

impl Clocks {
    pub(super) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let awake = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
        Self { timers: Instant::now(), awake }
    }

    /// When this much time will have passed since, as it looks `now`.
    pub(super) fn after(self, time: Duration, now: Self) -> Instant {
        let passed = now.awake.saturating_sub(self.awake).max(now.timers.saturating_duration_since(self.timers));
        now.timers + time.saturating_sub(passed)
    }
}

#[cfg(test)]
impl Clocks {
    /// As timers have it, where time is a test's own.
    pub(super) fn of_timers() -> Self {
        Self { timers: Instant::now(), awake: Duration::ZERO }
    }

    /// A later moment, seen by both clocks.
    pub(super) fn later(self, time: Duration) -> Self {
        Self { timers: self.timers + time, awake: self.awake + time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_only_one_clock_has_seen_counts_too() {
        let now = Clocks::now();
        let session = Duration::from_secs(10);
        let slept = Clocks { awake: now.awake.saturating_sub(Duration::from_secs(4)), ..now };
        let left = slept.after(session, now) - Instant::now();
        assert!(left <= Duration::from_secs(6) && left > Duration::from_secs(5), "{left:?}");
        let long_ago = Clocks { awake: Duration::ZERO, ..now };
        assert!(
            long_ago.after(Duration::from_millis(1), now) <= Instant::now(),
            "over, and not a moment that is no more"
        );
    }
}
