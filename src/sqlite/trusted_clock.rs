//! The wall clock, as far as retention may believe it.
//!
//! An age is the difference between a stored wall-clock time and the wall clock now. If that clock is wrong, everything
//! looks old at once: the records, and the commits whose age decides whether a destination still counts. So the clock is
//! not trusted for [`DOUBT_PERIOD`] after this process opened the database, and after each jump ahead. In that time every
//! destination that is at work commits again.

use crate::clock::now_ms;
use crate::limits::COMMIT_UNCHANGED_INTERVAL;
use std::time::{Duration, Instant};

/// How far the wall clock must get ahead of the monotonic one between two readings to count as a jump. The readings are a
/// second apart, and clocks that are corrected in small steps stay far below it.
const JUMP_MIN: Duration = Duration::from_secs(60);

/// How long the wall clock is in doubt. Each destination that is at work commits once in `COMMIT_UNCHANGED_INTERVAL`, even
/// if nothing changed, and the rest is the time to do so.
pub(super) const DOUBT_PERIOD: Duration = Duration::from_secs(COMMIT_UNCHANGED_INTERVAL.as_secs() + 60);

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockReading {
    pub(super) monotonic: Instant,
    /// Milliseconds since the Unix epoch.
    pub(super) wall_ms: i64,
}

impl ClockReading {
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall_ms: now_ms() }
    }
}

/// The time that retention works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrustedTime {
    /// Milliseconds since the Unix epoch.
    pub(super) ms: i64,
    /// The wall clock may be wrong, so nothing may be removed that any destination has not settled.
    pub(super) in_doubt: bool,
}

/// Decides whether the wall clock can be trusted.
#[derive(Debug)]
pub(super) struct TrustedClock {
    last: ClockReading,
    doubt: Option<ClockDoubt>,
}

/// A period in which the wall clock may be wrong.
#[derive(Debug, Clone, Copy)]
struct ClockDoubt {
    since: Instant,
    /// The time at its start, as far as anything says. `None`: nothing does.
    known_ms: Option<i64>,
}

impl ClockDoubt {
    /// The known time plus what has passed since. If the wall clock shows an earlier time, that one: the earlier the
    /// time, the less is removed.
    fn time_ms(&self, now: ClockReading) -> i64 {
        let passed_ms = now.monotonic.duration_since(self.since).as_millis() as i64;
        self.known_ms.map_or(now.wall_ms, |ms| ms.saturating_add(passed_ms).min(now.wall_ms))
    }
}

impl TrustedClock {
    /// Starts in doubt. `known_ms` is the latest time that is stored in the database.
    pub(super) fn new(known_ms: Option<i64>, now: ClockReading) -> Self {
        Self { last: now, doubt: Some(ClockDoubt { since: now.monotonic, known_ms }) }
    }

    /// The time that retention may work with now.
    pub(super) fn time(&mut self, now: ClockReading) -> TrustedTime {
        let then = std::mem::replace(&mut self.last, now);
        let passed_ms = now.monotonic.duration_since(then.monotonic).as_millis() as i64;
        let expected_ms = then.wall_ms.saturating_add(passed_ms);
        let ahead_ms = now.wall_ms.saturating_sub(expected_ms);
        if ahead_ms > JUMP_MIN.as_millis() as i64 {
            tracing::warn!(
                ahead_ms,
                doubt_secs = DOUBT_PERIOD.as_secs(),
                "the clock has jumped ahead: until the doubt is over, retention removes nothing that a destination has not \
                 settled"
            );
            let before = self.doubt.map_or(expected_ms, |doubt| doubt.time_ms(now).min(expected_ms));
            self.doubt = Some(ClockDoubt { since: now.monotonic, known_ms: Some(before) });
        }
        self.doubt = self.doubt.filter(|doubt| now.monotonic.duration_since(doubt.since) < DOUBT_PERIOD);
        match &self.doubt {
            Some(doubt) => TrustedTime { ms: doubt.time_ms(now), in_doubt: true },
            None => TrustedTime { ms: now.wall_ms, in_doubt: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_jumps_ahead_is_in_doubt_until_groups_have_committed_again() {
        let began = Instant::now();
        let at = |seconds, wall: i64| ClockReading {
            monotonic: began + Duration::from_secs(seconds),
            wall_ms: wall * 1_000,
        };
        let mut clock = TrustedClock::new(None, at(0, 0));
        // Seconds on the monotonic clock, seconds on the wall clock, the trusted time, and whether it is in doubt.
        for (passed, wall, trusted, in_doubt) in [
            (0, 0, 0, true),
            (3_659, 3_659, 3_659, true),
            (3_660, 3_660, 3_660, false),
            // The process was stopped for a while. Both clocks continued.
            (4_260, 4_260, 4_260, false),
            (4_261, 4_321, 4_321, false),
            // The clock was set back, and then jumps ahead by less than a minute.
            (4_262, 3_500, 3_500, false),
            (4_263, 3_550, 3_550, false),
            // The machine was suspended for a week, and then a second time.
            (4_264, 608_350, 3_551, true),
            (4_265, 608_351, 3_552, true),
            (4_266, 999_999, 3_553, true),
            (4_266 + 3_659, 1_003_658, 7_212, true),
            (4_266 + 3_660, 1_003_659, 1_003_659, false),
        ] {
            let time = clock.time(at(passed, wall));
            assert_eq!(time, TrustedTime { ms: trusted * 1_000, in_doubt }, "{passed} s, {wall} s");
        }
    }
}
