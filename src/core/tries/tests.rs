//! Tests of the decisions about an event, with the real breaker.

use super::history::HISTORY_ANSWER_BYTES_MAX;
use super::*;

const ATTEMPTS_MAX: u32 = 3;
const RETRY: Verdict = Verdict::Retry { after: None };
const GIVEN_UP: Decision = Decision::GiveUp(GiveUpReason::Refused);
const EXHAUSTED: Decision = Decision::GiveUp(GiveUpReason::Exhausted);

fn policy() -> TryPolicy {
    TryPolicy {
        attempts_max: Some(ATTEMPTS_MAX),
        give_up_after: None,
        on_exhausted: OnExhausted::DeadLetter,
        backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(2), false).unwrap(),
        retry_after_max: Duration::from_secs(300),
    }
}

/// One event of user 1, and what is decided about it after each answer.
struct Scene {
    policy: TryPolicy,
    breaker: Breaker,
    history: FailureHistory,
    now: Moment,
}

impl Default for Scene {
    fn default() -> Self {
        Self { policy: policy(), breaker: Breaker::new(), history: FailureHistory::default(), now: Moment::ZERO }
    }
}

impl Scene {
    fn attempt(&mut self) -> Attempt {
        self.now += Duration::from_secs(1);
        self.breaker.begin(1, self.now)
    }

    fn ends(&mut self, attempt: &Attempt, verdict: Verdict) -> Decision {
        let failed = Failed::new(verdict, "the answer");
        self.policy.judge(&mut self.breaker, attempt, &failed, &mut self.history, self.now, 0)
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
    assert_eq!((scene.history.failures, scene.history.failing_for(scene.now)), (3, Duration::from_secs(2)));
    assert!(
        scene.history.has_failed_since(Duration::from_secs(3))
            && !scene.history.has_failed_since(Duration::from_secs(4))
    );
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
    assert_eq!(delay_ms(&[asked(7), RETRY]), 200, "an earlier Retry-After is over");
    assert_eq!(delay_ms(&[RETRY, RETRY, Verdict::Unreachable]), 200, "an outage does not lengthen the backoff");
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
    scene.retries(Verdict::Refused);
    scene.others_are_delivered();
    assert_eq!(scene.fails(Verdict::Refused), GIVEN_UP, "others were served since the first refusal");
}

#[test]
fn another_failure_between_two_refusals_makes_the_second_one_the_first() {
    for between in [RETRY, Verdict::Busy { after: None }] {
        let mut scene = Scene::default();
        scene.retries(Verdict::Refused);
        scene.others_are_delivered();
        scene.retries(between);
        let policy = TryPolicy { attempts_max: Some(10), ..policy() };
        let (attempt, failed) = (scene.attempt(), Failed::new(Verdict::Refused, ""));
        let Scene { breaker, history, now, .. } = &mut scene;
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
    let Scene { breaker, history, now, .. } = &mut scene;
    policy().judge(breaker, &attempt, &failed, history, *now, 0);
    assert!(history.answer.starts_with("xxx") && history.answer.len() < HISTORY_ANSWER_BYTES_MAX + 10);
}

/// What is decided about an event of a user who is alone, failing once a minute as `verdict` says: the minutes after which
/// its tries end.
fn minutes_until_given_up(policy: &TryPolicy, verdict: Verdict) -> Option<u64> {
    let (mut breaker, mut history) = (Breaker::new(), FailureHistory::default());
    (0..10_000).find(|minute| {
        let now = Duration::from_secs(minute * 60);
        let attempt = breaker.begin(1, now);
        let decision = policy.judge(&mut breaker, &attempt, &Failed::new(verdict, ""), &mut history, now, 0);
        decision == EXHAUSTED
    })
}

#[test]
fn the_tries_end_at_the_number_of_attempts_or_after_the_time_whichever_comes_first() {
    let hour = Duration::from_secs(3_600);
    for (attempts_max, give_up_after, minutes) in [
        (None, Some(hour), Some(60)),
        (Some(100), Some(hour), Some(60)),
        (Some(10), Some(hour), Some(9)),
        (Some(10), None, Some(9)),
        (None, None, None),
    ] {
        let policy = TryPolicy { attempts_max, give_up_after, ..policy() };
        assert_eq!(minutes_until_given_up(&policy, RETRY), minutes, "{attempts_max:?} {give_up_after:?}");
    }
    let patient = TryPolicy { attempts_max: None, give_up_after: Some(hour), ..policy() };
    assert_eq!(minutes_until_given_up(&patient, Verdict::Busy { after: None }), Some(60), "429 uses up time");
    assert_eq!(minutes_until_given_up(&patient, Verdict::Unreachable), None, "an outage uses up nothing");
}

#[test]
fn the_time_of_an_outage_does_not_count_towards_giving_up() {
    let policy = TryPolicy { attempts_max: None, give_up_after: Some(Duration::from_secs(600)), ..policy() };
    let mut scene = Scene { policy, ..Scene::default() };
    scene.retries(RETRY);
    scene.now += Duration::from_secs(298);
    // Five minutes of good health, then an outage of a day.
    scene.retries(Verdict::Unreachable);
    scene.now += Duration::from_secs(86_400);
    scene.retries(Verdict::Unreachable);
    scene.others_are_delivered();
    scene.retries(RETRY);
    scene.now += Duration::from_secs(290);
    scene.retries(RETRY);
    assert!(scene.history.counted_time() < Duration::from_secs(600), "{:?}", scene.history.counted_time());
    scene.now += Duration::from_secs(10);
    assert_eq!(scene.fails(RETRY), EXHAUSTED);
    assert!(scene.history.failing_for(scene.now) > Duration::from_secs(86_400));
}

#[test]
fn events_end_as_on_exhausted_says_whether_exhausted_or_refused() {
    use GiveUpReason::{Exhausted, Refused};
    for (on_exhausted, exhausted, refused) in [
        (OnExhausted::DeadLetter, Decision::GiveUp(Exhausted), Decision::GiveUp(Refused)),
        (OnExhausted::Hold, Decision::Hold(Exhausted), Decision::Hold(Refused)),
        (OnExhausted::Drop, Decision::Drop(Exhausted), Decision::Drop(Refused)),
        (OnExhausted::Halt, Decision::Halt(Exhausted), Decision::Halt(Refused)),
    ] {
        let policy = TryPolicy { on_exhausted, ..policy() };
        let mut scene = Scene { policy, ..Scene::default() };
        scene.retries(RETRY);
        scene.retries(RETRY);
        assert_eq!(scene.fails(RETRY), exhausted);
        let mut scene = Scene { policy, ..Scene::default() };
        scene.others_are_delivered();
        scene.retries(Verdict::Refused);
        scene.others_are_delivered();
        assert_eq!(scene.fails(Verdict::Refused), refused);
    }
}

#[test]
fn a_stored_next_try_is_kept_and_a_changed_wall_clock_delays_it_no_longer_than_the_longest_delay() {
    let now = BothClocks { moment: Duration::from_secs(100), wall_ms: 1_767_350_000_000 };
    let next_try = |after_ms: i64| {
        let stored = FailedHead { next_try_ms: now.wall_ms + after_ms, ..FailedHead::default() };
        policy().next_try(&stored, now)
    };
    assert_eq!(next_try(1_500), Duration::from_millis(101_500));
    assert_eq!(next_try(86_400_000), Duration::from_secs(100) + policy().retry_after_max);
    assert!(next_try(-86_400_000) <= now.moment, "it is due");
}
