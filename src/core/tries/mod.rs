//! The account of an event's tries: what a failed attempt counts, when tries are taken back, and what comes next.
//!
//! ```text
//!  failed attempt ──▶ breaker: is it a try? ──▶ FailureHistory of the event ──┬──▶ retry at a moment
//!                     (and its health epoch)                                  └──▶ the tries end: exhausted, or refused
//!                                                                                    │ --on-exhausted
//!                                                            dead letter ◀───────────┼──────┬──────────┐
//!                                                                                   hold   drop       halt
//! ```
//!
//! # What ends the tries of an event
//!
//! The number of tries (`--attempts`) or the time since the first failure (`--give-up-after`), whichever comes first; and
//! a refusal that is believed. Both limits look only at failures in good health. The time is read from the breaker's
//! [healthy time](Breaker::healthy_time), which stands still during an outage. A destination that answers 429 uses up no
//! try, but time passes.
//!
//! # Which attempts are tries
//!
//! The [`Breaker`] decides whether a failed attempt counts as a try of its event. An attempt that failed because of the
//! destination does not count. Sometimes that is known only later: an outage by answers looks like a few bad events
//! until five users have failed. So a try is *revocable* at first. It is counted under the breaker's current *health
//! epoch*, and one of two things ends that epoch:
//!
//! - An event is delivered in good health. The breaker begins a new epoch, and the tries under the old one are final.
//! - The health turns bad. The breaker declares the epoch void, and the tries under it are taken back.
//!
//! ```text
//!  attempts of one event      ✗    ✗  │   ✗    ✗    ✗  │  ✗   …
//!  health epoch               7    7  │   8    8    8  │  9
//!                        delivery ────┘   outage: 8 is void ──▶ tries: 2 final (epoch 7) + 1 revocable (9)
//! ```
//!
//! Nothing visits the events when an epoch turns void. Each event looks at its own epoch at its next failure, so an outage
//! with a full window costs nothing at that moment.
//!
//! # Which refusal is believed
//!
//! A refusal (a status like 400) gives the event up long before its tries are used up, so it has to be certain. The
//! first refusal is only remembered. A later one gives up the event if the breaker shows that other users were served
//! since the first one began (or if 10 s have passed). Any answer in between that is not a refusal starts this anew.
//!
//! # Which answer a dead letter shows
//!
//! It shows the whole answer of the last attempt. The history keeps only the beginning of that answer, for the log line
//! about a stuck user, because every lane that fails holds one.

mod history;

pub use history::FailureHistory;

use super::backoff::Backoff;
use super::breaker::{Attempt, Breaker};
use super::progress::FailedHead;
use super::verdict::{Failed, Verdict};
use super::{BothClocks, Moment};
use std::fmt;
use std::time::Duration;

/// When an event is tried again, when its tries end, and what happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryPolicy {
    /// Tries of an event before they end (`--attempts`). `None`: no limit.
    pub attempts_max: Option<u32>,
    /// The time after the first failure at which the tries of an event end (`--give-up-after`). The time of outages does
    /// not count. `None`: no limit.
    pub give_up_after: Option<Duration>,
    pub on_exhausted: OnExhausted,
    pub backoff: Backoff,
    /// The longest `Retry-After` of a destination that is obeyed.
    pub retry_after_max: Duration,
}

/// What happens to an event whose tries have ended (`--on-exhausted`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExhausted {
    /// It is kept as a dead letter, and the user's next event follows.
    DeadLetter,
    /// It stays, and its user waits until an operator decides.
    Hold,
    /// It is settled without a dead letter, and the user's next event follows.
    Drop,
    /// The destination stops with an error.
    Halt,
}

impl fmt::Display for OnExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeadLetter => "dead-letter",
            Self::Hold => "hold",
            Self::Drop => "drop",
            Self::Halt => "halt",
        })
    }
}

/// What happens next to an event that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is attempted again, but not before this moment.
    Retry { at: Moment },
    /// It becomes a dead letter.
    GiveUp(GiveUpReason),
    /// It stays, and its user waits for an operator.
    Hold(GiveUpReason),
    /// It is settled without a dead letter.
    Drop(GiveUpReason),
    /// It stays, and the destination stops.
    Halt(GiveUpReason),
}

/// Why the tries of an event have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUpReason {
    /// It has used all tries of `--attempts`, or the time of `--give-up-after`.
    Exhausted,
    /// The destination will never take it.
    Refused,
    /// An operator gave it up, with `eventd control give-up`.
    Operator,
}

impl GiveUpReason {
    /// The word in the header `eventd-reason` of a dead letter.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Refused => "refused",
            Self::Operator => "operator",
        }
    }
}

impl TryPolicy {
    /// Adds a failed attempt to the breaker and to its event's history, and decides what comes next. `random` is any
    /// number, a new one for each call: the jitter of the backoff.
    ///
    /// # Panics
    /// If the verdict [says nothing](Verdict::says_nothing): then the event has not failed, and nothing is decided.
    pub fn judge(
        &self,
        breaker: &mut Breaker,
        attempt: &Attempt,
        failed: &Failed,
        history: &mut FailureHistory,
        now: Moment,
        random: u64,
    ) -> Decision {
        let verdict = failed.verdict;
        assert!(!verdict.says_nothing(), "{verdict:?} is not a failure of an event");
        let judgement = breaker.failed(attempt, verdict, now);
        history.add_failure(now, breaker.healthy_time(now));
        history.add_try(breaker, judgement);
        history.set_answer(&failed.answer);
        let is_refused = match verdict {
            Verdict::Refused => history.is_refused_for_good(breaker, attempt, judgement, now),
            // A fault drill never reached the destination, so it does not contradict an earlier refusal.
            Verdict::Drilled | Verdict::BatchFailed | Verdict::CutOff => false,
            Verdict::Retry { .. } | Verdict::Busy { .. } | Verdict::Unreachable => {
                history.first_refusal = None;
                false
            }
        };
        if is_refused {
            return self.end_tries(GiveUpReason::Refused);
        }
        // An attempt that does not count never gives up, even if taking tries back is still to come for this event.
        let has_no_try_left = judgement.counts && self.attempts_max.is_some_and(|max| history.tries() >= max);
        // A busy destination uses up no try, but it must not keep an event for ever.
        let may_age = judgement.counts || (matches!(verdict, Verdict::Busy { .. }) && breaker.is_healthy());
        let is_too_old = may_age && self.give_up_after.is_some_and(|limit| history.counted_time() >= limit);
        if has_no_try_left || is_too_old {
            return self.end_tries(GiveUpReason::Exhausted);
        }
        let delay = match verdict {
            Verdict::Retry { after } | Verdict::Busy { after } => after.map(|after| after.min(self.retry_after_max)),
            Verdict::Refused | Verdict::Unreachable | Verdict::Drilled | Verdict::BatchFailed | Verdict::CutOff => None,
        };
        history.set_asked_to_wait(delay.is_some());
        let delay = delay.unwrap_or_else(|| {
            let delay = self.backoff.delay(history.backoff_steps(), random);
            judgement.delay_max.map_or(delay, |max| delay.min(max))
        });
        Decision::Retry { at: now.saturating_add(delay) }
    }

    /// When the next attempt of an event is due whose account was stored. If the wall clock was changed meanwhile, the
    /// event waits no longer than any event does.
    pub fn next_try(&self, stored: &FailedHead, now: BothClocks) -> Moment {
        now.moment_at(stored.next_try_ms).min(now.moment.saturating_add(self.delay_max()))
    }

    /// The longest delay between two attempts of an event.
    pub fn delay_max(&self) -> Duration {
        self.backoff.max().max(self.retry_after_max)
    }

    fn end_tries(&self, reason: GiveUpReason) -> Decision {
        match self.on_exhausted {
            OnExhausted::DeadLetter => Decision::GiveUp(reason),
            OnExhausted::Hold => Decision::Hold(reason),
            OnExhausted::Drop => Decision::Drop(reason),
            OnExhausted::Halt => Decision::Halt(reason),
        }
    }
}

#[cfg(test)]
mod tests;
