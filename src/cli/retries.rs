//! Flags that say when an event is tried again, and what ends its tries.

use super::{defaults, values};
use crate::core::tries::OnExhausted;
use clap::Args;
use std::time::Duration;

const RETRIES: &str = "Attempts and retries";

/// Flags of attempts and retries. A flag that is not given has the value of the preset (`--retries`).
#[derive(Debug, Args)]
#[command(next_help_heading = RETRIES)]
pub struct RetryFlags {
    /// Preset for the next flags: patient or quick [default: patient; in replay, quick]
    ///
    /// patient: --attempts 0 --give-up-after 24h --backoff 100ms --backoff-max 5m --jitter. For receivers that may be
    /// broken for hours. quick: --attempts 10 --give-up-after never --backoff 100ms --backoff-max 2s. An event ends after
    /// about 11 seconds.
    ///
    /// A flag that is given replaces its part of the preset.
    #[arg(long, value_name = "PRESET", env = "EVENTD_RETRIES", value_parser = retry_preset)]
    pub retries: Option<RetryPreset>,

    /// Failed tries after which the tries of an event end; 0 sets no limit [default: by --retries]
    ///
    /// Tries during an outage of the destination do not count.
    #[arg(long, value_name = "N", env = "EVENTD_ATTEMPTS", value_parser = values::attempts)]
    pub attempts: Option<u32>,

    /// Time after its first failure at which the tries of an event end, or never [default: by --retries]
    ///
    /// The time of an outage does not count. The tries end at the first failure after this time, or after --attempts tries if
    /// that is earlier.
    #[arg(long, value_name = "DURATION", env = "EVENTD_GIVE_UP_AFTER", value_parser = give_up_after)]
    pub give_up_after: Option<GiveUpAfter>,

    /// What happens to an event whose tries have ended: dead-letter, hold, drop or halt
    ///
    /// The tries end by --attempts or --give-up-after, or because the destination refuses the event for good. dead-letter:
    /// the event is kept, and `eventd replay --dead` delivers it again. hold: the user's events wait in the log, in their order,
    /// until `eventd control release` or `give-up`; no other user waits. A replay cannot hold. drop: only a log line is left of it. halt: the
    /// destination stops with exit code 1, and the next start tries the event again. A replay does not follow the variable if
    /// it is hold or drop: it uses dead-letter.
    #[arg(long, value_name = "POLICY", env = "EVENTD_ON_EXHAUSTED", default_value = defaults::ON_EXHAUSTED, value_parser = on_exhausted)]
    pub on_exhausted: OnExhausted,

    /// Delay after the first failure of an event; it doubles with each further failure [default: by --retries]
    #[arg(long, value_name = "DURATION", env = "EVENTD_BACKOFF", value_parser = values::above_zero)]
    pub backoff: Option<Duration>,

    /// Longest delay between two attempts of an event [default: by --retries]
    #[arg(long, value_name = "DURATION", env = "EVENTD_BACKOFF_MAX", value_parser = values::above_zero)]
    pub backoff_max: Option<Duration>,

    /// Randomize each delay: use between half of it and all of it. --jitter=off does not [default: by --retries]
    ///
    /// This spreads the retries of many users over time.
    #[arg(long, value_name = "on|off", env = "EVENTD_JITTER", value_parser = values::on_or_off, num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    pub jitter: Option<bool>,

    /// How long one attempt may take, from connecting to the answer
    #[arg(long, value_name = "DURATION", env = "EVENTD_ATTEMPT_TIMEOUT", default_value = defaults::ATTEMPT_TIMEOUT, value_parser = values::above_zero)]
    pub attempt_timeout: Duration,

    /// Longest Retry-After of a destination that is followed; a longer one is cut to this
    #[arg(long, value_name = "DURATION", env = "EVENTD_RETRY_AFTER_MAX", default_value = defaults::RETRY_AFTER_MAX, value_parser = values::above_zero)]
    pub retry_after_max: Duration,
}

/// A preset of `--retries`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPreset {
    /// For receivers that may be broken for hours.
    Patient,
    /// For drills, tests and receivers that want it over soon.
    Quick,
}

/// The value of `--give-up-after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpAfter {
    Never,
    Time(Duration),
}

/// A duration above zero, or `never`.
fn give_up_after(text: &str) -> Result<GiveUpAfter, String> {
    match text {
        "never" => Ok(GiveUpAfter::Never),
        text => match values::duration(text) {
            Ok(Duration::ZERO) => Err("the value must be above zero: write never to set no limit in time".into()),
            Ok(duration) => Ok(GiveUpAfter::Time(duration)),
            Err(error) => Err(format!("{error}; or write never")),
        },
    }
}

fn on_exhausted(text: &str) -> Result<OnExhausted, String> {
    match text {
        "dead-letter" => Ok(OnExhausted::DeadLetter),
        "hold" => Ok(OnExhausted::Hold),
        "drop" => Ok(OnExhausted::Drop),
        "halt" => Ok(OnExhausted::Halt),
        _ => Err("write dead-letter, hold, drop or halt".into()),
    }
}

fn retry_preset(text: &str) -> Result<RetryPreset, String> {
    match text {
        "patient" => Ok(RetryPreset::Patient),
        "quick" => Ok(RetryPreset::Quick),
        _ => Err("write patient or quick".into()),
    }
}
