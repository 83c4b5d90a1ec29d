//! Holds members to what groups promise, by what their users were told and by what the coordinator took; nothing of
//! what it judges decides here but the lease, whose meaning is the promise itself.

use crate::group::kafka::membership::Membership;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::time::Instant;

/// One process's life; a restart is another one.
pub(super) type Life = u64;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) given: u64,
    /// Taken, and let go.
    pub(super) handovers: u64,
    /// Those of them by members that drain.
    pub(super) drained: u64,
    pub(super) lost: u64,
    pub(super) commits: u64,
    pub(super) commits_refused: u64,
    /// Memberships that ended with an error.
    pub(super) ended: u64,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    members: BTreeMap<Life, Arc<Membership>>,
    /// Who may be at work on each partition, so far as its user knows; more than one only where all but one are fenced.
    holders: BTreeMap<u32, BTreeSet<Life>>,
    times_given: BTreeMap<(Life, u32), u64>,
    /// Who was told to drain.
    draining: BTreeSet<Life>,
    /// Partitions that were taken or lost since the last [`mark`](Self::mark).
    interrupted: BTreeSet<u32>,
    /// Nothing that happens now may cost anybody a partition.
    pub(super) nothing_is_lost: bool,
    pub(super) ended: Vec<(Life, String)>,
    pub(super) counts: Counts,
    violation: Option<String>,
}

impl Oracle {
    pub(super) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub(super) fn born(&mut self, life: Life, member: &Arc<Membership>) {
        self.members.insert(life, Arc::clone(member));
    }

    /// The process is no more, or has stopped all that it did.
    pub(super) fn gone(&mut self, life: Life) {
        self.members.remove(&life);
        self.holders.values_mut().for_each(|holders| _ = holders.remove(&life));
    }

    pub(super) fn holds(&self, life: Life, partition: u32) -> bool {
        self.holders.get(&partition).is_some_and(|holders| holders.contains(&life))
    }

    pub(super) fn given(&mut self, life: Life, partition: u32, now: Instant) {
        if !self.members.contains_key(&life) {
            return;
        }
        self.counts.given += 1;
        *self.times_given.entry((life, partition)).or_default() += 1;
        if !self.holders.entry(partition).or_default().insert(life) {
            self.fail(format!("{partition} is given to {life}, which has it"));
        }
        if self.draining.contains(&life) {
            self.fail(format!("{partition} is given to {life}, which drains"));
        }
        self.check(now);
    }

    pub(super) fn times_given(&self, life: Life, partition: u32) -> u64 {
        self.times_given.get(&(life, partition)).copied().unwrap_or_default()
    }

    pub(super) fn is_alive(&self, life: Life) -> bool {
        self.members.contains_key(&life)
    }

    /// It stops. Answers with the first partition that it has.
    pub(super) fn drains(&mut self, life: Life) -> Option<u32> {
        self.draining.insert(life);
        (self.holders.iter()).find(|(_, holders)| holders.contains(&life)).map(|(partition, _)| *partition)
    }

    pub(super) fn holds_any(&self, life: Life) -> bool {
        self.holders.values().any(|holders| holders.contains(&life))
    }

    pub(super) fn taken(&mut self, life: Life, partition: u32) {
        self.interrupted.insert(partition);
        if !self.holds(life, partition) {
            self.fail(format!("{partition} is taken from {life}, which does not have it"));
        }
    }

    pub(super) fn released(&mut self, life: Life, partition: u32) {
        self.counts.handovers += 1;
        self.counts.drained += u64::from(self.draining.contains(&life));
        self.holders.entry(partition).or_default().remove(&life);
    }

    pub(super) fn lost(&mut self, life: Life, partition: u32) {
        self.counts.lost += 1;
        self.interrupted.insert(partition);
        self.holders.entry(partition).or_default().remove(&life);
        if self.nothing_is_lost {
            self.fail(format!("{life} loses {partition}, though nobody had any trouble"));
        }
    }

    pub(super) fn has_ended(&mut self, life: Life, why: String) {
        self.counts.ended += 1;
        self.ended.push((life, why));
    }

    /// At no moment may two be at work on one partition.
    pub(super) fn check(&mut self, now: Instant) {
        let mut wrong = None;
        for (partition, holders) in &self.holders {
            let leases = holders.iter().map(|life| (*life, self.members[life].lease_deadline()));
            let open: Vec<_> =
                leases.filter(|(_, lease)| *lease > now).map(|(life, lease)| (life, lease - now)).collect();
            if open.len() > 1 {
                wrong = Some(format!("{partition} has two owners before their leases: {open:?}"));
            }
        }
        wrong.into_iter().for_each(|wrong| self.fail(wrong));
    }

    /// The member says that it may commit.
    pub(super) fn may_commit(&mut self, life: Life, partition: u32) {
        if !self.holds(life, partition) {
            self.fail(format!("{life} may commit {partition}, which it does not have"));
        }
    }

    /// The coordinator took a commit.
    pub(super) fn committed(&mut self, life: Life, partition: u32, now: Instant) {
        self.counts.commits += 1;
        let others = self.holders.get(&partition).into_iter().flatten().filter(|other| **other != life);
        if let Some(other) = others.copied().find(|other| self.members[other].lease_deadline() > now) {
            self.fail(format!("a commit of {partition} by {life} is taken while {other} has it"));
        }
    }

    pub(super) fn refused(&mut self) {
        self.counts.commits_refused += 1;
    }

    /// Who owns what, if each of these partitions has one owner, before its lease, which does not drain, and shares
    /// differ by one at most.
    pub(super) fn balanced(&self, partitions: u32, now: Instant) -> Option<Vec<Life>> {
        self.balanced_but(None, partitions, now)
    }

    /// Like [`balanced`](Self::balanced), with one partition that may be anyone's, and goes to whoever has fewest later.
    pub(super) fn balanced_but(&self, hanging: Option<u32>, partitions: u32, now: Instant) -> Option<Vec<Life>> {
        let stay = self.members.keys().filter(|life| !self.draining.contains(life));
        let mut shares: BTreeMap<Life, u32> = stay.map(|life| (*life, 0)).collect();
        let mut owners = Vec::new();
        for partition in (0..partitions).filter(|partition| Some(*partition) != hanging) {
            let mut holders = self.holders.get(&partition)?.iter();
            let (owner, None) = (*holders.next()?, holders.next()) else { return None };
            if self.members[&owner].lease_deadline() <= now {
                return None;
            }
            *shares.get_mut(&owner)? += 1;
            owners.push(owner);
        }
        let (most, fewest) = (shares.values().max()?, shares.values().min()?);
        (most - fewest <= 1 + u32::from(hanging.is_some())).then_some(owners)
    }

    pub(super) fn mark(&mut self) {
        self.interrupted.clear();
    }

    pub(super) fn was_interrupted(&self, partition: u32) -> bool {
        self.interrupted.contains(&partition)
    }

    /// For the story of a failure.
    pub(super) fn shown(&self) -> String {
        format!("{:?}", self.holders)
    }
}
