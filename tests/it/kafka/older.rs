//! A cluster whose brokers are replaced by newer ones while we run: those tell more.

use super::{address, fixture};
use crate::conformance::{record, unique};
use eventd::kafka::Cluster;
use eventd::log::kafka::Kafka;
use eventd::log::{CreateTopic, Engine};
use eventd::net::Settings;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const METADATA: i16 = 3;
/// The last version without topic ids.
const METADATA_WITHOUT_IDS: i16 = 9;
/// How long a broker may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_topic_whose_id_is_told_later_was_not_created_again() {
    let topic = unique("older");
    let create = CreateTopic { partitions: 1, retention: None };
    fixture().await.engine.open(&topic, Some(create)).await.unwrap();
    let old = old_broker().await;
    let cluster = Cluster::new(Settings::plain(vec![old.clone()]));
    let told = async || cluster.topic(&topic, Instant::now() + ANSWERS_WITHIN).await.unwrap().unwrap().id;
    assert!(told().await.is_nil(), "the old broker has no ids");
    assert!(!told().await.is_nil(), "the broker that it named has");
    let engine = Kafka::connect(Settings::plain(vec![old])).await.unwrap();
    let log = engine.open(&topic, None).await.unwrap();
    // This asks the new one.
    assert_eq!(log.partitions().await, Ok(1));
    log.append(0, vec![record("user", "payload")]).await.unwrap();
    let fetched = log.fetch(0, 0, 1_000, Duration::from_secs(1)).await.unwrap();
    assert_eq!(fetched.events.len(), 1);
}

/// Where the shared broker can be reached by its metadata of before topics had ids.
async fn old_broker() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(pass(client));
        }
    });
    at
}

async fn pass(client: TcpStream) -> std::io::Result<()> {
    let (mut from_broker, mut to_broker) = TcpStream::connect(address()).await?.into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let requests = copy(&mut from_client, &mut to_broker);
    let answers = async {
        // The first answer of a connection is the list of versions: key, lowest and highest, after the correlation id, an
        // error and a count.
        let size = from_broker.read_u32().await?;
        let mut versions = vec![0; size as usize];
        from_broker.read_exact(&mut versions).await?;
        for api in versions[10..].chunks_exact_mut(6) {
            if api[..2] == METADATA.to_be_bytes() {
                api[4..].copy_from_slice(&METADATA_WITHOUT_IDS.to_be_bytes());
            }
        }
        to_client.write_u32(size).await?;
        to_client.write_all(&versions).await?;
        copy(&mut from_broker, &mut to_client).await
    };
    tokio::try_join!(requests, answers).map(drop)
}
