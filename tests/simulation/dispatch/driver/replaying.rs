//! Starts, stops and crashes the processes of replays. A replay that does not finish is started again: with `--resume`
//! if an audit record names it, otherwise as a new one.

use super::{Driver, Running, STOP_GRACE, Step};
use crate::dispatch::memory_destination::MemoryDestination;
use crate::dispatch::memory_group::NAME;
use crate::dispatch::memory_groups::MemoryGroups;
use crate::dispatch::memory_log::{MemoryEngine, MemoryLog, TOPIC};
use crate::dispatch::oracle::Life;
use crate::dispatch::replays::RequestedReplay;
use crate::dispatch::world::{Call, Handle, Role};
use eventd::BoxFuture;
use eventd::core::outcome::Ended;
use eventd::destination::spec::Spec;
use eventd::destination::{BatchLimits, Destination};
use eventd::group::JoinError;
use eventd::replay::ids::IdSource;
use eventd::replay::signing::Signature;
use eventd::replay::{
    Config, DestinationOpener, RepeatedFlags, ReplayContext, ReplayRefused, ReplayRequest, Streams, run,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often one request may fail after the faults have ended.
const TRIES_IN_CALM_MAX: u32 = 20;

/// The real time at which simulated time begins, in milliseconds since the Unix epoch: the start of 2026.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// How far an operator's machine may be ahead of the others.
const CLOCK_AHEAD_MS_MAX: u64 = 2_000;

/// One request and the processes that work on it.
#[derive(Default)]
pub(super) struct Replaying {
    /// There are two if an operator repeats the command too early.
    running: Vec<Running>,
    asked_for: bool,
    is_done: bool,
    tries_in_calm: u32,
}

/// Opens the world's destination.
#[derive(Debug)]
struct MemoryOpener {
    handle: Handle,
    limits: BatchLimits,
    whole_runs_max: Option<usize>,
    attempt_timeout: Duration,
}

impl DestinationOpener for MemoryOpener {
    fn open<'a>(&'a self, _spec: &'a Spec) -> BoxFuture<'a, anyhow::Result<Arc<dyn Destination>>> {
        Box::pin(async move {
            anyhow::ensure!(self.handle.is_answered(Call::OpenDestination).await, "the destination cannot be opened");
            Ok(Arc::new(MemoryDestination {
                handle: self.handle.clone(),
                limits: self.limits,
                whole_runs_max: self.whole_runs_max,
                attempt_timeout: self.attempt_timeout,
            }) as Arc<dyn Destination>)
        })
    }
}

/// Discards the output of a replay.
#[derive(Debug)]
struct Unread;

impl Streams for Unread {
    fn out(&self, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn err(&self, _text: &str) -> io::Result<()> {
        Ok(())
    }

    fn has_terminal(&self) -> bool {
        false
    }
}

/// Makes ids of simulated time, so that a seed repeats them. Two commands at the same time may compare either way, because
/// their machines' clocks differ.
#[derive(Debug)]
struct MemoryIds {
    handle: Handle,
    clock_ahead: Duration,
}

impl IdSource for MemoryIds {
    fn now_ms(&self) -> i64 {
        EPOCH_MS + (self.handle.world.now() + self.clock_ahead).as_millis() as i64
    }

    fn random(&self) -> u64 {
        self.handle.world.lock().random.next()
    }
}

impl Driver<'_> {
    /// An operator runs the command, or repeats it while it still runs.
    pub(super) fn replay(&mut self, number: usize) {
        let replaying = &mut self.replaying[number];
        let is_again = std::mem::replace(&mut replaying.asked_for, true);
        if replaying.is_done || replaying.running.len() > usize::from(is_again) {
            return;
        }
        self.begin_replay(number);
    }

    fn begin_replay(&mut self, number: usize) {
        if self.closing {
            return;
        }
        let handle = self.world.begin_life(Role::Replay);
        let life = handle.life;
        let request = &self.scenario.replays[number];
        let rest = {
            let mut state = self.world.lock();
            let written = state.replays.written(number).map(|(id, _)| id.to_owned());
            state.replays.begins(life, number, written.clone());
            let now = self.world.now();
            state.note(now, life, format_args!("runs replay {number}, resumed: {}", written.is_some()));
            written
        };
        self.outcome.resumes += u64::from(rest.is_some());
        let what = match (rest, &request.request) {
            (Some(id), _) => ReplayRequest::Resume { id },
            (None, RequestedReplay::Deliver { range, selection, limit }) => ReplayRequest::New {
                range: range.clone(),
                selection: selection.clone(),
                limit: *limit,
                users_must_exist: true,
            },
            (None, RequestedReplay::OffsetReset(way)) => ReplayRequest::Reposition(way.clone()),
        };
        let config = Config {
            request: what,
            execute: true,
            json: false,
            rate: request.rate,
            repeated: RepeatedFlags::default(),
            ignored_policy: None,
            stop_after_failures: if self.calm { 0 } else { request.stop_after_failures },
            signature: Signature::Present,
        };
        let dispatch = self.scenario.config.clone();
        let opener = MemoryOpener {
            handle: handle.clone(),
            limits: self.scenario.limits,
            whole_runs_max: self.scenario.whole_runs_max,
            attempt_timeout: dispatch.attempt_timeout,
        };
        let around = ReplayContext {
            engine: Arc::new(MemoryEngine(handle.clone())),
            log: Arc::new(MemoryLog { handle: handle.clone(), topic: TOPIC.to_owned() }),
            wall_clock: handle.wall_clock(),
            groups: Arc::new(MemoryGroups { handle: handle.clone(), rules: self.scenario.rules() }),
            spec: Spec::parse(NAME).expect("a name that dispatch has"),
            opener: Arc::new(opener),
            dispatch,
            streams: Arc::new(Unread),
            ids: Arc::new(MemoryIds { handle, clock_ahead: self.random.millis(0, CLOCK_AHEAD_MS_MAX) }),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let world = Arc::clone(&self.world);
        let task = tokio::spawn(async move {
            let stop = async move {
                if stopped.await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let ended = run(around, config, stop).await;
            world.happened.notify_one();
            ended
        });
        self.replaying[number].running.push(Running { life, task, stop: Some(stop), cut_off: false });
    }

    pub(super) fn crash_replay_within(&mut self, number: usize, steps: u64) {
        for running in &self.replaying[number].running {
            self.world.crash_within(running.life, steps);
        }
    }

    pub(super) fn stop_replay(&mut self, number: usize) {
        let mut stopped = Vec::new();
        for running in &mut self.replaying[number].running {
            if let Some(stop) = running.stop.take()
                && stop.send(()).is_ok()
            {
                stopped.push(running.life);
            }
        }
        for life in stopped {
            let now = self.world.now();
            let mut state = self.world.lock();
            state.note(now, life, format_args!("is told to stop"));
            if let Some(oracle) = state.oracle_of(life) {
                oracle.told_to_stop(life, now);
            }
            drop(state);
            self.after(self.scenario.config.drain + STOP_GRACE, Step::MustHaveEnded { life });
        }
    }

    /// Whether a process still works on this replay.
    pub(super) fn is_replaying(&self, life: Life) -> bool {
        self.replaying.iter().flat_map(|replaying| &replaying.running).any(|running| running.life == life)
    }

    /// Whether all requests are done.
    pub(super) fn is_replayed(&self) -> bool {
        let is_over = |replaying: &Replaying| !replaying.asked_for || replaying.is_done && replaying.running.is_empty();
        self.replaying.iter().all(is_over)
    }

    /// Handles the replays that crashed or ended.
    pub(super) async fn collect_ended_replays(&mut self) {
        for number in 0..self.replaying.len() {
            let world = Arc::clone(&self.world);
            let is_over = |running: &Running| world.is_dying(running.life) || running.task.is_finished();
            while let Some(place) = self.replaying[number].running.iter().position(&is_over) {
                let running = self.replaying[number].running.remove(place);
                self.replay_ended(number, running).await;
            }
        }
    }

    /// Aborts all replays.
    pub(super) async fn abort_replays(&mut self) {
        for number in 0..self.replaying.len() {
            while let Some(running) = self.replaying[number].running.pop() {
                self.world.crash(running.life);
                self.replay_ended(number, running).await;
            }
        }
    }

    async fn replay_ended(&mut self, number: usize, running: Running) {
        let life = running.life;
        let has_crashed = self.world.is_dying(life);
        if has_crashed {
            running.task.abort();
        }
        let result = running.task.await;
        // The runtime drops the process's tasks in its next turns.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.world.remove_life(life);
        let now = self.world.now();
        let mut guard = self.world.lock();
        let state = &mut *guard;
        let is_drained = matches!(result, Ok(Ok(Ended::Drained)));
        let shown = result.as_ref().map(|ended| ended.as_ref().map_err(|_| "an error")).map_err(|_| "a crash");
        state.note(now, life, format_args!("replay ended: {shown:?}"));
        if let Some(oracle) = state.oracle_of(life) {
            oracle.ended(life, is_drained);
        }
        state.groups.forget(life);
        let is_written = state.replays.written(number).is_some();
        let is_finished = state.replays.written(number).is_some_and(|(_, is_finished)| is_finished);
        let moves = matches!(self.scenario.replays[number].request, RequestedReplay::OffsetReset(_));
        let mut is_done = is_finished;
        match result {
            Err(error) if error.is_panic() => state.oracle.fail(format!("life {life} panicked: {error}")),
            // Its reset request may or may not be stored, so the operator repeats the command.
            Err(_) => self.outcome.crashes += u64::from(!self.calm),
            Ok(Ok(Ended::Drained)) if moves => is_done = true,
            // Two processes that plan at the same time may both start a new replay.
            Ok(Ok(Ended::Drained)) if !state.replays.has_begun(life) => {
                is_done = !is_written;
                let left = state.expected(life);
                if left.iter().any(|expected| !expected.is_empty()) {
                    state.oracle.fail(format!("life {life} finds nothing to replay, although {left:?} is left"));
                }
            }
            Ok(Ok(Ended::Drained)) if !is_finished => {
                state.oracle.fail(format!("life {life} reports that all is done, but no audit record says so"));
            }
            Ok(Ok(Ended::Drained | Ended::WorkLeft)) => {}
            Ok(Err(error)) if error.is::<ReplayRefused>() => {
                is_done |= !is_written;
                self.outcome.refused += 1;
                if !state.may_be_refused(life) {
                    state.oracle.fail(format!("life {life} is refused, although there is work: {error:#}"));
                }
            }
            Ok(Err(error)) => {
                // Another replay of the same dead letters may run for any time.
                let is_held = matches!(error.downcast_ref(), Some(JoinError::Held { .. }));
                self.replaying[number].tries_in_calm += u32::from(self.calm && !is_held);
                if self.replaying[number].tries_in_calm > TRIES_IN_CALM_MAX {
                    state.oracle.fail(format!("life {life} fails again and again: {error:#}"));
                }
            }
        }
        self.outcome.replayed += u64::from(is_done && !self.replaying[number].is_done && is_finished);
        drop(guard);
        self.replaying[number].is_done |= is_done;
        if !self.replaying[number].is_done && self.replaying[number].running.is_empty() {
            let again = self.random.millis(0, 3_000);
            self.after(again, Step::Replay { number });
        }
    }
}
