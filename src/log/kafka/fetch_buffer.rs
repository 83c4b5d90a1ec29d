//! Events that were fetched but did not fit into what the reader asked for.
//!
//! A broker always returns whole batches, of up to 900 KiB if eventd appended them, whatever the fetch asked for. A
//! dispatch whose window has room for three events would fetch and decode such a batch again for every three events. So
//! the rest is kept for the next fetch, up to a bound.

use crate::core::event::Event;
use crate::log::Fetched;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of one topic's events in the buffer. All partitions share them: enough for a whole batch of each of 16
/// partitions, and for a part of a batch if there are more.
pub(super) const FETCH_BUFFER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many fetches the buffer keeps the rest of.
const ENTRIES_MAX: usize = 1_024;

/// How long a rest is kept for its reader. A reader whose position was reset never asks for it, and a reader that waits
/// this long for its destination may as well fetch again.
const ENTRY_AGE_MAX: Duration = Duration::from_secs(60);

/// The rests of earlier fetches. Each reader of the topic (most often one for each partition) gets a share of the bytes.
/// So no reader has to fetch a batch again for every few events because of what other readers keep.
#[derive(Debug, Default)]
pub(super) struct FetchBuffer {
    /// The oldest entry comes first.
    entries: Mutex<VecDeque<BufferedFetch>>,
}

#[derive(Debug)]
struct BufferedFetch {
    partition: u32,
    /// The offset that the next fetch of this reader asks for.
    from: i64,
    fetched: Fetched,
    /// What the events cost in memory.
    bytes: usize,
    kept_at: Instant,
}

impl BufferedFetch {
    fn new(partition: u32, from: i64, fetched: Fetched) -> Self {
        let bytes = fetched.events.iter().map(|event| event.record.window_bytes()).sum();
        Self { partition, from, fetched, bytes, kept_at: Instant::now() }
    }

    /// Drops the last events until the rest fits. They are fetched again when the reader gets there.
    fn truncate(&mut self, bytes_max: usize) {
        let events = &mut self.fetched.events;
        let keep = count_within(events, bytes_max);
        if keep < events.len() {
            self.fetched.next = events[keep].offset;
            events.truncate(keep);
            events.shrink_to_fit();
            self.bytes = events.iter().map(|event| event.record.window_bytes()).sum();
        }
    }
}

impl FetchBuffer {
    /// Takes what is kept for a fetch from exactly this offset.
    pub(super) fn take(&self, partition: u32, from: i64) -> Option<Fetched> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let place = entries.iter().position(|entry| entry.partition == partition && entry.from == from)?;
        entries.remove(place).map(|entry| entry.fetched)
    }

    /// Returns as many events as fit into `max_bytes`, at least one, and keeps the rest.
    pub(super) fn split(&self, partition: u32, mut fetched: Fetched, max_bytes: usize) -> Fetched {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.record.size_bytes();
            bytes <= max_bytes
        };
        let fit = fetched.events.iter().take_while(fits).count().max(1);
        if fit >= fetched.events.len() {
            return fetched;
        }
        let rest = Fetched { events: fetched.events.split_off(fit), ..fetched };
        // Offsets without an event, between the two halves, belong to the first half.
        fetched.next = rest.events.first().map_or(fetched.next, |event| event.offset);
        self.keep(BufferedFetch::new(partition, fetched.next, rest));
        fetched
    }

    fn keep(&self, rest: BufferedFetch) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.kept_at.elapsed() < ENTRY_AGE_MAX);
        if entries.len() >= ENTRIES_MAX {
            entries.pop_front();
        }
        entries.push_back(rest);
        let share = fair_share(entries.iter().map(|entry| entry.bytes).collect(), FETCH_BUFFER_BYTES_MAX);
        entries.iter_mut().filter(|entry| entry.bytes > share).for_each(|entry| entry.truncate(share));
        entries.retain(|entry| !entry.fetched.events.is_empty());
    }
}

/// How many of the first events cost at most this many bytes together.
fn count_within(events: &[Event], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        bytes += event.record.window_bytes();
        bytes <= bytes_max
    };
    events.iter().take_while(fits).count()
}

/// The largest size that each entry may have so that all together have at most `total`. What small entries do not need is
/// shared by the larger ones. For example, sizes 10, 500, 90 and 400 with a total of 500: the small ones need 100, and
/// each large one may have 200.
fn fair_share(mut sizes: Vec<usize>, total: usize) -> usize {
    sizes.sort_unstable();
    let mut left = total;
    for (place, size) in sizes.iter().enumerate() {
        let share = left / (sizes.len() - place);
        if *size > share {
            return share;
        }
        left -= size;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;

    fn event(offset: i64, bytes: usize) -> Event {
        Event { offset, record: Record::new(None, Some(&vec![b'x'; bytes - 1]), &[], 0) }
    }

    fn kept_bytes(buffer: &FetchBuffer) -> usize {
        buffer.entries.lock().unwrap().iter().map(|entry| entry.bytes).sum()
    }

    #[test]
    fn events_that_do_not_fit_are_returned_by_the_next_fetches() {
        let buffer = FetchBuffer::default();
        // Offsets 3, 4 and 9 have no event.
        let events = [1, 2, 5, 6, 8].map(|offset| event(offset, 100)).to_vec();
        let fetched = Fetched { events, next: 10, latest: 20 };
        let first = buffer.split(0, fetched, 250);
        assert_eq!((first.events.len(), first.next), (2, 5));
        assert!(buffer.take(1, 5).is_none() && buffer.take(0, 6).is_none(), "another partition or offset");
        let second = buffer.split(0, buffer.take(0, 5).unwrap(), 1);
        assert_eq!((second.events.len(), second.next, second.latest), (1, 6, 20));
        let third = buffer.split(0, buffer.take(0, 6).unwrap(), 1_000);
        assert_eq!((third.events.len(), third.next), (2, 10));
        assert!(buffer.entries.lock().unwrap().is_empty());
    }

    #[test]
    fn one_reader_keeps_no_more_than_the_bound() {
        let buffer = FetchBuffer::default();
        let size = FETCH_BUFFER_BYTES_MAX / 4 - 1024;
        let events = (0..7).map(|offset| event(offset, size)).collect();
        buffer.split(0, Fetched { events, next: 7, latest: 7 }, size);
        assert!(kept_bytes(&buffer) <= FETCH_BUFFER_BYTES_MAX);
        let kept = buffer.take(0, 1).unwrap();
        assert_eq!((kept.events.len(), kept.next), (4, 5), "events beyond the bound are fetched again");
    }

    #[test]
    fn readers_of_many_partitions_get_a_share_each() {
        let buffer = FetchBuffer::default();
        let (readers, size) = (100, 10 * 1024);
        // Each reader fetches a batch of 900 KiB, and its window has room for one event.
        let fetched = || Fetched { events: (0..90).map(|offset| event(offset, size)).collect(), next: 90, latest: 90 };
        for partition in 0..readers {
            buffer.split(partition, fetched(), size);
        }
        assert!(kept_bytes(&buffer) <= FETCH_BUFFER_BYTES_MAX);
        for partition in 0..readers {
            let kept = buffer.take(partition, 1).expect("every reader keeps its share");
            assert!(kept.events.len() >= 10, "partition {partition} keeps {} events", kept.events.len());
            assert_eq!(kept.next, 1 + kept.events.len() as i64);
        }
    }

    #[test]
    fn a_share_that_is_not_needed_goes_to_the_others() {
        assert_eq!(fair_share(vec![10, 500, 90, 400], 500), 200);
        assert_eq!(fair_share(vec![10, 20], 500), 500);
        assert_eq!(fair_share(vec![], 500), 500);
        assert_eq!(fair_share(vec![7, 7, 7], 10), 3);
    }
}
