//! `eventd replay`: shows what would be delivered again, and delivers it with `--execute`.

use super::open::{LogAccess, OpenLog, open};
use super::{descriptors, join, run_on, unless_stopped};
use crate::clock::WallClock;
use crate::config::{DeliveryConfig, LogConfig, ReplayAction, ReplayConfig};
use crate::core::outcome::Ended;
use crate::destination::spec::Spec;
use crate::replay::ids::SystemIds;
use crate::replay::{self, Config, ReplayContext, StandardStreams};
use crate::signals::Signals;
use std::sync::Arc;

/// Lists past replays, or plans and executes one until the first signal.
///
/// # Errors
/// The start failed, the log was lost, or the replay was refused or failed.
pub async fn replay(config: ReplayConfig, signals: &Signals) -> anyhow::Result<Ended> {
    let ReplayConfig { log, action } = config;
    let access = match &action {
        ReplayAction::List { .. } => LogAccess::Read,
        ReplayAction::Run { delivery, .. } => {
            descriptors::check(None, &log, std::slice::from_ref(&**delivery))?;
            LogAccess::Write
        }
    };
    let Some(opened) = unless_stopped(signals, open(&log, access)).await? else {
        return Ok(Ended::Drained);
    };
    let engine = Arc::clone(&opened.engine);
    let work = async {
        match action {
            ReplayAction::List { destination, json } => list(&opened, destination.as_deref(), json).await,
            ReplayAction::Run { delivery, replay } => run(opened, &log, *delivery, *replay, signals).await,
        }
    };
    run_on(engine, work).await
}

async fn list(opened: &OpenLog, destination: Option<&Spec>, json: bool) -> anyhow::Result<Ended> {
    let name = match destination {
        Some(spec) => Some(join::with_name_in_use(opened, spec).await?.name),
        None => None,
    };
    replay::list(&*opened.engine, opened.log.topic(), name.as_deref(), json).await?;
    Ok(Ended::Drained)
}

async fn run(
    opened: OpenLog,
    log: &LogConfig,
    mut delivery: DeliveryConfig,
    replay: Config,
    signals: &Signals,
) -> anyhow::Result<Ended> {
    let partitions = opened.log.partitions().await?;
    descriptors::divide(None, log, std::slice::from_mut(&mut delivery), partitions)?;
    let DeliveryConfig { spec, settings, dispatch, .. } = delivery;
    let spec = join::with_name_in_use(&opened, &spec).await?;
    let OpenLog { engine, groups, log } = opened;
    let (opener, streams, ids) = (Arc::new(settings), Arc::new(StandardStreams), Arc::new(SystemIds));
    let wall_clock = WallClock::system();
    let context = ReplayContext { engine, log, groups, spec, opener, dispatch, streams, wall_clock, ids };
    replay::run(context, replay, signals.stop()).await
}
