//! How fast `eventd dispatch` delivers what is already in the log. The time runs from the start of the process to the
//! last event. That is its arrival at the HTTP sink, the last growth of the file, or for `null` the commit that settles
//! everything. `null` commits every 20 ms instead of 200, so that waiting for the commit does not count.

use crate::child::{Child, Helper};
use crate::report::Measured;
use crate::roles::{Seen, now_ns};
use crate::run::Run;
use crate::store::{Content, Store};
use crate::users::Users;
use anyhow::{bail, ensure};
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the benchmark checks whether a drain is done, if the check itself gives the time. Each check costs a
/// `stat`, a small read of the log, or a request to a broker.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// How often it checks if the sink measures the time. More checks would take time from the broker.
const CHECK_INTERVAL_WITH_SINK: Duration = Duration::from_millis(100);

/// Where events are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    Null,
    File,
    /// A sink that waits this many milliseconds before each answer.
    Http {
        latency_ms: u32,
    },
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::File => f.write_str("file"),
            Self::Http { latency_ms } => write!(f, "http-{latency_ms}ms"),
        }
    }
}

/// One kind of drain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain {
    pub(crate) users: Users,
    pub(crate) to: Sink,
    pub(crate) events: u64,
    /// `--concurrency`, if it is not the default.
    pub(crate) concurrency: Option<usize>,
}

impl Drain {
    /// How many requests the bare client keeps in flight to be comparable with eventd, which sends one user's events
    /// one by one.
    pub(crate) fn client_concurrency(&self) -> usize {
        const DEFAULT: usize = 256;
        if self.users == Users::One { 1 } else { self.concurrency.unwrap_or(DEFAULT) }
    }
}

/// Measures one round of `eventd dispatch`.
pub(crate) fn round(run: &Run, store: &mut dyn Store, drain: Drain) -> anyhow::Result<Measured> {
    let place = store.loaded(Content::of(drain.users, drain.events))?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let file = folder.path().join("delivered.jsonl");
    let mut sink = None;
    let dest = match drain.to {
        Sink::Null => "null:".to_owned(),
        Sink::File => format!("file:{}", file.display()),
        Sink::Http { latency_ms } => {
            let (helper, address) = Helper::start(&["server", &latency_ms.to_string()])?;
            sink = Some(helper);
            format!("http://{address}/hook")
        }
    };
    let dest = format!("{}={dest}", place.destination);
    let concurrency = drain.concurrency.map(|n| n.to_string());
    let mut arguments = vec!["dispatch", "--url", &place.url, "--topic", &place.topic, "--dest", &dest];
    if let Some(concurrency) = &concurrency {
        arguments.extend(["--concurrency", concurrency]);
    }
    if drain.to == Sink::Null {
        arguments.extend(["--commit-interval", "20ms"]);
    }
    let mut settled = store.settled(&place)?;

    let started_ns = now_ns();
    let mut child = Child::eventd(&arguments, &run.log)?;
    let deadline = Instant::now() + run.drain_within;
    let look_every = if sink.is_some() { CHECK_INTERVAL_WITH_SINK } else { CHECK_INTERVAL };
    let (mut length, mut grew_ns) = (0, started_ns);
    let settled_ns = loop {
        let now = if drain.to == Sink::File { std::fs::metadata(&file).map_or(0, |data| data.len()) } else { 0 };
        let grew = now != length;
        if grew {
            (length, grew_ns) = (now, now_ns());
        }
        // While the file grows, something is unsettled, so there is no need to check the commits.
        let done = if grew { 0 } else { settled()? };
        if done >= drain.events {
            break now_ns();
        }
        child.assert_running()?;
        if Instant::now() > deadline {
            bail!("{done} of {} events settled after {:?}", drain.events, run.drain_within);
        }
        std::thread::sleep(look_every);
    };
    let usage = child.usage()?;
    let ended_ns = match (drain.to, &mut sink) {
        (Sink::Http { .. }, Some(sink)) => {
            let seen: Seen = sink.ask("stats")?.parse()?;
            ensure!(seen.requests == drain.events, "{} requests for {} events", seen.requests, drain.events);
            seen.last_ns
        }
        (Sink::File, _) => {
            let lines = lines(&file)?;
            ensure!(lines == drain.events, "{lines} lines for {} events", drain.events);
            grew_ns
        }
        _ => settled_ns,
    };
    child.terminate()?;
    Ok(measured(drain.events, ended_ns - started_ns, usage.cpu_s, usage.peak_mb))
}

/// Measures a bare hyper client that posts as many events to the same kind of sink.
pub(crate) fn bare_client(drain: Drain, latency_ms: u32) -> anyhow::Result<Measured> {
    let (mut sink, address) = Helper::start(&["server", &latency_ms.to_string()])?;
    let (count, concurrency) = (drain.events.to_string(), drain.client_concurrency().to_string());
    let started_ns = now_ns();
    let (client, _) = Helper::start(&["client", &address, &count, &concurrency])?;
    let usage = client.usage()?;
    let seen: Seen = sink.ask("stats")?.parse()?;
    Ok(measured(seen.requests, seen.last_ns - started_ns, usage.cpu_s, usage.peak_mb))
}

pub(crate) fn measured(events: u64, elapsed_ns: u64, cpu_s: f64, peak_mb: f64) -> Measured {
    Measured {
        events: Some(events as f64),
        events_s: Some(events as f64 * 1e9 / elapsed_ns as f64),
        cpu_s: Some(cpu_s),
        memory_mb: Some(peak_mb),
        ..Measured::default()
    }
}

/// The number of lines of a file.
pub(crate) fn lines(path: &Path) -> anyhow::Result<u64> {
    let (mut file, mut chunk, mut lines) = (std::fs::File::open(path)?, vec![0; 1024 * 1024], 0);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(lines);
        }
        lines += chunk[..read].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}
