//! What a client is told when its request is not (wholly) taken: RFC 9457, `application/problem+json`.

use crate::limits::{ECHO_CHARS_MAX, RETRY_AFTER_SECS};
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use std::borrow::Cow;

/// A kind of error: its status, its stable code and its title.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) title: &'static str,
}

const fn kind(status: StatusCode, code: &'static str, title: &'static str) -> Kind {
    Kind { status, code, title }
}

pub(super) const MALFORMED_JSON: Kind = kind(StatusCode::BAD_REQUEST, "malformed-json", "The body is not JSON");
pub(super) const INVALID_UTF8: Kind = kind(StatusCode::BAD_REQUEST, "invalid-utf8", "The body is not UTF-8");
pub(super) const NOT_AN_EVENT: Kind = kind(StatusCode::BAD_REQUEST, "not-an-event", "A JSON object was expected");
pub(super) const UNKNOWN_FIELD: Kind = kind(StatusCode::BAD_REQUEST, "unknown-field", "An event has an unknown field");
pub(super) const REPEATED_FIELD: Kind = kind(StatusCode::BAD_REQUEST, "repeated-field", "A field is given twice");
pub(super) const MISSING_FIELD: Kind = kind(StatusCode::BAD_REQUEST, "missing-field", "An event lacks a field");
pub(super) const INVALID_FIELD: Kind = kind(StatusCode::BAD_REQUEST, "invalid-field", "A field cannot be taken");
pub(super) const BODY_INCOMPLETE: Kind =
    kind(StatusCode::BAD_REQUEST, "body-incomplete", "The body ended before its announced length");
pub(super) const AMBIGUOUS_LENGTH: Kind =
    kind(StatusCode::BAD_REQUEST, "ambiguous-length", "The request says its length twice");
pub(super) const INVALID_HOST: Kind =
    kind(StatusCode::BAD_REQUEST, "invalid-host", "The request does not name one valid host");
pub(super) const REPEATED_HEADER: Kind = kind(StatusCode::BAD_REQUEST, "repeated-header", "A header is given twice");
pub(super) const FOREIGN_HOST: Kind =
    kind(StatusCode::MISDIRECTED_REQUEST, "foreign-host", "The request is for another host");
pub(super) const NOT_FOUND: Kind = kind(StatusCode::NOT_FOUND, "not-found", "There is nothing here");
pub(super) const METHOD_NOT_ALLOWED: Kind =
    kind(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here");
pub(super) const BODY_TIMEOUT: Kind =
    kind(StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body did not come in time");
pub(super) const BODY_TOO_SLOW: Kind = kind(StatusCode::REQUEST_TIMEOUT, "body-too-slow", "The body came too slowly");
pub(super) const BODY_TOO_LARGE: Kind =
    kind(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is over its limit");
pub(super) const EVENT_TOO_LARGE: Kind =
    kind(StatusCode::PAYLOAD_TOO_LARGE, "event-too-large", "An event is over its limit");
pub(super) const BATCH_TOO_LARGE: Kind =
    kind(StatusCode::PAYLOAD_TOO_LARGE, "batch-too-large", "The request has too many events");
pub(super) const UNSUPPORTED_MEDIA_TYPE: Kind =
    kind(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The content type is not taken");
pub(super) const OVERLOADED: Kind =
    kind(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too much is waiting for the log");
pub(super) const PARTITION_COUNT_CHANGED: Kind = kind(
    StatusCode::SERVICE_UNAVAILABLE,
    "partition-count-changed",
    "The topic's partition count changed: ingest has to be restarted",
);

/// Not everything of a request was stored, and the log says why by a code of its own.
pub(super) const fn not_stored(code: &'static str) -> Kind {
    kind(StatusCode::SERVICE_UNAVAILABLE, code, "The log did not take every event")
}

/// One error, and where in the request it is.
#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    /// Which event, counted from 0.
    index: Option<usize>,
    field: Option<String>,
    /// The byte of the body, counted from 0.
    position: Option<usize>,
    /// A JSON array: the outcome of every event.
    results: Option<Vec<u8>>,
    close: bool,
}

impl Problem {
    /// `detail` is for people: what happened and what to do next, a lower-case fragment.
    pub(super) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Box<Self> {
        let detail = detail.into();
        Box::new(Self { kind, detail, index: None, field: None, position: None, results: None, close: false })
    }

    pub(super) fn index(mut self: Box<Self>, index: usize) -> Box<Self> {
        self.index = Some(index);
        self
    }

    pub(super) fn field(mut self: Box<Self>, field: &str) -> Box<Self> {
        self.field = Some(echo(field));
        self
    }

    pub(super) fn position(mut self: Box<Self>, position: usize) -> Box<Self> {
        self.position = Some(position);
        self
    }

    pub(super) fn results(mut self: Box<Self>, results: Vec<u8>) -> Box<Self> {
        self.results = Some(results);
        self
    }

    /// The connection is closed after the answer: what may still come on it cannot be told from a next request, or is
    /// not waited for.
    pub(super) fn close(mut self: Box<Self>) -> Box<Self> {
        self.close = true;
        self
    }

    pub(super) fn closes(&self) -> bool {
        self.close
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body().into()));
        *response.status_mut() = self.kind.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.kind.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECS.into());
        }
        if self.kind.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn body(&self) -> Vec<u8> {
        let Kind { status, code, title } = self.kind;
        let mut body = Vec::with_capacity(256 + self.results.as_ref().map_or(0, Vec::len));
        body.extend_from_slice(b"{\"type\":\"urn:eventd:error:");
        body.extend_from_slice(code.as_bytes());
        body.extend_from_slice(b"\",\"title\":");
        put_text(title, &mut body);
        put_member("status", u64::from(status.as_u16()), &mut body);
        body.extend_from_slice(b",\"detail\":");
        put_text(&self.detail, &mut body);
        body.extend_from_slice(b",\"code\":");
        put_text(code, &mut body);
        if let Some(index) = self.index {
            put_member("index", index as u64, &mut body);
        }
        if let Some(field) = &self.field {
            body.extend_from_slice(b",\"field\":");
            put_text(field, &mut body);
        }
        if let Some(position) = self.position {
            put_member("position", position as u64, &mut body);
        }
        if let Some(results) = &self.results {
            body.extend_from_slice(b",\"results\":");
            body.extend_from_slice(results);
        }
        body.push(b'}');
        body
    }
}

/// A client's own text as an error repeats it.
pub(super) fn echo(text: &str) -> String {
    match text.char_indices().nth(ECHO_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// Appends a JSON string.
pub(super) fn put_text(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("text is written to memory");
}

/// Appends a number.
pub(super) fn put_number(number: impl std::fmt::Display, out: &mut Vec<u8>) {
    use std::io::Write;
    write!(out, "{number}").expect("a number is written to memory");
}

fn put_member(name: &str, number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    put_number(number, out);
}
