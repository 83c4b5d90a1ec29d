//! How many events `eventd ingest` accepts, with 1, 10 and 100 events in a request, over open connections.

use crate::child::{Child, Helper};
use crate::client::{Connection, request};
use crate::report::{Measured, percentile};
use crate::run::{Run, START_WITHIN, free_address};
use crate::store::Store;
use crate::users::{self, PAYLOAD_BYTES};
use anyhow::ensure;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The number of users of the events.
const USERS: usize = 1_000;

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) events_a_request: usize,
    pub(crate) connections: usize,
}

/// The results of one round: `eventd ingest`, and the bare server right after it.
pub(crate) struct Round {
    pub(crate) eventd: Measured,
    pub(crate) bare_server: Measured,
}

/// Measures one round.
pub(crate) fn round(run: &Run, store: &mut dyn Store, load: Load) -> anyhow::Result<Round> {
    let requests = requests(load.events_a_request);
    let place = store.empty()?;
    let address = free_address()?;
    let listen = address.to_string();
    let arguments = ["ingest", "--url", &place.url, "--topic", &place.topic, "--listen", &listen];
    let mut child = Child::eventd(&arguments, &run.log)?;
    let eventd = drive(run, load, &requests, address, load.events_a_request, || child.usage())?;
    child.assert_running()?;
    child.terminate()?;

    let (helper, listens) = Helper::start(&["server", "0"])?;
    let bare_server = drive(run, load, &requests, listens.parse()?, 0, || helper.usage())?;
    Ok(Round { eventd, bare_server })
}

/// The requests that are sent again and again. Together they have one event of each user.
fn requests(events_a_request: usize) -> Arc<Vec<Vec<u8>>> {
    let payload = users::payload(PAYLOAD_BYTES);
    let users: Vec<usize> = (0..USERS).collect();
    let bodies = users.chunks(events_a_request).map(|chunk| {
        let mut body = String::new();
        for (index, user) in chunk.iter().enumerate() {
            body.push(if index == 0 { '[' } else { ',' });
            let _ = write!(body, r#"{{"UserID":"user-{user}","Payload":"{payload}"}}"#);
        }
        body.push(']');
        request("/events", body.as_bytes())
    });
    Arc::new(bodies.collect())
}

/// Loads a server, first to warm up and then for the measured time. `results` is the number of results in an answer.
fn drive(
    run: &Run,
    load: Load,
    requests: &Arc<Vec<Vec<u8>>>,
    address: SocketAddr,
    results: usize,
    usage: impl Fn() -> anyhow::Result<crate::child::Usage>,
) -> anyhow::Result<Measured> {
    // One thread is enough: the load needs less than a core, and the server can use the other one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..load.connections {
            connections.push(Connection::open(address, START_WITHIN).await?);
        }
        let (connections, _) = send(connections, requests, run.warm_up, results).await?;
        let before = usage()?;
        let started = Instant::now();
        let (_, mut latencies_us) = send(connections, requests, run.load_for, results).await?;
        let elapsed = started.elapsed();
        let after = usage()?;
        latencies_us.sort_unstable();
        let events = (latencies_us.len() * load.events_a_request) as f64;
        Ok(Measured {
            events: Some(events),
            events_s: Some(events / elapsed.as_secs_f64()),
            p50_ms: Some(f64::from(percentile(&latencies_us, 0.50)) / 1e3),
            p99_ms: Some(f64::from(percentile(&latencies_us, 0.99)) / 1e3),
            cpu_s: Some(after.cpu_s - before.cpu_s),
            memory_mb: Some(after.peak_mb),
            ..Measured::default()
        })
    })
}

/// Sends requests on every connection for this long. Returns the latency of each in microseconds.
async fn send(
    connections: Vec<Connection>,
    requests: &Arc<Vec<Vec<u8>>>,
    lasting: Duration,
    results: usize,
) -> anyhow::Result<(Vec<Connection>, Vec<u32>)> {
    let (mut tasks, until, count) = (JoinSet::new(), Instant::now() + lasting, connections.len());
    for (index, mut connection) in connections.into_iter().enumerate() {
        let requests = Arc::clone(requests);
        tasks.spawn(async move {
            let mut latencies_us = Vec::new();
            // Each connection begins at another user, so that no two send the same request at the same time.
            let mut next = index * requests.len() / count;
            while Instant::now() < until {
                let sent = Instant::now();
                let answer = connection.exchange(&requests[next % requests.len()]).await?;
                latencies_us.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
                let body = || String::from_utf8_lossy(answer.body);
                ensure!(answer.status == 200, "answered {}: {}", answer.status, body());
                // The answer has one object around all results, and one for each result.
                let objects = answer.body.iter().filter(|byte| **byte == b'{').count();
                ensure!(results == 0 || objects == results + 1, "not {results} results: {}", body());
                next += 1;
            }
            Ok((connection, latencies_us))
        });
    }
    let (mut connections, mut latencies_us) = (Vec::new(), Vec::new());
    while let Some(ended) = tasks.join_next().await {
        let (connection, mut of_one) = ended??;
        connections.push(connection);
        latencies_us.append(&mut of_one);
    }
    Ok((connections, latencies_us))
}
