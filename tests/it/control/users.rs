//! Commands about one user.

use super::*;
use eventd::core::partition::Partitioner;

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
    dispatch.wait_for(&[
        "1 user is held: \"user-3\" since",
        "(account locked): eventd control release --dest hook --user user-3",
    ]);
    controlled.post(36..42);
    controlled.receiver.wait_for(35);
    std::thread::sleep(A_WHILE);
    assert_eq!(controlled.receiver.refused(), refused, "a held user is not tried, also after a restart");

    let said = controlled.applied(&["give-up", "--user", "user-3"]);
    assert!(said.contains("1 event (offset") && said.contains("failures since"), "{said}");
    let by = "(account locked)";
    assert!(said.matches("held since").count() == 2 && said.matches(by).count() == 2, "before and after: {said}");
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
    let why = "partitions 0, 1, 2: the list of parked users is full (--parked-users): raise --parked-users, or release";
    for says in ["without effect in partitions 0, 1, 2: hold", why, "held. Then give the command again"] {
        assert!(ending.said.contains(says), "{}", ending.said);
    }
    dispatch.wait_for(&["a command had no effect", "command=\"hold\"", "user=\"user-2\"", "raise --parked-users"]);
    controlled.applied(&["release", "--user", "user-1"]);
    controlled.applied(&["hold", "--user", "user-2"]);
    assert_eq!(dispatch.stop().code(), 0);
}

/// Each partition has room for one user.
const ROOM_FOR_ONE: [&str; 8] =
    ["--parked-users", "1", "--on-exhausted", "hold", "--attempts", "2", "--backoff", "1ms"];

#[test]
fn a_hold_that_has_its_effect_where_the_events_are_is_applied() {
    let partition = |user: &str| Partitioner::Murmur2.partition(user.as_bytes(), 3);
    let elsewhere = (0..USERS).map(|number| format!("user-{number}"));
    let elsewhere = elsewhere.into_iter().find(|user| partition(user) != partition("user-3")).unwrap();
    let controlled = Controlled::on_sqlite();
    let dispatch = with_a_failing_user(&controlled, &ROOM_FOR_ONE);
    dispatch.wait_for(&["a user is held, because the tries of its next event have ended"]);
    let said = controlled.applied(&["hold", "--user", &elsewhere]);
    let full = format!("no effect in partition {}, where this user has no events", partition("user-3"));
    assert!(said.contains(&full) && said.contains("is held since"), "{said}");
    dispatch.wait_for(&["a command had no effect in a partition that has no event of the user now"]);
    let plan = &controlled.json(&["hold", "--user", "user-3"])[0];
    assert_eq!((&plan["user"]["held"], &plan["user"]["held_by"]), (&true.into(), &Value::Null), "{plan}");
    controlled.receiver.answers(|_| 200);
    let said = controlled.applied(&["release", "--user", "user-3"]);
    assert!(said.contains("user \"user-3\" is not held"), "{said}");
    assert_eq!(dispatch.stop().code(), 0);
}

#[test]
fn a_hold_is_counted_and_logged_once_although_every_partition_has_it() {
    let controlled = Controlled::on_sqlite();
    let dispatch = controlled.dispatch(&[]);
    controlled.post(0..6);
    controlled.receiver.wait_for(6);
    controlled.applied(&["hold", "--user", "ann"]);
    controlled.applied(&["hold", "--user=-x"]);
    let said = controlled.applied(&["pause"]);
    assert!(said.contains("no event waits for delivery, except those of 2 held users"), "{said}");
    let said = controlled.applied(&["probe"]);
    let note = "so no attempt starts before `eventd control resume`";
    assert!(said.contains("the destination is paused since") && said.contains(note), "{said}");
    let plan = &controlled.json(&["resume"])[0];
    assert_eq!((&plan["waiting"]["held_users"], &plan["waiting"]["parked_users"]), (&2.into(), &0.into()), "{plan}");
    let said = controlled.applied(&["release", "--user", "-x"]);
    assert!(said.contains("now: user \"-x\" is not held"), "{said}");
    let lines = dispatch.stop().said;
    assert_eq!(lines.matches("the user is held, as was asked for").count(), 2, "{lines}");
    assert_eq!(lines.matches("the user was released, as was asked for").count(), 1, "{lines}");
}
