//! A group of the embedded log: one process a destination, held by a lock of the operating system.
//!
//! ```text
//!  join ── lock <db>.<name>.lock ──▶ epoch + 1 ──▶ every partition is given ──▶ commits carry the epoch
//! ```
//!
//! The lock dies with its process, so nothing has to time out, and nothing leases an attempt. The file stays: removing
//! it would let two processes hold two files of one name. The epoch is a second line: if the lock file is deleted by
//! hand and another process joins, the first one's commits are refused.

use super::{Change, Group, Groups, Holder, JoinError, JoinOptions, PastCommits, WhenHeld};
use crate::BoxFuture;
use crate::clock::now_ms;
use crate::core::names;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::core::side_topics::rewind_group;
use crate::limits::{GROUP_NAME_CHARS_MAX, LOCK_TEXT_BYTES_MAX, STANDBY_INTERVAL};
use crate::log::Log;
use crate::log::sqlite::Sqlite;
use crate::sqlite::{Database, GroupCommit, ReadError, TopicRow, Write};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// The groups of an embedded log.
#[derive(Debug)]
pub struct SqliteGroups(Arc<Sqlite>);

impl SqliteGroups {
    pub fn new(engine: Arc<Sqlite>) -> Self {
        Self(engine)
    }
}

impl Groups for SqliteGroups {
    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(join(&self.0, name, log.topic(), &options.digest, options.when_held))
    }

    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(join(&self.0, name, log.topic(), digest, WhenHeld::Fail))
    }

    fn past_commits<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>> {
        Box::pin(async move {
            let has_commits = committed(&self.0, name, log.topic()).await?.iter().any(Option::is_some);
            Ok(if has_commits { PastCommits::Found } else { PastCommits::None })
        })
    }

    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>> {
        Box::pin(committed(&self.0, name, log.topic()))
    }

    fn request_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>> {
        Box::pin(request(&self.0, name, log.topic(), resets))
    }

    fn requested_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>> {
        Box::pin(requested(&self.0, name, log.topic()))
    }

    fn apply_resets_if_unowned<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(apply_unowned(&self.0, name, log.topic(), digest, resets))
    }

    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(forget(&self.0, name, log.topic()))
    }
}

/// Joins the group `name` for a topic: takes its lock, or does what `when_held` says. `digest` tells its destination
/// from another one under the same name. Dropping the future, or the group, gives the lock back.
pub async fn join(
    engine: &Arc<Sqlite>,
    name: &str,
    topic: &str,
    digest: &str,
    when_held: WhenHeld,
) -> Result<Arc<dyn Group>, JoinError> {
    check_name(name)?;
    let database = Arc::clone(engine.database());
    let topic = find(&database, topic).await?;
    let path = lock_path(database.path(), name);
    let lock = loop {
        match take(&path, database.path(), digest).map_err(|error| unusable(&path, &error))? {
            Ok(lock) => break lock,
            Err(holder) if when_held == WhenHeld::Fail => return Err(JoinError::Held { name: name.into(), holder }),
            Err(_) => tokio::time::sleep(STANDBY_INTERVAL).await,
        }
    };
    let write = Write::Join { group: name.into(), topic: topic.id };
    let epoch = database.write(write, 0).await.map_err(JoinError::Unavailable)?;
    Ok(Arc::new(SqliteGroup {
        database,
        name: name.into(),
        topic: topic.id,
        partitions: topic.partitions,
        epoch,
        given: AtomicU32::new(0),
        lock: Mutex::new(Some(lock)),
    }))
}

/// What the group `name` last committed, by partition: read from outside, without joining it or disturbing its member.
pub async fn committed(engine: &Sqlite, name: &str, topic: &str) -> Result<Vec<Option<PartitionState>>, JoinError> {
    let database = engine.database();
    let failed = |error| JoinError::Unavailable(unavailable(error));
    let topic = find(database, topic).await?;
    let mut states = Vec::new();
    for partition in 0..topic.partitions {
        states.push(database.committed(name, topic.id, partition).await.map_err(failed)?);
    }
    Ok(states)
}

async fn find(database: &Database, topic: &str) -> Result<TopicRow, JoinError> {
    let found = database.topic(topic).await.map_err(|error| JoinError::Unavailable(unavailable(error)))?;
    found.ok_or_else(|| JoinError::MissingTopic { topic: topic.into() })
}

/// Asks for these moves of the group's position, by partition: all of them, or none.
pub async fn request(
    engine: &Sqlite,
    name: &str,
    topic: &str,
    moves: &BTreeMap<u32, OffsetReset>,
) -> Result<(), JoinError> {
    let database = engine.database();
    let topic = find(database, topic).await?.id;
    let write = Write::Request { group: rewind_group(name), topic, moves: moves.clone() };
    database.write(write, 0).await.map(drop).map_err(JoinError::Unavailable)
}

/// The last move that was asked for in each partition, applied or not.
async fn requested(engine: &Sqlite, name: &str, topic: &str) -> Result<Vec<Option<OffsetReset>>, JoinError> {
    let database = engine.database();
    let failed = |error| JoinError::Unavailable(unavailable(error));
    let topic = find(database, topic).await?;
    let mut moves = Vec::new();
    for partition in 0..topic.partitions {
        moves.push(database.requested(&rewind_group(name), topic.id, partition).await.map_err(failed)?);
    }
    Ok(moves)
}

/// Applies them where nobody holds the destination. `false`: somebody does, and does it.
pub async fn apply_unowned(
    engine: &Arc<Sqlite>,
    name: &str,
    topic: &str,
    digest: &str,
    moves: &BTreeMap<u32, OffsetReset>,
) -> Result<bool, JoinError> {
    let group = match join(engine, name, topic, digest, WhenHeld::Fail).await {
        Ok(group) => group,
        Err(JoinError::Held { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    for (partition, wanted) in moves {
        if let Some(state) = group.committed(*partition).await.map_err(JoinError::Unavailable)?
            && state.lacks(wanted)
        {
            group.commit(*partition, state.with_reset(wanted)).await.map_err(JoinError::Unavailable)?;
        }
    }
    group.leave().await;
    Ok(true)
}

/// Removes the commits and the lock of a group that nobody joins any more, and that has left. Its commits would keep
/// what is behind them from retention for a week.
async fn forget(engine: &Sqlite, name: &str, topic: &str) -> Result<(), Failure> {
    let database = engine.database();
    let Some(topic) = database.topic(topic).await.map_err(unavailable)? else { return Ok(()) };
    database.write(Write::Forget { group: name.into(), topic: topic.id }, 0).await?;
    match std::fs::remove_file(lock_path(database.path(), name)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::refused("group-unavailable", format!("its lock cannot be removed: {error}")))
        }
        _ => Ok(()),
    }
}

/// Beside the database itself, whichever link led to it.
fn lock_path(database: &Path, name: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(format!(".{name}.lock"));
    path.into()
}

/// A full disk has no room for a new lock until somebody makes some; anything else is for somebody to set right.
fn unusable(path: &Path, error: &std::io::Error) -> JoinError {
    let detail = format!("the lock {} cannot be used: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            JoinError::Unavailable(Failure::refused("group-unavailable", detail))
        }
        _ => JoinError::Configuration(detail),
    }
}

/// Takes the lock and writes into it who holds it; else tells who does.
fn take(path: &Path, database: &Path, digest: &str) -> std::io::Result<Result<File, Option<Holder>>> {
    let mut file = open_lock(path, database)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.take(LOCK_TEXT_BYTES_MAX).read_to_string(&mut text)?;
            return Ok(Err(serde_json::from_str(&text).ok()));
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let holder = Holder { pid: std::process::id(), started_ms: now_ms(), destination: digest.into() };
    // The lock counts, and not what it says: a disk that is full keeps nobody from delivering, which makes room on it.
    if let Err(error) = describe(&mut file, &holder) {
        tracing::warn!(path = %path.display(), %error, "the lock is taken, but does not say by whom");
    }
    Ok(Ok(file))
}

/// Opens the file of a lock, or makes it with the permissions of the database. Somebody else may be able to put
/// something there, so a link is not followed, a pipe is not waited for, and nothing but a regular file is written to.
fn open_lock(path: &Path, database: &Path) -> std::io::Result<File> {
    let mode = std::fs::metadata(database)?.mode() & 0o666;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let wrong = |what| std::io::Error::new(ErrorKind::InvalidInput, format!("it is {what}. Remove it"));
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(wrong("not a regular file")),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Err(wrong("a symbolic link")),
        Err(error) => Err(error),
    }
}

fn describe(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(holder)?)
}

/// One destination's hold of its topic.
#[derive(Debug)]
struct SqliteGroup {
    database: Arc<Database>,
    name: String,
    topic: i64,
    partitions: u32,
    epoch: i64,
    /// Partitions that [`Group::changed`] has told of.
    given: AtomicU32,
    /// `None`: left.
    lock: Mutex<Option<File>>,
}

impl SqliteGroup {
    async fn store(&self, partition: u32, state: PartitionState) -> Result<(), Failure> {
        if self.lock.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Failure::refused("commit-fenced", format!("{:?} has left its group", self.name)));
        }
        let settled = state.encode_settled();
        let bytes = settled.len();
        let commit = GroupCommit {
            group: self.name.clone(),
            topic: self.topic,
            partition,
            epoch: self.epoch,
            watermark: state.watermark,
            settled_end: state.settled.last().map_or(state.watermark, |range| range.end),
            settled,
        };
        self.database.write(Write::Commit(commit), bytes).await.map(|_| ())
    }
}

impl Group for SqliteGroup {
    fn name(&self) -> &str {
        &self.name
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(async move {
            let next = self.given.fetch_add(1, Ordering::Relaxed);
            if next < self.partitions {
                return Ok(Change::Assigned(next));
            }
            self.given.fetch_min(self.partitions, Ordering::Relaxed);
            // Everything is given, and nobody can take it away while the lock is held.
            std::future::pending().await
        })
    }

    fn released(&self, _partition: u32) -> BoxFuture<'_, ()> {
        // Nothing is ever taken, so nothing is handed over.
        Box::pin(std::future::ready(()))
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        Box::pin(async move { self.database.committed(&self.name, self.topic, partition).await.map_err(unavailable) })
    }

    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.store(partition, state))
    }

    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        Box::pin(async move {
            let (name, topic) = (rewind_group(&self.name), self.topic);
            self.database.requested(&name, topic, partition).await.map_err(unavailable)
        })
    }

    fn lease_deadline(&self) -> Option<Instant> {
        None
    }

    /// The lock is one for all partitions: no other process may have any of them before it is given back.
    fn drain(&self) {}

    fn leave(&self) -> BoxFuture<'_, ()> {
        // Closing the file unlocks it.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(std::future::ready(()))
    }
}

fn unavailable(error: ReadError) -> Failure {
    match error {
        ReadError::Failed(detail) => Failure::refused("group-unavailable", detail),
        other => Failure::refused("group-unavailable", format!("{other:?}")),
    }
}

/// A name becomes a part of a file's name.
fn check_name(name: &str) -> Result<(), JoinError> {
    if !names::is_valid(name, GROUP_NAME_CHARS_MAX) {
        return Err(JoinError::Configuration(format!(
            "{name:?} is no name of a group: up to {GROUP_NAME_CHARS_MAX} letters, digits, `.`, `_` and `-`"
        )));
    }
    Ok(())
}
