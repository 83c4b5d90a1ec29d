//! Checks which host a request is addressed to.
//!
//! RFC 9112 (section 3.2) requires exactly one valid `Host` in HTTP/1.1. A listener on a loopback address also refuses
//! requests for any other machine. Otherwise a web page could point its own name at 127.0.0.1 and let a visitor's
//! browser post events (DNS rebinding): the browser then sends that name as `Host`.

use super::problem::{FOREIGN_HOST, INVALID_HOST, Problem, echo};
use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Version};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Checks the host of a request. `allowed` holds the names that a loopback listener accepts in addition to those of
/// this machine; a listener with `None` accepts every host.
pub(super) fn check(head: &Parts, allowed: Option<&[String]>) -> Result<(), Box<Problem>> {
    let mut headers = head.headers.get_all(HOST).iter();
    let host = match (headers.next(), headers.next()) {
        (Some(_), Some(_)) => return Err(invalid("the request has more than one Host header: send one")),
        (Some(value), None) => Some(host_in(value)?),
        (None, _) if head.version >= Version::HTTP_11 => {
            return Err(invalid("the request has no Host header, which HTTP/1.1 requires: send one"));
        }
        (None, _) => None,
    };
    // RFC 9112, section 3.2.2: if the request target is a whole URL, its host counts instead of the header.
    let host = match head.uri.authority() {
        Some(authority) => Some(host_of(authority.as_str()).ok_or_else(|| not_a_host(authority.as_str()))?),
        None => host,
    };
    match (host, allowed) {
        (Some(host), Some(allowed))
            if !is_local(host) && !allowed.iter().any(|name| name.eq_ignore_ascii_case(host)) =>
        {
            let host = echo(host);
            let detail = format!(
                "eventd listens on a loopback address and does not accept requests for the host {host:?}: send them to \
                 localhost, or allow the host with --allow-host"
            );
            Err(Problem::new(FOREIGN_HOST, detail))
        }
        _ => Ok(()),
    }
}

fn host_in(value: &HeaderValue) -> Result<&str, Box<Problem>> {
    let host = value.to_str().ok().and_then(host_of);
    host.ok_or_else(|| not_a_host(&String::from_utf8_lossy(value.as_bytes())))
}

fn not_a_host(text: &str) -> Box<Problem> {
    invalid(format!("{:?} is not a valid host: send a name or an address, with a port if needed", echo(text)))
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> Box<Problem> {
    Problem::new(INVALID_HOST, detail).close()
}

/// The host in `host[:port]` (RFC 3986, section 3.2), or `None` if that is not valid. An IPv6 address keeps its
/// brackets.
///
/// This and the functions that it calls work on bytes, because they run for every request.
fn host_of(text: &str) -> Option<&str> {
    let host_end = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, _) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            address.len() + 2
        }
        None => text.bytes().position(|byte| byte == b':').unwrap_or(text.len()),
    };
    let (host, port) = text.split_at(host_end);
    let is_port_valid = match port.as_bytes() {
        [] | [b':'] => true,
        [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit) && port[1..].parse::<u16>().is_ok(),
        _ => false,
    };
    (is_port_valid && (host.starts_with('[') || is_name(host))).then_some(host)
}

/// Whether the text is a `reg-name` of at least one character. IPv4 addresses are such names too.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_valid = match byte {
            b'%' => [bytes.next(), bytes.next()].iter().all(|digit| digit.is_some_and(|it| it.is_ascii_hexdigit())),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {
                true
            }
            byte => byte.is_ascii_alphanumeric(),
        };
        if !is_valid {
            return false;
        }
    }
    !text.is_empty()
}

/// Whether the host can only mean this machine.
fn is_local(host: &str) -> bool {
    // This is what most clients send.
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok_and(|address| address.to_canonical().is_loopback());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if let Ok(address) = name.parse::<Ipv4Addr>() {
        return address.is_loopback();
    }
    // RFC 6761, section 6.3: names under `localhost` always mean the machine itself.
    let last_label = name.rsplit('.').next().unwrap_or_default();
    last_label.eq_ignore_ascii_case("localhost") && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_without_its_port_and_an_invalid_one_is_refused() {
        for (text, host) in [
            ("localhost", "localhost"),
            ("localhost:8090", "localhost"),
            ("localhost:", "localhost"),
            ("a_b.example.com:65535", "a_b.example.com"),
            ("%41.example", "%41.example"),
            ("a,b", "a,b"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:8090", "[::1]"),
        ] {
            assert_eq!(host_of(text), Some(host), "{text}");
        }
        for text in [
            "",
            ":80",
            "a b",
            "a:b",
            "a:80:80",
            "a:65536",
            "a:+80",
            "user@a",
            "a/b",
            "a?b",
            "a#b",
            "::1",
            "[::1",
            "[::1]80",
            "[x]",
            "[]",
            "a%4",
            "a%zz",
            "ü",
            "a\"",
            "http://a",
            "[::1%25eth0]",
        ] {
            assert_eq!(host_of(text), None, "{text}");
        }
    }

    #[test]
    fn only_names_and_addresses_of_this_machine_are_local() {
        for host in [
            "localhost",
            "LocalHost",
            "localhost.",
            "a.localhost",
            "127.0.0.1",
            "127.255.0.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            ".localhost",
            "0.0.0.0",
            "10.0.0.1",
            "[::]",
            "[::2]",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
