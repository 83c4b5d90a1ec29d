//! Chooses the connection that is closed for a new client when `--max-connections` are open.
//!
//! ```text
//!  accepted ─▶ Idle ── head read ──▶ Receiving ── body read ──▶ Busy ── answer written ──▶ Idle …
//!               │                       │                        │
//!               └── evicted first       └── evicted if no        └── never evicted
//!                                           connection is idle
//! ```
//!
//! Each connection records in an atomic number what it waits for and since when. A request therefore costs a few
//! stores, however many connections there are. Only if a new client finds no room are all connections searched for the
//! one that has waited for its client for the longest time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a connection must have waited for its client before it can be evicted. Clients that use their connections
/// all the time do not evict each other, and a new client is still served within a second.
const EVICTABLE_AFTER: Duration = Duration::from_millis(250);

/// All open connections of one ingest.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    /// The zero point of the times in [`Activity`].
    epoch: Instant,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    activities: HashMap<u64, Arc<Activity>>,
}

impl ConnectionTable {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { epoch: Instant::now(), open: Mutex::default() })
    }

    /// Adds a new connection, which is idle.
    pub(super) fn open(self: &Arc<Self>) -> OpenConnection {
        let activity = Arc::new(Activity {
            epoch: self.epoch,
            waiting: AtomicU64::new(BUSY),
            is_answering: AtomicBool::new(false),
            eviction: Notify::new(),
        });
        activity.idle();
        let mut open = self.lock();
        let id = open.next_id;
        open.next_id += 1;
        open.activities.insert(id, activity.clone());
        drop(open);
        OpenConnection { table: self.clone(), id, activity }
    }

    /// Evicts the connection that has waited for its client for the longest time. Returns `false` if no connection has
    /// waited for long enough.
    pub(super) fn evict_one(&self) -> bool {
        let (open, now) = (self.lock(), Instant::now());
        let candidates = open.activities.values().filter_map(|activity| {
            let (since, awaiting) = activity.waiting()?;
            (now.saturating_duration_since(since) >= EVICTABLE_AFTER).then_some((awaiting, since, activity))
        });
        let first = candidates.min_by_key(|(awaiting, since, _)| (*awaiting, *since));
        if let Some((_, _, activity)) = first {
            activity.eviction.notify_one();
        }
        first.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of the table. Dropping it removes the connection.
#[derive(Debug)]
pub(super) struct OpenConnection {
    table: Arc<ConnectionTable>,
    id: u64,
    activity: Arc<Activity>,
}

impl OpenConnection {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.table.lock().activities.remove(&self.id);
    }
}

/// What a connection waits for its client to send, in the order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Awaiting {
    /// The next request, or the rest of its head.
    Head,
    /// The rest of a request's body.
    Body,
}

/// What one connection is doing. The connection's task writes it, and [`ConnectionTable::evict_one`] reads it.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    /// Either `BUSY`, or when the wait began and what for: `2 * (milliseconds since epoch) + 2`, plus 1 for a body.
    waiting: AtomicU64,
    /// Whether a request's head was read and its answer is not yet with hyper.
    is_answering: AtomicBool,
    eviction: Notify,
}

const BUSY: u64 = 0;

impl Activity {
    /// Records that the connection waits for a request from now on.
    fn idle(&self) {
        self.wait_for(Awaiting::Head);
    }

    /// Records that a request's head was read.
    pub(super) fn begin_answer(&self) {
        self.is_answering.store(true, Ordering::Relaxed);
        self.busy();
    }

    /// Records that hyper has the answer. The connection becomes idle when all of it is written.
    pub(super) fn end_answer(&self) {
        self.is_answering.store(false, Ordering::Relaxed);
        self.busy();
    }

    /// Records that hyper has written everything that it holds: an answer, or the status 100 that asks for a body.
    pub(super) fn written(&self) {
        if !self.is_answering.load(Ordering::Relaxed) {
            self.idle();
        }
    }

    /// Records that the connection waits for the rest of a body from now on.
    pub(super) fn receiving(&self) {
        self.wait_for(Awaiting::Body);
    }

    /// Records that the connection does not wait for its client.
    pub(super) fn busy(&self) {
        self.waiting.store(BUSY, Ordering::Relaxed);
    }

    /// Returns when the connection is evicted and must close.
    pub(super) async fn evicted(&self) {
        loop {
            self.eviction.notified().await;
            // A request may have begun since the connection was chosen. Such a connection is not closed.
            if self.waiting().is_some_and(|(since, _)| since.elapsed() >= EVICTABLE_AFTER) {
                return;
            }
        }
    }

    fn wait_for(&self, awaiting: Awaiting) {
        let now_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.waiting.store(now_ms * 2 + 2 + u64::from(awaiting == Awaiting::Body), Ordering::Relaxed);
    }

    /// What the connection waits for and since when, or `None` if it is busy.
    fn waiting(&self) -> Option<(Instant, Awaiting)> {
        match self.waiting.load(Ordering::Relaxed) {
            BUSY => None,
            waiting => {
                let since = self.epoch + Duration::from_millis((waiting - 2) / 2);
                Some((since, if waiting % 2 == 0 { Awaiting::Head } else { Awaiting::Body }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    async fn is_evicted(connection: &OpenConnection) -> bool {
        timeout(Duration::ZERO, connection.activity().evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_is_evicted_first_and_a_busy_one_never() {
        let table = ConnectionTable::new();
        let all = [table.open(), table.open(), table.open(), table.open()];
        all[0].activity().begin_answer();
        all[1].activity().begin_answer();
        all[1].activity().receiving();
        advance(Duration::from_millis(10)).await;
        all[2].activity().idle();
        assert!(!table.evict_one(), "no connection has waited for long enough");
        advance(EVICTABLE_AFTER).await;
        for expected in [3, 2, 1] {
            assert!(table.evict_one());
            for (index, connection) in all.iter().enumerate() {
                assert_eq!(is_evicted(connection).await, index == expected, "{index}, and {expected} was expected");
            }
            all[expected].activity().busy();
        }
        assert!(!table.evict_one());
    }

    #[tokio::test(start_paused = true)]
    async fn a_chosen_connection_that_got_a_request_in_the_meantime_stays_open() {
        let table = ConnectionTable::new();
        let chosen = table.open();
        advance(EVICTABLE_AFTER).await;
        assert!(table.evict_one());
        chosen.activity().begin_answer();
        assert!(!is_evicted(&chosen).await);
        chosen.activity().written();
        advance(EVICTABLE_AFTER).await;
        assert!(!table.evict_one(), "what is written within a request is not its answer");
        chosen.activity().end_answer();
        chosen.activity().written();
        advance(EVICTABLE_AFTER).await;
        assert!(table.evict_one() && is_evicted(&chosen).await);
        drop(chosen);
        assert!(table.lock().activities.is_empty());
    }
}
