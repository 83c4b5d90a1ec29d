//! What every log line about one partition needs: the destination, the topic, the partition, and a limit on repeated lines.

use crate::log_limiter::{LogLimiter, Suppressed};
use std::sync::Arc;

/// Passed to the parts of a worker that write log lines.
pub(super) struct PartitionLog {
    pub(super) destination: String,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    limiter: LogLimiter,
}

impl PartitionLog {
    pub(super) fn new(destination: &str, topic: Arc<str>, partition: u32) -> Self {
        Self { destination: destination.to_owned(), topic, partition, limiter: LogLimiter::default() }
    }

    /// Whether a line about this may be written now, and the number of such lines that were suppressed before it.
    pub(super) fn allows(&self, about: &'static str) -> Option<Suppressed> {
        self.limiter.allows(about)
    }
}
