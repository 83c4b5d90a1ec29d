//! Where a replay begins and ends, as people say it, and the offsets that this means in each partition.
//!
//! ```text
//!  480            the offset 480 in every partition          2026-01-02T10:30:00Z   a time, RFC 3339
//!  0:480,2:17     one of its own in each named partition     2026-01-02 10:30       a time of this machine's zone
//!                 (the others have no part in it)            2h, 30m, 7d            so long ago
//! ```
//!
//! The beginning is part of the range, the end is not. A time stands for the first event that was accepted then or
//! later.

use crate::core::outcome::Failure;
use crate::log::Log;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One end of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An offset in every partition.
    Offset(i64),
    /// One in each of these partitions.
    Offsets(BTreeMap<u32, i64>),
    /// Milliseconds since the Unix epoch.
    Time(i64),
    /// So long before now.
    Ago(Duration),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("an offset (480), offsets of partitions (0:480,2:17), a time or an age (2h)".into());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Offset).map_err(|_| "larger than any offset".into());
        }
        if let Some(offsets) = offsets(text) {
            return offsets.map(Self::Offsets);
        }
        match time_ms(text) {
            Some(ms) => Ok(Self::Time(ms)),
            None => humantime::parse_duration(text).map(Self::Ago).map_err(|_| {
                "no offset (480), no offsets of partitions (0:480,2:17), no time (2026-01-02T10:30:00Z, 2026-01-02 \
                 10:30) and no age (2h)"
                    .into()
            }),
        }
    }
}

/// `None`: it is not written as offsets of partitions.
fn offsets(text: &str) -> Option<Result<BTreeMap<u32, i64>, String>> {
    if !text.contains(':') || !text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b':' | b',' | b' ')) {
        return None;
    }
    let mut offsets = BTreeMap::new();
    for one in text.split(',') {
        let pair = one.trim().split_once(':').and_then(|(p, offset)| Some((p.parse().ok()?, offset.parse().ok()?)));
        let Some((partition, offset)) = pair else {
            return Some(Err(format!("{:?} is no PARTITION:OFFSET", one.trim())));
        };
        if offsets.insert(partition, offset).is_some() {
            return Some(Err(format!("partition {partition} is named twice")));
        }
    }
    Some(Ok(offsets))
}

/// A time with an offset from UTC, or one of this machine's zone.
fn time_ms(text: &str) -> Option<i64> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_millisecond());
    }
    let local: DateTime = text.parse().ok()?;
    TimeZone::system().to_timestamp(local).ok().map(|time| time.as_millisecond())
}

/// A moment as it is shown everywhere here: RFC 3339 in UTC, with milliseconds.
pub fn show_ms(ms: i64) -> String {
    match Timestamp::from_millisecond(ms) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => format!("{ms} ms"),
    }
}

impl Place {
    /// What it says of the future, if it says anything.
    pub fn check_not_ahead(&self, now_ms: i64) -> Result<(), String> {
        match self {
            Self::Time(ms) if *ms > now_ms => {
                Err(format!("{} is in the future: it is {} now", show_ms(*ms), show_ms(now_ms)))
            }
            _ => Ok(()),
        }
    }

    /// The time that it stands for.
    fn moment_ms(&self, now_ms: i64) -> Option<i64> {
        match self {
            Self::Time(ms) => Some(*ms),
            Self::Ago(ago) => Some(now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))),
            Self::Offset(_) | Self::Offsets(_) => None,
        }
    }

    /// The offset in this partition; `None`: it has no part in the range.
    async fn offset(&self, log: &dyn Log, partition: u32, ends: Ends, now_ms: i64) -> Result<Option<i64>, Failure> {
        match self {
            Self::Offset(offset) => Ok(Some(*offset)),
            Self::Offsets(offsets) => Ok(offsets.get(&partition).copied()),
            Self::Time(_) | Self::Ago(_) => {
                let moment = self.moment_ms(now_ms).unwrap_or(now_ms);
                Ok(Some(log.offset_at(partition, moment).await?.unwrap_or(ends.latest)))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::Offsets(offsets) => {
                let pairs: Vec<String> = offsets.iter().map(|(p, offset)| format!("{p}:{offset}")).collect();
                f.write_str(&pairs.join(","))
            }
            Self::Time(ms) => f.write_str(&show_ms(*ms)),
            Self::Ago(ago) => write!(f, "{} ago", humantime::format_duration(*ago)),
        }
    }
}

/// Both ends as typed; `None`: the log's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    pub from: Option<Place>,
    pub until: Option<Place>,
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
            (Place::Offset(from), Place::Offset(until)) => from >= until,
            (Place::Offsets(from), Place::Offsets(until)) => {
                from.iter().any(|(partition, from)| until.get(partition).is_some_and(|until| from >= until))
            }
            _ => times_turned,
        };
        if turned {
            return Err(format!("--from {from} is not before --until {until}"));
        }
        Ok(())
    }
}

/// What a partition of the log holds: from its earliest offset up to, without, its latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    earliest: i64,
    latest: i64,
}

/// The offsets of one partition that a range means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub partition: u32,
    pub from: i64,
    /// Not part of it.
    pub until: i64,
    /// Offsets that were asked for and that retention has removed.
    pub removed: i64,
}

/// The range has nothing in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside(pub String);

/// Turns the range into offsets.
///
/// # Errors
/// The inner one: a person asked for what is not in the log.
pub async fn resolve(log: &dyn Log, range: &Range, now_ms: i64) -> Result<Result<Vec<Stretch>, Outside>, Failure> {
    let partitions = log.partitions().await?;
    let mut all = Vec::new();
    let mut found = Vec::new();
    for partition in 0..partitions {
        let ends = Ends { earliest: log.earliest(partition).await?, latest: log.latest(partition).await? };
        all.push(ends);
        let from = match &range.from {
            Some(place) => place.offset(log, partition, ends, now_ms).await?,
            None => Some(ends.earliest),
        };
        let until = match &range.until {
            Some(place) => place.offset(log, partition, ends, now_ms).await?,
            None => Some(ends.latest),
        };
        if let (Some(from), Some(until)) = (from, until) {
            found.push((partition, from, until));
        }
    }
    Ok(stretches(range, &all, &found))
}

/// `found`: partition, beginning and end as they were asked for.
fn stretches(range: &Range, all: &[Ends], found: &[(u32, i64, i64)]) -> Result<Vec<Stretch>, Outside> {
    let holds = || {
        let partition = |(partition, ends): (usize, &Ends)| match ends.earliest < ends.latest {
            true => format!("partition {partition}: {} to {}", ends.earliest, ends.latest - 1),
            false => format!("partition {partition}: nothing, and {} comes next", ends.latest),
        };
        let told: Vec<String> = all.iter().enumerate().take(8).map(partition).collect();
        format!("the log holds {}", told.join("; "))
    };
    for place in [&range.from, &range.until].into_iter().flatten() {
        if let Place::Offsets(offsets) = place
            && let Some(missing) = offsets.keys().find(|partition| **partition as usize >= all.len())
        {
            return Err(Outside(format!("there is no partition {missing}: the topic has {}", all.len())));
        }
    }
    // What was named for itself has to be there; one offset for all of them need not be in each.
    let is_named = matches!(range.from, Some(Place::Offsets(_)));
    let is_past = |&&(partition, from, _): &&(u32, i64, i64)| from >= all[partition as usize].latest;
    if let Some((partition, from, _)) = found.iter().find(is_past).filter(|_| is_named) {
        return Err(Outside(format!("--from {partition}:{from} is past the end: {}", holds())));
    }
    let stretches: Vec<Stretch> = found
        .iter()
        .map(|&(partition, asked_from, asked_until)| {
            let Ends { earliest, latest } = all[partition as usize];
            let from = asked_from.clamp(earliest, latest);
            let until = asked_until.clamp(from, latest);
            let removed = (earliest.min(asked_until) - asked_from).max(0);
            Stretch { partition, from, until, removed }
        })
        .collect();
    let is_by_offset = |place: &Option<Place>| matches!(place, Some(Place::Offset(_) | Place::Offsets(_)));
    let by_offset = is_by_offset(&range.from) || is_by_offset(&range.until);
    if by_offset && stretches.iter().all(|stretch| stretch.from >= stretch.until) {
        let asked = match (&range.from, &range.until) {
            (Some(from), Some(until)) => format!("{from} to {until}"),
            (Some(from), None) => format!("--from {from}"),
            (None, Some(until)) => format!("--until {until}"),
            (None, None) => "everything".into(),
        };
        return Err(Outside(format!("{asked} is outside the log: {}", holds())));
    }
    Ok(stretches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(text: &str) -> Place {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    #[test]
    fn offsets_times_and_ages_are_told_apart() {
        assert_eq!(place("480"), Place::Offset(480));
        assert_eq!(place("0:480, 2:17"), Place::Offsets(BTreeMap::from([(0, 480), (2, 17)])));
        assert_eq!(place("2h"), Place::Ago(Duration::from_secs(7200)));
        assert_eq!(place("1h 30m"), Place::Ago(Duration::from_secs(5400)));
        assert_eq!(place("2026-01-02T03:04:05.678Z"), Place::Time(1_767_323_045_678));
        assert_eq!(place("2026-01-02T04:04:05+01:00"), Place::Time(1_767_323_045_000));
        let local = |text| match place(text) {
            Place::Time(ms) => ms,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(local("2026-01-02T10:30"), local("2026-01-02 10:30:00"));
        assert_eq!(local("2026-01-02 10:30") - local("2026-01-02"), (10 * 60 + 30) * 60_000);
        for wrong in
            ["", "yesterday", "-5", "0:1,0:2", "0:", "1:2:3", "2026-13-01", "99999999999999999999", "5 parsecs"]
        {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}: {:?}", wrong.parse::<Place>());
        }
    }

    #[test]
    fn what_is_wrong_without_the_log_is_said_without_it() {
        let check = |from: &str, until: &str| {
            let place = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
            Range { from: place(from), until: place(until) }.check(1_767_323_045_678)
        };
        for fine in
            [("5", "6"), ("2h", "1h"), ("2026-01-01T00:00:00Z", "1h"), ("0:5", "0:6,1:3"), ("", ""), ("7", "1h")]
        {
            assert_eq!(check(fine.0, fine.1), Ok(()), "{fine:?}");
        }
        for (from, until, says) in [
            ("6", "6", "not before"),
            ("1h", "2h", "not before"),
            ("0:5,1:9", "1:9", "not before"),
            ("2026-01-03T00:00:00Z", "", "in the future"),
            ("", "2026-01-03T00:00:00Z", "--until 2026-01-03T00:00:00.000Z is in the future"),
        ] {
            let why = check(from, until).unwrap_err();
            assert!(why.contains(says), "{from} {until}: {why}");
        }
    }

    #[test]
    fn what_the_log_does_not_hold_is_told_with_what_it_holds() {
        let all = [Ends { earliest: 10, latest: 20 }, Ends { earliest: 0, latest: 0 }];
        let resolve = |from: Option<&str>, until: Option<&str>, found: &[(u32, i64, i64)]| {
            stretches(&Range { from: from.map(place), until: until.map(place) }, &all, found)
        };
        let stretch = |partition, from, until, removed| Stretch { partition, from, until, removed };
        let both = [stretch(0, 12, 20, 0), stretch(1, 0, 0, 0)];
        assert_eq!(resolve(Some("12"), None, &[(0, 12, 20), (1, 12, 0)]).unwrap(), both);
        assert_eq!(resolve(Some("0:4"), Some("0:15"), &[(0, 4, 15)]).unwrap(), [stretch(0, 10, 15, 6)]);
        assert_eq!(resolve(Some("0:4"), None, &[(0, 4, 20)]).unwrap(), [stretch(0, 10, 20, 6)]);
        for (from, until, found, says) in [
            (
                Some("20"),
                None,
                vec![(0, 20, 20), (1, 20, 0)],
                "--from 20 is outside the log: the log holds partition 0: 10",
            ),
            (Some("3"), Some("9"), vec![(0, 3, 9), (1, 3, 9)], "3 to 9 is outside"),
            (Some("1:0"), None, vec![(1, 0, 0)], "--from 1:0 is past the end"),
            (Some("5:0"), None, vec![], "no partition 5"),
        ] {
            let Outside(why) = resolve(from, until, &found).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
        // A time at which nothing came is a range with nothing in it, and no mistake.
        assert_eq!(resolve(Some("1h"), None, &[(0, 20, 20)]).unwrap(), [stretch(0, 20, 20, 0)]);
    }

    proptest! {
        #[test]
        fn a_stretch_is_inside_the_log_and_what_was_removed_is_counted(
            earliest in 0i64..100, held in 0i64..100, from in 0i64..300, len in 0i64..300,
        ) {
            let all = [Ends { earliest, latest: earliest + held }];
            let found = stretches(&Range::default(), &all, &[(0, from, from + len)]).unwrap();
            let Stretch { from: begins, until, removed, .. } = found[0];
            let asked = from..from + len;
            prop_assert_eq!(until - begins, asked.clone().filter(|at| (earliest..earliest + held).contains(at)).count() as i64);
            prop_assert_eq!(removed, asked.filter(|at| *at < earliest).count() as i64);
        }

        #[test]
        fn no_text_panics(text in "[-0-9:,hms TZ+.]{0,24}") {
            if let Ok(place) = text.parse::<Place>() {
                prop_assert!(!place.to_string().is_empty());
            }
        }
    }
}
