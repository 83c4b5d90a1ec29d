//! The fault drill of `--reliability N`, in front of any destination: one in N events fails before it gets there.
//!
//! The draw is a hash of seed, partition, offset and attempt, without a state: the same seed fails the same events,
//! whatever else happens at the same time, and a second try of an event is drawn anew.

use super::{BatchLimits, DeliveryBatch, Destination, FaultDrill, Run};
use crate::BoxFuture;
use crate::core::event::Event;
use crate::core::random::mix;
use crate::core::verdict::{Failed, Report, Verdict};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct Faulty {
    inner: Arc<dyn Destination>,
    drill: FaultDrill,
}

impl Faulty {
    /// `drill.one_in` is 2 or more.
    pub(super) fn new(inner: Arc<dyn Destination>, drill: FaultDrill) -> Self {
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
    fn passes(&self, hand_over: &DeliveryBatch, run: &Run) -> usize {
        let events = hand_over.events_of(run);
        let failing = events.iter().enumerate().position(|(at, event)| {
            let attempt = if at == 0 { run.attempt } else { 1 };
            self.fails(hand_over.partition, event.offset, attempt)
        });
        failing.unwrap_or(events.len())
    }
}

/// The hand-over with only the first `passes[i]` events of run `i`; runs of which nothing is left are left out.
fn cut(hand_over: DeliveryBatch, passes: &[usize]) -> DeliveryBatch {
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
    DeliveryBatch { runs, events: kept, ..hand_over }
}

impl Destination for Faulty {
    fn address(&self) -> Option<String> {
        self.inner.address()
    }

    fn limits(&self) -> BatchLimits {
        self.inner.limits()
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        self.inner.lost()
    }

    fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
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

    fn released(&self, partition: u32) {
        self.inner.released(partition);
    }

    fn reopen(&self) {
        self.inner.reopen();
    }

    fn resent(&self) -> u64 {
        self.inner.resent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;
    use crate::destination::{MANY, null::Null};
    use std::sync::Mutex;

    /// Delivers of each run the events up to the first whose offset is a multiple of this.
    #[derive(Debug)]
    struct Stops {
        at: i64,
        seen: Mutex<Vec<i64>>,
    }

    impl Destination for Stops {
        fn limits(&self) -> BatchLimits {
            MANY
        }

        fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
            let report = |run: &Run| {
                assert!(!run.events.is_empty(), "a run is never empty");
                let events = hand_over.events_of(run);
                let stop = events.iter().position(|event| event.offset % self.at == 0);
                let delivered = stop.unwrap_or(events.len());
                self.seen.lock().unwrap().extend(events[..delivered].iter().map(|event| event.offset));
                Report { delivered, failed: stop.map(|_| Failed::new(Verdict::Refused, "inner")) }
            };
            let ends: usize = hand_over.runs.iter().map(|run| run.events.len()).sum();
            assert_eq!(ends, hand_over.events.len(), "the events are those of the runs");
            Box::pin(std::future::ready(hand_over.runs.iter().map(report).collect()))
        }
    }

    fn hand_over(runs: usize, events_each: usize, attempt: u32) -> DeliveryBatch {
        let event = |offset| Event { offset: offset as i64, record: Record::new(None, None, &[], 0) };
        let run = |run| Run { events: run * events_each..(run + 1) * events_each, attempt, gap: false };
        DeliveryBatch {
            topic: "t".into(),
            partition: 3,
            runs: (0..runs).map(run).collect(),
            events: (0..runs * events_each).map(event).collect(),
            deadline: tokio::time::Instant::now().into(),
        }
    }

    fn faulty(inner: impl Destination + 'static, one_in: u32, seed: u64) -> Faulty {
        Faulty::new(Arc::new(inner), FaultDrill { one_in, seed })
    }

    #[tokio::test]
    async fn one_in_n_first_tries_fails_and_the_same_ones_with_the_same_seed() {
        let failing = async |seed, attempt| -> Vec<usize> {
            let reports = faulty(Null, 5, seed).deliver(hand_over(10_000, 1, attempt)).await;
            reports.iter().enumerate().filter(|(_, report)| report.failed.is_some()).map(|(at, _)| at).collect()
        };
        let first = failing(1, 1).await;
        assert!((1_850..2_150).contains(&first.len()), "{} of 10,000 at one in 5", first.len());
        assert_eq!(first, failing(1, 1).await);
        for others in [failing(2, 1).await, failing(1, 2).await] {
            let both = others.iter().filter(|at| first.binary_search(at).is_ok()).count();
            assert!((300..500).contains(&both), "{both} fail in both draws: they hang together");
        }
    }

    #[tokio::test]
    async fn a_run_is_delivered_up_to_the_event_that_fails_unless_it_failed_earlier() {
        let inner = Arc::new(Stops { at: 7, seen: Mutex::default() });
        let faulty = Faulty::new(inner.clone(), FaultDrill { one_in: 4, seed: 9 });
        let hand_over = hand_over(500, 5, 1);
        let reports = faulty.deliver(hand_over.clone()).await;
        assert_eq!(reports.len(), hand_over.runs.len());
        let (mut expected_seen, mut drilled_runs, mut inner_runs) = (Vec::new(), 0, 0);
        for (run, report) in hand_over.runs.iter().zip(&reports) {
            let events = hand_over.events_of(run);
            let drilled = events.iter().position(|event| faulty.fails(3, event.offset, 1));
            let stopped = events.iter().position(|event| event.offset % 7 == 0);
            let end = drilled.unwrap_or(5).min(stopped.unwrap_or(5));
            assert_eq!(report.delivered, end);
            expected_seen.extend(events[..end].iter().map(|event| event.offset));
            let verdict = report.failed.as_ref().map(|failed| failed.verdict);
            if end == 5 {
                assert_eq!(verdict, None);
            } else if drilled == Some(end) {
                assert_eq!(verdict, Some(Verdict::Drilled));
                drilled_runs += 1;
            } else {
                assert_eq!(verdict, Some(Verdict::Refused));
                inner_runs += 1;
            }
        }
        assert_eq!(*inner.seen.lock().unwrap(), expected_seen);
        assert!(drilled_runs > 50 && inner_runs > 50, "{drilled_runs} {inner_runs}: both have to happen");
    }
}
