//! The health of the destination, judged by the last verdict of each of the last trusted users.

use super::user_trust::UserTrust;
use crate::core::Moment;
use std::time::Duration;

/// The number of users whose last verdict is remembered.
const REMEMBERED_USERS_MAX: usize = 20;
/// A verdict that is older does not count.
const VERDICT_AGE_MAX: Duration = Duration::from_secs(60);
/// With fewer users it cannot be decided whether the destination or the events are bad. As many in a row without a
/// delivery are an outage.
pub(super) const DECIDING_USERS_MIN: usize = 5;

/// What is known about a destination from the attempts of trusted users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Fewer than 5 trusted users had a verdict in the last minute.
    Unknown,
    /// At least half of the trusted users were delivered.
    Good,
    /// Less than half of the trusted users were delivered.
    Bad,
    /// None of the last 5 trusted users was delivered.
    Dead,
}

/// The last verdict of each of the last users, from the oldest to the latest.
#[derive(Debug, Default)]
pub(super) struct RecentVerdicts {
    verdicts: Vec<LastVerdict>,
}

#[derive(Debug)]
struct LastVerdict {
    user: u64,
    at: Moment,
    /// The attempt since which the user fails. `None` means that the user was delivered.
    failing_since: Option<u64>,
}

impl RecentVerdicts {
    /// The number of deliveries of one batch that are worth noting. More would only replace each other.
    pub(super) const BATCH_MAX: usize = REMEMBERED_USERS_MAX;

    pub(super) fn clear(&mut self) {
        self.verdicts.clear();
    }

    pub(super) fn delivered(&mut self, user: u64, now: Moment) {
        self.put(LastVerdict { user, at: now, failing_since: None });
    }

    /// Notes that the user failed. Its failures began with the attempt `since`.
    pub(super) fn failed(&mut self, user: u64, since: u64, now: Moment, trust: &UserTrust) {
        if !trust.is_suspect_since(user, since) {
            self.put(LastVerdict { user, at: now, failing_since: Some(since) });
        } else if let Some(verdict) = self.verdicts.iter_mut().find(|verdict| verdict.user == user) {
            // The verdict of a suspect does not count. Its place stays the same, because suspects that fail again and
            // again must not push out the verdicts of trusted users.
            verdict.failing_since = Some(since);
        }
    }

    fn put(&mut self, verdict: LastVerdict) {
        if let Some(latest) = self.verdicts.last_mut()
            && latest.user == verdict.user
        {
            *latest = verdict;
            return;
        }
        if let Some(place) = self.verdicts.iter().position(|old| old.user == verdict.user) {
            self.verdicts.remove(place);
        } else if self.verdicts.len() == REMEMBERED_USERS_MAX {
            self.verdicts.remove(0);
        }
        self.verdicts.push(verdict);
    }

    pub(super) fn health(&self, now: Moment, trust: &UserTrust) -> Health {
        let (mut users, mut delivered, mut one_of_the_last_delivered) = (0, 0, false);
        for verdict in self.verdicts.iter().rev() {
            let is_suspect = verdict.failing_since.is_some_and(|since| trust.is_suspect_since(verdict.user, since));
            if is_suspect || now.saturating_sub(verdict.at) >= VERDICT_AGE_MAX {
                continue;
            }
            users += 1;
            if verdict.failing_since.is_none() {
                delivered += 1;
                one_of_the_last_delivered |= users <= DECIDING_USERS_MIN;
            }
        }
        match users {
            0..DECIDING_USERS_MIN => Health::Unknown,
            _ if !one_of_the_last_delivered => Health::Dead,
            _ if delivered * 2 < users => Health::Bad,
            _ => Health::Good,
        }
    }

    /// The earliest failure among the last verdicts of trusted users, if it still counts.
    pub(super) fn failing_from(&self, now: Moment, trust: &UserTrust) -> Option<Moment> {
        let is_failing = |verdict: &&LastVerdict| {
            verdict.failing_since.is_some_and(|since| !trust.is_suspect_since(verdict.user, since))
                && now.saturating_sub(verdict.at) < VERDICT_AGE_MAX
        };
        self.verdicts.iter().filter(is_failing).map(|verdict| verdict.at).min()
    }

    /// Trusted users whose last verdict is a failure, however old it is.
    pub(super) fn failing_users(&self, trust: &UserTrust) -> usize {
        let is_failing = |verdict: &&LastVerdict| {
            verdict.failing_since.is_some_and(|since| !trust.is_suspect_since(verdict.user, since))
        };
        self.verdicts.iter().filter(is_failing).count()
    }
}
