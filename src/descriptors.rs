//! File descriptors: the limit is raised as far as the system lets us, and then divided, so that clients cannot take the
//! descriptors that deliveries and the log need.
//!
//! ```text
//!  limit ├── log, files, runtime ──┤── connections of each destination ──┤── connections of clients ─────┤
//!         LOG_DESCRIPTORS            DESTINATION_DESCRIPTORS more each      --max-connections, or less
//! ```

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the runtime, the listeners, the standard streams, the database with its readers and its locks, and the
/// one connection that is accepted before it has room.
const LOG_DESCRIPTORS: u64 = 64;

/// Descriptors of a Kafka cluster in addition: a few connections to each broker for each of its users.
const KAFKA_DESCRIPTORS: u64 = 192;

/// Descriptors of a destination in addition to its connections: its file or its look-ups of names, and its group.
const DESTINATION_DESCRIPTORS: u64 = 16;

/// Fewer connections of clients are no service.
const CONNECTIONS_MIN: u64 = 16;

/// Raises the soft limit of this process to the hard one. The soft limit is low by default (often 1,024) for programs
/// that use `select`, which eventd does not.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, limit = current, "cannot raise the limit of file descriptors");
    }
}

/// How many descriptors this process may have open now.
fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What a process with an ingest needs its descriptors for.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// `--max-connections`, and whether it was given.
    pub connections: usize,
    pub is_given: bool,
    pub is_kafka: bool,
    pub destinations: usize,
    /// The most connections of all http destinations at once.
    pub destination_connections: usize,
}

/// How many connections of clients there may be, and a log line that says how the descriptors are divided.
///
/// # Errors
///
/// If the limit leaves fewer than a few connections: says what to raise.
pub fn connections(needs: Needs) -> Result<usize, String> {
    let (limit, reserved) = (limit(), needs.reserved());
    let connections = needs.connections_within(limit)?;
    if needs.is_given && connections < needs.connections {
        tracing::warn!(
            limit,
            reserved,
            asked = needs.connections,
            connections,
            "the limit of file descriptors is too low for --max-connections, which is reduced: raise it (ulimit -n)"
        );
    } else {
        tracing::info!(limit, reserved, connections, "file descriptors: the limit, and what clients may use of it");
    }
    Ok(connections)
}

impl Needs {
    fn reserved(self) -> u64 {
        let kafka = if self.is_kafka { KAFKA_DESCRIPTORS } else { 0 };
        LOG_DESCRIPTORS
            + kafka
            + DESTINATION_DESCRIPTORS * self.destinations as u64
            + self.destination_connections as u64
    }

    fn connections_within(self, limit: u64) -> Result<usize, String> {
        let reserved = self.reserved();
        let left = limit.saturating_sub(reserved);
        if left < CONNECTIONS_MIN.min(self.connections as u64) {
            return Err(format!(
                "the limit of file descriptors is {limit}, and at least {} are needed: {reserved} for the log and the \
                 destinations (--concurrency), and {CONNECTIONS_MIN} for clients. Raise the hard limit (ulimit -Hn, or \
                 LimitNOFILE= of the service), or lower --concurrency",
                reserved + CONNECTIONS_MIN
            ));
        }
        Ok(self.connections.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_the_log_and_the_deliveries_leave() {
        let needs = Needs {
            connections: 10_000,
            is_given: false,
            is_kafka: false,
            destinations: 1,
            destination_connections: 256,
        };
        assert_eq!(needs.connections_within(1_024), Ok(1_024 - 64 - 16 - 256));
        assert_eq!(needs.connections_within(u64::MAX), Ok(10_000));
        assert_eq!(needs.connections_within(64 + 16 + 256 + 16), Ok(16));
        let error = needs.connections_within(64 + 16 + 256 + 15).unwrap_err();
        assert!(error.contains("351") && error.contains("352") && error.contains("ulimit"), "{error}");
        let few = Needs { connections: 2, ..needs };
        assert_eq!(few.connections_within(64 + 16 + 256 + 2), Ok(2), "no more than was asked for is needed");
        let kafka = Needs { is_kafka: true, destinations: 0, destination_connections: 0, ..needs };
        assert_eq!(kafka.connections_within(1_024), Ok(1_024 - 64 - 192));
        assert!(needs.connections_within(0).is_err());
    }
}
