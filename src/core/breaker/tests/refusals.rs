//! When a refused event may be given up.

use super::*;

#[test]
fn in_bad_health_no_failure_is_a_try_and_no_refusal_is_final() {
    let mut test = TestBreaker::default();
    // Six attempts begin at the same time and only the first two are delivered. Their attempts began earlier, so the others
    // do not become suspect.
    let attempts: Vec<Attempt> = (1..=6).map(|user| test.begin(user)).collect();
    let tries: Vec<TryJudgement> = attempts[2..5].iter().map(|attempt| test.end(attempt, RETRY)).collect();
    assert!(tries.iter().all(|judgement| judgement.counts));
    test.breaker.delivered_many(&attempts[..2], test.now);
    assert_eq!(test.health(), Health::Bad);
    let refused = test.end(&attempts[5], Verdict::Refused);
    assert!(!refused.counts);
    let first = test.refusal(&attempts[5]);
    test.now += Duration::from_secs(11);
    assert!(!test.breaker.refusal_is_final(&first, test.now));
    assert!(tries.iter().all(|judgement| test.breaker.is_void(judgement.health_epoch)));
    // A later delivery makes the others suspect, so health is no longer bad and refusals count again.
    test.deliver([1]);
    assert_eq!(test.health(), Health::Unknown);
    assert!(test.breaker.refusal_is_final(&first, test.now));
}

#[test]
fn a_refusal_is_final_once_a_later_attempt_of_another_user_was_delivered() {
    let mut test = TestBreaker::default();
    let (refused, other) = (test.begin(1), test.begin(2));
    assert!(test.end(&refused, Verdict::Refused).counts);
    let first = test.refusal(&refused);
    assert!(!test.breaker.refusal_is_final(&first, test.now));
    test.breaker.delivered(&other, test.now);
    assert!(test.breaker.refusal_is_final(&first, test.now));
}

#[test]
fn deliveries_of_the_same_user_and_of_earlier_attempts_and_before_it_do_not_make_a_refusal_final() {
    let mut test = TestBreaker::default();
    let (earlier, refused, own, before) = (test.begin(2), test.begin(1), test.begin(1), test.begin(3));
    test.breaker.delivered(&before, test.now);
    test.end(&refused, Verdict::Refused);
    let first = test.refusal(&refused);
    test.breaker.delivered(&earlier, test.now);
    test.breaker.delivered(&own, test.now);
    assert!(!test.breaker.refusal_is_final(&first, test.now));
}

#[test]
fn the_refusal_of_a_single_user_is_final_after_ten_seconds() {
    let mut test = TestBreaker::default();
    let attempt = test.begin(1);
    test.end(&attempt, Verdict::Refused);
    let first = test.refusal(&attempt);
    let acts = |test: &TestBreaker, after| test.breaker.refusal_is_final(&first, first.at + after);
    assert!(!acts(&test, Duration::from_millis(9_999)));
    assert!(acts(&test, Duration::from_secs(10)));
}

#[test]
fn the_ten_seconds_of_a_refusal_begin_again_after_an_outage() {
    let mut test = TestBreaker::default();
    let refused = test.begin(1);
    test.end(&refused, Verdict::Refused);
    let first = test.refusal(&refused);
    test.fail(2, Verdict::Unreachable);
    test.now += Duration::from_secs(60);
    assert!(!test.breaker.refusal_is_final(&first, test.now));
    assert!(test.breaker.is_void(first.health_epoch), "the refusal was the fault of the outage");
    let probe = test.probe(1);
    test.breaker.delivered(&probe, test.now);
    assert_eq!(test.gate(), Gate::Closed);
    assert!(!test.breaker.refusal_is_final(&first, test.now + ms(9_999)));
    assert!(test.breaker.refusal_is_final(&first, test.now + ms(10_000)));
}

#[test]
fn if_every_user_is_refused_no_refusal_is_final_and_the_breaker_opens() {
    let mut test = TestBreaker::default();
    test.deliver(1..=20);
    test.long_after_the_last_delivery();
    for user in 1..=20 {
        let attempt = test.begin(user);
        test.end(&attempt, Verdict::Refused);
        let first = test.refusal(&attempt);
        assert!(!test.breaker.refusal_is_final(&first, test.now), "user {user}");
    }
    assert_eq!(test.breaker.snapshot(test.now).open, Some(OpenCause::NoUserDelivered));
}
