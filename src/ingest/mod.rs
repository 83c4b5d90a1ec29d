//! Accepts events over HTTP, and answers when they are in the log.
//!
//! ```text
//!  listen ─▶ accept: --max-connections ─▶ server: one task for each connection
//!              │                            stream ─▶ hyper ─▶ host, request ─▶ body ─▶ parse ─▶ appender ─▶ log
//!              │                                                                 │
//!              │                  the bytes of a body that is still arriving ── uploads
//!              │          from a complete body to the end of its append ────── pending: --max-pending
//!              └── connections: chooses the idle connection that is closed for a new one
//! ```
//!
//! A 200 means that every event of the request is durable. Every other answer says what became of each event, or that
//! nothing was stored. `docs/http-api.md` is the contract with clients.

mod appender;
mod body;
mod connections;
mod event_batch;
mod host;
pub(crate) mod listen;
mod min_rate;
mod parse;
mod pending;
mod problem;
mod request;
mod response;
mod server;
mod stream;
mod uploads;

use crate::core::outcome::Ended;
use crate::core::partition::Partitioner;
use crate::limits::PARTITION_COUNT_CHECK_INTERVAL;
use crate::log::Log;
use crate::log_limiter::LogLimiter;
use anyhow::{Context as _, ensure};
use connections::ConnectionTable;
use pending::PendingBudget;
use server::Server;
use std::convert::Infallible;
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
use uploads::UploadBudget;

/// How long ingest waits before it accepts again after the system had no file descriptor or memory for a connection: at
/// once it would fail in the same way.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// How often a waiting new connection looks for an old one to evict. Old ones become idle without an event that would
/// wake it.
const EVICTION_POLL: Duration = Duration::from_millis(20);

/// The checked configuration of ingest.
#[derive(Debug, Clone)]
pub struct Config {
    /// The largest body, in bytes.
    pub max_body_bytes: usize,
    /// The largest event, in bytes: user, payload and headers.
    pub max_event_bytes: usize,
    /// The most events in one request.
    pub max_batch_events: usize,
    /// Bytes that are accepted and not yet appended. Bodies that are still arriving may hold as much again.
    pub max_pending_bytes: usize,
    /// The most connections that are open at the same time.
    pub max_connections: usize,
    /// How long a client may take to send the head of a request, and how long a connection may be idle.
    pub header_timeout: Duration,
    /// How long a client may take to send a body.
    pub body_timeout: Duration,
    /// Chooses the partition of a user.
    pub partitioner: Partitioner,
    /// Hosts that a listener on a loopback address accepts in addition to localhost and the loopback addresses.
    pub allowed_hosts: Vec<String>,
    /// How long a stop waits for the requests that have begun.
    pub drain: Duration,
}

/// Serves `listeners` until `shutdown` is ready. Then it accepts no more connections, lets the requests that have begun
/// end within [`Config::drain`], and closes idle connections. Dropping the future stops at once, but appends that have
/// begun continue.
///
/// # Errors
///
/// There is no listener, or the topic's partition count cannot be read. After the start nothing ends ingest: a failure
/// of the log is an answer to the request.
pub async fn run(
    listeners: Vec<TcpListener>,
    log: Arc<dyn Log>,
    mut config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    ensure!(!listeners.is_empty(), "ingest has no address to listen on");
    let partitions = log.partitions().await;
    let partitions =
        partitions.with_context(|| format!("cannot read the partition count of topic {:?}", log.topic()))?;
    ensure!(partitions > 0, "topic {:?} has no partitions", log.topic());
    let drain = config.drain;
    let record_bytes_max = log.append_limits().record_bytes_max;
    if record_bytes_max < config.max_event_bytes {
        let (topic, max_event_bytes) = (log.topic(), config.max_event_bytes);
        tracing::info!(
            topic,
            max_event_bytes,
            record_bytes_max,
            "the topic accepts only smaller events than --max-event allows"
        );
        config.max_event_bytes = record_bytes_max;
    }
    let server = Arc::new(Server {
        log,
        partitions,
        partitions_changed: AtomicBool::new(false),
        connections: ConnectionTable::new(),
        uploads: UploadBudget::new(config.max_pending_bytes),
        pending: PendingBudget::new(config.max_pending_bytes),
        large_parses: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
        log_limiter: LogLimiter::default(),
        config,
    });
    let (stop, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::select! {
        biased;
        () = pin!(shutdown) => {}
        never = accept(&listeners, &server, &stop, &mut connections) => match never {},
        never = watch_partition_count(&server) => match never {},
    }
    drop(listeners);
    stop.send_replace(true);
    let ended = async {
        while connections.join_next().await.is_some() {}
        server.pending.emptied().await;
    };
    match timeout(drain, ended).await {
        Ok(()) => Ok(Ended::Drained),
        Err(_) => {
            let connections = connections.len();
            tracing::warn!(connections, "ingest stopped before every request was answered (--drain)");
            Ok(Ended::WorkLeft)
        }
    }
}

/// Accepts connections for ever. While `--max-connections` are open and none can be evicted, one new connection waits
/// here and the others in the kernel's backlog.
async fn accept(
    listeners: &[TcpListener],
    server: &Arc<Server>,
    stop: &watch::Sender<bool>,
    connections: &mut JoinSet<()>,
) -> Infallible {
    let slots = Arc::new(Semaphore::new(server.config.max_connections.min(Semaphore::MAX_PERMITS)));
    let is_on_loopback =
        |listener: &TcpListener| listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    let on_loopback: Vec<bool> = listeners.iter().map(is_on_loopback).collect();
    let mut first = 0;
    loop {
        match accept_any(listeners, &mut first).await {
            Ok((stream, listener)) => {
                let slot = free_slot(&slots, server).await;
                let connection = server.connections.open();
                let serving =
                    server::serve(stream, connection, on_loopback[listener], server.clone(), stop.subscribe());
                connections.spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                if let Some(suppressed) = server.log_limiter.allows("accept") {
                    tracing::warn!(%error, suppressed, "cannot accept connections: trying again");
                }
                // Closing a connection frees a file descriptor.
                server.connections.evict_one();
                tokio::select! {
                    () = sleep(ACCEPT_RETRY_DELAY) => {}
                    Some(_) = connections.join_next() => {}
                }
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A slot for one more connection. If there is none, the connection that is idle for the longest time is evicted.
async fn free_slot(slots: &Arc<Semaphore>, server: &Server) -> OwnedSemaphorePermit {
    if let Ok(slot) = slots.clone().try_acquire_owned() {
        return slot;
    }
    loop {
        if !server.connections.evict_one()
            && let Some(suppressed) = server.log_limiter.allows("connections")
        {
            let max_connections = server.config.max_connections;
            tracing::warn!(
                max_connections,
                suppressed,
                "all connections are in use (--max-connections): new clients must wait"
            );
        }
        if let Ok(slot) = timeout(EVICTION_POLL, slots.clone().acquire_owned()).await {
            return slot.expect("the semaphore is never closed");
        }
    }
}

/// The next connection of any listener, with the index of that listener. `first` is the listener that was asked first
/// the last time. Each is asked first in turn, so that a busy listener does not starve another.
async fn accept_any(listeners: &[TcpListener], first: &mut usize) -> io::Result<(TcpStream, usize)> {
    *first = (*first + 1) % listeners.len();
    std::future::poll_fn(|cx| {
        for index in (*first..listeners.len()).chain(0..*first) {
            if let Poll::Ready(accepted) = listeners[index].poll_accept(cx) {
                return Poll::Ready(accepted.map(|(stream, _)| (stream, index)));
            }
        }
        Poll::Pending
    })
    .await
}

/// Whether the error concerns one connection and not the listener. The next connection can then be accepted at once.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Checks at intervals that the topic still has the partition count with which users are hashed. After a change ingest
/// refuses everything until it is restarted, because it would send a user's events to another partition than other
/// producers do.
async fn watch_partition_count(server: &Server) -> Infallible {
    let mut ticks = interval(PARTITION_COUNT_CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match server.log.partitions().await {
            Ok(now) if now != server.partitions => {
                if !server.partitions_changed.swap(true, Ordering::Relaxed) {
                    let (before, topic) = (server.partitions, server.log.topic());
                    tracing::error!(topic, before, now, "the topic's partition count changed: restart ingest");
                }
            }
            Ok(_) => {}
            // If the log is gone, appends fail too, and those failures are reported.
            Err(failure) => tracing::debug!(%failure, "cannot read the partition count"),
        }
    }
}
