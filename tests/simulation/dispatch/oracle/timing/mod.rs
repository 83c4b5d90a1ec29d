//! Rules about time: what could be done must be done soon, not before its time, and in the order in which it became
//! possible.
//!
//! The rest of the oracle knows what must *not* happen. This part knows what must happen. It follows, from the calls that
//! pass between dispatch and the world, what each owner has in memory and what it waits for:
//!
//! ```text
//!  fetched ──▶ queue of each user ──▶ waiting from … until … ── attempt ──▶ in flight ──▶ settled, or waiting again
//!                                        │
//!                                        └─ nothing keeps it from starting, and it does not: a violation
//! ```
//!
//! An owner is judged only while nothing that the oracle cannot see may keep it from its work: its partition is open, its
//! window is not full, slots are free, and its breaker is certainly closed ([`wellness`]). The bounds are short, so that a
//! wake-up that is lost shows although a timer comes to its aid a second later.

mod certain_tries;
mod commits;
mod control;
mod owned;
mod queue;
mod rate;
mod reading;
mod used_slots;
mod wellness;

pub(crate) use control::ControlView;
pub(super) use owned::Memory;
pub(crate) use queue::BackoffRule;
pub(crate) use reading::Cursor;

use super::{Life, User};
use commits::COMMIT_WITHIN;
use control::Controlled;
use eventd::core::control::UserAction;
use eventd::core::event::Event;
use eventd::core::progress::PartitionState;
use eventd::core::verdict::Verdict;
use owned::{Free, ORDER_UNKNOWN_WITHIN, Owned, calm_since};
use rate::RateRule;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use used_slots::UsedSlots;
use wellness::Wellness;

/// A user of a partition. For the breaker of a process it is the same one whenever the process owns the partition.
type UserOfPartition = (u32, User);

/// The delays before a call of the log is repeated.
const LOG_BACKOFF: BackoffRule =
    BackoffRule { first: Duration::from_millis(100), max: Duration::from_secs(2), jitter: true };

/// What the configuration promises about time and room.
#[derive(Debug, Clone)]
pub(crate) struct TimingRules {
    pub(crate) attempts: u32,
    pub(crate) give_up_after: Option<Duration>,
    pub(crate) backoff: BackoffRule,
    pub(crate) retry_after_max: Duration,
    pub(crate) concurrency: usize,
    pub(crate) in_flight_events: usize,
    /// Whether the destination takes runs of several users in a batch.
    pub(crate) takes_many_users: bool,
    pub(crate) window_events: usize,
    pub(crate) window_bytes: usize,
    pub(crate) commit_interval: Duration,
    /// Events in one answer of the log.
    pub(crate) fetch_events_max: usize,
    /// How long a call of the log may take that does not wait for an event.
    pub(crate) call_max: Duration,
    /// Whether the list of parked users may be full. Then users that are not parked take the room of others.
    pub(crate) may_list_be_full: bool,
    /// Whether every call is answered, and quickly.
    pub(crate) is_calm: bool,
    /// Whether an event whose tries have ended is settled without a dead letter.
    pub(crate) drops: bool,
}

/// What an owner begins with.
pub(super) struct Began<'a> {
    pub(super) state: Option<&'a PartitionState>,
    /// The unsettled events of parked users that the reader has passed: users, offsets and bytes.
    pub(super) in_log: Vec<(User, i64, usize)>,
    pub(super) may_park: bool,
}

/// How soon a probe must be sent that is due. A user that is not preferred has to wait for a while.
const PROBE_WITHIN: Duration = Duration::from_millis(500);

/// More than the largest event of the simulation takes in memory.
const EVENT_BYTES_MAX: usize = 8_000;

/// How one run of an attempt ended.
pub(super) struct RunEnd {
    pub(super) user: User,
    pub(super) first: i64,
    pub(super) delivered: usize,
    /// `None`: all of it was delivered, or the attempt was cut off.
    pub(super) failed: Option<Verdict>,
}

/// An attempt as this part sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptOf {
    pub(super) id: u64,
    pub(super) life: Life,
    pub(super) partition: u32,
    pub(super) ownership: u64,
    pub(super) began: Duration,
    /// Its events.
    pub(super) events: usize,
}

/// One process.
#[derive(Debug, Default)]
struct Process {
    in_flight: usize,
    /// The partitions that it owns, also those that have not begun.
    partitions: BTreeSet<u32>,
    /// No heartbeat of it arrives.
    is_cut_off: bool,
    /// When all slots were last taken.
    full_until: Duration,
    slots: UsedSlots,
    wellness: Wellness,
    rate: RateRule,
    /// When the rate of a partition that it does not own any more may have limited it last.
    limited_until: Duration,
}

#[derive(Debug)]
pub(super) struct Timing {
    rules: TimingRules,
    processes: HashMap<Life, Process>,
    owned: BTreeMap<(Life, u32), Owned>,
    /// What operators have commanded, by partition.
    controlled: BTreeMap<u32, Controlled>,
}

impl Timing {
    pub(super) fn new(rules: TimingRules) -> Self {
        Self { rules, processes: HashMap::new(), owned: BTreeMap::new(), controlled: BTreeMap::new() }
    }

    /// An owner begins, or begins anew. `is_closing` says that it may do what it likes from the start.
    pub(super) fn began(
        &mut self,
        (life, partition): (Life, u32),
        ownership: u64,
        is_closing: bool,
        began: Began<'_>,
        now: Duration,
    ) {
        let process = self.processes.entry(life).or_default();
        let waits_until = now + self.rules.backoff.max.max(self.rules.retry_after_max);
        let owned = Owned::new(ownership, is_closing || process.is_cut_off, began, waits_until, now);
        self.owned.insert((life, partition), owned);
        self.look_at_rates();
    }

    /// From now on this owner may do what it likes, because it drains, moves or is cut off.
    pub(super) fn closes(&mut self, which: impl Fn(Life, u32) -> bool) {
        for (_, owned) in self.owned.iter_mut().filter(|((life, partition), _)| which(*life, *partition)) {
            owned.is_closing = true;
        }
        self.look_at_rates();
    }

    /// Finds the rate that is certainly in force in each process.
    fn look_at_rates(&mut self) {
        for (life, process) in &mut self.processes {
            let open = process.partitions.iter().filter(|of| {
                let owned = self.owned.get(&(*life, **of));
                owned.is_some_and(|owned| owned.judged_since().is_some())
            });
            let rates = open.filter_map(|of| self.controlled.get(of)?.certain_rate());
            process.rate.set(rates.min());
        }
    }

    pub(super) fn set_cut_off(&mut self, life: Life, is_cut_off: bool) {
        let process = self.processes.entry(life).or_default();
        process.is_cut_off = is_cut_off;
    }

    pub(super) fn ended(&mut self, life: Life) {
        self.processes.remove(&life);
        self.owned.retain(|(of, _), _| *of != life);
    }

    pub(super) fn assigned(&mut self, life: Life, partition: u32, now: Duration) {
        self.processes.entry(life).or_default().partitions.insert(partition);
        self.share_changed(life, now);
    }

    /// The life does not own the partition any more. Its others have a larger share, which they must use at once.
    pub(super) fn released(&mut self, life: Life, partition: u32, now: Duration) {
        self.owned.remove(&(life, partition));
        if let Some(process) = self.processes.get_mut(&life) {
            process.partitions.remove(&partition);
            if self.controlled.get(&partition).is_some_and(|controlled| controlled.unlimited_since().is_none()) {
                process.limited_until = now;
            }
        }
        self.look_at_rates();
        self.share_changed(life, now);
    }

    /// The life owns more or fewer partitions than before.
    fn share_changed(&mut self, life: Life, now: Duration) {
        let share = self.smallest_share(life);
        for (_, owned) in self.owned.iter_mut().filter(|((of, _), _)| *of == life) {
            owned.look_at_room(share, now);
        }
    }

    /// The window of a partition, in events and in bytes, if the process shares it among this many.
    fn share(&self, partitions: usize) -> (usize, usize) {
        let partitions = partitions.max(1);
        ((self.rules.window_events / partitions).max(1), (self.rules.window_bytes / partitions).max(1))
    }

    /// The share of a partition if all that the process owns count. While others begin or drain it may be larger.
    fn smallest_share(&self, life: Life) -> (usize, usize) {
        self.share(self.processes.get(&life).map_or(0, |process| process.partitions.len()))
    }

    /// A fetch begins. Returns what is wrong with it.
    pub(super) fn fetch(&mut self, life: Life, partition: u32, cursor: Cursor, now: Duration) -> Option<String> {
        let others_drain = |((of, _), owned): &(&(Life, u32), &Owned)| *of == life && !owned.is_closing;
        let share = self.share(self.owned.iter().filter(others_drain).count());
        let owned = self.owned.get_mut(&(life, partition))?;
        let pending = (self.rules.fetch_events_max, self.rules.window_bytes + EVENT_BYTES_MAX);
        let (was_open, wrong) =
            (owned.judged_since().is_some(), owned.fetch(cursor, share, pending, self.rules.drops, now));
        if !was_open {
            self.look_at_rates();
        }
        wrong
    }

    pub(super) fn fetch_failed(&mut self, life: Life, partition: u32, cursor: Cursor, for_good: bool, now: Duration) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.fetch_failed(cursor, for_good, now);
        }
        self.look_at_rates();
    }

    /// The events of an answer that are not settled. They are in memory now.
    pub(super) fn fetched<'e>(
        &mut self,
        life: Life,
        partition: u32,
        cursor: Cursor,
        events: impl Iterator<Item = &'e Event>,
        now: Duration,
    ) {
        let share = self.smallest_share(life);
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.fetched(cursor, events, share, now);
        }
    }

    /// What operators have commanded in this partition.
    pub(super) fn controlled(&mut self, partition: u32, view: ControlView, now: Duration) {
        self.controlled.entry(partition).or_default().changed(view, now);
        self.look_at_rates();
    }

    /// An operator wants this user to be tried now: the command was given, or a commit covers it. `given_at` is when it was
    /// given.
    pub(super) fn loosened(
        &mut self,
        partition: u32,
        user: &User,
        (action, given_at): (&UserAction, Duration),
        now: Duration,
    ) {
        let controlled = self.controlled.entry(partition).or_default();
        controlled.loosen(user, now);
        let retried_at = Some(given_at).filter(|given_at| *given_at < now && controlled.frees(user, action));
        for (_, owned) in self.owned.iter_mut().filter(|((_, of), _)| *of == partition) {
            owned.loosened(user, retried_at, now);
        }
    }

    /// The first event of this user is attempted as if it had never failed.
    pub(super) fn begins_anew(&mut self, life: Life, partition: u32, user: &User) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.begins_anew(user);
        }
    }

    /// Since when no command keeps the users of an owner from starting.
    fn commands_free_since(&self, life: Life, partition: u32) -> Option<Duration> {
        let own = self.controlled.get(&partition).map_or(Some(Duration::ZERO), Controlled::free_since);
        let Some(process) = self.processes.get(&life) else { return own };
        // The lowest rate of the partitions of a process limits all of them.
        let of_process = process.partitions.iter().filter_map(|of| self.controlled.get(of));
        let own = own.map(|since| since.max(process.limited_until));
        of_process.map(Controlled::unlimited_since).fold(own, |since, of| Some(since?.max(of?)))
    }

    /// What this owner has in memory now.
    pub(super) fn remembers(&mut self, life: Life, partition: u32, memory: Memory, now: Duration) {
        let share = self.smallest_share(life);
        let controlled = self.controlled.get(&partition);
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.remembers(memory, controlled, share, now);
        }
    }

    /// Retention has removed everything below this offset.
    pub(super) fn trimmed(&mut self, partition: u32, earliest: i64) {
        let owners = self.owned.iter_mut().filter(|((_, of), _)| *of == partition);
        owners.for_each(|(_, owned)| owned.trimmed(earliest));
    }

    /// An attempt of the first events of these users begins. Returns what is wrong with it.
    pub(super) fn started(&mut self, attempt: AttemptOf, heads: &[(User, i64)], now: Duration) -> Option<String> {
        let AttemptOf { id, life, partition, events, .. } = attempt;
        let commands_free_since = self.commands_free_since(life, partition);
        let process = self.processes.get_mut(&life)?;
        // An operator may have asked for a probe.
        let too_many = process.wellness.begun(id, now).filter(|_| self.controlled.is_empty());
        let too_many = process.rate.begun(events, now).or(too_many);
        let well_since = process.wellness.well_since();
        let slots_free_since = (process.in_flight < self.rules.concurrency).then_some(process.full_until);
        process.in_flight += 1;
        let is_crowded = !self.rules.takes_many_users
            && (process.in_flight > self.rules.concurrency
                || now <= process.full_until + ORDER_UNKNOWN_WITHIN
                || calm_since(well_since).is_some_and(|since| now <= since));
        let free = Free { well_since, slots_free_since, is_crowded, commands_free_since };
        let is_failing = |user: &User| process.wellness.is_failing(&(partition, user.clone()));
        let owned = self.owned.get_mut(&(life, partition))?;
        let mut wrong = None;
        if let (false, [(user, _)]) = (self.rules.takes_many_users, heads) {
            let is_doubtful = owned.is_slow(user) || is_failing(user);
            // Probes of an outage may be of any user.
            let is_slow = well_since.is_some() && owned.is_slow(user);
            wrong = process.slots.begun(attempt, is_slow, is_doubtful, &self.rules);
        }
        let controlled = self.controlled.get(&partition);
        let not_in_order = owned.started(heads, free, controlled, &self.rules, is_failing, now);
        too_many.or(wrong).or(not_in_order)
    }

    /// An attempt ended. `answered` is false if it was cut off without a verdict.
    pub(super) fn attempt_ended(&mut self, attempt: AttemptOf, runs: Vec<RunEnd>, answered: bool, now: Duration) {
        let Some(process) = self.processes.get_mut(&attempt.life) else { return };
        if process.in_flight >= self.rules.concurrency {
            process.full_until = now;
        }
        process.in_flight = process.in_flight.saturating_sub(1);
        process.slots.ended(attempt.id);
        let wellness = &mut process.wellness;
        let user_of = |run: &RunEnd| (attempt.partition, run.user.clone());
        if answered {
            let delivered: Vec<UserOfPartition> = runs.iter().filter(|run| run.delivered > 0).map(user_of).collect();
            if !delivered.is_empty() && wellness.may_be_open() {
                let of_life = self.owned.iter_mut().filter(|((life, _), _)| *life == attempt.life);
                of_life.for_each(|(_, owned)| owned.outage_may_have_ended(now));
            }
            wellness.delivered(attempt.id, delivered, now);
            for (run, verdict) in runs.iter().filter_map(|run| Some((run, run.failed?))) {
                wellness.failed(attempt.id, user_of(run), verdict, now);
            }
        } else {
            wellness.ended_without_verdict(attempt.id, now);
        }
        let is_well = wellness.well_since().is_some();
        // An attempt that began before the end of an outage uses no try.
        let counts_tries = is_well && !wellness.may_have_begun_in_outage(attempt.id);
        if !is_well {
            let of_life = self.owned.iter_mut().filter(|((life, _), _)| *life == attempt.life);
            of_life.for_each(|(_, owned)| owned.forget_tries());
        }
        let share = self.smallest_share(attempt.life);
        let owned = self.owned.get_mut(&(attempt.life, attempt.partition));
        if let Some(owned) = owned.filter(|owned| owned.number == attempt.ownership) {
            owned.attempt_ended(&attempt, runs, counts_tries, &self.rules, now);
            owned.look_at_room(share, now);
        }
    }

    /// A dead letter of this event is being written.
    pub(super) fn gives_up(&mut self, life: Life, partition: u32, user: &User) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.dead_letter(user, None);
        }
    }

    /// A dead letter of this event could not be written.
    pub(super) fn dead_letter_failed(&mut self, life: Life, partition: u32, user: &User, now: Duration) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.dead_letter(user, Some(now + LOG_BACKOFF.max));
        }
    }

    /// The owner knows that this event is settled by its dead letter.
    pub(super) fn given_up(&mut self, life: Life, partition: u32, user: &User, offset: i64, now: Duration) {
        let share = self.smallest_share(life);
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.settled(user, offset, now);
            owned.look_at_room(share, now);
        }
    }

    /// The owner has dropped this event at the moment `at`, which is only known now.
    pub(super) fn dropped(
        &mut self,
        (life, partition): (Life, u32),
        user: &User,
        offset: i64,
        at: Duration,
        now: Duration,
    ) {
        let share = self.smallest_share(life);
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.dropped(user, offset, at);
            owned.look_at_room(share, now);
        }
    }

    /// Whether the first event of this user has certainly used up its tries before this moment, as an owner that is open
    /// must know.
    pub(super) fn tries_have_ended(&self, life: Life, partition: u32, user: &User, before: Duration) -> bool {
        let owned = self.owned.get(&(life, partition)).filter(|owned| owned.judged_since().is_some());
        owned.is_some_and(|owned| owned.tries_have_ended(user, self.rules.attempts, before))
    }

    pub(super) fn commit_begun(&mut self, life: Life, partition: u32) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.commit.is_in_flight = true;
        }
    }

    pub(super) fn commit_ended(&mut self, life: Life, partition: u32, now: Duration) {
        if let Some(owned) = self.owned.get_mut(&(life, partition)) {
            owned.commit.is_in_flight = false;
            owned.commit.ended_at = now;
        }
    }

    /// This state is stored.
    pub(super) fn committed(&mut self, partition: u32, state: &PartitionState) {
        for (_, owned) in self.owned.iter_mut().filter(|((_, of), _)| *of == partition) {
            owned.commit.stored(state);
        }
    }

    /// Looks for work that could have been done and was not.
    pub(super) fn look(&self, now: Duration) -> Option<String> {
        self.owned.iter().find_map(|((life, partition), owned)| {
            let process = self.processes.get(life)?;
            let controlled = self.controlled.get(partition);
            let commands_free_since = self.commands_free_since(*life, *partition);
            if let Some(wrong) = self.look_at_commands(owned, controlled, now) {
                return Some(format!("life {life}, partition {partition}: {wrong}"));
            }
            if let Some(due) = process.wellness.probe_due_since()
                && process.in_flight < if self.rules.takes_many_users { 1 } else { self.rules.concurrency }
                && commands_free_since.is_some_and(|since| now > since + PROBE_WITHIN)
                && controlled.is_none()
                && let Some(user) = owned.waiting_since(now.checked_sub(PROBE_WITHIN)?)
                && now > due + PROBE_WITHIN
            {
                return Some(format!(
                    "life {life}: a probe is due since {due:?}, and {user:?} in {partition} is not taken"
                ));
            }
            let slots_free_since = (process.in_flight < self.rules.concurrency).then_some(process.full_until);
            let well_since = process.wellness.well_since();
            let free = Free { well_since, slots_free_since, is_crowded: false, commands_free_since };
            let wrong = owned.look(free, controlled, &self.rules, now)?;
            Some(format!("life {life}, partition {partition}: {wrong}"))
        })
    }

    fn look_at_commands(&self, owned: &Owned, controlled: Option<&Controlled>, now: Duration) -> Option<String> {
        let open_since = owned.judged_since().filter(|_| self.rules.is_calm)?;
        controlled?.look(open_since, self.rules.commit_interval + COMMIT_WITHIN, now)
    }
}
