//! Prepares a replay: turns the request into offsets, finds out which events must be left out, and counts the rest.

use super::audit::{AuditLog, ReplayEnd, ReplayHistory, ReplayOutcome, ReplayStart};
use super::count::{self, NotFound};
use super::plan::{ParkedInPlan, PartitionPlan, Plan};
use super::range::{self, OffsetRange, Range, RangeFlags, UntilTime};
use super::select::Selection;
use super::{PreparedReplay, ReplayContext, ReplayRefused};
use crate::clock::{now_ms, show_ms};
use crate::core::progress::PartitionState;
use crate::core::side_topics::{dead_letter_group, dead_letter_topic, replay_group};
use crate::dispatch::{OnGap, dead_letter_topic as dead_letters};
use crate::log::{Log, OpenError};
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How many names a message lists before it only counts the rest.
const NAMES_SHOWN_MAX: usize = 10;

/// Prepares a new replay.
pub(super) async fn prepare_new(
    context: &ReplayContext,
    range: &Range,
    selection: &Selection,
    limit: Option<u64>,
    users_must_exist: bool,
) -> anyhow::Result<PreparedReplay> {
    let name = &context.spec.name;
    let committed = context.groups.committed(name, &context.log).await?;
    ensure_known(context, &committed).await?;
    let source = open_source(context, selection.dead).await?;
    let now_ms = now_ms();
    let flags = if selection.dead { RangeFlags::Since } else { RangeFlags::FromUntil };
    let ranges = range::resolve(&*source, range, flags, now_ms, UntilTime::ScanToEnd)
        .await?
        .map_err(|error| ReplayRefused::not_in_log(error.to_string()))?;
    let selection = Selection { times: range.times(now_ms), ..selection.clone() };
    let redriven = match selection.dead && !selection.again {
        true => context.groups.committed(&dead_letter_group(name), &source).await?,
        false => Vec::new(),
    };
    let partition_plan = |offsets: OffsetRange| {
        let of = |states: &[Option<PartitionState>]| states.get(offsets.partition as usize).cloned().flatten();
        let all = offsets.from..offsets.until;
        let initial_state = match (selection.dead, of(&redriven)) {
            // Deliver every dead letter that was not redriven.
            (true, None) => PartitionState::at(offsets.from),
            (true, Some(redriven)) => redriven.within(all),
            // Deliver every event that is settled. Without a commit none is.
            (false, _) => of(&committed).unwrap_or_else(|| PartitionState::at(offsets.from)).complement_in(all),
        };
        PartitionPlan { offsets, initial_state, parked: ParkedInPlan::LeftOut }
    };
    let mut partitions: Vec<PartitionPlan> = ranges.into_iter().map(partition_plan).collect();
    let (mut plan, not_found) =
        count(context, &*source, &mut partitions, &selection, limit, skips_damaged(context)).await?;
    if selection.dead {
        // A dead letter that counts as settled was redriven. It is not waiting for dispatch.
        plan.redriven = std::mem::take(&mut plan.on_their_way);
    }
    // A plan that the limit cut short has not looked for the rest.
    if limit.is_none() {
        check_found(not_found, selection.dead, users_must_exist)?;
    }
    let title = describe(context, range, &selection, limit);
    Ok(PreparedReplay { id: None, source, title, selection, partitions, plan })
}

/// Prepares to resume a replay: what is left of it, by its own commits.
pub(super) async fn prepare_resume(context: &ReplayContext, id: &str) -> anyhow::Result<PreparedReplay> {
    let (history, others) = find_resumable(context, id).await?;
    let others_redrive = others.values().any(|other| other.redrives_after(&history));
    let ReplayStart { selection, plan, title, .. } = history.started;
    let source = open_source(context, selection.dead).await?;
    let group = replay_group(&context.spec.name, id);
    let states = context.groups.committed(&group, &source).await?;
    let mut partitions = Vec::new();
    for part in &plan.partitions {
        let state = states.get(part.partition as usize).cloned().flatten();
        let initial_state = state.with_context(|| {
            format!("cannot resume: the progress of {group:?} in partition {} is missing", part.partition)
        })?;
        // Everything below the watermark is settled, so it need not be read again.
        let from = initial_state.watermark.clamp(part.from, part.until);
        let offsets = OffsetRange { partition: part.partition, from, until: part.until, removed: 0 };
        partitions.push(PartitionPlan { offsets, initial_state, parked: ParkedInPlan::LeftOut });
    }
    let (mut plan, _) = count(context, &*source, &mut partitions, &selection, None, skips_damaged(context)).await?;
    if selection.dead && !selection.again {
        // Dead letters that other replays have redriven in the meantime are left out when the plan is executed.
        let redriven = context.groups.committed(&dead_letter_group(&context.spec.name), &source).await?;
        let mut rest = partitions.clone();
        for PartitionPlan { offsets, initial_state, .. } in &mut rest {
            if let Some(redriven) = redriven.get(offsets.partition as usize).and_then(Option::as_ref) {
                *initial_state = initial_state.union(&redriven.within(offsets.from..offsets.until));
            }
        }
        if rest != partitions {
            let left = plan.events;
            (plan, _) = count(context, &*source, &mut rest, &selection, None, skips_damaged(context)).await?;
            // A dead letter is marked before the replay commits. If the replay was killed in between, the mark is its own.
            plan.redriven = if others_redrive { left - plan.events } else { 0 };
        }
    }
    // What counts as settled was delivered by this replay, or was never part of it. Dispatch does not deliver it.
    plan.on_their_way = 0;
    let title = format!("{title}, the rest of {id}");
    Ok(PreparedReplay { id: Some(id.to_owned()), source, title, selection, partitions, plan })
}

pub(super) async fn count(
    context: &ReplayContext,
    source: &dyn Log,
    partitions: &mut [PartitionPlan],
    selection: &Selection,
    limit: Option<u64>,
    skip_damaged: bool,
) -> anyhow::Result<(Plan, NotFound)> {
    count::count(source, context.log.topic(), partitions, selection, limit, skip_damaged).await
}

/// Whether records that cannot be read are left out. Otherwise they are an error.
pub(super) fn skips_damaged(context: &ReplayContext) -> bool {
    context.dispatch.on_gap == OnGap::Skip
}

/// Finds a replay that can be resumed for this destination. Also returns the histories of all others.
async fn find_resumable(
    context: &ReplayContext,
    id: &str,
) -> anyhow::Result<(ReplayHistory, BTreeMap<String, ReplayHistory>)> {
    let unknown = || ReplayRefused::usage(format!("there is no replay {id:?}. --list shows the ids"));
    let audit = AuditLog::open_existing(&*context.engine, context.log.topic()).await?.ok_or_else(unknown)?;
    let mut histories = audit.histories().await?;
    let history = histories.remove(id).ok_or_else(unknown)?;
    if history.destination != context.spec.name {
        let (theirs, ours) = (&history.destination, &context.spec.name);
        return Err(ReplayRefused::usage(format!("replay {id} is of destination {theirs:?}, and --dest is {ours:?}")));
    }
    if history.started.moves {
        return Err(ReplayRefused::usage(format!(
            "{id} moved the position of {:?}, so there is nothing to resume. Give that command again",
            history.destination
        )));
    }
    if let Some(ReplayEnd { at_ms, outcome: ReplayOutcome::Finished, .. }) = &history.ended {
        return Err(ReplayRefused::usage(format!("replay {id} has finished already, at {}", show_ms(*at_ms))));
    }
    Ok((history, histories))
}

/// Refuses a name that has no commits: it is probably mistyped, if there are events at all.
pub(super) async fn ensure_known(context: &ReplayContext, committed: &[Option<PartitionState>]) -> anyhow::Result<()> {
    if committed.iter().any(Option::is_some) {
        return Ok(());
    }
    let mut is_empty = true;
    for partition in 0..context.log.partitions().await? {
        is_empty &= context.log.latest(partition).await? == 0;
    }
    if is_empty {
        return Err(ReplayRefused::not_in_log(range::NO_EVENTS));
    }
    Err(ReplayRefused::usage(format!(
        "nothing of topic {:?} was ever delivered under the name {:?}. Write --dest NAME=TARGET with the name that \
         dispatch uses",
        context.log.topic(),
        context.spec.name
    )))
}

/// Opens the log that holds the events.
async fn open_source(context: &ReplayContext, dead: bool) -> anyhow::Result<Arc<dyn Log>> {
    if !dead {
        return Ok(Arc::clone(&context.log));
    }
    let topic = dead_letter_topic(context.log.topic(), &context.spec.name);
    match context.engine.open(&topic, None).await {
        Ok(log) => {
            dead_letters::ensure_own(&*log, context.log.topic(), &context.spec.name).await?;
            Ok(log)
        }
        Err(OpenError::Missing { .. }) => Err(ReplayRefused::not_in_log(format!(
            "{:?} has no dead letters: it has never given up an event",
            context.spec.name
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Refuses ids that are not in the range. Users that are not in the range are an error only if they must exist.
fn check_found(not_found: NotFound, dead: bool, users_must_exist: bool) -> anyhow::Result<()> {
    if !not_found.ids.is_empty() {
        let what = if dead { "no dead letter" } else { "no event in the range" };
        return Err(ReplayRefused::not_in_log(format!("{what} has the id {}", list(&not_found.ids))));
    }
    if !not_found.users.is_empty() {
        let what = if dead { "there is no dead letter" } else { "the range has no event" };
        let why = format!("{what} of the user {}", list(&not_found.users));
        if users_must_exist {
            return Err(ReplayRefused::not_in_log(why));
        }
        tracing::warn!("{why}");
    }
    Ok(())
}

fn list(names: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect();
    let more = names.len() - shown.len();
    shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// What is replayed, in the words of the flags.
fn describe(context: &ReplayContext, range: &Range, selection: &Selection, limit: Option<u64>) -> String {
    let mut words = vec![match selection.dead {
        true => format!("the dead letters of {}", context.spec.name),
        false => format!("{} for {}", context.log.topic(), context.spec.name),
    }];
    let named = |names: &BTreeSet<String>, noun: &str| match names.len() {
        0 => None,
        1 => names.first().map(|name| format!("{noun} {name}")),
        n => Some(format!("{n} {noun}s")),
    };
    let from = if selection.dead { "since" } else { "from" };
    words.extend(range.from.as_ref().map(|position| format!("{from} {position}")));
    words.extend(range.until.as_ref().map(|until| format!("until {until}")));
    words.extend(named(&selection.users, "user"));
    words.extend(named(&selection.ids, "id"));
    words.extend(selection.reasons.iter().map(|reason| format!("reason {reason}")));
    words.extend(limit.map(|limit| format!("at most {limit}")));
    words.extend(selection.again.then(|| "including what was replayed before".to_owned()));
    words.join(", ")
}
