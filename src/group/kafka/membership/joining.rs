//! One round of joining: JoinGroup, what the leader assigns, SyncGroup.

use super::Shared;
use crate::core::outcome::Failure;
use crate::group::kafka::leader;
use crate::group::kafka::lease::Lease;
use crate::group::kafka::member::Told;
use crate::group::kafka::subscription::{Assignment, Subscription};
use crate::kafka::{self, describe, response_error};
use crate::limits::{BROKER_CALL_MAX, REBALANCE_MAX, REJOIN_BACKOFF};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{JoinGroupRequest, JoinGroupResponse, SyncGroupRequest};
use kafka_protocol::protocol::StrBytes;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Kafka's own consumers have this type, and its tools show what its members have.
const PROTOCOL_TYPE: &str = "consumer";
/// Of our own assignor: a program that does not know it is refused by the broker.
const PROTOCOL: &str = "eventd-cooperative-sticky";

/// Why a round did not end with an assignment.
pub(super) enum Broken {
    /// Try again, with the same claims.
    Again(String),
    /// We are not let in: a password, a certificate, or a right. At the start a person has to change something. Once the
    /// membership has worked, it is a broker whose settings are wrong for a while: try again.
    NotLetIn(String),
    /// The broker does not know us, or only as somebody older: claim nothing.
    Forgotten(ResponseError),
    /// For ever.
    End(Failure),
}

impl Shared {
    pub(super) async fn join(&self) -> Result<Vec<u32>, Broken> {
        let joined = self.join_group().await?;
        let assignments =
            if joined.leader == joined.member_id { self.assign(&joined.members).await? } else { Vec::new() };
        let request = SyncGroupRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id(joined.generation_id)
            .with_member_id(joined.member_id.clone())
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
            .with_protocol_name(Some(StrBytes::from_static_str(PROTOCOL)))
            .with_assignments(assignments);
        let sent = (self.clock)();
        let answer = self.coordinator.sync_group(request, Instant::now() + REBALANCE_MAX).await.map_err(again)?;
        if let Some(error) = response_error(answer.error_code) {
            return Err(self.broken(error));
        }
        let assignment = Assignment::decode(&self.settings.topic, answer.assignment)
            .map_err(|why| Broken::Again(format!("an assignment that cannot be read: {why}")))?;
        if !assignment.refusal.is_empty() {
            return Err(Broken::End(Failure::refused("group-refused", assignment.refusal)));
        }
        self.member().synced(sent);
        self.first_heartbeat().await?;
        Ok(assignment.partitions)
    }

    /// Waits until there is a lease. Joining makes none: where a group is stable already, the broker answers a JoinGroup
    /// and a SyncGroup without beginning our session anew.
    async fn first_heartbeat(&self) -> Result<(), Broken> {
        let until = Instant::now() + self.settings.session_timeout;
        loop {
            {
                let mut member = self.member();
                if member.has_fence() {
                    return Ok(());
                }
                if let Some(Told::Forgotten(error)) = member.take_told() {
                    return Err(Broken::Forgotten(error));
                }
            }
            if Instant::now() >= until {
                return Err(Broken::Again("no heartbeat was acknowledged within the session's time-out".into()));
            }
            if !self.heartbeat().await {
                sleep(REJOIN_BACKOFF).await;
            }
        }
    }

    async fn join_group(&self) -> Result<JoinGroupResponse, Broken> {
        let (member_id, subscription) = {
            let mut member = self.member();
            let claims = member.claims();
            let (topic, digest) = (self.settings.topic.clone(), self.settings.digest.clone());
            (member.id().to_owned(), Subscription { topic, claims, digest })
        };
        let metadata = subscription.encode().map_err(Broken::Again)?;
        let millis = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        let protocol = JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str(PROTOCOL));
        let request = JoinGroupRequest::default()
            .with_group_id(self.group_id())
            .with_session_timeout_ms(millis(self.settings.session_timeout))
            .with_rebalance_timeout_ms(millis(Lease::rebalance_timeout(self.settings.session_timeout)))
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
            .with_protocols(vec![protocol.with_metadata(metadata)]);
        let deadline = Instant::now() + self.settings.session_timeout + REBALANCE_MAX;
        let sent = (self.clock)();
        let answer = self.coordinator.join_group(request, deadline).await.map_err(again)?;
        match response_error(answer.error_code) {
            None => {}
            // The first answer to a new member is its id.
            Some(ResponseError::MemberIdRequired) => {
                self.member().is_called(answer.member_id.to_string());
                return Box::pin(self.join_group()).await;
            }
            Some(error) => return Err(self.broken(error)),
        }
        let is_leader = answer.leader == answer.member_id;
        self.member().joined(answer.member_id.to_string(), answer.generation_id, is_leader, sent);
        Ok(answer)
    }

    /// What each member gets.
    async fn assign(&self, members: &[JoinGroupResponseMember]) -> Result<Vec<SyncGroupRequestAssignment>, Broken> {
        let mut by_topic: BTreeMap<String, Vec<(String, Subscription)>> = BTreeMap::new();
        for member in members {
            let said = Subscription::decode(member.metadata.clone())
                .map_err(|why| Broken::Again(format!("member {} says what cannot be read: {why}", member.member_id)))?;
            by_topic.entry(said.topic.clone()).or_default().push((member.member_id.to_string(), said));
        }
        let mut assignments = Vec::new();
        for (topic, members) in by_topic {
            let partitions = self.partitions_of(&topic).await?;
            for (id, assignment) in leader::share(&self.settings.group, &topic, &members, partitions) {
                let bytes = assignment.encode().map_err(Broken::Again)?;
                let id = StrBytes::from_string(id);
                assignments.push(SyncGroupRequestAssignment::default().with_member_id(id).with_assignment(bytes));
            }
        }
        Ok(assignments)
    }

    /// A destination of one name may be there for several topics: one group, whose members share each topic apart.
    async fn partitions_of(&self, topic: &str) -> Result<u32, Broken> {
        if topic == self.settings.topic {
            self.has_grown().await;
            return Ok(self.partitions.load(Ordering::Relaxed));
        }
        let found = self.coordinator.partitions(topic, Instant::now() + BROKER_CALL_MAX).await;
        Ok(found.map_err(|error| Broken::Again(error.to_string()))?.unwrap_or(0))
    }

    fn broken(&self, error: ResponseError) -> Broken {
        let group = &self.settings.group;
        let end = |detail: String| Broken::End(Failure::refused("group-refused", detail));
        match error {
            ResponseError::UnknownMemberId | ResponseError::IllegalGeneration => Broken::Forgotten(error),
            ResponseError::FencedInstanceId => end(format!(
                "another process has joined the group {group:?} with the same --instance-id: each needs its own"
            )),
            ResponseError::InconsistentGroupProtocol => end(format!(
                "another program is in the group {group:?}, with a protocol that is not eventd's: choose another --name"
            )),
            ResponseError::InvalidSessionTimeout => end(format!(
                "the broker allows no --session-timeout of {:?} (group.min.session.timeout.ms and .max.)",
                self.settings.session_timeout
            )),
            ResponseError::GroupAuthorizationFailed => {
                Broken::NotLetIn(format!("the group {group:?} cannot be joined: {}", describe(error)))
            }
            ResponseError::GroupMaxSizeReached | ResponseError::InvalidGroupId => {
                end(format!("the group {group:?} cannot be joined: {}", describe(error)))
            }
            error => {
                self.coordinator.forget_coordinator(group);
                Broken::Again(describe(error))
            }
        }
    }
}

fn again(error: kafka::Error) -> Broken {
    match error {
        kafka::Error::Configuration(detail) | kafka::Error::NotAllowed(detail) => Broken::NotLetIn(detail),
        error => Broken::Again(error.to_string()),
    }
}
