//! Stops a destination for an operator: the policy `--on-exhausted halt`.
//!
//! ```text
//!  worker: the tries of an event have ended ──▶ HaltSwitch ──▶ run: all partitions drain and commit ──▶ Halted
//! ```
//!
//! The event stays unsettled, so the next start attempts it again. If it fails again, the destination halts again: a commit
//! keeps the account of the event's tries.

use super::notices::{GivenUpEvent, control_command, shown_answer, shown_id, shown_user};
use tokio::sync::watch;

/// The error with which a halted destination ends.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Halted {
    why: String,
}

/// Whether the destination ended because of `--on-exhausted halt`. Only an operator can decide what comes next.
pub(crate) fn is_halted(error: &anyhow::Error) -> bool {
    error.is::<Halted>()
}

/// Tells [`run`](super::run) that a worker halts the destination.
#[derive(Default)]
pub(super) struct HaltSwitch {
    halted: watch::Sender<Option<Halted>>,
}

impl HaltSwitch {
    /// Halts the destination because of this event. If it is halted already, nothing changes.
    pub(super) fn halt(&self, destination: &str, event: &GivenUpEvent<'_>) {
        let GivenUpEvent { partition, offset, user, id, reason, attempts, answer } = *event;
        // An event without a user cannot be named in a command.
        let to_pass = match user {
            Some(user) => format!("{}, then start again", control_command("give-up", destination, user)),
            None => "start once with --on-exhausted dead-letter".to_owned(),
        };
        let why = format!(
            "halted (--on-exhausted halt): the tries of an event have ended ({reason} after {attempts} attempts): partition \
             {partition}, offset {offset}, user {:?}, id {:?}, last answer: {}. It stays unsettled. Correct the cause and \
             start again. To pass only this event: {to_pass}",
            shown_user(user),
            shown_id(id),
            shown_answer(answer)
        );
        self.halted.send_if_modified(|halted| {
            let is_first = halted.is_none();
            halted.get_or_insert(Halted { why });
            is_first
        });
    }

    /// Ready once the destination is halted.
    pub(super) async fn halted(&self) -> Halted {
        let mut halted = self.halted.subscribe();
        loop {
            if let Some(halted) = halted.borrow_and_update().clone() {
                return halted;
            }
            // The sender is in `self`, so it is not gone while this waits.
            halted.changed().await.expect("the switch is alive");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_event_that_halts_is_named_with_its_answer_and_what_to_do() {
        let switch = HaltSwitch::default();
        let event = GivenUpEvent {
            partition: 2,
            offset: 17,
            user: Some(b"user-1"),
            id: "id-1",
            reason: "exhausted",
            attempts: 10,
            answer: "500 Internal Server Error: no\nmore",
        };
        switch.halt("hook", &event);
        switch.halt("hook", &GivenUpEvent { offset: 18, ..event });
        let error = anyhow::Error::from(switch.halted().await);
        assert!(is_halted(&error) && is_halted(&error.context("destination hook")));
        let why = switch.halted().await.to_string();
        for part in [
            "partition 2, offset 17, user \"user-1\"",
            "after 10 attempts",
            r"500 Internal Server Error: no\nmore",
            "the tries of an event have ended",
            "eventd control give-up --dest hook --user user-1, then start again",
        ] {
            assert!(why.contains(part), "{part:?} is not in: {why}");
        }
    }
}
