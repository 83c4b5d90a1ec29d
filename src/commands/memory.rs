//! How much memory a command needs at most, in addition to the program itself: the sum of all bounds in bytes, from the
//! flags. A log line at start has the sum, and `docs/configuration.md` explains it.

use crate::config::{DeliveryConfig, EndpointConfig, EngineConfig, LogConfig};
use crate::core::parking::ParkingLimits;
use crate::core::slots::attempts_max;
use crate::destination::spec::Target;
use crate::limits::{
    ANSWER_DRAINS_MAX, DEAD_LETTER_WRITES_BYTES_MAX, FAILING_USERS_MAX, HTTP_BUFFER_BYTES_MAX, PACED_USERS_MAX,
    RECORD_BYTES_MAX, RUN_BYTES_MAX, SERVED_USERS_MAX, USERS_AFTER_DEAD_LETTER_MAX, WAITING_ANSWERS_BYTES_MAX,
    WRITE_BYTES_MAX,
};
use crate::{log, stderr};

/// Memory of a connection in addition to its buffer: for its task and for the request in progress.
const CONNECTION_OVERHEAD_BYTES: usize = 8 * 1024;

/// Memory of an attempt in addition to its events: for the buffers of its connection, with TLS, and for the answer.
const ATTEMPT_BYTES: usize = 64 * 1024;

/// Bytes of an event in the body of a request with several events, in addition to its payload, if its id, type and user have
/// usual lengths.
const BATCH_EVENT_BYTES: usize = 1024;

/// Memory of an event in a window in addition to the bytes that the window counts, if every event belongs to another user:
/// its lane. Measured with 300,000 events of 8 bytes: 254 bytes each.
const LANE_BYTES: usize = 256;

/// Memory of an event in a window that has failed, in addition to its lane: its failure history, its places in the lists of
/// what is due, and the beginning of its answer. Or of an event whose dead letter waits, without the rest of the answer.
const FAILED_EVENT_BYTES: usize = 512;

/// Memory of a parked user with an id of usual length whose next event has failed: its entry in the list, and its account in
/// the state that is stored, in the one that is being stored, and in its text.
const PARKED_USER_BYTES: usize = 2_048;

/// Memory of a remembered user with an id of usual length.
const REMEMBERED_USER_BYTES: usize = 128;

/// One part of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MemoryPart {
    name: &'static str,
    bytes: usize,
}

/// Logs how much memory the process needs at most.
pub(super) fn announce(
    config: &LogConfig,
    partitions: u32,
    endpoint: Option<&EndpointConfig>,
    deliveries: &[DeliveryConfig],
) {
    // Without an ingest, this process does not know the bound of the processes that wrote the events.
    let event_bytes_max = endpoint.map_or(RECORD_BYTES_MAX, |endpoint| endpoint.ingest.max_event_bytes);
    let mut parts = endpoint.map(of_ingest).unwrap_or_default();
    parts.extend(of_log(&config.engine, deliveries.len().saturating_mul(partitions as usize)));
    if !deliveries.is_empty() {
        parts.extend(of_deliveries(deliveries, partitions, event_bytes_max));
    }
    log_sum(&parts);
}

/// Ingest: events that are accepted but not in the log yet, bodies that are still arriving, and connections.
fn of_ingest(endpoint: &EndpointConfig) -> Vec<MemoryPart> {
    let config = &endpoint.ingest;
    // While a body is parsed, the records made of it are in memory, too. Each thread parses one body at a time.
    let parsed = std::thread::available_parallelism().map_or(1, usize::from).saturating_mul(config.max_body_bytes);
    let connection = HTTP_BUFFER_BYTES_MAX + CONNECTION_OVERHEAD_BYTES;
    vec![
        MemoryPart { name: "requests", bytes: config.max_pending_bytes.saturating_add(parsed) },
        // Arriving bodies have a budget of their own, as large as that of complete requests.
        MemoryPart { name: "arriving bodies", bytes: config.max_pending_bytes },
        MemoryPart { name: "connections", bytes: config.max_connections.saturating_mul(connection) },
    ]
}

/// The log: waiting writes, reads in progress, and caches. And the queue of log lines.
fn of_log(engine: &EngineConfig, readers: usize) -> Vec<MemoryPart> {
    let bytes = match engine {
        EngineConfig::Sqlite { .. } => log::sqlite::MEMORY_BYTES_MAX,
        EngineConfig::Kafka(_) => log::kafka::memory_bytes_max(readers),
    };
    vec![MemoryPart { name: "log", bytes }, MemoryPart { name: "log lines", bytes: stderr::QUEUE_BYTES_MAX }]
}

/// Destinations: their windows, and everything else that they have in memory.
fn of_deliveries(deliveries: &[DeliveryConfig], partitions: u32, event_bytes_max: usize) -> Vec<MemoryPart> {
    // In each partition, one event may exceed the window, and one dead letter its share of what is being written.
    let one_each = (partitions as usize).saturating_mul(event_bytes_max);
    let windows = deliveries.iter().map(|delivery| {
        let lanes = delivery.dispatch.window_events.saturating_mul(LANE_BYTES + FAILED_EVENT_BYTES);
        delivery.dispatch.window_bytes.saturating_add(one_each).saturating_add(lanes)
    });
    let remembered = (2 * USERS_AFTER_DEAD_LETTER_MAX + FAILING_USERS_MAX + SERVED_USERS_MAX + PACED_USERS_MAX)
        * REMEMBERED_USER_BYTES;
    let others = deliveries.iter().map(|delivery| {
        let in_use = match delivery.spec.target {
            // The lines of the write in progress and of the next one, and one more batch or event.
            Target::File(_) | Target::Stdout => 2 * WRITE_BYTES_MAX + RUN_BYTES_MAX.max(event_bytes_max),
            Target::Http(_) => attempts_max(delivery.dispatch.concurrency)
                .saturating_add(ANSWER_DRAINS_MAX)
                .saturating_mul(ATTEMPT_BYTES)
                .saturating_add(bodies_of_batches(delivery)),
            Target::Null => 0,
        };
        in_use.saturating_add(remembered)
    });
    let parked = deliveries.iter().map(|delivery| match delivery.dispatch.parking {
        ParkingLimits { users_max, may_park: true, .. } => users_max.saturating_mul(PARKED_USER_BYTES),
        ParkingLimits { may_park: false, .. } => 0,
    });
    let dead_letters = (DEAD_LETTER_WRITES_BYTES_MAX + WAITING_ANSWERS_BYTES_MAX).saturating_add(one_each);
    let sum = |bytes: &mut dyn Iterator<Item = usize>| bytes.fold(0, usize::saturating_add);
    vec![
        MemoryPart { name: "windows of destinations", bytes: sum(&mut { windows }) },
        MemoryPart { name: "parked users", bytes: sum(&mut { parked }) },
        MemoryPart { name: "dead letters", bytes: dead_letters.saturating_mul(deliveries.len()) },
        MemoryPart { name: "other parts of destinations", bytes: sum(&mut { others }) },
    ]
}

/// Bodies of requests with several events. Their events are in the window, and are in a body once more, in base64.
fn bodies_of_batches(delivery: &DeliveryConfig) -> usize {
    let (events_max, attempts) = (delivery.dispatch.in_flight_events, attempts_max(delivery.dispatch.concurrency));
    // Each attempt may have one event.
    let events = events_max.max((events_max / 2).saturating_add(attempts)).saturating_mul(BATCH_EVENT_BYTES);
    match delivery.settings.batch_events_max {
        0 | 1 => 0,
        _ => (delivery.dispatch.window_bytes / 3).saturating_mul(4).saturating_add(events),
    }
}

/// Logs the sum and its parts.
fn log_sum(parts: &[MemoryPart]) {
    let total = parts.iter().fold(0, |sum: usize, part| sum.saturating_add(part.bytes));
    let listed: Vec<String> = parts.iter().map(|part| format!("{} {}", part.name, mib(part.bytes))).collect();
    let memory_bound = mib(total);
    tracing::info!(%memory_bound, "the process needs at most this much memory, in addition to the program itself: {}", listed.join(", "));
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}
