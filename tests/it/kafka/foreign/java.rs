//! Kafka's own client at work: a scene of `Foreign.java` as a child process, and what it tells of records.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use eventd::core::event::Record;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A record as its writer or another reader tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// Not of a transaction that was aborted.
    pub(super) given: bool,
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) record: Record,
}

/// A scene that is played. It ends by itself, at the latest once its input is closed: also where its test has failed.
pub(super) struct Java {
    scene: String,
    child: Child,
    lines: BufReader<ChildStdout>,
    stdin: Option<ChildStdin>,
}

impl Java {
    pub(super) fn start(address: &str, scene: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join("compose/broker"))
            .arg("java")
            .arg(root.join("tests/it/kafka/foreign/Foreign.java"))
            .arg(address)
            .args(scene)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("compose/broker runs");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { scene: scene.join(" "), stdin: child.stdin.take(), child, lines }
    }

    /// What it tells of records until it says this.
    pub(super) fn until(&mut self, said: &str) -> Vec<Told> {
        let mut told = Vec::new();
        loop {
            let line = self.line();
            match line.strip_prefix("=> ") {
                Some(now) if now == said => return told,
                Some(_) => {}
                None => told.push(parse(&line)),
            }
        }
    }

    /// Its next line, whatever it is.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).expect("its output is read");
        assert!(read > 0, "{} ended early: what it said of it stands above", self.scene);
        line.truncate(line.trim_end_matches('\n').len());
        line
    }

    /// Gives it a line.
    pub(super) fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// Lets a scene that waits go on.
    pub(super) fn resume(&mut self) {
        self.tell("");
    }

    /// Waits for its end.
    pub(super) fn end(mut self) {
        drop(self.stdin.take());
        let ended = self.child.wait().expect("it ends");
        assert!(ended.success(), "{}: {ended}", self.scene);
    }
}

fn parse(line: &str) -> Told {
    let mut fields = line.split('\t');
    let mut next = || fields.next().unwrap_or_else(|| panic!("a line that is cut short: {line}"));
    let given = match next() {
        "given" => true,
        "aborted" => false,
        other => panic!("{other:?}: {line}"),
    };
    let (topic, partition, offset) = (next().to_owned(), next().parse().unwrap(), next().parse().unwrap());
    let timestamp = next().parse().unwrap();
    let (key, value) = (bytes(next()), bytes(next()));
    let headers: Vec<(String, Option<Vec<u8>>)> = fields
        .map(|header| {
            let (name, value) = header.split_once(':').unwrap_or_else(|| panic!("{header:?}: {line}"));
            (String::from_utf8(bytes(name).unwrap()).unwrap(), bytes(value))
        })
        .collect();
    let headers: Vec<(&str, Option<&[u8]>)> =
        headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    Told { given, topic, partition, offset, record: Record::new(key.as_deref(), value.as_deref(), &headers, timestamp) }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    (text != "-").then(|| BASE64_STANDARD.decode(text).unwrap_or_else(|error| panic!("{error}: {text}")))
}
