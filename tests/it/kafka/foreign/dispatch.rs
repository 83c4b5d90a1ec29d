//! Runs `eventd dispatch` to a file, and compares the file with what was written to the topic.

use super::java::WrittenRecord;
use super::raw;
use crate::conformance::unique;
use crate::support::program::Program;
use crate::support::wait::{PATIENCE, eventually};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use eventd::core::event::Event;
use eventd::kafka::Cluster;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// A line of a destination's file, with any content.
#[derive(Debug, Deserialize)]
struct Line {
    user: Option<String>,
    user_base64: Option<String>,
    payload: Option<String>,
    payload_base64: Option<String>,
    id: String,
    partition: u32,
    offset: i64,
    timestamp: Option<String>,
}

impl Line {
    fn bytes(text: Option<&String>, base64: Option<&String>) -> Option<Vec<u8>> {
        text.map(|text| text.clone().into_bytes()).or_else(|| base64.map(|text| BASE64_STANDARD.decode(text).unwrap()))
    }

    fn user(&self) -> Option<Vec<u8>> {
        Self::bytes(self.user.as_ref(), self.user_base64.as_ref())
    }

    fn payload(&self) -> Option<Vec<u8>> {
        Self::bytes(self.payload.as_ref(), self.payload_base64.as_ref())
    }
}

fn lines(path: &Path) -> Vec<Line> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// A running `eventd dispatch` of one topic to a file, in a group of its own.
pub(super) struct Dispatch {
    pub(super) program: Program,
    folder: tempfile::TempDir,
    topic: String,
    group: String,
}

impl Dispatch {
    pub(super) fn start(address: &str, topic: &str) -> Self {
        let (folder, group) = (tempfile::tempdir().unwrap(), unique("file"));
        // The window is far smaller than a batch. Events that do not fit have to wait and must not be lost.
        let delivery = ["--dest", "file-1", "--name", &group, "--window", "50"];
        let log = ["--url", address, "--topic", topic];
        let program = Program::start(folder.path(), &[&["dispatch"], &log[..], &delivery].concat());
        Self { program, folder, topic: topic.to_owned(), group }
    }

    /// Waits until the file has this many lines.
    fn delivered(&self, count: usize) -> Vec<Line> {
        eventually(|| match lines(&self.folder.path().join("file-1")) {
            lines if lines.len() >= count => Ok(lines),
            lines => Err(format!("{} of {count} lines; eventd said\n{}", lines.len(), self.program.lines())),
        })
    }

    /// Waits until the group has committed this offset.
    pub(super) async fn committed(&self, cluster: &Cluster, partition: u32, offset: i64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let committed = raw::committed(cluster, &self.group, &self.topic, partition).await;
            if committed == offset {
                return;
            }
            let now = tokio::time::Instant::now();
            assert!(now < deadline, "{} {partition}: {committed} is committed, expected {offset}", self.topic);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Checks that the file has each written record once, unchanged, and in order for each user.
    pub(super) fn assert_delivered(&self, reported: &[WrittenRecord]) {
        let mut written: HashMap<(u32, i64), &WrittenRecord> = reported
            .iter()
            .filter(|reported| reported.is_committed && reported.topic == self.topic)
            .map(|reported| ((reported.partition, reported.offset), reported))
            .collect();
        let mut last = HashMap::new();
        for line in self.delivered(written.len()) {
            let place = (line.partition, line.offset);
            let Some(reported) = written.remove(&place) else { panic!("never written, or delivered twice: {line:?}") };
            let record = &reported.record;
            assert_eq!(line.payload().as_deref(), record.value(), "{line:?}");
            assert_eq!(line.user().as_deref(), record.key(), "{line:?}");
            let event = Event { offset: reported.offset, record: record.clone() };
            assert_eq!(line.id, event.id(&self.topic, reported.partition), "{line:?}");
            let time = UNIX_EPOCH + Duration::from_millis(record.timestamp_ms.try_into().unwrap());
            assert_eq!(line.timestamp, Some(humantime::format_rfc3339_millis(time).to_string()), "{line:?}");
            let before = last.insert((line.partition, line.user()), line.offset);
            assert!(before < Some(line.offset), "after {before:?}: {line:?}");
        }
        assert!(written.is_empty(), "never delivered: {:?}", written.keys());
    }
}
