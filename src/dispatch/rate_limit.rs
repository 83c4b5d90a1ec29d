//! How many attempts a second this process may make: `--rate`, or what an operator commanded with `eventd control rate`.
//!
//! ```text
//!  the rate of the destination ── × owned partitions / all partitions ──▶ token bucket of this process
//! ```
//!
//! Several processes share a destination, and each has the share of its partitions. So together they keep to the rate
//! without talking to each other. A command wins over the flag, and `rate off` returns to the flag. While a command has
//! reached only some partitions of the process, the lowest of their rates counts.

use crate::core::Moment;
use crate::core::token_bucket::{Rate, TokenBucket};
use crate::log::Log;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// How often the number of the topic's partitions is looked up while a rate is shared.
const PARTITIONS_LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Limits the attempts of one destination in this process.
#[derive(Debug)]
pub(super) struct RateLimit {
    state: Mutex<RateState>,
    /// Whether there is a limit. Most destinations have none, and then no lock is taken for a batch.
    is_limited: AtomicBool,
    /// Notified when this process may make more attempts than before. Workers wait for the moment that the old rate allows.
    raised: Notify,
}

#[derive(Debug)]
struct RateState {
    flag: Option<Rate>,
    /// For each owned partition, the rate in events an hour that an operator commanded.
    operator: BTreeMap<u32, u64>,
    owned: usize,
    /// The number of the topic's partitions. 0: not known yet, so this process counts as the only one.
    all: usize,
    all_seen_at: Option<Moment>,
    bucket: Option<(Rate, TokenBucket)>,
}

impl RateLimit {
    pub(super) fn new(flag: Option<Rate>) -> Self {
        let mut state =
            RateState { flag, operator: BTreeMap::new(), owned: 0, all: 0, all_seen_at: None, bucket: None };
        state.update(Moment::ZERO);
        let is_limited = AtomicBool::new(state.bucket.is_some());
        Self { is_limited, state: Mutex::new(state), raised: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, RateState> {
        // It holds plain numbers, so a panic elsewhere leaves nothing half done in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, now: Moment, change: impl FnOnce(&mut RateState)) {
        let mut state = self.lock();
        let before = state.per_sec();
        change(&mut state);
        state.update(now);
        self.is_limited.store(state.bucket.is_some(), Ordering::Relaxed);
        if state.per_sec() > before {
            self.raised.notify_waiters();
        }
    }

    /// Ready when the rate of this process becomes higher, or its limit ends. A change after this call is not missed, even
    /// if the future is polled later.
    pub(super) fn raised(&self) -> impl Future<Output = ()> {
        self.raised.notified()
    }

    /// The number of events that the rate allows now. `Err`: none before this moment.
    pub(super) fn allowance(&self, now: Moment) -> Result<usize, Moment> {
        if !self.is_limited.load(Ordering::Relaxed) {
            return Ok(usize::MAX);
        }
        self.lock().bucket.as_mut().map_or(Ok(usize::MAX), |(_, bucket)| bucket.allowance(now))
    }

    /// Counts this many events against the rate.
    pub(super) fn spend(&self, events: usize) {
        if self.is_limited.load(Ordering::Relaxed)
            && let Some((_, bucket)) = &mut self.lock().bucket
        {
            bucket.spend(events);
        }
    }

    pub(super) fn set_owned_partitions(&self, owned: usize, now: Moment) {
        self.change(now, |state| state.owned = owned);
    }

    /// A partition has this rate now, because of a command or because its worker begins with it. Returns the rate of the
    /// destination in words if it has changed.
    pub(super) fn set_operator_rate(&self, partition: u32, per_hour: Option<u64>, now: Moment) -> Option<String> {
        let mut changed = None;
        self.change(now, |state| {
            let before = state.wanted();
            match per_hour {
                Some(rate) => _ = state.operator.insert(partition, rate),
                None => _ = state.operator.remove(&partition),
            }
            let after = state.wanted();
            let shown = || after.map_or_else(|| "no limit".to_owned(), |rate| rate.to_string());
            changed = (before != after).then(shown);
        });
        changed
    }

    /// Looks up the number of partitions if it is needed. If it cannot be seen, the last one counts.
    pub(super) async fn refresh_partitions(&self, log: &dyn Log, now: Moment) {
        {
            let mut state = self.lock();
            let is_old = state.all_seen_at.is_none_or(|at| now >= at.saturating_add(PARTITIONS_LOOK_INTERVAL));
            if state.bucket.is_none() || !is_old {
                return;
            }
            state.all_seen_at = Some(now);
        }
        if let Ok(partitions) = log.partitions().await {
            self.change(now, |state| state.all = partitions as usize);
        }
    }
}

impl RateState {
    /// The rate of the whole destination.
    fn wanted(&self) -> Option<Rate> {
        self.operator.values().min().map(|per_hour| Rate::per_hour(*per_hour)).or(self.flag)
    }

    /// The events a second that this process may attempt.
    fn per_sec(&self) -> f64 {
        self.bucket.as_ref().map_or(f64::INFINITY, |(rate, _)| rate.per_sec())
    }

    fn update(&mut self, now: Moment) {
        let owned = self.owned.max(1);
        let share = self.wanted().map(|rate| rate.share(owned, self.all.max(owned)));
        self.bucket = match (share, self.bucket.take()) {
            (None, _) => None,
            (Some(rate), None) => Some((rate, TokenBucket::new(rate, now))),
            (Some(rate), Some((before, bucket))) if rate == before => Some((rate, bucket)),
            (Some(rate), Some((_, mut bucket))) => {
                bucket.set_rate(rate, now);
                Some((rate, bucket))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn per_sec(limit: &RateLimit) -> Option<f64> {
        limit.lock().bucket.as_ref().map(|(rate, _)| rate.per_sec())
    }

    const PER_SEC: u64 = 3600;

    #[test]
    fn a_command_wins_over_the_flag_and_rate_off_returns_to_it() {
        let limit = RateLimit::new(Some("100/s".parse().unwrap()));
        assert_eq!(per_sec(&limit), Some(100.0));
        assert_eq!(limit.set_operator_rate(0, Some(500 * PER_SEC), Moment::ZERO).as_deref(), Some("500/s"));
        assert_eq!(limit.set_operator_rate(0, Some(500 * PER_SEC), Moment::ZERO), None);
        assert_eq!(per_sec(&limit), Some(500.0));
        assert_eq!(limit.set_operator_rate(0, None, Moment::ZERO).as_deref(), Some("100/s"));
        let without_flag = RateLimit::new(None);
        assert_eq!(without_flag.allowance(Moment::ZERO), Ok(usize::MAX));
        without_flag.set_operator_rate(0, Some(PER_SEC), Moment::ZERO);
        without_flag.spend(without_flag.allowance(Moment::ZERO).unwrap());
        assert!(without_flag.allowance(Moment::ZERO).is_err());
        assert_eq!(without_flag.set_operator_rate(0, None, Moment::ZERO).as_deref(), Some("no limit"));
        assert_eq!(without_flag.allowance(Moment::ZERO), Ok(usize::MAX));
    }

    #[test]
    fn the_lowest_rate_counts_until_a_command_has_reached_all_partitions() {
        let limit = RateLimit::new(None);
        for (partition, rate, sum) in [(0, 10, 10.0), (1, 20, 10.0), (0, 20, 20.0), (1, 5, 5.0)] {
            limit.set_operator_rate(partition, Some(rate * PER_SEC), Moment::ZERO);
            assert_eq!(per_sec(&limit), Some(sum));
        }
    }

    #[test]
    fn those_that_wait_are_told_when_the_rate_rises_and_when_the_limit_ends() {
        let limit = RateLimit::new(None);
        for (partition, rate, is_raised) in [
            (0, Some(10), false),
            (1, Some(20), false),
            (0, Some(5), false),
            (0, Some(15), true),
            (0, None, true),
            (2, None, false),
            (1, None, true),
        ] {
            let raised = limit.raised();
            limit.set_operator_rate(partition, rate.map(|rate| rate * PER_SEC), Moment::ZERO);
            let poll = pin!(raised).poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(poll.is_ready(), is_raised, "{partition} has {rate:?}");
        }
    }

    #[test]
    fn each_process_has_the_share_of_its_partitions() {
        let limit = RateLimit::new(Some("12/s".parse().unwrap()));
        for (owned, all, share) in [(0, 0, 12.0), (1, 0, 12.0), (1, 3, 4.0), (2, 3, 8.0), (3, 3, 12.0), (0, 3, 4.0)] {
            limit.change(Moment::ZERO, |state| (state.owned, state.all) = (owned, all));
            assert_eq!(per_sec(&limit), Some(share), "{owned} of {all}");
        }
    }
}
