//! What retention removes, and what it keeps.

use super::{Embedded, fixture, with};
use crate::conformance::{Fixture, read_all};
use crate::support::wait::PATIENCE;
use eventd::core::event::Record;
use eventd::core::outcome::FailureCode;
use eventd::core::progress::{OffsetReset, PartitionState, ResetTarget};
use eventd::group::WhenHeld;
use eventd::group::sqlite::join;
use eventd::log::sqlite::{Settings, Sqlite};
use eventd::log::{CreateTopic, Engine, FetchError, Log};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3600);

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn aged(age: Duration) -> Record {
    Record::new(Some(b"user"), Some(b"payload"), &[], now_ms() - age.as_millis() as i64)
}

async fn open(engine: &Arc<Sqlite>, topic: &str, retention: Option<Duration>) -> Arc<dyn Log> {
    engine.open(topic, Some(CreateTopic { partitions: 1, retention })).await.unwrap()
}

/// Adds a destination that has settled everything below an offset. A database without destinations keeps everything in
/// its first hour.
async fn settled(engine: &Arc<Sqlite>, topic: &str, offset: i64) {
    let group = join(engine, "settled", topic, "digest", WhenHeld::Fail).await.unwrap();
    group.commit(0, PartitionState::at(offset)).await.unwrap();
    group.leave().await;
}

/// Waits until the log starts at this offset.
async fn starts_at(log: &dyn Log, offset: i64) {
    let reached = async {
        while log.earliest(0).await.unwrap() < offset {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(PATIENCE, reached).await;
    assert!(in_time.is_ok(), "the log starts at {:?}, not at {offset}", log.earliest(0).await);
    assert_eq!(log.earliest(0).await, Ok(offset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_records_are_removed_and_offsets_continue() {
    let Embedded { folder: _folder, engine } = fixture().await;
    let (kept, trimmed) = (open(&engine, "kept", None).await, open(&engine, "trimmed", Some(HOUR)).await);
    for log in [&kept, &trimmed] {
        log.append(0, (0..5_000).map(|_| aged(2 * HOUR)).collect()).await.unwrap();
        log.append(0, vec![aged(Duration::ZERO)]).await.unwrap();
        settled(&engine, log.topic(), 5_001).await;
    }
    starts_at(&*trimmed, 5_000).await;
    assert_eq!(read_all(&*trimmed, 0, 5_000).await.len(), 1);
    let error = trimmed.fetch(0, 4_999, 1 << 20, PATIENCE).await.unwrap_err();
    assert_eq!(error, FetchError::OutOfRange { from: 4_999, earliest: 5_000, latest: 5_001 });
    assert_eq!(trimmed.offset_at(0, 0).await, Ok(Some(5_000)));
    assert_eq!(kept.earliest(0).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_partition_still_knows_its_next_offset() {
    let embedded = fixture().await;
    let log = open(&embedded.engine, "trimmed", Some(HOUR)).await;
    log.append(0, (0..10).map(|_| aged(2 * HOUR)).collect()).await.unwrap();
    settled(&embedded.engine, "trimmed", 10).await;
    starts_at(&*log, 10).await;
    assert_eq!(log.latest(0).await, Ok(10));
    assert_eq!(open(&embedded.again().await, "trimmed", None).await.append(0, vec![aged(HOUR / 2)]).await, Ok(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsettled_records_of_a_destination_that_commits_are_kept() {
    let embedded = fixture().await;
    let log = open(&embedded.engine, "events", Some(HOUR)).await;
    let group = |name| {
        let engine = Arc::clone(&embedded.engine);
        async move { join(&engine, name, "events", "digest", WhenHeld::Fail).await.unwrap() }
    };
    let (slow, fast) = (group("slow").await, group("fast").await);
    slow.commit(0, PartitionState::at(0)).await.unwrap();
    log.append(0, (0..100).map(|_| aged(2 * HOUR)).collect()).await.unwrap();
    fast.commit(0, PartitionState::at(100)).await.unwrap();
    slow.commit(0, PartitionState { settled: std::iter::once(50..60).collect(), ..PartitionState::at(40) })
        .await
        .unwrap();
    starts_at(&*log, 40).await;
    // Another destination's commit and another housekeeping round change nothing.
    fast.commit(0, PartitionState::at(100)).await.unwrap();
    let other = open(&embedded.engine, "witness", Some(HOUR)).await;
    other.append(0, vec![aged(2 * HOUR)]).await.unwrap();
    settled(&embedded.engine, "witness", 1).await;
    starts_at(&*other, 1).await;
    assert_eq!(log.earliest(0).await, Ok(40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_has_just_started_removes_no_unsettled_records_however_old() {
    let embedded = fixture().await;
    let log = open(&embedded.engine, "events", None).await;
    log.append(0, (0..100).map(|_| aged(2 * HOUR)).collect()).await.unwrap();
    let behind = join(&embedded.engine, "behind", "events", "digest", WhenHeld::Fail).await.unwrap();
    behind.commit(0, PartitionState::at(40)).await.unwrap();
    let dead = open(&embedded.engine, "events.behind.dead", None).await;
    dead.append(0, vec![aged(2 * HOUR)]).await.unwrap();
    let path = embedded.path();
    // With a clock that is eight days ahead, everything in the database looks eight days older.
    let ahead_ms = 8 * 24 * HOUR.as_millis() as i64;
    for sql in [
        "UPDATE commits SET committed_ms = committed_ms - ?1",
        "UPDATE records SET timestamp_ms = timestamp_ms - ?1",
        "UPDATE partitions SET timestamp_ms = timestamp_ms - ?1",
    ] {
        embedded.plain().execute(sql, [ahead_ms]).unwrap();
    }
    let settings = Settings { retention: Some(HOUR), dead_retention: Some(HOUR), create: true, ..Settings::default() };
    let engine = Sqlite::open(path, settings).await.unwrap();
    let (log, dead) = (open(&engine, "events", None).await, open(&engine, "events.behind.dead", None).await);
    // This topic's events are settled. Once they are removed, a housekeeping round has run.
    let witness = open(&engine, "witness", Some(HOUR)).await;
    witness.append(0, vec![aged(10 * 24 * HOUR)]).await.unwrap();
    settled(&engine, "witness", 1).await;
    starts_at(&*witness, 1).await;
    let earliest = log.earliest(0).await.unwrap();
    assert!(earliest <= 40, "removed up to {earliest}, and only 40 events were settled");
    assert_eq!(dead.earliest(0).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requested_position_protects_nothing_until_it_is_committed() {
    let embedded = fixture().await;
    let log = open(&embedded.engine, "events", Some(HOUR)).await;
    let group = join(&embedded.engine, "file-1", "events", "digest", WhenHeld::Fail).await.unwrap();
    group.commit(0, PartitionState::at(0)).await.unwrap();
    log.append(0, (0..100).map(|_| aged(2 * HOUR)).collect()).await.unwrap();
    assert!(
        !embedded.request_reset("file-1", "events", 0, OffsetReset { id: 1, to: ResetTarget::Back(0) }).await,
        "the owner has to apply it"
    );
    group.commit(0, PartitionState::at(100)).await.unwrap();
    starts_at(&*log, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_setting_replaces_that_of_the_topic() {
    let embedded = fixture().await;
    let log = open(&embedded.engine, "events", None).await;
    let dead = open(&embedded.engine, "events.file-1.dead", None).await;
    log.append(0, vec![aged(2 * HOUR)]).await.unwrap();
    dead.append(0, vec![aged(2 * HOUR)]).await.unwrap();
    settled(&embedded.engine, "events", 1).await;
    settled(&embedded.engine, "events.file-1.dead", 1).await;
    let settings =
        Settings { retention: Some(HOUR), dead_retention: Some(24 * HOUR), create: true, ..Settings::default() };
    let engine = Sqlite::open(embedded.path(), settings).await.unwrap();
    for topic in ["events", "events.file-1.dead"] {
        open(&engine, topic, None).await;
    }
    starts_at(&*log, 1).await;
    assert_eq!(dead.earliest(0).await, Ok(0));
}

#[tokio::test]
async fn a_process_without_a_retention_setting_keeps_the_stored_one() {
    let embedded = fixture().await;
    let typed = Settings { retention: Some(720 * HOUR), dead_retention: Some(721 * HOUR), ..Settings::default() };
    let engine = Sqlite::open(embedded.path(), typed).await.unwrap();
    let plain = embedded.again().await;
    for (topic, kept_hours) in [("events", 720), ("events.file-1.dead", 721)] {
        open(&engine, topic, Some(HOUR)).await;
        open(&plain, topic, Some(HOUR)).await;
        let stored = embedded
            .plain()
            .query_row("SELECT retention_ms FROM topics WHERE name = ?1", [topic], |row| row.get::<_, i64>(0));
        assert_eq!(stored, Ok(kept_hours * HOUR.as_millis() as i64), "{topic}");
    }
}

/// Damages the page that contains the first occurrence of `marker`.
fn spoil(database: &Path, marker: &[u8]) {
    let mut bytes = std::fs::read(database).unwrap();
    let at = bytes.windows(marker.len()).position(|window| window == marker).expect("the marker is in the file");
    let page_bytes = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    // The first byte of a page is its type.
    bytes[at / page_bytes * page_bytes] = 0xff;
    std::fs::write(database, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_expired_records_stops_neither_the_log_nor_other_partitions() {
    let embedded = fixture().await;
    for topic in ["damaged", "sound"] {
        let log = open(&embedded.engine, topic, None).await;
        let records = (0..100).map(|n| {
            let payload = format!("{topic}-{n:03}{}", "x".repeat(500));
            Record::new(Some(b"user"), Some(payload.as_bytes()), &[], now_ms() - 2 * HOUR.as_millis() as i64)
        });
        log.append(0, records.collect()).await.unwrap();
        settled(&embedded.engine, topic, 100).await;
    }
    embedded.plain().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    // A copy is in no connection's cache.
    let copy = embedded.folder.path().join("copy.db");
    std::fs::copy(embedded.path(), &copy).unwrap();
    spoil(&copy, b"damaged-050");
    let settings = Settings { retention: Some(HOUR), create: true, ..Settings::default() };
    let engine = Sqlite::open(copy, settings).await.unwrap();
    let (damaged, sound) = (open(&engine, "damaged", None).await, open(&engine, "sound", None).await);
    starts_at(&*sound, 100).await;
    assert_eq!(damaged.append(0, vec![aged(Duration::ZERO)]).await, Ok(100));
    assert_eq!(damaged.earliest(0).await, Ok(0), "damaged records are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_refuses_events_but_still_accepts_commits() {
    let embedded = with(Settings { max_db_bytes: Some(4 << 20), ..Settings::default() }).await;
    let (log, dead) = (open(&embedded.engine, "events", Some(HOUR)).await, embedded.topic("events.file-1.dead").await);
    let group = join(&embedded.engine, "file-1", "events", "digest", WhenHeld::Fail).await.unwrap();
    group.commit(0, PartitionState::at(0)).await.unwrap();
    let old = now_ms() - (2 * HOUR).as_millis() as i64;
    let large = || vec![Record::new(Some(b"user"), Some(&[7; 50_000]), &[], old)];
    let mut stored = 0;
    let failure = loop {
        match log.append(0, large()).await {
            Ok(_) => stored += 1,
            Err(failure) => break failure,
        }
    };
    assert_eq!(failure.code, FailureCode::LogFull, "{failure}");
    assert!(failure.detail.contains("raise --max-db-bytes, or lower --retention"), "{failure}");
    assert!((60..90).contains(&stored), "{stored} records of 50 kB in 4 MiB");
    dead.append(0, large()).await.unwrap();
    // Settled records may be removed, which makes room without a restart.
    group.commit(0, PartitionState::at(stored)).await.unwrap();
    starts_at(&*log, stored).await;
    log.append(0, large()).await.unwrap();
}
