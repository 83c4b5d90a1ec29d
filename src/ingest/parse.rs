//! Reads the events of a body: JSON (an event or an array of events) or NDJSON (one event a line).
//!
//! ```text
//!  body ── UTF-8? ── serde_json ── for each object: DocumentVisitor ─▶ EventVisitor ─▶ FieldNameVisitor
//!                                                                         │ four raw values that borrow the body
//!                                                                         └──▶ BatchBuilder::add
//! ```
//!
//! serde_json only finds where each value begins and ends. A payload that is not a string is therefore stored byte by
//! byte as it was sent. Nothing is parsed recursively either, so nesting needs no limit of its own. The whole body is
//! parsed before anything of it is stored.

use super::event_batch::{BatchBuilder, EventBatch, EventField, RawField, RequestContext};
use super::problem::{INVALID_UTF8, MALFORMED_JSON, NOT_AN_EVENT, Problem, REPEATED_FIELD, UNKNOWN_FIELD, echo};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use std::fmt;

/// Some programs write this before UTF-8. RFC 8259 (section 8.1) lets a reader ignore it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What was expected at the beginning of a JSON body.
const EVENT_OR_EVENTS: &str = "an event (an object) or an array of events";

/// What was expected in an array, or at the beginning of a line.
const EVENT: &str = "an event (an object)";

/// How the events of a body are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum BodyFormat {
    /// One event, or an array of events.
    Json,
    /// One event a line.
    Ndjson,
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
    let mut reader = JsonReader::new(context, EVENT_OR_EVENTS);
    let mut json = serde_json::Deserializer::from_str(text);
    let read = DocumentVisitor(&mut reader).deserialize(&mut json).and_then(|()| json.end());
    reader.check(read, text, begin)?;
    Ok(reader.builder.finish())
}

fn ndjson(body: &[u8], context: RequestContext<'_>) -> Result<EventBatch, Box<Problem>> {
    let (text, mut begin) = text_of(body)?;
    let mut reader = JsonReader::new(context, EVENT);
    for line in text.split_inclusive('\n') {
        if !line.trim_ascii().is_empty() {
            let mut json = serde_json::Deserializer::from_str(line);
            let read = EventVisitor(&mut reader).deserialize(&mut json).and_then(|()| json.end());
            reader.check(read, line, begin)?;
        }
        begin += line.len();
    }
    Ok(reader.builder.finish())
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

/// Reads the JSON of one request, and adds its events to the batch.
struct JsonReader<'c> {
    builder: BatchBuilder<'c>,
    /// What may come at the place that is being read.
    expected: &'static str,
    /// Why reading stopped, if the reason is not the JSON itself.
    problem: Option<Box<Problem>>,
}

impl<'c> JsonReader<'c> {
    fn new(context: RequestContext<'c>, expected: &'static str) -> Self {
        Self { builder: BatchBuilder::new(context), expected, problem: None }
    }

    /// Keeps the problem, and makes the error that stops serde. A serde error can only carry a string.
    fn stop<E: serde::de::Error>(&mut self, problem: Box<Problem>) -> E {
        self.problem = Some(problem.index(self.builder.len()));
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
        let detail = if begin == 0 && text.trim().is_empty() {
            format!("the body is empty: send {}", self.expected)
        } else if kind == NOT_AN_EVENT {
            // The message of serde_json would repeat the value that it found, which may be the whole body.
            format!("{} was expected, at byte {position}", self.expected)
        } else {
            // serde_json says line and column at the end of its message; the byte of the body says more.
            let message = error.to_string();
            let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
            format!("{message}, at byte {position}: send valid JSON")
        };
        Err(Problem::new(kind, detail).index(self.builder.len()).position(position))
    }
}

/// The byte of `text` at which serde_json stopped. Its lines count from 1. Its columns count bytes, and include the
/// byte that was wrong.
fn position(text: &str, error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let begin: usize = lines.map(str::len).sum();
    (begin + error.column().saturating_sub(1)).min(text.len())
}

/// Reads a whole JSON body: an event, or an array of events.
struct DocumentVisitor<'b, 'c>(&'b mut JsonReader<'c>);

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
struct EventVisitor<'b, 'c>(&'b mut JsonReader<'c>);

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
        self.0.builder.check_room().map_err(|problem| self.0.stop(problem))?;
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
        self.0.builder.add(found).map_err(|problem| self.0.stop(problem))
    }
}

/// Reads the name of a field, in any of its spellings.
struct FieldNameVisitor<'b, 'c>(&'b mut JsonReader<'c>);

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
