//! A group of a Kafka cluster: its commits. One process of a destination has every partition; a second one is not
//! noticed as yet.
//!
//! ```text
//!  commit(P, state) ─ fits 4,096 characters? ─▶ OffsetCommit: offset = watermark, metadata = topic's id, settled map
//!                    └ no ─▶ records in <topic>.<group>.state ─▶ OffsetCommit: metadata points at them
//! ```
//!
//! The offset is what Kafka's own tools show and take away. A commit without our metadata is an operator's reset: the
//! partition goes on from its offset, and what had been settled behind it is delivered again. A commit whose topic id
//! is another one, or that is gone though the group had one, stops the partition until `--start` says what to do.
//!
//! A record of the state topic is a part of a map, `i` of `n` of a snapshot with an id of its own; only the snapshot
//! that the commit names counts, so what a crash leaves behind is harmless.

use super::{Change, Group, JoinError};
use crate::BoxFuture;
use crate::clock::now_ms;
use crate::core::event::Record;
use crate::core::outcome::Failure;
use crate::core::progress::State;
use crate::core::varint;
use crate::kafka::{self, Cluster, Request, Who, describe, refusal, topic_name};
use crate::limits::{
    BROKER_CALL_MAX, COMMIT_METADATA_CHARS_MAX, FETCH_BYTES_MAX, METADATA_INTERVAL_MIN, PARTITION_COUNT_CHECK_INTERVAL,
    STATE_COMMIT_INTERVAL, STATE_PART_BYTES_MAX, STATE_TRIM_INTERVAL,
};
use crate::log::kafka::Kafka;
use crate::log::{CreateTopic, Engine, Log, OpenError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    GroupId, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use kafka_protocol::protocol::StrBytes;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

/// Whose a record of a side topic is.
const TOPIC: &str = "eventd-topic";
const DESTINATION: &str = "eventd-destination";
/// Which part of which snapshot a record of the state topic is: `id:i:n`.
const SNAPSHOT: &str = "eventd-snapshot";

/// The first character of a commit's metadata: the map is in it, or it points at the map.
const INLINE: char = '1';
const POINTER: char = '2';

/// Characters of a topic's id in it.
const ID_CHARS: usize = 22;

/// Takes the place of the group `name` for a topic. `start_given`: a start was asked for, so where the commit is gone or
/// of an older topic of this name, the group begins anew.
pub async fn join(
    engine: &Arc<Kafka>,
    name: &str,
    log: &Arc<dyn Log>,
    start_given: bool,
) -> Result<Arc<dyn Group>, JoinError> {
    let cluster = Arc::clone(engine.cluster());
    let found = cluster.topic(log.topic(), Instant::now() + BROKER_CALL_MAX).await;
    let found = found.map_err(|error| match error {
        kafka::Error::Configuration(detail) => JoinError::Configuration(detail),
        error => JoinError::Unavailable(unavailable(error)),
    })?;
    let topic = found.ok_or_else(|| JoinError::MissingTopic { topic: log.topic().into() })?;
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    let mut group = KafkaGroup {
        engine: Arc::clone(engine),
        cluster,
        log: Arc::clone(log),
        name: name.into(),
        topic_id: topic.id,
        start_given,
        given: AtomicU32::new(0),
        partitions: AtomicU32::new(partitions),
        joined_with: partitions,
        had_commits: false,
        state_log: OnceCell::new(),
        left: AtomicBool::new(false),
        seen: Mutex::default(),
    };
    let commits = group.offset_fetch().await.map_err(JoinError::Unavailable)?;
    group.had_commits = commits.values().any(|(offset, _)| *offset >= 0);
    Ok(Arc::new(group))
}

/// What the group `name` last committed, by partition: read from outside, without joining it or disturbing its members.
pub async fn committed(engine: &Arc<Kafka>, name: &str, log: &Arc<dyn Log>) -> Result<Vec<Option<State>>, JoinError> {
    let group = join(engine, name, log, false).await?;
    let mut states = Vec::new();
    for partition in 0..log.partitions().await.map_err(JoinError::Unavailable)? {
        states.push(group.committed(partition).await.map_err(JoinError::Unavailable)?);
    }
    Ok(states)
}

/// Removes the progress that a group of this topic, which nobody joins any more, has in a topic of its own. Brokers
/// forget its commits by themselves.
pub async fn forget(engine: &Kafka, name: &str, topic: &str) -> Result<(), Failure> {
    engine.delete(&state_topic(topic, name)).await
}

fn state_topic(topic: &str, group: &str) -> String {
    format!("{topic}.{group}.state")
}

#[derive(Debug)]
struct KafkaGroup {
    engine: Arc<Kafka>,
    cluster: Arc<Cluster>,
    log: Arc<dyn Log>,
    name: String,
    topic_id: Uuid,
    start_given: bool,
    /// Partitions that [`Group::changed`] has told of, and that the topic has.
    given: AtomicU32,
    partitions: AtomicU32,
    /// How many partitions the topic had when this member came, and whether any had a commit.
    joined_with: u32,
    had_commits: bool,
    state_log: OnceCell<Arc<dyn Log>>,
    left: AtomicBool,
    seen: Mutex<HashMap<u32, Seen>>,
}

/// What is remembered of a partition between two commits.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// The log reaches at least this far.
    end: i64,
    /// When a state last went to its topic, and when that was last trimmed.
    stored_at: Option<Instant>,
    trimmed_at: Option<Instant>,
}

/// What a commit says beside its offset.
#[derive(Debug, PartialEq, Eq)]
enum Metadata {
    Map {
        topic_id: Uuid,
        state: State,
    },
    Pointer {
        topic_id: Uuid,
        pointer: Pointer,
    },
    /// An operator's tool, or another program.
    Foreign,
}

/// Where a snapshot stands in the state topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pointer {
    offset: i64,
    parts: u64,
    snapshot: u64,
}

impl Metadata {
    fn of_map(topic_id: Uuid, state: &State) -> String {
        // The map's own format digit is the first character here.
        let map = state.encode_settled();
        format!("{INLINE}{}{}", URL_SAFE_NO_PAD.encode(topic_id), &map[1..])
    }

    fn of_pointer(topic_id: Uuid, pointer: Pointer) -> String {
        let mut bytes = Vec::new();
        for number in [pointer.offset as u64, pointer.parts, pointer.snapshot] {
            varint::put(number, &mut bytes);
        }
        format!("{POINTER}{}{}", URL_SAFE_NO_PAD.encode(topic_id), URL_SAFE_NO_PAD.encode(bytes))
    }

    fn read(watermark: i64, metadata: &str) -> Result<Self, String> {
        let format = metadata.chars().next();
        if !matches!(format, Some('0'..='9')) {
            return Ok(Self::Foreign);
        }
        let parts = metadata.get(1..1 + ID_CHARS).zip(metadata.get(1 + ID_CHARS..));
        let (id, rest) = parts.ok_or("progress that is cut short")?;
        let id = URL_SAFE_NO_PAD.decode(id).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
        let topic_id = id.ok_or("progress without a topic's id")?;
        match format {
            Some(INLINE) => Ok(Self::Map { topic_id, state: State::decode(watermark, &format!("{INLINE}{rest}"))? }),
            Some(POINTER) => {
                let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|error| error.to_string())?;
                let mut rest = bytes.as_slice();
                let mut next = || varint::take(&mut rest).ok_or("a pointer that is cut short");
                let (offset, parts, snapshot) = (next()?, next()?, next()?);
                let offset = i64::try_from(offset).map_err(|error| error.to_string())?;
                Ok(Self::Pointer { topic_id, pointer: Pointer { offset, parts, snapshot } })
            }
            other => Err(format!("progress in a format that this eventd does not know: {other:?}")),
        }
    }
}

impl KafkaGroup {
    fn seen(&self) -> MutexGuard<'_, HashMap<u32, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn store(&self, partition: u32, state: State) -> Result<(), Failure> {
        if self.left.load(Ordering::Relaxed) {
            return Err(Failure::refused("commit-fenced", format!("{:?} has left its group", self.name)));
        }
        self.check_end(partition, &state).await?;
        let inline = Metadata::of_map(self.topic_id, &state);
        if inline.len() <= COMMIT_METADATA_CHARS_MAX {
            match self.offset_commit(partition, state.watermark, inline).await {
                // The broker was told to take less.
                Err(failure) if failure.code == TOO_LARGE => {}
                answer => return answer,
            }
        }
        self.store_apart(partition, &state).await
    }

    /// A commit past the end of the log would settle events that are not there yet.
    async fn check_end(&self, partition: u32, state: &State) -> Result<(), Failure> {
        let settled_end = state.settled.last().map_or(state.watermark, |range| range.end);
        if settled_end <= self.seen().get(&partition).map_or(0, |seen| seen.end) {
            return Ok(());
        }
        let end = self.log.latest(partition).await?;
        self.seen().entry(partition).or_default().end = end;
        if settled_end > end {
            return Err(Failure::refused(
                "commit-past-end",
                format!("partition {partition} ends at {end}, and the commit says that {settled_end} is settled"),
            ));
        }
        Ok(())
    }

    async fn offset_commit(&self, partition: u32, offset: i64, metadata: String) -> Result<(), Failure> {
        let committed = OffsetCommitRequestPartition::default()
            .with_partition_index(partition as i32)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(-1)
            .with_committed_metadata(Some(StrBytes::from_string(metadata)));
        let topic = OffsetCommitRequestTopic::default().with_name(topic_name(self.log.topic()));
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.name.clone())))
            .with_generation_id_or_member_epoch(-1)
            .with_member_id(StrBytes::from_static_str(""))
            .with_group_instance_id(None)
            .with_retention_time_ms(-1)
            .with_topics(vec![topic.with_partitions(vec![committed])]);
        let code = |answer: &OffsetCommitResponse| answer.topics.first()?.partitions.first().map(|one| one.error_code);
        let answer = self.ask(&request, code).await?;
        let code = code(&answer).ok_or_else(|| Failure::unknown("group-unavailable", "a commit without an answer"))?;
        let Some(error) = refusal(code) else { return Ok(()) };
        let why = describe(error);
        Err(match error {
            ResponseError::OffsetMetadataTooLarge => Failure::refused(TOO_LARGE, why),
            ResponseError::UnknownMemberId
            | ResponseError::IllegalGeneration
            | ResponseError::RebalanceInProgress
            | ResponseError::FencedInstanceId => Failure::refused(
                "commit-fenced",
                format!(
                    "another program is a member of the group {:?}: stop it, or choose another --name ({why})",
                    self.name
                ),
            ),
            _ => Failure::refused("group-unavailable", format!("group {:?} takes no commit: {why}", self.name)),
        })
    }

    /// Asks the coordinator, and while another one takes over asks again.
    async fn ask<R: Request>(
        &self,
        request: &R,
        code: impl Fn(&R::Response) -> Option<i16>,
    ) -> Result<R::Response, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        loop {
            let answer =
                self.cluster.call(Who::Coordinator(&self.name), request, deadline).await.map_err(unavailable)?;
            let moved = matches!(
                code(&answer).and_then(refusal),
                Some(
                    ResponseError::NotCoordinator
                        | ResponseError::CoordinatorNotAvailable
                        | ResponseError::CoordinatorLoadInProgress
                )
            );
            if !moved || Instant::now() + METADATA_INTERVAL_MIN >= deadline {
                return Ok(answer);
            }
            self.cluster.forget_coordinator(&self.name);
            sleep(METADATA_INTERVAL_MIN).await;
        }
    }

    /// Puts the map into the state topic, and commits where it is. At most once a second, whatever the commits' tick:
    /// a map that is large is written whole each time.
    async fn store_apart(&self, partition: u32, state: &State) -> Result<(), Failure> {
        let before = self.seen().get(&partition).copied().unwrap_or_default();
        if let Some(stored_at) = before.stored_at {
            sleep_until(stored_at + STATE_COMMIT_INTERVAL).await;
        }
        let log = self.state_log().await.map_err(|error| {
            let detail = format!("progress is too large for a commit, and its topic cannot be used: {error}");
            Failure::refused("group-unavailable", detail)
        })?;
        let map = state.encode_settled();
        let parts: Vec<&[u8]> = map.as_bytes().chunks(STATE_PART_BYTES_MAX).collect();
        let (snapshot, count) = (Uuid::now_v7().as_u128() as u64, parts.len());
        let record = |(place, part): (usize, &[u8])| {
            let which = format!("{snapshot}:{place}:{count}");
            let headers = [(TOPIC, self.log.topic()), (DESTINATION, &self.name), (SNAPSHOT, &which)];
            Record::new(None, Some(part), &headers.map(|(name, value)| (name, Some(value.as_bytes()))), now_ms())
        };
        let mut first = None;
        for part in parts.into_iter().enumerate() {
            let offset = log.append(partition, vec![record(part)]).await?;
            first.get_or_insert(offset);
        }
        let offset = first.unwrap_or_default();
        let pointer = Pointer { offset, parts: count as u64, snapshot };
        self.offset_commit(partition, state.watermark, Metadata::of_pointer(self.topic_id, pointer)).await?;
        let now = Instant::now();
        let trim = before.trimmed_at.is_none_or(|at| at + STATE_TRIM_INTERVAL <= now);
        {
            let mut seen = self.seen();
            let seen = seen.entry(partition).or_default();
            (seen.stored_at, seen.trimmed_at) = (Some(now), if trim { Some(now) } else { before.trimmed_at });
        }
        if trim && let Err(failure) = self.engine.trim(log.topic(), partition, offset).await {
            // Nothing depends on it: the next time removes more.
            tracing::debug!(topic = log.topic(), partition, "the state topic cannot be trimmed: {failure}");
        }
        Ok(())
    }

    async fn state_log(&self) -> Result<&Arc<dyn Log>, OpenError> {
        let open = async {
            let partitions = self.partitions.load(Ordering::Relaxed);
            self.engine.open(&self.state_topic(), Some(CreateTopic { partitions, retention: None })).await
        };
        self.state_log.get_or_try_init(|| open).await
    }

    fn state_topic(&self) -> String {
        state_topic(self.log.topic(), &self.name)
    }

    /// The offset that is committed for each partition, -1 where there is none, and its metadata.
    async fn offset_fetch(&self) -> Result<HashMap<u32, (i64, String)>, Failure> {
        let partitions = (0..self.partitions.load(Ordering::Relaxed) as i32).collect();
        let topic = OffsetFetchRequestTopic::default().with_name(topic_name(self.log.topic()));
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(self.name.clone())))
            .with_topics(Some(vec![topic.with_partition_indexes(partitions)]))
            .with_require_stable(false);
        // Of the whole group, or of one partition.
        let code = |answer: &OffsetFetchResponse| {
            let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
            let mut codes = std::iter::once(answer.error_code).chain(partitions.map(|one| one.error_code));
            codes.find(|code| *code != 0)
        };
        let answer = self.ask(&request, code).await?;
        if let Some(error) = code(&answer).and_then(refusal) {
            let detail = format!("group {:?} does not tell its commits: {}", self.name, describe(error));
            return Err(Failure::refused("group-unavailable", detail));
        }
        let found = answer.topics.into_iter().flat_map(|topic| topic.partitions);
        let read = |partition: kafka_protocol::messages::offset_fetch_response::OffsetFetchResponsePartition| {
            let metadata = partition.metadata.map(|text| text.to_string()).unwrap_or_default();
            (partition.partition_index as u32, (partition.committed_offset, metadata))
        };
        Ok(found.map(read).collect())
    }

    async fn stored(&self, partition: u32) -> Result<Option<State>, Failure> {
        let commits = self.offset_fetch().await?;
        let Some((offset, metadata)) = commits.get(&partition).filter(|(offset, _)| *offset >= 0) else {
            return self.without_commit(partition).await;
        };
        let unreadable = |why: String| {
            let detail = format!("the commit of partition {partition} cannot be read: {why}; --start begins anew");
            Failure::refused("commit-unreadable", detail)
        };
        let (topic_id, state) = match Metadata::read(*offset, metadata) {
            Ok(Metadata::Foreign) => {
                let (group, topic) = (&self.name, self.log.topic());
                tracing::warn!(
                    group,
                    topic,
                    partition,
                    offset,
                    "the group was reset by another tool: going on from there"
                );
                return Ok(Some(State::at(*offset)));
            }
            Ok(Metadata::Map { topic_id, state }) => (topic_id, Ok(state)),
            Ok(Metadata::Pointer { topic_id, pointer }) => {
                (topic_id, self.read_apart(partition, *offset, pointer).await?)
            }
            Err(why) => (self.topic_id, Err(why)),
        };
        if topic_id != self.topic_id {
            return self.anew(
                "topic-remade",
                format!(
                    "topic {:?} was deleted and made again since partition {partition} was committed",
                    self.log.topic()
                ),
            );
        }
        match state {
            Ok(state) => Ok(Some(state)),
            Err(_) if self.start_given => Ok(None),
            Err(why) => Err(unreadable(why)),
        }
    }

    /// The state of a snapshot in the state topic; `Err`: it is not there.
    async fn read_apart(
        &self,
        partition: u32,
        watermark: i64,
        pointer: Pointer,
    ) -> Result<Result<State, String>, Failure> {
        let log = match self.engine.open(&self.state_topic(), None).await {
            Ok(log) => log,
            Err(OpenError::Unavailable(why)) => return Err(Failure::refused("group-unavailable", why)),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (mut map, mut at) = (Vec::new(), pointer.offset);
        for place in 0..pointer.parts {
            let which = format!("{}:{place}:{}", pointer.snapshot, pointer.parts);
            // Between two parts may stand what another process wrote, or a sending that was repeated.
            loop {
                let fetched = match log.fetch(partition, at, FETCH_BYTES_MAX, Duration::ZERO).await {
                    Ok(fetched) => fetched,
                    Err(crate::log::FetchError::Unavailable(why)) => {
                        return Err(Failure::refused("group-unavailable", why));
                    }
                    Err(error) => return Ok(Err(format!("its map in {:?}: {error}", log.topic()))),
                };
                if fetched.events.is_empty() && fetched.next >= fetched.latest {
                    return Ok(Err(format!("its map is not in {:?} at offset {at}", log.topic())));
                }
                let is_part = |event: &&crate::core::event::Event| {
                    event.record.header_text(SNAPSHOT) == Some(&which)
                        && event.record.header_text(TOPIC) == Some(self.log.topic())
                        && event.record.header_text(DESTINATION) == Some(&self.name)
                };
                if let Some(part) = fetched.events.iter().find(is_part) {
                    map.extend_from_slice(part.record.value().unwrap_or_default());
                    at = part.offset + 1;
                    break;
                }
                at = fetched.next;
            }
        }
        let map = String::from_utf8(map).map_err(|error| error.to_string());
        Ok(map.and_then(|map| State::decode(watermark, &map)))
    }

    /// No commit: a new group, a partition that is new, or a commit that the brokers have forgotten.
    async fn without_commit(&self, partition: u32) -> Result<Option<State>, Failure> {
        let was_added = partition >= self.joined_with;
        if was_added || self.had_commits {
            let earliest = self.log.earliest(partition).await?;
            // A partition that was added begins with its first event, wherever a new group would begin: producers may
            // have been there before us.
            if was_added || earliest == 0 {
                return Ok(Some(State::at(earliest)));
            }
        }
        if self.had_commits || self.has_side_topic().await? {
            return self.anew(
                "commit-expired",
                format!(
                    "the group {:?} has no commit any more for partition {partition} (brokers forget it after \
                     offsets.retention.minutes)",
                    self.name
                ),
            );
        }
        Ok(None)
    }

    /// Whether the destination was at work before: it left dead letters, or a large state.
    async fn has_side_topic(&self) -> Result<bool, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        for topic in [self.state_topic(), format!("{}.{}.dead", self.log.topic(), self.name)] {
            if self.cluster.topic(&topic, deadline).await.map_err(unavailable)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Begins anew where a start was asked for; else that is what the error asks for.
    fn anew(&self, code: &'static str, why: String) -> Result<Option<State>, Failure> {
        if self.start_given {
            tracing::warn!(group = self.name, "{why}: beginning anew, as --start says");
            return Ok(None);
        }
        Err(Failure::refused(code, format!("{why}: --start earliest or --start latest says where to begin")))
    }
}

/// The commit's metadata is larger than the broker takes: never seen outside.
const TOO_LARGE: &str = "commit-metadata-too-large";

impl Group for KafkaGroup {
    fn name(&self) -> &str {
        &self.name
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(async move {
            loop {
                let (given, partitions) = (self.given.load(Ordering::Relaxed), self.partitions.load(Ordering::Relaxed));
                if given < partitions {
                    self.given.store(given + 1, Ordering::Relaxed);
                    return Ok(Change::Given(given));
                }
                sleep(PARTITION_COUNT_CHECK_INTERVAL).await;
                match self.log.partitions().await {
                    Ok(now) => drop(self.partitions.fetch_max(now, Ordering::Relaxed)),
                    // Fetches fail too, and say so.
                    Err(failure) => tracing::debug!(%failure, "cannot read the partition count"),
                }
            }
        })
    }

    fn released(&self, _partition: u32) -> BoxFuture<'_, ()> {
        // Nothing is ever taken, so nothing is handed over.
        Box::pin(std::future::ready(()))
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<State>, Failure>> {
        Box::pin(self.stored(partition))
    }

    fn commit(&self, partition: u32, state: State) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(self.store(partition, state))
    }

    fn fence(&self) -> Option<Instant> {
        None
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.left.store(true, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }
}

fn unavailable(error: kafka::Error) -> Failure {
    match error {
        kafka::Error::NoAnswer(why) => Failure::unknown("group-unavailable", why),
        error => Failure::refused("group-unavailable", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_a_commit_says_comes_back(
            id in any::<u128>(), watermark in 0i64..1 << 50,
            gaps in proptest::collection::vec((1i64..1_000, 1i64..1_000), 0..40),
            offset in 0i64..1 << 50, parts in 1u64..100, snapshot in any::<u64>(),
        ) {
            let mut state = State::at(watermark);
            let mut at = watermark;
            for (gap, len) in gaps {
                state.settled.push(at + gap..at + gap + len);
                at += gap + len;
            }
            let topic_id = Uuid::from_u128(id);
            let map = Metadata::of_map(topic_id, &state);
            prop_assert!(map.is_ascii());
            prop_assert_eq!(Metadata::read(watermark, &map), Ok(Metadata::Map { topic_id, state }));
            let pointer = Pointer { offset, parts, snapshot };
            let text = Metadata::of_pointer(topic_id, pointer);
            prop_assert_eq!(Metadata::read(watermark, &text), Ok(Metadata::Pointer { topic_id, pointer }));
        }

        #[test]
        fn what_is_no_progress_is_an_error_or_foreign_and_never_a_panic(text in ".{0,60}", watermark in 0i64..9) {
            let _ = Metadata::read(watermark, &text);
        }
    }

    #[test]
    fn what_others_commit_is_told_from_a_newer_format() {
        for foreign in ["", "NoMetadata", "x1"] {
            assert_eq!(Metadata::read(3, foreign), Ok(Metadata::Foreign), "{foreign:?}");
        }
        let newer = Metadata::of_map(Uuid::nil(), &State::at(3)).replacen('1', "7", 1);
        assert!(Metadata::read(3, &newer).unwrap_err().contains("does not know"), "{newer}");
    }
}
