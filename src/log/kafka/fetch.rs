//! Fetches records from the leader of a partition.
//!
//! ```text
//!  fetch(from, max_bytes) ─ in the buffer? ─▶ at most max_bytes of it; the rest stays in the buffer
//!                         └ else ─▶ Fetch at the leader ─▶ decode the batches ─▶ at most max_bytes, rest to the buffer
//! ```

use super::KafkaLog;
use super::offsets::{EARLIEST, LATEST, READ_COMMITTED};
use crate::core::outcome::Failure;
use crate::kafka::batch::{self, AbortedTransaction};
use crate::kafka::{self, Leader, PartitionEpoch, describe, is_another_topic, response_error, topic_name};
use crate::limits::{BROKER_CALL_MAX, FRAME_BYTES_MAX};
use crate::log::{FetchError, Fetched};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest};
use std::sync::PoisonError;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How much longer than it was asked to wait a broker may take to answer a fetch.
const FETCH_GRACE: Duration = Duration::from_secs(5);

/// If no broker was asked about the leaders for this long, one more broker is asked before a fetch.
const METADATA_AGE_MAX: Duration = Duration::from_secs(30);

/// Like [`METADATA_AGE_MAX`], if a fetch found nothing. Perhaps there is nothing new. Or the leader is cut off and does not
/// know it, and the other brokers have elected another one. One request covers all partitions of the topic.
const METADATA_IDLE_AGE_MAX: Duration = Duration::from_secs(5);

impl KafkaLog {
    pub(super) async fn fetch_from(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Fetched, FetchError> {
        let fetched = match self.fetch_buffer.take(partition, from) {
            Some(fetched) => fetched,
            None => self.fetch_from_leader(partition, from, max_bytes, wait).await?,
        };
        Ok(self.fetch_buffer.split(partition, fetched, max_bytes))
    }

    async fn fetch_from_leader(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Fetched, FetchError> {
        let throttled_until = *self.fetch_throttled_until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = throttled_until {
            sleep_until(until).await;
        }
        let deadline = Instant::now() + wait + FETCH_GRACE;
        let unavailable = |error: kafka::Error| FetchError::Unavailable(error.to_string());
        self.cluster.refresh(&self.name, METADATA_AGE_MAX).await;
        let leader = self.leader(partition, deadline).await?;
        let asked = FetchPartition::default()
            .with_partition(partition as i32)
            .with_current_leader_epoch(leader.epoch)
            .with_fetch_offset(from)
            .with_partition_max_bytes(i32::try_from(max_bytes.min(FRAME_BYTES_MAX / 2)).unwrap_or(i32::MAX));
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes((FRAME_BYTES_MAX / 2) as i32)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![FetchTopic::default().with_topic(topic_name(&self.name)).with_partitions(vec![asked])]);
        let asked = [PartitionEpoch { partition, epoch: leader.epoch }];
        let answer = self.cluster.call_leader(&self.name, leader.node, &asked, &request, deadline).await;
        let answer = answer.map_err(unavailable)?;
        let throttle = Duration::from_millis(answer.throttle_time_ms.unsigned_abs().into()).min(BROKER_CALL_MAX);
        if !throttle.is_zero() {
            let mut throttled_until = self.fetch_throttled_until.lock().unwrap_or_else(PoisonError::into_inner);
            *throttled_until = Some(Instant::now() + throttle);
        }
        let code = answer.error_code;
        let Some(data) = answer.responses.into_iter().flat_map(|topic| topic.partitions).next() else {
            return Err(FetchError::Unavailable(match response_error(code) {
                Some(error) => format!("the leader of partition {partition} answers with {}", describe(error)),
                None => format!("a quota of the brokers makes partition {partition} wait for {throttle:?}"),
            }));
        };
        if data.records.as_ref().is_none_or(|records| records.is_empty()) {
            self.cluster.refresh(&self.name, METADATA_IDLE_AGE_MAX).await;
        }
        self.read_answer(partition, leader, from, data).await
    }

    async fn read_answer(
        &self,
        partition: u32,
        leader: Leader,
        from: i64,
        data: PartitionData,
    ) -> Result<Fetched, FetchError> {
        match response_error(data.error_code) {
            None => {}
            Some(ResponseError::OffsetOutOfRange) => return Err(self.out_of_range(partition, leader, from).await),
            Some(error) => {
                self.cluster.report_leader_failure(&self.name, partition, leader);
                let error = describe(error);
                return Err(FetchError::Unavailable(format!("cannot fetch from partition {partition}: {error}")));
            }
        }
        let latest = data.last_stable_offset;
        let records = data.records.unwrap_or_default();
        if records.is_empty() {
            return Ok(Fetched { events: Vec::new(), next: from, latest });
        }
        let aborted: Vec<AbortedTransaction> = data
            .aborted_transactions
            .unwrap_or_default()
            .iter()
            .map(|aborted| AbortedTransaction {
                producer_id: aborted.producer_id.0,
                first_offset: aborted.first_offset,
            })
            .collect();
        match batch::decode(&records, from, &aborted) {
            Ok(decoded) if decoded.next == from => Err(FetchError::Unavailable(format!(
                "the answer for partition {partition} ends within the batch at offset {from}"
            ))),
            Ok(decoded) => Ok(Fetched { events: decoded.events, next: decoded.next, latest: latest.max(decoded.next) }),
            Err(damaged) => Err(FetchError::Corrupt { offset: damaged.last_offset, detail: damaged.detail }),
        }
    }

    /// Finds out whether the offset is really outside the log. A leader that was replaced, and does not know it, lacks
    /// what was appended at the new leader. So another broker has to confirm the leader first.
    async fn out_of_range(&self, partition: u32, leader: Leader, from: i64) -> FetchError {
        self.cluster.report_leader_failure(&self.name, partition, leader);
        let ends = async {
            Ok::<_, Failure>((self.end_offset(partition, EARLIEST).await?, self.end_offset(partition, LATEST).await?))
        };
        match ends.await {
            Err(error) => FetchError::Unavailable(error.to_string()),
            Ok((earliest, latest)) if (earliest..=latest).contains(&from) => FetchError::Unavailable(format!(
                "partition {partition} has another leader now, and that one has offset {from}"
            )),
            Ok((earliest, latest)) => FetchError::OutOfRange { from, earliest, latest },
        }
    }

    /// The leader of the partition. Fails if the topic was recreated since it was opened.
    async fn leader(&self, partition: u32, deadline: Instant) -> Result<Leader, FetchError> {
        let found = self.cluster.leader(&self.name, partition, deadline).await;
        let (leader, topic) = found.map_err(|error| FetchError::Unavailable(error.to_string()))?;
        if !topic.id.is_nil() && is_another_topic(*self.id.get_or_init(|| topic.id), topic.id) {
            return Err(FetchError::TopicRecreated { topic: self.name.clone() });
        }
        Ok(leader)
    }
}
