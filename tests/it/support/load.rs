//! Clients that want order: each waits for the answer before it sends its users' next events, and sends a request again,
//! with the same ids, until it is answered with 200.

use super::client::Client;
use super::program::PATIENCE;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;
const USERS_A_CLIENT: usize = 5;
/// Of each of two users, so that a request reaches several partitions.
const EVENTS_A_USER: u64 = 2;

/// Clients that send until they are told to stop.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<BTreeMap<String, u64>>>,
}

struct Shared {
    address: Mutex<String>,
    stop: AtomicBool,
    requests_again: AtomicU64,
}

/// What the clients know at the end.
pub(crate) struct Answered {
    /// How many events of each user were answered with 200: those with the payloads `0`, `1`, ….
    pub(crate) events: BTreeMap<String, u64>,
    /// Requests that had to be sent again: nobody knows whether their first sending was stored.
    pub(crate) requests_again: u64,
}

impl Load {
    pub(crate) fn start(address: &str) -> Self {
        let shared = Arc::new(Shared {
            address: Mutex::new(address.to_owned()),
            stop: AtomicBool::new(false),
            requests_again: AtomicU64::new(0),
        });
        let client = |client| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.send(client))
        };
        Self { clients: (0..CLIENTS).map(client).collect(), shared }
    }

    /// Ingest listens somewhere else from now on.
    pub(crate) fn turn_to(&self, address: &str) {
        address.clone_into(&mut self.shared.address.lock().unwrap());
    }

    /// Waits until every client's last request was answered.
    pub(crate) fn stop(mut self) -> Answered {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut events = BTreeMap::new();
        for client in self.clients.drain(..) {
            events.append(&mut client.join().unwrap());
        }
        Answered { events, requests_again: self.shared.requests_again.load(Ordering::Relaxed) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn send(&self, client: usize) -> BTreeMap<String, u64> {
        let users: Vec<String> = (0..USERS_A_CLIENT).map(|user| format!("user-{client}-{user}")).collect();
        let mut answered: BTreeMap<String, u64> = users.iter().map(|user| (user.clone(), 0)).collect();
        let mut connection = None;
        for request in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let of = [&users[request % users.len()], &users[(request + 1) % users.len()]];
            let events = of.into_iter().flat_map(|user| {
                let from = answered[user];
                (from..from + EVENTS_A_USER)
                    .map(move |n| format!(r#"{{"UserID":"{user}","Payload":"{n}","ID":"{user}.{n}"}}"#))
            });
            let body = format!("[{}]", events.collect::<Vec<_>>().join(","));
            self.send_until_answered(&mut connection, &body);
            for user in of {
                *answered.get_mut(user).unwrap() += EVENTS_A_USER;
            }
        }
        answered
    }

    fn send_until_answered(&self, connection: &mut Option<Client>, body: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = match connection.as_mut() {
                Some(connection) => connection.post(body),
                None => {
                    Client::connect(&self.address.lock().unwrap()).and_then(|new| connection.insert(new).post(body))
                }
            };
            match answer {
                Ok(answer) if answer.status == 200 => return,
                Ok(answer) => assert!(answer.status == 503, "{answer:?}"),
                Err(_) => *connection = None,
            }
            assert!(Instant::now() < deadline, "never answered: {body}");
            self.requests_again.fetch_add(1, Ordering::Relaxed);
            // Between two tries, as a client would: ingest may be down.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
