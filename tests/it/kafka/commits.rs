//! Commits on a real broker and what happens to them: topics that are created again, commits that expire, positions
//! below the log's start, operators with Kafka's own tools, and settled maps that are too large for a commit.

use super::{Shared, address, fixture};
use crate::conformance::unique;
use crate::support::broker::tool;
use crate::support::client::Client;
use crate::support::delivered::{self, Line};
use crate::support::program::{Ending, Program};
use crate::support::wait::{PATIENCE, eventually};
use eventd::core::event::Record;
use eventd::core::progress::{FailedHead, ParkedUser, PartitionState, UserState};
use eventd::group::kafka::KafkaGroups;
use eventd::group::{Group, Groups, JoinError, JoinOptions};
use eventd::kafka::Cluster;
use eventd::log::{CreateTopic, Engine, Log};
use eventd::net::BrokerSettings;
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// A topic and a destination that only one test uses.
pub(super) struct Place {
    pub(super) broker: Shared,
    pub(super) topic: String,
    /// The name of the destination and of its group.
    pub(super) name: String,
    pub(super) folder: tempfile::TempDir,
}

impl Place {
    pub(super) async fn with_partitions(partitions: u32) -> (Self, Arc<dyn Log>) {
        let place = Self {
            broker: fixture().await,
            topic: unique("commits"),
            name: unique("crm"),
            folder: tempfile::tempdir().unwrap(),
        };
        let log = place.make(partitions).await;
        (place, log)
    }

    pub(super) async fn make(&self, partitions: u32) -> Arc<dyn Log> {
        self.open(&self.topic, Some(CreateTopic { partitions, retention: None })).await
    }

    async fn open(&self, topic: &str, create: Option<CreateTopic>) -> Arc<dyn Log> {
        self.broker.engine.open(topic, create).await.unwrap()
    }

    pub(super) fn groups(&self) -> KafkaGroups {
        KafkaGroups::new(Arc::clone(&self.broker.engine))
    }

    /// Joins as the group's only member.
    pub(super) async fn group(&self, log: &Arc<dyn Log>) -> Arc<dyn Group> {
        self.groups().join_alone(&self.name, log, &JoinOptions::new("digest")).await.unwrap()
    }

    /// Commits as a member, which then leaves.
    async fn commit(&self, log: &Arc<dyn Log>, state: PartitionState) {
        let group = self.group(log).await;
        group.commit(0, state).await.unwrap();
        group.leave().await;
    }

    /// The committed state of the first partition, as another process reads it.
    async fn committed(&self, log: &Arc<dyn Log>) -> Result<Option<PartitionState>, JoinError> {
        let mut states = self.groups().committed(&self.name, log).await?;
        Ok(states.remove(0))
    }

    async fn until_committed(&self, log: &Arc<dyn Log>) {
        while !matches!(self.committed(log).await, Ok(Some(_))) {
            tokio::task::yield_now().await;
        }
    }

    /// Deletes the topic, and waits until the broker has no topic of this name.
    pub(super) async fn delete(&self) {
        tool("kafka-topics", &address(), &["--delete", "--topic", &self.topic]);
        let cluster = Cluster::new(BrokerSettings::plain(vec![address()]));
        while cluster.topic(&self.topic, Instant::now() + PATIENCE).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn eventd(&self, mode: &[&str]) -> Program {
        Program::start(self.folder.path(), &[mode, &["--url", &address(), "--topic", &self.topic]].concat())
    }

    fn dispatch(&self, flags: &[&str]) -> Program {
        let delivery = ["dispatch", "--dest", "file-1", "--name", &self.name, "--commit-interval", "50ms"];
        self.eventd(&[&delivery, flags].concat())
    }

    /// Runs a dispatch until its only partition is stopped, and returns its output.
    fn dispatch_stops(&self, flags: &[&str]) -> String {
        let dispatch = self.dispatch(flags);
        dispatch.wait_for(&["this partition is stopped"]);
        failed(dispatch.stop())
    }

    /// Waits until this many more lines were delivered, and returns those after the first `before`.
    fn delivered(&self, before: usize, more: usize, by: &Program) -> Vec<Line> {
        eventually(|| {
            let mut lines = delivered::lines(&self.folder.path().join("file-1"));
            match lines.len() {
                found if found >= before + more => Ok(lines.split_off(before)),
                found => Err(format!("{found} of {} lines; dispatch said\n{}", before + more, by.lines())),
            }
        })
    }
}

fn failed(ending: Ending) -> String {
    assert_eq!(ending.code(), 1, "{}", ending.said);
    ending.said
}

/// Records with the time of now. The broker may remove older ones at any moment.
pub(super) fn records(payloads: std::ops::Range<u32>) -> Vec<Record> {
    payloads.map(|number| Record::new(Some(b"user"), Some(number.to_string().as_bytes()), &[], now_ms())).collect()
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

pub(super) fn payloads(lines: &[Line]) -> Vec<u32> {
    lines.iter().map(|line| line.payload.parse().unwrap()).collect()
}

pub(super) fn numbers(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_created_again_stops_dispatch_and_the_next_start_delivers_the_new_topic() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..5)).await.unwrap();
    let ingest = place.eventd(&["ingest", "--listen", "127.0.0.1:0"]);
    let dispatch = place.dispatch(&[]);
    place.delivered(0, 5, &dispatch);
    place.delete().await;
    let log = place.make(1).await;
    log.append(0, records(10..13)).await.unwrap();
    let said = failed(dispatch.end());
    assert!(said.contains("deleted and made again") && said.contains("--start"), "{said}");

    // Ingest continues with the new topic.
    let mut client = Client::connect(&ingest.address()).unwrap();
    let answer = client.post(r#"{"UserID":"user","Payload":"13"}"#).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    // The broker removed the commits together with the old topic. So the group is a new one and starts at the
    // beginning.
    let dispatch = place.dispatch(&[]);
    assert_eq!(payloads(&place.delivered(5, 4, &dispatch)), numbers(10..14));
    assert_eq!(dispatch.stop().code(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_created_again_ends_up_and_the_next_start_delivers_it_to_all_destinations() {
    let (place, log) = Place::with_partitions(3).await;
    log.append(0, records(0..5)).await.unwrap();
    let (named, second) = (format!("{}=file-1", place.name), unique("second"));
    let second = format!("{second}=null:");
    let up = || place.eventd(&["up", "--listen", "127.0.0.1:0", "--dest", &named, "--dest", &second]);
    let first = up();
    place.delivered(0, 5, &first);
    place.delete().await;
    let log = place.make(3).await;
    log.append(0, records(10..13)).await.unwrap();
    let said = failed(first.end());
    assert!(said.contains("deleted and made again") && said.contains("the process drains and ends"), "{said}");

    let next = up();
    assert_eq!(payloads(&place.delivered(5, 3, &next)), numbers(10..13));
    assert_eq!(next.stop().code(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_an_earlier_topic_of_this_name_stops_dispatch_until_start_is_set() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..5)).await.unwrap();
    let group = place.group(&log).await;
    group.commit(0, PartitionState::at(2)).await.unwrap();
    place.delete().await;
    let log = place.make(1).await;
    log.append(0, records(10..13)).await.unwrap();
    // This commit is from a process that has only seen the old topic.
    group.commit(0, PartitionState::at(3)).await.unwrap();
    group.leave().await;

    let said = place.dispatch_stops(&[]);
    assert!(said.contains("was deleted and created again since") && said.contains("--start"), "{said}");
    let dispatch = place.dispatch(&["--start", "earliest"]);
    assert_eq!(payloads(&place.delivered(0, 3, &dispatch)), numbers(10..13));
    dispatch.wait_for(&["starting anew at --start"]);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(place.committed(&log).await, Ok(Some(PartitionState::at(3))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_commit_stops_a_destination_that_has_delivered_before() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..5)).await.unwrap();
    let dispatch = place.dispatch(&[]);
    place.delivered(0, 5, &dispatch);
    assert_eq!(dispatch.stop().code(), 0);
    let dead = format!("{}.{}.dead", place.topic, place.name);
    place.open(&dead, Some(CreateTopic { partitions: 1, retention: None })).await;
    tool("kafka-consumer-groups", &address(), &["--delete", "--group", &place.name]);

    let said = place.dispatch_stops(&[]);
    assert!(said.contains("has expired") && said.contains("--start"), "{said}");
    let dispatch = place.dispatch(&["--start", "latest"]);
    dispatch.wait_for(&["starting anew at --start"]);
    // The start is committed before anything is delivered.
    place.until_committed(&log).await;
    log.append(0, records(5..7)).await.unwrap();
    assert_eq!(payloads(&place.delivered(5, 2, &dispatch)), [5, 6]);
    assert_eq!(dispatch.stop().code(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_before_the_logs_start_stops_the_partition_until_the_gap_is_skipped() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..10)).await.unwrap();
    place.commit(&log, PartitionState::at(2)).await;
    delete_records(&place.topic, 0..1, 5);

    let said = place.dispatch_stops(&[]);
    let expected = ["offset 2 is outside the log, which holds 5 to 10", "--on-gap skip"];
    assert!(expected.iter().all(|text| said.contains(text)), "{said}");
    let dispatch = place.dispatch(&["--on-gap", "skip"]);
    assert_eq!(payloads(&place.delivered(0, 5, &dispatch)), numbers(5..10));
    let skipped = dispatch.wait_for(&["skipped events that cannot be read (--on-gap skip)"]);
    assert!(["destination=", "from=2", "to=5"].iter().all(|field| skipped.contains(field)), "{skipped}");
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(place.committed(&log).await, Ok(Some(PartitionState::at(10))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_partition_stays_owned_and_a_fast_forward_skips_the_gap_while_dispatch_runs() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..10)).await.unwrap();
    place.commit(&log, PartitionState::at(2)).await;
    delete_records(&place.topic, 0..1, 5);
    let dispatch = place.dispatch(&[]);
    dispatch.wait_for(&["this partition is stopped", "offset 2 is outside the log", "--fast-forward p0:5"]);
    let to = ["replay", "--dest", "file-1", "--name", &place.name, "--fast-forward", "p0:5", "--execute"];
    let replay = place.eventd(&to).end();
    assert!(replay.code() == 0 && replay.said.contains("3 offsets that cannot be read"), "{}", replay.said);
    assert_eq!(payloads(&place.delivered(0, 5, &dispatch)), numbers(5..10));
    log.append(0, records(10..12)).await.unwrap();
    assert_eq!(payloads(&place.delivered(5, 2, &dispatch)), numbers(10..12));
    let ending = dispatch.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(place.committed(&log).await.map(|state| state.map(|state| state.watermark)), Ok(Some(12)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_by_kafkas_own_tool_is_followed_and_logged() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..10)).await.unwrap();
    let dispatch = place.dispatch(&[]);
    place.delivered(0, 10, &dispatch);
    assert_eq!(dispatch.stop().code(), 0);
    let to_four = ["--reset-offsets", "--group", &place.name, "--topic", &place.topic, "--to-offset", "4", "--execute"];
    let reset = tool("kafka-consumer-groups", &address(), &to_four);

    let dispatch = place.dispatch(&[]);
    let logged = dispatch.wait_for(&["another tool has reset the group"]);
    assert!(logged.contains("offset=4"), "{logged}\nafter\n{reset}");
    assert_eq!(payloads(&place.delivered(10, 6, &dispatch)), numbers(4..10));
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(place.committed(&log).await, Ok(Some(PartitionState::at(10))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafkas_own_tool_shows_the_lag_of_a_destination() {
    let (place, log) = Place::with_partitions(2).await;
    log.append(0, records(0..10)).await.unwrap();
    log.append(1, records(0..3)).await.unwrap();
    let group = place.group(&log).await;
    group.commit(0, holes(4, 2)).await.unwrap();
    group.commit(1, PartitionState::at(3)).await.unwrap();
    let shown = tool("kafka-consumer-groups", &address(), &["--describe", "--group", &place.name]);
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
    let mut lags: Vec<[&str; 4]> = shown
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.first() == Some(&place.name.as_str()))
        .map(|words| [words[2], words[3], words[4], words[5]])
        .collect();
    lags.sort_unstable();
    assert_eq!(lags, [["0", "4", "10", "6"], ["1", "3", "3", "0"]], "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn added_partitions_are_delivered_and_ingest_asks_for_a_restart() {
    let (place, log) = Place::with_partitions(1).await;
    let ingest = place.eventd(&["ingest", "--listen", "127.0.0.1:0"]);
    // `latest` is the start for a destination without commits. A partition that is added later starts at its beginning.
    let dispatch = place.dispatch(&["--start", "latest"]);
    dispatch.wait_for(&["delivering"]);
    let mut client = Client::connect(&ingest.address()).unwrap();
    let post = |client: &mut Client| client.post(r#"{"UserID":"user","Payload":"1"}"#).unwrap();
    assert_eq!(post(&mut client).status, 200);
    place.until_committed(&log).await;
    tool("kafka-topics", &address(), &["--alter", "--topic", &place.topic, "--partitions", "3"]);
    log.append(2, records(2..5)).await.unwrap();
    let added = eventually(|| {
        let lines = delivered::lines(&place.folder.path().join("file-1"));
        let added: Vec<Line> = lines.into_iter().filter(|line| line.partition == 2).collect();
        if added.len() >= 3 { Ok(added) } else { Err(format!("{added:?}; dispatch said\n{}", dispatch.lines())) }
    });
    assert_eq!(payloads(&added), [2, 3, 4]);
    // The tool may have taken longer than the idle time-out of a connection.
    let mut client = Client::connect(&ingest.address()).unwrap();
    let answer = eventually(|| match post(&mut client) {
        answer if answer.status == 503 => Ok(answer),
        answer => Err(format!("{answer:?}")),
    });
    assert!(answer.body.contains("partition-count-changed") && answer.retry_after.is_some(), "{answer:?}");
    assert_eq!(ingest.stop().code(), 0);
    let ingest = place.eventd(&["ingest", "--listen", "127.0.0.1:0"]);
    let answer = post(&mut Client::connect(&ingest.address()).unwrap());
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// A state with `ranges` settled ranges of one offset each, and a hole before each of them.
pub(super) fn holes(watermark: i64, ranges: i64) -> PartitionState {
    let settled = (0..ranges).map(|n| watermark + 1 + 2 * n).map(|offset| offset..offset + 1);
    PartitionState { settled: settled.collect(), ..PartitionState::at(watermark) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_map_that_is_too_large_for_a_commit_is_stored_in_a_side_topic() {
    let (place, log) = Place::with_partitions(1).await;
    fill(&*log, 450_000).await;
    let group = place.group(&log).await;
    group.commit(0, PartitionState::at(1)).await.unwrap();
    // Maps that need one record, two records, and none again because the commit itself has room.
    let began = Instant::now();
    for state in [holes(10, 5_000), holes(7, 220_000), holes(9, 10)] {
        group.commit(0, state.clone()).await.unwrap();
        assert_eq!(group.committed(0).await, Ok(Some(state.clone())));
        assert_eq!(place.committed(&log).await, Ok(Some(state)), "another process reads the whole map");
    }
    let side = place.open(&format!("{}.{}.state", place.topic, place.name), None).await;
    assert_eq!((side.earliest(0).await, side.latest(0).await), (Ok(0), Ok(3)), "one record, then two");
    println!("# maps in a topic of their own: two stored in {:?}", began.elapsed());

    // Two commits at once: a reader finds one of them, never a mixture.
    let (one, two) = (holes(3, 220_000), holes(5, 220_000));
    let (first, second) = tokio::join!(group.commit(0, one.clone()), group.commit(0, two.clone()));
    first.and(second).unwrap();
    let found = group.committed(0).await.unwrap().unwrap();
    assert!(found == one || found == two, "watermark {}, {} ranges", found.watermark, found.settled.len());
    group.leave().await;

    // With its first commit, a process trims records that no commit needs any more.
    let last = holes(11, 6_000);
    place.commit(&log, last.clone()).await;
    let end = side.latest(0).await.unwrap();
    assert_eq!(side.earliest(0).await, Ok(end - 1), "only the last map is left");
    assert_eq!(place.committed(&log).await, Ok(Some(last)));

    delete_records(side.topic(), 0..1, end);
    let failure = place.committed(&log).await.unwrap_err().to_string();
    assert!(failure.contains("commit-unreadable") && failure.contains("--start"), "{failure}");
    let options = JoinOptions { start_given: true, ..JoinOptions::new("digest") };
    let group = place.groups().join_alone(&place.name, &log, &options).await.unwrap();
    assert_eq!(group.committed(0).await, Ok(None), "--start discards the commit");
    group.leave().await;
}

/// A state with this many parked users. The next event of each has failed.
fn parked_users(users: u32) -> PartitionState {
    let failed = |offset| FailedHead {
        offset,
        failures: 40,
        tries: 38,
        first_failure_ms: 1_767_350_000_000,
        last_failure_ms: 1_767_360_000_000,
        counted_ms: 9_000_000,
        next_try_ms: 1_767_360_300_000,
        answer: "500 Internal Server Error: the account is locked".into(),
    };
    let state = |offset: i64| UserState {
        parked: Some(ParkedUser { first: offset, ..ParkedUser::default() }),
        failed: Some(failed(offset)),
    };
    let user = |user: u32| Some(format!("user-{user:020}").as_bytes().into());
    PartitionState { users: (0..users).map(|n| (user(n), state(n.into()))).collect(), ..PartitionState::at(10) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_a_hundred_thousand_parked_users_is_stored_and_read_back() {
    let (place, log) = Place::with_partitions(1).await;
    fill(&*log, 20).await;
    let group = place.group(&log).await;
    let state = parked_users(100_000);
    let began = Instant::now();
    group.commit(0, state.clone()).await.unwrap();
    let stored = began.elapsed();
    assert_eq!(group.committed(0).await, Ok(Some(state.clone())));
    println!("# {} bytes of parked users stored in {stored:?}, both in {:?}", state.encode().len(), began.elapsed());
    group.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_continues_from_a_settled_map_in_a_side_topic_and_delivers_only_the_holes() {
    let (place, log) = Place::with_partitions(1).await;
    log.append(0, records(0..8_000)).await.unwrap();
    let state = holes(100, 3_500);
    place.commit(&log, state.clone()).await;
    let unsettled = |offset: &u32| {
        let offset = i64::from(*offset);
        offset >= state.watermark && !state.settled.iter().any(|range| range.contains(&offset))
    };
    let expected: Vec<u32> = numbers(0..8_000).into_iter().filter(unsettled).collect();
    assert_eq!(expected.len(), 4_400);
    let dispatch = place.dispatch(&[]);
    assert_eq!(payloads(&place.delivered(0, expected.len(), &dispatch)), expected);
    assert_eq!(dispatch.stop().code(), 0);
    assert_eq!(place.committed(&log).await, Ok(Some(PartitionState::at(8_000))));
}

async fn fill(log: &dyn Log, records: usize) {
    let limits = log.append_limits();
    let small = Record::new(None, Some(b"1"), &[], now_ms());
    let fit = limits.batch_bytes_max / limits.cost_bytes(&small);
    let mut left = records;
    while left > 0 {
        let now = fit.min(left);
        log.append(0, vec![small.clone(); now]).await.unwrap();
        left -= now;
    }
}

/// Deletes records below an offset, as retention would.
pub(super) fn delete_records(topic: &str, partitions: std::ops::Range<u32>, below: i64) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let place = |partition| format!(r#"{{"topic":"{topic}","partition":{partition},"offset":{below}}}"#);
    let places = partitions.map(place).collect::<Vec<_>>().join(",");
    write!(file, r#"{{"partitions":[{places}],"version":1}}"#).unwrap();
    tool("kafka-delete-records", &address(), &["--offset-json-file", file.path().to_str().unwrap()]);
}
