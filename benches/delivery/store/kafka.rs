//! Apache Kafka: one broker for the whole run, one topic for each kind of events, and a group of its own for each case
//! that reads.

use super::broker::Broker;
use super::{
    CommitWatch, Content, PARTITIONS, Place, Settled, Store, append, commit_all, commits, count, fetch_all, groups,
    open, timed,
};
use crate::report::Measured;
use crate::users::Users;
use anyhow::{Context as _, ensure};
use eventd::group::kafka::KafkaGroups;
use eventd::group::{Groups, JoinOptions};
use eventd::limits::FETCH_BYTES_MAX;
use eventd::log::Log;
use eventd::log::kafka::Kafka as Cluster;
use eventd::net::BrokerSettings;
use rskafka::client::partition::UnknownTopicHandling;
use rskafka::client::{Client, ClientBuilder};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Records in one append of loading. A busy ingest groups as many.
const LOADED_RECORDS: usize = 500;

/// Records in one append of the limit. The raw idempotent append was first measured with this batch.
const APPEND_RECORDS: usize = 100;

/// How often everything is written and read before measuring, so that the broker's hot paths are compiled.
const WARM_UPS: usize = 3;
const WARM_UP_EVENTS: u64 = 200_000;

/// Events that are appended one by one before measuring.
const WARM_UP_SINGLE_EVENTS: u64 = 60_000;
const WARM_UP_FETCH_WAIT: Duration = Duration::from_secs(1);

const DELETE_WITHIN_MS: i32 = 10_000;

/// A cluster with the topics that were loaded.
#[derive(Debug)]
pub(crate) struct Kafka {
    loaded: Vec<(Content, String)>,
    /// The topic of the previous case. It is deleted when the next case needs a topic of its own.
    emptied: Option<String>,
    /// The number of topics and groups so far, for their names.
    names: usize,
    broker: Broker,
}

impl Kafka {
    /// Starts the broker, and warms it up.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let broker = Broker::start()?;
        let mut kafka = Self { loaded: Vec::new(), emptied: None, names: 0, broker };
        for _ in 0..WARM_UPS {
            let topic = kafka.topic(Content::of(Users::Uniform(1_000), WARM_UP_EVENTS))?;
            runtime()?.block_on(async {
                let log = kafka.log(&topic, PARTITIONS).await?;
                for partition in 0..PARTITIONS {
                    fetch_all(&*log, partition).await?;
                }
                // The first commit of a cluster creates the topic of all commits.
                let groups = KafkaGroups::new(kafka.cluster().await?);
                let group = groups.join_alone("warm-up", &log, &JoinOptions::new("")).await?;
                group.commit(0, eventd::core::progress::PartitionState::at(1)).await?;
                group.leave().await;
                anyhow::Ok(())
            })?;
            kafka.delete(&topic)?;
        }
        let topic = Self::name(&mut kafka);
        runtime()?.block_on(kafka.append_singly(&topic))?;
        kafka.delete(&topic)?;
        Ok(kafka)
    }

    /// Appends single events, each of which completes a waiting fetch, as in the cases of a steady load. Other code of
    /// the broker serves these than large batches. If it is still being compiled, that takes half of the broker's time.
    async fn append_singly(&self, topic: &str) -> anyhow::Result<()> {
        let content = Content::of(Users::Uniform(1_000), WARM_UP_SINGLE_EVENTS);
        let (log, mut readers) = (self.log(topic, PARTITIONS).await?, JoinSet::new());
        let groups = groups(content, 1);
        for partition in 0..PARTITIONS {
            let events = groups.iter().filter(|(of, _)| *of == partition).count() as i64;
            let log = Arc::clone(&log);
            readers.spawn(async move {
                let mut from = 0;
                while from < events {
                    from = log.fetch(partition, from, FETCH_BYTES_MAX, WARM_UP_FETCH_WAIT).await?.next;
                }
                anyhow::Ok(())
            });
        }
        append(&log, groups).await?;
        while let Some(ended) = readers.join_next().await {
            ended??;
        }
        Ok(())
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("bench-{}", self.names)
    }

    fn place(&self, topic: String, destination: String) -> Place {
        Place { url: format!("kafka://{}", self.broker.address), topic, destination, folder: None }
    }

    async fn cluster(&self) -> anyhow::Result<Arc<Cluster>> {
        Ok(Cluster::connect(BrokerSettings::plain(vec![self.broker.address.clone()])).await?)
    }

    async fn log(&self, topic: &str, partitions: u32) -> anyhow::Result<Arc<dyn Log>> {
        open(&*self.cluster().await?, topic, partitions).await
    }

    async fn rskafka(&self) -> anyhow::Result<Client> {
        Ok(ClientBuilder::new(vec![self.broker.address.clone()]).build().await?)
    }

    /// Creates a topic with these events.
    fn topic(&mut self, content: Content) -> anyhow::Result<String> {
        let topic = self.name();
        self.append(&topic, content)?;
        Ok(topic)
    }

    fn append(&self, topic: &str, content: Content) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            append(&self.log(topic, content.partitions).await?, groups(content, LOADED_RECORDS)).await
        })
    }

    /// The topic with these events. It is created when it is first needed.
    fn template(&mut self, content: Content) -> anyhow::Result<String> {
        if let Some((_, topic)) = self.loaded.iter().find(|(loaded, _)| *loaded == content) {
            return Ok(topic.clone());
        }
        let topic = self.topic(content)?;
        self.loaded.push((content, topic.clone()));
        Ok(topic)
    }

    fn delete(&self, topic: &str) -> anyhow::Result<()> {
        let delete = async {
            let controller = self.rskafka().await?.controller_client()?;
            anyhow::Ok(controller.delete_topic(topic, DELETE_WITHIN_MS).await?)
        };
        runtime()?.block_on(delete).with_context(|| format!("delete the topic {topic:?}"))
    }
}

impl Store for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn empty(&mut self) -> anyhow::Result<Place> {
        if let Some(before) = self.emptied.take() {
            self.delete(&before)?;
        }
        let (topic, destination) = (self.name(), self.name());
        runtime()?.block_on(self.log(&topic, PARTITIONS))?;
        self.emptied = Some(topic.clone());
        Ok(self.place(topic, destination))
    }

    fn loaded(&mut self, content: Content) -> anyhow::Result<Place> {
        let (topic, destination) = (self.template(content)?, self.name());
        Ok(self.place(topic, destination))
    }

    fn load(&self, place: &Place, content: Content) -> anyhow::Result<()> {
        self.append(&place.topic, content)
    }

    fn settle(&self, place: &Place) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let (cluster, log) = (self.cluster().await?, self.log(&place.topic, PARTITIONS).await?);
            let groups = KafkaGroups::new(cluster);
            let group = groups.join_alone(&place.destination, &log, &JoinOptions::new("")).await?;
            commit_all(&*log, &*group).await
        })
    }

    fn settled(&self, place: &Place) -> anyhow::Result<Settled> {
        let runtime = runtime()?;
        let (cluster, log) = runtime
            .block_on(async { anyhow::Ok((self.cluster().await?, self.log(&place.topic, PARTITIONS).await?)) })?;
        let (groups, destination) = (KafkaGroups::new(cluster), place.destination.clone());
        Ok(Box::new(move || {
            let states = runtime.block_on(groups.committed(&destination, &log))?;
            states.iter().flatten().map(count).sum()
        }))
    }

    fn commits(&self, place: &Place) -> anyhow::Result<CommitWatch> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (cluster, log) = runtime
            .block_on(async { anyhow::Ok((self.cluster().await?, self.log(&place.topic, PARTITIONS).await?)) })?;
        let (groups, destination) = (KafkaGroups::new(cluster), place.destination.clone());
        Ok(Box::new(move || runtime.block_on(commits(&groups, &destination, &log))))
    }

    fn raw_append(&mut self, events: u64) -> anyhow::Result<Measured> {
        let groups = groups(Content::of(Users::Uniform(1_000), events), APPEND_RECORDS);
        let place = self.empty()?;
        timed(events, async { append(&self.log(&place.topic, PARTITIONS).await?, groups).await })
    }

    /// Uses `rskafka`, which was made to be fast, with one client for each partition, all at the same time, as dispatch
    /// reads.
    fn raw_fetch(&mut self, events: u64) -> anyhow::Result<Measured> {
        let topic = self.template(Content::of(Users::Uniform(1_000), events))?;
        timed(events, async {
            let (client, mut readers) = (Arc::new(self.rskafka().await?), JoinSet::new());
            for partition in 0..PARTITIONS {
                let (client, topic) = (Arc::clone(&client), topic.clone());
                readers.spawn(async move { rskafka_fetch_all(&client, &topic, partition).await });
            }
            all_of(readers, events).await
        })
    }

    fn log_fetch(&mut self, events: u64) -> Option<anyhow::Result<Measured>> {
        let topic = self.template(Content::of(Users::Uniform(1_000), events));
        Some(topic.and_then(|topic| {
            timed(events, async {
                let (log, mut readers) = (self.log(&topic, PARTITIONS).await?, JoinSet::new());
                for partition in 0..PARTITIONS {
                    let log = Arc::clone(&log);
                    readers.spawn(async move { fetch_all(&*log, partition).await });
                }
                all_of(readers, events).await
            })
        }))
    }
}

/// Waits for the readers, and checks that together they have read this many events.
async fn all_of(mut readers: JoinSet<anyhow::Result<u64>>, events: u64) -> anyhow::Result<()> {
    let mut fetched = 0;
    while let Some(ended) = readers.join_next().await {
        fetched += ended??;
    }
    ensure!(fetched == events, "{fetched} of {events} events fetched");
    Ok(())
}

/// Reads a partition to its end, and returns the number of events.
async fn rskafka_fetch_all(client: &Client, topic: &str, partition: u32) -> anyhow::Result<u64> {
    let client = client.partition_client(topic, i32::try_from(partition)?, UnknownTopicHandling::Retry).await?;
    let (mut at, mut events) = (0, 0);
    loop {
        let (records, end) = client.fetch_records(at, 1..i32::try_from(FETCH_BYTES_MAX)?, 0).await?;
        let Some(last) = records.last() else { return Ok(events) };
        events += records.len() as u64;
        at = last.offset + 1;
        if at >= end {
            return Ok(events);
        }
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
