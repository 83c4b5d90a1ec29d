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
const LOG_DESCRIPTORS: usize = 64;

/// Descriptors of a Kafka cluster in addition: a few connections to each broker for each of its users.
const KAFKA_DESCRIPTORS: usize = 192;

/// Descriptors of a destination in addition to its connections: its file or its look-ups of names, and its group.
const DESTINATION_DESCRIPTORS: usize = 16;

/// Connections that clients get at least.
const CLIENTS_MIN: usize = 16;

/// The share of clients if there are not enough descriptors for everybody: one in so many.
const CLIENTS_SHARE: usize = 4;

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

/// What a process needs its descriptors for.
#[derive(Debug, Clone)]
pub struct Needs {
    /// Connections of clients that are asked for, and whether they were asked for by a flag; 0 without an ingest.
    pub clients: usize,
    pub clients_given: bool,
    pub is_kafka: bool,
    pub destinations: usize,
    /// `--concurrency` of each http destination.
    pub http_concurrency: Vec<usize>,
    /// How many connections an http destination has at most with this `--concurrency`.
    pub http_connections: fn(usize) -> usize,
}

/// How they are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Connections of clients.
    pub clients: usize,
    /// No http destination may have more attempts under way than this.
    pub concurrency_max: usize,
}

/// Divides the descriptors, and says so in the log.
///
/// # Errors
///
/// If they are not even enough for one attempt of each destination and a few clients: says what to raise.
pub fn divide(needs: &Needs) -> Result<Shares, String> {
    let limit =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let shares = needs.within(limit)?;
    let Shares { clients, concurrency_max } = shares;
    let asked = needs.http_concurrency.iter().copied().max().unwrap_or(0);
    if concurrency_max < asked {
        tracing::warn!(
            limit,
            asked,
            concurrency = concurrency_max,
            "the limit of file descriptors is too low for --concurrency, which is reduced: raise it (ulimit -n)"
        );
    }
    let reserved = needs.fixed() + needs.for_destinations(concurrency_max);
    if needs.clients_given && clients < needs.clients {
        tracing::warn!(
            limit,
            reserved,
            asked = needs.clients,
            connections = clients,
            "the limit of file descriptors is too low for --max-connections, which is reduced: raise it (ulimit -n)"
        );
    } else if needs.clients > 0 {
        tracing::info!(
            limit,
            reserved,
            connections = clients,
            "file descriptors: the limit, and what clients may use of it"
        );
    }
    Ok(shares)
}

impl Needs {
    /// For everything but connections over HTTP.
    fn fixed(&self) -> usize {
        let kafka = if self.is_kafka { KAFKA_DESCRIPTORS } else { 0 };
        LOG_DESCRIPTORS + kafka + DESTINATION_DESCRIPTORS * self.destinations
    }

    /// For the connections of all http destinations, with this many attempts each at most.
    fn for_destinations(&self, concurrency_max: usize) -> usize {
        let each =
            self.http_concurrency.iter().map(|concurrency| (self.http_connections)(*concurrency.min(&concurrency_max)));
        each.fold(0, usize::saturating_add)
    }

    fn within(&self, limit: usize) -> Result<Shares, String> {
        let left = limit.saturating_sub(self.fixed());
        let clients_min = self.clients.min(CLIENTS_MIN.max(left / CLIENTS_SHARE));
        let fits = |concurrency_max| self.for_destinations(concurrency_max).saturating_add(clients_min) <= left;
        if !fits(1) {
            let clients = self.clients.min(CLIENTS_MIN);
            return Err(format!(
                "the limit of file descriptors is {limit}, and at least {} are needed: for the log, for the destinations \
                 and for {clients} clients. Raise the hard limit (ulimit -Hn, or LimitNOFILE= of the service)",
                self.fixed() + self.for_destinations(1) + clients
            ));
        }
        let (mut concurrency_max, mut too_much) =
            (1, self.http_concurrency.iter().copied().max().unwrap_or(1).saturating_add(1));
        while too_much - concurrency_max > 1 {
            let middle = concurrency_max + (too_much - concurrency_max) / 2;
            if fits(middle) {
                concurrency_max = middle;
            } else {
                too_much = middle;
            }
        }
        Ok(Shares { clients: self.clients.min(left - self.for_destinations(concurrency_max)), concurrency_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(http_concurrency: &[usize]) -> Needs {
        Needs {
            clients: 10_000,
            clients_given: false,
            is_kafka: false,
            destinations: 1,
            http_concurrency: http_concurrency.to_vec(),
            http_connections: |concurrency| 2 * concurrency,
        }
    }

    #[test]
    fn clients_get_what_the_log_and_the_deliveries_leave() {
        let fixed = 64 + 16;
        let shares = |clients, concurrency_max| Ok(Shares { clients, concurrency_max });
        assert_eq!(needs(&[100]).within(1_024), shares(1_024 - fixed - 200, 100));
        assert_eq!(needs(&[100]).within(usize::MAX), shares(10_000, 100));
        assert_eq!(needs(&[]).within(fixed + 16), shares(16, 1));
        let kafka = Needs { is_kafka: true, ..needs(&[]) };
        assert_eq!(kafka.within(1_024), shares(1_024 - fixed - 192, 1));
        let no_ingest = Needs { clients: 0, ..needs(&[100]) };
        assert_eq!(no_ingest.within(fixed + 200), shares(0, 100));
        let few = Needs { clients: 2, ..needs(&[100]) };
        assert_eq!(few.within(fixed + 202), shares(2, 100), "no more than was asked for is needed");
    }

    #[test]
    fn if_there_are_too_few_the_destinations_share_what_is_left_and_clients_keep_a_part() {
        let fixed = 64 + 16;
        // A quarter of 400 is for clients.
        assert_eq!(needs(&[1_000, 1_000]).within(fixed + 400), Ok(Shares { clients: 100, concurrency_max: 75 }));
        // The first one needs less than its share.
        assert_eq!(needs(&[10, 1_000]).within(fixed + 400), Ok(Shares { clients: 100, concurrency_max: 140 }));
        assert_eq!(needs(&[100]).within(fixed + 16 + 3), Ok(Shares { clients: 17, concurrency_max: 1 }));
        let error = needs(&[100]).within(fixed + 16 + 1).unwrap_err();
        assert!(error.contains("is 97,") && error.contains("at least 98 ") && error.contains("ulimit -Hn"), "{error}");
        assert!(needs(&[]).within(0).is_err());
    }
}
