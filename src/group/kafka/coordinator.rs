//! What a membership asks of the cluster: a seam, so that it can be held against a model of Kafka's coordinator.

use crate::BoxFuture;
use crate::kafka::{Cluster, Error, Recipient, Request};
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use std::fmt;
use tokio::time::Instant;

/// The answer of a broker, or why there is none.
pub(super) type Answer<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// The broker that keeps a group, wherever it is now. Calls wait for the answer until their deadline, over connections
/// of their own: one that waits delays no other.
pub(super) trait Coordinator: Send + Sync + fmt::Debug {
    fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> Answer<'_, JoinGroupResponse>;

    fn sync_group(&self, request: SyncGroupRequest, deadline: Instant) -> Answer<'_, SyncGroupResponse>;

    fn heartbeat(&self, request: HeartbeatRequest, deadline: Instant) -> Answer<'_, HeartbeatResponse>;

    fn leave_group(&self, request: LeaveGroupRequest, deadline: Instant) -> Answer<'_, LeaveGroupResponse>;

    /// How many partitions a topic has now; `None`: there is none.
    fn partitions<'a>(&'a self, topic: &'a str, deadline: Instant) -> Answer<'a, Option<u32>>;

    /// The broker that was asked is not the one any more: it is looked up before the next call.
    fn forget_coordinator(&self, group: &str);
}

impl Coordinator for Cluster {
    fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> Answer<'_, JoinGroupResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn sync_group(&self, request: SyncGroupRequest, deadline: Instant) -> Answer<'_, SyncGroupResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn heartbeat(&self, request: HeartbeatRequest, deadline: Instant) -> Answer<'_, HeartbeatResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn leave_group(&self, request: LeaveGroupRequest, deadline: Instant) -> Answer<'_, LeaveGroupResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn partitions<'a>(&'a self, topic: &'a str, deadline: Instant) -> Answer<'a, Option<u32>> {
        Box::pin(async move {
            let found = self.topic(topic, deadline).await?;
            Ok(found.map(|topic| u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX)))
        })
    }

    fn forget_coordinator(&self, group: &str) {
        Self::forget_coordinator(self, group);
    }
}

fn ask<R: Request + Send + 'static>(
    cluster: &Cluster,
    request: R,
    group: fn(&R) -> &GroupId,
    deadline: Instant,
) -> Answer<'_, R::Response> {
    Box::pin(async move { cluster.call(Recipient::Coordinator(group(&request)), &request, deadline).await })
}
