//! An event that was given up, kept with the reason: in `<topic>.<dest>.dead`, in the partition of the same number.
//!
//! ```text
//!  source  P0 P1 P2 │ P3 P4 P5 added later      dead  P0 P1 P2 ── grown ──▶ P0 … P5
//!                                                             └─ may not be grown: letters of P3 go to P0, of P4 to P1 …
//! ```
//!
//! Its identity is `eventd-source`: a crash may leave two of one event, or one of an event that was delivered after
//! all, and readers fold them by it.

use super::{Config, Parts};
use crate::BoxFuture;
use crate::clock;
use crate::core::Moment;
use crate::core::event::{Event, REPLAY, Record, encode_headers};
use crate::core::lanes::FailureHistory;
use crate::core::outcome::Failure;
use crate::core::side_topics::dead_letter_topic;
use crate::limits;
use crate::log::{AppendLimits, Engine, Fetched};
use crate::log::{CreateTopic, FetchError, Log, OpenError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the error of a failed open counts for every letter that is waiting: each open asks the brokers several
/// times, and a window full of letters may wait.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How often a topic of dead letters that lacks partitions is tried to be grown, and told of.
const GROW_INTERVAL: Duration = Duration::from_secs(60);

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
    history: &FailureHistory,
    letter: &Letter,
    now: Moment,
) -> Record {
    let now_ms = clock::now_ms();
    let ago_ms = |then: Moment| clock::whole_ms(now.saturating_sub(then));
    let before = Life::of_redriven(parts, &event.record);
    let first_ms = before.first_attempt_ms.unwrap_or(now_ms - ago_ms(history.first_failure));
    let last_ms = now_ms - ago_ms(letter.failed_at);
    let source = before.source.map_or_else(|| format!("{partition}:{}", event.offset), str::to_owned);
    let attempts = before.attempts.saturating_add(history.failures.into()).to_string();
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

/// The topic of dead letters, opened when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Opening(Mutex<LastOpen>);

/// What opening it last came to.
#[derive(Debug, Default)]
enum LastOpen {
    #[default]
    Never,
    Opened(Arc<dyn Log>),
    Failed(OpenError, Instant),
}

impl Opening {
    /// One open at a time. The letters that wait for one that fails share its error.
    pub(super) async fn get(&self, parts: &Parts, config: &Config) -> Result<Arc<dyn Log>, OpenError> {
        let mut last = self.0.lock().await;
        match &*last {
            LastOpen::Opened(log) => return Ok(Arc::clone(log)),
            LastOpen::Failed(error, at) if at.elapsed() < OPEN_AGAIN_AFTER => return Err(error.clone()),
            LastOpen::Never | LastOpen::Failed(..) => {}
        }
        let opened = open(parts, config).await;
        *last = match &opened {
            Ok(log) => LastOpen::Opened(Arc::clone(log)),
            Err(error) => LastOpen::Failed(error.clone(), Instant::now()),
        };
        opened
    }
}

/// A topic of dead letters whose source may grow. A letter goes to the partition of the same number. As long as there is
/// none, and none can be added, it goes to another one: `eventd-source` says where its event was.
#[derive(Debug)]
struct Letters {
    log: Arc<dyn Log>,
    engine: Arc<dyn Engine>,
    source: Arc<dyn Log>,
    retention: Duration,
    /// Partitions that it has, as last seen.
    held: AtomicU32,
    /// When adding partitions was last tried.
    grown_at: Mutex<Option<Instant>>,
}

impl Letters {
    /// The partition for the letters of this partition of the source.
    async fn place(&self, partition: u32) -> u32 {
        if partition >= self.held.load(Ordering::Relaxed) {
            self.grow(partition).await;
        }
        place_among(self.held.load(Ordering::Relaxed), partition)
    }

    /// Adds the partitions that the source has, at most once in [`GROW_INTERVAL`].
    async fn grow(&self, partition: u32) {
        let mut grown_at = self.grown_at.lock().await;
        let held = self.held.load(Ordering::Relaxed);
        // Another letter may have seen to it while this one waited.
        if partition < held || grown_at.is_some_and(|at| at.elapsed() < GROW_INTERVAL) {
            return;
        }
        *grown_at = Some(Instant::now());
        let wanted = self.source.partitions().await.unwrap_or_default().max(partition + 1);
        let create = CreateTopic { partitions: wanted, retention: Some(self.retention) };
        let found = match self.engine.open(self.log.topic(), Some(create)).await {
            Ok(log) => log.partitions().await.map_err(|failure| failure.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(found) => {
                self.held.fetch_max(found, Ordering::Relaxed);
                if found < wanted {
                    tell_of_missing(self.log.topic(), found, wanted);
                }
            }
            Err(why) => {
                tracing::warn!(topic = self.log.topic(), held, wanted, "cannot look for added partitions: {why}");
            }
        }
    }
}

fn place_among(held: u32, partition: u32) -> u32 {
    if partition < held { partition } else { partition % held.max(1) }
}

fn tell_of_missing(topic: &str, partitions: u32, source_partitions: u32) {
    tracing::warn!(
        topic,
        partitions,
        source_partitions,
        "the topic of dead letters has fewer partitions than its source, and none can be added: dead letters of the \
         others go to the partitions that it has (eventd-source says where each event was). Add partitions with Kafka's \
         tools, or give eventd the right to alter the topic"
    );
}

impl Log for Letters {
    fn topic(&self) -> &str {
        self.log.topic()
    }

    fn append_limits(&self) -> AppendLimits {
        self.log.append_limits()
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        self.log.partitions()
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move {
            let place = self.place(partition).await;
            self.log.append(place, records).await
        })
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        self.log.fetch(partition, from, max_bytes, wait)
    }

    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.earliest(partition)
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.latest(partition)
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        self.log.offset_at(partition, timestamp_ms)
    }
}

/// Opens the topic, made where it is missing, and makes sure that what it holds is this destination's: `orders` with
/// `eu.crm` and `orders.eu` with `crm` have the same name.
async fn open(parts: &Parts, config: &Config) -> Result<Arc<dyn Log>, OpenError> {
    let topic = dead_letter_topic(parts.log.topic(), parts.group.name());
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
    ensure_own(&*log, parts.log.topic(), parts.group.name()).await?;
    let lacks = held < partitions;
    if lacks {
        tell_of_missing(&topic, held, partitions);
    }
    Ok(Arc::new(Letters {
        log,
        engine: Arc::clone(&parts.engine),
        source: Arc::clone(&parts.log),
        retention: config.dead_retention,
        held: AtomicU32::new(held),
        // Opening it has just tried.
        grown_at: Mutex::new(lacks.then(Instant::now)),
    }))
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
            Err(error @ (FetchError::Unavailable(_) | FetchError::TopicRecreated { .. })) => {
                return Err(unavailable(&error));
            }
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
