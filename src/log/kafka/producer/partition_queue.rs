//! The appends to one partition: those that wait, and the one batch that is sent. Pure: answers and the time are
//! arguments.
//!
//! # Sequence numbers and epochs
//!
//! A broker remembers, for each producer id and partition, the epoch and the next sequence number that it expects.
//! Three rules keep every record stored at most once:
//!
//! 1. A batch keeps its sequence number for all of its sendings. If the broker has the batch already, it answers with
//!    the offset of the first sending and stores nothing.
//! 2. The sequence number moves forward only when a batch is acknowledged: by the number of its records.
//! 3. After a batch that was *not* acknowledged, the queue starts a new epoch at sequence number 0. The first batch of
//!    the new epoch makes the broker reject everything of the old epoch that is still on its way. Without this, two
//!    different batches could carry the same sequence number, and the broker would drop the second one as a repeat.
//!
//! For example: batch A (epoch 0, sequence 0, 3 records) gets no answer within [`APPEND_MAX`]. Its callers are told
//! *unknown*. Batch B then goes out with epoch 1 and sequence 0. If a late copy of A arrives after B, the broker rejects
//! it, so A can no longer be stored after B.

use super::outcome::BatchOutcome;
use crate::core::event::Record;
use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::batch::{self, ProducerState};
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

/// How long an append is tried before its caller is answered. A leader that dies is replaced after about 9 s. Then the
/// append is refused, or unknown if one of its sendings got no answer.
pub(super) const APPEND_MAX: Duration = Duration::from_secs(12);

/// The wait before a batch is sent again. It doubles with each failure in a row, up to [`RESEND_BACKOFF_MAX`].
const RESEND_BACKOFF: Duration = Duration::from_millis(20);
const RESEND_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The offset of an append's first record, or why there is none.
pub(super) type AppendResult = Result<i64, Failure>;

/// One append whose caller waits for the answer.
#[derive(Debug)]
pub(super) struct PendingAppend {
    pub(super) partition: u32,
    pub(super) records: Vec<Record>,
    /// What the records cost in a batch, framing included.
    pub(super) bytes: usize,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<AppendResult>,
    /// The append's share of the producer's memory. It is returned with the answer.
    pub(super) permit: OwnedSemaphorePermit,
}

impl PendingAppend {
    /// Answers the caller. A caller that has stopped waiting (its request was dropped) is ignored.
    pub(super) fn answer(self, result: AppendResult) {
        let _ = self.reply.send(result);
        drop(self.permit);
    }
}

/// Everything that is appended to one partition.
#[derive(Debug, Default)]
pub(super) struct PartitionQueue {
    pub(super) waiting: VecDeque<PendingAppend>,
    pub(super) waiting_bytes: usize,
    /// The batch that is sent until its outcome is known. One at a time, so batches cannot overtake each other.
    pub(super) in_flight: Option<InFlightBatch>,
    /// Producer id, epoch and sequence number of the next batch. `None`: the queue has no producer id yet, or has used
    /// up the epochs of its id.
    pub(super) producer: Option<ProducerState>,
    /// A request that contains the batch is on its way.
    pub(super) request_in_flight: bool,
    /// Failures in a row, for the backoff.
    failures: u32,
    /// The queue sends nothing before this time (backoff).
    pub(super) retry_at: Option<Instant>,
}

/// Records that are sent together, again and again, until their outcome is known.
#[derive(Debug)]
pub(super) struct InFlightBatch {
    /// The encoded batch. Every sending uses the same bytes, and so the same sequence number.
    pub(super) bytes: Bytes,
    pub(super) record_count: i32,
    /// The appends in the batch, each with the place of its first record.
    callers: Vec<(i64, PendingAppend)>,
    pub(super) deadline: Instant,
    /// One of its sendings ended without a clear answer. From then on only a later success resolves it: no later
    /// refusal can prove that the earlier sending stored nothing.
    may_be_stored: bool,
    last_error: String,
}

impl PartitionQueue {
    pub(super) fn push(&mut self, append: PendingAppend) {
        self.waiting_bytes += append.bytes;
        self.waiting.push_back(append);
    }

    /// Moves waiting appends into a batch: as many as fit into `bytes_max`, and at least one.
    pub(super) fn start_batch(&mut self, producer: ProducerState, bytes_max: usize, now: Instant) {
        let (mut callers, mut record_count, mut bytes) = (Vec::new(), 0i64, 0);
        while let Some(next) = self.waiting.front() {
            if !callers.is_empty() && bytes + next.bytes > bytes_max {
                break;
            }
            let Some(append) = self.waiting.pop_front() else { break };
            bytes += append.bytes;
            let first = record_count;
            record_count += append.records.len() as i64;
            callers.push((first, append));
        }
        self.waiting_bytes -= bytes;
        let encoded = batch::encode(callers.iter().flat_map(|(_, append)| &append.records), producer);
        // The encoded bytes replace the records: both together would hold the memory twice.
        for (_, append) in &mut callers {
            append.records = Vec::new();
        }
        // An append may have waited nearly as long as it may for a leader. Its batch still gets a moment for an answer.
        let deadline = callers.iter().map(|(_, append)| append.deadline).min().unwrap_or(now);
        self.in_flight = Some(InFlightBatch {
            bytes: encoded,
            record_count: record_count as i32,
            callers,
            deadline: deadline.max(now + RESEND_BACKOFF_MAX),
            may_be_stored: false,
            last_error: String::new(),
        });
    }

    /// Applies a broker's answer about the batch in flight. Returns true if the queue has used up the epochs of its
    /// producer id and needs a new id.
    #[must_use]
    pub(super) fn apply(&mut self, outcome: BatchOutcome, now: Instant) -> bool {
        let Some(batch) = &mut self.in_flight else { return false };
        match outcome {
            BatchOutcome::Stored { base_offset } => {
                (self.failures, self.retry_at) = (0, None);
                if let Some(producer) = &mut self.producer {
                    producer.sequence = next_sequence(producer.sequence, batch.record_count);
                }
                self.answer_callers(|first| Ok(base_offset + first));
                false
            }
            BatchOutcome::Retry { may_be_stored, reason, .. } => {
                batch.may_be_stored |= may_be_stored;
                batch.last_error = reason;
                let delay = RESEND_BACKOFF.saturating_mul(1 << self.failures.min(10)).min(RESEND_BACKOFF_MAX);
                self.failures = self.failures.saturating_add(1);
                self.retry_at = Some(now + delay);
                false
            }
            BatchOutcome::OutOfSequence { reason } => {
                self.answer_callers(|_| Err(Failure::unknown(FailureCode::LogUnavailable, &*reason)));
                self.start_next_epoch()
            }
            // No single record is known to be too large: a smaller batch may work.
            BatchOutcome::TooLarge { reason } if batch.record_count > 1 => {
                let detail = format!("the topic's max.message.bytes was lowered, try again: {reason}");
                self.fail(FailureCode::AppendTooLarge, &detail)
            }
            BatchOutcome::TooLarge { reason } => {
                self.fail(FailureCode::EventTooLarge, &format!("the event is larger than the topic takes: {reason}"))
            }
            BatchOutcome::Refused { code, reason } => self.fail(code, &reason),
        }
    }

    /// Answers the callers of a batch that reached its deadline with what is known of it. Returns true if the queue
    /// needs a new producer id, like [`PartitionQueue::apply`].
    #[must_use]
    pub(super) fn expire_batch(&mut self) -> bool {
        let Some(batch) = &mut self.in_flight else { return false };
        // The answer to a request that is still on its way will be ignored, so it may store the batch unnoticed.
        batch.may_be_stored |= self.request_in_flight;
        let reason = match batch.last_error.as_str() {
            "" => "no answer yet",
            reason => reason,
        };
        let detail = format!("not acknowledged within {APPEND_MAX:?}: {reason}");
        self.fail(FailureCode::LogUnavailable, &detail)
    }

    /// Removes the appends that waited until their deadline without being sent. They are certainly not stored.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<PendingAppend> {
        let mut expired = Vec::new();
        while self.waiting.front().is_some_and(|append| append.deadline <= now)
            && let Some(append) = self.waiting.pop_front()
        {
            self.waiting_bytes -= append.bytes;
            expired.push(append);
        }
        expired
    }

    /// When the queue has to be looked at again even if no answer arrives.
    pub(super) fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        let batch = self.in_flight.as_ref().map(|batch| batch.deadline);
        let waiting = self.waiting.front().map(|append| append.deadline);
        [batch, waiting, self.retry_at.filter(|at| *at > now)].into_iter().flatten().min()
    }

    fn fail(&mut self, code: FailureCode, detail: &str) -> bool {
        let may_be_stored = self.in_flight.as_ref().is_some_and(|batch| batch.may_be_stored);
        self.answer_callers(|_| {
            Err(if may_be_stored { Failure::unknown(code, detail) } else { Failure::refused(code, detail) })
        });
        self.start_next_epoch()
    }

    fn answer_callers(&mut self, result: impl Fn(i64) -> AppendResult) {
        for (first, append) in self.in_flight.take().into_iter().flat_map(|batch| batch.callers) {
            append.answer(result(first));
        }
    }

    /// Moves to the next epoch, at sequence number 0: rule 3 of the module's document. Returns true if the producer id
    /// has no epoch left (they are 16 bits), so that the queue needs a new id.
    fn start_next_epoch(&mut self) -> bool {
        self.producer = self.producer.and_then(|producer| {
            let epoch = producer.epoch.checked_add(1)?;
            Some(ProducerState { epoch, sequence: 0, ..producer })
        });
        self.producer.is_none()
    }
}

/// Sequence numbers wrap around from `i32::MAX` to 0, as in Kafka's own producer.
fn next_sequence(sequence: i32, record_count: i32) -> i32 {
    ((i64::from(sequence) + i64::from(record_count)) % (i64::from(i32::MAX) + 1)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::Certainty::{self, Refused, Unknown};
    use crate::limits::{APPEND_BYTES_MAX, RECORD_FRAMING_BYTES_MAX};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    type Answers = Vec<oneshot::Receiver<AppendResult>>;

    /// A queue with one batch in flight, which consists of appends of this many records each.
    fn queue_with_batch(record_counts: &[usize]) -> (PartitionQueue, Answers) {
        let (mut queue, mut answers) = (PartitionQueue::default(), Vec::new());
        let permits = Arc::new(Semaphore::new(1_000));
        for count in record_counts {
            let (reply, answer) = oneshot::channel();
            let records = vec![Record::new(Some(b"user"), Some(b"payload"), &[], 0); *count];
            let bytes = records.iter().map(|record| record.size_bytes() + RECORD_FRAMING_BYTES_MAX).sum();
            let permit = Arc::clone(&permits).try_acquire_owned().unwrap();
            let deadline = Instant::now() + APPEND_MAX;
            queue.push(PendingAppend { partition: 0, records, bytes, deadline, reply, permit });
            answers.push(answer);
        }
        let producer = ProducerState { id: 7, epoch: 0, sequence: 0 };
        queue.producer = Some(producer);
        queue.start_batch(producer, APPEND_BYTES_MAX, Instant::now());
        (queue, answers)
    }

    fn apply_code(queue: &mut PartitionQueue, code: i16, base_offset: i64) -> bool {
        queue.apply(BatchOutcome::from_code(code, base_offset), Instant::now())
    }

    fn certainty(answer: &mut oneshot::Receiver<AppendResult>) -> Certainty {
        answer.try_recv().unwrap().unwrap_err().certainty
    }

    #[tokio::test]
    async fn every_caller_of_a_batch_gets_its_own_offset() {
        let (mut queue, mut answers) = queue_with_batch(&[1, 3, 2]);
        assert!(!apply_code(&mut queue, 0, 100));
        let offsets: Vec<i64> = answers.iter_mut().map(|answer| answer.try_recv().unwrap().unwrap()).collect();
        assert_eq!(offsets, [100, 101, 104]);
        assert_eq!(queue.producer, Some(ProducerState { id: 7, epoch: 0, sequence: 6 }));
    }

    #[tokio::test]
    async fn a_batch_that_may_be_stored_is_never_reported_as_refused() {
        // 6: not the leader; 7: request timed out; 10: message too large; 19: not enough replicas; 20: not enough
        // replicas after append; 29: not authorized; 45: out of order sequence number; 47: invalid producer epoch.
        for (codes, expected, epoch) in [
            (&[19, 10][..], Refused, 1),
            (&[6, 19, 10], Unknown, 1),
            (&[-1, 10], Unknown, 1),
            (&[7, 10], Unknown, 1),
            (&[20, 19, 29], Unknown, 1),
            (&[45], Unknown, 1),
            (&[7, 47], Unknown, 1),
        ] {
            let (mut queue, mut answers) = queue_with_batch(&[1]);
            for code in codes {
                assert!(!apply_code(&mut queue, *code, -1));
            }
            assert_eq!(certainty(&mut answers[0]), expected, "{codes:?}");
            assert_eq!(queue.producer, Some(ProducerState { id: 7, epoch, sequence: 0 }), "{codes:?}");
        }
    }

    #[tokio::test]
    async fn an_expired_batch_is_unknown_only_if_a_sending_got_no_answer() {
        let retry = |may_be_stored| BatchOutcome::retry(may_be_stored, true, "connection closed".into());
        for (may_be_stored, expected) in [(false, Refused), (true, Unknown)] {
            let (mut queue, mut answers) = queue_with_batch(&[1]);
            assert!(!queue.apply(retry(may_be_stored), Instant::now()));
            assert!(!queue.apply(retry(false), Instant::now()));
            assert!(!queue.expire_batch());
            assert_eq!(certainty(&mut answers[0]), expected);
            assert_eq!(queue.producer.unwrap().epoch, 1, "no two batches share a sequence number");
        }
    }

    #[tokio::test]
    async fn one_record_that_is_too_large_stays_too_large_and_several_may_be_tried_again() {
        for (record_count, code) in [(1, FailureCode::EventTooLarge), (3, FailureCode::AppendTooLarge)] {
            let (mut queue, mut answers) = queue_with_batch(&[record_count]);
            assert!(!apply_code(&mut queue, 10, -1));
            let failure = answers[0].try_recv().unwrap().unwrap_err();
            assert_eq!((failure.certainty, failure.code), (Refused, code));
        }
    }

    #[tokio::test]
    async fn a_queue_that_has_used_up_its_epochs_asks_for_a_new_producer_id() {
        let (mut queue, _answers) = queue_with_batch(&[1]);
        queue.producer = Some(ProducerState { id: 7, epoch: i16::MAX, sequence: 3 });
        assert!(apply_code(&mut queue, 45, -1));
        assert_eq!(queue.producer, None);
    }

    #[test]
    fn sequence_numbers_wrap_around() {
        assert_eq!(next_sequence(0, 5), 5);
        assert_eq!(next_sequence(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(next_sequence(i32::MAX, 1), 0);
        assert_eq!(next_sequence(i32::MAX - 1, 5), 3);
    }
}
