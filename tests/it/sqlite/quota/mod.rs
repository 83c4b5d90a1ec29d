//! A full quota. SQLite reports it as an I/O error, but eventd treats it like any full disk.

use super::processes::{events_in, post};
use crate::support::client::Client;
use crate::support::program::{Program, command, run};
use crate::support::wait::eventually;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the library that makes writes fail. A real quota needs a file system and permissions that a test does not
/// have.
fn library(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sqlite/quota/library.rs");
    let library = folder.join("libquota.so");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .args([&library, &source])
        .output()
        .expect("rustc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}

/// Preloads the library. Once the returned marker file exists, the quota is used up for files whose path contains
/// `counts`.
fn under_quota(command: &mut Command, other: &Path, counts: &str) -> PathBuf {
    let full = other.join("full");
    command.env("LD_PRELOAD", library(other));
    command.env("EVENTD_TEST_QUOTA_IS_FULL", &full).env("EVENTD_TEST_QUOTA_COUNTS", counts);
    full
}

#[test]
fn a_full_quota_refuses_events_and_recovers_by_itself() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut ingest = command(folder.path(), &["ingest", "--url", "sqlite:eventd.db", "--listen", "127.0.0.1:0"]);
    let full = under_quota(&mut ingest, other.path(), "eventd.db");
    let program = Program::spawn(ingest, "ingest");
    (0..10).for_each(|n| post(&program, n));
    fs::write(&full, "").unwrap();
    let mut client = Client::connect(&program.address()).unwrap();
    for _ in 0..3 {
        let answer = client.post(r#"[{"UserID": "u", "Payload": "too much"}]"#).unwrap();
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(answer.body.contains("log-full"), "{}", answer.body);
    }
    fs::remove_file(&full).unwrap();
    eventually(|| match client.post(r#"[{"UserID": "u", "Payload": "again"}]"#).unwrap() {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.body),
    });
    let ending = program.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["eventd.db"], "no probe file is left");
    assert_eq!(events_in(&folder.path().join("eventd.db")), 11);
}

#[test]
fn a_lock_file_without_room_for_its_text_still_locks() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dispatch = ["dispatch", "--url", "sqlite:eventd.db", "--dest", "out"];
    let mut first = command(folder.path(), &dispatch);
    fs::write(under_quota(&mut first, other.path(), ".lock"), "").unwrap();
    let first = Program::spawn(first, "dispatch");
    first.wait_for(&["took the lock, but could not write into it"]);
    first.wait_for(&["delivering"]);
    let second = run(folder.path(), &dispatch);
    assert_eq!(second.code(), 1, "{}", second.said);
    assert_eq!(first.stop().code(), 0);
}
