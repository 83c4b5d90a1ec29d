//! The memory that a replay takes does not depend on the number of events: a million need no more than a third of them.

use super::*;
use crate::support::block_on;
use crate::support::wait::eventually;
use eventd::core::event::Record;
use eventd::core::partition::Partitioner;
use eventd::core::progress::PartitionState;
use eventd::group::WhenHeld;
use eventd::group::sqlite::join;
use eventd::log::sqlite::{Settings, Sqlite};
use eventd::log::{CreateTopic, Engine};
use serde::Deserialize;
use std::io::{BufRead, BufReader};

const EVENTS: u64 = 1_000_000;
const USERS: u64 = 1_000;
const PARTITIONS: u32 = 3;

/// The smaller replay ends before this offset in each partition. Its events fill the window three times, because a
/// window that is not full takes less memory.
const SOME_UNTIL: u64 = 100_000;

/// Records in one append. This keeps the number of transactions small and stays below the limit of an append.
const APPEND_RECORDS: usize = 5_000;

/// The limit for the resident memory of a replay. It is far above what is measured, and below what a million events
/// need.
const PEAK_KIB_MAX: u64 = 128 * 1024;

/// How much more memory the larger replay may take: a fraction of the 700,000 events by which it is larger.
const MORE_KIB_MAX: u64 = 20 * 1024;

#[test]
fn a_million_events_take_no_more_memory_than_a_third_of_them() {
    let folder = tempfile::tempdir().unwrap();
    block_on(fill(folder.path()));
    let some = replay(folder.path(), &["--until", &SOME_UNTIL.to_string()]);
    let all = replay(folder.path(), &[]);
    assert_eq!((some.events, all.events), (SOME_UNTIL * u64::from(PARTITIONS), EVENTS));
    for replayed in [&some, &all] {
        println!(
            "# {} events replayed, each once and in order: {} KiB resident at most",
            replayed.events, replayed.peak_kib
        );
    }
    assert!(all.peak_kib <= PEAK_KIB_MAX, "{all:?}");
    assert!(all.peak_kib <= some.peak_kib + MORE_KIB_MAX, "{some:?}, {all:?}");
}

/// Appends events of all users in turn, with their numbers as payloads. The destination `hook` has settled all of them.
async fn fill(folder: &Path) {
    let settings = Settings { create: true, ..Settings::default() };
    let engine = Sqlite::open(folder.join("log.db"), settings).await.unwrap();
    let log = engine.open("user-events", Some(CreateTopic { partitions: PARTITIONS, retention: None })).await.unwrap();
    let mut batches = vec![Vec::with_capacity(APPEND_RECORDS); PARTITIONS as usize];
    for n in 0..EVENTS {
        let user = format!("user-{}", n % USERS);
        let partition = Partitioner::default().partition(user.as_bytes(), PARTITIONS);
        let batch = &mut batches[partition as usize];
        batch.push(Record::new(Some(user.as_bytes()), Some(n.to_string().as_bytes()), &[], 0));
        if batch.len() == APPEND_RECORDS {
            log.append(partition, std::mem::take(batch)).await.unwrap();
        }
    }
    let group = join(&engine, "hook", "user-events", "", WhenHeld::Fail).await.unwrap();
    for (partition, batch) in (0..).zip(batches) {
        log.append(partition, batch).await.unwrap();
        group.commit(partition, PartitionState::at(log.latest(partition).await.unwrap())).await.unwrap();
    }
    group.leave().await;
}

#[derive(Debug)]
struct Replayed {
    events: u64,
    /// The most memory that was resident at once, in KiB.
    peak_kib: u64,
}

/// Replays into a file. The file must have every event once, and each user's events in order.
fn replay(folder: &Path, more: &[&str]) -> Replayed {
    let arguments = ["replay", "--url", "sqlite:log.db", "--dest", "hook=file:delivered", "--from", "0", "--execute"];
    let program = Program::start(folder, &[&arguments, more].concat());
    let mut peak_kib = 0;
    eventually(|| match resident_peak_kib(program.id()) {
        // The value only grows, so the last reading is the peak.
        Some(now_kib) => {
            peak_kib = now_kib;
            Err(format!("the replay still runs, with a peak of {now_kib} KiB:\n{}", program.lines()))
        }
        None => Ok(()),
    });
    let ending = program.end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let file = folder.join("delivered");
    let events = in_order(&file);
    std::fs::remove_file(file).unwrap();
    Replayed { events, peak_kib }
}

/// `VmHWM` of a process in KiB. `None` if it has ended, even if its parent has not waited for it yet.
fn resident_peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(peak.trim().strip_suffix(" kB").unwrap().parse().unwrap())
}

/// The number of events in a destination's file. Fails unless each user's events begin with its first one, without a
/// gap or a repetition.
fn in_order(file: &Path) -> u64 {
    #[derive(Deserialize)]
    struct Line<'l> {
        user: &'l str,
        payload: &'l str,
    }
    let mut next: Vec<u64> = (0..USERS).collect();
    let mut events = 0;
    for line in BufReader::new(std::fs::File::open(file).unwrap()).lines() {
        let line = line.unwrap();
        let Line { user, payload } = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let number: usize = user.strip_prefix("user-").unwrap().parse().unwrap();
        assert_eq!(payload.parse(), Ok(next[number]), "line {events}: {line}");
        next[number] += USERS;
        events += 1;
    }
    events
}
