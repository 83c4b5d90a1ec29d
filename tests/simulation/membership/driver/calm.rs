//! The checks of a time without faults: every partition has its owner, and none moves without a reason.

use super::{Driver, LOOK_INTERVAL};
use crate::group::kafka::membership::simulation::coordinator::Phase;
use crate::group::kafka::membership::simulation::oracle::Life;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// After the faults have ended, every partition must have its owner within this time, and none may move any more.
const CALM_MAX: Duration = Duration::from_secs(120);
/// After a member has drained, how long it may take until another member owns its partitions.
const REASSIGNED_MAX: Duration = Duration::from_secs(10);
/// The group counts as settled if nothing has moved for this long.
const STILL: Duration = Duration::from_secs(8);

impl Driver {
    /// Waits until each partition has its owner and nothing moves. Returns the slot that owns each partition.
    pub(super) async fn settles(&mut self, when: &str) -> Vec<usize> {
        let limit = Instant::now() + CALM_MAX;
        let mut still: Option<(Instant, (i32, Vec<Life>))> = None;
        loop {
            self.pass(LOOK_INTERVAL).await;
            if self.broken() {
                return Vec::new();
            }
            let now = Instant::now();
            let expected = self.slots.iter().filter(|slot| slot.process.is_some() || slot.start_at.is_some()).count();
            let mut state = self.world.lock();
            let owners = state
                .oracle
                .balanced(state.partitions, now)
                .filter(|_| state.group.phase == Phase::Stable && state.group.members() == expected);
            let seen = owners.map(|owners| (state.group.generation, owners));
            still = match (seen, still) {
                (Some(seen), Some((since, before))) if seen == before => Some((since, before)),
                (Some(seen), _) => Some((now, seen)),
                (None, _) => None,
            };
            match &still {
                Some((since, (_, owners))) if *since + STILL <= now => {
                    let slots: BTreeMap<Life, usize> = (0..self.slots.len())
                        .filter_map(|slot| Some((self.slots[slot].process.as_ref()?.life, slot)))
                        .collect();
                    return owners.iter().map(|life| slots[life]).collect();
                }
                _ if now > limit => {
                    let (shown, members) = (state.oracle.shown(), state.group.members());
                    let (phase, generation) = (state.group.phase, state.group.generation);
                    state.oracle.fail(format!(
                        "{when}, {CALM_MAX:?} after the fault, {expected} members are not settled: {shown}; the \
                         coordinator has {members} members, {phase:?} of generation {generation}"
                    ));
                    return Vec::new();
                }
                _ => {}
            }
        }
    }

    pub(super) async fn changes_without_faults(&mut self) {
        self.world.lock().oracle.nothing_is_lost = true;
        self.start(0);
        let mut before = self.settles("after the first start").await;
        for turn in 0..self.random.between(2, 6) {
            self.world.lock().oracle.mark();
            let slot = self.random.below(self.slots.len() as u64) as usize;
            let others_are_up = (0..self.slots.len()).any(|other| other != slot && self.is_up(other));
            let (mut is_restart, mut is_one) = (false, true);
            match self.random.below(6) {
                5 if others_are_up && self.is_up(slot) => self.drains(slot).await,
                4 => {
                    is_one = false;
                    self.second_change_before_the_first_is_done(slot).await;
                }
                0 => self.grow(),
                _ if !self.is_up(slot) => self.start(slot),
                1 if self.slots[slot].instance.is_some() => {
                    is_restart = true;
                    self.stop(slot, false);
                    self.slots[slot].start_at = Some(Instant::now() + Duration::from_millis(400));
                }
                _ if others_are_up => self.leaves(slot).await,
                _ => continue,
            }
            self.done.planned += 1;
            let after = self.settles(&format!("after change {turn}")).await;
            let mut state = self.world.lock();
            if is_restart && after != before {
                state.oracle.fail(format!("a restart moved partitions: {before:?}, {after:?} by slot"));
            }
            for (partition, (owner, earlier)) in (0..).zip(after.iter().zip(&before)) {
                if is_one && owner == earlier && state.oracle.was_interrupted(partition) {
                    state.oracle.fail(format!("{partition} was interrupted, although it stays in slot {owner}"));
                }
            }
            drop(state);
            if self.broken() {
                return;
            }
            before = after;
        }
    }

    /// Partitions that have drained must get another owner while one partition of the same member still hangs.
    async fn drains(&mut self, slot: usize) {
        let Some(hanging) = self.drain(slot, self.release_max + REASSIGNED_MAX * 2) else { return };
        let limit = Instant::now() + self.release_max + REASSIGNED_MAX;
        loop {
            self.pass(LOOK_INTERVAL).await;
            let now = Instant::now();
            let mut state = self.world.lock();
            let is_done = state.oracle.balanced_but(Some(hanging), state.partitions, now).is_some();
            if is_done || state.oracle.violation().is_some() {
                return;
            }
            if now > limit {
                let shown = state.oracle.shown();
                state.oracle.fail(format!("drained partitions wait for {hanging}, which hangs: {shown}"));
                return;
            }
        }
    }

    async fn leaves(&mut self, slot: usize) {
        self.stop(slot, true);
        self.pass(Duration::from_secs(1)).await;
        self.slots[slot].process = None;
    }

    /// Starts a second change before the first is done. What the first revoked may stay after the second.
    async fn second_change_before_the_first_is_done(&mut self, slot: usize) {
        let slots = self.slots.len();
        for slot in [slot, (slot + 1) % slots, slot] {
            let others_are_up = (0..slots).any(|other| other != slot && self.is_up(other));
            match self.is_up(slot) {
                true if others_are_up => self.leaves(slot).await,
                true => {}
                false => self.start(slot),
            }
            let wait = self.random.millis(0, 1_500);
            self.pass(wait).await;
        }
    }
}
