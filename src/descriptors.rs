//! File descriptors: raises the limit as far as the system allows, and then divides it, so that clients cannot use the
//! descriptors that deliveries and the log need.
//!
//! ```text
//!  limit ├── log, runtime ───┤── partitions ──────────┤── http destinations ──┤── clients ──────────────────┤
//!         LOG_DESCRIPTORS,    a fetch (Kafka) and a    --concurrency and       --max-connections, or less
//!         DESTINATION_… each  file ({partition}) each  answers being read
//! ```
//!
//! Partitions are counted when the log is open. The process reserves descriptors for all of them, because it owns all of
//! them after the other processes have stopped.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the runtime, the listeners, the standard streams, the database with its readers and its locks, and of
/// one connection that is accepted before another one is closed for it.
const LOG_DESCRIPTORS: usize = 64;

/// Additional descriptors for a Kafka cluster: a few connections to each broker, used and unused. Connections that fetch
/// are counted separately.
const KAFKA_DESCRIPTORS: usize = 192;

/// Descriptors of a destination in addition to its connections: for its file or for resolving names, and for its group.
const DESTINATION_DESCRIPTORS: usize = 16;

/// The smallest number of connections for clients. With fewer, the process does not start.
const CLIENTS_MIN: usize = 16;

/// If there are too few descriptors, clients get one part in this many, and http destinations share the rest.
const CLIENTS_SHARE: usize = 4;

/// Raises the soft limit of this process to the hard limit. The soft limit is low by default (often 1,024) because of
/// programs that use `select`. eventd does not use it.
pub fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, limit = current, "cannot raise the soft limit of file descriptors");
    }
}

/// What a process needs descriptors for.
#[derive(Debug, Clone)]
pub struct DescriptorNeeds {
    /// Connections of clients. 0 without an ingest.
    pub clients: usize,
    /// Whether the number of clients was given with a flag.
    pub clients_given: bool,
    pub is_kafka: bool,
    /// Partitions of the topic. 0 while the log is not open.
    pub partitions: usize,
    pub destinations: usize,
    /// Destinations that write one file for each partition.
    pub destinations_with_partition_files: usize,
    /// The value of `--concurrency`, once for each http destination.
    pub http_concurrency: Vec<usize>,
    /// Returns the largest number of connections of an http destination with a given `--concurrency`.
    pub http_connections: fn(usize) -> usize,
}

/// How the descriptors are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorShares {
    /// Connections that fetch from partitions, and files of partitions.
    partitions: usize,
    /// Connections of clients.
    pub clients: usize,
    /// The most attempts that an http destination may have in progress.
    pub concurrency_max: usize,
}

/// Checks that the process can start, before the log is opened.
///
/// # Errors
/// The descriptors are not even enough for one attempt of each destination and a few clients. The error says which limit
/// to raise.
pub fn check(needs: &DescriptorNeeds) -> Result<(), String> {
    needs.within(limit()).map(|_| ())
}

/// Divides the descriptors and logs the result.
///
/// # Errors
/// Like [`check`].
pub fn divide(needs: &DescriptorNeeds) -> Result<DescriptorShares, String> {
    let limit = limit();
    let shares = needs.within(limit)?;
    let DescriptorShares { partitions, clients, concurrency_max } = shares;
    let asked = needs.http_concurrency.iter().copied().max().unwrap_or(0);
    if partitions < needs.for_partitions() {
        tracing::warn!(
            limit,
            needed = needs.for_partitions(),
            reserved = partitions,
            "the limit of file descriptors is too low for the fetches and files of all partitions, if this process owns \
             all of them: raise the limit (ulimit -n)"
        );
    }
    if concurrency_max < asked {
        tracing::warn!(
            limit,
            asked,
            concurrency = concurrency_max,
            "the limit of file descriptors is too low for --concurrency, so it is reduced: raise the limit \
             (ulimit -n)"
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
            "the limit of file descriptors is too low for --max-connections, so it is reduced: raise the \
             limit (ulimit -n)"
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

impl DescriptorNeeds {
    /// Descriptors for everything except partitions, and connections of clients and to http destinations.
    fn fixed(&self) -> usize {
        let kafka = if self.is_kafka { KAFKA_DESCRIPTORS } else { 0 };
        LOG_DESCRIPTORS + kafka + DESTINATION_DESCRIPTORS * self.destinations
    }

    /// Descriptors for partitions. On Kafka each destination has one connection for each partition that it fetches from.
    /// Some destinations have one file for each partition.
    fn for_partitions(&self) -> usize {
        let fetches = if self.is_kafka { self.destinations } else { 0 };
        self.partitions.saturating_mul(fetches + self.destinations_with_partition_files)
    }

    /// Descriptors for the connections of all http destinations, if none has more attempts in progress than this.
    fn for_destinations(&self, concurrency_max: usize) -> usize {
        let each =
            self.http_concurrency.iter().map(|concurrency| (self.http_connections)(*concurrency.min(&concurrency_max)));
        each.fold(0, usize::saturating_add)
    }

    /// Divides a limit: first the fixed part and one attempt for each destination, then partitions, then attempts and
    /// clients.
    fn within(&self, limit: usize) -> Result<DescriptorShares, String> {
        let left = limit.saturating_sub(self.fixed());
        let clients_least = self.clients.min(CLIENTS_MIN);
        let least = self.for_destinations(1).saturating_add(clients_least);
        if left < least {
            return Err(format!(
                "the limit of file descriptors is {limit}, but the log, the destinations and {clients_least} clients \
                 need at least {} descriptors: raise the hard limit (ulimit -Hn, or LimitNOFILE= of the service)",
                self.fixed().saturating_add(least)
            ));
        }
        // Too few descriptors for all partitions are not an error, because other processes may own most of them.
        let partitions = self.for_partitions().min(left - least);
        let left = left - partitions;
        let clients_min = self.clients.min(CLIENTS_MIN.max(left / CLIENTS_SHARE));
        // Binary search for the largest concurrency with which the clients' part fits in, too.
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
        Ok(DescriptorShares { partitions, clients, concurrency_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(http_concurrency: &[usize]) -> DescriptorNeeds {
        DescriptorNeeds {
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
        let shares = |clients, concurrency_max| Ok(DescriptorShares { partitions: 0, clients, concurrency_max });
        assert_eq!(needs(&[100]).within(1_024), shares(1_024 - fixed - 200, 100));
        assert_eq!(needs(&[100]).within(usize::MAX), shares(10_000, 100));
        assert_eq!(needs(&[]).within(fixed + 16), shares(16, 1));
        let kafka = DescriptorNeeds { is_kafka: true, ..needs(&[]) };
        assert_eq!(kafka.within(1_024), shares(1_024 - fixed - 192, 1));
        let no_ingest = DescriptorNeeds { clients: 0, ..needs(&[100]) };
        assert_eq!(no_ingest.within(fixed + 200), shares(0, 100));
        let few = DescriptorNeeds { clients: 2, ..needs(&[100]) };
        assert_eq!(few.within(fixed + 202), shares(2, 100), "no more descriptors are needed than were asked for");
    }

    #[test]
    fn with_too_few_descriptors_destinations_share_the_rest_and_clients_keep_a_part() {
        let fixed = 64 + 16;
        // A quarter of 400 is for clients.
        assert_eq!(
            needs(&[1_000, 1_000]).within(fixed + 400),
            Ok(DescriptorShares { partitions: 0, clients: 100, concurrency_max: 75 })
        );
        // The first one needs less than its share.
        assert_eq!(
            needs(&[10, 1_000]).within(fixed + 400),
            Ok(DescriptorShares { partitions: 0, clients: 100, concurrency_max: 140 })
        );
        assert_eq!(
            needs(&[100]).within(fixed + 16 + 3),
            Ok(DescriptorShares { partitions: 0, clients: 17, concurrency_max: 1 })
        );
        let error = needs(&[100]).within(fixed + 16 + 1).unwrap_err();
        assert!(
            error.contains("is 97,") && error.contains("at least 98 descriptors") && error.contains("ulimit -Hn"),
            "{error}"
        );
        assert!(needs(&[]).within(0).is_err());
    }

    #[test]
    fn each_fetch_of_a_partition_on_kafka_and_each_file_of_a_partition_has_a_descriptor() {
        let fixed = 64 + 6 * 16;
        let files =
            DescriptorNeeds { partitions: 100, destinations: 6, destinations_with_partition_files: 2, ..needs(&[]) };
        assert_eq!(
            files.within(4_096),
            Ok(DescriptorShares { partitions: 200, clients: 4_096 - fixed - 200, concurrency_max: 1 })
        );
        let fetches = DescriptorNeeds { is_kafka: true, destinations_with_partition_files: 0, ..files };
        let clients = 4_096 - fixed - 192 - 600;
        assert_eq!(fetches.within(4_096), Ok(DescriptorShares { partitions: 600, clients, concurrency_max: 1 }));
        let both = DescriptorNeeds { destinations_with_partition_files: 6, ..fetches.clone() };
        assert_eq!(both.within(4_096).unwrap().partitions, 1_200);
        let http = DescriptorNeeds { http_concurrency: vec![100; 6], ..fetches };
        let shares =
            DescriptorShares { partitions: 600, clients: 4_096 - fixed - 192 - 600 - 1_200, concurrency_max: 100 };
        assert_eq!(http.within(4_096), Ok(shares));
        let unlimited = DescriptorNeeds { partitions: usize::MAX, ..http };
        assert_eq!(unlimited.within(usize::MAX).unwrap().concurrency_max, 1, "nothing overflows");
    }

    #[test]
    fn partitions_come_after_one_attempt_and_few_clients_and_never_prevent_a_start() {
        let fixed = 64 + 16;
        let many = DescriptorNeeds { partitions: 300, destinations_with_partition_files: 1, ..needs(&[100]) };
        let shares =
            |partitions, clients, concurrency_max| Ok(DescriptorShares { partitions, clients, concurrency_max });
        assert_eq!(many.within(fixed + 300 + 200), shares(300, 50, 75), "clients keep a quarter of what is left");
        assert_eq!(many.within(fixed + 300 + 2 + 16), shares(300, 16, 1));
        assert_eq!(many.within(fixed + 100 + 2 + 16), shares(100, 16, 1), "other processes may have most of them");
        assert_eq!(many.within(fixed + 2 + 16), shares(0, 16, 1));
        assert!(many.within(fixed + 2 + 15).is_err());
    }

    #[test]
    fn a_start_that_is_possible_with_the_fewest_clients_is_not_refused() {
        // A quarter of 120 would be 30 clients, and 50 destinations would not fit in addition.
        let shares = DescriptorShares { partitions: 0, clients: 20, concurrency_max: 1 };
        assert_eq!(needs(&[10; 50]).within(64 + 16 + 120), Ok(shares));
    }
}
