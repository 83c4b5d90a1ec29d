//! The offsets of a group and a topic as brokers keep them, each with its metadata: OffsetCommit and OffsetFetch.

use super::membership::Identity;
use super::{NOT_ALLOWED, unavailable};
use crate::core::outcome::Failure;
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
pub(super) struct Offset {
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) metadata: String,
}

#[derive(Debug)]
pub(super) struct Offsets {
    cluster: Arc<Cluster>,
    pub(super) group: String,
    pub(super) topic: String,
}

impl Offsets {
    pub(super) fn new(cluster: &Arc<Cluster>, group: &str, topic: &str) -> Self {
        Self { cluster: Arc::clone(cluster), group: group.into(), topic: topic.into() }
    }

    /// Commits them in one request. The inner error is the first that the broker has for one of them.
    pub(super) async fn commit(
        &self,
        identity: &Identity,
        offsets: Vec<Offset>,
    ) -> Result<Result<(), ResponseError>, Failure> {
        let partition = |Offset { partition, offset, metadata }| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(partition as i32)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::from_string(metadata)))
        };
        let partitions: Vec<_> = offsets.into_iter().map(partition).collect();
        let asked = partitions.len();
        let topic = OffsetCommitRequestTopic::default().with_name(topic_name(&self.topic));
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.group.clone())))
            .with_generation_id_or_member_epoch(identity.generation)
            .with_member_id(StrBytes::from_string(identity.member_id.clone()))
            .with_group_instance_id(identity.instance_id.clone().map(StrBytes::from_string))
            .with_retention_time_ms(-1)
            .with_topics(vec![topic.with_partitions(partitions)]);
        fn codes(answer: &OffsetCommitResponse) -> impl Iterator<Item = i16> {
            answer.topics.iter().flat_map(|topic| &topic.partitions).map(|one| one.error_code)
        }
        let answer = self.ask(&request, |answer| codes(answer).find(|code| *code != 0)).await?;
        if codes(&answer).count() != asked {
            return Err(Failure::unknown("group-unavailable", "a commit without an answer"));
        }
        Ok(codes(&answer).find_map(response_error).map_or(Ok(()), Err))
    }

    /// Asks the coordinator, and while another one takes over asks again.
    async fn ask<R: Request>(
        &self,
        request: &R,
        code: impl Fn(&R::Response) -> Option<i16>,
    ) -> Result<R::Response, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        loop {
            let answer =
                self.cluster.call(Recipient::Coordinator(&self.group), request, deadline).await.map_err(unavailable)?;
            let moved = matches!(
                code(&answer).and_then(response_error),
                Some(
                    ResponseError::NotCoordinator
                        | ResponseError::CoordinatorNotAvailable
                        | ResponseError::CoordinatorLoadInProgress
                )
            );
            if !moved || Instant::now() + METADATA_INTERVAL_MIN >= deadline {
                return Ok(answer);
            }
            self.cluster.forget_coordinator(&self.group);
            sleep(METADATA_INTERVAL_MIN).await;
        }
    }

    /// The offset that is committed for each partition, -1 where there is none, and its metadata.
    pub(super) async fn fetch(&self, partitions: u32) -> Result<HashMap<u32, (i64, String)>, Failure> {
        let partitions = (0..partitions as i32).collect();
        let topic = OffsetFetchRequestTopic::default().with_name(topic_name(&self.topic));
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.group.clone())))
            .with_topics(Some(vec![topic.with_partition_indexes(partitions)]))
            .with_require_stable(false);
        // Of the whole group, or of one partition.
        let code = |answer: &OffsetFetchResponse| {
            let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
            let mut codes = std::iter::once(answer.error_code).chain(partitions.map(|one| one.error_code));
            codes.find(|code| *code != 0)
        };
        let answer = self.ask(&request, code).await?;
        if let Some(error) = code(&answer).and_then(response_error) {
            let detail = format!("group {:?} does not tell its commits: {}", self.group, describe(error));
            let is_allowed = error != ResponseError::GroupAuthorizationFailed;
            return Err(Failure::refused(if is_allowed { "group-unavailable" } else { NOT_ALLOWED }, detail));
        }
        let found = answer.topics.into_iter().flat_map(|topic| topic.partitions);
        let read = |partition: OffsetFetchResponsePartition| {
            let metadata = partition.metadata.map(|text| text.to_string()).unwrap_or_default();
            (partition.partition_index as u32, (partition.committed_offset, metadata))
        };
        Ok(found.map(read).collect())
    }
}
