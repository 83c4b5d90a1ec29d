//! What the benchmark needs of an engine of the log. The embedded one is here; another one joins as another [`Store`],
//! and the table gets its columns.

use crate::child::own_usage;
use crate::report::Measured;
use crate::users::{self, Users};
use anyhow::{Context as _, ensure};
use eventd::core::event::{CONTENT_TYPE, ID, Record};
use eventd::core::partition::Partitioner;
use eventd::group::sqlite::committed;
use eventd::limits::FETCH_BYTES_MAX;
use eventd::log::sqlite::{Settings, Sqlite as Embedded};
use eventd::log::{CreateTopic, Engine, Log};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// The topic and its partitions, as the flags have them by default.
pub(crate) const TOPIC: &str = "user-events";
const PARTITIONS: u32 = 3;

/// Records in one append, of preloading and of the limit that is measured: what a busy ingest groups.
const APPEND_RECORDS: usize = 500;

/// A log of its own, gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    /// What `--url` is told.
    pub(crate) url: String,
    folder: TempDir,
}

/// Gives how many events a destination has settled. It is asked again and again while the destination works.
pub(crate) type Settled = Box<dyn FnMut() -> anyhow::Result<u64>>;

/// An engine of the log, as the benchmark uses it.
pub(crate) trait Store {
    /// The name of its columns.
    fn name(&self) -> &'static str;

    /// A log without events.
    fn empty(&self) -> anyhow::Result<Place>;

    /// A log with so many events of these users, of which no destination has read any.
    fn loaded(&mut self, users: Users, events: u64) -> anyhow::Result<Place>;

    /// Watches what the destination of this name settles.
    fn settled(&self, place: &Place, destination: &str) -> anyhow::Result<Settled>;

    /// How fast the engine alone takes events in: groups of 500, an appender a partition.
    fn raw_append(&self, events: u64) -> anyhow::Result<Measured>;

    /// How fast the engine alone gives events out: one partition behind the other.
    fn raw_fetch(&mut self, events: u64) -> anyhow::Result<Measured>;
}

/// Events as ingest would append them, in groups of 500 of a partition.
fn groups(users: Users, events: u64) -> Vec<(u32, Vec<Record>)> {
    let (mut full, mut open) = (Vec::new(), vec![Vec::new(); PARTITIONS as usize]);
    for (partition, record) in records(users, events) {
        let group = &mut open[partition as usize];
        group.push(record);
        if group.len() == APPEND_RECORDS {
            full.push((partition, std::mem::take(group)));
        }
    }
    full.extend((0..).zip(open).filter(|(_, group)| !group.is_empty()));
    full
}

/// Appends them: each partition's groups one behind the other, the partitions beside each other.
async fn append(log: &Arc<dyn Log>, groups: Vec<(u32, Vec<Record>)>) -> anyhow::Result<()> {
    let mut by_partition = vec![Vec::new(); PARTITIONS as usize];
    for (partition, group) in groups {
        by_partition[partition as usize].push(group);
    }
    let mut appenders = JoinSet::new();
    for (partition, groups) in (0..).zip(by_partition) {
        let log = Arc::clone(log);
        appenders.spawn(async move {
            for group in groups {
                log.append(partition, group).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = appenders.join_next().await {
        ended??;
    }
    Ok(())
}

/// The records of events as ingest would make them, each with its partition.
fn records(users: Users, events: u64) -> impl Iterator<Item = (u32, Record)> {
    let payload = users::payload();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis()).unwrap_or_default();
    let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
    (0..events).zip(users.draw()).map(move |(_, user)| {
        let (user, id) = (users::id(user), uuid::Uuid::now_v7().to_string());
        let headers: [(&str, Option<&[u8]>); 2] =
            [(ID, Some(id.as_bytes())), (CONTENT_TYPE, Some(b"text/plain; charset=utf-8"))];
        let record = Record::new(Some(user.as_bytes()), Some(payload.as_bytes()), &headers, now_ms);
        (Partitioner::default().partition(user.as_bytes(), PARTITIONS), record)
    })
}

async fn open(engine: &dyn Engine) -> anyhow::Result<Arc<dyn Log>> {
    let create = CreateTopic { partitions: PARTITIONS, retention: None };
    engine.open(TOPIC, Some(create)).await.context("open the topic")
}

/// Reads everything, and gives how many events there were.
async fn fetch_all(log: &dyn Log) -> anyhow::Result<u64> {
    let mut events = 0;
    for partition in 0..PARTITIONS {
        let mut from = 0;
        loop {
            let fetched = log.fetch(partition, from, FETCH_BYTES_MAX, Duration::ZERO).await?;
            events += fetched.events.len() as u64;
            from = fetched.next;
            if from >= fetched.latest {
                break;
            }
        }
    }
    Ok(events)
}

/// Runs the work and measures it with what this process used.
fn timed(events: u64, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (before, started) = (own_usage()?, Instant::now());
    runtime.block_on(work)?;
    let (elapsed, after) = (started.elapsed(), own_usage()?);
    Ok(Measured {
        events: Some(events as f64),
        events_s: Some(events as f64 / elapsed.as_secs_f64()),
        cpu_s: Some(after.cpu_s - before.cpu_s),
        ..Measured::default()
    })
}

/// The embedded engine. Logs that were loaded once are copied for each case.
#[derive(Debug)]
pub(crate) struct Sqlite {
    loaded: Vec<(Users, u64, TempDir)>,
}

impl Sqlite {
    pub(crate) fn new() -> Self {
        Self { loaded: Vec::new() }
    }

    /// The folder with a log of these events; made when it is first asked for.
    fn template(&mut self, users: Users, events: u64) -> anyhow::Result<&Path> {
        let index = match self.loaded.iter().position(|(u, n, _)| (*u, *n) == (users, events)) {
            Some(index) => index,
            None => {
                let folder = folder()?;
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                runtime.block_on(async {
                    let engine = engine(folder.path()).await?;
                    append(&open(&*engine).await?, groups(users, events)).await
                })?;
                closed(folder.path())?;
                self.loaded.push((users, events, folder));
                self.loaded.len() - 1
            }
        };
        Ok(self.loaded[index].2.path())
    }
}

impl Store for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn empty(&self) -> anyhow::Result<Place> {
        place(folder()?)
    }

    fn loaded(&mut self, users: Users, events: u64) -> anyhow::Result<Place> {
        let folder = folder()?;
        for entry in std::fs::read_dir(self.template(users, events)?)? {
            let entry = entry?;
            let copy = folder.path().join(entry.file_name());
            std::fs::copy(entry.path(), &copy)?;
            // Written back before the case begins: or its own syncs would wait for ours.
            std::fs::File::open(&copy)?.sync_all()?;
        }
        place(folder)
    }

    fn settled(&self, place: &Place, destination: &str) -> anyhow::Result<Settled> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (engine, destination) = (runtime.block_on(engine(place.folder.path()))?, destination.to_owned());
        Ok(Box::new(move || {
            let states = runtime.block_on(committed(&engine, &destination, TOPIC))?;
            // Offsets begin at 0 and have no gaps here, so they count events.
            let settled = states
                .iter()
                .flatten()
                .map(|state| state.watermark + state.settled.iter().map(|range| range.end - range.start).sum::<i64>());
            Ok(u64::try_from(settled.sum::<i64>())?)
        }))
    }

    fn raw_append(&self, events: u64) -> anyhow::Result<Measured> {
        let (folder, groups) = (folder()?, groups(Users::Uniform(1_000), events));
        timed(events, async {
            let engine = engine(folder.path()).await?;
            append(&open(&*engine).await?, groups).await
        })
    }

    fn raw_fetch(&mut self, events: u64) -> anyhow::Result<Measured> {
        let folder = self.template(Users::Uniform(1_000), events)?.to_owned();
        let measured = timed(events, async {
            let engine = engine(&folder).await?;
            let fetched = fetch_all(&*open(&*engine).await?).await?;
            ensure!(fetched == events, "{fetched} of {events} events fetched");
            Ok(())
        })?;
        closed(&folder)?;
        Ok(measured)
    }
}

const DATABASE: &str = "x.db";

/// How long closing a database may take: what its write-ahead log holds is copied.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);

fn folder() -> anyhow::Result<TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

fn place(folder: TempDir) -> anyhow::Result<Place> {
    Ok(Place { url: format!("sqlite:{}", folder.path().join(DATABASE).display()), folder })
}

/// Waits until the engine that was dropped has closed its files: the last one takes the write-ahead log with it.
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
