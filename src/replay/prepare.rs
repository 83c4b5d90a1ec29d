//! From what was asked for to a plan: which offsets, what of them is to be taken, and how many events that is.

use super::audit::{AuditLog, ReplayHistory, ReplayOutcome, ReplayStart};
use super::plan::{self, NotFound, PartitionPlan, Plan};
use super::position::show_ms;
use super::range::{self, OffsetRange, Range, UntilTime};
use super::select::Selection;
use super::{PreparedReplay, ReplayContext, ReplayRefused};
use crate::clock::now_ms;
use crate::core::progress::PartitionState;
use crate::core::side_topics::{dead_letter_group, dead_letter_topic, replay_group};
use crate::dispatch::{OnGap, dead_letter};
use crate::log::{Log, OpenError};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The range in offsets, or what the log holds instead.
pub(super) async fn stretches(
    source: &dyn Log,
    range: &Range,
    now_ms: i64,
    time_as_end: UntilTime,
) -> anyhow::Result<Vec<OffsetRange>> {
    let found = range::resolve(source, range, now_ms, time_as_end).await?;
    found.map_err(|outside| ReplayRefused::outside(outside.into_why()))
}

pub(super) async fn plan_new(
    context: &ReplayContext,
    range: &Range,
    selection: &Selection,
    limit: Option<u64>,
    every_user: bool,
) -> anyhow::Result<PreparedReplay> {
    let name = &context.spec.name;
    let known = context.groups.committed(name, &context.log).await?;
    ensure_known(context, &known)?;
    let source = source(context, selection.dead).await?;
    let now_ms = now_ms();
    let stretches = stretches(&*source, range, now_ms, UntilTime::Scan).await?;
    let selection = Selection { times: range.times(now_ms), ..selection.clone() };
    let redriven = match selection.dead && !selection.again {
        true => context.groups.committed(&dead_letter_group(name), &source).await?,
        false => Vec::new(),
    };
    let leg = |stretch: OffsetRange| {
        let of = |states: &[Option<PartitionState>]| states.get(stretch.partition as usize).cloned().flatten();
        let all = stretch.from..stretch.until;
        let state = match (selection.dead, of(&redriven)) {
            // Letters: all but those that were redriven.
            (true, None) => PartitionState::at(stretch.from),
            (true, Some(redriven)) => redriven.within(all),
            // Events: those that are settled, which is none where there is no commit.
            (false, _) => of(&known).unwrap_or_else(|| PartitionState::at(stretch.from)).complement_in(all),
        };
        PartitionPlan { stretch, state }
    };
    let mut legs: Vec<PartitionPlan> = stretches.into_iter().map(leg).collect();
    let (mut plan, unseen) = count(context, &*source, &mut legs, &selection, limit, skips_damaged(context)).await?;
    if selection.dead {
        // Not on their way: redriven already.
        plan.redriven = std::mem::take(&mut plan.on_their_way);
    }
    check_seen(unseen, every_user, limit.is_some())?;
    let what = describe(context, range, &selection, limit);
    Ok(PreparedReplay { id: None, source, what, selection, legs, plan })
}

/// What is left of a replay, by its own commits.
pub(super) async fn plan_resume(context: &ReplayContext, id: &str) -> anyhow::Result<PreparedReplay> {
    let history = find(context, id).await?;
    let ReplayStart { selection, plan, what, .. } = history.started;
    let source = source(context, selection.dead).await?;
    let group = replay_group(&context.spec.name, id);
    let states = context.groups.committed(&group, &source).await?;
    let mut legs = Vec::new();
    for part in &plan.partitions {
        let stretch = OffsetRange { partition: part.partition, from: part.from, until: part.until, removed: 0 };
        let state = states.get(part.partition as usize).cloned().flatten();
        let state =
            state.with_context(|| format!("the progress of {group:?} in partition {} is gone", part.partition))?;
        // What is settled need not be read again.
        let from = state.watermark.clamp(stretch.from, stretch.until);
        legs.push(PartitionPlan { stretch: OffsetRange { from, ..stretch }, state });
    }
    let (mut plan, _) = count(context, &*source, &mut legs, &selection, None, skips_damaged(context)).await?;
    // Settled by this replay, or never to be taken.
    plan.on_their_way = 0;
    Ok(PreparedReplay {
        id: Some(id.to_owned()),
        source,
        what: format!("{what}, the rest of {id}"),
        selection,
        legs,
        plan,
    })
}

pub(super) async fn count(
    context: &ReplayContext,
    source: &dyn Log,
    legs: &mut [PartitionPlan],
    selection: &Selection,
    limit: Option<u64>,
    skip_damaged: bool,
) -> anyhow::Result<(Plan, NotFound)> {
    plan::count(source, context.log.topic(), legs, selection, limit, skip_damaged).await
}

/// Whether what cannot be read is left out, instead of an error.
pub(super) fn skips_damaged(context: &ReplayContext) -> bool {
    context.dispatch.on_gap == OnGap::Skip
}

async fn find(context: &ReplayContext, id: &str) -> anyhow::Result<ReplayHistory> {
    let unknown = || ReplayRefused::usage(format!("there is no replay {id:?}: --list shows those that there are"));
    let audit = AuditLog::open_existing(&*context.engine, context.log.topic()).await?.ok_or_else(unknown)?;
    let history = audit.histories().await?.remove(id).ok_or_else(unknown)?;
    if history.destination != context.spec.name {
        let (theirs, ours) = (&history.destination, &context.spec.name);
        return Err(ReplayRefused::usage(format!("replay {id} is of destination {theirs:?}, and --dest is {ours:?}")));
    }
    if history.started.moves {
        return Err(ReplayRefused::usage(format!(
            "{id} moved the position of {:?}: give that command again",
            history.destination
        )));
    }
    if let Some((at_ms, ReplayOutcome::Finished, _)) = &history.ended {
        return Err(ReplayRefused::usage(format!("replay {id} has finished already, at {}", show_ms(*at_ms))));
    }
    Ok(history)
}

/// A name that nobody ever delivered under is a mistyped one.
pub(super) fn ensure_known(context: &ReplayContext, states: &[Option<PartitionState>]) -> anyhow::Result<()> {
    if states.iter().any(Option::is_some) {
        return Ok(());
    }
    Err(ReplayRefused::usage(format!(
        "nothing of {:?} was ever delivered under the name {:?}: write --dest NAME=DEST with the name that dispatch has",
        context.log.topic(),
        context.spec.name
    )))
}

/// Where the events are.
async fn source(context: &ReplayContext, dead: bool) -> anyhow::Result<Arc<dyn Log>> {
    if !dead {
        return Ok(Arc::clone(&context.log));
    }
    let topic = dead_letter_topic(context.log.topic(), &context.spec.name);
    match context.engine.open(&topic, None).await {
        Ok(log) => {
            dead_letter::ensure_own(&*log, context.log.topic(), &context.spec.name).await?;
            Ok(log)
        }
        Err(OpenError::Missing { .. }) => Err(ReplayRefused::outside(format!(
            "{:?} has no dead letters: nothing was ever given up",
            context.spec.name
        ))),
        Err(error) => Err(error.into()),
    }
}

fn check_seen(unseen: NotFound, every_user: bool, limited: bool) -> anyhow::Result<()> {
    // A plan that was cut short says nothing of what is behind the cut.
    if limited {
        return Ok(());
    }
    let first = |names: &BTreeSet<String>| {
        let shown: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
        let more = names.len() - shown.len();
        shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    if !unseen.ids.is_empty() {
        return Err(ReplayRefused::outside(format!("no event in the range has the id {}", first(&unseen.ids))));
    }
    if !unseen.users.is_empty() {
        let why = format!("the range has no event of the user {}", first(&unseen.users));
        ensure!(!every_user, ReplayRefused { why, is_usage: false });
        tracing::warn!("{why}");
    }
    Ok(())
}

/// What is replayed, in the words of the flags.
fn describe(context: &ReplayContext, range: &Range, selection: &Selection, limit: Option<u64>) -> String {
    let mut words = vec![match selection.dead {
        true => format!("the dead letters of {}", context.spec.name),
        false => format!("{} for {}", context.log.topic(), context.spec.name),
    }];
    let named = |names: &BTreeSet<String>, one: &str| match names.len() {
        0 => None,
        1 => names.first().map(|name| format!("{one} {name}")),
        n => Some(format!("{n} {one}s")),
    };
    let from = if selection.dead { "since" } else { "from" };
    words.extend(range.from.as_ref().map(|place| format!("{from} {place}")));
    words.extend(range.until.as_ref().map(|until| format!("until {until}")));
    words.extend(named(&selection.users, "user"));
    words.extend(named(&selection.ids, "id"));
    words.extend(selection.reasons.iter().cloned());
    words.extend(limit.map(|limit| format!("at most {limit}")));
    words.extend(selection.again.then(|| "also what was replayed before".to_owned()));
    words.join(", ")
}
