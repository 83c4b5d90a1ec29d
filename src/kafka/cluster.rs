//! The cluster as it was last seen: its brokers, who leads which partition, who coordinates which group, and the
//! connections that are idle.
//!
//! What any broker can tell is asked of each broker in turn, and put together by [`super::topology`]: so one broker that is
//! cut off from the others, and answers all the same, does not keep what the others know from us.

use super::connection::{Connection, Error};
use super::requests::Request;
use super::topology::{
    BrokerOrder, CachedTopic, Leader, PartitionEpoch, PartitionMetadata, TopicAnswer, TopicMetadata, elected,
    is_another_topic, is_believed, last_resort,
};
use super::{describe, refusal};
use crate::limits::{BROKER_ANSWER_MAX, BROKER_CONNECTIONS_IDLE_MAX, CONNECTION_IDLE_MAX, METADATA_INTERVAL_MIN};
use crate::net::BrokerSettings;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{ApiKey, FindCoordinatorRequest, MetadataRequest, MetadataResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// How often another broker is asked who coordinates a group. A coordinator that is cut off from the other brokers still
/// answers heartbeats, while the new one counts its members as gone after their session: so this is shorter than a session.
const COORDINATOR_CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// How long a broker may take to confirm what is known already: the caller's own request waits for it.
const CONFIRM_WAIT_MAX: Duration = Duration::from_millis(500);

/// How long all brokers together may take to confirm it. So two of them may be silent, and a healthy one is still asked.
const CONFIRM_ALL_WAIT_MAX: Duration = Duration::from_millis(1500);

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient<'a> {
    /// Whichever broker answers.
    Any,
    Node(i32),
    /// The one that makes topics.
    Controller,
    /// The one that keeps this group's commits.
    Coordinator(&'a str),
}

/// A cluster of Kafka brokers.
#[derive(Debug)]
pub struct Cluster {
    settings: BrokerSettings,
    seen: Mutex<ClusterCache>,
    /// One look at a time: those that wait for it use what it found.
    looking: tokio::sync::Mutex<()>,
    /// Told when something else is known of a topic.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct ClusterCache {
    /// Addresses, by node id.
    brokers: HashMap<i32, String>,
    controller: Option<i32>,
    topics: HashMap<String, CachedTopic>,
    coordinators: HashMap<String, CachedCoordinator>,
    idle: HashMap<String, Vec<(Connection, Instant)>>,
    turns: BrokerOrder,
}

#[derive(Debug, Clone, Copy)]
struct CachedCoordinator {
    node: i32,
    /// When a broker was last asked whether it is still the one.
    confirmed: Instant,
}

/// The brokers that are asked one after the other, until one tells what is looked for.
struct Candidates {
    addresses: std::vec::IntoIter<String>,
    /// Why the brokers so far were of no help.
    failure: Error,
}

impl Candidates {
    fn fails(&mut self, error: Error) {
        // An error that a person has to mend is kept: a later broker's error may pass by itself.
        if !matches!(self.failure, Error::Configuration(_)) {
            self.failure = error;
        }
    }
}

impl Cluster {
    pub fn new(settings: BrokerSettings) -> Self {
        Self {
            settings,
            seen: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Where the cluster was said to be, for messages.
    pub fn addresses(&self) -> String {
        self.settings.brokers.join(",")
    }

    /// Whether we tell who we are.
    pub(crate) fn logs_in(&self) -> bool {
        self.settings.sasl.is_some()
    }

    /// Asks, and waits for the answer until the deadline. A broker that may be any one has as long as a healthy one
    /// needs; then the next one is asked.
    pub async fn call<R: Request>(
        &self,
        who: Recipient<'_>,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let controller = self.seen().controller;
        let node = match (who, controller) {
            (Recipient::Node(node), _) | (Recipient::Controller, Some(node)) => node,
            (Recipient::Coordinator(group), _) => self.coordinator(group, deadline).await?,
            // A broker of a cluster that hides its controller passes on what is for it.
            (Recipient::Any, _) | (Recipient::Controller, None) => return self.call_any(request, deadline).await,
        };
        let address = self.seen().brokers.get(&node).cloned();
        let answer = match address {
            Some(address) => self.call_address(&address, request, deadline).await,
            None => Err(Error::NotSent(format!("broker {node} is not known any more"))),
        };
        match who {
            Recipient::Coordinator(group) if answer.is_err() => self.forget_coordinator(group),
            Recipient::Controller if answer.is_err() => self.seen().controller = None,
            _ => {}
        }
        answer
    }

    async fn call_any<R: Request>(&self, request: &R, deadline: Instant) -> Result<R::Response, Error> {
        let mut round = self.round();
        let answer = self.ask_next(&mut round, request, deadline).await;
        answer.ok_or(round.failure)
    }

    /// Every broker once, beginning with the one whose turn it is.
    fn round(&self) -> Candidates {
        let seen = self.seen();
        let addresses = seen.turns.order(seen.brokers.values(), &self.settings.brokers, Instant::now());
        Candidates { addresses: addresses.into_iter(), failure: Error::NotSent("no broker is known".into()) }
    }

    /// The answer of the next broker that gives one before the deadline.
    async fn ask_next<R: Request>(
        &self,
        round: &mut Candidates,
        request: &R,
        deadline: Instant,
    ) -> Option<R::Response> {
        while Instant::now() < deadline {
            let address = round.addresses.next()?;
            self.seen().turns.took(&address);
            let patience = deadline.min(Instant::now() + BROKER_ANSWER_MAX);
            match self.call_address(&address, request, patience).await {
                Ok(answer) => return Some(answer),
                Err(error) => round.fails(error),
            }
        }
        None
    }

    /// Asks the broker at this address. One that gives no answer is asked after the others for a while.
    async fn call_address<R: Request>(
        &self,
        address: &str,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        if Instant::now() >= deadline {
            // Nothing is known of a broker that was not asked, and its idle connection is still good.
            return Err(Error::NotSent(format!("no time was left to ask {address}")));
        }
        let answer = self.exchange(address, request, deadline).await;
        if answer.is_err() {
            self.seen().turns.gave_no_answer(address, Instant::now());
        }
        answer
    }

    async fn exchange<R: Request>(&self, address: &str, request: &R, deadline: Instant) -> Result<R::Response, Error> {
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

    /// The topic as the brokers see it now; `None`: it is missing. Nothing is created by asking. One broker is asked, and
    /// more only if its answer contradicts what is known, or if nothing is known yet.
    pub async fn topic(&self, name: &str, deadline: Instant) -> Result<Option<Arc<TopicMetadata>>, Error> {
        let asked = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(false);
        if let Some(known) = self.seen().topics.get_mut(name) {
            known.asked = Instant::now();
        }
        let (mut round, mut said) = (self.round(), Vec::new());
        let (topic, is_new) = loop {
            let Some(answer) = self.ask_next(&mut round, &request, deadline).await else {
                let believed = last_resort(said).ok_or(round.failure)?;
                return Ok(self.take_in(&mut self.seen(), name, believed));
            };
            let mut seen = self.seen();
            seen.learn(&answer, &self.settings.brokers);
            match read(name, &answer) {
                Ok(told) => said.push(told),
                Err(error @ (Error::Configuration(_) | Error::NotAllowed(_))) => return Err(error),
                Err(error) => {
                    round.fails(error);
                    continue;
                }
            }
            let known = seen.topics.get(name).map(|known| &*known.topic);
            if is_believed(known, &said)
                && let (is_new, Some(believed)) = (known.is_none(), said.pop())
            {
                break (self.take_in(&mut seen, name, believed), is_new);
            }
        };
        match topic {
            Some(topic) if is_new => Ok(Some(self.second_opinion(name, topic, &request, deadline).await)),
            topic => Ok(topic),
        }
    }

    /// The first broker that was asked about a topic may be behind, and nothing better is known yet: another one is asked,
    /// if there is one that answers soon.
    async fn second_opinion(
        &self,
        name: &str,
        topic: Arc<TopicMetadata>,
        request: &MetadataRequest,
        deadline: Instant,
    ) -> Arc<TopicMetadata> {
        let mut round = self.round();
        if round.addresses.len() < 2 {
            return topic;
        }
        let deadline = deadline.min(Instant::now() + CONFIRM_WAIT_MAX);
        let answer = self.ask_next(&mut round, request, deadline).await;
        match answer.and_then(|answer| read(name, &answer).ok()) {
            Some(TopicAnswer::Exists(other)) if !is_another_topic(topic.id, other.id) => {
                self.take_in(&mut self.seen(), name, TopicAnswer::Exists(other)).unwrap_or(topic)
            }
            _ => topic,
        }
    }

    /// Keeps what is believed of a topic, and gives what is known of it then.
    fn take_in(&self, seen: &mut ClusterCache, name: &str, believed: TopicAnswer) -> Option<Arc<TopicMetadata>> {
        let before = seen.topics.get(name).map(|known| Arc::clone(&known.topic));
        let after = seen.take_in(name, believed);
        if before != after {
            self.changed.send_replace(());
        }
        after
    }

    /// The topic from memory. It is looked up only if it is not known at all.
    pub async fn cached_topic(&self, name: &str, deadline: Instant) -> Result<Arc<TopicMetadata>, Error> {
        let known = self.known(name, deadline, |known| Some(Arc::clone(&known.topic))).await?;
        known.ok_or_else(|| Error::NotSent(format!("topic {name:?} is not there")))
    }

    /// The topic from memory. It is looked up if it is not known to have this partition, which may have been added.
    pub async fn cached_topic_with(
        &self,
        name: &str,
        partition: u32,
        deadline: Instant,
    ) -> Result<Arc<TopicMetadata>, Error> {
        let has_it = |known: &CachedTopic| known.topic.partitions.len() > partition as usize;
        let known = self.known(name, deadline, |known| has_it(known).then(|| Arc::clone(&known.topic))).await?;
        match known {
            Some(topic) => Ok(topic),
            None => self.cached_topic(name, deadline).await,
        }
    }

    /// The leader of a partition, and its topic. It is looked up if it is not known or doubted; what is known of the other
    /// partitions is used meanwhile.
    pub async fn leader(
        &self,
        name: &str,
        partition: u32,
        deadline: Instant,
    ) -> Result<(Leader, Arc<TopicMetadata>), Error> {
        let find = |known: &CachedTopic| Some((known.leader(partition)?, Arc::clone(&known.topic)));
        if let Some(found) = self.known(name, deadline, find).await? {
            return Ok(found);
        }
        let topic = self.cached_topic(name, deadline).await?;
        Err(Error::NotSent(match topic.partitions.get(partition as usize) {
            None => {
                let count = topic.partitions.len();
                format!("topic {name:?} has {count} partitions, and no partition {partition}")
            }
            Some(PartitionMetadata { leader: None, .. }) => {
                format!("partition {partition} of {name:?} has no leader now")
            }
            Some(PartitionMetadata { leader: Some(node), .. }) => {
                format!(
                    "broker {node} does not lead partition {partition} of {name:?} any more, and no broker names another"
                )
            }
        }))
    }

    /// The leader of a partition, if it is known and not doubted.
    pub fn cached_leader(&self, name: &str, partition: u32) -> Option<Leader> {
        self.seen().topics.get(name)?.leader(partition)
    }

    /// Asks the leader of these partitions, for as long as it leads all of them as far as is known: a leader that is cut
    /// off from the others may keep an answer back for long. After an error it is looked up whether it leads them still.
    pub async fn call_leader<R: Request>(
        &self,
        name: &str,
        node: i32,
        led: &[PartitionEpoch],
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Error> {
        let mut changed = self.changed.subscribe();
        let replaced = async {
            let newer = |led: &PartitionEpoch| {
                self.cached_leader(name, led.partition).is_some_and(|known| known.epoch > led.epoch)
            };
            // It lives as long as the cluster, of which we are a part.
            while !led.iter().any(newer) && changed.changed().await.is_ok() {}
        };
        let answer = tokio::select! {
            biased;
            answer = self.call(Recipient::Node(node), request, deadline) => answer,
            () = replaced => Err(Error::NoAnswer(format!("broker {node} was replaced as a leader of {name:?}"))),
        };
        if answer.is_err() {
            for PartitionEpoch { partition, epoch } in led {
                self.doubt(name, *partition, Leader { node, epoch: *epoch });
            }
        }
        answer
    }

    /// A leader failed, or said that it is not the leader: it is looked up before it is used again, and of another broker
    /// first.
    pub fn doubt(&self, name: &str, partition: u32, failed: Leader) {
        let mut seen = self.seen();
        if let Some(known) = seen.topics.get_mut(name) {
            known.doubt(partition, failed);
        }
        seen.is_behind(failed.node);
    }

    /// Asks one more broker about the topic if none was asked for this long. What is known stays known if it does not
    /// answer soon.
    pub async fn refresh(&self, name: &str, after: Duration) {
        let is_due = self.seen().topics.get(name).is_some_and(|known| known.asked.elapsed() >= after);
        if is_due {
            let answer = self.topic(name, Instant::now() + CONFIRM_WAIT_MAX).await;
            if let Err(error) = answer {
                tracing::debug!(topic = name, "no other broker tells who leads its partitions: {error}");
            }
        }
    }

    /// Finds something in memory, and else after one look at the topic, which all that wait for it share; `None`: not
    /// even then.
    async fn known<T>(
        &self,
        name: &str,
        deadline: Instant,
        find: impl Fn(&CachedTopic) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let find = || self.seen().topics.get(name).and_then(&find);
        if let Some(found) = find() {
            return Ok(Some(found));
        }
        let began = Instant::now();
        let look = async {
            let _one = self.looking.lock().await;
            if let Some(found) = find() {
                return Ok(Some(found));
            }
            let last = self.seen().topics.get(name).map(|known| (known.asked, known.told));
            if let Some((asked, told)) = last {
                if told >= began {
                    return Ok(None);
                }
                sleep_until(asked + METADATA_INTERVAL_MIN).await;
            }
            match self.topic(name, deadline).await? {
                Some(_) => Ok(find()),
                None => Err(Error::NotSent(format!("topic {name:?} is not there"))),
            }
        };
        timeout_at(deadline, look).await.unwrap_or_else(|_| {
            Err(Error::NotSent(format!("no broker of {} tells where topic {name:?} is", self.addresses())))
        })
    }

    /// The coordinator failed, or said that it is not the one: it is looked up before the next call, and of another broker
    /// first.
    pub fn forget_coordinator(&self, group: &str) {
        let mut seen = self.seen();
        if let Some(forgotten) = seen.coordinators.remove(group) {
            seen.is_behind(forgotten.node);
        }
    }

    async fn coordinator(&self, group: &str, deadline: Instant) -> Result<i32, Error> {
        let known = {
            let mut seen = self.seen();
            let known = seen.coordinators.get_mut(group);
            known.map(|known| {
                let is_due = known.confirmed.elapsed() >= COORDINATOR_CONFIRM_INTERVAL;
                known.confirmed = if is_due { Instant::now() } else { known.confirmed };
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
            let answer = self.call_any(&find_coordinator_of(group), deadline).await?;
            match refusal(answer.error_code) {
                None => {
                    self.seen().coordinates(group, answer.node_id.0, address(&answer.host, answer.port));
                    return Ok(answer.node_id.0);
                }
                Some(error @ ResponseError::GroupAuthorizationFailed) => {
                    return Err(Error::NotAllowed(format!("group {group:?}: {}", describe(error))));
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

    /// Asks another broker who coordinates the group. If it names another one, all brokers are asked, and most decide.
    async fn confirm_coordinator(&self, group: &str, known: i32, deadline: Instant) -> i32 {
        let (others, itself) = {
            let (seen, now) = (self.seen(), Instant::now());
            let itself = seen.brokers.get(&known).cloned();
            let order = seen.turns.order(seen.brokers.values(), &[], now).into_iter();
            let is_well = |address: &String| Some(address) != itself.as_ref() && !seen.turns.is_silent(address, now);
            (order.filter(is_well).collect::<Vec<_>>(), itself)
        };
        if others.is_empty() {
            return known;
        }
        let deadline = deadline.min(Instant::now() + CONFIRM_ALL_WAIT_MAX);
        let (mut named, mut addresses) = (Vec::new(), HashMap::new());
        for teller in others.into_iter().chain(itself) {
            let answer_by = Instant::now() + CONFIRM_WAIT_MAX;
            // A healthy broker that had less time could count as silent. It is asked the next time.
            if answer_by > deadline {
                break;
            }
            self.seen().turns.took(&teller);
            let answer = self.call_address(&teller, &find_coordinator_of(group), answer_by).await;
            let Ok(answer) = answer else { continue };
            if answer.error_code == 0 {
                named.push(answer.node_id.0);
                addresses.insert(answer.node_id.0, address(&answer.host, answer.port));
            }
            if named == [known] {
                return known;
            }
        }
        let node = elected(known, &named);
        if node != known
            && let Some(address) = addresses.remove(&node)
        {
            tracing::info!(group, was = known, node, "another broker coordinates the group");
            let mut seen = self.seen();
            seen.coordinates(group, node, address);
            seen.is_behind(known);
        }
        node
    }

    /// Nothing is left half done where a lock's holder panicked: plain maps.
    fn seen(&self) -> MutexGuard<'_, ClusterCache> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClusterCache {
    fn learn(&mut self, answer: &MetadataResponse, given: &[String]) {
        if answer.brokers.is_empty() {
            return;
        }
        self.brokers =
            answer.brokers.iter().map(|broker| (broker.node_id.0, address(&broker.host, broker.port))).collect();
        self.controller = self.brokers.contains_key(&answer.controller_id.0).then_some(answer.controller_id.0);
        let brokers = &self.brokers;
        self.coordinators.retain(|_, coordinator| brokers.contains_key(&coordinator.node));
        // The addresses that we were given may be other names of brokers that call themselves otherwise.
        let is_used = |address: &String| given.contains(address) || brokers.values().any(|known| known == address);
        self.idle.retain(|address, _| is_used(address));
        self.turns.retain(is_used);
    }

    /// Keeps what is believed of a topic, and gives what is known of it then.
    fn take_in(&mut self, name: &str, believed: TopicAnswer) -> Option<Arc<TopicMetadata>> {
        match believed {
            TopicAnswer::Missing => {
                self.topics.remove(name);
                None
            }
            TopicAnswer::Exists(topic) => {
                let now = Instant::now();
                match self.topics.get_mut(name) {
                    Some(known) => known.learn(topic, now),
                    None => _ = self.topics.insert(name.to_owned(), CachedTopic::new(topic, now)),
                }
                self.topics.get(name).map(|known| Arc::clone(&known.topic))
            }
        }
    }

    fn coordinates(&mut self, group: &str, node: i32, address: String) {
        self.brokers.insert(node, address);
        self.coordinators.insert(group.to_owned(), CachedCoordinator { node, confirmed: Instant::now() });
    }

    /// What this broker says may be old: the others are asked before it.
    fn is_behind(&mut self, node: i32) {
        if let Some(address) = self.brokers.get(&node) {
            self.turns.took(address);
        }
    }
}

fn find_coordinator_of(group: &str) -> FindCoordinatorRequest {
    FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()))
}

fn address(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A name as the protocol has it.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// What a broker tells of the topic that it was asked about. An error that may pass is [`Error::NotSent`].
fn read(name: &str, answer: &MetadataResponse) -> Result<TopicAnswer, Error> {
    let Some(topic) = answer.topics.first() else { return Ok(TopicAnswer::Missing) };
    match refusal(topic.error_code) {
        None | Some(ResponseError::LeaderNotAvailable) => Ok(TopicAnswer::Exists(read_topic(topic))),
        Some(ResponseError::UnknownTopicOrPartition) => Ok(TopicAnswer::Missing),
        Some(error) if error.is_retriable() => Err(Error::NotSent(format!("topic {name:?}: {}", describe(error)))),
        Some(error @ ResponseError::TopicAuthorizationFailed) => {
            Err(Error::NotAllowed(format!("topic {name:?}: {}", describe(error))))
        }
        Some(error) => Err(Error::Configuration(format!("topic {name:?}: {}", describe(error)))),
    }
}

fn read_topic(topic: &kafka_protocol::messages::metadata_response::MetadataResponseTopic) -> TopicMetadata {
    let count = topic.partitions.iter().map(|partition| partition.partition_index + 1).max().unwrap_or(0);
    let mut partitions = vec![PartitionMetadata::UNKNOWN; usize::try_from(count).unwrap_or(0)];
    for partition in &topic.partitions {
        let leader = (partition.leader_id.0 >= 0).then_some(partition.leader_id.0);
        if let Some(place) = usize::try_from(partition.partition_index).ok().and_then(|index| partitions.get_mut(index))
        {
            let (leader_epoch, replicas) = (partition.leader_epoch, partition.replica_nodes.len());
            *place = PartitionMetadata { leader, leader_epoch, replicas };
        }
    }
    TopicMetadata { id: topic.topic_id, partitions }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn brokers_that_were_not_asked_for_want_of_time_do_not_count_as_silent() {
        // They let everybody connect, and never answer.
        let mut hanging = Vec::new();
        for _ in 0..5 {
            hanging.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<String> = hanging.iter().map(|broker| broker.local_addr().unwrap().to_string()).collect();
        let cluster = Cluster::new(BrokerSettings::plain(addresses.clone()));
        cluster.seen().brokers = (0..).zip(addresses.clone()).collect();
        let silent = || {
            let (seen, now) = (cluster.seen(), Instant::now());
            addresses.iter().filter(|address| seen.turns.is_silent(address, now)).count()
        };
        let answer = cluster.call_address(&addresses[0], &find_coordinator_of("group"), Instant::now()).await;
        assert!(matches!(answer, Err(Error::NotSent(_))), "{answer:?}");
        assert_eq!(silent(), 0);

        let soon = Instant::now() + CONFIRM_WAIT_MAX / 2;
        assert_eq!(cluster.confirm_coordinator("group", 0, soon).await, 0);
        assert_eq!(silent(), 0, "the caller has less time than a broker may take");
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(cluster.confirm_coordinator("group", 0, later).await, 0);
        assert!((1..=2).contains(&silent()), "{} of five are silent", silent());
    }
}
