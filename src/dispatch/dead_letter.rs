//! The record of a dead letter: an event that was given up, with the reason and what the destination answered.
//!
//! A dead letter is written to `<topic>.<dest>.dead`, in the partition with the number of its event's. It has the key, the
//! value and the headers of the event, and the headers below in addition.
//!
//! The identity of a dead letter is its header `eventd-source`. After a crash there may be two dead letters of one event,
//! or one of an event that was delivered after all. Readers fold them by this header.

use crate::core::BothClocks;
use crate::core::event::{Event, REPLAY, Record, encode_headers};
use crate::core::tries::{FailureHistory, GiveUpReason};

/// Where the event was: `partition:offset`.
pub const SOURCE: &str = "eventd-source";
/// Why it was given up: `exhausted`, `refused` or `operator`.
pub const REASON: &str = "eventd-reason";
/// The destination's last answer: the status and the beginning of the body.
pub const ANSWER: &str = "eventd-answer";
/// The number of attempts, also those before earlier dead letters of the event.
pub const ATTEMPTS: &str = "eventd-attempts";
/// When the first attempt failed, in milliseconds since the Unix epoch.
pub const FIRST_ATTEMPT: &str = "eventd-first-attempt";
/// When the last attempt failed, in milliseconds since the Unix epoch.
pub const LAST_ATTEMPT: &str = "eventd-last-attempt";
/// When the event was accepted, in milliseconds since the Unix epoch. (The timestamp of the record is the time when the
/// dead letter was written.)
pub const TIME: &str = "eventd-time";
/// An earlier dead letter of the event, which was redriven and failed again: one header for each, the oldest first.
pub const EARLIER: &str = "eventd-earlier";
/// The topic of the event.
pub const TOPIC: &str = "eventd-topic";
/// The destination that did not take the event.
pub const DESTINATION: &str = "eventd-destination";

/// Earlier dead letters of one event that a dead letter mentions: the latest ones.
const EARLIER_MAX: usize = 10;

/// Characters of the answer in the header of an earlier dead letter. All of these headers are small beside
/// [`DEAD_LETTER_EXTRA_BYTES_MAX`](crate::limits::DEAD_LETTER_EXTRA_BYTES_MAX).
const EARLIER_ANSWER_CHARS_MAX: usize = 200;

/// What a dead letter is made of.
#[derive(Debug)]
pub(super) struct DeadLetter<'a> {
    pub(super) topic: &'a str,
    pub(super) destination: &'a str,
    pub(super) partition: u32,
    pub(super) event: &'a Event,
    pub(super) history: &'a FailureHistory,
    pub(super) reason: GiveUpReason,
    /// The whole answer of the last attempt.
    pub(super) answer: &'a str,
}

impl DeadLetter<'_> {
    /// The record to be stored: the event with the headers of a dead letter.
    pub(super) fn record(&self, now: BothClocks) -> Record {
        let Self { topic, destination, partition, event, history, .. } = *self;
        let earlier = EarlierDeadLetter::of(&event.record, topic, destination);
        let first_ms = earlier.first_attempt_ms.unwrap_or_else(|| history.first_failure_ms(now));
        let source = earlier.source.map_or_else(|| format!("{partition}:{}", event.offset), str::to_owned);
        let attempts = earlier.attempts.saturating_add(history.failures.into()).to_string();
        let (first, last) = (first_ms.to_string(), history.last_failure_ms(now).to_string());
        let time = event.record.timestamp_ms.to_string();
        let own = [
            (SOURCE, source.as_str()),
            (REASON, self.reason.as_str()),
            (ANSWER, self.answer),
            (ATTEMPTS, &attempts),
            (FIRST_ATTEMPT, &first),
            (LAST_ATTEMPT, &last),
            (TIME, &time),
            (TOPIC, topic),
            (DESTINATION, destination),
        ];
        // The event may be a dead letter itself. Then our headers replace its headers of the same name.
        let is_own = |name: &[u8]| own.iter().any(|(own, _)| own.as_bytes() == name);
        let mut headers: Vec<(&[u8], Option<&[u8]>)> =
            event.record.headers_raw().filter(|(name, _)| !is_own(name)).collect();
        if let Some(summary) = &earlier.summary {
            let is_earlier = |(name, _): &&(&[u8], Option<&[u8]>)| *name == EARLIER.as_bytes();
            if headers.iter().filter(is_earlier).count() >= EARLIER_MAX
                && let Some(oldest) = headers.iter().position(|header| is_earlier(&header))
            {
                headers.remove(oldest);
            }
            headers.push((EARLIER.as_bytes(), Some(summary.as_bytes())));
        }
        // An operator may give up an event that was never attempted.
        let is_known = |name| history.failures > 0 || ![FIRST_ATTEMPT, LAST_ATTEMPT].contains(&name);
        let own = own.iter().filter(|(name, _)| is_known(*name));
        headers.extend(own.map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))));
        let mut encoded = Vec::new();
        encode_headers(&headers, &mut encoded);
        Record::from_parts(event.record.key(), event.record.value(), &encoded, now.wall_ms)
    }
}

/// What a dead letter that was redriven says about itself. If it fails again, the new dead letter is still about the same
/// event: it keeps the source and the first attempt, adds the attempts, and mentions the earlier dead letter.
#[derive(Debug, Default)]
struct EarlierDeadLetter<'r> {
    source: Option<&'r str>,
    attempts: u64,
    first_attempt_ms: Option<i64>,
    summary: Option<String>,
}

impl<'r> EarlierDeadLetter<'r> {
    /// Empty if the event is not a dead letter of this topic and destination that a replay sends.
    fn of(record: &'r Record, topic: &str, destination: &str) -> Self {
        let is_ours = record.header_text(TOPIC) == Some(topic) && record.header_text(DESTINATION) == Some(destination);
        if !is_ours || record.header(REPLAY).is_none() {
            return Self::default();
        }
        let header = |name| record.header_text(name).unwrap_or("?");
        let answer: String = header(ANSWER).chars().take(EARLIER_ANSWER_CHARS_MAX).collect();
        let (reason, attempts, last) = (header(REASON), header(ATTEMPTS), header(LAST_ATTEMPT));
        Self {
            source: record.header_text(SOURCE),
            attempts: attempts.parse().unwrap_or(0),
            first_attempt_ms: header(FIRST_ATTEMPT).parse().ok(),
            summary: Some(format!("{reason} after {attempts} attempts, the last at {last}: {answer}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The dead letter of an event with these headers, given up by the destination `dest` after three attempts.
    fn dead_letter(headers: &[(&str, Option<&[u8]>)]) -> Record {
        dead_letter_after(3, headers)
    }

    fn dead_letter_after(attempts: u64, headers: &[(&str, Option<&[u8]>)]) -> Record {
        let record = Record::new(Some(b"user-1"), Some(b"payload"), headers, 1_000);
        let mut history = FailureHistory::default();
        for second in 1..=attempts {
            history.add_failure(Duration::from_secs(second), Duration::ZERO);
        }
        let letter = DeadLetter {
            topic: "events",
            destination: "dest",
            partition: 2,
            event: &Event { offset: 7, record },
            history: &history,
            reason: GiveUpReason::Exhausted,
            answer: "500 Internal Server Error",
        };
        letter.record(BothClocks { moment: Duration::from_secs(5), wall_ms: 1_767_350_000_000 })
    }

    fn headers<'r>(record: &'r Record, name: &str) -> Vec<&'r str> {
        let values = record.headers().filter(|(header, _)| *header == name);
        values.map(|(_, value)| std::str::from_utf8(value.unwrap()).unwrap()).collect()
    }

    #[test]
    fn a_dead_letter_keeps_the_event_and_says_why_it_was_given_up() {
        let letter = dead_letter(&[("eventd-id", Some(b"id-1")), (SOURCE, Some(b"9:9"))]);
        assert_eq!((letter.key(), letter.value()), (Some(&b"user-1"[..]), Some(&b"payload"[..])));
        assert_eq!(letter.header_text("eventd-id"), Some("id-1"));
        assert_eq!(headers(&letter, SOURCE), ["2:7"], "our header replaces one of the same name");
        assert_eq!(letter.header_text(REASON), Some("exhausted"));
        assert_eq!(letter.header_text(ANSWER), Some("500 Internal Server Error"));
        assert_eq!((letter.header_text(ATTEMPTS), letter.header_text(TIME)), (Some("3"), Some("1000")));
        assert_eq!(headers(&letter, EARLIER), [""; 0]);
    }

    #[test]
    fn a_dead_letter_of_an_event_that_was_never_attempted_has_no_times_of_attempts() {
        let letter = dead_letter_after(0, &[]);
        assert_eq!(letter.header_text(ATTEMPTS), Some("0"));
        assert_eq!((letter.header_text(FIRST_ATTEMPT), letter.header_text(LAST_ATTEMPT)), (None, None));
    }

    #[test]
    fn a_redriven_dead_letter_that_fails_again_keeps_its_source_and_mentions_the_earlier_ones() {
        let mut letter = dead_letter(&[]);
        for round in 1..EARLIER_MAX + 3 {
            let redriven: Vec<_> = letter.headers().chain([(REPLAY, Some(&b"replay-1"[..]))]).collect();
            letter = dead_letter(&redriven);
            assert_eq!(headers(&letter, SOURCE), ["2:7"]);
            assert_eq!(letter.header_text(ATTEMPTS), Some(&*(3 * (round + 1)).to_string()));
            assert_eq!(headers(&letter, EARLIER).len(), round.min(EARLIER_MAX));
        }
        let latest = headers(&letter, EARLIER).pop().unwrap().to_owned();
        assert!(latest.starts_with("exhausted after 36 attempts, the last at "), "{latest}");
        assert!(latest.ends_with(": 500 Internal Server Error"), "{latest}");
    }
}
