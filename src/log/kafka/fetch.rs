//! From a partition's leader: records, and the offsets of its ends and times.
//!
//! ```text
//!  fetch(from, max_bytes) ─ left over from an earlier answer? ─▶ at most max_bytes of it, the rest stays left over
//!                         └ no ─▶ Fetch at the leader ─▶ walk the batches ─▶ the same
//! ```
//!
//! A broker gives whole batches, of up to 900 KiB where eventd appended them, whatever it was asked for. A dispatch
//! whose window has room for three events would decode such a batch again for every three: so what did not fit is kept,
//! up to a bound.

use super::{KafkaLog, failure};
use crate::core::event::Event;
use crate::core::outcome::Failure;
use crate::kafka::batch::{self, AbortedTransaction};
use crate::kafka::{self, Cluster, Leader, PartitionEpoch, describe, is_another_topic, refusal, topic_name};
use crate::limits::{BROKER_CALL_MAX, BROKER_FETCH_GRACE, FRAME_BYTES_MAX, LEFTOVER_BYTES_MAX, LEFTOVERS_MAX};
use crate::log::{FetchError, Fetched};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, ListOffsetsRequest};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// What a broker takes instead of a time.
pub(super) const EARLIEST: i64 = -2;
pub(super) const LATEST: i64 = -1;

/// How old what is known of the leaders may be before a fetch: another broker is then asked.
const METADATA_AGE_MAX: Duration = Duration::from_secs(30);

/// How old it may be when a fetch found nothing. Perhaps nothing was written; or the broker was cut off from the others,
/// which have another leader by now, and it does not know. One request a topic tells, whatever its number of partitions.
const METADATA_IDLE_AGE_MAX: Duration = Duration::from_secs(5);

/// Records of transactions only once they are committed.
const READ_COMMITTED: i8 = 1;

/// How long a rest is kept for its reader. A reader that was moved elsewhere never comes for it, and a reader that waits
/// for so long for a destination may as well fetch again.
const LEFTOVER_AGE_MAX: Duration = Duration::from_secs(60);

/// What did not fit into earlier answers, and until when a quota asks us to fetch no more. Each reader of the topic, most
/// often one a partition, keeps a share of the bytes: so no reader has to fetch a batch again for every few of its events
/// because of what the others keep.
#[derive(Debug, Default)]
pub(super) struct FetchBuffer {
    /// Those that were kept longest come first.
    kept: Mutex<VecDeque<BufferedFetch>>,
    throttled_until: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct BufferedFetch {
    partition: u32,
    /// The offset that the fetch has to ask for.
    from: i64,
    fetched: Fetched,
    /// What its events cost.
    bytes: usize,
    kept_at: Instant,
}

impl BufferedFetch {
    fn new(partition: u32, from: i64, fetched: Fetched) -> Self {
        let bytes = fetched.events.iter().map(|event| event.record.window_bytes()).sum();
        Self { partition, from, fetched, bytes, kept_at: Instant::now() }
    }

    /// Leaves out the events at its end that are too many: they are fetched again when it is their turn.
    fn cut(&mut self, bytes_max: usize) {
        let events = &mut self.fetched.events;
        let keep = count_within(events, bytes_max);
        if keep < events.len() {
            self.fetched.next = events[keep].offset;
            events.truncate(keep);
            events.shrink_to_fit();
            self.bytes = events.iter().map(|event| event.record.window_bytes()).sum();
        }
    }
}

impl FetchBuffer {
    fn take(&self, partition: u32, from: i64) -> Option<Fetched> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|leftover| leftover.partition == partition && leftover.from == from)?;
        kept.remove(place).map(|leftover| leftover.fetched)
    }

    /// Gives as much as fits, at least one event, and keeps the rest.
    fn split(&self, partition: u32, mut fetched: Fetched, max_bytes: usize) -> Fetched {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.record.size_bytes();
            bytes <= max_bytes
        };
        let fit = fetched.events.iter().take_while(fits).count().max(1);
        if fit >= fetched.events.len() {
            return fetched;
        }
        let rest = Fetched { events: fetched.events.split_off(fit), ..fetched };
        // Up to the next event there is none: what is between belongs to what is given.
        fetched.next = rest.events.first().map_or(fetched.next, |event| event.offset);
        let rest = BufferedFetch::new(partition, fetched.next, rest);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|leftover| leftover.kept_at.elapsed() < LEFTOVER_AGE_MAX);
        if kept.len() >= LEFTOVERS_MAX {
            kept.pop_front();
        }
        kept.push_back(rest);
        let share = fair_share(kept.iter().map(|leftover| leftover.bytes).collect(), LEFTOVER_BYTES_MAX);
        kept.iter_mut().filter(|leftover| leftover.bytes > share).for_each(|leftover| leftover.cut(share));
        kept.retain(|leftover| !leftover.fetched.events.is_empty());
        fetched
    }
}

/// How many of the first events cost at most this many bytes together.
fn count_within(events: &[Event], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |event: &&Event| {
        bytes += event.record.window_bytes();
        bytes <= bytes_max
    };
    events.iter().take_while(fits).count()
}

/// The most that each may have so that all have at most `whole` together. What some do not need is shared by the others.
fn fair_share(mut sizes: Vec<usize>, whole: usize) -> usize {
    sizes.sort_unstable();
    let mut left = whole;
    for (place, size) in sizes.iter().enumerate() {
        let share = left / (sizes.len() - place);
        if *size > share {
            return share;
        }
        left -= size;
    }
    whole
}

impl KafkaLog {
    pub(super) async fn fetch_from(
        &self,
        partition: u32,
        from: i64,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Fetched, FetchError> {
        let fetched = match self.leftovers.take(partition, from) {
            Some(fetched) => fetched,
            None => self.ask(partition, from, max_bytes, wait).await?,
        };
        Ok(self.leftovers.split(partition, fetched, max_bytes))
    }

    async fn ask(&self, partition: u32, from: i64, max_bytes: usize, wait: Duration) -> Result<Fetched, FetchError> {
        let throttled = *self.leftovers.throttled_until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = throttled {
            sleep_until(until).await;
        }
        let deadline = Instant::now() + wait + BROKER_FETCH_GRACE;
        let unavailable = |error: kafka::Error| FetchError::Unavailable(error.to_string());
        self.cluster.refresh(&self.name, METADATA_AGE_MAX).await;
        let leader = self.leader(partition, deadline).await?;
        let asked = FetchPartition::default()
            .with_partition(partition as i32)
            .with_current_leader_epoch(leader.epoch)
            .with_fetch_offset(from)
            .with_partition_max_bytes(i32::try_from(max_bytes.min(FRAME_BYTES_MAX / 2)).unwrap_or(i32::MAX));
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes((FRAME_BYTES_MAX / 2) as i32)
            .with_isolation_level(READ_COMMITTED)
            .with_topics(vec![FetchTopic::default().with_topic(topic_name(&self.name)).with_partitions(vec![asked])]);
        let led = [PartitionEpoch { partition, epoch: leader.epoch }];
        let answer = self.cluster.call_leader(&self.name, leader.node, &led, &request, deadline).await;
        let answer = answer.map_err(unavailable)?;
        let throttle = Duration::from_millis(answer.throttle_time_ms.unsigned_abs().into()).min(BROKER_CALL_MAX);
        if !throttle.is_zero() {
            let mut throttled = self.leftovers.throttled_until.lock().unwrap_or_else(PoisonError::into_inner);
            *throttled = Some(Instant::now() + throttle);
        }
        let code = answer.error_code;
        let Some(data) = answer.responses.into_iter().flat_map(|topic| topic.partitions).next() else {
            return Err(FetchError::Unavailable(match refusal(code) {
                Some(error) => format!("the leader of partition {partition} answers with {}", describe(error)),
                None => format!("a quota of the brokers has partition {partition} wait for {throttle:?}"),
            }));
        };
        if data.records.as_ref().is_none_or(|records| records.is_empty()) {
            self.cluster.refresh(&self.name, METADATA_IDLE_AGE_MAX).await;
        }
        self.read(partition, leader, from, data).await
    }

    async fn read(
        &self,
        partition: u32,
        leader: Leader,
        from: i64,
        data: PartitionData,
    ) -> Result<Fetched, FetchError> {
        match refusal(data.error_code) {
            None => {}
            Some(ResponseError::OffsetOutOfRange) => {
                // A leader that was replaced, and does not know, lacks what came after it. So another broker has to say
                // first that it leads.
                self.cluster.doubt(&self.name, partition, leader);
                let ends = async { Ok((self.end(partition, EARLIEST).await?, self.end(partition, LATEST).await?)) };
                let (earliest, latest) =
                    ends.await.map_err(|error: Failure| FetchError::Unavailable(error.to_string()))?;
                if (earliest..=latest).contains(&from) {
                    let why = format!("partition {partition} has another leader, which has offset {from}");
                    return Err(FetchError::Unavailable(why));
                }
                return Err(FetchError::OutOfRange { from, earliest, latest });
            }
            Some(error) => {
                self.cluster.doubt(&self.name, partition, leader);
                let why = describe(error);
                return Err(FetchError::Unavailable(format!("partition {partition} cannot be fetched: {why}")));
            }
        }
        let latest = data.last_stable_offset;
        let stretch = data.records.unwrap_or_default();
        if stretch.is_empty() {
            return Ok(Fetched { events: Vec::new(), next: from, latest });
        }
        let aborted: Vec<AbortedTransaction> = data
            .aborted_transactions
            .unwrap_or_default()
            .iter()
            .map(|aborted| AbortedTransaction {
                producer_id: aborted.producer_id.0,
                first_offset: aborted.first_offset,
            })
            .collect();
        match batch::walk(&stretch, from, &aborted) {
            Ok(walked) if walked.next == from => {
                Err(FetchError::Unavailable(format!("partition {partition}: a batch that is cut short at {from}")))
            }
            Ok(walked) => Ok(Fetched { events: walked.events, next: walked.next, latest: latest.max(walked.next) }),
            Err(damaged) => Err(FetchError::Corrupt { offset: damaged.last, detail: damaged.detail }),
        }
    }

    /// The leader, of the topic that was opened and of no later one under its name.
    async fn leader(&self, partition: u32, deadline: Instant) -> Result<Leader, FetchError> {
        let found = self.cluster.leader(&self.name, partition, deadline).await;
        let (leader, topic) = found.map_err(|error| FetchError::Unavailable(error.to_string()))?;
        if !topic.id.is_nil() && is_another_topic(*self.id.get_or_init(|| topic.id), topic.id) {
            return Err(FetchError::TopicRecreated { topic: self.name.clone() });
        }
        Ok(leader)
    }

    /// One of the ends.
    pub(super) async fn end(&self, partition: u32, which: i64) -> Result<i64, Failure> {
        let end = self.offset(partition, which).await?;
        end.ok_or_else(|| Failure::refused("log-unavailable", format!("partition {partition} tells no offset")))
    }

    /// The lowest offset with this time or a later one. Asked a second time where the leader has moved.
    pub(super) async fn offset(&self, partition: u32, timestamp: i64) -> Result<Option<i64>, Failure> {
        let deadline = Instant::now() + BROKER_CALL_MAX;
        let mut again = true;
        loop {
            let error = match self.offset_once(partition, timestamp, deadline).await {
                Ok(offset) => return Ok(offset),
                Err(error) => error,
            };
            if !std::mem::take(&mut again) {
                return Err(error);
            }
        }
    }

    async fn offset_once(&self, partition: u32, timestamp: i64, deadline: Instant) -> Result<Option<i64>, Failure> {
        let (leader, _) = self.cluster.leader(&self.name, partition, deadline).await.map_err(failure)?;
        let led = [PartitionEpoch { partition, epoch: leader.epoch }];
        let request = list_offsets(&self.name, &led, timestamp);
        let answer = self.cluster.call_leader(&self.name, leader.node, &led, &request, deadline).await;
        let found = answer.map_err(failure)?;
        let found = found.topics.into_iter().flat_map(|topic| topic.partitions).next();
        let found = found.ok_or_else(|| Failure::refused("log-unavailable", "a broker answers with no offset"))?;
        match refusal(found.error_code) {
            None => Ok((found.offset >= 0).then_some(found.offset)),
            Some(error) => {
                self.cluster.doubt(&self.name, partition, leader);
                let detail = format!("partition {partition} tells no offset: {}", describe(error));
                Err(Failure::refused("log-unavailable", detail))
            }
        }
    }
}

/// The first offset of every partition, as far as their leaders tell it by then: asked one after the other, once each.
pub(super) async fn earliest(cluster: &Cluster, name: &str, deadline: Instant) -> HashMap<u32, i64> {
    let mut found = HashMap::new();
    let Ok(topic) = cluster.cached_topic(name, deadline).await else { return found };
    let mut led_by: BTreeMap<i32, Vec<PartitionEpoch>> = BTreeMap::new();
    for partition in 0..topic.partitions.len() as u32 {
        if let Some(leader) = cluster.cached_leader(name, partition) {
            led_by.entry(leader.node).or_default().push(PartitionEpoch { partition, epoch: leader.epoch });
        }
    }
    for (node, led) in led_by {
        let request = list_offsets(name, &led, EARLIEST);
        let Ok(answer) = cluster.call_leader(name, node, &led, &request, deadline).await else { continue };
        let told = answer.topics.into_iter().flat_map(|topic| topic.partitions);
        found.extend(told.filter(|one| one.error_code == 0).map(|one| (one.partition_index as u32, one.offset)));
    }
    found
}

/// Asks for offsets of partitions, each with the leader epoch that is known of it.
fn list_offsets(name: &str, led: &[PartitionEpoch], timestamp: i64) -> ListOffsetsRequest {
    let asked = |PartitionEpoch { partition, epoch }: &PartitionEpoch| {
        ListOffsetsPartition::default()
            .with_partition_index(*partition as i32)
            .with_current_leader_epoch(*epoch)
            .with_timestamp(timestamp)
    };
    let partitions = led.iter().map(asked).collect();
    ListOffsetsRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_isolation_level(READ_COMMITTED)
        .with_topics(vec![ListOffsetsTopic::default().with_name(topic_name(name)).with_partitions(partitions)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::event::Record;

    fn event(offset: i64, bytes: usize) -> Event {
        Event { offset, record: Record::new(None, Some(&vec![b'x'; bytes - 1]), &[], 0) }
    }

    #[test]
    fn what_does_not_fit_is_given_by_the_next_fetches_without_asking_again() {
        let leftovers = FetchBuffer::default();
        // Offsets 3 and 4 hold no event, nor does 9.
        let events = [1, 2, 5, 6, 8].map(|offset| event(offset, 100)).to_vec();
        let fetched = Fetched { events, next: 10, latest: 20 };
        let first = leftovers.split(0, fetched, 250);
        assert_eq!((first.events.len(), first.next), (2, 5));
        assert!(leftovers.take(1, 5).is_none() && leftovers.take(0, 6).is_none(), "another place");
        let second = leftovers.split(0, leftovers.take(0, 5).unwrap(), 1);
        assert_eq!((second.events.len(), second.next, second.latest), (1, 6, 20));
        let third = leftovers.split(0, leftovers.take(0, 6).unwrap(), 1_000);
        assert_eq!((third.events.len(), third.next), (2, 10));
        assert!(leftovers.kept.lock().unwrap().is_empty());
    }

    fn kept_bytes(leftovers: &FetchBuffer) -> usize {
        leftovers.kept.lock().unwrap().iter().map(|leftover| leftover.bytes).sum()
    }

    #[test]
    fn what_one_reader_keeps_has_a_bound() {
        let leftovers = FetchBuffer::default();
        let size = LEFTOVER_BYTES_MAX / 4 - 1024;
        let events = (0..7).map(|offset| event(offset, size)).collect();
        leftovers.split(0, Fetched { events, next: 7, latest: 7 }, size);
        assert!(kept_bytes(&leftovers) <= LEFTOVER_BYTES_MAX);
        let kept = leftovers.take(0, 1).unwrap();
        assert_eq!((kept.events.len(), kept.next), (4, 5), "what is beyond the bound is fetched again");
    }

    #[test]
    fn readers_of_many_partitions_keep_a_share_each() {
        let leftovers = FetchBuffer::default();
        let (readers, size) = (100, 10 * 1024);
        // A batch of 900 KiB each, of which the window has room for one event.
        let fetched = || Fetched { events: (0..90).map(|offset| event(offset, size)).collect(), next: 90, latest: 90 };
        for partition in 0..readers {
            leftovers.split(partition, fetched(), size);
        }
        assert!(kept_bytes(&leftovers) <= LEFTOVER_BYTES_MAX);
        for partition in 0..readers {
            let kept = leftovers.take(partition, 1).expect("nobody's share went to the others");
            assert!(kept.events.len() >= 10, "partition {partition} keeps {} events", kept.events.len());
            assert_eq!(kept.next, 1 + kept.events.len() as i64);
        }
    }

    #[test]
    fn a_share_that_is_not_needed_is_shared_by_the_others() {
        assert_eq!(fair_share(vec![10, 500, 90, 400], 500), 200);
        assert_eq!(fair_share(vec![10, 20], 500), 500);
        assert_eq!(fair_share(vec![], 500), 500);
        assert_eq!(fair_share(vec![7, 7, 7], 10), 3);
    }
}
