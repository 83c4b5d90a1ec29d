//! The idempotent producer: one task for each topic, which alone knows what was sent and what became of it.
//!
//! ```text
//!  append(P, records) ─▶ queue of P ─┐ one batch per partition is in flight; later appends form the next batch
//!                                    ▼
//!        batch: producer id, epoch, sequence ─▶ one request per broker, for all partitions that it leads
//!                                    │
//!        acknowledged ◀──────────────┤ every caller gets its offset
//!        certainly not stored ◀──────┤ send the same bytes again: to another leader, or later
//!        no answer, codes 7 and 20 ◀─┘ send the same bytes again; from now on only a success resolves it
//! ```
//!
//! Why idempotence: without it, an append that got no answer could not be sent again without the risk of a duplicate.
//! With it the broker recognizes the repeat by its producer id, epoch and sequence number (`partition_queue.rs`).
//!
//! A batch that reaches its deadline is answered as refused, or as unknown if one of its sendings may have stored it.
//! Its bytes are never sent again after that, because its callers may send their events again themselves.

mod outcome;
mod partition_queue;
mod task;

use self::partition_queue::{APPEND_MAX, AppendResult, PendingAppend};
use self::task::ProducerTask;
use crate::core::event::Record;
use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::Cluster;
use crate::limits::{RECORD_FRAMING_BYTES_MAX, WRITE_OVERHEAD_BYTES, WRITE_QUEUE_BYTES_MAX, WRITE_QUEUE_ENTRIES_MAX};
use crate::vital::{self, Lost, Vital};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

pub(super) use self::task::PRODUCE_REQUEST_BYTES_MAX;

/// The handle of a topic's producer task. When it is dropped, the task stops at once; appends in flight are then
/// unknown.
#[derive(Debug)]
pub(super) struct Producer {
    inbox: mpsc::Sender<PendingAppend>,
    /// One permit for each byte that may wait: back-pressure instead of growth.
    memory: Arc<Semaphore>,
    task: AbortHandle,
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Producer {
    /// Starts the task. If the task ends because of a defect, `lost` gets the reason, and the process ends: nothing
    /// could be appended to the topic any more.
    pub(super) fn start(cluster: Arc<Cluster>, topic: String, batch_bytes_max: Arc<AtomicUsize>, lost: Lost) -> Self {
        let (inbox, messages) = mpsc::channel(WRITE_QUEUE_ENTRIES_MAX);
        let vital = Vital::new(format!("the producer of topic {topic:?}"), lost.clone());
        let producer = ProducerTask::new(cluster, topic, batch_bytes_max);
        let task = tokio::spawn(async move {
            let _vital = vital;
            if let Err(reason) = producer.run(messages).await {
                vital::lose(&lost, reason);
            }
        });
        let task = task.abort_handle();
        Self { inbox, memory: Arc::new(Semaphore::new(WRITE_QUEUE_BYTES_MAX)), task }
    }

    /// Appends the records to the partition and returns the offset of the first one, within [`APPEND_MAX`].
    pub(super) async fn append(&self, partition: u32, records: Vec<Record>) -> AppendResult {
        let deadline = Instant::now() + APPEND_MAX;
        let bytes: usize = records.iter().map(|record| record.size_bytes() + RECORD_FRAMING_BYTES_MAX).sum();
        // An append that is larger than the whole memory waits until it is alone, instead of waiting for ever.
        let permits = (bytes + WRITE_OVERHEAD_BYTES).min(WRITE_QUEUE_BYTES_MAX) as u32;
        let (reply, answer) = oneshot::channel();
        let enqueue = async {
            let permit = Arc::clone(&self.memory).acquire_many_owned(permits).await.ok()?;
            self.inbox.send(PendingAppend { partition, records, bytes, deadline, reply, permit }).await.ok()
        };
        match timeout_at(deadline, enqueue).await {
            Ok(Some(())) => {}
            Ok(None) => return Err(Failure::refused(FailureCode::LogUnavailable, "the producer has stopped")),
            Err(_) => {
                let detail = "too many appends are waiting for the brokers: try again later";
                return Err(Failure::refused(FailureCode::LogBusy, detail));
            }
        }
        let stopped = || Failure::unknown(FailureCode::LogUnavailable, "the producer stopped before it had an answer");
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::Certainty;
    use crate::net::BrokerSettings;

    #[tokio::test]
    async fn a_producer_that_panics_ends_the_process_instead_of_refusing_for_ever() {
        let (losing, lost) = tokio::sync::watch::channel(None);
        let cluster = Arc::new(Cluster::new(BrokerSettings::plain(vec!["127.0.0.1:1".into()])));
        let producer = Producer::start(cluster, "t".into(), Arc::new(AtomicUsize::new(1_000)), losing);
        let record = Record::new(Some(b"user"), Some(b"1"), &[], 0);
        let failure = producer.append(task::PANIC_PARTITION, vec![record]).await.unwrap_err();
        assert_eq!(failure.certainty, Certainty::Unknown, "its batch may have been in flight");
        assert_eq!(vital::lost(lost).await, "the producer of topic \"t\" panicked");
    }
}
