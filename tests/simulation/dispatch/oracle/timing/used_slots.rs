//! How many attempts of one process are in flight to a destination that takes one user at a time, of which users, and with
//! how many events.

use super::queue::SLOW_AFTER;
use super::{AttemptOf, TimingRules};
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
    partition: u32,
    /// Events beyond those that any attempt may have.
    longer: usize,
    /// The attempt before it was slow.
    is_slow: bool,
    /// The user was slow or failed, so the attempt is in the second pool.
    is_doubtful: bool,
}

impl UsedSlots {
    /// An attempt begins. Returns what is wrong with it.
    pub(super) fn begun(
        &mut self,
        attempt: AttemptOf,
        is_slow: bool,
        is_doubtful: bool,
        rules: &TimingRules,
    ) -> Option<String> {
        let AttemptOf { id, partition, began: now, events, .. } = attempt;
        let (concurrency, in_flight_events) = (rules.concurrency, rules.in_flight_events);
        // Two attempts for each of `--concurrency` share half of the events.
        let longer = events.saturating_sub((in_flight_events / (4 * concurrency)).max(1));
        self.attempts.insert(id, Used { began: now, partition, longer, is_slow, is_doubtful });
        let count = |which: &dyn Fn(&Used) -> bool| self.attempts.values().filter(|used| which(used)).count();
        let slow = count(&|used| used.is_slow);
        let young = count(&|used| !used.is_doubtful && now < used.began + SLOW_AFTER);
        let longer = |which: &dyn Fn(&Used) -> bool| {
            let of_partition = self.attempts.values().filter(|used| used.partition == partition && which(used));
            of_partition.map(|used| used.longer).sum::<usize>()
        };
        // While a process owns one partition, this partition has all of it.
        let (all_longer, slow_longer) = (longer(&|_| true), longer(&|used| used.is_slow));
        if all_longer > (in_flight_events / 2).max(1) {
            Some(format!("{all_longer} events of longer runs are in flight, of {in_flight_events} events"))
        } else if slow_longer > in_flight_events / 4 {
            Some(format!(
                "{slow_longer} events of longer runs of slow users are in flight, of {in_flight_events} events"
            ))
        } else if slow > concurrency {
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
