//! The rules for giving an event up: promise 6 in exact terms, independent of the breaker under test.
//!
//! A *phase* is a time in which the destination fails every attempt that begins in it, for every user. Each life of
//! dispatch can know that the phase is an outage when 5 users have failed in it since this life last saw a delivery or
//! an `Unreachable`. Only users that were well before count: their last verdict from this life was not a failure. From
//! then on the outage is *evident* to this life.
//!
//! While the outage is evident, no failure of an attempt that began in the phase gives an event up, neither as
//! exhausted nor as refused. An event that was not given up before is not held to its failures in the phase afterwards
//! either. An `Unreachable` and a `Busy` never count, whether the outage is evident or not.

use crate::dispatch::oracle::{Life, User};
use eventd::core::verdict::Verdict;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// This many users must fail before an outage can be told from bad events.
const USERS_THAT_TELL: usize = 5;

/// The number of a phase in which everything fails.
pub(crate) type Phase = u32;

/// What one life saw in one phase from one delivery (or `Unreachable`) to the next: the phase, and the number of
/// deliveries before.
pub(crate) type OutageWindow = (Phase, u64);

/// One failed attempt.
#[derive(Debug, Clone, Copy)]
struct Failure {
    verdict: Verdict,
    /// The window in which the attempt ended, for the phase in which it began.
    window: Option<OutageWindow>,
    /// Whether the outage was evident when the attempt ended.
    evident: bool,
}

/// What may end the tries of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TryLimits {
    /// The tries that are left to an owner.
    pub(crate) attempts: u32,
    /// Whether the event may have failed for as long as `--give-up-after` says. Outages do not count, so the time from its
    /// first failure to its last one is at least as long.
    pub(crate) is_too_old: bool,
}

/// The failed attempts of one event that one owner saw.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    seen: Vec<Failure>,
}

impl Failures {
    pub(crate) fn add(&mut self, verdict: Verdict, window: Option<OutageWindow>, evident: bool) {
        self.seen.push(Failure { verdict, window, evident });
    }

    /// The number of attempts that were seen to fail.
    pub(crate) fn seen(&self) -> u32 {
        self.seen.len() as u32
    }

    /// Whether the last failure may have ended the tries of this event.
    pub(crate) fn may_end_tries(&self, life: Life, limits: TryLimits, health: &Health) -> bool {
        self.seen.last().is_some_and(|last| {
            let may_end = |reason| self.forbid(life, reason, limits, health).is_none();
            may_end("exhausted") || (last.verdict == Verdict::Refused && may_end("refused"))
        })
    }

    /// Why this event must not be given up for this reason, or `None` if it may be.
    pub(crate) fn forbid(&self, life: Life, reason: &str, limits: TryLimits, health: &Health) -> Option<String> {
        let last = self.seen.last()?;
        if last.evident {
            return Some(format!("in an outage that 5 users had shown: {:?}", self.seen));
        }
        // An event whose last failure came before the outage was evident was given up in good faith. If it failed again
        // after the outage, it was not: the tries in the outage are taken back.
        let same = |failure: &&Failure| failure.window.is_some() && failure.window == last.window;
        let counts_as_outage =
            |failure: &&Failure| failure.window.is_some_and(|window| health.evident.contains_key(&(life, window)));
        let own =
            || self.seen.iter().filter(|failure| !failure.evident && (same(failure) || !counts_as_outage(failure)));
        match reason {
            "exhausted" => {
                let TryLimits { attempts, is_too_old } = limits;
                let tries = own().filter(|failure| counts(failure.verdict)).count() as u32;
                // A destination that is busy uses up no try, but time passes.
                let may_end = counts(last.verdict) || (is_too_old && matches!(last.verdict, Verdict::Busy { .. }));
                (!may_end || (tries < attempts && !is_too_old))
                    .then(|| format!("after {tries} tries of {attempts} that count, and too early: {:?}", self.seen))
            }
            "refused" => {
                let refused = own().any(|failure| failure.verdict == Verdict::Refused);
                (!refused).then(|| format!("as refused, but no refusal counts: {:?}", self.seen))
            }
            _ => Some(format!("for the unexpected reason {reason:?}")),
        }
    }
}

fn counts(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Retry { .. } | Verdict::Refused | Verdict::Drilled)
}

/// What each life can know about the destination's health.
#[derive(Debug, Default)]
pub(crate) struct Health {
    phase: Option<Phase>,
    phases: Phase,
    /// Users whose last verdict from this life was a failure.
    failing: HashSet<(Life, u32, User)>,
    /// Users among them that failed before the phase began, or with an attempt that was in flight then.
    troubled: HashSet<(Life, u32, User)>,
    /// Users that failed in this phase since this life last saw a delivery.
    failed: HashMap<Life, HashSet<(u32, User)>>,
    /// The number of deliveries or `Unreachable` verdicts that each life saw.
    windows: HashMap<Life, u64>,
    /// When each life last saw an `Unreachable`.
    unreachable: HashMap<Life, Duration>,
    /// When each outage became evident.
    evident: HashMap<(Life, OutageWindow), Duration>,
}

impl Health {
    /// The health of a life that begins now, in the current phase.
    pub(crate) fn of_newcomer(&self) -> Self {
        Self { phase: self.phase, phases: self.phases, ..Self::default() }
    }

    pub(crate) fn phase_begins(&mut self) {
        self.phases += 1;
        self.phase = Some(self.phases);
        self.failed.clear();
        self.troubled = self.failing.clone();
    }

    pub(crate) fn phase_ends(&mut self) {
        self.phase = None;
    }

    /// The phase to which an attempt that begins now belongs.
    pub(crate) fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// This life's current window in the phase in which an attempt began.
    pub(crate) fn window(&self, life: Life, began_in: Option<Phase>) -> Option<OutageWindow> {
        began_in.map(|phase| (phase, self.windows.get(&life).copied().unwrap_or(0)))
    }

    /// Whether the outage was evident before this moment. Events at the same moment may be seen in any order.
    pub(crate) fn was_evident(&self, life: Life, window: OutageWindow, now: Duration) -> bool {
        self.evident.get(&(life, window)).is_some_and(|since| *since < now)
    }

    /// Records a verdict that this life saw, of an attempt that began at `began`. Returns true if this verdict made the
    /// outage evident.
    pub(crate) fn saw(
        &mut self,
        life: Life,
        partition: u32,
        user: &User,
        failed: Option<Verdict>,
        (began, began_in): (Duration, Option<Phase>),
        now: Duration,
    ) -> bool {
        let who = (life, partition, user.clone());
        match failed {
            Some(_) => self.failing.insert(who.clone()),
            None => self.failing.remove(&who),
        };
        match (failed, began_in) {
            (None, _) => {
                self.troubled.remove(&who);
                self.failed.remove(&life);
                // An attempt that was in flight was delivered. So 5 users must fail again before the outage is evident.
                *self.windows.entry(life).or_default() += 1;
                false
            }
            // An unreachable destination says nothing about how it answers. The next answer begins a new window.
            (Some(Verdict::Unreachable), _) => {
                self.failed.remove(&life);
                self.unreachable.insert(life, now);
                *self.windows.entry(life).or_default() += 1;
                self.troubled.insert(who);
                false
            }
            (Some(Verdict::Retry { .. } | Verdict::Refused), Some(_)) if self.phase == began_in => {
                let window = self.window(life, began_in);
                // An attempt that was in flight while the destination was unreachable says nothing either.
                let too_early = self.unreachable.get(&life).is_some_and(|at| began <= *at);
                if too_early || self.troubled.contains(&who) {
                    return false;
                }
                let failed = self.failed.entry(life).or_default();
                failed.insert((partition, user.clone()));
                if failed.len() < USERS_THAT_TELL {
                    return false;
                }
                let Some(window) = window.filter(|window| !self.evident.contains_key(&(life, *window))) else {
                    return false;
                };
                self.evident.insert((life, window), now);
                true
            }
            (Some(_), _) => {
                self.troubled.insert(who);
                false
            }
        }
    }

    pub(crate) fn forget(&mut self, life: Life) {
        self.failing.retain(|(of, _, _)| *of != life);
        self.troubled.retain(|(of, _, _)| *of != life);
        self.failed.remove(&life);
        self.unreachable.remove(&life);
        self.evident.retain(|(of, _), _| *of != life);
    }
}
