//! What a broker's answer means for the batch that was sent. Pure.
//!
//! Kafka's error codes fall into three groups. A code that the broker gives before it writes leaves the batch certainly
//! not stored. A code that it may give after it wrote leaves the batch possibly stored. And some codes say that the
//! broker's record of this producer differs from ours, so resending cannot help.

use crate::core::outcome::FailureCode;
use crate::kafka::{describe, response_error};
use kafka_protocol::ResponseError;

/// The meaning of one broker's answer about one batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BatchOutcome {
    /// All in-sync replicas have it. Its first record got this offset.
    Stored { base_offset: i64 },
    /// The producer sends the same bytes again.
    Retry {
        /// This sending may have stored the batch.
        may_be_stored: bool,
        /// Another broker may lead the partition by now: the producer looks the leader up before it sends again.
        refresh_leader: bool,
        reason: String,
    },
    /// The broker's record of this producer (id, epoch, sequence number) differs from ours. Whether the batch is stored
    /// is unknown, and the same bytes would be rejected again.
    OutOfSequence { reason: String },
    /// The batch is larger than the topic's `max.message.bytes`.
    TooLarge { reason: String },
    /// The broker will never take this batch.
    Refused { code: FailureCode, reason: String },
}

impl BatchOutcome {
    pub(super) fn retry(may_be_stored: bool, refresh_leader: bool, reason: String) -> Self {
        Self::Retry { may_be_stored, refresh_leader, reason }
    }

    /// Translates the error code of one partition in a Produce answer.
    pub(super) fn from_code(code: i16, base_offset: i64) -> Self {
        use ResponseError as E;
        let Some(error) = response_error(code) else { return Self::Stored { base_offset } };
        let reason = describe(error);
        match error {
            // The broker checks these before it writes anything.
            E::CorruptMessage | E::ThrottlingQuotaExceeded => Self::retry(false, false, reason),
            // The broker checks this before it writes, too. But a leader that is cut off from its replicas gives only
            // this code, and the other brokers may have elected a new leader. So the leader is looked up.
            E::NotEnoughReplicas => Self::retry(false, true, reason),
            // Codes 7 and 20: the leader has written the batch, and perhaps some replicas have it. If the leader
            // changes now, the new one may have the batch or may not.
            E::RequestTimedOut | E::NotEnoughReplicasAfterAppend => Self::retry(true, true, reason),
            E::OutOfOrderSequenceNumber
            | E::DuplicateSequenceNumber
            | E::InvalidProducerEpoch
            | E::ProducerFenced
            | E::UnknownProducerId
            | E::InvalidProducerIdMapping => Self::OutOfSequence { reason },
            E::MessageTooLarge | E::RecordListTooLarge => Self::TooLarge { reason },
            // The broker does not say when it failed: it may have been after the write.
            E::UnknownServerError | E::Unknown(_) => Self::retry(true, true, reason),
            // A leader that is replaced while it waits for its replicas answers "not the leader", although it has
            // written the batch. So any retriable code counts as "may be stored".
            error if error.is_retriable() => Self::retry(true, true, reason),
            _ => Self::Refused { code: FailureCode::LogRefused, reason },
        }
    }
}
