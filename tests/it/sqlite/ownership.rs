//! Several processes on one file. Each sees what the others write, and one of them holds a destination.

use super::child::start;
use super::{Embedded, fixture, open};
use crate::conformance::{payload, read_all, record};
use crate::support::delivered;
use crate::support::program::Program;
use crate::support::wait::{PATIENCE, eventually};
use eventd::core::outcome::{Certainty, FailureCode};
use eventd::core::progress::PartitionState;
use eventd::group::JoinError;
use eventd::group::sqlite::join;
use eventd::group::{Group, WhenHeld};
use eventd::log::sqlite::{Settings, Sqlite};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};

async fn member(engine: &Arc<Sqlite>, when_held: WhenHeld) -> Result<Arc<dyn Group>, JoinError> {
    join(engine, "file-1", "events", "digest", when_held).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_fetch_wakes_for_an_append_of_another_engine() {
    let embedded = fixture().await;
    let (here, other) = (embedded.topic("events").await, embedded.again().await);
    let there = open(&other, "events").await;
    let waiting = tokio::spawn(async move { there.fetch(0, 0, 1 << 20, 2 * PATIENCE).await });
    let appended = Instant::now();
    here.append(0, vec![record("user", "seen")]).await.unwrap();
    let fetched = timeout(PATIENCE, waiting)
        .await
        .expect("the append wakes the fetch long before its wait is over")
        .unwrap()
        .unwrap();
    assert_eq!(payload(&fetched.events[0].record), "seen");
    assert!(appended.elapsed() < Duration::from_secs(5), "{:?}", appended.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_has_just_opened_the_log_reads_what_is_there_without_waiting() {
    let embedded = fixture().await;
    embedded.topic("events").await.append(0, vec![record("user", "first")]).await.unwrap();
    let there = open(&embedded.again().await, "events").await;
    let fetched = timeout(PATIENCE, there.fetch(0, 0, 1 << 20, 2 * PATIENCE)).await;
    assert_eq!(payload(&fetched.expect("it reads at once").unwrap().events[0].record), "first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_fetch_of_another_process_wakes() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    let mut child = start("read", &embedded.path(), None);
    assert_eq!(child.says().as_deref(), Some("waiting"));
    log.append(0, vec![record("user", "hello")]).await.unwrap();
    assert_eq!(child.says().as_deref(), Some("hello"));
    child.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_busy_writers_both_make_progress() {
    let embedded = fixture().await;
    let (one, two) = (embedded.topic("events").await, open(&embedded.again().await, "events").await);
    // The first writer never pauses. The second one writes now and then, as dispatch does when it commits.
    let (began, mut has_begun) = tokio::sync::watch::channel(false);
    let busy = {
        let log = Arc::clone(&one);
        tokio::spawn(async move {
            let mut appends = 0;
            loop {
                let records = (0..500).map(|_| record("busy", &"x".repeat(500))).collect();
                log.append(0, records).await.expect("the busy writer can append");
                began.send_replace(true);
                appends += 1;
                if appends % 10 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        })
    };
    timeout(PATIENCE, has_begun.wait_for(|begun| *begun)).await.expect("in time").expect("the busy writer still runs");
    for n in 0..30 {
        timeout(PATIENCE, two.append(0, vec![record("other", &n.to_string())]))
            .await
            .expect("in time")
            .expect("not refused");
    }
    busy.abort();
    // The task was aborted, so its result does not matter.
    let _ = busy.await;
    let found = read_all(&*one, 0, 0).await;
    let others: Vec<u32> =
        found.iter().filter(|(_, r)| r.key() == Some(b"other")).map(|(_, r)| payload(r).parse().unwrap()).collect();
    assert_eq!(others, (0..30).collect::<Vec<_>>());
    assert!(found.len() > 30, "the busy writer wrote too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_record_survives_a_killed_process() {
    let embedded = fixture().await;
    for round in 0..3 {
        let mut child = start("append", &embedded.path(), None);
        let mut acknowledged: Vec<String> = (0..500).map_while(|_| child.says()).collect();
        assert_eq!(acknowledged.len(), 500, "the kill interrupted the appends");
        child.kill();
        // What the child reported before its death is still in the pipe.
        acknowledged.extend(std::iter::from_fn(|| child.says()));
        // The last line may be incomplete.
        let complete =
            acknowledged.iter().filter_map(|line| line.split_once(' ')).filter(|(_, text)| text.contains('-'));
        let log = open(&embedded.again().await, "events").await;
        let found = read_all(&*log, 0, 0).await;
        let mut checked = 0;
        for (offset, text) in complete.take(500) {
            let offset: usize = offset.parse().unwrap();
            assert_eq!((found[offset].0, payload(&found[offset].1)), (offset as i64, text), "in round {round}");
            checked += 1;
        }
        assert_eq!(checked, 500);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_held_by_another_process_names_its_pid() {
    let embedded = fixture().await;
    embedded.topic("events").await;
    let mut child = start("hold", &embedded.path(), None);
    assert_eq!(child.says().as_deref(), Some("held"));
    let error = member(&embedded.engine, WhenHeld::Fail).await.unwrap_err();
    let JoinError::Held { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
    assert_eq!((holder.pid, holder.destination.as_str()), (child.pid(), "digest-1"));
    assert!(error.to_string().contains(&format!("held by pid {}", child.pid())), "{error}");
    // A standby gets the destination as soon as its holder is dead, however the holder died.
    let engine = Arc::clone(&embedded.engine);
    let standby = tokio::spawn(async move { member(&engine, WhenHeld::Standby).await });
    child.kill();
    let group = timeout(PATIENCE, standby).await.expect("the lock is released with its process").unwrap().unwrap();
    group.commit(0, PartitionState::at(0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_delivers_within_a_second_after_its_holder_was_killed() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    let url = format!("sqlite:{}", embedded.path().display());
    let flags = ["dispatch", "--url", &url, "--topic", "events", "--dest", "file-1", "--standby"];
    let process = || Program::start(embedded.folder.path(), &flags);
    let file = embedded.folder.path().join("file-1");
    let delivers = |payload: &str, by: &Program| {
        eventually(|| match delivered::lines(&file) {
            lines if lines.last().is_some_and(|line| line.payload == payload) => Ok(()),
            lines => Err(format!("no {payload:?} at the end of {} lines; dispatch said\n{}", lines.len(), by.lines())),
        });
    };
    let (mut holder, mut took) = (process(), Vec::new());
    for round in 0..3 {
        let (before, after) = (format!("{round} before"), format!("{round} after"));
        log.append(0, vec![record("user", &before)]).await.unwrap();
        delivers(&before, &holder);
        let standby = process();
        standby.wait_for(&["standing by", &format!("held_by={}", holder.id())]);
        log.append(0, vec![record("user", &after)]).await.unwrap();
        delivers(&after, &holder);
        holder.kill();
        let killed = Instant::now();
        log.append(0, vec![record("user", "left")]).await.unwrap();
        delivers("left", &standby);
        took.push(killed.elapsed());
        holder = standby;
    }
    assert_eq!(holder.stop().code(), 0);
    println!("# a standby delivers {took:?} after the SIGKILL of the holder");
    assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
}

#[tokio::test]
async fn a_destination_is_free_after_its_member_left_or_was_dropped() {
    let embedded = fixture().await;
    embedded.topic("events").await;
    let first = member(&embedded.engine, WhenHeld::Fail).await.unwrap();
    assert!(matches!(member(&embedded.again().await, WhenHeld::Fail).await, Err(JoinError::Held { .. })));
    first.leave().await;
    let second = member(&embedded.again().await, WhenHeld::Fail).await.unwrap();
    let failure = first.commit(0, PartitionState::at(0)).await.unwrap_err();
    assert_eq!((failure.certainty, failure.code), (Certainty::Refused, FailureCode::CommitFenced));
    drop(second);
    member(&embedded.engine, WhenHeld::Fail).await.unwrap();
}

#[tokio::test]
async fn a_link_to_the_database_uses_the_same_lock() {
    let Embedded { folder, engine } = fixture().await;
    open(&engine, "events").await;
    std::os::unix::fs::symlink(folder.path().join("eventd.db"), folder.path().join("link.db")).unwrap();
    let linked = Sqlite::open(folder.path().join("link.db"), Settings::default()).await.unwrap();
    let _held = member(&engine, WhenHeld::Fail).await.unwrap();
    assert!(matches!(member(&linked, WhenHeld::Fail).await, Err(JoinError::Held { .. })));
}

#[tokio::test]
async fn a_member_whose_lock_file_was_deleted_is_fenced_by_the_next() {
    let embedded = fixture().await;
    embedded.topic("events").await;
    let old = member(&embedded.engine, WhenHeld::Fail).await.unwrap();
    old.commit(0, PartitionState::at(0)).await.unwrap();
    std::fs::remove_file(embedded.folder.path().join("eventd.db.file-1.lock")).unwrap();
    let new = member(&embedded.engine, WhenHeld::Fail).await.unwrap();
    assert_eq!(old.commit(0, PartitionState::at(0)).await.unwrap_err().code, FailureCode::CommitFenced);
    new.commit(0, PartitionState::at(0)).await.unwrap();
}

#[tokio::test]
async fn invalid_names_and_topics_are_refused() {
    let embedded = fixture().await;
    embedded.topic("events").await;
    for name in ["", "a/b", "../up", "ü", &"x".repeat(201)] {
        let error = join(&embedded.engine, name, "events", "digest", WhenHeld::Fail).await.unwrap_err();
        assert!(matches!(error, JoinError::Configuration(_)), "{name:?}: {error:?}");
    }
    let error = join(&embedded.engine, "file-1", "missing", "digest", WhenHeld::Fail).await.unwrap_err();
    assert_eq!(error, JoinError::MissingTopic { topic: "missing".into() });
}
