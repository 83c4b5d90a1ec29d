//! A position in the log, as an operator types it: one end of a range, or the target of a rewind or fast-forward.
//!
//! ```text
//!  480            offset 480 in every partition            2026-01-02T10:30:00Z   a time, RFC 3339
//!  p0:480,p2:17   one offset for each named partition      2026-01-02 10:30       a time in this machine's time zone
//!                 (other partitions are left out)          10:30, 10:30:15        that time today, in the same zone
//!                                                          @1767350000            seconds since the Unix epoch
//!                                                          2h, 30m, 7d            an age: this long before now
//! ```
//!
//! The deprecated form leaves out the `p` (`0:480,2:17`). It is still read, with a warning, unless it could be a time of
//! day: `2:50` always means ten to three.

use crate::clock::show_ms;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A position in the log, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// One offset for all partitions.
    Offset(i64),
    /// One offset for each of these partitions.
    Offsets(BTreeMap<u32, i64>),
    /// Like `Offsets`, from the deprecated form without `p`.
    DeprecatedOffsets(BTreeMap<u32, i64>),
    /// A time, in milliseconds since the Unix epoch.
    Time(i64),
    /// An age: this long before now.
    Ago(Duration),
}

/// Every form that can be written, with examples.
const FORMS: &str = "an offset (480), offsets of partitions (p0:480,p2:17), a time (2026-01-02T10:30:00Z, 2026-01-02 \
                     10:30, 10:30 for today, @1767350000 for seconds since 1970) or an age (2h)";

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text.trim(), Timestamp::now(), machine_time_zone)
    }
}

impl Position {
    /// Parses any of the forms. Calls `zone` only for a time that has no offset from UTC, so that a wrong `TZ` does not
    /// spoil the forms that do not need it.
    fn parse(text: &str, now: Timestamp, zone: impl FnOnce() -> Result<TimeZone, String>) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!("the position is empty. Write {FORMS}"));
        }
        if is_digits(text) {
            return text.parse().map(Self::Offset).map_err(|_| "the number is larger than any offset can be".into());
        }
        if let Some(seconds) = text.strip_prefix('@') {
            return parse_unix_seconds(seconds).map(Self::Time);
        }
        if let Some(time) = TimeOfDay::parse(text)? {
            return time.today_ms(now, &zone()?).map(Self::Time);
        }
        if let Some(offsets) = parse_partition_offsets(text) {
            return offsets;
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::Time(time.as_millisecond()));
        }
        if let Ok(local) = text.parse::<DateTime>() {
            let time = zone()?.to_timestamp(local).map_err(|error| error.to_string())?;
            return Ok(Self::Time(time.as_millisecond()));
        }
        humantime::parse_duration(text).map(Self::Ago).map_err(|_| format!("not understood. Write {FORMS}"))
    }

    /// Refuses a time that has not come yet.
    pub fn check_not_in_future(&self, now_ms: i64) -> Result<(), String> {
        match self {
            Self::Time(ms) if *ms > now_ms => {
                Err(format!("{} is in the future: it is {} now", show_ms(*ms), show_ms(now_ms)))
            }
            _ => Ok(()),
        }
    }

    /// The time that it means, in milliseconds since the Unix epoch. `None` for offsets.
    pub fn time_ms(&self, now_ms: i64) -> Option<i64> {
        match self {
            Self::Time(ms) => Some(*ms),
            Self::Ago(ago) => Some(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))),
            Self::Offset(_) | Self::Offsets(_) | Self::DeprecatedOffsets(_) => None,
        }
    }

    /// The offsets by partition, if the position names its partitions.
    pub fn partition_offsets(&self) -> Option<&BTreeMap<u32, i64>> {
        match self {
            Self::Offsets(offsets) | Self::DeprecatedOffsets(offsets) => Some(offsets),
            Self::Offset(_) | Self::Time(_) | Self::Ago(_) => None,
        }
    }

    /// The warning for an operator who typed the deprecated form.
    pub fn deprecation_warning(&self) -> Option<String> {
        let Self::DeprecatedOffsets(offsets) = self else { return None };
        let typed: Vec<String> = offsets.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
        let typed = typed.join(",");
        Some(format!(
            "{typed} is read as {self}, an offset for each partition. This form is deprecated, because it looks like a time \
             of day: write {self}"
        ))
    }
}

/// The direction in which the destination's position moves, and the new position.
#[derive(Debug, Clone)]
pub enum Reposition {
    /// Back: dispatch delivers again what comes after the new position.
    Rewind(Position),
    /// Ahead: dispatch never delivers what comes before the new position.
    FastForward(Position),
}

impl Reposition {
    pub(super) fn position(&self) -> &Position {
        match self {
            Self::Rewind(position) | Self::FastForward(position) => position,
        }
    }

    pub(super) fn is_ahead(&self) -> bool {
        matches!(self, Self::FastForward(_))
    }
}

/// Text in the form of a time of day.
struct TimeOfDay<'t> {
    text: &'t str,
    /// `None` is 24:00, the end of the day.
    time: Option<Time>,
}

impl<'t> TimeOfDay<'t> {
    /// Parses `H:MM`, `HH:MM` and both with `:SS`. `Ok(None)`: the text may be something else.
    fn parse(text: &'t str) -> Result<Option<Self>, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let has_form = matches!(parts.len(), 2 | 3)
            && matches!(parts[0].len(), 1 | 2)
            && parts[1..].iter().all(|part| part.len() == 2)
            && parts.iter().all(|part| is_digits(part));
        if !has_form {
            return Ok(None);
        }
        let number = |at: usize| parts.get(at).map_or(0, |part| part.parse::<i8>().unwrap_or(i8::MAX));
        let (hour, minute, second) = (number(0), number(1), number(2));
        let time = match (hour, minute, second) {
            (24, 0, 0) => Ok(None),
            _ => Time::new(hour, minute, second, 0).map(Some),
        };
        match time {
            Ok(time) => Ok(Some(Self { text, time })),
            // Three numbers, or a leading zero, cannot be meant as the offset of a partition.
            Err(_) if parts.len() == 3 || (parts[0].len() == 2 && parts[0].starts_with('0')) => {
                Err("not a time of day".into())
            }
            Err(_) => Ok(None),
        }
    }

    /// This time on the day of `at`, in milliseconds since the Unix epoch. A time that is still to come is an error that
    /// shows how to write the one of the day before.
    fn today_ms(&self, at: Timestamp, zone: &TimeZone) -> Result<i64, String> {
        let now = zone.to_datetime(at);
        let day = match self.time {
            Some(_) => now.date(),
            None => now.date().tomorrow().map_err(|error| error.to_string())?,
        };
        let local = day.to_datetime(self.time.unwrap_or_default());
        let time = zone.to_timestamp(local).map_err(|error| error.to_string())?;
        if time <= at {
            return Ok(time.as_millisecond());
        }
        let date = match self.time {
            None => format!("{} 00:00", now.date()),
            Some(_) => format!("{} {}", now.date().yesterday().map_err(|error| error.to_string())?, self.text),
        };
        let (text, now, zone) = (self.text, now.strftime("%H:%M"), zone.iana_name().unwrap_or("local time"));
        Err(format!(
            "{text} today is still to come: it is {now} now ({zone}). Write a date, like \"{date}\", or an age, like 24h"
        ))
    }
}

/// This machine's time zone: `TZ`, otherwise `/etc/localtime`, otherwise UTC.
fn machine_time_zone() -> Result<TimeZone, String> {
    TimeZone::try_system().or_else(|_| match std::env::var_os("TZ") {
        Some(name) => Err(format!(
            "this time is read in the machine's time zone, but TZ={:?} is not a time zone that the machine knows. Correct \
             TZ, or write the time with its offset from UTC, like 2026-01-02T10:30:00Z",
            name.to_string_lossy()
        )),
        None => Ok(TimeZone::UTC),
    })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Parses offsets of partitions, with or without `p`. `None`: the text does not have this form.
fn parse_partition_offsets(text: &str) -> Option<Result<Position, String>> {
    let may_occur = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b',' | b' ' | b'p');
    if !text.contains(':') || !text.bytes().all(may_occur) {
        return None;
    }
    let (mut offsets, mut with_p, mut without_p) = (BTreeMap::new(), 0, 0);
    for item in text.split(',').map(str::trim) {
        let pair = match item.strip_prefix('p') {
            Some(pair) => {
                with_p += 1;
                pair
            }
            None => {
                without_p += 1;
                item
            }
        };
        // Rust would accept a sign as part of a number, so only digits are parsed.
        let number = |text: &str| if is_digits(text) { text.parse::<i64>().ok() } else { None };
        let pair = pair.split_once(':');
        let pair = pair.and_then(|(p, offset)| Some((u32::try_from(number(p)?).ok()?, number(offset)?)));
        let Some((partition, offset)) = pair else {
            return Some(Err(format!(
                "{item:?} is not the offset of a partition: write pPARTITION:OFFSET, like p2:17"
            )));
        };
        if offsets.insert(partition, offset).is_some() {
            return Some(Err(format!("partition {partition} is named twice")));
        }
    }
    Some(match (with_p, without_p) {
        (_, 0) => Ok(Position::Offsets(offsets)),
        (0, _) => Ok(Position::DeprecatedOffsets(offsets)),
        _ => Err("some partitions are written with a p and others without: write p0:480,p2:17".into()),
    })
}

/// Parses seconds since the Unix epoch, with up to nine digits of a fraction, into milliseconds.
fn parse_unix_seconds(text: &str) -> Result<i64, String> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_digits(seconds) || !is_digits(fraction) || fraction.len() > 9 {
        return Err("write seconds since 1970-01-01T00:00:00Z, like @1767350000 or @1767350000.123".into());
    }
    let since_epoch = format!("{seconds}.{fraction}s").parse::<SignedDuration>();
    since_epoch
        .and_then(Timestamp::from_duration)
        .map(Timestamp::as_millisecond)
        .map_err(|_| "these seconds are later than the year 9999: write milliseconds like @1767350000.123".into())
}

/// Reads an offset as seconds (or milli-, micro- or nanoseconds) since the Unix epoch. Answers with that time in
/// milliseconds and with the text that means it as a position. `None`: the time would be before 2001 or after 2100, so
/// no operator can have meant a time.
pub(super) fn as_unix_time(offset: i64) -> Option<(i64, String)> {
    const YEAR_2001: i64 = 1_000_000_000;
    const YEAR_2100: i64 = 4_102_444_800;
    let units_per_second = [1, 1_000, 1_000_000, 1_000_000_000];
    let unit = units_per_second.into_iter().find(|unit| (YEAR_2001..YEAR_2100).contains(&(offset / unit)))?;
    let (seconds, fraction) = (offset / unit, offset % unit);
    // Milliseconds are the finest time of a range, so the rest is cut off.
    let ms = if unit == 1 { 0 } else { fraction / (unit / 1_000) };
    let text = if unit == 1 { format!("@{seconds}") } else { format!("@{seconds}.{ms:03}") };
    Some((seconds * 1_000 + ms, text))
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::Offsets(offsets) | Self::DeprecatedOffsets(offsets) => {
                let pairs: Vec<String> = offsets.iter().map(|(p, offset)| format!("p{p}:{offset}")).collect();
                f.write_str(&pairs.join(","))
            }
            Self::Time(ms) => f.write_str(&show_ms(*ms)),
            Self::Ago(ago) => write!(f, "{} ago", humantime::format_duration(*ago)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 14:50 in Berlin.
    const NOW: &str = "2026-01-02T13:50:00Z";

    fn in_berlin() -> Result<TimeZone, String> {
        Ok(TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap())
    }

    fn parse(text: &str) -> Result<Position, String> {
        Position::parse(text, NOW.parse().unwrap(), in_berlin)
    }

    fn position(text: &str) -> Position {
        parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn time(text: &str) -> Position {
        Position::Time(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn offsets_times_and_ages_are_told_apart() {
        assert_eq!(position("480"), Position::Offset(480));
        assert_eq!(position("p0:480, p2:17"), Position::Offsets(BTreeMap::from([(0, 480), (2, 17)])));
        assert_eq!(
            position("p2:50"),
            Position::Offsets(BTreeMap::from([(2, 50)])),
            "with its p it cannot be a time of day"
        );
        assert_eq!(position("2h"), Position::Ago(Duration::from_secs(7200)));
        assert_eq!(position("1h 30m"), Position::Ago(Duration::from_secs(5400)));
        assert_eq!(position("2026-01-02T03:04:05.678Z"), Position::Time(1_767_323_045_678));
        assert_eq!(position("2026-01-02T04:04:05+01:00"), Position::Time(1_767_323_045_000));
        assert_eq!(position("2026-01-02T10:30"), time("2026-01-02T09:30:00Z"));
        assert_eq!(position("2026-01-02 10:30:00"), position("2026-01-02T10:30"));
        assert_eq!(position("2026-01-02"), time("2026-01-01T23:00:00Z"));
        assert_eq!(position("@1767350000"), Position::Time(1_767_350_000_000));
        assert_eq!(position("@1767350000.1239"), Position::Time(1_767_350_000_123));
        for wrong in [
            "",
            "yesterday",
            "-5",
            "p0:1,p0:2",
            "0:1,0:2",
            "0:",
            "p0:",
            "p:5",
            "p0:1,2:3",
            "1:2:3",
            "p0:+1",
            "2026-13-01",
            "99999999999999999999",
            "5 parsecs",
            "@",
            "@-1",
            "@1767350000123",
            "@1767350000.",
            "1767350000.5",
            "02:75",
            "10:30:60",
            "10:30pm",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}: {:?}", parse(wrong));
        }
    }

    #[test]
    fn a_time_of_day_means_today_and_is_never_read_as_a_partition() {
        for (text, utc) in [
            ("02:50", "2026-01-02T01:50:00Z"),
            ("2:50", "2026-01-02T01:50:00Z"),
            ("0:00", "2026-01-01T23:00:00Z"),
            ("14:50", "2026-01-02T13:50:00Z"),
            ("10:30:15", "2026-01-02T09:30:15Z"),
        ] {
            assert_eq!(position(text), time(utc), "{text}");
        }
        for (future, date) in [
            ("14:51", "2026-01-01 14:51"),
            ("23:50", "2026-01-01 23:50"),
            ("14:50:01", "2026-01-01 14:50:01"),
            ("24:00", "2026-01-02 00:00"),
        ] {
            let why = parse(future).unwrap_err();
            let says = format!("{future} today is still to come: it is 14:50 now");
            assert!(why.contains(&says) && why.contains(&format!("\"{date}\"")), "{why}");
            assert!(parse(date).is_ok(), "the form that the message suggests is accepted");
        }
    }

    #[test]
    fn the_deprecated_form_of_offsets_is_read_with_a_warning_if_it_cannot_be_a_time() {
        for (text, offsets) in [
            ("0:480", vec![(0, 480)]),
            ("0:480,2:17", vec![(0, 480), (2, 17)]),
            ("1:5", vec![(1, 5)]),
            ("2:60", vec![(2, 60)]),
            ("30:15", vec![(30, 15)]),
        ] {
            let read = position(text);
            assert_eq!(read, Position::DeprecatedOffsets(offsets.into_iter().collect()), "{text}");
            let warning = read.deprecation_warning().unwrap();
            assert!(warning.contains(&format!("{text} is read as p")) && warning.contains("write p"), "{warning}");
            assert_eq!(
                position(&read.to_string()).partition_offsets(),
                read.partition_offsets(),
                "the form that the message suggests is accepted"
            );
        }
        assert_eq!(position("p0:480").deprecation_warning(), None);
    }

    #[test]
    fn an_unknown_time_zone_is_an_error_only_for_local_times() {
        let unknown = || Err("TZ=\"Europe/Berln\" is not a time zone".to_owned());
        let parse = |text| Position::parse(text, NOW.parse().unwrap(), unknown);
        for local in ["02:50", "2026-01-02 10:30", "2026-01-02"] {
            assert!(parse(local).unwrap_err().contains("Europe/Berln"), "{local}");
        }
        for fine in ["480", "p0:5", "2h", "2026-01-02T10:30:00Z", "2026-01-02T10:30:00+01:00", "@5"] {
            assert!(parse(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn an_offset_that_looks_like_unix_time_is_recognized_with_the_time_that_it_would_be() {
        for (offset, text) in [
            (1_767_350_000, "@1767350000"),
            (1_767_350_000_123, "@1767350000.123"),
            (1_767_350_000_123_456, "@1767350000.123"),
            (1_767_350_000_123_456_789, "@1767350000.123"),
        ] {
            let (ms, suggested) = as_unix_time(offset).unwrap();
            assert_eq!((suggested.as_str(), position(&suggested)), (text, Position::Time(ms)), "{offset}");
        }
        for offset in [0, 480, 999_999_999, 4_102_444_800, i64::MAX] {
            assert_eq!(as_unix_time(offset), None, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[-0-9:,hmpsTZ+.@ ]{0,24}") {
            if let Ok(position) = parse(&text) {
                prop_assert!(!position.to_string().is_empty());
            }
        }

        #[test]
        fn offsets_of_partitions_are_parsed_back_from_what_is_shown(
            offsets in proptest::collection::btree_map(any::<u32>(), 0..i64::MAX, 1..5),
        ) {
            let shown = Position::Offsets(offsets.clone()).to_string();
            prop_assert_eq!(parse(&shown), Ok(Position::Offsets(offsets)));
        }
    }
}
