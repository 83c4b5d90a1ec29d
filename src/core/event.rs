//! An event as it is stored and delivered: a record of the log, and its offset.
//!
//! A [`Record`] is one block of memory with key, value and headers, in this order. It is shared by reference count: a fetch
//! creates it, a lane holds it, an attempt borrows it, and its bytes are never copied. The headers stay in the encoding of
//! Kafka's record format version 2, and are decoded only when they are needed.

use super::varint;
use std::fmt;
use std::sync::Arc;

/// Header with the id that the client gave or that ingest created.
pub const ID: &str = "eventd-id";
/// Header with the media type of the payload.
pub const CONTENT_TYPE: &str = "content-type";
/// Header with the event's type, if the client gave one.
pub const TYPE: &str = "eventd-type";
/// Header with the W3C trace context, if the client's request had one.
pub const TRACEPARENT: &str = "traceparent";

/// Header with the id of the replay that sent the event.
///
/// Another replay leaves out such an event unless the operator asks for it. Without this, two programs that replay into
/// each other would never end.
pub const REPLAY: &str = "eventd-replay";

/// Memory for each unsettled event in addition to its own bytes. It counts towards `--window-bytes`.
pub const OVERHEAD_BYTES: usize = 128;

/// The length of a null key or value. A null value is not the same as an empty one.
const ABSENT: u32 = u32::MAX;

/// Key, value, headers and timestamp, as in Kafka. Key and value may be null, which is not the same as empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Key, value and encoded headers, without separators.
    data: Arc<[u8]>,
    key_len: u32,
    value_len: u32,
    /// When the event was accepted, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Record {
    /// Creates a record.
    ///
    /// # Panics
    /// A key or value has 4 GiB or more. All sources of records have far lower limits.
    pub fn new(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)], timestamp_ms: i64) -> Self {
        let mut encoded = Vec::new();
        encode_headers(headers, &mut encoded);
        Self::from_parts(key, value, &encoded, timestamp_ms)
    }

    /// Creates a record from headers that are already encoded, as [`Record::headers_encoded`] returns them.
    ///
    /// # Panics
    /// A key or value has 4 GiB or more.
    pub fn from_parts(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[u8], timestamp_ms: i64) -> Self {
        let part = |bytes: Option<&[u8]>| match bytes {
            None => ABSENT,
            Some(bytes) => u32::try_from(bytes.len())
                .ok()
                .filter(|len| *len != ABSENT)
                .expect("a key or value has less than 4 GiB"),
        };
        let (key_len, value_len) = (part(key), part(value));
        let (key, value) = (key.unwrap_or_default(), value.unwrap_or_default());
        let len = key.len() + value.len() + headers.len();
        // The bytes are written into the `Arc` directly. Converting a vector would allocate and copy a second time.
        let mut data: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
        let parts = Arc::get_mut(&mut data).expect("a new Arc has one owner");
        let (key_part, rest) = parts.split_at_mut(key.len());
        let (value_part, headers_part) = rest.split_at_mut(value.len());
        key_part.copy_from_slice(key);
        value_part.copy_from_slice(value);
        headers_part.copy_from_slice(headers);
        Self { data, key_len, value_len, timestamp_ms }
    }

    /// The user's id, which is the partition key. `None` for a record without a key, which another producer wrote.
    pub fn key(&self) -> Option<&[u8]> {
        (self.key_len != ABSENT).then(|| &self.data[..self.key_end()])
    }

    /// The payload. `None` for a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        (self.value_len != ABSENT).then(|| &self.data[self.key_end()..self.value_end()])
    }

    /// The headers in their stored encoding. [`Record::headers`] decodes them.
    pub fn headers_encoded(&self) -> &[u8] {
        &self.data[self.value_end()..]
    }

    /// The headers in their order, without those whose name is not UTF-8.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> + Clone {
        self.headers_raw().filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    /// All headers in their order. It ends early at bytes that are not valid headers; both logs check headers when they
    /// store them.
    pub fn headers_raw(&self) -> Headers<'_> {
        let mut rest = self.headers_encoded();
        let left = varint::take_signed(&mut rest).and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        Headers { rest, left }
    }

    /// The first value of the header `name`. `None` if the header is missing or null.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(key, _)| *key == name).and_then(|(_, value)| value)
    }

    /// The first value of the header `name`. `None` if the header is missing or not UTF-8.
    pub fn header_text(&self, name: &str) -> Option<&str> {
        self.header(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// A copy of the record with this header after all others. It replaces all headers of the same name.
    pub fn with_header(&self, header: &str, value: &[u8]) -> Self {
        let mut encoded = Vec::with_capacity(self.headers_encoded().len() + header.len() + value.len() + 8);
        if self.headers_raw().any(|(name, _)| name == header.as_bytes()) {
            let others = self.headers_raw().filter(|(name, _)| *name != header.as_bytes());
            let headers: Vec<(&[u8], Option<&[u8]>)> = others.chain([(header.as_bytes(), Some(value))]).collect();
            encode_headers(&headers, &mut encoded);
        } else {
            // This is the usual case. The other headers are copied without decoding them.
            let mut rest = self.headers_encoded();
            let count = varint::take_signed(&mut rest).unwrap_or(0);
            varint::put_signed(count + 1, &mut encoded);
            encoded.extend_from_slice(rest);
            encode_header(header.as_bytes(), Some(value), &mut encoded);
        }
        Self::from_parts(self.key(), self.value(), &encoded, self.timestamp_ms)
    }

    /// The size of key, value and headers together.
    pub fn size_bytes(&self) -> usize {
        self.data.len()
    }

    /// The number of copies of this record in the process, this one included. They share its bytes. A test can see from it
    /// how many events are in memory.
    pub fn copies(&self) -> usize {
        Arc::strong_count(&self.data)
    }

    /// The share of `--window-bytes` that this record takes while it is unsettled.
    pub fn window_bytes(&self) -> usize {
        self.data.len() + OVERHEAD_BYTES
    }

    fn key_end(&self) -> usize {
        if self.key_len == ABSENT { 0 } else { self.key_len as usize }
    }

    fn value_end(&self) -> usize {
        self.key_end() + if self.value_len == ABSENT { 0 } else { self.value_len as usize }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8_lossy(&b[..b.len().min(64)]).into_owned());
        f.debug_struct("Record")
            .field("key", &text(self.key()))
            .field("value", &text(self.value()))
            .field("size_bytes", &self.data.len())
            .field("timestamp_ms", &self.timestamp_ms)
            .finish()
    }
}

/// A record and its offset in its partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub offset: i64,
    pub record: Record,
}

impl Event {
    /// The event's id: the header [`ID`], or an id made of topic, partition and offset, which is just as unique and stable.
    pub fn id(&self, topic: &str, partition: u32) -> String {
        match self.record.header_text(ID) {
            Some(id) => id.to_owned(),
            None => format!("{topic}-{partition}-{}", self.offset),
        }
    }
}

/// An iterator over the names and values of headers; see [`Record::headers_raw`].
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let name = varint::take_bytes(&mut self.rest)??;
        let value = varint::take_bytes(&mut self.rest)?;
        Some((name, value))
    }
}

/// Appends headers in Kafka's encoding: their count, then each name and value after its length. Numbers are zigzag
/// varints.
pub fn encode_headers(headers: &[(impl AsRef<[u8]>, Option<&[u8]>)], out: &mut Vec<u8>) {
    varint::put_signed(headers.len() as i64, out);
    for (name, value) in headers {
        encode_header(name.as_ref(), *value, out);
    }
}

fn encode_header(name: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    varint::put_signed(name.len() as i64, out);
    out.extend_from_slice(name);
    match value {
        None => varint::put_signed(-1, out),
        Some(value) => {
            varint::put_signed(value.len() as i64, out);
            out.extend_from_slice(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_returns_the_key_value_and_headers_it_was_made_of(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..400)),
            headers in proptest::collection::vec(
                ("(a|[a-z-]{0,200})", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200))), 0..6),
        ) {
            let headers: Vec<(&str, Option<&[u8]>)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
            let record = Record::new(key.as_deref(), value.as_deref(), &headers, 7);
            prop_assert_eq!(record.key(), key.as_deref());
            prop_assert_eq!(record.value(), value.as_deref());
            prop_assert_eq!(record.headers().collect::<Vec<_>>(), headers.clone());

            let more = record.with_header("a", b"new");
            prop_assert_eq!((more.key(), more.value()), (record.key(), record.value()));
            let mut expected: Vec<_> = headers.into_iter().filter(|(name, _)| *name != "a").collect();
            expected.push(("a", Some(b"new")));
            prop_assert_eq!(more.headers().collect::<Vec<_>>(), expected);
        }

        #[test]
        fn invalid_headers_end_the_iteration_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let record = Record::from_parts(None, None, &bytes, 0);
            prop_assert!(record.headers().count() <= bytes.len());
        }
    }

    #[test]
    fn a_header_name_that_is_not_utf8_does_not_hide_the_headers_after_it() {
        let headers: [(&[u8], Option<&[u8]>); 3] =
            [(b"a", None), (b"\xff", Some(b"x")), (ID.as_bytes(), Some(b"mine"))];
        let mut encoded = Vec::new();
        encode_headers(&headers, &mut encoded);
        let record = Record::from_parts(None, None, &encoded, 0);
        assert_eq!(record.headers_raw().collect::<Vec<_>>(), headers);
        assert_eq!(record.headers().collect::<Vec<_>>(), [("a", None), (ID, Some(b"mine".as_slice()))]);
        assert_eq!(record.header_text(ID), Some("mine"));
    }

    #[test]
    fn an_event_without_an_id_gets_one_from_topic_partition_and_offset() {
        let at = |headers: &[(&str, Option<&[u8]>)]| Event { offset: 17, record: Record::new(None, None, headers, 0) };
        assert_eq!(at(&[]).id("user-events", 2), "user-events-2-17");
        assert_eq!(at(&[(ID, Some(b"mine"))]).id("user-events", 2), "mine");
    }
}
