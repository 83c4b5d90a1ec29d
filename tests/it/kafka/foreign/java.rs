//! Kafka's own client: runs a scene of `Foreign.java` as a child process, and reads what it reports about records.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use eventd::core::event::Record;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A record as its writer or another reader reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WrittenRecord {
    /// False if the record's transaction was aborted.
    pub(super) is_committed: bool,
    pub(super) topic: String,
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) record: Record,
}

/// A running scene. It ends by itself, at the latest when its input is closed, which also happens if the test fails.
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
            .expect("compose/broker starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        Self { scene: scene.join(" "), stdin: child.stdin.take(), child, lines }
    }

    /// Returns the records that it reports before it prints `said`.
    pub(super) fn until(&mut self, said: &str) -> Vec<WrittenRecord> {
        let mut reported = Vec::new();
        loop {
            let line = self.line();
            match line.strip_prefix("=> ") {
                Some(now) if now == said => return reported,
                Some(_) => {}
                None => reported.push(parse(&line)),
            }
        }
    }

    /// Reads its next line.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).expect("its output can be read");
        assert!(read > 0, "{} ended early, see its output above", self.scene);
        line.truncate(line.trim_end_matches('\n').len());
        line
    }

    /// Writes a line to its input.
    pub(super) fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        writeln!(stdin, "{line}").expect("it reads its input");
    }

    /// Continues a scene that waits.
    pub(super) fn resume(&mut self) {
        self.tell("");
    }

    /// Waits until it has ended.
    pub(super) fn end(mut self) {
        drop(self.stdin.take());
        let ended = self.child.wait().expect("it ends by itself");
        assert!(ended.success(), "{}: {ended}", self.scene);
    }
}

fn parse(line: &str) -> WrittenRecord {
    let mut fields = line.split('\t');
    let mut next = || fields.next().unwrap_or_else(|| panic!("an incomplete line: {line}"));
    let is_committed = match next() {
        "committed" => true,
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
    WrittenRecord {
        is_committed,
        topic,
        partition,
        offset,
        record: Record::new(key.as_deref(), value.as_deref(), &headers, timestamp),
    }
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    (text != "-").then(|| BASE64_STANDARD.decode(text).unwrap_or_else(|error| panic!("{error}: {text}")))
}
