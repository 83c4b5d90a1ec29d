//! Who replayed what, when, and how it ended: records of `<topic>.audit`, kept in the log beside what they are about.
//!
//! A replay's first record holds everything that resuming it needs, besides its progress, which is its group's.

use super::plan::{DeliveryCounts, Plan};
use super::select::Selection;
use crate::clock::now_ms;
use crate::core::event::Record;
use crate::core::side_topics::audit_topic;
use crate::dispatch::dead_letter::{DESTINATION, TOPIC};
use crate::limits;
use crate::log::{CreateTopic, Engine, FetchError, Log, OpenError};
use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Everything of a topic is in this partition: in the order in which it happened.
const PARTITION: u32 = 0;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub id: String,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub destination: String,
    pub by: Operator,
    #[serde(flatten)]
    pub what: AuditEvent,
}

/// Who did it, as far as the machine knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    pub user: String,
    pub host: String,
    pub pid: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum AuditEvent {
    ReplayStarted(Box<ReplayStart>),
    ReplayResumed {
        /// Events that were left.
        left: u64,
    },
    ReplayEnded {
        outcome: ReplayOutcome,
        counts: DeliveryCounts,
        /// Why, where it is not finished.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// Dispatch signs the destination's requests from now on, or does not any more.
    DestinationSigned {
        signed: bool,
    },
    /// Of a newer eventd.
    #[serde(other)]
    Unknown,
}

/// What a replay was asked for, and what it found to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayStart {
    /// Where it delivers, without passwords.
    pub to: String,
    /// As it was typed.
    pub what: String,
    pub selection: Selection,
    pub plan: Plan,
    /// It moves the destination's own position, and delivers nothing itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOutcome {
    /// Everything is settled.
    Finished,
    /// There is work left, and `--resume` does it.
    Stopped,
    /// The same, and a person has to look first.
    Failed,
}

/// The audit topic of one topic.
#[derive(Debug)]
pub struct AuditLog {
    log: Arc<dyn Log>,
    topic: String,
    by: Operator,
}

/// The records of one replay, folded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayHistory {
    pub destination: String,
    pub by: Operator,
    pub started_ms: i64,
    pub started: ReplayStart,
    /// How it last ended, and when; `None`: it is running, or was cut off.
    pub ended: Option<(i64, ReplayOutcome, String)>,
    /// What all of its runs together did, those that were cut off left out.
    pub counts: DeliveryCounts,
}

impl AuditLog {
    /// Opens the topic, and makes it where it is missing.
    pub async fn open(engine: &dyn Engine, log: &dyn Log) -> anyhow::Result<Self> {
        let partitions = log.partitions().await?;
        // What was done is known for as long as the log is there.
        let create = CreateTopic { partitions, retention: None };
        let topic = log.topic().to_owned();
        let log = engine.open(&audit_topic(&topic), Some(create)).await.context("the topic of audit records")?;
        Ok(Self { log, topic, by: Operator::this_process() })
    }

    /// The same for one who only reads. `None`: nobody has replayed anything yet.
    pub async fn open_existing(engine: &dyn Engine, topic: &str) -> anyhow::Result<Option<Self>> {
        match engine.open(&audit_topic(topic), None).await {
            Ok(log) => Ok(Some(Self { log, topic: topic.to_owned(), by: Operator::this_process() })),
            Err(OpenError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one record, and waits until it is durable.
    pub async fn write(&self, id: &str, destination: &str, what: AuditEvent) -> anyhow::Result<()> {
        let (at_ms, by) = (now_ms(), self.by.clone());
        let entry = AuditRecord { id: id.to_owned(), at_ms, destination: destination.to_owned(), by, what };
        let headers = [(TOPIC, self.topic.as_str()), (DESTINATION, destination)];
        let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
        let record = Record::new(Some(id.as_bytes()), Some(&serde_json::to_vec(&entry)?), &headers, at_ms);
        let mut failures = 0;
        while let Err(failure) = self.log.append(PARTITION, vec![record.clone()]).await {
            // Two of the same are read as one.
            failures += 1;
            if failures > limits::REPLAY_READ_TRIES_MAX {
                return Err(failure).context("the audit record cannot be written");
            }
            tokio::time::sleep(limits::REPLAY_READ_AGAIN_AFTER).await;
        }
        Ok(())
    }

    /// Everything that was replayed, by id: the oldest first.
    pub async fn histories(&self) -> anyhow::Result<BTreeMap<String, ReplayHistory>> {
        let mut histories = BTreeMap::new();
        self.read(|entry| fold(&mut histories, entry)).await?;
        Ok(histories)
    }

    /// Whether the destination's requests are signed, as dispatch wrote it down last.
    pub async fn is_signed(&self, destination: &str) -> anyhow::Result<bool> {
        let mut is_signed = false;
        self.read(|entry| match entry.what {
            AuditEvent::DestinationSigned { signed } if entry.destination == destination => is_signed = signed,
            _ => {}
        })
        .await?;
        Ok(is_signed)
    }

    /// Every record, in the order in which they were written.
    async fn read(&self, mut each: impl FnMut(AuditRecord) + Send) -> anyhow::Result<()> {
        let end = self.log.latest(PARTITION).await?;
        let (mut at, mut failures) = (self.log.earliest(PARTITION).await?, 0);
        while at < end {
            match self.log.fetch(PARTITION, at, limits::FETCH_BYTES_MAX, Duration::ZERO).await {
                Ok(fetched) if fetched.next > at => {
                    for event in &fetched.events {
                        self.check_own(&event.record)?;
                        let text = event.record.value().unwrap_or_default();
                        let entry = serde_json::from_slice(text)
                            .map_err(|error| anyhow!("{:?} at offset {}: {error}", self.log.topic(), event.offset))?;
                        each(entry);
                    }
                    at = fetched.next;
                }
                Ok(_) | Err(FetchError::Unavailable(_)) if failures < limits::REPLAY_READ_TRIES_MAX => {
                    failures += 1;
                    tokio::time::sleep(limits::REPLAY_READ_AGAIN_AFTER).await;
                }
                Ok(_) => bail!("{:?} gives nothing at offset {at}", self.log.topic()),
                Err(error) => return Err(error).context("the audit records cannot be read"),
            }
        }
        Ok(())
    }

    fn check_own(&self, record: &Record) -> anyhow::Result<()> {
        match record.header_text(TOPIC) {
            Some(topic) if topic == self.topic => Ok(()),
            other => bail!("{:?} holds records of {other:?}, and not of {:?} alone", self.log.topic(), self.topic),
        }
    }
}

fn fold(histories: &mut BTreeMap<String, ReplayHistory>, entry: AuditRecord) {
    match entry.what {
        AuditEvent::ReplayStarted(started) => {
            histories.entry(entry.id).or_insert(ReplayHistory {
                destination: entry.destination,
                by: entry.by,
                started_ms: entry.at_ms,
                started: *started,
                ended: None,
                counts: DeliveryCounts::default(),
            });
        }
        AuditEvent::ReplayResumed { .. } => {
            if let Some(history) = histories.get_mut(&entry.id) {
                history.ended = None;
            }
        }
        AuditEvent::ReplayEnded { outcome, counts, why } => {
            if let Some(history) = histories.get_mut(&entry.id) {
                // A second one without a start between is the same one, sent again.
                if history.ended.is_none() {
                    history.counts = history.counts.and(counts);
                }
                history.ended = Some((entry.at_ms, outcome, why));
            }
        }
        AuditEvent::DestinationSigned { .. } | AuditEvent::Unknown => {}
    }
}

impl Operator {
    fn this_process() -> Self {
        let named = |name| std::env::var(name).ok().filter(|user: &String| !user.is_empty());
        let user = named("USER").or_else(|| named("LOGNAME")).unwrap_or_else(|| "unknown".into());
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = match host.trim() {
            "" => "unknown".to_owned(),
            host => host.to_owned(),
        };
        Self { user, host, pid: std::process::id() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, at_ms: i64, what: AuditEvent) -> AuditRecord {
        let by = Operator { user: "ada".into(), host: "box".into(), pid: 1 };
        AuditRecord { id: id.into(), at_ms, destination: "billing".into(), by, what }
    }

    fn started() -> AuditEvent {
        let (selection, plan) = (Selection::default(), Plan { events: 7, ..Plan::default() });
        AuditEvent::ReplayStarted(Box::new(ReplayStart {
            to: "null:".into(),
            what: "all".into(),
            selection,
            plan,
            moves: false,
        }))
    }

    fn ended(outcome: ReplayOutcome, delivered: u64) -> AuditEvent {
        let counts = DeliveryCounts { delivered, given_up: 1, failed: 2 };
        AuditEvent::ReplayEnded { outcome, counts, why: String::new() }
    }

    #[test]
    fn a_story_is_what_its_records_say_in_their_order() {
        let mut histories = BTreeMap::new();
        for one in [
            entry("a", 1, started()),
            entry("b", 2, started()),
            entry("a", 3, ended(ReplayOutcome::Stopped, 4)),
            entry("a", 3, ended(ReplayOutcome::Stopped, 4)),
            entry("a", 5, AuditEvent::ReplayResumed { left: 3 }),
            entry("nobody", 6, ended(ReplayOutcome::Finished, 1)),
            entry("a", 7, ended(ReplayOutcome::Finished, 3)),
        ] {
            // As they are stored.
            fold(&mut histories, serde_json::from_slice(&serde_json::to_vec(&one).unwrap()).unwrap());
        }
        assert_eq!(histories.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(histories["a"].ended, Some((7, ReplayOutcome::Finished, String::new())));
        assert_eq!(histories["a"].counts, DeliveryCounts { delivered: 7, given_up: 2, failed: 4 });
        assert_eq!((histories["a"].started_ms, histories["a"].started.plan.events), (1, 7));
        assert_eq!(histories["b"].ended, None, "running, or cut off");
    }

    #[test]
    fn what_a_newer_eventd_wrote_is_passed_over() {
        let text = r#"{"id":"a","at_ms":1,"destination":"d","by":{"user":"u","host":"h","pid":1},"event":"rewind-moon","x":1}"#;
        let entry: AuditRecord = serde_json::from_str(text).unwrap();
        assert_eq!(entry.what, AuditEvent::Unknown);
    }
}
