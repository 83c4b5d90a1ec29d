//! Makes records of events: checks the four fields, generates a missing id, chooses the partition.

use super::problem::{BATCH_TOO_LARGE, EVENT_TOO_LARGE, INVALID_FIELD, MISSING_FIELD, Problem};
use super::response::EventIds;
use crate::core::event::{CONTENT_TYPE, ID, OVERHEAD_BYTES, REPLAY, Record, TRACEPARENT, TYPE, encode_headers};
use crate::core::partition::Partitioner;
use crate::limits::USER_BYTES_MAX;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use uuid::Uuid;

/// Bytes of an event's id, which is a header of every attempt.
const ID_BYTES_MAX: usize = 255;

/// Bytes of an event's type, which is a header of every attempt.
const TYPE_BYTES_MAX: usize = 255;

/// What all events of one request share.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestContext<'c> {
    pub(super) rules: EventRules,
    pub(super) traceparent: Option<&'c str>,
    /// The id of the replay, if another eventd sends the request during one.
    pub(super) replay_id: Option<&'c str>,
}

/// The rules that do not depend on what the request says.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventRules {
    pub(super) partitioner: Partitioner,
    /// At least 1.
    pub(super) partitions: u32,
    pub(super) max_event_bytes: usize,
    pub(super) max_batch_events: usize,
    /// When the request was accepted, in milliseconds since the Unix epoch.
    pub(super) timestamp_ms: i64,
}

/// The events of a request, in its order.
#[derive(Debug, Default)]
pub(super) struct EventBatch {
    pub(super) records: Vec<Record>,
    /// The partition of each record.
    pub(super) partitions: Vec<u32>,
    pub(super) ids: EventIds,
}

impl EventBatch {
    /// How many bytes of `--max-pending` the records use.
    pub(super) fn pending_bytes(&self) -> usize {
        self.records.iter().map(|record| record.size_bytes() + OVERHEAD_BYTES).sum()
    }
}

/// The four fields of an event. An array of fields has them in this order.
#[derive(Debug, Clone, Copy)]
pub(super) enum EventField {
    User,
    Payload,
    Id,
    Type,
}

/// A field as the client wrote it: the spelling of its name, and the raw bytes of the value.
pub(super) type RawField<'de> = Option<(&'static str, &'de RawValue)>;

/// Collects the events of one request.
pub(super) struct BatchBuilder<'c> {
    context: RequestContext<'c>,
    batch: EventBatch,
    /// The encoded headers of the current event. The buffer is used again for each event.
    headers: Vec<u8>,
}

impl<'c> BatchBuilder<'c> {
    pub(super) fn new(context: RequestContext<'c>) -> Self {
        Self { context, batch: EventBatch::default(), headers: Vec::new() }
    }

    /// How many events were added.
    pub(super) fn len(&self) -> usize {
        self.batch.records.len()
    }

    pub(super) fn finish(self) -> EventBatch {
        self.batch
    }

    /// Refuses one more event if the request has as many as `--max-batch` allows.
    pub(super) fn check_room(&self) -> Result<(), Box<Problem>> {
        let max = self.context.rules.max_batch_events;
        if self.len() < max {
            return Ok(());
        }
        let detail = format!("the request has more than {max} events (--max-batch): send them in parts");
        Err(Problem::new(BATCH_TOO_LARGE, detail))
    }

    /// Checks the fields of an event, and adds its record.
    pub(super) fn add(&mut self, fields: [RawField<'_>; 4]) -> Result<(), Box<Problem>> {
        let [user, payload, id, event_type] = fields;
        let (user_field, user) = user.ok_or_else(|| missing("UserID"))?;
        let (payload_field, payload) = payload.ok_or_else(|| missing("Payload"))?;
        let user = text(user_field, user)?;
        check_user(user_field, &user)?;
        let (content_type, value) = match payload.get().starts_with('"') {
            true => ("text/plain; charset=utf-8", text(payload_field, payload)?),
            false => ("application/json", Cow::Borrowed(payload.get())),
        };
        let event_type = match event_type {
            Some((field, raw)) => Some(short_text(field, raw, TYPE_BYTES_MAX)?),
            None => None,
        };
        let mut generated = Uuid::encode_buffer();
        let sent;
        let id = match id {
            Some((field, raw)) => {
                sent = short_text(field, raw, ID_BYTES_MAX)?;
                &*sent
            }
            None => Uuid::now_v7().hyphenated().encode_lower(&mut generated),
        };
        self.encode_headers(id, content_type, event_type.as_deref());
        let EventRules { partitioner, partitions, max_event_bytes, timestamp_ms, .. } = self.context.rules;
        let record = Record::from_parts(Some(user.as_bytes()), Some(value.as_bytes()), &self.headers, timestamp_ms);
        if record.size_bytes() > max_event_bytes {
            let size = record.size_bytes();
            let detail = format!(
                "user, payload and headers have {size} bytes, and --max-event allows {max_event_bytes}: send a smaller \
                 payload, or a reference to it"
            );
            return Err(Problem::new(EVENT_TOO_LARGE, detail));
        }
        self.batch.ids.push(id);
        self.batch.partitions.push(partitioner.partition(user.as_bytes(), partitions));
        self.batch.records.push(record);
        Ok(())
    }

    fn encode_headers(&mut self, id: &str, content_type: &str, event_type: Option<&str>) {
        let mut headers = [
            (ID, Some(id.as_bytes())),
            (CONTENT_TYPE, Some(content_type.as_bytes())),
            ("", None),
            ("", None),
            ("", None),
        ];
        let mut count = 2;
        let RequestContext { traceparent, replay_id, .. } = self.context;
        for (name, value) in [(TYPE, event_type), (TRACEPARENT, traceparent), (REPLAY, replay_id)] {
            if let Some(value) = value {
                headers[count] = (name, Some(value.as_bytes()));
                count += 1;
            }
        }
        self.headers.clear();
        encode_headers(&headers[..count], &mut self.headers);
    }
}

fn missing(field: &'static str) -> Box<Problem> {
    Problem::new(MISSING_FIELD, format!("the event has no {field}: send one")).field(field)
}

fn invalid(field: &str, detail: fmt::Arguments<'_>) -> Box<Problem> {
    Problem::new(INVALID_FIELD, format!("{field} {detail}")).field(field)
}

/// The text of a JSON string. It borrows the body if the string has no escapes.
fn text<'de>(field: &str, raw: &'de RawValue) -> Result<Cow<'de, str>, Box<Problem>> {
    let raw = raw.get();
    let Some(inner) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(invalid(field, format_args!("is not a string: send a string")));
    };
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    // The syntax was checked before. The only error left is half of a surrogate pair, which UTF-8 cannot represent.
    serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|_| {
        let detail = "has half of a surrogate pair (such as \\ud800), which is not a character: send both halves";
        invalid(field, format_args!("{detail}"))
    })
}

fn short_text<'de>(field: &str, raw: &'de RawValue, max_bytes: usize) -> Result<Cow<'de, str>, Box<Problem>> {
    let text = text(field, raw)?;
    check_bytes(field, &text, max_bytes)?;
    if text.contains(char::is_control) {
        return Err(invalid(field, format_args!("has a control character: remove it")));
    }
    Ok(text)
}

fn check_user(field: &str, user: &str) -> Result<(), Box<Problem>> {
    check_bytes(field, user, USER_BYTES_MAX)?;
    if user.contains('\0') {
        return Err(invalid(field, format_args!("has a NUL character: remove it")));
    }
    Ok(())
}

fn check_bytes(field: &str, text: &str, max_bytes: usize) -> Result<(), Box<Problem>> {
    if text.is_empty() || text.len() > max_bytes {
        return Err(invalid(field, format_args!("has {} bytes: send 1 to {max_bytes}", text.len())));
    }
    Ok(())
}
