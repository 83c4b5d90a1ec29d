//! Wakes the readers of this process when a partition grows.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// The next offset of a partition. `None`: it has not grown since a reader first waited for it, so its end is unknown.
type KnownEnd = Option<i64>;

/// The next offset of each partition, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Hub {
    /// Holds only partitions that a reader has waited for.
    next_offsets: Mutex<HashMap<(i64, u32), watch::Sender<KnownEnd>>>,
}

impl Hub {
    /// Subscribes to the growth of a partition. Subscribe first and read then. Otherwise the reader misses what is
    /// appended in between.
    pub(super) fn subscribe(&self, topic: i64, partition: u32) -> watch::Receiver<KnownEnd> {
        let mut next_offsets = self.next_offsets.lock().unwrap_or_else(PoisonError::into_inner);
        next_offsets.entry((topic, partition)).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Wakes the readers of a partition, if `next` is higher than the next offset that they know.
    pub(super) fn advance(&self, topic: i64, partition: u32, next: i64) {
        let next_offsets = self.next_offsets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = next_offsets.get(&(topic, partition)) {
            sender.send_if_modified(|known| {
                let has_grown = Some(next) > *known;
                *known = (*known).max(Some(next));
                has_grown
            });
        }
    }
}
