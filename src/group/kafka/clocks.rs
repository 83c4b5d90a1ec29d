//! Two clocks that are read together. A session at the broker runs out while this machine sleeps, but timers stand still.

use std::time::Duration;
use tokio::time::Instant;

/// One moment, read on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    /// The clock of timers. It stops while the machine sleeps.
    pub(super) timers: Instant,
    /// The time since the machine was booted, including the time that it slept.
    since_boot: Duration,
}

impl Clocks {
    pub(super) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
        Self { timers: Instant::now(), since_boot }
    }

    /// The moment at which `time` will have passed since `self`, on the clock of timers and as it looks `now`. If the
    /// machine slept in between, that moment is earlier by the time that it slept.
    pub(super) fn after(self, time: Duration, now: Self) -> Instant {
        // Either clock may show more: the boot clock after a sleep, and the clock of timers in tests, where only it moves.
        let passed =
            now.since_boot.saturating_sub(self.since_boot).max(now.timers.saturating_duration_since(self.timers));
        now.timers + time.saturating_sub(passed)
    }
}

#[cfg(test)]
impl Clocks {
    /// The current moment of a test that controls the clock of timers.
    pub(super) fn of_timers() -> Self {
        Self { timers: Instant::now(), since_boot: Duration::ZERO }
    }

    /// A later moment, seen by both clocks.
    pub(super) fn later(self, time: Duration) -> Self {
        Self { timers: self.timers + time, since_boot: self.since_boot + time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_only_the_boot_clock_has_seen_counts_too() {
        let now = Clocks::now();
        let session = Duration::from_secs(10);
        let slept = Clocks { since_boot: now.since_boot.saturating_sub(Duration::from_secs(4)), ..now };
        let left = slept.after(session, now) - Instant::now();
        assert!(left <= Duration::from_secs(6) && left > Duration::from_secs(5), "{left:?} of the session are left");
        let long_ago = Clocks { since_boot: Duration::ZERO, ..now };
        assert!(
            long_ago.after(Duration::from_millis(1), now) <= Instant::now(),
            "a session that ended before the boot is over, and the subtraction does not overflow"
        );
    }
}
