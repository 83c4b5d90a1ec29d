//! Appends the events of a request, partition by partition, and reports the outcome of each event.
//!
//! ```text
//!  events  a0 b0 a1 c0 b1 …        partition a: [a0 a1 …] ── chunk ── chunk ──▶ log    one chunk after the other
//!          in the request's order  partition b: [b0 b1 …] ── chunk ──────────▶ log    at the same time as a
//! ```
//!
//! A partition's next chunk is appended only after the one before it is stored. If a chunk is refused or its outcome is
//! unknown, the later chunks are refused without being tried. Otherwise a later event could overtake an earlier event
//! of its user.

use crate::core::event::Record;
use crate::core::outcome::{Failure, FailureCode};
use crate::log::{AppendLimits, Log};
use std::sync::Arc;
use tokio::task::JoinSet;

/// The outcome of one event: the offset at which it is stored, or the failure of its append.
pub(super) type AppendOutcome = Result<i64, Arc<Failure>>;

/// The events of one partition: the index of each in the request, and its record.
type PartitionRecords = (u32, Vec<(usize, Record)>);

/// Appends each record to its partition. Returns one outcome for each record, in the same order.
pub(super) async fn append(log: Arc<dyn Log>, records: Vec<Record>, partitions: &[u32]) -> Vec<AppendOutcome> {
    debug_assert_eq!(records.len(), partitions.len());
    let Some(first) = partitions.first() else { return Vec::new() };
    // Most requests have one event, or the events of one user. They need no task and no sorting.
    if partitions.iter().all(|partition| partition == first) {
        return append_to_partition(&*log, *first, records).await;
    }
    let mut outcomes: Vec<AppendOutcome> = Vec::new();
    // If an append panics, its events keep this outcome: they may or may not be stored.
    let broken = Arc::new(Failure::unknown(FailureCode::AppendBroken, "the append broke off: see the log of eventd"));
    outcomes.resize_with(records.len(), || Err(broken.clone()));
    let mut appends = JoinSet::new();
    for (partition, indexed) in by_partition(records, partitions) {
        let log = log.clone();
        appends.spawn(async move {
            let (indexes, records): (Vec<usize>, Vec<Record>) = indexed.into_iter().unzip();
            let ended = append_to_partition(&*log, partition, records).await;
            indexes.into_iter().zip(ended).collect::<Vec<_>>()
        });
    }
    while let Some(joined) = appends.join_next().await {
        match joined {
            Ok(ended) => ended.into_iter().for_each(|(index, outcome)| outcomes[index] = outcome),
            Err(error) => tracing::error!(%error, "an append broke off: its events may or may not be stored"),
        }
    }
    outcomes
}

/// Groups the records by partition. The sort is stable, so each partition keeps the order of the request.
fn by_partition(records: Vec<Record>, partitions: &[u32]) -> Vec<PartitionRecords> {
    let mut indexed: Vec<(u32, usize, Record)> =
        records.into_iter().enumerate().map(|(index, record)| (partitions[index], index, record)).collect();
    indexed.sort_by_key(|(partition, _, _)| *partition);
    let mut grouped: Vec<PartitionRecords> = Vec::new();
    for (partition, index, record) in indexed {
        match grouped.last_mut() {
            Some((last, records)) if *last == partition => records.push((index, record)),
            _ => grouped.push((partition, vec![(index, record)])),
        }
    }
    grouped
}

/// Appends the records of one partition, chunk after chunk, and stops at the first chunk that is not stored.
async fn append_to_partition(log: &dyn Log, partition: u32, records: Vec<Record>) -> Vec<AppendOutcome> {
    let count = records.len();
    let mut outcomes = Vec::with_capacity(count);
    let mut rest = records;
    while !rest.is_empty() {
        let later = rest.split_off(chunk_len(&rest, log.append_limits()));
        let chunk = std::mem::replace(&mut rest, later);
        let len = chunk.len();
        match log.append(partition, chunk).await {
            Ok(first) => outcomes.extend((first..).take(len).map(Ok)),
            Err(failure) => {
                let failure = Arc::new(failure);
                outcomes.resize_with(outcomes.len() + len, || Err(failure.clone()));
                let detail = format!(
                    "an earlier event of this request in partition {partition} was not stored, so this event was not \
                     tried: send both again in this order"
                );
                let untried = Arc::new(Failure::refused(FailureCode::EarlierEventNotStored, detail));
                outcomes.resize_with(count, || Err(untried.clone()));
                break;
            }
        }
    }
    outcomes
}

/// How many records fit into one append. This is at least 1, because a record that is larger than a batch is appended
/// alone.
fn chunk_len(records: &[Record], limits: AppendLimits) -> usize {
    let mut bytes = 0;
    let fit = records.iter().take_while(|record| {
        bytes += limits.cost_bytes(record);
        bytes <= limits.batch_bytes_max
    });
    fit.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_to_the_limit_and_a_large_record_is_a_chunk_of_its_own() {
        let record = |bytes: usize| Record::from_parts(None, Some(&vec![b'x'; bytes]), &[], 0);
        let limits = AppendLimits::default();
        let half = limits.batch_bytes_max / 2 - limits.cost_bytes(&record(0));
        assert_eq!(chunk_len(&[record(half), record(half), record(1)], limits), 2);
        assert_eq!(chunk_len(&[record(half), record(half + 1)], limits), 1);
        assert_eq!(chunk_len(&[record(2 * limits.batch_bytes_max), record(1)], limits), 1);
    }

    #[test]
    fn each_partition_keeps_the_order_of_the_request() {
        let records: Vec<Record> = (0..6u8).map(|n| Record::from_parts(None, Some(&[n]), &[], 0)).collect();
        let grouped = by_partition(records, &[2, 0, 2, 1, 0, 2]);
        let indexes: Vec<(u32, Vec<usize>)> =
            grouped.iter().map(|(p, records)| (*p, records.iter().map(|(index, _)| *index).collect())).collect();
        assert_eq!(indexes, [(0, vec![1, 4]), (1, vec![3]), (2, vec![0, 2, 5])]);
    }
}
