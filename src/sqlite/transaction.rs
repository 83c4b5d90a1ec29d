//! Runs a transaction, and tells how it failed: whether its writes are certainly not stored, and whether the database
//! can still be used.

use super::disk_space::is_full;
use crate::core::outcome::{Failure, FailureCode};
use rusqlite::{Connection, ErrorCode};

/// How a transaction failed.
pub(super) enum TransactionError {
    /// Another process keeps the database locked. Nothing is stored.
    Busy,
    /// The disk is full. Nothing is stored.
    Full,
    /// Any other error before the commit. Nothing is stored.
    Before(rusqlite::Error),
    /// Any other error in the commit. The writes may be stored.
    InCommit(rusqlite::Error),
    /// A file of the database was removed, replaced or shortened. If `committed`, the writes may be in it.
    FileDamage { why: String, committed: bool },
}

impl TransactionError {
    pub(super) fn before(connection: &Connection, error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ if is_full(connection, &error) => Self::Full,
            _ => Self::Before(error),
        }
    }

    /// A busy database or a full disk stops a commit before its last frame is written. Without that frame the
    /// transaction is not stored, so these errors mean the same as before the commit.
    fn in_commit(connection: &Connection, error: rusqlite::Error) -> Self {
        match Self::before(connection, error) {
            Self::Before(error) => Self::InCommit(error),
            known => known,
        }
    }

    /// The answer to the writes of this transaction.
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Busy => {
                Failure::refused(FailureCode::LogBusy, "another process keeps the database locked: try again later")
            }
            Self::Full => Failure::refused(FailureCode::LogFull, "the disk of the database is full: free space on it"),
            Self::Before(error) => Failure::refused(FailureCode::LogLost, format!("the database failed: {error}")),
            Self::InCommit(error) => {
                Failure::unknown(FailureCode::LogLost, format!("the database failed in a commit: {error}"))
            }
            Self::FileDamage { why, committed: false } => {
                Failure::refused(FailureCode::LogLost, format!("the log is lost: {why}"))
            }
            Self::FileDamage { why, committed: true } => {
                Failure::unknown(FailureCode::LogLost, format!("the log is lost: {why}"))
            }
        }
    }

    /// Why the log is lost, if this error makes it so: it is then unknown what is on the disk.
    pub(super) fn lost_reason(&self) -> Option<String> {
        match self {
            Self::Busy | Self::Full => None,
            Self::Before(error) | Self::InCommit(error) => Some(error.to_string()),
            Self::FileDamage { why, .. } => Some(why.clone()),
        }
    }
}

/// Runs `work` between `BEGIN IMMEDIATE` and `COMMIT`. After an error the transaction is rolled back.
pub(super) fn in_transaction<'c, T>(
    connection: &'c Connection,
    work: impl FnOnce(&'c Connection) -> rusqlite::Result<T>,
) -> Result<T, TransactionError> {
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]);
    let before = |error| TransactionError::before(connection, error);
    run("BEGIN IMMEDIATE").map_err(before)?;
    let result = match work(connection) {
        Ok(value) => run("COMMIT").map(|_| value).map_err(|error| TransactionError::in_commit(connection, error)),
        Err(error) => Err(before(error)),
    };
    if result.is_err() && !connection.is_autocommit() {
        // After some errors SQLite has rolled back already. If this rollback fails too, the database cannot be used.
        run("ROLLBACK").map_err(|error| match &result {
            Err(TransactionError::InCommit(_)) => TransactionError::InCommit(error),
            _ => TransactionError::Before(error),
        })?;
    }
    result
}
