//! What is refused on Kafka, at a start or by a topic, and what the error says.

use super::{address, fixture};
use crate::conformance::{Fixture, record, unique};
use crate::support::broker::tool;
use crate::support::client::{Answer, Client};
use crate::support::program::{self, Program};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// A start tries the brokers for 10 s. The rest is for the process itself on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(12);

/// Both commands end with exit code 1 in time, and their output contains all of this.
fn no_broker(url: &str, what: &[&str]) {
    let (folder, began) = (tempfile::tempdir().unwrap(), Instant::now());
    let modes = [&["ingest", "--listen", "127.0.0.1:0"][..], &["dispatch", "--dest", "file-1"]];
    let programs = modes.map(|mode| Program::start(folder.path(), &[mode, &["--url", url]].concat()));
    for ending in programs.map(Program::end) {
        assert!(began.elapsed() < STARTS_WITHIN, "{:?}: {}", began.elapsed(), ending.said);
        assert_eq!(ending.code(), 1, "{}", ending.said);
        for what in ["--url", "eventd up", url].iter().chain(what) {
            assert!(ending.said.contains(what), "no {what:?} in {}", ending.said);
        }
    }
}

#[test]
fn an_address_without_a_listener_is_an_error_that_says_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    no_broker(&free.to_string(), &["cannot connect", "refused"]);
}

#[test]
fn silent_addresses_are_an_error_within_10_s() {
    // The kernel accepts the connections, and no program reads them.
    let silent: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> = silent.iter().map(|silent| silent.local_addr().unwrap().to_string()).collect();
    no_broker(&addresses.join(","), &["did not answer"]);
}

#[test]
fn a_missing_topic_is_an_error_that_names_the_flag_to_create_it_and_existing_topics() {
    let folder = tempfile::tempdir().unwrap();
    // The cluster has at least this topic. It may have more than a message names.
    topic_with_batch_limit(10_000);
    let topic = unique("mistyped");
    for mode in [&["ingest", "--listen", "127.0.0.1:0"][..], &["dispatch", "--dest", "file-1"]] {
        let ending = program::run(folder.path(), &[mode, &["--url", &address(), "--topic", &topic]].concat());
        assert_eq!(ending.code(), 2, "{}", ending.said);
        assert!(ending.said.contains("--create-topic") && ending.said.contains(&topic), "{}", ending.said);
        assert!(ending.said.contains(". The log has these topics: \""), "{}", ending.said);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_appends_share_no_batch_that_is_too_large_for_the_topic() {
    let (fixture, topic) = (fixture().await, topic_with_batch_limit(10_000));
    let log = fixture.engine().open(&topic, None).await.unwrap();
    let text = "x".repeat(1_000);
    let mut appends = JoinSet::new();
    for _ in 0..100 {
        let (log, record) = (Arc::clone(&log), record("user", &text));
        appends.spawn(async move { log.append(0, vec![record]).await });
    }
    let mut offsets: Vec<i64> = appends.join_all().await.into_iter().map(|offset| offset.unwrap()).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_topic_with_a_small_batch_limit_accepts_small_events_and_refuses_others_with_413() {
    let topic = topic_with_batch_limit(20_000);
    let (_folder, ingest) = ingest(&topic);
    let mut client = Client::connect(&ingest.address()).unwrap();
    let large = client.post(&event(30_000)).unwrap();
    assert_eq!((large.status, &problem(&large)["code"]), (413, &json!("event-too-large")), "{large:?}");
    let many: Vec<String> = (0..30).map(|_| event(5_000)).collect();
    let answer = client.post(&format!("[{}]", many.join(","))).unwrap();
    assert_eq!(answer.status, 200, "150,000 bytes are sent in several batches: {answer:?}");
    let offsets: Vec<i64> =
        problem(&answer)["results"].as_array().unwrap().iter().map(|one| one["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, (0..30).collect::<Vec<_>>());
}

#[test]
fn a_limit_that_is_lowered_while_ingest_runs_refuses_only_events_that_are_too_large() {
    let topic = topic_with_batch_limit(100_000);
    let (_folder, ingest) = ingest(&topic);
    let mut client = Client::connect(&ingest.address()).unwrap();
    assert_eq!(client.post(&event(50_000)).unwrap().status, 200);
    configure(&topic, "max.message.bytes=10000");
    let large = client.post(&event(50_000)).unwrap();
    let found = problem(&large);
    assert_eq!((large.status, &found["code"]), (413, &json!("event-too-large")), "{large:?}");
    assert_eq!(found["results"][0]["outcome"], "refused", "{found}");
    // None of these is too large on its own.
    let mut rest = vec![event(4_000); 10];
    let mut refusals = 0;
    loop {
        let answer = client.post(&format!("[{}]", rest.join(","))).unwrap();
        if answer.status == 200 {
            break;
        }
        refusals += 1;
        let found = problem(&answer);
        assert_eq!((answer.status, &found["code"]), (503, &json!("append-too-large")), "{answer:?}");
        assert!(refusals < 10, "{answer:?}");
        let outcomes = found["results"].as_array().unwrap().iter().map(|one| one["outcome"].as_str().unwrap());
        let mut outcomes = outcomes.collect::<Vec<_>>().into_iter();
        rest.retain(|_| outcomes.next() != Some("ok"));
    }
    println!("# a topic that takes less: {refusals} requests refused until the batches fit");
}

/// Creates a topic of one partition with this limit for a batch.
fn topic_with_batch_limit(bytes: usize) -> String {
    let (topic, setting) = (unique("small"), format!("max.message.bytes={bytes}"));
    tool("kafka-topics", &address(), &["--create", "--topic", &topic, "--partitions", "1", "--config", &setting]);
    topic
}

fn configure(topic: &str, setting: &str) {
    let of = ["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", setting];
    tool("kafka-configs", &address(), &of);
}

fn ingest(topic: &str) -> (tempfile::TempDir, Program) {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["ingest", "--url", &address(), "--topic", topic, "--listen", "127.0.0.1:0"];
    let ingest = Program::start(folder.path(), &flags);
    (folder, ingest)
}

fn event(bytes: usize) -> String {
    json!({"UserID": "user-1", "Payload": "x".repeat(bytes)}).to_string()
}

fn problem(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}
