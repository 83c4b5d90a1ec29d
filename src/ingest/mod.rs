//! Takes events in over HTTP and answers once they are in the log.
//!
//! ```text
//!  listeners ─▶ accept (--max-connections) ─▶ server: one task a connection
//!                │                              body ─▶ parse ─▶ appender ─▶ log: partition = hash(user)
//!                │                              │    └── pending: bytes from here ──┘ to here, --max-pending
//!                │                              └── uploads: bytes until the body is complete, as much again
//!                └── connections: if all are taken, the one that waited for its client for longest is closed
//! ```
//!
//! A 200 means that every event of the request is durable; anything else says what became of each, or that nothing
//! was stored. `docs/http-api.md` is the contract with clients.

mod appender;
mod body;
mod connections;
mod framing;
mod host;
pub(crate) mod listen;
mod pace;
mod parse;
mod pending;
mod problem;
mod server;
mod uploads;

use crate::core::outcome::Ended;
use crate::core::partition::Partitioner;
use crate::limits::{ACCEPT_RETRY_DELAY, PARTITION_COUNT_CHECK_INTERVAL};
use crate::log::Log;
use crate::log_limiter::LogLimiter;
use anyhow::{Context as _, ensure};
use connections::Connections;
use pending::Pending;
use server::Shared;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use uploads::Uploads;

/// The checked configuration of ingest.
#[derive(Debug, Clone)]
pub struct Config {
    pub max_body_bytes: usize,
    pub max_event_bytes: usize,
    pub max_batch_events: usize,
    /// Bytes accepted and not yet appended. Bodies that are still arriving may hold as much again.
    pub max_pending_bytes: usize,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub partitioner: Partitioner,
    /// Hosts that a listener on a loopback address takes requests for, in addition to localhost and the loopback
    /// addresses.
    pub allowed_hosts: Vec<String>,
    /// How long a stop waits for what was accepted.
    pub drain: Duration,
}

/// Serves the listeners until `shutdown` is ready, then accepts no more, lets the requests that have begun end within
/// `--drain`, and closes the idle connections. Dropping the future stops at once; appends that have begun go on.
///
/// # Errors
///
/// At start, where the topic's partition count cannot be read. Later nothing ends it: failures of the log are answers.
pub async fn run(
    listeners: Vec<TcpListener>,
    log: Arc<dyn Log>,
    mut config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    ensure!(!listeners.is_empty(), "ingest has no address to listen on");
    let partitions = log.partitions().await;
    let partitions = partitions.with_context(|| format!("cannot read the partitions of topic {:?}", log.topic()))?;
    ensure!(partitions > 0, "topic {:?} has no partitions", log.topic());
    let drain = config.drain;
    let record_bytes_max = log.append_limits().record_bytes_max;
    if record_bytes_max < config.max_event_bytes {
        let topic = log.topic();
        tracing::info!(topic, record_bytes_max, "the topic takes smaller events than --max-event says");
        config.max_event_bytes = record_bytes_max;
    }
    let shared = Arc::new(Shared {
        log,
        partitions,
        partitions_changed: AtomicBool::new(false),
        connections: Connections::new(),
        uploads: Uploads::new(config.max_pending_bytes),
        pending: Pending::new(config.max_pending_bytes),
        large_parses: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
        log_limiter: LogLimiter::default(),
        config,
    });
    let (stop, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::select! {
        biased;
        () = pin!(shutdown) => {}
        never = accept(&listeners, &shared, &stop, &mut connections) => match never {},
        never = watch_partition_count(&shared) => match never {},
    }
    drop(listeners);
    stop.send_replace(true);
    let ended = async {
        while connections.join_next().await.is_some() {}
        shared.pending.emptied().await;
    };
    match timeout(drain, ended).await {
        Ok(()) => Ok(Ended::Drained),
        Err(_) => {
            tracing::warn!(connections = connections.len(), "stopped before every request was answered (--drain)");
            Ok(Ended::WorkLeft)
        }
    }
}

/// How often it is looked for a connection that can give way, while a new one waits.
const ROOM_POLL: Duration = Duration::from_millis(20);

/// Accepts connections for ever. If `--max-connections` are open, the one that has waited for its client for longest
/// gives way; as long as none can, one new connection waits here, and others in the backlog.
async fn accept(
    listeners: &[TcpListener],
    shared: &Arc<Shared>,
    stop: &watch::Sender<bool>,
    connections: &mut JoinSet<()>,
) -> std::convert::Infallible {
    let free = Arc::new(Semaphore::new(shared.config.max_connections.min(Semaphore::MAX_PERMITS)));
    let on_loopback =
        |listener: &TcpListener| listener.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback());
    let on_loopback: Vec<bool> = listeners.iter().map(on_loopback).collect();
    let mut turn = 0;
    loop {
        match accept_any(listeners, &mut turn).await {
            Ok((stream, listener)) => {
                let permit = room(&free, shared).await;
                let connection = shared.connections.open();
                let serving =
                    server::serve(stream, connection, on_loopback[listener], shared.clone(), stop.subscribe());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "a connection was gone at once"),
            Err(error) => {
                if let Some(suppressed) = shared.log_limiter.allows("accept") {
                    tracing::warn!(%error, suppressed, "cannot accept connections: trying again");
                }
                // A connection less is a descriptor more.
                shared.connections.make_room();
                tokio::select! {
                    () = sleep(ACCEPT_RETRY_DELAY) => {}
                    Some(_) = connections.join_next() => {}
                }
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Room for one more connection. Whoever is idle for longest makes it.
async fn room(free: &Arc<Semaphore>, shared: &Shared) -> OwnedSemaphorePermit {
    if let Ok(permit) = free.clone().try_acquire_owned() {
        return permit;
    }
    loop {
        if !shared.connections.make_room()
            && let Some(suppressed) = shared.log_limiter.allows("connections")
        {
            let max = shared.config.max_connections;
            tracing::warn!(max, suppressed, "all connections are in use (--max-connections): new clients wait");
        }
        if let Ok(permit) = timeout(ROOM_POLL, free.clone().acquire_owned()).await {
            return permit.expect("the semaphore is never closed");
        }
    }
}

/// The next connection of any listener, and which listener it was; each is asked first in turn, so that none starves
/// another.
async fn accept_any(listeners: &[TcpListener], turn: &mut usize) -> io::Result<(TcpStream, usize)> {
    *turn = (*turn + 1) % listeners.len();
    std::future::poll_fn(|cx| {
        for index in (*turn..listeners.len()).chain(0..*turn) {
            if let Poll::Ready(accepted) = listeners[index].poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, _)| (stream, index)));
            }
        }
        Poll::Pending
    })
    .await
}

/// Errors of accepting that concern the connection and not the listener: the next one may be taken at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Looks from time to time whether the topic still has the count that users are hashed with. Once it has not, nothing
/// is taken until a restart: the old count would send a user's events where other producers do not.
async fn watch_partition_count(shared: &Shared) -> std::convert::Infallible {
    let mut ticks = interval(PARTITION_COUNT_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match shared.log.partitions().await {
            Ok(now) if now != shared.partitions => {
                if !shared.partitions_changed.swap(true, Ordering::Relaxed) {
                    let (then, topic) = (shared.partitions, shared.log.topic());
                    tracing::error!(topic, then, now, "the partition count changed: restart ingest");
                }
            }
            Ok(_) => {}
            // Appends fail too, and say so.
            Err(failure) => tracing::debug!(%failure, "cannot read the partition count"),
        }
    }
}
