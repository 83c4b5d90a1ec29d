//! Standard error. Everything that eventd writes there goes through one queue and one thread, so that a slow or broken
//! reader never stops the process.
//!
//! ```text
//!  log lines, a panic's message, a replay's progress ──▶ queue ──▶ one thread ──▶ standard error
//!                                                   full: lost      write fails: lost
//! ```
//!
//! If the reader has ended, the disk is full or the terminal is closed, a write fails and its line is lost. If the reader
//! is alive but does not read, the thread waits. Meanwhile lines stay in the queue, and when the queue is full, later lines
//! are lost. Lost lines are counted. As soon as a line can be written again, one line tells how many were lost. Lines are
//! written in the order in which they came.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes of lines that wait for the thread. Some tens of thousands of lines fit in, so that lines are only lost if the
/// reader has stopped reading.
pub const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Memory of a waiting line in addition to its bytes.
const LINE_OVERHEAD_BYTES: usize = 32;

/// How long the end of the process waits for lines that are not written yet.
pub const FLUSH_MAX: Duration = Duration::from_secs(1);

/// How often the thread tries to report lost lines while there are no other lines to write.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long the thread waits before it tries again, if standard error is non-blocking and full.
const FULL_INTERVAL: Duration = Duration::from_millis(10);

/// The queue of the process. It is set by [`start`].
static PROCESS: OnceLock<Arc<LineQueue>> = OnceLock::new();

thread_local! {
    /// The lines that the writing thread logs itself. It must not put them into the queue that it empties. `None` on all
    /// other threads.
    static OWN_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Starts the thread. Afterwards [`write()`] does not block. Call this once in a process.
///
/// # Errors
/// The system refuses a thread or a file descriptor, or the thread was started before.
pub fn start() -> io::Result<()> {
    // A descriptor of its own: a write that blocks must not hold the lock of `std::io::stderr`.
    let sink = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::new(LineQueue::default());
    let lines = Arc::clone(&queue);
    std::thread::Builder::new().name("stderr".into()).spawn(move || lines.serve(sink))?;
    PROCESS.set(queue).map_err(|_| io::Error::other("standard error is in use already"))
}

/// Writes one or more whole lines. If that is not possible, they are lost.
pub fn write(text: &[u8]) {
    let is_own = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(|own| own.extend_from_slice(text)).is_some());
    if is_own {
        return;
    }
    match PROCESS.get() {
        Some(queue) => queue.push(text),
        // The thread was not started: this is a test, or the command line was not read yet. An error is ignored, because
        // there is no other place to report it.
        None => io::stderr().write_all(text).unwrap_or_default(),
    }
}

/// Waits until all lines so far have been written or lost, but not longer than `wait_max`.
pub fn flush(wait_max: Duration) {
    if let Some(queue) = PROCESS.get() {
        queue.flush(wait_max);
    }
}

/// Standard error as [`io::Write`], for log lines. Each write has to be one or more whole lines, and no write fails.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An entry of the queue.
enum QueueEntry {
    Line(Vec<u8>),
    /// At this place in the order, this many lines did not fit into the queue.
    Lost(u64),
}

#[derive(Default)]
struct LineQueue {
    state: Mutex<QueueState>,
    /// Notified when an entry was added.
    added: Condvar,
    /// Notified when all entries were written or lost.
    drained: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<QueueEntry>,
    /// Bytes of all waiting lines, with their overhead.
    bytes: usize,
    /// Whether the thread is writing an entry that it took out of the queue.
    is_writing: bool,
}

impl LineQueue {
    /// A poisoned lock is used all the same, because no code that holds it can panic between two changes.
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        let bytes = line.len() + LINE_OVERHEAD_BYTES;
        if state.bytes + bytes <= QUEUE_BYTES_MAX {
            state.bytes += bytes;
            state.waiting.push_back(QueueEntry::Line(line.to_vec()));
        } else if let Some(QueueEntry::Lost(lines)) = state.waiting.back_mut() {
            *lines += 1;
        } else {
            state.waiting.push_back(QueueEntry::Lost(1));
        }
        drop(state);
        self.added.notify_one();
    }

    fn flush(&self, wait_max: Duration) {
        let state = self.lock();
        let is_busy = |state: &mut QueueState| state.is_writing || !state.waiting.is_empty();
        drop(self.drained.wait_timeout_while(state, wait_max, is_busy));
    }

    /// Writes the entries of the queue until the process ends.
    fn serve(&self, sink: impl Write) {
        OWN_LINES.set(Some(Vec::new()));
        let mut writer = LineWriter { sink, is_torn: false, lost: 0 };
        loop {
            let entry = self.next(writer.lost > 0);
            // A panic loses this line, but not the thread: later lines are still written.
            if catch_unwind(AssertUnwindSafe(|| writer.take(entry))).is_err() {
                writer.lost += 1;
            }
        }
    }

    /// Waits for the next entry. `None`: none came within [`REPORT_INTERVAL`], and there are lost lines to report.
    fn next(&self, has_lost: bool) -> Option<QueueEntry> {
        let mut state = self.lock();
        state.is_writing = false;
        loop {
            if let Some(entry) = state.waiting.pop_front() {
                if let QueueEntry::Line(line) = &entry {
                    state.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                }
                state.is_writing = true;
                return Some(entry);
            }
            self.drained.notify_all();
            if !has_lost {
                state = self.added.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.added.wait_timeout(state, REPORT_INTERVAL).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && state.waiting.is_empty() {
                return None;
            }
        }
    }
}

/// Writes entries to standard error and counts the lines that are lost.
struct LineWriter<S> {
    sink: S,
    /// Whether the last write failed in the middle of a line.
    is_torn: bool,
    /// Lines that were lost and are not reported yet.
    lost: u64,
}

impl<S: Write> LineWriter<S> {
    fn take(&mut self, entry: Option<QueueEntry>) {
        match entry {
            Some(QueueEntry::Lost(lines)) => self.lost += lines,
            Some(QueueEntry::Line(line)) => {
                self.report_lost();
                // While the report cannot be written, no other line is: the report has to come before later lines.
                if self.lost > 0 || self.write(&line).is_err() {
                    self.lost += 1;
                }
            }
            None => self.report_lost(),
        }
    }

    /// Reports how many lines were lost, if there are any and standard error can be written to again.
    fn report_lost(&mut self) {
        if self.lost == 0 {
            return;
        }
        tracing::warn!(lines = self.lost, "log lines were lost: standard error could not be written to");
        let report = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(std::mem::take)).unwrap_or_default();
        if self.write(&report).is_ok() {
            self.lost = 0;
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.write_all(lines)
    }

    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        let whole = rest.len();
        while !rest.is_empty() {
            let failed = match self.sink.write(rest) {
                Ok(0) => io::Error::from(ErrorKind::WriteZero),
                Ok(written) => {
                    rest = &rest[written..];
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Another process made standard error non-blocking, and its reader is slow. Only this thread waits.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    std::thread::park_timeout(FULL_INTERVAL);
                    continue;
                }
                Err(error) => error,
            };
            self.is_torn |= rest.len() < whole;
            return Err(failed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts as many bytes as it has room for, then fails.
    #[derive(Default)]
    struct Sink {
        written: Vec<u8>,
        room: usize,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.written.extend_from_slice(&bytes[..taken]);
            if taken == 0 { Err(ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(text: &str) -> Option<QueueEntry> {
        Some(QueueEntry::Line(format!("{text}\n").into_bytes()))
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_a_torn_one_gets_its_line_break() {
        let mut writer = LineWriter { sink: Sink { room: 7, ..Sink::default() }, is_torn: false, lost: 0 };
        writer.take(line("one"));
        writer.take(line("cut off"));
        assert_eq!((writer.lost, writer.is_torn), (1, true), "the second line was cut after three of its bytes");
        writer.take(Some(QueueEntry::Lost(3)));
        writer.take(line("lost"));
        assert_eq!(writer.lost, 5);
        writer.sink.room = usize::MAX;
        writer.take(None);
        assert_eq!(writer.lost, 0, "the lost lines were reported");
        writer.take(line("two"));
        assert_eq!(String::from_utf8(writer.sink.written).unwrap(), "one\ncut\ntwo\n");
    }

    #[test]
    fn a_full_queue_loses_later_lines_and_counts_them_at_their_place() {
        let queue = LineQueue::default();
        let long = vec![b'x'; QUEUE_BYTES_MAX / 2];
        for line in [&long[..], b"short\n", &long, b"short too\n", &long, &long] {
            queue.push(line);
        }
        let mut found = Vec::new();
        while queue.lock().bytes > 0 || !queue.lock().waiting.is_empty() {
            found.push(match queue.next(false).unwrap() {
                QueueEntry::Line(line) => line.len() as i64,
                QueueEntry::Lost(lines) => -(lines as i64),
            });
        }
        assert_eq!(found, [long.len() as i64, 6, -1, 10, -2]);
        assert!(queue.lock().is_writing);
    }
}
