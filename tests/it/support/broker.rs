//! A Kafka of a test's own, by `compose/broker`: it may be killed, paused, and started again with its data.

use super::links::Links;
use super::program::eventually;
use crate::conformance::unique;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The nodes of one broker, which end with the value; their data too, unless the test failed.
pub(crate) struct Broker {
    folder: PathBuf,
    addresses: String,
}

impl Broker {
    /// Starts it, without a topic, and waits until it answers.
    pub(crate) fn start(name: &str, flags: &[&str]) -> Self {
        Self::start_in(folder_of(name), flags)
    }

    /// Starts three nodes, of which each can be cut off from the others.
    pub(crate) fn start_linked(name: &str) -> (Self, Links) {
        let folder = folder_of(name);
        let links = Links::start(&folder);
        (Self::start_in(folder, &["--nodes", "3", "--links"]), links)
    }

    fn start_in(folder: PathBuf, flags: &[&str]) -> Self {
        let addresses = broker("start", &folder, &[&["--port", "0", "--no-topic"], flags].concat());
        Self { folder, addresses }
    }

    /// Where its nodes take clients: `host:port,…`.
    pub(crate) fn addresses(&self) -> &str {
        &self.addresses
    }

    /// Where its nodes take each other, and whoever wants to: in plain text, whatever clients have to speak.
    pub(crate) fn internal(&self) -> String {
        std::fs::read_to_string(self.folder.join("internal")).unwrap().trim().to_owned()
    }

    /// Starts the nodes that do not run, on their ports and with their data, and waits until they answer.
    pub(crate) fn start_again(&self) {
        broker("start", &self.folder, &[]);
    }

    /// Like [`start_again`](Self::start_again), with these flags: settings hold from now on.
    pub(crate) fn start_again_with(&self, flags: &[&str]) {
        broker("start", &self.folder, flags);
    }

    /// SIGKILL to a node; gives back once it is gone.
    pub(crate) fn kill(&self, node: i32) {
        let process = self.signal(node, "KILL");
        eventually(|| match std::fs::read_to_string(format!("/proc/{process}/stat")) {
            // A zombie waits for its parent, and does nothing any more.
            Ok(state) if !state.contains(") Z ") => Err(format!("node {node} is still there: {state}")),
            _ => Ok(()),
        });
    }

    /// Stops a node where it stands, until [`Broker::go_on`].
    pub(crate) fn pause(&self, node: i32) {
        self.signal(node, "STOP");
    }

    pub(crate) fn go_on(&self, node: i32) {
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
        // What it logged is worth a look after a failure.
        let flags: &[&str] = if std::thread::panicking() { &["--now"] } else { &["--now", "--delete"] };
        broker("stop", &self.folder, flags);
    }
}

fn folder_of(name: &str) -> PathBuf {
    let folder = std::env::var("EVENTD_TEST_BROKERS").expect("EVENTD_TEST_BROKERS names a folder for brokers");
    Path::new(&folder).join(unique(name))
}

/// One of Kafka's own tools, and what it said.
pub(crate) fn tool(name: &str, addresses: &str, arguments: &[&str]) -> String {
    run(&[&["tool", name, "--bootstrap-server", addresses], arguments].concat())
}

/// One that goes on until it is ended.
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
