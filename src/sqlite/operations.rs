//! The writes, with one function for each kind.
//!
//! They run inside the writer's transaction. Each is answered with a number or with a refusal, which does not affect the
//! other writes of the transaction. An error of SQLite ends the whole transaction.

use super::row;
use super::schema::{self, PartitionRow};
use crate::clock::{now_ms, whole_ms};
use crate::core::event::Record;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::OffsetReset;
use rusqlite::{CachedStatement, Connection, OptionalExtension};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Bytes beyond `--max-db-bytes` in which dead letters and commits still find room.
pub(super) const HEADROOM_BYTES: u64 = 64 * 1024 * 1024;

/// Records between two rows of the table `times`. Finding an offset by its time scans at most this many records.
const TIME_INDEX_RECORDS: i64 = 1_024;

/// One write. Each is answered with a number.
#[derive(Debug)]
pub(crate) enum Write {
    /// Appends records to a partition. Answered with the offset of the first.
    Append { topic: i64, partition: u32, records: Vec<Record>, kind: TopicKind },
    /// Commits the progress of a group. Answered with 0.
    Commit(GroupCommit),
    /// Starts the next epoch of a group in a topic. Answered with the epoch.
    Join { group: String, topic: i64 },
    /// Requests offset resets, by partition. They are stored as commits of a name that is not a group. Answered with 0.
    Request { group: String, topic: i64, resets: BTreeMap<u32, OffsetReset> },
    /// Removes a group from a topic, with its commits. Answered with 0.
    Forget { group: String, topic: i64 },
    /// Creates the topic if it does not exist. `retain` is also applied to a topic that exists. Answered with its id.
    Topic { name: String, partitions: u32, retention: Option<Duration>, retain: Option<Duration> },
}

/// The progress of a group in a partition.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    pub(crate) group: String,
    pub(crate) topic: i64,
    pub(crate) partition: u32,
    pub(crate) epoch: i64,
    pub(crate) watermark: i64,
    /// The end of the highest settled offset, at or past the watermark.
    pub(crate) settled_end: i64,
    pub(crate) settled: String,
    /// The lowest offset whose event may be unsettled.
    pub(crate) needed_from: i64,
}

const STORE_COMMIT: &str =
    "INSERT OR REPLACE INTO commits (name, topic, partition, watermark, settled, epoch, committed_ms, needed_from)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// What a topic is for. It decides what happens to its records at `--max-db-bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicKind {
    /// Users' events. They are refused at `--max-db-bytes`.
    Main,
    /// Dead letters and other records that let events settle. They may use another [`HEADROOM_BYTES`].
    Side,
}

impl Write {
    /// Whether this write is refused first if the disk is full, so that the other writes of its batch can succeed.
    pub(super) fn is_refused_first_if_full(&self) -> bool {
        matches!(self, Self::Append { kind: TopicKind::Main, .. })
    }
}

/// The next offset of each partition that grew, by topic and partition.
pub(super) type NextOffsets = HashMap<(i64, u32), i64>;

/// The transaction in progress.
pub(super) struct Transaction<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    /// The rows of the partitions that were read, as they will be after the commit.
    partition_rows: HashMap<(i64, u32), PartitionRow>,
    next_offsets: NextOffsets,
    used_bytes: u64,
    max_bytes: Option<u64>,
}

impl<'c> Transaction<'c> {
    /// Starts to work in the transaction that was begun on this connection.
    pub(super) fn new(connection: &'c Connection, max_bytes: Option<u64>) -> rusqlite::Result<Self> {
        let used_bytes = if max_bytes.is_some() { used_bytes(connection)? } else { 0 };
        let insert = connection.prepare_cached(row::INSERT)?;
        Ok(Self {
            connection,
            insert,
            partition_rows: HashMap::new(),
            next_offsets: HashMap::new(),
            used_bytes,
            max_bytes,
        })
    }

    pub(super) fn apply(&mut self, write: &Write) -> rusqlite::Result<Result<i64, Failure>> {
        match write {
            Write::Append { topic, partition, records, kind } => self.append(*topic, *partition, records, *kind),
            Write::Commit(commit) => self.commit(commit),
            Write::Join { group, topic } => self.join(group, *topic).map(Ok),
            Write::Request { group, topic, resets } => self.request(group, *topic, resets).map(Ok),
            Write::Forget { group, topic } => self.forget(group, *topic).map(Ok),
            Write::Topic { name, partitions, retention, retain } => {
                self.topic(name, *partitions, *retention, *retain).map(Ok)
            }
        }
    }

    /// Writes what is written once for the whole transaction. Answers with the partitions that grew.
    pub(super) fn finish(self) -> rusqlite::Result<NextOffsets> {
        let mut update = self.connection.prepare_cached(
            "UPDATE partitions SET next_offset = max(next_offset, ?3), timestamp_ms = ?4
             WHERE topic = ?1 AND partition = ?2",
        )?;
        for ((topic, partition), next) in &self.next_offsets {
            let row = &self.partition_rows[&(*topic, *partition)];
            update.execute((topic, partition, next, row.timestamp_ms))?;
        }
        Ok(self.next_offsets)
    }

    fn append(
        &mut self,
        topic: i64,
        partition: u32,
        records: &[Record],
        kind: TopicKind,
    ) -> rusqlite::Result<Result<i64, Failure>> {
        let Some(mut row) = self.partition_row(topic, partition)? else {
            return Ok(Err(missing(partition)));
        };
        let bytes: usize = records.iter().map(Record::window_bytes).sum();
        if let Some(full) = self.refusal_if_full(bytes as u64, kind) {
            return Ok(Err(full));
        }
        let first = row.next;
        for record in records {
            if row.next % TIME_INDEX_RECORDS == 0
                && let Some(timestamp_ms) = row.timestamp_ms
            {
                self.index_time(topic, partition, row.next, timestamp_ms)?;
            }
            row::insert(&mut self.insert, (topic, partition, row.next), record)?;
            row.timestamp_ms = row.timestamp_ms.max(Some(record.timestamp_ms));
            row.next += 1;
        }
        self.partition_rows.insert((topic, partition), row);
        self.next_offsets.insert((topic, partition), row.next);
        Ok(Ok(first))
    }

    /// Stores the highest timestamp before an offset. These values never fall from offset to offset, even if clocks jump
    /// back, so a time can be looked up in them.
    fn index_time(&self, topic: i64, partition: u32, offset: i64, timestamp_ms: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO times (topic, partition, offset, timestamp_ms) VALUES (?1, ?2, ?3, ?4)")?
            .execute((topic, partition, offset, timestamp_ms))?;
        Ok(())
    }

    fn refusal_if_full(&mut self, bytes: u64, kind: TopicKind) -> Option<Failure> {
        let max = self.max_bytes?;
        let bound = if kind == TopicKind::Main { max } else { max.saturating_add(HEADROOM_BYTES) };
        if self.used_bytes + bytes > bound {
            let detail = format!(
                "the database holds {} of {max} bytes: raise --max-db-bytes, or lower --retention. Delivered events stay \
                 in the database until they are older than --retention",
                self.used_bytes
            );
            return Some(Failure::refused(FailureCode::LogFull, detail));
        }
        self.used_bytes += bytes;
        None
    }

    fn commit(&mut self, commit: &GroupCommit) -> rusqlite::Result<Result<i64, Failure>> {
        let GroupCommit { group, topic, partition, epoch, watermark, settled_end, settled, needed_from } = commit;
        let Some(row) = self.partition_row(*topic, *partition)? else {
            return Ok(Err(missing(*partition)));
        };
        if *settled_end > row.next {
            let detail = format!(
                "offset {settled_end} of partition {partition} cannot be settled, because the log ends at {}",
                row.next
            );
            return Ok(Err(Failure::refused(FailureCode::CommitPastEnd, detail)));
        }
        let current = self.epoch(group, *topic)?;
        if current != Some(*epoch) {
            let detail = format!("another process has joined {group:?} in the meantime: epoch {epoch} is over");
            return Ok(Err(Failure::refused(FailureCode::CommitFenced, detail)));
        }
        let mut store = self.connection.prepare_cached(STORE_COMMIT)?;
        store.execute((group, topic, partition, watermark, settled, epoch, now_ms(), needed_from))?;
        Ok(Ok(0))
    }

    /// Stores the resets as commits with epoch 0 and time 0. So no member owns them, and they keep no record from
    /// retention.
    fn request(&self, group: &str, topic: i64, resets: &BTreeMap<u32, OffsetReset>) -> rusqlite::Result<i64> {
        let mut store = self.connection.prepare_cached(STORE_COMMIT)?;
        for (partition, reset) in resets {
            store.execute((group, topic, partition, reset.offset(), reset.encode(), 0, 0, reset.offset()))?;
        }
        Ok(0)
    }

    fn epoch(&self, group: &str, topic: i64) -> rusqlite::Result<Option<i64>> {
        self.connection
            .prepare_cached("SELECT epoch FROM groups WHERE name = ?1 AND topic = ?2")?
            .query_row((group, topic), |row| row.get(0))
            .optional()
    }

    fn join(&self, group: &str, topic: i64) -> rusqlite::Result<i64> {
        self.connection
            .prepare_cached(
                "INSERT INTO groups (name, topic, epoch) VALUES (?1, ?2, 1)
                 ON CONFLICT (name, topic) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
            )?
            .query_row((group, topic), |row| row.get(0))
    }

    fn forget(&self, group: &str, topic: i64) -> rusqlite::Result<i64> {
        for table in ["commits", "groups"] {
            let sql = format!("DELETE FROM {table} WHERE name = ?1 AND topic = ?2");
            self.connection.prepare_cached(&sql)?.execute((group, topic))?;
        }
        Ok(0)
    }

    fn topic(
        &self,
        name: &str,
        partitions: u32,
        retention: Option<Duration>,
        retain: Option<Duration>,
    ) -> rusqlite::Result<i64> {
        let existing =
            self.connection.query_row("SELECT id FROM topics WHERE name = ?1", [name], |row| row.get(0)).optional()?;
        if let Some(id) = existing {
            if let Some(retain) = retain {
                let set = "UPDATE topics SET retention_ms = ?2 WHERE id = ?1";
                self.connection.execute(set, (id, whole_ms(retain)))?;
            }
            return Ok(id);
        }
        let retention_ms = retain.or(retention).map(whole_ms);
        self.connection.execute(
            "INSERT INTO topics (name, partitions, retention_ms) VALUES (?1, ?2, ?3)",
            (name, partitions, retention_ms),
        )?;
        let id = self.connection.last_insert_rowid();
        let mut insert = self.connection.prepare(
            "INSERT INTO partitions (topic, partition, earliest, next_offset, timestamp_ms) VALUES (?1, ?2, 0, 0, NULL)",
        )?;
        for partition in 0..partitions {
            insert.execute((id, partition))?;
        }
        Ok(id)
    }

    fn partition_row(&mut self, topic: i64, partition: u32) -> rusqlite::Result<Option<PartitionRow>> {
        if let Some(row) = self.partition_rows.get(&(topic, partition)) {
            return Ok(Some(*row));
        }
        let found = schema::partition(self.connection, topic, partition)?;
        if let Some(row) = found {
            self.partition_rows.insert((topic, partition), row);
        }
        Ok(found)
    }
}

fn missing(partition: u32) -> Failure {
    Failure::refused(FailureCode::PartitionMissing, format!("the topic has no partition {partition}"))
}

/// Bytes of the database's pages that are in use.
fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let number = |pragma: &str| {
        connection.prepare_cached(&format!("PRAGMA {pragma}"))?.query_row([], |row| row.get::<_, i64>(0))
    };
    let pages = number("page_count")? - number("freelist_count")?;
    Ok(u64::try_from(pages * number("page_size")?).unwrap_or(0))
}
