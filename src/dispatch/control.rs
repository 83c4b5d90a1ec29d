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

use super::commands::record::{InvalidCommand, name_of};
use super::commands::{FoundCommands, remind_of_held_users};
use super::committer::Committer;
use super::context::DispatchContext;
use super::deliverer::Deliverer;
use super::notices::{shown_answer, shown_user};
use super::partition_log::PartitionLog;
use super::reader::PartitionReader;
use crate::core::Moment;
use crate::core::control::{ControlCommand, ControlEffect, ControlRecord, UserAction};
use crate::core::parking::HoldError;
use crate::core::progress::{CommandFailure, ControlState};
use crate::limits::CONTROL_LOOK_INTERVAL;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the start of a partition waits for the commands that were given while no process owned it. If they cannot be
/// read by then, delivery begins: a later look finds them.
pub(super) const START_LOOK_MAX: Duration = Duration::from_secs(5);

/// How long commands about users wait until the partition is read so far that the users' events are known. It counts from
/// the first of them that waits, because the commands after it wait, too. A pause can keep the reading back, so a `resume`
/// must not wait for ever.
const COMMAND_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long no attempt starts because commands that were given while no process owned the partition wait. Reading can stop
/// before these commands are possible, when the window is full.
const START_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a look may take while the worker delivers. No attempt waits for it.
pub(super) const CONTROL_LOOK_MAX: Duration = Duration::from_secs(30);

impl DispatchContext {
    /// A partition has this state now: because of commands, or because its worker begins with it.
    pub(super) fn set_control(&self, log: &PartitionLog, control: &ControlState, causes: ChangeCauses<'_>) {
        let now = self.now();
        self.shared_control.pauses.set(log, control, causes.of_pause);
        self.breaker.lock().set_paused(self.shared_control.pauses.is_any(), now);
        if let Some(rate) = self.throttle.rate.set_operator_rate(log.partition, control.rate_per_hour, now)
            && let Some(ControlRecord { by, reason, .. }) = causes.of_rate
        {
            tracing::info!(destination = log.destination, %by, %reason, "the rate of events was changed: {rate}");
        }
    }

    /// Writes a line about held users after a start, and each minute. Never ends. A replay holds no user.
    pub(super) async fn remind_of_held_users(&self) -> Infallible {
        match self.is_controlled {
            true => remind_of_held_users(&self.parts, &self.shared_control).await,
            false => pending().await,
        }
    }

    /// A partition is not owned any more.
    pub(super) fn forget_control(&self, partition: u32) {
        let now = self.now();
        self.shared_control.pauses.remove(partition);
        self.shared_control.held.remove(partition);
        self.breaker.lock().set_paused(self.shared_control.pauses.is_any(), now);
        _ = self.throttle.rate.set_operator_rate(partition, None, now);
    }
}

/// The commands because of which the state of a destination has changed. Each thing that changes has its own operator and
/// reason, so a log line about one of them must not name the command about another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ChangeCauses<'f> {
    /// The last pause or resume that had an effect.
    of_pause: Option<&'f ControlRecord>,
    /// The last change of the rate.
    of_rate: Option<&'f ControlRecord>,
}

impl<'f> ChangeCauses<'f> {
    /// Adds a command with this effect. It replaces an earlier one about the same thing.
    fn add(&mut self, effect: &ControlEffect, record: &'f ControlRecord) {
        match effect {
            ControlEffect::Paused | ControlEffect::Resumed => self.of_pause = Some(record),
            ControlEffect::RateChanged => self.of_rate = Some(record),
            ControlEffect::Probe | ControlEffect::User { .. } | ControlEffect::None => {}
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Looks for the commands of one partition.
pub(super) struct ControlReader {
    /// When to look next. `None`: a look is in flight.
    look_at: Option<Moment>,
    /// Replays are not controlled.
    is_enabled: bool,
    /// Since when commands wait that cannot be applied yet.
    waiting_since: Option<Moment>,
    /// Until when the commands that wait hold back the first attempt. They do if the look at the start found them.
    holds_start_until: Option<Moment>,
}

impl ControlReader {
    pub(super) fn new(is_enabled: bool, now: Moment) -> Self {
        Self { look_at: Some(now), is_enabled, waiting_since: None, holds_start_until: None }
    }

    /// Whether to look for commands now.
    pub(super) fn start_look(&mut self, now: Moment) -> bool {
        let is_due = self.next_look_at().is_some_and(|at| now >= at);
        if is_due {
            self.look_at = None;
        }
        is_due
    }

    /// Whether to wait for a command that cannot be applied yet.
    fn waits(&mut self, now: Moment) -> bool {
        let since = *self.waiting_since.get_or_insert(now);
        now < since.saturating_add(COMMAND_WAIT_MAX)
    }

    /// The look at the start has ended: commands that wait hold back the first attempt for some time.
    pub(super) fn start_look_ended(&mut self, now: Moment) {
        self.holds_start_until = self.waiting_since.map(|_| now.saturating_add(START_WAIT_MAX));
    }

    /// All commands that were found are applied or passed.
    fn caught_up(&mut self) {
        (self.waiting_since, self.holds_start_until) = (None, None);
    }

    /// Until when no attempt may start. `None`: attempts may start.
    pub(super) fn start_is_held_until(&self, now: Moment) -> Option<Moment> {
        self.holds_start_until.filter(|until| now < *until)
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
    pub(super) reader: &'a mut PartitionReader,
    pub(super) deliverer: &'a mut Deliverer,
    pub(super) committer: &'a mut Committer,
    pub(super) log: &'a PartitionLog,
}

impl ControlledPartition<'_> {
    /// Applies the commands that a look has found.
    pub(super) fn looked(&mut self, looks: &mut ControlReader, found: Result<FoundCommands, String>, now: Moment) {
        let (destination, partition) = (self.log.destination.as_str(), self.partition);
        looks.look_at = Some(now + CONTROL_LOOK_INTERVAL);
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
        let mut changed = ChangeCauses::default();
        let waits = self.apply_found(&found, looks, &mut changed, now);
        self.share_changed(changed);
        if waits {
            return;
        }
        self.committer.pass_commands(found.next);
        match found.has_more {
            true => looks.look_at = Some(now),
            false => looks.caught_up(),
        }
    }

    /// Applies these commands in their order. `changed`: those that changed the state of the destination, which the other
    /// partitions do not know yet. Returns whether a command waits. Then it and those after it are not passed.
    fn apply_found<'f>(
        &mut self,
        found: &'f FoundCommands,
        looks: &mut ControlReader,
        changed: &mut ChangeCauses<'f>,
        now: Moment,
    ) -> bool {
        let (destination, partition) = (self.log.destination.as_str(), self.partition);
        for (offset, command) in &found.commands {
            match command {
                Ok(record) => {
                    if let Err(error) = self.apply(*offset, record, changed, now) {
                        if error == HoldError::NotReadYet && looks.waits(now) {
                            // Not passed: the next look finds it again.
                            self.committer.pass_commands(*offset);
                            return true;
                        }
                        self.pass_without_effect(*offset, record, error);
                    }
                }
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
                    return true;
                }
            }
        }
        false
    }

    /// A command about a user cannot be applied in this partition. A user has its events in one partition, so in the others
    /// nothing is lost.
    fn pass_without_effect(&mut self, offset: i64, record: &ControlRecord, error: HoldError) {
        let why = match error {
            HoldError::ListIsFull => CommandFailure::ListIsFull,
            HoldError::NotReadYet => CommandFailure::NotReadInTime,
            HoldError::NotPossible => CommandFailure::NotPossible,
        };
        self.committer.fail_command(offset, why);
        let (destination, partition, command) =
            (self.log.destination.as_str(), self.partition, name_of(&record.command));
        let ControlCommand::User { user, .. } = &record.command else { return };
        let key = Some(Arc::clone(user));
        let (parked, memory) = self.reader.parking(&mut self.deliverer.lanes, self.committer);
        let is_known = memory.lanes.find(key.as_deref()).is_some() || parked.is_listed(&key);
        let (user, by) = (shown_user(Some(user)), shown_answer(&record.by));
        match is_known {
            true => {
                let advice = why.advice().map(|advice| format!(". {advice}")).unwrap_or_default();
                tracing::error!(destination, partition, command, user, by, "a command had no effect: {why}{advice}");
            }
            false => tracing::warn!(
                destination,
                partition,
                command,
                user,
                by,
                "a command had no effect in a partition that has no event of the user now: {why}"
            ),
        }
    }

    /// Tells all partitions of the process about the state of the destination after these commands.
    fn share_changed(&self, changed: ChangeCauses<'_>) {
        if !changed.is_empty() {
            self.context.set_control(self.log, self.committer.control(), changed);
        }
    }

    /// # Errors
    /// The command cannot be applied, and nothing has changed.
    fn apply<'f>(
        &mut self,
        offset: i64,
        record: &'f ControlRecord,
        changed: &mut ChangeCauses<'f>,
        now: Moment,
    ) -> Result<(), HoldError> {
        if let ControlCommand::User { user, action } = &record.command {
            self.apply_to_user(user, *action, record, now)?;
        }
        let context = self.context;
        let effect = self.committer.apply_command(offset, record);
        // If several were found at once, as at a start, a log line says what the last one about its thing leaves.
        changed.add(&effect, record);
        if effect == ControlEffect::Probe {
            self.share_changed(std::mem::take(changed));
            let is_first = context.shared_control.probes.is_first(&record.id);
            if is_first && context.breaker.lock().probe_now(now) {
                let ControlRecord { by, reason, .. } = record;
                let when = match context.shared_control.pauses.is_any() {
                    true => "when the destination is resumed, because it is paused",
                    false => "now",
                };
                tracing::info!(destination = self.log.destination, %by, %reason, "a probe is sent {when}, as was asked for");
                context.breaker.notify_changed();
            }
        }
        Ok(())
    }

    /// # Errors
    /// The user cannot be held or given up now, and nothing has changed.
    fn apply_to_user(
        &mut self,
        user: &Arc<[u8]>,
        action: UserAction,
        record: &ControlRecord,
        now: Moment,
    ) -> Result<(), HoldError> {
        let key = Some(Arc::clone(user));
        let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, self.committer);
        let (done, line) = match action {
            UserAction::Hold => (parked.hold(&key, &mut memory, now).map(|()| true), "the user is held"),
            UserAction::Release => (Ok(parked.release(&key, &mut memory, now)), "the user was released"),
            UserAction::Retry => (Ok(parked.retry_now(&key, &mut memory, now)), "the user's next event is tried now"),
            UserAction::GiveUp { below } => {
                (parked.give_up(&key, Some(below), &mut memory, now), "events of the user are given up")
            }
        };
        let (destination, ControlRecord { id, by, reason, .. }) = (&self.log.destination, record);
        let user = shown_user(Some(user));
        // Every partition gets the command. One of those where it has an effect writes the line.
        if done? && self.context.shared_control.told.is_first(id) {
            tracing::info!(%destination, user, %by, %reason, "{line}, as was asked for");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn a_pause_and_a_rate_that_change_together_each_keep_their_own_command() {
        let record =
            |at_ms, command| ControlRecord { id: "id".into(), at_ms, by: "ann@ops".into(), reason: "".into(), command };
        let (pause, resume) = (record(1, ControlCommand::Pause), record(3, ControlCommand::Resume));
        let rate = record(2, ControlCommand::Rate { per_hour: Some(1) });
        let same_rate = record(4, ControlCommand::Rate { per_hour: Some(1) });
        let mut causes = ChangeCauses::default();
        causes.add(&ControlEffect::Probe, &pause);
        assert!(causes.is_empty());
        causes.add(&ControlEffect::Paused, &pause);
        causes.add(&ControlEffect::RateChanged, &rate);
        assert_eq!(causes, ChangeCauses { of_pause: Some(&pause), of_rate: Some(&rate) });
        causes.add(&ControlEffect::Resumed, &resume);
        causes.add(&ControlEffect::None, &same_rate);
        assert_eq!(causes, ChangeCauses { of_pause: Some(&resume), of_rate: Some(&rate) });
    }

    #[test]
    fn commands_that_wait_share_one_deadline() {
        let mut looks = ControlReader::new(true, at(0));
        assert!(looks.waits(at(0)), "the first command waits");
        assert!(looks.waits(at(59)), "a second one waits, too");
        assert!(!looks.waits(at(60)), "and not a minute longer than the first one");
        assert!(!looks.waits(at(61)), "nor does a third one wait");
        looks.caught_up();
        assert!(looks.waits(at(62)), "a command that is given later has its own minute");
    }

    #[test]
    fn commands_that_wait_at_the_start_hold_the_first_attempt_back_for_some_time() {
        let mut looks = ControlReader::new(true, at(0));
        looks.start_look_ended(at(0));
        assert_eq!(looks.start_is_held_until(at(0)), None, "no command waits");
        assert!(looks.waits(at(1)));
        assert_eq!(looks.start_is_held_until(at(1)), None, "a command that is given later holds no attempt back");
        looks.start_look_ended(at(1));
        assert_eq!(looks.start_is_held_until(at(10)), Some(at(11)));
        assert_eq!(looks.start_is_held_until(at(11)), None);
        looks.start_look_ended(at(1));
        looks.caught_up();
        assert_eq!(looks.start_is_held_until(at(2)), None, "they are applied");
    }
}
