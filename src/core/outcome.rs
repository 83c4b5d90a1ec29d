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

/// Defines [`FailureCode`] from one table, so that no variant can be without a word and no test can miss a variant.
macro_rules! failure_codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// What kind of failure it is, for programs. HTTP answers, logs and the documentation name a code by its stable
        /// word in kebab-case.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FailureCode {
            $($(#[$doc])* $variant,)*
        }

        impl FailureCode {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$variant),*];

            /// The stable word of the code.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

failure_codes! {
    /// An append broke off because of a defect in eventd.
    AppendBroken = "append-broken",
    /// An append has no records.
    AppendEmpty = "append-empty",
    /// The records of an append are together larger than one append may be. A smaller append may work.
    AppendTooLarge = "append-too-large",
    /// The brokers have deleted the group's commit because it was too old.
    CommitExpired = "commit-expired",
    /// The process does not hold the group any more, so its commits are refused.
    CommitFenced = "commit-fenced",
    /// A commit's metadata are larger than the brokers accept.
    CommitMetadataTooLarge = "commit-metadata-too-large",
    /// A commit settles events past the end of the log.
    CommitPastEnd = "commit-past-end",
    /// The stored commit cannot be read.
    CommitUnreadable = "commit-unreadable",
    /// An event was not tried because an earlier event of the same request and partition was not stored.
    EarlierEventNotStored = "earlier-event-not-stored",
    /// An event is larger than the log accepts. Sending it again cannot change that.
    EventTooLarge = "event-too-large",
    /// The brokers give this process no right to the group, or to a side topic of it.
    GroupNotAllowed = "group-not-allowed",
    /// The brokers or the group's leader do not admit this member to the group.
    GroupRefused = "group-refused",
    /// The group cannot be used now. A later attempt may succeed.
    GroupUnavailable = "group-unavailable",
    /// The log is in use by others, or too many writes wait for it. A later attempt may succeed.
    LogBusy = "log-busy",
    /// The log has no room: the disk, a quota or `--max-db-bytes` is used up.
    LogFull = "log-full",
    /// This process can never use the log again: the database failed, or its file was damaged.
    LogLost = "log-lost",
    /// The broker will never accept this batch.
    LogRefused = "log-refused",
    /// The log cannot be used now. A later attempt may succeed.
    LogUnavailable = "log-unavailable",
    /// The topic has no partition with this number.
    PartitionMissing = "partition-missing",
    /// The topic does not exist any more.
    TopicMissing = "topic-missing",
    /// The topic was deleted and created again since the group's last commit.
    TopicRemade = "topic-remade",
}

impl std::fmt::Display for FailureCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A write to a log or a group that is not known to have succeeded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({code}{})", certainty.hint())]
pub struct Failure {
    pub certainty: Certainty,
    pub code: FailureCode,
    /// Text for people: a lower-case fragment that says what happened and what to do.
    pub detail: String,
}

impl Failure {
    pub fn refused(code: FailureCode, detail: impl Into<String>) -> Self {
        Self { certainty: Certainty::Refused, code, detail: detail.into() }
    }

    pub fn unknown(code: FailureCode, detail: impl Into<String>) -> Self {
        Self { certainty: Certainty::Unknown, code, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_has_a_word_of_its_own_in_kebab_case() {
        let mut words = HashSet::new();
        for code in FailureCode::ALL {
            let word = code.as_str();
            let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(word.split('-').all(is_part), "{code:?}: {word:?}");
            assert!(words.insert(word), "{code:?} has the word of another code: {word:?}");
            assert_eq!(code.to_string(), word);
        }
    }

    #[test]
    fn a_failure_ends_with_its_code_and_says_whether_the_write_may_be_stored() {
        let refused = Failure::refused(FailureCode::LogFull, "the disk is full");
        assert_eq!(refused.to_string(), "the disk is full (log-full)");
        let unknown = Failure::unknown(FailureCode::LogUnavailable, "no answer");
        assert_eq!(unknown.to_string(), "no answer (log-unavailable; it may be stored nevertheless)");
    }
}
