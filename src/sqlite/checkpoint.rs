//! Checkpoints: keep the write-ahead log (WAL) small.
//!
//! ```text
//!  WAL  0 ──── 8 MiB ──── 16 MiB ──── 24 MiB ──── 32 MiB ─────────────────────▶ 1 GiB
//!              a thread copies the log into       the writer copies the rest,   writes are
//!              the database, and syncs it         and the log starts again      refused
//! ```
//!
//! The thread does most of the copying while the writer continues. Under a load that never pauses, it never catches up
//! with the writer, and SQLite reuses the log only once all of it is copied. So from 32 MiB on the writer itself copies
//! what is left.
//!
//! All writes wait while the writer copies, so its part must be small. SQLite syncs the database only if a checkpoint has
//! caught up with the writer. Without a sync by the thread, the writer would have to sync everything that was copied
//! since the last restart, which takes tens of milliseconds. So the thread syncs the database after each copy
//! ([`DatabaseSync`]), and the writer restarts the log directly after that.

use super::connection::{wait_if_busy, wait_if_busy_at_most};
use super::database_sync::DatabaseSync;
use super::disk_space::is_full;
use super::wal::checkpoint;
use crate::core::outcome::{Failure, FailureCode};
use crate::limits::{WAL_CHECKPOINT_BYTES, WAL_RESTART_BYTES, WAL_RESTART_LATEST_BYTES};
use crate::log_limiter::LogLimiter;
use crate::vital::{self, Lost};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How long the writer waits after it could not restart the log, before it tries again.
const RESTART_RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long the writer waits for readers that still need the old log before it restarts the log. A read is far shorter.
const WAL_RESTART_WAIT_MAX: Duration = Duration::from_millis(50);

/// How long a process that leaves waits for readers and for other writers, so that it can empty the write-ahead log.
const LAST_CHECKPOINT_WAIT_MAX: Duration = Duration::from_secs(2);

/// Bytes of the write-ahead log at which writes are refused: a reader outside of eventd holds it, or the disk is full.
const WAL_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The writer's side of the checkpoints.
#[derive(Debug)]
pub(super) struct Checkpointer {
    /// Asks the checkpoint thread for a checkpoint.
    thread: SyncSender<()>,
    /// Disconnects when the checkpoint thread has ended.
    thread_ended: Receiver<()>,
    /// The number of the writer's last request, or of its last restart, which needs a new sync.
    asked: Arc<AtomicU64>,
    /// The value of `asked` when the thread began what it copied and synced last.
    synced: Arc<AtomicU64>,
    page_bytes: u64,
    /// The size of the log after the last commit.
    wal_bytes: u64,
    /// The size of the log when the thread was last asked.
    asked_at_bytes: u64,
    restart_tried_at: Option<Instant>,
    log_limiter: LogLimiter,
}

impl Checkpointer {
    /// Starts the checkpoint thread, which works on a connection of its own.
    pub(super) fn start(
        writer: &Connection,
        connection: Connection,
        database: DatabaseSync,
        lost: Lost,
    ) -> std::io::Result<Self> {
        let page_bytes = writer
            .query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0))
            .map_err(std::io::Error::other)?
            .unsigned_abs();
        // One waiting request is enough, because a checkpoint copies everything.
        let (sender, requests) = sync_channel(1);
        let (running, ended) = sync_channel(0);
        let (asked, synced) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (asked_last, has_synced) = (Arc::clone(&asked), Arc::clone(&synced));
        vital::thread("log-checkpoint", lost.clone(), move || {
            // Variables are dropped in reverse order: the connection first, then the sender that says that it is closed.
            let (_running, connection) = (running, connection);
            let log_limiter = LogLimiter::default();
            for () in requests {
                let request = asked_last.load(Ordering::Acquire);
                let error = match checkpoint(&connection, "PASSIVE") {
                    Err(error) => error,
                    Ok(_) => {
                        if let Err(error) = database.sync() {
                            vital::lose(&lost, format!("a sync of the database failed: {error}"));
                            return;
                        }
                        has_synced.store(request, Ordering::Release);
                        continue;
                    }
                };
                if may_pass(&connection, &error) {
                    if let Some(suppressed) = log_limiter.allows("checkpoint") {
                        tracing::warn!(%error, suppressed, "cannot copy the write-ahead log into the database now");
                    }
                    continue;
                }
                vital::lose(&lost, format!("a checkpoint failed: {error}"));
                return;
            }
        })?;
        Ok(Self {
            thread: sender,
            thread_ended: ended,
            asked,
            synced,
            page_bytes,
            wal_bytes: 0,
            asked_at_bytes: 0,
            restart_tried_at: None,
            log_limiter: LogLimiter::default(),
        })
    }

    /// Starts a checkpoint if the log has grown enough. Call it after each commit, with the number of frames that the log
    /// holds then. An error means that the log is lost.
    pub(super) fn after_commit(&mut self, writer: &mut Connection, frames: u64) -> rusqlite::Result<()> {
        self.wal_bytes = frames * self.page_bytes;
        if self.wal_bytes < self.asked_at_bytes {
            self.asked_at_bytes = 0;
        }
        if self.wal_bytes >= self.asked_at_bytes + WAL_CHECKPOINT_BYTES {
            self.asked_at_bytes = self.wal_bytes;
            self.asked.fetch_add(1, Ordering::Release);
            // If the channel is full, the thread was asked already. If the thread is gone, it has marked the log as lost.
            let _ = self.thread.try_send(());
            return if self.wal_bytes >= WAL_RESTART_LATEST_BYTES { self.restart(writer) } else { Ok(()) };
        }
        if self.wal_bytes >= WAL_RESTART_BYTES && self.is_synced() { self.restart(writer) } else { Ok(()) }
    }

    /// Whether the thread has copied and synced since it was last asked, and since the log was last restarted.
    fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire) == self.asked.load(Ordering::Relaxed)
    }

    /// Refuses writes while the log is at its bound and cannot be restarted.
    pub(super) fn refusal(&mut self, writer: &mut Connection) -> Option<Failure> {
        if self.wal_bytes < WAL_BYTES_MAX {
            return None;
        }
        self.restart_soon(writer);
        (self.wal_bytes >= WAL_BYTES_MAX).then(|| {
            let detail = "the write-ahead log is full and cannot be copied into the database: its disk is full, or another \
                          program keeps reading an old state of the database";
            Failure::refused(FailureCode::LogFull, detail)
        })
    }

    /// Tries to restart the log, so that its space is used again, at most once a second.
    pub(super) fn restart_soon(&mut self, writer: &mut Connection) {
        if self.restart_tried_at.is_none_or(|at| at.elapsed() >= RESTART_RETRY_DELAY)
            && let Err(error) = self.restart(writer)
            && let Some(suppressed) = self.log_limiter.allows("restart")
        {
            tracing::warn!(%error, suppressed, "cannot copy the write-ahead log into the database now");
        }
    }

    fn restart(&mut self, writer: &mut Connection) -> rusqlite::Result<()> {
        self.restart_tried_at = Some(Instant::now());
        self.asked.fetch_add(1, Ordering::Release);
        wait_if_busy_at_most(writer, WAL_RESTART_WAIT_MAX)?;
        let restarted = checkpoint(writer, "RESTART");
        wait_if_busy(writer)?;
        match restarted {
            Ok(true) => {
                (self.wal_bytes, self.asked_at_bytes) = (0, 0);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) if may_pass(writer, &error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Copies everything into the database, empties the log and closes the connection. This is the last thing that a
    /// process does. If it is the last process, the database file alone holds everything afterwards.
    pub(super) fn close(self, mut writer: Connection) {
        drop(self.thread);
        // The thread never sends. It drops its end of the channel after its connection.
        let _ended = self.thread_ended.recv();
        // The first checkpoint copies most of the log while other processes write. The second copies the rest while they wait.
        let emptied = checkpoint(&writer, "PASSIVE")
            .and_then(|_| wait_if_busy_at_most(&mut writer, LAST_CHECKPOINT_WAIT_MAX))
            .and_then(|()| checkpoint(&writer, "TRUNCATE"));
        match emptied {
            Ok(true) => {}
            Ok(false) => tracing::info!(
                "the database is still in use by another process: until that process ends, a copy of the database needs \
                 its -wal file too"
            ),
            Err(error) => tracing::warn!(
                %error,
                "cannot copy the write-ahead log into the database: a copy of the database needs its -wal file too"
            ),
        }
        // If this is the last connection, SQLite removes the empty log when it closes.
        if let Err(error) = writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false) {
            tracing::warn!(%error, "cannot remove the empty write-ahead log");
        }
        if let Err((_, error)) = writer.close() {
            tracing::warn!(%error, "cannot close the database");
        }
    }
}

/// Whether the error may pass. What was committed stays in the log.
fn may_pass(connection: &Connection, error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
        || is_full(connection, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tokio::sync::watch;

    const WAIT_MAX: Duration = Duration::from_secs(10);

    fn open(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection
    }

    fn wait_until_synced(checkpointer: &Checkpointer) {
        let began = Instant::now();
        while !checkpointer.is_synced() {
            assert!(began.elapsed() < WAIT_MAX, "the thread does not sync");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_writer_restarts_the_log_only_after_a_sync_that_was_asked_for_at_that_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let mut writer = open(&path);
        let database = DatabaseSync::of(&path).unwrap();
        let (lost, _reader) = watch::channel(None);
        let mut checkpointer = Checkpointer::start(&writer, open(&path), database, lost).unwrap();
        let page_bytes = checkpointer.page_bytes;
        let mut commit = |checkpointer: &mut Checkpointer, bytes| {
            checkpointer.after_commit(&mut writer, bytes / page_bytes).unwrap();
            checkpointer.restart_tried_at.is_some()
        };
        assert!(!commit(&mut checkpointer, WAL_CHECKPOINT_BYTES));
        wait_until_synced(&checkpointer);
        assert!(!commit(&mut checkpointer, WAL_RESTART_BYTES), "the sync was of 8 MiB");
        wait_until_synced(&checkpointer);
        assert!(commit(&mut checkpointer, WAL_RESTART_BYTES + page_bytes));
        assert!(!checkpointer.is_synced(), "a restart uses a sync up");
        checkpointer.close(writer);
    }
}
