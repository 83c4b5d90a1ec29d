//! Disks that return wrong data, fill up or fail.

use super::child::start;
use super::fixture;
use crate::conformance::{payload, read_all, record};
use crate::support::wait::PATIENCE;
use eventd::core::outcome::{Certainty, FailureCode};
use eventd::log::{Engine, FetchError, Log};
use std::process::Command;
use std::time::Duration;

/// Reads ten records in two fetches. The second one begins with the damaged record. Returns its error.
async fn reads_up_to_the_damage(log: &dyn Log, offset: i64) -> String {
    let fetched = log.fetch(0, 0, 1 << 20, PATIENCE).await.unwrap();
    assert_eq!((fetched.events.len() as i64, fetched.next), (offset, offset));
    match log.fetch(0, fetched.next, 1 << 20, PATIENCE).await {
        Err(FetchError::Corrupt { offset: at, detail }) if at == offset => detail,
        other => panic!("damage at {offset} was expected: {other:?}"),
    }
}

#[tokio::test]
async fn a_flipped_bit_is_never_delivered() {
    for column in ["key", "value", "headers", "timestamp_ms", "crc32c"] {
        let embedded = fixture().await;
        let log = embedded.topic("events").await;
        log.append(0, (0..10).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
        let flipped = match column {
            "timestamp_ms" | "crc32c" => format!("{column} + 1"),
            // The value keeps its length, but its last byte changes.
            _ => format!("CAST(substr({column}, 1, length({column}) - 1) || x'ff' AS BLOB)"),
        };
        let changed =
            embedded.plain().execute(&format!("UPDATE records SET {column} = {flipped} WHERE offset = 6"), []);
        assert_eq!(changed, Ok(1));
        let detail = reads_up_to_the_damage(&*log, 6).await;
        assert!(detail.contains("checksum"), "{column}: {detail}");
        // Records after the damaged one can still be read.
        assert_eq!(log.fetch(0, 7, 1 << 20, PATIENCE).await.unwrap().events.len(), 3);
    }
}

#[tokio::test]
async fn a_missing_or_moved_record_is_damage_and_not_a_gap() {
    for change in ["DELETE FROM records WHERE offset = 6", "UPDATE records SET offset = 60 WHERE offset = 6"] {
        let embedded = fixture().await;
        let log = embedded.topic("events").await;
        log.append(0, (0..10).map(|n| record("user", &n.to_string())).collect()).await.unwrap();
        assert_eq!(embedded.plain().execute(change, []), Ok(1));
        let detail = reads_up_to_the_damage(&*log, 6).await;
        assert!(detail.contains("missing"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_database_refuses_events_and_recovers() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    let plain = embedded.plain();
    plain.execute_batch("BEGIN IMMEDIATE").unwrap();
    let failure = log.append(0, vec![record("user", "refused")]).await.unwrap_err();
    assert_eq!(failure.code, FailureCode::LogBusy, "{failure}");
    plain.execute_batch("ROLLBACK").unwrap();
    log.append(0, vec![record("user", "taken")]).await.unwrap();
    let found = read_all(&*log, 0, 0).await;
    assert_eq!(found.iter().map(|(_, record)| payload(record)).collect::<Vec<_>>(), ["taken"]);
}

/// A limit on file sizes makes a commit's write fail with `EFBIG`, as a failing disk does with `EIO`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_ends_the_engine_and_loses_nothing_acknowledged() {
    let embedded = fixture().await;
    embedded.topic("events").await;
    let mut child = start("until-lost", &embedded.path(), Some("trap '' XFSZ; ulimit -f 2048"));
    let mut acknowledged = 0;
    let failure = loop {
        match child.says().expect("the child says how it ended") {
            line if line.starts_with("ok ") => acknowledged += 1,
            line => break line,
        }
    };
    assert!(acknowledged > 10, "appends worked for a while: {acknowledged}");
    assert_eq!(failure, "Unknown log-lost");
    let why = child.says().expect("the child says what was lost");
    assert!(why.starts_with("lost ") && why.len() > 10, "{why}");
    assert_eq!(child.says().as_deref(), Some("Refused log-lost"));
    child.end();
    // At most the append with the unknown outcome was stored in addition.
    let log = super::open(&embedded.again().await, "events").await;
    let found = read_all(&*log, 0, 0).await.len();
    assert!(
        (acknowledged..=acknowledged + 1).contains(&found),
        "{acknowledged} records were acknowledged, {found} are stored"
    );
    log.append(0, vec![record("user", "after")]).await.unwrap();
}

/// A file system of 12 MiB in a mount namespace of its own. It needs Linux and the permission to create one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_events_and_continues_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let in_namespace = format!("mount -t tmpfs -o size=12m tmpfs '{}'", mount.display());
    let possible = Command::new("unshare").args(["-rm", "sh", "-c", &in_namespace]).output();
    assert!(
        possible.as_ref().is_ok_and(|output| output.status.success()),
        "this test mounts a tmpfs in a namespace of its own, which is not possible here: it needs Linux, `unshare` of \
         util-linux, and user namespaces for this user (`unshare -rm true` tells; in a container they may be forbidden \
         by its seccomp profile, on a host by kernel.unprivileged_userns_clone or \
         kernel.apparmor_restrict_unprivileged_userns): {possible:?}"
    );
    let before = format!("exec unshare -rm sh -c \"{in_namespace} && exec \\\"\\$0\\\" \\\"\\$@\\\"\" \"$0\" \"$@\"");
    let mut child = start("fill", &mount.join("eventd.db"), Some(&before));
    assert_eq!(child.says().as_deref(), Some("Refused log-full"));
    let again = child.says().expect("the child continues");
    let (stored, found) =
        again.strip_prefix("again after ").and_then(|counts| counts.split_once(": ")).expect("counts");
    let (stored, found): (u64, u64) = (stored.parse().unwrap(), found.parse().unwrap());
    assert!(stored > 50, "appends worked for a while: {stored}");
    assert_eq!(found, stored + 1, "every acknowledged record, and one more");
    child.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_never_ends_delays_no_append() {
    let embedded = fixture().await;
    let log = embedded.topic("events").await;
    log.append(0, vec![record("user", "first")]).await.unwrap();
    let plain = embedded.plain();
    plain.execute_batch("BEGIN").unwrap();
    let count = |sql| plain.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM records"), 1);
    let text = "x".repeat(8_000);
    for _ in 0..80 {
        let batch = (0..100).map(|_| record("user", &text)).collect();
        tokio::time::timeout(Duration::from_secs(10), log.append(0, batch)).await.unwrap().unwrap();
    }
    assert_eq!(count("SELECT count(*) FROM records"), 1, "the snapshot from when it started");
    assert_eq!(read_all(&*log, 0, 0).await.len(), 8_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_removed_or_replaced_is_lost_and_not_written_to() {
    for replaced in [false, true] {
        let embedded = fixture().await;
        let log = embedded.topic("events").await;
        log.append(0, vec![record("user", "kept")]).await.unwrap();
        std::fs::rename(embedded.path(), embedded.path().with_extension("away")).unwrap();
        if replaced {
            std::fs::write(embedded.path(), "").unwrap();
        }
        let why = tokio::time::timeout(PATIENCE, embedded.engine.lost()).await.expect("the loss is noticed");
        assert!(why.contains(if replaced { "replaced" } else { "removed" }), "{why}");
        let failure = log.append(0, vec![record("user", "not stored")]).await.unwrap_err();
        assert_eq!((failure.certainty, failure.code), (Certainty::Refused, FailureCode::LogLost));
    }
}
