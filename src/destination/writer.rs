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

use super::{HandOver, line, none_delivered};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::limits::{WRITE_BYTES_MAX, WRITE_QUEUE_HAND_OVERS_MAX};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

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
    Write(HandOver, oneshot::Sender<Vec<Report>>),
    /// Looks at `reopen` although nothing is to be written.
    Wake,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(sink: impl Sink) -> io::Result<Self> {
        let (queue, messages) = mpsc::channel(WRITE_QUEUE_HAND_OVERS_MAX);
        let reopen = Arc::new(AtomicBool::new(false));
        let rounds = Rounds { sink, messages, reopen: reopen.clone(), waiting: VecDeque::new(), lines: Vec::new() };
        std::thread::Builder::new().name("eventd-writer".into()).spawn(move || rounds.run())?;
        Ok(Self { queue, reopen })
    }

    /// Hands over, and answers by the deadline. One that is not answered until then may be written all the same.
    pub(super) async fn write(&self, hand_over: HandOver) -> Vec<Report> {
        let (runs, deadline) = (hand_over.runs.len(), hand_over.deadline);
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
    hand_over: HandOver,
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
        self.answer.is_closed() || self.hand_over.deadline <= Instant::now()
    }

    fn format(&mut self, lines: &mut Vec<u8>) {
        let HandOver { topic, partition, events, .. } = &self.hand_over;
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
