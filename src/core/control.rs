//! Commands of operators: what each one changes in a partition. (`dispatch/commands/record.rs` has their text in the log.)
//!
//! ```text
//!  <topic>.<dest>.control   P0  [pause] [hold u-1] [resume] …
//!                                          ▲ next: everything before it is applied
//!                                          └── ControlState, committed together with what the commands changed
//! ```
//!
//! Every command goes to every partition, and each owner applies the commands of its partition in their order. A commit
//! holds the offset of the next command together with the effects of those before it. So after a crash a command may be
//! applied a second time, but only if its first effect was not stored. Each command is safe for that:
//!
//! | command            | if it is applied again after a crash                                               |
//! |--------------------|------------------------------------------------------------------------------------|
//! | `pause`, `resume`, `rate` | set a value: all commands of the partition are applied again in their order, so the last one decides |
//! | `retry`, `probe`   | start an attempt earlier than it is due, which is allowed at any time                 |
//! | `hold`, `release`  | set a value, like `pause`                                                           |
//! | `give-up`          | gives up the events of a user *below an offset*: those that are settled stay as they are  |
//!
//! This is why `give-up` always names an offset. "The next event" would be another event the second time.

use super::progress::{CommandFailure, ControlState, FailedCommand, Pause};
use std::sync::Arc;

/// Commands without an effect that a state remembers, the last ones. `eventd control` looks a moment later.
const FAILED_COMMANDS_MAX: usize = 8;

/// One command, as an operator gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlRecord {
    /// Equal for the records of one command in all partitions.
    pub id: Box<str>,
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// `user@host`.
    pub by: Box<str>,
    /// Why, in the operator's words. It may be empty.
    pub reason: Box<str>,
    pub command: ControlCommand,
}

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlCommand {
    /// No attempt starts from now on, also after a restart.
    Pause,
    Resume,
    /// Limits attempts. `None`: no limit, or that of `--rate`.
    Rate {
        per_hour: Option<u64>,
    },
    /// If the breaker is open, it sends its next probe at once.
    Probe,
    User {
        /// The user's id, as in the key of its records.
        user: Arc<[u8]>,
        action: UserAction,
    },
}

/// What an operator wants for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserAction {
    /// Ends the backoff of the user's next event, and releases the user.
    Retry,
    /// The user is not tried until it is released.
    Hold,
    Release,
    /// The user's unsettled events below this offset become dead letters.
    GiveUp {
        below: i64,
    },
}

/// Who holds a user, since when and why, as the commands say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Milliseconds since the Unix epoch.
    pub since_ms: i64,
    pub by: Box<str>,
    pub reason: Box<str>,
}

impl Hold {
    /// The hold of a user after this command. A second `hold` changes nothing.
    pub fn after(hold: Option<Self>, user: &[u8], record: &ControlRecord) -> Option<Self> {
        let ControlRecord { at_ms, by, reason, command, .. } = record;
        match command {
            ControlCommand::User { user: other, action } if **other == *user => match action {
                UserAction::Hold => {
                    hold.or_else(|| Some(Self { since_ms: *at_ms, by: by.clone(), reason: reason.clone() }))
                }
                UserAction::Release | UserAction::Retry => None,
                UserAction::GiveUp { .. } => hold,
            },
            _ => hold,
        }
    }
}

/// What the owner of a partition has to do after [`ControlState::apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEffect {
    /// The destination was not paused, and is now.
    Paused,
    /// The destination was paused, and is not now.
    Resumed,
    RateChanged,
    Probe,
    User {
        user: Arc<[u8]>,
        action: UserAction,
    },
    /// Nothing changes: for example, the destination was paused before.
    None,
}

impl ControlState {
    /// Applies the command at this offset.
    ///
    /// # Panics
    /// The command was applied before.
    pub fn apply(&mut self, offset: i64, record: &ControlRecord) -> ControlEffect {
        assert!(offset >= self.next, "command {offset} was applied before: the next one is {}", self.next);
        self.next = offset + 1;
        match &record.command {
            ControlCommand::Pause => {
                // A second pause changes nothing: the time, the operator and the reason of the first one belong together.
                if self.paused.is_some() {
                    return ControlEffect::None;
                }
                let ControlRecord { at_ms, by, reason, .. } = record;
                self.paused = Some(Pause { since_ms: *at_ms, by: by.clone(), reason: reason.clone() });
                ControlEffect::Paused
            }
            ControlCommand::Resume => match self.paused.take() {
                Some(_) => ControlEffect::Resumed,
                None => ControlEffect::None,
            },
            ControlCommand::Rate { per_hour } => {
                let changes = self.rate_per_hour != *per_hour;
                self.rate_per_hour = *per_hour;
                if changes { ControlEffect::RateChanged } else { ControlEffect::None }
            }
            ControlCommand::Probe => ControlEffect::Probe,
            ControlCommand::User { user, action } => ControlEffect::User { user: Arc::clone(user), action: *action },
        }
    }

    /// The command at this offset is passed, although it could not be applied.
    pub fn fail(&mut self, offset: i64, why: CommandFailure) {
        self.next = offset + 1;
        if self.failed.len() >= FAILED_COMMANDS_MAX {
            self.failed.remove(0);
        }
        self.failed.push(FailedCommand { offset, why });
    }

    /// The records before this offset have no command for this partition, or are gone.
    pub fn pass(&mut self, next: i64) {
        self.next = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_commands_without_an_effect_are_remembered() {
        let mut state = ControlState::default();
        (0..20).for_each(|offset| state.fail(offset, CommandFailure::ListIsFull));
        assert_eq!(state.next, 20);
        let offsets: Vec<i64> = state.failed.iter().map(|failed| failed.offset).collect();
        assert_eq!(offsets, (12..20).collect::<Vec<_>>());
    }

    fn record(at_ms: i64, command: ControlCommand) -> ControlRecord {
        ControlRecord {
            id: format!("c{at_ms}").into(),
            at_ms,
            by: format!("op-{at_ms}").into(),
            reason: "".into(),
            command,
        }
    }

    fn any_command() -> impl Strategy<Value = ControlCommand> {
        prop_oneof![
            Just(ControlCommand::Pause),
            Just(ControlCommand::Resume),
            proptest::option::of(1u64..9).prop_map(|per_hour| ControlCommand::Rate { per_hour }),
            Just(ControlCommand::Probe),
        ]
    }

    proptest! {
        #[test]
        fn a_crash_at_any_command_and_a_second_application_change_nothing(
            commands in proptest::collection::vec(any_command(), 1..30),
            stored_at in any::<prop::sample::Index>(), crash_at in any::<prop::sample::Index>(),
        ) {
            let records: Vec<ControlRecord> = (0..).zip(commands).map(|(at_ms, command)| record(at_ms, command)).collect();
            let apply = |state: &mut ControlState, until: usize| {
                while let Some(record) = records[..until].get(state.next as usize) {
                    state.apply(state.next, record);
                }
            };
            let mut whole = ControlState::default();
            apply(&mut whole, records.len());
            let (crash_at, mut stored) = (crash_at.index(records.len()), ControlState::default());
            apply(&mut stored, stored_at.index(crash_at + 1));
            let mut lost = stored.clone();
            apply(&mut lost, crash_at);
            apply(&mut stored, records.len());
            prop_assert_eq!(stored, whole);
        }

        #[test]
        fn the_state_is_that_of_the_last_command_of_its_kind(commands in proptest::collection::vec(any_command(), 0..30)) {
            let mut state = ControlState::default();
            let (mut paused, mut rate) = (None, None);
            for (offset, command) in (0..).zip(&commands) {
                let (was_paused, had_rate) = (paused.is_some(), rate);
                let effect = state.apply(offset, &record(offset, command.clone()));
                match command {
                    ControlCommand::Pause => paused = Some(paused.unwrap_or(offset)),
                    ControlCommand::Resume => paused = None,
                    ControlCommand::Rate { per_hour } => rate = *per_hour,
                    _ => {}
                }
                prop_assert_eq!(state.paused.as_ref().map(|pause| pause.since_ms), paused);
                prop_assert_eq!((state.rate_per_hour, state.next), (rate, offset + 1));
                prop_assert_eq!(effect == ControlEffect::Paused, !was_paused && paused.is_some());
                prop_assert_eq!(effect == ControlEffect::Resumed, was_paused && paused.is_none());
                prop_assert_eq!(effect == ControlEffect::RateChanged, had_rate != rate);
            }
        }
    }

    #[test]
    fn a_second_pause_keeps_the_time_and_the_operator_of_the_first() {
        let mut state = ControlState::default();
        state.apply(0, &record(10, ControlCommand::Pause));
        state.apply(4, &record(20, ControlCommand::Pause));
        let paused = state.paused.unwrap();
        assert_eq!((paused.since_ms, &*paused.by, state.next), (10, "op-10", 5));
    }

    #[test]
    fn the_first_hold_since_the_last_release_says_who_holds_a_user() {
        let about =
            |at_ms, user: &str, action| record(at_ms, ControlCommand::User { user: user.as_bytes().into(), action });
        let follow = |records: &[ControlRecord]| {
            let after = |hold, record| Hold::after(hold, b"u", record);
            records.iter().fold(None, after).map(|hold: Hold| (hold.since_ms, hold.by.to_string()))
        };
        let held = [
            about(1, "u", UserAction::Hold),
            about(2, "u", UserAction::Release),
            about(3, "u", UserAction::Hold),
            about(4, "u", UserAction::Hold),
            about(5, "v", UserAction::Release),
            about(6, "u", UserAction::GiveUp { below: 9 }),
            record(7, ControlCommand::Resume),
        ];
        assert_eq!(follow(&held), Some((3, "op-3".to_owned())));
        assert_eq!(follow(&held[..2]), None);
        assert_eq!(follow(&[&held[..], &[about(8, "u", UserAction::Retry)]].concat()), None);
    }

    #[test]
    #[should_panic(expected = "was applied before")]
    fn a_command_is_not_applied_twice() {
        let mut state = ControlState::default();
        state.apply(3, &record(0, ControlCommand::Resume));
        state.apply(3, &record(0, ControlCommand::Resume));
    }
}
