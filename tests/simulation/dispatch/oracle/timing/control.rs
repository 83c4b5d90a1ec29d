//! What operators have commanded in one partition, as far as it keeps attempts from starting.
//!
//! An owner applies a command at a moment that the oracle does not see. So from the command until the commit that covers
//! it, nothing is judged that depends on it. From that commit on it is known what holds.

use super::queue::{Queue, QueueState};
use crate::dispatch::oracle::User;
use eventd::core::control::UserAction;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// How soon after `--commit-interval` a command is committed if every call is answered quickly: an owner looks once a second,
/// and commits within [`COMMIT_WITHIN`](super::commits::COMMIT_WITHIN).
const COMMAND_WITHIN: Duration = Duration::from_millis(1_200);

/// How long a command to give up events, or to hold a user in a pause, waits until these are read, and those after it wait,
/// too. A full window may stop the reading meanwhile.
const READING_WAIT_MAX: Duration = Duration::from_secs(60);

/// The commands of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ControlView {
    /// When the oldest command was given that no commit covers.
    pub(crate) pending_since: Option<Duration>,
    /// Among those that no commit covers is one that waits until the events are read which it is about.
    pub(crate) waits_for_reading: bool,
    pub(crate) is_paused: bool,
    /// Events an hour, if the rate is limited.
    pub(crate) rate_per_hour: Option<u64>,
    pub(crate) held: BTreeSet<User>,
    /// The users of which operators gave up events, and the offset below which these are.
    pub(crate) given_up_below: BTreeMap<User, i64>,
}

/// What is known of one partition, and since when.
#[derive(Debug, Default)]
pub(super) struct Controlled {
    view: ControlView,
    since: Duration,
    /// The users that were held before the last commit.
    held_before: BTreeSet<User>,
    /// When an operator last may have ended the backoff of a user, or begun its tries anew.
    loosened: HashMap<User, Duration>,
}

impl Controlled {
    pub(super) fn changed(&mut self, view: ControlView, now: Duration) {
        self.held_before = self.view.held.clone();
        if self.view != view {
            (self.view, self.since) = (view, now);
        }
    }

    /// Whether the last commit has ended what kept this user from being tried, if it covers this action. A user that is not
    /// held stays in its backoff after a release.
    pub(super) fn frees(&self, user: &User, action: &UserAction) -> bool {
        !matches!(action, UserAction::Release) || self.held_before.contains(user)
    }

    pub(super) fn loosen(&mut self, user: &User, now: Duration) {
        self.loosened.insert(user.clone(), now);
    }

    /// Whether an operator may have ended the backoff that began at `failed_at`.
    pub(super) fn may_be_loosened(&self, user: &User, failed_at: Duration) -> bool {
        self.loosened.get(user).is_some_and(|at| self.view.pending_since.is_some() || *at >= failed_at)
    }

    /// Since when no command keeps other users from starting that are not held. `None`: one may.
    pub(super) fn free_since(&self) -> Option<Duration> {
        let is_free = self.view.pending_since.is_none() && !self.view.is_paused && self.view.rate_per_hour.is_none();
        is_free.then_some(self.since)
    }

    /// Since when no command of this partition limits the rate of its process. `None`: one may.
    pub(super) fn unlimited_since(&self) -> Option<Duration> {
        (self.view.pending_since.is_none() && self.view.rate_per_hour.is_none()).then_some(self.since)
    }

    /// The rate in events an hour that is certainly in force. `None`: there is none, or a later command may change it.
    pub(super) fn certain_rate(&self) -> Option<u64> {
        self.view.rate_per_hour.filter(|_| self.view.pending_since.is_none())
    }

    /// Whether a command may keep this user's first event from being attempted: the user is held, or the event is given up.
    pub(super) fn keeps(&self, user: &User, head: Option<i64>) -> bool {
        self.view.held.contains(user) || self.gives_up(user, head)
    }

    /// Whether an operator has given up this user's first event. Its dead letter may be on the way.
    pub(super) fn gives_up(&self, user: &User, head: Option<i64>) -> bool {
        let is_given_up = |below: &i64| head.is_some_and(|head| head < *below);
        self.view.given_up_below.get(user).is_some_and(is_given_up)
    }

    /// Why the owner, which is open since this moment, should have stored a command.
    pub(super) fn look(&self, open_since: Duration, within: Duration, now: Duration) -> Option<String> {
        let since = self.view.pending_since?.max(open_since);
        let reading = if self.view.waits_for_reading { READING_WAIT_MAX } else { Duration::ZERO };
        (now > since + within + COMMAND_WITHIN + reading)
            .then(|| format!("a command waits since {since:?}, and no commit covers it"))
    }
}

impl Queue {
    /// A commit says that an operator ended the backoff of this user. The command was given at `given_at`.
    pub(super) fn retried(&mut self, given_at: Duration, now: Duration) {
        if let QueueState::Waiting { earliest, latest, failed_at: Some(failed_at), .. } = &mut self.state
            && *failed_at < given_at
        {
            (*earliest, *latest) = (given_at.min(*earliest), now.min(*latest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_frees_only_a_user_that_is_held() {
        let held: User = Some(b"held".to_vec());
        let mut controlled = Controlled::default();
        controlled.changed(ControlView { held: [held.clone()].into(), ..ControlView::default() }, Duration::ZERO);
        controlled.changed(ControlView::default(), Duration::from_secs(1));
        for (user, action, frees) in [
            (&held, UserAction::Release, true),
            (&Some(b"backs off".to_vec()), UserAction::Release, false),
            (&Some(b"backs off".to_vec()), UserAction::Retry, true),
        ] {
            assert_eq!(controlled.frees(user, &action), frees, "{user:?}, {action:?}");
        }
    }
}
