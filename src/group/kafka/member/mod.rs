//! What a member of a group knows about itself: its identity, its partitions, and until when it may work on them. Pure:
//! the current time is an argument, and the caller wakes the tasks that wait for a change.
//!
//! - The identity is the member id and the generation that the coordinator gave. Each heartbeat and commit carries it,
//!   and the coordinator refuses those of a former generation.
//! - The partitions are in [`ownership`].
//! - The time limit is the [`lease`].
//!
//! A member joins again for one of three reasons. A heartbeat has told it to ([`RejoinReason`]). Other members wait for
//! partitions that it has released ([`RejoinUrgency`]). Or it may have inherited an assignment under an instance id.

mod lease;
mod ownership;

pub(super) use self::lease::Lease;
pub(super) use self::ownership::ReleaseOutcome;

use self::ownership::Ownership;
use super::assignment::OwnedPartitions;
use super::clocks::Clocks;
use crate::core::outcome::Failure;
use crate::group::Change;
use kafka_protocol::ResponseError;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct MemberState {
    instance_id: Option<String>,
    /// Empty until the coordinator has given one.
    member_id: String,
    /// The generation of the last join; -1: none.
    generation: i32,
    is_leader: bool,
    /// The member was assigned something at least once. So the brokers let it in, and the group is the right one.
    was_ever_assigned: bool,
    /// The last assignment may be the one of the process that had this instance id before.
    may_have_inherited: bool,
    /// A JoinGroup was sent, and its answer is awaited.
    awaits_join: bool,
    ownership: Ownership,
    lease: Lease,
    rejoin_reason: Option<RejoinReason>,
    /// Why the membership has ended.
    ended: Option<Failure>,
}

/// The member id and generation that a heartbeat was sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberGeneration {
    pub(super) member_id: String,
    pub(super) generation: i32,
}

/// What an OffsetCommit is made under. The coordinator refuses one that is not of the current generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitIdentity {
    pub(super) member_id: String,
    pub(super) generation: i32,
    pub(super) instance_id: Option<String>,
}

impl CommitIdentity {
    /// The identity of a program that is not a member. Brokers accept its commits while the group has no members.
    pub(super) fn non_member() -> Self {
        Self { member_id: String::new(), generation: -1, instance_id: None }
    }
}

/// Why the answer to a heartbeat, or a caller, makes the member join again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RejoinReason {
    Rebalance,
    /// The coordinator does not know this member, or only in another generation.
    Removed(ResponseError),
}

/// How soon the member has to announce what it has released. Each announcement is a rebalance of the whole group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RejoinUrgency {
    /// Dispatch is about to release more. What it releases within a short time is announced together.
    Soon,
    /// Dispatch has released everything that it was asked to.
    Now,
}

/// What the answer to a heartbeat requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeartbeatEffect {
    None,
    /// There is a [`RejoinReason`] now.
    Rejoin,
    /// Another broker is the coordinator now, or none is.
    FindCoordinator,
}

impl MemberState {
    pub(super) fn new(session_timeout: Duration, instance_id: Option<String>) -> Self {
        Self {
            instance_id,
            member_id: String::new(),
            generation: -1,
            is_leader: false,
            was_ever_assigned: false,
            may_have_inherited: false,
            awaits_join: false,
            ownership: Ownership::new(),
            lease: Lease::new(session_timeout),
            rejoin_reason: None,
            ended: None,
        }
    }

    pub(super) fn member_id(&self) -> &str {
        &self.member_id
    }

    pub(super) fn generation(&self) -> i32 {
        self.generation
    }

    pub(super) fn is_leader(&self) -> bool {
        self.is_leader
    }

    pub(super) fn was_ever_assigned(&self) -> bool {
        self.was_ever_assigned
    }

    pub(super) fn owns_any(&self) -> bool {
        self.ownership.owns_any()
    }

    /// How many partitions are owned, and how many of them are being revoked.
    pub(super) fn partition_counts(&self) -> (usize, usize) {
        self.ownership.counts()
    }

    pub(super) fn lease_deadline(&self, now: Clocks) -> Instant {
        self.lease.deadline(now)
    }

    pub(super) fn has_lease(&self) -> bool {
        self.lease.exists()
    }

    /// The identity of a heartbeat. `None` outside of a generation.
    pub(super) fn heartbeat_identity(&self) -> Option<MemberGeneration> {
        let (member_id, generation) = (self.member_id.clone(), self.generation);
        (generation >= 0).then_some(MemberGeneration { member_id, generation })
    }

    /// The identity of a commit of this partition. `None` if the partition is not owned, or the lease has ended: the
    /// coordinator checks the member and the generation, but not which partitions the member owns.
    pub(super) fn commit_identity(&self, partition: u32, now: Clocks) -> Option<CommitIdentity> {
        let may_commit = self.ownership.owns(partition) && self.lease_deadline(now) > now.timers;
        may_commit.then(|| CommitIdentity {
            member_id: self.member_id.clone(),
            generation: self.generation,
            instance_id: self.instance_id.clone(),
        })
    }

    /// What dispatch has yet to be told. The failure that ended the membership comes after the losses that it caused.
    pub(super) fn next_change(&mut self) -> Option<Result<Change, Failure>> {
        self.ownership.next_change().map(Ok).or_else(|| self.ended.clone().map(Err))
    }

    pub(super) fn push_changes(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.ownership.push_changes(changes);
    }

    // Joining.

    /// What a JoinGroup that is about to be sent says about this member's partitions.
    pub(super) fn announce(&mut self) -> OwnedPartitions {
        // If an inherited assignment was adopted, this join announces it, and nothing is left undone.
        self.may_have_inherited &= !self.ownership.has_adopted();
        self.awaits_join = true;
        self.ownership.announce()
    }

    /// Whether a JoinGroup is under way. It may still reach the coordinator, and say there what this member claimed when
    /// it was sent.
    pub(super) fn awaits_join(&self) -> bool {
        self.awaits_join
    }

    /// The call of a JoinGroup has ended, with an answer or without one. `may_arrive_late`: the coordinator may receive
    /// the request at any later time. `true` if that cost partitions.
    pub(super) fn join_call_ended(&mut self, may_arrive_late: bool) -> bool {
        self.awaits_join = false;
        // The late request would speak for this member, with old claims. A new member id prevents that. But if a member
        // with an instance id joined without its member id, it would replace a later process with that instance id.
        if !may_arrive_late || self.instance_id.is_some() {
            return false;
        }
        let loses = self.owns_any();
        self.lose_all();
        self.member_id.clear();
        loses
    }

    /// The coordinator's first answer to a new member gives it an id, with which it has to join again.
    pub(super) fn set_member_id(&mut self, member_id: String) {
        self.member_id = member_id;
    }

    /// A JoinGroup that was sent at `sent` was answered.
    pub(super) fn joined(&mut self, member_id: String, generation: i32, is_leader: bool, sent: Clocks) {
        self.lease.joined(sent, generation != self.generation);
        // A process that comes with an instance id and without a member id may take the place of an earlier process. Then
        // the coordinator starts no rebalance, and answers with the leader of the earlier generation. If it names this
        // member as the leader, there was a rebalance.
        let is_new_process = self.member_id.is_empty() && self.instance_id.is_some();
        self.may_have_inherited = (self.may_have_inherited || is_new_process) && !is_leader;
        (self.member_id, self.generation, self.is_leader) = (member_id, generation, is_leader);
        // This join answers whatever a heartbeat was told before it.
        self.rejoin_reason = None;
    }

    /// A SyncGroup that was sent at `sent` was answered.
    pub(super) fn synced(&mut self, sent: Clocks) {
        self.lease.synced(sent);
    }

    /// Takes over an assignment, and has dispatch release what is not in it.
    pub(super) fn adopt(&mut self, assigned: &[u32]) {
        self.was_ever_assigned = true;
        self.ownership.adopt(assigned, self.generation);
    }

    // Being a member.

    /// The coordinator answered a heartbeat that was sent at `sent` with this identity.
    pub(super) fn heartbeat_answered(
        &mut self,
        sent_as: &MemberGeneration,
        sent: Clocks,
        error: Option<ResponseError>,
    ) -> HeartbeatEffect {
        // A join since then has made this the heartbeat of a former generation. Its answer says nothing about this one.
        if self.heartbeat_identity().as_ref() != Some(sent_as) {
            return HeartbeatEffect::None;
        }
        match error {
            None => {
                self.lease.acknowledged(sent, false);
                HeartbeatEffect::None
            }
            Some(ResponseError::RebalanceInProgress) => {
                self.lease.acknowledged(sent, true);
                self.rejoin_reason = Some(RejoinReason::Rebalance);
                HeartbeatEffect::Rejoin
            }
            Some(
                error @ (ResponseError::UnknownMemberId
                | ResponseError::IllegalGeneration
                | ResponseError::FencedInstanceId),
            ) => {
                self.rejoin_reason = Some(RejoinReason::Removed(error));
                // Another member may already own the partitions, whatever a join that is under way will be answered. A
                // former generation is different: that very join may have started the new one.
                if error != ResponseError::IllegalGeneration {
                    self.lease.end();
                }
                HeartbeatEffect::Rejoin
            }
            Some(_) => HeartbeatEffect::FindCoordinator,
        }
    }

    /// Makes the member join again, as if a heartbeat had told it about a rebalance.
    pub(super) fn request_rejoin(&mut self) {
        self.rejoin_reason.get_or_insert(RejoinReason::Rebalance);
    }

    pub(super) fn take_rejoin_reason(&mut self) -> Option<RejoinReason> {
        self.rejoin_reason.take()
    }

    /// Whether the member has to join again so that other members learn something from it.
    ///
    /// They wait for partitions that it has released. Or it inherited its place from an earlier process with its
    /// instance id. What that process was about to release, or had to assign as the leader, is left undone until
    /// this one joins.
    pub(super) fn rejoin_urgency(&self) -> Option<RejoinUrgency> {
        let releases_follow = self.ownership.releases_follow();
        // If more releases follow, the join that announces them also settles the inheritance.
        match (self.ownership.has_unannounced_release() || self.may_have_inherited && !releases_follow, releases_follow)
        {
            (false, _) => None,
            (true, false) => Some(RejoinUrgency::Now),
            (true, true) => Some(RejoinUrgency::Soon),
        }
    }

    pub(super) fn drain(&mut self) {
        self.ownership.drain();
    }

    pub(super) fn released(&mut self, partition: u32) -> ReleaseOutcome {
        self.ownership.released(partition)
    }

    // Ceasing to be a member.

    /// The coordinator does not know this member, or only in another generation. `true` if that cost partitions.
    pub(super) fn removed(&mut self, error: ResponseError) -> bool {
        // After an unknown id the member has to ask for a new one. After a former generation its id is still valid.
        if error == ResponseError::UnknownMemberId {
            self.member_id.clear();
        }
        let loses = self.owns_any();
        if loses {
            self.lose_all();
        }
        self.generation = -1;
        loses
    }

    /// Takes every partition from dispatch at once, and claims none of them in the next join.
    pub(super) fn lose_all(&mut self) {
        self.ownership.lose_all();
        self.generation = -1;
        self.lease.reset();
        self.rejoin_reason = None;
    }

    /// The membership ends with this failure, and every partition is lost.
    pub(super) fn end(&mut self, failure: Failure) {
        self.lose_all();
        self.ended = Some(failure);
    }

    /// The member leaves. Dispatch has stopped, so it is told nothing.
    pub(super) fn leave(&mut self) {
        self.ownership.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::FailureCode;

    const SESSION: Duration = Duration::from_secs(2);

    /// A member of generation 1 that owns 0 and 1 and had a heartbeat acknowledged at `now`.
    fn member(now: Clocks) -> MemberState {
        let mut member = MemberState::new(SESSION, None);
        assert_eq!(member.announce(), OwnedPartitions::none());
        member.joined("m".into(), 1, false, now);
        member.synced(now);
        assert!(!member.has_lease());
        let identity = member.heartbeat_identity().unwrap();
        member.heartbeat_answered(&identity, now, None);
        member.adopt(&[0, 1]);
        assert_eq!(changes(&mut member), [Change::Assigned(0), Change::Assigned(1)]);
        member
    }

    fn changes(member: &mut MemberState) -> Vec<Change> {
        std::iter::from_fn(|| member.next_change()).map(Result::unwrap).collect()
    }

    fn owned(owned: &[u32], generation: i32) -> OwnedPartitions {
        OwnedPartitions { owned: owned.to_vec(), revoking: Vec::new(), generation, draining: false }
    }

    #[test]
    fn a_revoked_partition_may_be_committed_until_it_is_released() {
        let now = Clocks::now();
        let mut member = member(now);
        member.joined("m".into(), 2, false, now);
        member.adopt(&[0]);
        assert!(member.commit_identity(1, now).is_some() && member.rejoin_urgency().is_none());
        assert_eq!(member.released(1), ReleaseOutcome::Free);
        assert!(member.commit_identity(1, now).is_none());
        assert!(member.commit_identity(0, now).is_some());
    }

    #[test]
    fn a_release_is_announced_soon_while_more_follow_and_at_once_after_the_last() {
        let now = Clocks::now();
        let mut member = member(now);
        member.joined("m".into(), 2, false, now);
        member.adopt(&[]);
        assert_eq!(changes(&mut member), [Change::Revoked(0), Change::Revoked(1)]);
        assert_eq!((member.released(0), member.rejoin_urgency()), (ReleaseOutcome::Free, Some(RejoinUrgency::Soon)));
        member.announce();
        assert_eq!(member.rejoin_urgency(), None);
        assert_eq!((member.released(1), member.rejoin_urgency()), (ReleaseOutcome::Free, Some(RejoinUrgency::Now)));
    }

    #[test]
    fn nothing_may_be_committed_after_the_lease() {
        let now = Clocks::now();
        let member = member(now);
        assert!(member.commit_identity(0, now.later(SESSION - Duration::from_millis(1))).is_some());
        assert_eq!(member.commit_identity(0, now.later(SESSION)), None);
    }

    #[test]
    fn an_unknown_member_has_no_lease_at_once_and_loses_everything_and_announces_nothing() {
        let now = Clocks::now();
        let mut member = member(now);
        let identity = member.heartbeat_identity().unwrap();
        let error = ResponseError::UnknownMemberId;
        assert_eq!(member.heartbeat_answered(&identity, now, Some(error)), HeartbeatEffect::Rejoin);
        assert_eq!((member.lease_deadline(now), member.commit_identity(0, now)), (now.timers, None));
        assert_eq!(member.take_rejoin_reason(), Some(RejoinReason::Removed(error)));
        assert!(member.removed(error));
        assert_eq!(changes(&mut member), [Change::Lost(0), Change::Lost(1)]);
        assert_eq!(member.announce(), OwnedPartitions::none());
        assert_eq!((member.member_id(), member.heartbeat_identity()), ("", None));
    }

    #[test]
    fn an_answer_to_a_heartbeat_of_a_former_generation_is_ignored() {
        let now = Clocks::now();
        let mut member = member(now);
        let identity = member.heartbeat_identity().unwrap();
        member.joined("m".into(), 2, false, now);
        let error = Some(ResponseError::UnknownMemberId);
        assert_eq!(member.heartbeat_answered(&identity, now, error), HeartbeatEffect::None);
        assert_eq!((member.take_rejoin_reason(), member.lease_deadline(now)), (None, now.timers + SESSION));
    }

    #[test]
    fn a_join_that_may_arrive_late_costs_a_member_without_an_instance_id_its_id_and_its_partitions() {
        let now = Clocks::now();
        let mut member = member(now);
        member.announce();
        assert!(member.awaits_join());
        assert!(!member.join_call_ended(false) && !member.awaits_join());
        assert_eq!((changes(&mut member), member.member_id()), (vec![], "m"), "it cannot arrive late");
        member.announce();
        assert!(member.join_call_ended(true) && !member.awaits_join());
        assert_eq!(changes(&mut member), [Change::Lost(0), Change::Lost(1)]);
        assert_eq!((member.member_id(), member.heartbeat_identity()), ("", None));
        assert_eq!((member.lease_deadline(now), member.announce()), (now.timers, OwnedPartitions::none()));
    }

    #[test]
    fn a_member_with_an_instance_id_keeps_its_member_id_so_that_a_later_process_can_fence_it() {
        let now = Clocks::now();
        let mut member = MemberState::new(SESSION, Some("one".into()));
        member.announce();
        member.joined("m".into(), 1, true, now);
        member.adopt(&[0]);
        member.announce();
        assert!(!member.join_call_ended(true));
        assert_eq!((member.member_id(), member.owns_any()), ("m", true));
    }

    #[test]
    fn a_process_that_may_have_inherited_its_assignment_joins_once_more() {
        let now = Clocks::now();
        let mut restarted = MemberState::new(SESSION, Some("one".into()));
        restarted.announce();
        restarted.joined("m".into(), 3, false, now);
        restarted.adopt(&[0]);
        assert_eq!(restarted.rejoin_urgency(), Some(RejoinUrgency::Now));
        assert_eq!(restarted.announce(), owned(&[0], 3));
        restarted.joined("m".into(), 4, false, now);
        restarted.adopt(&[0]);
        assert!(restarted.rejoin_urgency().is_none());
        for (instance_id, is_leader) in [(None, false), (Some("one".into()), true)] {
            let mut new = MemberState::new(SESSION, instance_id);
            new.joined("m".into(), 3, is_leader, now);
            assert!(
                new.rejoin_urgency().is_none(),
                "without an instance id, or as the leader, there is no predecessor"
            );
        }
    }

    #[test]
    fn an_ended_membership_reports_its_losses_and_then_its_failure() {
        let mut member = member(Clocks::now());
        member.end(Failure::refused(FailureCode::GroupRefused, "why"));
        let changes: Vec<_> = (0..3).filter_map(|_| member.next_change()).collect();
        assert_eq!(changes[..2], [Ok(Change::Lost(0)), Ok(Change::Lost(1))]);
        assert!(matches!(&changes[2], Err(failure) if failure.code == FailureCode::GroupRefused));
    }
}
