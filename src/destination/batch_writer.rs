//! One thread that appends events as lines to one file or stream, for all delivery batches that wait.
//!
//! ```text
//!  deliver ──┐  queue, at most     ┌─────────── round ───────────┐
//!  deliver ──┼─▶ 256 batches ────▶ │ the lines of all that wait, │──▶ each batch is answered once
//!  deliver ──┘                     │ up to 4 MiB ─▶ append, sync │    its last event is synced
//!                                  └─────────────────────────────┘
//! ```
//!
//! Batches share a sync, so neither one busy user nor a million quiet users wait for a sync of their own. Events are
//! written in the order of the queue. If an append fails, no event of its round counts as delivered.

use super::{DeliveryBatch, json_line, none_delivered};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::limits::WRITE_BYTES_MAX;
use crate::vital::{self, Lost};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Batches that wait for one writer. A further batch waits in its own task, until its deadline.
const QUEUED_BATCHES_MAX: usize = 256;

/// The answer to a batch whose events were not written before its deadline.
const NOT_WRITTEN_IN_TIME: &str = "not written within the time of the attempt (--attempt-timeout)";

/// Where the lines go.
pub(super) trait LineSink: Send + 'static {
    /// Stores all lines durably. If it fails, no line counts as stored; the error is text for people.
    fn append(&mut self, lines: &[u8]) -> Result<(), String>;

    /// Opens the file at the path again if it is another file now.
    fn reopen(&mut self) {}
}

/// A handle to the writer's thread. The thread ends when the last handle is dropped and the queue is empty.
#[derive(Debug, Clone)]
pub(super) struct BatchWriter {
    queue: mpsc::Sender<BatchWriterMessage>,
    /// Not a message, because the queue may be full.
    reopen_requested: Arc<AtomicBool>,
}

enum BatchWriterMessage {
    Write(DeliveryBatch, oneshot::Sender<Vec<Report>>),
    /// Wakes a thread without work, so that it sees `reopen_requested`.
    Wake,
}

impl BatchWriter {
    /// Starts the thread. If the thread panics, it stores the reason in `lost`, because nothing is written any more.
    pub(super) fn start(sink: impl LineSink, lost: Lost) -> io::Result<Self> {
        let (queue, messages) = mpsc::channel(QUEUED_BATCHES_MAX);
        let reopen_requested = Arc::new(AtomicBool::new(false));
        let writer_loop = WriterLoop {
            sink,
            messages,
            reopen_requested: reopen_requested.clone(),
            waiting: VecDeque::new(),
            lines: Vec::new(),
        };
        vital::thread("eventd-writer", lost, move || writer_loop.run())?;
        Ok(Self { queue, reopen_requested })
    }

    /// Writes the events of the batch and reports on its runs, by the deadline of the batch. If the deadline passes first,
    /// the events may still be written later.
    pub(super) async fn write(&self, batch: DeliveryBatch) -> Vec<Report> {
        let (runs, deadline) = (batch.runs.len(), batch.deadline.at);
        if batch.events.is_empty() {
            return Vec::new();
        }
        let (answer, reports) = oneshot::channel();
        let written = async {
            self.queue.send(BatchWriterMessage::Write(batch, answer)).await.ok()?;
            reports.await.ok()
        };
        match tokio::time::timeout_at(deadline, written).await {
            Ok(Some(reports)) => reports,
            Ok(None) => none_delivered(runs, Verdict::Unreachable, "the thread that writes the file has stopped"),
            Err(_) => none_delivered(runs, Verdict::Unreachable, NOT_WRITTEN_IN_TIME),
        }
    }

    /// Asks the thread to reopen the sink before its next append.
    pub(super) fn reopen(&self) {
        self.reopen_requested.store(true, Ordering::Release);
        // This fails only if the queue is full, so the thread is awake, or if the thread is gone, so no file is open.
        let _woken = self.queue.try_send(BatchWriterMessage::Wake);
    }
}

impl std::fmt::Debug for BatchWriterMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BatchWriterMessage")
    }
}

/// The state of the writer's thread.
struct WriterLoop<S> {
    sink: S,
    messages: mpsc::Receiver<BatchWriterMessage>,
    reopen_requested: Arc<AtomicBool>,
    /// Batches with lines in this round, and at most one that did not fit into it.
    waiting: VecDeque<QueuedBatch>,
    /// The lines of this round.
    lines: Vec<u8>,
}

struct QueuedBatch {
    batch: DeliveryBatch,
    answer: oneshot::Sender<Vec<Report>>,
    /// Events from the first on whose lines are in this round or an earlier one.
    formatted_events: usize,
    /// Events from the first on that are synced.
    synced_events: usize,
}

impl<S: LineSink> WriterLoop<S> {
    fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match self.messages.blocking_recv() {
                    Some(message) => self.enqueue(message),
                    None => return,
                }
            }
            self.format_round();
            if self.reopen_requested.swap(false, Ordering::AcqRel) {
                self.sink.reopen();
            }
            if !self.lines.is_empty() {
                let appended = self.sink.append(&self.lines);
                self.lines.clear();
                // Without this, one huge event would keep its memory for as long as the process runs.
                self.lines.shrink_to(2 * WRITE_BYTES_MAX);
                self.answer_round(appended);
            }
        }
    }

    fn enqueue(&mut self, message: BatchWriterMessage) {
        if let BatchWriterMessage::Write(batch, answer) = message {
            self.waiting.push_back(QueuedBatch { batch, answer, formatted_events: 0, synced_events: 0 });
        }
    }

    /// Fills the lines of this round from the waiting batches, then from the queue.
    ///
    /// A batch whose time is over is answered without writing. Its partition may have another owner now, which delivers
    /// the same events.
    fn format_round(&mut self) {
        let mut next = 0;
        while self.lines.len() < WRITE_BYTES_MAX {
            if next == self.waiting.len() {
                match self.messages.try_recv() {
                    Ok(message) => self.enqueue(message),
                    Err(_) => return,
                }
                continue;
            }
            if self.waiting[next].is_late() {
                if let Some(late) = self.waiting.remove(next) {
                    late.report_failure(NOT_WRITTEN_IN_TIME);
                }
                continue;
            }
            self.waiting[next].format(&mut self.lines);
            next += 1;
        }
    }

    /// Answers the batches of this round that are complete or have failed. The others stay for the next round.
    fn answer_round(&mut self, appended: Result<(), String>) {
        for mut queued in std::mem::take(&mut self.waiting) {
            match &appended {
                Err(why) if queued.formatted_events > queued.synced_events => queued.report_failure(why),
                Err(_) => self.waiting.push_back(queued),
                Ok(()) => {
                    queued.synced_events = queued.formatted_events;
                    match queued.synced_events == queued.batch.events.len() {
                        true => queued.report_success(),
                        false => self.waiting.push_back(queued),
                    }
                }
            }
        }
    }
}

impl QueuedBatch {
    fn is_late(&self) -> bool {
        self.answer.is_closed() || self.batch.deadline.is_over()
    }

    fn format(&mut self, lines: &mut Vec<u8>) {
        let DeliveryBatch { topic, partition, events, .. } = &self.batch;
        for event in &events[self.formatted_events..] {
            if lines.len() >= WRITE_BYTES_MAX {
                break;
            }
            json_line::append(topic, *partition, event, lines);
            self.formatted_events += 1;
        }
    }

    fn report_success(self) {
        self.report(None);
    }

    /// Reports `Unreachable`, because a failing file is never the fault of an event.
    fn report_failure(self, why: &str) {
        self.report(Some(Failed::new(Verdict::Unreachable, why)));
    }

    fn report(self, failed: Option<Failed>) {
        let reports = self.batch.runs.iter().map(|run| {
            let delivered = self.synced_events.clamp(run.events.start, run.events.end) - run.events.start;
            Report { delivered, failed: failed.clone().filter(|_| delivered < run.events.len()) }
        });
        // The receiver is gone if its deadline has passed.
        let _sent = self.answer.send(reports.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::{Event, Record};
    use crate::destination::Run;
    use std::sync::Mutex;
    use std::time::Duration;
    use tokio::time::Instant;

    /// A sink whose first append waits for the gate to open. The appends with these numbers (from 0) fail.
    struct GatedSink {
        gate: Option<std::sync::mpsc::Receiver<()>>,
        failing: &'static [usize],
        appended: Arc<Mutex<Vec<usize>>>,
    }

    impl LineSink for GatedSink {
        fn append(&mut self, lines: &[u8]) -> Result<(), String> {
            let mut appended = self.appended.lock().unwrap();
            appended.push(lines.iter().filter(|byte| **byte == b'\n').count());
            let number = appended.len() - 1;
            drop(appended);
            if let Some(gate) = self.gate.take() {
                gate.recv().unwrap();
            }
            if self.failing.contains(&number) { Err("disk on fire".into()) } else { Ok(()) }
        }
    }

    /// A writer with a gated sink, the sender that opens the gate, and the number of lines in each append.
    fn gated(failing: &'static [usize]) -> (BatchWriter, std::sync::mpsc::SyncSender<()>, Arc<Mutex<Vec<usize>>>) {
        let (open, gate) = std::sync::mpsc::sync_channel(1);
        let appended = Arc::<Mutex<Vec<usize>>>::default();
        let writer =
            BatchWriter::start(GatedSink { gate: Some(gate), failing, appended: appended.clone() }, Lost::default())
                .unwrap();
        (writer, open, appended)
    }

    /// A batch with runs of these lengths that is due after this time.
    fn batch(runs: &[usize], payload_bytes: usize, time: Duration) -> DeliveryBatch {
        let payload = vec![b'x'; payload_bytes];
        let events: Vec<Event> = (0..runs.iter().sum::<usize>())
            .map(|offset| Event { offset: offset as i64, record: Record::new(None, Some(&payload), &[], 0) })
            .collect();
        let mut start = 0;
        let run = |&len: &usize| {
            start += len;
            Run { events: start - len..start, attempt: 1, after_dead_letter: false }
        };
        let runs = runs.iter().map(run).collect();
        DeliveryBatch { topic: "t".into(), partition: 0, runs, events, deadline: (Instant::now() + time).into() }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "the condition was not met within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_writer_that_panics_is_reported_as_lost_and_not_only_as_unreachable() {
        struct Panicking;
        impl LineSink for Panicking {
            fn append(&mut self, _: &[u8]) -> Result<(), String> {
                panic!("on purpose");
            }
        }
        let lost = Lost::default();
        let writer = BatchWriter::start(Panicking, lost.clone()).unwrap();
        let reports = writer.write(batch(&[1], 10, PATIENCE)).await;
        assert_eq!(reports[0].failed.as_ref().map(|failed| failed.verdict), Some(Verdict::Unreachable));
        assert_eq!(vital::lost(lost.subscribe()).await, "the thread eventd-writer panicked");
    }

    #[tokio::test]
    async fn all_waiting_batches_share_one_append() {
        let (writer, open, appended) = gated(&[]);
        let deliver =
            |writer: BatchWriter| tokio::spawn(async move { writer.write(batch(&[1, 1], 10, PATIENCE)).await });
        let first = deliver(writer.clone());
        until(|| appended.lock().unwrap().len() == 1).await;
        let others: Vec<_> = (0..100).map(|_| deliver(writer.clone())).collect();
        until(|| writer.queue.capacity() == QUEUED_BATCHES_MAX - 100).await;
        open.send(()).unwrap();
        for delivered in std::iter::once(first).chain(others) {
            assert!(delivered.await.unwrap().iter().all(|report| report.failed.is_none()));
        }
        assert_eq!(*appended.lock().unwrap(), [2, 200]);
    }

    #[tokio::test]
    async fn events_that_were_synced_before_a_failed_append_of_the_same_batch_count_as_delivered() {
        // An event has 1 MiB, so an append has 4 events. Runs of 3 end inside appends, and appends end inside runs.
        let (writer, open, appended) = gated(&[1]);
        open.send(()).unwrap();
        let reports = writer.write(batch(&[3, 3, 3], 1024 * 1024, PATIENCE)).await;
        let delivered: Vec<(usize, bool)> = reports.iter().map(|r| (r.delivered, r.failed.is_some())).collect();
        assert_eq!(delivered, [(3, false), (1, true), (0, true)]);
        assert_eq!(reports[1].failed, Some(Failed::new(Verdict::Unreachable, "disk on fire")));
        assert_eq!(*appended.lock().unwrap(), [4, 4], "the events after the failed append were not written");
    }

    #[tokio::test]
    async fn a_batch_that_waits_for_a_hanging_disk_is_answered_in_time_and_never_written() {
        let (writer, open, appended) = gated(&[]);
        let soon = Duration::from_millis(50);
        let hanging = writer.write(batch(&[1], 10, soon));
        let waiting = async {
            until(|| appended.lock().unwrap().len() == 1).await;
            writer.write(batch(&[1, 1], 10, soon)).await
        };
        let (hanging, waiting) = tokio::join!(hanging, waiting);
        for report in hanging.iter().chain(&waiting) {
            assert_eq!(report.failed.as_ref().map(|failed| failed.verdict), Some(Verdict::Unreachable));
        }
        open.send(()).unwrap();
        assert!(writer.write(batch(&[5], 10, PATIENCE)).await[0].failed.is_none());
        assert_eq!(*appended.lock().unwrap(), [1, 5]);
    }
}
