//! What ingest accepts, how it is stored, and what is answered.

use crate::support::http::request;
use crate::support::ingesting::{Ingesting, config, event, user_of};
use eventd::core::event::Record;
use serde_json::json;
use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// The only record of all partitions.
fn only_record(ingesting: &Ingesting) -> Record {
    let mut records: Vec<Record> = (0..3).flat_map(|partition| ingesting.log.records(partition)).collect();
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

#[tokio::test]
async fn an_event_is_stored_as_a_record_and_its_offset_is_answered() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let before_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let body = r#"{"ID":"my \"id\"","UserID":"user-1","Type":"greeting","Payload":"hello"}"#;
    let head =
        "POST /events?source=test HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json; charset=UTF-8\r\n";
    client.send(format!("{head}Traceparent: {traceparent}\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let text = std::str::from_utf8(&answer.body).unwrap();
    assert_eq!(text, r#"{"results":[{"id":"my \"id\"","partition":2,"offset":0}]}"#);
    let record = only_record(&ingesting);
    assert_eq!((record.key(), record.value()), (Some(&b"user-1"[..]), Some(&b"hello"[..])));
    assert!(record.timestamp_ms >= before_ms && record.timestamp_ms < before_ms + 60_000);
    let headers: Vec<_> =
        record.headers().map(|(name, value)| (name, std::str::from_utf8(value.unwrap()).unwrap())).collect();
    let expected = [
        ("eventd-id", "my \"id\""),
        ("content-type", "text/plain; charset=utf-8"),
        ("eventd-type", "greeting"),
        ("traceparent", traceparent),
    ];
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn an_invalid_traceparent_is_ignored() {
    for traceparent in ["", "x", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x"] {
        let ingesting = Ingesting::start(config()).await;
        let mut client = ingesting.client().await;
        let body = event("u", "x");
        let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        client.send(format!("{head}traceparent: {traceparent}\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        assert_eq!(client.answer().await.status, 200);
        assert_eq!(only_record(&ingesting).header("traceparent"), None);
    }
}

#[tokio::test]
async fn payloads_are_stored_unchanged() {
    let deep = format!("{}1{}", "[".repeat(4_000), "]".repeat(4_000));
    for (sent, stored, content_type) in [
        (r#""text""#, "text", "text/plain; charset=utf-8"),
        (r#""""#, "", "text/plain; charset=utf-8"),
        (r#""a\"b\\c\/d\n\t\u0000\u00e9\ud83d\ude00""#, "a\"b\\c/d\n\t\0é😀", "text/plain; charset=utf-8"),
        (r#""😀 é""#, "😀 é", "text/plain; charset=utf-8"),
        ("12345678901234567890123", "12345678901234567890123", "application/json"),
        ("-0.10e+400", "-0.10e+400", "application/json"),
        ("null", "null", "application/json"),
        ("false", "false", "application/json"),
        ("{ \"b\" : 1,\n \"a\": [ ],\"b\":2}", "{ \"b\" : 1,\n \"a\": [ ],\"b\":2}", "application/json"),
        (r#"["\ud800","\u0041"]"#, r#"["\ud800","\u0041"]"#, "application/json"),
        (&deep, &deep, "application/json"),
    ] {
        let ingesting = Ingesting::start(config()).await;
        let mut client = ingesting.client().await;
        let answer = client.post(format!("{{\"UserID\":\"u\",\"Payload\": {sent} }}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let record = only_record(&ingesting);
        assert_eq!(record.value(), Some(stored.as_bytes()), "{sent}");
        assert_eq!(record.header_text("content-type"), Some(content_type), "{sent}");
    }
}

#[tokio::test]
async fn every_alias_of_a_field_is_accepted_and_escapes_in_ids_are_decoded() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    for body in [
        r#"{"UserID":"us\u0065r-1","Payload":1,"ID":"a\u00e9","Type":"t"}"#,
        r#"{"userId":"user-1","payload":1,"id":"aé","type":"t"}"#,
        r#"{"user_id":"user-1","payload":1,"id":"aé","type":"\u0074"}"#,
    ] {
        let answer = client.post(body).await;
        assert_eq!(answer.json()["results"][0]["id"], "aé", "{answer:?}");
    }
    let records = ingesting.log.records(2);
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|record| record.headers_encoded() == records[0].headers_encoded()));
}

#[tokio::test]
async fn results_are_in_the_order_of_the_batch_and_so_are_each_users_events() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let events: Vec<String> = (0..90).map(|n| event(&user_of(n % 3), &n.to_string())).collect();
    for (content_type, body, round) in [
        ("application/json", format!("[{}]", events.join(" , ")), 0),
        ("application/x-ndjson", format!("{}\r\n\n", events.join("\n")), 1),
    ] {
        let answer = client.post_as(content_type, body).await;
        let results = answer.json()["results"].as_array().unwrap().clone();
        let places: Vec<(u64, u64)> = results
            .iter()
            .map(|result| (result["partition"].as_u64().unwrap(), result["offset"].as_u64().unwrap()))
            .collect();
        assert_eq!(places, (0..90).map(|n| (n % 3, round * 30 + n / 3)).collect::<Vec<_>>());
        let ids: HashSet<&str> = results.iter().map(|result| result["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 90);
        assert!(ids.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'7'), "{ids:?}");
    }
    for partition in 0..3 {
        let once: Vec<String> = (0..30).map(|n| (3 * n + partition).to_string()).collect();
        assert_eq!(ingesting.log.values(partition), [once.clone(), once].concat());
    }
    assert_eq!(ingesting.log.appends(), 6);
}

#[tokio::test]
async fn a_byte_order_mark_before_the_body_is_ignored() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let (one, two) = (event("user-1", "1"), event("user-1", "2"));
    for (content_type, body) in [
        ("application/json", one.clone()),
        ("application/json", format!(" [{one},{two}]")),
        ("application/x-ndjson", format!("{one}\n{two}")),
        ("application/x-ndjson", format!("\n{one}")),
    ] {
        assert_eq!(client.post_as(content_type, format!("\u{feff}{body}")).await.status, 200, "{body}");
    }
    assert_eq!(ingesting.log.values(2), ["1", "1", "2", "1", "2", "1"]);
}

#[tokio::test]
async fn an_empty_batch_is_accepted() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    for (content_type, body) in [
        ("application/json", " [ ] "),
        ("application/x-ndjson", ""),
        ("application/x-ndjson", "\n\r\n"),
        ("application/x-ndjson", "\u{feff}"),
    ] {
        let answer = client.post_as(content_type, body).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"results": []})));
    }
    assert_eq!(ingesting.log.appends(), 0);
}

#[tokio::test]
async fn a_request_in_pieces_in_chunks_or_pipelined_is_accepted_alike() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    let large = format!("[{},{}]", event("user-1", &"a".repeat(15_000)), event("user-1", &"b".repeat(15_000)));
    let whole = request("application/json", &large);
    for piece in whole.chunks(1_500) {
        client.send(piece).await;
    }
    assert_eq!(client.answer().await.status, 200);
    let mut chunked = String::from(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    for chunk in large.as_bytes().chunks(999) {
        chunked += &format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap());
    }
    client.send(chunked + "0\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    let pipelined: Vec<u8> =
        (0..5).flat_map(|n| request("application/json", event("user-1", &n.to_string()))).collect();
    client.send(pipelined).await;
    for _ in 0..5 {
        assert_eq!(client.answer().await.status, 200);
    }
    let first: Vec<char> = ingesting.log.values(2).iter().map(|value| value.chars().next().unwrap()).collect();
    assert_eq!(first, ['a', 'b', 'a', 'b', '0', '1', '2', '3', '4']);
}
