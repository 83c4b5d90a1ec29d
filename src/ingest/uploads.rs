//! The memory of bodies that are still arriving: one budget for all connections, as large as `--max-pending`.
//!
//! ```text
//!  first piece ── is it the whole body? ─▶ --max-pending ─▶ the log        most requests
//!       └── no ─▶ Upload: holds its buffer here until the last byte, then moves to --max-pending
//! ```
//!
//! Bodies that are complete never wait for bodies that are not. When the budget is used up, an upload that needs room
//! takes it from the uploads that have fallen behind [`UPLOAD_KEEPS_ROOM`], the slowest first; these are answered with
//! 408. If every upload keeps up, the new one waits for room, and after [`UPLOAD_ROOM_WAIT_MAX`] it is refused.

use super::pace::{Pace, Schedule};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// An upload that is slower than this may lose its room to another one. The slack lets a client pause; it is shorter
/// than [`UPLOAD_ROOM_WAIT_MAX`], so that clients that stop sending cannot have others refused.
pub(super) const UPLOAD_KEEPS_ROOM: Pace = Pace { bytes_per_second: 64 * 1024, slack: Duration::from_millis(500) };

/// How long an upload waits for room.
pub(super) const UPLOAD_ROOM_WAIT_MAX: Duration = Duration::from_secs(1);

/// How often it looks, in addition to when it is told that room was given back: one upload is told at a time.
const UPLOAD_ROOM_POLL: Duration = Duration::from_millis(100);

/// The budget.
#[derive(Debug)]
pub(super) struct Uploads {
    max_bytes: usize,
    state: Mutex<State>,
    given_back: Notify,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: usize,
    next_id: u64,
    open: HashMap<u64, Entry>,
    /// Uploads that hold room and are being sent, the slowest first: those that wait for room are not slow.
    by_due: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct Entry {
    held_bytes: usize,
    schedule: Schedule,
    /// Whether it waits for room, and so not for its client.
    is_waiting: bool,
    /// Told once its room was taken.
    cut: Arc<Notify>,
}

/// The budget is used up, and every upload keeps up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Uploads {
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, state: Mutex::default(), given_back: Notify::new() })
    }

    /// An upload that holds nothing yet.
    pub(super) fn begin(self: &Arc<Self>) -> Upload {
        let cut = Arc::<Notify>::default();
        let schedule = UPLOAD_KEEPS_ROOM.begin(Instant::now());
        let entry = Entry { held_bytes: 0, schedule, is_waiting: false, cut: cut.clone() };
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.open.insert(id, entry);
        drop(state);
        Upload { uploads: self.clone(), id, cut }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives the upload `held_bytes` instead of what it holds, if there is room or if slower uploads can make room.
    /// An upload that is alone always gets it, as in [`Pending`](super::pending::Pending).
    fn hold(&mut self, id: u64, held_bytes: usize, max_bytes: usize, now: Instant) -> Result<(), NoRoom> {
        let Some(entry) = self.open.get(&id) else { return Err(NoRoom) };
        let others_bytes = self.used_bytes - entry.held_bytes;
        let excess_bytes = (others_bytes + held_bytes).saturating_sub(max_bytes);
        if others_bytes > 0 && excess_bytes > 0 {
            self.cut_slow(id, excess_bytes, now)?;
        }
        self.update(id, |entry| entry.held_bytes = held_bytes);
        Ok(())
    }

    /// Takes the room of the slowest uploads, until `wanted_bytes` are free. If all that are slow hold less, none is cut.
    fn cut_slow(&mut self, wanting: u64, wanted_bytes: usize, now: Instant) -> Result<(), NoRoom> {
        let (mut victims, mut found_bytes) = (Vec::new(), 0);
        for &(due, id) in &self.by_due {
            if found_bytes >= wanted_bytes || due >= now {
                break;
            }
            if id != wanting {
                found_bytes += self.open[&id].held_bytes;
                victims.push(id);
            }
        }
        if found_bytes < wanted_bytes {
            return Err(NoRoom);
        }
        for id in victims {
            self.remove(id);
        }
        Ok(())
    }

    /// Changes an upload and its place among the slow ones.
    fn update(&mut self, id: u64, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.open.get_mut(&id) else { return };
        self.by_due.remove(&(entry.schedule.due(), id));
        self.used_bytes -= entry.held_bytes;
        change(entry);
        self.used_bytes += entry.held_bytes;
        if entry.held_bytes > 0 && !entry.is_waiting {
            self.by_due.insert((entry.schedule.due(), id));
        }
    }

    /// Forgets an upload and tells it; nothing happens if it is gone already.
    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.open.remove(&id) {
            self.by_due.remove(&(entry.schedule.due(), id));
            self.used_bytes -= entry.held_bytes;
            entry.cut.notify_one();
        }
    }
}

/// One body that is arriving; gives its room back when it is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    uploads: Arc<Uploads>,
    id: u64,
    cut: Arc<Notify>,
}

impl Upload {
    /// Holds this much instead of what was held; waits if there is no room.
    pub(super) async fn hold(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let begun = Instant::now();
        if self.try_hold(bytes, begun).is_ok() {
            return Ok(());
        }
        self.uploads.lock().update(self.id, |entry| entry.is_waiting = true);
        let end = begun + UPLOAD_ROOM_WAIT_MAX;
        let held = loop {
            let now = Instant::now();
            let wake = (now + UPLOAD_ROOM_POLL).min(end);
            tokio::select! {
                () = self.uploads.given_back.notified() => {}
                () = sleep_until(wake) => {}
            }
            match self.try_hold(bytes, Instant::now()) {
                Err(NoRoom) if Instant::now() < end => {}
                held => break held,
            }
        };
        self.uploads.lock().update(self.id, |entry| {
            entry.is_waiting = false;
            entry.schedule = UPLOAD_KEEPS_ROOM.begin(Instant::now());
        });
        held
    }

    fn try_hold(&self, bytes: usize, now: Instant) -> Result<(), NoRoom> {
        self.uploads.lock().hold(self.id, bytes, self.uploads.max_bytes, now)
    }

    /// Notes that this many bytes have come.
    pub(super) fn came(&self, bytes: usize, now: Instant) {
        self.uploads.lock().update(self.id, |entry| entry.schedule.came(bytes, now));
    }

    /// Ready once its room was taken for another upload.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.uploads.lock().remove(self.id);
        self.uploads.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::time::{advance, timeout};

    async fn holding(uploads: &Arc<Uploads>, bytes: usize) -> Upload {
        let mut upload = uploads.begin();
        upload.hold(bytes).await.unwrap();
        upload
    }

    async fn is_cut(upload: &Upload) -> bool {
        let cut = pin!(upload.cut());
        timeout(Duration::ZERO, cut).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_kept_and_given_back() {
        let uploads = Uploads::new(100);
        let (one, mut two) = (holding(&uploads, 60).await, holding(&uploads, 40).await);
        assert_eq!(two.try_hold(41, Instant::now()), Err(NoRoom));
        drop(one);
        assert_eq!(two.hold(100).await, Ok(()));
        drop(two);
        let state = uploads.lock();
        assert_eq!((state.used_bytes, state.open.len(), state.by_due.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_is_alone_gets_what_it_needs() {
        let uploads = Uploads::new(10);
        let _one = holding(&uploads, 1_000).await;
        assert_eq!(uploads.begin().try_hold(1, Instant::now()), Err(NoRoom));
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_upload_loses_its_room_and_one_that_keeps_up_does_not() {
        let uploads = Uploads::new(100);
        let stalled = holding(&uploads, 40).await;
        advance(Duration::from_millis(400)).await;
        let fast = holding(&uploads, 40).await;
        advance(Duration::from_millis(400)).await;
        fast.came(32 * 1024, Instant::now());
        let mut new = uploads.begin();
        assert_eq!(new.hold(60).await, Ok(()));
        assert!(is_cut(&stalled).await && !is_cut(&fast).await);
        drop(stalled);
        assert_eq!(uploads.lock().used_bytes, 100, "what was cut is given back once");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_cut_if_that_does_not_make_enough_room() {
        let uploads = Uploads::new(100);
        let stalled = holding(&uploads, 40).await;
        advance(Duration::from_secs(1)).await;
        let fast = holding(&uploads, 60).await;
        assert_eq!(uploads.lock().hold(99, 1, 100, Instant::now()), Err(NoRoom), "one that is gone gets nothing");
        let new = uploads.begin();
        assert_eq!(new.try_hold(41, Instant::now()), Err(NoRoom));
        assert!(!is_cut(&stalled).await && !is_cut(&fast).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_upload_waits_until_others_have_fallen_behind() {
        let uploads = Uploads::new(100);
        let others = [holding(&uploads, 50).await, holding(&uploads, 50).await];
        let begun = Instant::now();
        assert_eq!(uploads.begin().hold(30).await, Ok(()));
        assert!(begun.elapsed() > UPLOAD_KEEPS_ROOM.slack && begun.elapsed() < UPLOAD_ROOM_WAIT_MAX);
        assert!(is_cut(&others[0]).await && !is_cut(&others[1]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_waits_for_room_is_not_slow() {
        let uploads = Uploads::new(100);
        let (mut waiting, sending) = (holding(&uploads, 50).await, holding(&uploads, 50).await);
        let mut feed = tokio::time::interval(Duration::from_millis(50));
        let held = {
            let mut held = pin!(waiting.hold(60));
            loop {
                tokio::select! {
                    held = &mut held => break held,
                    _ = feed.tick() => sending.came(64 * 1024, Instant::now()),
                }
                // Another one asks meanwhile, and takes nothing from the one that waits.
                assert_eq!(uploads.begin().try_hold(40, Instant::now()), Err(NoRoom));
            }
        };
        assert_eq!(held, Err(NoRoom));
        assert!(!is_cut(&waiting).await);
    }
}
