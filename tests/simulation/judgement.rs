//! When an event may be given up, and when a failure is the destination's and not the event's: promise 6 in exact
//! words, apart from the breaker under test.
//!
//! A *phase* is a time in which the destination fails every attempt that begins in it, whoever's it is. For one life
//! of dispatch the outage is *evident* from the moment when 5 users who were well before (their last verdict from this
//! life was not a failure) have failed in the phase since this life last saw a delivery or an `Unreachable`. From then on no
//! failure of an attempt that began in the phase gives an event up, neither as exhausted nor as refused; and who was
//! not given up before is not held to its failures in the phase afterwards either. An `Unreachable` and a `Busy` never
//! count, evident or not.

use crate::oracle::{Life, User};
use eventd::core::verdict::Verdict;
use std::collections::{HashMap, HashSet};

/// Users that have to fail before anybody can tell an outage from events that are bad themselves.
const USERS_THAT_TELL: usize = 5;

/// One phase in which everything fails, numbered.
pub(crate) type Phase = u32;

/// One failed attempt.
#[derive(Debug, Clone, Copy)]
struct Failure {
    verdict: Verdict,
    /// The phase in which it began.
    phase: Option<Phase>,
    /// That phase was evident when it ended.
    evident: bool,
}

/// The failed attempts of one event that one owner saw.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    seen: Vec<Failure>,
}

impl Failures {
    pub(crate) fn add(&mut self, verdict: Verdict, phase: Option<Phase>, evident: bool) {
        self.seen.push(Failure { verdict, phase, evident });
    }

    /// Attempts that were seen to fail.
    pub(crate) fn seen(&self) -> u32 {
        self.seen.len() as u32
    }

    /// Why this event may not be given up for this reason; `None` where it may.
    pub(crate) fn forbid(&self, life: Life, reason: &str, attempts: u32, health: &Health) -> Option<String> {
        let last = self.seen.last()?;
        if last.evident {
            return Some(format!("in an outage that 5 users had told of: {:?}", self.seen));
        }
        // Who failed for the last time before anybody could tell was given up in good faith. Who failed again after
        // the outage was not: the tries in it are taken back.
        let same = |failure: &&Failure| failure.phase.is_some() && failure.phase == last.phase;
        let told = |failure: &&Failure| failure.phase.is_some_and(|phase| health.is_evident(life, phase));
        let own = || self.seen.iter().filter(|failure| !failure.evident && (same(failure) || !told(failure)));
        match reason {
            "exhausted" => {
                let tries = own().filter(|failure| counts(failure.verdict)).count() as u32;
                (tries < attempts).then(|| format!("after {tries} tries of {attempts} that count: {:?}", self.seen))
            }
            "refused" => {
                let refused = own().any(|failure| failure.verdict == Verdict::Refused);
                (!refused).then(|| format!("as refused, and no refusal counts: {:?}", self.seen))
            }
            _ => Some(format!("for the reason {reason:?}, which nothing here gives")),
        }
    }
}

fn counts(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Retry { .. } | Verdict::Refused | Verdict::Drilled)
}

/// What each life can know of the destination's health.
#[derive(Debug, Default)]
pub(crate) struct Health {
    phase: Option<Phase>,
    phases: Phase,
    /// Users whose last verdict from this life was a failure of an attempt outside of any phase.
    troubled: HashSet<(Life, u32, User)>,
    /// Users that failed in this phase since this life last saw a delivery.
    failed: HashMap<Life, HashSet<(u32, User)>>,
    evident: HashSet<(Life, Phase)>,
}

impl Health {
    pub(crate) fn phase_begins(&mut self) {
        self.phases += 1;
        self.phase = Some(self.phases);
        self.failed.clear();
    }

    pub(crate) fn phase_ends(&mut self) {
        self.phase = None;
    }

    /// The phase that an attempt which begins now belongs to.
    pub(crate) fn phase(&self) -> Option<Phase> {
        self.phase
    }

    pub(crate) fn is_evident(&self, life: Life, phase: Phase) -> bool {
        self.evident.contains(&(life, phase))
    }

    /// A verdict that this life saw; `began_in` is the phase in which the attempt began. True where this one made the
    /// outage evident.
    pub(crate) fn saw(
        &mut self,
        life: Life,
        partition: u32,
        user: &User,
        failed: Option<Verdict>,
        began_in: Option<Phase>,
    ) -> bool {
        let who = (life, partition, user.clone());
        match (failed, began_in) {
            (None, _) => {
                self.troubled.remove(&who);
                self.failed.remove(&life);
                // Somebody is served, by an attempt that was on its way: it takes 5 users again to tell.
                self.evident.retain(|(of, phase)| *of != life || Some(*phase) != self.phase);
                false
            }
            // Who cannot even be reached says nothing new of how it answers, and the next answer begins a new story.
            (Some(Verdict::Unreachable), _) => {
                self.failed.remove(&life);
                self.evident.retain(|(of, phase)| *of != life || Some(*phase) != self.phase);
                self.troubled.insert(who);
                false
            }
            (Some(Verdict::Retry { .. } | Verdict::Refused), Some(phase)) if self.phase == began_in => {
                if self.troubled.contains(&who) {
                    return false;
                }
                let failed = self.failed.entry(life).or_default();
                failed.insert((partition, user.clone()));
                failed.len() >= USERS_THAT_TELL && self.evident.insert((life, phase))
            }
            (Some(_), _) => {
                self.troubled.insert(who);
                false
            }
        }
    }

    pub(crate) fn forget(&mut self, life: Life) {
        self.troubled.retain(|(of, _, _)| *of != life);
        self.failed.remove(&life);
        self.evident.retain(|(of, _)| *of != life);
    }
}
