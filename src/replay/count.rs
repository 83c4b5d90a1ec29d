//! Counts the events of a plan. Reads the range once, before anything is delivered.

use super::plan::{EventSummary, ParkedInPlan, PartitionPlan, Plan, PlannedPartition};
use super::range::OffsetRange;
use super::select::{self, Selection, SelectionResult};
use super::{LOG_INTERVAL, RETRIES_MAX, RETRY_DELAY};
use crate::core::event::Event;
use crate::core::progress::{ParkedEvents, Progress};
use crate::limits::FETCH_BYTES_MAX;
use crate::log::{FetchError, Log};
use anyhow::{Context, bail};
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// Users that a plan tells apart, which takes 16 MB. Beyond it the plan says "more than".
const USERS_COUNTED_MAX: usize = 1_000_000;

/// What the operator named and the range does not contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    pub users: BTreeSet<String>,
    pub ids: BTreeSet<String>,
}

/// Reads every partition and counts. With a `limit`, each partition's range is cut after the last event that the limit
/// allows, in the order of the partitions. A range by time is narrowed to the offsets that have events of that time.
///
/// # Errors
/// The log cannot be read, or it is damaged in the range and `skip_damaged` is not set.
pub async fn count(
    log: &dyn Log,
    topic: &str,
    partitions: &mut [PartitionPlan],
    selection: &Selection,
    limit: Option<u64>,
    skip_damaged: bool,
) -> anyhow::Result<(Plan, NotFound)> {
    let mut counter = Counter {
        topic,
        selection,
        remaining: limit.unwrap_or(u64::MAX),
        plan: Plan::default(),
        users: UserCounter::default(),
        not_found: NotFound { users: selection.users.clone(), ids: selection.ids.clone() },
        first: None,
        last: None,
    };
    for partition in partitions {
        counter.count_partition(log, partition, skip_damaged).await?;
    }
    Ok(counter.finish())
}

struct Counter<'s> {
    topic: &'s str,
    selection: &'s Selection,
    /// Events that the limit still allows.
    remaining: u64,
    plan: Plan,
    users: UserCounter,
    not_found: NotFound,
    /// The selected events that were accepted first and last.
    first: Option<AcceptedEvent>,
    last: Option<AcceptedEvent>,
}

struct AcceptedEvent {
    accepted_ms: i64,
    partition: u32,
    event: Event,
}

impl Counter<'_> {
    async fn count_partition(
        &mut self,
        log: &dyn Log,
        partition_plan: &mut PartitionPlan,
        skip_damaged: bool,
    ) -> anyhow::Result<()> {
        let OffsetRange { partition, from, until, removed } = partition_plan.offsets;
        let settled = PlanFilter::new(partition_plan);
        let mut planned = PlannedPartition { partition, from, until, events: 0 };
        let mut in_times = OffsetsInTimes::default();
        let (mut next_offset, mut logged_at) = (from, Instant::now());
        self.plan.removed += removed.unsigned_abs();
        while next_offset < until && self.remaining > 0 {
            let (events, next) = match fetch(log, partition, next_offset).await? {
                Fetch::Events { events, next } => (events, next),
                Fetch::Damaged { offset, why } if skip_damaged => {
                    tracing::warn!(partition, offset, "left out: {why}");
                    let unsettled =
                        (next_offset..=offset).filter(|at| *at < until && !settled.progress.is_settled(*at));
                    self.plan.unreadable += unsettled.count() as u64;
                    (Vec::new(), offset + 1)
                }
                Fetch::Damaged { why, .. } => bail!("partition {partition}: {why}. Use --on-gap skip to leave it out"),
            };
            for event in events.iter().take_while(|event| event.offset < until) {
                let is_selected = self.count_event(event, &settled, &mut planned, &mut in_times);
                if is_selected && self.remaining == 0 {
                    planned.until = event.offset + 1;
                    break;
                }
            }
            next_offset = next;
            if logged_at.elapsed() >= LOG_INTERVAL {
                let events = self.plan.events + planned.events;
                tracing::info!(partition, offset = next_offset, until, events, "planning: counting events");
                logged_at = Instant::now();
            }
        }
        if self.remaining == 0 {
            planned.until = planned.until.min(next_offset.max(from));
        }
        if !self.selection.times.is_unbounded() {
            // The log was read to its end, to find events of the range that come after later ones.
            planned.from = in_times.from.unwrap_or(from);
            planned.until = planned.until.min(in_times.until.unwrap_or(from));
            self.plan.outside += in_times.outside_before_last;
        }
        partition_plan.offsets = OffsetRange { from: planned.from, until: planned.until, ..partition_plan.offsets };
        partition_plan.initial_state = partition_plan.initial_state.within(planned.from..planned.until);
        self.plan.events += planned.events;
        self.plan.partitions.push(planned);
        Ok(())
    }

    /// Counts one event, and answers whether the replay delivers it.
    fn count_event(
        &mut self,
        event: &Event,
        settled: &PlanFilter,
        planned: &mut PlannedPartition,
        in_times: &mut OffsetsInTimes,
    ) -> bool {
        let partition = planned.partition;
        let result = self.selection.check(self.topic, partition, event);
        if self.selection.times.contains(event.record.timestamp_ms) {
            in_times.add(event.offset);
        } else {
            in_times.outside += u64::from(result == SelectionResult::OutsideTimes);
            return false;
        }
        self.mark_found(partition, event);
        if result == SelectionResult::NotSelected {
            return false;
        }
        if settled.excludes(event) {
            self.plan.on_their_way += 1;
            return false;
        }
        if result == SelectionResult::FromReplay {
            self.plan.replayed += 1;
            return false;
        }
        self.remaining -= 1;
        planned.events += 1;
        self.users.add(event.record.key().unwrap_or_default());
        let accepted_ms = select::accepted_ms(self.selection.dead, event);
        let accepted = || Some(AcceptedEvent { accepted_ms, partition, event: event.clone() });
        if self.first.as_ref().is_none_or(|first| accepted_ms < first.accepted_ms) {
            self.first = accepted();
        }
        if self.last.as_ref().is_none_or(|last| accepted_ms >= last.accepted_ms) {
            self.last = accepted();
        }
        true
    }

    fn mark_found(&mut self, partition: u32, event: &Event) {
        if let Some(user) = select::user_of(event).filter(|_| !self.not_found.users.is_empty()) {
            self.not_found.users.remove(user);
        }
        if !self.not_found.ids.is_empty() {
            self.not_found.ids.remove(&select::id_of(self.selection.dead, self.topic, partition, event));
        }
    }

    fn summarize(&self, accepted: &AcceptedEvent) -> EventSummary {
        let AcceptedEvent { accepted_ms, partition, event } = accepted;
        EventSummary {
            partition: *partition,
            offset: event.offset,
            user: event.record.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            id: select::id_of(self.selection.dead, self.topic, *partition, event),
            timestamp_ms: *accepted_ms,
        }
    }

    fn finish(self) -> (Plan, NotFound) {
        let first = self.first.as_ref().map(|event| self.summarize(event));
        let last = self.last.as_ref().map(|event| self.summarize(event));
        let (users, users_at_least) = (self.users.hashes.len() as u64, self.users.is_full);
        (Plan { first, last, users, users_at_least, ..self.plan }, self.not_found)
    }
}

/// Which events of a partition the plan is not about.
struct PlanFilter {
    progress: Progress,
    parked_events: ParkedEvents,
    parked: ParkedInPlan,
}

impl PlanFilter {
    fn new(plan: &PartitionPlan) -> Self {
        let parked_events = ParkedEvents::of(&plan.initial_state.users);
        Self { progress: Progress::new(&plan.initial_state), parked_events, parked: plan.parked }
    }

    fn excludes(&self, event: &Event) -> bool {
        if self.parked_events.contains(event.record.key(), event.offset) {
            return self.parked == ParkedInPlan::LeftOut;
        }
        // The initial state counts as settled what must not be delivered.
        self.progress.is_settled(event.offset)
    }
}

/// Counts different users with bounded memory.
#[derive(Default)]
struct UserCounter {
    /// Two users with the same hash count as one. With 64 bits that practically does not happen.
    hashes: HashSet<u64>,
    hasher: RandomState,
    /// There are more users than can be counted.
    is_full: bool,
}

impl UserCounter {
    fn add(&mut self, user: &[u8]) {
        let hash = self.hasher.hash_one(user);
        if self.hashes.len() < USERS_COUNTED_MAX {
            self.hashes.insert(hash);
        } else if !self.hashes.contains(&hash) {
            self.is_full = true;
        }
    }
}

/// The offsets of one partition whose events were accepted within the times of the range.
#[derive(Debug, Default)]
struct OffsetsInTimes {
    from: Option<i64>,
    /// The first offset after them.
    until: Option<i64>,
    /// Selected events with a time outside the range, so far.
    outside: u64,
    /// Those of them that come before the last event of the range. The others do not concern the operator.
    outside_before_last: u64,
}

impl OffsetsInTimes {
    fn add(&mut self, offset: i64) {
        self.from.get_or_insert(offset);
        self.until = Some(offset + 1);
        self.outside_before_last = self.outside;
    }
}

enum Fetch {
    Events {
        events: Vec<Event>,
        /// The offset at which the next fetch starts.
        next: i64,
    },
    Damaged {
        offset: i64,
        why: FetchError,
    },
}

/// Fetches the next events. Tries again, a bounded number of times, if the log cannot be read.
async fn fetch(log: &dyn Log, partition: u32, from: i64) -> anyhow::Result<Fetch> {
    let mut failures = 0;
    loop {
        match log.fetch(partition, from, FETCH_BYTES_MAX, Duration::ZERO).await {
            Ok(fetched) if fetched.next > from => {
                return Ok(Fetch::Events { events: fetched.events, next: fetched.next });
            }
            // The log does not end here, so there must be more. A broker may need a moment to say so.
            Ok(_) if failures >= RETRIES_MAX => {
                bail!("partition {partition} returns no events at offset {from}, which is not the end of the log")
            }
            Err(error @ FetchError::Unavailable(_)) if failures >= RETRIES_MAX => {
                return Err(error).context("cannot read the log");
            }
            Ok(_) | Err(FetchError::Unavailable(_)) => {
                failures += 1;
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Err(why @ FetchError::Corrupt { offset, .. }) => return Ok(Fetch::Damaged { offset, why }),
            // Retention has removed these offsets since the range was resolved.
            Err(why @ FetchError::OutOfRange { earliest, .. }) if earliest > from => {
                return Ok(Fetch::Damaged { offset: earliest - 1, why });
            }
            Err(error) => return Err(error.into()),
        }
    }
}
