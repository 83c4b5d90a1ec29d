//! What is written, one function a kind. All run inside the writer's transaction and answer with a number or with a
//! refusal, which leaves the others of the transaction alone; an error of SQLite ends the whole transaction.

use super::row;
use super::schema::{self, PartitionRow};
use crate::clock::{now_ms, whole_ms};
use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::core::progress::OffsetReset;
use crate::limits::{DATABASE_HEADROOM_BYTES, TIME_INDEX_RECORDS};
use rusqlite::{CachedStatement, Connection, OptionalExtension};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// One write. Each is answered with a number.
#[derive(Debug)]
pub(crate) enum Write {
    /// Answered with the offset of the first record.
    Append { topic: i64, partition: u32, records: Vec<Record>, kind: TopicKind },
    /// Answered with 0.
    Commit(GroupCommit),
    /// The next epoch of a group in a topic. Answered with it.
    Join { group: String, topic: i64 },
    /// Asks for moves of a position, by partition, under a name that is no group. Answered with 0.
    Request { group: String, topic: i64, moves: BTreeMap<u32, OffsetReset> },
    /// Removes a group from a topic, with its commits. Answered with 0.
    Forget { group: String, topic: i64 },
    /// Makes the topic where it is missing; `retain` is set where it exists too. Answered with its id.
    Topic { name: String, partitions: u32, retention: Option<Duration>, retain: Option<Duration> },
}

/// How far a group got in a partition.
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
}

const STORE_COMMIT: &str =
    "INSERT OR REPLACE INTO commits (name, topic, partition, watermark, settled, epoch, committed_ms)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Whose records stop at `--max-db-bytes`, and whose find room beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicKind {
    Main,
    Side,
}

impl Write {
    /// Stops at a full database or disk before the others do.
    pub(super) fn gives_way(&self) -> bool {
        matches!(self, Self::Append { kind: TopicKind::Main, .. })
    }
}

/// (topic, partition) → the offset that its next record gets now.
pub(super) type NextOffsets = HashMap<(i64, u32), i64>;

/// One transaction's work in progress.
pub(super) struct Transaction<'c> {
    connection: &'c Connection,
    insert: CachedStatement<'c>,
    /// Ends of the partitions that were looked at, as they will be after the commit.
    ends: HashMap<(i64, u32), PartitionRow>,
    grown: NextOffsets,
    used_bytes: u64,
    max_bytes: Option<u64>,
}

impl<'c> Transaction<'c> {
    /// Works in the transaction that was begun on this connection.
    pub(super) fn new(connection: &'c Connection, max_bytes: Option<u64>) -> rusqlite::Result<Self> {
        let used_bytes = if max_bytes.is_some() { used_bytes(connection)? } else { 0 };
        let insert = connection.prepare_cached(row::INSERT)?;
        Ok(Self { connection, insert, ends: HashMap::new(), grown: HashMap::new(), used_bytes, max_bytes })
    }

    pub(super) fn apply(&mut self, write: &Write) -> rusqlite::Result<Result<i64, Failure>> {
        match write {
            Write::Append { topic, partition, records, kind } => self.append(*topic, *partition, records, *kind),
            Write::Commit(commit) => self.commit(commit),
            Write::Join { group, topic } => self.join(group, *topic).map(Ok),
            Write::Request { group, topic, moves } => self.request(group, *topic, moves).map(Ok),
            Write::Forget { group, topic } => self.forget(group, *topic).map(Ok),
            Write::Topic { name, partitions, retention, retain } => {
                self.topic(name, *partitions, *retention, *retain).map(Ok)
            }
        }
    }

    /// Writes what is written once a transaction, and answers with the partitions that grew and their next offsets.
    pub(super) fn finish(self) -> rusqlite::Result<NextOffsets> {
        let mut update = self.connection.prepare_cached(
            "UPDATE partitions SET next_offset = max(next_offset, ?3), timestamp_ms = ?4
             WHERE topic = ?1 AND partition = ?2",
        )?;
        for ((topic, partition), next) in &self.grown {
            let ends = &self.ends[&(*topic, *partition)];
            update.execute((topic, partition, next, ends.timestamp_ms))?;
        }
        Ok(self.grown)
    }

    fn append(
        &mut self,
        topic: i64,
        partition: u32,
        records: &[Record],
        kind: TopicKind,
    ) -> rusqlite::Result<Result<i64, Failure>> {
        let Some(mut ends) = self.ends(topic, partition)? else {
            return Ok(Err(missing(partition)));
        };
        let bytes: usize = records.iter().map(Record::window_bytes).sum();
        if let Some(full) = self.full(bytes as u64, kind) {
            return Ok(Err(full));
        }
        let first = ends.next;
        for record in records {
            if ends.next % TIME_INDEX_RECORDS == 0
                && let Some(timestamp_ms) = ends.timestamp_ms
            {
                self.index_time(topic, partition, ends.next, timestamp_ms)?;
            }
            row::insert(&mut self.insert, (topic, partition, ends.next), record)?;
            ends.timestamp_ms = ends.timestamp_ms.max(Some(record.timestamp_ms));
            ends.next += 1;
        }
        self.ends.insert((topic, partition), ends);
        self.grown.insert((topic, partition), ends.next);
        Ok(Ok(first))
    }

    /// Remembers the highest timestamp before an offset. That one never falls from offset to offset, so a time can be
    /// looked up in it though clocks jump back.
    fn index_time(&self, topic: i64, partition: u32, offset: i64, timestamp_ms: i64) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("INSERT INTO times (topic, partition, offset, timestamp_ms) VALUES (?1, ?2, ?3, ?4)")?
            .execute((topic, partition, offset, timestamp_ms))?;
        Ok(())
    }

    fn full(&mut self, bytes: u64, kind: TopicKind) -> Option<Failure> {
        let max = self.max_bytes?;
        let bound = if kind == TopicKind::Main { max } else { max.saturating_add(DATABASE_HEADROOM_BYTES) };
        if self.used_bytes + bytes > bound {
            let detail = format!(
                "the database holds {} bytes of {max}: raise --max-db-bytes or lower --retention (records go by their \
                 age only)",
                self.used_bytes
            );
            return Some(Failure::refused("log-full", detail));
        }
        self.used_bytes += bytes;
        None
    }

    fn commit(&mut self, commit: &GroupCommit) -> rusqlite::Result<Result<i64, Failure>> {
        let GroupCommit { group, topic, partition, epoch, watermark, settled_end, settled } = commit;
        let Some(ends) = self.ends(*topic, *partition)? else {
            return Ok(Err(missing(*partition)));
        };
        if *settled_end > ends.next {
            let detail = format!(
                "offset {settled_end} of partition {partition} cannot be settled: the log ends at {}",
                ends.next
            );
            return Ok(Err(Failure::refused("commit-past-end", detail)));
        }
        let current = self.epoch(group, *topic)?;
        if current != Some(*epoch) {
            let detail = format!("another process has joined {group:?} since: epoch {epoch} is over");
            return Ok(Err(Failure::refused("commit-fenced", detail)));
        }
        let mut store = self.connection.prepare_cached(STORE_COMMIT)?;
        store.execute((group, topic, partition, watermark, settled, epoch, now_ms()))?;
        Ok(Ok(0))
    }

    /// A commit of no epoch and of no time: nobody owns it, and it keeps nothing from retention.
    fn request(&self, group: &str, topic: i64, moves: &BTreeMap<u32, OffsetReset>) -> rusqlite::Result<i64> {
        let mut store = self.connection.prepare_cached(STORE_COMMIT)?;
        for (partition, wanted) in moves {
            store.execute((group, topic, partition, wanted.offset(), wanted.encode(), 0, 0))?;
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

    fn ends(&mut self, topic: i64, partition: u32) -> rusqlite::Result<Option<PartitionRow>> {
        if let Some(ends) = self.ends.get(&(topic, partition)) {
            return Ok(Some(*ends));
        }
        let found = schema::ends(self.connection, topic, partition)?;
        if let Some(ends) = found {
            self.ends.insert((topic, partition), ends);
        }
        Ok(found)
    }
}

fn missing(partition: u32) -> Failure {
    Failure::refused("partition-missing", format!("the topic has no partition {partition}"))
}

/// Bytes of the database's pages that hold something.
fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let number = |pragma: &str| {
        connection.prepare_cached(&format!("PRAGMA {pragma}"))?.query_row([], |row| row.get::<_, i64>(0))
    };
    let pages = number("page_count")? - number("freelist_count")?;
    Ok(u64::try_from(pages * number("page_size")?).unwrap_or(0))
}
