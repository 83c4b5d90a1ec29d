//! A log in memory for tests of ingest. A test can freeze its appends and choose which of them fail.
//!
//! ```text
//!  append ── begun ── wait while frozen ── fail if planned ── stored, answered
//! ```

use super::wait::soon;
use crate::memory_partition::MemoryPartition;
use eventd::BoxFuture;
use eventd::core::event::Record;
use eventd::core::outcome::{Certainty, Failure};
use eventd::log::{FetchError, Fetched, Log};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug)]
pub(crate) struct MemoryLog {
    state: Mutex<State>,
    frozen: watch::Sender<bool>,
    /// The number of appends that have begun, whether they were stored or not.
    begun: watch::Sender<usize>,
    /// The number of stored records.
    stored: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    partitions: Vec<MemoryPartition>,
    /// The outcomes of the next appends to a partition. `None` means success.
    plan: VecDeque<(u32, Option<Failure>)>,
}

impl MemoryLog {
    pub(crate) fn new(partitions: usize) -> Arc<Self> {
        let state = State { partitions: vec![MemoryPartition::default(); partitions], plan: VecDeque::new() };
        Arc::new(Self {
            state: Mutex::new(state),
            frozen: watch::Sender::new(false),
            begun: watch::Sender::new(0),
            stored: watch::Sender::new(0),
        })
    }

    /// Appends wait from now on until [`release`](Self::release).
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(crate) fn release(&self) {
        self.frozen.send_replace(false);
    }

    /// Makes the next append to this partition fail. If the outcome is unknown, the records are stored all the same.
    pub(crate) fn fail_next(&self, partition: u32, failure: Failure) {
        self.state.lock().unwrap().plan.push_back((partition, Some(failure)));
    }

    /// Makes the next append to this partition succeed, so that a later plan is for the append after it.
    pub(crate) fn succeed_next(&self, partition: u32) {
        self.state.lock().unwrap().plan.push_back((partition, None));
    }

    pub(crate) fn add_partition(&self) {
        self.state.lock().unwrap().partitions.push(MemoryPartition::default());
    }

    pub(crate) async fn until_begun(&self, appends: usize) {
        let mut begun = self.begun.subscribe();
        soon("appends to begin", begun.wait_for(|begun| *begun >= appends)).await.unwrap();
    }

    pub(crate) async fn until_stored(&self, records: usize) {
        let mut stored = self.stored.subscribe();
        soon("records to be stored", stored.wait_for(|stored| *stored >= records)).await.unwrap();
    }

    /// The number of appends that have begun.
    pub(crate) fn appends(&self) -> usize {
        *self.begun.borrow()
    }

    /// The records of one partition, in order.
    pub(crate) fn records(&self, partition: u32) -> Vec<Record> {
        self.state.lock().unwrap().partitions[partition as usize].records.values().cloned().collect()
    }

    /// The values of one partition, as text, in order.
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        let text = |record: &Record| String::from_utf8(record.value().unwrap().to_vec()).unwrap();
        self.records(partition).iter().map(text).collect()
    }

    /// The number of records in all partitions.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().unwrap().partitions.iter().map(|partition| partition.records.len()).sum()
    }

    fn read(&self, partition: u32, from: i64, max_bytes: usize) -> Result<Fetched, FetchError> {
        self.state.lock().unwrap().partitions[partition as usize].fetch(from, max_bytes, usize::MAX, |_| false)
    }
}

impl Log for MemoryLog {
    fn topic(&self) -> &str {
        "user-events"
    }

    fn partitions(&self) -> BoxFuture<'_, Result<u32, Failure>> {
        Box::pin(async { Ok(self.state.lock().unwrap().partitions.len() as u32) })
    }

    fn append(&self, partition: u32, records: Vec<Record>) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move {
            assert!(!records.is_empty(), "ingest must not append nothing");
            let mut frozen = self.frozen.subscribe();
            self.begun.send_modify(|begun| *begun += 1);
            frozen.wait_for(|frozen| !frozen).await.expect("the log owns the sender");
            let mut state = self.state.lock().unwrap();
            let planned = state.plan.iter().position(|(of, _)| *of == partition);
            let failure = planned.and_then(|at| state.plan.remove(at)).and_then(|(_, failure)| failure);
            if let Some(failure) = failure.clone().filter(|failure| failure.certainty == Certainty::Refused) {
                return Err(failure);
            }
            let count = records.len();
            let first = state.partitions[partition as usize].append(records);
            drop(state);
            self.stored.send_modify(|stored| *stored += count);
            failure.map_or(Ok(first), Err)
        })
    }

    fn fetch(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async move {
            let mut stored = self.stored.subscribe();
            let some =
                stored.wait_for(|_| !matches!(&self.read(partition, from, max_bytes), Ok(f) if f.events.is_empty()));
            // Whether records came or the time is up: return what is there now.
            let _waited = tokio::time::timeout(wait, some).await;
            self.read(partition, from, max_bytes)
        })
    }

    fn earliest(&self, _partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async { Ok(0) })
    }

    fn latest(&self, partition: u32) -> BoxFuture<'_, Result<i64, Failure>> {
        Box::pin(async move { Ok(self.records(partition).len() as i64) })
    }

    fn offset_at(&self, partition: u32, timestamp_ms: i64) -> BoxFuture<'_, Result<Option<i64>, Failure>> {
        Box::pin(async move { Ok(self.state.lock().unwrap().partitions[partition as usize].offset_at(timestamp_ms)) })
    }
}
