//! SIGKILL under load, of each mode. What has to hold afterwards is told from outside: by what clients were answered,
//! by the lines of the destination's file, and by the commit that each killed process left behind.
//!
//! ```text
//!  file   ────life 1────✂ ────life 2────✂ ──── …     ✂ SIGKILL
//!                  ├────┤
//!      delivered, but not in the commit: only these may stand in life 2 again
//! ```

use crate::support::delivered::Line;
use crate::support::load::{Answered, Load};
use crate::support::program::{Program, eventually};
use eventd::core::progress::Progress;
use eventd::group::sqlite::{WhenHeld, join};
use eventd::log::sqlite::{Settings, Sqlite};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ROUNDS: usize = 10;
const TOPIC: &str = "user-events";
const PARTITIONS: u32 = 3;
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// How much longer than the interval a commit may take, with its syncs, on a busy machine.
const COMMIT_TAKES_MAX: Duration = Duration::from_millis(1500);
/// How long the first lines of a long life may need to be old ones at its end.
const STARTS_WITHIN: Duration = Duration::from_millis(500);
const DELIVERY: [&str; 10] = [
    "--url",
    "sqlite:log.db",
    "--dest",
    "file-1",
    "--commit-interval",
    "50ms",
    "--reliability",
    "50",
    "--backoff",
    "1ms",
];

fn ingest(folder: &Path) -> Program {
    Program::start(folder, &["ingest", "--url", "sqlite:log.db", "--listen", "127.0.0.1:0"])
}

fn dispatch(folder: &Path) -> Program {
    Program::start(folder, &[&["dispatch"], &DELIVERY[..]].concat())
}

fn up(folder: &Path) -> Program {
    Program::start(folder, &[&["up", "--listen", "127.0.0.1:0"], &DELIVERY[..]].concat())
}

#[test]
fn up_killed_under_load_loses_nothing_and_repeats_only_what_was_not_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::of(folder.path());
    let mut program = up(folder.path());
    let load = Load::start(&program.address());
    for round in 0..ROUNDS {
        history.live_for(round);
        program.kill();
        history.killed();
        program = up(folder.path());
        load.turn_to(&program.address());
    }
    history.live_for(ROUNDS);
    assert_eq!(program.stop().code(), 0);
    history.drained();
    program = up(folder.path());
    load.turn_to(&program.address());
    let answered = load.stop();
    history.wait_for(&answered);
    assert_eq!(program.stop().code(), 0);
    history.drained();
    let repeated = history.judge("up", &answered);
    assert!(repeated > 0, "no kill hit anything that was under way");
    assert!(answered.requests_again > 0, "no request was under way when up was killed");
}

#[test]
fn dispatch_killed_under_load_loses_nothing_and_repeats_only_what_was_not_committed() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::of(folder.path());
    let ingest = ingest(folder.path());
    let load = Load::start(&ingest.address());
    let mut program = dispatch(folder.path());
    for round in 0..ROUNDS {
        history.live_for(round);
        program.kill();
        history.killed();
        program = dispatch(folder.path());
    }
    history.live_for(ROUNDS);
    assert_eq!(program.stop().code(), 0);
    history.drained();
    program = dispatch(folder.path());
    let answered = load.stop();
    history.wait_for(&answered);
    assert_eq!(program.stop().code(), 0);
    assert_eq!(ingest.stop().code(), 0);
    history.drained();
    let repeated = history.judge("dispatch", &answered);
    assert!(repeated > 0, "no kill hit anything that was under way");
}

#[test]
fn ingest_killed_under_load_loses_nothing_that_it_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::of(folder.path());
    let mut program = ingest(folder.path());
    let load = Load::start(&program.address());
    let dispatch = dispatch(folder.path());
    for round in 0..ROUNDS {
        history.live_for(round);
        program.kill();
        program = ingest(folder.path());
        load.turn_to(&program.address());
    }
    history.live_for(ROUNDS);
    let answered = load.stop();
    history.wait_for(&answered);
    assert_eq!(program.stop().code(), 0);
    assert_eq!(dispatch.stop().code(), 0);
    history.drained();
    let repeated = history.judge("ingest", &answered);
    assert_eq!(repeated, 0, "dispatch lived through it all");
    assert!(answered.requests_again > 0, "no request was under way when ingest was killed");
}

/// A destination's file, life by life of the process that wrote it.
struct History {
    folder: PathBuf,
    /// Where the last life that ended ends in the file.
    read_to: u64,
    lives: Vec<Life>,
    lengths: Lengths,
}

struct Life {
    lines: Vec<Line>,
    /// What the process had committed when it was gone, a partition each.
    committed: Vec<Progress>,
    drained: bool,
    /// So many of its lines had to be in the commit: all where it drained, else those that were written longer before
    /// the kill than a commit may take.
    old_lines: usize,
}

impl Life {
    fn has_settled(&self, line: &Line) -> bool {
        self.committed[line.partition as usize].is_settled(line.offset)
    }
}

impl History {
    fn of(folder: &Path) -> Self {
        let lengths = Lengths::follow(folder.join("file-1"));
        Self { folder: folder.to_owned(), read_to: 0, lives: Vec::new(), lengths }
    }

    /// Waits until this life has delivered so much that it can be ended: some are cut short right at the start, some
    /// live so long that their first lines have to be in the commit.
    fn live_for(&self, round: usize) {
        let more_bytes = [1, 20_000, 3_000, 60_000][round % 4];
        let began = Instant::now();
        let long = if round % 2 == 1 { COMMIT_INTERVAL + COMMIT_TAKES_MAX + STARTS_WITHIN } else { Duration::ZERO };
        eventually(|| match self.lengths.now() {
            length if length >= self.read_to + more_bytes && began.elapsed() > long => Ok(()),
            length => Err(format!("round {round}: the file has {length} bytes, and had {}", self.read_to)),
        });
    }

    /// The process is gone: keeps what it wrote and what it had committed.
    fn killed(&mut self) {
        let horizon = self.lengths.at(Instant::now().checked_sub(COMMIT_INTERVAL + COMMIT_TAKES_MAX));
        let begin = self.read_to;
        let (lines, ends) = self.read();
        let old_lines = ends.iter().filter(|end| begin + **end <= horizon).count();
        self.lives.push(Life { lines, committed: committed(&self.folder), drained: false, old_lines });
    }

    /// The process ended by itself: all that it delivered has to be committed.
    fn drained(&mut self) {
        let (lines, _) = self.read();
        let old_lines = lines.len();
        self.lives.push(Life { lines, committed: committed(&self.folder), drained: true, old_lines });
    }

    /// The whole lines since the last life, and where each ends.
    fn read(&mut self) -> (Vec<Line>, Vec<u64>) {
        let mut file = std::fs::File::open(self.folder.join("file-1")).unwrap();
        file.seek(SeekFrom::Start(self.read_to)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let (mut lines, mut ends, mut end) = (Vec::new(), Vec::new(), 0);
        // A torn last line is cut by the next life.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            lines.push(serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
            end += line.len() as u64;
            ends.push(end);
        }
        self.read_to += end;
        (lines, ends)
    }

    /// Holds everything against the promises, and says how many deliveries were repetitions.
    fn judge(self, mode: &str, answered: &Answered) -> usize {
        // Where each record was delivered last.
        let mut seen = HashMap::new();
        let mut first_payloads = BTreeMap::<&str, Vec<u64>>::new();
        let (mut repeated, mut old_lines, mut deliveries) = (0, 0, 0);
        for (number, life) in self.lives.iter().enumerate() {
            let mut last_offsets = HashMap::new();
            for line in &life.lines {
                let last = last_offsets.insert(&line.user, line.offset);
                assert!(last < Some(line.offset), "life {number}: not in order behind {last:?}: {line:?}");
                let Some(delivered_in) = seen.insert((line.partition, line.offset), number) else {
                    first_payloads.entry(&line.user).or_default().push(line.payload.parse().unwrap());
                    continue;
                };
                repeated += 1;
                let drained = self.lives[delivered_in].drained;
                assert!(!drained, "life {number} repeats what life {delivered_in} delivered, which drained: {line:?}");
                let settled = self.lives[number - 1].has_settled(line);
                assert!(!settled, "life {number}: the commit that it began with says that this is settled: {line:?}");
            }
            for line in &life.lines[..life.old_lines] {
                let within = COMMIT_INTERVAL + COMMIT_TAKES_MAX;
                assert!(life.has_settled(line), "life {number}: not committed {within:?} after delivery: {line:?}");
            }
            old_lines += life.old_lines;
            deliveries += life.lines.len();
        }
        for (user, events) in &answered.events {
            // A request that was sent again may stand in the log twice.
            let mut first = Vec::new();
            for payload in first_payloads.remove(user.as_str()).unwrap_or_default() {
                if payload == first.len() as u64 {
                    first.push(payload);
                }
                assert!(payload < first.len() as u64, "{user}: {payload} came before {}", first.len());
            }
            assert_eq!(first.len() as u64, *events, "{user}: so many of its events were delivered, and answered");
        }
        let answers: u64 = answered.events.values().sum();
        println!(
            "# crash of {mode}: {ROUNDS} kills, {answers} events answered, {deliveries} deliveries, {repeated} of them \
             repeated, {} requests sent again, {old_lines} deliveries had to be in a commit",
            answered.requests_again
        );
        assert!(answers > 1_000, "only {answers} events: that is no load");
        repeated
    }

    /// Waits until the last event of every user is in the file.
    fn wait_for(&self, answered: &Answered) {
        let last = |(user, events): (&String, &u64)| (user.clone(), events.saturating_sub(1).to_string());
        let mut missing: HashSet<(String, String)> =
            answered.events.iter().filter(|(_, events)| **events > 0).map(last).collect();
        eventually(|| {
            for line in crate::support::delivered::lines(&self.folder.join("file-1")) {
                missing.remove(&(line.user, line.payload));
            }
            if missing.is_empty() { Ok(()) } else { Err(format!("never delivered: {missing:?}")) }
        });
    }
}

/// What the killed process left: one progress a partition.
fn committed(folder: &Path) -> Vec<Progress> {
    // Nothing is made, and nothing is removed.
    let settings = Settings::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = runtime.block_on(Sqlite::open(folder.join("log.db"), settings)).unwrap();
    let digest = eventd::destination::spec::Spec::parse("file-1").unwrap().digest();
    let group = runtime.block_on(join(&engine, "file-1", TOPIC, &digest, WhenHeld::Fail)).unwrap();
    let progress = |partition| {
        let state = runtime.block_on(group.committed(partition)).unwrap();
        Progress::new(&state.unwrap_or_default())
    };
    (0..PARTITIONS).map(progress).collect()
}

/// How long a file was, and when.
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

    /// The length that was seen last before this moment.
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
            thread.join().expect("the thread that looks at a file's length ends");
        }
    }
}
