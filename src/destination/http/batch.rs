//! Several events of one user in one request (`--batch`): a batch of CloudEvents.
//!
//! ```text
//!  run of events ──▶ [{"specversion":"1.0","id":"…",…,"data":{…}},{…}] ──▶ one POST ── 2xx ──▶ all are delivered
//!                                                                              └── else ──▶ the first one goes alone,
//!                                                                                            then shorter batches
//! ```
//!
//! The body is in the JSON batch format of CloudEvents 1.0 (`application/cloudevents-batch+json`). A payload that is JSON
//! is in the body byte for byte, as `data`. Every other payload is in base64, as `data_base64`. A record without a value
//! has neither.
//!
//! A batch that fails says nothing certain about any of its events: it may be too large for the receiver, or the receiver
//! may refuse one of them. So the verdict is `BatchFailed`, which says nothing, unless the receiver was not reached or asks
//! to wait.

use super::stored_headers::StoredHeaders;
use super::webhook::{self, Envelope, IN_A_SIGNED_ID, Signer};
use crate::core::event::Event;
use crate::core::verdict::Verdict;
use crate::destination::json_line;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::de::IgnoredAny;
use std::fmt::Write;
use std::time::SystemTime;

static BATCH_MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json");

/// The type of an event that has none, because CloudEvents need one.
const TYPE_OF_UNTYPED: &str = "eventd.event";

/// One attempt to deliver several events of one user.
#[derive(Debug, Clone)]
pub(super) struct BatchRequest<'a> {
    topic: &'a str,
    partition: u32,
    events: &'a [Event],
    after_dead_letter: bool,
    now: SystemTime,
    body: Bytes,
}

impl<'a> BatchRequest<'a> {
    /// # Panics
    /// If `events` is empty.
    pub(super) fn new(
        topic: &'a str,
        partition: u32,
        events: &'a [Event],
        after_dead_letter: bool,
        now: SystemTime,
    ) -> Self {
        assert!(!events.is_empty(), "a run has events");
        let mut body = Vec::new();
        for event in events {
            body.push(if body.is_empty() { b'[' } else { b',' });
            append(topic, partition, event, &mut body);
        }
        body.push(b']');
        Self { topic, partition, events, after_dead_letter, now, body: body.into() }
    }

    pub(super) fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// Adds the headers of the webhook. The id of the batch depends only on its first and its last event.
    pub(super) fn put_headers(&self, signer: Option<&Signer>, headers: &mut HeaderMap) {
        let (first, last) = (&self.events[0], &self.events[self.events.len() - 1]);
        let mut values = BytesMut::new();
        let id = format!("{}-{}-{}-{}", self.topic, self.partition, first.offset, last.offset);
        webhook::encode(id.as_bytes(), IN_A_SIGNED_ID, &mut values);
        let id = values.split().freeze();
        let envelope = Envelope {
            id,
            user: first.record.key(),
            attempt: 1,
            after_dead_letter: self.after_dead_letter,
            now: self.now,
        };
        envelope.put(signer, &self.body, headers, &mut values);
        write!(values, "{}:{}-{}", self.partition, first.offset, last.offset).expect("writing to memory cannot fail");
        webhook::put(headers, &webhook::OFFSET, &mut values);
        headers.insert(CONTENT_TYPE, BATCH_MEDIA_TYPE.clone());
    }
}

/// What the failure of a whole batch says about its first event.
pub(super) fn verdict_of_first(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Retry { .. } | Verdict::Refused => Verdict::BatchFailed,
        Verdict::Busy { .. } | Verdict::Unreachable | Verdict::Drilled | Verdict::BatchFailed | Verdict::CutOff => {
            verdict
        }
    }
}

/// Appends the event as a JSON object.
fn append(topic: &str, partition: u32, event: &Event, body: &mut Vec<u8>) {
    let record = &event.record;
    let StoredHeaders { id, kind, content_type, traceparent, replay } = StoredHeaders::of(record);
    // An attribute of a CloudEvent is a string that is not empty.
    let text = |value: Option<&[u8]>| {
        let value = std::str::from_utf8(value?).ok()?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    let content_type = text(content_type);
    body.extend_from_slice(b"{\"specversion\":\"1.0\"");
    attribute("id", &text(id).unwrap_or_else(|| format!("{topic}-{partition}-{}", event.offset)), body);
    attribute("source", &format!("eventd:{topic}"), body);
    attribute("type", text(kind).as_deref().unwrap_or(TYPE_OF_UNTYPED), body);
    json_line::timestamp("time", record.timestamp_ms, body);
    if let Some(content_type) = &content_type {
        attribute("datacontenttype", content_type, body);
    }
    if let Some(user) = text(record.key()) {
        attribute("partitionkey", &user, body);
    }
    attribute("eventdoffset", &format!("{partition}:{}", event.offset), body);
    for (name, value) in [("traceparent", text(traceparent)), ("eventdreplay", text(replay))] {
        if let Some(value) = value {
            attribute(name, &value, body);
        }
    }
    match record.value() {
        Some(payload) if is_json(content_type.as_deref(), payload) => {
            body.extend_from_slice(b",\"data\":");
            body.extend_from_slice(payload);
        }
        Some(payload) => {
            body.extend_from_slice(b",\"data_base64\":\"");
            let start = body.len();
            body.resize(start + payload.len().div_ceil(3) * 4, 0);
            BASE64_STANDARD
                .encode_slice(payload, &mut body[start..])
                .expect("the buffer has four characters for every three bytes");
            body.push(b'"');
        }
        None => {}
    }
    body.push(b'}');
}

fn attribute(name: &str, value: &str, body: &mut Vec<u8>) {
    body.extend_from_slice(b",\"");
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(b"\":");
    serde_json::to_writer(body, value).expect("writing a string to memory cannot fail");
}

/// Whether the payload is JSON by its media type (JSON if there is none) and by its bytes.
fn is_json(content_type: Option<&str>, payload: &[u8]) -> bool {
    let media_type = content_type.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let says_json = media_type.is_none_or(|media_type| {
        matches!(media_type.as_str(), "application/json" | "text/json") || media_type.ends_with("+json")
    });
    says_json && std::str::from_utf8(payload).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event;
    use crate::core::event::Record;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn event(offset: i64, payload: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> Event {
        Event { offset, record: Record::new(Some("ü".as_bytes()), payload, headers, 1_767_323_045_678) }
    }

    fn request(events: &[Event]) -> BatchRequest<'_> {
        BatchRequest::new("user.events", 2, events, true, UNIX_EPOCH + Duration::from_secs(1_614_265_330))
    }

    #[test]
    fn the_body_has_a_fixed_form() {
        let headers: &[(&str, Option<&[u8]>)] = &[
            (event::ID, Some(b"id \"1\"")),
            (event::TYPE, Some(b"made")),
            (event::CONTENT_TYPE, Some(b"application/json; charset=utf-8")),
            (event::TRACEPARENT, Some(b"00-1-2-01")),
            (event::REPLAY, Some(b"r1")),
        ];
        let text: &[(&str, Option<&[u8]>)] = &[(event::CONTENT_TYPE, Some(b"text/plain"))];
        let events = [
            event(17, Some(b"{ \"a\": 1.0 }\n"), headers),
            event(18, Some(b"7"), text),
            event(20, None, &[]),
            event(21, Some(b""), &[]),
        ];
        let expected = concat!(
            r#"[{"specversion":"1.0","id":"id \"1\"","source":"eventd:user.events","type":"made","#,
            r#""time":"2026-01-02T03:04:05.678Z","datacontenttype":"application/json; charset=utf-8","#,
            r#""partitionkey":"ü","eventdoffset":"2:17","traceparent":"00-1-2-01","eventdreplay":"r1","#,
            "\"data\":{ \"a\": 1.0 }\n},",
            r#"{"specversion":"1.0","id":"user.events-2-18","source":"eventd:user.events","type":"eventd.event","#,
            r#""time":"2026-01-02T03:04:05.678Z","datacontenttype":"text/plain","partitionkey":"ü","#,
            r#""eventdoffset":"2:18","data_base64":"Nw=="},"#,
            r#"{"specversion":"1.0","id":"user.events-2-20","source":"eventd:user.events","type":"eventd.event","#,
            r#""time":"2026-01-02T03:04:05.678Z","partitionkey":"ü","eventdoffset":"2:20"},"#,
            r#"{"specversion":"1.0","id":"user.events-2-21","source":"eventd:user.events","type":"eventd.event","#,
            r#""time":"2026-01-02T03:04:05.678Z","partitionkey":"ü","eventdoffset":"2:21","data_base64":""}]"#,
        );
        assert_eq!(std::str::from_utf8(&request(&events).body()).unwrap(), expected);
    }

    #[test]
    fn the_headers_are_those_of_the_batch_and_the_signature_covers_the_whole_body() {
        let events = [event(17, Some(b"1"), &[]), event(20, Some(b"2"), &[])];
        let (request, signer) = (request(&events), Signer::new(b"sixteen bytes ok"));
        let mut headers = HeaderMap::new();
        request.put_headers(Some(&signer), &mut headers);
        for (name, expected) in [
            ("webhook-id", "user%2Eevents-2-17-20"),
            ("webhook-timestamp", "1614265330"),
            ("eventd-user", "%C3%BC"),
            ("eventd-attempt", "1"),
            ("eventd-offset", "2:17-20"),
            ("eventd-gap", "1"),
            ("content-type", "application/cloudevents-batch+json"),
        ] {
            assert_eq!(headers[name], expected, "{name}");
        }
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"sixteen bytes ok");
        let signed = [b"user%2Eevents-2-17-20.1614265330.", &request.body()[..]].concat();
        let expected = format!("v1,{}", BASE64_STANDARD.encode(ring::hmac::sign(&key, &signed)));
        assert_eq!(headers["webhook-signature"], expected);
    }

    proptest! {
        #[test]
        fn a_receiver_gets_the_bytes_of_any_payload(
            payload in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "(\\{\"a\":[0-9]{1,3}\\.0+\\}|\\[ ?\"[ -~]{0,9}|[0-9 ]{1,9}|\"\\PC{0,9}\")".prop_map(String::into_bytes),
            ],
            content_type in prop_oneof![Just("application/json"), Just("text/plain"), Just("a/b+json")],
        ) {
            let headers = [(event::CONTENT_TYPE, Some(content_type.as_bytes()))];
            let events = [event(1, Some(&payload), &headers), event(2, Some(&payload), &headers)];
            let body = request(&events).body();
            let events: Vec<std::collections::HashMap<String, &serde_json::value::RawValue>> =
                serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(events.len(), 2);
            for event in events {
                let bytes = match (event.get("data"), event.get("data_base64")) {
                    // White space around a JSON value is in the body, but is not a part of the value.
                    (Some(data), None) => {
                        let value = std::str::from_utf8(&payload).unwrap();
                        prop_assert_eq!(data.get(), value.trim_matches([' ', '\n', '\r', '\t']));
                        continue;
                    }
                    (None, Some(data)) => BASE64_STANDARD.decode(data.get().trim_matches('"')).unwrap(),
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(&bytes, &payload);
            }
        }
    }
}
