//! Compares the breaker with a simple model. The model keeps the whole history, and reads all of it to answer a question.
//! It is too slow for production, but each of its rules is easy to check.

use super::*;
use proptest::prelude::*;

const USERS: u64 = 26;

#[derive(Debug, Clone, Copy)]
enum HistoryEntry {
    Delivered {
        user: u64,
        seq: u64,
        at: Moment,
    },
    /// The destination answered without delivering. `counts_for_health`: the breaker was closed or undecided, or this was
    /// its probe.
    Answered {
        user: u64,
        seq: u64,
        at: Moment,
        counts_for_health: bool,
    },
    ProbeDelivered {
        seq: u64,
    },
    /// An attempt did not reach the destination.
    Unreachable {
        at: Moment,
    },
    Opened,
    /// Earlier verdicts are forgotten: the breaker closed, or an unreachable destination answered.
    HealthReset,
    /// A failure counted as a try.
    Try {
        epoch: u64,
    },
    /// A delivery while health is not bad. It makes earlier tries final.
    TriesFinal,
    /// Health turned bad, or the breaker opened. Tries that are not final are taken back.
    TriesTakenBack,
    /// Health is bad, or the breaker opened or closed.
    Unwell {
        at: Moment,
    },
}

#[derive(Debug, Default)]
struct Model {
    history: Vec<HistoryEntry>,
    is_health_bad: bool,
    outage: Option<ModelOutage>,
}

#[derive(Debug)]
struct ModelOutage {
    cause: OpenCause,
    /// The number of the probe in flight.
    probe: Option<u64>,
    probe_due: Moment,
    /// How often the delay of the next probe was doubled.
    doublings: u32,
    /// The users probed in this round, and whether each was trusted.
    round: Vec<(u64, bool)>,
    /// The last reported number of trusted users with unsettled events.
    waiting_users: usize,
}

impl Model {
    /// Whether an attempt of another user that began after `since` was delivered, in this part of the history.
    fn others_delivered_later(history: &[HistoryEntry], of: u64, since: u64) -> bool {
        history
            .iter()
            .any(|entry| matches!(entry, HistoryEntry::Delivered { user, seq, .. } if *user != of && *seq > since))
    }

    fn is_suspect(&self, of: u64) -> bool {
        let (mut since, mut pardoned) = (None, false);
        for (index, entry) in self.history.iter().enumerate() {
            match (*entry, since) {
                (HistoryEntry::Delivered { user, .. }, _) if user == of => since = None,
                (HistoryEntry::Answered { user, seq, .. }, None) if user == of => {
                    (since, pardoned) = (Some(seq), false)
                }
                (HistoryEntry::ProbeDelivered { seq }, Some(first))
                    if !pardoned && !Self::others_delivered_later(&self.history[..index], of, first) =>
                {
                    (since, pardoned) = (Some(seq), true);
                }
                _ => {}
            }
        }
        since.is_some_and(|since| Self::others_delivered_later(&self.history, of, since))
    }

    /// The verdicts that health is made of: the last 20 users in the order of their last verdict while trusted, its time,
    /// and whether it was a delivery.
    fn verdicts(&self) -> Vec<(u64, Moment, bool)> {
        let mut places: Vec<(u64, Moment)> = Vec::new();
        let mut last: std::collections::HashMap<u64, bool> = Default::default();
        let begin = self.history.iter().rposition(|entry| matches!(entry, HistoryEntry::HealthReset)).unwrap_or(0);
        for (index, entry) in self.history.iter().enumerate().skip(begin) {
            let (user, at, delivered) = match *entry {
                HistoryEntry::Delivered { user, at, .. } => (user, at, true),
                HistoryEntry::Answered { user, at, counts_for_health: true, .. } => (user, at, false),
                _ => continue,
            };
            let then = Self { history: self.history[..=index].to_vec(), ..Self::default() };
            last.insert(user, delivered);
            if delivered || !then.is_suspect(user) {
                places.retain(|(other, _)| *other != user);
                places.push((user, at));
            }
        }
        places[places.len().saturating_sub(20)..]
            .iter()
            .filter(|(user, _)| !self.is_suspect(*user))
            .map(|(user, at)| (*user, *at, last[user]))
            .collect()
    }

    fn health(&self, now: Moment) -> Health {
        let verdicts: Vec<bool> = self
            .verdicts()
            .into_iter()
            .filter(|(_, at, _)| now - *at < Duration::from_secs(60))
            .map(|(_, _, delivered)| delivered)
            .collect();
        let delivered = verdicts.iter().filter(|delivered| **delivered).count();
        if verdicts.len() < 5 {
            Health::Unknown
        } else if verdicts[verdicts.len() - 5..] == [false; 5] {
            Health::Dead
        } else if delivered * 2 < verdicts.len() {
            Health::Bad
        } else {
            Health::Good
        }
    }

    fn update_health(&mut self, now: Moment) {
        match self.health(now) {
            Health::Dead => self.open(OpenCause::NoUserDelivered, now),
            Health::Bad => {
                if !std::mem::replace(&mut self.is_health_bad, true) {
                    self.history.push(HistoryEntry::TriesTakenBack);
                }
                self.history.push(HistoryEntry::Unwell { at: now });
            }
            _ => self.is_health_bad = false,
        }
    }

    fn open(&mut self, cause: OpenCause, now: Moment) {
        match &mut self.outage {
            None => {
                let probe_due = now + Duration::from_millis(100);
                self.outage = Some(ModelOutage {
                    cause,
                    probe: None,
                    probe_due,
                    doublings: 0,
                    round: Vec::new(),
                    waiting_users: 0,
                });
            }
            Some(outage) if outage.cause == OpenCause::Undecided => outage.cause = cause,
            Some(_) => return,
        }
        self.history.extend([HistoryEntry::Opened, HistoryEntry::TriesTakenBack, HistoryEntry::Unwell { at: now }]);
    }

    /// Returns whether the attempt is a probe.
    fn begin(&mut self, attempt: &Attempt, now: Moment) -> bool {
        if self.gate(now) != Gate::HalfOpen {
            return false;
        }
        let (trusted, health) = (!self.is_suspect(attempt.user), self.health(now));
        let Some(outage) = &mut self.outage else { return false };
        let was_probed = outage.round.iter().any(|(user, _)| *user == attempt.user);
        let has_too_few_users = outage.round.iter().filter(|(_, trusted)| *trusted).count() < 5
            && (was_probed || !trusted)
            && outage.waiting_users < 5
            && health == Health::Unknown;
        if outage.cause != OpenCause::Unreachable && has_too_few_users {
            self.close(now);
            return false;
        }
        if was_probed {
            outage.round.clear();
        }
        outage.round.push((attempt.user, trusted));
        outage.probe = Some(attempt.seq);
        true
    }

    /// The time of the first failure of an outage without a delivery.
    fn out_since(&self) -> Option<Moment> {
        let delivered = self.history.iter().rposition(|entry| matches!(entry, HistoryEntry::Delivered { .. }));
        let since = &self.history[delivered.unwrap_or(0)..];
        let opened = since.iter().any(|entry| matches!(entry, HistoryEntry::Opened));
        let first = since.iter().find_map(|entry| match entry {
            HistoryEntry::Answered { at, .. } | HistoryEntry::Unreachable { at } => Some(*at),
            _ => None,
        });
        first.filter(|_| opened)
    }

    fn close(&mut self, now: Moment) {
        if self.outage.take().is_some() {
            self.history.extend([HistoryEntry::HealthReset, HistoryEntry::Unwell { at: now }]);
            self.is_health_bad = false;
        }
    }

    fn delivered(&mut self, attempt: &Attempt, now: Moment) {
        if self.outage.as_ref().is_some_and(|outage| outage.probe == Some(attempt.seq)) {
            self.history.push(HistoryEntry::ProbeDelivered { seq: attempt.seq });
        }
        self.close(now);
        self.history.push(HistoryEntry::Delivered { user: attempt.user, seq: attempt.seq, at: now });
        self.update_health(now);
        if !self.is_health_bad {
            self.history.push(HistoryEntry::TriesFinal);
        }
    }

    /// Returns whether the failure is a try.
    fn failed(&mut self, attempt: &Attempt, verdict: Verdict, now: Moment) -> bool {
        let probe = self.outage.as_ref().is_some_and(|outage| outage.probe == Some(attempt.seq));
        if verdict == Verdict::Drilled {
            self.abandoned(attempt);
            return true;
        }
        let is_undecided =
            |model: &Self| model.outage.as_ref().is_some_and(|outage| outage.cause == OpenCause::Undecided);
        if verdict == Verdict::Unreachable {
            self.history.push(HistoryEntry::Unreachable { at: now });
            self.open(OpenCause::Unreachable, now);
        } else {
            let answered = probe && self.outage.as_ref().is_some_and(|outage| outage.cause == OpenCause::Unreachable);
            if answered && let Some(outage) = &mut self.outage {
                outage.cause = OpenCause::Undecided;
                self.history.push(HistoryEntry::HealthReset);
            }
            let (user, seq) = (attempt.user, attempt.seq);
            let counts_for_health = self.outage.is_none() || probe || is_undecided(self);
            self.history.push(HistoryEntry::Answered { user, seq, at: now, counts_for_health });
            let trusted = !self.is_suspect(user);
            match &mut self.outage {
                None => self.update_health(now),
                Some(outage) if answered => outage.round = vec![(user, trusted)],
                Some(_) => {}
            }
            if is_undecided(self) && self.verdicts().len() >= 5 {
                self.open(OpenCause::NoUserDelivered, now);
            }
            if let Some(outage) = &mut self.outage
                && probe
            {
                (outage.doublings, outage.probe) = (if answered { 0 } else { outage.doublings + 1 }, None);
            }
        }
        if let Some(outage) = &mut self.outage
            && probe
        {
            if verdict == Verdict::Unreachable {
                (outage.doublings, outage.probe) = (outage.doublings + 1, None);
            }
            outage.probe_due = now + Duration::from_millis((100 << outage.doublings.min(10)).min(5000));
        }
        let counts_now = match &self.outage {
            None => !self.is_health_bad,
            Some(outage) => outage.cause == OpenCause::Undecided && outage.waiting_users < 5,
        };
        counts_now && matches!(verdict, Verdict::Retry { .. } | Verdict::Refused)
    }

    fn abandoned(&mut self, attempt: &Attempt) {
        if let Some(outage) = &mut self.outage
            && outage.probe == Some(attempt.seq)
        {
            (outage.probe, outage.probe_due) = (None, Duration::ZERO);
        }
    }

    fn gate(&self, now: Moment) -> Gate {
        match &self.outage {
            None => Gate::Closed,
            Some(outage) if outage.probe.is_some() => Gate::Open { until: None },
            Some(outage) if now >= outage.probe_due => Gate::HalfOpen,
            Some(outage) => Gate::Open { until: Some(outage.probe_due) },
        }
    }

    fn refusal_is_final(&self, first: &Refusal, now: Moment) -> bool {
        let unwell = self.history.iter().filter_map(|entry| match entry {
            HistoryEntry::Unwell { at } => Some(*at),
            _ => None,
        });
        let from = unwell.chain([first.at]).max().unwrap();
        self.outage.is_none()
            && matches!(self.health(now), Health::Unknown | Health::Good)
            && (Self::others_delivered_later(&self.history, first.attempt.user, first.attempt.seq)
                || now - from >= Duration::from_secs(10))
    }

    /// Every counted try: its epoch, and whether it was taken back.
    fn tries(&self) -> Vec<(u64, bool)> {
        let is_taken_back = |rest: &[HistoryEntry]| {
            let first =
                rest.iter().find(|entry| matches!(entry, HistoryEntry::TriesFinal | HistoryEntry::TriesTakenBack));
            matches!(first, Some(HistoryEntry::TriesTakenBack))
        };
        let tries = self.history.iter().enumerate().filter_map(|(index, entry)| match entry {
            HistoryEntry::Try { epoch } => Some((*epoch, is_taken_back(&self.history[index..]))),
            _ => None,
        });
        tries.collect()
    }
}

#[derive(Debug, Clone)]
enum BreakerStep {
    Begin(u64),
    /// The position of an attempt among those in flight, from the oldest on.
    Deliver(usize),
    /// Position, verdict, and whether the first events of the run were delivered.
    Fail(usize, Verdict, bool),
    Abandon(usize),
    /// This many users, from user 0 on, have unsettled events.
    UsersWait(u64),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<BreakerStep>> {
    let verdict = prop_oneof![
        8 => Just(Verdict::Retry { after: None }),
        4 => Just(Verdict::Refused),
        2 => Just(Verdict::Busy { after: None }),
        1 => Just(Verdict::Unreachable),
        1 => Just(Verdict::Drilled),
    ];
    // Each case has its own ratio of deliveries to failures, so that long times of good, bad and dead health all occur.
    (1u32..20, 1u32..20, 1u64..=USERS).prop_flat_map(move |(deliver, fail, users)| {
        let step = prop_oneof![
            20 => (0..users).prop_map(BreakerStep::Begin),
            deliver => (0usize..4).prop_map(BreakerStep::Deliver),
            fail => (0usize..4, verdict.clone(), proptest::bool::weighted(0.1))
                .prop_map(|(which, verdict, part)| BreakerStep::Fail(which, verdict, part)),
            1 => (0usize..4).prop_map(BreakerStep::Abandon),
            2 => (0..=users).prop_map(BreakerStep::UsersWait),
            1 => prop_oneof![8 => 1u64..300, 2 => 1000u64..12_000, 1 => 50_000u64..70_000].prop_map(BreakerStep::Wait),
        ];
        proptest::collection::vec(step, 0..160)
    })
}

proptest! {
    #[test]
    fn the_breaker_agrees_with_a_model_that_reads_the_whole_history(steps in steps()) {
        let (mut breaker, mut model, mut now) = (Breaker::new(), Model::default(), Duration::from_secs(1));
        let (mut in_flight, mut refused): (Vec<Attempt>, Vec<Refusal>) = (Vec::new(), Vec::new());
        for step in steps {
            let take = |in_flight: &mut Vec<Attempt>, which: usize| {
                (!in_flight.is_empty()).then(|| in_flight.remove(which.min(in_flight.len() - 1)))
            };
            match step {
                BreakerStep::Begin(user) => {
                    let attempt = breaker.begin(user, now);
                    prop_assert_eq!(attempt.probe, model.begin(&attempt, now));
                    in_flight.push(attempt);
                }
                BreakerStep::Deliver(which) => if let Some(attempt) = take(&mut in_flight, which) {
                    breaker.delivered(&attempt, now);
                    model.delivered(&attempt, now);
                },
                BreakerStep::Fail(which, verdict, part) => if let Some(attempt) = take(&mut in_flight, which) {
                    if part {
                        breaker.delivered(&attempt, now);
                        model.delivered(&attempt, now);
                    }
                    let judgement = breaker.failed(&attempt, verdict, now);
                    prop_assert_eq!(judgement.counts, model.failed(&attempt, verdict, now));
                    if judgement.counts {
                        prop_assert_eq!(judgement.health_epoch, breaker.health_epoch());
                        model.history.push(HistoryEntry::Try { epoch: judgement.health_epoch });
                    }
                    if verdict == Verdict::Refused {
                        refused.push(Refusal { attempt, at: now, health_epoch: judgement.health_epoch });
                    }
                },
                BreakerStep::Abandon(which) => if let Some(attempt) = take(&mut in_flight, which) {
                    breaker.abandoned(&attempt);
                    model.abandoned(&attempt);
                },
                BreakerStep::UsersWait(users) => {
                    breaker.users_wait(0, 0..users);
                    let trusted = (0..users).filter(|user| !model.is_suspect(*user)).count();
                    if let Some(outage) = &mut model.outage {
                        outage.waiting_users = trusted;
                    }
                }
                BreakerStep::Wait(ms) => now += Duration::from_millis(ms),
            }
            now += Duration::from_millis(1);
            prop_assert_eq!(breaker.gate(now), model.gate(now));
            prop_assert_eq!(breaker.snapshot(now).open, model.outage.as_ref().map(|outage| outage.cause));
            if model.outage.is_none() {
                prop_assert_eq!(breaker.snapshot(now).health, model.health(now));
            }
            for user in 0..USERS {
                prop_assert_eq!(breaker.is_suspect(user), model.is_suspect(user), "user {}", user);
            }
            prop_assert_eq!(breaker.snapshot(now).out_since, model.out_since());
            for first in refused.iter().rev().take(3) {
                prop_assert_eq!(breaker.refusal_is_final(first, now), model.refusal_is_final(first, now));
            }
        }
        for (epoch, is_void) in model.tries() {
            prop_assert_eq!(breaker.is_void(epoch), is_void, "epoch {}", epoch);
        }
    }
}
