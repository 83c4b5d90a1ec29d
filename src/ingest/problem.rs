//! The answer to a request of which something was not stored: `application/problem+json` (RFC 9457).

use super::response::EventResults;
use crate::core::outcome::{Failure, FailureCode};
use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::{Serialize, Serializer};
use std::borrow::Cow;

/// What `Retry-After` says in every 503, in seconds. Room in a budget is free again within milliseconds, and the log
/// after a short failure; 1 is the shortest wait that the header can say.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Characters of a client's own text (a field's name, a content type) that an error repeats.
const ECHO_CHARS_MAX: usize = 64;

/// A kind of problem: its status, its stable code and its title.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProblemKind {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
}

const fn kind(status: StatusCode, code: &'static str, title: &'static str) -> ProblemKind {
    ProblemKind { status, code, title }
}

pub(super) const MALFORMED_JSON: ProblemKind = kind(StatusCode::BAD_REQUEST, "malformed-json", "The body is not JSON");
pub(super) const INVALID_UTF8: ProblemKind = kind(StatusCode::BAD_REQUEST, "invalid-utf8", "The body is not UTF-8");
pub(super) const NOT_AN_EVENT: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "not-an-event", "A JSON object was expected");
pub(super) const UNKNOWN_FIELD: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "unknown-field", "An event has an unknown field");
pub(super) const REPEATED_FIELD: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "repeated-field", "A field is given twice");
pub(super) const MISSING_FIELD: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "missing-field", "An event lacks a required field");
pub(super) const INVALID_FIELD: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "invalid-field", "A field has a value that is not allowed");
pub(super) const BODY_INCOMPLETE: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "body-incomplete", "The body ended before it was complete");
pub(super) const INVALID_HOST: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "invalid-host", "The request does not name one valid host");
pub(super) const REPEATED_HEADER: ProblemKind =
    kind(StatusCode::BAD_REQUEST, "repeated-header", "A header is given twice");
pub(super) const FOREIGN_HOST: ProblemKind =
    kind(StatusCode::MISDIRECTED_REQUEST, "foreign-host", "The request is for another host");
pub(super) const NOT_FOUND: ProblemKind = kind(StatusCode::NOT_FOUND, "not-found", "There is nothing at this path");
pub(super) const METHOD_NOT_ALLOWED: ProblemKind =
    kind(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The method is not allowed here");
pub(super) const BODY_TIMEOUT: ProblemKind =
    kind(StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body did not arrive in time");
pub(super) const BODY_TOO_SLOW: ProblemKind =
    kind(StatusCode::REQUEST_TIMEOUT, "body-too-slow", "The body arrived too slowly");
pub(super) const BODY_TOO_LARGE: ProblemKind =
    kind(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is larger than its limit");
pub(super) const EVENT_TOO_LARGE: ProblemKind =
    kind(StatusCode::PAYLOAD_TOO_LARGE, FailureCode::EventTooLarge.as_str(), "An event is larger than its limit");
pub(super) const BATCH_TOO_LARGE: ProblemKind =
    kind(StatusCode::PAYLOAD_TOO_LARGE, "batch-too-large", "The request has too many events");
pub(super) const UNSUPPORTED_MEDIA_TYPE: ProblemKind =
    kind(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", "The content type is not supported");
pub(super) const OVERLOADED: ProblemKind =
    kind(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many bytes wait for the log");
pub(super) const PARTITION_COUNT_CHANGED: ProblemKind = kind(
    StatusCode::SERVICE_UNAVAILABLE,
    "partition-count-changed",
    "The topic's partition count changed: ingest must be restarted",
);
pub(super) const APPEND_BROKEN: ProblemKind = not_stored(FailureCode::AppendBroken);

/// The kind of a request of which the log did not store every event. The code is the log's own.
const fn not_stored(code: FailureCode) -> ProblemKind {
    kind(StatusCode::SERVICE_UNAVAILABLE, code.as_str(), "The log did not store every event")
}

/// One problem, and the part of the request that it is about.
#[derive(Debug)]
pub(super) struct Problem {
    kind: ProblemKind,
    detail: Cow<'static, str>,
    /// The event, counted from 0.
    index: Option<usize>,
    field: Option<String>,
    /// The byte of the body, counted from 0.
    position: Option<usize>,
    /// The outcome of every event, if the log was asked to store them.
    results: Option<EventResults>,
    closes: bool,
}

impl Problem {
    /// A problem that says nothing about a part of the request. `detail` is for people: a lower-case fragment that says
    /// what happened with the value, then what to do.
    pub(super) fn new(kind: ProblemKind, detail: impl Into<Cow<'static, str>>) -> Box<Self> {
        let detail = detail.into();
        Box::new(Self { kind, detail, index: None, field: None, position: None, results: None, closes: false })
    }

    /// The problem of a request of which the log did not store every event. `failure` is that of the first such event.
    pub(super) fn of_log(failure: &Failure, results: EventResults) -> Box<Self> {
        // The only failure of a log that sending the event again cannot change.
        let kind = match failure.code {
            FailureCode::EventTooLarge => EVENT_TOO_LARGE,
            code => not_stored(code),
        };
        let detail = format!("{}; send every event again whose outcome in \"results\" is not \"ok\"", failure.detail);
        let mut problem = Self::new(kind, detail);
        problem.results = Some(results);
        problem
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

    /// Closes the connection after the answer. This is needed if the rest of the body is not read, because its bytes
    /// would otherwise be taken for the next request.
    pub(super) fn close(mut self: Box<Self>) -> Box<Self> {
        self.closes = true;
        self
    }

    pub(super) fn closes(&self) -> bool {
        self.closes
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body().into()));
        *response.status_mut() = self.kind.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.kind.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        if self.kind.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn body(&self) -> Vec<u8> {
        let ProblemKind { status, code, title } = self.kind;
        let members = ProblemBody {
            uri: ProblemUri(code),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            code,
            index: self.index,
            field: self.field.as_deref(),
            position: self.position,
            results: self.results.as_ref(),
        };
        let mut body = Vec::with_capacity(256 + self.results.as_ref().map_or(0, EventResults::json_bytes_usual));
        serde_json::to_writer(&mut body, &members).expect("a problem is written to memory");
        body
    }
}

#[derive(Serialize)]
struct ProblemBody<'p> {
    #[serde(rename = "type")]
    uri: ProblemUri,
    title: &'static str,
    status: u16,
    detail: &'p str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'p str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<&'p EventResults>,
}

/// The member `type`, which is a URI that ends with this code.
struct ProblemUri(&'static str);

impl Serialize for ProblemUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("urn:eventd:error:{}", self.0))
    }
}

/// The beginning of a client's own text, as an error repeats it.
pub(super) fn echo(text: &str) -> String {
    match text.char_indices().nth(ECHO_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::response::EventIds;
    use super::*;
    use std::sync::Arc;

    fn json(problem: &Problem) -> String {
        String::from_utf8(problem.body()).unwrap()
    }

    #[test]
    fn a_problem_has_only_the_members_that_are_known() {
        let problem = Problem::new(NOT_FOUND, "there is \"nothing\"");
        let expected = concat!(
            r#"{"type":"urn:eventd:error:not-found","title":"There is nothing at this path","status":404,"#,
            r#""detail":"there is \"nothing\"","code":"not-found"}"#
        );
        assert_eq!(json(&problem), expected);
        let problem = problem.index(3).field(&"é".repeat(100)).position(7);
        let field = "é".repeat(ECHO_CHARS_MAX) + "…";
        let expected = format!(r#""index":3,"field":"{field}","position":7}}"#);
        assert!(json(&problem).ends_with(&expected), "{}", json(&problem));
    }

    #[test]
    fn a_failure_of_the_log_keeps_its_code_and_reports_the_outcome_of_every_event() {
        let mut ids = EventIds::default();
        for id in ["a", "b", "c"] {
            ids.push(id);
        }
        let full = Failure::refused(FailureCode::LogFull, "the disk is full");
        let late = Failure::unknown(FailureCode::LogUnavailable, "no answer");
        let outcomes = vec![Ok(17), Err(Arc::new(full.clone())), Err(Arc::new(late))];
        let problem = Problem::of_log(&full, EventResults { ids, partitions: vec![2, 0, 1], outcomes });
        assert_eq!(problem.response().headers()[RETRY_AFTER], "1");
        let expected = concat!(
            r#""code":"log-full","results":[{"outcome":"ok","id":"a","partition":2,"offset":17},"#,
            r#"{"outcome":"refused","id":"b","error":{"code":"log-full","detail":"the disk is full"}},"#,
            r#"{"outcome":"unknown","id":"c","error":{"code":"log-unavailable","detail":"no answer"}}]}"#
        );
        assert!(json(&problem).ends_with(expected), "{}", json(&problem));
    }
}
