//! eventd and its peer side by side, in one run on one broker: the cases of isolation, and drains of a full log.
//!
//! A drain is measured from the first to the last arrival at the sink, so the start of the JVM does not count.

use crate::child::{Child, Helper};
use crate::isolation::Isolation;
use crate::isolation::consumer::Consumer;
use crate::options::Options;
use crate::peers::{Buffer, CONCURRENCY, Peer};
use crate::report::thousands;
use crate::roles::Seen;
use crate::run::Run;
use crate::store::{Content, Store};
use crate::users::Users;
use anyhow::{Context as _, ensure};
use std::time::{Duration, Instant};

/// The peer's default, and a buffer of as many records as eventd's `--window`.
const CONSUMERS: [Consumer; 3] =
    [Consumer::Dispatch, Consumer::Peer(Buffer::Default), Consumer::Peer(Buffer::Events(100_000))];

/// A drain that both deliver.
struct Drain {
    name: &'static str,
    users: Users,
    answer_ms: u32,
    concurrency: usize,
    /// Events of a full run; a quick run has a tenth.
    events: u64,
}

const DRAINS: [Drain; 4] = [
    Drain {
        name: "http-0ms/1k-users",
        users: Users::Uniform(1_000),
        answer_ms: 0,
        concurrency: CONCURRENCY,
        events: 300_000,
    },
    Drain {
        name: "http-10ms/1k-users",
        users: Users::Uniform(1_000),
        answer_ms: 10,
        concurrency: 1_000,
        events: 300_000,
    },
    Drain {
        name: "http-0ms/zipf",
        users: Users::Zipf(10_000),
        answer_ms: 0,
        concurrency: CONCURRENCY,
        events: 300_000,
    },
    Drain { name: "http-0ms/one-user", users: Users::One, answer_ms: 0, concurrency: CONCURRENCY, events: 30_000 },
];

/// Runs the comparison and prints its tables. Returns the number of cases that failed.
pub(crate) fn run(run: &Run, options: &Options, store: &mut dyn Store) -> anyhow::Result<usize> {
    let peer = Peer::prepare(run.log.with_file_name("peer.log")).context("prepare the peer")?;
    let mut failed = 0;
    let selected: Vec<&Drain> = DRAINS.iter().filter(|drain| options.selects(&name(drain))).collect();
    if !selected.is_empty() {
        println!("| drain | consumer | events | events/s | CPU µs/event | memory MB |\n|---|---|---:|---:|---:|---:|");
    }
    for drain in selected {
        for consumer in CONSUMERS {
            let mut rounds = Vec::new();
            for _ in 0..options.rounds {
                eprintln!("{}, {consumer}", name(drain));
                rounds.push(round(run, store, drain, consumer, &peer));
            }
            match rounds.into_iter().collect::<anyhow::Result<Vec<Drained>>>() {
                Ok(mut rounds) => {
                    rounds.sort_unstable_by(|a, b| a.events_s.total_cmp(&b.events_s));
                    let Drained { events, events_s, cpu_us, peak_mb } = rounds[rounds.len() / 2];
                    let (events, events_s) = (thousands(events as f64), thousands(events_s));
                    println!("| {} | {consumer} | {events} | {events_s} | {cpu_us:.1} | {peak_mb:.0} |", name(drain));
                }
                Err(error) => {
                    failed += 1;
                    eprintln!("{}, {consumer}: failed: {error:#}", name(drain));
                }
            }
        }
    }
    let mut isolation = Isolation::default();
    isolation.measure(run, options, store, &CONSUMERS, Some(&peer));
    println!();
    Ok(failed + isolation.report(options)?)
}

fn name(drain: &Drain) -> String {
    format!("drain/{}", drain.name)
}

/// What one drain has shown.
struct Drained {
    events: u64,
    events_s: f64,
    cpu_us: f64,
    peak_mb: f64,
}

fn round(run: &Run, store: &mut dyn Store, drain: &Drain, consumer: Consumer, peer: &Peer) -> anyhow::Result<Drained> {
    let events = drain.events * run.drain_events / 300_000;
    let place = store.loaded(Content::of(drain.users, events))?;
    let (mut sink, address) = Helper::start(&["server", &drain.answer_ms.to_string()])?;
    let (dest, concurrency) = (format!("{}=http://{address}/hook", place.destination), drain.concurrency.to_string());
    let arguments =
        ["dispatch", "--url", &place.url, "--topic", &place.topic, "--dest", &dest, "--concurrency", &concurrency];
    let (eventd, helper) = match consumer {
        Consumer::Peer(buffer) => (None, Some(peer.start(&place, address.parse()?, drain.concurrency, buffer)?)),
        _ => (Some(Child::eventd(&arguments, &run.log)?), None),
    };
    let deadline = Instant::now() + run.drain_within;
    let seen = loop {
        let seen: Seen = sink.ask("stats")?.parse()?;
        if seen.requests >= events {
            break seen;
        }
        ensure!(Instant::now() < deadline, "{} of {events} events after {:?}", seen.requests, run.drain_within);
        std::thread::sleep(Duration::from_millis(50));
    };
    let usage =
        eventd.as_ref().map(Child::usage).or_else(|| helper.as_ref().map(Helper::usage)).context("a process")??;
    if let Some(eventd) = eventd {
        eventd.terminate()?;
    }
    let elapsed_s = (seen.last_ns - seen.first_ns) as f64 / 1e9;
    Ok(Drained {
        events,
        events_s: events as f64 / elapsed_s,
        cpu_us: usage.cpu_s * 1e6 / events as f64,
        peak_mb: usage.peak_mb,
    })
}
