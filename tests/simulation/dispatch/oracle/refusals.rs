//! The rule for refused events: while the destination plainly serves others, a refused event must be given up at once.
//!
//! The oracle only judges cases without doubt: a life of dispatch in which a single user failed, and only by refusals.
//! Assume that an event of that user was refused twice, and that in between an attempt of another user was delivered
//! which began later than the first refusal's attempt, and later than all that were delivered before that refusal. Then the
//! event must not be tried again.

use super::{Life, User};
use eventd::core::verdict::Verdict;
use std::collections::HashMap;
use std::time::Duration;

/// A partition and a user.
type PartitionUser = (u32, User);

/// What each life saw.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The only user that failed, and only by refusals. `None` if others failed too, or in another way.
    only: HashMap<Life, Option<PartitionUser>>,
    /// For each user, the delivered attempt that began last, and when it ended.
    delivered: HashMap<Life, HashMap<PartitionUser, (u64, Duration)>>,
    /// For each ownership, the first refusal of each event of that user.
    first: HashMap<(u64, i64), FirstRefusal>,
}

#[derive(Debug, Clone, Copy)]
struct FirstRefusal {
    attempt: u64,
    /// Deliveries to attempts that began later show that the refusal is the event's own.
    shown_since: u64,
}

impl Refusals {
    pub(super) fn delivered(&mut self, life: Life, user: PartitionUser, attempt: u64, now: Duration) {
        let latest = self.delivered.entry(life).or_default().entry(user).or_insert((attempt, now));
        if attempt > latest.0 {
            *latest = (attempt, now);
        }
    }

    /// From now on it is not certain what dispatch takes a refusal for.
    pub(super) fn doubt(&mut self, life: Life) {
        self.only.insert(life, None);
    }

    /// Whether this event must not be tried again.
    pub(super) fn failed(
        &mut self,
        life: Life,
        user: &PartitionUser,
        (ownership, offset, attempt): (u64, i64, u64),
        verdict: Verdict,
        now: Duration,
    ) -> bool {
        let only = self.only.entry(life).or_insert_with(|| Some(user.clone()));
        if verdict != Verdict::Refused || only.as_ref() != Some(user) {
            *only = None;
            return false;
        }
        let others = self.delivered.get(&life).into_iter().flatten().filter(|(other, _)| *other != user);
        let delivered_by_now = others.clone().map(|(_, (begun, _))| *begun).max().unwrap_or(0);
        let refusal = FirstRefusal { attempt, shown_since: attempt.max(delivered_by_now) };
        let first = *self.first.entry((ownership, offset)).or_insert(refusal);
        // Events at the same moment may be seen in any order.
        first.attempt != attempt && others.into_iter().any(|(_, (begun, at))| *begun > first.shown_since && *at < now)
    }
}
