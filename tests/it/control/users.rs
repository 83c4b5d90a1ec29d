//! Commands about one user.

use super::*;

/// The receiver answers 500 to one user.
fn with_a_failing_user(controlled: &Controlled, more: &[&str]) -> Program {
    controlled.receiver.answers(|hook| if hook.user() == "user-3" { 500 } else { 200 });
    let dispatch = controlled.dispatch(more);
    controlled.post(0..30);
    controlled.receiver.wait_for(25);
    dispatch
}

fn a_user_is_held_released_and_given_up(controlled: &Controlled) {
    let dispatch = with_a_failing_user(controlled, &[]);
    let said = controlled.applied(&["hold", "--user", "user-3", "--reason", "account locked"]);
    assert!(said.contains("5 events (offsets"), "{said}");
    dispatch.wait_for(&["the user is held", "user-3", "account locked"]);
    eventually(|| {
        let refused = controlled.receiver.refused();
        std::thread::sleep(A_WHILE);
        match controlled.receiver.refused() == refused {
            true => Ok(()),
            false => Err("it is still tried".to_owned()),
        }
    });
    let refused = controlled.receiver.refused();
    controlled.post(30..36);
    controlled.receiver.wait_for(30);
    assert_eq!(dispatch.stop().code(), 0);

    let dispatch = controlled.dispatch(&[]);
    controlled.post(36..42);
    controlled.receiver.wait_for(35);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.refused(), refused, "a held user is not tried, also after a restart");

    let said = controlled.applied(&["give-up", "--user", "user-3"]);
    assert!(said.contains("1 events (offset") && said.contains("held") && said.contains("failures since"), "{said}");
    dispatch.wait_for(&["gave up", "reason=\"operator\""]);
    controlled.receiver.answers(|_| 200);
    let said = controlled.applied(&["release", "--user", "user-3"]);
    assert!(said.contains("events (offsets") && said.contains("held"), "{said}");
    controlled.receiver.wait_for(41);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(controlled.payloads("user-3"), [9, 15, 21, 27, 33, 39], "in order, without the first one");
}

#[test]
fn a_user_is_held_released_and_given_up_on_sqlite() {
    a_user_is_held_released_and_given_up(&Controlled::on_sqlite());
}

#[test]
fn a_user_is_held_released_and_given_up_on_kafka() {
    a_user_is_held_released_and_given_up(&Controlled::on_kafka());
}

#[test]
fn a_retry_ends_a_backoff() {
    let controlled = Controlled::on_sqlite();
    let dispatch = with_a_failing_user(&controlled, &["--backoff", "60s", "--backoff-max", "60s"]);
    eventually(|| if controlled.receiver.refused() > 0 { Ok(()) } else { Err("not tried yet".to_owned()) });
    controlled.receiver.answers(|_| 200);
    controlled.applied(&["retry", "--user", "user-3"]);
    controlled.receiver.wait_for(30);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(controlled.payloads("user-3"), [3, 9, 15, 21, 27]);
}

#[test]
fn all_events_up_to_an_offset_are_given_up() {
    let controlled = Controlled::on_sqlite();
    let dispatch = with_a_failing_user(&controlled, &[]);
    let plan = &controlled.json(&["hold", "--user", "user-3"])[0];
    let found = &plan["user"]["partitions"][0];
    let (partition, last) = (&found["partition"], found["last"].as_i64().unwrap());
    let until = format!("{partition}:{}", last - 1);
    let said = controlled.applied(&["give-up", "--user", "user-3", "--offset", &until]);
    assert!(said.contains("4 events"), "{said}");
    controlled.receiver.answers(|_| 200);
    controlled.applied(&["release", "--user", "user-3"]);
    controlled.receiver.wait_for(26);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(controlled.payloads("user-3"), [27]);
    let nothing = controlled.control(&["give-up", "--user", "user-3"]);
    assert_eq!(nothing.code(), 1, "{}", nothing.said);
    assert!(nothing.said.contains("has no unsettled event"), "{}", nothing.said);
}

#[test]
fn a_hold_that_the_list_has_no_room_for_is_a_failure_that_says_why() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&["--parked-users", "1"]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    controlled.applied(&["hold", "--user", "user-1"]);
    let ending = controlled.control(&["hold", "--user", "user-2", "--wait", "60s"]);
    assert_eq!(ending.code(), 1, "{}", ending.said);
    for says in ["without effect in p0, p1, p2: hold", "p0: the list of parked users is full (--parked-users)"] {
        assert!(ending.said.contains(says), "{}", ending.said);
    }
    controlled.applied(&["release", "--user", "user-1"]);
    controlled.applied(&["hold", "--user", "user-2"]);
    assert_eq!(dispatch.stop().code(), 0);
}
