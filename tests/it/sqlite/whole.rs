//! After a clean end the single database file is complete, whichever process ended last.

use super::processes::{URL, events_in, ingest, post};
use crate::support::delivered::lines;
use crate::support::program::Program;
use crate::support::wait::eventually;
use std::path::Path;

const EVENTS: usize = 50;

/// Copies only the database file into another folder, and counts its events.
fn events_in_copy(folder: &Path) -> usize {
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("eventd.db"), elsewhere.path().join("copy.db")).unwrap();
    events_in(&elsewhere.path().join("copy.db"))
}

fn is_alone(folder: &Path) -> bool {
    ["eventd.db-wal", "eventd.db-shm"].iter().all(|file| !folder.join(file).exists())
}

#[test]
fn after_ingest_or_up_the_database_file_is_complete() {
    for mode in [&["ingest"][..], &["up", "--dest", "file-1"]] {
        let folder = tempfile::tempdir().unwrap();
        let program = Program::start(folder.path(), &[mode, &URL, &["--listen", "127.0.0.1:0"]].concat());
        (0..EVENTS).for_each(|n| post(&program, n));
        let ending = program.stop();
        assert_eq!(ending.code(), 0, "{}", ending.said);
        assert_eq!(events_in_copy(folder.path()), EVENTS, "{mode:?}");
        assert!(is_alone(folder.path()), "{mode:?}: the write-ahead log is gone");
    }
}

#[test]
fn a_dispatch_or_replay_that_ends_last_leaves_a_complete_database_file() {
    for mode in [&["dispatch", "--dest", "out"][..], &["replay", "--dest", "out", "--from", "0", "--execute"]] {
        let folder = tempfile::tempdir().unwrap();
        let out = |count, program: &Program| {
            eventually(|| match lines(&folder.path().join("out")).len() {
                lines if lines == count => Ok(()),
                some => Err(format!("{some} of {count} events: {}", program.lines())),
            });
        };
        // A replay needs events that were delivered before.
        let (first, expected): (&[&str], _) =
            if mode[0] == "replay" { (&["up", "--dest", "out"], 2 * EVENTS) } else { (&["ingest"], EVENTS) };
        let program = Program::start(folder.path(), &[first, &URL, &["--listen", "127.0.0.1:0"]].concat());
        (0..EVENTS).for_each(|n| post(&program, n));
        if mode[0] == "replay" {
            let database = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
            let settled = "SELECT sum(watermark) FROM commits WHERE name = 'out'";
            eventually(|| match database.query_row(settled, [], |row| row.get::<_, i64>(0)) {
                Ok(watermarks) if watermarks as usize == EVENTS => Ok(()),
                some => Err(format!("{some:?} of {EVENTS} events are committed: {}", program.lines())),
            });
        }
        // The killed process leaves its write-ahead log.
        program.kill();
        assert!(events_in_copy(folder.path()) < EVENTS);
        let program = Program::start(folder.path(), &[mode, &URL].concat());
        out(expected, &program);
        let ending = if mode[0] == "replay" { program.end() } else { program.stop() };
        assert_eq!(ending.code(), 0, "{}", ending.said);
        assert_eq!(events_in_copy(folder.path()), EVENTS, "{mode:?}");
        assert!(is_alone(folder.path()), "{mode:?}: the write-ahead log is gone");
    }
}

#[test]
fn a_standby_that_never_started_leaves_a_complete_database_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let up =
        Program::start(folder.path(), &[&["up", "--dest", "out"], &URL[..], &["--listen", "127.0.0.1:0"]].concat());
    up.wait_for(&["delivering"]);
    (0..EVENTS).for_each(|n| post(&up, n));
    let standby = Program::start(folder.path(), &[&["dispatch", "--standby", "--dest", "out"], &URL[..]].concat());
    standby.wait_for(&["standing by"]);
    up.kill();
    let ending = standby.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(events_in_copy(folder.path()), EVENTS);
}

#[test]
fn a_process_that_ends_before_others_leaves_a_complete_database_file_too() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (ingest(folder.path()), ingest(folder.path()));
    (0..EVENTS).for_each(|n| post(if n % 2 == 0 { &first } else { &second }, n));
    assert_eq!(first.stop().code(), 0);
    assert_eq!(events_in_copy(folder.path()), EVENTS, "the other one is idle");
    post(&second, EVENTS);
    assert_eq!(second.stop().code(), 0);
    assert_eq!(events_in_copy(folder.path()), EVENTS + 1);
    assert!(is_alone(folder.path()));
}

#[test]
fn a_reader_that_stays_does_not_keep_a_process_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let program = ingest(folder.path());
    (0..EVENTS / 2).for_each(|n| post(&program, n));
    let reader = rusqlite::Connection::open(folder.path().join("eventd.db")).unwrap();
    reader.execute_batch("BEGIN").unwrap();
    let seen: i64 = reader.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
    (EVENTS / 2..EVENTS).for_each(|n| post(&program, n));
    let ending = program.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert!(ending.said.contains("still in use by another process"), "{}", ending.said);
    assert_eq!(seen as usize, EVENTS / 2);
    drop(reader);
    assert_eq!(events_in(&folder.path().join("eventd.db")), EVENTS);
}
