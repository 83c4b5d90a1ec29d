//! What a replay would do, counted by reading the range once, before anything is delivered.
//!
//! ```text
//!  stretch of a partition  from ………………………………………… until
//!  settled there           ✓ ✓ ✓ · ✓ · ✓ ✓ ✗✗✗✗✗✗✗✗     ✓ taken, if the selection says so: these are counted
//!                                                 · ✗   not settled as yet: on their way, dispatch delivers them
//!  the replay's own state  watermark, and · ✗ as settled: it begins so, and what it does not settle is what is taken
//! ```

use super::position::show_ms;
use super::range::OffsetRange;
use super::select::{self, Selection, SelectionResult};
use crate::core::event::Event;
use crate::core::progress::{PartitionState, Progress};
use crate::core::text::escaped;
use crate::core::token_bucket::Rate;
use crate::limits;
use crate::log::{FetchError, Log};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// Where a replay of one partition begins and ends, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPlan {
    pub stretch: OffsetRange,
    /// What counts as settled at its beginning: everything in the stretch that is not to be taken, whatever the
    /// selection says.
    pub state: PartitionState,
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub partitions: Vec<PlannedPartition>,
    /// Events that are delivered again.
    pub events: u64,
    pub users: u64,
    /// There are more users than were told apart.
    pub users_at_least: bool,
    /// In the range, but not settled: dispatch delivers them.
    pub on_their_way: u64,
    /// Dead letters that were redriven before, and are left out.
    #[serde(default)]
    pub redriven: u64,
    /// They came from a replay themselves, and are left out.
    pub replayed: u64,
    /// Accepted before or after a range by time, though they are in the log before the last event of the range. They are
    /// left out.
    #[serde(default)]
    pub outside: u64,
    /// After the new position of a rewind or fast-forward to a time, though they were accepted before that time. Dispatch
    /// delivers them too.
    #[serde(default)]
    pub earlier: u64,
    /// Offsets of the range that retention has removed.
    pub removed: u64,
    /// Offsets of the range that are not settled and cannot be read: damaged records.
    #[serde(default)]
    pub unreadable: u64,
    /// Those of them that were accepted first and last.
    pub first: Option<EventSummary>,
    pub last: Option<EventSummary>,
}

/// One partition of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPartition {
    pub partition: u32,
    pub from: i64,
    /// Not part of it.
    pub until: i64,
    pub events: u64,
}

/// One event, so that a person recognizes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSummary {
    pub partition: u32,
    pub offset: i64,
    pub user: Option<String>,
    pub id: String,
    pub timestamp_ms: i64,
}

/// Reads every leg and counts. A `limit` cuts the legs behind the last event that it allows, in their order.
///
/// # Errors
/// The log cannot be read, or is damaged in the range and `skip_damaged` is not set.
pub async fn count(
    log: &dyn Log,
    topic: &str,
    legs: &mut [PartitionPlan],
    selection: &Selection,
    limit: Option<u64>,
    skip_damaged: bool,
) -> anyhow::Result<(Plan, NotFound)> {
    let mut counting = Counting {
        topic,
        selection,
        left: limit.unwrap_or(u64::MAX),
        plan: Plan::default(),
        users: HashSet::new(),
        hasher: RandomState::new(),
        unseen: NotFound { users: selection.users.clone(), ids: selection.ids.clone() },
        first: None,
        last: None,
    };
    for leg in legs {
        counting.leg(log, leg, skip_damaged).await?;
    }
    let (first, last) = [&counting.first, &counting.last].map(|one| one.as_ref().map(|one| counting.place(one))).into();
    let users = counting.users.len() as u64;
    Ok((Plan { first, last, users, ..counting.plan }, counting.unseen))
}

/// What was asked for by name and is not in the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    pub users: BTreeSet<String>,
    pub ids: BTreeSet<String>,
}

struct Counting<'s> {
    topic: &'s str,
    selection: &'s Selection,
    left: u64,
    plan: Plan,
    /// Hashes: two users with the same one are counted as one, which happens to nobody.
    users: HashSet<u64>,
    hasher: RandomState,
    unseen: NotFound,
    /// The earliest and the latest event that is taken, with the time of its acceptance and its partition.
    first: Option<(i64, u32, Event)>,
    last: Option<(i64, u32, Event)>,
}

impl Counting<'_> {
    async fn leg(&mut self, log: &dyn Log, leg: &mut PartitionPlan, skip_damaged: bool) -> anyhow::Result<()> {
        let OffsetRange { partition, from, until, removed } = leg.stretch;
        let settled = Progress::new(&leg.state);
        let mut part = PlannedPartition { partition, from, until, events: 0 };
        self.plan.removed += removed.unsigned_abs();
        let (mut at, mut told_at) = (from, Instant::now());
        let mut inside = MatchedOffsets::default();
        while at < until && self.left > 0 {
            let (events, next) = match read(log, partition, at).await? {
                ReadResult::Events(events, next) => (events, next),
                ReadResult::Damaged { offset, why } if skip_damaged => {
                    tracing::warn!(partition, offset, "left out: {why}");
                    let unread = (at..=offset).filter(|offset| *offset < until && !settled.is_settled(*offset));
                    self.plan.unreadable += unread.count() as u64;
                    (Vec::new(), offset + 1)
                }
                ReadResult::Damaged { why, .. } => bail!("partition {partition}: {why}; --on-gap skip leaves it out"),
            };
            for event in events.iter().take_while(|event| event.offset < until) {
                if self.event(partition, event, &settled, &mut part, &mut inside) && self.left == 0 {
                    part.until = event.offset + 1;
                    break;
                }
            }
            at = next;
            if told_at.elapsed() >= limits::REPLAY_LOG_INTERVAL {
                tracing::info!(partition, offset = at, until, events = self.plan.events + part.events, "planning");
                told_at = Instant::now();
            }
        }
        if self.left == 0 {
            part.until = part.until.min(at.max(from));
        }
        if !self.selection.times.is_unbounded() {
            // The log was read to its end, to look for events of the range behind later ones.
            part.from = inside.from.unwrap_or(from);
            part.until = part.until.min(inside.until.unwrap_or(from));
            self.plan.outside += inside.between;
        }
        leg.stretch = OffsetRange { from: part.from, until: part.until, ..leg.stretch };
        leg.state = leg.state.within(part.from..part.until);
        self.plan.events += part.events;
        self.plan.partitions.push(part);
        Ok(())
    }

    /// Whether it is taken.
    fn event(
        &mut self,
        partition: u32,
        event: &Event,
        settled: &Progress,
        part: &mut PlannedPartition,
        inside: &mut MatchedOffsets,
    ) -> bool {
        let result = self.selection.judge(self.topic, partition, event);
        if self.selection.times.contains(event.record.timestamp_ms) {
            inside.meet(event.offset);
        } else {
            inside.outside += u64::from(result == SelectionResult::OutsideTimes);
            return false;
        }
        if let Some(user) = select::user_of(event).filter(|_| !self.unseen.users.is_empty()) {
            self.unseen.users.remove(user);
        }
        if !self.unseen.ids.is_empty() {
            self.unseen.ids.remove(&select::id_of(self.selection.dead, self.topic, partition, event));
        }
        if result == SelectionResult::NotSelected {
            return false;
        }
        if settled.is_settled(event.offset) {
            self.plan.on_their_way += 1;
            return false;
        }
        if result == SelectionResult::FromReplay {
            self.plan.replayed += 1;
            return false;
        }
        self.left -= 1;
        part.events += 1;
        self.meet(event.record.key().unwrap_or_default());
        let time = select::accepted_ms(self.selection.dead, event);
        if self.first.as_ref().is_none_or(|(earliest, ..)| time < *earliest) {
            self.first = Some((time, partition, event.clone()));
        }
        if self.last.as_ref().is_none_or(|(latest, ..)| time >= *latest) {
            self.last = Some((time, partition, event.clone()));
        }
        true
    }

    fn place(&self, (timestamp_ms, partition, event): &(i64, u32, Event)) -> EventSummary {
        EventSummary {
            partition: *partition,
            offset: event.offset,
            user: event.record.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            id: select::id_of(self.selection.dead, self.topic, *partition, event),
            timestamp_ms: *timestamp_ms,
        }
    }

    fn meet(&mut self, user: &[u8]) {
        if self.users.len() < limits::REPLAY_USERS_COUNTED_MAX {
            self.users.insert(self.hasher.hash_one(user));
        } else if !self.users.contains(&self.hasher.hash_one(user)) {
            self.plan.users_at_least = true;
        }
    }
}

/// The offsets of one partition whose events have a time of the range.
#[derive(Debug, Default)]
struct MatchedOffsets {
    from: Option<i64>,
    /// Not part of it.
    until: Option<i64>,
    /// Selected events with another time, before the last one of the range.
    between: u64,
    /// All of those so far.
    outside: u64,
}

impl MatchedOffsets {
    fn meet(&mut self, offset: i64) {
        self.from.get_or_insert(offset);
        self.until = Some(offset + 1);
        self.between = self.outside;
    }
}

enum ReadResult {
    Events(Vec<Event>, i64),
    Damaged { offset: i64, why: FetchError },
}

/// The next events, asked for again while the log cannot be read.
async fn read(log: &dyn Log, partition: u32, from: i64) -> anyhow::Result<ReadResult> {
    let mut failures = 0;
    loop {
        match log.fetch(partition, from, limits::FETCH_BYTES_MAX, Duration::ZERO).await {
            Ok(fetched) if fetched.next > from => return Ok(ReadResult::Events(fetched.events, fetched.next)),
            // MatchedOffsets the log there is always more: a broker may need a moment to say so.
            Ok(_) if failures >= limits::REPLAY_READ_TRIES_MAX => {
                bail!("partition {partition} gives nothing at offset {from}, where the log has not ended")
            }
            Err(error @ FetchError::Unavailable(_)) if failures >= limits::REPLAY_READ_TRIES_MAX => {
                return Err(error).context("the log cannot be read");
            }
            Ok(_) | Err(FetchError::Unavailable(_)) => {
                failures += 1;
                tokio::time::sleep(limits::REPLAY_READ_AGAIN_AFTER).await;
            }
            Err(why @ FetchError::Corrupt { offset, .. }) => return Ok(ReadResult::Damaged { offset, why }),
            Err(why @ FetchError::OutOfRange { earliest, .. }) if earliest > from => {
                // Retention went on while we read.
                return Ok(ReadResult::Damaged { offset: earliest - 1, why });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Plan {
    /// Events and partitions as a person reads them. `what` and `to` say what is replayed where.
    pub fn text<'p>(&'p self, what: &'p str, to: &'p str, pace: Pace) -> impl fmt::Display + 'p {
        PlanText { plan: self, what, to, pace }
    }
}

/// How fast the events of a plan are delivered.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    Limited(Rate),
    /// As fast as the destination takes them.
    Unlimited,
    /// Only the position is moved: dispatch delivers the events, or leaves them out.
    Moved,
}

struct PlanText<'p> {
    plan: &'p Plan,
    what: &'p str,
    to: &'p str,
    pace: Pace,
}

impl fmt::Display for PlanText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, what, to, pace } = self;
        match pace {
            Pace::Limited(_) | Pace::Unlimited => {
                writeln!(f, "replay of {}\n    to {}\n", escaped(what), escaped(to))?;
            }
            Pace::Moved => writeln!(f, "move of the position: {}\n", escaped(what))?,
        }
        writeln!(f, "  {:>9}  {:>12}  {:>12}  {:>12}", "partition", "from", "until", "events")?;
        for part in &plan.partitions {
            writeln!(f, "  {:>9}  {:>12}  {:>12}  {:>12}", part.partition, part.from, part.until, part.events)?;
        }
        let at_least = if plan.users_at_least { "more than " } else { "" };
        writeln!(f, "\n  events   {}, of {at_least}{} users", plan.events, plan.users)?;
        if let (Some(first), Some(last)) = (&plan.first, &plan.last) {
            let span = Duration::from_millis(last.timestamp_ms.abs_diff(first.timestamp_ms));
            writeln!(f, "  accepted in {}", humantime::format_duration(whole(span)))?;
        }
        for (name, place) in [("first", &plan.first), ("last", &plan.last)] {
            if let Some(EventSummary { partition, offset, user, id, timestamp_ms }) = place {
                let (user, id) = (escaped(user.as_deref().unwrap_or("(no user)")), escaped(id));
                writeln!(f, "  {name:<8} {}  {user}  p{partition}:{offset}  {id}", show_ms(*timestamp_ms))?;
            }
        }
        let left_out = [
            (plan.on_their_way, "not settled as yet: they are on their way, and left out"),
            (plan.redriven, "were redriven before, and are left out (--again takes them)"),
            (plan.replayed, "came from a replay, and are left out (--again takes them)"),
            (plan.outside, "between them were accepted before or after the range, and are left out"),
            (plan.earlier, "after the position were accepted before that time: dispatch delivers them too"),
            (plan.removed, "offsets were removed by retention"),
            (plan.unreadable, "offsets cannot be read"),
        ];
        for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
            writeln!(f, "  besides  {count} {what}")?;
        }
        match pace {
            Pace::Limited(rate) => {
                let time = humantime::format_duration(whole(rate.time_of(plan.events)));
                writeln!(f, "  takes    {time} at {rate}")
            }
            Pace::Unlimited => writeln!(f, "  takes    as long as the destination does: there is no --rate"),
            Pace::Moved => writeln!(f, "  takes    a moment, since only the position is moved"),
        }
    }
}

/// To the second where it is one: nobody plans in milliseconds.
fn whole(duration: Duration) -> Duration {
    if duration < Duration::from_secs(1) {
        return Duration::from_millis(duration.as_millis() as u64);
    }
    Duration::from_secs(duration.as_secs())
}

/// What one run of a replay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryCounts {
    pub delivered: u64,
    /// Kept as dead letters.
    pub given_up: u64,
    /// Attempts that failed.
    pub failed: u64,
}

impl DeliveryCounts {
    /// Of two runs together.
    pub fn and(self, other: Self) -> Self {
        Self {
            delivered: self.delivered + other.delivered,
            given_up: self.given_up + other.given_up,
            failed: self.failed + other.failed,
        }
    }

    pub fn settled(self) -> u64 {
        self.delivered + self.given_up
    }
}
