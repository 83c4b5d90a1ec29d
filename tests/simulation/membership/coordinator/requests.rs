//! What the coordinator does for each request.

use super::{Group, Kept, Member, Phase, refused_join};
use bytes::Bytes;
use kafka_protocol::ResponseError::{
    self, FencedInstanceId, IllegalGeneration, MemberIdRequired, RebalanceInProgress, UnknownMemberId,
};
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest, SyncGroupResponse};
use std::time::Duration;
use tokio::sync::oneshot::Sender;
use tokio::time::Instant;

/// How long a new member may wait in its first join, whatever its session time-out is.
const NEW_MEMBER_JOIN_MAX: Duration = Duration::from_secs(300);

fn millis(time: i32) -> Duration {
    Duration::from_millis(time.unsigned_abs().into())
}

impl Group {
    pub(in super::super) fn join(
        &mut self,
        request: &JoinGroupRequest,
        answer: Sender<JoinGroupResponse>,
        now: Instant,
    ) {
        let id = request.member_id.to_string();
        let instance = request.group_instance_id.as_ref().map(ToString::to_string);
        let kept = Kept {
            instance: instance.clone(),
            session: millis(request.session_timeout_ms),
            rebalance: millis(request.rebalance_timeout_ms),
            metadata: request.protocols[0].metadata.clone(),
            assignment: Bytes::new(),
        };
        if id.is_empty() {
            let id = self.new_id();
            let older = instance.as_ref().and_then(|instance| self.holder_of(instance));
            match (instance, older) {
                (None, _) => {
                    self.pending.insert(id.clone(), now + kept.session);
                    drop(answer.send(refused_join(&id, MemberIdRequired)));
                }
                (Some(_), None) => self.add(id, kept, answer, now),
                (Some(_), Some(older)) => self.replace(&older, id, kept, answer, now),
            }
        } else if self.pending.remove(&id).is_some() {
            self.add(id, kept, answer, now);
        } else if let Err(error) = self.validate(&id, instance.as_deref()) {
            drop(answer.send(refused_join(&id, error)));
        } else {
            self.join_again(&id, kept, answer, now);
        }
        self.tick(now);
    }

    fn add(&mut self, id: String, kept: Kept, answer: Sender<JoinGroupResponse>, now: Instant) {
        let expires = Some(now + NEW_MEMBER_JOIN_MAX);
        self.leader.get_or_insert_with(|| id.clone());
        self.members.insert(id, Member { kept, joining: Some(answer), syncing: None, expires, is_new: true });
        self.rebalance_or_complete(now);
    }

    /// A process has joined with a known instance id. It is the same process after a restart, or another one.
    fn replace(&mut self, older: &str, id: String, kept: Kept, answer: Sender<JoinGroupResponse>, now: Instant) {
        self.replaced += 1;
        self.answer_join(older, |_| refused_join(older, FencedInstanceId));
        let Some(mut member) = self.members.remove(older) else { return };
        if let Some(sender) = member.syncing.take() {
            drop(sender.send(SyncGroupResponse::default().with_error_code(FencedInstanceId.code())));
        }
        let assignment = std::mem::take(&mut member.kept.assignment);
        let expires = Some(now + kept.session);
        let kept = Kept { assignment, ..kept };
        self.members.insert(id.clone(), Member { kept, joining: Some(answer), syncing: None, expires, is_new: false });
        // The answer names the earlier leader. Before version 9, a restarted leader is not told that it leads.
        let leader = self.leader.clone();
        if leader.as_deref() == Some(older) {
            self.leader = Some(id.clone());
        }
        match self.phase {
            Phase::Stable => {
                self.inherited += 1;
                self.store();
                self.answer_join(&id, |group| group.joined(&id, leader));
            }
            Phase::Completing => self.prepare_rebalance(now),
            Phase::Preparing | Phase::Empty => self.maybe_complete_join(now),
        }
    }

    fn join_again(&mut self, id: &str, kept: Kept, answer: Sender<JoinGroupResponse>, now: Instant) {
        let same = self.members[id].kept.metadata == kept.metadata;
        let leads = self.leader.as_deref() == Some(id);
        match self.phase {
            Phase::Empty => return drop(answer.send(refused_join(id, UnknownMemberId))),
            Phase::Completing if same => return drop(answer.send(self.joined(id, self.leader.clone()))),
            Phase::Stable if same && !leads => return drop(answer.send(self.joined(id, self.leader.clone()))),
            _ => {}
        }
        let member = self.members.get_mut(id).expect("the member was looked up");
        let assignment = std::mem::take(&mut member.kept.assignment);
        (member.kept, member.joining) = (Kept { assignment, ..kept }, Some(answer));
        self.rebalance_or_complete(now);
    }

    fn holder_of(&self, instance: &str) -> Option<String> {
        let holds = |(_, member): &(&String, &Member)| member.kept.instance.as_deref() == Some(instance);
        self.members.iter().find(holds).map(|(id, _)| id.clone())
    }

    fn validate(&self, id: &str, instance: Option<&str>) -> Result<(), ResponseError> {
        match instance.map(|instance| self.holder_of(instance)) {
            Some(None) => Err(UnknownMemberId),
            Some(Some(holder)) if holder != id => Err(FencedInstanceId),
            _ if !self.members.contains_key(id) => Err(UnknownMemberId),
            _ => Ok(()),
        }
    }

    fn validate_of(&self, id: &str, instance: Option<&str>, generation: i32) -> Result<(), ResponseError> {
        self.validate(id, instance)?;
        if generation == self.generation { Ok(()) } else { Err(IllegalGeneration) }
    }

    pub(in super::super) fn sync(
        &mut self,
        request: &SyncGroupRequest,
        answer: Sender<SyncGroupResponse>,
        now: Instant,
    ) {
        let id = request.member_id.to_string();
        let valid = self.validate_of(&id, request.group_instance_id.as_deref(), request.generation_id);
        let refused = |error: ResponseError| SyncGroupResponse::default().with_error_code(error.code());
        match (valid, self.phase) {
            (Err(error), _) => drop(answer.send(refused(error))),
            (Ok(()), Phase::Empty) => drop(answer.send(refused(UnknownMemberId))),
            (Ok(()), Phase::Preparing) => drop(answer.send(refused(RebalanceInProgress))),
            (Ok(()), Phase::Completing) => {
                self.pending_sync.remove(&id);
                self.members.get_mut(&id).expect("the member was validated").syncing = Some(answer);
                if self.leader.as_deref() == Some(&id) {
                    self.assigned(request, now);
                }
            }
            (Ok(()), Phase::Stable) => {
                self.pending_sync.remove(&id);
                let assignment = self.members[&id].kept.assignment.clone();
                drop(answer.send(SyncGroupResponse::default().with_assignment(assignment)));
            }
        }
        self.tick(now);
    }

    fn assigned(&mut self, request: &SyncGroupRequest, now: Instant) {
        for (id, member) in &mut self.members {
            let own = request.assignments.iter().find(|own| own.member_id.as_str() == id);
            member.kept.assignment = own.map_or_else(Bytes::new, |own| own.assignment.clone());
            if let Some(sender) = member.syncing.take() {
                drop(sender.send(SyncGroupResponse::default().with_assignment(member.kept.assignment.clone())));
                member.expires = Some(now + member.kept.session);
            }
        }
        self.phase = Phase::Stable;
        self.store();
    }

    pub(in super::super) fn heartbeat(
        &mut self,
        id: &str,
        instance: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.validate_of(id, instance, generation)?;
        self.alive(id, now);
        if self.phase == Phase::Preparing { Err(RebalanceInProgress) } else { Ok(()) }
    }

    pub(in super::super) fn leave(
        &mut self,
        id: &str,
        instance: Option<&str>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        if self.pending.remove(id).is_some() {
            self.maybe_complete_join(now);
        } else {
            self.validate(id, instance)?;
            self.remove_and_rebalance(id, now);
        }
        self.tick(now);
        Ok(())
    }

    pub(in super::super) fn commit(
        &mut self,
        id: &str,
        instance: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.validate_of(id, instance, generation)?;
        if self.phase == Phase::Completing {
            return Err(RebalanceInProgress);
        }
        self.alive(id, now);
        Ok(())
    }
}
