//! How the destination treats the users that are trusted: the last verdict of each of the last ones.

use super::user_trust::UserTrust;
use crate::core::Moment;
use std::time::Duration;

/// Of how many users the last verdict is looked at.
const USERS: usize = 20;
/// How old it may be.
const MEMORY: Duration = Duration::from_secs(60);
/// With fewer users nobody can tell a bad destination from bad events; and as many in a row without a delivery are an
/// outage.
pub(super) const USERS_TO_TELL: usize = 5;

/// What is known of a destination that is attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Fewer than 5 trusted users in the last minute.
    Unknown,
    /// At least half of the trusted users were delivered.
    Good,
    /// Less than half were delivered.
    Bad,
    /// None of the last 5 was delivered.
    Dead,
}

/// The last users with a verdict that was given while they were trusted, the latest last.
#[derive(Debug, Default)]
pub(super) struct RecentVerdicts {
    entries: Vec<LastVerdict>,
}

#[derive(Debug)]
struct LastVerdict {
    user: u64,
    at: Moment,
    /// Since which attempt the user fails; `None`: it was delivered.
    failing_since: Option<u64>,
}

impl RecentVerdicts {
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(super) fn delivered(&mut self, user: u64, now: Moment) {
        self.put(LastVerdict { user, at: now, failing_since: None });
    }

    /// The user failed, and does so since the attempt `since`.
    pub(super) fn failed(&mut self, user: u64, since: u64, now: Moment, trust: &UserTrust) {
        if !trust.is_suspect_since(user, since) {
            self.put(LastVerdict { user, at: now, failing_since: Some(since) });
        } else if let Some(entry) = self.entries.iter_mut().find(|entry| entry.user == user) {
            // Its word counts no more. It keeps its place: suspects that fail again and again push nobody out.
            entry.failing_since = Some(since);
        }
    }

    fn put(&mut self, entry: LastVerdict) {
        if let Some(last) = self.entries.last_mut()
            && last.user == entry.user
        {
            *last = entry;
            return;
        }
        if let Some(place) = self.entries.iter().position(|old| old.user == entry.user) {
            self.entries.remove(place);
        } else if self.entries.len() == USERS {
            self.entries.remove(0);
        }
        self.entries.push(entry);
    }

    pub(super) fn health(&self, now: Moment, trust: &UserTrust) -> Health {
        let (mut users, mut delivered, mut served) = (0, 0, false);
        for entry in self.entries.iter().rev() {
            let suspect = entry.failing_since.is_some_and(|since| trust.is_suspect_since(entry.user, since));
            if suspect || now.saturating_sub(entry.at) >= MEMORY {
                continue;
            }
            users += 1;
            if entry.failing_since.is_none() {
                delivered += 1;
                served |= users <= USERS_TO_TELL;
            }
        }
        match users {
            0..USERS_TO_TELL => Health::Unknown,
            _ if !served => Health::Dead,
            _ if delivered * 2 < users => Health::Bad,
            _ => Health::Good,
        }
    }

    /// Trusted users whose last word is a failure, however old it is.
    pub(super) fn users_failing(&self, trust: &UserTrust) -> usize {
        let failing =
            |entry: &&LastVerdict| entry.failing_since.is_some_and(|since| !trust.is_suspect_since(entry.user, since));
        self.entries.iter().filter(failing).count()
    }

    /// How many users of a batch of deliveries are worth noting: more would only push each other out.
    pub(super) const NOTED_MAX: usize = USERS;
}
