//! Topics and the leaders of their partitions: from memory, or from the brokers.

use super::super::connection::Error;
use super::super::topology::{
    CachedTopic, Leader, PartitionMetadata, TopicAnswer, TopicMetadata, best_answer, is_accepted, is_another_topic,
};
use super::super::{describe, response_error};
use super::cache::ClusterCache;
use super::{CONFIRM_WAIT_MAX, Cluster, topic_name};
use crate::limits::METADATA_INTERVAL_MIN;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{MetadataRequest, MetadataResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

impl Cluster {
    /// Asks the brokers about the topic. `None`: it does not exist. Asking never creates a topic.
    ///
    /// One broker is asked. More are asked only if its answer contradicts what is known, or if nothing is known yet.
    pub async fn topic(&self, name: &str, deadline: Instant) -> Result<Option<Arc<TopicMetadata>>, Error> {
        let asked = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(false);
        if let Some(known) = self.cache().topics.get_mut(name) {
            known.asked_at = Instant::now();
        }
        let (mut candidates, mut answers) = (self.candidates(), Vec::new());
        let (topic, is_new) = loop {
            let Some(answer) = self.ask_next(&mut candidates, &request, deadline).await else {
                let accepted = best_answer(answers).ok_or(candidates.failure)?;
                return Ok(self.update_topic(&mut self.cache(), name, accepted));
            };
            let mut cache = self.cache();
            cache.update_brokers(&answer, &self.settings.brokers);
            match read_answer(name, &answer) {
                Ok(answer) => answers.push(answer),
                Err(error @ (Error::Configuration(_) | Error::NotAllowed(_))) => return Err(error),
                Err(error) => {
                    candidates.record_failure(error);
                    continue;
                }
            }
            let known = cache.topics.get(name).map(|known| &*known.topic);
            if is_accepted(known, &answers)
                && let (is_new, Some(accepted)) = (known.is_none(), answers.pop())
            {
                break (self.update_topic(&mut cache, name, accepted), is_new);
            }
        };
        match topic {
            Some(topic) if is_new => Ok(Some(self.confirm_new_topic(name, topic, &request, deadline).await)),
            topic => Ok(topic),
        }
    }

    /// Asks a second broker about a topic that was not known before. The first broker may be outdated, and there was
    /// nothing to compare its answer with. If no second broker answers soon, the first answer is used.
    async fn confirm_new_topic(
        &self,
        name: &str,
        topic: Arc<TopicMetadata>,
        request: &MetadataRequest,
        deadline: Instant,
    ) -> Arc<TopicMetadata> {
        let mut candidates = self.candidates();
        if candidates.addresses.len() < 2 {
            return topic;
        }
        let deadline = deadline.min(Instant::now() + CONFIRM_WAIT_MAX);
        let answer = self.ask_next(&mut candidates, request, deadline).await;
        match answer.and_then(|answer| read_answer(name, &answer).ok()) {
            Some(TopicAnswer::Exists(other)) if !is_another_topic(topic.id, other.id) => {
                self.update_topic(&mut self.cache(), name, TopicAnswer::Exists(other)).unwrap_or(topic)
            }
            _ => topic,
        }
    }

    /// Applies an accepted answer, and notifies the calls that wait for another leader.
    fn update_topic(&self, cache: &mut ClusterCache, name: &str, accepted: TopicAnswer) -> Option<Arc<TopicMetadata>> {
        let before = cache.topics.get(name).map(|known| Arc::clone(&known.topic));
        let after = cache.update_topic(name, accepted);
        if before != after {
            self.topics_changed.send_replace(());
        }
        after
    }

    /// The topic from memory. The brokers are asked only if it is not known at all.
    pub async fn cached_topic(&self, name: &str, deadline: Instant) -> Result<Arc<TopicMetadata>, Error> {
        let known = self.cached_or_asked(name, deadline, |known| Some(Arc::clone(&known.topic))).await?;
        known.ok_or_else(|| Error::NotSent(format!("topic {name:?} does not exist")))
    }

    /// The topic from memory. The brokers are asked if it is not known to have this partition, which may have been
    /// added.
    pub async fn cached_topic_with(
        &self,
        name: &str,
        partition: u32,
        deadline: Instant,
    ) -> Result<Arc<TopicMetadata>, Error> {
        let has_partition = |known: &CachedTopic| known.topic.partitions.len() > partition as usize;
        let find = |known: &CachedTopic| has_partition(known).then(|| Arc::clone(&known.topic));
        match self.cached_or_asked(name, deadline, find).await? {
            Some(topic) => Ok(topic),
            None => self.cached_topic(name, deadline).await,
        }
    }

    /// The leader of a partition, and its topic. The brokers are asked if the leader is not known or has failed.
    pub async fn leader(
        &self,
        name: &str,
        partition: u32,
        deadline: Instant,
    ) -> Result<(Leader, Arc<TopicMetadata>), Error> {
        let find = |known: &CachedTopic| Some((known.leader(partition)?, Arc::clone(&known.topic)));
        if let Some(found) = self.cached_or_asked(name, deadline, find).await? {
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
                    "broker {node} does not lead partition {partition} of {name:?} any more, and no broker names \
                     another leader"
                )
            }
        }))
    }

    /// The leader of a partition, if it is known and has not failed. Asks no broker.
    pub fn cached_leader(&self, name: &str, partition: u32) -> Option<Leader> {
        self.cache().topics.get(name)?.leader(partition)
    }

    /// Records that a leader failed, or said that it is not the leader. It is looked up before it is used again, and the
    /// other brokers are asked before it.
    pub fn report_leader_failure(&self, name: &str, partition: u32, failed: Leader) {
        let mut cache = self.cache();
        if let Some(known) = cache.topics.get_mut(name) {
            known.record_leader_failure(partition, failed);
        }
        cache.ask_last(failed.node);
    }

    /// Asks one more broker about the topic if no broker was asked for this long. What is known stays if it does not
    /// answer soon.
    pub async fn refresh(&self, name: &str, age_max: Duration) {
        let is_due = self.cache().topics.get(name).is_some_and(|known| known.asked_at.elapsed() >= age_max);
        if is_due {
            let answer = self.topic(name, Instant::now() + CONFIRM_WAIT_MAX).await;
            if let Err(error) = answer {
                tracing::debug!(topic = name, "cannot refresh who leads the partitions: {error}");
            }
        }
    }

    /// Finds something in memory, or else asks a broker about the topic and looks again. `None`: not even then.
    ///
    /// All callers that wait share one look-up, and look-ups are at least [`METADATA_INTERVAL_MIN`] apart. Without this,
    /// a partition without a leader would make every caller ask the brokers in a tight loop.
    async fn cached_or_asked<T>(
        &self,
        name: &str,
        deadline: Instant,
        find: impl Fn(&CachedTopic) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let find = || self.cache().topics.get(name).and_then(&find);
        if let Some(found) = find() {
            return Ok(Some(found));
        }
        let started_at = Instant::now();
        let look_up = async {
            let _lookup = self.lookup.lock().await;
            if let Some(found) = find() {
                return Ok(Some(found));
            }
            let last = self.cache().topics.get(name).map(|known| (known.asked_at, known.answered_at));
            if let Some((asked_at, answered_at)) = last {
                // Another caller asked while this one waited for the lock: a second question would find the same.
                if answered_at >= started_at {
                    return Ok(None);
                }
                sleep_until(asked_at + METADATA_INTERVAL_MIN).await;
            }
            match self.topic(name, deadline).await? {
                Some(_) => Ok(find()),
                None => Err(Error::NotSent(format!("topic {name:?} does not exist"))),
            }
        };
        timeout_at(deadline, look_up).await.unwrap_or_else(|_| {
            Err(Error::NotSent(format!("no broker of {} has answered about topic {name:?} in time", self.addresses())))
        })
    }
}

/// Reads a broker's answer about one topic. An error that may be temporary is [`Error::NotSent`].
fn read_answer(name: &str, answer: &MetadataResponse) -> Result<TopicAnswer, Error> {
    let Some(topic) = answer.topics.first() else { return Ok(TopicAnswer::Missing) };
    match response_error(topic.error_code) {
        None | Some(ResponseError::LeaderNotAvailable) => Ok(TopicAnswer::Exists(read_topic(topic))),
        Some(ResponseError::UnknownTopicOrPartition) => Ok(TopicAnswer::Missing),
        Some(error) if error.is_retriable() => Err(Error::NotSent(format!("topic {name:?}: {}", describe(error)))),
        Some(error @ ResponseError::TopicAuthorizationFailed) => {
            Err(Error::NotAllowed(format!("topic {name:?}: {}", describe(error))))
        }
        Some(error) => Err(Error::Configuration(format!("topic {name:?}: {}", describe(error)))),
    }
}

fn read_topic(topic: &MetadataResponseTopic) -> TopicMetadata {
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
