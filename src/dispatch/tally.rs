//! Counters of one run of dispatch, for its caller: deliveries, failures, events given up, stopped partitions.

use crate::core::verdict::{Report, Verdict};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Counts since the start of one run of dispatch, over all partitions.
#[derive(Debug, Default)]
pub struct Tally {
    delivered: AtomicU64,
    given_up: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    parked_users: AtomicU64,
    read_again: AtomicU64,
    failures_in_a_row: watch::Sender<u64>,
    stopped: watch::Sender<BTreeSet<u32>>,
}

impl Tally {
    /// The number of delivered events.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// The number of events whose dead letter is stored.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The number of events that were settled without a delivery and without a dead letter (`--on-exhausted drop`).
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The number of failed attempts, without fault drills.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The number of users that are parked now.
    pub fn parked_users(&self) -> u64 {
        self.parked_users.load(Ordering::Relaxed)
    }

    /// The number of records that were read a second time, for parked users.
    pub fn records_read_again(&self) -> u64 {
        self.read_again.load(Ordering::Relaxed)
    }

    /// The number of failed attempts since the last delivered event, without fault drills.
    pub fn failures_in_a_row(&self) -> watch::Receiver<u64> {
        self.failures_in_a_row.subscribe()
    }

    /// Partitions that stopped with an error.
    pub fn stopped_partitions(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.stopped.subscribe()
    }

    /// Counts a run and the attempt of its first event that was not delivered.
    pub(super) fn attempted(&self, report: &Report) {
        self.delivered.fetch_add(report.delivered as u64, Ordering::Relaxed);
        let failed = report.failed.as_ref().map(|failed| failed.verdict);
        let failed = failed.is_some_and(|verdict| verdict != Verdict::Drilled && !verdict.says_nothing());
        self.failed.fetch_add(failed.into(), Ordering::Relaxed);
        self.failures_in_a_row.send_if_modified(|row| {
            let before = *row;
            *row = if report.delivered > 0 { 0 } else { before } + u64::from(failed);
            *row != before
        });
    }

    /// Counts an event that was given up.
    pub(super) fn gave_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event that was dropped.
    pub(super) fn drop_event(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of parked users of a partition has changed.
    pub(super) fn parked_users_changed(&self, before: u64, now: u64) {
        self.parked_users.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Adds records that were read a second time.
    pub(super) fn read_again(&self, records: u64) {
        self.read_again.fetch_add(records, Ordering::Relaxed);
    }

    /// Adds a partition that stopped with an error.
    pub(super) fn stopped(&self, partition: u32) {
        self.stopped.send_modify(|stopped| _ = stopped.insert(partition));
    }
}
