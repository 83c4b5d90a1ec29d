//! What all partitions of a process share of the commands of operators: the topic with its records, and the pauses.
//! The module `control` next to it applies the commands.

mod pauses;
pub mod record;
mod topic;

pub(super) use self::topic::FoundCommands;

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
    pub(super) probes: Probes,
}

/// Commands for a probe that this process remembers.
const PROBES_REMEMBERED: usize = 8;

/// The commands for a probe that this process has obeyed. Each partition gets the command, and one of them obeys it.
#[derive(Debug, Default)]
pub(super) struct Probes(Mutex<VecDeque<Box<str>>>);

impl Probes {
    /// Whether this is the first partition of the process that gets the command with this id.
    pub(super) fn is_first(&self, id: &str) -> bool {
        let mut obeyed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = !obeyed.iter().any(|other| **other == *id);
        if is_first {
            obeyed.truncate(PROBES_REMEMBERED - 1);
            obeyed.push_front(id.into());
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
    loop {
        let found = shared.topic.look(parts, 0, folded.next).await;
        let found = found.map_err(|why| Failure::refused(FailureCode::LogUnavailable, why))?;
        for (offset, command) in &found.commands {
            if let Ok(record) = command
                && !matches!(record.command, ControlCommand::User { .. } | ControlCommand::Probe)
            {
                folded.apply(*offset, record);
            }
        }
        folded.pass(found.next);
        if !found.has_more {
            return Ok(ControlState { next: 0, ..folded });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_partition_that_gets_a_command_for_a_probe_obeys_it() {
        let probes = Probes::default();
        assert!(probes.is_first("1") && probes.is_first("2"));
        assert!(!probes.is_first("1") && !probes.is_first("2"), "the other partitions get them, too");
        for later in 3..30 {
            assert!(probes.is_first(&later.to_string()));
        }
        assert_eq!(probes.0.lock().unwrap().len(), PROBES_REMEMBERED);
    }
}
