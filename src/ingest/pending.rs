//! How many bytes are accepted and not yet appended: `--max-pending`, one budget for all connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

/// The budget. Body bytes count from the moment when the body is complete (before, they are those of
/// [`Uploads`](super::uploads::Uploads)), records until their append has ended.
#[derive(Debug)]
pub(super) struct Pending {
    max_bytes: usize,
    used_bytes: AtomicUsize,
    emptied: Notify,
}

impl Pending {
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, used_bytes: AtomicUsize::new(0), emptied: Notify::new() })
    }

    pub(super) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { pending: self.clone(), held_bytes: 0 }
    }

    /// Waits until nothing is pending: what was accepted is appended, or was answered as not stored.
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

/// What one request holds of the budget, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    pending: Arc<Pending>,
    held_bytes: usize,
}

impl Reservation {
    /// Takes more, or says that there is no room. A request that is alone always gets it: its size has limits of its
    /// own, and else one that is larger than the whole budget could never be served.
    #[must_use]
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let grown = self.pending.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            let wanted = used.saturating_add(bytes);
            (used == self.held_bytes || wanted <= self.pending.max_bytes).then_some(wanted)
        });
        if grown.is_ok() {
            self.held_bytes += bytes;
        }
        grown.is_ok()
    }

    /// Holds this much instead of what was held; nothing changes where there is no room.
    #[must_use]
    pub(super) fn replace(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.held_bytes) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(self.held_bytes - bytes);
                true
            }
        }
    }

    fn shrink(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
        if self.pending.used_bytes.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.pending.emptied.notify_waiters();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.held_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_kept_and_given_back() {
        let pending = Pending::new(100);
        let (mut one, mut two) = (pending.reservation(), pending.reservation());
        assert!(one.grow(60) && two.grow(40) && !one.grow(1));
        two.shrink(1);
        assert!(one.grow(1) && !two.grow(1));
        drop(one);
        assert!(two.grow(61));
        drop(two);
        assert_eq!(pending.used_bytes.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_request_that_is_alone_gets_what_it_needs() {
        let pending = Pending::new(10);
        let (mut one, mut two) = (pending.reservation(), pending.reservation());
        assert!(one.grow(8) && one.grow(1000));
        assert!(!two.grow(1));
    }
}
