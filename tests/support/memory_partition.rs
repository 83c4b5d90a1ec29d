//! One partition of a log in memory. The tests of ingest and the simulation of dispatch build their logs on it: these logs
//! differ in their faults, but not in what a partition holds and how it is read.

use eventd::core::event::{Event, Record};
use eventd::log::{FetchError, Fetched};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryPartition {
    pub(crate) records: BTreeMap<i64, Record>,
    pub(crate) earliest: i64,
    pub(crate) latest: i64,
}

impl MemoryPartition {
    /// Stores the records at consecutive offsets, and returns the first one.
    pub(crate) fn append(&mut self, records: impl IntoIterator<Item = Record>) -> i64 {
        let first = self.latest;
        for record in records {
            self.records.insert(self.latest, record);
            self.latest += 1;
        }
        first
    }

    /// Reads from an offset up to the limits, but at least one record. Reading ends before a damaged record; if it is the
    /// first one, this is an error.
    pub(crate) fn fetch(
        &self,
        from: i64,
        bytes_max: usize,
        events_max: usize,
        is_damaged: impl Fn(i64) -> bool,
    ) -> Result<Fetched, FetchError> {
        let (earliest, latest) = (self.earliest, self.latest);
        if from < earliest || from > latest {
            return Err(FetchError::OutOfRange { from, earliest, latest });
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        for (offset, record) in self.records.range(from..) {
            let offset = *offset;
            if is_damaged(offset) {
                let damage = FetchError::Corrupt { offset, detail: "it was damaged".into() };
                return if offset == from { Err(damage) } else { Ok(Fetched { events, next: offset, latest }) };
            }
            bytes += record.size_bytes();
            if !events.is_empty() && (bytes > bytes_max || events.len() >= events_max) {
                return Ok(Fetched { events, next: offset, latest });
            }
            events.push(Event { offset, record: record.clone() });
        }
        Ok(Fetched { events, next: latest, latest })
    }

    /// The lowest offset whose record has this time or a later one.
    pub(crate) fn offset_at(&self, timestamp_ms: i64) -> Option<i64> {
        let mut records = self.records.iter();
        records.find(|(_, record)| record.timestamp_ms >= timestamp_ms).map(|(offset, _)| *offset)
    }
}
