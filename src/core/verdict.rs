//! How an attempt ended: the report of a run, and the verdict on the first event that it did not deliver.

use std::time::Duration;

/// How the destination failed to take one event. What follows (another try, a dead letter, an open breaker) is decided by
/// [`breaker`](super::breaker) and [`tries`](super::tries), not by the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It failed and may succeed later: an answer 5xx, or a time-out after sending. Counts as a try.
    /// `after` is the answer's `Retry-After`. It replaces the backoff, up to `--retry-after-max`.
    Retry { after: Option<Duration> },
    /// The destination asks to wait (429, or 503 with `Retry-After`). Never counts as a try.
    /// `after` replaces the backoff, up to `--retry-after-max`.
    Busy { after: Option<Duration> },
    /// The destination says that it will never take this event (400, 413, 415, 422).
    Refused,
    /// The event did not reach the destination: a name cannot be resolved, a connection or TLS fails, a file cannot be
    /// opened, a disk is full. Never counts as a try.
    Unreachable,
    /// A fault drill (`--reliability`) failed it. Counts as a try, and says nothing about the destination's health.
    Drilled,
    /// A run of several events failed as a whole: the destination takes no such batch, or one of its events is at fault.
    /// Says nothing, neither about an event nor about the destination's health. The first event goes alone at once.
    BatchFailed,
    /// eventd ended the attempt before its answer, because its lease had ended. Says nothing. The event is tried again when
    /// the lease lets it.
    CutOff,
}

impl Verdict {
    /// Whether the attempt says nothing, neither about the event nor about the destination. Then it is not a failure: it
    /// counts no try, does not change the event's history, and is not told to the breaker.
    pub fn says_nothing(self) -> bool {
        matches!(self, Self::BatchFailed | Self::CutOff)
    }
}

/// A verdict with the destination's answer, which the dead letter shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub verdict: Verdict,
    /// The status and the beginning of the body, or the error: at most `limits::ANSWER_BYTES_MAX` bytes.
    pub answer: String,
}

impl Failed {
    /// A failure with this answer, which is cut to `limits::ANSWER_BYTES_MAX` bytes.
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

/// How one run ended. Its first `delivered` events were delivered. If that is not the whole run, the next event failed
/// as `failed` says, and the events after that one were not attempted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The number of delivered events, counted from the first of the run.
    pub delivered: usize,
    /// `None` if, and only if, the whole run was delivered.
    pub failed: Option<Failed>,
}
