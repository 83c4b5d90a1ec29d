//! Consumer groups on the embedded log: one process owns all partitions of a destination, by a lock of the operating
//! system.
//!
//! ```text
//!  join ── lock <database>.<name>.lock ──▶ epoch + 1 ──▶ every partition is assigned ──▶ commits carry the epoch
//! ```
//!
//! The lock ends with its process, so nothing has to time out, and attempts need no lease. The epoch protects against a
//! lock file that was deleted by hand: if another process then joins, the commits of the first one are refused.

mod lock;

use super::{Change, Group, Groups, JoinError, JoinOptions, PastCommits, WhenHeld, discard_unreadable};
use crate::BoxFuture;
use crate::core::names;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::{OffsetReset, PartitionState};
use crate::core::side_topics::rewind_group;
use crate::log::Log;
use crate::log::sqlite::Sqlite;
use crate::sqlite::{Database, GroupCommit, ReadError, TopicRow, Write};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;

/// The longest name of a group: the destination's name and what a replay adds to it. Together with the name of the
/// database it is the name of a lock file, which may have 255 characters.
const GROUP_NAME_CHARS_MAX: usize = 200;

/// The groups of an embedded log.
#[derive(Debug)]
pub struct SqliteGroups(Arc<Sqlite>);

impl SqliteGroups {
    pub fn new(engine: Arc<Sqlite>) -> Self {
        Self(engine)
    }

    async fn topic(&self, log: &Arc<dyn Log>) -> Result<TopicRow, JoinError> {
        find_topic(self.0.database(), log.topic()).await
    }
}

impl Groups for SqliteGroups {
    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(join_with(&self.0, name, log.topic(), options))
    }

    fn assigns_at_join(&self) -> bool {
        false
    }

    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        // A member of such a group always owns every partition.
        self.join(name, log, options)
    }

    fn names<'a>(&'a self, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<Vec<String>, JoinError>> {
        Box::pin(async move {
            let topic = self.topic(log).await?;
            self.0.database().groups(topic.id).await.map_err(|error| JoinError::Unavailable(unavailable(error)))
        })
    }

    fn past_commits<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>> {
        Box::pin(async move {
            // A commit counts even if it cannot be read.
            let has_commits = self.names(log).await?.iter().any(|known| known == name);
            Ok(if has_commits { PastCommits::Found } else { PastCommits::None })
        })
    }

    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>> {
        Box::pin(async move {
            let topic = self.topic(log).await?;
            let mut states = Vec::new();
            for partition in 0..topic.partitions {
                let state = read_commit(self.0.database(), name, (topic.id, partition), false).await;
                states.push(state.map_err(JoinError::Unavailable)?);
            }
            Ok(states)
        })
    }

    fn is_owned<'a>(&'a self, name: &'a str, _log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(std::future::ready(check_name(name).and_then(|()| lock::is_held(self.0.database().path(), name))))
    }

    fn request_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>> {
        Box::pin(async move {
            let topic = self.topic(log).await?.id;
            let write = Write::Request { group: rewind_group(name), topic, resets: resets.clone() };
            self.0.database().write(write, 0).await.map(drop).map_err(JoinError::Unavailable)
        })
    }

    fn requested_resets<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>> {
        Box::pin(async move {
            let topic = self.topic(log).await?;
            let mut resets = Vec::new();
            for partition in 0..topic.partitions {
                let reset = read_request(self.0.database(), name, (topic.id, partition)).await;
                resets.push(reset.map_err(JoinError::Unavailable)?);
            }
            Ok(resets)
        })
    }

    fn apply_resets_if_unowned<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
        resets: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(async move {
            // Holding the lock proves that no process owns the destination.
            let group = match self.join(name, log, &JoinOptions::new(digest)).await {
                Ok(group) => group,
                Err(JoinError::Held { .. }) => return Ok(false),
                Err(error) => return Err(error),
            };
            for (partition, reset) in resets {
                if let Some(state) = group.committed(*partition).await.map_err(JoinError::Unavailable)?
                    && state.lacks(reset)
                {
                    group.commit(*partition, state.with_reset(reset)).await.map_err(JoinError::Unavailable)?;
                }
            }
            group.leave().await;
            Ok(true)
        })
    }

    /// Removes the commits and the lock file of a group that no process joins any more. Left in place, its commits would
    /// protect the events after them from retention for a week.
    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let database = self.0.database();
            let Some(topic) = database.topic(log.topic()).await.map_err(unavailable)? else { return Ok(()) };
            database.write(Write::Forget { group: name.into(), topic: topic.id }, 0).await?;
            lock::remove(database.path(), name)
        })
    }
}

/// Joins the group `name` for a topic by taking its lock. If another process holds the lock, `when_held` says what
/// happens. `digest` tells the destination from another one under the same name. Dropping the future or the group
/// releases the lock.
pub async fn join(
    engine: &Arc<Sqlite>,
    name: &str,
    topic: &str,
    digest: &str,
    when_held: WhenHeld,
) -> Result<Arc<dyn Group>, JoinError> {
    join_with(engine, name, topic, &JoinOptions { when_held, ..JoinOptions::new(digest) }).await
}

/// Like [`join`], with all options that the embedded log has.
async fn join_with(
    engine: &Arc<Sqlite>,
    name: &str,
    topic: &str,
    options: &JoinOptions,
) -> Result<Arc<dyn Group>, JoinError> {
    check_name(name)?;
    let database = Arc::clone(engine.database());
    let topic = find_topic(&database, topic).await?;
    let lock = lock::acquire(database.path(), name, &options.digest, options.when_held).await?;
    let write = Write::Join { group: name.into(), topic: topic.id };
    let epoch = database.write(write, 0).await.map_err(JoinError::Unavailable)?;
    Ok(Arc::new(SqliteGroup {
        database,
        name: name.into(),
        topic_id: topic.id,
        partition_count: topic.partitions,
        epoch,
        start_given: options.start_given,
        assigned: AtomicU32::new(0),
        lock: Mutex::new(Some(lock)),
    }))
}

/// What the group has committed in a partition. If it cannot be read, `start_given` decides.
async fn read_commit(
    database: &Database,
    name: &str,
    (topic, partition): (i64, u32),
    start_given: bool,
) -> Result<Option<PartitionState>, Failure> {
    match database.committed(name, topic, partition).await.map_err(unavailable)? {
        Some(Err(why)) => discard_unreadable(name, partition, &why, start_given),
        Some(Ok(state)) => Ok(Some(state)),
        None => Ok(None),
    }
}

/// The offset reset that was requested last in a partition of the group.
async fn read_request(
    database: &Database,
    name: &str,
    (topic, partition): (i64, u32),
) -> Result<Option<OffsetReset>, Failure> {
    let requested = database.requested(&rewind_group(name), topic, partition).await.map_err(unavailable)?;
    requested.transpose().map_err(|why| {
        let detail =
            format!("cannot read the offset reset of {name:?} in partition {partition}: {why}. Request it again");
        Failure::refused(FailureCode::CommitUnreadable, detail)
    })
}

async fn find_topic(database: &Database, topic: &str) -> Result<TopicRow, JoinError> {
    let found = database.topic(topic).await.map_err(|error| JoinError::Unavailable(unavailable(error)))?;
    found.ok_or_else(|| JoinError::MissingTopic { topic: topic.into() })
}

/// A destination's membership, which holds its lock.
#[derive(Debug)]
struct SqliteGroup {
    database: Arc<Database>,
    name: String,
    topic_id: i64,
    partition_count: u32,
    /// Grows with each join. The database refuses the commits of an earlier epoch.
    epoch: i64,
    start_given: bool,
    /// How many partitions [`Group::changed`] has reported as assigned.
    assigned: AtomicU32,
    /// `None` after the group was left.
    lock: Mutex<Option<File>>,
}

impl SqliteGroup {
    async fn store(&self, partition: u32, state: PartitionState) -> Result<(), Failure> {
        if self.lock.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Err(Failure::refused(
                FailureCode::CommitFenced,
                format!("destination {:?} has left its group", self.name),
            ));
        }
        let settled = state.encode();
        let bytes = settled.len();
        let commit = GroupCommit {
            group: self.name.clone(),
            topic: self.topic_id,
            partition,
            epoch: self.epoch,
            watermark: state.watermark,
            settled_end: state.settled_end(),
            needed_from: state.needed_from(),
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
            let next = self.assigned.fetch_add(1, Ordering::Relaxed);
            if next < self.partition_count {
                return Ok(Change::Assigned(next));
            }
            self.assigned.fetch_min(self.partition_count, Ordering::Relaxed);
            // All partitions are assigned, and they stay so while the lock is held.
            std::future::pending().await
        })
    }

    fn released(&self, _partition: u32) -> BoxFuture<'_, ()> {
        // A partition is never revoked here.
        Box::pin(std::future::ready(()))
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        Box::pin(read_commit(&self.database, &self.name, (self.topic_id, partition), self.start_given))
    }

    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.store(partition, state))
    }

    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        Box::pin(read_request(&self.database, &self.name, (self.topic_id, partition)))
    }

    fn lease_deadline(&self) -> Option<Instant> {
        // The lock ends with the process, so it cannot outlive the attempts of this member.
        None
    }

    fn drain(&self) {
        // One lock covers all partitions: no other process may have any of them before it is released.
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        // Closing the file releases the lock.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(std::future::ready(()))
    }
}

fn unavailable(error: ReadError) -> Failure {
    Failure::refused(FailureCode::GroupUnavailable, error.to_string())
}

/// The name becomes part of a file name.
fn check_name(name: &str) -> Result<(), JoinError> {
    if !names::is_valid(name, GROUP_NAME_CHARS_MAX) {
        return Err(JoinError::Configuration(format!(
            "invalid group name {name:?}: use up to {GROUP_NAME_CHARS_MAX} letters, digits, `.`, `_` and `-`"
        )));
    }
    Ok(())
}
