//! What becomes of an event that was not delivered: another try, or the end of its tries.

use super::Config;
use super::dead_letter::Reason;
use crate::core::Moment;
use crate::core::breaker::{Attempt, Breaker};
use crate::core::lanes::{Next, Trouble};
use crate::core::verdict::Verdict;

/// Judges one failed attempt by the destination's health at its end, and keeps the event's own account.
pub(super) fn judge(
    config: &Config,
    breaker: &mut Breaker,
    attempt: &Attempt,
    verdict: Verdict,
    trouble: &mut Trouble,
    now: Moment,
    random: u64,
) -> (Next, Option<Reason>) {
    let judgement = breaker.failed(attempt, verdict, now);
    if trouble.failures == 0 {
        trouble.first_failure = now;
    }
    trouble.failures = trouble.failures.saturating_add(1);
    if breaker.is_void(trouble.mark) {
        trouble.tries_since_mark = 0;
    }
    if trouble.mark != judgement.good_mark {
        trouble.tries += std::mem::take(&mut trouble.tries_since_mark);
        trouble.mark = judgement.good_mark;
    }
    if judgement.counts {
        trouble.tries_since_mark += 1;
    }
    let refused = match verdict {
        Verdict::Refused => {
            let first = *trouble.first_refused.get_or_insert(now);
            breaker.refused_acts(attempt, first, now)
        }
        _ => {
            trouble.first_refused = None;
            false
        }
    };
    if refused {
        return (Next::GiveUp, Some(Reason::Refused));
    }
    if judgement.counts && trouble.tries + trouble.tries_since_mark >= config.attempts {
        return (Next::GiveUp, Some(Reason::Exhausted));
    }
    let asked = match verdict {
        Verdict::Retry { after } | Verdict::Busy { after } => after.map(|after| after.min(config.retry_after_max)),
        Verdict::Refused | Verdict::Unreachable | Verdict::Drilled => None,
    };
    let delay = asked.unwrap_or_else(|| config.backoff.delay(trouble.failures, random));
    (Next::Retry { at: now.saturating_add(delay) }, None)
}
