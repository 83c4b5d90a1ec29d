//! What is known of a write that did not succeed. There are three outcomes everywhere: *ok* (`Ok(T)`), *refused*
//! (surely not stored) and *unknown* (a time-out, a broken connection: it may be stored). Code that treats unknown as
//! refused is a defect.

use std::fmt;

/// How a part of the process ended after it was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was under way ended: requests are answered, and deliveries are committed.
    Drained,
    /// `--drain` or a second signal cut something off. Deliveries are made again; a client without an answer must retry.
    WorkLeft,
}

impl Ended {
    /// How two parts of one process ended together.
    pub fn and(self, other: Self) -> Self {
        if self == Self::Drained { other } else { self }
    }
}

/// Whether a write that failed may have been stored all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// Surely not stored: it may be sent again without a duplicate.
    Refused,
    /// It may be stored, now or later.
    Unknown,
}

/// A write that is not known to have succeeded: of a log, of a group, of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub certainty: Certainty,
    /// A stable word for programs, in kebab-case: `log-full`, `log-busy`, `event-too-large`, ….
    pub code: &'static str,
    /// For people: what happened and what to do next, a lower-case fragment.
    pub detail: String,
}

impl Failure {
    pub fn refused(code: &'static str, detail: impl Into<String>) -> Self {
        Self { certainty: Certainty::Refused, code, detail: detail.into() }
    }

    pub fn unknown(code: &'static str, detail: impl Into<String>) -> Self {
        Self { certainty: Certainty::Unknown, code, detail: detail.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.certainty {
            Certainty::Refused => write!(f, "{} ({})", self.detail, self.code),
            Certainty::Unknown => write!(f, "{} ({}; it may be stored all the same)", self.detail, self.code),
        }
    }
}

impl std::error::Error for Failure {}
