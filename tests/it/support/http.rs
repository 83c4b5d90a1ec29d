//! An HTTP client for bad input: it sends exactly the bytes that it gets.

use super::wait::soon;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    /// Bytes that were read and belong to the next answer.
    read: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(given, value)| given.eq_ignore_ascii_case(name).then_some(value.trim()))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The problem document, after a check of what every problem has.
    pub(crate) fn problem(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert_eq!(problem["type"], format!("urn:eventd:error:{}", problem["code"].as_str().unwrap()), "{problem}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        assert_eq!(self.header("retry-after").is_some(), self.status == 503, "{self:?}");
        problem
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = soon("to connect", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("to send", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Shuts down the sending half. The client can still read.
    pub(crate) async fn end(&mut self) {
        soon("to end", self.stream.shutdown()).await.unwrap();
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_or_end().await.expect("the connection was closed before an answer")
    }

    /// The next answer, or `None` if the server closes the connection instead.
    pub(crate) async fn answer_or_end(&mut self) -> Option<Answer> {
        let head_end = loop {
            if let Some(at) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8(self.read.drain(..head_end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        let len: usize = answer.header("content-length").expect("a length").parse().unwrap();
        while self.read.len() < len {
            assert!(self.more().await, "closed in the middle of a body: {answer:?} and {:?}", self.read);
        }
        answer.body = self.read.drain(..len).collect();
        Some(answer)
    }

    /// Waits until the server closes the connection, and returns what it sent before.
    pub(crate) async fn closed(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.read)
    }

    /// Posts a body as JSON and waits for the answer.
    pub(crate) async fn post(&mut self, body: impl AsRef<[u8]>) -> Answer {
        self.post_as("application/json", body).await
    }

    pub(crate) async fn post_as(&mut self, content_type: &str, body: impl AsRef<[u8]>) -> Answer {
        self.send(request(content_type, body)).await;
        self.answer().await
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match soon("an answer or the end", self.stream.read(&mut buffer)).await {
            Ok(0) => false,
            Ok(len) => {
                self.read.extend_from_slice(&buffer[..len]);
                true
            }
            // The server closed while bytes of ours were unread. That is an end too.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The bytes of a `POST /events` request.
pub(crate) fn request(content_type: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut bytes = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}
