//! What all partitions of a process share of the commands of operators: the topic with its records, the pauses, and the
//! users that are held.
//! The module `control` next to it applies the commands.

mod held;
mod pauses;
pub mod record;
mod topic;

pub use self::pauses::shown_since;

pub(super) use self::held::{HeldUsersReminder, remind_of_held_users};
pub(super) use self::topic::FoundCommands;

use self::held::HeldUsers;
use self::pauses::Pauses;
use self::topic::ControlTopic;
use super::Parts;
use crate::core::control::ControlCommand;
use crate::core::outcome::{Failure, FailureCode};
use crate::core::progress::ControlState;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// What the partitions of one process share of the commands.
#[derive(Debug, Default)]
pub(super) struct SharedControl {
    pub(super) topic: ControlTopic,
    pub(super) pauses: Pauses,
    pub(super) held: HeldUsers,
    /// Commands for a probe: one partition obeys each of them.
    pub(super) probes: RecentCommands,
    /// Commands about a user: one partition writes the log line of each of them.
    pub(super) told: RecentCommands,
}

/// Commands that a process remembers. Its partitions get a command within about a second.
const COMMANDS_REMEMBERED: usize = 64;

/// The last commands that this process has seen. Each partition gets a command, and one of them acts for all.
#[derive(Debug, Default)]
pub(super) struct RecentCommands(Mutex<VecDeque<Box<str>>>);

impl RecentCommands {
    /// Whether this is the first partition of the process that asks about the command with this id.
    pub(super) fn is_first(&self, id: &str) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = !seen.iter().any(|other| **other == *id);
        if is_first {
            seen.truncate(COMMANDS_REMEMBERED - 1);
            seen.push_front(id.into());
        }
        is_first
    }
}

/// The state with which a partition begins that has no commit: the pause and the rate of partition 0. Partitions that are
/// added to a topic have no record of commands that were given before.
pub(super) async fn initial_control(
    parts: &Parts,
    shared: &SharedControl,
    partition: u32,
) -> Result<ControlState, Failure> {
    let mut folded = ControlState::default();
    if partition == 0 {
        return Ok(folded);
    }
    let unavailable = |why| Failure::refused(FailureCode::LogUnavailable, why);
    loop {
        let from = folded.next;
        let found = shared.topic.look(parts, 0, from).await.map_err(unavailable)?;
        for (offset, command) in &found.commands {
            if let Ok(record) = command
                && !matches!(record.command, ControlCommand::User { .. } | ControlCommand::Probe)
            {
                folded.apply(*offset, record);
            }
        }
        match found.next_look(from).map_err(unavailable)? {
            Some(next) => folded.pass(next),
            None => return Ok(ControlState { next: 0, ..folded }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_partition_that_gets_a_command_acts_for_all() {
        let seen = RecentCommands::default();
        assert!(seen.is_first("1") && seen.is_first("2"));
        assert!(!seen.is_first("1") && !seen.is_first("2"), "the other partitions get them, too");
        for later in 3..200 {
            assert!(seen.is_first(&later.to_string()));
        }
        assert_eq!(seen.0.lock().unwrap().len(), COMMANDS_REMEMBERED);
    }
}
