//! Appends the events of a request, partition by partition, and says what became of each.
//!
//! ```text
//!  events  a0 b0 a1 c0 b1 …        partition a: [a0 a1 …] ── chunk ── chunk ──▶ log    one after the other
//!          in the request's order  partition b: [b0 b1 …] ── chunk ──────────▶ log    beside each other
//! ```
//!
//! A chunk of a partition is appended once the one before it was. When one is not stored, or not surely, those behind
//! it are refused without being tried: a later event never overtakes an earlier one of the same user.

use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::log::{AppendLimits, Log};
use std::sync::Arc;
use tokio::task::JoinSet;

/// What became of one event: the offset where it is stored, or why it is not (or not surely) stored.
pub(super) type Outcome = Result<i64, Arc<Failure>>;

/// The code of an event that was not tried, since an earlier one of its partition in the same request is not stored.
const EARLIER_FAILED: &str = "earlier-event-not-stored";

/// The events of one partition: where each stands in the request, and its record.
type Share = (u32, Vec<(usize, Record)>);

/// Appends each record to its partition and answers with one outcome for each, in the same order.
pub(super) async fn append(log: Arc<dyn Log>, records: Vec<Record>, partitions: &[u32]) -> Vec<Outcome> {
    debug_assert_eq!(records.len(), partitions.len());
    let Some(first) = partitions.first() else { return Vec::new() };
    if partitions.iter().all(|partition| partition == first) {
        return append_share(&*log, *first, records).await;
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    // Where an append does not come back (it panicked), nobody knows what became of its events.
    let lost = Arc::new(Failure::unknown("append-broken", "the append broke off: see the log of eventd"));
    outcomes.resize_with(records.len(), || Err(lost.clone()));
    let mut appends = JoinSet::new();
    for (partition, share) in shares(records, partitions) {
        let log = log.clone();
        appends.spawn(async move {
            let (places, records): (Vec<usize>, Vec<Record>) = share.into_iter().unzip();
            let ended = append_share(&*log, partition, records).await;
            places.into_iter().zip(ended).collect::<Vec<_>>()
        });
    }
    while let Some(joined) = appends.join_next().await {
        match joined {
            Ok(ended) => ended.into_iter().for_each(|(place, outcome)| outcomes[place] = outcome),
            Err(error) => tracing::error!(%error, "an append broke off"),
        }
    }
    outcomes
}

/// Groups the records by partition. The sort is stable: within a partition they keep their order.
fn shares(records: Vec<Record>, partitions: &[u32]) -> Vec<Share> {
    let mut places: Vec<(u32, usize, Record)> =
        records.into_iter().enumerate().map(|(place, record)| (partitions[place], place, record)).collect();
    places.sort_by_key(|(partition, _, _)| *partition);
    let mut shares: Vec<Share> = Vec::new();
    for (partition, place, record) in places {
        match shares.last_mut() {
            Some((last, share)) if *last == partition => share.push((place, record)),
            _ => shares.push((partition, vec![(place, record)])),
        }
    }
    shares
}

/// Appends the records of one partition, chunk after chunk, up to the first that is not surely stored.
async fn append_share(log: &dyn Log, partition: u32, records: Vec<Record>) -> Vec<Outcome> {
    let count = records.len();
    let mut outcomes = Vec::with_capacity(count);
    let mut rest = records;
    while !rest.is_empty() {
        let behind = rest.split_off(chunk_len(&rest, log.append_limits()));
        let chunk = std::mem::replace(&mut rest, behind);
        let len = chunk.len();
        match log.append(partition, chunk).await {
            Ok(first) => outcomes.extend((first..).take(len).map(Ok)),
            Err(failure) => {
                let detail = format!("an earlier event of this request in partition {partition} is not stored");
                let failure = Arc::new(failure);
                outcomes.resize_with(outcomes.len() + len, || Err(failure.clone()));
                let untried = Arc::new(Failure::refused(EARLIER_FAILED, detail));
                outcomes.resize_with(count, || Err(untried.clone()));
                break;
            }
        }
    }
    outcomes
}

/// How many records fit one append; at least one.
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
    fn chunks_keep_to_the_bound_and_a_large_record_is_one_of_its_own() {
        let of = |bytes: usize| Record::from_parts(None, Some(&vec![b'x'; bytes]), &[], 0);
        let limits = AppendLimits::default();
        let half = limits.batch_bytes_max / 2 - limits.cost_bytes(&of(0));
        assert_eq!(chunk_len(&[of(half), of(half), of(1)], limits), 2);
        assert_eq!(chunk_len(&[of(half), of(half + 1)], limits), 1);
        assert_eq!(chunk_len(&[of(2 * limits.batch_bytes_max), of(1)], limits), 1);
    }

    #[test]
    fn shares_keep_the_order_of_the_request() {
        let records: Vec<Record> = (0..6u8).map(|n| Record::from_parts(None, Some(&[n]), &[], 0)).collect();
        let shares = shares(records, &[2, 0, 2, 1, 0, 2]);
        let places: Vec<(u32, Vec<usize>)> =
            shares.iter().map(|(p, share)| (*p, share.iter().map(|(place, _)| *place).collect())).collect();
        assert_eq!(places, [(0, vec![1, 4]), (1, vec![3]), (2, vec![0, 2, 5])]);
    }
}
