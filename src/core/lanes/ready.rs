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

use crate::core::slots::Standing;
use std::collections::VecDeque;

/// The indexes of all ready lanes, each once.
#[derive(Debug, Default)]
pub(super) struct ReadyLanes {
    unsorted: VecDeque<u32>,
    /// One queue for each [`Standing`], in their order.
    sorted: [VecDeque<u32>; Standing::ALL.len()],
}

impl ReadyLanes {
    pub(super) fn is_empty(&self) -> bool {
        self.unsorted.is_empty() && self.sorted.iter().all(VecDeque::is_empty)
    }

    /// Whether a lane is not sorted yet.
    pub(super) fn has_unsorted(&self) -> bool {
        !self.unsorted.is_empty()
    }

    /// The lanes of this standing, the one that has been ready longest first.
    pub(super) fn each_of(&self, standing: Standing) -> impl DoubleEndedIterator<Item = u32> {
        self.sorted[standing as usize].iter().copied()
    }

    /// The lane of this standing that has been ready longest.
    pub(super) fn first_of(&self, standing: Standing) -> Option<u32> {
        self.sorted[standing as usize].front().copied()
    }

    pub(super) fn push_back(&mut self, index: u32) {
        self.unsorted.push_back(index);
    }

    /// Takes the lane that was pushed last.
    pub(super) fn pop_back(&mut self) -> Option<u32> {
        self.unsorted.pop_back()
    }

    /// Removes a lane, in time that grows with the number of ready lanes.
    pub(super) fn remove(&mut self, index: u32) {
        for queue in self.sorted.iter_mut().chain([&mut self.unsorted]) {
            queue.retain(|ready| *ready != index);
        }
    }

    /// Adds a lane that became ready before all that are here.
    pub(super) fn push_front(&mut self, index: u32) {
        self.unsorted.push_front(index);
    }

    /// Sorts the lane that has been unsorted longest. `None`: all lanes are sorted.
    pub(super) fn sort_one(&mut self, standing: impl FnOnce(u32) -> Standing) -> Option<()> {
        let index = self.unsorted.pop_front()?;
        self.sorted[standing(index) as usize].push_back(index);
        Some(())
    }

    /// Takes the lane of this standing that has been ready longest.
    pub(super) fn pop_of(&mut self, standing: Standing) -> Option<u32> {
        self.sorted[standing as usize].pop_front()
    }

    /// Takes any lane: sorted ones first, since they became ready earlier.
    pub(super) fn pop(&mut self) -> Option<u32> {
        self.sorted.iter_mut().find_map(VecDeque::pop_front).or_else(|| self.unsorted.pop_front())
    }
}
