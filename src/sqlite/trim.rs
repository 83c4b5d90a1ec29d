//! Removes what is past its topic's retention, in small steps, and never what a destination still needs.

use super::schema;
use super::write::now_ms;
use crate::limits::{RETENTION_PROTECTION, TRIM_DAMAGED_AGAIN_AFTER, TRIM_RECORDS_MAX, WRITE_GROUP_BYTES_MAX};
use rusqlite::Connection;
use std::collections::HashMap;
use std::time::Instant;

/// One step: the records of a partition below an offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    topic: i64,
    partition: u32,
    until: i64,
}

/// Looks through the partitions, round after round.
#[derive(Debug, Default)]
pub(super) struct Trimmer {
    /// The partition that was last looked at: the next step begins behind it, so that one with much to remove, or with
    /// damage, does not keep the others from their turn.
    at: (i64, u32),
    /// Partitions with damage in what is past its retention, and when it was met.
    damaged: HashMap<(i64, u32), Instant>,
}

impl Trimmer {
    /// The next step, found without a write transaction. `None`: nothing in any partition.
    pub(super) fn next_step(&mut self, connection: &Connection) -> rusqlite::Result<Option<Step>> {
        let mut partitions = connection.prepare_cached(
            "SELECT p.topic, p.partition, p.earliest, p.next_offset, t.retention_ms
             FROM partitions p JOIN topics t ON t.id = p.topic
             WHERE t.retention_ms IS NOT NULL AND p.earliest < p.next_offset
             ORDER BY (p.topic, p.partition) <= (?1, ?2), p.topic, p.partition",
        )?;
        let mut rows = partitions.query(self.at)?;
        while let Some(row) = rows.next()? {
            let (topic, partition): (i64, u32) = (row.get(0)?, row.get(1)?);
            let (earliest, next, retention_ms): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
            if self.rests((topic, partition)) {
                continue;
            }
            self.at = (topic, partition);
            let end = needed_from(connection, topic, partition)?.map_or(next, |needed| needed.min(next));
            let until = expired_until(connection, (topic, partition), earliest..end, now_ms() - retention_ms)?;
            if until > earliest {
                return Ok(Some(Step { topic, partition, until }));
            }
        }
        Ok(None)
    }

    /// Lets the partition rest where the last step met damage, and says so. `false`: it was resting already, so the
    /// damage is not there, and looking on at once would meet it again.
    pub(super) fn damaged(&mut self, error: &rusqlite::Error) -> bool {
        if self.rests(self.at) {
            return false;
        }
        let (topic, partition) = self.at;
        tracing::error!(topic, partition, %error, "records past their retention are damaged and stay");
        self.damaged.insert(self.at, Instant::now());
        true
    }

    fn rests(&self, partition: (i64, u32)) -> bool {
        self.damaged.get(&partition).is_some_and(|met| met.elapsed() < TRIM_DAMAGED_AGAIN_AFTER)
    }

    /// Removes the step's records, in the transaction that was begun.
    pub(super) fn remove(&self, connection: &Connection, step: Step) -> rusqlite::Result<()> {
        let Step { topic, partition, until } = step;
        // Looked at again: a group may have joined, or another process may have trimmed, since the step was found.
        let Some(ends) = schema::ends(connection, topic, partition)? else { return Ok(()) };
        let until = needed_from(connection, topic, partition)?.map_or(until, |needed| needed.min(until)).min(ends.next);
        for table in ["records", "times"] {
            let sql = format!("DELETE FROM {table} WHERE topic = ?1 AND partition = ?2 AND offset < ?3");
            connection.prepare_cached(&sql)?.execute((topic, partition, until))?;
        }
        connection
            .prepare_cached("UPDATE partitions SET earliest = max(earliest, ?3) WHERE topic = ?1 AND partition = ?2")?
            .execute((topic, partition, until))?;
        Ok(())
    }
}

/// The lowest offset that a group with a recent commit has not settled.
fn needed_from(connection: &Connection, topic: i64, partition: u32) -> rusqlite::Result<Option<i64>> {
    let protection_ms = RETENTION_PROTECTION.as_millis() as i64;
    connection
        .prepare_cached(
            "SELECT min(watermark) FROM commits WHERE topic = ?1 AND partition = ?2 AND committed_ms >= ?3",
        )?
        .query_row((topic, partition, now_ms() - protection_ms), |row| row.get(0))
}

/// Where the first record stands that is not older than `cutoff_ms`, or where one step ends.
fn expired_until(
    connection: &Connection,
    (topic, partition): (i64, u32),
    offsets: std::ops::Range<i64>,
    cutoff_ms: i64,
) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(
        "SELECT offset, timestamp_ms, ifnull(length(value), 0) FROM records
         WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND offset < ?4 ORDER BY offset LIMIT ?5",
    )?;
    let limit = TRIM_RECORDS_MAX as i64;
    let mut rows = statement.query((topic, partition, offsets.start, offsets.end, limit))?;
    let (mut until, mut bytes) = (offsets.start, 0);
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? >= cutoff_ms || bytes >= WRITE_GROUP_BYTES_MAX as i64 {
            break;
        }
        bytes += row.get::<_, i64>(2)?;
        until = row.get::<_, i64>(0)? + 1;
    }
    Ok(until)
}
