//! The name of a destination: checks a typed one, or derives one from the target.
//!
//! The name is a consumer group, which stores how far the destination got. So a derived name must not change when eventd is
//! upgraded, and two destinations must not get the same one. The tests pin derived names.
//!
//! A derived name is public: it becomes a part of file names, a Kafka group, and a field of log lines. So user, password,
//! query and fragment of a URL are not a part of it. They can change without changing the name, and cannot be computed
//! from it.

use super::url::authority;
use super::{HttpTarget, Target};
use crate::core::names;
use crate::core::side_topics::{DESTINATION_SUFFIXES, REPLAY_INFIX};
use crate::core::text::shell_flag;

/// Characters of a destination's name. The name is a consumer group, and with topic and suffix a topic of at most 249
/// characters.
const NAME_CHARS_MAX: usize = 100;

/// The names of targets that are not files. A file with one of these names gets a checksum.
const STDOUT_NAME: &str = "stdout";
const NULL_NAME: &str = "null";
/// The length of `-` and a CRC-32C in hexadecimal digits.
const CHECKSUM_CHARS: usize = 9;

/// `--dest` for the destination with this name, as an operator can paste it. It is enough for a command that delivers nothing:
/// one that moves a position, or one of `eventd control`. (A file called `stdout` has another name.)
pub(crate) fn dest_flag(name: &str) -> String {
    let value = match name {
        STDOUT_NAME => "-",
        NULL_NAME => "null:",
        name => name,
    };
    shell_flag("--dest", value)
}

/// Derives the name of a destination that was typed without `NAME=`.
///
/// A bare path is its own name if it is a valid one. If characters were replaced or left out, the CRC-32C of `checked` is
/// added, so that two such destinations get different names.
pub(super) fn derive(target: &Target, as_typed: &str, checked: &str) -> String {
    let (readable, is_whole) = match target {
        Target::Stdout => return STDOUT_NAME.to_owned(),
        Target::Null => return NULL_NAME.to_owned(),
        Target::File(path) => {
            let path = path.to_string_lossy();
            let readable = path.strip_prefix("./").unwrap_or(&path).to_owned();
            let is_whole = readable != STDOUT_NAME && readable != NULL_NAME && has_letter_or_digit(&readable);
            (readable, is_whole)
        }
        // The name of a URL never contains the scheme, so it always gets a checksum.
        Target::Http(http) => (host_and_path(http, as_typed), false),
    };
    let replaced: String = readable.chars().map(|c| if names::may_contain(c) { c } else { '-' }).collect();
    if is_whole && replaced == readable && replaced.len() <= NAME_CHARS_MAX {
        return replaced;
    }
    let cut = &replaced[..replaced.len().min(NAME_CHARS_MAX - CHECKSUM_CHARS)];
    format!("{cut}-{:08x}", crc32c::crc32c(checked.as_bytes()))
}

/// `host[-port]/path` as typed. An empty path differs from `/`, and `ü` is one character and not `%C3%BC`.
fn host_and_path(http: &HttpTarget, as_typed: &str) -> String {
    let host = http.uri.host().unwrap_or_default();
    let port = http.uri.port().map(|port| format!("-{port}")).unwrap_or_default();
    let path = authority(as_typed).map_or("", |authority| &as_typed[authority.end..]);
    format!("{host}{port}{}", &path[..path.find(['?', '#']).unwrap_or(path.len())])
}

/// Checks a name. The error continues a sentence that begins with "the name …".
pub(super) fn check(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.chars().all(names::may_contain) {
        return Err("may contain only letters, digits, '.', '_' and '-', and must not be empty".into());
    }
    if !has_letter_or_digit(name) {
        return Err("needs a letter or a digit: it becomes a part of file names and topics".into());
    }
    if name.len() > NAME_CHARS_MAX {
        return Err(format!("has {} characters, but at most {NAME_CHARS_MAX} are possible: shorten it", name.len()));
    }
    if let Some(suffix) = DESTINATION_SUFFIXES.iter().find(|suffix| name.ends_with(**suffix)) {
        return Err(format!(
            "cannot be used: names that end with {suffix:?} are reserved for topics of eventd itself. Use another name with \
             NAME=DEST"
        ));
    }
    if name.contains(REPLAY_INFIX) {
        return Err(format!(
            "contains {REPLAY_INFIX:?}, which is reserved for replays: use another name with NAME=DEST"
        ));
    }
    Ok(())
}

fn has_letter_or_digit(name: &str) -> bool {
    name.chars().any(|c| c.is_ascii_alphanumeric())
}
