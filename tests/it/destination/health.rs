//! How a destination's failures change what eventd does and logs. The tests use real sockets and read standard error.
//! (Scenarios that last minutes are in the simulation: `tests/simulation/dispatch/telling.rs`.)

use crate::support::authority::{Authority, serve_tls};
use crate::support::client::Client;
use crate::support::program::{Program, command};
use crate::support::receiver::Receiver;
use crate::support::wait::eventually;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Starts `up` on the embedded log in this folder, with one destination and more flags.
fn up(folder: &Path, destination: &str, more: &[&str]) -> Program {
    let flags = ["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0", "--dest", destination];
    Program::start(folder, &[&flags[..], more].concat())
}

/// An address that refuses connections until a test listens on it.
fn refusing_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Posts one event for each of these users.
fn post(ingest: &Program, users: &[String]) {
    let event = |user: &String| format!(r#"{{"UserID":{},"Payload":"x"}}"#, serde_json::to_string(user).unwrap());
    let events = users.iter().map(event).collect::<Vec<_>>().join(",");
    let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{events}]")).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn users(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("user-{n}")).collect()
}

/// A receiver that gives each request the answer that the test has set, byte for byte.
struct Scripted {
    address: String,
    answer: Arc<Mutex<Vec<u8>>>,
    requests: Arc<AtomicUsize>,
}

impl Scripted {
    fn start(listener: TcpListener, answer: &[u8]) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let scripted = Self { address, answer: Arc::new(Mutex::new(answer.to_owned())), requests: Arc::default() };
        let (answer, requests) = (scripted.answer.clone(), scripted.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, requests) = (answer.clone(), requests.clone());
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    while read_request(&mut stream) {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let answer = answer.lock().unwrap().clone();
                        if stream.get_mut().write_all(&answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        scripted
    }

    fn wait_for_requests(&self, more: usize) {
        let enough = self.requests.load(Ordering::SeqCst) + more;
        eventually(|| match self.requests.load(Ordering::SeqCst) {
            seen if seen >= enough => Ok(()),
            seen => Err(format!("{seen} of {enough} requests")),
        });
    }
}

fn read_request(stream: &mut BufReader<std::net::TcpStream>) -> bool {
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if !stream.read_line(&mut line).is_ok_and(|read| read > 0) {
            return false;
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap()
            }
            None if line.trim_end().is_empty() => return stream.read_exact(&mut vec![0; length]).is_ok(),
            _ => {}
        }
    }
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn an_event_that_is_refused_among_healthy_traffic_is_given_up_after_its_second_refusal() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    receiver.answers(|hook| if hook.user() == "refused" { 422 } else { 200 });
    let up = up(folder.path(), &format!("hook={}", receiver.url), &[]);
    post(&up, &["refused".to_owned()]);
    eventually(|| (receiver.refused() > 0).then_some(()).ok_or_else(|| "nothing was refused".to_owned()));
    // From here on, other users' events are delivered. Each is delivered before the next one is sent.
    let mut served = 0;
    while !up.lines().contains("gave up an event") {
        post(&up, &users(served..served + 1));
        served += 1;
        receiver.wait_for(served);
        assert!(receiver.refused() < 8, "too many tries, with {served} deliveries in between");
    }
    let line = up.wait_for(&["gave up an event", "reason=\"refused\"", "user=\"refused\"", " id=\""]);
    // There is one more try if the first retry was already in flight when the first delivery succeeded.
    assert!(receiver.refused() <= 3, "{} sends: {line}", receiver.refused());
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn answers_of_500_after_refused_connections_continue_the_same_outage() {
    let (folder, address) = (tempfile::tempdir().unwrap(), refusing_address());
    let up = up(folder.path(), &format!("hook=http://{address}/t0ken?key=s3cret"), &[]);
    post(&up, &users(0..30));
    let line = up.wait_for(&["cannot be reached; its events wait", "WARN"]);
    assert!(line.contains(&format!("address=\"{address}\"")), "{line}");
    assert!(line.contains(&format!("cause=\"{address} refused the connection. Start the receiver")), "{line}");
    assert!(!line.contains("t0ken") && !line.contains("s3cret"), "{line}");
    // The lag is left out if the end of a partition was not seen yet, so shortly after a start.
    for field in [" users=", " out_s="] {
        assert!(line.contains(field), "{field} is not in: {line}");
    }
    let failing = answer("500 Internal Server Error", "down for repairs");
    let scripted = Scripted::start(TcpListener::bind(address).unwrap(), &failing);
    // A quick probe of each of the 30 users is followed by probes that wait for 100, 200, 400 and 800 ms. By then the lag
    // of the partitions is known.
    scripted.wait_for_requests(30 + 5);
    assert!(!up.lines().contains("takes events again"), "{}", up.lines());
    *scripted.answer.lock().unwrap() = answer("200 OK", "");
    let line = up.wait_for(&["takes events again", "INFO"]);
    assert!(line.contains(" out_s=") && line.contains(" lag="), "{line}");
    assert!(!up.lines().contains("gave up"), "an outage is not the event's fault: {}", up.lines());
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn a_single_user_does_not_wait_for_an_outage_that_no_other_user_confirms() {
    let (folder, address) = (tempfile::tempdir().unwrap(), refusing_address());
    let up = up(folder.path(), &format!("hook=http://{address}/"), &["--attempts", "3"]);
    post(&up, &users(0..1));
    up.wait_for(&["cannot be reached; its events wait"]);
    let _scripted =
        Scripted::start(TcpListener::bind(address).unwrap(), &answer("500 Internal Server Error", "no\r\n"));
    let line = up.wait_for(&["gave up an event", "reason=\"exhausted\"", "user=\"user-0\""]);
    assert!(line.contains("To deliver it again: eventd replay --dest hook=… --dead --user user-0 (with"), "{line}");
    assert!(line.contains("answer=\"500 Internal Server Error: no\""), "without the line break at its end: {line}");
    assert!(!up.lines().contains("takes events again"), "nothing was delivered: {}", up.lines());
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn a_receiver_that_fails_for_20_seconds_during_a_deploy_costs_no_event_of_its_three_users() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    // The deploy lasts for 20 s from its first request on.
    let began = Arc::new(Mutex::new(None));
    receiver.answers(move |_| {
        let began = *began.lock().unwrap().get_or_insert_with(Instant::now);
        if began.elapsed() < Duration::from_secs(20) { 500 } else { 200 }
    });
    let up = up(folder.path(), &format!("hook={}", receiver.url), &[]);
    post(&up, &users(0..3));
    receiver.wait_for(3);
    assert!(receiver.refused() >= 3 * 6, "each user was tried again and again: {}", receiver.refused());
    let ending = up.stop();
    assert_eq!(ending.code(), 0);
    assert!(!ending.said.contains("gave up"), "{}", ending.said);
}

#[test]
fn the_log_shows_an_answer_escaped_and_at_most_200_bytes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let body = format!("bell \u{7} clear \u{1b}[2J {}THE END", "echo of a payload ".repeat(100));
    let scripted =
        Scripted::start(TcpListener::bind("127.0.0.1:0").unwrap(), &answer("422 Unprocessable Entity", &body));
    let up = up(folder.path(), &format!("hook=http://{}/", scripted.address), &["--attempts", "1"]);
    post(&up, &["evil \u{9b}2J \u{202e}user".to_owned()]);
    let line = up.wait_for(&["gave up an event", "422 Unprocessable Entity: bell"]);
    assert!(!line.chars().any(|character| character.is_control() || character == '\u{202e}'), "{line:?}");
    assert!(!line.contains("THE END") && line.len() < 800, "{line}");
    let ending = up.stop();
    assert!(!ending.said.contains("Snapshot") && !ending.said.contains("THE END"), "{}", ending.said);
}

#[test]
fn the_log_says_which_hosts_certificate_has_expired() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let port = serve_tls(authority.issue_with(|params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 2, 3);
    }));
    let destination = format!("hook=https://user:s3cret@localhost:{port}/t0ken");
    let mut command =
        command(folder.path(), &["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0", "--dest", &destination]);
    command.env("SSL_CERT_FILE", authority.path());
    let up = Program::spawn(command, "up");
    post(&up, &users(0..1));
    let line = up.wait_for(&["cannot be reached; its events wait"]);
    assert!(line.contains(&format!("certificate of localhost:{port} expired on 2021-02-03")), "{line}");
    for secret in ["s3cret", "t0ken", "Snapshot"] {
        assert!(!line.contains(secret), "{secret}: {line}");
    }
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn a_missing_certificate_file_is_named_in_one_log_line() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let certificates = folder.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    std::fs::copy(authority.path(), certificates.join("authority.pem")).unwrap();
    let mut command = command(folder.path(), &["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0"]);
    command.env("EVENTD_DEST", "a=https://localhost:1/\nb=https://localhost:2/");
    command.env("SSL_CERT_FILE", "/nosuch.pem").env("SSL_CERT_DIR", certificates);
    let up = Program::spawn(command, "up");
    let line = up.wait_for(&["SSL_CERT_FILE", "/nosuch.pem"]);
    assert!(line.contains("WARN"), "{line}");
    let ending = up.stop();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(ending.said.matches("/nosuch.pem").count(), 1, "{}", ending.said);
}
