//! A token bucket: limits how many events are sent at a configured rate.
//!
//! Partitions ask at the same time how many events they may send, and report afterwards how many they sent. Together they
//! may send more than the bucket had. Its balance is then negative, and no partition may send until the debt is paid. So
//! the rate over a longer time is exact, however many partitions ask, and however often.

use super::Moment;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The capacity of the bucket, in seconds of the rate. It is small, so that no flood of events follows a pause.
const BURST_SECS: f64 = 0.25;

const SECS_PER_HOUR: f64 = 3600.0;

/// A number of events per second, minute or hour: `500/s`, `30/m`, `100/h`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    per_sec: f64,
}

impl Rate {
    pub fn per_sec(self) -> f64 {
        self.per_sec
    }

    /// This many events an hour.
    pub fn per_hour(events: u64) -> Self {
        Self { per_sec: events.max(1) as f64 / SECS_PER_HOUR }
    }

    /// The number of events an hour. Every rate that can be typed is a whole number of them.
    pub fn events_per_hour(self) -> u64 {
        (self.per_sec * SECS_PER_HOUR).round() as u64
    }

    /// A part of this rate: `part` of `whole`.
    pub fn share(self, part: usize, whole: usize) -> Self {
        Self { per_sec: self.per_sec * part.max(1) as f64 / whole.max(1) as f64 }
    }

    /// How long this number of events takes.
    pub fn time_of(self, events: u64) -> Duration {
        Duration::try_from_secs_f64(events as f64 / self.per_sec).unwrap_or(Duration::MAX)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (events, unit) = text.split_once('/').unwrap_or((text, ""));
        let secs = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => {
                return Err(
                    "a rate is a number of events per second, minute or hour: write 500/s, 30/m or 100/h".into()
                );
            }
        };
        match events.trim().parse::<u32>() {
            Ok(0) => Err("a rate must be above zero: write 500/s, 30/m or 100/h".into()),
            Ok(events) => Ok(Self { per_sec: f64::from(events) / secs }),
            Err(_) => Err(format!(
                "{:?} is not a whole number from 1 to {}: write 500/s, 30/m or 100/h",
                events.trim(),
                u32::MAX
            )),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |number: f64| (number - number.round()).abs() < 1e-6;
        let (number, unit) = [(self.per_sec, "s"), (self.per_sec * 60.0, "m"), (self.per_sec * 3600.0, "h")]
            .into_iter()
            .find(|(number, _)| whole(*number))
            .unwrap_or((self.per_sec, "s"));
        write!(f, "{}/{unit}", number.round())
    }
}

/// A bucket that fills at a rate.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: Rate,
    /// Events that may be sent now. If it is negative, this many events were sent too early.
    balance: f64,
    /// The time of the balance.
    at: Moment,
}

impl TokenBucket {
    /// A bucket that allows one event at once.
    pub fn new(rate: Rate, now: Moment) -> Self {
        Self { rate, balance: 1.0, at: now }
    }

    /// The number of events that may be sent now; at least one.
    ///
    /// # Errors
    /// No event may be sent before the returned time.
    pub fn allowance(&mut self, now: Moment) -> Result<usize, Moment> {
        self.fill(now);
        if self.balance >= 1.0 {
            return Ok(self.balance as usize);
        }
        // A microsecond is added. Without it, rounding could make the caller ask again just before an event is allowed.
        let wait = (1.0 - self.balance) / self.rate.per_sec + 1e-6;
        Err(now.saturating_add(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX)))
    }

    fn fill(&mut self, now: Moment) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let full = (self.rate.per_sec * BURST_SECS).max(1.0);
        self.balance = (self.balance + passed * self.rate.per_sec).min(full);
    }

    /// Changes the rate from now on. What was sent too early is still paid off.
    pub fn set_rate(&mut self, rate: Rate, now: Moment) {
        self.fill(now);
        self.rate = rate;
    }

    /// Reports that this many events were sent.
    pub fn spend(&mut self, events: usize) {
        self.balance -= events as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn a_rate_is_parsed_and_shown() {
        for text in ["500/s", "1/s", "30/m", "100/h", "7/m"] {
            assert_eq!(rate(text).to_string(), text);
        }
        assert_eq!((rate("60/m").to_string(), rate("3600/h").per_sec()), ("1/s".into(), 1.0));
        for wrong in ["", "5", "5/d", "/s", "0/s", "-1/s", "1.5/s", "many/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        assert_eq!(rate("30/m").time_of(90), Duration::from_secs(180));
        for text in ["500/s", "1/s", "30/m", "1/h", "4294967295/s"] {
            assert_eq!(Rate::per_hour(rate(text).events_per_hour()).to_string(), rate(text).to_string());
        }
        assert_eq!(rate("9/s").share(1, 3).to_string(), "3/s");
    }

    #[test]
    fn a_new_rate_counts_from_the_change_on() {
        let seconds = Duration::from_secs;
        let mut bucket = TokenBucket::new(rate("100/s"), Moment::ZERO);
        let all = bucket.allowance(seconds(1)).unwrap();
        bucket.spend(all + 10);
        bucket.set_rate(rate("1/s"), seconds(1));
        let free_at = bucket.allowance(seconds(1)).unwrap_err();
        assert!(
            (11.0..11.2).contains(&(free_at - seconds(1)).as_secs_f64()),
            "ten too many are paid off at 1/s: {free_at:?}"
        );
        bucket.set_rate(rate("100/s"), seconds(2));
        assert!(bucket.allowance(seconds(2)).unwrap_err() < Duration::from_millis(2_200), "and then at 100/s");
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_over_any_time_without_a_pause(
            per_sec in 1u32..200_000,
            // How late each request comes, and whether another partition asks at the same time.
            requests in proptest::collection::vec((0u64..20, any::<bool>()), 50..400),
        ) {
            let per_sec_f = f64::from(per_sec);
            let mut bucket = TokenBucket::new(rate(&format!("{per_sec}/s")), Moment::ZERO);
            let (mut now, mut sent, mut most) = (Moment::ZERO, 0, 0);
            for (late_ms, two_ask) in requests {
                match bucket.allowance(now) {
                    Ok(may) => {
                        let took = may * if two_ask { 2 } else { 1 };
                        (sent, most) = (sent + took, most.max(took));
                        bucket.spend(took);
                    }
                    Err(until) => {
                        prop_assert!(until > now);
                        now = until + Duration::from_millis(late_ms);
                    }
                }
                let due = per_sec_f * now.as_secs_f64() + 1.0;
                prop_assert!(sent as f64 <= due + most as f64, "{} of {} at {:?}", sent, due, now);
            }
            // No request came so late that the bucket was full, so the rate is reached, too.
            let due = per_sec_f * now.as_secs_f64();
            prop_assert!(sent as f64 >= due - per_sec_f * 0.02 - 2.0 - most as f64, "{} of {} at {:?}", sent, due, now);
        }

        #[test]
        fn a_pause_is_not_followed_by_a_flood(per_sec in 1u32..100_000, pause_secs in 1u64..1_000_000) {
            let mut bucket = TokenBucket::new(rate(&format!("{per_sec}/s")), Moment::ZERO);
            let may = bucket.allowance(Duration::from_secs(pause_secs)).unwrap();
            prop_assert!(may as f64 <= (f64::from(per_sec) * BURST_SECS).max(1.0));
        }
    }
}
