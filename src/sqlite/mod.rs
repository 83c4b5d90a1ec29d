//! The embedded database: one file, shared by any number of processes, in which the embedded log and its groups are.
//!
//! ```text
//!  log, group ──▶ WriteQueue ──▶ writer (one thread) ──▶ file ──▶ readers (a few connections) ──▶ log, group
//!                             │         │            │ ▲
//!                             │         └─ trim      │ └─ checkpoint (a thread)
//!                             └────▶ Hub ◀── watcher (a thread)
//! ```
//!
//! `file` finds, checks and opens it; `files` looks whether it is still there; `schema` defines its tables; `row` is a
//! record and its checksum; `write` and `writer` change it; `read` reads it; `wait` tells readers of growth; `checkpoint`
//! and `trim` keep it small. Only this module knows that it is SQLite.

mod checkpoint;
mod file;
mod files;
mod hub;
mod operations;
mod read;
mod row;
mod schema;
mod trim;
mod watcher;
mod writer;

pub(crate) use operations::{GroupCommit, TopicKind, Write};
pub(crate) use read::{ReadBatch, ReadError, TopicRow};

use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::limits::{
    DATABASE_CLOSE_MAX, DATABASE_HEADROOM_BYTES, DATABASE_READERS_MAX, FETCH_BYTES_MAX, RECORD_BYTES_MAX,
    WRITE_BATCH_BYTES_MAX, WRITE_QUEUE_BYTES_MAX,
};
use file::ConnectionRole;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Why a database could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseError {
    /// Somebody has to change something: the path, a right, the version of eventd.
    Configuration(String),
    /// It may work later.
    Unavailable(String),
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Configuration(detail) | Self::Unavailable(detail)) = self;
        f.write_str(detail)
    }
}

impl std::error::Error for DatabaseError {}

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    queue: writer::WriteQueue,
    readers: Arc<read::Readers>,
    hub: Arc<hub::Hub>,
    lost: watch::Receiver<Option<String>>,
    /// Kept by a database that is only read: there is nothing that it could lose.
    _never_lost: Option<watch::Sender<Option<String>>>,
    /// `None`: closed.
    watcher: Mutex<Option<watcher::Watcher>>,
}

impl Database {
    /// Opens the database, makes it with `create` where it is missing, and starts its threads. Blocks.
    /// A process that may create also keeps house. `max_bytes` bounds the file.
    pub(crate) fn open(path: &Path, create: bool, max_bytes: Option<u64>) -> Result<Self, DatabaseError> {
        let (path, mut connection) = file::open(path, create)?;
        let unavailable = |error: &dyn fmt::Display| {
            DatabaseError::Unavailable(format!("{} cannot be opened: {error}", path.display()))
        };
        let connect = |role| file::connect(&path, role).map_err(|error| unavailable(&error));
        // What a process that was killed had written but not synced is found again here: synced before it is read.
        checkpoint::checkpoint(&connection, "PASSIVE").map_err(|error| unavailable(&error))?;
        if let Some(max_bytes) = max_bytes {
            bound(&connection, max_bytes).map_err(|error| unavailable(&error))?;
        }
        let trimmer =
            trim::Trimmer::new(&connection, trim::ClockReading::read()).map_err(|error| unavailable(&error))?;
        let (lost, lost_reader) = watch::channel(None);
        let hub = Arc::new(hub::Hub::default());
        let checkpoints = checkpoint::Checkpointer::start(&connection, connect(ConnectionRole::Reader)?, lost.clone())
            .map_err(|error| unavailable(&error))?;
        let files = files::DatabaseFiles::of(&path, &mut connection).map_err(|error| unavailable(&error))?;
        let queue = writer::start(writer::WriterParts {
            connection,
            files,
            hub: Arc::clone(&hub),
            checkpoints,
            trimmer,
            max_bytes,
            lost: lost.clone(),
        })
        .map_err(|error| unavailable(&error))?;
        let rounds = watcher::WatcherDuties {
            housekeeping: create.then(|| queue.housekeeping()),
            identity: files::FileIdentity::of(&path).map_err(|error| unavailable(&error))?,
            lost,
        };
        let watcher = watcher::watch(connect(ConnectionRole::Reader)?, Arc::clone(&hub), rounds)
            .map_err(|error| unavailable(&error))?;
        let readers = Arc::new(read::Readers::new(path.clone(), ConnectionRole::Reader));
        Ok(Self { path, queue, readers, hub, lost: lost_reader, _never_lost: None, watcher: Mutex::new(Some(watcher)) })
    }

    /// Opens a database that is only read, also if this process may not write to it. Writes are refused. Blocks.
    pub(crate) fn open_to_read(path: &Path) -> Result<Self, DatabaseError> {
        let (path, role) = file::find_to_read(path)?;
        let (never_lost, lost) = watch::channel(None);
        Ok(Self {
            readers: Arc::new(read::Readers::new(path.clone(), role)),
            path,
            queue: writer::WriteQueue::stopped(),
            hub: Arc::default(),
            lost,
            _never_lost: Some(never_lost),
            watcher: Mutex::new(None),
        })
    }

    /// The canonical path: the same, whichever way the database was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes, and answers once it is durable. `bytes` is what the write holds in memory.
    pub(crate) async fn write(&self, write: Write, bytes: usize) -> Result<i64, Failure> {
        self.queue.write(write, bytes).await
    }

    /// Ends what is under way, copies everything into the database file and closes it. Later reads and writes are
    /// refused. If this was the last process, the file alone is whole. A database that is lost is left as it is.
    pub(crate) async fn close(&self) {
        let watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take();
        let close = async {
            if let Some(watcher) = watcher {
                tokio::task::spawn_blocking(move || watcher.stop()).await?;
            }
            self.readers.close().await;
            self.queue.close().await;
            Ok::<_, tokio::task::JoinError>(())
        };
        match tokio::time::timeout(DATABASE_CLOSE_MAX, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the database is not closed"),
            Err(_) => {
                let waited = DATABASE_CLOSE_MAX;
                tracing::warn!(?waited, "the database is not closed in time: a copy of it needs its -wal file too");
            }
        }
    }

    /// Waits until the database can be trusted no more, and says why.
    pub(crate) async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the log's writer has stopped".into(),
        }
    }

    /// Reads from `from` on, and waits until `deadline` while there is nothing.
    pub(crate) async fn fetch(
        &self,
        (topic, partition): (i64, u32),
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<ReadBatch, ReadError> {
        let now = Instant::now();
        let deadline = now.checked_add(wait).unwrap_or(now);
        let mut end = self.hub.subscribe(topic, partition);
        loop {
            let read = move |connection: &_| read::fetch(connection, (topic, partition), from, max_bytes);
            let batch = self.readers.read(read).await?;
            if !batch.events.is_empty() || timeout_at(deadline, end.wait_for(|next| *next > from)).await.is_err() {
                return Ok(batch);
            }
        }
    }

    /// The earliest and the next offset.
    pub(crate) async fn ends(&self, topic: i64, partition: u32) -> Result<(i64, i64), ReadError> {
        let ends = self.readers.read(move |connection| read::ends(connection, topic, partition)).await?;
        Ok((ends.earliest, ends.next))
    }

    pub(crate) async fn offset_at(
        &self,
        topic: i64,
        partition: u32,
        timestamp_ms: i64,
    ) -> Result<Option<i64>, ReadError> {
        self.readers.read(move |connection| read::offset_at(connection, (topic, partition), timestamp_ms)).await
    }

    pub(crate) async fn topic(&self, name: &str) -> Result<Option<TopicRow>, ReadError> {
        let name = name.to_owned();
        self.readers.read(move |connection| read::topic(connection, &name)).await
    }

    pub(crate) async fn committed(
        &self,
        group: &str,
        topic: i64,
        partition: u32,
    ) -> Result<Option<PartitionState>, ReadError> {
        let group = group.to_owned();
        self.readers
            .read(move |connection| read::committed(connection, &group, (topic, partition), PartitionState::decode))
            .await
    }

    pub(crate) async fn requested(
        &self,
        group: &str,
        topic: i64,
        partition: u32,
    ) -> Result<Option<OffsetReset>, ReadError> {
        let group = group.to_owned();
        self.readers
            .read(move |connection| read::committed(connection, &group, (topic, partition), OffsetReset::decode))
            .await
    }
}

/// Bytes that a process holds at most for one database: what waits to be written, the transaction that is being made of
/// it, what readers are reading, and the caches of all connections.
pub(crate) const MEMORY_BYTES_MAX: usize = WRITE_QUEUE_BYTES_MAX
    + WRITE_BATCH_BYTES_MAX
    + DATABASE_READERS_MAX * (FETCH_BYTES_MAX + RECORD_BYTES_MAX)
    + file::CACHES_BYTES_MAX;

/// The last line behind `--max-db-bytes`: SQLite itself makes the file no larger, whatever is written.
fn bound(connection: &rusqlite::Connection, max_bytes: u64) -> rusqlite::Result<()> {
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let pages = max_bytes.saturating_add(2 * DATABASE_HEADROOM_BYTES) / page_bytes.unsigned_abs().max(1);
    connection.query_row(&format!("PRAGMA max_page_count = {}", pages.min(u64::from(u32::MAX) - 2)), [], |_| Ok(()))
}
