//! How many attempts may be in flight, and of which users, so that users who hang do not take the slots of the others.
//!
//! Dispatch does not use this yet: it has one pool of `--concurrency` slots for all users.
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
//! An attempt that becomes old leaves the first pool in any case. With C for `--concurrency`, an attempt may begin if fewer
//! than 2 C are in flight, and:
//!
//! | standing | condition |
//! |---|---|
//! | `Served` | fewer than C are in the first pool, or fewer than C/4 of them are of served users |
//! | `Newcomer` | fewer than C are in the first pool, fewer than max(C − second pool, C/8) of them are newcomers, and fewer than 2 C − C/2 are newcomers or in the second pool |
//! | `Doubtful` | fewer than C are in the second pool |
//!
//! While no attempt is slow, this is a single pool of C slots. Within one standing, waiting is first come, first served.
//!
//! # The worst case
//!
//! - *Users known to be slow*: any number of them holds at most C slots, all in the second pool. The others never wait for
//!   them.
//! - *Newcomers that hang all at once*: they fill the first pool for a second, but served users have C/4 slots more. From
//!   then on newcomers get few slots, so that C/2 of all slots are left for served users. The newcomers that wait may be
//!   healthy, but nothing tells them apart. With the defaults, 384 hanging newcomers end in each `--attempt-timeout`, so
//!   25 of them are found out a second.
//! - *Served users that begin to hang all at once*, for example those of one shard of the destination: until an attempt of
//!   each has become old, nothing tells them apart from the others. If more than 2 C of them are attempted within one
//!   `--attempt-timeout`, all wait until the first of these attempts end.
//!
//! A destination that is slow for all users makes all of them doubtful: C attempts are in flight, as in one pool.

mod user_paces;

#[cfg(test)]
mod tests;

pub use self::user_paces::UserPaces;

use std::collections::VecDeque;
use std::time::Duration;

/// An attempt that has taken this long is old. It is far longer than a healthy destination needs, and far shorter than
/// the default `--attempt-timeout`.
pub const OLD_AFTER: Duration = Duration::from_secs(1);

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
    /// Young attempts of served users.
    served: usize,
    /// Young attempts of newcomers.
    newcomers: usize,
    /// Attempts in the second pool: old ones, and all of doubtful users.
    second: usize,
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
        Self {
            // Twice the number must not overflow.
            concurrency: concurrency.clamp(1, usize::MAX / 4),
            served: 0,
            newcomers: 0,
            second: 0,
            waiting: Default::default(),
            last_ticket: 0,
        }
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
        let first = |standing: &Standing| self.waiting[*standing as usize].front().map(|(ticket, _)| *ticket);
        let may_begin = Standing::ALL.into_iter().filter(|standing| self.may_begin(*standing));
        let (_, standing) =
            may_begin.filter_map(|standing| Some((first(&standing)?, standing))).min_by_key(|at| at.0)?;
        let (_, waiter) = self.waiting[standing as usize].pop_front()?;
        Some((waiter, self.take(standing)))
    }

    /// The attempt in this slot has taken [`OLD_AFTER`].
    pub fn became_old(&mut self, slot: &mut HeldSlot) {
        if std::mem::replace(&mut slot.is_old, true) {
            return;
        }
        match slot.standing {
            Standing::Served => self.served -= 1,
            Standing::Newcomer => self.newcomers -= 1,
            Standing::Doubtful => self.second -= 1,
        }
        self.second += 1;
    }

    /// Gives the slot back.
    pub fn end(&mut self, slot: HeldSlot) {
        match slot {
            HeldSlot { standing: Standing::Served, is_old: false } => self.served -= 1,
            HeldSlot { standing: Standing::Newcomer, is_old: false } => self.newcomers -= 1,
            HeldSlot { standing: Standing::Doubtful, .. } | HeldSlot { is_old: true, .. } => self.second -= 1,
        }
    }

    /// Attempts in flight.
    pub fn in_flight(&self) -> usize {
        self.served + self.newcomers + self.second
    }

    fn may_begin(&self, standing: Standing) -> bool {
        let (all, first) = (self.concurrency, self.served + self.newcomers);
        self.in_flight() < 2 * all
            && match standing {
                Standing::Served => first < all || self.served < all / 4,
                Standing::Newcomer => {
                    first < all
                        && self.newcomers < all.saturating_sub(self.second).max(all / 8).max(1)
                        && self.newcomers + self.second < 2 * all - all / 2
                }
                Standing::Doubtful => self.second < all,
            }
    }

    fn take(&mut self, standing: Standing) -> HeldSlot {
        match standing {
            Standing::Served => self.served += 1,
            Standing::Newcomer => self.newcomers += 1,
            Standing::Doubtful => self.second += 1,
        }
        HeldSlot { standing, is_old: false }
    }
}
