//! How the breaker opens, what counts during an outage, and how an outage ends.

use super::*;

#[test]
fn one_unreachable_attempt_of_any_user_opens_the_breaker_and_is_not_a_try() {
    let mut test = TestBreaker::default();
    test.fail(1, RETRY);
    test.deliver(2..30);
    assert!(test.breaker.is_suspect(1));
    let judgement = test.fail(1, Verdict::Unreachable);
    assert!(!judgement.counts);
    assert_eq!(test.gate(), Gate::Open { until: Some(test.now + ms(100)) });
    assert_eq!(test.breaker.snapshot(test.now).open, Some(OpenCause::Unreachable));
}

#[test]
fn attempts_in_flight_are_judged_by_the_state_of_the_breaker_at_their_end() {
    let mut test = TestBreaker::default();
    let attempts: Vec<Attempt> = (10..20).map(|user| test.begin(user)).collect();
    test.fail(1, Verdict::Unreachable);
    for attempt in &attempts {
        let judgement = test.end(attempt, Verdict::Refused);
        assert!(!judgement.counts);
    }
}

#[test]
fn if_five_users_fail_after_an_unreachable_destination_answers_the_same_outage_continues() {
    let mut test = TestBreaker::unreachable();
    let out_since = test.breaker.snapshot(test.now).out_since;
    test.breaker.users_wait(0, 1..=5);
    for user in 1..=5 {
        assert_ne!(test.open(), Some(OpenCause::NoUserDelivered));
        let probe = test.probe(user);
        assert!(!test.end(&probe, RETRY).counts);
    }
    assert_eq!(test.open(), Some(OpenCause::NoUserDelivered));
    assert_eq!(test.breaker.snapshot(test.now).out_since, out_since);
}

#[test]
fn tries_that_counted_while_too_few_users_were_known_are_taken_back_if_five_fail() {
    let mut test = TestBreaker::unreachable();
    let probe = test.probe(1);
    let mut tries = vec![test.end(&probe, RETRY)];
    test.now += ms(100);
    tries.extend((2..=5).map(|user| test.fail(user, RETRY)));
    assert!(tries.iter().all(|judgement| judgement.counts && !test.breaker.is_void(judgement.health_epoch)));
    assert!(!test.fail(6, RETRY).counts);
    assert_eq!(test.open(), Some(OpenCause::NoUserDelivered));
    assert!(tries.iter().all(|judgement| test.breaker.is_void(judgement.health_epoch)));
}

#[test]
fn an_outage_does_not_begin_when_a_single_user_failed_long_before_it() {
    let mut test = TestBreaker::default();
    for _ in 0..60 {
        test.fail(1, RETRY);
        test.now += Duration::from_secs(60);
    }
    let began = test.now;
    for user in 2..=6 {
        test.fail(user, RETRY);
    }
    let snapshot = test.breaker.snapshot(test.now);
    assert_eq!((snapshot.open, snapshot.out_since), (Some(OpenCause::NoUserDelivered), Some(ms(2))));
    assert!(snapshot.outage_began.unwrap() > began, "{snapshot:?}");
    test.deliver([1]);
    assert_eq!(test.breaker.snapshot(test.now).outage_began, None);
}

#[test]
fn a_single_user_does_not_stay_in_an_outage_for_ever() {
    let mut test = TestBreaker::unreachable();
    let probe = test.probe(1);
    test.end(&probe, RETRY);
    test.now += ms(100);
    for _ in 0..10 {
        assert!(test.fail(1, RETRY).counts);
        assert_eq!(test.gate(), Gate::Closed);
    }
    assert!(test.breaker.snapshot(test.now).out_since.is_some(), "the outage ended without a delivery");
    test.deliver([1]);
    assert_eq!(test.breaker.snapshot(test.now).out_since, None);
}

#[test]
fn suspects_do_not_keep_trusted_users_in_an_outage() {
    let mut test = TestBreaker::default();
    for user in 1..=50 {
        test.fail(user, RETRY);
        test.deliver([99]);
    }
    test.fail(99, Verdict::Unreachable);
    let probe = test.probe(99);
    test.end(&probe, RETRY);
    test.now += ms(100);
    assert!(test.fail(1, RETRY).counts, "the failure counts, because no trusted user is left to try");
    assert_eq!(test.gate(), Gate::Closed);
}

#[test]
fn an_outage_with_answers_ends_once_fewer_than_five_users_are_left_to_try() {
    let mut test = TestBreaker::opened_by_answers();
    let opened_at = test.now;
    test.breaker.users_wait(0, 1..=4);
    while test.now - opened_at < Duration::from_secs(70) && test.gate() != Gate::Closed {
        for user in 1..=4 {
            let attempt = test.begin_when_allowed(user);
            let counts = test.end(&attempt, RETRY).counts;
            assert_eq!(counts, test.gate() == Gate::Closed);
            assert!(
                !counts || test.now - opened_at >= Duration::from_secs(60),
                "a failure counted although five users were tried within a minute"
            );
        }
    }
    assert_eq!(test.gate(), Gate::Closed, "four users are too few to decide");
}

#[test]
fn an_outage_of_minutes_of_two_users_that_fail_for_ever_ends_and_their_tries_count() {
    let mut test = TestBreaker::opened_by_answers();
    let opened_at = test.now;
    test.breaker.users_wait(0, [1, 2]);
    let mut tries = 0;
    while tries < 20 && test.now - opened_at < Duration::from_secs(100) {
        for user in [1, 2] {
            let attempt = test.begin_when_allowed(user);
            tries += u32::from(test.end(&attempt, RETRY).counts);
            test.now += ms(100);
        }
    }
    assert_eq!((tries, test.gate()), (20, Gate::Closed));
}

/// Probes user 7 again and again, because the others back off for minutes. Returns whether the outage ended.
fn probing_user_7_ends_the_outage(test: &mut TestBreaker) -> bool {
    (0..60).any(|_| {
        let attempt = test.begin_when_allowed(7);
        test.end(&attempt, RETRY).counts
    })
}

#[test]
fn an_outage_lasts_while_five_users_have_events_even_if_they_back_off_for_minutes() {
    for waiting in [vec![(0, 1..8)], vec![(0, 1..4), (1, 5..8)]] {
        let mut test = TestBreaker::opened_by_answers();
        for (partition, users) in waiting {
            test.breaker.users_wait(partition, users);
        }
        assert!(!probing_user_7_ends_the_outage(&mut test), "a failure counted although users in backoff could decide");
        assert_eq!(test.open(), Some(OpenCause::NoUserDelivered));
        test.breaker.released(0);
        test.breaker.users_wait(1, 5..8);
        assert!(probing_user_7_ends_the_outage(&mut test), "three users are too few to decide");
    }
}

#[test]
fn no_answer_of_an_undecided_destination_is_a_try_while_five_users_have_events() {
    let mut test = TestBreaker::unreachable();
    test.breaker.users_wait(0, [1, 2, 3, 4, 7]);
    assert!(!probing_user_7_ends_the_outage(&mut test));
    assert_eq!(test.open(), Some(OpenCause::Undecided), "only one user was answered");
    test.breaker.users_wait(0, [1, 7]);
    assert!(probing_user_7_ends_the_outage(&mut test));
}

#[test]
fn an_outage_does_not_wait_for_suspects() {
    let mut test = TestBreaker::default();
    for user in 10..=50 {
        test.fail(user, RETRY);
        test.deliver([99]);
    }
    test.fail(99, Verdict::Unreachable);
    test.breaker.users_wait(0, (10..=50).chain([7]));
    assert!(probing_user_7_ends_the_outage(&mut test), "one trusted user is too few to decide");
}

#[test]
fn five_failing_users_stay_in_an_outage_however_slowly_they_are_tried() {
    let mut test = TestBreaker::opened_by_answers();
    test.breaker.users_wait(0, 1..=5);
    for _ in 0..10 {
        for user in 1..=5 {
            let probe = test.probe(user);
            test.now += Duration::from_secs(30);
            assert!(!test.end(&probe, RETRY).counts);
        }
    }
}

#[test]
fn suspects_alone_can_end_an_outage_and_become_trusted_again() {
    let mut test = TestBreaker::default();
    for user in 1..=8 {
        test.fail(user, RETRY);
        test.deliver([9]);
    }
    test.fail(9, Verdict::Unreachable);
    let probe = test.probe(1);
    test.breaker.delivered(&probe, test.now);
    assert_eq!(test.gate(), Gate::Closed);
    test.deliver(2..=8);
    assert_eq!(test.health(), Health::Good);
    assert!((1..=8).all(|user| !test.breaker.is_suspect(user)));
}

#[test]
fn after_a_single_delivery_in_an_outage_the_failed_users_can_still_open_the_breaker() {
    let mut test = TestBreaker::opened_by_answers();
    let probe = test.probe(6);
    test.breaker.delivered(&probe, test.now);
    test.long_after_the_last_delivery();
    let tries: Vec<TryJudgement> = (1..=5).map(|user| test.fail(user, RETRY)).collect();
    assert!(test.is_open());
    assert!(tries.iter().all(|judgement| !judgement.counts || test.breaker.is_void(judgement.health_epoch)));
}

#[test]
fn users_with_poison_events_can_open_the_breaker_twice_and_not_again() {
    let mut test = TestBreaker::default();
    let mut opened = 0;
    for good in 100..110 {
        test.long_after_the_last_delivery();
        for poison in (1..=6).cycle().take(12) {
            if test.gate() == Gate::Closed {
                test.fail(poison, RETRY);
            }
        }
        if test.gate() == Gate::Closed {
            test.deliver([good]);
        } else {
            opened += 1;
            let probe = test.probe(good);
            test.breaker.delivered(&probe, test.now);
        }
    }
    assert_eq!(opened, 2);
}
