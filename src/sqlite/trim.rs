//! Removes what is past its topic's retention, in small steps, and never what a destination still needs.
//!
//! # Clocks
//!
//! Ages are differences between stored wall-clock times and the wall clock of now. If that clock is wrong, everything
//! looks old at once: records, and the commits whose age decides whether a destination still counts. So the wall clock
//! is in doubt for [`TRIM_DOUBT`] after this process opened the database, and after each jump ahead. In that time every
//! destination that is at work commits again. Until then:
//!
//! ```text
//!                       in doubt                                      afterwards
//!  time of now          the last time known to be right (in the       the wall clock
//!                       database, or before the jump), and what
//!                       has passed since; or the wall clock, if lower
//!  what is kept         all that any destination has not settled;     what a destination with a commit of the last
//!                       everything, if there is no destination        seven days has not settled
//! ```
//!
//! What is removed although a destination had not settled it is told, with the number of events.

use super::schema;
use crate::clock::now_ms;
use crate::core::progress::PartitionState;
use crate::limits::{
    CLOCK_JUMP, RETENTION_PROTECTION, TRIM_DAMAGED_AGAIN_AFTER, TRIM_DOUBT, TRIM_LOSS_INTERVAL, TRIM_RECORDS_MAX,
    WRITE_BATCH_BYTES_MAX,
};
use rusqlite::Connection;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Instant;

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockReading {
    monotonic: Instant,
    /// Milliseconds since the Unix epoch.
    wall_ms: i64,
}

impl ClockReading {
    pub(super) fn read() -> Self {
        Self { monotonic: Instant::now(), wall_ms: now_ms() }
    }
}

/// One step: the records of a partition below an offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrimStep {
    topic: i64,
    partition: u32,
    until: i64,
    time: Time,
}

/// What time it is, as far as retention may believe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    ms: i64,
    in_doubt: bool,
}

/// Events that a destination had not settled when they were removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LostEvents {
    destination: String,
    topic: String,
    events: u64,
}

/// Looks through the partitions, round after round.
#[derive(Debug)]
pub(super) struct Trimmer {
    /// The partition that was last looked at: the next step begins behind it, so that one with much to remove, or with
    /// damage, does not keep the others from their turn.
    at: (i64, u32),
    /// Partitions with damage in what is past its retention, and when it was met.
    damaged: HashMap<(i64, u32), Instant>,
    clock: TrustedClock,
    losses: LostEventsLog,
}

/// Decides whether the wall clock can be believed.
#[derive(Debug)]
struct TrustedClock {
    last: ClockReading,
    doubt: Option<ClockDoubt>,
}

/// A time in which the wall clock may be wrong.
#[derive(Debug, Clone, Copy)]
struct ClockDoubt {
    since: Instant,
    /// The time that it was then, as far as anything says. `None`: nothing does.
    ms: Option<i64>,
}

impl ClockDoubt {
    fn time(&self, now: ClockReading) -> i64 {
        let passed_ms = now.monotonic.duration_since(self.since).as_millis() as i64;
        self.ms.map_or(now.wall_ms, |ms| ms.saturating_add(passed_ms).min(now.wall_ms))
    }
}

impl TrustedClock {
    /// Starts in doubt: `known_ms` is the latest time that the database tells of.
    fn new(known_ms: Option<i64>, now: ClockReading) -> Self {
        Self { last: now, doubt: Some(ClockDoubt { since: now.monotonic, ms: known_ms }) }
    }

    fn time(&mut self, now: ClockReading) -> Time {
        let then = std::mem::replace(&mut self.last, now);
        let passed_ms = now.monotonic.duration_since(then.monotonic).as_millis() as i64;
        let expected_ms = then.wall_ms.saturating_add(passed_ms);
        let ahead_ms = now.wall_ms.saturating_sub(expected_ms);
        if ahead_ms > CLOCK_JUMP.as_millis() as i64 {
            tracing::warn!(
                ahead_ms,
                "the clock has jumped ahead: for {TRIM_DOUBT:?} nothing is removed that a destination has not settled"
            );
            let before = self.doubt.map_or(expected_ms, |doubt| doubt.time(now).min(expected_ms));
            self.doubt = Some(ClockDoubt { since: now.monotonic, ms: Some(before) });
        }
        self.doubt = self.doubt.filter(|doubt| now.monotonic.duration_since(doubt.since) < TRIM_DOUBT);
        match &self.doubt {
            Some(doubt) => Time { ms: doubt.time(now), in_doubt: true },
            None => Time { ms: now.wall_ms, in_doubt: false },
        }
    }
}

impl Trimmer {
    /// Begins to guard against a wrong clock, so call it when the database is opened, before anything is written.
    pub(super) fn new(connection: &Connection, now: ClockReading) -> rusqlite::Result<Self> {
        let known_ms = connection.query_row(
            "SELECT max(ms) FROM (SELECT max(timestamp_ms) AS ms FROM partitions
                                  UNION ALL SELECT max(committed_ms) FROM commits)",
            [],
            |row| row.get(0),
        )?;
        Ok(Self {
            at: (0, 0),
            damaged: HashMap::new(),
            clock: TrustedClock::new(known_ms, now),
            losses: LostEventsLog::default(),
        })
    }

    /// The next step, found without a write transaction. `None`: nothing in any partition.
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
        let mut rows = partitions.query(self.at)?;
        while let Some(row) = rows.next()? {
            let (topic, partition): (i64, u32) = (row.get(0)?, row.get(1)?);
            let (earliest, next, retention_ms): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
            if self.rests((topic, partition)) {
                continue;
            }
            self.at = (topic, partition);
            let end = needed_from(connection, topic, partition, time)?.map_or(next, |needed| needed.min(next));
            let cutoff_ms = time.ms.saturating_sub(retention_ms);
            let until = expired_until(connection, (topic, partition), earliest..end, cutoff_ms)?;
            if until > earliest {
                return Ok(Some(TrimStep { topic, partition, until, time }));
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

    /// Removes the step's records, in the transaction that was begun. Answers with who had not settled them.
    pub(super) fn remove(&self, connection: &Connection, step: TrimStep) -> rusqlite::Result<Vec<LostEvents>> {
        let TrimStep { topic, partition, until, time } = step;
        // Looked at again: a group may have joined, or another process may have trimmed, since the step was found.
        let Some(ends) = schema::ends(connection, topic, partition)? else { return Ok(Vec::new()) };
        let needed = needed_from(connection, topic, partition, time)?;
        let until = needed.map_or(until, |needed| needed.min(until)).min(ends.next);
        if until <= ends.earliest {
            return Ok(Vec::new());
        }
        let losses = losses(connection, (topic, partition), ends.earliest..until)?;
        for table in ["records", "times"] {
            let sql = format!("DELETE FROM {table} WHERE topic = ?1 AND partition = ?2 AND offset < ?3");
            connection.prepare_cached(&sql)?.execute((topic, partition, until))?;
        }
        connection
            .prepare_cached("UPDATE partitions SET earliest = max(earliest, ?3) WHERE topic = ?1 AND partition = ?2")?
            .execute((topic, partition, until))?;
        Ok(losses)
    }

    /// Takes in what a step that was committed removed.
    pub(super) fn removed(&mut self, losses: Vec<LostEvents>) {
        self.losses.add(losses);
    }

    /// Tells what was lost. Call it after a round, so that a line has the number of a whole round.
    pub(super) fn tell(&mut self, now: ClockReading) {
        self.losses.due(now.monotonic).iter().for_each(LostEvents::tell);
    }

    /// Tells what was not told yet: this process ends.
    pub(super) fn tell_all(&mut self) {
        self.losses.rest().iter().for_each(LostEvents::tell);
    }
}

impl LostEvents {
    fn tell(&self) {
        let Self { destination, topic, events } = self;
        tracing::warn!(
            %destination,
            %topic,
            events,
            "removed events past their retention that this destination had not settled: it never gets them (it has not \
             committed anything for {RETENTION_PROTECTION:?})"
        );
    }
}

/// Lost events that are still to be told. There is one entry for each destination that ever lost any.
#[derive(Debug, Default)]
struct LostEventsLog {
    /// (destination, topic) → events, and when a line about it was last written.
    entries: BTreeMap<(String, String), (u64, Option<Instant>)>,
}

impl LostEventsLog {
    fn add(&mut self, losses: Vec<LostEvents>) {
        for LostEvents { destination, topic, events } in losses {
            self.entries.entry((destination, topic)).or_default().0 += events;
        }
    }

    /// Those whose last line is long enough ago.
    fn due(&mut self, now: Instant) -> Vec<LostEvents> {
        self.take(|told| told.is_none_or(|told| now.duration_since(told) >= TRIM_LOSS_INTERVAL), now)
    }

    fn rest(&mut self) -> Vec<LostEvents> {
        self.take(|_| true, Instant::now())
    }

    fn take(&mut self, is_due: impl Fn(Option<Instant>) -> bool, now: Instant) -> Vec<LostEvents> {
        let due = self.entries.iter_mut().filter(|(_, (events, told))| *events > 0 && is_due(*told));
        due.map(|((destination, topic), (events, told))| {
            *told = Some(now);
            LostEvents { destination: destination.clone(), topic: topic.clone(), events: std::mem::take(events) }
        })
        .collect()
    }
}

/// The lowest offset that has to stay for a destination, by the last commit of each. `None`: all may go.
fn needed_from(connection: &Connection, topic: i64, partition: u32, time: Time) -> rusqlite::Result<Option<i64>> {
    if !time.in_doubt {
        let protected_ms = time.ms.saturating_sub(RETENTION_PROTECTION.as_millis() as i64);
        return connection
            .prepare_cached(
                "SELECT min(watermark) FROM commits WHERE topic = ?1 AND partition = ?2 AND committed_ms >= ?3",
            )?
            .query_row((topic, partition, protected_ms), |row| row.get(0));
    }
    // A destination that never committed here has settled nothing. If no destination is known, nobody can tell what is
    // still needed.
    connection
        .prepare_cached(
            "SELECT ifnull(min(ifnull(c.watermark, 0)), 0) FROM groups g
             LEFT JOIN commits c ON c.topic = g.topic AND c.partition = ?2 AND c.name = g.name
             WHERE g.topic = ?1",
        )?
        .query_row((topic, partition), |row| row.get(0))
        .map(Some)
}

/// Which destinations have not settled how many of these offsets.
fn losses(
    connection: &Connection,
    (topic, partition): (i64, u32),
    offsets: Range<i64>,
) -> rusqlite::Result<Vec<LostEvents>> {
    let mut statement = connection.prepare_cached(
        "SELECT g.name, t.name, ifnull(c.watermark, 0), c.settled FROM groups g JOIN topics t ON t.id = g.topic
         LEFT JOIN commits c ON c.topic = g.topic AND c.partition = ?2 AND c.name = g.name
         WHERE g.topic = ?1 AND ifnull(c.watermark, 0) < ?3",
    )?;
    let mut rows = statement.query((topic, partition, offsets.end))?;
    let mut losses = Vec::new();
    while let Some(row) = rows.next()? {
        let (watermark, settled): (i64, Option<String>) = (row.get(2)?, row.get(3)?);
        let events = unsettled(watermark, settled.as_deref(), offsets.clone());
        if events > 0 {
            losses.push(LostEvents { destination: row.get(0)?, topic: row.get(1)?, events });
        }
    }
    Ok(losses)
}

/// How many of these offsets are not settled. A settled map that cannot be read counts as empty.
fn unsettled(watermark: i64, settled: Option<&str>, offsets: Range<i64>) -> u64 {
    let state = settled
        .and_then(|settled| PartitionState::decode(watermark, settled).ok())
        .unwrap_or(PartitionState::at(watermark));
    let within = state.within(offsets.clone());
    let above: i64 = within.settled.iter().map(|range| range.end - range.start).sum();
    (offsets.end - within.watermark - above).unsigned_abs()
}

/// The offset of the first record that is not older than `cutoff_ms`, or the end of one step.
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
    let limit = TRIM_RECORDS_MAX as i64;
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
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    /// A wall clock that is right shows this when a test begins.
    const BEGAN_MS: i64 = 1_800_000_000_000;
    const EVENTS: i64 = 1;
    const DEAD: i64 = 2;

    fn ms(duration: Duration) -> i64 {
        duration.as_millis() as i64
    }

    /// A database with a week's retention, in which a test can set the clocks.
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

        /// A hundred records, each stamped with this time.
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
            let commit = "INSERT OR REPLACE INTO commits VALUES (?1, ?2, 0, ?3, ?4, 1, ?5)";
            self.connection.execute(commit, (name, EVENTS, watermark, settled, committed_ms)).unwrap();
        }

        fn next(&self, topic: i64) -> i64 {
            schema::ends(&self.connection, topic, 0).unwrap().unwrap().next
        }

        fn earliest(&self, topic: i64) -> i64 {
            schema::ends(&self.connection, topic, 0).unwrap().unwrap().earliest
        }

        /// So long after the beginning, with a wall clock that is `wrong` by so many milliseconds.
        fn at(&self, passed: Duration, wrong_ms: i64) -> ClockReading {
            ClockReading { monotonic: self.began + passed, wall_ms: BEGAN_MS + ms(passed) + wrong_ms }
        }

        fn opened(&self, now: ClockReading) -> Trimmer {
            Trimmer::new(&self.connection, now).unwrap()
        }

        /// WatcherDuties until nothing is left to remove; who lost what.
        fn trim(&self, trimmer: &mut Trimmer, now: ClockReading) -> Vec<LostEvents> {
            while let Some(step) = trimmer.next_step(&self.connection, now).unwrap() {
                let losses = trimmer.remove(&self.connection, step).unwrap();
                trimmer.removed(losses);
            }
            trimmer.losses.due(now.monotonic)
        }
    }

    #[test]
    fn a_clock_that_is_ahead_at_the_start_removes_nothing_that_a_destination_has_not_settled() {
        for days in [1, 8, 31, 365, 20_000] {
            let house = TestDatabase::new();
            let ahead = ms(days * DAY);
            house.append(EVENTS, BEGAN_MS - 1_000);
            for (name, watermark) in [("fast", 100), ("slow", 40)] {
                house.join(name);
                house.commit(name, watermark, "1", BEGAN_MS - 500);
            }
            let mut trimmer = house.opened(house.at(Duration::ZERO, ahead));
            for minutes in [0, 1, 30, 60] {
                // What ingest appends meanwhile is stamped by the wrong clock.
                house.append(EVENTS, BEGAN_MS + ahead);
                let now = house.at(Duration::from_secs(60 * minutes), ahead);
                assert_eq!(house.trim(&mut trimmer, now), [], "{days} days, {minutes} min");
                assert_eq!(house.earliest(EVENTS), 0, "{days} days, {minutes} min: settled an hour ago");
            }
            // A restart, now that the log itself tells of the wrong time: what is settled may go, and nothing else.
            let mut trimmer = house.opened(house.at(Duration::from_secs(3_600), ahead));
            assert_eq!(house.trim(&mut trimmer, house.at(Duration::from_secs(3_601), ahead)), []);
            assert_eq!(house.earliest(EVENTS), if days < 7 { 0 } else { 40 }, "{days} days");
        }
    }

    #[test]
    fn a_destination_that_joined_and_never_committed_keeps_everything_at_the_start() {
        let house = TestDatabase::new();
        house.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        house.join("fast");
        house.commit("fast", 100, "1", BEGAN_MS);
        house.join("new");
        let mut trimmer = house.opened(house.at(Duration::ZERO, 0));
        assert_eq!(house.trim(&mut trimmer, house.at(Duration::from_secs(1), 0)), []);
        assert_eq!(house.earliest(EVENTS), 0);
    }

    #[test]
    fn what_no_destination_reads_goes_only_after_the_guard() {
        let house = TestDatabase::new();
        // Dead letters; and events before the first destination.
        house.append(DEAD, BEGAN_MS - ms(10 * DAY));
        house.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        let mut trimmer = house.opened(house.at(Duration::ZERO, 0));
        for (seconds, earliest) in [(0, 0), (3_659, 0), (3_660, 100)] {
            house.trim(&mut trimmer, house.at(Duration::from_secs(seconds), 0));
            assert_eq!((house.earliest(DEAD), house.earliest(EVENTS)), (earliest, earliest), "{seconds} s");
        }
    }

    #[test]
    fn a_clock_that_is_right_removes_what_is_settled_at_once() {
        let house = TestDatabase::new();
        house.append(EVENTS, BEGAN_MS - ms(8 * DAY));
        house.append(EVENTS, BEGAN_MS - ms(6 * DAY));
        house.join("billing");
        house.commit("billing", 200, "1", BEGAN_MS - 500);
        let mut trimmer = house.opened(house.at(Duration::ZERO, 0));
        house.trim(&mut trimmer, house.at(Duration::ZERO, 0));
        assert_eq!(house.earliest(EVENTS), 100);
    }

    #[test]
    fn a_clock_far_behind_that_is_set_right_later_removes_nothing_unsettled() {
        let house = TestDatabase::new();
        house.append(EVENTS, BEGAN_MS - ms(DAY));
        house.join("billing");
        house.commit("billing", 10, "1", BEGAN_MS - ms(DAY));
        let behind = -BEGAN_MS;
        let mut trimmer = house.opened(house.at(Duration::ZERO, behind));
        house.trim(&mut trimmer, house.at(Duration::from_secs(1), behind));
        // What the wrong clock stamped looks half a century old once it is set right.
        house.append(EVENTS, 2_000);
        house.commit("billing", 20, "1", 2_000);
        for (seconds, wrong) in [(10_000, behind), (10_001, 0), (13_660, 0)] {
            house.trim(&mut trimmer, house.at(Duration::from_secs(seconds), wrong));
            assert_eq!(house.earliest(EVENTS), 0, "{seconds} s");
        }
        // It is at work, so it commits within the hour, and keeps what it needs.
        house.commit("billing", 20, "1", BEGAN_MS + 13_000_000);
        house.trim(&mut trimmer, house.at(Duration::from_secs(13_661), 0));
        assert_eq!(house.earliest(EVENTS), 0, "the first record is a day old");
    }

    #[test]
    fn a_destination_that_was_away_for_a_week_loses_events_and_their_number_is_told() {
        let house = TestDatabase::new();
        house.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        for (name, watermark, settled) in
            [("away", 40, vec![50..60, 90..120]), ("gone\u{1b}[2J", 100, Vec::new()), ("unread", 0, Vec::new())]
        {
            house.join(name);
            let map = PartitionState { watermark, settled, last_reset: None }.encode_settled();
            let map = if name == "unread" { "damaged".into() } else { map };
            house.commit(name, watermark, &map, BEGAN_MS - ms(8 * DAY));
        }
        // A position that was asked for is not a destination.
        house.commit("away.moves", 0, "r1", 0);
        let mut trimmer = house.opened(house.at(Duration::ZERO, 0));
        let hour = Duration::from_secs(3_660);
        let lost = house.trim(&mut trimmer, house.at(hour, 0));
        let lost: Vec<(&str, u64)> = lost.iter().map(|loss| (loss.destination.as_str(), loss.events)).collect();
        assert_eq!((lost, house.earliest(EVENTS)), (vec![("away", 40), ("unread", 100)], 100));
        // The next lines come at a bounded rate, and nothing is left out of their numbers.
        let mut told = 0;
        for second in 1..=120 {
            house.append(EVENTS, BEGAN_MS - ms(10 * DAY));
            let now = house.at(hour + Duration::from_secs(second), 0);
            let mut lines = house.trim(&mut trimmer, now);
            lines.retain(|loss| loss.destination == "unread");
            told += lines.iter().map(|loss| loss.events).sum::<u64>();
            assert!(lines.is_empty() || second % 60 == 0, "{second} s");
        }
        assert_eq!(told, 12_000);
        house.append(EVENTS, BEGAN_MS - ms(10 * DAY));
        house.trim(&mut trimmer, house.at(hour + Duration::from_secs(121), 0));
        let rest = trimmer.losses.rest();
        assert_eq!(rest.iter().find(|loss| loss.destination == "unread").map(|loss| loss.events), Some(100));
    }

    #[test]
    fn a_wall_clock_that_jumps_ahead_is_in_doubt_until_groups_have_committed_again() {
        let began = Instant::now();
        let now = |seconds, wall: i64| ClockReading {
            monotonic: began + Duration::from_secs(seconds),
            wall_ms: wall * 1_000,
        };
        let mut clock = TrustedClock::new(None, now(0, 0));
        // (seconds on the monotonic clock, on the wall clock, what is believed, whether it is in doubt)
        for (passed, wall, believed, in_doubt) in [
            (0, 0, 0, true),
            (3_659, 3_659, 3_659, true),
            (3_660, 3_660, 3_660, false),
            // A process that was held up: both clocks went on.
            (4_260, 4_260, 4_260, false),
            (4_261, 4_321, 4_321, false),
            // Set back, and by less than a jump ahead.
            (4_262, 3_500, 3_500, false),
            (4_263, 3_550, 3_550, false),
            // A suspend of a week, and another one.
            (4_264, 608_350, 3_551, true),
            (4_265, 608_351, 3_552, true),
            (4_266, 999_999, 3_553, true),
            (4_266 + 3_659, 1_003_658, 7_212, true),
            (4_266 + 3_660, 1_003_659, 1_003_659, false),
        ] {
            let time = clock.time(now(passed, wall));
            assert_eq!(time, Time { ms: believed * 1_000, in_doubt }, "{passed} s, {wall} s");
        }
    }
}
