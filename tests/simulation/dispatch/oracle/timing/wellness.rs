//! What one life can know about the destination, from the verdicts that it saw: when its breaker is certainly closed, and
//! when it is certainly open.
//!
//! *Well* is strict. A life is well if the destination was never unreachable since its last delivery, and fewer than three
//! users that may be trusted fail. Whatever happens with so few failing users, less than half of five users cannot fail.
//! So the breaker is closed, and every failure counts as a try.

use super::UserOfPartition;
use eventd::core::verdict::Verdict;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// With so many failing users that may be trusted, the health of the destination may be bad.
const DOUBTFUL_USERS: usize = 3;

/// With so many failing users that may be trusted, their answers may open the breaker.
const DECIDING_USERS: usize = 5;

/// The last verdict of a user says nothing after this time. If nothing was delivered for as long, earlier deliveries show
/// nothing any more.
const VERDICT_AGE_MAX: Duration = Duration::from_secs(60);

/// The number of failures of a user that was served before that count in any case.
const COUNTED_FAILURES_MAX: u32 = 3;

/// Delivered attempts that are remembered: enough to find two of other users.
const DELIVERED_KEPT: usize = 4;

/// The delays between two probes of a destination that cannot be reached.
const PROBE_DELAY_MIN: Duration = Duration::from_millis(100);
const PROBE_DELAY_MAX: Duration = Duration::from_secs(5);

/// A probe that takes longer does not keep the next one from being sent.
const PROBE_BLOCKS_FOR: Duration = Duration::from_secs(1);

/// Attempts to a destination that cannot be reached, at the same time. Those that are older than the outage are not
/// counted.
const PROBES_AT_ONCE_MAX: usize = 20;

/// The health of the destination as one life sees it.
#[derive(Debug, Default)]
pub(super) struct Wellness {
    /// The delivered attempts that began last, with their users.
    delivered: Vec<(u64, UserOfPartition)>,
    last_delivery: Option<Duration>,
    /// Users whose last verdict was a failure.
    failing: HashMap<UserOfPartition, FailingUser>,
    /// Users that were delivered at any time.
    served: HashSet<UserOfPartition>,
    /// The attempt that began last.
    last_begun: u64,
    /// That attempt when an outage may have ended, the last time.
    last_begun_in_outages: u64,
    /// When an outage may have ended, the last time.
    outage_ended_at: Option<Duration>,
    /// That attempt when the life ceased to be well.
    last_begun_while_well: u64,
    /// The attempt among those that were answered that began last.
    last_answered: u64,
    /// When answers may have opened the breaker, the last time.
    may_have_opened_at: Option<Duration>,
    /// The attempt that had begun last then. It, and the earlier ones, may be no probes. 0: the breaker was closed since.
    last_begun_before_opening: u64,
    is_unwell: bool,
    well_since: Duration,
    unreachable: Option<Unreachable>,
}

/// A user whose last verdict was a failure.
#[derive(Debug, Default, Clone, Copy)]
struct FailingUser {
    /// Deliveries of others to attempts that began later show that the failures are the user's own. `None`: none does,
    /// because an attempt that did not arrive, and a busy destination, show nothing.
    shown_since: Option<u64>,
    /// The first delivery of them that arrived. It may have ended an outage, and then it shows nothing.
    first_shown: Option<u64>,
    /// Its failures since the last possible outage that came from the destination.
    failures: u32,
    /// The last failure that may count for the health of the destination.
    counted_at: Duration,
}

/// The destination was unreachable, and nothing was delivered since.
#[derive(Debug)]
struct Unreachable {
    at: Duration,
    /// Attempts that began later may be probes.
    last_begun_before: u64,
    /// The attempt that had begun last when the destination was first unreachable.
    last_begun_at_start: u64,
    /// An attempt that began later was answered. From then on the answers decide, and other rules hold for probes.
    is_answered: bool,
    delay: Duration,
    next_probe_at: Duration,
    /// The longest that the delay may be.
    delay_max: Duration,
    /// When the next probe must be sent at the latest.
    probe_by: Duration,
    /// The probes in flight, with their begin.
    probes: BTreeMap<u64, Duration>,
}

impl Wellness {
    /// Since when the breaker of this life is certainly closed.
    pub(super) fn well_since(&self) -> Option<Duration> {
        (!self.is_unwell).then_some(self.well_since)
    }

    /// Since when an unreachable destination waits for a probe. `None`: too many probes are in flight, or other rules
    /// hold.
    pub(super) fn probe_due_since(&self) -> Option<Duration> {
        let open = self.unreachable.as_ref().filter(|open| !open.is_answered)?;
        let is_unblocked_at = open.probes.values().map(|begun| *begun + PROBE_BLOCKS_FOR).max();
        (open.probes.len() < PROBES_AT_ONCE_MAX).then(|| is_unblocked_at.unwrap_or_default().max(open.probe_by))
    }

    /// Whether the breaker may be open, so that a delivery may end an outage.
    pub(super) fn may_be_open(&self) -> bool {
        self.is_unwell || self.unreachable.is_some()
    }

    /// Whether an outage may have ended after this attempt began.
    pub(super) fn may_have_begun_in_outage(&self, attempt: u64) -> bool {
        attempt <= self.last_begun_in_outages
    }

    /// Whether the last verdict of this user was a failure.
    pub(super) fn is_failing(&self, user: &UserOfPartition) -> bool {
        self.failing.contains_key(user)
    }

    /// An attempt begins. Returns what is wrong with it if the breaker is certainly open.
    pub(super) fn begun(&mut self, attempt: u64, now: Duration) -> Option<String> {
        self.last_begun = self.last_begun.max(attempt);
        // It may have taken its slot before a worker reported the delivery that ended the outage.
        if self.outage_ended_at == Some(now) {
            self.last_begun_in_outages = self.last_begun;
        }
        // It may have taken its slot before a worker reported the answer that opened the breaker.
        if self.may_have_opened_at == Some(now) {
            self.last_begun_before_opening = self.last_begun;
        }
        let open = self.unreachable.as_mut().filter(|open| now > open.at && !open.is_answered)?;
        let (others, next_probe_at) = (open.probes.len(), open.next_probe_at);
        let young = open.probes.values().filter(|begun| now < **begun + PROBE_BLOCKS_FOR).count();
        open.probes.insert(attempt, now);
        if young > 0 || others >= PROBES_AT_ONCE_MAX {
            Some(format!(
                "{others} other probes of an unreachable destination are in flight, {young} of them are young"
            ))
        } else if now < next_probe_at {
            Some(format!("an unreachable destination is probed at {now:?}, and not before {next_probe_at:?}"))
        } else {
            None
        }
    }

    /// Attempts that ended together were delivered.
    pub(super) fn delivered(&mut self, attempt: u64, users: Vec<UserOfPartition>, now: Duration) {
        if users.is_empty() {
            return;
        }
        if self.may_be_open() {
            self.last_begun_in_outages = self.last_begun;
            self.outage_ended_at = Some(now);
            self.failing.values_mut().for_each(|failing| failing.failures = 0);
        }
        // Workers of two partitions may learn in the other order of verdicts that were given at one instant.
        let may_be_open = self.unreachable.take().is_some_and(|open| open.at == now);
        if self.may_have_opened_at != Some(now) {
            self.last_begun_before_opening = 0;
        }
        self.last_delivery = Some(now);
        for user in users {
            self.failing.remove(&user);
            self.served.insert(user.clone());
            self.delivered.retain(|(_, other)| *other != user);
            self.delivered.push((attempt, user));
        }
        self.delivered.sort_by_key(|(attempt, _)| Reverse(*attempt));
        self.delivered.truncate(DELIVERED_KEPT);
        for failing in self.failing.values_mut().filter(|failing| failing.shown_since.is_some_and(|at| at < attempt)) {
            failing.first_shown.get_or_insert(attempt);
        }
        let is_unwell = may_be_open || self.doubtful_users(now) >= DOUBTFUL_USERS;
        if self.is_unwell && !is_unwell {
            self.well_since = now;
        }
        self.is_unwell = is_unwell;
    }

    pub(super) fn failed(&mut self, attempt: u64, user: UserOfPartition, verdict: Verdict, now: Duration) {
        if verdict == Verdict::Drilled || verdict.says_nothing() {
            return self.ended_without_verdict(attempt, now);
        }
        let is_unreachable = verdict == Verdict::Unreachable;
        if !is_unreachable {
            self.last_answered = self.last_answered.max(attempt);
        }
        if self.last_delivery.is_none_or(|at| now >= at + VERDICT_AGE_MAX) {
            self.delivered.clear();
            self.failing.values_mut().for_each(|failing| failing.first_shown = None);
        }
        let delivered_by_now = self.delivered.iter().filter(|(_, other)| *other != user).map(|(attempt, _)| *attempt);
        let shown_since = delivered_by_now.max().unwrap_or(0).max(attempt);
        let mut failing = self.failing.get(&user).copied().unwrap_or_default();
        if matches!(verdict, Verdict::Retry { .. } | Verdict::Refused) {
            failing.shown_since.get_or_insert(shown_since);
        }
        failing.failures += u32::from(!is_unreachable);
        if failing.failures <= COUNTED_FAILURES_MAX || self.may_be_trusted(&user, &failing) {
            failing.counted_at = now;
        }
        self.failing.insert(user, failing);
        let may_be_open = self.is_unwell;
        if is_unreachable || self.doubtful_users(now) >= DOUBTFUL_USERS {
            self.set_unwell();
        }
        if !is_unreachable && self.doubtful_users(now) >= DECIDING_USERS {
            self.may_have_opened_at = Some(now);
            self.last_begun_before_opening = self.last_begun;
        }
        let last_begun_before = if may_be_open { self.last_begun_while_well } else { self.last_begun };
        let Some(open) = &mut self.unreachable else {
            if is_unreachable {
                // If a later attempt was answered before, the breaker may know that the destination can be reached. And only a
                // probe shows that it cannot be reached any more, if answers had opened the breaker after this attempt began.
                // And the worker of another partition may report a delivery of this instant only now, which closes it.
                let is_answered = attempt < self.last_answered
                    || attempt <= self.last_begun_before_opening
                    || self.last_delivery == Some(now);
                let open =
                    if may_be_open { Unreachable::again(now, now + PROBE_DELAY_MIN) } else { Unreachable::new(now) };
                let last_begun_at_start = self.last_begun;
                self.unreachable = Some(Unreachable { last_begun_before, last_begun_at_start, is_answered, ..open });
            }
            return;
        };
        match (is_unreachable, open.probes.remove(&attempt).is_some()) {
            // An attempt that began before the outage was not a probe, so the last probe was still answered.
            (true, _) if open.is_answered && attempt <= open.last_begun_at_start => {}
            // The delay that counts now was chosen at the last answer.
            (true, _) if open.is_answered => {
                let Unreachable { last_begun_before, last_begun_at_start, .. } = *open;
                *open = Unreachable { last_begun_before, last_begun_at_start, ..Unreachable::again(now, now) };
            }
            (true, true) => {
                open.delay = (open.delay * 2).min(PROBE_DELAY_MAX);
                open.next_probe_at = now + open.delay;
                open.delay_max = (open.delay_max * 2).min(PROBE_DELAY_MAX);
                open.probe_by = now + open.delay_max;
            }
            // Several probes may have been in flight when one of them did not arrive, so this may be the answer to another.
            (false, was_probe) => open.is_answered |= was_probe || attempt > open.last_begun_before,
            (true, false) => {}
        }
    }

    /// The attempt was dropped, so it says nothing. Another probe may begin at once.
    pub(super) fn ended_without_verdict(&mut self, attempt: u64, now: Duration) {
        if let Some(open) = &mut self.unreachable
            && open.probes.remove(&attempt).is_some()
        {
            (open.next_probe_at, open.probe_by) = (now, now);
        }
    }

    fn set_unwell(&mut self) {
        if !std::mem::replace(&mut self.is_unwell, true) {
            self.last_begun_while_well = self.last_begun;
        }
    }

    /// Whether two later deliveries to other users do not show yet that the failures are this user's own. After an outage,
    /// the delivery that ended it shows nothing about the users that failed in it, and neither does another that began
    /// earlier and arrived later.
    fn may_be_trusted(&self, user: &UserOfPartition, failing: &FailingUser) -> bool {
        let Some(first) = failing.first_shown else { return true };
        let mut others = self.delivered.iter().filter(|(_, other)| other != user).map(|(attempt, _)| *attempt);
        others.nth(1).is_none_or(|delivered| delivered < first)
    }

    /// Users with a failure of the last minute that may count for the health of the destination: those that may be trusted,
    /// and those that were served before, because a destination in a brownout fails them.
    fn doubtful_users(&self, now: Duration) -> usize {
        let is_doubtful = |(user, failing): &(&UserOfPartition, &FailingUser)| {
            now < failing.counted_at + VERDICT_AGE_MAX
                && (self.served.contains(*user) || self.may_be_trusted(user, failing))
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
            last_begun_before: 0,
            last_begun_at_start: 0,
            is_answered: false,
            delay: PROBE_DELAY_MIN,
            next_probe_at: at + PROBE_DELAY_MIN,
            delay_max: PROBE_DELAY_MIN,
            probe_by: at + PROBE_DELAY_MIN,
            probes: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: u8) -> UserOfPartition {
        (1, Some(vec![number]))
    }

    #[test]
    fn an_attempt_that_begins_at_the_end_of_an_outage_may_have_begun_in_it() {
        let now = Duration::from_secs(1);
        let mut wellness = Wellness::default();
        wellness.failed(1, user(1), Verdict::Unreachable, Duration::ZERO);
        wellness.begun(2, now);
        wellness.delivered(2, vec![user(2)], now);
        wellness.begun(3, now);
        wellness.begun(4, now + Duration::from_millis(1));
        assert_eq!([3, 4].map(|attempt| wellness.may_have_begun_in_outage(attempt)), [true, false]);
    }

    #[test]
    fn an_unreachable_destination_forbids_quick_probes_if_a_probe_shows_it() {
        let [failed_at, unreachable_at] = [1, 2].map(Duration::from_secs);
        // The attempt that does not arrive begins before or after the answers of these users.
        let quick_probe = |failing_users: u8, begins_before: bool| {
            let (mut wellness, last) = (Wellness::default(), u64::from(failing_users) + 1);
            if begins_before {
                wellness.begun(last, failed_at);
            }
            for number in 1..=failing_users {
                wellness.failed(u64::from(number), user(number), Verdict::Retry { after: None }, failed_at);
            }
            if !begins_before {
                wellness.begun(last, failed_at + Duration::from_millis(1));
            }
            wellness.failed(last, user(9), Verdict::Unreachable, unreachable_at);
            wellness.begun(last + 1, unreachable_at + Duration::from_millis(1))
        };
        assert!(quick_probe(5, false).is_some(), "it was a probe if the breaker was open, and opened it otherwise");
        assert_eq!(quick_probe(5, true), None, "it was not a probe, and did not open the breaker");
        assert!(quick_probe(4, true).is_some(), "so few users do not open the breaker, so this attempt did");
    }

    #[test]
    fn a_probe_that_hangs_forbids_the_next_one_for_a_second_and_twenty_of_them_forbid_it_until_one_ends() {
        let at = Duration::from_secs;
        let mut wellness = Wellness::default();
        wellness.failed(1, user(1), Verdict::Unreachable, at(0));
        for probe in 1..=20 {
            let due = if probe == 1 { PROBE_DELAY_MIN } else { at(probe) };
            assert_eq!(wellness.probe_due_since(), Some(due));
            assert_eq!(wellness.begun(1 + probe, at(probe)), None);
        }
        assert_eq!(wellness.probe_due_since(), None);
        assert!(wellness.begun(22, at(21)).is_some());
        let mut wellness = Wellness::default();
        wellness.failed(1, user(1), Verdict::Unreachable, at(0));
        wellness.begun(2, at(1));
        assert!(wellness.begun(3, at(2) - Duration::from_millis(1)).is_some());
    }

    #[test]
    fn a_delivery_and_an_unreachable_attempt_of_one_instant_may_be_reported_in_either_order() {
        let [instant, soon] = [1_000, 1_005].map(Duration::from_millis);
        for delivery in [Duration::ZERO, instant] {
            let mut wellness = Wellness::default();
            wellness.delivered(1, vec![user(1)], delivery);
            wellness.failed(2, user(2), Verdict::Unreachable, instant);
            assert_eq!(wellness.begun(3, soon).is_none(), delivery == instant);
        }
    }

    #[test]
    fn an_earlier_attempt_that_is_delivered_after_the_end_of_an_outage_shows_nothing() {
        let now = Duration::from_secs(1);
        let mut wellness = Wellness::default();
        for number in 1..=3 {
            wellness.failed(u64::from(number), user(number), Verdict::Retry { after: None }, now);
        }
        wellness.delivered(5, vec![user(8)], now);
        wellness.delivered(4, vec![user(9)], now);
        assert_eq!(wellness.well_since(), None);
        wellness.delivered(6, vec![user(8)], now);
        wellness.delivered(7, vec![user(9)], now);
        assert_eq!(wellness.well_since(), Some(now));
    }
}
