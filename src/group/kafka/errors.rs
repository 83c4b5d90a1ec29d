//! How errors of brokers become failures of a group.

use crate::core::outcome::{Failure, FailureCode};
use crate::kafka::Error;

pub(super) fn unavailable(error: Error) -> Failure {
    match error {
        Error::NotAllowed(why) => Failure::refused(FailureCode::GroupNotAllowed, why),
        Error::NoAnswer(why) => Failure::unknown(FailureCode::GroupUnavailable, why),
        error => Failure::refused(FailureCode::GroupUnavailable, error.to_string()),
    }
}
