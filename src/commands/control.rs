//! `eventd control`: commands the processes that deliver to a destination.

use super::join;
use super::open::{LogAccess, open};
use super::{run_on, unless_stopped};
use crate::config::ControlConfig;
use crate::control::{self, CommandContext};
use crate::core::outcome::Ended;
use crate::replay::StandardStreams;
use crate::signals::Signals;
use std::sync::Arc;

/// Gives one command, and waits until it is applied or the first signal comes.
///
/// # Errors
/// The log cannot be opened, or the command was refused.
pub async fn control(config: ControlConfig, signals: &Signals) -> anyhow::Result<Ended> {
    let ControlConfig { log, spec, control } = config;
    let Some(opened) = unless_stopped(signals, open(&log, LogAccess::Write)).await? else {
        return Ok(Ended::WorkLeft);
    };
    let engine = Arc::clone(&opened.engine);
    let work = async {
        let destination = join::with_name_in_use(&opened, &spec).await?.name;
        let streams = Arc::new(StandardStreams);
        let context =
            CommandContext { engine: opened.engine, log: opened.log, groups: opened.groups, destination, streams };
        control::run(context, control, signals.stop()).await
    };
    run_on(engine, work).await
}
