//! Parse, telemetry, runtime, the mode, the exit code.

use clap::Parser;
use eventd::cli::{Cli, Command, without_secrets};
use eventd::config::{self, LogFormat};
use eventd::core::text::escaped;
use eventd::modes::{self, Ended};
use eventd::signals::Signals;
use eventd::{limits, telemetry, up};
use std::io::Write as _;
use std::process::ExitCode;

/// Usage or configuration: what clap itself ends with.
const EXIT_USAGE: u8 = 2;
const EXIT_FAILED: u8 = 1;
const EXIT_WORK_LEFT: u8 = 3;

/// A mode with its checked configuration.
enum Mode {
    Up(config::Up),
    Ingest(config::Ingest),
    Dispatch(Box<config::Dispatch>),
    Replay(config::Replay),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
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
    // What is left of a replay, nobody begins by itself: it says how.
    let goes_on = !matches!(mode, Mode::Replay(_));
    match run(mode) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::WorkLeft) => {
            if goes_on {
                tracing::warn!("stopped with work left: events that are in the log are delivered after the next start");
            }
            ExitCode::from(EXIT_WORK_LEFT)
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(if modes::is_configuration(&error) { EXIT_USAGE } else { EXIT_FAILED })
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
fn by_clap(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    let shown = without_secrets(&text);
    let printed = if shown == text { error.print() } else { std::io::stderr().write_all(shown.as_bytes()) };
    let code = u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE);
    ExitCode::from(if printed.is_ok() { code } else { EXIT_FAILED })
}

/// Written as clap writes its own: a person typed it.
fn usage(error: &anyhow::Error) -> ExitCode {
    let error = format!("{error:#}");
    eprintln!("error: {}\n\nFor more information, try '--help'.", escaped(&error));
    ExitCode::from(EXIT_USAGE)
}

fn run(mode: Mode) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
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
        }
    });
    // A look-up of a name cannot be interrupted, and nothing of what is left has to be waited for.
    runtime.shutdown_timeout(limits::RUNTIME_SHUTDOWN_MAX);
    ended
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
