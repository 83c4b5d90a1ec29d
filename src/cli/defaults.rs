//! The default value of every flag, in one place.
//!
//! Texts are the defaults of flags as a person would type them; clap checks them like typed values and shows them in the
//! help. Typed values are the defaults that depend on the command or on the kind of log. The help tells them in words, and
//! a test compares the two.

use std::time::Duration;

// Log
pub(crate) const BROKER: &str = "localhost:9092";
pub(crate) const UP_DATABASE: &str = "eventd.db";
pub(crate) const TOPIC: &str = "user-events";
pub(crate) const PARTITIONS: u32 = 3;
pub(crate) const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
pub(crate) const DEAD_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
pub(crate) const MAX_DB_BYTES: u64 = 64 << 30;

// Process
pub(crate) const DRAIN: &str = "30s";
pub(crate) const LOG_FORMAT: &str = "text";

// Ingest
pub(crate) const LISTEN: &str = "localhost:8090";
pub(crate) const MAX_BODY: &str = "4MiB";
pub(crate) const MAX_EVENT: &str = "900KiB";
pub(crate) const MAX_BATCH: &str = "10000";
pub(crate) const MAX_PENDING: &str = "64MiB";
pub(crate) const MAX_CONNECTIONS: usize = 10_000;
pub(crate) const HEADER_TIMEOUT: &str = "10s";
pub(crate) const BODY_TIMEOUT: &str = "30s";
pub(crate) const PARTITIONER: &str = "murmur2";

// Delivery
pub(crate) const COMMIT_INTERVAL: &str = "200ms";
pub(crate) const ON_GAP: &str = "stop";
pub(crate) const FILE_MODE: &str = "0600";
pub(crate) const ON_EXHAUSTED: &str = "dead-letter";
pub(crate) const ATTEMPT_TIMEOUT: &str = "15s";
pub(crate) const RETRY_AFTER_MAX: &str = "5m";
pub(crate) const CONCURRENCY: &str = "256";
pub(crate) const BATCH: &str = "1";
pub(crate) const WINDOW: &str = "100000";
pub(crate) const WINDOW_BYTES: &str = "64MiB";
pub(crate) const USER_BACKLOG: &str = "100";
pub(crate) const PARKED_USERS: &str = "1000000";
pub(crate) const SESSION_TIMEOUT: &str = "10s";
pub(crate) const RELIABILITY: &str = "0";

// Retries. The help of --retries tells these values.
pub(crate) const PATIENT: RetryDefaults = RetryDefaults {
    attempts_max: None,
    give_up_after: Some(Duration::from_secs(24 * 3600)),
    backoff: Duration::from_millis(100),
    backoff_max: Duration::from_secs(5 * 60),
    jitter: true,
};
pub(crate) const QUICK: RetryDefaults = RetryDefaults {
    attempts_max: Some(10),
    give_up_after: None,
    backoff: Duration::from_millis(100),
    backoff_max: Duration::from_secs(2),
    jitter: false,
};

/// The values of a preset of `--retries`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryDefaults {
    pub(crate) attempts_max: Option<u32>,
    pub(crate) give_up_after: Option<Duration>,
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) jitter: bool,
}

// Replay
pub(crate) const STOP_AFTER_FAILURES: &str = "100";

/// How long `eventd control` waits: owners look once a second, and commit a moment later.
pub(super) const CONTROL_WAIT: &str = "10s";
