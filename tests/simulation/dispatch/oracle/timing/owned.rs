//! What one owner of a partition has in memory, and what it waits for.

use super::queue::{Queue, QueueState};
use super::{AttemptOf, LOG_BACKOFF, RunEnd, TimingRules};
use crate::dispatch::oracle::{User, claims};
use eventd::core::event::Event;
use eventd::core::progress::PartitionState;
use eventd::core::verdict::Verdict;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How soon work must begin that nothing keeps from beginning. The longest wait without a cause is a timer's resolution.
const BEGIN_WITHIN: Duration = Duration::from_millis(50);

/// How long after the breaker has closed nothing is judged: attempts grow in number step by step.
const AFTER_OUTAGE: Duration = Duration::from_secs(4);

/// How long after `--commit-interval` progress must be on its way to the group. Large states are stored once a second.
const COMMIT_WITHIN: Duration = Duration::from_millis(1_300);

/// How long a commit may be the last one.
const COMMIT_AGE_MAX: Duration = Duration::from_secs(3_660);

/// Batches in flight of one partition, to a destination that takes runs of many users.
const BATCHES_MAX: usize = 2;

/// Events that became ready within this time may start in any order.
const ORDER_UNKNOWN_WITHIN: Duration = Duration::from_millis(2);

/// The commits of one owner.
#[derive(Debug, Default)]
pub(super) struct Commits {
    pub(super) is_in_flight: bool,
    pub(super) ended_at: Duration,
    /// What the owner knows to be settled and is not stored, with the time since when.
    unstored: BTreeMap<i64, Duration>,
}

impl Commits {
    pub(super) fn stored(&mut self, state: &PartitionState) {
        self.unstored.retain(|offset, _| !claims(state, *offset));
    }

    fn look(&self, open_since: Duration, interval: Duration, now: Duration) -> Option<String> {
        if self.is_in_flight {
            return None;
        }
        let oldest = self.unstored.iter().min_by_key(|(_, at)| **at);
        if let Some((offset, at)) = oldest
            && now > (*at).max(self.ended_at).max(open_since) + interval + COMMIT_WITHIN
        {
            return Some(format!("{offset} is settled since {at:?}, and no commit stores it at {now:?}"));
        }
        let is_old = now > self.ended_at.max(open_since) + COMMIT_AGE_MAX + interval;
        is_old.then(|| format!("the last commit was at {:?}, so the group may forget it", self.ended_at))
    }
}

/// Its position in the log.
#[derive(Debug, Default)]
struct Reading {
    is_in_flight: bool,
    has_ended: bool,
    failures: u32,
    /// The next fetch must begin by then, if there is room.
    due: Duration,
    /// Since when there is certainly room for more events.
    room_since: Option<Duration>,
}

/// One ownership.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) number: u64,
    pub(super) is_closing: bool,
    /// Since when its owner reads.
    open_since: Option<Duration>,
    users: HashMap<User, Queue>,
    /// The failures that were stored of events that are not read yet: how many, by user and offset.
    stored_failures: HashMap<(User, i64), u32>,
    events: usize,
    bytes: usize,
    /// When the window was last so full that some of what was read may wait outside of it.
    crowded_until: Duration,
    batches: usize,
    batches_full_until: Duration,
    reading: Reading,
    pub(super) commit: Commits,
}

impl Owned {
    pub(super) fn new(number: u64, is_closing: bool, stored: Option<&PartitionState>) -> Self {
        let users = stored.into_iter().flat_map(|state| &state.users);
        let failed =
            users.filter_map(|(user, state)| Some((user.as_deref().map(<[u8]>::to_vec), state.failed.as_ref()?)));
        Self {
            stored_failures: failed.map(|(user, failed)| ((user, failed.offset), failed.failures)).collect(),
            number,
            is_closing,
            open_since: None,
            users: HashMap::new(),
            events: 0,
            bytes: 0,
            crowded_until: Duration::ZERO,
            batches: 0,
            batches_full_until: Duration::ZERO,
            reading: Reading::default(),
            commit: Commits::default(),
        }
    }

    pub(super) fn fetch(&mut self, share: (usize, usize), now: Duration) -> Option<String> {
        self.open_since.get_or_insert(now);
        self.reading.is_in_flight = true;
        let is_full = self.events > 0 && (self.events >= share.0 || self.bytes >= share.1);
        is_full.then(|| {
            format!("fetches with {} events of {} bytes in memory, its share is {share:?}", self.events, self.bytes)
        })
    }

    pub(super) fn fetch_failed(&mut self, for_good: bool, now: Duration) {
        let reading = &mut self.reading;
        (reading.is_in_flight, reading.has_ended) = (false, for_good);
        reading.failures += 1;
        reading.due = now + LOG_BACKOFF.longest(reading.failures);
        // A partition that cannot be read stops as soon as nothing is in flight. Users that back off then wait until it
        // begins again.
        self.is_closing |= for_good;
    }

    pub(super) fn fetched<'e>(
        &mut self,
        events: impl Iterator<Item = &'e Event>,
        share: (usize, usize),
        delay_max: Duration,
        now: Duration,
    ) {
        (self.reading.is_in_flight, self.reading.failures, self.reading.due) = (false, 0, now);
        for event in events {
            let bytes = event.record.window_bytes();
            self.events += 1;
            self.bytes += bytes;
            let user = event.record.key().map(<[u8]>::to_vec);
            let failures = self.stored_failures.remove(&(user.clone(), event.offset));
            let queue = self.users.entry(user).or_default();
            match failures {
                Some(failures) => queue.read_failed(event.offset, bytes, failures, delay_max, now),
                None => queue.read(event.offset, bytes, now),
            }
        }
        self.look_at_room(share, now);
    }

    /// Notes whether the window may be full, or certainly has room.
    pub(super) fn look_at_room(&mut self, (events_max, bytes_max): (usize, usize), now: Duration) {
        if self.events > events_max || self.bytes > bytes_max {
            self.crowded_until = now;
        }
        let has_room = self.events == 0 || (self.events * 2 < events_max && self.bytes * 2 < bytes_max);
        self.reading.room_since = has_room.then(|| self.reading.room_since.unwrap_or(now));
    }

    /// Since when nothing keeps an attempt from starting. `None`: something does, or may.
    fn unblocked_since(
        &self,
        well_since: Option<Duration>,
        free_since: Option<Duration>,
        rules: &TimingRules,
    ) -> Option<Duration> {
        let is_batch_free = !rules.takes_many_users || self.batches < BATCHES_MAX;
        if self.is_closing || !is_batch_free {
            return None;
        }
        // At the start of a life the breaker is closed, and nothing has to grow.
        let well_since = well_since?;
        let calm_since = if well_since.is_zero() { well_since } else { well_since + AFTER_OUTAGE };
        Some(self.open_since?.max(calm_since).max(free_since?).max(self.batches_full_until))
    }

    pub(super) fn started(
        &mut self,
        heads: &[(User, i64)],
        well_since: Option<Duration>,
        free_since: Option<Duration>,
        rules: &TimingRules,
        is_failing: impl Fn(u64, &User) -> bool,
        now: Duration,
    ) -> Option<String> {
        let unblocked_since = self.unblocked_since(well_since, free_since, rules);
        self.batches += 1;
        let mut wrong = None;
        let mut earliest_of_all = None;
        for (user, head) in heads {
            let queue = self.users.entry(user.clone()).or_default();
            if let QueueState::Waiting { earliest, latest, failed_at } = queue.state
                && queue.head() == Some(*head)
            {
                earliest_of_all = earliest_of_all.max(Some(earliest));
                let must_wait = failed_at.is_some_and(|failed| well_since.is_some_and(|since| since <= failed));
                if let Some(since) = unblocked_since.filter(|_| self.crowded_until < latest)
                    && now > since.max(latest) + BEGIN_WITHIN
                {
                    wrong.get_or_insert_with(|| format!("{head} could start at {:?}", since.max(latest)));
                } else if must_wait && now < earliest {
                    wrong.get_or_insert_with(|| format!("{head} backs off until {earliest:?}"));
                }
            }
            if queue.head() == Some(*head) && queue.certain_tries >= rules.attempts {
                wrong.get_or_insert_with(|| {
                    format!("{head} has used {} tries of {}", queue.certain_tries, rules.attempts)
                });
            }
            queue.state = QueueState::InFlight;
        }
        wrong.or_else(|| {
            let (begun, well_since) = (earliest_of_all?, well_since?);
            let since = well_since.max(self.crowded_until);
            let passed_over = self.users.iter().find(|(user, queue)| {
                let QueueState::Waiting { latest, failed_at: None, .. } = queue.state else { return false };
                let waits_longer = latest + ORDER_UNKNOWN_WITHIN < begun && since < latest;
                waits_longer && !queue.is_slow && !is_failing(self.number, user)
            });
            let (user, queue) = passed_over.filter(|_| !self.is_closing)?;
            Some(format!("it was ready at {begun:?}, and {user:?} waits longer: {queue:?}"))
        })
    }

    pub(super) fn attempt_ended(
        &mut self,
        attempt: &AttemptOf,
        runs: Vec<RunEnd>,
        is_well: bool,
        rules: &TimingRules,
        now: Duration,
    ) {
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
            queue.took(now - attempt.began);
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
                    queue.certain_tries += u32::from(counts && is_well);
                    queue.failed(verdict, asked, rules.backoff, rules.attempts, now);
                }
                None if run.delivered == 0 => queue.cut_off(),
                None => {}
            }
        }
    }

    /// An outage may have ended: what failed in it is attempted at once, and not at the end of its backoff.
    pub(super) fn outage_may_have_ended(&mut self, now: Duration) {
        for queue in self.users.values_mut() {
            if let QueueState::Waiting { earliest, failed_at: Some(_), .. } = &mut queue.state {
                *earliest = now.min(*earliest);
            }
        }
    }

    /// An outage takes tries back.
    pub(super) fn forget_tries(&mut self) {
        self.users.values_mut().for_each(|queue| queue.certain_tries = 0);
    }

    pub(super) fn settled(&mut self, user: &User, offset: i64, now: Duration) {
        self.commit.unstored.insert(offset, now);
        let Some(queue) = self.users.get_mut(user) else { return };
        if let Some(bytes) = queue.settled(offset, now) {
            (self.events, self.bytes) = (self.events - 1, self.bytes - bytes);
        }
    }

    pub(super) fn dead_letter(&mut self, user: &User, write_by: Option<Duration>) {
        if let Some(queue) = self.users.get_mut(user) {
            queue.state = QueueState::MayBeGivenUp { write_by };
        }
    }

    /// A user that could be a probe since this time.
    pub(super) fn waiting_since(&self, since: Duration) -> Option<&User> {
        let open_since = self.open_since.filter(|_| !self.is_closing)?;
        let waits = |queue: &Queue| matches!(queue.state, QueueState::Waiting { latest, .. } if latest <= since && self.crowded_until < latest);
        let mut users = self.users.iter().filter(|(_, queue)| waits(queue)).map(|(user, _)| user);
        users.next().filter(|_| open_since <= since && self.batches_full_until <= since)
    }

    pub(super) fn look(
        &self,
        well_since: Option<Duration>,
        free_since: Option<Duration>,
        rules: &TimingRules,
        now: Duration,
    ) -> Option<String> {
        let open_since = self.open_since.filter(|_| !self.is_closing)?;
        let Reading { is_in_flight, has_ended, due, room_since, .. } = self.reading;
        if let Some(room_since) = room_since
            && !is_in_flight
            && !has_ended
            && now > room_since.max(due).max(open_since) + BEGIN_WITHIN
        {
            return Some(format!("there is room since {room_since:?}, and nothing is fetched"));
        }
        if let Some(wrong) = self.commit.look(open_since, rules.commit_interval, now) {
            return Some(wrong);
        }
        let unblocked_since = self.unblocked_since(well_since, free_since, rules);
        self.users.iter().find_map(|(user, queue)| match queue.state {
            QueueState::Waiting { latest, .. } if self.crowded_until < latest => {
                let since = unblocked_since?.max(latest);
                (now > since + BEGIN_WITHIN)
                    .then(|| format!("{:?} of {user:?} could start since {since:?}", queue.head()))
            }
            QueueState::MayBeGivenUp { write_by: Some(by) } if now > by + BEGIN_WITHIN => {
                Some(format!("the dead letter of {:?} should be written again since {by:?}", queue.head()))
            }
            _ => None,
        })
    }
}
