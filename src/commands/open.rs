//! Opens the log of a command.

use super::Misconfigured;
use crate::config::{EngineConfig, LogConfig};
use crate::group::Groups;
use crate::group::kafka::KafkaGroups;
use crate::group::sqlite::SqliteGroups;
use crate::log::kafka::Kafka;
use crate::log::sqlite::Sqlite;
use crate::log::{Engine, Log, OpenError};
use anyhow::{Context, ensure};
use std::sync::Arc;

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
                Err(unavailable @ OpenError::Unavailable(_)) => Err(unavailable).context(
                    "cannot connect to Kafka: --url names brokers of a cluster. `eventd up` works without a cluster",
                )?,
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
            let advice = "create it, add --create-topic so that eventd creates it, or correct --topic";
            return Err(Misconfigured(format!("{missing}: {advice}")).into());
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
