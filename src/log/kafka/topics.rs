//! Topics: whether one exists, how large its batches may be, and how one is created. A topic is created only if the
//! caller asks for it. Looking for a missing topic never creates it, also if the broker would
//! (`auto.create.topics.enable`).

use crate::core::outcome::{Failure, FailureCode};
use crate::core::side_topics;
use crate::kafka::{
    self, Admin, AdminError, Cluster, Recipient, TopicMetadata, call_timeout_ms, describe, response_error, topic_name,
};
use crate::limits::DEAD_LETTER_EXTRA_BYTES_MAX;
use crate::log::{CreateTopic, OpenError};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest, MetadataRequest,
};
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

/// How often a topic is looked up again if it was just created, or if no broker can tell about it yet.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(50);

/// The `max.message.bytes` of a default broker, assumed if eventd may not read the topic's settings.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// The protocol's number for "topic" in a request for settings.
const RESOURCE_TOPIC: i8 = 2;

const MAX_MESSAGE_BYTES_KEY: &str = "max.message.bytes";
const RETENTION_KEY: &str = "retention.ms";
const CLEANUP_KEY: &str = "cleanup.policy";
const MIN_ISR_KEY: &str = "min.insync.replicas";
const SEGMENT_BYTES_KEY: &str = "segment.bytes";
const UNCLEAN_KEY: &str = "unclean.leader.election.enable";

/// The segment size of a state topic. Trimming removes only whole segments, so smaller ones free their space sooner than
/// the default of 1 GiB.
const STATE_SEGMENT_BYTES: usize = 64 * 1024 * 1024;

/// A retention shorter than this leads to a warning: an outage of a destination may last a day.
const RETENTION_WARNING_MS: i64 = 24 * 3600 * 1000;

/// A topic that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OpenedTopic {
    pub(super) name: String,
    pub(super) id: Uuid,
    pub(super) replicas: usize,
    pub(super) max_message_bytes: usize,
}

/// The opened topic that this name is a side topic of. For example, `orders` is the main topic of `orders.crm.dead`.
pub(super) fn main_topic_of(opened: &[OpenedTopic], name: &str) -> Option<OpenedTopic> {
    let is_main = |opened: &&OpenedTopic| name.strip_prefix(&opened.name).is_some_and(|rest| rest.starts_with('.'));
    opened.iter().filter(is_main).max_by_key(|opened| opened.name.len()).cloned()
}

/// Succeeds if a broker answers before the deadline.
pub(super) async fn check_reachable(cluster: &Cluster, deadline: Instant) -> Result<(), kafka::Error> {
    // An empty list asks about no topic. (A missing list would ask about all of them.)
    let request = MetadataRequest::default().with_topics(Some(Vec::new())).with_allow_auto_topic_creation(false);
    cluster.call(Recipient::Any, &request, deadline).await.map(drop)
}

/// Opens the topic. If `create` is given, a missing topic is created. A side topic that has fewer partitions than its
/// main topic gets the missing ones, if the brokers allow it.
pub(super) async fn open(
    cluster: &Cluster,
    admin: &Admin,
    name: &str,
    create: Option<CreateTopic>,
    main_topic: Option<OpenedTopic>,
    deadline: Instant,
) -> Result<OpenedTopic, OpenError> {
    let mut found = look_up(cluster, name, deadline).await?;
    if found.is_none()
        && let Some(create) = create
    {
        if create.partitions == 0 {
            return Err(OpenError::Configuration(format!("topic {name:?} needs at least one partition")));
        }
        create_topic(cluster, admin, name, create, main_topic.as_ref(), deadline).await?;
        found = Some(wait_for_leaders(cluster, name, 1, deadline).await?);
    } else if let (Some(create), Some(topic), true) = (create, &found, main_topic.is_some())
        && topic.partitions.len() < create.partitions as usize
    {
        // The main topic has grown. The caller decides what works with fewer partitions, so a failure is only a warning.
        match add_partitions(cluster, name, create.partitions, deadline).await {
            Ok(()) => found = Some(wait_for_leaders(cluster, name, create.partitions as usize, deadline).await?),
            Err(error) => {
                let (partitions, wanted) = (topic.partitions.len(), create.partitions);
                tracing::warn!(topic = name, partitions, wanted, "cannot add partitions to the topic: {error}");
            }
        }
    }
    let topic = found.ok_or_else(|| OpenError::Missing { topic: name.into() })?;
    let replicas = topic.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(1);
    let settings = settings(cluster, name, deadline).await;
    if main_topic.is_none() {
        warn_about_settings(name, replicas, &settings);
    }
    let max_message_bytes = settings.get(MAX_MESSAGE_BYTES_KEY).and_then(|value| value.parse().ok());
    Ok(OpenedTopic {
        name: name.to_owned(),
        id: topic.id,
        replicas,
        max_message_bytes: max_message_bytes.unwrap_or(DEFAULT_MAX_MESSAGE_BYTES),
    })
}

/// Looks the topic up, again and again while the error may be temporary.
async fn look_up(cluster: &Cluster, name: &str, deadline: Instant) -> Result<Option<Arc<TopicMetadata>>, OpenError> {
    loop {
        match cluster.topic(name, deadline).await {
            Ok(found) => return Ok(found),
            Err(kafka::Error::Configuration(detail) | kafka::Error::NotAllowed(detail)) => {
                return Err(OpenError::Configuration(detail));
            }
            Err(error) if Instant::now() + LOOKUP_INTERVAL >= deadline => {
                return Err(OpenError::Unavailable(error.to_string()));
            }
            Err(_) => sleep_until(Instant::now() + LOOKUP_INTERVAL).await,
        }
    }
}

/// Waits until every partition has a leader, and there are at least this many. A topic or partition that was just created
/// is not known to every broker yet.
async fn wait_for_leaders(
    cluster: &Cluster,
    name: &str,
    partitions: usize,
    deadline: Instant,
) -> Result<Arc<TopicMetadata>, OpenError> {
    loop {
        let found = look_up(cluster, name, deadline).await?;
        let has_leaders = |topic: &TopicMetadata| topic.partitions.iter().all(|partition| partition.leader.is_some());
        match found {
            Some(topic) if has_leaders(&topic) && topic.partitions.len() >= partitions => return Ok(topic),
            _ if Instant::now() >= deadline => {
                let detail = format!("topic {name:?} was created, but its partitions have no leaders yet");
                return Err(OpenError::Unavailable(detail));
            }
            _ => sleep_until(Instant::now() + LOOKUP_INTERVAL).await,
        }
    }
}

async fn create_topic(
    cluster: &Cluster,
    admin: &Admin,
    name: &str,
    create: CreateTopic,
    main_topic: Option<&OpenedTopic>,
    deadline: Instant,
) -> Result<(), OpenError> {
    let configs = configs_of(name, create, main_topic);
    let created = match (configs.is_empty(), main_topic) {
        // `rskafka` sends this request only to a controller that the brokers name.
        (true, None) if !cluster.hides_controller() => create_plain(admin, name, create.partitions, deadline).await,
        _ => create_with_configs(cluster, name, create.partitions, configs, main_topic, deadline).await,
    };
    if created? {
        tracing::info!(topic = name, partitions = create.partitions, "created topic");
    }
    Ok(())
}

/// The settings of a new topic, by their names in Kafka. A main topic without `--retention` has none: it takes the
/// cluster's defaults.
fn configs_of(name: &str, create: CreateTopic, main_topic: Option<&OpenedTopic>) -> Vec<(&'static str, String)> {
    let mut configs = Vec::new();
    match create.retention {
        Some(retention) => configs.push((RETENTION_KEY, retention.as_millis().to_string())),
        // eventd trims this side topic itself, so Kafka must keep everything.
        None if main_topic.is_some() => configs.push((RETENTION_KEY, "-1".into())),
        None => {}
    }
    if name.ends_with(side_topics::STATE) {
        configs.push((SEGMENT_BYTES_KEY, STATE_SEGMENT_BYTES.to_string()));
    }
    if let Some(main_topic) = main_topic {
        configs.push((CLEANUP_KEY, "delete".into()));
        configs.push((MAX_MESSAGE_BYTES_KEY, (main_topic.max_message_bytes + DEAD_LETTER_EXTRA_BYTES_MAX).to_string()));
    }
    configs
}

/// Creates a topic with the cluster's default settings. Returns false if it exists already.
async fn create_plain(admin: &Admin, name: &str, partitions: u32, deadline: Instant) -> Result<bool, OpenError> {
    admin.create_topic(name, partitions, deadline).await.map_err(|error| match error {
        AdminError::Refused { is_temporary: false, .. } | AdminError::Unexplained(_) => {
            OpenError::Configuration(format!("cannot create topic {name:?}: {error}"))
        }
        error => OpenError::Unavailable(format!("cannot create topic {name:?} now: {error}")),
    })
}

/// Creates a topic over our own connection, which can send settings and needs no named controller. Returns false if it
/// exists already.
async fn create_with_configs(
    cluster: &Cluster,
    name: &str,
    partitions: u32,
    configs: Vec<(&'static str, String)>,
    main_topic: Option<&OpenedTopic>,
    deadline: Instant,
) -> Result<bool, OpenError> {
    let config = |(key, value): (&'static str, String)| {
        let config = CreatableTopicConfig::default().with_name(StrBytes::from_static_str(key));
        config.with_value(Some(StrBytes::from_string(value)))
    };
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(i32::try_from(partitions).unwrap_or(i32::MAX))
        // -1: the cluster's default replication.
        .with_replication_factor(main_topic.and_then(|main| i16::try_from(main.replicas).ok()).unwrap_or(-1))
        .with_configs(configs.into_iter().map(config).collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(call_timeout_ms());
    let unavailable = |why: String| OpenError::Unavailable(format!("cannot create topic {name:?} now: {why}"));
    let answer = match cluster.call(Recipient::Controller, &request, deadline).await {
        Ok(answer) => answer,
        Err(kafka::Error::Configuration(detail)) => return Err(OpenError::Configuration(detail)),
        Err(error) => return Err(unavailable(error.to_string())),
    };
    let Some(result) = answer.topics.first() else { return Err(unavailable("the answer leaves it out".into())) };
    let message = result.error_message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
    match response_error(result.error_code) {
        None => Ok(true),
        Some(ResponseError::TopicAlreadyExists) => Ok(false),
        Some(error) if error.is_retriable() => Err(unavailable(format!("{}{message}", describe(error)))),
        Some(error) => {
            Err(OpenError::Configuration(format!("cannot create topic {name:?}: {}{message}", describe(error))))
        }
    }
}

/// Deletes a topic over our own connection. A topic that does not exist is a success.
pub(super) async fn delete(cluster: &Cluster, name: &str, deadline: Instant) -> Result<(), Failure> {
    let request =
        DeleteTopicsRequest::default().with_topic_names(vec![topic_name(name)]).with_timeout_ms(call_timeout_ms());
    let unknown =
        |why: String| Failure::unknown(FailureCode::LogUnavailable, format!("cannot delete topic {name:?}: {why}"));
    // If one broker gave no answer, another one was asked. So every error may hide a request that had its effect.
    let answer = cluster.call(Recipient::Controller, &request, deadline).await;
    let answer = answer.map_err(|error| unknown(error.to_string()))?;
    let Some(result) = answer.responses.first() else { return Err(unknown("the answer leaves it out".into())) };
    match response_error(result.error_code) {
        None | Some(ResponseError::UnknownTopicOrPartition) => Ok(()),
        Some(error) => {
            let message = result.error_message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            Err(unknown(format!("{}{message}", describe(error))))
        }
    }
}

/// Adds partitions until the topic has this many.
async fn add_partitions(cluster: &Cluster, name: &str, partitions: u32, deadline: Instant) -> Result<(), String> {
    let asked = CreatePartitionsTopic::default()
        .with_name(topic_name(name))
        .with_count(i32::try_from(partitions).unwrap_or(i32::MAX))
        // `None`: the cluster chooses the brokers.
        .with_assignments(None);
    let request = CreatePartitionsRequest::default().with_topics(vec![asked]).with_timeout_ms(call_timeout_ms());
    let answer = cluster.call(Recipient::Controller, &request, deadline).await.map_err(|error| error.to_string())?;
    let result = answer.results.first().ok_or("the answer leaves the topic out")?;
    match response_error(result.error_code) {
        None => {
            tracing::info!(topic = name, partitions, "added partitions to the topic");
            Ok(())
        }
        // Another process added them at the same time: the topic has this many or more.
        Some(ResponseError::InvalidPartitions) => Ok(()),
        Some(error) => {
            let message = result.error_message.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
            Err(format!("{}{message}", describe(error)))
        }
    }
}

/// The topic's settings, as far as eventd is allowed to read them.
async fn settings(cluster: &Cluster, name: &str, deadline: Instant) -> HashMap<String, String> {
    let keys = [MAX_MESSAGE_BYTES_KEY, RETENTION_KEY, CLEANUP_KEY, MIN_ISR_KEY, UNCLEAN_KEY];
    let resource = DescribeConfigsResource::default()
        .with_resource_type(RESOURCE_TOPIC)
        .with_resource_name(StrBytes::from_string(name.to_owned()))
        .with_configuration_keys(Some(keys.map(StrBytes::from_static_str).to_vec()));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let assume_defaults = |why: String| {
        tracing::warn!(topic = name, "cannot read the topic's settings, assuming those of a default broker: {why}");
        HashMap::new()
    };
    let answer = match cluster.call(Recipient::Any, &request, deadline).await {
        Ok(answer) => answer,
        Err(error) => return assume_defaults(error.to_string()),
    };
    let Some(result) = answer.results.into_iter().next() else {
        return assume_defaults("the answer leaves the topic out".into());
    };
    if let Some(error) = response_error(result.error_code) {
        return assume_defaults(describe(error));
    }
    let setting = |config: DescribeConfigsResourceResult| Some((config.name.to_string(), config.value?.to_string()));
    result.configs.into_iter().filter_map(setting).collect()
}

/// Warns about settings of the topic that may cost events.
fn warn_about_settings(name: &str, replicas: usize, settings: &HashMap<String, String>) {
    let has = |key: &str, part: &str| settings.get(key).is_some_and(|value| value.contains(part));
    let min_isr: usize = settings.get(MIN_ISR_KEY).and_then(|value| value.parse().ok()).unwrap_or(1);
    if has(CLEANUP_KEY, "compact") {
        tracing::warn!(
            topic = name,
            "cleanup.policy=compact: Kafka removes a user's earlier events before they are delivered; set it to delete"
        );
    }
    if has(UNCLEAN_KEY, "true") {
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
            "an append is acknowledged when a single broker has it; set min.insync.replicas=2"
        );
    }
    if replicas == 1 {
        tracing::info!(topic = name, "the topic has one replica: its events are lost with the disk of their broker");
    }
    let retention_ms = settings.get(RETENTION_KEY).and_then(|value| value.parse::<i64>().ok());
    if let Some(ms) = retention_ms.filter(|ms| (0..RETENTION_WARNING_MS).contains(ms)) {
        let retention = humantime::format_duration(Duration::from_millis(ms.unsigned_abs()));
        tracing::warn!(
            topic = name,
            "retention.ms: a destination loses events if it is down for longer than {retention}"
        );
    }
}
