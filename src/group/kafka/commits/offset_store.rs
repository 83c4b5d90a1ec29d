//! The offsets of a group in one topic, each with its metadata, as brokers store them: OffsetCommit and OffsetFetch.

use crate::core::outcome::{Failure, FailureCode};
use crate::group::kafka::errors::unavailable;
use crate::group::kafka::member::CommitIdentity;
use crate::kafka::{Cluster, Recipient, Request, describe, response_error, topic_name};
use crate::limits::{BROKER_CALL_MAX, METADATA_INTERVAL_MIN};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponsePartition;
use kafka_protocol::messages::{
    GroupId, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// One offset to commit.
#[derive(Debug, Clone)]
pub(super) struct OffsetCommit {
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) metadata: String,
}

/// The committed offsets of a group in one topic, by partition.
#[derive(Debug)]
pub(super) struct CommittedOffsets(HashMap<u32, (i64, String)>);

impl CommittedOffsets {
    /// The offset and metadata of a partition. `None` if nothing is committed for it.
    pub(super) fn get(&self, partition: u32) -> Option<(i64, &str)> {
        // Brokers answer -1 for a partition without a commit.
        self.0.get(&partition).filter(|(offset, _)| *offset >= 0).map(|(offset, metadata)| (*offset, metadata.as_str()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Partition, offset and metadata of each commit.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, i64, &str)> {
        self.0.keys().filter_map(|partition| self.get(*partition).map(|(offset, text)| (*partition, offset, text)))
    }
}

#[derive(Debug)]
pub(super) struct OffsetStore {
    cluster: Arc<Cluster>,
    pub(super) group: String,
    pub(super) topic: String,
}

impl OffsetStore {
    pub(super) fn new(cluster: &Arc<Cluster>, group: &str, topic: &str) -> Self {
        Self { cluster: Arc::clone(cluster), group: group.into(), topic: topic.into() }
    }

    /// Commits the offsets in one request. The inner error is the first one that the broker has for any of them.
    pub(super) async fn commit(
        &self,
        identity: &CommitIdentity,
        commits: Vec<OffsetCommit>,
    ) -> Result<Result<(), ResponseError>, Failure> {
        let partition = |OffsetCommit { partition, offset, metadata }| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(partition as i32)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::from_string(metadata)))
        };
        let partitions: Vec<_> = commits.into_iter().map(partition).collect();
        let requested = partitions.len();
        let topic = OffsetCommitRequestTopic::default().with_name(topic_name(&self.topic));
        let request = OffsetCommitRequest::default()
            .with_group_id(self.group_id())
            .with_generation_id_or_member_epoch(identity.generation)
            .with_member_id(StrBytes::from_string(identity.member_id.clone()))
            .with_group_instance_id(identity.instance_id.clone().map(StrBytes::from_string))
            .with_retention_time_ms(-1)
            .with_topics(vec![topic.with_partitions(partitions)]);
        fn codes(response: &OffsetCommitResponse) -> impl Iterator<Item = i16> {
            response.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code)
        }
        let response = self.call(&request, |response| codes(response).find(|code| *code != 0)).await?;
        if codes(&response).count() != requested {
            return Err(Failure::unknown(
                FailureCode::GroupUnavailable,
                "the broker's response to a commit leaves out a partition",
            ));
        }
        Ok(codes(&response).find_map(response_error).map_or(Ok(()), Err))
    }

    /// Fetches what is committed for the first `partition_count` partitions.
    pub(super) async fn fetch(&self, partition_count: u32) -> Result<CommittedOffsets, Failure> {
        let partitions = (0..partition_count as i32).collect();
        let topic = OffsetFetchRequestTopic::default().with_name(topic_name(&self.topic));
        let request = OffsetFetchRequest::default()
            .with_group_id(self.group_id())
            .with_topics(Some(vec![topic.with_partition_indexes(partitions)]))
            .with_require_stable(false);
        // The code is the group's, or the first one of a partition.
        let code = |response: &OffsetFetchResponse| {
            let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
            let mut codes = std::iter::once(response.error_code).chain(partitions.map(|one| one.error_code));
            codes.find(|code| *code != 0)
        };
        let response = self.call(&request, code).await?;
        if let Some(error) = code(&response).and_then(response_error) {
            let detail = format!("cannot read the commits of group {:?}: {}", self.group, describe(error));
            let code = match error {
                ResponseError::GroupAuthorizationFailed => FailureCode::GroupNotAllowed,
                _ => FailureCode::GroupUnavailable,
            };
            return Err(Failure::refused(code, detail));
        }
        let partitions = response.topics.into_iter().flat_map(|topic| topic.partitions);
        let read = |partition: OffsetFetchResponsePartition| {
            let metadata = partition.metadata.map(|text| text.to_string()).unwrap_or_default();
            (partition.partition_index as u32, (partition.committed_offset, metadata))
        };
        Ok(CommittedOffsets(partitions.map(read).collect()))
    }

    fn group_id(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.group.clone()))
    }

    /// Calls the coordinator. If another broker is taking over the group, the call is repeated until the deadline.
    async fn call<R: Request>(
        &self,
        request: &R,
        code: impl Fn(&R::Response) -> Option<i16>,
    ) -> Result<R::Response, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        loop {
            let response =
                self.cluster.call(Recipient::Coordinator(&self.group), request, deadline).await.map_err(unavailable)?;
            let has_moved = matches!(
                code(&response).and_then(response_error),
                Some(
                    ResponseError::NotCoordinator
                        | ResponseError::CoordinatorNotAvailable
                        | ResponseError::CoordinatorLoadInProgress
                )
            );
            if !has_moved || Instant::now() + METADATA_INTERVAL_MIN >= deadline {
                return Ok(response);
            }
            self.cluster.forget_coordinator(&self.group);
            sleep(METADATA_INTERVAL_MIN).await;
        }
    }
}
