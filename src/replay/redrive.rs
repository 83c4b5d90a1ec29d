//! Redriving dead letters: marks them when they are settled, and delivers them as the events that they were.

use super::select;
use crate::BoxFuture;
use crate::core::event::Event;
use crate::core::outcome::Failure;
use crate::core::progress::{PartitionState, Progress};
use crate::core::verdict::Report;
use crate::destination::{BatchLimits, DeliveryBatch, Destination, Run};
use crate::group::Group;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Marks dead letters as redriven, by commits to the group `<dest>.dead`.
#[derive(Debug)]
pub(super) struct RedriveMarker {
    group: Arc<dyn Group>,
    partitions: Mutex<BTreeMap<u32, PartitionMarks>>,
}

#[derive(Debug)]
struct PartitionMarks {
    /// Dead letters that dispatch has fetched and that are not settled yet.
    unsettled: BTreeSet<i64>,
    redriven: Progress,
    /// The last state that was committed.
    committed: PartitionState,
}

impl RedriveMarker {
    /// `redriven` is the committed state of the group, by partition.
    pub(super) fn new(group: Arc<dyn Group>, redriven: &BTreeMap<u32, PartitionState>) -> Self {
        let marks = |(partition, state): (&u32, &PartitionState)| {
            let marks =
                PartitionMarks { unsettled: BTreeSet::new(), redriven: Progress::new(state), committed: state.clone() };
            (*partition, marks)
        };
        Self { group, partitions: Mutex::new(redriven.iter().map(marks).collect()) }
    }

    /// Remembers the dead letters that dispatch has fetched.
    pub(super) fn add_fetched(&self, partition: u32, events: &[Event]) {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(marks) = partitions.get_mut(&partition) {
            marks.unsettled.extend(events.iter().map(|event| event.offset));
        }
    }

    /// Marks the dead letters that are settled in this state. Call it before the state itself is committed. Then a crash
    /// in between delivers them again, and never leaves a dead letter without its mark.
    pub(super) async fn mark_settled(&self, partition: u32, state: &PartitionState) -> Result<(), Failure> {
        let (marked, committed) = {
            let settled = Progress::new(state);
            let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(marks) = partitions.get_mut(&partition) else { return Ok(()) };
            marks.unsettled.retain(|offset| {
                let is_settled = settled.is_settled(*offset);
                if is_settled {
                    marks.redriven.settle(*offset..*offset + 1);
                }
                !is_settled
            });
            (marks.redriven.state(), marks.committed.clone())
        };
        if marked == committed {
            return Ok(());
        }
        self.group.commit(partition, marked.clone()).await?;
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(marks) = partitions.get_mut(&partition) {
            marks.committed = marked;
        }
        Ok(())
    }

    pub(super) async fn leave(&self) {
        self.group.leave().await;
    }
}

/// Delivers each dead letter with the partition and offset that its event has in the main topic.
pub(super) struct RedriveDestination(pub(super) Arc<dyn Destination>);

impl fmt::Debug for RedriveDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedriveDestination").field(&self.0).finish()
    }
}

impl RedriveDestination {
    /// Delivers a batch whose events come from several partitions of the main topic. That happens if the topic of dead
    /// letters has fewer partitions. A delivery batch has one partition, so each run is cut where the partition changes,
    /// and the pieces are delivered one after the other. `partitions` is the partition of each event.
    async fn deliver_by_partition(&self, batch: DeliveryBatch, partitions: Vec<u32>) -> Vec<Report> {
        let mut reports = Vec::with_capacity(batch.runs.len());
        for Run { events, attempt, after_dead_letter } in batch.runs {
            let mut report = Report { delivered: 0, failed: None };
            let mut start = events.start;
            while start < events.end && report.failed.is_none() {
                let partition = partitions[start];
                let len = partitions[start..events.end].iter().take_while(|other| **other == partition).count();
                let is_first = start == events.start;
                let run = Run {
                    events: 0..len,
                    attempt: if is_first { attempt } else { 1 },
                    after_dead_letter: after_dead_letter && is_first,
                };
                let piece = DeliveryBatch {
                    topic: Arc::clone(&batch.topic),
                    partition,
                    runs: vec![run],
                    events: batch.events[start..start + len].to_vec(),
                    deadline: batch.deadline.clone(),
                };
                // A destination must report each run. Without a report this run is too short, and the worker then treats
                // it as a defect of the destination.
                let Some(piece_report) = self.0.deliver(piece).await.pop() else { break };
                report.delivered += piece_report.delivered;
                report.failed = piece_report.failed;
                start += len;
            }
            reports.push(report);
        }
        reports
    }
}

impl Destination for RedriveDestination {
    fn limits(&self) -> BatchLimits {
        self.0.limits()
    }

    fn deliver(&self, mut batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        let mut partitions = Vec::with_capacity(batch.events.len());
        for event in &mut batch.events {
            let (partition, offset) = select::source_of(event).unwrap_or((batch.partition, event.offset));
            event.offset = offset;
            partitions.push(partition);
        }
        match partitions.first().copied() {
            Some(first) if partitions.iter().any(|partition| *partition != first) => {
                Box::pin(self.deliver_by_partition(batch, partitions))
            }
            first => {
                batch.partition = first.unwrap_or(batch.partition);
                self.0.deliver(batch)
            }
        }
    }

    fn reopen(&self) {
        self.0.reopen();
    }

    fn address(&self) -> Option<String> {
        self.0.address()
    }

    // `released` is not passed on: it names a partition of the dead-letter topic, and the destination knows the events
    // by their partitions in the main topic.

    fn lost(&self) -> BoxFuture<'_, String> {
        self.0.lost()
    }
}
