//! When an event may be given up, and when a failure is the destination's and not the event's: promise 6 in exact
//! words, apart from the breaker under test.
//!
//! A *phase* is a time in which the destination fails every attempt that begins in it, whoever's it is. For one life
//! of dispatch the outage is *evident* from the moment when 5 users who were well before (their last verdict from this
//! life was not a failure) have failed in the phase since this life last saw a delivery or an `Unreachable`. From then on no
//! failure of an attempt that began in the phase gives an event up, neither as exhausted nor as refused; and who was
//! not given up before is not held to its failures in the phase afterwards either. An `Unreachable` and a `Busy` never
//! count, evident or not.

use crate::dispatch::oracle::{Life, User};
use eventd::core::verdict::Verdict;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Users that have to fail before anybody can tell an outage from events that are bad themselves.
const USERS_THAT_TELL: usize = 5;

/// One phase in which everything fails, numbered.
pub(crate) type Phase = u32;

/// What one life saw in one phase from one delivery (or `Unreachable`) to the next.
pub(crate) type Story = (Phase, u64);

/// One failed attempt.
#[derive(Debug, Clone, Copy)]
struct Failure {
    verdict: Verdict,
    /// Of the phase in which it began, the story in which it ended.
    story: Option<Story>,
    /// The outage was evident when it ended.
    evident: bool,
}

/// The failed attempts of one event that one owner saw.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    seen: Vec<Failure>,
}

impl Failures {
    pub(crate) fn add(&mut self, verdict: Verdict, story: Option<Story>, evident: bool) {
        self.seen.push(Failure { verdict, story, evident });
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
        let same = |failure: &&Failure| failure.story.is_some() && failure.story == last.story;
        let told = |failure: &&Failure| failure.story.is_some_and(|story| health.evident.contains_key(&(life, story)));
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
    /// Users whose last verdict from this life was a failure.
    failing: HashSet<(Life, u32, User)>,
    /// Those of them who were so when the phase began, or who failed with what was on its way then.
    troubled: HashSet<(Life, u32, User)>,
    /// Users that failed in this phase since this life last saw a delivery.
    failed: HashMap<Life, HashSet<(u32, User)>>,
    /// How many deliveries, or `Unreachable`, each life saw.
    stories: HashMap<Life, u64>,
    /// When each life last saw an `Unreachable`.
    unreachable: HashMap<Life, Duration>,
    /// Since when.
    evident: HashMap<(Life, Story), Duration>,
}

impl Health {
    /// That of one who begins now, in the phase that there is.
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

    /// The phase that an attempt which begins now belongs to.
    pub(crate) fn phase(&self) -> Option<Phase> {
        self.phase
    }

    /// What this life sees now of the phase in which an attempt began.
    pub(crate) fn story(&self, life: Life, began_in: Option<Phase>) -> Option<Story> {
        began_in.map(|phase| (phase, self.stories.get(&life).copied().unwrap_or(0)))
    }

    /// Whether the outage was evident before this moment. What ends at one moment is seen in any order.
    pub(crate) fn was_evident(&self, life: Life, story: Story, now: Duration) -> bool {
        self.evident.get(&(life, story)).is_some_and(|since| *since < now)
    }

    /// A verdict that this life saw; its attempt began then, in that phase. True where this one made the
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
                // Somebody is served, by an attempt that was on its way: it takes 5 users again to tell.
                *self.stories.entry(life).or_default() += 1;
                false
            }
            // Who cannot even be reached says nothing new of how it answers, and the next answer begins a new story.
            (Some(Verdict::Unreachable), _) => {
                self.failed.remove(&life);
                self.unreachable.insert(life, now);
                *self.stories.entry(life).or_default() += 1;
                self.troubled.insert(who);
                false
            }
            (Some(Verdict::Retry { .. } | Verdict::Refused), Some(_)) if self.phase == began_in => {
                let story = self.story(life, began_in);
                // What was on its way when nobody could be reached tells nothing either.
                let too_early = self.unreachable.get(&life).is_some_and(|at| began <= *at);
                if too_early || self.troubled.contains(&who) {
                    return false;
                }
                let failed = self.failed.entry(life).or_default();
                failed.insert((partition, user.clone()));
                if failed.len() < USERS_THAT_TELL {
                    return false;
                }
                let Some(story) = story.filter(|story| !self.evident.contains_key(&(life, *story))) else {
                    return false;
                };
                self.evident.insert((life, story), now);
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
