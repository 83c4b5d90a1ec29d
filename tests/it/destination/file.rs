//! The file destination on a real disk: torn lines after a crash, other processes, rotation, full disks and pipes.

use super::{ATTEMPT_TIME, attempt, delivery_batch, event, not_opened, opened};
use crate::support::wait::eventually_async;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use eventd::core::event::{Event, Record};
use eventd::core::verdict::{Failed, Report, Verdict};
use eventd::destination::spec::Spec;
use eventd::destination::{DeliveryBatch, Destination, DestinationSettings, FaultDrill, Run, open};
use proptest::prelude::*;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Set in the child process that runs [`on_a_disk_that_is_full`] with a limited file size.
const FULL_DISK_PATH: &str = "EVENTD_TEST_FULL_DISK_PATH";

/// A complete line as eventd writes it.
const OURS: &str = "{\"user\":\"u\",\"offset\":1}\n";

fn file_at(path: &Path) -> Arc<dyn Destination> {
    opened(&format!("d=file:{}", path.display()), &DestinationSettings::default())
}

fn offsets(path: &Path) -> Vec<i64> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "whole lines in {text:?}");
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["offset"].as_i64().unwrap()).collect()
}

/// Waits until the destination that had this file open has closed it.
async fn until_unlocked(path: &Path) {
    let file = || fs::File::open(path).unwrap().try_lock();
    eventually_async(|| file().map_err(|error| format!("{} is locked: {error}", path.display()))).await;
}

fn all_delivered(reports: &[Report]) -> bool {
    reports.iter().all(|report| report.failed.is_none())
}

#[tokio::test]
async fn lines_are_appended_in_order_and_each_run_gets_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    fs::write(&path, "{\"offset\":-1}\n").unwrap();
    let destination = file_at(&path);
    let reports = destination.deliver(delivery_batch(0, 0, &[2, 1, 3], ATTEMPT_TIME)).await;
    let delivered: Vec<usize> = reports.iter().map(|report| report.delivered).collect();
    assert_eq!((delivered, all_delivered(&reports)), (vec![2, 1, 3], true));
    assert_eq!(offsets(&path), [-1, 0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_batch_that_is_larger_than_one_write_is_written_in_several() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    let destination = file_at(&path);
    let mut large = delivery_batch(0, 0, &[3, 4], ATTEMPT_TIME);
    let payload = vec![b'x'; 3 * 1024 * 1024];
    large.events = (0..7).map(|offset| event(offset, "u", &payload)).collect();
    let small = delivery_batch(0, 7, &[1; 500], ATTEMPT_TIME);
    let (large, small) = tokio::join!(destination.deliver(large), destination.deliver(small));
    assert!(all_delivered(&large) && all_delivered(&small) && small.len() == 500);
    assert_eq!(offsets(&path), (0..507).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_incomplete_last_line_is_removed_at_start_but_never_the_text_of_another_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    for torn in ["{", "{\"user\":\"user-1\",\"payl", "{\"payload_base64\":\"", "{\"user\":\"\0\0\0\0", "\0\0\0"] {
        fs::write(&path, format!("{OURS}{torn}")).unwrap();
        let destination = file_at(&path);
        assert_eq!(fs::read_to_string(&path).unwrap(), OURS, "{torn:?}");
        attempt(&*destination, event(2, "u", b""), ATTEMPT_TIME).await.unwrap();
        assert_eq!(offsets(&path), [1, 2]);
        drop(destination);
        until_unlocked(&path).await;
    }
    let torn = format!("{OURS}{{\"user\":\"u\",\"payload\":\"{}", "x".repeat(300_000));
    fs::write(&path, torn).unwrap();
    let destination = file_at(&path);
    assert_eq!(offsets(&path), [1]);
    drop(destination);
    until_unlocked(&path).await;
    for torn in ["{\"us", "{\"user\":\"u\",\"payload\":\"", "\0\0"] {
        fs::write(&path, torn).unwrap();
        drop(file_at(&path));
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "{torn:?}");
        until_unlocked(&path).await;
    }
    let ours = |torn: &str| format!("{OURS}{torn}");
    for foreign in [
        "a text of another program".to_owned(),
        "{\"user-name\":".to_owned(),
        "\0\0a database\0".to_owned(),
        "{\0\"\0a\0".to_owned(),
        // Only the last bytes look like a line of ours; the file belongs to another program.
        "SQLite format 3\0\n\0\0".to_owned(),
        "{\n  \"a\": [\n{".to_owned(),
        "{\"offset\":1}\n{\"user\":".to_owned(),
        ours("not ours"),
        ours("\0\0not ours"),
    ] {
        fs::write(&path, &foreign).unwrap();
        let why = not_opened(&format!("d=file:{}", path.display()));
        assert!(why.contains("line break") && why.contains(path.to_str().unwrap()), "{why}");
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
    }
}

#[tokio::test]
async fn a_last_line_that_lacks_only_its_line_break_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    let long = format!("{{\"user\":\"u\",\"payload\":\"{}\",\"offset\":2}}", "x".repeat(300_000));
    for (last, expected) in [
        ("{\"user\":\"u\",\"offset\":2}", [1, 2, 3].as_slice()),
        ("{\"payload\":null,\"offset\":2}", &[1, 2, 3]),
        (&long, &[1, 2, 3]),
        // This prefix is valid JSON up to its end, and is still incomplete.
        ("{\"user\":\"u\",\"payload\":{\"a\":1}", &[1, 3]),
        ("{\"user\":\"u\"}}", &[1, 3]),
    ] {
        fs::write(&path, format!("{OURS}{last}")).unwrap();
        let destination = file_at(&path);
        attempt(&*destination, event(3, "u", b""), ATTEMPT_TIME).await.unwrap();
        assert_eq!(offsets(&path), expected, "{last:.60}");
        drop(destination);
        until_unlocked(&path).await;
    }
    // The line is alone in its file; or it ends the file of another program.
    fs::write(&path, OURS.trim_end()).unwrap();
    drop(file_at(&path));
    assert_eq!(fs::read_to_string(&path).unwrap(), OURS);
    until_unlocked(&path).await;
    fs::write(&path, "{\"offset\":1}").unwrap();
    not_opened(&format!("d=file:{}", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"offset\":1}");
}

#[tokio::test]
async fn a_second_process_is_told_which_one_holds_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    let first = file_at(&path);
    let why = not_opened(&format!("d=file:{}", path.display()));
    assert!(why.contains(path.to_str().unwrap()) && why.contains("{partition}"), "{why}");
    if cfg!(target_os = "linux") && fs::read_to_string("/proc/locks").is_ok_and(|locks| !locks.is_empty()) {
        assert!(why.contains(&std::process::id().to_string()), "{why}");
    }
    drop(first);
    let again = || open(&Spec::parse(&format!("d=file:{}", path.display())).unwrap(), &DestinationSettings::default());
    eventually_async(|| again().map_err(|error| format!("the file is not free: {error:?}"))).await;
}

#[test]
fn a_path_that_cannot_work_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| not_opened(&format!("d=file:{}/{path}", folder.path().display()));
    assert!(at("missing/log").contains("directory") && at("missing/log").contains("missing"));
    assert!(at("").contains("is a directory") && at("..").contains("is a directory"));
    assert!(at("{partition}/log").contains("{partition}") && at("missing/{partition}").contains("missing"));
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(at("file/log").contains("not a directory"));
    assert!(at(&"n".repeat(300)).contains("cannot be opened"));
}

#[tokio::test]
async fn after_a_rotation_reopen_writes_to_the_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("log.jsonl"), folder.path().join("log.jsonl.1"));
    let destination = file_at(&path);
    let deliver = async |offset| attempt(&*destination, event(offset, "u", b""), ATTEMPT_TIME).await.unwrap();
    deliver(1).await;
    destination.reopen();
    deliver(2).await;
    fs::rename(&path, &rotated).unwrap();
    deliver(3).await;
    destination.reopen();
    deliver(4).await;
    assert_eq!((offsets(&rotated), offsets(&path)), (vec![1, 2, 3], vec![4]));
    fs::remove_file(&path).unwrap();
    deliver(5).await;
    assert_eq!(offsets(&path), [5], "a deleted file is created again");
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    deliver(6).await;
    assert_eq!(offsets(&path), [6], "a truncated file is appended to");
}

#[tokio::test]
async fn reopen_closes_an_idle_file_that_was_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (path, rotated) = (folder.path().join("log.jsonl"), folder.path().join("log.jsonl.1"));
    let destination = file_at(&path);
    fs::rename(&path, &rotated).unwrap();
    destination.reopen();
    until_unlocked(&rotated).await;
}

#[tokio::test]
async fn a_path_with_a_partition_gives_each_partition_its_own_file() {
    let folder = tempfile::tempdir().unwrap();
    let destination = file_at(&folder.path().join("log-{partition}.jsonl"));
    for partition in [0, 12, 0] {
        assert!(all_delivered(&destination.deliver(delivery_batch(partition, 0, &[1, 1], ATTEMPT_TIME)).await));
    }
    assert_eq!(offsets(&folder.path().join("log-0.jsonl")), [0, 1, 0, 1]);
    assert_eq!(offsets(&folder.path().join("log-12.jsonl")), [0, 1]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "a file is created with its first event");
}

#[tokio::test]
async fn a_full_device_is_an_outage_and_is_neither_locked_nor_truncated() {
    let (one, other) = (file_at(Path::new("/dev/full")), file_at(Path::new("/dev/full")));
    for destination in [one, other] {
        let failed = attempt(&*destination, event(1, "u", b""), ATTEMPT_TIME).await.unwrap_err();
        assert_eq!(failed.verdict, Verdict::Unreachable);
        assert!(failed.answer.contains("No space left"), "{}", failed.answer);
    }
}

#[tokio::test]
async fn a_full_disk_settles_nothing_leaves_no_incomplete_line_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    // 16 blocks of 512 or 1024 bytes, which depends on the shell. A write that crosses the limit is short, and the next
    // one fails.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact destination::file::on_a_disk_that_is_full --ignored";
    let mut child = Command::new("sh");
    child.args(["-c", script]).arg(std::env::current_exe().unwrap()).env(FULL_DISK_PATH, &path);
    let output = tokio::task::spawn_blocking(move || child.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// Fills the file up to the limit, makes room by a rotation, and continues.
#[tokio::test]
#[ignore = "run by a_full_disk_settles_nothing_leaves_no_incomplete_line_and_recovers, under a limit"]
async fn on_a_disk_that_is_full() {
    let Ok(path) = std::env::var(FULL_DISK_PATH) else { return };
    let path = Path::new(&path);
    let destination = file_at(path);
    let payload = [b'x'; 1000];
    let mut written = 0;
    let failed: Failed = loop {
        match attempt(&*destination, event(written, "u", &payload), ATTEMPT_TIME).await {
            Ok(()) => written += 1,
            Err(failed) => break failed,
        }
    };
    assert_eq!(failed.verdict, Verdict::Unreachable);
    assert!(written > 3 && failed.answer.contains("too large"), "{written} {}", failed.answer);
    let again = attempt(&*destination, event(written, "u", &payload), ATTEMPT_TIME).await.unwrap_err();
    assert_eq!(again.verdict, Verdict::Unreachable);
    assert_eq!(offsets(path), (0..written).collect::<Vec<_>>());
    fs::rename(path, path.with_extension("old")).unwrap();
    attempt(&*destination, event(written, "u", &payload), ATTEMPT_TIME).await.unwrap();
    assert_eq!(offsets(path), [written]);
    assert_eq!(offsets(&path.with_extension("old")), (0..written).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_pipe_waits_for_its_reader_and_outlives_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let destination = file_at(&path);
    let without_reader = attempt(&*destination, event(1, "u", b""), Duration::from_millis(100)).await;
    assert_eq!(without_reader.unwrap_err().verdict, Verdict::Unreachable);
    for offset in [2, 3] {
        let path = path.clone();
        let reader = tokio::task::spawn_blocking(move || {
            // The reader's end is at once if it opens the pipe just before the writer, which saw the last reader leave,
            // closes it.
            std::iter::repeat_with(|| BufReader::new(fs::File::open(&path).unwrap()).lines().map(Result::unwrap))
                .find_map(|mut lines| lines.find(|line| line.contains(&format!("\"offset\":{offset},"))))
        });
        // The first attempts may fail, because the last reader has closed the pipe.
        let deadline = tokio::time::Instant::now() + ATTEMPT_TIME;
        while attempt(&*destination, event(offset, "u", b""), ATTEMPT_TIME).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline);
        }
        assert!(reader.await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_fault_drill_ends_runs_before_the_event_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl");
    let settings =
        DestinationSettings { drill: Some(FaultDrill { one_in: 5, seed: 7 }), ..DestinationSettings::default() };
    let destination = opened(&format!("d=file:{}", path.display()), &settings);
    let reports = destination.deliver(delivery_batch(0, 0, &[10; 100], ATTEMPT_TIME)).await;
    let expected: Vec<i64> = reports
        .iter()
        .enumerate()
        .flat_map(|(run, report)| {
            let first = run as i64 * 10;
            first..first + report.delivered as i64
        })
        .collect();
    assert_eq!(offsets(&path), expected);
    let drilled = reports.iter().filter(|r| r.failed.as_ref().is_some_and(|f| f.verdict == Verdict::Drilled)).count();
    assert!((70..100).contains(&drilled), "{drilled} of 100 runs of 10 met one of the events that fail (20 %)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn payloads_are_written_byte_for_byte(
        payloads in proptest::collection::vec(
            prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), "\\PC{0,100}".prop_map(String::into_bytes)],
            1..50,
        ),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let events: Vec<Event> = payloads.iter().enumerate().map(|(offset, payload)| Event {
            offset: offset as i64,
            record: Record::new(Some(b"u"), Some(payload), &[], 0),
        }).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let reports = runtime.block_on(async {
            file_at(&path).deliver(DeliveryBatch {
                topic: "t".into(),
                partition: 0,
                runs: vec![Run { events: 0..events.len(), attempt: 1, after_dead_letter: false }],
                events,
                deadline: (tokio::time::Instant::now() + ATTEMPT_TIME).into(),
            }).await
        });
        prop_assert!(all_delivered(&reports));
        let read: Vec<Vec<u8>> = fs::read_to_string(&path).unwrap().lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            match line["payload"].as_str() {
                Some(text) => text.as_bytes().to_vec(),
                None => BASE64_STANDARD.decode(line["payload_base64"].as_str().unwrap()).unwrap(),
            }
        }).collect();
        prop_assert_eq!(read, payloads);
    }
}
