//! The headers of a stored event that its request shows.

use crate::core::event::{self, Record};

/// The values of these headers. If a header is repeated, the first one counts, even if its value is unusable. (`Event::id`
/// has this rule too.)
#[derive(Debug, Default)]
pub(super) struct StoredHeaders<'a> {
    pub(super) id: Option<&'a [u8]>,
    pub(super) kind: Option<&'a [u8]>,
    pub(super) content_type: Option<&'a [u8]>,
    pub(super) traceparent: Option<&'a [u8]>,
    pub(super) replay: Option<&'a [u8]>,
}

impl<'a> StoredHeaders<'a> {
    pub(super) fn of(record: &'a Record) -> Self {
        // The outer option says whether the header was seen, the inner one whether it has a value.
        let mut seen = [None; 5];
        for (name, value) in record.headers() {
            let place = match name {
                event::ID => 0,
                event::TYPE => 1,
                event::CONTENT_TYPE => 2,
                event::TRACEPARENT => 3,
                event::REPLAY => 4,
                _ => continue,
            };
            seen[place].get_or_insert(value);
        }
        let [id, kind, content_type, traceparent, replay] = seen.map(Option::flatten);
        Self { id, kind, content_type, traceparent, replay }
    }
}
