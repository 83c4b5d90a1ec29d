//! Reads what a broker holds without eventd's log and groups, so that a test knows that its case has occurred.

use eventd::kafka::{Cluster, Recipient, topic_name};
use eventd::limits::BROKER_CALL_MAX;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{BrokerId, FetchRequest, GroupId, OffsetFetchRequest};
use kafka_protocol::protocol::StrBytes;
use tokio::time::Instant;

const HEADER_BYTES: usize = 61;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

/// A batch of records, according to its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) base: i64,
    pub(super) last: i64,
    pub(super) bytes: usize,
    pub(super) codec: &'static str,
    pub(super) of_broker_time: bool,
    pub(super) transactional: bool,
    pub(super) control: bool,
    /// The number of records that compaction has left.
    pub(super) records: i32,
}

/// Every batch of a partition from this offset to its end, including those of open transactions.
pub(super) async fn batches(cluster: &Cluster, topic: &str, partition: u32, from: i64) -> Vec<Batch> {
    let (mut batches, mut at) = (Vec::new(), from);
    loop {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        let asked = FetchPartition::default().with_partition(partition as i32).with_fetch_offset(at);
        let topics = FetchTopic::default()
            .with_topic(topic_name(topic))
            .with_partitions(vec![asked.with_partition_max_bytes(16 << 20)]);
        let request =
            FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(16 << 20).with_topics(vec![topics]);
        let (leader, _) = cluster.leader(topic, partition, deadline).await.unwrap();
        let answer = cluster.call(Recipient::Node(leader.node), &request, deadline).await.unwrap();
        let data = answer.responses.into_iter().flat_map(|topic| topic.partitions).next().unwrap();
        assert_eq!(data.error_code, 0, "{topic} {partition} at {at}");
        let stretch = data.records.unwrap_or_default();
        let mut rest: &[u8] = &stretch;
        let before = batches.len();
        while let Some((batch, after)) = first_of(rest) {
            at = batch.last + 1;
            batches.push(batch);
            rest = after;
        }
        if batches.len() == before {
            assert_eq!(at, data.high_watermark, "{topic} {partition}: the broker returns nothing more");
            return batches;
        }
    }
}

fn first_of(stretch: &[u8]) -> Option<(Batch, &[u8])> {
    let i64_at = |at: usize| Some(i64::from_be_bytes(*stretch.get(at..)?.first_chunk()?));
    let i32_at = |at: usize| Some(i32::from_be_bytes(*stretch.get(at..)?.first_chunk()?));
    let bytes = usize::try_from(i32_at(8)?).ok()? + 12;
    let after = stretch.get(bytes..)?;
    assert!(bytes >= HEADER_BYTES && stretch[16] == 2, "not a batch of format 2");
    let attributes = stretch[22];
    let batch = Batch {
        base: i64_at(0)?,
        last: i64_at(0)? + i64::from(i32_at(23)?),
        bytes,
        codec: CODECS[usize::from(attributes & 7)],
        of_broker_time: attributes & 8 != 0,
        transactional: attributes & 16 != 0,
        control: attributes & 32 != 0,
        records: i32_at(57)?,
    };
    Some((batch, after))
}

/// What a group has committed, as Kafka's own tools see it, or -1.
pub(super) async fn committed(cluster: &Cluster, group: &str, topic: &str, partition: u32) -> i64 {
    let asked =
        OffsetFetchRequestTopic::default().with_name(topic_name(topic)).with_partition_indexes(vec![partition as i32]);
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
        .with_topics(Some(vec![asked]));
    let answer = cluster.call(Recipient::Coordinator(group), &request, Instant::now() + BROKER_CALL_MAX).await.unwrap();
    assert_eq!(answer.error_code, 0, "{group}");
    answer.topics[0].partitions[0].committed_offset
}
