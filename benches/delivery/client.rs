//! A load client that costs as little as possible, so that the server is what is measured. It knows just enough
//! HTTP/1.1 to send prepared requests over one open connection and to read each answer completely.

use anyhow::{Context as _, ensure};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The most bytes of an answer with its head. 100 results are below 10 KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A complete request with its head.
pub(crate) fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// One connection with one request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Connection {
    /// Connects, and retries for as long as the server may need to start.
    pub(crate) async fn open(address: SocketAddr, within: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        let stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("{address} refuses connections after {within:?}"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a prepared request and reads its answer to the end.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let (status, body, end) = loop {
            ensure!(self.buffer.len() < ANSWER_BYTES_MAX, "an answer over {ANSWER_BYTES_MAX} bytes");
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the server closed the connection in the middle of an answer");
            if let Some((status, body, length)) = head(&self.buffer)?
                && self.buffer.len() >= body + length
            {
                break (status, body, body + length);
            }
        };
        ensure!(self.buffer.len() == end, "{} bytes after the answer", self.buffer.len() - end);
        Ok(Answer { status, body: &self.buffer[body..end] })
    }
}

/// The status, the start of the body, and its length. `None` until the head is complete.
fn head(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..end]).context("the head of an answer")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("the status of an answer")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without content-length")?;
    Ok(Some((status.parse()?, end + 4, length.1.trim().parse()?)))
}
