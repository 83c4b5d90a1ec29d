//! The program: reads the command line, starts telemetry and the runtime, runs the command, and returns the exit code.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

use anyhow::{Context, anyhow};
use eventd::cli::{Cli, Command, without_secrets};
use eventd::config::{ControlConfig, DispatchConfig, IngestConfig, ReplayConfig, UpConfig};
use eventd::core::outcome::Ended;
use eventd::core::text::escaped;
use eventd::signals::Signals;
use eventd::telemetry::LogFormat;
use eventd::{commands, descriptors, environment, stderr, telemetry, vital};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

/// How long the end of the process waits for threads that cannot be interrupted, such as one that resolves a name.
const RUNTIME_SHUTDOWN_MAX: Duration = Duration::from_millis(500);

const EXIT_DONE: u8 = 0;
const EXIT_FAILED: u8 = 1;
/// A wrong command line or configuration. This is the code that clap uses, too.
const EXIT_USAGE: u8 = 2;
const EXIT_WORK_LEFT: u8 = 3;

/// Threads that a start needs in addition to the runtime's workers: the writer of log lines, those of the embedded log (a
/// writer, checkpoints, a watcher, four readers), and some for blocking work such as opening files and resolving names.
const OTHER_THREADS: usize = 16;

/// How long the runtime keeps an idle thread for blocking work: for ever. The runtime panics if it has no such thread and
/// the system refuses a new one, so the threads that the start got must not go away. They are few, because blocking work
/// is bounded.
const BLOCKING_THREADS_KEPT: Duration = Duration::from_secs(u32::MAX as u64);

/// A command with its checked configuration.
enum Task {
    Up(UpConfig),
    Ingest(IngestConfig),
    Dispatch(Box<DispatchConfig>),
    Replay(ReplayConfig),
    Control(ControlConfig),
}

fn main() -> ExitCode {
    let code = catch_unwind(eventd).unwrap_or(EXIT_FAILED);
    // The last lines say why the process ended, so they must not be lost in the queue.
    stderr::flush(stderr::FLUSH_MAX);
    ExitCode::from(code)
}

/// Runs the program and returns the exit code.
fn eventd() -> u8 {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return print_for_clap(&error),
    };
    let (task, format) = match configure(&cli.command) {
        Ok(configured) => configured,
        Err(error) => return print_usage_error(&error),
    };
    // A command of an operator prints what it does. Lines about the state of the log are for processes that stay.
    let default_level = if matches!(task, Task::Control(_)) { "warn" } else { "info" };
    if let Err(error) = telemetry::start(format, default_level) {
        return print_usage_error(&error);
    }
    descriptors::raise();
    // These print a summary of their own. That of a replay also says how to continue it.
    let has_summary = matches!(task, Task::Replay(_) | Task::Control(_));
    match run(task) {
        Ok(Ended::Drained) => {
            if !has_summary {
                tracing::info!("stopped: all work in progress is finished");
            }
            EXIT_DONE
        }
        Ok(Ended::WorkLeft) => {
            if !has_summary {
                tracing::warn!("stopped with work left: undelivered events are delivered after the next start");
            }
            EXIT_WORK_LEFT
        }
        Err(error) => {
            tracing::error!("{error:#}");
            if commands::is_configuration(&error) { EXIT_USAGE } else { EXIT_FAILED }
        }
    }
}

fn configure(command: &Command) -> anyhow::Result<(Task, LogFormat)> {
    Ok(match command {
        Command::Up(flags) => (Task::Up(UpConfig::new(flags)?), flags.process.log_format),
        Command::Ingest(flags) => (Task::Ingest(IngestConfig::new(flags)?), flags.process.log_format),
        Command::Dispatch(flags) => (Task::Dispatch(Box::new(DispatchConfig::new(flags)?)), flags.process.log_format),
        Command::Replay(flags) => (Task::Replay(ReplayConfig::new(flags)?), flags.process.log_format),
        Command::Control(flags) => (Task::Control(ControlConfig::new(flags)?), flags.process.log_format),
    })
}

/// Prints clap's text: the help, the version, or an error. An error may repeat a secret that was typed, so it is redacted.
/// The help only has our own text, and some of it looks like a secret (`@FILE`).
fn print_for_clap(error: &clap::Error) -> u8 {
    let text = error.to_string();
    let redacted = without_secrets(&text);
    if error.use_stderr() && redacted != text {
        stderr::write(redacted.as_bytes());
        return EXIT_USAGE;
    }
    let printed = error.print();
    match u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE) {
        // The help could not be written.
        EXIT_DONE if printed.is_err() => EXIT_FAILED,
        code => code,
    }
}

/// Prints an error of the configuration in clap's format and not as a log line, because a person at a terminal reads it.
fn print_usage_error(error: &anyhow::Error) -> u8 {
    let error = format!("{error:#}");
    stderr::write(format!("error: {}\n\nFor more information, try '--help'.\n", escaped(&error)).as_bytes());
    EXIT_USAGE
}

fn run(task: Task) -> anyhow::Result<Ended> {
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    vital::check_threads(workers + OTHER_THREADS)?;
    stderr::start().context("cannot write log lines")?;
    environment::warn_about_unknown(Cli::variables());
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers).thread_keep_alive(BLOCKING_THREADS_KEPT).enable_all().build()?;
    let process = async {
        let signals = Signals::of_process()?;
        let command = async {
            match task {
                Task::Up(config) => commands::up(config, &signals).await,
                Task::Ingest(config) => commands::ingest(config, &signals).await,
                Task::Dispatch(config) => commands::dispatch(*config, &signals).await,
                Task::Replay(config) => commands::replay(config, &signals).await,
                Task::Control(config) => commands::control(config, &signals).await,
            }
        };
        tokio::select! {
            ended = command => ended,
            () = signals.stop_at_once() => Ok(Ended::WorkLeft),
            () = signals.lost() => Err(anyhow!("the task that listens for signals panicked")),
        }
    };
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(process)));
    // Resolving a name cannot be interrupted, and nothing that is still running has to be finished.
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_MAX);
    ended.unwrap_or_else(|_| Err(anyhow!("the process ended because of a panic: its message is above")))
}
