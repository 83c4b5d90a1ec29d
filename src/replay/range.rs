//! Where a replay begins and ends, and the offsets that this means in each partition.
//!
//! The beginning is part of the range, the end is not. A time chooses every event that was accepted in between, in
//! whatever order their times are in the log: clocks differ from machine to machine, and jump. So a range by time is
//! read from the first event that was accepted at its beginning or later, up to the end of the log, and each event is
//! asked for its own time ([`TimeRange`]):
//!
//! ```text
//!  accepted      10:00  10:01  11:10  10:02  10:03  11:00  11:01  10:04  11:02
//!  10:01 – 11:00          ✓      ·      ✓      ✓      ·      ·      ✓            ✓ taken, · outside
//!  read                   └────────────────────────────────────────────────┘
//! ```
//!
//! A position (of a rewind or a fast-forward) is one offset in a partition. A time means the first event that
//! was accepted then or later.

use super::position::{Position, show_ms, unix_time_meant};
use crate::core::outcome::Failure;
use crate::log::Log;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Both ends as typed; `None`: the log's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    pub from: Option<Position>,
    pub until: Option<Position>,
}

impl Range {
    /// What of it is known to be wrong without the log.
    pub fn check(&self, now_ms: i64) -> Result<(), String> {
        for (flag, place) in [("--from", &self.from), ("--until", &self.until)] {
            if let Some(place) = place {
                place.check_not_ahead(now_ms).map_err(|why| format!("{flag} {why}"))?;
            }
        }
        let (Some(from), Some(until)) = (&self.from, &self.until) else { return Ok(()) };
        let moments = from.moment_ms(now_ms).zip(until.moment_ms(now_ms));
        let times_turned = moments.is_some_and(|(from, until)| from >= until);
        let turned = match (from, until) {
            (Position::Offset(from), Position::Offset(until)) => from >= until,
            _ => match (from.named(), until.named()) {
                (Some(from), Some(until)) => {
                    from.iter().any(|(partition, from)| until.get(partition).is_some_and(|until| from >= until))
                }
                _ => times_turned,
            },
        };
        if turned {
            return Err(format!("--from {from} is not before --until {until}"));
        }
        Ok(())
    }

    /// The times that the range says; the same `now_ms` has to be given to [`resolve`].
    pub fn times(&self, now_ms: i64) -> TimeRange {
        let moment = |place: &Option<Position>| place.as_ref().and_then(|place| place.moment_ms(now_ms));
        TimeRange { from_ms: moment(&self.from), until_ms: moment(&self.until) }
    }

    /// What a person is to be told who used a deprecated form.
    pub fn deprecations(&self) -> impl Iterator<Item = String> {
        [&self.from, &self.until].into_iter().flatten().filter_map(Position::deprecation)
    }
}

/// TimeRange of acceptance, in milliseconds since the Unix epoch. `None`: there is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<i64>,
    /// Not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

impl TimeRange {
    /// Whether any event is in it.
    pub fn is_unbounded(&self) -> bool {
        *self == Self::default()
    }

    pub fn contains(&self, time_ms: i64) -> bool {
        self.from_ms.is_none_or(|from_ms| from_ms <= time_ms) && self.until_ms.is_none_or(|until_ms| time_ms < until_ms)
    }
}

/// What a time means as the end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UntilTime {
    /// The end of the log: whoever reads the range asks each event for its own time.
    Scan,
    /// The first event that was accepted then or later. An age of 0 is the end of the log, whatever the log holds.
    Position,
}

/// What a partition of the log holds: from its earliest offset up to, without, its latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LogBounds {
    earliest: i64,
    latest: i64,
}

/// The offsets of one partition that a range means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetRange {
    pub partition: u32,
    pub from: i64,
    /// Not part of it.
    pub until: i64,
    /// Offsets that were asked for and that retention has removed.
    pub removed: i64,
}

/// Why a range has nothing in the log, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeError {
    /// An end of the range is not a place of this log: a partition that does not exist, a time that was written as an
    /// offset, an offset past the end.
    NotAPlace(String),
    /// Both ends are places of this log, and there are no records between them.
    NothingThere(String),
}

impl RangeError {
    /// What a person is told.
    pub fn into_why(self) -> String {
        match self {
            Self::NotAPlace(why) | Self::NothingThere(why) => why,
        }
    }
}

/// Turns the range into offsets.
///
/// # Errors
/// The inner one: a person asked for what is not in the log.
pub async fn resolve(
    log: &dyn Log,
    range: &Range,
    now_ms: i64,
    time_as_end: UntilTime,
) -> Result<Result<Vec<OffsetRange>, RangeError>, Failure> {
    let partitions = log.partitions().await?;
    let mut all = Vec::new();
    let mut found = Vec::new();
    for partition in 0..partitions {
        let ends = LogBounds { earliest: log.earliest(partition).await?, latest: log.latest(partition).await? };
        all.push(ends);
        let from = match &range.from {
            Some(place) => offset_of(place, log, partition, ends, now_ms).await?,
            None => Some(ends.earliest),
        };
        let until = match (&range.until, time_as_end) {
            (None, _) | (Some(Position::Time(_) | Position::Ago(_)), UntilTime::Scan) => Some(ends.latest),
            (Some(Position::Ago(Duration::ZERO)), UntilTime::Position) => Some(ends.latest),
            (Some(place), _) => offset_of(place, log, partition, ends, now_ms).await?,
        };
        if let (Some(from), Some(until)) = (from, until) {
            found.push((partition, from, until));
        }
    }
    Ok(stretches(range, &all, &found))
}

/// The offset of the place in this partition; `None`: it has no part in the range.
async fn offset_of(
    place: &Position,
    log: &dyn Log,
    partition: u32,
    ends: LogBounds,
    now_ms: i64,
) -> Result<Option<i64>, Failure> {
    match place {
        Position::Offset(offset) => Ok(Some(*offset)),
        Position::Offsets(offsets) | Position::DeprecatedOffsets(offsets) => Ok(offsets.get(&partition).copied()),
        Position::Time(_) | Position::Ago(_) => {
            let moment = place.moment_ms(now_ms).unwrap_or(now_ms);
            Ok(Some(log.offset_at(partition, moment).await?.unwrap_or(ends.latest)))
        }
    }
}

/// `found`: partition, beginning and end as they were asked for.
fn stretches(range: &Range, all: &[LogBounds], found: &[(u32, i64, i64)]) -> Result<Vec<OffsetRange>, RangeError> {
    let holds = || {
        let partition = |(partition, ends): (usize, &LogBounds)| match ends.earliest < ends.latest {
            true => format!("partition {partition}: {} to {}", ends.earliest, ends.latest - 1),
            false => format!("partition {partition}: nothing, and {} comes next", ends.latest),
        };
        let told: Vec<String> = all.iter().enumerate().take(8).map(partition).collect();
        format!("the log holds {}", told.join("; "))
    };
    for place in [&range.from, &range.until].into_iter().flatten() {
        if let Some(missing) = place.named().into_iter().flatten().find(|(p, _)| **p as usize >= all.len()) {
            return Err(RangeError::NotAPlace(format!(
                "there is no partition {}: the topic has {}",
                missing.0,
                all.len()
            )));
        }
        if let Some((offset, (time_ms, written))) = time_taken_for_an_offset(place, all) {
            return Err(RangeError::NotAPlace(format!(
                "{place} is read as an offset, and the log does not have it: {}. If {offset} is a time ({}), write {written}",
                holds(),
                show_ms(time_ms)
            )));
        }
    }
    // What was named for itself has to be there; one offset for all of them need not be in each.
    let is_named = range.from.as_ref().is_some_and(|from| from.named().is_some());
    let is_past = |&&(partition, from, _): &&(u32, i64, i64)| from >= all[partition as usize].latest;
    if let Some((partition, from, _)) = found.iter().find(is_past).filter(|_| is_named) {
        return Err(RangeError::NotAPlace(format!("--from p{partition}:{from} is past the end: {}", holds())));
    }
    let stretches: Vec<OffsetRange> = found
        .iter()
        .map(|&(partition, asked_from, asked_until)| {
            let LogBounds { earliest, latest } = all[partition as usize];
            let from = asked_from.clamp(earliest, latest);
            let until = asked_until.clamp(from, latest);
            let removed = (earliest.min(asked_until) - asked_from).max(0);
            OffsetRange { partition, from, until, removed }
        })
        .collect();
    let is_time = |place: &Position| matches!(place, Position::Time(_) | Position::Ago(_));
    let by_offset = [&range.from, &range.until].into_iter().flatten().any(|place| !is_time(place));
    if by_offset && stretches.iter().all(|stretch| stretch.from >= stretch.until) {
        let asked = match (&range.from, &range.until) {
            (Some(from), Some(until)) => format!("{from} to {until}"),
            (Some(from), None) => format!("--from {from}"),
            (None, Some(until)) => format!("--until {until}"),
            (None, None) => "everything".into(),
        };
        return Err(RangeError::NothingThere(format!("{asked} is outside the log: {}", holds())));
    }
    Ok(stretches)
}

/// An offset of the place that is past the end of the log and would be a plausible time in seconds since the Unix epoch;
/// with that time. RedriveMarker for an offset, the end of a range would be the end of the log, unsaid.
fn time_taken_for_an_offset(place: &Position, all: &[LogBounds]) -> Option<(i64, (i64, String))> {
    let latest = |partition: u32| all.get(partition as usize).map_or(0, |ends| ends.latest);
    let is_past = match place {
        Position::Offset(offset) => all.iter().all(|ends| *offset > ends.latest).then_some(*offset),
        _ => {
            place.named()?.iter().find(|(partition, offset)| **offset > latest(**partition)).map(|(_, offset)| *offset)
        }
    };
    is_past.and_then(|offset| Some((offset, unix_time_meant(offset)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(text: &str) -> Position {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn what_is_wrong_without_the_log_is_said_without_it() {
        let check = |from: &str, until: &str| {
            let place = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
            Range { from: place(from), until: place(until) }.check(1_767_323_045_678)
        };
        for fine in
            [("5", "6"), ("2h", "1h"), ("2026-01-01T00:00:00Z", "1h"), ("p0:5", "p0:6,p1:3"), ("", ""), ("7", "1h")]
        {
            assert_eq!(check(fine.0, fine.1), Ok(()), "{fine:?}");
        }
        for (from, until, says) in [
            ("6", "6", "not before"),
            ("1h", "2h", "not before"),
            ("p0:5,p1:9", "p1:9", "not before"),
            ("2026-01-03T00:00:00Z", "", "in the future"),
            ("", "2026-01-03T00:00:00Z", "--until 2026-01-03T00:00:00.000Z is in the future"),
        ] {
            let why = check(from, until).unwrap_err();
            assert!(why.contains(says), "{from} {until}: {why}");
        }
    }

    #[test]
    fn what_the_log_does_not_hold_is_told_with_what_it_holds() {
        let all = [LogBounds { earliest: 10, latest: 20 }, LogBounds { earliest: 0, latest: 0 }];
        let resolve = |from: Option<&str>, until: Option<&str>, found: &[(u32, i64, i64)]| {
            stretches(&Range { from: from.map(place), until: until.map(place) }, &all, found)
        };
        let stretch = |partition, from, until, removed| OffsetRange { partition, from, until, removed };
        let both = [stretch(0, 12, 20, 0), stretch(1, 0, 0, 0)];
        assert_eq!(resolve(Some("12"), None, &[(0, 12, 20), (1, 12, 0)]).unwrap(), both);
        assert_eq!(resolve(Some("p0:4"), Some("p0:15"), &[(0, 4, 15)]).unwrap(), [stretch(0, 10, 15, 6)]);
        assert_eq!(resolve(Some("p0:4"), None, &[(0, 4, 20)]).unwrap(), [stretch(0, 10, 20, 6)]);
        for (from, until, found, says) in [
            (
                Some("20"),
                None,
                vec![(0, 20, 20), (1, 20, 0)],
                "--from 20 is outside the log: the log holds partition 0: 10",
            ),
            (Some("3"), Some("9"), vec![(0, 3, 9), (1, 3, 9)], "3 to 9 is outside"),
            (Some("p1:0"), None, vec![(1, 0, 0)], "--from p1:0 is past the end"),
            (Some("p5:0"), None, vec![], "no partition 5"),
        ] {
            let outside = resolve(from, until, &found).unwrap_err();
            let is_place = matches!(outside, RangeError::NothingThere(_));
            let why = outside.into_why();
            assert!(why.contains(says) && is_place == says.contains("is outside"), "{why}");
        }
        for (from, until) in [
            (Some("1767350000"), None),
            (Some("0"), Some("1767350000")),
            (None, Some("1767350000000")),
            (Some("p1:1767350000"), None),
            (Some("p0:1"), Some("p0:1767350000,p1:5")),
        ] {
            let RangeError::NotAPlace(why) = resolve(from, until, &[(0, 0, 20)]).unwrap_err() else {
                panic!("no place")
            };
            assert!(why.contains("is read as an offset") && why.contains("write @1767350000"), "{why}");
        }
        assert!(resolve(Some("0"), Some("999999"), &[(0, 0, 999_999)]).is_ok(), "as far as the log goes");
        // A time at which nothing came is a range with nothing in it, and no mistake.
        assert_eq!(resolve(Some("1h"), None, &[(0, 20, 20)]).unwrap(), [stretch(0, 20, 20, 0)]);
    }

    #[test]
    fn times_hold_their_beginning_and_not_their_end() {
        let times = |from_ms, until_ms| TimeRange { from_ms, until_ms };
        let of = |times: TimeRange| [9, 10, 19, 20].map(|ms| times.contains(ms));
        assert_eq!(of(times(Some(10), Some(20))), [false, true, true, false]);
        assert_eq!(of(times(Some(10), None)), [false, true, true, true]);
        assert_eq!(of(times(None, Some(20))), [true, true, true, false]);
        assert!(TimeRange::default().is_unbounded() && of(TimeRange::default()) == [true; 4]);
        let range = Range { from: Some(Position::Ago(Duration::from_secs(2))), until: Some(Position::Time(9_500)) };
        assert_eq!(range.times(10_000), times(Some(8_000), Some(9_500)));
        assert!(Range { from: Some(Position::Offset(5)), until: None }.times(10_000).is_unbounded());
    }

    proptest! {
        #[test]
        fn a_stretch_is_inside_the_log_and_what_was_removed_is_counted(
            earliest in 0i64..100, held in 0i64..100, from in 0i64..300, len in 0i64..300,
        ) {
            let all = [LogBounds { earliest, latest: earliest + held }];
            let found = stretches(&Range::default(), &all, &[(0, from, from + len)]).unwrap();
            let OffsetRange { from: begins, until, removed, .. } = found[0];
            let asked = from..from + len;
            prop_assert_eq!(until - begins, asked.clone().filter(|at| (earliest..earliest + held).contains(at)).count() as i64);
            prop_assert_eq!(removed, asked.filter(|at| *at < earliest).count() as i64);
        }
    }
}
