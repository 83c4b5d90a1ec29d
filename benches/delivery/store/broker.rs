//! A Kafka broker for the benchmark, started by `compose/broker` in a folder of its own. A keeper process stops it when
//! its own standard input ends. So the broker and its folder are gone however this program ends.
//!
//! ```text
//!   this process ── standard input ──▶ this program as `broker` ── compose/broker start, stop ──▶ the broker
//! ```

use anyhow::{Context as _, ensure};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compose/broker");

/// The script's own flags make the start fast but keep the hot paths from being compiled well. The garbage collector is
/// the script's, which suits few cores.
const JVM_FLAGS: &str = "-XX:+UseSerialGC";

/// Deleted topics leave the disk at once. By default this would happen a minute later, during another case.
const SETTINGS: &str = "log.segment.delete.delay.ms=1000";

/// A running broker, which ends with this value.
#[derive(Debug)]
pub(super) struct Broker {
    /// The address for clients.
    pub(super) address: String,
    keeper: Child,
    /// The keeper's standard input. `None` once it was told to end.
    until: Option<ChildStdin>,
}

impl Broker {
    pub(super) fn start() -> anyhow::Result<Self> {
        let mut keeper = Command::new(std::env::current_exe()?)
            .args(["--role", "broker"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt of the terminal must only reach this process. The keeper acts when this process ends.
            .process_group(0)
            .spawn()
            .context("start this program again")?;
        let answers = keeper.stdout.take().context("a child's standard output")?;
        let mut broker = Self { address: String::new(), until: keeper.stdin.take(), keeper };
        BufReader::new(answers).read_line(&mut broker.address)?;
        broker.address.truncate(broker.address.trim_end().len());
        ensure!(!broker.address.is_empty(), "compose/broker started no Kafka: see above");
        Ok(broker)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.until.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("the broker's keeper: {error}");
        }
    }
}

/// The role `broker`: starts a broker, prints its address, and stops it when standard input ends.
pub(crate) fn keep() -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let address = script(&["start", "--port", "0", "--no-topic", "--set", SETTINGS], folder.path())?;
    println!("{}", address.trim_end());
    std::io::stdin().lock().lines().for_each(drop);
    script(&["stop", "--now", "--delete"], folder.path()).map(drop)
}

/// Runs the script for the broker in this folder, and returns its output.
fn script(arguments: &[&str], folder: &Path) -> anyhow::Result<String> {
    let mut script = Command::new(SCRIPT);
    script.args(arguments).arg("--dir").arg(folder).env("KAFKA_JVM_PERFORMANCE_OPTS", JVM_FLAGS);
    let output = script.stderr(Stdio::inherit()).output().with_context(|| format!("run {SCRIPT}"))?;
    ensure!(output.status.success(), "compose/broker {} failed: {}", arguments[0], output.status);
    Ok(String::from_utf8(output.stdout)?)
}
