//! The redelivery itself: dispatch over the replay's view of the log, watched until it is done or has to stop.
//!
//! ```text
//!  a signal ────────────────┐
//!  every leg is done ───────┼──▶ dispatch drains, commits, leaves ──▶ what became of it
//!  --stop-after-failures ───┘
//! ```

use super::audit::ReplayOutcome;
use super::plan::{DeliveryCounts, PartitionPlan};
use super::select::Selection;
use super::view::{RedriveDestination, RedriveMarker, ReplayGroup, ReplayLog, ends_of};
use super::{ReplayContext, Streams};
use crate::core::token_bucket::Rate;
use crate::destination::Destination;
use crate::dispatch::{self, Parts, Tally, WhenStopped};
use crate::group::Group;
use crate::limits;
use crate::log::Log;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// One replay, ready to go.
pub(super) struct ReplayRun {
    pub(super) id: String,
    /// Where the events are: the topic, or that of dead letters.
    pub(super) source: Arc<dyn Log>,
    pub(super) selection: Selection,
    pub(super) legs: Vec<PartitionPlan>,
    /// Its own, joined, with the legs' states committed.
    pub(super) group: Arc<dyn Group>,
    /// Of dead letters: what marks them.
    pub(super) taken: Option<Arc<RedriveMarker>>,
    pub(super) destination: Arc<dyn Destination>,
    /// Events that are left to do.
    pub(super) events: u64,
    pub(super) rate: Option<Rate>,
    /// 0: never.
    pub(super) stop_after_failures: u64,
}

/// What became of a run.
pub(super) struct RunResult {
    pub(super) outcome: ReplayOutcome,
    pub(super) counts: DeliveryCounts,
    pub(super) why: String,
    /// The failure itself, where it is one.
    pub(super) error: Option<anyhow::Error>,
}

/// Delivers until it is done, has to stop, or cannot go on.
pub(super) async fn run(context: &ReplayContext, ready: ReplayRun, stop: impl Future<Output = ()> + Send) -> RunResult {
    let journal = Arc::new(ReplayGroup::new(ready.group, &context.spec.name, &ready.legs, ready.taken.clone()));
    let log = Arc::new(ReplayLog {
        log: ready.source,
        topic: context.log.topic().to_owned(),
        id: ready.id,
        selection: ready.selection,
        ends: ends_of(&ready.legs),
        taken: ready.taken.clone(),
    });
    let parts =
        Parts { engine: Arc::clone(&context.engine), log, group: journal.clone(), destination: ready.destination };
    let tally = Arc::new(Tally::default());
    let stopping = watch::Sender::new("stopped by a signal".to_owned());
    let shutdown = async {
        tokio::select! {
            biased;
            () = done(journal.open(), tally.stopped_partitions()) => {}
            () = stop => {}
            failures = too_many(tally.failures_in_a_row(), ready.stop_after_failures) => {
                stopping.send_replace(format!(
                    "stopped after {failures} failures in a row (--stop-after-failures): look at the destination first"
                ));
            }
        }
    };
    let config = dispatch::Config { when_stopped: WhenStopped::End, ..context.dispatch.clone() };
    let delivery = dispatch::run_counted(parts, config, ready.rate, Arc::clone(&tally), shutdown);
    let ended = tokio::select! {
        biased;
        ended = delivery => ended,
        never = tell(&*context.streams, &tally, ready.events) => match never {},
    };
    if let Some(taken) = &ready.taken {
        taken.leave().await;
    }
    let counts = counts(&tally);
    let is_done = journal.open().borrow().is_empty();
    let end = |outcome, why, error| RunResult { outcome, counts, why, error };
    match ended {
        Ok(_) if is_done => end(ReplayOutcome::Finished, String::new(), None),
        Ok(_) => end(ReplayOutcome::Stopped, stopping.borrow().clone(), None),
        Err(error) => end(ReplayOutcome::Failed, format!("{error:#}"), Some(error)),
    }
}

pub(super) async fn open_destination(context: &ReplayContext, dead: bool) -> anyhow::Result<Arc<dyn Destination>> {
    let destination = context.opener.open(&context.spec).await?;
    Ok(if dead { Arc::new(RedriveDestination(destination)) } else { destination })
}

/// ReplayRun once nothing is open but in partitions that have stopped.
async fn done(mut open: watch::Receiver<BTreeSet<u32>>, mut stopped: watch::Receiver<BTreeSet<u32>>) {
    while !open.borrow_and_update().is_subset(&stopped.borrow_and_update()) {
        tokio::select! {
            biased;
            Ok(()) = open.changed() => {}
            Ok(()) = stopped.changed() => {}
            else => return,
        }
    }
}

/// ReplayRun with the number of failures, once they are so many.
async fn too_many(mut failures: watch::Receiver<u64>, max: u64) -> u64 {
    let reached = failures.wait_for(|failures| max > 0 && *failures >= max).await.map(|failures| *failures);
    match reached {
        Ok(failures) => failures,
        Err(_) => std::future::pending().await,
    }
}

fn counts(tally: &Tally) -> DeliveryCounts {
    DeliveryCounts { delivered: tally.delivered(), given_up: tally.given_up(), failed: tally.failed() }
}

/// Says how far it is: in one line of a terminal that is written over, else as a log line every few seconds.
async fn tell(streams: &dyn Streams, tally: &Tally, events: u64) -> Infallible {
    let (began, on_terminal) = (Instant::now(), streams.has_terminal());
    let _line = on_terminal.then(|| ProgressLine(streams));
    loop {
        sleep(if on_terminal { limits::REPLAY_PROGRESS_INTERVAL } else { limits::REPLAY_LOG_INTERVAL }).await;
        let counts = counts(tally);
        let (settled, secs) = (counts.settled(), began.elapsed().as_secs_f64());
        let per_sec = settled as f64 / secs;
        if on_terminal {
            let text = bar(counts, events, per_sec);
            // Nobody may be looking any more, which is no reason to stop.
            streams.err(&format!("\r\x1b[K{text}")).unwrap_or_default();
        } else {
            let DeliveryCounts { delivered, given_up, failed } = counts;
            let left = events.saturating_sub(settled);
            tracing::info!(delivered, left, given_up, failed, per_sec = per_sec.round(), "replaying");
        }
    }
}

/// The line of a terminal; gone with its value, so that what is written next begins a line.
struct ProgressLine<'s>(&'s dyn Streams);

impl Drop for ProgressLine<'_> {
    fn drop(&mut self) {
        self.0.err("\r\x1b[K").unwrap_or_default();
    }
}

fn bar(counts: DeliveryCounts, events: u64, per_sec: f64) -> String {
    const WIDTH: u64 = 24;
    let settled = counts.settled();
    // What a crash repeats, and a letter that was written twice, may be more than was planned.
    let filled = (settled.min(events) * WIDTH).checked_div(events).unwrap_or(WIDTH) as usize;
    let left = Duration::try_from_secs_f64((events.saturating_sub(settled)) as f64 / per_sec);
    let left = match left {
        Ok(left) => humantime::format_duration(Duration::from_secs(left.as_secs())).to_string(),
        Err(_) => "?".into(),
    };
    let failed = match (counts.given_up, counts.failed) {
        (0, 0) => String::new(),
        (given_up, failed) => format!(", {failed} attempts failed, {given_up} given up"),
    };
    format!(
        "[{}{}] {settled} of {events}, {per_sec:.0}/s, {left} left{failed}",
        "#".repeat(filled),
        ".".repeat(WIDTH as usize - filled)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is ready now, however often it is asked.
    async fn is_ready(done: &mut std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::time::timeout(Duration::ZERO, done.as_mut()).await.is_ok()
    }

    #[tokio::test]
    async fn it_is_done_once_every_partition_is_done_or_has_stopped() {
        let (open, stopped) = (watch::Sender::new(BTreeSet::from([0, 1, 2])), watch::Sender::new(BTreeSet::new()));
        let mut done = std::pin::pin!(done(open.subscribe(), stopped.subscribe()));
        assert!(!is_ready(&mut done).await, "nothing is done");
        open.send_modify(|open| _ = open.remove(&1));
        assert!(!is_ready(&mut done).await, "two are open");
        stopped.send_modify(|stopped| _ = stopped.insert(2));
        assert!(!is_ready(&mut done).await, "one is open");
        open.send_modify(|open| _ = open.remove(&0));
        assert!(is_ready(&mut done).await, "what is open has stopped");
    }

    #[tokio::test]
    async fn failures_in_a_row_are_too_many_at_the_number_that_was_given_and_never_at_0() {
        for (max, failures, stops) in [(3, 2, false), (3, 3, true), (0, 1_000_000, false)] {
            let row = watch::Sender::new(failures);
            let reached = tokio::time::timeout(Duration::ZERO, too_many(row.subscribe(), max)).await.is_ok();
            assert_eq!(reached, stops, "{failures} of {max}");
        }
    }

    #[test]
    fn the_bar_fills_and_says_what_failed() {
        let counts = |delivered, given_up, failed| DeliveryCounts { delivered, given_up, failed };
        let half = bar(counts(500, 0, 0), 1_000, 100.0);
        assert_eq!(half, "[############............] 500 of 1000, 100/s, 5s left");
        let failing = bar(counts(0, 3, 30), 0, 0.0);
        assert!(
            failing.starts_with("[########################] 3 of 0") && failing.ends_with("3 given up"),
            "{failing}"
        );
    }
}
