//! Retention: removes records that are older than their topic keeps them, in small steps, and never records that a
//! destination still needs.
//!
//! If the wall clock is wrong, everything looks old at once. `trusted_clock` says whether it may be wrong:
//!
//! ```text
//!                       in doubt                                      trusted
//!  the time now         the last time known to be right (stored in    the wall clock
//!                       the database, or before a jump) plus what
//!                       has passed since; or the wall clock, if lower
//!  what is kept         all that any destination has not settled;     what a destination with a commit in the last
//!                       everything, if there is no destination        seven days has not settled
//! ```
//!
//! If events are removed that a destination had not settled, `lost_events` logs how many.

use super::lost_events::{LostEvents, LostEventsLog, RETENTION_PROTECTION};
use super::schema;
use super::trusted_clock::{ClockReading, TrustedClock, TrustedTime};
use crate::core::progress::{ParkedEvents, PartitionState, Progress};
use crate::limits::WRITE_BATCH_BYTES_MAX;
use rusqlite::Connection;
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Records that one step removes. Other writes wait for the step.
const STEP_RECORDS_MAX: usize = 2_000;

/// How long a partition is left alone after its trimming met damaged records. Damage is not repaired within seconds, and
/// each try costs a log line.
const DAMAGED_RETRY_DELAY: Duration = Duration::from_secs(3600);

/// One step: the records of a partition below an offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrimStep {
    topic: i64,
    partition: u32,
    until: i64,
    time: TrustedTime,
}

/// Finds and removes old records, one partition after the other.
#[derive(Debug)]
pub(super) struct Trimmer {
    /// The partition of the last step. The next step starts after it. So a partition with much to remove, or with damaged
    /// records, does not keep the others from their turn.
    last_partition: (i64, u32),
    /// Partitions with damaged records past their retention, and when the damage was found.
    damaged: HashMap<(i64, u32), Instant>,
    clock: TrustedClock,
    losses: LostEventsLog,
}

impl Trimmer {
    /// Starts to watch the clock. Call it when the database is opened, before anything is written: what this process
    /// writes carries the time of a clock that may be wrong.
    pub(super) fn new(connection: &Connection, now: ClockReading) -> rusqlite::Result<Self> {
        let known_ms = connection.query_row(
            "SELECT max(ms) FROM (SELECT max(timestamp_ms) AS ms FROM partitions
                                  UNION ALL SELECT max(committed_ms) FROM commits)",
            [],
            |row| row.get(0),
        )?;
        Ok(Self {
            last_partition: (0, 0),
            damaged: HashMap::new(),
            clock: TrustedClock::new(known_ms, now),
            losses: LostEventsLog::default(),
        })
    }

    /// Finds the next step, without a write transaction. `None`: no partition has anything to remove.
    pub(super) fn next_step(
        &mut self,
        connection: &Connection,
        now: ClockReading,
    ) -> rusqlite::Result<Option<TrimStep>> {
        let time = self.clock.time(now);
        let mut partitions = connection.prepare_cached(
            "SELECT p.topic, p.partition, p.earliest, p.next_offset, t.retention_ms
             FROM partitions p JOIN topics t ON t.id = p.topic
             WHERE t.retention_ms IS NOT NULL AND p.earliest < p.next_offset
             ORDER BY (p.topic, p.partition) <= (?1, ?2), p.topic, p.partition",
        )?;
        let mut rows = partitions.query(self.last_partition)?;
        while let Some(row) = rows.next()? {
            let (topic, partition): (i64, u32) = (row.get(0)?, row.get(1)?);
            let (earliest, next, retention_ms): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
            if self.is_damaged((topic, partition)) {
                continue;
            }
            self.last_partition = (topic, partition);
            let end = needed_from(connection, topic, partition, time)?.map_or(next, |needed| needed.min(next));
            let cutoff_ms = time.ms.saturating_sub(retention_ms);
            let until = expired_until(connection, (topic, partition), earliest..end, cutoff_ms)?;
            if until > earliest {
                return Ok(Some(TrimStep { topic, partition, until, time }));
            }
        }
        Ok(None)
    }

    /// Leaves the partition of the last step alone for a while, because its records are damaged. `false`: it was left
    /// alone already, so the damage is somewhere else, and another step at once would meet it again.
    pub(super) fn mark_damaged(&mut self, error: &rusqlite::Error) -> bool {
        if self.is_damaged(self.last_partition) {
            return false;
        }
        let (topic, partition) = self.last_partition;
        tracing::error!(topic, partition, %error, "cannot remove records past their retention: they are damaged");
        self.damaged.insert(self.last_partition, Instant::now());
        true
    }

    fn is_damaged(&self, partition: (i64, u32)) -> bool {
        self.damaged.get(&partition).is_some_and(|found_at| found_at.elapsed() < DAMAGED_RETRY_DELAY)
    }

    /// Removes the records of the step, in the transaction that was begun. Answers with the events that a destination had
    /// not settled.
    pub(super) fn remove(&self, connection: &Connection, step: TrimStep) -> rusqlite::Result<Vec<LostEvents>> {
        let TrimStep { topic, partition, until, time } = step;
        // Check again: since the step was found, a group may have joined, or another process may have trimmed.
        let Some(row) = schema::partition(connection, topic, partition)? else { return Ok(Vec::new()) };
        let needed = needed_from(connection, topic, partition, time)?;
        let until = needed.map_or(until, |needed| needed.min(until)).min(row.next);
        if until <= row.earliest {
            return Ok(Vec::new());
        }
        let losses = find_losses(connection, (topic, partition), row.earliest..until)?;
        for table in ["records", "times"] {
            let sql = format!("DELETE FROM {table} WHERE topic = ?1 AND partition = ?2 AND offset < ?3");
            connection.prepare_cached(&sql)?.execute((topic, partition, until))?;
        }
        connection
            .prepare_cached("UPDATE partitions SET earliest = max(earliest, ?3) WHERE topic = ?1 AND partition = ?2")?
            .execute((topic, partition, until))?;
        Ok(losses)
    }

    /// Remembers what a committed step has removed.
    pub(super) fn add_losses(&mut self, losses: Vec<LostEvents>) {
        self.losses.add(losses);
    }

    /// Logs the losses. Call it after the last step of a round, so that a line counts the whole round.
    pub(super) fn log_losses(&mut self, now: ClockReading) {
        self.losses.take_due(now.monotonic).iter().for_each(LostEvents::log);
    }

    /// Logs all losses that are not logged yet. Call it before the process ends.
    pub(super) fn log_all_losses(&mut self) {
        self.losses.take_all().iter().for_each(LostEvents::log);
    }
}

/// The lowest offset that must stay for a destination. `None`: no destination needs any record.
fn needed_from(
    connection: &Connection,
    topic: i64,
    partition: u32,
    time: TrustedTime,
) -> rusqlite::Result<Option<i64>> {
    if !time.in_doubt {
        let protected_ms = time.ms.saturating_sub(RETENTION_PROTECTION.as_millis() as i64);
        return connection
            .prepare_cached(
                "SELECT min(ifnull(needed_from, watermark)) FROM commits
                 WHERE topic = ?1 AND partition = ?2 AND committed_ms >= ?3",
            )?
            .query_row((topic, partition, protected_ms), |row| row.get(0));
    }
    // While the clock is in doubt, the age of a commit says nothing, so every known destination counts. A destination that
    // has not committed in this partition has settled nothing. If no destination is known, everything is kept.
    connection
        .prepare_cached(
            "SELECT ifnull(min(coalesce(c.needed_from, c.watermark, 0)), 0) FROM groups g
             LEFT JOIN commits c ON c.topic = g.topic AND c.partition = ?2 AND c.name = g.name
             WHERE g.topic = ?1",
        )?
        .query_row((topic, partition), |row| row.get(0))
        .map(Some)
}

/// Counts, for each destination, the events at these offsets that it has not settled.
fn find_losses(
    connection: &Connection,
    (topic, partition): (i64, u32),
    offsets: Range<i64>,
) -> rusqlite::Result<Vec<LostEvents>> {
    let mut statement = connection.prepare_cached(
        "SELECT g.name, t.name, ifnull(c.watermark, 0), c.settled FROM groups g JOIN topics t ON t.id = g.topic
         LEFT JOIN commits c ON c.topic = g.topic AND c.partition = ?2 AND c.name = g.name
         WHERE g.topic = ?1 AND coalesce(c.needed_from, c.watermark, 0) < ?3",
    )?;
    let mut rows = statement.query((topic, partition, offsets.end))?;
    let mut losses = Vec::new();
    while let Some(row) = rows.next()? {
        let (watermark, settled): (i64, Option<String>) = (row.get(2)?, row.get(3)?);
        // A state that cannot be read counts as if nothing above the watermark were settled.
        let state = settled.and_then(|settled| PartitionState::decode(watermark, &settled).ok());
        let state = state.unwrap_or_else(|| PartitionState::at(watermark));
        let events = count_unsettled(&state, offsets.clone())
            + count_parked(connection, (topic, partition), &state, offsets.clone())?;
        if events > 0 {
            losses.push(LostEvents { destination: row.get(0)?, topic: row.get(1)?, events });
        }
    }
    Ok(losses)
}

/// How many of these offsets are unsettled by the watermark and the settled map.
fn count_unsettled(state: &PartitionState, offsets: Range<i64>) -> u64 {
    let within = state.within(offsets.clone());
    let above: i64 = within.settled.iter().map(|range| range.end - range.start).sum();
    (offsets.end - within.watermark - above).unsigned_abs()
}

/// How many of these records are unsettled although their offsets count as settled: those of parked users.
fn count_parked(
    connection: &Connection,
    (topic, partition): (i64, u32),
    state: &PartitionState,
    offsets: Range<i64>,
) -> rusqlite::Result<u64> {
    if state.users.is_empty() {
        return Ok(0);
    }
    let (parked, progress) = (ParkedEvents::of(&state.users), Progress::new(state));
    let mut statement = connection.prepare_cached(
        "SELECT offset, key FROM records WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND offset < ?4",
    )?;
    let mut rows = statement.query((topic, partition, offsets.start, offsets.end))?;
    let mut events = 0;
    while let Some(row) = rows.next()? {
        let (offset, key): (i64, Option<&[u8]>) = (row.get(0)?, row.get_ref(1)?.as_blob_or_null()?);
        events += u64::from(progress.is_settled(offset) && parked.contains(key, offset));
    }
    Ok(events)
}

/// The first offset whose record is not older than `cutoff_ms`. Ends earlier if the step would become too large.
fn expired_until(
    connection: &Connection,
    (topic, partition): (i64, u32),
    offsets: Range<i64>,
    cutoff_ms: i64,
) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached(
        "SELECT offset, timestamp_ms, ifnull(length(value), 0) FROM records
         WHERE topic = ?1 AND partition = ?2 AND offset >= ?3 AND offset < ?4 ORDER BY offset LIMIT ?5",
    )?;
    let limit = STEP_RECORDS_MAX as i64;
    let mut rows = statement.query((topic, partition, offsets.start, offsets.end, limit))?;
    let (mut until, mut bytes) = (offsets.start, 0);
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? >= cutoff_ms || bytes >= WRITE_BATCH_BYTES_MAX as i64 {
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
    use crate::core::progress::{ParkedUser, UserState};

    const DAY: Duration = Duration::from_secs(24 * 3600);
    /// The right time when a test begins.
    const BEGAN_MS: i64 = 1_800_000_000_000;
    const EVENTS: i64 = 1;
    const DEAD: i64 = 2;

    fn ms(duration: Duration) -> i64 {
        duration.as_millis() as i64
    }

    /// A database with a retention of one week. The test sets the clocks.
    struct TestDatabase {
        connection: Connection,
        began: Instant,
    }

    impl TestDatabase {
        fn new() -> Self {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(schema::TABLES).unwrap();
            for (id, name) in [(EVENTS, "events"), (DEAD, "events.billing.dead")] {
                connection
                    .execute("INSERT INTO topics VALUES (?1, ?2, 1, ?3)", (id, name, ms(7 * DAY)))
                    .and_then(|_| connection.execute("INSERT INTO partitions VALUES (?1, 0, 0, 0, NULL)", [id]))
                    .unwrap();
            }
            Self { connection, began: Instant::now() }
        }

        /// Appends a hundred records with this timestamp.
        fn append(&self, topic: i64, timestamp_ms: i64) {
            let next = self.next(topic);
            let insert = "INSERT INTO records VALUES (?1, 0, ?2, ?3, 0, NULL, NULL, x'')";
            for offset in next..next + 100 {
                self.connection.execute(insert, (topic, offset, timestamp_ms)).unwrap();
            }
            let grow = "UPDATE partitions SET next_offset = next_offset + 100, timestamp_ms = ?2 WHERE topic = ?1";
            self.connection.execute(grow, (topic, timestamp_ms)).unwrap();
        }

        fn join(&self, name: &str) {
            self.connection.execute("INSERT INTO groups VALUES (?1, ?2, 1)", (name, EVENTS)).unwrap();
        }

        fn commit(&self, name: &str, watermark: i64, settled: &str, committed_ms: i64) {
            // A state that an older eventd has stored has no `needed_from`.
            let needed_from = PartitionState::decode(watermark, settled).ok().map(|state| state.needed_from());
            let needed_from = needed_from.filter(|needed_from| *needed_from < watermark);
            let commit = "INSERT OR REPLACE INTO commits VALUES (?1, ?2, 0, ?3, ?4, 1, ?5, ?6)";
            self.connection.execute(commit, (name, EVENTS, watermark, settled, committed_ms, needed_from)).unwrap();
        }

        fn next(&self, topic: i64) -> i64 {
            schema::partition(&self.connection, topic, 0).unwrap().unwrap().next
        }

        fn earliest(&self, topic: i64) -> i64 {
            schema::partition(&self.connection, topic, 0).unwrap().unwrap().earliest
        }

        /// The clocks after this time has passed. The wall clock is wrong by `wrong_ms`.
        fn at(&self, passed: Duration, wrong_ms: i64) -> ClockReading {
            ClockReading { monotonic: self.began + passed, wall_ms: BEGAN_MS + ms(passed) + wrong_ms }
        }

        fn open(&self, now: ClockReading) -> Trimmer {
            Trimmer::new(&self.connection, now).unwrap()
        }

        /// Trims until nothing is left to remove. Answers with the losses that are due to be logged.
        fn trim(&self, trimmer: &mut Trimmer, now: ClockReading) -> Vec<LostEvents> {
            while let Some(step) = trimmer.next_step(&self.connection, now).unwrap() {
                let losses = trimmer.remove(&self.connection, step).unwrap();
                trimmer.add_losses(losses);
            }
            trimmer.losses.take_due(now.monotonic)
        }
    }

    #[test]
    fn a_clock_that_is_ahead_at_the_start_removes_nothing_that_a_destination_has_not_settled() {
        for days in [1, 8, 31, 365, 20_000] {
            let database = TestDatabase::new();
            let ahead = ms(days * DAY);
            database.append(EVENTS, BEGAN_MS - 1_000);
            for (name, watermark) in [("fast", 100), ("slow", 40)] {
                database.join(name);
                database.commit(name, watermark, "1", BEGAN_MS - 500);
            }
            let mut trimmer = database.open(database.at(Duration::ZERO, ahead));
            for minutes in [0, 1, 30, 60] {
                // In the meantime, ingest appends with the timestamps of the wrong clock.
                database.append(EVENTS, BEGAN_MS + ahead);
                let now = database.at(Duration::from_secs(60 * minutes), ahead);
                assert_eq!(database.trim(&mut trimmer, now), [], "{days} days, {minutes} min");
                assert_eq!(database.earliest(EVENTS), 0, "{days} days, {minutes} min: the commits are an hour old");
            }
            // After a restart the database itself holds the wrong time. Then settled records may go, and no others.
            let mut trimmer = database.open(database.at(Duration::from_secs(3_600), ahead));
            assert_eq!(database.trim(&mut trimmer, database.at(Duration::from_secs(3_601), ahead)), []);
            assert_eq!(database.earliest(EVENTS), if days < 7 { 0 } else { 40 }, "{days} days");
        }
    }

    #[test]
    fn a_destination_that_joined_and_never_committed_keeps_everything_at_the_start() {
        let database = TestDatabase::new();
        database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        database.join("fast");
        database.commit("fast", 100, "1", BEGAN_MS);
        database.join("new");
        let mut trimmer = database.open(database.at(Duration::ZERO, 0));
        assert_eq!(database.trim(&mut trimmer, database.at(Duration::from_secs(1), 0)), []);
        assert_eq!(database.earliest(EVENTS), 0);
    }

    #[test]
    fn records_that_no_destination_reads_are_removed_only_after_the_doubt() {
        let database = TestDatabase::new();
        // Dead letters, and events before the first destination.
        database.append(DEAD, BEGAN_MS - ms(10 * DAY));
        database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        let mut trimmer = database.open(database.at(Duration::ZERO, 0));
        for (seconds, earliest) in [(0, 0), (3_659, 0), (3_660, 100)] {
            database.trim(&mut trimmer, database.at(Duration::from_secs(seconds), 0));
            assert_eq!((database.earliest(DEAD), database.earliest(EVENTS)), (earliest, earliest), "{seconds} s");
        }
    }

    #[test]
    fn with_a_right_clock_settled_records_are_removed_at_once() {
        let database = TestDatabase::new();
        database.append(EVENTS, BEGAN_MS - ms(8 * DAY));
        database.append(EVENTS, BEGAN_MS - ms(6 * DAY));
        database.join("billing");
        database.commit("billing", 200, "1", BEGAN_MS - 500);
        let mut trimmer = database.open(database.at(Duration::ZERO, 0));
        database.trim(&mut trimmer, database.at(Duration::ZERO, 0));
        assert_eq!(database.earliest(EVENTS), 100);
    }

    #[test]
    fn a_clock_that_is_far_too_low_and_corrected_later_removes_nothing_unsettled() {
        let database = TestDatabase::new();
        database.append(EVENTS, BEGAN_MS - ms(DAY));
        database.join("billing");
        database.commit("billing", 10, "1", BEGAN_MS - ms(DAY));
        let wrong_ms = -BEGAN_MS;
        let mut trimmer = database.open(database.at(Duration::ZERO, wrong_ms));
        database.trim(&mut trimmer, database.at(Duration::from_secs(1), wrong_ms));
        // After the correction, records of the wrong clock look half a century old.
        database.append(EVENTS, 2_000);
        database.commit("billing", 20, "1", 2_000);
        for (seconds, wrong) in [(10_000, wrong_ms), (10_001, 0), (13_660, 0)] {
            database.trim(&mut trimmer, database.at(Duration::from_secs(seconds), wrong));
            assert_eq!(database.earliest(EVENTS), 0, "{seconds} s");
        }
        // The destination is at work, so it commits within the hour and keeps what it needs.
        database.commit("billing", 20, "1", BEGAN_MS + 13_000_000);
        database.trim(&mut trimmer, database.at(Duration::from_secs(13_661), 0));
        assert_eq!(database.earliest(EVENTS), 0, "the first record is a day old");
    }

    #[test]
    fn the_events_of_a_parked_user_are_kept_and_counted_if_they_are_lost() {
        let database = TestDatabase::new();
        database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        // The records of the test have no key. So this user is the user of all of them.
        let parked = |first| UserState { parked: Some(ParkedUser { first, ..Default::default() }), failed: None };
        let state = PartitionState { users: [(None, parked(30))].into(), ..PartitionState::at(150) };
        database.join("billing");
        database.commit("billing", 150, &state.encode(), BEGAN_MS);
        let mut trimmer = database.open(database.at(Duration::ZERO, 0));
        let hour = Duration::from_secs(3_660);
        assert!(database.trim(&mut trimmer, database.at(hour, 0)).is_empty());
        assert_eq!(database.earliest(EVENTS), 30);
        // A destination that has not committed for seven days is not protected any more.
        let late = database.at(hour + Duration::from_secs(9 * 24 * 3_600), 0);
        let lost = database.trim(&mut trimmer, late);
        let lost: Vec<(&str, u64)> = lost.iter().map(|loss| (loss.destination.as_str(), loss.events)).collect();
        assert_eq!((lost, database.earliest(EVENTS)), (vec![("billing", 170)], 200));
    }

    #[test]
    fn a_destination_without_a_commit_for_a_week_loses_events_and_their_number_is_logged() {
        let database = TestDatabase::new();
        database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        for (name, watermark, settled) in
            [("away", 40, vec![50..60, 90..120]), ("gone\u{1b}[2J", 100, Vec::new()), ("unread", 0, Vec::new())]
        {
            database.join(name);
            let map = PartitionState { settled, ..PartitionState::at(watermark) }.encode();
            let map = if name == "unread" { "damaged".into() } else { map };
            database.commit(name, watermark, &map, BEGAN_MS - ms(8 * DAY));
        }
        // A requested offset reset is not a destination.
        database.commit("away.moves", 0, "r1", 0);
        let mut trimmer = database.open(database.at(Duration::ZERO, 0));
        let hour = Duration::from_secs(3_660);
        let lost = database.trim(&mut trimmer, database.at(hour, 0));
        let lost: Vec<(&str, u64)> = lost.iter().map(|loss| (loss.destination.as_str(), loss.events)).collect();
        assert_eq!((lost, database.earliest(EVENTS)), (vec![("away", 40), ("unread", 100)], 100));
        // The next log lines come at a bounded rate, and their numbers are complete.
        let mut logged = 0;
        for second in 1..=120 {
            database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
            let now = database.at(hour + Duration::from_secs(second), 0);
            let mut lines = database.trim(&mut trimmer, now);
            lines.retain(|loss| loss.destination == "unread");
            logged += lines.iter().map(|loss| loss.events).sum::<u64>();
            assert!(lines.is_empty() || second % 60 == 0, "{second} s");
        }
        assert_eq!(logged, 12_000);
        database.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        database.trim(&mut trimmer, database.at(hour + Duration::from_secs(121), 0));
        let rest = trimmer.losses.take_all();
        assert_eq!(rest.iter().find(|loss| loss.destination == "unread").map(|loss| loss.events), Some(100));
    }
}
