//! When probes are sent, to whom, and what their end means.

use super::*;

use ProbeRank::{Failed, Interrupted, Newcomer, Served};

/// The last rank of which a user may be probed now.
fn worst(test: &TestBreaker) -> Option<ProbeRank> {
    match test.gate() {
        Gate::HalfOpen { ranks, .. } => ProbeRank::ALL.into_iter().rfind(|rank| ranks.contains(*rank)),
        Gate::Open { .. } => None,
        Gate::Closed => panic!("the breaker is closed"),
    }
}

/// When the next probe of a user that has failed is due, in ms from now.
fn delay_ms(test: &TestBreaker) -> u128 {
    match test.gate() {
        Gate::Open { until } | Gate::HalfOpen { until, .. } => (until.unwrap() - test.now).as_millis(),
        Gate::Closed => panic!("the breaker is closed"),
    }
}

#[test]
fn while_the_destination_cannot_be_reached_there_is_one_probe_at_a_time_with_a_growing_delay() {
    let mut test = TestBreaker::unreachable();
    let mut delays = Vec::new();
    for user in 10..18 {
        assert_eq!(worst(&test), None);
        delays.push(delay_ms(&test));
        let probe = test.probe(user);
        assert_eq!((worst(&test), delay_ms(&test)), (None, 1_000));
        assert!(!test.begin(99).probe, "the second attempt is not a probe");
        assert!(!test.end(&probe, Verdict::Unreachable).counts);
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn users_that_failed_in_an_outage_are_probed_one_at_a_time_with_a_growing_delay() {
    let mut test = TestBreaker::opened_by_answers();
    test.breaker.users_wait(0, 1..=5);
    let mut delays = Vec::new();
    for user in [1, 2, 3, 4, 5, 1, 2, 3] {
        assert_eq!(worst(&test), Some(Newcomer));
        delays.push(delay_ms(&test));
        test.now += ms(delays[delays.len() - 1] as u64);
        assert_eq!(worst(&test), Some(Failed));
        let probe = test.breaker.begin(user, test.now);
        assert!(probe.probe);
        assert_eq!(worst(&test), Some(Newcomer));
        assert!(!test.end(&probe, RETRY).counts);
    }
    assert_eq!(delays[..3], [100, 200, 400]);
}

#[test]
fn while_the_destination_answers_five_users_that_have_not_failed_are_probed_at_once_and_one_place_is_for_served_ones() {
    let mut test = TestBreaker::default();
    test.deliver([20]);
    test.now += Duration::from_secs(1);
    for user in 1..=5 {
        test.fail(user, RETRY);
    }
    assert_eq!([20, 10, 1].map(|user| test.breaker.probe_rank(user)), [Served, Newcomer, Failed]);
    let newcomers: Vec<Attempt> = (10..14).map(|user| test.begin(user)).collect();
    assert!(newcomers.iter().all(|attempt| attempt.probe));
    assert_eq!(worst(&test), Some(Served), "one place is left for a served user");
    assert!(!test.begin(14).probe);
    let served = test.begin(20);
    assert!(served.probe);
    assert_eq!(worst(&test), None);
    test.end(&newcomers[0], RETRY);
    assert_eq!(worst(&test), Some(Served));
    test.end(&newcomers[1], BUSY);
    assert_eq!(worst(&test), Some(Newcomer), "the next one begins at once");
    assert_eq!(test.breaker.probe_rank(10), Failed);
    test.breaker.delivered(&served, test.now);
    assert_eq!(test.gate(), Gate::Closed);
}

#[test]
fn probes_that_hang_do_not_keep_other_users_from_being_probed_and_are_not_too_many() {
    let mut test = TestBreaker::opened_by_answers();
    let mut begun = 0;
    for user in 100..400 {
        if user % 10 == 0 {
            test.now += Duration::from_secs(1);
        }
        begun += usize::from(test.begin(user).probe);
    }
    assert_eq!(begun, crate::limits::PROBES_IN_FLIGHT_MAX);
    assert_eq!(worst(&test), Some(Failed), "users of other ranks have room of their own");
}

#[test]
fn users_that_were_served_before_an_outage_do_not_wait_for_those_that_fail_by_themselves() {
    let mut test = TestBreaker::default();
    test.deliver(1..=8);
    (100..=140).for_each(|user| _ = test.fail(user, RETRY));
    test.deliver(1..=8);
    test.long_after_the_last_delivery();
    (1..=5).for_each(|user| _ = test.fail(user, RETRY));
    assert_eq!(test.open(), Some(OpenCause::NoUserDelivered));
    assert_eq!([1, 6, 100].map(|user| test.breaker.probe_rank(user)), [Interrupted, Served, Failed]);
    // Users that hang take every turn that they may take.
    let mut hanging = 100..=140;
    let mut waited = Vec::new();
    for user in [1, 2, 3, 4] {
        let from = test.now;
        let probe = loop {
            let Gate::HalfOpen { ranks, .. } = test.gate() else { panic!("served users may be probed") };
            if ranks.contains(Failed) {
                assert!(hanging.next().is_some_and(|user| test.breaker.begin(user, test.now).probe));
            }
            if ranks.contains(Interrupted) {
                break test.breaker.begin(user, test.now);
            }
            test.now += ms(10);
        };
        assert!(probe.probe);
        test.end(&probe, RETRY);
        waited.push((test.now - from).as_millis());
    }
    assert!(
        waited.iter().zip([100, 200, 400, 800]).all(|(waited, delay)| (1..=delay + 11).contains(waited)),
        "{waited:?}"
    );
}

#[test]
fn a_user_that_was_suspect_before_an_outage_is_probed_last_also_after_a_minute() {
    let mut test = TestBreaker::default();
    test.deliver([1, 2]);
    test.fail(1, RETRY);
    assert_eq!(test.breaker.probe_rank(1), Interrupted);
    test.deliver([3]);
    assert_eq!(test.breaker.probe_rank(1), Failed);
    test.now += VERDICT_AGE_MAX;
    test.fail(2, RETRY);
    assert!(!test.breaker.is_suspect(1), "it is trusted again");
    assert_eq!([1, 2].map(|user| test.breaker.probe_rank(user)), [Failed, Interrupted]);
}

#[test]
fn once_a_reached_destination_cannot_be_reached_again_probes_are_sent_one_at_a_time() {
    let mut test = TestBreaker::opened_by_answers();
    let probe = test.begin(10);
    test.end(&probe, Verdict::Unreachable);
    assert_eq!((worst(&test), delay_ms(&test)), (None, 100));
    let probe = test.probe(11);
    assert_eq!(worst(&test), None);
    test.end(&probe, RETRY);
    assert_eq!(worst(&test), Some(Newcomer));
}

#[test]
fn users_that_failed_before_the_process_began_are_probed_last_and_can_open_the_breaker() {
    let mut test = TestBreaker::default();
    (1..=5).for_each(|user| test.breaker.had_failed(user));
    assert_eq!((test.breaker.probe_rank(1), test.breaker.is_suspect(1)), (Failed, false));
    test.deliver([9]);
    test.long_after_the_last_delivery();
    (1..=5).for_each(|user| _ = test.fail(user, RETRY));
    assert_eq!(test.open(), Some(OpenCause::NoUserDelivered), "an outage may have begun before the process did");
    let probe = test.probe(1);
    test.breaker.delivered(&probe, test.now);
    assert_eq!((test.breaker.probe_rank(1), test.breaker.probe_rank(2)), (Served, Failed));
}

#[test]
fn one_delivered_probe_closes_the_breaker_and_earlier_verdicts_are_forgotten() {
    let mut test = TestBreaker::opened_by_answers();
    let probe = test.probe(6);
    test.breaker.delivered(&probe, test.now);
    assert_eq!((test.gate(), test.health()), (Gate::Closed, Health::Unknown));
    for user in 1..=3 {
        assert!(test.fail(user, RETRY).counts, "user {user}");
        assert_eq!(test.gate(), Gate::Closed, "verdicts from before the outage opened the breaker");
    }
}

#[test]
fn a_delivery_of_an_attempt_in_flight_closes_the_breaker_too_and_the_probe_uses_no_try() {
    let mut test = TestBreaker::default();
    let in_flight = test.begin(9);
    test.fail(1, Verdict::Unreachable);
    let probe = test.probe(2);
    test.breaker.delivered(&in_flight, test.now);
    assert_eq!(test.gate(), Gate::Closed);
    assert!(!test.end(&probe, RETRY).counts, "it began in the outage");
    assert_eq!(test.gate(), Gate::Closed);
    assert!(test.fail(2, RETRY).counts);
}

#[test]
fn the_end_of_a_probe_of_an_earlier_outage_is_not_the_end_of_the_current_probe() {
    let mut test = TestBreaker::default();
    let in_flight = test.begin(9);
    test.fail(1, Verdict::Unreachable);
    let old = test.probe(2);
    test.breaker.delivered(&in_flight, test.now);
    test.fail(1, Verdict::Unreachable);
    test.probe(3);
    test.end(&old, Verdict::Unreachable);
    test.breaker.abandoned(&old);
    assert!(matches!(test.gate(), Gate::Open { .. }));
}

#[test]
fn an_answer_to_a_probe_ends_unreachable_but_does_not_close_the_breaker() {
    for verdict in [RETRY, Verdict::Refused, BUSY] {
        let mut test = TestBreaker::unreachable();
        let probe = test.probe(1);
        assert_eq!(
            test.end(&probe, verdict).counts,
            verdict != BUSY,
            "{verdict:?} is a try because too few users can decide"
        );
        assert_eq!(test.open(), Some(OpenCause::Undecided), "{verdict:?}");
        assert_eq!(worst(&test), Some(Newcomer), "the next probe may begin");
    }
    let mut test = TestBreaker::default();
    let in_flight = test.begin(2);
    test.fail(1, Verdict::Unreachable);
    test.end(&in_flight, RETRY);
    assert_eq!(
        test.open(),
        Some(OpenCause::Unreachable),
        "an answer to a request from before the outage changed the cause"
    );
}

#[test]
fn no_failed_probe_ends_an_outage_with_answers() {
    for verdict in [RETRY, Verdict::Refused, BUSY, Verdict::Unreachable] {
        let mut test = TestBreaker::opened_by_answers();
        let probe = test.probe(7);
        assert!(!test.end(&probe, verdict).counts);
        assert_ne!(test.gate(), Gate::Closed, "{verdict:?}");
    }
}

#[test]
fn after_an_abandoned_or_drilled_probe_the_next_one_is_due_at_once() {
    let mut test = TestBreaker::unreachable();
    let probe = test.probe(7);
    test.breaker.abandoned(&probe);
    assert_eq!(worst(&test), Some(Failed));
    let probe = test.probe(8);
    assert!(test.end(&probe, Verdict::Drilled).counts);
    assert_eq!(worst(&test), Some(Failed));
}

#[test]
fn after_a_hundred_quick_probes_there_are_twenty_a_second() {
    let mut test = TestBreaker::opened_by_answers();
    test.breaker.users_wait(0, 1..=5);
    let began = test.now;
    let mut quick = 0;
    for user in 100..100_000 {
        if test.now >= began + Duration::from_secs(60) {
            break;
        }
        match test.gate() {
            Gate::HalfOpen { ranks, .. } if ranks.contains(Newcomer) => {
                let probe = test.begin(user);
                quick += 1;
                test.end(&probe, RETRY);
            }
            Gate::HalfOpen { until, .. } | Gate::Open { until } => test.now = until.unwrap(),
            Gate::Closed => panic!("nothing was delivered"),
        }
    }
    // The delayed probes are 17 at most: 6 within 6.3 s, then one in 5 s.
    assert!((1_200..=100 + 20 * 60 + 20).contains(&quick), "{quick} probes in a minute");
}

#[test]
fn a_probe_that_an_operator_asks_for_does_not_wait_for_probes_that_hang() {
    for mut test in [TestBreaker::unreachable(), TestBreaker::opened_by_answers()] {
        let hanging = test.probe(1);
        assert!(!test.breaker.probe_now(test.now), "a probe has just begun");
        test.now += Duration::from_secs(2);
        let other = test.probe(2);
        test.end(&other, Verdict::Unreachable);
        assert_eq!(worst(&test), None);
        assert!(test.breaker.probe_now(test.now));
        assert_eq!(worst(&test), Some(Failed));
        assert!(!test.breaker.probe_now(test.now), "it is due already");
        assert!(test.begin(3).probe && hanging.probe);
        assert_eq!(worst(&test), None);
    }
}

#[test]
fn a_probe_that_hangs_blocks_the_next_one_for_a_second_although_the_destination_cannot_be_reached() {
    let mut test = TestBreaker::unreachable();
    let (begun, mut probes) = (test.now, Vec::new());
    while test.now < begun + Duration::from_secs(60) {
        if let Gate::HalfOpen { .. } = test.gate() {
            probes.push(test.begin(7));
        }
        test.now += ms(10);
    }
    assert_eq!(probes.len(), crate::limits::PROBES_IN_FLIGHT_MAX);
    assert!(probes.iter().zip(&probes[1..]).all(|(one, next)| next.began - one.began >= Duration::from_secs(1)));
    assert_eq!(test.gate(), Gate::Open { until: None });
    test.end(&probes[0], Verdict::Unreachable);
    assert_eq!((worst(&test), delay_ms(&test)), (None, 200));
}
