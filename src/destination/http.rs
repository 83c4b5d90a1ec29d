//! A `POST` an event, by HTTP/1.1, over connections that are kept.
//!
//! ```text
//!  answer 2xx                       delivered
//!  400, 413, 415, 422               Refused: this event will never be taken
//!  429, and 503 with Retry-After    Busy: the destination asks for patience
//!  any other (redirects too), a connection that breaks, no answer in time    Retry
//!  no connection: name, port, TLS, or none in time                           Unreachable
//! ```
//!
//! One deadline covers the whole of an attempt. A connection that closes before a byte of the answer is tried again
//! once, at once, within the same deadline: most often the server closed a connection that it thought unused.

use super::spec::HttpTarget;
use super::webhook::{self, Signer, Try};
use super::{ConfigurationError, Deadline, Destination, HandOver, HandOverLimits, Settings};
use crate::BoxFuture;
use crate::core::event::{Event, Record};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::limits::{ANSWER_BYTES_MAX, ANSWER_DRAIN_BYTES_MAX, CONNECT_TIMEOUT_MAX, CONNECTION_IDLE_MAX, LOOKUPS_MAX};
use crate::net;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::percent_decode_str;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

/// Headers of one attempt at most, `host` and `content-length` among them: the map is made once in this size.
const HEADERS_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector<LookUps>>, Full<Bytes>>,
    uri: Uri,
    authorization: Option<HeaderValue>,
    signer: Option<Signer>,
    retry_after_max: Duration,
    resent: AtomicU64,
}

impl Http {
    /// Makes the client; connects to nothing yet.
    pub(super) fn open(target: &HttpTarget, settings: &Settings) -> Result<Self, ConfigurationError> {
        let is_https = target.uri.scheme_str() == Some("https");
        let tls = match is_https {
            true => net::Tls { ca_file: settings.ca_file.clone(), identity: None }.config(),
            false => net::no_tls(),
        };
        let mut connector = HttpConnector::new_with_resolver(LookUps::new());
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(settings.attempt_timeout.min(CONNECT_TIMEOUT_MAX)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.map_err(ConfigurationError)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(CONNECTION_IDLE_MAX)
            .pool_max_idle_per_host(settings.concurrency)
            .build(connector);
        Ok(Self {
            client,
            uri: target.uri.clone(),
            authorization: target.userinfo.as_deref().map(basic),
            signer: settings.secret.as_deref().map(Signer::new),
            retry_after_max: settings.retry_after_max,
            resent: AtomicU64::new(0),
        })
    }

    async fn attempt(&self, attempt: Try<'_>, deadline: &Deadline) -> Result<(), Failed> {
        let mut was_sent = false;
        // One place that sends and one that reads: an attempt's future then stays small enough for the allocator's fast
        // way, and there is one an event.
        let answer = loop {
            match self.send(&attempt, deadline.at).await {
                Err(NoAnswer::Closed(_)) if !was_sent && !deadline.is_over() => {
                    was_sent = true;
                    self.resent.fetch_add(1, Ordering::Relaxed);
                }
                answer => break answer,
            }
        };
        let response = answer.map_err(|no_answer| match no_answer {
            NoAnswer::NotConnected(why) if !was_sent => Failed::new(Verdict::Unreachable, why),
            NoAnswer::NotConnected(why) | NoAnswer::Closed(why) | NoAnswer::Other(why) => {
                Failed::new(Verdict::Retry { after: None }, why)
            }
        })?;
        let status = response.status();
        let failed = (!status.is_success()).then(|| self.verdict(status, response.headers()));
        let keep_bytes = if failed.is_some() { ANSWER_BYTES_MAX } else { 0 };
        let said = read_to_end(response.into_body(), keep_bytes, deadline.at).await;
        let Some(verdict) = failed else { return Ok(()) };
        let said = String::from_utf8_lossy(&said);
        Err(Failed::new(verdict, if said.is_empty() { status.to_string() } else { format!("{status}: {said}") }))
    }

    fn headers(&self, attempt: &Try<'_>) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(HEADERS_MAX);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("eventd/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        attempt.put_headers(self.signer.as_ref(), &mut headers);
        headers
    }

    async fn send(&self, attempt: &Try<'_>, deadline: Instant) -> Result<Response<Incoming>, NoAnswer> {
        let mut request = Request::new(body(attempt.event));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers(attempt);
        let connection = capture_connection(&mut request);
        match timeout_at(deadline, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(NoAnswer::of(&error)),
            Err(_) if connection.connection_metadata().is_some() => {
                Err(NoAnswer::Other("no answer within the time of the attempt".into()))
            }
            Err(_) => Err(NoAnswer::NotConnected("no connection within the time of the attempt".into())),
        }
    }

    fn verdict(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        let retry_after = headers
            .get(RETRY_AFTER)
            .and_then(|value| webhook::retry_after(value, SystemTime::now(), self.retry_after_max));
        // "At once" is no wish that the backoff could not be kept for: it would be a loop without a pause.
        let after = retry_after.filter(|after| !after.is_zero());
        match status {
            StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY => Verdict::Refused,
            StatusCode::TOO_MANY_REQUESTS => Verdict::Busy { after },
            StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => Verdict::Busy { after },
            _ => Verdict::Retry { after },
        }
    }
}

impl Destination for Http {
    fn limits(&self) -> HandOverLimits {
        HandOverLimits { runs_max: 1, run_events_max: 1, run_bytes_max: usize::MAX }
    }

    fn deliver(&self, hand_over: HandOver) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(async move {
            let mut reports = Vec::with_capacity(hand_over.runs.len());
            for run in &hand_over.runs {
                let mut report = Report { delivered: 0, failed: None };
                for event in hand_over.events_of(run) {
                    let is_first = report.delivered == 0;
                    let attempt = Try {
                        topic: &hand_over.topic,
                        partition: hand_over.partition,
                        event,
                        attempt: if is_first { run.attempt } else { 1 },
                        gap: is_first && run.gap,
                        now: SystemTime::now(),
                    };
                    match self.attempt(attempt, &hand_over.deadline).await {
                        Ok(()) => report.delivered += 1,
                        Err(failed) => {
                            report.failed = Some(failed);
                            break;
                        }
                    }
                }
                reports.push(report);
            }
            reports
        })
    }

    fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }
}

/// Why there is no answer, and what it was, for people.
enum NoAnswer {
    /// There never was a connection.
    NotConnected(String),
    /// The connection closed before a byte of the answer.
    Closed(String),
    Other(String),
}

impl NoAnswer {
    fn of(error: &legacy::Error) -> Self {
        let first: &(dyn Error + 'static) = error;
        let causes: Vec<_> = std::iter::successors(Some(first), |&error| error.source()).collect();
        let why = causes.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        if error.is_connect() {
            Self::NotConnected(why)
        } else if causes.into_iter().any(is_closed) {
            Self::Closed(why)
        } else {
            Self::Other(why)
        }
    }
}

fn is_closed(error: &(dyn Error + 'static)) -> bool {
    let by_hyper = error
        .downcast_ref::<hyper::Error>()
        .is_some_and(|error| error.is_incomplete_message() || error.is_canceled() || error.is_closed());
    let by_system = error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        )
    });
    by_hyper || by_system
}

/// Reads the body so that the connection can be used again, and keeps its first bytes. One that is too long, breaks or
/// lasts past the deadline costs the connection; the status was said already.
async fn read_to_end(mut body: Incoming, keep_bytes: usize, deadline: Instant) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut read_bytes = 0;
    while !body.is_end_stream() && read_bytes <= ANSWER_DRAIN_BYTES_MAX {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else { break };
        let Some(data) = frame.data_ref() else { continue };
        read_bytes += data.len();
        kept.extend_from_slice(&data[..data.len().min(keep_bytes - kept.len())]);
    }
    kept
}

/// Looks names up, on threads that everything blocking shares: a few at a time, even where the attempts that asked have
/// long given up.
#[derive(Debug, Clone)]
struct LookUps(Arc<Semaphore>);

impl LookUps {
    fn new() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_MAX)))
    }
}

impl Service<Name> for LookUps {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let places = self.0.clone();
        Box::pin(async move {
            let place = places.acquire_owned().await.map_err(io::Error::other)?;
            let look_up = move || {
                // Held by the thread: who asked may be gone before it is done.
                let _place = place;
                (name.as_str(), 0).to_socket_addrs()
            };
            tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other)?
        })
    }
}

/// The payload as it lies in the record: shared, not copied. A tombstone is an empty body.
fn body(event: &Event) -> Full<Bytes> {
    struct Payload(Record);
    impl AsRef<[u8]> for Payload {
        fn as_ref(&self) -> &[u8] {
            self.0.value().unwrap_or_default()
        }
    }
    Full::new(Bytes::from_owner(Payload(event.record.clone())))
}

/// `user:password` of a URL as a header that `Debug` does not show.
fn basic(userinfo: &str) -> HeaderValue {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let credentials: Vec<u8> = percent_decode_str(user).chain([b':']).chain(percent_decode_str(password)).collect();
    let value = format!("Basic {}", BASE64_STANDARD.encode(credentials));
    let mut value = HeaderValue::from_str(&value).expect("base64 can stand in a header");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[tokio::test]
    async fn look_ups_beyond_the_limit_wait_for_a_place() {
        let mut look_ups = LookUps::new();
        let taken = look_ups.0.clone().acquire_many_owned(LOOKUPS_MAX as u32).await.unwrap();
        let mut waiting = look_ups.call(Name::from_str("localhost").unwrap());
        assert!(std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
        drop(taken);
        assert!(waiting.await.unwrap().all(|address| address.ip().is_loopback()));
        assert_eq!(look_ups.0.available_permits(), LOOKUPS_MAX);
    }
}
