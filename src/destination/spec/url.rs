//! The URL of a destination: parses it, and shows it without its secrets.

use super::HttpTarget;
use crate::destination::ConfigurationError;
use http::Uri;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use std::ops::Range;

/// Characters that RFC 3986 allows neither in a path nor in a query. Characters that are not ASCII are always encoded.
const NOT_IN_A_URL: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');

/// Parses a URL with the scheme `http` or `https`.
pub(super) fn parse(text: &str) -> Result<HttpTarget, ConfigurationError> {
    let bad = |why: &str| ConfigurationError(format!("{:?} is not a URL to deliver to: {why}", shown_in_error(text)));
    if authority(text).is_some_and(|authority| authority.is_empty()) {
        let (shown, scheme) = (shown_in_error(text), scheme_of(text).map_or("http", |(scheme, _)| scheme));
        return Err(ConfigurationError(format!("{shown:?} has no host: write {scheme}://HOST/PATH")));
    }
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
    Ok(HttpTarget { uri, userinfo })
}

/// The URL with all characters percent-encoded that RFC 3986 does not allow in a path or a query, as browsers do. The host
/// never changes, because that would be another host.
fn request_uri(text: &str) -> Result<String, &'static str> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it has a space or a control character: write %20 for a space");
    }
    let Some(authority) = authority(text) else { return Err("the host is missing") };
    let lower = text.to_ascii_lowercase();
    if [",http://", ",https://", ";http://", ";https://"].iter().any(|next| lower.contains(next)) {
        return Err("it is several URLs in one: repeat --dest, or write one a line in EVENTD_DEST");
    }
    let host = host_start(text, &authority);
    if !text[host..authority.end].is_ascii() {
        return Err("the host has a character that is not ASCII: write it in punycode (xn--…)");
    }
    let encode = |part| utf8_percent_encode(part, NOT_IN_A_URL);
    Ok(format!(
        "{}{}{}{}",
        &text[..authority.start],
        encode(&text[authority.start..host]),
        &text[host..authority.end],
        encode(&text[authority.end..])
    ))
}

/// Whether a path is most likely a mistyped URL: `http//host`, `host/hook?token=…`, `host/user:password@host`.
///
/// The path has no valid `NAME=` any more. An absolute path, and one that begins with `.`, is always meant as a path.
pub(super) fn is_likely_mistyped(path: &str) -> bool {
    if path.starts_with(['/', '.']) {
        return false;
    }
    let lower = path.to_ascii_lowercase();
    // Text before `=` that is not a valid name is still a part of the path.
    let after_name = lower.split_once('=').map_or(lower.as_str(), |(_, rest)| rest);
    let begins_with_scheme = |text: &str| {
        let mut rests = ["http", "https"].iter().filter_map(|scheme| text.strip_prefix(scheme));
        rests.any(|rest| rest.starts_with("//") || rest.starts_with(";//"))
    };
    let is_scheme_without_colon = begins_with_scheme(&lower) || begins_with_scheme(after_name);
    let has_query = lower.split_once('?').is_some_and(|(_, query)| query.contains('='));
    let has_user = lower.split_once('@').is_some_and(|(before, _)| before.contains(':'));
    is_scheme_without_colon || has_query || has_user
}

/// Whether the text after the first `:` is a port, or a port and a path, so that the text before it is a host.
pub(super) fn is_port_and_path(text: &str) -> bool {
    let port = text.split('/').next().unwrap_or_default();
    port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// The scheme before the first `:` and the text after it, if the text before can be a scheme.
pub(super) fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let mut characters = scheme.chars();
    let starts_with_letter = characters.next().is_some_and(|first| first.is_ascii_alphabetic());
    let is_valid = characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    (starts_with_letter && is_valid).then_some((scheme, rest))
}

/// The position of `user:password@host:port` in a URL. `None` if the text is not a URL.
pub(super) fn authority(text: &str) -> Option<Range<usize>> {
    let (scheme, rest) = scheme_of(text).filter(|(scheme, _)| !scheme.eq_ignore_ascii_case("file"))?;
    let slashes = rest.chars().take_while(|c| *c == '/').count();
    let start = scheme.len() + 1 + slashes;
    let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |at| start + at);
    Some(start..end)
}

/// The position of the host: after the last `@` of the authority.
fn host_start(text: &str, authority: &Range<usize>) -> usize {
    text[authority.clone()].rfind('@').map_or(authority.start, |at| authority.start + at + 1)
}

/// The part of a destination that is not a secret: a URL without user, password, query and fragment, or any other text
/// unchanged.
pub(super) fn public_part(as_typed: &str) -> String {
    let Some(authority) = authority(as_typed) else { return as_typed.to_owned() };
    let host = host_start(as_typed, &authority);
    let path_end = as_typed[authority.end..].find(['?', '#']).map_or(as_typed.len(), |at| authority.end + at);
    format!("{}{}", &as_typed[..authority.start], &as_typed[host..path_end])
}

/// A destination that was parsed, without the secrets of a URL.
pub(super) fn shown(as_typed: &str) -> String {
    let end = authority(as_typed).map_or(0, |authority| authority.end);
    without_query(without_userinfo(as_typed, end))
}

/// Text that may not be a valid URL, without its possible secrets. A password may contain `/`, so that it does not end
/// where the authority seems to end. Its own error must not show it either.
pub(super) fn shown_in_error(text: &str) -> String {
    without_query(without_userinfo(text, text.len()))
}

/// A URL with `?…` in place of its query, or any other text unchanged.
pub(super) fn without_query(text: String) -> String {
    let query = authority(&text).and_then(|authority| Some(authority.start + text[authority.start..].find('?')?));
    match query {
        Some(at) => format!("{}?…", &text[..at]),
        None => text,
    }
}

/// A URL with `***` in place of everything up to the last `@` before `end`, or any other text unchanged.
fn without_userinfo(text: &str, end: usize) -> String {
    match (authority(text), text[..end].rfind('@')) {
        (Some(authority), Some(at)) if authority.start <= at => {
            format!("{}***{}", &text[..authority.start], &text[at..])
        }
        _ => text.to_owned(),
    }
}
