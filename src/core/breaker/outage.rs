//! An outage under way: when the next probe is due, and of whom.

use super::OpenCause;
use crate::core::Moment;
use crate::limits::PROBED_USERS_MAX;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// When the first probe of an outage is due; it doubles with each that fails.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// The longest time between two probes.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// How long a probe that is due waits for a user that is preferred: several partitions share a breaker, and the first
/// to ask may have none.
const PREFERENCE_LASTS: Duration = Duration::from_millis(100);

/// What is kept while the breaker is open.
#[derive(Debug)]
pub(super) struct OpenBreaker {
    pub(super) cause: OpenCause,
    probe: ProbeState,
    /// The delay before the probe that is due or under way.
    delay: Duration,
    /// Users probed in this round: one after the other, until somebody's second turn begins the next round.
    probed: HashSet<u64>,
    /// How many of them were trusted.
    trusted_probed: usize,
    /// Nobody trusted is left in this round.
    suspects_too: bool,
    /// How many trusted users have unsettled events in each partition, as was last told.
    waiting: BTreeMap<u32, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeState {
    Due(Moment),
    UnderWay { seq: u64 },
}

impl OpenBreaker {
    pub(super) fn new(cause: OpenCause, now: Moment) -> Self {
        let probe = ProbeState::Due(now.saturating_add(DELAY_FIRST));
        Self {
            cause,
            probe,
            delay: DELAY_FIRST,
            probed: HashSet::new(),
            trusted_probed: 0,
            suspects_too: false,
            waiting: BTreeMap::new(),
        }
    }

    /// When the next probe is due; `None`: one is under way.
    pub(super) fn probe_due_at(&self) -> Option<Moment> {
        match self.probe {
            ProbeState::Due(at) => Some(at),
            ProbeState::UnderWay { .. } => None,
        }
    }

    /// When anybody may be that probe.
    pub(super) fn any_user_probes_at(&self) -> Option<Moment> {
        self.probe_due_at().map(|at| at.saturating_add(PREFERENCE_LASTS))
    }

    pub(super) fn is_probe(&self, seq: u64) -> bool {
        self.probe == ProbeState::UnderWay { seq }
    }

    pub(super) fn prefers(&self, user: u64, suspect: bool) -> bool {
        !self.probed.contains(&user) && (self.suspects_too || !suspect)
    }

    /// Whether a probe of this user shows that the trusted users of this round were all probed.
    pub(super) fn has_no_other_left(&self, user: u64, suspect: bool) -> bool {
        suspect || self.probed.contains(&user)
    }

    /// Tells how many trusted users have unsettled events in this partition.
    pub(super) fn wait_in(&mut self, partition: u32, users: usize) {
        self.waiting.insert(partition, users);
    }

    /// The partition belongs to another owner now.
    pub(super) fn released(&mut self, partition: u32) {
        self.waiting.remove(&partition);
    }

    /// Trusted users with unsettled events in all partitions, also those whose next attempt is not due.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.values().sum()
    }

    /// Trusted users that were probed in this round.
    pub(super) fn trusted_probed(&self) -> usize {
        self.trusted_probed
    }

    pub(super) fn begin_probe(&mut self, seq: u64, user: u64, suspect: bool) {
        if self.probed.contains(&user) || self.probed.len() == PROBED_USERS_MAX {
            // Nobody new was there: the next round begins.
            self.begin_round();
        } else if suspect {
            self.suspects_too = true;
        }
        self.note_probed(user, suspect);
        self.probe = ProbeState::UnderWay { seq };
    }

    /// A probe of an unreachable destination was answered. What the others say has to be heard now, and soon.
    pub(super) fn is_answered(&mut self, user: u64, suspect: bool) {
        self.cause = OpenCause::Undecided;
        self.delay = Duration::ZERO;
        self.begin_round();
        self.note_probed(user, suspect);
    }

    fn begin_round(&mut self) {
        self.probed.clear();
        (self.trusted_probed, self.suspects_too) = (0, false);
    }

    fn note_probed(&mut self, user: u64, suspect: bool) {
        if self.probed.insert(user) && !suspect {
            self.trusted_probed += 1;
        }
    }

    pub(super) fn probe_failed(&mut self, now: Moment) {
        self.delay = (self.delay * 2).clamp(DELAY_FIRST, DELAY_MAX);
        self.probe = ProbeState::Due(now.saturating_add(self.delay));
    }

    /// It said nothing: another one may be begun at once.
    pub(super) fn probe_abandoned(&mut self) {
        self.probe = ProbeState::Due(Moment::ZERO);
    }
}
