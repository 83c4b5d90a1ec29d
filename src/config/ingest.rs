//! Where ingest listens, and how much it accepts.

use crate::cli::{EndpointFlags, defaults};
use crate::{ingest, limits};
use anyhow::ensure;
use bytesize::ByteSize;
use std::time::Duration;

/// Where to listen, and how to take events in.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// The address as typed: `host:port`.
    pub listen: String,
    /// Whether `--max-connections` was given. If it was and has to be lowered, a warning says so.
    pub max_connections_given: bool,
    pub ingest: ingest::Config,
}

impl EndpointConfig {
    pub(super) fn new(flags: &EndpointFlags, drain: Duration) -> anyhow::Result<Self> {
        let size = |bytes: usize| ByteSize(bytes as u64);
        ensure!(
            flags.max_body <= flags.max_pending,
            "--max-body is {}, but --max-pending only allows {}, so such a body could never be accepted: lower --max-body \
             or raise --max-pending",
            size(flags.max_body),
            size(flags.max_pending)
        );
        let max_event = limits::RECORD_BYTES_MAX - limits::DEAD_LETTER_EXTRA_BYTES_MAX;
        ensure!(
            flags.max_event <= max_event,
            "--max-event is {}, but the largest possible value is {max_event} bytes: the dead letter of an event has to \
             fit into the log too",
            size(flags.max_event)
        );
        let ingest = ingest::Config {
            max_body_bytes: flags.max_body,
            max_event_bytes: flags.max_event,
            max_batch_events: flags.max_batch,
            max_pending_bytes: flags.max_pending,
            max_connections: flags.max_connections.unwrap_or(defaults::MAX_CONNECTIONS),
            header_timeout: flags.header_timeout,
            body_timeout: flags.body_timeout,
            partitioner: flags.partitioner,
            allowed_hosts: allowed_hosts(&flags.listen, &flags.allowed_hosts),
            drain,
        };
        let max_connections_given = flags.max_connections.is_some();
        Ok(Self { listen: flags.listen.clone(), max_connections_given, ingest })
    }
}

/// The hosts of `--allow-host`, and the host of `--listen`. A person who typed a host name for `--listen` means this
/// machine, even if the name resolves to a loopback address, as the machine's own name does on Debian.
fn allowed_hosts(listen: &str, given: &[String]) -> Vec<String> {
    let listen = listen.rsplit_once(':').map(|(host, _)| host.to_owned());
    given.iter().filter(|host| !host.is_empty()).cloned().chain(listen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_may_be_addressed_to_the_host_of_listen_and_to_the_allowed_hosts() {
        let given = ["events.example.com".to_owned(), String::new()];
        assert_eq!(allowed_hosts("my-machine:8090", &given), ["events.example.com", "my-machine"]);
        assert_eq!(allowed_hosts("[::1]:8090", &[]), ["[::1]"]);
    }
}
