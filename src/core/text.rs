//! Shows text that comes from outside. Characters that a terminal acts on, or that are invisible, are escaped.
//!
//! Users, ids, types, topics, answers of receivers and messages of brokers come from outside. Raw, they could move the
//! cursor, hide what comes before "deliver these? [y/N]", turn the order of characters round, or forge a log line.
//! Everything that eventd prints passes one of these functions:
//!
//! ```text
//!  plan, prompt, list ─▶ escaped       log line, text ─▶ escaped (each message and field, in `telemetry`)
//!  bytes of a receiver ─▶ shown        log line, JSON; line of a file; any JSON output ─▶ escaped_json
//! ```
//!
//! What is escaped are control characters (C0, DEL, C1), line and paragraph separators, marks of the direction of text,
//! and format characters that take no room (zero-width spaces and joiners, byte order marks, tags).

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a terminal acts on this character, or shows nothing for it.
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

/// Whether UTF-8 text can be shown as it is. Fast for ASCII: lines of events are asked, one by one.
fn is_plain(text: &str) -> bool {
    // Without a branch a byte, so that the compiler takes many bytes at once.
    let suspicious = text.bytes().fold(false, |any, byte| any | !(0x20..0x7f).contains(&byte));
    !suspicious || !text.chars().any(is_escaped)
}

/// The text as a person may see it: `\n`, `\t`, `\u{1b}`, `\u{9b}`, `\u{202e}`. Escaping twice changes nothing more.
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
    // A character that the bound cuts in two is left out.
    if let Some(chunk) = first.utf8_chunks().last()
        && chunk.invalid().len() < 4
        && bytes.get(bytes_max).is_some_and(|next| next & 0xc0 == 0x80)
    {
        first = &first[..first.len() - chunk.invalid().len()];
    }
    format!("{}…", escaped(&String::from_utf8_lossy(first)))
}

/// JSON in which the same characters stand as `\u009b`, where JSON itself allows them raw. Its meaning is unchanged.
///
/// Such characters can only be in strings: JSON has none of them between its tokens, and its own control characters
/// (line breaks between lines, for example) are left alone.
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
                write!(escaped, "\\u{unit:04x}").expect("a string takes whatever is written");
            }
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Whether JSON allows the character raw in a string, though a terminal acts on it.
fn is_raw_in_json(character: char) -> bool {
    character >= '\u{7f}' && is_escaped(character)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each kind of character that a terminal acts on, or hides.
    const ACTED_ON: &str = "\0\u{1b}\u{7}\u{8}\n\r\t\u{7f}\u{80}\u{9b}\u{9d}\u{9f}\u{ad}\u{61c}\u{200b}\u{200c}\u{200d}\
        \u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}\u{fff9}\u{e0001}\u{e007f}";

    #[test]
    fn what_a_terminal_acts_on_is_escaped_and_everything_else_is_left_alone() {
        for character in ACTED_ON.chars() {
            let text = escaped(&character.to_string()).into_owned();
            assert!(text.starts_with('\\') && text.is_ascii(), "{:x}: {text:?}", u32::from(character));
        }
        assert_eq!(escaped("\u{1b}[31m\u{9b}2J\n\t"), r"\u{1b}[31m\u{9b}2J\n\t");
        for plain in ["", "user-1", "Grüße, 世界 ¡🙂!", r#"C:\path "quoted""#, r"\u{1b}"] {
            assert!(matches!(escaped(plain), Cow::Borrowed(same) if same == plain), "{plain}");
        }
    }

    #[test]
    fn what_is_shown_of_bytes_is_bounded_and_says_that_there_is_more() {
        assert_eq!(shown(b"", 0), "");
        assert_eq!(shown(b"abc", 3), "abc");
        assert_eq!(shown(b"abcd", 3), "abc…");
        assert_eq!(shown(b"a\xffb", 200), "a\u{fffd}b");
        assert_eq!(shown("a\u{9b}b".as_bytes(), 200), r"a\u{9b}b");
        for bytes_max in 1..5 {
            assert_eq!(shown("a🙂b".as_bytes(), bytes_max), "a…", "a character is whole or left out");
        }
        assert_eq!(shown("a🙂b".as_bytes(), 5), "a🙂…");
    }

    #[test]
    fn json_keeps_its_lines_and_its_meaning() {
        let json = serde_json::to_string(ACTED_ON).unwrap() + "\n";
        let safe = escaped_json(&json);
        assert!(safe.trim_end_matches('\n').chars().all(|character| !is_escaped(character)), "{safe:?}");
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), ACTED_ON);
        assert!(safe.ends_with("\\udb40\\udc01\\udb40\\udc7f\"\n"), "a pair of surrogates: {safe}");
        assert!(matches!(escaped_json("{\"a\": \"Grüße\"}\r\n"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_acts_on_is_left_and_the_rest_stands(text in any::<String>()) {
            let shown = escaped(&text);
            prop_assert!(!shown.chars().any(is_escaped));
            prop_assert_eq!(escaped(&shown), shown.clone(), "twice is as once");
            prop_assert_eq!(text.chars().any(is_escaped), matches!(shown, Cow::Owned(_)));
        }

        #[test]
        fn json_that_is_escaped_means_what_it_meant(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let safe = escaped_json(&json);
            prop_assert!(!safe.chars().any(is_escaped));
            prop_assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
        }

        #[test]
        fn no_bytes_and_no_bound_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), bytes_max in 0usize..50) {
            let shown = shown(&bytes, bytes_max);
            prop_assert!(!shown.chars().any(is_escaped));
            prop_assert_eq!(bytes.len() > bytes_max, shown.ends_with('…') && bytes.len() > bytes_max);
        }
    }
}
