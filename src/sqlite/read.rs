//! Reads: short transactions on a few connections of their own, on threads that may block.
//!
//! While a read transaction lasts, the write-ahead log cannot be emptied. So each one is bounded in records and bytes, and
//! ends before its reader waits for anything.

use super::connection::{self, ConnectionRole};
use super::row::{self, RecordRow};
use super::schema;
use crate::core::event::Event;
use crate::limits::DATABASE_READERS_MAX;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a read waits for one of the connections.
const READ_WAIT_MAX: Duration = Duration::from_secs(10);

/// Records in one fetch. Bounds how long one read transaction lasts if records are tiny.
const FETCH_EVENTS_MAX: usize = 10_000;

/// Why a read failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    /// The partition does not hold the offset.
    #[error("offset {from} is outside the log, which holds {earliest} to {latest}")]
    OutOfRange { from: i64, earliest: i64, latest: i64 },
    /// The record at this offset is not what was stored.
    #[error("the record at offset {offset} is damaged: {detail}")]
    Corrupt { offset: i64, detail: String },
    /// The database could not be read. A later read may work.
    #[error("{0}")]
    Failed(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(format!("cannot read the database: {error}"))
    }
}

/// The events of one fetch. All fields are of the same moment.
#[derive(Debug)]
pub(crate) struct ReadBatch {
    pub(crate) events: Vec<Event>,
    /// The offset at which the next fetch starts.
    pub(crate) next: i64,
    /// The offset that the next record of the partition will get.
    pub(crate) latest: i64,
}

/// One row of the table `topics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicRow {
    pub(crate) id: i64,
    pub(crate) partitions: u32,
    pub(crate) retention: Option<Duration>,
}

/// The connections for reads.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    role: ConnectionRole,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    /// Opens no connection yet: each is opened when it is first needed.
    pub(super) fn new(path: PathBuf, role: ConnectionRole) -> Self {
        Self { path, role, idle: Mutex::default(), permits: Arc::new(Semaphore::new(DATABASE_READERS_MAX)) }
    }

    /// Waits for the reads in progress, refuses later ones, and closes the connections.
    pub(super) async fn close(&self) {
        // This does not take long, because each read is bounded in records and bytes.
        if let Ok(permits) = self.permits.acquire_many(DATABASE_READERS_MAX as u32).await {
            self.permits.close();
            drop(permits);
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs `work` in a read transaction, in which it sees the database at one moment.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let permit = tokio::time::timeout(READ_WAIT_MAX, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| ReadError::Failed("too many reads of the database are in progress: try again later".into()))?
            .map_err(|_| ReadError::Failed("the database is closed".into()))?;
        let readers = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = idle.map_or_else(|| connection::connect(&readers.path, readers.role), Ok)?;
            connection.prepare_cached("BEGIN")?.execute([])?;
            let result = work(&connection);
            // If this fails, the connection is dropped instead of used again.
            connection.prepare_cached("COMMIT")?.execute([])?;
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            // Last: `close` holds all permits when all connections are back.
            drop(permit);
            result
        });
        read.await.map_err(|error| ReadError::Failed(format!("the thread of a read panicked: {error}")))?
    }
}

/// Reads the records from `from` on, at least one if there is any.
pub(super) fn fetch(
    connection: &Connection,
    (topic, partition): (i64, u32),
    from: i64,
    max_bytes: usize,
) -> Result<ReadBatch, ReadError> {
    let row = partition_row(connection, topic, partition)?;
    let (earliest, latest) = (row.earliest, row.next);
    if !(earliest..=latest).contains(&from) {
        return Err(ReadError::OutOfRange { from, earliest, latest });
    }
    let (mut events, mut next, mut bytes) = (Vec::new(), from, 0);
    let mut statement = connection.prepare_cached(row::SELECT)?;
    let mut rows = statement.query((topic, partition, from, latest))?;
    while next < latest && events.len() < FETCH_EVENTS_MAX {
        let record = match rows.next() {
            Ok(Some(row)) => {
                let stored = RecordRow::new(row)?;
                bytes += stored.size_bytes();
                if bytes > max_bytes && !events.is_empty() {
                    break;
                }
                stored.checked(next).map_err(str::to_owned)
            }
            Ok(None) => Err("it is missing".to_owned()),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        match record {
            Ok(record) => events.push(Event { offset: next, record }),
            // Answer with the records before the damage first. The next fetch starts at the damaged one.
            Err(_) if !events.is_empty() => break,
            Err(detail) => return Err(ReadError::Corrupt { offset: next, detail }),
        }
        next += 1;
    }
    Ok(ReadBatch { events, next, latest })
}

/// Reads the row of a partition that must exist.
pub(super) fn partition_row(
    connection: &Connection,
    topic: i64,
    partition: u32,
) -> Result<schema::PartitionRow, ReadError> {
    schema::partition(connection, topic, partition)?
        .ok_or_else(|| ReadError::Failed(format!("the topic has no partition {partition}")))
}

/// The lowest offset of a record with this timestamp or a later one. The table `times` says from which offset on such a
/// record can be, and a short scan finds it.
pub(super) fn offset_at(
    connection: &Connection,
    (topic, partition): (i64, u32),
    timestamp_ms: i64,
) -> Result<Option<i64>, ReadError> {
    let earliest = partition_row(connection, topic, partition)?.earliest;
    let indexed: Option<i64> = connection
        .prepare_cached(
            "SELECT offset FROM times WHERE topic = ?1 AND partition = ?2 AND timestamp_ms < ?3
             ORDER BY offset DESC LIMIT 1",
        )?
        .query_row((topic, partition, timestamp_ms), |row| row.get(0))
        .optional()?;
    let from = indexed.unwrap_or(earliest).max(earliest);
    let found = connection
        .prepare_cached(
            "SELECT offset FROM records WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND timestamp_ms >= ?4
             ORDER BY offset LIMIT 1",
        )?
        .query_row((topic, partition, from, timestamp_ms), |row| row.get(0))
        .optional()?;
    Ok(found)
}

/// Reads the topic with this name.
pub(super) fn topic(connection: &Connection, name: &str) -> Result<Option<TopicRow>, ReadError> {
    let found = connection
        .prepare_cached("SELECT id, partitions, retention_ms FROM topics WHERE name = ?1")?
        .query_row([name], |row| {
            let retention = row.get::<_, Option<i64>>(2)?.map(|ms| Duration::from_millis(ms.unsigned_abs()));
            Ok(TopicRow { id: row.get(0)?, partitions: row.get(1)?, retention })
        })
        .optional()?;
    Ok(found)
}

/// Reads the names of all topics.
pub(super) fn topics(connection: &Connection) -> Result<Vec<String>, ReadError> {
    let mut statement = connection.prepare_cached("SELECT name FROM topics")?;
    let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names)
}

/// Reads the names of the groups that have commits in a topic.
pub(super) fn groups(connection: &Connection, topic: i64) -> Result<Vec<String>, ReadError> {
    let mut statement = connection.prepare_cached("SELECT DISTINCT name FROM commits WHERE topic = ?1")?;
    let names = statement.query_map([topic], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(names)
}

/// What a group last committed in a partition: an offset and a text, decoded by `decode`. The inner error says why the
/// commit cannot be read. A later read fails in the same way.
pub(super) fn committed<T>(
    connection: &Connection,
    group: &str,
    (topic, partition): (i64, u32),
    decode: impl Fn(i64, &str) -> Result<T, String>,
) -> Result<Option<Result<T, String>>, ReadError> {
    let found = connection
        .prepare_cached("SELECT watermark, settled FROM commits WHERE topic = ?1 AND partition = ?2 AND name = ?3")?
        .query_row((topic, partition, group), |row| {
            // SQLite stores any type in any column, and any bytes in a text.
            let (offset, text) = (row.get_ref(0)?.as_i64(), row.get_ref(1)?.as_str());
            Ok(match (offset, text) {
                (Ok(offset), Ok(text)) => decode(offset, text),
                (Err(error), _) => Err(format!("its offset cannot be read: {error}")),
                (_, Err(error)) => Err(format!("its text cannot be read: {error}")),
            })
        })
        .optional();
    match found {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Ok(Some(Err(error.to_string()))),
        found => Ok(found?),
    }
}
