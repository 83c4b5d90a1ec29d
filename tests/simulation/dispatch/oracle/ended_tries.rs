//! What follows when the tries of an event have ended, if it is not a dead letter: `--on-exhausted drop` and `hold`.
//!
//! Both leave no record that the oracle could see. So it notes at each failure whether the tries of the event may have
//! ended, by the rules for dead letters. Later it looks at what the owner did:
//!
//! | policy | the tries must have ended before the owner … |
//! |---|---|
//! | drop | attempts or gives up a later event of the user, or commits the event as settled |
//! | hold | commits that the user is held, although no operator holds it |
//!
//! If the tries have certainly ended, the event is not attempted again, and a commit says that the user is held.

use super::{Attempt, Entry, Life, Oracle, Ownership, Rules, User};
use crate::dispatch::outage_rules::TryLimits;
use eventd::core::progress::PartitionState;
use eventd::core::tries::OnExhausted;
use std::time::Duration;

/// How far the time that an owner counts may be above the true one, because stored times are whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);

/// Whether the tries of a user's first event have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TriesEnded {
    pub(crate) possibly: bool,
    pub(crate) certainly: bool,
}

impl Oracle {
    /// An attempt of this event failed. Notes whether its tries may have ended.
    pub(super) fn look_at_tries(&mut self, attempt: &Attempt, offset: i64, now: Duration) {
        if self.rules.on_exhausted == OnExhausted::DeadLetter {
            return;
        }
        let entry = &self.partitions[attempt.partition as usize].entries[&offset];
        let owned = self.owned.get_mut(&(attempt.life, attempt.partition));
        let Some(owned) = owned.filter(|owned| owned.number == attempt.ownership) else { return };
        let limits = owned.try_limits(entry, offset, &self.rules);
        let failures = owned.failures.get(&offset);
        match failures.is_some_and(|failures| failures.may_end_tries(attempt.life, limits, &self.health)) {
            true => _ = owned.may_have_ended.insert(offset, now),
            false => _ = owned.may_have_ended.remove(&offset),
        }
    }

    /// The owner attempts or gives up an event of this user at `next`. Those before it whose tries may have ended were dropped.
    pub(super) fn has_passed(&mut self, life: Life, partition: u32, user: &User, next: i64, now: Duration) {
        let entries = &self.partitions[partition as usize].entries;
        let is_passed = |offset: &i64| *offset < next && entries[offset].user == *user;
        let Some(owned) = self.owned.get(&(life, partition)) else { return };
        let passed: Vec<i64> = owned.may_have_ended.keys().copied().filter(is_passed).collect();
        self.were_dropped(life, partition, passed, now);
    }

    /// The owner commits this state. Events that it counts as settled, and whose tries may have ended, were dropped.
    pub(super) fn has_committed_dropped(&mut self, life: Life, partition: u32, state: &PartitionState, now: Duration) {
        let part = &self.partitions[partition as usize];
        let Some(owned) = self.owned.get(&(life, partition)) else { return };
        let claimed = owned.may_have_ended.keys().copied().filter(|offset| part.claims(state, *offset)).collect();
        self.were_dropped(life, partition, claimed, now);
    }

    /// The events at these offsets were dropped if the owner has not settled them otherwise.
    fn were_dropped(&mut self, life: Life, partition: u32, mut offsets: Vec<i64>, now: Duration) {
        if self.rules.on_exhausted != OnExhausted::Drop {
            return;
        }
        offsets.sort_unstable();
        for offset in offsets {
            let Some(owned) = self.owned.get_mut(&(life, partition)) else { return };
            let Some(at) = owned.may_have_ended.remove(&offset).filter(|_| !owned.done.contains_key(&offset)) else {
                continue;
            };
            let entry = self.partitions[partition as usize].entries.get_mut(&offset).expect("it was attempted");
            entry.dead = true;
            // Retention may have removed it before its owner dropped it, so it is unknown whether it was dropped.
            if entry.trimmed {
                continue;
            }
            owned.done.insert(offset, at);
            owned.gave_up.insert(offset);
            let user = entry.user.clone();
            self.counts.dropped += 1;
            self.settle(partition, offset, at);
            if let Some(timing) = &mut self.timing {
                timing.dropped((life, partition), &user, offset, at, now);
            }
        }
    }

    /// Whether the tries of this user's first event ended before a commit of its owner began.
    pub(crate) fn tries_ended(&self, life: Life, partition: u32, user: &User, began: Duration) -> TriesEnded {
        if self.rules.on_exhausted != OnExhausted::Hold {
            return TriesEnded::default();
        }
        let entries = &self.partitions[partition as usize].entries;
        let Some(owned) = self.owned.get(&(life, partition)) else { return TriesEnded::default() };
        // If an operator gives up the event that held the user, the user stays held.
        let is_open = |offset: &&i64| !owned.done.contains_key(*offset) || owned.gave_up.contains(*offset);
        let mut ended = owned.may_have_ended.keys().filter(is_open);
        let possibly = ended.any(|offset| entries[offset].user == *user);
        let timing = self.timing.as_ref();
        let certainly = timing.is_some_and(|timing| timing.tries_have_ended(life, partition, user, began));
        TriesEnded { possibly, certainly }
    }

    /// Whether an event of this user is not settled, or not committed.
    pub(crate) fn has_open_event(&self, partition: u32, user: &User) -> bool {
        let part = &self.partitions[partition as usize];
        let is_open = |offset: &i64| {
            let claimed = || part.committed.as_ref().is_some_and(|state| part.claims(state, *offset));
            let entry = &part.entries[offset];
            entry.settled.is_none() || (!entry.trimmed && !claimed())
        };
        part.users.get(user).is_some_and(|(offsets, _)| offsets.iter().any(is_open))
    }
}

impl Ownership {
    /// What may end the tries of this event after its last failure that the owner saw.
    pub(super) fn try_limits(&self, entry: &Entry, offset: i64, rules: &Rules) -> TryLimits {
        let stored = self.stored_failure(entry.user.as_deref(), offset);
        let attempts = rules.attempts.saturating_sub(stored.map_or(0, |stored| stored.tries));
        let age = self.attempted.get(&offset).map(|attempted| {
            let (last, first) = attempted.last_and_first();
            // The owner continues the account of earlier ones.
            let first = if stored.is_some() { entry.first_failed.unwrap_or(first) } else { first };
            last.saturating_sub(first)
        });
        let is_too_old = rules.give_up_after.is_some_and(|limit| age.is_some_and(|age| age + ROUNDING >= limit));
        TryLimits { attempts, is_too_old }
    }
}
