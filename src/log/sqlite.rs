//! The embedded log: topics in one database file, which any number of processes on one machine share.
//!
//! Offsets have no gaps here. A record is durable when its append is answered, because the transaction is fsynced. Readers
//! in the same process see it at once. Readers in another process see it within 5 ms, or within 50 ms if no process has
//! written for a second. `docs/embedded-log.md` says what the file contains and how to operate it.

use super::{CreateTopic, Engine, FetchError, Fetched, Log, OpenError, check_topic};
use crate::BoxFuture;
use crate::core::event::Record;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::side_topics::{DEAD, is_side_topic};
use crate::limits::{APPEND_BYTES_MAX, RECORD_BYTES_MAX};
use crate::sqlite::{self, Database, ReadError, TopicKind, TopicRow, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The most memory that a process uses for an embedded log.
pub const MEMORY_BYTES_MAX: usize = sqlite::MEMORY_BYTES_MAX;

/// How a process uses the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// How long topics that are opened with `create` keep their records from now on. `None` leaves each topic as it is. For
    /// a new topic this value comes before the one of [`CreateTopic`].
    pub retention: Option<Duration>,
    /// How long dead letters are kept.
    pub dead_retention: Option<Duration>,
    /// Bytes in the database at which appends are refused. Dead letters and commits may use another 64 MiB.
    pub max_db_bytes: Option<u64>,
    /// Create the database if it does not exist. Such a process also removes records past their retention.
    pub create: bool,
}

/// An embedded log, opened.
#[derive(Debug)]
pub struct Sqlite {
    database: Arc<Database>,
    settings: Settings,
}

impl Sqlite {
    /// Opens the database at `path`.
    pub async fn open(path: impl AsRef<Path>, settings: Settings) -> Result<Arc<Self>, OpenError> {
        let path = path.as_ref().to_owned();
        let open = move || Database::open(&path, settings.create, settings.max_db_bytes);
        let database = tokio::task::spawn_blocking(open).await.map_err(|error| {
            OpenError::Unavailable(format!("the thread that opens the database panicked: {error}"))
        })??;
        Ok(Arc::new(Self { database: Arc::new(database), settings }))
    }

    /// Opens the database at `path` to read it, also if its folder or disk cannot be written to.
    pub async fn open_to_read(path: impl AsRef<Path>) -> Result<Arc<Self>, OpenError> {
        let path = path.as_ref().to_owned();
        let database =
            tokio::task::spawn_blocking(move || Database::open_to_read(&path)).await.map_err(|error| {
                OpenError::Unavailable(format!("the thread that opens the database panicked: {error}"))
            })??;
        Ok(Arc::new(Self { database: Arc::new(database), settings: Settings::default() }))
    }

    /// The path of the database, with every symbolic link resolved.
    pub fn path(&self) -> PathBuf {
        self.database.path().to_owned()
    }

    pub(crate) fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// The value of `--retention` or `--dead-retention` that applies to a topic.
    fn retention_of(&self, topic: &str) -> Option<Duration> {
        if topic.ends_with(DEAD) {
            self.settings.dead_retention
        } else if is_side_topic(topic) {
            None
        } else {
            self.settings.retention
        }
    }

    async fn open_topic(&self, name: &str, create: Option<CreateTopic>) -> Result<Arc<dyn Log>, OpenError> {
        check_topic(name)?;
        let unavailable = |error: ReadError| OpenError::Unavailable(error.to_string());
        let mut found = self.database.topic(name).await.map_err(unavailable)?;
        if let Some(CreateTopic { partitions, retention }) = create {
            if partitions == 0 {
                return Err(OpenError::Configuration(format!("topic {name:?} needs at least one partition")));
            }
            let retain = self.retention_of(name);
            let is_unchanged = |topic: &TopicRow| retain.is_none() || topic.retention == retain;
            if !found.as_ref().is_some_and(is_unchanged) {
                let write = Write::Topic { name: name.into(), partitions, retention, retain };
                self.database.write(write, 0).await.map_err(|failure| OpenError::Unavailable(failure.to_string()))?;
                found = self.database.topic(name).await.map_err(unavailable)?;
            }
        }
        let topic = found.ok_or_else(|| OpenError::Missing { topic: name.into() })?;
        // Side topics may grow beyond `--max-db-bytes`: they let events settle, and settled events can be removed.
        let kind = if is_side_topic(name) { TopicKind::Side } else { TopicKind::Main };
        Ok(Arc::new(SqliteLog { database: Arc::clone(&self.database), name: name.into(), topic, kind }))
    }
}

impl Engine for Sqlite {
    fn open<'a>(
        &'a self,
        topic: &'a str,
        create: Option<CreateTopic>,
    ) -> BoxFuture<'a, Result<Arc<dyn Log>, OpenError>> {
        Box::pin(self.open_topic(topic, create))
    }

    fn topics(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async move { self.database.topics().await.map_err(failure) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.database.close())
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(self.database.lost())
    }
}

/// One topic of an embedded log.
#[derive(Debug)]
struct SqliteLog {
    database: Arc<Database>,
    name: String,
    topic: TopicRow,
    kind: TopicKind,
}

impl SqliteLog {
    async fn append_all(&self, partition: u32, records: Vec<Record>) -> Result<i64, Failure> {
        let bytes: usize = records.iter().map(Record::window_bytes).sum();
        match records.as_slice() {
            [] => return Err(Failure::refused(FailureCode::AppendEmpty, "an append needs at least one record")),
            [record] if record.size_bytes() > RECORD_BYTES_MAX => {
                let size = record.size_bytes();
                let detail = format!("the record has {size} bytes, but the log accepts at most {RECORD_BYTES_MAX}");
                return Err(Failure::refused(FailureCode::EventTooLarge, detail));
            }
            [_] => {}
            records => {
                let size: usize = records.iter().map(Record::size_bytes).sum();
                if size > APPEND_BYTES_MAX {
                    let detail = format!("the append has {size} bytes, but at most {APPEND_BYTES_MAX} fit into one");
                    return Err(Failure::refused(FailureCode::AppendTooLarge, detail));
                }
            }
        }
        let write = Write::Append { topic: self.topic.id, partition, records, kind: self.kind };
        self.database.write(write, bytes).await
    }

    async fn ends(&self, partition: u32) -> Result<(i64, i64), Failure> {
        self.database.ends(self.topic.id, partition).await.map_err(failure)
    }
}

impl Log for SqliteLog {
    fn topic(&self) -> &str {
        &self.name
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        // An embedded topic never gets more partitions than it was created with.
        Box::pin(std::future::ready(Ok(self.topic.partitions)))
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(self.append_all(partition, records))
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let batch = self.database.fetch((self.topic.id, partition), from, max_bytes, wait).await;
            let batch = batch.map_err(|error| match error {
                ReadError::OutOfRange { from, earliest, latest } => FetchError::OutOfRange { from, earliest, latest },
                ReadError::Corrupt { offset, detail } => FetchError::Corrupt { offset, detail },
                ReadError::Failed(detail) => FetchError::Unavailable(detail),
            })?;
            Ok(Fetched { events: batch.events, next: batch.next, latest: batch.latest })
        })
    }

    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move { Ok(self.ends(partition).await?.0) })
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move { Ok(self.ends(partition).await?.1) })
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        Box::pin(async move { self.database.offset_at(self.topic.id, partition, timestamp_ms).await.map_err(failure) })
    }
}

impl From<sqlite::DatabaseError> for OpenError {
    fn from(error: sqlite::DatabaseError) -> Self {
        match error {
            sqlite::DatabaseError::Configuration(detail) => Self::Configuration(detail),
            sqlite::DatabaseError::Unavailable(detail) => Self::Unavailable(detail),
        }
    }
}

/// The failure is *refused*: a read changes nothing.
fn failure(error: ReadError) -> Failure {
    Failure::refused(FailureCode::LogUnavailable, error.to_string())
}
