//! Opens the log of a command.

use super::Misconfigured;
use crate::config::{EngineConfig, LogConfig, is_default_broker};
use crate::core::side_topics::is_side_topic;
use crate::group::Groups;
use crate::group::kafka::KafkaGroups;
use crate::group::sqlite::SqliteGroups;
use crate::log::kafka::Kafka;
use crate::log::sqlite::Sqlite;
use crate::log::{Engine, Log, OpenError};
use anyhow::{bail, ensure};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long listing topics may take. It is only for a message.
const LIST_TOPICS_MAX: Duration = Duration::from_secs(3);

/// The most topics that a message names.
const TOPICS_SHOWN_MAX: usize = 10;

/// An engine with the topic that a command works on, and the groups of the topic's destinations.
#[derive(Debug, Clone)]
pub(super) struct OpenLog {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) groups: Arc<dyn Groups>,
    pub(super) log: Arc<dyn Log>,
}

/// What a command does with its log. With read access, the database may be on a disk that is read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogAccess {
    Read,
    Write,
}

/// Opens the log and its topic. Creates them if they do not exist and may be created.
///
/// # Errors
/// The log cannot be opened, the topic does not exist, or it has another number of partitions than `--partitions` says.
pub(super) async fn open(config: &LogConfig, access: LogAccess) -> anyhow::Result<OpenLog> {
    let (engine, groups): (Arc<dyn Engine>, Arc<dyn Groups>) = match &config.engine {
        EngineConfig::Sqlite { path, settings } => {
            let engine = match access {
                LogAccess::Read => Sqlite::open_to_read(path).await?,
                LogAccess::Write => Sqlite::open(path, *settings).await?,
            };
            (engine.clone(), Arc::new(SqliteGroups::new(engine)))
        }
        EngineConfig::Kafka(settings) => {
            let engine = match Kafka::connect(settings.clone()).await {
                // Most likely the operator gave no --url, and meant a database.
                Err(OpenError::Unavailable(why)) if is_default_broker(settings) => bail!(
                    "no Kafka broker answers at {} (--url): {why}. For a database, write --url sqlite:eventd.db",
                    settings.brokers.join(",")
                ),
                Err(OpenError::Unavailable(why)) => {
                    bail!("{why}. Correct --url, which names brokers of a Kafka cluster; `eventd up` works without one")
                }
                connected => connected?,
            };
            (engine.clone(), Arc::new(KafkaGroups::new(engine)))
        }
    };
    match open_topic(&*engine, config).await {
        Ok(log) => Ok(OpenLog { engine, groups, log }),
        Err(error) => {
            engine.close().await;
            Err(error)
        }
    }
}

async fn open_topic(engine: &dyn Engine, config: &LogConfig) -> anyhow::Result<Arc<dyn Log>> {
    let log = match engine.open(&config.topic, config.create).await {
        Err(missing @ OpenError::Missing { .. }) => {
            let advice = match config.may_create {
                true => "create it, add --create-topic so that eventd creates it, or correct --topic",
                false => "correct --topic or --url",
            };
            let existing = existing_topics(engine).await;
            return Err(Misconfigured(format!("{missing}: {advice}{existing}")).into());
        }
        opened => opened?,
    };
    if let Some(asked) = config.partitions_asked {
        let existing = log.partitions().await?;
        ensure!(
            existing == asked,
            Misconfigured(format!(
                "--partitions {asked}: the topic {:?} has {existing} partitions already, and eventd does not change the \
                 number, because users would move to other partitions. Leave the flag out, or write --partitions \
                 {existing}",
                config.topic
            ))
        );
    }
    Ok(log)
}

/// Names topics of the log for the message that a topic does not exist, because the name may be mistyped. Empty if the
/// log does not list its topics in time.
async fn existing_topics(engine: &dyn Engine) -> String {
    let Ok(Ok(topics)) = timeout(LIST_TOPICS_MAX, engine.topics()).await else { return String::new() };
    list_topics(topics.into_iter().filter(|name| !is_side_topic(name)).collect())
}

fn list_topics(mut topics: Vec<String>) -> String {
    if topics.is_empty() {
        return String::new();
    }
    topics.sort();
    let shown: Vec<String> = topics.iter().take(TOPICS_SHOWN_MAX).map(|name| format!("{name:?}")).collect();
    let more = match topics.len().saturating_sub(TOPICS_SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(". The log has these topics: {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_ten_topics_and_counts_the_others() {
        let topics = |count: u32| list_topics((10..10 + count).rev().map(|number| format!("t{number}")).collect());
        assert_eq!(topics(0), "");
        assert_eq!(topics(2), ". The log has these topics: \"t10\", \"t11\"");
        assert!(topics(12).ends_with("\"t18\", \"t19\" and 2 more"), "{}", topics(12));
    }
}
