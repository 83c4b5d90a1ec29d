//! From the log into the lanes, as far as the window has room.
//!
//! ```text
//!  log ── fetch ──▶ pending of the reader ──▶ is its user parked? ─┬─ no, and the window has room ──▶ lanes
//!   │                                                              └─ yes ──▶ left in the log        ▲
//!   └──── fetch ──▶ pending of the sweep ──▶ its user wants it, and parked users have room ──────────┘
//! ```
//!
//! Two cursors read the log: the reader goes forward, and the sweep goes back for the events of parked users. Which events
//! are left, and which are read again, is decided in [`crate::core::parking`]. All events in memory share one window.
//!
//! Each cursor has at most one fetch in flight, so the sweep makes at most half of the fetches. If both have events and the
//! window has room for one, they take turns.

use super::OnGap;
use super::committer::Committer;
use super::cursor::{Cursor, CursorKind, FetchRequest};
use super::notices::shown_user;
use super::partition_log::PartitionLog;
use crate::core::Moment;
use crate::core::event::Event;
use crate::core::lanes::Lanes;
use crate::core::parking::{Blocked, MisplacedFailure, NotAdmitted, ParkedUsers, PartitionMemory};
use crate::core::progress::UserKey;
use crate::core::window::Window;
use crate::destination::spec::dest_flag;
use crate::limits::{FETCH_BYTES_MAX, LOG_REPEAT_INTERVAL};
use crate::log::{FetchError, Fetched};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long a fetch of the reader waits for a record before it returns without one.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long after a fetch of the sweep that found nothing the next one is. The log has what the reader has read before,
/// but on Kafka another broker may answer that does not know it yet.
const EMPTY_SWEEP_DELAY: Duration = Duration::from_millis(100);

/// Users that one line about lost events names.
const LOST_USERS_SHOWN_MAX: usize = 5;

/// Why a partition cannot be read. Everything before that offset was delivered and committed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct UnreadableLog {
    why: String,
    /// The topic was deleted and created again. Only a new start opens the new topic.
    pub(super) is_recreated: bool,
}

/// Reads one partition for its lanes.
pub(super) struct PartitionReader {
    reader: Cursor,
    sweep: Cursor,
    /// The sweep has the first turn if the window has room for one event only.
    sweep_is_first: bool,
    pub(super) parked: ParkedUsers,
    /// Events that were admitted and are not settled.
    pub(super) window: Window,
    log_end: LogEnd,
    /// Reading has ended for good. Events that were read before are still delivered and committed.
    unreadable: Option<UnreadableLog>,
    /// Notified when the log could be read.
    has_read: Arc<Notify>,
}

/// The end of the log as far as it is known. It is only shown in log lines.
struct LogEnd {
    /// `None`: it was not seen yet.
    offset: Option<i64>,
    /// When it is looked at next, unless a fetch shows it before. `None`: a look is in flight.
    look_at: Option<Moment>,
}

impl PartitionReader {
    /// Reads from a watermark on.
    pub(super) fn new(watermark: i64, parked: ParkedUsers, has_read: Arc<Notify>, now: Moment) -> Self {
        Self {
            reader: Cursor::new(watermark, now),
            sweep: Cursor::new(watermark, now),
            sweep_is_first: false,
            parked,
            window: Window::new(1, 1),
            log_end: LogEnd { offset: None, look_at: Some(now) },
            unreadable: None,
            has_read,
        }
    }

    /// Notified when the log could be read, also after an offset reset.
    pub(super) fn has_read(&self) -> Arc<Notify> {
        Arc::clone(&self.has_read)
    }

    /// The list of parked users, with what it works on.
    pub(super) fn parking<'a>(
        &'a mut self,
        lanes: &'a mut Lanes,
        committer: &'a mut Committer,
    ) -> (&'a mut ParkedUsers, PartitionMemory<'a>) {
        let progress = committer.progress_mut();
        (&mut self.parked, PartitionMemory { lanes, window: &mut self.window, progress })
    }

    /// Changes the limits of the window. If the new ones are lower than what is in the lanes, reading continues beside
    /// an event that alone exceeds them.
    pub(super) fn resize_window(&mut self, events_max: usize, bytes_max: usize, lanes: &Lanes) {
        self.window.resize(events_max, bytes_max);
        let events = || lanes.each_lane().flat_map(|id| lanes.each_event(id));
        self.window.look_for_extra(|| events().map(|event| event.record.window_bytes()));
    }

    /// What waits for room in the window. Call [`admit`](Self::admit) before.
    pub(super) fn blocked(&self) -> Blocked {
        let bytes = |event: &Event| event.record.window_bytes();
        let read = self.reader.pending.front().map(bytes).filter(|bytes| !self.window.admits(*bytes));
        let swept = self.sweep.pending.front().map(bytes).filter(|bytes| !self.window.admits_parked(*bytes));
        Blocked { read, swept }
    }

    /// Moves pending events into the lanes while the window has room.
    ///
    /// # Errors
    /// The stored state is damaged.
    pub(super) fn admit(
        &mut self,
        lanes: &mut Lanes,
        committer: &mut Committer,
        now: Moment,
    ) -> Result<(), MisplacedFailure> {
        let progress = committer.progress_mut();
        let mut memory = PartitionMemory { lanes, window: &mut self.window, progress };
        let before = memory.lanes.events();
        if self.sweep_is_first {
            admit_swept(&mut self.sweep, &mut self.parked, &mut memory, now);
        } else {
            admit_read(&mut self.reader, &mut self.parked, &mut memory)?;
        }
        let is_first_served = memory.lanes.events() > before;
        if self.sweep_is_first {
            admit_read(&mut self.reader, &mut self.parked, &mut memory)?;
        } else {
            admit_swept(&mut self.sweep, &mut self.parked, &mut memory, now);
        }
        self.sweep_is_first ^= is_first_served;
        Ok(())
    }

    /// An event was delivered or given up: gives its room in the window back and counts it as progress.
    pub(super) fn settled(&mut self, event: &Event, committer: &mut Committer) {
        committer.has_changed();
        self.parked.settled(event, &mut self.window, committer.progress_mut());
    }

    /// The fetch of the reader to start now, if one may start and the window has room. Call [`admit`](Self::admit) before.
    pub(super) fn start_fetch(&mut self, now: Moment) -> Option<FetchRequest> {
        if self.next_read_at()? > now {
            return None;
        }
        self.reader.fetch_starts();
        let max_bytes = self.window.room_bytes().min(FETCH_BYTES_MAX);
        let (cursor, from, wait) = (CursorKind::Reader, self.reader.position, FETCH_WAIT_MAX);
        Some(FetchRequest { cursor, from, max_bytes, wait })
    }

    /// The fetch of the sweep to start now, if a parked user wants events and there is room for them.
    pub(super) fn start_sweep(
        &mut self,
        lanes: &mut Lanes,
        committer: &mut Committer,
        now: Moment,
    ) -> Option<FetchRequest> {
        if self.next_sweep_at()? > now {
            return None;
        }
        let (parked, mut memory) = self.parking(lanes, committer);
        let request = parked.next_sweep(&mut memory, now)?;
        self.sweep.fetch_starts();
        self.sweep.position = request.from;
        let (cursor, wait) = (CursorKind::Sweep, Duration::ZERO);
        Some(FetchRequest { cursor, from: request.from, max_bytes: request.max_bytes, wait })
    }

    fn next_read_at(&self) -> Option<Moment> {
        let may_read = self.window.room_bytes() > 0 && self.unreadable.is_none();
        self.reader.next_fetch_at().filter(|_| may_read)
    }

    fn next_sweep_at(&self) -> Option<Moment> {
        let may_read = self.unreadable.is_none() && self.parked.wants_sweep(&self.window);
        self.sweep.next_fetch_at().filter(|_| may_read)
    }

    /// When something is to be read although nothing else happens before. `None`: another event has to be settled or
    /// answered first.
    pub(super) fn next_wakeup(&self, now: Moment) -> Option<Moment> {
        [self.next_read_at(), self.next_sweep_at(), self.parked.next_wakeup(now)].into_iter().flatten().min()
    }

    /// Takes what a fetch found. Offsets without an event are settled at once.
    pub(super) fn fetched(
        &mut self,
        cursor: CursorKind,
        fetched: Fetched,
        committer: &mut Committer,
        now: Moment,
    ) -> anyhow::Result<()> {
        self.log_end_seen(Some(fetched.latest), now);
        match cursor {
            CursorKind::Reader => {
                self.has_read.notify_one();
                self.reader.fetched(fetched, |offsets| committer.settle(offsets), now)
            }
            CursorKind::Sweep => {
                let is_empty = fetched.next <= self.sweep.position;
                self.sweep.fetched(fetched, |_| (), now)?;
                if is_empty {
                    self.sweep.fetch_ended(now + EMPTY_SWEEP_DELAY);
                }
                Ok(())
            }
        }
    }

    /// The log does not answer. Fetches again after a delay, which `backoff` derives from the number of failures.
    pub(super) fn fetch_unavailable(
        &mut self,
        cursor: CursorKind,
        detail: &str,
        backoff: impl FnOnce(u32) -> Duration,
        log: &PartitionLog,
        now: Moment,
    ) {
        self.cursor(cursor).unavailable(detail, backoff, log, now);
    }

    /// The log cannot be read at the position of a cursor. With `--on-gap skip` the reader continues at the next readable
    /// offset; otherwise reading has ended.
    ///
    /// The sweep passes what retention has removed in any case: it is lost, and other users must not wait for the lost
    /// events of a parked one. A damaged record may be repaired, and its user is not known. So the sweep passes it only with
    /// `--on-gap skip`, like the reader.
    pub(super) fn fetch_failed(
        &mut self,
        cursor: CursorKind,
        error: &FetchError,
        on_gap: OnGap,
        (lanes, committer): (&mut Lanes, &mut Committer),
        log: &PartitionLog,
        now: Moment,
    ) {
        self.cursor(cursor).fetch_ended(now);
        let position = self.cursor(cursor).position;
        let is_removed = matches!(error, FetchError::OutOfRange { .. });
        match readable_from(error).filter(|next| *next != position) {
            Some(next) if cursor == CursorKind::Sweep && (is_removed || on_gap == OnGap::Skip) => {
                self.sweep.position = next;
                let (parked, mut memory) = self.parking(lanes, committer);
                if is_removed {
                    show_lost(&parked.lost(next, &mut memory, now), next, log);
                } else if let Some(suppressed) = log.allows("damaged record") {
                    tracing::error!(
                        destination = log.destination,
                        partition = log.partition,
                        from = position,
                        to = next,
                        suppressed,
                        "skipped a record that cannot be read again for parked users (--on-gap skip): {error}"
                    );
                }
                parked.swept(next, &mut memory, now);
            }
            Some(next) if on_gap == OnGap::Skip => {
                tracing::error!(
                    destination = log.destination,
                    partition = log.partition,
                    from = position,
                    to = next,
                    "skipped events that cannot be read (--on-gap skip): {error}"
                );
                self.reader.position = next;
                committer.settle(position..next);
            }
            next => {
                let why = format!("{error}; {}", advice(error, next, log));
                if lanes.events() > 0 {
                    tracing::warn!(
                        destination = log.destination,
                        partition = log.partition,
                        from = position,
                        "reading of this partition ends, what was read before is still attempted: {why}"
                    );
                }
                let is_recreated = matches!(error, FetchError::TopicRecreated { .. });
                self.unreadable = Some(UnreadableLog { why, is_recreated });
            }
        }
    }

    fn cursor(&mut self, cursor: CursorKind) -> &mut Cursor {
        match cursor {
            CursorKind::Reader => &mut self.reader,
            CursorKind::Sweep => &mut self.sweep,
        }
    }

    /// Whether reading has ended for good and every event that was read is in the lanes.
    pub(super) fn has_ended(&self) -> bool {
        self.unreadable.is_some() && self.reader.pending.is_empty()
    }

    /// Why reading has ended.
    pub(super) fn take_error(&mut self) -> Option<UnreadableLog> {
        self.unreadable.take()
    }

    /// Events of the log that are not admitted yet, up to its end. `None`: the end was not seen yet.
    pub(super) fn unread_events(&self) -> Option<u64> {
        let unread = u64::try_from(self.log_end.offset?.saturating_sub(self.reader.position)).unwrap_or(0);
        Some(unread + self.reader.pending.len() as u64)
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

fn admit_read(
    reader: &mut Cursor,
    parked: &mut ParkedUsers,
    memory: &mut PartitionMemory<'_>,
) -> Result<(), MisplacedFailure> {
    while let Some(event) = reader.pending.pop_front() {
        match parked.read(event, memory) {
            Ok(()) => {}
            Err(NotAdmitted::NoRoom(event)) => {
                reader.pending.push_front(event);
                return Ok(());
            }
            Err(NotAdmitted::Misplaced(error)) => return Err(error),
        }
    }
    parked.passed(reader.position);
    Ok(())
}

fn admit_swept(sweep: &mut Cursor, parked: &mut ParkedUsers, memory: &mut PartitionMemory<'_>, now: Moment) {
    if sweep.pending.is_empty() {
        return;
    }
    while let Some(event) = sweep.pending.pop_front() {
        if let Err(event) = parked.sweep(event, memory, now) {
            return sweep.pending.push_front(event);
        }
    }
    parked.swept(sweep.position, memory, now);
}

/// Tells which parked users have lost events.
fn show_lost(users: &[UserKey], earliest: i64, log: &PartitionLog) {
    if users.is_empty() {
        return;
    }
    if let Some(suppressed) = log.allows("lost events of parked users") {
        let shown: Vec<String> =
            users.iter().take(LOST_USERS_SHOWN_MAX).map(|user| shown_user(user.as_deref())).collect();
        tracing::error!(
            destination = log.destination,
            partition = log.partition,
            users = users.len(),
            some = shown.join(","),
            earliest,
            suppressed,
            "retention has removed events of parked users that were not delivered: they are lost"
        );
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
            "eventd replay {} --fast-forward p{}:{next} --execute (with the same --url and --topic) passes it, or \
             a restart with --on-gap skip; what cannot be read is lost",
            dest_flag(&log.destination),
            log.partition
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;
    use crate::core::parking::ParkingLimits;
    use crate::core::progress::{ListedUsers, ParkedUser, PartitionState, Progress, UserState};

    fn event(offset: i64) -> Event {
        Event { offset, record: Record::new(Some(b"user-1"), Some(b"payload"), &[], 0) }
    }

    fn fetched(offsets: &[i64], next: i64) -> Fetched {
        Fetched { events: offsets.iter().map(|offset| event(*offset)).collect(), next, latest: 100 }
    }

    /// A reader at the watermark of this state, with the committer of its worker.
    fn begin(state: PartitionState) -> (PartitionReader, Committer, Lanes) {
        let limits = ParkingLimits { user_backlog: 100, users_max: 100, may_park: true };
        let parked = ParkedUsers::new(limits, 1, &state, |_| unreachable!("nothing has failed"), Moment::ZERO);
        let reader = PartitionReader::new(state.watermark, parked, Arc::default(), Moment::ZERO);
        (reader, Committer::new(state, Duration::from_millis(200), Moment::ZERO), Lanes::new(1, 0))
    }

    fn log() -> PartitionLog {
        PartitionLog::new("dest", "events".into(), 3)
    }

    #[test]
    fn events_are_admitted_as_far_as_the_window_has_room_and_fetched_again_once_it_has() {
        let (mut reader, mut committer, mut lanes) = begin(PartitionState::at(0));
        reader.window.resize(2, 1_000_000);
        assert_eq!(reader.unread_events(), None, "the end of the log was not seen yet");
        let (cursor, wait) = (CursorKind::Reader, FETCH_WAIT_MAX);
        let request = FetchRequest { cursor, from: 0, max_bytes: 1_000_000, wait };
        assert_eq!(reader.start_fetch(Moment::ZERO), Some(request));
        assert_eq!(reader.start_fetch(Moment::ZERO), None, "one fetch at a time");
        reader.fetched(CursorKind::Reader, fetched(&[0, 1, 2], 3), &mut committer, Moment::ZERO).unwrap();
        reader.admit(&mut lanes, &mut committer, Moment::ZERO).unwrap();
        assert_eq!((lanes.events(), reader.unread_events()), (2, Some(98)));
        assert_eq!(reader.start_fetch(Moment::ZERO), None, "the window is full");
        for _ in 0..2 {
            reader.window.remove(event(0).record.window_bytes());
        }
        reader.admit(&mut lanes, &mut committer, Moment::ZERO).unwrap();
        assert_eq!(lanes.events(), 3);
        assert_eq!(reader.start_fetch(Moment::ZERO).unwrap().from, 3);
    }

    #[test]
    fn an_event_in_flight_that_is_larger_than_a_lowered_window_does_not_stop_the_reader() {
        let (mut reader, mut committer, mut lanes) = begin(PartitionState::at(0));
        reader.resize_window(100, 5_000, &lanes);
        let large = Event { offset: 0, record: Record::new(Some(b"user-2"), Some(&[0; 3_000]), &[], 0) };
        assert!(reader.start_fetch(Moment::ZERO).is_some());
        let found = Fetched { events: vec![large], next: 1, latest: 100 };
        reader.fetched(CursorKind::Reader, found, &mut committer, Moment::ZERO).unwrap();
        reader.admit(&mut lanes, &mut committer, Moment::ZERO).unwrap();
        lanes.next(1, usize::MAX, &mut Vec::new()).unwrap();
        reader.resize_window(100, 2_000, &lanes);
        assert_eq!(reader.start_fetch(Moment::ZERO), None, "the event takes the half of the others");
        let id = lanes.find(Some(b"user-2")).unwrap();
        let (parked, mut memory) = reader.parking(&mut lanes, &mut committer);
        let now = Duration::from_secs(3);
        memory.lanes.wake(now);
        assert_eq!(memory.lanes.view(id).events_per_s, Some(0));
        assert_eq!(parked.relieve(Blocked::default(), |_| true, &mut memory, now), 1);
        assert_eq!(reader.start_fetch(Moment::ZERO).map(|fetch| fetch.from), Some(1));
        reader.fetched(CursorKind::Reader, fetched(&[1], 2), &mut committer, now).unwrap();
        reader.admit(&mut lanes, &mut committer, now).unwrap();
        assert_eq!(lanes.events(), 2);
    }

    #[test]
    fn offsets_without_an_event_are_settled_and_settled_events_are_not_read_again() {
        let mut progress = Progress::new(&PartitionState::at(2));
        progress.settle(4..6);
        let state = progress.state();
        let (mut reader, mut committer, mut lanes) = begin(state);
        reader.window.resize(10, 1_000_000);
        reader.fetched(CursorKind::Reader, fetched(&[3, 4, 5, 7], 9), &mut committer, Moment::ZERO).unwrap();
        reader.admit(&mut lanes, &mut committer, Moment::ZERO).unwrap();
        assert_eq!(lanes.events(), 2, "3 and 7");
        let settled = vec![4..7, 8..9];
        assert_eq!(committer.state(ListedUsers::new()), PartitionState { settled, ..PartitionState::at(3) });
    }

    #[test]
    fn a_log_that_does_not_answer_is_asked_again_after_a_growing_delay() {
        let (mut reader, _, _) = begin(PartitionState::at(0));
        for failures in 1..4 {
            assert!(reader.start_fetch(Duration::from_secs(100)).is_some());
            let backoff = |failures| Duration::from_secs(u64::from(failures));
            reader.fetch_unavailable(CursorKind::Reader, "no broker", backoff, &log(), Duration::from_secs(100));
            assert_eq!(reader.next_wakeup(Moment::ZERO), Some(Duration::from_secs(100 + failures)));
            reader.reader.fetch_ended(Moment::ZERO);
        }
    }

    #[test]
    fn events_that_cannot_be_read_stop_the_partition_or_are_skipped_as_on_gap_says() {
        let removed = FetchError::OutOfRange { from: 0, earliest: 5, latest: 9 };
        let (mut reader, mut committer, mut lanes) = begin(PartitionState::at(0));
        reader.fetch_failed(
            CursorKind::Reader,
            &removed,
            OnGap::Skip,
            (&mut lanes, &mut committer),
            &log(),
            Moment::ZERO,
        );
        assert!(!reader.has_ended());
        assert_eq!(reader.start_fetch(Moment::ZERO).unwrap().from, 5);
        assert_eq!(committer.state(ListedUsers::new()), PartitionState::at(5));
        let (mut reader, mut committer, mut lanes) = begin(PartitionState::at(0));
        reader.fetch_failed(
            CursorKind::Reader,
            &removed,
            OnGap::Stop,
            (&mut lanes, &mut committer),
            &log(),
            Moment::ZERO,
        );
        assert!(reader.has_ended() && reader.start_fetch(Moment::ZERO).is_none());
        let why = reader.take_error().unwrap().to_string();
        assert!(why.contains("--fast-forward p3:5 --execute"), "{why}");
    }

    #[test]
    fn removed_events_of_a_parked_user_stop_no_other_user() {
        let key = Some(Arc::from(&b"user-1"[..]));
        let parked = ParkedUser { first: 0, held: false, give_up_below: None };
        let users = ListedUsers::from([(key.clone(), UserState { parked: Some(parked), failed: None })]);
        let state = PartitionState { users, ..PartitionState::at(9) };
        let (mut reader, mut committer, mut lanes) = begin(state);
        reader.window.resize(10, 1_000_000);
        assert_eq!(reader.start_sweep(&mut lanes, &mut committer, Moment::ZERO).unwrap().from, 0);
        let removed = FetchError::OutOfRange { from: 0, earliest: 5, latest: 9 };
        let memory = (&mut lanes, &mut committer);
        reader.fetch_failed(CursorKind::Sweep, &removed, OnGap::Stop, memory, &log(), Moment::ZERO);
        assert!(reader.take_error().is_none());
        let clocks = crate::core::BothClocks { moment: Moment::ZERO, wall_ms: 0 };
        assert_eq!(reader.parked.listed(&lanes, |_| false, clocks)[&key].parked.unwrap().first, 5);
        assert_eq!(reader.start_sweep(&mut lanes, &mut committer, Moment::ZERO).unwrap().from, 5);
        let damaged = FetchError::Corrupt { offset: 5, detail: "a checksum is wrong".into() };
        let memory = (&mut lanes, &mut committer);
        reader.fetch_failed(CursorKind::Sweep, &damaged, OnGap::Skip, memory, &log(), Moment::ZERO);
        assert!(reader.take_error().is_none());
        assert_eq!(reader.start_sweep(&mut lanes, &mut committer, Moment::ZERO).unwrap().from, 6);
        // It may be repaired: another user's older event must not be left out because of it.
        let damaged = FetchError::Corrupt { offset: 6, detail: "a checksum is wrong".into() };
        let memory = (&mut lanes, &mut committer);
        reader.fetch_failed(CursorKind::Sweep, &damaged, OnGap::Stop, memory, &log(), Moment::ZERO);
        assert!(reader.take_error().is_some());
    }

    #[test]
    fn a_topic_that_was_created_again_is_never_skipped() {
        let (mut reader, mut committer, mut lanes) = begin(PartitionState::at(0));
        let error = FetchError::TopicRecreated { topic: "events".into() };
        reader.fetch_failed(
            CursorKind::Reader,
            &error,
            OnGap::Skip,
            (&mut lanes, &mut committer),
            &log(),
            Moment::ZERO,
        );
        assert!(reader.take_error().unwrap().is_recreated);
        assert_eq!(committer.state(ListedUsers::new()), PartitionState::at(0));
    }
}
