//! Which users are suspect: their failures say something about their own events and nothing about the destination.

use super::ProbeRank;
use super::served_users::ServedUsers;
use crate::limits::FAILING_USERS_MAX;
use hashbrown::{HashMap, HashSet};
use std::collections::BTreeSet;

/// The users that fail, the users that were served, and the attempts that were delivered last.
///
/// This is enough to decide for every user whether it is *suspect*: whether it failed, and an attempt of another user
/// that began later was delivered after that.
#[derive(Debug, Default)]
pub(super) struct UserTrust {
    /// Each user that has failed and was not delivered since.
    failing: HashMap<u64, FailingUser>,
    /// The entries of `failing` as (since, user), so that the oldest one can be forgotten at the limit.
    by_since: BTreeSet<(u64, u64)>,
    /// The two delivered attempts of different users that were begun last. For any user, one of them is of another user.
    latest: [DeliveredAttempt; 2],
    served: ServedUsers,
    /// Users that had failed before this process began, and have not been attempted since: at most [`FAILING_USERS_MAX`].
    failed_before: HashSet<u64>,
    /// The number of outages so far.
    outages: u32,
}

/// A user that has failed and was not delivered since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FailingUser {
    /// Delivered attempts of other users that began later than this one make the user suspect.
    pub(super) since: u64,
    /// Whether `since` is the attempt that ended an outage, because of a [`pardon`](UserTrust::pardon).
    is_pardoned: bool,
    /// Whether the user was served before it failed.
    pub(super) was_served: bool,
    /// Whether the user was suspect when deliveries were [forgotten](UserTrust::forget_deliveries).
    was_suspect: bool,
    /// The number of failures since the last outage.
    pub(super) failures: u32,
    /// The number of outages at its last failure.
    outages: u32,
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
        latest_of_others(&self.latest, user)
    }

    pub(super) fn is_suspect(&self, user: u64) -> bool {
        self.failing.get(&user).is_some_and(|failing| self.is_suspect_since(user, failing.since))
    }

    /// Whether a user that fails since this attempt is suspect. Once true, this stays true until no user was delivered for
    /// so long that [deliveries are forgotten](Self::forget_deliveries).
    pub(super) fn is_suspect_since(&self, user: u64, since: u64) -> bool {
        self.latest_of_others(user) > since
    }

    /// No user was delivered for a while, so what was delivered before does not show any more that the destination is well.
    /// Every user is trusted again: otherwise a destination that goes down while most of its users are suspect would seem
    /// to be well.
    pub(super) fn forget_deliveries(&mut self) {
        let latest = std::mem::take(&mut self.latest);
        if latest[0].seq > 0 {
            for (user, failing) in &mut self.failing {
                failing.was_suspect |= latest_of_others(&latest, *user) > failing.since;
                failing.is_pardoned = false;
            }
        }
    }

    pub(super) fn rank(&self, user: u64) -> ProbeRank {
        if let Some(failing) = self.failing.get(&user) {
            let is_own = failing.was_suspect || self.is_suspect_since(user, failing.since);
            if failing.was_served && !is_own { ProbeRank::Interrupted } else { ProbeRank::Failed }
        } else if self.failed_before.contains(&user) {
            ProbeRank::Failed
        } else if self.served.contains(user) {
            ProbeRank::Served
        } else {
            ProbeRank::Newcomer
        }
    }

    /// An outage has ended. The failures during it say nothing about the time after it.
    pub(super) fn outage_ended(&mut self) {
        self.outages = self.outages.wrapping_add(1);
    }

    pub(super) fn delivered(&mut self, user: u64, seq: u64) {
        if !self.failing.is_empty() {
            self.forget(user);
        }
        if !self.failed_before.is_empty() {
            self.failed_before.remove(&user);
        }
        self.served.insert(user);
        let [first, second] = &mut self.latest;
        if user == first.user {
            first.seq = first.seq.max(seq);
        } else if seq > first.seq {
            *second = std::mem::replace(first, DeliveredAttempt { user, seq });
        } else if seq > second.seq {
            *second = DeliveredAttempt { user, seq };
        }
    }

    /// Notes the failure of this attempt. Returns since when the user fails. `has_hung`: it took so long that deliveries
    /// before its end show something about the user.
    pub(super) fn failed(&mut self, user: u64, seq: u64, has_hung: bool) -> FailingUser {
        let outages = self.outages;
        if let Some(failing) = self.failing.get_mut(&user) {
            let failures = if failing.outages == outages { failing.failures } else { 0 };
            (failing.failures, failing.outages) = (failures.saturating_add(1), outages);
            return *failing;
        }
        self.failed_before.remove(&user);
        let was_served = self.served.contains(user);
        let since = if has_hung { seq } else { seq.max(self.latest_of_others(user)) };
        self.add(user, FailingUser { since, is_pardoned: false, was_served, was_suspect: false, failures: 1, outages })
    }

    /// Notes that the user had failed before this process began.
    pub(super) fn had_failed(&mut self, user: u64) {
        if !self.failing.contains_key(&user) && self.failing.len() + self.failed_before.len() < FAILING_USERS_MAX {
            self.failed_before.insert(user);
        }
    }

    fn add(&mut self, user: u64, failing: FailingUser) -> FailingUser {
        if self.failing.len() == FAILING_USERS_MAX
            && let Some((_, oldest)) = self.by_since.pop_first()
        {
            self.failing.remove(&oldest);
        }
        self.failing.insert(user, failing);
        self.by_since.insert((failing.since, user));
        failing
    }

    /// Gives every failing user that is not suspect one more chance, before the delivery of the probe `seq` ends an outage.
    ///
    /// That delivery alone shows nothing about these users, because they failed during the outage. So their failures now
    /// begin with the probe. The next delivery makes them suspect, which is why they get only one chance.
    ///
    /// The cost depends on the number of users that are not suspect. The user of the latest delivery is looked up, because
    /// that delivery does not make it suspect.
    pub(super) fn pardon(&mut self, seq: u64) {
        let [latest, second] = self.latest;
        let own = self.failing.get(&latest.user).map(|failing| failing.since);
        let own = own.filter(|since| (second.seq..latest.seq).contains(since));
        let own = own.map(|since| (since, latest.user));
        let after = self.by_since.split_off(&(latest.seq, 0));
        if let Some(own) = &own {
            self.by_since.remove(own);
        }
        for (since, user) in after.into_iter().chain(own) {
            let failing = self.failing.get_mut(&user).expect("both have the same users");
            let since = if failing.is_pardoned { since } else { seq };
            (failing.since, failing.is_pardoned) = (since, true);
            self.by_since.insert((since, user));
        }
    }

    fn forget(&mut self, user: u64) {
        if let Some(failing) = self.failing.remove(&user) {
            self.by_since.remove(&(failing.since, user));
        }
    }
}

fn latest_of_others(latest: &[DeliveredAttempt; 2], user: u64) -> u64 {
    let [first, second] = latest;
    if first.user == user { second.seq } else { first.seq }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_the_limit_the_user_that_failed_first_is_forgotten_and_trusted_again() {
        let mut trust = UserTrust::default();
        let users = FAILING_USERS_MAX as u64 + 10;
        for user in 0..users {
            trust.failed(user, user + 1, false);
        }
        trust.delivered(u64::MAX, users + 1);
        assert_eq!((trust.failing.len(), trust.by_since.len()), (FAILING_USERS_MAX, FAILING_USERS_MAX));
        assert!(!trust.is_suspect(9) && trust.is_suspect(10) && trust.is_suspect(users - 1));
        for user in 0..users {
            trust.delivered(user, users + 2 + user);
        }
        assert_eq!((trust.failing.len(), trust.by_since.len()), (0, 0));
    }
}
