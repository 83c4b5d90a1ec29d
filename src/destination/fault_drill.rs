//! The fault drill of `--reliability N`. It wraps a destination and fails about one in N attempts before they reach it.
//!
//! A hash of seed, partition, offset and attempt number decides whether an attempt fails. There is no other state. So the
//! same seed fails the same attempts in every run, and each further try of an event has its own chance.

use super::{BatchLimits, DeliveryBatch, Destination, FaultDrill, Run};
use crate::BoxFuture;
use crate::core::event::Event;
use crate::core::random::mix;
use crate::core::verdict::{Failed, Report, Verdict};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct DrilledDestination {
    inner: Arc<dyn Destination>,
    drill: FaultDrill,
}

impl DrilledDestination {
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

    /// The number of events of the run before the first one that the drill fails.
    fn passes(&self, batch: &DeliveryBatch, run: &Run) -> usize {
        let events = batch.events_of(run);
        let failing = events.iter().enumerate().position(|(at, event)| {
            let attempt = if at == 0 { run.attempt } else { 1 };
            self.fails(batch.partition, event.offset, attempt)
        });
        failing.unwrap_or(events.len())
    }
}

/// The batch with only the first `passes[i]` events of run `i`. Runs without events are removed.
fn truncate_runs(batch: DeliveryBatch, passes: &[usize]) -> DeliveryBatch {
    let mut events: Vec<Option<Event>> = batch.events.into_iter().map(Some).collect();
    let mut kept = Vec::with_capacity(events.len());
    let mut runs = Vec::with_capacity(passes.len());
    for (run, &passing) in batch.runs.into_iter().zip(passes) {
        let start = kept.len();
        kept.extend(events[run.events.start..run.events.start + passing].iter_mut().filter_map(Option::take));
        if passing > 0 {
            runs.push(Run { events: start..kept.len(), ..run });
        }
    }
    DeliveryBatch { runs, events: kept, ..batch }
}

impl Destination for DrilledDestination {
    fn address(&self) -> Option<String> {
        self.inner.address()
    }

    fn limits(&self) -> BatchLimits {
        self.inner.limits()
    }

    fn lost(&self) -> BoxFuture<'_, String> {
        self.inner.lost()
    }

    fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        let passes: Vec<usize> = batch.runs.iter().map(|run| self.passes(&batch, run)).collect();
        if passes.iter().zip(&batch.runs).all(|(passes, run)| *passes == run.events.len()) {
            return self.inner.deliver(batch);
        }
        Box::pin(async move {
            let run_lens: Vec<usize> = batch.runs.iter().map(|run| run.events.len()).collect();
            let batch = truncate_runs(batch, &passes);
            let reports = if batch.runs.is_empty() { Vec::new() } else { self.inner.deliver(batch).await };
            let mut reports = reports.into_iter();
            let report = |(&passes, run_len): (&usize, usize)| {
                let inner = if passes == 0 { None } else { reports.next() };
                let inner = inner.unwrap_or(Report { delivered: 0, failed: None });
                let drilled = inner.failed.is_none() && passes < run_len;
                let failed = || Failed::new(Verdict::Drilled, "failed on purpose by the fault drill (--reliability)");
                Report { failed: inner.failed.or_else(|| drilled.then(failed)), ..inner }
            };
            passes.iter().zip(run_lens).map(report).collect()
        })
    }

    fn released(&self, partition: u32) {
        self.inner.released(partition);
    }

    fn reopen(&self) {
        self.inner.reopen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;
    use crate::destination::{LINE_WRITER_LIMITS, null::NullDestination};
    use std::sync::Mutex;

    /// Delivers the events of each run up to the first one whose offset is a multiple of `at`.
    #[derive(Debug)]
    struct StopsAt {
        at: i64,
        seen: Mutex<Vec<i64>>,
    }

    impl Destination for StopsAt {
        fn limits(&self) -> BatchLimits {
            LINE_WRITER_LIMITS
        }

        fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
            let report = |run: &Run| {
                assert!(!run.events.is_empty(), "a run has no events");
                let events = batch.events_of(run);
                let stop = events.iter().position(|event| event.offset % self.at == 0);
                let delivered = stop.unwrap_or(events.len());
                self.seen.lock().unwrap().extend(events[..delivered].iter().map(|event| event.offset));
                Report { delivered, failed: stop.map(|_| Failed::new(Verdict::Refused, "inner")) }
            };
            let ends: usize = batch.runs.iter().map(|run| run.events.len()).sum();
            assert_eq!(ends, batch.events.len(), "the batch has events that belong to none of its runs");
            Box::pin(std::future::ready(batch.runs.iter().map(report).collect()))
        }
    }

    fn batch_of(runs: usize, events_each: usize, attempt: u32) -> DeliveryBatch {
        let event = |offset| Event { offset: offset as i64, record: Record::new(None, None, &[], 0) };
        let run = |run| Run { events: run * events_each..(run + 1) * events_each, attempt, after_dead_letter: false };
        DeliveryBatch {
            topic: "t".into(),
            partition: 3,
            runs: (0..runs).map(run).collect(),
            events: (0..runs * events_each).map(event).collect(),
            deadline: tokio::time::Instant::now().into(),
        }
    }

    fn drilled(inner: impl Destination + 'static, one_in: u32, seed: u64) -> DrilledDestination {
        DrilledDestination::new(Arc::new(inner), FaultDrill { one_in, seed })
    }

    #[tokio::test]
    async fn about_one_in_n_attempts_fails_and_the_same_seed_fails_the_same_ones() {
        let failing = async |seed, attempt| -> Vec<usize> {
            let reports = drilled(NullDestination, 5, seed).deliver(batch_of(10_000, 1, attempt)).await;
            reports.iter().enumerate().filter(|(_, report)| report.failed.is_some()).map(|(at, _)| at).collect()
        };
        let first = failing(1, 1).await;
        assert!(
            (1_850..2_150).contains(&first.len()),
            "{} of 10,000 attempts failed, and one in 5 was asked for",
            first.len()
        );
        assert_eq!(first, failing(1, 1).await);
        for others in [failing(2, 1).await, failing(1, 2).await] {
            let both = others.iter().filter(|at| first.binary_search(at).is_ok()).count();
            assert!(
                (300..500).contains(&both),
                "{both} attempts fail in both drills, so the drills are not independent"
            );
        }
    }

    #[tokio::test]
    async fn a_run_is_delivered_up_to_the_event_that_the_drill_or_the_destination_fails() {
        let inner = Arc::new(StopsAt { at: 7, seen: Mutex::default() });
        let drilled = DrilledDestination::new(inner.clone(), FaultDrill { one_in: 4, seed: 9 });
        let batch = batch_of(500, 5, 1);
        let reports = drilled.deliver(batch.clone()).await;
        assert_eq!(reports.len(), batch.runs.len());
        let (mut expected_seen, mut drilled_runs, mut inner_runs) = (Vec::new(), 0, 0);
        for (run, report) in batch.runs.iter().zip(&reports) {
            let events = batch.events_of(run);
            let drilled_at = events.iter().position(|event| drilled.fails(3, event.offset, 1));
            let stopped_at = events.iter().position(|event| event.offset % 7 == 0);
            let end = drilled_at.unwrap_or(5).min(stopped_at.unwrap_or(5));
            assert_eq!(report.delivered, end);
            expected_seen.extend(events[..end].iter().map(|event| event.offset));
            let verdict = report.failed.as_ref().map(|failed| failed.verdict);
            if end == 5 {
                assert_eq!(verdict, None);
            } else if drilled_at == Some(end) {
                assert_eq!(verdict, Some(Verdict::Drilled));
                drilled_runs += 1;
            } else {
                assert_eq!(verdict, Some(Verdict::Refused));
                inner_runs += 1;
            }
        }
        assert_eq!(*inner.seen.lock().unwrap(), expected_seen);
        assert!(
            drilled_runs > 50 && inner_runs > 50,
            "{drilled_runs} runs failed by the drill and {inner_runs} by the destination, and both have to be tested"
        );
    }
}
