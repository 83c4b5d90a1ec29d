//! The modules that write log lines. A filter for any other module would silently select nothing, so `EVENTD_LOG` refuses
//! it.

/// Modules of eventd that write log lines, in alphabetical order. A test compares this list with the source.
const OWN: &[&str] = &[
    "eventd",
    "eventd::commands::deliver",
    "eventd::commands::dispatch",
    "eventd::commands::first_start",
    "eventd::commands::memory",
    "eventd::commands::supervisors",
    "eventd::commands::up",
    "eventd::descriptors",
    "eventd::dispatch::commands::held",
    "eventd::dispatch::commands::pauses",
    "eventd::dispatch::commands::topic",
    "eventd::dispatch::committer",
    "eventd::dispatch::control",
    "eventd::dispatch::cursor",
    "eventd::dispatch::dead_letter_topic",
    "eventd::dispatch::dead_letters",
    "eventd::dispatch::notices",
    "eventd::dispatch::owners",
    "eventd::dispatch::reader",
    "eventd::dispatch::repositioner",
    "eventd::dispatch::stopped",
    "eventd::dispatch::worker",
    "eventd::environment",
    "eventd::group",
    "eventd::group::earlier_name",
    "eventd::group::kafka::commits",
    "eventd::group::kafka::commits::offset_resets",
    "eventd::group::kafka::commits::read",
    "eventd::group::kafka::membership",
    "eventd::group::sqlite::lock",
    "eventd::ingest",
    "eventd::ingest::appender",
    "eventd::ingest::listen",
    "eventd::ingest::server",
    "eventd::kafka::cluster::coordinator",
    "eventd::kafka::cluster::topics",
    "eventd::log::kafka::producer::task",
    "eventd::log::kafka::topics",
    "eventd::net",
    "eventd::replay",
    "eventd::replay::count",
    "eventd::replay::execute",
    "eventd::replay::prepare",
    "eventd::replay::rewind",
    "eventd::replay::run",
    "eventd::replay::show",
    "eventd::replay::signing",
    "eventd::signals",
    "eventd::sqlite",
    "eventd::sqlite::checkpoint",
    "eventd::sqlite::disk_space",
    "eventd::sqlite::files",
    "eventd::sqlite::lost_events",
    "eventd::sqlite::trim",
    "eventd::sqlite::trusted_clock",
    "eventd::sqlite::watcher",
    "eventd::stderr",
    "eventd::telemetry",
];

/// Modules of other crates that write log lines. rustls and mio log with the `log` crate, which eventd does not read.
/// hyper and tokio only log in builds with unstable features.
const OTHERS: &[&str] = &["hyper_util::client::legacy::connect", "hyper_util::client::legacy::connect::http"];

/// `tracing` compares modules by their first characters, so this one selects `hyper_util`.
const HYPER: &str = "hyper";

/// Whether this module, or a module inside it, writes log lines.
pub(super) fn is_known(module: &str) -> bool {
    let is_within =
        |target: &&str| target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    module == HYPER || all().any(|target| is_within(&target))
}

/// The crates that log, and for eventd its modules of the first level. For messages.
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

    /// Adds the modules of this directory that log outside of tests.
    fn find(directory: &Path, module: &str, found: &mut Vec<String>) {
        for entry in read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                // This folder has only tests.
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
    fn the_list_has_the_modules_that_log_in_the_source() {
        let mut found = Vec::new();
        find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "eventd", &mut found);
        found.sort();
        assert_eq!(found, OWN, "left: the source, right: the list in src/telemetry/targets.rs");
    }

    #[test]
    fn a_module_is_known_if_it_or_a_module_inside_it_logs() {
        let known = ["eventd", "eventd::dispatch", "eventd::log", "eventd::log::kafka", "hyper", "hyper_util::client"];
        assert_eq!(known.map(is_known), [true; 6]);
        let unknown =
            ["", "event", "evntd", "eventd::", "eventd::disp", "eventd::dispatch::", "eventd::core", "hyper::client"];
        assert_eq!(unknown.map(is_known), [false; 8]);
    }
}
