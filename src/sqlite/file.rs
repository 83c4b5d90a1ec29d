//! The database file: found or made, known to be ours, and opened the one way that keeps its promises.
//!
//! The file is only ever opened by SQLite. Its locks are POSIX locks, which a process loses on a file when it closes
//! *any* descriptor of it: reading its head with `std::fs` would quietly take the locks from under the writer.

use super::DatabaseError;
use super::schema;
use crate::limits::{
    DATABASE_BUSY_MAX, DATABASE_BUSY_POLL, DATABASE_MODE, DATABASE_READERS_MAX, ROOM_PROBE_BYTES, WAL_RESTART_BYTES,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// "evtd": what `file` and others tell the database by, and we too.
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"evtd");

/// SQLite before 3.51.3 can corrupt a database whose write-ahead log is restarted by two processes at once.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Bytes of a page. Rows of up to 2,000 bytes stay whole in it (a quarter), and a lone append writes three.
const PAGE_BYTES: u32 = 8192;

/// KiB of pages that the writer keeps: a whole group, so that it is not written before its commit.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
const READER_CACHE_KIB: i64 = 4 * 1024;

/// Bytes of pages that all connections of a process keep: the writer's, the readers', and those of the threads for
/// checkpoints and for what other processes write.
pub(super) const CACHES_BYTES_MAX: usize =
    1024 * (WRITER_CACHE_KIB as usize + (DATABASE_READERS_MAX + 2) * READER_CACHE_KIB as usize);

/// What is percent-encoded in a path of SQLite's URIs: everything but what a path is mostly made of.
const URI_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Held while this process has a descriptor of a database that is not SQLite's: closing it would take SQLite's locks away.
static MAKING: Mutex<()> = Mutex::new(());

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionRole {
    Writer,
    Reader,
    /// Reads a database that this process may not write to.
    ReadOnly,
    /// Reads a database that cannot change: SQLite then needs neither its -wal nor its -shm file.
    Immutable,
}

/// Finds or makes the database. Answers with its canonical path (symbolic links resolved) and the writer's connection.
pub(super) fn open(path: &Path, create: bool) -> Result<(PathBuf, Connection), DatabaseError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        let found = rusqlite::version();
        return Err(DatabaseError::Configuration(format!("SQLite {found} is too old: 3.51.3 or later is needed")));
    }
    let asked = place(path, create)?;
    make(&asked, create)?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let mut connection = Connection::open_with_flags(&asked, flags).map_err(|error| refuse(&asked, &error))?;
    wait_while_busy(&mut connection).map_err(|error| refuse(&asked, &error))?;
    let deadline = Instant::now() + DATABASE_BUSY_MAX;
    // Turning a new database to WAL ends in "busy" without waiting where another process is doing the same.
    while let Err(error) = prepare(&mut connection, &asked, create) {
        match error {
            PrepareError::Busy if Instant::now() < deadline => std::thread::sleep(DATABASE_BUSY_POLL),
            PrepareError::Busy => {
                let detail = format!("{}: another process keeps the database locked", asked.display());
                return Err(DatabaseError::Unavailable(detail));
            }
            PrepareError::Failed(error) => return Err(error),
        }
    }
    set_up(&connection, ConnectionRole::Writer).map_err(|error| refuse(&asked, &error))?;
    let canonical = asked.canonicalize().map_err(|error| unreadable(&asked, &error))?;
    Ok((canonical, connection))
}

/// Finds a database that is only read, on a disk or with rights that allow nothing else. Answers with its canonical path
/// and the way to connect.
pub(super) fn find_to_read(path: &Path) -> Result<(PathBuf, ConnectionRole), DatabaseError> {
    let asked = place(path, false)?;
    make(&asked, false)?;
    let canonical = asked.canonicalize().map_err(|error| unreadable(&asked, &error))?;
    let ours = |role| {
        let connection = connect(&canonical, role)?;
        is_ours(&connection, &canonical)
    };
    let (role, found) = match ours(ConnectionRole::ReadOnly) {
        Err(error) if needs_to_write(&error) => {
            // Whoever has a database open keeps a -wal file; so without one, nothing changes and nothing is missing. If
            // its owner opens it at this very moment, the worst is an error or a list that is a moment old.
            let wal = beside(&canonical, "-wal");
            if std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
                return Err(DatabaseError::Configuration(format!(
                    "{path} cannot be read without writing beside it: {wal} holds a part of it, and SQLite has to make \
                     or change {path}-shm to read that. Use an account that may write there, or copy both files to \
                     another folder ({error})",
                    path = canonical.display(),
                    wal = wal.display()
                )));
            }
            (ConnectionRole::Immutable, ours(ConnectionRole::Immutable))
        }
        found => (ConnectionRole::ReadOnly, found),
    };
    match found.map_err(|error| unreadable_database(&canonical, &error))?? {
        true => Ok((canonical, role)),
        false => Err(DatabaseError::Configuration(format!("{} is empty", canonical.display()))),
    }
}

fn needs_to_write(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
}

fn unreadable_database(path: &Path, error: &rusqlite::Error) -> DatabaseError {
    match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            DatabaseError::Configuration(format!(
                "{} cannot be read ({error}): check the rights of the file",
                path.display()
            ))
        }
        _ => refuse(path, error),
    }
}

/// A file that belongs to the database.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

/// Another connection to a database that [`open`] or [`find_to_read`] has found.
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
    wait_while_busy(&mut connection)?;
    set_up(&connection, role)?;
    Ok(connection)
}

/// Lets a connection wait for a lock, at most [`DATABASE_BUSY_MAX`]. SQLite's own waiting grows to 100 ms a step, which
/// between two busy writers means never.
pub(super) fn wait_while_busy(connection: &mut Connection) -> rusqlite::Result<()> {
    wait_while_busy_at_most(connection, DATABASE_BUSY_MAX)
}

/// The same with another bound.
pub(super) fn wait_while_busy_at_most(connection: &mut Connection, bound: Duration) -> rusqlite::Result<()> {
    let mut since = Instant::now();
    connection.busy_handler(Some(move |tries: i32| {
        if tries == 0 {
            since = Instant::now();
        }
        std::thread::sleep(DATABASE_BUSY_POLL);
        since.elapsed() < bound
    }))
}

/// Makes the file of a database that is missing, which SQLite would let everybody read.
fn make(path: &Path, create: bool) -> Result<(), DatabaseError> {
    // Also if there is nothing to make: another thread may be making the file, and SQLite must not open it yet.
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_missing = matches!(std::fs::metadata(path), Err(error) if error.kind() == ErrorKind::NotFound);
    if !create || !is_missing {
        return Ok(());
    }
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(DATABASE_MODE).open(path);
    made.map(drop).map_err(|error| match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            DatabaseError::Unavailable(format!("{} cannot be made: {error}", path.display()))
        }
        _ => DatabaseError::Configuration(format!("{} cannot be made: {error}", path.display())),
    })
}

/// Refuses a database of which only the write-ahead log is left: SQLite would delete that with all that is in it.
fn refuse_wal_alone(database: &Path, what: &str) -> Result<(), DatabaseError> {
    let wal = beside(database, "-wal");
    if !std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        return Ok(());
    }
    Err(DatabaseError::Configuration(format!(
        "{database} {what}, but its write-ahead log {wal} is there and may hold events. Put the database back, or move \
         the log away to begin anew",
        database = database.display(),
        wal = wal.display()
    )))
}

/// Whether the disk of the database is full. SQLite tells a full quota (EDQUOT) as an I/O error, so a write of our own
/// has to show it.
pub(super) fn is_full(connection: &Connection, error: &rusqlite::Error) -> bool {
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return true;
    }
    let is_write = |error: &rusqlite::ffi::Error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_WRITE;
    let path = connection.path().map(|database| beside(Path::new(database), &format!(".{}.probe", std::process::id())));
    match path {
        Some(path) if error.sqlite_error().is_some_and(is_write) => has_no_room(&path),
        _ => false,
    }
}

/// Whether a small file cannot be written for want of room. Leaves nothing behind.
fn has_no_room(probe: &Path) -> bool {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(DATABASE_MODE).open(probe)?;
        file.write_all(&[0; ROOM_PROBE_BYTES])?;
        file.sync_data()
    };
    let written = write();
    if let Err(error) = std::fs::remove_file(probe)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %probe.display(), %error, "a file that was written to look for room cannot be removed");
    }
    written.is_err_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
}

/// The absolute path, its directory's links resolved, or why there can be no database.
fn place(path: &Path, create: bool) -> Result<PathBuf, DatabaseError> {
    let name = path.file_name().ok_or_else(|| {
        DatabaseError::Configuration(format!("{}: a path to a file is needed, like eventd.db", path.display()))
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|error| {
        let parent = parent.display();
        DatabaseError::Configuration(format!(
            "the directory {parent} of the database cannot be used ({error}): create it"
        ))
    })?;
    let path = parent.join(name);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() && found.len() == 0 => {
            let database = path.canonicalize().map_err(|error| unreadable(&path, &error))?;
            refuse_wal_alone(&database, "is empty").map(|()| path)
        }
        Ok(found) if found.is_file() => Ok(path),
        Ok(_) => Err(DatabaseError::Configuration(format!("{} is no file, so no database", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound && create => {
            refuse_wal_alone(&path, "is missing").map(|()| path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(DatabaseError::Configuration(format!(
            "there is no database {}: `eventd up`, `ingest` and `dispatch` make one",
            path.display()
        ))),
        Err(error) => Err(unreadable(&path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> DatabaseError {
    DatabaseError::Configuration(format!("{} cannot be read: {error}", path.display()))
}

enum PrepareError {
    Busy,
    Failed(DatabaseError),
}

/// Checks whose database it is before anything is changed in it, and lays out a new one.
fn prepare(connection: &mut Connection, path: &Path, create: bool) -> Result<(), PrepareError> {
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => PrepareError::Busy,
        _ => PrepareError::Failed(refuse(path, &error)),
    };
    // In one transaction: another process may be laying it out, and half of each moment looks like nobody's.
    let ours = {
        let one_moment = connection.transaction().map_err(failed)?;
        is_ours(&one_moment, path).map_err(failed)?.map_err(PrepareError::Failed)?
    };
    if !ours && !create {
        let detail = format!("{} is empty: `eventd up`, `ingest` and `dispatch` make a database", path.display());
        return Err(PrepareError::Failed(DatabaseError::Configuration(detail)));
    }
    if !ours {
        connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(failed)?;
    }
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!("{}: this file system has no shared memory, which the database needs", path.display());
        return Err(PrepareError::Failed(DatabaseError::Configuration(detail)));
    }
    if ours {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    // Another process may have laid it out meanwhile.
    if is_ours(&transaction, path).map_err(failed)?.map_err(PrepareError::Failed)? {
        return Ok(());
    }
    transaction.execute_batch(schema::TABLES).map_err(failed)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    transaction.pragma_update(None, "user_version", schema::FORMAT).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    sync_directory(path).map_err(|error| PrepareError::Failed(unreadable(path, &error)))
}

/// `Ok(true)`: ours, of a format that we know. `Ok(false)`: still empty. Anybody else's is an error that says so.
fn is_ours(connection: &Connection, path: &Path) -> rusqlite::Result<Result<bool, DatabaseError>> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, format) = (number("application_id")?, number("user_version")?);
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let path = path.display();
    Ok(match (application, format) {
        (0, 0) if objects == 0 => Ok(false),
        (APPLICATION_ID, schema::FORMAT) => Ok(true),
        (APPLICATION_ID, newer) if newer > schema::FORMAT => Err(DatabaseError::Configuration(format!(
            "{path} was written by a newer eventd: it has format {newer}, and this one knows formats up to {}",
            schema::FORMAT
        ))),
        (APPLICATION_ID, unknown) => {
            Err(DatabaseError::Configuration(format!("{path} has format {unknown}, which no eventd has written")))
        }
        _ => Err(DatabaseError::Configuration(format!("{path} is a database of another program: choose another path"))),
    })
}

/// A new file is found again after a power failure only once its directory is synced too.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn set_up(connection: &Connection, role: ConnectionRole) -> rusqlite::Result<()> {
    // Closing does nothing but close: only the writer that leaves in peace (`checkpoint::leave`) empties the WAL. One
    // whose files were damaged would copy the damage into the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // FULL: a commit is on the disk when it is answered. Checkpointer are ours (`checkpoint.rs`), not a commit's.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |_| Ok(()))?;
    connection.query_row(&format!("PRAGMA journal_size_limit = {WAL_RESTART_BYTES}"), [], |_| Ok(()))?;
    let cache_kib = if role == ConnectionRole::Writer { WRITER_CACHE_KIB } else { READER_CACHE_KIB };
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// Why SQLite will not open it, for the person who has to change something.
fn refuse(path: &Path, error: &rusqlite::Error) -> DatabaseError {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            DatabaseError::Configuration(format!("{path} is not a database: choose another path"))
        }
        Some(ErrorCode::DatabaseCorrupt) => DatabaseError::Configuration(format!("{path} is damaged: {error}")),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            DatabaseError::Configuration(format!(
                "{path} cannot be opened for writing ({error}): check the rights of the file and its directory"
            ))
        }
        _ => DatabaseError::Unavailable(format!("{path} cannot be opened: {error}")),
    }
}
