//! The commands of the program, one file each: [`up()`], [`ingest()`], [`dispatch()`],
//! [`replay()`] and [`control()`].
//!
//! Every command has the same shape. It checks that there are enough file descriptors, opens the log, runs until the first
//! signal, finishes its work in progress, and closes the log:
//!
//! ```text
//!  config ──▶ descriptors: check ──▶ open: the log ──▶ descriptors: divide ──▶ work ──▶ close
//!                                     └─────── until the first signal ───────────┘
//! ```
//!
//! This folder is the only place that knows which engines exist: everything else works with the traits of the log and of
//! groups.

mod control;
mod deliver;
mod descriptors;
mod dispatch;
mod first_start;
mod ingest;
mod join;
mod memory;
mod open;
mod replay;
mod supervisors;
mod up;

pub use self::control::control;
pub use self::dispatch::dispatch;
pub use self::ingest::ingest;
pub use self::replay::replay;
pub use self::up::up;

use crate::control::CommandRefused;
use crate::destination::ConfigurationError;
use crate::group::JoinError;
use crate::log::{Engine, OpenError};
use crate::replay::ReplayRefused;
use crate::signals::Signals;
use anyhow::anyhow;
use std::sync::Arc;

/// A mistake in the configuration that was found while a command started. A person has to change a flag or a file, and
/// another start without a change fails again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misconfigured(String);

/// Whether the error is a mistake in the configuration, for which the exit code is 2. Other errors are failures of this
/// run.
pub fn is_configuration(error: &anyhow::Error) -> bool {
    error.is::<Misconfigured>()
        || error.is::<ConfigurationError>()
        || error.downcast_ref().is_some_and(|refused: &ReplayRefused| refused.is_usage())
        || error.downcast_ref().is_some_and(|refused: &CommandRefused| refused.is_usage())
        || matches!(error.downcast_ref(), Some(JoinError::Configuration(_)))
        || matches!(error.downcast_ref(), Some(OpenError::Configuration(_) | OpenError::Missing { .. }))
}

/// Runs the start of a command. `None`: the first signal came before the start was complete. A start can take long: a
/// standby may wait for days, and resolving a name may take minutes.
async fn unless_stopped<T>(
    signals: &Signals,
    start: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        started = start => started.map(Some),
        () = signals.stop() => Ok(None),
    }
}

/// Runs the work of a command until it ends or the log is lost. Then closes the engine, also after an error.
async fn run_on<T>(engine: Arc<dyn Engine>, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let ended = tokio::select! {
        ended = work => ended,
        reason = engine.lost() => Err(log_lost(&reason)),
    };
    engine.close().await;
    ended
}

/// The error with which every command ends if its process can no longer use the log. Only a new start can find out what
/// the log holds.
fn log_lost(reason: &str) -> anyhow::Error {
    anyhow!(
        "the log cannot be used any more: {reason}. Start eventd again: every acknowledged event that the log still \
         holds is delivered"
    )
}
