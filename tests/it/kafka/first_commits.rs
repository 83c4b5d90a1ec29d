//! The first commits of a new group. Whichever process dies between them, every partition starts where `--start` says.

use super::address;
use super::commits::{Place, delete_records, records};
use crate::conformance::unique;
use crate::support::broker::tool;
use crate::support::delivered::{self, Line};
use crate::support::program::{Program, run};
use crate::support::wait::{PATIENCE, eventually};
use eventd::core::outcome::FailureCode;
use eventd::core::progress::PartitionState;
use eventd::group::{Change, Group, Groups, JoinOptions};
use eventd::log::Log;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const PARTITIONS: u32 = 3;
const MANY: u32 = 60;
/// The number of events in each partition.
const EVENTS: u32 = 10;
const EARLIEST: u32 = 4;

/// Creates a topic whose first records were removed by retention.
async fn old_topic(partitions: u32) -> (Place, Arc<dyn Log>) {
    let (place, log) = full_topic(partitions).await;
    delete_records(&place.topic, 0..partitions, i64::from(EARLIEST));
    (place, log)
}

async fn full_topic(partitions: u32) -> (Place, Arc<dyn Log>) {
    let (place, log) = Place::with_partitions(partitions).await;
    for partition in 0..partitions {
        log.append(partition, records(0..EVENTS)).await.unwrap();
    }
    (place, log)
}

/// Initializes a new group up to the first commit of one owner. Then all members are gone.
async fn initialize_and_commit_once(place: &Place, log: &Arc<dyn Log>, state: PartitionState) {
    let group = place.group(log).await;
    assert_eq!(group.committed(0).await, Ok(None), "a new group");
    group.commit(0, state).await.unwrap();
    group.leave().await;
}

/// A process of the destination. Others may run at the same time.
fn dispatch(place: &Place, flags: &[&str]) -> Program {
    let fixed = ["dispatch", "--dest", "out-{partition}.jsonl", "--name", &place.name, "--commit-interval", "50ms"];
    place.eventd(&[&fixed[..], &["--session-timeout", "1s"], flags].concat())
}

/// Waits until these events of the partition were delivered, and checks that no others were.
fn delivers(place: &Place, partition: u32, expected: std::ops::Range<u32>, by: &[&Program]) {
    let expected: BTreeSet<u32> = expected.collect();
    eventually(|| {
        let lines = delivered::lines(&place.folder.path().join(format!("out-{partition}.jsonl")));
        let found: BTreeSet<u32> = lines.iter().map(|line: &Line| line.payload.parse().unwrap()).collect();
        assert!(
            found.is_subset(&expected),
            "partition {partition}: {found:?} were delivered, but only these should be: {expected:?}"
        );
        let said = || by.iter().map(|program| program.lines()).collect::<Vec<_>>().join("\n");
        if found == expected { Ok(()) } else { Err(format!("partition {partition}: {found:?} came; {}", said())) }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_one_first_commit_and_a_crash_the_other_partitions_of_a_new_group_still_start() {
    let (place, log) = old_topic(PARTITIONS).await;
    initialize_and_commit_once(&place, &log, PartitionState::at(6)).await;

    let group = place.group(&log).await;
    assert_eq!(group.committed(0).await, Ok(Some(PartitionState::at(6))));
    for partition in 1..PARTITIONS {
        assert_eq!(group.committed(partition).await, Ok(None), "partition {partition} has no commit");
    }
    group.leave().await;
    let dispatch = dispatch(&place, &[]);
    delivers(&place, 0, 6..EVENTS, &[&dispatch]);
    for partition in 1..PARTITIONS {
        delivers(&place, partition, EARLIEST..EVENTS, &[&dispatch]);
    }
    assert_eq!(dispatch.stop().code(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_a_first_commit_starts_where_start_says_in_a_complete_log_too() {
    let (place, log) = full_topic(PARTITIONS).await;
    initialize_and_commit_once(&place, &log, PartitionState::at(i64::from(EVENTS))).await;

    let dispatch = dispatch(&place, &["--start", "latest"]);
    until_initialized(&place, &log).await;
    log.append(1, records(EVENTS..EVENTS + 2)).await.unwrap();
    delivers(&place, 1, EVENTS..EVENTS + 2, &[&dispatch]);
    assert_eq!(dispatch.stop().code(), 0);
}

/// Waits until every partition has a commit of its own.
async fn until_initialized(place: &Place, log: &Arc<dyn Log>) {
    while !states(place, log).await.iter().all(Option::is_some) {
        tokio::task::yield_now().await;
    }
}

/// What is committed, as another process reads it.
async fn states(place: &Place, log: &Arc<dyn Log>) -> Vec<Option<PartitionState>> {
    place.groups().committed(&place.name, log).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_of_partition_0_initializes_a_group_and_the_others_wait() {
    let (place, log) = Place::with_partitions(2).await;
    let (a, b) = (member(&place, &log).await, member(&place, &log).await);
    let (mut of_a, mut of_b) = (BTreeSet::new(), BTreeSet::new());
    while (of_a.len(), of_b.len()) != (1, 1) {
        let ((group, owned), change) = tokio::select! {
            change = a.changed() => ((&a, &mut of_a), change.unwrap()),
            change = b.changed() => ((&b, &mut of_b), change.unwrap()),
        };
        match change {
            Change::Assigned(partition) => assert!(owned.insert(partition)),
            Change::Revoked(partition) => {
                owned.remove(&partition);
                group.released(partition).await;
            }
            Change::Lost(partition) => panic!("partition {partition} was lost"),
        }
    }
    let (first, other) = if of_a.contains(&0) { (a, b) } else { (b, a) };
    let waiting = Arc::clone(&other);
    let mut waiting = tokio::spawn(async move { waiting.committed(1).await });
    // This waits for the absence of a change, so it needs a fixed time.
    let early = timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(first.committed(0).await, Ok(None));
    assert_eq!(timeout(PATIENCE, waiting).await.expect("the group is initialized").unwrap(), Ok(None));
    first.leave().await;
    other.leave().await;
}

async fn member(place: &Place, log: &Arc<dyn Log>) -> Arc<dyn Group> {
    place.groups().join(&place.name, log, &JoinOptions::new("digest")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_initialization_that_was_interrupted_at_any_point_is_completed() {
    let (mut place, log) = old_topic(PARTITIONS).await;
    for cut_after in (0..20).map(|step| Duration::from_micros(step * 400)) {
        place.name = unique("cut");
        let group = place.group(&log).await;
        let cut = timeout(cut_after, group.committed(0)).await.is_err();
        assert_eq!(group.committed(1).await, Ok(None), "cut off after {cut_after:?}: {cut}");
        group.commit(1, PartitionState::at(7)).await.unwrap();
        group.leave().await;
        let group = place.group(&log).await;
        let found = [group.committed(0).await, group.committed(1).await, group.committed(2).await];
        assert_eq!(found, [Ok(None), Ok(Some(PartitionState::at(7))), Ok(None)], "cut off after {cut_after:?}: {cut}");
        group.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_killed_at_the_first_commits_of_a_new_group_lose_nothing() {
    // With many partitions there is enough time between the first and the last first commit.
    let (mut place, log) = old_topic(MANY).await;
    let mut begun = Vec::new();
    for _ in 0..3 {
        (place.name, place.folder) = (unique("killed"), tempfile::tempdir().unwrap());
        let (a, b) = (dispatch(&place, &[]), dispatch(&place, &[]));
        while states(&place, &log).await.iter().all(Option::is_none) {}
        for member in [a, b] {
            assert!(!member.lines().contains("cannot begin"), "{}", member.lines());
            member.kill();
        }
        begun.push(states(&place, &log).await.iter().flatten().count());
        let (a, b) = (dispatch(&place, &[]), dispatch(&place, &[]));
        a.wait_for(&["delivering"]);
        b.wait_for(&["delivering"]);
        for partition in 0..MANY {
            delivers(&place, partition, EARLIEST..EVENTS, &[&a, &b]);
        }
        for member in [a, b] {
            let ending = member.stop();
            assert_eq!(ending.code(), 0, "{}", ending.said);
            assert!(!ending.said.contains("cannot begin"), "{}", ending.said);
        }
    }
    println!("# killed at the first commits of a group: {begun:?} of {MANY} partitions had theirs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninitialized_group_is_shown_reset_and_started_like_a_new_one() {
    let (place, log) = old_topic(PARTITIONS).await;
    let group = place.group(&log).await;
    assert_eq!(group.committed(0).await, Ok(None));
    group.leave().await;

    // Nothing was delivered, so there is no position to reset.
    for way in [&["--rewind", "--from", "5"][..], &["--fast-forward", "5"]] {
        let to = ["--url", &address(), "--topic", &place.topic, "--dest", "file-1", "--name", &place.name, "--execute"];
        let ending = run(place.folder.path(), &[&["replay"], &to[..], way].concat());
        assert_eq!(ending.code(), 2, "{}", ending.said);
        assert!(ending.said.contains("was ever delivered under the name"), "{}", ending.said);
    }
    assert_eq!(states(&place, &log).await, [None, None, None], "read from outside");
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
    let shown = tool("kafka-consumer-groups", &address(), &["--describe", "--group", &place.name]);
    let words = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lags: Vec<_> = words.filter(|words| words.first() == Some(&place.name.as_str())).map(|of| of[5]).collect();
    assert_eq!(lags, ["6", "6", "6"], "{shown}");

    let of_one = format!("{}:1", place.topic);
    let to_seven = ["--reset-offsets", "--group", &place.name, "--topic", &of_one, "--to-offset", "7", "--execute"];
    tool("kafka-consumer-groups", &address(), &to_seven);
    let dispatch = dispatch(&place, &[]);
    delivers(&place, 1, 7..EVENTS, &[&dispatch]);
    for partition in [0, 2] {
        delivers(&place, partition, EARLIEST..EVENTS, &[&dispatch]);
    }
    assert_eq!(dispatch.stop().code(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn initialization_for_an_earlier_topic_of_this_name_requires_start() {
    let (place, log) = Place::with_partitions(2).await;
    let group = place.group(&log).await;
    place.delete().await;
    let log = place.make(2).await;
    // This process has only seen the old topic.
    assert_eq!(group.committed(0).await, Ok(None));
    group.leave().await;

    let group = place.group(&log).await;
    for partition in 0..2 {
        assert_eq!(group.committed(partition).await.unwrap_err().code, FailureCode::TopicRemade);
    }
    group.leave().await;
    let options = JoinOptions { start_given: true, ..JoinOptions::new("digest") };
    let group = place.groups().join_alone(&place.name, &log, &options).await.unwrap();
    for partition in 0..2 {
        assert_eq!(group.committed(partition).await, Ok(None));
    }
    group.leave().await;
}
