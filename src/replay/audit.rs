//! The audit topic `<topic>.audit`: who replayed what, when, and how it ended.
//!
//! The records are in the log itself, so they are as safe as the events. The first record of a replay holds everything
//! that `--resume` needs except the progress, which is the state of the replay's group.

use super::plan::{DeliveryCounts, Plan};
use super::select::Selection;
use super::{RETRIES_MAX, RETRY_DELAY};
use crate::clock::now_ms;
use crate::core::event::Record;
use crate::core::side_topics::audit_topic;
use crate::dispatch::dead_letter::{DESTINATION, TOPIC};
use crate::limits::FETCH_BYTES_MAX;
use crate::log::{CreateTopic, Engine, FetchError, Log, OpenError};
use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

/// All records are in one partition, so that they are read in the order in which they were written.
const PARTITION: u32 = 0;

/// One record of the audit topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    pub id: String,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub destination: String,
    #[serde(rename = "by")]
    pub operator: Operator,
    #[serde(flatten)]
    pub event: AuditEvent,
}

/// The person and the process that did something, as far as the machine knows.
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
        /// Events that were left, according to the replay's own commits.
        left: u64,
        /// Dead letters that other replays have redriven since this replay last ran. They are not left.
        #[serde(default, skip_serializing_if = "is_zero")]
        redriven_meanwhile: u64,
    },
    ReplayEnded {
        outcome: ReplayOutcome,
        counts: DeliveryCounts,
        /// Why it ended, unless it finished.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// From now on, dispatch signs the destination's requests, or no longer signs them.
    DestinationSigned {
        signed: bool,
    },
    /// A newer eventd wrote a record that this one does not know.
    #[serde(other)]
    Unknown,
}

/// What a replay was asked for, and the plan that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayStart {
    /// The target of the destination, without passwords.
    pub to: String,
    /// What is replayed, in words for the operator.
    #[serde(rename = "what")]
    pub title: String,
    pub selection: Selection,
    pub plan: Plan,
    /// A rewind or fast-forward: it moves the destination's position, and delivers nothing itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

/// How a replay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOutcome {
    /// Everything is settled.
    Finished,
    /// Events are left, and `--resume` delivers them.
    Stopped,
    /// Events are left, and a person has to look at the error before `--resume`.
    Failed,
}

/// The audit topic of one main topic.
#[derive(Debug)]
pub struct AuditLog {
    log: Arc<dyn Log>,
    topic: String,
    operator: Operator,
}

/// Everything that the audit records say about one replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayHistory {
    pub destination: String,
    pub operator: Operator,
    pub started_ms: i64,
    pub started: ReplayStart,
    /// How it last ended. `None`: it is running, or its process was killed.
    pub ended: Option<ReplayEnd>,
    /// When it was last resumed.
    pub resumed_ms: Option<i64>,
    /// The sum of all runs that ended.
    pub counts: DeliveryCounts,
    /// Events that were delivered or given up by runs whose processes were killed. It is known once a later run has read
    /// the commits.
    pub settled_by_killed: u64,
    /// Dead letters that were redriven between two of its runs. Usually another replay has redriven them.
    pub redriven_meanwhile: u64,
    /// The number of the record with which its last run began. Records of the audit topic are numbered in their order.
    pub last_run: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The end of a run of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayEnd {
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub outcome: ReplayOutcome,
    /// Why it ended, unless it finished.
    pub why: String,
}

impl AuditLog {
    /// Opens the audit topic. Creates it if it does not exist.
    pub async fn open(engine: &dyn Engine, log: &dyn Log) -> anyhow::Result<Self> {
        let partitions = log.partitions().await?;
        // Audit records are kept for as long as the log exists.
        let create = CreateTopic { partitions, retention: None };
        let topic = log.topic().to_owned();
        let log = engine.open(&audit_topic(&topic), Some(create)).await.context("cannot open the audit topic")?;
        Ok(Self { log, topic, operator: Operator::of_this_process() })
    }

    /// Opens the audit topic only if it exists. `None`: nothing was replayed yet.
    pub async fn open_existing(engine: &dyn Engine, topic: &str) -> anyhow::Result<Option<Self>> {
        match engine.open(&audit_topic(topic), None).await {
            Ok(log) => Ok(Some(Self { log, topic: topic.to_owned(), operator: Operator::of_this_process() })),
            Err(OpenError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes one record, and waits until it is durable.
    pub async fn write(&self, id: &str, destination: &str, event: AuditEvent) -> anyhow::Result<()> {
        let (at_ms, operator) = (now_ms(), self.operator.clone());
        let record = AuditRecord { id: id.to_owned(), at_ms, destination: destination.to_owned(), operator, event };
        let headers = [(TOPIC, self.topic.as_str()), (DESTINATION, destination)];
        let headers = headers.map(|(name, value)| (name, Some(value.as_bytes())));
        let record = Record::new(Some(id.as_bytes()), Some(&serde_json::to_vec(&record)?), &headers, at_ms);
        let mut failures = 0;
        while let Err(failure) = self.log.append(PARTITION, vec![record.clone()]).await {
            // The failed append may have stored the record. Readers treat a repeated record as one.
            failures += 1;
            if failures > RETRIES_MAX {
                return Err(failure).context("cannot write the audit record");
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
        Ok(())
    }

    /// The history of every replay, by id, the oldest first.
    pub async fn histories(&self) -> anyhow::Result<BTreeMap<String, ReplayHistory>> {
        let (mut histories, mut number) = (BTreeMap::new(), 0);
        self.read(|record| {
            number += 1;
            add_to_histories(&mut histories, record, number);
        })
        .await?;
        Ok(histories)
    }

    /// Whether the destination's requests are signed, according to the last record that dispatch wrote.
    pub async fn is_signed(&self, destination: &str) -> anyhow::Result<bool> {
        let mut is_signed = false;
        self.read(|record| match record.event {
            AuditEvent::DestinationSigned { signed } if record.destination == destination => is_signed = signed,
            _ => {}
        })
        .await?;
        Ok(is_signed)
    }

    /// Reads every record, in the order in which they were written.
    async fn read(&self, mut each: impl FnMut(AuditRecord) + Send) -> anyhow::Result<()> {
        let end = self.log.latest(PARTITION).await?;
        let (mut next_offset, mut failures) = (self.log.earliest(PARTITION).await?, 0);
        while next_offset < end {
            match self.log.fetch(PARTITION, next_offset, FETCH_BYTES_MAX, Duration::ZERO).await {
                Ok(fetched) if fetched.next > next_offset => {
                    for event in &fetched.events {
                        self.check_topic_of(&event.record)?;
                        let text = event.record.value().unwrap_or_default();
                        let record = serde_json::from_slice(text).map_err(|error| {
                            anyhow!(
                                "cannot read the audit record at {:?} offset {}: {error}",
                                self.log.topic(),
                                event.offset
                            )
                        })?;
                        each(record);
                    }
                    next_offset = fetched.next;
                }
                Ok(_) | Err(FetchError::Unavailable(_)) if failures < RETRIES_MAX => {
                    failures += 1;
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Ok(_) => bail!("{:?} returns no records at offset {next_offset}", self.log.topic()),
                Err(error) => return Err(error).context("cannot read the audit records"),
            }
        }
        Ok(())
    }

    /// Another topic may use this name for its events. Refuse to read those.
    fn check_topic_of(&self, record: &Record) -> anyhow::Result<()> {
        match record.header_text(TOPIC) {
            Some(topic) if topic == self.topic => Ok(()),
            Some(other) => {
                bail!("{:?} holds records of topic {other:?}, not only of {:?}", self.log.topic(), self.topic)
            }
            None => bail!("{:?} holds records that are not audit records of {:?}", self.log.topic(), self.topic),
        }
    }
}

/// `number` is greater for each further record.
fn add_to_histories(histories: &mut BTreeMap<String, ReplayHistory>, record: AuditRecord, number: u64) {
    match record.event {
        AuditEvent::ReplayStarted(started) => {
            histories.entry(record.id).or_insert(ReplayHistory {
                destination: record.destination,
                operator: record.operator,
                started_ms: record.at_ms,
                started: *started,
                ended: None,
                resumed_ms: None,
                counts: DeliveryCounts::default(),
                settled_by_killed: 0,
                redriven_meanwhile: 0,
                last_run: number,
            });
        }
        AuditEvent::ReplayResumed { left, redriven_meanwhile } => {
            if let Some(history) = histories.get_mut(&record.id) {
                history.resumed(record.at_ms, left, redriven_meanwhile);
                history.last_run = number;
            }
        }
        AuditEvent::ReplayEnded { outcome, counts, why } => {
            if let Some(history) = histories.get_mut(&record.id) {
                // A second end without a start in between is a repeat of the same record.
                if history.ended.is_none() {
                    history.counts = history.counts.and(counts);
                }
                history.ended = Some(ReplayEnd { at_ms: record.at_ms, outcome, why });
            }
        }
        AuditEvent::DestinationSigned { .. } | AuditEvent::Unknown => {}
    }
}

impl ReplayHistory {
    /// Whether this replay has redriven dead letters of the same destination since the last run of the other one began. Only
    /// one process at a time redrives them, so each of them is stopped before the next one begins.
    pub fn redrives_after(&self, other: &Self) -> bool {
        self.started.selection.dead && self.destination == other.destination && self.last_run > other.last_run
    }

    /// A run begins, and finds this many events left by the commits of earlier runs.
    fn resumed(&mut self, at_ms: i64, left: u64, redriven_meanwhile: u64) {
        self.ended = None;
        // An append that was tried again may have stored the record twice.
        if self.resumed_ms.replace(at_ms) == Some(at_ms) {
            return;
        }
        self.redriven_meanwhile += redriven_meanwhile;
        let settled = self.started.plan.events.saturating_sub(left + self.redriven_meanwhile);
        self.settled_by_killed = settled.saturating_sub(self.counts.settled()).max(self.settled_by_killed);
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.host)
    }
}

impl Operator {
    pub(crate) fn of_this_process() -> Self {
        // A service or a container often has no name of its user in the environment.
        let user_id = || {
            let process = std::fs::metadata("/proc/self");
            process.map_or_else(|_| "unknown".to_owned(), |process| format!("uid-{}", process.uid()))
        };
        let variable = |name| std::env::var(name).ok().filter(|user: &String| !user.is_empty());
        let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(user_id);
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

    fn record(id: &str, at_ms: i64, event: AuditEvent) -> AuditRecord {
        let operator = Operator { user: "ada".into(), host: "box".into(), pid: 1 };
        AuditRecord { id: id.into(), at_ms, destination: "billing".into(), operator, event }
    }

    fn started() -> AuditEvent {
        let (selection, plan) = (Selection::default(), Plan { events: 7, ..Plan::default() });
        let (to, title) = ("null:".into(), "all".into());
        AuditEvent::ReplayStarted(Box::new(ReplayStart { to, title, selection, plan, moves: false }))
    }

    fn resumed(left: u64, redriven_meanwhile: u64) -> AuditEvent {
        AuditEvent::ReplayResumed { left, redriven_meanwhile }
    }

    fn ended(outcome: ReplayOutcome, delivered: u64) -> AuditEvent {
        let counts = DeliveryCounts { delivered, given_up: 1, dropped: delivered, failed: 2 };
        AuditEvent::ReplayEnded { outcome, counts, why: String::new() }
    }

    #[test]
    fn a_history_is_what_its_records_say_in_their_order() {
        let mut histories = BTreeMap::new();
        for one in [
            record("a", 1, started()),
            record("b", 2, started()),
            record("a", 3, ended(ReplayOutcome::Stopped, 4)),
            record("a", 3, ended(ReplayOutcome::Stopped, 4)),
            record("a", 5, resumed(2, 0)),
            record("unknown", 6, ended(ReplayOutcome::Finished, 1)),
            record("a", 7, ended(ReplayOutcome::Finished, 1)),
        ] {
            let stored = serde_json::to_vec(&one).unwrap();
            add_to_histories(&mut histories, serde_json::from_slice(&stored).unwrap(), 0);
        }
        assert_eq!(histories.keys().collect::<Vec<_>>(), ["a", "b"]);
        let finished = ReplayEnd { at_ms: 7, outcome: ReplayOutcome::Finished, why: String::new() };
        assert_eq!(histories["a"].ended, Some(finished));
        assert_eq!(histories["a"].counts, DeliveryCounts { delivered: 5, given_up: 2, dropped: 5, failed: 4 });
        assert_eq!((histories["a"].settled_by_killed, histories["a"].redriven_meanwhile), (0, 0));
        assert_eq!((histories["a"].started_ms, histories["a"].started.plan.events), (1, 7));
        assert_eq!(histories["b"].ended, None, "it is running, or its process was killed");
    }

    #[test]
    fn what_killed_runs_and_other_replays_settled_is_known_after_a_resume() {
        let mut histories = BTreeMap::new();
        // Of 7 events, the first run settles 2 before it is killed, and the second one 1. Other replays redrive 2.
        for one in [
            record("a", 1, started()),
            record("a", 2, resumed(5, 0)),
            record("a", 3, resumed(2, 2)),
            record("a", 3, resumed(2, 2)),
            record("a", 4, ended(ReplayOutcome::Stopped, 0)),
        ] {
            add_to_histories(&mut histories, one, 0);
        }
        let history = &histories["a"];
        assert_eq!((history.settled_by_killed, history.redriven_meanwhile, history.counts.settled()), (3, 2, 1));
        add_to_histories(&mut histories, record("a", 5, resumed(1, 0)), 0);
        assert_eq!(histories["a"].settled_by_killed, 3, "the run that ended has counted its own event");
    }

    #[test]
    fn only_a_later_redrive_of_the_same_destination_can_have_marked_dead_letters_meanwhile() {
        let redrive = |mut record: AuditRecord| {
            if let AuditEvent::ReplayStarted(started) = &mut record.event {
                started.selection.dead = true;
            }
            record
        };
        let to_crm = |record| AuditRecord { destination: "crm".into(), ..record };
        let mut histories = BTreeMap::new();
        let records = [
            redrive(record("before", 1, started())),
            redrive(record("own", 2, started())),
            redrive(to_crm(record("crm", 3, started()))),
            record("topic", 4, started()),
            redrive(record("after", 5, started())),
        ];
        for (one, number) in records.into_iter().zip(1..) {
            add_to_histories(&mut histories, one, number);
        }
        let after = |histories: &BTreeMap<String, ReplayHistory>| {
            let own = &histories["own"];
            let after = histories.iter().filter(|(_, other)| other.redrives_after(own));
            after.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(after(&histories), ["after"]);
        // The clock of another machine may be wrong, so the order of the records counts.
        add_to_histories(&mut histories, record("before", 0, resumed(1, 0)), 6);
        assert_eq!(after(&histories), ["after", "before"]);
        add_to_histories(&mut histories, record("own", 0, resumed(1, 0)), 7);
        assert!(after(&histories).is_empty());
    }

    #[test]
    fn a_record_of_a_newer_eventd_is_skipped() {
        let text = r#"{"id":"a","at_ms":1,"destination":"d","by":{"user":"u","host":"h","pid":1},"event":"rewind-moon","x":1}"#;
        let record: AuditRecord = serde_json::from_str(text).unwrap();
        assert_eq!(record.event, AuditEvent::Unknown);
    }

    #[test]
    fn a_record_keeps_the_field_names_of_earlier_versions() {
        let stored: serde_json::Value = serde_json::to_value(record("a", 1, started())).unwrap();
        assert_eq!((&stored["by"]["user"], &stored["what"]), (&"ada".into(), &"all".into()), "{stored}");
        assert_eq!((&stored["event"], &stored["plan"]["events"]), (&"replay-started".into(), &7.into()), "{stored}");
    }
    #[test]
    fn an_end_that_an_earlier_version_wrote_has_dropped_no_event() {
        let text = r#"{"id":"a","at_ms":1,"destination":"d","by":{"user":"u","host":"h","pid":1},"event":"replay-ended","outcome":"finished","counts":{"delivered":3,"given_up":1,"failed":4}}"#;
        let AuditEvent::ReplayEnded { counts, .. } = serde_json::from_str::<AuditRecord>(text).unwrap().event else {
            panic!("it is not an end: {text}")
        };
        assert_eq!(counts, DeliveryCounts { delivered: 3, given_up: 1, dropped: 0, failed: 4 });
    }
}
