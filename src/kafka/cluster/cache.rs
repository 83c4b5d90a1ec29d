//! What is known about the cluster, and the connections that are idle.

use super::super::broker_order::BrokerOrder;
use super::super::connection::Connection;
use super::super::topology::{CachedTopic, TopicAnswer, TopicMetadata};
use super::address;
use crate::limits::CONNECTION_IDLE_MAX;
use kafka_protocol::messages::MetadataResponse;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::Instant;

/// Idle connections to one broker that are kept: one for the fetch of each partition, and some for other requests.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// What the brokers reported, as far as it is believed.
#[derive(Debug, Default)]
pub(super) struct ClusterCache {
    /// Addresses, by node id.
    pub(super) brokers: HashMap<i32, String>,
    /// The node id of the controller.
    pub(super) controller: Option<i32>,
    /// The last answer named no controller among its brokers.
    pub(super) hides_controller: bool,
    /// By name.
    pub(super) topics: HashMap<String, CachedTopic>,
    /// By group.
    pub(super) coordinators: HashMap<String, CachedCoordinator>,
    pub(super) idle: IdleBrokerConnections,
    pub(super) order: BrokerOrder,
}

/// The broker that coordinates a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct CachedCoordinator {
    pub(super) node: i32,
    /// When another broker was last asked to confirm it.
    pub(super) confirmed_at: Instant,
}

impl ClusterCache {
    /// Updates the brokers and the controller from an answer, and forgets what belongs to brokers that are gone.
    pub(super) fn update_brokers(&mut self, answer: &MetadataResponse, bootstrap: &[String]) {
        if answer.brokers.is_empty() {
            return;
        }
        self.brokers =
            answer.brokers.iter().map(|broker| (broker.node_id.0, address(&broker.host, broker.port))).collect();
        self.controller = self.brokers.contains_key(&answer.controller_id.0).then_some(answer.controller_id.0);
        self.hides_controller = self.controller.is_none();
        let brokers = &self.brokers;
        self.coordinators.retain(|_, coordinator| brokers.contains_key(&coordinator.node));
        // A bootstrap address may be another name of a broker, so its connections are kept as well.
        let is_used = |address: &String| bootstrap.contains(address) || brokers.values().any(|known| known == address);
        self.idle.retain(is_used);
        self.order.retain(is_used);
    }

    /// Applies an accepted answer about a topic, and returns what is known about the topic then.
    pub(super) fn update_topic(&mut self, name: &str, accepted: TopicAnswer) -> Option<Arc<TopicMetadata>> {
        match accepted {
            TopicAnswer::Missing => {
                self.topics.remove(name);
                None
            }
            TopicAnswer::Exists(topic) => {
                let now = Instant::now();
                match self.topics.get_mut(name) {
                    Some(known) => known.merge(topic, now),
                    None => _ = self.topics.insert(name.to_owned(), CachedTopic::new(topic, now)),
                }
                self.topics.get(name).map(|known| Arc::clone(&known.topic))
            }
        }
    }

    pub(super) fn set_coordinator(&mut self, group: &str, node: i32, address: String) {
        self.brokers.insert(node, address);
        self.coordinators.insert(group.to_owned(), CachedCoordinator { node, confirmed_at: Instant::now() });
    }

    /// The broker's answers may be outdated: the other brokers are asked before it.
    pub(super) fn ask_last(&mut self, node: i32) {
        if let Some(address) = self.brokers.get(&node) {
            self.order.move_to_end(address);
        }
    }
}

/// Connections that carry no request at the moment, by address.
#[derive(Debug, Default)]
pub(super) struct IdleBrokerConnections(HashMap<String, Vec<(Connection, Instant)>>);

impl IdleBrokerConnections {
    /// Takes the connection that was used last. Connections that were idle for too long are closed: the broker or a
    /// middle box may have closed them on its side.
    pub(super) fn take(&mut self, address: &str) -> Option<Connection> {
        let connections = self.0.get_mut(address)?;
        connections.retain(|(_, since)| since.elapsed() < CONNECTION_IDLE_MAX);
        connections.pop().map(|(connection, _)| connection)
    }

    pub(super) fn keep(&mut self, address: &str, connection: Connection) {
        let connections = self.0.entry(address.to_owned()).or_default();
        if connections.len() < IDLE_CONNECTIONS_MAX {
            connections.push((connection, Instant::now()));
        }
    }

    pub(super) fn close_all(&mut self, address: &str) {
        self.0.remove(address);
    }

    fn retain(&mut self, is_used: impl Fn(&String) -> bool) {
        self.0.retain(|address, _| is_used(address));
    }
}
