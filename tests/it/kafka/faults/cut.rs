//! A broker that is cut off from the other brokers, but not from its clients. It still claims to lead its partitions
//! and to coordinate its groups. The other brokers have elected new leaders by then.

use super::super::members;
use super::{REQUESTS, coordinator, settings};
use crate::support::block_on;
use crate::support::broker::Broker;
use crate::support::torture_times;
use crate::support::wait::eventually;
use eventd::kafka::{Cluster, PartitionMetadata, Recipient, topic_name};
use kafka_protocol::messages::MetadataRequest;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use std::time::Duration;
use tokio::time::Instant;

/// How long a broker may take to answer which node leads.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn a_broker_that_is_cut_off_stops_neither_ingest_nor_delivery() {
    let (broker, links) = Broker::start_linked("cut");
    let scene = members::Scene::begin_at(broker.addresses(), "cut");
    let (mut a, b) = (scene.member(&[]), scene.member(&[]));
    members::owns(&a, 3);
    members::owns(&b, 3);
    scene.wait_for_progress("with two members");
    let (mut elections, mut served, mut delivering) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..torture_times() {
        // This node coordinates the group and leads some of the partitions.
        let cut = coordinator(&broker, &scene.name);
        eventually(|| match led_by(&broker, cut, &scene.topic) {
            leaders if leaders.contains(&Some(cut)) && !leaders.contains(&None) => Ok(()),
            leaders => Err(format!("node {cut} leads no partition yet: {leaders:?}")),
        });
        let began = Instant::now();
        links.cut_off(cut);
        eventually(|| {
            let peers = (1..=3).filter(|node| *node != cut).map(|node| led_by(&broker, node, &scene.topic));
            let leaders: Vec<_> = peers.flatten().collect();
            let is_decided = leaders.iter().all(|leader| leader.is_some_and(|node| node != cut));
            if is_decided { Ok(()) } else { Err(format!("node {cut} is cut off, and the others answer: {leaders:?}")) }
        });
        elections.push(began.elapsed());
        assert!(led_by(&broker, cut, &scene.topic).contains(&Some(cut)), "node {cut} must not know the new leaders");
        let cluster = Cluster::new(settings(address_of(&broker, cut)));
        let found = block_on(cluster.topic(&scene.topic, Instant::now() + TOLD_WITHIN)).unwrap().unwrap();
        let is_new = |partition: &PartitionMetadata| partition.leader.is_some_and(|node| node != cut);
        assert!(found.partitions.iter().all(is_new), "a new client that only knows node {cut}: {found:?}");

        scene.load.wait_for_more(REQUESTS);
        served.push(began.elapsed());
        scene.wait_for_progress("while a broker is cut off");
        delivering.push(began.elapsed());

        // The broker that this member asks first has an outdated log, which ends before the commits.
        assert_eq!(a.stop().code(), 0);
        a = scene.member_at(address_of(&broker, cut));
        members::owns(&a, 3);
        scene.wait_for_progress("with a member that only knows the broker that is cut off");
        assert!(led_by(&broker, cut, &scene.topic).contains(&Some(cut)), "node {cut} must not know the new leaders");

        links.heal();
        eventually(|| match led_by(&broker, cut, &scene.topic) {
            leaders if leaders.iter().all(|leader| leader.is_some_and(|node| node != cut)) => Ok(()),
            leaders => Err(format!("node {cut} is back, and answers: {leaders:?}")),
        });
        scene.load.wait_for_more(REQUESTS);
        scene.wait_for_progress("after the broker is back");
    }
    let why = |line: &str| line.split_once("lost all partitions: ").map(|(_, why)| why.to_owned());
    let gave_up = [&a, &b].map(|member| member.lines().lines().filter_map(why).collect::<Vec<_>>());
    let sink = scene.end(vec![a, b]);
    println!(
        "# a broker cut off from the others, new leaders after {elections:?}: {REQUESTS} requests of every client served \
         after {served:?}, all partitions move on after {delivering:?}; {} deliveries, {} repeated, members gave up what \
         they had {gave_up:?}",
        sink.count(),
        sink.repeated()
    );
}

/// The leaders of the partitions according to this node.
fn led_by(broker: &Broker, node: i32, topic: &str) -> Vec<Option<i32>> {
    let cluster = Cluster::new(settings(address_of(broker, node)));
    let asked = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![asked])).with_allow_auto_topic_creation(false);
    let answer = block_on(cluster.call(Recipient::Any, &request, Instant::now() + TOLD_WITHIN)).unwrap();
    let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
    partitions.map(|partition| Some(partition.leader_id.0).filter(|node| *node >= 0)).collect()
}

fn address_of(broker: &Broker, node: i32) -> &str {
    broker.addresses().split(',').nth(node as usize - 1).unwrap()
}
