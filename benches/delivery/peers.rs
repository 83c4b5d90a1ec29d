//! The best peer that can be had as a package: Confluent Parallel Consumer with its Vert.x engine. Maven fetches its jars
//! once into `target/peers/`, and `benches/peers/Peer.java` is the program around it.

use crate::child::Helper;
use crate::store::{CommitWatch, Commits, Place};
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// Seconds that Maven may take.
const FETCH_TIMEOUT_S: &str = "600";

/// The most heap of the peer. Everything else of the JVM is its default.
const HEAP: &str = "-Xmx2g";

/// Requests at the same time. It is the default of eventd's `--concurrency`; the peer's own default is 16.
pub(crate) const CONCURRENCY: usize = 256;

/// How many records the peer keeps in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buffer {
    /// The peer grows it by itself, up to 100 times its concurrency.
    Default,
    /// The option `messageBufferSize`.
    Events(u32),
}

/// The program, ready to start.
#[derive(Debug)]
pub(crate) struct Peer {
    class_path: String,
    log: PathBuf,
}

impl Peer {
    /// Fetches the jars if they are missing, and compiles the program. Its log goes to the file `log`.
    pub(crate) fn prepare(log: PathBuf) -> anyhow::Result<Self> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
        let (jars, classes, ready) = (target.join("jars"), target.join("classes"), target.join("ready"));
        let pom = format!("{SOURCES}/pom.xml");
        let wanted = std::fs::read(&pom)?;
        if std::fs::read(&ready).ok().as_ref() != Some(&wanted) {
            eprintln!("fetching the peer into {}, once", target.display());
            std::fs::create_dir_all(&target)?;
            let mut maven = Command::new("timeout");
            maven.args([FETCH_TIMEOUT_S, "mvn", "-B", "-q", "-ntp", "--strict-checksums", "-f", &pom]);
            maven.arg("dependency:copy-dependencies").arg(format!("-DoutputDirectory={}", jars.display()));
            succeed(&mut maven).context("it needs Maven and Java 17, like compose/broker")?;
            // Written last: a fetch that was interrupted begins again.
            std::fs::write(&ready, wanted)?;
        }
        let class_path = format!("{}/*:{}", jars.display(), classes.display());
        let mut compile = Command::new("javac");
        compile
            .args(["-Xlint:-deprecation", "-cp", &class_path, "-d"])
            .arg(&classes)
            .arg(format!("{SOURCES}/Peer.java"));
        succeed(&mut compile)?;
        Ok(Self { class_path, log })
    }

    /// Starts a peer that posts every record of the topic to the sink.
    pub(crate) fn start(
        &self,
        place: &Place,
        sink: SocketAddr,
        concurrency: usize,
        buffer: Buffer,
    ) -> anyhow::Result<Helper> {
        let buffer = match buffer {
            Buffer::Default => 0,
            Buffer::Events(events) => events,
        };
        let [host, port] = [sink.ip().to_string(), sink.port().to_string()];
        self.run("deliver", place, &[&host, &port, &concurrency.to_string(), &buffer.to_string()])
    }

    /// Watches what the peer commits. It is a process of its own, so that it costs the peer nothing.
    pub(crate) fn commits(&self, place: &Place) -> anyhow::Result<CommitWatch> {
        let mut helper = self.run("lag", place, &[])?;
        Ok(Box::new(move || Ok(Commits { lag: helper.ask("lag")?.parse()?, parked_users: 0 })))
    }

    fn run(&self, role: &str, place: &Place, more: &[&str]) -> anyhow::Result<Helper> {
        let brokers = place.url.strip_prefix("kafka://").context("the peer needs Kafka")?;
        let mut java = Command::new("java");
        java.args([HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", &self.class_path, "Peer", role]);
        java.args([brokers, &place.topic, &place.destination]).args(more);
        java.stderr(File::options().create(true).append(true).open(&self.log)?);
        Ok(Helper::spawn("the peer", java)?.0)
    }
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} failed: {status}", command.get_program());
    Ok(())
}
