//! Bounds the rate of log lines. Of lines about the same thing, the first is written, and then at most one in each
//! [`LOG_REPEAT_INTERVAL`](crate::limits::LOG_REPEAT_INTERVAL). That line has the number of lines that were suppressed.

use crate::limits::LOG_REPEAT_INTERVAL;
use std::collections::HashMap;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Log lines in a minute that each name another event, for each destination; and the same number that each name another
/// user. Further lines are counted.
const LOG_LINES_A_MINUTE_MAX: u32 = 10;

/// The period of a [`Budget`].
const MINUTE: Duration = Duration::from_secs(60);

/// The field `suppressed` of a line: how many lines were not written before it. `None`: no line was suppressed, and the
/// field is not shown.
pub(crate) type Suppressed = Option<NonZero<u64>>;

/// Decides which log lines are written. Each subject of lines is limited on its own.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    /// For each subject: when a line was written last, and how many were suppressed since.
    subjects: Mutex<HashMap<&'static str, (Instant, u64)>>,
}

impl LogLimiter {
    /// Whether a line about this subject may be written. `Some(suppressed)`: write it, with this number as its field
    /// `suppressed`. `None`: suppress it, because one was written less than [`LOG_REPEAT_INTERVAL`] ago.
    pub(crate) fn allows(&self, subject: &'static str) -> Option<Suppressed> {
        self.allows_at(subject, Instant::now())
    }

    fn allows_at(&self, subject: &'static str, now: Instant) -> Option<Suppressed> {
        match self.subjects.lock().unwrap_or_else(PoisonError::into_inner).entry(subject) {
            std::collections::hash_map::Entry::Vacant(first) => {
                first.insert((now, 0));
                Some(None)
            }
            std::collections::hash_map::Entry::Occupied(mut entry) => {
                let (written_at, suppressed) = entry.get_mut();
                if now.saturating_duration_since(*written_at) < LOG_REPEAT_INTERVAL {
                    *suppressed += 1;
                    return None;
                }
                *written_at = now;
                Some(NonZero::new(std::mem::take(suppressed)))
            }
        }
    }
}

/// Bounds lines that each name another thing, such as a user: at most [`LOG_LINES_A_MINUTE_MAX`] in a minute. When the
/// minute is over, the number of suppressed lines is due, even if no other line comes. Times count from any fixed moment.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When the current minute began.
    began: Option<Duration>,
    /// Lines written in this minute.
    written: u32,
    suppressed: u64,
}

impl Budget {
    /// Whether a line may be written now. If not, the line is counted as suppressed. Call [`Budget::take_overdue`]
    /// first, so that the count of an earlier minute is reported.
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

    /// The number of lines suppressed in a minute that is over. It is returned once.
    pub(crate) fn take_overdue(&mut self, now: Duration) -> Option<u64> {
        (self.suppressed > 0 && self.is_over(now)).then(|| self.take_suppressed())
    }

    /// The number of lines suppressed since the last time that a number was returned.
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
    fn a_repeated_line_is_written_once_in_each_interval_with_the_number_of_the_others() {
        let (log_limiter, began) = (LogLimiter::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let written: Vec<Option<Suppressed>> =
            [0, 1, 2, 10, 11].map(|second| log_limiter.allows_at("fetch", at(second))).into();
        assert_eq!(written, [Some(None), None, None, Some(NonZero::new(2)), None]);
        assert_eq!(log_limiter.allows_at("commit", at(11)), Some(None), "another subject has a limit of its own");
    }

    #[test]
    fn a_budget_counts_suppressed_lines_and_returns_the_count_after_a_minute() {
        let (mut budget, at) = (Budget::default(), Duration::from_secs);
        assert!((0..LOG_LINES_A_MINUTE_MAX).all(|_| budget.allows(at(100))));
        assert!(!budget.allows(at(101)) && !budget.allows(at(159)));
        assert_eq!(budget.take_overdue(at(159)), None);
        assert_eq!(budget.take_overdue(at(160)), Some(2));
        assert_eq!(budget.take_overdue(at(160)), None, "the count is returned once");
        assert!(budget.allows(at(160)));
    }
}
