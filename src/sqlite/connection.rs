//! Connections to a database that `file` has found: their settings, and how long they wait for a lock.

use crate::limits::{DATABASE_BUSY_MAX, DATABASE_BUSY_POLL, DATABASE_READERS_MAX, WAL_RESTART_LATEST_BYTES};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::{Duration, Instant};

/// KiB of pages that the writer caches. A whole batch fits, so that its pages are not written before the commit.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
const READER_CACHE_KIB: i64 = 4 * 1024;

/// Bytes of pages that all connections of a process cache: the writer, the readers, the checkpoint thread and the watcher.
pub(super) const CACHES_BYTES_MAX: usize =
    1024 * (WRITER_CACHE_KIB as usize + (DATABASE_READERS_MAX + 2) * READER_CACHE_KIB as usize);

/// The characters that are percent-encoded in a URI of SQLite: all except those that paths mostly consist of.
const URI_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionRole {
    Writer,
    Reader,
    /// Reads a database that this process may not write to.
    ReadOnly,
    /// Reads a database that no process changes. SQLite then needs neither its -wal nor its -shm file.
    Immutable,
}

/// Opens a connection to a database that `file::open` or `file::find_to_read` has found.
pub(super) fn connect(canonical: &Path, role: ConnectionRole) -> rusqlite::Result<Connection> {
    let write = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let read = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = match role {
        ConnectionRole::Writer | ConnectionRole::Reader => Connection::open_with_flags(canonical, write)?,
        ConnectionRole::ReadOnly => Connection::open_with_flags(canonical, read)?,
        ConnectionRole::Immutable => {
            let path = percent_encode(canonical.as_os_str().as_encoded_bytes(), URI_PATH);
            Connection::open_with_flags(format!("file:{path}?immutable=1"), read | OpenFlags::SQLITE_OPEN_URI)?
        }
    };
    wait_if_busy(&mut connection)?;
    configure(&connection, role)?;
    Ok(connection)
}

/// Sets what every connection needs.
pub(super) fn configure(connection: &Connection, role: ConnectionRole) -> rusqlite::Result<()> {
    // Closing a connection must not start a checkpoint. Only a writer that ends in order empties the write-ahead log
    // (`Checkpointer::close`). If the files are damaged, a checkpoint would copy the damage into the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // FULL: a commit is on the disk when it is answered.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // The checkpoint thread decides when to copy (`checkpoint`), and not each commit.
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    // A log that is restarted in time keeps its length. To shorten it and to let it grow again costs time in each round.
    connection.query_row(&format!("PRAGMA journal_size_limit = {WAL_RESTART_LATEST_BYTES}"), [], |_| Ok(()))?;
    let cache_kib = if role == ConnectionRole::Writer { WRITER_CACHE_KIB } else { READER_CACHE_KIB };
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// Makes a connection wait for a lock, up to [`DATABASE_BUSY_MAX`]. SQLite's own waiting doubles its steps up to 100 ms,
/// and between two busy writers such a slow one may never get the lock.
pub(super) fn wait_if_busy(connection: &mut Connection) -> rusqlite::Result<()> {
    wait_if_busy_at_most(connection, DATABASE_BUSY_MAX)
}

/// Like [`wait_if_busy`], with another bound.
pub(super) fn wait_if_busy_at_most(connection: &mut Connection, bound: Duration) -> rusqlite::Result<()> {
    let mut since = Instant::now();
    connection.busy_handler(Some(move |tries: i32| {
        if tries == 0 {
            since = Instant::now();
        }
        std::thread::sleep(DATABASE_BUSY_POLL);
        since.elapsed() < bound
    }))
}
