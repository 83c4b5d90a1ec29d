//! The topic `<topic>.<dest>.control` as the owners of partitions see it. `eventd control` creates it with the first
//! command, so it may not exist yet.

use super::record::{self, InvalidCommand};
use crate::core::control::ControlRecord;
use crate::core::side_topics::control_topic;
use crate::dispatch::Parts;
use crate::limits::{CONTROL_LOOK_INTERVAL, TOPIC_CHARS_MAX};
use crate::log::{FetchError, Log, OpenError};
use std::fmt::Display;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Bytes of commands that one look reads. If there are more, the next look follows at once.
const LOOK_BYTES_MAX: usize = 64 * 1024;

/// How often a topic is looked at that this process has no right to read.
const REFUSED_LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The commands that a look has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::dispatch) struct FoundCommands {
    /// In the order of their offsets.
    pub(in crate::dispatch) commands: Vec<(i64, Result<ControlRecord, InvalidCommand>)>,
    /// The offset at which the next look starts.
    pub(in crate::dispatch) next: i64,
    /// There may be more commands.
    pub(in crate::dispatch) has_more: bool,
    /// Why commands before `next` are missing, if they are.
    pub(in crate::dispatch) missing: Option<String>,
}

impl FoundCommands {
    /// The offset from which the next look reads. This one has read from `from`. `None`: all commands are read.
    ///
    /// # Errors
    /// This look did not get further, because the topic was created again meanwhile. A loop over looks might never end.
    pub(super) fn next_look(&self, from: i64) -> Result<Option<i64>, String> {
        match self.has_more {
            false => Ok(None),
            true if self.next > from => Ok(Some(self.next)),
            true => Err("the topic of commands was created again while it was read".to_owned()),
        }
    }
}

/// Opens the control topic when it exists, for all partitions of this process.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct ControlTopic {
    /// Held while the topic is opened, so that the partitions share one request.
    last: Mutex<LastLook>,
    /// The refusal that was logged last.
    refused: StdMutex<Option<String>>,
}

#[derive(Debug, Default)]
struct LastLook {
    log: Option<Arc<dyn Log>>,
    partitions: u32,
    /// No look at the topic itself before this time.
    again_at: Option<Instant>,
}

impl ControlTopic {
    /// The commands of a partition from this offset on.
    pub(in crate::dispatch) async fn look(
        &self,
        parts: &Parts,
        partition: u32,
        from: i64,
    ) -> Result<FoundCommands, String> {
        let nothing = FoundCommands { next: from, ..FoundCommands::default() };
        let Some(log) = self.log(parts, partition).await.map_err(|error| error.to_string())? else {
            return Ok(nothing);
        };
        let missing = |next, why| Ok(FoundCommands { next, has_more: true, missing: Some(why), ..nothing.clone() });
        match log.fetch(partition, from, LOOK_BYTES_MAX, Duration::ZERO).await {
            Ok(fetched) => {
                let (topic, destination) = (parts.log.topic(), parts.group.name());
                let decoded = |record| record::decode(record, topic, destination);
                Ok(FoundCommands {
                    commands: fetched.events.iter().map(|event| (event.offset, decoded(&event.record))).collect(),
                    next: fetched.next,
                    has_more: fetched.next > from && fetched.next < fetched.latest,
                    missing: None,
                })
            }
            Err(FetchError::Corrupt { offset, detail }) => missing(offset + 1, format!("offset {offset}: {detail}")),
            // The topic was made again, or commands were removed before they were applied. Commands may be applied twice,
            // so all that there are can be read.
            Err(error @ FetchError::OutOfRange { earliest, .. }) if earliest != from => {
                missing(earliest, error.to_string())
            }
            Err(FetchError::TopicRecreated { .. }) => {
                *self.last.lock().await = LastLook::default();
                Ok(FoundCommands { has_more: true, ..nothing })
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// The topic, if it exists and has this partition.
    async fn log(&self, parts: &Parts, partition: u32) -> Result<Option<Arc<dyn Log>>, OpenError> {
        let mut last = self.last.lock().await;
        let now = Instant::now();
        let is_due = last.again_at.is_none_or(|at| now >= at);
        if is_due && (last.log.is_none() || partition >= last.partitions) {
            // Each partition looks once in this interval, and their looks share one request.
            last.again_at = Some(now + CONTROL_LOOK_INTERVAL / 2);
            match self.open(parts).await {
                Ok(Some((log, partitions))) => (last.log, last.partitions) = (Some(log), partitions),
                Ok(None) => {}
                Err(OpenError::Configuration(why)) => {
                    last.again_at = Some(now + REFUSED_LOOK_INTERVAL);
                    self.log_refusal(parts, &why);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(last.log.clone().filter(|_| partition < last.partitions))
    }

    async fn open(&self, parts: &Parts) -> Result<Option<(Arc<dyn Log>, u32)>, OpenError> {
        let topic = control_topic(parts.log.topic(), parts.group.name());
        if topic.len() > TOPIC_CHARS_MAX {
            // No command can be written to it either.
            return Ok(None);
        }
        match parts.engine.open(&topic, None).await {
            Ok(log) => {
                let partitions = log.partitions().await.map_err(unavailable)?;
                Ok(Some((log, partitions)))
            }
            Err(OpenError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Delivery works without commands. So a missing right is told once.
    fn log_refusal(&self, parts: &Parts, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.as_deref() != Some(why) {
            *refused = Some(why.to_owned());
            let (destination, topic) = (parts.group.name(), control_topic(parts.log.topic(), parts.group.name()));
            tracing::warn!(
                destination,
                %topic,
                "`eventd control` has no effect here, because this process may not read its topic: {why}"
            );
        }
    }
}

fn unavailable(error: impl Display) -> OpenError {
    OpenError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_for_all_commands_end_if_the_topic_is_created_again() {
        let found = |next, has_more| FoundCommands { next, has_more, ..FoundCommands::default() };
        assert_eq!(found(7, false).next_look(5), Ok(None));
        assert_eq!(found(7, true).next_look(5), Ok(Some(7)));
        for next in [0, 5] {
            assert!(found(next, true).next_look(5).is_err_and(|why| why.contains("created again")));
        }
    }
}
