//! Starts, stops and crashes processes, and assigns partitions to them.

use super::{Driver, Running, STOP_GRACE, Step};
use crate::dispatch::memory_destination::MemoryDestination;
use crate::dispatch::memory_group::MemoryGroup;
use crate::dispatch::memory_log::{MemoryEngine, MemoryLog, TOPIC};
use crate::dispatch::world::Role;
use eventd::core::outcome::Ended;
use eventd::dispatch::{Parts, run};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

impl Driver<'_> {
    pub(super) fn start(&mut self, slot: usize) {
        if self.slots[slot].is_some() || self.closing {
            return;
        }
        let handle = self.world.begin_life(Role::Dispatch);
        let life = handle.life;
        self.world.lock().members.join(life, self.scenario.session);
        let parts = Parts {
            engine: Arc::new(MemoryEngine(handle.clone())),
            log: Arc::new(MemoryLog { handle: handle.clone(), topic: TOPIC.to_owned() }),
            group: Arc::new(MemoryGroup(handle.clone())),
            destination: Arc::new(MemoryDestination {
                handle: handle.clone(),
                limits: self.scenario.limits,
                whole_runs_max: self.scenario.whole_runs_max,
                attempt_timeout: self.scenario.config.attempt_timeout,
            }),
            wall_clock: handle.wall_clock(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (config, world) = (self.scenario.config.clone(), Arc::clone(&self.world));
        let task = tokio::spawn(async move {
            let shutdown = async move {
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let ended = run(parts, config, shutdown).await;
            world.happened.notify_one();
            ended
        });
        self.slots[slot] = Some(Running { life, task, stop: Some(stop), cut_off: false });
        self.assign();
    }

    /// Assigns each partition to the planned process, or to the other one if that one cannot own it.
    pub(super) fn assign(&mut self) {
        let able = |slot: usize| {
            let running = self.slots[slot].as_ref();
            running.filter(|running| running.stop.is_some() && !running.cut_off).map(|running| running.life)
        };
        let mut state = self.world.lock();
        for (slot, partition) in self.assigned.iter().zip(0u32..) {
            let wanted = able(*slot).or_else(|| (0..self.slots.len()).find_map(able));
            if wanted.is_some() {
                state.members.set_owner(partition, wanted);
            }
        }
        drop(state);
        self.outcome.moves += self.world.balance();
    }

    /// Handles the processes that crashed or ended.
    pub(super) async fn collect_ended(&mut self) {
        for slot in 0..self.slots.len() {
            let Some(running) = &self.slots[slot] else { continue };
            if self.world.is_dying(running.life) {
                self.crash(slot).await;
            } else if running.task.is_finished() {
                self.ended(slot).await;
            }
        }
        self.collect_ended_replays().await;
        self.assign();
    }

    pub(super) async fn crash(&mut self, slot: usize) {
        let Some(running) = self.slots[slot].take() else { return };
        let life = running.life;
        self.world.crash(life);
        running.task.abort();
        if let Err(error) = running.task.await
            && error.is_panic()
        {
            self.world.lock().oracle.fail(format!("life {life} panicked: {error}"));
        }
        // The runtime drops the process's tasks in its next turns.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.world.remove_life(life);
        let now = self.world.now();
        let mut state = self.world.lock();
        state.note(now, life, format_args!("is gone"));
        state.oracle.ended(life, false);
        drop(state);
        self.outcome.crashes += u64::from(!self.calm);
        let noticed = self.random.millis(0, 3_000);
        self.after(noticed, Step::Forget { life });
        let restarted = self.random.millis(0, 3_000);
        self.after(restarted, Step::Start { slot });
    }

    pub(super) async fn ended(&mut self, slot: usize) {
        let Some(running) = self.slots[slot].take() else { return };
        let (life, was_told_to_stop) = (running.life, running.stop.is_none());
        let result = running.task.await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.world.remove_life(life);
        let ended_by_group = self.world.membership_ended(life);
        let now = self.world.now();
        let mut state = self.world.lock();
        let shown = result.as_ref().map(|ended| ended.as_ref().map_err(|error| format!("{error:#}")));
        state.note(now, life, format_args!("ended: {shown:?}"));
        let drained = match result {
            Ok(Ok(ended)) if was_told_to_stop => ended == Ended::Drained,
            Ok(Ok(ended)) => {
                state.oracle.fail(format!("life {life} ended with {ended:?}, but was not told to stop"));
                false
            }
            Ok(Err(_)) if ended_by_group => false,
            // A partition was stopped when the process was told to end.
            Ok(Err(_)) if was_told_to_stop && state.topics.is_damaged() => false,
            Ok(Err(error)) => {
                state.oracle.fail(format!("life {life} failed: {error:#}"));
                false
            }
            Err(error) => {
                state.oracle.fail(format!("life {life} panicked: {error}"));
                false
            }
        };
        state.oracle.ended(life, drained);
        if self.calm && was_told_to_stop && !drained && !ended_by_group {
            state.oracle.fail(format!("life {life} left work, although nothing kept it from finishing"));
        }
        state.members.forget(life);
        drop(state);
        let restarted = self.random.millis(0, 2_000);
        self.after(restarted, Step::Start { slot });
    }

    pub(super) fn stop(&mut self, slot: usize) {
        let Some(running) = &mut self.slots[slot] else { return };
        let Some(stop) = running.stop.take() else { return };
        let life = running.life;
        let now = self.world.now();
        let mut state = self.world.lock();
        state.members.stopping(life);
        state.oracle.told_to_stop(life, now);
        state.note(now, life, format_args!("is told to stop"));
        drop(state);
        if stop.send(()).is_err() {
            // The process ended by itself at this moment, and `collect_ended` handles it.
            return;
        }
        self.outcome.stops += 1;
        self.after(self.scenario.config.drain + STOP_GRACE, Step::MustHaveEnded { life });
    }
}
