//! A partition whose only replica is down.

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
/// The number of appends to each other partition, and of look-ups of this one's leader at the same time.
const TIMES: usize = 50;

#[test]
fn a_partition_without_a_leader_causes_no_look_ups_for_other_partitions() {
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
        // This is a new client each time. The client under test has to find out by itself.
        let told = block_on(Cluster::new(settings(broker.addresses())).topic(TOPIC, Instant::now() + RECOVERS_WITHIN));
        let leader = told.unwrap().unwrap().partitions[LEADERLESS as usize].leader;
        leader.map_or(Ok(()), |node| Err(format!("partition {LEADERLESS} is still led by {node}")))
    });
    runtime.block_on(async {
        let asks = async {
            for _ in 0..TIMES {
                let found = cluster.leader(TOPIC, LEADERLESS, Instant::now() + RECOVERS_WITHIN).await;
                let why = found.expect_err("the partition has no leader").to_string();
                assert!(why.contains("has no leader now"), "{why}");
                let known = OTHERS.map(|partition| cluster.cached_leader(TOPIC, partition).is_some());
                assert_eq!(known, [true, true], "the leaders of {OTHERS:?} are known without a look-up");
            }
        };
        let appends = async {
            for _ in 0..TIMES {
                for partition in OTHERS {
                    log.append(partition, vec![record("user", "meanwhile")]).await.unwrap();
                }
            }
        };
        let waiting = log.append(LEADERLESS, vec![record("user", "waits")]);
        let ((), (), failed) = tokio::join!(asks, appends, waiting);
        failed.expect_err("the partition has no leader");
    });
}
