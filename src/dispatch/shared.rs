//! What the owners of a destination's partitions share in one process: the breaker, the slots of `--concurrency`, the
//! clock that the core is told, and the topic of dead letters.

use super::notices::Notices;
use super::{Config, Parts, Tally, dead_letter};
use crate::core::Moment;
use crate::core::breaker::Breaker;
use crate::core::random;
use crate::core::token_bucket::{Rate, TokenBucket};
use crate::destination::LeaseDeadline;
use crate::limits;
use crate::log::{Log, OpenError};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

pub(super) struct Shared {
    pub(super) parts: Parts,
    /// That of the group.
    pub(super) lease: Arc<LeaseDeadline>,
    pub(super) config: Config,
    pub(super) topic: Arc<str>,
    /// Attempts (hand-overs) in flight at the destination: first come, first served.
    pub(super) slots: Arc<Semaphore>,
    /// Told when the breaker opens, closes, or gives a probe back.
    pub(super) breaker_moved: Notify,
    pub(super) tally: Arc<Tally>,
    pub(super) notices: Notices,
    /// `None`: as fast as the destination takes them.
    pace: Option<Mutex<TokenBucket>>,
    breaker: Mutex<Breaker>,
    began: Instant,
    /// Partitions that are owned now; each has an equal share of window and in-flight events.
    owned: AtomicUsize,
    dead: dead_letter::Opening,
    random: AtomicU64,
}

impl Shared {
    pub(super) fn new(parts: Parts, config: Config, rate: Option<Rate>, tally: Arc<Tally>) -> Self {
        let group = Arc::clone(&parts.group);
        Self {
            lease: Arc::new(move || group.lease_deadline()),
            topic: parts.log.topic().into(),
            slots: Arc::new(Semaphore::new(config.concurrency.min(Semaphore::MAX_PERMITS))),
            breaker_moved: Notify::new(),
            tally,
            notices: Notices::new(parts.group.name(), parts.destination.address()),
            pace: rate.map(|rate| Mutex::new(TokenBucket::new(rate, Moment::ZERO))),
            breaker: Mutex::new(Breaker::new()),
            began: Instant::now(),
            owned: AtomicUsize::new(0),
            dead: dead_letter::Opening::default(),
            random: AtomicU64::new(config.seed),
            parts,
            config,
        }
    }

    pub(super) fn now(&self) -> Moment {
        self.began.elapsed()
    }

    pub(super) fn instant(&self, moment: Moment) -> Instant {
        self.began.checked_add(moment).unwrap_or_else(|| self.began + limits::COMMIT_UNCHANGED_INTERVAL)
    }

    /// The breaker holds plain numbers: a panic elsewhere leaves nothing half done in it.
    pub(super) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events may be handed out now; `Err`: none before that moment.
    pub(super) fn allowance(&self, now: Moment) -> Result<usize, Moment> {
        match &self.pace {
            None => Ok(usize::MAX),
            Some(pace) => pace.lock().unwrap_or_else(PoisonError::into_inner).allowance(now),
        }
    }

    /// So many were.
    pub(super) fn spend(&self, events: usize) {
        if let Some(pace) = &self.pace {
            pace.lock().unwrap_or_else(PoisonError::into_inner).spend(events);
        }
    }

    pub(super) fn set_owned(&self, partitions: usize) {
        self.owned.store(partitions.max(1), Ordering::Relaxed);
    }

    /// An equal share of `whole` for each owned partition, at least 1.
    pub(super) fn share(&self, whole: usize) -> usize {
        (whole / self.owned.load(Ordering::Relaxed).max(1)).max(1)
    }

    /// A number for jitter, another one each time.
    pub(super) fn random(&self) -> u64 {
        random::mix(self.random.fetch_add(random::STEP, Ordering::Relaxed))
    }

    /// The topic of dead letters, made when it is first needed.
    pub(super) async fn dead_letters(&self) -> Result<Arc<dyn Log>, OpenError> {
        self.dead.get(&self.parts, &self.config).await
    }
}
