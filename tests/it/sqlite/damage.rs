//! Other programs change the files of an open database. If the file at the path is no longer the open one, nothing more
//! is acknowledged. What other programs may do is not taken for damage.

use super::processes::{events_in, ingest, post};
use crate::support::client::Client;
use crate::support::load::Load;
use crate::support::program::{Program, run};
use crate::support::wait::eventually;
use eventd::log::Engine;
use eventd::log::sqlite::{Settings, Sqlite};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const BEFORE: usize = 20;

/// Starts ingest, posts events, does the damage, and posts until the process ends. The process must not acknowledge
/// another event, and must say why it ends. Returns its output.
fn assert_nothing_is_acknowledged_after(damage: impl Fn(&Path), folder: &Path) -> String {
    let program = ingest(folder);
    let address = program.address();
    (0..BEFORE).for_each(|n| post(&program, n));
    damage(folder);
    let mut acknowledged = 0;
    // Posts over the open connection and over new ones, until the port is closed.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Ok(mut client) = Client::connect(&address) {
        assert!(Instant::now() < deadline, "it continues: {}", program.lines());
        while let Ok(answer) = client.post(r#"[{"UserID": "u", "Payload": "after"}]"#) {
            acknowledged += usize::from(answer.status == 200);
        }
    }
    let ending = program.end();
    assert_eq!(ending.code(), 1, "{}", ending.said);
    for said in
        ["the log cannot be used any more", ". Start eventd again: every acknowledged event that the log still holds"]
    {
        assert!(ending.said.contains(said), "{said}: {}", ending.said);
    }
    assert_eq!(acknowledged, 0, "acknowledged after the damage: {}", ending.said);
    ending.said
}

/// The outcome of the event during which the damage is noticed is unknown, so that one may be in the log too.
fn assert_acknowledged_are_kept(folder: &Path) {
    let events = events_in(&folder.join("eventd.db"));
    assert!((BEFORE..=BEFORE + 1).contains(&events), "{events} of {BEFORE} events are in the log");
}

fn truncate(path: &Path, len: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_removed_write_ahead_log_is_noticed_and_its_events_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let said = assert_nothing_is_acknowledged_after(
        |folder| fs::remove_file(folder.join("eventd.db-wal")).unwrap(),
        folder.path(),
    );
    assert!(said.contains("eventd.db-wal was removed"), "{said}");
    assert_acknowledged_are_kept(folder.path());
}

#[test]
fn a_removed_shared_memory_file_is_noticed_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let said = assert_nothing_is_acknowledged_after(
        |folder| fs::remove_file(folder.join("eventd.db-shm")).unwrap(),
        folder.path(),
    );
    assert!(said.contains("eventd.db-shm was removed"), "{said}");
    assert_acknowledged_are_kept(folder.path());
}

#[test]
fn a_truncated_write_ahead_log_is_noticed_wherever_it_ends() {
    for len in [0, 10, 32, 5_000, 60_000] {
        let folder = tempfile::tempdir().unwrap();
        let said = assert_nothing_is_acknowledged_after(
            |folder| {
                let wal = folder.join("eventd.db-wal");
                assert!(fs::metadata(&wal).unwrap().len() > len);
                truncate(&wal, len);
            },
            folder.path(),
        );
        assert!(said.contains("eventd.db-wal was shortened"), "{len}: {said}");
    }
}

#[test]
fn a_truncated_database_is_noticed_and_its_write_ahead_log_is_kept() {
    for len in [0, 4_096, 8_192] {
        let folder = tempfile::tempdir().unwrap();
        // The pages are in the database itself and no longer in the write-ahead log.
        let first = ingest(folder.path());
        (0..BEFORE).for_each(|n| post(&first, n));
        assert_eq!(first.stop().code(), 0);
        let said =
            assert_nothing_is_acknowledged_after(|folder| truncate(&folder.join("eventd.db"), len), folder.path());
        assert!(said.contains("eventd.db was shortened"), "{len}: {said}");
        if len == 0 {
            let again = run(folder.path(), &["ingest", "--url", "sqlite:eventd.db", "--listen", "127.0.0.1:0"]);
            assert_eq!(again.code(), 2, "{}", again.said);
            assert!(again.said.contains("is empty, but its write-ahead log"), "{}", again.said);
        }
    }
}

#[test]
fn a_database_that_is_removed_moved_or_replaced_is_noticed_before_the_next_event() {
    for (damage, says) in [("remove", "removed"), ("move", "removed"), ("replace", "replaced")] {
        let folder = tempfile::tempdir().unwrap();
        let said = assert_nothing_is_acknowledged_after(
            |folder| {
                let database = folder.join("eventd.db");
                match damage {
                    "remove" => fs::remove_file(&database).unwrap(),
                    "move" => fs::rename(&database, folder.join("away.db")).unwrap(),
                    _ => {
                        fs::copy(&database, folder.join("other.db")).unwrap();
                        fs::rename(folder.join("other.db"), &database).unwrap();
                    }
                }
            },
            folder.path(),
        );
        assert!(said.contains(&format!("eventd.db was {says}")), "{damage}: {said}");
        if damage == "remove" {
            let again = run(folder.path(), &["ingest", "--url", "sqlite:eventd.db", "--listen", "127.0.0.1:0"]);
            assert_eq!(again.code(), 2, "{}", again.said);
            assert!(again.said.contains("is missing, but its write-ahead log"), "{}", again.said);
        }
    }
}

#[test]
fn a_file_that_is_replaced_by_its_copy_is_noticed() {
    for file in ["eventd.db-wal", "eventd.db-shm"] {
        let folder = tempfile::tempdir().unwrap();
        let said = assert_nothing_is_acknowledged_after(
            |folder| {
                fs::copy(folder.join(file), folder.join("copy")).unwrap();
                fs::rename(folder.join("copy"), folder.join(file)).unwrap();
            },
            folder.path(),
        );
        assert!(said.contains(&format!("{file} was replaced")), "{said}");
        assert_acknowledged_are_kept(folder.path());
    }
}

/// Checkpoints of every kind, `VACUUM`, a second name for the file, and processes that start and end, all under load.
#[test]
fn allowed_operations_of_other_programs_are_not_damage() {
    let folder = tempfile::tempdir().unwrap();
    let program = ingest(folder.path());
    let address = program.address();
    let database = folder.path().join("eventd.db");
    // A table that `VACUUM` can free.
    let other = rusqlite::Connection::open(&database).unwrap();
    other.execute_batch("CREATE TABLE junk (a BLOB)").unwrap();
    fs::hard_link(&database, folder.path().join("second-name.db")).unwrap();
    let load = Load::start(&address);
    let (mut truncated, mut vacuumed) = (0, 0);
    for round in 0..30 {
        let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][round % 4];
        let busy: i64 = other.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0)).unwrap();
        truncated += usize::from(mode == "TRUNCATE" && busy == 0);
        if round % 3 == 0 {
            let fill = "INSERT INTO junk VALUES (zeroblob(1000000)); DELETE FROM junk;";
            vacuumed += usize::from(other.execute_batch(fill).and_then(|()| other.execute_batch("VACUUM")).is_ok());
        }
        if round % 10 == 0 {
            let dispatch = Program::start(
                folder.path(),
                &["dispatch", "--url", "sqlite:eventd.db", "--dest", &format!("d{round}=null:")],
            );
            dispatch.wait_for(&["delivering"]);
            assert_eq!(dispatch.stop().code(), 0);
        }
    }
    let answered = load.stop();
    assert!(truncated > 0 && vacuumed > 0, "{truncated} truncated, {vacuumed} vacuumed");
    drop(other);
    let ending = program.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(answered.count() > 50, "{} events", answered.count());
    crate::support::block_on(async {
        let engine = Sqlite::open(&database, Settings::default()).await.unwrap();
        let log = engine.open("user-events", None).await.unwrap();
        crate::support::in_log::judge(&*log, &answered).await;
    });
}

#[test]
fn an_idle_dispatch_notices_damage_too() {
    let folder = tempfile::tempdir().unwrap();
    let program = ingest(folder.path());
    post(&program, 0);
    let dispatch = Program::start(folder.path(), &["dispatch", "--url", "sqlite:eventd.db", "--dest", "null:"]);
    dispatch.wait_for(&["delivering"]);
    fs::remove_file(folder.path().join("eventd.db-wal")).unwrap();
    let ending = dispatch.end();
    assert_eq!(ending.code(), 1, "{}", ending.said);
    // The file was removed or replaced. The end of dispatch may have created another one.
    eventually(|| if program.lines().contains("eventd.db-wal was ") { Ok(()) } else { Err(program.lines()) });
}
