//! Numbers the times in which tries are counted, so that the tries of a bad time can be taken back later.
//!
//! ```text
//!   epoch 0 ── delivered ──▶ epoch 1 ── health turns bad ──▶ epoch 2      epoch 1 is void: its tries do not count
//! ```
//!
//! The breaker does not know the tries; the lanes hold them. Each try carries its epoch, and a lane asks when it next looks
//! at its tries whether that epoch is void. So taking back the tries of a million lanes costs one entry here.

use std::collections::VecDeque;

/// Void epochs that are remembered. If there are more, the tries of the oldest one count again.
pub(super) const VOID_EPOCHS_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct TryEpochs {
    current: u64,
    /// Whether a try was counted in the current epoch. An epoch without tries is used again instead of starting a new one.
    has_tries: bool,
    /// Void epochs, in ascending order.
    void: VecDeque<u64>,
}

impl TryEpochs {
    pub(super) fn current(&self) -> u64 {
        self.current
    }

    pub(super) fn has_tries(&self) -> bool {
        self.has_tries
    }

    pub(super) fn is_void(&self, epoch: u64) -> bool {
        self.void.binary_search(&epoch).is_ok()
    }

    /// Notes that a try was counted in the current epoch.
    pub(super) fn count_try(&mut self) {
        self.has_tries = true;
    }

    /// Ends the current epoch after a delivery in good health. Its tries are final.
    pub(super) fn begin_next(&mut self) {
        if std::mem::take(&mut self.has_tries) {
            self.current += 1;
        }
    }

    /// Ends the current epoch because its tries were the destination's fault. They no longer count.
    pub(super) fn take_tries_back(&mut self) {
        if !self.has_tries {
            return;
        }
        if self.void.len() == VOID_EPOCHS_MAX {
            self.void.pop_front();
        }
        self.void.push_back(self.current);
        self.begin_next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tries_of_the_current_epoch_can_be_taken_back() {
        let mut epochs = TryEpochs::default();
        epochs.count_try();
        epochs.begin_next();
        epochs.count_try();
        epochs.take_tries_back();
        assert_eq!((epochs.is_void(0), epochs.is_void(1), epochs.current()), (false, true, 2));
    }

    #[test]
    fn an_epoch_without_tries_is_used_again() {
        let mut epochs = TryEpochs::default();
        epochs.begin_next();
        epochs.take_tries_back();
        assert_eq!((epochs.current(), epochs.void.len()), (0, 0));
    }

    #[test]
    fn at_the_limit_the_tries_of_the_oldest_void_epoch_count_again() {
        let mut epochs = TryEpochs::default();
        for _ in 0..=VOID_EPOCHS_MAX {
            epochs.count_try();
            epochs.take_tries_back();
        }
        assert_eq!(epochs.void.len(), VOID_EPOCHS_MAX);
        assert!(!epochs.is_void(0) && epochs.is_void(1) && epochs.is_void(VOID_EPOCHS_MAX as u64));
    }
}
