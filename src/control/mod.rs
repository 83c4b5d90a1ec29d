//! `eventd control`: sends an operator's command to the owners of a destination, and waits until they have applied it.
//!
//! ```text
//!  flags ─▶ plan: what the last commits say ─▶ printed ─▶ <topic>.<dest>.control, a record in every partition
//!                                                              │
//!            owners of the partitions ◀── once a second ───────┘
//!                 └─▶ the next commit has the offset of the command ─▶ seen here: applied
//! ```
//!
//! The command needs no connection to the owners. It works from any machine that reaches the log, and while no process
//! owns the destination: then the next owner applies it.
//!
//! # Which partitions
//!
//! Every command goes to every partition, also a command about one user. The partition of a user cannot be computed for
//! certain: other producers may use another partitioner, and a topic on Kafka may have got more partitions since an event
//! was stored, so that one user has events in two of them. An owner that has no event of the user does nothing, or
//! remembers that the user is held. So what counts is the effect in the partition that has the user's events. Only `give-up`
//! goes to a single partition, because it names an offset there.

mod history;
mod known;
mod plan;
mod scan;
mod send;
mod user_events;

use self::plan::CommandPlan;
use crate::core::control::{ControlCommand, UserAction};
use crate::core::outcome::Ended;
use crate::core::text::{escaped, escaped_json};
use crate::core::token_bucket::Rate;
use crate::group::Groups;
use crate::log::{Engine, Log};
use crate::replay::Streams;
use anyhow::bail;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The parts of the program that a command uses.
#[derive(Debug, Clone)]
pub struct CommandContext {
    pub engine: Arc<dyn Engine>,
    /// The main topic.
    pub log: Arc<dyn Log>,
    pub groups: Arc<dyn Groups>,
    /// The name of the destination.
    pub destination: String,
    pub streams: Arc<dyn Streams>,
}

/// The checked configuration of one command.
#[derive(Debug, Clone)]
pub struct Config {
    pub command: RequestedCommand,
    /// Why, in the operator's words. It may be empty.
    pub reason: String,
    /// How long to wait until the owners have applied the command.
    pub wait: Duration,
    /// Print the plan and the result as JSON, one object on each line.
    pub json: bool,
}

/// What the operator typed.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestedCommand {
    Pause,
    Resume,
    /// `None`: no limit.
    Rate(Option<Rate>),
    Probe,
    Retry {
        user: String,
    },
    Hold {
        user: String,
    },
    Release {
        user: String,
    },
    /// `None`: the user's next event. Otherwise its events up to this partition and offset.
    GiveUp {
        user: String,
        until: Option<(u32, i64)>,
    },
}

impl RequestedCommand {
    /// The command for all partitions. `None` for a `give-up`, which the plan turns into a command for one partition.
    fn for_all_partitions(&self) -> Option<ControlCommand> {
        let user = |user: &str, action| Some(ControlCommand::User { user: user.as_bytes().into(), action });
        match self {
            Self::Pause => Some(ControlCommand::Pause),
            Self::Resume => Some(ControlCommand::Resume),
            Self::Rate(rate) => Some(ControlCommand::Rate { per_hour: rate.map(Rate::events_per_hour) }),
            Self::Probe => Some(ControlCommand::Probe),
            Self::Retry { user: id } => user(id, UserAction::Retry),
            Self::Hold { user: id } => user(id, UserAction::Hold),
            Self::Release { user: id } => user(id, UserAction::Release),
            Self::GiveUp { .. } => None,
        }
    }
}

/// The command cannot be given. Holds the message.
#[derive(Debug, thiserror::Error)]
pub enum CommandRefused {
    /// The flags are wrong, for example an unknown name.
    #[error("{0}")]
    Usage(String),
    /// The flags are right, but the log does not hold what they name.
    #[error("{0}")]
    NotInLog(String),
}

impl CommandRefused {
    /// Whether the operator has to change the flags.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
enum CommandResult {
    /// All owners have applied it.
    Applied {
        id: String,
        /// What the destination or the user is now, in words.
        now: String,
        /// Partitions that have no event of the user, and where the command had no effect.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        without_effect: Vec<FailedIn>,
    },
    /// All owners have passed it, and it had no effect in these partitions, although it should have one there.
    Failed { id: String, partitions: Vec<FailedIn> },
    /// It is stored, and no process owns the destination: the next one applies it.
    Unowned { id: String },
    /// It is stored. These partitions had not applied it when `--wait` was over or a signal came.
    Waiting { id: String, partitions: Vec<u32> },
}

/// Why the owner of a partition could not apply a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct FailedIn {
    partition: u32,
    why: String,
    /// What the operator can do, if that helps.
    #[serde(skip)]
    advice: Option<&'static str>,
}

/// Prints what the command does, gives it, and waits until the owners have applied it, or until `stop`.
///
/// # Errors
/// The command was refused, or the log or the group is not available.
pub async fn run(
    context: CommandContext,
    config: Config,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let mut stop = std::pin::pin!(stop);
    let plan = tokio::select! {
        biased;
        plan = CommandPlan::make(&context, &config.command) => plan?,
        () = &mut stop => return Ok(Ended::WorkLeft),
    };
    print(&context, config.json, &plan, || plan.describe())?;
    let result = send::send(&context, &config, &plan, stop).await?;
    print(&context, config.json, &result, || result.describe(&context.destination, &plan, config.wait))?;
    match result {
        CommandResult::Applied { .. } | CommandResult::Unowned { .. } => Ok(Ended::Drained),
        CommandResult::Waiting { .. } => Ok(Ended::WorkLeft),
        CommandResult::Failed { partitions, .. } => bail!("the command had no effect in {}", causes_of(&partitions)),
    }
}

/// Prints on standard output, for people or for programs. `for_people` are lines: a line break in one of them is text of an
/// operator or of a receiver, and is escaped.
fn print(
    context: &CommandContext,
    json: bool,
    value: &impl Serialize,
    for_people: impl FnOnce() -> Vec<String>,
) -> anyhow::Result<()> {
    let text = match json {
        true => escaped_json(&serde_json::to_string(value)?).into_owned() + "\n",
        false => for_people().iter().map(|line| escaped(line).into_owned() + "\n").collect(),
    };
    context.streams.out(&text)?;
    Ok(())
}

impl CommandResult {
    /// The result in words, line by line.
    fn describe(&self, destination: &str, plan: &CommandPlan, wait: Duration) -> Vec<String> {
        let command = plan.command;
        match self {
            Self::Applied { now, without_effect, .. } => {
                let mut lines = vec![format!("applied: {command}"), format!("now: {now}")];
                if let Some(FailedIn { why, .. }) = without_effect.first() {
                    let partitions = numbered(without_effect.iter().map(|failed| failed.partition));
                    lines.push(format!("no effect in {partitions}, where this user has no events: {why}"));
                }
                lines
            }
            Self::Failed { partitions, .. } => {
                let partitions = numbered(partitions.iter().map(|failed| failed.partition));
                vec![format!("without effect in {partitions}: {command}")]
            }
            Self::Unowned { .. } => vec![format!(
                "stored, NOT applied yet: no process delivers to {destination} now. The next one applies the command before \
                 its first attempt"
            )],
            Self::Waiting { partitions, .. } => vec![format!(
                "not applied within {} in {}. The command stays stored and is applied later: do not give it again. See the \
                 log of the process that delivers",
                humantime::format_duration(wait),
                numbered(partitions.iter().copied())
            )],
        }
    }
}

/// Each cause with its partitions, and what the operator can do.
fn causes_of(failed: &[FailedIn]) -> String {
    let mut by_cause: BTreeMap<(&str, Option<&str>), Vec<u32>> = BTreeMap::new();
    for FailedIn { partition, why, advice } in failed {
        by_cause.entry((why, *advice)).or_default().push(*partition);
    }
    let cause = |((why, advice), partitions): ((&str, Option<&str>), Vec<u32>)| {
        let advice = advice.map(|advice| format!(". {advice}")).unwrap_or_default();
        format!("{}: {why}{advice}", numbered(partitions.into_iter()))
    };
    by_cause.into_iter().map(cause).collect::<Vec<_>>().join("; ")
}

/// `partition 0` or `partitions 0, 1, 2`.
fn numbered(partitions: impl ExactSizeIterator<Item = u32>) -> String {
    let noun = if partitions.len() == 1 { "partition" } else { "partitions" };
    let numbers: Vec<String> = partitions.map(|partition| partition.to_string()).collect();
    format!("{noun} {}", numbers.join(", "))
}

/// `1 event` or `2 events`.
fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::progress::CommandFailure;

    #[test]
    fn a_command_without_effect_is_to_be_given_again_only_if_that_helps() {
        let failed =
            |partition, why: CommandFailure| FailedIn { partition, why: why.to_string(), advice: why.advice() };
        let not_possible = causes_of(&[failed(0, CommandFailure::NotPossible), failed(2, CommandFailure::NotPossible)]);
        assert_eq!(not_possible, "partitions 0, 2: the owner delivers in a way that holds no user");
        let mixed = causes_of(&[failed(0, CommandFailure::NotReadInTime), failed(1, CommandFailure::ListIsFull)]);
        for says in [
            "partition 0: the partition was not read far enough in time. Give the command again",
            "partition 1: the list of parked users is full (--parked-users): raise --parked-users, or release users that \
             are held. Then give the command again",
        ] {
            assert!(mixed.contains(says), "{says}: {mixed}");
        }
    }
}
