//! Opens connections, and records how far each one has got. A name that is not found, a port that does not accept and a
//! server that does not answer the TLS handshake have different causes, so the error names the stage.
//!
//! ```text
//!  connect ─▶ TLS (hyper-rustls) ─▶ TCP (hyper-util) ─▶ look-ups
//!                                    └────── StageRecorder ──────┘ each notes the stage
//! ```

use super::failure_text::{self, ConnectStage};
use super::resolver::Resolver;
use crate::BoxFuture;
use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

#[derive(Debug)]
pub(super) struct Connector {
    resolver: Resolver,
    tls: Arc<ClientConfig>,
    timeout: Duration,
}

impl Connector {
    /// Each connection must be open, including TLS, within `timeout`.
    pub(super) fn new(tls: ClientConfig, timeout: Duration) -> Self {
        Self { resolver: Resolver::new(), tls: Arc::new(tls), timeout }
    }

    /// Opens a connection to the host of this URL, with TLS if the scheme is `https`. The error is text for people.
    pub(super) async fn connect(
        &self,
        uri: &Uri,
        deadline: Instant,
    ) -> Result<MaybeHttpsStream<TokioIo<TcpStream>>, String> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        // The first stage is TCP, because a URL with an IP address needs no look-up. A look-up sets its own stage.
        let (stage, reached) = watch::channel(ConnectStage::Tcp);
        let connected = timeout_at(deadline, self.recording(stage).call(uri.clone())).await;
        let (address, stage) = (failure_text::address(uri), *reached.borrow());
        match connected {
            Ok(connected) => connected.map_err(|error| failure_text::describe(&*error, stage, &address)),
            Err(_) => Err(failure_text::describe_timeout(stage, &address)),
        }
    }

    /// A connector for one connection that records its stages.
    fn recording(
        &self,
        stage: watch::Sender<ConnectStage>,
    ) -> HttpsConnector<StageRecorder<HttpConnector<StageRecorder<Resolver>>>> {
        let step = self.resolver.clone();
        let resolver =
            StageRecorder { step, begins: ConnectStage::LookUp, then: ConnectStage::Tcp, stage: stage.clone() };
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // hyper divides this time among the addresses of a name, so that one address that does not answer leaves time for the
        // others.
        tcp.set_connect_timeout(Some(self.timeout));
        HttpsConnector::from((
            StageRecorder { step: tcp, begins: ConnectStage::Tcp, then: ConnectStage::Tls, stage },
            Arc::clone(&self.tls),
        ))
    }
}

/// Wraps one step of connecting, and records when this step and the next one begin.
#[derive(Debug, Clone)]
struct StageRecorder<S> {
    step: S,
    begins: ConnectStage,
    then: ConnectStage,
    stage: watch::Sender<ConnectStage>,
}

impl<S, Q> Service<Q> for StageRecorder<S>
where
    S: Service<Q>,
    S::Response: Send,
    S::Error: Send,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.step.poll_ready(context)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        let (stage, then) = (self.stage.clone(), self.then);
        stage.send_replace(self.begins);
        let step = self.step.call(request);
        Box::pin(async move {
            let done = step.await;
            if done.is_ok() {
                stage.send_replace(then);
            }
            done
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net;

    #[tokio::test]
    async fn a_look_up_that_times_out_has_another_error_than_a_connection_that_times_out() {
        let connector = Connector::new(net::no_tls().unwrap(), Duration::from_millis(50));
        // This is the state after several look-ups that hang: no further look-up can begin.
        let hanging = connector.resolver.take_all_permits().await;
        for scheme in ["http", "https"] {
            let uri = format!("{scheme}://localhost:1/").parse().unwrap();
            let why = connector.connect(&uri, Instant::now() + Duration::from_secs(60)).await.unwrap_err();
            assert!(why.starts_with("the address of localhost:1 was not found in time"), "{why}");
            assert!(why.contains("DNS") && !why.contains("firewall"), "{why}");
        }
        drop(hanging);
    }
}
