//! The memory of bodies that are still arriving. All connections share one budget, which is as large as
//! `--max-pending`.
//!
//! ```text
//!  first piece ── is it the whole body? ── yes ─▶ PendingBudget ─▶ the log        most requests
//!                           └── no ─▶ Upload: its buffer counts here until the last byte, then in PendingBudget
//! ```
//!
//! Complete bodies therefore never wait for incomplete ones. If the budget is used up, an upload that needs room takes
//! it from the uploads that are slower than [`UPLOAD_MIN_RATE`], the slowest first. Those are answered with 408. If
//! every upload is fast enough, the new one waits for room, and is refused after [`UPLOAD_ROOM_WAIT_MAX`].

use super::min_rate::{MinRate, RateDeadline};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// An upload that is slower than this may lose its room to another upload. The slack lets a client pause. It must be
/// shorter than [`UPLOAD_ROOM_WAIT_MAX`]: otherwise clients that stop sending could have other uploads refused.
pub(super) const UPLOAD_MIN_RATE: MinRate = MinRate { bytes_per_second: 64 * 1024, slack: Duration::from_millis(500) };

/// How long an upload waits for room before it is refused.
const UPLOAD_ROOM_WAIT_MAX: Duration = Duration::from_secs(1);

/// How often a waiting upload asks for room again. Room that is given back wakes only one upload, and uploads become
/// too slow without an event that would wake anything.
const UPLOAD_ROOM_POLL: Duration = Duration::from_millis(100);

/// The budget.
#[derive(Debug)]
pub(super) struct UploadBudget {
    max_bytes: usize,
    table: Mutex<UploadTable>,
    given_back: Notify,
}

/// Every upload that has begun and not ended.
#[derive(Debug, Default)]
struct UploadTable {
    used_bytes: usize,
    next_id: u64,
    open: HashMap<u64, UploadEntry>,
    /// Uploads that hold room and wait for their clients, ordered by deadline. An upload that waits for room is not
    /// here, because its client is not the one that is slow.
    by_due: BTreeSet<(Instant, u64)>,
}

#[derive(Debug)]
struct UploadEntry {
    held_bytes: usize,
    deadline: RateDeadline,
    /// Whether the upload waits for room, and not for its client.
    awaits_room: bool,
    /// Notified when the upload's room was taken.
    cut: Arc<Notify>,
}

/// The budget is used up, and every upload is fast enough to keep its room.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for the upload")]
pub(super) struct BudgetExhausted;

impl UploadBudget {
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, table: Mutex::default(), given_back: Notify::new() })
    }

    /// Registers an upload, which holds nothing yet.
    pub(super) fn begin(self: &Arc<Self>) -> Upload {
        let cut = Arc::<Notify>::default();
        let deadline = UPLOAD_MIN_RATE.deadline(Instant::now());
        let entry = UploadEntry { held_bytes: 0, deadline, awaits_room: false, cut: cut.clone() };
        let mut table = self.lock();
        let id = table.next_id;
        table.next_id += 1;
        table.open.insert(id, entry);
        drop(table);
        Upload { budget: self.clone(), id, cut }
    }

    fn lock(&self) -> MutexGuard<'_, UploadTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UploadTable {
    /// Lets the upload hold `held_bytes` in total, if there is room or if slow uploads can make room. An upload that is
    /// alone always gets what it asks for, as in [`PendingBytes`](super::pending::PendingBytes).
    fn hold(&mut self, id: u64, held_bytes: usize, max_bytes: usize, now: Instant) -> Result<(), BudgetExhausted> {
        let Some(entry) = self.open.get(&id) else { return Err(BudgetExhausted) };
        let others_bytes = self.used_bytes - entry.held_bytes;
        let excess_bytes = (others_bytes + held_bytes).saturating_sub(max_bytes);
        if others_bytes > 0 && excess_bytes > 0 {
            self.cut_slow(id, excess_bytes, now)?;
        }
        self.update(id, |entry| entry.held_bytes = held_bytes);
        Ok(())
    }

    /// Takes the room of the slowest uploads until `wanted_bytes` are free. If all slow uploads together hold less than
    /// that, none of them is cut, because cutting them would not help.
    fn cut_slow(&mut self, wanting: u64, wanted_bytes: usize, now: Instant) -> Result<(), BudgetExhausted> {
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
            return Err(BudgetExhausted);
        }
        for id in victims {
            self.remove(id);
        }
        Ok(())
    }

    /// Changes an upload, and keeps `by_due` and `used_bytes` in step.
    fn update(&mut self, id: u64, change: impl FnOnce(&mut UploadEntry)) {
        let Some(entry) = self.open.get_mut(&id) else { return };
        self.by_due.remove(&(entry.deadline.due(), id));
        self.used_bytes -= entry.held_bytes;
        change(entry);
        self.used_bytes += entry.held_bytes;
        if entry.held_bytes > 0 && !entry.awaits_room {
            self.by_due.insert((entry.deadline.due(), id));
        }
    }

    /// Removes an upload and notifies it. Does nothing if the upload was removed before.
    fn remove(&mut self, id: u64) {
        if let Some(entry) = self.open.remove(&id) {
            self.by_due.remove(&(entry.deadline.due(), id));
            self.used_bytes -= entry.held_bytes;
            entry.cut.notify_one();
        }
    }
}

/// One body that is arriving. Dropping it gives its room back.
#[derive(Debug)]
pub(super) struct Upload {
    budget: Arc<UploadBudget>,
    id: u64,
    cut: Arc<Notify>,
}

impl Upload {
    /// Lets the upload hold `bytes` in total. Waits for up to [`UPLOAD_ROOM_WAIT_MAX`] if there is no room.
    pub(super) async fn hold(&mut self, bytes: usize) -> Result<(), BudgetExhausted> {
        let begun = Instant::now();
        if self.try_hold(bytes, begun).is_ok() {
            return Ok(());
        }
        self.budget.lock().update(self.id, |entry| entry.awaits_room = true);
        let end = begun + UPLOAD_ROOM_WAIT_MAX;
        let held = loop {
            let wake = (Instant::now() + UPLOAD_ROOM_POLL).min(end);
            tokio::select! {
                () = self.budget.given_back.notified() => {}
                () = sleep_until(wake) => {}
            }
            match self.try_hold(bytes, Instant::now()) {
                Err(BudgetExhausted) if Instant::now() < end => {}
                held => break held,
            }
        };
        self.budget.lock().update(self.id, |entry| {
            entry.awaits_room = false;
            entry.deadline = UPLOAD_MIN_RATE.deadline(Instant::now());
        });
        held
    }

    fn try_hold(&self, bytes: usize, now: Instant) -> Result<(), BudgetExhausted> {
        self.budget.lock().hold(self.id, bytes, self.budget.max_bytes, now)
    }

    /// Moves the upload's deadline on for `bytes` that have arrived.
    pub(super) fn arrived(&self, bytes: usize, now: Instant) {
        self.budget.lock().update(self.id, |entry| entry.deadline.arrived(bytes, now));
    }

    /// Returns when the upload's room was taken for another upload.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.budget.lock().remove(self.id);
        self.budget.given_back.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use tokio::time::{advance, timeout};

    async fn upload_of(budget: &Arc<UploadBudget>, bytes: usize) -> Upload {
        let mut upload = budget.begin();
        upload.hold(bytes).await.unwrap();
        upload
    }

    async fn is_cut(upload: &Upload) -> bool {
        let cut = pin!(upload.cut());
        timeout(Duration::ZERO, cut).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn uploads_share_the_budget_and_give_back_what_they_held() {
        let budget = UploadBudget::new(100);
        let (one, mut two) = (upload_of(&budget, 60).await, upload_of(&budget, 40).await);
        assert_eq!(two.try_hold(41, Instant::now()), Err(BudgetExhausted));
        drop(one);
        assert_eq!(two.hold(100).await, Ok(()));
        drop(two);
        let table = budget.lock();
        assert_eq!((table.used_bytes, table.open.len(), table.by_due.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_is_alone_gets_more_than_the_whole_budget() {
        let budget = UploadBudget::new(10);
        let _one = upload_of(&budget, 1_000).await;
        assert_eq!(budget.begin().try_hold(1, Instant::now()), Err(BudgetExhausted));
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_upload_loses_its_room_and_a_fast_one_keeps_it() {
        let budget = UploadBudget::new(100);
        let stalled = upload_of(&budget, 40).await;
        advance(Duration::from_millis(400)).await;
        let fast = upload_of(&budget, 40).await;
        advance(Duration::from_millis(400)).await;
        fast.arrived(32 * 1024, Instant::now());
        let mut new = budget.begin();
        assert_eq!(new.hold(60).await, Ok(()));
        assert!(is_cut(&stalled).await && !is_cut(&fast).await);
        drop(stalled);
        assert_eq!(budget.lock().used_bytes, 100, "the room that was taken is given back once");
    }

    #[tokio::test(start_paused = true)]
    async fn no_upload_is_cut_if_that_does_not_make_enough_room() {
        let budget = UploadBudget::new(100);
        let stalled = upload_of(&budget, 40).await;
        advance(Duration::from_secs(1)).await;
        let fast = upload_of(&budget, 60).await;
        let unknown = budget.lock().hold(99, 1, 100, Instant::now());
        assert_eq!(unknown, Err(BudgetExhausted), "an upload that was removed gets no room");
        let new = budget.begin();
        assert_eq!(new.try_hold(41, Instant::now()), Err(BudgetExhausted));
        assert!(!is_cut(&stalled).await && !is_cut(&fast).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_upload_waits_until_other_uploads_are_too_slow() {
        let budget = UploadBudget::new(100);
        let others = [upload_of(&budget, 50).await, upload_of(&budget, 50).await];
        let begun = Instant::now();
        assert_eq!(budget.begin().hold(30).await, Ok(()));
        assert!(begun.elapsed() > UPLOAD_MIN_RATE.slack && begun.elapsed() < UPLOAD_ROOM_WAIT_MAX);
        assert!(is_cut(&others[0]).await && !is_cut(&others[1]).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_waits_for_room_does_not_count_as_slow() {
        let budget = UploadBudget::new(100);
        let (mut waiting, sending) = (upload_of(&budget, 50).await, upload_of(&budget, 50).await);
        let mut feed = tokio::time::interval(Duration::from_millis(50));
        let held = {
            let mut held = pin!(waiting.hold(60));
            loop {
                tokio::select! {
                    held = &mut held => break held,
                    _ = feed.tick() => sending.arrived(64 * 1024, Instant::now()),
                }
                // A third upload asks in the meantime. It must not take the room of the upload that waits.
                assert_eq!(budget.begin().try_hold(40, Instant::now()), Err(BudgetExhausted));
            }
        };
        assert_eq!(held, Err(BudgetExhausted));
        assert!(!is_cut(&waiting).await);
    }
}
