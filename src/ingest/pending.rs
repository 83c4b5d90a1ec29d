//! The budget of `--max-pending`: bytes that ingest has accepted and the log has not yet appended. All connections
//! share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// The budget. A body counts from the moment when it is complete, and its records until their append has ended. A body
/// that is still arriving counts in the [`UploadBudget`](super::uploads::UploadBudget) instead.
#[derive(Debug)]
pub(super) struct PendingBudget {
    max_bytes: usize,
    used_bytes: AtomicUsize,
    emptied: Notify,
}

impl PendingBudget {
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, used_bytes: AtomicUsize::new(0), emptied: Notify::new() })
    }

    /// A reservation of 0 bytes.
    pub(super) fn reservation(self: &Arc<Self>) -> PendingBytes {
        PendingBytes { budget: self.clone(), held_bytes: 0 }
    }

    /// Waits until nothing is pending: every accepted event is either appended or was answered as not stored.
    pub(super) async fn emptied(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.used_bytes.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// What one request holds of the budget. Dropping it gives the bytes back.
#[derive(Debug)]
pub(super) struct PendingBytes {
    budget: Arc<PendingBudget>,
    held_bytes: usize,
}

impl PendingBytes {
    /// Sets the number of bytes that the request holds. Returns `false` and changes nothing if the budget has no room.
    ///
    /// A request that is alone always gets what it asks for. Its size has limits of its own, and otherwise a request
    /// that is larger than the whole budget could never be served.
    #[must_use]
    pub(super) fn resize(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.held_bytes) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.held_bytes - bytes);
                true
            }
        }
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let grown = self.budget.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            let wanted = used.saturating_add(bytes);
            (used == self.held_bytes || wanted <= self.budget.max_bytes).then_some(wanted)
        });
        if grown.is_ok() {
            self.held_bytes += bytes;
        }
        grown.is_ok()
    }

    fn shrink(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
        if self.budget.used_bytes.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.budget.emptied.notify_waiters();
        }
    }
}

impl Drop for PendingBytes {
    fn drop(&mut self) {
        self.shrink(self.held_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_share_the_budget_and_give_back_what_they_held() {
        let budget = PendingBudget::new(100);
        let (mut one, mut two) = (budget.reservation(), budget.reservation());
        assert!(one.resize(60) && two.resize(40) && !one.resize(61));
        assert!(two.resize(39) && one.resize(61) && !two.resize(40));
        drop(one);
        assert!(two.resize(100));
        drop(two);
        assert_eq!(budget.used_bytes.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_request_that_is_alone_gets_more_than_the_whole_budget() {
        let budget = PendingBudget::new(10);
        let (mut one, mut two) = (budget.reservation(), budget.reservation());
        assert!(one.resize(8) && one.resize(1008));
        assert!(!two.resize(1));
    }
}
