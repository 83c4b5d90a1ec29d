//! One place in the log from which events are fetched, with at most one fetch in flight or pending.

use super::partition_log::PartitionLog;
use crate::core::Moment;
use crate::core::event::Event;
use crate::log::Fetched;
use anyhow::ensure;
use std::collections::VecDeque;
use std::time::Duration;

/// Which cursor a fetch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CursorKind {
    /// It goes forward through the log.
    Reader,
    /// It goes back for the events of parked users.
    Sweep,
}

/// A fetch to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FetchRequest {
    pub(super) cursor: CursorKind,
    pub(super) from: i64,
    pub(super) max_bytes: usize,
    /// How long the fetch waits for an event if there is none.
    pub(super) wait: Duration,
}

/// The events of a fetch that are not in the lanes yet, and when the next fetch may start.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The next offset to fetch.
    pub(super) position: i64,
    /// Events that were fetched and are not admitted yet. The next fetch starts after all of them are.
    pub(super) pending: VecDeque<Event>,
    fetch: FetchState,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FetchState {
    InFlight,
    /// The next fetch may start at this moment.
    Idle {
        from: Moment,
    },
}

impl Cursor {
    pub(super) fn new(position: i64, now: Moment) -> Self {
        Self { position, pending: VecDeque::new(), fetch: FetchState::Idle { from: now }, failures: 0 }
    }

    /// When the next fetch may start. `None`: the present one has to end first, or its events have to be admitted.
    pub(super) fn next_fetch_at(&self) -> Option<Moment> {
        match self.fetch {
            FetchState::Idle { from } if self.pending.is_empty() => Some(from),
            FetchState::Idle { .. } | FetchState::InFlight => None,
        }
    }

    pub(super) fn fetch_starts(&mut self) {
        self.fetch = FetchState::InFlight;
    }

    /// The next fetch may start at this moment.
    pub(super) fn fetch_ended(&mut self, next_at: Moment) {
        self.fetch = FetchState::Idle { from: next_at };
    }

    /// Takes what a fetch found. Offsets between two events are shown to `without_event`.
    pub(super) fn fetched(
        &mut self,
        fetched: Fetched,
        mut without_event: impl FnMut(std::ops::Range<i64>),
        now: Moment,
    ) -> anyhow::Result<()> {
        self.fetch_ended(now);
        self.failures = 0;
        let mut at = self.position;
        for event in fetched.events {
            ensure!(event.offset >= at, "a fetch from offset {at} returned offset {}", event.offset);
            without_event(at..event.offset);
            at = event.offset + 1;
            self.pending.push_back(event);
        }
        without_event(at..fetched.next);
        self.position = fetched.next.max(at);
        Ok(())
    }

    /// The log does not answer. Fetches again after a delay, which `backoff` derives from the number of failures.
    pub(super) fn unavailable(
        &mut self,
        detail: &str,
        backoff: impl FnOnce(u32) -> Duration,
        log: &PartitionLog,
        now: Moment,
    ) {
        self.failures = self.failures.saturating_add(1);
        self.fetch_ended(now.saturating_add(backoff(self.failures)));
        if let Some(suppressed) = log.allows("fetch") {
            tracing::warn!(
                destination = log.destination,
                partition = log.partition,
                suppressed,
                "cannot read the log, trying again: {detail}"
            );
        }
    }
}
