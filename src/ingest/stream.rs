//! The stream between a client's socket and hyper. It bounds what one client can make a connection do.
//!
//! ```text
//!  socket ── ReadTurn: 64 KiB or 16 reads, then other tasks run ──▶ hyper
//!  socket ◀── WriteTimeout: an answer must be read in time ───────── hyper
//!    └── Activity is told when all that hyper had to write is written
//! ```
//!
//! hyper decodes a body for as long as the socket has bytes. A client that sends much and fast, such as chunk sizes
//! that are padded with zeros for ever, would keep its thread and the timers of its own request would never be looked
//! at. Therefore a connection reads a bounded part in one turn and then lets other tasks run.

use super::connections::Activity;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes that a connection reads in one turn. They fill hyper's buffer twice, which takes far less than a millisecond.
const TURN_BYTES_MAX: usize = 64 * 1024;

/// Reads in one turn. This is far below the 128 operations of tokio's cooperative budget. If a task uses up that
/// budget, its timers are not polled either, so the time-outs of the request would never fire.
const TURN_READS_MAX: usize = 16;

/// A client's socket with bounded turns of reading and a time-out for writing.
#[derive(Debug)]
pub(super) struct ClientStream<S> {
    stream: S,
    turn: ReadTurn,
    timeout: WriteTimeout,
    /// Whether something was written and not yet flushed.
    is_writing: bool,
    activity: Arc<Activity>,
}

impl<S> ClientStream<S> {
    /// Wraps `stream`. A write that finds no room must be flushed within `write_timeout`; after that it fails with
    /// `TimedOut`. `activity` is told each time when everything is flushed.
    pub(super) fn new(stream: S, write_timeout: Duration, activity: Arc<Activity>) -> Self {
        let timeout = WriteTimeout { limit: write_timeout, stalled: None };
        Self { stream, turn: ReadTurn::default(), timeout, is_writing: false, activity }
    }
}

/// Counts what was read since the socket was last empty or other tasks last ran.
#[derive(Debug, Default)]
struct ReadTurn {
    reads: usize,
    bytes: usize,
}

impl ReadTurn {
    fn is_over(&self) -> bool {
        self.reads >= TURN_READS_MAX || self.bytes >= TURN_BYTES_MAX
    }
}

/// How long the client may take to read an answer.
#[derive(Debug)]
struct WriteTimeout {
    limit: Duration,
    /// Runs from the first write that found no room until everything is flushed. A write of some bytes does not reset
    /// it: otherwise a client could read a byte now and then and make an answer last for ever.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    /// Passes on the result of a write, or fails if the client has not read for too long.
    fn check(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.limit)));
            if stalled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client does not read its answer",
                )));
            }
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn.is_over() {
            self.turn = ReadTurn::default();
            // The socket may still have bytes, and would not wake the task for those.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match polled {
            Poll::Pending => self.turn = ReadTurn::default(),
            Poll::Ready(Ok(())) => {
                self.turn.reads += 1;
                self.turn.bytes += buffer.filled().len() - before;
            }
            Poll::Ready(Err(_)) => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.is_writing = true;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timeout.check(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // hyper flushes only when it has written everything that it holds.
        if flushed.is_ready() {
            self.timeout.stalled = None;
            if std::mem::take(&mut self.is_writing) {
                self.activity.written();
            }
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_writing = true;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timeout.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::super::connections::ConnectionTable;
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    const WRITE_TIMEOUT: Duration = Duration::from_millis(100);

    fn client_stream<S>(stream: S) -> ClientStream<S> {
        ClientStream::new(stream, WRITE_TIMEOUT, ConnectionTable::new().open().activity().clone())
    }

    #[tokio::test]
    async fn a_connection_that_always_has_bytes_lets_other_tasks_run_after_a_bounded_part() {
        for (read_bytes, turn_bytes) in [(32 * 1024, TURN_BYTES_MAX), (1, TURN_READS_MAX)] {
            let mut stream = client_stream(tokio::io::repeat(b'x'));
            let mut bytes = 0;
            let turn = std::future::poll_fn(|cx| {
                let mut room = vec![0; read_bytes];
                while Pin::new(&mut stream).poll_read(cx, &mut ReadBuf::new(&mut room)).is_ready() {
                    bytes += read_bytes;
                }
                Poll::Ready(())
            });
            turn.await;
            assert_eq!(bytes, turn_bytes);
            // The stream wakes its task by itself, so the next turn begins without new bytes from the client.
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_or_only_a_byte_now_and_then_is_cut_off() {
        for reads in [false, true] {
            let (mut client, server) = duplex(16);
            let mut stream = client_stream(server);
            let reader = tokio::spawn(async move {
                while reads && client.read_u8().await.is_ok() {
                    sleep(WRITE_TIMEOUT / 4).await;
                }
                client
            });
            let begun = Instant::now();
            let error = stream.write_all(&[b'x'; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            let waited = begun.elapsed();
            assert!(waited >= WRITE_TIMEOUT && waited < 2 * WRITE_TIMEOUT, "{waited:?}");
            drop(stream);
            reader.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_answer_has_a_time_out_of_its_own() {
        let (mut client, server) = duplex(16);
        let mut stream = client_stream(server);
        let reader = tokio::spawn(async move {
            let mut answer = [0; 17];
            for _ in 0..4 {
                sleep(WRITE_TIMEOUT * 3 / 4).await;
                client.read_exact(&mut answer).await.unwrap();
            }
        });
        for _ in 0..4 {
            stream.write_all(&[b'x'; 17]).await.unwrap();
            stream.flush().await.unwrap();
        }
        reader.await.unwrap();
    }
}
