//! Several events of one user in one request (`--batch`), on real sockets.

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::receiver::{Hook, Receiver};
use crate::support::wait::eventually;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver as Arrivals, SyncSender};
use std::sync::{Arc, Condvar, Mutex};

const MEDIA_TYPE: &str = "application/cloudevents-batch+json";

/// Posts these payloads as events of one user.
fn post(ingest: &Program, payloads: std::ops::Range<u32>) {
    post_of(ingest, &["hot"], payloads);
}

/// Posts these payloads as events of the users in turn.
fn post_of(ingest: &Program, users: &[&str], payloads: std::ops::Range<u32>) {
    let event = |n| format!(r#"{{"UserID":"{}","Payload":"payload {n}"}}"#, users[n as usize % users.len()]);
    let events: Vec<String> = payloads.map(event).collect();
    let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{}]", events.join(","))).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn up(folder: &std::path::Path, receiver: &Receiver) -> Program {
    up_with(folder, receiver, &["--batch", "4"])
}

fn up_with(folder: &std::path::Path, receiver: &Receiver, more: &[&str]) -> Program {
    let destination = format!("hook={}", receiver.url);
    let flags = ["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0", "--dest", &destination];
    Program::start(folder, &[&flags, more].concat())
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

/// The payloads of a request.
fn payloads(hook: &Hook) -> Vec<String> {
    if hook.header("content-type") != MEDIA_TYPE {
        return vec![hook.body.clone()];
    }
    let events: Vec<Value> = serde_json::from_str(&hook.body).unwrap();
    events
        .iter()
        .map(|event| BASE64_STANDARD.decode(event["data_base64"].as_str().unwrap()).unwrap())
        .map(utf8)
        .collect()
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_receiver_that_refuses_batches_is_not_out_and_gets_few_of_them() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    receiver.answers(|hook| if hook.header("content-type") == MEDIA_TYPE { 415 } else { 200 });
    let up = up_with(folder.path(), &receiver, &["--batch", "100"]);
    let users = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    for part in 0..10 {
        post_of(&up, &users, part * 200..(part + 1) * 200);
    }
    receiver.wait_for(2_000);
    let mut delivered: Vec<String> = receiver.take().iter().flat_map(payloads).collect();
    delivered.sort_unstable();
    let mut posted: Vec<String> = (0..2_000).map(|n| format!("payload {n}")).collect();
    posted.sort_unstable();
    assert_eq!(delivered, posted, "each event once, alone");
    // Ten users find out at once that batches fail: log2(100) batches each. Then one of 64 requests is a batch.
    let refused = receiver.refused();
    assert!((1..=10 * 7 + 7 + 2_000 / 64 + 10).contains(&refused), "{refused} batches were sent");
    let lines = up.lines();
    assert!(lines.contains("a batch failed as a whole"), "{lines}");
    for wrong in ["fails for every user", "delivers nothing", "gave up", "is stuck"] {
        assert!(!lines.contains(wrong), "{wrong}: {lines}");
    }
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn one_bad_event_becomes_a_dead_letter_and_the_others_are_delivered_once_each() {
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::start());
    let (release, arrivals) =
        hold_first(&receiver, |hook| if payloads(hook).contains(&"payload 150".to_owned()) { 400 } else { 200 });
    let flags = ["--batch", "200", "--attempts", "2", "--backoff", "10ms"];
    let up = up_with(folder.path(), &receiver, &flags);
    post(&up, 0..1);
    arrivals.recv().unwrap();
    post(&up, 1..201);
    drop(release);
    let mut delivered = Vec::new();
    eventually(|| {
        delivered.extend(receiver.take());
        let events: usize = delivered.iter().map(|hook| payloads(hook).len()).sum();
        if events >= 200 { Ok(()) } else { Err(format!("{events} events are delivered")) }
    });
    let requests = delivered.len() as u64 + receiver.refused();
    let delivered: Vec<String> = delivered.iter().flat_map(payloads).collect();
    let others = (0..201).filter(|n| *n != 150).map(|n| format!("payload {n}"));
    assert_eq!(delivered, others.collect::<Vec<_>>());
    assert!(requests <= 1 + 5 * 7 + 5 + 2, "{requests} requests");
    up.wait_for(&["gave up an event", "offset=150", "attempts=2"]);
    assert_eq!(up.stop().code(), 0);
}

/// The users whose requests wait, the number of their events, and whether they may continue.
#[derive(Default)]
struct Hanging {
    events: Mutex<Vec<usize>>,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Hanging {
    fn answer(&self, hook: &Hook) -> u16 {
        if hook.user().starts_with("hang") {
            self.events.lock().unwrap().push(offsets(hook).len());
            let is_over = self.is_over.lock().unwrap();
            drop(self.over.wait_while(is_over, |is_over| !*is_over).unwrap());
        }
        200
    }

    fn wait_for(&self, requests: usize) {
        eventually(|| match self.events.lock().unwrap().len() {
            arrived if arrived >= requests => Ok(()),
            arrived => Err(format!("{arrived} of {requests} hanging requests have arrived")),
        });
    }
}

/// Waits until this many events have arrived that do not hang, and returns the lengths of their requests.
fn arrived(receiver: &Receiver, events: usize) -> Vec<usize> {
    let mut lengths = Vec::new();
    eventually(|| {
        lengths.extend(receiver.take().iter().map(|hook| offsets(hook).len()));
        match lengths.iter().sum::<usize>() {
            arrived if arrived >= events => Ok(()),
            arrived => Err(format!("{arrived} of {events} events have arrived")),
        }
    });
    assert_eq!(lengths.iter().sum::<usize>(), events);
    lengths
}

/// More hanging users than have room for the longest runs. Each has two of them.
#[test]
fn hanging_users_with_long_batches_delay_no_other_user() {
    let (folder, receiver, hanging) = (tempfile::tempdir().unwrap(), Receiver::start(), Arc::new(Hanging::default()));
    let answering = Arc::clone(&hanging);
    receiver.answers(move |hook| answering.answer(hook));
    let flags = ["--batch", "1000", "--partitions", "1", "--concurrency", "64", "--attempt-timeout", "10m"];
    let up = up_with(folder.path(), &receiver, &flags);
    let served = ["a", "b", "c", "d", "e", "f", "g", "h"];
    post_of(&up, &served, 0..8);
    arrived(&receiver, 8);
    let names: Vec<String> = (0..20).map(|n| format!("hang-{n}")).collect();
    for name in &names {
        post_of(&up, &[name], 0..2_000);
    }
    // None of them is answered before the end.
    hanging.wait_for(20);
    let hung = hanging.events.lock().unwrap().clone();
    assert!(hung.iter().sum::<usize>() <= 5_000, "they have half of 10,000 events: {hung:?}");
    for round in 0..10 {
        post_of(&up, &served, 0..80);
        arrived(&receiver, 80);
        // Nothing is known of this user.
        post_of(&up, &[&format!("new-{round}")], 0..10);
        arrived(&receiver, 10);
    }
    post_of(&up, &["a"], 0..500);
    let lengths = arrived(&receiver, 500);
    assert!(lengths.iter().any(|length| *length > 100), "users that are served have long batches: {lengths:?}");
    assert_eq!(hanging.events.lock().unwrap().len(), 20, "a hanging user has one request at a time");
    *hanging.is_over.lock().unwrap() = true;
    hanging.over.notify_all();
    let left = 20 * 2_000;
    arrived(&receiver, left);
    assert_eq!(up.stop().code(), 0);
}
