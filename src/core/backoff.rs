//! When to try again: the delay doubles from a first one up to a maximum, with jitter if that is wanted.

use std::time::Duration;

/// The delays between retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    jitter: bool,
}

impl Backoff {
    /// For calls of the log and of the group that are repeated until they succeed. Their delays do not follow `--backoff`:
    /// a patient policy towards a receiver must not keep eventd waiting for minutes after its log is back.
    pub const OF_LOG_CALLS: Self =
        Self { first: Duration::from_millis(100), max: Duration::from_secs(2), jitter: true };

    /// A schedule from `first` to `max`. The error names the flags if `first` is zero or above `max`.
    pub fn new(first: Duration, max: Duration, jitter: bool) -> Result<Self, String> {
        if first.is_zero() {
            return Err("--backoff must be above zero".into());
        }
        if first > max {
            return Err(format!("--backoff {first:?} must not be above --backoff-max {max:?}"));
        }
        Ok(Self { first, max, jitter })
    }

    /// The longest delay.
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The delay after this many failures (1: after the first one). With jitter it is between half of the delay and all
    /// of it, so that lanes that failed together do not all come back at the same moment. `random` is any number, a new
    /// one for each call.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let delay = self.first.saturating_mul(1 << doublings).min(self.max);
        if self.jitter { delay.div_f64(2.0).mul_f64(1.0 + random as f64 / u64::MAX as f64).min(delay) } else { delay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_delay_doubles_up_to_the_maximum() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2), false).unwrap();
        let delays: Vec<u128> = (1..8).map(|failures| backoff.delay(failures, 0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn a_delay_of_zero_or_above_the_maximum_is_refused_with_the_name_of_the_flag() {
        let refused =
            |first, max| Backoff::new(Duration::from_millis(first), Duration::from_millis(max), false).unwrap_err();
        assert!(refused(0, 10).contains("--backoff"));
        assert!(refused(20, 10).contains("--backoff-max"));
    }

    proptest! {
        #[test]
        fn jitter_stays_between_half_of_the_delay_and_all_of_it(
            first_ms in 1u64..10_000, more_ms in 0u64..10_000_000, failures in any::<u32>(), random in any::<u64>(),
        ) {
            let (first, max) = (Duration::from_millis(first_ms), Duration::from_millis(first_ms + more_ms));
            let plain = Backoff::new(first, max, false).unwrap().delay(failures, random);
            let jittered = Backoff::new(first, max, true).unwrap().delay(failures, random);
            prop_assert!(first <= plain && plain <= max);
            prop_assert!(jittered <= plain && jittered >= plain / 2 - Duration::from_nanos(1), "{:?} {:?}", jittered, plain);
        }
    }
}
