//! Parse, telemetry, runtime, the mode, the exit code.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

use anyhow::{Context, anyhow};
use eventd::cli::{Cli, Command, without_secrets};
use eventd::config::{self, LogFormat};
use eventd::core::outcome::Ended;
use eventd::core::text::escaped;
use eventd::modes;
use eventd::signals::Signals;
use eventd::{descriptors, limits, stderr, telemetry, up, vital};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

/// Usage or configuration: what clap itself ends with.
const EXIT_USAGE: u8 = 2;
const EXIT_FAILED: u8 = 1;
const EXIT_WORK_LEFT: u8 = 3;

/// Threads that a start needs besides the runtime's workers, with some to spare: the one that writes log lines, those of
/// the embedded log (a writer, checkpoints, a watcher, four readers), and for what blocks (opening files, looking up
/// names).
const OWN_THREADS: usize = 16;

/// How long a thread for what blocks is kept although it has nothing to do: for ever. The runtime panics if it has none
/// and the system gives it none, so the one that the start needed has to stay. There are few, since what blocks is
/// bounded.
const BLOCKING_THREADS_KEPT: Duration = Duration::from_secs(u32::MAX as u64);

/// A mode with its checked configuration.
enum Mode {
    Up(config::Up),
    Ingest(config::Ingest),
    Dispatch(Box<config::Dispatch>),
    Replay(config::Replay),
}

fn main() -> ExitCode {
    let code = catch_unwind(eventd).unwrap_or(EXIT_FAILED);
    // What was said last is what somebody will look for.
    stderr::flush(stderr::FLUSH_MAX);
    ExitCode::from(code)
}

/// The exit code.
fn eventd() -> u8 {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return by_clap(&error),
    };
    let (mode, format) = match configured(&cli) {
        Ok(configured) => configured,
        Err(error) => return usage(&error),
    };
    if let Err(error) = telemetry::start(format) {
        return usage(&error);
    }
    descriptors::raise();
    // A replay says itself how it ended. What is left of it, nobody begins by itself: it says how.
    let goes_on = !matches!(mode, Mode::Replay(_));
    match run(mode) {
        Ok(Ended::Drained) => {
            if goes_on {
                tracing::info!("stopped: everything that was under way has ended");
            }
            0
        }
        Ok(Ended::WorkLeft) => {
            if goes_on {
                tracing::warn!("stopped with work left: events that are in the log are delivered after the next start");
            }
            EXIT_WORK_LEFT
        }
        Err(error) => {
            tracing::error!("{error:#}");
            if modes::is_configuration(&error) { EXIT_USAGE } else { EXIT_FAILED }
        }
    }
}

fn configured(cli: &Cli) -> anyhow::Result<(Mode, LogFormat)> {
    Ok(match &cli.command {
        Command::Up(flags) => (Mode::Up(config::Up::new(flags)?), flags.shared.log_format),
        Command::Ingest(flags) => (Mode::Ingest(config::Ingest::new(flags)?), flags.shared.log_format),
        Command::Dispatch(flags) => (Mode::Dispatch(Box::new(config::Dispatch::new(flags)?)), flags.shared.log_format),
        Command::Replay(flags) => (Mode::Replay(config::Replay::new(flags)?), flags.shared.log_format),
    })
}

/// Prints what clap has to say: help, the version, or an error, which may repeat a secret that was typed.
fn by_clap(error: &clap::Error) -> u8 {
    let text = error.to_string();
    let shown = without_secrets(&text);
    if shown != text {
        stderr::write(shown.as_bytes());
        return EXIT_USAGE;
    }
    let printed = error.print();
    match u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE) {
        // Help that nobody could read.
        0 if printed.is_err() => EXIT_FAILED,
        code => code,
    }
}

/// Written as clap writes its own: a person typed it.
fn usage(error: &anyhow::Error) -> u8 {
    let error = format!("{error:#}");
    stderr::write(format!("error: {}\n\nFor more information, try '--help'.\n", escaped(&error)).as_bytes());
    EXIT_USAGE
}

fn run(mode: Mode) -> anyhow::Result<Ended> {
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    vital::check_threads(workers + OWN_THREADS)?;
    stderr::start().context("cannot write log lines")?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers).thread_keep_alive(BLOCKING_THREADS_KEPT).enable_all().build()?;
    let process = async {
        let signals = Signals::of_process()?;
        let mode = async {
            match mode {
                Mode::Up(config) => up::up(config, &signals).await,
                Mode::Ingest(config) => modes::ingest(config, &signals).await,
                Mode::Dispatch(config) => modes::dispatch(*config, &signals).await,
                Mode::Replay(config) => modes::replay(config, &signals).await,
            }
        };
        tokio::select! {
            ended = mode => ended,
            () = signals.stop_at_once() => Ok(Ended::WorkLeft),
            () = signals.lost() => Err(anyhow!("the task that listens for signals panicked")),
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(process)));
    // A look-up of a name cannot be interrupted, and nothing of what is left has to be waited for.
    runtime.shutdown_timeout(limits::RUNTIME_SHUTDOWN_MAX);
    ended.unwrap_or_else(|_| Err(anyhow!("ended by a panic: its message is above")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn verify_cli() {
        Cli::command().debug_assert();
    }
}
