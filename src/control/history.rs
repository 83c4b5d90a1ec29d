//! What the topic of commands says: who holds a user, and which command is stored and not applied yet.
//!
//! Every command but `give-up` is in every partition, so that of partition 0 are enough.

use super::scan::{RECORDS_READ_MAX, scan};
use super::{CommandContext, RequestedCommand};
use crate::core::control::{ControlCommand, ControlRecord, Hold};
use crate::core::event::Event;
use crate::core::progress::PartitionState;
use crate::core::side_topics::control_topic;
use crate::dispatch::commands::record::decode;
use crate::log::OpenError;
use std::ops::ControlFlow;

/// What the commands before this one leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CommandHistory {
    /// Who holds the user of the command, as far as the owners have applied the commands.
    pub(super) hold: Option<Hold>,
    /// The last command about the same thing that is stored and not applied yet.
    pub(super) not_applied: Option<ControlRecord>,
    /// There are more applied commands than were read, so who holds the user is unknown.
    pub(super) hold_is_unknown: bool,
    /// There are more commands that are not applied yet than were read, so the last one is unknown.
    pub(super) not_applied_is_unknown: bool,
}

impl CommandHistory {
    /// Reads the commands that concern the same thing as `command`.
    ///
    /// # Errors
    /// The topic of commands cannot be read.
    pub(super) async fn read(
        context: &CommandContext,
        states: &[PartitionState],
        command: &RequestedCommand,
    ) -> anyhow::Result<Self> {
        Self::read_at_most(context, states, command, RECORDS_READ_MAX).await
    }

    /// Reads so many of the applied commands, and of the others.
    async fn read_at_most(
        context: &CommandContext,
        states: &[PartitionState],
        command: &RequestedCommand,
        records_max: u64,
    ) -> anyhow::Result<Self> {
        let (topic, destination) = (context.log.topic(), context.destination.as_str());
        let log = match context.engine.open(&control_topic(topic, destination), None).await {
            Ok(log) => log,
            // No command was given yet, or none can be.
            Err(OpenError::Missing { .. } | OpenError::Configuration(_)) => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let end = log.latest(0).await?;
        // If the topic was created again, it may not be that long yet.
        let next = states.first().map_or(0, |state| state.control.next).min(end);
        let start = if command.user().is_some() { 0 } else { next };
        let mut history = Self::default();
        let mut add = |event: &Event| {
            if let Ok(record) = decode(&event.record, topic, destination) {
                history.add(command, record, event.offset < next);
            }
            ControlFlow::Continue(())
        };
        let all_applied = scan(&*log, 0, start..next, records_max, &mut add).await?;
        let all_others = scan(&*log, 0, next..end, records_max, &mut add).await?;
        if !all_applied {
            (history.hold, history.hold_is_unknown) = (None, true);
        }
        if !all_others {
            (history.not_applied, history.not_applied_is_unknown) = (None, true);
        }
        Ok(history)
    }

    fn add(&mut self, command: &RequestedCommand, record: ControlRecord, is_applied: bool) {
        if !command.concerns(&record.command) {
            return;
        }
        match (is_applied, command.user()) {
            (false, _) => self.not_applied = Some(record),
            (true, Some(user)) => self.hold = Hold::after(self.hold.take(), user.as_bytes(), &record),
            (true, None) => {}
        }
    }
}

impl RequestedCommand {
    /// The user that the command is about.
    pub(super) fn user(&self) -> Option<&str> {
        match self {
            Self::Pause | Self::Resume | Self::Rate(_) | Self::Probe => None,
            Self::Retry { user } | Self::Hold { user } | Self::Release { user } | Self::GiveUp { user, .. } => {
                Some(user)
            }
        }
    }

    /// Whether a command in the log is about the same thing: the pause, the rate, or the same user.
    fn concerns(&self, other: &ControlCommand) -> bool {
        match (self, other) {
            (Self::Pause | Self::Resume, ControlCommand::Pause | ControlCommand::Resume)
            | (Self::Rate(_), ControlCommand::Rate { .. }) => true,
            (_, ControlCommand::User { user, .. }) => self.user().is_some_and(|own| own.as_bytes() == &**user),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::control::UserAction;
    use crate::core::progress::ControlState;
    use crate::dispatch::commands::record::encode;
    use crate::group::sqlite::SqliteGroups;
    use crate::log::sqlite::{Settings, Sqlite};
    use crate::log::{CreateTopic, Engine as _};
    use crate::replay::StandardStreams;
    use std::sync::Arc;

    fn record(at_ms: i64, command: ControlCommand) -> ControlRecord {
        ControlRecord { id: "id".into(), at_ms, by: "ann@ops".into(), reason: "".into(), command }
    }

    fn hold_of(user: &str) -> ControlCommand {
        ControlCommand::User { user: user.as_bytes().into(), action: UserAction::Hold }
    }

    #[tokio::test]
    async fn a_history_that_is_too_long_to_read_is_unknown_and_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { create: true, ..Settings::default() };
        let engine = Sqlite::open(folder.path().join("log.db"), settings).await.unwrap();
        let create = CreateTopic { partitions: 1, retention: None };
        let log = engine.open("orders", Some(create)).await.unwrap();
        let commands = engine.open(&control_topic("orders", "crm"), Some(create)).await.unwrap();
        for user in ["other", "u", "other", "u"] {
            let record = encode(&record(1, hold_of(user)), "orders", "crm").unwrap();
            commands.append(0, vec![record]).await.unwrap();
        }
        let groups = Arc::new(SqliteGroups::new(Arc::clone(&engine)));
        let streams = Arc::new(StandardStreams);
        let context = CommandContext { engine, log, groups, destination: "crm".into(), streams };
        let release = RequestedCommand::Release { user: "u".into() };
        let read = async |next, records_max| {
            let states =
                [PartitionState { control: ControlState { next, ..ControlState::default() }, ..Default::default() }];
            let history = CommandHistory::read_at_most(&context, &states, &release, records_max).await.unwrap();
            let CommandHistory { hold, not_applied, hold_is_unknown, not_applied_is_unknown } = history;
            (hold.is_some(), not_applied.is_some(), hold_is_unknown, not_applied_is_unknown)
        };
        assert_eq!(read(2, 2).await, (true, true, false, false), "two are applied, and two are not");
        assert_eq!(read(3, 2).await, (false, true, true, false), "three are applied");
        assert_eq!(read(1, 2).await, (false, false, false, true), "three are not applied");
        assert_eq!(read(4, 4).await, (true, false, false, false));
        assert_eq!(read(7, 4).await, (true, false, false, false), "the topic was created again, and is shorter");
    }

    #[test]
    fn a_command_that_is_not_applied_is_told_only_if_it_is_about_the_same_thing() {
        let of = |command: &RequestedCommand| {
            let mut history = CommandHistory::default();
            history.add(command, record(1, ControlCommand::Pause), true);
            history.add(command, record(2, ControlCommand::Pause), false);
            history.add(command, record(3, ControlCommand::Rate { per_hour: None }), false);
            history.add(command, record(4, hold_of("u")), true);
            history.add(command, record(5, hold_of("u")), false);
            (history.hold.map(|hold| hold.since_ms), history.not_applied.map(|record| record.at_ms))
        };
        assert_eq!(of(&RequestedCommand::Resume), (None, Some(2)));
        assert_eq!(of(&RequestedCommand::Rate(None)), (None, Some(3)));
        assert_eq!(of(&RequestedCommand::Release { user: "u".into() }), (Some(4), Some(5)));
        assert_eq!(of(&RequestedCommand::Release { user: "v".into() }), (None, None));
        assert_eq!(of(&RequestedCommand::Probe), (None, None));
    }
}
