//! What a destination's owners did, counted for whoever watches them.

use crate::core::verdict::{Report, Verdict};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Counts of one run of dispatch, from its beginning.
#[derive(Debug, Default)]
pub struct Tally {
    delivered: AtomicU64,
    given_up: AtomicU64,
    failed: AtomicU64,
    failures_in_a_row: watch::Sender<u64>,
    stopped: watch::Sender<BTreeSet<u32>>,
}

impl Tally {
    /// Events that were delivered.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Events whose dead letter is written.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Attempts that failed, drills left out.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Attempts that failed since the last event that was delivered, drills left out.
    pub fn failures_in_a_row(&self) -> watch::Receiver<u64> {
        self.failures_in_a_row.subscribe()
    }

    /// Partitions that stopped though nobody told them to.
    pub fn stopped_partitions(&self) -> watch::Receiver<BTreeSet<u32>> {
        self.stopped.subscribe()
    }

    pub(super) fn attempted(&self, report: &Report) {
        self.delivered.fetch_add(report.delivered as u64, Ordering::Relaxed);
        let failed = report.failed.as_ref().is_some_and(|failed| failed.verdict != Verdict::Drilled);
        self.failed.fetch_add(failed.into(), Ordering::Relaxed);
        self.failures_in_a_row.send_if_modified(|row| {
            let before = *row;
            *row = if report.delivered > 0 { 0 } else { before } + u64::from(failed);
            *row != before
        });
    }

    pub(super) fn gave_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stopped(&self, partition: u32) {
        self.stopped.send_modify(|stopped| _ = stopped.insert(partition));
    }
}
