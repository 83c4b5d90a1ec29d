//! The promises of [`Log`] and [`Engine`](eventd::log::Engine).

use super::{Fixture, new_topic, payload, read_all, record, unique};
use crate::support::wait::PATIENCE;
use eventd::core::event::{CONTENT_TYPE, ID, Record};
use eventd::core::outcome::{Certainty, FailureCode};
use eventd::limits::RECORD_BYTES_MAX;
use eventd::log::{CreateTopic, FetchError, Log, OpenError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const NOW: Duration = Duration::ZERO;
const MIB: usize = 1 << 20;

pub(crate) async fn records_of_one_append_have_consecutive_offsets_in_order(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let payloads: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let first = log.append(0, payloads.iter().map(|text| record("user", text)).collect()).await.unwrap();
    let found = read_all(&*log, 0, first).await;
    assert_eq!(found.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), (first..first + 50).collect::<Vec<_>>());
    assert_eq!(found.iter().map(|(_, record)| payload(record)).collect::<Vec<_>>(), payloads);
}

pub(crate) async fn later_appends_have_higher_offsets(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let mut before = -1;
    for n in 0..20 {
        let offset = log.append(0, vec![record("user", &n.to_string())]).await.unwrap();
        assert!(offset > before, "{offset} after {before}");
        before = offset;
    }
    let found = read_all(&*log, 0, log.earliest(0).await.unwrap()).await;
    let order: Vec<u32> = found.iter().map(|(_, record)| payload(record).parse().unwrap()).collect();
    assert_eq!(order, (0..20).collect::<Vec<_>>());
}

pub(crate) async fn concurrent_appenders_each_keep_their_order(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 2).await;
    let appenders: Vec<_> = (0..16u32)
        .map(|appender| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for n in 0..25 {
                    let record = record(&appender.to_string(), &n.to_string());
                    log.append(appender % 2, vec![record]).await.unwrap();
                }
            })
        })
        .collect();
    for appender in appenders {
        appender.await.unwrap();
    }
    for partition in 0..2 {
        let found = read_all(&*log, partition, log.earliest(partition).await.unwrap()).await;
        assert_eq!(found.len(), 8 * 25);
        for appender in (0..16u32).filter(|appender| appender % 2 == partition) {
            let own = |record: &&(i64, Record)| record.1.key() == Some(appender.to_string().as_bytes());
            let order: Vec<u32> = found.iter().filter(own).map(|(_, r)| payload(r).parse().unwrap()).collect();
            assert_eq!(order, (0..25).collect::<Vec<_>>(), "appender {appender}");
        }
    }
}

pub(crate) async fn partitions_are_independent(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 3).await;
    assert_eq!(log.partitions().await, Ok(3));
    let (one, two) = (log.append(1, vec![record("a", "one")]), log.append(2, vec![record("b", "two")]));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert_eq!(payload(&read_all(&*log, 1, one).await[0].1), "one");
    assert_eq!(payload(&read_all(&*log, 2, two).await[0].1), "two");
    assert_eq!(log.earliest(0).await, log.latest(0).await);
}

pub(crate) async fn a_fetch_can_begin_at_any_offset(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let first = log.append(0, (0..10).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
    for skip in 0..10 {
        let fetched = log.fetch(0, first + skip, MIB, PATIENCE).await.unwrap();
        assert_eq!(fetched.events[0].offset, first + skip);
        assert_eq!(payload(&fetched.events[0].record), skip.to_string());
    }
    assert_eq!(log.fetch(0, first, MIB, PATIENCE).await.unwrap().latest, first + 10);
}

pub(crate) async fn a_fetch_respects_its_byte_limit_but_returns_at_least_one_record(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let text = "x".repeat(10_000);
    let first = log.append(0, (0..20).map(|_| record("user", &text)).collect()).await.unwrap();
    let fetched = log.fetch(0, first, 55_000, PATIENCE).await.unwrap();
    let bytes: usize = fetched.events.iter().map(|event| event.record.size_bytes()).sum();
    assert!(!fetched.events.is_empty() && bytes <= 55_000, "{} events, {bytes} bytes", fetched.events.len());
    assert_eq!(fetched.next, fetched.events.last().unwrap().offset + 1);
    let fetched = log.fetch(0, first, 1, PATIENCE).await.unwrap();
    assert_eq!((fetched.events.len(), fetched.events[0].offset), (1, first));
}

pub(crate) async fn a_waiting_fetch_wakes_for_an_append(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let end = log.latest(0).await.unwrap();
    let waiting = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.fetch(0, end, MIB, 2 * PATIENCE).await })
    };
    let offset = log.append(0, vec![record("user", "late")]).await.unwrap();
    let fetched = timeout(PATIENCE, waiting).await.expect("the append wakes the fetch").unwrap().unwrap();
    assert_eq!(fetched.events[0].offset, offset);
    assert_eq!(payload(&fetched.events[0].record), "late");
}

pub(crate) async fn a_fetch_without_records_ends_after_its_wait(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let end = log.append(0, vec![record("user", "one")]).await.unwrap() + 1;
    let started = Instant::now();
    let fetched = log.fetch(0, end, MIB, Duration::from_millis(300)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(290), "{:?}", started.elapsed());
    assert_eq!((fetched.events.len(), fetched.next, fetched.latest), (0, end, end));
    let fetched =
        timeout(PATIENCE, log.fetch(0, end, MIB, NOW)).await.expect("a fetch without a wait returns at once").unwrap();
    assert!(fetched.events.is_empty());
}

pub(crate) async fn a_fetch_outside_the_log_reports_the_range_of_the_log(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let first = log.append(0, vec![record("user", "one")]).await.unwrap();
    for from in [first + 2, first + 1_000_000, -1] {
        let error = log.fetch(0, from, MIB, PATIENCE).await.unwrap_err();
        assert_eq!(error, FetchError::OutOfRange { from, earliest: first, latest: first + 1 });
    }
}

pub(crate) async fn a_record_that_is_too_large_is_refused_and_not_stored(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let large = Record::new(Some(b"user"), Some(&vec![b'x'; RECORD_BYTES_MAX + 1]), &[], 0);
    let failure = log.append(0, vec![large]).await.unwrap_err();
    assert_eq!((failure.certainty, failure.code), (Certainty::Refused, FailureCode::EventTooLarge));
    let offset = log.append(0, vec![record("user", "small")]).await.unwrap();
    assert_eq!(log.earliest(0).await, Ok(offset));
}

pub(crate) async fn an_append_without_records_is_refused(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    assert_eq!(log.append(0, Vec::new()).await.unwrap_err().certainty, Certainty::Refused);
}

pub(crate) async fn null_and_empty_values_stay_distinct(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let headers: [(&str, Option<&[u8]>); 3] = [("none", None), ("empty", Some(b"")), ("", Some(b"nameless"))];
    let records = vec![
        Record::new(None, None, &[], 1_700_000_000_001),
        Record::new(Some(b""), Some(b""), &[], 1_700_000_000_002),
        Record::new(None, Some(b"v"), &headers, 1_700_000_000_003),
        Record::new(Some(b"k"), None, &headers, 1_700_000_000_004),
    ];
    let first = log.append(0, records.clone()).await.unwrap();
    let found: Vec<Record> = read_all(&*log, 0, first).await.into_iter().map(|(_, record)| record).collect();
    assert_eq!(found, records);
    assert_eq!(found[3].headers().collect::<Vec<_>>(), headers);
}

pub(crate) async fn payloads_and_headers_come_back_byte_for_byte(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let every_byte: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let records: Vec<Record> = [0, 1, 100, 1_900, 2_100, 5_000, 70_000]
        .into_iter()
        .map(|len| {
            let headers: [(&str, Option<&[u8]>); 2] = [(ID, Some(b"id-1")), (CONTENT_TYPE, Some(&every_byte[..200]))];
            Record::new(Some(&every_byte[..len.min(256)]), Some(&every_byte[..len]), &headers, 1_700_000_000_000)
        })
        .collect();
    let first = log.append(0, records.clone()).await.unwrap();
    let found: Vec<Record> = read_all(&*log, 0, first).await.into_iter().map(|(_, record)| record).collect();
    assert_eq!(found, records);
}

pub(crate) async fn an_offset_is_found_by_its_time(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 1).await;
    let base = 1_700_000_000_000;
    // The clock jumps back now and then. The promise is the lowest offset with a later time, so a binary search would
    // be wrong.
    let times: Vec<i64> = (0..3_000).map(|n| base + n * 10 - if n % 7 == 3 { 400 } else { 0 }).collect();
    let records: Vec<Record> = times.iter().map(|time| Record::new(Some(b"u"), Some(b"p"), &[], *time)).collect();
    let first = log.append(0, records).await.unwrap();
    for time in [0, base - 1, base, base + 5, base + 10_245, base + 20_481, base + 29_985, base + 29_990] {
        let expected = times.iter().position(|at| *at >= time).map(|index| first + index as i64);
        assert_eq!(log.offset_at(0, time).await, Ok(expected), "at {time}");
    }
    assert_eq!(log.offset_at(0, base + 29_991).await, Ok(None));
}

pub(crate) async fn a_new_topic_is_empty(fixture: &dyn Fixture) {
    let log = new_topic(fixture, 2).await;
    let (earliest, latest) = (log.earliest(1).await.unwrap(), log.latest(1).await.unwrap());
    assert_eq!(earliest, latest);
    assert_eq!(log.append(1, vec![record("user", "first")]).await, Ok(latest));
    assert_eq!((log.earliest(1).await.unwrap(), log.latest(1).await.unwrap()), (earliest, latest + 1));
    assert_eq!(log.offset_at(0, 0).await, Ok(None));
}

pub(crate) async fn an_existing_topic_is_opened_with_any_partition_count(fixture: &dyn Fixture) {
    let (engine, name) = (fixture.engine(), unique("topic"));
    let create = |partitions| Some(CreateTopic { partitions, retention: None });
    let first = engine.open(&name, create(3)).await.unwrap();
    let offset = first.append(2, vec![record("user", "kept")]).await.unwrap();
    for again in [create(3), create(5), None] {
        let log = engine.open(&name, again).await.unwrap();
        assert_eq!((log.topic(), log.partitions().await), (name.as_str(), Ok(3)));
        assert_eq!(payload(&read_all(&*log, 2, offset).await[0].1), "kept");
    }
}

pub(crate) async fn a_missing_topic_is_an_error_that_names_it(fixture: &dyn Fixture) {
    let name = unique("missing");
    let error = fixture.engine().open(&name, None).await.unwrap_err();
    assert_eq!(error, OpenError::Missing { topic: name });
    let create = Some(CreateTopic { partitions: 1, retention: None });
    for wrong in ["", "a b", "a/b", "ü", "..", &"x".repeat(250)] {
        let error = fixture.engine().open(wrong, create).await.unwrap_err();
        assert!(matches!(error, OpenError::Configuration(_)), "{wrong:?}: {error:?}");
    }
}

pub(crate) async fn a_missing_partition_is_refused(fixture: &dyn Fixture) {
    let log: Arc<dyn Log> = new_topic(fixture, 2).await;
    assert_eq!(log.append(2, vec![record("user", "lost")]).await.unwrap_err().certainty, Certainty::Refused);
    assert!(log.latest(2).await.is_err());
    assert!(matches!(log.fetch(2, 0, MIB, NOW).await, Err(FetchError::Unavailable(_))));
}
