//! The partitions of a member: which it owns, which of them are being revoked, and what dispatch is told. Pure.
//!
//! ```text
//!  adopt([0, 1]) ── Assigned(1) ──▶ owned ── adopt([0]) ── Revoked(1) ──▶ revoking ── released(1) ──▶ free
//!                                     ▲                                      │ adopt([0, 1]) in between:
//!                                     └────────── Assigned(1) ◀── released(1)┘ reassigned
//!
//!  drain():    Revoked for every partition; what is assigned from now on is not adopted
//!  lose_all(): Lost for every partition; the next join claims nothing
//! ```
//!
//! A partition that is revoked stays owned until dispatch has released it. So the next JoinGroup still claims it, and
//! the leader assigns it to no other member while events of it are in flight here (cooperative rebalancing).

use crate::group::Change;
use crate::group::kafka::assignment::OwnedPartitions;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
pub(super) struct Ownership {
    /// Partitions that dispatch was assigned and has not released.
    owned: BTreeSet<u32>,
    /// The owned partitions that dispatch was asked to release.
    revoking: BTreeMap<u32, AfterRelease>,
    /// The generation whose assignment was adopted last; -1: none.
    generation: i32,
    /// A partition was released or lost since the last JoinGroup, which claimed it. No other member is assigned it before
    /// this member joins again.
    has_unannounced_release: bool,
    /// The process stops, so it adopts nothing any more.
    is_draining: bool,
    /// The last JoinGroup told the leader that this member drains.
    is_draining_announced: bool,
    /// What dispatch has yet to be told, oldest first.
    changes: VecDeque<Change>,
}

/// What becomes of a revoked partition when dispatch has released it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterRelease {
    /// Another member may be assigned it.
    Free,
    /// A later generation assigned it to this member again. Dispatch has to release it all the same, and is then
    /// assigned it anew.
    Reassigned,
}

/// What the release of a partition led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::group::kafka) enum ReleaseOutcome {
    /// The partition was assigned to this member again meanwhile: dispatch has to be told.
    Reassigned,
    /// Other members wait for the partition: this member has to join again.
    Free,
    /// The partition was lost meanwhile, so there was nothing to release.
    NotOwned,
}

impl Ownership {
    pub(super) fn new() -> Self {
        Self {
            owned: BTreeSet::new(),
            revoking: BTreeMap::new(),
            generation: -1,
            has_unannounced_release: false,
            is_draining: false,
            is_draining_announced: false,
            changes: VecDeque::new(),
        }
    }

    pub(super) fn owns(&self, partition: u32) -> bool {
        self.owned.contains(&partition)
    }

    pub(super) fn owns_any(&self) -> bool {
        !self.owned.is_empty()
    }

    /// How many partitions are owned, and how many of them are being revoked.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.owned.len(), self.revoking.len())
    }

    /// Whether an assignment was adopted since the member last lost everything.
    pub(super) fn has_adopted(&self) -> bool {
        self.generation >= 0
    }

    pub(super) fn has_unannounced_release(&self) -> bool {
        self.has_unannounced_release
    }

    /// Whether dispatch is about to release more partitions.
    pub(super) fn releases_follow(&self) -> bool {
        !self.revoking.is_empty() || self.is_draining
    }

    pub(super) fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    pub(super) fn push_changes(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.changes.extend(changes);
    }

    /// What a JoinGroup that is about to be sent says about this member's partitions.
    pub(super) fn announce(&mut self) -> OwnedPartitions {
        self.has_unannounced_release = false;
        self.is_draining_announced = self.is_draining;
        let (revoking, owned) = self.owned.iter().partition(|partition| self.revoking.contains_key(partition));
        OwnedPartitions { owned, revoking, generation: self.generation, draining: self.is_draining }
    }

    /// Takes over an assignment, and has dispatch release what is not in it.
    pub(super) fn adopt(&mut self, assigned: &[u32], generation: i32) {
        self.generation = generation;
        if self.is_draining {
            // The leader may have assigned these partitions before it knew that this member drains. If so, one more join
            // tells it, and it assigns them to other members.
            let has_new = assigned.iter().any(|partition| !self.owned.contains(partition));
            self.has_unannounced_release |= !self.is_draining_announced && has_new;
            return;
        }
        for partition in &self.owned {
            match (assigned.contains(partition), self.revoking.get_mut(partition)) {
                (true, Some(after)) => *after = AfterRelease::Reassigned,
                (false, Some(after)) => *after = AfterRelease::Free,
                (true, None) => {}
                (false, None) => {
                    self.revoking.insert(*partition, AfterRelease::Free);
                    self.changes.push_back(Change::Revoked(*partition));
                }
            }
        }
        for partition in assigned {
            if self.owned.insert(*partition) {
                self.changes.push_back(Change::Assigned(*partition));
            }
        }
    }

    /// Starts to drain. A partition that dispatch has not heard of yet is free at once; dispatch has to release the rest.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
        let mut unknown_to_dispatch = BTreeSet::new();
        self.changes.retain(|change| match change {
            Change::Assigned(partition) => {
                unknown_to_dispatch.insert(*partition);
                false
            }
            Change::Revoked(partition) | Change::Lost(partition) => !unknown_to_dispatch.contains(partition),
        });
        for partition in unknown_to_dispatch {
            self.revoking.remove(&partition);
            self.has_unannounced_release |= self.owned.remove(&partition);
        }
        for partition in &self.owned {
            if self.revoking.insert(*partition, AfterRelease::Free).is_none() {
                self.changes.push_back(Change::Revoked(*partition));
            }
        }
    }

    /// Dispatch has released the partition.
    pub(super) fn released(&mut self, partition: u32) -> ReleaseOutcome {
        match self.revoking.remove(&partition) {
            Some(AfterRelease::Reassigned) => {
                self.changes.push_back(Change::Assigned(partition));
                ReleaseOutcome::Reassigned
            }
            Some(AfterRelease::Free) => {
                self.owned.remove(&partition);
                self.has_unannounced_release = true;
                ReleaseOutcome::Free
            }
            None => ReleaseOutcome::NotOwned,
        }
    }

    /// Takes every partition from dispatch at once. The next join claims nothing, since other members may own them.
    pub(super) fn lose_all(&mut self) {
        let owned = std::mem::take(&mut self.owned);
        self.revoking.clear();
        // If a JoinGroup is under way, it still claims them.
        self.has_unannounced_release |= !owned.is_empty();
        self.changes.extend(owned.into_iter().map(Change::Lost));
        self.generation = -1;
    }

    /// Gives up every partition without telling dispatch, which has stopped.
    pub(super) fn clear(&mut self) {
        self.owned.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The partitions of a member that adopted 0 and 1 in generation 1, and whose dispatch knows.
    fn ownership() -> Ownership {
        let mut ownership = Ownership::new();
        assert_eq!(ownership.announce(), OwnedPartitions::none());
        ownership.adopt(&[0, 1], 1);
        assert_eq!(changes(&mut ownership), [Change::Assigned(0), Change::Assigned(1)]);
        ownership
    }

    fn changes(ownership: &mut Ownership) -> Vec<Change> {
        std::iter::from_fn(|| ownership.next_change()).collect()
    }

    fn announced(owned: &[u32], revoking: &[u32], generation: i32) -> OwnedPartitions {
        OwnedPartitions { owned: owned.to_vec(), revoking: revoking.to_vec(), generation, draining: false }
    }

    #[test]
    fn a_revoked_partition_is_owned_and_announced_until_dispatch_releases_it() {
        let mut ownership = ownership();
        ownership.adopt(&[0], 2);
        assert_eq!(changes(&mut ownership), [Change::Revoked(1)]);
        assert!(ownership.owns(1) && !ownership.has_unannounced_release());
        assert_eq!(ownership.announce(), announced(&[0], &[1], 2));
        assert_eq!(ownership.released(1), ReleaseOutcome::Free);
        assert!(!ownership.owns(1) && ownership.has_unannounced_release());
        assert_eq!(ownership.announce(), announced(&[0], &[], 2));
        assert!(!ownership.has_unannounced_release(), "the join announces the release");
        assert_eq!(ownership.released(0), ReleaseOutcome::NotOwned, "dispatch was not asked to release 0");
        assert!(ownership.owns(0));
    }

    #[test]
    fn a_partition_that_is_reassigned_while_it_is_revoked_is_assigned_again_after_its_release() {
        let mut ownership = ownership();
        ownership.adopt(&[0], 2);
        ownership.adopt(&[0, 1], 3);
        assert_eq!(changes(&mut ownership), [Change::Revoked(1)]);
        assert_eq!(ownership.released(1), ReleaseOutcome::Reassigned);
        assert_eq!(changes(&mut ownership), [Change::Assigned(1)]);
        assert!(!ownership.has_unannounced_release());
    }

    #[test]
    fn what_is_lost_while_a_join_claims_it_is_announced_as_free_by_the_next_join() {
        let mut ownership = ownership();
        assert_eq!(ownership.announce(), announced(&[0, 1], &[], 1));
        ownership.lose_all();
        ownership.adopt(&[0], 2);
        assert_eq!(changes(&mut ownership), [Change::Lost(0), Change::Lost(1), Change::Assigned(0)]);
        assert!(ownership.has_unannounced_release(), "1 is assigned to no member, because the join claimed it");
        assert_eq!(ownership.announce(), announced(&[0], &[], 2));
        assert!(!ownership.has_unannounced_release());
    }

    #[test]
    fn a_draining_member_releases_each_partition_and_adopts_none() {
        let mut ownership = ownership();
        ownership.adopt(&[0, 1, 2], 2);
        ownership.drain();
        assert_eq!(changes(&mut ownership), [Change::Revoked(0), Change::Revoked(1)], "dispatch never had 2");
        assert!(!ownership.owns(2) && ownership.has_unannounced_release(), "2 is free for other members");
        assert_eq!(ownership.announce(), OwnedPartitions { draining: true, ..announced(&[], &[0, 1], 2) });
        assert_eq!(ownership.released(1), ReleaseOutcome::Free);
        ownership.announce();
        ownership.adopt(&[0, 1, 2], 3);
        assert_eq!(changes(&mut ownership), [], "a leader that does not know about draining assigns them again");
        assert!(!ownership.has_unannounced_release(), "one more join would not help");
        assert!(ownership.owns(0), "its last commit is still accepted");
        assert_eq!((ownership.released(0), changes(&mut ownership)), (ReleaseOutcome::Free, vec![]));
    }

    #[test]
    fn an_assignment_to_a_member_that_started_to_drain_meanwhile_is_announced_as_free() {
        let mut ownership = ownership();
        ownership.announce();
        ownership.drain();
        ownership.adopt(&[0, 1, 2], 2);
        assert_eq!(changes(&mut ownership), [Change::Revoked(0), Change::Revoked(1)]);
        assert!(ownership.has_unannounced_release() && ownership.releases_follow());
    }
}
