//! Runs one seed: starts, stops, kills and freezes processes, makes network faults, and then ends all faults.

mod calm;

use super::coordinator::Group;
use super::harness::Random;
use super::network::{NetworkFault, RequestKind, Transit};
use super::oracle::{Counts, Life, Oracle};
use super::process::{Process, Setup};
use super::{State, World};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const PARTITIONS_MAX: u32 = 12;

/// The result of one simulation.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) counts: Counts,
    pub(super) done: Done,
    pub(super) generations: u64,
    pub(super) expired: u64,
    pub(super) too_late: u64,
    pub(super) replaced: u64,
    pub(super) inherited: u64,
    pub(super) trace: Vec<String>,
    pub(super) violation: Option<String>,
}

/// How often the driver did each thing.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Done {
    pub(super) starts: u64,
    pub(super) stops: u64,
    pub(super) kept: u64,
    pub(super) drains: u64,
    pub(super) kills: u64,
    pub(super) kills_in_release: u64,
    pub(super) freezes: u64,
    pub(super) faults: u64,
    pub(super) moves: u64,
    pub(super) grown: u64,
    pub(super) planned: u64,
}

/// Runs a seed in a runtime of its own. Simulated time only advances when no task can run.
pub(super) fn simulate(seed: u64, traced: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without I/O").block_on(async {
        // The runtime reads the real clock once while it is built. Simulated time starts with the first tick.
        sleep(Duration::from_millis(1)).await;
        Driver::new(seed, traced).drive(seed).await
    })
}

/// A place where one process after another runs.
struct Slot {
    instance: Option<String>,
    process: Option<Process>,
    /// When the next process starts.
    start_at: Option<Instant>,
    thaw_at: Option<Instant>,
}

struct Driver {
    world: Arc<World>,
    random: Random,
    slots: Vec<Slot>,
    session: Duration,
    release_max: Duration,
    lives: Life,
    done: Done,
}

impl Driver {
    fn new(seed: u64, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let session = random.pick(&[1_000, 2_000, 4_000].map(Duration::from_millis));
        let release_max = Duration::from_millis(random.pick(&[20, 300, 300, 1_500, 6_000]));
        let partitions = random.between(1, 7) as u32;
        let (slots, has_static) = (random.between(2, 4), random.chance(50));
        let instance =
            |slot, random: &mut Random| (has_static && random.chance(70)).then(|| format!("instance-{slot}"));
        let slots = (0..slots)
            .map(|slot| Slot { instance: instance(slot, &mut random), process: None, start_at: None, thaw_at: None })
            .collect();
        let state = State {
            began: Instant::now(),
            group: Group::new(seed << 20, Duration::from_millis(random.pick(&[0, 0, 500]))),
            partitions,
            random: Random::new(!seed),
            loss: 0,
            moves_until: None,
            fails_over: false,
            oracle: Oracle::default(),
            trace: traced.then(Vec::new),
        };
        let world = Arc::new(World { state: Mutex::new(state), happened: Notify::new() });
        Self { world, random, slots, session, release_max, lives: 0, done: Done::default() }
    }

    async fn drive(mut self, seed: u64) -> Outcome {
        tokio::spawn(Arc::clone(&self.world).coordinate());
        if seed.is_multiple_of(4) {
            self.changes_without_faults().await;
        } else {
            self.fault().await;
            self.calm();
        }
        self.settles("at the end").await;
        let mut state = self.world.lock();
        let group = &state.group;
        let (generations, expired, too_late) = (group.generation.unsigned_abs().into(), group.expired, group.too_late);
        let (replaced, inherited) = (group.replaced, group.inherited);
        let (counts, violation) = (state.oracle.counts, state.oracle.violation().map(str::to_owned));
        let trace = state.trace.take().unwrap_or_default();
        let done = self.done;
        Outcome { counts, done, generations, expired, too_late, replaced, inherited, trace, violation }
    }

    fn broken(&self) -> bool {
        self.world.lock().oracle.violation().is_some()
    }

    fn note(&self, what: impl std::fmt::Display) {
        self.world.lock().note(what);
    }

    /// Lets time pass, and does what is due.
    async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.broken() {
            sleep(LOOK_INTERVAL.min(until - Instant::now())).await;
            let now = Instant::now();
            self.collect_ended(now);
            self.world.lock().oracle.check(now);
        }
    }

    fn collect_ended(&mut self, now: Instant) {
        let ended = std::mem::take(&mut self.world.lock().oracle.ended);
        for (life, why) in ended {
            let has_it = |slot: &&mut Slot| slot.process.as_ref().is_some_and(|process| process.life == life);
            let Some(slot) = self.slots.iter_mut().find(has_it) else { continue };
            // After a failover, the coordinator may take a process for an older one with its instance id, which ends
            // it. It is started again.
            if slot.instance.is_none() || !why.contains("--instance-id") {
                self.world.lock().oracle.fail(format!("{life} ended: {why}"));
            }
            slot.process.take().into_iter().for_each(Process::kill);
            slot.start_at = Some(now + Duration::from_millis(200));
        }
        for slot in 0..self.slots.len() {
            self.slots[slot].process.take_if(|process| process.has_drained());
            let one = &mut self.slots[slot];
            if one.thaw_at.is_some_and(|at| at <= now) {
                one.thaw_at = None;
                if let Some(process) = &one.process {
                    process.frozen.thaw();
                    let life = process.life;
                    self.note(format_args!("{life} continues"));
                }
            }
            let one = &mut self.slots[slot];
            if one.start_at.is_some_and(|at| at <= now) {
                one.start_at = None;
                self.start(slot);
            }
        }
    }

    fn is_up(&self, slot: usize) -> bool {
        self.slots[slot].process.as_ref().is_some_and(|process| self.world.lock().oracle.is_alive(process.life))
    }

    fn start(&mut self, slot: usize) {
        self.slots[slot].process.take().into_iter().for_each(Process::kill);
        self.lives += 1;
        self.done.starts += 1;
        let (session, release_max, instance) = (self.session, self.release_max, self.slots[slot].instance.clone());
        let setup = Setup { session, instance, release_max, seed: self.random.below(u64::MAX) };
        self.note(format_args!("{} starts in slot {slot}, as {:?}", self.lives, setup.instance));
        self.slots[slot].process = Some(Process::start(&self.world, self.lives, setup));
    }

    fn kill(&mut self, slot: usize) {
        if let Some(process) = self.slots[slot].process.take() {
            self.done.kills += 1;
            self.note(format_args!("{} is killed", process.life));
            process.kill();
        }
    }

    fn stop(&mut self, slot: usize, tell: bool) {
        let takes = self.random.millis(0, 300);
        if let Some(process) = &mut self.slots[slot].process {
            self.done.stops += 1;
            self.done.kept += u64::from(!tell);
            process.stop(takes, tell);
            let life = process.life;
            self.note(format_args!("{life} is told to stop, which takes {takes:?}; tells: {tell}"));
        }
    }

    /// Returns the partition whose release hangs for this long.
    fn drain(&mut self, slot: usize, hang: Duration) -> Option<u32> {
        let process = self.slots[slot].process.as_mut()?;
        self.done.drains += 1;
        let (life, hanging) = (process.life, process.drain(hang));
        self.note(format_args!("{life} is told to drain, while {hanging:?} hangs for {hang:?}"));
        hanging
    }

    fn restarts_after(&mut self, slot: usize, low: Duration, high: Duration) {
        let after = self.random.millis(low.as_millis() as u64, high.as_millis() as u64);
        self.slots[slot].start_at = Some(Instant::now() + after);
    }

    fn grow(&mut self) {
        let more = self.random.between(1, 2) as u32;
        let mut state = self.world.lock();
        state.partitions = (state.partitions + more).min(PARTITIONS_MAX);
        let now = state.partitions;
        state.note(format_args!("the topic has {now} partitions"));
        drop(state);
        self.done.grown += 1;
    }

    async fn fault(&mut self) {
        self.world.lock().loss = self.random.pick(&[0, 0, 1, 4]);
        for slot in 0..self.slots.len() {
            if self.random.chance(80) {
                self.restarts_after(slot, Duration::ZERO, self.session * 2);
            }
        }
        for _ in 0..self.random.between(4, 14) {
            let pause = self.random.pick(&[100, 700, 3_000]);
            let pause = self.random.millis(10, pause);
            self.pass(pause).await;
            if self.broken() {
                return;
            }
            self.make_change().await;
        }
    }

    async fn make_change(&mut self) {
        let slot = self.random.below(self.slots.len() as u64) as usize;
        let up = self.is_up(slot);
        match self.random.below(100) {
            0..20 if !up => self.start(slot),
            0..6 if up => {
                let hang = self.random.millis(0, self.session.as_millis() as u64 * 3);
                self.drain(slot, hang);
                self.restarts_after(slot, Duration::from_millis(400), self.session * 4);
            }
            0..14 => {
                let tell = self.slots[slot].instance.is_none() || self.random.chance(40);
                self.stop(slot, tell);
                self.restarts_after(slot, Duration::from_millis(400), self.session * 2);
            }
            14..30 => {
                self.kill(slot);
                self.restarts_after(slot, Duration::from_millis(100), self.session * 2);
            }
            30..45 if up => {
                let time = self.random.millis(50, self.session.as_millis() as u64 * 2);
                self.freeze(slot, time);
            }
            45..62 if up => {
                // A fault does the most harm during a rebalance.
                if self.random.chance(50) {
                    self.start_or_stop((slot + 1) % self.slots.len());
                    let wait = self.random.millis(0, 500);
                    self.pass(wait).await;
                }
                self.cut_off(slot);
            }
            62..70 if up => self.answer_late_and_freeze(slot).await,
            70..80 => {
                let mut state = self.world.lock();
                let time = self.random.millis(50, self.session.as_millis() as u64 * 3 / 2);
                state.moves_until = Some(Instant::now() + time);
                state.fails_over = self.random.chance(70);
                state.note(format_args!("there is no coordinator for {time:?}"));
                drop(state);
                self.done.moves += 1;
                self.world.happened.notify_one();
            }
            80..85 => self.grow(),
            85..100 => self.kill_in_release(slot).await,
            _ => {}
        }
    }

    fn freeze(&mut self, slot: usize, time: Duration) {
        if let Some(process) = &self.slots[slot].process {
            process.frozen.freeze();
            self.done.freezes += 1;
            self.note(format_args!("{} is frozen for {time:?}", process.life));
            self.slots[slot].thaw_at = Some(Instant::now() + time);
        }
    }

    /// Answers reach the process late, and then it is frozen for longer than its session.
    async fn answer_late_and_freeze(&mut self, slot: usize) {
        if let Some(process) = &self.slots[slot].process {
            let until = Instant::now() + self.session * 2;
            let (requests, answers) = (Transit::Well, Transit::Slow);
            process.link.faults().push(NetworkFault { until, kind: None, requests, answers });
            self.done.faults += 1;
            self.note(format_args!("{} is answered late for {:?}", process.life, self.session * 2));
        }
        let wait = self.random.millis(100, self.session.as_millis() as u64);
        self.pass(wait).await;
        self.freeze(slot, self.session * 2);
        self.pass(self.session * 3 / 2).await;
    }

    fn cut_off(&mut self, slot: usize) {
        let long = self.session.as_millis() as u64 * 3;
        let (bad, good) = (self.random.pick(&[Transit::Lost, Transit::Lost, Transit::Slow]), Transit::Well);
        let transits = self.random.pick(&[(bad, good), (good, bad), (bad, bad)]);
        let kind = self.random.pick(&[
            None,
            Some(RequestKind::Joins),
            Some(RequestKind::Joins),
            Some(RequestKind::Heartbeats),
        ]);
        let mut faults = vec![(kind, transits)];
        // Each kind of request has a connection of its own.
        if self.random.chance(30) {
            let lost = (Transit::Lost, good);
            // If the heartbeats are lost, the lease ends while a slow JoinGroup is under way.
            let slow = self.random.pick(&[(good, Transit::Slow), (Transit::Slow, good)]);
            faults = vec![(Some(RequestKind::Joins), slow)];
            faults.extend([RequestKind::Heartbeats, RequestKind::Others].map(|kind| (Some(kind), lost)));
        }
        self.done.faults += 1;
        for (kind, (requests, answers)) in faults {
            let time = self.random.millis(50, long);
            let Some(process) = &self.slots[slot].process else { return };
            let fault = NetworkFault { until: Instant::now() + time, kind, requests, answers };
            process.link.faults().push(fault);
            self.note(format_args!("{}: {:?} for {time:?}", process.life, (kind, requests, answers)));
        }
    }

    fn start_or_stop(&mut self, slot: usize) {
        if self.is_up(slot) && self.random.chance(30) {
            let hang = self.random.millis(0, self.session.as_millis() as u64 * 2);
            self.drain(slot, hang);
            self.restarts_after(slot, Duration::from_millis(400), self.session * 3);
        } else if self.is_up(slot) {
            self.stop(slot, true);
            self.restarts_after(slot, Duration::from_millis(400), self.session);
        } else {
            self.start(slot);
        }
    }

    /// A member joins or leaves. A member that has to release a partition because of it is killed meanwhile, and soon
    /// starts again.
    async fn kill_in_release(&mut self, slot: usize) {
        self.start_or_stop((slot + 1) % self.slots.len());
        let wait = self.random.millis(0, 1_000);
        self.pass(wait).await;
        if self.is_up(slot) {
            self.done.kills_in_release += 1;
            self.kill(slot);
            self.restarts_after(slot, Duration::from_millis(100), self.session / 2);
        }
    }

    /// Ends all faults. Every process runs and reaches the coordinator.
    fn calm(&mut self) {
        self.note("no more faults");
        {
            let mut state = self.world.lock();
            state.loss = 0;
            state.moves_until = state.moves_until.map(|_| Instant::now());
        }
        self.world.happened.notify_one();
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            let up = self.is_up(slot);
            let one = &mut self.slots[slot];
            one.thaw_at = one.thaw_at.map(|_| now);
            if let Some(process) = &one.process {
                process.link.faults().clear();
            }
            if !up && one.start_at.is_none() {
                one.start_at = Some(now);
            }
        }
    }
}
