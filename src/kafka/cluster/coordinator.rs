//! The coordinators of groups.

use super::super::connection::Error;
use super::super::topology::elected_coordinator;
use super::super::{describe, response_error};
use super::{CONFIRM_WAIT_MAX, Cluster, address};
use crate::limits::METADATA_INTERVAL_MIN;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::FindCoordinatorRequest;
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often another broker is asked to confirm the coordinator of a group. A coordinator that is cut off from the other
/// brokers still answers heartbeats, while the new coordinator waits for the members until their session ends. So this is
/// shorter than a session.
const COORDINATOR_CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// How long all brokers together may take to confirm a coordinator: two of them may be silent, and a healthy one is still
/// asked.
const CONFIRM_ALL_WAIT_MAX: Duration = Duration::from_millis(1500);

impl Cluster {
    /// Records that the coordinator failed, or said that it is not the coordinator. It is looked up before the next call,
    /// and the other brokers are asked before it.
    pub fn forget_coordinator(&self, group: &str) {
        let mut cache = self.cache();
        if let Some(forgotten) = cache.coordinators.remove(group) {
            cache.ask_last(forgotten.node);
        }
    }

    /// The node id of the group's coordinator.
    pub(super) async fn coordinator(&self, group: &str, deadline: Instant) -> Result<i32, Error> {
        let known = {
            let mut cache = self.cache();
            cache.coordinators.get_mut(group).map(|known| {
                let is_due = known.confirmed_at.elapsed() >= COORDINATOR_CONFIRM_INTERVAL;
                if is_due {
                    // Set before the question is asked, so that concurrent calls do not ask it as well.
                    known.confirmed_at = Instant::now();
                }
                (known.node, is_due)
            })
        };
        match known {
            Some((node, false)) => Ok(node),
            Some((node, true)) => Ok(self.confirm_coordinator(group, node, deadline).await),
            None => self.find_coordinator(group, deadline).await,
        }
    }

    async fn find_coordinator(&self, group: &str, deadline: Instant) -> Result<i32, Error> {
        loop {
            let answer = self.call_any(&find_coordinator_request(group), deadline).await?;
            match response_error(answer.error_code) {
                None => {
                    self.cache().set_coordinator(group, answer.node_id.0, address(&answer.host, answer.port));
                    return Ok(answer.node_id.0);
                }
                Some(error @ ResponseError::GroupAuthorizationFailed) => {
                    return Err(Error::NotAllowed(format!("group {group:?}: {}", describe(error))));
                }
                Some(error) if !error.is_retriable() => {
                    return Err(Error::Configuration(format!("group {group:?}: {}", describe(error))));
                }
                Some(error) if Instant::now() + METADATA_INTERVAL_MIN >= deadline => {
                    return Err(Error::NotSent(format!("group {group:?} has no coordinator now: {}", describe(error))));
                }
                // For the first group of a new cluster, the brokers create the topic of commits first.
                Some(_) => sleep(METADATA_INTERVAL_MIN).await,
            }
        }
    }

    /// Asks another broker who coordinates the group. If it does not name the known coordinator, all brokers are asked,
    /// and the majority decides.
    pub(super) async fn confirm_coordinator(&self, group: &str, known: i32, deadline: Instant) -> i32 {
        let (others, known_address) = {
            let (cache, now) = (self.cache(), Instant::now());
            let known_address = cache.brokers.get(&known).cloned();
            let order = cache.order.order(cache.brokers.values(), &[], now).into_iter();
            let may_answer =
                |address: &String| Some(address) != known_address.as_ref() && !cache.order.is_silent(address, now);
            (order.filter(may_answer).collect::<Vec<_>>(), known_address)
        };
        if others.is_empty() {
            return known;
        }
        let deadline = deadline.min(Instant::now() + CONFIRM_ALL_WAIT_MAX);
        let (mut named, mut addresses) = (Vec::new(), HashMap::new());
        for asked in others.into_iter().chain(known_address) {
            let answer_by = Instant::now() + CONFIRM_WAIT_MAX;
            // With less time than this, a healthy broker could count as silent. It is asked the next time.
            if answer_by > deadline {
                break;
            }
            self.cache().order.move_to_end(&asked);
            let answer = self.call_address(&asked, &find_coordinator_request(group), answer_by).await;
            let Ok(answer) = answer else { continue };
            if answer.error_code == 0 {
                named.push(answer.node_id.0);
                addresses.insert(answer.node_id.0, address(&answer.host, answer.port));
            }
            if named == [known] {
                return known;
            }
        }
        let node = elected_coordinator(known, &named);
        if node != known
            && let Some(address) = addresses.remove(&node)
        {
            tracing::info!(group, previous_broker = known, broker = node, "another broker coordinates the group now");
            let mut cache = self.cache();
            cache.set_coordinator(group, node, address);
            cache.ask_last(known);
        }
        node
    }
}

fn find_coordinator_request(group: &str) -> FindCoordinatorRequest {
    FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::BrokerSettings;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_broker_that_was_not_asked_for_lack_of_time_does_not_count_as_silent() {
        // Brokers that accept connections and never answer.
        let mut hanging = Vec::new();
        for _ in 0..5 {
            hanging.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<String> = hanging.iter().map(|broker| broker.local_addr().unwrap().to_string()).collect();
        let cluster = Cluster::new(BrokerSettings::plain(addresses.clone()));
        cluster.cache().brokers = (0..).zip(addresses.clone()).collect();
        let silent_count = || {
            let (cache, now) = (cluster.cache(), Instant::now());
            addresses.iter().filter(|address| cache.order.is_silent(address, now)).count()
        };
        let answer = cluster.call_address(&addresses[0], &find_coordinator_request("group"), Instant::now()).await;
        assert!(matches!(answer, Err(Error::NotSent(_))), "{answer:?}");
        assert_eq!(silent_count(), 0);

        let soon = Instant::now() + CONFIRM_WAIT_MAX / 2;
        assert_eq!(cluster.confirm_coordinator("group", 0, soon).await, 0);
        assert_eq!(silent_count(), 0, "the caller has less time than a broker may take");
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(cluster.confirm_coordinator("group", 0, later).await, 0);
        let silent = silent_count();
        assert!((1..=2).contains(&silent), "{silent} of five brokers count as silent");
    }
}
