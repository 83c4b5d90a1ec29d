//! Writes a command to the control topic, and waits until the owners have applied it.

use super::plan::CommandPlan;
use super::{CommandContext, CommandRefused, CommandResult, Config, FailedIn};
use crate::clock::now_ms;
use crate::core::control::ControlRecord;
use crate::core::progress::PartitionState;
use crate::core::side_topics::control_topic;
use crate::dispatch::commands::record;
use crate::limits::{CONTROL_LOOK_INTERVAL, TOPIC_CHARS_MAX};
use crate::log::{CreateTopic, Log};
use crate::replay::audit::Operator;
use crate::replay::retry_group_call;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How often the commits are read to see whether the command is applied.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the owners have before the command asks whether there are any. They look once a second.
const OWNER_LOOK_AFTER: Duration = CONTROL_LOOK_INTERVAL.saturating_mul(2);

/// How often an append is tried again, and how long after a failure. The outcome of a failed append may be unknown: a
/// command that is stored twice has the effect of one.
const APPEND_RETRIES_MAX: u32 = 20;
const APPEND_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Stores the command in the partitions of the plan, and waits.
pub(super) async fn send(
    context: &CommandContext,
    config: &Config,
    plan: &CommandPlan,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<CommandResult> {
    let id = Uuid::now_v7().to_string();
    let record = ControlRecord {
        id: id.as_str().into(),
        at_ms: now_ms(),
        by: Operator::of_this_process().to_string().into(),
        reason: config.reason.as_str().into(),
        command: plan.control_command().clone(),
    };
    let mut offsets = BTreeMap::new();
    // The topic may get more partitions at this moment. Their owners begin with the state of partition 0, which has the
    // command only after it was appended there. So the new ones get the command, too.
    loop {
        let partitions = context.log.partitions().await?;
        let missing: Vec<u32> = plan.partitions(partitions).filter(|at| !offsets.contains_key(at)).collect();
        if missing.is_empty() {
            break;
        }
        let topic = open(context, partitions).await?;
        for partition in missing {
            let offset = append(context, &*topic, partition, &record).await?;
            offsets.insert(partition, offset);
        }
    }
    let deadline = Instant::now() + config.wait;
    tokio::select! {
        biased;
        result = wait_until_applied(context, plan, &record, &offsets, deadline) => result,
        () = stop => Ok(CommandResult::Waiting { id: id.clone(), partitions: offsets.into_keys().collect() }),
    }
}

/// Opens the control topic with at least the partitions of the main topic. Creates it for the first command.
async fn open(context: &CommandContext, partitions: u32) -> anyhow::Result<Arc<dyn Log>> {
    let name = control_topic(context.log.topic(), &context.destination);
    ensure!(
        name.len() <= TOPIC_CHARS_MAX,
        CommandRefused::Usage(format!(
            "the topic {name:?} for commands would have more than {TOPIC_CHARS_MAX} characters: a destination with a shorter \
             name can be commanded"
        ))
    );
    // Commands are kept: they say who did what, when and why.
    let create = CreateTopic { partitions, retention: None };
    let topic = context.engine.open(&name, Some(create)).await.context("cannot open the topic of commands")?;
    let existing = topic.partitions().await?;
    ensure!(
        existing >= partitions,
        "the topic of commands {name:?} has {existing} partitions, but {:?} has {partitions}: add partitions to it with \
         Kafka's tools, or give eventd the right to alter it",
        context.log.topic()
    );
    Ok(topic)
}

async fn append(
    context: &CommandContext,
    topic: &dyn Log,
    partition: u32,
    command: &ControlRecord,
) -> anyhow::Result<i64> {
    let encoded = record::encode(command, context.log.topic(), &context.destination)?;
    ensure!(
        encoded.size_bytes() <= record::RECORD_BYTES_MAX,
        CommandRefused::Usage("--user is too long: no event can have this user".to_owned())
    );
    let mut failures = 0;
    loop {
        match topic.append(partition, vec![encoded.clone()]).await {
            Ok(offset) => return Ok(offset),
            Err(failure) => {
                failures += 1;
                if failures > APPEND_RETRIES_MAX {
                    return Err(failure).context(format!(
                        "cannot store the command in partition {partition}. It may have been stored all the same, there or \
                         in other partitions: give it again, which does no harm"
                    ));
                }
                sleep(APPEND_RETRY_DELAY).await;
            }
        }
    }
}

/// Reads the commits until they have the command, the destination turns out to have no owner, or the deadline is over.
async fn wait_until_applied(
    context: &CommandContext,
    plan: &CommandPlan,
    record: &ControlRecord,
    offsets: &BTreeMap<u32, i64>,
    deadline: Instant,
) -> anyhow::Result<CommandResult> {
    let id = &record.id;
    let owner_look_at = Instant::now() + OWNER_LOOK_AFTER;
    loop {
        let states = retry_group_call(|| context.groups.committed(&context.destination, &context.log)).await?;
        let is_applied = |(partition, offset): (&u32, &i64)| {
            let state = states.get(*partition as usize).and_then(Option::as_ref);
            state.is_some_and(|state| state.control.next > *offset)
        };
        let waiting: Vec<u32> =
            offsets.iter().filter(|entry| !is_applied(*entry)).map(|(partition, _)| *partition).collect();
        if waiting.is_empty() {
            return Ok(result_of(&states, plan, record, offsets));
        }
        let now = Instant::now();
        if now >= owner_look_at.min(deadline) {
            let is_owned = retry_group_call(|| context.groups.is_owned(&context.destination, &context.log)).await?;
            if !is_owned {
                return Ok(CommandResult::Unowned { id: id.to_string() });
            }
        }
        if now >= deadline {
            return Ok(CommandResult::Waiting { id: id.to_string(), partitions: waiting });
        }
        // A look at the owners costs another request, so they are looked at less often.
        let interval = if now >= owner_look_at { CONTROL_LOOK_INTERVAL } else { LOOK_INTERVAL };
        sleep(interval.min(deadline - now)).await;
    }
}

/// All owners have passed the command.
fn result_of(
    states: &[Option<PartitionState>],
    plan: &CommandPlan,
    record: &ControlRecord,
    offsets: &BTreeMap<u32, i64>,
) -> CommandResult {
    let partitions = u32::try_from(offsets.len()).unwrap_or(u32::MAX);
    let without_effect: Vec<FailedIn> = offsets.iter().filter_map(|at| failed_in(states, at)).collect();
    let id = record.id.to_string();
    if without_effect.iter().any(|failed| plan.needs_effect_in(failed.partition, partitions)) {
        return CommandResult::Failed { id, partitions: without_effect };
    }
    CommandResult::Applied { id, now: plan.state_after(states.iter().flatten(), record), without_effect }
}

/// Whether the owner of this partition has passed the command at this offset without its effect, and why.
fn failed_in(states: &[Option<PartitionState>], (partition, offset): (&u32, &i64)) -> Option<FailedIn> {
    let state = states.get(*partition as usize)?.as_ref()?;
    let failed = state.control.failed.iter().find(|failed| failed.offset == *offset)?;
    Some(FailedIn { partition: *partition, why: failed.why.to_string(), advice: failed.why.advice() })
}
