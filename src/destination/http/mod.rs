//! Delivers each event by one HTTP/1.1 `POST`, over connections that are kept open. With `--batch`, a `POST` may have
//! several events of one user ([`batch`]).
//!
//! | response                                                                            | verdict       |
//! |-------------------------------------------------------------------------------------|---------------|
//! | 2xx                                                                                 | delivered     |
//! | 400, 413, 415, 422: the receiver will never accept this event                       | `Refused`     |
//! | 429, and 503 with `Retry-After`: the receiver asks to wait                          | `Busy`        |
//! | any other status (redirects and 101 too), no response, none in time, or not HTTP    | `Retry`       |
//! | no connection: name, port, TLS, or not connected in time                            | `Unreachable` |
//!
//! With several events in the request, `Refused` and `Retry` become `BatchFailed`, which says nothing about any of them.
//!
//! One deadline covers a whole attempt. A response counts from its status line on: what follows may be broken or never end.
//!
//! A server may close an unused connection at the moment when eventd sends a request over it. So if a reused connection
//! ends before the first byte of the response, eventd sends the request again at once over a new connection. It also closes
//! all other unused connections, because they are probably dead too.
//!
//! ```text
//!  HttpDestination ─▶ ConnectionPool ── HttpConnection ── ResponseTracker
//!                      │                 └ one connection: hyper, and the bytes that hyper reads
//!                      ├ keeps unused connections, reads the rest of responses
//!                      └ Connector ── Resolver
//! ```

mod batch;
mod connection;
mod connector;
mod failure_text;
mod pool;
mod resolver;
mod response_tracker;
mod stored_headers;
pub mod webhook;

use super::spec::HttpTarget;
use super::{BatchLimits, ConfigurationError, Deadline, DeliveryBatch, Destination, DestinationSettings};
use crate::BoxFuture;
use crate::core::event::{Event, Record};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::limits::{ANSWER_BYTES_MAX, HTTP_BATCH_BYTES_MAX};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use batch::BatchRequest;
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

/// The most headers of one request, including `host` and `content-length`. The header map is allocated once, in this size.
const REQUEST_HEADERS_MAX: usize = 16;

/// How long the rest of a response may take after its status line: the headers, and the body of an error. The rest of a
/// success is read for this long too, but no attempt waits for it. A healthy server needs far less.
const RESPONSE_REST_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct HttpDestination {
    pool: ConnectionPool,
    host: HeaderValue,
    path_and_query: Uri,
    authorization: Option<HeaderValue>,
    signer: Option<Signer>,
    retry_after_max: Duration,
    attempt_timeout: Duration,
    batch_events_max: usize,
}

impl HttpDestination {
    /// Prepares the parts that all requests share. It does not connect yet.
    pub(super) fn open(target: &HttpTarget, settings: &DestinationSettings) -> Result<Self, ConfigurationError> {
        let HttpTarget { uri, userinfo } = target;
        Ok(Self {
            pool: ConnectionPool::new(uri, settings)?,
            host: host_header(uri)?,
            path_and_query: uri.path_and_query().map_or_else(Uri::default, |path| Uri::from(path.clone())),
            authorization: userinfo.as_deref().map(basic_authorization),
            signer: settings.secret.as_deref().map(Signer::new),
            retry_after_max: settings.retry_after_max,
            attempt_timeout: settings.attempt_timeout,
            batch_events_max: settings.batch_events_max,
        })
    }

    fn not_in_time(&self) -> String {
        format!("no answer within {} (--attempt-timeout)", humantime::format_duration(self.attempt_timeout))
    }

    async fn attempt(&self, webhook: &Webhook<'_>, deadline: &Deadline) -> Result<(), Failed> {
        // There is one future for each event. It must not be larger than the allocator handles quickly. So it does not
        // contain what makes a connection, which is seldom needed, and the loop has one place that sends.
        let connect = || Box::pin(self.pool.connect(deadline.at));
        let mut connection = match self.pool.take().await {
            Some(connection) => connection,
            None => connect().await.map_err(|why| Failed::new(Verdict::Unreachable, why))?,
        };
        let response = loop {
            let error = match timeout_at(deadline.at, connection.send(self.request(webhook))).await {
                Ok(Ok(response)) => break response,
                Ok(Err(error)) => Some(failure_text::chain(&error)),
                Err(_) => None,
            };
            let was_stale = connection.is_reused() && connection.tracker().is_untouched();
            if was_stale {
                self.pool.clear();
            }
            if !was_stale || error.is_none() || deadline.is_over() {
                let tracker = connection.tracker();
                let why = match error {
                    Some(error) if self.pool.is_plain() && !connection.is_reused() && tracker.is_silence() => {
                        format!("{error}. {}", failure_text::PERHAPS_TLS)
                    }
                    error => error.unwrap_or_else(|| self.not_in_time()),
                };
                return self.without_response(&tracker, &why);
            }
            // The request may have arrived the first time, so a failure from here on is not `Unreachable`. The new
            // connection is not reused, so the loop ends with it.
            connection = connect().await.map_err(|why| Failed::new(Verdict::Retry { after: None }, why))?;
        };
        let status = response.status();
        if status.is_success() {
            self.pool.finish(connection, RemainingBody::new(response.into_body(), 0)).await;
            return Ok(());
        }
        let verdict = self.verdict(status, response.headers().get(RETRY_AFTER));
        let mut rest = RemainingBody::new(response.into_body(), ANSWER_BYTES_MAX);
        let due = deadline.at.min(Instant::now() + RESPONSE_REST_MAX);
        let is_complete =
            timeout_at(due, poll_fn(|context| connection.poll_rest(context, &mut rest))).await == Ok(true);
        let body = String::from_utf8_lossy(rest.kept());
        // The line break at the end of most bodies says nothing, and log lines would show it as `\\n`.
        let body = body.trim_end();
        let answer = if body.is_empty() { status.to_string() } else { format!("{status}: {body}") };
        let failed = Failed::new(verdict, answer);
        if is_complete {
            self.pool.finish(connection, rest).await;
        }
        Err(failed)
    }

    /// The outcome if hyper returned no response. If the tracker has read a status line, that status decides, because the
    /// server did process the request.
    fn without_response(&self, tracker: &ResponseTracker, why: &str) -> Result<(), Failed> {
        match tracker.status() {
            Some(status) if status.is_success() => Ok(()),
            Some(status) => {
                let verdict = self.verdict(status, tracker.header(&RETRY_AFTER).as_ref());
                Err(Failed::new(verdict, format!("{status} (the rest of the answer could not be read: {why})")))
            }
            None => {
                let why = tracker.received_instead().map_or_else(|| why.to_owned(), |what| format!("{what} ({why})"));
                Err(Failed::new(Verdict::Retry { after: None }, why))
            }
        }
    }

    fn request(&self, webhook: &Webhook<'_>) -> Request<Full<Bytes>> {
        let mut headers = HeaderMap::with_capacity(REQUEST_HEADERS_MAX);
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("eventd/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let body = match webhook {
            Webhook::Event(webhook) => {
                webhook.put_headers(self.signer.as_ref(), &mut headers);
                payload(webhook.event)
            }
            Webhook::Batch(batch) => {
                batch.put_headers(self.signer.as_ref(), &mut headers);
                batch.body()
            }
        };
        if body.is_empty() {
            // hyper sends no length for an empty body, and several servers answer 411 to a POST without a length.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path_and_query.clone();
        *request.headers_mut() = headers;
        request
    }

    fn verdict(&self, status: StatusCode, retry_after: Option<&HeaderValue>) -> Verdict {
        let retry_after =
            retry_after.and_then(|value| webhook::retry_after(value, SystemTime::now(), self.retry_after_max));
        // A delay of zero is ignored. It would replace the backoff, and the retries would be a loop without a pause.
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
        BatchLimits { runs_max: 1, run_events_max: self.batch_events_max.max(1), run_bytes_max: HTTP_BATCH_BYTES_MAX }
    }

    fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        Box::pin(async move {
            let mut reports = Vec::with_capacity(batch.runs.len());
            for run in &batch.runs {
                let (topic, partition, events) = (&*batch.topic, batch.partition, batch.events_of(run));
                let (after_dead_letter, now) = (run.after_dead_letter, SystemTime::now());
                let webhook = match events {
                    [event] => {
                        let attempt = run.attempt;
                        Webhook::Event(WebhookRequest { topic, partition, event, attempt, after_dead_letter, now })
                    }
                    _ => Webhook::Batch(BatchRequest::new(topic, partition, events, after_dead_letter, now)),
                };
                reports.push(match self.attempt(&webhook, &batch.deadline).await {
                    Ok(()) => Report { delivered: events.len(), failed: None },
                    Err(failed) => Report { delivered: 0, failed: Some(webhook.failed(failed)) },
                });
            }
            reports
        })
    }

    fn address(&self) -> Option<String> {
        Some(self.pool.address())
    }
}

/// What one request delivers.
enum Webhook<'a> {
    Event(WebhookRequest<'a>),
    Batch(BatchRequest<'a>),
}

impl Webhook<'_> {
    /// What a failure of the request says about the first event.
    fn failed(&self, failed: Failed) -> Failed {
        match self {
            Self::Event(_) => failed,
            Self::Batch(_) => Failed { verdict: batch::verdict_of_first(failed.verdict), ..failed },
        }
    }
}

/// The payload as a body that shares the memory of the record. A tombstone is an empty body.
fn payload(event: &Event) -> Bytes {
    struct Payload(Record);
    impl AsRef<[u8]> for Payload {
        fn as_ref(&self) -> &[u8] {
            self.0.value().unwrap_or_default()
        }
    }
    Bytes::from_owner(Payload(event.record.clone()))
}

/// The `host` header. It has a port only if the port is not the default of the scheme.
fn host_header(uri: &Uri) -> Result<HeaderValue, ConfigurationError> {
    let host = uri.host().unwrap_or_default();
    let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let text = match uri.port_u16().filter(|port| *port != default_port) {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    HeaderValue::from_str(&text).map_err(|_| {
        ConfigurationError(format!("the host {host:?} cannot be sent in a header: correct the host in the URL"))
    })
}

/// The `authorization` header for `user:password` of a URL. `Debug` does not show it.
fn basic_authorization(userinfo: &str) -> HeaderValue {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let credentials: Vec<u8> = percent_decode_str(user).chain([b':']).chain(percent_decode_str(password)).collect();
    let value = format!("Basic {}", BASE64_STANDARD.encode(credentials));
    let mut value = HeaderValue::from_str(&value).expect("base64 is a valid header value");
    value.set_sensitive(true);
    value
}
