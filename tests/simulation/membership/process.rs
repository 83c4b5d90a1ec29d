//! A process: a real membership, and a model of the dispatch that uses it. It can be killed, and it can be frozen while
//! time passes.

use super::harness::Random;
use super::network::Link;
use super::oracle::Life;
use super::{GROUP, World};
use crate::group::Change;
use crate::group::kafka::clocks::Clocks;
use crate::group::kafka::membership::{Membership, MembershipConfig};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// The tasks of a process, which are not polled while it is frozen.
#[derive(Debug, Default)]
pub(super) struct Frozen(Mutex<(bool, Vec<Waker>)>);

impl Frozen {
    pub(super) fn freeze(&self) {
        self.0.lock().unwrap().0 = true;
    }

    pub(super) fn thaw(&self) {
        let waiting = {
            let mut state = self.0.lock().unwrap();
            state.0 = false;
            std::mem::take(&mut state.1)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

struct Freezable<F> {
    frozen: Arc<Frozen>,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Freezable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.frozen.0.lock().unwrap();
            if state.0 {
                state.1.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.inner.as_mut().poll(context)
    }
}

/// How one process is set up.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) session: Duration,
    pub(super) instance: Option<String>,
    /// The longest time that releasing a partition takes.
    pub(super) release_max: Duration,
    pub(super) seed: u64,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) life: Life,
    pub(super) link: Arc<Link>,
    pub(super) frozen: Arc<Frozen>,
    world: Arc<World>,
    member: Arc<Membership>,
    tasks: Vec<AbortHandle>,
    /// The partition whose release hangs, and until when.
    hangs: Arc<Mutex<Option<(u32, Instant)>>>,
    /// The task that ends when the process has drained and left.
    drains: Option<AbortHandle>,
}

impl Process {
    pub(super) fn start(world: &Arc<World>, life: Life, setup: Setup) -> Self {
        let link = Arc::new(Link::new(world, life));
        let frozen = Arc::new(Frozen::default());
        let settings = MembershipConfig {
            group: GROUP.into(),
            topic: GROUP.into(),
            digest: "same".into(),
            session_timeout: setup.session,
            instance_id: setup.instance,
        };
        let partitions = world.lock().partitions;
        let mut spawned = None;
        let spawn = |stays| {
            let task = tokio::spawn(Freezable { frozen: Arc::clone(&frozen), inner: Box::pin(stays) }).abort_handle();
            spawned = Some(task.clone());
            task
        };
        let coordinator = Arc::new(Arc::clone(&link));
        let member = Arc::new(Membership::start_with(coordinator, settings, partitions, Clocks::of_timers, spawn));
        world.lock().oracle.born(life, &member);
        let mut process = Self {
            life,
            link,
            frozen,
            world: Arc::clone(world),
            member,
            tasks: spawned.into_iter().collect(),
            hangs: Arc::default(),
            drains: None,
        };
        let mut random = Random::new(setup.seed);
        let user = Dispatch {
            world: Arc::clone(world),
            life,
            member: Arc::clone(&process.member),
            link: Arc::clone(&process.link),
            frozen: Arc::clone(&process.frozen),
            hangs: Arc::clone(&process.hangs),
            release_max: setup.release_max,
            commit_interval: random.millis(100, 400),
            random,
        };
        process.runs(user.run());
        process
    }

    fn runs(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        let task = Freezable { frozen: Arc::clone(&self.frozen), inner: Box::pin(task) };
        self.tasks.push(tokio::spawn(task).abort_handle());
    }

    /// Kills the process, as SIGKILL does.
    pub(super) fn kill(self) {
        self.link.is_gone();
        self.tasks.iter().for_each(AbortHandle::abort);
        self.world.lock().oracle.gone(self.life);
    }

    /// Stops the process, as SIGTERM does: it finishes its work and leaves.
    pub(super) fn stop(&mut self, takes: Duration, tell: bool) {
        let (world, member, life) = (Arc::clone(&self.world), Arc::clone(&self.member), self.life);
        let others = self.tasks.clone();
        self.runs(async move {
            sleep(takes).await;
            others.iter().for_each(AbortHandle::abort);
            world.lock().oracle.gone(life);
            member.leave(tell).await;
            world.happened.notify_one();
        });
    }

    /// Stops the process with a drain, as SIGTERM does. Each partition is released when it has drained, and the process
    /// leaves after the last one. The release of the returned partition, if any, hangs for this long.
    pub(super) fn drain(&mut self, hang: Duration) -> Option<u32> {
        let (world, member, life) = (Arc::clone(&self.world), Arc::clone(&self.member), self.life);
        let hangs = world.lock().oracle.drains(life);
        *self.hangs.lock().unwrap() = hangs.map(|partition| (partition, Instant::now() + hang));
        member.drain();
        let others = self.tasks.clone();
        self.runs(async move {
            while world.lock().oracle.holds_any(life) {
                sleep(DRAIN_LOOK_INTERVAL).await;
            }
            others.iter().for_each(AbortHandle::abort);
            world.lock().oracle.gone(life);
            member.leave(true).await;
            world.happened.notify_one();
        });
        self.drains = self.tasks.last().cloned();
        hangs
    }

    /// Whether the process was told to drain and has drained.
    pub(super) fn has_drained(&self) -> bool {
        self.drains.as_ref().is_some_and(AbortHandle::is_finished)
    }
}

/// How often a draining process checks whether it has drained.
const DRAIN_LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A model of dispatch: accepts assigned partitions, releases revoked ones after a while, and commits what it may.
struct Dispatch {
    world: Arc<World>,
    life: Life,
    member: Arc<Membership>,
    link: Arc<Link>,
    frozen: Arc<Frozen>,
    hangs: Arc<Mutex<Option<(u32, Instant)>>>,
    release_max: Duration,
    commit_interval: Duration,
    random: Random,
}

impl Dispatch {
    async fn run(mut self) {
        let mut releases = JoinSet::new();
        let mut commit_at = Instant::now() + self.commit_interval;
        loop {
            let change = tokio::select! {
                biased;
                change = self.member.changed() => change,
                () = sleep_until(commit_at) => {
                    commit_at = Instant::now() + self.commit_interval;
                    self.commit();
                    continue;
                }
            };
            let life = self.life;
            match change {
                Ok(Change::Assigned(partition)) => self.world.lock().assigned(life, partition),
                Ok(Change::Revoked(partition)) => {
                    self.world.lock().revoked(life, partition);
                    let takes = self.random.millis(0, self.release_max.as_millis() as u64);
                    let hangs = self.hangs.lock().unwrap().filter(|(hanging, _)| *hanging == partition);
                    let takes = hangs.map_or(takes, |(_, until)| takes.max(until - Instant::now()));
                    let release = release(Arc::clone(&self.world), life, Arc::clone(&self.member), partition, takes);
                    releases.spawn(Freezable { frozen: Arc::clone(&self.frozen), inner: Box::pin(release) });
                }
                Ok(Change::Lost(partition)) => self.world.lock().lost(life, partition),
                Err(failure) => return self.world.lock().ended(life, failure.to_string()),
            }
        }
    }

    /// Checks every partition, and sends commits for some.
    fn commit(&mut self) {
        let partitions = self.world.lock().partitions;
        for partition in 0..partitions {
            let Some(identity) = self.member.commit_identity(partition) else { continue };
            self.world.lock().oracle.may_commit(self.life, partition);
            if self.random.chance(30) {
                self.link.commit(identity, partition);
            }
        }
    }
}

async fn release(world: Arc<World>, life: Life, member: Arc<Membership>, partition: u32, takes: Duration) {
    let assigned = world.lock().oracle.times_assigned(life, partition);
    sleep(takes).await;
    {
        let mut state = world.lock();
        // It may have been lost meanwhile, and even assigned again.
        if !state.oracle.holds(life, partition) || state.oracle.times_assigned(life, partition) != assigned {
            return;
        }
        state.released(life, partition);
    }
    member.released(partition);
}
