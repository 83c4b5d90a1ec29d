//! One join: JoinGroup, then the leader's assignment, then SyncGroup, then a first heartbeat.

use super::{REJOIN_BACKOFF, SharedMembership};
use crate::core::outcome::{Failure, FailureCode};
use crate::group::kafka::assignment::{Assignment, Subscription, assign_members};
use crate::group::kafka::member::{Lease, RejoinReason};
use crate::kafka::{self, describe, response_error};
use crate::limits::BROKER_CALL_MAX;
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

/// The protocol type of Kafka's own consumers. With it, Kafka's tools show what the members own.
const PROTOCOL_TYPE: &str = "consumer";
/// The name of our assignor. Brokers refuse a program that does not support it, and with it every consumer that is not an
/// eventd.
const PROTOCOL: &str = "eventd-cooperative-sticky";

/// How long the broker may take beyond the session time-out to answer a JoinGroup, and to answer a SyncGroup.
const REBALANCE_MAX: Duration = Duration::from_secs(10);

/// Why a join brought no assignment.
pub(super) enum JoinFailure {
    /// Join again, with the same partitions.
    Retry(String),
    /// The brokers do not let this process in: a password, a certificate or a right is wrong. If that happens at the
    /// start, a person has to change something. Later, the settings of a broker are probably wrong for a while, so the
    /// member tries again.
    NotAllowed(String),
    /// The coordinator does not know this member, or only in another generation. The next join must claim nothing.
    Removed(ResponseError),
    /// Joining again does not help.
    Fatal(Failure),
}

impl SharedMembership {
    /// Joins, and returns the partitions that this member is assigned.
    pub(super) async fn join(&self) -> Result<Vec<u32>, JoinFailure> {
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
        let response =
            self.coordinator.sync_group(request, Instant::now() + REBALANCE_MAX).await.map_err(no_response)?;
        if let Some(error) = response_error(response.error_code) {
            return Err(self.refused(error));
        }
        let assignment = Assignment::decode(&self.config.topic, response.assignment)
            .map_err(|why| JoinFailure::Retry(format!("the leader's assignment cannot be read: {why}")))?;
        if !assignment.refusal.is_empty() {
            return Err(JoinFailure::Fatal(Failure::refused(FailureCode::GroupRefused, assignment.refusal)));
        }
        self.member().synced(sent);
        self.wait_for_lease().await?;
        Ok(assignment.partitions)
    }

    /// Sends heartbeats until one gives a lease. Joining alone gives none: if the group is stable, the coordinator
    /// answers a JoinGroup and a SyncGroup without restarting the session.
    async fn wait_for_lease(&self) -> Result<(), JoinFailure> {
        let until = Instant::now() + self.config.session_timeout;
        loop {
            {
                let mut member = self.member();
                if member.has_lease() {
                    return Ok(());
                }
                if let Some(RejoinReason::Removed(error)) = member.take_rejoin_reason() {
                    return Err(JoinFailure::Removed(error));
                }
            }
            if Instant::now() >= until {
                return Err(JoinFailure::Retry(super::SESSION_EXPIRED.into()));
            }
            if !self.heartbeat().await {
                sleep(REJOIN_BACKOFF).await;
            }
        }
    }

    async fn join_group(&self) -> Result<JoinGroupResponse, JoinFailure> {
        let (member_id, subscription) = {
            let mut member = self.member();
            let owned = member.announce();
            let (topic, digest) = (self.config.topic.clone(), self.config.digest.clone());
            (member.member_id().to_owned(), Subscription { topic, owned, digest })
        };
        let metadata = subscription.encode().map_err(JoinFailure::Retry)?;
        let millis = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        let protocol = JoinGroupRequestProtocol::default().with_name(StrBytes::from_static_str(PROTOCOL));
        let request = JoinGroupRequest::default()
            .with_group_id(self.group_id())
            .with_session_timeout_ms(millis(self.config.session_timeout))
            .with_rebalance_timeout_ms(millis(Lease::rebalance_timeout(self.config.session_timeout)))
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
            .with_protocols(vec![protocol.with_metadata(metadata)]);
        let deadline = Instant::now() + self.config.session_timeout + REBALANCE_MAX;
        let sent = (self.clock)();
        let answer = self.coordinator.join_group(request, deadline).await;
        // If the connection was closed before the deadline, the broker has received the request by then, or never will.
        let may_arrive_late = matches!(answer, Err(kafka::Error::NoAnswer(_))) && Instant::now() >= deadline;
        self.join_call_ended(may_arrive_late);
        let response = answer.map_err(no_response)?;
        match response_error(response.error_code) {
            None => {}
            // The coordinator's first answer to a new member gives it an id, with which it has to join again.
            Some(ResponseError::MemberIdRequired) => {
                self.member().set_member_id(response.member_id.to_string());
                return Box::pin(self.join_group()).await;
            }
            Some(error) => return Err(self.refused(error)),
        }
        let is_leader = response.leader == response.member_id;
        self.member().joined(response.member_id.to_string(), response.generation_id, is_leader, sent);
        Ok(response)
    }

    /// Assigns the partitions to the members, as the leader of this generation.
    async fn assign(
        &self,
        members: &[JoinGroupResponseMember],
    ) -> Result<Vec<SyncGroupRequestAssignment>, JoinFailure> {
        // The same destination may be used for several topics. Then it is one group, and each topic is assigned among the
        // members that subscribe to it.
        let mut by_topic: BTreeMap<String, Vec<(String, Subscription)>> = BTreeMap::new();
        for member in members {
            let subscription = Subscription::decode(member.metadata.clone()).map_err(|why| {
                JoinFailure::Retry(format!("the subscription of member {} cannot be read: {why}", member.member_id))
            })?;
            let topic = subscription.topic.clone();
            by_topic.entry(topic).or_default().push((member.member_id.to_string(), subscription));
        }
        let mut assignments = Vec::new();
        for (topic, members) in by_topic {
            let partition_count = self.partition_count_of(&topic).await?;
            for (member_id, assignment) in assign_members(&self.config.group, &topic, &members, partition_count) {
                let bytes = assignment.encode().map_err(JoinFailure::Retry)?;
                let member_id = StrBytes::from_string(member_id);
                let assignment = SyncGroupRequestAssignment::default().with_member_id(member_id).with_assignment(bytes);
                assignments.push(assignment);
            }
        }
        Ok(assignments)
    }

    async fn partition_count_of(&self, topic: &str) -> Result<u32, JoinFailure> {
        if topic == self.config.topic {
            self.update_partition_count().await;
            return Ok(self.partition_count.load(Ordering::Relaxed));
        }
        let found = self.coordinator.partition_count(topic, Instant::now() + BROKER_CALL_MAX).await;
        Ok(found.map_err(|error| JoinFailure::Retry(error.to_string()))?.unwrap_or(0))
    }

    /// What it means that the coordinator refused a JoinGroup or a SyncGroup.
    fn refused(&self, error: ResponseError) -> JoinFailure {
        let group = &self.config.group;
        let fatal = |detail: String| JoinFailure::Fatal(Failure::refused(FailureCode::GroupRefused, detail));
        match error {
            ResponseError::UnknownMemberId | ResponseError::IllegalGeneration => JoinFailure::Removed(error),
            ResponseError::FencedInstanceId => fatal(format!(
                "another process has joined the group {group:?} with the same --instance-id. Give each process its own"
            )),
            ResponseError::InconsistentGroupProtocol => {
                fatal(format!("the group {group:?} has members that are not eventd processes. Use another --name"))
            }
            ResponseError::InvalidSessionTimeout => fatal(format!(
                "the broker does not allow --session-timeout {:?}. Use a value between its group.min.session.timeout.ms \
                 and group.max.session.timeout.ms",
                self.config.session_timeout
            )),
            ResponseError::GroupAuthorizationFailed => {
                JoinFailure::NotAllowed(format!("cannot join the group {group:?}: {}", describe(error)))
            }
            ResponseError::GroupMaxSizeReached | ResponseError::InvalidGroupId => {
                fatal(format!("cannot join the group {group:?}: {}", describe(error)))
            }
            error => {
                self.coordinator.forget_coordinator(group);
                JoinFailure::Retry(describe(error))
            }
        }
    }
}

fn no_response(error: kafka::Error) -> JoinFailure {
    match error {
        kafka::Error::Configuration(detail) | kafka::Error::NotAllowed(detail) => JoinFailure::NotAllowed(detail),
        error => JoinFailure::Retry(error.to_string()),
    }
}
