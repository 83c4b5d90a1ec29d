//! Commands of operators, as the owner of a partition applies them.
//!
//! ```text
//!  eventd control ──▶ <topic>.<dest>.control, every partition
//!                          │ once a second: look, from ControlState::next on
//!                          ▼
//!                     apply ──┬──▶ the committer: next, pause, rate ──▶ the next commit
//!                             ├──▶ shared by all partitions of the process: breaker, rate, log lines
//!                             └──▶ the user's lane
//! ```
//!
//! [`core::control`](crate::core::control) says why a command may be applied again after a crash.
//!
//! A command of a newer eventd stops the commands of its partition, and not the delivery: the order of commands matters, so
//! a command must not be passed. A damaged record is logged and passed.
//!
//! `pause` and `rate` concern the whole destination, and still are in the state of every partition. So an owner knows them
//! after a restart without reading anything else. A partition that is added later begins with those of partition 0.

use super::commands::FoundCommands;
use super::commands::record::InvalidCommand;
use super::committer::Committer;
use super::context::DispatchContext;
use super::partition_log::PartitionLog;
use crate::core::Moment;
use crate::core::control::{ControlEffect, ControlRecord};
use crate::core::progress::ControlState;
use crate::limits::CONTROL_LOOK_INTERVAL;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the start of a partition waits for the commands that were given while no process owned it. If they cannot be
/// read by then, delivery begins: a later look finds them.
pub(super) const START_LOOK_MAX: Duration = Duration::from_secs(5);

/// How long a look may take while the worker delivers. No attempt waits for it.
pub(super) const CONTROL_LOOK_MAX: Duration = Duration::from_secs(30);

impl DispatchContext {
    /// A partition has this state now: because of a command, or because its worker begins with it.
    pub(super) fn set_control(&self, log: &PartitionLog, control: &ControlState, command: Option<&ControlRecord>) {
        let now = self.now();
        self.shared_control.pauses.set(log, control, command);
        self.breaker.lock().set_paused(self.shared_control.pauses.is_any(), now);
        if let Some(rate) = self.throttle.rate.set_operator_rate(log.partition, control.rate_per_hour, now)
            && let Some(ControlRecord { by, reason, .. }) = command
        {
            tracing::info!(destination = log.destination, %by, %reason, "the rate of attempts was changed: {rate}");
        }
    }

    /// A partition is not owned any more.
    pub(super) fn forget_control(&self, partition: u32) {
        let now = self.now();
        self.shared_control.pauses.remove(partition);
        self.breaker.lock().set_paused(self.shared_control.pauses.is_any(), now);
        _ = self.throttle.rate.set_operator_rate(partition, None, now);
    }
}

/// Looks for the commands of one partition.
pub(super) struct ControlReader {
    /// When to look next. `None`: a look is in flight.
    look_at: Option<Moment>,
    /// Replays are not controlled.
    is_enabled: bool,
}

impl ControlReader {
    pub(super) fn new(is_enabled: bool, now: Moment) -> Self {
        Self { look_at: Some(now), is_enabled }
    }

    /// Whether to look for commands now.
    pub(super) fn start_look(&mut self, now: Moment) -> bool {
        let is_due = self.next_look_at().is_some_and(|at| now >= at);
        if is_due {
            self.look_at = None;
        }
        is_due
    }

    pub(super) fn next_look_at(&self) -> Option<Moment> {
        self.look_at.filter(|_| self.is_enabled)
    }
}

/// Looks for the commands of a partition from this offset on.
pub(super) async fn look(
    context: Arc<DispatchContext>,
    partition: u32,
    from: i64,
    within: Duration,
) -> Result<FoundCommands, String> {
    let looking = async {
        context.throttle.rate.refresh_partitions(&*context.parts.log, context.now()).await;
        context.shared_control.topic.look(&context.parts, partition, from).await
    };
    timeout(within, looking).await.unwrap_or_else(|_| Err(format!("no answer within {} s", within.as_secs())))
}

/// What a command is applied to.
pub(super) struct ControlledPartition<'a> {
    pub(super) context: &'a DispatchContext,
    pub(super) partition: u32,
    pub(super) committer: &'a mut Committer,
    pub(super) log: &'a PartitionLog,
}

impl ControlledPartition<'_> {
    /// Applies the commands that a look has found.
    pub(super) fn looked(&mut self, reader: &mut ControlReader, found: Result<FoundCommands, String>, now: Moment) {
        let (destination, partition) = (self.log.destination.as_str(), self.partition);
        reader.look_at = Some(now + CONTROL_LOOK_INTERVAL);
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                if let Some(suppressed) = self.log.allows("control") {
                    tracing::warn!(destination, partition, suppressed, "cannot see whether commands were given: {why}");
                }
                return;
            }
        };
        if let Some(why) = &found.missing {
            tracing::error!(destination, partition, "passed commands of the control topic that cannot be read: {why}");
        }
        for (offset, command) in &found.commands {
            match command {
                Ok(record) => self.apply(*offset, record, now),
                Err(InvalidCommand::Damaged(why)) => tracing::error!(
                    destination,
                    partition,
                    control_offset = offset,
                    "passed a record of the control topic that is not a command: {why}"
                ),
                Err(newer @ InvalidCommand::Newer(_)) => {
                    if let Some(suppressed) = self.log.allows("newer command") {
                        tracing::error!(
                            destination,
                            partition,
                            control_offset = offset,
                            suppressed,
                            "commands wait, and delivery continues: {newer}"
                        );
                    }
                    // Not passed: the next look finds it again.
                    self.committer.pass_commands(*offset);
                    return;
                }
            }
        }
        self.committer.pass_commands(found.next);
        if found.has_more {
            reader.look_at = Some(now);
        }
    }

    fn apply(&mut self, offset: i64, record: &ControlRecord, now: Moment) {
        let context = self.context;
        let effect = self.committer.apply_command(offset, record);
        match effect {
            ControlEffect::Paused | ControlEffect::Resumed | ControlEffect::RateChanged => {
                context.set_control(self.log, self.committer.control(), Some(record));
            }
            ControlEffect::Probe => {
                if context.breaker.lock().probe_now(now) {
                    let ControlRecord { by, reason, .. } = record;
                    tracing::info!(destination = self.log.destination, %by, %reason, "a probe is sent now, as was asked for");
                    context.breaker.notify_changed();
                }
            }
            ControlEffect::User { .. } | ControlEffect::None => {}
        }
    }
}
