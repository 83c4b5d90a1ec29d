//! What one event went through: its failed attempts, the tries that count, and the time that counts.
//!
//! ```text
//!                     outage: this time does not count
//!  first failure ✗────────┐                 ┌───────✗ last failure
//!                └ counts ┘                 └ counts┘          the sum is compared with --give-up-after
//! ```
//!
//! The account survives a restart: a commit stores it, and the next owner of the partition continues it. So the first
//! failure may be older than this process, and times are kept as signed milliseconds on the clock of [`Moment`].

use super::super::breaker::{Attempt, Breaker, Refusal, TryJudgement};
use super::super::progress::FailedHead;
use super::super::{BothClocks, Moment, text};
use crate::limits::LOG_REMINDER_INTERVAL;
use std::time::Duration;

/// Bytes of the last answer that a failure history keeps, for the log line about a stuck user.
pub(super) const HISTORY_ANSWER_BYTES_MAX: usize = 64;

/// The failed attempts of one event so far. The head of a lane has one if it has failed; it ends with the event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailureHistory {
    /// Failed attempts, for whatever reason.
    pub failures: u32,
    /// Failures among them that do not lengthen the backoff, because the destination was down or in bad health. This
    /// number is not stored: after a restart, it is the number of failures that used no try.
    excused: u32,
    /// The beginning of the last answer.
    pub answer: Box<str>,
    times: FailureTimes,
    tries: TryAccount,
    /// The first of the latest refusals in a row. It is remembered because a refusal is believed only if other users
    /// were served after it, which is not known when it arrives.
    pub(super) first_refusal: Option<Refusal>,
    is_asked_to_wait: bool,
}

/// When an event failed, in milliseconds on the clock of [`Moment`]. A time before the start of this process is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct FailureTimes {
    first_ms: i64,
    last_ms: i64,
    /// The time from the first failure to the last one, without the time of outages.
    counted: Duration,
    /// Time since the last failure that passed before this history was restored. The next failure counts it.
    uncounted: Duration,
    /// [`Breaker::healthy_time`] at the last failure, or when this history was restored.
    healthy_at_last: Duration,
}

/// Which failed attempts of an event count as tries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TryAccount {
    /// Tries that can no longer be taken back.
    confirmed: u32,
    /// Tries under `health_epoch`. They are taken back if the breaker declares that epoch void.
    revocable: u32,
    health_epoch: u64,
}

impl FailureHistory {
    /// Continues the account that an earlier owner of the partition stored. `healthy_time` is that of the breaker now.
    ///
    /// A failure that used no try was the destination's fault, or asked to wait (429). It does not lengthen the backoff
    /// any more. Otherwise each restart in a long outage would make the delay after the outage longer.
    ///
    /// Nothing shows whether there was an outage since the last failure. So the time since then counts as time of failing,
    /// but at most `delay_max` of it: the longest delay between two attempts.
    pub fn restored(stored: &FailedHead, healthy_time: Duration, delay_max: Duration, now: BothClocks) -> Self {
        let moment_ms = |wall_ms: i64| whole_ms(now.moment).saturating_sub(now.wall_ms.saturating_sub(wall_ms).max(0));
        let since_last = now.wall_ms.saturating_sub(stored.last_failure_ms);
        Self {
            failures: stored.failures,
            excused: stored.failures.saturating_sub(stored.tries),
            answer: stored.answer.clone(),
            times: FailureTimes {
                first_ms: moment_ms(stored.first_failure_ms),
                last_ms: moment_ms(stored.last_failure_ms),
                counted: Duration::from_millis(stored.counted_ms),
                uncounted: Duration::from_millis(u64::try_from(since_last).unwrap_or(0)).min(delay_max),
                healthy_at_last: healthy_time,
            },
            tries: TryAccount { confirmed: stored.tries, ..TryAccount::default() },
            first_refusal: None,
            is_asked_to_wait: false,
        }
    }

    /// The account as a commit stores it, for the event at `offset` that is attempted again at `next_try`. Tries of an epoch
    /// that is void are left out: the next owner does not know this breaker.
    pub fn to_stored(
        &self,
        offset: i64,
        next_try: Moment,
        is_void: impl Fn(u64) -> bool,
        now: BothClocks,
    ) -> FailedHead {
        let TryAccount { confirmed, revocable, health_epoch } = self.tries;
        let has_void = revocable > 0 && is_void(health_epoch);
        FailedHead {
            offset,
            failures: self.failures,
            tries: if has_void { confirmed } else { self.tries() },
            first_failure_ms: self.first_failure_ms(now),
            last_failure_ms: self.last_failure_ms(now),
            counted_ms: u64::try_from(self.times.counted.as_millis()).unwrap_or(u64::MAX),
            next_try_ms: now.wall_ms_at(next_try),
            answer: self.answer.clone(),
        }
    }

    /// Tries that count so far, also those that may be taken back.
    pub fn tries(&self) -> u32 {
        self.tries.confirmed.saturating_add(self.tries.revocable)
    }

    /// The time from the first failure to the last one, without the time of outages.
    pub fn counted_time(&self) -> Duration {
        self.times.counted
    }

    /// The time since the first attempt failed.
    pub fn failing_for(&self, now: Moment) -> Duration {
        let since = whole_ms(now).saturating_sub(self.times.first_ms);
        Duration::from_millis(u64::try_from(since).unwrap_or(0))
    }

    /// Whether an attempt has failed at this moment or later.
    pub fn has_failed_since(&self, moment: Moment) -> bool {
        self.times.last_ms >= whole_ms(moment)
    }

    /// Whether the next attempt waits because the destination asked for it (`Retry-After`), and not for the backoff.
    pub fn is_asked_to_wait(&self) -> bool {
        self.is_asked_to_wait
    }

    pub(super) fn set_asked_to_wait(&mut self, is_asked_to_wait: bool) {
        self.is_asked_to_wait = is_asked_to_wait;
    }

    /// When this event has failed for so long that its user is stuck.
    pub fn stuck_from(&self) -> Moment {
        let from = self.times.first_ms.saturating_add(whole_ms(LOG_REMINDER_INTERVAL));
        Moment::from_millis(u64::try_from(from).unwrap_or(0))
    }

    /// When the first attempt failed, in milliseconds since the Unix epoch.
    pub fn first_failure_ms(&self, now: BothClocks) -> i64 {
        unix_ms(self.times.first_ms, now)
    }

    /// When the last attempt failed, in milliseconds since the Unix epoch.
    pub fn last_failure_ms(&self, now: BothClocks) -> i64 {
        unix_ms(self.times.last_ms, now)
    }

    /// Records that another attempt failed at this moment. `healthy_time` is that of the breaker.
    pub(crate) fn add_failure(&mut self, now: Moment, healthy_time: Duration) {
        let times = &mut self.times;
        times.last_ms = whole_ms(now);
        if self.failures == 0 {
            times.first_ms = times.last_ms;
        } else {
            let healthy = healthy_time.saturating_sub(times.healthy_at_last);
            times.counted += healthy + std::mem::take(&mut times.uncounted);
        }
        times.healthy_at_last = healthy_time;
        self.failures = self.failures.saturating_add(1);
    }

    /// The failures that lengthen the backoff: at least 1.
    pub(super) fn backoff_steps(&self) -> u32 {
        self.failures.saturating_sub(self.excused).max(1)
    }

    /// Brings the account of tries up to date with the breaker, then adds this attempt if it counts.
    pub(super) fn add_try(&mut self, breaker: &Breaker, judgement: TryJudgement) {
        self.excused = self.excused.saturating_add(u32::from(judgement.is_excused));
        let tries = &mut self.tries;
        if breaker.is_void(tries.health_epoch) {
            tries.revocable = 0;
        }
        if tries.health_epoch != judgement.health_epoch {
            // Only the current epoch of the breaker can turn void, so tries under an older one are final.
            tries.confirmed = tries.confirmed.saturating_add(std::mem::take(&mut tries.revocable));
            tries.health_epoch = judgement.health_epoch;
        }
        if judgement.counts {
            tries.revocable = tries.revocable.saturating_add(1);
        }
    }

    /// Keeps the beginning of an answer.
    pub(super) fn set_answer(&mut self, answer: &str) {
        self.answer = text::shown(answer.as_bytes(), HISTORY_ANSWER_BYTES_MAX).into();
    }

    /// Whether the destination has refused this event for good. The first refusal never decides it, even if another
    /// user was served before the refusal arrived. Later refusals are measured from the first one. If each were measured
    /// from itself, every one of them would have to wait for another user's delivery.
    pub(super) fn is_refused_for_good(
        &mut self,
        breaker: &Breaker,
        attempt: &Attempt,
        judgement: TryJudgement,
        now: Moment,
    ) -> bool {
        // A destination in an outage or in bad health refuses every event, so such a refusal says nothing about this one.
        self.first_refusal = self.first_refusal.filter(|first| !breaker.is_void(first.health_epoch));
        if !judgement.counts {
            return false;
        }
        match &self.first_refusal {
            Some(first) => breaker.refusal_is_final(first, now),
            None => {
                self.first_refusal = Some(breaker.refusal(attempt, now));
                false
            }
        }
    }
}

fn whole_ms(moment: Moment) -> i64 {
    i64::try_from(moment.as_millis()).unwrap_or(i64::MAX)
}

/// The time since the Unix epoch of a time on the clock of [`Moment`]. All are in milliseconds.
fn unix_ms(moment_ms: i64, now: BothClocks) -> i64 {
    now.wall_ms.saturating_sub(whole_ms(now.moment).saturating_sub(moment_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DELAY_MAX: Duration = Duration::from_secs(300);

    fn at(second: u64) -> BothClocks {
        BothClocks { moment: Duration::from_secs(second), wall_ms: 1_767_350_000_000 + second as i64 * 1_000 }
    }

    /// The clocks of a process that started this many seconds after the first one.
    fn after_restart(second: u64, started: u64) -> BothClocks {
        BothClocks { moment: Duration::from_secs(second - started), ..at(second) }
    }

    #[test]
    fn an_account_continues_after_a_restart_with_its_true_times() {
        let mut history = FailureHistory::default();
        history.add_failure(at(1_000).moment, at(1_000).moment);
        history.add_failure(at(1_060).moment, at(1_060).moment);
        history.set_answer("500 Internal Server Error");
        history.tries.revocable = 2;
        history.tries.health_epoch = 5;
        let without_void = history.to_stored(7, at(1_360).moment, |epoch| epoch == 5, at(1_061));
        assert_eq!((without_void.failures, without_void.tries), (2, 0), "an outage took these tries back");
        let stored = history.to_stored(7, at(1_360).moment, |epoch| epoch == 4, at(1_061));
        assert_eq!((stored.offset, stored.failures, stored.tries, stored.counted_ms), (7, 2, 2, 60_000));
        assert_eq!((stored.first_failure_ms, stored.last_failure_ms), (at(1_000).wall_ms, at(1_060).wall_ms));
        assert_eq!(stored.next_try_ms, at(1_360).wall_ms);
        let now = after_restart(1_100, 1_095);
        let mut restored = FailureHistory::restored(&stored, Duration::from_secs(5), DELAY_MAX, now);
        assert_eq!(restored.failing_for(now.moment), Duration::from_secs(100), "it failed before this process began");
        assert!(!restored.has_failed_since(Duration::from_secs(1)), "nothing failed in this process");
        assert_eq!((restored.tries(), &*restored.answer), (2, "500 Internal Server Error"));
        assert_eq!(
            restored.to_stored(7, Duration::from_secs(265), |_| false, now),
            stored,
            "it is stored again without a change"
        );
        let now = after_restart(1_360, 1_095);
        restored.add_failure(now.moment, now.moment);
        assert_eq!((restored.failures, restored.counted_time()), (3, Duration::from_secs(360)));
        assert_eq!(restored.first_failure_ms(now), at(1_000).wall_ms);
        assert_eq!(restored.last_failure_ms(now), at(1_360).wall_ms);
    }

    #[test]
    fn the_time_that_no_process_saw_counts_as_the_longest_delay_at_most() {
        let mut history = FailureHistory::default();
        history.add_failure(at(10).moment, at(10).moment);
        let stored = history.to_stored(7, at(20).moment, |_| false, at(10));
        let (a_day, now) = (86_400, after_restart(86_400, 86_400));
        let mut restored = FailureHistory::restored(&stored, Duration::ZERO, DELAY_MAX, now);
        let now = after_restart(a_day + 5, a_day);
        restored.add_failure(now.moment, now.moment);
        assert_eq!(restored.counted_time(), DELAY_MAX + Duration::from_secs(5));
        let failing_for = Duration::from_secs(a_day + 5 - 10);
        assert_eq!(restored.failing_for(now.moment), failing_for);
    }

    #[test]
    fn after_a_restart_failures_that_used_no_try_do_not_lengthen_the_backoff() {
        for (tries, steps) in [(0, 1), (3, 4), (8, 9)] {
            let mut history = FailureHistory::default();
            (0..8).for_each(|second| history.add_failure(at(second).moment, at(second).moment));
            history.tries.confirmed = tries;
            let stored = history.to_stored(7, at(20).moment, |_| false, at(10));
            let now = after_restart(20, 15);
            let mut restored = FailureHistory::restored(&stored, Duration::ZERO, DELAY_MAX, now);
            restored.add_failure(now.moment, now.moment);
            assert_eq!((restored.failures, restored.backoff_steps()), (9, steps), "{tries} tries");
        }
    }

    proptest! {
        #[test]
        fn any_stored_account_can_be_restored_and_keeps_its_numbers(
            (offset, failures, tries, counted_ms) in any::<(i64, u32, u32, u64)>(),
            (first_failure_ms, last_failure_ms, next_try_ms) in any::<(i64, i64, i64)>(),
            second in 0u64..10_000_000,
        ) {
            let answer = "500".into();
            let stored = FailedHead { offset, failures, tries, first_failure_ms, last_failure_ms, counted_ms, next_try_ms, answer };
            let now = at(second);
            let mut restored = FailureHistory::restored(&stored, now.moment, DELAY_MAX, now);
            let again = restored.to_stored(offset, now.moment, |_| false, now);
            prop_assert_eq!((again.failures, again.tries, again.counted_ms), (failures, tries, counted_ms));
            // A time in the future, after the wall clock was set back, counts as now.
            prop_assert!(again.first_failure_ms <= now.wall_ms && again.last_failure_ms <= now.wall_ms);
            restored.add_failure(now.moment + DELAY_MAX, now.moment + DELAY_MAX);
            prop_assert!(restored.counted_time() <= Duration::from_millis(counted_ms) + 2 * DELAY_MAX);
            prop_assert_eq!(restored.failures, failures.saturating_add(1));
        }
    }
}
