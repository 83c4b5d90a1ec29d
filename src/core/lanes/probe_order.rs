//! The ready lanes in the order in which an open breaker probes their users.
//!
//! ```text
//!  ready ── an open breaker ──▶ Served     ──┐
//!    ▲                          Newcomer   ──┼──▶ the next probe: from the first queue that has a lane
//!    │                          Failed     ──┘
//!    └── the breaker is closed: all of them, in the order in which they became ready
//! ```
//!
//! Each ready lane is ranked once. So a user that is served is found at once, also behind 10,000 users that are not. Probes
//! of newcomers are paced, and take the oldest and the newest in turns. So a newcomer that would be served is found soon,
//! also if it came after 10,000 others.

use crate::core::breaker::ProbeRank;
use std::collections::VecDeque;

/// One queue of ready lanes for each [`ProbeRank`], in their order. Empty while the breaker is closed.
#[derive(Debug, Default)]
pub(super) struct ProbeOrder {
    queues: [VecDeque<u32>; 3],
    /// Whether the next newcomer is the one that came last.
    is_newest_next: bool,
}

impl ProbeOrder {
    pub(super) fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    pub(super) fn push(&mut self, rank: ProbeRank, index: u32) {
        self.queues[rank as usize].push_back(index);
    }

    /// Takes the lane that is next, if its rank is not after `worst`.
    pub(super) fn pop(&mut self, worst: ProbeRank) -> Option<u32> {
        let (rank, queue) =
            self.queues[..=worst as usize].iter_mut().enumerate().find(|(_, queue)| !queue.is_empty())?;
        if rank != ProbeRank::Newcomer as usize {
            return queue.pop_front();
        }
        self.is_newest_next = !self.is_newest_next;
        if self.is_newest_next { queue.pop_front() } else { queue.pop_back() }
    }

    /// Removes a lane, if it is here.
    pub(super) fn remove(&mut self, index: u32) {
        for queue in &mut self.queues {
            queue.retain(|ready| *ready != index);
        }
    }

    /// Takes all lanes, in any order.
    pub(super) fn take_all(&mut self) -> Vec<u32> {
        self.queues.iter_mut().flat_map(std::mem::take).collect()
    }
}
