//! Log lines on standard error: text for people, JSON for machines. `EVENTD_LOG` says which ones.
//!
//! One event is one line: what a terminal acts on in the text of others is escaped ([`escaping`]).

mod escaping;

use crate::config::LogFormat;
use anyhow::Context;
use std::io::{IsTerminal, stderr};
use tracing_subscriber::EnvFilter;

/// The environment variable that filters log lines, in the syntax of `tracing`: `info`, `eventd::dispatch=debug`.
const FILTER: &str = "EVENTD_LOG";

/// Sends the process's log lines to standard error. Once a process; an error is a filter that cannot be read.
pub fn start(format: LogFormat) -> anyhow::Result<()> {
    let directives = match std::env::var(FILTER) {
        Ok(directives) if !directives.trim().is_empty() => directives,
        Ok(_) | Err(std::env::VarError::NotPresent) => "info".to_owned(),
        Err(error) => return Err(error).context(FILTER),
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .with_context(|| format!("{FILTER}={directives}: write info, debug or eventd::dispatch=debug"))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => lines.fmt_fields(escaping::fields()).with_ansi(stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).map_event_format(escaping::Json).init(),
    }
    Ok(())
}
