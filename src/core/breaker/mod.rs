//! The circuit breaker: decides whether a failure is the event's fault or the destination's. Each process has one
//! [`Breaker`] for each destination, and reports every attempt to it.
//!
//! ```text
//!              Unreachable, or none of the last 5 trusted users was delivered
//!   ┌────────┐ ─────────────────────────────────────────────────────▶ ┌──────┐  some user may be probed  ┌───────────┐
//!   │ closed │                                                        │ open │ ────────────────────────▶ │ half-open │
//!   └────────┘ ◀───────────────────────────────────────────────────── └──────┘ ◀──────────────────────── └───────────┘
//!   attempts:   a delivery (by a probe or an attempt that was           no        enough probes are        probes
//!   see `allowance`    still in flight), or too few users to decide         attempts     in flight                only
//! ```
//!
//! # What each verdict means
//!
//! | verdict       | counts as a try of the event       | health of the destination                              |
//! |---------------|------------------------------------|--------------------------------------------------------|
//! | `Retry`       | unless health is bad or it is open | not delivered                                          |
//! | `Refused`     | unless health is bad or it is open | not delivered (an expired token refuses every event)   |
//! | `Busy`        | never                              | not delivered (it may ask every user to wait)          |
//! | `Unreachable` | never                              | opens the breaker at once, whatever the user           |
//! | `Drilled`     | always                             | says nothing                                           |
//! | `BatchFailed` | never                              | says nothing                                           |
//! | `CutOff`      | never                              | says nothing                                           |
//!
//! # Which users are trusted
//!
//! A user becomes *suspect* when it has failed and another user's attempt is delivered after that, if this attempt began
//! later than the failed one and later than those that were delivered before the failure. It stays suspect until it is
//! delivered itself. Only trusted users, that is, users who are not suspect, can open the breaker. So
//! users whose events always fail cannot open it for all other users, however many they are.
//!
//! A delivery before the failure shows nothing, because the destination may have begun to fail in between. It does show
//! something if the failed attempt took longer than a second. Then the destination served others while this user hung.
//!
//! If no user was delivered for a minute, earlier deliveries show nothing any more, and no user is suspect. Otherwise a
//! destination that goes down while most of its users are suspect would not be found to be down.
//!
//! A user that had failed before this process began is trusted, because it may have failed in an outage that still lasts.
//! But it is probed late. The owner of its partition tells the breaker at its start ([`Breaker::had_failed`]).
//!
//! The delivery of a probe that ends an outage is an exception: it does not make the users suspect that failed during the
//! outage. Without this, one lucky delivery in an outage would leave no trusted users. Those users get one more chance:
//! the next delivery does make them suspect. Without that, users whose events always fail could open the breaker again and
//! again.
//!
//! With fewer than 5 trusted users at work, failures could be the destination's or the events'. Then each failure counts
//! as the event's own.
//!
//! # Health and pace
//!
//! Short of an outage, health is *bad* if fewer than half of the last users were delivered ([`Health`] says who
//! counts). In bad health no try is counted, and the attempts in flight are halved every second (module `allowance`). If
//! none of the last 5 users was delivered, but some attempt was within 250 ms, this is bad health, too, and not yet an
//! outage. A destination that takes 100 of 10,000 events a second answers like this.
//!
//! An attempt that began before the end of an outage uses no try, even if its time-out comes long after it.
//!
//! # How many tries an outage uses
//!
//! A destination may begin to fail for all users at one moment, while many attempts are in flight. Then no user becomes
//! suspect that was trusted at that moment and was answered within a second. The fifth user of these whose answer is a
//! failure shows bad health or an outage. From then on no try counts, and those of the four users before it are taken
//! back. So no event is given up, unless it was one of these four: it had no try left, or was tried `--attempts` times
//! before the fifth user was answered. None of their refusals is believed, because nothing is delivered after them.
//!
//! If answers take longer than a second, the users that fail first are taken for users that hang. Health is bad as soon as
//! they are more than half of the last 20 users, and their tries are taken back then.
//!
//! # Probes
//!
//! A probe goes to a user that was served lately, then to users that were served and have failed since, then to users
//! of whom nothing is known, and last to all others that have failed ([`ProbeRank`]). While the destination answers, up
//! to 5 quick probes are in flight at once: of users that were served or of whom nothing is known. The next one begins
//! as soon as one has ended. After 100 of them there are at most 20 a second.
//!
//! Users that have failed are probed one at a time: after 100 ms at first, then with a delay that grows to 5 s. This
//! holds apart for users that were served before they failed, as long as no delivery has shown that their failures are
//! their own. So they do not wait for the other users that fail. If the destination cannot be reached, all users are
//! probed one at a time. A probe that hangs blocks the next one for a second only: the destination may be well, and
//! only this user hangs. At most 20 probes of each rank are in flight, and if the destination cannot be reached, 20 in
//! all.
//!
//! So the time for which the others stand still does not depend on the number of users whose events always fail or
//! hang, as far as the others were served before. A newcomer may wait until earlier newcomers have had their one quick
//! probe, and if that has failed, for the other users that have failed.
//!
//! # How an outage ends
//!
//! A delivery closes the breaker. If an unreachable destination answers a probe without delivering it, the destination is
//! reachable again, but the breaker stays open until the answers show more:
//!
//! ```text
//!   Unreachable ── a probe is answered ──▶ Undecided ── 5 trusted users failed ──▶ NoUserDelivered
//!        ▲                                  │     │                                       │
//!        └────── Unreachable again ─────────┘     └── fewer than 5 are left to try ──┬────┘
//!                                                                                  closed
//! ```
//!
//! Five trusted users that fail show that the destination is down. Fewer than 5 cannot show it, because a few bad events
//! look the same. So the owners of the partitions report to an open breaker how many trusted users have
//! [unsettled events](Breaker::users_wait). Users whose next attempt is minutes away are included. If there are at least
//! 5, the breaker waits for their attempts, and no answer counts as a try.
//!
//! It is *unknown* whether the events or the destination are at fault if fewer than 5 trusted users have unsettled events,
//! and fewer than 5 have an answer from the last minute. Then answers count as tries, also while the breaker is open (a
//! later decision takes them back), and the next attempt closes the breaker. So an event whose user is alone does not stay
//! in an outage for ever, and is not tried for ever.
//!
//! After an outage of more than a second the attempts in flight ramp up to their full number within 1.5 s. The owners of the partitions make
//! the lanes ready that failed during the outage ([`Breaker::last_recovery`]).
//!
//! What was learned before an outage does not count after it: health starts from nothing. A breaker that closed because
//! there were too few users to decide has not recovered: [`BreakerSnapshot::out_since`] ends only with a delivery.
//!
//! # Taking tries back
//!
//! When health becomes bad or the breaker opens, the tries counted since the last delivery in better health were the
//! destination's fault. For this, each try carries the [health epoch](Breaker::health_epoch) in which it was counted. The
//! breaker declares the current epoch [void](Breaker::is_void) and starts a new one. An owner of tries drops those of a
//! void epoch when it next looks at them. Earlier epochs never become void, so their tries are final.

mod allowance;
mod epochs;
mod health;
mod healthy_clock;
mod open_breaker;
mod recent_paces;
mod served_users;
mod types;
mod user_trust;

#[cfg(test)]
mod model;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod tests;

pub use health::Health;
pub use types::{Attempt, BreakerSnapshot, Gate, OpenCause, ProbeRank, ProbeRanks, Recovery, Refusal, TryJudgement};

use super::Moment;
use super::verdict::Verdict;
use allowance::AttemptAllowance;
use epochs::TryEpochs;
use health::{DECIDING_USERS_MIN, RecentVerdicts, VERDICT_AGE_MAX};
use healthy_clock::HealthyClock;
use open_breaker::{OpenBreaker, PROBE_DELAY_MAX};
use recent_paces::RecentPaces;
use std::time::Duration;
use user_trust::UserTrust;

/// How long after its first `Refused` an event is given up if no other user's delivery shows that the destination works.
const REFUSAL_FINAL_AFTER: Duration = Duration::from_secs(10);

/// If an attempt was delivered this lately, the destination is not down, whatever the other attempts say.
const OUTAGE_AFTER: Duration = Duration::from_millis(250);

/// An attempt that took this long hung. If others were delivered meanwhile, that is its user's own.
const HANGS_AFTER: Duration = Duration::from_secs(1);

/// After an outage that was at least this long, attempts ramp up. Users whose events always fail cause shorter ones: the
/// first probe of a user that is served ends them, and the destination was never down.
const RAMP_AFTER: Duration = Duration::from_secs(1);

/// Decides whether a destination takes events now. There is one for each destination and process.
#[derive(Debug, Default)]
pub struct Breaker {
    /// The number of the attempt that was begun last.
    attempts: u64,
    /// The number of the attempt that was begun last when the breaker closed.
    attempts_in_outages: u64,
    state: BreakerState,
    since_delivery: SinceDelivery,
    trust: UserTrust,
    recent: RecentVerdicts,
    paces: RecentPaces,
    /// When health was last found bad, or the breaker last opened or closed.
    unwell_at: Option<Moment>,
    epochs: TryEpochs,
    healthy_clock: HealthyClock,
    /// An operator paused the destination. Nothing is learned about it, and events do not age.
    is_paused: bool,
    /// When the last outage began, for people.
    outage_began: Moment,
    allowance: AttemptAllowance,
    last_delivery: Option<Moment>,
    last_recovery: Option<Recovery>,
}

#[derive(Debug)]
enum BreakerState {
    Closed {
        since: Moment,
        /// Whether health was bad after the last verdict. Tries do not count then.
        is_health_bad: bool,
    },
    Open {
        since: Moment,
        open: OpenBreaker,
    },
}

impl Default for BreakerState {
    fn default() -> Self {
        Self::Closed { since: Moment::ZERO, is_health_bad: false }
    }
}

/// What has happened since the last delivery.
#[derive(Debug, Default, Clone, Copy)]
enum SinceDelivery {
    #[default]
    NothingFailed,
    /// Attempts have failed, the first one at this time, but the breaker stayed closed.
    Failing { since: Moment },
    /// The breaker has opened. The first attempt failed at this time.
    Outage { since: Moment },
}

impl Breaker {
    /// A closed breaker that knows nothing of the destination.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether attempts may begin now, and of which users.
    pub fn gate(&self, now: Moment) -> Gate {
        match &self.state {
            BreakerState::Closed { .. } => Gate::Closed,
            BreakerState::Open { open, .. } => open.gate(now),
        }
    }

    /// How many attempts may be in flight now while the breaker is closed, if `concurrency` is the limit in good times.
    pub fn attempts_allowed(&self, concurrency: usize, now: Moment) -> usize {
        self.allowance.part_of(concurrency, now)
    }

    /// When [`Breaker::attempts_allowed`] grows next, if nothing happens before.
    pub fn attempts_allowed_grow_at(&self, now: Moment) -> Option<Moment> {
        self.allowance.grows_at(now)
    }

    /// In which order users are probed.
    pub fn probe_rank(&self, user: u64) -> ProbeRank {
        self.trust.rank(user)
    }

    /// Begins an attempt of this user. If the breaker is open, the attempt becomes a probe. If it is open but there are too
    /// few users to decide, it closes instead.
    ///
    /// The caller has asked [`Breaker::gate`] before. If the attempt begins although the gate does not let it, it is judged
    /// like one that was in flight when the breaker opened.
    pub fn begin(&mut self, user: u64, now: Moment) -> Attempt {
        if matches!(self.gate(now), Gate::HalfOpen { .. }) && self.has_too_few_users(now) {
            self.close(now);
            self.set_healthy_clock(now);
        }
        self.attempts += 1;
        let seq = self.attempts;
        let rank = self.trust.rank(user);
        let probe = match &mut self.state {
            BreakerState::Open { open, .. } => open.begin_probe(seq, rank, now),
            BreakerState::Closed { .. } => false,
        };
        Attempt { seq, user, began: now, probe }
    }

    /// Reports that the attempt was delivered, or that the first events of its run were.
    pub fn delivered(&mut self, attempt: &Attempt, now: Moment) {
        self.delivered_many(std::slice::from_ref(attempt), now);
    }

    /// Like [`Breaker::delivered`], for attempts of different users that ended together. It costs less than single calls.
    pub fn delivered_many(&mut self, attempts: &[Attempt], now: Moment) {
        if attempts.is_empty() {
            return;
        }
        if let BreakerState::Open { open, .. } = &self.state
            && let Some(probe) = attempts.iter().find(|attempt| open.is_probe(attempt.seq))
        {
            self.trust.pardon(probe.seq);
        }
        if let SinceDelivery::Outage { since } = self.since_delivery {
            let number = self.last_recovery.map_or(0, |last| last.number) + 1;
            self.last_recovery = Some(Recovery { number, failing_since: since, ended_at: now });
        }
        self.close(now);
        self.since_delivery = SinceDelivery::NothingFailed;
        self.last_delivery = Some(now);
        // The verdicts of more users would only replace each other.
        let noted = attempts.len().saturating_sub(RecentVerdicts::BATCH_MAX);
        for (place, attempt) in attempts.iter().enumerate() {
            self.trust.delivered(attempt.user, attempt.seq);
            self.paces.ended(attempt.user, attempt.began, true, now);
            if place >= noted {
                self.recent.delivered(attempt.user, now);
            }
        }
        // If nothing has failed lately, health cannot change. This keeps deliveries cheap on a healthy destination.
        if self.is_health_bad() || self.epochs.has_tries() || self.trust.has_failing_users() {
            self.update_health(now);
            if !self.is_health_bad() {
                self.epochs.begin_next();
            }
        }
        self.set_healthy_clock(now);
    }

    /// Reports that the attempt did not deliver all of its run. The verdict is that of the first event that failed.
    pub fn failed(&mut self, attempt: &Attempt, verdict: Verdict, now: Moment) -> TryJudgement {
        if verdict != Verdict::Drilled && !verdict.says_nothing() {
            self.paces.ended(attempt.user, attempt.began, false, now);
        }
        let is_probe = matches!(&self.state, BreakerState::Open { open, .. } if open.is_probe(attempt.seq));
        if verdict != Verdict::Drilled
            && !verdict.says_nothing()
            && matches!(self.since_delivery, SinceDelivery::NothingFailed)
        {
            self.since_delivery = SinceDelivery::Failing { since: now };
        }
        match verdict {
            Verdict::Drilled | Verdict::BatchFailed | Verdict::CutOff => self.abandoned(attempt),
            Verdict::Unreachable => {
                self.open(OpenCause::Unreachable, now);
                self.probe_failed(attempt, false, now);
            }
            Verdict::Retry { .. } | Verdict::Refused | Verdict::Busy { .. } => self.answered(attempt, now),
        }
        let counts = match verdict {
            Verdict::Drilled => true,
            Verdict::Retry { .. } | Verdict::Refused => match &self.state {
                // A time-out may come long after the outage in which its attempt began.
                BreakerState::Closed { is_health_bad, .. } => !is_health_bad && attempt.seq > self.attempts_in_outages,
                BreakerState::Open { .. } => is_probe && self.has_too_few_users(now),
            },
            Verdict::Busy { .. } | Verdict::Unreachable | Verdict::BatchFailed | Verdict::CutOff => false,
        };
        if counts {
            self.epochs.count_try();
        }
        self.set_healthy_clock(now);
        let is_excused = !counts && !self.is_healthy();
        let is_paced = is_excused && matches!(self.state, BreakerState::Open { .. });
        let delay_max = is_paced.then_some(PROBE_DELAY_MAX);
        TryJudgement { counts, health_epoch: self.epochs.current(), is_excused, delay_max }
    }

    /// Reports that the attempt ended without an answer, for example because the partition was revoked. This says nothing
    /// about the destination. If the attempt was the probe, another probe may begin.
    pub fn abandoned(&mut self, attempt: &Attempt) {
        if let BreakerState::Open { open, .. } = &mut self.state {
            open.probe_abandoned(attempt.seq);
        }
    }

    /// Makes the next probe due now, because an operator asked for it. Probes that hang do not matter. `false`: the breaker
    /// is closed, or a probe is due already, or has been in flight for less than a second.
    pub fn probe_now(&mut self, now: Moment) -> bool {
        match &mut self.state {
            BreakerState::Open { open, .. } => open.probe_now(now),
            BreakerState::Closed { .. } => false,
        }
    }

    /// Reports that an event of this user had failed before this process began, so the user is probed late.
    pub fn had_failed(&mut self, user: u64) {
        self.trust.had_failed(user);
    }

    /// The last outage that ended with a delivery.
    pub fn last_recovery(&self) -> Option<Recovery> {
        self.last_recovery
    }

    /// Reports the users of this partition that have unsettled events, including users whose next attempt is not due yet.
    ///
    /// The owner of the partition repeats this while the breaker is open. A closed breaker ignores it. It stops reading
    /// `users` once enough of them are trusted.
    pub fn users_wait(&mut self, partition: u32, users: impl IntoIterator<Item = u64>) {
        if let BreakerState::Open { open, .. } = &mut self.state {
            let trusted = users.into_iter().filter(|user| !self.trust.is_suspect(*user));
            open.set_waiting_users(partition, trusted.take(DECIDING_USERS_MIN).count());
        }
    }

    /// Reports that this process no longer owns the partition, so its users are no longer tried here.
    pub fn released(&mut self, partition: u32) {
        if let BreakerState::Open { open, .. } = &mut self.state {
            open.released(partition);
        }
    }

    /// Whether this user's failures count as its own and not as the destination's.
    pub fn is_suspect(&self, user: u64) -> bool {
        self.trust.is_suspect(user)
    }

    /// Reports that an attempt in flight has taken a second. Returns whether [its user is slow
    /// alone](Self::is_slow_alone).
    pub fn report_old_attempt(&mut self, user: u64, began: Moment, now: Moment) -> bool {
        self.paces.seen_slow(user, began, now);
        self.is_slow_alone(user, began, now)
    }

    /// Whether an attempt that takes longer than a second is slow because of its user: meanwhile another user was
    /// served in less than a second, and in at most half of the time that this attempt has taken up to now.
    pub fn is_slow_alone(&self, user: u64, began: Moment, now: Moment) -> bool {
        self.paces.is_slow_alone(user, began, now)
    }

    /// If the destination is slow for every user, since when this is so and no user was served within 500 ms. It is
    /// slow for every user if at least 5 users were slow lately, and none of them [alone](Self::is_slow_alone).
    pub fn slow_for_all_since(&self, now: Moment) -> Option<Moment> {
        self.paces.slow_for_all_since(now)
    }

    /// When a user was last served within 500 ms.
    pub fn last_quick_at(&self) -> Option<Moment> {
        self.paces.last_quick_at()
    }

    /// Whether the breaker has opened since the last delivery. [`BreakerSnapshot::out_since`] says when that began.
    pub fn is_out(&self) -> bool {
        matches!(self.since_delivery, SinceDelivery::Outage { .. })
    }

    /// The current epoch, to which a try that counts now belongs.
    pub fn health_epoch(&self) -> u64 {
        self.epochs.current()
    }

    /// When the breaker opened, if it is open because no user was delivered.
    pub fn no_user_delivered_since(&self) -> Option<Moment> {
        match &self.state {
            BreakerState::Open { since, open } if open.cause == OpenCause::NoUserDelivered => Some(*since),
            BreakerState::Open { .. } | BreakerState::Closed { .. } => None,
        }
    }

    /// Whether the tries of this epoch were taken back, because they were the destination's fault.
    pub fn is_void(&self, health_epoch: u64) -> bool {
        self.epochs.is_void(health_epoch)
    }

    /// The refusal that was reported just now as the failure of this attempt.
    pub fn refusal(&self, attempt: &Attempt, now: Moment) -> Refusal {
        let user = attempt.user;
        let since = attempt.seq.max(self.trust.latest_of_others(user));
        Refusal { user, since, at: now, health_epoch: self.epochs.current() }
    }

    /// Whether to give up an event that every attempt has refused since `first`.
    ///
    /// True if an attempt of another user was delivered since, as it makes a user suspect, or if 10 s have passed. Always
    /// false while the breaker is open or health is bad; after that, the 10 s start again.
    pub fn refusal_is_final(&self, first: &Refusal, now: Moment) -> bool {
        if !self.answers_are_the_events_own(now) {
            return false;
        }
        let from = self.unwell_at.map_or(first.at, |at| at.max(first.at));
        self.trust.latest_of_others(first.user) > first.since || now >= from.saturating_add(REFUSAL_FINAL_AFTER)
    }

    /// Whether the breaker is closed and the health of the destination is not bad.
    pub fn is_healthy(&self) -> bool {
        matches!(self.state, BreakerState::Closed { is_health_bad: false, .. })
    }

    /// Reports that an operator has paused the destination, or resumed it.
    pub fn set_paused(&mut self, is_paused: bool, now: Moment) {
        self.is_paused = is_paused;
        self.set_healthy_clock(now);
    }

    /// The time up to now in which the breaker [was healthy](Self::is_healthy). Like a clock that stands still during an
    /// outage and during a pause: the difference of two readings is the time that counts for an event.
    pub fn healthy_time(&self, now: Moment) -> Duration {
        self.healthy_clock.read(now)
    }

    /// The current state, for people.
    pub fn snapshot(&self, now: Moment) -> BreakerSnapshot {
        let (since, open, probing) = match &self.state {
            BreakerState::Closed { since, .. } => (*since, None, false),
            BreakerState::Open { since, open } => (*since, Some(open.cause), open.is_probing()),
        };
        let out_since = match self.since_delivery {
            SinceDelivery::Outage { since } => Some(since),
            SinceDelivery::NothingFailed | SinceDelivery::Failing { .. } => None,
        };
        let outage_began = out_since.map(|_| self.outage_began);
        BreakerSnapshot { since, open, out_since, outage_began, probing, health: self.recent.health(now, &self.trust) }
    }

    fn set_healthy_clock(&mut self, now: Moment) {
        self.healthy_clock.set_running(self.is_healthy() && !self.is_paused, now);
    }

    /// Whether the breaker is closed and the health of the destination is bad.
    pub fn is_health_bad(&self) -> bool {
        matches!(self.state, BreakerState::Closed { is_health_bad: true, .. })
    }

    fn answers_are_the_events_own(&self, now: Moment) -> bool {
        matches!(self.state, BreakerState::Closed { .. })
            && matches!(self.recent.health(now, &self.trust), Health::Unknown | Health::Good)
    }

    /// Whether the answers of an open breaker's destination come from too few users to decide between the events and the
    /// destination.
    fn has_too_few_users(&self, now: Moment) -> bool {
        let BreakerState::Open { open, .. } = &self.state else { return false };
        open.cause != OpenCause::Unreachable
            && open.waiting_users() < DECIDING_USERS_MIN
            && self.recent.health(now, &self.trust) == Health::Unknown
    }

    /// The destination answered, but did not deliver.
    fn answered(&mut self, attempt: &Attempt, now: Moment) {
        if self.last_delivery.is_none_or(|at| now >= at.saturating_add(VERDICT_AGE_MAX)) {
            self.trust.forget_deliveries();
        }
        let has_hung = now >= attempt.began.saturating_add(HANGS_AFTER);
        let failing = self.trust.failed(attempt.user, attempt.seq, has_hung);
        let BreakerState::Open { open, .. } = &mut self.state else {
            self.recent.failed(attempt.user, failing, now, &self.trust);
            self.update_health(now);
            return;
        };
        let is_probe = open.is_probe(attempt.seq);
        if open.cause == OpenCause::Unreachable && is_probe {
            open.cause = OpenCause::Undecided;
            // Verdicts from before the outage must not decide what the answers after it mean.
            self.recent.clear();
        }
        // An answer to a request that was sent before the outage does not show how the destination is now.
        if is_probe {
            self.recent.failed(attempt.user, failing, now, &self.trust);
        }
        if open.cause == OpenCause::Undecided && self.recent.failing_users(&self.trust) >= DECIDING_USERS_MIN {
            self.open(OpenCause::NoUserDelivered, now);
        }
        self.probe_failed(attempt, true, now);
    }

    /// Judges the health of a closed breaker after a verdict. It may open the breaker.
    fn update_health(&mut self, now: Moment) {
        let mut health = self.recent.health(now, &self.trust);
        let was_delivered_at = |at: Moment| now < at.saturating_add(OUTAGE_AFTER);
        if health == Health::Dead && self.last_delivery.is_some_and(was_delivered_at) {
            health = Health::Bad;
        }
        let BreakerState::Closed { is_health_bad, .. } = &mut self.state else { return };
        let was_bad = std::mem::replace(is_health_bad, health == Health::Bad);
        match health {
            Health::Unknown | Health::Good => self.allowance.health_is_better(now),
            Health::Bad => {
                self.unwell_at = Some(now);
                self.allowance.health_is_bad(now);
                if !was_bad {
                    self.epochs.take_tries_back();
                }
            }
            Health::Dead => self.open(OpenCause::NoUserDelivered, now),
        }
    }

    /// Opens a closed breaker, or sets the cause of an undecided outage. A decided outage keeps its cause.
    fn open(&mut self, cause: OpenCause, now: Moment) {
        match &mut self.state {
            BreakerState::Closed { .. } => {
                self.state = BreakerState::Open { since: now, open: OpenBreaker::new(cause, now) };
            }
            BreakerState::Open { open, .. } if open.cause == OpenCause::Undecided => open.cause = cause,
            BreakerState::Open { .. } => return,
        }
        self.epochs.take_tries_back();
        self.unwell_at = Some(now);
        if !self.is_out() {
            // A single user may fail for hours before an outage. So the first failure since the last delivery is not the
            // beginning of the outage: it is one of those that opened the breaker.
            self.outage_began = self.recent.failing_from(now, &self.trust).unwrap_or(now);
        }
        let since = match self.since_delivery {
            SinceDelivery::NothingFailed => now,
            SinceDelivery::Failing { since } | SinceDelivery::Outage { since } => since,
        };
        self.since_delivery = SinceDelivery::Outage { since };
    }

    fn close(&mut self, now: Moment) {
        let BreakerState::Open { since, .. } = self.state else { return };
        self.state = BreakerState::Closed { since: now, is_health_bad: false };
        self.attempts_in_outages = self.attempts;
        self.recent.clear();
        self.trust.outage_ended();
        if now >= since.saturating_add(RAMP_AFTER) {
            self.allowance.ramp_up(now);
        } else {
            self.allowance.health_is_better(now);
        }
        self.unwell_at = Some(now);
    }

    fn probe_failed(&mut self, attempt: &Attempt, is_answered: bool, now: Moment) {
        if let BreakerState::Open { open, .. } = &mut self.state {
            open.probe_failed(attempt.seq, is_answered, now);
        }
    }
}
