//! The connections to one server: opens them, keeps unused ones, and reads the rest of responses so that their connections
//! can be used again.

use super::RESPONSE_REST_MAX;
use super::connection::{self, HttpConnection, RemainingBody};
use super::connector::Connector;
use super::failure_text;
use crate::core::slots::attempts_max;
use crate::destination::{ConfigurationError, DestinationSettings};
use crate::limits::{ANSWER_DRAINS_MAX, CONNECTION_IDLE_MAX};
use crate::net;
use http::Uri;
use hyper::client::conn::http1;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

/// The time to connect, if `--attempt-timeout` allows more. A short limit distinguishes early between a host that is gone
/// and one that is slow.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// The limit on background reads as a multiple of `--concurrency`. If file descriptors are few, eventd lowers
/// `--concurrency`, and this limit with it.
const BACKGROUND_READS_FACTOR: usize = 4;

pub(super) struct ConnectionPool {
    connector: Connector,
    uri: Uri,
    protocol: http1::Builder,
    idle: Arc<Mutex<IdleConnections>>,
    /// The task that closes connections which were unused for too long. Like all tasks here, it ends with the pool.
    sweeper: OnceLock<JoinSet<()>>,
    background_reads_max: usize,
    /// Each task reads the rest of one response.
    background_reads: Mutex<JoinSet<()>>,
}

/// The maximum number of connections of a destination, used and unused.
pub(in crate::destination) fn connections_max(concurrency: usize) -> usize {
    attempts_max(concurrency).saturating_add(background_reads_max(concurrency))
}

/// The maximum number of responses whose rest is read in the background at the same time.
fn background_reads_max(concurrency: usize) -> usize {
    ANSWER_DRAINS_MAX.min(BACKGROUND_READS_FACTOR.saturating_mul(concurrency))
}

impl ConnectionPool {
    /// Creates the pool. It does not connect yet.
    pub(super) fn new(uri: &Uri, settings: &DestinationSettings) -> Result<Self, ConfigurationError> {
        let tls = match uri.scheme_str() == Some("https") {
            true => net::TlsFiles { ca_file: settings.ca_file.clone(), identity: None }.config(),
            false => net::no_tls(),
        };
        let connector =
            Connector::new(tls.map_err(ConfigurationError)?, settings.attempt_timeout.min(CONNECT_TIMEOUT_MAX));
        Ok(Self {
            connector,
            uri: uri.clone(),
            protocol: connection::protocol(),
            idle: Arc::new(Mutex::new(IdleConnections { connections: VecDeque::new(), max: settings.concurrency })),
            sweeper: OnceLock::new(),
            background_reads_max: background_reads_max(settings.concurrency),
            background_reads: Mutex::default(),
        })
    }

    /// Takes the unused connection that was used last, if there is one that is still open.
    pub(super) async fn take(&self) -> Option<Box<HttpConnection>> {
        loop {
            let mut connection = lock(&self.idle).take(Instant::now())?;
            if poll_fn(|context| Poll::Ready(connection.is_usable(context))).await {
                return Some(connection);
            }
        }
    }

    /// Opens a new connection, including TLS. The error is text for people.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<Box<HttpConnection>, String> {
        self.sweeper.get_or_init(|| {
            let mut tasks = JoinSet::new();
            tasks.spawn(close_unused(Arc::clone(&self.idle)));
            tasks
        });
        let stream = self.connector.connect(&self.uri, deadline).await?;
        let connection = HttpConnection::new(stream, &self.protocol).await;
        connection.map(Box::new).map_err(|error| failure_text::chain(&error))
    }

    /// Whether the URL begins with `http://`.
    pub(super) fn is_plain(&self) -> bool {
        self.uri.scheme_str() == Some("http")
    }

    /// `host:port` of the server.
    pub(super) fn address(&self) -> String {
        failure_text::address(&self.uri)
    }

    /// Closes all unused connections. One of them was dead, so the others probably are too.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut lock(&self.idle).connections);
        drop(closed);
    }

    /// Keeps the connection if the rest of its response can be read.
    ///
    /// This does not wait for the server. If bytes are still missing, a background task reads them, for a short time and
    /// for a limited number of connections at once. Beyond these limits the connection is closed.
    pub(super) async fn finish(&self, mut connection: Box<HttpConnection>, mut rest: RemainingBody) {
        match poll_fn(|context| Poll::Ready(connection.poll_rest(context, &mut rest))).await {
            Poll::Ready(true) => keep(&self.idle, connection),
            Poll::Ready(false) => {}
            Poll::Pending => self.read_in_background(connection, rest),
        }
    }

    fn read_in_background(&self, mut connection: Box<HttpConnection>, mut rest: RemainingBody) {
        let mut reads = lock(&self.background_reads);
        // Ended tasks are removed. They have no result. If one panicked, the panic hook has logged it.
        while reads.try_join_next().is_some() {}
        if reads.len() >= self.background_reads_max {
            return;
        }
        let idle = Arc::clone(&self.idle);
        reads.spawn(async move {
            let complete =
                timeout(RESPONSE_REST_MAX, poll_fn(|context| connection.poll_rest(context, &mut rest))).await;
            if complete == Ok(true) {
                keep(&idle, connection);
            }
        });
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool").field("idle", &lock(&self.idle).connections.len()).finish_non_exhaustive()
    }
}

/// Connections without a request, each with the time since when. The one that was used last is at the end.
struct IdleConnections {
    connections: VecDeque<(Instant, Box<HttpConnection>)>,
    max: usize,
}

impl IdleConnections {
    fn take(&mut self, now: Instant) -> Option<Box<HttpConnection>> {
        let (since, connection) = self.connections.pop_back()?;
        (since + CONNECTION_IDLE_MAX > now).then_some(connection)
    }
}

fn keep(idle: &Mutex<IdleConnections>, mut connection: Box<HttpConnection>) {
    if connection.become_idle() {
        let mut idle = lock(idle);
        if idle.connections.len() < idle.max {
            idle.connections.push_back((Instant::now(), connection));
        }
    }
}

/// Closes connections that were unused for too long, even while there are no events to send.
async fn close_unused(idle: Arc<Mutex<IdleConnections>>) {
    let mut turn = interval(CONNECTION_IDLE_MAX / 2);
    loop {
        let now = turn.tick().await;
        let mut idle = lock(&idle);
        while idle.connections.front().is_some_and(|(since, _)| *since + CONNECTION_IDLE_MAX <= now) {
            idle.connections.pop_front();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
