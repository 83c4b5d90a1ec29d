//! Writes the dead letters of one partition. The lane of an event that is given up waits until its dead letter is stored,
//! and only that user waits.
//!
//! ```text
//!  given up ──▶ waiting ── append to <topic>.<dest>.dead ──┬─ stored ──▶ the event is settled, its lane continues
//!                  ▲                                       └─ failed ──▶ after a backoff, append again
//!                  └───────────────────────────────────────────────────────┘
//! ```
//!
//! A write that is refused is repeated, and so is one whose result is unknown. Readers fold dead letters of one event by
//! `eventd-source`.
//!
//! If the topic of dead letters cannot be used, a whole window of events may wait. So what each of them takes in addition
//! to the event is bounded: the bytes of the writes in flight, which have copies of their events, and the bytes of the
//! answers that wait.

use super::dead_letter::DeadLetter;
use super::notices::{GivenUpEvent, shown_id, shown_user};
use super::partition_log::PartitionLog;
use crate::core::event::Record;
use crate::core::lanes::{Lanes, Token};
use crate::core::tries::{FailureHistory, GiveUpReason};
use crate::core::{BothClocks, Moment};
use crate::limits::ANSWER_BYTES_MAX;
use anyhow::Context as _;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// The dead letters of one partition that are not stored yet.
#[derive(Default)]
pub(super) struct DeadLetterWriter {
    waiting: HashMap<Token, Waiting>,
    /// Dead letters to be written as soon as the writes in flight leave room, in this order.
    due: VecDeque<Token>,
    /// Dead letters whose writing failed, by the moment of the next try.
    retries: BTreeSet<(Moment, Token)>,
    in_flight: WritesInFlight,
    /// Bytes of the answers in `waiting`.
    answer_bytes: usize,
}

/// An event that is being given up.
struct Waiting {
    reason: GiveUpReason,
    /// The whole answer of the last attempt. `None`: it had no room, so only its beginning is known, in the failure history.
    answer: Option<Box<str>>,
    write_failures: u32,
    /// Bytes of its write, while that is in flight.
    write_bytes: usize,
}

/// The writes in flight of one partition.
#[derive(Debug, Default)]
struct WritesInFlight {
    writes: usize,
    bytes: usize,
}

impl DeadLetterWriter {
    /// Adds an event that is given up. Write its dead letter with [`next_write`](Self::next_write).
    ///
    /// The answers that wait take up to `answers_bytes_max` bytes. If this one has no room, only its beginning is kept: the
    /// failure history has it.
    pub(super) fn add(&mut self, token: Token, reason: GiveUpReason, answer: String, answers_bytes_max: usize) {
        let has_room = self.answer_bytes.saturating_add(answer.len()) <= answers_bytes_max;
        let answer = has_room.then(|| answer.into_boxed_str());
        self.answer_bytes += answer.as_ref().map_or(0, |answer| answer.len());
        self.waiting.insert(token, Waiting { reason, answer, write_failures: 0, write_bytes: 0 });
        self.due.push_back(token);
    }

    /// Lets the dead letters be written again whose next try is due.
    pub(super) fn retry_due(&mut self, now: Moment) {
        while let Some((_, token)) = self.retries.first().copied().filter(|(at, _)| *at <= now) {
            self.retries.pop_first();
            self.due.push_back(token);
        }
    }

    /// Whether a dead letter waits to be written now.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next dead letter to be written now. `None`: there is none, or the writes in flight have `bytes_max` bytes. A
    /// single write may have more.
    pub(super) fn next_write(
        &mut self,
        bytes_max: usize,
        lanes: &Lanes,
        log: &PartitionLog,
        now: BothClocks,
    ) -> anyhow::Result<Option<(Token, Record)>> {
        let Some(token) = self.due.front().copied() else { return Ok(None) };
        let waiting = self.waiting.get_mut(&token).context(NOT_WAITING)?;
        let (event, history) = lanes.giving_up(token);
        let bytes = event.record.window_bytes().saturating_add(ANSWER_BYTES_MAX);
        if self.in_flight.writes > 0 && self.in_flight.bytes.saturating_add(bytes) > bytes_max {
            return Ok(None);
        }
        self.due.pop_front();
        self.in_flight.writes += 1;
        self.in_flight.bytes += bytes;
        waiting.write_bytes = bytes;
        let (destination, topic, partition) = (log.destination.as_str(), &*log.topic, log.partition);
        let (reason, answer) = (waiting.reason, waiting.answer(history));
        let record = DeadLetter { topic, destination, partition, event, history, reason, answer }.record(now);
        Ok(Some((token, record)))
    }

    /// The dead letter is stored. Shows the event to `given_up`; its lane still has to settle it.
    pub(super) fn stored(
        &mut self,
        token: Token,
        lanes: &Lanes,
        log: &PartitionLog,
        given_up: impl FnOnce(&GivenUpEvent<'_>),
    ) -> anyhow::Result<()> {
        self.write_ended(token)?;
        let waiting = self.waiting.remove(&token).context(NOT_WAITING)?;
        self.answer_bytes -= waiting.answer.as_ref().map_or(0, |answer| answer.len());
        let (event, history) = lanes.giving_up(token);
        given_up(&GivenUpEvent::new(
            event,
            &event.id(&log.topic, log.partition),
            history,
            log.partition,
            waiting.reason,
            waiting.answer(history),
        ));
        Ok(())
    }

    /// Writing the dead letter failed, or its result is unknown. It is written again after a delay, which `backoff`
    /// derives from the number of failures.
    pub(super) fn write_failed(
        &mut self,
        token: Token,
        detail: &str,
        lanes: &Lanes,
        backoff: impl FnOnce(u32) -> Duration,
        log: &PartitionLog,
        now: Moment,
    ) -> anyhow::Result<()> {
        let waiting = self.write_ended(token)?;
        waiting.write_failures = waiting.write_failures.saturating_add(1);
        let next_write_at = now.saturating_add(backoff(waiting.write_failures));
        self.retries.insert((next_write_at, token));
        if let Some(suppressed) = log.allows("dead letter") {
            let (event, _) = lanes.giving_up(token);
            tracing::warn!(
                destination = log.destination,
                partition = log.partition,
                user = shown_user(event.record.key()),
                id = shown_id(&event.id(&log.topic, log.partition)),
                waiting = self.waiting.len(),
                suppressed,
                "a dead letter cannot be written, its user waits: {detail}"
            );
        }
        Ok(())
    }

    /// The write of this dead letter has ended.
    fn write_ended(&mut self, token: Token) -> anyhow::Result<&mut Waiting> {
        let waiting = self.waiting.get_mut(&token).context(NOT_WAITING)?;
        self.in_flight.writes -= 1;
        self.in_flight.bytes -= std::mem::take(&mut waiting.write_bytes);
        Ok(waiting)
    }

    pub(super) fn next_retry_at(&self) -> Option<Moment> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Whether a dead letter is not stored yet.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn has_writes_in_flight(&self) -> bool {
        self.in_flight.writes > 0
    }

    /// The writes in flight were cut off. They may be stored or not.
    pub(super) fn writes_aborted(&mut self) {
        self.in_flight = WritesInFlight::default();
    }
}

impl Waiting {
    fn answer<'a>(&'a self, history: &'a FailureHistory) -> &'a str {
        self.answer.as_deref().unwrap_or(&history.answer)
    }
}

const NOT_WAITING: &str = "no event of this lane is being given up";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Event;
    use crate::core::tries::Decision;

    const ANSWER: &str = "400 Bad Request: the field \"amount\" is missing, and the field \"total\" is not a number";

    /// Lanes with one event of each user that is being given up.
    fn giving_up(users: u32) -> (Lanes, Vec<Token>) {
        let mut lanes = Lanes::new(1, 0);
        for user in 0..users {
            let record = Record::new(Some(format!("user-{user}").as_bytes()), Some(b"payload"), &[], 0);
            lanes.admit(Event { offset: 7 + i64::from(user), record });
        }
        let started = std::iter::from_fn(|| lanes.next(1, usize::MAX, &mut Vec::new()));
        let tokens: Vec<Token> = started.map(|started| started.token).collect();
        for token in &tokens {
            lanes.settle(
                *token,
                0,
                |_| (),
                |_, history| {
                    history.answer = ANSWER[..64].into();
                    Decision::GiveUp(GiveUpReason::Refused)
                },
            );
        }
        (lanes, tokens)
    }

    fn at(moment: Moment) -> BothClocks {
        BothClocks { moment, wall_ms: 0 }
    }

    fn answer_of(record: &Record) -> Option<&str> {
        record.header_text(super::super::dead_letter::ANSWER)
    }

    #[test]
    fn a_dead_letter_is_written_until_it_is_stored_with_a_growing_delay() {
        let ((lanes, tokens), log) = (giving_up(1), PartitionLog::new("dest", "events".into(), 2));
        let token = tokens[0];
        let mut writer = DeadLetterWriter::default();
        writer.add(token, GiveUpReason::Refused, ANSWER.into(), 1_000);
        let mut now = Moment::ZERO;
        for failures in 1..4 {
            let (written, _) = writer.next_write(1_000, &lanes, &log, at(now)).unwrap().unwrap();
            assert!(written == token && writer.has_writes_in_flight());
            let backoff = |failures: u32| Duration::from_secs(failures.into());
            writer.write_failed(token, "no broker", &lanes, backoff, &log, now).unwrap();
            writer.retry_due(now);
            assert!(writer.next_write(1_000, &lanes, &log, at(now)).unwrap().is_none());
            now += Duration::from_secs(failures);
            assert_eq!(writer.next_retry_at(), Some(now));
            writer.retry_due(now);
        }
        let (_, record) = writer.next_write(1_000, &lanes, &log, at(now)).unwrap().unwrap();
        assert_eq!(answer_of(&record), Some(ANSWER));
        let mut given_up = None;
        let show = |event: &GivenUpEvent<'_>| given_up = Some((event.offset, event.reason, event.partition));
        writer.stored(token, &lanes, &log, show).unwrap();
        assert_eq!(given_up, Some((7, "refused", 2)));
        assert!(!writer.has_writes_in_flight() && writer.next_retry_at().is_none() && !writer.has_waiting());
        assert_eq!((writer.answer_bytes, writer.in_flight.bytes), (0, 0));
    }

    #[test]
    fn the_writes_in_flight_are_bounded_in_bytes_and_the_others_follow_in_their_order() {
        let ((lanes, tokens), log) = (giving_up(10), PartitionLog::new("dest", "events".into(), 2));
        let mut writer = DeadLetterWriter::default();
        tokens.iter().for_each(|token| writer.add(*token, GiveUpReason::Refused, ANSWER.into(), 1 << 20));
        let one = lanes.giving_up(tokens[0]).0.record.window_bytes() + ANSWER_BYTES_MAX;
        let backoff = |_: u32| Duration::from_secs(1);
        let start = |writer: &mut DeadLetterWriter, now| {
            let next = || writer.next_write(3 * one, &lanes, &log, at(now)).unwrap().map(|(token, _)| token);
            std::iter::from_fn(next).collect::<Vec<Token>>()
        };
        assert_eq!(start(&mut writer, Moment::ZERO), tokens[..3]);
        writer.write_failed(tokens[1], "no broker", &lanes, backoff, &log, Moment::ZERO).unwrap();
        assert_eq!(start(&mut writer, Moment::ZERO), tokens[3..4]);
        writer.stored(tokens[0], &lanes, &log, |_| ()).unwrap();
        // The one that failed is due again. It is written after those that wait already, and nothing wakes up for it before.
        let due = backoff(1);
        assert_eq!(writer.next_retry_at(), Some(due));
        writer.retry_due(due);
        assert_eq!(writer.next_retry_at(), None);
        assert_eq!(start(&mut writer, due), tokens[4..5]);
        let (mut started, mut in_flight) = (Vec::new(), vec![tokens[2], tokens[3], tokens[4]]);
        while let Some(token) = in_flight.pop() {
            writer.stored(token, &lanes, &log, |_| ()).unwrap();
            let next = start(&mut writer, due);
            in_flight.extend(&next);
            started.extend(next);
            assert_eq!(writer.in_flight.writes, in_flight.len());
            assert!(in_flight.len() <= 3 && writer.in_flight.bytes == in_flight.len() * one);
        }
        assert_eq!(started, [&tokens[5..], &tokens[1..2]].concat());
        assert!(!writer.has_waiting());
        // A write that is larger than the bound is made alone.
        let (lanes, tokens) = giving_up(2);
        tokens.iter().for_each(|token| writer.add(*token, GiveUpReason::Refused, ANSWER.into(), 1 << 20));
        let mut next = || writer.next_write(1, &lanes, &log, at(due)).unwrap().map(|(token, _)| token);
        assert_eq!((next(), next()), (Some(tokens[0]), None));
    }

    #[test]
    fn the_answers_that_wait_are_bounded_in_bytes_and_a_dead_letter_without_its_answer_has_the_beginning() {
        let ((lanes, tokens), log) = (giving_up(3), PartitionLog::new("dest", "events".into(), 2));
        let mut writer = DeadLetterWriter::default();
        let room = 2 * ANSWER.len();
        tokens.iter().for_each(|token| writer.add(*token, GiveUpReason::Refused, ANSWER.into(), room));
        assert_eq!(writer.answer_bytes, room);
        for (token, expected) in tokens.iter().zip([ANSWER, ANSWER, &ANSWER[..64]]) {
            let (written, record) = writer.next_write(1 << 20, &lanes, &log, at(Moment::ZERO)).unwrap().unwrap();
            assert_eq!((written, answer_of(&record)), (*token, Some(expected)));
            let mut shown = String::new();
            writer.stored(*token, &lanes, &log, |event| shown = event.answer.to_string()).unwrap();
            assert_eq!(shown, expected);
        }
        assert_eq!(writer.answer_bytes, 0);
    }
}
