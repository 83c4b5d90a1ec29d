//! Reads: short transactions on a few connections of their own, on threads that may block.
//!
//! A read transaction holds the write-ahead log back for as long as it lasts, so each one is bounded in records and
//! bytes and ends before its reader waits for anything.

use super::file::{self, ConnectionRole};
use super::row::{self, RecordRow};
use super::schema;
use crate::core::event::Event;
use crate::limits::{DATABASE_READ_WAIT_MAX, DATABASE_READERS_MAX, FETCH_EVENTS_MAX};
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Why nothing was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ReadError {
    OutOfRange { from: i64, earliest: i64, latest: i64 },
    Corrupt { offset: i64, detail: String },
    Failed(String),
}

impl From<rusqlite::Error> for ReadError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(format!("the database cannot be read: {error}"))
    }
}

/// What a fetch read, of one moment.
#[derive(Debug)]
pub(crate) struct ReadBatch {
    pub(crate) events: Vec<Event>,
    pub(crate) next: i64,
    pub(crate) latest: i64,
}

/// A topic as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicRow {
    pub(crate) id: i64,
    pub(crate) partitions: u32,
    pub(crate) retention: Option<Duration>,
}

/// The connections that read.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    role: ConnectionRole,
    idle: Mutex<Vec<Connection>>,
    turns: Arc<Semaphore>,
}

impl Readers {
    /// None is open yet.
    pub(super) fn new(path: PathBuf, role: ConnectionRole) -> Self {
        Self { path, role, idle: Mutex::default(), turns: Arc::new(Semaphore::new(DATABASE_READERS_MAX)) }
    }

    /// Ends all reads and closes the connections: waits for those that are under way, and refuses others from then on.
    pub(super) async fn close(&self) {
        // No read lasts long: each is bounded in records and bytes.
        if let Ok(turns) = self.turns.acquire_many(DATABASE_READERS_MAX as u32).await {
            self.turns.close();
            drop(turns);
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs `work` in a read transaction, where it sees one moment of the database.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Connection) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let turn = tokio::time::timeout(DATABASE_READ_WAIT_MAX, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| ReadError::Failed("too many reads of the database are under way".into()))?
            .map_err(|_| ReadError::Failed("the database is closed".into()))?;
        let readers = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = idle.map_or_else(|| file::connect(&readers.path, readers.role), Ok)?;
            connection.prepare_cached("BEGIN")?.execute([])?;
            let done = work(&connection);
            // A connection that cannot even end a read is not used again.
            connection.prepare_cached("COMMIT")?.execute([])?;
            readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            // Last, so that whoever has all turns has all connections.
            drop(turn);
            done
        });
        read.await.map_err(|error| ReadError::Failed(format!("a read broke off: {error}")))?
    }
}

/// Reads records from `from` on.
pub(super) fn fetch(
    connection: &Connection,
    (topic, partition): (i64, u32),
    from: i64,
    max_bytes: usize,
) -> Result<ReadBatch, ReadError> {
    let ends = ends(connection, topic, partition)?;
    let (earliest, latest) = (ends.earliest, ends.next);
    if !(earliest..=latest).contains(&from) {
        return Err(ReadError::OutOfRange { from, earliest, latest });
    }
    let (mut events, mut next, mut bytes) = (Vec::new(), from, 0);
    let mut statement = connection.prepare_cached(row::SELECT)?;
    let mut rows = statement.query((topic, partition, from, latest))?;
    while next < latest && events.len() < FETCH_EVENTS_MAX {
        let found = match rows.next() {
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
        match found {
            Ok(record) => events.push(Event { offset: next, record }),
            // What is before it is whole, and goes out first.
            Err(_) if !events.is_empty() => break,
            Err(detail) => return Err(ReadError::Corrupt { offset: next, detail }),
        }
        next += 1;
    }
    Ok(ReadBatch { events, next, latest })
}

/// Where the partition begins and ends.
pub(super) fn ends(connection: &Connection, topic: i64, partition: u32) -> Result<schema::PartitionRow, ReadError> {
    schema::ends(connection, topic, partition)?
        .ok_or_else(|| ReadError::Failed(format!("the topic has no partition {partition}")))
}

/// The lowest offset of a record with this timestamp or a later one: from the last place of which the index by time
/// knows that everything before it is earlier, a short scan.
pub(super) fn offset_at(
    connection: &Connection,
    (topic, partition): (i64, u32),
    timestamp_ms: i64,
) -> Result<Option<i64>, ReadError> {
    let ends = ends(connection, topic, partition)?;
    let indexed: Option<i64> = connection
        .prepare_cached(
            "SELECT offset FROM times WHERE topic = ?1 AND partition = ?2 AND timestamp_ms < ?3
             ORDER BY offset DESC LIMIT 1",
        )?
        .query_row((topic, partition, timestamp_ms), |row| row.get(0))
        .optional()?;
    let from = indexed.unwrap_or(ends.earliest).max(ends.earliest);
    let found = connection
        .prepare_cached(
            "SELECT offset FROM records WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND timestamp_ms >= ?4
             ORDER BY offset LIMIT 1",
        )?
        .query_row((topic, partition, from, timestamp_ms), |row| row.get(0))
        .optional()?;
    Ok(found)
}

/// The topic of this name.
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

/// What a group last committed in a partition: an offset and the text beside it, as `decode` reads them.
pub(super) fn committed<T>(
    connection: &Connection,
    group: &str,
    (topic, partition): (i64, u32),
    decode: impl Fn(i64, &str) -> Result<T, String>,
) -> Result<Option<T>, ReadError> {
    let found: Option<(i64, String)> = connection
        .prepare_cached("SELECT watermark, settled FROM commits WHERE topic = ?1 AND partition = ?2 AND name = ?3")?
        .query_row((topic, partition, group), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((offset, text)) = found else { return Ok(None) };
    decode(offset, &text).map(Some).map_err(|detail| {
        ReadError::Failed(format!("the commit of {group:?} in partition {partition} cannot be read: {detail}"))
    })
}
