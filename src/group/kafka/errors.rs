//! How errors of brokers become failures of a group.

use crate::core::outcome::Failure;
use crate::kafka::Error;

/// The code of every failure that may pass.
pub(super) const UNAVAILABLE: &str = "group-unavailable";

/// The code of a failure if the brokers give this process no right to the group, or to a side topic of it.
pub(super) const NOT_ALLOWED: &str = "group-not-allowed";

pub(super) fn unavailable(error: Error) -> Failure {
    match error {
        Error::NotAllowed(why) => Failure::refused(NOT_ALLOWED, why),
        Error::NoAnswer(why) => Failure::unknown(UNAVAILABLE, why),
        error => Failure::refused(UNAVAILABLE, error.to_string()),
    }
}
