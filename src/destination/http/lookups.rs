//! Looks names up, on threads that everything blocking shares: a few at a time, even if the attempts that asked gave up.

use crate::BoxFuture;
use crate::destination::failure_words::LookUpError;
use crate::limits::LOOKUPS_MAX;
use hyper_util::client::legacy::connect::dns::Name;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::task::{Context, Poll};
#[cfg(test)]
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tower_service::Service;

#[derive(Debug, Clone)]
pub(super) struct LookUps(Arc<Semaphore>);

impl LookUps {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_MAX)))
    }

    /// Takes the places of all look-ups, so that a test has none left to begin.
    #[cfg(test)]
    pub(super) async fn take_all_places(&self) -> OwnedSemaphorePermit {
        self.0.clone().acquire_many_owned(LOOKUPS_MAX as u32).await.unwrap()
    }
}

impl Service<Name> for LookUps {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = LookUpError;
    type Future = BoxFuture<'static, Result<Self::Response, LookUpError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LookUpError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let places = self.0.clone();
        Box::pin(async move {
            let place = places.acquire_owned().await.map_err(|error| LookUpError(io::Error::other(error)))?;
            let look_up = move || {
                // Held by the thread: who asked may be gone before it is done.
                let _place = place;
                (name.as_str(), 0).to_socket_addrs()
            };
            let found = tokio::task::spawn_blocking(look_up).await.map_err(io::Error::other);
            found.flatten().map_err(LookUpError)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[tokio::test]
    async fn look_ups_beyond_the_limit_wait_for_a_place() {
        let mut look_ups = LookUps::new();
        let taken = look_ups.take_all_places().await;
        let mut waiting = look_ups.call(Name::from_str("localhost").unwrap());
        assert!(std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
        drop(taken);
        assert!(waiting.await.unwrap().all(|address| address.ip().is_loopback()));
        assert_eq!(look_ups.0.available_permits(), LOOKUPS_MAX);
    }
}
