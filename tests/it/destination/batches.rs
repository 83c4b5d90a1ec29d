//! Several events of one user in one request (`--batch`), on real sockets.

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::receiver::{Hook, Receiver};
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver as Arrivals, SyncSender};
use std::sync::{Arc, Mutex};

const MEDIA_TYPE: &str = "application/cloudevents-batch+json";

/// Posts these payloads as events of one user.
fn post(ingest: &Program, payloads: std::ops::Range<u32>) {
    let event = |n| format!(r#"{{"UserID":"hot","Payload":"payload {n}"}}"#);
    let events: Vec<String> = payloads.map(event).collect();
    let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{}]", events.join(","))).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn up(folder: &std::path::Path, receiver: &Receiver) -> Program {
    let destination = format!("hook={}", receiver.url);
    let flags = ["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0", "--batch", "4", "--dest", &destination];
    Program::start(folder, &flags)
}

/// The offsets of the events of a request.
fn offsets(hook: &Hook) -> Vec<u64> {
    let offset = |text: &str| text.split_once(':').unwrap().1.parse().unwrap();
    if hook.header("content-type") != MEDIA_TYPE {
        return vec![offset(hook.header("eventd-offset"))];
    }
    let events: Vec<Value> = serde_json::from_str(&hook.body).unwrap();
    events.iter().map(|event| offset(event["eventdoffset"].as_str().unwrap())).collect()
}

/// Makes the first request wait until the returned sender is dropped, and tells of its arrival. `answer` has the status of
/// every other one.
fn hold_first(
    receiver: &Receiver,
    answer: impl Fn(&Hook) -> u16 + Send + Sync + 'static,
) -> (SyncSender<()>, Arrivals<()>) {
    let (release, released) = mpsc::sync_channel::<()>(1);
    let (arrived, arrivals) = mpsc::sync_channel(1);
    let released = Mutex::new(released);
    let is_first = AtomicBool::new(true);
    receiver.answers(move |hook| {
        if is_first.swap(false, Ordering::SeqCst) {
            arrived.send(()).unwrap();
            assert!(released.lock().unwrap().recv().is_err(), "nothing is sent");
            return 200;
        }
        answer(hook)
    });
    (release, arrivals)
}

#[test]
fn events_that_wait_behind_the_first_go_together_and_in_order() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let (release, arrivals) = hold_first(&receiver, |_| 200);
    let up = up(folder.path(), &receiver);
    post(&up, 0..1);
    arrivals.recv().unwrap();
    post(&up, 1..10);
    drop(release);
    let mut seen = Vec::new();
    while seen.len() < 10 {
        receiver.wait_for(1);
        for hook in receiver.take() {
            let offsets = offsets(&hook);
            assert!(offsets.len() <= 4 && hook.user() == "hot", "{hook:?}");
            if offsets.len() > 1 {
                assert_eq!(hook.header("content-type"), MEDIA_TYPE);
                let events: Vec<Value> = serde_json::from_str(&hook.body).unwrap();
                assert!(events.iter().all(|event| event["partitionkey"] == "hot"), "{}", hook.body);
            }
            seen.push(offsets);
        }
        let events = seen.iter().map(Vec::len).sum::<usize>();
        if events == 10 {
            break;
        }
    }
    let in_order = seen.concat();
    assert!(in_order.is_sorted() && in_order.len() == 10, "{seen:?}");
    assert!(seen.len() < 10, "no request had several events: {seen:?}");
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn after_a_batch_that_failed_its_first_event_goes_alone_and_loses_no_try() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let requests = Arc::<Mutex<Vec<Vec<u64>>>>::default();
    let log = Arc::clone(&requests);
    // The receiver knows no batches.
    let (release, arrivals) = hold_first(&receiver, move |hook| {
        let offsets = offsets(hook);
        let status = if offsets.len() > 1 { 415 } else { 200 };
        log.lock().unwrap().push(offsets);
        status
    });
    let up = up(folder.path(), &receiver);
    post(&up, 0..1);
    arrivals.recv().unwrap();
    post(&up, 1..6);
    drop(release);
    receiver.wait_for(6);
    let requests = requests.lock().unwrap().clone();
    let batches = requests.iter().filter(|offsets| offsets.len() > 1).count();
    assert!(batches > 0, "{requests:?}");
    for pair in requests.windows(2).filter(|pair| pair[0].len() > 1) {
        assert_eq!(pair[1], [pair[0][0]], "the first event of the batch goes alone next: {requests:?}");
    }
    let delivered = receiver.take();
    let delivered: Vec<u64> = delivered.iter().flat_map(offsets).collect();
    assert!(delivered.is_sorted() && delivered.len() == 6, "{delivered:?}");
    assert!(!up.lines().contains("gave up"), "a batch that is refused refuses none of its events");
    assert_eq!(up.stop().code(), 0);
}
