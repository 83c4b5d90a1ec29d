//! A steady load with an *intended send time* for each event. If the server is slow, events are sent late, but their
//! waiting time still counts from the time at which they should have been sent (no coordinated omission).
//!
//! ```text
//!  schedule: one thread ── event i is due at start + i / rate ──▶ one queue for each connection ── requests ──▶ ingest
//! ```
//!
//! A connection has its own users, so the events of one user are sent in order. It sends everything that is due in one
//! request, so a hot user does not wait for its own answers.

use super::case::Case;
use crate::client::{Connection, request};
use crate::roles::now_ns;
use crate::run::START_WITHIN;
use crate::users::{PAYLOAD_BYTES, SplitMix};
use anyhow::ensure;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 16;

/// Events that may wait for a connection. Beyond that the schedule waits, and later events are sent late.
const WAITING_MAX: usize = 10_000;

/// Events in one request.
const EVENTS_A_REQUEST_MAX: usize = 100;

/// The width of the numbers at the start of a payload.
const STAMP_DIGITS: usize = 20;
const NUMBER_DIGITS: usize = 10;

/// One event, as its payload names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// When it should have been sent, in nanoseconds since the Unix epoch.
    pub(crate) intended_ns: u64,
    pub(crate) user: u32,
    /// Its number among the events of its user, from 0 on.
    pub(crate) number: u32,
}

impl Stamp {
    fn payload(&self) -> String {
        let Self { intended_ns, user, number } = self;
        let mut payload = format!("{intended_ns:0STAMP_DIGITS$}{user:0NUMBER_DIGITS$}{number:0NUMBER_DIGITS$}");
        while payload.len() < PAYLOAD_BYTES {
            payload.push('.');
        }
        payload
    }

    /// Reads the stamp of a payload.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let digits = |from: usize, len: usize| std::str::from_utf8(payload.get(from..from + len)?).ok();
        Some(Self {
            intended_ns: digits(0, STAMP_DIGITS)?.parse().ok()?,
            user: digits(STAMP_DIGITS, NUMBER_DIGITS)?.parse().ok()?,
            number: digits(STAMP_DIGITS + NUMBER_DIGITS, NUMBER_DIGITS)?.parse().ok()?,
        })
    }
}

/// What a load has sent.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) started_ns: u64,
    pub(crate) ended_ns: u64,
    /// The intended send times of all events of healthy users, in order.
    pub(crate) healthy: Vec<Stamp>,
}

/// Open connections to ingest.
#[derive(Debug)]
pub(crate) struct Load {
    runtime: tokio::runtime::Runtime,
    connections: Vec<Connection>,
}

impl Load {
    /// Connects. Waits for as long as the server may need to start.
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(runtime.block_on(Connection::open(address, START_WITHIN))?);
        }
        Ok(Self { runtime, connections })
    }

    /// Sends events at this rate, and waits until ingest has accepted all of them.
    pub(crate) fn run(self, case: Case, a_second: u32, lasting: Duration) -> anyhow::Result<Sent> {
        let (mut queues, mut tasks) = (Vec::new(), JoinSet::new());
        for connection in self.connections {
            let (queue, due) = mpsc::channel(WAITING_MAX);
            queues.push(queue);
            tasks.spawn_on(send(connection, due), self.runtime.handle());
        }
        let (started, started_ns) = (Instant::now(), now_ns());
        let (mut random, mut numbers, mut healthy, mut event) = (SplitMix(0x5eed), Vec::new(), Vec::new(), 0u64);
        loop {
            let due = Duration::from_secs_f64(event as f64 / f64::from(a_second));
            if due >= lasting {
                break;
            }
            // Returns at once if the schedule is late.
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            let user = case.user(event, random.unit());
            if numbers.len() <= user as usize {
                numbers.resize(user as usize + 1, 0u32);
            }
            let number = &mut numbers[user as usize];
            let stamp = Stamp { intended_ns: started_ns + u64::try_from(due.as_nanos())?, user, number: *number };
            *number += 1;
            event += 1;
            if case.is_healthy(user) {
                healthy.push(stamp);
            }
            if queues[user as usize % CONNECTIONS].blocking_send(stamp).is_err() {
                // The connection's task has failed, and its error is told below.
                break;
            }
        }
        drop(queues);
        self.runtime.block_on(async {
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            anyhow::Ok(())
        })?;
        Ok(Sent { started_ns, ended_ns: now_ns(), healthy })
    }
}

/// Sends what is due on one connection until the queue ends.
async fn send(mut connection: Connection, mut due: mpsc::Receiver<Stamp>) -> anyhow::Result<()> {
    let mut stamps = Vec::new();
    while due.recv_many(&mut stamps, EVENTS_A_REQUEST_MAX).await > 0 {
        let mut body = String::from("[");
        for (index, stamp) in stamps.drain(..).enumerate() {
            let separator = if index == 0 { "" } else { "," };
            let _ = write!(body, r#"{separator}{{"UserID":"user-{}","Payload":"{}"}}"#, stamp.user, stamp.payload());
        }
        body.push(']');
        let answer = connection.exchange(&request("/events", body.as_bytes())).await?;
        ensure!(answer.status == 200, "ingest answered {}: {}", answer.status, String::from_utf8_lossy(answer.body));
    }
    Ok(())
}
