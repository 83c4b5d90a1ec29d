//! A thread that notices the writes of other processes, and starts the housekeeping of this one.
//!
//! ```text
//!  our writer ── after COMMIT ───────────────────────────────────▶ Hub ──▶ readers that wait for a partition
//!  other processes ──▶ file ◀── PRAGMA data_version ── watcher ──────▲
//! ```
//!
//! SQLite changes the number `data_version` with every commit of another connection. The watcher reads it every 5 ms
//! while any process writes, otherwise every 50 ms. Each look costs a few microseconds.

use super::files::FileIdentity;
use super::hub::Hub;
use super::queue::HousekeepingTrigger;
use crate::log_limiter::LogLimiter;
use crate::vital::{self, Lost};
use rusqlite::Connection;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How often the watcher looks while other processes write. A look costs a few microseconds, and this is how much later
/// a destination in another process sees an event.
const BUSY_INTERVAL: Duration = Duration::from_millis(5);

/// How often the watcher looks while no process writes.
const IDLE_INTERVAL: Duration = Duration::from_millis(50);

/// How long after the last write of another process the watcher keeps the shorter interval.
const BUSY_AFTER_CHANGE: Duration = Duration::from_secs(1);

/// How often the watcher checks the files and asks for housekeeping.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A running watcher. Dropping it tells the thread to end.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: mpsc::SyncSender<()>,
    /// Disconnects when the thread has ended.
    ended: mpsc::Receiver<()>,
}

impl Watcher {
    /// Ends the thread, and waits until its connection is closed.
    pub(super) fn stop(self) {
        drop(self.stop);
        // The thread never sends. It drops its end of the channel after its connection.
        let _ended = self.ended.recv();
    }
}

/// What the watcher does once in [`CHECK_INTERVAL`].
#[derive(Debug)]
pub(super) struct PeriodicChecks {
    /// `None`: this process leaves housekeeping to others.
    pub(super) housekeeping: Option<HousekeepingTrigger>,
    pub(super) identity: FileIdentity,
    pub(super) lost: Lost,
}

impl PeriodicChecks {
    /// Checks that the files are still there, and asks for housekeeping. `false`: the log is lost or closed, so the
    /// watcher can end.
    fn run(&self) -> bool {
        if let Some(why) = self.identity.gone() {
            vital::lose(&self.lost, why);
            return false;
        }
        self.housekeeping.as_ref().is_none_or(HousekeepingTrigger::request)
    }
}

/// Starts the watcher on a connection of its own.
pub(super) fn start(connection: Connection, hub: Arc<Hub>, checks: PeriodicChecks) -> std::io::Result<Watcher> {
    let (stop, stopped) = mpsc::sync_channel(0);
    let (running, ended) = mpsc::sync_channel(0);
    vital::thread("log-watch", checks.lost.clone(), move || {
        // Variables are dropped in reverse order: the connection first, then the sender that says that it is closed.
        let (_running, connection) = (running, connection);
        let (mut version, mut changed_at, mut checked_at) = (None, None::<Instant>, Instant::now());
        let log_limiter = LogLimiter::default();
        loop {
            match look(&connection, &hub, version) {
                Ok(found) if Some(found) != version => (version, changed_at) = (Some(found), Some(Instant::now())),
                Ok(_) => {}
                // Readers look themselves when their wait ends, so this only delays them.
                Err(error) => {
                    if let Some(suppressed) = log_limiter.allows("look") {
                        tracing::warn!(%error, suppressed, "cannot see the writes of other processes at once");
                    }
                }
            }
            if checked_at.elapsed() >= CHECK_INTERVAL {
                checked_at = Instant::now();
                if !checks.run() {
                    return;
                }
            }
            let is_busy = changed_at.is_some_and(|at| at.elapsed() < BUSY_AFTER_CHANGE);
            match stopped.recv_timeout(if is_busy { BUSY_INTERVAL } else { IDLE_INTERVAL }) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    })?;
    Ok(Watcher { stop, ended })
}

/// Reads the data version. If it is not the known one, reads the next offsets of all partitions too.
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
