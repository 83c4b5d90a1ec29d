//! Writes an event as one line of JSON, for files and standard output.
//!
//! ```text
//! {"user":"user-1","payload":"…","id":"…","partition":0,"offset":17,"timestamp":"2026-01-02T03:04:05.678Z",
//!  "type":"…","content_type":"…"}
//! ```
//!
//! A field whose value is absent is left out. Bytes that are not UTF-8 are written to `payload_base64` (`user_base64`)
//! instead. In strings, characters that a terminal would interpret are written as `\u009b`, which a JSON parser reads as
//! the same text. The time is UTC with milliseconds. It is left out if the producer gave none, or if its year does not
//! have four digits.

use crate::core::event::{self, Event};
use crate::core::text::escaped_json;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::civil::DateTime;
use jiff::fmt::StdIoWrite;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::{SignedDuration, Timestamp};
use std::borrow::Cow;
use std::io::Write;

/// The beginning of the year 0, in milliseconds since the Unix epoch.
const YEAR_ZERO_MS: i64 = -62_167_219_200_000;

/// The end of the year 9999, in milliseconds since the Unix epoch.
const YEAR_9999_END_MS: i64 = 253_402_300_800_000;

const UNIX_EPOCH_UTC: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// The possible beginnings of a line. They distinguish an incomplete line of eventd from the text of another program.
pub(super) const LINE_PREFIXES: [&[u8]; 4] =
    [b"{\"user\":", b"{\"user_base64\":", b"{\"payload\":", b"{\"payload_base64\":"];

/// Appends the event as one line, with its line break, to `lines`.
pub(super) fn append(topic: &str, partition: u32, event: &Event, lines: &mut Vec<u8>) {
    let record = &event.record;
    let (mut id, mut kind, mut content_type) = (None, None, None);
    for (name, value) in record.headers() {
        let wanted = match name {
            event::ID => &mut id,
            event::TYPE => &mut kind,
            event::CONTENT_TYPE => &mut content_type,
            _ => continue,
        };
        // If a header is repeated, the first one counts, even if its value is unusable. `Event::id` has the same rule.
        wanted.get_or_insert(value);
    }

    lines.push(b'{');
    if let Some(user) = record.key() {
        bytes("\"user", user, lines);
        lines.push(b',');
    }
    match record.value() {
        Some(payload) => bytes("\"payload", payload, lines),
        None => lines.extend_from_slice(b"\"payload\":null"),
    }
    lines.extend_from_slice(b",\"id\":");
    match text(id) {
        Some(id) => string(id, lines),
        None => string(&event.id(topic, partition), lines),
    }
    put(lines, format_args!(",\"partition\":{partition},\"offset\":{}", event.offset));
    timestamp("timestamp", record.timestamp_ms, lines);
    if let Some(kind) = text(kind) {
        lines.extend_from_slice(b",\"type\":");
        string(kind, lines);
    }
    if let Some(content_type) = text(content_type) {
        lines.extend_from_slice(b",\"content_type\":");
        string(content_type, lines);
    }
    lines.extend_from_slice(b"}\n");
}

/// The value of a header, if the header is present and its value is UTF-8.
fn text(value: Option<Option<&[u8]>>) -> Option<&str> {
    std::str::from_utf8(value.flatten()?).ok()
}

/// Appends `name":"text"` if the bytes are UTF-8, else `name_base64":"…"`.
fn bytes(name: &str, bytes: &[u8], lines: &mut Vec<u8>) {
    lines.extend_from_slice(name.as_bytes());
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            lines.extend_from_slice(b"\":");
            string(text, lines);
        }
        Err(_) => {
            lines.extend_from_slice(b"_base64\":\"");
            let start = lines.len();
            lines.resize(start + bytes.len().div_ceil(3) * 4, 0);
            BASE64_STANDARD
                .encode_slice(bytes, &mut lines[start..])
                .expect("the buffer has four characters for every three bytes");
            lines.push(b'"');
        }
    }
}

/// Appends a JSON string. Characters that a terminal would interpret are escaped, because people look at these lines and
/// standard output may be a terminal.
fn string(text: &str, lines: &mut Vec<u8>) {
    let written = match escaped_json(text) {
        Cow::Borrowed(text) => serde_json::to_writer(lines, text),
        // This is rare, so a second pass over the text does not matter.
        Cow::Owned(_) => serde_json::to_string(text).map(|json| lines.extend(escaped_json(&json).bytes())),
    };
    written.expect("writing a string to memory cannot fail");
}

fn put(lines: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    lines.write_fmt(arguments).expect("writing numbers to memory cannot fail");
}

/// Appends the timestamp as a field with this name, in RFC 3339 form, in UTC with milliseconds.
pub(super) fn timestamp(name: &str, timestamp_ms: i64, lines: &mut Vec<u8>) {
    static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    // In Kafka, a timestamp of -1 means "none". Years before 0 would have a sign and six digits.
    if timestamp_ms == -1 || !(YEAR_ZERO_MS..YEAR_9999_END_MS).contains(&timestamp_ms) {
        return;
    }
    put(lines, format_args!(",\"{name}\":\""));
    let written = match Timestamp::from_millisecond(timestamp_ms) {
        Ok(timestamp) => PRINTER.print_timestamp(&timestamp, StdIoWrite(&mut *lines)),
        // A `Timestamp` ends a day before the year 9999 does, so that it has a date in every time zone.
        Err(_) => {
            let time = UNIX_EPOCH_UTC + SignedDuration::from_millis(timestamp_ms);
            PRINTER.print_datetime(&time, StdIoWrite(&mut *lines)).map(|()| lines.push(b'Z'))
        }
    };
    written.expect("writing to memory cannot fail");
    lines.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn line(record: Record) -> String {
        let mut lines = Vec::new();
        append("user-events", 2, &Event { offset: 17, record }, &mut lines);
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn the_fields_of_a_line_have_a_fixed_order() {
        let headers: &[(&str, Option<&[u8]>)] = &[
            ("eventd-id", Some(b"id-1")),
            ("content-type", Some(b"text/plain; charset=utf-8")),
            ("eventd-type", Some(b"made")),
        ];
        let record = Record::new(Some(b"user-1"), Some(b"a \"b\"\n"), headers, 1_767_323_045_678);
        assert_eq!(
            line(record),
            "{\"user\":\"user-1\",\"payload\":\"a \\\"b\\\"\\n\",\"id\":\"id-1\",\"partition\":2,\"offset\":17,\
             \"timestamp\":\"2026-01-02T03:04:05.678Z\",\"type\":\"made\",\"content_type\":\"text/plain; charset=utf-8\"}\n"
        );
    }

    #[test]
    fn absent_fields_are_left_out_and_a_tombstone_has_a_null_payload() {
        assert_eq!(
            line(Record::new(None, None, &[], -1)),
            "{\"payload\":null,\"id\":\"user-events-2-17\",\"partition\":2,\"offset\":17}\n"
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_written_in_base64() {
        assert_eq!(
            line(Record::new(Some(b"\xff"), Some(b"\x00\xff"), &[], -1)),
            "{\"user_base64\":\"/w==\",\"payload_base64\":\"AP8=\",\"id\":\"user-events-2-17\",\"partition\":2,\"offset\":17}\n"
        );
    }

    #[test]
    fn characters_that_a_terminal_interprets_are_escaped_and_a_parser_reads_the_original_text() {
        let evil = "\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\u{2028}\u{200b}\n\\ \"é\"";
        let headers: &[(&str, Option<&[u8]>)] = &[
            (event::ID, Some(evil.as_bytes())),
            (event::TYPE, Some(evil.as_bytes())),
            (event::CONTENT_TYPE, Some(evil.as_bytes())),
        ];
        let line = line(Record::new(Some(evil.as_bytes()), Some(evil.as_bytes()), headers, 0));
        assert!(!line.trim_end_matches('\n').chars().any(crate::core::text::is_escaped), "{line:?}");
        assert!(line.contains(r"\u009b2J\u007f\u202e\u2028\u200b\n") && line.contains('é'), "{line}");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        for field in ["user", "payload", "id", "type", "content_type"] {
            assert_eq!(parsed[field], evil, "{field}");
        }
    }

    proptest! {
        #[test]
        fn a_parser_reads_back_the_bytes_that_were_stored(
            user in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            payload in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200), "\\PC{0,100}".prop_map(String::into_bytes)],
        ) {
            let line = line(Record::new(user.as_deref(), Some(&payload), &[], 0));
            prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
            prop_assert!(LINE_PREFIXES.iter().any(|beginning| line.as_bytes().starts_with(beginning)));
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            let get = |name: &str| match (&parsed[name], &parsed[format!("{name}_base64")]) {
                (serde_json::Value::String(text), _) => Some(text.clone().into_bytes()),
                (_, serde_json::Value::String(text)) => Some(BASE64_STANDARD.decode(text).unwrap()),
                _ => None,
            };
            prop_assert_eq!(get("payload"), Some(payload));
            prop_assert_eq!(get("user"), user);
        }

        #[test]
        fn timestamps_agree_with_those_of_another_library(timestamp_ms in prop_oneof![
            0..YEAR_9999_END_MS,
            Timestamp::MAX.as_millisecond() - 1_000..YEAR_9999_END_MS,
        ]) {
            let mut lines = Vec::new();
            timestamp("timestamp", timestamp_ms, &mut lines);
            let other = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(timestamp_ms as u64));
            prop_assert_eq!(String::from_utf8(lines).unwrap(), format!(",\"timestamp\":\"{other}\""));
        }

        #[test]
        fn timestamps_before_the_unix_epoch_have_a_year_of_four_digits_or_are_left_out(timestamp_ms in prop_oneof![i64::MIN..0, YEAR_ZERO_MS - 1_000..YEAR_ZERO_MS + 1_000, YEAR_ZERO_MS..0]) {
            let mut lines = Vec::new();
            timestamp("timestamp", timestamp_ms, &mut lines);
            let is_left_out = timestamp_ms == -1 || timestamp_ms < YEAR_ZERO_MS;
            prop_assert_eq!(lines.len(), if is_left_out { 0 } else { r#","timestamp":"2026-01-02T03:04:05.678Z""#.len() });
        }

        #[test]
        fn every_timestamp_gives_a_line_of_valid_json(timestamp_ms in any::<i64>()) {
            let line = line(Record::new(None, None, &[], timestamp_ms));
            prop_assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
        }
    }
}
