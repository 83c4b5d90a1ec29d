//! Checkpointer, and the bound on the write-ahead log.
//!
//! ```text
//!  WAL  0 ──── 8 MiB ──── 16 MiB ──── 24 MiB ──── 32 MiB ─────────────────────▶ 1 GiB
//!              copied beside the writer, by a     the writer copies the rest,   writes are
//!              thread of its own                  and the WAL begins anew       refused
//! ```
//!
//! Most of the copying happens beside the writer; under a load that never pauses, the WAL still grows, since what was
//! written meanwhile is never copied in time. So the writer ends it now and then, when little is left to copy.

use super::file::{is_full, wait_while_busy, wait_while_busy_at_most};
use crate::core::outcome::Failure;
use crate::limits::{
    LAST_CHECKPOINT_WAIT_MAX, WAL_BYTES_MAX, WAL_CHECKPOINT_BYTES, WAL_RESTART_BYTES, WAL_RESTART_WAIT_MAX,
};
use crate::log_limiter::LogLimiter;
use crate::vital::{self, Lost};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// How often the writer tries to end a WAL that it could not end.
const RESTART_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The writer's side.
#[derive(Debug)]
pub(super) struct Checkpointer {
    helper: SyncSender<()>,
    /// Answers once the helper has ended.
    helper_ended: Receiver<()>,
    page_bytes: u64,
    /// How large the WAL was after the last commit, when the helper was asked, when a restart was tried.
    wal_bytes: u64,
    asked_at_bytes: u64,
    restart_tried: Option<Instant>,
    log_limiter: LogLimiter,
}

impl Checkpointer {
    /// Starts the helper, which works on a connection of its own.
    pub(super) fn start(writer: &Connection, helper: Connection, lost: Lost) -> std::io::Result<Self> {
        let page_bytes = writer
            .query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0))
            .map_err(std::io::Error::other)?
            .unsigned_abs();
        // One request that waits is enough: a checkpoint copies everything.
        let (sender, requests) = sync_channel(1);
        let (running, ended) = sync_channel(0);
        vital::thread("log-checkpoint", lost.clone(), move || {
            // Dropped in reverse: the connection first.
            let (_running, helper) = (running, helper);
            let log_limiter = LogLimiter::default();
            for () in requests {
                let Err(error) = checkpoint(&helper, "PASSIVE") else { continue };
                if passes(&helper, &error) {
                    if let Some(suppressed) = log_limiter.allows("checkpoint") {
                        tracing::warn!(%error, suppressed, "the write-ahead log cannot be copied into the database now");
                    }
                    continue;
                }
                vital::lose(&lost, format!("a checkpoint failed: {error}"));
                return;
            }
        })?;
        Ok(Self {
            helper: sender,
            helper_ended: ended,
            page_bytes,
            wal_bytes: 0,
            asked_at_bytes: 0,
            restart_tried: None,
            log_limiter: LogLimiter::default(),
        })
    }

    /// Asks for a checkpoint if the WAL has grown enough. `frames` is what it held after the commit. An error is the
    /// database's.
    pub(super) fn after_commit(&mut self, writer: &mut Connection, frames: u64) -> rusqlite::Result<()> {
        self.wal_bytes = frames * self.page_bytes;
        if self.wal_bytes < self.asked_at_bytes {
            self.asked_at_bytes = 0;
        }
        if self.wal_bytes >= self.asked_at_bytes + WAL_CHECKPOINT_BYTES {
            self.asked_at_bytes = self.wal_bytes;
            // Full: it was asked already. FileDamage: it has said why the log is lost.
            let _ = self.helper.try_send(());
            if self.wal_bytes >= WAL_RESTART_BYTES {
                return self.restart(writer);
            }
        }
        Ok(())
    }

    /// Why nothing may be written now: the WAL is at its bound and cannot be ended.
    pub(super) fn refusal(&mut self, writer: &mut Connection) -> Option<Failure> {
        if self.wal_bytes < WAL_BYTES_MAX {
            return None;
        }
        self.restart_soon(writer);
        (self.wal_bytes >= WAL_BYTES_MAX).then(|| {
            let detail = "the write-ahead log cannot be copied into the database: its disk is full, or another program \
                          keeps the database open for reading";
            Failure::refused("log-full", detail)
        })
    }

    /// Tries to end the WAL, at most once a second; its space can then be used again.
    pub(super) fn restart_soon(&mut self, writer: &mut Connection) {
        if self.restart_tried.is_none_or(|at| at.elapsed() >= RESTART_AGAIN_AFTER)
            && let Err(error) = self.restart(writer)
            && let Some(suppressed) = self.log_limiter.allows("restart")
        {
            tracing::warn!(%error, suppressed, "the write-ahead log cannot be copied into the database now");
        }
    }

    fn restart(&mut self, writer: &mut Connection) -> rusqlite::Result<()> {
        self.restart_tried = Some(Instant::now());
        wait_while_busy_at_most(writer, WAL_RESTART_WAIT_MAX)?;
        let done = checkpoint(writer, "RESTART");
        wait_while_busy(writer)?;
        match done {
            Ok(true) => {
                (self.wal_bytes, self.asked_at_bytes) = (0, 0);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) if passes(writer, &error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Copies everything into the database, empties the WAL and closes the connection: the last thing that a process
    /// does. If it is the last process, the database file alone is whole afterwards.
    pub(super) fn leave(self, mut writer: Connection) {
        drop(self.helper);
        // Nothing is ever sent: its end of the channel goes together with its connection.
        let _ended = self.helper_ended.recv();
        // Most of it beside other writers; then the rest, while they wait.
        let emptied = checkpoint(&writer, "PASSIVE")
            .and_then(|_| wait_while_busy_at_most(&mut writer, LAST_CHECKPOINT_WAIT_MAX))
            .and_then(|()| checkpoint(&writer, "TRUNCATE"));
        match emptied {
            Ok(true) => {}
            Ok(false) => tracing::info!(
                "the database is still in use by another process: until that one ends, a copy of the database needs its \
                 -wal file too"
            ),
            Err(error) => tracing::warn!(
                %error,
                "the write-ahead log cannot be copied into the database: a copy of the database needs its -wal file too"
            ),
        }
        // The last connection removes the empty WAL.
        if let Err(error) = writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false) {
            tracing::warn!(%error, "the write-ahead log stays where it is");
        }
        if let Err((_, error)) = writer.close() {
            tracing::warn!(%error, "the database cannot be closed");
        }
    }
}

/// Copies what can be copied. `false`: not everything, since another process is at its checkpoint, or a reader was in
/// the way.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<bool> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        let (busy, frames, copied): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && frames == copied)
    })
}

/// An error that leaves what was committed where it is, in the WAL, and may pass.
fn passes(connection: &Connection, error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
        || is_full(connection, error)
}
