//! The partitions that this process owns: starts a worker for each that is assigned, stops it when the partition is
//! revoked or lost, and drains all of them at a shutdown.
//!
//! ```text
//!  Assigned(P) ──▶ spawn ──▶ worker runs ──┬── Revoked(P) ──▶ told to stop ──▶ drains and commits ──▶ group.released(P)
//!                                          ├── Lost(P) ─────▶ aborted: another process owns it already
//!                                          └── an error ────▶ stopped.rs waits, or the worker ends
//! ```

use super::WhenStopped;
use super::context::DispatchContext;
use super::stopped::{self, StoppedPartitions};
use crate::core::outcome::Ended;
use crate::group::Change;
use anyhow::anyhow;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// How the task of a worker ended.
pub(super) type EndedTask = Result<(Id, anyhow::Result<Ended>), JoinError>;

/// The workers of the partitions that are owned now.
pub(super) struct Owners {
    context: Arc<DispatchContext>,
    tasks: JoinSet<anyhow::Result<Ended>>,
    partitions: BTreeMap<u32, Owner>,
    /// The worst end so far of a worker that was told to stop.
    worst_end: Ended,
    /// The error of the first worker that ended without being told to stop.
    error: Option<anyhow::Error>,
    /// Partitions that are stopped by an error and still owned.
    stopped: Arc<StoppedPartitions>,
    is_draining: bool,
}

struct Owner {
    task: Id,
    abort: AbortHandle,
    /// Tells the worker to drain, commit and end.
    stop: watch::Sender<bool>,
    /// The group waits for its release.
    is_revoked: bool,
}

impl Owners {
    pub(super) fn new(context: Arc<DispatchContext>) -> Self {
        Self {
            context,
            tasks: JoinSet::new(),
            partitions: BTreeMap::new(),
            worst_end: Ended::Drained,
            error: None,
            stopped: Arc::default(),
            is_draining: false,
        }
    }

    /// Waits for the next worker to end. `None`: no worker runs.
    pub(super) async fn next_ended(&mut self) -> Option<EndedTask> {
        self.tasks.join_next_with_id().await
    }

    /// Applies a change of what this process owns.
    pub(super) async fn apply(&mut self, change: Change) {
        match change {
            Change::Assigned(partition) => self.assign(partition),
            Change::Revoked(partition) => self.revoke(partition).await,
            Change::Lost(partition) => self.lose(partition),
        }
    }

    /// The error of a worker that ended, if no partition is owned any more.
    pub(super) fn take_error_if_all_ended(&mut self) -> Option<anyhow::Error> {
        if self.partitions.is_empty() { self.error.take() } else { None }
    }

    /// Writes one log line with all partitions that are stopped and why.
    pub(super) fn log_stopped_partitions(&self) {
        if let Some(reasons) = self.stopped.summary() {
            let (destination, topic) = (self.context.destination(), &self.context.topic);
            tracing::error!(destination, %topic, "still stopped: {reasons}");
        }
    }

    /// Writes a log line if the destination is paused.
    pub(super) fn log_pause(&self) {
        self.context.shared_control.pauses.log_reminder(self.context.destination());
    }

    fn spawn(&mut self, partition: u32, stop: watch::Receiver<bool>, panic: Option<anyhow::Error>) -> AbortHandle {
        let (context, stopped) = (Arc::clone(&self.context), Arc::clone(&self.stopped));
        self.tasks.spawn(stopped::run_partition(context, stopped, partition, stop, panic))
    }

    fn assign(&mut self, partition: u32) {
        let (stop, stopping) = watch::channel(false);
        let abort = self.spawn(partition, stopping, None);
        let owner = Owner { task: abort.id(), abort, stop, is_revoked: false };
        if let Some(older) = self.partitions.insert(partition, owner) {
            // The partition was assigned twice in a row. The older worker must not deliver at the same time as the new one.
            older.abort.abort();
        }
        self.count_owned();
    }

    async fn revoke(&mut self, partition: u32) {
        match self.partitions.get_mut(&partition) {
            Some(owner) => {
                owner.is_revoked = true;
                owner.stop.send_replace(true);
            }
            // Its worker has ended with an error before: there is nothing to drain.
            None => self.context.parts.group.released(partition).await,
        }
    }

    fn lose(&mut self, partition: u32) {
        if let Some(owner) = self.partitions.remove(&partition) {
            owner.abort.abort();
            self.count_owned();
        }
    }

    fn count_owned(&self) {
        self.context.throttle.set_owned_partitions(self.partitions.len(), self.context.now());
    }

    /// Whether a partition that stops with an error stays owned.
    fn stays_owned(&self, owner: &Owner) -> bool {
        self.context.config.when_stopped == WhenStopped::Stay && !*owner.stop.borrow()
    }

    /// Stops everything. Each partition is released as soon as its own worker has drained, however long the others take.
    /// Changes from the group are applied until the last worker has ended.
    pub(super) async fn drain(mut self) -> anyhow::Result<Ended> {
        // What an earlier revocation left undone is the work of another process by now.
        self.worst_end = Ended::Drained;
        self.is_draining = true;
        if let Some((partition, why)) = self.stopped.first() {
            let topic = &self.context.topic;
            self.error.get_or_insert_with(|| anyhow!("partition {partition} of {topic:?} is stopped: {why}"));
        }
        let group = Arc::clone(&self.context.parts.group);
        for owner in self.partitions.values() {
            owner.stop.send_replace(true);
        }
        group.drain();
        while !self.partitions.is_empty() {
            tokio::select! {
                biased;
                Some(task) = self.tasks.join_next_with_id() => self.worker_ended(task).await,
                change = group.changed() => match change {
                    // Its next owner starts it.
                    Ok(Change::Assigned(_)) => {}
                    Ok(Change::Revoked(partition)) => self.revoke(partition).await,
                    Ok(Change::Lost(partition)) => {
                        if self.partitions.contains_key(&partition) {
                            self.worst_end = Ended::WorkLeft;
                        }
                        self.lose(partition);
                    }
                    // Every partition is lost with the membership.
                    Err(failure) => {
                        let destination = group.name();
                        tracing::warn!(destination, "the membership of the group ended during the drain: {failure}");
                        self.worst_end = Ended::WorkLeft;
                        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
                            self.lose(partition);
                        }
                    }
                },
            }
        }
        // Aborted workers must really be gone before the group is left: then another process starts.
        self.tasks.shutdown().await;
        self.error.map_or(Ok(self.worst_end), Err)
    }

    /// Takes the result of a worker's task, and releases its partition if the group waits for that.
    pub(super) async fn worker_ended(&mut self, task: EndedTask) {
        let (task, result, panicked) = match task {
            Ok((task, result)) => (task, result, false),
            Err(error) if error.is_cancelled() => return,
            Err(error) => (error.id(), Err(anyhow::Error::new(error).context("a broken invariant stopped it")), true),
        };
        // A task that is not found was replaced or lost.
        let Some(partition) = self.partitions.iter().find(|(_, owner)| owner.task == task).map(|(number, _)| *number)
        else {
            return;
        };
        let result = match (result, self.partitions.get(&partition)) {
            (Err(panic), Some(owner)) if panicked && self.stays_owned(owner) => {
                let stop = owner.stop.subscribe();
                let abort = self.spawn(partition, stop, Some(panic));
                if let Some(owner) = self.partitions.get_mut(&partition) {
                    (owner.task, owner.abort) = (abort.id(), abort);
                }
                return;
            }
            (result, _) => result,
        };
        let is_revoked = self.partitions.remove(&partition).is_some_and(|owner| owner.is_revoked);
        self.count_owned();
        match result {
            Ok(ended) => self.worst_end = self.worst_end.and(ended),
            Err(error) => self.stopped_with(partition, error, is_revoked),
        }
        if is_revoked {
            self.context.parts.group.released(partition).await;
        }
    }

    fn stopped_with(&mut self, partition: u32, error: anyhow::Error, is_revoked: bool) {
        let (destination, topic) = (self.context.destination(), &self.context.topic);
        tracing::error!(destination, %topic, partition, "this partition is stopped, the others continue: {error:#}");
        self.context.tally.stopped(partition);
        // The next owner of a revoked partition meets the same error and reports it.
        if !is_revoked || self.is_draining {
            self.error.get_or_insert(error.context(format!("partition {partition} of {topic:?} stopped")));
        }
    }
}
