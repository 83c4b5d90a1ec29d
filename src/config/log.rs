//! Which log to open, and how to connect to it.

use super::secrets;
use crate::cli::{KafkaFlags, LogFlags, LogPlaceFlags, defaults};
use crate::log::url::LogUrl;
use crate::log::{self, sqlite};
use crate::net;
use anyhow::{Context, ensure};
use std::path::PathBuf;
use std::sync::Arc;

/// The log and the topic that a command opens first.
#[derive(Debug, Clone)]
pub struct LogConfig {
    pub engine: EngineConfig,
    pub topic: String,
    /// How to create the topic if it does not exist. `None`: a missing topic is an error.
    pub create: Option<log::CreateTopic>,
    /// The value of `--partitions`. A topic with another number of partitions is an error. `None`: any number is fine.
    pub partitions_asked: Option<u32>,
    /// Whether the command has flags with which it creates a topic.
    pub may_create: bool,
}

/// Where the log is, and the settings of its engine.
#[derive(Debug, Clone)]
pub enum EngineConfig {
    Sqlite { path: PathBuf, settings: sqlite::Settings },
    Kafka(net::BrokerSettings),
}

/// Whether the command takes events in. If it does, `--max-db-bytes` has a default, because there are requests that can
/// be refused. Delivery alone writes commits and dead letters, which must not be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HasIngest {
    Yes,
    No,
}

/// The log to open: `--url`, or else the command's default. clap does not parse this flag, because clap's errors repeat
/// the value, and a URL may hold a password.
pub(super) fn url(flags: &LogPlaceFlags, default: fn() -> LogUrl) -> anyhow::Result<LogUrl> {
    match &flags.url {
        Some(text) => text.parse().context("--url"),
        None => Ok(default()),
    }
}

/// The default of `up`: a database in the working directory, so that one command needs nothing else.
pub(super) fn embedded_log() -> LogUrl {
    LogUrl::Sqlite(defaults::UP_DATABASE.into())
}

/// The default of the other commands: the address at which Kafka's own tools look for a broker.
pub(super) fn local_broker() -> LogUrl {
    LogUrl::Kafka(vec![defaults::BROKER.into()])
}

/// Whether these are the brokers of a command without `--url`.
pub fn is_default_broker(settings: &net::BrokerSettings) -> bool {
    settings.brokers == [defaults::BROKER]
}

impl LogConfig {
    pub(super) fn new(flags: &LogFlags, url: &LogUrl, ingest: HasIngest) -> anyhow::Result<Self> {
        let kafka = &flags.kafka;
        let partitions = flags.partitions.unwrap_or(defaults::PARTITIONS);
        let (engine, create) = match url {
            LogUrl::Sqlite(path) => {
                check_without_kafka(kafka)?;
                let max_db_bytes = (ingest == HasIngest::Yes).then_some(defaults::MAX_DB_BYTES);
                let settings = sqlite::Settings {
                    // Only what was typed: a default must not shorten a retention that another process was given.
                    retention: flags.retention,
                    dead_retention: flags.dead_retention,
                    max_db_bytes: flags.max_db_bytes.or(max_db_bytes),
                    create: true,
                };
                let retention = Some(flags.retention.unwrap_or(defaults::RETENTION));
                (
                    EngineConfig::Sqlite { path: path.clone(), settings },
                    Some(log::CreateTopic { partitions, retention }),
                )
            }
            LogUrl::Kafka(brokers) => {
                ensure!(
                    flags.max_db_bytes.is_none(),
                    "--max-db-bytes limits a database, but --url is Kafka: leave the flag out"
                );
                ensure!(
                    flags.create_topic || flags.retention.is_none(),
                    "--retention only applies to a topic that eventd creates on Kafka: add --create-topic, or set \
                     retention.ms of the existing topic"
                );
                let create = log::CreateTopic { partitions, retention: flags.retention };
                (EngineConfig::Kafka(brokers_config(brokers, kafka)?), flags.create_topic.then_some(create))
            }
        };
        Ok(Self {
            engine,
            topic: flags.place.topic.clone(),
            create,
            partitions_asked: flags.partitions,
            may_create: true,
        })
    }

    /// A log that exists. Neither its database nor its topic is created.
    pub(super) fn existing(place: &LogPlaceFlags, kafka: &KafkaFlags, url: &LogUrl) -> anyhow::Result<Self> {
        let engine = match url {
            LogUrl::Sqlite(path) => {
                check_without_kafka(kafka)?;
                let settings =
                    sqlite::Settings { retention: None, dead_retention: None, max_db_bytes: None, create: false };
                EngineConfig::Sqlite { path: path.clone(), settings }
            }
            LogUrl::Kafka(brokers) => EngineConfig::Kafka(brokers_config(brokers, kafka)?),
        };
        Ok(Self { engine, topic: place.topic.clone(), create: None, partitions_asked: None, may_create: false })
    }

    /// Makes a missing database or topic an error. A replay uses this, because it only reads what exists.
    pub(super) fn without_creation(mut self) -> Self {
        (self.create, self.may_create) = (None, false);
        if let EngineConfig::Sqlite { settings, .. } = &mut self.engine {
            settings.create = false;
        }
        self
    }
}

fn check_without_kafka(kafka: &KafkaFlags) -> anyhow::Result<()> {
    kafka.first_given().map_or(Ok(()), |flag| {
        anyhow::bail!(
            "{flag} is for Kafka, but --url is a database (sqlite:). Leave the flag out, or set --url to the brokers, \
             HOST:PORT[,HOST:PORT…]"
        )
    })
}

fn brokers_config(brokers: &[String], flags: &KafkaFlags) -> anyhow::Result<net::BrokerSettings> {
    let identity = flags.tls_cert_file.clone().zip(flags.tls_key_file.clone());
    let tls = net::TlsFiles { ca_file: flags.tls_ca_file.clone(), identity };
    let tls = match flags.tls || tls != net::TlsFiles::default() {
        true => Some(Arc::new(tls.config().map_err(anyhow::Error::msg).context("--tls")?)),
        false => None,
    };
    let sasl = match (flags.sasl_mechanism, &flags.sasl_username) {
        (Some(mechanism), Some(username)) => {
            let password = secrets::sasl_password(flags.sasl_password_file.as_deref())?;
            Some(net::Sasl { mechanism, username: username.clone(), password })
        }
        _ => None,
    };
    Ok(net::BrokerSettings { brokers: brokers.to_vec(), tls, sasl })
}
