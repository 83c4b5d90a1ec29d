//! Topics: whether one is there, what it takes, and how one is made. A topic is only ever made because somebody asked
//! for it: looking for one that is not there makes none, on a broker that would either.

use crate::kafka::{self, Cluster, Recipient, TopicMetadata, describe, refusal, topic_name};
use crate::limits::{BROKER_CALL_MAX, BROKER_SETTINGS_POLL, LETTER_BYTES_MAX};
use crate::log::{CreateTopic, OpenError};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteRecordsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    MetadataRequest,
};
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// What a broker takes a batch by default (`message.max.bytes`).
const MAX_MESSAGE_BYTES: usize = 1_048_588;

const RESOURCE_TOPIC: i8 = 2;
const MAX_MESSAGE_BYTES_KEY: &str = "max.message.bytes";
const RETENTION_KEY: &str = "retention.ms";
const CLEANUP_KEY: &str = "cleanup.policy";
const MIN_ISR_KEY: &str = "min.insync.replicas";
const SEGMENT_BYTES_KEY: &str = "segment.bytes";
const STATE_SEGMENT_BYTES: usize = 64 * 1024 * 1024;
const UNCLEAN_KEY: &str = "unclean.leader.election.enable";

/// A topic that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenedTopic {
    pub(super) name: String,
    pub(super) id: Uuid,
    pub(super) replicas: usize,
    pub(super) max_message_bytes: usize,
}

/// The opened topic that this one stands beside: `orders.crm.dead` beside `orders`.
pub(super) fn beside(opened: &[OpenedTopic], name: &str) -> Option<OpenedTopic> {
    let is_beside = |opened: &&OpenedTopic| name.strip_prefix(&opened.name).is_some_and(|rest| rest.starts_with('.'));
    opened.iter().filter(is_beside).max_by_key(|opened| opened.name.len()).cloned()
}

/// Whether a broker answers.
pub(super) async fn is_there(cluster: &Cluster, deadline: Instant) -> Result<(), kafka::Error> {
    // No topics, and not all of them.
    let request = MetadataRequest::default().with_topics(Some(Vec::new())).with_allow_auto_topic_creation(false);
    cluster.call(Recipient::Any, &request, deadline).await.map(drop)
}

/// Opens the topic. If `create` says how, it is created if it is missing, and a side topic that has fewer partitions is
/// given the rest, as far as brokers let us.
pub(super) async fn open(
    cluster: &Cluster,
    name: &str,
    create: Option<CreateTopic>,
    beside: Option<OpenedTopic>,
    deadline: Instant,
) -> Result<OpenedTopic, OpenError> {
    let mut found = look(cluster, name, deadline).await?;
    if found.is_none()
        && let Some(create) = create
    {
        if create.partitions == 0 {
            return Err(OpenError::Configuration(format!("topic {name:?} needs at least one partition")));
        }
        make(cluster, name, create, beside.as_ref(), deadline).await?;
        found = Some(wait_for(cluster, name, 1, deadline).await?);
    } else if let (Some(create), Some(topic), true) = (create, &found, beside.is_some())
        && topic.partitions.len() < create.partitions as usize
    {
        // Its source has grown. What can be done with fewer partitions is for the caller to say.
        match grow(cluster, name, create.partitions, deadline).await {
            Ok(()) => found = Some(wait_for(cluster, name, create.partitions as usize, deadline).await?),
            Err(why) => {
                let (partitions, wanted) = (topic.partitions.len(), create.partitions);
                tracing::warn!(topic = name, partitions, wanted, "cannot add partitions to the topic: {why}");
            }
        }
    }
    let topic = found.ok_or_else(|| OpenError::Missing { topic: name.into() })?;
    let replicas = topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(1);
    let settings = settings(cluster, name, deadline).await;
    if beside.is_none() {
        warn(name, replicas, &settings);
    }
    let max_message_bytes = settings.get(MAX_MESSAGE_BYTES_KEY).and_then(|value| value.parse().ok());
    Ok(OpenedTopic {
        name: name.to_owned(),
        id: topic.id,
        replicas,
        max_message_bytes: max_message_bytes.unwrap_or(MAX_MESSAGE_BYTES),
    })
}

/// Asks again while brokers say that it may work later.
async fn look(cluster: &Cluster, name: &str, deadline: Instant) -> Result<Option<Arc<TopicMetadata>>, OpenError> {
    loop {
        match cluster.topic(name, deadline).await {
            Ok(found) => return Ok(found),
            Err(kafka::Error::Configuration(detail) | kafka::Error::NotAllowed(detail)) => {
                return Err(OpenError::Configuration(detail));
            }
            Err(error) if Instant::now() + BROKER_SETTINGS_POLL >= deadline => {
                return Err(OpenError::Unavailable(error.to_string()));
            }
            Err(_) => sleep_until(Instant::now() + BROKER_SETTINGS_POLL).await,
        }
    }
}

/// A topic or a partition that was just created is not yet known to every broker, nor has it a leader.
async fn wait_for(
    cluster: &Cluster,
    name: &str,
    partitions: usize,
    deadline: Instant,
) -> Result<Arc<TopicMetadata>, OpenError> {
    loop {
        let found = look(cluster, name, deadline).await?;
        let is_led = |topic: &TopicMetadata| topic.partitions.iter().all(|partition| partition.leader.is_some());
        match found {
            Some(topic) if is_led(&topic) && topic.partitions.len() >= partitions => return Ok(topic),
            _ if Instant::now() >= deadline => {
                return Err(OpenError::Unavailable(format!("topic {name:?} was made, but nobody leads it yet")));
            }
            _ => sleep_until(Instant::now() + BROKER_SETTINGS_POLL).await,
        }
    }
}

async fn make(
    cluster: &Cluster,
    name: &str,
    create: CreateTopic,
    beside: Option<&OpenedTopic>,
    deadline: Instant,
) -> Result<(), OpenError> {
    let mut configs = Vec::new();
    let mut set = |key: &'static str, value: String| {
        let config = CreatableTopicConfig::default().with_name(StrBytes::from_static_str(key));
        configs.push(config.with_value(Some(StrBytes::from_string(value))));
    };
    match create.retention {
        Some(retention) => set(RETENTION_KEY, retention.as_millis().to_string()),
        // A side topic that is trimmed by its writer, and by nobody else.
        None if beside.is_some() => set(RETENTION_KEY, "-1".into()),
        None => {}
    }
    if name.ends_with(".state") {
        // Whole segments are removed: smaller ones sooner.
        set(SEGMENT_BYTES_KEY, STATE_SEGMENT_BYTES.to_string());
    }
    if let Some(beside) = beside {
        set(CLEANUP_KEY, "delete".into());
        set(MAX_MESSAGE_BYTES_KEY, (beside.max_message_bytes + LETTER_BYTES_MAX).to_string());
    }
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(i32::try_from(create.partitions).unwrap_or(i32::MAX))
        // -1: what the cluster makes topics with.
        .with_replication_factor(beside.and_then(|beside| i16::try_from(beside.replicas).ok()).unwrap_or(-1))
        .with_configs(configs);
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(i32::try_from(BROKER_CALL_MAX.as_millis()).unwrap_or(i32::MAX));
    let unavailable = |why: String| OpenError::Unavailable(format!("topic {name:?} cannot be made now: {why}"));
    let answer = match cluster.call(Recipient::Controller, &request, deadline).await {
        Ok(answer) => answer,
        Err(kafka::Error::Configuration(detail)) => return Err(OpenError::Configuration(detail)),
        Err(error) => return Err(unavailable(error.to_string())),
    };
    let Some(result) = answer.topics.first() else { return Err(unavailable("no answer about it".into())) };
    let said = result.error_message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
    match refusal(result.error_code) {
        None => {
            tracing::info!(topic = name, partitions = create.partitions, "made the topic");
            Ok(())
        }
        Some(ResponseError::TopicAlreadyExists) => Ok(()),
        Some(error) if error.is_retriable() => Err(unavailable(format!("{}{said}", describe(error)))),
        Some(error) => {
            Err(OpenError::Configuration(format!("topic {name:?} cannot be made: {}{said}", describe(error))))
        }
    }
}

/// Adds partitions to a topic until it has so many.
async fn grow(cluster: &Cluster, name: &str, partitions: u32, deadline: Instant) -> Result<(), String> {
    let asked = CreatePartitionsTopic::default()
        .with_name(topic_name(name))
        .with_count(i32::try_from(partitions).unwrap_or(i32::MAX))
        // Where they are is the cluster's choice.
        .with_assignments(None);
    let request = CreatePartitionsRequest::default()
        .with_topics(vec![asked])
        .with_timeout_ms(i32::try_from(BROKER_CALL_MAX.as_millis()).unwrap_or(i32::MAX));
    let answer = cluster.call(Recipient::Controller, &request, deadline).await.map_err(|error| error.to_string())?;
    let result = answer.results.first().ok_or("no answer about it")?;
    match refusal(result.error_code) {
        None => {
            tracing::info!(topic = name, partitions, "added partitions to the topic");
            Ok(())
        }
        // Another process did it at the same time: it has as many, or more.
        Some(ResponseError::InvalidPartitions) => Ok(()),
        Some(error) => {
            let said = result.error_message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            Err(format!("{}{said}", describe(error)))
        }
    }
}

/// Removes the records below this offset.
pub(super) async fn trim(cluster: &Cluster, name: &str, partition: u32, below: i64) -> Result<(), kafka::Error> {
    let deadline = Instant::now() + BROKER_CALL_MAX;
    let (leader, _) = cluster.leader(name, partition, deadline).await?;
    let asked = DeleteRecordsPartition::default().with_partition_index(partition as i32).with_offset(below);
    let request = DeleteRecordsRequest::default()
        .with_topics(vec![DeleteRecordsTopic::default().with_name(topic_name(name)).with_partitions(vec![asked])])
        .with_timeout_ms(i32::try_from(BROKER_CALL_MAX.as_millis()).unwrap_or(i32::MAX));
    let answer = cluster.call(Recipient::Node(leader.node), &request, deadline).await;
    if answer.is_err() {
        cluster.doubt(name, partition, leader);
    }
    let answer = answer?;
    let result = answer.topics.first().and_then(|topic| topic.partitions.first());
    match result.and_then(|partition| refusal(partition.error_code)) {
        None => Ok(()),
        Some(error) => {
            cluster.doubt(name, partition, leader);
            Err(kafka::Error::NotSent(describe(error)))
        }
    }
}

/// Removes the whole topic; one that is not there is removed already.
pub(super) async fn delete(cluster: &Cluster, name: &str) -> Result<(), kafka::Error> {
    let deadline = Instant::now() + BROKER_CALL_MAX;
    let request = DeleteTopicsRequest::default()
        .with_topic_names(vec![topic_name(name)])
        .with_timeout_ms(i32::try_from(BROKER_CALL_MAX.as_millis()).unwrap_or(i32::MAX));
    let answer = cluster.call(Recipient::Controller, &request, deadline).await?;
    match answer.responses.first().and_then(|result| refusal(result.error_code)) {
        None | Some(ResponseError::UnknownTopicOrPartition) => Ok(()),
        Some(error) => Err(kafka::Error::NotSent(describe(error))),
    }
}

/// The topic's settings, as far as we may see them.
async fn settings(cluster: &Cluster, name: &str, deadline: Instant) -> HashMap<String, String> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(RESOURCE_TOPIC)
        .with_resource_name(StrBytes::from_string(name.to_owned()))
        .with_configuration_keys(Some(
            [MAX_MESSAGE_BYTES_KEY, RETENTION_KEY, CLEANUP_KEY, MIN_ISR_KEY, UNCLEAN_KEY]
                .map(StrBytes::from_static_str)
                .to_vec(),
        ));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let unseen = |why: String| {
        tracing::warn!(topic = name, "its settings cannot be seen, those of a default broker are assumed: {why}");
        HashMap::new()
    };
    let answer = match cluster.call(Recipient::Any, &request, deadline).await {
        Ok(answer) => answer,
        Err(error) => return unseen(error.to_string()),
    };
    let Some(result) = answer.results.into_iter().next() else { return unseen("no answer about it".into()) };
    if let Some(error) = refusal(result.error_code) {
        return unseen(describe(error));
    }
    let known = |config: kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult| {
        Some((config.name.to_string(), config.value?.to_string()))
    };
    result.configs.into_iter().filter_map(known).collect()
}

/// Says what of the topic's settings may cost events.
fn warn(name: &str, replicas: usize, settings: &HashMap<String, String>) {
    let is = |key: &str, what: &str| settings.get(key).is_some_and(|value| value.contains(what));
    let min_isr: usize = settings.get(MIN_ISR_KEY).and_then(|value| value.parse().ok()).unwrap_or(1);
    if is(CLEANUP_KEY, "compact") {
        tracing::warn!(
            topic = name,
            "cleanup.policy=compact: Kafka removes a user's earlier events before they are delivered; set it to delete"
        );
    }
    if is(UNCLEAN_KEY, "true") {
        tracing::warn!(
            topic = name,
            "unclean.leader.election.enable=true: acknowledged events may be lost; set it to false"
        );
    }
    if replicas > 1 && min_isr < 2 {
        tracing::warn!(
            topic = name,
            replicas,
            min_isr,
            "an event counts as kept by one broker alone; set min.insync.replicas=2"
        );
    }
    if replicas == 1 {
        tracing::info!(topic = name, "one replica: the events are lost with the disk of their broker");
    }
    let is_short = |ms: &i64| (0..24 * 3600 * 1000).contains(ms);
    if let Some(ms) = settings.get(RETENTION_KEY).and_then(|value| value.parse::<i64>().ok()).filter(is_short) {
        let retention = humantime::format_duration(std::time::Duration::from_millis(ms.unsigned_abs()));
        tracing::warn!(topic = name, "retention.ms: an outage longer than {retention} loses events");
    }
}
