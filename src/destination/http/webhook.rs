//! The headers of a webhook: those of Standard Webhooks and those of eventd. Also parses secrets and `Retry-After`.

use super::stored_headers::StoredHeaders;
use crate::core::event::{self, Event};
use crate::destination::ConfigurationError;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use ring::hmac;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static USER: HeaderName = HeaderName::from_static("eventd-user");
static ATTEMPT: HeaderName = HeaderName::from_static("eventd-attempt");
pub(super) static OFFSET: HeaderName = HeaderName::from_static("eventd-offset");
static TYPE: HeaderName = HeaderName::from_static("eventd-type");
static GAP: HeaderName = HeaderName::from_static("eventd-gap");
static REPLAY: HeaderName = HeaderName::from_static(event::REPLAY);
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Characters that a header value cannot contain, and `%`, so that decoding returns the original text. Bytes that are not
/// ASCII are always encoded.
const IN_A_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
/// Like [`IN_A_HEADER`], and also `.`, because the signature joins id, time and body with `.`.
pub(super) const IN_A_SIGNED_ID: &AsciiSet = &IN_A_HEADER.add(b'.');

/// The prefix of a base64 secret in Standard Webhooks.
pub(crate) const SECRET_PREFIX: &str = "whsec_";
const SIGNATURE_BASE64_BYTES: usize = 44;
/// Memory for the header values of one request, if id and user have a usual length.
const VALUES_BYTES: usize = 192;

/// The minimum size of a secret. With fewer than 128 bits it could be guessed. (Standard Webhooks recommends 192 to 512.)
const SECRET_BYTES_MIN: usize = 16;

/// Decodes a secret from a file or an environment variable. It is `whsec_` followed by base64, or any other line of text,
/// whose bytes are used unchanged. White space at both ends is ignored.
///
/// # Errors
/// The secret is empty, shorter than 16 bytes, has more than one line, or is not base64 after `whsec_`. The error never
/// shows the secret.
pub fn parse_secret(text: &str) -> Result<Vec<u8>, ConfigurationError> {
    // Some editors write a byte order mark, which is not a part of the secret.
    let text = text.trim_start_matches('\u{feff}').trim();
    let refused = |why: &str| Err(ConfigurationError(format!("the webhook secret {why}")));
    if text.contains(|c: char| c.is_control()) {
        return refused("has more than one line, or a control character: write one secret in one line");
    }
    if text.starts_with(['"', '\'']) {
        return refused("begins with a quotation mark: write it without quotation marks");
    }
    if !text.starts_with(SECRET_PREFIX) && text.to_ascii_lowercase().starts_with(SECRET_PREFIX) {
        return refused("begins with whsec_ in capital letters: write whsec_");
    }
    let secret = match text.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => match BASE64_STANDARD.decode(encoded) {
            Ok(secret) => secret,
            Err(_) => {
                return refused(
                    "is not valid base64 after whsec_: copy it again, or create a new one with echo whsec_$(openssl rand -base64 24)",
                );
            }
        },
        None => text.as_bytes().to_vec(),
    };
    match secret.len() {
        0 => refused("is empty: create one with echo whsec_$(openssl rand -base64 24)"),
        1..SECRET_BYTES_MIN => {
            refused("is too short: it needs at least 16 bytes. Create one with echo whsec_$(openssl rand -base64 24)")
        }
        _ => Ok(secret),
    }
}

/// Signs webhooks with one secret.
pub(super) struct Signer(hmac::Key);

impl Signer {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Appends `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
    fn sign(&self, id: &[u8], timestamp: &[u8], body: &[u8], out: &mut BytesMut) {
        let mut context = hmac::Context::with_key(&self.0);
        for part in [id, b".", timestamp, b".", body] {
            context.update(part);
        }
        let mut encoded = [0; SIGNATURE_BASE64_BYTES];
        BASE64_STANDARD.encode_slice(context.sign(), &mut encoded).expect("32 bytes are 44 characters of base64");
        out.put_slice(b"v1,");
        out.put_slice(&encoded);
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

/// The headers that a single event and a batch have.
pub(super) struct Envelope<'a> {
    /// The encoded id.
    pub(super) id: Bytes,
    pub(super) user: Option<&'a [u8]>,
    pub(super) attempt: u32,
    pub(super) after_dead_letter: bool,
    pub(super) now: SystemTime,
}

impl Envelope<'_> {
    /// Adds the headers of this body. `values` is memory for them.
    pub(super) fn put(self, signer: Option<&Signer>, body: &[u8], headers: &mut HeaderMap, values: &mut BytesMut) {
        let Self { id, user, attempt, after_dead_letter, now } = self;
        number(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(), values);
        let timestamp = values.split().freeze();
        if let Some(signer) = signer {
            signer.sign(&id, &timestamp, body, values);
            put(headers, &WEBHOOK_SIGNATURE, values);
        }
        insert(headers, &WEBHOOK_ID, HeaderValue::from_maybe_shared(id));
        insert(headers, &WEBHOOK_TIMESTAMP, HeaderValue::from_maybe_shared(timestamp));
        if let Some(user) = user {
            encode(user, IN_A_HEADER, values);
            put(headers, &USER, values);
        }
        number(attempt.into(), values);
        put(headers, &ATTEMPT, values);
        if after_dead_letter {
            headers.insert(GAP.clone(), HeaderValue::from_static("1"));
        }
    }
}

/// One attempt to deliver one event: the source of its headers.
#[derive(Debug, Clone, Copy)]
pub(super) struct WebhookRequest<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) event: &'a Event,
    pub(super) attempt: u32,
    pub(super) after_dead_letter: bool,
    pub(super) now: SystemTime,
}

impl WebhookRequest<'_> {
    /// Adds the headers of the webhook.
    ///
    /// Id, user and type are percent-encoded. `content-type`, `traceparent` and `eventd-replay` are sent as stored, or left out
    /// if they are not valid header values.
    pub(super) fn put_headers(&self, signer: Option<&Signer>, headers: &mut HeaderMap) {
        let record = &self.event.record;
        let StoredHeaders { id, kind, content_type, traceparent, replay } = StoredHeaders::of(record);
        // All values share one block of memory, so that a request needs one allocation for them.
        let mut values = BytesMut::with_capacity(VALUES_BYTES);
        match id.filter(|id| std::str::from_utf8(id).is_ok()) {
            Some(id) => encode(id, IN_A_SIGNED_ID, &mut values),
            None => encode(self.event.id(self.topic, self.partition).as_bytes(), IN_A_SIGNED_ID, &mut values),
        }
        let envelope = Envelope {
            id: values.split().freeze(),
            user: record.key(),
            attempt: self.attempt,
            after_dead_letter: self.after_dead_letter,
            now: self.now,
        };
        envelope.put(signer, record.value().unwrap_or_default(), headers, &mut values);
        write!(values, "{}:{}", self.partition, self.event.offset).expect("writing to memory cannot fail");
        put(headers, &OFFSET, &mut values);
        if let Some(kind) = kind {
            encode(kind, IN_A_HEADER, &mut values);
            put(headers, &TYPE, &mut values);
        }
        for (name, value) in [(&CONTENT_TYPE, content_type), (&TRACEPARENT, traceparent), (&REPLAY, replay)] {
            if let Some(value) = value {
                insert(headers, name, HeaderValue::from_bytes(value));
            }
        }
    }
}

pub(super) fn encode(bytes: &[u8], set: &'static AsciiSet, values: &mut BytesMut) {
    for chunk in percent_encode(bytes, set) {
        values.extend_from_slice(chunk.as_bytes());
    }
}

fn number(number: u64, values: &mut BytesMut) {
    write!(values, "{number}").expect("writing to memory cannot fail");
}

pub(super) fn put(headers: &mut HeaderMap, name: &HeaderName, values: &mut BytesMut) {
    insert(headers, name, HeaderValue::from_maybe_shared(values.split().freeze()));
}

/// Inserts a header, or leaves it out if the value is not valid. eventd's own values are encoded and always valid, so this
/// concerns values that another producer stored.
fn insert(headers: &mut HeaderMap, name: &HeaderName, value: Result<HeaderValue, impl Sized>) {
    if let Ok(value) = value {
        headers.insert(name.clone(), value);
    }
}

/// Parses `Retry-After`: seconds, with or without a fraction, or a date, from which `now` is subtracted. Returns at most `max`,
/// rounded up to milliseconds. `None` if the value is neither.
pub(super) fn retry_after(value: &HeaderValue, now: SystemTime, max: Duration) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Some(delay) = seconds(text) {
        return Some(delay.min(max));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(now).unwrap_or_default().min(max))
}

/// Parses `7`, `2.5`, and also `2.` and `.5`, which some libraries write. Signs, exponents and words are not accepted.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    // If the number does not fit, it is larger than any limit.
    let whole_seconds = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(u64::MAX / 1_000) };
    let digit = |place: usize| fraction.as_bytes().get(place).map_or(0, |byte| u64::from(byte - b'0'));
    let is_beyond = fraction.bytes().skip(3).any(|byte| byte != b'0');
    let millis = digit(0) * 100 + digit(1) * 10 + digit(2) + u64::from(is_beyond);
    Some(Duration::from_secs(whole_seconds).saturating_add(Duration::from_millis(millis)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;
    use proptest::prelude::*;

    fn headers(record: Record, signer: Option<&Signer>) -> HeaderMap {
        let event = Event { offset: 17, record };
        let now = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        let mut headers = HeaderMap::new();
        let attempt =
            WebhookRequest { topic: "t", partition: 2, event: &event, attempt: 3, after_dead_letter: true, now };
        attempt.put_headers(signer, &mut headers);
        headers
    }

    #[test]
    fn the_signature_agrees_with_the_example_of_the_specification() {
        let secret = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let id: &[u8] = b"msg_p5jXN8AQM9LWM0D4loKWxJek";
        let record = Record::new(Some(b"u"), Some(br#"{"test": 2432232314}"#), &[(event::ID, Some(id))], 0);
        let headers = headers(record, Some(&Signer::new(&secret)));
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(
            (&headers["webhook-id"], &headers["webhook-timestamp"]),
            (&HeaderValue::from_bytes(id).unwrap(), &HeaderValue::from_static("1614265330"))
        );
    }

    #[test]
    fn ids_users_and_types_are_encoded_and_other_headers_are_sent_as_stored() {
        let stored: &[(&str, Option<&[u8]>)] = &[
            (event::ID, Some("a.b%ü".as_bytes())),
            (event::TYPE, Some(b"made now")),
            (event::CONTENT_TYPE, Some(b"text/plain; charset=utf-8")),
            (event::TRACEPARENT, Some(b"00-1-2-01")),
        ];
        let headers = headers(Record::new(Some(b"a.b c\n"), Some(b""), stored, 0), None);
        for (name, expected) in [
            ("webhook-id", "a%2Eb%25%C3%BC"),
            ("eventd-user", "a.b%20c%0A"),
            ("eventd-type", "made%20now"),
            ("content-type", "text/plain; charset=utf-8"),
            ("traceparent", "00-1-2-01"),
            ("eventd-attempt", "3"),
            ("eventd-offset", "2:17"),
            ("eventd-gap", "1"),
        ] {
            assert_eq!(headers[name], expected, "{name}");
        }
        assert!(!headers.contains_key("webhook-signature"));
    }

    #[test]
    fn a_record_of_another_producer_gets_an_id_from_its_offset_and_no_user() {
        let headers = headers(Record::new(None, None, &[(event::CONTENT_TYPE, Some(b"a\nb"))], 0), None);
        assert_eq!(headers["webhook-id"], "t-2-17");
        assert!(!headers.contains_key("eventd-user") && !headers.contains_key("content-type"));
    }

    #[test]
    fn the_first_of_repeated_headers_counts() {
        let first: [(Option<&[u8]>, _); 4] =
            [(Some(b"one"), "one"), (Some(b""), ""), (None, "t-2-17"), (Some(b"\xff"), "t-2-17")];
        for (first, expected) in first {
            let stored = [(event::ID, first), (event::ID, Some(b"two".as_slice()))];
            let record = Record::new(None, None, &stored, 0);
            assert_eq!(Event { offset: 17, record: record.clone() }.id("t", 2), expected, "{first:?}");
            assert_eq!(headers(record, None)["webhook-id"], expected, "{first:?}");
        }
    }

    #[test]
    fn a_secret_is_base64_after_the_prefix_and_plain_text_without_it() {
        assert_eq!(parse_secret("whsec_AP8AAAAAAAAAAAAAAAAAAA==\r\n").unwrap()[..3], [0, 255, 0]);
        assert_eq!(parse_secret("\u{feff}whsec_AP8AAAAAAAAAAAAAAAAAAA==").unwrap()[..2], [0, 255]);
        assert_eq!(parse_secret(" sixteen bytes ok\n").unwrap(), b"sixteen bytes ok");
        for (text, why) in [
            ("", "empty"),
            ("\n", "empty"),
            ("whsec_", "empty"),
            ("whsec_!", "base64"),
            ("x", "too short"),
            ("fifteen bytes !", "too short"),
            ("whsec_AP8=", "too short"),
            ("\"whsec_AP8AAAAAAAAAAAAAAAAAAA==\"", "quotation mark"),
            ("WHSEC_AP8AAAAAAAAAAAAAAAAAAA==", "write whsec_"),
            ("the first secret of two\nthe second secret of two\n", "more than one line"),
            ("the first secret of two\rthe second secret of two", "more than one line"),
            ("a null character \0 in text", "control character"),
        ] {
            let refused = parse_secret(text).unwrap_err().0;
            assert!(refused.contains(why) && !refused.contains("first"), "{text:?}: {refused}");
        }
    }

    #[test]
    fn a_retry_after_with_a_fraction_is_rounded_up_to_milliseconds() {
        let after = |text| {
            let value = HeaderValue::from_static(text);
            retry_after(&value, UNIX_EPOCH, Duration::from_secs(300)).map(|after| after.as_millis())
        };
        for (text, expected) in [
            ("2.5", 2_500),
            ("0.5", 500),
            (" 3 ", 3_000),
            ("0.0", 0),
            ("2.", 2_000),
            (".5", 500),
            ("0.0001", 1),
            ("1.0000000000000000000000000000000001", 1_001),
            ("1.9999", 2_000),
            ("1.10", 1_100),
            ("300.5", 300_000),
            ("99999999999999999999999999.5", 300_000),
        ] {
            assert_eq!(after(text), Some(expected), "{text}");
        }
        for nothing in [".", "-0.5", "+1", "1e3", "1.5e3", "NaN", "inf", "1.5s", "1,5", "1.2.3", "0x10", "1 2", "1. 5"]
        {
            assert_eq!(after(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_is_cut_to_the_limit() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |text| {
            let value = HeaderValue::from_static(text);
            retry_after(&value, now, Duration::from_secs(300)).map(|after| after.as_secs())
        };
        assert_eq!(after("7"), Some(7));
        assert_eq!(after("0"), Some(0));
        for huge in ["301", "18446744073709551615", "99999999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(after(huge), Some(300), "{huge}");
        }
        assert_eq!(after("Sun, 06 Nov 1994 08:50:00 GMT"), Some(23));
        assert_eq!(after("Sunday, 06-Nov-94 08:50:00 GMT"), Some(23));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        for nothing in ["", "-1", "soon", "+3"] {
            assert_eq!(after(nothing), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn a_receiver_can_decode_a_user_of_any_bytes(user in proptest::collection::vec(any::<u8>(), 0..60)) {
            let headers = headers(Record::new(Some(&user), None, &[(event::ID, Some(&user))], 0), None);
            let decoded = |name: &str| -> Vec<u8> {
                percent_encoding::percent_decode(headers[name].as_bytes()).collect()
            };
            prop_assert_eq!(decoded("eventd-user"), user.clone());
            if std::str::from_utf8(&user).is_ok() {
                prop_assert_eq!(decoded("webhook-id"), user);
            }
        }
    }
}
