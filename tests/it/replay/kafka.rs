//! The most important replays on a real Kafka: plan, redelivery, SIGKILL in the middle, resume.

use super::*;
use crate::conformance::unique;
use crate::kafka::address;
use crate::support::wait::eventually;
use eventd::log::kafka::Kafka;
use eventd::log::{Engine, OpenError};
use eventd::net::BrokerSettings;

fn delivered(events: u64) -> (Delivered, Program) {
    let (address, topic) = (address(), unique("replayed"));
    let mut delivered = Delivered::empty(&["--url", &address, "--topic", &topic]);
    let ingest = delivered.start("ingest", &["--listen", "127.0.0.1:0", "--create-topic"]);
    ingest.address();
    let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    delivered.post(&ingest, 0..events);
    delivered.receiver.wait_for(events as usize);
    assert_eq!(dispatch.stop().code(), 0, "everything is committed");
    delivered.receiver.take();
    (delivered, ingest)
}

#[test]
fn a_replay_on_kafka_delivers_what_its_plan_says_once_and_in_order() {
    let (mut delivered, ingest) = delivered(600);
    let old = delivered.sent.clone();
    delivered.post(&ingest, 600..660);
    let plan = delivered.plan(&["--from", "0"]);
    assert_eq!((&plan["events"], &plan["on_their_way"], &plan["users"]), (&600.into(), &60.into(), &USERS.into()));
    let ending = delivered.replay(&["--from", "0", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), old);
    let id = delivered.id();
    assert!(hooks.iter().all(|hook| hook.replay() == id && hook.header("webhook-id") == format!("e{}", hook.body)));
    assert_eq!(delivered.listed()[0]["state"], "finished");

    // The destination's own position must not have moved.
    let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    delivered.receiver.wait_for(60);
    assert_eq!((dispatch.stop().code(), ingest.stop().code()), (0, 0));
    let hooks = delivered.receiver.take();
    assert!(hooks.len() == 60 && hooks.iter().all(|hook| hook.replay().is_empty()), "{} hooks", hooks.len());
    println!("# 600 events delivered again from Kafka, and then 60 events of live traffic");
}

#[test]
fn a_replay_on_kafka_that_is_killed_is_resumed_and_nothing_is_missing() {
    let (delivered, ingest) = delivered(1_200);
    let replay = delivered.replaying(&["--from", "0", "--execute", "--rate", "600/s"]);
    delivered.receiver.wait_for(300);
    replay.kill();
    assert_eq!(ingest.stop().code(), 0);
    let id = delivered.id();
    let ending = eventually(|| match delivered.replay(&["--resume", &id, "--execute"]) {
        ending if ending.code() == 0 => Ok(ending),
        // The membership of a killed process ends with its session.
        ending => Err(ending.said),
    });
    let hooks = delivered.receiver.take();
    assert_eq!(without_repeats(&hooks), delivered.sent, "{}", ending.said);
    assert_in_order(&hooks);
    let repeated = hooks.len() - 1_200;
    assert!(repeated < 1_200, "{repeated} repeats");
    println!("# a kill in a replay of 1200 events from Kafka: {repeated} were delivered again");
}

#[test]
fn bad_input_is_refused_on_kafka_as_on_the_embedded_log() {
    let (delivered, ingest) = delivered(60);
    for (code, arguments, says) in [
        (2, ["--dest", "nobody=null:", "--from", "0"], "was ever delivered under the name \"nobody\""),
        (1, ["--dest", "hook=null:", "--from", "60"], "outside the log"),
    ] {
        let arguments = delivered.arguments("replay", &arguments);
        let ending = run(delivered.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ending.code(), code, "{}", ending.said);
        assert!(ending.said.contains(says), "{}", ending.said);
    }
    assert_eq!(ingest.stop().code(), 0);
}

#[test]
fn dead_letters_on_kafka_are_redriven_once() {
    let (address, topic) = (address(), unique("redriven"));
    let mut delivered = Delivered::empty(&["--url", &address, "--topic", &topic]);
    delivered.receiver.answers(|hook| if hook.user() == "user-3" { 500 } else { 200 });
    let ingest = delivered.start("ingest", &["--listen", "127.0.0.1:0", "--create-topic"]);
    ingest.address();
    let quickly = ["--attempts", "2", "--backoff", "1ms"];
    let dispatch = delivered.start("dispatch", &[&["--dest", &delivered.destination()], &quickly[..]].concat());
    delivered.post(&ingest, 0..120);
    delivered.receiver.wait_for(110);
    let plan = || delivered.replay(&["--dead", "--json"]);
    eventually(|| match plan() {
        ending if ending.said.contains("\"events\":10,") => Ok(()),
        ending => Err(ending.said),
    });
    assert_eq!((dispatch.stop().code(), ingest.stop().code()), (0, 0));
    delivered.receiver.take();
    delivered.receiver.answers(|_| 200);
    let ending = delivered.replay(&["--dead", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), BTreeMap::from([("user-3".to_owned(), delivered.sent["user-3"].clone())]));
    assert!(hooks.iter().all(|hook| hook.header("webhook-id") == format!("e{}", hook.body)));
    let plan = delivered.plan(&["--dead"]);
    assert_eq!((&plan["events"], &plan["redriven"]), (&0.into(), &10.into()), "{plan}");
}

#[test]
fn a_rewind_on_kafka_makes_dispatch_deliver_again_from_there() {
    let (mut delivered, ingest) = delivered(240);
    let ending = delivered.replay(&["--rewind", "--from", "2h", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    delivered.post(&ingest, 240..300);
    let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    delivered.receiver.wait_for(300);
    assert_eq!((dispatch.stop().code(), ingest.stop().code()), (0, 0));
    assert_eq!(bodies(&delivered.receiver.take()), delivered.sent);
}

#[test]
fn the_side_topic_of_a_replays_progress_is_deleted_with_it() {
    // Each event of this user is a hole in the settled map, which makes the map too large for a commit.
    let (address, topic) = (address(), unique("holes"));
    let mut delivered = Delivered::empty(&["--url", &address, "--topic", &topic]);
    delivered.receiver.answers(|hook| if hook.user() == "user-5" { 503 } else { 200 });
    let ingest = delivered.start("ingest", &["--listen", "127.0.0.1:0", "--create-topic"]);
    ingest.address();
    let dispatch = delivered.start("dispatch", &["--dest", &delivered.destination()]);
    delivered.post(&ingest, 0..24_000);
    delivered.receiver.wait_for(22_000);
    assert_eq!((dispatch.stop().code(), ingest.stop().code()), (0, 0));
    let ending = delivered.replay(&["--from", "0", "--execute", "--limit", "18000"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let own = format!("{topic}.hook.replay.{}.state", delivered.id());
    let made = format!("created topic topic={own}");
    assert!(ending.said.contains(&made), "{made:?} is not in {}", ending.said);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let gone = runtime.block_on(async {
        let engine = Kafka::connect(BrokerSettings::plain(vec![address])).await.unwrap();
        engine.open(&own, None).await.unwrap_err()
    });
    assert_eq!(gone, OpenError::Missing { topic: own });
}
