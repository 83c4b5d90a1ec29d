//! Faults of real brokers, while clients send events and a destination gets them:
//!
//! ```text
//!  clients ──▶ ingest ──▶ brokers ✂ killed, paused, slowed, too few ──▶ dispatch ──▶ file-1
//!     │                      │                                                        │
//!     └── what they were told ─┴── what is in the log ──────────────────────────────────┴── what was delivered
//! ```
//!
//! After every fault the three agree. What was acknowledged is at the offset in the answer, and was delivered once, in
//! order. It is in the log twice only if the outcome of a sending was unknown. Each test has brokers of its own and
//! runs alone.

mod cut;
mod leaderless;

use super::commits::{holes, records};
use super::members;
use crate::support::block_on;
use crate::support::broker::{Broker, tool};
use crate::support::delivered;
use crate::support::in_log;
use crate::support::load::{Answered, EventOutcome, Load};
use crate::support::program::{self, Program};
use crate::support::torture_times;
use crate::support::wait::eventually;
use eventd::group::kafka::KafkaGroups;
use eventd::group::{Groups as _, JoinOptions};
use eventd::kafka::{Cluster, Recipient, topic_name};
use eventd::log::kafka::Kafka;
use eventd::log::{CreateTopic, Engine, Log};
use eventd::net::BrokerSettings;
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How soon after a broker is back every client must get its next 200.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);
/// Leaves the machine time for brokers that start.
const PAUSE: Duration = Duration::from_millis(3);
/// Requests of every client before and after a fault. This is enough for all users to have events in the log.
const REQUESTS: u64 = 100;

/// Everything from the clients to the destination, running.
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

    /// After the brokers are healthy: checks that every client is soon served, and that dispatch delivers.
    fn recovers(&self) -> Recovery {
        let (began, lines) = (Instant::now(), lines_in(&self.file()));
        let served = self.load.wait_for_more(1);
        assert!(served <= RECOVERS_WITHIN, "served again after {served:?}; ingest said\n{}", self.ingest.lines());
        let delivering = eventually(|| match lines_in(&self.file()) {
            now if now > lines => Ok(began.elapsed()),
            now => Err(format!("{now} lines, and no new one; dispatch said\n{}", self.dispatch.lines())),
        });
        self.load.wait_for_more(REQUESTS);
        Recovery { served, delivering }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("file-1")
    }

    /// Stops everything, and compares the answers, the log and the deliveries.
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
            assert!(before < Some(line.offset), "not in order after {before:?}: {line:?}");
        }
        // A member that has no broker for longer than its session releases its partitions, and starts again at its last
        // commit.
        let gave_up = dispatch.said.contains("lost all partitions");
        assert!(again == 0 || gave_up, "{again} events were delivered twice; dispatch said\n{}", dispatch.said);
        assert_eq!(delivered, in_log.places, "events that were delivered, and events in the log");
        // A timed-out append is fenced off before the next one is sent, so it cannot be stored later.
        assert_eq!(in_log.late, 0, "events stored after the place that their client was answered");
        let of_all = |what: fn(&EventOutcome) -> u64| answered.events.values().flatten().map(what).sum();
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

/// How long after the end of a fault every client was served, and something was delivered.
#[derive(Debug)]
struct Recovery {
    #[expect(dead_code, reason = "printed")]
    served: Duration,
    #[expect(dead_code, reason = "printed")]
    delivering: Duration,
}

/// What happened to the load.
struct Judged {
    answered: Answered,
    /// Sendings whose outcome was answered as unknown.
    unknown: u64,
    refused: u64,
}

fn settings(addresses: &str) -> BrokerSettings {
    BrokerSettings::plain(addresses.split(',').map(str::to_owned).collect())
}

async fn open(addresses: &str) -> Arc<dyn Log> {
    let engine = Kafka::connect(settings(addresses)).await.unwrap();
    engine.open("user-events", None).await.unwrap()
}

fn lines_in(file: &Path) -> usize {
    std::fs::read(file).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

#[test]
fn a_broker_killed_under_load_loses_nothing() {
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
fn a_group_survives_a_restart_of_its_broker() {
    let broker = Broker::start("members", &[]);
    let scene = members::Scene::begin_at(broker.addresses(), "restarted");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    members::owns(&a, 3);
    members::owns(&b, 3);
    scene.wait_for_progress("with two members");
    let mut recoveries = Vec::new();
    for _ in 0..torture_times() {
        broker.kill(1);
        scene.load.wait_for_refusals(1);
        broker.start_again();
        let began = Instant::now();
        scene.wait_for_progress("after the broker came back");
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
fn a_group_survives_its_coordinator() {
    let broker = Broker::start("coordinator", &["--nodes", "3"]);
    let scene = members::Scene::begin_at(broker.addresses(), "coordinated");
    let (a, b) = (scene.member(&[]), scene.member(&[]));
    members::owns(&a, 3);
    members::owns(&b, 3);
    scene.wait_for_progress("with two members");
    let (mut coordinators, mut takeovers) = (vec![coordinator(&broker, &scene.name)], Vec::new());
    for _ in 0..torture_times() {
        let killed = *coordinators.last().unwrap();
        broker.kill(killed);
        let began = Instant::now();
        scene.wait_for_progress("after the coordinator was killed");
        takeovers.push(began.elapsed());
        let next = coordinator(&broker, &scene.name);
        assert_ne!(next, killed, "the group has a new coordinator");
        coordinators.push(next);
        broker.start_again();
        scene.wait_for_progress("after the broker came back");
    }
    // A member without a coordinator releases its partitions after its session, and starts again at the last commit.
    let gave_up = [&a, &b].map(|member| member.lines().matches("lost all partitions").count());
    let sink = scene.end(vec![a, b]);
    let repeated = sink.repeated();
    println!(
        "# the coordinator killed among three brokers, nodes {coordinators:?}: {} deliveries, {repeated} repeated, the \
         members gave up what they had {gave_up:?} times, all partitions move on {takeovers:?} after the kill",
        sink.count()
    );
    assert!(
        repeated == 0 || gave_up != [0, 0],
        "{repeated} deliveries were repeated, and no member lost its partitions"
    );
}

/// The node that coordinates the group, according to Kafka's own tool.
fn coordinator(broker: &Broker, group: &str) -> i32 {
    eventually(|| {
        let said = tool("kafka-consumer-groups", broker.addresses(), &["--describe", "--state", "--group", group]);
        // The columns are GROUP, COORDINATOR (ID), …, and the second one is `host:port (id)`.
        let line = said.lines().find(|line| line.starts_with(group));
        let id = line.and_then(|line| line.split(['(', ')']).nth(1)?.parse().ok());
        id.ok_or(said)
    })
}

#[test]
fn a_broker_paused_for_20_s_loses_nothing() {
    let scene = Scene::start(Broker::start("paused", &[]));
    let mut recoveries = Vec::new();
    for _ in 0..torture_times() {
        let until = Instant::now() + Duration::from_secs(20);
        scene.broker.pause(1);
        scene.load.wait_for_refusals(1);
        // The duration of the pause is the fault itself.
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        scene.broker.resume(1);
        recoveries.push(scene.recovers());
    }
    let judged = scene.judge("a broker paused", &recoveries);
    assert!(judged.unknown > 0, "no request was in flight when the broker was paused");
}

#[test]
fn quotas_slow_ingest_and_dispatch_but_lose_and_repeat_nothing() {
    let scene = Scene::start(Broker::start("quotas", &[]));
    let requests = REQUESTS / 10;
    let usual = scene.load.wait_for_more(requests);
    let of_all = ["--alter", "--entity-type", "clients", "--entity-default"];
    let quotas = |change: [&str; 2]| {
        tool("kafka-configs", scene.broker.addresses(), &[&of_all[..], &change].concat());
    };
    quotas(["--add-config", "producer_byte_rate=10000,consumer_byte_rate=2000"]);
    // A quota is an average over some seconds; 40 requests are 20,000 bytes or more.
    let slowed = eventually(|| match scene.load.wait_for_more(requests) {
        took if took > Duration::from_secs(1) && took > 4 * usual => Ok(took),
        took => Err(format!("{requests} requests of each client took {usual:?}, and with a quota {took:?}")),
    });
    scene.dispatch.wait_for(&["a quota of the brokers"]);
    quotas(["--delete-config", "producer_byte_rate,consumer_byte_rate"]);
    let took = scene.recovers();
    scene.judge(&format!("quotas: {usual:?} became {slowed:?}"), &[took]);
}

/// A broker that accepts hardly any metadata in a commit: what does not fit is stored in the state topic.
#[test]
fn a_state_is_kept_by_a_broker_that_accepts_256_bytes_of_metadata() {
    let broker = Broker::start("small-metadata", &["--set", "offset.metadata.max.bytes=256"]);
    block_on(async {
        let engine = Kafka::connect(settings(broker.addresses())).await.unwrap();
        let log = engine.open("events", Some(CreateTopic { partitions: 1, retention: None })).await.unwrap();
        log.append(0, records(0..2_000)).await.unwrap();
        let options = JoinOptions::new("digest");
        let group = KafkaGroups::new(Arc::clone(&engine)).join_alone("crm", &log, &options).await.unwrap();
        for ranges in [1, 300, 700] {
            let state = holes(3, ranges);
            group.commit(0, state.clone()).await.unwrap();
            assert_eq!(group.committed(0).await, Ok(Some(state)), "{ranges} ranges");
        }
        group.leave().await;
    });
}

#[test]
fn a_mistyped_topic_is_not_created_by_a_broker_that_creates_topics_on_request() {
    let broker = Broker::start("auto-create", &["--set", "auto.create.topics.enable=true"]);
    let folder = tempfile::tempdir().unwrap();
    for mode in [&["ingest", "--listen", "127.0.0.1:0"][..], &["dispatch", "--dest", "file-1"]] {
        let flags = ["--url", broker.addresses(), "--topic", "mistyped"];
        let ending = program::run(folder.path(), &[mode, &flags].concat());
        assert_eq!(ending.code(), 2, "{}", ending.said);
        assert!(ending.said.contains("--create-topic") && ending.said.contains("mistyped"), "{}", ending.said);
        assert!(!is_there(&broker, "mistyped", false), "{mode:?} created the topic");
    }
    // Any other client that asks for the topic creates it.
    eventually(|| match is_there(&broker, "asked-for", true) {
        true => Ok(()),
        false => Err("this broker creates no topics".into()),
    });
}

/// Whether the broker has this topic. `make` lets the broker create it.
fn is_there(broker: &Broker, topic: &str, make: bool) -> bool {
    let asked = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(make);
    let cluster = Cluster::new(settings(broker.addresses()));
    let answer = block_on(cluster.call(Recipient::Any, &request, Instant::now() + RECOVERS_WITHIN)).unwrap();
    answer.topics.first().is_some_and(|topic| topic.error_code == 0)
}

#[test]
fn a_leader_killed_among_three_brokers_loses_nothing_even_when_too_few_are_left() {
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
        assert_ne!(leader, killed, "partition 0 has a new leader");

        // One more than the remaining two is required.
        min_in_sync("3");
        scene.load.wait_for_refusals(1);
        min_in_sync("2");
        recoveries.push(scene.recovers());

        // One node is left. No node may decide that one is enough.
        let other = (1..=3).find(|node| *node != leader && *node != killed).unwrap();
        scene.broker.kill(other);
        scene.load.wait_for_refusals(1);
        scene.broker.start_again();
        recoveries.push(scene.recovers());
    }
    let judged = scene.judge(&format!("three brokers, leaders replaced within {takeovers:?}"), &recoveries);
    assert!(judged.answered.slowest > Duration::from_secs(1), "no request was in flight when the leader was killed");
    assert!(
        judged.refused > 0 && judged.unknown > 0,
        "sendings refused {}, unknown {}",
        judged.refused,
        judged.unknown
    );
}

/// The node that leads partition 0.
fn leader(scene: &Scene) -> i32 {
    let cluster = Cluster::new(settings(scene.broker.addresses()));
    eventually(|| {
        let found = block_on(cluster.leader("user-events", 0, Instant::now() + RECOVERS_WITHIN));
        found.map(|(leader, _)| leader.node).map_err(|error| error.to_string())
    })
}
