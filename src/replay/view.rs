//! What dispatch works with in a replay: the log, the group and the destination, each behind a wrapper that shows it the
//! replay alone.
//!
//! ```text
//!  log ──▶ ReplayLog: only what is taken, up to the end; each with `eventd-replay: ID` ──▶ dispatch ──▶ RedriveDestination ──▶ destination
//!  group ◀── Progress: under the destination's name for the letters, tells when the last leg is done ◀──┘
//! ```
//!
//! Dispatch delivers until it is told to stop, and a replay has an end: the commits tell when it is reached, and
//! whoever watches them stops dispatch as a signal does.

use super::plan::PartitionPlan;
use super::range::OffsetRange;
use super::select::{self, Selection, SelectionResult};
use crate::BoxFuture;
use crate::core::event::{Event, ID, REPLAY, Record};
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState, Progress};
use crate::core::verdict::Report;
use crate::destination::{BatchLimits, DeliveryBatch, Destination, Run};
use crate::group::{Change, Group};
use crate::log::{AppendLimits, FetchError, Fetched, Log};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The log as a replay sees it: of each partition one stretch, of its events those that are taken.
#[derive(Debug)]
pub(super) struct ReplayLog {
    pub(super) log: Arc<dyn Log>,
    /// Where the events were first: the topic itself, also where dead letters are read.
    pub(super) topic: String,
    pub(super) id: String,
    pub(super) selection: Selection,
    /// The end of each partition that has a part in it.
    pub(super) ends: BTreeMap<u32, i64>,
    /// Told of every event that dispatch was given, if somebody wants to know.
    pub(super) taken: Option<Arc<RedriveMarker>>,
}

impl ReplayLog {
    /// The record as it goes out: with the replay's id, and that of a dead letter as the event was.
    fn outgoing(&self, partition: u32, event: &Event) -> Record {
        let mut record = event.record.clone();
        if self.selection.dead {
            record.timestamp_ms = select::accepted_ms(true, event);
            if record.header_text(ID).is_none() {
                // Made of the place that the event had, which the letter alone knows.
                record = record.with_header(ID, select::id_of(true, &self.topic, partition, event).as_bytes());
            }
        }
        record.with_header(REPLAY, self.id.as_bytes())
    }

    fn show(&self, partition: u32, end: i64, fetched: Fetched) -> Fetched {
        let inside = fetched.events.into_iter().take_while(|event| event.offset < end);
        let taken =
            inside.filter(|event| self.selection.judge(&self.topic, partition, event) == SelectionResult::Selected);
        let events: Vec<Event> =
            taken.map(|event| Event { offset: event.offset, record: self.outgoing(partition, &event) }).collect();
        if let Some(taken) = &self.taken {
            taken.given(partition, &events);
        }
        Fetched { events, next: fetched.next.min(end), latest: end }
    }
}

impl Log for ReplayLog {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn append_limits(&self) -> AppendLimits {
        self.log.append_limits()
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        self.log.partitions()
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.append(partition, records)
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let end = self.ends.get(&partition).copied().unwrap_or(from);
            if from >= end {
                // What the last commit is waited for with.
                tokio::time::sleep(wait).await;
                return Ok(Fetched { events: Vec::new(), next: from, latest: from });
            }
            let fetched = self.log.fetch(partition, from, max_bytes, wait).await?;
            Ok(self.show(partition, end, fetched))
        })
    }

    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.earliest(partition)
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.log.latest(partition)
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        self.log.offset_at(partition, timestamp_ms)
    }
}

/// The dead letters that dispatch was given and that are not marked as redriven yet, and the group that says so.
#[derive(Debug)]
pub(super) struct RedriveMarker {
    group: Arc<dyn Group>,
    partitions: Mutex<BTreeMap<u32, Marks>>,
}

#[derive(Debug)]
struct Marks {
    open: BTreeSet<i64>,
    redriven: Progress,
    stored: PartitionState,
}

impl RedriveMarker {
    /// `redriven`: what the group says already, by partition.
    pub(super) fn new(group: Arc<dyn Group>, redriven: &BTreeMap<u32, PartitionState>) -> Self {
        let marks = |(partition, state): (&u32, &PartitionState)| {
            let marks = Marks { open: BTreeSet::new(), redriven: Progress::new(state), stored: state.clone() };
            (*partition, marks)
        };
        Self { group, partitions: Mutex::new(redriven.iter().map(marks).collect()) }
    }

    fn given(&self, partition: u32, events: &[Event]) {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(marks) = partitions.get_mut(&partition) {
            marks.open.extend(events.iter().map(|event| event.offset));
        }
    }

    /// Marks what is settled in this state, before that is committed: a crash between the two redelivers, and never
    /// leaves a letter unmarked that nobody will look at again.
    async fn mark(&self, partition: u32, state: &PartitionState) -> Result<(), Failure> {
        let (marked, stored) = {
            let settled = Progress::new(state);
            let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(marks) = partitions.get_mut(&partition) else { return Ok(()) };
            marks.open.retain(|offset| {
                let done = settled.is_settled(*offset);
                if done {
                    marks.redriven.settle(*offset..*offset + 1);
                }
                !done
            });
            (marks.redriven.state(), marks.stored.clone())
        };
        if marked == stored {
            return Ok(());
        }
        self.group.commit(partition, marked.clone()).await?;
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(marks) = partitions.get_mut(&partition) {
            marks.stored = marked;
        }
        Ok(())
    }

    pub(super) async fn leave(&self) {
        self.group.leave().await;
    }
}

/// The replay's own group, as dispatch sees it: under the destination's name, since dead letters are named after it.
#[derive(Debug)]
pub(super) struct ReplayGroup {
    group: Arc<dyn Group>,
    destination: String,
    ends: BTreeMap<u32, i64>,
    taken: Option<Arc<RedriveMarker>>,
    /// Partitions that are not done.
    open: watch::Sender<BTreeSet<u32>>,
}

impl ReplayGroup {
    pub(super) fn new(
        group: Arc<dyn Group>,
        destination: &str,
        legs: &[PartitionPlan],
        taken: Option<Arc<RedriveMarker>>,
    ) -> Self {
        let is_open = |leg: &&PartitionPlan| leg.state.watermark < leg.stretch.until;
        let open = legs.iter().filter(is_open).map(|leg| leg.stretch.partition).collect();
        let ends = ends_of(legs);
        Self { group, destination: destination.to_owned(), ends, taken, open: watch::Sender::new(open) }
    }

    pub(super) fn open(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.open.subscribe()
    }

    fn is_open(&self, partition: u32) -> bool {
        self.open.borrow().contains(&partition)
    }
}

/// Where each partition ends.
pub(super) fn ends_of(legs: &[PartitionPlan]) -> BTreeMap<u32, i64> {
    legs.iter()
        .map(|PartitionPlan { stretch: OffsetRange { partition, until, .. }, .. }| (*partition, *until))
        .collect()
}

impl Group for ReplayGroup {
    fn name(&self) -> &str {
        &self.destination
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(async move {
            loop {
                match self.group.changed().await? {
                    // There is nothing to do in it, so it is nobody's.
                    Change::Assigned(partition) if !self.is_open(partition) => {}
                    change => return Ok(change),
                }
            }
        })
    }

    fn released(&self, partition: u32) -> BoxFuture<'_, ()> {
        self.group.released(partition)
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        self.group.committed(partition)
    }

    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            if let Some(taken) = &self.taken {
                taken.mark(partition, &state).await?;
            }
            let watermark = state.watermark;
            self.group.commit(partition, state).await?;
            if self.ends.get(&partition).is_some_and(|end| watermark >= *end) {
                self.open.send_if_modified(|open| open.remove(&partition));
            }
            Ok(())
        })
    }

    fn requested_reset(&self, _partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        // A replay has no position that anybody moves.
        Box::pin(std::future::ready(Ok(None)))
    }

    fn lease_deadline(&self) -> Option<Instant> {
        self.group.lease_deadline()
    }

    fn drain(&self) {
        self.group.drain();
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.group.leave()
    }
}

/// A destination that is told where each dead letter's event was, and not where the letter is.
pub(super) struct RedriveDestination(pub(super) Arc<dyn Destination>);

impl fmt::Debug for RedriveDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedriveDestination").field(&self.0).finish()
    }
}

impl RedriveDestination {
    /// Letters of several partitions of the source, which are in one partition if their topic lacks some: one run after
    /// the other, each cut where the partition changes.
    async fn deliver_apart(&self, hand_over: DeliveryBatch, partitions: Vec<u32>) -> Vec<Report> {
        let mut reports = Vec::with_capacity(hand_over.runs.len());
        for Run { events, attempt, gap } in hand_over.runs {
            let mut report = Report { delivered: 0, failed: None };
            let mut at = events.start;
            while at < events.end && report.failed.is_none() {
                let partition = partitions[at];
                let same = partitions[at..events.end].iter().take_while(|other| **other == partition).count();
                let is_first = at == events.start;
                let run = Run { events: 0..same, attempt: if is_first { attempt } else { 1 }, gap: gap && is_first };
                let part = DeliveryBatch {
                    topic: Arc::clone(&hand_over.topic),
                    partition,
                    runs: vec![run],
                    events: hand_over.events[at..at + same].to_vec(),
                    deadline: hand_over.deadline.clone(),
                };
                // Without a report the run counts as cut short, which the worker takes for a broken invariant.
                let Some(one) = self.0.deliver(part).await.pop() else { break };
                report.delivered += one.delivered;
                report.failed = one.failed;
                at += same;
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

    fn deliver(&self, mut hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>> {
        let mut partitions = Vec::with_capacity(hand_over.events.len());
        for event in &mut hand_over.events {
            let (partition, offset) = select::source_of(event).unwrap_or((hand_over.partition, event.offset));
            event.offset = offset;
            partitions.push(partition);
        }
        match partitions.first().copied() {
            Some(first) if partitions.iter().any(|partition| *partition != first) => {
                Box::pin(self.deliver_apart(hand_over, partitions))
            }
            first => {
                hand_over.partition = first.unwrap_or(hand_over.partition);
                self.0.deliver(hand_over)
            }
        }
    }

    fn reopen(&self) {
        self.0.reopen();
    }
}
