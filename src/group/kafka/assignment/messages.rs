//! What members and their leader tell each other through the broker. The bytes are those of Kafka's own consumers, so
//! Kafka's tools show which member owns which partition: a version, then the message.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as Assigned;
use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as Owned;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
use kafka_protocol::protocol::{Encodable, StrBytes};

/// Version 2 is the first that has the generation of the owned partitions.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 1;

/// What a member says when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::group::kafka) struct Subscription {
    pub(in crate::group::kafka) topic: String,
    pub(in crate::group::kafka) owned: OwnedPartitions,
    /// The digest of its destination, as the user data.
    pub(in crate::group::kafka) digest: String,
}

/// The partitions that a member owns when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::group::kafka) struct OwnedPartitions {
    /// Those that it owns and keeps, as far as it knows.
    pub(in crate::group::kafka) owned: Vec<u32>,
    /// Those that it was asked to release, and still owns.
    pub(in crate::group::kafka) revoking: Vec<u32>,
    /// The generation in which it was assigned them; -1: none.
    pub(in crate::group::kafka) generation: i32,
    /// The process stops, so the member must not be assigned anything.
    pub(in crate::group::kafka) draining: bool,
}

/// What the leader says to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::group::kafka) struct Assignment {
    pub(in crate::group::kafka) topic: String,
    pub(in crate::group::kafka) partitions: Vec<u32>,
    /// Why the member gets nothing and has to leave, as the user data. Empty if it may stay.
    pub(in crate::group::kafka) refusal: String,
}

#[cfg(test)]
impl OwnedPartitions {
    pub(in crate::group::kafka) fn none() -> Self {
        Self { owned: Vec::new(), revoking: Vec::new(), generation: -1, draining: false }
    }
}

impl Subscription {
    pub(in crate::group::kafka) fn encode(&self) -> Result<Bytes, String> {
        let entry = |partitions: &[u32]| {
            let partitions = partitions.iter().map(|partition| *partition as i32).collect();
            Owned::default().with_topic(TopicName(text(&self.topic))).with_partitions(partitions)
        };
        // Kafka's message has one list of owned partitions for each topic, and may repeat a topic. The first entry is what
        // the member keeps, and the second what it is revoking. A third entry, which is empty, says that the member
        // is draining. An older eventd that does not know about it still reads the first two.
        let owned = match (&self.owned.owned, &self.owned.revoking) {
            (owned, revoking) if self.owned.draining => vec![entry(owned), entry(revoking), entry(&[])],
            (owned, revoking) if revoking.is_empty() && owned.is_empty() => Vec::new(),
            (owned, revoking) if revoking.is_empty() => vec![entry(owned)],
            (owned, revoking) => vec![entry(owned), entry(revoking)],
        };
        let message = ConsumerProtocolSubscription::default()
            .with_topics(vec![text(&self.topic)])
            .with_user_data(Some(Bytes::copy_from_slice(self.digest.as_bytes())))
            .with_owned_partitions(owned)
            .with_generation_id(self.owned.generation);
        encode(&message, SUBSCRIPTION_VERSION)
    }

    pub(in crate::group::kafka) fn decode(bytes: Bytes) -> Result<Self, String> {
        let mut rest = MessageReader(&bytes);
        let version = rest.version()?;
        let topics = rest.array(MessageReader::text)?;
        let digest = String::from_utf8_lossy(rest.bytes()?).into_owned();
        let topic = topics.into_iter().next().unwrap_or_default();
        let mut entries = if version >= 1 { rest.partitions_of(&topic)? } else { Vec::new() }.into_iter();
        let draining = entries.len() > 2;
        let (owned, revoking) = (entries.next().unwrap_or_default(), entries.flatten().collect());
        let generation = if version >= 2 { rest.i32()? } else { -1 };
        Ok(Self { topic, owned: OwnedPartitions { owned, revoking, generation, draining }, digest })
    }
}

impl Assignment {
    pub(in crate::group::kafka) fn encode(&self) -> Result<Bytes, String> {
        let assigned = Assigned::default()
            .with_topic(TopicName(text(&self.topic)))
            .with_partitions(self.partitions.iter().map(|partition| *partition as i32).collect());
        let message = ConsumerProtocolAssignment::default()
            .with_assigned_partitions(if self.partitions.is_empty() { Vec::new() } else { vec![assigned] })
            .with_user_data(Some(Bytes::copy_from_slice(self.refusal.as_bytes())));
        encode(&message, ASSIGNMENT_VERSION)
    }

    /// Reads the assignment of a member that subscribes to `topic`. No bytes at all are an empty assignment: the leader
    /// said nothing about this member.
    pub(in crate::group::kafka) fn decode(topic: &str, bytes: Bytes) -> Result<Self, String> {
        let topic = topic.to_owned();
        if bytes.is_empty() {
            return Ok(Self { topic, partitions: Vec::new(), refusal: String::new() });
        }
        let mut rest = MessageReader(&bytes);
        rest.version()?;
        let partitions = rest.partitions_of(&topic)?.concat();
        let refusal = String::from_utf8_lossy(rest.bytes()?).into_owned();
        Ok(Self { topic, partitions, refusal })
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn encode(message: &impl Encodable, version: i16) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    bytes.put_i16(version);
    message.encode(&mut bytes, version).map_err(|error| format!("{error:#}"))?;
    Ok(bytes.freeze())
}

/// Reads a message that another program may have written. The decoder of `kafka_protocol` is not used here, because it
/// reserves room for as many entries as a message says that it has. A newer version of a message starts like the known
/// ones, and adds fields after theirs.
struct MessageReader<'a>(&'a [u8]);

impl<'a> MessageReader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.0.split_at_checked(len).ok_or("it is cut short")?;
        self.0 = tail;
        Ok(head)
    }

    fn i16(&mut self) -> Result<i16, String> {
        self.take(2).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn i32(&mut self) -> Result<i32, String> {
        self.take(4).map(|bytes| i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn version(&mut self) -> Result<i16, String> {
        match self.i16()? {
            version if version < 0 => Err(format!("its version is {version}")),
            version => Ok(version),
        }
    }

    fn text(&mut self) -> Result<String, String> {
        let len = usize::try_from(self.i16()?).map_err(|_| "a text in it is null")?;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|error| error.to_string())
    }

    /// Reads bytes with their length. Null, which has the length -1, counts as empty.
    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = usize::try_from(self.i32()?).unwrap_or(0);
        self.take(len)
    }

    fn array<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let count = self.i32()?;
        (0..count).map(|_| one(self)).collect()
    }

    /// Reads a list of topics with their partitions, and returns the partitions of each entry for `topic`.
    fn partitions_of(&mut self, topic: &str) -> Result<Vec<Vec<u32>>, String> {
        let all = self.array(|rest| Ok((rest.text()?, rest.array(Self::i32)?)))?;
        let entries = all.into_iter().filter(|(name, _)| name == topic).map(|(_, partitions)| partitions);
        let valid =
            |partitions: Vec<i32>| partitions.into_iter().filter_map(|number| u32::try_from(number).ok()).collect();
        Ok(entries.map(valid).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_encoded_message_decodes_to_itself(
            owned in proptest::collection::vec(0u32..1_000, 0..20), generation in -1i32..1_000,
            revoking in proptest::collection::vec(0u32..1_000, 0..3), draining in any::<bool>(),
            digest in "[0-9a-f]{0,16}", refusal in ".{0,40}",
        ) {
            let topic = "user-events".to_owned();
            let partitions = owned.clone();
            let owned = OwnedPartitions { owned, revoking, generation, draining };
            let subscription = Subscription { topic: topic.clone(), owned, digest };
            prop_assert_eq!(Subscription::decode(subscription.encode().unwrap()), Ok(subscription));
            let assignment = Assignment { topic: topic.clone(), partitions, refusal };
            prop_assert_eq!(Assignment::decode(&topic, assignment.encode().unwrap()), Ok(assignment));
        }

        #[test]
        fn bytes_of_another_program_are_never_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Subscription::decode(junk.clone().into());
            let _ = Assignment::decode("t", junk.into());
        }
    }
}
