//! A healthy client is served whatever other clients do. No single connection can occupy a thread of the runtime, the
//! memory for bodies, or all connections. How long the healthy client waits is printed, not asserted.
//!
//! ```text
//!  trouble (threads of its own) ──▶ ingest on ONE runtime thread ◀── healthy client: every request gets 200
//! ```

use crate::support::client;
use crate::support::http::{Client, request};
use crate::support::ingesting::{Ingesting, config, event};
use crate::support::wait::soon;
use eventd::ingest::Config;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const HEALTHY_REQUESTS: usize = 200;

const CHUNKED: &str = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                       Transfer-Encoding: chunked\r\n\r\n";

/// Sends `begin`, and then `endless` again and again, as fast as the server reads. Ends when the server closes the
/// connection.
fn flood(address: SocketAddr, begin: &str, endless: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    let block = endless.repeat(64 * 1024 / endless.len());
    // The server may answer while the client still sends. The answer does not matter here.
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || while matches!(reading.read(&mut [0; 64 * 1024]), Ok(1..)) {});
    if stream.write_all(begin.as_bytes()).is_ok() {
        while stream.write_all(block.as_bytes()).is_ok() {}
    }
    reader.join().unwrap();
}

/// Posts one event after the other, and returns how long each answer took.
fn healthy(address: SocketAddr) -> Vec<Duration> {
    let mut client = client::Client::connect(&address.to_string()).unwrap();
    let post = |n: usize| {
        let begun = Instant::now();
        let answer = client.post(&event("healthy", &n.to_string())).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        begun.elapsed()
    };
    (0..HEALTHY_REQUESTS).map(post).collect()
}

fn count(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[(times.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("# healthy client during {name}: p50 {:.1} ms, p99 {:.1} ms", at(0.5), at(0.99));
}

/// A flood is ended by a limit of its bytes. Only the padding of chunks has no such limit: it takes no memory, and the
/// time-out of the body ends it.
fn flooded_config() -> Config {
    Config { header_timeout: Duration::from_secs(600), body_timeout: Duration::from_secs(3), ..config() }
}

/// The server ends each of these floods. Meanwhile it serves a healthy client.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn endless_requests_are_ended_and_delay_no_other_client() {
    let post = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let floods: [(&str, String, &str); 13] = [
        ("zeros of a chunk's size", format!("{CHUNKED}1\r\n{{\r\n"), "0"),
        ("spaces after a chunk's size", format!("{CHUNKED}1"), " "),
        ("a chunk's extension", format!("{CHUNKED}1;"), "x"),
        ("chunks of one byte", CHUNKED.to_owned(), "1\r\n \r\n"),
        ("chunks of one byte with padded sizes", CHUNKED.to_owned(), "000000000000000000000001  \r\n \r\n"),
        ("chunks with extensions", CHUNKED.to_owned(), "1;x=y\r\n \r\n"),
        ("trailers", format!("{CHUNKED}0\r\n"), "t: x\r\n"),
        ("one long trailer", format!("{CHUNKED}0\r\nt: "), "x"),
        ("empty lines before a request", String::new(), "\r\n"),
        ("a head without end", "POST /events HTTP/1.1\r\n".to_owned(), "x: y\r\n"),
        ("a request line without end", "POST /".to_owned(), "x"),
        ("a body without end", format!("{post}Content-Length: 99999999999\r\n\r\n"), "x"),
        ("the padded chunks of a refused body", CHUNKED.replace("/events", "/nothing") + "1\r\n{\r\n", "0"),
    ];
    for (name, begin, endless) in floods {
        let ingesting = Ingesting::start(flooded_config()).await;
        let address = ingesting.address;
        let flooding = tokio::task::spawn_blocking(move || flood(address, &begin, endless));
        count(name, tokio::task::spawn_blocking(move || healthy(address)).await.unwrap());
        soon(&format!("the server to end {name}"), flooding).await.unwrap();
        assert_eq!(ingesting.log.len(), HEALTHY_REQUESTS);
    }
}

/// These floods are valid HTTP and last as long as the healthy client needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn valid_requests_without_end_on_one_connection_delay_no_other_client() {
    let batch = |events: usize| format!("[{}]", vec![event("flood", "x"); events].join(","));
    let limits = Config { max_body_bytes: 4 << 20, max_batch_events: 10_000, max_pending_bytes: 64 << 20, ..config() };
    let floods: [(&str, Vec<u8>); 5] = [
        ("pipelined requests", request("application/json", event("flood", "x"))),
        ("pipelined requests of 100 events", request("application/json", batch(100))),
        ("pipelined requests of 10000 events", request("application/json", batch(10_000))),
        ("pipelined requests that are refused", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("pipelined bodies that are refused", request("text/plain", "x".repeat(60_000))),
    ];
    for (name, request) in floods {
        let ingesting = Ingesting::start(limits.clone()).await;
        let address = ingesting.address;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let flooding = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut reading = stream.try_clone().unwrap();
            let reader = std::thread::spawn(move || {
                let mut bytes = 0;
                while let Ok(len @ 1..) = reading.read(&mut [0; 64 * 1024]) {
                    bytes += len;
                }
                bytes
            });
            while !stopped.load(Ordering::Relaxed) && stream.write_all(&request).is_ok() {}
            stream.shutdown(Shutdown::Both).unwrap_or_default();
            reader.join().unwrap()
        });
        count(name, tokio::task::spawn_blocking(move || healthy(address)).await.unwrap());
        stop.store(true, Ordering::Relaxed);
        let answered = tokio::task::spawn_blocking(|| flooding.join().unwrap()).await.unwrap();
        assert!(answered > 1_000, "{name}: the flood must be served meanwhile, but it read {answered} bytes");
    }
}

/// Sends the request except its last byte, as far as the server reads it.
async fn all_but_a_byte(ingesting: &Ingesting, body: &str) -> Client {
    let mut client = ingesting.client().await;
    let request = request("application/json", body);
    client.send(&request[..request.len() - 1]).await;
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_uploads_take_no_memory_from_healthy_clients() {
    let four_mib = 4 << 20;
    let limits =
        Config { max_body_bytes: four_mib, max_event_bytes: 900 << 10, max_pending_bytes: 64 << 20, ..config() };
    let ingesting = Ingesting::start(limits).await;
    let mut unfinished = Vec::new();
    for _ in 0..17 {
        let event = event("user-1", "x");
        let body = event.clone() + &" ".repeat(four_mib - event.len());
        unfinished.push(all_but_a_byte(&ingesting, &body).await);
    }
    // One body arrives in one piece, the other in many.
    let large = event("healthy", &"x".repeat(800 << 10));
    let mut client = ingesting.client().await;
    for n in 0..20 {
        assert_eq!(client.post(event("healthy", &n.to_string())).await.status, 200);
        let answer = client.post(&large).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let address = ingesting.address;
    count("17 unfinished uploads", tokio::task::spawn_blocking(move || healthy(address)).await.unwrap());
    // There was not room for all of them. The slowest upload gets an answer that says so.
    let first = unfinished.remove(0).answer().await;
    assert_eq!((first.status, &first.problem()["code"]), (408, &"body-too-slow".into()), "{first:?}");
}

#[tokio::test]
async fn a_stalled_body_is_ended_before_its_time_out_if_others_need_the_room() {
    let ingesting = Ingesting::start(Config { body_timeout: Duration::from_secs(600), ..config() }).await;
    let mut client = all_but_a_byte(&ingesting, &event("user-1", "x")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, &answer.problem()["code"]), (408, &"body-too-slow".into()), "{answer:?}");
    assert_eq!((answer.header("connection"), client.closed().await), (Some("close"), Vec::new()));
    assert_eq!(ingesting.log.appends(), 0);
}

#[tokio::test]
async fn if_all_connections_are_in_use_idle_ones_are_closed() {
    let ingesting = Ingesting::start(Config { max_connections: 40, ..config() }).await;
    let mut idle = Vec::new();
    for n in 0..40 {
        let mut client = ingesting.client().await;
        match n % 4 {
            0 => {}
            1 => client.send("POST /events HTTP/1.1\r\nHost").await,
            2 => client.send(&request("application/json", event("user-1", "x"))[..100]).await,
            _ => assert_eq!(client.post(event("user-1", "x")).await.status, 200),
        }
        idle.push(client);
    }
    let begun = Instant::now();
    let mut new = Vec::new();
    for n in 0..40 {
        let mut client = ingesting.client().await;
        assert_eq!(client.post(event("user-1", &n.to_string())).await.status, 200);
        if n == 0 {
            println!(
                "# a new client with 40 of 40 connections idle was answered after {} ms",
                begun.elapsed().as_millis()
            );
        }
        new.push(client);
    }
    for client in &mut idle {
        client.closed().await;
    }
}
