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
use eventd::BoxFuture;
use eventd::core::progress::OffsetReset;
use eventd::group::kafka::KafkaGroups;
use eventd::group::{Group, Groups, JoinOptions};
use eventd::log::kafka::Kafka;
use eventd::log::{Engine, Log};
use eventd::net::BrokerSettings;
use std::collections::BTreeMap;
use std::sync::Arc;

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
}
