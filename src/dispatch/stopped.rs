//! One partition: runs its worker, and if the worker ends with an error, keeps the partition until it can continue.
//!
//! ```text
//!  worker ── an error ──▶ stopped ─┬─ after a minute, if the error may pass ──▶ begins again, from the last commit
//!                                  ├─ an offset reset is asked for ───────────▶ begins again, from the new offset
//!                                  └─ revoked, or the process stops ──────────▶ released at once
//! ```
//!
//! An error may pass if it comes back before anything is delivered twice. Before a record that cannot be read, every
//! event was delivered and committed. And if a commit is refused, so is the commit before the first attempt.
//!
//! A broken invariant (a panic, for example) can happen in the middle of anything. To begin again would deliver each
//! minute what was delivered since the last commit. So the partition waits for a person: for a restart, or an offset
//! reset.
//!
//! Each offset reset is tried once. If the worker that begins with it fails before it has applied the reset, the partition
//! waits as before.
//!
//! A topic that was deleted and created again does not come back. That error ends the partition, and with the last one
//! the process, because a start opens the new topic.

use super::WhenStopped;
use super::context::DispatchContext;
use super::reader::UnreadableLog;
use super::repositioner::{RESET_LOOK_MAX, requested};
use super::worker::Worker;
use crate::core::outcome::{Ended, Failure};
use crate::destination::spec::dest_flag;
use crate::limits::RESET_LOOK_INTERVAL;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How often a stopped partition tries again, and how often one log line names all partitions that are stopped.
pub(super) const STOPPED_INTERVAL: Duration = Duration::from_secs(60);

/// Partitions that one line names. The others are counted.
const REASONS_SHOWN_MAX: usize = 5;

/// The partitions that are stopped now, and why.
#[derive(Debug, Default)]
pub(super) struct StoppedPartitions {
    reasons: Mutex<BTreeMap<u32, String>>,
    /// For each partition, the last offset reset that need not be tried: it is applied, or was tried already. It is kept
    /// here because the worker that tries it may panic.
    known_resets: Mutex<BTreeMap<u32, u64>>,
}

impl StoppedPartitions {
    fn reasons(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        // It holds plain strings, so a panic elsewhere leaves nothing half done in it.
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_resets(&self) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        self.known_resets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(self: &Arc<Self>, partition: u32, why: String) -> StoppedEntry {
        self.reasons().insert(partition, why);
        StoppedEntry { list: Arc::clone(self), partition }
    }

    /// The first partition in the list, with its reason.
    pub(super) fn first(&self) -> Option<(u32, String)> {
        self.reasons().first_key_value().map(|(partition, why)| (*partition, why.clone()))
    }

    /// All of them in one sentence. `None`: the list is empty.
    pub(super) fn summary(&self) -> Option<String> {
        let reasons = self.reasons();
        let shown: Vec<String> = reasons
            .iter()
            .take(REASONS_SHOWN_MAX)
            .map(|(partition, why)| format!("partition {partition}: {why}"))
            .collect();
        let others = reasons.len().saturating_sub(shown.len());
        let others = if others > 0 { format!("; and {others} more partitions") } else { String::new() };
        (!shown.is_empty()).then(|| shown.join("; ") + &others)
    }
}

/// A partition in the list. It leaves the list when this is dropped, also if its task is aborted.
struct StoppedEntry {
    list: Arc<StoppedPartitions>,
    partition: u32,
}

impl Drop for StoppedEntry {
    fn drop(&mut self) {
        self.list.reasons().remove(&self.partition);
    }
}

/// Why a stopped partition does not wait any longer.
enum WaitEnd {
    /// It was revoked, or the process stops.
    Released,
    /// A minute has passed, and with it perhaps the error.
    TryAgain,
    /// An offset reset was asked for.
    OffsetReset,
}

/// What is kept of a partition from one worker to the next.
#[derive(Default)]
struct StoppedState {
    /// Present while the partition is stopped.
    entry: Option<StoppedEntry>,
    /// The reason in the last log line, so that the same reason is not written each minute.
    logged_reason: String,
}

/// Delivers a partition until `stop` is true. If its worker ends with an error, the partition waits until it can continue,
/// or ends with that error: [`Config::when_stopped`](super::Config::when_stopped) decides. `panic`: the last worker of
/// the partition has panicked, so it begins as stopped.
pub(super) async fn run_partition(
    context: Arc<DispatchContext>,
    list: Arc<StoppedPartitions>,
    partition: u32,
    mut stop: watch::Receiver<bool>,
    mut panic: Option<anyhow::Error>,
) -> anyhow::Result<Ended> {
    let mut state = StoppedState::default();
    loop {
        let (error, may_pass) = match panic.take() {
            Some(panic) => (panic, false),
            None => match run_worker(&context, partition, &mut stop, &mut state).await {
                Ok(ended) => return Ok(ended),
                Err(error) => {
                    let may_pass = error.is::<UnreadableLog>() || error.is::<Failure>();
                    (error, may_pass)
                }
            },
        };
        if context.config.when_stopped == WhenStopped::End || is_recreated(&error) || *stop.borrow() {
            return Err(error);
        }
        let why = format!("{error:#}");
        if why != state.logged_reason {
            let (destination, topic) = (context.destination(), &context.topic);
            let next = match may_pass {
                true => "it tries again every minute".to_owned(),
                false => format!(
                    "it waits for a restart of the process, or for an offset reset: eventd replay {} --rewind \
                     --from PLACE --execute (with the same --url and --topic)",
                    dest_flag(destination)
                ),
            };
            tracing::error!(destination, %topic, partition, "this partition is stopped, the others continue: {why}; {next}");
        }
        // Dropping an older entry removes the partition from the list, so it must happen before the new one is added.
        drop(state.entry.take());
        state.entry = Some(list.add(partition, why.clone()));
        state.logged_reason = why;
        context.tally.stopped(partition);
        match wait(&context, &list, partition, may_pass, &mut stop).await {
            WaitEnd::Released => return Ok(Ended::Drained),
            WaitEnd::TryAgain => {}
            WaitEnd::OffsetReset => {
                state.entry = None;
                state.logged_reason.clear();
            }
        }
    }
}

/// Whether delivery ended because the topic was deleted and created again. It can continue only after a new start has
/// opened the new topic.
pub(crate) fn is_recreated(error: &anyhow::Error) -> bool {
    error.downcast_ref::<UnreadableLog>().is_some_and(|unreadable| unreadable.is_recreated)
}

/// Runs one worker until it ends. If the partition was stopped, it is not stopped any more once the worker has read the
/// log.
async fn run_worker(
    context: &Arc<DispatchContext>,
    partition: u32,
    stop: &mut watch::Receiver<bool>,
    state: &mut StoppedState,
) -> anyhow::Result<Ended> {
    // `begin` waits for the group however long that takes. A stop must not wait for it.
    let worker = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Drained),
        worker = Worker::begin(Arc::clone(context), partition) => worker?,
    };
    let has_read = worker.has_read();
    let mut run = std::pin::pin!(worker.run(stop.clone()));
    if state.entry.is_some() {
        tokio::select! {
            biased;
            ended = &mut run => return ended,
            () = has_read.notified() => {
                let (destination, topic) = (context.destination(), &context.topic);
                tracing::info!(destination, %topic, partition, "this partition is not stopped any more");
                state.entry = None;
                state.logged_reason.clear();
            }
        }
    }
    run.await
}

async fn wait(
    context: &DispatchContext,
    list: &StoppedPartitions,
    partition: u32,
    may_pass: bool,
    stop: &mut watch::Receiver<bool>,
) -> WaitEnd {
    let again_at = Instant::now() + STOPPED_INTERVAL;
    tokio::select! {
        biased;
        // An error means that the owner is gone, which ends the partition too.
        _ = stop.wait_for(|stop| *stop) => WaitEnd::Released,
        () = sleep_until(again_at), if may_pass => WaitEnd::TryAgain,
        () = offset_reset_wanted(context, list, partition) => WaitEnd::OffsetReset,
    }
}

/// Ready when an offset reset is asked for that the last commit does not have. The next worker applies it. If that worker
/// fails, too, before it has applied the reset, the partition does not begin again with it.
async fn offset_reset_wanted(context: &DispatchContext, list: &StoppedPartitions, partition: u32) {
    let group = &context.parts.group;
    loop {
        // If the group does not answer, the next look finds the reset. The reminder in the log says why the partition is
        // stopped, so this writes no line of its own.
        let found = requested(&**group, partition, RESET_LOOK_MAX).await.ok().flatten();
        if let Some(reset) = found.filter(|reset| list.known_resets().get(&partition) != Some(&reset.id))
            && let Ok(Ok(committed)) = timeout(RESET_LOOK_MAX, group.committed(partition)).await
        {
            list.known_resets().insert(partition, reset.id);
            if committed.is_some_and(|state| state.lacks(&reset)) {
                return;
            }
        }
        sleep(RESET_LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_the_partitions_as_long_as_they_are_stopped() {
        let list = Arc::new(StoppedPartitions::default());
        assert_eq!((list.summary(), list.first()), (None, None));
        let mut entries: Vec<StoppedEntry> =
            (0..7).map(|partition| list.add(partition, format!("why {partition}"))).collect();
        let summary = list.summary().unwrap();
        assert!(summary.starts_with("partition 0: why 0; partition 1: why 1; "), "{summary}");
        assert!(summary.ends_with("partition 4: why 4; and 2 more partitions"), "{summary}");
        drop(entries.drain(1..));
        assert_eq!(list.summary().as_deref(), Some("partition 0: why 0"));
        assert_eq!(list.first(), Some((0, "why 0".into())));
        drop(entries);
        assert_eq!(list.summary(), None);
    }
}
