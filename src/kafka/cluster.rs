//! The cluster as it was last seen: its brokers, who leads which partition, who coordinates which group, and the
//! connections that are idle.

use super::connection::{Connection, Error};
use super::requests::Request;
use super::{describe, refusal};
use crate::limits::{BROKER_ANSWER_MAX, BROKER_CONNECTIONS_IDLE_MAX, CONNECTION_IDLE_MAX, METADATA_INTERVAL_MIN};
use crate::net::Settings;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{ApiKey, FindCoordinatorRequest, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use uuid::Uuid;

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// Whichever broker answers.
    Any,
    Node(i32),
    /// The one that makes topics.
    Controller,
    /// The one that keeps this group's commits.
    Coordinator(&'a str),
}

/// A topic, as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Another one once the topic was deleted and made again; nil where brokers older than 2.8 do not tell.
    pub id: Uuid,
    /// By partition number.
    pub partitions: Vec<Partition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// `None`: nobody leads it now.
    pub leader: Option<i32>,
    pub replicas: usize,
}

/// A cluster of Kafka brokers.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    seen: Mutex<Seen>,
    /// One look at a time: those that wait for it use what it found.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Addresses, by node id.
    brokers: HashMap<i32, String>,
    controller: Option<i32>,
    topics: HashMap<String, SeenTopic>,
    coordinators: HashMap<String, i32>,
    idle: HashMap<String, Vec<(Connection, Instant)>>,
    /// Which of the known addresses is asked first where any will do: the last that answered.
    answered_last: Option<String>,
}

#[derive(Debug)]
struct SeenTopic {
    topic: Arc<Topic>,
    at: Instant,
    /// A broker said that it is no longer so.
    stale: bool,
}

impl Cluster {
    pub fn new(settings: Settings) -> Self {
        Self { settings, seen: Mutex::default(), looking: tokio::sync::Mutex::default() }
    }

    /// Where the cluster was said to be, for messages.
    pub fn addresses(&self) -> String {
        self.settings.brokers.join(",")
    }

    /// Whether we tell who we are.
    pub(crate) fn logs_in(&self) -> bool {
        self.settings.sasl.is_some()
    }

    /// Asks, and waits for the answer until the deadline; of a broker that may be any one, for as long as one needs
    /// that is well, and then asks the next.
    pub async fn call<R: Request>(&self, who: Who<'_>, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let controller = self.seen().controller;
        let node = match (who, controller) {
            (Who::Node(node), _) | (Who::Controller, Some(node)) => node,
            (Who::Coordinator(group), _) => self.coordinator(group, deadline).await?,
            // A broker of a cluster that hides its controller passes on what is for it.
            (Who::Any, _) | (Who::Controller, None) => return self.call_any(request, deadline).await,
        };
        let address = self.seen().brokers.get(&node).cloned();
        let answer = match address {
            Some(address) => self.call_address(&address, request, deadline).await,
            None => Err(Error::NotSent(format!("broker {node} is not known any more"))),
        };
        if answer.is_err()
            && let Who::Coordinator(group) = who
        {
            self.forget_coordinator(group);
        }
        answer
    }

    async fn call_any<R: Request>(&self, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let mut addresses: Vec<String> = {
            let seen = self.seen();
            let known = seen.answered_last.iter().chain(seen.brokers.values());
            known.chain(&self.settings.brokers).cloned().collect()
        };
        let mut failure = Error::NotSent("no broker is known".into());
        let mut asked = Vec::new();
        for address in addresses.drain(..) {
            if asked.contains(&address) || Instant::now() >= deadline {
                continue;
            }
            let patience = deadline.min(Instant::now() + BROKER_ANSWER_MAX);
            match self.call_address(&address, request, patience).await {
                Ok(answer) => {
                    self.seen().answered_last = Some(address);
                    return Ok(answer);
                }
                // What somebody has to change is told, and not what may pass by itself.
                Err(_) if matches!(failure, Error::Configuration(_)) => {}
                Err(error) => failure = error,
            }
            asked.push(address);
        }
        Err(failure)
    }

    async fn call_address<R: Request>(
        &self,
        address: &str,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        if let Some(mut connection) = self.idle(address) {
            match connection.call(request, deadline).await {
                Ok(answer) => {
                    self.keep(address, connection);
                    return Ok(answer);
                }
                // Most often the broker closed a connection that it thought unused, or was started anew. Whether an
                // append is repeated is for the appender to say: it has to know that it was sent.
                Err(Error::NoAnswer(_)) if R::KEY != ApiKey::Produce && Instant::now() < deadline => {
                    self.seen().idle.remove(address);
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = Connection::open(&self.settings, address, deadline).await?;
        let answer = connection.call(request, deadline).await?;
        self.keep(address, connection);
        Ok(answer)
    }

    fn idle(&self, address: &str) -> Option<Connection> {
        let mut seen = self.seen();
        let idle = seen.idle.get_mut(address)?;
        idle.retain(|(_, since)| since.elapsed() < CONNECTION_IDLE_MAX);
        idle.pop().map(|(connection, _)| connection)
    }

    fn keep(&self, address: &str, connection: Connection) {
        let mut seen = self.seen();
        let idle = seen.idle.entry(address.to_owned()).or_default();
        if idle.len() < BROKER_CONNECTIONS_IDLE_MAX {
            idle.push((connection, Instant::now()));
        }
    }

    /// The topic as a broker sees it now; `None`: there is none. Nothing is made by asking.
    pub async fn topic(&self, name: &str, deadline: Instant) -> Result<Option<Arc<Topic>>, Error> {
        let asked = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(false);
        let answer = self.call(Who::Any, &request, deadline).await?;
        let topic = answer.topics.first().map(|topic| (refusal(topic.error_code), read_topic(topic)));
        let mut seen = self.seen();
        seen.learn(&answer);
        match topic {
            Some((None | Some(ResponseError::LeaderNotAvailable), topic)) => {
                let topic = Arc::new(topic);
                let known = SeenTopic { topic: Arc::clone(&topic), at: Instant::now(), stale: false };
                seen.topics.insert(name.to_owned(), known);
                Ok(Some(topic))
            }
            None | Some((Some(ResponseError::UnknownTopicOrPartition), _)) => {
                seen.topics.remove(name);
                Ok(None)
            }
            Some((Some(error), _)) => Err(match error.is_retriable() {
                true => Error::NotSent(format!("topic {name:?}: {}", describe(error))),
                false => Error::Configuration(format!("topic {name:?}: {}", describe(error))),
            }),
        }
    }

    /// The topic with its leaders, from memory where nobody said that it is no longer so.
    pub async fn known_topic(&self, name: &str, deadline: Instant) -> Result<Arc<Topic>, Error> {
        if let Some(topic) = self.fresh(name) {
            return Ok(topic);
        }
        let look = async {
            let _one = self.looking.lock().await;
            if let Some(topic) = self.fresh(name) {
                return Ok(topic);
            }
            let last = self.seen().topics.get(name).map(|seen| seen.at);
            if let Some(last) = last {
                sleep_until(last + METADATA_INTERVAL_MIN).await;
            }
            let topic = self.topic(name, deadline).await?;
            topic.ok_or_else(|| Error::NotSent(format!("topic {name:?} is not there")))
        };
        timeout_at(deadline, look).await.unwrap_or_else(|_| {
            Err(Error::NotSent(format!("no broker of {} tells where topic {name:?} is", self.addresses())))
        })
    }

    /// The topic and the broker that leads one of its partitions.
    pub async fn leader(&self, name: &str, partition: u32, deadline: Instant) -> Result<(i32, Arc<Topic>), Error> {
        let topic = self.known_topic(name, deadline).await?;
        let Some(found) = topic.partitions.get(partition as usize) else {
            // One that was added since is found the next time.
            self.forget(name);
            return Err(Error::NotSent(format!(
                "topic {name:?} has {} partitions, and no partition {partition}",
                topic.partitions.len()
            )));
        };
        match found.leader {
            Some(leader) => Ok((leader, topic)),
            None => {
                self.forget(name);
                Err(Error::NotSent(format!("partition {partition} of {name:?} has no leader now")))
            }
        }
    }

    /// The leader, if it is known.
    pub fn known_leader(&self, name: &str, partition: u32) -> Option<i32> {
        let seen = self.seen();
        let seen = seen.topics.get(name).filter(|seen| !seen.stale)?;
        seen.topic.partitions.get(partition as usize)?.leader
    }

    /// Somebody found that what is known of the topic is no longer so: it is looked up again before it is used.
    pub fn forget(&self, name: &str) {
        if let Some(seen) = self.seen().topics.get_mut(name) {
            seen.stale = true;
        }
    }

    pub fn forget_coordinator(&self, group: &str) {
        self.seen().coordinators.remove(group);
    }

    fn fresh(&self, name: &str) -> Option<Arc<Topic>> {
        self.seen().topics.get(name).filter(|seen| !seen.stale).map(|seen| Arc::clone(&seen.topic))
    }

    async fn coordinator(&self, group: &str, deadline: Instant) -> Result<i32, Error> {
        if let Some(node) = self.seen().coordinators.get(group) {
            return Ok(*node);
        }
        let request = FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()));
        loop {
            let answer = self.call_any(&request, deadline).await?;
            match refusal(answer.error_code) {
                None => {
                    let mut seen = self.seen();
                    seen.brokers.insert(answer.node_id.0, address(&answer.host, answer.port));
                    seen.coordinators.insert(group.to_owned(), answer.node_id.0);
                    return Ok(answer.node_id.0);
                }
                Some(error) if !error.is_retriable() => {
                    return Err(Error::Configuration(format!("group {group:?}: {}", describe(error))));
                }
                // The first group of a cluster waits until the topic of commits is made.
                Some(error) if Instant::now() + METADATA_INTERVAL_MIN >= deadline => {
                    return Err(Error::NotSent(format!("group {group:?} has no coordinator now: {}", describe(error))));
                }
                Some(_) => sleep(METADATA_INTERVAL_MIN).await,
            }
        }
    }

    /// Nothing is left half done where a lock's holder panicked: plain maps.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn learn(&mut self, answer: &MetadataResponse) {
        if answer.brokers.is_empty() {
            return;
        }
        self.brokers =
            answer.brokers.iter().map(|broker| (broker.node_id.0, address(&broker.host, broker.port))).collect();
        self.controller = self.brokers.contains_key(&answer.controller_id.0).then_some(answer.controller_id.0);
        let (brokers, last) = (&self.brokers, &self.answered_last);
        self.coordinators.retain(|_, node| brokers.contains_key(node));
        // The address that we were given may be another name of a broker that calls itself otherwise.
        let is_used =
            |address: &String| last.as_ref() == Some(address) || brokers.values().any(|known| known == address);
        self.idle.retain(|address, _| is_used(address));
    }
}

fn address(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A name as the protocol has it.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

fn read_topic(topic: &kafka_protocol::messages::metadata_response::MetadataResponseTopic) -> Topic {
    let count = topic.partitions.iter().map(|partition| partition.partition_index + 1).max().unwrap_or(0);
    let mut partitions = vec![Partition { leader: None, replicas: 0 }; usize::try_from(count).unwrap_or(0)];
    for partition in &topic.partitions {
        let leader = (partition.leader_id.0 >= 0).then_some(partition.leader_id.0);
        if let Some(place) = usize::try_from(partition.partition_index).ok().and_then(|index| partitions.get_mut(index))
        {
            *place = Partition { leader, replicas: partition.replica_nodes.len() };
        }
    }
    Topic { id: topic.topic_id, partitions }
}
