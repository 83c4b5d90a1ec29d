//! Divides the file descriptors of a command between clients, partitions and destinations.

use super::Misconfigured;
use crate::config::{DeliveryConfig, EndpointConfig, EngineConfig, LogConfig};
use crate::descriptors::{self, DescriptorNeeds};
use crate::destination;
use crate::destination::spec::Target;

/// Checks that the limit of file descriptors allows a start. Called before anything is opened.
///
/// # Errors
/// The limit is too low. The error says how to raise it.
pub(super) fn check(
    endpoint: Option<&EndpointConfig>,
    log: &LogConfig,
    deliveries: &[DeliveryConfig],
) -> anyhow::Result<()> {
    Ok(descriptors::check(&needs(endpoint, log, deliveries, 0)).map_err(Misconfigured)?)
}

/// Lowers the connections of clients and the concurrency of http destinations, so that all of them together keep to the
/// limit of file descriptors.
///
/// # Errors
/// The limit is too low. The error says how to raise it.
pub(super) fn divide(
    endpoint: Option<&mut EndpointConfig>,
    log: &LogConfig,
    deliveries: &mut [DeliveryConfig],
    partitions: u32,
) -> anyhow::Result<()> {
    let needs = needs(endpoint.as_deref(), log, deliveries, partitions as usize);
    let shares = descriptors::divide(&needs).map_err(Misconfigured)?;
    if let Some(endpoint) = endpoint {
        endpoint.ingest.max_connections = shares.clients;
    }
    for delivery in deliveries.iter_mut().filter(|delivery| is_http(delivery)) {
        for concurrency in [&mut delivery.dispatch.concurrency, &mut delivery.settings.concurrency] {
            *concurrency = shares.concurrency_max.min(*concurrency);
        }
    }
    Ok(())
}

fn needs(
    endpoint: Option<&EndpointConfig>,
    log: &LogConfig,
    deliveries: &[DeliveryConfig],
    partitions: usize,
) -> DescriptorNeeds {
    let http = deliveries.iter().filter(|delivery| is_http(delivery));
    let with_partition_files =
        deliveries.iter().filter(|delivery| destination::has_partition_files(&delivery.spec.target));
    DescriptorNeeds {
        clients: endpoint.map_or(0, |endpoint| endpoint.ingest.max_connections),
        clients_given: endpoint.is_some_and(|endpoint| endpoint.max_connections_given),
        is_kafka: matches!(log.engine, EngineConfig::Kafka(_)),
        partitions,
        destinations: deliveries.len(),
        destinations_with_partition_files: with_partition_files.count(),
        http_concurrency: http.map(|delivery| delivery.dispatch.concurrency).collect(),
        http_connections: destination::http_connections_max,
    }
}

fn is_http(delivery: &DeliveryConfig) -> bool {
    matches!(delivery.spec.target, Target::Http(_))
}
