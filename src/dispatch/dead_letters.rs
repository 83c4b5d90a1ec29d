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

use super::dead_letter::DeadLetter;
use super::notices::{GivenUpEvent, shown_id, shown_user};
use super::partition_log::PartitionLog;
use crate::core::event::Record;
use crate::core::lanes::{Lanes, Token};
use crate::core::tries::GiveUpReason;
use crate::core::{BothClocks, Moment};
use anyhow::Context as _;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// The dead letters of one partition that are not stored yet.
#[derive(Default)]
pub(super) struct DeadLetterWriter {
    waiting: HashMap<Token, Waiting>,
    /// Dead letters whose writing failed, by the moment of the next try.
    retries: BTreeSet<(Moment, Token)>,
    writes_in_flight: usize,
}

/// An event that is being given up.
struct Waiting {
    reason: GiveUpReason,
    /// The whole answer of the last attempt.
    answer: String,
    write_failures: u32,
}

impl DeadLetterWriter {
    /// Adds an event that is given up. Write its dead letter with [`start_write`](Self::start_write).
    pub(super) fn add(&mut self, token: Token, reason: GiveUpReason, answer: String) {
        self.waiting.insert(token, Waiting { reason, answer, write_failures: 0 });
    }

    /// The record of a dead letter, to be written now.
    pub(super) fn start_write(
        &mut self,
        token: Token,
        lanes: &Lanes,
        log: &PartitionLog,
        now: BothClocks,
    ) -> anyhow::Result<Record> {
        let Waiting { reason, answer, .. } = self.waiting.get(&token).context(NOT_WAITING)?;
        let (event, history) = lanes.giving_up(token);
        let (destination, topic, partition) = (log.destination.as_str(), &*log.topic, log.partition);
        self.writes_in_flight += 1;
        Ok(DeadLetter { topic, destination, partition, event, history, reason: *reason, answer }.record(now))
    }

    /// The dead letter is stored. Shows the event to `given_up`; its lane still has to settle it.
    pub(super) fn stored(
        &mut self,
        token: Token,
        lanes: &Lanes,
        log: &PartitionLog,
        given_up: impl FnOnce(&GivenUpEvent<'_>),
    ) -> anyhow::Result<()> {
        self.writes_in_flight -= 1;
        let Waiting { reason, answer, .. } = self.waiting.remove(&token).context(NOT_WAITING)?;
        let (event, history) = lanes.giving_up(token);
        given_up(&GivenUpEvent::new(
            event,
            &event.id(&log.topic, log.partition),
            history,
            log.partition,
            reason,
            &answer,
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
        self.writes_in_flight -= 1;
        let waiting = self.waiting.get_mut(&token).context(NOT_WAITING)?;
        waiting.write_failures = waiting.write_failures.saturating_add(1);
        self.retries.insert((now.saturating_add(backoff(waiting.write_failures)), token));
        if let Some(suppressed) = log.allows("dead letter") {
            let (event, _) = lanes.giving_up(token);
            tracing::warn!(
                destination = log.destination,
                partition = log.partition,
                user = shown_user(event.record.key()),
                id = shown_id(&event.id(&log.topic, log.partition)),
                waiting = self.retries.len(),
                suppressed,
                "a dead letter cannot be written, its user waits: {detail}"
            );
        }
        Ok(())
    }

    /// A dead letter whose next try is due. Write it with [`start_write`](Self::start_write).
    pub(super) fn take_due_retry(&mut self, now: Moment) -> Option<Token> {
        let (at, token) = *self.retries.first()?;
        if at > now {
            return None;
        }
        self.retries.pop_first();
        Some(token)
    }

    pub(super) fn next_retry_at(&self) -> Option<Moment> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Whether a dead letter is not stored yet.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn has_writes_in_flight(&self) -> bool {
        self.writes_in_flight > 0
    }

    /// The writes in flight were cut off. They may be stored or not.
    pub(super) fn writes_aborted(&mut self) {
        self.writes_in_flight = 0;
    }
}

const NOT_WAITING: &str = "no event of this lane is being given up";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Event;
    use crate::core::tries::Decision;

    /// Lanes with one event that is being given up.
    fn giving_up() -> (Lanes, Token) {
        let mut lanes = Lanes::new(1, 0);
        lanes.admit(Event { offset: 7, record: Record::new(Some(b"user-1"), Some(b"payload"), &[], 0) });
        let token = lanes.next(1, usize::MAX, &mut Vec::new()).unwrap().token;
        lanes.settle(token, 0, |_| (), |_, _| Decision::GiveUp(GiveUpReason::Refused));
        (lanes, token)
    }

    #[test]
    fn a_dead_letter_is_written_until_it_is_stored_with_a_growing_delay() {
        let ((lanes, token), log) = (giving_up(), PartitionLog::new("dest", "events".into(), 2));
        let mut writer = DeadLetterWriter::default();
        writer.add(token, GiveUpReason::Refused, "400 Bad Request".into());
        let mut now = Moment::ZERO;
        for failures in 1..4 {
            writer.start_write(token, &lanes, &log, BothClocks { moment: now, wall_ms: 0 }).unwrap();
            assert!(writer.has_writes_in_flight());
            let backoff = |failures: u32| Duration::from_secs(failures.into());
            writer.write_failed(token, "no broker", &lanes, backoff, &log, now).unwrap();
            assert_eq!(writer.take_due_retry(now), None);
            now += Duration::from_secs(failures);
            assert_eq!(writer.next_retry_at(), Some(now));
            assert_eq!(writer.take_due_retry(now), Some(token));
        }
        let record = writer.start_write(token, &lanes, &log, BothClocks { moment: now, wall_ms: 0 }).unwrap();
        assert_eq!(record.header_text(super::super::dead_letter::ANSWER), Some("400 Bad Request"));
        let mut given_up = None;
        let show = |event: &GivenUpEvent<'_>| given_up = Some((event.offset, event.reason, event.partition));
        writer.stored(token, &lanes, &log, show).unwrap();
        assert_eq!(given_up, Some((7, "refused", 2)));
        assert!(!writer.has_writes_in_flight() && writer.next_retry_at().is_none());
    }
}
