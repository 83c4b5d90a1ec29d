//! The stream under hyper: finds requests that say their length twice, ends connections whose answers nobody reads, and
//! keeps any connection from holding a thread of the runtime.
//!
//! If a request has both Content-Length and Transfer-Encoding, a proxy and a server may disagree on where it ends
//! (request smuggling), so such a request is refused. hyper follows Transfer-Encoding, drops the other header and tells
//! nobody; therefore the bytes are watched on their way to it, only as far as needed to know where each head begins.
//!
//! hyper decodes a body for as long as the socket has bytes. A client that sends chunks' framing without data (`0000…`,
//! spaces, trailers) faster than it is decoded would therefore keep its thread, and no time-out of the request would be
//! looked at. So a connection reads a bounded part in one turn and then lets other tasks run, and a body may have only
//! so much framing.
//!
//! ```text
//!  socket ──▶ Watched::poll_read ──▶ hyper ──▶ service: is this the head that was marked?
//!                  └── Framing::see: head │ body │ chunks │ trailers … ── number of the head ──▶ Mark
//! ```

use super::connections::Activity;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The bytes of a line that are kept: enough for the names of the two headers, a length and the size of a chunk. A
/// length that is padded beyond it cannot be read, and its request is refused as one that says its length twice.
const LINE_BYTES_KEPT: usize = 128;

/// Bytes that a connection reads in one turn: two of hyper's buffers, which take far less than a millisecond.
const TURN_BYTES_MAX: usize = 64 * 1024;

/// Reads in one turn. It is far below tokio's budget of a task (128 operations): once that is used up, the timers of the
/// request would not be looked at either.
const TURN_READS_MAX: usize = 16;

/// Bytes of sizes, extensions and trailers that the chunks of one body may have in addition to
/// [`CHUNK_FRAMING_FACTOR`] times its data. hyper has a limit of this size for extensions and for trailers, and none for
/// the spaces and zeros around a chunk's size.
const CHUNK_FRAMING_BYTES_MAX: u64 = 40 * 1024;

/// A chunk of a single byte has three bytes of framing; a long extension may come with each.
const CHUNK_FRAMING_FACTOR: u64 = 16;

/// Stands for a Content-Length that cannot be read.
const UNREADABLE: u64 = u64::MAX;

/// Which request of a connection says its length twice, counted from 1; 0 while none does.
#[derive(Debug, Default)]
pub(super) struct Mark(AtomicU64);

impl Mark {
    /// Whether the request with this number, counted from 1, says its length twice.
    pub(super) fn is_on(&self, request: u64) -> bool {
        self.0.load(Ordering::Acquire) == request
    }
}

/// A connection whose incoming bytes are watched, and whose outgoing bytes have to be read in time.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    framing: Framing,
    write_max: Duration,
    /// Runs from the first write that found no room until all was written.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Whether something was written and not yet flushed.
    is_writing: bool,
    activity: Arc<Activity>,
    turn: Turn,
}

/// What was read since the socket last had nothing, or other tasks were let run.
#[derive(Debug, Default)]
struct Turn {
    reads: usize,
    bytes: usize,
}

impl Turn {
    fn is_over(&self) -> bool {
        self.reads >= TURN_READS_MAX || self.bytes >= TURN_BYTES_MAX
    }
}

impl<S> Watched<S> {
    /// `write_max` is how long a write may go on from the first time it finds no room until all is flushed; then it
    /// fails with `TimedOut`. `activity` is told when all is flushed.
    pub(super) fn new(stream: S, write_max: Duration, activity: Arc<Activity>) -> (Self, Arc<Mark>) {
        let mark = Arc::<Mark>::default();
        let framing = Framing::new(mark.clone());
        let turn = Turn::default();
        (Self { stream, framing, write_max, stalled: None, is_writing: false, activity, turn }, mark)
    }

    /// A write that moved some bytes leaves the time running: a byte now and then would make an answer last for ever.
    fn in_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.is_writing = true;
        if written.is_pending() {
            let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.write_max)));
            if stalled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")));
            }
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn.is_over() {
            self.turn = Turn::default();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match polled {
            Poll::Pending => self.turn = Turn::default(),
            Poll::Ready(Err(_)) => {}
            Poll::Ready(Ok(())) => {
                let read = &buffer.filled()[before..];
                self.turn.reads += 1;
                self.turn.bytes += read.len();
                self.framing.see(read);
                if self.framing.is_excessive() {
                    let what = "the chunks have far more framing than data";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, what)));
                }
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        // hyper flushes once it has written all that it holds.
        if flushed.is_ready() {
            self.stalled = None;
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Follows the requests of one connection through its bytes.
#[derive(Debug)]
struct Framing {
    state: State,
    heads: u64,
    line: [u8; LINE_BYTES_KEPT],
    /// How long the line is; more than `LINE_BYTES_KEPT` where its end was not kept.
    line_len: usize,
    /// Bytes of the chunks of the body at hand: their framing, and their data.
    framing_bytes: u64,
    data_bytes: u64,
    mark: Arc<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a head; `begun` once its request line was read.
    Head {
        begun: bool,
        length: Option<u64>,
        chunked: bool,
    },
    Body(u64),
    ChunkSize,
    /// With the line break behind the data.
    Chunk(u64),
    Trailers,
    /// No further heads are looked for: the connection is closed after this request, or its bytes make no sense.
    Over,
    /// A chunk's size is padded beyond reading: only hyper knows where the body ends. The connection is closed.
    Lost,
}

const NEXT_HEAD: State = State::Head { begun: false, length: None, chunked: false };

impl Framing {
    fn new(mark: Arc<Mark>) -> Self {
        Self {
            state: NEXT_HEAD,
            heads: 0,
            line: [0; LINE_BYTES_KEPT],
            line_len: 0,
            framing_bytes: 0,
            data_bytes: 0,
            mark,
        }
    }

    /// Whether the chunks of the body at hand have more framing than any client needs.
    fn is_excessive(&self) -> bool {
        self.state == State::Lost
            || self.framing_bytes > CHUNK_FRAMING_BYTES_MAX + CHUNK_FRAMING_FACTOR * self.data_bytes
    }

    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Over | State::Lost => return,
                State::Body(left) | State::Chunk(left) => {
                    let len = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= len as u64;
                    self.data_bytes += len as u64;
                    bytes = &bytes[len..];
                    if *left == 0 {
                        self.state = if matches!(self.state, State::Body(_)) { NEXT_HEAD } else { State::ChunkSize };
                    }
                }
                State::Head { .. } | State::ChunkSize | State::Trailers => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let part = &bytes[..end.unwrap_or(bytes.len())];
                    self.keep(part);
                    if !matches!(self.state, State::Head { .. }) {
                        self.framing_bytes += part.len() as u64 + 1;
                    }
                    bytes = &bytes[part.len() + usize::from(end.is_some())..];
                    if end.is_some() {
                        self.state = self.after_line();
                        self.line_len = 0;
                    }
                }
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if let Some(room) = self.line.get_mut(self.line_len..) {
            let kept = part.len().min(room.len());
            room[..kept].copy_from_slice(&part[..kept]);
        }
        self.line_len += part.len();
    }

    fn after_line(&mut self) -> State {
        let cut = self.line_len > LINE_BYTES_KEPT;
        let line = self.line[..self.line_len.min(LINE_BYTES_KEPT)].trim_ascii_end();
        match self.state {
            State::Head { begun: false, .. } if line.is_empty() => NEXT_HEAD,
            State::Head { begun: false, .. } => State::Head { begun: true, length: None, chunked: false },
            State::Head { length, chunked, .. } if line.is_empty() => {
                self.heads += 1;
                (self.framing_bytes, self.data_bytes) = (0, 0);
                match (length, chunked) {
                    // A length that cannot be read hides where the next head begins: nothing behind it is believed.
                    (Some(_), true) | (Some(UNREADABLE), false) => {
                        self.mark.0.store(self.heads, Ordering::Release);
                        State::Over
                    }
                    (None, true) => State::ChunkSize,
                    (None | Some(0), false) => NEXT_HEAD,
                    (Some(length), false) => State::Body(length),
                }
            }
            State::Head { length, chunked, .. } => match header(line) {
                Some(Header::TransferEncoding) => State::Head { begun: true, length, chunked: true },
                // One that cannot be read stays so whatever follows: only the head's end tells whether it is one of
                // two, and its line may come before the other one or after it.
                Some(Header::ContentLength(_)) if length == Some(UNREADABLE) => self.state,
                Some(Header::ContentLength(read)) => {
                    let length = read.filter(|_| !cut).unwrap_or(UNREADABLE);
                    State::Head { begun: true, length: Some(length), chunked }
                }
                None => self.state,
            },
            State::ChunkSize if cut && self.line.iter().all(u8::is_ascii_hexdigit) => State::Lost,
            State::ChunkSize => match chunk_size(line) {
                Some(0) => State::Trailers,
                Some(size) => State::Chunk(size.saturating_add(2)),
                None => State::Over,
            },
            State::Trailers if line.is_empty() => NEXT_HEAD,
            State::Trailers => State::Trailers,
            State::Body(_) | State::Chunk(_) | State::Over | State::Lost => {
                unreachable!("no lines are read in {:?}", self.state)
            }
        }
    }
}

enum Header {
    TransferEncoding,
    ContentLength(Option<u64>),
}

fn header(line: &[u8]) -> Option<Header> {
    let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
    if name.eq_ignore_ascii_case(b"transfer-encoding") {
        Some(Header::TransferEncoding)
    } else if name.eq_ignore_ascii_case(b"content-length") {
        let text = std::str::from_utf8(&value[1..]).unwrap_or_default();
        Some(Header::ContentLength(text.trim().parse().ok()))
    } else {
        None
    }
}

/// The size at the front of a chunk's line; what follows is an extension.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::super::connections::Connections;
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    /// The number of the marked request after these bytes came in pieces of this size.
    fn marked(bytes: &str, piece: usize) -> u64 {
        let mark = Arc::<Mark>::default();
        let mut framing = Framing::new(mark.clone());
        bytes.as_bytes().chunks(piece).for_each(|piece| framing.see(piece));
        mark.0.load(Ordering::Acquire)
    }

    const PLAIN: &str = "POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 48\r\n\r\n\
                         a\r\n\r\ncontent-length: 1\r\ntransfer-encoding: b\r\n\r\n";
    const CHUNKED: &str = "POST /events HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                           19;x=y\r\ncontent-length: 1\r\n\r\n\r\n\r\n\r\n0\r\ncontent-length: 7\r\n\r\n";
    const TWICE: &str = "POST /events HTTP/1.1\r\nCONTENT-length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    const TWICE_TURNED: &str = "POST / HTTP/1.1\r\ntransfer-encoding:chunked\r\ncontent-length:x\r\n\r\n";

    const WRITE_MAX: Duration = Duration::from_millis(100);

    fn watched<S>(stream: S) -> (Watched<S>, Arc<Mark>) {
        Watched::new(stream, WRITE_MAX, Connections::new().open().activity().clone())
    }

    #[tokio::test]
    async fn a_connection_that_always_has_bytes_lets_others_run_after_a_bounded_part() {
        for (read_bytes, turn_bytes) in [(32 * 1024, TURN_BYTES_MAX), (1, TURN_READS_MAX)] {
            let (mut watched, _) = watched(tokio::io::repeat(b'x'));
            let mut bytes = 0;
            let turn = std::future::poll_fn(|cx| {
                let mut room = vec![0; read_bytes];
                while Pin::new(&mut watched).poll_read(cx, &mut ReadBuf::new(&mut room)).is_ready() {
                    bytes += read_bytes;
                }
                Poll::Ready(())
            });
            turn.await;
            assert_eq!(bytes, turn_bytes);
            // It wakes by itself, and continues.
            assert_eq!(watched.read_u8().await.unwrap(), b'x');
        }
    }

    /// Whether a body of these bytes has too much framing.
    fn is_excessive(chunks: &str) -> bool {
        let mut framing = Framing::new(Arc::default());
        framing.see(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n");
        chunks.as_bytes().chunks(1_000).any(|piece| {
            framing.see(piece);
            framing.is_excessive()
        })
    }

    #[test]
    fn chunks_of_one_byte_and_long_extensions_are_fine_and_endless_framing_is_not() {
        let extension = "x".repeat(15_000);
        assert!(!is_excessive(&"1\r\nx\r\n".repeat(100_000)));
        assert!(!is_excessive(&format!("1;{extension}\r\nx\r\n0\r\nt: {extension}\r\n\r\n")));
        for (begin, endless) in
            [("1\r\nx\r\n0", "0"), ("1", " "), ("1;", "x"), ("1\r\nx\r\n0\r\n", "t: x\r\n"), ("0\r\nt: ", "x")]
        {
            assert!(is_excessive(&format!("{begin}{}", endless.repeat(50_000))), "{begin}{endless}");
        }
        assert!(is_excessive(&format!("1{}\r\nx\r\n", " ".repeat(1_000)).repeat(100)));
        assert!(
            is_excessive(&format!("{}1\r\n", "0".repeat(200))) && !is_excessive(&format!("{}1\r\n", "0".repeat(100)))
        );
        let next = "0\r\n\r\nPOST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(!is_excessive(&format!("1{}\r\nx\r\n{next}", " ".repeat(30_000)).repeat(3)), "each body has its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_or_only_a_byte_now_and_then_is_given_up() {
        for reads in [false, true] {
            let (mut client, server) = duplex(16);
            let (mut watched, _) = watched(server);
            let reader = tokio::spawn(async move {
                while reads && client.read_u8().await.is_ok() {
                    sleep(WRITE_MAX / 4).await;
                }
                client
            });
            let begun = Instant::now();
            let error = watched.write_all(&[b'x'; 64]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(begun.elapsed() >= WRITE_MAX && begun.elapsed() < 2 * WRITE_MAX, "{:?}", begun.elapsed());
            drop(watched);
            reader.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_answer_has_its_own_time() {
        let (mut client, server) = duplex(16);
        let (mut watched, _) = watched(server);
        let reader = tokio::spawn(async move {
            let mut answer = [0; 17];
            for _ in 0..4 {
                sleep(WRITE_MAX * 3 / 4).await;
                client.read_exact(&mut answer).await.unwrap();
            }
        });
        for _ in 0..4 {
            watched.write_all(&[b'x'; 17]).await.unwrap();
            watched.flush().await.unwrap();
        }
        reader.await.unwrap();
    }

    #[test]
    fn a_length_that_cannot_be_read_is_refused_alone_and_as_one_of_two() {
        let chunked = "Transfer-Encoding: chunked\r\n";
        let padded = [format!("Content-Length:{}3\r\n", " ".repeat(200)), format!("Content-Length: {:0200}\r\n", 3)];
        for length in padded.iter().map(String::as_str).chain(["Content-Length: x\r\n", "Content-Length:\r\n"]) {
            for headers in [
                format!("{length}{chunked}"),
                format!("{chunked}{length}"),
                format!("{length}Content-Length: 3\r\n{chunked}"),
                format!("Content-Length: 3\r\n{length}Host: x\r\n{chunked}"),
            ] {
                assert_eq!(marked(&format!("POST / HTTP/1.1\r\n{headers}\r\n"), 7), 1, "{headers}");
            }
            for headers in [length.to_owned(), format!("{length}Content-Length: 0\r\n")] {
                assert_eq!(marked(&format!("POST / HTTP/1.1\r\n{headers}\r\n{TWICE}"), 7), 1, "{headers}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_length_said_twice_is_found_wherever_the_reads_end(
            before in proptest::collection::vec(prop_oneof![Just(PLAIN), Just(CHUNKED), Just("GET / HTTP/1.1\n\n")], 0..4),
            twice in prop_oneof![Just(TWICE), Just(TWICE_TURNED)],
            piece in 1usize..300,
        ) {
            prop_assert_eq!(marked(&before.concat(), piece), 0);
            prop_assert_eq!(marked(&(before.concat() + twice), piece), before.len() as u64 + 1);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in "[ -~\r\n]{0,200}", piece in 1usize..40) {
            marked(&bytes, piece);
            marked(&format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{bytes}"), piece);
        }
    }
}
