//! One `POST` an event, by HTTP/1.1, over connections that are kept.
//!
//! ```text
//!  answer 2xx                       delivered
//!  400, 413, 415, 422               Refused: this event will never be taken
//!  429, and 503 with Retry-After    Busy: the destination asks for patience
//!  any other (redirects and 101 too), no answer, none in time, or one that is not HTTP    Retry
//!  no connection: name, port, TLS, or none in time                                        Unreachable
//! ```
//!
//! One deadline covers the whole of an attempt. If a connection that was used before ends without a byte of the answer, the
//! request is sent again at once over a new connection: most often the server had closed one that it thought unused. Then all
//! unused connections are closed. An answer counts from its status line on: what follows may be broken, or never end.
//!
//! ```text
//!  attempt ─▶ pool ── link ── answer
//!              │       └ one connection: hyper, and what it reads
//!              ├ keeps unused connections, drains answers
//!              └ connector ── resolver
//! ```

mod connection;
mod connector;
mod failure_text;
mod pool;
mod resolver;
mod response_tracker;
pub mod webhook;

use super::spec::HttpTarget;
use super::{BatchLimits, ConfigurationError, Deadline, DeliveryBatch, Destination, DestinationSettings};
use crate::BoxFuture;
use crate::core::event::{Event, Record};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::limits::ANSWER_BYTES_MAX;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use connection::RemainingBody;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use pool::ConnectionPool;
pub(super) use pool::connections_max;
use response_tracker::ResponseTracker;
use std::future::poll_fn;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};
use webhook::{Signer, WebhookRequest};

/// Headers of one attempt at most, `host` and `content-length` among them: the map is made once in this size.
const HEADERS_MAX: usize = 16;

/// How long the rest of a response may take after its status line: the headers, and the body of an error. The rest of a
/// success is read for this long too, but no attempt waits for it. A healthy server needs far less.
const RESPONSE_REST_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct HttpDestination {
    pool: ConnectionPool,
    host: HeaderValue,
    /// Path and query.
    target: Uri,
    authorization: Option<HeaderValue>,
    signer: Option<Signer>,
    retry_after_max: Duration,
}

impl HttpDestination {
    /// Prepares the requests; connects to nothing yet.
    pub(super) fn open(target: &HttpTarget, settings: &DestinationSettings) -> Result<Self, ConfigurationError> {
        let HttpTarget { uri, userinfo } = target;
        Ok(Self {
            pool: ConnectionPool::new(uri, settings)?,
            host: host(uri)?,
            target: uri.path_and_query().map_or_else(Uri::default, |path| Uri::from(path.clone())),
            authorization: userinfo.as_deref().map(basic),
            signer: settings.secret.as_deref().map(Signer::new),
            retry_after_max: settings.retry_after_max,
        })
    }

    async fn attempt(&self, attempt: WebhookRequest<'_>, deadline: &Deadline) -> Result<(), Failed> {
        let mut link = match self.pool.take().await {
            Some(link) => link,
            None => {
                let link = self.pool.connect(deadline.at).await;
                link.map_err(|why| Failed::new(Verdict::Unreachable, why))?
            }
        };
        // One place that sends and one that reads: an attempt's future then stays small enough for the allocator's fast
        // way, and there is one an event.
        let response = loop {
            let why = match timeout_at(deadline.at, link.send(self.request(&attempt))).await {
                Ok(Ok(response)) => break response,
                Ok(Err(error)) => Some(failure_text::chain(&error)),
                Err(_) => None,
            };
            let was_stale = link.is_reused() && link.answer().is_untouched();
            if was_stale {
                self.pool.clear();
            }
            if !was_stale || why.is_none() || deadline.is_over() {
                let answer = link.answer();
                let why = match why {
                    Some(why) if self.pool.is_plain() && !link.is_reused() && answer.is_silence() => {
                        format!("{why}. {}", failure_text::PERHAPS_TLS)
                    }
                    why => why.unwrap_or_else(|| "no answer within the time of the attempt".to_owned()),
                };
                return self.without_response(&answer, &why);
            }
            // The request may have arrived the first time, so this is not `Unreachable`. A new connection is not a reused one: the
            // loop ends.
            let fresh = self.pool.connect(deadline.at).await;
            link = fresh.map_err(|why| Failed::new(Verdict::Retry { after: None }, why))?;
        };
        let status = response.status();
        if status.is_success() {
            self.pool.finish(link, RemainingBody::new(response.into_body(), 0)).await;
            return Ok(());
        }
        let verdict = self.verdict(status, response.headers().get(RETRY_AFTER));
        let mut rest = RemainingBody::new(response.into_body(), ANSWER_BYTES_MAX);
        let due = deadline.at.min(Instant::now() + RESPONSE_REST_MAX);
        let is_whole = timeout_at(due, poll_fn(|context| link.poll_rest(context, &mut rest))).await == Ok(true);
        let said = String::from_utf8_lossy(rest.kept());
        let failed =
            Failed::new(verdict, if said.is_empty() { status.to_string() } else { format!("{status}: {said}") });
        if is_whole {
            self.pool.finish(link, rest).await;
        }
        Err(failed)
    }

    /// The verdict if hyper gave no response: a status line that was read is believed, whatever followed it.
    fn without_response(&self, answer: &ResponseTracker, why: &str) -> Result<(), Failed> {
        match answer.status() {
            Some(status) if status.is_success() => Ok(()),
            Some(status) => {
                let verdict = self.verdict(status, answer.header(&RETRY_AFTER).as_ref());
                Err(Failed::new(verdict, format!("{status} (the rest of the answer could not be read: {why})")))
            }
            None => {
                let why = answer.instead().map_or_else(|| why.to_owned(), |instead| format!("{instead} ({why})"));
                Err(Failed::new(Verdict::Retry { after: None }, why))
            }
        }
    }

    fn request(&self, attempt: &WebhookRequest<'_>) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(HEADERS_MAX);
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("eventd/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if attempt.event.record.value().unwrap_or_default().is_empty() {
            // hyper leaves it out for a body without bytes, and several servers answer 411 to a POST without a length.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        attempt.put_headers(self.signer.as_ref(), &mut headers);
        let mut request = Request::new(body(attempt.event));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = headers;
        request
    }

    fn verdict(&self, status: StatusCode, retry_after: Option<&HeaderValue>) -> Verdict {
        let retry_after =
            retry_after.and_then(|value| webhook::retry_after(value, SystemTime::now(), self.retry_after_max));
        // A pause of zero is ignored: retries without the backoff would be a loop without a pause.
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

impl Destination for HttpDestination {
    fn limits(&self) -> BatchLimits {
        BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: usize::MAX }
    }

    fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(async move {
            let mut reports = Vec::with_capacity(hand_over.runs.len());
            for run in &hand_over.runs {
                let mut report = Report { delivered: 0, failed: None };
                for event in hand_over.events_of(run) {
                    let is_first = report.delivered == 0;
                    let attempt = WebhookRequest {
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

    fn address(&self) -> Option<String> {
        Some(self.pool.address())
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

/// The `host` header: the port only if it is not the scheme's.
fn host(uri: &Uri) -> Result<HeaderValue, ConfigurationError> {
    let host = uri.host().unwrap_or_default();
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let text = match uri.port_u16().filter(|port| *port != usual) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    HeaderValue::from_str(&text)
        .map_err(|_| ConfigurationError(format!("the host {host:?} cannot be sent in a header")))
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
