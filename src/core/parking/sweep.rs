//! The sweep: which part of the log it reads next. It brings the events of parked users that were left in the log, the
//! lowest wanted offset first.
//!
//! ```text
//!            run_start          position                                  edge
//!  log  ………… │ ███████ seen ███ │ …………… A ………………… B ……………………………………… │ not read yet
//!     C             D ↷         └──▶ wants ahead: A, B
//!     └─ wants behind: C, D
//! ```
//!
//! A *run* of the sweep reads from `run_start` on without a hole. So of a user whose `next` is not below `run_start`, it has
//! seen every event from `next` to `position`. The first of these events that it does not admit, because the user does not
//! want it at that moment, is marked as *passed*: the user needs another run. When a run reaches the edge, nothing is left
//! behind of the users that it was for, and they are returning.
//!
//! The sweep jumps back for wants behind it when it has no other, or after a few fetches. It jumps forward over what no
//! user wants.

use super::{ListedEntry, ParkedUsers, PartitionMemory, Rest};
use crate::core::Moment;
use crate::core::lanes::LaneView;
use crate::core::progress::UserKey;
use crate::core::window::Window;
use crate::limits::FETCH_BYTES_MAX;
use std::collections::BTreeSet;

/// Bytes of the first fetch of a run. Each fetch after it is twice as large as the one before. Under pressure a run
/// often looks for one event, which is at its start. More would be read for nothing, and again for the next event.
const FETCH_FIRST_BYTES: usize = 32 * 1024;

/// After so many doublings a fetch has [`FETCH_BYTES_MAX`].
const FETCH_DOUBLINGS_MAX: u32 = (FETCH_BYTES_MAX / FETCH_FIRST_BYTES).ilog2();

/// Fetches after a jump before the sweep jumps back again while it has wants ahead: 4 MiB. So users with a long way to
/// their next event get on, although others want events again and again.
const FETCHES_AFTER_JUMP_MIN: u32 = FETCH_DOUBLINGS_MAX + 3;

/// The sweep fills a lane up to this part of the window, in events and in bytes, and under pressure a slow lane keeps no
/// more. So a slow user does not take the room of the others.
pub(super) const LANE_PART_OF_WINDOW: usize = 8;

/// While the window is above the part down to which lanes are cut, the sweep fills the lane of a user up to what it
/// delivers in a second, and up to this many events. With one event more than the one in flight, the lane does not end,
/// so its pace stays known.
pub(super) const SWEPT_EVENTS_MIN: usize = 2;

/// No run has this number.
const NO_RUN: u64 = u64::MAX;

/// A fetch for the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepRequest {
    pub from: i64,
    pub max_bytes: usize,
}

/// What a listed user wants from the sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Nothing,
    /// Its first event, which has failed and is not tried before this moment.
    Later(Moment),
    /// Its next event, which is at this offset or after it.
    Head {
        from: i64,
    },
    /// Events to fill its lane, from this offset on.
    Backlog {
        from: i64,
    },
}

impl Want {
    pub(super) fn is_now(self) -> bool {
        self.from().is_some()
    }

    fn from(self) -> Option<i64> {
        match self {
            Self::Head { from } | Self::Backlog { from } => Some(from),
            Self::Nothing | Self::Later(_) => None,
        }
    }
}

impl ListedEntry {
    /// What this user wants, if this is its lane in memory. A lane is filled up to the backlog, or to one second of its
    /// pace, within a part of the window. While more than three eighths of the window are used, it is only filled to
    /// one second of its pace. So the sweep stops where the cuts of module `pressure` end, and does not bring again
    /// what they have left in the log. Its last event may take it above the limit in bytes.
    pub(super) fn wants(&self, lane: Option<LaneView<'_>>, backlog: usize, window: &Window, now: Moment) -> Want {
        let Rest::InLog { next: from, .. } = self.rest else { return Want::Nothing };
        if !self.may_admit(from) {
            return Want::Nothing;
        }
        match (lane, &self.failure) {
            (None, Some(failure)) if failure.next_try > now && !self.gives_up(from) => Want::Later(failure.next_try),
            (None, Some(_)) => Want::Head { from },
            (None, None) => Want::Backlog { from },
            // Its head is tried alone until it is settled.
            (Some(lane), _) if lane.history.is_some() => Want::Nothing,
            (Some(lane), _) => {
                let enough = match lane.events_per_s {
                    Some(pace) if window.is_above_three_eighths() => pace.max(SWEPT_EVENTS_MIN),
                    pace => backlog.max(pace.unwrap_or(0)),
                };
                let full = enough.min((window.events_max() / LANE_PART_OF_WINDOW).max(1));
                let full_bytes = window.bytes_max() / LANE_PART_OF_WINDOW;
                let is_low = lane.events * 2 <= full && self.lane_bytes * 2 <= full_bytes;
                let is_filling = matches!(self.want, Want::Backlog { .. });
                let has_room = lane.events < full && self.lane_bytes < full_bytes;
                if is_low || (is_filling && has_room) { Want::Backlog { from } } else { Want::Nothing }
            }
        }
    }
}

/// The second cursor of the log: its place, and who waits for it.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The number of the present run.
    run: u64,
    run_start: i64,
    position: i64,
    fetches_in_run: u32,
    /// Wants that the present run will meet, by the lowest offset at which the event may be.
    ahead: BTreeSet<(i64, UserKey)>,
    /// Wants that need another run.
    behind: BTreeSet<(i64, UserKey)>,
    /// Wants for a backlog, among both.
    backlog_wants: usize,
    /// Cold users, by the time of their next try.
    due: BTreeSet<(Moment, UserKey)>,
    /// Events that were read again.
    events_read: u64,
}

impl Sweep {
    /// A sweep that has seen nothing: everything that is wanted is behind it.
    pub(super) fn new() -> Self {
        Self {
            run: 0,
            run_start: i64::MAX,
            position: i64::MAX,
            fetches_in_run: 0,
            ahead: BTreeSet::new(),
            behind: BTreeSet::new(),
            backlog_wants: 0,
            due: BTreeSet::new(),
            events_read: 0,
        }
    }

    /// Whether a user wants events now.
    pub(super) fn has_wants(&self) -> bool {
        !(self.ahead.is_empty() && self.behind.is_empty())
    }

    pub(super) fn run(&self) -> u64 {
        self.run
    }

    /// The events of a user are in the log from `next` on.
    pub(super) fn in_log(&self, next: i64) -> Rest {
        // Below the position the present run has passed them already.
        Rest::InLog { next, passed_in_run: if next < self.position { self.run } else { NO_RUN } }
    }

    /// Whether the present run has met, and admitted, every event of a user from `next` to the position.
    pub(super) fn has_seen_all_from(&self, next: i64, passed_in_run: u64) -> bool {
        next >= self.run_start && passed_in_run != self.run
    }

    /// The sweep has passed every offset below this one.
    pub(super) fn passed(&mut self, position: i64) {
        self.position = self.position.max(position);
        self.events_read += 1;
    }

    pub(super) fn change_want(&mut self, key: &UserKey, entry: &mut ListedEntry, want: Want) {
        let (old, Rest::InLog { next, passed_in_run }) = (entry.want, entry.rest) else {
            self.remove_want(key, entry.want);
            entry.want = Want::Nothing;
            return;
        };
        let is_ahead = self.has_seen_all_from(next, passed_in_run);
        let is_in_place = |from: i64| {
            let place = (from, key.clone());
            if is_ahead { self.ahead.contains(&place) } else { self.behind.contains(&place) }
        };
        if old == want && want.from().is_none_or(is_in_place) {
            return;
        }
        self.remove_want(key, old);
        entry.want = want;
        match want {
            Want::Nothing => {}
            Want::Later(at) => _ = self.due.insert((at, key.clone())),
            Want::Head { from } | Want::Backlog { from } => {
                self.backlog_wants += usize::from(matches!(want, Want::Backlog { .. }));
                let place = if is_ahead { &mut self.ahead } else { &mut self.behind };
                place.insert((from, key.clone()));
            }
        }
    }

    fn remove_want(&mut self, key: &UserKey, want: Want) {
        match want {
            Want::Nothing => {}
            Want::Later(at) => _ = self.due.remove(&(at, key.clone())),
            Want::Head { from } | Want::Backlog { from } => {
                self.backlog_wants -= usize::from(matches!(want, Want::Backlog { .. }));
                let place = (from, key.clone());
                if !self.ahead.remove(&place) {
                    self.behind.remove(&place);
                }
            }
        }
    }

    pub(super) fn take_due(&mut self, now: Moment) -> Option<UserKey> {
        let is_due = self.due.first().is_some_and(|(at, _)| *at <= now);
        if is_due { self.due.pop_first().map(|(_, key)| key) } else { None }
    }

    pub(super) fn next_due(&self) -> Option<Moment> {
        self.due.first().map(|(at, _)| *at)
    }

    fn begin_run(&mut self, from: i64) {
        self.run += 1;
        (self.run_start, self.position, self.fetches_in_run) = (from, from, 0);
    }

    /// Begins a run at the lowest want behind. Every other want is ahead of it then.
    fn jump_back(&mut self) {
        let Some(from) = self.behind.first().map(|(from, _)| *from) else { return };
        // The larger set stays, so that a jump costs little if few users wait behind.
        if self.behind.len() > self.ahead.len() {
            std::mem::swap(&mut self.behind, &mut self.ahead);
        }
        self.ahead.extend(std::mem::take(&mut self.behind));
        self.begin_run(from);
    }
}

impl ParkedUsers {
    /// Whether a parked user wants events, and there is room for them.
    pub fn wants_sweep(&self, window: &Window) -> bool {
        self.sweep.has_wants() && window.parked_room_bytes() > 0
    }

    /// The fetch that the sweep makes next. Offer every event that it returns to [`ParkedUsers::sweep`], then call
    /// [`ParkedUsers::swept`]. Until then there must not be another one.
    pub fn next_sweep(&mut self, memory: &mut PartitionMemory<'_>, now: Moment) -> Option<SweepRequest> {
        if self.sweep.position >= self.edge && !self.sweep.ahead.is_empty() {
            self.swept(self.edge, memory, now);
        }
        let window = &*memory.window;
        if !self.wants_sweep(window) {
            return None;
        }
        let is_patient = !self.sweep.ahead.is_empty() && self.sweep.fetches_in_run < FETCHES_AFTER_JUMP_MIN;
        if !self.sweep.behind.is_empty() && !is_patient {
            self.keep_what_was_seen();
            self.sweep.jump_back();
        } else if let Some((from, _)) = self.sweep.ahead.first()
            && *from > self.sweep.position
        {
            let from = *from;
            // What is behind stays behind: all of it is below the start of this run.
            self.sweep.begin_run(from);
        }
        let doublings = match self.sweep.backlog_wants {
            // Every want is for one event at a known offset.
            0 => 0,
            _ => self.sweep.fetches_in_run.min(FETCH_DOUBLINGS_MAX),
        };
        self.sweep.fetches_in_run = self.sweep.fetches_in_run.saturating_add(1);
        let room_bytes = window.parked_room_bytes().max(FETCH_FIRST_BYTES);
        let max_bytes = (FETCH_FIRST_BYTES << doublings).min(room_bytes);
        // What is fetched waits for room in addition to the window, so a small window has small fetches.
        let max_bytes = max_bytes.min(window.bytes_max()).max(1);
        Some(SweepRequest { from: self.sweep.position, max_bytes })
    }

    /// The users ahead that have no event up to the position have their next one after it. A new run need not look there
    /// again.
    fn keep_what_was_seen(&mut self) {
        let position = self.sweep.position;
        let seen = self.sweep.ahead.range(..(position, None)).cloned().collect::<Vec<_>>();
        for (_, key) in seen {
            let Some(entry) = self.users.get_mut(&key) else { continue };
            entry.rest = self.sweep.in_log(position);
            let want = match entry.want {
                Want::Head { .. } => Want::Head { from: position },
                Want::Backlog { .. } => Want::Backlog { from: position },
                want @ (Want::Nothing | Want::Later(_)) => want,
            };
            self.sweep.change_want(&key, entry, want);
        }
    }

    /// All events of the last fetch were offered, and the next fetch of this run would start at `position`.
    pub fn swept(&mut self, position: i64, memory: &mut PartitionMemory<'_>, now: Moment) {
        self.sweep.position = self.sweep.position.max(position.min(self.edge));
        if self.sweep.position < self.edge {
            return;
        }
        // This run is complete: of the users that it was for, nothing is left behind.
        // An event that has failed may be after the edge, if an earlier owner read further. `review` keeps its account.
        for (_, key) in std::mem::take(&mut self.sweep.ahead) {
            if let Some(entry) = self.users.get_mut(&key) {
                self.sweep.backlog_wants -= usize::from(matches!(entry.want, Want::Backlog { .. }));
                (entry.want, entry.rest) = (Want::Nothing, Rest::AfterEdge);
                self.review(&key, memory, now);
            }
        }
    }

    /// The log has no events below this offset any more: those that were left there are lost. Returns the users that may
    /// have had some.
    pub fn lost(&mut self, earliest: i64, memory: &mut PartitionMemory<'_>, now: Moment) -> Vec<UserKey> {
        // What the reader has not read yet it misses itself.
        let earliest = earliest.min(self.edge);
        // The order in which the users are looked at must not depend on the hash.
        let is_affected = |entry: &ListedEntry| matches!(entry.rest, Rest::InLog { next, .. } if next < earliest);
        let affected = self.users.iter().filter(|(_, entry)| is_affected(entry)).map(|(key, _)| key.clone());
        let mut affected: Vec<UserKey> = affected.collect();
        affected.sort_unstable();
        for key in &affected {
            let has_lane = memory.lanes.find(key.as_deref()).is_some();
            if let Some(entry) = self.users.get_mut(key) {
                entry.rest = self.sweep.in_log(earliest);
                if !has_lane {
                    entry.first = entry.first.max(earliest);
                    entry.failure = entry.failure.take().filter(|failure| failure.offset >= earliest);
                }
                self.has_changes = true;
            }
            self.review(key, memory, now);
        }
        affected
    }

    /// The number of events that were read a second time.
    pub fn events_read_again(&self) -> u64 {
        self.sweep.events_read
    }
}
