//! Helpers that tests of several areas share.

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
pub(crate) mod wait;

/// By how much tests that kill multiply their rounds. `make torture` sets it.
pub(crate) fn torture_times() -> usize {
    match std::env::var("EVENTD_TEST_TORTURE") {
        Ok(times) => times.parse().expect("EVENTD_TEST_TORTURE is a factor for the number of rounds"),
        Err(_) => 1,
    }
}

/// Runs a future to its end from a test that is not async.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
