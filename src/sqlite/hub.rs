//! Tells the readers of this process that a partition grew.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Where the partitions of the database end, as far as this process knows.
#[derive(Debug, Default)]
pub(super) struct Hub {
    /// One entry a partition that anybody ever waited for.
    ends: Mutex<HashMap<(i64, u32), watch::Sender<i64>>>,
}

impl Hub {
    /// Sees every growth from now on. Subscribe first, then read: what is appended in between is then not missed.
    pub(super) fn subscribe(&self, topic: i64, partition: u32) -> watch::Receiver<i64> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.entry((topic, partition)).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    /// Tells that a commit made this the next offset.
    pub(super) fn advance(&self, topic: i64, partition: u32, next: i64) {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = ends.get(&(topic, partition)) {
            end.send_if_modified(|known| {
                let grew = next > *known;
                *known = next.max(*known);
                grew
            });
        }
    }
}
