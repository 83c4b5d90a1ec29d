//! What a destination says of itself in the log: an outage from its first failure to the next delivery, events that were
//! given up, and users that are stuck while there is no outage.
//!
//! ```text
//!  a worker's reports and ticks ──▶ look ──▶ one line when it goes out ── each minute ──▶ one at the next delivery
//!                                     └────▶ the number of lines that were suppressed, a minute later at most
//! ```
//!
//! One [`Notices`] a destination and process, shared by the owners of its partitions. Lines are written while no lock is
//! held: standard error may be slow. Every answer of a destination is
//! escaped and cut before it is shown: it may echo a payload.

use crate::core::Moment;
use crate::core::breaker::{BreakerSnapshot, OpenCause};
use crate::core::event::Event;
use crate::core::lanes::FailureHistory;
use crate::core::text;
use crate::core::verdict::Verdict;
use crate::limits::{
    LOG_ANSWER_BYTES_MAX, LOG_REMINDER_INTERVAL, LOG_REPEAT_INTERVAL, LOG_UNREACHABLE_BYTES_MAX, LOG_USER_BYTES_MAX,
};
use crate::log_limiter::Budget;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What waits in one partition.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    /// Users with events in memory that are not settled.
    pub(super) users: usize,
    /// Events of the log that are not settled, as far as the end of the log is known.
    pub(super) lag: u64,
}

/// The log lines of one destination, with their limits.
#[derive(Debug)]
pub(super) struct Notices {
    destination: String,
    /// `host:port` of the destination, or its file.
    address: Option<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    outage: OutageLines,
    /// Why the last attempt failed that failed in an outage.
    cause: String,
    gave_up: Budget,
    stuck: Budget,
    backlogs: BTreeMap<u32, Backlog>,
}

/// An event that was given up, for its line.
#[derive(Debug)]
pub(super) struct GaveUp<'a> {
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) user: Option<&'a [u8]>,
    pub(super) id: &'a str,
    pub(super) reason: &'static str,
    pub(super) attempts: u32,
    pub(super) answer: &'a str,
}

/// A user whose next event fails again and again while the breaker is closed, for its line.
#[derive(Debug)]
pub(super) struct Stuck {
    offset: i64,
    user: String,
    id: String,
    attempts: u32,
    tries: u32,
    /// How long ago its first attempt failed.
    failing: Duration,
    answer: String,
    /// Other users were served meanwhile.
    others_are_served: bool,
}

impl Stuck {
    pub(super) fn new(event: &Event, id: &str, history: &FailureHistory, others_are_served: bool, now: Moment) -> Self {
        Self {
            offset: event.offset,
            user: shown_user(event.record.key()),
            id: text::shown(id.as_bytes(), LOG_USER_BYTES_MAX),
            attempts: history.failures,
            tries: history.tries.saturating_add(history.tries_since_mark),
            failing: now.saturating_sub(history.first_failure),
            answer: history.answer.to_string(),
            others_are_served,
        }
    }
}

/// What a line about an outage shows.
struct State {
    open: Option<OpenCause>,
    cause: String,
    users: usize,
    lag: u64,
}

impl Notices {
    pub(super) fn new(destination: &str, address: Option<String>) -> Self {
        Self { destination: destination.to_owned(), address, inner: Mutex::default() }
    }

    /// An attempt failed while the breaker was open, or opened it.
    pub(super) fn failed_in_outage(&self, verdict: Verdict, answer: &str) {
        self.inner().cause = cause(verdict, answer);
    }

    /// What waits in a partition now. `None`: it is not owned any more.
    pub(super) fn waits(&self, partition: u32, backlog: Option<Backlog>) {
        let mut inner = self.inner();
        match backlog {
            Some(backlog) => _ = inner.backlogs.insert(partition, backlog),
            None => _ = inner.backlogs.remove(&partition),
        }
    }

    /// Says what has to be said now. Asked whenever an outage begins or ends, and with every tick.
    pub(super) fn look(&self, breaker: &BreakerSnapshot, now: Moment) {
        let (line, state, suppressed) = {
            let mut inner = self.inner();
            let users = inner.backlogs.values().map(|backlog| backlog.users).sum();
            let lag = inner.backlogs.values().map(|backlog| backlog.lag).sum();
            let line = inner.outage.look(breaker.out_since, users > 0, now);
            let state = line.map(|_| State { open: breaker.open, cause: inner.cause.clone(), users, lag });
            (line, state, (inner.gave_up.take_overdue(now), inner.stuck.take_overdue(now)))
        };
        if let (Some(line), Some(state)) = (line, state) {
            self.say(line, &state);
        }
        self.say_suppressed(suppressed);
    }

    /// The dead letter of this event is stored.
    pub(super) fn gave_up(&self, event: &GaveUp<'_>, now: Moment) {
        let (suppressed, allowed) = {
            let mut inner = self.inner();
            (inner.gave_up.take_overdue(now), inner.gave_up.allows(now))
        };
        self.say_suppressed((suppressed, None));
        if !allowed {
            return;
        }
        let GaveUp { partition, offset, user, id, reason, attempts, answer } = *event;
        let (destination, user, answer) = (self.destination.as_str(), shown_user(user), shown(answer));
        let id = text::shown(id.as_bytes(), LOG_USER_BYTES_MAX);
        tracing::warn!(
            destination,
            partition,
            offset,
            user,
            id,
            reason,
            attempts,
            answer,
            "gave up an event: it is kept as a dead letter"
        );
    }

    /// Whether a line about a stuck user may be written now. One that may not is counted.
    pub(super) fn allows_stuck(&self, now: Moment) -> bool {
        self.inner().stuck.allows(now)
    }

    /// A user is stuck. The line is allowed.
    pub(super) fn stuck(&self, partition: u32, stuck: &Stuck) {
        let Stuck { offset, user, id, attempts, tries, failing, answer, others_are_served } = stuck;
        let what = match others_are_served {
            true => "a user is stuck: its next event keeps failing while other users are served",
            false => "a user is stuck: its next event keeps failing",
        };
        let (destination, failing_s) = (self.destination.as_str(), failing.as_secs());
        tracing::warn!(destination, partition, offset, user, id, attempts, tries, failing_s, answer, "{what}");
    }

    fn say(&self, line: OutageLine, state: &State) {
        let (destination, address) = (self.destination.as_str(), self.address.as_deref());
        let State { open, cause, users, lag } = state;
        match line {
            OutageLine::Began { out, suppressed } => {
                let what = match *open {
                    Some(OpenCause::Unreachable) => {
                        "the destination cannot be reached; its events wait, and none is given up"
                    }
                    Some(OpenCause::NoUserDelivered) => {
                        "the destination fails for every user; its events wait, and none is given up"
                    }
                    Some(OpenCause::Undecided) => "the destination answers again, and has not delivered anything yet",
                    None => "the destination delivers nothing; fewer than 5 users fail, so their tries count",
                };
                let (out_s, suppressed) = (out.as_secs(), NonZero::new(suppressed));
                tracing::warn!(destination, address, cause, users, lag, out_s, suppressed, "{what}");
            }
            OutageLine::Lasts { out } => {
                let out_s = out.as_secs();
                let what = match *open {
                    Some(OpenCause::Unreachable) => "the destination still cannot be reached; its events wait",
                    Some(OpenCause::NoUserDelivered) => "the destination still fails for every user; its events wait",
                    Some(OpenCause::Undecided) => "the destination answers, and still has not delivered anything",
                    None => "the destination still delivers nothing; fewer than 5 users fail, so their tries count",
                };
                tracing::warn!(destination, address, cause, users, lag, out_s, "{what}");
            }
            OutageLine::Ended { out } => {
                let out_s = (out.as_secs_f64() * 1_000.0).round() / 1_000.0;
                tracing::info!(destination, address, users, lag, out_s, "the destination takes events again");
            }
            OutageLine::Suppressed { suppressed } => {
                tracing::warn!(
                    destination,
                    address,
                    cause,
                    suppressed,
                    "the destination had more short outages in the last minute"
                );
            }
        }
    }

    /// How many lines were suppressed: about events that were given up, and about stuck users.
    fn say_suppressed(&self, (gave_up, stuck): (Option<u64>, Option<u64>)) {
        let destination = self.destination.as_str();
        if let Some(suppressed) = gave_up {
            tracing::warn!(
                destination,
                suppressed,
                "gave up more events in the last minute: they are kept as dead letters"
            );
        }
        if let Some(suppressed) = stuck {
            tracing::warn!(destination, suppressed, "more users were stuck in the last minute");
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Counters and texts only: a panic elsewhere leaves nothing half done in it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Notices {
    /// The last counts are told at the end, not lost with it.
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (gave_up, stuck) = (inner.gave_up.take_suppressed(), inner.stuck.take_suppressed());
        self.say_suppressed(((gave_up > 0).then_some(gave_up), (stuck > 0).then_some(stuck)));
    }
}

/// Why an attempt failed. The sentence why a destination cannot be reached ends with what to do about it: it is not cut.
fn cause(verdict: Verdict, answer: &str) -> String {
    match verdict {
        Verdict::Unreachable => text::shown(answer.as_bytes(), LOG_UNREACHABLE_BYTES_MAX),
        Verdict::Retry { .. } | Verdict::Busy { .. } | Verdict::Refused | Verdict::Drilled => shown(answer),
    }
}

fn shown(answer: &str) -> String {
    text::shown(answer.as_bytes(), LOG_ANSWER_BYTES_MAX)
}

/// A user as a log line shows it. Events without a key share one lane a partition.
pub(super) fn shown_user(user: Option<&[u8]>) -> String {
    user.map_or_else(String::new, |user| text::shown(user, LOG_USER_BYTES_MAX))
}

/// What is said of an outage, and when. Pure: it is told the time, and answers with the line that is due.
#[derive(Debug, Default)]
struct OutageLines {
    outage: Option<Outage>,
    /// When the beginning of an outage was said last.
    began_said_at: Option<Moment>,
    /// Outages that ended before their beginning was said.
    suppressed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Outage {
    /// Its first failure.
    since: Moment,
    /// When it was last said. `None`: not yet, since another one was said just before.
    said_at: Option<Moment>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutageLine {
    Began {
        out: Moment,
        /// Outages before it that were not said.
        suppressed: u64,
    },
    Lasts {
        out: Moment,
    },
    Ended {
        out: Moment,
    },
    Suppressed {
        suppressed: u64,
    },
}

impl OutageLines {
    /// If connections to some of a receiver's machines work and others do not, outages begin and end with every answer:
    /// at most one is said in [`LOG_REPEAT_INTERVAL`], and the others are counted.
    fn look(&mut self, out_since: Option<Moment>, anybody_waits: bool, now: Moment) -> Option<OutageLine> {
        let may_begin = self.began_said_at.is_none_or(|at| now >= at.saturating_add(LOG_REPEAT_INTERVAL));
        match (&mut self.outage, out_since) {
            (None, None) => {
                let is_overdue = self.began_said_at.is_none_or(|at| now >= at.saturating_add(LOG_REMINDER_INTERVAL));
                let suppressed = if is_overdue { std::mem::take(&mut self.suppressed) } else { 0 };
                (suppressed > 0).then_some(OutageLine::Suppressed { suppressed })
            }
            (Some(outage), None) => {
                let Outage { since, said_at } = *outage;
                self.outage = None;
                self.suppressed += u64::from(said_at.is_none());
                said_at.map(|_| OutageLine::Ended { out: now.saturating_sub(since) })
            }
            (Some(Outage { since, said_at: Some(said_at) }), Some(out_since)) => {
                // Something was delivered meanwhile, and it failed again at once: the same outage to a reader.
                *since = (*since).min(out_since);
                // If every event was given up and no other has come, an outage is nobody's trouble.
                if !anybody_waits || now < said_at.saturating_add(LOG_REMINDER_INTERVAL) {
                    return None;
                }
                *said_at = now;
                Some(OutageLine::Lasts { out: now.saturating_sub(*since) })
            }
            (unsaid, Some(since)) => {
                let said_at = may_begin.then_some(now);
                *unsaid = Some(Outage { since, said_at });
                if !may_begin {
                    return None;
                }
                self.began_said_at = Some(now);
                let suppressed = std::mem::take(&mut self.suppressed);
                Some(OutageLine::Began { out: now.saturating_sub(since), suppressed })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_outage_is_said_once_each_minute_and_at_its_end() {
        let mut lines = OutageLines::default();
        let out = |seconds| Some(at(seconds));
        assert_eq!(lines.look(None, true, at(1)), None);
        assert_eq!(lines.look(out(9), true, at(10)), Some(OutageLine::Began { out: at(1), suppressed: 0 }));
        assert_eq!(lines.look(out(9), true, at(69)), None);
        assert_eq!(lines.look(out(9), true, at(70)), Some(OutageLine::Lasts { out: at(61) }));
        assert_eq!(lines.look(out(9), true, at(71)), None);
        assert_eq!(lines.look(out(9), false, at(131)), None, "nobody waits");
        assert_eq!(lines.look(out(9), true, at(132)), Some(OutageLine::Lasts { out: at(123) }));
        assert_eq!(lines.look(None, true, at(135)), Some(OutageLine::Ended { out: at(126) }));
        assert_eq!(lines.look(None, true, at(500)), None);
    }

    #[test]
    fn outages_that_come_and_go_with_every_answer_are_counted_and_the_count_is_told() {
        let mut lines = OutageLines::default();
        assert!(matches!(lines.look(Some(at(1)), true, at(1)), Some(OutageLine::Began { .. })));
        assert!(matches!(lines.look(None, true, at(2)), Some(OutageLine::Ended { .. })));
        for second in [3, 5, 7] {
            assert_eq!(lines.look(Some(at(second)), true, at(second)), None);
            assert_eq!(lines.look(None, true, at(second + 1)), None);
        }
        assert_eq!(lines.look(None, true, at(60)), None);
        assert_eq!(lines.look(None, true, at(61)), Some(OutageLine::Suppressed { suppressed: 3 }));
        assert_eq!(lines.look(None, true, at(62)), None);
    }

    #[test]
    fn a_user_and_an_answer_are_shown_escaped_and_bounded() {
        let long = "x".repeat(10_000);
        assert!(shown(&long).len() < LOG_ANSWER_BYTES_MAX + 10 && shown(&long).ends_with('…'));
        assert!(shown_user(Some(long.as_bytes())).len() < LOG_USER_BYTES_MAX + 10);
        assert_eq!(shown_user(Some(b"a\x1b[2J\xff")), "a\\u{1b}[2J\u{fffd}");
        assert_eq!(shown_user(None), "");
        let sentence = format!("the certificate of {}.example:443 has expired. Renew it", "x".repeat(250));
        assert_eq!(cause(Verdict::Unreachable, &sentence), sentence, "what to do is at its end");
        assert_eq!(cause(Verdict::Refused, &sentence), shown(&sentence));
    }

    #[test]
    fn an_outage_that_lasts_is_said_although_another_one_was_just_before() {
        let mut lines = OutageLines::default();
        lines.look(Some(at(1)), true, at(1));
        lines.look(None, true, at(2));
        assert_eq!(lines.look(Some(at(3)), true, at(3)), None);
        assert_eq!(lines.look(Some(at(3)), true, at(11)), Some(OutageLine::Began { out: at(8), suppressed: 0 }));
        assert_eq!(lines.look(None, true, at(12)), Some(OutageLine::Ended { out: at(9) }));
    }
}
