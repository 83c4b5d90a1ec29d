//! One end of a range, as people write it.
//!
//! ```text
//!  480            the offset 480 in every partition        2026-01-02T10:30:00Z   a time, RFC 3339
//!  p0:480,p2:17   an offset in each of these partitions    2026-01-02 10:30       a time in this machine's time zone
//!                 (the others have no part in the range)   10:30, 10:30:15        that time today, in the same zone
//!                                                          @1767350000            seconds since the Unix epoch
//!                                                          2h, 30m, 7d            an age
//! ```
//!
//! A number of a partition without its `p` (`0:480,2:17`) is the old form. It is still read, with a warning, if it cannot
//! be a time of day: `2:50` is ten to three.

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One end of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Position {
    /// An offset in every partition.
    Offset(i64),
    /// An offset in each of these partitions.
    Offsets(BTreeMap<u32, i64>),
    /// Like `Offsets`, from the deprecated form without `p`.
    DeprecatedOffsets(BTreeMap<u32, i64>),
    /// Milliseconds since the Unix epoch.
    Time(i64),
    /// An age: this long before now.
    Ago(Duration),
}

/// What can be written, with examples.
const FORMS: &str = "an offset (480), offsets of partitions (p0:480,p2:17), a time (2026-01-02T10:30:00Z, 2026-01-02 \
                     10:30, 10:30 for today, @1767350000 for seconds since 1970) or an age (2h)";

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text.trim(), Timestamp::now(), zone)
    }
}

impl Position {
    /// `zone` is asked only for a time without an offset from UTC.
    fn parse(text: &str, now: Timestamp, zone: impl FnOnce() -> Result<TimeZone, String>) -> Result<Self, String> {
        if text.is_empty() {
            return Err(format!("write {FORMS}"));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Offset).map_err(|_| "larger than any offset".into());
        }
        if let Some(seconds) = text.strip_prefix('@') {
            return unix_ms(seconds).map(Self::Time);
        }
        if let Some(time) = TimeOfDay::parse(text)? {
            return time.today_ms(now, &zone()?).map(Self::Time);
        }
        if let Some(place) = offsets(text) {
            return place;
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

    /// What it says of the future, if it says anything.
    pub fn check_not_ahead(&self, now_ms: i64) -> Result<(), String> {
        match self {
            Self::Time(ms) if *ms > now_ms => {
                Err(format!("{} is in the future: it is {} now", show_ms(*ms), show_ms(now_ms)))
            }
            _ => Ok(()),
        }
    }

    /// The time that it means.
    pub fn moment_ms(&self, now_ms: i64) -> Option<i64> {
        match self {
            Self::Time(ms) => Some(*ms),
            Self::Ago(ago) => Some(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))),
            Self::Offset(_) | Self::Offsets(_) | Self::DeprecatedOffsets(_) => None,
        }
    }

    /// The offsets of the partitions that are named one by one.
    pub fn named(&self) -> Option<&BTreeMap<u32, i64>> {
        match self {
            Self::Offsets(offsets) | Self::DeprecatedOffsets(offsets) => Some(offsets),
            Self::Offset(_) | Self::Time(_) | Self::Ago(_) => None,
        }
    }

    /// What a person is to be told who used the deprecated form.
    pub fn deprecation(&self) -> Option<String> {
        let Self::DeprecatedOffsets(offsets) = self else { return None };
        let old: Vec<String> = offsets.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
        let old = old.join(",");
        Some(format!(
            "{old} is read as {self}, the offsets of partitions. This form is deprecated, since it looks like a time of day: write {self}"
        ))
    }
}

/// What is written like a time of day, whether it is one or not.
struct TimeOfDay<'t> {
    text: &'t str,
    hour: i8,
    minute: i8,
    second: i8,
}

impl<'t> TimeOfDay<'t> {
    /// `Ok(None)`: it may be something else.
    fn parse(text: &'t str) -> Result<Option<Self>, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let is_number = |part: &&str, digits: std::ops::RangeInclusive<usize>| {
            digits.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        let has_form = matches!(parts.len(), 2 | 3)
            && is_number(&parts[0], 1..=2)
            && parts[1..].iter().all(|part| is_number(part, 2..=2));
        if !has_form {
            return Ok(None);
        }
        let number = |at: usize| parts.get(at).map_or(0, |part| part.parse::<i8>().unwrap_or(i8::MAX));
        let (hour, minute, second) = (number(0), number(1), number(2));
        // The end of the day has two names.
        let is_time = (hour < 24 && minute < 60 && second < 60) || (hour, minute, second) == (24, 0, 0);
        match is_time {
            true => Ok(Some(Self { text, hour, minute, second })),
            // Nobody writes a partition like this.
            false if parts.len() == 3 || (parts[0].len() == 2 && parts[0].starts_with('0')) => {
                Err("not a time of day".into())
            }
            false => Ok(None),
        }
    }

    fn today_ms(&self, at: Timestamp, zone: &TimeZone) -> Result<i64, String> {
        let now = zone.to_datetime(at);
        let (day, hour) = match self.hour {
            24 => (now.date().tomorrow().map_err(|error| error.to_string())?, 0),
            hour => (now.date(), hour),
        };
        let time = Time::new(hour, self.minute, self.second, 0).map_err(|error| error.to_string())?;
        let time = zone.to_timestamp(day.to_datetime(time)).map_err(|error| error.to_string())?;
        if time <= at {
            return Ok(time.as_millisecond());
        }
        let date = match self.hour {
            24 => format!("{} 00:00", now.date()),
            _ => format!("{} {}", now.date().yesterday().map_err(|error| error.to_string())?, self.text),
        };
        let (text, now, zone) = (self.text, now.strftime("%H:%M"), zone.iana_name().unwrap_or("local time"));
        Err(format!(
            "{text} today is still to come: it is {now} now ({zone}). Write a date, like \"{date}\", or an age, like 24h"
        ))
    }
}

/// This machine's time zone: `TZ`, or what `/etc/localtime` says, or UTC if there is neither.
fn zone() -> Result<TimeZone, String> {
    TimeZone::try_system().or_else(|_| match std::env::var_os("TZ") {
        Some(name) => Err(format!(
            "this time is one of the machine's time zone, and TZ={:?} is not a time zone that it knows. Correct TZ, or \
             write the time with its offset from UTC, like 2026-01-02T10:30:00Z",
            name.to_string_lossy()
        )),
        None => Ok(TimeZone::UTC),
    })
}

/// `None`: it is not written as offsets of partitions.
fn offsets(text: &str) -> Option<Result<Position, String>> {
    let is_part = |byte: u8| byte.is_ascii_digit() || matches!(byte, b':' | b',' | b' ' | b'p');
    if !text.contains(':') || !text.bytes().all(is_part) {
        return None;
    }
    let (mut offsets, mut old) = (BTreeMap::new(), 0);
    let mut count = 0;
    for one in text.split(',').map(str::trim) {
        count += 1;
        let pair = match one.strip_prefix('p') {
            Some(pair) => pair,
            None => {
                old += 1;
                one
            }
        };
        // No sign, which Rust would read.
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<i64>().ok())?;
        let pair = pair.split_once(':');
        let pair = pair.and_then(|(p, offset)| Some((u32::try_from(number(p)?).ok()?, number(offset)?)));
        let Some((partition, offset)) = pair else {
            return Some(Err(format!("{one:?} is not the offset of a partition: write pPARTITION:OFFSET, like p2:17")));
        };
        if offsets.insert(partition, offset).is_some() {
            return Some(Err(format!("partition {partition} is named twice")));
        }
    }
    Some(match old {
        0 => Ok(Position::Offsets(offsets)),
        _ if old == count => Ok(Position::DeprecatedOffsets(offsets)),
        _ => Err("some partitions have a p and others have not: write p0:480,p2:17".into()),
    })
}

/// Seconds since the Unix epoch with up to nine digits of a fraction, as milliseconds.
fn unix_ms(text: &str) -> Result<i64, String> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(seconds) || !is_number(fraction) || fraction.len() > 9 {
        return Err("write seconds since 1970-01-01T00:00:00Z, like @1767350000 or @1767350000.123".into());
    }
    let ms = seconds.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(1_000));
    let ms = ms.and_then(|ms| ms.checked_add(format!("{fraction:0<3}")[..3].parse().ok()?));
    let time = ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map(Timestamp::as_millisecond)
        .ok_or_else(|| "these seconds are later than the year 9999: write milliseconds like @1767350000.123".into())
}

/// The time that an offset would be if it were seconds (or milli-, micro- or nanoseconds) since the Unix epoch, and that
/// time as it is to be written. `None`: it is before 2001 or after 2100, so nobody means a time.
pub(super) fn unix_time_meant(offset: i64) -> Option<(i64, String)> {
    const YEAR_2001: i64 = 1_000_000_000;
    const YEAR_2100: i64 = 4_102_444_800;
    let parts_in_a_second = [1, 1_000, 1_000_000, 1_000_000_000];
    let parts = parts_in_a_second.into_iter().find(|parts| (YEAR_2001..YEAR_2100).contains(&(offset / parts)))?;
    let (seconds, rest) = (offset / parts, offset % parts);
    // What is finer than a millisecond is cut off, as everywhere in a range.
    let ms = if parts == 1 { 0 } else { rest / (parts / 1_000) };
    let written = if parts == 1 { format!("@{seconds}") } else { format!("@{seconds}.{ms:03}") };
    Some((seconds * 1_000 + ms, written))
}

/// A moment as it is shown everywhere here: RFC 3339 in UTC, with milliseconds.
pub fn show_ms(ms: i64) -> String {
    match Timestamp::from_millisecond(ms) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => format!("{ms} ms"),
    }
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

    /// Ten to three in the afternoon, in Berlin.
    const NOW: &str = "2026-01-02T13:50:00Z";

    fn in_berlin() -> Result<TimeZone, String> {
        Ok(TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap())
    }

    fn parse(text: &str) -> Result<Position, String> {
        Position::parse(text, NOW.parse().unwrap(), in_berlin)
    }

    fn place(text: &str) -> Position {
        parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn time(text: &str) -> Position {
        Position::Time(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn offsets_times_and_ages_are_told_apart() {
        assert_eq!(place("480"), Position::Offset(480));
        assert_eq!(place("p0:480, p2:17"), Position::Offsets(BTreeMap::from([(0, 480), (2, 17)])));
        assert_eq!(place("p2:50"), Position::Offsets(BTreeMap::from([(2, 50)])), "nobody takes it for a time");
        assert_eq!(place("2h"), Position::Ago(Duration::from_secs(7200)));
        assert_eq!(place("1h 30m"), Position::Ago(Duration::from_secs(5400)));
        assert_eq!(place("2026-01-02T03:04:05.678Z"), Position::Time(1_767_323_045_678));
        assert_eq!(place("2026-01-02T04:04:05+01:00"), Position::Time(1_767_323_045_000));
        assert_eq!(place("2026-01-02T10:30"), time("2026-01-02T09:30:00Z"));
        assert_eq!(place("2026-01-02 10:30:00"), place("2026-01-02T10:30"));
        assert_eq!(place("2026-01-02"), time("2026-01-01T23:00:00Z"));
        assert_eq!(place("@1767350000"), Position::Time(1_767_350_000_000));
        assert_eq!(place("@1767350000.1239"), Position::Time(1_767_350_000_123));
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
    fn a_time_of_day_is_one_of_today_and_never_a_partition() {
        for (text, utc) in [
            ("02:50", "2026-01-02T01:50:00Z"),
            ("2:50", "2026-01-02T01:50:00Z"),
            ("0:00", "2026-01-01T23:00:00Z"),
            ("14:50", "2026-01-02T13:50:00Z"),
            ("10:30:15", "2026-01-02T09:30:15Z"),
        ] {
            assert_eq!(place(text), time(utc), "{text}");
        }
        for (ahead, date) in [
            ("14:51", "2026-01-01 14:51"),
            ("23:50", "2026-01-01 23:50"),
            ("14:50:01", "2026-01-01 14:50:01"),
            ("24:00", "2026-01-02 00:00"),
        ] {
            let why = parse(ahead).unwrap_err();
            let says = format!("{ahead} today is still to come: it is 14:50 now");
            assert!(why.contains(&says) && why.contains(&format!("\"{date}\"")), "{why}");
            assert!(parse(date).is_ok(), "what is told can be written");
        }
    }

    #[test]
    fn the_old_form_of_offsets_is_read_if_it_cannot_be_a_time_and_is_told() {
        for (text, offsets) in [
            ("0:480", vec![(0, 480)]),
            ("0:480,2:17", vec![(0, 480), (2, 17)]),
            ("1:5", vec![(1, 5)]),
            ("2:60", vec![(2, 60)]),
            ("30:15", vec![(30, 15)]),
        ] {
            let read = place(text);
            assert_eq!(read, Position::DeprecatedOffsets(offsets.into_iter().collect()), "{text}");
            let told = read.deprecation().unwrap();
            assert!(told.contains(&format!("{text} is read as p")) && told.contains("write p"), "{told}");
            assert_eq!(place(&read.to_string()).named(), read.named(), "what is told can be written");
        }
        assert_eq!(place("p0:480").deprecation(), None);
    }

    #[test]
    fn a_time_zone_that_the_machine_does_not_know_is_told_if_it_is_needed() {
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
    fn an_offset_that_looks_like_unix_time_is_known_with_the_time_that_it_would_be() {
        for (offset, written) in [
            (1_767_350_000, "@1767350000"),
            (1_767_350_000_123, "@1767350000.123"),
            (1_767_350_000_123_456, "@1767350000.123"),
            (1_767_350_000_123_456_789, "@1767350000.123"),
        ] {
            let (ms, told) = unix_time_meant(offset).unwrap();
            assert_eq!((told.as_str(), place(&told)), (written, Position::Time(ms)), "{offset}");
        }
        for offset in [0, 480, 999_999_999, 4_102_444_800, i64::MAX] {
            assert_eq!(unix_time_meant(offset), None, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-0-9:,hmpsTZ+.@ ]{0,24}") {
            if let Ok(place) = parse(&text) {
                prop_assert!(!place.to_string().is_empty());
            }
        }

        #[test]
        fn offsets_of_partitions_are_read_as_they_are_shown(
            offsets in proptest::collection::btree_map(any::<u32>(), 0..i64::MAX, 1..5),
        ) {
            let shown = Position::Offsets(offsets.clone()).to_string();
            prop_assert_eq!(parse(&shown), Ok(Position::Offsets(offsets)));
        }
    }
}
