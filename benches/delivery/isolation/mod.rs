//! How long healthy users wait while others are in trouble.
//!
//! ```text
//!   load: 2,000 events a second, each with its intended send time ──▶ ingest ──▶ the log ──▶ dispatch ──▶ sink
//!                                                                                              │          │
//!   every half second: memory, and the distance of the commit from the end of the log ◀────────┘          │
//!   at the end: every arrival with its time, in a file ◀───────────────────────────────────────────────────┘
//! ```
//!
//! The sink takes 5 ms for an answer. A case says which users are in trouble ([`case`]). The waiting time of the other
//! users counts from the intended send time to the first arrival at the sink ([`outcome`]). Runs of the cases
//! alternate, so that a change of the machine's speed hits all of them.

pub(crate) mod case;
pub(crate) mod consumer;
mod load;
mod outcome;
mod picture;
mod sink;
mod table;

use self::case::{CASES, Case, Incident, Times};
use self::consumer::{Consumer, Running};
use self::load::Load;
use self::outcome::{Outcome, Sample, Watched};
use self::table::Row;
use crate::child::Helper;
use crate::options::Options;
use crate::peers::Peer;
use crate::run::Run;
use crate::store::{CommitWatch, Content, Place, Store};
use anyhow::Context as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

pub(crate) use self::sink::run as run_sink;

/// How often the memory and the commit are looked at.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Payload bytes of a part of a backlog.
const BACKLOG_PART_BYTES: usize = 256 * 1024 * 1024;

/// The name under which `--only` selects the cases.
const NAME: &str = "isolation";

/// The results of the cases, of all engines.
#[derive(Debug, Default)]
pub(crate) struct Isolation {
    rows: Vec<Row>,
    failed: usize,
}

impl Isolation {
    /// Measures the selected cases with each consumer.
    pub(crate) fn measure(
        &mut self,
        run: &Run,
        options: &Options,
        store: &mut dyn Store,
        consumers: &[Consumer],
        peer: Option<&Peer>,
    ) {
        let cases: Vec<Case> = CASES.iter().copied().filter(|case| options.selects(&name(*case))).collect();
        let pairs = || cases.iter().flat_map(|case| consumers.iter().map(move |consumer| (*case, *consumer)));
        let mut rows: Vec<Row> =
            pairs().map(|(case, consumer)| Row::new(case, consumer, store.name(), options)).collect();
        for _ in 0..options.rounds {
            for ((case, consumer), row) in pairs().zip(&mut rows) {
                eprintln!("{} {}, {consumer}", store.name(), name(case));
                match round(run, options, store, case, consumer, peer) {
                    Ok(outcome) => row.runs.push(outcome),
                    Err(error) => {
                        self.failed += 1;
                        eprintln!("{} {}, {consumer}: failed: {error:#}", store.name(), name(case));
                    }
                }
                eprintln!("  {}", row.line());
            }
        }
        self.rows.append(&mut rows);
    }

    /// The table, and what to know to read it. Also writes the pictures. Returns the number of runs that failed.
    pub(crate) fn report(&self, options: &Options) -> anyhow::Result<usize> {
        if self.rows.is_empty() {
            return Ok(self.failed);
        }
        println!("{}", table::markdown(&self.rows));
        let (of, pictures) = (if options.compare { "compare" } else { NAME }, &options.pictures);
        std::fs::create_dir_all(pictures)?;
        for (kind, picture) in [("p99", picture::bars(&self.rows)), ("time", picture::lines(&self.rows))] {
            let path = pictures.join(format!("{of}-{kind}.svg"));
            std::fs::write(&path, picture).with_context(|| format!("write {path:?}"))?;
            println!("picture: {}", path.display());
        }
        Ok(self.failed)
    }
}

/// The name of a case for `--only`.
fn name(case: Case) -> String {
    format!("{NAME}/{case}")
}

/// Runs one case with one consumer.
fn round(
    run: &Run,
    options: &Options,
    store: &mut dyn Store,
    case: Case,
    consumer: Consumer,
    peer: Option<&Peer>,
) -> anyhow::Result<Outcome> {
    let (place, times) = (store.empty()?, case.times(options));
    let log_before = std::fs::metadata(&run.log).map_or(0, |file| file.len());
    if let Some(content) = case.backlog(options.size) {
        load_backlog(store, &place, content)?;
    }
    // An ingest that the load needs all the time must not end with the process that delivers.
    let restarts = matches!(times.incident, Some(Incident::Kill(_) | Incident::Restart(_)));
    let consumer = if restarts && consumer == Consumer::Up { Consumer::Dispatch } else { consumer };
    let [failing, user_0_wait_ms, healthy_from] = case.sink();
    let (sink, address) = Helper::start(&["isolation-sink", &failing, &user_0_wait_ms, &healthy_from])?;
    let (mut running, commits) = Running::start(run, options, store, &place, consumer, peer, sink::address(&address)?)?;
    let load = Load::connect(running.address)?;
    let (asked, (end, ended)) = (Mutex::new(sink), mpsc::sync_channel(1));
    let (watched, sink) = (&mut running, &asked);
    let (sent, watched) = std::thread::scope(|scope| {
        let watcher = scope.spawn(move || watch(watched, commits, sink, times, &ended));
        let sent = load.run(case, options.rate, times.load).and_then(|sent| {
            settle(sink, sent.healthy.len() as u64, times.settle)?;
            Ok(sent)
        });
        drop(end);
        let watched = watcher.join().map_err(|_| anyhow::anyhow!("the watch panicked"));
        (sent, watched.flatten())
    });
    let (sent, mut watched) = (sent?, watched?);
    let dump = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    ask(sink, &format!("dump {}", dump.path().display()))?;
    running.end()?;
    watched.read_again = read_again(&run.log, log_before)?;
    Ok(Outcome::of(case, times, &sent, &sink::read(dump.path())?, &watched))
}

/// The number of records that eventd has read a second time, from its last lines after this length of its log.
fn read_again(log: &Path, from: u64) -> anyhow::Result<u64> {
    let Ok(mut log) = std::fs::File::open(log) else { return Ok(0) };
    log.seek(SeekFrom::Start(from))?;
    let mut text = String::new();
    log.read_to_string(&mut text)?;
    let numbers = text.split_whitespace().filter_map(|field| field.strip_prefix("read_again=")?.parse::<u64>().ok());
    Ok(numbers.sum())
}

fn ask(sink: &Mutex<Helper>, question: &str) -> anyhow::Result<String> {
    sink.lock().map_err(|_| anyhow::anyhow!("a question to the sink panicked"))?.ask(question)
}

/// Waits until all events of healthy users have arrived, or the time is over.
fn settle(sink: &Mutex<Helper>, healthy: u64, within: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    while ask(sink, "count")?.parse::<u64>()? < healthy && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Appends a backlog in parts, because a part is in the memory of this process.
fn load_backlog(store: &dyn Store, place: &Place, content: Content) -> anyhow::Result<()> {
    let part = (BACKLOG_PART_BYTES / content.payload_bytes) as u64;
    let mut left = content.events;
    while left > 0 {
        let events = left.min(part);
        store.load(place, Content { events, ..content })?;
        left -= events;
    }
    Ok(())
}

/// Looks at the process until the case ends, and causes the case's incident at its time.
fn watch(
    running: &mut Running<'_>,
    mut commits: CommitWatch,
    sink: &Mutex<Helper>,
    times: Times,
    ended: &mpsc::Receiver<()>,
) -> anyhow::Result<Watched> {
    let (started, mut watched) = (Instant::now(), Watched::default());
    let mut orders = match times.incident {
        None => Vec::new(),
        // The last one is the first to be carried out.
        Some(Incident::Away(from, until)) => vec![(until, Order::Return), (from, Order::Leave)],
        Some(Incident::Kill(at)) => vec![(at, Order::Kill)],
        Some(Incident::Restart(at)) => vec![(at, Order::Restart)],
    };
    loop {
        let usage = running.usage()?;
        watched.samples.push(Sample { commits: commits()?, resident_mb: usage.resident_mb, peak_mb: usage.peak_mb });
        let next = SAMPLE_INTERVAL * u32::try_from(watched.samples.len())?;
        let order = orders.last().copied().filter(|(at, _)| *at <= next);
        let at = order.map_or(next, |(at, _)| at);
        if ended.recv_timeout(at.saturating_sub(started.elapsed())) == Err(RecvTimeoutError::Disconnected) {
            return Ok(watched);
        }
        if let Some((_, order)) = order {
            orders.pop();
            match order {
                Order::Leave => drop(ask(sink, "away")?),
                Order::Return => drop(ask(sink, "back")?),
                Order::Kill => watched.restarted_ns = Some(running.kill_and_start()?),
                Order::Restart => watched.restarted_ns = Some(running.stop_and_start()?),
            }
        }
    }
}

/// A part of an incident.
#[derive(Debug, Clone, Copy)]
enum Order {
    Leave,
    Return,
    Kill,
    Restart,
}
