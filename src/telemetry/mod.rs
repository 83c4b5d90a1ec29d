//! Log lines on standard error: text for people, JSON for machines. `EVENTD_LOG` says which ones.
//!
//! One event is one line: what a terminal acts on in the text of others is escaped (`escaping`).

mod escaping;
mod targets;

use crate::config::{LogFormat, variable};
use crate::stderr;
use anyhow::{Context, anyhow, bail, ensure};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::EnvFilter;

/// The environment variable that filters log lines, in the syntax of `tracing`: `info`, `eventd::dispatch=debug`.
const FILTER: &str = "EVENTD_LOG";

/// The levels, and what each is called elsewhere.
const LEVELS: [(&str, &[&str]); 6] = [
    ("off", &["none", "quiet", "silent"]),
    ("error", &["err", "errors", "fatal", "critical", "crit"]),
    ("warn", &["warning", "warnings"]),
    ("info", &["information", "notice"]),
    ("debug", &["dbg", "verbose"]),
    ("trace", &["tracing", "all"]),
];

/// Sends the process's log lines to standard error, and the message of a panic too. Once a process.
///
/// # Errors
/// `EVENTD_LOG` cannot be read.
pub fn start(format: LogFormat) -> anyhow::Result<()> {
    let directives = variable(FILTER)?.unwrap_or_else(|| "info".to_owned());
    let filter = filter(&directives).with_context(|| format!("{FILTER}={directives}"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| stderr::Lines);
    // Else `tracing` says on standard error itself what it could not format, and panics if that cannot be written.
    let lines = lines.log_internal_errors(false);
    match format {
        LogFormat::Text => {
            lines.fmt_fields(escaping::fields()).with_ansi(std::io::stderr().is_terminal()).init();
        }
        LogFormat::Json => lines.json().flatten_event(true).map_event_format(escaping::Json).init(),
    }
    // The hook of the standard library writes to standard error itself: it would wait for a reader that does not read.
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// The filter that these directives mean. What none of them is about is told from `error` on: a process must not end
/// without a word because only one module's lines were asked for.
fn filter(directives: &str) -> anyhow::Result<EnvFilter> {
    let mut all = vec!["error"];
    for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        check(directive)?;
        all.push(directive);
    }
    ensure!(all.len() > 1, "it is empty: {}", possible());
    // The last one for a target counts.
    EnvFilter::builder().parse(all.join(",")).with_context(possible)
}

/// Refuses what `tracing` would silently take for the name of a module that nothing is logged from. (Filters by span are
/// refused too: there are no spans.)
fn check(directive: &str) -> anyhow::Result<()> {
    let (target, level) = match directive.split_once('=') {
        Some((target, level)) => (Some(target.trim()), Some(level.trim())),
        None if directive.contains("::") || (targets::is_known(directive) && !is_level(directive)) => {
            (Some(directive), None)
        }
        // One word: it was meant as a level.
        None => (None, Some(directive)),
    };
    if let Some(level) = level.filter(|level| !is_level(level)) {
        let known_as = |(_, others): &&(&str, &[&str])| others.contains(&level.to_ascii_lowercase().as_str());
        let meant = LEVELS.iter().find(known_as).map(|(level, _)| format!(" (did you mean {level:?}?)"));
        bail!("{level:?} is not a level{}: {}", meant.unwrap_or_default(), possible());
    }
    match target {
        Some(target) if !targets::is_known(target) => Err(anyhow!(
            "no log line comes from a module {target:?}: {}. Modules that log: {}",
            possible(),
            targets::top_level()
        )),
        _ => Ok(()),
    }
}

fn possible() -> String {
    let levels = LEVELS.map(|(level, _)| level).join(", ");
    format!("write a level ({levels}), or levels of modules, as eventd::dispatch=debug,info")
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
    tracing::error!(thread, place, "panicked, which is a defect of eventd: {message}");
    // Captured if RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(|line| tracing::error!(thread, "{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_a_level_nor_a_module_is_refused_in_words() {
        for (directives, says) in [
            ("inof", "\"inof\" is not a level: write a level (off, error, warn, info, debug, trace)"),
            ("warning", "\"warning\" is not a level (did you mean \"warn\"?)"),
            ("WARNING", "did you mean \"warn\"?"),
            ("info,warnings", "did you mean \"warn\"?"),
            ("verbose", "did you mean \"debug\"?"),
            ("eventd=inof", "\"inof\" is not a level"),
            ("eventd=", "\"\" is not a level"),
            ("eventd::dispatch=high,info", "\"high\" is not a level"),
            ("=debug", "no log line comes from a module \"\": write a level"),
            ("a=b=c", "\"b=c\" is not a level"),
            ("eventd::=debug", "a module \"eventd::\""),
            ("eventd:dispatch=debug", "a module \"eventd:dispatch\""),
            ("evntd=debug", "a module \"evntd\""),
            ("eventd::dispach=debug", "Modules that log: eventd, eventd::descriptors, eventd::dispatch, "),
            ("info,eventd::dispach", "a module \"eventd::dispach\""),
            ("eventd::dispatch::wroker=debug,info", "a module \"eventd::dispatch::wroker\""),
            ("eventd::core=debug", "a module \"eventd::core\""),
            ("rustls=debug", "a module \"rustls\""),
            ("hyper::client=debug", "a module \"hyper::client\""),
            ("eventd:dispatch", "\"eventd:dispatch\" is not a level"),
            ("event", "\"event\" is not a level"),
            ("5x", "\"5x\" is not a level"),
            ("inof[span]", "\"inof[span]\" is not a level"),
            ("eventd[span]=debug", "a module \"eventd[span]\""),
            ("info;debug", "is not a level"),
            ("", "it is empty"),
            (" , ", "it is empty"),
        ] {
            let error = format!("{:#}", filter(directives).expect_err(directives));
            assert!(error.contains(says), "{directives:?}: {error}");
        }
    }

    #[test]
    fn levels_and_modules_are_taken_and_errors_of_the_others_are_told_all_the_same() {
        let shown = |directives: &str| filter(directives).expect(directives).to_string();
        for directives in ["info", "INFO", "off", "eventd", "eventd::dispatch=debug,info", "hyper=debug", " warn , "] {
            shown(directives);
        }
        for directives in ["eventd::group::kafka=trace", "hyper_util", "hyper_util::client=debug"] {
            shown(directives);
        }
        assert_eq!(shown("eventd::dispatch=debug"), "eventd::dispatch=debug,error");
        assert_eq!(shown("eventd::dispatch=debug,info"), "eventd::dispatch=debug,info");
        assert_eq!(shown("off"), "off", "as it was asked for");
    }
}
