//! `eventd replay`, tested through the program: on the embedded log, and the most important parts on Kafka too.

mod bad_input;
mod dead;
mod incident;
mod kafka;
mod million;
mod range;
mod resume;
mod rewind;
mod signed;
mod terminal;
mod times;

use crate::support::client::Client;
use crate::support::program::{Ending, Program, command, run};
use crate::support::receiver::{Hook, Receiver, bodies};
use eventd::log::Engine;
use eventd::log::kafka::Kafka;
use eventd::log::sqlite::Sqlite;
use eventd::net::BrokerSettings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A log whose events were delivered to the destination `hook`, which is a receiver of the test.
struct Delivered {
    folder: TempDir,
    /// `--url` and the flags after it.
    url: Vec<String>,
    receiver: Receiver,
    /// For each user, the payloads that were sent, in order.
    sent: BTreeMap<String, Vec<String>>,
}

const USERS: u64 = 12;

impl Delivered {
    /// Creates the embedded log with this many events of twelve users in turn, all delivered and committed.
    fn new(events: u64) -> Self {
        let mut delivered = Self::empty(&["--url", "sqlite:log.db"]);
        let up = delivered.up();
        delivered.post(&up, 0..events);
        delivered.receiver.wait_for(events as usize);
        assert_eq!(up.stop().code(), 0, "everything must be committed");
        delivered.receiver.take();
        delivered
    }

    fn empty(url: &[&str]) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            url: url.iter().map(|text| (*text).to_owned()).collect(),
            receiver: Receiver::start(),
            sent: BTreeMap::new(),
        }
    }

    /// The log itself, for records that no client of ingest could write.
    async fn engine(&self) -> Arc<dyn Engine> {
        match self.url[1].strip_prefix("sqlite:") {
            Some(file) => {
                let settings = eventd::log::sqlite::Settings { create: true, ..Default::default() };
                Sqlite::open(self.folder().join(file), settings).await.unwrap()
            }
            None => Kafka::connect(BrokerSettings::plain(vec![self.url[1].clone()])).await.unwrap(),
        }
    }

    fn topic(&self) -> &str {
        self.url.get(3).map_or("user-events", String::as_str)
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn destination(&self) -> String {
        format!("hook={}", self.receiver.url)
    }

    fn arguments(&self, mode: &str, more: &[&str]) -> Vec<String> {
        let own = [mode.to_owned()].into_iter().chain(self.url.clone());
        own.chain(more.iter().map(|text| (*text).to_owned())).collect()
    }

    fn start(&self, mode: &str, more: &[&str]) -> Program {
        let arguments = self.arguments(mode, more);
        Program::start(self.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs ingest and the delivery to `hook` in one process.
    fn up(&self) -> Program {
        self.start("up", &["--listen", "127.0.0.1:0", "--dest", &self.destination()])
    }

    /// Posts the events with these numbers. The payload is the number, and the id is `e` and the number.
    fn post(&mut self, ingest: &Program, numbers: std::ops::Range<u64>) {
        let mut client = Client::connect(&ingest.address()).unwrap();
        let numbers: Vec<u64> = numbers.collect();
        for chunk in numbers.chunks(500) {
            let event = |n: &u64| format!(r#"{{"UserID":"user-{}","Payload":"{n}","ID":"e{n}"}}"#, n % USERS);
            let answer = client.post(&format!("[{}]", chunk.iter().map(event).collect::<Vec<_>>().join(","))).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
            for n in chunk {
                self.sent.entry(format!("user-{}", n % USERS)).or_default().push(n.to_string());
            }
        }
    }

    fn replaying(&self, more: &[&str]) -> Program {
        self.start("replay", &[&["--dest", &self.destination()], more].concat())
    }

    /// Runs a replay to its end.
    fn replay(&self, more: &[&str]) -> Ending {
        self.replaying(more).end()
    }

    /// The plan as JSON, which delivers nothing.
    fn plan(&self, more: &[&str]) -> Value {
        let ending = self.replay(&[&["--json"], more].concat());
        assert_eq!(ending.code(), 0, "{}", ending.said);
        json_lines(&ending).remove(0)
    }

    /// All replays of the list, oldest first.
    fn listed(&self) -> Vec<Value> {
        let arguments = self.arguments("replay", &["--list", "--json"]);
        let ending = run(self.folder(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ending.code(), 0, "{}", ending.said);
        json_lines(&ending)
    }

    /// The id of the only replay.
    fn id(&self) -> String {
        let listed = self.listed();
        assert_eq!(listed.len(), 1, "{listed:?}");
        listed[0]["id"].as_str().unwrap().to_owned()
    }
}

/// The lines of standard output that are JSON.
fn json_lines(ending: &Ending) -> Vec<Value> {
    ending.said.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// For each user, the payloads in the order of their first delivery. Repetitions are left out.
fn without_repeats(hooks: &[Hook]) -> BTreeMap<String, Vec<String>> {
    let mut seen = bodies(hooks);
    for payloads in seen.values_mut() {
        let mut met = std::collections::HashSet::new();
        payloads.retain(|payload| met.insert(payload.clone()));
    }
    seen
}

/// After a crash between two commits, an event may be delivered again, together with the later ones of its user and in
/// order.
fn assert_in_order(hooks: &[Hook]) {
    for (user, payloads) in bodies(hooks) {
        let numbers: Vec<u64> = payloads.iter().map(|payload| payload.parse().unwrap()).collect();
        let mut highest = 0;
        for pair in numbers.windows(2) {
            highest = highest.max(pair[0]);
            let advances = pair[1] == pair[0] + USERS;
            let steps_back = pair[1] <= highest;
            assert!(advances || steps_back, "{user}: {} after {}", pair[1], pair[0]);
        }
    }
}
