//! Removes what is past its topic's retention, in small steps, and never what a destination still needs.

use super::schema;
use crate::clock::now_ms;
use crate::limits::{
    CLOCK_JUMP, RETENTION_PROTECTION, TRIM_AFTER_CLOCK_JUMP, TRIM_DAMAGED_AGAIN_AFTER, TRIM_RECORDS_MAX,
    WRITE_GROUP_BYTES_MAX,
};
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
    clock: Clock,
}

/// Tells of a wall clock that jumps ahead, also by a suspend. All commits look old then, and those of a destination
/// that is at work must not lose their protection before it could commit again.
#[derive(Debug, Default)]
struct Clock {
    /// The last look at both clocks; the wall's in milliseconds since the Unix epoch.
    last: Option<(Instant, i64)>,
    jumped: Option<Instant>,
}

impl Clock {
    /// Whether the age of a commit can be trusted.
    fn is_steady(&mut self, now: Instant, wall_ms: i64) -> bool {
        if let Some((then, then_ms)) = self.last.replace((now, wall_ms)) {
            let passed_ms = now.duration_since(then).as_millis() as i64;
            let ahead_ms = wall_ms.saturating_sub(then_ms).saturating_sub(passed_ms);
            if ahead_ms > CLOCK_JUMP.as_millis() as i64 {
                tracing::warn!(ahead_ms, "the clock has jumped: nothing is removed for {TRIM_AFTER_CLOCK_JUMP:?}");
                self.jumped = Some(now);
            }
        }
        self.jumped.is_none_or(|at| now.duration_since(at) >= TRIM_AFTER_CLOCK_JUMP)
    }
}

impl Trimmer {
    /// The next step, found without a write transaction. `None`: nothing in any partition.
    pub(super) fn next_step(&mut self, connection: &Connection) -> rusqlite::Result<Option<Step>> {
        if !self.clock.is_steady(Instant::now(), now_ms()) {
            return Ok(None);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_wall_clock_that_jumps_ahead_is_not_trusted_until_groups_have_committed_again() {
        let (mut clock, began) = (Clock::default(), Instant::now());
        // (seconds on the monotonic clock, on the wall clock, whether they are trusted)
        for (now, wall, steady) in [
            (0, 1_000, true),
            (1, 1_001, true),
            // A process that was held up: both clocks went on.
            (600, 1_600, true),
            (601, 1_661, true),
            // Set back, and by less than a jump ahead.
            (602, 900, true),
            (603, 950, true),
            // A suspend of a week.
            (604, 605_750, false),
            (605, 605_751, false),
            (604 + 3_659, 605_750 + 3_659, false),
            (604 + 3_660, 605_750 + 3_660, true),
        ] {
            let at = began + Duration::from_secs(now);
            assert_eq!(clock.is_steady(at, wall * 1_000), steady, "{now} s, {wall} s");
        }
    }
}
