//! The health of the destination, judged by the last verdict of each of the last trusted users.
//!
//! ```text
//!  verdict of a user                          counts as
//!  delivered                                  delivered
//!  failed, trusted                            failed
//!  failed, suspect, was served before         failed, if it is one of the first 3 failures in a row
//!  failed, suspect, never served              does not count
//! ```
//!
//! In a brownout each event is delivered sooner or later, so nearly every user is suspect at some time. What tells it from
//! many bad users is that it fails users again and again that were served in between. A bad user fails for ever, so it
//! counts three times at most.

use super::user_trust::{FailingUser, UserTrust};
use crate::core::Moment;
use std::time::Duration;

/// The number of users whose last verdict is remembered.
const REMEMBERED_USERS_MAX: usize = 20;
/// A verdict that is older does not count.
pub(super) const VERDICT_AGE_MAX: Duration = Duration::from_secs(60);
/// The failures in a row of a suspect that count, if it was served before. Then health is found to be bad if about two of
/// three attempts fail, and users whose events always fail do not count for long.
const COUNTED_FAILURES_MAX: u32 = 3;
/// With fewer users it cannot be decided whether the destination or the events are bad. As many in a row without a
/// delivery are an outage.
pub(super) const DECIDING_USERS_MIN: usize = 5;

/// What is known about a destination from the attempts of trusted users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Fewer than 5 users have a verdict of the last minute that counts.
    Unknown,
    /// At least half of these users were delivered.
    Good,
    /// Less than half were delivered.
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
    is: VerdictKind,
}

#[derive(Debug, Clone, Copy)]
enum VerdictKind {
    Delivered,
    Failed(FailingUser),
}

impl RecentVerdicts {
    /// The number of deliveries of one batch that are worth noting. More would only replace each other.
    pub(super) const BATCH_MAX: usize = REMEMBERED_USERS_MAX;

    pub(super) fn clear(&mut self) {
        self.verdicts.clear();
    }

    pub(super) fn delivered(&mut self, user: u64, now: Moment) {
        self.put(LastVerdict { user, at: now, is: VerdictKind::Delivered });
    }

    /// Notes that the user failed.
    pub(super) fn failed(&mut self, user: u64, failing: FailingUser, now: Moment, trust: &UserTrust) {
        let is = VerdictKind::Failed(failing);
        let is_suspect = trust.is_suspect_since(user, failing.since);
        if !is_suspect || (failing.was_served && failing.failures <= COUNTED_FAILURES_MAX) {
            self.put(LastVerdict { user, at: now, is });
        } else if let Some(verdict) = self.verdicts.iter_mut().find(|verdict| verdict.user == user) {
            // A suspect that fails keeps its place and its time, because suspects that fail again and again must not push
            // out the verdicts of trusted users.
            verdict.is = is;
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
        let (mut users, mut delivered) = (0, 0);
        let (mut trusted, mut one_of_the_last_delivered) = (0, false);
        for verdict in self.verdicts.iter().rev() {
            if now.saturating_sub(verdict.at) >= VERDICT_AGE_MAX {
                continue;
            }
            match verdict.is {
                VerdictKind::Delivered => {
                    delivered += 1;
                    one_of_the_last_delivered |= trusted < DECIDING_USERS_MIN;
                    trusted += 1;
                }
                VerdictKind::Failed(failing) if !trust.is_suspect_since(verdict.user, failing.since) => trusted += 1,
                VerdictKind::Failed(failing) if failing.was_served => {}
                VerdictKind::Failed(_) => continue,
            }
            users += 1;
        }
        if trusted >= DECIDING_USERS_MIN && !one_of_the_last_delivered {
            Health::Dead
        } else if users < DECIDING_USERS_MIN {
            Health::Unknown
        } else if delivered * 2 < users {
            Health::Bad
        } else {
            Health::Good
        }
    }

    /// The earliest failure among the last verdicts of trusted users, if it still counts.
    pub(super) fn failing_from(&self, now: Moment, trust: &UserTrust) -> Option<Moment> {
        let is_recent = |verdict: &&LastVerdict| now.saturating_sub(verdict.at) < VERDICT_AGE_MAX;
        self.failing(trust).filter(is_recent).map(|verdict| verdict.at).min()
    }

    /// Trusted users whose last verdict is a failure, however old it is.
    pub(super) fn failing_users(&self, trust: &UserTrust) -> usize {
        self.failing(trust).count()
    }

    fn failing(&self, trust: &UserTrust) -> impl Iterator<Item = &LastVerdict> {
        self.verdicts.iter().filter(|verdict| match verdict.is {
            VerdictKind::Failed(failing) => !trust.is_suspect_since(verdict.user, failing.since),
            VerdictKind::Delivered => false,
        })
    }
}
