//! Tests of the rules for events that operators give up, and for `--on-exhausted drop` and `hold`.

use super::{Case, DELIVERED, LIFE, RETRY, rules, seconds};
use crate::dispatch::oracle::{DeliveredRun, Rules, TriesEnded, User};
use eventd::core::progress::PartitionState;
use eventd::core::tries::OnExhausted;
use eventd::core::verdict::Verdict;
use eventd::destination::BatchLimits;
use std::time::Duration;

fn user(name: &str) -> User {
    Some(name.as_bytes().to_vec())
}

fn case(on_exhausted: OnExhausted, give_up_after: Option<Duration>, users: &[&'static str]) -> Case {
    let rules = rules(BatchLimits { runs_max: 3, run_events_max: 3, run_bytes_max: 1_000 }, false);
    Case::with(Rules { on_exhausted, give_up_after, ..rules }, users)
}

#[test]
fn a_dead_letter_of_an_operator_without_a_command_is_reported() {
    let mut case = Case::of(&["a", "a"]);
    case.attempt(0, 1, RETRY, 1);
    case.oracle.give_up_commanded(0, &user("a"), 1);
    case.gives_up(0, 1, "operator");
    case.is_accepted();
    case.gives_up(1, 0, "operator");
    case.is_reported("1 is given up by an operator, and no command says so");
}

#[test]
fn an_attempt_of_an_event_that_an_operator_gave_up_is_reported() {
    let mut case = Case::of(&["a", "b"]);
    case.oracle.give_up_commanded(0, &user("a"), 1);
    case.attempt(0, 1, RETRY, 1);
    case.oracle.give_up_stored(0, &user("a"), 1);
    case.attempt(1, 1, DELIVERED, 1);
    case.is_accepted();
    case.start(0, 2, 2);
    case.is_reported("a commit covers the command that gives it up");
}

#[test]
fn an_event_is_dropped_only_after_its_tries() {
    let mut case = case(OnExhausted::Drop, None, &["a", "a", "b", "b"]);
    case.attempt(0, 1, RETRY, 1);
    case.attempt(0, 2, RETRY, 2);
    let after_a_gap = DeliveredRun { events: vec![case.event(1)], attempt: 1, gap: true };
    case.oracle.started(LIFE, 0, &[after_a_gap], seconds(100), seconds(3));
    case.is_accepted();
    assert_eq!(case.oracle.counts.dropped, 1);
    case.attempt(2, 1, RETRY, 3);
    case.start(3, 1, 4);
    case.is_reported("3 is tried before Some(2) of its user is settled");
}

#[test]
fn a_commit_that_drops_an_event_too_early_is_reported() {
    for (tries, is_right) in [(2, true), (1, false)] {
        let mut case = case(OnExhausted::Drop, None, &["a"]);
        (1..=tries).for_each(|number| case.attempt(0, number, RETRY, number.into()));
        case.oracle.committed(Some(LIFE), 0, &PartitionState::at(1), seconds(3));
        assert_eq!(case.oracle.violation().is_none(), is_right, "{tries}: {:?}", case.oracle.violation());
        assert_eq!(case.oracle.counts.dropped, u64::from(is_right));
    }
}

#[test]
fn a_dead_letter_although_the_policy_is_another_one_is_reported() {
    let mut case = case(OnExhausted::Hold, None, &["a"]);
    case.attempt(0, 1, RETRY, 1);
    case.attempt(0, 2, RETRY, 2);
    case.gives_up(0, 2, "exhausted");
    case.is_reported("the policy is hold");
}

#[test]
fn a_user_may_be_held_when_its_tries_have_ended() {
    let mut case = case(OnExhausted::Hold, None, &["a", "b"]);
    let ended = |case: &Case, name| case.oracle.tries_ended(LIFE, 0, &user(name), seconds(3));
    case.attempt(0, 1, RETRY, 1);
    assert_eq!(ended(&case, "a"), TriesEnded::default());
    case.attempt(0, 2, RETRY, 2);
    assert!(ended(&case, "a").possibly);
    assert_eq!(ended(&case, "b"), TriesEnded::default());
    case.attempt(1, 1, Some(Verdict::Refused), 2);
    assert!(ended(&case, "b").possibly, "a refusal may end the tries before they are used up");
}

#[test]
fn an_event_that_is_given_up_before_its_time_is_reported() {
    for (last, is_right) in [(11, true), (10, false)] {
        let mut case = case(OnExhausted::DeadLetter, Some(seconds(10)), &["a"]);
        // A busy destination uses up no try.
        case.attempt(0, 1, Some(Verdict::Busy { after: None }), 1);
        case.attempt(0, 2, RETRY, last);
        case.gives_up(0, 2, "exhausted");
        assert_eq!(case.oracle.violation().is_none(), is_right, "{last}: {:?}", case.oracle.violation());
    }
}
