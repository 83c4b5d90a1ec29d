//! The rule for runs of several events that failed as a whole: the first event goes alone next, and no event is in many of
//! them.

use super::User;
use std::collections::HashMap;

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

    /// What is wrong with a run that begins now.
    pub(super) fn forbid(&self, user: &User, offsets: &[i64], run_events_max: usize) -> Option<String> {
        if offsets.len() < 2 {
            return None;
        }
        if self.heads.get(user) == Some(&offsets[0]) {
            return Some(format!("{} is not tried alone after a batch that failed", offsets[0]));
        }
        // Each batch that fails has half of the length of the last one, until a run is delivered. Then the place of the event
        // at fault has been halved, too.
        let times_max = 2 * run_events_max.ilog2() + 3;
        let often = offsets.iter().find(|offset| self.times.get(offset).is_some_and(|times| *times >= times_max))?;
        Some(format!("{often} was in {times_max} batches that failed, and is in another one"))
    }
}
