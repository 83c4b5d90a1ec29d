//! One connection to the server, for one request after the other.
//!
//! ```text
//!  send ─▶ hyper (HTTP/1.1) ─▶ ObservedStream ─▶ TLS, TCP
//!                               └─ ResponseTracker: reads each head along
//! ```
//!
//! There is no task for a connection: the attempt that uses it moves it. So an attempt that is dropped takes its connection
//! along, and an unused connection costs nothing but memory.

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

/// Bytes of a head that are read at once. One read is enough for nearly every answer.
const HEAD_READ_BYTES: usize = 4096;

/// After a failed write: reads of what the server had said before, at most. They end at the end of the answer's head.
const READS_AFTER_FAILED_WRITE_MAX: usize = 16;

/// How hyper reads answers: it accepts what it can, and has bounds for the rest.
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
    /// `None` once the connection has ended.
    connection: Option<Connection<ObservedStream, Full<Bytes>>>,
    answer: Arc<Mutex<ResponseTracker>>,
    is_reused: bool,
}

impl HttpConnection {
    pub(super) async fn new(
        stream: MaybeHttpsStream<TokioIo<TcpStream>>,
        protocol: &http1::Builder,
    ) -> hyper::Result<Self> {
        let answer = Arc::new(Mutex::new(ResponseTracker::new()));
        let scratch = vec![0; HEAD_READ_BYTES].into_boxed_slice();
        let wire = ObservedStream { stream, answer: Arc::clone(&answer), scratch, head_due: None };
        let (sender, connection) = protocol.handshake(wire).await?;
        Ok(Self { sender, connection: Some(connection), answer, is_reused: false })
    }

    /// Another request was answered over this connection before.
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// What came of the answer to the last request.
    pub(super) fn answer(&self) -> MutexGuard<'_, ResponseTracker> {
        lock(&self.answer)
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.answer().begin();
        let mut response = pin!(self.sender.send_request(request));
        poll_fn(|context| {
            // The connection moves first: it writes the request and reads the answer.
            drive(&mut self.connection, context);
            response.as_mut().poll(context)
        })
        .await
    }

    /// Reads what is left of an answer. Ready with `true`: it was read to its end. With `false`: it broke off, or is longer than
    /// is read.
    pub(super) fn poll_rest(&mut self, context: &mut Context<'_>, rest: &mut RemainingBody) -> Poll<bool> {
        while !rest.body.is_end_stream() {
            drive(&mut self.connection, context);
            match ready!(Pin::new(&mut rest.body).poll_frame(context)) {
                Some(Ok(frame)) if rest.take(&frame) => {}
                Some(_) => return Poll::Ready(false),
                None => break,
            }
        }
        Poll::Ready(true)
    }

    /// Whether the connection can take a request now, as far as its server has let us know.
    pub(super) fn is_usable(&mut self, context: &mut Context<'_>) -> bool {
        drive(&mut self.connection, context);
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Makes the connection one that waits for its next request. `false`: it cannot take another one.
    pub(super) fn rest_idle(&mut self) -> bool {
        self.is_reused = true;
        // The waker of the attempt that is over would otherwise be held for as long as the connection waits.
        self.is_usable(&mut Context::from_waker(Waker::noop()))
    }
}

/// Moves the connection. At its end it is dropped: only then does hyper tell the request that waits for it.
fn drive(connection: &mut Option<Connection<ObservedStream, Full<Bytes>>>, context: &mut Context<'_>) {
    if let Some(moving) = connection
        && Pin::new(moving).poll(context).is_ready()
    {
        // An error has been told to the request in flight, or there was none.
        *connection = None;
    }
}

/// The part of an answer after its head.
#[derive(Debug)]
pub(super) struct RemainingBody {
    body: Incoming,
    read_bytes: usize,
    kept: Vec<u8>,
    keep_bytes: usize,
}

impl RemainingBody {
    /// Keeps the first `keep_bytes` of it.
    pub(super) fn new(body: Incoming, keep_bytes: usize) -> Self {
        Self { body, read_bytes: 0, kept: Vec::new(), keep_bytes }
    }

    pub(super) fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// `false`: it was too much.
    fn take(&mut self, frame: &Frame<Bytes>) -> bool {
        let data: &[u8] = frame.data_ref().map_or(&[], |data| data);
        self.kept.extend_from_slice(&data[..data.len().min(self.keep_bytes - self.kept.len())]);
        self.read_bytes += data.len().max(CHUNK_BYTES_MIN);
        self.read_bytes <= BODY_READ_BYTES_MAX
    }
}

fn lock(answer: &Mutex<ResponseTracker>) -> MutexGuard<'_, ResponseTracker> {
    answer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream beneath hyper. It shows each head to [`ResponseTracker`], and ends a connection whose server does not get to the point.
#[derive(Debug)]
struct ObservedStream {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    answer: Arc<Mutex<ResponseTracker>>,
    scratch: Box<[u8]>,
    /// The final status line came, and its headers have to end by then.
    head_due: Option<Pin<Box<Sleep>>>,
}

impl ObservedStream {
    /// Reads bytes of a head, at most as many as `len`.
    fn poll_head(&mut self, context: &mut Context<'_>, len: usize) -> Poll<io::Result<usize>> {
        let len = len.min(self.scratch.len());
        let mut buffer = ReadBuf::new(&mut self.scratch[..len]);
        let mut answer = lock(&self.answer);
        let read = match Pin::new(&mut self.stream).poll_read(context, buffer.unfilled()) {
            Poll::Ready(read) => {
                read?;
                let bytes = buffer.filled();
                answer.read(bytes).map_err(io::Error::other)?;
                Poll::Ready(Ok(bytes.len()))
            }
            Poll::Pending => Poll::Pending,
        };
        if !answer.is_in_final_head() {
            self.head_due = None;
            return read;
        }
        drop(answer);
        let due = self.head_due.get_or_insert_with(|| Box::pin(sleep(RESPONSE_REST_MAX)));
        if read.is_pending() {
            ready!(due.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the headers did not end in time")));
        }
        read
    }

    /// A server may answer and close before it has read all of the request. Its answer is worth more than the error of the
    /// write.
    fn read_after_failed_write(&mut self, context: &mut Context<'_>) {
        for _ in 0..READS_AFTER_FAILED_WRITE_MAX {
            if !lock(&self.answer).is_in_head() || !matches!(self.poll_head(context, usize::MAX), Poll::Ready(Ok(1..)))
            {
                return;
            }
        }
    }

    fn written(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(_)) => lock(&self.answer).asked(),
            Poll::Ready(Err(_)) => self.read_after_failed_write(context),
            Poll::Pending => {}
        }
        written
    }
}

impl Read for ObservedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !lock(&this.answer).is_in_head() {
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
        this.written(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.written(context, written)
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
