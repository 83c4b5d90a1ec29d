//! The idempotent append: one task a topic, that alone knows what was sent and what is known of it.
//!
//! ```text
//!  append(P, records) ─▶ queue of P ─┐ one batch a partition is under way; what comes meanwhile is the next one
//!                                    ▼
//!              batch: producer id, epoch, sequence ─▶ one request a broker, for all partitions that it leads
//!                                    │
//!        acknowledged ◀──────────────┤ every caller gets its offset
//!        surely not stored ◀─────────┤ the same bytes again: another leader, more replicas, later
//!        no answer, codes 7 and 20 ◀─┘ the same bytes again, and from now on only success ends the doubt
//! ```
//!
//! A batch that reaches its deadline is given up: refused, or unknown where it is in doubt. The next batch behind a
//! doubt begins a new epoch of that partition, with which the broker shuts out whatever of the old one is still on its
//! way; nothing is sent any more whose caller was answered.

mod partition_queue;

use self::partition_queue::{AppendResult, BatchOutcome, PartitionQueue, PendingAppend, judge};
use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::kafka::batch::ProducerState;
use crate::kafka::{self, Cluster, Leader, PartitionEpoch, Recipient, describe, refusal, topic_name};
use crate::limits::{
    APPEND_MAX, BROKER_CALL_MAX, PRODUCE_CALL_MAX, PRODUCE_REQUEST_BYTES_MAX, RECORD_FRAMING_BYTES_MAX,
    WRITE_BATCH_ENTRIES_MAX, WRITE_OVERHEAD_BYTES, WRITE_QUEUE_BYTES_MAX, WRITE_QUEUE_ENTRIES_MAX,
};
use crate::log_limiter::LogLimiter;
use crate::vital::{self, Lost, Vital};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{InitProducerIdRequest, ProduceRequest, ProduceResponse};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How often leaders and a producer id are asked for, while there is none.
const PREPARE_INTERVAL: Duration = Duration::from_millis(100);

/// The way to a topic's appender. Dropped, it stops at once; what is under way is then unknown.
#[derive(Debug)]
pub(super) struct Producer {
    inbox: mpsc::Sender<PendingAppend>,
    room: Arc<Semaphore>,
    task: AbortHandle,
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Producer {
    /// Starts the task. If it ends by a defect, `lost` says so: nothing is appended to the topic any more.
    pub(super) fn start(cluster: Arc<Cluster>, topic: String, batch_bytes_max: Arc<AtomicUsize>, lost: Lost) -> Self {
        let (inbox, messages) = mpsc::channel(WRITE_QUEUE_ENTRIES_MAX);
        let driver = ProducerTask {
            cluster,
            topic,
            batch_bytes_max,
            producer_id: None,
            lanes: Vec::new(),
            turn: 0,
            calls: JoinSet::new(),
            paused: HashMap::new(),
            preparing: false,
            prepare_at: Instant::now(),
            blocked_by: String::new(),
            log_limiter: LogLimiter::default(),
        };
        let vital = Vital::new(format!("the appender of topic {:?}", driver.topic), lost.clone());
        let task = tokio::spawn(async move {
            let _vital = vital;
            if let Err(why) = driver.run(messages).await {
                vital::lose(&lost, why);
            }
        });
        let task = task.abort_handle();
        Self { inbox, room: Arc::new(Semaphore::new(WRITE_QUEUE_BYTES_MAX)), task }
    }

    pub(super) async fn append(&self, partition: u32, records: Vec<Record>) -> AppendResult {
        let deadline = Instant::now() + APPEND_MAX;
        let bytes: usize = records.iter().map(|record| record.size_bytes() + RECORD_FRAMING_BYTES_MAX).sum();
        let held = (bytes + WRITE_OVERHEAD_BYTES).min(WRITE_QUEUE_BYTES_MAX) as u32;
        let (reply, answer) = oneshot::channel();
        let enter = async {
            let room = Arc::clone(&self.room).acquire_many_owned(held).await.ok()?;
            self.inbox.send(PendingAppend { partition, records, bytes, deadline, reply, room }).await.ok()
        };
        match timeout_at(deadline, enter).await {
            Ok(Some(())) => {}
            Ok(None) => return Err(Failure::refused("log-unavailable", "the log's appender has stopped")),
            Err(_) => {
                let detail = "too many appends are waiting for the brokers: try again later";
                return Err(Failure::refused("log-busy", detail));
            }
        }
        answer.await.unwrap_or_else(|_| Err(Failure::unknown("log-unavailable", "the log's appender broke off")))
    }
}

/// What ran outside and came back.
enum FinishedCall {
    /// A broker's answer about one batch of each of these partitions.
    Produced { node: i32, partitions: Vec<PartitionEpoch>, answer: Result<ProduceResponse, kafka::Error> },
    /// A producer id if there was none, and the leader of a partition that had none.
    Prepared { producer_id: Result<Option<i64>, kafka::Error>, leader: Result<(), kafka::Error> },
}

struct ProducerTask {
    cluster: Arc<Cluster>,
    topic: String,
    /// Bytes of a batch of several records. A topic may be told to take less while we run, and not everybody may read
    /// its settings: each refusal halves it, so it stays above half of what the topic takes.
    batch_bytes_max: Arc<AtomicUsize>,
    /// For lanes that begin; those that have an account keep it.
    producer_id: Option<i64>,
    /// By partition.
    lanes: Vec<PartitionQueue>,
    /// The lane that is looked at first: where all do not fit one request, it is another one each time.
    turn: usize,
    calls: JoinSet<FinishedCall>,
    /// Brokers with a request under way (`None`), or that asked for a pause.
    paused: HashMap<i32, Option<Instant>>,
    /// Leaders, or a producer id, are being asked for.
    preparing: bool,
    prepare_at: Instant,
    /// Why that failed last.
    blocked_by: String,
    log_limiter: LogLimiter,
}

impl ProducerTask {
    /// Appends until the last sender is dropped. An error is a defect.
    async fn run(mut self, mut inbox: mpsc::Receiver<PendingAppend>) -> Result<(), String> {
        loop {
            let now = Instant::now();
            self.give_up_what_is_late(now);
            self.send(now);
            let next = self.next_wakeup(now);
            tokio::select! {
                biased;
                Some(called) = self.calls.join_next() => match called {
                    Ok(called) => self.called(called, Instant::now()),
                    // Nobody knows any more what is under way.
                    Err(error) => return Err(format!("a request of topic {:?} panicked: {error}", self.topic)),
                },
                waiting = inbox.recv() => {
                    let Some(waiting) = waiting else { return Ok(()) };
                    self.enqueue(waiting);
                    for _ in 1..WRITE_BATCH_ENTRIES_MAX {
                        let Ok(waiting) = inbox.try_recv() else { break };
                        self.enqueue(waiting);
                    }
                }
                () = sleep_until(next) => {}
            }
        }
    }

    fn enqueue(&mut self, waiting: PendingAppend) {
        #[cfg(test)]
        assert!(waiting.partition != tests::PANICS, "on purpose");
        let place = waiting.partition as usize;
        if self.lanes.len() <= place {
            self.lanes.resize_with(place + 1, PartitionQueue::default);
        }
        let lane = &mut self.lanes[place];
        lane.queued_bytes += waiting.bytes;
        lane.queue.push_back(waiting);
    }

    /// Answers those that waited as long as they may.
    fn give_up_what_is_late(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            if lane.sending.as_ref().is_some_and(|batch| batch.deadline <= now) && lane.give_up() {
                self.producer_id = None;
            }
            while lane.queue.front().is_some_and(|waiting| waiting.deadline <= now)
                && let Some(waiting) = lane.queue.pop_front()
            {
                lane.queued_bytes -= waiting.bytes;
                let why = match self.blocked_by.as_str() {
                    "" => "others are before it",
                    why => why,
                };
                let detail = format!("not sent within {APPEND_MAX:?}: {why}");
                waiting.answer(Err(Failure::refused("log-unavailable", detail)));
            }
        }
    }

    fn next_wakeup(&self, now: Instant) -> Instant {
        let lanes = self.lanes.iter().flat_map(|lane| {
            let deadline = lane.sending.as_ref().map(|batch| batch.deadline);
            let queued = lane.queue.front().map(|waiting| waiting.deadline);
            [deadline, queued, lane.ready_at.filter(|at| *at > now)]
        });
        let pauses = self.paused.values().copied();
        let prepare = (!self.preparing).then_some(self.prepare_at).filter(|at| *at > now);
        let next = lanes.chain(pauses).flatten().chain(prepare).min();
        next.unwrap_or(now + APPEND_MAX)
    }

    /// Sends what can be sent: one request to each broker that has none under way.
    fn send(&mut self, now: Instant) {
        self.paused.retain(|_, until| until.is_none_or(|until| until > now));
        let mut requests: BTreeMap<i32, (usize, Vec<PartitionEpoch>)> = BTreeMap::new();
        let mut unprepared = None;
        let count = self.lanes.len();
        let mut left_out = None;
        let batch_bytes_max = self.batch_bytes_max.load(Ordering::Relaxed);
        for place in (0..count).map(|step| (self.turn + step) % count) {
            let (lane, partition) = (&mut self.lanes[place], place as u32);
            let idle = lane.sending.is_none() && lane.queue.is_empty();
            if idle || lane.called || lane.ready_at.is_some_and(|at| at > now) {
                continue;
            }
            if lane.producer.is_none() {
                lane.producer = self.producer_id.map(|id| ProducerState { id, epoch: 0, sequence: 0 });
            }
            let leader = self.cluster.cached_leader(&self.topic, partition);
            let (Some(leader), Some(producer)) = (leader, lane.producer) else {
                unprepared.get_or_insert(partition);
                continue;
            };
            if self.paused.contains_key(&leader.node) {
                continue;
            }
            let (bytes, partitions) = requests.entry(leader.node).or_default();
            let size = lane.sending.as_ref().map_or(lane.queued_bytes.min(batch_bytes_max), |batch| batch.bytes.len());
            if !partitions.is_empty() && *bytes + size > PRODUCE_REQUEST_BYTES_MAX {
                left_out.get_or_insert(place);
                continue;
            }
            if lane.sending.is_none() {
                lane.sending = Some(lane.next_batch(producer, batch_bytes_max, now));
            }
            *bytes += size;
            partitions.push(PartitionEpoch { partition, epoch: leader.epoch });
        }
        self.turn = left_out.unwrap_or(self.turn);
        for (node, (_, partitions)) in requests {
            self.produce(node, partitions, now);
        }
        if let Some(partition) = unprepared
            && !self.preparing
            && self.prepare_at <= now
        {
            self.prepare(partition, now);
        }
    }

    fn produce(&mut self, node: i32, partitions: Vec<PartitionEpoch>, now: Instant) {
        let mut data = Vec::with_capacity(partitions.len());
        for PartitionEpoch { partition, .. } in &partitions {
            if let Some(lane) = self.lanes.get_mut(*partition as usize)
                && let Some(batch) = &lane.sending
            {
                let records = PartitionProduceData::default().with_index(*partition as i32);
                data.push(records.with_records(Some(batch.bytes.clone())));
                lane.called = true;
            }
        }
        // The broker's own wait for the other replicas ends before ours for the broker.
        let patience = PRODUCE_CALL_MAX / 5 * 4;
        let data = TopicProduceData::default().with_name(topic_name(&self.topic)).with_partition_data(data);
        let request = ProduceRequest::default()
            .with_transactional_id(None)
            .with_acks(-1)
            .with_timeout_ms(i32::try_from(patience.as_millis()).unwrap_or(i32::MAX))
            .with_topic_data(vec![data]);
        let (cluster, topic) = (Arc::clone(&self.cluster), self.topic.clone());
        self.paused.insert(node, None);
        self.calls.spawn(async move {
            let answer = cluster.call_leader(&topic, node, &partitions, &request, now + PRODUCE_CALL_MAX).await;
            FinishedCall::Produced { node, partitions, answer }
        });
    }

    /// Asks for a producer id if there is none, and for the leader of a partition that has none. What is known of the
    /// other partitions stays known, so their batches do not wait for it.
    fn prepare(&mut self, partition: u32, now: Instant) {
        self.preparing = true;
        let (cluster, topic, needs_id) = (Arc::clone(&self.cluster), self.topic.clone(), self.producer_id.is_none());
        self.calls.spawn(async move {
            let deadline = now + BROKER_CALL_MAX;
            let producer_id = if needs_id { new_producer_id(&cluster, deadline).await.map(Some) } else { Ok(None) };
            let leader = cluster.leader(&topic, partition, deadline).await.map(drop);
            FinishedCall::Prepared { producer_id, leader }
        });
    }

    fn called(&mut self, called: FinishedCall, now: Instant) {
        match called {
            FinishedCall::Prepared { producer_id, leader } => {
                self.preparing = false;
                self.prepare_at = now + PREPARE_INTERVAL;
                if let Ok(Some(id)) = producer_id {
                    self.producer_id = Some(id);
                }
                match producer_id.and(leader) {
                    Ok(()) => self.blocked_by.clear(),
                    Err(error) => {
                        self.blocked_by = error.to_string();
                        if let Some(suppressed) = self.log_limiter.allows("prepare") {
                            tracing::warn!(topic = %self.topic, suppressed, "cannot append, trying again: {error}");
                        }
                    }
                }
            }
            FinishedCall::Produced { node, partitions, answer } => {
                let throttle = answer.as_ref().map_or(0, |answer| answer.throttle_time_ms);
                let pause = Duration::from_millis(throttle.unsigned_abs().into()).min(APPEND_MAX);
                match pause.is_zero() {
                    true => self.paused.remove(&node),
                    false => self.paused.insert(node, Some(now + pause)),
                };
                self.produced(node, &partitions, answer, now);
            }
        }
    }

    fn produced(
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
            let Some(lane) = self.lanes.get_mut(*partition as usize) else { continue };
            lane.called = false;
            let outcome = match (&answer, results.get(&(*partition as i32))) {
                (Ok(_), Some((code, base))) => judge(*code, *base),
                (Ok(_), None) => BatchOutcome::again(true, true, "an answer without this partition".into()),
                (Err(error), _) => {
                    BatchOutcome::again(matches!(error, kafka::Error::NoAnswer(_)), true, error.to_string())
                }
            };
            if let BatchOutcome::Again { look_up: true, .. } = &outcome {
                self.cluster.doubt(&self.topic, *partition, Leader { node, epoch: *epoch });
            }
            if let BatchOutcome::Again { why, .. } | BatchOutcome::Lost { why } = &outcome
                && let Some(suppressed) = self.log_limiter.allows("append")
            {
                tracing::warn!(topic = %self.topic, partition, suppressed, "an append failed: {why}");
            }
            if let (BatchOutcome::TooLarge { .. }, Some(batch)) = (&outcome, &lane.sending)
                && batch.records > 1
            {
                let (topic, refused_bytes) = (&self.topic, batch.bytes.len());
                self.batch_bytes_max.fetch_min(refused_bytes / 2, Ordering::Relaxed);
                tracing::warn!(%topic, refused_bytes, "the topic takes less a batch than it did: sending half of it");
            }
            if lane.apply(outcome, now) {
                self.producer_id = None;
            }
        }
    }
}

async fn new_producer_id(cluster: &Cluster, deadline: Instant) -> Result<i64, kafka::Error> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(i32::MAX)
        .with_producer_id((-1).into())
        .with_producer_epoch(-1);
    let answer = cluster.call(Recipient::Any, &request, deadline).await?;
    match refusal(answer.error_code) {
        None => Ok(answer.producer_id.0),
        // A broker that has just started says so of its coordinator: asked again.
        Some(error) => Err(kafka::Error::NotSent(format!("no producer id: {}", describe(error)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::Certainty;
    use crate::net::BrokerSettings;

    /// An append to this partition makes the task panic.
    pub(super) const PANICS: u32 = u32::MAX;

    #[tokio::test]
    async fn an_appender_that_panics_is_lost_and_does_not_only_refuse_for_ever() {
        let (losing, lost) = tokio::sync::watch::channel(None);
        let cluster = Arc::new(Cluster::new(BrokerSettings::plain(vec!["127.0.0.1:1".into()])));
        let appender = Producer::start(cluster, "t".into(), Arc::new(AtomicUsize::new(1_000)), losing);
        let record = Record::new(Some(b"user"), Some(b"1"), &[], 0);
        let failure = appender.append(PANICS, vec![record]).await.unwrap_err();
        assert_eq!(failure.certainty, Certainty::Unknown, "its batch may have been under way");
        assert_eq!(vital::lost(lost).await, "the appender of topic \"t\" panicked");
    }
}
