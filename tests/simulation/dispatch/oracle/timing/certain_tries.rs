//! The failures that certainly count against the first event of a user: its tries, and the time between them. When they
//! reach a limit, the tries of the event have ended.

use super::TimingRules;
use std::time::Duration;

/// How far the time that an owner counts may be below the true one, because stored times are whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(5);

/// All failures since the breaker is certainly closed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct CertainTries {
    /// The first of them.
    since: Option<Duration>,
    /// Those that count as tries.
    tries: u32,
    /// The last one that counts as a try.
    last_try: Duration,
}

impl CertainTries {
    /// An attempt failed. `counts`: it is a try.
    pub(super) fn failed(&mut self, counts: bool, now: Duration) {
        self.since.get_or_insert(now);
        if counts {
            self.tries += 1;
            self.last_try = now;
        }
    }

    /// Why the event must not be attempted again. A pause stops the time that counts, so `may_pause` says that the time is
    /// not known.
    pub(super) fn have_ended(&self, rules: &TimingRules, may_pause: bool) -> Option<String> {
        if self.tries >= rules.attempts {
            return Some(format!("has used {} tries of {}", self.tries, rules.attempts));
        }
        let limit = rules.give_up_after.filter(|_| !may_pause && self.tries > 0)?;
        let age = self.last_try.saturating_sub(self.since?);
        (age >= limit + ROUNDING).then(|| format!("has failed for {age:?}, and not only for {limit:?}"))
    }

    /// Whether all tries were used before this moment.
    pub(super) fn were_used_up(&self, attempts: u32, before: Duration) -> bool {
        self.tries >= attempts && self.last_try < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::oracle::timing::BackoffRule;

    #[test]
    fn an_event_that_failed_for_longer_than_the_limit_is_reported_at_its_next_attempt() {
        let second = Duration::from_secs;
        let backoff = BackoffRule { first: second(1), max: second(1), jitter: false };
        let rules = |attempts| TimingRules {
            attempts,
            give_up_after: Some(second(5)),
            backoff,
            retry_after_max: second(1),
            concurrency: 1,
            in_flight_events: 1,
            takes_many_users: false,
            window_events: 1,
            window_bytes: 1,
            commit_interval: second(1),
            fetch_events_max: 1,
            call_max: second(1),
            may_list_be_full: false,
            is_calm: true,
            drops: false,
        };
        let mut tries = CertainTries::default();
        tries.failed(false, second(1));
        tries.failed(true, second(5));
        assert_eq!(tries.have_ended(&rules(2), false), None);
        tries.failed(true, second(7));
        assert_eq!(tries.have_ended(&rules(3), true), None);
        for (attempts, why) in [(3, "has failed for 6s"), (2, "has used 2 tries of 2")] {
            let ended = tries.have_ended(&rules(attempts), false).unwrap();
            assert!(ended.starts_with(why), "{ended}");
        }
        assert!(tries.were_used_up(2, second(8)) && !tries.were_used_up(2, second(7)));
    }
}
