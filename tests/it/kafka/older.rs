//! A cluster whose old brokers are replaced by newer ones at run time. Only the newer ones report topic ids.

use super::address;
use crate::conformance::{record, unique};
use crate::support::wait::soon;
use eventd::core::progress::PartitionState;
use eventd::group::kafka::KafkaGroups;
use eventd::group::{Change, Group, Groups, JoinOptions};
use eventd::kafka::Cluster;
use eventd::log::kafka::Kafka;
use eventd::log::{CreateTopic, Engine, Log};
use eventd::net::BrokerSettings;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

const METADATA: i16 = 3;
/// The last version without topic ids.
const METADATA_WITHOUT_IDS: i16 = 9;
/// How long a broker may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_topic_that_gets_an_id_later_was_not_created_again() {
    let broker = Replaced::start().await;
    let (topic, name) = (unique("older"), unique("older"));
    let engine = Kafka::connect(broker.settings()).await.unwrap();
    let log = engine.open(&topic, Some(CreateTopic { partitions: 1, retention: None })).await.unwrap();
    assert!(broker.id_of(&topic).await.is_nil(), "the old broker has no ids");
    log.append(0, vec![record("user", "before")]).await.unwrap();
    let committed = PartitionState::at(1);
    {
        let group = owner(&engine, &name, &log).await;
        group.commit(0, committed.clone()).await.unwrap();
        group.leave().await;
    }

    broker.is_replaced();
    assert!(!broker.id_of(&topic).await.is_nil(), "the new broker has ids");
    // A topic that was opened before still works.
    assert_eq!(log.partitions().await, Ok(1));
    log.append(0, vec![record("user", "after")]).await.unwrap();
    let fetched = log.fetch(0, 0, 1_000, Duration::from_secs(1)).await.unwrap();
    assert_eq!(fetched.events.len(), 2);
    // A topic that is opened now continues from the old commit.
    let engine = Kafka::connect(broker.settings()).await.unwrap();
    let log = engine.open(&topic, None).await.unwrap();
    let group = owner(&engine, &name, &log).await;
    assert_eq!(group.committed(0).await, Ok(Some(committed)));
    group.leave().await;
}

/// Joins a member and waits until it is assigned the topic's only partition.
async fn owner(engine: &Arc<Kafka>, name: &str, log: &Arc<dyn Log>) -> Arc<dyn Group> {
    let group = KafkaGroups::new(engine.clone()).join(name, log, &JoinOptions::new("digest")).await.unwrap();
    assert_eq!(soon("the partition is given", group.changed()).await, Ok(Change::Assigned(0)));
    group
}

/// A proxy of the shared broker. At first it only offers the metadata version from before topics had ids.
struct Replaced {
    port: u16,
    replaced: watch::Sender<bool>,
}

impl Replaced {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, replaced) = (listener.local_addr().unwrap().port(), watch::Sender::new(false));
        let is_replaced = replaced.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut replaced = is_replaced.clone();
                tokio::spawn(async move {
                    let is_old = !*replaced.borrow_and_update();
                    // The old broker ends together with its connections.
                    tokio::select! {
                        passed = pass(client, port, is_old) => passed,
                        _ = replaced.changed() => Ok(()),
                    }
                });
            }
        });
        Self { port, replaced }
    }

    fn settings(&self) -> BrokerSettings {
        BrokerSettings::plain(vec![format!("localhost:{}", self.port)])
    }

    fn is_replaced(&self) {
        self.replaced.send_replace(true);
    }

    async fn id_of(&self, topic: &str) -> Uuid {
        let cluster = Cluster::new(self.settings());
        cluster.topic(topic, Instant::now() + ANSWERS_WITHIN).await.unwrap().expect("the topic is there").id
    }
}

/// Carries one connection. Clients must not learn the broker's own port.
async fn pass(client: TcpStream, port: u16, is_old: bool) -> io::Result<()> {
    let (from_broker, mut to_broker) = TcpStream::connect(address()).await?.into_split();
    let (mut from_client, to_client) = client.into_split();
    let requests = copy(&mut from_client, &mut to_broker);
    tokio::try_join!(requests, answers(from_broker, to_client, port, is_old)).map(drop)
}

async fn answers(mut broker: OwnedReadHalf, mut client: OwnedWriteHalf, port: u16, is_old: bool) -> io::Result<u64> {
    let (host, real) = address().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).unwrap();
    let named = |port: u16| [host.as_bytes(), &u32::from(port).to_be_bytes()].concat();
    let (real, ours) = (named(real.parse().unwrap()), named(port));
    let mut is_first = true;
    loop {
        let size = broker.read_u32().await?;
        let mut answer = vec![0; size as usize];
        broker.read_exact(&mut answer).await?;
        if std::mem::take(&mut is_first) && is_old {
            // The list of versions (key, lowest, highest) comes after the correlation id, an error and a count.
            let metadata = |api: &&mut [u8]| api[..2] == METADATA.to_be_bytes();
            let versions =
                answer[10..].chunks_exact_mut(6).find(metadata).expect("a broker supports metadata requests");
            versions[4..].copy_from_slice(&METADATA_WITHOUT_IDS.to_be_bytes());
        }
        while let Some(at) = answer.windows(real.len()).position(|window| window == real) {
            answer[at..at + ours.len()].copy_from_slice(&ours);
        }
        client.write_u32(size).await?;
        client.write_all(&answer).await?;
    }
}
