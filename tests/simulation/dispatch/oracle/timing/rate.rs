//! The rate that operators commanded: how many events a process may attempt in any interval.
//!
//! A process has one limit for all of its partitions, and the lowest of their rates counts. So a rate is certainly in
//! force while one partition of the process is open whose last commit says it, and no later command waits. The process may
//! have only a share of the rate. That is not judged.
//!
//! ```text
//!  commit: 5/s                                             a later command
//!      ├──────────── the limit is certainly 5/s ────────────────┤
//!           ✉✉      ✉  ✉    ✉ ✉ ✉   in each part of t seconds: at most 5 t + the burst
//! ```

use std::time::Duration;

/// What a process may attempt at once after a pause, in seconds of the rate. It may always attempt one event.
const BURST_S: f64 = 0.25;

const S_PER_HOUR: f64 = 3_600.0;

/// Far less than one event: sums of fractions are not exact.
const INEXACT: f64 = 1e-3;

/// The limit of one process, and what it has attempted since the limit is certain.
#[derive(Debug, Default)]
pub(super) struct RateRule {
    /// Events an hour. `None`: no limit is certain.
    per_hour: Option<u64>,
    /// The events of the interval that is most above the rate, without what the rate allows in it.
    above: f64,
    at: Duration,
}

impl RateRule {
    /// From now on this limit is certain. A change begins a new interval.
    pub(super) fn set(&mut self, per_hour: Option<u64>) {
        if self.per_hour != per_hour {
            *self = Self { per_hour, ..Self::default() };
        }
    }

    /// This number of events is attempted. Returns why they are too many.
    pub(super) fn begun(&mut self, events: usize, now: Duration) -> Option<String> {
        let per_s = self.per_hour? as f64 / S_PER_HOUR;
        let allowed = now.saturating_sub(self.at).as_secs_f64() * per_s;
        (self.above, self.at) = ((self.above - allowed).max(0.0) + events as f64, now);
        let burst = (per_s * BURST_S).max(1.0);
        (self.above > burst + INEXACT)
            .then(|| format!("the rate is {per_s}/s, and {} events too many are attempted", self.above - burst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(rate: &mut RateRule, events: usize, at_ms: u64) -> bool {
        rate.begun(events, Duration::from_millis(at_ms)).is_some()
    }

    #[test]
    fn more_events_than_the_rate_and_its_burst_are_reported() {
        let mut rate = RateRule::default();
        assert!(!wrong(&mut rate, 1_000, 0), "no limit is certain");
        rate.set(Some(10 * 3_600));
        assert!(!wrong(&mut rate, 2, 1_000));
        assert!(!wrong(&mut rate, 1, 1_050), "two and a half at once, and ten a second");
        assert!(!wrong(&mut rate, 1, 1_150));
        assert!(wrong(&mut rate, 1, 1_249));
    }

    #[test]
    fn a_pause_allows_no_more_than_the_burst_and_a_slow_rate_one_event() {
        let mut rate = RateRule::default();
        rate.set(Some(40 * 3_600));
        assert!(!wrong(&mut rate, 10, 60_000));
        assert!(wrong(&mut rate, 1, 60_000));
        rate.set(Some(60));
        assert!(!wrong(&mut rate, 1, 60_000), "another rate begins anew");
        assert!(wrong(&mut rate, 1, 119_000));
        let mut rate = RateRule::default();
        rate.set(Some(60));
        assert!((1..10).all(|minute| !wrong(&mut rate, 1, minute * 60_000)));
    }
}
