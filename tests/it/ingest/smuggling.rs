//! Request smuggling: if a proxy and eventd disagree on where a request ends, a client could hide a second request in
//! the first. Whatever follows a request of doubtful length on its connection is therefore never taken for a request.

use crate::support::http::request;
use crate::support::ingesting::{Ingesting, config, event, user_of};
use crate::support::wait::soon;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where the second request is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Follows {
    /// In the same bytes as the first request.
    AtOnce,
    /// After the answer to the first request.
    AfterTheAnswer,
}

/// One request: its path, the headers that say how long it is, its body, and the status of its answer.
struct Doubtful {
    name: &'static str,
    path: &'static str,
    headers: String,
    body: String,
    status: u16,
}

fn doubtful_requests() -> Vec<Doubtful> {
    let good = event(&user_of(0), "first");
    let len = good.len();
    let chunked = format!("{len:x}\r\n{good}\r\n0\r\n\r\n");
    let with_trailer = format!("{len:x};x=y\r\n{good}\r\n0\r\nContent-Length: 7\r\nX: y\r\n\r\n");
    let doubtful = |name, headers: &str, body: &str, status| Doubtful {
        name,
        path: "/events",
        headers: headers.replace('|', "\r\n"),
        body: body.to_owned(),
        status,
    };
    let te = "Transfer-Encoding: chunked";
    let mut all = vec![
        doubtful("the length first", &format!("Content-Length: {len}|{te}"), &chunked, 200),
        doubtful("the length last", &format!("{te}|Content-Length: {len}"), &chunked, 200),
        doubtful("a length of 0", &format!("Content-Length: 0|{te}"), &chunked, 200),
        doubtful("a length that covers the next request", &format!("Content-Length: 5000|{te}"), &chunked, 200),
        doubtful("a padded length", &format!("Content-Length:{}{len}|{te}", " ".repeat(200)), &chunked, 200),
        doubtful("a length that is not a number, last", &format!("{te}|Content-Length: x"), &chunked, 200),
        doubtful("a length that is not a number, first", &format!("Content-Length: x|{te}"), &chunked, 400),
        doubtful("a trailer with a length", &format!("Content-Length: 3|{te}"), &with_trailer, 200),
        doubtful("two lengths and chunks", &format!("Content-Length: 3|{te}|Content-Length: 9"), &chunked, 200),
        doubtful("two different lengths", &format!("Content-Length: {len}|Content-Length: 3"), &good, 400),
        doubtful("a list of lengths", &format!("Content-Length: {len}, {len}"), &good, 400),
        doubtful("a length with a sign", &format!("Content-Length: +{len}"), &good, 400),
        doubtful("chunks that are not the last encoding", "Transfer-Encoding: chunked, identity", &chunked, 400),
        doubtful("an unknown encoding", &format!("Transfer-Encoding: xchunked|Content-Length: {len}"), &good, 400),
        doubtful("chunks and another encoding", &format!("{te}|Transfer-Encoding: identity"), &chunked, 400),
        doubtful("a folded encoding", &format!("Content-Length: {len}|Transfer-Encoding:| chunked"), &chunked, 400),
        doubtful(
            "a space before the colon",
            &format!("Content-Length: {len}|Transfer-Encoding : chunked"),
            &chunked,
            400,
        ),
        doubtful(
            "a control character",
            &format!("Content-Length: {len}|Transfer-Encoding: \x0bchunked"),
            &chunked,
            400,
        ),
        doubtful("lines that end with a bare line feed", &format!("Content-Length: 3\n{te}"), &chunked, 200),
        doubtful(
            "a chunk that is longer than its size",
            &format!("Content-Length: {len}|{te}"),
            "3\r\n{}{}\r\n0\r\n\r\n",
            400,
        ),
    ];
    let mut refused =
        doubtful("a request that is refused by its path", &format!("Content-Length: 3|{te}"), &chunked, 404);
    refused.path = "/nothing";
    all.push(refused);
    all
}

/// Sends the bytes. The server may have closed the connection already, which is what the test hopes for.
async fn try_send(stream: &mut TcpStream, bytes: &str) {
    let _ = soon("to send", stream.write_all(bytes.as_bytes())).await;
}

async fn read_more(stream: &mut TcpStream, read: &mut Vec<u8>) -> bool {
    matches!(soon("an answer or the end", stream.read_buf(read)).await, Ok(1..))
}

#[tokio::test]
async fn nothing_that_follows_a_request_of_doubtful_length_is_taken_for_a_second_request() {
    let second = event(&user_of(1), "smuggled");
    let second = String::from_utf8(request("application/json", second)).unwrap();
    for Doubtful { name, path, headers, body, status } in doubtful_requests() {
        for follows in [Follows::AtOnce, Follows::AfterTheAnswer] {
            let context = format!("{name}, the second request {follows:?}");
            let ingesting = Ingesting::start(config()).await;
            let first = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n\r\n{body}"
            );
            let mut stream = TcpStream::connect(ingesting.address).await.unwrap();
            let mut read = Vec::new();
            match follows {
                Follows::AtOnce => try_send(&mut stream, &(first + &second)).await,
                Follows::AfterTheAnswer => {
                    try_send(&mut stream, &first).await;
                    read_more(&mut stream, &mut read).await;
                    try_send(&mut stream, &second).await;
                }
            }
            while read_more(&mut stream, &mut read).await {}
            let answers = String::from_utf8(read).unwrap();
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{context}: {answers}");
            assert!(answers.starts_with(&format!("HTTP/1.1 {status} ")), "{context}: {answers}");
            assert!(answers.to_ascii_lowercase().contains("connection: close\r\n"), "{context}: {answers}");
            assert_eq!(ingesting.log.len(), usize::from(status == 200), "{context}");
            assert_eq!(ingesting.log.values(1), [""; 0], "{context}");
        }
    }
}

#[tokio::test]
async fn two_equal_lengths_are_one_length_and_the_connection_stays_open() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let body = event(&user_of(0), "first");
    let length = format!("Content-Length: {}\r\n", body.len());
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    client.send(format!("{head}{length}{length}\r\n{body}")).await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(client.post(event(&user_of(0), "second")).await.status, 200);
    assert_eq!(ingesting.log.values(0), ["first", "second"]);
}
