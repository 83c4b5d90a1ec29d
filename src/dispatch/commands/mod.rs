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

/// What the partitions of one process share of the commands.
#[derive(Debug, Default)]
pub(super) struct SharedControl {
    pub(super) topic: ControlTopic,
    pub(super) pauses: Pauses,
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
