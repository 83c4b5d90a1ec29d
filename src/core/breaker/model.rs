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
    /// The destination answered without delivering. `counts_for_health`: the breaker was closed, or this was its probe.
    Answered {
        user: u64,
        /// Delivered attempts of others with a higher number make the user suspect.
        since: u64,
        at: Moment,
        counts_for_health: bool,
    },
    ProbeDelivered {
        seq: u64,
    },
    /// No user was delivered for a minute, so earlier deliveries do not make users suspect any more.
    DeliveriesForgotten,
    /// An attempt did not reach the destination.
    Unreachable {
        at: Moment,
    },
    Opened,
    /// Earlier verdicts are forgotten: the breaker closed, or an unreachable destination answered.
    HealthReset,
    /// The breaker closed.
    OutageEnded,
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
    /// The number of the attempt that was begun last.
    begun: u64,
    /// That number when the last outage ended.
    begun_in_outages: u64,
}

#[derive(Debug)]
struct ModelOutage {
    cause: OpenCause,
    /// Whether the last probe was answered.
    is_reached: bool,
    probes: Vec<ModelProbe>,
    /// For users that were interrupted and for all others: the end of the last probe that took a turn, or the time when
    /// the breaker opened or the destination began or ceased to answer. Then how often the delay after it was doubled.
    turns: [(Moment, u32); 2],
    /// When quick probes began.
    quick: Vec<Moment>,
    /// The last reported number of trusted users with unsettled events.
    waiting_users: usize,
}

impl ModelOutage {
    /// Which turns a user of this rank takes.
    fn turns_of(&self, rank: ProbeRank) -> usize {
        usize::from(!(self.is_reached && rank == ProbeRank::Interrupted))
    }

    fn due(&self, turns: usize) -> Moment {
        let (from, doublings) = self.turns[turns];
        let delay = Duration::from_millis((100 << doublings.min(10)).min(5_000));
        if from.is_zero() { Duration::ZERO } else { from + delay }
    }

    fn young(&self, now: Moment) -> impl Iterator<Item = &ModelProbe> {
        self.probes.iter().filter(move |probe| now - probe.begun < Duration::from_secs(1))
    }

    fn may_be_quick(&self, rank: ProbeRank, now: Moment) -> bool {
        let young = self.young(now).filter(|probe| probe.turns.is_none()).count();
        let has_place = match rank {
            ProbeRank::Served => young < 5,
            ProbeRank::Newcomer => young < 4,
            ProbeRank::Interrupted | ProbeRank::Failed => false,
        };
        has_place && self.is_reached && self.quick_from() <= now
    }

    fn may_take_turn(&self, rank: ProbeRank, now: Moment) -> bool {
        let turns = self.turns_of(rank);
        let mut young = self.young(now);
        let is_blocked = match self.is_reached {
            true => young.any(|probe| probe.turns == Some(turns)),
            false => young.next().is_some(),
        };
        now >= self.due(turns) && !is_blocked
    }

    /// Each quick probe takes one of 100 places for a while. They become free one after the other, 50 ms apart.
    fn quick_from(&self) -> Moment {
        let each = Duration::from_millis(50);
        let all_free_at = self.quick.iter().fold(Duration::ZERO, |free, begun| free.max(*begun) + each);
        all_free_at.saturating_sub(each * 99)
    }
}

#[derive(Debug, Clone, Copy)]
struct ModelProbe {
    seq: u64,
    begun: Moment,
    rank: ProbeRank,
    /// `None`: it is a quick probe.
    turns: Option<usize>,
}

/// The last verdict of a user.
#[derive(Debug, Clone, Copy)]
enum ModelVerdict {
    Delivered,
    Failed,
}

impl Model {
    /// Whether an attempt of another user that began after `since` was delivered, in this part of the history.
    fn others_delivered_later(history: &[HistoryEntry], of: u64, since: u64) -> bool {
        let forgotten = history.iter().rposition(|entry| matches!(entry, HistoryEntry::DeliveriesForgotten));
        history[forgotten.unwrap_or(0)..]
            .iter()
            .any(|entry| matches!(entry, HistoryEntry::Delivered { user, seq, .. } if *user != of && *seq > since))
    }

    /// The attempt of another user that began last, among this one and those delivered until now.
    fn shown_since(&self, attempt: &Attempt) -> u64 {
        let mut since = attempt.seq;
        while Self::others_delivered_later(&self.history, attempt.user, since) {
            since += 1;
        }
        since
    }

    /// The number since which the user fails.
    fn failing_since(&self, of: u64) -> Option<u64> {
        let (mut since, mut pardoned) = (None, false);
        for (index, entry) in self.history.iter().enumerate() {
            match (*entry, since) {
                (HistoryEntry::Delivered { user, .. }, _) if user == of => since = None,
                (HistoryEntry::Answered { user, since: failed, .. }, None) if user == of => {
                    (since, pardoned) = (Some(failed), false)
                }
                (HistoryEntry::ProbeDelivered { seq }, Some(first))
                    if !pardoned && !Self::others_delivered_later(&self.history[..index], of, first) =>
                {
                    (since, pardoned) = (Some(seq), true);
                }
                (HistoryEntry::DeliveriesForgotten, _) => pardoned = false,
                _ => {}
            }
        }
        since
    }

    fn is_suspect(&self, of: u64) -> bool {
        self.failing_since(of).is_some_and(|since| Self::others_delivered_later(&self.history, of, since))
    }

    /// Whether the user is suspect, or was it at any time since its last delivery.
    fn has_been_suspect(&self, of: u64) -> bool {
        let until = |end: usize| Self { history: self.history[..end].to_vec(), ..Self::default() };
        let forgotten =
            (0..self.history.len()).filter(|end| matches!(self.history[*end], HistoryEntry::DeliveriesForgotten));
        let delivered =
            self.history.iter().rposition(|entry| matches!(entry, HistoryEntry::Delivered { user, .. } if *user == of));
        let since = delivered.unwrap_or(0);
        self.is_suspect(of) || forgotten.filter(|end| *end > since).any(|end| until(end).is_suspect(of))
    }

    fn was_served(&self, of: u64) -> bool {
        self.history.iter().any(|entry| matches!(entry, HistoryEntry::Delivered { user, .. } if *user == of))
    }

    fn rank(&self, of: u64) -> ProbeRank {
        match self.failing_since(of) {
            Some(_) if self.was_served(of) && !self.has_been_suspect(of) => ProbeRank::Interrupted,
            Some(_) => ProbeRank::Failed,
            None if self.was_served(of) => ProbeRank::Served,
            None => ProbeRank::Newcomer,
        }
    }

    /// The user's failures since its last delivery and the last outage.
    fn failures(&self, of: u64) -> u32 {
        let mut failures = 0;
        for entry in &self.history {
            match entry {
                HistoryEntry::Answered { user, .. } if *user == of => failures += 1,
                HistoryEntry::Delivered { user, .. } if *user == of => failures = 0,
                HistoryEntry::OutageEnded => failures = 0,
                _ => {}
            }
        }
        failures
    }

    /// The verdicts that health is made of: the last 20 users in the order of their last verdict that counts, its time,
    /// and the verdict.
    fn verdicts(&self) -> Vec<(u64, Moment, ModelVerdict)> {
        let mut places: Vec<(u64, Moment)> = Vec::new();
        let mut last: std::collections::HashMap<u64, ModelVerdict> = Default::default();
        let begin = self.history.iter().rposition(|entry| matches!(entry, HistoryEntry::HealthReset)).unwrap_or(0);
        let until = |end: usize| Self { history: self.history[..end].to_vec(), ..Self::default() };
        for (index, entry) in self.history.iter().enumerate().skip(begin) {
            let (user, at, delivered) = match *entry {
                HistoryEntry::Delivered { user, at, .. } => (user, at, true),
                HistoryEntry::Answered { user, at, counts_for_health: true, .. } => (user, at, false),
                _ => continue,
            };
            last.insert(user, if delivered { ModelVerdict::Delivered } else { ModelVerdict::Failed });
            let then = until(index + 1);
            let counts_as_suspect = || then.was_served(user) && then.failures(user) <= 3;
            if delivered || !then.is_suspect(user) || counts_as_suspect() {
                places.retain(|(other, _)| *other != user);
                places.push((user, at));
            }
        }
        places[places.len().saturating_sub(20)..].iter().map(|(user, at)| (*user, *at, last[user])).collect()
    }

    fn trusted_verdicts(&self) -> impl Iterator<Item = (u64, Moment, ModelVerdict)> {
        let is_trusted = |user, verdict| matches!(verdict, ModelVerdict::Delivered) || !self.is_suspect(user);
        self.verdicts().into_iter().filter(move |(user, _, verdict)| is_trusted(*user, *verdict))
    }

    fn health(&self, now: Moment) -> Health {
        let is_recent = |at: &Moment| now - *at < Duration::from_secs(60);
        let trusted: Vec<ModelVerdict> =
            self.trusted_verdicts().filter(|(_, at, _)| is_recent(at)).map(|(_, _, verdict)| verdict).collect();
        let all = self.verdicts().into_iter().filter(|(_, at, _)| is_recent(at));
        let counted = all.filter(|(user, _, _)| !self.is_suspect(*user) || self.was_served(*user));
        let counted: Vec<bool> = counted.map(|(_, _, verdict)| matches!(verdict, ModelVerdict::Delivered)).collect();
        let last = &trusted[trusted.len().saturating_sub(5)..];
        if last.len() == 5 && last.iter().all(|verdict| matches!(verdict, ModelVerdict::Failed)) {
            Health::Dead
        } else if counted.len() < 5 {
            Health::Unknown
        } else if counted.iter().filter(|delivered| **delivered).count() * 2 < counted.len() {
            Health::Bad
        } else {
            Health::Good
        }
    }

    fn last_delivery(&self) -> Option<Moment> {
        self.history.iter().rev().find_map(|entry| match entry {
            HistoryEntry::Delivered { at, .. } => Some(*at),
            _ => None,
        })
    }

    fn update_health(&mut self, now: Moment) {
        let delivers = self.last_delivery().is_some_and(|at| now - at < Duration::from_millis(250));
        match self.health(now) {
            Health::Dead if !delivers => self.open(OpenCause::NoUserDelivered, now),
            Health::Dead | Health::Bad => {
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
                self.outage = Some(ModelOutage {
                    cause,
                    is_reached: cause != OpenCause::Unreachable,
                    probes: Vec::new(),
                    turns: [(now, 0); 2],
                    quick: Vec::new(),
                    waiting_users: 0,
                });
            }
            Some(outage) if outage.cause == OpenCause::Undecided => outage.cause = cause,
            Some(_) => return,
        }
        self.history.extend([HistoryEntry::Opened, HistoryEntry::TriesTakenBack, HistoryEntry::Unwell { at: now }]);
    }

    /// Whether answers count, although the breaker is open.
    fn has_too_few_users(&self, now: Moment) -> bool {
        let can_tell = self.health(now) != Health::Unknown;
        self.outage
            .as_ref()
            .is_some_and(|outage| outage.cause != OpenCause::Unreachable && outage.waiting_users < 5 && !can_tell)
    }

    /// Returns whether the attempt is a probe.
    fn begin(&mut self, attempt: &Attempt, now: Moment) -> bool {
        let gate = self.gate(now);
        if matches!(gate, Gate::HalfOpen { .. }) && self.has_too_few_users(now) {
            self.close(now);
        }
        self.begun = attempt.seq;
        let Gate::HalfOpen { ranks, .. } = gate else { return false };
        let rank = self.rank(attempt.user);
        let Some(outage) = self.outage.as_mut().filter(|_| ranks.contains(rank)) else { return false };
        let turns = (!outage.may_be_quick(rank, now)).then(|| outage.turns_of(rank));
        if turns.is_none() {
            outage.quick.push(now);
        }
        outage.probes.push(ModelProbe { seq: attempt.seq, begun: now, rank, turns });
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
            self.begun_in_outages = self.begun;
            let ended = [HistoryEntry::HealthReset, HistoryEntry::OutageEnded, HistoryEntry::Unwell { at: now }];
            self.history.extend(ended);
            self.is_health_bad = false;
        }
    }

    fn delivered(&mut self, attempt: &Attempt, now: Moment) {
        if self.is_probe(attempt) {
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
        let probe = self.is_probe(attempt);
        if verdict == Verdict::Drilled {
            self.abandoned(attempt);
            return true;
        }
        if verdict == Verdict::Unreachable {
            self.history.push(HistoryEntry::Unreachable { at: now });
            self.open(OpenCause::Unreachable, now);
        } else {
            if let Some(outage) = self.outage.as_mut().filter(|outage| probe && outage.cause == OpenCause::Unreachable)
            {
                outage.cause = OpenCause::Undecided;
                self.history.push(HistoryEntry::HealthReset);
            }
            if self.last_delivery().is_none_or(|at| now - at >= Duration::from_secs(60)) {
                self.history.push(HistoryEntry::DeliveriesForgotten);
            }
            let is_undecided = self.outage.as_ref().is_some_and(|outage| outage.cause == OpenCause::Undecided);
            let counts_for_health = self.outage.is_none() || probe;
            let has_hung = now - attempt.began >= Duration::from_secs(1);
            let since = if has_hung { attempt.seq } else { self.shown_since(attempt) };
            self.history.push(HistoryEntry::Answered { user: attempt.user, since, at: now, counts_for_health });
            if self.outage.is_none() {
                self.update_health(now);
            }
            let failed = |verdict: &(u64, Moment, ModelVerdict)| matches!(verdict.2, ModelVerdict::Failed);
            if is_undecided && self.trusted_verdicts().filter(failed).count() >= 5 {
                self.open(OpenCause::NoUserDelivered, now);
            }
        }
        if probe && let Some(outage) = &mut self.outage {
            let ended = outage.probes.remove(outage.probes.iter().position(|probe| probe.seq == attempt.seq).unwrap());
            let is_reached = verdict != Verdict::Unreachable;
            if std::mem::replace(&mut outage.is_reached, is_reached) != is_reached {
                outage.turns = [(now, 0); 2];
            } else if let Some(turns) = ended.turns {
                let turns = if is_reached { turns } else { 1 };
                outage.turns[turns] = (now, outage.turns[turns].1 + 1);
            }
        }
        let counts_now = match &self.outage {
            None => !self.is_health_bad && attempt.seq > self.begun_in_outages,
            Some(_) => probe && self.has_too_few_users(now),
        };
        counts_now && matches!(verdict, Verdict::Retry { .. } | Verdict::Refused)
    }

    fn is_probe(&self, attempt: &Attempt) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.probes.iter().any(|probe| probe.seq == attempt.seq))
    }

    fn abandoned(&mut self, attempt: &Attempt) {
        let Some(outage) = &mut self.outage else { return };
        let Some(place) = outage.probes.iter().position(|probe| probe.seq == attempt.seq) else { return };
        let ended = outage.probes.remove(place);
        if let Some(turns) = ended.turns {
            // The next one is due at once.
            let turns = if outage.is_reached { turns } else { 1 };
            outage.turns[turns].0 = Duration::ZERO;
        }
    }

    fn gate(&self, now: Moment) -> Gate {
        let Some(outage) = &self.outage else { return Gate::Closed };
        let ages = outage.probes.iter().map(|probe| probe.begun + Duration::from_secs(1));
        let mut moments: Vec<Moment> = ages.chain([outage.due(1)]).collect();
        if outage.is_reached {
            moments.extend([outage.due(0), outage.quick_from()]);
        }
        let until = moments.into_iter().filter(|at| *at > now).min();
        let ranks = ProbeRanks::new(|rank| {
            let of_rank = outage.probes.iter().filter(|probe| probe.rank == rank).count();
            let in_flight = if outage.is_reached { of_rank } else { outage.probes.len() };
            in_flight < 20 && (outage.may_be_quick(rank, now) || outage.may_take_turn(rank, now))
        });
        if ranks.is_empty() { Gate::Open { until } } else { Gate::HalfOpen { ranks, until } }
    }

    fn refusal_is_final(&self, first: &Refusal, now: Moment) -> bool {
        let unwell = self.history.iter().filter_map(|entry| match entry {
            HistoryEntry::Unwell { at } => Some(*at),
            _ => None,
        });
        let from = unwell.chain([first.at]).max().unwrap();
        self.outage.is_none()
            && matches!(self.health(now), Health::Unknown | Health::Good)
            && (Self::others_delivered_later(&self.history, first.user, first.since)
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
    // The model reads its whole history for each answer, so a case takes long.
    #![proptest_config(ProptestConfig::with_cases(100))]

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
                        let refusal = breaker.refusal(&attempt, now);
                        prop_assert_eq!(refusal.since, model.shown_since(&attempt));
                        prop_assert_eq!(refusal.health_epoch, judgement.health_epoch);
                        refused.push(refusal);
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
                prop_assert_eq!(breaker.probe_rank(user), model.rank(user), "user {}", user);
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
