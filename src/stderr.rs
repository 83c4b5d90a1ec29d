//! Standard error. Everything that eventd writes there goes through one queue and one thread.
//!
//! ```text
//!  log lines, a panic's message, a replay's progress ──▶ queue ──▶ one thread ──▶ standard error
//!                                                   full: lost      cannot be written: lost
//! ```
//!
//! So a line never costs more than itself. If its reader has gone, its disk is full or its terminal is closed, the line
//! is lost, and the thread that wrote it continues. If the reader is alive but does not read, the thread waits, the queue takes
//! what comes meanwhile, and then lines are lost. Lost lines are counted, and one line tells their number as soon as a
//! line can be written again. The order of lines is kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes of lines that wait for the thread: some tens of thousands of lines, so that only a reader that has stopped
/// reading loses any.
pub const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a waiting line costs beyond its bytes.
const LINE_OVERHEAD_BYTES: usize = 32;

/// How long the end of the process waits for lines that are not written yet.
pub const FLUSH_MAX: Duration = Duration::from_secs(1);

/// How often the number of lost lines is tried to be told while there is nothing else to write.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// How long the thread waits when a non-blocking standard error takes nothing.
const FULL_INTERVAL: Duration = Duration::from_millis(10);

/// The queue of the process.
static PROCESS: OnceLock<Arc<Queue>> = OnceLock::new();

thread_local! {
    /// `Some` on the writing thread only: the lines that it logs itself.
    static OWN_LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Starts the thread. From then on [`write()`] does not block. Once a process.
///
/// # Errors
/// There is no thread or no file descriptor left.
pub fn start() -> io::Result<()> {
    // A descriptor of its own: a write that blocks must not hold the lock of `std::io::stderr`.
    let sink = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::new(Queue::default());
    let lines = Arc::clone(&queue);
    std::thread::Builder::new().name("stderr".into()).spawn(move || lines.serve(sink))?;
    PROCESS.set(queue).map_err(|_| io::Error::other("standard error is in use already"))
}

/// Writes one or more whole lines, or loses them.
pub fn write(text: &[u8]) {
    let is_own = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(|own| own.extend_from_slice(text)).is_some());
    if is_own {
        return;
    }
    match PROCESS.get() {
        Some(queue) => queue.push(text),
        // Not started, as in a test or before the command line was read. A line that cannot be written is lost here too.
        None => io::stderr().write_all(text).unwrap_or_default(),
    }
}

/// Waits until everything that was written so far has reached standard error or is lost, at most for this long.
pub fn flush(at_most: Duration) {
    if let Some(queue) = PROCESS.get() {
        queue.flush(at_most);
    }
}

/// Standard error as [`io::Write`], for log lines: every write is a whole line, and none fails.
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

/// What the thread finds in the queue.
enum Entry {
    Line(Vec<u8>),
    /// The number of lines that did not fit into the queue here.
    Lost(u64),
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Something came.
    came: Condvar,
    /// Everything was written or lost.
    done: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Entry>,
    bytes: usize,
    /// The thread is writing what it took.
    is_writing: bool,
}

impl Queue {
    /// Nothing that holds the lock can leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        let bytes = line.len() + LINE_OVERHEAD_BYTES;
        if state.bytes + bytes <= QUEUE_BYTES_MAX {
            state.bytes += bytes;
            state.waiting.push_back(Entry::Line(line.to_vec()));
        } else if let Some(Entry::Lost(lines)) = state.waiting.back_mut() {
            *lines += 1;
        } else {
            state.waiting.push_back(Entry::Lost(1));
        }
        drop(state);
        self.came.notify_one();
    }

    fn flush(&self, at_most: Duration) {
        let state = self.lock();
        let busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        drop(self.done.wait_timeout_while(state, at_most, busy));
    }

    /// Writes what comes, for as long as the process lives.
    fn serve(&self, sink: impl Write) {
        OWN_LINES.set(Some(Vec::new()));
        let mut writer = Writer { sink, is_torn: false, lost: 0 };
        loop {
            let entry = self.next(writer.lost > 0);
            // A defect here costs a line, as any other trouble does.
            if catch_unwind(AssertUnwindSafe(|| writer.take(entry))).is_err() {
                writer.lost += 1;
            }
        }
    }

    /// The next entry. `None`: none came for a while, although there are lost lines to be told.
    fn next(&self, has_lost: bool) -> Option<Entry> {
        let mut state = self.lock();
        state.is_writing = false;
        loop {
            if let Some(entry) = state.waiting.pop_front() {
                if let Entry::Line(line) = &entry {
                    state.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                }
                state.is_writing = true;
                return Some(entry);
            }
            self.done.notify_all();
            if !has_lost {
                state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.came.wait_timeout(state, TELL_INTERVAL).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() && state.waiting.is_empty() {
                return None;
            }
        }
    }
}

/// The thread's side.
struct Writer<S> {
    sink: S,
    /// The last write failed within a line.
    is_torn: bool,
    /// Lines that were lost and not told of.
    lost: u64,
}

impl<S: Write> Writer<S> {
    fn take(&mut self, entry: Option<Entry>) {
        match entry {
            Some(Entry::Lost(lines)) => self.lost += lines,
            Some(Entry::Line(line)) => {
                self.tell();
                // While the number of lost lines cannot be written, no line is written: the number comes before later lines.
                if self.lost > 0 || self.write(&line).is_err() {
                    self.lost += 1;
                }
            }
            None => self.tell(),
        }
    }

    /// Tells how many lines were lost, if any were and it is possible again.
    fn tell(&mut self) {
        if self.lost == 0 {
            return;
        }
        tracing::warn!(lines = self.lost, "log lines were lost: standard error could not be written to");
        let told = OWN_LINES.with_borrow_mut(|own| own.as_mut().map(std::mem::take)).unwrap_or_default();
        if self.write(&told).is_ok() {
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
                // Somebody else made it non-blocking. Its reader is slow, and only this thread waits for it.
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

    /// Takes as many bytes as it has room for, then fails.
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

    fn line(text: &str) -> Option<Entry> {
        Some(Entry::Line(format!("{text}\n").into_bytes()))
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_and_a_torn_one_is_ended() {
        let mut writer = Writer { sink: Sink { room: 7, ..Sink::default() }, is_torn: false, lost: 0 };
        writer.take(line("one"));
        writer.take(line("cut off"));
        assert_eq!((writer.lost, writer.is_torn), (1, true), "four bytes for it, then three");
        writer.take(Some(Entry::Lost(3)));
        writer.take(line("lost"));
        assert_eq!(writer.lost, 5);
        writer.sink.room = usize::MAX;
        writer.take(None);
        assert_eq!(writer.lost, 0, "told");
        writer.take(line("two"));
        assert_eq!(String::from_utf8(writer.sink.written).unwrap(), "one\ncut\ntwo\n");
    }

    #[test]
    fn a_full_queue_loses_what_comes_and_says_where() {
        let queue = Queue::default();
        let long = vec![b'x'; QUEUE_BYTES_MAX / 2];
        for line in [&long[..], b"short\n", &long, b"short too\n", &long, &long] {
            queue.push(line);
        }
        let mut found = Vec::new();
        while queue.lock().bytes > 0 || !queue.lock().waiting.is_empty() {
            found.push(match queue.next(false).unwrap() {
                Entry::Line(line) => line.len() as i64,
                Entry::Lost(lines) => -(lines as i64),
            });
        }
        assert_eq!(found, [long.len() as i64, 6, -1, 10, -2]);
        assert!(queue.lock().is_writing);
    }
}
