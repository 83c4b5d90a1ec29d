//! What a member of a group knows of itself: who it is, what it has, and until when it may act upon that. Pure: moments
//! are arguments, and whoever has to be told is told by the caller.
//!
//! ```text
//!   joins, with the claims ─▶ joined: an id, a generation ─▶ adopt ── Assigned ─────────────────────────▶ owned
//!                                                              └───── Revoked ─▶ leaving ── released ──▶ let go: joins
//!   lose_all: Lost, nothing claimed ◀── forgotten ◀── told by a heartbeat
//!   drain: everything is Revoked, and what is assigned from now on is not adopted
//! ```

use super::clocks::Clocks;
use super::lease::Lease;
use super::membership::Identity;
use super::subscription::Claims;
use crate::core::outcome::Failure;
use crate::group::Change;
use kafka_protocol::ResponseError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Member {
    instance_id: Option<String>,
    /// Empty: the broker has yet to give one.
    id: String,
    /// Of the last join; -1: none.
    generation: i32,
    /// Of the last assignment that was adopted.
    claims_generation: i32,
    is_leader: bool,
    /// Given to dispatch, and not let go.
    owned: BTreeSet<u32>,
    /// Those of them that dispatch is asked to let go; `true`: it was given back meanwhile.
    leaving: BTreeMap<u32, bool>,
    /// Something was let go since our claims were last told: nobody gets it before we join again.
    let_go: bool,
    /// It was assigned something once: brokers let us in, and the group is ours to join.
    has_worked: bool,
    /// The process stops: it adopts nothing any more.
    draining: bool,
    /// The claims of the last join said so.
    told_draining: bool,
    /// The last assignment may be that of the process that was here before, under the same instance id.
    inherits: bool,
    changes: VecDeque<Change>,
    lease: Lease,
    told: Option<Told>,
    ended: Option<Failure>,
}

/// What a heartbeat was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Rejoin,
    Forgotten(ResponseError),
}

/// As which member a request was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SentAs {
    pub(super) id: String,
    pub(super) generation: i32,
}

/// What letting go of a partition came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Released {
    /// It was given back meanwhile: there is a change.
    GivenBack,
    /// Others wait for it.
    LetGo,
    /// It was lost meanwhile.
    Lost,
}

/// What the others do not know yet of the partitions that were let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// More is about to follow, and each join is a rebalance: what comes soon is told with it.
    Partial,
    /// Everything that was asked for.
    Complete,
}

/// What an answer to a heartbeat calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Nothing,
    /// What was told waits for whoever joins.
    Attention,
    /// Another broker has to be asked.
    Elsewhere,
}

impl Member {
    pub(super) fn new(session_timeout: Duration, instance_id: Option<String>) -> Self {
        Self {
            instance_id,
            id: String::new(),
            generation: -1,
            claims_generation: -1,
            is_leader: false,
            owned: BTreeSet::new(),
            leaving: BTreeMap::new(),
            let_go: false,
            has_worked: false,
            draining: false,
            told_draining: false,
            inherits: false,
            changes: VecDeque::new(),
            lease: Lease::new(session_timeout),
            told: None,
            ended: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Whether brokers have ever let us in and given us an assignment.
    pub(super) fn has_worked(&self) -> bool {
        self.has_worked
    }

    pub(super) fn owns_any(&self) -> bool {
        !self.owned.is_empty()
    }

    /// As whom a heartbeat is sent; `None`: there is nobody to be yet.
    pub(super) fn sends_as(&self) -> Option<SentAs> {
        (self.generation >= 0).then(|| SentAs { id: self.id.clone(), generation: self.generation })
    }

    /// Under what a commit of this partition is made now; `None`: it is not ours.
    pub(super) fn identity_for(&self, partition: u32, now: Clocks) -> Option<Identity> {
        (self.owned.contains(&partition) && self.lease_deadline(now) > now.timers).then(|| Identity {
            member_id: self.id.clone(),
            generation: self.generation,
            instance_id: self.instance_id.clone(),
        })
    }

    pub(super) fn lease_deadline(&self, now: Clocks) -> Instant {
        self.lease.at(now)
    }

    pub(super) fn next_change(&mut self) -> Option<Result<Change, Failure>> {
        self.changes.pop_front().map(Ok).or_else(|| self.ended.clone().map(Err))
    }

    pub(super) fn tell_again(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.changes.extend(changes);
    }

    pub(super) fn end(&mut self, failure: Failure) {
        self.lose_all();
        self.ended = Some(failure);
    }

    /// It leaves: nothing is ours any more, and nobody is told.
    pub(super) fn leave(&mut self) {
        self.owned.clear();
    }

    // -- joining

    /// The partitions that we have, for a join that is about to be sent.
    pub(super) fn claims(&mut self) -> Claims {
        self.let_go = false;
        // What was adopted since is in them.
        self.inherits &= self.claims_generation < 0;
        let (leaving, staying) = self.owned.iter().partition(|partition| self.leaving.contains_key(partition));
        self.told_draining = self.draining;
        Claims { staying, leaving, generation: self.claims_generation, draining: self.draining }
    }

    /// The first answer to a new member is its id.
    pub(super) fn is_called(&mut self, id: String) {
        self.id = id;
    }

    pub(super) fn joined(&mut self, id: String, generation: i32, is_leader: bool, sent: Clocks) {
        self.lease.joined(sent, generation != self.generation);
        // Without a rebalance a broker names as the leader whoever led before, and never who has just come.
        let may_inherit = self.inherits || (self.id.is_empty() && self.instance_id.is_some());
        self.inherits = may_inherit && !is_leader;
        (self.id, self.generation, self.is_leader) = (id, generation, is_leader);
        // What a heartbeat was told before is answered by this.
        self.told = None;
    }

    /// The broker took a SyncGroup.
    pub(super) fn synced(&mut self, sent: Clocks) {
        self.lease.synced(sent);
    }

    /// Whether there is a lease at all.
    pub(super) fn has_fence(&self) -> bool {
        self.lease.is_there()
    }

    /// Takes over what was assigned; asks dispatch to let go of what was not.
    pub(super) fn adopt(&mut self, assigned: &[u32]) {
        self.claims_generation = self.generation;
        self.has_worked = true;
        if self.draining {
            // The leader did not know yet: once it does, others get what we do not adopt.
            self.let_go |= !self.told_draining && assigned.iter().any(|partition| !self.owned.contains(partition));
            return;
        }
        for partition in &self.owned {
            match (assigned.contains(partition), self.leaving.get_mut(partition)) {
                (true, Some(back)) => *back = true,
                (false, Some(back)) => *back = false,
                (true, None) => {}
                (false, None) => {
                    self.leaving.insert(*partition, false);
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

    // -- being a member

    /// The answer to a heartbeat that was sent as `who`.
    pub(super) fn heard(&mut self, who: &SentAs, sent: Clocks, answer: Option<ResponseError>) -> Heard {
        // A join in between made it a heartbeat of somebody else.
        if (&self.id, self.generation) != (&who.id, who.generation) {
            return Heard::Nothing;
        }
        match answer {
            None => {
                self.lease.acknowledged(sent, false);
                Heard::Nothing
            }
            Some(ResponseError::RebalanceInProgress) => {
                self.lease.acknowledged(sent, true);
                self.told = Some(Told::Rejoin);
                Heard::Attention
            }
            Some(
                error @ (ResponseError::UnknownMemberId
                | ResponseError::IllegalGeneration
                | ResponseError::FencedInstanceId),
            ) => {
                self.told = Some(Told::Forgotten(error));
                // Others may be at work already, whatever a join that is under way will be told. (An old generation
                // may be the doing of that join.)
                if error != ResponseError::IllegalGeneration {
                    self.lease.falls();
                }
                Heard::Attention
            }
            Some(_) => Heard::Elsewhere,
        }
    }

    /// As if a heartbeat had told of a rebalance.
    pub(super) fn join_again(&mut self) {
        self.told.get_or_insert(Told::Rejoin);
    }

    pub(super) fn take_told(&mut self) -> Option<Told> {
        self.told.take()
    }

    /// What the others have to be told by joining again: they wait for what we were asked to let go. Or another process
    /// was here before us under the same instance id, and what that one was about to let go, or had to see to as their
    /// leader, is left undone until we join.
    pub(super) fn news(&self) -> Option<News> {
        let more_follows = !self.leaving.is_empty() || self.draining;
        match (self.let_go || self.inherits && !more_follows, more_follows) {
            (false, _) => None,
            (true, false) => Some(News::Complete),
            (true, true) => Some(News::Partial),
        }
    }

    /// The process stops. What dispatch was not told of yet is let go at once; dispatch is asked for the rest.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        let mut untold = BTreeSet::new();
        self.changes.retain(|change| match change {
            Change::Assigned(partition) => {
                untold.insert(*partition);
                false
            }
            Change::Revoked(partition) | Change::Lost(partition) => !untold.contains(partition),
        });
        for partition in untold {
            self.leaving.remove(&partition);
            self.let_go |= self.owned.remove(&partition);
        }
        for partition in &self.owned {
            if self.leaving.insert(*partition, false).is_none() {
                self.changes.push_back(Change::Revoked(*partition));
            }
        }
    }

    pub(super) fn released(&mut self, partition: u32) -> Released {
        match self.leaving.remove(&partition) {
            Some(true) => {
                self.changes.push_back(Change::Assigned(partition));
                Released::GivenBack
            }
            Some(false) => {
                self.owned.remove(&partition);
                self.let_go = true;
                Released::LetGo
            }
            None => Released::Lost,
        }
    }

    // -- losing it

    /// The broker does not know us, or only as somebody older. `true`: something was lost by it.
    pub(super) fn forgotten(&mut self, error: ResponseError) -> bool {
        if error == ResponseError::UnknownMemberId {
            self.id.clear();
        }
        let loses = self.owns_any();
        if loses {
            self.lose_all();
        }
        self.generation = -1;
        loses
    }

    /// Nothing of it is ours any more, and nothing is claimed when we join again.
    pub(super) fn lose_all(&mut self) {
        let owned = std::mem::take(&mut self.owned);
        self.leaving.clear();
        self.changes.extend(owned.into_iter().map(Change::Lost));
        (self.generation, self.claims_generation) = (-1, -1);
        (self.lease, self.told) = (Lease::new(self.lease.session_timeout()), None);
    }

    /// How many are owned, and how many of them are being let go.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.owned.len(), self.leaving.len())
    }

    pub(super) fn generation(&self) -> i32 {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(2);

    fn claims(staying: &[u32], leaving: &[u32], generation: i32) -> Claims {
        Claims { staying: staying.to_vec(), leaving: leaving.to_vec(), generation, draining: false }
    }

    /// A member of generation 1 that has 0 and 1, acknowledged at `now`.
    fn member(now: Clocks) -> Member {
        let mut member = Member::new(SESSION, None);
        assert_eq!(member.claims(), Claims::none());
        member.joined("m".into(), 1, false, now);
        member.synced(now);
        assert!(!member.has_fence());
        let who = member.sends_as().unwrap();
        member.heard(&who, now, None);
        member.adopt(&[0, 1]);
        assert_eq!(told(&mut member), [Change::Assigned(0), Change::Assigned(1)]);
        member
    }

    fn told(member: &mut Member) -> Vec<Change> {
        std::iter::from_fn(|| member.next_change()).map(Result::unwrap).collect()
    }

    #[test]
    fn what_is_taken_is_claimed_and_committed_until_it_is_let_go() {
        let now = Clocks::now();
        let mut member = member(now);
        member.joined("m".into(), 2, false, now);
        member.adopt(&[0]);
        assert_eq!(told(&mut member), [Change::Revoked(1)]);
        assert!(member.identity_for(1, now).is_some() && member.news().is_none());
        assert_eq!(member.claims(), claims(&[0], &[1], 2));
        assert_eq!(member.released(1), Released::LetGo);
        assert!(member.identity_for(1, now).is_none() && member.news() == Some(News::Complete));
        assert_eq!(member.claims(), claims(&[0], &[], 2));
        assert!(member.news().is_none(), "the claims that were asked for tell of it");
        assert_eq!(member.released(0), Released::Lost, "what was never taken is not let go");
        assert!(member.identity_for(0, now).is_some());
    }

    #[test]
    fn what_is_given_back_while_it_is_let_go_is_given_anew_once_it_was() {
        let now = Clocks::now();
        let mut member = member(now);
        for (generation, assigned) in [(2, &[0][..]), (3, &[0, 1])] {
            member.joined("m".into(), generation, false, now);
            member.adopt(assigned);
        }
        assert_eq!(told(&mut member), [Change::Revoked(1)]);
        assert_eq!(member.released(1), Released::GivenBack);
        assert_eq!(told(&mut member), [Change::Assigned(1)]);
        assert!(member.news().is_none());
    }

    #[test]
    fn what_is_let_go_is_news_also_while_something_else_is_still_being_let_go() {
        let now = Clocks::now();
        let mut member = member(now);
        member.joined("m".into(), 2, false, now);
        member.adopt(&[]);
        assert_eq!(told(&mut member), [Change::Revoked(0), Change::Revoked(1)]);
        assert_eq!((member.released(0), member.news()), (Released::LetGo, Some(News::Partial)));
        assert_eq!((member.claims(), member.news()), (claims(&[], &[1], 2), None));
        assert_eq!((member.released(1), member.news()), (Released::LetGo, Some(News::Complete)));
    }

    #[test]
    fn a_draining_member_lets_go_of_each_partition_and_adopts_none() {
        let now = Clocks::now();
        let mut member = member(now);
        member.joined("m".into(), 2, false, now);
        member.adopt(&[0, 1, 2]);
        member.drain();
        assert_eq!(told(&mut member), [Change::Revoked(0), Change::Revoked(1)], "dispatch never had 2");
        assert!(member.identity_for(2, now).is_none());
        assert_eq!(member.news(), Some(News::Partial), "others can have 2");
        assert_eq!(member.claims(), Claims { draining: true, ..claims(&[], &[0, 1], 2) });
        assert_eq!((member.released(1), member.news()), (Released::LetGo, Some(News::Partial)));
        member.claims();
        member.joined("m".into(), 3, false, now);
        member.adopt(&[0, 1, 2]);
        assert_eq!((told(&mut member), member.news()), (vec![], None), "a leader that does not know of draining");
        assert!(member.identity_for(0, now).is_some(), "its last commit is still taken");
        assert_eq!((member.released(0), told(&mut member)), (Released::LetGo, vec![]), "nothing is given back");
    }

    #[test]
    fn what_is_assigned_to_a_member_that_began_to_drain_meanwhile_is_told_to_be_free() {
        let now = Clocks::now();
        let mut member = member(now);
        member.claims();
        member.drain();
        member.joined("m".into(), 2, false, now);
        member.adopt(&[0, 1, 2]);
        assert_eq!(told(&mut member), [Change::Revoked(0), Change::Revoked(1)]);
        assert_eq!(member.news(), Some(News::Partial));
    }

    #[test]
    fn behind_the_fence_nothing_may_be_committed() {
        let now = Clocks::now();
        let member = member(now);
        assert!(member.identity_for(0, now.later(SESSION - Duration::from_millis(1))).is_some());
        assert_eq!(member.identity_for(0, now.later(SESSION)), None);
    }

    #[test]
    fn who_is_unknown_loses_all_and_claims_nothing_and_is_fenced_at_once() {
        let now = Clocks::now();
        let mut member = member(now);
        let who = member.sends_as().unwrap();
        let error = ResponseError::UnknownMemberId;
        assert_eq!(member.heard(&who, now, Some(error)), Heard::Attention);
        assert_eq!((member.lease_deadline(now), member.identity_for(0, now)), (now.timers, None));
        assert_eq!(member.take_told(), Some(Told::Forgotten(error)));
        assert!(member.forgotten(error));
        assert_eq!(told(&mut member), [Change::Lost(0), Change::Lost(1)]);
        assert_eq!((member.claims(), member.id(), member.sends_as()), (Claims::none(), "", None));
    }

    #[test]
    fn what_an_older_self_is_told_concerns_nobody() {
        let now = Clocks::now();
        let mut member = member(now);
        let who = member.sends_as().unwrap();
        member.joined("m".into(), 2, false, now);
        assert_eq!(member.heard(&who, now, Some(ResponseError::UnknownMemberId)), Heard::Nothing);
        assert_eq!((member.take_told(), member.lease_deadline(now)), (None, now.timers + SESSION));
    }

    #[test]
    fn a_process_that_may_have_inherited_its_assignment_joins_once_more() {
        let now = Clocks::now();
        let mut restarted = Member::new(SESSION, Some("one".into()));
        restarted.claims();
        restarted.joined("m".into(), 3, false, now);
        restarted.adopt(&[0]);
        assert_eq!(restarted.news(), Some(News::Complete));
        assert_eq!(restarted.claims(), claims(&[0], &[], 3));
        restarted.joined("m".into(), 4, false, now);
        restarted.adopt(&[0]);
        assert!(restarted.news().is_none());
        for (instance, leads) in [(None, false), (Some("one".into()), true)] {
            let mut new = Member::new(SESSION, instance);
            new.joined("m".into(), 3, leads, now);
            assert!(new.news().is_none(), "whom nobody was before, or whose rebalance it was");
        }
    }

    #[test]
    fn a_membership_that_ended_says_so_after_what_was_lost_by_it() {
        let mut member = member(Clocks::now());
        member.end(Failure::refused("group-refused", "why"));
        let told: Vec<_> = (0..3).filter_map(|_| member.next_change()).collect();
        assert_eq!(told[..2], [Ok(Change::Lost(0)), Ok(Change::Lost(1))]);
        assert!(matches!(&told[2], Err(failure) if failure.code == "group-refused"));
    }
}
