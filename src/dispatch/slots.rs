//! The slots of `--concurrency`, which the workers of all partitions of a destination share.
//!
//! ```text
//!  Deliverer ── take ──▶ Slot, for one attempt ── dropped ──▶ the next one in the queue gets it
//!     │ none is free                                              │
//!     └─ wait ──▶ queue of a standing ────────────────────────────┴──▶ granted: the worker wakes up and takes it
//! ```
//!
//! [`core::slots`](crate::core::slots) has the rules. A slot that was granted and cannot be used is dropped, so the next
//! one in the queue gets it.

use crate::core::slots::{HeldSlot, Slots, Standing};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// The slots of one destination in this process.
#[derive(Clone)]
pub(super) struct SharedSlots(Arc<Mutex<Slots<Waiter>>>);

/// A partition in the queue.
struct Waiter {
    slot: oneshot::Sender<Slot>,
    /// Wakes its worker.
    granted: Arc<Notify>,
}

/// One slot of [`SharedSlots`]. It is given back when it is dropped.
pub(super) struct Slot {
    /// `None` only while it is dropped.
    held: Option<HeldSlot>,
    of: SharedSlots,
}

/// One partition's slots: those that it waits for, and those that were granted and not used yet.
pub(super) struct PartitionSlots {
    shared: SharedSlots,
    /// For each standing.
    waits: [WaitForSlot; Standing::ALL.len()],
    granted: Arc<Notify>,
}

/// A partition waits at most once for each standing, however many of its lanes are ready.
#[derive(Default)]
enum WaitForSlot {
    #[default]
    None,
    InQueue(oneshot::Receiver<Slot>),
    Granted(Slot),
}

impl SharedSlots {
    pub(super) fn new(concurrency: usize) -> Self {
        Self(Arc::new(Mutex::new(Slots::new(concurrency))))
    }

    /// Sets the limit on young attempts.
    pub(super) fn set_limit(&self, limit: usize) {
        self.change(|slots| slots.set_limit(limit));
    }

    /// Changes the slots. If `change` returns true, gives those that are free then to the waiters.
    fn change(&self, change: impl FnOnce(&mut Slots<Waiter>) -> bool) {
        let mut next = {
            let mut slots = self.lock();
            if change(&mut slots) { slots.next_granted() } else { None }
        };
        while let Some((Waiter { slot: waiter, granted }, held)) = next {
            match waiter.send(self.slot(held)) {
                Ok(()) => granted.notify_one(),
                // The waiter has left the queue. If its slot were dropped, this function would call itself, as often as
                // waiters have left.
                Err(mut slot) => {
                    if let Some(held) = slot.held.take() {
                        self.lock().end(held);
                    }
                }
            }
            next = self.lock().next_granted();
        }
    }

    fn slot(&self, held: HeldSlot) -> Slot {
        Slot { held: Some(held), of: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Slots<Waiter>> {
        // The slots are plain numbers, so a panic elsewhere leaves nothing half done in them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartitionSlots {
    pub(super) fn new(shared: &SharedSlots) -> Self {
        Self { shared: shared.clone(), waits: Default::default(), granted: Arc::default() }
    }

    /// Takes a slot for a user of this standing: one that was granted, or else one that is free and that no other partition
    /// waits for.
    pub(super) fn take(&mut self, standing: Standing) -> Option<Slot> {
        for waits in &mut self.waits {
            waits.look();
            if let WaitForSlot::Granted(slot) = waits
                && slot.change_standing(standing)
            {
                return std::mem::take(waits).into_granted();
            }
        }
        let held = self.shared.lock().begin(standing)?;
        Some(self.shared.slot(held))
    }

    /// Whether slow attempts alone stop newcomers.
    pub(super) fn slow_attempts_stop_newcomers(&self) -> bool {
        self.shared.lock().slow_attempts_stop_newcomers()
    }

    /// Joins the queue for a slot of this standing, unless this partition waits there already. [`granted`](Self::granted)
    /// says when it has one.
    pub(super) fn wait(&mut self, standing: Standing) {
        let waits = &mut self.waits[standing as usize];
        if matches!(waits, WaitForSlot::None) {
            let (slot, receiver) = oneshot::channel();
            *waits = WaitForSlot::InQueue(receiver);
            let waiter = Waiter { slot, granted: Arc::clone(&self.granted) };
            self.shared.change(|slots| {
                slots.wait(standing, waiter);
                true
            });
        }
    }

    /// Notified when a slot is granted. A slot that was granted before is not missed.
    pub(super) fn granted(&self) -> Arc<Notify> {
        Arc::clone(&self.granted)
    }

    /// Gives back the slots that were granted, so that other partitions can have them. Places in the queue are kept.
    pub(super) fn release_granted(&mut self) {
        for waits in &mut self.waits {
            waits.look();
            if matches!(waits, WaitForSlot::Granted(_)) {
                *waits = WaitForSlot::None;
            }
        }
    }

    /// Gives back the slots that were granted, and leaves the queue.
    pub(super) fn leave(&mut self) {
        self.waits = Default::default();
    }
}

impl WaitForSlot {
    /// Looks whether a slot was granted.
    fn look(&mut self) {
        if let Self::InQueue(receiver) = self
            && let Ok(slot) = receiver.try_recv()
        {
            *self = Self::Granted(slot);
        }
    }

    fn into_granted(self) -> Option<Slot> {
        match self {
            Self::Granted(slot) => Some(slot),
            Self::None | Self::InQueue(_) => None,
        }
    }
}

impl Slot {
    /// Uses the slot for a user of another standing, if such a user may begin now.
    fn change_standing(&mut self, standing: Standing) -> bool {
        let held = self.held.as_mut().expect("a slot is held until it is dropped");
        let mut changes = false;
        self.of.change(|slots| {
            changes = slots.change_standing(held, standing);
            changes
        });
        changes
    }

    /// The attempt in this slot has taken longer than a quick one.
    pub(super) fn became_old(&mut self) {
        if let Some(held) = &mut self.held {
            self.of.change(|slots| {
                slots.became_old(held);
                true
            });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.of.change(|slots| {
                slots.end(held);
                true
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Doubtful, Newcomer, Served};

    fn partitions<const N: usize>(slots: &SharedSlots) -> [PartitionSlots; N] {
        [(); N].map(|()| PartitionSlots::new(slots))
    }

    #[tokio::test]
    async fn waiters_get_slots_in_their_order_and_one_that_left_gets_none() {
        let slots = SharedSlots::new(1);
        let [mut first, mut left, mut second] = partitions(&slots);
        let held = first.take(Served).unwrap();
        [&mut first, &mut left, &mut second].into_iter().for_each(|partition| partition.wait(Served));
        left.leave();
        assert!(first.take(Served).is_none());
        drop(held);
        first.granted().notified().await;
        assert!(second.take(Served).is_none(), "the first one has it");
        first.release_granted();
        second.granted().notified().await;
        let slot = second.take(Served).unwrap();
        assert!(first.take(Served).is_none());
        drop(slot);
        assert!(first.take(Served).is_some(), "nothing is lost");
    }

    #[test]
    fn any_number_of_waiters_may_have_left_the_queue() {
        let slots = SharedSlots::new(1);
        let [mut first, mut last] = partitions(&slots);
        let held = first.take(Served).unwrap();
        for _ in 0..100_000 {
            PartitionSlots::new(&slots).wait(Served);
        }
        last.wait(Served);
        drop(held);
        assert!(last.take(Served).is_some());
    }

    #[test]
    fn an_old_attempt_gives_its_slot_to_the_next_waiter_and_takes_one_of_the_second_pool() {
        let slots = SharedSlots::new(1);
        let [mut first, mut second] = partitions(&slots);
        let mut old = first.take(Served).unwrap();
        second.wait(Served);
        assert!(second.take(Served).is_none());
        old.became_old();
        let young = second.take(Served).unwrap();
        assert!(first.take(Doubtful).is_none(), "the second pool has the old attempt");
        drop(old);
        assert!(first.take(Doubtful).is_some());
        drop(young);
    }

    #[test]
    fn a_slot_that_was_granted_for_one_standing_is_used_for_the_user_that_waits_longest() {
        let slots = SharedSlots::new(1);
        let [mut partition] = partitions(&slots);
        let held = partition.take(Newcomer).unwrap();
        partition.wait(Served);
        drop(held);
        assert!(partition.take(Doubtful).is_some(), "it is in the other pool, which has a free slot");
        let newcomer = partition.take(Newcomer).expect("the slot that was granted");
        assert!(partition.take(Served).is_none() && partition.take(Newcomer).is_none());
        drop(newcomer);
        assert!(partition.take(Served).is_some());
    }

    #[test]
    fn a_higher_limit_gives_slots_to_those_that_wait() {
        let slots = SharedSlots::new(8);
        slots.set_limit(1);
        let [mut first, mut second, mut third] = partitions(&slots);
        let held = first.take(Served).unwrap();
        [&mut second, &mut third].into_iter().for_each(|partition| partition.wait(Served));
        assert!(second.take(Served).is_none());
        slots.set_limit(2);
        assert!(third.take(Served).is_none(), "first come, first served");
        let granted = second.take(Served);
        assert!(granted.is_some());
        drop((held, granted));
        assert!(third.take(Served).is_some());
    }
}
