//! A Kafka cluster that one test starts with `compose/broker`. The test may kill, pause and restart its nodes.

use super::links::Links;
use super::wait::eventually;
use crate::conformance::unique;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

/// The nodes of one cluster. Dropping the value stops them, and deletes their data unless the test failed.
pub(crate) struct Broker {
    folder: PathBuf,
    addresses: String,
}

impl Broker {
    /// Starts the cluster without a topic, and waits until it answers.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        Self::start_in(folder_of(name), flags)
    }

    /// Starts three nodes whose traffic passes through [`Links`], so that each can be cut off from the others.
    pub(crate) fn start_linked(name: &str) -> (Self, Links) {
        let folder = folder_of(name);
        let links = Links::start(&folder);
        (Self::start_in(folder, &["--nodes", "3", "--links"]), links)
    }

    fn start_in(folder: PathBuf, flags: &[&str]) -> Self {
        let addresses = broker("start", &folder, &[&["--port", "0", "--no-topic"], flags].concat());
        Self { folder, addresses }
    }

    /// The nodes' addresses for clients: `host:port,…`.
    pub(crate) fn addresses(&self) -> &str {
        &self.addresses
    }

    /// The nodes' addresses for each other. They speak plain text there, whatever security clients have to use.
    pub(crate) fn internal(&self) -> String {
        std::fs::read_to_string(self.folder.join("internal")).unwrap().trim().to_owned()
    }

    /// Starts the nodes that do not run, on their old ports and with their data, and waits until they answer.
    pub(crate) fn start_again(&self) {
        broker("start", &self.folder, &[]);
    }

    /// Like [`start_again`](Self::start_again), with more flags. Settings that they change stay changed.
    pub(crate) fn start_again_with(&self, flags: &[&str]) {
        broker("start", &self.folder, flags);
    }

    /// Sends SIGKILL to a node and waits until its process has ended.
    pub(crate) fn kill(&self, node: i32) {
        let process = self.signal(node, "KILL");
        eventually(|| match std::fs::read_to_string(format!("/proc/{process}/stat")) {
            // A zombie only waits for its parent; it serves no requests any more.
            Ok(state) if !state.contains(") Z ") => Err(format!("node {node} is still there: {state}")),
            _ => Ok(()),
        });
    }

    /// Stops a node's process with SIGSTOP. [`Broker::resume`] continues it.
    pub(crate) fn pause(&self, node: i32) {
        self.signal(node, "STOP");
    }

    pub(crate) fn resume(&self, node: i32) {
        self.signal(node, "CONT");
    }

    fn signal(&self, node: i32, name: &str) -> String {
        let process = std::fs::read_to_string(self.folder.join(format!("node-{node}/pid"))).unwrap();
        super::program::signal(process.trim(), name);
        process.trim().to_owned()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // The nodes' logs help to understand a failure.
        let flags: &[&str] = if std::thread::panicking() { &["--now"] } else { &["--now", "--delete"] };
        broker("stop", &self.folder, flags);
    }
}

/// Fails the test because there is no Kafka. `cargo test` alone has none, and then dozens of tests fail for this one
/// reason: so the process says it once, and the tests fail without a message and a backtrace each.
pub(crate) fn fail_without_kafka() -> ! {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        // Not `eprintln!`: the test harness would capture it and print it once for every test.
        let line = b"no Kafka to test against: run `make test`, or set EVENTD_TEST_KAFKA=host:port\n";
        let _ = std::io::stderr().write_all(line);
    });
    // Unlike `panic!`, this does not run the panic hook, which prints.
    std::panic::resume_unwind(Box::new("no Kafka to test against"))
}

/// A new folder for the nodes of one broker. Only `make test` sets where they are, because it also stops the nodes of
/// tests that were killed.
fn folder_of(name: &str) -> PathBuf {
    let folder = std::env::var("EVENTD_TEST_BROKERS").unwrap_or_else(|_| fail_without_kafka());
    Path::new(&folder).join(unique(name))
}

/// Runs one of Kafka's own tools to its end and returns its output.
pub(crate) fn tool(name: &str, addresses: &str, arguments: &[&str]) -> String {
    run(&[&["tool", name, "--bootstrap-server", addresses], arguments].concat())
}

/// A command for one of Kafka's tools that runs until it is ended.
pub(crate) fn tool_command(name: &str, arguments: &[&str]) -> Command {
    let mut command = command(&[&["tool", name], arguments].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn broker(command: &str, folder: &Path, flags: &[&str]) -> String {
    run(&[&[command, "--dir", folder.to_str().unwrap()], flags].concat())
}

fn command(arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("compose/broker"));
    command.args(arguments).current_dir(root);
    command
}

fn run(arguments: &[&str]) -> String {
    let ended = command(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "compose/broker {arguments:?}: {}\n{out}\n{err}", ended.status);
    out.trim().to_owned()
}
