//! Records of other programs. The log returns what a broker holds byte for byte, and dispatch delivers it in order.
//! Other programs read what eventd has written.
//!
//! ```text
//!  Kafka's own client (foreign/Foreign.java), rskafka ── write ──▶ topic ──▶ Log::fetch, eventd dispatch ──▶ file
//!                      └────────────── tell what the broker acknowledged ─────────────▶ compared with both
//! ```

mod dispatch;
mod java;
mod raw;

use super::{address, fixture};
use crate::conformance::{read_all, unique};
use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::wait::PATIENCE;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dispatch::Dispatch;
use eventd::core::event::Record;
use eventd::core::partition::Partitioner;
use eventd::core::random::mix;
use eventd::kafka::Cluster;
use eventd::limits::FETCH_BYTES_MAX;
use eventd::log::{CreateTopic, Engine, FetchError, Log};
use eventd::net::BrokerSettings;
use java::{Java, WrittenRecord};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Large enough for everything that a test writes into one partition.
const PLENTY: usize = 64 << 20;

/// The records that a reader of committed records has to find in a partition, in order.
fn committed_records<'a>(reported: &'a [WrittenRecord], topic: &str, partition: u32) -> Vec<&'a WrittenRecord> {
    let here = |one: &&WrittenRecord| one.is_committed && one.topic == topic && one.partition == partition;
    let mut found: Vec<&WrittenRecord> = reported.iter().filter(here).collect();
    found.sort_by_key(|reported| reported.offset);
    found
}

/// Compares what was read with what was written, and reports the first difference.
fn assert_same(what: &str, found: &[(i64, Record)], written: &[&WrittenRecord]) {
    for (place, written) in written.iter().enumerate() {
        match found.get(place) {
            Some((offset, record)) if *offset == written.offset && *record == written.record => {}
            other => panic!(
                "{what}: place {place} holds {other:?} with the headers {:?}\ninstead of {written:?} with {:?}",
                other.map(|(_, record)| record.headers().collect::<Vec<_>>()),
                written.record.headers().collect::<Vec<_>>()
            ),
        }
    }
    assert_eq!(found.len(), written.len(), "{what}: more than was written: {:?}", &found[written.len()..]);
}

/// Reads from each of these offsets to the end.
async fn assert_read_from(
    log: &dyn Log,
    partition: u32,
    written: &[&WrittenRecord],
    starts: impl Iterator<Item = i64>,
) {
    for from in starts {
        let after = written.partition_point(|reported| reported.offset < from);
        let what = format!("{} {partition} from {from} on", log.topic());
        assert_same(&what, &read_all(log, partition, from).await, &written[after..]);
    }
}

/// Reads one record at a time, each from the next of these logs. One log answers from its buffer. Another one has to
/// fetch the whole batch again and leave out the earlier records.
async fn assert_tiny_steps(logs: &[Arc<dyn Log>], partition: u32, written: &[&WrittenRecord]) {
    let mut at = logs[0].earliest(partition).await.unwrap();
    let (end, mut found) = (logs[0].latest(partition).await.unwrap(), Vec::new());
    for log in logs.iter().cycle() {
        if at >= end {
            break;
        }
        let fetched = log.fetch(partition, at, 1, PATIENCE).await.unwrap();
        assert!(fetched.next > at && fetched.events.len() <= 1, "{fetched:?}");
        at = fetched.next;
        found.extend(fetched.events.into_iter().map(|event| (event.offset, event.record)));
    }
    assert_same("in steps of one record", &found, written);
}

/// Waits until the partition has no open transaction, and returns its end. (A producer learns that its transaction has
/// ended before all markers are written.)
async fn closed_end(log: &dyn Log, cluster: &Cluster, partition: u32) -> i64 {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let stable = log.latest(partition).await.unwrap();
        let end =
            raw::batches(cluster, log.topic(), partition, stable).await.last().map_or(stable, |last| last.last + 1);
        if stable == end {
            return end;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} {partition}: {stable} of {end}", log.topic());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_another_client_are_read_byte_for_byte_and_delivered() {
    let topic = unique("oddities");
    let mut java = Java::start(&address(), &["oddities", &topic]);
    let reported = java.until("done");
    java.end();
    let engine = fixture().await.engine;
    let cluster = Cluster::new(BrokerSettings::plain(vec![address()]));

    let log = engine.open(&topic, None).await.unwrap();
    for (partition, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].into_iter().enumerate() {
        let (partition, written) = (partition as u32, committed_records(&reported, &topic, partition as u32));
        let batches = raw::batches(&cluster, &topic, partition, 0).await;
        assert!(batches.iter().all(|batch| batch.codec == codec), "{batches:?}");
        let largest = batches.iter().max_by_key(|batch| batch.bytes).unwrap();
        assert!(largest.bytes > FETCH_BYTES_MAX && largest.records == 24, "{largest:?}");
        let bytes: usize = written.iter().map(|reported| reported.record.size_bytes()).sum();
        println!(
            "# foreign, {codec}: {} records of {bytes} bytes in {} batches, the largest of {} bytes",
            written.len(),
            batches.len(),
            largest.bytes
        );

        // Offsets among the odd records, and in, before and after the large batch.
        let end = log.latest(partition).await.unwrap();
        assert_eq!(end, written.last().unwrap().offset + 1);
        let starts = (0..26).chain([500]).chain(largest.base - 1..=end);
        assert_read_from(&*log, partition, &written, starts).await;
        assert_tiny_steps(std::slice::from_ref(&log), partition, &written).await;
        let whole = log.fetch(partition, largest.base, FETCH_BYTES_MAX, PATIENCE).await.unwrap();
        assert!((1..24).contains(&whole.events.len()), "{} events of the large batch", whole.events.len());
    }

    let deleted_below = 17;
    let written = committed_records(&reported, &topic, 5);
    assert_eq!((written.len(), written[0].offset), (13, deleted_below));
    assert_eq!(log.earliest(5).await, Ok(deleted_below));
    assert_read_from(&*log, 5, &written, deleted_below..=30).await;
    let gone = log.fetch(5, deleted_below - 1, PLENTY, PATIENCE).await.unwrap_err();
    assert_eq!(gone, FetchError::OutOfRange { from: deleted_below - 1, earliest: deleted_below, latest: 30 });

    let by_broker = format!("{topic}.append-time");
    let log = engine.open(&by_broker, None).await.unwrap();
    for partition in 0..2 {
        let written = committed_records(&reported, &by_broker, partition);
        let batches = raw::batches(&cluster, &by_broker, partition, 0).await;
        assert!(batches.len() == 3 && batches.iter().all(|batch| batch.of_broker_time), "{batches:?}");
        assert!(
            written.iter().all(|reported| reported.record.timestamp_ms > 1_600_000_000_000),
            "records have the broker's time"
        );
        assert_read_from(&*log, partition, &written, 0..=20).await;
    }

    for topic in [&topic, &by_broker] {
        let dispatch = Dispatch::start(&address(), topic);
        dispatch.assert_delivered(&reported);
        let log = engine.open(topic, None).await.unwrap();
        for partition in 0..log.partitions().await.unwrap() {
            dispatch.committed(&cluster, partition, log.latest(partition).await.unwrap()).await;
        }
        assert_eq!(dispatch.program.stop().code(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_records_and_records_after_an_open_transaction_are_not_read() {
    let (topic, seed) = (unique("transactions"), std::process::id().to_string());
    println!("the seed is {seed}");
    let mut java = Java::start(&address(), &["transactions", &topic, &seed]);
    let mut reported = java.until("ended");
    let engine = fixture().await.engine;
    let log = engine.open(&topic, None).await.unwrap();
    let cluster = Cluster::new(BrokerSettings::plain(vec![address()]));
    let dispatch = Dispatch::start(&address(), &topic);

    let mut ends = Vec::new();
    for partition in 0..2 {
        let written = committed_records(&reported, &topic, partition);
        let end = closed_end(&*log, &cluster, partition).await;
        let batches = raw::batches(&cluster, &topic, partition, 0).await;
        let aborted =
            reported.iter().filter(|reported| !reported.is_committed && reported.partition == partition).count();
        let markers = batches.iter().filter(|batch| batch.control).count();
        let mixed = batches.iter().filter(|batch| batch.transactional && !batch.control).count();
        println!(
            "# foreign, transactions, partition {partition}: {} records returned, {aborted} aborted, {markers} markers, \
             {mixed} batches of transactions",
            written.len()
        );
        assert!(written.len() > 50 && aborted > 10 && markers > 10 && mixed > 10, "seed {seed}: too few of one type");
        assert!(
            batches.last().unwrap().control && written.last().unwrap().offset + 2 < end,
            "the log has to end with a marker"
        );
        assert_read_from(&*log, partition, &written, 0..=end).await;
        assert_tiny_steps(&[Arc::clone(&log), engine.open(&topic, None).await.unwrap()], partition, &written).await;
        ends.push(end);
    }
    dispatch.assert_delivered(&reported);
    for (partition, end) in (0..).zip(&ends) {
        dispatch.committed(&cluster, partition, *end).await;
    }

    for commits in [true, false] {
        java.resume();
        let after = java.until("open");
        assert!(after.len() == 4 && after.iter().all(|reported| reported.is_committed), "{after:?}");
        for (partition, open) in (0..).zip(ends.clone()) {
            // There are committed records after it. But a reader cannot know yet whether the open transactions come
            // before them.
            assert_eq!(log.latest(partition).await, Ok(open), "the log ends at the start of the open transaction");
            for from in [open, open + 2, committed_records(&after, &topic, partition)[0].offset] {
                let fetched = log.fetch(partition, from, PLENTY, Duration::from_millis(100)).await.unwrap();
                assert_eq!((fetched.events.len(), fetched.next, fetched.latest), (0, from, open));
            }
            dispatch.committed(&cluster, partition, open).await;
        }
        dispatch.assert_delivered(&reported);

        java.resume();
        let closed = java.until("closed");
        assert!(closed.len() == 4 && closed.iter().all(|reported| reported.is_committed == commits), "{closed:?}");
        reported.extend(after);
        reported.extend(closed);
        for partition in 0..2 {
            let end = closed_end(&*log, &cluster, partition).await;
            let before = std::mem::replace(&mut ends[partition as usize], end);
            assert_read_from(&*log, partition, &committed_records(&reported, &topic, partition), before..=end).await;
            dispatch.committed(&cluster, partition, end).await;
        }
        dispatch.assert_delivered(&reported);
    }
    java.resume();
    java.end();
    assert_eq!(dispatch.program.stop().code(), 0);
}

async fn rskafka(address: &str, topic: &str, partition: i32) -> PartitionClient {
    let client = ClientBuilder::new(vec![address.to_owned()]).build().await.unwrap();
    client.partition_client(topic, partition, UnknownTopicHandling::Error).await.unwrap()
}

/// Converts a record for rskafka.
fn theirs(record: &Record) -> rskafka::record::Record {
    rskafka::record::Record {
        key: record.key().map(<[u8]>::to_vec),
        value: record.value().map(<[u8]>::to_vec),
        headers: record.headers().map(|(name, value)| (name.to_owned(), value.unwrap().to_vec())).collect(),
        timestamp: rskafka::chrono::DateTime::from_timestamp_millis(record.timestamp_ms).unwrap(),
    }
}

/// Records that rskafka can represent.
fn ordinary_records() -> Vec<Record> {
    let every_byte: Vec<u8> = (0..=255).cycle().take(3_000).collect();
    let one = |n: usize| {
        let headers: [(&str, Option<&[u8]>); 2] = [("a", Some(b"")), ("b", Some(&every_byte[..n % 300]))];
        let key = (n % 10 != 3).then(|| &every_byte[..n % 7]);
        let value = (n % 10 != 4).then(|| &every_byte[n..n * 20]);
        Record::new(key, value, &headers[..n % 3], 1_700_000_000_000 + n as i64)
    };
    (0..100).map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rskafka_and_eventd_read_each_others_records() {
    let (engine, topic) = (fixture().await.engine, unique("rskafka"));
    let log = engine.open(&topic, Some(CreateTopic { partitions: 1, retention: None })).await.unwrap();
    let (client, records) = (rskafka(&address(), &topic, 0).await, ordinary_records());

    for compression in [Compression::NoCompression, Compression::Snappy] {
        let offsets = client.produce(records.iter().map(theirs).collect(), compression).await.unwrap();
        let found = read_all(&*log, 0, offsets[0]).await;
        assert_eq!(found, offsets.into_iter().zip(records.clone()).collect::<Vec<_>>(), "{compression:?}");
    }

    let first = log.append(0, records.clone()).await.unwrap();
    let (mut found, mut at) = (Vec::new(), first);
    while at < first + records.len() as i64 {
        let (fetched, _) = client.fetch_records(at, 1..1 << 20, 5_000).await.unwrap();
        assert!(!fetched.is_empty(), "no records at {at}");
        at = fetched.last().unwrap().offset + 1;
        found.extend(fetched.into_iter().map(|one| (one.offset, one.record)));
    }
    assert_eq!(found, (first..).zip(records.iter().map(theirs)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_client_reads_eventds_records_and_agrees_on_each_users_partition() {
    let (engine, topic) = (fixture().await.engine, unique("written"));
    let log = engine.open(&topic, Some(CreateTopic { partitions: 3, retention: None })).await.unwrap();
    let headers: [(&str, Option<&[u8]>); 4] =
        [("again", Some(b"1")), ("none", None), ("again", Some(b"\xff\0")), ("", Some(b"nameless"))];
    let odd = [
        Record::new(None, None, &[], 1),
        Record::new(Some(b""), Some(b""), &headers, 1_700_000_000_000),
        Record::new(Some(b"\xff"), Some(&[0; 100_000]), &headers[1..], 1_600_000_000_000),
        Record::new(None, Some(b"no key"), &headers[..1], 1_700_000_000_001),
    ];
    let mut written: Vec<(u32, i64, Record)> = Vec::new();
    for partition in 0..3 {
        let first = log.append(partition, odd.to_vec()).await.unwrap();
        written.extend((first..).zip(odd.clone()).map(|(offset, record)| (partition, offset, record)));
    }

    let folder = tempfile::tempdir().unwrap();
    let arguments = ["ingest", "--url", &address(), "--topic", &topic, "--listen", "127.0.0.1:0"];
    let ingest = Program::start(folder.path(), &arguments);
    let (text, json) = ("text/plain; charset=utf-8", "application/json");
    let events = [
        (r#"{"UserID":"user-1","Payload":"a text ü","ID":"id-1"}"#, "user-1", "a text ü", "id-1", text, None),
        (
            r#"{"UserID":"user-2","Payload": {"n": 1.50},"ID":"id-2","Type":"made"}"#,
            "user-2",
            r#"{"n": 1.50}"#,
            "id-2",
            json,
            Some("made"),
        ),
        (r#"{"UserID":"user-4","Payload":null,"ID":"id-3"}"#, "user-4", "null", "id-3", json, None),
    ];
    let body = events.map(|(event, ..)| event).join(",");
    let before_ms = now_ms();
    let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{body}]")).unwrap();
    let after_ms = now_ms();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(ingest.stop().code(), 0);

    let mut java = Java::start(&address(), &["reader", &topic]);
    let read = java.until("read");
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    for ((_, user, payload, id, content_type, kind), result) in events.iter().zip(answer["results"].as_array().unwrap())
    {
        let (partition, offset) = (result["partition"].as_u64().unwrap() as u32, result["offset"].as_i64().unwrap());
        let place = |reported: &&WrittenRecord| (reported.partition, reported.offset) == (partition, offset);
        let found = read.iter().find(place).unwrap_or_else(|| panic!("{result} is missing in {read:?}"));
        let mut headers = vec![("eventd-id", Some(id.as_bytes())), ("content-type", Some(content_type.as_bytes()))];
        headers.extend(kind.map(|kind| ("eventd-type", Some(kind.as_bytes()))));
        let time = found.record.timestamp_ms;
        assert!((before_ms..=after_ms).contains(&time), "accepted from {before_ms} to {after_ms}: {found:?}");
        written.push((partition, offset, Record::new(Some(user.as_bytes()), Some(payload.as_bytes()), &headers, time)));
    }
    let mut found: Vec<(u32, i64, Record)> =
        read.into_iter().map(|reported| (reported.partition, reported.offset, reported.record)).collect();
    found.sort_by_key(|(partition, offset, _)| (*partition, *offset));
    written.sort_by_key(|(partition, offset, _)| (*partition, *offset));
    assert_eq!(found, written);

    let keys: Vec<(u32, Vec<u8>)> = (0..5_000).map(random_key).collect();
    for (partitions, key) in &keys {
        java.tell(&format!("{partitions} {}", BASE64_STANDARD.encode(key)));
    }
    java.resume();
    for (partitions, key) in &keys {
        let theirs: u32 = java.line().parse().unwrap();
        assert_eq!(Partitioner::Murmur2.partition(key, *partitions), theirs, "{key:?} in {partitions} partitions");
    }
    println!("# foreign, partitions: {} keys are where Kafka's own client puts them", keys.len());
    java.end();
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// A key of up to 40 bytes, and a number of partitions.
fn random_key(n: u64) -> (u32, Vec<u8>) {
    let length = mix(n) % 41;
    (1 + (mix(!n) % 1_000) as u32, (0..length).map(|place| mix(n << 8 | place) as u8).collect())
}

mod faults {
    use super::*;
    use crate::support::broker::Broker;
    use eventd::log::kafka::Kafka;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_compacted_topic_is_read_and_delivered() {
        // The shared broker looks for work for compaction only every 15 s.
        let broker = Broker::start("compacted", &["--set", "log.cleaner.backoff.ms=50"]);
        let (address, topic) = (broker.addresses(), unique("compacted"));
        let mut java = Java::start(address, &["compacted", &topic]);
        let reported = java.until("done");
        java.end();
        let settings = BrokerSettings::plain(vec![address.to_owned()]);
        let (engine, cluster) = (Kafka::connect(settings.clone()).await.unwrap(), Cluster::new(settings));
        let log = engine.open(&topic, None).await.unwrap();
        let end = closed_end(&*log, &cluster, 0).await;

        // The last batch is in a segment that is never compacted. Before it, only the last record of each key is left.
        let all = committed_records(&reported, &topic, 0);
        let last_batch = all[all.len() - 20].offset;
        let last: HashMap<Option<&[u8]>, i64> = all
            .iter()
            .filter(|reported| reported.offset < last_batch)
            .map(|reported| (reported.record.key(), reported.offset))
            .collect();
        let stays =
            |reported: &WrittenRecord| reported.offset >= last_batch || last[&reported.record.key()] == reported.offset;
        let left: Vec<WrittenRecord> =
            all.iter().filter(|reported| stays(reported)).map(|reported| (*reported).clone()).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let batches = raw::batches(&cluster, &topic, 0, 0).await;
            let records: i32 = batches.iter().filter(|batch| !batch.control).map(|batch| batch.records).sum();
            if records == left.len() as i32 {
                let hollow = batches.iter().filter(|one| i64::from(one.records) <= one.last - one.base).count();
                println!(
                    "# foreign, compacted: {} of {} records are left in {} batches, {hollow} with holes",
                    left.len(),
                    all.len(),
                    batches.len()
                );
                assert!(hollow > 5, "{batches:?}");
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{records} records, not {}: {batches:?}", left.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let written = committed_records(&left, &topic, 0);
        assert_read_from(&*log, 0, &written, 0..=end).await;
        assert_tiny_steps(&[Arc::clone(&log), engine.open(&topic, None).await.unwrap()], 0, &written).await;
        let dispatch = Dispatch::start(address, &topic);
        dispatch.assert_delivered(&left);
        dispatch.committed(&cluster, 0, end).await;
        assert_eq!(dispatch.program.stop().code(), 0);
    }
}
