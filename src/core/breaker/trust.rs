//! Whose failures say something of the destination, and whose only of themselves.

use crate::limits::FAILING_USERS_MAX;
use std::collections::{BTreeSet, HashMap};

/// Who failed, and which attempts were delivered last: enough to say of every user whether it is *suspect*, that is,
/// whether it failed while an attempt of another user that was begun later was delivered.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// Users that failed and were not delivered since.
    failing: HashMap<u64, Failing>,
    /// The same as (`Failing::since`, user): who is forgotten first.
    by_attempt: BTreeSet<(u64, u64)>,
    /// The two latest-begun delivered attempts of distinct users: for any user, one of them is of another.
    latest: [Delivered; 2],
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    /// The first attempt that failed; for a pardoned user, the one that ended the outage.
    since: u64,
    pardoned: bool,
}

/// A delivered attempt. Attempts are counted from 1, so that 0 is none.
#[derive(Debug, Default, Clone, Copy)]
struct Delivered {
    user: u64,
    seq: u64,
}

impl Trust {
    /// The latest-begun delivered attempt of a user that is not this one; 0 if there is none.
    pub(super) fn latest_of_others(&self, user: u64) -> u64 {
        if self.latest[0].user == user { self.latest[1].seq } else { self.latest[0].seq }
    }

    pub(super) fn is_suspect(&self, user: u64) -> bool {
        self.failing.get(&user).is_some_and(|failing| self.is_suspect_since(user, failing.since))
    }

    /// Whether failing since this attempt makes the user suspect. Once true, it stays so.
    pub(super) fn is_suspect_since(&self, user: u64, since: u64) -> bool {
        self.latest_of_others(user) > since
    }

    pub(super) fn delivered(&mut self, user: u64, seq: u64) {
        if !self.failing.is_empty() {
            self.forget(user);
        }
        let [first, second] = &mut self.latest;
        if user == first.user {
            first.seq = first.seq.max(seq);
        } else if seq > first.seq {
            *second = std::mem::replace(first, Delivered { user, seq });
        } else if seq > second.seq {
            *second = Delivered { user, seq };
        }
    }

    /// Notes the failure and answers with the attempt since which the user fails.
    pub(super) fn failed(&mut self, user: u64, seq: u64) -> u64 {
        if let Some(failing) = self.failing.get(&user) {
            return failing.since;
        }
        if self.failing.len() == FAILING_USERS_MAX
            && let Some((_, oldest)) = self.by_attempt.pop_first()
        {
            self.failing.remove(&oldest);
        }
        self.failing.insert(user, Failing { since: seq, pardoned: false });
        self.by_attempt.insert((seq, user));
        seq
    }

    /// An outage is about to end with the delivery of the probe `seq`: those who failed in it and are not suspect are
    /// given one more chance, since that delivery alone proves nothing against them. Costs as much as they are: who
    /// failed before the latest delivery is suspect, but for the user of that one.
    pub(super) fn pardon(&mut self, seq: u64) {
        let [latest, second] = self.latest;
        let after = self.by_attempt.range((latest.seq + 1, 0)..).map(|(_, user)| *user);
        let own = self.failing.get(&latest.user).filter(|own| (second.seq..=latest.seq).contains(&own.since));
        let users: Vec<u64> = after.chain(own.map(|_| latest.user)).collect();
        for user in users {
            if let Some(failing) = self.failing.get_mut(&user)
                && !failing.pardoned
            {
                self.by_attempt.remove(&(failing.since, user));
                *failing = Failing { since: seq, pardoned: true };
                self.by_attempt.insert((seq, user));
            }
        }
    }

    fn forget(&mut self, user: u64) {
        if let Some(failing) = self.failing.remove(&user) {
            self.by_attempt.remove(&(failing.since, user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_that_failed_first_are_forgotten_at_the_limit() {
        let mut trust = Trust::default();
        let users = FAILING_USERS_MAX as u64 + 10;
        for user in 0..users {
            trust.failed(user, user + 1);
        }
        trust.delivered(u64::MAX, users + 1);
        assert_eq!((trust.failing.len(), trust.by_attempt.len()), (FAILING_USERS_MAX, FAILING_USERS_MAX));
        assert!(!trust.is_suspect(9) && trust.is_suspect(10) && trust.is_suspect(users - 1));
        for user in 0..users {
            trust.delivered(user, users + 2 + user);
        }
        assert_eq!((trust.failing.len(), trust.by_attempt.len()), (0, 0));
    }
}
