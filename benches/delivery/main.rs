//! The end-to-end benchmark. It loads and drains `eventd` as real processes over loopback, next to the limits of the
//! same run. Start it with `make bench`, or with options:
//!
//! ```text
//! cargo bench --bench delivery -- [compare] [--quick] [--engine sqlite|kafka]… [--only PATTERN]… [more: options.rs]
//! ```
//!
//! `--only` selects the cases whose name contains the pattern. `--quick` shows in some minutes whether everything works.
//! Without `--engine`, both engines are measured. `compare` runs a peer next to eventd, on Kafka. The tables go to
//! standard output in Markdown, and progress goes to standard error.
//!
//! ```text
//!   this process                         children
//!   client ── requests ────────────────▶ eventd ingest │ up ── requests ─▶ this program as `server` (the sink)
//!   library ── preload, raw limits       eventd dispatch ────────────────▶      ″
//!                                        this program as `client` ───────▶      ″
//!                                        this program as `broker`: keeps a Kafka
//! ```

mod child;
mod client;
mod compare;
mod drain;
mod figures;
mod ingest;
mod isolation;
mod live;
mod members;
mod options;
mod peers;
mod replay;
mod report;
mod roles;
mod run;
mod store;
mod users;

use crate::drain::{Drain, Sink};
use crate::ingest::Load;
use crate::isolation::Isolation;
use crate::isolation::consumer::Consumer;
use crate::options::Options;
use crate::report::{Measured, Table};
use crate::run::Run;
use crate::store::{Kafka, Sqlite, Store};
use crate::users::Users;
use std::process::{Command, ExitCode};

const K_USERS: Users = Users::Uniform(1_000);
const M_USERS: Users = Users::Uniform(1_000_000);
const ZIPF: Users = Users::Zipf(10_000);

/// The rate of a replay that is measured by how well it keeps to it.
const REPLAYED_A_SECOND: u32 = 5_000;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--role") {
        roles::run(&arguments[1..])?;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options::parse(&arguments)?;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let run = Run::new(options.size, folder.path().join("eventd.log"));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let header = header(&arguments, &load);
    if options.compare {
        println!("{header}\n");
        let failed = compare::run(&run, &options, &mut Kafka::start()?)?;
        return Ok(end(failed, &run));
    }
    let mut bench = Bench { run, only: options.only.clone(), table: Table::default(), failed: 0 };
    let mut isolation = Isolation::default();
    let mut measure = |store: &mut dyn Store| {
        bench.measure(store);
        isolation.measure(&bench.run, &options, store, &[Consumer::Up], None);
    };
    if options.wants("sqlite") {
        measure(&mut Sqlite::new());
    }
    if options.wants("kafka") {
        measure(&mut Kafka::start()?);
    }
    println!("{header}\n");
    if !bench.table.is_empty() {
        println!("{}", bench.table.markdown());
    }
    let failed = bench.failed + isolation.report(&options)?;
    Ok(end(failed, &bench.run))
}

/// Tells how many cases failed, and shows the last lines of eventd.
fn end(failed: usize, run: &Run) -> ExitCode {
    if failed == 0 {
        return ExitCode::SUCCESS;
    }
    let log = std::fs::read_to_string(&run.log).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(20).collect();
    eprintln!("the last lines of eventd:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
    eprintln!("{failed} cases failed");
    ExitCode::FAILURE
}

/// A benchmark run.
struct Bench {
    run: Run,
    only: Vec<String>,
    table: Table,
    failed: usize,
}

impl Bench {
    /// Measures every case.
    fn measure(&mut self, store: &mut dyn Store) {
        let engine = store.name();
        let events = self.run.drain_events;
        if self.needs("limit/append", &["ingest/100"]) {
            self.rounds(store, "limit/append", "", |_, store| store.raw_append(events));
        }
        if self.needs("limit/fetch", &["drain/null", "drain/file"]) {
            self.rounds(store, "limit/fetch", "", |_, store| store.raw_fetch(events));
            self.log_fetch(store, events);
        }

        self.ingest(store, Load { events_a_request: 1, connections: 64 });
        self.ingest(store, Load { events_a_request: 10, connections: 32 });
        self.ingest(store, Load { events_a_request: 100, connections: 8 });

        for users in [K_USERS, M_USERS, ZIPF, Users::One] {
            for to in [Sink::Null, Sink::File, Sink::Http { latency_ms: 0 }, Sink::Http { latency_ms: 10 }] {
                self.drain(store, users, to);
            }
        }
        self.million_against_thousand(engine);

        self.members(store);

        self.replay(store, Sink::Null);
        self.replay(store, Sink::File);
        let plan = format!("replay/plan-{}", self.run.counted_events);
        self.case(store, &plan, "", |run, store| replay::plan(run, store));
        let rated = format!("replay/{REPLAYED_A_SECOND}-a-second");
        self.case(store, &rated, "--rate", |run, store| replay::at_rate(run, store, REPLAYED_A_SECOND));

        self.case(store, "idle", "", |run, store| live::idle(run, store));
        self.case(store, "latency/2000-a-second", "", |run, store| live::latency(run, store));
        self.case(store, "latency/beside-replay", "the same alone", |run, store| {
            let alone = live::latency(run, store)?;
            let beside = live::latency_beside_replay(run, store)?;
            Ok(Measured { ratio: quotient(beside.events_s, alone.events_s), ..beside })
        });
    }

    /// Measures our own fetch, if the limit was measured with another client.
    fn log_fetch(&mut self, store: &mut dyn Store, events: u64) {
        let limit = self.table.measured(store.name(), "limit/fetch");
        let mut rounds = Vec::new();
        for _ in 0..self.run.rounds {
            let Some(measured) = store.log_fetch(events) else { return };
            rounds.push(measured.map(|measured| {
                let ratio = limit.and_then(|limit| quotient(measured.events_s, limit.events_s));
                Measured { ratio, ..measured }
            }));
        }
        let rounds: anyhow::Result<Vec<Measured>> = rounds.into_iter().collect();
        let measured = rounds.map(|rounds| Measured::median(&rounds)).map_err(|error| format!("{error:#}"));
        self.add(store.name(), "log/fetch", "limit/fetch", measured);
    }

    fn ingest(&mut self, store: &mut dyn Store, load: Load) {
        let (size, engine) = (load.events_a_request, store.name());
        let (name, bare) = (format!("ingest/{size}"), format!("limit/server-{size}"));
        // For single events HTTP is the limit. For large requests it is the log.
        let (append, limit) = match self.table.measured(engine, "limit/append") {
            Some(append) if size == 100 => (Some(append), "limit/append"),
            _ => (None, bare.as_str()),
        };
        let mut servers = Vec::new();
        self.case(store, &name, limit, |run, store| {
            let round = ingest::round(run, store, load)?;
            servers.push(round.bare_server);
            let of = append.unwrap_or(round.bare_server);
            Ok(Measured { ratio: quotient(round.eventd.events_s, of.events_s), ..round.eventd })
        });
        if !servers.is_empty() {
            self.add(engine, &bare, "", Ok(Measured::median(&servers)));
        }
    }

    fn drain(&mut self, store: &mut dyn Store, users: Users, to: Sink) {
        let (engine, run) = (store.name(), &self.run);
        // If the events of one user wait for each other, fewer events are enough. These drains are bounded in time.
        let (events, concurrency) = match (to, users) {
            (Sink::Null | Sink::File, _) => (run.drain_events, None),
            (Sink::Http { latency_ms: 0 }, ZIPF) => (run.drain_events, Some(16)),
            (Sink::Http { latency_ms: 0 }, Users::One) => (run.paced_events, None),
            (Sink::Http { latency_ms: 0 }, _) => (run.drain_events, None),
            (Sink::Http { .. }, ZIPF) => (run.paced_events / 3, Some(1000)),
            (Sink::Http { .. }, Users::One) => (run.paced_events / 60, Some(1000)),
            (Sink::Http { .. }, _) => (run.drain_events, Some(1000)),
        };
        let (drain, name) = (Drain { users, to, events, concurrency }, format!("drain/{to}/{users}"));
        let fetch = self.table.measured(engine, "limit/fetch");
        let bare = format!("limit/client-{to}-{}", drain.client_concurrency());
        let limit = match to {
            Sink::Null | Sink::File => "limit/fetch",
            // Here the limit is the hottest user, whose events go one by one. No client can be faster.
            Sink::Http { latency_ms } if latency_ms > 0 && users == ZIPF => "",
            Sink::Http { .. } => bare.as_str(),
        };
        // If two cases have the same limit, the first one measures it.
        let known = self.table.measured(engine, &bare);
        let mut clients = Vec::new();
        self.case(store, &name, limit, |run, store| {
            let measured = drain::round(run, store, drain)?;
            let of = match to {
                Sink::Null | Sink::File => fetch,
                Sink::Http { .. } if limit.is_empty() => None,
                Sink::Http { .. } if known.is_some() => known,
                Sink::Http { latency_ms } => {
                    let client = drain::bare_client(drain, latency_ms)?;
                    clients.push(client);
                    Some(client)
                }
            };
            Ok(Measured { ratio: of.and_then(|of| quotient(measured.events_s, of.events_s)), ..measured })
        });
        if !clients.is_empty() {
            self.add(engine, &bare, "", Ok(Measured::median(&clients)));
        }
    }

    /// Measures several processes of one destination, which only a broker's group allows. In each round, three
    /// processes run right after one.
    fn members(&mut self, store: &mut dyn Store) {
        let engine = store.name();
        if engine != "kafka" {
            return;
        }
        let mut alone = Vec::new();
        self.case(store, "members/three", "members/one", |run, store| {
            let one = members::round(run, store, 1)?;
            alone.push(one);
            let three = members::round(run, store, 3)?;
            Ok(Measured { ratio: quotient(three.events_s, one.events_s), ..three })
        });
        if !alone.is_empty() {
            self.add(engine, "members/one", "", Ok(Measured::median(&alone)));
        }
    }

    /// Measures a replay. In each round a drain of its own runs right after it.
    fn replay(&mut self, store: &mut dyn Store, to: Sink) {
        let drain = Drain { users: K_USERS, to, events: self.run.drain_events, concurrency: None };
        self.case(store, &format!("replay/{to}"), &format!("drain/{to}/{K_USERS}"), |run, store| {
            let dispatch = drain::round(run, store, drain)?;
            let replay = replay::round(run, store, drain)?;
            Ok(Measured { ratio: quotient(replay.events_s, dispatch.events_s), ..replay })
        });
    }

    /// Compares the cost of an event with many users to that with few.
    fn million_against_thousand(&mut self, engine: &'static str) {
        let cost = |users| self.table.measured(engine, &format!("drain/null/{users}"))?.cpu_us_an_event();
        if let (Some(thousand), Some(million)) = (cost(K_USERS), cost(M_USERS)) {
            let measured = Measured { ratio: Some(million / thousand), ..Measured::default() };
            self.add(engine, "cpu/1m-users", "cpu an event of drain/null/1k-users", Ok(measured));
        }
    }

    /// Whether `--only` selects this case.
    fn chosen(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| name.contains(pattern.as_str()))
    }

    /// Whether a limit is needed, because it or a case of these kinds was selected.
    fn needs(&self, limit: &str, kinds: &[&str]) -> bool {
        let of_kind =
            |pattern: &String| kinds.iter().any(|kind| pattern.contains(kind) || kind.contains(pattern.as_str()));
        self.chosen(limit) || self.only.iter().any(of_kind)
    }

    /// Runs a case if it was selected.
    fn case(
        &mut self,
        store: &mut dyn Store,
        name: &str,
        limit: &str,
        round: impl FnMut(&Run, &mut dyn Store) -> anyhow::Result<Measured>,
    ) {
        if self.chosen(name) {
            self.rounds(store, name, limit, round);
        }
    }

    /// Runs the rounds of a case, and adds a row with their median.
    fn rounds(
        &mut self,
        store: &mut dyn Store,
        name: &str,
        limit: &str,
        mut round: impl FnMut(&Run, &mut dyn Store) -> anyhow::Result<Measured>,
    ) {
        let mut one = || {
            let measured = round(&self.run, store)?;
            eprintln!("  {name}: {:.0} events/s", measured.events_s.unwrap_or_default());
            Ok(measured)
        };
        let rounds: anyhow::Result<Vec<Measured>> = (0..self.run.rounds).map(|_| one()).collect();
        let measured = rounds.map(|rounds| Measured::median(&rounds)).map_err(|error| format!("{error:#}"));
        self.add(store.name(), name, limit, measured);
    }

    fn add(&mut self, engine: &'static str, name: &str, limit: &str, measured: Result<Measured, String>) {
        match &measured {
            Ok(measured) => eprintln!(
                "{engine} {name}: {:.0} events/s, ratio {:.2}",
                measured.events_s.unwrap_or_default(),
                measured.ratio.unwrap_or_default()
            ),
            Err(why) => {
                self.failed += 1;
                eprintln!("{engine} {name}: failed: {why}");
            }
        }
        self.table.add(engine, name, limit, measured);
    }
}

fn quotient(value: Option<f64>, of: Option<f64>) -> Option<f64> {
    Some(value? / of?)
}

/// The machine, the compiler and the command of this run.
fn header(arguments: &[String], load: &str) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let rustc = Command::new("rustc").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let options: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| *argument != "--bench").collect();
    let options = if options.is_empty() { String::new() } else { format!(" -- {}", options.join(" ")) };
    format!(
        "- machine: {} cores, {}, Linux {}; load when it began: {}\n- compiler: {}\n- command: `cargo bench --bench delivery{options}`",
        std::thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
        String::from_utf8_lossy(&rustc).trim(),
    )
}
