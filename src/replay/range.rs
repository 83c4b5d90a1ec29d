//! The range of a replay, and the offsets that it selects in each partition.
//!
//! The start of a range belongs to it, the end does not. A range by time selects every event that was accepted in that
//! time, whatever the order of the times in the log: clocks differ between machines, and jump. So the log is read from
//! the first event that was accepted at the start time or later, up to its end, and the time of each event is compared
//! with the range ([`TimeRange`]):
//!
//! ```text
//!  accepted      10:00  10:01  11:10  10:02  10:03  11:00  11:01  10:04  11:02
//!  10:01 – 11:00          ✓      ·      ✓      ✓      ·      ·      ✓            ✓ selected, · outside
//!  read                   └────────────────────────────────────────────────┘
//! ```
//!
//! A rewind and a fast-forward need one offset in each partition instead. For them a time means the first event that
//! was accepted at that time or later.

use super::position::{Position, as_unix_time};
use crate::clock::show_ms;
use crate::core::outcome::Failure;
use crate::log::Log;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The error if no event was ever written to the log.
pub(super) const NO_EVENTS: &str = "the log has no events yet";

/// Both ends as typed. `None` is the start or the end of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    pub from: Option<Position>,
    pub until: Option<Position>,
}

/// The flags that a range was typed with, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeFlags {
    /// `--from` and `--until`.
    FromUntil,
    /// `--since` of dead letters.
    Since,
    /// `--fast-forward`, which is the end of the range that is left out.
    FastForward,
}

impl RangeFlags {
    fn from(self) -> &'static str {
        match self {
            Self::FromUntil | Self::FastForward => "--from",
            Self::Since => "--since",
        }
    }

    fn until(self) -> &'static str {
        match self {
            Self::FromUntil | Self::Since => "--until",
            Self::FastForward => "--fast-forward",
        }
    }
}

impl Range {
    /// Refuses what is wrong with the range whatever the log holds: a time in the future, or a start after the end.
    pub fn check(&self, now_ms: i64, flags: RangeFlags) -> Result<(), String> {
        for (flag, position) in [(flags.from(), &self.from), (flags.until(), &self.until)] {
            if let Some(position) = position {
                position.check_not_in_future(now_ms).map_err(|why| format!("{flag} {why}"))?;
            }
        }
        let (Some(from), Some(until)) = (&self.from, &self.until) else { return Ok(()) };
        let is_reversed = match (from, until) {
            (Position::Offset(from), Position::Offset(until)) => from >= until,
            _ => match (from.partition_offsets(), until.partition_offsets()) {
                (Some(from), Some(until)) => {
                    from.iter().any(|(partition, from)| until.get(partition).is_some_and(|until| from >= until))
                }
                _ => from.time_ms(now_ms).zip(until.time_ms(now_ms)).is_some_and(|(from, until)| from >= until),
            },
        };
        if is_reversed {
            return Err(format!("{} {from} is not before {} {until}", flags.from(), flags.until()));
        }
        Ok(())
    }

    /// The times that the range selects. Pass the same `now_ms` to [`resolve`].
    pub fn times(&self, now_ms: i64) -> TimeRange {
        let time = |position: &Option<Position>| position.as_ref().and_then(|position| position.time_ms(now_ms));
        TimeRange { from_ms: time(&self.from), until_ms: time(&self.until) }
    }

    /// The warnings for an operator who typed a deprecated form.
    pub fn deprecation_warnings(&self) -> impl Iterator<Item = String> {
        [&self.from, &self.until].into_iter().flatten().filter_map(Position::deprecation_warning)
    }
}

/// Times of acceptance, in milliseconds since the Unix epoch. `None` means no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeRange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_ms: Option<i64>,
    /// The first millisecond after the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
}

impl TimeRange {
    /// Whether it contains every time.
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
    /// Read up to the end of the log, and compare the time of each event with the range.
    ScanToEnd,
    /// End at the first event that was accepted at that time or later. An age of 0 is the end of the log, even if a
    /// wrong clock has stamped an event with a time in the future.
    FirstLaterEvent,
}

/// The offsets that one partition of the log holds: from `earliest` up to, but not including, `latest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LogBounds {
    earliest: i64,
    latest: i64,
}

/// The offsets of one partition that a range selects, limited to those that the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OffsetRange {
    pub partition: u32,
    pub from: i64,
    /// The first offset after the range.
    pub until: i64,
    /// How many offsets of the range retention has removed.
    pub removed: i64,
}

/// Why a range selects nothing in the log. Each holds the message for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// One end does not exist in this log: an unknown partition, a time that was typed as an offset, or an offset past
    /// the end of a named partition.
    #[error("{0}")]
    NoSuchPosition(String),
    /// Both ends exist, but the log has no records between them.
    #[error("{0}")]
    Empty(String),
}

/// Turns the range into offsets.
///
/// # Errors
/// The outer error: the log cannot be asked. The inner one: the range selects nothing that is in the log.
pub async fn resolve(
    log: &dyn Log,
    range: &Range,
    flags: RangeFlags,
    now_ms: i64,
    until_time: UntilTime,
) -> Result<Result<Vec<OffsetRange>, RangeError>, Failure> {
    let partitions = log.partitions().await?;
    let (mut all_bounds, mut asked) = (Vec::new(), Vec::new());
    for partition in 0..partitions {
        let bounds = LogBounds { earliest: log.earliest(partition).await?, latest: log.latest(partition).await? };
        all_bounds.push(bounds);
        let from = match &range.from {
            Some(position) => offset_of(position, log, partition, bounds, now_ms).await?,
            None => Some(bounds.earliest),
        };
        let until = match (&range.until, until_time) {
            (None, _) | (Some(Position::Time(_) | Position::Ago(_)), UntilTime::ScanToEnd) => Some(bounds.latest),
            (Some(Position::Ago(Duration::ZERO)), UntilTime::FirstLaterEvent) => Some(bounds.latest),
            (Some(position), _) => offset_of(position, log, partition, bounds, now_ms).await?,
        };
        if let (Some(from), Some(until)) = (from, until) {
            asked.push((partition, from, until));
        }
    }
    Ok(clamp_to_log(range, flags, &all_bounds, &asked))
}

/// The offset of the position in this partition. `None`: the position does not name this partition.
async fn offset_of(
    position: &Position,
    log: &dyn Log,
    partition: u32,
    bounds: LogBounds,
    now_ms: i64,
) -> Result<Option<i64>, Failure> {
    match position {
        Position::Offset(offset) => Ok(Some(*offset)),
        Position::Offsets(offsets) | Position::DeprecatedOffsets(offsets) => Ok(offsets.get(&partition).copied()),
        Position::Time(_) | Position::Ago(_) => {
            let time_ms = position.time_ms(now_ms).unwrap_or(now_ms);
            Ok(Some(log.offset_at(partition, time_ms).await?.unwrap_or(bounds.latest)))
        }
    }
}

/// Limits the offsets that were asked for (partition, start and end) to those that the log holds, and refuses a range
/// that selects none of them.
fn clamp_to_log(
    range: &Range,
    flags: RangeFlags,
    all_bounds: &[LogBounds],
    asked: &[(u32, i64, i64)],
) -> Result<Vec<OffsetRange>, RangeError> {
    for (flag, position) in [(flags.from(), &range.from), (flags.until(), &range.until)] {
        if let Some(position) = position {
            check_exists(flag, position, all_bounds)?;
        }
    }
    // A range of times in which nothing was accepted is not a mistake. A range of offsets that do not exist is one.
    let is_time = |position: &Position| matches!(position, Position::Time(_) | Position::Ago(_));
    let by_offset = [&range.from, &range.until].into_iter().flatten().any(|position| !is_time(position));
    if by_offset && all_bounds.iter().all(|bounds| bounds.latest == 0) {
        return Err(RangeError::Empty(NO_EVENTS.to_owned()));
    }
    // A start that names its partitions has to exist in each. One offset for all partitions may be past the end of some.
    let names_partitions = range.from.as_ref().is_some_and(|from| from.partition_offsets().is_some());
    let is_past_end = |&&(partition, from, _): &&(u32, i64, i64)| from >= all_bounds[partition as usize].latest;
    if let Some((partition, from, _)) = asked.iter().find(is_past_end).filter(|_| names_partitions) {
        return Err(RangeError::NoSuchPosition(format!(
            "{} p{partition}:{from} is past the end of the partition: {}",
            flags.from(),
            describe_log(all_bounds)
        )));
    }
    let ranges: Vec<OffsetRange> = asked
        .iter()
        .map(|&(partition, asked_from, asked_until)| {
            let LogBounds { earliest, latest } = all_bounds[partition as usize];
            let from = asked_from.clamp(earliest, latest);
            let until = asked_until.clamp(from, latest);
            let removed = (earliest.min(asked_until) - asked_from).max(0);
            OffsetRange { partition, from, until, removed }
        })
        .collect();
    if by_offset && ranges.iter().all(|range| range.from >= range.until) {
        let from = range.from.as_ref().map(|from| format!("{} {from}", flags.from()));
        let until = range.until.as_ref().map(|until| format!("{} {until}", flags.until()));
        let typed: Vec<String> = from.into_iter().chain(until).collect();
        return Err(RangeError::Empty(format!("{} is outside the log: {}", typed.join(" "), describe_log(all_bounds))));
    }
    Ok(ranges)
}

/// Refuses a partition that the topic does not have, and an offset that is surely meant as a time.
fn check_exists(flag: &str, position: &Position, all_bounds: &[LogBounds]) -> Result<(), RangeError> {
    let unknown = |partition: &u32| *partition as usize >= all_bounds.len();
    if let Some(partition) = position.partition_offsets().into_iter().flatten().map(|(p, _)| *p).find(unknown) {
        let has = match all_bounds.len().checked_sub(1) {
            Some(last) => format!("its partitions are 0 to {last}"),
            None => "and no other partition".to_owned(),
        };
        return Err(RangeError::NoSuchPosition(format!(
            "{flag} {position}: the topic has no partition {partition}, {has}"
        )));
    }
    match time_typed_as_offset(position, all_bounds) {
        None => Ok(()),
        Some((offset, (time_ms, text))) => Err(RangeError::NoSuchPosition(format!(
            "{flag} {position} is read as an offset, and the log does not have it: {}. If {offset} is a time ({}), write \
             {text}",
            describe_log(all_bounds),
            show_ms(time_ms)
        ))),
    }
}

/// Says which offsets the log holds, in the first few partitions.
fn describe_log(all_bounds: &[LogBounds]) -> String {
    const PARTITIONS_SHOWN_MAX: usize = 8;
    let describe = |(partition, bounds): (usize, &LogBounds)| match bounds.earliest < bounds.latest {
        true => format!("partition {partition}: {} to {}", bounds.earliest, bounds.latest - 1),
        false => format!("partition {partition}: no events, the next offset is {}", bounds.latest),
    };
    let shown: Vec<String> = all_bounds.iter().enumerate().take(PARTITIONS_SHOWN_MAX).map(describe).collect();
    let more = match all_bounds.len().saturating_sub(PARTITIONS_SHOWN_MAX) {
        0 => String::new(),
        more => format!("; and {more} more partitions"),
    };
    format!("the log holds {}{more}", shown.join("; "))
}

/// Finds an offset of the position that is past the end of the log and would be a plausible Unix time, with that time.
/// If such an end of a range were taken as an offset, the range would silently go to the end of the log.
fn time_typed_as_offset(position: &Position, all_bounds: &[LogBounds]) -> Option<(i64, (i64, String))> {
    let latest = |partition: u32| all_bounds.get(partition as usize).map_or(0, |bounds| bounds.latest);
    let past_end = match position {
        Position::Offset(offset) => all_bounds.iter().all(|bounds| *offset > bounds.latest).then_some(*offset),
        _ => {
            let offsets = position.partition_offsets()?;
            offsets.iter().find(|(partition, offset)| **offset > latest(**partition)).map(|(_, offset)| *offset)
        }
    };
    past_end.and_then(|offset| Some((offset, as_unix_time(offset)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(text: &str) -> Position {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn a_range_that_no_log_can_hold_is_refused() {
        let check = |from: &str, until: &str| {
            let position = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
            let range = Range { from: position(from), until: position(until) };
            range.check(1_767_323_045_678, RangeFlags::FromUntil)
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
    fn a_position_that_the_log_does_not_hold_is_refused_with_what_it_holds() {
        let all = [LogBounds { earliest: 10, latest: 20 }, LogBounds { earliest: 0, latest: 0 }];
        let resolve = |from: Option<&str>, until: Option<&str>, found: &[(u32, i64, i64)]| {
            let range = Range { from: from.map(position), until: until.map(position) };
            clamp_to_log(&range, RangeFlags::FromUntil, &all, found)
        };
        let offsets = |partition, from, until, removed| OffsetRange { partition, from, until, removed };
        let both = [offsets(0, 12, 20, 0), offsets(1, 0, 0, 0)];
        assert_eq!(resolve(Some("12"), None, &[(0, 12, 20), (1, 12, 0)]).unwrap(), both);
        assert_eq!(resolve(Some("p0:4"), Some("p0:15"), &[(0, 4, 15)]).unwrap(), [offsets(0, 10, 15, 6)]);
        assert_eq!(resolve(Some("p0:4"), None, &[(0, 4, 20)]).unwrap(), [offsets(0, 10, 20, 6)]);
        for (from, until, found, says) in [
            (
                Some("20"),
                None,
                vec![(0, 20, 20), (1, 20, 0)],
                "--from 20 is outside the log: the log holds partition 0: 10",
            ),
            (Some("3"), Some("9"), vec![(0, 3, 9), (1, 3, 9)], "--from 3 --until 9 is outside"),
            (Some("p1:0"), None, vec![(1, 0, 0)], "--from p1:0 is past the end"),
            (Some("p5:0"), None, vec![], "the topic has no partition 5, its partitions are 0 to 1"),
        ] {
            let error = resolve(from, until, &found).unwrap_err();
            let is_empty = matches!(error, RangeError::Empty(_));
            let why = error.to_string();
            assert!(why.contains(says) && is_empty == says.contains("is outside"), "{why}");
        }
        for (from, until) in [
            (Some("1767350000"), None),
            (Some("0"), Some("1767350000")),
            (None, Some("1767350000000")),
            (Some("p1:1767350000"), None),
            (Some("p0:1"), Some("p0:1767350000,p1:5")),
        ] {
            let RangeError::NoSuchPosition(why) = resolve(from, until, &[(0, 0, 20)]).unwrap_err() else {
                panic!("{from:?} {until:?}")
            };
            assert!(why.contains("is read as an offset") && why.contains("write @1767350000"), "{why}");
        }
        assert!(
            resolve(Some("0"), Some("999999"), &[(0, 0, 999_999)]).is_ok(),
            "the end of a range may be past the end of the log"
        );
        // A time in which nothing was accepted is not a mistake.
        assert_eq!(resolve(Some("1h"), None, &[(0, 20, 20)]).unwrap(), [offsets(0, 20, 20, 0)]);
    }

    #[test]
    fn a_topic_without_partitions_holds_no_position() {
        let range = Range { from: Some(position("p0:5")), until: None };
        let why = clamp_to_log(&range, RangeFlags::FromUntil, &[], &[]).unwrap_err().to_string();
        assert!(why.ends_with("the topic has no partition 0, and no other partition"), "{why}");
    }

    #[test]
    fn messages_name_the_flag_that_the_operator_typed() {
        let all = [LogBounds { earliest: 0, latest: 5 }];
        let why = |from: Option<&str>, until: Option<&str>, flags| {
            let range = Range { from: from.map(position), until: until.map(position) };
            clamp_to_log(&range, flags, &all, &[(0, 5, 5)]).unwrap_err().to_string()
        };
        assert!(why(None, Some("0"), RangeFlags::FastForward).starts_with("--fast-forward 0 is outside the log"));
        assert!(
            why(None, Some("1767350000"), RangeFlags::FastForward).starts_with("--fast-forward 1767350000 is read")
        );
        assert!(why(None, Some("0"), RangeFlags::FromUntil).starts_with("--until 0 is outside the log"));
        assert!(why(Some("5"), None, RangeFlags::FromUntil).starts_with("--from 5 is outside the log"));
        let future = Range { from: Some(Position::Time(2_000)), until: None };
        assert!(future.check(1_000, RangeFlags::Since).unwrap_err().starts_with("--since 1970"));
    }

    #[test]
    fn a_time_range_contains_its_start_and_not_its_end() {
        let times = |from_ms, until_ms| TimeRange { from_ms, until_ms };
        let contained = |times: TimeRange| [9, 10, 19, 20].map(|ms| times.contains(ms));
        assert_eq!(contained(times(Some(10), Some(20))), [false, true, true, false]);
        assert_eq!(contained(times(Some(10), None)), [false, true, true, true]);
        assert_eq!(contained(times(None, Some(20))), [true, true, true, false]);
        assert!(TimeRange::default().is_unbounded() && contained(TimeRange::default()) == [true; 4]);
        let range = Range { from: Some(Position::Ago(Duration::from_secs(2))), until: Some(Position::Time(9_500)) };
        assert_eq!(range.times(10_000), times(Some(8_000), Some(9_500)));
        assert!(Range { from: Some(Position::Offset(5)), until: None }.times(10_000).is_unbounded());
    }

    proptest! {
        #[test]
        fn a_range_is_limited_to_the_log_and_removed_offsets_are_counted(
            earliest in 0i64..100, held in 0i64..100, from in 0i64..300, len in 0i64..300,
        ) {
            let all = [LogBounds { earliest, latest: earliest + held }];
            let found = clamp_to_log(&Range::default(), RangeFlags::FromUntil, &all, &[(0, from, from + len)]).unwrap();
            let OffsetRange { from: start, until, removed, .. } = found[0];
            let asked = from..from + len;
            prop_assert_eq!(until - start, asked.clone().filter(|at| (earliest..earliest + held).contains(at)).count() as i64);
            prop_assert_eq!(removed, asked.filter(|at| *at < earliest).count() as i64);
        }
    }
}
