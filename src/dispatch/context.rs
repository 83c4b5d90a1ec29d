//! What the workers of one destination share in this process: the breaker, the limits on what is in flight, the clock,
//! and the topic of dead letters.

use super::commands::SharedControl;
use super::dead_letter_topic::DeadLetterTopicOpener;
use super::halt::HaltSwitch;
use super::notices::Notices;
use super::rate_limit::RateLimit;
use super::slots::SharedSlots;
use super::{Config, DispatchRole, Parts, Tally};
use crate::core::backoff::Backoff;
use crate::core::breaker::{Breaker, Gate};
use crate::core::random;
use crate::core::token_bucket::Rate;
use crate::core::{BothClocks, Moment};
use crate::destination::LeaseDeadline;
use crate::limits::COMMIT_UNCHANGED_INTERVAL;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Keeps the seed for the names of users apart from the numbers of [`DispatchContext::random`].
const USER_SEED: u64 = 0x7573_6572_735f_6f66;

/// Everything that does not belong to one partition.
pub(super) struct DispatchContext {
    pub(super) parts: Parts,
    pub(super) config: Config,
    pub(super) topic: Arc<str>,
    /// Until when the group lets this process start attempts.
    pub(super) lease: Arc<LeaseDeadline>,
    pub(super) throttle: Throttle,
    pub(super) breaker: SharedBreaker,
    pub(super) tally: Arc<Tally>,
    pub(super) notices: Notices,
    pub(super) halt: HaltSwitch,
    pub(super) dead_letter_topic: DeadLetterTopicOpener,
    pub(super) shared_control: SharedControl,
    /// Whether operators can command this dispatch. They do not command replays.
    pub(super) is_controlled: bool,
    clock: Clock,
    random: AtomicU64,
    user_seed: u64,
}

impl DispatchContext {
    pub(super) fn new(parts: Parts, config: Config, role: DispatchRole, tally: Arc<Tally>) -> Self {
        let rate = match role {
            DispatchRole::Live => config.rate,
            DispatchRole::Replay { rate } => rate,
        };
        let group = Arc::clone(&parts.group);
        Self {
            lease: Arc::new(move || group.lease_deadline()),
            topic: parts.log.topic().into(),
            throttle: Throttle::new(config.concurrency, rate),
            breaker: SharedBreaker::default(),
            tally,
            notices: Notices::new(parts.group.name(), parts.destination.address()),
            halt: HaltSwitch::default(),
            dead_letter_topic: DeadLetterTopicOpener::default(),
            shared_control: SharedControl::default(),
            is_controlled: matches!(role, DispatchRole::Live),
            clock: Clock { started: Instant::now() },
            random: AtomicU64::new(config.seed),
            user_seed: random::mix(config.seed ^ USER_SEED),
            parts,
            config,
        }
    }

    /// The destination's name, for log lines.
    pub(super) fn destination(&self) -> &str {
        self.parts.group.name()
    }

    /// The time since this dispatch started.
    pub(super) fn now(&self) -> Moment {
        self.clock.started.elapsed()
    }

    /// The time on both clocks.
    pub(super) fn clocks(&self) -> BothClocks {
        BothClocks { moment: self.now(), wall_ms: self.parts.wall_clock.now_ms() }
    }

    /// The instant of a moment.
    pub(super) fn instant(&self, moment: Moment) -> Instant {
        // Adding to an `Instant` panics if a `Retry-After` is absurdly long. Waking up early does no harm.
        self.clock.started.checked_add(moment).unwrap_or_else(|| self.clock.started + COMMIT_UNCHANGED_INTERVAL)
    }

    /// How long to wait before a call of the log or of the group is repeated, after this many failures.
    pub(super) fn log_retry_delay(&self, failures: u32) -> Duration {
        Backoff::OF_LOG_CALLS.delay(failures, self.random())
    }

    /// Any number, another one for each call: the jitter of a backoff.
    pub(super) fn random(&self) -> u64 {
        random::mix(self.random.fetch_add(random::STEP, Ordering::Relaxed))
    }

    /// The seed with which the lanes of this partition name users. It is always the same one, because the breaker knows
    /// users by these names, and outlives the worker of a partition. Two partitions have different ones: records without a
    /// key are of a different user in each partition.
    pub(super) fn user_seed(&self, partition: u32) -> u64 {
        random::mix(self.user_seed ^ u64::from(partition))
    }
}

struct Clock {
    started: Instant,
}

/// The destination's breaker. Workers wait for a change of it.
#[derive(Default)]
pub(super) struct SharedBreaker {
    breaker: Mutex<Breaker>,
    /// Notified when the breaker opens, closes, or may send a probe again.
    changed: Notify,
    /// How often that was notified.
    changes: AtomicU64,
}

impl SharedBreaker {
    pub(super) fn lock(&self) -> MutexGuard<'_, Breaker> {
        // The breaker holds plain numbers, so a panic elsewhere leaves nothing half done in it.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when any worker calls [`notify_changed`](Self::notify_changed). A change after this call is not missed, even
    /// if the future is polled later.
    ///
    /// (A `watch` channel would do too, but it wakes its receivers in random order, which a simulation cannot repeat.)
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    pub(super) fn notify_changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// How often the breaker has changed. A worker compares it with an earlier number, because it may have been busy when a
    /// change was notified.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// How much this process may have in flight at the destination, and each partition's share of it.
pub(super) struct Throttle {
    /// One for each delivery batch in flight.
    pub(super) slots: SharedSlots,
    /// `--concurrency`: the slots of one pool.
    pub(super) concurrency: usize,
    pub(super) rate: RateLimit,
    /// The number of partitions that are owned now.
    owned_partitions: AtomicUsize,
    /// Notified when there are fewer of them, so that the share of each is larger.
    share_grew: Notify,
}

impl Throttle {
    fn new(concurrency: usize, rate: Option<Rate>) -> Self {
        Self {
            slots: SharedSlots::new(concurrency),
            concurrency,
            rate: RateLimit::new(rate),
            owned_partitions: AtomicUsize::new(0),
            share_grew: Notify::new(),
        }
    }

    /// In bad health and after an outage the breaker allows fewer attempts. An open breaker limits its probes itself: they
    /// must not wait for attempts that hang.
    pub(super) fn limit_by(&self, breaker: &Breaker, now: Moment) {
        let is_closed = breaker.gate(now) == Gate::Closed;
        let limit = if is_closed { breaker.attempts_allowed(self.concurrency, now) } else { self.concurrency };
        self.slots.set_limit(limit);
    }

    pub(super) fn set_owned_partitions(&self, partitions: usize, now: Moment) {
        self.rate.set_owned_partitions(partitions, now);
        if partitions < self.owned_partitions.swap(partitions, Ordering::Relaxed) {
            self.share_grew.notify_waiters();
        }
    }

    /// Ready when the share of each partition becomes larger. A change after this call is not missed, even if the future is
    /// polled later.
    pub(super) fn share_grew(&self) -> impl Future<Output = ()> {
        self.share_grew.notified()
    }

    pub(super) fn owned_partitions(&self) -> usize {
        self.owned_partitions.load(Ordering::Relaxed)
    }

    /// One partition's share of `whole`: all owned partitions have the same, and each at least 1.
    pub(super) fn share(&self, whole: usize) -> usize {
        (whole / self.owned_partitions().max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Waker};

    #[test]
    fn those_that_wait_are_told_when_their_share_grows() {
        let throttle = Throttle::new(1, None);
        for (owned, share, grew) in
            [(1, 12, false), (3, 4, false), (2, 6, true), (2, 6, false), (4, 3, false), (1, 12, true)]
        {
            let told = throttle.share_grew();
            throttle.set_owned_partitions(owned, Moment::ZERO);
            let poll = pin!(told).poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!((throttle.share(12), poll.is_ready()), (share, grew), "of {owned}");
        }
    }
}
