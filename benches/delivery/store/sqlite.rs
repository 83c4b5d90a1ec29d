//! The embedded log, with one database file for each case. A case that reads gets a copy of a loaded database.

use super::{
    CommitWatch, Content, PARTITIONS, Place, Settled, Store, append, commit_all, commits, count, fetch_all, groups,
    open, timed,
};
use crate::report::Measured;
use crate::users::Users;
use anyhow::{Context as _, ensure};
use eventd::group::sqlite::{SqliteGroups, join};
use eventd::group::{Groups, WhenHeld};
use eventd::log::sqlite::{Settings, Sqlite as Embedded};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The default of the flag `--topic`.
const TOPIC: &str = "user-events";

/// Records in one append, for loading and for the limit. A busy ingest groups as many.
const APPEND_RECORDS: usize = 500;

/// The embedded engine.
#[derive(Debug)]
pub(crate) struct Sqlite {
    loaded: Vec<(Content, TempDir)>,
}

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self { loaded: Vec::new() }
    }

    /// The folder with a log of these events. It is created when it is first needed.
    fn template(&mut self, content: Content) -> anyhow::Result<&Path> {
        let index = match self.loaded.iter().position(|(loaded, _)| *loaded == content) {
            Some(index) => index,
            None => {
                let folder = folder()?;
                load(folder.path(), content)?;
                self.loaded.push((content, folder));
                self.loaded.len() - 1
            }
        };
        Ok(self.loaded[index].1.path())
    }
}

impl Store for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn empty(&mut self) -> anyhow::Result<Place> {
        place(folder()?)
    }

    fn loaded(&mut self, content: Content) -> anyhow::Result<Place> {
        let folder = folder()?;
        for entry in std::fs::read_dir(self.template(content)?)? {
            let entry = entry?;
            let copy = folder.path().join(entry.file_name());
            std::fs::copy(entry.path(), &copy)?;
            // Written back before the case begins, because the case's own syncs would have to wait for it.
            std::fs::File::open(&copy)?.sync_all()?;
        }
        place(folder)
    }

    fn load(&self, place: &Place, content: Content) -> anyhow::Result<()> {
        load(place.database_folder()?, content)
    }

    fn settle(&self, place: &Place) -> anyhow::Result<()> {
        let folder = place.database_folder()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let engine = engine(folder).await?;
            let log = open(&*engine, TOPIC, PARTITIONS).await?;
            let group = join(&engine, &place.destination, TOPIC, "", WhenHeld::Fail).await?;
            commit_all(&*log, &*group).await
        })?;
        closed(folder)
    }

    fn settled(&self, place: &Place) -> anyhow::Result<Settled> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (engine, destination) = (runtime.block_on(engine(place.database_folder()?))?, place.destination.clone());
        let log = runtime.block_on(open(&*engine, TOPIC, PARTITIONS))?;
        let groups = SqliteGroups::new(engine);
        Ok(Box::new(move || {
            let states = runtime.block_on(groups.committed(&destination, &log))?;
            states.iter().flatten().map(count).sum()
        }))
    }

    fn commits(&self, place: &Place) -> anyhow::Result<CommitWatch> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (engine, destination) = (runtime.block_on(engine(place.database_folder()?))?, place.destination.clone());
        let log = runtime.block_on(open(&*engine, TOPIC, PARTITIONS))?;
        let groups = SqliteGroups::new(engine);
        Ok(Box::new(move || runtime.block_on(commits(&groups, &destination, &log))))
    }

    fn raw_append(&mut self, events: u64) -> anyhow::Result<Measured> {
        let (folder, groups) = (folder()?, groups(Content::of(Users::Uniform(1_000), events), APPEND_RECORDS));
        timed(events, async {
            let engine = engine(folder.path()).await?;
            append(&open(&*engine, TOPIC, PARTITIONS).await?, groups).await
        })
    }

    fn raw_fetch(&mut self, events: u64) -> anyhow::Result<Measured> {
        let folder = self.template(Content::of(Users::Uniform(1_000), events))?.to_owned();
        let measured = timed(events, async {
            let engine = engine(&folder).await?;
            let (log, mut fetched) = (open(&*engine, TOPIC, PARTITIONS).await?, 0);
            for partition in 0..PARTITIONS {
                fetched += fetch_all(&*log, partition).await?;
            }
            ensure!(fetched == events, "{fetched} of {events} events fetched");
            Ok(())
        })?;
        closed(&folder)?;
        Ok(measured)
    }
}

const DATABASE: &str = "x.db";

/// How long closing a database may take, which includes copying its write-ahead log.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);

impl Place {
    fn database_folder(&self) -> anyhow::Result<&Path> {
        Ok(self.folder.as_ref().context("a database has a folder")?.path())
    }
}

/// Appends these events to the database in the folder, which is created if it is missing.
fn load(folder: &Path, content: Content) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let engine = engine(folder).await?;
        append(&open(&*engine, TOPIC, content.partitions).await?, groups(content, APPEND_RECORDS)).await
    })?;
    closed(folder)
}

fn folder() -> anyhow::Result<TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

fn place(folder: TempDir) -> anyhow::Result<Place> {
    Ok(Place {
        url: format!("sqlite:{}", folder.path().join(DATABASE).display()),
        topic: TOPIC.into(),
        destination: "bench".into(),
        folder: Some(folder),
    })
}

/// Waits until the dropped engine has closed its files. The last connection removes the write-ahead log.
fn closed(folder: &Path) -> anyhow::Result<()> {
    let (wal, deadline) = (folder.join(format!("{DATABASE}-wal")), Instant::now() + CLOSED_WITHIN);
    while wal.exists() {
        ensure!(Instant::now() < deadline, "{} is still there after {CLOSED_WITHIN:?}", wal.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

async fn engine(folder: &Path) -> anyhow::Result<Arc<Embedded>> {
    let settings = Settings { create: true, ..Settings::default() };
    Ok(Embedded::open(folder.join(DATABASE), settings).await?)
}
