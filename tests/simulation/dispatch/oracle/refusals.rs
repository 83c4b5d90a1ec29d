//! When a refused event has to be given up at once: while the destination plainly serves others.
//!
//! The oracle judges only what nobody can doubt: a life of dispatch in which a single user failed, and that user only by
//! refusals. An event of that user that was refused, and again after an attempt of another user that was begun later
//! than the first of these attempts was delivered, must not be tried once more.

use super::{Life, User};
use eventd::core::verdict::Verdict;
use std::collections::HashMap;
use std::time::Duration;

/// A user of a partition.
type Who = (u32, User);

/// What each life saw.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The only user that failed, by refusals only. `None`: others failed too, or otherwise.
    only: HashMap<Life, Option<Who>>,
    /// The latest-begun attempt of each user that was delivered, and when.
    delivered: HashMap<Life, HashMap<Who, (u64, Duration)>>,
    /// The first attempt in which each event of that user was refused, under each ownership.
    first: HashMap<(u64, i64), u64>,
}

impl Refusals {
    pub(super) fn delivered(&mut self, life: Life, who: Who, attempt: u64, now: Duration) {
        let latest = self.delivered.entry(life).or_default().entry(who).or_insert((attempt, now));
        if attempt > latest.0 {
            *latest = (attempt, now);
        }
    }

    /// Nobody knows what dispatch takes this for.
    pub(super) fn doubt(&mut self, life: Life) {
        self.only.insert(life, None);
    }

    /// Whether this event must not be tried again.
    pub(super) fn failed(
        &mut self,
        life: Life,
        who: &Who,
        (ownership, offset, attempt): (u64, i64, u64),
        verdict: Verdict,
        now: Duration,
    ) -> bool {
        let only = self.only.entry(life).or_insert_with(|| Some(who.clone()));
        if verdict != Verdict::Refused || only.as_ref() != Some(who) {
            *only = None;
            return false;
        }
        let first = *self.first.entry((ownership, offset)).or_insert(attempt);
        let others = self.delivered.get(&life).into_iter().flatten().filter(|(other, _)| *other != who);
        // What ends at one moment is seen in any order.
        first != attempt && others.into_iter().any(|(_, (begun, at))| *begun > first && *at < now)
    }
}
