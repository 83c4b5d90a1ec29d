//! The outcome of a write. There are three everywhere: *ok* (`Ok(T)`), *refused* (certainly not stored), and *unknown*
//! (after a time-out or a broken connection: it may be stored). Code that treats unknown as refused is a defect.

/// How a part of the process ended after it was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All work was finished: every request is answered, and every delivery is committed.
    Drained,
    /// `--drain` or a second signal ended some work early. Unfinished deliveries will be made again. A client that got no
    /// answer must send its request again.
    WorkLeft,
}

impl Ended {
    /// Combines the ends of two parts of one process.
    pub fn and(self, other: Self) -> Self {
        if self == Self::Drained { other } else { self }
    }
}

/// Whether a failed write may have been stored nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// It is certainly not stored, so sending it again makes no duplicate.
    Refused,
    /// It may be stored, or may still become stored.
    Unknown,
}

impl Certainty {
    /// What the text of a failure adds for people.
    fn hint(self) -> &'static str {
        match self {
            Self::Refused => "",
            Self::Unknown => "; it may be stored nevertheless",
        }
    }
}

/// A write to a log or a group that is not known to have succeeded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({code}{})", certainty.hint())]
pub struct Failure {
    pub certainty: Certainty,
    /// A stable word for programs, in kebab-case: `log-full`, `log-busy`, `event-too-large`, ….
    pub code: &'static str,
    /// Text for people: a lower-case fragment that says what happened and what to do.
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
