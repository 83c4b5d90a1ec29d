//! The events that operators give up: `eventd control give-up`.
//!
//! - A dead letter has the reason `operator` only if a command gives up its event. A command gives up events of one user
//!   below one offset, so never a later event.
//! - When a commit covers the command, no owner attempts such an event any more.
//!
//! That all of them are settled at the end, in their order, is judged as for any event.

use super::{Oracle, Partition, User};
use eventd::core::event::Record;
use eventd::core::progress::FailedHead;
use std::collections::HashMap;

/// The word in the header `eventd-reason` of these dead letters.
pub(super) const OPERATOR: &str = "operator";

/// What operators gave up of one user in one partition.
#[derive(Debug, Default)]
struct GivenUp {
    /// The highest offset that a command names.
    commanded_below: i64,
    /// The highest offset of a command that a commit covers.
    stored_below: i64,
}

/// What operators gave up.
#[derive(Debug, Default)]
pub(super) struct GiveUps {
    users: HashMap<(u32, User), GivenUp>,
}

impl GiveUps {
    pub(super) fn may_be_given_up(&self, partition: u32, user: &User, offset: i64) -> bool {
        self.users.get(&(partition, user.clone())).is_some_and(|given_up| offset < given_up.commanded_below)
    }

    fn must_be_given_up(&self, partition: u32, user: &User, offset: i64) -> bool {
        !self.users.is_empty()
            && self.users.get(&(partition, user.clone())).is_some_and(|given_up| offset < given_up.stored_below)
    }
}

impl Oracle {
    /// An operator gives up this user's events below an offset.
    pub(crate) fn give_up_commanded(&mut self, partition: u32, user: &User, below: i64) {
        let given_up = self.give_ups.users.entry((partition, user.clone())).or_default();
        given_up.commanded_below = given_up.commanded_below.max(below);
    }

    /// A commit covers the command, and does not say that it had no effect.
    pub(crate) fn give_up_stored(&mut self, partition: u32, user: &User, below: i64) {
        let given_up = self.give_ups.users.entry((partition, user.clone())).or_default();
        given_up.stored_below = given_up.stored_below.max(below);
    }

    /// Whether an attempt of this event breaks the promise of a `give-up`. An offset reset may have taken the event back.
    pub(super) fn is_given_up(&self, partition: u32, user: &User, offset: i64) -> bool {
        self.partitions[partition as usize].resets.is_empty() && self.give_ups.must_be_given_up(partition, user, offset)
    }

    /// The first event of a user that is not settled.
    pub(crate) fn first_unsettled(&self, partition: u32, user: &User) -> Option<i64> {
        self.partitions[partition as usize].first_unsettled(user)
    }
}

impl Partition {
    pub(super) fn first_unsettled(&self, user: &User) -> Option<i64> {
        let (offsets, settled) = self.users.get(user)?;
        offsets.get(*settled).copied()
    }
}

/// Why this dead letter of an operator says something wrong about the attempts of its event. The owner saw no attempt of
/// it that failed, and began with what was `stored` of earlier ones.
pub(super) fn contradicts_stored(dead_letter: &Record, stored: &FailedHead) -> Option<String> {
    let answer = dead_letter.header_text("eventd-answer").unwrap_or_default();
    if answer != &*stored.answer {
        return Some(format!("with the answer {answer:?}, and the last one was {:?}", stored.answer));
    }
    let has_times = ["eventd-first-attempt", "eventd-last-attempt"].map(|name| dead_letter.header(name).is_some());
    let has_failed = stored.failures > 0;
    (has_times != [has_failed; 2])
        .then(|| format!("with times of attempts: {has_times:?}, and it failed: {has_failed}"))
}
