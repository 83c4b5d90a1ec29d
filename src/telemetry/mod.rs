//! Log lines on standard error: text for people, JSON for programs. `EVENTD_LOG` selects lines.
//!
//! Each event is one line. Text from outside, such as a user id, may contain line breaks and control characters;
//! `escaping` makes them harmless.

mod escaping;
mod targets;

use crate::environment::{self, LOG};
use crate::stderr;
use anyhow::{Context, anyhow, bail, ensure};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::str::FromStr;
use tracing_subscriber::EnvFilter;

/// The format of log lines, as `--log-format` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("write text or json".into()),
        }
    }
}

/// The levels, each with the names that it has in other programs. The latter are suggested in errors.
const LEVELS: [(&str, &[&str]); 6] = [
    ("off", &["none", "quiet", "silent"]),
    ("error", &["err", "errors", "fatal", "critical", "crit"]),
    ("warn", &["warning", "warnings"]),
    ("info", &["information", "notice"]),
    ("debug", &["dbg", "verbose"]),
    ("trace", &["tracing", "all"]),
];

/// Starts to write log lines, and the messages of panics, to standard error. Call this once in a process.
///
/// # Errors
/// The value of `EVENTD_LOG` is wrong.
pub fn start(format: LogFormat, default_level: &str) -> anyhow::Result<()> {
    let directives = environment::text(LOG)?.unwrap_or_else(|| default_level.to_owned());
    let filter = filter(&directives).with_context(|| format!("{LOG}={directives}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| stderr::Lines);
    // With this on, `tracing` writes its own errors directly to standard error, and panics if that fails.
    let lines = lines.log_internal_errors(false);
    match format {
        LogFormat::Text => {
            lines.fmt_fields(escaping::fields()).with_ansi(std::io::stderr().is_terminal()).init();
        }
        LogFormat::Json => lines.json().flatten_event(true).map_event_format(escaping::Json).init(),
    }
    // The hook of the standard library writes directly to standard error, and would wait for a reader that does not read.
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// The filter for the directives of `EVENTD_LOG`. Modules that no directive names log at `error`: if only the lines of one
/// module were selected, the reason for which the process ends still has to be written.
fn filter(directives: &str) -> anyhow::Result<EnvFilter> {
    let mut all = vec!["error"];
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        check(directive)?;
        all.push(directive);
    }
    ensure!(all.len() > 1, "it is empty: {}", possible());
    // If several directives are for the same module, the last one counts.
    EnvFilter::builder().parse(all.join(",")).with_context(possible)
}

/// Refuses a directive that selects nothing. `tracing` accepts any word as the name of a module, so a spelling mistake
/// would silently hide log lines. Filters by span are refused too, because eventd has no spans.
fn check(directive: &str) -> anyhow::Result<()> {
    let (target, level) = match directive.split_once('=') {
        Some((target, level)) => (Some(target.trim()), Some(level.trim())),
        None if directive.contains("::") || (targets::is_known(directive) && !is_level(directive)) => {
            (Some(directive), None)
        }
        // A single word is meant as a level.
        None => (None, Some(directive)),
    };
    if let Some(level) = level.filter(|level| !is_level(level)) {
        let has_name = |(_, names): &&(&str, &[&str])| names.contains(&level.to_ascii_lowercase().as_str());
        let meant = LEVELS.iter().find(has_name).map(|(level, _)| format!(" (did you mean {level:?}?)"));
        bail!("{level:?} is not a level{}: {}", meant.unwrap_or_default(), possible());
    }
    match target {
        Some(target) if !targets::is_known(target) => Err(anyhow!(
            "the module {target:?} does not exist or never logs: {}. Modules that log: {}",
            possible(),
            targets::top_level()
        )),
        _ => Ok(()),
    }
}

fn possible() -> String {
    let levels = LEVELS.map(|(level, _)| level).join(", ");
    format!("write a level ({levels}), or levels of modules, for example eventd::dispatch=debug,info")
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|(level, _)| level.eq_ignore_ascii_case(word))
}

fn panicked(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let message = message.unwrap_or("(no message)");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    tracing::error!(thread, place, "panic, which is a defect of eventd: {message}");
    // The backtrace is only captured if RUST_BACKTRACE is set.
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(|line| tracing::error!(thread, "{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_neither_a_level_nor_a_module_is_refused_with_advice() {
        for (directives, says) in [
            ("inof", "\"inof\" is not a level: write a level (off, error, warn, info, debug, trace)"),
            ("warning", "\"warning\" is not a level (did you mean \"warn\"?)"),
            ("WARNING", "did you mean \"warn\"?"),
            ("info,warnings", "did you mean \"warn\"?"),
            ("verbose", "did you mean \"debug\"?"),
            ("eventd=inof", "\"inof\" is not a level"),
            ("eventd=", "\"\" is not a level"),
            ("eventd::dispatch=high,info", "\"high\" is not a level"),
            ("=debug", "the module \"\" does not exist or never logs: write a level"),
            ("a=b=c", "\"b=c\" is not a level"),
            ("eventd::=debug", "the module \"eventd::\""),
            ("eventd:dispatch=debug", "the module \"eventd:dispatch\""),
            ("evntd=debug", "the module \"evntd\""),
            ("eventd::dispach=debug", "Modules that log: eventd, eventd::commands, eventd::descriptors, "),
            ("info,eventd::dispach", "the module \"eventd::dispach\""),
            ("eventd::dispatch::wroker=debug,info", "the module \"eventd::dispatch::wroker\""),
            ("eventd::core=debug", "the module \"eventd::core\""),
            ("rustls=debug", "the module \"rustls\""),
            ("hyper::client=debug", "the module \"hyper::client\""),
            ("eventd:dispatch", "\"eventd:dispatch\" is not a level"),
            ("event", "\"event\" is not a level"),
            ("5x", "\"5x\" is not a level"),
            ("inof[span]", "\"inof[span]\" is not a level"),
            ("eventd[span]=debug", "the module \"eventd[span]\""),
            ("info;debug", "is not a level"),
            ("", "it is empty"),
            (" , ", "it is empty"),
        ] {
            let error = format!("{:#}", filter(directives).expect_err(directives));
            assert!(error.contains(says), "{directives:?}: {error}");
        }
    }

    #[test]
    fn levels_and_modules_are_accepted_and_errors_of_other_modules_are_always_written() {
        let parsed = |directives: &str| filter(directives).expect(directives).to_string();
        for directives in ["info", "INFO", "off", "eventd", "eventd::dispatch=debug,info", "hyper=debug", " warn , "] {
            parsed(directives);
        }
        for directives in ["eventd::group::kafka=trace", "hyper_util", "hyper_util::client=debug"] {
            parsed(directives);
        }
        assert_eq!(parsed("eventd::dispatch=debug"), "eventd::dispatch=debug,error");
        assert_eq!(parsed("eventd::dispatch=debug,info"), "eventd::dispatch=debug,info");
        assert_eq!(parsed("off"), "off", "off turns errors off, too");
    }
}
