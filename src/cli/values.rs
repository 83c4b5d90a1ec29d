//! Checks of single values. Each error says what is wrong and what to write; clap adds the flag and the value.

use crate::core::names;
use crate::core::side_topics::check_main_topic;
use crate::core::token_bucket::Rate;
use crate::dispatch::commands::record::REASON_BYTES_MAX;
use crate::dispatch::{OnGap, Start};
use crate::limits;
use crate::net::SaslMechanism;
use crate::replay::position::Position;
use bytesize::ByteSize;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest duration, in years. A duration is added to a clock, which must not overflow.
const YEARS_MAX: u64 = 100;

/// Partitions of a topic that eventd creates. Each costs every destination a task, a position and a commit.
const PARTITIONS_MAX: u32 = 1_000;

/// Permissions that the owner of a file needs. Without them a file could be created but never opened again.
const OWNER_READS_AND_WRITES: u32 = 0o600;

/// The largest count of a flag. It is far above what fits in the memory of a machine.
const COUNT_MAX: u64 = 1_000_000_000;

/// All permissions to read and to write. Nothing that eventd writes is executable.
const EVERYONE_READS_AND_WRITES: u32 = 0o666;

/// A duration with its unit: `100ms`, `2s`, `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
        return Err("a duration needs a unit: write for example 100ms, 2s, 5m or 1h".into());
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= Duration::from_secs(YEARS_MAX * 365 * 86_400) => Ok(duration),
        Ok(_) | Err(humantime::DurationError::NumberOverflow) => {
            Err(format!("the largest possible value is {YEARS_MAX} years"))
        }
        Err(_) if text.starts_with('-') => {
            Err("a duration cannot be negative: write for example 100ms, 2s, 5m or 1h".into())
        }
        Err(_) => Err("it is not a duration: write a number and a unit, for example 100ms, 2s, 5m or 1h".into()),
    }
}

pub(super) fn above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("the value must be above zero: write for example 100ms, 2s, 5m or 1h".into()),
        duration => Ok(duration),
    }
}

/// The range is that of a Kafka broker. Below a second, heartbeats could not keep the session alive.
pub(super) fn session_timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        timeout if timeout < Duration::from_secs(1) => {
            Err("the smallest possible value is 1s, because several heartbeats have to fit in".into())
        }
        timeout if timeout > Duration::from_secs(1800) => {
            Err("the largest possible value is 30m, the limit of Kafka brokers".into())
        }
        timeout => Ok(timeout),
    }
}

/// Bytes, with or without a unit: `900KiB`, `64MiB`, `1000`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("the value must be above zero: write for example 900KiB, 64MiB or 1GiB".into()),
        Ok(size) => Ok(size.as_u64()),
        Err(_) => Err("it is not a size: write a number and a unit, such as 64MiB".into()),
    }
}

/// Like [`bytes`], for what is held in memory.
pub(super) fn size(text: &str) -> Result<usize, String> {
    usize::try_from(bytes(text)?).map_err(|_| "the value is larger than this machine's memory can be".into())
}

/// A whole number of this range, or what to write.
fn whole_number(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("write a whole number from {} to {}", range.start(), range.end()))
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    let count = whole_number(text, 0..=COUNT_MAX).map_err(|_| format!("write a whole number from 1 to {COUNT_MAX}"))?;
    match usize::try_from(count) {
        Ok(0) => Err(format!("the value must be above zero: write a whole number from 1 to {COUNT_MAX}")),
        Ok(count) => Ok(count),
        Err(_) => Err("the value is larger than this machine's memory can be".into()),
    }
}

/// Events in one http request.
pub(super) fn batch(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("the value must be above zero: 1 sends each event alone".into()),
        Ok(events @ 1..=limits::HTTP_BATCH_EVENTS_MAX) => Ok(events),
        _ => Err(format!("write a whole number from 1 to {}; 1 sends each event alone", limits::HTTP_BATCH_EVENTS_MAX)),
    }
}

/// A whole number from 1.
pub(super) fn from_one(text: &str) -> Result<u64, String> {
    whole_number(text, 1..=u64::MAX)
}

/// Failures in a row, also 0.
pub(super) fn failures(text: &str) -> Result<u64, String> {
    whole_number(text, 0..=u64::MAX).map_err(|why| format!("{why}; 0 is never"))
}

/// The seed of a fault drill.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    whole_number(text, 0..=u64::MAX)
}

/// A whole number, also 0.
pub(super) fn attempts(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("write a whole number from 1 to {}, or 0 for no limit", u32::MAX))
}

/// A partition and an offset in it: `1:480`, or `p1:480`.
pub(super) fn partition_offset(text: &str) -> Result<(u32, i64), String> {
    let (partition, offset) = text.split_once(':').unwrap_or((text, ""));
    match (partition.trim_start_matches('p').parse(), offset.parse::<u64>().map(i64::try_from)) {
        (Ok(partition), Ok(Ok(offset))) => Ok((partition, offset)),
        _ => Err("write the partition and the offset, for example 1:480".into()),
    }
}

/// A user, with the bounds that ingest has for it.
pub(super) fn user(text: &str) -> Result<String, String> {
    match (1..=limits::USER_BYTES_MAX).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err(format!("it has {} bytes: write 1 to {}", text.len(), limits::USER_BYTES_MAX)),
    }
}

/// The reason of a command. It is stored in each commit of a paused destination.
pub(super) fn reason(text: &str) -> Result<String, String> {
    match text.len() > REASON_BYTES_MAX {
        true => Err(format!("it has {} bytes, but at most {REASON_BYTES_MAX} are possible: shorten it", text.len())),
        false => Ok(text.to_owned()),
    }
}

/// The value of a switch. Most switches have it only as a variable; the flag itself has no value.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// The value of `--jitter`. It accepts the same words as a switch.
pub(super) fn on_or_off(text: &str) -> Result<bool, String> {
    switch(text).map_err(|_| "write on or off".into())
}

pub(super) fn partitions(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=PARTITIONS_MAX) => Ok(n),
        _ => Err(format!("write a whole number from 1 to {PARTITIONS_MAX}")),
    }
}

pub(super) fn one_in(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(1) => Err("with 1 every attempt would fail for ever: 0 is off, 2 or more is a drill".into()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("write 0 to turn the drill off, or a whole number from 2 to {}", u32::MAX)),
    }
}

/// Permissions in octal: `0640`.
pub(super) fn file_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "write permissions in octal, for example 0640")?;
    if mode & OWNER_READS_AND_WRITES != OWNER_READS_AND_WRITES {
        return Err("the owner has to be able to read and write the file: write for example 0600 or 0640".into());
    }
    if mode & !EVERYONE_READS_AND_WRITES != 0 {
        return Err("only permissions to read and write are possible: write for example 0600 or 0640".into());
    }
    Ok(mode)
}

pub(super) fn topic(text: &str) -> Result<String, String> {
    match names::is_valid(text, limits::TOPIC_CHARS_MAX) {
        true => check_main_topic(text).map(|()| text.into()),
        false => Err(format!("a topic has 1 to {} characters of A-Z a-z 0-9 . _ -", limits::TOPIC_CHARS_MAX)),
    }
}

/// Kafka allows the same characters in the id of a static member as in a topic.
pub(super) fn instance_id(text: &str) -> Result<String, String> {
    match names::is_valid(text, limits::TOPIC_CHARS_MAX) {
        true => Ok(text.into()),
        false => Err(format!("an instance id has 1 to {} characters of A-Z a-z 0-9 . _ -", limits::TOPIC_CHARS_MAX)),
    }
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']) && port.parse::<u16>().is_ok() =>
        {
            Ok(text.into())
        }
        _ => Err("write HOST:PORT, without a scheme or user, for example localhost:8090 or [::1]:8090".into()),
    }
}

/// A host without a port. An empty text is accepted here and ignored later: it is an empty line of the variable.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    match text.contains([':', '/', '@', ' ']) && !(text.starts_with('[') && text.ends_with(']')) {
        true => Err("write a host without scheme and port, for example events.example.com".into()),
        false => Ok(text.into()),
    }
}

pub(super) fn mechanism(text: &str) -> Result<SaslMechanism, String> {
    match text.to_ascii_lowercase().as_str() {
        "plain" => Ok(SaslMechanism::Plain),
        "scram-sha-256" => Ok(SaslMechanism::ScramSha256),
        "scram-sha-512" => Ok(SaslMechanism::ScramSha512),
        _ => Err("write plain, scram-sha-256 or scram-sha-512".into()),
    }
}

pub(super) fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => Err("write earliest or latest".into()),
    }
}

pub(super) fn on_gap(text: &str) -> Result<OnGap, String> {
    match text {
        "stop" => Ok(OnGap::Stop),
        "skip" => Ok(OnGap::Skip),
        _ => Err("write stop or skip".into()),
    }
}

pub(super) fn position(text: &str) -> Result<Position, String> {
    text.parse()
}

/// A time or an age, but not an offset.
pub(super) fn moment(text: &str) -> Result<Position, String> {
    match text.parse()? {
        moment @ (Position::Time(_) | Position::Ago(_)) => Ok(moment),
        _ => {
            Err("write a time (2026-01-02T10:30:00Z, 2026-01-02 10:30, 10:30 for today, @1767350000) or an age (2h)"
                .into())
        }
    }
}

pub(super) fn rate(text: &str) -> Result<Rate, String> {
    text.parse()
}

pub(super) fn replay_id(text: &str) -> Result<String, String> {
    match names::is_valid(text, limits::REPLAY_ID_CHARS_MAX) {
        true => Ok(text.into()),
        false => Err("this is not the id of a replay: `eventd replay --list` shows the ids".into()),
    }
}
