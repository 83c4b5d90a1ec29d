//! Offsets of a partition: its ends, and the offset at a time.

use super::{KafkaLog, failure};
use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::{Cluster, PartitionEpoch, describe, response_error, topic_name};
use crate::limits::BROKER_CALL_MAX;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, ListOffsetsRequest};
use std::collections::{BTreeMap, HashMap};
use tokio::time::Instant;

/// The protocol's codes for the ends of a partition, used in the place of a timestamp.
pub(super) const EARLIEST: i64 = -2;
pub(super) const LATEST: i64 = -1;

/// Counts only records of committed transactions, and gives the last stable offset as the latest.
pub(super) const READ_COMMITTED: i8 = 1;

impl KafkaLog {
    /// The offset of one end of the partition: [`EARLIEST`] or [`LATEST`].
    pub(super) async fn end_offset(&self, partition: u32, end: i64) -> Result<i64, Failure> {
        let offset = self.offset(partition, end).await?;
        offset.ok_or_else(|| {
            Failure::refused(
                FailureCode::LogUnavailable,
                format!("the leader of partition {partition} reports no offset"),
            )
        })
    }

    /// The lowest offset with this timestamp or a later one. `None`: all records are older. If the first try fails, it is
    /// made a second time, since the leader may have changed.
    pub(super) async fn offset(&self, partition: u32, timestamp: i64) -> Result<Option<i64>, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        match self.try_offset(partition, timestamp, deadline).await {
            Ok(offset) => Ok(offset),
            Err(_) => self.try_offset(partition, timestamp, deadline).await,
        }
    }

    async fn try_offset(&self, partition: u32, timestamp: i64, deadline: Instant) -> Result<Option<i64>, Failure> {
        let (leader, _) = self.cluster.leader(&self.name, partition, deadline).await.map_err(failure)?;
        let asked = [PartitionEpoch { partition, epoch: leader.epoch }];
        let request = list_offsets(&self.name, &asked, timestamp);
        let answer = self.cluster.call_leader(&self.name, leader.node, &asked, &request, deadline).await;
        let answer = answer.map_err(failure)?;
        let found = answer.topics.into_iter().flat_map(|topic| topic.partitions).next();
        let found = found.ok_or_else(|| {
            Failure::refused(FailureCode::LogUnavailable, format!("the answer leaves partition {partition} out"))
        })?;
        match response_error(found.error_code) {
            None => Ok((found.offset >= 0).then_some(found.offset)),
            Some(error) => {
                self.cluster.report_leader_failure(&self.name, partition, leader);
                let detail = format!("the leader of partition {partition} reports no offset: {}", describe(error));
                Err(Failure::refused(FailureCode::LogUnavailable, detail))
            }
        }
    }
}

/// The first offset of every partition, as far as the leaders report it by the deadline. Each leader is asked once.
pub(super) async fn earliest_of_all(cluster: &Cluster, name: &str, deadline: Instant) -> HashMap<u32, i64> {
    let mut found = HashMap::new();
    let Ok(topic) = cluster.cached_topic(name, deadline).await else { return found };
    let mut by_leader: BTreeMap<i32, Vec<PartitionEpoch>> = BTreeMap::new();
    for partition in 0..topic.partitions.len() as u32 {
        if let Some(leader) = cluster.cached_leader(name, partition) {
            by_leader.entry(leader.node).or_default().push(PartitionEpoch { partition, epoch: leader.epoch });
        }
    }
    for (node, partitions) in by_leader {
        let request = list_offsets(name, &partitions, EARLIEST);
        let Ok(answer) = cluster.call_leader(name, node, &partitions, &request, deadline).await else { continue };
        let answered = answer.topics.into_iter().flat_map(|topic| topic.partitions);
        found.extend(answered.filter(|one| one.error_code == 0).map(|one| (one.partition_index as u32, one.offset)));
    }
    found
}

/// The request for the offsets of partitions. Each carries the leader epoch that is known, so an outdated leader refuses.
fn list_offsets(name: &str, partitions: &[PartitionEpoch], timestamp: i64) -> ListOffsetsRequest {
    let ask = |PartitionEpoch { partition, epoch }: &PartitionEpoch| {
        ListOffsetsPartition::default()
            .with_partition_index(*partition as i32)
            .with_current_leader_epoch(*epoch)
            .with_timestamp(timestamp)
    };
    let partitions = partitions.iter().map(ask).collect();
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_isolation_level(READ_COMMITTED)
        .with_topics(vec![ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(partitions)])
}
