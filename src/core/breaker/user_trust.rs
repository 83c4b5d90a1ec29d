//! Which users are suspect: their failures say something about their own events and nothing about the destination.

use crate::limits::FAILING_USERS_MAX;
use std::collections::{BTreeSet, HashMap};

/// The users that fail, and the attempts that were delivered last.
///
/// This is enough to decide for every user whether it is *suspect*: whether it failed, and an attempt of another user
/// that was begun later was delivered.
#[derive(Debug, Default)]
pub(super) struct UserTrust {
    /// Each user that has failed and was not delivered since, with the first attempt that failed. After
    /// [`pardon`](Self::pardon) it is the attempt that ended the outage.
    failing: HashMap<u64, u64>,
    /// The entries of `failing` as (attempt, user), so that the oldest one can be forgotten at the limit.
    by_attempt: BTreeSet<(u64, u64)>,
    /// The two delivered attempts of different users that were begun last. For any user, one of them is of another user.
    latest: [DeliveredAttempt; 2],
}

/// A delivered attempt. Attempts are numbered from 1, so that 0 means none.
#[derive(Debug, Default, Clone, Copy)]
struct DeliveredAttempt {
    user: u64,
    seq: u64,
}

impl UserTrust {
    pub(super) fn has_failing_users(&self) -> bool {
        !self.failing.is_empty()
    }

    /// The delivered attempt of any other user that was begun last; 0 if there is none.
    pub(super) fn latest_of_others(&self, user: u64) -> u64 {
        if self.latest[0].user == user { self.latest[1].seq } else { self.latest[0].seq }
    }

    pub(super) fn is_suspect(&self, user: u64) -> bool {
        self.failing.get(&user).is_some_and(|since| self.is_suspect_since(user, *since))
    }

    /// Whether a user that fails since this attempt is suspect. Once true, this stays true.
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

    /// Notes the failure. Returns the attempt since which the user fails.
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

    /// Gives every failing user that is not suspect one more chance, before the delivery of the probe `seq` ends an outage.
    ///
    /// That delivery alone shows nothing about these users, because they failed during the outage. So their failures now
    /// begin with the probe. The next delivery makes them suspect, which is why they get only one chance.
    ///
    /// The cost depends on the number of these users only. Every user that failed before the latest delivery is suspect
    /// already, except for the user of that delivery itself.
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
    fn at_the_limit_the_user_that_failed_first_is_forgotten_and_trusted_again() {
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
