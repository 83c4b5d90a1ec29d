//! The record batch, format version 2: as it is appended by an idempotent producer, and as it is fetched.
//!
//! ```text
//!  offset │ length │ epoch │ 2 │ crc │ attributes │ Δ last │ times │ producer id, epoch, sequence │ count │ records …
//!    8        4        4     1    4        2           4      8+8        8        2       4           4
//!                                └──── the crc covers the rest ──▶
//! ```
//!
//! A fetched stretch may begin with records below the offset that was asked for, end within a batch, and hold what is
//! no event: markers of transactions, records of aborted ones, offsets whose records were compacted away.

use super::compression;
use crate::core::event::{Event, Record};
use crate::core::varint;
use crate::limits::{BATCH_BYTES_MAX, RECORD_FRAMING_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::BTreeSet;

/// Bytes of a batch before its first record.
pub const HEADER_BYTES: usize = 61;

const MAGIC: u8 = 2;
const COMPRESSION: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// Where the length's count begins, and where the crc's.
const LENGTH_END: usize = 12;
const CRC_END: usize = 21;

/// An idempotent producer's account of one partition: by it a broker knows a batch that it has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerState {
    pub id: i64,
    pub epoch: i16,
    /// Of the batch's first record.
    pub sequence: i32,
}

/// The batch of these records, in their order.
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

/// How many bytes the signed varint of a part's length takes.
fn length_bytes(part: Option<&[u8]>) -> usize {
    let zigzag = part.map_or(1, |part| (part.len() as u64) << 1);
    (64 - zigzag.max(1).leading_zeros() as usize).div_ceil(7)
}

/// What a fetched stretch holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedRecords {
    /// From the offset that was asked for on, in order.
    pub events: Vec<Event>,
    /// Behind the last batch that was read whole.
    pub next: i64,
}

/// A batch that cannot be read, by anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedBatch {
    /// The batch's last offset, as far as it can be told.
    pub last: i64,
    pub detail: String,
}

/// A transaction that was aborted: its producer, and the offset at which it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
}

/// Reads the batches of a stretch from the offset `from` on. Damage behind something good is left for the next time.
pub fn walk(stretch: &Bytes, from: i64, aborted: &[AbortedTransaction]) -> Result<DecodedRecords, DamagedBatch> {
    let mut aborting: Vec<AbortedTransaction> = aborted.to_vec();
    aborting.sort_by_key(|transaction| transaction.first_offset);
    let mut aborting = aborting.into_iter().peekable();
    // Producers whose transaction is known to have been aborted, up to its marker.
    let mut open = BTreeSet::new();
    let mut walked = DecodedRecords { events: Vec::new(), next: from };
    let mut rest: &[u8] = stretch;
    while let Some(batch) = RecordBatch::first_of(&mut rest) {
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
                batch.read(from, &mut walked.events)?;
            }
            Ok(batch.last)
        });
        match result {
            Ok(last) => walked.next = walked.next.max(last + 1),
            Err(damaged) if walked.next == from => {
                return Err(DamagedBatch { last: damaged.last.max(from), ..damaged });
            }
            // What it gave before it was found to be damaged is not given; the next fetch begins with it.
            Err(_) => {
                walked.events.retain(|event| event.offset < walked.next);
                break;
            }
        }
    }
    Ok(walked)
}

/// One batch of a stretch, its crc checked.
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
    /// Takes the first batch off the stretch. `None`: what is left is the beginning of one, or nothing.
    fn first_of(rest: &mut &'a [u8]) -> Option<Result<Self, DamagedBatch>> {
        let base = i64::from_be_bytes(*rest.first_chunk::<8>()?);
        let length = i32::from_be_bytes(*rest.get(8..)?.first_chunk::<4>()?);
        let magic = *rest.get(16)?;
        let end = usize::try_from(length).ok()?.checked_add(LENGTH_END)?;
        let (batch, behind) = rest.split_at_checked(end)?;
        *rest = behind;
        let damaged = |last, detail: String| Some(Err(DamagedBatch { last, detail }));
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
        DamagedBatch { last: self.last, detail: format!("its batch, {} to {}: {detail}", self.base, self.last) }
    }

    /// Whether this control batch ends an aborted transaction. (Its key: a version, then 0 for abort and 1 for commit.)
    fn is_abort_marker(&self) -> Result<bool, DamagedBatch> {
        let mut rest = self.records;
        let record = varint::take_bytes(&mut rest).flatten();
        let key = record.and_then(|mut record| {
            let (_attributes, behind) = record.split_first()?;
            record = behind;
            varint::take_signed(&mut record)?;
            varint::take_signed(&mut record)?;
            varint::take_bytes(&mut record)?
        });
        match key {
            Some([_, _, 0, kind, ..]) => Ok(*kind == 0),
            _ => Err(self.damaged("a marker of a transaction that cannot be read")),
        }
    }

    fn read(&self, from: i64, events: &mut Vec<Event>) -> Result<(), DamagedBatch> {
        let codec = (self.attributes & COMPRESSION) as u8;
        let decompressed;
        let mut rest = match codec {
            0 => self.records,
            _ => {
                decompressed = compression::decompress(codec, self.records, BATCH_BYTES_MAX)
                    .map_err(|error| self.damaged(error))?;
                &decompressed
            }
        };
        for _ in 0..self.count {
            let event = self.next_record(&mut rest).ok_or_else(|| self.damaged("a record that cannot be read"))?;
            if !(self.base..=self.last).contains(&event.0) {
                return Err(self.damaged(format!("a record of the offset {}", event.0)));
            }
            if event.0 >= from {
                events.push(Event { offset: event.0, record: event.1() });
            }
        }
        Ok(())
    }

    /// The offset of the next record, and how to make it.
    fn next_record<'b>(&self, rest: &mut &'b [u8]) -> Option<(i64, impl FnOnce() -> Record + use<'b>)> {
        let mut record = varint::take_bytes(rest)??;
        let (_attributes, behind) = record.split_first()?;
        record = behind;
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

    const NOBODY: ProducerState = ProducerState { id: -1, epoch: -1, sequence: -1 };

    fn record(text: &str, time: i64) -> Record {
        Record::new(Some(text.as_bytes()), Some(text.as_bytes()), &[("name", Some(b"value")), ("none", None)], time)
    }

    /// As a broker stores it: at its offset. (The crc does not cover the offset.)
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
        with_attributes(&at(offset, &encode([&control].into_iter(), NOBODY)), CONTROL | TRANSACTIONAL, producer_id)
    }

    fn offsets(walked: &DecodedRecords) -> Vec<i64> {
        walked.events.iter().map(|event| event.offset).collect()
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_put_in(
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
            let walked = walk(&at(base, &batch).into(), base, &[]).unwrap();
            prop_assert_eq!(walked.next, base + records.len() as i64);
            prop_assert_eq!(offsets(&walked), (base..walked.next).collect::<Vec<_>>());
            let found: Vec<Record> = walked.events.into_iter().map(|event| event.record).collect();
            prop_assert_eq!(found, records);
        }

        #[test]
        fn a_changed_byte_is_damage_and_never_other_data(at_byte in CRC_END - 4..200usize, bit in 0u8..8) {
            let records = [record("one", 1), record("two", 2), record("three", 3)];
            let mut bytes = at(5, &encode(records.iter(), NOBODY));
            let place = at_byte % bytes.len();
            prop_assume!(place >= CRC_END - 4);
            bytes[place] ^= 1 << bit;
            prop_assert!(walk(&bytes.into(), 5, &[]).is_err());
        }

        #[test]
        fn what_is_no_batch_is_never_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..400) {
            let _ = walk(&junk.clone().into(), 0, &[]);
            let mut bytes = at(0, &encode([record("one", 1), record("two", 2)].iter(), NOBODY));
            bytes.truncate(cut);
            bytes.extend(junk);
            let _ = walk(&bytes.into(), 0, &[]);
        }
    }

    #[test]
    fn a_stretch_that_ends_within_a_batch_is_read_up_to_there() {
        let batch = encode([record("a", 1), record("b", 2)].iter(), NOBODY);
        let mut stretch = at(10, &batch);
        stretch.extend(&at(12, &batch)[..batch.len() - 1]);
        let walked = walk(&stretch.into(), 11, &[]).unwrap();
        assert_eq!((offsets(&walked), walked.next), (vec![11], 12));
    }

    #[test]
    fn records_of_aborted_transactions_and_markers_are_passed_over() {
        let of = |offset, producer| {
            with_attributes(&at(offset, &encode([record("x", 1)].iter(), NOBODY)), TRANSACTIONAL, producer)
        };
        let plain = |offset| at(offset, &encode([record("p", 1)].iter(), NOBODY));
        // 1 aborts and then commits; 2 commits around it; what is no transaction's stays.
        let stretch = [
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
        let walked = walk(&stretch.clone().into(), 0, &aborted).unwrap();
        assert_eq!((offsets(&walked), walked.next), (vec![1, 2, 5, 6], 9));
        let later = walk(&stretch.into(), 3, &aborted).unwrap();
        assert_eq!((offsets(&later), later.next), (vec![5, 6], 9));
    }

    #[test]
    fn damage_is_told_only_once_it_is_first_and_names_its_last_offset() {
        let good = at(0, &encode([record("a", 1), record("b", 2)].iter(), NOBODY));
        let mut bad = at(2, &encode([record("c", 1), record("d", 2), record("e", 3)].iter(), NOBODY));
        let end = bad.len() - 1;
        bad[end] ^= 1;
        let stretch: Bytes = [good, bad].concat().into();
        let walked = walk(&stretch, 0, &[]).unwrap();
        assert_eq!((offsets(&walked), walked.next), (vec![0, 1], 2));
        let only_bad = stretch.slice(walk_len(&stretch)..);
        let damaged = walk(&only_bad, 3, &[]).unwrap_err();
        assert_eq!(damaged.last, 4, "{}", damaged.detail);
    }

    /// The bytes of a stretch's first batch.
    fn walk_len(stretch: &Bytes) -> usize {
        i32::from_be_bytes(stretch[8..12].try_into().unwrap()) as usize + LENGTH_END
    }

    #[test]
    fn the_time_of_the_broker_counts_where_the_topic_says_so() {
        let batch = at(0, &encode([record("a", 1_000), record("b", 2_000)].iter(), NOBODY));
        let walked = walk(&with_attributes(&batch, LOG_APPEND_TIME, -1).into(), 0, &[]).unwrap();
        assert!(walked.events.iter().all(|event| event.record.timestamp_ms == 2_000));
    }
}
