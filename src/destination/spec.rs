//! What `--dest` says: a name and a target, from one text.
//!
//! ```text
//! billing=https://user:secret@example.com/hook
//! ───┬─── ─────────────────┬──────────────────
//!   name                 target       without NAME= the name is made of the target
//! ```
//!
//! The name is a consumer group: it says how far the destination got. So it must not change when eventd is upgraded,
//! and two destinations must not share one; the tests pin it.

use super::ConfigurationError;
use crate::core::name;
use crate::limits::DESTINATION_NAME_CHARS_MAX;
use http::Uri;
use std::fmt;
use std::path::PathBuf;

/// Endings of names that side topics and groups of another destination have.
const RESERVED_ENDINGS: [&str; 3] = [".dead", ".rewind", ".state"];
/// A replay's group is `NAME.replay.ID`.
const RESERVED_INFIX: &str = ".replay.";
/// Names of targets that are not files; a file that is called so gets its digits.
const STDOUT_NAME: &str = "stdout";
const NULL_NAME: &str = "null";
/// `-` and the CRC-32C in hexadecimal digits.
const SUFFIX_CHARS: usize = 9;

const SUPPORTED: &str = "a path, file:PATH, http://…, https://…, - (standard output) or null:";

/// One `--dest`, parsed.
///
/// `Debug` and `Display` never show the password and the query of a URL (`?token=…`); `as_typed` has them.
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
    /// The destination without `NAME=`, with its password and query: not for logs.
    pub as_typed: String,
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
        let target = parse_target(destination)?;
        let name = match name {
            Some(name) => name.to_owned(),
            None => derive_name(&target, destination),
        };
        Self { name: String::new(), target, as_typed: destination.to_owned() }.with_name(&name)
    }

    /// The same destination under another name (`--name`), which is checked.
    pub fn with_name(self, name: &str) -> Result<Self, ConfigurationError> {
        check_name(name).map_err(|why| ConfigurationError(format!("the name {name:?} of destination {self} {why}")))?;
        Ok(Self { name: name.to_owned(), ..self })
    }

    /// 32 hexadecimal digits that differ for two destinations, so that one name for both is noticed. The password has
    /// no part in it: it may be changed.
    pub fn digest(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, redact(&self.as_typed).as_bytes());
        digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
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
        Some((name, rest)) if !name.is_empty() && name.chars().all(name::may_hold) => (Some(name), rest),
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
    if path.contains("://") {
        // Not shown: nobody knows where a password stands in it.
        return Err(ConfigurationError(
            "a URL stands behind a name that is none: NAME= takes letters, digits, '.', '_' and '-'".into(),
        ));
    }
    if path.contains('\0') {
        return Err(ConfigurationError(format!("the path {path:?} holds a null character")));
    }
    Ok(Target::File(PathBuf::from(path)))
}

fn parse_url(text: &str) -> Result<Target, ConfigurationError> {
    let bad = |why: &str| {
        ConfigurationError(format!("{:?} is no URL to deliver to: {why}", cut_query(redact_anywhere(text))))
    };
    let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
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
        return Err(bad("the port is no number up to 65535"));
    }
    parts.authority = Some(host.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?);
    let uri = Uri::from_parts(parts).map_err(|error| bad(&error.to_string()))?;
    Ok(Target::Http(HttpTarget { uri, userinfo }))
}

/// The name that a destination has without `NAME=`. A bare path is its own name where it can be one; whatever had to
/// be replaced or left out is made up for by the CRC-32C of the destination as typed.
fn derive_name(target: &Target, as_typed: &str) -> String {
    let (kept, whole) = match target {
        Target::Stdout => return STDOUT_NAME.to_owned(),
        Target::Null => return NULL_NAME.to_owned(),
        Target::File(path) => {
            let path = path.to_string_lossy();
            let kept = path.strip_prefix("./").unwrap_or(&path).to_owned();
            let whole = kept != STDOUT_NAME && kept != NULL_NAME;
            (kept, whole)
        }
        // The scheme is always left out.
        Target::Http(http) => (host_and_path(http, as_typed), false),
    };
    let replaced: String = kept.chars().map(|c| if name::may_hold(c) { c } else { '-' }).collect();
    if whole && replaced == kept && replaced.len() <= DESTINATION_NAME_CHARS_MAX {
        return replaced;
    }
    let cut = &replaced[..replaced.len().min(DESTINATION_NAME_CHARS_MAX - SUFFIX_CHARS)];
    format!("{cut}-{:08x}", crc32c::crc32c(as_typed.as_bytes()))
}

/// `host[-port]/path` as typed: no path is not the path `/`.
fn host_and_path(http: &HttpTarget, as_typed: &str) -> String {
    let host = http.uri.host().unwrap_or_default();
    let port = http.uri.port().map(|port| format!("-{port}")).unwrap_or_default();
    let behind_scheme = as_typed.split_once("//").map_or("", |(_, rest)| rest);
    let authority_end = behind_scheme.find(['/', '?', '#']).unwrap_or(behind_scheme.len());
    let path = if behind_scheme[authority_end..].starts_with('/') { http.uri.path() } else { "" };
    format!("{host}{port}{path}")
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.chars().all(name::may_hold) {
        return Err("may hold only letters, digits, '.', '_' and '-', and not be empty".into());
    }
    if name.len() > DESTINATION_NAME_CHARS_MAX {
        return Err(format!("has {} characters; at most {DESTINATION_NAME_CHARS_MAX} are possible", name.len()));
    }
    if let Some(ending) = RESERVED_ENDINGS.iter().find(|ending| name.ends_with(**ending)) {
        return Err(format!("ends with {ending:?}, which eventd keeps for itself: name it with NAME=DEST"));
    }
    if name.contains(RESERVED_INFIX) {
        return Err(format!("holds {RESERVED_INFIX:?}, which eventd keeps for replays: name it with NAME=DEST"));
    }
    Ok(())
}

/// The destination as people may see it; to be used where it was parsed.
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
            ("https://u:p@example.com:8443/hook/a?b=c#d", "example.com-8443-hook-a-7ffafdd4"),
            ("out/x=y", "out-x-y-2556d2a8"),
            ("größe", "gr--e-19074357"),
        ] {
            assert_eq!(name(text), expected, "{text}");
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
    fn a_password_is_neither_shown_nor_part_of_the_digest() {
        let spec = Spec::parse("crm=https://user:secret@example.com/a@b?c=d").unwrap();
        let shown = format!("{spec} {spec:?} {:?}", spec.target);
        assert!(!shown.contains("secret") && shown.contains("example.com/a@b?…"), "{shown}");
        assert!(!shown.contains("c=d"), "{shown}");
        let Target::Http(http) = &spec.target else { panic!("an http target") };
        assert_eq!(
            (http.uri.to_string().as_str(), http.userinfo.as_deref()),
            ("https://example.com/a@b?c=d", Some("user:secret"))
        );
        assert_eq!(spec.digest(), Spec::parse("https://user:other@example.com/a@b?c=d").unwrap().digest());
        assert_ne!(spec.digest(), Spec::parse("https://user@example.com/a").unwrap().digest());
        assert_ne!(spec.digest(), Spec::parse("https://user@example.com/a@b?c=e").unwrap().digest());
        assert_eq!(Spec::parse("./what?").unwrap().to_string(), "./what?");
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
