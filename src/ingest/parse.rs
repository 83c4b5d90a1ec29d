//! Makes records of a body: JSON (an event or an array of them) or NDJSON (an event a line).
//!
//! ```text
//!  body ── UTF-8? ── serde_json ── object by object: which field is it, and where do its raw bytes stand?
//!                                   └── Builder::event: checks the four fields, makes the record
//! ```
//!
//! Fields are read as raw values that borrow the body, so a payload that is no string is stored byte by byte as it was
//! sent, and nothing is parsed recursively, however deep it is nested. All of a body is looked at before anything of it
//! is stored.

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

/// What every event of a request shares.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context<'c> {
    pub(super) rules: Rules,
    pub(super) traceparent: Option<&'c str>,
    /// The replay that sends the request, if one does.
    pub(super) replay: Option<&'c str>,
}

/// What is the same whatever the request says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
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
pub(super) enum Format {
    /// One event or an array of them.
    Json,
    /// One event a line.
    Ndjson,
}

/// The events of a request, in its order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Record>,
    /// The partition of each.
    pub(super) partitions: Vec<u32>,
    pub(super) ids: Ids,
}

/// The ids of a request's events, in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Ids {
    text: String,
    ends: Vec<usize>,
}

impl Batch {
    /// What the records hold of `--max-pending`.
    pub(super) fn pending_bytes(&self) -> usize {
        self.records.iter().map(|record| record.size_bytes() + OVERHEAD_BYTES).sum()
    }
}

impl Ids {
    fn push(&mut self, id: &str) {
        self.text.push_str(id);
        self.ends.push(self.text.len());
    }

    /// The ids in the order of the events.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().scan(0, |begin, end| Some(&self.text[std::mem::replace(begin, *end)..*end]))
    }
}

/// The events of a body.
pub(super) fn batch(body: &[u8], format: Format, context: Context<'_>) -> Result<Batch, Box<Problem>> {
    match format {
        Format::Json => json(body, context),
        Format::Ndjson => ndjson(body, context),
    }
}

fn json(body: &[u8], context: Context<'_>) -> Result<Batch, Box<Problem>> {
    let (text, begin) = text_of(body)?;
    let mut builder = Builder::new(context, EVENT_OR_EVENTS);
    let mut json = serde_json::Deserializer::from_str(text);
    let read = Document(&mut builder).deserialize(&mut json).and_then(|()| json.end());
    builder.end(read, text, begin)?;
    Ok(builder.batch)
}

/// Empty lines are passed over.
fn ndjson(body: &[u8], context: Context<'_>) -> Result<Batch, Box<Problem>> {
    let (text, mut begin) = text_of(body)?;
    let mut builder = Builder::new(context, EVENT);
    for line in text.split_inclusive('\n') {
        if !line.trim_ascii().is_empty() {
            let mut json = serde_json::Deserializer::from_str(line);
            let read = Object(&mut builder).deserialize(&mut json).and_then(|()| json.end());
            builder.end(read, line, begin)?;
        }
        begin += line.len();
    }
    Ok(builder.batch)
}

/// The body as text, and the byte where it begins: behind a byte order mark, which some programs write before UTF-8 and
/// which RFC 8259 (section 8.1) lets a reader ignore.
fn text_of(body: &[u8]) -> Result<(&str, usize), Box<Problem>> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let position = error.valid_up_to();
        let detail = format!("byte {position} begins no UTF-8 character: JSON is sent as UTF-8");
        Problem::new(INVALID_UTF8, detail).position(position)
    })?;
    Ok(match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => (rest, BYTE_ORDER_MARK.len_utf8()),
        None => (text, 0),
    })
}

const BYTE_ORDER_MARK: char = '\u{feff}';

const EVENT_OR_EVENTS: &str = "an event (an object) or an array of events";
const EVENT: &str = "an event (an object)";

struct Builder<'c> {
    context: Context<'c>,
    batch: Batch,
    /// The headers of the event at hand.
    headers: Vec<u8>,
    /// What has to stand where reading is.
    expected: &'static str,
    /// Why reading was broken off, where it is not the JSON's fault.
    problem: Option<Box<Problem>>,
}

/// The four fields, and how each may be written.
#[derive(Clone, Copy)]
enum Field {
    User,
    Payload,
    Id,
    Type,
}

/// A field as the client wrote it: the name that it chose, and the raw bytes of the value.
type Given<'de> = Option<(&'static str, &'de RawValue)>;

impl<'c> Builder<'c> {
    fn new(context: Context<'c>, expected: &'static str) -> Self {
        Self { context, batch: Batch::default(), headers: Vec::new(), expected, problem: None }
    }

    /// Keeps the problem and makes the error that breaks reading off.
    fn fail<E: serde::de::Error>(&mut self, problem: Box<Problem>) -> E {
        self.problem = Some(problem.index(self.batch.records.len()));
        E::custom("broken off")
    }

    /// Turns what serde_json says of `text`, which begins at byte `begin` of the body, into a problem.
    fn end(&mut self, read: serde_json::Result<()>, text: &str, begin: usize) -> Result<(), Box<Problem>> {
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
            // serde_json would repeat what stands there, which may be the whole body.
            format!("{} was expected, at byte {position}", self.expected)
        } else {
            let said = error.to_string();
            let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
            format!("{said}, at byte {position}")
        };
        Err(Problem::new(kind, detail).index(self.batch.records.len()).position(position))
    }

    fn event(&mut self, fields: [Given<'_>; 4]) -> Result<(), Box<Problem>> {
        let [user, payload, id, kind] = fields;
        let (user_field, user) = user.ok_or_else(|| missing("UserID"))?;
        let (payload_field, payload) = payload.ok_or_else(|| missing("Payload"))?;
        let user = text(user_field, user)?;
        check_user(user_field, &user)?;
        let (content_type, value) = match payload.get().starts_with('"') {
            true => ("text/plain; charset=utf-8", text(payload_field, payload)?),
            false => ("application/json", Cow::Borrowed(payload.get())),
        };
        let kind = match kind {
            Some((field, raw)) => Some(short_text(field, raw, TYPE_BYTES_MAX)?),
            None => None,
        };
        let mut made = Uuid::encode_buffer();
        let given;
        let id = match id {
            Some((field, raw)) => {
                given = short_text(field, raw, ID_BYTES_MAX)?;
                &*given
            }
            None => Uuid::now_v7().hyphenated().encode_lower(&mut made),
        };
        self.encode_headers(id, content_type, kind.as_deref());
        let Rules { partitioner, partitions, max_event_bytes, timestamp_ms, .. } = self.context.rules;
        let record = Record::from_parts(Some(user.as_bytes()), Some(value.as_bytes()), &self.headers, timestamp_ms);
        if record.size_bytes() > max_event_bytes {
            let size = record.size_bytes();
            let detail = format!("user, payload and headers have {size} bytes, over {max_event_bytes} (--max-event)");
            return Err(Problem::new(EVENT_TOO_LARGE, detail));
        }
        self.batch.ids.push(id);
        self.batch.partitions.push(partitioner.partition(user.as_bytes(), partitions));
        self.batch.records.push(record);
        Ok(())
    }

    fn encode_headers(&mut self, id: &str, content_type: &str, kind: Option<&str>) {
        let mut headers = [
            (ID, Some(id.as_bytes())),
            (CONTENT_TYPE, Some(content_type.as_bytes())),
            ("", None),
            ("", None),
            ("", None),
        ];
        let mut count = 2;
        for (name, value) in [(TYPE, kind), (TRACEPARENT, self.context.traceparent), (REPLAY, self.context.replay)] {
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
    Problem::new(MISSING_FIELD, format!("{field} is missing")).field(field)
}

fn invalid(field: &str, detail: fmt::Arguments<'_>) -> Box<Problem> {
    Problem::new(INVALID_FIELD, format!("{field} {detail}")).field(field)
}

/// The text of a JSON string, borrowed where it holds no escapes.
fn text<'de>(field: &str, raw: &'de RawValue) -> Result<Cow<'de, str>, Box<Problem>> {
    let raw = raw.get();
    let Some(inner) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(invalid(field, format_args!("is no string")));
    };
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    // The grammar was checked already: what is left is half of a surrogate pair, which no UTF-8 text can hold.
    serde_json::from_str::<String>(raw).map(Cow::Owned).map_err(|_| {
        invalid(field, format_args!("holds half of a surrogate pair (such as \\ud800), which is no character"))
    })
}

fn short_text<'de>(field: &str, raw: &'de RawValue, max_bytes: usize) -> Result<Cow<'de, str>, Box<Problem>> {
    let text = text(field, raw)?;
    if text.is_empty() || text.len() > max_bytes {
        return Err(invalid(field, format_args!("has {} bytes, and takes 1 to {max_bytes}", text.len())));
    }
    if text.contains(char::is_control) {
        return Err(invalid(field, format_args!("holds a control character")));
    }
    Ok(text)
}

fn check_user(field: &str, user: &str) -> Result<(), Box<Problem>> {
    if user.is_empty() || user.len() > USER_BYTES_MAX {
        return Err(invalid(field, format_args!("has {} bytes, and takes 1 to {USER_BYTES_MAX}", user.len())));
    }
    if user.contains('\0') {
        return Err(invalid(field, format_args!("holds a NUL character")));
    }
    Ok(())
}

/// The byte where serde_json stopped: it counts lines from 1, and columns in bytes up to and with the one it looked at.
fn position(text: &str, error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    let begin: usize = lines.map(str::len).sum();
    (begin + error.column().saturating_sub(1)).min(text.len())
}

/// The whole body: an event or an array of them.
struct Document<'b, 'c>(&'b mut Builder<'c>);

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EVENT_OR_EVENTS)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        self.0.expected = EVENT;
        while events.next_element_seed(Object(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<(), A::Error> {
        Object(self.0).visit_map(fields)
    }
}

/// One event.
struct Object<'b, 'c>(&'b mut Builder<'c>);

impl<'de> DeserializeSeed<'de> for Object<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EVENT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let max = self.0.context.rules.max_batch_events;
        if self.0.batch.records.len() == max {
            let detail = format!("there are more than {max} events (--max-batch): send them in parts");
            return Err(self.0.fail(Problem::new(BATCH_TOO_LARGE, detail)));
        }
        let mut given: [Given<'de>; 4] = [None; 4];
        while let Some((field, name)) = fields.next_key_seed(Name(self.0))? {
            let slot = &mut given[field as usize];
            if let Some((before, _)) = slot {
                let detail = match name == *before {
                    true => format!("{name} is given twice"),
                    false => format!("{name} and {before} are the same field: give one of them"),
                };
                return Err(self.0.fail(Problem::new(REPEATED_FIELD, detail).field(name)));
            }
            *slot = Some((name, fields.next_value()?));
        }
        self.0.event(given).map_err(|problem| self.0.fail(problem))
    }
}

/// The name of a field.
struct Name<'b, 'c>(&'b mut Builder<'c>);

impl<'de> DeserializeSeed<'de> for Name<'_, '_> {
    type Value = (Field, &'static str);

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_, '_> {
    type Value = (Field, &'static str);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(match name {
            "UserID" => (Field::User, "UserID"),
            "userId" => (Field::User, "userId"),
            "user_id" => (Field::User, "user_id"),
            "Payload" => (Field::Payload, "Payload"),
            "payload" => (Field::Payload, "payload"),
            "ID" => (Field::Id, "ID"),
            "id" => (Field::Id, "id"),
            "Type" => (Field::Type, "Type"),
            "type" => (Field::Type, "type"),
            _ => {
                let detail = format!("{:?} is no field of an event: UserID, Payload, ID or Type", echo(name));
                return Err(self.0.fail(Problem::new(UNKNOWN_FIELD, detail).field(name)));
            }
        })
    }
}
