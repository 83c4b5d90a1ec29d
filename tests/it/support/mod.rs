//! What the tests share.

pub(crate) mod authority;
pub(crate) mod broker;
pub(crate) mod client;
pub(crate) mod delivered;
pub(crate) mod http;
pub(crate) mod ingesting;
pub(crate) mod load;
pub(crate) mod memory_log;
pub(crate) mod program;
pub(crate) mod receiver;

use std::time::Duration;

/// Far longer than anything here takes: a condition that has not come by then never will.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for what has to happen; fails with its name where it does not.
pub(crate) async fn soon<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, happening).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain: {what}"),
    }
}
