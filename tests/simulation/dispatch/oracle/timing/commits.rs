//! The commits of one owner: what it knows to be settled must be stored soon, and a stored state must be renewed.

use crate::dispatch::oracle::{User, claims_event};
use eventd::core::progress::PartitionState;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long after `--commit-interval` progress must be on its way to the group. Large states are stored once a second.
pub(super) const COMMIT_WITHIN: Duration = Duration::from_millis(1_300);

/// How long a commit may be the last one.
const COMMIT_AGE_MAX: Duration = Duration::from_secs(3_660);

#[derive(Debug, Default)]
pub(super) struct Commits {
    pub(super) is_in_flight: bool,
    pub(super) ended_at: Duration,
    /// What the owner knows to be settled and is not stored, with the time since when.
    unstored: BTreeMap<i64, (User, Duration)>,
}

impl Commits {
    pub(super) fn settled(&mut self, user: &User, offset: i64, now: Duration) {
        self.unstored.insert(offset, (user.clone(), now));
    }

    pub(super) fn stored(&mut self, state: &PartitionState) {
        self.unstored.retain(|offset, (user, _)| !claims_event(state, user.as_deref(), *offset));
    }

    pub(super) fn look(&self, open_since: Duration, interval: Duration, now: Duration) -> Option<String> {
        if self.is_in_flight {
            return None;
        }
        let oldest = self.unstored.iter().min_by_key(|(_, (_, at))| *at);
        if let Some((offset, (_, at))) = oldest
            && now > (*at).max(self.ended_at).max(open_since) + interval + COMMIT_WITHIN
        {
            return Some(format!("{offset} is settled since {at:?}, and no commit stores it at {now:?}"));
        }
        let is_old = now > self.ended_at.max(open_since) + COMMIT_AGE_MAX + interval;
        is_old.then(|| format!("the last commit was at {:?}, so the group may forget it", self.ended_at))
    }
}
