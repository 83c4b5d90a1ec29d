//! Looks up the addresses of host names.
//!
//! The system's look-up blocks, so it runs on the thread pool for blocking work. Only a few run at the same time, even if
//! the attempts that asked for them have given up.

use super::failure_text::ResolveError;
use crate::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::task::{Context, Poll};
#[cfg(test)]
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tower_service::Service;

/// Look-ups of one destination at the same time. A look-up that hangs holds a thread of the pool that also reads the log,
/// and it may hold it longer than the attempt that needed it. A few are enough, because connections are kept.
const LOOK_UPS_MAX: usize = 4;

#[derive(Debug, Clone)]
pub(super) struct Resolver(Arc<Semaphore>);

impl Resolver {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(LOOK_UPS_MAX)))
    }

    /// Takes all permits, so that no look-up can begin.
    #[cfg(test)]
    pub(super) async fn take_all_permits(&self) -> OwnedSemaphorePermit {
        self.0.clone().acquire_many_owned(LOOK_UPS_MAX as u32).await.unwrap()
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ResolveError;
    type Future = BoxFuture<'static, Result<Self::Response, ResolveError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let permits = self.0.clone();
        Box::pin(async move {
            let permit = permits.acquire_owned().await.map_err(|error| ResolveError(io::Error::other(error)))?;
            let look_up = move || {
                // The thread holds the permit, because the attempt may have given up before the look-up ends.
                let _permit = permit;
                (name.as_str(), 0).to_socket_addrs()
            };
            let found = tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other);
            found.flatten().map_err(ResolveError)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[tokio::test]
    async fn look_ups_beyond_the_limit_wait_for_a_permit() {
        let mut resolver = Resolver::new();
        let taken = resolver.take_all_permits().await;
        let mut waiting = resolver.call(Name::from_str("localhost").unwrap());
        assert!(std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
        drop(taken);
        assert!(waiting.await.unwrap().all(|address| address.ip().is_loopback()));
        assert_eq!(resolver.0.available_permits(), LOOK_UPS_MAX);
    }
}
