//! Delivers to a destination whose group was joined, for `up` and `dispatch`.

use super::join::JoinedDestination;
use super::open::OpenLog;
use crate::clock::WallClock;
use crate::config::DeliveryConfig;
use crate::core::outcome::Ended;
use crate::destination::spec::Target;
use crate::destination::{self, Destination, LostDestination};
use crate::dispatch::{self, Parts};
use crate::replay;
use crate::signals::Signals;
use std::convert::Infallible;

/// Opens the destination and delivers to it until `stop`. Dropping the future stops at once.
///
/// # Errors
/// The destination cannot be opened or is lost, or dispatch ended with an error.
pub(super) async fn deliver(
    opened: OpenLog,
    joined: JoinedDestination,
    delivery: DeliveryConfig,
    signals: Signals,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let (spec, settings) = (delivery.spec.clone(), delivery.settings.clone());
    // Opening may read files, which can block for a long time on a slow disk.
    let destination = tokio::task::spawn_blocking(move || destination::open(&spec, &settings)).await??;
    let OpenLog { engine, log, .. } = opened;
    let JoinedDestination { group, first_start } = joined;
    let name = group.name().to_owned();
    if matches!(delivery.spec.target, Target::Http(_)) {
        replay::signing::record(&*engine, &*log, &name, delivery.settings.secret.is_some()).await;
    }
    tracing::info!(destination = %name, to = %delivery.spec, "delivering");
    if let Some(drill) = delivery.settings.drill {
        tracing::warn!(
            destination = name,
            one_in = drill.one_in,
            seed = drill.seed,
            "fault drill: some events fail on purpose. To repeat it, use --reliability-seed with this seed"
        );
    }
    let parts =
        Parts { engine, log: log.clone(), group, destination: destination.clone(), wall_clock: WallClock::system() };
    tokio::select! {
        biased;
        never = first_start.report(&*log, delivery.dispatch.start, &name, &delivery.spec) => match never {},
        reason = destination.lost() => Err(LostDestination(reason).into()),
        ended = dispatch::run(parts, delivery.dispatch, stop) => ended,
        never = reopen(&*destination, signals) => match never {},
    }
}

/// Reopens the destination's files after each SIGHUP.
async fn reopen(destination: &dyn Destination, signals: Signals) -> Infallible {
    let mut reopens = signals.reopens();
    loop {
        reopens.next().await;
        destination.reopen();
    }
}
