//! What becomes of an event that was not delivered: another try, or the end of its tries.

use super::Config;
use super::dead_letter::Reason;
use crate::core::Moment;
use crate::core::breaker::{Attempt, Breaker, Refusal, TryJudgement};
use crate::core::lanes::{FailureHistory, Next};
use crate::core::verdict::Verdict;

/// Judges one failed attempt by the destination's health at its end, and keeps the event's own account.
pub(super) fn judge(
    config: &Config,
    breaker: &mut Breaker,
    attempt: &Attempt,
    verdict: Verdict,
    history: &mut FailureHistory,
    now: Moment,
    random: u64,
) -> (Next, Option<Reason>) {
    let judgement = breaker.failed(attempt, verdict, now);
    history.last_failure = now;
    if history.failures == 0 {
        history.first_failure = now;
    }
    history.failures = history.failures.saturating_add(1);
    if breaker.is_void(history.mark) {
        history.tries_since_mark = 0;
    }
    if history.mark != judgement.health_epoch {
        history.tries += std::mem::take(&mut history.tries_since_mark);
        history.mark = judgement.health_epoch;
    }
    if judgement.counts {
        history.tries_since_mark += 1;
    }
    let refused = match verdict {
        Verdict::Refused => refused_for_good(breaker, attempt, judgement, history, now),
        // A drill never reached the destination: it says nothing against what the destination said before.
        Verdict::Drilled => false,
        Verdict::Retry { .. } | Verdict::Busy { .. } | Verdict::Unreachable => {
            history.first_refusal = None;
            false
        }
    };
    if refused {
        return (Next::GiveUp, Some(Reason::Refused));
    }
    if judgement.counts && history.tries + history.tries_since_mark >= config.attempts {
        return (Next::GiveUp, Some(Reason::Exhausted));
    }
    let asked = match verdict {
        Verdict::Retry { after } | Verdict::Busy { after } => after.map(|after| after.min(config.retry_after_max)),
        Verdict::Refused | Verdict::Unreachable | Verdict::Drilled => None,
    };
    let delay = asked.unwrap_or_else(|| config.backoff.delay(history.failures, random));
    (Next::Retry { at: now.saturating_add(delay) }, None)
}

/// Whether the destination has refused the event itself. The first refusal never tells: the event is tried again, even if
/// a later attempt of another user was delivered before the refusal arrived. A later refusal only shows that the
/// destination still thinks so. It is judged from the first one: judging from the later one would ask for another user's
/// delivery after each try.
fn refused_for_good(
    breaker: &Breaker,
    attempt: &Attempt,
    judgement: TryJudgement,
    history: &mut FailureHistory,
    now: Moment,
) -> bool {
    // A destination that is out or in bad health refuses every event. Such a refusal does not concern this event.
    history.first_refusal = history.first_refusal.filter(|first| !breaker.is_void(first.health_epoch));
    if !judgement.counts {
        return false;
    }
    let refusal = Refusal { attempt: *attempt, at: now, health_epoch: judgement.health_epoch };
    let Some(first) = &history.first_refusal else {
        history.first_refusal = Some(refusal);
        return false;
    };
    breaker.refusal_is_final(first, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::backoff::Backoff;
    use crate::dispatch::{OnGap, Start, WhenStopped};
    use std::time::Duration;

    fn config() -> Config {
        Config {
            attempts: 10,
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(2), false).unwrap(),
            attempt_timeout: Duration::from_secs(15),
            retry_after_max: Duration::from_secs(300),
            concurrency: 1,
            window_events: 1,
            window_bytes: 1,
            commit_interval: Duration::from_millis(200),
            start: Start::Earliest,
            on_gap: OnGap::Stop,
            when_stopped: WhenStopped::Stay,
            drain: Duration::from_secs(1),
            dead_retention: Duration::from_secs(1),
            seed: 0,
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
        fn fails(&mut self, verdict: Verdict) -> Option<Reason> {
            self.now += Duration::from_secs(1);
            let attempt = self.breaker.begin(1, self.now);
            let Self { breaker, history, now } = self;
            judge(&config(), breaker, &attempt, verdict, history, *now, 0).1
        }

        fn others_are_delivered(&mut self) {
            for user in 2..5 {
                let attempt = self.breaker.begin(user, self.now);
                self.breaker.delivered(&attempt, self.now);
            }
        }
    }

    #[test]
    fn an_event_that_is_refused_while_others_are_served_is_given_up_at_its_next_refusal() {
        let mut scene = Scene::default();
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), None);
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), Some(Reason::Refused));
    }

    #[test]
    fn the_first_refusal_never_gives_up_whatever_was_delivered_before_it_arrived() {
        let mut scene = Scene::default();
        let slow = scene.breaker.begin(1, scene.now);
        scene.others_are_delivered();
        scene.now += Duration::from_secs(11);
        let Scene { breaker, history, now } = &mut scene;
        assert_eq!(judge(&config(), breaker, &slow, Verdict::Refused, history, *now, 0).1, None);
        assert_eq!(
            scene.fails(Verdict::Refused),
            Some(Reason::Refused),
            "others were served since the first one began"
        );
    }

    #[test]
    fn another_failure_between_two_refusals_begins_anew() {
        for between in [Verdict::Retry { after: None }, Verdict::Busy { after: None }] {
            let mut scene = Scene::default();
            assert_eq!(scene.fails(Verdict::Refused), None);
            scene.others_are_delivered();
            assert_eq!(scene.fails(between), None);
            assert_eq!(scene.fails(Verdict::Refused), None, "after {between:?}");
        }
    }

    #[test]
    fn a_drill_between_two_refusals_changes_nothing() {
        let mut scene = Scene::default();
        assert_eq!(scene.fails(Verdict::Refused), None);
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Drilled), None);
        assert_eq!(scene.fails(Verdict::Refused), Some(Reason::Refused));
    }

    #[test]
    fn a_refusal_that_an_outage_caused_is_forgotten_with_it() {
        let mut scene = Scene::default();
        assert_eq!(scene.fails(Verdict::Refused), None);
        let other = scene.breaker.begin(2, scene.now);
        scene.breaker.failed(&other, Verdict::Unreachable, scene.now);
        scene.now += Duration::from_secs(1);
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), None, "the first refusal that counts");
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), Some(Reason::Refused));
    }
}
