//! The HTTP destination against servers that answer, hang, close the connection, or send nonsense.

use super::{ATTEMPT_TIME, attempt, event, opened};
use crate::support::authority::{Authority, serve_tls};
use crate::support::wait::eventually_async;
use eventd::core::event::{Event, Record};
use eventd::core::verdict::{Failed, Verdict};
use eventd::destination::spec::Spec;
use eventd::destination::webhook::parse_secret;
use eventd::destination::{DeliveryBatch, DestinationSettings, Run, open};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::time::Instant;

/// What the server does when it has read a request.
enum Reply {
    Bytes(Vec<u8>),
    /// Sends these bytes when all requests have reached the barrier.
    BytesAfter(Arc<Barrier>, Vec<u8>),
    /// Sends the first bytes at once, and the others when all have reached the barrier.
    BytesAndAfter(Vec<u8>, Arc<Barrier>, Vec<u8>),
    /// Sends these bytes and then nothing, until the client closes the connection.
    BytesAndHang(Vec<u8>),
    /// Sends these bytes and closes the connection.
    BytesAndClose(Vec<u8>),
    Close,
    /// Resets the connection.
    Reset,
    Hang,
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const OK_LONG: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n";

fn answer(status: &str, headers: &str, body: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes())
}

#[derive(Debug, Clone)]
struct Received {
    /// The number of the connection over which it came, from 0.
    connection: usize,
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

type Script = Arc<dyn Fn(usize, &Received) -> Reply + Send + Sync>;

/// A server with a script: it says what to do with the n-th request, counted from 0.
struct Server {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
}

impl Server {
    async fn start(script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
        let received = Arc::<Mutex<Vec<_>>>::default();
        let (connections, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let server = Self { url, received: received.clone(), connections: connections.clone(), closed: closed.clone() };
        let script: Script = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::SeqCst);
                let served = serve(stream, connection, script.clone(), received.clone());
                let closed = closed.clone();
                tokio::spawn(async move {
                    let _ = served.await;
                    closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        server
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }

    async fn attempt(&self) -> Result<(), Failed> {
        attempt(&*opened(&self.url, &DestinationSettings::default()), event(17, "user-1", b"payload"), ATTEMPT_TIME)
            .await
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    script: Script,
    received: Arc<Mutex<Vec<Received>>>,
) -> std::io::Result<()> {
    let mut unread = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut unread).await? {
        let request = Received { connection, ..request };
        let number = {
            let mut received = received.lock().unwrap();
            received.push(request.clone());
            received.len() - 1
        };
        match script(number, &request) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::BytesAfter(barrier, bytes) => {
                barrier.wait().await;
                stream.write_all(&bytes).await?;
            }
            Reply::BytesAndAfter(first, barrier, then) => {
                stream.write_all(&first).await?;
                barrier.wait().await;
                stream.write_all(&then).await?;
            }
            Reply::BytesAndHang(bytes) => {
                stream.write_all(&bytes).await?;
                let _ = stream.read(&mut [0]).await;
                return Ok(());
            }
            Reply::BytesAndClose(bytes) => return stream.write_all(&bytes).await,
            Reply::Close => return Ok(()),
            Reply::Reset => return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)),
            Reply::Hang => std::future::pending().await,
        }
    }
    Ok(())
}

async fn read_request(stream: &mut TcpStream, unread: &mut Vec<u8>) -> std::io::Result<Option<Received>> {
    loop {
        if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(unread[..end].to_vec()).unwrap();
            let (line, rest) = head.split_once("\r\n").unwrap();
            let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
            let headers: HashMap<String, String> = rest.split("\r\n").filter_map(header).collect();
            let body = headers.get("content-length").map_or(0, |len| len.parse::<usize>().unwrap());
            if unread.len() >= end + 4 + body {
                let request = Received {
                    connection: 0,
                    line: line.to_owned(),
                    headers,
                    body: unread[end + 4..end + 4 + body].to_vec(),
                };
                unread.drain(..end + 4 + body);
                return Ok(Some(request));
            }
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}

fn verdict(outcome: Result<(), Failed>) -> Option<Verdict> {
    outcome.err().map(|failed| failed.verdict)
}

#[tokio::test]
async fn every_status_has_its_verdict() {
    let statuses = [
        (200, None),
        (201, None),
        (204, None),
        (400, Some(Verdict::Refused)),
        (413, Some(Verdict::Refused)),
        (415, Some(Verdict::Refused)),
        (422, Some(Verdict::Refused)),
        (429, Some(Verdict::Busy { after: None })),
        (302, Some(Verdict::Retry { after: None })),
        (401, Some(Verdict::Retry { after: None })),
        (404, Some(Verdict::Retry { after: None })),
        (500, Some(Verdict::Retry { after: None })),
        (503, Some(Verdict::Retry { after: None })),
    ];
    for (status, expected) in statuses {
        let location = "location: http://127.0.0.1:1/\r\n";
        let server = Server::start(move |_, _| answer(&format!("{status} Word"), location, "")).await;
        assert_eq!(verdict(server.attempt().await), expected, "{status}");
        assert_eq!(server.received().len(), 1, "{status} is not retried by the destination");
    }
}

#[tokio::test]
async fn a_retry_after_is_respected_up_to_its_limit() {
    let after = |seconds| Some(Duration::from_secs(seconds));
    let a_second_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(1));
    for (status, text, expected) in [
        (429, "7", Verdict::Busy { after: after(7) }),
        (503, "2.5", Verdict::Busy { after: Some(Duration::from_millis(2_500)) }),
        (429, "0.5", Verdict::Busy { after: Some(Duration::from_millis(500)) }),
        (503, "7", Verdict::Busy { after: after(7) }),
        (500, "7", Verdict::Retry { after: after(7) }),
        (503, "99999999999999999999999", Verdict::Busy { after: after(300) }),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", Verdict::Busy { after: after(300) }),
        (503, &a_second_ago, Verdict::Busy { after: None }),
        (503, "0", Verdict::Busy { after: None }),
        (503, "soon", Verdict::Retry { after: None }),
    ] {
        let header = format!("retry-after: {text}\r\n");
        let server = Server::start(move |_, _| answer(&format!("{status} Word"), &header, "")).await;
        assert_eq!(verdict(server.attempt().await), Some(expected), "{status} {text}");
    }
}

#[tokio::test]
async fn a_request_describes_its_event_and_is_signed() {
    let server = Server::start(|_, _| answer("200 OK", "", "thanks")).await;
    let secret = parse_secret("whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw==").unwrap();
    let settings = DestinationSettings { secret: Some(secret.clone()), ..DestinationSettings::default() };
    let url = server.url.replace("http://", "http://me:pass%20word@");
    let destination = open(&Spec::parse(&url).unwrap(), &settings).unwrap();
    assert!(!format!("{destination:?}").contains("pass"), "a password is in {destination:?}");
    assert!(!format!("{destination:?}").contains("bWU6cGFzcyB3b3Jk"), "a password is in {destination:?}");

    let payload: Vec<u8> = (0..=255).collect();
    let headers: &[(&str, Option<&[u8]>)] = &[("eventd-id", Some(b"a.b")), ("content-type", Some(b"image/png"))];
    let record = Record::new(Some("grüße".as_bytes()), Some(&payload), headers, 0);
    let delivery_batch = DeliveryBatch {
        topic: "user-events".into(),
        partition: 3,
        runs: vec![Run { events: 0..1, attempt: 4, after_dead_letter: true }],
        events: vec![Event { offset: 17, record }],
        deadline: (Instant::now() + ATTEMPT_TIME).into(),
    };
    assert_eq!(destination.deliver(delivery_batch).await[0].failed, None);

    let request = server.received().remove(0);
    assert_eq!(request.line, "POST /hook?a=b HTTP/1.1");
    assert_eq!(request.body, payload);
    for (name, expected) in [
        ("webhook-id", "a%2Eb"),
        ("content-type", "image/png"),
        ("eventd-user", "gr%C3%BC%C3%9Fe"),
        ("eventd-attempt", "4"),
        ("eventd-offset", "3:17"),
        ("eventd-gap", "1"),
        ("content-length", "256"),
        ("authorization", "Basic bWU6cGFzcyB3b3Jk"),
    ] {
        assert_eq!(request.headers.get(name).map(String::as_str), Some(expected), "{name}");
    }
    let timestamp = &request.headers["webhook-timestamp"];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(timestamp.parse().unwrap()) < 60, "{timestamp}");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
    let signed = [b"a%2Eb.", timestamp.as_bytes(), b".", &payload].concat();
    let tag = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, ring::hmac::sign(&key, &signed));
    assert_eq!(request.headers["webhook-signature"], format!("v1,{tag}"));
}

#[tokio::test]
async fn a_connection_is_reused_after_every_complete_answer() {
    let server = Server::start(|number, _| match number % 3 {
        0 => answer("200 OK", "", &"x".repeat(60_000)),
        1 => answer("500 Oops", "", &"x".repeat(60_000)),
        _ => answer("204 No Content", "", ""),
    })
    .await;
    let destination = opened(&server.url, &DestinationSettings::default());
    for offset in 0..30 {
        let outcome = attempt(&*destination, event(offset, "user-1", b""), ATTEMPT_TIME).await;
        assert_eq!(outcome.is_err(), offset % 3 == 1, "{outcome:?}");
    }
    assert_eq!((server.received().len(), server.connections()), (30, 1));
}

#[tokio::test]
async fn the_start_of_a_large_answer_is_kept_and_its_connection_is_closed() {
    let server = Server::start(|_, _| answer("500 Oops", "", &"wörter ".repeat(1_000_000))).await;
    let destination = opened(&server.url, &DestinationSettings::default());
    for _ in 0..2 {
        let failed = attempt(&*destination, event(1, "user-1", b""), ATTEMPT_TIME).await.unwrap_err();
        assert!(failed.answer.starts_with("500 Internal Server Error: wörter "), "{}", failed.answer);
        assert!((4000..=4096).contains(&failed.answer.len()), "{}", failed.answer.len());
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn an_attempt_at_a_server_that_hangs_ends_at_its_deadline() {
    let hangs: [fn() -> Reply; 2] =
        [|| Reply::Hang, || Reply::Bytes(b"HTTP/1.1 500 Oops\r\ncontent-length: 10\r\n\r\nhal".to_vec())];
    for hang in hangs {
        let server = Server::start(move |_, _| hang()).await;
        let destination = opened(&server.url, &DestinationSettings::default());
        let begun = Instant::now();
        let outcome = attempt(&*destination, event(1, "user-1", b""), Duration::from_millis(200)).await;
        assert_eq!(verdict(outcome), Some(Verdict::Retry { after: None }));
        assert!(
            begun.elapsed() >= Duration::from_millis(199) && begun.elapsed() < ATTEMPT_TIME,
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(server.received().len(), 1);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_its_status_line_counts() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhal";
    let server = Server::start(|_, _| Reply::BytesAndClose(head.to_vec())).await;
    assert_eq!(server.attempt().await, Ok(()));
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn a_request_is_repeated_at_once_if_its_old_connection_closes_before_the_answer() {
    let server = Server::start(|number, _| if number == 1 { Reply::Close } else { answer("200 OK", "", "") }).await;
    let destination = opened(&server.url, &DestinationSettings::default());
    for offset in 0..3 {
        attempt(&*destination, event(offset, "user-1", b"x"), ATTEMPT_TIME).await.unwrap();
    }
    let offsets: Vec<String> = server.received().iter().map(|r| r.headers["eventd-offset"].clone()).collect();
    assert_eq!(offsets, ["0:0", "0:1", "0:1", "0:2"]);
}

#[tokio::test]
async fn a_new_connection_that_closes_before_the_answer_is_a_failed_try() {
    for end in [|| Reply::Close, || Reply::Reset] {
        let server = Server::start(move |_, _| end()).await;
        assert_eq!(verdict(server.attempt().await), Some(Verdict::Retry { after: None }));
        assert_eq!((server.received().len(), server.connections()), (1, 1));
    }
}

#[tokio::test]
async fn stale_connections_in_the_pool_cost_no_try() {
    const USERS: usize = 100;
    for end in [|| Reply::Close, || Reply::Reset] {
        let barrier = Arc::new(Barrier::new(USERS));
        // The first request of each connection is answered when all have come. A second request on one of these
        // connections ends it, so every connection in the pool is stale.
        let server = Server::start(move |_, request| match request.connection {
            ..USERS if request.body == b"later" => end(),
            ..USERS => Reply::BytesAfter(barrier.clone(), OK.to_vec()),
            _ => Reply::Bytes(OK.to_vec()),
        })
        .await;
        let destination = opened(&server.url, &DestinationSettings::default());
        let mut users = tokio::task::JoinSet::new();
        for offset in 0..USERS as i64 {
            let destination = destination.clone();
            users.spawn(async move { attempt(&*destination, event(offset, "user", b"first"), ATTEMPT_TIME).await });
        }
        assert!(users.join_all().await.iter().all(Result::is_ok));
        assert_eq!(server.connections(), USERS);

        for offset in 1_000..1_003 {
            assert_eq!(attempt(&*destination, event(offset, "user-1", b"later"), ATTEMPT_TIME).await, Ok(()));
        }
        let later: Vec<_> = server.received().split_off(USERS);
        let seen = |request: &Received| (request.headers["eventd-offset"].clone(), request.connection >= USERS);
        let expected = [("0:1000", false), ("0:1000", true), ("0:1001", true), ("0:1002", true)];
        assert_eq!(later.iter().map(seen).collect::<Vec<_>>(), expected.map(|(at, fresh)| (at.to_owned(), fresh)));
        assert_eq!(server.connections(), USERS + 1, "the other unused connections are closed without a try");
    }
}

#[tokio::test]
async fn a_request_is_not_repeated_after_a_part_of_its_answer() {
    for part in ["H", "HTTP/1.1 20", "HTTP/1.1 103 Early Hints\r\n\r\n", "\r\n"] {
        let server = Server::start(move |number, _| match number {
            0 => Reply::Bytes(OK.to_vec()),
            _ => Reply::BytesAndClose(part.into()),
        })
        .await;
        let destination = opened(&server.url, &DestinationSettings::default());
        attempt(&*destination, event(0, "user-1", b"x"), ATTEMPT_TIME).await.unwrap();
        let outcome = attempt(&*destination, event(1, "user-1", b"x"), ATTEMPT_TIME).await;
        assert_eq!(verdict(outcome), Some(Verdict::Retry { after: None }), "{part:?}");
        assert_eq!(server.received().len(), 2, "{part:?}");
    }
}

#[tokio::test]
async fn bytes_on_an_unused_connection_answer_no_later_request() {
    let late = [OK, b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"].concat();
    let server = Server::start(move |number, _| match number {
        0 => Reply::BytesAndClose(late.clone()),
        _ => Reply::Bytes(OK.to_vec()),
    })
    .await;
    let destination = opened(&server.url, &DestinationSettings::default());
    for offset in 0..2 {
        assert_eq!(attempt(&*destination, event(offset, "user-1", b"x"), ATTEMPT_TIME).await, Ok(()));
    }
    assert_eq!(server.received().len(), 2);
}

/// Malformed answers with this status. A person would understand each of them.
fn odd_answers(status: &str) -> Vec<(&'static str, Vec<u8>)> {
    let many = (0..300).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let answers = [
        ("a space before a colon", format!("HTTP/1.1 {status} Word\r\ncontent-length : 0\r\n\r\n")),
        ("a folded header", format!("HTTP/1.1 {status} Word\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n")),
        ("a folded first header", format!("HTTP/1.1 {status} Word\r\n x: a\r\ncontent-length: 0\r\n\r\n")),
        ("a version in lower case", format!("http/1.1 {status} word\r\ncontent-length: 0\r\n\r\n")),
        ("HTTP/1.0", format!("HTTP/1.0 {status} Word\r\n\r\nbody")),
        ("HTTP/2 over HTTP/1", format!("HTTP/2 {status}\r\ncontent-length: 0\r\n\r\n")),
        ("no reason phrase", format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")),
        ("no reason phrase but its space", format!("HTTP/1.1 {status} \r\ncontent-length: 0\r\n\r\n")),
        ("two spaces", format!("HTTP/1.1  {status} Word\r\ncontent-length: 0\r\n\r\n")),
        ("a reason phrase beyond ASCII", format!("HTTP/1.1 {status} Größe\r\ncontent-length: 0\r\n\r\n")),
        ("a NUL in the reason phrase", format!("HTTP/1.1 {status} W\0rd\r\ncontent-length: 0\r\n\r\n")),
        ("a blank line first", format!("\r\nHTTP/1.1 {status} Word\r\ncontent-length: 0\r\n\r\n")),
        ("line feeds alone", format!("HTTP/1.1 {status} Word\ncontent-length: 0\n\n")),
        ("a length with a sign", format!("HTTP/1.1 {status} Word\r\nContent-Length: +2\r\n\r\nok")),
        ("a negative length", format!("HTTP/1.1 {status} Word\r\nContent-Length: -2\r\n\r\nok")),
        ("a length in words", format!("HTTP/1.1 {status} Word\r\nContent-Length: two\r\n\r\nok")),
        ("an endless length", format!("HTTP/1.1 {status} Word\r\nContent-Length: {}\r\n\r\nok", "9".repeat(40))),
        ("two lengths", format!("HTTP/1.1 {status} Word\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok")),
        (
            "both lengths",
            format!("HTTP/1.1 {status} Word\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        ("an unknown encoding", format!("HTTP/1.1 {status} Word\r\ntransfer-encoding: nonsense\r\n\r\nok")),
        ("an encoding in HTTP/1.0", format!("HTTP/1.0 {status} Word\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("a broken chunk", format!("HTTP/1.1 {status} Word\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n")),
        ("a header without a colon", format!("HTTP/1.1 {status} Word\r\nnothing\r\ncontent-length: 0\r\n\r\n")),
        ("a header without a name", format!("HTTP/1.1 {status} Word\r\n: x\r\ncontent-length: 0\r\n\r\n")),
        ("a NUL in a header", format!("HTTP/1.1 {status} Word\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n")),
        (
            "a control character in a header",
            format!("HTTP/1.1 {status} Word\r\nx: \x1b[1m\r\ncontent-length: 0\r\n\r\n"),
        ),
        ("a name beyond ASCII", format!("HTTP/1.1 {status} Word\r\nwörter: x\r\ncontent-length: 0\r\n\r\n")),
        ("very many headers", format!("HTTP/1.1 {status} Word\r\n{many}content-length: 0\r\n\r\n")),
        ("a very large header", format!("HTTP/1.1 {status} Word\r\nx: {}\r\n\r\n", "y".repeat(200_000))),
        ("headers that break off", format!("HTTP/1.1 {status} Word\r\ncontent-le")),
        ("only a status line", format!("HTTP/1.1 {status} Word\r\n")),
        (
            "early hints first",
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(3)
                + &format!("HTTP/1.1 {status} Word\r\ncontent-length: 0\r\n\r\n"),
        ),
    ];
    answers.map(|(what, answer)| (what, answer.into_bytes())).into()
}

#[tokio::test]
async fn a_status_line_counts_whatever_follows_it() {
    for (status, expected) in [
        ("200", None),
        ("422", Some(Verdict::Refused)),
        ("429", Some(Verdict::Busy { after: None })),
        ("500", Some(Verdict::Retry { after: None })),
    ] {
        for (what, bytes) in odd_answers(status) {
            let server = Server::start(move |_, _| Reply::BytesAndClose(bytes.clone())).await;
            let outcome = server.attempt().await;
            let said = outcome.as_ref().map_or_else(|failed| failed.answer.clone(), |()| String::new());
            assert_eq!(verdict(outcome), expected, "{status} with {what}: {said}");
            assert!(expected.is_none() || said.starts_with(status), "{status} with {what}: {said}");
            assert_eq!(server.received().len(), 1, "{status} with {what}");
        }
    }
}

#[tokio::test]
async fn a_retry_after_counts_even_in_a_malformed_answer() {
    let bytes = b"HTTP/1.1 503 No\r\nContent-Length: +2\r\nRetry-After : 2.5\r\n\r\nno";
    let server = Server::start(|_, _| Reply::BytesAndClose(bytes.to_vec())).await;
    let failed = server.attempt().await.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Busy { after: Some(Duration::from_millis(2_500)) });
    assert!(failed.answer.contains("content-length"), "{}", failed.answer);
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_retried_with_a_readable_reason() {
    for (bytes, reason) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", "not an HTTP answer: \"SSH-2.0-OpenSSH_9.2\""),
        ("HTTP/1.1 20 OK\r\n\r\n", "not an HTTP answer: \"HTTP/1.1 20 OK\""),
        ("HTTP/1.1 2000 OK\r\n\r\n", "not an HTTP answer"),
        ("200 OK\r\n\r\n", "not an HTTP answer"),
        ("\x1b]0;title\x07\n", "not an HTTP answer: \"\\u{1b}]0;title\\u{7}\""),
        ("HTTP/1.1 20", "broke off in its status line: \"HTTP/1.1 20\""),
        ("HTTP/1.1 200", "broke off in its status line: \"HTTP/1.1 200\""),
        ("HTTP/1.1 100 Continue\r\n\r\n", "no final answer"),
        ("\r\n\r\n", "only blank lines"),
        ("", "connection closed"),
    ] {
        let server = Server::start(move |_, _| Reply::BytesAndClose(bytes.into())).await;
        let failed = server.attempt().await.unwrap_err();
        assert_eq!(failed.verdict, Verdict::Retry { after: None }, "{bytes:?}");
        assert!(failed.answer.contains(reason), "{bytes:?}: {}", failed.answer);
        assert_eq!(server.received().len(), 1, "{bytes:?}");
    }
}

#[tokio::test]
async fn the_greeting_of_another_protocol_is_shown_in_the_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let destination = opened(&format!("http://{}/", listener.local_addr().unwrap()), &DestinationSettings::default());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 mail ready\r\n").await.unwrap();
        stream
    };
    let (stream, outcome) = tokio::join!(server, attempt(&*destination, event(1, "user-1", b"x"), ATTEMPT_TIME));
    drop(stream);
    let failed = outcome.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Retry { after: None });
    assert!(failed.answer.contains("not an HTTP answer: \"220 mail ready\""), "{}", failed.answer);
}

#[tokio::test]
async fn switching_protocols_is_retried() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    let server = Server::start(|_, _| Reply::Bytes(switch.to_vec())).await;
    let failed = server.attempt().await.unwrap_err();
    assert_eq!((failed.verdict, failed.answer.as_str()), (Verdict::Retry { after: None }, "101 Switching Protocols"));
}

#[tokio::test]
async fn an_answer_counts_even_if_the_server_closes_before_it_has_read_the_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 100]).await.unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
        // Most of the request is unread, so the client's writes fail from here on.
    };
    let destination = opened(&url, &DestinationSettings::default());
    let payload = vec![b'x'; 8 * 1024 * 1024];
    let ((), outcome) = tokio::join!(server, attempt(&*destination, event(1, "user-1", &payload), ATTEMPT_TIME));
    assert_eq!(verdict(outcome), Some(Verdict::Refused));
}

#[tokio::test]
async fn an_answer_that_never_ends_still_settles_the_attempt() {
    for (bytes, expected) in [
        ("HTTP/1.1 200 OK\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhal", None),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nx-trickle: ", None),
        ("HTTP/1.1 200 OK\r\n", None),
        ("HTTP/1.1 422 No\r\nx-trickle: ", Some(Verdict::Refused)),
        ("HTTP/1.1 500 Oops\r\n\r\nbecause", Some(Verdict::Retry { after: None })),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 10\r\n\r\nbecause", Some(Verdict::Retry { after: None })),
    ] {
        let server = Server::start(move |_, _| Reply::BytesAndHang(bytes.into())).await;
        let destination = opened(&server.url, &DestinationSettings::default());
        let begun = Instant::now();
        let outcome = attempt(&*destination, event(1, "user-1", b"x"), 10 * ATTEMPT_TIME).await;
        assert!(begun.elapsed() < ATTEMPT_TIME, "{bytes:?} took {:?}", begun.elapsed());
        let said = outcome.as_ref().map_or_else(|failed| failed.answer.clone(), |()| String::new());
        assert_eq!(verdict(outcome), expected, "{bytes:?}");
        assert_eq!(said.contains("because"), bytes.contains("because"), "{bytes:?}: {said}");
        // The wait for the rest of the answer ends too, and the connection is closed.
        eventually_async(|| match server.closed() {
            1 => Ok(()),
            closed => Err(format!("{closed} connections are closed, not 1")),
        })
        .await;
    }
}

#[tokio::test]
async fn a_connection_is_reused_when_the_rest_of_its_answer_has_come() {
    let come = Arc::new(Barrier::new(2));
    let rest = come.clone();
    let server = Server::start(move |number, _| match number {
        0 => Reply::BytesAndAfter(OK_LONG.to_vec(), rest.clone(), b"the rest".to_vec()),
        _ => Reply::Bytes(OK.to_vec()),
    })
    .await;
    let destination = opened(&server.url, &DestinationSettings::default());
    attempt(&*destination, event(0, "user-1", b"x"), ATTEMPT_TIME).await.unwrap();
    assert_eq!(server.received().len(), 1, "delivered while the body was not there yet");
    come.wait().await;
    let pool = || format!("{destination:?}");
    eventually_async(|| if pool().contains("idle: 1") { Ok(()) } else { Err(pool()) }).await;
    attempt(&*destination, event(1, "user-1", b"x"), ATTEMPT_TIME).await.unwrap();
    assert_eq!((server.received().len(), server.connections()), (2, 1));
}

#[tokio::test]
async fn a_request_without_a_payload_has_content_length_0() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let destination = opened(&url, &DestinationSettings::default());
    for value in [None, Some(b"".as_slice())] {
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let event = Event { offset: 1, record: Record::new(Some(b"user-1"), value, &[], 0) };
        let (request, outcome) = tokio::join!(server, attempt(&*destination, event, ATTEMPT_TIME));
        assert_eq!(outcome, Ok(()));
        assert!(request.starts_with("POST / HTTP/1.1\r\nhost: 127.0.0.1:"), "{request}");
        assert_eq!(request.matches("content-length: 0\r\n").count(), 1, "{request}");
        assert!(!request.contains("transfer-encoding"), "{request}");
    }
}

/// The runtime has one thread: a destination that held it would stop the other one too.
#[tokio::test(flavor = "current_thread")]
async fn a_server_that_sends_for_ever_without_an_answer_delays_no_other_destination() {
    let floods = [
        ("HTTP/1.1 100 Continue\r\n\r\n", Some("informational")),
        ("HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n", Some("informational")),
        ("\r\n", Some("before the final answer")),
        ("HTTP/1.1 500 O\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", Some("500")),
        ("HTTP/1.1 ", Some("")),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n", None),
        ("HTTP/1.1 200 OK\r\nx: y\r\n", None),
    ];
    let healthy = Server::start(|_, _| Reply::Bytes(OK.to_vec())).await;
    let healthy = opened(&healthy.url, &DestinationSettings::default());
    for (flood, expected) in floods {
        let destination = opened(&stream_for_ever(flood), &DestinationSettings::default());
        let begun = Instant::now();
        let others = async {
            for offset in 0..200 {
                assert_eq!(attempt(&*healthy, event(offset, "user-1", b"x"), ATTEMPT_TIME).await, Ok(()));
            }
        };
        let ((), outcome) = tokio::join!(others, attempt(&*destination, event(1, "user-1", b"x"), 10 * ATTEMPT_TIME));
        assert!(begun.elapsed() < ATTEMPT_TIME, "{flood:?} took {:?}", begun.elapsed());
        match expected {
            None => assert_eq!(outcome, Ok(()), "{flood:?}"),
            Some(reason) => {
                let failed = outcome.unwrap_err();
                assert_eq!(failed.verdict, Verdict::Retry { after: None }, "{flood:?}");
                assert!(failed.answer.contains(reason), "{flood:?}: {}", failed.answer);
            }
        }
    }
}

/// Starts a thread that answers the first connection with `bytes` again and again.
fn stream_for_ever(bytes: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let flood = bytes.repeat(1_000);
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        while stream.write_all(flood.as_bytes()).is_ok() {}
    });
    url
}

#[tokio::test]
async fn an_unreachable_destination_counts_as_never_sent() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ca = Authority::new();
    let settings = DestinationSettings { ca_file: Some(ca.path().to_owned()), ..DestinationSettings::default() };
    for url in [
        format!("http://{refused}/"),
        "http://unreachable.invalid/".to_owned(),
        format!("https://{}/", silent.local_addr().unwrap()),
    ] {
        let destination = opened(&url, &settings);
        let outcome = attempt(&*destination, event(1, "user-1", b""), Duration::from_secs(2)).await;
        assert_eq!(verdict(outcome), Some(Verdict::Unreachable), "{url}");
    }
}

#[tokio::test]
async fn an_https_destination_must_have_a_certificate_of_the_given_authority() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let port = serve_tls(ours.issue());
    let settings = |authority: &Authority| DestinationSettings {
        ca_file: Some(authority.path().to_owned()),
        ..DestinationSettings::default()
    };
    let url = format!("https://localhost:{port}/");
    assert_eq!(attempt(&*opened(&url, &settings(&ours)), event(1, "user-1", b"x"), ATTEMPT_TIME).await, Ok(()));
    let failed = attempt(&*opened(&url, &settings(&theirs)), event(1, "user-1", b"x"), ATTEMPT_TIME).await.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Unreachable);
    assert!(failed.answer.contains("certificate"), "{}", failed.answer);
}

#[tokio::test]
async fn an_authority_file_that_cannot_be_read_is_an_error_that_names_it() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [empty.path().to_owned(), empty.path().with_extension("missing")] {
        let settings = DestinationSettings { ca_file: Some(path.clone()), ..DestinationSettings::default() };
        let why = open(&Spec::parse("https://localhost/").unwrap(), &settings).unwrap_err().0;
        assert!(why.contains(path.to_str().unwrap()), "{why}");
        assert!(open(&Spec::parse("http://localhost/").unwrap(), &settings).is_ok(), "http needs no authority");
    }
}
