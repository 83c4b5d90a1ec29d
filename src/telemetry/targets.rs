//! The modules that log lines come from. A filter for any other module would silently show nothing.

/// Modules of eventd that write log lines, in alphabetical order. A test compares the list with the source.
const OWN: &[&str] = &[
    "eventd",
    "eventd::descriptors",
    "eventd::dispatch",
    "eventd::dispatch::dead_letter",
    "eventd::dispatch::notices",
    "eventd::dispatch::stopped",
    "eventd::dispatch::worker",
    "eventd::dispatch::worker::letters",
    "eventd::dispatch::worker::moving",
    "eventd::dispatch::worker::reading",
    "eventd::group::earlier_name",
    "eventd::group::kafka::commit",
    "eventd::group::kafka::membership",
    "eventd::group::kafka::moves",
    "eventd::group::sqlite",
    "eventd::ingest",
    "eventd::ingest::appender",
    "eventd::ingest::server",
    "eventd::kafka::cluster::coordinator",
    "eventd::kafka::cluster::topics",
    "eventd::log::kafka::producer::task",
    "eventd::log::kafka::topics",
    "eventd::modes",
    "eventd::modes::first_start",
    "eventd::modes::memory",
    "eventd::replay",
    "eventd::replay::plan",
    "eventd::replay::prepare",
    "eventd::replay::rewind",
    "eventd::replay::run",
    "eventd::replay::show",
    "eventd::replay::signing",
    "eventd::signals",
    "eventd::sqlite",
    "eventd::sqlite::checkpoint",
    "eventd::sqlite::file",
    "eventd::sqlite::files",
    "eventd::sqlite::trim",
    "eventd::sqlite::watcher",
    "eventd::stderr",
    "eventd::telemetry",
    "eventd::up",
];

/// Modules of other crates that log. rustls and mio write to the `log` crate, which is not read here; hyper and tokio log only
/// in builds with unstable features.
const OTHERS: &[&str] = &["hyper_util::client::legacy::connect", "hyper_util::client::legacy::connect::http"];

/// `tracing` compares targets by their first characters, so this one covers `hyper_util`.
const HYPER: &str = "hyper";

/// Whether log lines come from this module, or from one within it.
pub(super) fn is_known(module: &str) -> bool {
    let is_within =
        |target: &&str| target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    module == HYPER || all().any(|target| is_within(&target))
}

/// The crates and modules of the first level, for messages.
pub(super) fn top_level() -> String {
    let mut shown: Vec<String> = Vec::new();
    for target in all() {
        let levels = if target.starts_with("eventd") { 2 } else { 1 };
        let module = target.split("::").take(levels).collect::<Vec<_>>().join("::");
        if !shown.contains(&module) {
            shown.push(module);
        }
    }
    shown.join(", ")
}

fn all() -> impl Iterator<Item = &'static str> {
    OWN.iter().chain(OTHERS).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{read_dir, read_to_string};
    use std::path::Path;

    /// Adds the modules below this directory that log outside of tests.
    fn find(directory: &Path, module: &str, found: &mut Vec<String>) {
        for entry in read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                // A whole folder of tests.
                if name != "simulation" {
                    find(&path, &format!("{module}::{name}"), found);
                }
                continue;
            }
            let text = read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let logs = ["error!(", "warn!(", "info!(", "debug!(", "trace!("].map(|level| format!("tracing::{level}"));
            if logs.iter().any(|log| code.contains(log)) {
                let is_own = matches!(name.as_str(), "mod" | "main" | "lib");
                found.push(if is_own { module.to_owned() } else { format!("{module}::{name}") });
            }
        }
    }

    #[test]
    fn the_list_is_what_logs_in_the_source() {
        let mut found = Vec::new();
        find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "eventd", &mut found);
        found.sort();
        assert_eq!(found, OWN, "the list in src/telemetry/targets.rs");
    }

    #[test]
    fn a_module_is_known_if_it_or_one_within_it_logs() {
        let known = ["eventd", "eventd::dispatch", "eventd::log", "eventd::log::kafka", "hyper", "hyper_util::client"];
        assert_eq!(known.map(is_known), [true; 6]);
        let unknown =
            ["", "event", "evntd", "eventd::", "eventd::disp", "eventd::dispatch::", "eventd::core", "hyper::client"];
        assert_eq!(unknown.map(is_known), [false; 8]);
    }
}
