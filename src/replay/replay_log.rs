//! The log as dispatch sees it during a replay: only the events of the plan, each with the id of the replay.

use super::redrive::RedriveMarker;
use super::select::{self, Selection, SelectionResult};
use crate::BoxFuture;
use crate::core::event::{Event, ID, REPLAY, Record};
use crate::core::outcome::Failure;
use crate::core::progress::ParkedEvents;
use crate::log::{AppendLimits, FetchError, Fetched, Log};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Shows one range of each partition, and in it only the selected events.
#[derive(Debug)]
pub(super) struct ReplayLog {
    pub(super) source: Arc<dyn Log>,
    /// The main topic. Events of a dead-letter topic are shown under it, because their ids are made from it.
    pub(super) topic: String,
    pub(super) replay_id: String,
    pub(super) selection: Selection,
    /// The end of each partition that is in the plan.
    pub(super) ends: BTreeMap<u32, i64>,
    /// Events of parked users that the destination delivers itself, later.
    pub(super) left_out: BTreeMap<u32, ParkedEvents>,
    /// Is told about every dead letter that dispatch fetches.
    pub(super) marker: Option<Arc<RedriveMarker>>,
}

impl ReplayLog {
    /// The record as the destination gets it: with the id of the replay. A dead letter also gets back the time and the
    /// id that its event had.
    fn outgoing_record(&self, partition: u32, event: &Event) -> Record {
        let mut record = event.record.clone();
        if self.selection.dead {
            record.timestamp_ms = select::accepted_ms(true, event);
            if record.header_text(ID).is_none() {
                // Without an id header, the id is made from the partition and offset of the event, not of the letter.
                record = record.with_header(ID, select::id_of(true, &self.topic, partition, event).as_bytes());
            }
        }
        record.with_header(REPLAY, self.replay_id.as_bytes())
    }

    /// Leaves out the events that are not selected, or that come after the end of the range.
    fn filter(&self, partition: u32, end: i64, fetched: Fetched) -> Fetched {
        let is_selected =
            |event: &Event| self.selection.check(&self.topic, partition, event) == SelectionResult::Selected;
        let outgoing = |event: Event| Event { offset: event.offset, record: self.outgoing_record(partition, &event) };
        let in_range = fetched.events.into_iter().take_while(|event| event.offset < end);
        let left_out = self.left_out.get(&partition);
        let is_left_out =
            |event: &Event| left_out.is_some_and(|parked| parked.contains(event.record.key(), event.offset));
        let planned = in_range.filter(|event| !is_left_out(event) && is_selected(event));
        let events: Vec<Event> = planned.map(outgoing).collect();
        if let Some(marker) = &self.marker {
            marker.add_fetched(partition, &events);
        }
        Fetched { events, next: fetched.next.min(end), latest: end }
    }
}

impl Log for ReplayLog {
    fn topic(&self) -> &str {
        &self.topic
    }

    fn append_limits(&self) -> AppendLimits {
        self.source.append_limits()
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        self.source.partitions()
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        self.source.append(partition, records)
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
                // Nothing more comes. Dispatch asks again until the last commit is stored and the replay is stopped.
                tokio::time::sleep(wait).await;
                return Ok(Fetched { events: Vec::new(), next: from, latest: from });
            }
            let fetched = self.source.fetch(partition, from, max_bytes, wait).await?;
            Ok(self.filter(partition, end, fetched))
        })
    }

    fn earliest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.source.earliest(partition)
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        self.source.latest(partition)
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        self.source.offset_at(partition, timestamp_ms)
    }
}
