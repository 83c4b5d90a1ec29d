//! The layering: which module may name which others and which crates. The test reads the source itself. Arrows between
//! modules never turn back.

mod circles;
mod language;
mod pages;
mod source;
mod type_names;

use source::{Path, Source};
use std::fs;
use std::path::Path as File;

/// What each part of a running command may name.
const PARTS: &[&str] = &["core", "net", "sqlite", "kafka", "log", "group", "destination"];

/// A replay is a dispatch of a part of the log that shows an operator what it does.
const REPLAYING: &[&str] = &["core", "net", "sqlite", "kafka", "log", "group", "destination", "dispatch", "stderr"];

/// A command is given like a replay: it plans, prints, and waits for the owners.
const COMMANDING: &[&str] = &["core", "group", "log", "dispatch", "replay"];

/// The commands join all parts, and know the bounds of each.
const COMMANDS: &[&str] = &[
    "core",
    "net",
    "log",
    "group",
    "destination",
    "ingest",
    "dispatch",
    "replay",
    "control",
    "config",
    "signals",
    "stderr",
];

/// What every module may name. (Among these, `core` may only name `limits`, see [`NOT_IN_CORE`].)
const FREE: &[&str] = &["limits", "BoxFuture", "clock", "log_limiter", "small_file", "vital", "descriptors"];

/// Each module, and which other modules of eventd it may name. All may name the small modules of `FREE`. `lib.rs` and
/// `main.rs` may name everything. A new module must be added here.
const ARROWS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("clock", &[]),
    ("log_limiter", &[]),
    ("small_file", &[]),
    ("descriptors", &[]),
    ("stderr", &[]),
    ("vital", &[]),
    ("core", &[]),
    ("net", &["core"]),
    ("sqlite", &["core", "net"]),
    ("kafka", &["core", "net"]),
    ("log", &["core", "net", "sqlite", "kafka"]),
    ("group", &["core", "net", "sqlite", "kafka", "log"]),
    ("destination", &["core", "net"]),
    ("ingest", PARTS),
    ("dispatch", PARTS),
    ("replay", REPLAYING),
    ("control", COMMANDING),
    ("environment", &[]),
    ("telemetry", &["core", "environment", "stderr"]),
    // Flags as typed know the types of single values, and nothing of the configuration that is checked from them.
    ("cli", &["core", "net", "dispatch", "replay", "telemetry"]),
    (
        "config",
        &[
            "cli",
            "core",
            "environment",
            "net",
            "log",
            "group",
            "destination",
            "ingest",
            "dispatch",
            "replay",
            "control",
        ],
    ),
    ("signals", &[]),
    ("commands", COMMANDS),
];

/// Paths that only some files may name. The files are given by the beginnings of their names.
const CONFINED: &[(&[&str], &[&str])] = &[
    (&["rusqlite"], &["src/sqlite/"]),
    (&["kafka_protocol"], &["src/kafka/", "src/log/kafka/", "src/group/kafka"]),
    (&["clap"], &["src/cli/", "src/main.rs"]),
    (&["hyper"], HTTP),
    (&["hyper_util"], HTTP),
    (&["hyper_rustls"], HTTP),
    (&["http_body"], HTTP),
    (&["http_body_util"], HTTP),
    (&["tokio", "spawn"], SPAWNING),
    (&["tokio", "task", "spawn"], SPAWNING),
    (&["tokio", "task", "spawn_local"], SPAWNING),
    (&["tokio", "task", "JoinSet"], SPAWNING),
    (&["tokio", "task", "LocalSet"], SPAWNING),
    (&["tokio", "runtime"], SPAWNING),
    // All others use tokio's time, which the simulation controls. They must not block a thread of the runtime.
    (&["std", "time", "Instant"], &["src/sqlite/"]),
    (&["std", "thread", "sleep"], &["src/sqlite/"]),
    // If a thread that is never joined panics, this has to be logged.
    (&["std", "thread", "spawn"], THREADS),
    (&["std", "thread", "Builder"], THREADS),
];

/// `small_file` joins its thread, and `stderr` catches the panics of its own.
const THREADS: &[&str] = &["src/vital.rs", "src/stderr.rs", "src/small_file.rs"];

const HTTP: &[&str] = &["src/ingest/", "src/ops/", "src/destination/http/"];

/// Modes spawn tasks, since they alone know when to end them. (The one task of `signals` lives as long as the process,
/// the producer of a Kafka topic as long as its log, a membership as long as its group, and the pool of an http destination
/// as long as that.)
const SPAWNING: &[&str] = &[
    "src/ingest/",
    "src/dispatch/",
    "src/replay/",
    "src/commands/",
    "src/signals.rs",
    "src/main.rs",
    "src/log/kafka/producer/",
    "src/group/kafka/membership/mod.rs",
    "src/destination/http/pool.rs",
];

/// The crates that `core` may name. They are pure.
const CORE_CRATES: &[&str] = &["base64", "hashbrown", "thiserror"];

/// The parts of `std` that `core` may not name: clocks, and everything outside the process.
const NOT_IN_CORE: &[&[&str]] = &[
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["std", "time", "UNIX_EPOCH"],
    &["std", "fs"],
    &["std", "io"],
    &["std", "net"],
    &["std", "os"],
    &["std", "env"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "sync", "mpsc"],
];

/// The violations in this file, one line each.
fn violations(file: &str, source: &Source, crates: &[String]) -> Vec<String> {
    let module = module_of(file);
    let arrows = ARROWS.iter().find(|(name, _)| *name == module[0]).map(|(_, arrows)| *arrows);
    let is_root = ["lib", "main"].contains(&module[0].as_str());
    if arrows.is_none() && !is_root {
        return vec![format!("{file}: the module {} has no place in ARROWS yet", module[0])];
    }
    let broken = |path: &Path| -> Option<String> {
        if let Some(target) = module_named(&module, path) {
            let free = is_root || target == module[0] || FREE.contains(&target);
            return (!free && !arrows.is_some_and(|arrows| arrows.contains(&target)))
                .then(|| format!("{} may not name {target}", module[0]));
        }
        for (confined, homes) in CONFINED {
            if covers(confined, path) && !homes.iter().any(|home| file.starts_with(home)) {
                return Some(format!("{} belongs in {}", confined.join("::"), homes.join(", ")));
            }
        }
        let foreign = |name: &String| crates.contains(name) && !CORE_CRATES.contains(&name.as_str());
        let impure = foreign(&path.words[0]) || NOT_IN_CORE.iter().any(|banned| covers(banned, path));
        (module[0] == "core" && impure).then(|| "core is pure".to_owned())
    };
    let tell = |path: &Path, why: String| format!("{file}:{}: `{}`: {why}", path.line, path.words.join("::"));
    source.paths.iter().filter_map(|path| broken(path).map(|why| tell(path, why))).collect()
}

/// `src/core/breaker/user_trust.rs` is `["core", "breaker", "user_trust"]`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

/// The top-level module of eventd that the path names.
fn module_named<'a>(module: &'a [String], path: &'a Path) -> Option<&'a str> {
    let words: Vec<&str> = path.words.iter().map(String::as_str).collect();
    match words[..] {
        ["crate" | "eventd", named, ..] => Some(named),
        ["super", ..] => {
            let supers = words.iter().take_while(|word| **word == "super").count();
            let rest = words[supers..].first().copied();
            // A module within the file has one more level, so its `super` is the file's own module.
            module
                .len()
                .checked_sub(supers)
                .map_or(Some(&module[0]), |left| if left == 0 { rest } else { Some(&module[0]) })
        }
        _ => None,
    }
}

/// Whether the path begins with `prefix`, or is a glob that includes it.
fn covers(prefix: &[&str], path: &Path) -> bool {
    let same = prefix.iter().zip(&path.words).take_while(|(wanted, word)| wanted == word).count();
    same == prefix.len() || (path.words.get(same).is_some_and(|word| word == "*") && same > 0)
}

/// The names of the crates that eventd depends on, as code writes them.
fn crates() -> Vec<String> {
    let manifest = fs::read_to_string(File::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let section = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let names = section.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('='));
    names.filter(|(name, _)| !name.starts_with('#')).map(|(name, _)| name.trim().replace('-', "_")).collect()
}

/// Every file below `folder` with what it names, except files that are only compiled for tests.
fn tree(folder: &str) -> Vec<(String, Source)> {
    let root = File::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut folders, mut tests) = (Vec::new(), vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let source = Source::read(&fs::read_to_string(&path).unwrap());
                // A module's file is next to `mod.rs`, or in the folder with the name of the declaring file.
                // With a `#[path]` it is relative to that file.
                let (own, beside) = (file.trim_end_matches(".rs"), path.parent().unwrap().strip_prefix(root).unwrap());
                for module in &source.test_modules {
                    tests.push(format!("{own}/{module}.rs"));
                    tests.push(format!("{}/{module}.rs", beside.display()));
                }
                found.push((file, source));
            }
        }
    }
    // The modules that such a module declares are in its folder.
    let for_tests = |file: &str| tests.iter().any(|test| file == test || file.starts_with(&folder_of(test)));
    found.retain(|(file, _)| !for_tests(file));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The folder with the modules that a file declares: `src/a/b/` for `src/a/b.rs`.
fn folder_of(file: &str) -> String {
    format!("{}/", file.trim_end_matches(".rs"))
}

#[test]
fn arrows_never_turn_back() {
    let (files, crates) = (tree("src"), crates());
    assert!(files.len() > 30 && crates.len() > 20, "{} files, {} crates", files.len(), crates.len());
    let broken: Vec<String> = files.iter().flat_map(|(file, source)| violations(file, source, &crates)).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn a_planted_violation_is_found() {
    let crates = crates();
    for (file, text, word) in [
        ("src/core/lanes.rs", "use crate::log::Log;", "core may not name log"),
        ("src/core/lanes.rs", "fn f() { crate::dispatch::run() }", "core may not name dispatch"),
        ("src/core/lanes.rs", "use crate::{core::Moment, limits, group};", "core may not name group"),
        ("src/core/breaker/user_trust.rs", "use super::super::super::log::Log;", "core may not name log"),
        ("src/core/lanes.rs", "use tokio::sync::mpsc;", "core is pure"),
        ("src/core/lanes.rs", "use std::{fmt, time::{Duration, SystemTime}};", "core is pure"),
        ("src/core/lanes.rs", "fn f() { let a = 'x'; std::time::SystemTime::now(); }", "core is pure"),
        ("src/core/lanes.rs", "use std::time; fn f() { time::Instant::now(); }", "time::Instant"),
        ("src/core/lanes.rs", "use std::time::*;", "lanes.rs:1"),
        ("src/core/lanes.rs", "use std::fs::File;", "core is pure"),
        ("src/core/lanes.rs", "use uuid::Uuid;", "core is pure"),
        ("src/core/lanes.rs", "#[cfg(not(test))] use std::thread;", "core is pure"),
        ("src/core/lanes.rs", "#[cfg(test)] use std::thread;\nuse std::net::IpAddr;", "lanes.rs:2"),
        ("src/core/lanes.rs", "#[cfg(test)] mod tests { fn f() { g(\"}\") } }\nuse std::net::IpAddr;", "lanes.rs:2"),
        ("src/log/sqlite.rs", "use rusqlite::Connection;", "belongs in src/sqlite/"),
        ("src/log/mod.rs", "use crate::group::Group;", "log may not name group"),
        ("src/sqlite/mod.rs", "use crate::log::Log;", "sqlite may not name log"),
        ("src/destination/mod.rs", "use crate::dispatch::Config;", "destination may not name dispatch"),
        ("src/ingest/mod.rs", "use crate::dispatch;", "ingest may not name dispatch"),
        ("src/dispatch/mod.rs", "use crate::commands;", "dispatch may not name commands"),
        ("src/config/mod.rs", "use clap::Parser;", "belongs in src/cli/"),
        ("src/dispatch/mod.rs", "use hyper::Request;", "belongs in src/ingest/"),
        ("src/destination/mod.rs", "type A = http_body_util::Full<u8>;", "belongs in src/ingest/"),
        ("src/destination/http.rs", "fn f() { tokio::spawn(async {}); }", "tokio::spawn belongs in"),
        ("src/destination/http.rs", "use tokio::task; fn f() { task::spawn(g()); }", "tokio::task::spawn belongs in"),
        ("src/log/sqlite.rs", "fn f() { t::JoinSet::new() }\nuse tokio::task as t;", "sqlite.rs:1"),
        ("src/group/mod.rs", "use tokio::task::{self, JoinSet};", "tokio::task::JoinSet belongs in"),
        ("src/group/mod.rs", "fn f() { tokio::runtime::Handle::current().spawn(g()); }", "tokio::runtime belongs in"),
        ("src/dispatch/worker.rs", "use std::time::{Duration, Instant};", "std::time::Instant belongs in src/sqlite/"),
        ("src/ingest/server.rs", "fn f() { std::thread::sleep(A) }", "std::thread::sleep belongs in src/sqlite/"),
        ("src/destination/file.rs", "fn f() { std::thread::spawn(h); }", "std::thread::spawn belongs in src/vital.rs"),
        ("src/newcomer/mod.rs", "", "no place in ARROWS"),
    ] {
        let found = violations(file, &Source::read(text), &crates);
        assert!(found.iter().any(|told| told.contains(word)), "{file}: {text}\nwants {word:?}, found {found:?}");
    }
}

#[test]
fn other_code_is_not_reported() {
    let crates = crates();
    for (file, text) in [
        ("src/core/lanes.rs", "//! Not like [`crate::log`].\n/* use /* tokio */ ::x; crate::log::Log */"),
        ("src/core/lanes.rs", r##"const A: &str = "use crate::log;"; const B: &str = r#"" crate::commands::x "#;"##),
        ("src/core/lanes.rs", "use std::time::Duration; use crate::core::Moment; use crate::limits::A; use super::x;"),
        ("src/core/lanes.rs", "fn f<'a>(a: &'a str) -> char { '\\'' }"),
        ("src/core/lanes.rs", "#[cfg(test)]\nmod tests { use std::thread; fn f() -> [u8; 2] { crate::log::x() } }"),
        ("src/core/lanes.rs", "#[cfg(test)] #[path = \"lanes_tests.rs\"] mod tests;"),
        ("src/destination/file.rs", "fn f() { tokio::task::spawn_blocking(g); std::thread::current(); }"),
        ("src/group/sqlite/mod.rs", "use crate::log::sqlite::Sqlite; use crate::BoxFuture;"),
        ("src/dispatch/worker.rs", "fn f() -> impl Future + use<'a> { tokio::spawn(g()) } fn h() { crate::log::x() }"),
    ] {
        let found = violations(file, &Source::read(text), &crates);
        assert!(found.is_empty(), "{file}: {text}\n{found:?}");
    }
}
