//! When events are tried again: the flags, and the preset for those that are not given.

use crate::cli::{GiveUpAfter, RetryFlags, RetryPreset, defaults};
use crate::core::backoff::Backoff;
use crate::core::tries::TryPolicy;

/// The policy that these flags select. `preset` is for flags without `--retries`.
pub(super) fn policy(flags: &RetryFlags, preset: RetryPreset) -> anyhow::Result<TryPolicy> {
    let preset = match flags.retries.unwrap_or(preset) {
        RetryPreset::Patient => defaults::PATIENT,
        RetryPreset::Quick => defaults::QUICK,
    };
    let first = flags.backoff.unwrap_or(preset.backoff);
    let max = flags.backoff_max.unwrap_or(preset.backoff_max);
    let jitter = flags.jitter.unwrap_or(preset.jitter);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use std::time::Duration;

    /// The policy of `eventd dispatch --dest null:` with these flags.
    fn policy_of(typed: &str) -> TryPolicy {
        let arguments = ["eventd", "dispatch", "--dest", "null:"].into_iter().chain(typed.split_whitespace());
        let cli = Cli::read(arguments.map(Into::into)).unwrap();
        let Command::Dispatch(flags) = cli.command else { unreachable!("dispatch was typed") };
        policy(&flags.delivery.retries, RetryPreset::Patient).unwrap()
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
