//! When an event may be given up, and when a failure is the destination's and not the event's: promise 6 in exact
//! words, apart from the breaker under test.
//!
//! A *phase* is a time in which the destination fails every attempt that begins in it, whoever's it is. For one life
//! of dispatch the outage is *evident* from the moment when 5 users who were well before (their last verdict from this
//! life was not a failure) have failed in the phase since this life last saw a delivery. Then no failure of an attempt
//! that began in this phase may count: not towards giving up after so many tries, and no refusal is believed. An
//! `Unreachable` and a `Busy` never count, evident or not.

use crate::oracle::{Life, User};
use eventd::core::verdict::Verdict;
use std::collections::{HashMap, HashSet};

/// Users that have to fail before anybody can tell an outage from events that are bad themselves.
const USERS_THAT_TELL: usize = 5;

/// One phase in which everything fails, numbered.
pub(crate) type Phase = u32;

/// The failed attempts of one event that one owner saw.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    seen: Vec<(Verdict, Option<Phase>)>,
}

impl Failures {
    pub(crate) fn add(&mut self, verdict: Verdict, phase: Option<Phase>) {
        self.seen.push((verdict, phase));
    }

    /// Attempts that were seen to fail.
    pub(crate) fn seen(&self) -> u32 {
        self.seen.len() as u32
    }

    /// Why this event may not be given up for this reason; `None` where it may.
    pub(crate) fn forbid(&self, life: Life, reason: &str, attempts: u32, health: &Health) -> Option<String> {
        let excused = |phase: &Option<Phase>| phase.is_some_and(|phase| health.is_evident(life, phase));
        let own = || self.seen.iter().filter(|(_, phase)| !excused(phase)).map(|(verdict, _)| *verdict);
        match reason {
            "exhausted" => {
                let tries = own().filter(|verdict| counts(*verdict)).count() as u32;
                (tries < attempts).then(|| format!("after {tries} tries of {attempts} that count: {:?}", self.seen))
            }
            "refused" => {
                let refused = own().any(|verdict| verdict == Verdict::Refused);
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
