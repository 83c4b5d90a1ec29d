//! How many attempts may be in flight, and of which users, so that users who hang do not take the slots of the others.
//!
//! An attempt usually takes milliseconds. If the destination hangs for some users, each of their attempts takes until
//! `--attempt-timeout`. With one pool of slots, as many such users as there are slots would stop all others. So there are
//! two pools of `--concurrency` slots each, and users have a [`Standing`]:
//!
//! ```text
//!                 first pool: young attempts                         second pool
//!  Served   ───▶ [ quick, as far as is known ] ── after 1 s ──▶ [ old attempts           ]
//!  Newcomer ───▶ [ nothing is known          ] ── after 1 s ──▶ [                        ]
//!  Doubtful ──────────────────────────────────────────────────▶ [ slow and failing users ]
//! ```
//!
//! An attempt that becomes old leaves the first pool in any case. C is `--concurrency`. L is the limit on young attempts:
//! C in good times, and less in bad health and after an outage ([`Slots::set_limit`]). An attempt may begin if fewer than
//! 2 C are in flight, and:
//!
//! | standing | condition |
//! |---|---|
//! | `Served` | fewer than L are in the first pool, or fewer than L/4 of them are of served users |
//! | `Newcomer` | fewer than L are in the first pool, fewer than max(C − second pool, C/8) of them are newcomers, and fewer than 2 C − C/2 are newcomers or in the second pool |
//! | `Doubtful` | fewer than C are in the second pool, and fewer than L of these are young |
//!
//! If a newcomer may begin, a served user may, too. As long as fewer than C attempts are in flight and L is C, every user
//! may begin. So while no attempt is slow, this is a single pool of C slots.
//!
//! The partitions of a destination wait in one queue for each standing, and slots are granted in its order: first come,
//! first served. Within a partition the lane that has been ready longest comes first, so a slot that was granted for a
//! served user may be used for a newcomer, and the other way round ([`Slots::change_standing`]).
//!
//! # The worst case
//!
//! - *Users known to be slow*: any number of them holds at most C slots, all in the second pool. The others never wait for
//!   them. If there are more than C such users, they delay each other.
//! - *Newcomers that hang all at once*: they fill the first pool for a second, but served users have C/4 slots more. From
//!   then on newcomers get few slots, so that C/2 of all slots are left for served users. The newcomers that wait may be
//!   healthy, but nothing tells them apart. Fewer than 3/2 C hanging newcomers are found out within 5 s. More of
//!   them end with each `--attempt-timeout`: with the defaults, 25 a second.
//! - *Served users that begin to hang all at once*, for example those of one shard of the destination: until an attempt of
//!   each has become old, nothing tells them apart from the others. C of them stop the others for up to 1 s. If more than
//!   2 C of them are attempted within one `--attempt-timeout`, all wait until each of them has been attempted: the slots
//!   of the first ones go to the next ones, because those have waited longest.
//! - *Bad health*: L may be as low as C/64. Hanging attempts become old within a second, and then do not count against L.
//!   So they do not keep the other users from their part of the slots, however many hang.
//!
//! A destination that is slow for all users makes all of them doubtful: C attempts are in flight, as in one pool. With C
//! below 4, served users may wait for a second behind newcomers that begin to hang. With 1, no slot is kept for them.
//!
//! If a run may have several events, [`EventsInFlight`] limits its length. It lets no user wait.

mod events_in_flight;
mod user_paces;

#[cfg(test)]
mod tests;

pub use self::events_in_flight::{EventsInFlight, LongerRun, RunLimits};
pub use self::user_paces::UserPaces;

use std::collections::VecDeque;
use std::time::Duration;

/// An attempt that has taken this long is old. It is far longer than a healthy destination needs, and far shorter than
/// the default `--attempt-timeout`.
pub const OLD_AFTER: Duration = Duration::from_secs(1);

/// The most attempts in flight with this `--concurrency`, in both pools together.
pub fn attempts_max(concurrency: usize) -> usize {
    concurrency.saturating_mul(2)
}

/// What is known of a user before its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was delivered lately, within [`OLD_AFTER`].
    Served,
    /// Nothing is known.
    Newcomer,
    /// Its last attempt was slow, or its events fail while those of others are delivered.
    Doubtful,
}

impl Standing {
    pub const ALL: [Self; 3] = [Self::Served, Self::Newcomer, Self::Doubtful];
}

/// The two pools of slots of one destination and process. `W` is what the caller needs to find a waiter again.
#[derive(Debug)]
pub struct Slots<W> {
    /// C: the size of each pool.
    concurrency: usize,
    /// L: the limit on young attempts.
    limit: usize,
    /// Young attempts, for each standing.
    young: [usize; Standing::ALL.len()],
    /// Attempts that have taken [`OLD_AFTER`].
    old: usize,
    /// For each standing, the waiters with their tickets. A lower ticket has waited longer.
    waiting: [VecDeque<(u64, W)>; Standing::ALL.len()],
    last_ticket: u64,
}

/// A slot that is held. It must be given back with [`Slots::end`].
#[derive(Debug)]
#[must_use = "a slot that is not given back is lost"]
pub struct HeldSlot {
    standing: Standing,
    is_old: bool,
}

impl<W> Slots<W> {
    /// Two pools of this many slots each, at least 1.
    pub fn new(concurrency: usize) -> Self {
        // Sums of a few times this number must not overflow.
        let concurrency = concurrency.clamp(1, usize::MAX / 8);
        Self {
            concurrency,
            limit: concurrency,
            young: Default::default(),
            old: 0,
            waiting: Default::default(),
            last_ticket: 0,
        }
    }

    /// Sets L, the number of young attempts in each pool: at least 1, and at most `--concurrency`. Returns whether it is
    /// higher than before, so that waiters may get a slot.
    pub fn set_limit(&mut self, limit: usize) -> bool {
        let before = std::mem::replace(&mut self.limit, limit.clamp(1, self.concurrency));
        before < self.limit
    }

    /// Takes a slot for a user of this standing. `None`: none is free, or others of this standing have waited longer.
    pub fn begin(&mut self, standing: Standing) -> Option<HeldSlot> {
        (self.waiting[standing as usize].is_empty() && self.may_begin(standing)).then(|| self.take(standing))
    }

    /// Joins the end of the queue for a slot of this standing. [`Slots::next_granted`] returns `waiter` when it has one.
    pub fn wait(&mut self, standing: Standing, waiter: W) {
        self.last_ticket += 1;
        self.waiting[standing as usize].push_back((self.last_ticket, waiter));
    }

    /// Gives a slot that is free to the waiter that has waited longest for such a slot. To be called after every change,
    /// until it returns `None`.
    pub fn next_granted(&mut self) -> Option<(W, HeldSlot)> {
        if self.waiting.iter().all(VecDeque::is_empty) {
            return None;
        }
        let first = |standing: &Standing| self.waiting[*standing as usize].front().map(|(ticket, _)| *ticket);
        let may_begin = Standing::ALL.into_iter().filter(|standing| self.may_begin(*standing));
        let (_, standing) =
            may_begin.filter_map(|standing| Some((first(&standing)?, standing))).min_by_key(|at| at.0)?;
        let (_, waiter) = self.waiting[standing as usize].pop_front()?;
        Some((waiter, self.take(standing)))
    }

    /// Uses a slot for a user of another standing. `false`: such a user may not begin now, and the slot is as it was.
    pub fn change_standing(&mut self, slot: &mut HeldSlot, standing: Standing) -> bool {
        if slot.standing == standing {
            return true;
        }
        self.give_back(slot);
        // A place in the first pool is enough for a served user, even if the limit was lowered since.
        let changes = !slot.is_old
            && match (slot.standing, standing) {
                (Standing::Newcomer, Standing::Served) => true,
                (Standing::Served, Standing::Newcomer) => self.may_begin(standing),
                _ => false,
            };
        if changes {
            slot.standing = standing;
        }
        *self.count(slot) += 1;
        changes
    }

    /// The attempt in this slot has taken [`OLD_AFTER`].
    pub fn became_old(&mut self, slot: &mut HeldSlot) {
        self.give_back(slot);
        slot.is_old = true;
        self.old += 1;
    }

    /// Gives the slot back.
    pub fn end(&mut self, slot: HeldSlot) {
        self.give_back(&slot);
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.young.iter().sum::<usize>() + self.old
    }

    /// Whether slow attempts stop newcomers: these have at least half of the second pool, so that newcomers have at most half
    /// of the slots, and the first pool has room. With a short `--attempt-timeout` newcomers that hang never have much more:
    /// the longer they take, the fewer begin.
    pub fn slow_attempts_stop_newcomers(&self) -> bool {
        let [served, newcomers, doubtful] = self.young;
        served + newcomers < self.limit
            && doubtful + self.old >= self.concurrency.div_ceil(2)
            && !self.may_begin(Standing::Newcomer)
    }

    fn may_begin(&self, standing: Standing) -> bool {
        let (all, limit) = (self.concurrency, self.limit);
        let [served, newcomers, doubtful] = self.young;
        let (first, second) = (served + newcomers, doubtful + self.old);
        self.in_flight() < attempts_max(all)
            && match standing {
                Standing::Served => first < limit || served < limit / 4,
                Standing::Newcomer => {
                    first < limit
                        && newcomers < all.saturating_sub(second).max(all / 8).max(1)
                        && newcomers + second < attempts_max(all) - all / 2
                }
                Standing::Doubtful => second < all && doubtful < limit,
            }
    }

    fn take(&mut self, standing: Standing) -> HeldSlot {
        self.young[standing as usize] += 1;
        HeldSlot { standing, is_old: false }
    }

    fn give_back(&mut self, slot: &HeldSlot) {
        *self.count(slot) -= 1;
    }

    fn count(&mut self, slot: &HeldSlot) -> &mut usize {
        if slot.is_old { &mut self.old } else { &mut self.young[slot.standing as usize] }
    }
}
