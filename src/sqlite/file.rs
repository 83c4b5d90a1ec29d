//! Finds or creates the database file, checks that it is an eventd database, and opens it.
//!
//! Only SQLite may open the file. Its locks are POSIX locks, and a process loses them when it closes *any* descriptor of
//! the file. If this module read the file's first bytes with `std::fs`, the writer would lose its locks without notice.

use super::DatabaseError;
use super::connection::{self, ConnectionRole};
use super::schema;
use crate::limits::{DATABASE_BUSY_MAX, DATABASE_BUSY_POLL, DATABASE_MODE};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// "evtd": marks the database as one of eventd, for us and for programs like `file`.
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"evtd");

/// SQLite before 3.51.3 can corrupt a database whose write-ahead log is restarted by two processes at once.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Bytes of a page. A row of up to 2,000 bytes (a quarter) stays in one page, and a lone append writes three pages.
const PAGE_BYTES: u32 = 8192;

/// Held while this process has a descriptor of a database that is not SQLite's. Closing it would drop SQLite's locks.
static CREATING: Mutex<()> = Mutex::new(());

/// Finds or creates the database. Answers with its canonical path (all symbolic links resolved) and the writer's
/// connection.
pub(super) fn open(path: &Path, create: bool) -> Result<(PathBuf, Connection), DatabaseError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        let found = rusqlite::version();
        return Err(DatabaseError::Configuration(format!("SQLite {found} is too old: 3.51.3 or later is needed")));
    }
    let path = resolve(path, create)?;
    create_file(&path, create)?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let mut connection = Connection::open_with_flags(&path, flags).map_err(|error| cannot_open(&path, &error))?;
    connection::wait_if_busy(&mut connection).map_err(|error| cannot_open(&path, &error))?;
    let deadline = Instant::now() + DATABASE_BUSY_MAX;
    // If another process also turns a new database to WAL mode, SQLite reports "busy" without waiting.
    while let Err(error) = prepare(&mut connection, &path, create) {
        match error {
            PrepareError::Busy if Instant::now() < deadline => std::thread::sleep(DATABASE_BUSY_POLL),
            PrepareError::Busy => {
                let detail = format!("cannot open {}: another process keeps the database locked", path.display());
                return Err(DatabaseError::Unavailable(detail));
            }
            PrepareError::Failed(error) => return Err(error),
        }
    }
    connection::configure(&connection, ConnectionRole::Writer).map_err(|error| cannot_open(&path, &error))?;
    let canonical = path.canonicalize().map_err(|error| cannot_read(&path, &error))?;
    Ok((canonical, connection))
}

/// Finds a database that is only read, also if the disk or the permissions forbid to write. Answers with its canonical
/// path and the role to connect with.
pub(super) fn find_to_read(path: &Path) -> Result<(PathBuf, ConnectionRole), DatabaseError> {
    let path = resolve(path, false)?;
    create_file(&path, false)?;
    let canonical = path.canonicalize().map_err(|error| cannot_read(&path, &error))?;
    let check = |role| {
        let connection = connection::connect(&canonical, role)?;
        is_eventd_database(&connection, &canonical)
    };
    let (role, found) = match check(ConnectionRole::ReadOnly) {
        Err(error) if needs_to_write(&error) => {
            // Every process that has the database open keeps a -wal file. So without one, no process changes the database
            // and nothing is missing from it. If its owner opens it right now, the worst is an error or an outdated list.
            let wal = sibling(&canonical, "-wal");
            if std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
                return Err(DatabaseError::Configuration(format!(
                    "cannot read {path} without permission to write: {wal} holds a part of it, and to read that SQLite has \
                     to create or change {path}-shm. Use an account that may write there, or copy both files to another \
                     folder ({error})",
                    path = canonical.display(),
                    wal = wal.display()
                )));
            }
            (ConnectionRole::Immutable, check(ConnectionRole::Immutable))
        }
        found => (ConnectionRole::ReadOnly, found),
    };
    match found.map_err(|error| cannot_read_database(&canonical, &error))?? {
        true => Ok((canonical, role)),
        false => Err(DatabaseError::Configuration(format!("{} is empty", canonical.display()))),
    }
}

fn needs_to_write(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied))
}

/// The path of a file that belongs to the database: the path of the database with this suffix.
pub(super) fn sibling(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Creates the file of a database that does not exist. SQLite would create it readable for every user.
fn create_file(path: &Path, create: bool) -> Result<(), DatabaseError> {
    // Take the lock even if there is nothing to create: another thread may be creating the file, and SQLite must not open
    // it before that thread has closed its descriptor.
    let _creating = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_missing = matches!(std::fs::metadata(path), Err(error) if error.kind() == ErrorKind::NotFound);
    if !create || !is_missing {
        return Ok(());
    }
    let created = OpenOptions::new().write(true).create(true).truncate(false).mode(DATABASE_MODE).open(path);
    created.map(drop).map_err(|error| {
        let detail = format!("cannot create {}: {error}", path.display());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DatabaseError::Unavailable(detail),
            _ => DatabaseError::Configuration(detail),
        }
    })
}

/// Refuses a database of which only the write-ahead log is left. SQLite would delete the log with the events in it.
/// `what` says what happened to the database.
fn refuse_orphaned_wal(database: &Path, what: &str) -> Result<(), DatabaseError> {
    let wal = sibling(database, "-wal");
    if !std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        return Ok(());
    }
    Err(DatabaseError::Configuration(format!(
        "{database} {what}, but its write-ahead log {wal} exists and may hold events. Put the database back, or move the log \
         away to start with an empty database",
        database = database.display(),
        wal = wal.display()
    )))
}

/// The absolute path, with the links of its directory resolved. Refuses a path that cannot be a database.
fn resolve(path: &Path, create: bool) -> Result<PathBuf, DatabaseError> {
    let name = path.file_name().ok_or_else(|| {
        DatabaseError::Configuration(format!("{} is not the path of a file: write one like eventd.db", path.display()))
    })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize().map_err(|error| {
        let parent = parent.display();
        DatabaseError::Configuration(format!("cannot use the directory {parent} of the database ({error}): create it"))
    })?;
    let path = parent.join(name);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() && found.len() == 0 => {
            let database = path.canonicalize().map_err(|error| cannot_read(&path, &error))?;
            refuse_orphaned_wal(&database, "is empty").map(|()| path)
        }
        Ok(found) if found.is_file() => Ok(path),
        Ok(found) if found.is_dir() => {
            Err(DatabaseError::Configuration(format!("{} is a directory: write the path of a file", path.display())))
        }
        Ok(_) => Err(DatabaseError::Configuration(format!("{} is not a regular file", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound && create => {
            refuse_orphaned_wal(&path, "is missing").map(|()| path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(DatabaseError::Configuration(format!(
            "there is no database {}: `eventd up`, `ingest` and `dispatch` create one",
            path.display()
        ))),
        Err(error) => Err(cannot_read(&path, &error)),
    }
}

enum PrepareError {
    Busy,
    Failed(DatabaseError),
}

/// Checks that the database is one of eventd before anything is changed in it. Creates the tables of a new one.
fn prepare(connection: &mut Connection, path: &Path, create: bool) -> Result<(), PrepareError> {
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => PrepareError::Busy,
        _ => PrepareError::Failed(cannot_open(path, &error)),
    };
    // In one transaction: if another process creates the tables in between, the answers would not fit together.
    let is_ours = {
        let transaction = connection.transaction().map_err(failed)?;
        is_eventd_database(&transaction, path).map_err(failed)?.map_err(PrepareError::Failed)?
    };
    if !is_ours && !create {
        let detail = format!("{} is empty: `eventd up`, `ingest` and `dispatch` create a database", path.display());
        return Err(PrepareError::Failed(DatabaseError::Configuration(detail)));
    }
    if !is_ours {
        connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(failed)?;
    }
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        let detail = format!(
            "cannot use {}: its file system has no shared memory, which the database needs. Use a local file system",
            path.display()
        );
        return Err(PrepareError::Failed(DatabaseError::Configuration(detail)));
    }
    if is_ours {
        return upgrade(connection).map_err(failed);
    }
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    // Another process may have created the tables in the meantime.
    if is_eventd_database(&transaction, path).map_err(failed)?.map_err(PrepareError::Failed)? {
        return Ok(());
    }
    transaction.execute_batch(schema::TABLES).map_err(failed)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
    transaction.pragma_update(None, "user_version", schema::FORMAT).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    sync_directory(path).map_err(|error| PrepareError::Failed(cannot_read(path, &error)))
}

/// Brings the tables of an older eventd to the present format. All of it happens, or nothing.
fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let format =
        |connection: &Connection| connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0));
    if format(connection)? == schema::FORMAT {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Another process may have done it in the meantime.
    if format(&transaction)? == schema::FORMAT_1 {
        transaction.execute_batch(schema::UPGRADE_FROM_1)?;
        transaction.pragma_update(None, "user_version", schema::FORMAT)?;
    }
    transaction.commit()
}

/// `Ok(true)`: a database of eventd, in a format that this version knows. `Ok(false)`: still empty. Any other database is
/// an error that says so.
fn is_eventd_database(connection: &Connection, path: &Path) -> rusqlite::Result<Result<bool, DatabaseError>> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, format) = (number("application_id")?, number("user_version")?);
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let path = path.display();
    Ok(match (application, format) {
        (0, 0) if objects == 0 => Ok(false),
        (APPLICATION_ID, schema::FORMAT | schema::FORMAT_1) => Ok(true),
        (APPLICATION_ID, newer) if newer > schema::FORMAT => Err(DatabaseError::Configuration(format!(
            "{path} was written by a newer eventd: it has format {newer}, and this one knows formats up to {}. Use the \
             newer eventd",
            schema::FORMAT
        ))),
        (APPLICATION_ID, unknown) => {
            Err(DatabaseError::Configuration(format!("{path} has format {unknown}, which no eventd has written")))
        }
        _ => Err(DatabaseError::Configuration(format!("{path} is a database of another program: use another path"))),
    })
}

/// Syncs the directory of a new file. Without this, the file may be missing after a power failure.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> DatabaseError {
    DatabaseError::Configuration(format!("cannot read {}: {error}", path.display()))
}

fn cannot_read_database(path: &Path, error: &rusqlite::Error) -> DatabaseError {
    match needs_to_write(error) {
        true => DatabaseError::Configuration(format!(
            "cannot read {} ({error}): check the permissions of the file",
            path.display()
        )),
        false => cannot_open(path, error),
    }
}

fn cannot_open(path: &Path, error: &rusqlite::Error) -> DatabaseError {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            DatabaseError::Configuration(format!("{path} is not a database: use another path"))
        }
        Some(ErrorCode::DatabaseCorrupt) => DatabaseError::Configuration(format!("{path} is damaged: {error}")),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            DatabaseError::Configuration(format!(
                "cannot open {path} for writing ({error}): check the permissions of the file and its directory"
            ))
        }
        _ => DatabaseError::Unavailable(format!("cannot open {path}: {error}")),
    }
}
