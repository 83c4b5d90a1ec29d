//! The slowest rate at which a body may arrive.
//!
//! A [`RateDeadline`] is a leaky bucket that is stored as one point in time: every byte that arrives moves the deadline
//! on, and a body whose deadline has passed is too slow.

use std::time::Duration;
use tokio::time::Instant;

/// The slowest rate at which ingest reads a body at all: a slower client only holds a connection. The slack is longer
/// than the usual pauses of a network that loses packets.
pub(super) const BODY_MIN_RATE: MinRate = MinRate { bytes_per_second: 1024, slack: Duration::from_secs(10) };

/// A rate, averaged over `slack`: a client may pause for that long. Sending fast first does not allow a longer pause.
#[derive(Debug, Clone, Copy)]
pub(super) struct MinRate {
    pub(super) bytes_per_second: u32,
    pub(super) slack: Duration,
}

impl MinRate {
    /// The deadline of a body that begins `now`.
    pub(super) fn deadline(self, now: Instant) -> RateDeadline {
        RateDeadline { rate: self, due: now + self.slack }
    }
}

/// When one body becomes too slow for its [`MinRate`].
#[derive(Debug)]
pub(super) struct RateDeadline {
    rate: MinRate,
    due: Instant,
}

impl RateDeadline {
    /// Moves the deadline on for `bytes` that have arrived.
    pub(super) fn arrived(&mut self, bytes: usize, now: Instant) {
        let earned = Duration::from_secs_f64(bytes as f64 / f64::from(self.rate.bytes_per_second));
        self.due = (self.due + earned).min(now + self.rate.slack);
    }

    /// Moves the deadline on for a time in which nothing could be read.
    pub(super) fn postpone(&mut self, waited: Duration) {
        self.due += waited;
    }

    /// From this moment on the body is too slow, unless more of it arrives before.
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: MinRate = MinRate { bytes_per_second: 1_000, slack: Duration::from_secs(5) };

    #[test]
    fn a_body_at_the_rate_stays_in_time_and_a_slower_one_does_not() {
        for (bytes, is_in_time) in [(1_000, true), (1_001, true), (900, false), (0, false)] {
            let begun = Instant::now();
            let mut deadline = RATE.deadline(begun);
            let in_time = (1..100).all(|second| {
                let now = begun + Duration::from_secs(second);
                let in_time = now <= deadline.due();
                deadline.arrived(bytes, now);
                in_time
            });
            assert_eq!(in_time, is_in_time, "{bytes} bytes per second");
        }
    }

    #[test]
    fn only_the_time_without_room_is_added() {
        let begun = Instant::now();
        let mut deadline = RATE.deadline(begun);
        deadline.postpone(Duration::ZERO);
        assert_eq!(deadline.due(), begun + RATE.slack);
        deadline.postpone(Duration::from_secs(2));
        assert_eq!(deadline.due(), begun + RATE.slack + Duration::from_secs(2));
    }

    #[test]
    fn sending_fast_first_does_not_allow_a_longer_pause() {
        let begun = Instant::now();
        let mut deadline = RATE.deadline(begun);
        deadline.arrived(usize::MAX >> 16, begun);
        assert_eq!(deadline.due(), begun + RATE.slack);
    }
}
