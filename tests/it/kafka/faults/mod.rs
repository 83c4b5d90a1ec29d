//! Faults of real brokers, while clients send and a destination is delivered to:
//!
//! ```text
//!  clients ──▶ ingest ──▶ brokers ✂ killed, paused, slowed, too few ──▶ dispatch ──▶ file-1
//!     │                      │                                                        │
//!     └── what they were told ─┴── what is in the log ──────────────────────────────────┴── what was delivered
//! ```
//!
//! The three agree after every fault: what was acknowledged stands where the answer said, twice only where a sending was
//! told to be unknown, and was delivered once, in order. Each test has brokers of its own, and runs alone.

mod cut;
mod leaderless;

use super::members;
use crate::support::block_on;
use crate::support::broker::{Broker, tool};
use crate::support::delivered;
use crate::support::in_log;
use crate::support::load::{Answered, Load, Told};
use crate::support::program::{self, Program};
use crate::support::torture_times;
use crate::support::wait::eventually;
use eventd::kafka::{Cluster, Who, topic_name};
use eventd::log::kafka::Kafka;
use eventd::log::{Engine, Log};
use eventd::net::Settings;
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long after a broker is back every client may wait for its next 200.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);
/// Leaves the machine room for brokers that start.
const PAUSE: Duration = Duration::from_millis(3);
/// Requests of every client before a fault and after it: enough that all of its users have events in the log.
const REQUESTS: u64 = 100;

/// Everything from the clients to the destination, at work.
struct Scene {
    broker: Broker,
    folder: tempfile::TempDir,
    ingest: Program,
    dispatch: Program,
    load: Load,
}

impl Scene {
    fn start(broker: Broker) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let eventd = |mode: &[&str]| {
            Program::start(folder.path(), &[mode, &["--url", broker.addresses(), "--create-topic"]].concat())
        };
        let ingest = eventd(&["ingest", "--listen", "127.0.0.1:0"]);
        let load = Load::with_pauses(&ingest.address(), PAUSE);
        let dispatch = eventd(&["dispatch", "--dest", "file-1"]);
        load.wait_for_more(REQUESTS);
        Self { ingest, load, dispatch, folder, broker }
    }

    /// The brokers are well again: every client is served, soon, and dispatch delivers.
    fn recovers(&self) -> Recovery {
        let (began, lines) = (Instant::now(), lines_in(&self.file()));
        let served = self.load.wait_for_more(1);
        assert!(served <= RECOVERS_WITHIN, "served again after {served:?}; ingest said\n{}", self.ingest.lines());
        let delivering = eventually(|| match lines_in(&self.file()) {
            now if now > lines => Ok(began.elapsed()),
            now => Err(format!("{now} lines, as before; dispatch said\n{}", self.dispatch.lines())),
        });
        self.load.wait_for_more(REQUESTS);
        Recovery { served, delivering }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("file-1")
    }

    /// Ends everything, and holds answers, log and deliveries against each other.
    fn judge(self, fault: &str, recoveries: &[Recovery]) -> Judged {
        let file = self.file();
        let answered = self.load.stop();
        let in_log = block_on(async { in_log::judge(&*open(self.broker.addresses()).await, &answered).await });
        eventually(|| match lines_in(&file) {
            lines if lines >= in_log.places.len() => Ok(()),
            lines => Err(format!("{lines} of {} were delivered; {}", in_log.places.len(), self.dispatch.lines())),
        });
        let (dispatch, ingest) = (self.dispatch.stop(), self.ingest.stop());
        for ending in [&dispatch, &ingest] {
            assert_eq!(ending.code(), 0, "{}", ending.said);
        }
        let (mut delivered, mut last, mut again) = (HashSet::new(), HashMap::new(), 0);
        for line in delivered::lines(&file) {
            if !delivered.insert((line.partition, line.offset)) {
                again += 1;
                continue;
            }
            let before = last.insert(line.user.clone(), line.offset);
            assert!(before < Some(line.offset), "not in order behind {before:?}: {line:?}");
        }
        // Without a broker for longer than its session a member gives up what it has, and begins again at its last commit.
        let gave_up = dispatch.said.contains("every partition is given up");
        assert!(again == 0 || gave_up, "{again} events were delivered twice; dispatch said\n{}", dispatch.said);
        assert_eq!(delivered, in_log.places, "what was delivered, and what is in the log");
        // A sending that was given up is shut out before the next one goes: it cannot come late.
        assert_eq!(in_log.late, 0, "events that stand behind the place that their client was told");
        let of_all = |what: fn(&Told) -> u64| answered.events.values().flatten().map(what).sum();
        let judged = Judged { unknown: of_all(|told| told.unknown), refused: of_all(|told| told.refused), answered };
        println!(
            "# {fault}: {} events acknowledged, {} answers 503, sendings of events refused {} and unknown {}, {} events \
             twice in the log, {again} delivered again, slowest answer {:?}, {recoveries:?}",
            judged.answered.count(),
            judged.answered.refusals,
            judged.refused,
            judged.unknown,
            in_log.repeats,
            judged.answered.slowest,
        );
        judged
    }
}

/// How long after a fault ended every client was served, and something was delivered.
#[derive(Debug)]
struct Recovery {
    #[expect(dead_code, reason = "printed")]
    served: Duration,
    #[expect(dead_code, reason = "printed")]
    delivering: Duration,
}

/// What became of the load.
struct Judged {
    answered: Answered,
    /// Sendings of events that were told to be so.
    unknown: u64,
    refused: u64,
}

fn settings(addresses: &str) -> Settings {
    Settings::plain(addresses.split(',').map(str::to_owned).collect())
}

async fn open(addresses: &str) -> Arc<dyn Log> {
    let engine = Kafka::connect(settings(addresses)).await.unwrap();
    engine.open("user-events", None).await.unwrap()
}

fn lines_in(file: &Path) -> usize {
    std::fs::read(file).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

#[test]
fn a_broker_that_is_killed_under_load_loses_nothing_and_comes_back() {
    let scene = Scene::start(Broker::start("killed", &[]));
    let mut recoveries = Vec::new();
    for _ in 0..torture_times() {
        scene.broker.kill(1);
        scene.load.wait_for_refusals(1);
        scene.broker.start_again();
        recoveries.push(scene.recovers());
    }
    let judged = scene.judge("a broker killed", &recoveries);
    assert!(judged.answered.refusals > 0 && judged.unknown + judged.refused > 0);
}

#[test]
fn two_members_of_a_group_outlive_a_restart_of_their_broker() {
    let broker = Broker::start("members", &[]);
    let scene = members::Scene::begin_at(broker.addresses(), "restarted");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    members::owns(&a, 3);
    members::owns(&b, 3);
    scene.all_move_on("with two members");
    let mut recoveries = Vec::new();
    for _ in 0..torture_times() {
        broker.kill(1);
        scene.load.wait_for_refusals(1);
        broker.start_again();
        let began = Instant::now();
        scene.all_move_on("after the broker came back");
        recoveries.push(began.elapsed());
    }
    let sink = scene.end(vec![a, b]);
    println!(
        "# a broker restarted under two members: {} deliveries, {} repeated, all partitions move on {recoveries:?} after \
         it is back",
        sink.count(),
        sink.repeated()
    );
}

#[test]
fn two_members_of_a_group_outlive_the_broker_that_coordinates_it() {
    let broker = Broker::start("coordinator", &["--nodes", "3"]);
    let scene = members::Scene::begin_at(broker.addresses(), "coordinated");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    members::owns(&a, 3);
    members::owns(&b, 3);
    scene.all_move_on("with two members");
    let (mut coordinators, mut takeovers) = (vec![coordinator(&broker, &scene.name)], Vec::new());
    for _ in 0..torture_times() {
        let killed = *coordinators.last().unwrap();
        broker.kill(killed);
        let began = Instant::now();
        scene.all_move_on("after the coordinator was killed");
        takeovers.push(began.elapsed());
        let next = coordinator(&broker, &scene.name);
        assert_ne!(next, killed, "who coordinates the group");
        coordinators.push(next);
        broker.start_again();
        scene.all_move_on("after the broker came back");
    }
    // Who hears from no coordinator for its session gives up what it has, and begins again at the last commit.
    let gave_up = [&a, &b].map(|member| member.lines().matches("every partition is given up").count());
    let sink = scene.end(vec![a, b]);
    let repeated = sink.repeated();
    println!(
        "# the coordinator killed among three brokers, nodes {coordinators:?}: {} deliveries, {repeated} repeated, the \
         members gave up what they had {gave_up:?} times, all partitions move on {takeovers:?} after the kill",
        sink.count()
    );
    assert!(repeated == 0 || gave_up != [0, 0], "{repeated} deliveries were repeated, and no member gave up anything");
}

/// The node that coordinates the group, as Kafka's own tool has it.
fn coordinator(broker: &Broker, group: &str) -> i32 {
    eventually(|| {
        let said = tool("kafka-consumer-groups", broker.addresses(), &["--describe", "--state", "--group", group]);
        // GROUP COORDINATOR (ID) …, where the second is `host:port (id)`.
        let line = said.lines().find(|line| line.starts_with(group));
        let id = line.and_then(|line| line.split(['(', ')']).nth(1)?.parse().ok());
        id.ok_or(said)
    })
}

#[test]
fn a_broker_that_stands_for_20_s_loses_nothing_and_goes_on() {
    let scene = Scene::start(Broker::start("paused", &[]));
    let mut recoveries = Vec::new();
    for _ in 0..torture_times() {
        let until = Instant::now() + Duration::from_secs(20);
        scene.broker.pause(1);
        scene.load.wait_for_refusals(1);
        // How long it stands is the fault itself.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        scene.broker.resume(1);
        recoveries.push(scene.recovers());
    }
    let judged = scene.judge("a broker paused", &recoveries);
    assert!(judged.unknown > 0, "no request was under way when the broker was paused");
}

#[test]
fn quotas_slow_ingest_and_dispatch_and_lose_and_repeat_nothing() {
    let scene = Scene::start(Broker::start("quotas", &[]));
    let requests = REQUESTS / 10;
    let usual = scene.load.wait_for_more(requests);
    let of_all = ["--alter", "--entity-type", "clients", "--entity-default"];
    let quotas = |change: [&str; 2]| {
        tool("kafka-configs", scene.broker.addresses(), &[&of_all[..], &change].concat());
    };
    quotas(["--add-config", "producer_byte_rate=10000,consumer_byte_rate=2000"]);
    // A quota is an average of some seconds; 40 requests are 20,000 bytes and more.
    let slowed = eventually(|| match scene.load.wait_for_more(requests) {
        took if took > Duration::from_secs(1) && took > 4 * usual => Ok(took),
        took => Err(format!("{requests} requests of each client took {usual:?}, and with a quota {took:?}")),
    });
    scene.dispatch.wait_for(&["a quota of the brokers"]);
    quotas(["--delete-config", "producer_byte_rate,consumer_byte_rate"]);
    let took = scene.recovers();
    scene.judge(&format!("quotas: {usual:?} became {slowed:?}"), &[took]);
}

#[test]
fn a_mistyped_topic_is_not_made_where_the_broker_makes_what_is_asked_for() {
    let broker = Broker::start("auto-create", &["--set", "auto.create.topics.enable=true"]);
    let folder = tempfile::tempdir().unwrap();
    for mode in [&["ingest", "--listen", "127.0.0.1:0"][..], &["dispatch", "--dest", "file-1"]] {
        let flags = ["--url", broker.addresses(), "--topic", "mistyped"];
        let ending = program::run(folder.path(), &[mode, &flags].concat());
        assert_eq!(ending.code(), 2, "{}", ending.said);
        assert!(ending.said.contains("--create-topic") && ending.said.contains("mistyped"), "{}", ending.said);
        assert!(!is_there(&broker, "mistyped", false), "{mode:?} made it");
    }
    // As any other client asks.
    eventually(|| match is_there(&broker, "asked-for", true) {
        true => Ok(()),
        false => Err("this broker makes no topics".into()),
    });
}

/// Whether the broker has this topic, asked by a client that lets it be made, or not.
fn is_there(broker: &Broker, topic: &str, make: bool) -> bool {
    let asked = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(make);
    let cluster = Cluster::new(settings(broker.addresses()));
    let answer = block_on(cluster.call(Who::Any, &request, Instant::now() + RECOVERS_WITHIN)).unwrap();
    answer.topics.first().is_some_and(|topic| topic.error_code == 0)
}

#[test]
fn of_three_brokers_the_leader_is_killed_and_then_too_few_are_left() {
    let scene = Scene::start(Broker::start("three", &["--nodes", "3"]));
    let min_in_sync = |count: &str| {
        let of_topic = ["--alter", "--entity-type", "topics", "--entity-name", "user-events", "--add-config"];
        let setting = format!("min.insync.replicas={count}");
        tool("kafka-configs", scene.broker.addresses(), &[&of_topic[..], &[&setting]].concat());
    };
    let (mut recoveries, mut takeovers) = (Vec::new(), Vec::new());
    for _ in 0..torture_times() {
        let killed = leader(&scene);
        scene.broker.kill(killed);
        takeovers.push(scene.load.wait_for_more(REQUESTS));
        let leader = leader(&scene);
        assert_ne!(leader, killed, "who leads partition 0");

        // The two that are left are one too few.
        min_in_sync("3");
        scene.load.wait_for_refusals(1);
        min_in_sync("2");
        recoveries.push(scene.recovers());

        // One is left, and neither it nor anybody else may decide that this is enough.
        let other = (1..=3).find(|node| *node != leader && *node != killed).unwrap();
        scene.broker.kill(other);
        scene.load.wait_for_refusals(1);
        scene.broker.start_again();
        recoveries.push(scene.recovers());
    }
    let judged = scene.judge(&format!("three brokers, leaders replaced within {takeovers:?}"), &recoveries);
    assert!(judged.answered.slowest > Duration::from_secs(1), "no request was under way when the leader was killed");
    assert!(
        judged.refused > 0 && judged.unknown > 0,
        "sendings refused {}, unknown {}",
        judged.refused,
        judged.unknown
    );
}

/// Who leads partition 0 now.
fn leader(scene: &Scene) -> i32 {
    let cluster = Cluster::new(settings(scene.broker.addresses()));
    eventually(|| {
        let found = block_on(cluster.leader("user-events", 0, Instant::now() + RECOVERS_WITHIN));
        found.map(|(leader, _)| leader.node).map_err(|error| error.to_string())
    })
}
