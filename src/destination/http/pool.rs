//! The connections to one server: opened, kept while unused, and freed of what is left of an answer.

use super::RESPONSE_REST_MAX;
use super::connection::{self, HttpConnection, RemainingBody};
use super::connector::Connector;
use super::failure_text;
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
const DRAINS_FACTOR: usize = 4;

pub(super) struct ConnectionPool {
    connector: Connector,
    uri: Uri,
    protocol: http1::Builder,
    idle: Arc<Mutex<IdleConnections>>,
    /// Closes what was unused for too long. It ends with the pool, as all tasks here.
    sweeper: OnceLock<JoinSet<()>>,
    drains_max: usize,
    /// Each reads the rest of one answer.
    drains: Mutex<JoinSet<()>>,
}

/// How many connections a destination has at most, used and unused.
pub(in crate::destination) fn connections_max(concurrency: usize) -> usize {
    concurrency.saturating_add(drains_max(concurrency))
}

/// How many answers' rests are read at a time.
fn drains_max(concurrency: usize) -> usize {
    ANSWER_DRAINS_MAX.min(DRAINS_FACTOR.saturating_mul(concurrency))
}

impl ConnectionPool {
    /// Connects to nothing yet.
    pub(super) fn new(uri: &Uri, settings: &DestinationSettings) -> Result<Self, ConfigurationError> {
        let is_https = uri.scheme_str() == Some("https");
        let tls = match is_https {
            true => net::TlsFiles { ca_file: settings.ca_file.clone(), identity: None }.config(),
            false => net::no_tls(),
        };
        let connector =
            Connector::new(tls.map_err(ConfigurationError)?, settings.attempt_timeout.min(CONNECT_TIMEOUT_MAX));
        Ok(Self {
            connector,
            uri: uri.clone(),
            protocol: connection::protocol(),
            idle: Arc::new(Mutex::new(IdleConnections { links: VecDeque::new(), max: settings.concurrency })),
            drains_max: drains_max(settings.concurrency),
            sweeper: OnceLock::new(),
            drains: Mutex::default(),
        })
    }

    /// The connection that was used last, if one is unused and still open.
    pub(super) async fn take(&self) -> Option<Box<HttpConnection>> {
        loop {
            let mut link = lock(&self.idle).take(Instant::now())?;
            if poll_fn(|context| Poll::Ready(link.is_usable(context))).await {
                return Some(link);
            }
        }
    }

    /// Opens a new connection, TLS included. The error is for people.
    pub(super) async fn connect(&self, deadline: Instant) -> Result<Box<HttpConnection>, String> {
        self.sweeper.get_or_init(|| {
            let mut tasks = JoinSet::new();
            tasks.spawn(sweep(Arc::clone(&self.idle)));
            tasks
        });
        let stream = self.connector.connect(&self.uri, deadline).await?;
        HttpConnection::new(stream, &self.protocol).await.map(Box::new).map_err(|error| failure_text::chain(&error))
    }

    /// Whether the URL says `http://`.
    pub(super) fn is_plain(&self) -> bool {
        self.uri.scheme_str() == Some("http")
    }

    /// `host:port` of the server.
    pub(super) fn address(&self) -> String {
        failure_text::address(&self.uri)
    }

    /// Closes all unused connections: one of them turned out to be dead, so the others are likely to be.
    pub(super) fn clear(&self) {
        let dead = std::mem::take(&mut lock(&self.idle).links);
        drop(dead);
    }

    /// Keeps the connection once the rest of its answer has been read. Nobody waits for that: what is not there yet is read
    /// in the background, for a short time and for a few connections at once. Otherwise the connection is closed.
    pub(super) async fn finish(&self, mut link: Box<HttpConnection>, mut rest: RemainingBody) {
        match poll_fn(|context| Poll::Ready(link.poll_rest(context, &mut rest))).await {
            Poll::Ready(true) => keep(&self.idle, link),
            Poll::Ready(false) => {}
            Poll::Pending => self.drain(link, rest),
        }
    }

    fn drain(&self, mut link: Box<HttpConnection>, mut rest: RemainingBody) {
        let mut drains = lock(&self.drains);
        // Those that are over; they have no result. A panic in one was told by the panic hook and cost its connection.
        while drains.try_join_next().is_some() {}
        if drains.len() >= self.drains_max {
            return;
        }
        let idle = Arc::clone(&self.idle);
        drains.spawn(async move {
            let whole = timeout(RESPONSE_REST_MAX, poll_fn(|context| link.poll_rest(context, &mut rest))).await;
            if whole == Ok(true) {
                keep(&idle, link);
            }
        });
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool").field("idle", &lock(&self.idle).links.len()).finish_non_exhaustive()
    }
}

/// Connections that wait for a request, the one that was used last at the end.
struct IdleConnections {
    links: VecDeque<(Instant, Box<HttpConnection>)>,
    max: usize,
}

impl IdleConnections {
    fn take(&mut self, now: Instant) -> Option<Box<HttpConnection>> {
        let (since, link) = self.links.pop_back()?;
        (since + CONNECTION_IDLE_MAX > now).then_some(link)
    }
}

fn keep(idle: &Mutex<IdleConnections>, mut link: Box<HttpConnection>) {
    if link.rest_idle() {
        let mut idle = lock(idle);
        if idle.links.len() < idle.max {
            idle.links.push_back((Instant::now(), link));
        }
    }
}

/// Closes connections that were unused for too long, also while there is no event to send.
async fn sweep(idle: Arc<Mutex<IdleConnections>>) {
    let mut turn = interval(CONNECTION_IDLE_MAX / 2);
    loop {
        let now = turn.tick().await;
        let mut idle = lock(&idle);
        while idle.links.front().is_some_and(|(since, _)| *since + CONNECTION_IDLE_MAX <= now) {
            idle.links.pop_front();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
