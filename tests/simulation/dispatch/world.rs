//! The world around dispatch and replay: who lives, which call fails, and where a process dies.
//!
//! Every call that they make comes through a [`Handle`], which belongs to one *life* of one process. A call may be
//! chosen to fail, and any point before or after its effect may be chosen for a crash: from then on no call of that life
//! returns or has an effect, until the driver has dropped it. So a crash falls at exactly one await, and what was in
//! flight may or may not have been done, as the seed says.

use crate::dispatch::memory_destination::Behaviour;
use crate::dispatch::memory_group::Members;
use crate::dispatch::memory_groups::Alone;
use crate::dispatch::memory_log::Topics;
use crate::dispatch::oracle::{Life, Oracle};
use crate::dispatch::random::Random;
use crate::dispatch::replays::Replays;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Calls at one instant of virtual time: more of them are a loop that waits for nothing.
const CALLS_AT_ONCE_MAX: u64 = 20_000;

/// The second way in which a call that only reads fails, where it has one: it is never answered.
const NEVER: u32 = 1;

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Dispatch,
    Replay,
}

/// What dispatch calls, and below what a replay alone does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Open,
    Append,
    Fetch,
    Partitions,
    Earliest,
    Latest,
    Changed,
    Committed,
    Commit,
    Requested,
    Deliver,
    /// What a group has committed, asked from outside.
    Known,
    Join,
    Forget,
    /// For moves of a group's position, and which ones stand.
    Request,
    Standing,
    Apply,
    OpenDestination,
}

pub(crate) const CALLS: [Call; 18] = [
    Call::Open,
    Call::Append,
    Call::Fetch,
    Call::Partitions,
    Call::Earliest,
    Call::Latest,
    Call::Changed,
    Call::Committed,
    Call::Commit,
    Call::Requested,
    Call::Deliver,
    Call::Known,
    Call::Join,
    Call::Forget,
    Call::Request,
    Call::Standing,
    Call::Apply,
    Call::OpenDestination,
];

/// How many calls of each kind there were.
pub(crate) type Calls = [u64; CALLS.len()];

impl Call {
    /// In how many ways this call can fail.
    pub(crate) fn ways(self) -> u32 {
        match self {
            Self::Append | Self::Commit | Self::Request | Self::Apply => 3,
            Self::Requested => 2,
            Self::Deliver => 6,
            _ => 1,
        }
    }
}

/// One call, the `index`th of its kind and of such processes, that fails in one way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Single {
    pub(crate) role: Role,
    pub(crate) call: Call,
    pub(crate) index: u64,
    pub(crate) way: u32,
}

/// How a write fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteFault {
    Refused,
    UnknownStored,
    UnknownLost,
    /// Stored only a while after "unknown" was answered.
    UnknownLate,
}

/// Chances in percent, and latencies.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    pub(crate) append_fails: u64,
    pub(crate) commit_fails: u64,
    pub(crate) reads_fail: u64,
    pub(crate) slow: u64,
    pub(crate) slow_ms_max: u64,
    /// Of a thousand waits for a change, how many end the membership.
    pub(crate) membership_ends_permille: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Running,
    /// It crashed at an await; the driver has not dropped it yet.
    Dying,
    /// It was dropped, or ended: nothing of it may be heard again.
    Gone,
}

#[derive(Debug)]
struct LifeState {
    role: Role,
    health: Health,
    /// Points at which it may still pass before it crashes.
    steps_left: Option<u64>,
    membership_ended: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) random: Random,
    /// Of what dispatch does.
    pub(crate) oracle: Oracle,
    pub(crate) replays: Replays,
    pub(crate) topics: Topics,
    pub(crate) members: Members,
    pub(crate) groups: Alone,
    pub(crate) behaviour: Behaviour,
    pub(crate) rates: Rates,
    pub(crate) single: Option<Single>,
    /// By role.
    pub(crate) calls: [Calls; 2],
    pub(crate) trace: Vec<String>,
    lives: Vec<LifeState>,
    at: Duration,
    calls_at_once: u64,
}

/// Shared by everything in one simulation.
pub(crate) struct World {
    state: Mutex<State>,
    start: Instant,
    pub(crate) log_grew: Notify,
    pub(crate) members_changed: Notify,
    /// Something for the driver: a crash, an end, a violation.
    pub(crate) happened: Notify,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl World {
    pub(crate) fn new(
        random: Random,
        oracle: Oracle,
        topics: Topics,
        members: Members,
        behaviour: Behaviour,
        rates: Rates,
    ) -> Arc<Self> {
        let state = State {
            random,
            oracle,
            replays: Replays::default(),
            topics,
            members,
            groups: Alone::default(),
            behaviour,
            rates,
            single: None,
            calls: [[0; CALLS.len()]; 2],
            trace: Vec::new(),
            lives: Vec::new(),
            at: Duration::ZERO,
            calls_at_once: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            start: Instant::now(),
            log_grew: Notify::new(),
            members_changed: Notify::new(),
            happened: Notify::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no check panics while it holds the world")
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn moment(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    /// A process begins.
    pub(crate) fn begin_life(self: &Arc<Self>, role: Role) -> Handle {
        let mut state = self.lock();
        let life = state.lives.len() as Life;
        state.lives.push(LifeState { role, health: Health::Running, steps_left: None, membership_ended: false });
        drop(state);
        Handle { world: self.clone(), life }
    }

    /// It will crash after so many steps.
    pub(crate) fn crash_within(&self, life: Life, steps: u64) {
        self.lock().lives[life as usize].steps_left = Some(steps.max(1));
    }

    pub(crate) fn crash(&self, life: Life) {
        self.lock().lives[life as usize].health = Health::Dying;
        self.happened.notify_one();
    }

    /// Nobody crashes any more.
    pub(crate) fn spare_everybody(&self) {
        for life in &mut self.lock().lives {
            life.steps_left = None;
        }
    }

    pub(crate) fn is_dying(&self, life: Life) -> bool {
        self.lock().lives[life as usize].health == Health::Dying
    }

    /// From now on nothing of this life may be heard.
    pub(crate) fn bury(&self, life: Life) {
        self.lock().lives[life as usize].health = Health::Gone;
    }

    pub(crate) fn membership_ended(&self, life: Life) -> bool {
        self.lock().lives[life as usize].membership_ended
    }
}

impl State {
    pub(crate) fn is_replay(&self, life: Life) -> bool {
        self.lives[life as usize].role == Role::Replay
    }

    /// Who judges what this life does; `None`: a replay that does not deliver as yet.
    pub(crate) fn oracle_of(&mut self, life: Life) -> Option<&mut Oracle> {
        if self.is_replay(life) { self.replays.oracle_of(life) } else { Some(&mut self.oracle) }
    }

    /// The first promise that was broken, by anybody.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.oracle.violation().or_else(|| self.replays.violation())
    }

    pub(crate) fn note(&mut self, now: Duration, life: Life, what: fmt::Arguments<'_>) {
        self.trace.push(format!("{:>10.3} life {life}: {what}", now.as_secs_f64()));
    }

    /// How a write fails this time; `way` is the one that was chosen for this call, if it was.
    pub(crate) fn write_fault(&mut self, way: Option<u32>, percent: u64, may_be_late: bool) -> Option<WriteFault> {
        use WriteFault::{Refused, UnknownLate, UnknownLost, UnknownStored};
        match way {
            Some(way) => Some([Refused, UnknownStored, UnknownLost][way as usize]),
            None if !self.random.chance(percent) => None,
            None if may_be_late => Some(self.random.pick(&[Refused, UnknownStored, UnknownLost, UnknownLate])),
            None => Some(self.random.pick(&[Refused, UnknownStored, UnknownLost])),
        }
    }

    pub(crate) fn read_fails(&mut self, way: Option<u32>) -> bool {
        way.is_some() || self.random.chance(self.rates.reads_fail)
    }

    /// How long a call takes: nothing at all, mostly, so that orders change among what is ready at once.
    pub(crate) fn delay(&mut self) -> Duration {
        if self.random.chance(self.rates.slow) {
            self.random.millis(0, self.rates.slow_ms_max)
        } else {
            Duration::from_millis(self.random.below(3))
        }
    }

    pub(crate) fn membership_ends(&mut self, life: Life, way: Option<u32>) -> bool {
        let ends = way.is_some() || self.random.below(1000) < self.rates.membership_ends_permille;
        self.lives[life as usize].membership_ended |= ends;
        ends
    }
}

/// What one life of dispatch holds of the world.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) world: Arc<World>,
    pub(crate) life: Life,
}

impl Handle {
    /// A call begins. Answers in which way it was chosen to fail. Never returns where the life ends here.
    pub(crate) async fn begin(&self, call: Call) -> Option<u32> {
        self.step(Some(call)).await;
        let mut state = self.world.lock();
        let role = state.lives[self.life as usize].role;
        let calls = &mut state.calls[role as usize][call as usize];
        let index = *calls;
        *calls += 1;
        let chosen = |single: &Single| (single.role, single.call, single.index) == (role, call, index);
        state.single.filter(chosen).map(|single| single.way)
    }

    /// A call that only reads begins, and takes its time. `false`: it fails.
    pub(crate) async fn is_answered(&self, call: Call) -> bool {
        let way = self.begin(call).await;
        if way == Some(NEVER) {
            std::future::pending::<()>().await;
        }
        let (delay, fails) = {
            let mut state = self.world.lock();
            (state.delay(), state.read_fails(way))
        };
        self.sleep(delay).await;
        !fails
    }

    /// The call's effect is done and its answer is on the way.
    pub(crate) async fn end(&self) {
        self.step(None).await;
    }

    /// Sleeps; what comes after it never happens where the life ended meanwhile.
    pub(crate) async fn sleep(&self, time: Duration) {
        if !time.is_zero() {
            tokio::time::sleep(time).await;
            self.step(None).await;
        }
    }

    async fn step(&self, call: Option<Call>) {
        if self.dies_here(call) {
            std::future::pending::<()>().await;
        }
    }

    fn dies_here(&self, call: Option<Call>) -> bool {
        let now = self.world.now();
        let mut guard = self.world.lock();
        let state = &mut *guard;
        let life = &mut state.lives[self.life as usize];
        if life.health == Health::Running
            && let Some(left) = &mut life.steps_left
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                life.health = Health::Dying;
                state.trace.push(format!("{:>10.3} life {}: crashes here", now.as_secs_f64(), self.life));
                self.world.happened.notify_one();
            }
        }
        if life.health == Health::Gone {
            state.oracle.fail(format!("life {} goes on after its end: {call:?}", self.life));
        }
        if call.is_some() {
            state.calls_at_once = if state.at == now { state.calls_at_once + 1 } else { 0 };
            state.at = now;
            if state.calls_at_once > CALLS_AT_ONCE_MAX {
                state.oracle.fail(format!("life {} spins: {call:?} again and again at one instant", self.life));
            }
        }
        let is_broken = state.violation().is_some();
        let ends = state.lives[self.life as usize].health != Health::Running || is_broken;
        if is_broken {
            self.world.happened.notify_one();
        }
        ends
    }
}
