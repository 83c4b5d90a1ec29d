//! The command line, exactly as typed: each flag with its environment variable, its default and its unit. What a single
//! value can be asked about is asked here (a unit, a zero that makes no sense), so that the error names the flag and the
//! exit code is 2; what concerns several of them is asked in [`config`](crate::config).
//!
//! A flag wins over its environment variable, which wins over the default. A variable that is set but empty is an error,
//! unless its flag is given: it is more often a value that is missing than a wish for the default.

use crate::config::LogFormat;
use crate::core::names;
use crate::core::partition::Partitioner;
use crate::core::side_topics::check_main_topic;
use crate::core::token_bucket::Rate;
use crate::dispatch::{OnGap, Start};
use crate::limits;
use crate::net::SaslMechanism;
use crate::replay::position::Position;
use bytesize::ByteSize;
use clap::builder::{BoolishValueParser, Resettable};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Events of users in over HTTP, kept in a durable log, delivered in order per user and at least once.
#[derive(Debug, Parser)]
#[command(name = "eventd", version, max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the arguments (the program's name first) and the environment.
    ///
    /// # Errors
    /// What clap says, which includes the text of `--help` and `--version`; and a variable that is empty.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let mut empty = Vec::new();
        let mut command = Self::command().mut_subcommands(|mode| {
            let name = mode.get_name().to_owned();
            mode.mut_args(|flag| match is_empty_in_environment(&flag) {
                true => {
                    empty.push((name.clone(), flag.clone()));
                    flag.env(Resettable::Reset)
                }
                false => flag,
            })
        });
        let refused = |command: &mut clap::Command, flag: &Arg| {
            let (variable, flag) = (flag.get_env().unwrap_or_default().display(), flag.get_long().unwrap_or_default());
            let what = format!("the variable {variable}, which sets --{flag}, is empty: set it, or unset it");
            command.error(ErrorKind::InvalidValue, what)
        };
        let matches = match command.try_get_matches_from_mut(&arguments) {
            Ok(matches) => matches,
            // What is missing may be what is empty.
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                let used = |mode: &str| arguments.iter().skip(1).any(|word| word == mode);
                return Err(match empty.iter().find(|(mode, _)| used(mode)) {
                    Some((_, flag)) => refused(&mut command, flag),
                    None => error,
                });
            }
            Err(error) => return Err(error),
        };
        if let Some((mode, typed)) = matches.subcommand() {
            let is_typed = |flag: &Arg| typed.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine);
            if let Some((_, flag)) = empty.iter().find(|(of, flag)| of == mode && !is_typed(flag)) {
                return Err(refused(&mut command, flag));
            }
        }
        let mut cli = Self::from_arg_matches(&matches)?;
        if let Some((_, typed)) = matches.subcommand() {
            cli.command.tidy(typed);
        }
        Ok(cli)
    }
}

/// Whether its variable is set, to nothing or to line breaks alone.
fn is_empty_in_environment(flag: &Arg) -> bool {
    let value = flag.get_env().and_then(std::env::var_os);
    value.is_some_and(|value| value.to_str().is_some_and(|value| value.trim().is_empty()))
}

impl Command {
    /// Line breaks around a destination or a file that a variable holds do not count, nor do empty lines of a list: most
    /// ways to write a variable down end it with a line break.
    fn tidy(&mut self, typed: &ArgMatches) {
        let from_variable = |id: &str| typed.value_source(id) == Some(ValueSource::EnvVariable);
        let trimmed = |text: &mut String| *text = text.trim_matches(['\r', '\n']).to_owned();
        let lines = |list: &mut Vec<String>| {
            list.iter_mut().for_each(trimmed);
            list.retain(|line| !line.is_empty());
        };
        let delivery = match self {
            Self::Ingest(_) => return,
            Self::Up(up) => {
                if from_variable("destinations") {
                    lines(&mut up.destinations);
                }
                &mut up.delivery
            }
            Self::Dispatch(dispatch) => {
                if from_variable("destination") {
                    trimmed(&mut dispatch.destination);
                }
                &mut dispatch.delivery
            }
            Self::Replay(replay) => {
                if from_variable("destination") {
                    replay.destination.iter_mut().for_each(trimmed);
                }
                &mut replay.delivery
            }
        };
        if from_variable("webhook_secret_files") {
            lines(&mut delivery.webhook_secret_files);
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take events in and deliver them to any number of destinations, in one process
    #[command(after_help = AFTER_HELP)]
    Up(Up),
    /// Take events in over HTTP: POST /events
    #[command(after_help = AFTER_HELP)]
    Ingest(Ingest),
    /// Deliver the topic to one destination
    #[command(after_help = AFTER_HELP)]
    Dispatch(Dispatch),
    /// Deliver again what a destination had: shows a plan first, and does nothing more without --execute
    #[command(after_help = REPLAY_EXIT_CODES)]
    Replay(Replay),
}

const AFTER_HELP: &str = "Exit codes: 0 drained; 1 a runtime failure; 2 usage or configuration; \
    3 stopped with work left, by --drain or the second signal (undelivered events are
      delivered again; requests without an answer are the client's to repeat)

Memory is bounded by the sum of twice --max-pending, --window-bytes, 40KiB for each of --max-connections, 64KiB for \
    each of --concurrency, 256 bytes for each of --window, and fixed parts of the log and of each destination. A start \
    tells the sum as memory_bound.";

const REPLAY_EXIT_CODES: &str =
    "Exit codes: 0 done, or a plan alone; 1 a runtime failure, or a range outside the log; \
    2 usage or configuration;
    3 stopped with work left, by a signal or --stop-after-failures: --resume ID goes on";

#[derive(Debug, Args)]
pub struct Up {
    #[command(flatten)]
    pub shared: Shared,
    #[command(flatten)]
    pub endpoint: Endpoint,

    /// Where to deliver: a path, http(s)://…, - or null:, with NAME= before it to name it. Repeat it for several
    /// destinations; in the environment, one a line (empty lines do not count)
    #[arg(long = "dest", value_name = "[NAME=]DEST", env = "EVENTD_DEST", hide_env_values = true, value_delimiter = '\n', help_heading = DELIVERY)]
    pub destinations: Vec<String>,

    #[command(flatten)]
    pub delivery: Delivery,
}

#[derive(Debug, Args)]
pub struct Ingest {
    #[command(flatten)]
    pub shared: Shared,
    #[command(flatten)]
    pub endpoint: Endpoint,
}

#[derive(Debug, Args)]
pub struct Dispatch {
    #[command(flatten)]
    pub shared: Shared,

    /// Where to deliver: a path (file-1, file:out/log.jsonl), http(s)://…, - (standard output) or null:, with NAME=
    /// before it to name it
    #[arg(long = "dest", value_name = "[NAME=]DEST", env = "EVENTD_DEST", hide_env_values = true, help_heading = DELIVERY)]
    pub destination: String,

    /// Where another process holds this destination: wait until it lets go, instead of ending with an error
    #[arg(long, env = "EVENTD_STANDBY", value_parser = BoolishValueParser::new(), help_heading = DELIVERY)]
    pub standby: bool,

    #[command(flatten)]
    pub delivery: Delivery,
}

/// What is delivered again is said on the command line alone: no environment variable starts a replay.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("selection").multiple(true)))]
pub struct Replay {
    #[command(flatten)]
    pub shared: Shared,

    /// The destination, by the name that dispatch has: what it had is delivered to it again. NAME=DEST delivers what
    /// NAME had to somewhere else
    #[arg(long = "dest", value_name = "[NAME=]DEST", env = "EVENTD_DEST", hide_env_values = true, help_heading = DELIVERY, required_unless_present = "list")]
    pub destination: Option<String>,

    #[command(flatten)]
    pub delivery: Delivery,

    /// The beginning: an offset (480), offsets of partitions (p0:480,p2:17), a time (2026-01-02T10:30:00Z; local: 2026-01-02
    /// 10:30, or 10:30 for today; @1767350000 for seconds since 1970) or an age (2h). A range by time has every event that was
    /// accepted in it, also if the log does not have them in the order of time
    #[arg(long, value_name = "PLACE", value_parser = place, group = "selection", help_heading = REPLAY)]
    pub from: Option<Position>,

    /// The end, which is not part of it, in the same way [default: the end of the log]
    #[arg(long, value_name = "PLACE", value_parser = place, group = "selection", help_heading = REPLAY)]
    pub until: Option<Position>,

    /// The destination's dead letters, and not the topic: all that were not redriven yet
    #[arg(long, conflicts_with_all = ["from", "until"], group = "selection", help_heading = REPLAY)]
    pub dead: bool,

    /// Dead letters that were given up for this reason alone, exhausted or refused
    #[arg(long = "reason", value_name = "REASON", value_parser = ["exhausted", "refused"], requires = "dead", conflicts_with_all = ["from", "until"], group = "selection", help_heading = REPLAY)]
    pub reasons: Vec<String>,

    /// Dead letters that were given up since then alone: a time or an age
    #[arg(long, value_name = "PLACE", value_parser = moment, requires = "dead", conflicts_with_all = ["from", "until"], group = "selection", help_heading = REPLAY)]
    pub since: Option<Position>,

    /// Of this user alone. Repeat it for several; @FILE has one a line
    #[arg(long = "user", value_name = "USER|@FILE", group = "selection", help_heading = REPLAY)]
    pub users: Vec<String>,

    /// The event with this id alone. Repeat it for several; @FILE has one a line
    #[arg(long = "id", value_name = "ID|@FILE", group = "selection", help_heading = REPLAY)]
    pub ids: Vec<String>,

    /// At most so many events: the first ones of the lowest partition, then those of the next
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), group = "selection", help_heading = REPLAY)]
    pub limit: Option<u64>,

    /// What came from a replay too; of dead letters, those that were redriven before
    #[arg(long, group = "selection", help_heading = REPLAY)]
    pub again: bool,

    /// Deliver. Without it, the plan is all
    #[arg(long, help_heading = REPLAY)]
    pub execute: bool,

    /// Send requests without a signature. Without it, a replay that has no --webhook-secret-file is refused if dispatch signs
    /// the destination's requests
    #[arg(long, help_heading = REPLAY)]
    pub unsigned: bool,

    /// Go on with the replay of this id, where it stopped
    #[arg(long, value_name = "ID", value_parser = replay_id, conflicts_with = "selection", help_heading = REPLAY)]
    pub resume: Option<String>,

    /// Deliver nothing: move the destination's own position back to --from, so that dispatch, running or stopped,
    /// delivers everything from there on again
    #[arg(long, requires = "from", conflicts_with_all = ["until", "users", "ids", "limit", "again", "dead", "resume", "list", "rate"], help_heading = REPLAY)]
    pub rewind: bool,

    /// Deliver nothing: move the destination's own position ahead, so that dispatch, running or stopped, leaves out what
    /// stands before this place and was not delivered (0s is everything)
    #[arg(long, value_name = "PLACE", value_parser = place, conflicts_with_all = ["selection", "resume", "list", "rate", "rewind"], help_heading = REPLAY)]
    pub fast_forward: Option<Position>,

    /// Show what was replayed so far
    #[arg(long, conflicts_with_all = ["selection", "resume", "execute"], help_heading = REPLAY)]
    pub list: bool,

    /// Plan, summary and list as JSON, a line each
    #[arg(long, help_heading = REPLAY)]
    pub json: bool,

    /// The most attempts in a time: 500/s, 30/m [default: as many as the destination takes]
    #[arg(long, value_name = "RATE", env = "EVENTD_RATE", value_parser = rate, help_heading = REPLAY)]
    pub rate: Option<Rate>,

    /// Stop after so many failed attempts in a row; 0 is never
    #[arg(long, value_name = "N", env = "EVENTD_STOP_AFTER_FAILURES", default_value = "100", help_heading = REPLAY)]
    pub stop_after_failures: u64,
}

const REPLAY: &str = "Replay";

/// What every mode has: the log, how to stop, how to speak.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct Shared {
    /// The log: sqlite:PATH, a file that is made where it is missing, or the brokers of a Kafka cluster,
    /// HOST:PORT[,HOST:PORT…] [default: localhost:9092; in `up`, sqlite:eventd.db]
    #[arg(long, value_name = "URL", env = "EVENTD_URL", hide_env_values = true)]
    pub url: Option<String>,

    /// The topic
    #[arg(long, env = "EVENTD_TOPIC", default_value = "user-events", value_parser = topic)]
    pub topic: String,

    /// Partitions of a topic that is made; an existing topic with another count is an error, if this is given [default: 3]
    #[arg(long, value_name = "N", env = "EVENTD_PARTITIONS", value_parser = partitions)]
    pub partitions: Option<u32>,

    /// Make the topic on Kafka, where it is missing. (In a database it always is.)
    #[arg(long, env = "EVENTD_CREATE_TOPIC", value_parser = BoolishValueParser::new())]
    pub create_topic: bool,

    /// How long events are kept, from now on; without it an existing topic keeps what it has [default: 7d, where the
    /// topic is made; on Kafka, the cluster's]
    #[arg(long, value_name = "DURATION", env = "EVENTD_RETENTION", value_parser = above_zero)]
    pub retention: Option<Duration>,

    /// How long dead letters are kept, in the same way [default: 30d, where their topic is made]
    #[arg(long, value_name = "DURATION", env = "EVENTD_DEAD_RETENTION", value_parser = above_zero)]
    pub dead_retention: Option<Duration>,

    /// Size of the database from which on ingest answers 503 [default: 64GiB, where there is an ingest]
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_DB_BYTES", value_parser = some_bytes)]
    pub max_db_bytes: Option<u64>,

    #[command(flatten)]
    pub kafka: Kafka,

    /// How long a stop waits for what is under way. After that it still closes the database, for up to 15s
    #[arg(long, value_name = "DURATION", env = "EVENTD_DRAIN", default_value = "30s", value_parser = duration, help_heading = "Running")]
    pub drain: Duration,

    /// How log lines look on standard error, text or json. EVENTD_LOG says which ones: off, error, warn, info, debug or
    /// trace, or levels of modules (eventd::dispatch=debug,info)
    #[arg(long, value_name = "FORMAT", env = "EVENTD_LOG_FORMAT", default_value = "text", help_heading = "Running")]
    pub log_format: LogFormat,
}

/// How the brokers of a Kafka cluster are reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Kafka")]
pub struct Kafka {
    /// Speak TLS to the brokers
    #[arg(long, env = "EVENTD_TLS", value_parser = BoolishValueParser::new())]
    pub tls: bool,

    /// A file with the certificates of the authorities to trust, as PEM; implies --tls [default: the system's]
    #[arg(long, value_name = "PATH", env = "EVENTD_TLS_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,

    /// A file with our own certificate chain, as PEM, for brokers that want one; implies --tls
    #[arg(long, value_name = "PATH", env = "EVENTD_TLS_CERT_FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// A file with its private key, as PEM
    #[arg(long, value_name = "PATH", env = "EVENTD_TLS_KEY_FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,

    /// How to log in: plain, scram-sha-256 or scram-sha-512
    #[arg(long, value_name = "NAME", env = "EVENTD_SASL_MECHANISM", requires = "sasl_username", value_parser = mechanism)]
    pub sasl_mechanism: Option<SaslMechanism>,

    /// The user to log in as
    #[arg(long, value_name = "NAME", env = "EVENTD_SASL_USERNAME", requires = "sasl_mechanism")]
    pub sasl_username: Option<String>,

    /// A file with its password. EVENTD_SASL_PASSWORD holds the password itself
    #[arg(
        long,
        value_name = "PATH",
        env = "EVENTD_SASL_PASSWORD_FILE",
        hide_env_values = true,
        requires = "sasl_mechanism"
    )]
    pub sasl_password_file: Option<PathBuf>,
}

/// The HTTP endpoint.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ingest")]
pub struct Endpoint {
    /// Where to listen: every address that the name resolves to
    #[arg(long, value_name = "HOST:PORT", env = "EVENTD_LISTEN", default_value = "localhost:8090", value_parser = host_and_port)]
    pub listen: String,

    /// The largest body of a request
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_BODY", default_value = "4MiB", value_parser = some_size)]
    pub max_body: usize,

    /// The largest event
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_EVENT", default_value = "900KiB", value_parser = some_size)]
    pub max_event: usize,

    /// The most events in a request
    #[arg(long, value_name = "N", env = "EVENTD_MAX_BATCH", default_value = "10000", value_parser = count)]
    pub max_batch: usize,

    /// Bytes accepted and not yet in the log, from which on requests are answered with 503. Bodies that are still arriving
    /// may use as much again
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_PENDING", default_value = "64MiB", value_parser = some_size)]
    pub max_pending: usize,

    /// The most connections at once; a new one takes the place of the one that is idle for longest [default: 10000, or
    /// what the limit of file descriptors leaves after the log, partitions and destinations]
    #[arg(long, value_name = "N", env = "EVENTD_MAX_CONNECTIONS", value_parser = count)]
    pub max_connections: Option<usize>,

    /// How long the head of a request may take
    #[arg(long, value_name = "DURATION", env = "EVENTD_HEADER_TIMEOUT", default_value = "10s", value_parser = above_zero)]
    pub header_timeout: Duration,

    /// How long the body of a request may take
    #[arg(long, value_name = "DURATION", env = "EVENTD_BODY_TIMEOUT", default_value = "30s", value_parser = above_zero)]
    pub body_timeout: Duration,

    /// If eventd listens on a loopback address: a host that requests may be addressed to, in addition to localhost, for
    /// a proxy that passes on the Host header. Repeat it for several; in the environment, one a line
    #[arg(long = "allow-host", value_name = "HOST", env = "EVENTD_ALLOW_HOST", value_delimiter = '\n', value_parser = host_name)]
    pub allowed_hosts: Vec<String>,

    /// How a user's partition is found, murmur2 or fnv1a: every producer of a topic has to agree
    #[arg(long, value_name = "NAME", env = "EVENTD_PARTITIONER", default_value = "murmur2")]
    pub partitioner: Partitioner,
}

const DELIVERY: &str = "Delivery";

/// How events are delivered. In `up`, to each of the destinations.
#[derive(Debug, Args)]
#[command(next_help_heading = DELIVERY)]
pub struct Delivery {
    /// The name of the only destination, which holds its place in the log [default: derived from the destination]
    #[arg(long, env = "EVENTD_NAME")]
    pub name: Option<String>,

    /// A drill: one in N events fails before it reaches the destination; 0 is off
    #[arg(long, value_name = "N", env = "EVENTD_RELIABILITY", default_value = "0", value_parser = one_in)]
    pub reliability: u32,

    /// Repeats a drill: the seed is in its log line [default: another one each time]
    #[arg(long, value_name = "SEED", env = "EVENTD_RELIABILITY_SEED")]
    pub reliability_seed: Option<u64>,

    /// Tries of an event before it becomes a dead letter
    #[arg(long, value_name = "N", env = "EVENTD_ATTEMPTS", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    pub attempts: u32,

    /// The delay after an event's first failure; it doubles
    #[arg(long, value_name = "DURATION", env = "EVENTD_BACKOFF", default_value = "100ms", value_parser = above_zero)]
    pub backoff: Duration,

    /// The longest delay between two tries
    #[arg(long, value_name = "DURATION", env = "EVENTD_BACKOFF_MAX", default_value = "2s", value_parser = above_zero)]
    pub backoff_max: Duration,

    /// Delay by a random part, from half to all of it
    #[arg(long, env = "EVENTD_JITTER", value_parser = BoolishValueParser::new())]
    pub jitter: bool,

    /// How long an attempt may take
    #[arg(long, value_name = "DURATION", env = "EVENTD_ATTEMPT_TIMEOUT", default_value = "15s", value_parser = above_zero)]
    pub attempt_timeout: Duration,

    /// The longest Retry-After of a destination that is followed
    #[arg(long, value_name = "DURATION", env = "EVENTD_RETRY_AFTER_MAX", default_value = "5m", value_parser = above_zero)]
    pub retry_after_max: Duration,

    /// Attempts under way at once
    #[arg(long, value_name = "N", env = "EVENTD_CONCURRENCY", default_value = "256", value_parser = count)]
    pub concurrency: usize,

    /// Events read and not yet settled
    #[arg(long, value_name = "N", env = "EVENTD_WINDOW", default_value = "100000", value_parser = count)]
    pub window: usize,

    /// Bytes of these: user, payload and 128 bytes each. In `up`, the destinations share them equally; each has at least
    /// 1MiB
    #[arg(long, value_name = "SIZE", env = "EVENTD_WINDOW_BYTES", default_value = "64MiB", value_parser = some_size)]
    pub window_bytes: usize,

    /// How often progress is written: a crash redelivers what was settled since
    #[arg(long, value_name = "DURATION", env = "EVENTD_COMMIT_INTERVAL", default_value = "200ms", value_parser = above_zero)]
    pub commit_interval: Duration,

    /// On Kafka: how long after its last heartbeat this process counts as gone, and another one takes its partitions
    #[arg(long, value_name = "DURATION", env = "EVENTD_SESSION_TIMEOUT", default_value = "10s", value_parser = session_timeout)]
    pub session_timeout: Duration,

    /// On Kafka: a name of this process that stays from start to start (static membership): a restart within the
    /// session's time-out takes its own partitions back at once
    #[arg(long, value_name = "ID", env = "EVENTD_INSTANCE_ID", value_parser = topic)]
    pub instance_id: Option<String>,

    /// With --instance-id: a stop does not tell the others, so that a rolling restart moves no partition
    #[arg(long, env = "EVENTD_KEEP_MEMBERSHIP", requires = "instance_id", value_parser = BoolishValueParser::new())]
    pub keep_membership: bool,

    /// The permissions of a file that is made for a destination, in octal, like 0640. An existing file keeps its own
    #[arg(long, value_name = "MODE", env = "EVENTD_FILE_MODE", default_value = "0600", value_parser = file_mode)]
    pub file_mode: u32,

    /// Where the log no longer holds the next event, or cannot read it: stop or skip
    #[arg(long, value_name = "WHAT", env = "EVENTD_ON_GAP", default_value = "stop", value_parser = on_gap)]
    pub on_gap: OnGap,

    /// Where a new destination begins: earliest or latest; on Kafka also one whose commit is gone, or was made for an
    /// earlier topic of the same name [default: earliest, for a new one]
    #[arg(long, value_name = "WHERE", env = "EVENTD_START", value_parser = start)]
    pub start: Option<Start>,

    /// A file with the secret (whsec_…) that signs requests, as Standard Webhooks says; with NAME= for one of several
    /// destinations. EVENTD_WEBHOOK_SECRET holds the secret itself
    #[arg(
        long = "webhook-secret-file",
        value_name = "[NAME=]PATH",
        env = "EVENTD_WEBHOOK_SECRET_FILE",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub webhook_secret_files: Vec<String>,
}

/// What the help of flags and the errors of their values say themselves, with an `@`.
const HELP_WITH_AT: [&str; 2] = ["@FILE>", "@1767350000"];

/// Hides what may be a secret in one of clap's errors: they repeat arguments, and one may be a URL in the wrong place
/// (`eventd up https://user:password@host`). What is in front of `@`, and a URL's query, become `***`.
pub fn without_secrets(error: &str) -> String {
    let line = |line: &str| -> String {
        let url = line.find("://").map(|at| at + "://".len());
        // Clap puts arguments into single quotes.
        let start = url.or_else(|| line.find('\'').map(|at| at + 1)).unwrap_or(0);
        let (before, argument) = line.split_at(start);
        let is_help = |at: usize| HELP_WITH_AT.iter().any(|help| argument[at..].starts_with(help));
        let at = argument.match_indices('@').map(|(at, _)| at).rfind(|at| *at > 0 && !is_help(*at));
        let (hidden, argument) = at.map_or(("", argument), |at| ("***@", &argument[at + 1..]));
        match argument.split_once('?') {
            Some((path, query)) if url.is_some() || query.contains('\'') => {
                let after = query.rfind('\'').map_or("", |quote| &query[quote..]);
                format!("{before}{hidden}{path}?***{after}")
            }
            _ => format!("{before}{hidden}{argument}"),
        }
    };
    error.split_inclusive('\n').map(line).collect()
}

/// A duration with its unit: `100ms`, `2s`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    if text.chars().all(|c| c.is_ascii_digit()) {
        return Err("a duration needs a unit: 100ms, 2s, 5m, 1h".into());
    }
    let duration = humantime::parse_duration(text).map_err(|error| format!("{error}; write 100ms, 2s, 5m, 1h"))?;
    // What is added to a clock has to stay within it.
    if duration > Duration::from_secs(100 * 365 * 86_400) {
        return Err("must be at most 100 years".into());
    }
    Ok(duration)
}

fn above_zero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be above zero".into()),
        duration => Ok(duration),
    }
}

/// Permissions in octal: `0640`. Without the owner's, a file could be made once and never opened again.
fn file_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).map_err(|_| "write permissions in octal, like 0640")?;
    if mode & 0o600 != 0o600 {
        return Err("the owner has to be able to read and write the file: 0600 or more".into());
    }
    if mode & !0o666 != 0 {
        return Err("only permissions to read and to write are possible: 0666 or less".into());
    }
    Ok(mode)
}

/// Bytes, with or without a unit: `900KiB`, `64MiB`, `1000`.
fn some_bytes(text: &str) -> Result<u64, String> {
    match text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("must be above zero".into()),
        Ok(size) => Ok(size.as_u64()),
        Err(error) => Err(format!("{error}; write 900KiB, 64MiB, 1GiB")),
    }
}

fn some_size(text: &str) -> Result<usize, String> {
    usize::try_from(some_bytes(text)?).map_err(|_| "larger than this machine's memory can be".into())
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be above zero".into()),
        Ok(count) => Ok(count),
        Err(error) => Err(format!("{error}")),
    }
}

fn one_in(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(1) => Err("one in 1 would fail every event for ever: 0 is off, 2 or more a drill".into()),
        Ok(n) => Ok(n),
        Err(error) => Err(format!("{error}")),
    }
}

fn partitions(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=limits::PARTITIONS_MAX) => Ok(n),
        Ok(_) => Err(format!("must be from 1 to {}", limits::PARTITIONS_MAX)),
        Err(error) => Err(format!("{error}")),
    }
}

fn topic(text: &str) -> Result<String, String> {
    match names::is_valid(text, limits::TOPIC_CHARS_MAX) {
        true => check_main_topic(text).map(|()| text.into()),
        false => Err(format!("a topic is 1 to {} of A-Z a-z 0-9 . _ -", limits::TOPIC_CHARS_MAX)),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']) && port.parse::<u16>().is_ok() =>
        {
            Ok(text.into())
        }
        _ => Err("must be HOST:PORT, without a scheme or user, as localhost:8090 or [::1]:8090".into()),
    }
}

/// Without a port. An empty line of the environment variable is left out later.
fn host_name(text: &str) -> Result<String, String> {
    match text.contains([':', '/', '@', ' ']) && !(text.starts_with('[') && text.ends_with(']')) {
        true => Err("must be a host without scheme and port, as events.example.com".into()),
        false => Ok(text.into()),
    }
}

fn on_gap(text: &str) -> Result<OnGap, String> {
    match text {
        "stop" => Ok(OnGap::Stop),
        "skip" => Ok(OnGap::Skip),
        _ => Err("stop or skip".into()),
    }
}

fn session_timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        timeout if timeout < Duration::from_secs(1) => Err("must be at least 1s: heartbeats have to fit in".into()),
        timeout if timeout > Duration::from_secs(1800) => Err("must be at most 30m, as brokers have it".into()),
        timeout => Ok(timeout),
    }
}

fn place(text: &str) -> Result<Position, String> {
    text.parse()
}

fn moment(text: &str) -> Result<Position, String> {
    match text.parse()? {
        moment @ (Position::Time(_) | Position::Ago(_)) => Ok(moment),
        _ => {
            Err("write a time (2026-01-02T10:30:00Z, 2026-01-02 10:30, 10:30 for today, @1767350000) or an age (2h)"
                .into())
        }
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    text.parse()
}

fn replay_id(text: &str) -> Result<String, String> {
    match names::is_valid(text, limits::REPLAY_ID_CHARS_MAX) {
        true => Ok(text.into()),
        false => Err("no id of a replay: --list shows those that there are".into()),
    }
}

fn mechanism(text: &str) -> Result<SaslMechanism, String> {
    match text.to_ascii_lowercase().as_str() {
        "plain" => Ok(SaslMechanism::Plain),
        "scram-sha-256" => Ok(SaslMechanism::ScramSha256),
        "scram-sha-512" => Ok(SaslMechanism::ScramSha512),
        _ => Err("plain, scram-sha-256 or scram-sha-512".into()),
    }
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => Err("earliest or latest".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_repeats_an_argument_shows_no_secret_of_it() {
        for (error, shown) in [
            ("unexpected argument '--urk' found\n", "unexpected argument '--urk' found\n"),
            ("argument 'https://u:p@h/a' found\nUsage", "argument 'https://***@h/a' found\nUsage"),
            ("argument 'https://h/?token=a'b' found", "argument 'https://h/?***' found"),
            ("'kafka://u:p@ss@h:9092,i:9092'", "'kafka://***@h:9092,i:9092'"),
            ("'x=http://u:p@h/?q=a@b'", "'x=http://***@b'"),
            ("argument 'u:p'w@h:9092' found", "argument '***@h:9092' found"),
            ("cannot be used with '--user <USER|@FILE>'", "cannot be used with '--user <USER|@FILE>'"),
            ("'u:p@h' for '--user <USER|@FILE>'", "'***@h' for '--user <USER|@FILE>'"),
            ("'yesterday': 10:30, @1767350000) or", "'yesterday': 10:30, @1767350000) or"),
            ("value '@5' for", "value '@5' for"),
            ("'u:p@h': 10:30, @1767350000) or", "'***@h': 10:30, @1767350000) or"),
            ("argument 'sqlite:x.db?password=p' found", "argument 'sqlite:x.db?***' found"),
            ("a value is required for '--dest <DEST>'?", "a value is required for '--dest <DEST>'?"),
        ] {
            assert_eq!(without_secrets(error), shown);
        }
    }
}
