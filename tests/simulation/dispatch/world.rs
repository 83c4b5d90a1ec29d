//! The world around dispatch and replay: which processes live, which call fails, and where a process dies.
//!
//! Every call that a process makes goes through a [`Handle`], which belongs to one *life* of the process. A call may be
//! chosen to fail, and any point before or after its effect may be chosen for a crash. From then on no call of that
//! life returns or has an effect, until the driver has dropped it. So a crash happens at exactly one await. What was in
//! flight may or may not be done, as the seed decides.

use crate::dispatch::commands::Commands;
use crate::dispatch::memory_destination::Behaviour;
use crate::dispatch::memory_group::Members;
use crate::dispatch::memory_groups::ExclusiveGroups;
use crate::dispatch::memory_log::Topics;
use crate::dispatch::oracle::{Life, Oracle, User};
use crate::dispatch::replays::Replays;
use crate::harness::Random;
use eventd::clock::WallClock;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The most calls at one instant of simulated time. More of them mean a busy loop.
const CALLS_AT_ONCE_MAX: u64 = 20_000;

/// The second way in which a read-only call fails, if it has one: it is never answered.
const NEVER: u32 = 1;

/// The wall clock's time when a world begins, in milliseconds since the Unix epoch.
pub(crate) const BEGAN_MS: i64 = 1_767_350_000_000;

/// The kind of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Dispatch,
    Replay,
}

/// The calls of dispatch, followed by those that only a replay makes.
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
    /// Reads a group's commits from outside.
    Known,
    Join,
    Forget,
    /// Requests offset resets, and reads the requested ones.
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

/// The number of calls of each kind.
pub(crate) type Calls = [u64; CALLS.len()];

impl Call {
    /// The number of ways in which this call can fail.
    pub(crate) fn ways(self) -> u32 {
        match self {
            Self::Append | Self::Commit | Self::Request | Self::Apply => 3,
            Self::Requested => 2,
            Self::Deliver => 6,
            _ => 1,
        }
    }
}

/// One call, the `index`-th of its kind by such processes, that fails in one way.
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
    /// Stored some time after the caller got "unknown".
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
    /// How many of a thousand waits for a change end the membership.
    pub(crate) membership_ends_permille: u64,
    /// Fetches, and looks for offset resets and for commands, wait long.
    pub(crate) far_timers: bool,
}

impl Rates {
    /// How long a call may take that waits for nothing.
    pub(crate) fn call_max(&self) -> Duration {
        Duration::from_millis(if self.slow > 0 { self.slow_ms_max.max(3) } else { 3 })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Running,
    /// It crashed at an await, but the driver has not dropped it yet.
    Dying,
    /// It ended or was dropped, so it must not make calls any more.
    Gone,
}

#[derive(Debug)]
struct LifeState {
    role: Role,
    health: Health,
    /// The number of points that it may still pass before it crashes.
    steps_left: Option<u64>,
    membership_ended: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) random: Random,
    /// The oracle of dispatch.
    pub(crate) oracle: Oracle,
    pub(crate) replays: Replays,
    pub(crate) commands: Commands,
    /// The partitions that a process of dispatch begins: it has not read yet.
    pub(crate) beginning: BTreeSet<(Life, u32)>,
    /// The users of the scenario, by their numbers.
    pub(crate) users: Vec<User>,
    pub(crate) topics: Topics,
    pub(crate) members: Members,
    pub(crate) groups: ExclusiveGroups,
    pub(crate) behaviour: Behaviour,
    pub(crate) rates: Rates,
    pub(crate) single: Option<Single>,
    /// The most parked users of a commit.
    pub(crate) parked_users_max: usize,
    /// The calls of each role.
    pub(crate) calls: [Calls; 2],
    pub(crate) trace: Vec<String>,
    lives: Vec<LifeState>,
    at: Duration,
    calls_at_once: u64,
}

/// Everything that one simulation shares.
pub(crate) struct World {
    state: Mutex<State>,
    start: Instant,
    pub(crate) log_grew: Notify,
    pub(crate) members_changed: Notify,
    /// Notified if there is something for the driver: a crash, an end, a violation.
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
            commands: Commands::default(),
            beginning: BTreeSet::new(),
            users: Vec::new(),
            topics,
            members,
            groups: ExclusiveGroups::default(),
            behaviour,
            rates,
            single: None,
            parked_users_max: 0,
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
        self.state.lock().expect("no check panics while it holds the lock")
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn moment(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.start)
    }

    /// A process starts.
    pub(crate) fn begin_life(self: &Arc<Self>, role: Role) -> Handle {
        let mut state = self.lock();
        let life = state.lives.len() as Life;
        state.lives.push(LifeState { role, health: Health::Running, steps_left: None, membership_ended: false });
        drop(state);
        Handle { world: self.clone(), life }
    }

    /// Makes the life crash after this many steps.
    pub(crate) fn crash_within(&self, life: Life, steps: u64) {
        self.lock().lives[life as usize].steps_left = Some(steps.max(1));
    }

    pub(crate) fn crash(&self, life: Life) {
        self.lock().lives[life as usize].health = Health::Dying;
        self.happened.notify_one();
    }

    /// From now on no process crashes.
    pub(crate) fn stop_crashes(&self) {
        for life in &mut self.lock().lives {
            life.steps_left = None;
        }
    }

    pub(crate) fn is_dying(&self, life: Life) -> bool {
        self.lock().lives[life as usize].health == Health::Dying
    }

    /// From now on this life must not make calls.
    pub(crate) fn remove_life(&self, life: Life) {
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

    /// The oracle for what this life does. `None` for a replay that does not deliver yet.
    pub(crate) fn oracle_of(&mut self, life: Life) -> Option<&mut Oracle> {
        if self.is_replay(life) { self.replays.oracle_of(life) } else { Some(&mut self.oracle) }
    }

    /// The first broken promise of any process.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.oracle.violation().or_else(|| self.replays.violation())
    }

    pub(crate) fn note(&mut self, now: Duration, life: Life, what: fmt::Arguments<'_>) {
        self.trace.push(format!("{:>10.3} life {life}: {what}", now.as_secs_f64()));
    }

    /// How a write fails this time. `way` is the way chosen for this call, if any.
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

    /// How long a call takes. It is mostly nothing, so that the order changes among tasks that are ready at once.
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
    /// The wall clock of the world: it shows simulated time.
    pub(crate) fn wall_clock(&self) -> WallClock {
        let world = Arc::clone(&self.world);
        WallClock::simulated(move || BEGAN_MS + i64::try_from(world.now().as_millis()).expect("a world is young"))
    }

    /// A call begins. Returns the way in which it was chosen to fail. Never returns if the life ends here.
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

    /// A read-only call begins, and takes its time. Returns false if it fails.
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

    /// The call has taken effect, and its answer is on the way.
    pub(crate) async fn end(&self) {
        self.step(None).await;
    }

    /// Sleeps. Never returns if the life ends meanwhile.
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
            state.oracle.fail(format!("life {} makes calls after its end: {call:?}", self.life));
        }
        if call.is_some() {
            state.calls_at_once = if state.at == now { state.calls_at_once + 1 } else { 0 };
            state.at = now;
            if state.calls_at_once > CALLS_AT_ONCE_MAX {
                state
                    .oracle
                    .fail(format!("life {} is in a busy loop: {call:?} again and again at one instant", self.life));
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
