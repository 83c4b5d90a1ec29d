//! Log lines about the same thing at a bounded rate: the first one, then one each
//! [`LOG_REPEAT_INTERVAL`](crate::limits::LOG_REPEAT_INTERVAL) with the number of lines suppressed since.

use crate::limits::{LOG_LINES_A_MINUTE_MAX, LOG_REPEAT_INTERVAL};
use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The time over which a [`Budget`] counts.
const MINUTE: Duration = Duration::from_secs(60);

/// The field `suppressed` of a line: the number of lines that were left out before it. `None`, which is not shown: there were
/// none.
pub(crate) type Suppressed = Option<NonZero<u64>>;

#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    /// What a line is about → when one was written, and how many were left out since.
    said: Mutex<HashMap<&'static str, (Instant, u64)>>,
}

impl LogLimiter {
    /// `Some(suppressed)`: write the line, with this number as its field `suppressed`. `None`: it was written a moment
    /// ago.
    pub(crate) fn allows(&self, about: &'static str) -> Option<Suppressed> {
        self.allows_at(about, Instant::now())
    }

    fn allows_at(&self, about: &'static str, now: Instant) -> Option<Suppressed> {
        match self.said.lock().unwrap_or_else(PoisonError::into_inner).entry(about) {
            std::collections::hash_map::Entry::Vacant(first) => {
                first.insert((now, 0));
                Some(None)
            }
            std::collections::hash_map::Entry::Occupied(mut said) => {
                let (at, left_out) = said.get_mut();
                if now.saturating_duration_since(*at) < LOG_REPEAT_INTERVAL {
                    *left_out += 1;
                    return None;
                }
                *at = now;
                Some(NonZero::new(std::mem::take(left_out)))
            }
        }
    }
}

/// Lines that each name something else, such as a user: at most [`LOG_LINES_A_MINUTE_MAX`] a minute. The number of those
/// suppressed is due when that minute is over, whether another line comes or not. Times are since any fixed moment.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When the minute began that counts, and the lines written in it.
    began: Option<Duration>,
    written: u32,
    suppressed: u64,
}

impl Budget {
    /// Whether a line may be written now; one that may not is counted. Ask [`Budget::take_overdue`] first.
    pub(crate) fn allows(&mut self, now: Duration) -> bool {
        if self.is_over(now) {
            (self.began, self.written) = (Some(now), 0);
        }
        let allowed = self.written < LOG_LINES_A_MINUTE_MAX;
        match allowed {
            true => self.written += 1,
            false => self.suppressed += 1,
        }
        allowed
    }

    /// The number of lines suppressed in a minute that is over. It is told once.
    pub(crate) fn take_overdue(&mut self, now: Duration) -> Option<u64> {
        (self.suppressed > 0 && self.is_over(now)).then(|| self.take_suppressed())
    }

    /// The number of lines suppressed since it was told last.
    pub(crate) fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }

    fn is_over(&self, now: Duration) -> bool {
        self.began.is_none_or(|began| now >= began.saturating_add(MINUTE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_repeats_is_written_once_an_interval_and_counts_the_others() {
        let (log_limiter, began) = (LogLimiter::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let said: Vec<Option<Suppressed>> =
            [0, 1, 2, 10, 11].map(|second| log_limiter.allows_at("fetch", at(second))).into();
        assert_eq!(said, [Some(None), None, None, Some(NonZero::new(2)), None]);
        assert_eq!(log_limiter.allows_at("commit", at(11)), Some(None), "another thing is another line");
    }

    #[test]
    fn a_budget_counts_what_is_over_it_and_tells_the_count_after_a_minute() {
        let (mut budget, at) = (Budget::default(), Duration::from_secs);
        assert!((0..LOG_LINES_A_MINUTE_MAX).all(|_| budget.allows(at(100))));
        assert!(!budget.allows(at(101)) && !budget.allows(at(159)));
        assert_eq!(budget.take_overdue(at(159)), None);
        assert_eq!(budget.take_overdue(at(160)), Some(2));
        assert_eq!(budget.take_overdue(at(160)), None, "it is told once");
        assert!(budget.allows(at(160)));
    }
}
