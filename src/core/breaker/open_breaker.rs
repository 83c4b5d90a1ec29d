//! What is known while the breaker is open: why, when the next probe is due, and which users were probed.

use super::OpenCause;
use crate::core::Moment;
use crate::limits::PROBED_USERS_MAX;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// The delay of the first probe after the breaker opened. It doubles with each probe that fails.
const PROBE_DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest delay between two probes.
const PROBE_DELAY_MAX: Duration = Duration::from_secs(5);
/// How long a probe that is due waits for a preferred user. Several partitions share a breaker, and the first one that
/// asks may have no preferred user.
const PREFERENCE_LASTS: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct OpenBreaker {
    pub(super) cause: OpenCause,
    probe: ProbeState,
    /// The delay before the probe that is due or in flight.
    probe_delay: Duration,
    round: ProbeRound,
    /// For each partition, the last reported number of trusted users that have unsettled events.
    waiting_users: BTreeMap<u32, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeState {
    Due(Moment),
    InFlight { seq: u64 },
}

/// Users are probed in rounds. Within a round each user is probed once, and the second probe of any user begins the next
/// round. So a probe goes to each waiting user before it goes to the same one again.
#[derive(Debug, Default)]
struct ProbeRound {
    probed: HashSet<u64>,
    /// The number of probed users that were trusted.
    trusted: usize,
    /// Whether a suspect was probed, which happens once no trusted user is left in this round.
    allows_suspects: bool,
}

impl OpenBreaker {
    pub(super) fn new(cause: OpenCause, now: Moment) -> Self {
        Self {
            cause,
            probe: ProbeState::Due(now.saturating_add(PROBE_DELAY_MIN)),
            probe_delay: PROBE_DELAY_MIN,
            round: ProbeRound::default(),
            waiting_users: BTreeMap::new(),
        }
    }

    /// When the next probe is due. `None` means that a probe is in flight.
    pub(super) fn probe_due_at(&self) -> Option<Moment> {
        match self.probe {
            ProbeState::Due(at) => Some(at),
            ProbeState::InFlight { .. } => None,
        }
    }

    /// When a user that is not preferred may become the probe that is due.
    pub(super) fn any_user_probes_at(&self) -> Option<Moment> {
        self.probe_due_at().map(|at| at.saturating_add(PREFERENCE_LASTS))
    }

    pub(super) fn is_probe(&self, seq: u64) -> bool {
        self.probe == ProbeState::InFlight { seq }
    }

    pub(super) fn prefers(&self, user: u64, is_suspect: bool) -> bool {
        !self.round.probed.contains(&user) && (self.round.allows_suspects || !is_suspect)
    }

    /// Whether a probe of this user means that no trusted user is left in this round. The callers prefer trusted users
    /// that were not probed, so a suspect or a second probe shows that none was there.
    pub(super) fn round_has_no_trusted_user_left(&self, user: u64, is_suspect: bool) -> bool {
        is_suspect || self.round.probed.contains(&user)
    }

    /// The number of trusted users that were probed in this round.
    pub(super) fn trusted_users_probed(&self) -> usize {
        self.round.trusted
    }

    /// Notes how many trusted users have unsettled events in this partition.
    pub(super) fn set_waiting_users(&mut self, partition: u32, users: usize) {
        self.waiting_users.insert(partition, users);
    }

    /// Forgets the users of a partition that has another owner now.
    pub(super) fn released(&mut self, partition: u32) {
        self.waiting_users.remove(&partition);
    }

    /// Trusted users with unsettled events in all partitions, including those whose next attempt is not due.
    pub(super) fn waiting_users(&self) -> usize {
        self.waiting_users.values().sum()
    }

    pub(super) fn begin_probe(&mut self, seq: u64, user: u64, is_suspect: bool) {
        if self.round.probed.contains(&user) || self.round.probed.len() == PROBED_USERS_MAX {
            self.round = ProbeRound::default();
        } else if is_suspect {
            self.round.allows_suspects = true;
        }
        self.round.note(user, is_suspect);
        self.probe = ProbeState::InFlight { seq };
    }

    /// Notes that an unreachable destination has answered a probe of this user. A new round begins and the delay starts
    /// from its minimum, because the answers to other users are needed soon.
    pub(super) fn is_answered(&mut self, user: u64, is_suspect: bool) {
        self.cause = OpenCause::Undecided;
        self.probe_delay = Duration::ZERO;
        self.round = ProbeRound::default();
        self.round.note(user, is_suspect);
    }

    pub(super) fn probe_failed(&mut self, now: Moment) {
        self.probe_delay = (self.probe_delay * 2).clamp(PROBE_DELAY_MIN, PROBE_DELAY_MAX);
        self.probe = ProbeState::Due(now.saturating_add(self.probe_delay));
    }

    /// Makes the next probe due now. `false`: one is in flight, or due already.
    pub(super) fn probe_now(&mut self, now: Moment) -> bool {
        match &mut self.probe {
            ProbeState::Due(at) if *at > now => {
                *at = now;
                true
            }
            ProbeState::Due(_) | ProbeState::InFlight { .. } => false,
        }
    }

    /// Allows another probe at once, because the abandoned one said nothing about the destination.
    pub(super) fn probe_abandoned(&mut self) {
        self.probe = ProbeState::Due(Moment::ZERO);
    }
}

impl ProbeRound {
    fn note(&mut self, user: u64, is_suspect: bool) {
        if self.probed.insert(user) && !is_suspect {
            self.trusted += 1;
        }
    }
}
