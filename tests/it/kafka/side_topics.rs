//! Side topics of a topic that gets more partitions: dead letters before and after, and their redelivery.

use super::address;
use crate::conformance::unique;
use crate::support::broker::tool;
use crate::support::client::Client;
use crate::support::program::{Program, run};
use crate::support::receiver::Receiver;
use crate::support::wait::eventually;
use eventd::core::partition::Partitioner;
use std::collections::BTreeSet;

/// For each user whose events are refused, this many users are accepted. With fewer, the failures would look like an
/// outage.
const GOOD_USERS: u32 = 4;

/// Adds three partitions to a topic of three. `internal` is an address where Kafka's own tools have every right.
/// `grows` says whether eventd may add partitions.
pub(super) fn dead_letters_of_added_partitions_are_stored(address: &str, internal: &str, login: &[&str], grows: bool) {
    let (folder, topic, name) = (tempfile::tempdir().unwrap(), unique("grown"), unique("hook"));
    let receiver = Receiver::start();
    receiver.answers(|hook| if hook.user().starts_with("bad") { 500 } else { 200 });
    let destination = format!("{name}={}", receiver.url);
    let shared = [&["--url", address, "--topic", &topic], login].concat();
    let start = |mode: &[&str]| Program::start(folder.path(), &[mode, &shared].concat());
    let dispatch = || start(&["dispatch", "--dest", &destination, "--attempts", "2", "--backoff", "1ms"]);
    // In each partition one event is given up. Its payload says which.
    let take_in = |round: &str, partitions: u32| {
        let create = ["--create-topic", "--partitions", "3"];
        let create = if round == "before" { &create[..] } else { &[] };
        let ingest = start(&[&["ingest", "--listen", "127.0.0.1:0"], create].concat());
        let mut events = Vec::new();
        for partition in 0..partitions {
            let is_there = |user: &String| Partitioner::Murmur2.partition(user.as_bytes(), partitions) == partition;
            let bad = (0..).map(|n| format!("bad-{n}")).find(is_there).unwrap();
            events.push(format!(r#"{{"UserID":"{bad}","Payload":"{partition}:{round}"}}"#));
            events.extend((0..GOOD_USERS).map(|n| format!(r#"{{"UserID":"good-{partition}-{n}","Payload":"."}}"#)));
        }
        let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{}]", events.join(","))).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(ingest.stop().code(), 0);
    };
    let replay = [&["replay", "--dest", &destination, "--dead"], &shared[..]].concat();
    let letters = |by: &Program, expected: u64| {
        eventually(|| {
            let plan = run(folder.path(), &[&replay[..], &["--json"]].concat()).said;
            let has_all = plan.contains(&format!("\"events\":{expected},\"users\""));
            if has_all { Ok(()) } else { Err(format!("not {expected} letters: {plan}; dispatch said\n{}", by.lines())) }
        });
    };

    // The first events create the topic.
    take_in("before", 3);
    let first = dispatch();
    letters(&first, 3);
    tool("kafka-topics", internal, &["--alter", "--topic", &topic, "--partitions", "6"]);
    take_in("after", 6);
    letters(&first, 9);
    let dead = format!("{topic}.{name}.dead");
    let described = tool("kafka-topics", internal, &["--describe", "--topic", &dead]);
    let count = if grows { 6 } else { 3 };
    assert!(described.contains(&format!("PartitionCount: {count}")), "{described}");
    if !grows {
        first.wait_for(&["fewer partitions than its source", "partitions=3", "source_partitions=6"]);
    }
    let ending = first.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    // Nothing has to wait after a restart either.
    let second = dispatch();
    take_in("again", 6);
    letters(&second, 15);
    assert_eq!(second.stop().code(), 0);

    receiver.take();
    receiver.answers(|_| 200);
    let ending = run(folder.path(), &[&replay[..], &["--execute"]].concat());
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = receiver.take();
    let bodies: BTreeSet<&str> = hooks.iter().map(|hook| hook.body.as_str()).collect();
    assert_eq!((hooks.len(), bodies.len()), (15, 15), "{bodies:?}");
    for hook in &hooks {
        let (of_event, of_payload) = (hook.header("eventd-offset").split(':').next(), hook.body.split(':').next());
        assert_eq!(of_event, of_payload, "the place of the event, not of its dead letter: {hook:?}");
    }
}

#[test]
fn added_partitions_get_dead_letter_partitions() {
    dead_letters_of_added_partitions_are_stored(&address(), &address(), &[], true);
}
