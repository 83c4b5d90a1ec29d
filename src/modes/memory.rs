//! How much memory a mode holds at most, besides the program itself: the sum of all bounds in bytes, from the flags. It
//! is told at start, and `docs/configuration.md` explains it.

use crate::config::{self, Delivery, Endpoint, Store};
use crate::destination::spec::Target;
use crate::limits::{
    ANSWER_DRAINS_MAX, FAILING_USERS_MAX, GAPS_REMEMBERED_MAX, HTTP_BUFFER_BYTES_MAX, PROBED_USERS_MAX,
    RECORD_BYTES_MAX, RUN_BYTES_MAX, WRITE_BYTES_MAX,
};
use crate::{log, stderr};

/// What a connection costs beyond its buffer: its task, and the request that it is about.
const CONNECTION_OVERHEAD_BYTES: usize = 8 * 1024;

/// What an attempt under way holds beyond its events: the buffers of its connection (with TLS), and the answer.
const ATTEMPT_BYTES: usize = 64 * 1024;

/// What an event in a window costs beyond the bytes that the window counts, if each is of another user: its lane. Measured
/// with 300,000 events of 8 bytes: 254 bytes each.
const LANE_BYTES: usize = 256;

/// A user that is remembered, with an id of usual length.
const REMEMBERED_USER_BYTES: usize = 128;

/// One part of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    what: &'static str,
    bytes: usize,
}

/// Says how much memory the process holds at most.
pub(crate) fn announce(config: &config::Log, partitions: u32, endpoint: Option<&Endpoint>, deliveries: &[Delivery]) {
    // Delivery alone takes in what others have written.
    let event_bytes_max = endpoint.map_or(RECORD_BYTES_MAX, |endpoint| endpoint.ingest.max_event_bytes);
    let mut parts = endpoint.map(of_ingest).unwrap_or_default();
    parts.extend(of_log(&config.store, deliveries.len().saturating_mul(partitions as usize)));
    if !deliveries.is_empty() {
        parts.extend(of_deliveries(deliveries, partitions, event_bytes_max));
    }
    tell(&parts);
}

/// Events that were accepted and are not in the log yet, bodies that are still arriving, and the connections that they
/// come over.
fn of_ingest(endpoint: &Endpoint) -> Vec<Part> {
    let config = &endpoint.ingest;
    // A body and the records that are made of it exist side by side while it is parsed, on one thread each.
    let parsed = std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(config.max_body_bytes);
    let connection = HTTP_BUFFER_BYTES_MAX + CONNECTION_OVERHEAD_BYTES;
    vec![
        Part { what: "requests", bytes: config.max_pending_bytes.saturating_add(parsed) },
        // Their budget is as large as that of complete requests.
        Part { what: "arriving bodies", bytes: config.max_pending_bytes },
        Part { what: "connections", bytes: config.max_connections.saturating_mul(connection) },
    ]
}

/// What waits to be written to the log, what is being read from it, and its caches.
fn of_log(store: &Store, readers: usize) -> Vec<Part> {
    let bytes = match store {
        Store::Sqlite { .. } => log::sqlite::MEMORY_BYTES_MAX,
        Store::Kafka(_) => log::kafka::memory_bytes_max(readers),
    };
    vec![Part { what: "log", bytes }, Part { what: "log lines", bytes: stderr::QUEUE_BYTES_MAX }]
}

/// The windows of destinations, and what they hold besides.
fn of_deliveries(deliveries: &[Delivery], partitions: u32, event_bytes_max: usize) -> Vec<Part> {
    // A window takes one event, whatever its size.
    let one_each = (partitions as usize).saturating_mul(event_bytes_max);
    let windows = deliveries.iter().map(|delivery| {
        let lanes = delivery.dispatch.window_events.saturating_mul(LANE_BYTES);
        delivery.dispatch.window_bytes.max(one_each).saturating_add(lanes)
    });
    let remembered = (2 * GAPS_REMEMBERED_MAX + FAILING_USERS_MAX + PROBED_USERS_MAX) * REMEMBERED_USER_BYTES;
    let besides = deliveries.iter().map(|delivery| {
        let held = match delivery.spec.target {
            // The lines of one write, kept for the next, and one run or event beyond.
            Target::File(_) | Target::Stdout => 2 * WRITE_BYTES_MAX + RUN_BYTES_MAX.max(event_bytes_max),
            Target::Http(_) => {
                delivery.dispatch.concurrency.saturating_add(ANSWER_DRAINS_MAX).saturating_mul(ATTEMPT_BYTES)
            }
            Target::Null => 0,
        };
        held.saturating_add(remembered)
    });
    let sum = |bytes: &mut dyn Iterator<Item = usize>| bytes.fold(0, usize::saturating_add);
    vec![
        Part { what: "windows of destinations", bytes: sum(&mut { windows }) },
        Part { what: "destinations besides", bytes: sum(&mut { besides }) },
    ]
}

/// Says the sum, and what it is made of.
fn tell(parts: &[Part]) {
    let total = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.bytes));
    let listed: Vec<String> = parts.iter().map(|part| format!("{} {}", part.what, mib(part.bytes))).collect();
    let memory_bound = mib(total);
    tracing::info!(%memory_bound, "memory is bounded, besides the program itself: {}", listed.join(", "));
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}
