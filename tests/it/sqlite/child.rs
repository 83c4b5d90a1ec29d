//! A second process on the same database: this test binary again, controlled by environment variables. It reports in
//! lines that begin with `=> `, which separates them from the output of the test harness.

use super::open;
use crate::conformance::{payload, record};
use crate::support::wait::PATIENCE;
use eventd::core::outcome::FailureCode;
use eventd::group::WhenHeld;
use eventd::group::sqlite::join;
use eventd::log::Engine;
use eventd::log::sqlite::{Settings, Sqlite};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const ROLE: &str = "EVENTD_TEST_CHILD_ROLE";
const PATH: &str = "EVENTD_TEST_CHILD_PATH";

/// A running child. It is killed when the value is dropped.
pub(super) struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
    /// Closing it tells the child to end.
    stdin: Option<ChildStdin>,
}

/// Starts a child. `shell` is what a shell runs before it becomes the child, such as a limit.
pub(super) fn start(role: &str, database: &Path, shell: Option<&str>) -> Running {
    let binary = std::env::current_exe().expect("this binary's path");
    let arguments = ["sqlite::child::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let mut command = match shell {
        None => Command::new(binary),
        Some(before) => {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("{before}\nexec \"$0\" \"$@\"")).arg(binary);
            command
        }
    };
    let mut child = command
        .args(arguments)
        .env(ROLE, role)
        .env(PATH, database)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let lines = BufReader::new(child.stdout.take().expect("the child's output"));
    let stdin = child.stdin.take();
    Running { child, lines, stdin }
}

impl Running {
    /// Returns the child's next report, or `None` if it has ended.
    pub(super) fn says(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.lines.read_line(&mut line).expect("the child's output is read") > 0 {
            if let Some(at) = line.find("=> ") {
                return Some(line[at + 3..].trim().to_owned());
            }
            line.clear();
        }
        None
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the child with SIGKILL.
    pub(super) fn kill(&mut self) {
        self.child.kill().expect("the child is killed");
        self.child.wait().expect("the child ended");
    }

    /// Tells the child to end, and waits for it.
    pub(super) fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().expect("the child ended").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The child may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "=> {line}").and_then(|()| out.flush()).expect("the parent reads");
}

fn wait_for_the_parent() {
    std::io::stdin().lines().for_each(drop);
}

#[test]
#[ignore = "run by other tests, as a process of their own"]
fn child() {
    let (Ok(role), Ok(path)) = (std::env::var(ROLE), std::env::var(PATH)) else { return };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let engine = Sqlite::open(path, Settings { create: true, ..Settings::default() }).await.expect("it opens");
        match role.as_str() {
            "append" => append(&engine).await,
            "read" => read(&engine).await,
            "hold" => hold(&engine).await,
            "until-lost" => until_lost(&engine).await,
            "fill" => fill(&engine).await,
            other => panic!("no role {other:?}"),
        }
    });
}

/// Runs sixteen appenders that never end. Each reports every acknowledged append.
async fn append(engine: &Arc<Sqlite>) {
    let log = open(engine, "events").await;
    let appenders: Vec<_> = (0..16)
        .map(|appender| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for n in 0.. {
                    let text = format!("{appender}-{n}");
                    let offset = log.append(0, vec![record("user", &text)]).await.expect("an append succeeds");
                    say(&format!("{offset} {text}"));
                }
            })
        })
        .collect();
    for appender in appenders {
        appender.await.expect("the appender never ends");
    }
}

/// Waits for one record with a long poll.
async fn read(engine: &Arc<Sqlite>) {
    let log = open(engine, "events").await;
    let end = log.latest(0).await.expect("the end is known");
    say("waiting");
    let fetched = log.fetch(0, end, 1 << 20, PATIENCE).await.expect("a fetch succeeds");
    say(fetched.events.first().map_or("nothing", |event| payload(&event.record)));
    wait_for_the_parent();
}

/// Holds the destination until it is told to end.
async fn hold(engine: &Arc<Sqlite>) {
    open(engine, "events").await;
    let group = join(engine, "file-1", "events", "digest-1", WhenHeld::Fail).await.expect("the group is free");
    say("held");
    wait_for_the_parent();
    group.leave().await;
}

/// Appends until an append fails, and then once more.
async fn until_lost(engine: &Arc<Sqlite>) {
    let log = open(engine, "events").await;
    let text = "x".repeat(2_000);
    let failure = loop {
        match log.append(0, vec![record("user", &text)]).await {
            Ok(offset) => say(&format!("ok {offset}")),
            Err(failure) => break failure,
        }
    };
    say(&format!("{:?} {}", failure.certainty, failure.code));
    let why = timeout(PATIENCE, engine.lost()).await.expect("the engine is lost");
    say(&format!("lost {why}"));
    let after = log.append(0, vec![record("user", "after")]).await.expect_err("a lost engine accepts nothing");
    say(&format!("{:?} {}", after.certainty, after.code));
}

/// Appends until the disk is full, reports it, makes room, and continues in the same process.
async fn fill(engine: &Arc<Sqlite>) {
    let ballast = engine.path().with_file_name("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).expect("there is room for the ballast");
    let log = open(engine, "events").await;
    let text = "x".repeat(20_000);
    let mut stored = 0;
    let failure = loop {
        match log.append(0, vec![record("user", &text)]).await {
            Ok(_) => stored += 1,
            Err(failure) => break failure,
        }
    };
    say(&format!("{:?} {}", failure.certainty, failure.code));
    std::fs::remove_file(&ballast).expect("the ballast is removed");
    let again = async {
        while let Err(failure) = log.append(0, vec![record("user", "again")]).await {
            assert_eq!(failure.code, FailureCode::LogFull, "{failure}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("it continues when there is room");
    let all = crate::conformance::read_all(&*log, 0, 0).await;
    say(&format!("again after {stored}: {}", all.len()));
}
