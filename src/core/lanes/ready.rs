//! The ready lanes, in the order in which they became ready.
//!
//! ```text
//!  became ready ──▶ unsorted ──▶ sort ──┬──▶ Served
//!                                       ├──▶ Newcomer
//!                                       └──▶ Doubtful
//! ```
//!
//! A destination that takes one lane at a time has a limit on attempts for each [`Standing`]. Its lanes are sorted into
//! one queue for each of them, so that lanes which have to wait for a slot do not block the others. A destination that
//! takes many lanes at once needs no order but that of arrival, so its lanes stay unsorted.
//!
//! Parking removes lanes from the middle of a queue, up to thousands of them one after the other. So a queue is sorted by
//! the numbers of its lanes, and each step takes O(log n).

use crate::core::slots::Standing;
use std::collections::BTreeMap;

/// The indexes of ready lanes by their [numbers](super::Lane::ready_number). A lower number became ready earlier.
pub(super) type ReadyQueue = BTreeMap<u64, u32>;

/// All ready lanes, each once.
#[derive(Debug, Default)]
pub(super) struct ReadyLanes {
    unsorted: ReadyQueue,
    /// One queue for each [`Standing`], in their order.
    sorted: [ReadyQueue; Standing::ALL.len()],
}

impl ReadyLanes {
    pub(super) fn is_empty(&self) -> bool {
        self.unsorted.is_empty() && self.sorted.iter().all(ReadyQueue::is_empty)
    }

    /// Whether a lane is not sorted yet.
    pub(super) fn has_unsorted(&self) -> bool {
        !self.unsorted.is_empty()
    }

    /// The lanes of this standing, the one that has been ready longest first.
    pub(super) fn each_of(&self, standing: Standing) -> impl DoubleEndedIterator<Item = u32> {
        self.sorted[standing as usize].values().copied()
    }

    /// The number of the lane of this standing that has been ready longest.
    pub(super) fn first_number_of(&self, standing: Standing) -> Option<u64> {
        self.sorted[standing as usize].first_key_value().map(|(number, _)| *number)
    }

    /// Adds a lane that has no standing yet.
    pub(super) fn add(&mut self, number: u64, index: u32) {
        self.unsorted.insert(number, index);
    }

    /// Adds lanes that have no standing yet.
    pub(super) fn add_all(&mut self, mut lanes: ReadyQueue) {
        self.unsorted.append(&mut lanes);
    }

    /// Removes a lane, if it is here.
    pub(super) fn remove(&mut self, number: u64) {
        for queue in self.sorted.iter_mut().chain([&mut self.unsorted]) {
            queue.remove(&number);
        }
    }

    /// Sorts the lane that has been unsorted longest. `None`: all lanes are sorted.
    pub(super) fn sort_one(&mut self, standing: impl FnOnce(u32) -> Standing) -> Option<()> {
        let (number, index) = self.unsorted.pop_first()?;
        self.sorted[standing(index) as usize].insert(number, index);
        Some(())
    }

    /// Takes the lane of this standing that has been ready longest.
    pub(super) fn pop_of(&mut self, standing: Standing) -> Option<u32> {
        self.sorted[standing as usize].pop_first().map(|(_, index)| index)
    }

    /// Takes any lane: sorted ones first, since they became ready earlier.
    pub(super) fn pop(&mut self) -> Option<u32> {
        let sorted = self.sorted.iter_mut().find_map(ReadyQueue::pop_first);
        sorted.or_else(|| self.unsorted.pop_first()).map(|(_, index)| index)
    }

    /// Takes all lanes.
    pub(super) fn take_all(&mut self) -> ReadyQueue {
        let mut all = std::mem::take(&mut self.unsorted);
        self.sorted.iter_mut().for_each(|queue| all.append(queue));
        all
    }
}
