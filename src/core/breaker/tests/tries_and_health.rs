//! Which failures are tries, which users are suspect, and how health is judged.

use super::*;

#[test]
fn a_drilled_failure_is_a_try_and_says_nothing_about_the_destination() {
    let mut test = TestBreaker::default();
    for user in 0..100 {
        assert!(test.fail(user, Verdict::Drilled).counts);
    }
    test.deliver([1000]);
    assert_eq!((test.gate(), test.health()), (Gate::Closed, Health::Unknown));
    assert!((0..100).all(|user| !test.breaker.is_suspect(user)));
}

#[test]
fn busy_answers_are_not_tries_but_five_users_with_them_open_the_breaker() {
    let mut test = TestBreaker::default();
    for user in 1..=4 {
        assert!(!test.fail(user, BUSY).counts);
    }
    assert_eq!(test.gate(), Gate::Closed);
    test.fail(5, BUSY);
    assert_eq!(test.breaker.snapshot(test.now).open, Some(OpenCause::NoUserDelivered));
}

#[test]
fn five_users_in_a_row_without_a_delivery_open_the_breaker_and_their_tries_are_taken_back() {
    let mut test = TestBreaker::default();
    test.deliver(100..120);
    test.long_after_the_last_delivery();
    let tries: Vec<TryJudgement> = (1..=4).map(|user| test.fail(user, RETRY)).collect();
    assert!(tries.iter().all(|judgement| judgement.counts && !test.breaker.is_void(judgement.health_epoch)));
    assert!(!test.fail(5, RETRY).counts);
    assert!(test.is_open());
    assert!(tries.iter().all(|judgement| test.breaker.is_void(judgement.health_epoch)));
    assert!(!test.breaker.is_void(test.breaker.health_epoch()));
}

#[test]
fn with_fewer_than_five_users_every_failure_is_a_try_of_its_event() {
    let mut test = TestBreaker::default();
    for _ in 0..50 {
        for user in 1..=4 {
            let judgement = test.fail(user, RETRY);
            assert!(judgement.counts);
        }
    }
    assert_eq!((test.gate(), test.health()), (Gate::Closed, Health::Unknown));
    assert!(!test.breaker.is_void(0));
}

#[test]
fn health_is_judged_by_the_last_twenty_users() {
    let mut test = TestBreaker::default();
    let attempts: Vec<Attempt> = (0..40).map(|user| test.begin(user)).collect();
    let (mut delivered, mut failed) = attempts.split_at(20);
    let mut play = |test: &mut TestBreaker, words: &str| {
        for word in words.chars() {
            let side = if word == '+' { &mut delivered } else { &mut failed };
            let (attempt, rest) = side.split_first().unwrap();
            *side = rest;
            match word {
                '+' => test.breaker.delivered(attempt, test.now),
                _ => drop(test.end(attempt, RETRY)),
            }
        }
        test.health()
    };
    assert_eq!(play(&mut test, "++++++++++----+----+--"), Health::Good, "10 of 20");
    assert_eq!(play(&mut test, "-"), Health::Bad, "9 of 20");
}

#[test]
fn verdicts_older_than_a_minute_do_not_count() {
    let mut test = TestBreaker::default();
    for user in 1..=4 {
        test.fail(user, RETRY);
    }
    test.now += Duration::from_secs(60);
    assert!(test.fail(5, RETRY).counts);
    assert_eq!((test.gate(), test.health()), (Gate::Closed, Health::Unknown));
}

#[test]
fn a_user_that_failed_is_suspect_from_the_later_delivery_of_another_user_until_its_own_delivery() {
    let mut test = TestBreaker::default();
    let (before, failing, after) = (test.begin(1), test.begin(2), test.begin(3));
    test.end(&failing, RETRY);
    test.breaker.delivered(&before, test.now);
    assert!(!test.breaker.is_suspect(2), "the delivered attempt began before the failed one");
    test.breaker.delivered(&after, test.now);
    assert!(test.breaker.is_suspect(2));
    test.fail(2, RETRY);
    assert!(test.breaker.is_suspect(2), "another failure does not make the user trusted");
    test.deliver([2]);
    assert!(!test.breaker.is_suspect(2));
}

#[test]
fn a_delivery_before_a_failure_makes_its_user_suspect_only_if_the_attempt_hung() {
    for (took, is_suspect) in [(ms(990), false), (ms(1_000), true)] {
        let mut test = TestBreaker::default();
        let failing = test.begin(1);
        test.deliver([2]);
        test.now = failing.began + took - ms(1);
        test.end(&failing, RETRY);
        assert_eq!(test.breaker.is_suspect(1), is_suspect, "after {took:?}");
        test.deliver([3]);
        assert!(test.breaker.is_suspect(1));
    }
}

#[test]
fn a_user_does_not_become_suspect_by_its_own_deliveries() {
    let mut test = TestBreaker::default();
    let (first, second) = (test.begin(1), test.begin(1));
    test.end(&first, RETRY);
    test.breaker.delivered(&second, test.now);
    test.fail(1, RETRY);
    assert!(!test.breaker.is_suspect(1));
}

#[test]
fn any_number_of_users_with_poison_events_uses_up_its_tries_and_never_opens_the_breaker() {
    let mut test = TestBreaker::default();
    for round in 0..20 {
        for user in 0..50 {
            let judgement = test.fail(user, RETRY);
            assert!(judgement.counts, "round {round}, user {user}");
            assert_eq!(test.gate(), Gate::Closed);
            if round == 0 {
                test.deliver([1000 + user]);
            }
        }
    }
}

#[test]
fn users_with_poison_events_become_suspect_even_if_they_fail_before_the_others_are_delivered() {
    let mut test = TestBreaker::default();
    let attempts: Vec<Attempt> = (0..40).map(|user| test.begin(user)).collect();
    let (poison, good): (Vec<Attempt>, Vec<Attempt>) = attempts.iter().partition(|attempt| attempt.user < 20);
    for attempt in &poison {
        test.end(attempt, RETRY);
    }
    assert!(test.is_open());
    for attempt in &good {
        test.breaker.delivered(attempt, test.now);
    }
    for _ in 0..10 {
        for attempt in &poison {
            assert!(test.fail(attempt.user, RETRY).counts);
        }
    }
}

#[test]
fn five_users_that_fail_right_after_a_delivery_are_bad_health_and_not_an_outage() {
    let mut test = TestBreaker::default();
    test.deliver([9]);
    let tries: Vec<TryJudgement> = (1..=3).map(|user| test.fail(user, RETRY)).collect();
    assert!(tries.iter().all(|judgement| judgement.counts));
    assert!(!test.fail(4, RETRY).counts && !test.fail(5, RETRY).counts);
    assert!(tries.iter().all(|judgement| test.breaker.is_void(judgement.health_epoch)));
    assert_eq!((test.gate(), test.breaker.attempts_allowed(64, test.now)), (Gate::Closed, 32));
    test.long_after_the_last_delivery();
    test.fail(6, RETRY);
    assert_eq!(test.open(), Some(OpenCause::NoUserDelivered));
}

#[test]
fn in_a_brownout_of_served_users_no_try_counts_although_each_of_them_is_delivered_sooner_or_later() {
    let mut test = TestBreaker::default();
    test.deliver(0..20);
    let mut tries = 0;
    for round in 0..400 {
        // Each user fails 19 times for one delivery.
        for user in 0..20 {
            match (round + user) % 20 {
                0 => test.deliver([user]),
                _ => tries += u32::from(test.fail(user, RETRY).counts),
            }
        }
        test.now += Duration::from_millis(500);
    }
    assert!(tries <= 20, "{tries} tries counted of 7,600 failures");
    assert_eq!(test.health(), Health::Bad);
}

#[test]
fn newcomers_that_always_fail_do_not_make_the_health_of_a_single_served_user_bad() {
    let mut test = TestBreaker::default();
    for second in 0..600 {
        test.deliver([0]);
        assert!(test.fail(1_000 + second, RETRY).counts);
        assert!(test.fail(1_000 + second, RETRY).counts);
        assert_eq!(test.breaker.attempts_allowed(64, test.now), 64);
        test.now += Duration::from_secs(1);
    }
}

#[test]
fn after_bad_health_and_a_short_outage_all_attempts_are_allowed_again() {
    let mut test = TestBreaker::default();
    test.deliver([9]);
    (1..=5).for_each(|user| _ = test.fail(user, RETRY));
    test.long_after_the_last_delivery();
    test.fail(6, RETRY);
    assert!(test.is_open());
    let attempt = test.begin(9);
    test.breaker.delivered(&attempt, test.now);
    assert_eq!(test.breaker.attempts_allowed(64, test.now), 32);
    assert_eq!(test.breaker.attempts_allowed(64, test.now + ms(500)), 64);
}
