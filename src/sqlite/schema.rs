//! What stands in the database, and the statements that more than one part uses.
//!
//! ```text
//!  topics ─┬─ partitions   earliest and next offset, of their own: never computed from records, never lowered
//!          ├─ records      what was appended; every offset from earliest to next is there
//!          ├─ times        every 1,024th offset, with the highest timestamp before it
//!          ├─ groups       the epoch of the latest member
//!          └─ commits      how far each group got in each partition
//! ```

/// The format of all this, in `user_version`. A change that an older eventd would misread makes it one higher.
pub(super) const FORMAT: i32 = 1;

/// `records` is `WITHOUT ROWID`: one tree, in the order that it is read and trimmed in. `timestamp` stands before what
/// may be long, so that looking for a time does not read payloads.
pub(super) const TABLES: &str = "
CREATE TABLE topics (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT    NOT NULL UNIQUE,
    partitions   INTEGER NOT NULL,
    retention_ms INTEGER
) STRICT;
CREATE TABLE partitions (
    topic        INTEGER NOT NULL,
    partition    INTEGER NOT NULL,
    earliest     INTEGER NOT NULL,
    next_offset  INTEGER NOT NULL CHECK (next_offset >= earliest),
    timestamp_ms INTEGER,
    PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;
CREATE TABLE records (
    topic        INTEGER NOT NULL,
    partition    INTEGER NOT NULL,
    offset       INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    crc32c       INTEGER NOT NULL,
    key          BLOB,
    value        BLOB,
    headers      BLOB    NOT NULL,
    PRIMARY KEY (topic, partition, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE times (
    topic        INTEGER NOT NULL,
    partition    INTEGER NOT NULL,
    offset       INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    PRIMARY KEY (topic, partition, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE groups (
    name         TEXT    NOT NULL,
    topic        INTEGER NOT NULL,
    epoch        INTEGER NOT NULL,
    PRIMARY KEY (name, topic)
) STRICT, WITHOUT ROWID;
CREATE TABLE commits (
    name         TEXT    NOT NULL,
    topic        INTEGER NOT NULL,
    partition    INTEGER NOT NULL,
    watermark    INTEGER NOT NULL,
    settled      TEXT    NOT NULL,
    epoch        INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL,
    PRIMARY KEY (topic, partition, name)
) STRICT, WITHOUT ROWID;
";

pub(super) const PARTITION: &str =
    "SELECT earliest, next_offset, timestamp_ms FROM partitions WHERE topic = ?1 AND partition = ?2";

/// Where a partition begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionRow {
    pub(super) earliest: i64,
    pub(super) next: i64,
    /// The highest timestamp of any record that it ever had.
    pub(super) timestamp_ms: Option<i64>,
}

/// The ends of a partition, `None` where there is no such partition.
pub(super) fn ends(
    connection: &rusqlite::Connection,
    topic: i64,
    partition: u32,
) -> rusqlite::Result<Option<PartitionRow>> {
    let mut statement = connection.prepare_cached(PARTITION)?;
    let mut rows = statement.query((topic, partition))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(PartitionRow { earliest: row.get(0)?, next: row.get(1)?, timestamp_ms: row.get(2)? }))
}
