//! How many events a run has after batches that failed as a whole ([`Verdict::BatchFailed`]).
//!
//! Either an event of the batch is at fault, or the destination takes no batches of this length. So there are two limits,
//! and a run obeys both:
//!
//! ```text
//!  LaneRuns     one lane          find the event at fault, or get past the batch
//!  LengthLimit  all lanes         remember the length that the destination takes
//!
//!  a batch of n fails ──▶ the head alone ──▶ runs of n/2 ──┬── fails: the head alone, then n/4 …
//!                                                          └── delivered: runs of n …
//!  the lane gets past that batch, and no event failed alone ──▶ LengthLimit: n/2
//!  enough runs of the limit were delivered ──▶ one run of twice its length ──┬── delivered: this is the limit
//!                                                                            └── fails: wait for twice as many
//! ```
//!
//! # What it costs
//!
//! - The head goes alone first, because its answer shows whether the destination is out. A batch shows nothing.
//! - An event at fault at place k of n events costs O(log n) more requests: a batch fails only if it reaches that event,
//!   and between two batches of one length the distance to it is halved.
//! - A destination that takes no batches gets up to two requests for each event, until some lane has got past the batch
//!   that failed. From then on it gets one batch for 64 single events. It may take batches one day: this finds it out.
//! - A destination that takes half of `--batch` is like this, too: one of 64 requests fails.

#[cfg(doc)]
use crate::core::verdict::Verdict;

/// The delivered runs after which a longer one is tried, at first. After each that fails it is twice as many.
const LONGER_AFTER_MIN: u32 = 1;

/// The most delivered runs after which a longer one is tried. If it fails for ever, one of so many requests is in vain.
const LONGER_AFTER_MAX: u32 = 64;

/// The lengths of the runs of one lane after a batch of it has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LaneRuns {
    /// The most events of a run.
    events_max: usize,
    /// The next run has one event.
    is_head_alone: bool,
    /// The length of the longest batch that has failed. Once runs of this length are delivered, all is well again.
    failed_events_max: usize,
    /// A failed batch that may have been too long. `None`: an event failed alone, so it was at fault.
    doubted: Option<DoubtedBatch>,
}

/// A batch of which no event has failed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DoubtedBatch {
    events: usize,
    last_offset: i64,
}

/// The longest run that the destination takes, as far as the lanes of one partition have found out.
#[derive(Debug)]
pub(super) struct LengthLimit {
    /// `usize::MAX`: no limit is known.
    events_max: usize,
    /// Delivered runs of this length since a longer one was tried.
    delivered: u32,
    /// How many of them it takes to try a longer one.
    longer_after: u32,
    /// The generation of the longer run that is in flight.
    longer: Option<u64>,
}

impl LaneRuns {
    /// The first batch of the lane has failed.
    pub(super) fn after(events: usize, last_offset: i64) -> Self {
        let mut runs = Self { events_max: usize::MAX, is_head_alone: false, failed_events_max: 0, doubted: None };
        runs.batch_failed(events, last_offset);
        runs
    }

    /// The most events of the next run.
    pub(super) fn events_max(&self) -> usize {
        if self.is_head_alone { 1 } else { self.events_max }
    }

    /// A batch of this many events has failed.
    pub(super) fn batch_failed(&mut self, events: usize, last_offset: i64) {
        self.events_max = (events / 2).max(1);
        self.is_head_alone = true;
        self.failed_events_max = self.failed_events_max.max(events);
        // Of several batches, the lane gets past this one first.
        if self.doubted.is_none_or(|doubted| last_offset < doubted.last_offset) {
            self.doubted = Some(DoubtedBatch { events, last_offset });
        }
    }

    /// The head has failed by itself, or was given up. A head that has failed goes alone in any case.
    pub(super) fn head_failed(&mut self) {
        self.is_head_alone = false;
        self.doubted = None;
    }

    /// A run of this many events was delivered, and the event at `last_offset` was its last one.
    pub(super) fn delivered(&mut self, events: usize, last_offset: i64, limit: &mut LengthLimit) {
        if self.is_head_alone {
            self.is_head_alone = false;
        } else if events >= self.events_max {
            self.events_max = self.events_max.saturating_mul(2);
        }
        if let Some(passed) = self.doubted.take_if(|doubted| doubted.last_offset <= last_offset) {
            limit.too_long(passed.events);
        }
    }

    /// Whether all is well again, so that the lane obeys only the limit of all lanes.
    pub(super) fn is_over(&self) -> bool {
        !self.is_head_alone && self.doubted.is_none() && self.events_max >= self.failed_events_max
    }
}

impl Default for LengthLimit {
    fn default() -> Self {
        Self { events_max: usize::MAX, delivered: 0, longer_after: LONGER_AFTER_MIN, longer: None }
    }
}

impl LengthLimit {
    /// The most events of the next run.
    pub(super) fn events_max(&self) -> usize {
        let may_be_longer = self.longer.is_none() && self.delivered >= self.longer_after;
        if may_be_longer { self.events_max.saturating_mul(2) } else { self.events_max }
    }

    /// A run begins.
    pub(super) fn begun(&mut self, events: usize, generation: u64) {
        if events > self.events_max {
            (self.longer, self.delivered) = (Some(generation), 0);
        }
    }

    /// A run has ended: it was delivered as a whole, it failed as a whole, or neither.
    pub(super) fn ended(&mut self, events: usize, generation: u64, end: RunEnd) {
        let was_longer = self.longer.take_if(|longer| *longer == generation).is_some();
        match end {
            RunEnd::Delivered if events > self.events_max => {
                (self.events_max, self.delivered, self.longer_after) = (events, 0, LONGER_AFTER_MIN);
            }
            RunEnd::Delivered if events == self.events_max => self.delivered = self.delivered.saturating_add(1),
            RunEnd::BatchFailed if was_longer => {
                self.longer_after = self.longer_after.saturating_mul(2).min(LONGER_AFTER_MAX);
            }
            RunEnd::Delivered | RunEnd::BatchFailed | RunEnd::Other => {}
        }
    }

    /// A batch of this many events has failed, and each of its events was delivered in a shorter run.
    fn too_long(&mut self, events: usize) {
        let events_max = (events / 2).max(1);
        if events_max < self.events_max {
            (self.events_max, self.delivered) = (events_max, 0);
        }
    }
}

/// How a run ended, as far as its length matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunEnd {
    Delivered,
    BatchFailed,
    Other,
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Lanes, Started};
    use crate::core::event::Record;
    use crate::core::tries::{Decision, GiveUpReason};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A receiver of runs, and what it was sent.
    struct Receiver {
        /// The longest run that it takes.
        takes: usize,
        /// An event that it never takes.
        poison: Option<i64>,
        requests: usize,
        failed_batches: usize,
        delivered: Vec<i64>,
        given_up: Vec<i64>,
    }

    impl Receiver {
        fn new(takes: usize, poison: Option<i64>) -> Self {
            Self { takes, poison, requests: 0, failed_batches: 0, delivered: Vec::new(), given_up: Vec::new() }
        }

        fn answer(&mut self, lanes: &mut Lanes, started: &Started, offsets: &[i64]) {
            self.requests += 1;
            let is_taken = offsets.len() <= self.takes && self.poison.is_none_or(|poison| !offsets.contains(&poison));
            let delivered = &mut self.delivered;
            if is_taken {
                let end =
                    lanes.settle(started.token, offsets.len(), |event| delivered.push(event.offset), |_, _| panic!());
                assert_eq!(end, None);
            } else if offsets.len() > 1 {
                self.failed_batches += 1;
                lanes.settle_without_verdict(started.token, 0, true, |event| panic!("{} is settled", event.offset));
            } else {
                let end = Decision::GiveUp(GiveUpReason::Exhausted);
                lanes.settle(started.token, 0, |_| panic!(), |_, _| end);
                lanes.given_up(started.token, |event| self.given_up.push(event.offset));
            }
        }

        /// Sends everything in runs of at most `batch` events, with `in_flight` attempts at once.
        fn drain(&mut self, lanes: &mut Lanes, batch: usize, in_flight: usize) {
            let mut sent: VecDeque<(Started, Vec<i64>)> = VecDeque::new();
            loop {
                let mut run = Vec::new();
                match lanes.next(batch, usize::MAX, &mut run) {
                    Some(started) => sent.push_back((started, run.iter().map(|event| event.offset).collect())),
                    None if sent.is_empty() => return,
                    None => {}
                }
                if sent.len() >= in_flight || !lanes.has_ready() {
                    let (started, offsets) = sent.pop_front().expect("an attempt is in flight");
                    self.answer(lanes, &started, &offsets);
                }
            }
        }
    }

    fn lanes(users: usize, events: i64) -> Lanes {
        let mut lanes = Lanes::new(10, 0);
        admit(&mut lanes, users, 0..events);
        lanes
    }

    fn admit(lanes: &mut Lanes, users: usize, offsets: std::ops::Range<i64>) {
        for offset in offsets {
            let user = format!("user {}", offset as usize % users);
            lanes.admit(Event { offset, record: Record::new(Some(user.as_bytes()), Some(b"payload"), &[], 0) });
        }
    }

    fn log2(number: i64) -> usize {
        number.ilog2() as usize
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn a_poison_event_costs_few_requests_and_every_other_event_is_delivered_once(
            (events, poison) in (2i64..1_000).prop_flat_map(|events| (Just(events), 0..events)),
        ) {
            let (mut lanes, mut receiver) = (lanes(1, events), Receiver::new(usize::MAX, Some(poison)));
            receiver.drain(&mut lanes, 1_000, 1);
            prop_assert_eq!(&receiver.given_up, &[poison]);
            let others: Vec<i64> = (0..events).filter(|offset| *offset != poison).collect();
            prop_assert_eq!(&receiver.delivered, &others);
            let most = 5 * log2(events) + 5;
            prop_assert!(receiver.requests <= most, "{} requests, at most {most} are expected", receiver.requests);
        }

        #[test]
        fn a_receiver_that_takes_no_batches_gets_few_of_them(
            users in 1usize..50, each in 2i64..20, batch in 2usize..1_000, in_flight in 1usize..50,
        ) {
            let events = users as i64 * each;
            let (mut lanes, mut receiver) = (lanes(users, events), Receiver::new(1, None));
            receiver.drain(&mut lanes, batch, in_flight);
            prop_assert_eq!(receiver.delivered.len() as i64, events);
            prop_assert!(receiver.failed_batches as i64 <= events, "up to two requests for each event, once");
            // These users come later. The limit is known by now, and the wait for the next longer run has become long.
            receiver.failed_batches = 0;
            let more = 10_000;
            admit(&mut lanes, users, events..events + more);
            receiver.drain(&mut lanes, batch, in_flight);
            let most = more / 64 + 7;
            let failed = receiver.failed_batches as i64;
            prop_assert!(failed <= most, "{failed} of {more} events began a batch in vain, at most {most} are expected");
        }
    }

    #[test]
    fn a_receiver_that_takes_half_of_a_batch_gets_halves() {
        let (mut lanes, mut receiver) = (lanes(1, 100_000), Receiver::new(500, None));
        receiver.drain(&mut lanes, 1_000, 1);
        assert_eq!(receiver.delivered.len(), 100_000);
        assert!(receiver.failed_batches <= 10, "{} batches failed", receiver.failed_batches);
        assert!(receiver.requests <= 230, "{} requests, 200 would be enough", receiver.requests);
    }

    #[test]
    fn batches_come_back_when_the_receiver_takes_them() {
        let (mut lanes, mut receiver) = (lanes(1, 2_000), Receiver::new(1, None));
        receiver.drain(&mut lanes, 1_000, 1);
        (receiver.takes, receiver.requests) = (usize::MAX, 0);
        admit(&mut lanes, 1, 2_000..102_000);
        receiver.drain(&mut lanes, 1_000, 1);
        assert!(receiver.requests <= 64 + 20 + 100, "{} requests for 100,000 events", receiver.requests);
    }

    #[test]
    fn the_poison_of_one_user_leaves_the_batches_of_another_long() {
        let mut lanes = Lanes::new(10, 0);
        admit(&mut lanes, 2, 0..2_000);
        let mut receiver = Receiver::new(usize::MAX, Some(1_000));
        receiver.drain(&mut lanes, 100, 1);
        // Ten batches of the other user.
        assert!(receiver.requests <= 10 + 10 + 5 * log2(100) + 5, "{} requests", receiver.requests);
    }

    #[test]
    fn an_attempt_without_a_verdict_leaves_no_trace() {
        let mut lanes = lanes(1, 3);
        for _ in 0..3 {
            let mut run = Vec::new();
            let started = lanes.next(10, usize::MAX, &mut run).expect("the lane is ready again");
            assert_eq!((started.attempt, run.len()), (1, 3));
            lanes.settle_without_verdict(started.token, 0, false, |_| panic!("nothing is settled"));
        }
        assert_eq!((lanes.next_wakeup(), lanes.next_stuck_at(), lanes.each_failed().count()), (None, None, 0));
    }
}
