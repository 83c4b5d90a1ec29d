//! Log lines on standard error: text for people, JSON for machines. `EVENTD_LOG` says which ones.
//!
//! One event is one line: what a terminal acts on in the text of others is escaped ([`escaping`]).

mod escaping;

use crate::config::LogFormat;
use crate::stderr;
use anyhow::Context;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use tracing_subscriber::EnvFilter;

/// The environment variable that filters log lines, in the syntax of `tracing`: `info`, `eventd::dispatch=debug`.
const FILTER: &str = "EVENTD_LOG";

/// Sends the process's log lines to standard error, and the message of a panic too. Once a process.
///
/// # Errors
/// `EVENTD_LOG` cannot be read.
pub fn start(format: LogFormat) -> anyhow::Result<()> {
    let directives = match std::env::var(FILTER) {
        Ok(directives) if !directives.trim().is_empty() => directives,
        Ok(_) | Err(std::env::VarError::NotPresent) => "info".to_owned(),
        Err(error) => return Err(error).context(FILTER),
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .with_context(|| format!("{FILTER}={directives}: write info, debug or eventd::dispatch=debug"))?;
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
