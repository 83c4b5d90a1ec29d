//! Clients that keep order. Each waits for an answer before it sends its users' next events. What is not stored it
//! sends again with the same ids: after a 503 the events whose result is not ok, after a broken connection the whole
//! request. It keeps what each event was answered, to compare it with the log.

use super::client::{Answer, Client};
use super::wait::{PATIENCE, eventually};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;
const USERS_A_CLIENT: usize = 5;
/// Events for each of two users in a request, so that one request reaches several partitions.
const EVENTS_A_USER: u64 = 2;

/// Clients that send until they are told to stop.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Events>>,
}

struct Shared {
    address: Mutex<String>,
    /// The time between two requests of one client.
    pause: Duration,
    stop: AtomicBool,
    requests_again: AtomicU64,
    refusals: AtomicU64,
    under_way: AtomicUsize,
    /// For each client, its requests that were answered with 200.
    taken: [AtomicU64; CLIENTS],
    slowest_ms: AtomicU64,
}

/// For each user, what its events with the payloads `0`, `1`, … were answered.
type Events = BTreeMap<String, Vec<EventOutcome>>;

/// What a client knows about one event.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EventOutcome {
    /// The place of the event, from the answer that reported it as stored.
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    /// Sendings whose outcome is unknown: the answer said so, or there was no answer.
    pub(crate) unknown: u64,
    /// Sendings that an answer reported as not stored.
    pub(crate) refused: u64,
}

/// What the clients know at the end.
pub(crate) struct Answered {
    /// For each user, what its events with the payloads `0`, `1`, … were answered. Each was stored in the end.
    pub(crate) events: Events,
    /// Requests that had to be sent again.
    pub(crate) requests_again: u64,
    /// Answers with status 503. Each had a `Retry-After`.
    pub(crate) refusals: u64,
    /// The longest time that a client waited for one answer.
    pub(crate) slowest: Duration,
}

impl Answered {
    /// The number of events that were answered with ok.
    pub(crate) fn count(&self) -> usize {
        self.events.values().map(Vec::len).sum()
    }
}

impl Load {
    pub(crate) fn start(address: &str) -> Self {
        Self::with_pauses(address, Duration::ZERO)
    }

    /// Each client waits this long between two requests, which leaves the machine time for what the test does.
    pub(crate) fn with_pauses(address: &str, pause: Duration) -> Self {
        let shared = Arc::new(Shared {
            address: Mutex::new(address.to_owned()),
            pause,
            stop: AtomicBool::new(false),
            requests_again: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            taken: Default::default(),
            slowest_ms: AtomicU64::new(0),
        });
        let client = |client| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.send(client))
        };
        Self { clients: (0..CLIENTS).map(client).collect(), shared }
    }

    /// From now on, clients connect to this address.
    pub(crate) fn turn_to(&self, address: &str) {
        address.clone_into(&mut self.shared.address.lock().unwrap());
    }

    /// Requests that were sent and not answered yet.
    pub(crate) fn under_way(&self) -> usize {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    /// Answers with status 503 so far.
    pub(crate) fn refusals(&self) -> u64 {
        self.shared.refusals.load(Ordering::Relaxed)
    }

    /// Waits until every client got this many more answers with 200, and returns how long that took.
    pub(crate) fn wait_for_more(&self, requests: u64) -> Duration {
        let taken = || -> Vec<u64> { self.shared.taken.iter().map(|taken| taken.load(Ordering::Relaxed)).collect() };
        let (before, began) = (taken(), Instant::now());
        eventually(|| {
            let now = taken();
            let done = now.iter().zip(&before).all(|(now, before)| now - before >= requests);
            if done {
                Ok(began.elapsed())
            } else {
                Err(format!("answers with 200 for each client: {now:?}, before: {before:?}"))
            }
        })
    }

    /// Waits for this many more answers with 503.
    pub(crate) fn wait_for_refusals(&self, more: u64) {
        let before = self.refusals();
        eventually(|| match self.refusals() - before {
            new if new >= more => Ok(()),
            new => Err(format!("{new} answers with 503, {} requests in flight", self.under_way())),
        });
    }

    /// Tells the clients to stop, and waits until each got the answer to its last request.
    pub(crate) fn stop(mut self) -> Answered {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut events = BTreeMap::new();
        for client in self.clients.drain(..) {
            events.append(&mut client.join().unwrap());
        }
        Answered {
            events,
            requests_again: self.shared.requests_again.load(Ordering::Relaxed),
            refusals: self.refusals(),
            slowest: Duration::from_millis(self.shared.slowest_ms.load(Ordering::Relaxed)),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// A user and the number of one of its events.
type Name = (String, u64);

/// A result in the body of an answer.
#[derive(Deserialize)]
struct Result {
    /// Absent if all events of the request are ok.
    outcome: Option<String>,
    id: String,
    partition: Option<u32>,
    offset: Option<i64>,
}

impl Shared {
    fn send(&self, client: usize) -> Events {
        let users: Vec<String> = (0..USERS_A_CLIENT).map(|user| format!("user-{client}-{user}")).collect();
        let mut told: Events = users.iter().map(|user| (user.clone(), Vec::new())).collect();
        let mut connection = None;
        for request in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let of = [&users[request % users.len()], &users[(request + 1) % users.len()]];
            let mut names = Vec::new();
            for user in of {
                let events = told.get_mut(user).unwrap();
                let from = events.len() as u64;
                names.extend((from..from + EVENTS_A_USER).map(|number| (user.clone(), number)));
                events.resize((from + EVENTS_A_USER) as usize, EventOutcome::default());
            }
            self.send_until_accepted(&mut connection, names, &mut told);
            self.taken[client].fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.pause);
        }
        told
    }

    fn send_until_accepted(&self, connection: &mut Option<Client>, mut names: Vec<Name>, told: &mut Events) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.send_once(connection, &names) {
                Ok(answer) => record_answer(&answer, &mut names, told),
                Err(_) => {
                    *connection = None;
                    for (user, number) in &names {
                        told.get_mut(user).unwrap()[*number as usize].unknown += 1;
                    }
                }
            }
            if names.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "never accepted: {names:?}");
            self.requests_again.fetch_add(1, Ordering::Relaxed);
            // A real client waits between two tries too: ingest may be down.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn send_once(&self, connection: &mut Option<Client>, names: &[Name]) -> std::io::Result<Answer> {
        let event =
            |(user, number): &Name| format!(r#"{{"UserID":"{user}","Payload":"{number}","ID":"{user}.{number}"}}"#);
        let body = format!("[{}]", names.iter().map(event).collect::<Vec<_>>().join(","));
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Client::connect(&self.address.lock().unwrap())?),
        };
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        let answer = connection.post(&body);
        self.slowest_ms.fetch_max(sent.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        if let Ok(answer) = &answer
            && answer.status != 200
        {
            assert!(answer.status == 503 && answer.retry_after.is_some(), "{answer:?}");
            self.refusals.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

/// Stores what the answer says, and leaves in `names` only what has to be sent again.
fn record_answer(answer: &Answer, names: &mut Vec<Name>, told: &mut Events) {
    #[derive(Deserialize)]
    struct Body {
        results: Option<Vec<Result>>,
    }
    let body: Body = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
    // An answer without results means that no event of the request was tried.
    let results: BTreeMap<String, Result> =
        body.results.into_iter().flatten().map(|result| (result.id.clone(), result)).collect();
    assert!(results.len() == names.len() || (results.is_empty() && answer.status == 503), "{answer:?}");
    names.retain(|(user, number)| {
        let told = &mut told.get_mut(user).unwrap()[*number as usize];
        let Some(result) = results.get(&format!("{user}.{number}")) else {
            told.refused += 1;
            return true;
        };
        match (result.outcome.as_deref(), result.partition, result.offset) {
            (None | Some("ok"), Some(partition), Some(offset)) => (told.partition, told.offset) = (partition, offset),
            (Some("refused"), ..) => told.refused += 1,
            (Some("unknown"), ..) => told.unknown += 1,
            _ => panic!("no outcome for {user}.{number}: {answer:?}"),
        }
        matches!(result.outcome.as_deref(), Some("refused" | "unknown"))
    });
}
