//! One user's events in the memory of one owner, as the oracle knows them, and when the next of them may and must start.

use super::TimingRules;
use super::certain_tries::CertainTries;
use eventd::core::verdict::Verdict;
use std::collections::BTreeMap;
use std::time::Duration;

/// A user whose attempts take this long is slow, and may wait for others.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(1);

/// How far stored times may be from the true ones, because they are whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(1);

/// The failures of an event that an earlier owner had stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredFailures {
    pub(super) failures: u32,
    /// Failures among them that used no try. They must not lengthen the backoff.
    pub(super) without_try: u32,
    pub(super) next_try: Duration,
    /// The event need not wait longer. An earlier owner may have put it off, to make room in an outage.
    pub(super) waits_until: Duration,
}

/// The delays between the attempts of an event, as the configuration says them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackoffRule {
    pub(crate) first: Duration,
    pub(crate) max: Duration,
    pub(crate) jitter: bool,
}

impl BackoffRule {
    /// The shortest and the longest delay after this many failures.
    fn bounds(self, failures: u32) -> (Duration, Duration) {
        let mut delay = self.first;
        for _ in 1..failures {
            delay = (delay * 2).min(self.max);
        }
        (if self.jitter { delay / 2 } else { delay }, delay)
    }

    /// The longest delay after this many failures.
    pub(super) fn longest(self, failures: u32) -> Duration {
        self.bounds(failures).1
    }
}

/// The events of one user that an owner has to deliver and has not settled. Some of them may wait in the log.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Sizes by offset.
    events: BTreeMap<i64, usize>,
    /// The owner knows that the events below this offset are settled.
    settled_below: i64,
    /// When the first event came to memory, or became the first one.
    pub(super) arrived: Duration,
    pub(super) state: QueueState,
    /// Failed attempts of the first event.
    pub(super) failures: u32,
    /// Failures among them that may not lengthen the backoff, because the destination may have been down or in bad health.
    excused: u32,
    /// Failures among these that certainly do not, because an earlier owner stored that they used no try.
    certainly_excused: u32,
    /// When the first of them was. Of an event that an earlier owner has attempted it is not known, so it is zero.
    first_failed: Option<Duration>,
    pub(super) certain_tries: CertainTries,
    pub(super) is_slow: bool,
    /// An attempt was quick and delivered, and none was slow since.
    pub(super) is_served: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) enum QueueState {
    #[default]
    Empty,
    /// The first event may be attempted from `earliest` on, and must not wait after `latest`.
    Waiting {
        earliest: Duration,
        latest: Duration,
        failed_at: Option<Duration>,
        /// The destination asked for this wait.
        is_asked: bool,
    },
    InFlight,
    /// It may be about to be given up. `write_by` is when its dead letter must be written again.
    MayBeGivenUp {
        write_by: Option<Duration>,
    },
}

impl Queue {
    /// The owner has read an event. Returns whether it is another one that it has to deliver. `stored` are the failures of
    /// this event that the owner began with.
    pub(super) fn read(&mut self, offset: i64, bytes: usize, stored: Option<StoredFailures>, now: Duration) -> bool {
        if offset < self.settled_below {
            return false;
        }
        let is_new = self.events.insert(offset, bytes).is_none();
        if matches!(self.state, QueueState::Empty) {
            self.state = stored.map_or_else(
                || ready(now),
                |stored| {
                    (self.failures, self.excused) = (stored.failures, stored.without_try);
                    self.certainly_excused = stored.without_try;
                    self.first_failed = Some(Duration::ZERO);
                    // It continues its backoff. Stored times are whole milliseconds.
                    let next_try = stored.next_try.max(now);
                    let earliest = next_try.min(stored.waits_until.max(now)).saturating_sub(ROUNDING);
                    let latest = next_try + ROUNDING;
                    QueueState::Waiting { earliest, latest, failed_at: Some(now), is_asked: false }
                },
            );
        }
        is_new
    }

    pub(super) fn head(&self) -> Option<i64> {
        self.events.first_key_value().map(|(offset, _)| *offset)
    }

    pub(super) fn head_bytes(&self) -> Option<usize> {
        self.events.first_key_value().map(|(_, bytes)| *bytes)
    }

    pub(super) fn offsets(&self) -> impl Iterator<Item = i64> {
        self.events.keys().copied()
    }

    /// The events before this one were lost: they waited in the log, and retention removed them. Their failures and their
    /// backoff say nothing about this one.
    pub(super) fn skip_to(&mut self, offset: i64) {
        self.events = self.events.split_off(&offset);
        self.forget_failures();
        if let QueueState::Waiting { failed_at, .. } = &mut self.state {
            *failed_at = None;
        }
    }

    /// The first event is another one, or its tries begin anew.
    pub(super) fn forget_failures(&mut self) {
        (self.failures, self.excused, self.certainly_excused, self.first_failed) = (0, 0, 0, None);
        self.certain_tries = CertainTries::default();
    }

    /// The first event is settled. Returns its bytes.
    pub(super) fn settled(&mut self, offset: i64, now: Duration) -> Option<usize> {
        if self.head() != Some(offset) {
            return None;
        }
        let (_, bytes) = self.events.pop_first()?;
        self.settled_below = offset + 1;
        self.arrived = now;
        self.forget_failures();
        self.state = if self.events.is_empty() { QueueState::Empty } else { ready(now) };
        Some(bytes)
    }

    pub(super) fn took(&mut self, time: Duration, is_delivered: bool) {
        self.is_slow = time >= SLOW_AFTER;
        self.is_served = !self.is_slow && (is_delivered || self.is_served);
    }

    /// The first event failed. `asked` is how long the destination asked to wait.
    pub(super) fn failed(
        &mut self,
        verdict: Verdict,
        asked: Option<Duration>,
        may_be_excused: bool,
        rules: &TimingRules,
        now: Duration,
    ) {
        let backoff = rules.backoff;
        let first_failed = *self.first_failed.get_or_insert(now);
        let may_be_too_old = rules.give_up_after.is_some_and(|limit| now + ROUNDING >= first_failed + limit);
        self.failures += 1;
        self.excused += u32::from(may_be_excused);
        let shortest = backoff.bounds(self.failures - self.excused).0;
        let lengthening = self.failures - self.certainly_excused;
        let (shortest, longest) =
            asked.map_or_else(|| (shortest, backoff.longest(lengthening)), |asked| (asked, asked));
        self.state = if self.failures >= rules.attempts || may_be_too_old || verdict == Verdict::Refused {
            QueueState::MayBeGivenUp { write_by: None }
        } else {
            QueueState::Waiting {
                earliest: now + shortest,
                latest: now + longest,
                failed_at: Some(now),
                is_asked: asked.is_some(),
            }
        };
    }

    /// The run failed as a whole, which says nothing about the first event.
    pub(super) fn batch_failed(&mut self, now: Duration) {
        self.state = ready(now);
    }

    /// The attempt in flight was cut off.
    pub(super) fn cut_off(&mut self) {
        self.state = QueueState::MayBeGivenUp { write_by: None };
    }
}

fn ready(now: Duration) -> QueueState {
    QueueState::Waiting { earliest: now, latest: now, failed_at: None, is_asked: false }
}
