//! Delivers a topic to one destination: joins the log, the group, the lanes and the destination.
//!
//! ```text
//!  group ── Assigned / Revoked / Lost ──▶ owners ──▶ one worker a partition ──▶ destination
//!                                                 │ shared: breaker, slots of --concurrency, dead letters
//!                                                 └── fetch, lanes, progress, commit: all of one partition
//! ```
//!
//! A worker that ends with an error (a damaged record, a gap, a broken invariant) stops its partition only, which stays
//! owned and can continue later (`stopped.rs`).

pub mod dead_letter;
mod notices;
mod policy;
mod shared;
mod stopped;
mod tally;
mod worker;

pub(crate) use self::stopped::is_recreated;
pub use self::tally::Tally;

use self::shared::Shared;
use self::stopped::{STOPPED_INTERVAL, Stopped};
use crate::core::backoff::Backoff;
use crate::core::outcome::Ended;
use crate::core::token_bucket::Rate;
use crate::destination::Destination;
use crate::group::{Change, Group};
use crate::log::{Engine, Log};
use anyhow::{Context as _, anyhow};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

/// The checked configuration of one destination's delivery.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tries of an event before it is given up.
    pub attempts: u32,
    pub backoff: Backoff,
    pub attempt_timeout: Duration,
    pub retry_after_max: Duration,
    /// Attempts in flight.
    pub concurrency: usize,
    /// Unsettled events in memory, and their bytes.
    pub window_events: usize,
    pub window_bytes: usize,
    pub commit_interval: Duration,
    pub start: Start,
    pub on_gap: OnGap,
    pub when_stopped: WhenStopped,
    /// How long a stop waits for attempts in flight.
    pub drain: Duration,
    /// How long dead letters are kept.
    pub dead_retention: Duration,
    /// Seeds the jitter.
    pub seed: u64,
}

/// Where a destination without a commit begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Earliest => "earliest",
            Self::Latest => "latest",
        })
    }
}

/// What is done where retention has passed the position, or a record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGap {
    Stop,
    Skip,
}

/// What becomes of a partition that stops though nobody told it to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenStopped {
    /// It stays owned, says every minute why it is stopped, and continues once it can. Only if its topic was deleted and
    /// made again it is done: a start opens the new one.
    Stay,
    /// It is done. [`run`] ends with its error, once the last partition has ended.
    End,
}

/// What dispatch works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Makes the side topics.
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn Log>,
    pub group: Arc<dyn Group>,
    pub destination: Arc<dyn Destination>,
}

/// Delivers until `shutdown` is ready, then lets attempts in flight end within `--drain`, commits, releases and leaves.
/// Dropping the future stops at once.
///
/// # Errors
/// The membership ended, the topic was deleted and made again, or a partition is stopped when dispatch is told to end.
/// While it runs, a partition that stops says so in the log, and the others continue. With [`WhenStopped::End`] it also
/// ends once every partition has stopped.
pub async fn run(parts: Parts, config: Config, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<Ended> {
    run_counted(parts, config, None, Arc::default(), shutdown).await
}

/// Like [`run`], with a rate limit, which every attempt counts against, and progress counters.
pub async fn run_counted(
    parts: Parts,
    config: Config,
    rate: Option<Rate>,
    tally: Arc<Tally>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let group = Arc::clone(&parts.group);
    let mut owners = Owners::new(Shared::new(parts, config, rate, tally));
    let mut shutdown = std::pin::pin!(shutdown);
    let mut remind_at = Instant::now() + STOPPED_INTERVAL;
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = owners.running.join_next_with_id() => {
                owners.ended(ended).await;
                if owners.partitions.is_empty() && let Some(error) = owners.stopped.take() {
                    group.leave().await;
                    return Err(error);
                }
            }
            change = group.changed() => match change.context("the membership of the group ended")? {
                Change::Assigned(partition) => owners.give(partition),
                Change::Revoked(partition) => owners.take(partition).await,
                Change::Lost(partition) => owners.lose(partition),
            },
            () = sleep_until(remind_at) => {
                remind_at = Instant::now() + STOPPED_INTERVAL;
                owners.remind();
            }
        }
    }
    owners.drain().await;
    group.leave().await;
    match owners.stopped {
        Some(error) => Err(error),
        None => Ok(owners.worst),
    }
}

/// The workers of the partitions that are owned now.
struct Owners {
    shared: Arc<Shared>,
    running: JoinSet<anyhow::Result<Ended>>,
    partitions: BTreeMap<u32, Owner>,
    /// The worst end so far of those that were told to stop.
    worst: Ended,
    /// The error of the first partition that ended though it was not told to.
    stopped: Option<anyhow::Error>,
    /// Those that are stopped, and stay owned.
    waiting: Arc<Stopped>,
    /// Everything was told to stop.
    draining: bool,
}

struct Owner {
    task: Id,
    abort: AbortHandle,
    stop: watch::Sender<bool>,
    /// The group waits for its release.
    taken: bool,
}

impl Owners {
    fn new(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            running: JoinSet::new(),
            partitions: BTreeMap::new(),
            worst: Ended::Drained,
            stopped: None,
            waiting: Arc::default(),
            draining: false,
        }
    }

    fn spawn(&mut self, partition: u32, stop: watch::Receiver<bool>, broken: Option<anyhow::Error>) -> AbortHandle {
        let (shared, waiting) = (Arc::clone(&self.shared), Arc::clone(&self.waiting));
        self.running.spawn(stopped::own(shared, waiting, partition, stop, broken))
    }

    fn give(&mut self, partition: u32) {
        let (stop, stopping) = watch::channel(false);
        let abort = self.spawn(partition, stopping, None);
        let owner = Owner { task: abort.id(), abort, stop, taken: false };
        if let Some(before) = self.partitions.insert(partition, owner) {
            // Assigned twice without an end between: the older worker must not go on beside the new one.
            before.abort.abort();
        }
        self.shared.set_owned(self.partitions.len());
    }

    async fn take(&mut self, partition: u32) {
        match self.partitions.get_mut(&partition) {
            Some(owner) => {
                owner.taken = true;
                owner.stop.send_replace(true);
            }
            // It stopped by itself before: there is nothing to hand over.
            None => self.shared.parts.group.released(partition).await,
        }
    }

    /// Whether a partition that stops stays owned.
    fn stays(&self, owner: &Owner) -> bool {
        self.shared.config.when_stopped == WhenStopped::Stay && !*owner.stop.borrow()
    }

    /// Says which partitions are stopped, in one line.
    fn remind(&self) {
        if let Some(told) = self.waiting.told() {
            let (destination, topic) = (self.shared.parts.group.name(), &self.shared.topic);
            tracing::error!(destination, %topic, "still stopped: {told}");
        }
    }

    fn lose(&mut self, partition: u32) {
        if let Some(owner) = self.partitions.remove(&partition) {
            owner.abort.abort();
            self.shared.set_owned(self.partitions.len());
        }
    }

    /// Stops everything. Each partition is released as soon as its worker has drained, whatever the others still wait
    /// for, and the group is heard until the last one has.
    async fn drain(&mut self) {
        // What an earlier handover left undone is somebody else's work by now.
        self.worst = Ended::Drained;
        self.draining = true;
        if let Some((partition, why)) = self.waiting.first() {
            let topic = &self.shared.topic;
            self.stopped.get_or_insert_with(|| anyhow!("partition {partition} of {topic:?} is stopped: {why}"));
        }
        let group = Arc::clone(&self.shared.parts.group);
        for owner in self.partitions.values() {
            owner.stop.send_replace(true);
        }
        group.drain();
        while !self.partitions.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                change = group.changed() => match change {
                    // Its next owner begins it.
                    Ok(Change::Assigned(_)) => {}
                    Ok(Change::Revoked(partition)) => self.take(partition).await,
                    Ok(Change::Lost(partition)) => {
                        if self.partitions.contains_key(&partition) {
                            self.worst = Ended::WorkLeft;
                        }
                        self.lose(partition);
                    }
                    // Every partition is lost with it.
                    Err(failure) => {
                        tracing::warn!(destination = group.name(), "the membership ended during the drain: {failure}");
                        self.worst = Ended::WorkLeft;
                        self.partitions.keys().copied().collect::<Vec<_>>().into_iter().for_each(|lost| self.lose(lost));
                    }
                },
            }
        }
        // What was cut off is really gone before the group is left.
        self.running.shutdown().await;
    }

    async fn ended(&mut self, ended: Result<(Id, anyhow::Result<Ended>), JoinError>) {
        let (task, result, panicked) = match ended {
            Ok((task, result)) => (task, result, false),
            Err(error) if error.is_cancelled() => return,
            Err(error) => (error.id(), Err(anyhow::Error::new(error).context("a broken invariant stopped it")), true),
        };
        let Some(partition) = self.partitions.iter().find(|(_, owner)| owner.task == task).map(|(number, _)| *number)
        else {
            return;
        };
        let result = match (result, self.partitions.get(&partition)) {
            (Err(broken), Some(owner)) if panicked && self.stays(owner) => {
                let stop = owner.stop.subscribe();
                let abort = self.spawn(partition, stop, Some(broken));
                if let Some(owner) = self.partitions.get_mut(&partition) {
                    (owner.task, owner.abort) = (abort.id(), abort);
                }
                return;
            }
            (result, _) => result,
        };
        let owner = self.partitions.remove(&partition);
        self.shared.set_owned(self.partitions.len());
        match result {
            Ok(Ended::Drained) => {}
            Ok(Ended::WorkLeft) => self.worst = Ended::WorkLeft,
            Err(error) => {
                let (destination, topic) = (self.shared.parts.group.name(), &self.shared.topic);
                tracing::error!(destination, %topic, partition, "this partition is stopped, the others continue: {error:#}");
                self.shared.tally.stopped(partition);
                // If it was revoked, its next owner meets the error and tells of it.
                if !owner.as_ref().is_some_and(|owner| owner.taken) || self.draining {
                    self.stopped.get_or_insert(error.context(format!("partition {partition} of {topic:?} stopped")));
                }
            }
        }
        if owner.is_some_and(|owner| owner.taken) {
            self.shared.parts.group.released(partition).await;
        }
    }
}
