//! Whose failures say something of the destination, and whose only of themselves.

use crate::limits::FAILING_USERS_MAX;
use std::collections::{BTreeSet, HashMap};

/// Who failed, and which attempts were delivered last: enough to say of every user whether it is *suspect*, that is,
/// whether it failed while an attempt of another user that was begun later was delivered.
#[derive(Debug, Default)]
pub(super) struct UserTrust {
    /// Users that failed and were not delivered since → the first attempt that failed; for a pardoned user, the one
    /// that ended the outage.
    failing: HashMap<u64, u64>,
    /// The same as (attempt, user): who is forgotten first.
    by_attempt: BTreeSet<(u64, u64)>,
    /// The two latest-begun delivered attempts of distinct users: for any user, one of them is of another.
    latest: [DeliveredAttempt; 2],
}

/// A delivered attempt. Attempts are counted from 1, so that 0 is none.
#[derive(Debug, Default, Clone, Copy)]
struct DeliveredAttempt {
    user: u64,
    seq: u64,
}

impl UserTrust {
    pub(super) fn anybody_fails(&self) -> bool {
        !self.failing.is_empty()
    }

    /// The latest-begun delivered attempt of a user that is not this one; 0 if there is none.
    pub(super) fn latest_of_others(&self, user: u64) -> u64 {
        if self.latest[0].user == user { self.latest[1].seq } else { self.latest[0].seq }
    }

    pub(super) fn is_suspect(&self, user: u64) -> bool {
        self.failing.get(&user).is_some_and(|since| self.is_suspect_since(user, *since))
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
            *second = std::mem::replace(first, DeliveredAttempt { user, seq });
        } else if seq > second.seq {
            *second = DeliveredAttempt { user, seq };
        }
    }

    /// Notes the failure and answers with the attempt since which the user fails.
    pub(super) fn failed(&mut self, user: u64, seq: u64) -> u64 {
        if let Some(since) = self.failing.get(&user) {
            return *since;
        }
        if self.failing.len() == FAILING_USERS_MAX
            && let Some((_, oldest)) = self.by_attempt.pop_first()
        {
            self.failing.remove(&oldest);
        }
        self.failing.insert(user, seq);
        self.by_attempt.insert((seq, user));
        seq
    }

    /// An outage is about to end with the delivery of the probe `seq`: those who fail and are not suspect are given one
    /// more chance, since that delivery alone proves nothing against them. It is one chance: they fail since that
    /// attempt now, and the next delivery makes them suspect. Costs as much as they are: who failed before the latest
    /// delivery is suspect, but for the user of that one.
    pub(super) fn pardon(&mut self, seq: u64) {
        let [latest, second] = self.latest;
        let own = self.failing.get(&latest.user).filter(|since| (second.seq..=latest.seq).contains(*since));
        let own = own.map(|since| (*since, latest.user));
        let after = self.by_attempt.split_off(&(latest.seq + 1, 0));
        if let Some(own) = &own {
            self.by_attempt.remove(own);
        }
        for (_, user) in after.into_iter().chain(own) {
            self.failing.insert(user, seq);
            self.by_attempt.insert((seq, user));
        }
    }

    fn forget(&mut self, user: u64) {
        if let Some(since) = self.failing.remove(&user) {
            self.by_attempt.remove(&(since, user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_that_failed_first_are_forgotten_at_the_limit() {
        let mut trust = UserTrust::default();
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
