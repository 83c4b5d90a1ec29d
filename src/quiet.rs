//! Log lines about the same thing at a bounded rate: the first one, then one each
//! [`LOG_REPEAT_INTERVAL`](crate::limits::LOG_REPEAT_INTERVAL) with the number of lines suppressed since.

use crate::limits::LOG_REPEAT_INTERVAL;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Quiet {
    /// What a line is about → when one was written, and how many were left out since.
    said: Mutex<HashMap<&'static str, (Instant, u64)>>,
}

impl Quiet {
    /// `Some(suppressed)`: write the line, with this number as its field `suppressed`. `None`: it was written a moment
    /// ago.
    pub(crate) fn allows(&self, about: &'static str) -> Option<u64> {
        self.allows_at(about, Instant::now())
    }

    fn allows_at(&self, about: &'static str, now: Instant) -> Option<u64> {
        match self.said.lock().unwrap_or_else(PoisonError::into_inner).entry(about) {
            std::collections::hash_map::Entry::Vacant(first) => {
                first.insert((now, 0));
                Some(0)
            }
            std::collections::hash_map::Entry::Occupied(mut said) => {
                let (at, left_out) = said.get_mut();
                if now.saturating_duration_since(*at) < LOG_REPEAT_INTERVAL {
                    *left_out += 1;
                    return None;
                }
                *at = now;
                Some(std::mem::take(left_out))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_that_repeats_is_written_once_an_interval_and_counts_the_others() {
        let (quiet, began) = (Quiet::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let said: Vec<Option<u64>> = [0, 1, 2, 10, 11].map(|second| quiet.allows_at("fetch", at(second))).into();
        assert_eq!(said, [Some(0), None, None, Some(2), None]);
        assert_eq!(quiet.allows_at("commit", at(11)), Some(0), "another thing is another line");
    }
}
