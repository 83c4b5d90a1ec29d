//! One connection to the server, which carries one request after another.
//!
//! ```text
//!  send ─▶ hyper (HTTP/1.1) ─▶ ObservedStream ─▶ TLS, TCP
//!                               └─ ResponseTracker: sees the same head
//! ```
//!
//! A connection has no task of its own: the attempt that uses it also polls it. So if an attempt is dropped, its connection
//! is closed, and an unused connection costs only memory.

use super::RESPONSE_REST_MAX;
use super::response_tracker::ResponseTracker;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Headers of one response. A large front end adds several dozen.
const HEADERS_MAX: usize = 256;

/// Bytes of the status line and all headers of a response: eight times what most servers accept themselves.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a response's body that are read so that its connection can be used again. If the body is longer, the
/// connection is closed.
const BODY_READ_BYTES_MAX: usize = 64 * 1024;

/// Each chunk of a body counts as at least this many bytes, so that a body of very many tiny chunks cannot use up the time
/// of a thread.
const CHUNK_BYTES_MIN: usize = 128;

/// Bytes of a head that one read takes. One read is enough for nearly every response.
const HEAD_READ_BYTES: usize = 4096;

/// After a failed write, at most this many reads look for a response that the server had sent before. They stop at the end
/// of its head.
const READS_AFTER_FAILED_WRITE_MAX: usize = 16;

/// How hyper reads responses: it accepts as many deviations from the standard as it can, within limits.
pub(super) fn protocol() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .ignore_invalid_headers_in_responses(true)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    builder
}

#[derive(Debug)]
pub(super) struct HttpConnection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` after the connection has ended.
    connection: Option<Connection<ObservedStream, Full<Bytes>>>,
    tracker: Arc<Mutex<ResponseTracker>>,
    is_reused: bool,
}

impl HttpConnection {
    pub(super) async fn new(
        stream: MaybeHttpsStream<TokioIo<TcpStream>>,
        protocol: &http1::Builder,
    ) -> hyper::Result<Self> {
        let tracker = Arc::new(Mutex::new(ResponseTracker::new()));
        let scratch = vec![0; HEAD_READ_BYTES].into_boxed_slice();
        let wire = ObservedStream { stream, tracker: Arc::clone(&tracker), scratch, head_due: None };
        let (sender, connection) = protocol.handshake(wire).await?;
        Ok(Self { sender, connection: Some(connection), tracker, is_reused: false })
    }

    /// Whether an earlier request was answered over this connection.
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// What was received of the response to the last request.
    pub(super) fn tracker(&self) -> MutexGuard<'_, ResponseTracker> {
        lock(&self.tracker)
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.tracker().begin_request();
        let mut response = pin!(self.sender.send_request(request));
        poll_fn(|context| {
            // The connection is polled first, because it writes the request and reads the response.
            poll_connection(&mut self.connection, context);
            response.as_mut().poll(context)
        })
        .await
    }

    /// Reads the rest of a response. Ready with `true` if it was read to its end, and with `false` if it broke off or is too
    /// long.
    pub(super) fn poll_rest(&mut self, context: &mut Context<'_>, rest: &mut RemainingBody) -> Poll<bool> {
        while !rest.body.is_end_stream() {
            poll_connection(&mut self.connection, context);
            match ready!(Pin::new(&mut rest.body).poll_frame(context)) {
                Some(Ok(frame)) if rest.add(&frame) => {}
                Some(_) => return Poll::Ready(false),
                None => break,
            }
        }
        Poll::Ready(true)
    }

    /// Whether the connection can take a request now, as far as is known. The server may have closed it a moment ago.
    pub(super) fn is_usable(&mut self, context: &mut Context<'_>) -> bool {
        poll_connection(&mut self.connection, context);
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Prepares the connection for its next request. Returns `false` if it cannot take one.
    pub(super) fn become_idle(&mut self) -> bool {
        self.is_reused = true;
        // Polling with a no-op waker replaces the waker of the finished attempt. Otherwise the idle connection would keep it.
        self.is_usable(&mut Context::from_waker(Waker::noop()))
    }
}

/// Polls the connection. When it has ended, it is dropped, because only then hyper reports the end to the waiting request.
fn poll_connection(connection: &mut Option<Connection<ObservedStream, Full<Bytes>>>, context: &mut Context<'_>) {
    if let Some(open) = connection
        && Pin::new(open).poll(context).is_ready()
    {
        // hyper reports an error to the request in flight. If there is no request, the error does not matter.
        *connection = None;
    }
}

/// The body of a response, as far as it was not read yet.
#[derive(Debug)]
pub(super) struct RemainingBody {
    body: Incoming,
    read_bytes: usize,
    kept: Vec<u8>,
    keep_bytes: usize,
}

impl RemainingBody {
    /// Keeps the first `keep_bytes` of the body.
    pub(super) fn new(body: Incoming, keep_bytes: usize) -> Self {
        Self { body, read_bytes: 0, kept: Vec::new(), keep_bytes }
    }

    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Adds a part of the body. Returns `false` if the body is too long.
    fn add(&mut self, frame: &Frame<Bytes>) -> bool {
        let data: &[u8] = frame.data_ref().map_or(&[], |data| data);
        self.kept.extend_from_slice(&data[..data.len().min(self.keep_bytes - self.kept.len())]);
        self.read_bytes += data.len().max(CHUNK_BYTES_MIN);
        self.read_bytes <= BODY_READ_BYTES_MAX
    }
}

fn lock(tracker: &Mutex<ResponseTracker>) -> MutexGuard<'_, ResponseTracker> {
    tracker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream that hyper reads and writes. It shows each head to the [`ResponseTracker`], and ends the connection if the
/// headers of a response do not end in time.
#[derive(Debug)]
struct ObservedStream {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    tracker: Arc<Mutex<ResponseTracker>>,
    scratch: Box<[u8]>,
    /// Set when the final status line was received: its headers must end by then.
    head_due: Option<Pin<Box<Sleep>>>,
}

impl ObservedStream {
    /// Reads at most `len` bytes of a head.
    fn poll_head(&mut self, context: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        let len = len.min(self.scratch.len());
        let mut buffer = ReadBuf::new(&mut self.scratch[..len]);
        let mut tracker = lock(&self.tracker);
        let read = match Pin::new(&mut self.stream).poll_read(context, buffer.unfilled()) {
            Poll::Ready(read) => {
                read?;
                let bytes = buffer.filled();
                tracker.read(bytes).map_err(io::Error::other)?;
                Poll::Ready(Ok(bytes.len()))
            }
            Poll::Pending => Poll::Pending,
        };
        if !tracker.is_in_final_head() {
            self.head_due = None;
            return read;
        }
        drop(tracker);
        let due = self.head_due.get_or_insert_with(|| Box::pin(sleep(RESPONSE_REST_MAX)));
        if read.is_pending() {
            ready!(due.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the headers of the answer did not end in time",
            )));
        }
        read
    }

    /// Looks for a response after a failed write. A server may answer and close before it has read the whole request, and its
    /// answer says more than the error of the write.
    fn read_after_failed_write(&mut self, context: &mut Context<'_>) {
        for _ in 0..READS_AFTER_FAILED_WRITE_MAX {
            if !lock(&self.tracker).is_in_head() || !matches!(self.poll_head(context, usize::MAX), Poll::Ready(Ok(1..)))
            {
                return;
            }
        }
    }

    fn note_write(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(_)) => lock(&self.tracker).request_written(),
            Poll::Ready(Err(_)) => self.read_after_failed_write(context),
            Poll::Pending => {}
        }
        written
    }
}

impl Read for ObservedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !lock(&this.tracker).is_in_head() {
            return Pin::new(&mut this.stream).poll_read(context, into);
        }
        let len = ready!(this.poll_head(context, into.remaining()))?;
        into.put_slice(&this.scratch[..len]);
        Poll::Ready(Ok(()))
    }
}

impl Write for ObservedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.note_write(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.note_write(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Err(_))) {
            this.read_after_failed_write(context);
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
