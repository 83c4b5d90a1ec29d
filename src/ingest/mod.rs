//! Takes events in over HTTP and answers once they are in the log.

use crate::core::partition::Partitioner;
use std::time::Duration;

/// The checked configuration of ingest.
#[derive(Debug, Clone)]
pub struct Config {
    pub max_body_bytes: usize,
    pub max_event_bytes: usize,
    pub max_batch_events: usize,
    /// Bytes accepted and not yet appended.
    pub max_pending_bytes: usize,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub partitioner: Partitioner,
    /// How long a stop waits for what was accepted.
    pub drain: Duration,
}
