//! When probes are sent, to whom, and what their end means.

use super::*;

#[test]
fn probes_are_sent_one_at_a_time_with_a_growing_delay() {
    let mut test = TestBreaker::opened_by_answers();
    let mut delays = Vec::new();
    for user in 10..18 {
        let Gate::Open { until: Some(until) } = test.gate() else { panic!("{:?}", test.gate()) };
        delays.push((until - test.now).as_millis());
        let probe = test.probe(user);
        assert_eq!(test.gate(), Gate::Open { until: None });
        assert!(!test.begin(99).probe, "the second attempt is not a probe");
        assert!(!test.end(&probe, RETRY).counts);
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
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
fn a_delivery_of_an_attempt_in_flight_closes_the_breaker_too_and_the_probe_becomes_an_ordinary_attempt() {
    let mut test = TestBreaker::default();
    let in_flight = test.begin(9);
    test.fail(1, Verdict::Unreachable);
    let probe = test.probe(2);
    test.breaker.delivered(&in_flight, test.now);
    assert_eq!(test.gate(), Gate::Closed);
    assert!(test.end(&probe, RETRY).counts);
    assert_eq!(test.gate(), Gate::Closed);
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
    assert_eq!(test.gate(), Gate::Open { until: None });
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
        assert_eq!(test.gate(), Gate::Open { until: Some(test.now + ms(100)) }, "the next probe is due soon");
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
        assert!(matches!(test.gate(), Gate::Open { .. }), "{verdict:?}");
    }
}

#[test]
fn after_an_abandoned_or_drilled_probe_the_next_one_is_due_at_once() {
    let mut test = TestBreaker::opened_by_answers();
    let probe = test.probe(7);
    test.breaker.abandoned(&probe);
    assert_eq!(test.gate(), Gate::HalfOpen);
    let probe = test.probe(8);
    assert!(test.end(&probe, Verdict::Drilled).counts);
    assert_eq!(test.gate(), Gate::HalfOpen);
}

#[test]
fn probes_prefer_trusted_users_then_suspects_and_then_begin_a_new_round() {
    let mut test = TestBreaker::default();
    test.fail(1, RETRY);
    test.deliver([2, 3]);
    test.fail(9, Verdict::Unreachable);
    let preferred =
        |test: &TestBreaker| (1..=3).filter(|user| test.breaker.prefers_as_probe(*user)).collect::<Vec<_>>();
    assert_eq!(preferred(&test), [2, 3]);
    for (probed, left) in [(2, vec![3]), (3, vec![]), (1, vec![]), (1, vec![2, 3])] {
        let probe = test.probe(probed);
        test.end(&probe, Verdict::Unreachable);
        assert_eq!(preferred(&test), left, "after {probed}");
    }
}

#[test]
fn a_probe_that_is_due_waits_for_a_preferred_user_for_100_ms() {
    let mut test = TestBreaker::opened_by_answers();
    assert_eq!(test.breaker.any_user_probes_at(), Some(test.now + ms(200)));
    let probe = test.probe(1);
    assert_eq!(test.breaker.any_user_probes_at(), None);
    test.breaker.delivered(&probe, test.now);
    assert_eq!(test.breaker.any_user_probes_at(), None);
}
