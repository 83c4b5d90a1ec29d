//! How many attempts of one process are in flight to a destination that takes one user at a time, and of which users.

use super::queue::SLOW_AFTER;
use std::collections::HashMap;
use std::time::Duration;

/// The attempts in flight.
#[derive(Debug, Default)]
pub(super) struct UsedSlots {
    attempts: HashMap<u64, Used>,
}

#[derive(Debug)]
struct Used {
    began: Duration,
    /// The attempt before it was slow.
    is_slow: bool,
    /// The user was slow or failed, so the attempt is in the second pool.
    is_doubtful: bool,
}

impl UsedSlots {
    /// An attempt begins. Returns what is wrong with it.
    pub(super) fn begun(
        &mut self,
        attempt: u64,
        is_slow: bool,
        is_doubtful: bool,
        concurrency: usize,
        now: Duration,
    ) -> Option<String> {
        self.attempts.insert(attempt, Used { began: now, is_slow, is_doubtful });
        let count = |which: &dyn Fn(&Used) -> bool| self.attempts.values().filter(|used| which(used)).count();
        let slow = count(&|used| used.is_slow);
        let young = count(&|used| !used.is_doubtful && now < used.began + SLOW_AFTER);
        if slow > concurrency {
            Some(format!("{slow} attempts of slow users are in flight"))
        } else if young > concurrency + concurrency / 4 {
            Some(format!("{young} attempts are in flight that are not slow"))
        } else {
            None
        }
    }

    pub(super) fn ended(&mut self, attempt: u64) {
        self.attempts.remove(&attempt);
    }
}
