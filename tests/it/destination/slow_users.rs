//! Users whose attempts hang must not delay the others. The tests use real sockets, and count requests instead of time.

use crate::support::client::Client;
use crate::support::program::Program;
use crate::support::receiver::{Hook, Receiver};
use crate::support::wait::eventually;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Requests of users whose name begins with `hang` wait here until the test opens it.
#[derive(Default)]
struct Barrier {
    is_open: Mutex<bool>,
    changed: Condvar,
    arrived: AtomicUsize,
}

impl Barrier {
    fn answer(&self, hook: &Hook) -> u16 {
        if hook.user().starts_with("hang") {
            self.arrived.fetch_add(1, Ordering::SeqCst);
            let is_open = self.is_open.lock().unwrap();
            drop(self.changed.wait_while(is_open, |is_open| !*is_open).unwrap());
        }
        200
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait_for(&self, count: usize) {
        eventually(|| match self.arrived.load(Ordering::SeqCst) {
            arrived if arrived >= count => Ok(()),
            arrived => Err(format!("{arrived} of {count} hanging requests have arrived")),
        });
    }
}

/// Posts one event for each of these users.
fn post(ingest: &Program, users: &[String]) {
    let events: Vec<String> = users.iter().map(|user| format!(r#"{{"UserID":"{user}","Payload":"x"}}"#)).collect();
    let answer = Client::connect(&ingest.address()).unwrap().post(&format!("[{}]", events.join(","))).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

fn users(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n}")).collect()
}

#[test]
fn more_hanging_users_than_slots_delay_no_user_that_was_served_before() {
    let (folder, receiver, barrier) = (tempfile::tempdir().unwrap(), Receiver::start(), Arc::new(Barrier::default()));
    let answering = Arc::clone(&barrier);
    receiver.answers(move |hook| answering.answer(hook));
    let flags = ["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0", "--concurrency", "8"];
    let destination = format!("hook={}", receiver.url);
    let up =
        Program::start(folder.path(), &[&flags[..], &["--attempt-timeout", "10m", "--dest", &destination]].concat());
    post(&up, &users("well", 20));
    receiver.wait_for(20);
    post(&up, &users("hang", 40));
    // The hanging users take all slots that new users may have. None of them is answered before the end.
    barrier.wait_for(8);
    for round in 2..12 {
        post(&up, &users("well", 20));
        receiver.wait_for(20 * round);
    }
    // After a second their attempts are old, and others of them are tried: twelve in all, and half of eight slots are left.
    barrier.wait_for(12);
    post(&up, &users("well", 20));
    receiver.wait_for(20 * 12);
    assert_eq!(barrier.arrived.load(Ordering::SeqCst), 12, "slots are kept for users that were served before");
    barrier.open();
    receiver.wait_for(20 * 12 + 40);
    assert_eq!(up.stop().code(), 0);
}

#[test]
fn new_users_are_served_while_more_others_than_slots_hang() {
    let (folder, receiver, barrier) = (tempfile::tempdir().unwrap(), Receiver::start(), Arc::new(Barrier::default()));
    let answering = Arc::clone(&barrier);
    receiver.answers(move |hook| answering.answer(hook));
    let flags = ["up", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0", "--concurrency", "256"];
    let destination = format!("hook={}", receiver.url);
    let up =
        Program::start(folder.path(), &[&flags[..], &["--attempt-timeout", "10m", "--dest", &destination]].concat());
    post(&up, &users("hang", 300));
    barrier.wait_for(256);
    // Nothing is known of these users either, and all slots of the first pool are taken.
    let well = users("well", 20);
    (0..5).for_each(|_| post(&up, &well));
    receiver.wait_for(5 * 20);
    // None of those that hang was answered meanwhile, and all of them have a slot.
    barrier.wait_for(300);
    assert_eq!(receiver.take().len(), 5 * 20);
    barrier.open();
    receiver.wait_for(300);
    assert_eq!(up.stop().code(), 0);
}
