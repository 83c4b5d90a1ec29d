//! The task of a producer: it puts batches of many partitions into one request for each broker, and applies the answers.

use super::outcome::BatchOutcome;
use super::partition_queue::{APPEND_MAX, PartitionQueue, PendingAppend};
use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::batch::ProducerState;
use crate::kafka::{self, Cluster, Leader, PartitionEpoch, Recipient, describe, response_error, topic_name};
use crate::limits::{BROKER_CALL_MAX, WRITE_BATCH_ENTRIES_MAX};
use crate::log_limiter::LogLimiter;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest, ProduceResponse};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// How often the task asks for leaders and a producer id while it has none.
const PREPARE_INTERVAL: Duration = Duration::from_millis(100);

/// How long one sending of a batch waits for its answer. A healthy broker answers within this time. After it, the batch
/// is sent again over another connection.
const PRODUCE_CALL_MAX: Duration = Duration::from_secs(5);

/// Bytes of one request with batches for several partitions, unless its first batch alone is larger.
pub(in crate::log::kafka) const PRODUCE_REQUEST_BYTES_MAX: usize = 8 * 1024 * 1024;

/// An append to this partition makes the task panic.
#[cfg(test)]
pub(super) const PANIC_PARTITION: u32 = u32::MAX;

/// A request that the task started and that has ended.
enum FinishedCall {
    /// A broker's answer about one batch of each of these partitions.
    Produce { node: i32, partitions: Vec<PartitionEpoch>, answer: Result<ProduceResponse, kafka::Error> },
    /// A producer id if one was missing, and whether a partition's missing leader is known now.
    Prepare { producer_id: Result<Option<i64>, kafka::Error>, leader: Result<(), kafka::Error> },
}

/// Why a broker gets no request at the moment. There is one request per broker at a time, so that what waits meanwhile
/// goes into one larger request.
#[derive(Debug, Clone, Copy)]
enum Busy {
    RequestInFlight,
    /// The broker's quota asks us to send nothing before this time.
    ThrottledUntil(Instant),
}

/// What has to be known before anything can be sent: a producer id, and the leaders of partitions.
struct Preparation {
    /// The id for queues that have none. A queue that has an id keeps it until its epochs are used up.
    producer_id: Option<i64>,
    in_progress: bool,
    /// The next try starts no earlier.
    retry_at: Instant,
    /// Why the last try failed; `None` after a success.
    last_error: Option<String>,
}

/// The state of one topic's producer.
pub(super) struct ProducerTask {
    cluster: Arc<Cluster>,
    topic: String,
    /// Bytes of a batch with several records. An operator may lower the topic's `max.message.bytes` while we run, and
    /// eventd may not be allowed to read it. So each "too large" halves this, and it stays above half of what the topic
    /// takes.
    batch_bytes_max: Arc<AtomicUsize>,
    /// One queue for each partition, by number.
    queues: Vec<PartitionQueue>,
    /// The queue that is looked at first. If a request had no room for a queue, the next round begins with that queue,
    /// so that every queue gets its turn.
    first_queue: usize,
    calls: JoinSet<FinishedCall>,
    /// The brokers that get no request at the moment, by node id.
    busy: HashMap<i32, Busy>,
    preparation: Preparation,
    log_limiter: LogLimiter,
}

impl ProducerTask {
    pub(super) fn new(cluster: Arc<Cluster>, topic: String, batch_bytes_max: Arc<AtomicUsize>) -> Self {
        Self {
            cluster,
            topic,
            batch_bytes_max,
            queues: Vec::new(),
            first_queue: 0,
            calls: JoinSet::new(),
            busy: HashMap::new(),
            preparation: Preparation {
                producer_id: None,
                in_progress: false,
                retry_at: Instant::now(),
                last_error: None,
            },
            log_limiter: LogLimiter::default(),
        }
    }

    /// Appends until the handle is dropped.
    ///
    /// # Errors
    /// A request panicked, which is a defect: what it sent is not known any more.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<PendingAppend>) -> Result<(), String> {
        loop {
            let now = Instant::now();
            self.expire(now);
            self.send(now);
            let wakeup = self.next_wakeup(now);
            // `biased`: answers come first, since they free what new appends wait for.
            tokio::select! {
                biased;
                Some(call) = self.calls.join_next() => match call {
                    Ok(call) => self.apply_call(call, Instant::now()),
                    Err(error) => return Err(format!("a request of topic {:?} panicked: {error}", self.topic)),
                },
                append = inbox.recv() => {
                    let Some(append) = append else { return Ok(()) };
                    self.enqueue(append);
                    // Appends that arrived together go into the same batch.
                    for _ in 1..WRITE_BATCH_ENTRIES_MAX {
                        let Ok(append) = inbox.try_recv() else { break };
                        self.enqueue(append);
                    }
                }
                () = sleep_until(wakeup) => {}
            }
        }
    }

    fn enqueue(&mut self, append: PendingAppend) {
        #[cfg(test)]
        assert!(append.partition != PANIC_PARTITION, "this test wants a panic");
        let place = append.partition as usize;
        if self.queues.len() <= place {
            self.queues.resize_with(place + 1, PartitionQueue::default);
        }
        self.queues[place].push(append);
    }

    /// Answers every append whose deadline has passed.
    fn expire(&mut self, now: Instant) {
        for queue in &mut self.queues {
            if queue.in_flight.as_ref().is_some_and(|batch| batch.deadline <= now) && queue.expire_batch() {
                self.preparation.producer_id = None;
            }
            for append in queue.take_expired(now) {
                let reason = self.preparation.last_error.as_deref().unwrap_or("earlier appends are still in flight");
                let detail = format!("not sent within {APPEND_MAX:?}: {reason}");
                append.answer(Err(Failure::refused(FailureCode::LogUnavailable, detail)));
            }
        }
    }

    fn next_wakeup(&self, now: Instant) -> Instant {
        let queues = self.queues.iter().filter_map(|queue| queue.next_wakeup(now));
        let throttled = self.busy.values().filter_map(|busy| match busy {
            Busy::ThrottledUntil(until) => Some(*until),
            Busy::RequestInFlight => None,
        });
        let preparation = &self.preparation;
        let prepare = (!preparation.in_progress).then_some(preparation.retry_at).filter(|at| *at > now);
        queues.chain(throttled).chain(prepare).min().unwrap_or(now + APPEND_MAX)
    }

    /// Sends every batch that may be sent now: one request to each broker that is not busy.
    fn send(&mut self, now: Instant) {
        self.busy.retain(|_, busy| match busy {
            Busy::RequestInFlight => true,
            Busy::ThrottledUntil(until) => *until > now,
        });
        let mut requests: BTreeMap<i32, (usize, Vec<PartitionEpoch>)> = BTreeMap::new();
        let mut unprepared = None;
        let count = self.queues.len();
        let mut left_out = None;
        let batch_bytes_max = self.batch_bytes_max.load(Ordering::Relaxed);
        for place in (0..count).map(|step| (self.first_queue + step) % count) {
            let (queue, partition) = (&mut self.queues[place], place as u32);
            let is_empty = queue.in_flight.is_none() && queue.waiting.is_empty();
            if is_empty || queue.request_in_flight || queue.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            if queue.producer.is_none() {
                queue.producer = self.preparation.producer_id.map(|id| ProducerState { id, epoch: 0, sequence: 0 });
            }
            let leader = self.cluster.cached_leader(&self.topic, partition);
            let (Some(leader), Some(producer)) = (leader, queue.producer) else {
                unprepared.get_or_insert(partition);
                continue;
            };
            if self.busy.contains_key(&leader.node) {
                continue;
            }
            let (bytes, partitions) = requests.entry(leader.node).or_default();
            let batch = queue.in_flight.as_ref();
            let size = batch.map_or(queue.waiting_bytes.min(batch_bytes_max), |batch| batch.bytes.len());
            if !partitions.is_empty() && *bytes + size > PRODUCE_REQUEST_BYTES_MAX {
                left_out.get_or_insert(place);
                continue;
            }
            if queue.in_flight.is_none() {
                queue.start_batch(producer, batch_bytes_max, now);
            }
            *bytes += size;
            partitions.push(PartitionEpoch { partition, epoch: leader.epoch });
        }
        self.first_queue = left_out.unwrap_or(self.first_queue);
        for (node, (_, partitions)) in requests {
            self.produce(node, partitions, now);
        }
        if let Some(partition) = unprepared
            && !self.preparation.in_progress
            && self.preparation.retry_at <= now
        {
            self.prepare(partition, now);
        }
    }

    /// Starts one request with the batches of these partitions.
    fn produce(&mut self, node: i32, partitions: Vec<PartitionEpoch>, now: Instant) {
        let mut data = Vec::with_capacity(partitions.len());
        for PartitionEpoch { partition, .. } in &partitions {
            if let Some(queue) = self.queues.get_mut(*partition as usize)
                && let Some(batch) = &queue.in_flight
            {
                let records = PartitionProduceData::default().with_index(*partition as i32);
                data.push(records.with_records(Some(batch.bytes.clone())));
                queue.request_in_flight = true;
            }
        }
        // The broker waits this long for its replicas. It has to be less than our own wait for the broker: else we
        // would give up on an answer that the broker is just about to send.
        let replica_wait = PRODUCE_CALL_MAX / 5 * 4;
        let data = TopicProduceData::default().with_name(topic_name(&self.topic)).with_partition_data(data);
        let request = ProduceRequest::default()
            .with_transactional_id(None)
            // -1: all in-sync replicas.
            .with_acks(-1)
            .with_timeout_ms(i32::try_from(replica_wait.as_millis()).unwrap_or(i32::MAX))
            .with_topic_data(vec![data]);
        let (cluster, topic) = (Arc::clone(&self.cluster), self.topic.clone());
        self.busy.insert(node, Busy::RequestInFlight);
        self.calls.spawn(async move {
            let answer = cluster.call_leader(&topic, node, &partitions, &request, now + PRODUCE_CALL_MAX).await;
            FinishedCall::Produce { node, partitions, answer }
        });
    }

    /// Asks for a producer id if there is none, and for the leader of a partition that has none. Partitions whose
    /// leaders are known do not wait for this.
    fn prepare(&mut self, partition: u32, now: Instant) {
        self.preparation.in_progress = true;
        let needs_id = self.preparation.producer_id.is_none();
        let (cluster, topic) = (Arc::clone(&self.cluster), self.topic.clone());
        self.calls.spawn(async move {
            let deadline = now + BROKER_CALL_MAX;
            let producer_id = if needs_id { new_producer_id(&cluster, deadline).await.map(Some) } else { Ok(None) };
            let leader = cluster.leader(&topic, partition, deadline).await.map(drop);
            FinishedCall::Prepare { producer_id, leader }
        });
    }

    fn apply_call(&mut self, call: FinishedCall, now: Instant) {
        match call {
            FinishedCall::Prepare { producer_id, leader } => self.apply_preparation(producer_id, leader, now),
            FinishedCall::Produce { node, partitions, answer } => {
                let throttle_ms = answer.as_ref().map_or(0, |answer| answer.throttle_time_ms);
                let throttle = Duration::from_millis(throttle_ms.unsigned_abs().into()).min(APPEND_MAX);
                match throttle.is_zero() {
                    true => self.busy.remove(&node),
                    false => self.busy.insert(node, Busy::ThrottledUntil(now + throttle)),
                };
                self.apply_answer(node, &partitions, answer, now);
            }
        }
    }

    fn apply_preparation(
        &mut self,
        producer_id: Result<Option<i64>, kafka::Error>,
        leader: Result<(), kafka::Error>,
        now: Instant,
    ) {
        self.preparation.in_progress = false;
        self.preparation.retry_at = now + PREPARE_INTERVAL;
        if let Ok(Some(id)) = producer_id {
            self.preparation.producer_id = Some(id);
        }
        let result = producer_id.and(leader);
        if let Err(error) = &result
            && let Some(suppressed) = self.log_limiter.allows("prepare")
        {
            tracing::warn!(topic = %self.topic, suppressed, "cannot append yet, retrying: {error}");
        }
        self.preparation.last_error = result.err().map(|error| error.to_string());
    }

    fn apply_answer(
        &mut self,
        node: i32,
        partitions: &[PartitionEpoch],
        answer: Result<ProduceResponse, kafka::Error>,
        now: Instant,
    ) {
        let results: HashMap<i32, (i16, i64)> = match &answer {
            Ok(answer) => {
                let results = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
                results.map(|result| (result.index, (result.error_code, result.base_offset))).collect()
            }
            Err(_) => HashMap::new(),
        };
        for PartitionEpoch { partition, epoch } in partitions {
            let Some(queue) = self.queues.get_mut(*partition as usize) else { continue };
            queue.request_in_flight = false;
            let outcome = match (&answer, results.get(&(*partition as i32))) {
                (Ok(_), Some((code, base_offset))) => BatchOutcome::from_code(*code, *base_offset),
                (Ok(_), None) => BatchOutcome::retry(true, true, "the answer leaves this partition out".into()),
                // Only an error that says "never sent" proves that nothing was stored.
                (Err(error), _) => {
                    let may_be_stored = matches!(error, kafka::Error::NoAnswer(_));
                    BatchOutcome::retry(may_be_stored, true, error.to_string())
                }
            };
            if let BatchOutcome::Retry { refresh_leader: true, .. } = &outcome {
                self.cluster.report_leader_failure(&self.topic, *partition, Leader { node, epoch: *epoch });
            }
            if let BatchOutcome::Retry { reason, .. } | BatchOutcome::OutOfSequence { reason } = &outcome
                && let Some(suppressed) = self.log_limiter.allows("append")
            {
                tracing::warn!(topic = %self.topic, partition, suppressed, "an append failed: {reason}");
            }
            if let (BatchOutcome::TooLarge { .. }, Some(batch)) = (&outcome, &queue.in_flight)
                && batch.record_count > 1
            {
                let (topic, refused_bytes) = (&self.topic, batch.bytes.len());
                self.batch_bytes_max.fetch_min(refused_bytes / 2, Ordering::Relaxed);
                tracing::warn!(%topic, refused_bytes, "the topic takes smaller batches than before: halving the batch size");
            }
            if queue.apply(outcome, now) {
                self.preparation.producer_id = None;
            }
        }
    }
}

async fn new_producer_id(cluster: &Cluster, deadline: Instant) -> Result<i64, kafka::Error> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX)
        // -1: the broker assigns a new id at epoch 0.
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let answer = cluster.call(Recipient::Any, &request, deadline).await?;
    match response_error(answer.error_code) {
        None => Ok(answer.producer_id.0),
        // For example, a broker that has just started does not know its coordinator yet. The task asks again.
        Some(error) => Err(kafka::Error::NotSent(format!("no producer id: {}", describe(error)))),
    }
}
