//! `eventd up` with ingest and delivery in one process: what it costs when idle, and how long an event takes from its
//! request to its arrival at the destination.

use crate::child::{Child, Helper};
use crate::client::{Connection, request};
use crate::replay;
use crate::report::Measured;
use crate::roles::{STAMP_DIGITS, Seen, now_ns};
use crate::run::{Run, START_WITHIN, free_address};
use crate::store::{Content, Place, Store};
use crate::users::{self, PAYLOAD_BYTES, Users};
use anyhow::ensure;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The number of connections that share the steady load.
const CONNECTIONS: u32 = 16;

/// Events per second of the steady load, one in each request.
const EVENTS_A_SECOND: u32 = 2_000;

/// The rate limit of a replay that runs at the same time, in events per second. It equals the rate of new events.
const REPLAYED_A_SECOND: u32 = EVENTS_A_SECOND;

/// How much longer than the load the replay has events at that rate.
const REPLAY_LONGER: Duration = Duration::from_secs(5);

/// How long the last events may take to arrive.
const ARRIVE_WITHIN: Duration = Duration::from_secs(10);

/// Measures one round without traffic.
pub(crate) fn idle(run: &Run, store: &mut dyn Store) -> anyhow::Result<Measured> {
    let (place, address) = (store.empty()?, free_address()?);
    let mut child = up(run, &place, address, "null:")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    drop(runtime.block_on(Connection::open(address, START_WITHIN))?);
    // The cost of the start does not count as idle.
    std::thread::sleep(Duration::from_secs(1));
    let (before, started) = (child.usage()?, Instant::now());
    std::thread::sleep(run.idle_for);
    let (after, elapsed) = (child.usage()?, started.elapsed());
    child.assert_running()?;
    child.terminate()?;
    let cpu_s = after.cpu_s - before.cpu_s;
    Ok(Measured {
        cpu_s: Some(cpu_s),
        memory_mb: Some(after.resident_mb),
        core_share: Some(cpu_s / elapsed.as_secs_f64()),
        ..Measured::default()
    })
}

/// Measures one round of a steady load. Each payload has the time when its request was sent, and the sink compares it
/// with its clock.
pub(crate) fn latency(run: &Run, store: &mut dyn Store) -> anyhow::Result<Measured> {
    let place = store.empty()?;
    let (mut sink, sink_address) = Helper::start(&["server", "0"])?;
    steady(run, &place, &mut sink, &format!("http://{sink_address}/hook"))
}

/// Like [`latency`], during a replay that sends to the same sink what the destination had before the load.
pub(crate) fn latency_beside_replay(run: &Run, store: &mut dyn Store) -> anyhow::Result<Measured> {
    let place = store.empty()?;
    let events = u64::from(REPLAYED_A_SECOND) * (run.load_for + REPLAY_LONGER).as_secs();
    store.load(&place, Content::of(Users::Uniform(1_000), events))?;
    store.settle(&place)?;
    let (mut sink, sink_address) = Helper::start(&["server", "0"])?;
    let dest = format!("http://{sink_address}/hook");
    let mut replay = replay::rated(run, &place, &dest, REPLAYED_A_SECOND)?;
    let deadline = Instant::now() + START_WITHIN;
    while sink.ask("stats")?.parse::<Seen>()?.requests == 0 {
        replay.assert_running()?;
        ensure!(Instant::now() < deadline, "the replay sent nothing within {START_WITHIN:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let measured = steady(run, &place, &mut sink, &dest)?;
    // The replay is killed, because the rest of it does not matter.
    replay.assert_running()?;
    Ok(measured)
}

fn steady(run: &Run, place: &Place, sink: &mut Helper, dest: &str) -> anyhow::Result<Measured> {
    let address = free_address()?;
    let mut child = up(run, place, address, dest)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sent, started) = runtime.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(address, START_WITHIN).await?);
        }
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        let interval = Duration::from_secs(1) * CONNECTIONS / EVENTS_A_SECOND;
        for (index, mut connection) in (0..).zip(connections) {
            let lasting = run.load_for;
            tasks.spawn(async move {
                let first = tokio::time::Instant::now() + interval * index / CONNECTIONS;
                let mut ticks = tokio::time::interval_at(first, interval);
                let mut sent = 0u32;
                while first.elapsed() < lasting {
                    ticks.tick().await;
                    let answer = connection.exchange(&stamped(index, sent)).await?;
                    let body = String::from_utf8_lossy(answer.body);
                    ensure!(answer.status == 200, "answered {}: {body}", answer.status);
                    sent += 1;
                }
                Ok(sent)
            });
        }
        let mut sent = 0;
        while let Some(ended) = tasks.join_next().await {
            sent += ended??;
        }
        Ok::<_, anyhow::Error>((sent, started))
    })?;
    let deadline = Instant::now() + ARRIVE_WITHIN;
    let (seen, elapsed) = loop {
        let seen: Seen = sink.ask("stats")?.parse()?;
        if seen.stamped >= u64::from(sent) {
            break (seen, started.elapsed());
        }
        ensure!(Instant::now() < deadline, "{} of {sent} events arrived", seen.stamped);
        std::thread::sleep(Duration::from_millis(10));
    };
    let usage = child.usage()?;
    child.assert_running()?;
    child.terminate()?;
    Ok(Measured {
        events: Some(f64::from(sent)),
        events_s: Some(f64::from(sent) / elapsed.as_secs_f64()),
        p50_ms: Some(seen.latency_p50_us as f64 / 1e3),
        p99_ms: Some(seen.latency_p99_us as f64 / 1e3),
        cpu_s: Some(usage.cpu_s),
        memory_mb: Some(usage.peak_mb),
        ..Measured::default()
    })
}

fn up(run: &Run, place: &Place, address: SocketAddr, dest: &str) -> anyhow::Result<Child> {
    let (listen, dest) = (address.to_string(), format!("{}={dest}", place.destination));
    Child::eventd(&["up", "--url", &place.url, "--topic", &place.topic, "--listen", &listen, "--dest", &dest], &run.log)
}

/// A request with one event whose payload begins with the time.
fn stamped(connection: u32, number: u32) -> Vec<u8> {
    let (user, rest) = (number % 64 * CONNECTIONS + connection, &users::payload(PAYLOAD_BYTES)[STAMP_DIGITS..]);
    let stamp = format!("{:0width$}", now_ns(), width = STAMP_DIGITS);
    // The stamp has a fixed width, so it needs no separator.
    request("/events", format!(r#"{{"UserID":"user-{user}","Payload":"{stamp}{rest}"}}"#).as_bytes())
}
