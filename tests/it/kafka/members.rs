//! Several processes deliver to one destination on a real broker. They start, stop, and are killed and paused under
//! load.

use super::{address, fixture};
use crate::conformance::{record, unique};
use crate::support::block_on;
use crate::support::broker::{tool, tool_command};
use crate::support::delivered::{Line, lines};
use crate::support::load::Load;
use crate::support::program::{Program, run};
use crate::support::sink::Sink;
use crate::support::wait::eventually;
use eventd::log::Engine;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

const PARTITIONS: &str = "6";
const SESSION_TIMEOUT: &str = "2s";

/// A topic under load, a receiver, and the group name of the processes that deliver to it.
pub(super) struct Scene {
    folder: tempfile::TempDir,
    url: String,
    pub(super) topic: String,
    pub(super) name: String,
    pub(super) sink: Sink,
    ingest: Program,
    pub(super) load: Load,
}

impl Scene {
    fn begin(name: &str) -> Self {
        Self::begin_at(&address(), name)
    }

    pub(super) fn begin_at(url: &str, name: &str) -> Self {
        let (folder, topic) = (tempfile::tempdir().unwrap(), unique("members"));
        let make = ["--create-topic", "--partitions", PARTITIONS, "--listen", "127.0.0.1:0"];
        let ingest = Program::start(folder.path(), &[&["ingest", "--url", url, "--topic", &topic], &make[..]].concat());
        let load = Load::start(&ingest.address());
        let (url, sink) = (url.to_owned(), Sink::start(Duration::from_millis(1)));
        Self { topic, url, name: unique(name), sink, ingest, load, folder }
    }

    pub(super) fn member(&self, more: &[&str]) -> Program {
        self.member_to(self.folder.path(), &self.sink.url, more)
    }

    /// A member that knows only these brokers at its start.
    pub(super) fn member_at(&self, url: &str) -> Program {
        self.start_member(self.folder.path(), url, &self.sink.url, &[])
    }

    fn member_to(&self, folder: &Path, destination: &str, more: &[&str]) -> Program {
        self.start_member(folder, &self.url, destination, more)
    }

    fn start_member(&self, folder: &Path, url: &str, destination: &str, more: &[&str]) -> Program {
        let fixed = ["dispatch", "--url", url, "--topic", &self.topic, "--dest", destination, "--name", &self.name];
        let quick = ["--session-timeout", SESSION_TIMEOUT, "--commit-interval", "50ms", "--backoff", "1ms"];
        Program::start(folder, &[&fixed[..], &quick[..], more].concat())
    }

    /// Waits until something new of every partition was delivered.
    pub(super) fn wait_for_progress(&self, when: &str) {
        let before = self.sink.count();
        eventually(|| match self.sink.partitions_after(before) {
            moving if moving.len() == 6 => Ok(()),
            moving => Err(format!("{when}: only the partitions {moving:?} deliver")),
        });
    }

    /// Stops the load, and waits until all of it was delivered.
    pub(super) fn end(self, members: Vec<Program>) -> Sink {
        let answered = self.load.stop();
        let events: u64 = answered.events.values().map(|told| told.len() as u64).sum();
        let sink = self.sink;
        eventually(|| match sink.events() {
            delivered if delivered >= events => Ok(()),
            delivered => Err(format!("{delivered} of {events} events were delivered")),
        });
        for member in members {
            assert_eq!(member.stop().code(), 0);
        }
        assert_eq!(self.ingest.stop().code(), 0);
        sink.judge(answered.events.iter().map(|(user, told)| (user.as_str(), told.len() as u64)));
        assert!(events > 100, "only {events} events: the load was too small");
        sink
    }
}

pub(super) fn owns(member: &Program, partitions: usize) {
    member.wait_for(&["partitions assigned", &format!("owned={partitions} "), "revoking=0"]);
}

#[test]
fn members_that_join_and_leave_repeat_nothing_and_keep_every_users_order() {
    let scene = Scene::begin("planned");
    let a = scene.member(&[]);
    owns(&a, 6);
    scene.wait_for_progress("with one member");
    let b = scene.member(&[]);
    owns(&b, 3);
    scene.wait_for_progress("with two members");
    let c = scene.member(&[]);
    owns(&c, 2);
    scene.wait_for_progress("with three members");
    let told = ["--describe", "--members", "--verbose", "--group", &scene.name];
    let members = tool("kafka-consumer-groups", &address(), &told);
    let shown = members.lines().filter(|line| line.contains(&scene.topic)).count();
    assert_eq!(shown, 3, "Kafka's own tool shows three members and their partitions:\n{members}");
    assert_eq!(a.stop().code(), 0);
    owns(&b, 3);
    scene.wait_for_progress("after one has left");
    let d = scene.member(&[]);
    owns(&d, 2);
    scene.wait_for_progress("after another has come");
    let sink = scene.end(vec![b, c, d]);
    println!(
        "# planned rebalances: {} deliveries, {} repeated, the longest pause of a partition {:?}",
        sink.count(),
        sink.repeated(),
        sink.longest_pause()
    );
    assert_eq!(sink.repeated(), 0);
}

#[test]
fn drained_partitions_move_on_while_an_attempt_in_another_partition_hangs() {
    let scene = Scene::begin("drains");
    let patient = ["--attempt-timeout", "10m", "--drain", "10m"];
    let a = scene.member(&patient);
    owns(&a, 6);
    scene.wait_for_progress("with one member");
    let user = scene.sink.arrivals()[0].user.clone();
    scene.sink.hold(&user);
    let before = scene.sink.count();
    let hanging = eventually(|| {
        let arrivals = scene.sink.arrivals().split_off(before);
        let held = arrivals.iter().find(|arrival| arrival.user == user).map(|arrival| arrival.partition);
        held.ok_or_else(|| format!("no attempt of {user}"))
    });
    // It starts while no other attempt hangs in the process that releases, and is assigned three partitions or more.
    let b = scene.member(&patient);
    b.wait_for(&["partitions assigned"]);
    a.signal("TERM");
    owns(&b, 5);
    let before = scene.sink.count();
    let others: BTreeSet<u32> = (0..6).filter(|partition| *partition != hanging).collect();
    eventually(|| match scene.sink.partitions_after(before) {
        moving if moving.is_superset(&others) => Ok(()),
        moving => Err(format!("while {hanging} hangs: only the partitions {moving:?} deliver")),
    });
    scene.sink.release();
    let stopped = a.end();
    assert_eq!(stopped.code(), 0, "{}", stopped.said);
    owns(&b, 6);
    let sink = scene.end(vec![b]);
    assert_eq!(sink.repeated(), 0);
}

#[test]
fn members_that_are_killed_or_paused_lose_nothing_and_keep_every_users_order() {
    let scene = Scene::begin("killed");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    owns(&a, 3);
    owns(&b, 3);
    scene.wait_for_progress("with two members");
    a.kill();
    scene.wait_for_progress("after one was killed");
    let c = scene.member(&[]);
    owns(&c, 3);
    scene.wait_for_progress("after another has come");
    let before_pause = scene.sink.repeated();
    b.signal("STOP");
    owns(&c, 6);
    scene.wait_for_progress("while one is paused for longer than its session");
    b.signal("CONT");
    b.wait_for(&["lost all partitions"]);
    owns(&b, 3);
    scene.wait_for_progress("after it has come back");
    let sink = scene.end(vec![b, c]);
    println!(
        "# a kill and a pause: {} deliveries, {before_pause} repeated after the kill, {} in all, the longest pause of a \
         partition {:?}",
        sink.count(),
        sink.repeated(),
        sink.longest_pause()
    );
}

#[test]
fn a_rewind_of_a_running_group_is_applied_once_whichever_member_joins_leaves_or_dies() {
    let scene = Scene::begin("rewound");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    owns(&a, 3);
    owns(&b, 3);
    scene.wait_for_progress("with two members");
    let to = ["--dest", &scene.sink.url, "--name", &scene.name];
    let asked = [&["replay", "--url", &scene.url, "--topic", &scene.topic], &to[..]].concat();
    // A rewind only covers events that are committed.
    eventually(|| {
        let plan = run(scene.folder.path(), &[&asked[..], &["--rewind", "--from", "0", "--json"]].concat()).said;
        if plan.contains("\"events\":0,") { Err(plan) } else { Ok(()) }
    });
    let before = scene.sink.count();
    let rewind = [&asked[..], &["--rewind", "--from", "0", "--execute"]].concat();
    let rewind = Program::start(scene.folder.path(), &rewind);
    rewind.wait_for(&["dispatch is running"]);
    let mut said = a.lines();
    a.kill();
    let c = scene.member(&[]);
    let ending = rewind.end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    owns(&c, 3);
    scene.wait_for_progress("after the rewind");
    let left = b.stop();
    assert_eq!(left.code(), 0, "{}", left.said);
    scene.wait_for_progress("after one has left");
    said += &format!("{}{}", left.said, c.lines());
    let sink = scene.end(vec![c]);
    // The last log lines of a killed process may be lost. So a reset may be missing here, but none may appear twice.
    let moves = said.lines().filter(|line| line.contains("the position was moved back"));
    let moved: Vec<&str> = moves.map(|line| &line.split("partition=").nth(1).unwrap()[..1]).collect();
    let once: BTreeSet<&str> = moved.iter().copied().collect();
    assert!(!moved.is_empty() && once.len() == moved.len(), "{moved:?}:\n{said}");
    // Everything that was delivered before was delivered again, in order for each user, from the first event on.
    let (mut first, mut again) = (BTreeMap::new(), BTreeMap::new());
    for (place, arrival) in sink.arrivals().into_iter().enumerate() {
        let payload: u64 = arrival.payload.parse().unwrap();
        if place < before {
            first.insert(arrival.user, payload);
        } else if payload == 0 || again.contains_key(&arrival.user) {
            let expected = again.entry(arrival.user.clone()).or_insert(0);
            assert!(payload <= *expected, "arrival {place}: {arrival:?} came again before {expected}");
            *expected = (*expected).max(payload + 1);
        }
    }
    for (user, last) in first {
        assert!(again.get(&user).is_some_and(|next| *next > last), "{user}: {last} before, and {:?}", again.get(&user));
    }
    println!(
        "# a rewind of a running group, a kill, a join and a leave: {} deliveries, {} repeated",
        sink.count(),
        sink.repeated()
    );
}

#[test]
fn a_partitions_file_moves_from_member_to_member() {
    let scene = Scene::begin("files");
    let member = || scene.member_to(scene.folder.path(), "out-{partition}.jsonl", &[]);
    let lines = || -> Vec<Line> {
        let file = |partition| scene.folder.path().join(format!("out-{partition}.jsonl"));
        (0..6).flat_map(|partition| lines(&file(partition))).collect()
    };
    let more = |than: usize| {
        eventually(|| match lines().len() {
            now if now > than => Ok(now),
            now => Err(format!("{now} lines, and {than} before")),
        })
    };
    let a = member();
    owns(&a, 6);
    more(0);
    let b = member();
    owns(&b, 3);
    more(lines().len());
    assert_eq!(a.stop().code(), 0);
    owns(&b, 6);
    let before = lines().len();
    let answered = scene.load.stop();
    let events: u64 = answered.events.values().map(|told| told.len() as u64).sum();
    eventually(|| match lines().len() as u64 {
        delivered if delivered >= events => Ok(()),
        delivered => Err(format!("{delivered} of {events} events were delivered; {}", b.lines())),
    });
    assert_eq!(b.stop().code(), 0);
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines() {
        let expected = next.entry(line.user.clone()).or_default();
        assert_eq!(line.payload, expected.to_string(), "every event once, in order: {line:?}");
        *expected += 1;
    }
    let expected: BTreeMap<String, u64> =
        answered.events.iter().map(|(user, told)| (user.clone(), told.len() as u64)).collect();
    assert_eq!(next, expected);
    println!("# files of partitions: {events} events, {before} before the last rebalance ended");
}

#[test]
fn one_name_for_two_destinations_is_refused_and_disturbs_no_running_member() {
    let scene = Scene::begin("twice");
    let a = scene.member(&[]);
    owns(&a, 6);
    scene.wait_for_progress("with one member");
    let other = scene.member_to(scene.folder.path(), "null:", &[]).end();
    assert_eq!(other.code(), 1, "{}", other.said);
    assert!(other.said.contains("belongs to another destination") && other.said.contains("--name"), "{}", other.said);
    scene.wait_for_progress("after the other one was refused");
    let sink = scene.end(vec![a]);
    assert_eq!(sink.repeated(), 0);
}

#[test]
fn another_program_in_the_group_is_refused_and_disturbs_no_running_member() {
    let scene = Scene::begin("foreign");
    let consumer = || {
        let (address, topic) = (address(), scene.topic.as_str());
        let what = ["--bootstrap-server", &address, "--topic", topic, "--group", &scene.name];
        Program::spawn(tool_command("kafka-console-consumer", &what), "a consumer of Kafka's own")
    };
    let groups = |arguments: &[&str]| tool("kafka-consumer-groups", &address(), arguments);
    let theirs = consumer();
    eventually(|| match groups(&["--describe", "--members", "--group", &scene.name]) {
        members if members.contains("console-consumer") => Ok(()),
        members => Err(members),
    });
    let refused = scene.member(&[]).end();
    assert_eq!(refused.code(), 1, "{}", refused.said);
    assert!(refused.said.contains("members that are not eventd processes"), "{}", refused.said);
    assert!(refused.said.contains("--name"), "{}", refused.said);
    theirs.stop();

    // The consumer's commits came from another tool. Dispatch continues from them.
    let ours = scene.member(&[]);
    owns(&ours, 6);
    scene.wait_for_progress("alone");
    let refused = consumer().end();
    assert!(refused.said.contains("InconsistentGroupProtocol"), "{}", refused.said);
    scene.wait_for_progress("after the consumer was refused");
    let listed = groups(&["--list"]);
    assert!(listed.lines().any(|line| line.trim() == scene.name), "{listed}");
    let assigned = ours.lines().matches("partitions assigned").count();
    assert_eq!(assigned, 1, "the member was not disturbed:\n{}", ours.lines());
    assert_eq!(ours.stop().code(), 0);
    assert_eq!(scene.ingest.stop().code(), 0);
}

#[test]
fn added_partitions_are_shared_by_the_members_at_once() {
    let scene = Scene::begin("grown");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    owns(&a, 3);
    owns(&b, 3);
    scene.wait_for_progress("with six partitions");
    // From now on ingest accepts nothing until it is restarted.
    scene.load.stop();
    tool("kafka-topics", &address(), &["--alter", "--topic", &scene.topic, "--partitions", "10"]);
    owns(&a, 5);
    owns(&b, 5);
    let before = scene.sink.count();
    block_on(async {
        let log = fixture().await.engine.open(&scene.topic, None).await.unwrap();
        for partition in 0..10 {
            log.append(partition, vec![record("another", "0")]).await.unwrap();
        }
    });
    eventually(|| match scene.sink.partitions_after(before) {
        moving if moving.len() == 10 => Ok(()),
        moving => Err(format!("with ten partitions: only {moving:?} deliver")),
    });
    for member in [a, b] {
        assert_eq!(member.stop().code(), 0);
    }
    println!("# four partitions more: {} deliveries, {} repeated", scene.sink.count(), scene.sink.repeated());
    assert_eq!(scene.sink.repeated(), 0);
}

#[test]
fn kafkas_own_tool_cannot_reset_offsets_while_a_member_runs() {
    let scene = Scene::begin("reset");
    let a = scene.member(&[]);
    owns(&a, 6);
    scene.wait_for_progress("with one member");
    let to_earliest = ["--group", &scene.name, "--topic", &scene.topic, "--to-earliest", "--execute"];
    let said = tool("kafka-consumer-groups", &address(), &[&["--reset-offsets"], &to_earliest[..]].concat());
    assert!(said.contains("can only be reset if the group") && said.contains("is inactive"), "{said}");
    assert!(!said.contains(&scene.topic), "no offset is new:\n{said}");
    scene.wait_for_progress("after the tool was refused");
    // The next member continues from what the first one commits at its end.
    assert_eq!(a.stop().code(), 0);
    let b = scene.member(&[]);
    owns(&b, 6);
    scene.wait_for_progress("with another member");
    let was_reset = b.lines().contains("reset by another tool");
    assert!(!was_reset, "{}", b.lines());
    let sink = scene.end(vec![b]);
    assert_eq!(sink.repeated(), 0);
}

#[test]
fn a_restart_with_the_same_instance_id_moves_no_partition() {
    let scene = Scene::begin("static");
    let keep = |id| ["--instance-id", id, "--keep-membership"];
    let (a, b) = (scene.member(&keep("a")), scene.member(&keep("b")));
    owns(&a, 3);
    owns(&b, 3);
    scene.wait_for_progress("with two members");
    // A restart makes the other members join again. They keep their partitions.
    let assigned = |member: &Program| -> Vec<String> {
        member.lines().lines().filter(|line| line.contains("partitions assigned")).map(str::to_owned).collect()
    };
    let before = assigned(&b).len();
    assert_eq!(a.stop().code(), 0);
    let a = scene.member(&keep("a"));
    owns(&a, 3);
    scene.wait_for_progress("after the restart");
    let disturbed = |line: &String| !(line.contains("owned=3 ") && line.contains("revoking=0"));
    let since = assigned(&b).split_off(before);
    assert!(!since.iter().any(disturbed), "the other member was disturbed:\n{}", b.lines());
    let twin = scene.member(&keep("a"));
    let older = a.end();
    assert_eq!(older.code(), 1, "{}", older.said);
    assert!(older.said.contains("--instance-id"), "{}", older.said);
    scene.wait_for_progress("with the twin in its place");
    scene.end(vec![b, twin]);
}
