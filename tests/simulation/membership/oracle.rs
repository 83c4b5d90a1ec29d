//! Checks the promises of groups, based on what the members' users were told and what the coordinator accepted. It only
//! takes the lease from the code under test, because the lease itself is the promise.

use crate::group::kafka::membership::Membership;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::time::Instant;

/// One life of a process. A restart is another life.
pub(super) type Life = u64;

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) assigned: u64,
    /// Partitions that were revoked and released.
    pub(super) releases: u64,
    /// Those that draining members released.
    pub(super) drained: u64,
    pub(super) lost: u64,
    pub(super) commits: u64,
    pub(super) commits_refused: u64,
    /// The number of memberships that ended with an error.
    pub(super) ended: u64,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    members: BTreeMap<Life, Arc<Membership>>,
    /// The lives that may work on each partition, as far as their users know. There is more than one only if all but
    /// one are past their lease.
    holders: BTreeMap<u32, BTreeSet<Life>>,
    times_assigned: BTreeMap<(Life, u32), u64>,
    /// The number of the last JoinGroup that arrived from each life, and its member id.
    joined: BTreeMap<Life, (u64, String)>,
    /// The lives that were told to drain.
    draining: BTreeSet<Life>,
    /// Partitions that were revoked or lost since the last [`mark`](Self::mark).
    interrupted: BTreeSet<u32>,
    /// Whether no member may lose a partition now, because there are no faults.
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

    /// The process has ended, or has stopped all its work.
    pub(super) fn gone(&mut self, life: Life) {
        self.members.remove(&life);
        self.holders.values_mut().for_each(|holders| _ = holders.remove(&life));
    }

    /// The coordinator receives a JoinGroup, and from now on believes what it claims. So it must not be older than the
    /// one before.
    pub(super) fn joins(&mut self, life: Life, id: &str, number: u64) {
        match self.joined.get(&life) {
            Some((last, last_id)) if number < *last && id == last_id => {
                self.fail(format!("a JoinGroup of {life} arrives after a later one with the same member id"));
            }
            _ => _ = self.joined.insert(life, (number, id.to_owned())),
        }
    }

    pub(super) fn holds(&self, life: Life, partition: u32) -> bool {
        self.holders.get(&partition).is_some_and(|holders| holders.contains(&life))
    }

    pub(super) fn assigned(&mut self, life: Life, partition: u32, now: Instant) {
        if !self.members.contains_key(&life) {
            return;
        }
        self.counts.assigned += 1;
        *self.times_assigned.entry((life, partition)).or_default() += 1;
        if !self.holders.entry(partition).or_default().insert(life) {
            self.fail(format!("{partition} is assigned to {life}, which already owns it"));
        }
        if self.draining.contains(&life) {
            self.fail(format!("{partition} is assigned to {life}, which drains"));
        }
        self.check(now);
    }

    pub(super) fn times_assigned(&self, life: Life, partition: u32) -> u64 {
        self.times_assigned.get(&(life, partition)).copied().unwrap_or_default()
    }

    pub(super) fn is_alive(&self, life: Life) -> bool {
        self.members.contains_key(&life)
    }

    /// The life drains. Returns the first partition that it owns.
    pub(super) fn drains(&mut self, life: Life) -> Option<u32> {
        self.draining.insert(life);
        (self.holders.iter()).find(|(_, holders)| holders.contains(&life)).map(|(partition, _)| *partition)
    }

    pub(super) fn holds_any(&self, life: Life) -> bool {
        self.holders.values().any(|holders| holders.contains(&life))
    }

    pub(super) fn revoked(&mut self, life: Life, partition: u32) {
        self.interrupted.insert(partition);
        if !self.holds(life, partition) {
            self.fail(format!("{partition} is revoked from {life}, which does not own it"));
        }
    }

    pub(super) fn released(&mut self, life: Life, partition: u32) {
        self.counts.releases += 1;
        self.counts.drained += u64::from(self.draining.contains(&life));
        self.holders.entry(partition).or_default().remove(&life);
    }

    pub(super) fn lost(&mut self, life: Life, partition: u32) {
        self.counts.lost += 1;
        self.interrupted.insert(partition);
        self.holders.entry(partition).or_default().remove(&life);
        if self.nothing_is_lost {
            self.fail(format!("{life} loses {partition}, although there were no faults"));
        }
    }

    pub(super) fn has_ended(&mut self, life: Life, why: String) {
        self.counts.ended += 1;
        self.ended.push((life, why));
    }

    /// No two lives may work on one partition at any time.
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

    /// The membership says that it may commit.
    pub(super) fn may_commit(&mut self, life: Life, partition: u32) {
        if !self.holds(life, partition) {
            self.fail(format!("{life} may commit {partition}, which it does not own"));
        }
    }

    /// The coordinator accepted a commit.
    pub(super) fn committed(&mut self, life: Life, partition: u32, now: Instant) {
        self.counts.commits += 1;
        let others = self.holders.get(&partition).into_iter().flatten().filter(|other| **other != life);
        if let Some(other) = others.copied().find(|other| self.members[other].lease_deadline() > now) {
            self.fail(format!("a commit of {partition} by {life} is accepted while {other} owns it"));
        }
    }

    pub(super) fn refused(&mut self) {
        self.counts.commits_refused += 1;
    }

    /// The owner of each partition, if every partition has exactly one within its lease that does not drain, and shares
    /// differ by at most one.
    pub(super) fn balanced(&self, partitions: u32, now: Instant) -> Option<Vec<Life>> {
        self.balanced_but(None, partitions, now)
    }

    /// Like [`balanced`](Self::balanced), but one partition may have any owner. It later goes to the member with the
    /// fewest.
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

    /// The state as text for the report of a failure.
    pub(super) fn shown(&self) -> String {
        format!("{:?}", self.holders)
    }
}
