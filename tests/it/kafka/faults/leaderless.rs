//! A partition whose only replica is gone.

use super::{RECOVERS_WITHIN, settings};
use crate::conformance::record;
use crate::support::block_on;
use crate::support::broker::{Broker, tool};
use crate::support::wait::eventually;
use eventd::kafka::Cluster;
use eventd::log::Engine;
use eventd::log::kafka::Kafka;
use tokio::time::Instant;

const TOPIC: &str = "one-replica";
/// Its only replica is on node 2.
const LEADERLESS: u32 = 1;
const OTHERS: [u32; 2] = [0, 2];
/// Appends to each of the other partitions, and questions who leads this one, meanwhile.
const TIMES: usize = 50;

#[test]
fn a_partition_without_a_leader_makes_the_others_look_up_nothing() {
    let broker = Broker::start("leaderless", &["--nodes", "3"]);
    tool("kafka-topics", broker.addresses(), &["--create", "--topic", TOPIC, "--replica-assignment", "1,2,3"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (log, cluster) = runtime.block_on(async {
        let engine = Kafka::connect(settings(broker.addresses())).await.unwrap();
        let log = engine.open(TOPIC, None).await.unwrap();
        for partition in 0..3 {
            log.append(partition, vec![record("user", "before")]).await.unwrap();
        }
        (log, Cluster::new(settings(broker.addresses())))
    });
    broker.kill(2);
    eventually(|| {
        // Another client each time: the one under test finds out by itself.
        let told = block_on(Cluster::new(settings(broker.addresses())).topic(TOPIC, Instant::now() + RECOVERS_WITHIN));
        let leader = told.unwrap().unwrap().partitions[LEADERLESS as usize].leader;
        leader.map_or(Ok(()), |node| Err(format!("partition {LEADERLESS} is still led by {node}")))
    });
    runtime.block_on(async {
        let asks = async {
            for _ in 0..TIMES {
                let found = cluster.leader(TOPIC, LEADERLESS, Instant::now() + RECOVERS_WITHIN).await;
                let why = found.expect_err("nobody leads it").to_string();
                assert!(why.contains("has no leader now"), "{why}");
                let known = OTHERS.map(|partition| cluster.known_leader(TOPIC, partition).is_some());
                assert_eq!(known, [true, true], "leaders that are known without a look-up: {OTHERS:?}");
            }
        };
        let appends = async {
            for _ in 0..TIMES {
                for partition in OTHERS {
                    log.append(partition, vec![record("user", "meanwhile")]).await.unwrap();
                }
            }
        };
        let stands = log.append(LEADERLESS, vec![record("user", "stands")]);
        let ((), (), stood) = tokio::join!(asks, appends, stands);
        stood.expect_err("nobody leads it");
    });
}
