//! `eventd ingest` and `eventd dispatch`: one part each, in a process of its own; and what [`up`](crate::up) shares with
//! them: opening the log, the sockets and a destination.

mod first_start;
mod join;
mod memory;

pub(crate) use self::join::{JoinedDestination, join};

use crate::config::{self, Delivery};
use crate::core::outcome::Ended;
use crate::descriptors;
use crate::destination::spec::Target;
use crate::destination::{self, Destination};
use crate::dispatch::{self, Parts};
use crate::group::kafka::KafkaGroups;
use crate::group::sqlite::SqliteGroups;
use crate::group::{Groups, JoinError, WhenHeld};
use crate::ingest::listen;
use crate::log::kafka::Kafka;
use crate::log::sqlite::Sqlite;
use crate::log::{Engine, Log, OpenError};
use crate::log_limiter::LogLimiter;
use crate::replay;
use crate::signals::Signals;
use crate::{ingest, limits};
use anyhow::{Context, anyhow, ensure};
use std::sync::Arc;
use tokio::net::TcpListener;

/// Somebody has to change a flag or a file: the exit code is 2, and trying again does not help.
#[derive(Debug)]
struct Misconfigured(String);

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misconfigured {}

/// Whether the error is one of configuration, and not of this run.
pub fn is_configuration(error: &anyhow::Error) -> bool {
    error.is::<Misconfigured>()
        || error.is::<destination::ConfigurationError>()
        || error.downcast_ref().is_some_and(|refused: &replay::ReplayRefused| refused.is_usage)
        || matches!(error.downcast_ref(), Some(JoinError::Configuration(_)))
        || matches!(error.downcast_ref(), Some(OpenError::Configuration(_) | OpenError::Missing { .. }))
}

/// Takes events in until the first signal, and ends what it accepted.
pub async fn ingest(mut config: config::Ingest, signals: &Signals) -> anyhow::Result<Ended> {
    check_descriptors(Some(&config.endpoint), &config.log, &[])?;
    let start = start(&config.log, &mut config.endpoint, &mut []);
    let Some((listeners, opened)) = unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    let engine = Arc::clone(&opened.engine);
    let ended = tokio::select! {
        ended = ingest::run(listeners, opened.log, config.endpoint.ingest, signals.stop()) => ended,
        why = engine.lost() => Err(lost(&why)),
    };
    engine.close().await;
    ended
}

/// Delivers to one destination until the first signal, and ends what is in flight.
pub async fn dispatch(config: config::Dispatch, signals: &Signals) -> anyhow::Result<Ended> {
    check_descriptors(None, &config.log, std::slice::from_ref(&config.delivery))?;
    let Some(opened) = unless_stopped(signals, open(&config.log, Access::Write)).await? else {
        return Ok(Ended::Drained);
    };
    let engine = Arc::clone(&opened.engine);
    let ended = dispatch_from(opened, config, signals).await;
    engine.close().await;
    ended
}

async fn dispatch_from(opened: OpenLog, mut config: config::Dispatch, signals: &Signals) -> anyhow::Result<Ended> {
    let partitions = opened.log.partitions().await?;
    divide_descriptors(None, &config.log, std::slice::from_mut(&mut config.delivery), partitions)?;
    memory::announce(&config.log, partitions, None, std::slice::from_ref(&config.delivery));
    let engine = Arc::clone(&opened.engine);
    let start = async {
        tokio::select! {
            joined = hold(&opened, &config.delivery, config.standby) => Ok(joined?),
            why = engine.lost() => Err(lost(&why)),
        }
    };
    let Some(joined) = unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    let delivery = deliver(opened, joined, config.delivery, signals.clone(), signals.stop());
    tokio::select! {
        ended = delivery => ended,
        why = engine.lost() => Err(lost(&why)),
    }
}

/// Shows what would be delivered again, and delivers it where that was asked for, until the first signal.
pub async fn replay(config: config::Replay, signals: &Signals) -> anyhow::Result<Ended> {
    if let config::ReplayWork::Deliver { delivery, .. } = &config.work {
        check_descriptors(None, &config.log, std::slice::from_ref(&**delivery))?;
    }
    let is_read_only = matches!(config.work, config::ReplayWork::List { .. });
    let access = if is_read_only { Access::Read } else { Access::Write };
    let Some(opened) = unless_stopped(signals, open(&config.log, access)).await? else {
        return Ok(Ended::Drained);
    };
    let engine = Arc::clone(&opened.engine);
    let work = async {
        match config.work {
            config::ReplayWork::List { destination, json } => {
                let name = match destination {
                    Some(spec) => Some(join::with_name_in_use(&opened, &spec).await?.name),
                    None => None,
                };
                replay::list(&*opened.engine, opened.log.topic(), name.as_deref(), json).await.map(|()| Ended::Drained)
            }
            config::ReplayWork::Deliver { mut delivery, replay } => {
                let partitions = opened.log.partitions().await?;
                divide_descriptors(None, &config.log, std::slice::from_mut(&mut *delivery), partitions)?;
                let Delivery { spec, settings, dispatch, .. } = *delivery;
                let spec = join::with_name_in_use(&opened, &spec).await?;
                let OpenLog { engine, groups, log } = opened;
                let (opener, streams) = (Arc::new(settings), Arc::new(replay::StandardStreams));
                let around = replay::ReplayContext { engine, log, groups, spec, opener, dispatch, streams };
                replay::run(around, *replay, signals.stop()).await
            }
        }
    };
    let ended = tokio::select! {
        ended = work => ended,
        why = engine.lost() => Err(lost(&why)),
    };
    engine.close().await;
    ended
}

/// What a mode begins with, or `None` where the first signal came before it was there: a standby may wait for days, and
/// a name's look-up for minutes.
pub(crate) async fn unless_stopped<T>(
    signals: &Signals,
    start: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        started = start => started.map(Some),
        () = signals.stop() => Ok(None),
    }
}

/// What a mode with an endpoint begins with: sockets first, since they are what most often fails. Reduces what needs more
/// file descriptors than there are.
pub(crate) async fn start(
    config: &config::Log,
    endpoint: &mut config::Endpoint,
    deliveries: &mut [Delivery],
) -> anyhow::Result<(Vec<TcpListener>, OpenLog)> {
    let listeners = listen::bind(&endpoint.listen).await?;
    let opened = open(config, Access::Write).await?;
    let partitions = opened.log.partitions().await?;
    divide_descriptors(Some(endpoint), config, deliveries, partitions)?;
    memory::announce(config, partitions, Some(endpoint), deliveries);
    listen::announce(&endpoint.listen, &listeners)?;
    Ok((listeners, opened))
}

/// Refuses a limit of file descriptors that is too low, before anything is opened.
pub(crate) fn check_descriptors(
    endpoint: Option<&config::Endpoint>,
    log: &config::Log,
    deliveries: &[Delivery],
) -> anyhow::Result<()> {
    Ok(descriptors::check(&needs(endpoint, log, deliveries, 0)).map_err(Misconfigured)?)
}

/// Bounds the connections of clients and of http destinations, so that the limit of file descriptors is enough for all.
fn divide_descriptors(
    endpoint: Option<&mut config::Endpoint>,
    log: &config::Log,
    deliveries: &mut [Delivery],
    partitions: u32,
) -> anyhow::Result<()> {
    let needs = needs(endpoint.as_deref(), log, deliveries, partitions as usize);
    let shares = descriptors::divide(&needs).map_err(Misconfigured)?;
    if let Some(endpoint) = endpoint {
        endpoint.ingest.max_connections = shares.clients;
    }
    for delivery in deliveries.iter_mut().filter(|delivery| is_http(delivery)) {
        for concurrency in [&mut delivery.dispatch.concurrency, &mut delivery.settings.concurrency] {
            *concurrency = shares.concurrency_max.min(*concurrency);
        }
    }
    Ok(())
}

fn needs(
    endpoint: Option<&config::Endpoint>,
    log: &config::Log,
    deliveries: &[Delivery],
    partitions: usize,
) -> descriptors::Needs {
    let http = deliveries.iter().filter(|delivery| is_http(delivery));
    let with_partition_files =
        deliveries.iter().filter(|delivery| destination::has_partition_files(&delivery.spec.target));
    descriptors::Needs {
        clients: endpoint.map_or(0, |endpoint| endpoint.ingest.max_connections),
        clients_given: endpoint.is_some_and(|endpoint| endpoint.max_connections_given),
        is_kafka: matches!(log.store, config::Store::Kafka(_)),
        partitions,
        destinations: deliveries.len(),
        destinations_with_partition_files: with_partition_files.count(),
        http_concurrency: http.map(|delivery| delivery.dispatch.concurrency).collect(),
        http_connections: destination::http_connections_max,
    }
}

fn is_http(delivery: &Delivery) -> bool {
    matches!(delivery.spec.target, Target::Http(_))
}

/// The end of every mode: what is in the log is unknown, or nothing comes into it any more. A new start can tell.
pub(crate) fn lost(why: &str) -> anyhow::Error {
    anyhow!(
        "the log cannot be used any more: {why}. Start eventd again: every acknowledged event that the log still holds is \
         delivered"
    )
}

/// What a mode does with its log. A database that is only read may be on a disk that cannot be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// An engine with the topic that a command works on, and the groups of the topic's destinations.
#[derive(Debug, Clone)]
pub(crate) struct OpenLog {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) groups: Arc<dyn Groups>,
    pub(crate) log: Arc<dyn Log>,
}

/// Opens the log and its topic, and creates them if they are missing and may be created.
async fn open(config: &config::Log, access: Access) -> anyhow::Result<OpenLog> {
    let (engine, groups): (Arc<dyn Engine>, Arc<dyn Groups>) = match &config.store {
        config::Store::Sqlite { path, settings } => {
            let engine = match access {
                Access::Read => Sqlite::open_to_read(path).await?,
                Access::Write => Sqlite::open(path, *settings).await?,
            };
            (engine.clone(), Arc::new(SqliteGroups::new(engine)))
        }
        config::Store::Kafka(settings) => {
            let connected = Kafka::connect(settings.clone()).await;
            let engine = match connected {
                Err(unavailable @ OpenError::Unavailable(_)) => {
                    Err(unavailable).context("--url names the brokers of a Kafka cluster; `eventd up` needs none")?
                }
                connected => connected?,
            };
            (engine.clone(), Arc::new(KafkaGroups::new(engine)))
        }
    };
    let log = match engine.open(&config.topic, config.create).await {
        Err(missing @ OpenError::Missing { .. }) => {
            return Err(Misconfigured(format!("{missing}: make it, or let eventd make it with --create-topic")).into());
        }
        opened => opened?,
    };
    if let Some(asked) = config.partitions_asked {
        let there = log.partitions().await?;
        ensure!(
            there == asked,
            Misconfigured(format!(
                "--partitions {asked}: the topic {:?} has {there} already, and the partitions of a user's events must \
                 not change: leave the flag out, or write --partitions {there}",
                config.topic
            ))
        );
    }
    Ok(OpenLog { engine, groups, log })
}

/// Takes the destination's place, as soon as the log allows it; with `standby`, as soon as nobody else holds it.
async fn hold(opened: &OpenLog, delivery: &Delivery, standby: bool) -> Result<JoinedDestination, JoinError> {
    let log_limiter = LogLimiter::default();
    loop {
        match hold_once(opened, delivery, standby).await {
            Err(JoinError::Unavailable(failure)) if failure.code != "log-lost" => {
                if let Some(suppressed) = log_limiter.allows("not started") {
                    let (destination, every) = (&delivery.spec.name, limits::RESTART_AFTER);
                    tracing::warn!(%destination, suppressed, "not started: {failure}; trying again every {every:?}");
                }
                tokio::time::sleep(limits::RESTART_AFTER).await;
            }
            joined => return joined,
        }
    }
}

async fn hold_once(opened: &OpenLog, delivery: &Delivery, standby: bool) -> Result<JoinedDestination, JoinError> {
    match join(opened, delivery, WhenHeld::Fail).await {
        Err(JoinError::Held { name, holder }) if standby => {
            tracing::info!(destination = name, held_by = holder.map(|holder| holder.pid), "standing by");
            join(opened, delivery, WhenHeld::Standby).await
        }
        joined => joined,
    }
}

/// Opens the destination, whose place is taken, and delivers to it until `stop`. Dropping the future stops at once.
pub(crate) async fn deliver(
    opened: OpenLog,
    joined: JoinedDestination,
    delivery: Delivery,
    signals: Signals,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let (spec, settings) = (delivery.spec.clone(), delivery.settings.clone());
    // It looks at files, and blocks for as long as they do.
    let destination = tokio::task::spawn_blocking(move || destination::open(&spec, &settings)).await??;
    let OpenLog { engine, log, .. } = opened;
    let JoinedDestination { group, first_start } = joined;
    let name = group.name().to_owned();
    if matches!(delivery.spec.target, Target::Http(_)) {
        replay::signing::note(&*engine, &*log, &name, delivery.settings.secret.is_some()).await;
    }
    tracing::info!(destination = %name, to = %delivery.spec, "delivering");
    if let Some(drill) = delivery.settings.drill {
        tracing::warn!(
            destination = name,
            one_in = drill.one_in,
            seed = drill.seed,
            "drill: events fail on purpose; --reliability-seed repeats it"
        );
    }
    let parts = Parts { engine, log: log.clone(), group, destination: destination.clone() };
    tokio::select! {
        biased;
        never = first_start.tell(&*log, delivery.dispatch.start, &name, &delivery.spec) => match never {},
        why = destination.lost() => Err(anyhow!("the destination cannot be delivered to any more: {why}")),
        ended = dispatch::run(parts, delivery.dispatch, stop) => ended,
        never = reopen(&*destination, signals) => match never {},
    }
}

async fn reopen(destination: &dyn Destination, signals: Signals) -> std::convert::Infallible {
    let mut reopens = signals.reopens();
    loop {
        reopens.next().await;
        destination.reopen();
    }
}
