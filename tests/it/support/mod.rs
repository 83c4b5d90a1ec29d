//! What the tests share.

pub(crate) mod authority;
pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod delivered;
pub(crate) mod http;
pub(crate) mod in_log;
pub(crate) mod ingesting;
pub(crate) mod links;
pub(crate) mod load;
pub(crate) mod memory_log;
pub(crate) mod program;
pub(crate) mod receiver;
pub(crate) mod sink;

use std::time::Duration;

/// Far longer than anything here takes: a condition that has not come by then never will.
const DEADLINE: Duration = Duration::from_secs(20);

/// How many times the rounds of a usual run are played by tests that kill: `make torture` says so.
pub(crate) fn torture_times() -> usize {
    match std::env::var("EVENTD_TEST_TORTURE") {
        Ok(times) => times.parse().expect("EVENTD_TEST_TORTURE is how many times as many rounds are played"),
        Err(_) => 1,
    }
}

/// Runs a future to its end where a test is none itself.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Waits for what has to happen; fails with its name where it does not.
pub(crate) async fn soon<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, happening).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain: {what}"),
    }
}
