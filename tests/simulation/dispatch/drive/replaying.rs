//! Starts, stops, crashes and buries the processes of replays. One that does not come to its end is started again: with
//! `--resume` where an audit record tells of it, else as if for the first time.

use super::{Driver, Running, STOP_GRACE, Step};
use crate::dispatch::memory_destination::MemoryDestination;
use crate::dispatch::memory_group::NAME;
use crate::dispatch::memory_groups::MemoryGroups;
use crate::dispatch::memory_log::{MemoryEngine, MemoryLog, TOPIC};
use crate::dispatch::oracle::Life;
use crate::dispatch::replays::Asked;
use crate::dispatch::world::{Call, Handle, Role};
use eventd::BoxFuture;
use eventd::core::outcome::Ended;
use eventd::destination::spec::Spec;
use eventd::destination::{BatchLimits, Destination};
use eventd::group::JoinError;
use eventd::replay::signing::Signature;
use eventd::replay::{Config, DestinationOpener, ReplayContext, ReplayRefused, ReplayRequest, Streams, run};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// So often one request may fail after the trouble.
const TRIES_IN_CALM_MAX: u32 = 20;

/// One request, and who is at work on it.
#[derive(Default)]
pub(super) struct Replaying {
    /// Two at once, where an operator is impatient.
    running: Vec<Running>,
    asked_for: bool,
    is_done: bool,
    tries_in_calm: u32,
}

/// Opens the destination of the world.
#[derive(Debug)]
struct MemoryOpener {
    handle: Handle,
    limits: BatchLimits,
    attempt_timeout: Duration,
}

impl DestinationOpener for MemoryOpener {
    fn open<'a>(&'a self, _spec: &'a Spec) -> BoxFuture<'a, anyhow::Result<Arc<dyn Destination>>> {
        Box::pin(async move {
            anyhow::ensure!(self.handle.is_answered(Call::OpenDestination).await, "the destination cannot be opened");
            let (handle, limits, attempt_timeout) = (self.handle.clone(), self.limits, self.attempt_timeout);
            Ok(Arc::new(MemoryDestination { handle, limits, attempt_timeout }) as Arc<dyn Destination>)
        })
    }
}

/// Nobody reads what a replay says here.
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

impl Driver<'_> {
    /// An operator asks for it, or asks once more while it is at work.
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
            state.note(now, life, format_args!("replays request {number}, resumed: {}", written.is_some()));
            written
        };
        self.outcome.resumes += u64::from(rest.is_some());
        let what = match (rest, &request.asked) {
            (Some(id), _) => ReplayRequest::Resume { id },
            (None, Asked::Deliver { range, selection, limit }) => ReplayRequest::New {
                range: range.clone(),
                selection: selection.clone(),
                limit: *limit,
                every_user: true,
            },
            (None, Asked::OffsetReset(way)) => ReplayRequest::Reposition(way.clone()),
        };
        let config = Config {
            what,
            execute: true,
            json: false,
            rate: request.rate,
            stop_after_failures: if self.calm { 0 } else { request.stop_after_failures },
            signature: Signature::Present,
        };
        let dispatch = self.scenario.config.clone();
        let opener = MemoryOpener {
            handle: handle.clone(),
            limits: self.scenario.limits,
            attempt_timeout: dispatch.attempt_timeout,
        };
        let around = ReplayContext {
            engine: Arc::new(MemoryEngine(handle.clone())),
            log: Arc::new(MemoryLog { handle: handle.clone(), topic: TOPIC.to_owned() }),
            groups: Arc::new(MemoryGroups { handle, rules: self.scenario.rules() }),
            spec: Spec::parse(NAME).expect("a name that dispatch has"),
            opener: Arc::new(opener),
            dispatch,
            streams: Arc::new(Unread),
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
        let mut told = Vec::new();
        for running in &mut self.replaying[number].running {
            if let Some(stop) = running.stop.take()
                && stop.send(()).is_ok()
            {
                told.push(running.life);
            }
        }
        for life in told {
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

    /// Whether this replay is at work still.
    pub(super) fn is_replaying(&self, life: Life) -> bool {
        self.replaying.iter().flat_map(|replaying| &replaying.running).any(|running| running.life == life)
    }

    /// Everything that was asked for is done.
    pub(super) fn is_replayed(&self) -> bool {
        let is_over = |replaying: &Replaying| !replaying.asked_for || replaying.is_done && replaying.running.is_empty();
        self.replaying.iter().all(is_over)
    }

    /// Buries those that crashed or ended.
    pub(super) async fn look_after_replays(&mut self) {
        for number in 0..self.replaying.len() {
            let world = Arc::clone(&self.world);
            let is_over = |running: &Running| world.is_dying(running.life) || running.task.is_finished();
            while let Some(place) = self.replaying[number].running.iter().position(&is_over) {
                let running = self.replaying[number].running.remove(place);
                self.replay_ended(number, running).await;
            }
        }
    }

    /// Ends them all, whatever they do.
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
        // What the process had spawned is dropped in the turns of the runtime that follow.
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.world.bury(life);
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
        let moves = matches!(self.scenario.replays[number].asked, Asked::OffsetReset(_));
        let mut is_done = is_finished;
        match result {
            Err(error) if error.is_panic() => state.oracle.fail(format!("life {life} panicked: {error}")),
            // What it had asked for stands or not: an operator gives the command again.
            Err(_) => self.outcome.crashes += u64::from(!self.calm),
            Ok(Ok(Ended::Drained)) if moves => is_done = true,
            // Two who ask at once may both ask for a new one.
            Ok(Ok(Ended::Drained)) if !state.replays.has_begun(life) => {
                is_done = !is_written;
                let left = state.expected(life);
                if left.iter().any(|taken| !taken.is_empty()) {
                    state.oracle.fail(format!("life {life} finds nothing to replay, and there is {left:?}"));
                }
            }
            Ok(Ok(Ended::Drained)) if !is_finished => {
                state.oracle.fail(format!("life {life} says that all is done, and no audit record does"));
            }
            Ok(Ok(Ended::Drained | Ended::WorkLeft)) => {}
            Ok(Err(error)) if error.is::<ReplayRefused>() => {
                is_done |= !is_written;
                self.outcome.refused += 1;
                if !state.may_be_refused(life) {
                    state.oracle.fail(format!("life {life} is refused, and there is work: {error:#}"));
                }
            }
            Ok(Err(error)) => {
                // Another one of the same letters is at work as long as it takes.
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
