//! Answers the requests of one connection.
//!
//! ```text
//!  head ── length said twice? host, path, method, type ── body ── records ── append ──▶ 200, or 503 with every outcome
//!               └──────────── 4xx ◀──────────────────┴────────┘          └ goes on where the client goes away
//! ```

use super::Config;
use super::appender::{self, Outcome};
use super::body::{self, Bounds};
use super::connections::{Activity, Connection, Connections};
use super::framing::Watched;
use super::host;
use super::parse::{self, Batch, Context, Format, Rules};
use super::pending::Pending;
use super::problem::{
    AMBIGUOUS_LENGTH, EVENT_TOO_LARGE, Kind, METHOD_NOT_ALLOWED, NOT_FOUND, PARTITION_COUNT_CHANGED, Problem,
    REPEATED_HEADER, UNSUPPORTED_MEDIA_TYPE, echo, not_stored, put_number, put_text,
};
use super::uploads::Uploads;
use crate::clock::now_ms;
use crate::core::event;
use crate::core::outcome::{Certainty, Failure};
use crate::limits::{
    ANSWER_WRITE_MAX, HEADER_TIMEOUT_MAX, HTTP_BUFFER_BYTES_MAX, REPLAY_ID_CHARS_MAX, TRACEPARENT_BYTES_MAX,
};
use crate::log::Log;
use crate::log_limiter::LogLimiter;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

/// Bytes of a body that is parsed where it was read, which takes a millisecond at most. For less, handing it to another
/// thread would cost more than it helps.
const PARSED_AT_ONCE_BYTES_MAX: usize = 256 * 1024;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) log: Arc<dyn Log>,
    pub(super) config: Config,
    /// The topic's partition count when ingest started: users are hashed with this one.
    pub(super) partitions: u32,
    /// The topic has another count now: a user's events would go to two partitions.
    pub(super) partitions_changed: AtomicBool,
    pub(super) connections: Arc<Connections>,
    pub(super) uploads: Arc<Uploads>,
    pub(super) pending: Arc<Pending>,
    /// Large bodies that are parsed at a time, one for each processor: while a body is parsed, it and its events exist
    /// side by side.
    pub(super) large_parses: Arc<Semaphore>,
    pub(super) log_limiter: LogLimiter,
}

/// Serves one connection until it ends; from `stopping` on, it ends with the request that is under way.
/// `on_loopback` says whether the listener has a loopback address, which takes requests for this machine only.
///
/// `connection` gives way to another one if it waits for its client.
pub(super) async fn serve(
    stream: TcpStream,
    connection: Connection,
    on_loopback: bool,
    shared: Arc<Shared>,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "the connection is gone already");
        return;
    }
    let header_timeout = shared.config.header_timeout.min(HEADER_TIMEOUT_MAX);
    let activity = connection.activity();
    let (stream, mark) = Watched::new(stream, ANSWER_WRITE_MAX, activity.clone());
    let requests = AtomicU64::new(0);
    let service = service_fn(|request| {
        let ambiguous = mark.is_on(requests.fetch_add(1, Ordering::Relaxed) + 1);
        let shared = shared.clone();
        async move {
            activity.begin_answer();
            let response = answer(&shared, activity, request, ambiguous, on_loopback).await;
            activity.end_answer();
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HTTP_BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // An error means that nobody is left who could say stop, which is a stop too.
    let stop = async { stopping.wait_for(|stop| *stop).await.is_ok() };
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = activity.gives_way() => {
            tracing::debug!("an idle connection gave way to a new one");
            return;
        }
        _ = stop => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients go away, are slow or speak no HTTP: their affair, and hyper has answered where it could.
        tracing::debug!(%error, "a connection broke off");
    }
}

async fn answer(
    shared: &Arc<Shared>,
    activity: &Activity,
    request: Request<Incoming>,
    ambiguous: bool,
    on_loopback: bool,
) -> Response<Full<Bytes>> {
    let (head, mut body) = request.into_parts();
    if ambiguous {
        let detail = "the request has both Content-Length and Transfer-Encoding: send one of them";
        return Problem::new(AMBIGUOUS_LENGTH, detail).close().response();
    }
    let allowed_hosts = on_loopback.then_some(shared.config.allowed_hosts.as_slice());
    let taken = match host::check(&head, allowed_hosts) {
        Ok(()) => take(shared, activity, &head, &mut body).await,
        Err(problem) => Err(problem),
    };
    match taken {
        Ok(response) => response,
        Err(problem) => {
            // A client that waits to be asked for the body sees the answer first, and sends none.
            if !head.headers.contains_key(EXPECT) && !problem.closes() {
                body::discard(body);
            }
            // A refusal waits for nothing: pipelined requests that are refused would follow each other without a pause.
            tokio::task::yield_now().await;
            problem.response()
        }
    }
}

async fn take(
    shared: &Arc<Shared>,
    activity: &Activity,
    head: &http::request::Parts,
    body: &mut Incoming,
) -> Result<Response<Full<Bytes>>, Box<Problem>> {
    let format = route(head)?;
    if shared.partitions_changed.load(Ordering::Relaxed) {
        let detail = format!(
            "the topic had {} partitions when this ingest started and has another count now: restart it",
            shared.partitions
        );
        return Err(Problem::new(PARTITION_COUNT_CHANGED, detail));
    }
    let Config { max_body_bytes, max_event_bytes, max_batch_events, body_timeout, partitioner, .. } = shared.config;
    let mut reservation = shared.pending.reservation();
    let bounds = Bounds { max_bytes: max_body_bytes, timeout: body_timeout };
    let body = body::read(body, bounds, &shared.uploads, &mut reservation, activity).await?;
    let rules =
        Rules { partitioner, partitions: shared.partitions, max_event_bytes, max_batch_events, timestamp_ms: now_ms() };
    let context = Context { rules, traceparent: traceparent(&head.headers), replay: replay(&head.headers) };
    let batch = parse(shared, body, format, context).await?;
    if !reservation.replace(batch.pending_bytes()) {
        return Err(body::overloaded());
    }
    // A task of its own: an append that has begun goes on though the client, and with it this future, goes away.
    let log = shared.log.clone();
    let appended = tokio::spawn(async move {
        let Batch { records, partitions, ids } = batch;
        let outcomes = appender::append(log, records, &partitions).await;
        drop(reservation);
        (ids, partitions, outcomes)
    });
    let (ids, partitions, outcomes) = appended.await.map_err(|error| {
        tracing::error!(%error, "an append broke off");
        let detail = "the append broke off: the events may be stored all the same; see the log of eventd";
        Problem::new(not_stored("append-broken"), detail)
    })?;
    let first_failure = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
    match first_failure {
        None => Ok(stored(&results(ids.iter(), &partitions, &outcomes, false))),
        Some(failure) => {
            if let Some(suppressed) = shared.log_limiter.allows("append") {
                let Failure { code, detail, .. } = &**failure;
                tracing::warn!(
                    code,
                    detail,
                    suppressed,
                    topic = shared.log.topic(),
                    "the log did not take every event"
                );
            }
            Err(partly_stored(failure, results(ids.iter(), &partitions, &outcomes, true)))
        }
    }
}

/// Makes the events of a body: a large one on a thread of its own, so that other connections are served meanwhile.
async fn parse(shared: &Shared, body: Bytes, format: Format, context: Context<'_>) -> Result<Batch, Box<Problem>> {
    if body.len() <= PARSED_AT_ONCE_BYTES_MAX {
        return parse::batch(&body, format, context);
    }
    let turn = shared.large_parses.clone().acquire_owned().await.expect("the semaphore is never closed");
    let rules = context.rules;
    let (traceparent, replay) = (context.traceparent.map(str::to_owned), context.replay.map(str::to_owned));
    let parsed = tokio::task::spawn_blocking(move || {
        // Kept to the end, also if the client goes away.
        let _turn = turn;
        let context = Context { rules, traceparent: traceparent.as_deref(), replay: replay.as_deref() };
        parse::batch(&body, format, context)
    });
    parsed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn route(head: &http::request::Parts) -> Result<Format, Box<Problem>> {
    if head.uri.path() != "/events" {
        return Err(Problem::new(NOT_FOUND, format!("nothing at {:?}: POST /events", echo(head.uri.path()))));
    }
    if head.method != Method::POST {
        let method = echo(head.method.as_str());
        return Err(Problem::new(METHOD_NOT_ALLOWED, format!("{method} is not taken here: POST /events")));
    }
    // Two of them may say different things, and a proxy in between may have read the other one.
    for name in [CONTENT_TYPE, CONTENT_ENCODING] {
        if head.headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Problem::new(
                REPEATED_HEADER,
                format!("the request has more than one {name} header: send one"),
            ));
        }
    }
    if let Some(encoding) = head.headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let encoding = echo(&String::from_utf8_lossy(encoding.as_bytes()));
        let detail = format!("the content encoding {encoding:?} is not taken: send the body as it is");
        return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let given = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = String::from_utf8_lossy(given);
    let mut parts = given.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    // JSON is UTF-8; a parameter that says otherwise would have the bytes misread.
    let charset_taken = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        let value = value.trim_matches('"');
        !name.eq_ignore_ascii_case("charset")
            || ["utf-8", "utf8", "us-ascii"].iter().any(|set| value.eq_ignore_ascii_case(set))
    });
    if charset_taken && media_type.eq_ignore_ascii_case("application/json") {
        Ok(Format::Json)
    } else if charset_taken && media_type.eq_ignore_ascii_case("application/x-ndjson") {
        Ok(Format::Ndjson)
    } else {
        let given = echo(&given);
        let detail =
            format!("the content type {given:?} is not taken: application/json or application/x-ndjson, UTF-8");
        Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, detail))
    }
}

/// The trace context of the request. What is none is passed over, as its specification has it.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let shaped = |(at, byte): (usize, u8)| match at {
        2 | 35 | 52 => byte == b'-',
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    let whole = value.len() == 55 || (value.len() > 55 && value.as_bytes()[55] == b'-');
    (whole && value.len() <= TRACEPARENT_BYTES_MAX && value.bytes().take(55).enumerate().all(shaped)).then_some(value)
}

/// The replay of another eventd that sends the request: kept, so that no replay here takes its events in turn.
fn replay(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(event::REPLAY)?.to_str().ok()?;
    (1..=REPLAY_ID_CHARS_MAX).contains(&id.len()).then_some(id)
}

fn stored(results: &[u8]) -> Response<Full<Bytes>> {
    let body = [b"{\"results\":", results, b"}"].concat();
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn partly_stored(failure: &Failure, results: Vec<u8>) -> Box<Problem> {
    // The one answer of a log that no waiting changes.
    let kind: Kind = match failure.code == EVENT_TOO_LARGE.code {
        true => EVENT_TOO_LARGE,
        false => not_stored(failure.code),
    };
    let detail = format!("{}; send again what is not \"ok\" in results", failure.detail);
    Problem::new(kind, detail).results(results)
}

/// The outcome of every event, as a JSON array; an `outcome` is named only where there are different ones.
fn results<'i>(
    ids: impl Iterator<Item = &'i str>,
    partitions: &[u32],
    outcomes: &[Outcome],
    name_outcome: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + outcomes.len() * 88);
    out.push(b'[');
    for (id, (partition, outcome)) in ids.zip(partitions.iter().zip(outcomes)) {
        if out.len() > 1 {
            out.push(b',');
        }
        out.push(b'{');
        if name_outcome {
            out.extend_from_slice(b"\"outcome\":");
            put_text(outcome_word(outcome), &mut out);
            out.push(b',');
        }
        out.extend_from_slice(b"\"id\":");
        put_text(id, &mut out);
        match outcome {
            Ok(offset) => {
                out.extend_from_slice(b",\"partition\":");
                put_number(partition, &mut out);
                out.extend_from_slice(b",\"offset\":");
                put_number(offset, &mut out);
            }
            Err(failure) => {
                out.extend_from_slice(b",\"error\":{\"code\":");
                put_text(failure.code, &mut out);
                out.extend_from_slice(b",\"detail\":");
                put_text(&failure.detail, &mut out);
                out.push(b'}');
            }
        }
        out.push(b'}');
    }
    out.push(b']');
    out
}

fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome.as_ref().map_err(|failure| failure.certainty) {
        Ok(_) => "ok",
        Err(Certainty::Refused) => "refused",
        Err(Certainty::Unknown) => "unknown",
    }
}
