//! Serves one connection, request by request.
//!
//! ```text
//!  head ── host, path, method, headers ── body ── parse ── append ──▶ 200, or 503 with the outcome of every event
//!                  │                       │       │         └── continues if the client goes away
//!                  └── 4xx ◀───────────────┴───────┘
//! ```
//!
//! A request may have both `Content-Length` and `Transfer-Encoding`. A proxy in front may then disagree with eventd on
//! where the request ends, and a client could hide a second request in the first (request smuggling). hyper follows
//! RFC 9112, section 6.3: it uses `Transfer-Encoding`, ignores `Content-Length`, and closes the connection after the
//! answer. So nothing that follows such a request is ever taken for a request.

use super::appender;
use super::body::{self, BodyLimits};
use super::connections::{Activity, ConnectionTable, OpenConnection};
use super::event_batch::{EventBatch, EventRules, RequestContext};
use super::parse::{self, BodyFormat};
use super::pending::PendingBudget;
use super::problem::{APPEND_BROKEN, PARTITION_COUNT_CHANGED, Problem};
use super::response::EventResults;
use super::stream::ClientStream;
use super::uploads::UploadBudget;
use super::{Config, host, request};
use crate::clock::now_ms;
use crate::core::outcome::Failure;
use crate::limits::HTTP_BUFFER_BYTES_MAX;
use crate::log::Log;
use crate::log_limiter::LogLimiter;
use bytes::Bytes;
use http::header::EXPECT;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

/// Bytes of a body that is parsed on the connection's own thread, which takes a millisecond at most. A larger body is
/// handed to another thread; for a smaller one that would cost more than it helps.
const INLINE_PARSE_BYTES_MAX: usize = 256 * 1024;

/// A longer `--header-timeout` is cut to this, because the time-out is added to a clock that must not overflow.
const HEADER_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// How long the client may take to read an answer, from the first write that finds no room. An answer is small compared
/// with the kernel's buffers, so a client that takes longer has stopped reading. Without this limit it would hold one
/// of `--max-connections` for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What all connections of one ingest share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) log: Arc<dyn Log>,
    pub(super) config: Config,
    /// The topic's partition count when ingest started. Users are hashed with this number.
    pub(super) partitions: u32,
    /// Whether the topic has another partition count now. Events of one user would then go to two partitions.
    pub(super) partitions_changed: AtomicBool,
    pub(super) connections: Arc<ConnectionTable>,
    pub(super) uploads: Arc<UploadBudget>,
    pub(super) pending: Arc<PendingBudget>,
    /// Bounds how many large bodies are parsed at the same time, because a body and its events are in memory together
    /// meanwhile.
    pub(super) large_parses: Arc<Semaphore>,
    pub(super) log_limiter: LogLimiter,
}

/// Serves one connection until it ends. When `stopping` becomes true, the connection ends after its current request.
///
/// `on_loopback` says whether the listener has a loopback address: such a listener takes requests for this machine
/// only. The connection is closed early if it is evicted for another one.
pub(super) async fn serve(
    stream: TcpStream,
    connection: OpenConnection,
    on_loopback: bool,
    server: Arc<Server>,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection ended before its first request");
        return;
    }
    let header_timeout = server.config.header_timeout.min(HEADER_TIMEOUT_MAX);
    let activity = connection.activity();
    let stream = ClientStream::new(stream, WRITE_TIMEOUT, activity.clone());
    let service = service_fn(|request| {
        let server = server.clone();
        async move {
            activity.begin_answer();
            let response = answer(&server, activity, request, on_loopback).await;
            activity.end_answer();
            Ok::<_, Infallible>(response)
        }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut http = pin!(http);
    // If the sender is gone, ingest has ended, so the connection stops too.
    let stop = async { stopping.wait_for(|stop| *stop).await.is_ok() };
    let ended = tokio::select! {
        biased;
        ended = &mut http => ended,
        () = activity.evicted() => {
            tracing::debug!("closed an idle connection to make room for a new one");
            return;
        }
        _ = stop => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        // The client went away, was too slow, or sent something that is not HTTP. hyper has answered if it could.
        tracing::debug!(%error, "a connection broke off");
    }
}

async fn answer(
    server: &Arc<Server>,
    activity: &Activity,
    request: Request<Incoming>,
    on_loopback: bool,
) -> Response<Full<Bytes>> {
    let (head, mut body) = request.into_parts();
    let allowed_hosts = on_loopback.then_some(server.config.allowed_hosts.as_slice());
    let answered = match host::check(&head, allowed_hosts) {
        Ok(()) => store(server, activity, &head, &mut body).await,
        Err(problem) => Err(problem),
    };
    match answered {
        Ok(results) => results.response(),
        Err(problem) => {
            // A client that sent `Expect: 100-continue` sees the answer first and then sends no body.
            if !head.headers.contains_key(EXPECT) && !problem.closes() {
                body::discard(body);
            }
            // Refusing waits for nothing. Without this, a client that pipelines refused requests would keep the thread.
            tokio::task::yield_now().await;
            problem.response()
        }
    }
}

/// Reads the body, makes events of it and appends them. Returns the results if every event was stored.
async fn store(
    server: &Arc<Server>,
    activity: &Activity,
    head: &http::request::Parts,
    body: &mut Incoming,
) -> Result<EventResults, Box<Problem>> {
    let format = request::body_format(head)?;
    if server.partitions_changed.load(Ordering::Relaxed) {
        let detail = format!(
            "the topic had {} partitions when this ingest started and has another count now: restart ingest",
            server.partitions
        );
        return Err(Problem::new(PARTITION_COUNT_CHANGED, detail));
    }
    let Config { max_body_bytes, max_event_bytes, max_batch_events, body_timeout, partitioner, .. } = server.config;
    let mut pending = server.pending.reservation();
    let limits = BodyLimits { max_bytes: max_body_bytes, timeout: body_timeout };
    let body = body::read(body, limits, &server.uploads, &mut pending, activity).await?;
    let rules = EventRules {
        partitioner,
        partitions: server.partitions,
        max_event_bytes,
        max_batch_events,
        timestamp_ms: now_ms(),
    };
    let context = RequestContext {
        rules,
        traceparent: request::traceparent(&head.headers),
        replay_id: request::replay_id(&head.headers),
    };
    let batch = parse(server, body, format, context).await?;
    if !pending.resize(batch.pending_bytes()) {
        return Err(body::overloaded());
    }
    // The append runs in a task of its own, so that it continues if the client, and with it this future, goes away.
    let log = server.log.clone();
    let appended = tokio::spawn(async move {
        let EventBatch { records, partitions, ids } = batch;
        let outcomes = appender::append(log, records, &partitions).await;
        drop(pending);
        EventResults { ids, partitions, outcomes }
    });
    let results = appended.await.map_err(|error| {
        tracing::error!(%error, "an append broke off: its events may or may not be stored");
        let detail = "the append broke off, and the events may or may not be stored: see the log of eventd, then send \
                      them again";
        Problem::new(APPEND_BROKEN, detail)
    })?;
    let Some(failure) = results.first_failure().cloned() else { return Ok(results) };
    warn_not_stored(server, &failure);
    Err(Problem::of_log(&failure, results))
}

fn warn_not_stored(server: &Server, failure: &Failure) {
    if let Some(suppressed) = server.log_limiter.allows("append") {
        let (code, detail) = (failure.code.as_str(), &failure.detail);
        let topic = server.log.topic();
        tracing::warn!(topic, code, detail, suppressed, "the log did not store every event of a request");
    }
}

/// Makes events of a body. A large body is parsed on a blocking thread, so that other connections are served meanwhile.
async fn parse(
    server: &Server,
    body: Bytes,
    format: BodyFormat,
    context: RequestContext<'_>,
) -> Result<EventBatch, Box<Problem>> {
    if body.len() <= INLINE_PARSE_BYTES_MAX {
        return parse::batch(&body, format, context);
    }
    let permit = server.large_parses.clone().acquire_owned().await.expect("the semaphore is never closed");
    let rules = context.rules;
    let (traceparent, replay_id) = (context.traceparent.map(str::to_owned), context.replay_id.map(str::to_owned));
    let parsed = tokio::task::spawn_blocking(move || {
        // The thread keeps the permit to its end, even if the client goes away first.
        let _permit = permit;
        let context = RequestContext { rules, traceparent: traceparent.as_deref(), replay_id: replay_id.as_deref() };
        parse::batch(&body, format, context)
    });
    parsed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
