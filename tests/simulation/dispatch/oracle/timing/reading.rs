//! The two cursors of one owner: the reader must fetch if there is room, and the sweep if a parked user wants events.

use super::LOG_BACKOFF;
use std::time::Duration;

/// Which cursor of a partition fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// It goes forward. A fetch at the end of the log waits for an event.
    Reader,
    /// It goes back for events of parked users. It never waits.
    Sweep,
}

impl Cursor {
    pub(crate) fn of_wait(wait: Duration) -> Self {
        if wait.is_zero() { Self::Sweep } else { Self::Reader }
    }
}

#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) is_in_flight: bool,
    pub(super) has_ended: bool,
    failures: u32,
    /// The next fetch must begin by then, if there is room.
    pub(super) due: Duration,
}

impl Reading {
    pub(super) fn begins(&mut self) {
        self.is_in_flight = true;
    }

    pub(super) fn ended(&mut self, now: Duration) {
        (self.is_in_flight, self.failures, self.due) = (false, 0, now);
    }

    pub(super) fn failed(&mut self, for_good: bool, now: Duration) {
        (self.is_in_flight, self.has_ended) = (false, for_good);
        self.failures += 1;
        self.due = now + LOG_BACKOFF.longest(self.failures);
    }
}
