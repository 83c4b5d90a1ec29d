//! An event that was given up, kept with the reason: in `<topic>.<dest>.dead`, in the partition of the same number.
//!
//! Its identity is `eventd-source`: a crash may leave two of one event, or one of an event that was delivered after
//! all, and readers fold them by it.

use super::{Config, Parts};
use crate::clock;
use crate::core::Moment;
use crate::core::event::{Event, REPLAY, Record, encode_headers};
use crate::core::lanes::Trouble;
use crate::limits;
use crate::log::{CreateTopic, FetchError, Log, OpenError};
use std::sync::Arc;
use std::time::Duration;

/// Where the event was: `partition:offset`.
pub const SOURCE: &str = "eventd-source";
/// Why it was given up: `exhausted` or `refused`.
pub const REASON: &str = "eventd-reason";
/// The destination's last answer: status and the beginning of the body.
pub const ANSWER: &str = "eventd-answer";
/// Attempts that were made, those of the letter's earlier lives too.
pub const ATTEMPTS: &str = "eventd-attempts";
/// When the first and the last attempt failed, in milliseconds since the Unix epoch.
pub const FIRST_ATTEMPT: &str = "eventd-first-attempt";
pub const LAST_ATTEMPT: &str = "eventd-last-attempt";
/// When the event was accepted, in milliseconds since the Unix epoch: the letter's own timestamp is that of its writing.
pub const TIME: &str = "eventd-time";
/// An earlier life of a letter that was redriven and failed again: a header each, the oldest first.
pub const EARLIER: &str = "eventd-earlier";
/// Topic and destination that the letter belongs to.
pub const TOPIC: &str = "eventd-topic";
pub const DESTINATION: &str = "eventd-destination";

/// The topic of a destination's dead letters.
pub fn topic_of(topic: &str, destination: &str) -> String {
    format!("{topic}.{destination}.dead")
}

/// Why an event was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `--attempts` were made.
    Exhausted,
    /// The destination will never take it.
    Refused,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Refused => "refused",
        }
    }
}

/// What is known of an event that is being given up.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) reason: Reason,
    pub(super) answer: String,
    /// When its last attempt failed.
    pub(super) failed_at: Moment,
    /// Writing it failed this often already.
    pub(super) failures: u32,
}

/// The letter's record: key, value and headers of the source, and the story.
pub(super) fn record(
    parts: &Parts,
    partition: u32,
    event: &Event,
    trouble: &Trouble,
    letter: &Letter,
    now: Moment,
) -> Record {
    let now_ms = clock::now_ms();
    let ago_ms = |then: Moment| clock::whole_ms(now.saturating_sub(then));
    let before = Life::of_redriven(parts, &event.record);
    let first_ms = before.first_attempt_ms.unwrap_or(now_ms - ago_ms(trouble.first_failure));
    let last_ms = now_ms - ago_ms(letter.failed_at);
    let source = before.source.map_or_else(|| format!("{partition}:{}", event.offset), str::to_owned);
    let attempts = before.attempts.saturating_add(trouble.failures.into()).to_string();
    let (first, last) = (first_ms.to_string(), last_ms.to_string());
    let time = event.record.timestamp_ms.to_string();
    let ours = [
        (SOURCE, source.as_str()),
        (REASON, letter.reason.as_str()),
        (ANSWER, &letter.answer),
        (ATTEMPTS, &attempts),
        (FIRST_ATTEMPT, &first),
        (LAST_ATTEMPT, &last),
        (TIME, &time),
        (TOPIC, parts.log.topic()),
        (DESTINATION, parts.group.name()),
    ];
    // A letter may be about a letter: what an earlier one said of its source gives way to ours.
    let theirs = event.record.headers_raw().filter(|(name, _)| !ours.iter().any(|(own, _)| own.as_bytes() == *name));
    let mut headers: Vec<(&[u8], Option<&[u8]>)> = theirs.collect();
    let is_earlier = |(name, _): &&(&[u8], Option<&[u8]>)| *name == EARLIER.as_bytes();
    let lives = headers.iter().filter(is_earlier).count();
    if before.story.is_some()
        && lives >= limits::LETTER_LIVES_MAX
        && let Some(oldest) = headers.iter().position(|header| is_earlier(&header))
    {
        headers.remove(oldest);
    }
    headers.extend(before.story.as_ref().map(|story| (EARLIER.as_bytes(), Some(story.as_bytes()))));
    headers.extend(ours.map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))));
    let mut encoded = Vec::new();
    encode_headers(&headers, &mut encoded);
    Record::from_parts(event.record.key(), event.record.value(), &encoded, now_ms)
}

/// What a letter that was redriven says of itself. One that fails again is about the same event still: it keeps its
/// source and its first attempt, counts on, and tells of the life that it had.
#[derive(Debug, Default)]
struct Life<'r> {
    source: Option<&'r str>,
    attempts: u64,
    first_attempt_ms: Option<i64>,
    story: Option<String>,
}

impl<'r> Life<'r> {
    /// Nothing, where the event is no letter of this topic and destination that a replay sends.
    fn of_redriven(parts: &Parts, record: &'r Record) -> Self {
        let is_ours = (record.header_text(TOPIC), record.header_text(DESTINATION))
            == (Some(parts.log.topic()), Some(parts.group.name()));
        if !is_ours || record.header(REPLAY).is_none() {
            return Self::default();
        }
        let said = |name| record.header_text(name).unwrap_or("?");
        let answer: String = said(ANSWER).chars().take(limits::LETTER_LIFE_ANSWER_CHARS_MAX).collect();
        let (reason, attempts, last) = (said(REASON), said(ATTEMPTS), said(LAST_ATTEMPT));
        Self {
            source: record.header_text(SOURCE),
            attempts: attempts.parse().unwrap_or(0),
            first_attempt_ms: said(FIRST_ATTEMPT).parse().ok(),
            story: Some(format!("{reason} after {attempts} attempts, the last at {last}: {answer}")),
        }
    }
}

/// Opens the topic, made where it is missing, and makes sure that what it holds is this destination's: `orders` with
/// `eu.crm` and `orders.eu` with `crm` have the same name.
pub(super) async fn open(parts: &Parts, config: &Config) -> Result<Arc<dyn Log>, OpenError> {
    let topic = topic_of(parts.log.topic(), parts.group.name());
    let unavailable = |error: &dyn std::fmt::Display| OpenError::Unavailable(error.to_string());
    let partitions = parts.log.partitions().await.map_err(|error| unavailable(&error))?;
    if topic.len() > limits::TOPIC_CHARS_MAX {
        return Err(OpenError::Configuration(format!(
            "{topic:?} is longer than a topic's name may be ({}): choose a shorter --name",
            limits::TOPIC_CHARS_MAX
        )));
    }
    let create = CreateTopic { partitions, retention: Some(config.dead_retention) };
    let log = parts.engine.open(&topic, Some(create)).await?;
    let held = log.partitions().await.map_err(|error| unavailable(&error))?;
    if held < partitions {
        return Err(OpenError::Configuration(format!("{topic:?} has {held} partitions, its source {partitions}")));
    }
    ensure_own(&*log, parts.log.topic(), parts.group.name()).await?;
    Ok(log)
}

/// Looks whether the first letters of each partition are this topic's and this destination's.
pub async fn ensure_own(log: &dyn Log, topic: &str, destination: &str) -> Result<(), OpenError> {
    let unavailable = |error: &dyn std::fmt::Display| OpenError::Unavailable(error.to_string());
    for partition in 0..log.partitions().await.map_err(|error| unavailable(&error))? {
        let first = match log.earliest(partition).await {
            Ok(from) => log.fetch(partition, from, 1, Duration::ZERO).await,
            Err(error) => return Err(unavailable(&error)),
        };
        let first = match first {
            Ok(fetched) => fetched.events.into_iter().next(),
            // Trimmed meanwhile, or damaged: neither says whose it is.
            Err(FetchError::OutOfRange { .. } | FetchError::Corrupt { .. }) => None,
            Err(error @ (FetchError::Unavailable(_) | FetchError::Remade { .. })) => return Err(unavailable(&error)),
        };
        if let Some(letter) = first {
            let whose = |name| letter.record.header_text(name).unwrap_or("?").to_owned();
            if (whose(TOPIC).as_str(), whose(DESTINATION).as_str()) != (topic, destination) {
                return Err(OpenError::Configuration(format!(
                    "{:?} holds dead letters of the topic {:?} and the destination {:?}: choose another --name",
                    log.topic(),
                    whose(TOPIC),
                    whose(DESTINATION)
                )));
            }
        }
    }
    Ok(())
}
