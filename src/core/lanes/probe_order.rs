//! The ready lanes in the order in which an open breaker probes their users.
//!
//! ```text
//!  ready ── an open breaker ──▶ Served       ──┐
//!    ▲                          Interrupted  ──┤
//!    │                          Newcomer     ──┼──▶ the next probe: from the first queue that has a lane and may be probed
//!    │                          Failed       ──┘
//!    └── the breaker is closed: all of them, in the order in which they became ready
//! ```
//!
//! Each ready lane is ranked once. So a user that is served is found at once, also behind 10,000 users that are not. Probes
//! of newcomers are paced, and take the oldest and the newest in turns. So a newcomer that would be served is found soon,
//! also if it came after 10,000 others.

use super::ready::ReadyQueue;
use crate::core::breaker::{ProbeRank, ProbeRanks};

/// One queue of ready lanes for each [`ProbeRank`], in their order. Empty while the breaker is closed.
#[derive(Debug, Default)]
pub(super) struct ProbeOrder {
    queues: [ReadyQueue; ProbeRank::ALL.len()],
    /// Whether the next newcomer is the one that came last.
    is_newest_next: bool,
}

impl ProbeOrder {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.iter().all(ReadyQueue::is_empty)
    }

    pub(super) fn add(&mut self, rank: ProbeRank, number: u64, index: u32) {
        self.queues[rank as usize].insert(number, index);
    }

    /// The lanes of this rank, the one that became ready first comes first.
    pub(super) fn each_of(&self, rank: ProbeRank) -> impl DoubleEndedIterator<Item = u32> {
        self.queues[rank as usize].values().copied()
    }

    /// Takes the lane that is next among those of these ranks, with its rank.
    pub(super) fn pop(&mut self, ranks: ProbeRanks) -> Option<(ProbeRank, u32)> {
        let may_be_next = |rank: &ProbeRank| ranks.contains(*rank) && !self.queues[*rank as usize].is_empty();
        let rank = ProbeRank::ALL.into_iter().find(may_be_next)?;
        let queue = &mut self.queues[rank as usize];
        if rank == ProbeRank::Newcomer {
            self.is_newest_next = !self.is_newest_next;
            if !self.is_newest_next {
                return queue.pop_last().map(|(_, index)| (rank, index));
            }
        }
        queue.pop_first().map(|(_, index)| (rank, index))
    }

    /// Removes a lane, if it is here.
    pub(super) fn remove(&mut self, number: u64) {
        self.queues.iter_mut().for_each(|queue| _ = queue.remove(&number));
    }

    /// Takes all lanes.
    pub(super) fn take_all(&mut self) -> ReadyQueue {
        let mut all = ReadyQueue::new();
        self.queues.iter_mut().for_each(|queue| all.append(queue));
        all
    }
}
