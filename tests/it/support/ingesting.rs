//! Ingest over a log in memory, in the test's own process and on a port of its own.

use super::http::Client;
use super::memory_log::MemoryLog;
use super::wait::soon;
use eventd::core::outcome::Ended;
use eventd::core::partition::Partitioner;
use eventd::ingest::{Config, run};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) struct Ingesting {
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<Ended>>,
}

/// Small limits, so that a test reaches them.
pub(crate) fn config() -> Config {
    Config {
        max_body_bytes: 64 * 1024,
        max_event_bytes: 16 * 1024,
        max_batch_events: 100,
        max_pending_bytes: 1024 * 1024,
        max_connections: 100,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(10),
        partitioner: Partitioner::Murmur2,
        allowed_hosts: Vec::new(),
        drain: Duration::from_secs(10),
    }
}

impl Ingesting {
    /// Starts ingest with three partitions.
    pub(crate) async fn start(config: Config) -> Self {
        Self::start_on("127.0.0.1:0", config).await
    }

    /// Starts ingest on this address. Clients connect over loopback.
    pub(crate) async fn start_on(address: &str, config: Config) -> Self {
        let log = MemoryLog::new(3);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let (stop, stopped) = oneshot::channel();
        // If the test ends early and drops the sender, ingest stops too.
        let shutdown = async { stopped.await.unwrap_or_default() };
        let ended = tokio::spawn(run(vec![listener], log.clone(), config, shutdown));
        Self { log, address, stop, ended }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Tells ingest to stop. The returned future waits for its end.
    pub(crate) fn stop(self) -> (Arc<MemoryLog>, impl Future<Output = Ended>) {
        self.stop.send(()).expect("ingest still runs");
        (self.log, async { soon("ingest to end", self.ended).await.unwrap().unwrap() })
    }
}

/// A user whose events go to this partition of three.
pub(crate) fn user_of(partition: u32) -> String {
    let mut users = (0..).map(|n| format!("user-{n}"));
    users.find(|user| Partitioner::Murmur2.partition(user.as_bytes(), 3) == partition).unwrap()
}

pub(crate) fn event(user: &str, payload: &str) -> String {
    json!({"UserID": user, "Payload": payload}).to_string()
}
