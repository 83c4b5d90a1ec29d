//! What is appended to one partition, and what is known of the batch that is under way: pure, told of answers and of the
//! time.

use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::kafka::batch::{self, ProducerState};
use crate::kafka::{describe, refusal};
use crate::limits::{APPEND_MAX, RESEND_BACKOFF, RESEND_BACKOFF_MAX};
use bytes::Bytes;
use kafka_protocol::ResponseError;
use std::collections::VecDeque;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

pub(super) type AppendResult = Result<i64, Failure>;

/// An append that waits for its answer.
#[derive(Debug)]
pub(super) struct PendingAppend {
    pub(super) partition: u32,
    pub(super) records: Vec<Record>,
    /// What they cost in a batch.
    pub(super) bytes: usize,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<AppendResult>,
    /// Its share of the queue's bytes, given back with the answer.
    pub(super) room: OwnedSemaphorePermit,
}

/// What is appended to one partition.
#[derive(Debug, Default)]
pub(super) struct PartitionQueue {
    pub(super) queue: VecDeque<PendingAppend>,
    pub(super) queued_bytes: usize,
    pub(super) sending: Option<InFlightBatch>,
    /// The account under which the next batch goes; `None`: none yet, or its epochs are used up.
    pub(super) producer: Option<ProducerState>,
    /// A request with the batch is under way.
    pub(super) called: bool,
    pub(super) failures: u32,
    /// Nothing is sent before.
    pub(super) ready_at: Option<Instant>,
}

/// Records that are sent together until something is known of them.
#[derive(Debug)]
pub(super) struct InFlightBatch {
    pub(super) bytes: Bytes,
    pub(super) records: i32,
    /// Who waits for it, and where in the batch their records begin.
    pub(super) callers: Vec<(i64, PendingAppend)>,
    pub(super) deadline: Instant,
    /// A sending of it got no answer: it may be stored.
    pub(super) in_doubt: bool,
    pub(super) last_error: String,
}

/// What a broker's answer says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BatchOutcome {
    Stored {
        base: i64,
    },
    /// Send the same bytes again.
    Again {
        in_doubt: bool,
        look_up: bool,
        why: String,
    },
    /// The broker's account of this producer is not ours: whether the batch is stored is unknown.
    Lost {
        why: String,
    },
    /// More than the topic takes a batch.
    TooLarge {
        why: String,
    },
    /// It will never be taken.
    Refused {
        code: &'static str,
        why: String,
    },
}

impl BatchOutcome {
    pub(super) fn again(in_doubt: bool, look_up: bool, why: String) -> Self {
        Self::Again { in_doubt, look_up, why }
    }
}

pub(super) fn judge(code: i16, base: i64) -> BatchOutcome {
    use ResponseError as E;
    let Some(error) = refusal(code) else { return BatchOutcome::Stored { base } };
    let why = describe(error);
    match error {
        // TopicAnswer before anything is stored.
        E::CorruptMessage | E::ThrottlingQuotaExceeded => BatchOutcome::again(false, false, why),
        // A leader that is cut off from its replicas says no more than this: the others may have another leader by now.
        E::NotEnoughReplicas => BatchOutcome::again(false, true, why),
        // Stored by the leader, and perhaps by others: a new leader may have it or not.
        E::RequestTimedOut | E::NotEnoughReplicasAfterAppend => BatchOutcome::again(true, true, why),
        E::OutOfOrderSequenceNumber
        | E::DuplicateSequenceNumber
        | E::InvalidProducerEpoch
        | E::ProducerFenced
        | E::UnknownProducerId
        | E::InvalidProducerIdMapping => BatchOutcome::Lost { why },
        E::MessageTooLarge | E::RecordListTooLarge => BatchOutcome::TooLarge { why },
        // A leader that is replaced while it waits for the others says no more than that it leads no longer; and what a
        // broker calls unknown may have happened at any time.
        E::UnknownServerError | E::Unknown(_) => BatchOutcome::again(true, true, why),
        error if error.is_retriable() => BatchOutcome::again(true, true, why),
        _ => BatchOutcome::Refused { code: "log-refused", why },
    }
}

impl PartitionQueue {
    /// What waits, as far as it fits one batch; at least the first.
    pub(super) fn next_batch(&mut self, producer: ProducerState, bytes_max: usize, now: Instant) -> InFlightBatch {
        let (mut callers, mut records, mut bytes) = (Vec::new(), 0i64, 0);
        while let Some(waiting) = self.queue.front() {
            if !callers.is_empty() && bytes + waiting.bytes > bytes_max {
                break;
            }
            let Some(waiting) = self.queue.pop_front() else { break };
            bytes += waiting.bytes;
            let first = records;
            records += waiting.records.len() as i64;
            callers.push((first, waiting));
        }
        self.queued_bytes -= bytes;
        let encoded = batch::encode(callers.iter().flat_map(|(_, waiting)| &waiting.records), producer);
        for (_, waiting) in &mut callers {
            waiting.records = Vec::new();
        }
        // One that waited for a broker to come back has a moment for its answer all the same.
        let deadline = callers.iter().map(|(_, waiting)| waiting.deadline).min().unwrap_or(now);
        let deadline = deadline.max(now + RESEND_BACKOFF_MAX);
        InFlightBatch {
            bytes: encoded,
            records: records as i32,
            callers,
            deadline,
            in_doubt: false,
            last_error: String::new(),
        }
    }

    /// Takes in what a broker said of the batch under way. Whether the lane's epochs are used up: see [`PartitionQueue::renew`].
    pub(super) fn apply(&mut self, outcome: BatchOutcome, now: Instant) -> bool {
        let Some(batch) = &mut self.sending else { return false };
        match outcome {
            BatchOutcome::Stored { base } => {
                (self.failures, self.ready_at) = (0, None);
                if let Some(producer) = &mut self.producer {
                    producer.sequence = next_sequence(producer.sequence, batch.records);
                }
                self.answer(|first| Ok(base + first));
                false
            }
            BatchOutcome::Again { in_doubt, why, .. } => {
                batch.in_doubt |= in_doubt;
                batch.last_error = why;
                let delay = RESEND_BACKOFF.saturating_mul(1 << self.failures.min(10)).min(RESEND_BACKOFF_MAX);
                self.failures = self.failures.saturating_add(1);
                self.ready_at = Some(now + delay);
                false
            }
            BatchOutcome::Lost { why } => {
                self.answer(|_| Err(Failure::unknown("log-unavailable", &*why)));
                self.renew()
            }
            // Several records are none of them too large by themselves, as far as anybody knows.
            BatchOutcome::TooLarge { why } if batch.records > 1 => {
                let why = format!("the topic takes less together than it did, try again: {why}");
                self.refused("append-too-large", &why)
            }
            BatchOutcome::TooLarge { why } => {
                self.refused("event-too-large", &format!("the topic takes no event of this size: {why}"))
            }
            BatchOutcome::Refused { code, why } => self.refused(code, &why),
        }
    }

    fn refused(&mut self, code: &'static str, why: &str) -> bool {
        let in_doubt = self.sending.as_ref().is_some_and(|batch| batch.in_doubt);
        self.answer(|_| Err(failure(in_doubt, code, why)));
        self.renew()
    }

    /// Answers the batch under way with what is known of it; nobody waits for the answer to a request that may hold it.
    /// Whether the lane's epochs are used up.
    pub(super) fn give_up(&mut self) -> bool {
        let Some(batch) = &self.sending else { return false };
        let in_doubt = batch.in_doubt || self.called;
        let why = match batch.last_error.as_str() {
            "" => "no answer yet",
            why => why,
        };
        let why = format!("not acknowledged within {APPEND_MAX:?}: {why}");
        self.answer(|_| Err(failure(in_doubt, "log-unavailable", &why)));
        self.renew()
    }

    fn answer(&mut self, with: impl Fn(i64) -> AppendResult) {
        for (first, waiting) in self.sending.take().into_iter().flat_map(|batch| batch.callers) {
            waiting.answer(with(first));
        }
    }

    /// A new epoch behind every batch that was not acknowledged: whatever of the old one is still on its way is shut out
    /// by the first batch of this one, and no sequence number ever stands for two batches. `true`: there
    /// is none left, and the next account needs another id.
    fn renew(&mut self) -> bool {
        self.producer = self.producer.and_then(|producer| {
            let epoch = producer.epoch.checked_add(1)?;
            Some(ProducerState { epoch, sequence: 0, ..producer })
        });
        self.producer.is_none()
    }
}

impl PendingAppend {
    /// Nobody may wait any more: a request was dropped.
    pub(super) fn answer(self, answer: AppendResult) {
        let _ = self.reply.send(answer);
        drop(self.room);
    }
}

fn failure(in_doubt: bool, code: &'static str, why: &str) -> Failure {
    if in_doubt { Failure::unknown(code, why) } else { Failure::refused(code, why) }
}

/// Sequence numbers go around within an `i32`, as Kafka's own producer counts them.
fn next_sequence(sequence: i32, records: i32) -> i32 {
    ((i64::from(sequence) + i64::from(records)) % (i64::from(i32::MAX) + 1)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::Certainty::{self, Refused, Unknown};
    use crate::limits::{APPEND_BYTES_MAX, RECORD_FRAMING_BYTES_MAX};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    fn lane(records: &[usize]) -> (PartitionQueue, Vec<oneshot::Receiver<AppendResult>>) {
        let (mut lane, mut answers) = (PartitionQueue::default(), Vec::new());
        let room = Arc::new(Semaphore::new(1_000));
        for count in records {
            let (reply, answer) = oneshot::channel();
            let records = vec![Record::new(Some(b"user"), Some(b"payload"), &[], 0); *count];
            let bytes = records.iter().map(|record| record.size_bytes() + RECORD_FRAMING_BYTES_MAX).sum();
            let room = Arc::clone(&room).try_acquire_owned().unwrap();
            let deadline = Instant::now() + APPEND_MAX;
            lane.queued_bytes += bytes;
            lane.queue.push_back(PendingAppend { partition: 0, records, bytes, deadline, reply, room });
            answers.push(answer);
        }
        let producer = ProducerState { id: 7, epoch: 0, sequence: 0 };
        lane.producer = Some(producer);
        lane.sending = Some(lane.next_batch(producer, APPEND_BYTES_MAX, Instant::now()));
        (lane, answers)
    }

    fn certainty(answer: &mut oneshot::Receiver<AppendResult>) -> Certainty {
        answer.try_recv().unwrap().unwrap_err().certainty
    }

    #[tokio::test]
    async fn every_caller_of_a_batch_gets_its_own_offset() {
        let (mut lane, mut answers) = lane(&[1, 3, 2]);
        assert!(!lane.apply(judge(0, 100), Instant::now()));
        let offsets: Vec<i64> = answers.iter_mut().map(|answer| answer.try_recv().unwrap().unwrap()).collect();
        assert_eq!(offsets, [100, 101, 104]);
        assert_eq!(lane.producer, Some(ProducerState { id: 7, epoch: 0, sequence: 6 }));
    }

    #[tokio::test]
    async fn a_batch_in_doubt_is_never_said_to_be_refused() {
        // 19: too few replicas; 7: some have it; 10: too large; 29: not allowed.
        for (codes, expected, epoch) in [
            (&[19, 10][..], Refused, 1),
            // A leader that has it, and one that does not yet know whether it has enough replicas.
            (&[6, 19, 10], Unknown, 1),
            (&[-1, 10], Unknown, 1),
            (&[7, 10], Unknown, 1),
            (&[20, 19, 29], Unknown, 1),
            (&[45], Unknown, 1),
            (&[7, 47], Unknown, 1),
        ] {
            let (mut lane, mut answers) = lane(&[1]);
            for code in codes {
                lane.apply(judge(*code, -1), Instant::now());
            }
            assert_eq!(certainty(&mut answers[0]), expected, "{codes:?}");
            assert_eq!(lane.producer, Some(ProducerState { id: 7, epoch, sequence: 0 }), "{codes:?}");
        }
    }

    #[tokio::test]
    async fn a_batch_that_is_given_up_is_unknown_only_after_a_sending_without_an_answer() {
        let lost = |in_doubt| BatchOutcome::again(in_doubt, true, "broke off".into());
        for (in_doubt, expected) in [(false, Refused), (true, Unknown)] {
            let (mut lane, mut answers) = lane(&[1]);
            lane.apply(lost(in_doubt), Instant::now());
            lane.apply(lost(false), Instant::now());
            assert!(!lane.give_up());
            assert_eq!(certainty(&mut answers[0]), expected);
            assert_eq!(lane.producer.unwrap().epoch, 1, "no sequence number stands for two batches");
        }
    }

    #[tokio::test]
    async fn one_record_that_is_too_large_stays_so_and_several_are_worth_another_try() {
        for (records, code) in [(1, "event-too-large"), (3, "append-too-large")] {
            let (mut lane, mut answers) = lane(&[records]);
            lane.apply(judge(10, -1), Instant::now());
            let failure = answers[0].try_recv().unwrap().unwrap_err();
            assert_eq!((failure.certainty, failure.code), (Refused, code));
        }
    }

    #[tokio::test]
    async fn an_account_whose_epochs_are_used_up_asks_for_another_id() {
        let (mut lane, _answers) = lane(&[1]);
        lane.producer = Some(ProducerState { id: 7, epoch: i16::MAX, sequence: 3 });
        assert!(lane.apply(judge(45, -1), Instant::now()));
        assert_eq!(lane.producer, None);
    }

    #[test]
    fn sequence_numbers_go_around() {
        assert_eq!(next_sequence(0, 5), 5);
        assert_eq!(next_sequence(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(next_sequence(i32::MAX, 1), 0);
        assert_eq!(next_sequence(i32::MAX - 1, 5), 3);
    }
}
