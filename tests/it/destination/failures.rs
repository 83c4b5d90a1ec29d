//! What is said if a destination cannot be reached, tested against real sockets, certificates and files. Each failure
//! says what happened, with the host and port or the path, and what to do. None shows a part of the URL that may be
//! secret.

use super::{ATTEMPT_TIME, attempt, event, opened};
use crate::support::authority::{Authority, self_signed, serve_tls};
use eventd::core::verdict::{Failed, Verdict};
use eventd::destination::DestinationSettings;
use std::path::Path;
use std::time::Duration;

/// Used in the URL for every part that may be secret: user, password, path and query.
const SECRET: &str = "s3cret";

/// Makes an attempt at this scheme, host and port, and returns how it failed.
async fn fails(scheme: &str, address: &str, settings: &DestinationSettings) -> Failed {
    let url = format!("{scheme}://{SECRET}:{SECRET}@{address}/{SECRET}?token={SECRET}");
    let failed = attempt(&*opened(&url, settings), event(1, "user-1", b"x"), ATTEMPT_TIME).await.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Unreachable, "{}", failed.answer);
    assert!(!failed.answer.contains(SECRET), "{}", failed.answer);
    failed
}

/// Checks that the failure's text contains all of these.
fn assert_says(failed: &Failed, expected: &[&str]) {
    for expected in expected {
        assert!(failed.answer.contains(expected), "{expected:?} is not in: {}", failed.answer);
    }
}

fn trusting(authority: &Authority) -> DestinationSettings {
    DestinationSettings { ca_file: Some(authority.path().to_owned()), ..DestinationSettings::default() }
}

#[tokio::test]
async fn an_expired_certificate_is_named_with_its_day() {
    let authority = Authority::new();
    let port = serve_tls(authority.issue_with(|params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 2, 3);
    }));
    let address = format!("localhost:{port}");
    let failed = fails("https", &address, &trusting(&authority)).await;
    assert_says(&failed, &[&format!("certificate of {address} expired on 2021-02-03"), "Renew it"]);
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_named_with_its_day() {
    let authority = Authority::new();
    let port = serve_tls(authority.issue_with(|params| {
        params.not_before = rcgen::date_time_ymd(2199, 1, 1);
        params.not_after = rcgen::date_time_ymd(2200, 1, 1);
    }));
    let failed = fails("https", &format!("localhost:{port}"), &trusting(&authority)).await;
    assert_says(&failed, &["not valid before 2199-01-01", "clock"]);
}

#[tokio::test]
async fn a_certificate_of_another_host_is_named_with_its_names() {
    let authority = Authority::new();
    let port = serve_tls(authority.issue());
    let failed = fails("https", &format!("127.0.0.1:{port}"), &trusting(&authority)).await;
    assert_says(&failed, &[&format!("127.0.0.1:{port} is not valid for the name 127.0.0.1, but for localhost.")]);
}

#[tokio::test]
async fn a_certificate_of_an_untrusted_authority_is_named() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let port = serve_tls(theirs.issue());
    let failed = fails("https", &format!("localhost:{port}"), &trusting(&ours)).await;
    assert_says(
        &failed,
        &[&format!("certificate of localhost:{port}"), "authority that is not trusted", "SSL_CERT_FILE"],
    );
    // A server that shows an authority's self-signed certificate as its own.
    let port = serve_tls(self_signed());
    let failed = fails("https", &format!("localhost:{port}"), &trusting(&ours)).await;
    let shown = format!("the certificate that localhost:{port} shows as its own is that of an authority");
    assert_says(&failed, &[&shown, "Give the receiver one that the authority has signed"]);
    assert!(!failed.answer.contains("CaUsedAsEndEntity"), "{}", failed.answer);
}

#[tokio::test]
async fn a_host_without_an_address_is_named() {
    let failed = fails("http", "nosuch.invalid:8080", &DestinationSettings::default()).await;
    assert_says(&failed, &["cannot find the address of nosuch.invalid:8080", "Check the host in the URL"]);
}

#[tokio::test]
async fn a_connection_that_is_refused_is_named() {
    let port = unused_port();
    for scheme in ["http", "https"] {
        let failed = fails(scheme, &format!("127.0.0.1:{port}"), &trusting(&Authority::new())).await;
        assert_says(&failed, &[&format!("127.0.0.1:{port} refused the connection"), "Start the receiver"]);
    }
}

#[tokio::test]
async fn a_connection_that_is_not_accepted_is_named() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Once one of these connections has to wait, the queue is full. The system then ignores further connections.
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue of length 1 never fills");
    }
    let settings =
        DestinationSettings { attempt_timeout: Duration::from_millis(500), ..DestinationSettings::default() };
    let failed = fails("http", &address.to_string(), &settings).await;
    assert_says(&failed, &[&format!("{address} did not accept a connection in time"), "firewall"]);
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_the_tls_handshake_is_named() {
    // The system accepts connections into the listener's queue, and no program reads them.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let authority = Authority::new();
    let settings = DestinationSettings { attempt_timeout: Duration::from_millis(500), ..trusting(&authority) };
    for host in ["127.0.0.1", "localhost"] {
        let failed = fails("https", &format!("{host}:{port}"), &settings).await;
        assert_says(&failed, &[&format!("{host}:{port} accepted a connection"), "TLS handshake in time"]);
        assert!(!failed.answer.contains("firewall"), "{}", failed.answer);
    }
}

#[tokio::test]
async fn a_port_that_does_not_speak_tls_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _read = stream.read(&mut [0; 4096]);
            let _written = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let failed = fails("https", &address.to_string(), &trusting(&Authority::new())).await;
    assert_says(&failed, &[&format!("{address} does not speak TLS"), "http://"]);
}

#[tokio::test]
async fn a_port_that_only_speaks_tls_is_named() {
    let port = serve_tls(Authority::new().issue());
    // Other servers close the connection without an answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in silent.incoming().flatten() {
            let _read = std::io::Read::read(&mut stream, &mut [0; 4096]);
        }
    });
    for port in [port, silent_port] {
        let destination = opened(&format!("http://localhost:{port}/"), &DestinationSettings::default());
        let failed = attempt(&*destination, event(1, "user-1", b"x"), ATTEMPT_TIME).await.unwrap_err();
        assert_says(&failed, &["write https:// in the URL"]);
    }
}

#[tokio::test]
async fn a_disk_that_is_full_is_named() {
    let failed =
        attempt(&*opened("/dev/full", &DestinationSettings::default()), event(1, "user-1", b"x"), ATTEMPT_TIME).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Unreachable);
    assert_says(&failed, &["/dev/full cannot be written: its disk is full: make room"]);
}

#[tokio::test]
async fn a_directory_instead_of_the_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.jsonl");
    let destination = opened(path.to_str().unwrap(), &DestinationSettings::default());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let failed = attempt(&*destination, event(1, "user-1", b"x"), ATTEMPT_TIME).await.unwrap_err();
    assert_eq!(failed.verdict, Verdict::Unreachable);
    assert_says(&failed, &[path.to_str().unwrap(), "it is a directory"]);
    std::fs::remove_dir(&path).unwrap();
    std::fs::remove_dir(folder.path()).unwrap();
    let failed = attempt(&*destination, event(1, "user-1", b"x"), ATTEMPT_TIME).await.unwrap_err();
    assert_says(&failed, &["its directory is missing: create the directory"]);
    assert!(!Path::exists(&path), "a missing directory is not created");
}

fn unused_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
