//! The outcome of every event of a request as JSON: the body of a 200, and the member `results` of a 503 or 413.

use super::appender::AppendOutcome;
use crate::core::outcome::{Certainty, Failure};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::Full;
use serde::{Serialize, Serializer};
use std::sync::Arc;

/// Bytes of one result of the usual size. The buffer of an answer is made so large that it seldom has to grow.
const RESULT_BYTES_USUAL: usize = 96;

/// The ids of a request's events. They share one string, so that a batch does not allocate once for each event.
#[derive(Debug, Default)]
pub(super) struct EventIds {
    text: String,
    ends: Vec<usize>,
}

impl EventIds {
    pub(super) fn push(&mut self, id: &str) {
        self.text.push_str(id);
        self.ends.push(self.text.len());
    }

    /// The ids in the order of the events.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().scan(0, |begin, end| Some(&self.text[std::mem::replace(begin, *end)..*end]))
    }
}

/// The outcome of each event of one request, in the order of the request.
#[derive(Debug)]
pub(super) struct EventResults {
    pub(super) ids: EventIds,
    pub(super) partitions: Vec<u32>,
    pub(super) outcomes: Vec<AppendOutcome>,
}

impl EventResults {
    /// The failure of the first event that was not stored, or `None` if all events were stored.
    pub(super) fn first_failure(&self) -> Option<&Failure> {
        self.outcomes.iter().find_map(|outcome| outcome.as_ref().err().map(Arc::as_ref))
    }

    /// About how many bytes the results have as JSON.
    pub(super) fn json_bytes_usual(&self) -> usize {
        self.outcomes.len() * RESULT_BYTES_USUAL
    }

    /// The 200 of a request of which every event was stored.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut body = Vec::with_capacity(16 + self.json_bytes_usual());
        let stored = StoredBody { results: ResultList { results: self, with_outcome: false } };
        serde_json::to_writer(&mut body, &stored).expect("results are written to memory");
        let mut response = Response::new(Full::new(body.into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Each result says its outcome, because the results of one answer differ.
impl Serialize for EventResults {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ResultList { results: self, with_outcome: true }.serialize(serializer)
    }
}

#[derive(Serialize)]
struct StoredBody<'r> {
    results: ResultList<'r>,
}

struct ResultList<'r> {
    results: &'r EventResults,
    with_outcome: bool,
}

impl Serialize for ResultList<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let EventResults { ids, partitions, outcomes } = self.results;
        serializer.collect_seq(ids.iter().zip(partitions.iter().zip(outcomes)).map(|(id, (partition, outcome))| {
            let said = self.with_outcome.then(|| outcome_word(outcome));
            match outcome {
                Ok(offset) => {
                    EventResult { outcome: said, id, partition: Some(*partition), offset: Some(*offset), error: None }
                }
                Err(failure) => {
                    let error = Some(ResultError { code: failure.code.as_str(), detail: &failure.detail });
                    EventResult { outcome: said, id, partition: None, offset: None, error }
                }
            }
        }))
    }
}

/// One event's result: where it is stored, or why it is not.
#[derive(Serialize)]
struct EventResult<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    id: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ResultError<'r>>,
}

#[derive(Serialize)]
struct ResultError<'r> {
    code: &'static str,
    detail: &'r str,
}

fn outcome_word(outcome: &AppendOutcome) -> &'static str {
    match outcome.as_ref().map_err(|failure| failure.certainty) {
        Ok(_) => "ok",
        Err(Certainty::Refused) => "refused",
        Err(Certainty::Unknown) => "unknown",
    }
}
