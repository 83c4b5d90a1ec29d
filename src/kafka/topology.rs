//! What is known of a cluster, put together from the answers of brokers that may be behind. Pure.
//!
//! A broker that is cut off from the other brokers still answers its clients. It says that it leads what it led, and that
//! it coordinates the groups that it coordinated. So one answer alone does not replace what is known:
//!
//! ```text
//!  leader of a partition ── the newest leader epoch wins, whichever broker told it
//!  a topic is missing, or has another id ── believed if two brokers say so, or if no other broker answers
//!  coordinator of a group ── one broker confirms it; if it names another one, most brokers decide
//!  which broker is asked ── each in turn; one that gave no answer lately is asked last
//! ```

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

/// How long a broker that gave no answer is asked after all others. Long enough that a hanging broker is not waited for in
/// every round, and short enough that a broker that was restarted is soon asked again.
pub(super) const SILENT_BROKER_WAIT: Duration = Duration::from_secs(10);

/// The leader epoch where a broker tells none.
const NO_EPOCH: i32 = -1;

/// A topic, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMetadata {
    /// A topic that is deleted and created again has another id. It is nil if no broker has told one yet: brokers older
    /// than 2.8 have none.
    pub id: Uuid,
    /// By partition number.
    pub partitions: Vec<PartitionMetadata>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// `None`: the partition has no leader now.
    pub leader: Option<i32>,
    /// Each election of a leader has a higher one. -1: the broker tells none.
    pub leader_epoch: i32,
    pub replicas: usize,
}

impl PartitionMetadata {
    /// A partition of which no broker has told anything yet.
    pub(super) const UNKNOWN: Self = Self { leader: None, leader_epoch: NO_EPOCH, replicas: 0 };
}

/// The broker that leads a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    pub node: i32,
    /// Requests carry it: a broker that knows of a newer or only of an older election refuses them. -1: unknown.
    pub epoch: i32,
}

/// A partition, and the leader epoch under which a request about it goes to its leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionEpoch {
    pub partition: u32,
    pub epoch: i32,
}

/// Whether two ids are those of different topics. A nil id says nothing: the broker that told it has no ids.
pub fn is_another_topic(one: Uuid, other: Uuid) -> bool {
    one != other && !one.is_nil() && !other.is_nil()
}

/// A topic with the doubts about its leaders.
#[derive(Debug)]
pub(super) struct CachedTopic {
    pub(super) topic: Arc<TopicMetadata>,
    /// Partitions whose leader failed since it was last told.
    doubted: BTreeSet<u32>,
    /// When a broker was last asked about the topic.
    pub(super) asked: Instant,
    /// When a broker last told something of it.
    pub(super) told: Instant,
}

impl CachedTopic {
    pub(super) fn new(topic: TopicMetadata, now: Instant) -> Self {
        Self { topic: Arc::new(topic), doubted: BTreeSet::new(), asked: now, told: now }
    }

    /// Takes in what one more broker says. Of the same topic, a partition keeps the leader with the newest epoch, and no
    /// partition is ever removed.
    pub(super) fn learn(&mut self, said: TopicMetadata, now: Instant) {
        self.told = now;
        // Without ids a topic that was created again cannot be told apart, and its epochs begin anew.
        if is_another_topic(self.topic.id, said.id) || (self.topic.id.is_nil() && said.id.is_nil()) {
            *self = Self { asked: self.asked, ..Self::new(said, now) };
            return;
        }
        let mut topic = (*self.topic).clone();
        topic.id = if said.id.is_nil() { topic.id } else { said.id };
        if topic.partitions.len() < said.partitions.len() {
            topic.partitions.resize(said.partitions.len(), PartitionMetadata::UNKNOWN);
        }
        for ((known, said), number) in topic.partitions.iter_mut().zip(said.partitions).zip(0..) {
            if said.leader_epoch == NO_EPOCH || said.leader_epoch >= known.leader_epoch {
                *known = said;
                self.doubted.remove(&number);
            }
        }
        if topic != *self.topic {
            self.topic = Arc::new(topic);
        }
    }

    /// The leader of a partition, unless it has none or its leader is doubted.
    pub(super) fn leader(&self, partition: u32) -> Option<Leader> {
        let known = self.topic.partitions.get(partition as usize)?;
        let node = known.leader.filter(|_| !self.doubted.contains(&partition))?;
        Some(Leader { node, epoch: known.leader_epoch })
    }

    /// This leader failed. If another one is known by now, nothing is doubted.
    pub(super) fn doubt(&mut self, partition: u32, failed: Leader) {
        if self.leader(partition) == Some(failed) {
            self.doubted.insert(partition);
        }
    }
}

/// What one broker says of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TopicAnswer {
    Missing,
    Exists(TopicMetadata),
}

/// Whether the last answer of a round is believed. If not, another broker is asked.
pub(super) fn is_believed(known: Option<&TopicMetadata>, said: &[TopicAnswer]) -> bool {
    let Some((last, earlier)) = said.split_last() else { return false };
    match last {
        TopicAnswer::Missing => earlier.contains(&TopicAnswer::Missing),
        TopicAnswer::Exists(topic) => {
            let agrees = |other: &TopicMetadata| !is_another_topic(topic.id, other.id);
            let told_before =
                |earlier: &TopicAnswer| matches!(earlier, TopicAnswer::Exists(earlier) if agrees(earlier));
            known.is_none_or(agrees) || earlier.iter().any(told_before)
        }
    }
}

/// The answer that counts where the brokers that answered do not agree: a topic that one of them has is there.
pub(super) fn last_resort(said: Vec<TopicAnswer>) -> Option<TopicAnswer> {
    let mut said = said;
    let there = said.iter().rposition(|said| matches!(said, TopicAnswer::Exists(_)));
    there.map(|place| said.swap_remove(place)).or_else(|| said.pop())
}

/// The coordinator that most brokers name, each of them once. The known one stays unless two brokers and more than name it
/// agree on another one.
pub(super) fn elected(known: i32, named: &[i32]) -> i32 {
    let votes = |node: i32| named.iter().filter(|named| **named == node).count();
    let most = named.iter().copied().max_by_key(|node| votes(*node));
    most.filter(|node| votes(*node) >= 2 && votes(*node) > votes(known)).unwrap_or(known)
}

/// Which broker is asked next what every broker can tell.
#[derive(Debug, Default)]
pub(super) struct BrokerOrder {
    /// By address, the number of the broker's last turn.
    turns: HashMap<String, u64>,
    last_turn: u64,
    /// By address, when the broker last gave no answer.
    silent: HashMap<String, Instant>,
}

impl BrokerOrder {
    /// The addresses in the order in which they are asked, each once: first the brokers of the cluster, and then the
    /// addresses that the user gave, which may be other names of the same brokers. Those that gave no answer come last.
    pub(super) fn order<'a>(
        &self,
        brokers: impl Iterator<Item = &'a String>,
        given: &'a [String],
        now: Instant,
    ) -> Vec<String> {
        let mut addresses: Vec<(usize, &String)> = brokers.map(|address| (0, address)).collect();
        for (place, address) in given.iter().enumerate() {
            if !addresses.iter().any(|(_, known)| *known == address) {
                addresses.push((place + 1, address));
            }
        }
        let silent = |address: &String| self.silent.get(address).filter(|_| self.is_silent(address, now)).copied();
        let turn = |address: &String| self.turns.get(address).copied().unwrap_or(0);
        addresses.sort_by_cached_key(|(place, address)| {
            (silent(address), *place > 0, turn(address), *place, (*address).clone())
        });
        addresses.into_iter().map(|(_, address)| address.clone()).collect()
    }

    /// The broker has had its turn: it is asked, or what it said was found to be old. The others come before it.
    pub(super) fn took(&mut self, address: &str) {
        self.last_turn += 1;
        self.turns.insert(address.to_owned(), self.last_turn);
    }

    pub(super) fn gave_no_answer(&mut self, address: &str, now: Instant) {
        self.silent.insert(address.to_owned(), now);
    }

    pub(super) fn is_silent(&self, address: &str, now: Instant) -> bool {
        self.silent.get(address).is_some_and(|at| now.saturating_duration_since(*at) < SILENT_BROKER_WAIT)
    }

    /// Forgets the addresses that no broker has any more.
    pub(super) fn retain(&mut self, is_used: impl Fn(&String) -> bool) {
        self.turns.retain(|address, _| is_used(address));
        self.silent.retain(|address, _| is_used(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BROKERS: usize = 3;

    fn led(leader: i32, leader_epoch: i32) -> PartitionMetadata {
        PartitionMetadata { leader: Some(leader), leader_epoch, replicas: 3 }
    }

    fn topic(id: u128, partitions: &[PartitionMetadata]) -> TopicMetadata {
        TopicMetadata { id: Uuid::from_u128(id), partitions: partitions.to_vec() }
    }

    fn address(broker: usize) -> String {
        format!("broker-{broker}:9092")
    }

    /// What happens to a topic of one partition whose leaders are elected by all brokers but those that are cut off.
    #[derive(Debug, Clone)]
    enum Step {
        Elect(i32),
        Hear(usize),
        CutOff(Option<usize>),
        /// Whatever broker's turn it is.
        Ask,
        /// The leader that is known fails, if there is one.
        Fail,
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..BROKERS as i32).prop_map(Step::Elect),
            (0..BROKERS).prop_map(Step::Hear),
            prop::option::of(0..BROKERS).prop_map(Step::CutOff),
            Just(Step::Ask),
            Just(Step::Fail),
            (0..15_u64).prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn no_broker_that_is_behind_takes_a_newer_leader_back_and_two_questions_find_the_newest(steps in steps()) {
            let mut now = Instant::now();
            let (mut newest, mut cut_off) = (led(0, 0), None);
            let mut heard = [newest; BROKERS];
            let mut known = CachedTopic::new(topic(1, &[newest]), now);
            let mut turns = BrokerOrder::default();
            let addresses: Vec<String> = (0..BROKERS).map(address).collect();
            let ask = |known: &mut CachedTopic, turns: &mut BrokerOrder, heard: &[PartitionMetadata; BROKERS], now| {
                let teller = turns.order(addresses.iter(), &[], now).remove(0);
                turns.took(&teller);
                let broker = addresses.iter().position(|address| *address == teller).unwrap();
                let before = known.topic.partitions[0];
                known.learn(topic(1, &[heard[broker]]), now);
                let after = known.topic.partitions[0];
                assert!(after.leader_epoch >= before.leader_epoch, "{before:?} became {after:?}");
            };
            for step in steps {
                match step {
                    Step::Elect(leader) => newest = led(leader, newest.leader_epoch + 1),
                    Step::Hear(broker) if cut_off != Some(broker) => heard[broker] = newest,
                    Step::Hear(_) => {}
                    Step::CutOff(broker) => cut_off = broker,
                    Step::Ask => ask(&mut known, &mut turns, &heard, now),
                    Step::Fail => {
                        if let Some(failed) = known.leader(0) {
                            known.doubt(0, failed);
                            turns.took(&address(failed.node as usize));
                            prop_assert_eq!(known.leader(0), None);
                        }
                    }
                    Step::Pass(seconds) => now += Duration::from_secs(seconds),
                }
            }
            // The cluster has settled: all have heard, but the one that is cut off.
            for (broker, heard) in heard.iter_mut().enumerate() {
                if cut_off != Some(broker) {
                    *heard = newest;
                }
            }
            for _ in 0..2 {
                ask(&mut known, &mut turns, &heard, now);
            }
            let found = known.leader(0);
            prop_assert_eq!(found, Some(Leader { node: newest.leader.unwrap(), epoch: newest.leader_epoch }));
        }

        #[test]
        fn every_broker_is_asked_in_its_turn_and_a_silent_one_last(silent in 0..BROKERS, calls in 0..10_usize) {
            let now = Instant::now();
            let addresses: Vec<String> = (0..BROKERS).map(address).collect();
            let mut turns = BrokerOrder::default();
            let next = |turns: &mut BrokerOrder, now| {
                let teller = turns.order(addresses.iter(), &[], now).remove(0);
                turns.took(&teller);
                teller
            };
            for _ in 0..calls {
                next(&mut turns, now);
            }
            let round: BTreeSet<String> = (0..BROKERS).map(|_| next(&mut turns, now)).collect();
            prop_assert_eq!(round.len(), BROKERS);
            turns.gave_no_answer(&address(silent), now);
            let order = turns.order(addresses.iter(), &[], now);
            prop_assert_eq!(order.last(), Some(&address(silent)));
            let asked: BTreeSet<String> = (0..BROKERS * 2).map(|_| next(&mut turns, now)).collect();
            prop_assert!(!asked.contains(&address(silent)));
            let asked: BTreeSet<String> = (0..BROKERS).map(|_| next(&mut turns, now + SILENT_BROKER_WAIT)).collect();
            prop_assert!(asked.contains(&address(silent)));
        }
    }

    #[test]
    fn a_doubt_is_about_one_partition_and_one_leader() {
        let now = Instant::now();
        let mut known = CachedTopic::new(topic(1, &[led(1, 5), led(1, 3)]), now);
        let failed = known.leader(0).unwrap();
        known.doubt(0, failed);
        assert_eq!((known.leader(0), known.leader(1)), (None, Some(Leader { node: 1, epoch: 3 })));
        known.learn(topic(1, &[led(2, 4), led(1, 3)]), now);
        assert_eq!(known.leader(0), None, "an older election ends no doubt");
        known.learn(topic(1, &[led(2, 6), led(1, 3)]), now);
        let leader = known.leader(0);
        assert_eq!(leader, Some(Leader { node: 2, epoch: 6 }));
        known.doubt(0, failed);
        assert_eq!(known.leader(0), leader, "that another one failed says nothing of it");
        known.doubt(0, leader.unwrap());
        known.learn(topic(1, &[led(2, 6), led(1, 3)]), now);
        assert_eq!(known.leader(0), leader, "one more broker says so");
    }

    #[test]
    fn a_broker_that_is_behind_takes_no_partition_away_and_no_id() {
        let now = Instant::now();
        let mut known = CachedTopic::new(topic(0, &[led(1, 5)]), now);
        known.learn(topic(7, &[led(1, 5), led(2, 0)]), now);
        for (id, partitions) in [(7, &[led(1, 4)][..]), (0, &[led(1, 5)])] {
            known.learn(topic(id, partitions), now);
            assert_eq!(*known.topic, topic(7, &[led(1, 5), led(2, 0)]));
        }
        known.learn(topic(8, &[led(3, 0)]), now);
        assert_eq!(*known.topic, topic(8, &[led(3, 0)]), "created again, its epochs begin anew");
    }

    #[test]
    fn a_topic_is_missing_or_another_one_only_if_a_second_broker_says_so() {
        let (one, other) = (topic(1, &[led(1, 5)]), topic(2, &[led(1, 0)]));
        let nameless = topic(0, &[led(1, 6)]);
        let believed = |known: Option<&TopicMetadata>, said: &[TopicAnswer]| is_believed(known, said);
        assert!(!believed(Some(&one), &[TopicAnswer::Missing]) && !believed(None, &[TopicAnswer::Missing]));
        assert!(believed(Some(&one), &[TopicAnswer::Missing, TopicAnswer::Missing]));
        assert!(
            believed(None, &[TopicAnswer::Missing, TopicAnswer::Exists(one.clone())]),
            "it was created a moment ago"
        );
        assert!(!believed(Some(&one), &[TopicAnswer::Exists(other.clone())]));
        assert!(believed(Some(&one), &[TopicAnswer::Exists(other.clone()), TopicAnswer::Exists(one.clone())]));
        assert!(believed(
            Some(&one),
            &[TopicAnswer::Exists(other.clone()), TopicAnswer::Missing, TopicAnswer::Exists(other.clone())]
        ));
        assert!(believed(Some(&one), &[TopicAnswer::Exists(nameless)]), "a broker without ids");
        assert_eq!(
            last_resort(vec![TopicAnswer::Exists(other.clone()), TopicAnswer::Missing]),
            Some(TopicAnswer::Exists(other))
        );
        assert_eq!(last_resort(vec![TopicAnswer::Missing]), Some(TopicAnswer::Missing));
        assert_eq!(last_resort(Vec::new()), None);
    }

    #[test]
    fn one_broker_alone_makes_no_other_one_the_coordinator() {
        for (known, named, expected) in
            [(1, &[2, 2, 1][..], 2), (2, &[1, 2, 2], 2), (1, &[2, 1], 1), (1, &[2], 1), (1, &[2, 3, 1], 1), (1, &[], 1)]
        {
            assert_eq!(elected(known, named), expected, "{named:?}");
        }
    }

    #[test]
    fn addresses_that_were_given_are_asked_until_the_brokers_are_known_and_if_none_of_them_answers() {
        let now = Instant::now();
        let mut turns = BrokerOrder::default();
        let given = [address(0), "alias:9092".to_owned()];
        assert_eq!(turns.order([].iter(), &given, now), given);
        let known = [address(0), address(1)];
        turns.took(&known[0]);
        assert_eq!(turns.order(known.iter(), &given, now), [&known[1], &known[0], &given[1]].map(String::clone));
        known.iter().for_each(|address| turns.gave_no_answer(address, now));
        assert_eq!(turns.order(known.iter(), &given, now)[0], given[1]);
    }
}
