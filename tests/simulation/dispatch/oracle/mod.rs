//! Checks the promises, independently of the code under test.
//!
//! The oracle is told everything that passes between dispatch and the world (log, group, destination), at the moment
//! when it takes effect. It has no lanes and no clock. It knows everything that happened, and compares.
//!
//! ```text
//!   log ── appended, fetched ─▶ ┌────────┐ ◀─ started, acknowledged, reported ── destination
//!   dead topic ── given up ───▶ │ oracle │ ◀─ assigned, revoked, lost, released, committed ── group
//!                               └────────┘ ──▶ the first violation, in words
//! ```
//!
//! *Settled* is strict: an owner got the answer "delivered", or the dead letter is stored. If the destination accepted
//! an event but the answer was lost, the event is not settled, and dispatch must not count on it.

mod deliveries;
mod ended_tries;
mod failed_batches;
mod give_ups;
mod refusals;
mod replayed;
mod timing;
mod truth;

pub(crate) use deliveries::DeliveredRun;
pub(crate) use ended_tries::TriesEnded;
pub(crate) use timing::{BackoffRule, ControlView, Cursor, TimingRules};

use crate::dispatch::outage_rules::{Failures, Health, Phase};
use eventd::core::control::UserAction;
use eventd::core::event::{Event, Record};
use eventd::core::progress::{FailedHead, OffsetReset, PartitionState, ResetTarget};
use eventd::core::tries::OnExhausted;
use eventd::destination::BatchLimits;
use failed_batches::FailedBatches;
use give_ups::GiveUps;
use refusals::Refusals;
use replayed::ReplayView;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use timing::{Began, Memory, Timing};
use truth::Attempted;

/// One life of a process, from its start to its end or crash.
pub(crate) type Life = u32;
/// A user, or all events without a key, which share one lane for each partition.
pub(crate) type User = Option<Vec<u8>>;

/// What the configuration promises, in numbers.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) attempts: u32,
    pub(crate) give_up_after: Option<Duration>,
    pub(crate) on_exhausted: OnExhausted,
    pub(crate) window_events: usize,
    pub(crate) window_bytes: usize,
    pub(crate) concurrency: usize,
    /// Events in flight of one process.
    pub(crate) in_flight_events: usize,
    pub(crate) limits: BatchLimits,
    pub(crate) retry_after_max: Duration,
    pub(crate) drain: Duration,
    pub(crate) commit_interval: Duration,
    pub(crate) backoff: BackoffRule,
    /// Events in one answer of the log.
    pub(crate) fetch_events_max: usize,
    /// How long a call of the log may take that does not wait for an event.
    pub(crate) call_max: Duration,
    /// Users that one process parks.
    pub(crate) parked_users_max: usize,
    /// Whether the list of parked users may be full.
    pub(crate) may_list_be_full: bool,
    /// Whether every call of the log and of the group is answered, and quickly.
    pub(crate) is_calm: bool,
    /// Whether users are parked. Then events that were read need not be in memory, so nothing is judged that depends on it.
    pub(crate) may_park: bool,
    /// Whether a destination without a commit starts at the end of the log.
    pub(crate) start_latest: bool,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    user: User,
    /// The index of this event among its user's events in this partition.
    index: usize,
    appended: Duration,
    settled: Option<Duration>,
    /// When an attempt failed first, of any owner.
    first_failed: Option<Duration>,
    dead: bool,
    delivered: bool,
    trimmed: bool,
    /// Whether a rewind covers it. A late dead letter from before then settles nothing.
    again: bool,
}

#[derive(Debug, Default)]
struct Partition {
    entries: BTreeMap<i64, Entry>,
    latest: i64,
    /// The offsets of each user in order, and how many of the first ones are settled.
    users: HashMap<User, (Vec<i64>, usize)>,
    committed: Option<PartitionState>,
    /// The requested offset resets. The last one must be applied, but an owner may have read an earlier one just
    /// before.
    resets: Vec<OffsetReset>,
}

/// One ownership of one partition by one life.
#[derive(Debug, Default)]
struct Ownership {
    /// Distinguishes this ownership from an earlier one of the same life.
    number: u64,
    began_with: Option<PartitionState>,
    released: bool,
    /// Whether it was released before its owner was told to stop. Then its open work is not part of the stop.
    released_before_the_stop: bool,
    lost: Option<Duration>,
    /// For each user, the last offset for which an attempt was started.
    last_started: HashMap<User, i64>,
    /// Offsets whose delivery was reported, or whose dead letter was acknowledged, to this owner.
    done: HashMap<i64, Duration>,
    /// When its owner was first told to drain, by the group or by a stop. `--drain` counts from then.
    revoked_at: Option<Duration>,
    failures: HashMap<i64, Failures>,
    /// What the dead letter of each event has to say.
    attempted: HashMap<i64, Attempted>,
    /// No attempt at this offset may begin before this time, because the destination answered "busy" or `Retry-After`.
    not_before: HashMap<i64, Duration>,
    /// Batches that failed as a whole.
    failed_batches: FailedBatches,
    gave_up: HashSet<i64>,
    /// Events whose tries may have ended with their last failure, at this time. (Only if they are not dead letters then.)
    may_have_ended: HashMap<i64, Duration>,
    /// Events whose tries begin anew with this owner, because an operator released their user.
    begun_anew: HashSet<i64>,
    /// Refused while others were plainly served. These must be given up without another try.
    refused_for_good: HashSet<i64>,
    /// A copy of every record that was fetched and may still be in memory.
    fetched: Vec<(i64, Record)>,
}

#[derive(Debug)]
struct Attempt {
    life: Life,
    partition: u32,
    ownership: u64,
    began: Duration,
    /// The phase of an outage in which it began.
    phase: Option<Phase>,
    /// How long dispatch waits for its answer.
    until: Duration,
    runs: Vec<Vec<i64>>,
}

/// Counts what happened, because a run in which little happened proves little.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) events: u64,
    pub(crate) attempts: u64,
    pub(crate) delivered: u64,
    pub(crate) redelivered: u64,
    pub(crate) failed_batches: u64,
    pub(crate) failed: u64,
    pub(crate) dead_letters: u64,
    pub(crate) given_up_by_operators: u64,
    pub(crate) dropped: u64,
    pub(crate) commits: u64,
    pub(crate) with_settled_map: u64,
    /// The most parked users in a commit during an outage.
    pub(crate) parked_in_outage_max: u64,
    pub(crate) outages_evident: u64,
    pub(crate) moved: u64,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    rules: Rules,
    partitions: Vec<Partition>,
    owned: HashMap<(Life, u32), Ownership>,
    attempts: BTreeMap<u64, Attempt>,
    next_attempt: u64,
    ownerships: u64,
    health: Health,
    refusals: Refusals,
    /// Users that an operator released, or wanted to be tried again.
    released: HashSet<(u32, User)>,
    give_ups: GiveUps,
    /// For a replay, how its events look.
    replay_view: Option<ReplayView>,
    /// The rules about time. A replay has none: its rate holds it back.
    timing: Option<Timing>,
    pub(crate) counts: Counts,
    violation: Option<String>,
}

impl Oracle {
    pub(crate) fn new(rules: Rules, partitions: u32) -> Self {
        let timing = Timing::new(TimingRules {
            attempts: rules.attempts,
            give_up_after: rules.give_up_after,
            backoff: rules.backoff,
            retry_after_max: rules.retry_after_max,
            concurrency: rules.concurrency,
            in_flight_events: rules.in_flight_events,
            takes_many_users: rules.limits.runs_max > 1,
            window_events: rules.window_events,
            window_bytes: rules.window_bytes,
            commit_interval: rules.commit_interval,
            fetch_events_max: rules.fetch_events_max,
            call_max: rules.call_max,
            may_list_be_full: rules.may_list_be_full,
            is_calm: rules.is_calm,
            drops: rules.on_exhausted == OnExhausted::Drop,
        });
        Self {
            rules,
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            owned: HashMap::new(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            ownerships: 0,
            health: Health::default(),
            refusals: Refusals::default(),
            released: HashSet::new(),
            give_ups: GiveUps::default(),
            replay_view: None,
            timing: Some(timing),
            counts: Counts::default(),
            violation: None,
        }
    }

    /// The first broken promise.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Records a violation. Later ones may be consequences of the first, so only that one counts.
    pub(crate) fn fail(&mut self, what: impl Into<String>) {
        self.violation.get_or_insert_with(|| what.into());
    }

    pub(crate) fn appended(&mut self, partition: u32, offset: i64, record: &Record, now: Duration) {
        let part = &mut self.partitions[partition as usize];
        assert!(offset >= part.latest, "the in-memory log is wrong: offsets must grow");
        let user: User = record.key().map(<[u8]>::to_vec);
        let (offsets, _) = part.users.entry(user.clone()).or_default();
        let index = offsets.len();
        offsets.push(offset);
        part.latest = offset + 1;
        let record = record.clone();
        part.entries.insert(
            offset,
            Entry {
                record,
                user,
                index,
                appended: now,
                settled: None,
                first_failed: None,
                dead: false,
                delivered: false,
                trimmed: false,
                again: false,
            },
        );
        self.counts.events += 1;
    }

    /// Offsets below `latest` were used, some without a record.
    pub(crate) fn passed(&mut self, partition: u32, latest: i64) {
        let part = &mut self.partitions[partition as usize];
        part.latest = part.latest.max(latest);
    }

    /// Retention removed everything below, and the destination is configured to skip it.
    pub(crate) fn trimmed(&mut self, partition: u32, earliest: i64, now: Duration) {
        let offsets: Vec<i64> =
            self.partitions[partition as usize].entries.range(..earliest).map(|(o, _)| *o).collect();
        for offset in offsets {
            self.settle(partition, offset, now);
            self.partitions[partition as usize].entries.get_mut(&offset).expect("it is in the log").trimmed = true;
        }
        if let Some(timing) = &mut self.timing {
            timing.trimmed(partition, earliest);
        }
    }

    /// A fetch begins. Of the events that were fetched before, those are in memory of which dispatch has copies. The window
    /// bounds them, except for one event, and of the two cursors that fetch, the other one may have one answer that is not
    /// admitted yet.
    pub(crate) fn fetch(
        &mut self,
        life: Life,
        partition: u32,
        cursor: Cursor,
        (from, max_bytes): (i64, usize),
        now: Duration,
    ) {
        self.look_at_memory(now);
        if let Some(wrong) = self.timing.as_mut().and_then(|timing| timing.fetch(life, partition, cursor, now)) {
            self.fail(format!("life {life}, partition {partition}: {wrong}"));
        }
        let Some(owned) = self.owned.get_mut(&(life, partition)) else {
            return self.fail(format!("life {life} fetches partition {partition}, which it does not own"));
        };
        owned.fetched.retain(|(_, record)| record.copies() > 1);
        let events = owned.fetched.len();
        if events > self.rules.window_events + 1 + self.rules.fetch_events_max {
            self.fail(format!("life {life} fetches partition {partition} from {from} with {events} events in memory"));
        } else if max_bytes == 0 || max_bytes > self.rules.window_bytes.max(1) {
            self.fail(format!("life {life} fetches {max_bytes} bytes, its window is {}", self.rules.window_bytes));
        }
    }

    pub(crate) fn fetched(&mut self, life: Life, partition: u32, cursor: Cursor, events: &[Event], now: Duration) {
        self.look_at_memory(now);
        let part = &self.partitions[partition as usize];
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            let claimed = |o| owned.began_with.as_ref().is_some_and(|state| part.claims(state, o));
            owned.fetched.extend(events.iter().map(|event| (event.offset, event.record.clone())));
            if let Some(timing) = &mut self.timing {
                timing.fetched(life, partition, cursor, events.iter().filter(|event| !claimed(event.offset)), now);
            }
            self.look_at_memory(now);
        }
    }

    /// A fetch failed. `for_good` says that nothing can be read at this offset.
    pub(crate) fn fetch_failed(&mut self, life: Life, partition: u32, cursor: Cursor, for_good: bool, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.fetch_failed(life, partition, cursor, for_good, now);
        }
        if for_good {
            // The partition begins again from its commit, which does not contain first refusals.
            self.refusals.doubt(life);
        }
    }

    /// Looks for work that could have been done and was not.
    pub(crate) fn look(&mut self, now: Duration) {
        self.look_at_memory(now);
        if let Some(wrong) = self.timing.as_ref().and_then(|timing| timing.look(now)) {
            self.fail(wrong);
        }
    }

    /// Tells the rules about time what is in memory, if parked users may have events that are not.
    fn look_at_memory(&mut self, now: Duration) {
        let Some(timing) = self.timing.as_mut().filter(|_| self.rules.may_park) else { return };
        for ((life, partition), owned) in &mut self.owned {
            owned.fetched.retain(|(_, record)| record.copies() > 1);
            let events = owned.fetched.iter().map(|(offset, record)| (*offset, record.window_bytes())).collect();
            timing.remembers(*life, *partition, Memory { events }, now);
        }
    }

    fn settle(&mut self, partition: u32, offset: i64, now: Duration) {
        let part = &mut self.partitions[partition as usize];
        let entry = part.entries.get_mut(&offset).expect("only what is in the log is settled");
        entry.settled.get_or_insert(now);
        let (offsets, settled) = part.users.get_mut(&entry.user).expect("the user of an event");
        while offsets.get(*settled).is_some_and(|offset| part.entries[offset].settled.is_some()) {
            *settled += 1;
        }
    }

    pub(crate) fn assigned(&mut self, life: Life, partition: u32, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.assigned(life, partition, now);
        }
        self.ownerships += 1;
        self.owned.insert((life, partition), Ownership { number: self.ownerships, ..Ownership::default() });
    }

    /// What the group answered when the owner asked for its start.
    pub(crate) fn began_with(&mut self, life: Life, partition: u32, state: Option<PartitionState>, now: Duration) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            // A stopped partition starts again under the same ownership.
            let Ownership { number, released_before_the_stop, lost, revoked_at, .. } = *owned;
            let began_with = state;
            *owned =
                Ownership { number, began_with, released_before_the_stop, lost, revoked_at, ..Ownership::default() };
            self.timing_begins(life, partition, now);
        }
    }

    /// What operators have commanded in this partition.
    pub(crate) fn controlled(&mut self, partition: u32, view: ControlView, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.controlled(partition, view, now);
        }
    }

    /// An operator wants this user to be tried now. This is told when the command is given, and when a commit covers it.
    pub(crate) fn loosened(&mut self, partition: u32, user: &User, command: (&UserAction, Duration), now: Duration) {
        self.released.insert((partition, user.clone()));
        if let Some(timing) = &mut self.timing {
            timing.loosened(partition, user, command, now);
        }
    }

    /// The rules about time start anew with this ownership.
    fn timing_begins(&mut self, life: Life, partition: u32, now: Duration) {
        let Some(owned) = self.owned.get(&(life, partition)) else { return };
        let wanted = self.partitions[partition as usize].resets.last();
        let is_reset = wanted.is_none_or(|wanted| owned.began_with.as_ref().is_some_and(|state| !state.lacks(wanted)));
        let is_closing = owned.lost.is_some() || owned.revoked_at.is_some() || !is_reset;
        if let Some(timing) = &mut self.timing {
            let state = owned.began_with.as_ref();
            let in_log = state.map_or_else(Vec::new, |state| self.partitions[partition as usize].parked_below(state));
            let began = Began { state, in_log, may_park: self.rules.may_park };
            timing.began((life, partition), owned.number, is_closing, began, now);
        }
    }

    fn closes(&mut self, which: impl Fn(Life, u32) -> bool) {
        if let Some(timing) = &mut self.timing {
            timing.closes(which);
        }
    }

    /// No heartbeat of this life arrives from now on.
    pub(crate) fn cut_off(&mut self, life: Life) {
        self.closes(|of, _| of == life);
        if let Some(timing) = &mut self.timing {
            timing.set_cut_off(life, true);
        }
    }

    pub(crate) fn reconnected(&mut self, life: Life) {
        if let Some(timing) = &mut self.timing {
            timing.set_cut_off(life, false);
        }
    }

    pub(crate) fn lost(&mut self, life: Life, partition: u32, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.released(life, partition, now);
        }
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.lost.get_or_insert(now);
        }
    }

    /// The owner was told to drain.
    pub(crate) fn revoked(&mut self, life: Life, partition: u32, now: Duration) {
        self.closes(|of, at| (of, at) == (life, partition));
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.revoked_at.get_or_insert(now);
        }
    }

    /// The membership ended, so the life owns nothing any more.
    pub(crate) fn lost_all(&mut self, life: Life, now: Duration) {
        self.closes(|of, _| of == life);
        for ((_, _), owned) in self.owned.iter_mut().filter(|((of, _), _)| *of == life) {
            owned.lost.get_or_insert(now);
        }
    }

    /// The owner released the partition in order. `commit_must_hold` says that no commit was made to fail since then,
    /// so everything that was reported to the owner must be committed.
    pub(crate) fn released(&mut self, life: Life, partition: u32, commit_must_hold: bool, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.released(life, partition, now);
        }
        if let Some(id) = self.in_flight(|a| a.life == life && a.partition == partition) {
            self.fail(format!("life {life} released partition {partition} with attempt {id} in flight"));
        }
        let Some(owned) = self.owned.get_mut(&(life, partition)) else { return };
        owned.released = true;
        // A report after the end of `--drain` comes too late: the next owner delivers that event again.
        let until = owned.revoked_at.map(|at| at + self.rules.drain);
        if commit_must_hold {
            self.done_is_committed(life, partition, "a release", until);
        }
    }

    /// Checks that the stored state has everything that was reported as done to this owner before `until`.
    fn done_is_committed(&mut self, life: Life, partition: u32, after: &str, until: Option<Duration>) {
        let Some(owned) = self.owned.get(&(life, partition)) else { return };
        let part = &self.partitions[partition as usize];
        let committed = part.committed.as_ref();
        let known = owned.done.iter().filter(|(_, at)| until.is_none_or(|until| **at < until)).map(|(o, _)| *o);
        let missing = known.filter(|o| !committed.is_some_and(|state| part.claims(state, *o))).min();
        if let Some(missing) = missing {
            self.fail(format!("after {after} of life {life} partition {partition} does not hold {missing} as settled"));
        }
    }

    pub(crate) fn commit_ended(&mut self, life: Life, partition: u32, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.commit_ended(life, partition, now);
        }
    }

    /// Called before the group judges a commit: a released partition must not be committed.
    pub(crate) fn commit_tried(&mut self, life: Life, partition: u32, now: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.commit_begun(life, partition);
        }
        match self.owned.get(&(life, partition)) {
            None => self.fail(format!("life {life} commits partition {partition}, which it never owned")),
            Some(owned) if owned.released => {
                self.fail(format!("life {life} commits partition {partition} after it released it"));
            }
            Some(owned) if owned.lost.is_some_and(|at| at < now) => {
                self.fail(format!("life {life} commits partition {partition} after it lost it"));
            }
            Some(_) => {}
        }
    }

    /// An operator requests an offset reset.
    pub(crate) fn reset_requested(&mut self, partition: u32, wanted: OffsetReset) {
        self.closes(|_, of| of == partition);
        self.partitions[partition as usize].resets.push(wanted);
    }

    /// A commit is stored, by a life or for an operator. It must not claim unsettled events. It may only take back a
    /// claim if a requested reset says so, and only once.
    pub(crate) fn committed(&mut self, by: Option<Life>, partition: u32, state: &PartitionState, now: Duration) {
        self.counts.commits += 1;
        self.counts.with_settled_map += u64::from(!state.settled.is_empty());
        if self.health.phase().is_some() {
            let parked = state.users.values().filter(|user| user.parked.is_some()).count() as u64;
            self.counts.parked_in_outage_max = self.counts.parked_in_outage_max.max(parked);
        }
        if let Some(life) = by {
            self.has_committed_dropped(life, partition, state, now);
        }
        let part = &mut self.partitions[partition as usize];
        if part.committed.is_none() && self.rules.start_latest && state.settled.is_empty() {
            let behind: Vec<i64> = part.entries.range(..state.watermark).map(|(offset, _)| *offset).collect();
            for offset in behind {
                self.settle(partition, offset, Duration::ZERO);
            }
        }
        let before = self.partitions[partition as usize].committed.clone();
        let parked = |state: &PartitionState| state.users.values().filter(|user| user.parked.is_some()).count();
        let (had, has) = (before.as_ref().map_or(0, parked), parked(state));
        // An owner keeps the users that it was assigned with, however many they are.
        if self.rules.may_park && has > had.max(self.rules.parked_users_max) {
            self.fail(format!("a commit of partition {partition} parks {has} users, the one before {had}: {state:?}"));
        }
        let mut keeps_below = i64::MAX;
        if state.last_reset != before.as_ref().and_then(|state| state.last_reset) {
            match self.moved(by, partition, state, now) {
                Ok(ResetTarget::Back(to)) => keeps_below = to,
                Ok(ResetTarget::Ahead(_)) => {}
                Err(wrong) => self.fail(format!("a commit of partition {partition}: {wrong}: {state:?}")),
            }
        }
        let part = &mut self.partitions[partition as usize];
        let end = state.settled.last().map_or(state.watermark, |range| range.end);
        let unsettled = part.entries.iter().find(|(o, entry)| entry.settled.is_none() && part.claims(state, **o));
        let wrong = if end > part.latest {
            Some(format!("a commit of partition {partition} reaches to {end}, past the end {}", part.latest))
        } else if let Some((offset, _)) = unsettled {
            Some(format!("a commit of partition {partition} claims {offset}, which is not settled: {state:?}"))
        } else {
            let claimed = |old: &PartitionState| {
                // What retention has removed was settled only because it is not there any more.
                let kept = part.entries.range(..keeps_below).filter(|(_, entry)| !entry.trimmed);
                kept.map(|(o, _)| *o).find(|o| part.claims(old, *o) && !part.claims(state, *o))
            };
            let offset = before.as_ref().and_then(claimed);
            offset.map(|o| format!("a commit of partition {partition} takes back {o}, which was settled: {state:?}"))
        };
        part.committed = Some(state.clone());
        if let Some(timing) = &mut self.timing {
            timing.committed(partition, state);
        }
        if let Some(wrong) = wrong {
            self.fail(wrong);
        }
    }

    /// The first commit after a reset. The events that it takes back must be delivered again, by an owner that starts
    /// anew.
    fn moved(
        &mut self,
        by: Option<Life>,
        partition: u32,
        state: &PartitionState,
        now: Duration,
    ) -> Result<ResetTarget, String> {
        if let Some(id) = self.in_flight(|attempt| attempt.partition == partition) {
            return Err(format!("the position moves with attempt {id} in flight"));
        }
        let part = &mut self.partitions[partition as usize];
        let before = part.committed.as_ref().and_then(|state| state.last_reset);
        let mut resets = part.resets.iter().copied();
        let wanted = resets.find(|wanted| state.last_reset == Some(wanted.id) && before < state.last_reset);
        let wanted = wanted.ok_or_else(|| format!("the position moves, but {:?} was requested", part.resets.last()))?;
        match wanted.to {
            ResetTarget::Back(to) => {
                for (_, entry) in part.entries.range_mut(to..).filter(|(_, entry)| !entry.trimmed) {
                    (entry.settled, entry.again) = (None, true);
                }
                for (offsets, settled) in part.users.values_mut() {
                    let known = |offset: &&i64| part.entries[offset].settled.is_some();
                    *settled = offsets.iter().take_while(known).count();
                }
                // Deliveries of earlier owners are taken back too.
                for (_, owned) in self.owned.iter_mut().filter(|((_, of), _)| *of == partition) {
                    owned.done.retain(|offset, _| *offset < to);
                }
            }
            ResetTarget::Ahead(to) => {
                let below: Vec<i64> = part.entries.range(..to).map(|(offset, _)| *offset).collect();
                for offset in below {
                    self.settle(partition, offset, now);
                }
            }
        }
        if let Some(owned) = by.and_then(|life| self.owned.get_mut(&(life, partition))) {
            self.counts.moved += 1;
            self.ownerships += 1;
            let (lost, revoked_at, began_with) = (owned.lost, owned.revoked_at, Some(state.clone()));
            *owned = Ownership { number: self.ownerships, began_with, lost, revoked_at, ..Ownership::default() };
        }
        if let Some(life) = by {
            self.timing_begins(life, partition, now);
        }
        Ok(wanted.to)
    }

    /// A life is told to stop.
    pub(crate) fn told_to_stop(&mut self, life: Life, now: Duration) {
        self.closes(|of, _| of == life);
        for (_, owned) in self.owned.iter_mut().filter(|((of, _), _)| *of == life) {
            owned.released_before_the_stop = owned.released;
            owned.revoked_at.get_or_insert(now);
        }
    }

    /// A life ended. If it drained, everything must be committed.
    pub(crate) fn ended(&mut self, life: Life, drained: bool) {
        if let Some(timing) = &mut self.timing {
            timing.ended(life);
        }
        if let Some(id) = self.in_flight(|attempt| attempt.life == life) {
            self.fail(format!("attempt {id} continues after life {life} ended"));
        }
        let partitions: Vec<u32> = self.owned.keys().filter(|(l, _)| *l == life).map(|(_, p)| *p).collect();
        for partition in partitions {
            let owned = &self.owned[&(life, partition)];
            if drained && owned.lost.is_none() && !owned.released_before_the_stop {
                let until = owned.revoked_at.map(|at| at + self.rules.drain);
                self.done_is_committed(life, partition, "a drained stop", until);
            }
            self.owned.remove(&(life, partition));
        }
        self.health.forget(life);
    }
}

impl Partition {
    /// Whether a state says that the event at this offset is settled.
    fn claims(&self, state: &PartitionState, offset: i64) -> bool {
        let user = self.entries.get(&offset).and_then(|entry| entry.user.as_deref());
        claims_event(state, user, offset)
    }
}

impl Partition {
    /// The unsettled events of parked users below the watermark: users, offsets and bytes. Only a sweep reads them.
    fn parked_below(&self, state: &PartitionState) -> Vec<(User, i64, usize)> {
        let below = self.entries.range(..state.watermark).filter(|(_, entry)| !entry.trimmed);
        let unsettled = below.filter(|(offset, _)| !self.claims(state, **offset));
        unsettled.map(|(offset, entry)| (entry.user.clone(), *offset, entry.record.window_bytes())).collect()
    }
}

impl Ownership {
    /// The failures of the event at this offset that earlier owners had stored.
    fn stored_failure(&self, user: Option<&[u8]>, offset: i64) -> Option<&FailedHead> {
        let failed = self.began_with.as_ref()?.users.get(&user.map(Into::into))?.failed.as_ref()?;
        (failed.offset == offset && !self.begun_anew.contains(&offset)).then_some(failed)
    }
}

/// Whether a state says that this event of a user is settled. The settled map counts all events of a parked user, and the
/// list says which of them are not settled.
pub(crate) fn claims_event(state: &PartitionState, user: Option<&[u8]>, offset: i64) -> bool {
    let listed = if state.users.is_empty() { None } else { state.users.get(&user.map(Into::into)) };
    match listed.and_then(|user| user.parked) {
        Some(parked) => offset < parked.first,
        None => claims(state, offset),
    }
}

/// Whether the settled map of a state says that this offset is settled.
pub(crate) fn claims(state: &PartitionState, offset: i64) -> bool {
    offset < state.watermark || state.settled.iter().any(|range| range.contains(&offset))
}
