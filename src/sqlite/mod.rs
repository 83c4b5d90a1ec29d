//! The embedded database: one SQLite file, shared by any number of processes, that holds the embedded log and its groups.
//!
//! ```text
//!  log, group ──▶ queue ──▶ writer (one thread) ──▶ file ──▶ readers (a few connections) ──▶ log, group
//!                             │         │            │ ▲
//!                             │         └─ trim      │ └─ checkpoint (a thread)
//!                             └────▶ hub ◀── watcher (a thread)
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `file`, `connection`, `schema` | find or create the database, open connections, define the tables |
//! | `queue`, `writer`, `transaction`, `operations` | queue the writes, write them in batches, tell what an error means |
//! | `read`, `row` | read records, and check them with their checksums |
//! | `hub`, `watcher` | wake readers when a partition grows, in this process and in others |
//! | `trim`, `trusted_clock`, `lost_events` | remove records past their retention, unless the clock may be wrong |
//! | `checkpoint`, `wal`, `database_sync` | keep the write-ahead log small |
//! | `files`, `disk_space` | notice that the files were removed or that the disk is full |
//!
//! Only this module knows that the database is SQLite.

mod checkpoint;
mod connection;
mod database_sync;
mod disk_space;
mod file;
mod files;
mod hub;
mod lost_events;
mod operations;
mod queue;
mod read;
mod row;
mod schema;
mod transaction;
mod trim;
mod trusted_clock;
mod wal;
mod watcher;
mod writer;

pub(crate) use operations::{GroupCommit, TopicKind, Write};
pub(crate) use read::{ReadBatch, ReadError, TopicRow};

use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::limits::{
    DATABASE_READERS_MAX, FETCH_BYTES_MAX, RECORD_BYTES_MAX, WRITE_BATCH_BYTES_MAX, WRITE_QUEUE_BYTES_MAX,
};
use connection::ConnectionRole;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Why a database could not be opened. Each holds the message for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// The operator has to change something: the path, a permission, the version of eventd.
    #[error("{0}")]
    Configuration(String),
    /// A later try may work.
    #[error("{0}")]
    Unavailable(String),
}

/// How long a process that ends waits until its database is closed. After that it leaves no more behind than a crash does.
const CLOSE_MAX: Duration = Duration::from_secs(15);

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    queue: queue::WriteQueue,
    readers: Arc<read::Readers>,
    hub: Arc<hub::Hub>,
    lost: watch::Receiver<Option<String>>,
    /// A database that is only read cannot be lost. Keeping the sender here makes `lost` wait for ever.
    _never_lost: Option<watch::Sender<Option<String>>>,
    /// `None` after the database was closed.
    watcher: Mutex<Option<watcher::Watcher>>,
}

impl Database {
    /// Opens the database and starts its threads. Blocks. With `create`, creates a database that does not exist, and
    /// removes records past their retention from now on. `max_bytes` bounds the database.
    pub(crate) fn open(path: &Path, create: bool, max_bytes: Option<u64>) -> Result<Self, DatabaseError> {
        let (path, mut connection) = file::open(path, create)?;
        let unavailable =
            |error: &dyn fmt::Display| DatabaseError::Unavailable(format!("cannot open {}: {error}", path.display()));
        let connect = |role| connection::connect(&path, role).map_err(|error| unavailable(&error));
        // A process that was killed may have written frames that are not synced. Sync them before any of them is read.
        wal::checkpoint(&connection, "PASSIVE").map_err(|error| unavailable(&error))?;
        if let Some(max_bytes) = max_bytes {
            bound(&connection, max_bytes).map_err(|error| unavailable(&error))?;
        }
        let trimmer =
            trim::Trimmer::new(&connection, trusted_clock::ClockReading::now()).map_err(|error| unavailable(&error))?;
        let (lost, lost_reader) = watch::channel(None);
        let hub = Arc::new(hub::Hub::default());
        let database = database_sync::DatabaseSync::of(&path).map_err(|error| unavailable(&error))?;
        let checkpoints = connect(ConnectionRole::Reader)?;
        let checkpointer = checkpoint::Checkpointer::start(&connection, checkpoints, database, lost.clone())
            .map_err(|error| unavailable(&error))?;
        let files = files::DatabaseFiles::of(&path, &mut connection).map_err(|error| unavailable(&error))?;
        let queue = writer::start(writer::WriterParts {
            connection,
            files,
            hub: Arc::clone(&hub),
            checkpointer,
            trimmer,
            max_bytes,
            lost: lost.clone(),
        })
        .map_err(|error| unavailable(&error))?;
        let checks = watcher::PeriodicChecks {
            housekeeping: create.then(|| queue.housekeeping_trigger()),
            identity: files::FileIdentity::of(&path).map_err(|error| unavailable(&error))?,
            lost,
        };
        let watcher = watcher::start(connect(ConnectionRole::Reader)?, Arc::clone(&hub), checks)
            .map_err(|error| unavailable(&error))?;
        let readers = Arc::new(read::Readers::new(path.clone(), ConnectionRole::Reader));
        Ok(Self { path, queue, readers, hub, lost: lost_reader, _never_lost: None, watcher: Mutex::new(Some(watcher)) })
    }

    /// Opens a database to read it, also if this process has no permission to write. Refuses every write. Blocks.
    pub(crate) fn open_to_read(path: &Path) -> Result<Self, DatabaseError> {
        let (path, role) = file::find_to_read(path)?;
        let (never_lost, lost) = watch::channel(None);
        Ok(Self {
            readers: Arc::new(read::Readers::new(path.clone(), role)),
            path,
            queue: queue::WriteQueue::stopped(),
            hub: Arc::default(),
            lost,
            _never_lost: Some(never_lost),
            watcher: Mutex::new(None),
        })
    }

    /// The canonical path, with all symbolic links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes, and answers once the write is durable. `bytes` is the memory that the write takes.
    pub(crate) async fn write(&self, write: Write, bytes: usize) -> Result<i64, Failure> {
        self.queue.write(write, bytes).await
    }

    /// Ends the reads and writes in progress, copies everything into the database file and closes it. Later reads and
    /// writes are refused. If this was the last process, the file alone holds everything. If the database is lost, its
    /// files stay as they are.
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
        match tokio::time::timeout(CLOSE_MAX, close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot close the database"),
            Err(_) => {
                let waited_secs = CLOSE_MAX.as_secs();
                tracing::warn!(waited_secs, "the database is not closed in time: a copy of it needs its -wal file too");
            }
        }
    }

    /// Waits until the database is lost, which means that it is unknown what is on the disk. Answers with the reason.
    pub(crate) async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "the log's writer has stopped".into(),
        }
    }

    /// Reads records from `from` on. If there are none, waits up to `wait` for the first one.
    ///
    /// Reads only if there may be a record: a read needs another thread and a transaction. A caller that has read
    /// everything usually asks again at once.
    pub(crate) async fn fetch(
        &self,
        (topic, partition): (i64, u32),
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<ReadBatch, ReadError> {
        let now = Instant::now();
        let deadline = now.checked_add(wait).unwrap_or(now);
        let mut next_offset = self.hub.subscribe(topic, partition);
        let mut may_have_grown = *next_offset.borrow() != Some(from);
        loop {
            let has_ended = !may_have_grown
                && timeout_at(deadline, next_offset.wait_for(|next| next.is_some_and(|next| next > from)))
                    .await
                    .is_err();
            let read = move |connection: &_| read::fetch(connection, (topic, partition), from, max_bytes);
            let batch = self.readers.read(read).await?;
            if has_ended || !batch.events.is_empty() {
                return Ok(batch);
            }
            may_have_grown = false;
        }
    }

    /// The earliest and the next offset of a partition.
    pub(crate) async fn ends(&self, topic: i64, partition: u32) -> Result<(i64, i64), ReadError> {
        let row = self.readers.read(move |connection| read::partition_row(connection, topic, partition)).await?;
        Ok((row.earliest, row.next))
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

    /// The names of all topics.
    pub(crate) async fn topics(&self) -> Result<Vec<String>, ReadError> {
        self.readers.read(read::topics).await
    }

    pub(crate) async fn groups(&self, topic: i64) -> Result<Vec<String>, ReadError> {
        self.readers.read(move |connection| read::groups(connection, topic)).await
    }

    /// The inner error says why the commit cannot be read.
    pub(crate) async fn committed(
        &self,
        group: &str,
        topic: i64,
        partition: u32,
    ) -> Result<Option<Result<PartitionState, String>>, ReadError> {
        let group = group.to_owned();
        self.readers
            .read(move |connection| read::committed(connection, &group, (topic, partition), PartitionState::decode))
            .await
    }

    /// The inner error says why the request cannot be read.
    pub(crate) async fn requested(
        &self,
        group: &str,
        topic: i64,
        partition: u32,
    ) -> Result<Option<Result<OffsetReset, String>>, ReadError> {
        let group = group.to_owned();
        self.readers
            .read(move |connection| read::committed(connection, &group, (topic, partition), OffsetReset::decode))
            .await
    }
}

/// The most memory that a process uses for one database: the write queue, the transaction in progress, the reads in
/// progress, and the caches of all connections.
pub(crate) const MEMORY_BYTES_MAX: usize = WRITE_QUEUE_BYTES_MAX
    + WRITE_BATCH_BYTES_MAX
    + DATABASE_READERS_MAX * (FETCH_BYTES_MAX + RECORD_BYTES_MAX)
    + connection::CACHES_BYTES_MAX;

/// Makes SQLite itself bound the file, in case the checks of `--max-db-bytes` fail.
fn bound(connection: &rusqlite::Connection, max_bytes: u64) -> rusqlite::Result<()> {
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let pages = max_bytes.saturating_add(2 * operations::HEADROOM_BYTES) / page_bytes.unsigned_abs().max(1);
    connection.query_row(&format!("PRAGMA max_page_count = {}", pages.min(u64::from(u32::MAX) - 2)), [], |_| Ok(()))
}
