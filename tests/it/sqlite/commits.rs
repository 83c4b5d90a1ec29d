//! Commits that cannot be read: a newer version of eventd wrote them, or they are damaged.

use super::processes::{URL, ingest, post};
use crate::support::delivered::{self, Line};
use crate::support::program::Program;
use crate::support::wait::eventually;
use std::collections::BTreeMap;
use std::path::Path;

const DESTINATION: &str = "file-1";

fn dispatch(folder: &Path, flags: &[&str]) -> Program {
    let delivery = ["--dest", DESTINATION, "--commit-interval", "50ms"];
    Program::start(folder, &[&["dispatch"], &URL[..], &delivery, flags].concat())
}

/// The number of delivered events of each partition.
fn delivered_in(folder: &Path) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for Line { partition, .. } in delivered::lines(&folder.join(DESTINATION)) {
        *counts.entry(partition).or_default() += 1;
    }
    counts
}

fn until_delivered(folder: &Path, expected: &BTreeMap<u32, usize>, by: &Program) {
    eventually(|| match delivered_in(folder) {
        counts if counts == *expected => Ok(()),
        counts => Err(format!("{counts:?} instead of {expected:?}; dispatch said\n{}", by.lines())),
    });
}

#[test]
fn a_partition_whose_commit_cannot_be_read_is_stopped_until_start_is_set_and_the_others_are_delivered() {
    const EVENTS: usize = 14;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let program = ingest(folder);
    (0..EVENTS).for_each(|n| post(&program, n));
    let first = dispatch(folder, &[]);
    eventually(|| match delivered_in(folder).values().sum::<usize>() {
        EVENTS => Ok(()),
        events => Err(format!("{events} events; dispatch said\n{}", first.lines())),
    });
    assert_eq!(first.stop().code(), 0);
    let once = delivered_in(folder);
    assert!(once.len() > 1, "several partitions have events: {once:?}");
    let unreadable = *once.first_key_value().unwrap().0;

    let database = rusqlite::Connection::open(folder.join("eventd.db")).unwrap();
    let replace = "UPDATE commits SET settled = '9AAAA' WHERE name = ?1 AND partition = ?2";
    assert_eq!(database.execute(replace, (DESTINATION, unreadable)), Ok(1));
    drop(database);
    (0..EVENTS).for_each(|n| post(&program, n));
    let second = dispatch(folder, &[]);
    let said = second.wait_for(&["this partition is stopped, the others continue"]);
    for expected in [
        format!("partition={unreadable}"),
        format!("cannot read the commit of \"{DESTINATION}\" in partition {unreadable}"),
        "in format 9".into(),
        "--start earliest or --start latest".into(),
        "commit-unreadable".into(),
    ] {
        assert!(said.contains(&expected), "{expected:?} in {said}");
    }
    let others_twice = |partition: &u32| if *partition == unreadable { 1 } else { 2 };
    let expected = once.iter().map(|(partition, events)| (*partition, events * others_twice(partition))).collect();
    until_delivered(folder, &expected, &second);
    let ending = second.stop();
    assert_eq!(ending.code(), 1, "{}", ending.said);
    let last = ending.said.lines().last().unwrap_or_default();
    assert!(last.contains(&format!("partition {unreadable}")) && last.contains("commit-unreadable"), "{last}");

    // The partition begins anew, and all others continue from their commits.
    let third = dispatch(folder, &["--start", "earliest"]);
    third.wait_for(&["cannot read the commit", "starting anew at --start"]);
    let expected: BTreeMap<u32, usize> = once
        .iter()
        .map(|(partition, events)| (*partition, events * if *partition == unreadable { 3 } else { 2 }))
        .collect();
    until_delivered(folder, &expected, &third);
    assert_eq!(third.stop().code(), 0);
    assert_eq!(program.stop().code(), 0);
}
