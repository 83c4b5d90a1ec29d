//! The tables of the database, and the statement that several modules use.
//!
//! ```text
//!  topics ─┬─ partitions   earliest and next offset: stored, never computed from the records, and never lowered
//!          ├─ records      what was appended: every offset from the earliest up to the next one is there
//!          ├─ times        every 1,024th offset, with the highest timestamp before it
//!          ├─ groups       the epoch of the latest member
//!          └─ commits      how far each group got in each partition; `needed_from` is the first offset that must stay in
//!                          the log for it: the watermark if it is NULL, lower if a user is parked
//! ```

/// The format of the tables, stored in `user_version`. Raise it for a change that an older eventd would misread.
///
/// Format 2 has the column `commits.needed_from`. An eventd that does not know it would remove events of parked users.
pub(super) const FORMAT: i32 = 2;

/// The first format.
pub(super) const FORMAT_1: i32 = 1;

/// Brings the tables of [`FORMAT_1`] to the present format.
pub(super) const UPGRADE_FROM_1: &str = "ALTER TABLE commits ADD COLUMN needed_from INTEGER;";

/// Creates the tables. `records` is `WITHOUT ROWID`, so it is one tree in the order in which it is read and trimmed. Its
/// column `timestamp_ms` comes before the columns that may be long, so that a search by time does not read payloads.
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
    needed_from  INTEGER,
    PRIMARY KEY (topic, partition, name)
) STRICT, WITHOUT ROWID;
";

/// One row of the table `partitions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionRow {
    /// The lowest offset that can be read.
    pub(super) earliest: i64,
    /// The offset that the next record will get.
    pub(super) next: i64,
    /// The highest timestamp that any record of the partition ever had.
    pub(super) timestamp_ms: Option<i64>,
}

/// Reads the row of a partition. `None`: there is no such partition.
pub(super) fn partition(
    connection: &rusqlite::Connection,
    topic: i64,
    partition: u32,
) -> rusqlite::Result<Option<PartitionRow>> {
    let mut statement = connection.prepare_cached(
        "SELECT earliest, next_offset, timestamp_ms FROM partitions WHERE topic = ?1 AND partition = ?2",
    )?;
    let mut rows = statement.query((topic, partition))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(PartitionRow { earliest: row.get(0)?, next: row.get(1)?, timestamp_ms: row.get(2)? }))
}
