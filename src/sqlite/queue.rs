//! The queue to the writer thread. Bounded in entries and in bytes.

use super::operations::Write;
use crate::core::outcome::{Failure, FailureCode};
use crate::limits::{WRITE_OVERHEAD_BYTES, WRITE_QUEUE_BYTES_MAX, WRITE_QUEUE_ENTRIES_MAX};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// How long a write waits for room in the queue before it is refused.
const WRITE_QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);

/// What a write is answered with.
pub(super) type WriteResult = Result<i64, Failure>;

/// A message to the writer thread.
pub(super) enum QueueMessage {
    Write(QueuedWrite),
    /// Look for records that are past their retention.
    Housekeeping,
    /// Write what is in the queue, and end. The sender is dropped when the database is closed.
    Close(oneshot::Sender<()>),
}

/// A write that waits for its transaction.
pub(super) struct QueuedWrite {
    pub(super) write: Write,
    pub(super) reply: oneshot::Sender<WriteResult>,
    /// The share of the queue's bytes that this write takes. Dropped with the answer.
    pub(super) room: OwnedSemaphorePermit,
}

impl QueuedWrite {
    /// The bytes that this write takes of the queue.
    pub(super) fn bytes(&self) -> usize {
        self.room.num_permits()
    }

    pub(super) fn answer(self, result: WriteResult) {
        // If the caller has dropped the future, it does not want the answer.
        let _ = self.reply.send(result);
    }
}

/// The sending side of the queue. The writer thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct WriteQueue {
    messages: mpsc::Sender<QueueMessage>,
    bytes: Arc<Semaphore>,
}

/// Asks the writer for housekeeping, without keeping it alive.
#[derive(Debug)]
pub(super) struct HousekeepingTrigger(mpsc::WeakSender<QueueMessage>);

impl HousekeepingTrigger {
    /// Asks for housekeeping. `false`: the writer has ended. If the queue is full, the next request will do.
    pub(super) fn request(&self) -> bool {
        self.0.upgrade().is_some_and(|messages| {
            !matches!(messages.try_send(QueueMessage::Housekeeping), Err(mpsc::error::TrySendError::Closed(_)))
        })
    }
}

impl WriteQueue {
    /// A queue, and the receiver for the writer.
    pub(super) fn new() -> (Self, mpsc::Receiver<QueueMessage>) {
        let (messages, inbox) = mpsc::channel(WRITE_QUEUE_ENTRIES_MAX);
        (Self { messages, bytes: Arc::new(Semaphore::new(WRITE_QUEUE_BYTES_MAX)) }, inbox)
    }

    /// A queue without a writer. It refuses every write.
    pub(super) fn stopped() -> Self {
        Self::new().0
    }

    /// Queues a write and waits for its answer. `bytes` is the memory that the write takes.
    pub(super) async fn write(&self, write: Write, bytes: usize) -> WriteResult {
        let room = (bytes + WRITE_OVERHEAD_BYTES).min(WRITE_QUEUE_BYTES_MAX) as u32;
        let (reply, answer) = oneshot::channel();
        let enqueue = async {
            let room = Arc::clone(&self.bytes).acquire_many_owned(room).await.map_err(|_| stopped())?;
            self.messages.send(QueueMessage::Write(QueuedWrite { write, reply, room })).await.map_err(|_| stopped())
        };
        tokio::time::timeout(WRITE_QUEUE_WAIT_MAX, enqueue).await.map_err(|_| {
            Failure::refused(FailureCode::LogBusy, "too many writes are waiting for the log: try again later")
        })??;
        // The writer answers every write that it takes. Without an answer it has panicked, perhaps during the commit.
        answer.await.unwrap_or_else(|_| Err(Failure::unknown(FailureCode::LogLost, "the log's writer broke off")))
    }

    /// Waits until everything in the queue is written and the database is closed.
    pub(super) async fn close(&self) {
        let (closing, closed) = oneshot::channel();
        if self.messages.send(QueueMessage::Close(closing)).await.is_ok() {
            // The writer never answers. It drops the sender after its connection.
            let _ = closed.await;
        }
    }

    pub(super) fn housekeeping_trigger(&self) -> HousekeepingTrigger {
        HousekeepingTrigger(self.messages.downgrade())
    }
}

fn stopped() -> Failure {
    Failure::refused(FailureCode::LogLost, "the log's writer has stopped")
}
