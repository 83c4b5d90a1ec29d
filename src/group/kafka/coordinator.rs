//! What a membership asks of the cluster. It is a trait so that a test can replace the cluster with a model of Kafka's
//! coordinator.

use crate::BoxFuture;
use crate::kafka::{Cluster, Error, Recipient, Request};
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use std::fmt;
use tokio::time::Instant;

/// The response of a broker, or why there is none.
pub(super) type CoordinatorFuture<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// The broker that coordinates a group, whichever that is now. A call waits for the response until its deadline. Calls
/// use separate connections, so a JoinGroup that waits for other members delays no heartbeat.
pub(super) trait Coordinator: Send + Sync + fmt::Debug {
    fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, JoinGroupResponse>;

    fn sync_group(&self, request: SyncGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, SyncGroupResponse>;

    fn heartbeat(&self, request: HeartbeatRequest, deadline: Instant) -> CoordinatorFuture<'_, HeartbeatResponse>;

    fn leave_group(&self, request: LeaveGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, LeaveGroupResponse>;

    /// How many partitions a topic has now. `None` if the topic does not exist.
    fn partition_count<'a>(&'a self, topic: &'a str, deadline: Instant) -> CoordinatorFuture<'a, Option<u32>>;

    /// Has the coordinator looked up before the next call, because the broker that was asked is no longer the coordinator.
    fn forget_coordinator(&self, group: &str);
}

impl Coordinator for Cluster {
    fn join_group(&self, request: JoinGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, JoinGroupResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn sync_group(&self, request: SyncGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, SyncGroupResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn heartbeat(&self, request: HeartbeatRequest, deadline: Instant) -> CoordinatorFuture<'_, HeartbeatResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn leave_group(&self, request: LeaveGroupRequest, deadline: Instant) -> CoordinatorFuture<'_, LeaveGroupResponse> {
        ask(self, request, |request| &request.group_id, deadline)
    }

    fn partition_count<'a>(&'a self, topic: &'a str, deadline: Instant) -> CoordinatorFuture<'a, Option<u32>> {
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
) -> CoordinatorFuture<'_, R::Response> {
    Box::pin(async move { cluster.call(Recipient::Coordinator(group(&request)), &request, deadline).await })
}
