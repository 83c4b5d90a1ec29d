//! Runs one scenario: starts, crashes, stops and moves processes as planned, then lets the trouble end and holds
//! dispatch to its promises.

mod processes;
mod replaying;

use crate::dispatch::memory_group::Members;
use crate::dispatch::memory_log::{TOPIC, Topics};
use crate::dispatch::oracle::{Counts, Life, Oracle};
use crate::dispatch::random::Random;
use crate::dispatch::scenario::{Action, Scenario};
use crate::dispatch::world::{CALLS, Calls, World};
use eventd::core::event::{CONTENT_TYPE, ID, Record};
use eventd::core::outcome::Ended;
use eventd::core::progress::{OffsetReset, ResetTarget};
use replaying::Replaying;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long a stop may take beyond `--drain`: the last commit, and slow answers.
const STOP_GRACE: Duration = Duration::from_secs(40);

/// In this time after the trouble everything is settled, however much is left.
const CALM_MAX: Duration = Duration::from_secs(3_600);

/// A partition that could not be read continues within this time.
const STOPPED_MAX: Duration = Duration::from_secs(90);

/// How often somebody without any trouble sends something, after the trouble.
const FRESH_EVERY: Duration = Duration::from_secs(20);

/// What one simulation came to.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    pub(crate) crashes: u64,
    pub(crate) stops: u64,
    pub(crate) moves: u64,
    pub(crate) sessions_lost: u64,
    pub(crate) outages: u64,
    pub(crate) repositions: u64,
    /// Events that could not be read for a while.
    pub(crate) damages: u64,
    /// Replays that came to their end, were resumed, were refused.
    pub(crate) replayed: u64,
    pub(crate) resumes: u64,
    pub(crate) refused: u64,
    /// Of replays: what was delivered, and kept as a dead letter again.
    pub(crate) redelivered: u64,
    pub(crate) letters_again: u64,
    /// By role.
    pub(crate) calls: [Calls; 2],
    pub(crate) trace: Vec<String>,
    pub(crate) violation: Option<String>,
}

/// Runs a scenario in a runtime of its own, whose time stands still while anything is left to do.
pub(crate) fn simulate(scenario: &Scenario) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O").block_on(async {
        // The runtime reads the real clock once more while it is built. Time begins with its first tick, so that a slow
        // machine rounds no timer otherwise than a fast one.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Driver::new(scenario).drive().await
    })
}

/// What the driver has to do beside the scenario's plan.
#[derive(Debug, Clone, Copy)]
enum Step {
    Planned(Action),
    Start {
        slot: usize,
    },
    Replay {
        number: usize,
    },
    /// The group notices that a process is gone.
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
    /// The driver's own choices: the world's must not depend on how often the driver looks.
    random: Random,
    slots: Vec<Option<Running>>,
    /// By the number of the scenario's request.
    replaying: Vec<Replaying>,
    /// Which slot should own each partition.
    assigned: Vec<usize>,
    queue: BTreeMap<(Duration, u64), Step>,
    queued: u64,
    appended: u64,
    /// The trouble is over.
    calm: bool,
    /// Nothing is started any more.
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
            state.replays.ask(scenario.replays.iter().map(|request| request.asked.clone()).collect());
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
                replayed: 0,
                resumes: 0,
                refused: 0,
                redelivered: 0,
                letters_again: 0,
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
        self.outcome.trace = std::mem::take(&mut state.trace);
        self.outcome.violation = state.violation().map(str::to_owned);
        for counts in state.replays.oracles().map(|oracle| oracle.counts) {
            self.outcome.redelivered += counts.delivered;
            self.outcome.letters_again += counts.dead_letters;
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
            self.turn(at).await;
            if self.broken() {
                return;
            }
        }
    }

    /// Looks after the processes until `at`, then does what is due.
    async fn turn(&mut self, at: Duration) {
        let wait = at.saturating_sub(self.world.now());
        let world = Arc::clone(&self.world);
        tokio::select! {
            biased;
            () = world.happened.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        self.look_after().await;
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
                self.world.lock().members.reconnect(life);
                for running in self.slots.iter_mut().flatten().filter(|running| running.life == life) {
                    running.cut_off = false;
                }
                self.assign();
            }
            Step::MustHaveEnded { life } => {
                if self.slots.iter().flatten().any(|running| running.life == life) || self.is_replaying(life) {
                    self.world.lock().oracle.fail(format!("life {life} was told to stop long ago and goes on"));
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
            Action::OffsetReset { partition, slot } => {
                self.assigned[partition as usize] = slot;
                self.assign();
            }
            Action::CutOff { slot } => {
                let Some(running) = &mut self.slots[slot] else { return };
                if running.stop.is_none() || std::mem::replace(&mut running.cut_off, true) {
                    return;
                }
                let life = running.life;
                let ends = self.world.lock().members.cut_off(life);
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
                state.note(now, Life::MAX, format_args!("{partition}:{offset} cannot be read any more"));
                self.outcome.damages += 1;
            }
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
        // Nobody moves what was never delivered.
        if !state.members.has_committed(partition) {
            return;
        }
        self.outcome.repositions += 1;
        let (earliest, latest) = state.topics.ends(partition);
        let to = earliest + (latest - earliest) * percent / 100;
        let to = if ahead { ResetTarget::Ahead(to) } else { ResetTarget::Back(to) };
        let wanted = OffsetReset { id: self.outcome.repositions, to };
        state.oracle.asked(partition, wanted);
        state.note(now, Life::MAX, format_args!("asks for {wanted:?} in {partition}"));
        state.members.ask(partition, wanted);
        if let Some(moved) = state.members.apply(partition, wanted) {
            state.oracle.committed(None, partition, &moved, now);
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
                // Some clocks are ahead, some behind.
                let apart_ms = [0, 0, 1, 0, -1, 0, 0][(self.appended % 7) as usize] * self.scenario.clocks_apart_ms;
                let headers = &headers[..(self.appended % 4) as usize];
                Record::new(key.as_deref(), value.as_deref(), headers, (now_ms + apart_ms).max(0))
            })
            .collect();
        self.world.append(TOPIC, partition, &records);
    }

    /// One event of a new user in each partition.
    fn append_fresh(&mut self) {
        for partition in 0..self.scenario.partitions {
            let user = format!("fresh-{}", self.world.now().as_secs());
            let record = Record::new(Some(user.as_bytes()), Some(b"fresh"), &[], 0);
            self.world.append(TOPIC, partition, &[record]);
        }
    }

    // -- the end

    /// No more trouble: everything has to be settled within a time that the configuration bounds.
    async fn settle_everything(&mut self) {
        self.calm = true;
        self.world.spare_everybody();
        {
            let mut state = self.world.lock();
            state.rates = crate::dispatch::world::Rates::default();
            state.behaviour.calm();
            state.topics.repair();
            state.oracle.phase_ends();
            for oracle in state.replays.oracles() {
                oracle.phase_ends();
            }
        }
        let config = &self.scenario.config;
        let try_max = config.attempt_timeout + Duration::from_secs(12);
        let limit = self.world.now() + (try_max * (self.appended as u32 + 10) * (config.attempts + 1)).min(CALM_MAX);
        // What is delivered again takes its time again.
        let limit = limit + CALM_MAX * (self.outcome.repositions as u32 + self.scenario.replays.len() as u32);
        // A partition that is stopped tries again once a minute.
        let all_continue_at = if self.outcome.damages > 0 { self.world.now() + STOPPED_MAX } else { Duration::ZERO };
        let mut fresh_at = Duration::ZERO;
        while self.world.lock().oracle.unfinished().is_some()
            || !self.everybody_is_back()
            || !self.is_replayed()
            || self.world.now() < all_continue_at
        {
            if self.world.now() >= fresh_at {
                // Where nobody else is about, nobody can tell whether an outage is over.
                fresh_at = self.world.now() + FRESH_EVERY;
                self.append_fresh();
            }
            let soon = self.world.now() + Duration::from_millis(100);
            self.turn(soon).await;
            if self.broken() {
                return;
            }
            if self.world.now() > limit {
                let mut state = self.world.lock();
                let waiting = (state.oracle.unfinished(), state.replays.unfinished());
                return state.oracle.fail(format!("still {waiting:?} at {limit:?}, long after the trouble"));
            }
        }
        let special = self.scenario.users[0].clone();
        if let Some(max) = self.scenario.others_wait_max {
            let mut state = self.world.lock();
            let waited = state.oracle.longest_wait(|user| Some(user) != special.as_deref());
            if waited > max {
                state.oracle.fail(format!("somebody waited {waited:?} though only {special:?} is in trouble"));
            }
        }
    }

    /// Every process runs, can reach the group, and owns what it should.
    fn everybody_is_back(&self) -> bool {
        let there = |slot: &Option<Running>| slot.as_ref().is_some_and(|running| !running.cut_off);
        self.slots.iter().all(there) && self.world.lock().members.is_balanced()
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
