//! The database file: to which program it belongs, and how often it may be opened.

use super::{Embedded, fixture, open};
use crate::conformance::{payload, read_all, record};
use eventd::core::progress::PartitionState;
use eventd::group::WhenHeld;
use eventd::group::sqlite::join;
use eventd::log::OpenError;
use eventd::log::sqlite::{Settings, Sqlite};
use std::path::Path;

const CREATE: Settings = Settings { retention: None, dead_retention: None, max_db_bytes: None, create: true };

async fn refusal(path: &Path, settings: Settings) -> String {
    match Sqlite::open(path, settings).await {
        Err(OpenError::Configuration(detail)) => detail,
        other => panic!("a configuration error was expected: {other:?}"),
    }
}

#[tokio::test]
async fn a_missing_database_is_created_only_if_the_settings_allow_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new.db");
    let detail = refusal(&path, Settings::default()).await;
    assert!(detail.contains("there is no database") && detail.contains("new.db"), "{detail}");
    assert!(!path.exists());
    open(&Sqlite::open(&path, CREATE).await.unwrap(), "events").await;
    Sqlite::open(&path, Settings::default()).await.unwrap();
}

#[tokio::test]
async fn a_missing_directory_is_named_in_the_error() {
    let folder = tempfile::tempdir().unwrap();
    let detail = refusal(&folder.path().join("nowhere/eventd.db"), CREATE).await;
    assert!(detail.contains("nowhere"), "{detail}");
    let detail = refusal(folder.path(), CREATE).await;
    assert!(detail.contains("is a directory: write the path of a file"), "{detail}");
}

#[tokio::test]
async fn a_file_that_is_not_a_database_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let text = "not a database, and not to be changed\n".repeat(50);
    std::fs::write(&path, &text).unwrap();
    let detail = refusal(&path, CREATE).await;
    assert!(detail.contains("is not a database"), "{detail}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn a_database_of_another_program_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (a)").unwrap();
    let before = std::fs::read(&path).unwrap();
    let detail = refusal(&path, CREATE).await;
    assert!(detail.contains("another program"), "{detail}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

/// The tables as the first version created them.
#[tokio::test]
async fn a_database_of_the_first_format_is_upgraded_and_keeps_what_it_holds() {
    let embedded = fixture().await;
    let log = open(&embedded.engine, "events").await;
    log.append(0, vec![record("user", "kept")]).await.unwrap();
    let group = join(&embedded.engine, "billing", "events", "digest", WhenHeld::Fail).await.unwrap();
    group.commit(0, PartitionState::at(1)).await.unwrap();
    let path = embedded.path();
    drop((log, group));
    embedded.plain().execute_batch("ALTER TABLE commits DROP COLUMN needed_from; PRAGMA user_version = 1").unwrap();
    let again = Sqlite::open(&path, CREATE).await.unwrap();
    let group = join(&again, "crm", "events", "digest", WhenHeld::Fail).await.unwrap();
    group.commit(0, PartitionState::at(0)).await.unwrap();
    let columns = "SELECT group_concat(name || ' ' || ifnull(needed_from, 'none')) FROM commits ORDER BY name";
    let stored: String = embedded.plain().query_row(columns, [], |row| row.get(0)).unwrap();
    assert_eq!(stored, "billing none,crm 0");
}

#[tokio::test]
async fn a_newer_format_is_refused_with_its_number() {
    let embedded = fixture().await;
    embedded.plain().execute_batch("PRAGMA user_version = 7").unwrap();
    let detail = refusal(&embedded.path(), CREATE).await;
    assert!(detail.contains("newer eventd") && detail.contains("format 7"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_can_create_the_same_database_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eventd.db");
    let makers: Vec<_> = (0..8)
        .map(|maker| {
            let path = path.clone();
            tokio::spawn(async move {
                let engine = Sqlite::open(path, CREATE).await.unwrap();
                let log = open(&engine, "events").await;
                log.append(0, vec![record("user", &maker.to_string())]).await.unwrap();
            })
        })
        .collect();
    for maker in makers {
        maker.await.unwrap();
    }
    let log = open(&Sqlite::open(path, CREATE).await.unwrap(), "events").await;
    assert_eq!(read_all(&*log, 0, 0).await.len(), 8);
}

#[tokio::test]
async fn stored_records_are_there_after_reopening() {
    let Embedded { folder, engine } = fixture().await;
    let log = open(&engine, "events").await;
    log.append(0, vec![record("user", "kept")]).await.unwrap();
    drop((log, engine));
    let engine = Sqlite::open(folder.path().join("eventd.db"), Settings::default()).await.unwrap();
    let log = open(&engine, "events").await;
    assert_eq!(payload(&read_all(&*log, 0, 0).await[0].1), "kept");
    assert_eq!(log.append(0, vec![record("user", "next")]).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_stays_bounded_under_reads_and_writes() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    let text = "x".repeat(8_000);
    let batch: Vec<_> = (0..100).map(|_| record("user", &text)).collect();
    let mut read = 0;
    let mut largest = 0;
    for _ in 0..150 {
        log.append(0, batch.clone()).await.unwrap();
        read = log.fetch(0, read, 1 << 20, crate::support::wait::PATIENCE).await.unwrap().next;
        largest = largest.max(std::fs::metadata(embedded.folder.path().join("eventd.db-wal")).unwrap().len());
    }
    let bound = 2 * eventd::limits::WAL_RESTART_BYTES;
    assert!(largest > eventd::limits::WAL_CHECKPOINT_BYTES && largest < bound, "the WAL had {largest} bytes");
    assert_eq!(read_all(&*log, 0, 0).await.len(), 15_000);
}
