//! The rule for runs of several events that failed as a whole: the first event goes alone next, and no event is in many of
//! them.

use super::{Rules, User};
use std::collections::HashMap;

/// A lane leaves memory and returns less often than this while one of its events is tried.
const RETURNS_MAX: u32 = 10;

/// The failed batches of one ownership.
#[derive(Debug, Default)]
pub(super) struct FailedBatches {
    /// For each user, the first event of its last failed batch.
    heads: HashMap<User, i64>,
    /// How many failed batches each event was in.
    times: HashMap<i64, u32>,
}

impl FailedBatches {
    /// A batch failed.
    pub(super) fn failed(&mut self, user: User, offsets: &[i64]) {
        self.heads.insert(user, offsets[0]);
        for offset in offsets {
            *self.times.entry(*offset).or_default() += 1;
        }
    }

    /// What is wrong with a run that begins now. A lane that left memory does not remember the batch that failed.
    pub(super) fn forbid(&self, user: &User, offsets: &[i64], rules: &Rules) -> Option<String> {
        if offsets.len() < 2 {
            return None;
        }
        if !rules.may_park && self.heads.get(user) == Some(&offsets[0]) {
            return Some(format!("{} is not tried alone after a batch that failed", offsets[0]));
        }
        // Each batch that fails has half of the length of the last one, until a run is delivered. Then the place of the event
        // at fault has been halved, too.
        let returns_max = if rules.may_park { RETURNS_MAX } else { 1 };
        let times_max = (2 * rules.limits.run_events_max.ilog2() + 3) * returns_max;
        let often = offsets.iter().find(|offset| self.times.get(offset).is_some_and(|times| *times >= times_max))?;
        Some(format!("{often} was in {times_max} batches that failed, and is in another one"))
    }
}
