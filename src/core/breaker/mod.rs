//! Is it the event, or the destination? One [`Breaker`] a destination and process, told of every attempt.
//!
//! ```text
//!             Unreachable, or none of the last 5 trusted users delivered
//!   ┌────────┐ ───────────────────────────────────────────────────────▶ ┌──────┐  probe due  ┌──────────┐
//!   │ closed │                                                          │ open │ ──────────▶ │ half-open│
//!   └────────┘ ◀─────────────────────────────────────────────────────── └──────┘ ◀────────── └──────────┘
//!    all flows     a delivery, of a probe or still in flight; or fewer     nothing   it failed   one probe
//!                  than 5 users are left to try: nobody can tell
//! ```
//!
//! # What each verdict says
//!
//! | verdict       | a try of the event         | of the destination's health                    |
//! |---------------|----------------------------|------------------------------------------------|
//! | `Retry`       | unless bad or open         | not delivered                                  |
//! | `Refused`     | unless bad or open         | not delivered (an expired token refuses all)   |
//! | `Busy`        | never                      | not delivered (it may ask everybody to wait)   |
//! | `Unreachable` | never                      | opens at once, whoever the user                |
//! | `Drilled`     | always                     | nothing                                        |
//!
//! # Who is believed
//!
//! A user is *suspect* from the moment when it failed and an attempt of another user that was begun later was
//! delivered, until it is delivered itself. Health is made of the others alone, so any number of users whose every
//! event is poison closes a destination to nobody. A probe's delivery that ends an outage is no proof against those who
//! failed in it: they get one more chance, else one lucky delivery in an outage would leave nobody to believe. The
//! second such delivery is proof, else poisoned users could open the breaker again and again. Where fewer than 5
//! trusted users are at work nobody can tell, and answers are the event's own.
//!
//! # How an outage ends
//!
//! A delivery closes the breaker. An answer that is not a delivery only ends "unreachable": from then on the breaker is
//! open for what the answers say.
//!
//! ```text
//!   Unreachable ── a probe is answered ──▶ Undecided ── 5 trusted users failed ──▶ NobodyDelivered
//!        ▲                                  │     │                                       │
//!        └────── Unreachable again ─────────┘     └── fewer than 5 are left to try ──┬────┘
//!                                                                                  closed
//! ```
//!
//! Five trusted users that fail decide it. Fewer than 5 cannot: a destination that is down looks like a few bad events.
//! So the owners of the partitions tell an open breaker how many trusted users have [unsettled
//! events](Breaker::users_wait), also those whose next attempt is not due for minutes. If there are at least 5, the
//! breaker waits for them, and no answer counts as a try.
//!
//! If there are fewer than 5, answers of an undecided destination count as tries, and a later decision takes those tries
//! back. The breaker closes if, in addition, the next probe would go to a user that was probed in this round already (or
//! to a suspect), and fewer than 5 trusted users were tried in this round and in the last minute. So no event is tried
//! for ever because no other user has traffic, and a single user with a poison event does not stay in an outage for ever.
//!
//! What was found out before an outage is not held against the destination after it: health begins anew. A breaker that
//! closed because nobody can tell has not recovered: [`BreakerSnapshot::out_since`] ends with a delivery only.
//!
//! # Taking tries back
//!
//! When health turns bad or the breaker opens, the tries that were counted since the last delivery in better health
//! were the destination's fault. Each try carries the [good mark](Breaker::health_epoch) of its time; that mark becomes
//! void, and who holds tries under a [void](Breaker::is_void) mark drops them when it looks next. Only the current
//! mark ever becomes void: of an event's tries, those under older marks are final.

mod health;
mod outage;
mod user_trust;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use health::Health;

use super::Moment;
use super::verdict::Verdict;
use health::{RecentVerdicts, USERS_TO_TELL};
use outage::OpenBreaker;
use std::collections::VecDeque;
use std::time::Duration;
use user_trust::UserTrust;

/// Void epochs that are remembered. If there are more, the tries of the oldest epoch stay counted.
const VOID_EPOCHS_MAX: usize = 1024;

/// How long after its first `Refused` an event is refused for good where no other user tells.
const REFUSED_ACTS_AFTER: Duration = Duration::from_secs(10);

/// An attempt that was begun. Each ends in [`Breaker::delivered`], [`Breaker::failed`] or [`Breaker::abandoned`]; one
/// that delivered a part of its run in the first, then the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Grows with every attempt begun; the first is 1.
    pub seq: u64,
    /// The caller's stable hash of topic, partition and key.
    pub user: u64,
    /// The one attempt that an open breaker let through.
    pub probe: bool,
}

/// Whether attempts may be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Every attempt may.
    Closed,
    /// One may, as a probe, now.
    HalfOpen,
    /// None may. `until`: when a probe is due; `None`: one is under way, and its end tells.
    Open { until: Option<Moment> },
}

/// What a failure means for its event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TryJudgement {
    /// It is a try of the event.
    pub counts: bool,
    /// What that try is tagged with; see [`Breaker::is_void`].
    pub health_epoch: u64,
}

/// The first refusal of an event that has been refused ever since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The attempt that was refused.
    pub attempt: Attempt,
    /// When it was refused.
    pub at: Moment,
    /// The good mark of that time. If the mark turns void, the refusal was the destination's fault.
    pub health_epoch: u64,
}

/// Why the breaker is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenCause {
    /// An attempt never got there.
    Unreachable,
    /// The destination was unreachable and answers again. Nothing was delivered yet, and fewer than 5 trusted users were
    /// answered: it is not known yet whether the events or the destination are bad.
    Undecided,
    /// None of the last 5 trusted users was delivered.
    NobodyDelivered,
}

/// The breaker at one moment, for log lines and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSnapshot {
    /// Since when it is closed, or not closed.
    pub since: Moment,
    /// Why it is not closed. `None`: it is closed.
    pub open: Option<OpenCause>,
    /// When the first attempt failed of an outage in which nothing has been delivered yet. It outlasts a breaker that
    /// closed because nobody can tell. `None`: there is no outage.
    pub out_since: Option<Moment>,
    /// Whether a probe is under way.
    pub probing: bool,
    /// The health of a closed breaker; when open, what it was before.
    pub health: Health,
}

/// Decides whether a destination takes events now: one for each destination and process.
#[derive(Debug, Default)]
pub struct Breaker {
    attempts: u64,
    state: BreakerState,
    since: Moment,
    /// The first failure since anything was delivered.
    failing_since: Option<Moment>,
    /// The breaker has opened since anything was delivered.
    is_out: bool,
    trust: UserTrust,
    recent: RecentVerdicts,
    /// Health was bad at the last verdict.
    bad: bool,
    /// When health was last found bad, or the breaker open.
    unwell_at: Option<Moment>,
    health_epoch: u64,
    /// A try was counted under the current mark.
    good_mark_used: bool,
    /// In growing order.
    void_marks: VecDeque<u64>,
}

#[derive(Debug, Default)]
enum BreakerState {
    #[default]
    Closed,
    Open(OpenBreaker),
}

impl Breaker {
    /// Closed, and nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether attempts may be begun now.
    pub fn gate(&self, now: Moment) -> Gate {
        match &self.state {
            BreakerState::Closed => Gate::Closed,
            BreakerState::Open(outage) => match outage.probe_due_at() {
                Some(at) if now >= at => Gate::HalfOpen,
                until => Gate::Open { until },
            },
        }
    }

    /// Begins an attempt of this user: as the probe if one is due. The caller has asked [`Breaker::gate`]; an attempt
    /// that slips through an open breaker is judged like one that was in flight when it opened. A probe that is due
    /// closes the breaker instead if nobody can tell.
    pub fn begin(&mut self, user: u64, now: Moment) -> Attempt {
        self.attempts += 1;
        let seq = self.attempts;
        let is_suspect = self.trust.is_suspect(user);
        if self.nobody_can_tell(user, is_suspect, now) {
            self.close(now);
        }
        let probe = self.gate(now) == Gate::HalfOpen;
        if probe && let BreakerState::Open(outage) = &mut self.state {
            outage.begin_probe(seq, user, is_suspect);
        }
        Attempt { seq, user, probe }
    }

    /// The attempt was delivered, or some first events of its run were.
    pub fn delivered(&mut self, attempt: &Attempt, now: Moment) {
        self.delivered_many(std::slice::from_ref(attempt), now);
    }

    /// The same for attempts of different users that ended together, at less cost.
    pub fn delivered_many(&mut self, attempts: &[Attempt], now: Moment) {
        if attempts.is_empty() {
            return;
        }
        if let BreakerState::Open(outage) = &self.state
            && let Some(probe) = attempts.iter().find(|attempt| outage.is_probe(attempt.seq))
        {
            self.trust.pardon(probe.seq);
        }
        self.close(now);
        (self.failing_since, self.is_out) = (None, false);
        for attempt in attempts {
            self.trust.delivered(attempt.user, attempt.seq);
        }
        for attempt in &attempts[attempts.len().saturating_sub(RecentVerdicts::NOTED_MAX)..] {
            self.recent.delivered(attempt.user, now);
        }
        if self.bad || self.good_mark_used || self.trust.anybody_fails() {
            self.look_at_health(now);
            if !self.bad {
                self.next_good_mark();
            }
        }
    }

    /// The attempt did not deliver all of its run: the verdict on the first event that was not delivered.
    pub fn failed(&mut self, attempt: &Attempt, verdict: Verdict, now: Moment) -> TryJudgement {
        if verdict != Verdict::Drilled {
            self.failing_since.get_or_insert(now);
        }
        match verdict {
            Verdict::Drilled => self.abandoned(attempt),
            Verdict::Unreachable => {
                self.open(OpenCause::Unreachable, now);
                self.probe_failed(attempt, now);
            }
            Verdict::Retry { .. } | Verdict::Refused | Verdict::Busy { .. } => self.answered(attempt, now),
        }
        let counts = match verdict {
            Verdict::Drilled => true,
            Verdict::Retry { .. } | Verdict::Refused => match &self.state {
                BreakerState::Closed => !self.bad,
                BreakerState::Open(outage) => outage.cause == OpenCause::Undecided && outage.waiting() < USERS_TO_TELL,
            },
            Verdict::Busy { .. } | Verdict::Unreachable => false,
        };
        self.good_mark_used |= counts;
        TryJudgement { counts, health_epoch: self.health_epoch }
    }

    /// The attempt was dropped without an answer (a handover, a defect): it says nothing, and if it was the probe,
    /// another one may be.
    pub fn abandoned(&mut self, attempt: &Attempt) {
        if let BreakerState::Open(outage) = &mut self.state
            && outage.is_probe(attempt.seq)
        {
            outage.probe_abandoned();
        }
    }

    /// These users have unsettled events in this partition, also those whose next attempt is not due. The owner of the
    /// partition repeats it while the breaker is open; a closed breaker does not need it. Looks at no more users once
    /// enough of them are trusted.
    pub fn users_wait(&mut self, partition: u32, users: impl IntoIterator<Item = u64>) {
        if let BreakerState::Open(outage) = &mut self.state {
            let trusted = users.into_iter().filter(|user| !self.trust.is_suspect(*user));
            outage.wait_in(partition, trusted.take(USERS_TO_TELL).count());
        }
    }

    /// The owner of this partition is gone: its users are not tried here any more.
    pub fn released(&mut self, partition: u32) {
        if let BreakerState::Open(outage) = &mut self.state {
            outage.released(partition);
        }
    }

    /// Whether this user's failures are believed to be its own.
    pub fn is_suspect(&self, user: u64) -> bool {
        self.trust.is_suspect(user)
    }

    /// Whether this user should be probed before others: trusted ones that were not yet, then suspect ones, then all
    /// over again.
    pub fn prefers_as_probe(&self, user: u64) -> bool {
        match &self.state {
            BreakerState::Closed => !self.is_suspect(user),
            BreakerState::Open(outage) => outage.prefers(user, self.is_suspect(user)),
        }
    }

    /// From when on anybody may be the probe that is due, preferred or not. `None`: no probe is due.
    pub fn any_user_probes_at(&self) -> Option<Moment> {
        match &self.state {
            BreakerState::Open(outage) => outage.any_user_probes_at(),
            BreakerState::Closed => None,
        }
    }

    /// Whether the breaker has opened since anything was delivered: [`BreakerSnapshot::out_since`] says since when.
    pub fn is_out(&self) -> bool {
        self.is_out
    }

    /// What a try that is counted now is tagged with.
    pub fn health_epoch(&self) -> u64 {
        self.health_epoch
    }

    /// Whether the tries under this mark are taken back.
    pub fn is_void(&self, mark: u64) -> bool {
        self.void_marks.binary_search(&mark).is_ok()
    }

    /// Whether an event that has been refused since this refusal is to be given up now: an attempt of another user that
    /// was begun later was delivered, or 10 s passed. The answer is "no" while the breaker is open or health is bad, and
    /// the 10 s begin anew after such a time.
    pub fn refusal_is_final(&self, first: &Refusal, now: Moment) -> bool {
        if !self.believes_answers(now) {
            return false;
        }
        let from = self.unwell_at.map_or(first.at, |at| at.max(first.at));
        self.trust.latest_of_others(first.attempt.user) > first.attempt.seq
            || now >= from.saturating_add(REFUSED_ACTS_AFTER)
    }

    /// What there is to tell a person.
    pub fn snapshot(&self, now: Moment) -> BreakerSnapshot {
        let (open, probing) = match &self.state {
            BreakerState::Closed => (None, false),
            BreakerState::Open(outage) => (Some(outage.cause), outage.probe_due_at().is_none()),
        };
        let out_since = self.failing_since.filter(|_| self.is_out);
        BreakerSnapshot { since: self.since, open, out_since, probing, health: self.recent.health(now, &self.trust) }
    }

    fn believes_answers(&self, now: Moment) -> bool {
        matches!(self.state, BreakerState::Closed)
            && matches!(self.recent.health(now, &self.trust), Health::Unknown | Health::Good)
    }

    /// Whether the probe that is due finds too few users for anybody to tell: see the module.
    fn nobody_can_tell(&self, user: u64, is_suspect: bool, now: Moment) -> bool {
        let BreakerState::Open(outage) = &self.state else { return false };
        outage.cause != OpenCause::Unreachable
            && self.gate(now) == Gate::HalfOpen
            && outage.waiting() < USERS_TO_TELL
            && outage.has_no_other_left(user, is_suspect)
            && outage.trusted_probed() < USERS_TO_TELL
            && self.recent.health(now, &self.trust) == Health::Unknown
    }

    /// The destination answered, and did not deliver.
    fn answered(&mut self, attempt: &Attempt, now: Moment) {
        let failing_since = self.trust.failed(attempt.user, attempt.seq);
        if let BreakerState::Open(outage) = &mut self.state {
            let is_probe = outage.is_probe(attempt.seq);
            if outage.cause == OpenCause::Unreachable && is_probe {
                outage.is_answered(attempt.user, self.trust.is_suspect(attempt.user));
                self.recent.clear();
            }
            // An answer to what was sent before the outage proves nothing.
            if is_probe || outage.cause == OpenCause::Undecided {
                self.recent.failed(attempt.user, failing_since, now, &self.trust);
            }
            if outage.cause == OpenCause::Undecided && self.recent.users_failing(&self.trust) >= USERS_TO_TELL {
                self.open(OpenCause::NobodyDelivered, now);
            }
            self.probe_failed(attempt, now);
            return;
        }
        self.recent.failed(attempt.user, failing_since, now, &self.trust);
        self.look_at_health(now);
    }

    fn look_at_health(&mut self, now: Moment) {
        let was_bad = self.bad;
        match self.recent.health(now, &self.trust) {
            Health::Unknown | Health::Good => self.bad = false,
            Health::Bad => self.bad = true,
            Health::Dead => return self.open(OpenCause::NobodyDelivered, now),
        }
        if self.bad {
            self.unwell_at = Some(now);
            if !was_bad {
                self.take_tries_back();
            }
        }
    }

    /// Opens a closed breaker, and decides what was undecided. An outage that is decided stays what it is.
    fn open(&mut self, cause: OpenCause, now: Moment) {
        match &mut self.state {
            BreakerState::Closed => {
                self.state = BreakerState::Open(OpenBreaker::new(cause, now));
                self.since = now;
            }
            BreakerState::Open(outage) if outage.cause == OpenCause::Undecided => outage.cause = cause,
            BreakerState::Open(_) => return,
        }
        self.take_tries_back();
        (self.unwell_at, self.is_out) = (Some(now), true);
    }

    fn close(&mut self, now: Moment) {
        if matches!(self.state, BreakerState::Closed) {
            return;
        }
        self.state = BreakerState::Closed;
        self.recent.clear();
        self.bad = false;
        (self.since, self.unwell_at) = (now, Some(now));
    }

    fn probe_failed(&mut self, attempt: &Attempt, now: Moment) {
        if let BreakerState::Open(outage) = &mut self.state
            && outage.is_probe(attempt.seq)
        {
            outage.probe_failed(now);
        }
    }

    fn take_tries_back(&mut self) {
        if !self.good_mark_used {
            return;
        }
        if self.void_marks.len() == VOID_EPOCHS_MAX {
            self.void_marks.pop_front();
        }
        self.void_marks.push_back(self.health_epoch);
        self.next_good_mark();
    }

    /// A mark under which no try was counted is as good as a new one.
    fn next_good_mark(&mut self) {
        if std::mem::take(&mut self.good_mark_used) {
            self.health_epoch += 1;
        }
    }
}
