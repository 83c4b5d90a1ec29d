//! The fault drill of `--reliability N`, in front of any destination: one in N events fails before it gets there.
//!
//! The draw is a hash of seed, partition, offset and attempt, without a state: the same seed fails the same events,
//! whatever else happens at the same time, and a second try of an event is drawn anew.

use super::{Destination, Drill, HandOver, HandOverLimits, Run};
use crate::BoxFuture;
use crate::core::event::Event;
use crate::core::verdict::{Failed, Report, Verdict};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Destination>,
    drill: Drill,
}

impl Faulty {
    /// `drill.one_in` is 2 or more.
    pub(super) fn new(inner: Arc<dyn Destination>, drill: Drill) -> Self {
        Self { inner, drill }
    }

    fn fails(&self, partition: u32, offset: i64, attempt: u32) -> bool {
        let mut hash = self.drill.seed;
        for word in [u64::from(partition), offset as u64, u64::from(attempt)] {
            hash = mix(hash ^ word);
        }
        hash.is_multiple_of(u64::from(self.drill.one_in))
    }

    /// How many events of the run stand before the first that fails.
    fn passes(&self, hand_over: &HandOver, run: &Run) -> usize {
        let events = hand_over.events_of(run);
        let failing = events.iter().enumerate().position(|(at, event)| {
            let attempt = if at == 0 { run.attempt } else { 1 };
            self.fails(hand_over.partition, event.offset, attempt)
        });
        failing.unwrap_or(events.len())
    }
}

/// One step of SplitMix64, whose bits all depend on all bits of the input.
fn mix(word: u64) -> u64 {
    let mut z = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hand-over with only the first `passes[i]` events of run `i`; runs of which nothing is left are left out.
fn cut(hand_over: HandOver, passes: &[usize]) -> HandOver {
    let mut events: Vec<Option<Event>> = hand_over.events.into_iter().map(Some).collect();
    let mut kept = Vec::with_capacity(events.len());
    let mut runs = Vec::with_capacity(passes.len());
    for (run, &passing) in hand_over.runs.into_iter().zip(passes) {
        let start = kept.len();
        kept.extend(events[run.events.start..run.events.start + passing].iter_mut().filter_map(Option::take));
        if passing > 0 {
            runs.push(Run { events: start..kept.len(), ..run });
        }
    }
    HandOver { runs, events: kept, ..hand_over }
}

impl Destination for Faulty {
    fn limits(&self) -> HandOverLimits {
        self.inner.limits()
    }

    fn deliver(&self, hand_over: HandOver) -> BoxFuture<'_, Vec<Report>> {
        let passes: Vec<usize> = hand_over.runs.iter().map(|run| self.passes(&hand_over, run)).collect();
        if passes.iter().zip(&hand_over.runs).all(|(passes, run)| *passes == run.events.len()) {
            return self.inner.deliver(hand_over);
        }
        Box::pin(async move {
            let wholes: Vec<usize> = hand_over.runs.iter().map(|run| run.events.len()).collect();
            let hand_over = cut(hand_over, &passes);
            let reports = if hand_over.runs.is_empty() { Vec::new() } else { self.inner.deliver(hand_over).await };
            let mut reports = reports.into_iter();
            let report = |(&passes, whole): (&usize, usize)| {
                let inner = if passes == 0 { None } else { reports.next() };
                let inner = inner.unwrap_or(Report { delivered: 0, failed: None });
                let drilled = inner.failed.is_none() && passes < whole;
                let failed = || Failed::new(Verdict::Drilled, "failed by the drill of --reliability");
                Report { failed: inner.failed.or_else(|| drilled.then(failed)), ..inner }
            };
            passes.iter().zip(wholes).map(report).collect()
        })
    }

    fn reopen(&self) {
        self.inner.reopen();
    }

    fn resent(&self) -> u64 {
        self.inner.resent()
    }
}
