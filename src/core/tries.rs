//! The account of an event's tries: what a failed attempt counts, when tries are taken back, and what comes next.
//!
//! ```text
//!  failed attempt ──▶ breaker: is it a try? ──▶ FailureHistory of the event ──┬──▶ retry at a moment
//!                     (and its health epoch)                                  └──▶ give up: exhausted, or refused
//! ```
//!
//! # Which attempts are tries
//!
//! The [`Breaker`] decides whether a failed attempt counts as a try of its event. An attempt that failed because of the
//! destination does not count. Sometimes that is known only later: an outage by answers looks like a few bad events
//! until five users have failed. So a try is *revocable* at first. It is counted under the breaker's current *health
//! epoch*, and one of two things ends that epoch:
//!
//! - An event is delivered in good health. The breaker begins a new epoch, and the tries under the old one are final.
//! - The health turns bad. The breaker declares the epoch void, and the tries under it are taken back.
//!
//! ```text
//!  attempts of one event      ✗    ✗  │   ✗    ✗    ✗  │  ✗   …
//!  health epoch               7    7  │   8    8    8  │  9
//!                        delivery ────┘   outage: 8 is void ──▶ tries: 2 final (epoch 7) + 1 revocable (9)
//! ```
//!
//! Nothing visits the events when an epoch turns void. Each event looks at its own epoch at its next failure, so an outage
//! with a full window costs nothing at that moment.
//!
//! # Which refusal is believed
//!
//! A refusal (a status like 400) gives the event up long before its tries are used up, so it has to be certain. The
//! first refusal is only remembered. A later one gives up the event if the breaker shows that other users were served
//! since the first one began (or if 10 s have passed). Any answer in between that is not a refusal starts this anew.
//!
//! # Which answer a dead letter shows
//!
//! It shows the whole answer of the last attempt. The history keeps only the beginning of that answer, for the log line
//! about a stuck user, because every lane that fails holds one.

use super::Moment;
use super::backoff::Backoff;
use super::breaker::{Attempt, Breaker, Refusal, TryJudgement};
use super::text;
use super::verdict::{Failed, Verdict};
use std::time::Duration;

/// Bytes of the last answer that a failure history keeps, for the log line about a stuck user.
const HISTORY_ANSWER_BYTES_MAX: usize = 64;

/// When an event is tried again, and when it is given up.
#[derive(Debug, Clone, Copy)]
pub struct TryPolicy {
    /// Tries of an event before it is given up (`--attempts`).
    pub attempts_max: u32,
    pub backoff: Backoff,
    /// The longest `Retry-After` of a destination that is obeyed.
    pub retry_after_max: Duration,
}

/// What happens next to an event that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is attempted again, but not before this moment.
    Retry { at: Moment },
    /// It has no further attempt.
    GiveUp(GiveUpReason),
}

/// Why an event is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpReason {
    /// It has used all tries of `--attempts`.
    Exhausted,
    /// The destination will never take it.
    Refused,
}

impl GiveUpReason {
    /// The word in the header `eventd-reason` of a dead letter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Refused => "refused",
        }
    }
}

/// The failed attempts of one event so far. The head of a lane has one if it has failed; it ends with the event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailureHistory {
    /// Failed attempts, for whatever reason. The backoff grows with this number, also during an outage.
    pub failures: u32,
    /// When the first attempt failed.
    pub first_failure: Moment,
    /// When the last attempt failed.
    pub last_failure: Moment,
    /// The beginning of the last answer.
    pub answer: Box<str>,
    /// Tries that can no longer be taken back.
    final_tries: u32,
    /// Tries under `health_epoch`. They are taken back if the breaker declares that epoch void.
    revocable_tries: u32,
    health_epoch: u64,
    /// The first of the latest refusals in a row. It is remembered because a refusal is believed only if other users
    /// were served after it, which is not known when it arrives.
    first_refusal: Option<Refusal>,
}

impl FailureHistory {
    /// Tries that count so far, also those that may be taken back.
    pub fn tries(&self) -> u32 {
        self.final_tries.saturating_add(self.revocable_tries)
    }

    /// Records that another attempt failed at this moment.
    pub(crate) fn add_failure(&mut self, now: Moment) {
        if self.failures == 0 {
            self.first_failure = now;
        }
        self.last_failure = now;
        self.failures = self.failures.saturating_add(1);
    }

    /// Brings the account of tries up to date with the breaker, then adds this attempt if it counts.
    fn add_try(&mut self, breaker: &Breaker, judgement: TryJudgement) {
        if breaker.is_void(self.health_epoch) {
            self.revocable_tries = 0;
        }
        if self.health_epoch != judgement.health_epoch {
            // Only the current epoch of the breaker can turn void, so tries under an older one are final.
            self.final_tries += std::mem::take(&mut self.revocable_tries);
            self.health_epoch = judgement.health_epoch;
        }
        if judgement.counts {
            self.revocable_tries += 1;
        }
    }

    /// Whether the destination has refused this event for good. The first refusal never decides it, even if another
    /// user was served before the refusal arrived. Later refusals are measured from the first one. If each were measured
    /// from itself, every one of them would have to wait for another user's delivery.
    fn is_refused_for_good(
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
                self.first_refusal = Some(Refusal { attempt: *attempt, at: now, health_epoch: judgement.health_epoch });
                false
            }
        }
    }
}

impl TryPolicy {
    /// Adds a failed attempt to the breaker and to its event's history, and decides what comes next. `random` is any
    /// number, a new one for each call: the jitter of the backoff.
    pub fn judge(
        &self,
        breaker: &mut Breaker,
        attempt: &Attempt,
        failed: &Failed,
        history: &mut FailureHistory,
        now: Moment,
        random: u64,
    ) -> Decision {
        let verdict = failed.verdict;
        let judgement = breaker.failed(attempt, verdict, now);
        history.add_failure(now);
        history.add_try(breaker, judgement);
        history.answer = text::shown(failed.answer.as_bytes(), HISTORY_ANSWER_BYTES_MAX).into();
        let is_refused = match verdict {
            Verdict::Refused => history.is_refused_for_good(breaker, attempt, judgement, now),
            // A fault drill never reached the destination, so it does not contradict an earlier refusal.
            Verdict::Drilled => false,
            Verdict::Retry { .. } | Verdict::Busy { .. } | Verdict::Unreachable => {
                history.first_refusal = None;
                false
            }
        };
        if is_refused {
            return Decision::GiveUp(GiveUpReason::Refused);
        }
        // An attempt that does not count never gives up, even if taking tries back is still to come for this event.
        if judgement.counts && history.tries() >= self.attempts_max {
            return Decision::GiveUp(GiveUpReason::Exhausted);
        }
        let delay = match verdict {
            Verdict::Retry { after } | Verdict::Busy { after } => after.map(|after| after.min(self.retry_after_max)),
            Verdict::Refused | Verdict::Unreachable | Verdict::Drilled => None,
        };
        let delay = delay.unwrap_or_else(|| self.backoff.delay(history.failures, random));
        Decision::Retry { at: now.saturating_add(delay) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATTEMPTS_MAX: u32 = 3;
    const RETRY: Verdict = Verdict::Retry { after: None };
    const GIVEN_UP: Decision = Decision::GiveUp(GiveUpReason::Refused);
    const EXHAUSTED: Decision = Decision::GiveUp(GiveUpReason::Exhausted);

    fn policy() -> TryPolicy {
        TryPolicy {
            attempts_max: ATTEMPTS_MAX,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(2), false).unwrap(),
            retry_after_max: Duration::from_secs(300),
        }
    }

    /// One event of user 1, and what is decided about it after each answer.
    #[derive(Default)]
    struct Scene {
        breaker: Breaker,
        history: FailureHistory,
        now: Moment,
    }

    impl Scene {
        fn attempt(&mut self) -> Attempt {
            self.now += Duration::from_secs(1);
            self.breaker.begin(1, self.now)
        }

        fn ends(&mut self, attempt: &Attempt, verdict: Verdict) -> Decision {
            let failed = Failed::new(verdict, "the answer");
            policy().judge(&mut self.breaker, attempt, &failed, &mut self.history, self.now, 0)
        }

        fn fails(&mut self, verdict: Verdict) -> Decision {
            let attempt = self.attempt();
            self.ends(&attempt, verdict)
        }

        fn retries(&mut self, verdict: Verdict) {
            let decision = self.fails(verdict);
            assert!(matches!(decision, Decision::Retry { .. }), "{verdict:?} led to {decision:?}");
        }

        fn others_are_delivered(&mut self) {
            for user in 2..5 {
                let attempt = self.breaker.begin(user, self.now);
                self.breaker.delivered(&attempt, self.now);
            }
        }

        fn five_others_fail(&mut self) {
            for user in 2..7 {
                let attempt = self.breaker.begin(user, self.now);
                self.breaker.failed(&attempt, RETRY, self.now);
            }
        }
    }

    #[test]
    fn an_event_is_given_up_when_its_tries_are_used_up() {
        let mut scene = Scene::default();
        scene.retries(RETRY);
        scene.others_are_delivered();
        scene.retries(Verdict::Drilled);
        assert_eq!(scene.history.tries(), 2);
        assert_eq!(scene.fails(RETRY), EXHAUSTED);
        assert_eq!((scene.history.failures, scene.history.first_failure), (3, Duration::from_secs(1)));
        assert_eq!(scene.history.last_failure, Duration::from_secs(3));
    }

    #[test]
    fn attempts_that_never_arrive_and_a_busy_destination_use_no_try() {
        for verdict in [Verdict::Unreachable, Verdict::Busy { after: None }] {
            let mut scene = Scene::default();
            for _ in 0..10 * ATTEMPTS_MAX {
                scene.retries(verdict);
            }
            assert_eq!((scene.history.tries(), scene.history.failures), (0, 10 * ATTEMPTS_MAX), "{verdict:?}");
        }
    }

    #[test]
    fn tries_of_an_outage_are_taken_back_and_older_ones_stay() {
        let mut scene = Scene::default();
        scene.retries(RETRY);
        // The delivery makes that try final. The next one is revocable.
        scene.others_are_delivered();
        scene.retries(RETRY);
        assert_eq!(scene.history.tries(), 2);
        scene.five_others_fail();
        scene.retries(RETRY);
        assert_eq!(scene.history.tries(), 1, "the try of the outage is taken back");
    }

    #[test]
    fn a_retry_waits_for_the_backoff_or_as_long_as_the_destination_asks() {
        let delay_ms = |verdicts: &[Verdict]| {
            let mut scene = Scene::default();
            let mut decision = EXHAUSTED;
            for verdict in verdicts {
                decision = scene.fails(*verdict);
            }
            let Decision::Retry { at } = decision else { panic!("{decision:?}") };
            (at - scene.now).as_millis()
        };
        let asked = |seconds| Verdict::Busy { after: Some(Duration::from_secs(seconds)) };
        assert_eq!(delay_ms(&[RETRY]), 100);
        assert_eq!(delay_ms(&[RETRY, RETRY]), 200);
        assert_eq!(delay_ms(&[asked(7)]), 7_000);
        assert_eq!(delay_ms(&[asked(100_000)]), 300_000, "no longer than --retry-after-max");
        assert_eq!(delay_ms(&[asked(7), Verdict::Unreachable]), 200, "an earlier Retry-After is over");
    }

    #[test]
    fn an_event_that_is_refused_while_others_are_served_is_given_up_at_its_next_refusal() {
        let mut scene = Scene::default();
        scene.others_are_delivered();
        scene.retries(Verdict::Refused);
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), GIVEN_UP);
    }

    #[test]
    fn the_first_refusal_never_gives_up_whatever_was_delivered_before_it_arrived() {
        let mut scene = Scene::default();
        let slow = scene.attempt();
        scene.others_are_delivered();
        scene.now += Duration::from_secs(11);
        assert!(matches!(scene.ends(&slow, Verdict::Refused), Decision::Retry { .. }));
        assert_eq!(scene.fails(Verdict::Refused), GIVEN_UP, "others were served since the first attempt began");
    }

    #[test]
    fn another_failure_between_two_refusals_makes_the_second_one_the_first() {
        for between in [RETRY, Verdict::Busy { after: None }] {
            let mut scene = Scene::default();
            scene.retries(Verdict::Refused);
            scene.others_are_delivered();
            scene.retries(between);
            let policy = TryPolicy { attempts_max: 10, ..policy() };
            let (attempt, failed) = (scene.attempt(), Failed::new(Verdict::Refused, ""));
            let Scene { breaker, history, now } = &mut scene;
            let decision = policy.judge(breaker, &attempt, &failed, history, *now, 0);
            assert!(matches!(decision, Decision::Retry { .. }), "after {between:?}: {decision:?}");
        }
    }

    #[test]
    fn a_drill_between_two_refusals_changes_nothing() {
        let mut scene = Scene::default();
        scene.retries(Verdict::Refused);
        scene.others_are_delivered();
        scene.retries(Verdict::Drilled);
        assert_eq!(scene.fails(Verdict::Refused), GIVEN_UP);
    }

    #[test]
    fn a_refusal_that_an_outage_caused_is_forgotten_with_it() {
        let mut scene = Scene::default();
        scene.retries(Verdict::Refused);
        let other = scene.breaker.begin(2, scene.now);
        scene.breaker.failed(&other, Verdict::Unreachable, scene.now);
        scene.now += Duration::from_secs(1);
        scene.others_are_delivered();
        // This is the first refusal that counts.
        scene.retries(Verdict::Refused);
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), GIVEN_UP);
    }

    #[test]
    fn the_history_keeps_only_the_beginning_of_an_answer() {
        let mut scene = Scene::default();
        let (attempt, failed) = (scene.attempt(), Failed::new(RETRY, "x".repeat(1_000)));
        let Scene { breaker, history, now } = &mut scene;
        policy().judge(breaker, &attempt, &failed, history, *now, 0);
        assert!(history.answer.starts_with("xxx") && history.answer.len() < HISTORY_ANSWER_BYTES_MAX + 10);
    }
}
