//! The topic `<topic>.<dest>.dead` with a destination's dead letters: opens it when it is first needed, and adds partitions
//! when the main topic has got more.
//!
//! ```text
//!  main topic   P0 P1 P2 │ P3 P4 P5 added later      dead letters   P0 P1 P2 ── added ──▶ P0 … P5
//!                                                                      └─ none can be added: those of P3 go to P0,
//!                                                                         of P4 to P1, …
//! ```

use super::dead_letter::{DESTINATION, TOPIC};
use super::{Config, Parts};
use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::core::side_topics;
use crate::limits::TOPIC_CHARS_MAX;
use crate::log::grow_limiter::GrowLimiter;
use crate::log::{CreateTopic, Engine, FetchError, Log, OpenError};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the error of a failed open counts for every dead letter that waits: each open asks the brokers several times,
/// and a whole window of dead letters may wait.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How often adding missing partitions is tried, and a log line about them written.
const GROW_INTERVAL: Duration = Duration::from_secs(60);

/// Opens the topic of dead letters when it is first needed.
#[derive(Debug, Default)]
pub(super) struct DeadLetterTopicOpener(Mutex<LastOpen>);

/// The result of the last open.
#[derive(Debug, Default)]
enum LastOpen {
    #[default]
    Never,
    Opened(Arc<DeadLetterTopic>),
    Failed(OpenError, Instant),
}

impl DeadLetterTopicOpener {
    /// The topic, opened if it is not open yet. One open runs at a time, and the dead letters that wait for it share its
    /// error if it fails.
    pub(super) async fn get(&self, parts: &Parts, config: &Config) -> Result<Arc<DeadLetterTopic>, OpenError> {
        let mut last = self.0.lock().await;
        match &*last {
            LastOpen::Opened(topic) => return Ok(Arc::clone(topic)),
            LastOpen::Failed(error, at) if at.elapsed() < OPEN_AGAIN_AFTER => return Err(error.clone()),
            LastOpen::Never | LastOpen::Failed(..) => {}
        }
        let opened = DeadLetterTopic::open(parts, config).await.map(Arc::new);
        *last = match &opened {
            Ok(topic) => LastOpen::Opened(Arc::clone(topic)),
            Err(error) => LastOpen::Failed(error.clone(), Instant::now()),
        };
        opened
    }
}

/// A topic of dead letters, whose main topic may get more partitions.
#[derive(Debug)]
pub(super) struct DeadLetterTopic {
    log: Arc<dyn Log>,
    engine: Arc<dyn Engine>,
    main: Arc<dyn Log>,
    destination: String,
    retention: Duration,
    /// The number of its partitions when it was last seen.
    partitions: AtomicU32,
    grow_limiter: GrowLimiter,
}

impl DeadLetterTopic {
    /// Opens the topic, or creates it if it does not exist. Makes sure that its dead letters are this destination's:
    /// topic `orders` with destination `eu.crm` and topic `orders.eu` with destination `crm` lead to the same name.
    async fn open(parts: &Parts, config: &Config) -> Result<Self, OpenError> {
        let (main, destination) = (Arc::clone(&parts.log), parts.group.name().to_owned());
        let topic = side_topics::dead_letter_topic(main.topic(), &destination);
        let main_partitions = main.partitions().await.map_err(unavailable)?;
        if topic.len() > TOPIC_CHARS_MAX {
            return Err(OpenError::Configuration(format!(
                "the topic {topic:?} for dead letters has more than {TOPIC_CHARS_MAX} characters: choose a shorter --name"
            )));
        }
        let create = CreateTopic { partitions: main_partitions, retention: Some(config.dead_retention) };
        let log = parts.engine.open(&topic, Some(create)).await?;
        let partitions = log.partitions().await.map_err(unavailable)?;
        ensure_own(&*log, main.topic(), &destination).await?;
        let opened = Self {
            log,
            engine: Arc::clone(&parts.engine),
            main,
            destination,
            retention: config.dead_retention,
            partitions: AtomicU32::new(partitions),
            grow_limiter: match partitions < main_partitions {
                true => GrowLimiter::just_tried(GROW_INTERVAL),
                false => GrowLimiter::new(GROW_INTERVAL),
            },
        };
        if partitions < main_partitions {
            opened.warn_of_missing_partitions(partitions, main_partitions);
        }
        Ok(opened)
    }

    /// Stores a dead letter of an event in this partition of the main topic.
    pub(super) async fn append(&self, partition: u32, record: Record) -> Result<(), Failure> {
        if partition >= self.partitions.load(Ordering::Relaxed) {
            self.grow(partition).await;
        }
        let target = target_partition(self.partitions.load(Ordering::Relaxed), partition);
        self.log.append(target, vec![record]).await.map(drop)
    }

    /// Adds the partitions that the main topic has, at most once in [`GROW_INTERVAL`].
    async fn grow(&self, partition: u32) {
        let Some(_turn) = self.grow_limiter.turn().await else { return };
        let wanted = self.main.partitions().await.unwrap_or_default().max(partition + 1);
        let create = CreateTopic { partitions: wanted, retention: Some(self.retention) };
        let found = match self.engine.open(self.log.topic(), Some(create)).await {
            Ok(log) => log.partitions().await.map_err(|failure| failure.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(found) => {
                self.partitions.fetch_max(found, Ordering::Relaxed);
                if found < wanted {
                    self.warn_of_missing_partitions(found, wanted);
                }
            }
            Err(why) => tracing::warn!(
                destination = self.destination,
                topic = self.log.topic(),
                partitions = self.partitions.load(Ordering::Relaxed),
                source_partitions = wanted,
                "cannot add partitions to the topic of dead letters: {why}"
            ),
        }
    }

    fn warn_of_missing_partitions(&self, partitions: u32, source_partitions: u32) {
        tracing::warn!(
            destination = self.destination,
            topic = self.log.topic(),
            partitions,
            source_partitions,
            "the topic of dead letters has fewer partitions than its source, and none can be added: dead letters of the \
             others go to the partitions that it has (eventd-source says where each event was). Add partitions with \
             Kafka's tools, or give eventd the right to alter the topic"
        );
    }
}

/// The partition with the number of the event's, or another one as long as that is missing.
fn target_partition(partitions: u32, partition: u32) -> u32 {
    if partition < partitions { partition } else { partition % partitions.max(1) }
}

fn unavailable(error: impl Display) -> OpenError {
    OpenError::Unavailable(error.to_string())
}

/// Checks that the first dead letter of each partition is one of this topic and destination.
///
/// # Errors
/// The topic holds dead letters of another one, or cannot be read now.
pub async fn ensure_own(log: &dyn Log, topic: &str, destination: &str) -> Result<(), OpenError> {
    for partition in 0..log.partitions().await.map_err(unavailable)? {
        let earliest = log.earliest(partition).await.map_err(unavailable)?;
        let first = match log.fetch(partition, earliest, 1, Duration::ZERO).await {
            Ok(fetched) => fetched.events.into_iter().next(),
            // It was removed meanwhile, or is damaged. Neither says whose it was.
            Err(FetchError::OutOfRange { .. } | FetchError::Corrupt { .. }) => None,
            Err(error @ (FetchError::Unavailable(_) | FetchError::TopicRecreated { .. })) => {
                return Err(unavailable(error));
            }
        };
        if let Some(letter) = first {
            let header = |name| letter.record.header_text(name).unwrap_or("?");
            if (header(TOPIC), header(DESTINATION)) != (topic, destination) {
                return Err(OpenError::Configuration(format!(
                    "{:?} holds dead letters of the topic {:?} and the destination {:?}: choose another --name",
                    log.topic(),
                    header(TOPIC),
                    header(DESTINATION)
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_goes_to_the_partition_of_its_event_or_to_one_that_exists() {
        let targets = |partitions| [0, 1, 2, 3, 4].map(|partition| target_partition(partitions, partition));
        assert_eq!(targets(5), [0, 1, 2, 3, 4]);
        assert_eq!(targets(3), [0, 1, 2, 0, 1]);
        assert_eq!(targets(0), [0; 5]);
    }
}
