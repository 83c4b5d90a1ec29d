//! A side topic (dead letters, progress) gets the partitions that its main topic has got since it was created.

use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Lets one caller at a time add partitions to a topic, and no more than once in an interval: what needs the partition
/// comes many times a second, and if the broker refuses them, it refuses them each time.
#[derive(Debug)]
pub(crate) struct GrowLimiter {
    interval: Duration,
    last_try: Mutex<Option<Instant>>,
}

impl GrowLimiter {
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, last_try: Mutex::new(None) }
    }

    /// A limiter for a topic that lacks partitions although opening it has just tried to add them.
    pub(crate) fn just_tried(interval: Duration) -> Self {
        Self { interval, last_try: Mutex::new(Some(Instant::now())) }
    }

    /// `Some`: the caller may add partitions now. Other callers wait until it drops the guard. `None`: that was tried less
    /// than an interval ago.
    pub(crate) async fn turn(&self) -> Option<MutexGuard<'_, impl Sized>> {
        let mut last_try = self.last_try.lock().await;
        if last_try.is_some_and(|at| at.elapsed() < self.interval) {
            return None;
        }
        *last_try = Some(Instant::now());
        Some(last_try)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn partitions_are_added_by_one_caller_in_an_interval() {
        let limiter = GrowLimiter::new(Duration::from_secs(10));
        assert!(limiter.turn().await.is_some());
        assert!(limiter.turn().await.is_none(), "a moment later");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(limiter.turn().await.is_some());
        let limiter = GrowLimiter::just_tried(Duration::from_secs(10));
        assert!(limiter.turn().await.is_none());
    }
}
