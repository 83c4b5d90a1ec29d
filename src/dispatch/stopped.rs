//! A partition that stopped though nobody told it to: it stays owned and says why, until it can continue.
//!
//! ```text
//!  worker ── an error ──▶ stopped ── after a minute, if the error may pass ──▶ begins again, from the last commit
//!                            ├────── an offset reset is asked for ───────────▶ begins again, from the new offset
//!                            └────── revoked, or the process stops ──────────▶ released at once
//! ```
//!
//! An error may pass if it comes back before anything is delivered again: everything before a record that cannot be read
//! was delivered and committed, and a commit that is refused is asked for before the first attempt. (A topic that was
//! deleted and made again does not come back: that ends the partition, and with the last one the process, since a start
//! opens the new topic.) A broken invariant
//! (a panic, for example) may come in the middle of anything. Beginning again would repeat each minute what was delivered
//! since the last commit, so it waits for a person: a restart, or an offset reset.

use super::shared::Shared;
use super::worker::{Unreadable, Worker, requested};
use super::{Ended, WhenStopped};
use crate::core::outcome::Failure;
use crate::destination::spec::flag_of;
use crate::limits;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How often a partition that stopped tries again, and how often those that are stopped are told of, in one line.
pub(super) const STOPPED_INTERVAL: Duration = Duration::from_secs(60);

/// Partitions that one line tells of; the others are counted.
const REASONS_TOLD_MAX: usize = 5;

/// The partitions that are stopped now, and why.
#[derive(Debug, Default)]
pub(super) struct Stopped(Mutex<BTreeMap<u32, String>>);

impl Stopped {
    /// Plain strings: a panic elsewhere leaves nothing half done in them.
    fn reasons(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(self: &Arc<Self>, partition: u32, why: String) -> Entry {
        self.reasons().insert(partition, why);
        Entry { list: Arc::clone(self), partition }
    }

    /// The first of them, with its reason.
    pub(super) fn first(&self) -> Option<(u32, String)> {
        self.reasons().first_key_value().map(|(partition, why)| (*partition, why.clone()))
    }

    /// All of them in one sentence; `None`: there are none.
    pub(super) fn told(&self) -> Option<String> {
        let reasons = self.reasons();
        let told: Vec<String> = reasons
            .iter()
            .take(REASONS_TOLD_MAX)
            .map(|(partition, why)| format!("partition {partition}: {why}"))
            .collect();
        let more = reasons.len().saturating_sub(told.len());
        let more = if more > 0 { format!("; and {more} more partitions") } else { String::new() };
        (!told.is_empty()).then(|| told.join("; ") + &more)
    }
}

/// A partition in the list, for as long as the value lives: also where its task is aborted.
struct Entry {
    list: Arc<Stopped>,
    partition: u32,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.list.reasons().remove(&self.partition);
    }
}

/// What ends the wait of a partition that is stopped.
enum Next {
    /// It was revoked, or the process stops.
    End,
    /// Perhaps the error has passed.
    Again,
    /// Its offset is to be another one.
    Reset,
}

/// Delivers a partition until `stop` says true. If it stops for another reason, it waits until it can continue, or ends
/// with the error: as [`Config::when_stopped`](super::Config::when_stopped) says. `broken`: it begins as stopped, by
/// this error.
pub(super) async fn own(
    shared: Arc<Shared>,
    list: Arc<Stopped>,
    partition: u32,
    mut stop: watch::Receiver<bool>,
    mut broken: Option<anyhow::Error>,
) -> anyhow::Result<Ended> {
    let mut entry: Option<Entry> = None;
    let mut told = String::new();
    // The last offset reset that was found to be applied already.
    let mut applied: Option<u64> = None;
    loop {
        let (error, may_pass) = match broken.take() {
            Some(error) => (error, false),
            None => match deliver(&shared, partition, &mut stop, &mut entry, &mut told).await {
                Ok(ended) => return Ok(ended),
                Err(error) => {
                    let may_pass = error.is::<Unreadable>() || error.is::<Failure>();
                    (error, may_pass)
                }
            },
        };
        if shared.config.when_stopped == WhenStopped::End || is_recreated(&error) || *stop.borrow() {
            return Err(error);
        }
        let why = format!("{error:#}");
        if why != told {
            let (destination, topic) = (shared.parts.group.name(), &shared.topic);
            let then = match may_pass {
                true => "it tries again every minute".to_owned(),
                false => format!(
                    "it waits for a restart of the process, or for an offset reset: eventd replay --dest {} --rewind \
                     --from PLACE --execute (with the same --url and --topic)",
                    flag_of(destination)
                ),
            };
            tracing::error!(destination, %topic, partition, "this partition is stopped, the others continue: {why}; {then}");
        }
        // Its end takes the partition off the list: before it is put there again.
        drop(entry.take());
        entry = Some(list.add(partition, why.clone()));
        shared.tally.stopped(partition);
        told = why;
        match wait(&shared, partition, may_pass, &mut applied, &mut stop).await {
            Next::End => return Ok(Ended::Drained),
            Next::Again => {}
            Next::Reset => {
                entry = None;
                told.clear();
            }
        }
    }
}

/// Whether delivery ended because the topic was deleted and made again: only if the log is opened again, it can continue.
pub(crate) fn is_recreated(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Unreadable>().is_some_and(|unreadable| unreadable.is_recreated)
}

/// One life of a worker. Once it has read the log, the partition is not stopped any more: it begins with what could not
/// be read.
async fn deliver(
    shared: &Arc<Shared>,
    partition: u32,
    stop: &mut watch::Receiver<bool>,
    entry: &mut Option<Entry>,
    told: &mut String,
) -> anyhow::Result<Ended> {
    // `begin` may wait for the group as long as it takes; a stop does not wait for it.
    let worker = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return Ok(Ended::Drained),
        begun = Worker::begin(Arc::clone(shared), partition) => begun?,
    };
    let has_read = worker.has_read();
    let mut life = std::pin::pin!(worker.run(stop.clone()));
    if entry.is_some() {
        tokio::select! {
            biased;
            ended = &mut life => return ended,
            () = has_read.notified() => {
                let (destination, topic) = (shared.parts.group.name(), &shared.topic);
                tracing::info!(destination, %topic, partition, "this partition is not stopped any more");
                *entry = None;
                told.clear();
            }
        }
    }
    life.await
}

async fn wait(
    shared: &Shared,
    partition: u32,
    may_pass: bool,
    applied: &mut Option<u64>,
    stop: &mut watch::Receiver<bool>,
) -> Next {
    let again_at = Instant::now() + STOPPED_INTERVAL;
    tokio::select! {
        biased;
        // An error: nobody is there any more who could tell.
        _ = stop.wait_for(|stop| *stop) => Next::End,
        () = sleep_until(again_at), if may_pass => Next::Again,
        () = asked(shared, partition, applied) => Next::Reset,
    }
}

/// Ready once an offset reset is asked for that the last commit does not hold. Beginning again applies it.
async fn asked(shared: &Shared, partition: u32, applied: &mut Option<u64>) {
    let group = &shared.parts.group;
    loop {
        // What cannot be seen now is looked for again: the reminder tells why the partition is stopped.
        let found = requested(&**group, partition, limits::MOVES_LOOK_MAX).await.ok().flatten();
        if let Some(wanted) = found.filter(|wanted| *applied != Some(wanted.id)) {
            match timeout(limits::MOVES_LOOK_MAX, group.committed(partition)).await {
                Ok(Ok(Some(state))) if state.lacks(&wanted) => return,
                Ok(Ok(_)) => *applied = Some(wanted.id),
                Ok(Err(_)) | Err(_) => {}
            }
        }
        sleep(limits::MOVES_LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_tells_of_all_that_are_stopped_as_long_as_they_are() {
        let list = Arc::new(Stopped::default());
        assert_eq!((list.told(), list.first()), (None, None));
        let mut entries: Vec<Entry> = (0..7).map(|partition| list.add(partition, format!("why {partition}"))).collect();
        let told = list.told().unwrap();
        assert!(told.starts_with("partition 0: why 0; partition 1: why 1; "), "{told}");
        assert!(told.ends_with("partition 4: why 4; and 2 more partitions"), "{told}");
        drop(entries.drain(1..));
        assert_eq!(list.told().as_deref(), Some("partition 0: why 0"));
        assert_eq!(list.first(), Some((0, "why 0".into())));
        drop(entries);
        assert_eq!(list.told(), None);
    }
}
