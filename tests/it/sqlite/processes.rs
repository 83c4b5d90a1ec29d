//! Runs the program on a database in a folder, and reads what it has stored.

use crate::conformance::{payload, read_all};
use crate::support::block_on;
use crate::support::client::Client;
use crate::support::program::Program;
use eventd::log::sqlite::{Settings, Sqlite};
use eventd::log::{Engine, OpenError};
use std::collections::BTreeSet;
use std::path::Path;

pub(super) const URL: [&str; 2] = ["--url", "sqlite:eventd.db"];

pub(super) fn ingest(folder: &Path) -> Program {
    Program::start(folder, &[&["ingest"], &URL[..], &["--listen", "127.0.0.1:0"]].concat())
}

/// Posts one event, which must be acknowledged.
pub(super) fn post(program: &Program, n: usize) {
    let body = format!(r#"[{{"UserID": "user-{}", "Payload": "{n}"}}]"#, n % 7);
    let answer = Client::connect(&program.address()).unwrap().post(&body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// The number of different events in the database.
pub(super) fn events_in(database: &Path) -> usize {
    block_on(async {
        let engine = Sqlite::open(database, Settings::default()).await.unwrap();
        let log = match engine.open("user-events", None).await {
            Err(OpenError::Missing { .. }) => return 0,
            log => log.unwrap(),
        };
        let mut found = BTreeSet::new();
        for partition in 0..log.partitions().await.unwrap() {
            found.extend(read_all(&*log, partition, 0).await.iter().map(|(_, record)| payload(record).to_owned()));
        }
        found.len()
    })
}
