//! The http destination against servers that answer, hang, close and lie.

use crate::destination_support::{PATIENCE, attempt, event, opened};
use crate::support::authority::Authority;
use eventd::core::event::{Event, Record};
use eventd::core::verdict::{Failed, Verdict};
use eventd::destination::spec::Spec;
use eventd::destination::webhook::parse_secret;
use eventd::destination::{HandOver, Run, Settings, open};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// What the server does with a request.
enum Reply {
    Bytes(Vec<u8>),
    /// These, and then the connection is closed.
    BytesAndClose(Vec<u8>),
    Close,
    Hang,
}

fn answer(status: &str, headers: &str, body: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes())
}

#[derive(Debug, Clone)]
struct Received {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

type Script = Arc<dyn Fn(usize, &Received) -> Reply + Send + Sync>;

/// A server that does to the n-th request (from 0) what the script says.
struct Server {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start(script: impl Fn(usize, &Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
        let (received, connections) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<AtomicUsize>::default());
        let server = Self { url, received: received.clone(), connections: connections.clone() };
        let script: Script = Arc::new(script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, script.clone(), received.clone()));
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

    async fn attempt(&self) -> Result<(), Failed> {
        attempt(&*opened(&self.url, &Settings::default()), event(17, "user-1", b"payload"), PATIENCE).await
    }
}

async fn serve(mut stream: TcpStream, script: Script, received: Arc<Mutex<Vec<Received>>>) -> std::io::Result<()> {
    let mut unread = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut unread).await? {
        let number = {
            let mut received = received.lock().unwrap();
            received.push(request.clone());
            received.len() - 1
        };
        match script(number, &request) {
            Reply::Bytes(bytes) => stream.write_all(&bytes).await?,
            Reply::BytesAndClose(bytes) => return stream.write_all(&bytes).await,
            Reply::Close => return Ok(()),
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
                let request =
                    Received { line: line.to_owned(), headers, body: unread[end + 4..end + 4 + body].to_vec() };
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
        assert_eq!(server.received().len(), 1, "{status} is asked for once");
    }
}

#[tokio::test]
async fn a_retry_after_is_believed_up_to_its_limit() {
    let after = |seconds| Some(Duration::from_secs(seconds));
    let a_second_ago = httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(1));
    for (status, text, expected) in [
        (429, "7", Verdict::Busy { after: after(7) }),
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
async fn the_request_says_what_the_event_is_and_is_signed() {
    let server = Server::start(|_, _| answer("200 OK", "", "thanks")).await;
    let secret = parse_secret("whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cw==").unwrap();
    let settings = Settings { secret: Some(secret.clone()), ..Settings::default() };
    let url = server.url.replace("http://", "http://me:pass%20word@");
    let destination = open(&Spec::parse(&url).unwrap(), &settings).unwrap();
    assert!(!format!("{destination:?}").contains("pass"), "no password in {destination:?}");
    assert!(!format!("{destination:?}").contains("bWU6cGFzcyB3b3Jk"), "no password in {destination:?}");

    let payload: Vec<u8> = (0..=255).collect();
    let headers: &[(&str, Option<&[u8]>)] = &[("eventd-id", Some(b"a.b")), ("content-type", Some(b"image/png"))];
    let record = Record::new(Some("grüße".as_bytes()), Some(&payload), headers, 0);
    let hand_over = HandOver {
        topic: "user-events".into(),
        partition: 3,
        runs: vec![Run { events: 0..1, attempt: 4, gap: true }],
        events: vec![Event { offset: 17, record }],
        deadline: (Instant::now() + PATIENCE).into(),
    };
    assert_eq!(destination.deliver(hand_over).await[0].failed, None);

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
async fn connections_are_used_again_after_every_answer_that_ends() {
    let server = Server::start(|number, _| match number % 3 {
        0 => answer("200 OK", "", &"x".repeat(60_000)),
        1 => answer("500 Oops", "", &"x".repeat(60_000)),
        _ => answer("204 No Content", "", ""),
    })
    .await;
    let destination = opened(&server.url, &Settings::default());
    for offset in 0..30 {
        let outcome = attempt(&*destination, event(offset, "user-1", b""), PATIENCE).await;
        assert_eq!(outcome.is_err(), offset % 3 == 1, "{outcome:?}");
    }
    assert_eq!((server.received().len(), server.connections()), (30, 1));
}

#[tokio::test]
async fn of_a_large_answer_the_beginning_is_kept_and_the_rest_costs_the_connection() {
    let server = Server::start(|_, _| answer("500 Oops", "", &"wörter ".repeat(1_000_000))).await;
    let destination = opened(&server.url, &Settings::default());
    for _ in 0..2 {
        let failed = attempt(&*destination, event(1, "user-1", b""), PATIENCE).await.unwrap_err();
        assert!(failed.answer.starts_with("500 Internal Server Error: wörter "), "{}", failed.answer);
        assert!((4000..=4096).contains(&failed.answer.len()), "{}", failed.answer.len());
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_server_that_hangs_is_retried_after_the_time_of_the_attempt() {
    let hangs: [fn() -> Reply; 2] =
        [|| Reply::Hang, || Reply::Bytes(b"HTTP/1.1 500 Oops\r\ncontent-length: 10\r\n\r\nhal".to_vec())];
    for hang in hangs {
        let server = Server::start(move |_, _| hang()).await;
        let destination = opened(&server.url, &Settings::default());
        let begun = Instant::now();
        let outcome = attempt(&*destination, event(1, "user-1", b""), Duration::from_millis(200)).await;
        assert_eq!(verdict(outcome), Some(Verdict::Retry { after: None }));
        assert!(begun.elapsed() >= Duration::from_millis(199) && begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(server.received().len(), 1);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_its_status_has_said_enough() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhal";
    let server = Server::start(|_, _| Reply::BytesAndClose(head.to_vec())).await;
    assert_eq!(server.attempt().await, Ok(()));
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn a_connection_that_closes_before_its_answer_is_tried_once_more_at_once() {
    let server = Server::start(|number, _| if number == 1 { Reply::Close } else { answer("200 OK", "", "") }).await;
    let destination = opened(&server.url, &Settings::default());
    for offset in 0..3 {
        attempt(&*destination, event(offset, "user-1", b"x"), PATIENCE).await.unwrap();
    }
    let offsets: Vec<String> = server.received().iter().map(|r| r.headers["eventd-offset"].clone()).collect();
    assert_eq!((offsets, destination.resent()), (vec!["0:0".into(), "0:1".into(), "0:1".into(), "0:2".into()], 1));
}

#[tokio::test]
async fn a_server_that_closes_every_connection_gets_two_requests_an_attempt() {
    let server = Server::start(|_, _| Reply::Close).await;
    assert_eq!(verdict(server.attempt().await), Some(Verdict::Retry { after: None }));
    assert_eq!((server.received().len(), server.connections()), (2, 2));
}

#[tokio::test]
async fn where_nobody_can_be_reached_the_event_never_left() {
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ca = Authority::new();
    let settings = Settings { ca_file: Some(ca.path().to_owned()), ..Settings::default() };
    for url in [
        format!("http://{refused}/"),
        "http://nobody.invalid/".to_owned(),
        format!("https://{}/", silent.local_addr().unwrap()),
    ] {
        let destination = opened(&url, &settings);
        let outcome = attempt(&*destination, event(1, "user-1", b""), Duration::from_secs(2)).await;
        assert_eq!(verdict(outcome), Some(Verdict::Unreachable), "{url}");
    }
}

#[tokio::test]
async fn an_https_destination_is_held_to_the_authority_that_is_given() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let port = serve_tls(&ours);
    let settings =
        |authority: &Authority| Settings { ca_file: Some(authority.path().to_owned()), ..Settings::default() };
    let url = format!("https://localhost:{port}/");
    assert_eq!(attempt(&*opened(&url, &settings(&ours)), event(1, "user-1", b"x"), PATIENCE).await, Ok(()));
    let failed = attempt(&*opened(&url, &settings(&theirs)), event(1, "user-1", b"x"), PATIENCE).await.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Unreachable);
    assert!(failed.answer.contains("certificate"), "{}", failed.answer);
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_is_an_error_that_names_its_file() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    for path in [empty.path().to_owned(), empty.path().with_extension("missing")] {
        let settings = Settings { ca_file: Some(path.clone()), ..Settings::default() };
        let why = open(&Spec::parse("https://localhost/").unwrap(), &settings).unwrap_err().0;
        assert!(why.contains(path.to_str().unwrap()), "{why}");
        assert!(open(&Spec::parse("http://localhost/").unwrap(), &settings).is_ok(), "http needs none");
    }
}

/// Answers every connection to `localhost` with 200, once each, and tells the port.
fn serve_tls(authority: &Authority) -> u16 {
    let (certificate, key) = authority.issue();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let (config, listener) = (Arc::new(config), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            // A client that mistrusts us ends the handshake: the next connection is another test's part.
            if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        }
    });
    port
}
