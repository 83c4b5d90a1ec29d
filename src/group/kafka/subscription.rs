//! What members tell each other through the broker: the standard bytes of Kafka's consumers, so that Kafka's own tools
//! show who has what. A version in front, then the message.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as Assigned;
use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as Owned;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
use kafka_protocol::protocol::{Encodable, StrBytes};

/// 2 has the generation of the claims.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 1;

/// What a member says when it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) topic: String,
    pub(super) claims: Claims,
    /// The digest of its destination.
    pub(super) digest: String,
}

/// The partitions that a member has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) staying: Vec<u32>,
    /// Those that it was asked to let go, and has not yet.
    pub(super) leaving: Vec<u32>,
    /// In which it got them (-1: none).
    pub(super) generation: i32,
    /// The member stops: it must not be assigned anything.
    pub(super) draining: bool,
}

/// What the leader says to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) topic: String,
    pub(super) partitions: Vec<u32>,
    /// Why the member gets nothing and has to leave; empty: it is welcome.
    pub(super) refusal: String,
}

#[cfg(test)]
impl Claims {
    pub(super) fn none() -> Self {
        Self { staying: Vec::new(), leaving: Vec::new(), generation: -1, draining: false }
    }
}

impl Subscription {
    pub(super) fn encode(&self) -> Result<Bytes, String> {
        let owned = |partitions: &[u32]| {
            let partitions = partitions.iter().map(|partition| *partition as i32).collect();
            Owned::default().with_topic(TopicName(text(&self.topic))).with_partitions(partitions)
        };
        // What it lets go is its own as well, and is in a second entry for the topic. A third one, which is empty, says
        // that the member is draining: an eventd that does not know of that reads the two others all the same.
        let owned = match (&self.claims.staying, &self.claims.leaving) {
            (staying, leaving) if self.claims.draining => vec![owned(staying), owned(leaving), owned(&[])],
            (staying, leaving) if leaving.is_empty() && staying.is_empty() => Vec::new(),
            (staying, leaving) if leaving.is_empty() => vec![owned(staying)],
            (staying, leaving) => vec![owned(staying), owned(leaving)],
        };
        let message = ConsumerProtocolSubscription::default()
            .with_topics(vec![text(&self.topic)])
            .with_user_data(Some(Bytes::copy_from_slice(self.digest.as_bytes())))
            .with_owned_partitions(owned)
            .with_generation_id(self.claims.generation);
        encode(&message, SUBSCRIPTION_VERSION)
    }

    pub(super) fn decode(bytes: Bytes) -> Result<Self, String> {
        let mut rest = Reader(&bytes);
        let version = rest.version()?;
        let topics = rest.array(Reader::text)?;
        let digest = String::from_utf8_lossy(rest.bytes()?).into_owned();
        let topic = topics.into_iter().next().unwrap_or_default();
        let mut claimed = if version >= 1 { rest.partitions_of(&topic)? } else { Vec::new() }.into_iter();
        let draining = claimed.len() > 2;
        let (staying, leaving) = (claimed.next().unwrap_or_default(), claimed.flatten().collect());
        let generation = if version >= 2 { rest.i32()? } else { -1 };
        Ok(Self { topic, claims: Claims { staying, leaving, generation, draining }, digest })
    }
}

impl Assignment {
    pub(super) fn encode(&self) -> Result<Bytes, String> {
        let assigned = Assigned::default()
            .with_topic(TopicName(text(&self.topic)))
            .with_partitions(self.partitions.iter().map(|partition| *partition as i32).collect());
        let message = ConsumerProtocolAssignment::default()
            .with_assigned_partitions(if self.partitions.is_empty() { Vec::new() } else { vec![assigned] })
            .with_user_data(Some(Bytes::copy_from_slice(self.refusal.as_bytes())));
        encode(&message, ASSIGNMENT_VERSION)
    }

    /// Of a member for `topic`; no bytes at all are an empty assignment.
    pub(super) fn decode(topic: &str, bytes: Bytes) -> Result<Self, String> {
        let topic = topic.to_owned();
        if bytes.is_empty() {
            return Ok(Self { topic, partitions: Vec::new(), refusal: String::new() });
        }
        let mut rest = Reader(&bytes);
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

/// Reads what others wrote. (The crate's own decoder reserves room for as many entries as a message says that it has,
/// and these bytes may be anybody's.) A newer version begins like those that are known here, and adds behind them.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
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
            version if version < 0 => Err(format!("a version of {version}")),
            version => Ok(version),
        }
    }

    fn text(&mut self) -> Result<String, String> {
        let len = usize::try_from(self.i16()?).map_err(|_| "a text that is null")?;
        String::from_utf8(self.take(len)?.to_vec()).map_err(|error| error.to_string())
    }

    /// Null is empty.
    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = usize::try_from(self.i32()?).unwrap_or(0);
        self.take(len)
    }

    fn array<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let count = self.i32()?;
        (0..count).map(|_| one(self)).collect()
    }

    /// What a list of topics with their partitions says of one, entry by entry.
    fn partitions_of(&mut self, topic: &str) -> Result<Vec<Vec<u32>>, String> {
        let all = self.array(|rest| Ok((rest.text()?, rest.array(Self::i32)?)))?;
        let own = all.into_iter().filter(|(name, _)| name == topic).map(|(_, partitions)| partitions);
        Ok(own.map(|some| some.into_iter().filter_map(|partition| u32::try_from(partition).ok()).collect()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_members_say_comes_back(
            staying in proptest::collection::vec(0u32..1_000, 0..20), generation in -1i32..1_000,
            leaving in proptest::collection::vec(0u32..1_000, 0..3), draining in any::<bool>(),
            digest in "[0-9a-f]{0,16}", refusal in ".{0,40}",
        ) {
            let topic = "user-events".to_owned();
            let claims = Claims { staying: staying.clone(), leaving, generation, draining };
            let said = Subscription { topic: topic.clone(), claims, digest };
            prop_assert_eq!(Subscription::decode(said.encode().unwrap()).map(|back| Subscription {
                topic: topic.clone(), ..back
            }), Ok(said));
            let told = Assignment { topic: topic.clone(), partitions: staying, refusal };
            prop_assert_eq!(Assignment::decode(&topic, told.encode().unwrap()), Ok(told));
        }

        #[test]
        fn what_nobody_said_is_an_error_and_never_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Subscription::decode(junk.clone().into());
            let _ = Assignment::decode("t", junk.into());
        }
    }
}
