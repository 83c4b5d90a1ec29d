//! How fast a body has to come: a leaky bucket, told by one moment.

use std::time::Duration;
use tokio::time::Instant;

/// A rate, averaged over the last moments: a client may pause for `slack`, and no more than that can be saved up by
/// sending fast before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) bytes_per_second: u32,
    pub(super) slack: Duration,
}

/// The slowest body that is read at all: less holds a connection for nothing. The slack is longer than the usual pauses
/// of a network that loses packets.
pub(super) const BODY_PACE_MIN: Pace = Pace { bytes_per_second: 1024, slack: Duration::from_secs(10) };

impl Pace {
    pub(super) fn begin(self, now: Instant) -> Schedule {
        Schedule { pace: self, due: now + self.slack }
    }
}

/// One body and a [`Pace`].
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    due: Instant,
}

impl Schedule {
    /// Notes that this many bytes have come.
    pub(super) fn came(&mut self, bytes: usize, now: Instant) {
        let worth = Duration::from_secs_f64(bytes as f64 / f64::from(self.pace.bytes_per_second));
        self.due = (self.due + worth).min(now + self.pace.slack);
    }

    /// From this moment on the body is too slow, if nothing more comes.
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { bytes_per_second: 1_000, slack: Duration::from_secs(5) };

    #[test]
    fn a_body_at_the_pace_is_never_due_and_a_slower_one_is() {
        for (bytes, is_in_time) in [(1_000, true), (1_001, true), (900, false), (0, false)] {
            let begun = Instant::now();
            let mut schedule = PACE.begin(begun);
            let in_time = (1..100).all(|second| {
                let now = begun + Duration::from_secs(second);
                let in_time = now <= schedule.due();
                schedule.came(bytes, now);
                in_time
            });
            assert_eq!(in_time, is_in_time, "{bytes} bytes a second");
        }
    }

    #[test]
    fn what_came_fast_before_is_not_saved_up() {
        let begun = Instant::now();
        let mut schedule = PACE.begin(begun);
        schedule.came(usize::MAX >> 16, begun);
        assert_eq!(schedule.due(), begun + PACE.slack);
    }
}
