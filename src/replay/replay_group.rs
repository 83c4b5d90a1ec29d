//! The replay's own group, as dispatch sees it.
//!
//! Dispatch delivers until it is told to stop, but a replay has an end. The commits show when the end is reached: a
//! partition is done when its watermark reaches the end of its range. `run` watches the open partitions and then stops
//! dispatch as a signal would.

use super::plan::PartitionPlan;
use super::redrive::RedriveMarker;
use crate::BoxFuture;
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState};
use crate::group::{Change, Group};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

/// The group of a replay. It has the destination's name, because dispatch names the topic of dead letters after it.
#[derive(Debug)]
pub(super) struct ReplayGroup {
    group: Arc<dyn Group>,
    destination: String,
    ends: BTreeMap<u32, i64>,
    marker: Option<Arc<RedriveMarker>>,
    /// Partitions that are not done.
    open: watch::Sender<BTreeSet<u32>>,
}

impl ReplayGroup {
    pub(super) fn new(
        group: Arc<dyn Group>,
        destination: &str,
        partitions: &[PartitionPlan],
        marker: Option<Arc<RedriveMarker>>,
    ) -> Self {
        let is_open = |plan: &&PartitionPlan| plan.initial_state.watermark < plan.offsets.until;
        let open = partitions.iter().filter(is_open).map(|plan| plan.offsets.partition).collect();
        let ends = partition_ends(partitions);
        Self { group, destination: destination.to_owned(), ends, marker, open: watch::Sender::new(open) }
    }

    /// The partitions that are not done.
    pub(super) fn open_partitions(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.open.subscribe()
    }

    fn is_open(&self, partition: u32) -> bool {
        self.open.borrow().contains(&partition)
    }
}

/// The end of each partition in the plan.
pub(super) fn partition_ends(partitions: &[PartitionPlan]) -> BTreeMap<u32, i64> {
    partitions.iter().map(|PartitionPlan { offsets, .. }| (offsets.partition, offsets.until)).collect()
}

impl Group for ReplayGroup {
    fn name(&self) -> &str {
        &self.destination
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(async move {
            loop {
                match self.group.changed().await? {
                    // The replay has nothing to deliver in this partition, so dispatch need not know of it.
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
            if let Some(marker) = &self.marker {
                marker.mark_settled(partition, &state).await?;
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
        // A rewind resets the offsets of the destination, never those of a replay.
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
