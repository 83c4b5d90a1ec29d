//! The embedded log: the suite of all engines, and what only a file that several processes share can do wrong.

mod child;
mod commits;
mod damage;
mod delivery;
mod file;
mod ownership;
mod processes;
mod quota;
mod retention;
mod rights;
mod trouble;
mod whole;

use crate::conformance::Fixture;
use eventd::BoxFuture;
use eventd::core::progress::OffsetReset;
use eventd::group::sqlite::{SqliteGroups, join};
use eventd::group::{Group, Groups, WhenHeld};
use eventd::log::sqlite::{Settings, Sqlite};
use eventd::log::{CreateTopic, Engine, Log};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

crate::conformance::suite!(super::fixture);

/// A database in a folder of its own.
struct Embedded {
    folder: TempDir,
    engine: Arc<Sqlite>,
}

async fn fixture() -> Embedded {
    with(Settings::default()).await
}

/// Opens a new database with these settings, in which `create` is set.
async fn with(settings: Settings) -> Embedded {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("eventd.db");
    let engine = Sqlite::open(path, Settings { create: true, ..settings }).await.expect("a new database opens");
    Embedded { folder, engine }
}

impl Embedded {
    fn path(&self) -> PathBuf {
        self.folder.path().join("eventd.db")
    }

    /// Opens the same file again, as another process would.
    async fn again(&self) -> Arc<Sqlite> {
        Sqlite::open(self.path(), Settings::default()).await.expect("an existing database opens")
    }

    async fn topic(&self, name: &str) -> Arc<dyn Log> {
        open(&self.engine, name).await
    }

    /// Opens the file with plain SQLite, as another program would.
    fn plain(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path()).expect("the database opens with plain SQLite")
    }
}

/// Opens the topic, and creates it with one partition if it is missing.
async fn open(engine: &Arc<Sqlite>, name: &str) -> Arc<dyn Log> {
    let create = CreateTopic { partitions: 1, retention: None };
    engine.open(name, Some(create)).await.expect("the topic opens")
}

impl Fixture for Embedded {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine) as Arc<dyn Engine>
    }

    fn join<'a>(&'a self, name: &'a str, topic: &'a str) -> BoxFuture<'a, Arc<dyn Group>> {
        Box::pin(
            async move { join(&self.engine, name, topic, "digest", WhenHeld::Fail).await.expect("the group is free") },
        )
    }

    fn request_reset<'a>(
        &'a self,
        name: &'a str,
        topic: &'a str,
        partition: u32,
        wanted: OffsetReset,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let log = self.engine.open(topic, None).await.expect("the topic exists");
            let (groups, resets) = (SqliteGroups::new(self.engine.clone()), BTreeMap::from([(partition, wanted)]));
            groups.request_resets(name, &log, &resets).await.expect("the reset is requested");
            groups.apply_resets_if_unowned(name, &log, "digest", &resets).await.expect("the database answers")
        })
    }

    fn replace_commit<'a>(
        &'a self,
        name: &'a str,
        _topic: &'a str,
        partition: u32,
        format: char,
        text: &'a str,
    ) -> BoxFuture<'a, ()> {
        let replace = "UPDATE commits SET settled = ?1 WHERE name = ?2 AND partition = ?3";
        let replaced = self.plain().execute(replace, (format!("{format}{text}"), name, partition));
        assert_eq!(replaced, Ok(1));
        Box::pin(std::future::ready(()))
    }
}
