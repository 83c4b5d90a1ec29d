//! When events are tried again: the flags, and the preset for those that are not given.

use crate::cli::{GiveUpAfter, RetryFlags, RetryPreset, defaults};
use crate::core::backoff::Backoff;
use crate::core::tries::TryPolicy;
use anyhow::ensure;
use std::time::Duration;

/// The policy that these flags select. `preset` is for flags without `--retries`.
pub(super) fn policy(flags: &RetryFlags, preset: RetryPreset) -> anyhow::Result<TryPolicy> {
    let (name, preset) = match flags.retries.unwrap_or(preset) {
        RetryPreset::Patient => ("patient", defaults::PATIENT),
        RetryPreset::Quick => ("quick", defaults::QUICK),
    };
    let first = flags.backoff.unwrap_or(preset.backoff);
    let max = flags.backoff_max.unwrap_or(preset.backoff_max);
    let jitter = flags.jitter.unwrap_or(preset.jitter);
    ensure!(
        first <= max,
        "--backoff {} must not be above --backoff-max {}: lower --backoff, or raise --backoff-max",
        with_origin(first, flags.backoff, name),
        with_origin(max, flags.backoff_max, name)
    );
    Ok(TryPolicy {
        attempts_max: flags.attempts.map_or(preset.attempts_max, |attempts| (attempts > 0).then_some(attempts)),
        give_up_after: match flags.give_up_after {
            Some(GiveUpAfter::Time(time)) => Some(time),
            Some(GiveUpAfter::Never) => None,
            None => preset.give_up_after,
        },
        on_exhausted: flags.on_exhausted,
        backoff: Backoff::new(first, max, jitter).map_err(anyhow::Error::msg)?,
        retry_after_max: flags.retry_after_max,
    })
}

/// The value as people write it. If the flag was not given, it also says which preset the value is from.
fn with_origin(value: Duration, given: Option<Duration>, preset: &str) -> String {
    let shown = humantime::format_duration(value);
    if given.is_some() { shown.to_string() } else { format!("{shown} (from --retries {preset})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    /// The policy of `eventd dispatch --dest null:` with these flags.
    fn policy_of(typed: &str) -> TryPolicy {
        checked(typed).unwrap()
    }

    fn checked(typed: &str) -> anyhow::Result<TryPolicy> {
        let arguments = ["eventd", "dispatch", "--dest", "null:"].into_iter().chain(typed.split_whitespace());
        let cli = Cli::read(arguments.map(Into::into)).unwrap();
        let Command::Dispatch(flags) = cli.command else { unreachable!("dispatch was typed") };
        policy(&flags.delivery.retries, RetryPreset::Patient)
    }

    #[test]
    fn a_delay_above_the_longest_one_is_refused_with_the_origin_of_both() {
        for (typed, says) in [
            ("--backoff 10m", "--backoff 10m must not be above --backoff-max 5m (from --retries patient)"),
            ("--retries quick --backoff 3s", "--backoff 3s must not be above --backoff-max 2s (from --retries quick)"),
            (
                "--backoff-max 50ms",
                "--backoff 100ms (from --retries patient) must not be above --backoff-max 50ms: lower",
            ),
            ("--backoff 3s --backoff-max 1s", "--backoff 3s must not be above --backoff-max 1s: lower --backoff, or"),
        ] {
            let error = checked(typed).unwrap_err().to_string();
            assert!(error.starts_with(says), "{typed}: {error}");
        }
    }

    #[test]
    fn a_preset_sets_what_no_flag_sets() {
        let day = Some(Duration::from_secs(86_400));
        let backoff =
            |max_s, jitter| Backoff::new(Duration::from_millis(100), Duration::from_secs(max_s), jitter).unwrap();
        let patient = policy_of("");
        assert_eq!((patient.attempts_max, patient.give_up_after, patient.backoff), (None, day, backoff(300, true)));
        assert_eq!(policy_of("--retries patient"), patient);
        let quick = policy_of("--retries quick");
        assert_eq!((quick.attempts_max, quick.give_up_after, quick.backoff), (Some(10), None, backoff(2, false)));
        assert_eq!(policy_of("--attempts 3"), TryPolicy { attempts_max: Some(3), ..patient });
        assert_eq!(policy_of("--retries quick --attempts 0"), TryPolicy { attempts_max: None, ..quick });
        assert_eq!(policy_of("--give-up-after never"), TryPolicy { give_up_after: None, ..patient });
        assert_eq!(policy_of("--retries quick --give-up-after 1d"), TryPolicy { give_up_after: day, ..quick });
        assert_eq!(policy_of("--backoff-max 2s --jitter=off").backoff, backoff(2, false));
        assert_eq!(policy_of("--retries quick --jitter").backoff, backoff(2, true));
    }
}
