//! What `--dest` says: a name and a target, from one text.
//!
//! ```text
//! billing=https://user:secret@example.com/hook
//! ───┬─── ─────────────────┬──────────────────
//!   name                 target       without NAME= the name is made of the target
//! ```
//!
//! The name is a consumer group: it says how far the destination got. So it must not change when eventd is upgraded,
//! and two destinations must not share one; the tests pin it. A derived name is public (it is a file name, a group of
//! Kafka, a field of log lines), so it is made of the URL without user, password, query and fragment. These may change
//! without a change of the name, and nobody can compute them from it.

use super::ConfigurationError;
use crate::core::names;
use crate::core::side_topics::{DESTINATION_SUFFIXES, REPLAY_INFIX};
use http::Uri;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::fmt;
use std::path::PathBuf;

/// Characters of a destination's name. The name is a consumer group, and with topic and suffix a topic of at most 249
/// characters.
const NAME_CHARS_MAX: usize = 100;

/// Names of targets that are not files; a file that is called so gets its digits.
const STDOUT_NAME: &str = "stdout";
const NULL_NAME: &str = "null";
/// `-` and the CRC-32C in hexadecimal digits.
const SUFFIX_CHARS: usize = 9;

/// What RFC 3986 allows in neither a path nor a query. Characters that are not ASCII are always encoded.
const NOT_IN_A_URL: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

const SUPPORTED: &str = "a path, file:PATH, http://…, https://…, - (standard output) or null:";

/// One `--dest`, parsed.
///
/// `Debug` and `Display` never show the password and the query of a URL (`?token=…`).
///
/// ```
/// use eventd::destination::spec::Spec;
/// assert_eq!(Spec::parse("file-1").unwrap().name, "file-1");
/// assert_eq!(Spec::parse("audit=out/log.jsonl").unwrap().name, "audit");
/// assert_eq!(Spec::parse("-").unwrap().name, "stdout");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its consumer group: at most 100 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    pub target: Target,
    /// The derived name that eventd gave to this destination before it left user, password, query and fragment out of
    /// the checksum. `None` if the name was typed, or did not change. A destination that has commits only under this
    /// name keeps it, so that nothing is delivered again.
    pub earlier_name: Option<String>,
    /// The destination without `NAME=`, with its password and query: not for logs.
    as_typed: String,
}

/// Where events go.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// JSON lines, appended. `{partition}` in the file's name stands for the partition.
    File(PathBuf),
    /// A `POST` an event.
    Http(HttpTarget),
    /// JSON lines to standard output.
    Stdout,
    /// Takes everything and keeps nothing.
    Null,
}

/// The URL of an http destination, in parts.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpTarget {
    /// Scheme, host, port, path and query; the query may hold a secret.
    pub uri: Uri,
    /// `user:password` as in the URL (percent-encoded): a secret.
    pub userinfo: Option<String>,
}

impl Spec {
    /// Parses `DEST` or `NAME=DEST`. The errors are for people, and show no password.
    pub fn parse(text: &str) -> Result<Self, ConfigurationError> {
        let (name, destination) = split_name(text);
        let spec = Self {
            name: String::new(),
            target: parse_target(destination)?,
            earlier_name: None,
            as_typed: destination.to_owned(),
        };
        if let Some(name) = name {
            return spec.with_name(name);
        }
        let name = derive_name(&spec.target, destination, &public_part(destination));
        let earlier = derive_name(&spec.target, destination, destination);
        let earlier_name = (earlier != name).then_some(earlier);
        Ok(Self { earlier_name, ..spec.with_name(&name)? })
    }

    /// Gives the destination another name (`--name`), which is checked.
    pub fn with_name(self, name: &str) -> Result<Self, ConfigurationError> {
        check_name(name).map_err(|why| ConfigurationError(format!("the name {name:?} of destination {self} {why}")))?;
        Ok(Self { name: name.to_owned(), earlier_name: None, ..self })
    }

    /// Computes 32 hexadecimal digits that differ for two destinations, so that one name for both is noticed. Like the
    /// derived name it is public, so user, password, query and fragment have no part in it.
    pub fn digest(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, public_part(&self.as_typed).as_bytes());
        digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What `--dest` of a command that moves a position may be, given the name of the destination. Such a command delivers
/// nothing, so the name is enough. (A file called `stdout` would have another name.)
pub(crate) fn flag_of(name: &str) -> &str {
    match name {
        STDOUT_NAME => "-",
        NULL_NAME => "null:",
        name => name,
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.as_typed))
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("name", &self.name).field("destination", &shown(&self.as_typed)).finish()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Http(http) => f.debug_tuple("Http").field(http).finish(),
            Self::Stdout => f.write_str("Stdout"),
            Self::Null => f.write_str("Null"),
        }
    }
}

impl fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = if self.userinfo.is_some() { " (with credentials)" } else { "" };
        write!(f, "{}{credentials}", cut_query(self.uri.to_string()))
    }
}

/// `NAME=DEST` only where everything before the first `=` can be a name: a URL has `:` before it, a path that holds
/// one can be typed with `./`.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && name.chars().all(names::may_contain) => (Some(name), rest),
        _ => (None, text),
    }
}

/// The scheme in front of the first `:`, if that can be one.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut characters = scheme.chars();
    let begins = characters.next().is_some_and(|first| first.is_ascii_alphabetic());
    let goes_on = characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    (begins && goes_on).then_some((scheme, rest))
}

fn parse_target(text: &str) -> Result<Target, ConfigurationError> {
    let shown = cut_query(redact_anywhere(text));
    let Some((scheme, rest)) = scheme_of(text) else {
        return if text == "-" { Ok(Target::Stdout) } else { parse_path(text) };
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => parse_path(rest),
        "http" | "https" => parse_url(text),
        "null" if rest.is_empty() => Ok(Target::Null),
        "null" => Err(ConfigurationError(format!("null: takes nothing behind it, not {shown:?}"))),
        _ => Err(ConfigurationError(format!(
            "unknown scheme {scheme:?} in destination {shown:?}: use {SUPPORTED}; a path with a colon begins with ./"
        ))),
    }
}

fn parse_path(path: &str) -> Result<Target, ConfigurationError> {
    let path = match path.strip_prefix("//") {
        Some(absolute) if absolute.starts_with('/') => absolute,
        _ => path,
    };
    if path.is_empty() {
        return Err(ConfigurationError(format!("a destination is missing: use {SUPPORTED}")));
    }
    // What looks like a URL is not shown: it may hold a password anywhere.
    if path.contains("://") {
        return Err(ConfigurationError(
            "there is text in front of a URL that is not a name: NAME= takes letters, digits, '.', '_' and '-', without \
             spaces or quotation marks"
                .into(),
        ));
    }
    if is_like_a_url(path) {
        return Err(ConfigurationError(
            "it looks like a URL without its scheme: write http://… or https://… for a URL, and ./ in front of a path"
                .into(),
        ));
    }
    if path.starts_with('=') {
        return Err(ConfigurationError("the name in front of = is empty: write NAME=DEST, or ./=… for a path".into()));
    }
    if path.contains('\0') {
        return Err(ConfigurationError(format!("the path {path:?} holds a null character")));
    }
    Ok(Target::File(PathBuf::from(path)))
}

/// Whether a relative path is most likely a URL that was mistyped: `http//host`, `host/hook?token=…`, `user:pw@host/x`.
fn is_like_a_url(path: &str) -> bool {
    if path.starts_with(['/', '.']) {
        return false;
    }
    let lower = path.to_ascii_lowercase();
    let lower = lower.rsplit_once('=').map_or(lower.as_str(), |(before, rest)| match before.contains('?') {
        true => lower.as_str(),
        false => rest,
    });
    let is_scheme_without_colon = ["http", "https"]
        .iter()
        .any(|scheme| lower.strip_prefix(scheme).is_some_and(|rest| rest.starts_with("//") || rest.starts_with(";//")));
    let has_query = lower.split_once('?').is_some_and(|(_, query)| query.contains('='));
    let has_user = lower.split_once('@').is_some_and(|(before, _)| before.contains(':'));
    is_scheme_without_colon || has_query || has_user
}

fn parse_url(text: &str) -> Result<Target, ConfigurationError> {
    let bad = |why: &str| {
        ConfigurationError(format!("{:?} is not a URL to deliver to: {why}", cut_query(redact_anywhere(text))))
    };
    let uri: Uri =
        request_uri(text).map_err(bad)?.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
    let mut parts = uri.into_parts();
    let authority = parts.authority.ok_or_else(|| bad("the host is missing"))?;
    let (userinfo, host) = match authority.as_str().rsplit_once('@') {
        Some((userinfo, host)) => (Some(userinfo.to_owned()), host.to_owned()),
        None => (None, authority.as_str().to_owned()),
    };
    if authority.host().is_empty() || parts.scheme.is_none() {
        return Err(bad("the host is missing"));
    }
    let port = host.strip_prefix(authority.host()).unwrap_or_default();
    if !port.is_empty() && port.strip_prefix(':').is_none_or(|port| port.parse::<u16>().is_err()) {
        return Err(bad("the port must be a number from 0 to 65535"));
    }
    parts.authority = Some(host.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?);
    let uri = Uri::from_parts(parts).map_err(|error| bad(&error.to_string()))?;
    Ok(Target::Http(HttpTarget { uri, userinfo }))
}

/// The URL as it may stand on a request line: characters that RFC 3986 does not allow in a path or a query are
/// percent-encoded, as browsers do. A host is never changed, since that would be another name to look up.
fn request_uri(text: &str) -> Result<String, &'static str> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it has a space or a control character: write %20 for a space");
    }
    let Some((start, end)) = authority(text) else { return Err("the host is missing") };
    let lower = text.to_ascii_lowercase();
    if [",http://", ",https://", ";http://", ";https://"].iter().any(|next| lower.contains(next)) {
        return Err("it is several URLs in one: repeat --dest, or write one a line in EVENTD_DEST");
    }
    let host = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    if !text[host..end].is_ascii() {
        return Err("the host has a character that is not ASCII: write it in punycode (xn--…)");
    }
    let encode = |part| utf8_percent_encode(part, NOT_IN_A_URL);
    Ok(format!("{}{}{}{}", &text[..start], encode(&text[start..host]), &text[host..end], encode(&text[end..])))
}

/// Derives the name that a destination has without `NAME=`. A bare path is its own name if it can be one. If something
/// had to be replaced or left out, the CRC-32C of `checked` follows, to keep two such names apart.
fn derive_name(target: &Target, as_typed: &str, checked: &str) -> String {
    let (kept, whole) = match target {
        Target::Stdout => return STDOUT_NAME.to_owned(),
        Target::Null => return NULL_NAME.to_owned(),
        Target::File(path) => {
            let path = path.to_string_lossy();
            let kept = path.strip_prefix("./").unwrap_or(&path).to_owned();
            let whole = kept != STDOUT_NAME && kept != NULL_NAME && has_letter_or_digit(&kept);
            (kept, whole)
        }
        // The scheme is always left out.
        Target::Http(http) => (host_and_path(http, as_typed), false),
    };
    let replaced: String = kept.chars().map(|c| if names::may_contain(c) { c } else { '-' }).collect();
    if whole && replaced == kept && replaced.len() <= NAME_CHARS_MAX {
        return replaced;
    }
    let cut = &replaced[..replaced.len().min(NAME_CHARS_MAX - SUFFIX_CHARS)];
    format!("{cut}-{:08x}", crc32c::crc32c(checked.as_bytes()))
}

/// `host[-port]/path` as typed: no path is not the path `/`, and `ü` is one character and not `%C3%BC`.
fn host_and_path(http: &HttpTarget, as_typed: &str) -> String {
    let host = http.uri.host().unwrap_or_default();
    let port = http.uri.port().map(|port| format!("-{port}")).unwrap_or_default();
    let path = authority(as_typed).map_or("", |(_, end)| &as_typed[end..]);
    format!("{host}{port}{}", &path[..path.find(['?', '#']).unwrap_or(path.len())])
}

/// The part of a destination that is not a secret and says where it is: a URL without user, password, query and
/// fragment; anything else as typed.
fn public_part(as_typed: &str) -> String {
    let Some((start, end)) = authority(as_typed) else { return as_typed.to_owned() };
    let host = as_typed[start..end].rfind('@').map_or(start, |at| start + at + 1);
    let path_end = as_typed[end..].find(['?', '#']).map_or(as_typed.len(), |at| end + at);
    format!("{}{}", &as_typed[..start], &as_typed[host..path_end])
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.chars().all(names::may_contain) {
        return Err("may hold only letters, digits, '.', '_' and '-', and not be empty".into());
    }
    if !has_letter_or_digit(name) {
        return Err("needs a letter or a digit: it becomes a part of file names and topics".into());
    }
    if name.len() > NAME_CHARS_MAX {
        return Err(format!("has {} characters; at most {NAME_CHARS_MAX} are possible", name.len()));
    }
    if let Some(ending) = DESTINATION_SUFFIXES.iter().find(|ending| name.ends_with(**ending)) {
        return Err(format!("ends with {ending:?}, which eventd keeps for itself: name it with NAME=DEST"));
    }
    if name.contains(REPLAY_INFIX) {
        return Err(format!("holds {REPLAY_INFIX:?}, which eventd keeps for replays: name it with NAME=DEST"));
    }
    Ok(())
}

fn has_letter_or_digit(name: &str) -> bool {
    name.chars().any(|c| c.is_ascii_alphanumeric())
}

/// The destination as people may see it; for a text that was parsed already.
fn shown(as_typed: &str) -> String {
    cut_query(redact(as_typed))
}

/// A URL with `?…` for its query; anything else as it is.
fn cut_query(text: String) -> String {
    let query = authority(&text).and_then(|(start, _)| Some(start + text[start..].find('?')?));
    match query {
        Some(at) => format!("{}?…", &text[..at]),
        None => text,
    }
}

/// The destination without its user and password; to be used where it was parsed.
fn redact(as_typed: &str) -> String {
    let end = authority(as_typed).map_or(0, |(_, end)| end);
    redact_up_to(as_typed, end)
}

/// The same for a text that may be no URL at all: a password that holds a `/` shall not be shown by its own error.
fn redact_anywhere(text: &str) -> String {
    redact_up_to(text, text.len())
}

fn redact_up_to(text: &str, end: usize) -> String {
    match (authority(text), text[..end].rfind('@')) {
        (Some((start, _)), Some(at)) if start <= at => format!("{}***{}", &text[..start], &text[at..]),
        _ => text.to_owned(),
    }
}

/// Where `user:password@host:port` of a URL begins and ends.
fn authority(text: &str) -> Option<(usize, usize)> {
    let (scheme, rest) = scheme_of(text).filter(|(scheme, _)| !scheme.eq_ignore_ascii_case("file"))?;
    let slashes = rest.chars().take_while(|c| *c == '/').count();
    let start = scheme.len() + 1 + slashes;
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> String {
        Spec::parse(text).unwrap().name
    }

    fn refused(text: &str) -> String {
        Spec::parse(text).unwrap_err().0
    }

    #[test]
    fn the_flag_of_a_name_gives_that_name() {
        for typed in
            ["file-1", "./out/log.jsonl", "-", "null:", "stdout", "https://example.com/hook", "a=-", "stdout=x"]
        {
            let name = Spec::parse(typed).unwrap().name;
            assert_eq!(Spec::parse(flag_of(&name)).unwrap().name, name, "{typed}");
        }
    }

    #[test]
    fn derived_names_never_change() {
        for (text, expected) in [
            ("file-1", "file-1"),
            ("./file-1", "file-1"),
            ("file:file-1", "file-1"),
            ("log.jsonl", "log.jsonl"),
            ("-", "stdout"),
            ("null:", "null"),
            ("null", "null-147e9acc"),
            ("./stdout", "stdout-1b696655"),
            ("file:out/log.jsonl", "out-log.jsonl-4a85edc1"),
            ("http://localhost:9000", "localhost-9000-76c7015f"),
            ("http://localhost:9000/", "localhost-9000--2393c05d"),
            ("https://example.com", "example.com-017dd4d4"),
            ("http://h/ü", "h---82393199"),
            ("out/x=y", "out-x-y-2556d2a8"),
            ("größe", "gr--e-19074357"),
        ] {
            assert_eq!(name(text), expected, "{text}");
        }
    }

    #[test]
    fn password_query_and_fragment_have_no_part_in_a_name_or_a_digest() {
        let plain = Spec::parse("https://example.com:8443/hook/a").unwrap();
        for (text, earlier) in [
            ("https://u:p@example.com:8443/hook/a?b=c#d", Some("example.com-8443-hook-a-7ffafdd4")),
            ("https://u:q@example.com:8443/hook/a?b=c#d", Some("example.com-8443-hook-a-075d9d59")),
            ("https://example.com:8443/hook/a?token=one", Some("example.com-8443-hook-a-4e71cef3")),
            ("https://example.com:8443/hook/a?token=two/@x", Some("example.com-8443-hook-a-2260a636")),
            ("https://u@example.com:8443/hook/a", Some("example.com-8443-hook-a-8117dcd4")),
            ("https://example.com:8443/hook/a#", Some("example.com-8443-hook-a-9b63b62e")),
            ("https://example.com:8443/hook/a", None),
        ] {
            let spec = Spec::parse(text).unwrap();
            assert_eq!((&spec.name, spec.digest()), (&plain.name, plain.digest()), "{text}");
            assert_eq!(spec.earlier_name.as_deref(), earlier, "{text}");
        }
        for other in
            ["https://example.com:8443/hook/b", "https://example.com:8443/hook", "http://example.com:8443/hook/a"]
        {
            let other = Spec::parse(other).unwrap();
            assert!(other.name != plain.name && other.digest() != plain.digest(), "{other}");
        }
        assert_eq!(Spec::parse("crm=https://u:p@h/?a=b").unwrap().earlier_name, None, "the name was typed");
        let named = Spec::parse("https://u:p@h/?a=b").unwrap().with_name("crm").unwrap();
        assert_eq!(named.earlier_name, None);
        assert_eq!(Spec::parse("./what?x=y").unwrap().earlier_name, None, "a path has no query");
    }

    #[test]
    fn what_may_not_stand_on_a_request_line_is_encoded_or_refused() {
        let uri = |text: &str| match Spec::parse(text).unwrap().target {
            Target::Http(http) => (http.uri.to_string(), http.userinfo),
            target => panic!("{target:?}"),
        };
        assert_eq!(uri("http://h/ü").0, "http://h/%C3%BC");
        assert_eq!(
            uri("http://h/a%20b?größe=日本&x={1}").0,
            "http://h/a%20b?gr%C3%B6%C3%9Fe=%E6%97%A5%E6%9C%AC&x=%7B1%7D"
        );
        assert_eq!(uri("http://h?ü").0, "http://h/?%C3%BC");
        assert_eq!(uri("http://jürgen:paß@h/").1.as_deref(), Some("j%C3%BCrgen:pa%C3%9F"));
        assert_eq!(uri("http://h/a:b;c=d,e/@f?g=h/i?j&k[]=1'").0, "http://h/a:b;c=d,e/@f?g=h/i?j&k[]=1'");
        assert!(refused("http://bücher.example/").contains("xn--"));
        for text in ["http://h/a b", "http://h/a\nb", "http://h/a\u{a0}b", "http://h/\u{7f}", "http://h/?\u{9b}"] {
            assert!(refused(text).contains("%20"), "{text:?}: {}", refused(text));
        }
    }

    #[test]
    fn a_name_stands_before_the_first_equals_sign_unless_that_belongs_to_the_destination() {
        let named = |text| {
            let spec = Spec::parse(text).unwrap();
            (spec.name, spec.as_typed)
        };
        assert_eq!(named("a=file-1"), ("a".into(), "file-1".into()));
        assert_eq!(named("a.b_c-d=b=c"), ("a.b_c-d".into(), "b=c".into()));
        assert_eq!(named("crm=https://h/?a=b"), ("crm".into(), "https://h/?a=b".into()));
        assert_eq!(named("https://h/?a=b").1, "https://h/?a=b");
        assert_eq!(named("./a=b").1, "./a=b");
        assert_eq!(named("out=-"), ("out".into(), "-".into()));
    }

    #[test]
    fn names_that_side_topics_need_are_refused() {
        for text in ["a.dead=x", "x.dead", "file:x.rewind", "a.state=null:", "a.replay.b=x", "x.replay.y"] {
            assert!(refused(text).contains("NAME=DEST"), "{text}: {}", refused(text));
        }
        assert!(refused(&format!("{}=x", "n".repeat(101))).contains("101"));
        assert!(Spec::parse(&format!("{}=x", "n".repeat(100))).is_ok());
        assert!(Spec::parse("x").unwrap().with_name("with space").is_err());
    }

    #[test]
    fn a_name_without_a_letter_or_digit_is_refused() {
        for text in ["..=x", ".=x", "...=x", "-=x", "_=null:", ".-_=http://h/"] {
            assert!(refused(text).contains("needs a letter or a digit"), "{text}: {}", refused(text));
        }
        assert_eq!(name(".a=x"), ".a");
        assert_eq!(name("..a"), "..a");
        assert_eq!(name("___"), "___-b39fdf0a", "a path has digits to make up for it");
    }

    #[test]
    fn what_is_no_destination_says_what_would_be_one() {
        for text in ["", "a=", "file:"] {
            assert!(refused(text).contains("missing"), "{text}");
        }
        assert!(refused("ftp://host/x").contains("unknown scheme \"ftp\""));
        assert!(refused("ftp://host/x").contains("https://"));
        assert!(refused("kafka:x").contains("./"));
        for text in ["http://", "http:///x", "http:x", "https://h:99999/", "http://h:/", "http://h/a b", "null:x"] {
            assert!(Spec::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_may_be_written_in_several_ways() {
        for (text, expected) in
            [("file:///var/log/x", "/var/log/x"), ("/var/log/x", "/var/log/x"), ("./a:b", "./a:b"), ("FILE:a:b", "a:b")]
        {
            assert_eq!(Spec::parse(text).unwrap().target, Target::File(expected.into()), "{text}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let spec = Spec::parse("crm=https://user:secret@example.com/a@b?c=d").unwrap();
        let shown = format!("{spec} {spec:?} {:?}", spec.target);
        assert!(!shown.contains("secret") && shown.contains("example.com/a@b?…"), "{shown}");
        assert!(!shown.contains("c=d"), "{shown}");
        let Target::Http(http) = &spec.target else { panic!("an http target") };
        assert_eq!(
            (http.uri.to_string().as_str(), http.userinfo.as_deref()),
            ("https://example.com/a@b?c=d", Some("user:secret"))
        );
        assert_eq!(Spec::parse("./what?").unwrap().to_string(), "./what?");
        for text in [
            "http//u:secret@h/x",
            "HTTPS//u:secret@h/x",
            "hook=https//u:secret@h/x",
            "h/hook?token=secret",
            "http://u:secret@h/x,http://u:secret@h/y",
            "http://u:secret@h/x;https://h/y?token=secret",
            "\"http://u:secret@h/x\"",
        ] {
            assert!(!refused(text).contains("secret"), "{text}: {}", refused(text));
        }
        for path in ["./h/hook?a=b", "/h?a=b", "what?", "http/log", "https.log", "a@b", "../u:x@y"] {
            assert!(matches!(Spec::parse(path).unwrap().target, Target::File(_)), "{path}");
        }
        assert!(refused("=x").contains("name"));
        for text in ["c m=https://u:secret@h/", "größe=http://h/?k=secret", "file:crm=https://u:secret@h"] {
            assert!(refused(text).contains("NAME= takes") && !refused(text).contains("secret"), "{}", refused(text));
        }
        assert!(
            !refused("ftp://h/?k=secret").contains("secret") && !refused("http://h:x/?k=secret").contains("secret")
        );
        for text in ["https://user:sec/ret@host/x", "ftp://user:secret@host", "https://u:secret@h:x/"] {
            assert!(!refused(text).contains("ret@"), "{}", refused(text));
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_to_a_legal_name_or_an_error(text in "\\PC{0,150}") {
            if let Ok(spec) = Spec::parse(&text) {
                prop_assert!(check_name(&spec.name).is_ok());
            }
        }

        #[test]
        fn any_path_that_is_no_reserved_name_gets_a_legal_name(path in "/[a-zäß:=/ ]{0,200}") {
            prop_assume!(!path.contains("://"));
            prop_assert!(check_name(&name(&path)).is_ok());
        }
    }
}
