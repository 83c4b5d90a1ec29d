//! How a reader learns that a partition grew.
//!
//! ```text
//!  our writer ── after COMMIT ───────────────────────────────────▶ Hub ──▶ readers that wait for a partition
//!  other processes ──▶ file ◀── PRAGMA data_version ── watcher ──────▲
//! ```
//!
//! In process it is a notification. Across processes one thread looks at a number that SQLite changes with every commit
//! of another connection: every 5 ms while anything is written, else every 50 ms, which costs some microseconds each.

use super::files::FileIdentity;
use super::hub::Hub;
use super::writer::Housekeeping;
use crate::limits::{HOUSEKEEPING_INTERVAL, WATCH_BUSY_AFTER_CHANGE, WATCH_INTERVAL_BUSY, WATCH_INTERVAL_IDLE};
use crate::log_limiter::LogLimiter;
use crate::vital::{self, Lost};
use rusqlite::Connection;
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// Ends the thread when it is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: mpsc::SyncSender<()>,
    /// Answers once the thread has ended.
    ended: mpsc::Receiver<()>,
}

impl Watcher {
    /// Ends the thread, and waits until its connection is closed.
    pub(super) fn stop(self) {
        drop(self.stop);
        // Nothing is ever sent: its end of the channel goes together with its connection.
        let _ended = self.ended.recv();
    }
}

/// What the watcher does once in [`HOUSEKEEPING_INTERVAL`] besides.
#[derive(Debug)]
pub(super) struct WatcherDuties {
    /// Absent where this process leaves it to others.
    pub(super) housekeeping: Option<Housekeeping>,
    pub(super) identity: FileIdentity,
    pub(super) lost: Lost,
}

impl WatcherDuties {
    /// `false`: there is nothing to go round for any more.
    fn make(&self) -> bool {
        if let Some(why) = self.identity.gone() {
            vital::lose(&self.lost, why);
            return false;
        }
        self.housekeeping.as_ref().is_none_or(Housekeeping::ask)
    }
}

/// Starts the watcher on a connection of its own.
pub(super) fn watch(connection: Connection, hub: Arc<Hub>, rounds: WatcherDuties) -> std::io::Result<Watcher> {
    let (stop, stopped) = mpsc::sync_channel(0);
    let (running, ended) = mpsc::sync_channel(0);
    vital::thread("log-watch", rounds.lost.clone(), move || {
        // Dropped in reverse: the connection first.
        let (_running, connection) = (running, connection);
        let (mut version, mut changed, mut kept, log_limiter) =
            (None, None::<Instant>, Instant::now(), LogLimiter::default());
        loop {
            match look(&connection, &hub, version) {
                Ok(now) if Some(now) != version => (version, changed) = (Some(now), Some(Instant::now())),
                Ok(_) => {}
                // Readers look for themselves when their wait ends, so this costs them time and nothing else.
                Err(error) => {
                    if let Some(suppressed) = log_limiter.allows("look") {
                        tracing::warn!(%error, suppressed, "writes of other processes cannot be seen at once");
                    }
                }
            }
            if kept.elapsed() >= HOUSEKEEPING_INTERVAL {
                kept = Instant::now();
                if !rounds.make() {
                    return;
                }
            }
            let busy = changed.is_some_and(|at| at.elapsed() < WATCH_BUSY_AFTER_CHANGE);
            match stopped.recv_timeout(if busy { WATCH_INTERVAL_BUSY } else { WATCH_INTERVAL_IDLE }) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    })?;
    Ok(Watcher { stop, ended })
}

/// Looks at the version, and where it is another one, at the ends of all partitions.
fn look(connection: &Connection, hub: &Hub, known: Option<i64>) -> rusqlite::Result<i64> {
    let version = connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
    if known != Some(version) {
        let mut partitions = connection.prepare_cached("SELECT topic, partition, next_offset FROM partitions")?;
        let mut rows = partitions.query([])?;
        while let Some(row) = rows.next()? {
            hub.advance(row.get(0)?, row.get(1)?, row.get(2)?);
        }
    }
    Ok(version)
}
