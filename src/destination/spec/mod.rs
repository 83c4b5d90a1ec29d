//! Parses `--dest`: a name and a target in one text.
//!
//! ```text
//! billing=https://user:secret@example.com/hook
//! ───┬─── ─────────────────┬──────────────────
//!   name                 target       without NAME= the name is derived from the target
//! ```

mod name;
mod url;

#[cfg(test)]
mod tests;

pub(crate) use name::dest_flag;

use super::ConfigurationError;
use crate::core::names;
use http::Uri;
use std::fmt;
use std::path::PathBuf;

const SUPPORTED: &str = "a path, file:PATH, http://…, https://…, - (standard output) or null:";

/// One `--dest`, parsed.
///
/// `Debug` and `Display` never show the password or the query of a URL (`?token=…`).
///
/// ```
/// use eventd::destination::spec::Spec;
/// assert_eq!(Spec::parse("file-1").unwrap().name, "file-1");
/// assert_eq!(Spec::parse("audit=out/log.jsonl").unwrap().name, "audit");
/// assert_eq!(Spec::parse("-").unwrap().name, "stdout");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Spec {
    /// The name, which is also the consumer group: at most 100 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    pub target: Target,
    /// The derived name that earlier versions of eventd gave to this destination. They included user, password, query and
    /// fragment in the checksum. `None` if the name was typed, or if it is the same now.
    ///
    /// A destination that has commits only under this name keeps it, so that nothing is delivered again.
    pub earlier_name: Option<String>,
    /// The text without `NAME=`. It may contain a password or a token, so it must not be logged.
    as_typed: String,
}

/// Where events go.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// JSON lines, appended to a file. `{partition}` in the file's name is replaced by the partition.
    File(PathBuf),
    /// One `POST` for each event.
    Http(HttpTarget),
    /// JSON lines, written to standard output.
    Stdout,
    /// Accepts and discards every event.
    Null,
}

/// The URL of an http destination, in parts.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpTarget {
    /// Scheme, host, port, path and query. The query may contain a secret.
    pub uri: Uri,
    /// `user:password` as in the URL (percent-encoded): a secret.
    pub userinfo: Option<String>,
}

impl Spec {
    /// Parses `DEST` or `NAME=DEST`.
    ///
    /// # Errors
    /// Says what is wrong and what to write instead. The text never shows a password.
    pub fn parse(text: &str) -> Result<Self, ConfigurationError> {
        let (typed_name, destination) = split_name(text);
        let spec = Self {
            name: String::new(),
            target: parse_target(destination)?,
            earlier_name: None,
            as_typed: destination.to_owned(),
        };
        if typed_name.is_none() && url::scheme_of(destination).is_none() {
            check_bare_path(destination)?;
        }
        if let Some(typed_name) = typed_name {
            return spec.with_name(typed_name);
        }
        let derived = name::derive(&spec.target, destination, &url::public_part(destination));
        let earlier = name::derive(&spec.target, destination, destination);
        let earlier_name = (earlier != derived).then_some(earlier);
        Ok(Self { earlier_name, ..spec.with_name(&derived)? })
    }

    /// Gives the destination another name (`--name`).
    ///
    /// # Errors
    /// The name is not valid.
    pub fn with_name(self, name: &str) -> Result<Self, ConfigurationError> {
        name::check(name)
            .map_err(|why| ConfigurationError(format!("the name {name:?} of destination {self} {why}")))?;
        Ok(Self { name: name.to_owned(), earlier_name: None, ..self })
    }

    /// The target without user, password, query and fragment of a URL, for a question to the operator.
    pub fn public_target(&self) -> String {
        url::public_part(&self.as_typed)
    }

    /// Computes 32 hexadecimal digits from the target, so that two targets under one name are noticed. The digits are
    /// public, so they do not depend on user, password, query and fragment.
    pub fn digest(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, url::public_part(&self.as_typed).as_bytes());
        digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&url::shown(&self.as_typed))
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("name", &self.name).field("destination", &url::shown(&self.as_typed)).finish()
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
        write!(f, "{}{credentials}", url::without_query(self.uri.to_string()))
    }
}

/// Splits `NAME=DEST` if the text before the first `=` can be a name. A URL never matches, because it has `:` before any
/// `=`. A path with `=` can be written with `./`.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && name.chars().all(names::may_contain) => (Some(name), rest),
        _ => (None, text),
    }
}

fn parse_target(text: &str) -> Result<Target, ConfigurationError> {
    let shown = url::shown_in_error(text);
    let Some((scheme, rest)) = url::scheme_of(text) else {
        return if text == "-" { Ok(Target::Stdout) } else { parse_path(text) };
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => parse_path(rest),
        "http" | "https" => url::parse(text).map(Target::Http),
        "null" if rest.is_empty() => Ok(Target::Null),
        "null" => Err(ConfigurationError(format!("null: must be the whole destination, not {shown:?}: write null:"))),
        host if url::is_port_and_path(rest) => {
            let scheme = if host.contains('.') { "https" } else { "http" };
            Err(ConfigurationError(format!("{shown:?} has no scheme: for a URL, write {scheme}://{shown}")))
        }
        _ => Err(ConfigurationError(format!(
            "unknown scheme {scheme:?} in destination {shown:?}: use {SUPPORTED}. Write ./ before a path that contains a colon"
        ))),
    }
}

/// Refuses a path whose text before its first `=` is probably meant as a name, but is not a valid one.
fn check_bare_path(text: &str) -> Result<(), ConfigurationError> {
    match text.split_once('=') {
        Some((name, _)) if !name.starts_with('.') && !name.contains('/') => Err(ConfigurationError(format!(
            "{name:?} is not a name: NAME= takes letters, digits, '.', '_' and '-'. If {text:?} is a path, type a path \
             with = as ./{text}"
        ))),
        _ => Ok(()),
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
    // The errors for text that looks like a URL do not show it, because it may contain a password anywhere.
    if path.contains("://") {
        return Err(ConfigurationError(
            "the text before a URL is not a name: NAME= takes letters, digits, '.', '_' and '-', without spaces or quotation \
             marks"
                .into(),
        ));
    }
    if url::is_likely_mistyped(path) {
        return Err(ConfigurationError(
            "it looks like a URL without its scheme: write http://… or https://… for a URL, and ./ before a path"
                .into(),
        ));
    }
    if path.starts_with('=') {
        return Err(ConfigurationError("the name before = is empty: write NAME=DEST, or ./=… for a path".into()));
    }
    if path.contains('\0') {
        return Err(ConfigurationError(format!("the path {path:?} contains a null character: remove it")));
    }
    Ok(Target::File(PathBuf::from(path)))
}
