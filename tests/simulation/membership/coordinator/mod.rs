//! A model of Kafka's group coordinator, after `GroupMetadataManager` and `ClassicGroup` of Kafka 4. It has one group,
//! whose clients speak JoinGroup 5 to 8.
//!
//! ```text
//!   Empty ──▶ Preparing ── all have joined, or the time is up ──▶ Completing ── the leader syncs ──▶ Stable
//!                ▲                                                      │                                │
//!                └──── a member joins, leaves, or sends nothing for its session ┴────────────────────────────────┘
//! ```
//!
//! A member that waits for a JoinGroup or SyncGroup answer does not expire meanwhile. The session starts again with a
//! heartbeat, a commit, and the end of a join or of a rebalance, but not with an answer in Stable. Static members stay
//! in the group when the time of a rebalance is up, with their last subscription.

mod requests;

use bytes::Bytes;
use kafka_protocol::ResponseError::{self, RebalanceInProgress, UnknownMemberId};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::{JoinGroupResponse, SyncGroupResponse};
use kafka_protocol::protocol::StrBytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::oneshot::Sender;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Empty,
    Preparing,
    Completing,
    Stable,
}

/// What the coordinator keeps when it moves to another broker.
#[derive(Debug, Clone)]
struct Kept {
    instance: Option<String>,
    session: Duration,
    rebalance: Duration,
    metadata: Bytes,
    assignment: Bytes,
}

#[derive(Debug)]
struct Member {
    kept: Kept,
    joining: Option<Sender<JoinGroupResponse>>,
    syncing: Option<Sender<SyncGroupResponse>>,
    /// The end of the session. `None` while no request is expected of the member.
    expires: Option<Instant>,
    is_new: bool,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) phase: Phase,
    pub(super) generation: i32,
    was_empty: bool,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Ids that were assigned to members which have not joined with them yet.
    pending: BTreeMap<String, Instant>,
    pending_sync: BTreeSet<String>,
    join_ends: Option<Instant>,
    sync_ends: Option<Instant>,
    stored: (i32, Option<String>, BTreeMap<String, Kept>),
    /// How long an empty group waits for more members.
    pub(super) first_delay: Duration,
    ids: u64,
    pub(super) expired: u64,
    pub(super) replaced: u64,
    /// The number of static members that got their last assignment back without a rebalance.
    pub(super) inherited: u64,
    /// The number of members that were alive but did not join within the time of a rebalance.
    pub(super) too_late: u64,
}

impl Group {
    pub(super) fn new(ids: u64, first_delay: Duration) -> Self {
        Self {
            phase: Phase::Empty,
            generation: 0,
            was_empty: true,
            leader: None,
            members: BTreeMap::new(),
            pending: BTreeMap::new(),
            pending_sync: BTreeSet::new(),
            join_ends: None,
            sync_ends: None,
            stored: (0, None, BTreeMap::new()),
            first_delay,
            ids,
            expired: 0,
            replaced: 0,
            inherited: 0,
            too_late: 0,
        }
    }

    pub(super) fn members(&self) -> usize {
        self.members.len() + self.pending.len()
    }

    /// Creates ids in an order that is independent of their age, as the broker does.
    fn new_id(&mut self) -> String {
        self.ids += 1;
        format!("{:016x}", crate::core::random::mix(self.ids))
    }

    pub(super) fn next_moment(&self) -> Option<Instant> {
        let expiries = self.members.values().filter_map(|member| member.expires);
        expiries.chain(self.pending.values().copied()).chain(self.join_ends).chain(self.sync_ends).min()
    }

    /// Does what is due, one step after the other, as Kafka does. Each step may cancel the next.
    pub(super) fn tick(&mut self, now: Instant) {
        while self.next_moment().is_some_and(|moment| moment <= now) {
            if self.join_ends.is_some_and(|at| at <= now) {
                self.complete_join(now);
            } else if self.sync_ends.is_some_and(|at| at <= now) {
                self.sync_ends = None;
                let silent = std::mem::take(&mut self.pending_sync);
                if !silent.is_empty() {
                    silent.iter().for_each(|id| self.remove(id));
                    self.prepare_rebalance(now);
                }
            } else if let Some(id) = self.pending.iter().find(|(_, at)| **at <= now).map(|(id, _)| id.clone()) {
                self.pending.remove(&id);
                self.maybe_complete_join(now);
            } else {
                self.expire_one(now);
            }
        }
    }

    fn expire_one(&mut self, now: Instant) {
        let due = |(_, member): &(&String, &mut Member)| member.expires.is_some_and(|at| at <= now);
        let Some((id, member)) = self.members.iter_mut().find(due) else { return };
        member.expires = None;
        if (member.joining.is_some() || member.syncing.is_some()) && !member.is_new {
            return;
        }
        let id = id.clone();
        self.expired += 1;
        self.remove_and_rebalance(&id, now);
    }

    fn remove_and_rebalance(&mut self, id: &str, now: Instant) {
        self.answer_join(id, |_| refused_join(id, UnknownMemberId));
        self.remove(id);
        match self.phase {
            Phase::Stable | Phase::Completing => self.prepare_rebalance(now),
            Phase::Preparing => self.maybe_complete_join(now),
            Phase::Empty => {}
        }
    }

    fn remove(&mut self, id: &str) {
        self.members.remove(id);
        self.pending.remove(id);
        self.pending_sync.remove(id);
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    fn alive(&mut self, id: &str, now: Instant) {
        if let Some(member) = self.members.get_mut(id) {
            member.expires = Some(now + member.kept.session);
        }
    }

    /// Another broker is the coordinator now. It knows what was stored, and every session starts again.
    pub(super) fn fail_over(&mut self, now: Instant) {
        let (generation, leader, kept) = self.stored.clone();
        self.phase = if kept.is_empty() { Phase::Empty } else { Phase::Stable };
        (self.generation, self.leader) = (generation, leader);
        self.members.clear();
        for (id, kept) in kept {
            let expires = Some(now + kept.session);
            self.members.insert(id, Member { kept, joining: None, syncing: None, expires, is_new: false });
        }
        self.pending.clear();
        self.pending_sync.clear();
        (self.join_ends, self.sync_ends) = (None, None);
    }

    fn store(&mut self) {
        let kept = self.members.iter().map(|(id, member)| (id.clone(), member.kept.clone())).collect();
        self.stored = (self.generation, self.leader.clone(), kept);
    }

    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.kept.rebalance).max().unwrap_or_default()
    }

    fn all_have_joined(&self) -> bool {
        self.pending.is_empty() && self.members.values().all(|member| member.joining.is_some())
    }

    fn prepare_rebalance(&mut self, now: Instant) {
        if self.phase == Phase::Completing {
            for member in self.members.values_mut() {
                member.kept.assignment = Bytes::new();
                if let Some(sender) = member.syncing.take() {
                    let refused = SyncGroupResponse::default().with_error_code(RebalanceInProgress.code());
                    drop(sender.send(refused));
                    member.expires = Some(now + member.kept.session);
                }
            }
        }
        self.pending_sync.clear();
        self.sync_ends = None;
        self.was_empty = self.phase == Phase::Empty;
        self.phase = Phase::Preparing;
        if self.was_empty {
            self.join_ends = Some(now + self.first_delay);
        } else if self.all_have_joined() {
            self.complete_join(now);
        } else {
            self.join_ends = Some(now + self.rebalance_timeout());
        }
    }

    fn maybe_complete_join(&mut self, now: Instant) {
        if self.phase == Phase::Preparing && !self.was_empty && self.all_have_joined() {
            self.complete_join(now);
        }
    }

    fn rebalance_or_complete(&mut self, now: Instant) {
        if self.phase == Phase::Preparing { self.maybe_complete_join(now) } else { self.prepare_rebalance(now) }
    }

    fn complete_join(&mut self, now: Instant) {
        self.join_ends = None;
        let late = |member: &Member| member.joining.is_none();
        let gone: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| late(member) && member.kept.instance.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        self.too_late += self.members.values().filter(|member| late(member)).count() as u64;
        gone.iter().for_each(|id| self.remove(id));
        let leads = |id: &String| self.members.get(id).is_some_and(|member| member.joining.is_some());
        if !self.leader.as_ref().is_some_and(leads) && !self.members.is_empty() {
            let Some(id) = self.members.iter().find(|(_, member)| !late(member)).map(|(id, _)| id.clone()) else {
                self.join_ends = Some(now + self.rebalance_timeout());
                return;
            };
            self.leader = Some(id);
        }
        self.generation += 1;
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.store();
            return;
        }
        self.phase = Phase::Completing;
        for id in self.members.keys().cloned().collect::<Vec<_>>() {
            self.answer_join(&id, |group| group.joined(&id, group.leader.clone()));
            self.alive(&id, now);
            self.members.get_mut(&id).expect("the id belongs to a member").is_new = false;
            self.pending_sync.insert(id);
        }
        self.sync_ends = Some(now + self.rebalance_timeout());
    }

    fn answer_join(&mut self, id: &str, answer: impl FnOnce(&Self) -> JoinGroupResponse) {
        if let Some(sender) = self.members.get_mut(id).and_then(|member| member.joining.take()) {
            // The member that asked may have ended.
            drop(sender.send(answer(self)));
        }
    }

    fn joined(&self, id: &str, leader: Option<String>) -> JoinGroupResponse {
        let leader = leader.unwrap_or_default();
        let tell = |(id, member): (&String, &Member)| {
            let id = StrBytes::from_string(id.clone());
            JoinGroupResponseMember::default().with_member_id(id).with_metadata(member.kept.metadata.clone())
        };
        let members = if leader == id { self.members.iter().map(tell).collect() } else { Vec::new() };
        JoinGroupResponse::default()
            .with_generation_id(self.generation)
            .with_leader(StrBytes::from_string(leader))
            .with_member_id(StrBytes::from_string(id.to_owned()))
            .with_members(members)
    }
}

fn refused_join(id: &str, error: ResponseError) -> JoinGroupResponse {
    let id = StrBytes::from_string(id.to_owned());
    JoinGroupResponse::default().with_member_id(id).with_error_code(error.code())
}
