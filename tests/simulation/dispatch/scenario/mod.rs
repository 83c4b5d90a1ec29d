//! Turns a seed into a configuration, users, their load, and a plan of faults.

mod commands;
pub(crate) mod hanging;
mod replays;
pub(crate) mod slow;
mod worlds;

use crate::dispatch::commands::Given;
use crate::dispatch::memory_destination::{Behaviour, Outage};
use crate::dispatch::oracle::{BackoffRule, Rules, User};
use crate::dispatch::replays::RequestedReplay;
use crate::dispatch::world::{Rates, Single};
use crate::harness::Random;
use eventd::core::backoff::Backoff;
use eventd::core::token_bucket::Rate;
use eventd::destination::BatchLimits;
use eventd::dispatch::{Config, OnGap, Start};
use eventd::replay::position::Position;
use eventd::replay::range::Range;
use eventd::replay::rewind::Reposition;
use eventd::replay::select::Selection;
use std::time::Duration;
use worlds::{batches, damage, far_timers, idle, isolation, outages, troubled, users};

/// What the driver does at one moment of simulated time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    /// Appends events of one user with one append.
    Append {
        user: usize,
        many: u64,
        bytes: usize,
    },
    /// Kills a process at once.
    Crash {
        slot: usize,
    },
    /// Kills a process after this many steps, at any await.
    CrashWithin {
        slot: usize,
        steps: u64,
    },
    /// Tells a process to stop, and starts it again later.
    Stop {
        slot: usize,
    },
    /// Assigns a partition to the process in this slot.
    MovePartition {
        partition: u32,
        slot: usize,
    },
    /// Cuts a process off from the group until its session ends.
    CutOff {
        slot: usize,
    },
    /// Begins or ends a phase in which every attempt fails.
    Outage(Option<Outage>),
    /// An operator requests an offset reset to this percentage of what a partition holds.
    Reposition {
        partition: u32,
        percent: i64,
        ahead: bool,
    },
    /// An operator starts the scenario's replay of this number, or starts it again while it runs.
    Replay {
        number: usize,
    },
    /// Kills the replay after this many steps, at any await.
    CrashReplayWithin {
        number: usize,
        steps: u64,
    },
    StopReplay {
        number: usize,
    },
    /// An operator gives a command to every partition.
    Command(Given),
    /// An operator gives up the next event of this user, and those in this percentage of the log after it.
    GiveUp {
        user: usize,
        percent: i64,
    },
    /// Retention removes this percentage of what a partition holds.
    Trim {
        partition: u32,
        percent: i64,
    },
    /// Makes a record unreadable until the faults end. It is this many offsets from the end of the log, and may not exist
    /// yet.
    Damage {
        partition: u32,
        from_end: i64,
    },
}

/// What an operator requests from a replay.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) request: RequestedReplay,
    pub(crate) rate: Option<Rate>,
    pub(crate) stop_after_failures: u64,
}

/// Everything that defines one simulation.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) partitions: u32,
    pub(crate) users: Vec<User>,
    /// The number of processes that run at a time.
    pub(crate) slots: usize,
    pub(crate) session: Option<Duration>,
    pub(crate) config: Config,
    /// Equal to `config.tries.backoff`, for the oracle.
    pub(crate) backoff: BackoffRule,
    pub(crate) limits: BatchLimits,
    /// Runs are taken as a whole, up to this many events.
    pub(crate) whole_runs_max: Option<usize>,
    pub(crate) rates: Rates,
    pub(crate) behaviour: Behaviour,
    pub(crate) gaps: u64,
    pub(crate) fetch_events_max: usize,
    pub(crate) plan: Vec<(Duration, Action)>,
    pub(crate) replays: Vec<Request>,
    /// How far the clocks that stamp events are apart, or 0 if all times are in order.
    pub(crate) clocks_apart_ms: i64,
    /// The longest that a user without failures may wait for an event, if it is limited.
    pub(crate) others_wait_max: Option<Duration>,
    pub(crate) single: Option<Single>,
}

impl Scenario {
    /// Among ten seeds, one tests isolation, four test outages, and all others mix everything else.
    pub(crate) fn new(seed: u64) -> Self {
        let mut scenario = Self::without_batches(seed);
        batches(&mut scenario, &mut Random::new(seed ^ 7));
        let mut random = Random::new(seed ^ 16);
        if seed % 10 > 4 && scenario.has_near_timers() && random.chance(15) {
            commands::rates(&mut scenario, &mut random);
        }
        let mut random = Random::new(seed ^ 32);
        if seed % 10 > 4 && scenario.has_near_timers() && scenario.replays.is_empty() && random.chance(25) {
            commands::give_ups(&mut scenario, &mut random);
        }
        let mut random = Random::new(seed ^ 128);
        if !seed.is_multiple_of(10) && random.chance(20) {
            worlds::give_up_after(&mut scenario, &mut random);
        }
        let mut random = Random::new(seed ^ 64);
        let is_hanging = !scenario.behaviour.hanging_users.is_empty() || scenario.behaviour.slow_users.is_some();
        let is_simple =
            scenario.has_near_timers() && scenario.replays.is_empty() && !(seed.is_multiple_of(10) && is_hanging);
        if is_simple && random.chance(25) {
            commands::policies(&mut scenario, &mut random);
        }
        scenario
    }

    /// Whether the owners of partitions look for commands once a second, and commit soon.
    fn has_near_timers(&self) -> bool {
        !self.rates.far_timers && self.config.commit_interval < Duration::from_secs(1)
    }

    fn without_batches(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut scenario = match seed % 10 {
            0 if seed % 60 == 20 => return hanging::hanging(seed, &mut random),
            0 if seed % 60 == 40 => return hanging::hanging_with_long_runs(seed, &mut random),
            0 if seed % 60 == 50 => return hanging::slow_rather_than_hanging(seed, &mut random),
            0 => return isolation(seed, &mut random),
            1..=4 => {
                let mut scenario = troubled(seed, &mut random, 9);
                outages(&mut scenario, &mut random);
                scenario
            }
            _ => troubled(seed, &mut random, 1),
        };
        if seed % 10 > 4 {
            let mut random = Random::new(seed ^ 5);
            if random.chance(30) {
                commands::commands(&mut scenario, &mut random);
            }
        }
        let mut random = Random::new(seed ^ 3);
        if seed % 10 > 4 && scenario.config.on_gap == OnGap::Stop && random.chance(30) {
            damage(&mut scenario, &mut random);
        } else if random.chance(40) {
            replays::replays(&mut scenario, &mut random);
        }
        let is_commanded = scenario.plan.iter().any(|(_, action)| matches!(action, Action::Command(_)));
        let mut random = Random::new(seed ^ 6);
        if scenario.replays.is_empty() && !is_commanded {
            match random.below(100) {
                0..25 => far_timers(&mut scenario, &mut random),
                25 => idle(&mut scenario, &mut random),
                _ => {}
            }
        }
        scenario
    }

    /// Sets the delays between attempts.
    pub(crate) fn set_backoff(&mut self, backoff: BackoffRule) {
        let BackoffRule { first, max, jitter } = backoff;
        self.config.tries.backoff = Backoff::new(first, max, jitter).expect("the first delay is the shortest");
        self.backoff = backoff;
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules {
            attempts: self.config.tries.attempts_max.unwrap_or(u32::MAX),
            give_up_after: self.config.tries.give_up_after,
            on_exhausted: self.config.tries.on_exhausted,
            window_events: self.config.window_events,
            window_bytes: self.config.window_bytes,
            concurrency: self.config.concurrency,
            in_flight_events: self.config.in_flight_events,
            limits: self.limits,
            retry_after_max: self.config.tries.retry_after_max,
            drain: self.config.drain,
            commit_interval: self.config.commit_interval,
            backoff: self.backoff,
            fetch_events_max: self.fetch_events_max,
            call_max: self.rates.call_max(),
            parked_users_max: self.config.parking.users_max,
            may_list_be_full: self.config.parking.users_max <= self.users.len(),
            is_calm: self.rates.slow + self.rates.reads_fail + self.rates.commit_fails == 0,
            may_park: self.config.parking.may_park,
            start_latest: self.config.start == Start::Latest,
        }
    }
}

/// One small scenario that makes every call of dispatch, without random faults.
pub(crate) fn fixed() -> Scenario {
    let mut random = Random::new(0);
    let mut scenario = isolation(0, &mut random);
    scenario.partitions = 2;
    scenario.slots = 2;
    scenario.users = users(6, &mut random);
    scenario.others_wait_max = None;
    scenario.config.tries.attempts_max = Some(2);
    scenario.config.attempt_timeout = Duration::from_secs(1);
    scenario.behaviour.failing_users = scenario.users[..1].to_vec();
    scenario.behaviour.refused_user = Some(scenario.users[1].clone());
    scenario.session = Some(Duration::from_secs(10));
    scenario.plan = (0..12)
        .map(|n| (Duration::from_millis(n * 150), Action::Append { user: (n % 6) as usize, many: 2, bytes: 40 }))
        .collect();
    scenario.plan.push((Duration::from_millis(700), Action::MovePartition { partition: 0, slot: 1 }));
    scenario.plan.push((Duration::from_millis(1_200), Action::Stop { slot: 1 }));
    scenario.plan.push((Duration::from_millis(1_500), Action::Reposition { partition: 1, percent: 50, ahead: false }));
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario
}

/// Like [`fixed`], with a replay of everything, one of the dead letters, and a rewind, one after the other.
pub(crate) fn fixed_with_replays() -> Scenario {
    let mut scenario = fixed();
    scenario.plan.retain(|(_, action)| !matches!(action, Action::Reposition { .. }));
    let deliver = |dead| RequestedReplay::Deliver {
        range: Range::default(),
        selection: Selection { dead, ..Selection::default() },
        limit: None,
    };
    let request =
        [deliver(false), deliver(true), RequestedReplay::OffsetReset(Reposition::Rewind(Position::Offset(3)))];
    for (request, number) in request.into_iter().zip(0u32..) {
        scenario.replays.push(Request { request, rate: None, stop_after_failures: 0 });
        let at = Duration::from_secs(20) * (number + 1);
        scenario.plan.push((at, Action::Replay { number: number as usize }));
    }
    scenario
}
