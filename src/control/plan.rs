//! What a command will do, according to the last commits of the destination.

use super::history::CommandHistory;
use super::known::known_destinations;
use super::scan::RECORDS_READ_MAX;
use super::user_events::{UserEvents, Wanted, find, is_held, listed};
use super::{CommandContext, CommandRefused, RequestedCommand, counted};
use crate::clock::show_ms;
use crate::core::control::{ControlCommand, ControlRecord, Hold, UserAction};
use crate::core::partition::Partitioner;
use crate::core::progress::{PartitionState, Pause, UserKey};
use crate::core::token_bucket::Rate;
use crate::dispatch::commands::record::name_of;
use crate::dispatch::commands::shown_since;
use crate::group::PastCommits;
use crate::replay::retry_group_call;
use anyhow::ensure;
use serde::Serialize;
use std::collections::BTreeSet;

/// Partitions that one text names. The others are counted.
const PARTITIONS_SHOWN_MAX: usize = 5;

/// What limits the events if no operator has commanded a rate.
const RATE_OF_PROCESSES: &str = "--rate of the processes counts, if they have one";

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
    #[serde(flatten)]
    before: Commanded,
    /// The rate of this command, or `off`.
    rate: Option<String>,
    user: Option<UserPlan>,
    /// A command about the same thing that is stored, and that the owners have not applied yet.
    not_applied: Option<NotApplied>,
    /// There are too many of these commands to read them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    not_applied_is_unknown: bool,
    #[serde(skip)]
    control_command: ControlCommand,
}

/// What operators have commanded for the destination, as far as the owners have applied it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Commanded {
    paused_since_ms: Option<i64>,
    paused_by: Option<String>,
    paused_reason: Option<String>,
    rate_before: Option<String>,
}

impl Commanded {
    fn of<'s>(states: impl IntoIterator<Item = &'s PartitionState>) -> Self {
        let mut commanded = Self::default();
        let mut lowest = None;
        for state in states {
            if let Some(Pause { since_ms, by, reason }) = &state.control.paused
                && commanded.paused_since_ms.is_none_or(|first| *since_ms < first)
            {
                commanded.paused_since_ms = Some(*since_ms);
                (commanded.paused_by, commanded.paused_reason) = (Some(by.to_string()), Some(reason.to_string()));
            }
            lowest = lowest.into_iter().chain(state.control.rate_per_hour).min();
        }
        commanded.rate_before = lowest.map(|events| Rate::per_hour(events).to_string());
        commanded
    }

    /// `paused since … by … (why)`.
    fn paused(&self) -> Option<String> {
        let by = self.paused_by.as_deref().unwrap_or_default();
        let reason = self.paused_reason.as_deref().unwrap_or_default();
        self.paused_since_ms.map(|ms| format!("paused {}", shown_since(ms, by, reason)))
    }
}

/// A command that is stored and not applied.
#[derive(Debug, Serialize)]
struct NotApplied {
    command: &'static str,
    by: String,
    at_ms: i64,
}

/// What waits for delivery.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct WaitingEvents {
    /// Offsets that are not settled. Offsets without an event count, too.
    offsets: u64,
    /// Users that are parked and not held.
    parked_users: u64,
    held_users: u64,
    failing_users: u64,
}

/// What the commits and the log say about one user.
#[derive(Debug, Serialize)]
struct UserPlan {
    user: String,
    held: bool,
    held_since_ms: Option<i64>,
    held_by: Option<String>,
    held_reason: Option<String>,
    /// The partitions that have something of the user.
    partitions: Vec<UserPartition>,
    #[serde(skip)]
    hold: Option<Hold>,
    /// The user is held, and there are too many commands to find out by whom.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    hold_is_unknown: bool,
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
                    "no destination {name:?} has delivered the topic {topic:?} yet ({past}): correct --dest, --url or --topic{}",
                    known_destinations(context).await
                ))
            );
        }
        let states: Vec<PartitionState> = states.into_iter().map(Option::unwrap_or_default).collect();
        let history = CommandHistory::read(context, &states, command).await?;
        let (mut partition, mut user) = (None, None);
        let control_command = match (command.for_all_partitions(), command) {
            (Some(ControlCommand::User { user: id, action }), _) => {
                let found = of_user(context, &states, std::str::from_utf8(&id)?).await?;
                let found = UserPlan::new(std::str::from_utf8(&id)?, &states, &history, found);
                let has_effect = action == UserAction::Hold || found.held || !found.partitions.is_empty();
                // A command that was not applied yet may hold the user.
                ensure!(
                    has_effect || history.not_applied.is_some() || history.not_applied_is_unknown,
                    CommandRefused::NotInLog(format!(
                        "user {:?} is not held and has no events that wait: nothing to do. Check --user",
                        found.user
                    ))
                );
                user = Some(found);
                ControlCommand::User { user: id, action }
            }
            (None, RequestedCommand::GiveUp { user: id, until }) => {
                let given_up = to_give_up(context, &states, id, *until).await?;
                partition = Some(given_up.partition);
                // An offset that was typed counts also if not all of the log was read up to there.
                let UserEvents { last, end, .. } = given_up.events;
                let below = if until.is_some() { end } else { last.map_or(end, |last| last + 1) };
                user = Some(UserPlan::new(id, &states, &history, vec![given_up]));
                ControlCommand::User { user: id.as_bytes().into(), action: UserAction::GiveUp { below } }
            }
            (Some(command), _) => command,
            (None, _) => unreachable!("only a give-up has no command for all partitions"),
        };
        let rate = match control_command {
            ControlCommand::Rate { per_hour } => {
                Some(per_hour.map_or_else(|| "off".to_owned(), |events| Rate::per_hour(events).to_string()))
            }
            _ => None,
        };
        let not_applied = history.not_applied.map(|record| NotApplied {
            command: name_of(&record.command),
            by: record.by.to_string(),
            at_ms: record.at_ms,
        });
        Ok(Self {
            command: name_of(&control_command),
            destination: name.clone(),
            topic: topic.to_owned(),
            partition,
            waiting: waiting(context, &states).await?,
            before: Commanded::of(&states),
            rate,
            user,
            not_applied,
            not_applied_is_unknown: history.not_applied_is_unknown,
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

    /// Whether the command must have an effect in this partition of so many. A command about a user must, where the user
    /// has events. If it has none, its next one will be in one of the partitions that the usual partitioners choose.
    pub(super) fn needs_effect_in(&self, partition: u32, partitions: u32) -> bool {
        let Some(UserPlan { user, partitions: found, .. }) = self.user.as_ref().filter(|_| self.partition.is_none())
        else {
            return true;
        };
        if found.is_empty() {
            let chosen = |partitioner: Partitioner| partitioner.partition(user.as_bytes(), partitions) == partition;
            return chosen(Partitioner::Murmur2) || chosen(Partitioner::Fnv1a);
        }
        found.iter().any(|found| found.partition == partition)
    }

    /// What the destination or the user is after the command, in words.
    pub(super) fn state_after<'s>(
        &self,
        states: impl Iterator<Item = &'s PartitionState> + Clone,
        record: &ControlRecord,
    ) -> String {
        let after = Commanded::of(states.clone());
        match (&record.command, &self.user) {
            (ControlCommand::Rate { .. }, _) => after.rate_before.unwrap_or_else(|| RATE_OF_PROCESSES.to_owned()),
            (ControlCommand::User { .. }, Some(plan @ UserPlan { user, hold, .. })) => {
                if !states.clone().any(|state| is_held(state, user)) {
                    return format!("user {user:?} is not held");
                }
                let hold = Hold::after(hold.clone(), user.as_bytes(), record);
                format!("user {user:?} is {}", plan.shown_hold(hold.as_ref()))
            }
            _ => after.paused().unwrap_or_else(|| "not paused".to_owned()),
        }
    }

    /// What the command does, in words, line by line.
    pub(super) fn describe(&self) -> Vec<String> {
        let Self { destination, topic, waiting, .. } = self;
        let paused = self.before.paused();
        // These commands start an attempt at once, but not in a pause.
        let starts_attempts = match &self.control_command {
            ControlCommand::Probe => true,
            ControlCommand::User { action, .. } => matches!(action, UserAction::Retry | UserAction::Release),
            ControlCommand::Pause | ControlCommand::Resume | ControlCommand::Rate { .. } => false,
        };
        let waits = paused.as_ref().filter(|_| starts_attempts).map(|paused| {
            format!("note: the destination is {paused}, so no attempt starts before `eventd control resume`")
        });
        let what = match &self.control_command {
            ControlCommand::Pause => format!(
                "pause of {destination}, topic {topic}: no attempt starts until `eventd control resume`. {waiting}{}",
                paused.map(|paused| format!(". It is {paused} already, and that stays")).unwrap_or_default()
            ),
            ControlCommand::Resume => match (paused, &self.not_applied) {
                (Some(paused), _) => format!("resume of {destination}, topic {topic}, {paused}. {waiting}"),
                (None, Some(_)) => format!("resume of {destination}, topic {topic}. {waiting}"),
                (None, None) if self.not_applied_is_unknown => {
                    format!("resume of {destination}, topic {topic}. {waiting}")
                }
                (None, None) => format!("resume of {destination}, topic {topic}, which is not paused. {waiting}"),
            },
            ControlCommand::Rate { per_hour } => {
                let rate = self.rate.as_deref().unwrap_or_default();
                let rate = if per_hour.is_none() { format!("off, so {RATE_OF_PROCESSES}") } else { rate.to_owned() };
                let before = self.before.rate_before.clone();
                let before = before.unwrap_or_else(|| format!("none commanded, so {RATE_OF_PROCESSES}"));
                format!("rate of {destination}, topic {topic}: {rate} (before: {before}). {waiting}")
            }
            ControlCommand::Probe => {
                format!(
                    "probe of {destination}, topic {topic}: a process whose breaker is open tries one event now. {waiting}"
                )
            }
            ControlCommand::User { action, .. } => self.describe_effect(*action),
        };
        let user = self.user.iter().flat_map(UserPlan::lines);
        let not_applied = self.not_applied.iter().map(|NotApplied { command, by, at_ms }| {
            format!("note: a {command} by {by} at {} is stored and not applied yet", show_ms(*at_ms))
        });
        let unknown = self.not_applied_is_unknown.then(|| {
            format!("note: more than {RECORDS_READ_MAX} commands are stored and not applied yet, and were not all read")
        });
        [what].into_iter().chain(user).chain(waits).chain(not_applied).chain(unknown).collect()
    }

    fn describe_effect(&self, action: UserAction) -> String {
        let Self { destination, topic, command, .. } = self;
        let user = self.user.as_ref().map_or("", |plan| plan.user.as_str());
        let effect = match action {
            UserAction::Retry => "its next event is tried now, and the user is released if it is held",
            UserAction::Hold => "its events wait in the log until `eventd control release`",
            UserAction::Release => "its events are delivered again, in their order",
            UserAction::GiveUp { .. } => "these events become dead letters with the reason operator",
        };
        format!("{command} of user {user:?} at {destination}, topic {topic}: {effect}")
    }
}

impl std::fmt::Display for WaitingEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { offsets, parked_users, held_users, failing_users } = *self;
        match offsets {
            0 => f.write_str("no event waits for delivery")?,
            1 => f.write_str("1 event waits for delivery")?,
            _ => write!(f, "{offsets} events wait for delivery")?,
        }
        let others = if offsets == 0 { "except" } else { "and" };
        match (parked_users, held_users) {
            (0, 0) => {}
            (0, held) => write!(f, ", {others} those of {}", counted(held, "held user"))?,
            (parked, 0) => write!(f, ", {others} those of {}", counted(parked, "parked user"))?,
            (parked, held) => {
                write!(f, ", {others} those of {} and {}", counted(parked, "parked user"), counted(held, "held user"))?;
            }
        }
        if failing_users > 0 {
            write!(f, "; the next event of {} has failed", counted(failing_users, "user"))?;
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
            (true, _) => write!(f, "at least {}", counted(events, "event"))?,
            (false, _) => f.write_str(&counted(events, "event"))?,
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
            write!(f, ", {} since {}", counted(self.failures.into(), "failure"), show_ms(since))?;
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
    // A `hold` lists its user in every partition, so users are counted by their name.
    let (mut parked_users, mut held_users, mut failing_users) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (state, partition) in states.iter().zip(0u32..) {
        let latest = context.log.latest(partition).await?;
        let settled: i64 = state.settled.iter().map(|range| range.end - range.start).sum();
        waiting.offsets += u64::try_from(latest - state.watermark - settled).unwrap_or(0);
        for (key, user) in &state.users {
            let count = |users: &mut BTreeSet<UserKey>, counts: bool| {
                if counts {
                    users.insert(key.clone());
                }
            };
            count(&mut parked_users, user.parked.is_some_and(|parked| !parked.held));
            count(&mut held_users, user.parked.is_some_and(|parked| parked.held));
            count(&mut failing_users, user.failed.is_some());
        }
    }
    waiting.parked_users = parked_users.len() as u64;
    waiting.held_users = held_users.len() as u64;
    waiting.failing_users = failing_users.len() as u64;
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
async fn of_user(
    context: &CommandContext,
    states: &[PartitionState],
    user: &str,
) -> anyhow::Result<Vec<UserPartition>> {
    let mut partitions = Vec::new();
    for (state, partition) in states.iter().zip(0u32..) {
        let events = find(context, partition, state, user, Wanted::All).await?;
        // A held user is listed in every partition, also where it has no events.
        if events.events > 0 || events.is_lower_bound || listed(state, user).is_some_and(|user| user.failed.is_some()) {
            partitions.push(of_partition(partition, state, user, events));
        }
    }
    Ok(partitions)
}

impl UserPlan {
    fn new(user: &str, states: &[PartitionState], history: &CommandHistory, partitions: Vec<UserPartition>) -> Self {
        let held = states.iter().any(|state| is_held(state, user));
        let hold = history.hold.clone().filter(|_| held);
        Self {
            user: user.to_owned(),
            held,
            held_since_ms: hold.as_ref().map(|hold| hold.since_ms),
            held_by: hold.as_ref().map(|hold| hold.by.to_string()),
            held_reason: hold.as_ref().map(|hold| hold.reason.to_string()),
            partitions,
            hold,
            hold_is_unknown: held && history.hold_is_unknown,
        }
    }

    /// Since when, by whom and why the user is held. Without a command it is the policy of the processes.
    fn shown_hold(&self, hold: Option<&Hold>) -> String {
        match hold {
            _ if self.hold_is_unknown => {
                format!("held, by whom is unknown: the first {RECORDS_READ_MAX} commands do not say it")
            }
            Some(Hold { since_ms, by, reason }) => format!("held {}", shown_since(*since_ms, by, reason)),
            None => "held by --on-exhausted hold: the tries of its next event have ended".to_owned(),
        }
    }

    /// Who holds the user, and what it has in each partition.
    fn lines(&self) -> Vec<String> {
        let Self { held, partitions, hold, .. } = self;
        let mut lines = Vec::new();
        lines.extend(held.then(|| format!("  {}", self.shown_hold(hold.as_ref()))));
        if partitions.is_empty() {
            lines.push("  no event of this user waits; if you expected some, check --user".to_owned());
        }
        lines.extend(partitions.iter().take(PARTITIONS_SHOWN_MAX).map(|partition| format!("  {partition}")));
        let others = partitions.len().saturating_sub(PARTITIONS_SHOWN_MAX);
        lines.extend((others > 0).then(|| format!("  and {others} more partitions")));
        lines
    }
}

/// The events that a `give-up` gives up.
async fn to_give_up(
    context: &CommandContext,
    states: &[PartitionState],
    user: &str,
    until: Option<(u32, i64)>,
) -> anyhow::Result<UserPartition> {
    if let Some((partition, offset)) = until {
        ensure!(
            (partition as usize) < states.len(),
            CommandRefused::Usage(format!(
                "--offset {partition}:{offset}: the topic has partitions 0 to {}",
                states.len().saturating_sub(1)
            ))
        );
    }
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
        CommandRefused::NotInLog(format!(
            "user {user:?} has no unsettled event{until}: there is nothing to give up. Check --user"
        ))
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::progress::{ParkedUser, UserState};

    #[test]
    fn a_user_whose_history_was_not_read_to_its_end_is_not_shown_as_held_by_the_policy() {
        let held = UserState { parked: Some(ParkedUser { held: true, ..ParkedUser::default() }), failed: None };
        let state = PartitionState {
            users: [(Some(b"u".as_slice().into()), held)].into_iter().collect(),
            ..PartitionState::default()
        };
        let shown = |user: &str, hold_is_unknown| {
            let history = CommandHistory { hold_is_unknown, ..CommandHistory::default() };
            UserPlan::new(user, std::slice::from_ref(&state), &history, Vec::new()).lines()[0].clone()
        };
        assert_eq!(shown("u", false), "  held by --on-exhausted hold: the tries of its next event have ended");
        assert_eq!(shown("u", true), "  held, by whom is unknown: the first 500000 commands do not say it");
        assert!(!shown("v", true).contains("held"), "it is not held at all");
    }
}
