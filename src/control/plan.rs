//! What a command will do, according to the last commits of the destination.

use super::user_events::{RECORDS_READ_MAX, UserEvents, Wanted, find, listed};
use super::{CommandContext, CommandRefused, RequestedCommand};
use crate::core::control::{ControlCommand, UserAction};
use crate::core::progress::{PartitionState, Pause};
use crate::core::token_bucket::Rate;
use crate::dispatch::commands::record::name_of;
use crate::group::PastCommits;
use crate::replay::position::show_ms;
use crate::replay::retry_group_call;
use anyhow::ensure;
use serde::Serialize;
use std::fmt::Write as _;

/// Partitions that one text names. The others are counted.
const PARTITIONS_SHOWN_MAX: usize = 5;

/// A command, and what it finds.
#[derive(Debug, Serialize)]
pub(super) struct CommandPlan {
    /// The word of the command.
    pub(super) command: &'static str,
    destination: String,
    topic: String,
    /// The partition of a `give-up`. `None`: all partitions.
    partition: Option<u32>,
    waiting: WaitingEvents,
    /// Since when and by whom the destination is paused now.
    #[serde(skip)]
    pause: Option<Pause>,
    /// The rate that an operator commanded last.
    rate_before: Option<String>,
    rate: Option<String>,
    user: Option<UserPlan>,
    #[serde(skip)]
    control_command: ControlCommand,
}

/// What waits for delivery.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct WaitingEvents {
    /// Offsets that are not settled. Offsets without an event count, too.
    offsets: u64,
    parked_users: u64,
    held_users: u64,
    failing_users: u64,
}

/// What the commits and the log say about one user.
#[derive(Debug, Serialize)]
struct UserPlan {
    user: String,
    partitions: Vec<UserPartition>,
}

#[derive(Debug, Serialize)]
struct UserPartition {
    partition: u32,
    #[serde(flatten)]
    events: UserEvents,
    held: bool,
    parked: bool,
    failures: u32,
    failing_since_ms: Option<i64>,
    next_try_ms: Option<i64>,
    last_answer: Option<String>,
}

impl CommandPlan {
    /// Reads the commits, and for a command about a user its events.
    ///
    /// # Errors
    /// The destination is unknown, or the user has nothing to be given up.
    pub(super) async fn make(context: &CommandContext, command: &RequestedCommand) -> anyhow::Result<Self> {
        let (name, topic) = (&context.destination, context.log.topic());
        let states = retry_group_call(|| context.groups.committed(name, &context.log)).await?;
        if !states.iter().any(Option::is_some) {
            let past = retry_group_call(|| context.groups.past_commits(name, &context.log)).await?;
            // A name that was mistyped must not create a topic.
            ensure!(
                past == PastCommits::Found,
                CommandRefused::Usage(format!(
                    "no destination {name:?} has delivered the topic {topic:?} yet ({past}): correct --dest, --url or --topic"
                ))
            );
        }
        let states: Vec<PartitionState> = states.into_iter().map(Option::unwrap_or_default).collect();
        let (mut partition, mut user) = (None, None);
        let control_command = match (command.for_all_partitions(), command) {
            (Some(ControlCommand::User { user: id, action }), _) => {
                user = Some(of_user(context, &states, std::str::from_utf8(&id)?).await?);
                ControlCommand::User { user: id, action }
            }
            (None, RequestedCommand::GiveUp { user: id, until }) => {
                let given_up = to_give_up(context, &states, id, *until).await?;
                partition = Some(given_up.partition);
                // An offset that was typed counts also if not all of the log was read up to there.
                let UserEvents { last, end, .. } = given_up.events;
                let below = if until.is_some() { end } else { last.map_or(end, |last| last + 1) };
                user = Some(UserPlan { user: id.clone(), partitions: vec![given_up] });
                ControlCommand::User { user: id.as_bytes().into(), action: UserAction::GiveUp { below } }
            }
            (Some(command), _) => command,
            (None, _) => unreachable!("only a give-up has no command for all partitions"),
        };
        let rate = |per_hour: Option<u64>| per_hour.map(|events| Rate::per_hour(events).to_string());
        Ok(Self {
            command: name_of(&control_command),
            destination: name.clone(),
            topic: topic.to_owned(),
            partition,
            waiting: waiting(context, &states).await?,
            pause: states.iter().find_map(|state| state.control.paused.clone()),
            rate_before: rate(states.iter().filter_map(|state| state.control.rate_per_hour).min()),
            rate: if let ControlCommand::Rate { per_hour } = control_command { rate(per_hour) } else { None },
            user,
            control_command,
        })
    }

    /// The partitions that get the command.
    pub(super) fn partitions(&self, all: u32) -> impl Iterator<Item = u32> + use<> {
        let one = self.partition;
        (0..all).filter(move |partition| one.is_none_or(|one| one == *partition))
    }

    pub(super) fn control_command(&self) -> &ControlCommand {
        &self.control_command
    }

    /// What the command does, in words.
    pub(super) fn describe(&self) -> String {
        let Self { destination, topic, waiting, .. } = self;
        let paused =
            self.pause.as_ref().map(|pause| format!("paused since {} by {}", show_ms(pause.since_ms), pause.by));
        match &self.control_command {
            ControlCommand::Pause => format!(
                "pause of {destination}, topic {topic}: no attempt starts until `eventd control resume`. {waiting}{}",
                paused.map(|paused| format!(". It is {paused} already")).unwrap_or_default()
            ),
            ControlCommand::Resume => match paused {
                Some(paused) => format!("resume of {destination}, topic {topic}, {paused}. {waiting}"),
                None => format!("resume of {destination}, topic {topic}, which is not paused. {waiting}"),
            },
            ControlCommand::Rate { .. } => {
                format!(
                    "rate of {destination}, topic {topic}: {} (before: {}). {waiting}",
                    self.rate
                        .clone()
                        .unwrap_or_else(|| "off, so --rate of the processes counts, if they have one".to_owned()),
                    self.rate_before.clone().unwrap_or_else(|| {
                        "none commanded, so --rate of the processes counts, if they have one".to_owned()
                    })
                )
            }
            ControlCommand::Probe => {
                format!(
                    "probe of {destination}, topic {topic}: a process whose breaker is open tries one event now. {waiting}"
                )
            }
            ControlCommand::User { action, .. } => self.describe_user(*action),
        }
    }

    fn describe_user(&self, action: UserAction) -> String {
        let Self { destination, topic, command, .. } = self;
        let Some(UserPlan { user, partitions }) = &self.user else { return String::new() };
        let effect = match action {
            UserAction::Retry => "its next event is tried now, and the user is released if it is held",
            UserAction::Hold => "its events wait in the log until `eventd control release`",
            UserAction::Release => "its events are delivered again, in their order",
            UserAction::GiveUp { .. } => "these events become dead letters with the reason operator",
        };
        let mut text = format!("{command} of user {user:?} at {destination}, topic {topic}: {effect}");
        if partitions.is_empty() {
            text.push_str("\n  no event of this user waits");
        }
        for partition in partitions.iter().take(PARTITIONS_SHOWN_MAX) {
            _ = write!(text, "\n  {partition}");
        }
        if let Some(others) = partitions.len().checked_sub(PARTITIONS_SHOWN_MAX).filter(|others| *others > 0) {
            _ = write!(text, "\n  and {others} more partitions");
        }
        text
    }
}

impl std::fmt::Display for WaitingEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offsets, parked_users, held_users, failing_users } = self;
        let s = if *offsets == 1 { "event waits" } else { "events wait" };
        write!(f, "{offsets} {s} for delivery")?;
        if *parked_users > 0 {
            write!(f, ", and those of {parked_users} parked users ({held_users} held)")?;
        }
        if *failing_users > 0 {
            write!(f, "; the next event of {failing_users} users has failed")?;
        }
        Ok(())
    }
}

impl std::fmt::Display for UserPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let UserEvents { events, first, last, is_lower_bound, .. } = self.events;
        write!(f, "partition {}: ", self.partition)?;
        match (is_lower_bound, events) {
            (true, 0) => write!(f, "not seen in the first {RECORDS_READ_MAX} records")?,
            (true, _) => write!(f, "at least {events} events")?,
            (false, _) => write!(f, "{events} events")?,
        }
        if let (Some(first), Some(last)) = (first, last) {
            match first == last {
                true => write!(f, " (offset {first})")?,
                false => write!(f, " (offsets {first} to {last})")?,
            }
        }
        match (self.held, self.parked) {
            (true, _) => f.write_str(", held")?,
            (false, true) => f.write_str(", parked")?,
            (false, false) => {}
        }
        if let (Some(since), Some(next), Some(answer)) = (self.failing_since_ms, self.next_try_ms, &self.last_answer) {
            write!(f, ", {} failures since {}", self.failures, show_ms(since))?;
            if !self.held {
                write!(f, ", next try at {}", show_ms(next))?;
            }
            write!(f, ", last answer {answer:?}")?;
        }
        Ok(())
    }
}

/// What waits in all partitions.
async fn waiting(context: &CommandContext, states: &[PartitionState]) -> anyhow::Result<WaitingEvents> {
    let mut waiting = WaitingEvents::default();
    for (state, partition) in states.iter().zip(0u32..) {
        let latest = context.log.latest(partition).await?;
        let settled: i64 = state.settled.iter().map(|range| range.end - range.start).sum();
        waiting.offsets += u64::try_from(latest - state.watermark - settled).unwrap_or(0);
        for user in state.users.values() {
            waiting.parked_users += u64::from(user.parked.is_some());
            waiting.held_users += u64::from(user.parked.is_some_and(|parked| parked.held));
            waiting.failing_users += u64::from(user.failed.is_some());
        }
    }
    Ok(waiting)
}

fn of_partition(partition: u32, state: &PartitionState, user: &str, events: UserEvents) -> UserPartition {
    let user = listed(state, user);
    let parked = user.and_then(|user| user.parked);
    let failed = user.and_then(|user| user.failed.as_ref());
    UserPartition {
        partition,
        events,
        held: parked.is_some_and(|parked| parked.held),
        parked: parked.is_some(),
        failures: failed.map_or(0, |failed| failed.failures),
        failing_since_ms: failed.map(|failed| failed.first_failure_ms),
        next_try_ms: failed.map(|failed| failed.next_try_ms),
        last_answer: failed.map(|failed| failed.answer.to_string()),
    }
}

/// What the commits and the log say about a user, in the partitions that have something of it.
async fn of_user(context: &CommandContext, states: &[PartitionState], user: &str) -> anyhow::Result<UserPlan> {
    let mut partitions = Vec::new();
    for (state, partition) in states.iter().zip(0u32..) {
        let events = find(context, partition, state, user, Wanted::All).await?;
        // A held user is listed in every partition, also where it has no events.
        if events.events > 0 || events.is_lower_bound || listed(state, user).is_some_and(|user| user.failed.is_some()) {
            partitions.push(of_partition(partition, state, user, events));
        }
    }
    Ok(UserPlan { user: user.to_owned(), partitions })
}

/// The events that a `give-up` gives up.
async fn to_give_up(
    context: &CommandContext,
    states: &[PartitionState],
    user: &str,
    until: Option<(u32, i64)>,
) -> anyhow::Result<UserPartition> {
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for (state, partition) in states.iter().zip(0u32..) {
        let wanted = match until {
            Some((only, _)) if only != partition => continue,
            Some((_, offset)) => Wanted::Until(offset),
            None => Wanted::First,
        };
        let events = find(context, partition, state, user, wanted).await?;
        if events.events > 0 || (events.is_lower_bound && until.is_some()) {
            found.push(of_partition(partition, state, user, events));
        } else if events.is_lower_bound {
            unread.push(format!("p{partition}"));
        }
    }
    let places = found.iter().map(|at| format!("{}:{}", at.partition, at.events.first.unwrap_or_default()));
    let places = places.collect::<Vec<_>>().join(" and ");
    ensure!(
        found.len() <= 1,
        CommandRefused::Usage(format!(
            "user {user:?} has unsettled events in several partitions: write --offset with one of {places}"
        ))
    );
    ensure!(
        !found.is_empty() || unread.is_empty(),
        CommandRefused::NotInLog(format!(
            "user {user:?} is not seen in the first {RECORDS_READ_MAX} records of {}: write --offset to give up its events up to \
             there",
            unread.join(", ")
        ))
    );
    let until = until.map(|(partition, offset)| format!(" up to {partition}:{offset}")).unwrap_or_default();
    found.pop().ok_or_else(|| {
        CommandRefused::NotInLog(format!("user {user:?} has no unsettled event{until}: there is nothing to give up"))
            .into()
    })
}
