//! Runs one scenario: starts, crashes, stops and reassigns processes as planned. Then it ends all faults and checks
//! that everything is settled.

mod processes;
mod replaying;

use crate::dispatch::commands::{CONTROL, Commands, Given};
use crate::dispatch::memory_group::{Members, NAME};
use crate::dispatch::memory_log::{TOPIC, Topics};
use crate::dispatch::oracle::{Counts, Life, Oracle, User};
use crate::dispatch::scenario::{Action, Scenario};
use crate::dispatch::world::{CALLS, Calls, World};
use crate::harness::Random;
use eventd::core::control::UserAction;
use eventd::core::event::{CONTENT_TYPE, ID, Record};
use eventd::core::outcome::Ended;
use eventd::core::progress::{OffsetReset, ResetTarget};
use eventd::core::tries::OnExhausted;
use replaying::Replaying;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a stop may take beyond `--drain`, for the last commit and slow answers.
const STOP_GRACE: Duration = Duration::from_secs(40);

/// After the faults have ended, everything must be settled within this time, however much is left.
const CALM_MAX: Duration = Duration::from_secs(3_600);

/// A partition that could not be read must continue within this time.
const STOPPED_MAX: Duration = Duration::from_secs(90);

/// How often the oracle looks for work that is not done.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// After the faults, how often a user without failures sends an event.
const FRESH_EVERY: Duration = Duration::from_secs(20);

/// After the faults, how often an operator looks at users that are held because the tries of their event have ended.
const HELD_LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often an operator releases such a user. Then its events are given up.
const RELEASES_MAX: u32 = 2;

/// The result of one simulation.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    pub(crate) crashes: u64,
    pub(crate) stops: u64,
    pub(crate) moves: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) outages: u64,
    pub(crate) repositions: u64,
    /// The number of times that events could not be read for a while.
    pub(crate) damages: u64,
    /// The number of records of commands, and of those that were applied.
    pub(crate) commands: u64,
    pub(crate) commands_applied: u64,
    /// The number of times that a user was held because the tries of its event had ended.
    pub(crate) held_by_policy: u64,
    /// The number of replays that finished, were resumed, and were refused.
    pub(crate) replayed: u64,
    pub(crate) resumes: u64,
    pub(crate) refused: u64,
    /// The number of events that replays delivered, and that they stored as dead letters again.
    pub(crate) redelivered: u64,
    pub(crate) dead_letters_again: u64,
    /// The most parked users of a commit before the faults end.
    pub(crate) parked_users_max: usize,
    /// The calls of each role.
    pub(crate) calls: [Calls; 2],
    pub(crate) trace: Vec<String>,
    pub(crate) violation: Option<String>,
}

/// Runs a scenario in a runtime of its own. Simulated time only advances when no task can run.
pub(crate) fn simulate(scenario: &Scenario) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O").block_on(async {
        // The runtime reads the real clock once while it is built. Simulated time starts with the first tick, so that
        // timers are rounded alike on slow and fast machines.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Driver::new(scenario).drive().await
    })
}

/// What the driver has to do in addition to the scenario's plan.
#[derive(Debug, Clone, Copy)]
enum Step {
    Planned(Action),
    Start {
        slot: usize,
    },
    Replay {
        number: usize,
    },
    /// The group notices that a process has died.
    Forget {
        life: Life,
    },
    SessionEnds {
        life: Life,
    },
    Reconnects {
        life: Life,
    },
    MustHaveEnded {
        life: Life,
    },
}

struct Running {
    life: Life,
    task: JoinHandle<anyhow::Result<Ended>>,
    stop: Option<oneshot::Sender<()>>,
    cut_off: bool,
}

struct Driver<'a> {
    scenario: &'a Scenario,
    world: Arc<World>,
    /// The source of the driver's own choices. The world has another one, so that its choices do not depend on how
    /// often the driver runs.
    random: Random,
    slots: Vec<Option<Running>>,
    /// The replays, by the number of the scenario's request.
    replaying: Vec<Replaying>,
    /// For each partition, the slot that should own it.
    assigned: Vec<usize>,
    queue: BTreeMap<(Duration, u64), Step>,
    queued: u64,
    appended: u64,
    /// How often each user was released after the faults, by its number.
    releases: BTreeMap<usize, u32>,
    /// Whether the faults have ended.
    calm: bool,
    /// Whether no process is started any more.
    closing: bool,
    outcome: Outcome,
}

impl<'a> Driver<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let world = World::new(
            Random::new(scenario.seed ^ 1),
            Oracle::new(scenario.rules(), scenario.partitions),
            Topics::new(scenario.partitions, scenario.gaps, scenario.fetch_events_max),
            Members::new(scenario.partitions),
            scenario.behaviour.clone(),
            scenario.rates,
        );
        {
            let mut state = world.lock();
            state.single = scenario.single;
            state.commands = Commands::new(scenario.partitions);
            state.users.clone_from(&scenario.users);
            if scenario.rates.far_timers {
                // A process would look once a second whether it exists.
                state.topics.make(CONTROL, scenario.partitions);
            }
            state.replays.set_requests(scenario.replays.iter().map(|request| request.request.clone()).collect());
        }
        Self {
            world,
            scenario,
            random: Random::new(scenario.seed ^ 2),
            slots: (0..scenario.slots).map(|_| None).collect(),
            replaying: scenario.replays.iter().map(|_| Replaying::default()).collect(),
            assigned: (0..scenario.partitions as usize).map(|partition| partition % scenario.slots).collect(),
            queue: BTreeMap::new(),
            queued: 0,
            appended: 0,
            releases: BTreeMap::new(),
            calm: false,
            closing: false,
            outcome: Outcome {
                counts: Counts::default(),
                crashes: 0,
                stops: 0,
                moves: 0,
                sessions_lost: 0,
                outages: 0,
                repositions: 0,
                damages: 0,
                commands: 0,
                commands_applied: 0,
                held_by_policy: 0,
                replayed: 0,
                resumes: 0,
                refused: 0,
                redelivered: 0,
                dead_letters_again: 0,
                parked_users_max: 0,
                calls: [[0; CALLS.len()]; 2],
                trace: Vec::new(),
                violation: None,
            },
        }
    }

    async fn drive(mut self) -> Outcome {
        for (at, action) in &self.scenario.plan {
            self.at(*at, Step::Planned(*action));
        }
        for slot in 0..self.slots.len() {
            self.start(slot);
        }
        self.until_the_plan_is_done().await;
        if !self.broken() {
            self.settle_everything().await;
        }
        if !self.broken() {
            self.stop_in_order().await;
        }
        self.abort_replays().await;
        for slot in 0..self.slots.len() {
            self.crash(slot).await;
        }
        let mut state = self.world.lock();
        self.outcome.counts = state.oracle.counts;
        self.outcome.calls = state.calls;
        (self.outcome.commands, self.outcome.commands_applied) = (state.commands.given, state.commands.applied);
        self.outcome.held_by_policy = state.commands.held_by_policy;
        self.outcome.trace = std::mem::take(&mut state.trace);
        self.outcome.violation = state.violation().map(str::to_owned);
        for counts in state.replays.oracles().map(|oracle| oracle.counts) {
            self.outcome.redelivered += counts.delivered;
            self.outcome.dead_letters_again += counts.dead_letters;
        }
        drop(state);
        self.outcome
    }

    fn broken(&self) -> bool {
        self.world.lock().violation().is_some()
    }

    fn at(&mut self, at: Duration, step: Step) {
        self.queued += 1;
        self.queue.insert((at, self.queued), step);
    }

    fn after(&mut self, time: Duration, step: Step) {
        self.at(self.world.now() + time, step);
    }

    async fn until_the_plan_is_done(&mut self) {
        while let Some((&(at, _), _)) = self.queue.first_key_value() {
            let at = at.min(self.world.now() + LOOK_EVERY);
            self.turn(at).await;
            if self.broken() {
                return;
            }
        }
    }

    /// Handles ended processes until `at`, and then does what is due.
    async fn turn(&mut self, at: Duration) {
        let wait = at.saturating_sub(self.world.now());
        let world = Arc::clone(&self.world);
        tokio::select! {
            biased;
            () = world.happened.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        self.collect_ended().await;
        self.world.lock().oracle.look(self.world.now());
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= self.world.now()
        {
            let step = entry.remove();
            self.step(step).await;
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Planned(action) => self.act(action).await,
            Step::Start { slot } => self.start(slot),
            Step::Replay { number } => self.replay(number),
            Step::Forget { life } => {
                self.world.lock().members.forget(life);
                self.assign();
            }
            Step::SessionEnds { life } => {
                let told_after = self.random.millis(0, 1_500);
                self.world.lock().members.lose(life, told_after);
                let again = told_after + self.random.millis(100, 2_000);
                self.after(again, Step::Reconnects { life });
                self.assign();
            }
            Step::Reconnects { life } => {
                {
                    let mut state = self.world.lock();
                    state.members.reconnect(life);
                    state.oracle.reconnected(life);
                }
                for running in self.slots.iter_mut().flatten().filter(|running| running.life == life) {
                    running.cut_off = false;
                }
                self.assign();
            }
            Step::MustHaveEnded { life } => {
                if self.slots.iter().flatten().any(|running| running.life == life) || self.is_replaying(life) {
                    self.world.lock().oracle.fail(format!("life {life} was told to stop long ago and still runs"));
                }
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Append { user, many, bytes } => self.append(user, many, bytes),
            Action::Crash { slot } => self.crash(slot).await,
            Action::CrashWithin { slot, steps } => {
                if let Some(running) = &self.slots[slot] {
                    self.world.crash_within(running.life, steps);
                }
            }
            Action::Stop { slot } => self.stop(slot),
            Action::MovePartition { partition, slot } => {
                self.assigned[partition as usize] = slot;
                self.assign();
            }
            Action::CutOff { slot } => {
                let Some(running) = &mut self.slots[slot] else { return };
                if running.stop.is_none() || std::mem::replace(&mut running.cut_off, true) {
                    return;
                }
                let life = running.life;
                let ends = {
                    let mut state = self.world.lock();
                    state.oracle.cut_off(life);
                    state.members.cut_off(life)
                };
                if let Some(ends) = ends {
                    self.outcome.sessions_lost += 1;
                    self.at(self.world.moment(ends), Step::SessionEnds { life });
                }
            }
            Action::Replay { number } => self.replay(number),
            Action::CrashReplayWithin { number, steps } => self.crash_replay_within(number, steps),
            Action::StopReplay { number } => self.stop_replay(number),
            Action::Reposition { partition, percent, ahead } => self.reposition(partition, percent, ahead),
            Action::Outage(outage) => {
                let mut state = self.world.lock();
                state.behaviour.outage = outage;
                let state = &mut *state;
                for oracle in std::iter::once(&mut state.oracle).chain(state.replays.oracles()) {
                    match outage {
                        Some(_) => oracle.phase_begins(),
                        None => oracle.phase_ends(),
                    }
                }
                self.outcome.outages += u64::from(outage.is_some());
            }
            Action::Damage { partition, from_end } => {
                let now = self.world.now();
                let mut state = self.world.lock();
                let offset = state.topics.latest(partition) + from_end;
                state.topics.damage(partition, offset);
                state.note(now, Life::MAX, format_args!("{partition}:{offset} is unreadable from now on"));
                self.outcome.damages += 1;
            }
            Action::Command(given) => self.command(given),
            Action::GiveUp { user, percent } => self.give_up(user, percent),
            Action::Trim { partition, percent } => {
                let latest = self.world.lock().topics.latest(partition);
                self.world.trim(partition, latest * percent / 100);
            }
        }
    }

    fn reposition(&mut self, partition: u32, percent: i64, ahead: bool) {
        let now = self.world.now();
        let mut guard = self.world.lock();
        let state = &mut *guard;
        // An operator does not reset a position before anything was delivered.
        if !state.members.has_committed(partition) {
            return;
        }
        self.outcome.repositions += 1;
        let (earliest, latest) = state.topics.ends(partition);
        let to = earliest + (latest - earliest) * percent / 100;
        let to = if ahead { ResetTarget::Ahead(to) } else { ResetTarget::Back(to) };
        let wanted = OffsetReset { id: self.outcome.repositions, to };
        state.oracle.reset_requested(partition, wanted);
        state.note(now, Life::MAX, format_args!("asks for {wanted:?} in {partition}"));
        state.members.request_reset(partition, wanted);
        if let Some(moved) = state.members.apply(partition, wanted) {
            state.oracle.committed(None, partition, &moved, now);
        }
    }

    /// An operator gives a command to every partition.
    fn command(&mut self, given: Given) {
        self.command_in(0..self.scenario.partitions, given);
    }

    /// An operator gives up the next event of a user, and this percentage of what follows. The command is for the partition
    /// that has the user's events.
    fn give_up(&mut self, user: usize, percent: i64) {
        let partition = user as u32 % self.scenario.partitions;
        let below = {
            let state = self.world.lock();
            let Some(first) = state.oracle.first_unsettled(partition, &self.scenario.users[user]) else { return };
            first + 1 + (state.topics.latest(partition) - first - 1) * percent / 100
        };
        self.command_in(partition..partition + 1, Given::User { user, action: UserAction::GiveUp { below } });
    }

    fn command_in(&mut self, partitions: std::ops::Range<u32>, given: Given) {
        let now = self.world.now();
        let record = {
            let mut state = self.world.lock();
            state.topics.make(CONTROL, self.scenario.partitions);
            state.note(now, Life::MAX, format_args!("commands {given:?}"));
            let number = state.commands.given;
            given.record(number, now.as_millis() as i64, &self.scenario.users, TOPIC, NAME)
        };
        for partition in partitions {
            let offset = self.world.append(CONTROL, partition, std::slice::from_ref(&record));
            let mut guard = self.world.lock();
            let state = &mut *guard;
            state.commands.given(partition, offset, given, now);
            state.commands.tell(partition, &mut state.oracle, offset, &state.users, now);
        }
    }

    /// An operator releases users that wait although none holds them, or gives up their events.
    fn end_holds(&mut self) {
        let users = &self.scenario.users;
        let waiting: Vec<usize> = {
            let state = self.world.lock();
            let waits = |number: &usize| {
                let (partition, user) = (*number as u32 % self.scenario.partitions, &users[*number]);
                state.commands.holds(partition, user) && state.oracle.has_open_event(partition, user)
            };
            (0..users.len()).filter(waits).collect()
        };
        for user in waiting {
            let releases = self.releases.entry(user).or_insert(0);
            *releases += 1;
            if *releases <= RELEASES_MAX {
                self.command(Given::User { user, action: UserAction::Release });
            } else {
                let partition = user as u32 % self.scenario.partitions;
                let below = self.world.lock().topics.latest(partition);
                let given = Given::User { user, action: UserAction::GiveUp { below } };
                self.command_in(partition..partition + 1, given);
            }
        }
    }

    /// Ends what operators commanded, if they did.
    fn end_commands(&mut self) {
        if self.world.lock().commands.given > 0 {
            let held = self.world.lock().commands.held_users();
            let release = |user| Given::User { user, action: UserAction::Release };
            for given in held.into_iter().map(release).chain([Given::Rate(None), Given::Resume]) {
                self.command(given);
            }
        }
    }

    fn append(&mut self, user: usize, many: u64, bytes: usize) {
        let key = self.scenario.users[user].clone();
        let partition = (user as u32) % self.scenario.partitions;
        let now_ms = self.world.now().as_millis() as i64;
        let records: Vec<Record> = (0..many)
            .map(|_| {
                self.appended += 1;
                let id = format!("event-{}", self.appended);
                let mut value = id.clone().into_bytes();
                value.resize(value.len() + bytes, b'.');
                let headers = [(ID, Some(id.as_bytes())), (CONTENT_TYPE, Some(&b"text/plain"[..])), ("x-null", None)];
                let value = (!self.appended.is_multiple_of(17)).then_some(value);
                // Some clocks are ahead, and some are late.
                let apart_ms = [0, 0, 1, 0, -1, 0, 0][(self.appended % 7) as usize] * self.scenario.clocks_apart_ms;
                let headers = &headers[..(self.appended % 4) as usize];
                Record::new(key.as_deref(), value.as_deref(), headers, (now_ms + apart_ms).max(0))
            })
            .collect();
        self.world.append(TOPIC, partition, &records);
    }

    /// Appends one event of a new user in each partition.
    fn append_fresh(&mut self) {
        for partition in 0..self.assigned.len() as u32 {
            let user = format!("fresh-{}", self.world.now().as_secs());
            let record = Record::new(Some(user.as_bytes()), Some(b"fresh"), &[], 0);
            self.world.append(TOPIC, partition, &[record]);
        }
    }

    /// Ends all faults. Everything must be settled within a time that the configuration bounds.
    async fn settle_everything(&mut self) {
        self.calm = true;
        self.world.stop_crashes();
        self.end_commands();
        {
            let mut state = self.world.lock();
            state.rates = crate::dispatch::world::Rates::default();
            self.outcome.parked_users_max = state.parked_users_max;
            state.behaviour.calm();
            state.topics.repair();
            state.oracle.phase_ends();
            for oracle in state.replays.oracles() {
                oracle.phase_ends();
            }
        }
        let config = &self.scenario.config;
        let try_max = config.attempt_timeout + Duration::from_secs(12);
        let tries_max = config.tries.attempts_max.unwrap_or(10);
        let limit = self.world.now() + (try_max * (self.appended as u32 + 10) * (tries_max + 1)).min(CALM_MAX);
        // Each redelivery gets time of its own.
        let limit = limit + CALM_MAX * (self.outcome.repositions as u32 + self.scenario.replays.len() as u32);
        // A stopped partition tries again once a minute.
        let all_continue_at = if self.outcome.damages > 0 { self.world.now() + STOPPED_MAX } else { Duration::ZERO };
        let (mut fresh_at, mut end_holds_at) = (Duration::ZERO, Duration::ZERO);
        while self.world.lock().oracle.unfinished().is_some()
            || self.world.lock().commands.unfinished().is_some()
            || !self.all_processes_are_back()
            || !self.is_replayed()
            || self.world.now() < all_continue_at
        {
            if self.world.now() >= fresh_at {
                // A life can only notice the end of an outage if other users send events.
                fresh_at = self.world.now() + FRESH_EVERY.max(self.scenario.config.commit_interval * 2);
                self.append_fresh();
            }
            if self.scenario.config.tries.on_exhausted == OnExhausted::Hold && self.world.now() >= end_holds_at {
                end_holds_at = self.world.now() + HELD_LOOK_EVERY;
                self.end_holds();
            }
            let soon = self.world.now() + Duration::from_millis(100);
            self.turn(soon).await;
            if self.broken() {
                return;
            }
            if self.world.now() > limit {
                let mut state = self.world.lock();
                let waiting = (state.oracle.unfinished(), state.replays.unfinished(), state.commands.unfinished());
                return state.oracle.fail(format!("still {waiting:?} at {limit:?}, long after the faults"));
            }
        }
        if let Some(max) = self.scenario.others_wait_max {
            let (users, behaviour) = (&self.scenario.users, &self.scenario.behaviour);
            let (failing, hanging) = (&behaviour.failing_users, &behaviour.hanging_users);
            let slow = behaviour.slow_users.as_ref().map_or(&[][..], |(users, _)| users);
            let is_of = |users: &[User], user: &[u8]| users.iter().any(|other| other.as_deref() == Some(user));
            // While users hang, new users may wait until it is known which ones they are.
            let is_judged = |user: &[u8]| match hanging.is_empty() {
                true => !is_of(&users[..1], user) && !is_of(failing, user) && !is_of(slow, user),
                false => is_of(users, user) && !is_of(hanging, user),
            };
            let mut state = self.world.lock();
            let waited = state.oracle.longest_wait(is_judged);
            if waited > max {
                state.oracle.fail(format!("a user waited {waited:?}, although only others fail or hang"));
            }
        }
    }

    /// Whether every process runs, reaches the group, and owns its partitions.
    fn all_processes_are_back(&self) -> bool {
        let is_back = |slot: &Option<Running>| slot.as_ref().is_some_and(|running| !running.cut_off);
        self.slots.iter().all(is_back) && self.world.lock().members.is_balanced()
    }

    async fn stop_in_order(&mut self) {
        self.closing = true;
        for slot in 0..self.slots.len() {
            self.stop(slot);
        }
        while self.slots.iter().any(Option::is_some) && !self.broken() {
            let soon = self.world.now() + Duration::from_millis(100);
            self.turn(soon).await;
        }
        if !self.broken() {
            self.world.lock().oracle.finished();
        }
    }
}
