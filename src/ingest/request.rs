//! Checks the head of a request, and reads from it what the events need.

use super::parse::BodyFormat;
use super::problem::{METHOD_NOT_ALLOWED, NOT_FOUND, Problem, REPEATED_HEADER, UNSUPPORTED_MEDIA_TYPE, echo};
use crate::core::event;
use crate::limits::REPLAY_ID_CHARS_MAX;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Bytes of a `traceparent` that is kept with the events. Version 00 has 55 bytes, and later versions may have more.
const TRACEPARENT_BYTES_MAX: usize = 128;

/// Checks the path, the method and the content headers. Returns how the body is written.
pub(super) fn body_format(head: &Parts) -> Result<BodyFormat, Box<Problem>> {
    if head.uri.path() != "/events" {
        let path = echo(head.uri.path());
        return Err(Problem::new(NOT_FOUND, format!("there is nothing at {path:?}: send events with POST to /events")));
    }
    if head.method != Method::POST {
        let method = echo(head.method.as_str());
        let detail = format!("the method {method} is not supported here: send events with POST to /events");
        return Err(Problem::new(METHOD_NOT_ALLOWED, detail));
    }
    if let Some(encoding) = only(&head.headers, CONTENT_ENCODING)?
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let encoding = echo(&String::from_utf8_lossy(encoding.as_bytes()));
        let detail = format!("the content encoding {encoding:?} is not supported: send the body uncompressed");
        return Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let content_type = only(&head.headers, CONTENT_TYPE)?.map(HeaderValue::as_bytes).unwrap_or_default();
    match content_type {
        // This is what nearly every request has, so it is not taken apart.
        b"application/json" => Ok(BodyFormat::Json),
        b"application/x-ndjson" => Ok(BodyFormat::Ndjson),
        other => format_of(&String::from_utf8_lossy(other)),
    }
}

/// The value of a header that may occur once. Two of them may differ, and a proxy in between may have used the other
/// one.
fn only(headers: &HeaderMap, name: HeaderName) -> Result<Option<&HeaderValue>, Box<Problem>> {
    let mut values = headers.get_all(&name).iter();
    match (values.next(), values.next()) {
        (_, Some(_)) => {
            Err(Problem::new(REPEATED_HEADER, format!("the request has more than one {name} header: send one")))
        }
        (first, None) => Ok(first),
    }
}

fn format_of(content_type: &str) -> Result<BodyFormat, Box<Problem>> {
    let mut parts = content_type.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    // JSON is UTF-8. A body in another character set would be misread.
    let is_utf8 = parts.filter_map(|parameter| parameter.split_once('=')).all(|(name, value)| {
        let value = value.trim_matches('"');
        !name.eq_ignore_ascii_case("charset")
            || ["utf-8", "utf8", "us-ascii"].iter().any(|set| value.eq_ignore_ascii_case(set))
    });
    if is_utf8 && media_type.eq_ignore_ascii_case("application/json") {
        Ok(BodyFormat::Json)
    } else if is_utf8 && media_type.eq_ignore_ascii_case("application/x-ndjson") {
        Ok(BodyFormat::Ndjson)
    } else {
        let content_type = echo(content_type);
        let detail = format!(
            "the content type {content_type:?} is not supported: send application/json or application/x-ndjson in UTF-8"
        );
        Err(Problem::new(UNSUPPORTED_MEDIA_TYPE, detail))
    }
}

/// The trace context of the request. A malformed one is ignored, as the W3C specification requires.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(event::TRACEPARENT)?.to_str().ok()?;
    let is_in_place = |(at, byte): (usize, u8)| match at {
        2 | 35 | 52 => byte == b'-',
        _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
    };
    // A later version may have more fields after another hyphen.
    let ends = value.len() == 55 || (value.len() > 55 && value.as_bytes()[55] == b'-');
    (ends && value.len() <= TRACEPARENT_BYTES_MAX && value.bytes().take(55).enumerate().all(is_in_place))
        .then_some(value)
}

/// The id of the replay, if another eventd sends the request during one. It is kept with the events, so that a replay
/// here does not send them again in turn.
pub(super) fn replay_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(event::REPLAY)?.to_str().ok()?;
    (1..=REPLAY_ID_CHARS_MAX).contains(&id.len()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_malformed_or_overlong_traceparent_is_ignored() {
        let long = format!("{TRACE}-{}", "x".repeat(TRACEPARENT_BYTES_MAX));
        for (value, is_kept) in [
            (TRACE, true),
            (&format!("{TRACE}-more"), true),
            (&format!("{TRACE}more"), false),
            (&TRACE[1..], false),
            (&TRACE.to_uppercase(), false),
            (&long, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(event::TRACEPARENT, HeaderValue::from_str(value).unwrap());
            assert_eq!(traceparent(&headers), is_kept.then_some(value), "{value}");
        }
    }

    #[test]
    fn a_content_type_is_compared_without_case_and_must_be_utf_8() {
        for (content_type, is_supported) in [
            ("application/json", true),
            ("Application/JSON; charset=UTF-8", true),
            ("application/x-ndjson;charset=\"utf8\"", true),
            ("application/json; charset=latin1", false),
            ("application/jsonp", false),
            ("", false),
        ] {
            assert_eq!(format_of(content_type).is_ok(), is_supported, "{content_type}");
        }
    }
}
