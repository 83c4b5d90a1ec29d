//! `eventd ingest`: takes events in, and delivers none.

use super::open::{LogAccess, OpenLog, open};
use super::{descriptors, memory, run_on, unless_stopped};
use crate::config::{DeliveryConfig, EndpointConfig, IngestConfig, LogConfig};
use crate::core::outcome::Ended;
use crate::ingest::{self, listen};
use crate::signals::Signals;
use tokio::net::TcpListener;

/// Takes events in until the first signal. Requests that were accepted until then are answered.
///
/// # Errors
/// The start failed, the log was lost, or accepting connections failed.
pub async fn ingest(mut config: IngestConfig, signals: &Signals) -> anyhow::Result<Ended> {
    descriptors::check(Some(&config.endpoint), &config.log, &[])?;
    let start = start(&config.log, &mut config.endpoint, &mut []);
    let Some((listeners, OpenLog { engine, log, .. })) = unless_stopped(signals, start).await? else {
        return Ok(Ended::Drained);
    };
    run_on(engine, ingest::run(listeners, log, config.endpoint.ingest, signals.stop())).await
}

/// Starts a command that takes events in. The sockets come first, because they are the most frequent reason for a failed
/// start. Then lowers bounds that need more file descriptors than there are, and logs what the process uses.
pub(super) async fn start(
    config: &LogConfig,
    endpoint: &mut EndpointConfig,
    deliveries: &mut [DeliveryConfig],
) -> anyhow::Result<(Vec<TcpListener>, OpenLog)> {
    let listeners = listen::bind(&endpoint.listen).await?;
    let opened = open(config, LogAccess::Write).await?;
    match announce(config, endpoint, deliveries, &opened, &listeners).await {
        Ok(()) => Ok((listeners, opened)),
        Err(error) => {
            opened.engine.close().await;
            Err(error)
        }
    }
}

async fn announce(
    config: &LogConfig,
    endpoint: &mut EndpointConfig,
    deliveries: &mut [DeliveryConfig],
    opened: &OpenLog,
    listeners: &[TcpListener],
) -> anyhow::Result<()> {
    let partitions = opened.log.partitions().await?;
    descriptors::divide(Some(endpoint), config, deliveries, partitions)?;
    memory::announce(config, partitions, Some(endpoint), deliveries);
    listen::announce(&endpoint.listen, listeners)?;
    Ok(())
}
