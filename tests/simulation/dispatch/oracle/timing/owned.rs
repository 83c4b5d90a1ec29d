//! What one owner of a partition has in memory, and what it waits for.
//!
//! If users may be parked, some of their events wait in the log instead. What is in memory is then seen from the copies of
//! the records.

use super::certain_tries::CertainTries;
use super::commits::Commits;
use super::control::Controlled;
use super::queue::{Queue, QueueState, StoredFailures};
use super::reading::{Cursor, Reading};
use super::{AttemptOf, Began, RunEnd, TimingRules};
use crate::dispatch::oracle::User;
use crate::dispatch::world::BEGAN_MS;
use eventd::core::event::Event;
use eventd::core::progress::FailedHead;
use eventd::core::verdict::Verdict;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

/// How soon work must begin that nothing keeps from beginning. The longest wait without a cause is a timer's resolution.
const BEGIN_WITHIN: Duration = Duration::from_millis(50);

/// How long after an outage a user may still wait in the log that has left memory in it.
const PUT_OFF: Duration = Duration::from_secs(10);

/// How soon an attempt must begin for which nothing is missing but a place in memory: others have to be parked, or the sweep
/// has to begin a fetch. The product looks for room every 50 ms, and waits 100 ms after a fetch that found nothing.
const PARKED_WITHIN: Duration = Duration::from_millis(250);

/// Fetches of the sweep before it looks again where an event is wanted.
const FETCHES_IN_A_ROW: u32 = 4;

/// If users in flight take more than one of this many parts of the window, parked users may have no room.
const PART_FOR_OTHERS: usize = 4;

/// How long after the breaker has closed nothing is judged: attempts grow in number step by step.
const AFTER_OUTAGE: Duration = Duration::from_secs(4);

/// Batches in flight of one partition, to a destination that takes runs of many users.
const BATCHES_MAX: usize = 2;

/// Events that became ready within this time may start in any order.
pub(super) const ORDER_UNKNOWN_WITHIN: Duration = Duration::from_millis(2);

/// The events of one owner that are in memory.
#[derive(Debug, Clone, Default)]
pub(in crate::dispatch::oracle) struct Memory {
    /// Their sizes by offset.
    pub(in crate::dispatch::oracle) events: BTreeMap<i64, usize>,
}

impl Memory {
    /// The number of events, and their bytes.
    fn size(&self) -> (usize, usize) {
        (self.events.len(), self.events.values().sum())
    }
}

/// Since when nothing outside of an owner keeps its attempts from starting. `None`: something may.
#[derive(Debug, Clone, Copy)]
pub(super) struct Free {
    /// The breaker is certainly closed.
    pub(super) well_since: Option<Duration>,
    pub(super) slots_free_since: Option<Duration>,
    /// All slots are taken, or there may be fewer after an outage.
    pub(super) is_crowded: bool,
    /// No operator has paused the destination, or limited its rate.
    pub(super) commands_free_since: Option<Duration>,
}

/// One ownership.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) number: u64,
    pub(super) is_closing: bool,
    /// Since when its owner reads.
    open_since: Option<Duration>,
    users: HashMap<User, Queue>,
    /// The failures that were stored of events that are not read yet, by user and offset.
    stored_failures: HashMap<(User, i64), StoredFailures>,
    /// The events that were read and are not settled, and their bytes.
    events: usize,
    bytes: usize,
    /// All events that were read.
    events_read: u32,
    /// `None`: all that was read and is not settled is in memory, because no user is parked.
    memory: Option<Memory>,
    /// Retention has removed what is below. Of that, what waits in the log is lost.
    trimmed_below: i64,
    /// When the window was last so full that some of what was read may wait outside of it.
    crowded_until: Duration,
    /// Whether it is so full now, and what waits outside of it is not known.
    is_crowded: bool,
    /// When users in flight last took so much of the window that others had no room. Such users are not parked.
    busy_until: Duration,
    /// Whether they do so now: no attempt has ended since memory last changed.
    is_busy: bool,
    batches: usize,
    batches_full_until: Duration,
    reading: Reading,
    sweeping: Reading,
    /// The reader has read what is below. The sweep reads events above it, too, but only the reader brings them to memory.
    read_below: i64,
    /// Since when there is certainly room for more events.
    room_since: Option<Duration>,
    pub(super) commit: Commits,
}

/// Since when the breaker certainly allows all attempts. At the start of a life it is closed, and nothing has to grow.
pub(super) fn calm_since(well_since: Option<Duration>) -> Option<Duration> {
    well_since.map(|since| if since.is_zero() { since } else { since + AFTER_OUTAGE })
}

impl Owned {
    /// `waits_until`: no stored retry need wait longer, because the owner has no longer delay between two attempts.
    pub(super) fn new(number: u64, is_closing: bool, began: Began<'_>, waits_until: Duration, now: Duration) -> Self {
        let Began { state, in_log, may_park } = began;
        let users = state.into_iter().flat_map(|state| &state.users);
        let failed =
            users.filter_map(|(user, state)| Some((user.as_deref().map(<[u8]>::to_vec), state.failed.as_ref()?)));
        let stored = |failed| stored_failures(failed, waits_until);
        let mut owned = Self {
            stored_failures: failed.map(|(user, failed)| ((user, failed.offset), stored(failed))).collect(),
            number,
            is_closing,
            open_since: None,
            users: HashMap::new(),
            events: 0,
            bytes: 0,
            events_read: 0,
            memory: may_park.then(Memory::default),
            trimmed_below: 0,
            crowded_until: Duration::ZERO,
            is_crowded: false,
            busy_until: Duration::ZERO,
            is_busy: false,
            batches: 0,
            batches_full_until: Duration::ZERO,
            reading: Reading::default(),
            sweeping: Reading::default(),
            read_below: 0,
            room_since: None,
            commit: Commits::default(),
        };
        for (user, offset, bytes) in in_log {
            owned.read_below = owned.read_below.max(offset + 1);
            owned.read(user, offset, bytes, now);
        }
        owned
    }

    fn read(&mut self, user: User, offset: i64, bytes: usize, now: Duration) {
        self.events_read += 1;
        let stored = self.stored_failures.remove(&(user.clone(), offset));
        let queue = self.users.entry(user).or_default();
        if queue.read(offset, bytes, stored, now) {
            self.events += 1;
            self.bytes += bytes;
        }
    }

    /// The sweep has read an event. What the reader has not passed yet is left to it.
    fn read_again(&mut self, user: &User, offset: i64, now: Duration) {
        let was_in_memory = self.is_in_memory(offset);
        if let Some(queue) = self.users.get_mut(user)
            && queue.head() == Some(offset)
            && !was_in_memory
        {
            queue.arrived = now;
        }
    }

    /// This is in memory now.
    pub(super) fn remembers(
        &mut self,
        memory: Memory,
        controlled: Option<&Controlled>,
        share: (usize, usize),
        now: Duration,
    ) {
        let is_busy = |(user, queue): &(&User, &Queue)| {
            matches!(queue.state, QueueState::InFlight | QueueState::MayBeGivenUp { .. })
                || controlled.is_some_and(|controlled| controlled.gives_up(user, queue.head()))
        };
        let busy = self.users.iter().filter(is_busy).flat_map(|(_, queue)| queue.offsets());
        let busy: BTreeSet<i64> = busy.collect();
        let busy = memory.events.iter().filter(|(offset, _)| busy.contains(offset));
        let (events, bytes) = busy.fold((0, 0), |(events, all), (_, bytes)| (events + 1, all + bytes));
        let largest = memory.events.values().max().copied().unwrap_or(0);
        let was_busy = self.is_busy;
        self.is_busy =
            events > 0 && (events * PART_FOR_OTHERS > share.0 || (bytes + largest) * PART_FOR_OTHERS > share.1);
        if was_busy || self.is_busy {
            self.busy_until = now;
        }
        self.memory = Some(memory);
        self.look_at_room(share, now);
    }

    pub(super) fn trimmed(&mut self, earliest: i64) {
        self.trimmed_below = self.trimmed_below.max(earliest);
    }

    fn is_in_memory(&self, offset: i64) -> bool {
        self.memory.as_ref().is_none_or(|memory| memory.events.contains_key(&offset))
    }

    /// Whether all that was read has certainly been in memory since this moment or longer.
    fn had_room_at(&self, moment: Duration) -> bool {
        !self.is_crowded && self.crowded_until < moment
    }

    /// The events in memory, and their bytes.
    fn in_memory(&self) -> (usize, usize) {
        self.memory.as_ref().map_or((self.events, self.bytes), Memory::size)
    }

    /// Like [`in_memory`](Self::in_memory), without the events that may have been dropped. A drop shows only later.
    fn certainly_in_memory(&self) -> (usize, usize) {
        let may_be_dropped = |queue: &&Queue| matches!(queue.state, QueueState::MayBeGivenUp { .. });
        let sizes = self.users.values().filter(may_be_dropped).filter_map(Queue::head_bytes);
        sizes.fold(self.in_memory(), |(events, all), bytes| (events.saturating_sub(1), all.saturating_sub(bytes)))
    }

    /// A fetch begins. `pending_max`: what each cursor may have read in addition to the window.
    pub(super) fn fetch(
        &mut self,
        cursor: Cursor,
        share: (usize, usize),
        pending_max: (usize, usize),
        may_drop: bool,
        now: Duration,
    ) -> Option<String> {
        self.open_since.get_or_insert(now);
        self.cursor(cursor).begins();
        // A fetch of the sweep is bounded by the room of parked users alone.
        if cursor == Cursor::Sweep {
            return None;
        }
        let (events, bytes) = if may_drop { self.certainly_in_memory() } else { self.in_memory() };
        let is_full = match self.memory {
            // Whatever fills the window: if the others have less than their half of it, their next event may be read.
            Some(_) => events > share.0 + pending_max.0 || bytes > share.1 + pending_max.1,
            None => events > 0 && (events >= share.0 || bytes >= share.1),
        };
        is_full.then(|| {
            format!("{cursor:?} fetches with {events} events of {bytes} bytes in memory, its share is {share:?}")
        })
    }

    fn cursor(&mut self, cursor: Cursor) -> &mut Reading {
        match cursor {
            Cursor::Reader => &mut self.reading,
            Cursor::Sweep => &mut self.sweeping,
        }
    }

    pub(super) fn fetch_failed(&mut self, cursor: Cursor, for_good: bool, now: Duration) {
        self.cursor(cursor).failed(for_good, now);
        // A partition that cannot be read stops as soon as nothing is in flight. Users that back off then wait until it
        // begins again.
        self.is_closing |= for_good;
    }

    pub(super) fn fetched<'e>(
        &mut self,
        cursor: Cursor,
        events: impl Iterator<Item = &'e Event>,
        share: (usize, usize),
        now: Duration,
    ) {
        self.cursor(cursor).ended(now);
        for event in events {
            let user = event.record.key().map(<[u8]>::to_vec);
            match cursor {
                Cursor::Reader => self.read(user, event.offset, event.record.window_bytes(), now),
                Cursor::Sweep => self.read_again(&user, event.offset, now),
            }
        }
        self.look_at_room(share, now);
    }

    /// Notes whether the window may be full, or certainly has room.
    pub(super) fn look_at_room(&mut self, (events_max, bytes_max): (usize, usize), now: Duration) {
        let (events, bytes) = self.in_memory();
        let has_room = events == 0 || (events * 2 < events_max && bytes * 2 < bytes_max);
        // Parked users have half of the window.
        let is_crowded = if self.memory.is_some() { !has_room } else { events > events_max || bytes > bytes_max };
        if is_crowded || self.is_crowded {
            self.crowded_until = now;
        }
        // Nothing may end before a stored backoff does, so the window can stay full without another look.
        self.is_crowded = is_crowded && self.memory.is_none();
        self.room_since = has_room.then(|| self.room_since.unwrap_or(now));
    }

    /// Since when nothing keeps an attempt from starting. `None`: something does, or may.
    fn unblocked_since(&self, free: Free, rules: &TimingRules) -> Option<Duration> {
        let is_batch_free = !rules.takes_many_users || self.batches < BATCHES_MAX;
        if self.is_closing || !is_batch_free {
            return None;
        }
        let calm_since = calm_since(free.well_since)?;
        let free_since = free.slots_free_since?.max(free.commands_free_since?);
        Some(self.open_since?.max(calm_since).max(free_since).max(self.batches_full_until))
    }

    pub(super) fn started(
        &mut self,
        heads: &[(User, i64)],
        free: Free,
        controlled: Option<&Controlled>,
        rules: &TimingRules,
        is_failing: impl Fn(&User) -> bool,
        now: Duration,
    ) -> Option<String> {
        let unblocked_since = self.unblocked_since(free, rules);
        let well_since = free.well_since;
        let is_kept =
            |user: &User, head| controlled.is_some_and(|controlled: &Controlled| controlled.keeps(user, head));
        self.batches += 1;
        let mut wrong = None;
        let mut earliest_of_all = None;
        let mut is_order_known = free.commands_free_since.is_some();
        // If all slots are taken, there are others for users that were served, and for users that are slow or fail.
        let (mut may_pass_newcomers, mut may_pass) = (free.is_crowded, free.is_crowded);
        for (user, head) in heads {
            let late =
                self.late(user, (unblocked_since, well_since), rules, now).filter(|_| !is_kept(user, Some(*head)));
            let queue = self.users.entry(user.clone()).or_default();
            if queue.head().is_some_and(|first| first < *head) {
                queue.skip_to(*head);
            }
            if let QueueState::Waiting { earliest, failed_at, .. } = queue.state
                && queue.head() == Some(*head)
            {
                earliest_of_all = earliest_of_all.max(Some(earliest.max(queue.arrived)));
                let is_loosened =
                    |failed| controlled.is_some_and(|controlled| controlled.may_be_loosened(user, failed));
                let must_wait = failed_at
                    .is_some_and(|failed| well_since.is_some_and(|since| since <= failed) && !is_loosened(failed));
                is_order_known &= !failed_at.is_some_and(is_loosened);
                if late.is_some() {
                    wrong = wrong.or(late);
                } else if must_wait && now < earliest {
                    wrong.get_or_insert_with(|| format!("{head} backs off until {earliest:?}"));
                }
            }
            let is_certain = free.commands_free_since.is_some();
            if is_certain
                && queue.head() == Some(*head)
                && let Some(ended) = queue.certain_tries.have_ended(rules, controlled.is_some())
            {
                wrong.get_or_insert_with(|| format!("{head} {ended}"));
            }
            may_pass_newcomers &= queue.is_served;
            may_pass &= queue.is_slow || is_failing(user);
            queue.state = QueueState::InFlight;
        }
        wrong.or_else(|| {
            let (begun, well_since) = (earliest_of_all?, well_since?);
            let since = well_since.max(free.commands_free_since?);
            let passed_over = self.users.iter().find(|(user, queue)| {
                let QueueState::Waiting { latest, failed_at: None, .. } = queue.state else { return false };
                let ready = latest.max(queue.arrived);
                let waits_longer = ready + ORDER_UNKNOWN_WITHIN < begun && since < ready && self.had_room_at(ready);
                let is_passed = may_pass || (may_pass_newcomers && !queue.is_served);
                let is_in_memory = queue.head().is_some_and(|head| self.is_in_memory(head));
                let is_judged = waits_longer && is_in_memory && !is_passed;
                is_judged && !queue.is_slow && !is_kept(user, queue.head()) && !is_failing(user)
            });
            let (user, queue) = passed_over.filter(|_| !self.is_closing && is_order_known)?;
            Some(format!("it was ready at {begun:?}, and {user:?} waits longer: {queue:?}"))
        })
    }

    pub(super) fn attempt_ended(
        &mut self,
        attempt: &AttemptOf,
        runs: Vec<RunEnd>,
        counts_tries: bool,
        rules: &TimingRules,
        now: Duration,
    ) {
        if std::mem::take(&mut self.is_busy) {
            self.busy_until = now;
        }
        if self.batches >= BATCHES_MAX {
            self.batches_full_until = now;
        }
        self.batches = self.batches.saturating_sub(1);
        for run in runs {
            for _ in 0..run.delivered {
                let head = self.users.get(&run.user).and_then(Queue::head);
                self.settled(&run.user, head.unwrap_or(run.first), now);
            }
            let Some(queue) = self.users.get_mut(&run.user) else { continue };
            queue.took(now - attempt.began, run.delivered > 0);
            match run.failed {
                Some(Verdict::BatchFailed) => queue.batch_failed(now),
                Some(verdict) => {
                    let asked = match verdict {
                        Verdict::Busy { after } | Verdict::Retry { after } => {
                            after.map(|after| after.min(rules.retry_after_max))
                        }
                        _ => None,
                    };
                    let counts = matches!(verdict, Verdict::Retry { .. } | Verdict::Refused | Verdict::Drilled);
                    if counts_tries {
                        queue.certain_tries.failed(counts, now);
                    }
                    queue.failed(verdict, asked, !counts_tries, rules, now);
                }
                None if run.delivered == 0 => queue.cut_off(),
                None => {}
            }
        }
    }

    /// An outage may have ended: what failed in it is attempted at once, and not at the end of its backoff. An event waits
    /// as long as the destination asked for in any case.
    pub(super) fn outage_may_have_ended(&mut self, now: Duration) {
        for queue in self.users.values_mut() {
            if let QueueState::Waiting { earliest, failed_at: Some(_), is_asked: false, .. } = &mut queue.state {
                *earliest = now.min(*earliest);
            }
        }
    }

    /// An operator wants this user to be tried now. `retried_at`: when the command was given, if a commit says that it has
    /// ended the backoff.
    pub(super) fn loosened(&mut self, user: &User, retried_at: Option<Duration>, now: Duration) {
        if let Some(queue) = self.users.get_mut(user) {
            queue.certain_tries = CertainTries::default();
            if let Some(given_at) = retried_at {
                queue.retried(given_at, now);
            }
        }
    }

    pub(super) fn begins_anew(&mut self, user: &User) {
        if let Some(queue) = self.users.get_mut(user) {
            queue.forget_failures();
        }
    }

    /// Since when its owner must do what can be done.
    pub(super) fn judged_since(&self) -> Option<Duration> {
        self.open_since.filter(|_| !self.is_closing)
    }

    pub(super) fn tries_have_ended(&self, user: &User, attempts: u32, before: Duration) -> bool {
        self.users.get(user).is_some_and(|queue| queue.certain_tries.were_used_up(attempts, before))
    }

    /// An outage takes tries back.
    pub(super) fn forget_tries(&mut self) {
        self.users.values_mut().for_each(|queue| queue.certain_tries = CertainTries::default());
    }

    pub(super) fn settled(&mut self, user: &User, offset: i64, now: Duration) {
        self.commit.settled(user, offset, now);
        let Some(queue) = self.users.get_mut(user) else { return };
        if let Some(bytes) = queue.settled(offset, now) {
            (self.events, self.bytes) = (self.events - 1, self.bytes - bytes);
        }
    }

    /// This event was dropped. Since when the next one could start is not known.
    pub(super) fn dropped(&mut self, user: &User, offset: i64, at: Duration) {
        self.settled(user, offset, at);
        if let Some(queue) = self.users.get_mut(user)
            && queue.head().is_some()
        {
            queue.state = QueueState::MayBeGivenUp { write_by: None };
        }
    }

    /// Whether the last attempt of this user was slow.
    pub(super) fn is_slow(&self, user: &User) -> bool {
        self.users.get(user).is_some_and(|queue| queue.is_slow)
    }

    pub(super) fn dead_letter(&mut self, user: &User, write_by: Option<Duration>) {
        if let Some(queue) = self.users.get_mut(user) {
            queue.state = QueueState::MayBeGivenUp { write_by };
        }
    }

    /// A user that could be a probe since this time.
    pub(super) fn waiting_since(&self, since: Duration) -> Option<&User> {
        let open_since = self.open_since.filter(|_| !self.is_closing)?;
        let is_in_memory = |queue: &Queue| queue.head().is_some_and(|head| self.is_in_memory(head));
        let waits = |queue: &Queue| match queue.state {
            QueueState::Waiting { latest, .. } => {
                latest.max(queue.arrived) <= since && self.had_room_at(latest) && is_in_memory(queue)
            }
            _ => false,
        };
        let mut users = self.users.iter().filter(|(_, queue)| waits(queue)).map(|(user, _)| user);
        users.next().filter(|_| open_since <= since && self.batches_full_until <= since)
    }

    pub(super) fn look(
        &self,
        free: Free,
        controlled: Option<&Controlled>,
        rules: &TimingRules,
        now: Duration,
    ) -> Option<String> {
        let open_since = self.open_since.filter(|_| !self.is_closing)?;
        let Reading { is_in_flight, has_ended, due, .. } = self.reading;
        if let Some(room_since) = self.room_since
            && !is_in_flight
            && !has_ended
            && now > room_since.max(due).max(open_since) + BEGIN_WITHIN
        {
            return Some(format!("there is room since {room_since:?}, and nothing is fetched"));
        }
        if let Some(wrong) = self.commit.look(open_since, rules.commit_interval, now) {
            return Some(wrong);
        }
        let unblocked_since = self.unblocked_since(free, rules);
        self.users.iter().find_map(|(user, queue)| match queue.state {
            QueueState::Waiting { .. } if controlled.is_some_and(|kept| kept.keeps(user, queue.head())) => None,
            QueueState::Waiting { .. } => self.late(user, (unblocked_since, free.well_since), rules, now),
            QueueState::MayBeGivenUp { write_by: Some(by) } if now > by + BEGIN_WITHIN => {
                Some(format!("the dead letter of {:?} should be written again since {by:?}", queue.head()))
            }
            _ => None,
        })
    }

    /// Why the first event of a user waits too long at this moment, if nothing has kept it from starting since
    /// `unblocked_since`, and the destination is well since `well_since`.
    fn late(
        &self,
        user: &User,
        (unblocked_since, well_since): (Option<Duration>, Option<Duration>),
        rules: &TimingRules,
        now: Duration,
    ) -> Option<String> {
        let queue = self.users.get(user)?;
        let (QueueState::Waiting { latest, .. }, Some(head)) = (queue.state, queue.head()) else { return None };
        let since = unblocked_since?.max(latest);
        let is_in_memory = self.is_in_memory(head);
        if is_in_memory && self.had_room_at(latest) {
            let since = since.max(queue.arrived);
            return (now > since + BEGIN_WITHIN).then(|| format!("{head} of {user:?} could start since {since:?}"));
        }
        let is_lost = head < self.trimmed_below && !is_in_memory;
        if self.memory.is_none() || is_lost || rules.may_list_be_full {
            return None;
        }
        let Reading { is_in_flight: is_sweeping, due, .. } = self.sweeping;
        // At the start of a life there was no outage before.
        let outage_end = well_since.filter(|since| !is_in_memory && !since.is_zero());
        let busy_until = if self.is_busy { now } else { self.busy_until };
        let since = since.max(due).max(busy_until).max(outage_end.map_or(Duration::ZERO, |end| end + PUT_OFF));
        let within = match is_in_memory || !is_sweeping {
            true => PARKED_WITHIN,
            // At worst the sweep reads two times all that was read, one event at a time.
            false => PARKED_WITHIN + rules.call_max * (2 * self.events_read + FETCHES_IN_A_ROW),
        };
        let place = if is_in_memory { "memory" } else { "the log" };
        (now > since + within).then(|| format!("{head} of {user:?} waits in {place} since {since:?}"))
    }
}

fn stored_failures(failed: &FailedHead, waits_until: Duration) -> StoredFailures {
    let next_try = Duration::from_millis(u64::try_from(failed.next_try_ms - BEGAN_MS).unwrap_or(0));
    let without_try = failed.failures.saturating_sub(failed.tries);
    StoredFailures { failures: failed.failures, without_try, next_try, waits_until }
}
