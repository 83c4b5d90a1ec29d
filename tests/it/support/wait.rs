//! Waiting for a condition. Each helper fails at one deadline and says what was there instead.

use std::time::{Duration, Instant};

/// The longest that a test waits for anything. Machines that run tests are busy, so only a defect takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until `condition` returns a value. `Err` says what is there instead, and is the message at the deadline.
pub(crate) fn eventually<T>(mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(instead) => assert!(Instant::now() < deadline, "after {PATIENCE:?}: {instead}"),
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
}

/// Like [`eventually`], for a test that runs in a runtime. It leaves the runtime's thread free between two checks.
pub(crate) async fn eventually_async<T>(mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(instead) => assert!(Instant::now() < deadline, "after {PATIENCE:?}: {instead}"),
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Waits until `future` completes, and fails with the name of what it does.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("still waiting after {PATIENCE:?}: {what}"),
    }
}
