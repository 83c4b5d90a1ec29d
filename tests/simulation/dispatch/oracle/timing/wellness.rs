//! What one life can know about the destination, from the verdicts that it saw: when its breaker is certainly closed, and
//! when it is certainly open.
//!
//! *Well* is strict. A life is well if the destination was never unreachable since its last delivery, and fewer than three
//! users that may be trusted fail. Whatever happens with so few failing users, less than half of five users cannot fail.
//! So the breaker is closed, and every failure counts as a try.

use super::UserOfOwner;
use eventd::core::verdict::Verdict;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// With so many failing users that may be trusted, the health of the destination may be bad.
const DOUBTFUL_USERS: usize = 3;

/// In place of the attempt since which a user's answers show a failure: none does, so no delivery is later.
const NOT_SHOWN: u64 = u64::MAX;

/// Delivered attempts that are remembered: enough to find two of other users.
const DELIVERED_KEPT: usize = 4;

/// The delays between two probes of a destination that cannot be reached.
const PROBE_DELAY_MIN: Duration = Duration::from_millis(100);
const PROBE_DELAY_MAX: Duration = Duration::from_secs(5);

/// The health of the destination as one life sees it.
#[derive(Debug, Default)]
pub(super) struct Wellness {
    /// The delivered attempts that began last, with their users.
    delivered: Vec<(u64, UserOfOwner)>,
    /// Users whose last verdict was a failure, with the attempt since which their answers show it. An attempt that did not
    /// arrive, and a busy destination, show nothing.
    failing: HashMap<UserOfOwner, u64>,
    /// Users that were delivered at any time. Their failures count for the health of the destination in any case.
    served: HashSet<UserOfOwner>,
    /// The attempt among those that were answered that began last.
    last_answered: u64,
    is_unwell: bool,
    well_since: Duration,
    unreachable: Option<Unreachable>,
}

/// The destination was unreachable, and nothing was delivered since.
#[derive(Debug)]
struct Unreachable {
    at: Duration,
    /// An attempt that began later was answered. From then on the answers decide, and other rules hold for probes.
    is_answered: bool,
    delay: Duration,
    next_probe_at: Duration,
    /// The longest that the delay may be.
    delay_max: Duration,
    /// When the next probe must be sent at the latest.
    probe_by: Duration,
    probes: BTreeSet<u64>,
}

impl Wellness {
    /// Since when the breaker of this life is certainly closed.
    pub(super) fn well_since(&self) -> Option<Duration> {
        (!self.is_unwell).then_some(self.well_since)
    }

    /// Since when an unreachable destination waits for a probe. `None`: a probe is in flight, or other rules hold.
    pub(super) fn probe_due_since(&self) -> Option<Duration> {
        let open = self.unreachable.as_ref().filter(|open| !open.is_answered && open.probes.is_empty())?;
        Some(open.probe_by)
    }

    /// Whether the breaker may be open, so that a delivery may end an outage.
    pub(super) fn may_be_open(&self) -> bool {
        self.is_unwell || self.unreachable.is_some()
    }

    /// Whether the last verdict of this user was a failure.
    pub(super) fn is_failing(&self, user: &UserOfOwner) -> bool {
        self.failing.contains_key(user)
    }

    /// An attempt begins. Returns what is wrong with it if the breaker is certainly open.
    pub(super) fn begun(&mut self, attempt: u64, now: Duration) -> Option<String> {
        let open = self.unreachable.as_mut().filter(|open| now > open.at && !open.is_answered)?;
        let (others, next_probe_at) = (open.probes.len(), open.next_probe_at);
        open.probes.insert(attempt);
        if others > 0 {
            Some(format!("{others} other probes of an unreachable destination are in flight"))
        } else if now < next_probe_at {
            Some(format!("an unreachable destination is probed at {now:?}, and not before {next_probe_at:?}"))
        } else {
            None
        }
    }

    /// Attempts that ended together were delivered.
    pub(super) fn delivered(&mut self, attempt: u64, users: Vec<UserOfOwner>, now: Duration) {
        if users.is_empty() {
            return;
        }
        self.unreachable = None;
        for user in users {
            self.failing.remove(&user);
            self.served.insert(user.clone());
            self.delivered.retain(|(_, other)| *other != user);
            self.delivered.push((attempt, user));
        }
        self.delivered.sort_by_key(|(attempt, _)| std::cmp::Reverse(*attempt));
        self.delivered.truncate(DELIVERED_KEPT);
        let is_unwell = self.doubtful_users() >= DOUBTFUL_USERS;
        if self.is_unwell && !is_unwell {
            self.well_since = now;
        }
        self.is_unwell = is_unwell;
    }

    pub(super) fn failed(&mut self, attempt: u64, user: UserOfOwner, verdict: Verdict, now: Duration) {
        if verdict == Verdict::Drilled || verdict.says_nothing() {
            return self.ended_without_verdict(attempt, now);
        }
        let is_unreachable = verdict == Verdict::Unreachable;
        if !is_unreachable {
            self.last_answered = self.last_answered.max(attempt);
        }
        let shows_failure = matches!(verdict, Verdict::Retry { .. } | Verdict::Refused);
        let since = self.failing.entry(user).or_insert(NOT_SHOWN);
        if shows_failure && *since == NOT_SHOWN {
            *since = attempt;
        }
        let may_be_open = self.is_unwell;
        self.is_unwell |= is_unreachable || self.doubtful_users() >= DOUBTFUL_USERS;
        let Some(open) = &mut self.unreachable else {
            if is_unreachable {
                // If a later attempt was answered before, the breaker may know that the destination can be reached.
                let is_answered = attempt < self.last_answered;
                let open =
                    if may_be_open { Unreachable::again(now, now + PROBE_DELAY_MIN) } else { Unreachable::new(now) };
                self.unreachable = Some(Unreachable { is_answered, ..open });
            }
            return;
        };
        match (is_unreachable, open.probes.remove(&attempt)) {
            // The delay that counts now was chosen at the last answer.
            (true, _) if open.is_answered => *open = Unreachable::again(now, now),
            (true, true) => {
                open.delay = (open.delay * 2).min(PROBE_DELAY_MAX);
                open.next_probe_at = now + open.delay;
                open.delay_max = (open.delay_max * 2).min(PROBE_DELAY_MAX);
                open.probe_by = now + open.delay_max;
            }
            // Several probes may have been in flight when one of them did not arrive, so this may be the answer to another.
            (false, _) => open.is_answered = true,
            (true, false) => {}
        }
    }

    /// The attempt was dropped, so it says nothing. Another probe may begin at once.
    pub(super) fn ended_without_verdict(&mut self, attempt: u64, now: Duration) {
        if let Some(open) = &mut self.unreachable
            && open.probes.remove(&attempt)
        {
            (open.next_probe_at, open.probe_by) = (now, now);
        }
    }

    /// Failing users of which two later deliveries to other users do not show that the failures are their own. (After an
    /// outage, the first delivery shows nothing about the users that failed in it.) Users that were served before count,
    /// too, because a destination in a brownout fails them.
    fn doubtful_users(&self) -> usize {
        let is_doubtful = |(user, since): &(&UserOfOwner, &u64)| {
            let mut others = self.delivered.iter().filter(|(_, other)| other != *user).map(|(attempt, _)| *attempt);
            self.served.contains(*user) || others.nth(1).is_none_or(|delivered| delivered <= **since)
        };
        self.failing.iter().filter(is_doubtful).count()
    }
}

impl Unreachable {
    /// The breaker may be open already, so the delay that counts was chosen earlier.
    fn again(at: Duration, next_probe_at: Duration) -> Self {
        let delay_max = PROBE_DELAY_MAX;
        Self { next_probe_at, delay_max, probe_by: at + delay_max, ..Self::new(at) }
    }

    fn new(at: Duration) -> Self {
        Self {
            at,
            is_answered: false,
            delay: PROBE_DELAY_MIN,
            next_probe_at: at + PROBE_DELAY_MIN,
            delay_max: PROBE_DELAY_MIN,
            probe_by: at + PROBE_DELAY_MIN,
            probes: BTreeSet::new(),
        }
    }
}
