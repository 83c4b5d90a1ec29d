//! One thread that appends lines to one place, for all hand-overs that wait.
//!
//! ```text
//!  deliver ──┐  queue, at most       ┌─────────── round ───────────┐
//!  deliver ──┼─▶ 256 hand-overs ───▶ │ lines of all that wait, up  │──▶ each is answered when its last
//!  deliver ──┘                       │ to 4 MiB ─▶ append + sync   │    event is kept
//!                                    └─────────────────────────────┘
//! ```
//!
//! So the sync is shared: neither a hot user nor a million quiet ones wait for one each. Events are written in the
//! order of the queue, and an append that fails settles nothing of its round.

use super::{DeliveryBatch, line, none_delivered};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::limits::{WRITE_BYTES_MAX, WRITE_QUEUE_HAND_OVERS_MAX};
use crate::vital::{self, Lost};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Where lines go. What `append` is given it keeps durably and whole, or answers with why not (for people); then
/// nothing of it counts.
pub(super) trait Sink: Send + 'static {
    fn append(&mut self, lines: &[u8]) -> Result<(), String>;

    /// What lies at the path may have been moved away.
    fn reopen(&mut self) {}
}

/// The way to the thread. The thread ends when the last of these is gone.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    /// Set apart from the queue, which may be full.
    reopen: Arc<AtomicBool>,
}

enum Message {
    Write(DeliveryBatch, oneshot::Sender<Vec<Report>>),
    /// Looks at `reopen` although nothing is to be written.
    Wake,
}

impl Writer {
    /// Starts the thread. If it panics, `lost` says so: nothing is written any more.
    pub(super) fn start(sink: impl Sink, lost: Lost) -> io::Result<Self> {
        let (queue, messages) = mpsc::channel(WRITE_QUEUE_HAND_OVERS_MAX);
        let reopen = Arc::new(AtomicBool::new(false));
        let rounds = Rounds { sink, messages, reopen: reopen.clone(), waiting: VecDeque::new(), lines: Vec::new() };
        vital::thread("eventd-writer", lost, move || rounds.run())?;
        Ok(Self { queue, reopen })
    }

    /// Hands over, and answers by the deadline. One that is not answered until then may be written all the same.
    pub(super) async fn write(&self, hand_over: DeliveryBatch) -> Vec<Report> {
        let (runs, deadline) = (hand_over.runs.len(), hand_over.deadline.at);
        if hand_over.events.is_empty() {
            return Vec::new();
        }
        let (answer, reports) = oneshot::channel();
        let written = async {
            self.queue.send(Message::Write(hand_over, answer)).await.ok()?;
            reports.await.ok()
        };
        match tokio::time::timeout_at(deadline, written).await {
            Ok(Some(reports)) => reports,
            Ok(None) => none_delivered(runs, Verdict::Unreachable, "the writer of the file has stopped"),
            Err(_) => none_delivered(runs, Verdict::Unreachable, "not written within the time of the attempt"),
        }
    }

    /// Has the sink reopened before it is written to again.
    pub(super) fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
        // A full queue wakes the thread by itself, and a thread that is gone holds nothing open.
        let _woken = self.queue.try_send(Message::Wake);
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Message")
    }
}

struct Rounds<S> {
    sink: S,
    messages: mpsc::Receiver<Message>,
    reopen: Arc<AtomicBool>,
    /// Those of which lines are written in this round, and at most one that did not fit in it.
    waiting: VecDeque<Waiting>,
    lines: Vec<u8>,
}

struct Waiting {
    hand_over: DeliveryBatch,
    answer: oneshot::Sender<Vec<Report>>,
    /// Its events up to here are in the lines of this round; and up to here they are kept.
    formatted: usize,
    kept: usize,
}

impl<S: Sink> Rounds<S> {
    fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match self.messages.blocking_recv() {
                    Some(message) => self.take(message),
                    None => return,
                }
            }
            self.format();
            if self.reopen.swap(false, Ordering::AcqRel) {
                self.sink.reopen();
            }
            if !self.lines.is_empty() {
                let appended = self.sink.append(&self.lines);
                self.lines.clear();
                // One huge event does not hold its memory for ever.
                self.lines.shrink_to(2 * WRITE_BYTES_MAX);
                self.answer(appended);
            }
        }
    }

    fn take(&mut self, message: Message) {
        if let Message::Write(hand_over, answer) = message {
            self.waiting.push_back(Waiting { hand_over, answer, formatted: 0, kept: 0 });
        }
    }

    /// Fills the lines of this round from what waits, then from the queue. Hand-overs that nobody waits for any more
    /// are not begun: their events may be with another owner already.
    fn format(&mut self) {
        let mut at = 0;
        while self.lines.len() < WRITE_BYTES_MAX {
            if at == self.waiting.len() {
                match self.messages.try_recv() {
                    Ok(message) => self.take(message),
                    Err(_) => return,
                }
                continue;
            }
            if self.waiting[at].is_late() {
                if let Some(late) = self.waiting.remove(at) {
                    late.fail("not written within the time of the attempt");
                }
                continue;
            }
            self.waiting[at].format(&mut self.lines);
            at += 1;
        }
    }

    fn answer(&mut self, appended: Result<(), String>) {
        for mut waiting in std::mem::take(&mut self.waiting) {
            match &appended {
                Err(why) if waiting.formatted > waiting.kept => waiting.fail(why),
                Err(_) => self.waiting.push_back(waiting),
                Ok(()) => {
                    waiting.kept = waiting.formatted;
                    match waiting.kept == waiting.hand_over.events.len() {
                        true => waiting.succeed(),
                        false => self.waiting.push_back(waiting),
                    }
                }
            }
        }
    }
}

impl Waiting {
    fn is_late(&self) -> bool {
        self.answer.is_closed() || self.hand_over.deadline.is_over()
    }

    fn format(&mut self, lines: &mut Vec<u8>) {
        let DeliveryBatch { topic, partition, events, .. } = &self.hand_over;
        for event in &events[self.formatted..] {
            if lines.len() >= WRITE_BYTES_MAX {
                break;
            }
            line::append(topic, *partition, event, lines);
            self.formatted += 1;
        }
    }

    fn succeed(self) {
        self.report(None);
    }

    /// A file's failure is never the fault of an event.
    fn fail(self, why: &str) {
        self.report(Some(Failed::new(Verdict::Unreachable, why)));
    }

    fn report(self, failed: Option<Failed>) {
        let reports = self.hand_over.runs.iter().map(|run| {
            let delivered = self.kept.clamp(run.events.start, run.events.end) - run.events.start;
            Report { delivered, failed: failed.clone().filter(|_| delivered < run.events.len()) }
        });
        // Whoever asked may have stopped waiting.
        let _answered = self.answer.send(reports.collect());
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

    /// Waits at the gate before its first append, and fails the appends whose numbers (from 0) are given.
    struct Gated {
        gate: Option<std::sync::mpsc::Receiver<()>>,
        failing: &'static [usize],
        appended: Arc<Mutex<Vec<usize>>>,
    }

    impl Sink for Gated {
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

    type Gate = std::sync::mpsc::SyncSender<()>;

    fn gated(failing: &'static [usize]) -> (Writer, Gate, Arc<Mutex<Vec<usize>>>) {
        let (open, gate) = std::sync::mpsc::sync_channel(1);
        let appended = Arc::<Mutex<Vec<usize>>>::default();
        let writer =
            Writer::start(Gated { gate: Some(gate), failing, appended: appended.clone() }, Lost::default()).unwrap();
        (writer, open, appended)
    }

    fn hand_over(runs: &[usize], payload_bytes: usize, time: Duration) -> DeliveryBatch {
        let payload = vec![b'x'; payload_bytes];
        let events: Vec<Event> = (0..runs.iter().sum::<usize>())
            .map(|offset| Event { offset: offset as i64, record: Record::new(None, Some(&payload), &[], 0) })
            .collect();
        let mut start = 0;
        let run = |&len: &usize| {
            start += len;
            Run { events: start - len..start, attempt: 1, gap: false }
        };
        let runs = runs.iter().map(run).collect();
        DeliveryBatch { topic: "t".into(), partition: 0, runs, events, deadline: (Instant::now() + time).into() }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_writer_that_panics_is_lost_and_not_merely_unreachable() {
        struct Broken;
        impl Sink for Broken {
            fn append(&mut self, _: &[u8]) -> Result<(), String> {
                panic!("on purpose");
            }
        }
        let lost = Lost::default();
        let writer = Writer::start(Broken, lost.clone()).unwrap();
        let reports = writer.write(hand_over(&[1], 10, PATIENCE)).await;
        assert_eq!(reports[0].failed.as_ref().map(|failed| failed.verdict), Some(Verdict::Unreachable));
        assert_eq!(vital::lost(lost.subscribe()).await, "the thread eventd-writer panicked");
    }

    #[tokio::test]
    async fn whatever_waits_shares_one_append() {
        let (writer, open, appended) = gated(&[]);
        let deliver =
            |writer: Writer| tokio::spawn(async move { writer.write(hand_over(&[1, 1], 10, PATIENCE)).await });
        let first = deliver(writer.clone());
        until(|| appended.lock().unwrap().len() == 1).await;
        let others: Vec<_> = (0..100).map(|_| deliver(writer.clone())).collect();
        until(|| writer.queue.capacity() == WRITE_QUEUE_HAND_OVERS_MAX - 100).await;
        open.send(()).unwrap();
        for delivered in std::iter::once(first).chain(others) {
            assert!(delivered.await.unwrap().iter().all(|report| report.failed.is_none()));
        }
        assert_eq!(*appended.lock().unwrap(), [2, 200]);
    }

    #[tokio::test]
    async fn of_a_hand_over_in_several_writes_what_was_kept_before_a_failure_counts() {
        // A mebibyte an event: four events a write, so runs end within writes and writes within runs.
        let (writer, open, appended) = gated(&[1]);
        open.send(()).unwrap();
        let reports = writer.write(hand_over(&[3, 3, 3], 1024 * 1024, PATIENCE)).await;
        let delivered: Vec<(usize, bool)> = reports.iter().map(|r| (r.delivered, r.failed.is_some())).collect();
        assert_eq!(delivered, [(3, false), (1, true), (0, true)]);
        assert_eq!(reports[1].failed, Some(Failed::new(Verdict::Unreachable, "disk on fire")));
        assert_eq!(*appended.lock().unwrap(), [4, 4], "what stands behind a failure is not attempted");
    }

    #[tokio::test]
    async fn who_waits_behind_a_disk_that_hangs_is_answered_in_time_and_never_written() {
        let (writer, open, appended) = gated(&[]);
        let soon = Duration::from_millis(50);
        let hanging = writer.write(hand_over(&[1], 10, soon));
        let behind = async {
            until(|| appended.lock().unwrap().len() == 1).await;
            writer.write(hand_over(&[1, 1], 10, soon)).await
        };
        let (hanging, behind) = tokio::join!(hanging, behind);
        for report in hanging.iter().chain(&behind) {
            assert_eq!(report.failed.as_ref().map(|failed| failed.verdict), Some(Verdict::Unreachable));
        }
        open.send(()).unwrap();
        assert!(writer.write(hand_over(&[5], 10, PATIENCE)).await[0].failed.is_none());
        assert_eq!(*appended.lock().unwrap(), [1, 5]);
    }
}
