//! A receiver of webhooks that keeps all requests in the order of arrival, to judge several delivering processes
//! together.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Sink {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    arrivals: Mutex<Vec<Arrival>>,
    /// The user whose requests get no answer for now.
    held: Mutex<Option<String>>,
    release: Condvar,
}

#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) user: String,
    pub(crate) payload: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
    pub(crate) at: Instant,
}

impl Sink {
    /// Starts a sink that answers each request after `latency`. Its threads end with the test's process.
    pub(crate) fn start(latency: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&accepting));
                thread::spawn(move || serve(stream, latency, &shared));
            }
        });
        Self { url, shared }
    }

    /// Answers no request of this user until [`release`](Self::release).
    pub(crate) fn hold(&self, user: &str) {
        *self.shared.held.lock().unwrap() = Some(user.to_owned());
    }

    pub(crate) fn release(&self) {
        *self.shared.held.lock().unwrap() = None;
        self.shared.release.notify_all();
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.arrivals.lock().unwrap().len()
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    /// The partitions of all arrivals after the first `count`.
    pub(crate) fn partitions_after(&self, count: usize) -> BTreeSet<u32> {
        self.shared.arrivals.lock().unwrap()[count..].iter().map(|arrival| arrival.partition).collect()
    }

    /// The number of deliveries that were repetitions.
    pub(crate) fn repeated(&self) -> usize {
        let arrivals = self.shared.arrivals.lock().unwrap();
        let places: BTreeSet<(u32, i64)> = arrivals.iter().map(|arrival| (arrival.partition, arrival.offset)).collect();
        arrivals.len() - places.len()
    }

    /// The number of different events that were delivered. An event may be in the log twice, if the outcome of its
    /// first sending was unknown. Then it counts once.
    pub(crate) fn events(&self) -> u64 {
        let arrivals = self.shared.arrivals.lock().unwrap();
        let events: BTreeSet<(&str, &str)> =
            arrivals.iter().map(|arrival| (arrival.user.as_str(), arrival.payload.as_str())).collect();
        events.len() as u64
    }

    /// The longest time between two arrivals of one partition.
    pub(crate) fn longest_pause(&self) -> Duration {
        let mut last = BTreeMap::new();
        let arrivals = self.shared.arrivals.lock().unwrap();
        let pauses = arrivals.iter().filter_map(|arrival| {
            let before = last.insert(arrival.partition, arrival.at)?;
            Some(arrival.at - before)
        });
        pauses.max().unwrap_or_default()
    }

    /// Checks that each user's first deliveries are the payloads `0`, `1`, … without a gap, as many as were answered.
    pub(crate) fn judge<'a>(&self, answered: impl Iterator<Item = (&'a str, u64)>) {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        for (place, arrival) in self.arrivals().into_iter().enumerate() {
            let payload: u64 = arrival.payload.parse().unwrap();
            let expected = next.entry(arrival.user.clone()).or_default();
            assert!(payload <= *expected, "arrival {place}: {arrival:?} came before {expected}");
            if payload == *expected {
                *expected += 1;
            }
        }
        for (user, events) in answered {
            assert_eq!(next.get(user).copied().unwrap_or(0), events, "{user}: events delivered, and events answered");
        }
    }
}

/// Serves one connection, request after request.
fn serve(stream: TcpStream, latency: Duration, shared: &Shared) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    stream.set_nodelay(true).unwrap();
    // If the sending process is killed, its last request is incomplete and does not count.
    while let Some(arrival) = read(&mut reader) {
        let user = arrival.user.clone();
        shared.arrivals.lock().unwrap().push(arrival);
        let is_held = |held: &mut Option<String>| held.as_ref() == Some(&user);
        drop(shared.release.wait_while(shared.held.lock().unwrap(), is_held).unwrap());
        thread::sleep(latency);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Arrival> {
    let (mut line, mut headers) = (String::new(), BTreeMap::new());
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.to_owned())),
            None if line == "\r\n" => break,
            None => {}
        }
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let (partition, offset) = headers.get("eventd-offset")?.split_once(':')?;
    Some(Arrival {
        user: headers.get("eventd-user")?.clone(),
        payload: String::from_utf8(body).ok()?,
        partition: partition.parse().ok()?,
        offset: offset.parse().ok()?,
        at: Instant::now(),
    })
}
