//! `eventd dispatch`: delivers to one destination.

use super::deliver::deliver;
use super::join::{JoinedDestination, join};
use super::open::{LogAccess, OpenLog, open};
use super::{descriptors, memory, run_on, unless_stopped};
use crate::config::{DeliveryConfig, DispatchConfig};
use crate::core::outcome::{Ended, FailureCode};
use crate::group::{JoinError, WhenHeld};
use crate::limits::RESTART_AFTER;
use crate::log_limiter::LogLimiter;
use crate::signals::Signals;
use anyhow::anyhow;
use std::sync::Arc;

/// Delivers to one destination until the first signal. Attempts that are in progress then are finished.
///
/// # Errors
/// The start failed, the log was lost, or a partition is stopped when the first signal comes.
pub async fn dispatch(config: DispatchConfig, signals: &Signals) -> anyhow::Result<Ended> {
    descriptors::check(None, &config.log, std::slice::from_ref(&config.delivery))?;
    let Some(opened) = unless_stopped(signals, open(&config.log, LogAccess::Write)).await? else {
        return Ok(Ended::Drained);
    };
    let engine = Arc::clone(&opened.engine);
    run_on(engine, dispatch_from(opened, config, signals)).await
}

async fn dispatch_from(opened: OpenLog, mut config: DispatchConfig, signals: &Signals) -> anyhow::Result<Ended> {
    let partitions = opened.log.partitions().await?;
    descriptors::divide(None, &config.log, std::slice::from_mut(&mut config.delivery), partitions)?;
    memory::announce(&config.log, partitions, None, std::slice::from_ref(&config.delivery));
    let start = async {
        join_when_possible(&opened, &config.delivery, config.standby).await.map_err(|error| match error {
            // Only this command has the flag. `up` tries again by itself.
            JoinError::Held { .. } => anyhow!("{error}, or use --standby"),
            error => error.into(),
        })
    };
    let Some(joined) = unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    deliver(opened, joined, config.delivery, signals.clone(), signals.stop()).await
}

/// Joins the destination's group. Tries again while the log is unavailable. With `standby`, also waits while another
/// process holds the destination.
async fn join_when_possible(
    opened: &OpenLog,
    delivery: &DeliveryConfig,
    standby: bool,
) -> Result<JoinedDestination, JoinError> {
    let log_limiter = LogLimiter::default();
    loop {
        match join_or_stand_by(opened, delivery, standby).await {
            Err(JoinError::Unavailable(failure)) if failure.code != FailureCode::LogLost => {
                if let Some(suppressed) = log_limiter.allows("not started") {
                    let (destination, every) = (&delivery.spec.name, humantime::format_duration(RESTART_AFTER));
                    tracing::warn!(%destination, suppressed, "not started: {failure}; trying again every {every}");
                }
                tokio::time::sleep(RESTART_AFTER).await;
            }
            joined => return joined,
        }
    }
}

async fn join_or_stand_by(
    opened: &OpenLog,
    delivery: &DeliveryConfig,
    standby: bool,
) -> Result<JoinedDestination, JoinError> {
    match join(opened, delivery, WhenHeld::Fail).await {
        Err(JoinError::Held { name, holder }) if standby => {
            let held_by = holder.map(|holder| holder.pid);
            tracing::info!(destination = name, held_by, "standing by: another process holds this destination");
            join(opened, delivery, WhenHeld::Standby).await
        }
        joined => joined,
    }
}
