//! How bad input is answered: one test for each row of the table in `docs/http-api.md`. Bad input is never stored.

use crate::support::http::{Answer, Client, request};
use crate::support::ingesting::{Ingesting, config};
use eventd::ingest::Config;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const GOOD: &str = r#"{"UserID":"user-1","Payload":"hello"}"#;

/// Posts the body. Checks that it is refused, that nothing is stored, and that the connection still works.
async fn refused(content_type: &str, body: impl AsRef<[u8]>) -> Value {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let answer = client.post_as(content_type, body).await;
    let problem = answer.problem();
    assert_eq!(ingesting.log.appends(), 0, "{problem}");
    assert_eq!(client.post(GOOD).await.status, 200);
    problem
}

async fn refused_json(body: &str) -> Value {
    refused("application/json", body).await
}

/// Compares only these members of the problem.
#[track_caller]
fn assert_says(problem: &Value, members: Value) {
    for (name, value) in members.as_object().unwrap() {
        assert_eq!(&problem[name], value, "{name} in {problem}");
    }
}

#[tokio::test]
async fn malformed_json_is_refused_with_its_position() {
    for (body, position) in [
        (r#"{"UserID":"user-1","Payload":hello}"#, 29),
        (r#"{"UserID":"user-1" "Payload":"x"}"#, 19),
        ("{\n\"UserID\": nope}", 13),
        (r#"{"UserID":"user-1","Payload":"x"} x"#, 34),
        (r#"{"UserID":"user-1","Payload":"x""#, 32),
        ("", 0),
    ] {
        let problem = refused_json(body).await;
        assert_says(
            &problem,
            json!({"status": 400, "code": "malformed-json", "position": position, "index": problem["index"]}),
        );
    }
    let problem = refused_json(&format!("[{GOOD},\n {GOOD},\n {{\"UserID\"}}]")).await;
    assert_says(&problem, json!({"code": "malformed-json", "index": 2, "position": 2 * GOOD.len() + 16}));
}

#[tokio::test]
async fn a_body_that_is_neither_object_nor_array_is_refused() {
    for body in ["17", "\"text\"", "null", "true"] {
        assert_says(&refused_json(body).await, json!({"status": 400, "code": "not-an-event"}));
    }
    for element in ["17", "[]", "null", "\"x\""] {
        let problem = refused_json(&format!("[{GOOD},{element}]")).await;
        assert_says(&problem, json!({"status": 400, "code": "not-an-event", "index": 1}));
    }
}

#[tokio::test]
async fn an_answer_quotes_only_a_little_of_the_body() {
    let long = "\x7f".repeat(60_000);
    let (one, many) = ("an event (an object)", "an event (an object) or an array of events");
    for (content_type, body, expected) in [
        ("application/json", format!("\"{long}\""), many),
        ("application/json", format!("[\"{long}\"]"), one),
        ("application/x-ndjson", format!("\"{long}\""), one),
    ] {
        let problem = refused(content_type, body).await;
        assert_says(&problem, json!({"code": "not-an-event", "index": 0}));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with(&format!("{expected} was expected, at byte ")), "{detail}");
    }
    let problem = refused_json(&format!(r#"{{"{long}":1}}"#)).await;
    assert_says(&problem, json!({"code": "unknown-field", "index": 0}));
    assert!(problem.to_string().len() < 1_000, "{problem}");
}

#[tokio::test]
async fn an_unknown_field_is_named() {
    for field in ["userid", "USERID", "UserId", "payLoad", "", "Time"] {
        let body = format!(r#"[{GOOD},{{"UserID":"u","Payload":1,"{field}":2}}]"#);
        assert_says(
            &refused_json(&body).await,
            json!({"status": 400, "code": "unknown-field", "index": 1, "field": field}),
        );
    }
}

#[tokio::test]
async fn a_field_given_twice_is_named() {
    for (body, field) in [
        (r#"{"UserID":"a","Payload":1,"UserID":"b"}"#, "UserID"),
        (r#"{"UserID":"a","user_id":"a","Payload":1}"#, "user_id"),
        (r#"{"UserID":"a","Payload":1,"payload":1}"#, "payload"),
        (r#"{"id":"a","UserID":"a","Payload":1,"ID":"a"}"#, "ID"),
    ] {
        assert_says(
            &refused_json(body).await,
            json!({"status": 400, "code": "repeated-field", "index": 0, "field": field}),
        );
    }
}

#[tokio::test]
async fn a_missing_field_is_named() {
    for (body, field) in [(r#"{"Payload":"x"}"#, "UserID"), (r#"{"UserID":"x"}"#, "Payload"), ("{}", "UserID")] {
        let problem = refused_json(&format!("[{GOOD},{body}]")).await;
        assert_says(&problem, json!({"status": 400, "code": "missing-field", "index": 1, "field": field}));
    }
}

#[tokio::test]
async fn a_user_id_has_to_be_text_of_1_to_1024_bytes_without_nul() {
    let long = format!("\"{}\"", "é".repeat(513));
    for user in ["\"\"", "17", "null", "[\"a\"]", "\"a\\u0000b\"", "\"\\ud800\"", &long] {
        let problem = refused_json(&format!(r#"{{"userId":{user},"Payload":"x"}}"#)).await;
        assert_says(&problem, json!({"status": 400, "code": "invalid-field", "index": 0, "field": "userId"}));
    }
}

#[tokio::test]
async fn an_id_and_a_type_have_1_to_255_bytes_without_control_characters() {
    let long = format!("\"{}\"", "x".repeat(256));
    for value in ["\"\"", "17", "null", "\"a\\nb\"", "\"\\u007f\"", &long] {
        for field in ["ID", "type"] {
            let problem = refused_json(&format!(r#"{{"UserID":"u","Payload":"x","{field}":{value}}}"#)).await;
            assert_says(&problem, json!({"status": 400, "code": "invalid-field", "index": 0, "field": field}));
        }
    }
}

#[tokio::test]
async fn half_of_a_surrogate_pair_is_refused() {
    for payload in [r"\ud83d", r"\ude00", r"a\ud83db", r"\ud83d\ud83d"] {
        let problem = refused_json(&format!(r#"{{"UserID":"u","Payload":"{payload}"}}"#)).await;
        assert_says(&problem, json!({"status": 400, "code": "invalid-field", "index": 0, "field": "Payload"}));
        assert!(problem["detail"].as_str().unwrap().contains("surrogate"), "{problem}");
    }
}

#[tokio::test]
async fn a_batch_with_too_many_events_is_refused_with_the_limit() {
    let body = format!("[{}]", vec![GOOD; 101].join(","));
    let problem = refused_json(&body).await;
    assert_says(&problem, json!({"status": 413, "code": "batch-too-large", "index": 100}));
    assert!(problem["detail"].as_str().unwrap().contains("--max-batch"), "{problem}");
}

#[tokio::test]
async fn an_event_that_is_too_large_is_refused_with_the_limit() {
    let problem = refused_json(&format!(r#"[{GOOD},{{"UserID":"u","Payload":"{}"}}]"#, "x".repeat(16 * 1024))).await;
    assert_says(&problem, json!({"status": 413, "code": "event-too-large", "index": 1}));
    assert!(problem["detail"].as_str().unwrap().contains("--max-event"), "{problem}");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_with_or_without_a_length() {
    let body = format!(r#"{{"UserID":"u","Payload":"{}"}}"#, "x".repeat(64 * 1024));
    let problem = refused_json(&body).await;
    assert_says(&problem, json!({"status": 413, "code": "body-too-large"}));
    assert!(problem["detail"].as_str().unwrap().contains("--max-body"), "{problem}");

    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    client
        .send(
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
    client.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
    assert_says(&client.answer().await.problem(), json!({"status": 413, "code": "body-too-large"}));
    assert_eq!(client.post(GOOD).await.status, 200);
}

#[test]
fn a_client_that_sends_everything_before_it_reads_still_gets_413() {
    let (address, _runtime) = ingesting_thread();
    // The body is much larger than the socket buffers of both sides. It is sent with a length and in chunks.
    let body = "x".repeat(12 << 20);
    for framed in [
        format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
    ] {
        let head =
            "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n";
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all((head.to_owned() + &framed).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body-too-large"), "{answer}");
    }
}

/// Ingest on a runtime of its own, for tests whose clients block.
fn ingesting_thread() -> (SocketAddr, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ingesting = runtime.block_on(Ingesting::start(config()));
    let address = ingesting.address;
    runtime.spawn(async move {
        std::future::pending::<()>().await;
        drop(ingesting);
    });
    (address, runtime)
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_413_without_sending() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n";
    client.send(format!("{head}Content-Length: 70000\r\n\r\n")).await;
    assert_eq!(client.answer().await.problem()["code"], "body-too-large");
}

#[tokio::test]
async fn a_wrong_path_method_or_content_type_is_refused() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    for path in ["/", "/event", "/events/", "/events/1"] {
        client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}")).await;
        assert_says(&client.answer().await.problem(), json!({"status": 404, "code": "not-found"}));
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "FOO"] {
        client.send(format!("{method} /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.header("allow"), Some("POST"), "{answer:?}");
        assert_says(&answer.problem(), json!({"status": 405, "code": "method-not-allowed"}));
    }
    for content_type in
        ["", "text/plain", "application/jsonp", "application/json; charset=latin1", "application/x-www-form-urlencoded"]
    {
        let answer = client.post_as(content_type, GOOD).await;
        assert_says(&answer.problem(), json!({"status": 415, "code": "unsupported-media-type"}));
    }
    client.send(format!("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n{GOOD}", GOOD.len())).await;
    assert_says(&client.answer().await.problem(), json!({"status": 415, "code": "unsupported-media-type"}));
    assert_eq!(ingesting.log.appends(), 0);
}

#[tokio::test]
async fn a_doubled_content_type_or_content_encoding_is_refused() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    for doubled in [
        "Content-Type: application/json\r\nContent-Type: application/json",
        "Content-Type: application/json\r\ncontent-type: application/x-ndjson",
        "Content-Type: application/json\r\nContent-Encoding: identity\r\nContent-Encoding: gzip",
        "Content-Type: application/json\r\nContent-Encoding: identity\r\nContent-Encoding: identity",
    ] {
        let length = GOOD.len();
        let head = format!("POST /events HTTP/1.1\r\nHost: localhost\r\n{doubled}\r\nContent-Length: {length}\r\n\r\n");
        client.send(head + GOOD).await;
        assert_says(&client.answer().await.problem(), json!({"status": 400, "code": "repeated-header"}));
    }
    assert_eq!(ingesting.log.appends(), 0);
    assert_eq!(client.post(GOOD).await.status, 200);
}

/// Opens a connection, sends this request line and these headers, and returns the answer. Each header ends with its
/// line break.
async fn answer_to(ingesting: &Ingesting, line: &str, headers: &str) -> Answer {
    let mut client = ingesting.client().await;
    let length = GOOD.len();
    let head = format!("{line}\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    client.send(head + GOOD).await;
    client.answer().await
}

#[tokio::test]
async fn a_request_without_a_host_with_two_or_with_one_that_is_not_a_host_is_refused() {
    let ingesting = Ingesting::start(config()).await;
    for host in [
        "",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: localhost\r\nhost: other\r\n",
        "Host:\r\n",
        "Host: a b\r\n",
        "Host: user@localhost\r\n",
        "Host: localhost/path\r\n",
        "Host: localhost:port\r\n",
        "Host: localhost:65536\r\n",
        "Host: ::1\r\n",
        "Host: [::1\r\n",
        "Host: l\u{f6}calhost\r\n",
    ] {
        for line in ["POST /events HTTP/1.1", "POST http://localhost/events HTTP/1.1"] {
            let answer = answer_to(&ingesting, line, host).await;
            assert_says(&answer.problem(), json!({"status": 400, "code": "invalid-host"}));
            assert_eq!(answer.header("connection"), Some("close"));
        }
    }
    let answer = answer_to(&ingesting, "POST http://user@localhost/events HTTP/1.1", "Host: localhost\r\n").await;
    assert_says(&answer.problem(), json!({"status": 400, "code": "invalid-host"}));
    assert_eq!(ingesting.log.appends(), 0);
    assert_eq!(answer_to(&ingesting, "POST /events HTTP/1.0", "").await.status, 200, "HTTP/1.0 needs no Host");
}

#[tokio::test]
async fn on_loopback_a_host_of_another_machine_is_refused() {
    let allowed_hosts = vec!["events.example.com".to_owned()];
    let ingesting = Ingesting::start(Config { allowed_hosts, ..config() }).await;
    for foreign in ["evil.example", "localhost.evil.example", "10.1.2.3:80", "[2001:db8::1]", "0.0.0.0:8090"] {
        for line in ["POST /events HTTP/1.1", "POST /events HTTP/1.0"] {
            let answer = answer_to(&ingesting, line, &format!("Host: {foreign}\r\n")).await;
            assert_says(&answer.problem(), json!({"status": 421, "code": "foreign-host"}));
        }
    }
    // The host of an absolute request target counts, not the header.
    let target = "POST http://evil.example/events HTTP/1.1";
    let answer = answer_to(&ingesting, target, "Host: localhost\r\n").await;
    assert_says(&answer.problem(), json!({"status": 421, "code": "foreign-host"}));
    assert_eq!(ingesting.log.appends(), 0);
    let target = "POST http://localhost:8090/events HTTP/1.1";
    assert_eq!(answer_to(&ingesting, target, "Host: evil.example\r\n").await.status, 200);
    for own in [
        "localhost",
        "LOCALHOST:1",
        "a.localhost",
        "127.0.0.1:8090",
        "127.1.2.3",
        "[::1]:8090",
        "Events.example.com:443",
    ] {
        assert_eq!(
            answer_to(&ingesting, "POST /events HTTP/1.1", &format!("Host: {own}\r\n")).await.status,
            200,
            "{own}"
        );
    }
}

#[tokio::test]
async fn a_listener_that_is_not_on_loopback_accepts_every_host() {
    let ingesting = Ingesting::start_on("0.0.0.0:0", config()).await;
    for host in ["eventd.example", "localhost", "10.1.2.3:80"] {
        let answer = answer_to(&ingesting, "POST /events HTTP/1.1", &format!("Host: {host}\r\n")).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    assert_eq!(answer_to(&ingesting, "POST /events HTTP/1.1", "Host: a b\r\n").await.status, 400);
}

#[tokio::test]
async fn invalid_utf8_is_refused_with_its_position() {
    let problem = refused("application/json", b"{\"UserID\":\"u\",\"Payload\":\"a\xff\"}").await;
    assert_says(&problem, json!({"status": 400, "code": "invalid-utf8", "position": 26}));
    let problem = refused("application/json", b"{\"UserID\":\"u\",\"Payload\":[\"\xed\xa0\x80\"]}").await;
    assert_says(&problem, json!({"status": 400, "code": "invalid-utf8", "position": 26}));
}

#[tokio::test]
async fn malformed_json_that_is_deeply_nested_is_refused_without_a_crash() {
    let problem = refused_json(&"[".repeat(60_000)).await;
    assert_says(&problem, json!({"status": 400, "code": "not-an-event", "index": 0}));
    let problem = refused_json(&format!(r#"{{"UserID":"u","Payload":{}"#, r#"{"a":["#.repeat(9_000))).await;
    assert_says(&problem, json!({"status": 400, "code": "malformed-json"}));
}

#[tokio::test]
async fn in_ndjson_an_error_names_the_event_and_the_byte_of_the_body() {
    let lines = format!("{GOOD}\n\n{GOOD}\r\n{{\"UserID\":x}}\n");
    let problem = refused("application/x-ndjson", &lines).await;
    assert_says(
        &problem,
        json!({"status": 400, "code": "malformed-json", "index": 2, "position": 2 * GOOD.len() + 14}),
    );
    let problem = refused("application/x-ndjson", format!("{GOOD}\n[{GOOD}]")).await;
    assert_says(&problem, json!({"status": 400, "code": "not-an-event", "index": 1}));
    let problem = refused("application/x-ndjson", format!("{GOOD}\n{GOOD}{GOOD}\n")).await;
    assert_says(&problem, json!({"status": 400, "code": "malformed-json"}));
    // A byte order mark is ignored, but its three bytes count in positions.
    for content_type in ["application/json", "application/x-ndjson"] {
        let problem = refused(content_type, "\u{feff}{\"UserID\":x}").await;
        assert_says(&problem, json!({"status": 400, "code": "malformed-json", "index": 0, "position": 13}));
        let problem = refused(content_type, format!("\u{feff}\u{feff}{GOOD}")).await;
        assert_says(&problem, json!({"status": 400, "code": "malformed-json", "index": 0, "position": 3}));
    }
    let problem = refused("application/x-ndjson", format!("{GOOD}\n\u{feff}{GOOD}")).await;
    assert_says(&problem, json!({"status": 400, "code": "malformed-json", "index": 1}));
}

#[tokio::test]
async fn an_incomplete_body_stores_nothing() {
    let ingesting = Ingesting::start(config()).await;
    let whole = request("application/json", format!("[{GOOD},{GOOD}]"));
    let mut client = ingesting.client().await;
    client.send(&whole[..whole.len() - 1]).await;
    client.end().await;
    if let Some(answer) = client.answer_or_end().await {
        assert_says(&answer.problem(), json!({"status": 400, "code": "body-incomplete"}));
        client.closed().await;
    }
    let (log, ended) = ingesting.stop();
    ended.await;
    assert_eq!(log.appends(), 0);
}

/// Sends a request whose body comes one byte at a time. Returns the answer, and how many bytes were sent before it.
async fn drip(client: &mut Client, body: &str, every: Duration) -> (Answer, usize) {
    let whole = request("application/json", body);
    let head = whole.len() - body.len();
    client.send(&whole[..head]).await;
    let mut pace = tokio::time::interval(every);
    for (sent, byte) in whole[head..].chunks(1).enumerate() {
        tokio::select! {
            answer = client.answer() => return (answer, sent),
            _ = pace.tick() => {}
        }
        client.send(byte).await;
    }
    panic!("the whole body was sent without an answer");
}

#[tokio::test]
async fn a_body_that_arrives_too_slowly_is_ended_by_the_time_out() {
    let mut config = config();
    config.body_timeout = Duration::from_millis(300);
    let ingesting = Ingesting::start(config).await;
    let mut client = ingesting.client().await;
    let (answer, _) = drip(&mut client, GOOD, Duration::from_millis(100)).await;
    assert_says(&answer.problem(), json!({"status": 408, "code": "body-timeout"}));
    assert_eq!(answer.header("connection"), Some("close"));
    client.closed().await;
    assert_eq!(ingesting.log.appends(), 0);
}

/// The memory for a body grows with it. That must not give the client more time.
#[tokio::test]
async fn a_body_below_the_lowest_rate_is_refused_although_its_memory_grows() {
    let mut config = config();
    config.body_timeout = Duration::from_secs(60);
    let ingesting = Ingesting::start(config).await;
    let mut client = ingesting.client().await;
    let (answer, sent) = drip(&mut client, &" ".repeat(1_000), Duration::from_millis(500)).await;
    assert_says(&answer.problem(), json!({"status": 408, "code": "body-too-slow"}));
    // The memory is doubled at the 17th byte. With 10 s from then on, 36 bytes would be sent.
    assert!(sent < 30, "it was refused after {sent} bytes");
    client.closed().await;
}

#[tokio::test]
async fn a_head_that_arrives_too_slowly_is_ended_by_the_time_out() {
    let mut config = config();
    config.header_timeout = Duration::from_millis(300);
    let ingesting = Ingesting::start(config).await;
    let mut client = ingesting.client().await;
    client.send("POST /events HTTP/1.1\r\nHost").await;
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn bytes_that_are_not_http_get_a_400_and_an_endless_head_a_431() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    client.send("hello\r\n\r\n").await;
    assert!(client.closed().await.starts_with(b"HTTP/1.1 400 "));
    let mut client = ingesting.client().await;
    client.send(format!("POST /events HTTP/1.1\r\nX: {}", "x".repeat(40_000))).await;
    let answer = client.closed().await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
}
