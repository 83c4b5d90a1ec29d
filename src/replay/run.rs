//! Delivers the events of a replay: runs dispatch over the filtered log, and watches it until it is done or must stop.
//!
//! ```text
//!  a signal ────────────────┐
//!  all partitions done ─────┼──▶ dispatch drains, commits and leaves ──▶ RunResult
//!  --stop-after-failures ───┤
//!  the destination is lost ─┘
//! ```

use super::audit::ReplayOutcome;
use super::plan::{DeliveryCounts, PartitionPlan};
use super::redrive::{RedriveDestination, RedriveMarker};
use super::replay_group::{ReplayGroup, partition_ends};
use super::replay_log::ReplayLog;
use super::select::Selection;
use super::{LOG_INTERVAL, ReplayContext, Streams};
use crate::core::parking::ParkingLimits;
use crate::core::progress::ParkedEvents;
use crate::core::token_bucket::Rate;
use crate::destination::{Destination, LostDestination};
use crate::dispatch::{self, Parts, Tally, WhenStopped};
use crate::group::Group;
use crate::log::Log;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How often the progress line on a terminal is written again.
const PROGRESS_LINE_INTERVAL: Duration = Duration::from_millis(200);

/// A replay that is ready to deliver.
pub(super) struct ReplayRun {
    pub(super) id: String,
    /// The log that holds the events: the main topic, or the one of dead letters.
    pub(super) source: Arc<dyn Log>,
    pub(super) selection: Selection,
    pub(super) partitions: Vec<PartitionPlan>,
    /// The replay's own group, joined, with the first states committed.
    pub(super) group: Arc<dyn Group>,
    /// Marks dead letters as redriven. `None` if the source is the main topic.
    pub(super) marker: Option<Arc<RedriveMarker>>,
    pub(super) destination: Arc<dyn Destination>,
    /// Events that are left to deliver.
    pub(super) events: u64,
    pub(super) rate: Option<Rate>,
    /// 0 is never.
    pub(super) stop_after_failures: u64,
}

/// How a run ended.
pub(super) struct RunResult {
    pub(super) outcome: ReplayOutcome,
    pub(super) counts: DeliveryCounts,
    /// Why it ended, unless it finished.
    pub(super) why: String,
    /// The error, if the run failed.
    pub(super) error: Option<anyhow::Error>,
}

/// The events that the destination had not settled when the plan was made, although their offsets count as settled.
fn left_out(partitions: &[PartitionPlan]) -> BTreeMap<u32, ParkedEvents> {
    let of = |plan: &PartitionPlan| (plan.offsets.partition, ParkedEvents::of(&plan.initial_state.users));
    partitions.iter().map(of).collect()
}

/// Delivers until every event is settled, `stop` is ready, or the run fails.
pub(super) async fn run(
    context: &ReplayContext,
    replay: ReplayRun,
    stop: impl Future<Output = ()> + Send,
) -> RunResult {
    let ReplayRun { partitions, group, marker, destination, events, rate, stop_after_failures, .. } = replay;
    let log = Arc::new(ReplayLog {
        source: replay.source,
        topic: context.log.topic().to_owned(),
        replay_id: replay.id,
        selection: replay.selection,
        ends: partition_ends(&partitions),
        left_out: left_out(&partitions),
        marker: marker.clone(),
    });
    let group = Arc::new(ReplayGroup::new(group, &context.spec.name, &partitions, marker.clone()));
    let parts = Parts {
        engine: Arc::clone(&context.engine),
        log,
        group: group.clone(),
        destination: Arc::clone(&destination),
        wall_clock: context.wall_clock.clone(),
    };
    let tally = Arc::new(Tally::default());
    let stop_reason = watch::Sender::new("stopped by a signal".to_owned());
    let lost = watch::Sender::new(None);
    let shutdown = async {
        tokio::select! {
            biased;
            () = all_done(group.open_partitions(), tally.stopped_partitions()) => {}
            () = stop => {}
            // Dispatch leaves the replay's group, so that `--resume` need not wait until the session of this member ends.
            reason = destination.lost() => { lost.send_replace(Some(reason)); }
            failures = too_many_failures(tally.failures_in_a_row(), stop_after_failures) => {
                stop_reason.send_replace(format!(
                    "stopped after {failures} failures in a row (--stop-after-failures). Check the destination first"
                ));
            }
        }
    };
    // A replay settles arbitrary events of a user, so its state cannot say from which one on a user waits.
    let parking = ParkingLimits { may_park: false, ..context.dispatch.parking };
    let config = dispatch::Config { when_stopped: WhenStopped::End, parking, ..context.dispatch.clone() };
    let delivery = dispatch::run_counted(parts, config, rate, Arc::clone(&tally), shutdown);
    let ended = tokio::select! {
        biased;
        ended = delivery => ended,
        never = report_progress(&*context.streams, &tally, events) => match never {},
    };
    if let Some(marker) = &marker {
        marker.leave().await;
    }
    let counts = counts(&tally);
    let is_done = group.open_partitions().borrow().is_empty();
    let result = |outcome, why, error| RunResult { outcome, counts, why, error };
    let ended = match lost.borrow().clone() {
        // The cause of what dispatch reports, if that is an error too.
        Some(reason) if !is_done => Err(LostDestination(reason).into()),
        _ => ended,
    };
    match ended {
        Ok(_) if is_done => result(ReplayOutcome::Finished, String::new(), None),
        Ok(_) => result(ReplayOutcome::Stopped, stop_reason.borrow().clone(), None),
        Err(error) => result(ReplayOutcome::Failed, format!("{error:#}"), Some(error)),
    }
}

pub(super) async fn open_destination(context: &ReplayContext, dead: bool) -> anyhow::Result<Arc<dyn Destination>> {
    let destination = context.opener.open(&context.spec).await?;
    Ok(if dead { Arc::new(RedriveDestination(destination)) } else { destination })
}

/// Ready once every partition is done or has stopped. A partition that has stopped cannot finish in this run.
async fn all_done(mut open: watch::Receiver<BTreeSet<u32>>, mut stopped: watch::Receiver<BTreeSet<u32>>) {
    while !open.borrow_and_update().is_subset(&stopped.borrow_and_update()) {
        tokio::select! {
            biased;
            Ok(()) = open.changed() => {}
            Ok(()) = stopped.changed() => {}
            else => return,
        }
    }
}

/// Ready with the number of failures in a row, once it reaches `max`. Never ready if `max` is 0.
async fn too_many_failures(mut failures: watch::Receiver<u64>, max: u64) -> u64 {
    let reached = failures.wait_for(|failures| max > 0 && *failures >= max).await.map(|failures| *failures);
    match reached {
        Ok(failures) => failures,
        Err(_) => std::future::pending().await,
    }
}

fn counts(tally: &Tally) -> DeliveryCounts {
    DeliveryCounts {
        delivered: tally.delivered(),
        given_up: tally.given_up(),
        dropped: tally.dropped(),
        failed: tally.failed(),
    }
}

/// Reports the progress: on a terminal in one line that is written again and again, otherwise as a log line every few
/// seconds.
async fn report_progress(streams: &dyn Streams, tally: &Tally, events: u64) -> Infallible {
    let (started, on_terminal) = (Instant::now(), streams.has_terminal());
    let _line = on_terminal.then(|| ProgressLine(streams));
    loop {
        sleep(if on_terminal { PROGRESS_LINE_INTERVAL } else { LOG_INTERVAL }).await;
        let counts = counts(tally);
        let per_sec = counts.settled() as f64 / started.elapsed().as_secs_f64();
        if on_terminal {
            let text = progress_line(counts, events, per_sec);
            // If the terminal is gone, the replay continues without the line.
            streams.err(&format!("\r\x1b[K{text}")).unwrap_or_default();
        } else {
            let DeliveryCounts { delivered, given_up, dropped, failed } = counts;
            let left = events.saturating_sub(counts.settled());
            tracing::info!(
                delivered,
                left,
                given_up,
                dropped,
                failed_attempts = failed,
                per_sec = per_sec.round(),
                "replay in progress"
            );
        }
    }
}

/// Clears the progress line when it is dropped, so that the next message starts on an empty line.
struct ProgressLine<'s>(&'s dyn Streams);

impl Drop for ProgressLine<'_> {
    fn drop(&mut self) {
        self.0.err("\r\x1b[K").unwrap_or_default();
    }
}

fn progress_line(counts: DeliveryCounts, events: u64, per_sec: f64) -> String {
    const BAR_CHARS: u64 = 24;
    let settled = counts.settled();
    // More may be settled than was planned: a crash repeats events, and a dead letter may have been written twice.
    let filled = (settled.min(events) * BAR_CHARS).checked_div(events).unwrap_or(BAR_CHARS) as usize;
    let time_left = Duration::try_from_secs_f64((events.saturating_sub(settled)) as f64 / per_sec);
    let time_left = match time_left {
        Ok(time) => humantime::format_duration(Duration::from_secs(time.as_secs())).to_string(),
        Err(_) => "?".into(),
    };
    let mut failed = match (counts.given_up, counts.failed) {
        (0, 0) => String::new(),
        (given_up, failed) => format!(", {failed} attempts failed, {given_up} given up"),
    };
    if counts.dropped > 0 {
        failed += &format!(", {} dropped", counts.dropped);
    }
    format!(
        "[{}{}] {settled} of {events}, {per_sec:.0}/s, {time_left} left{failed}",
        "#".repeat(filled),
        ".".repeat(BAR_CHARS as usize - filled)
    )
}

#[cfg(test)]
mod tests {
    use super::super::StandardStreams;
    use super::super::ids::SystemIds;
    use super::super::plan::ParkedInPlan;
    use super::super::range::OffsetRange;
    use super::*;
    use crate::BoxFuture;
    use crate::clock::WallClock;
    use crate::core::backoff::Backoff;
    use crate::core::event::Record;
    use crate::core::progress::PartitionState;
    use crate::core::tries::{OnExhausted, TryPolicy};
    use crate::core::verdict::Report;
    use crate::destination::spec::Spec;
    use crate::destination::{BatchLimits, DeliveryBatch, DestinationSettings};
    use crate::group::sqlite::SqliteGroups;
    use crate::group::{Groups as _, JoinOptions};
    use crate::log::sqlite::{Settings, Sqlite};
    use crate::log::{CreateTopic, Engine as _};

    /// Whether the future is ready now. It may be polled again later.
    async fn is_ready(future: &mut std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        tokio::time::timeout(Duration::ZERO, future.as_mut()).await.is_ok()
    }

    #[tokio::test]
    async fn a_run_is_done_once_every_partition_is_done_or_has_stopped() {
        let (open, stopped) = (watch::Sender::new(BTreeSet::from([0, 1, 2])), watch::Sender::new(BTreeSet::new()));
        let mut done = std::pin::pin!(all_done(open.subscribe(), stopped.subscribe()));
        assert!(!is_ready(&mut done).await, "three partitions are open");
        open.send_modify(|open| _ = open.remove(&1));
        assert!(!is_ready(&mut done).await, "two partitions are open");
        stopped.send_modify(|stopped| _ = stopped.insert(2));
        assert!(!is_ready(&mut done).await, "one partition is open and has not stopped");
        open.send_modify(|open| _ = open.remove(&0));
        assert!(is_ready(&mut done).await, "the only open partition has stopped");
    }

    #[tokio::test]
    async fn a_run_stops_at_the_given_number_of_failures_in_a_row_and_never_if_it_is_0() {
        for (max, failures, stops) in [(3, 2, false), (3, 3, true), (0, 1_000_000, false)] {
            let in_a_row = watch::Sender::new(failures);
            let reached = too_many_failures(in_a_row.subscribe(), max);
            let is_reached = tokio::time::timeout(Duration::ZERO, reached).await.is_ok();
            assert_eq!(is_reached, stops, "{failures} of {max}");
        }
    }

    #[test]
    fn the_progress_line_shows_the_share_and_what_failed() {
        let counts =
            |delivered, given_up, failed| DeliveryCounts { delivered, given_up, failed, ..DeliveryCounts::default() };
        let half = progress_line(counts(500, 0, 0), 1_000, 100.0);
        assert_eq!(half, "[############............] 500 of 1000, 100/s, 5s left");
        let failing = progress_line(counts(0, 3, 30), 0, 0.0);
        let is_full = failing.starts_with("[########################] 3 of 0");
        assert!(is_full && failing.ends_with("30 attempts failed, 3 given up"), "{failing}");
        let dropping = progress_line(DeliveryCounts { dropped: 3, ..counts(1, 0, 3) }, 4, 1.0);
        assert!(dropping.contains("] 4 of 4, ") && dropping.ends_with(", 3 dropped"), "{dropping}");
    }

    /// A destination with a defect: it cannot be used any more from the start.
    #[derive(Debug)]
    struct BrokenDestination;

    impl Destination for BrokenDestination {
        fn limits(&self) -> BatchLimits {
            BatchLimits { runs_max: 1, run_events_max: 1, run_bytes_max: 1 }
        }

        fn deliver(&self, _batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
            unreachable!("the run ends before it delivers")
        }

        fn lost(&self) -> BoxFuture<'_, String> {
            Box::pin(std::future::ready("its thread panicked".into()))
        }
    }

    fn dispatch_config() -> dispatch::Config {
        let second = Duration::from_secs(1);
        dispatch::Config {
            tries: TryPolicy {
                attempts_max: Some(1),
                give_up_after: None,
                on_exhausted: OnExhausted::DeadLetter,
                backoff: Backoff::new(second, second, false).unwrap(),
                retry_after_max: second,
            },
            attempt_timeout: second,
            concurrency: 1,
            in_flight_events: 1,
            rate: None,
            window_events: 1,
            window_bytes: 1,
            parking: ParkingLimits { user_backlog: 1, users_max: 1, may_park: false },
            commit_interval: second,
            start: dispatch::Start::Earliest,
            on_gap: dispatch::OnGap::Stop,
            when_stopped: WhenStopped::End,
            drain: second,
            dead_retention: second,
            seed: 0,
        }
    }

    #[tokio::test]
    async fn a_run_whose_destination_is_lost_leaves_its_group_and_fails() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { create: true, ..Settings::default() };
        let engine = Sqlite::open(folder.path().join("log.db"), settings).await.unwrap();
        let log = engine.open("topic", Some(CreateTopic { partitions: 1, retention: None })).await.unwrap();
        log.append(0, vec![Record::new(Some(b"user"), Some(b"event"), &[], 0)]).await.unwrap();
        let groups = Arc::new(SqliteGroups::new(Arc::clone(&engine)));
        let join = || async { groups.join_alone("crm.replay.1", &log, &JoinOptions::new("digest")).await };
        let group = join().await.unwrap();
        let offsets = OffsetRange { partition: 0, from: 0, until: 1, removed: 0 };
        let replay = ReplayRun {
            id: "1".into(),
            source: Arc::clone(&log),
            selection: Selection::default(),
            partitions: vec![PartitionPlan {
                offsets,
                initial_state: PartitionState::at(0),
                parked: ParkedInPlan::LeftOut,
            }],
            // The test holds the group too, so only leaving the group releases it.
            group: Arc::clone(&group),
            marker: None,
            destination: Arc::new(BrokenDestination),
            events: 1,
            rate: None,
            stop_after_failures: 0,
        };
        let (spec, streams) = (Spec::parse("crm=null:").unwrap(), Arc::new(StandardStreams));
        let (opener, dispatch, ids) =
            (Arc::new(DestinationSettings::default()), dispatch_config(), Arc::new(SystemIds));
        let (log, groups) = (Arc::clone(&log), Arc::clone(&groups));
        let wall_clock = WallClock::system();
        let context = ReplayContext { engine, log, groups, spec, opener, dispatch, streams, wall_clock, ids };
        let result = run(&context, replay, std::future::pending()).await;
        assert_eq!(result.outcome, ReplayOutcome::Failed);
        assert_eq!(result.why, "the destination cannot be used any more: its thread panicked");
        assert!(join().await.is_ok(), "the group is held by no member");
    }
}
