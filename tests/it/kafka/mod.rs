//! Apache Kafka: the suite of all engines, and what only brokers can do wrong. All tests share the broker at
//! `EVENTD_TEST_KAFKA`, each with its own topics and groups; `make test` starts it. Tests in `faults` start and end
//! brokers of their own.

mod commits;
mod faults;
mod first_commits;
mod foreign;
mod members;
mod older;
mod refusals;
mod security;
mod side_topics;

use crate::conformance::Fixture;
use crate::support::broker::fail_without_kafka;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eventd::BoxFuture;
use eventd::core::progress::OffsetReset;
use eventd::group::kafka::KafkaGroups;
use eventd::group::{Group, Groups, JoinOptions};
use eventd::kafka::{Cluster, Recipient, topic_name};
use eventd::limits::BROKER_CALL_MAX;
use eventd::log::kafka::Kafka;
use eventd::log::{Engine, Log};
use eventd::net::BrokerSettings;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::{GroupId, OffsetCommitRequest};
use kafka_protocol::protocol::StrBytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

crate::conformance::suite!(super::fixture);

/// The shared broker.
struct Shared {
    engine: Arc<Kafka>,
}

/// The address of the shared broker. Without one the test fails, and one line for all tests says what to do.
pub(crate) fn address() -> String {
    std::env::var("EVENTD_TEST_KAFKA").unwrap_or_else(|_| fail_without_kafka())
}

async fn fixture() -> Shared {
    let settings = BrokerSettings::plain(vec![address()]);
    Shared { engine: Kafka::connect(settings).await.expect("the broker answers") }
}

impl Fixture for Shared {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine) as Arc<dyn Engine>
    }

    fn join<'a>(&'a self, name: &'a str, topic: &'a str) -> BoxFuture<'a, Arc<dyn Group>> {
        Box::pin(async move {
            let log: Arc<dyn Log> = self.engine.open(topic, None).await.expect("the topic is there");
            KafkaGroups::new(self.engine.clone())
                .join(name, &log, &JoinOptions::new("digest"))
                .await
                .expect("the group is free")
        })
    }

    fn request_reset<'a>(
        &'a self,
        name: &'a str,
        topic: &'a str,
        partition: u32,
        wanted: OffsetReset,
    ) -> BoxFuture<'a, bool> {
        Box::pin(async move {
            let log = self.engine.open(topic, None).await.expect("the topic is there");
            let (groups, resets) = (KafkaGroups::new(self.engine.clone()), BTreeMap::from([(partition, wanted)]));
            groups.request_resets(name, &log, &resets).await.expect("the reset is requested");
            groups.apply_resets_if_unowned(name, &log, "digest", &resets).await.expect("the broker answers")
        })
    }

    fn replace_commit<'a>(
        &'a self,
        name: &'a str,
        topic: &'a str,
        partition: u32,
        format: char,
        text: &'a str,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let cluster = Cluster::new(BrokerSettings::plain(vec![address()]));
            let deadline = Instant::now() + BROKER_CALL_MAX;
            let id = cluster.topic(topic, deadline).await.expect("the broker answers").expect("the topic is there").id;
            let metadata = format!("{format}{}{text}", URL_SAFE_NO_PAD.encode(id));
            let commit = OffsetCommitRequestPartition::default()
                .with_partition_index(partition as i32)
                .with_committed_offset(0)
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(StrBytes::from_string(metadata)));
            let topic = OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(vec![commit]);
            let request = OffsetCommitRequest::default()
                .with_group_id(GroupId(StrBytes::from_string(name.to_owned())))
                .with_generation_id_or_member_epoch(-1)
                .with_retention_time_ms(-1)
                .with_topics(vec![topic]);
            let answer =
                cluster.call(Recipient::Coordinator(name), &request, deadline).await.expect("the broker answers");
            assert_eq!(answer.topics[0].partitions[0].error_code, 0, "{answer:?}");
        })
    }
}
