//! What an attempt says of the first event that it did not deliver.

use std::time::Duration;

/// The attempt's word on one event. What it leads to (another try, a dead letter, an open breaker) is decided by
/// [`breaker`](super::breaker) and [`lanes`](super::lanes), not by the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It failed and may succeed later: an answer 5xx, a time-out after sending. Counts as a try.
    /// `after`: the answer's `Retry-After`, which wins over the backoff, capped by `--retry-after-max`.
    Retry { after: Option<Duration> },
    /// The destination asks for patience (429, or 503 with `Retry-After`): never counts as a try.
    /// `after` wins over the backoff, capped by `--retry-after-max`.
    Busy { after: Option<Duration> },
    /// This event will never be taken (400, 413, 415, 422).
    Refused,
    /// It never got there: name, connection, TLS, a file that cannot be opened, a full disk. Never counts as a try.
    Unreachable,
    /// A drill of `--reliability`: counts as a try, and says nothing of the destination's health.
    Drilled,
}

/// A verdict, and what the destination said, kept for the dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub verdict: Verdict,
    /// Status and the beginning of the answer, or the error; at most `limits::ANSWER_BYTES_MAX` bytes.
    pub answer: String,
}

impl Failed {
    pub fn new(verdict: Verdict, answer: impl Into<String>) -> Self {
        let mut answer = answer.into();
        if answer.len() > crate::limits::ANSWER_BYTES_MAX {
            let mut end = crate::limits::ANSWER_BYTES_MAX;
            while !answer.is_char_boundary(end) {
                end -= 1;
            }
            answer.truncate(end);
        }
        Self { verdict, answer }
    }
}

/// What became of one run: its first `delivered` events were delivered; of the next one `failed` tells, unless all
/// were delivered. Those behind it were not attempted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Events of the run that were delivered, from its first on.
    pub delivered: usize,
    /// `None` exactly when the whole run was delivered.
    pub failed: Option<Failed>,
}
