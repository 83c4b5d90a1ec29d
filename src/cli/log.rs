//! Flags that every command has: the log, the connection to Kafka, and how the process stops and logs.

use super::{defaults, values};
use crate::net::SaslMechanism;
use crate::telemetry::LogFormat;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Which log to use.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogFlags {
    #[command(flatten)]
    pub place: LogPlaceFlags,

    /// Number of partitions of a topic that eventd creates [default: 3]
    ///
    /// All events of a user are in one partition. On Kafka, the number of partitions is also the largest number of dispatch
    /// processes that can share the work of one destination.
    ///
    /// If the flag is given and the existing topic has another number, eventd does not start. It never changes the number
    /// itself, because that would move users to other partitions and break the order of their events.
    #[arg(long, value_name = "N", env = "EVENTD_PARTITIONS", value_parser = values::partitions)]
    pub partitions: Option<u32>,

    /// On Kafka, create the topic if it does not exist
    ///
    /// Without this flag a missing topic is an error, because it may be a typing mistake in --topic. In a database the
    /// topic is always created.
    #[arg(long, env = "EVENTD_CREATE_TOPIC", value_parser = values::switch)]
    pub create_topic: bool,

    /// How long the log keeps events, for example 7d [default: 7d for a new topic; on Kafka, the cluster's default]
    ///
    /// Without this flag an existing topic keeps the retention that it has. On Kafka the flag only applies to a topic that
    /// eventd creates (--create-topic).
    #[arg(long, value_name = "DURATION", env = "EVENTD_RETENTION", value_parser = values::above_zero)]
    pub retention: Option<Duration>,

    /// How long the log keeps dead letters, for example 30d [default: 30d for a new topic of dead letters]
    ///
    /// Each destination has its own topic of dead letters. Without this flag an existing one keeps the retention that it
    /// has.
    #[arg(long, value_name = "DURATION", env = "EVENTD_DEAD_RETENTION", value_parser = values::above_zero)]
    pub dead_retention: Option<Duration>,

    /// Size of the database at which ingest starts to answer 503 [default: 64GiB; without ingest, no limit]
    ///
    /// The limit keeps a disk from filling up while a destination is down. Commits and dead letters may use 64MiB more, so
    /// that delivery continues. Not for Kafka.
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_DB_BYTES", value_parser = values::bytes)]
    pub max_db_bytes: Option<u64>,

    #[command(flatten)]
    pub kafka: KafkaFlags,
}

/// Where the log is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogPlaceFlags {
    /// Log: sqlite:PATH, or Kafka brokers HOST:PORT[,HOST:PORT…] [default: localhost:9092; in `up`, sqlite:eventd.db]
    ///
    /// sqlite:eventd.db is the embedded log, a database file. The commands up, ingest and dispatch create the file if it
    /// does not exist; its directory has to exist.
    ///
    /// localhost:9092 or h1:9092,h2:9092 is a Kafka cluster (version 2.8 or later). Some of its brokers are enough: the
    /// first one that answers names the others.
    #[arg(long, value_name = "URL", env = "EVENTD_URL", hide_env_values = true)]
    pub url: Option<String>,

    /// Topic of the events
    ///
    /// In a database the topic is created if it does not exist. On Kafka, --create-topic does that.
    #[arg(long, env = "EVENTD_TOPIC", default_value = defaults::TOPIC, value_parser = values::topic)]
    pub topic: String,
}

/// How to connect to the brokers of a Kafka cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection to Kafka")]
pub struct KafkaFlags {
    /// Use TLS to connect to the brokers
    ///
    /// eventd then trusts the certificate authorities of the system, or those of --tls-ca-file.
    #[arg(long, env = "EVENTD_TLS", value_parser = values::switch)]
    pub tls: bool,

    /// PEM file with the certificate authorities to trust [default: those of the system]; implies --tls
    #[arg(long, value_name = "PATH", env = "EVENTD_TLS_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,

    /// PEM file with the certificate chain of this client, for brokers that require one; implies --tls
    #[arg(long, value_name = "PATH", env = "EVENTD_TLS_CERT_FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert-file, without a passphrase
    #[arg(long, value_name = "PATH", env = "EVENTD_TLS_KEY_FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,

    /// How to log in to the brokers: plain, scram-sha-256 or scram-sha-512
    ///
    /// plain sends the password unencrypted, so use it only with --tls.
    #[arg(long, value_name = "NAME", env = "EVENTD_SASL_MECHANISM", requires = "sasl_username", value_parser = values::mechanism)]
    pub sasl_mechanism: Option<SaslMechanism>,

    /// User name for the login
    #[arg(long, value_name = "NAME", env = "EVENTD_SASL_USERNAME", requires = "sasl_mechanism")]
    pub sasl_username: Option<String>,

    /// File with the password for the login, in one line
    ///
    /// Line breaks at the end do not count. Without this flag, the variable EVENTD_SASL_PASSWORD has to hold the password.
    #[arg(
        long,
        value_name = "PATH",
        env = "EVENTD_SASL_PASSWORD_FILE",
        hide_env_values = true,
        requires = "sasl_mechanism"
    )]
    pub sasl_password_file: Option<PathBuf>,
}

impl KafkaFlags {
    /// The first of these flags that was given, for an error. The others need one of these.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.tls, "--tls"),
            (self.tls_ca_file.is_some(), "--tls-ca-file"),
            (self.tls_cert_file.is_some(), "--tls-cert-file"),
            (self.sasl_mechanism.is_some(), "--sasl-mechanism"),
        ];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, flag)| flag)
    }
}

/// How the process stops and what it logs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessFlags {
    /// How long a stop (SIGTERM, SIGINT) waits for work in progress, for example 30s
    ///
    /// In `up`, ingest has the first half of this time and the destinations have the second half. After it the process
    /// closes the database and writes its last log lines, which takes up to 17s in the worst case. If a supervisor kills
    /// the process after some time, set that time to this value and 20s more.
    ///
    /// A second signal stops at once.
    #[arg(long, value_name = "DURATION", env = "EVENTD_DRAIN", default_value = defaults::DRAIN, value_parser = values::duration)]
    pub drain: Duration,

    /// Format of the log lines on standard error: text or json
    ///
    /// The variable EVENTD_LOG selects lines: a level (off, error, warn, info, debug, trace), or levels of modules, for
    /// example EVENTD_LOG=eventd::dispatch=debug,info. The default is info.
    #[arg(long, value_name = "FORMAT", env = "EVENTD_LOG_FORMAT", default_value = defaults::LOG_FORMAT)]
    pub log_format: LogFormat,
}
