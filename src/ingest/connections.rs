//! Who gives way when all connections are taken.
//!
//! ```text
//!  accepted ─▶ Idle ── head read ──▶ Receiving ── body read ──▶ Busy ── answer written ──▶ Idle …
//!               │                       │
//!               └── gives way first     └── gives way if nobody is idle       a busy one never does
//! ```
//!
//! Each connection notes what it waits for. Only when a new client finds no room are all of them looked through for the
//! one that has waited for its client for longest: a request costs a few stores, whatever the number of connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a connection has to have waited for its client before it gives way. It is long enough that clients that use
/// their connections all the time do not close each other's, and short enough that a new client is served within a
/// second.
pub(super) const GIVES_WAY_AFTER: Duration = Duration::from_millis(250);

/// The open connections.
#[derive(Debug)]
pub(super) struct Connections {
    /// What times are counted from.
    epoch: Instant,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_id: u64,
    activities: HashMap<u64, Arc<Activity>>,
}

impl Connections {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { epoch: Instant::now(), open: Mutex::default() })
    }

    /// A new connection, which is idle.
    pub(super) fn open(self: &Arc<Self>) -> Connection {
        let activity = Arc::new(Activity {
            epoch: self.epoch,
            waiting: AtomicU64::new(BUSY),
            is_answering: AtomicBool::new(false),
            give_way: Notify::new(),
        });
        activity.idle();
        let mut open = self.lock();
        let id = open.next_id;
        open.next_id += 1;
        open.activities.insert(id, activity.clone());
        drop(open);
        Connection { connections: self.clone(), id, activity }
    }

    /// Asks the connection that has waited for its client for longest to give way. `false`: none has waited for long
    /// enough.
    pub(super) fn make_room(&self) -> bool {
        let (open, now) = (self.lock(), Instant::now());
        let waiting = open.activities.values().filter_map(|activity| {
            let (since, waits_for) = activity.waiting()?;
            (now.saturating_duration_since(since) >= GIVES_WAY_AFTER).then_some((waits_for, since, activity))
        });
        let first = waiting.min_by_key(|(waits_for, since, _)| (*waits_for, *since));
        if let Some((_, _, activity)) = first {
            activity.give_way.notify_one();
        }
        first.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection; it is forgotten when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    connections: Arc<Connections>,
    id: u64,
    activity: Arc<Activity>,
}

impl Connection {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.lock().activities.remove(&self.id);
    }
}

/// What a connection waits for its client to send, in the order in which connections give way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum WaitsFor {
    /// The next request, or the rest of its head.
    Head,
    /// The rest of a request's body.
    Body,
}

/// What one connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    /// `BUSY`, or twice the milliseconds from `epoch` to when the wait began, plus 2, and plus 1 if it waits for a body.
    waiting: AtomicU64,
    /// From a request's head until its answer is handed to hyper.
    is_answering: AtomicBool,
    give_way: Notify,
}

const BUSY: u64 = 0;

impl Activity {
    /// Waits for a request, from now on.
    pub(super) fn idle(&self) {
        self.wait_for(WaitsFor::Head);
    }

    /// A request's head was read.
    pub(super) fn begin_answer(&self) {
        self.is_answering.store(true, Ordering::Relaxed);
        self.busy();
    }

    /// Its answer is handed to hyper. The connection is idle once all of it is written.
    pub(super) fn end_answer(&self) {
        self.is_answering.store(false, Ordering::Relaxed);
        self.busy();
    }

    /// All that hyper had to write is written: an answer, or the 100 that asks for a body.
    pub(super) fn written(&self) {
        if !self.is_answering.load(Ordering::Relaxed) {
            self.idle();
        }
    }

    /// Waits for the rest of a body, from now on.
    pub(super) fn receiving(&self) {
        self.wait_for(WaitsFor::Body);
    }

    /// Does not wait for the client.
    pub(super) fn busy(&self) {
        self.waiting.store(BUSY, Ordering::Relaxed);
    }

    /// Ready once this connection has to give way to another one.
    pub(super) async fn gives_way(&self) {
        loop {
            self.give_way.notified().await;
            // It may have become busy since it was chosen.
            if self.waiting().is_some_and(|(since, _)| since.elapsed() >= GIVES_WAY_AFTER) {
                return;
            }
        }
    }

    fn wait_for(&self, what: WaitsFor) {
        let now_ms = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.waiting.store(now_ms * 2 + 2 + u64::from(what == WaitsFor::Body), Ordering::Relaxed);
    }

    fn waiting(&self) -> Option<(Instant, WaitsFor)> {
        match self.waiting.load(Ordering::Relaxed) {
            BUSY => None,
            waiting => {
                let since = self.epoch + Duration::from_millis((waiting - 2) / 2);
                Some((since, if waiting % 2 == 0 { WaitsFor::Head } else { WaitsFor::Body }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, timeout};

    async fn gives_way(connection: &Connection) -> bool {
        timeout(Duration::ZERO, connection.activity().gives_way()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_was_idle_for_longest_gives_way_and_a_busy_one_never_does() {
        let connections = Connections::new();
        let all = [connections.open(), connections.open(), connections.open(), connections.open()];
        all[0].activity().begin_answer();
        all[1].activity().begin_answer();
        all[1].activity().receiving();
        advance(Duration::from_millis(10)).await;
        all[2].activity().idle();
        assert!(!connections.make_room(), "nobody has waited for long");
        advance(GIVES_WAY_AFTER).await;
        for expected in [3, 2, 1] {
            assert!(connections.make_room());
            for (index, connection) in all.iter().enumerate() {
                assert_eq!(gives_way(connection).await, index == expected, "{index}, and {expected} was expected");
            }
            all[expected].activity().busy();
        }
        assert!(!connections.make_room());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_chosen_and_got_a_request_meanwhile_stays() {
        let connections = Connections::new();
        let chosen = connections.open();
        advance(GIVES_WAY_AFTER).await;
        assert!(connections.make_room());
        chosen.activity().begin_answer();
        assert!(!gives_way(&chosen).await);
        chosen.activity().written();
        advance(GIVES_WAY_AFTER).await;
        assert!(!connections.make_room(), "what is written within a request is not its answer");
        chosen.activity().end_answer();
        chosen.activity().written();
        advance(GIVES_WAY_AFTER).await;
        assert!(connections.make_room() && gives_way(&chosen).await);
        drop(chosen);
        assert!(connections.lock().activities.is_empty());
    }
}
