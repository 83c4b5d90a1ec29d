//! Makes records of a body: JSON (an event or an array of events) or NDJSON (one event a line).
//!
//! ```text
//!  body ── UTF-8? ── serde_json ── for each object: DocumentVisitor ─▶ EventVisitor ─▶ FieldNameVisitor
//!                                                                         │ four raw values that borrow the body
//!                                                                         ▼
//!                                                     BatchBuilder::add: checks the fields, makes the record
//! ```
//!
//! serde_json only finds where each value begins and ends. A payload that is not a string is therefore stored byte by
//! byte as it was sent. Nothing is parsed recursively either, so nesting needs no limit of its own. The whole body is
//! parsed before anything of it is stored.

use super::problem::{
    BATCH_TOO_LARGE, EVENT_TOO_LARGE, INVALID_FIELD, INVALID_UTF8, MALFORMED_JSON, MISSING_FIELD, NOT_AN_EVENT,
    Problem, REPEATED_FIELD, UNKNOWN_FIELD, echo,
};
use crate::core::event::{CONTENT_TYPE, ID, OVERHEAD_BYTES, REPLAY, Record, TRACEPARENT, TYPE, encode_headers};
use crate::core::partition::Partitioner;
use crate::limits::{ID_BYTES_MAX, TYPE_BYTES_MAX, USER_BYTES_MAX};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use uuid::Uuid;

/// Some programs write this before UTF-8. RFC 8259 (section 8.1) lets a reader ignore it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What was expected at the beginning of a JSON body.
const EVENT_OR_EVENTS: &str = "an event (an object) or an array of events";

/// What was expected in an array, or at the beginning of a line.
const EVENT: &str = "an event (an object)";

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

/// How the events of a body are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum BodyFormat {
    /// One event, or an array of events.
    Json,
    /// One event a line.
    Ndjson,
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

/// Makes records of all events of a body.
pub(super) fn batch(body: &[u8], format: BodyFormat, context: RequestContext<'_>) -> Result<EventBatch, Box<Problem>> {
    match format {
        BodyFormat::Json => json(body, context),
        BodyFormat::Ndjson => ndjson(body, context),
    }
}

fn json(body: &[u8], context: RequestContext<'_>) -> Result<EventBatch, Box<Problem>> {
    let (text, begin) = text_of(body)?;
    let mut builder = BatchBuilder::new(context, EVENT_OR_EVENTS);
    let mut json = serde_json::Deserializer::from_str(text);
    let read = DocumentVisitor(&mut builder).deserialize(&mut json).and_then(|()| json.end());
    builder.check(read, text, begin)?;
    Ok(builder.batch)
}

fn ndjson(body: &[u8], context: RequestContext<'_>) -> Result<EventBatch, Box<Problem>> {
    let (text, mut begin) = text_of(body)?;
    let mut builder = BatchBuilder::new(context, EVENT);
    for line in text.split_inclusive('\n') {
        if !line.trim_ascii().is_empty() {
            let mut json = serde_json::Deserializer::from_str(line);
            let read = EventVisitor(&mut builder).deserialize(&mut json).and_then(|()| json.end());
            builder.check(read, line, begin)?;
        }
        begin += line.len();
    }
    Ok(builder.batch)
}

/// The body as text without a byte order mark, and the number of the body's bytes before that text.
fn text_of(body: &[u8]) -> Result<(&str, usize), Box<Problem>> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let position = error.valid_up_to();
        let detail = format!("byte {position} does not begin a UTF-8 character: send JSON in UTF-8");
        Problem::new(INVALID_UTF8, detail).position(position)
    })?;
    Ok(match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => (rest, BYTE_ORDER_MARK.len_utf8()),
        None => (text, 0),
    })
}

/// Collects the events of one request.
struct BatchBuilder<'c> {
    context: RequestContext<'c>,
    batch: EventBatch,
    /// The encoded headers of the current event. The buffer is used again for each event.
    headers: Vec<u8>,
    /// What may come at the place that is being read.
    expected: &'static str,
    /// Why reading stopped, if the reason is not the JSON itself.
    problem: Option<Box<Problem>>,
}

/// The four fields of an event.
#[derive(Clone, Copy)]
enum EventField {
    User,
    Payload,
    Id,
    Type,
}

/// A field as the client wrote it: the spelling of its name, and the raw bytes of the value.
type RawField<'de> = Option<(&'static str, &'de RawValue)>;

impl<'c> BatchBuilder<'c> {
    fn new(context: RequestContext<'c>, expected: &'static str) -> Self {
        Self { context, batch: EventBatch::default(), headers: Vec::new(), expected, problem: None }
    }

    /// Keeps the problem, and makes the error that stops serde. A serde error can only carry a string.
    fn stop<E: serde::de::Error>(&mut self, problem: Box<Problem>) -> E {
        self.problem = Some(problem.index(self.batch.records.len()));
        E::custom("stopped")
    }

    /// Turns an error of serde into a problem. `text` is what was read, and begins at byte `begin` of the body.
    fn check(&mut self, read: serde_json::Result<()>, text: &str, begin: usize) -> Result<(), Box<Problem>> {
        let Err(error) = read else { return Ok(()) };
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        let (kind, position) = match error.classify() {
            Category::Eof => (MALFORMED_JSON, begin + text.len()),
            Category::Data => (NOT_AN_EVENT, begin + position(text, &error)),
            Category::Syntax | Category::Io => (MALFORMED_JSON, begin + position(text, &error)),
        };
        let detail = if kind == NOT_AN_EVENT {
            // The message of serde_json would repeat the value that it found, which may be the whole body.
            format!("{} was expected, at byte {position}", self.expected)
        } else {
            // serde_json says line and column at the end of its message; the byte of the body says more.
            let message = error.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            format!("{message}, at byte {position}: send valid JSON")
        };
        Err(Problem::new(kind, detail).index(self.batch.records.len()).position(position))
    }

    fn add(&mut self, fields: [RawField<'_>; 4]) -> Result<(), Box<Problem>> {
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

/// The byte of `text` at which serde_json stopped. Its lines count from 1. Its columns count bytes, and include the
/// byte that was wrong.
fn position(text: &str, error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let begin: usize = lines.map(str::len).sum();
    (begin + error.column().saturating_sub(1)).min(text.len())
}

/// Reads a whole JSON body: an event, or an array of events.
struct DocumentVisitor<'b, 'c>(&'b mut BatchBuilder<'c>);

impl<'de> DeserializeSeed<'de> for DocumentVisitor<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for DocumentVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EVENT_OR_EVENTS)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        self.0.expected = EVENT;
        while events.next_element_seed(EventVisitor(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<(), A::Error> {
        EventVisitor(self.0).visit_map(fields)
    }
}

/// Reads one event, and adds it to the batch.
struct EventVisitor<'b, 'c>(&'b mut BatchBuilder<'c>);

impl<'de> DeserializeSeed<'de> for EventVisitor<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EVENT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let max = self.0.context.rules.max_batch_events;
        if self.0.batch.records.len() == max {
            let detail = format!("the request has more than {max} events (--max-batch): send them in parts");
            return Err(self.0.stop(Problem::new(BATCH_TOO_LARGE, detail)));
        }
        let mut found: [RawField<'de>; 4] = [None; 4];
        while let Some((field, name)) = fields.next_key_seed(FieldNameVisitor(self.0))? {
            let slot = &mut found[field as usize];
            if let Some((before, _)) = slot {
                let detail = match name == *before {
                    true => format!("{name} is given twice: send it once"),
                    false => format!("{before} and {name} are two names of the same field: send one of them"),
                };
                return Err(self.0.stop(Problem::new(REPEATED_FIELD, detail).field(name)));
            }
            *slot = Some((name, fields.next_value()?));
        }
        self.0.add(found).map_err(|problem| self.0.stop(problem))
    }
}

/// Reads the name of a field, in any of its spellings.
struct FieldNameVisitor<'b, 'c>(&'b mut BatchBuilder<'c>);

impl<'de> DeserializeSeed<'de> for FieldNameVisitor<'_, '_> {
    type Value = (EventField, &'static str);

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldNameVisitor<'_, '_> {
    type Value = (EventField, &'static str);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(match name {
            "UserID" => (EventField::User, "UserID"),
            "userId" => (EventField::User, "userId"),
            "user_id" => (EventField::User, "user_id"),
            "Payload" => (EventField::Payload, "Payload"),
            "payload" => (EventField::Payload, "payload"),
            "ID" => (EventField::Id, "ID"),
            "id" => (EventField::Id, "id"),
            "Type" => (EventField::Type, "Type"),
            "type" => (EventField::Type, "type"),
            _ => {
                let detail = format!("{:?} is not a field of an event: use UserID, Payload, ID or Type", echo(name));
                return Err(self.0.stop(Problem::new(UNKNOWN_FIELD, detail).field(name)));
            }
        })
    }
}
