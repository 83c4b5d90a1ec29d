//! What is known about topics and coordinators, put together from the answers of several brokers. Pure.
//!
//! A broker that is cut off from the other brokers still answers its clients. It says that it leads the partitions that
//! it used to lead, and that it coordinates the groups that it used to coordinate. So a single answer does not replace
//! what is known:
//!
//! ```text
//!  leader of a partition ── the newest leader epoch wins, whichever broker named it
//!  a topic is missing, or has another id ── accepted if two brokers say so, or if no other broker answers
//!  coordinator of a group ── one other broker confirms it; if it names a different one, the majority decides
//! ```
//!
//! `broker_order.rs` says which broker is asked next.

use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;
use uuid::Uuid;

/// The leader epoch of brokers that do not report one.
const NO_EPOCH: i32 = -1;

/// A topic, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// The topic's id. A topic that is deleted and created again gets a new one. Nil if no broker has reported it yet:
    /// brokers older than 2.8 have no ids.
    pub id: Uuid,
    /// The partitions, by number.
    pub partitions: Vec<PartitionMetadata>,
}

/// A partition, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// The node id of the leader. `None`: the partition has no leader now.
    pub leader: Option<i32>,
    /// The number of the leader's election: each election has a higher one. -1 if the broker does not report it.
    pub leader_epoch: i32,
    /// How many brokers have a copy of the partition.
    pub replicas: usize,
}

impl PartitionMetadata {
    /// A partition about which no broker has reported anything yet.
    pub(super) const UNKNOWN: Self = Self { leader: None, leader_epoch: NO_EPOCH, replicas: 0 };
}

/// The broker that leads a partition, and since which election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    /// The broker's node id.
    pub node: i32,
    /// The leader epoch, -1 if it is unknown. Requests carry it. A broker refuses a request whose epoch differs from the
    /// one that it knows, so an outdated leader cannot answer for the current one.
    pub epoch: i32,
}

/// A partition, and the leader epoch that a request about it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionEpoch {
    pub partition: u32,
    pub epoch: i32,
}

/// Whether two topic ids belong to different topics. A nil id proves nothing: its broker reports no ids.
pub fn is_another_topic(one: Uuid, other: Uuid) -> bool {
    one != other && !one.is_nil() && !other.is_nil()
}

/// A topic in memory, with the leaders that failed since a broker last named them.
#[derive(Debug)]
pub(super) struct CachedTopic {
    pub(super) topic: Arc<TopicMetadata>,
    /// Partitions whose known leader failed. It is looked up before it is used again.
    failed_leaders: BTreeSet<u32>,
    /// When a broker was last asked about the topic.
    pub(super) asked_at: Instant,
    /// When a broker last answered about it.
    pub(super) answered_at: Instant,
}

impl CachedTopic {
    pub(super) fn new(topic: TopicMetadata, now: Instant) -> Self {
        Self { topic: Arc::new(topic), failed_leaders: BTreeSet::new(), asked_at: now, answered_at: now }
    }

    /// Merges one more broker's answer. If it is about the same topic, each partition keeps the leader with the newest
    /// epoch, and no partition is ever removed.
    pub(super) fn merge(&mut self, answer: TopicMetadata, now: Instant) {
        self.answered_at = now;
        // Without ids a recreated topic looks like the old one, while its leader epochs start again at 0. So the newest
        // answer has to win.
        if is_another_topic(self.topic.id, answer.id) || (self.topic.id.is_nil() && answer.id.is_nil()) {
            *self = Self { asked_at: self.asked_at, ..Self::new(answer, now) };
            return;
        }
        let mut topic = (*self.topic).clone();
        topic.id = if answer.id.is_nil() { topic.id } else { answer.id };
        if topic.partitions.len() < answer.partitions.len() {
            topic.partitions.resize(answer.partitions.len(), PartitionMetadata::UNKNOWN);
        }
        for ((known, answered), number) in topic.partitions.iter_mut().zip(answer.partitions).zip(0..) {
            if answered.leader_epoch == NO_EPOCH || answered.leader_epoch >= known.leader_epoch {
                *known = answered;
                self.failed_leaders.remove(&number);
            }
        }
        if topic != *self.topic {
            self.topic = Arc::new(topic);
        }
    }

    /// The leader of a partition. `None` if the partition has none, or if its known leader failed.
    pub(super) fn leader(&self, partition: u32) -> Option<Leader> {
        let known = self.topic.partitions.get(partition as usize)?;
        let node = known.leader.filter(|_| !self.failed_leaders.contains(&partition))?;
        Some(Leader { node, epoch: known.leader_epoch })
    }

    /// Records that this leader failed. It has no effect if another leader is known by now.
    pub(super) fn record_leader_failure(&mut self, partition: u32, failed: Leader) {
        if self.leader(partition) == Some(failed) {
            self.failed_leaders.insert(partition);
        }
    }
}

/// One broker's answer to the question whether a topic exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopicAnswer {
    Missing,
    Exists(TopicMetadata),
}

/// Whether the last answer of a round is accepted. If not, another broker is asked.
///
/// An answer that fits what is known is accepted at once. "Missing", or another topic id, needs a second broker that
/// says the same.
pub(super) fn is_accepted(known: Option<&TopicMetadata>, answers: &[TopicAnswer]) -> bool {
    let Some((last, earlier)) = answers.split_last() else { return false };
    match last {
        TopicAnswer::Missing => earlier.contains(&TopicAnswer::Missing),
        TopicAnswer::Exists(topic) => {
            let is_same = |other: &TopicMetadata| !is_another_topic(topic.id, other.id);
            let has_agreed =
                |earlier: &TopicAnswer| matches!(earlier, TopicAnswer::Exists(earlier) if is_same(earlier));
            known.is_none_or(is_same) || earlier.iter().any(has_agreed)
        }
    }
}

/// The answer that is used if the brokers that answered disagree. If one of them has the topic, it exists.
pub(super) fn best_answer(answers: Vec<TopicAnswer>) -> Option<TopicAnswer> {
    let mut answers = answers;
    let existing = answers.iter().rposition(|answer| matches!(answer, TopicAnswer::Exists(_)));
    existing.map(|place| answers.swap_remove(place)).or_else(|| answers.pop())
}

/// The coordinator that most brokers name; each broker names one. The known one stays, unless at least two brokers, and
/// more than name it, agree on another one.
pub(super) fn elected_coordinator(known: i32, named: &[i32]) -> i32 {
    let votes = |node: i32| named.iter().filter(|named| **named == node).count();
    let winner = named.iter().copied().max_by_key(|node| votes(*node));
    winner.filter(|node| votes(*node) >= 2 && votes(*node) > votes(known)).unwrap_or(known)
}

#[cfg(test)]
mod tests {
    use super::super::broker_order::BrokerOrder;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const BROKERS: usize = 3;

    fn led_by(leader: i32, leader_epoch: i32) -> PartitionMetadata {
        PartitionMetadata { leader: Some(leader), leader_epoch, replicas: 3 }
    }

    fn topic(id: u128, partitions: &[PartitionMetadata]) -> TopicMetadata {
        TopicMetadata { id: Uuid::from_u128(id), partitions: partitions.to_vec() }
    }

    fn address(broker: usize) -> String {
        format!("broker-{broker}:9092")
    }

    /// What happens to a topic with one partition. Every broker learns of an election, except one that is cut off.
    #[derive(Debug, Clone)]
    enum TopologyEvent {
        Election {
            leader: i32,
        },
        BrokerLearns(usize),
        CutOff(Option<usize>),
        /// The client asks the broker whose turn it is.
        ClientAsks,
        /// The leader that the client knows fails, if it knows one.
        KnownLeaderFails,
        SecondsPass(u64),
    }

    fn events() -> impl Strategy<Value = Vec<TopologyEvent>> {
        let event = prop_oneof![
            (0..BROKERS as i32).prop_map(|leader| TopologyEvent::Election { leader }),
            (0..BROKERS).prop_map(TopologyEvent::BrokerLearns),
            prop::option::of(0..BROKERS).prop_map(TopologyEvent::CutOff),
            Just(TopologyEvent::ClientAsks),
            Just(TopologyEvent::KnownLeaderFails),
            (0..15_u64).prop_map(TopologyEvent::SecondsPass),
        ];
        prop::collection::vec(event, 0..60)
    }

    proptest! {
        #[test]
        fn an_outdated_broker_never_takes_a_newer_leader_back_and_two_questions_find_the_newest(events in events()) {
            let mut now = Instant::now();
            let (mut newest, mut cut_off) = (led_by(0, 0), None);
            let mut learned = [newest; BROKERS];
            let mut known = CachedTopic::new(topic(1, &[newest]), now);
            let mut order = BrokerOrder::default();
            let addresses: Vec<String> = (0..BROKERS).map(address).collect();
            let ask = |known: &mut CachedTopic, order: &mut BrokerOrder, learned: &[PartitionMetadata; BROKERS], now| {
                let asked = order.order(addresses.iter(), &[], now).remove(0);
                order.move_to_end(&asked);
                let broker = addresses.iter().position(|address| *address == asked).unwrap();
                let before = known.topic.partitions[0];
                known.merge(topic(1, &[learned[broker]]), now);
                let after = known.topic.partitions[0];
                assert!(after.leader_epoch >= before.leader_epoch, "{before:?} became {after:?}");
            };
            for event in events {
                match event {
                    TopologyEvent::Election { leader } => newest = led_by(leader, newest.leader_epoch + 1),
                    TopologyEvent::BrokerLearns(broker) if cut_off != Some(broker) => learned[broker] = newest,
                    TopologyEvent::BrokerLearns(_) => {}
                    TopologyEvent::CutOff(broker) => cut_off = broker,
                    TopologyEvent::ClientAsks => ask(&mut known, &mut order, &learned, now),
                    TopologyEvent::KnownLeaderFails => {
                        if let Some(failed) = known.leader(0) {
                            known.record_leader_failure(0, failed);
                            order.move_to_end(&address(failed.node as usize));
                            prop_assert_eq!(known.leader(0), None);
                        }
                    }
                    TopologyEvent::SecondsPass(seconds) => now += Duration::from_secs(seconds),
                }
            }
            // The cluster settles: every broker learns of the last election, except the one that is cut off.
            for (broker, learned) in learned.iter_mut().enumerate() {
                if cut_off != Some(broker) {
                    *learned = newest;
                }
            }
            for _ in 0..2 {
                ask(&mut known, &mut order, &learned, now);
            }
            let found = known.leader(0);
            prop_assert_eq!(found, Some(Leader { node: newest.leader.unwrap(), epoch: newest.leader_epoch }));
        }
    }

    #[test]
    fn a_leader_failure_concerns_one_partition_and_one_leader() {
        let now = Instant::now();
        let mut known = CachedTopic::new(topic(1, &[led_by(1, 5), led_by(1, 3)]), now);
        let failed = known.leader(0).unwrap();
        known.record_leader_failure(0, failed);
        assert_eq!((known.leader(0), known.leader(1)), (None, Some(Leader { node: 1, epoch: 3 })));
        known.merge(topic(1, &[led_by(2, 4), led_by(1, 3)]), now);
        assert_eq!(known.leader(0), None, "an older election does not replace the failed leader");
        known.merge(topic(1, &[led_by(2, 6), led_by(1, 3)]), now);
        let leader = known.leader(0);
        assert_eq!(leader, Some(Leader { node: 2, epoch: 6 }));
        known.record_leader_failure(0, failed);
        assert_eq!(known.leader(0), leader, "a failure of the earlier leader says nothing about the new one");
        known.record_leader_failure(0, leader.unwrap());
        known.merge(topic(1, &[led_by(2, 6), led_by(1, 3)]), now);
        assert_eq!(known.leader(0), leader, "another broker confirms the leader");
    }

    #[test]
    fn an_outdated_broker_removes_no_partition_and_no_topic_id() {
        let now = Instant::now();
        let mut known = CachedTopic::new(topic(0, &[led_by(1, 5)]), now);
        known.merge(topic(7, &[led_by(1, 5), led_by(2, 0)]), now);
        for (id, partitions) in [(7, &[led_by(1, 4)][..]), (0, &[led_by(1, 5)])] {
            known.merge(topic(id, partitions), now);
            assert_eq!(*known.topic, topic(7, &[led_by(1, 5), led_by(2, 0)]));
        }
        known.merge(topic(8, &[led_by(3, 0)]), now);
        assert_eq!(*known.topic, topic(8, &[led_by(3, 0)]), "a recreated topic starts with new leader epochs");
    }

    #[test]
    fn a_topic_is_missing_or_recreated_only_if_a_second_broker_says_so() {
        let (one, other) = (topic(1, &[led_by(1, 5)]), topic(2, &[led_by(1, 0)]));
        let without_id = topic(0, &[led_by(1, 6)]);
        let missing = TopicAnswer::Missing;
        let exists = |topic: &TopicMetadata| TopicAnswer::Exists(topic.clone());
        let accepts = |known: Option<&TopicMetadata>, answers: &[TopicAnswer]| is_accepted(known, answers);
        let once = std::slice::from_ref(&missing);
        assert!(!accepts(Some(&one), once) && !accepts(None, once));
        assert!(accepts(Some(&one), &[missing.clone(), missing.clone()]));
        assert!(accepts(None, &[missing.clone(), exists(&one)]), "it was created a moment ago");
        assert!(!accepts(Some(&one), &[exists(&other)]));
        assert!(accepts(Some(&one), &[exists(&other), exists(&one)]));
        assert!(accepts(Some(&one), &[exists(&other), missing.clone(), exists(&other)]));
        assert!(accepts(Some(&one), &[exists(&without_id)]), "a broker without topic ids");
        assert_eq!(best_answer(vec![exists(&other), missing.clone()]), Some(exists(&other)));
        assert_eq!(best_answer(vec![missing.clone()]), Some(missing));
        assert_eq!(best_answer(Vec::new()), None);
    }

    #[test]
    fn a_single_broker_cannot_replace_the_coordinator() {
        for (known, named, expected) in
            [(1, &[2, 2, 1][..], 2), (2, &[1, 2, 2], 2), (1, &[2, 1], 1), (1, &[2], 1), (1, &[2, 3, 1], 1), (1, &[], 1)]
        {
            assert_eq!(elected_coordinator(known, named), expected, "{named:?}");
        }
    }
}
