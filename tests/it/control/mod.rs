//! `eventd control`, through the program, beside processes that deliver: on the embedded log and on Kafka.

mod destination;
mod refused;
mod users;

use crate::conformance::unique;
use crate::kafka::address;
use crate::support::client::Client;
use crate::support::program::{Ending, Program, command, run};
use crate::support::receiver::Receiver;
use crate::support::wait::eventually;
use serde_json::Value;
use std::time::Duration;
use tempfile::TempDir;

const USERS: u64 = 6;

/// A log with an ingest, and a receiver for the destination `hook`.
struct Controlled {
    folder: TempDir,
    /// `--url` and `--topic`.
    log: Vec<String>,
    receiver: Receiver,
    ingest: Option<Program>,
}

impl Controlled {
    fn on_sqlite() -> Self {
        Self::new(vec!["--url".into(), "sqlite:log.db".into()], &[])
    }

    fn on_kafka() -> Self {
        let log = ["--url", &address(), "--topic", &unique("controlled")].map(str::to_owned);
        Self::new(log.to_vec(), &["--create-topic"])
    }

    fn new(log: Vec<String>, more: &[&str]) -> Self {
        let mut controlled =
            Self { folder: tempfile::tempdir().unwrap(), log, receiver: Receiver::start(), ingest: None };
        let ingest = controlled.start("ingest", &[&["--listen", "127.0.0.1:0"], more].concat());
        ingest.address();
        controlled.ingest = Some(ingest);
        controlled
    }

    fn arguments(&self, command: &[&str], more: &[&str]) -> Vec<String> {
        let all = command.iter().map(|text| (*text).to_owned()).chain(self.log.clone());
        all.chain(more.iter().map(|text| (*text).to_owned())).collect()
    }

    fn start(&self, command: &str, more: &[&str]) -> Program {
        let arguments = self.arguments(&[command], more);
        Program::start(self.folder.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn dispatch(&self, more: &[&str]) -> Program {
        let destination = format!("hook={}", self.receiver.url);
        let backoff: &[&str] = if more.contains(&"--backoff-max") { &[] } else { &["--backoff-max", "500ms"] };
        self.start("dispatch", &[&["--dest", &destination], backoff, more].concat())
    }

    /// Runs `eventd control` with these words to its end.
    fn control(&self, words: &[&str]) -> Ending {
        self.control_of("hook", words)
    }

    fn control_of(&self, destination: &str, words: &[&str]) -> Ending {
        // A flag must not be given twice.
        let log = if words.contains(&"--topic") { &self.log[..2] } else { &self.log[..] };
        let log: Vec<&str> = log.iter().map(String::as_str).collect();
        let arguments = [&["control"], &log[..], words, &["--dest", destination]].concat();
        run(self.folder.path(), &arguments)
    }

    /// Gives a command, which every owner must apply.
    fn applied(&self, words: &[&str]) -> String {
        let ending = self.control(&[words, &["--wait", "60s"]].concat());
        assert_eq!(ending.code(), 0, "{words:?}: {}", ending.said);
        assert!(ending.said.contains("applied: "), "{words:?}: {}", ending.said);
        ending.said
    }

    /// Gives a command, and returns what it prints with `--json`: the plan and the result.
    fn json(&self, words: &[&str]) -> Vec<Value> {
        let ending = self.control(&[words, &["--json"]].concat());
        let lines = ending.said.lines().filter(|line| line.starts_with('{'));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Posts one event for each number. The payload is the number.
    fn post(&self, numbers: std::ops::Range<u64>) {
        let mut client = Client::connect(&self.ingest.as_ref().unwrap().address()).unwrap();
        let event = |n| format!(r#"{{"UserID":"user-{}","Payload":"{n}","ID":"e{n}"}}"#, n % USERS);
        let events: Vec<String> = numbers.map(event).collect();
        let answer = client.post(&format!("[{}]", events.join(","))).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    /// The payloads that the receiver has accepted of this user, in their order.
    fn payloads(&self, user: &str) -> Vec<u64> {
        let hooks = self.receiver.take();
        hooks.iter().filter(|hook| hook.user() == user).map(|hook| hook.body.parse().unwrap()).collect()
    }
}

/// Long enough that an owner would have started an attempt, if it were allowed to.
const A_WHILE: Duration = Duration::from_millis(700);
