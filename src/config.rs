//! The checked configuration of each mode, built once from the flags: behind it nothing is asked again. Everything that
//! can be known to be wrong without touching the log or a destination is an error here, and the exit code is 2.

use crate::cli;
use crate::core::backoff::Backoff;
use crate::core::side_topics;
use crate::destination::spec::{Spec, Target};
use crate::destination::{self, FaultDrill, webhook};
use crate::group::{JoinOptions, WhenHeld};
use crate::replay::range::Range;
use crate::replay::rewind::Reposition;
use crate::replay::select::Selection;
use crate::replay::signing::Signature;
use crate::small_file::{self, SECRET_FILE_BYTES_MAX};
use crate::{clock, dispatch, ingest, limits, log, net, replay};
use anyhow::{Context, anyhow, bail, ensure};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The fallback for `--webhook-secret-file`: the secret itself.
const WEBHOOK_SECRET: &str = "EVENTD_WEBHOOK_SECRET";

/// The fallback for `--sasl-password-file`: the password itself.
const SASL_PASSWORD: &str = "EVENTD_SASL_PASSWORD";

/// Partitions of a topic that is made, where `--partitions` does not say.
const PARTITIONS: u32 = 3;

/// How long a topic that is made keeps its records, where `--retention` does not say.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// The same of dead letters and `--dead-retention`.
const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// From which size of the database on ingest refuses, where nobody says.
const MAX_DB_BYTES: u64 = 64 << 30;

/// Bytes of a file of users or ids: as many as a replay takes, and blanks.
const NAMED_FILE_BYTES_MAX: usize = 2 * limits::REPLAY_NAMED_BYTES_MAX;

/// Connections of clients, if `--max-connections` is not given.
const MAX_CONNECTIONS: usize = 10_000;

/// Which log, and where, as `--url` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// The embedded log: a database file.
    Sqlite(PathBuf),
    /// A Kafka cluster: `host:port` of some of its brokers.
    Kafka(Vec<String>),
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(char::is_control) {
            return Err("it holds a line break, or another character that cannot be seen".into());
        }
        if let Some(path) = text.strip_prefix("sqlite:") {
            return match path {
                "" => Err("sqlite: needs a file after it, as sqlite:eventd.db".into()),
                // Not shown: what looks like a URL may hold a password.
                path if path.contains('?') || (path.starts_with("//") && !path.starts_with("///")) => {
                    Err("a database has no host, user or parameters: write sqlite:PATH, as sqlite:eventd.db or \
                         sqlite:/var/lib/eventd.db"
                        .into())
                }
                path => Ok(Self::Sqlite(path.into())),
            };
        }
        // Not shown: it may hold a password.
        if text.contains(['@', '?']) {
            return Err("the address of a Kafka broker has no user, password or parameters: write \
                 HOST:PORT[,HOST:PORT…], and log in with --sasl-username and --sasl-password-file. (For the embedded \
                 log write sqlite:PATH.)"
                .into());
        }
        let brokers: Vec<String> =
            text.strip_prefix("kafka://").unwrap_or(text).split(',').map(|broker| broker.trim().to_owned()).collect();
        match brokers.iter().find(|broker| !is_address(broker)) {
            None => Ok(Self::Kafka(brokers)),
            Some(_) if !text.starts_with("kafka:") && !text.contains(',') => Err("not a log that eventd knows: write \
                 sqlite:PATH, as sqlite:eventd.db, or the address of a Kafka broker, as localhost:9092"
                .into()),
            Some(broker) => {
                Err(format!("{broker:?} is not the address of a Kafka broker: write HOST:PORT[,HOST:PORT…]"))
            }
        }
    }
}

/// `host:port`, with an IPv6 address in brackets.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = !host.contains([':', '/', '@', ' ']) || (host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && bare && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json".into()),
        }
    }
}

/// Where the log is, and how it is worked with.
#[derive(Debug, Clone)]
pub enum Store {
    Sqlite { path: PathBuf, settings: log::sqlite::Settings },
    Kafka(net::BrokerSettings),
}

/// What every mode opens first.
#[derive(Debug, Clone)]
pub struct Log {
    pub store: Store,
    pub topic: String,
    /// How the topic is made where it is missing. `None`: that is an error.
    pub create: Option<log::CreateTopic>,
    /// The count that was asked for: a topic with another one is an error. `None`: any will do.
    pub partitions_asked: Option<u32>,
}

/// `eventd ingest`.
#[derive(Debug, Clone)]
pub struct Ingest {
    pub log: Log,
    pub endpoint: Endpoint,
}

/// Where to listen, and how to take events in.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `host:port`.
    pub listen: String,
    /// Whether `--max-connections` was given: if it cannot be kept, that is told.
    pub max_connections_given: bool,
    pub ingest: ingest::Config,
}

/// `eventd dispatch`.
#[derive(Debug, Clone)]
pub struct Dispatch {
    pub log: Log,
    pub delivery: Delivery,
    /// Whether to wait for a destination that another process holds.
    pub standby: bool,
}

/// One destination, and how to deliver to it.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub spec: Spec,
    pub settings: destination::DestinationSettings,
    pub dispatch: dispatch::Config,
    /// How it joins its group.
    pub join_options: JoinOptions,
}

/// `eventd up`.
#[derive(Debug, Clone)]
pub struct Up {
    pub log: Log,
    pub endpoint: Endpoint,
    /// Of different names.
    pub deliveries: Vec<Delivery>,
}

/// `eventd replay`.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Neither database nor topic is made.
    pub log: Log,
    pub work: ReplayWork,
}

#[derive(Debug, Clone)]
pub enum ReplayWork {
    /// Replays of one destination, or of all.
    List {
        destination: Option<Box<Spec>>,
        json: bool,
    },
    Deliver {
        delivery: Box<Delivery>,
        replay: Box<replay::Config>,
    },
}

impl Ingest {
    pub fn new(flags: &cli::Ingest) -> anyhow::Result<Self> {
        Ok(Self {
            log: log(&flags.shared, &url(&flags.shared, kafka_here)?, Some(MAX_DB_BYTES))?,
            endpoint: endpoint(&flags.endpoint, flags.shared.drain)?,
        })
    }
}

impl Dispatch {
    pub fn new(flags: &cli::Dispatch) -> anyhow::Result<Self> {
        let shared = &flags.shared;
        let url = url(shared, kafka_here)?;
        ensure!(
            !flags.standby || matches!(url, Engine::Sqlite(_)),
            "--standby waits for another process to let go of a database: it is for sqlite:"
        );
        let typed = std::slice::from_ref(&flags.destination);
        let deliveries = deliveries(typed, &flags.delivery, shared, &url, shared.drain)?;
        let delivery = deliveries.into_iter().next().context("--dest is missing")?;
        Ok(Self { log: log(shared, &url, None)?, delivery, standby: flags.standby })
    }
}

impl Replay {
    pub fn new(flags: &cli::Replay) -> anyhow::Result<Self> {
        let shared = &flags.shared;
        let url = url(shared, kafka_here)?;
        let mut log = log(shared, &url, None)?;
        log.create = None;
        if let Store::Sqlite { settings, .. } = &mut log.store {
            settings.create = false;
        }
        let typed: Vec<String> = flags.destination.iter().cloned().collect();
        let deliveries = deliveries(&typed, &flags.delivery, shared, &url, shared.drain)?;
        let delivery = deliveries.into_iter().next();
        if flags.list {
            let destination = delivery.map(|delivery| Box::new(delivery.spec));
            return Ok(Self { log, work: ReplayWork::List { destination, json: flags.json } });
        }
        let mut delivery = Box::new(delivery.context("--dest is missing")?);
        if flags.unsigned {
            delivery.settings.secret = None;
        }
        let signature = match delivery.settings.secret {
            _ if !is_http(&delivery.spec) => Signature::Present,
            _ if flags.unsigned => Signature::Waived,
            Some(_) => Signature::Present,
            None => Signature::Missing,
        };
        let replay = Box::new(replay_config(flags, signature)?);
        Ok(Self { log, work: ReplayWork::Deliver { delivery, replay } })
    }
}

fn replay_config(flags: &cli::Replay, signature: Signature) -> anyhow::Result<replay::Config> {
    let config = |what| replay::Config {
        what,
        execute: flags.execute,
        json: flags.json,
        rate: flags.rate,
        stop_after_failures: flags.stop_after_failures,
        signature,
    };
    let what = match (&flags.resume, &flags.fast_forward) {
        (Some(id), _) => replay::ReplayRequest::Resume { id: id.clone() },
        (None, Some(to)) => {
            let range = Range { from: None, until: Some(to.clone()) };
            range.check(clock::now_ms()).map_err(anyhow::Error::msg).context("--fast-forward")?;
            replay::ReplayRequest::Reposition(Reposition::FastForward(to.clone()))
        }
        (None, None) => {
            let range = Range { from: flags.from.clone(), until: flags.until.clone() };
            let range = if flags.dead { Range { from: flags.since.clone(), until: None } } else { range };
            range.check(clock::now_ms()).map_err(anyhow::Error::msg)?;
            if let Some(to) = flags.from.clone().filter(|_| flags.rewind) {
                return Ok(config(replay::ReplayRequest::Reposition(Reposition::Rewind(to))));
            }
            let (users, from_file) = named("--user", &flags.users)?;
            let (ids, _) = named("--id", &flags.ids)?;
            ensure!(
                flags.dead || range.from.is_some() || !users.is_empty() || !ids.is_empty(),
                "say what to replay: --from 0 is everything that the log holds, --dead what was given up (or --user, --id, \
                 --resume, --list)"
            );
            let reasons = flags.reasons.iter().cloned().collect();
            let again = flags.again;
            let selection = Selection { dead: flags.dead, users, ids, reasons, again, ..Selection::default() };
            replay::ReplayRequest::New { range, selection, limit: flags.limit, every_user: !from_file }
        }
    };
    Ok(config(what))
}

/// Users or ids, one by one or a file of them; and whether there was a file.
fn named(flag: &str, typed: &[String]) -> anyhow::Result<(BTreeSet<String>, bool)> {
    let (mut names, mut from_file) = (BTreeSet::new(), false);
    for text in typed {
        match text.strip_prefix('@') {
            Some(path) => {
                let lines = small_file::read_text(Path::new(path), NAMED_FILE_BYTES_MAX)
                    .with_context(|| format!("{flag} @{path}"))?;
                // Some editors begin a file with a byte order mark.
                let lines = lines.strip_prefix('\u{feff}').unwrap_or(&lines);
                names.extend(lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
                from_file = true;
            }
            None => _ = names.insert(text.clone()),
        }
    }
    ensure!(typed.is_empty() || !names.is_empty(), "{flag}: the file is empty");
    let bytes: usize = names.iter().map(String::len).sum();
    ensure!(
        names.len() <= limits::REPLAY_NAMED_MAX && bytes <= limits::REPLAY_NAMED_BYTES_MAX,
        anyhow!(
            "{flag}: {} of {bytes} bytes, and at most {} of {} bytes go into one replay: split the file",
            names.len(),
            limits::REPLAY_NAMED_MAX,
            limits::REPLAY_NAMED_BYTES_MAX
        )
    );
    Ok((names, from_file))
}

impl Up {
    pub fn new(flags: &cli::Up) -> anyhow::Result<Self> {
        let shared = &flags.shared;
        // Ingest ends before the destinations do, each in its own half: together they keep to `--drain`.
        let drain = shared.drain / 2;
        let url = url(shared, || Engine::Sqlite("eventd.db".into()))?;
        Ok(Self {
            log: log(shared, &url, Some(MAX_DB_BYTES))?,
            endpoint: endpoint(&flags.endpoint, drain)?,
            deliveries: deliveries(&flags.destinations, &flags.delivery, shared, &url, drain)?,
        })
    }
}

/// The log of a mode: `--url`, or else the default. It is not parsed by clap, whose errors repeat the value.
fn url(flags: &cli::Shared, default: impl FnOnce() -> Engine) -> anyhow::Result<Engine> {
    match &flags.url {
        Some(text) => text.parse().map_err(anyhow::Error::msg).context("--url"),
        None => Ok(default()),
    }
}

/// Where Kafka's own tools look.
fn kafka_here() -> Engine {
    Engine::Kafka(vec!["localhost:9092".into()])
}

/// `max_db_bytes` is for where there is an ingest to refuse: a dispatch alone writes what settles events.
fn log(flags: &cli::Shared, url: &Engine, max_db_bytes: Option<u64>) -> anyhow::Result<Log> {
    let kafka = &flags.kafka;
    let partitions = flags.partitions.unwrap_or(PARTITIONS);
    let (store, create) = match url {
        Engine::Sqlite(path) => {
            let typed = kafka.tls || kafka.tls_ca_file.is_some() || kafka.tls_cert_file.is_some();
            ensure!(!typed && kafka.sasl_mechanism.is_none(), "--tls… and --sasl… are for Kafka, and --url is sqlite:");
            let settings = log::sqlite::Settings {
                // Only what was typed: a default must not shorten what another process was told to keep.
                retention: flags.retention,
                dead_retention: flags.dead_retention,
                max_db_bytes: flags.max_db_bytes.or(max_db_bytes),
                create: true,
            };
            let retention = Some(flags.retention.unwrap_or(RETENTION));
            (Store::Sqlite { path: path.clone(), settings }, Some(log::CreateTopic { partitions, retention }))
        }
        Engine::Kafka(brokers) => {
            ensure!(flags.max_db_bytes.is_none(), "--max-db-bytes is for a database, and --url is Kafka");
            ensure!(
                flags.create_topic || flags.retention.is_none(),
                "--retention is for a topic that eventd makes: add --create-topic, or set the topic's retention.ms"
            );
            let create = log::CreateTopic { partitions, retention: flags.retention };
            (Store::Kafka(brokers_of(brokers, kafka)?), flags.create_topic.then_some(create))
        }
    };
    Ok(Log { store, topic: flags.topic.clone(), create, partitions_asked: flags.partitions })
}

fn brokers_of(brokers: &[String], flags: &cli::Kafka) -> anyhow::Result<net::BrokerSettings> {
    let identity = flags.tls_cert_file.clone().zip(flags.tls_key_file.clone());
    let tls = net::TlsFiles { ca_file: flags.tls_ca_file.clone(), identity };
    let tls = match flags.tls || tls != net::TlsFiles::default() {
        true => Some(Arc::new(tls.config().map_err(anyhow::Error::msg).context("--tls")?)),
        false => None,
    };
    let sasl = match (flags.sasl_mechanism, &flags.sasl_username) {
        (Some(mechanism), Some(username)) => {
            let password = sasl_password(flags.sasl_password_file.as_deref())?;
            Some(net::Sasl { mechanism, username: username.clone(), password })
        }
        _ => None,
    };
    Ok(net::BrokerSettings { brokers: brokers.to_vec(), tls, sasl })
}

fn sasl_password(file: Option<&Path>) -> anyhow::Result<String> {
    match file {
        Some(path) => {
            let text = small_file::read_text(path, SECRET_FILE_BYTES_MAX)
                .map_err(anyhow::Error::new)
                .and_then(|text| one_line(&text).map(str::to_owned));
            text.with_context(|| format!("--sasl-password-file {}", path.display()))
        }
        None => {
            let text = variable(SASL_PASSWORD)?;
            let text = text.with_context(|| format!("--sasl-mechanism needs --sasl-password-file, or {SASL_PASSWORD}"));
            Ok(text?.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

/// The only line of a file with a password. Line breaks at the end do not count.
fn one_line(text: &str) -> anyhow::Result<&str> {
    let line = text.trim_end_matches(['\r', '\n']);
    ensure!(!line.is_empty(), "the file is empty");
    ensure!(!line.contains(['\r', '\n', '\0']), "the file has more than one line: write the password into one line");
    Ok(line)
}

/// A variable that has no flag. As with the others, set but empty is an error.
pub(crate) fn variable(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(text) if text.trim().is_empty() => bail!("the variable {name} is empty: set it, or unset it"),
        Ok(text) => Ok(Some(text)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("the variable {name} is not text"),
    }
}

fn endpoint(flags: &cli::Endpoint, drain: Duration) -> anyhow::Result<Endpoint> {
    ensure!(
        flags.max_body <= flags.max_pending,
        "--max-body must not be above --max-pending: such a body would never be taken"
    );
    ensure!(
        flags.max_event <= limits::RECORD_BYTES_MAX - limits::LETTER_BYTES_MAX,
        "--max-event must be at most {} bytes: its dead letter has to fit into the log too",
        limits::RECORD_BYTES_MAX - limits::LETTER_BYTES_MAX
    );
    let ingest = ingest::Config {
        max_body_bytes: flags.max_body,
        max_event_bytes: flags.max_event,
        max_batch_events: flags.max_batch,
        max_pending_bytes: flags.max_pending,
        max_connections: flags.max_connections.unwrap_or(MAX_CONNECTIONS),
        header_timeout: flags.header_timeout,
        body_timeout: flags.body_timeout,
        partitioner: flags.partitioner,
        allowed_hosts: allowed_hosts(&flags.listen, &flags.allowed_hosts),
        drain,
    };
    let max_connections_given = flags.max_connections.is_some();
    Ok(Endpoint { listen: flags.listen.clone(), max_connections_given, ingest })
}

/// The hosts of `--allow-host`, and that of `--listen`: whoever typed it means this machine, also if it is a name that
/// resolves to a loopback address (as the machine's own name does on Debian).
fn allowed_hosts(listen: &str, given: &[String]) -> Vec<String> {
    let listen = listen.rsplit_once(':').map(|(host, _)| host.to_owned());
    given.iter().filter(|host| !host.is_empty()).cloned().chain(listen).collect()
}

/// One [`Delivery`] a destination as typed, in their order.
fn deliveries(
    typed: &[String],
    flags: &cli::Delivery,
    shared: &cli::Shared,
    url: &Engine,
    drain: Duration,
) -> anyhow::Result<Vec<Delivery>> {
    let specs = specs(typed, flags.name.as_deref(), &shared.topic)?;
    if let Engine::Sqlite(database) = url {
        ensure!(flags.instance_id.is_none(), "--instance-id is for Kafka, and --url is sqlite:");
        for spec in &specs {
            refuse_database(spec, database)?;
        }
    }
    let secrets = WebhookSecrets::of(&flags.webhook_secret_files, &specs)?;
    let backoff = Backoff::new(flags.backoff, flags.backoff_max, flags.jitter).map_err(anyhow::Error::msg)?;
    let dispatch = dispatch::Config {
        attempts: flags.attempts,
        backoff,
        attempt_timeout: flags.attempt_timeout,
        retry_after_max: flags.retry_after_max,
        concurrency: flags.concurrency,
        window_events: flags.window,
        window_bytes: share_of_window(flags.window_bytes, specs.len()),
        commit_interval: flags.commit_interval,
        start: flags.start.unwrap_or(dispatch::Start::Earliest),
        on_gap: flags.on_gap,
        when_stopped: dispatch::WhenStopped::Stay,
        drain,
        dead_retention: shared.dead_retention.unwrap_or(DEAD_RETENTION),
        seed: any_number(),
    };
    let drill = (flags.reliability > 0)
        .then(|| FaultDrill { one_in: flags.reliability, seed: flags.reliability_seed.unwrap_or_else(any_number) });
    specs
        .into_iter()
        .map(|spec| {
            let settings = destination::DestinationSettings {
                attempt_timeout: flags.attempt_timeout,
                retry_after_max: flags.retry_after_max,
                concurrency: flags.concurrency,
                secret: secrets.read(&spec)?,
                file_mode: flags.file_mode,
                drill,
                ..destination::DestinationSettings::default()
            };
            let join_options = JoinOptions {
                digest: spec.digest(),
                when_held: WhenHeld::Fail,
                start_given: flags.start.is_some(),
                session_timeout: flags.session_timeout,
                instance_id: flags.instance_id.clone(),
                keep_membership: flags.keep_membership,
            };
            Ok(Delivery { spec, settings, dispatch: dispatch.clone(), join_options })
        })
        .collect()
}

/// Bytes that the window of a destination has at least, however many of them share `--window-bytes`: less would read the
/// log in crumbs.
const WINDOW_BYTES_MIN: usize = 1024 * 1024;

/// The share of one destination. All shares are equal and nothing is lent: bytes that a dead destination had borrowed
/// could not be taken back before it lives again.
fn share_of_window(window_bytes: usize, destinations: usize) -> usize {
    (window_bytes / destinations.max(1)).max(WINDOW_BYTES_MIN.min(window_bytes))
}

/// What to do about two destinations whose derived names differed in an earlier version. The names themselves are not
/// shown: each has a checksum of the password or token in it.
const KEEP_EARLIER_NAMES: &str = ". If they ran under an earlier version of eventd, each had a name of its own. To keep \
    their progress, type these names, as --dest EARLIER-NAME=DEST. They are shown by `ls *.lock` next to the database, or \
    by `kafka-consumer-groups --list`. A destination with a new name starts at --start";

/// The destinations, under names that differ.
fn specs(typed: &[String], name: Option<&str>, topic: &str) -> anyhow::Result<Vec<Spec>> {
    let mut specs = Vec::with_capacity(typed.len());
    for text in typed {
        specs.push(Spec::parse(text).context("--dest")?);
    }
    if let Some(name) = name {
        ensure!(specs.len() == 1, "--name names the only --dest: with several, write --dest NAME=DEST");
        specs = vec![specs.remove(0).with_name(name).context("--name")?];
    }
    let (mut names, mut files) = (HashSet::new(), HashSet::new());
    for spec in &specs {
        let side_topic_chars = topic.len() + 1 + spec.name.len() + side_topics::TOPIC_SUFFIX_CHARS_MAX;
        ensure!(
            side_topic_chars <= limits::TOPIC_CHARS_MAX,
            "--topic and the name {:?} are too long together: the topic of its dead letters would have {side_topic_chars} \
             characters, and {} are possible",
            spec.name,
            limits::TOPIC_CHARS_MAX
        );
        if !names.insert(spec.name.as_str()) {
            let are_alike = |other: &&Spec| other.name == spec.name;
            let had_others = specs.iter().filter(are_alike).any(|other| other.earlier_name.is_some());
            bail!(
                "two destinations have the name {:?}: write --dest NAME=DEST to give one of them another name (user, \
                 password and query of a URL are not part of a derived name){}",
                spec.name,
                if had_others { KEEP_EARLIER_NAMES } else { "" }
            );
        }
        // Two may share a device, as /dev/null is one.
        if let Target::File(path) = &spec.target
            && !path.metadata().is_ok_and(|file| !file.is_file())
        {
            ensure!(
                files.insert(resolved(path)),
                "two destinations write to the same file {}: give each one a file of its own",
                path.display()
            );
        }
    }
    Ok(specs)
}

/// Lines in the database, or in what SQLite keeps beside it, would destroy the log.
fn refuse_database(spec: &Spec, database: &Path) -> anyhow::Result<()> {
    let Target::File(path) = &spec.target else { return Ok(()) };
    for ending in ["", "-wal", "-shm", "-journal"] {
        let mut file = database.as_os_str().to_owned();
        file.push(ending);
        ensure!(
            resolved(path) != resolved(Path::new(&file)),
            "--dest {} is the database itself (--url): write the events to another file",
            path.display()
        );
    }
    Ok(())
}

/// The path without links and detours, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let by_folder = || {
        let folder = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        Some(folder?.canonicalize().ok()?.join(path.file_name()?))
    };
    path.canonicalize().ok().or_else(by_folder).unwrap_or_else(|| path.to_owned())
}

/// Where the secrets of http destinations are. What is read is never logged.
struct WebhookSecrets {
    /// By the name that the destination has in this version.
    by_name: HashMap<String, PathBuf>,
    /// Of every http destination that is not named.
    for_all: Option<PathBuf>,
}

impl WebhookSecrets {
    fn of(typed: &[String], specs: &[Spec]) -> anyhow::Result<Self> {
        let mut secrets = Self { by_name: HashMap::new(), for_all: None };
        for text in typed {
            // Not shown: somebody gave the secret in place of its file.
            ensure!(
                !text.split('=').take(2).any(|part| part.starts_with(webhook::SECRET_PREFIX))
                    || Path::new(text).exists(),
                "--webhook-secret-file takes a file, and this is a secret (whsec_…): write it into a file, or set \
                 {WEBHOOK_SECRET}"
            );
            let (name, path) = match text.split_once('=') {
                Some((name, path)) if !name.contains('/') => (Some(name), path),
                _ => (None, text.as_str()),
            };
            ensure!(!path.is_empty(), "--webhook-secret-file {text:?}: the path is missing");
            let twice = match name {
                Some(name) => {
                    let spec = named_http(specs, name).with_context(|| {
                        format!(
                            "--webhook-secret-file {text:?}: no http destination has the name {name:?} (a path that holds \
                             = is typed with ./ before it)"
                        )
                    })?;
                    secrets.by_name.insert(spec.name.clone(), path.into()).is_some()
                }
                None => {
                    ensure!(specs.iter().any(is_http), "--webhook-secret-file signs requests, but no --dest is http");
                    secrets.for_all.replace(path.into()).is_some()
                }
            };
            ensure!(!twice, "--webhook-secret-file is given twice for the same destination");
        }
        Ok(secrets)
    }

    fn read(&self, spec: &Spec) -> anyhow::Result<Option<Vec<u8>>> {
        if !is_http(spec) {
            return Ok(None);
        }
        if let Some(path) = self.by_name.get(&spec.name).or(self.for_all.as_ref()) {
            let text = small_file::read_text(path, SECRET_FILE_BYTES_MAX)
                .with_context(|| format!("--webhook-secret-file {}", path.display()))?;
            return webhook::parse_secret(text.trim())
                .map(Some)
                .with_context(|| format!("the secret in {}", path.display()));
        }
        let secret = variable(WEBHOOK_SECRET)?;
        secret.map(|text| webhook::parse_secret(text.trim()).context(WEBHOOK_SECRET)).transpose()
    }
}

/// The http destination with this name, or else the one that eventd gave this name in an earlier version.
fn named_http<'a>(specs: &'a [Spec], name: &str) -> Option<&'a Spec> {
    let http = || specs.iter().filter(|spec| is_http(spec));
    http().find(|spec| spec.name == name).or_else(|| http().find(|spec| spec.earlier_name.as_deref() == Some(name)))
}

fn is_http(spec: &Spec) -> bool {
    matches!(spec.target, Target::Http(_))
}

/// For seeds: the hasher's keys are random, and nothing here is a secret.
fn any_number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_share_the_window_and_each_has_enough_to_work_with() {
        const MIB: usize = 1024 * 1024;
        let shares = |window_bytes, counts: [usize; 4]| counts.map(|count| share_of_window(window_bytes, count));
        assert_eq!(shares(64 * MIB, [0, 1, 2, 64]), [64 * MIB, 64 * MIB, 32 * MIB, MIB]);
        assert_eq!(share_of_window(64 * MIB, 1_000), MIB, "at least");
        assert_eq!(share_of_window(1_000, 3), 1_000, "and never more than was asked for");
    }

    #[test]
    fn requests_may_be_addressed_to_the_host_of_listen_and_to_those_that_are_allowed() {
        let given = ["events.example.com".to_owned(), String::new()];
        assert_eq!(allowed_hosts("my-machine:8090", &given), ["events.example.com", "my-machine"]);
        assert_eq!(allowed_hosts("[::1]:8090", &[]), ["[::1]"]);
    }

    #[test]
    fn a_destination_that_is_the_database_is_refused_however_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (database, link) = (folder.path().join("eventd.db"), folder.path().join("link"));
        let refused = |path: &Path| {
            let spec = Spec::parse(&format!("d=file:{}", path.display())).unwrap();
            refuse_database(&spec, &database).is_err()
        };
        let detour = folder.path().join(".").join("eventd.db");
        assert!(refused(&database) && refused(&detour), "also before it is made");
        assert!(refused(&folder.path().join("eventd.db-wal")));
        std::fs::write(&database, "").unwrap();
        std::os::unix::fs::symlink(&database, &link).unwrap();
        assert!(refused(&database) && refused(&detour) && refused(&link));
        assert!(!refused(&folder.path().join("eventd.jsonl")));
    }

    #[test]
    fn two_urls_that_had_names_of_their_own_are_told_how_to_keep_them_and_nothing_secret() {
        let refused = |typed: [&str; 2]| {
            let typed = typed.map(str::to_owned);
            format!("{:#}", specs(&typed, None, "events").unwrap_err())
        };
        for typed in [
            ["https://h/x?t=s3cret", "https://h/x?t=t0ken"],
            ["https://a:s3cret@h/x", "https://b:t0ken@h/x"],
            ["https://h/x", "https://h/x?t=s3cret"],
            ["https://h/x?t=s3cret", "https://h/x"],
        ] {
            let says = refused(typed);
            for part in ["NAME=DEST", "keep their progress", "ls *.lock", "kafka-consumer-groups --list", "--start"] {
                assert!(says.contains(part), "{part:?} in {says}");
            }
            let earlier = typed.map(|url| Spec::parse(url).unwrap().earlier_name);
            for secret in earlier.iter().flatten().map(String::as_str).chain(["s3cret", "t0ken"]) {
                assert!(!says.contains(secret), "{secret:?} in {says}");
            }
        }
        for typed in [["https://h/x", "https://h/x"], ["n=https://h/x?t=a", "n=https://h/x?t=b"], ["out", "./out"]] {
            let says = refused(typed);
            assert!(says.contains("NAME=DEST") && !says.contains("earlier"), "{says}");
        }
    }

    #[test]
    fn a_secret_is_for_the_destination_with_that_name_also_if_an_earlier_version_derived_it() {
        let specs = ["https://h/x?t=a", "b=https://h/y?t=b", "file"].map(|typed| Spec::parse(typed).unwrap());
        let earlier = specs[0].earlier_name.clone().unwrap();
        let typed = |names: &[&str]| {
            let typed: Vec<String> = names.iter().map(|name| format!("{name}=/run/{name}")).collect();
            WebhookSecrets::of(&typed, &specs).map(|secrets| secrets.by_name)
        };
        for name in [&specs[0].name, &earlier] {
            let expected = HashMap::from([(specs[0].name.clone(), PathBuf::from(format!("/run/{name}")))]);
            assert_eq!(typed(&[name]).unwrap(), expected);
        }
        let twice = typed(&[&earlier, &specs[0].name]).unwrap_err().to_string();
        assert!(twice.contains("given twice for the same destination"), "{twice}");
        assert!(typed(&["file"]).is_err() && typed(&["nobody"]).is_err());

        // A name that is typed comes first.
        let typed_again = Spec::parse(&format!("{earlier}=https://h/x?t=a")).unwrap();
        let both = [specs[0].clone(), typed_again];
        assert_eq!(named_http(&both, &earlier), Some(&both[1]));
    }
}
