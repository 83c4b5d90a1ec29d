//! The breaker against a model that keeps the whole history and answers every question by reading all of it.

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
    /// `believed`: it is about health, since the breaker was closed, or this was its probe, or it was undecided.
    Answered {
        user: u64,
        seq: u64,
        at: Moment,
        believed: bool,
    },
    ProbeDelivered {
        seq: u64,
    },
    /// An attempt that never got there.
    Unreachable {
        at: Moment,
    },
    Opened,
    /// Health begins anew: the breaker closed, or an unreachable destination answered.
    Anew,
    /// A try was counted.
    Try {
        mark: u64,
    },
    /// A delivery in health that is not bad.
    Better,
    /// Health turned bad, or the breaker opened.
    Worse,
    /// Health is bad, or the breaker opens or closes.
    Unwell {
        at: Moment,
    },
}

#[derive(Debug, Default)]
struct Model {
    history: Vec<HistoryEntry>,
    bad: bool,
    outage: Option<ModelOutage>,
}

#[derive(Debug)]
struct ModelOutage {
    cause: OpenCause,
    /// Of the probe under way.
    probe: Option<u64>,
    due: Moment,
    /// How often the time to the next probe was doubled.
    doublings: u32,
    /// Who was probed in this round, and whether it was trusted.
    round: Vec<(u64, bool)>,
    /// Trusted users with unsettled events, as was told last.
    waiting: usize,
}

impl Model {
    /// Whether another user's attempt begun after `since` was delivered, in this much of the history.
    fn others_later(history: &[HistoryEntry], of: u64, since: u64) -> bool {
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
                    if !pardoned && !Self::others_later(&self.history[..index], of, first) =>
                {
                    (since, pardoned) = (Some(seq), true);
                }
                _ => {}
            }
        }
        since.is_some_and(|since| Self::others_later(&self.history, of, since))
    }

    /// What health is made of: users in the order of their last word while trusted, when, and whether it was a delivery.
    fn words(&self) -> Vec<(u64, Moment, bool)> {
        let mut places: Vec<(u64, Moment)> = Vec::new();
        let mut last: std::collections::HashMap<u64, bool> = Default::default();
        let begin = self.history.iter().rposition(|entry| matches!(entry, HistoryEntry::Anew)).unwrap_or(0);
        for (index, entry) in self.history.iter().enumerate().skip(begin) {
            let (user, at, delivered) = match *entry {
                HistoryEntry::Delivered { user, at, .. } => (user, at, true),
                HistoryEntry::Answered { user, at, believed: true, .. } => (user, at, false),
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
        let words: Vec<bool> = self
            .words()
            .into_iter()
            .filter(|(_, at, _)| now - *at < Duration::from_secs(60))
            .map(|(_, _, delivered)| delivered)
            .collect();
        let delivered = words.iter().filter(|delivered| **delivered).count();
        if words.len() < 5 {
            Health::Unknown
        } else if words[words.len() - 5..] == [false; 5] {
            Health::Dead
        } else if delivered * 2 < words.len() {
            Health::Bad
        } else {
            Health::Good
        }
    }

    fn look(&mut self, now: Moment) {
        match self.health(now) {
            Health::Dead => self.open(OpenCause::NobodyDelivered, now),
            Health::Bad => {
                if !std::mem::replace(&mut self.bad, true) {
                    self.history.push(HistoryEntry::Worse);
                }
                self.history.push(HistoryEntry::Unwell { at: now });
            }
            _ => self.bad = false,
        }
    }

    fn open(&mut self, cause: OpenCause, now: Moment) {
        match &mut self.outage {
            None => {
                let due = now + Duration::from_millis(100);
                self.outage =
                    Some(ModelOutage { cause, probe: None, due, doublings: 0, round: Vec::new(), waiting: 0 });
            }
            Some(outage) if outage.cause == OpenCause::Undecided => outage.cause = cause,
            Some(_) => return,
        }
        self.history.extend([HistoryEntry::Opened, HistoryEntry::Worse, HistoryEntry::Unwell { at: now }]);
    }

    /// Whether this is a probe.
    fn begin(&mut self, attempt: &Attempt, now: Moment) -> bool {
        if self.gate(now) != Gate::HalfOpen {
            return false;
        }
        let (trusted, health) = (!self.is_suspect(attempt.user), self.health(now));
        let Some(outage) = &mut self.outage else { return false };
        let had_its_turn = outage.round.iter().any(|(user, _)| *user == attempt.user);
        let is_undecidable = outage.round.iter().filter(|(_, trusted)| *trusted).count() < 5
            && (had_its_turn || !trusted)
            && outage.waiting < 5
            && health == Health::Unknown;
        if outage.cause != OpenCause::Unreachable && is_undecidable {
            self.close(now);
            return false;
        }
        if had_its_turn {
            outage.round.clear();
        }
        outage.round.push((attempt.user, trusted));
        outage.probe = Some(attempt.seq);
        true
    }

    /// The first failure of an outage in which nothing was delivered.
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
            self.history.extend([HistoryEntry::Anew, HistoryEntry::Unwell { at: now }]);
            self.bad = false;
        }
    }

    fn delivered(&mut self, attempt: &Attempt, now: Moment) {
        if self.outage.as_ref().is_some_and(|outage| outage.probe == Some(attempt.seq)) {
            self.history.push(HistoryEntry::ProbeDelivered { seq: attempt.seq });
        }
        self.close(now);
        self.history.push(HistoryEntry::Delivered { user: attempt.user, seq: attempt.seq, at: now });
        self.look(now);
        if !self.bad {
            self.history.push(HistoryEntry::Better);
        }
    }

    /// Whether it is a try.
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
                self.history.push(HistoryEntry::Anew);
            }
            let (user, seq) = (attempt.user, attempt.seq);
            let believed = self.outage.is_none() || probe || is_undecided(self);
            self.history.push(HistoryEntry::Answered { user, seq, at: now, believed });
            let trusted = !self.is_suspect(user);
            match &mut self.outage {
                None => self.look(now),
                Some(outage) if answered => outage.round = vec![(user, trusted)],
                Some(_) => {}
            }
            if is_undecided(self) && self.words().len() >= 5 {
                self.open(OpenCause::NobodyDelivered, now);
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
            outage.due = now + Duration::from_millis((100 << outage.doublings.min(10)).min(5000));
        }
        let counts_now = match &self.outage {
            None => !self.bad,
            Some(outage) => outage.cause == OpenCause::Undecided && outage.waiting < 5,
        };
        counts_now && matches!(verdict, Verdict::Retry { .. } | Verdict::Refused)
    }

    fn abandoned(&mut self, attempt: &Attempt) {
        if let Some(outage) = &mut self.outage
            && outage.probe == Some(attempt.seq)
        {
            (outage.probe, outage.due) = (None, Duration::ZERO);
        }
    }

    fn gate(&self, now: Moment) -> Gate {
        match &self.outage {
            None => Gate::Closed,
            Some(outage) if outage.probe.is_some() => Gate::Open { until: None },
            Some(outage) if now >= outage.due => Gate::HalfOpen,
            Some(outage) => Gate::Open { until: Some(outage.due) },
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
            && (Self::others_later(&self.history, first.attempt.user, first.attempt.seq)
                || now - from >= Duration::from_secs(10))
    }

    /// Every counted try: its mark, and whether it was taken back.
    fn tries(&self) -> Vec<(u64, bool)> {
        let fate = |rest: &[HistoryEntry]| {
            let first = rest.iter().find(|entry| matches!(entry, HistoryEntry::Better | HistoryEntry::Worse));
            matches!(first, Some(HistoryEntry::Worse))
        };
        let tries = self.history.iter().enumerate().filter_map(|(index, entry)| match entry {
            HistoryEntry::Try { mark } => Some((*mark, fate(&self.history[index..]))),
            _ => None,
        });
        tries.collect()
    }
}

#[derive(Debug, Clone)]
enum BreakerStep {
    Begin(u64),
    /// Which of the attempts in flight, from the oldest on.
    Deliver(usize),
    /// Whether a part of the run was delivered before.
    Fail(usize, Verdict, bool),
    Abandon(usize),
    /// The first users, as many as this, have unsettled events.
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
    // How good the destination is differs from run to run, so that long good, bad and dead times all come about.
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
                        model.history.push(HistoryEntry::Try { mark: judgement.health_epoch });
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
                        outage.waiting = trusted;
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
        for (mark, void) in model.tries() {
            prop_assert_eq!(breaker.is_void(mark), void, "mark {}", mark);
        }
    }
}
