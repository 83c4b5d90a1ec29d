//! Escapes control characters in log lines. A log line may repeat text from outside, such as a user id or the answer of a
//! destination, and such text must not be able to control the terminal of the person who reads it.
//! [`core::text`](crate::core::text) has the rules.
//!
//! Values are escaped while a line is formatted. After that, the colour codes of the text format could no longer be told
//! apart from control characters that a client sent.

use crate::core::names;
use crate::core::text::{escaped, escaped_json};
use std::fmt;
use tracing::field::Field;
use tracing::{Event, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats the message and the fields of a text line like `tracing-subscriber` does, but escapes each value.
pub(super) fn fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    debug_fn(field).delimited(" ")
}

/// Fields that are written without quotation marks, so that one `grep` finds all of their lines. Their values are names
/// without spaces.
const UNQUOTED: [&str; 2] = ["destination", "topic"];

fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = format!("{value:?}");
    let value = escaped(&value);
    let name = field.name().trim_start_matches("r#");
    let unquoted = || value.strip_prefix('"')?.strip_suffix('"').filter(|inner| inner.chars().all(names::may_contain));
    let value = unquoted().filter(|_| UNQUOTED.contains(&name)).unwrap_or(&value);
    match name {
        "message" => writer.write_str(value),
        // Names in italics, as `tracing-subscriber` writes them.
        _ if writer.has_ansi_escapes() => write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}"),
        _ => write!(writer, "{name}={value}"),
    }
}

/// Wraps the format of JSON lines and escapes control characters that JSON allows in strings.
pub(super) struct Json<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for Json<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&escaped_json(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    const EVIL: &str = "a\u{1b}[2J\u{7}\nERROR forged\r\u{9b}2J\u{202e}\u{2028}\u{7f}\u{200b}";

    fn log_a_line_with_every_kind_of_field() {
        let error = anyhow::anyhow!("{EVIL}").context("cannot deliver");
        tracing::warn!(user = EVIL, id = %EVIL, answer = ?EVIL, error = &*error as &dyn std::error::Error, "given up: {EVIL}");
    }

    fn assert_one_harmless_line(text: &str) {
        let line = text.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(crate::core::text::is_escaped), "{line:?}");
    }

    #[test]
    fn a_text_line_contains_no_control_characters_from_outside() {
        for ansi in [false, true] {
            let lines = Lines::default();
            let writer = lines.clone();
            let builder = tracing_subscriber::fmt().fmt_fields(fields()).with_ansi(ansi);
            tracing::subscriber::with_default(
                builder.with_writer(move || writer.clone()).finish(),
                log_a_line_with_every_kind_of_field,
            );
            // The line's own colour codes are removed. The rest must not contain control characters.
            let mut text = lines.text();
            for colour in ["\x1b[0m", "\x1b[2m", "\x1b[3m", "\x1b[33m"] {
                text = text.replace(colour, "");
            }
            assert_one_harmless_line(&text);
            assert!(text.contains(r"given up: a\u{1b}[2J\u{7}\nERROR forged\r\u{9b}2J"), "{text}");
            assert!(text.contains("user=\"a") && text.contains(" id=a") && text.contains(" error=cannot"), "{text}");
        }
    }

    #[test]
    fn the_name_of_a_destination_and_of_a_topic_has_no_quotation_marks() {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().fmt_fields(fields()).with_ansi(false);
        tracing::subscriber::with_default(builder.with_writer(move || writer.clone()).finish(), || {
            tracing::info!(destination = "billing", user = "u-1", "one");
            tracing::info!(destination = %"billing", topic = "events", "two");
            tracing::info!(destination = EVIL, "three");
        });
        let text = lines.text();
        for says in
            ["one destination=billing user=\"u-1\"", "two destination=billing topic=events", "three destination=\"a"]
        {
            assert!(text.contains(says), "{says}: {text}");
        }
    }

    #[test]
    fn a_json_line_contains_the_text_but_no_raw_control_characters() {
        let lines = Lines::default();
        let writer = lines.clone();
        let builder = tracing_subscriber::fmt().json().flatten_event(true).map_event_format(Json);
        tracing::subscriber::with_default(
            builder.with_writer(move || writer.clone()).finish(),
            log_a_line_with_every_kind_of_field,
        );
        let text = lines.text();
        assert_one_harmless_line(&text);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["user"], &line["id"]), (&EVIL.into(), &EVIL.into()), "{text}");
        assert_eq!(line["message"], format!("given up: {EVIL}"));
    }
}
