//! The cluster as it was last seen, and the way to its brokers.
//!
//! [`Cluster::call`] picks the broker, the connection and the deadline of a request. `topics.rs` finds topics and the
//! leaders of partitions; `coordinator.rs` finds the coordinators of groups; `cache.rs` is what they share.

mod cache;
mod coordinator;
mod topics;

use self::cache::ClusterCache;
use super::connection::{Connection, Error};
use super::requests::Request;
use super::topology::{Leader, PartitionEpoch};
use crate::limits::BROKER_ANSWER_MAX;
use crate::net::BrokerSettings;
use kafka_protocol::messages::{ApiKey, TopicName};
use kafka_protocol::protocol::StrBytes;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a broker may take to confirm something that is known already. Short, because the caller's own request waits.
const CONFIRM_WAIT_MAX: Duration = Duration::from_millis(500);

/// The broker that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient<'a> {
    /// Any broker that answers.
    Any,
    /// The broker with this node id.
    Node(i32),
    /// The broker that creates and changes topics.
    Controller,
    /// The broker that stores the commits of this group.
    Coordinator(&'a str),
}

/// A cluster of Kafka brokers.
#[derive(Debug)]
pub struct Cluster {
    settings: BrokerSettings,
    cache: Mutex<ClusterCache>,
    /// Held while a topic is looked up. Callers that wait for it use what the look-up found, so a failure of many
    /// partitions at once costs one request.
    lookup: tokio::sync::Mutex<()>,
    /// Notified when something else is known about a topic.
    topics_changed: watch::Sender<()>,
}

/// The brokers that are asked one after the other, until one gives a useful answer.
struct Candidates {
    addresses: std::vec::IntoIter<String>,
    /// Why the brokers so far were of no use.
    failure: Error,
}

impl Candidates {
    fn record_failure(&mut self, error: Error) {
        // An error that an operator has to fix is kept: a later broker's error may be temporary and would hide it.
        if !matches!(self.failure, Error::Configuration(_)) {
            self.failure = error;
        }
    }
}

impl Cluster {
    pub fn new(settings: BrokerSettings) -> Self {
        Self {
            settings,
            cache: Mutex::default(),
            lookup: tokio::sync::Mutex::default(),
            topics_changed: watch::Sender::new(()),
        }
    }

    /// The bootstrap addresses, for messages.
    pub fn addresses(&self) -> String {
        self.settings.brokers.join(",")
    }

    /// Whether the cluster does not name its controller. Then any broker forwards what is for the controller.
    pub(crate) fn hides_controller(&self) -> bool {
        self.cache().hides_controller
    }

    /// How the brokers are reached.
    pub(crate) fn settings(&self) -> &BrokerSettings {
        &self.settings
    }

    /// Sends the request and waits for its answer until the deadline. If any broker may answer, each has as long as a
    /// healthy one needs; then the next one is asked.
    ///
    /// # Errors
    /// If one broker was asked: [`Error::NoAnswer`] if the request may have had an effect; every other error means that
    /// it had none. If any broker could answer, this holds only for the broker whose error is returned.
    pub async fn call<R: Request>(
        &self,
        recipient: Recipient<'_>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let controller = self.cache().controller;
        let node = match (recipient, controller) {
            (Recipient::Node(node), _) | (Recipient::Controller, Some(node)) => node,
            (Recipient::Coordinator(group), _) => self.coordinator(group, deadline).await?,
            // A cluster may hide its controller. Then any broker forwards what is for the controller.
            (Recipient::Any, _) | (Recipient::Controller, None) => return self.call_any(request, deadline).await,
        };
        let address = self.cache().brokers.get(&node).cloned();
        let answer = match address {
            Some(address) => self.call_address(&address, request, deadline).await,
            None => Err(Error::NotSent(format!("broker {node} is not part of the cluster any more"))),
        };
        match recipient {
            Recipient::Coordinator(group) if answer.is_err() => self.forget_coordinator(group),
            Recipient::Controller if answer.is_err() => self.cache().controller = None,
            _ => {}
        }
        answer
    }

    /// Asks the leader of these partitions. If one of them gets another leader meanwhile, the call ends early with
    /// [`Error::NoAnswer`]: a leader that is cut off from the other brokers may keep its answer back for long. After
    /// every error the leaders are looked up again before they are used.
    pub async fn call_leader<R: Request>(
        &self,
        name: &str,
        node: i32,
        partitions: &[PartitionEpoch],
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let mut changed = self.topics_changed.subscribe();
        let replaced = async {
            let is_replaced = |asked: &PartitionEpoch| {
                self.cached_leader(name, asked.partition).is_some_and(|known| known.epoch > asked.epoch)
            };
            // `changed` cannot end first: its sender is a field of `self`.
            while !partitions.iter().any(is_replaced) && changed.changed().await.is_ok() {}
        };
        let answer = tokio::select! {
            biased;
            answer = self.call(Recipient::Node(node), request, deadline) => answer,
            () = replaced => Err(Error::NoAnswer(format!("broker {node} was replaced as a leader of {name:?}"))),
        };
        if answer.is_err() {
            for PartitionEpoch { partition, epoch } in partitions {
                self.report_leader_failure(name, *partition, Leader { node, epoch: *epoch });
            }
        }
        answer
    }

    async fn call_any<R: Request>(&self, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let mut candidates = self.candidates();
        let answer = self.ask_next(&mut candidates, request, deadline).await;
        answer.ok_or(candidates.failure)
    }

    /// Every broker once, starting with the one whose turn it is.
    fn candidates(&self) -> Candidates {
        let cache = self.cache();
        let addresses = cache.order.order(cache.brokers.values(), &self.settings.brokers, Instant::now());
        Candidates { addresses: addresses.into_iter(), failure: Error::NotSent("no broker is known".into()) }
    }

    /// The answer of the next broker that gives one before the deadline.
    async fn ask_next<R: Request>(
        &self,
        candidates: &mut Candidates,
        request: &R,
        deadline: Instant,
    ) -> Option<R::Response> {
        while Instant::now() < deadline {
            let address = candidates.addresses.next()?;
            self.cache().order.move_to_end(&address);
            let answer_by = deadline.min(Instant::now() + BROKER_ANSWER_MAX);
            match self.call_address(&address, request, answer_by).await {
                Ok(answer) => return Some(answer),
                Err(error) => candidates.record_failure(error),
            }
        }
        None
    }

    /// Asks the broker at this address. If it gives no answer, it is asked after the others for a while.
    async fn call_address<R: Request>(
        &self,
        address: &str,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        if Instant::now() >= deadline {
            // The broker was not asked. So it does not count as silent, and its idle connection is still good.
            return Err(Error::NotSent(format!("no time was left to ask {address}")));
        }
        let answer = self.exchange(address, request, deadline).await;
        if answer.is_err() {
            self.cache().order.record_no_answer(address, Instant::now());
        }
        answer
    }

    /// Sends the request over an idle connection, or else over a new one.
    async fn exchange<R: Request>(&self, address: &str, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let idle = self.cache().idle.take(address);
        if let Some(mut connection) = idle {
            match connection.call(request, deadline).await {
                Ok(answer) => {
                    self.cache().idle.keep(address, connection);
                    return Ok(answer);
                }
                // Most often the broker had closed the idle connection or was restarted, so a new connection works.
                // Only the producer may repeat a Produce request: it has to know that the batch may be stored already.
                Err(Error::NoAnswer(_)) if R::KEY != ApiKey::Produce && Instant::now() < deadline => {
                    self.cache().idle.close_all(address);
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = Connection::open(&self.settings, address, deadline).await?;
        let answer = connection.call(request, deadline).await?;
        self.cache().idle.keep(address, connection);
        Ok(answer)
    }

    /// A panic while the lock was held leaves no half-made change, since each change is one insert or remove. So a
    /// poisoned lock is used like any other.
    fn cache(&self) -> MutexGuard<'_, ClusterCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `host:port`, with brackets around an IPv6 address.
fn address(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A topic's name as a message of the protocol contains it.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}
