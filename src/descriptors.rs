//! File descriptors: the limit is raised as far as the system lets us, and then divided, so that clients cannot take the
//! descriptors that deliveries and the log need.
//!
//! ```text
//!  limit ├── log, runtime ───┤── partitions ──────────┤── http destinations ──┤── clients ──────────────────┤
//!         LOG_DESCRIPTORS,    a fetch (Kafka) and a    --concurrency and       --max-connections, or less
//!         DESTINATION_… each  file ({partition}) each  answers being read
//! ```
//!
//! Partitions are counted once the log is open. They are counted as if this process had all of them, because it does
//! after the other processes have stopped.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the runtime, the listeners, the standard streams, the database with its readers and its locks, and the
/// one connection that is accepted before it has room.
const LOG_DESCRIPTORS: usize = 64;

/// Descriptors of a Kafka cluster in addition: a few connections to each broker, used and unused. Fetches of partitions
/// are counted on their own.
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
    /// Partitions of the topic; 0 while the log is not open.
    pub partitions: usize,
    pub destinations: usize,
    /// Destinations that write one file for each partition.
    pub destinations_with_partition_files: usize,
    /// `--concurrency` of each http destination.
    pub http_concurrency: Vec<usize>,
    /// How many connections an http destination has at most with this `--concurrency`.
    pub http_connections: fn(usize) -> usize,
}

/// How they are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Fetches and files of partitions.
    partitions: usize,
    /// Connections of clients.
    pub clients: usize,
    /// No http destination may have more attempts under way than this.
    pub concurrency_max: usize,
}

/// Checks before the log is opened that a start is possible.
///
/// # Errors
///
/// If the descriptors are not even enough for one attempt of each destination and a few clients: says what to raise.
pub fn check(needs: &Needs) -> Result<(), String> {
    needs.within(limit()).map(|_| ())
}

/// Divides the descriptors, and logs how.
///
/// # Errors
///
/// As [`check`].
pub fn divide(needs: &Needs) -> Result<Shares, String> {
    let limit = limit();
    let shares = needs.within(limit)?;
    let Shares { partitions, clients, concurrency_max } = shares;
    let asked = needs.http_concurrency.iter().copied().max().unwrap_or(0);
    if partitions < needs.for_partitions() {
        tracing::warn!(
            limit,
            needed = needs.for_partitions(),
            reserved = partitions,
            "the limit of file descriptors is too low for the fetches and files of all partitions, should this process \
             have all of them: raise it (ulimit -n)"
        );
    }
    if concurrency_max < asked {
        tracing::warn!(
            limit,
            asked,
            concurrency = concurrency_max,
            "the limit of file descriptors is too low for --concurrency, which is reduced: raise it (ulimit -n)"
        );
    }
    let reserved = needs.fixed() + partitions + needs.for_destinations(concurrency_max);
    if needs.clients_given && clients < needs.clients {
        tracing::warn!(
            limit,
            reserved,
            for_partitions = partitions,
            asked = needs.clients,
            connections = clients,
            "the limit of file descriptors is too low for --max-connections, which is reduced: raise it (ulimit -n)"
        );
    } else if needs.clients > 0 {
        tracing::info!(
            limit,
            reserved,
            for_partitions = partitions,
            connections = clients,
            "file descriptors: the limit, and what clients may use of it"
        );
    }
    Ok(shares)
}

fn limit() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

impl Needs {
    /// For everything but partitions and connections over HTTP.
    fn fixed(&self) -> usize {
        let kafka = if self.is_kafka { KAFKA_DESCRIPTORS } else { 0 };
        LOG_DESCRIPTORS + kafka + DESTINATION_DESCRIPTORS * self.destinations
    }

    /// For one fetch of each partition and destination, which is a connection of its own on Kafka, and for the files.
    fn for_partitions(&self) -> usize {
        let fetches = if self.is_kafka { self.destinations } else { 0 };
        self.partitions.saturating_mul(fetches + self.destinations_with_partition_files)
    }

    /// For the connections of all http destinations, with this many attempts each at most.
    fn for_destinations(&self, concurrency_max: usize) -> usize {
        let each =
            self.http_concurrency.iter().map(|concurrency| (self.http_connections)(*concurrency.min(&concurrency_max)));
        each.fold(0, usize::saturating_add)
    }

    fn within(&self, limit: usize) -> Result<Shares, String> {
        let left = limit.saturating_sub(self.fixed());
        let clients_least = self.clients.min(CLIENTS_MIN);
        let least = self.for_destinations(1).saturating_add(clients_least);
        if left < least {
            return Err(format!(
                "the limit of file descriptors is {limit}, and at least {} are needed: for the log, for the destinations \
                 and for {clients_least} clients. Raise the hard limit (ulimit -Hn, or LimitNOFILE= of the service)",
                self.fixed().saturating_add(least)
            ));
        }
        // If there are not enough for all partitions, this is not an error: other processes may have most of them.
        let partitions = self.for_partitions().min(left - least);
        let left = left - partitions;
        let clients_min = self.clients.min(CLIENTS_MIN.max(left / CLIENTS_SHARE));
        let fits = |concurrency_max| self.for_destinations(concurrency_max).saturating_add(clients_min) <= left;
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
        let clients = self.clients.min(left - self.for_destinations(concurrency_max));
        Ok(Shares { partitions, clients, concurrency_max })
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
            partitions: 0,
            destinations: 1,
            destinations_with_partition_files: 0,
            http_concurrency: http_concurrency.to_vec(),
            http_connections: |concurrency| 2 * concurrency,
        }
    }

    #[test]
    fn clients_get_what_the_log_and_the_deliveries_leave() {
        let fixed = 64 + 16;
        let shares = |clients, concurrency_max| Ok(Shares { partitions: 0, clients, concurrency_max });
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
        assert_eq!(
            needs(&[1_000, 1_000]).within(fixed + 400),
            Ok(Shares { partitions: 0, clients: 100, concurrency_max: 75 })
        );
        // The first one needs less than its share.
        assert_eq!(
            needs(&[10, 1_000]).within(fixed + 400),
            Ok(Shares { partitions: 0, clients: 100, concurrency_max: 140 })
        );
        assert_eq!(needs(&[100]).within(fixed + 16 + 3), Ok(Shares { partitions: 0, clients: 17, concurrency_max: 1 }));
        let error = needs(&[100]).within(fixed + 16 + 1).unwrap_err();
        assert!(error.contains("is 97,") && error.contains("at least 98 ") && error.contains("ulimit -Hn"), "{error}");
        assert!(needs(&[]).within(0).is_err());
    }

    #[test]
    fn each_fetch_of_a_partition_on_kafka_and_each_file_of_a_partition_has_a_descriptor() {
        let fixed = 64 + 6 * 16;
        let files = Needs { partitions: 100, destinations: 6, destinations_with_partition_files: 2, ..needs(&[]) };
        assert_eq!(
            files.within(4_096),
            Ok(Shares { partitions: 200, clients: 4_096 - fixed - 200, concurrency_max: 1 })
        );
        let fetches = Needs { is_kafka: true, destinations_with_partition_files: 0, ..files };
        let clients = 4_096 - fixed - 192 - 600;
        assert_eq!(fetches.within(4_096), Ok(Shares { partitions: 600, clients, concurrency_max: 1 }));
        let both = Needs { destinations_with_partition_files: 6, ..fetches.clone() };
        assert_eq!(both.within(4_096).unwrap().partitions, 1_200);
        let http = Needs { http_concurrency: vec![100; 6], ..fetches };
        let shares = Shares { partitions: 600, clients: 4_096 - fixed - 192 - 600 - 1_200, concurrency_max: 100 };
        assert_eq!(http.within(4_096), Ok(shares));
        let unlimited = Needs { partitions: usize::MAX, ..http };
        assert_eq!(unlimited.within(usize::MAX).unwrap().concurrency_max, 1, "nothing overflows");
    }

    #[test]
    fn partitions_come_before_more_than_one_attempt_and_few_clients_and_never_prevent_a_start() {
        let fixed = 64 + 16;
        let many = Needs { partitions: 300, destinations_with_partition_files: 1, ..needs(&[100]) };
        let shares = |partitions, clients, concurrency_max| Ok(Shares { partitions, clients, concurrency_max });
        assert_eq!(many.within(fixed + 300 + 200), shares(300, 50, 75), "clients keep a quarter of what is left");
        assert_eq!(many.within(fixed + 300 + 2 + 16), shares(300, 16, 1));
        assert_eq!(many.within(fixed + 100 + 2 + 16), shares(100, 16, 1), "other processes may have most of them");
        assert_eq!(many.within(fixed + 2 + 16), shares(0, 16, 1));
        assert!(many.within(fixed + 2 + 15).is_err());
    }

    #[test]
    fn a_start_that_is_possible_with_the_fewest_clients_is_not_refused() {
        // A quarter of 120 would be 30 clients, beside which 50 destinations do not fit.
        let shares = Shares { partitions: 0, clients: 20, concurrency_max: 1 };
        assert_eq!(needs(&[10; 50]).within(64 + 16 + 120), Ok(shares));
    }
}
