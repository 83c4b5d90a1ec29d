//! Escapes text that comes from outside before it is shown: characters that a terminal interprets, and invisible ones.
//!
//! Users, ids, types, topics, answers of receivers and messages of brokers come from outside. Unescaped, they could move
//! the cursor, hide the text before a question such as "deliver these? [y/N]", reverse the order of characters, or forge a
//! log line. Everything that eventd prints passes one of these functions:
//!
//! ```text
//!  plan, prompt, list ─▶ escaped       log line, text ─▶ escaped (each message and field, in `telemetry`)
//!  answer of a receiver ─▶ shown       log line as JSON; line of a file; any JSON output ─▶ escaped_json
//! ```
//!
//! These characters are escaped: control characters (C0, DEL, C1), line and paragraph separators, marks of the direction
//! of text, and format characters without width (zero-width spaces and joiners, byte order marks, tags).

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a terminal interprets this character, or shows nothing for it.
pub fn is_escaped(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Whether the text can be shown unchanged. It must be fast for ASCII, because every line of every
/// event passes it.
fn is_plain(text: &str) -> bool {
    // Without a branch for each byte, the compiler can examine many bytes at once.
    let suspicious = text.bytes().fold(false, |any, byte| any | !(0x20..0x7f).contains(&byte));
    !suspicious || !text.chars().any(is_escaped)
}

/// The text with unsafe characters written as `\n`, `\t`, `\u{1b}`, `\u{9b}`, `\u{202e}`. Escaping the result again does
/// not change it.
///
/// ```
/// use eventd::core::text::escaped;
/// assert_eq!(escaped("user-1"), "user-1");
/// assert_eq!(escaped("a\u{1b}[2J\nb\u{202e}"), r"a\u{1b}[2J\nb\u{202e}");
/// ```
pub fn escaped(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match is_escaped(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// The first `bytes_max` bytes as [`escaped`] text, with `…` if there are more. Bytes that are not UTF-8 become `�`.
///
/// ```
/// use eventd::core::text::shown;
/// assert_eq!(shown(b"no such account\n", 200), r"no such account\n");
/// assert_eq!(shown("Grüße".as_bytes(), 3), "Gr…");
/// ```
pub fn shown(bytes: &[u8], bytes_max: usize) -> String {
    let Some(mut first) = bytes.get(..bytes_max).filter(|first| first.len() < bytes.len()) else {
        return escaped(&String::from_utf8_lossy(bytes)).into_owned();
    };
    // If the limit is inside a character, the whole character is left out.
    if let Some(chunk) = first.utf8_chunks().last()
        && chunk.invalid().len() < 4
        && bytes.get(bytes_max).is_some_and(|next| next & 0xc0 == 0x80)
    {
        first = &first[..first.len() - chunk.invalid().len()];
    }
    format!("{}…", escaped(&String::from_utf8_lossy(first)))
}

/// The text as one word of a shell: unchanged if every character is plain, or else in single quotation marks.
///
/// ```
/// use eventd::core::text::shell_quoted;
/// assert_eq!(shell_quoted("sqlite:/var/lib/eventd.db"), "sqlite:/var/lib/eventd.db");
/// assert_eq!(shell_quoted("sqlite:ada's log.db"), r"'sqlite:ada'\''s log.db'");
/// ```
pub fn shell_quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => Cow::Borrowed(text),
        false => Cow::Owned(format!("'{}'", text.replace('\'', r"'\''"))),
    }
}

/// A flag with its value, as an operator can paste it. A value that begins with a hyphen could be taken for another flag.
pub fn shell_flag(flag: &str, value: &str) -> String {
    let separator = if value.starts_with('-') { '=' } else { ' ' };
    format!("{flag}{separator}{}", shell_quoted(value))
}

/// JSON text in which unsafe characters inside strings are written as `\u009b`. A parser reads the same value.
///
/// JSON itself requires escapes only for some of these characters. All of them can only be inside strings, because JSON has
/// none of them between its tokens. Control characters between tokens, such as line breaks, stay.
///
/// ```
/// use eventd::core::text::escaped_json;
/// assert_eq!(escaped_json("{\"user\":\"a\u{9b}2J\"}\n"), "{\"user\":\"a\\u009b2J\"}\n");
/// ```
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    let suspicious = json.bytes().fold(false, |any, byte| any | (byte >= 0x7f));
    if !suspicious || !json.chars().any(is_raw_in_json) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_raw_in_json(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("writing to a string cannot fail");
            }
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Whether JSON allows the character unescaped in a string although a terminal interprets it.
fn is_raw_in_json(character: char) -> bool {
    character >= '\u{7f}' && is_escaped(character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One or more characters of each kind that a terminal interprets or does not show.
    const UNSAFE: &str = "\0\u{1b}\u{7}\u{8}\n\r\t\u{7f}\u{80}\u{9b}\u{9d}\u{9f}\u{ad}\u{61c}\u{200b}\u{200c}\u{200d}\
        \u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}\u{fff9}\u{e0001}\u{e007f}";

    #[test]
    fn unsafe_characters_are_escaped_and_all_others_stay() {
        for character in UNSAFE.chars() {
            let text = escaped(&character.to_string()).into_owned();
            assert!(text.starts_with('\\') && text.is_ascii(), "{:x}: {text:?}", u32::from(character));
        }
        assert_eq!(escaped("\u{1b}[31m\u{9b}2J\n\t"), r"\u{1b}[31m\u{9b}2J\n\t");
        for plain in ["", "user-1", "Grüße, 世界 ¡🙂!", r#"C:\path "quoted""#, r"\u{1b}"] {
            assert!(matches!(escaped(plain), Cow::Borrowed(same) if same == plain), "{plain}");
        }
    }

    #[test]
    fn shown_bytes_are_cut_at_the_limit_and_end_with_an_ellipsis() {
        assert_eq!(shown(b"", 0), "");
        assert_eq!(shown(b"abc", 3), "abc");
        assert_eq!(shown(b"abcd", 3), "abc…");
        assert_eq!(shown(b"a\xffb", 200), "a\u{fffd}b");
        assert_eq!(shown("a\u{9b}b".as_bytes(), 200), r"a\u{9b}b");
        for bytes_max in 1..5 {
            assert_eq!(shown("a🙂b".as_bytes(), bytes_max), "a…", "a character was cut in two");
        }
        assert_eq!(shown("a🙂b".as_bytes(), 5), "a🙂…");
    }

    #[test]
    fn escaped_json_keeps_its_lines_and_its_value() {
        let json = serde_json::to_string(UNSAFE).unwrap() + "\n";
        let safe = escaped_json(&json);
        assert!(safe.trim_end_matches('\n').chars().all(|character| !is_escaped(character)), "{safe:?}");
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), UNSAFE);
        assert!(safe.ends_with("\\udb40\\udc01\\udb40\\udc7f\"\n"), "a pair of surrogates: {safe}");
        assert!(matches!(escaped_json("{\"a\": \"Grüße\"}\r\n"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn escaped_text_has_no_unsafe_characters_and_escaping_it_again_does_not_change_it(text in any::<String>()) {
            let shown = escaped(&text);
            prop_assert!(!shown.chars().any(is_escaped));
            prop_assert_eq!(escaped(&shown), shown.clone(), "escaping twice changed the text");
            prop_assert_eq!(text.chars().any(is_escaped), matches!(shown, Cow::Owned(_)));
        }

        #[test]
        fn a_parser_reads_the_original_text_from_escaped_json(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let safe = escaped_json(&json);
            prop_assert!(!safe.chars().any(is_escaped));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }

        #[test]
        fn shown_accepts_any_bytes_and_any_limit(bytes in proptest::collection::vec(any::<u8>(), 0..40), bytes_max in 0usize..50) {
            let shown = shown(&bytes, bytes_max);
            prop_assert!(!shown.chars().any(is_escaped));
            prop_assert_eq!(bytes.len() > bytes_max, shown.ends_with('…') && bytes.len() > bytes_max);
        }
    }
}
