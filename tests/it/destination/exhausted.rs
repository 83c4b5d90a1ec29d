//! What follows when the tries of an event have ended (`--on-exhausted`), with the real program and real sockets.

use crate::support::client::Client;
use crate::support::program::{Program, run};
use crate::support::receiver::{Receiver, bodies};
use crate::support::wait::eventually;
use std::path::Path;

/// An event has two tries, a few milliseconds apart.
const QUICKLY: [&str; 4] = ["--attempts", "2", "--backoff", "1ms"];

fn up(folder: &Path, destinations: &[&str], more: &[&str]) -> Program {
    let mut flags = vec!["up", "--url", "sqlite:log.db", "--partitions", "1", "--listen", "127.0.0.1:0"];
    destinations.iter().for_each(|destination| flags.extend(["--dest", destination]));
    Program::start(folder, &[&flags[..], &QUICKLY, more].concat())
}

/// Posts one event of this user for each payload.
fn post(ingest: &Program, user: &str, payloads: &[&str]) {
    let event = |payload: &&str| format!(r#"{{"UserID":"{user}","Payload":"{payload}"}}"#);
    let events = payloads.iter().map(event).collect::<Vec<_>>().join(",");
    let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{events}]")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// A receiver that answers 500 to the first event of the user "bad".
fn failing_receiver() -> Receiver {
    let receiver = Receiver::start();
    receiver.answers(|hook| if hook.user() == "bad" && hook.body.contains("first") { 500 } else { 200 });
    receiver
}

#[test]
fn a_dropped_event_is_only_a_log_line_and_the_next_one_tells_of_the_gap() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), failing_receiver());
    let up = up(folder.path(), &[&format!("hook={}", receiver.url)], &["--on-exhausted", "drop"]);
    post(&up, "bad", &["first", "second"]);
    receiver.wait_for(1);
    let line = up.wait_for(&["gave up an event: it is dropped", "reason=\"exhausted\"", "attempts=2", "user=\"bad\""]);
    assert!(line.contains("answer=\"500 "), "{line}");
    let hook = receiver.take().remove(0);
    assert!(hook.body.contains("second") && hook.headers.contains_key("eventd-gap"), "{hook:?}");
    assert_eq!(up.stop().code(), 0);
    let log = rusqlite::Connection::open(folder.path().join("log.db")).unwrap();
    let topics: i64 =
        log.query_row("SELECT count(*) FROM topics WHERE name LIKE '%.dead'", [], |row| row.get(0)).unwrap();
    assert_eq!(topics, 0, "no dead letter was written");
}

#[test]
fn a_halted_dispatch_ends_with_the_event_in_its_error_and_delivers_it_after_the_next_start() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), failing_receiver());
    let hook = format!("hook={}", receiver.url);
    let ingest = up(folder.path(), &[], &[]);
    post(&ingest, "good", &["first", "second"]);
    post(&ingest, "bad", &["first", "second"]);
    assert_eq!(ingest.stop().code(), 0);
    let dispatch = || {
        let flags = ["dispatch", "--url", "sqlite:log.db", "--dest", &hook, "--on-exhausted", "halt"];
        Program::start(folder.path(), &[&flags[..], &QUICKLY].concat())
    };
    let ending = dispatch().end();
    assert_eq!(ending.code(), 1, "{}", ending.said);
    for part in
        ["halted", "user \"bad\"", "partition 0, offset 2", "500 ", "eventd control give-up --dest hook --user bad"]
    {
        assert!(ending.said.contains(part), "{part:?} is not in: {}", ending.said);
    }
    assert_eq!(receiver.refused(), 2, "the event had its two tries");
    let delivered = bodies(&receiver.take());
    assert!(!delivered.contains_key("bad"), "the user's next event waits: {delivered:?}");
    // The receiver is repaired.
    receiver.answers(|_| 200);
    let again = dispatch();
    let good = delivered.get("good").map_or(0, Vec::len);
    receiver.wait_for(4 - good);
    assert_eq!(again.stop().code(), 0);
    let after = bodies(&receiver.take());
    assert_eq!(after["bad"], ["first", "second"]);
    assert_eq!(after.get("good").map_or(0, Vec::len), 2 - good, "what was delivered before the halt is committed");
}

#[test]
fn a_halted_destination_of_up_stays_halted_and_the_others_continue() {
    let (folder, receiver, other) = (tempfile::tempdir().unwrap(), failing_receiver(), Receiver::start());
    let destinations = [&*format!("hook={}", receiver.url), &*format!("other={}", other.url)];
    let up = up(folder.path(), &destinations, &["--on-exhausted", "halt"]);
    post(&up, "bad", &["first"]);
    up.wait_for(&["ERROR", "halted", "destination=hook", "user \"bad\"", "The other destinations continue"]);
    post(&up, "good", &["first"]);
    other.wait_for(2);
    assert_eq!((receiver.count(), receiver.refused()), (0, 2), "nothing is sent after the halt");
    eventually(|| (up.lines().matches("halted (").count() == 1).then_some(()).ok_or_else(|| up.lines()));
    let ending = up.stop();
    assert_eq!(ending.code(), 1, "{}", ending.said);
}

#[test]
fn a_held_user_waits_in_order_over_a_restart_until_it_is_released() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), failing_receiver());
    let hook = format!("hook={}", receiver.url);
    let start = || up(folder.path(), &[&hook], &["--on-exhausted", "hold"]);
    let held = start();
    post(&held, "bad", &["first", "second"]);
    let line = held.wait_for(&["WARN", "a user is held", "reason=\"exhausted\"", "attempts=2", "user=\"bad\""]);
    assert!(line.contains("eventd control release --dest hook --user bad (or: give-up;"), "{line}");
    post(&held, "good", &["first"]);
    receiver.wait_for(1);
    assert_eq!(held.stop().code(), 0);
    let refused = receiver.refused();
    assert_eq!(refused, 2, "the event had its two tries");
    receiver.answers(|_| 200);
    let again = start();
    post(&again, "good", &["second"]);
    receiver.wait_for(2);
    assert_eq!(bodies(&receiver.take())["good"].len(), 2);
    assert_eq!((receiver.count(), receiver.refused()), (0, refused), "a held user is not tried after a restart");
    let release = ["control", "release", "--url", "sqlite:log.db", "--dest", "hook", "--user", "bad"];
    let ending = run(folder.path(), &release);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    receiver.wait_for(2);
    let hooks = receiver.take();
    assert!(hooks.iter().all(|hook| hook.user() == "bad" && !hook.headers.contains_key("eventd-gap")), "{hooks:?}");
    assert!(hooks[0].body.contains("first") && hooks[1].body.contains("second"), "{hooks:?}");
    assert_eq!(again.stop().code(), 0);
}

#[test]
fn a_replay_that_should_hold_users_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["replay", "--url", "sqlite:log.db", "--dest", "file-1", "--from", "0", "--on-exhausted", "hold"];
    let ending = run(folder.path(), &flags);
    assert_eq!(ending.code(), 2, "{}", ending.said);
    assert!(ending.said.contains("--on-exhausted hold: a replay cannot hold"), "{}", ending.said);
}
