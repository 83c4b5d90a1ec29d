//! How fast `eventd replay` delivers again what a destination had, and how well it keeps to a rate. The log is loaded,
//! and everything in it is committed for the destination, as if it had been delivered.
//!
//! ```text
//!  start ── reads the log, counts ──▶ plan ── joins its group, writes its record, delivers, commits ──▶ summary
//!           the case of the plan      └────────── the time of a redelivery ──────────────────────────┘
//! ```
//!
//! With `null`, the time ends with the summary, and with a file at its last growth. (The time of dispatch includes the
//! start of its process instead, but neither an audit record nor a summary. On Kafka, creating the topic of the record
//! takes some 50 ms, which matters in a quick run.)

use crate::child::{Child, Helper, Line, Usage};
use crate::drain::{Drain, Sink, lines, measured};
use crate::report::Measured;
use crate::roles::{Seen, now_ns};
use crate::run::Run;
use crate::store::{Content, Place, Store};
use crate::users::Users;
use anyhow::{Context as _, bail, ensure};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// How often the resource use of a replay is read. A replay ends by itself, so the last reading counts.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

const USERS: Users = Users::Uniform(1_000);

/// Measures one round of delivering everything again.
pub(crate) fn round(run: &Run, store: &mut dyn Store, drain: Drain) -> anyhow::Result<Measured> {
    let place = settled(store, drain.users, drain.events)?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file = folder.path().join("delivered.jsonl");
    let (dest, more): (_, &[&str]) = match drain.to {
        // With the commit interval of the drain.
        Sink::Null => ("null:".to_owned(), &["--execute", "--commit-interval", "20ms"]),
        _ => (format!("file:{}", file.display()), &["--execute"]),
    };
    let mut replay = Replay::start(run, &place, &dest, more)?;
    let plan = replay.line()?;
    ensure!(number(&plan, "events")? == drain.events, "the plan is not of all events: {}", plan.text);
    let summary = replay.line()?;
    ensure!(number(&summary, "delivered")? == drain.events, "not everything was delivered: {}", summary.text);
    let usage = replay.end()?;
    let ended_ns = match drain.to {
        Sink::Null => summary.came_ns,
        _ => {
            let lines = lines(&file)?;
            ensure!(lines == drain.events, "{lines} lines for {} events", drain.events);
            let grew = std::fs::metadata(&file)?.modified()?.duration_since(UNIX_EPOCH)?;
            u64::try_from(grew.as_nanos())?
        }
    };
    Ok(measured(drain.events, ended_ns - plan.came_ns, usage.cpu_s, usage.peak_mb))
}

/// Measures one round of a plan, which reads and counts the whole log and delivers nothing. The time is that of the
/// process.
pub(crate) fn plan(run: &Run, store: &mut dyn Store) -> anyhow::Result<Measured> {
    let place = settled(store, USERS, run.counted_events)?;
    let started_ns = now_ns();
    let mut replay = Replay::start(run, &place, "null:", &[])?;
    let plan = replay.line()?;
    ensure!(number(&plan, "events")? == run.counted_events, "the plan is not of all events: {}", plan.text);
    let usage = replay.end()?;
    Ok(measured(run.counted_events, plan.came_ns - started_ns, usage.cpu_s, usage.peak_mb))
}

/// Measures one round at a rate, from the first to the last arrival according to the sink's clock.
pub(crate) fn at_rate(run: &Run, store: &mut dyn Store, a_second: u32) -> anyhow::Result<Measured> {
    let events = u64::from(a_second) * run.load_for.as_secs();
    let place = settled(store, USERS, events)?;
    let (mut sink, address) = Helper::start(&["server", "0"])?;
    let rate = format!("{a_second}/s");
    let mut replay = Replay::start(run, &place, &format!("http://{address}/hook"), &["--execute", "--rate", &rate])?;
    replay.line()?;
    let summary = replay.line()?;
    let usage = replay.end()?;
    let seen: Seen = sink.ask("stats")?.parse()?;
    ensure!(seen.requests == events, "{} requests for {events} events: {}", seen.requests, summary.text);
    // There is one interval less than there are arrivals.
    let measured = measured(events - 1, seen.last_ns - seen.first_ns, usage.cpu_s, usage.peak_mb);
    let ratio = measured.events_s.map(|events_s| events_s / f64::from(a_second));
    Ok(Measured { ratio, ..measured })
}

/// Starts a replay at a rate, during which something else is measured.
pub(crate) fn rated(run: &Run, place: &Place, dest: &str, a_second: u32) -> anyhow::Result<Child> {
    let rate = format!("{a_second}/s");
    Ok(Replay::start(run, place, dest, &["--execute", "--rate", &rate])?.child)
}

fn settled(store: &mut dyn Store, users: Users, events: u64) -> anyhow::Result<Place> {
    let place = store.loaded(Content::of(users, events))?;
    store.settle(&place)?;
    Ok(place)
}

/// A running replay of the whole log.
struct Replay {
    child: Child,
    lines: Receiver<Line>,
    usage: Usage,
    deadline: Instant,
}

impl Replay {
    fn start(run: &Run, place: &Place, dest: &str, more: &[&str]) -> anyhow::Result<Self> {
        let dest = format!("{}={dest}", place.destination);
        let own = ["replay", "--url", &place.url, "--topic", &place.topic, "--dest", &dest, "--from", "0", "--json"];
        let (child, lines) = Child::talking(&[&own, more].concat(), &run.log)?;
        Ok(Self { child, lines, usage: Usage::default(), deadline: Instant::now() + run.drain_within })
    }

    /// The next line of its standard output.
    fn line(&mut self) -> anyhow::Result<Line> {
        loop {
            self.read_usage();
            match self.lines.recv_timeout(CHECK_INTERVAL) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) => ensure!(Instant::now() < self.deadline, "a replay takes too long"),
                Err(RecvTimeoutError::Disconnected) => {
                    self.child.assert_running()?;
                    bail!("a replay closed its standard output");
                }
            }
        }
    }

    /// Waits for its end, and returns what it used.
    fn end(mut self) -> anyhow::Result<Usage> {
        self.read_usage();
        self.child.end()?;
        ensure!(self.usage.peak_mb > 0.0, "a replay ended before its memory was read");
        Ok(self.usage)
    }

    /// A process that has ended has no memory any more, so the last reading before counts.
    fn read_usage(&mut self) {
        if let Ok(usage) = self.child.usage() {
            self.usage = usage;
        }
    }
}

/// A number of a plan or a summary.
fn number(line: &Line, member: &str) -> anyhow::Result<u64> {
    let json: serde_json::Value = serde_json::from_str(&line.text).with_context(|| line.text.clone())?;
    json[member].as_u64().with_context(|| format!("no number {member:?}: {}", line.text))
}
