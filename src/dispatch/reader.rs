//! From the log into the lanes, as far as the window has room.
//!
//! ```text
//!  log ── fetch ──▶ pending ── the window has room ──▶ lanes
//!                      │
//!                      └── an offset without an event, or settled already ──▶ committer
//! ```
//!
//! A [`Cursor`] is one place in the log with its fetch. The reader has one that goes forward through the log; the window
//! is apart from it, because all events in memory share it wherever they were read.

use super::OnGap;
use super::committer::Committer;
use super::partition_log::PartitionLog;
use crate::core::Moment;
use crate::core::event::Event;
use crate::core::lanes::Lanes;
use crate::core::window::Window;
use crate::destination::spec::flag_of;
use crate::limits::{FETCH_BYTES_MAX, LOG_REPEAT_INTERVAL};
use crate::log::{FetchError, Fetched};
use anyhow::ensure;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Why a partition cannot be read. Everything before that offset was delivered and committed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct UnreadableLog {
    why: String,
    /// The topic was deleted and created again. Only a new start opens the new topic.
    pub(super) is_recreated: bool,
}

/// A fetch to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FetchRequest {
    pub(super) from: i64,
    pub(super) max_bytes: usize,
}

/// Reads one partition for its lanes.
pub(super) struct PartitionReader {
    cursor: Cursor,
    /// Events that were admitted and are not settled.
    pub(super) window: Window,
    /// Events below this offset may be settled already: the state at which this worker began has them in its settled
    /// map. Events from here on need no look at the map.
    settled_until: i64,
    log_end: LogEnd,
    /// Reading has ended for good. Events that were read before are still delivered and committed.
    unreadable: Option<UnreadableLog>,
    /// Notified when the log could be read.
    has_read: Arc<Notify>,
}

/// One place in the log from which events are fetched, with at most one fetch in flight or pending.
struct Cursor {
    /// The next offset to fetch.
    position: i64,
    /// Events that were fetched and are not admitted yet. There is no other fetch until all of them are.
    pending: VecDeque<Event>,
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

/// The end of the log as far as it is known. It is only shown in log lines.
struct LogEnd {
    /// `None`: it was not seen yet.
    offset: Option<i64>,
    /// When it is looked at next, unless a fetch shows it before. `None`: a look is in flight.
    look_at: Option<Moment>,
}

impl PartitionReader {
    /// Reads from a watermark on. Everything that is settled above it ends at `settled_until`.
    pub(super) fn new(watermark: i64, settled_until: i64, has_read: Arc<Notify>, now: Moment) -> Self {
        let fetch = FetchState::Idle { from: now };
        Self {
            cursor: Cursor { position: watermark, pending: VecDeque::new(), fetch, failures: 0 },
            window: Window::new(1, 1),
            settled_until,
            log_end: LogEnd { offset: None, look_at: Some(now) },
            unreadable: None,
            has_read,
        }
    }

    /// Notified when the log could be read, also after an offset reset.
    pub(super) fn has_read(&self) -> Arc<Notify> {
        Arc::clone(&self.has_read)
    }

    /// Moves pending events into the lanes while the window has room.
    pub(super) fn admit(&mut self, lanes: &mut Lanes) {
        while let Some(event) = self.cursor.pending.front() {
            let bytes = event.record.window_bytes();
            if !self.window.admits(bytes) {
                return;
            }
            self.window.add(bytes);
            if let Some(event) = self.cursor.pending.pop_front() {
                lanes.admit(event);
            }
        }
    }

    /// The fetch to start now, if one may start and the window has room. Call [`admit`](Self::admit) before.
    pub(super) fn start_fetch(&mut self, now: Moment) -> Option<FetchRequest> {
        if self.next_fetch_at()? > now {
            return None;
        }
        self.cursor.fetch = FetchState::InFlight;
        let max_bytes = self.window.room_bytes().min(FETCH_BYTES_MAX);
        Some(FetchRequest { from: self.cursor.position, max_bytes })
    }

    /// When the next fetch may start. `None`: another event has to be settled or answered first.
    pub(super) fn next_fetch_at(&self) -> Option<Moment> {
        let has_room = self.cursor.pending.is_empty() && self.window.room_bytes() > 0;
        match self.cursor.fetch {
            FetchState::Idle { from } if has_room && self.unreadable.is_none() => Some(from),
            FetchState::Idle { .. } | FetchState::InFlight => None,
        }
    }

    /// Takes what a fetch found. Offsets without an event are settled at once.
    pub(super) fn fetched(&mut self, fetched: Fetched, committer: &mut Committer, now: Moment) -> anyhow::Result<()> {
        (self.cursor.fetch, self.cursor.failures) = (FetchState::Idle { from: now }, 0);
        self.log_end_seen(Some(fetched.latest), now);
        self.has_read.notify_one();
        let mut at = self.cursor.position;
        for event in fetched.events {
            ensure!(event.offset >= at, "a fetch from offset {at} returned offset {}", event.offset);
            committer.settle(at..event.offset);
            at = event.offset + 1;
            if event.offset >= self.settled_until || !committer.is_settled(event.offset) {
                self.cursor.pending.push_back(event);
            }
        }
        committer.settle(at..fetched.next);
        self.cursor.position = fetched.next.max(at);
        Ok(())
    }

    /// The log does not answer. Fetches again after a delay, which `backoff` derives from the number of failures.
    pub(super) fn fetch_unavailable(
        &mut self,
        detail: &str,
        backoff: impl FnOnce(u32) -> Duration,
        log: &PartitionLog,
        now: Moment,
    ) {
        self.cursor.failures = self.cursor.failures.saturating_add(1);
        self.cursor.fetch = FetchState::Idle { from: now.saturating_add(backoff(self.cursor.failures)) };
        if let Some(suppressed) = log.allows("fetch") {
            tracing::warn!(
                destination = log.destination,
                partition = log.partition,
                suppressed,
                "cannot read the log, trying again: {detail}"
            );
        }
    }

    /// The log cannot be read at the position. With `--on-gap skip` it is read from the next readable offset on;
    /// otherwise reading has ended.
    pub(super) fn fetch_failed(
        &mut self,
        error: &FetchError,
        on_gap: OnGap,
        committer: &mut Committer,
        log: &PartitionLog,
        now: Moment,
    ) {
        self.cursor.fetch = FetchState::Idle { from: now };
        let position = self.cursor.position;
        match readable_from(error).filter(|next| *next != position) {
            Some(next) if on_gap == OnGap::Skip => {
                tracing::error!(
                    destination = log.destination,
                    partition = log.partition,
                    from = position,
                    to = next,
                    "skipped events that cannot be read (--on-gap skip): {error}"
                );
                committer.settle(position..next);
                self.cursor.position = next;
            }
            next => {
                let why = format!("{error}; {}", advice(error, next, log));
                let is_recreated = matches!(error, FetchError::TopicRecreated { .. });
                self.unreadable = Some(UnreadableLog { why, is_recreated });
            }
        }
    }

    /// Whether reading has ended for good and every event that was read is in the lanes.
    pub(super) fn has_ended(&self) -> bool {
        self.unreadable.is_some() && self.cursor.pending.is_empty()
    }

    /// Why reading has ended.
    pub(super) fn take_error(&mut self) -> Option<UnreadableLog> {
        self.unreadable.take()
    }

    /// Events of the log that are not admitted yet, up to its end. `None`: the end was not seen yet.
    pub(super) fn unread_events(&self) -> Option<u64> {
        let unread = u64::try_from(self.log_end.offset?.saturating_sub(self.cursor.position)).unwrap_or(0);
        Some(unread + self.cursor.pending.len() as u64)
    }

    /// Whether to look at the end of the log now: if it was not seen yet, and in an outage again and again. (Every fetch
    /// shows it, but a fetch from an idle partition waits for an event, and nothing is fetched while the window is full.)
    pub(super) fn start_log_end_look(&mut self, is_outage: bool, now: Moment) -> bool {
        let is_wanted = is_outage || self.log_end.offset.is_none();
        let is_due = is_wanted && self.log_end.look_at.is_some_and(|at| now >= at);
        if is_due {
            self.log_end.look_at = None;
        }
        is_due
    }

    /// The end of the log was looked at. `None`: it could not be seen, and is looked at again later.
    pub(super) fn log_end_seen(&mut self, offset: Option<i64>, now: Moment) {
        let look_at = Some(now.saturating_add(LOG_REPEAT_INTERVAL));
        self.log_end = LogEnd { offset: offset.or(self.log_end.offset), look_at };
    }
}

/// The first offset from which the log can be read after this error. `None`: there is none.
fn readable_from(error: &FetchError) -> Option<i64> {
    match error {
        FetchError::OutOfRange { from, earliest, .. } if from < earliest => Some(*earliest),
        FetchError::Corrupt { offset, .. } => Some(*offset + 1),
        // The log is shorter than the position, or every offset belongs to another topic now.
        FetchError::OutOfRange { .. } | FetchError::TopicRecreated { .. } | FetchError::Unavailable(_) => None,
    }
}

/// What a person has to do about a partition that cannot be read.
fn advice(error: &FetchError, readable_from: Option<i64>, log: &PartitionLog) -> String {
    match (error, readable_from) {
        (FetchError::TopicRecreated { .. }, _) => {
            "--start earliest or --start latest says where to start in the new one".to_owned()
        }
        (_, None) => "the log was cut: give the destination another --name to start again".to_owned(),
        (_, Some(next)) => format!(
            "eventd replay --dest {} --fast-forward p{}:{next} --execute (with the same --url and --topic) passes it, or \
             a restart with --on-gap skip; what cannot be read is lost",
            flag_of(&log.destination),
            log.partition
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;
    use crate::core::progress::{PartitionState, Progress};

    fn event(offset: i64) -> Event {
        Event { offset, record: Record::new(Some(b"user-1"), Some(b"payload"), &[], 0) }
    }

    fn fetched(offsets: &[i64], next: i64) -> Fetched {
        Fetched { events: offsets.iter().map(|offset| event(*offset)).collect(), next, latest: 100 }
    }

    /// A reader at the watermark of this state, with the committer of its worker.
    fn begin(state: PartitionState) -> (PartitionReader, Committer, Lanes) {
        let reader = PartitionReader::new(state.watermark, state.settled_end(), Arc::default(), Moment::ZERO);
        (reader, Committer::new(state, Duration::from_millis(200), Moment::ZERO), Lanes::new(1))
    }

    fn log() -> PartitionLog {
        PartitionLog::new("dest", "events".into(), 3)
    }

    #[test]
    fn events_are_admitted_as_far_as_the_window_has_room_and_fetched_again_once_it_has() {
        let (mut reader, mut committer, mut lanes) = begin(PartitionState::at(0));
        reader.window.resize(2, 1_000_000);
        assert_eq!(reader.unread_events(), None, "the end of the log was not seen yet");
        let request = FetchRequest { from: 0, max_bytes: 1_000_000 };
        assert_eq!(reader.start_fetch(Moment::ZERO), Some(request));
        assert_eq!(reader.start_fetch(Moment::ZERO), None, "one fetch at a time");
        reader.fetched(fetched(&[0, 1, 2], 3), &mut committer, Moment::ZERO).unwrap();
        reader.admit(&mut lanes);
        assert_eq!((lanes.events(), reader.unread_events()), (2, Some(98)));
        assert_eq!(reader.start_fetch(Moment::ZERO), None, "the window is full");
        for _ in 0..2 {
            reader.window.remove(event(0).record.window_bytes());
        }
        reader.admit(&mut lanes);
        assert_eq!(lanes.events(), 3);
        assert_eq!(reader.start_fetch(Moment::ZERO).unwrap().from, 3);
    }

    #[test]
    fn offsets_without_an_event_are_settled_and_settled_events_are_not_read_again() {
        let mut progress = Progress::new(&PartitionState::at(2));
        progress.settle(4..6);
        let state = progress.state();
        let (mut reader, mut committer, mut lanes) = begin(state);
        reader.window.resize(10, 1_000_000);
        reader.fetched(fetched(&[3, 4, 5, 7], 9), &mut committer, Moment::ZERO).unwrap();
        reader.admit(&mut lanes);
        assert_eq!(lanes.events(), 2, "3 and 7");
        let settled = vec![4..7, 8..9];
        assert_eq!(committer.state(), PartitionState { settled, ..PartitionState::at(3) });
    }

    #[test]
    fn a_log_that_does_not_answer_is_asked_again_after_a_growing_delay() {
        let (mut reader, _, _) = begin(PartitionState::at(0));
        for failures in 1..4 {
            assert!(reader.start_fetch(Duration::from_secs(100)).is_some());
            let backoff = |failures| Duration::from_secs(u64::from(failures));
            reader.fetch_unavailable("no broker", backoff, &log(), Duration::from_secs(100));
            assert_eq!(reader.next_fetch_at(), Some(Duration::from_secs(100 + failures)));
            reader.cursor.fetch = FetchState::Idle { from: Moment::ZERO };
        }
    }

    #[test]
    fn events_that_cannot_be_read_stop_the_partition_or_are_skipped_as_on_gap_says() {
        let removed = FetchError::OutOfRange { from: 0, earliest: 5, latest: 9 };
        let (mut reader, mut committer, _) = begin(PartitionState::at(0));
        reader.fetch_failed(&removed, OnGap::Skip, &mut committer, &log(), Moment::ZERO);
        assert!(!reader.has_ended());
        assert_eq!(reader.start_fetch(Moment::ZERO).unwrap().from, 5);
        assert_eq!(committer.state(), PartitionState::at(5));
        let (mut reader, mut committer, _) = begin(PartitionState::at(0));
        reader.fetch_failed(&removed, OnGap::Stop, &mut committer, &log(), Moment::ZERO);
        assert!(reader.has_ended() && reader.start_fetch(Moment::ZERO).is_none());
        let why = reader.take_error().unwrap().to_string();
        assert!(why.contains("--fast-forward p3:5 --execute"), "{why}");
    }

    #[test]
    fn a_topic_that_was_created_again_is_never_skipped() {
        let (mut reader, mut committer, _) = begin(PartitionState::at(0));
        let error = FetchError::TopicRecreated { topic: "events".into() };
        reader.fetch_failed(&error, OnGap::Skip, &mut committer, &log(), Moment::ZERO);
        assert!(reader.take_error().unwrap().is_recreated);
        assert_eq!(committer.state(), PartitionState::at(0));
    }
}
