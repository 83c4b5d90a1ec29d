//! The log lines of one destination: outages from the first failure to the next delivery, events that were given up, and
//! users that are stuck while there is no outage.
//!
//! ```text
//!  reports and ticks of the workers ──▶ write_due_lines ──┬─▶ an outage: at its beginning, each minute, at its end
//!                                                         └─▶ the number of suppressed lines, a minute later at most
//! ```
//!
//! All workers of a destination share one [`Notices`]. Lines are written while no lock is held, because standard error
//! may be slow. An answer of a destination is escaped and cut before it is shown, because it may echo a payload.

use super::outage_lines::{OutageLine, OutageLines};
use crate::core::Moment;
use crate::core::breaker::{BreakerSnapshot, OpenCause};
use crate::core::event::Event;
use crate::core::text::{self, shell_flag};
use crate::core::tries::{FailureHistory, GiveUpReason};
use crate::core::verdict::Verdict;
use crate::destination::spec::dest_flag;
use crate::log_limiter::{Budget, LogLimiter};
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of a user or an id in a log line. Clients choose them, so they may be long.
const LOG_USER_BYTES_MAX: usize = 100;

/// Bytes of a destination's answer in a log line.
const ANSWER_BYTES_MAX: usize = 200;

/// Bytes of the reason in a log line why a destination cannot be reached: whole sentences, with a host or a path in them.
const UNREACHABLE_BYTES_MAX: usize = 1_000;

/// What waits in one partition.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backlog {
    /// Users with unsettled events in memory.
    pub(super) users: usize,
    /// Events that were not read yet, and those in memory. Those that parked users have only in the log are left out:
    /// after a restart, their number is known only when they are read. `None`: the end of the log was not seen yet.
    pub(super) lag: Option<u64>,
}

/// Writes the log lines of one destination within their limits.
#[derive(Debug)]
pub(super) struct Notices {
    destination: String,
    /// `host:port` of the destination, or its file.
    address: Option<String>,
    state: Mutex<NoticesState>,
    failed_batches: LogLimiter,
}

#[derive(Debug, Default)]
struct NoticesState {
    outage_lines: OutageLines,
    /// Why the last attempt of an outage failed.
    cause: String,
    given_up: Budget,
    dropped: Budget,
    held: Budget,
    stuck_users: Budget,
    backlogs: BTreeMap<u32, Backlog>,
}

/// Lines that were suppressed and are due to be counted in a line.
#[derive(Debug, Default)]
struct SuppressedLines {
    given_up: Option<u64>,
    dropped: Option<u64>,
    held: Option<u64>,
    stuck_users: Option<u64>,
}

/// An event whose tries have ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct GivenUpEvent<'a> {
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) user: Option<&'a [u8]>,
    pub(super) id: &'a str,
    pub(super) reason: &'static str,
    pub(super) attempts: u32,
    pub(super) answer: &'a str,
}

impl<'a> GivenUpEvent<'a> {
    pub(super) fn new(
        event: &'a Event,
        id: &'a str,
        history: &FailureHistory,
        partition: u32,
        reason: GiveUpReason,
        answer: &'a str,
    ) -> Self {
        let (user, attempts) = (event.record.key(), history.failures);
        Self { partition, offset: event.offset, user, id, reason: reason.as_str(), attempts, answer }
    }
}

/// A user whose next event fails again and again while the breaker is closed.
#[derive(Debug)]
pub(super) struct StuckUser {
    offset: i64,
    /// `None`: events without a key.
    user: Option<Box<[u8]>>,
    id: String,
    attempts: u32,
    tries: u32,
    failing_for: Duration,
    /// The time until the next attempt.
    next_try_in: Duration,
    answer: String,
    others_are_served: bool,
}

impl StuckUser {
    pub(super) fn new(
        event: &Event,
        id: &str,
        history: &FailureHistory,
        next_try: Option<Moment>,
        others_are_served: bool,
        now: Moment,
    ) -> Self {
        Self {
            offset: event.offset,
            user: event.record.key().map(Into::into),
            id: shown_id(id),
            attempts: history.failures,
            tries: history.tries(),
            failing_for: history.failing_for(now),
            next_try_in: next_try.map_or(Duration::ZERO, |at| at.saturating_sub(now)),
            answer: history.answer.to_string(),
            others_are_served,
        }
    }
}

/// What a line about an outage shows.
struct OutageDetails {
    open: Option<OpenCause>,
    cause: String,
    users: usize,
    /// `None`: the lag of an owned partition is not known yet.
    lag: Option<u64>,
}

impl Notices {
    pub(super) fn new(destination: &str, address: Option<String>) -> Self {
        Self {
            destination: destination.to_owned(),
            address,
            state: Mutex::default(),
            failed_batches: LogLimiter::default(),
        }
    }

    /// An attempt failed while the breaker was open, or opened it.
    pub(super) fn failed_in_outage(&self, verdict: Verdict, answer: &str) {
        self.state().cause = shown_cause(verdict, answer);
    }

    /// A run of several events failed as a whole, so its events go in shorter runs.
    pub(super) fn batch_failed(&self, partition: u32, events: usize, answer: &str) {
        if let Some(suppressed) = self.failed_batches.allows("failed batch") {
            let (destination, answer) = (self.destination.as_str(), shown_answer(answer));
            let message = "a batch failed as a whole: its events are sent again in smaller batches. \
                If this repeats, the receiver takes no batches of this length: use a smaller --batch";
            tracing::warn!(destination, partition, events, answer, suppressed, "{message}");
        }
    }

    /// What waits in an owned partition now.
    pub(super) fn set_backlog(&self, partition: u32, backlog: Backlog) {
        self.state().backlogs.insert(partition, backlog);
    }

    /// The partition is not owned any more.
    pub(super) fn remove_backlog(&self, partition: u32) {
        self.state().backlogs.remove(&partition);
    }

    /// Writes the lines that are due. Called when an outage begins or ends, and with every tick.
    pub(super) fn write_due_lines(&self, breaker: &BreakerSnapshot, owned_partitions: usize, now: Moment) {
        let (outage, suppressed) = {
            let mut state = self.state();
            let users = state.backlogs.values().map(|backlog| backlog.users).sum();
            // A sum that leaves partitions out would look like a small backlog.
            let is_complete = state.backlogs.len() >= owned_partitions;
            let lag = state.backlogs.values().map(|backlog| backlog.lag).sum::<Option<u64>>().filter(|_| is_complete);
            let line = state.outage_lines.due(breaker.outage_began, users > 0, now);
            let details = |cause: &str| OutageDetails { open: breaker.open, cause: cause.to_owned(), users, lag };
            (line.map(|line| (line, details(&state.cause))), state.take_overdue(now))
        };
        if let Some((line, details)) = outage {
            self.write_outage_line(line, &details);
        }
        self.write_suppressed(&suppressed);
    }

    /// The dead letter of this event is stored.
    pub(super) fn gave_up(&self, event: &GivenUpEvent<'_>, now: Moment) {
        if self.allows(now, |state| &mut state.given_up) {
            let destination = &self.destination;
            let replay = format!("eventd replay {}=… --dead", shell_flag("--dest", destination));
            let replay = match event.user {
                Some(user) => about_user(&replay, user),
                None => replay,
            };
            let message = format!(
                "gave up an event: it is kept as a dead letter. To deliver it again: {replay} (with the same --url and \
                 --topic)"
            );
            self.write_given_up(event, &message);
        }
    }

    /// This event is settled without a dead letter.
    pub(super) fn dropped(&self, event: &GivenUpEvent<'_>, now: Moment) {
        if self.allows(now, |state| &mut state.dropped) {
            self.write_given_up(event, "gave up an event: it is dropped and will never be delivered");
        }
    }

    /// The user of this event is held until an operator decides.
    pub(super) fn held(&self, event: &GivenUpEvent<'_>, now: Moment) {
        if self.allows(now, |state| &mut state.held) {
            let to_act = self.to_act(event.user, &["release", "give-up"]);
            let message = format!("a user is held, because the tries of its next event have ended{to_act}");
            self.write_given_up(event, &message);
        }
    }

    /// How an operator acts on a user: one whole command, and the other ones by their word. Events without a key have no
    /// user that a command could name.
    fn to_act(&self, user: Option<&[u8]>, commands: &[&str]) -> String {
        let (Some(user), Some((first, others))) = (user, commands.split_first()) else { return String::new() };
        let command = control_command(first, &self.destination, user);
        format!(". To act: {command} (or: {}; with the same --url and --topic)", others.join(", "))
    }

    fn write_given_up(&self, event: &GivenUpEvent<'_>, message: &str) {
        let GivenUpEvent { partition, offset, user, id, reason, attempts, answer } = *event;
        let (destination, user, id) = (self.destination.as_str(), shown_user(user), shown_id(id));
        let answer = shown_answer(answer);
        tracing::warn!(destination, partition, offset, user, id, reason, attempts, answer, "{message}");
    }

    /// Whether a line of this budget may be written now. Otherwise it is counted. Counts that are due are written first.
    fn allows(&self, now: Moment, budget: impl FnOnce(&mut NoticesState) -> &mut Budget) -> bool {
        let (overdue, allowed) = {
            let mut state = self.state();
            (state.take_overdue(now), budget(&mut state).allows(now))
        };
        self.write_suppressed(&overdue);
        allowed
    }

    /// Whether a line about a stuck user may be written now. Otherwise it is counted.
    pub(super) fn allows_stuck_user(&self, now: Moment) -> bool {
        self.state().stuck_users.allows(now)
    }

    /// Writes the line about a stuck user, which [`allows_stuck_user`](Self::allows_stuck_user) has allowed.
    pub(super) fn stuck_user(&self, partition: u32, stuck: &StuckUser) {
        let StuckUser { offset, user, id, attempts, tries, failing_for, next_try_in, answer, others_are_served } =
            stuck;
        let while_others = if *others_are_served { " while other users are served" } else { "" };
        let to_act = self.to_act(user.as_deref(), &["retry", "hold", "give-up"]);
        let user = shown_user(user.as_deref());
        let message = format!("a user is stuck: its next event keeps failing{while_others}{to_act}");
        let destination = self.destination.as_str();
        let (failing_s, next_try_s) = (failing_for.as_secs(), next_try_in.as_secs());
        tracing::warn!(
            destination,
            partition,
            offset,
            user,
            id,
            attempts,
            tries,
            failing_s,
            next_try_s,
            answer,
            "{message}"
        );
    }

    fn write_outage_line(&self, line: OutageLine, details: &OutageDetails) {
        let (destination, address) = (self.destination.as_str(), self.address.as_deref());
        let OutageDetails { open, cause, users, lag } = details;
        match line {
            OutageLine::Began { lasted, suppressed } => {
                let message = match *open {
                    Some(OpenCause::Unreachable) => {
                        "the destination cannot be reached; its events wait, and none is given up"
                    }
                    Some(OpenCause::NoUserDelivered) => {
                        "the destination fails for every user; its events wait, and none is given up"
                    }
                    Some(OpenCause::Undecided) => "the destination answers again, and has not delivered anything yet",
                    None => "the destination delivers nothing; fewer than 5 users fail, so their tries count",
                };
                let (out_s, suppressed) = (lasted.as_secs(), NonZero::new(suppressed));
                tracing::warn!(destination, address, cause, users, lag, out_s, suppressed, "{message}");
            }
            OutageLine::Lasts { lasted } => {
                let out_s = lasted.as_secs();
                let message = match *open {
                    Some(OpenCause::Unreachable) => "the destination still cannot be reached; its events wait",
                    Some(OpenCause::NoUserDelivered) => "the destination still fails for every user; its events wait",
                    Some(OpenCause::Undecided) => "the destination answers, and still has not delivered anything",
                    None => "the destination still delivers nothing; fewer than 5 users fail, so their tries count",
                };
                tracing::warn!(destination, address, cause, users, lag, out_s, "{message}");
            }
            OutageLine::Ended { lasted } => {
                let out_s = (lasted.as_secs_f64() * 1_000.0).round() / 1_000.0;
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

    fn write_suppressed(&self, lines: &SuppressedLines) {
        let destination = self.destination.as_str();
        if let Some(suppressed) = lines.given_up {
            tracing::warn!(
                destination,
                suppressed,
                "gave up more events in the last minute: they are kept as dead letters"
            );
        }
        if let Some(suppressed) = lines.dropped {
            tracing::warn!(
                destination,
                suppressed,
                "gave up more events in the last minute: they are dropped and will never be delivered"
            );
        }
        if let Some(suppressed) = lines.held {
            tracing::warn!(destination, suppressed, "held more users in the last minute");
        }
        if let Some(suppressed) = lines.stuck_users {
            tracing::warn!(destination, suppressed, "more users were stuck in the last minute");
        }
    }

    fn state(&self) -> MutexGuard<'_, NoticesState> {
        // It holds counters and texts only, so a panic elsewhere leaves nothing half done in it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NoticesState {
    fn take_overdue(&mut self, now: Moment) -> SuppressedLines {
        SuppressedLines {
            given_up: self.given_up.take_overdue(now),
            dropped: self.dropped.take_overdue(now),
            held: self.held.take_overdue(now),
            stuck_users: self.stuck_users.take_overdue(now),
        }
    }
}

impl Drop for Notices {
    /// Writes the last counts, which would be lost otherwise.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let count = |suppressed: u64| (suppressed > 0).then_some(suppressed);
        let given_up = count(state.given_up.take_suppressed());
        let dropped = count(state.dropped.take_suppressed());
        let held = count(state.held.take_suppressed());
        let stuck_users = count(state.stuck_users.take_suppressed());
        self.write_suppressed(&SuppressedLines { given_up, dropped, held, stuck_users });
    }
}

/// Why an attempt failed. The reason why a destination cannot be reached ends with what to do about it, so more of it is
/// shown than of an answer.
fn shown_cause(verdict: Verdict, answer: &str) -> String {
    match verdict {
        Verdict::Unreachable => text::shown(answer.as_bytes(), UNREACHABLE_BYTES_MAX),
        Verdict::Retry { .. }
        | Verdict::Busy { .. }
        | Verdict::Refused
        | Verdict::Drilled
        | Verdict::BatchFailed
        | Verdict::CutOff => shown_answer(answer),
    }
}

pub(super) fn shown_answer(answer: &str) -> String {
    text::shown(answer.as_bytes(), ANSWER_BYTES_MAX)
}

/// A user as a log line shows it. Events without a key share one lane, whose user is shown as empty.
pub(super) fn shown_user(user: Option<&[u8]>) -> String {
    user.map_or_else(String::new, |user| text::shown(user, LOG_USER_BYTES_MAX))
}

/// The command of `eventd control` about a user, to be pasted.
pub(super) fn control_command(command: &str, destination: &str, user: &[u8]) -> String {
    about_user(&format!("eventd control {command} {}", dest_flag(destination)), user)
}

/// The command with the flag for this user. If a log line cannot show the user's whole name, the flag is described in words,
/// because a command with a part of the name would act on another user.
fn about_user(command: &str, user: &[u8]) -> String {
    match user_flag(user) {
        Some(flag) => format!("{command} {flag}"),
        None => format!("{command}, and --user with the user's whole name, which cannot be shown here"),
    }
}

/// `--user` with this user, to be pasted. `None`: the user's name is too long for a log line, or has characters that are
/// escaped there.
fn user_flag(user: &[u8]) -> Option<String> {
    let shown = shown_user(Some(user));
    (shown.as_bytes() == user).then(|| shell_flag("--user", &shown))
}

/// An event's id as a log line shows it.
pub(super) fn shown_id(id: &str) -> String {
    text::shown(id.as_bytes(), LOG_USER_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_an_answer_are_shown_escaped_and_bounded() {
        let long = "x".repeat(10_000);
        assert!(shown_answer(&long).len() < ANSWER_BYTES_MAX + 10 && shown_answer(&long).ends_with('…'));
        assert!(shown_user(Some(long.as_bytes())).len() < LOG_USER_BYTES_MAX + 10);
        assert_eq!(shown_user(Some(b"a\x1b[2J\xff")), "a\\u{1b}[2J\u{fffd}");
        assert_eq!(shown_user(None), "");
        assert_eq!(
            control_command("hold", "hook", b"-x y"),
            "eventd control hold --dest hook --user='-x y'",
            "a value that begins with a hyphen could be taken for a flag"
        );
        let sentence = format!("the certificate of {}.example:443 has expired. Renew it", "x".repeat(250));
        assert_eq!(shown_cause(Verdict::Unreachable, &sentence), sentence, "what to do is at its end");
        assert_eq!(shown_cause(Verdict::Refused, &sentence), shown_answer(&sentence));
    }

    #[test]
    fn a_command_names_a_user_only_if_the_line_shows_the_whole_name() {
        let longest = [b'x'; LOG_USER_BYTES_MAX];
        assert!(user_flag(&longest).is_some_and(|flag| flag.ends_with('x')));
        for user in [[b'x'; LOG_USER_BYTES_MAX + 1].as_slice(), b"a\x1b", b"a\nb", b"\xff", "a\u{202e}b".as_bytes()] {
            assert_eq!(user_flag(user), None, "{user:?}");
            let command = control_command("hold", "hook", user);
            assert!(command.starts_with("eventd control hold --dest hook, and --user with"), "{command}");
        }
    }
}
