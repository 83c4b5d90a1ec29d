//! Kills each command with SIGKILL under load, on each engine, and checks the promises from outside. The evidence is
//! what clients were answered, the lines in the destination's file, and the commit that each killed process left.
//!
//! ```text
//!  file   ────life 1────✂ ────life 2────✂ ──── …     ✂ SIGKILL
//!                  ├────┤
//!      delivered after the last commit: only these may be in life 2 again
//! ```

use crate::conformance::unique;
use crate::support::block_on;
use crate::support::delivered::Line;
use crate::support::in_log;
use crate::support::load::{Answered, Load};
use crate::support::program::Program;
use crate::support::torture_times;
use crate::support::wait::eventually;
use eventd::core::progress::Progress;
use eventd::group::Groups;
use eventd::group::kafka::KafkaGroups;
use eventd::group::sqlite::SqliteGroups;
use eventd::log::Engine;
use eventd::log::kafka::Kafka;
use eventd::log::sqlite::{Settings, Sqlite};
use eventd::net;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often each test kills a process.
fn rounds() -> usize {
    10 * torture_times()
}

const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// How much longer than the interval a commit may take on a busy machine, including its syncs.
const COMMIT_TAKES_MAX: Duration = Duration::from_millis(1500);
/// How long a process may take to write its first lines.
const STARTS_WITHIN: Duration = Duration::from_millis(500);
const DELIVERY: [&str; 8] =
    ["--dest", "file-1", "--commit-interval", "50ms", "--reliability", "50", "--backoff", "1ms"];

mod embedded {
    use super::*;

    #[test]
    fn up_killed_under_load_loses_nothing_and_repeats_only_what_was_not_committed() {
        kill_up(&Place::embedded());
    }

    #[test]
    fn dispatch_killed_under_load_loses_nothing_and_repeats_only_what_was_not_committed() {
        kill_dispatch(&Place::embedded());
    }

    #[test]
    fn ingest_killed_under_load_loses_nothing_that_it_answered() {
        kill_ingest(&Place::embedded());
    }
}

mod on_kafka {
    use super::*;

    #[test]
    fn dispatch_killed_under_load_loses_nothing_and_repeats_only_what_was_not_committed() {
        kill_dispatch(&Place::on_kafka());
    }

    #[test]
    fn ingest_killed_under_load_loses_nothing_that_it_answered() {
        kill_ingest(&Place::on_kafka());
    }
}

/// The folder in which the processes run, and the log that they share.
struct Place {
    folder: tempfile::TempDir,
    log: Shared,
    topic: String,
}

enum Shared {
    /// A database in the folder.
    Embedded,
    /// The broker of the tests, at this address.
    Kafka(String),
}

impl Place {
    fn embedded() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), log: Shared::Embedded, topic: "user-events".into() }
    }

    fn on_kafka() -> Self {
        let log = Shared::Kafka(crate::kafka::address());
        Self { folder: tempfile::tempdir().unwrap(), log, topic: unique("crash") }
    }

    fn name(&self) -> &str {
        match self.log {
            Shared::Embedded => "the embedded log",
            Shared::Kafka(_) => "Kafka",
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, mode: &[&str]) -> Program {
        let log = match &self.log {
            Shared::Embedded => ["--url", "sqlite:log.db", "--topic", &self.topic].to_vec(),
            Shared::Kafka(url) => ["--url", url, "--topic", &self.topic, "--create-topic"].to_vec(),
        };
        Program::start(self.path(), &[mode, &log].concat())
    }

    fn ingest(&self) -> Program {
        self.start(&["ingest", "--listen", "127.0.0.1:0"])
    }

    fn dispatch(&self) -> Program {
        // A process that starts again with the same id gets its partitions back without a rebalance.
        let id: &[&str] = if matches!(self.log, Shared::Kafka(_)) { &["--instance-id", &self.topic] } else { &[] };
        self.start(&[&["dispatch"], &DELIVERY[..], id].concat())
    }

    fn up(&self) -> Program {
        self.start(&[&["up", "--listen", "127.0.0.1:0"], &DELIVERY[..]].concat())
    }

    /// The progress of each partition that an ended process has committed.
    fn committed(&self) -> Vec<Progress> {
        block_on(async {
            let (engine, groups): (Arc<dyn Engine>, Arc<dyn Groups>) = match &self.log {
                Shared::Embedded => {
                    let engine = self.sqlite().await;
                    (engine.clone(), Arc::new(SqliteGroups::new(engine)))
                }
                Shared::Kafka(address) => {
                    let engine = kafka_at(address).await;
                    (engine.clone(), Arc::new(KafkaGroups::new(engine)))
                }
            };
            let log = engine.open(&self.topic, None).await.unwrap();
            let states = groups.committed("file-1", &log).await;
            states.unwrap().into_iter().map(|state| Progress::new(&state.unwrap_or_default())).collect()
        })
    }

    /// Compares the log with what clients were answered. Returns the number of records that are repetitions.
    fn judge_log(&self, answered: &Answered) -> usize {
        let log = async {
            match &self.log {
                Shared::Embedded => self.sqlite().await.open(&self.topic, None).await.unwrap(),
                Shared::Kafka(address) => kafka_at(address).await.open(&self.topic, None).await.unwrap(),
            }
        };
        block_on(async { in_log::judge(&*log.await, answered).await }).repeats
    }

    async fn sqlite(&self) -> Arc<Sqlite> {
        // The default settings create no topic and remove no records.
        Sqlite::open(self.path().join("log.db"), Settings::default()).await.unwrap()
    }
}

async fn kafka_at(address: &str) -> Arc<Kafka> {
    Kafka::connect(net::BrokerSettings::plain(vec![address.to_owned()])).await.unwrap()
}

fn kill_up(place: &Place) {
    let mut history = History::of(place);
    let mut program = place.up();
    let load = Load::start(&program.address());
    for round in 0..rounds() {
        history.live_for(round);
        program.kill();
        history.killed();
        program = place.up();
        load.turn_to(&program.address());
    }
    history.live_for(rounds());
    assert_eq!(program.stop().code(), 0);
    history.drained();
    program = place.up();
    load.turn_to(&program.address());
    let answered = load.stop();
    history.wait_for(&answered);
    assert_eq!(program.stop().code(), 0);
    history.drained();
    place.judge_log(&answered);
    let repeated = history.judge("up", &answered);
    assert!(repeated > 0, "no kill interrupted a delivery");
    assert!(answered.requests_again > 0, "no request was in flight when up was killed");
}

fn kill_dispatch(place: &Place) {
    let mut history = History::of(place);
    let ingest = place.ingest();
    let load = Load::start(&ingest.address());
    let mut program = place.dispatch();
    for round in 0..rounds() {
        history.live_for(round);
        program.kill();
        history.killed();
        program = place.dispatch();
    }
    history.live_for(rounds());
    assert_eq!(program.stop().code(), 0);
    history.drained();
    program = place.dispatch();
    let answered = load.stop();
    history.wait_for(&answered);
    assert_eq!(program.stop().code(), 0);
    assert_eq!(ingest.stop().code(), 0);
    history.drained();
    assert_eq!(place.judge_log(&answered), 0, "no event may be in the log twice");
    let repeated = history.judge("dispatch", &answered);
    assert!(repeated > 0, "no kill interrupted a delivery");
}

fn kill_ingest(place: &Place) {
    let mut history = History::of(place);
    let mut program = place.ingest();
    let load = Load::start(&program.address());
    let dispatch = place.dispatch();
    for round in 0..rounds() {
        history.live_for(round);
        program.kill();
        program = place.ingest();
        load.turn_to(&program.address());
    }
    history.live_for(rounds());
    let answered = load.stop();
    history.wait_for(&answered);
    assert_eq!(program.stop().code(), 0);
    assert_eq!(dispatch.stop().code(), 0);
    history.drained();
    place.judge_log(&answered);
    let repeated = history.judge("ingest", &answered);
    assert_eq!(repeated, 0, "dispatch was never killed, so it must not repeat");
    assert!(answered.requests_again > 0, "no request was in flight when ingest was killed");
}

/// The file of a destination, split by the lives of the processes that wrote it.
struct History<'a> {
    place: &'a Place,
    /// The end of the last life in the file, in bytes.
    read_to: u64,
    lives: Vec<Life>,
    lengths: Lengths,
}

struct Life {
    lines: Vec<Line>,
    /// The progress of each partition that the process had committed at its end.
    committed: Vec<Progress>,
    drained: bool,
    /// How many of its lines the commit must include. After a drain these are all lines. After a kill these are the
    /// lines that were written longer before it than a commit may take.
    old_lines: usize,
}

impl Life {
    fn has_settled(&self, line: &Line) -> bool {
        self.committed[line.partition as usize].is_settled(line.offset)
    }
}

impl<'a> History<'a> {
    fn of(place: &'a Place) -> Self {
        let lengths = Lengths::follow(place.path().join("file-1"));
        Self { place, read_to: 0, lives: Vec::new(), lengths }
    }

    /// Waits until this life has delivered enough to be ended. Some lives end soon after their start. Others last so
    /// long that the commit must include their first lines.
    fn live_for(&self, round: usize) {
        let more_bytes = [1, 20_000, 3_000, 60_000][round % 4];
        let began = Instant::now();
        let long = if round % 2 == 1 { COMMIT_INTERVAL + COMMIT_TAKES_MAX + STARTS_WITHIN } else { Duration::ZERO };
        eventually(|| match self.lengths.now() {
            length if length >= self.read_to + more_bytes && began.elapsed() > long => Ok(()),
            length => Err(format!("round {round}: the file has {length} bytes, and had {}", self.read_to)),
        });
    }

    /// Records a life that ended with SIGKILL.
    fn killed(&mut self) {
        let horizon = self.lengths.at(Instant::now().checked_sub(COMMIT_INTERVAL + COMMIT_TAKES_MAX));
        let begin = self.read_to;
        let (lines, ends) = self.read();
        let old_lines = ends.iter().filter(|end| begin + **end <= horizon).count();
        self.lives.push(Life { lines, committed: self.place.committed(), drained: false, old_lines });
    }

    /// Records a life that ended with a drain: everything that it delivered has to be committed.
    fn drained(&mut self) {
        let (lines, _) = self.read();
        let old_lines = lines.len();
        self.lives.push(Life { lines, committed: self.place.committed(), drained: true, old_lines });
    }

    /// The complete lines since the last life, and the end of each.
    fn read(&mut self) -> (Vec<Line>, Vec<u64>) {
        let mut file = std::fs::File::open(self.place.path().join("file-1")).unwrap();
        file.seek(SeekFrom::Start(self.read_to)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let (mut lines, mut ends, mut end) = (Vec::new(), Vec::new(), 0);
        // The next life removes an incomplete last line.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            lines.push(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
            end += line.len() as u64;
            ends.push(end);
        }
        self.read_to += end;
        (lines, ends)
    }

    /// Checks every promise, and returns the number of repeated deliveries.
    fn judge(self, mode: &str, answered: &Answered) -> usize {
        // For each record, the last life that delivered it.
        let mut seen = HashMap::new();
        let mut first_payloads = BTreeMap::<&str, Vec<u64>>::new();
        let (mut repeated, mut old_lines, mut deliveries) = (0, 0, 0);
        for (number, life) in self.lives.iter().enumerate() {
            let mut last_offsets = HashMap::new();
            for line in &life.lines {
                let last = last_offsets.insert(&line.user, line.offset);
                assert!(last < Some(line.offset), "life {number}: not in order after {last:?}: {line:?}");
                let Some(delivered_in) = seen.insert((line.partition, line.offset), number) else {
                    first_payloads.entry(&line.user).or_default().push(line.payload.parse().unwrap());
                    continue;
                };
                repeated += 1;
                let drained = self.lives[delivered_in].drained;
                assert!(!drained, "life {number} repeats a line of life {delivered_in}, which was drained: {line:?}");
                let settled = self.lives[number - 1].has_settled(line);
                assert!(!settled, "life {number}: repeats a line that the commit before it had settled: {line:?}");
            }
            for line in &life.lines[..life.old_lines] {
                let within = COMMIT_INTERVAL + COMMIT_TAKES_MAX;
                assert!(life.has_settled(line), "life {number}: not committed {within:?} after delivery: {line:?}");
            }
            old_lines += life.old_lines;
            deliveries += life.lines.len();
        }
        for (user, events) in &answered.events {
            // A request that was sent again may be in the log twice. Only the first copy counts here.
            let mut first = Vec::new();
            for payload in first_payloads.remove(user.as_str()).unwrap_or_default() {
                if payload == first.len() as u64 {
                    first.push(payload);
                }
                assert!(payload < first.len() as u64, "{user}: {payload} came before {}", first.len());
            }
            assert_eq!(first.len(), events.len(), "{user}: events delivered, and events answered");
        }
        let (answers, rounds, log) = (answered.count(), rounds(), self.place.name());
        println!(
            "# crash of {mode} on {log}: {rounds} kills, {answers} events answered, {deliveries} deliveries, {repeated} of them \
             repeated, {} requests sent again, {old_lines} deliveries had to be in a commit",
            answered.requests_again
        );
        assert!(answers > 1_000, "only {answers} events: the load was too small");
        repeated
    }

    /// Waits until the last event of every user is in the file.
    fn wait_for(&self, answered: &Answered) {
        let mut missing: HashSet<(String, String)> = answered
            .events
            .iter()
            .filter_map(|(user, events)| Some((user.clone(), events.len().checked_sub(1)?.to_string())))
            .collect();
        eventually(|| {
            for line in crate::support::delivered::lines(&self.place.path().join("file-1")) {
                missing.remove(&(line.user, line.payload));
            }
            if missing.is_empty() { Ok(()) } else { Err(format!("never delivered: {missing:?}")) }
        });
    }
}

/// Records how long a file was at which time.
struct Lengths {
    samples: Arc<std::sync::Mutex<Vec<(Instant, u64)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lengths {
    fn follow(path: PathBuf) -> Self {
        let (samples, stop) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, stopped) = (samples.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let length = std::fs::metadata(&path).map_or(0, |file| file.len());
                kept.lock().unwrap().push((Instant::now(), length));
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { samples, stop, thread: Some(thread) }
    }

    fn now(&self) -> u64 {
        self.samples.lock().unwrap().last().map_or(0, |(_, length)| *length)
    }

    /// The last length that was seen before this moment.
    fn at(&self, moment: Option<Instant>) -> u64 {
        let samples = self.samples.lock().unwrap();
        let before = samples.iter().rev().find(|(at, _)| moment.is_some_and(|moment| *at < moment));
        before.map_or(0, |(_, length)| *length)
    }
}

impl Drop for Lengths {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread that follows the file ends");
        }
    }
}
