//! What ingest does if the log fails, clients disconnect, limits are reached, or it is told to stop.

use crate::support::http::{Client, request};
use crate::support::ingesting::{Ingesting, config, event, user_of};
use crate::support::wait::soon;
use eventd::core::outcome::Ended;
use eventd::core::outcome::{Failure, FailureCode};
use eventd::ingest::Config;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

/// Limits that allow batches which need several appends.
fn large_config() -> Config {
    Config { max_body_bytes: 8 << 20, max_event_bytes: 900 << 10, max_pending_bytes: 64 << 20, ..config() }
}

/// The outcomes in `results`, shortened: `ok`, or the outcome and the code.
fn outcomes(problem: &Value) -> Vec<String> {
    let shorten = |result: &Value| match result["outcome"].as_str().unwrap() {
        "ok" => format!("ok {}:{}", result["partition"], result["offset"]),
        outcome => format!("{outcome} {}", result["error"]["code"].as_str().unwrap()),
    };
    problem["results"].as_array().unwrap().iter().map(shorten).collect()
}

#[tokio::test]
async fn a_partial_failure_keeps_each_users_order() {
    let ingesting = Ingesting::start(large_config()).await;
    let mut client = ingesting.client().await;
    // Two of these events fit in one append. So partition 0 needs three appends, and the second one fails.
    let large = "x".repeat(400 << 10);
    let mut events: Vec<String> = (0..5).map(|n| event(&user_of(0), &format!("{n}{large}"))).collect();
    events.insert(3, event(&user_of(1), "other"));
    ingesting.log.succeed_next(0);
    ingesting.log.fail_next(0, Failure::refused(FailureCode::LogFull, "the disk is full: make room"));
    let answer = client.post(format!("[{}]", events.join(","))).await;
    let problem = answer.problem();
    assert_eq!((answer.status, &problem["code"]), (503, &json!("log-full")));
    assert!(problem["detail"].as_str().unwrap().contains("the disk is full"), "{problem}");
    let expected =
        ["ok 0:0", "ok 0:1", "refused log-full", "ok 1:0", "refused log-full", "refused earlier-event-not-stored"];
    assert_eq!(outcomes(&problem), expected);
    assert_eq!(ingesting.log.appends(), 3, "nothing is tried after a failure");
    assert_eq!(ingesting.log.values(0), [format!("0{large}"), format!("1{large}")]);
    assert_eq!(ingesting.log.values(1), ["other"]);

    // The client does what the answer says: it sends what is not ok again. Then all events are stored in order.
    let again = format!("[{},{},{}]", events[2], events[4], events[5]);
    assert_eq!(client.post(again).await.status, 200);
    let heads: Vec<String> = ingesting.log.values(0).iter().map(|value| value[..1].to_owned()).collect();
    assert_eq!(heads, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn an_unknown_outcome_is_answered_as_unknown() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    ingesting.log.fail_next(2, Failure::unknown(FailureCode::LogUnavailable, "no answer in time"));
    let body = format!(r#"[{{"UserID":"user-1","Payload":1,"ID":"mine"}},{}]"#, event(&user_of(0), "x"));
    let answer = client.post(body).await;
    let problem = answer.problem();
    assert_eq!(
        (answer.status, outcomes(&problem)),
        (503, vec!["unknown log-unavailable".to_owned(), "ok 0:0".to_owned()])
    );
    assert_eq!(problem["results"][0]["id"], "mine");
}

#[tokio::test]
async fn a_refusal_of_the_log_is_answered_with_its_code() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    for (code, status) in [(FailureCode::LogBusy, 503), (FailureCode::EventTooLarge, 413)] {
        ingesting.log.fail_next(2, Failure::refused(code, "no"));
        let answer = client.post(event("user-1", "x")).await;
        assert_eq!((answer.status, &answer.problem()["code"]), (status, &json!(code.as_str())));
    }
    assert_eq!(ingesting.log.len(), 0);
    assert_eq!(client.post(event("user-1", "x")).await.status, 200);
}

#[tokio::test]
async fn pending_bytes_are_bounded_and_beyond_that_clients_get_503_at_once() {
    let ingesting = Ingesting::start(Config { max_pending_bytes: 40 * 1024, ..config() }).await;
    ingesting.log.freeze();
    let body = event("user-1", &"x".repeat(10 * 1024));
    let mut waiting = Vec::new();
    for appends in 1..=3 {
        let mut client = ingesting.client().await;
        client.send(request("application/json", &body)).await;
        ingesting.log.until_begun(appends).await;
        waiting.push(client);
    }
    let mut client = ingesting.client().await;
    for _ in 0..3 {
        let answer = client.post(&body).await;
        assert_eq!((answer.status, &answer.problem()["code"]), (503, &json!("overloaded")));
    }
    assert_eq!(ingesting.log.appends(), 3);
    ingesting.log.release();
    for client in &mut waiting {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(client.post(&body).await.status, 200);
    assert_eq!(ingesting.log.len(), 4);
}

#[tokio::test]
async fn pending_requests_and_arriving_bodies_have_separate_budgets() {
    let ingesting = Ingesting::start(Config { max_pending_bytes: 48 * 1024, ..config() }).await;
    let whole = request("application/json", event("user-1", &"x".repeat(15 * 1024)));
    let (most, last) = whole.split_at(whole.len() - 10);
    let mut arriving = [ingesting.client().await, ingesting.client().await, ingesting.client().await];
    for client in &mut arriving {
        client.send(most).await;
    }
    // None of these takes room from a complete request.
    let mut client = ingesting.client().await;
    for _ in 0..20 {
        assert_eq!(client.post(event("user-1", &"y".repeat(5 * 1024))).await.status, 200);
    }
    for client in &mut arriving {
        client.send(last).await;
        assert_eq!(client.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_large_content_length_alone_takes_no_room_from_others() {
    let ingesting = Ingesting::start(Config { max_pending_bytes: 64 * 1024, ..config() }).await;
    let mut idlers = Vec::new();
    for _ in 0..20 {
        let mut idler = ingesting.client().await;
        let whole = request("application/json", "x".repeat(60_000));
        idler.send(&whole[..whole.len() - 60_000 + 1]).await;
        idlers.push(idler);
    }
    let mut client = ingesting.client().await;
    for _ in 0..20 {
        assert_eq!(client.post(event("user-1", &"y".repeat(10 * 1024))).await.status, 200);
    }
}

#[tokio::test]
async fn connections_over_the_limit_wait_while_all_others_are_busy() {
    let ingesting = Ingesting::start(Config { max_connections: 2, ..config() }).await;
    let (mut one, mut two) = (ingesting.client().await, ingesting.client().await);
    ingesting.log.freeze();
    for (appends, client) in [(1, &mut one), (2, &mut two)] {
        client.send(request("application/json", event("user-1", "x"))).await;
        ingesting.log.until_begun(appends).await;
    }
    let mut three = ingesting.client().await;
    three.send(request("application/json", event("user-1", "3"))).await;
    ingesting.log.release();
    for client in [&mut one, &mut two, &mut three] {
        assert_eq!(client.answer().await.status, 200);
    }
    assert_eq!(ingesting.log.values(2), ["x", "x", "3"]);
}

#[tokio::test]
async fn an_append_continues_if_its_client_disconnects() {
    let ingesting = Ingesting::start(config()).await;
    ingesting.log.freeze();
    let mut client = ingesting.client().await;
    client.send(request("application/json", event("user-1", "kept"))).await;
    ingesting.log.until_begun(1).await;
    drop(client);
    // The stop waits for the append too, although no connection is left.
    let (log, ended) = ingesting.stop();
    let mut ended = std::pin::pin!(ended);
    tokio::select! {
        biased;
        early = &mut ended => panic!("ended while an append was in flight: {early:?}"),
        () = std::future::ready(()) => {}
    }
    log.release();
    log.until_stored(1).await;
    assert_eq!(ended.await, Ended::Drained);
    assert_eq!(log.values(2), ["kept"]);
}

#[tokio::test]
async fn a_stop_finishes_the_requests_that_have_begun_and_accepts_no_more() {
    let ingesting = Ingesting::start(config()).await;
    let address = ingesting.address;
    let (mut idle, mut busy, mut sending) =
        (ingesting.client().await, ingesting.client().await, ingesting.client().await);
    assert_eq!(idle.post(event("user-1", "idle")).await.status, 200);
    let whole = request("application/json", event("user-1", "sending"));
    assert_eq!(sending.post(event("user-1", "sends")).await.status, 200);
    sending.send(&whole[..whole.len() - 5]).await;
    ingesting.log.freeze();
    busy.send(request("application/json", event("user-1", "busy"))).await;
    ingesting.log.until_begun(3).await;
    let mut silent = ingesting.client().await;
    let (log, ended) = ingesting.stop();
    let ended = tokio::spawn(ended);
    assert_eq!(silent.closed().await, b"");
    assert_eq!(idle.closed().await, b"");
    // The listener is closed once the idle connection has seen the stop.
    assert!(TcpStream::connect(address).await.is_err());
    sending.send(&whole[whole.len() - 5..]).await;
    log.until_begun(4).await;
    log.release();
    for client in [&mut busy, &mut sending] {
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(ended.await.unwrap(), Ended::Drained);
    assert_eq!(log.len(), 4);
}

#[tokio::test]
async fn a_stop_ends_at_its_deadline_and_reports_unfinished_work() {
    let ingesting = Ingesting::start(Config { drain: Duration::from_millis(200), ..config() }).await;
    ingesting.log.freeze();
    let mut client = ingesting.client().await;
    client.send(request("application/json", event("user-1", "x"))).await;
    ingesting.log.until_begun(1).await;
    let (_log, ended) = ingesting.stop();
    assert_eq!(ended.await, Ended::WorkLeft);
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn after_the_partition_count_changed_everything_is_refused() {
    let ingesting = Ingesting::start(config()).await;
    let mut client = ingesting.client().await;
    assert_eq!(client.post(event("user-1", "x")).await.status, 200);
    ingesting.log.add_partition();
    let refused = async {
        loop {
            let answer = client.post(event("user-1", "x")).await;
            if answer.status != 200 {
                break answer;
            }
        }
    };
    let answer = soon("the change to be seen", refused).await;
    assert_eq!((answer.status, &answer.problem()["code"]), (503, &json!("partition-count-changed")));
}

#[tokio::test]
async fn all_listeners_accept_clients() {
    let first = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let second = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let log = crate::support::memory_log::MemoryLog::new(3);
    // With one connection at a time, a listener without clients must not occupy the place.
    let config = Config { max_connections: 1, ..config() };
    let running = tokio::spawn(eventd::ingest::run(vec![first, second], log.clone(), config, std::future::pending()));
    for address in [addresses[1], addresses[0], addresses[1], addresses[1], addresses[0]] {
        let mut client = Client::connect(address).await;
        assert_eq!(client.post(event("user-1", "x")).await.status, 200);
    }
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    assert_eq!(log.len(), 5);
}
