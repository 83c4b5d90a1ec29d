//! The load: a client that costs as little as one can, so that the server is what is measured. It speaks just enough
//! HTTP/1.1 to send prepared requests on a connection that stays open, and reads every answer whole.

use anyhow::{Context as _, ensure};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of an answer, head and body: 100 results are below 10 KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A request as it goes over the wire.
pub(crate) fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

/// One connection, one request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

impl Connection {
    /// Connects, and keeps trying for as long as the server may need to start.
    pub(crate) async fn open(address: SocketAddr, within: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + within;
        let stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("nobody listens on {address} after {within:?}"));
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
        ensure!(self.buffer.len() == end, "{} bytes behind the answer", self.buffer.len() - end);
        Ok(Answer { status, body: &self.buffer[body..end] })
    }
}

/// Status, where the body begins, and its length, once the head is complete.
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
