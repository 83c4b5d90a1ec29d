//! Flags of the HTTP endpoint, for `up` and `ingest`.

use super::{defaults, values};
use crate::core::partition::Partitioner;
use clap::Args;
use std::time::Duration;

/// Where ingest listens, and how much it accepts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ingest")]
pub struct EndpointFlags {
    /// Address to listen on
    ///
    /// If the host is a name, eventd listens on every address that the name resolves to. Requests are not authenticated, so
    /// listen on a loopback address or in a private network.
    #[arg(long, value_name = "HOST:PORT", env = "EVENTD_LISTEN", default_value = defaults::LISTEN, value_parser = values::host_and_port)]
    pub listen: String,

    /// Largest body of a request, for example 4MiB; a larger one gets 413
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_BODY", default_value = defaults::MAX_BODY, value_parser = values::size)]
    pub max_body: usize,

    /// Largest event: user, payload and headers; a larger one gets 413
    ///
    /// The default fits into a message of a Kafka broker with default settings.
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_EVENT", default_value = defaults::MAX_EVENT, value_parser = values::size)]
    pub max_event: usize,

    /// Most events in one request; more get 413
    #[arg(long, value_name = "N", env = "EVENTD_MAX_BATCH", default_value = defaults::MAX_BATCH, value_parser = values::count)]
    pub max_batch: usize,

    /// Most bytes that are accepted but not yet written to the log; beyond it requests get 503
    ///
    /// This bounds memory while the log is slow. Bodies that are still arriving may use the same amount again.
    #[arg(long, value_name = "SIZE", env = "EVENTD_MAX_PENDING", default_value = defaults::MAX_PENDING, value_parser = values::size)]
    pub max_pending: usize,

    /// Most connections at the same time [default: 10000, or fewer if the limit of file descriptors is low]
    ///
    /// If all are in use, a new connection replaces the one that has been idle longest. If none is idle, new connections
    /// wait.
    ///
    /// The log, the partitions and the destinations get their file descriptors first. `ulimit -n` shows the limit.
    #[arg(long, value_name = "N", env = "EVENTD_MAX_CONNECTIONS", value_parser = values::count)]
    pub max_connections: Option<usize>,

    /// How long a client may take to send the head of a request, for example 10s
    #[arg(long, value_name = "DURATION", env = "EVENTD_HEADER_TIMEOUT", default_value = defaults::HEADER_TIMEOUT, value_parser = values::above_zero)]
    pub header_timeout: Duration,

    /// How long a client may take to send the body of a request, for example 30s; then it gets 408
    #[arg(long, value_name = "DURATION", env = "EVENTD_BODY_TIMEOUT", default_value = defaults::BODY_TIMEOUT, value_parser = values::above_zero)]
    pub body_timeout: Duration,

    /// Another host name that requests may be addressed to, in addition to localhost. Can be repeated
    ///
    /// On a loopback address eventd refuses requests whose Host header names another host. This keeps web pages from
    /// sending events to it (DNS rebinding). Give this flag if a proxy on this machine passes the Host header on.
    ///
    /// EVENTD_ALLOW_HOST has one host on each line.
    #[arg(long = "allow-host", value_name = "HOST", env = "EVENTD_ALLOW_HOST", value_delimiter = '\n', value_parser = values::host_name)]
    pub allowed_hosts: Vec<String>,

    /// Hash function that selects the partition of a user: murmur2 or fnv1a
    ///
    /// All producers of a topic have to use the same one. Otherwise events of one user are in several partitions, and their
    /// order is lost. murmur2 is what Kafka's Java client uses.
    #[arg(long, value_name = "NAME", env = "EVENTD_PARTITIONER", default_value = defaults::PARTITIONER)]
    pub partitioner: Partitioner,
}
