//! Rewind and fast-forward: reset the destination's own offsets instead of delivering.
//!
//! After a rewind, dispatch delivers everything from the new position on again, in order with new events. After a
//! fast-forward, it never delivers what comes before the new position.
//!
//! ```text
//!  --rewind       ✓ ✓ ✓ ✓ ✓ ✓ · ✓ · ·      --fast-forward  ✓ ✓ · · ✓ · · · ·
//!  new position ─────┘                     new position ──────────────┘
//!  after          ✓ ✓ ✓ · · · · · · ·      after           ✓ ✓ ✓ ✓ ✓ ✓ ✓ · ·
//! ```
//!
//! The command requests the offset resets of all partitions in one write, under the group `<dest>.rewind`. The owner of
//! each partition applies its reset within a second, or when it next starts: it drains the partition and then commits a
//! state that holds the id of the reset. If no process owns the partitions, the command applies the resets itself, in
//! the same way. So each reset is applied exactly once, whichever process crashes, and a command that was interrupted
//! after the request need not be given again.

pub use super::position::Reposition;

use super::audit::{AuditEvent, AuditLog, ReplayOutcome, ReplayStart};
use super::ids::{new_replay_id, new_reset_id};
use super::plan::{DeliveryCounts, ParkedInPlan, PartitionPlan};
use super::position::Position;
use super::range::{self, OffsetRange, Range, RangeError, RangeFlags, TimeRange, UntilTime};
use super::select::Selection;
use super::{Config, LOG_INTERVAL, PreparedReplay, RETRIES_MAX, RETRY_DELAY, ReplayContext, ReplayRefused};
use super::{prepare, show};
use crate::BoxFuture;
use crate::clock::now_ms;
use crate::core::outcome::Ended;
use crate::core::progress::{OffsetReset, PartitionState, ResetTarget};
use crate::group::{JoinError, is_final};
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// Unsettled offsets that retention has removed, in one partition.
#[derive(Debug, Clone, Copy)]
struct RemovedGap {
    unsettled: u64,
    /// The earliest offset that the log still holds.
    earliest: i64,
}

/// Prepares the plan: the events that dispatch will deliver again, or will never deliver.
pub(super) async fn prepare(context: &ReplayContext, reposition: &Reposition) -> anyhow::Result<PreparedReplay> {
    let (name, topic) = (&context.spec.name, context.log.topic());
    let committed = context.groups.committed(name, &context.log).await?;
    prepare::ensure_known(context, &committed).await?;
    let (range, flags, title) = match reposition {
        Reposition::Rewind(to) => (
            Range { from: Some(to.clone()), until: None },
            RangeFlags::FromUntil,
            format!("rewind of {name} to {to}, in {topic}"),
        ),
        Reposition::FastForward(to) => (
            Range { from: None, until: Some(to.clone()) },
            RangeFlags::FastForward,
            format!("fast-forward of {name} to {to}, in {topic}"),
        ),
    };
    let now_ms = now_ms();
    let gaps = match reposition {
        Reposition::FastForward(to) => removed_gaps(context, to, &committed).await?,
        Reposition::Rewind(_) => BTreeMap::new(),
    };
    let ranges = match range::resolve(&*context.log, &range, flags, now_ms, UntilTime::FirstLaterEvent).await? {
        // The log has no records before the new position, so the fast-forward passes only the gap.
        Err(RangeError::Empty(_)) if !gaps.is_empty() => Vec::new(),
        ranges => ranges.map_err(|error| ReplayRefused::not_in_log(error.to_string()))?,
    };
    let mut partitions = partition_plans(reposition, with_gaps(ranges, &gaps), &committed);
    // A reset concerns every event after the new position, also those that came from a replay.
    let selection = Selection { again: true, ..Selection::default() };
    let source = Arc::clone(&context.log);
    // A fast-forward is the way to pass records that cannot be read, so they must not stop its plan.
    let skip_damaged = reposition.is_ahead() || prepare::skips_damaged(context);
    let (mut plan, _) = prepare::count(context, &*source, &mut partitions, &selection, None, skip_damaged).await?;
    if reposition.is_ahead() {
        // What counts as settled here is settled already, so the fast-forward does not change it.
        plan.on_their_way = 0;
        plan.unreadable += gaps.values().map(|gap| gap.unsettled).sum::<u64>();
    }
    plan.earlier = count_earlier_after_position(context, reposition, &committed, &partitions, now_ms).await?;
    Ok(PreparedReplay { id: None, source, title, selection, partitions, plan })
}

/// Finds the partitions in which the fast-forward passes unsettled events that retention has removed.
async fn removed_gaps(
    context: &ReplayContext,
    to: &Position,
    committed: &[Option<PartitionState>],
) -> anyhow::Result<BTreeMap<u32, RemovedGap>> {
    let mut gaps = BTreeMap::new();
    for (state, partition) in committed.iter().zip(0u32..) {
        let Some(state) = state else { continue };
        let earliest = context.log.earliest(partition).await?;
        let passes_gap = match to {
            Position::Offset(to) => *to >= earliest,
            Position::Offsets(offsets) | Position::DeprecatedOffsets(offsets) => {
                offsets.get(&partition).is_some_and(|to| *to >= earliest)
            }
            // A time always means an event that the log still holds, or its end.
            Position::Time(_) | Position::Ago(_) => true,
        };
        if state.needed_from() >= earliest || !passes_gap {
            continue;
        }
        let settled: i64 = state.settled.iter().map(|range| (range.end.min(earliest) - range.start).max(0)).sum();
        // Nothing is known of how many events a parked user had there.
        let unsettled = u64::try_from(earliest - state.watermark - settled).unwrap_or(0);
        gaps.insert(partition, RemovedGap { unsettled, earliest });
    }
    Ok(gaps)
}

/// Adds an empty range for each partition in which the fast-forward passes nothing but a gap.
fn with_gaps(mut ranges: Vec<OffsetRange>, gaps: &BTreeMap<u32, RemovedGap>) -> Vec<OffsetRange> {
    for (partition, RemovedGap { earliest, .. }) in gaps {
        if !ranges.iter().any(|range| range.partition == *partition) {
            ranges.push(OffsetRange { partition: *partition, from: *earliest, until: *earliest, removed: 0 });
        }
    }
    ranges
}

/// The plans of the partitions in which the destination has a position at all.
fn partition_plans(
    reposition: &Reposition,
    ranges: Vec<OffsetRange>,
    committed: &[Option<PartitionState>],
) -> Vec<PartitionPlan> {
    let mut partitions = Vec::new();
    for offsets in ranges {
        let Some(state) = committed.get(offsets.partition as usize).cloned().flatten() else { continue };
        let all = offsets.from..offsets.until;
        let (initial_state, parked) = match reposition {
            // Settled events are delivered again.
            Reposition::Rewind(_) => (state.complement_in(all), ParkedInPlan::LeftOut),
            // Unsettled events are never delivered.
            Reposition::FastForward(_) => (state.within(all), ParkedInPlan::Included),
        };
        partitions.push(PartitionPlan { offsets, initial_state, parked });
    }
    partitions
}

/// Counts the events after the new position that were accepted before the time that was asked for. Times in the log need
/// not be in order, and a position is one offset. So a rewind also delivers these events again, and a fast-forward does
/// not skip them.
async fn count_earlier_after_position(
    context: &ReplayContext,
    reposition: &Reposition,
    committed: &[Option<PartitionState>],
    partitions: &[PartitionPlan],
    now_ms: i64,
) -> anyhow::Result<u64> {
    let Some(until_ms) = reposition.position().time_ms(now_ms) else { return Ok(0) };
    let mut after_position = Vec::new();
    for plan in partitions {
        let OffsetRange { partition, until: position, .. } = plan.offsets;
        after_position.push(match reposition {
            Reposition::Rewind(_) => plan.clone(),
            Reposition::FastForward(_) => {
                let end = context.log.latest(partition).await?.max(position);
                let state = committed.get(partition as usize).cloned().flatten().unwrap_or_default();
                let offsets = OffsetRange { partition, from: position, until: end, removed: 0 };
                let initial_state = state.within(position..end);
                PartitionPlan { offsets, initial_state, parked: ParkedInPlan::Included }
            }
        });
    }
    let times = TimeRange { from_ms: None, until_ms: Some(until_ms) };
    let skip_damaged = reposition.is_ahead() || prepare::skips_damaged(context);
    let selection = Selection { again: true, times, ..Selection::default() };
    let (plan, _) = prepare::count(context, &*context.log, &mut after_position, &selection, None, skip_damaged).await?;
    Ok(plan.events)
}

/// Requests the offset reset of each partition in the plan, and waits until all of them are applied.
pub(super) async fn execute(
    context: &ReplayContext,
    config: &Config,
    reposition: &Reposition,
    prepared: PreparedReplay,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let (name, replay_id) = (&context.spec.name, new_replay_id(&*context.ids));
    let PreparedReplay { title, plan, selection, partitions, .. } = prepared;
    let states = retry_group_call(|| context.groups.committed(name, &context.log)).await?;
    let requested = retry_group_call(|| context.groups.requested_resets(name, &context.log)).await?;
    let id = new_reset_id(&*context.ids, &states, &requested);
    let reset = |PartitionPlan { offsets, .. }: &PartitionPlan| {
        let to = match reposition {
            Reposition::Rewind(_) => ResetTarget::Back(offsets.from),
            Reposition::FastForward(_) => ResetTarget::Ahead(offsets.until),
        };
        (offsets.partition, OffsetReset { id, to })
    };
    let resets: BTreeMap<u32, OffsetReset> = partitions.iter().map(reset).collect();
    let done = match reposition {
        Reposition::Rewind(_) => format!("position moved: dispatch delivers {} again", plan.describe_events()),
        Reposition::FastForward(_) => format!("position moved: {} will NEVER be delivered", plan.describe_events()),
    };
    let audit = AuditLog::open(&*context.engine, &*context.log).await?;
    let started = ReplayStart { to: context.spec.to_string(), title: title.clone(), selection, plan, moves: true };
    audit.write(&replay_id, name, AuditEvent::ReplayStarted(Box::new(started))).await?;
    let applied = request_and_wait(context, config, &resets, stop).await;
    let (outcome, why) = match &applied {
        Ok(true) => (ReplayOutcome::Finished, String::new()),
        Ok(false) => (
            ReplayOutcome::Stopped,
            "stopped by a signal. The new position is already requested: dispatch moves to it when it next looks"
                .into(),
        ),
        Err(error) => (ReplayOutcome::Failed, format!("{error:#}")),
    };
    let ended = AuditEvent::ReplayEnded { outcome, counts: DeliveryCounts::default(), why: why.clone() };
    audit.write(&replay_id, name, ended).await?;
    if !applied? {
        show::note(context, config, &why);
        return Ok(Ended::WorkLeft);
    }
    show::note(context, config, &format!("{done} ({title})"));
    Ok(Ended::Drained)
}

/// Requests the resets, and waits until they are applied. `false`: `stop` was ready first.
async fn request_and_wait(
    context: &ReplayContext,
    config: &Config,
    resets: &BTreeMap<u32, OffsetReset>,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<bool> {
    // The outcome of a request may be unknown. To store the same request a second time changes nothing.
    retry_group_call(|| context.groups.request_resets(&context.spec.name, &context.log, resets)).await.context(
        "the request for the new position may have been stored all the same. Give the command again to be sure",
    )?;
    tokio::select! {
        biased;
        applied = wait_until_applied(context, config, resets) => applied.map(|()| true),
        () = stop => Ok(false),
    }
}

/// Ready once every partition has applied its reset.
async fn wait_until_applied(
    context: &ReplayContext,
    config: &Config,
    resets: &BTreeMap<u32, OffsetReset>,
) -> anyhow::Result<()> {
    let name = &context.spec.name;
    let digest = context.spec.digest();
    let mut logged_at = None::<Instant>;
    loop {
        let is_owned =
            !retry_group_call(|| context.groups.apply_resets_if_unowned(name, &context.log, &digest, resets)).await?;
        // Read the requests before the states: if a later request has replaced this one after it was applied, the states
        // show that it was applied.
        let requested = retry_group_call(|| context.groups.requested_resets(name, &context.log)).await?;
        let states = retry_group_call(|| context.groups.committed(name, &context.log)).await?;
        let mut waiting = Vec::new();
        for (partition, reset) in resets {
            let applied = states.get(*partition as usize).and_then(Option::as_ref).and_then(|state| state.last_reset);
            if applied != Some(reset.id) {
                let current = requested.get(*partition as usize).copied().flatten();
                ensure!(
                    applied < Some(reset.id) && current == Some(*reset),
                    "another rewind or fast-forward of {name:?} has replaced this one in partition {partition}"
                );
                waiting.push(partition.to_string());
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        match logged_at {
            None if is_owned => {
                show::note(context, config, "dispatch is running: waiting until it has moved to the new position");
                logged_at = Some(Instant::now());
            }
            Some(at) if at.elapsed() >= LOG_INTERVAL => {
                tracing::info!(partitions = waiting.join(","), "waiting until dispatch has moved to the new position");
                logged_at = Some(Instant::now());
            }
            _ => {}
        }
        sleep(RETRY_DELAY).await;
    }
}

/// Calls again, a bounded number of times, if the group is not available.
pub(crate) async fn retry_group_call<'a, T>(
    call: impl Fn() -> BoxFuture<'a, Result<T, JoinError>>,
) -> Result<T, JoinError> {
    let mut failures = 0;
    loop {
        match call().await {
            Err(JoinError::Unavailable(failure)) if failures < RETRIES_MAX && !is_final(&failure) => {
                tracing::debug!("the group is not available, trying again: {failure}");
                failures += 1;
                sleep(RETRY_DELAY).await;
            }
            answer => return answer,
        }
    }
}
