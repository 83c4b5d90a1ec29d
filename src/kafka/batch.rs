//! Encodes and decodes record batches, format version 2.
//!
//! ```text
//!  offset │ length │ epoch │ 2 │ crc │ attributes │ Δ last │ times │ producer id, epoch, sequence │ count │ records …
//!    8        4        4     1    4        2           4      8+8        8        2       4           4
//!                                └──── the CRC covers all of this ──▶
//! ```
//!
//! What a fetch returns may start with records below the requested offset and may end within a batch. It may also have
//! offsets without an event: transaction markers, records of aborted transactions, and records that compaction removed.

use super::compression;
use crate::core::event::{Event, Record};
use crate::core::varint;
use crate::limits::RECORD_FRAMING_BYTES_MAX;
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeSet;

/// Bytes of one decompressed batch of another producer. A small batch can decompress to a very large one.
const DECOMPRESSED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of a batch before its first record.
pub const HEADER_BYTES: usize = 61;

const MAGIC: u8 = 2;
const COMPRESSION: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// Where the length field ends (it counts the bytes after itself), and where the CRC field ends (it covers the bytes
/// after itself).
const LENGTH_END: usize = 12;
const CRC_END: usize = 21;

/// The state of an idempotent producer for one partition. A broker recognizes a repeated batch by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerState {
    pub id: i64,
    pub epoch: i16,
    /// The sequence number of the batch's first record.
    pub sequence: i32,
}

/// Encodes the records as one batch, in their order. The broker fills in the offsets.
pub fn encode<'a>(records: impl Iterator<Item = &'a Record> + Clone, producer: ProducerState) -> Bytes {
    let times = records.clone().map(|record| record.timestamp_ms);
    let (base_time, max_time) = (times.clone().next().unwrap_or(0), times.max().unwrap_or(0));
    let size: usize = records.clone().map(|record| record.size_bytes() + RECORD_FRAMING_BYTES_MAX).sum();
    let mut body = Vec::with_capacity(size);
    let mut count = 0;
    let mut head = Vec::with_capacity(RECORD_FRAMING_BYTES_MAX);
    for record in records {
        head.clear();
        head.push(0);
        varint::put_signed(record.timestamp_ms.wrapping_sub(base_time), &mut head);
        varint::put_signed(count, &mut head);
        let parts = [record.key(), record.value()];
        let headers = match record.headers_encoded() {
            [] => &[0],
            headers => headers,
        };
        let bytes: usize = parts.iter().map(|part| length_bytes(*part) + part.map_or(0, <[u8]>::len)).sum();
        varint::put_signed((head.len() + bytes + headers.len()) as i64, &mut body);
        body.extend_from_slice(&head);
        for part in parts {
            varint::put_signed(part.map_or(-1, |part| part.len() as i64), &mut body);
            body.extend_from_slice(part.unwrap_or_default());
        }
        body.extend_from_slice(headers);
        count += 1;
    }
    let mut batch = BytesMut::with_capacity(HEADER_BYTES + body.len());
    batch.put_i64(0);
    batch.put_i32((HEADER_BYTES - LENGTH_END + body.len()) as i32);
    batch.put_i32(-1);
    batch.put_u8(MAGIC);
    batch.put_u32(0);
    batch.put_i16(0);
    batch.put_i32(count as i32 - 1);
    batch.put_i64(base_time);
    batch.put_i64(max_time);
    batch.put_i64(producer.id);
    batch.put_i16(producer.epoch);
    batch.put_i32(producer.sequence);
    batch.put_i32(count as i32);
    batch.extend_from_slice(&body);
    let crc = crc32c::crc32c(&batch[CRC_END..]);
    batch[CRC_END - 4..CRC_END].copy_from_slice(&crc.to_be_bytes());
    batch.freeze()
}

/// How many bytes the length of a key or value takes as a signed varint. A missing one has the length -1.
fn length_bytes(part: Option<&[u8]>) -> usize {
    let zigzag = part.map_or(1, |part| (part.len() as u64) << 1);
    (64 - zigzag.max(1).leading_zeros() as usize).div_ceil(7)
}

/// The events in fetched data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedRecords {
    /// The events from the requested offset on, in order.
    pub events: Vec<Event>,
    /// The offset after the last batch that was complete.
    pub next: i64,
}

/// A batch that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBatch {
    /// The batch's last offset, or its first one if the last one cannot be read.
    pub last_offset: i64,
    pub detail: String,
}

/// An aborted transaction: its producer, and the offset of its first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
}

/// Decodes the batches in fetched data, from the offset `from` on.
///
/// Damage is reported only if it comes first. If good batches are before it, they are returned, and the next fetch starts
/// with the damage. So no event before the damage is lost.
pub fn decode(data: &Bytes, from: i64, aborted: &[AbortedTransaction]) -> Result<DecodedRecords, DamagedBatch> {
    let mut aborting: Vec<AbortedTransaction> = aborted.to_vec();
    aborting.sort_by_key(|transaction| transaction.first_offset);
    let mut aborting = aborting.into_iter().peekable();
    // Producers that are within an aborted transaction. Their transactional records are left out until the marker.
    let mut open = BTreeSet::new();
    let mut decoded = DecodedRecords { events: Vec::new(), next: from };
    let mut rest: &[u8] = data;
    while let Some(batch) = RecordBatch::take_first(&mut rest) {
        let result = batch.and_then(|batch| {
            if batch.last < from {
                return Ok(batch.last);
            }
            while let Some(transaction) = aborting.next_if(|aborted| aborted.first_offset <= batch.last) {
                open.insert(transaction.producer_id);
            }
            if batch.attributes & CONTROL != 0 {
                if batch.is_abort_marker()? {
                    open.remove(&batch.producer_id);
                }
            } else if batch.attributes & TRANSACTIONAL == 0 || !open.contains(&batch.producer_id) {
                batch.read(from, &mut decoded.events)?;
            }
            Ok(batch.last)
        });
        match result {
            Ok(last) => decoded.next = decoded.next.max(last + 1),
            Err(damaged) if decoded.next == from => {
                return Err(DamagedBatch { last_offset: damaged.last_offset.max(from), ..damaged });
            }
            // Some records of the damaged batch may have been decoded already. The next fetch starts with this batch.
            Err(_) => {
                decoded.events.retain(|event| event.offset < decoded.next);
                break;
            }
        }
    }
    Ok(decoded)
}

/// One batch whose CRC is correct.
struct RecordBatch<'a> {
    base: i64,
    last: i64,
    attributes: i16,
    base_time: i64,
    max_time: i64,
    producer_id: i64,
    count: i32,
    records: &'a [u8],
}

impl<'a> RecordBatch<'a> {
    /// Takes the first batch off the data. `None`: the data is empty, or ends within the batch.
    fn take_first(rest: &mut &'a [u8]) -> Option<Result<Self, DamagedBatch>> {
        let base = i64::from_be_bytes(*rest.first_chunk::<8>()?);
        let length = i32::from_be_bytes(*rest.get(8..)?.first_chunk::<4>()?);
        let magic = *rest.get(16)?;
        let end = usize::try_from(length).ok()?.checked_add(LENGTH_END)?;
        let (batch, after) = rest.split_at_checked(end)?;
        *rest = after;
        let damaged = |last_offset, detail: String| Some(Err(DamagedBatch { last_offset, detail }));
        if magic != MAGIC {
            return damaged(
                base,
                format!("it is in the record format {magic}, and eventd reads format 2 (Kafka 0.11)"),
            );
        }
        if batch.len() < HEADER_BYTES {
            return damaged(base, "its batch is shorter than the header of one".into());
        }
        let i16_at = |at: usize| i16::from_be_bytes([batch[at], batch[at + 1]]);
        let i32_at = |at: usize| i32::from_be_bytes(*batch[at..].first_chunk().expect("within the header"));
        let i64_at = |at: usize| i64::from_be_bytes(*batch[at..].first_chunk().expect("within the header"));
        let last = base.saturating_add(i64::from(i32_at(23)).max(0)).min(i64::MAX - 1);
        if crc32c::crc32c(&batch[CRC_END..]) != i32_at(17) as u32 {
            return damaged(last, format!("the checksum of its batch, {base} to {last}, is wrong"));
        }
        Some(Ok(Self {
            base,
            last,
            attributes: i16_at(21),
            base_time: i64_at(27),
            max_time: i64_at(35),
            producer_id: i64_at(43),
            count: i32_at(57),
            records: &batch[HEADER_BYTES..],
        }))
    }

    fn damaged(&self, detail: impl Into<String>) -> DamagedBatch {
        let detail = detail.into();
        DamagedBatch { last_offset: self.last, detail: format!("its batch, {} to {}: {detail}", self.base, self.last) }
    }

    /// Whether this control batch is the marker of an aborted transaction. The key of its record has a version (2 bytes)
    /// and a type (2 bytes): 0 for abort, 1 for commit.
    fn is_abort_marker(&self) -> Result<bool, DamagedBatch> {
        let mut rest = self.records;
        let record = varint::take_bytes(&mut rest).flatten();
        let key = record.and_then(|mut record| {
            let (_attributes, after) = record.split_first()?;
            record = after;
            varint::take_signed(&mut record)?;
            varint::take_signed(&mut record)?;
            varint::take_bytes(&mut record)?
        });
        match key {
            Some([_, _, 0, kind, ..]) => Ok(*kind == 0),
            _ => Err(self.damaged("its transaction marker cannot be read")),
        }
    }

    fn read(&self, from: i64, events: &mut Vec<Event>) -> Result<(), DamagedBatch> {
        let codec = (self.attributes & COMPRESSION) as u8;
        let decompressed;
        let mut rest = match codec {
            0 => self.records,
            _ => {
                decompressed = compression::decompress(codec, self.records, DECOMPRESSED_BYTES_MAX)
                    .map_err(|error| self.damaged(error))?;
                &decompressed
            }
        };
        for _ in 0..self.count {
            let event = self.next_record(&mut rest).ok_or_else(|| self.damaged("one of its records cannot be read"))?;
            if !(self.base..=self.last).contains(&event.0) {
                return Err(self.damaged(format!("one of its records has the offset {}", event.0)));
            }
            if event.0 >= from {
                events.push(Event { offset: event.0, record: event.1() });
            }
        }
        Ok(())
    }

    /// The offset of the next record, and a function that builds the record. Building copies the bytes, so it is done
    /// only for records that are wanted.
    fn next_record<'b>(&self, rest: &mut &'b [u8]) -> Option<(i64, impl FnOnce() -> Record + use<'b>)> {
        let mut record = varint::take_bytes(rest)??;
        let (_attributes, after) = record.split_first()?;
        record = after;
        let time = self.base_time.wrapping_add(varint::take_signed(&mut record)?);
        let time = if self.attributes & LOG_APPEND_TIME != 0 { self.max_time } else { time };
        let offset = self.base.checked_add(varint::take_signed(&mut record)?)?;
        let key = varint::take_bytes(&mut record)?;
        let value = varint::take_bytes(&mut record)?;
        Some((offset, move || Record::from_parts(key, value, record, time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NO_PRODUCER: ProducerState = ProducerState { id: -1, epoch: -1, sequence: -1 };

    fn record(text: &str, time: i64) -> Record {
        Record::new(Some(text.as_bytes()), Some(text.as_bytes()), &[("name", Some(b"value")), ("none", None)], time)
    }

    /// The batch as a broker stores it, with its offset. (The CRC does not cover the offset.)
    fn at(offset: i64, batch: &Bytes) -> Vec<u8> {
        let mut stored = batch.to_vec();
        stored[..8].copy_from_slice(&offset.to_be_bytes());
        stored
    }

    fn with_attributes(batch: &[u8], attributes: i16, producer_id: i64) -> Vec<u8> {
        let mut changed = batch.to_vec();
        changed[21..23].copy_from_slice(&attributes.to_be_bytes());
        changed[43..51].copy_from_slice(&producer_id.to_be_bytes());
        let crc = crc32c::crc32c(&changed[CRC_END..]);
        changed[17..21].copy_from_slice(&crc.to_be_bytes());
        changed
    }

    fn marker(offset: i64, commit: bool, producer_id: i64) -> Vec<u8> {
        let key = [0, 0, 0, u8::from(commit)];
        let control = Record::from_parts(Some(&key), Some(&[0; 6]), &[], 0);
        with_attributes(&at(offset, &encode([&control].into_iter(), NO_PRODUCER)), CONTROL | TRANSACTIONAL, producer_id)
    }

    fn offsets(decoded: &DecodedRecords) -> Vec<i64> {
        decoded.events.iter().map(|event| event.offset).collect()
    }

    proptest! {
        #[test]
        fn decoding_returns_the_encoded_records(
            parts in proptest::collection::vec((
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
                proptest::collection::vec(("[a-z]{0,9}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..70))), 0..4),
                0i64..4_000_000_000_000,
            ), 1..40),
            base in 0i64..1 << 40,
        ) {
            let records: Vec<Record> = parts.iter().map(|(key, value, headers, time)| {
                let headers: Vec<(&str, Option<&[u8]>)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
                Record::new(key.as_deref(), value.as_deref(), &headers, *time)
            }).collect();
            let batch = encode(records.iter(), ProducerState { id: 7, epoch: 1, sequence: 5 });
            let framing = records.len() * RECORD_FRAMING_BYTES_MAX + HEADER_BYTES;
            prop_assert!(batch.len() <= records.iter().map(Record::size_bytes).sum::<usize>() + framing);
            let decoded = decode(&at(base, &batch).into(), base, &[]).unwrap();
            prop_assert_eq!(decoded.next, base + records.len() as i64);
            prop_assert_eq!(offsets(&decoded), (base..decoded.next).collect::<Vec<_>>());
            let found: Vec<Record> = decoded.events.into_iter().map(|event| event.record).collect();
            prop_assert_eq!(found, records);
        }

        #[test]
        fn a_changed_bit_is_reported_as_damage(at_byte in CRC_END - 4..200usize, bit in 0u8..8) {
            let records = [record("one", 1), record("two", 2), record("three", 3)];
            let mut bytes = at(5, &encode(records.iter(), NO_PRODUCER));
            let place = at_byte % bytes.len();
            prop_assume!(place >= CRC_END - 4);
            bytes[place] ^= 1 << bit;
            prop_assert!(decode(&bytes.into(), 5, &[]).is_err());
        }

        #[test]
        fn invalid_data_never_panics(junk in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..400) {
            let _ = decode(&junk.clone().into(), 0, &[]);
            let mut bytes = at(0, &encode([record("one", 1), record("two", 2)].iter(), NO_PRODUCER));
            bytes.truncate(cut);
            bytes.extend(junk);
            let _ = decode(&bytes.into(), 0, &[]);
        }
    }

    #[test]
    fn data_that_ends_within_a_batch_is_decoded_up_to_that_batch() {
        let batch = encode([record("a", 1), record("b", 2)].iter(), NO_PRODUCER);
        let mut data = at(10, &batch);
        data.extend(&at(12, &batch)[..batch.len() - 1]);
        let decoded = decode(&data.into(), 11, &[]).unwrap();
        assert_eq!((offsets(&decoded), decoded.next), (vec![11], 12));
    }

    #[test]
    fn markers_and_records_of_aborted_transactions_are_left_out() {
        let of = |offset, producer| {
            with_attributes(&at(offset, &encode([record("x", 1)].iter(), NO_PRODUCER)), TRANSACTIONAL, producer)
        };
        let plain = |offset| at(offset, &encode([record("p", 1)].iter(), NO_PRODUCER));
        // Producer 1 aborts a transaction and then commits one. Producer 2 commits one meanwhile. The plain record stays.
        let data = [
            of(0, 1),
            of(1, 2),
            plain(2),
            of(3, 1),
            marker(4, false, 1),
            of(5, 1),
            of(6, 2),
            marker(7, true, 2),
            marker(8, true, 1),
        ]
        .concat();
        let aborted = [AbortedTransaction { producer_id: 1, first_offset: 0 }];
        let decoded = decode(&data.clone().into(), 0, &aborted).unwrap();
        assert_eq!((offsets(&decoded), decoded.next), (vec![1, 2, 5, 6], 9));
        let later = decode(&data.into(), 3, &aborted).unwrap();
        assert_eq!((offsets(&later), later.next), (vec![5, 6], 9));
    }

    #[test]
    fn damage_is_reported_only_if_it_comes_first_and_names_its_last_offset() {
        let good = at(0, &encode([record("a", 1), record("b", 2)].iter(), NO_PRODUCER));
        let mut bad = at(2, &encode([record("c", 1), record("d", 2), record("e", 3)].iter(), NO_PRODUCER));
        let end = bad.len() - 1;
        bad[end] ^= 1;
        let data: Bytes = [good, bad].concat().into();
        let decoded = decode(&data, 0, &[]).unwrap();
        assert_eq!((offsets(&decoded), decoded.next), (vec![0, 1], 2));
        let only_bad = data.slice(first_batch_bytes(&data)..);
        let damaged = decode(&only_bad, 3, &[]).unwrap_err();
        assert_eq!(damaged.last_offset, 4, "{}", damaged.detail);
    }

    /// The length of the first batch in the data.
    fn first_batch_bytes(data: &Bytes) -> usize {
        i32::from_be_bytes(data[8..12].try_into().unwrap()) as usize + LENGTH_END
    }

    #[test]
    fn with_log_append_time_an_event_has_the_time_of_the_broker() {
        let batch = at(0, &encode([record("a", 1_000), record("b", 2_000)].iter(), NO_PRODUCER));
        let decoded = decode(&with_attributes(&batch, LOG_APPEND_TIME, -1).into(), 0, &[]).unwrap();
        assert!(decoded.events.iter().all(|event| event.record.timestamp_ms == 2_000));
    }
}
