//! Executes a plan: stores its first state, writes the audit record, delivers, and writes how it ended.

use super::audit::{AuditEvent, AuditLog, ReplayOutcome, ReplayStart};
use super::ids::new_replay_id;
use super::plan::PartitionPlan;
use super::redrive::RedriveMarker;
use super::run::{self, ReplayRun};
use super::show::{self, EarlierRuns, Planned};
use super::{Config, PreparedReplay, RETRIES_MAX, RETRY_DELAY, ReplayContext, ReplayRefused};
use crate::core::outcome::Ended;
use crate::core::progress::PartitionState;
use crate::core::side_topics::{dead_letter_group, replay_group};
use crate::group::{Group, JoinError, JoinOptions, is_final};
use crate::log::Log;
use anyhow::{Context, anyhow};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Delivers the events of the plan until they are settled or `stop` is ready.
pub(super) async fn execute(
    context: &ReplayContext,
    config: &Config,
    prepared: PreparedReplay,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let PreparedReplay { id: resumed, source, title, selection, mut partitions, plan } = prepared;
    let id = resumed.clone().unwrap_or_else(|| new_replay_id(&*context.ids));
    let name = &context.spec.name;
    let digest = context.spec.digest();
    // First, so that a destination that cannot be opened leaves nothing behind.
    let destination = run::open_destination(context, selection.dead).await?;
    let group = context.groups.join_alone(&replay_group(name, &id), &source, &JoinOptions::new(&digest)).await;
    let group = group.map_err(|error| match error {
        JoinError::Held { holder: Some(holder), .. } => {
            anyhow!("replay {id} is already running in process {}: wait for it, or stop it first", holder.pid)
        }
        error => error.into(),
    })?;
    let marker = match selection.dead {
        true => {
            let (marker, redriven) = join_dead_group(context, &source, &digest).await?;
            if !selection.again {
                leave_out_redriven(&mut partitions, &redriven);
            }
            Some(Arc::new(marker))
        }
        false => None,
    };
    let audit = AuditLog::open(&*context.engine, &*context.log).await?;
    let events = plan.events;
    let redriven_meanwhile = if resumed.is_some() { plan.redriven } else { 0 };
    for PartitionPlan { offsets, initial_state, .. } in &mut partitions {
        if resumed.is_some() {
            // Another process may have resumed this replay between the plan and the join. If it has finished, its
            // progress is forgotten, and this process must leave nothing behind either.
            let Some(committed) = group.committed(offsets.partition).await? else {
                group.leave().await;
                forget_progress(context, &id, &source).await;
                return Err(ReplayRefused::usage(format!(
                    "replay {id} was finished by another process in the meantime. --list shows how it ended"
                )));
            };
            *initial_state = initial_state.union(&committed);
        }
        commit(&*group, offsets.partition, initial_state).await?;
    }
    let started = match resumed {
        Some(_) => AuditEvent::ReplayResumed { left: events, redriven_meanwhile },
        None => {
            let (to, selection) = (context.spec.to_string(), selection.clone());
            AuditEvent::ReplayStarted(Box::new(ReplayStart { to, title, selection, plan, moves: false }))
        }
    };
    audit.write(&id, name, started).await?;
    let earlier = match resumed {
        // Read only now: until this process joined the group, another one could run this replay.
        Some(_) => audit.histories().await?.get(&id).map(EarlierRuns::of).unwrap_or_default(),
        None => EarlierRuns::default(),
    };
    tracing::info!(replay = id, destination = %name, events, "replaying; if it stops, continue with --resume {id}");
    let advice = show::ResumeAdvice::new(context, config, &id);
    let replay_run = ReplayRun {
        id: id.clone(),
        source: Arc::clone(&source),
        selection,
        partitions,
        group,
        marker,
        destination,
        events,
        rate: config.rate,
        stop_after_failures: config.stop_after_failures,
    };
    let result = run::run(context, replay_run, stop).await;
    let ended = AuditEvent::ReplayEnded { outcome: result.outcome, counts: result.counts, why: result.why.clone() };
    audit.write(&id, name, ended).await?;
    if result.outcome == ReplayOutcome::Finished {
        forget_progress(context, &id, &source).await;
    }
    advice.disarm();
    show::conclude(context, config, &id, Planned { events, redriven_meanwhile, earlier }, result)
}

/// Another replay may have redriven some of the dead letters after the plan was made, or since this replay stopped.
fn leave_out_redriven(partitions: &mut [PartitionPlan], redriven: &BTreeMap<u32, PartitionState>) {
    for PartitionPlan { offsets, initial_state, .. } in partitions {
        if let Some(redriven) = redriven.get(&offsets.partition) {
            *initial_state = initial_state.union(&redriven.within(offsets.from..offsets.until));
        }
    }
}

/// Removes the progress of a replay that has finished. It would keep the log from retention.
async fn forget_progress(context: &ReplayContext, id: &str, source: &Arc<dyn Log>) {
    if let Err(failure) = context.groups.forget(&replay_group(&context.spec.name, id), source).await {
        tracing::warn!(replay = id, "cannot remove the progress of this replay, which has finished: {failure}");
    }
}

/// Joins the group that says which dead letters were redriven, as its only member: two processes must not redrive the
/// same dead letters at the same time.
async fn join_dead_group(
    context: &ReplayContext,
    source: &Arc<dyn Log>,
    digest: &str,
) -> anyhow::Result<(RedriveMarker, BTreeMap<u32, PartitionState>)> {
    let group =
        context.groups.join_alone(&dead_letter_group(&context.spec.name), source, &JoinOptions::new(digest)).await?;
    let mut redriven = BTreeMap::new();
    for partition in 0..source.partitions().await? {
        let state = match group.committed(partition).await? {
            Some(state) => state,
            None => PartitionState::at(source.earliest(partition).await?),
        };
        redriven.insert(partition, state);
    }
    Ok((RedriveMarker::new(group, &redriven), redriven))
}

async fn commit(group: &dyn Group, partition: u32, state: &PartitionState) -> anyhow::Result<()> {
    let mut failures = 0;
    while let Err(failure) = group.commit(partition, state.clone()).await {
        failures += 1;
        if is_final(&failure) || failures > RETRIES_MAX {
            return Err(failure).context("cannot store the first state of the replay. Nothing was delivered");
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
    Ok(())
}
