//! The owner of one partition. Its loop handles one completion at a time, so no state of the partition needs a lock:
//! fetches, attempts, commits and dead letters run as tasks outside and report back as a [`Completion`].
//!
//! ```text
//!            ┌─────────────────────────────── loop ──────────────────────────────────┐
//!  stop ────▶│ wake lanes ▶ tick ▶ look for a reset ▶ read ▶ start batches ▶ make room│──▶ tasks: fetch, deliver, …
//!            │        ▲                                                               │        │
//!            │        └───────────────────────── handle ◀─────────────────────────────│◀── completions
//!            └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The state is in the parts ([`PartitionReader`], [`Deliverer`], [`DeadLetterWriter`], [`Committer`], [`Repositioner`]). This
//! file only joins them. No part holds another one: a method that needs one gets it as an argument.
//!
//! Nothing is attempted before the first commit is stored. A commit stores what this worker knows to be settled at that
//! moment. If a task or the lanes panic, the partition stops with the message of the panic.

use super::commands::FoundCommands;
use super::committer::{Committer, initial_state};
use super::context::DispatchContext;
use super::control::{self, CONTROL_LOOK_MAX, ChangeCauses, ControlReader, ControlledPartition, START_LOOK_MAX};
use super::cursor::{CursorKind, FetchRequest};
use super::dead_letters::DeadLetterWriter;
use super::deliverer::{BatchEnd, Deliverer, FailedBatch, Judge, NextBatch, RunInFlight, TriesEnded, is_lane_slow};
use super::notices::{Backlog, GivenUpEvent, StuckUser};
use super::partition_log::PartitionLog;
use super::reader::PartitionReader;
use super::repositioner::{RESET_LOOK_MAX, Repositioner, requested};
use crate::core::Moment;
use crate::core::breaker::Gate;
use crate::core::lanes::{LaneView, Lanes, Token};
use crate::core::outcome::{Ended, Failure};
use crate::core::parking::{ParkedUsers, ParkingLimits, SlowLookAhead};
use crate::core::progress::{ListedUsers, OffsetReset, PartitionState, ResetTarget};
use crate::core::slots::Standing;
use crate::core::tries::{Decision, FailureHistory, GiveUpReason};
use crate::core::verdict::Report;
use crate::group::is_final;
use crate::limits::{
    DEAD_LETTER_WRITES_BYTES_MAX, LOG_REMINDER_INTERVAL, LOOK_AHEAD_USERS_MAX, RESET_LOOK_INTERVAL,
    WAITING_ANSWERS_BYTES_MAX,
};
use crate::log::{FetchError, Fetched};
use anyhow::{Context as _, anyhow};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// Completions that are handled in a row before anything is started again.
const COMPLETIONS_IN_A_ROW_MAX: usize = 256;

/// How long the last commit of a stop may take, even if `--drain` is over.
const LAST_COMMIT_WAIT: Duration = Duration::from_secs(2);

/// How often the last commit of a stop is tried at most.
const LAST_COMMIT_TRIES_MAX: u32 = 11;

/// Stuck users that are looked at in one tick.
const STUCK_USERS_LOOK_MAX: usize = 1_000;

/// A task that ended, with its result.
enum Completion {
    BatchEnded {
        runs: Vec<RunInFlight>,
        reports: Vec<Report>,
    },
    Fetched {
        cursor: CursorKind,
        result: Result<Fetched, FetchError>,
    },
    /// The end of the log was looked at.
    LogEndSeen(Result<i64, Failure>),
    Committed {
        state: PartitionState,
        result: Result<(), Failure>,
    },
    DeadLetterWritten {
        token: Token,
        result: Result<(), String>,
    },
    /// The group was asked for an offset reset.
    ResetLooked(Result<Option<OffsetReset>, Failure>),
    /// The control topic was read.
    ControlLooked(Result<FoundCommands, String>),
}

/// Why a worker's loop ended.
enum LoopEnd {
    /// It was told to stop, or has nothing more to do.
    Stopped(Ended),
    /// An offset reset was applied. The worker begins again from this state.
    Reset(PartitionState),
}

/// One partition, with everything that happens in it.
pub(super) struct Worker {
    context: Arc<DispatchContext>,
    partition: u32,
    reader: PartitionReader,
    deliverer: Deliverer,
    dead_letters: DeadLetterWriter,
    committer: Committer,
    repositioner: Repositioner,
    control: ControlReader,
    tasks: JoinSet<Completion>,
    log: PartitionLog,
    /// What the counters show of this partition.
    counted: CountedParking,
}

/// How far the counters of parking are up to date.
#[derive(Default)]
struct CountedParking {
    users: u64,
    read_again: u64,
}

impl Worker {
    /// Begins at the committed state, or where `--start` says. Waits as long as the group or the log does not answer.
    pub(super) async fn begin(context: Arc<DispatchContext>, partition: u32) -> anyhow::Result<Self> {
        let log = PartitionLog::new(context.destination(), Arc::clone(&context.topic), partition);
        let mut failures = 0;
        let state = loop {
            match initial_state(&context, partition).await {
                Ok(state) => break state,
                Err(failure) if is_final(&failure) => return Err(failure.into()),
                Err(failure) => {
                    failures += 1;
                    if let Some(suppressed) = log.allows("begin") {
                        let destination = context.destination();
                        tracing::warn!(
                            destination,
                            partition,
                            suppressed,
                            "cannot begin the partition, trying again: {failure}"
                        );
                    }
                    sleep(context.log_retry_delay(failures)).await;
                }
            }
        };
        // A reset that was asked for while no process owned the partition is applied before anything is attempted. If the
        // group does not answer soon, delivery begins without it: the next look finds it.
        let looking = requested(&*context.parts.group, partition, RESET_LOOK_INTERVAL);
        let (found, commands) = match context.is_controlled {
            // Commands that were given meanwhile are applied before anything is attempted, too.
            true => {
                let commands = control::look(Arc::clone(&context), partition, state.control.next, START_LOOK_MAX);
                let (found, commands) = tokio::join!(looking, commands);
                (found, Some(commands))
            }
            false => (looking.await, None),
        };
        let mut worker = Self::from_state(context, partition, state, Arc::default());
        worker.reset_looked(found);
        if let Some(commands) = commands {
            worker.control_looked(commands);
            worker.control.start_look_ended(worker.context.now());
        }
        Ok(worker)
    }

    /// Begins from a state that is stored.
    fn from_state(context: Arc<DispatchContext>, partition: u32, state: PartitionState, has_read: Arc<Notify>) -> Self {
        let now = context.now();
        let log = PartitionLog::new(context.destination(), Arc::clone(&context.topic), partition);
        let deliverer = Deliverer::new(&context, partition);
        let parked = parked_users(&context, &deliverer.lanes, &state);
        Self {
            reader: PartitionReader::new(state.watermark, parked, has_read, now),
            deliverer,
            dead_letters: DeadLetterWriter::default(),
            committer: Committer::new(state, context.config.commit_interval, now),
            repositioner: Repositioner::new(now),
            control: ControlReader::new(context.is_controlled, now),
            tasks: JoinSet::new(),
            log,
            counted: CountedParking::default(),
            partition,
            context,
        }
    }

    /// Notified when the log could be read.
    pub(super) fn has_read(&self) -> Arc<Notify> {
        self.reader.has_read()
    }

    /// Delivers until `stop` is true. Then waits up to `--drain` for attempts in flight, and commits.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<Ended> {
        loop {
            self.share_control();
            let end = self.run_loop(&mut stop).await;
            // Tasks that were cut off must really be gone before the partition is released: its next owner starts at once.
            self.tasks.shutdown().await;
            match end? {
                LoopEnd::Stopped(ended) => return Ok(ended),
                LoopEnd::Reset(state) => {
                    self = Self::from_state(Arc::clone(&self.context), self.partition, state, self.has_read());
                }
            }
        }
    }

    async fn run_loop(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<LoopEnd> {
        let context = Arc::clone(&self.context);
        self.look_at_log_end(false, context.now());
        // Each is registered once, and made anew as soon as it was ready: before the loop looks at what it tells about. So
        // no change is missed.
        let mut breaker_changed = pin!(context.breaker.changed());
        let mut rate_raised = pin!(context.throttle.rate.raised());
        let mut share_grew = pin!(context.throttle.share_grew());
        let slot = self.deliverer.slots.granted();
        let mut slot_granted = pin!(slot.notified());
        while !*stop.borrow_and_update() {
            if let Some(reset) = self.repositioner.take_wanted() {
                return self.apply_reset(&reset, stop).await;
            }
            let now = context.now();
            self.wake(now);
            self.deliverer.look_at_breaker(&context.breaker);
            self.tick(now);
            self.look_for_reset(now);
            self.look_for_commands(now);
            self.take_shares();
            self.read(now)?;
            // After reading: what was given up is not attempted, although it was admitted just now.
            self.give_up_commanded();
            self.dead_letters.retry_due(now);
            self.write_dead_letters()?;
            let start_at = self.start_batches(now);
            if self.make_room(now) {
                // What waits for room is admitted now, and the next fetch begins.
                continue;
            }
            if self.reader.has_ended() && !self.has_something_to_do() {
                break;
            }
            let wake_at = self.next_wake_at(start_at, now);
            tokio::select! {
                biased;
                changed = stop.changed() => if changed.is_err() { break },
                Some(completion) = self.tasks.join_next() => {
                    self.handle(completion)?;
                    // Other completions that are ready too, in their order, before anything is started again.
                    for _ in 1..COMPLETIONS_IN_A_ROW_MAX {
                        let Some(completion) = self.tasks.try_join_next() else { break };
                        self.handle(completion)?;
                    }
                }
                () = &mut slot_granted => slot_granted.set(slot.notified()),
                () = &mut rate_raised => rate_raised.set(context.throttle.rate.raised()),
                () = &mut share_grew => share_grew.set(context.throttle.share_grew()),
                () = &mut breaker_changed => breaker_changed.set(context.breaker.changed()),
                () = sleep_until(context.instant(wake_at)) => {}
            }
        }
        let ended = self.drain_and_commit().await?;
        self.reader.take_error().map_or(Ok(LoopEnd::Stopped(ended)), |error| Err(error.into()))
    }

    /// When something is due although no task ends before.
    fn next_wake_at(&self, start_at: Option<Moment>, now: Moment) -> Moment {
        [
            start_at,
            self.deliverer.lanes.next_wakeup(),
            self.reader.next_wakeup(now),
            self.dead_letters.next_retry_at(),
            self.repositioner.next_look_at(),
            self.control.next_look_at(),
        ]
        .into_iter()
        .flatten()
        .fold(self.committer.next_tick_at(), Moment::min)
    }

    fn handle(&mut self, completion: Result<Completion, JoinError>) -> anyhow::Result<()> {
        let now = self.context.now();
        match completion.context("a task of this partition panicked")? {
            Completion::BatchEnded { runs, reports } => self.batch_ended(runs, reports)?,
            Completion::Fetched { cursor, result } => self.fetched(cursor, result)?,
            Completion::LogEndSeen(result) => self.reader.log_end_seen(result.ok(), now),
            Completion::Committed { state, result } => self.committer.commit_ended(state, result, &self.log, now)?,
            Completion::DeadLetterWritten { token, result } => self.dead_letter_written(token, result)?,
            Completion::ResetLooked(found) => self.reset_looked(found),
            Completion::ControlLooked(found) => self.control_looked(found),
        }
        Ok(())
    }

    /// Makes lanes ready whose backoff has ended, and looks at users whose events are not in memory and due.
    fn wake(&mut self, now: Moment) {
        self.deliverer.lanes.wake(now);
        let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, &mut self.committer);
        parked.wake(&mut memory, now);
    }

    /// Takes the shares of this partition, which change with the number of partitions that this process owns.
    fn take_shares(&mut self) {
        let (config, throttle) = (&self.context.config, &self.context.throttle);
        let (events_max, bytes_max) = (throttle.share(config.window_events), throttle.share(config.window_bytes));
        self.reader.resize_window(events_max, bytes_max, &self.deliverer.lanes);
        self.reader.parked.set_users_max(throttle.share(config.parking.users_max));
        self.deliverer.take_shares(throttle);
    }

    /// Fills the lanes, and fetches more if the window has room.
    fn read(&mut self, now: Moment) -> anyhow::Result<()> {
        let admitted = self.reader.admit(&mut self.deliverer.lanes, &mut self.committer, now);
        admitted.map_err(|error| anyhow!("the stored state of partition {} is damaged: {error}", self.partition))?;
        if let Some(fetch) = self.reader.start_fetch(now) {
            self.fetch(fetch);
        }
        if let Some(fetch) = self.reader.start_sweep(&mut self.deliverer.lanes, &mut self.committer, now) {
            self.fetch(fetch);
        }
        Ok(())
    }

    fn fetch(&mut self, fetch: FetchRequest) {
        let (log, partition) = (Arc::clone(&self.context.parts.log), self.partition);
        let FetchRequest { cursor, from, max_bytes, wait } = fetch;
        self.tasks.spawn(async move {
            Completion::Fetched { cursor, result: log.fetch(partition, from, max_bytes, wait).await }
        });
    }

    fn fetched(&mut self, cursor: CursorKind, result: Result<Fetched, FetchError>) -> anyhow::Result<()> {
        let (context, log, now) = (&self.context, &self.log, self.context.now());
        match result {
            Ok(fetched) => return self.reader.fetched(cursor, fetched, &mut self.committer, now),
            Err(FetchError::Unavailable(detail)) => {
                let backoff = |failures| context.log_retry_delay(failures);
                self.reader.fetch_unavailable(cursor, &detail, backoff, log, now);
            }
            Err(error) => {
                let memory = (&mut self.deliverer.lanes, &mut self.committer);
                self.reader.fetch_failed(cursor, &error, context.config.on_gap, memory, log, now);
            }
        }
        Ok(())
    }

    /// Parks users if the window needs room. Returns whether there may be more room: events left memory, or are those of
    /// parked users now.
    fn make_room(&mut self, now: Moment) -> bool {
        let (events_before, users_before) = (self.reader.window.events(), self.reader.parked.users());
        self.park_under_pressure(now);
        self.reader.window.events() < events_before || self.reader.parked.users() > users_before
    }

    /// Parks users if the window needs room, and the users in it are the cause. Lanes that are ready and wait for a slot
    /// show that they are not: then the destination is slow, or the rate is low. Lanes of slow and failing users show
    /// nothing, unless the destination is slow for every user or its health is bad.
    ///
    /// In three cases a bounded number of users makes room although the destination may be the cause:
    ///
    /// * In an outage by answers: users that have failed.
    /// * If the destination stays slow for every user: slow users.
    /// * If slow attempts keep newcomers from a slot: slow users and newcomers.
    fn park_under_pressure(&mut self, now: Moment) {
        if self.committer.control().paused.is_some() {
            return;
        }
        let blocked = self.reader.blocked();
        if !self.reader.parked.needs_room(blocked, &self.reader.window) {
            return;
        }
        let (gate, no_user_delivered_since, is_health_bad) = {
            let breaker = self.context.breaker.lock();
            (breaker.gate(now), breaker.no_user_delivered_since(), breaker.is_health_bad())
        };
        if let Some(since) = no_user_delivered_since {
            let users_max = self.context.throttle.share(LOOK_AHEAD_USERS_MAX);
            let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, &mut self.committer);
            let newly_parked = parked.look_ahead((since, users_max), blocked, &mut memory, now);
            return self.report_parked(newly_parked);
        }
        let lanes = &self.deliverer.lanes;
        if !matches!(gate, Gate::Closed)
            || lanes.has_ready_of(Standing::Served)
            || lanes.has_ready_without_standing()
            || (is_health_bad && lanes.has_ready())
            || !self.reader.parked.may_relieve(blocked, &self.reader.window, now)
        {
            return;
        }
        let newcomers_wait = lanes.has_ready_of(Standing::Newcomer);
        let possible = if newcomers_wait { self.look_ahead_of_newcomers(now) } else { self.look_ahead_of_slow(now) };
        if newcomers_wait && possible.is_none() {
            return;
        }
        let may_look_ahead = |slow: &SlowLookAhead| {
            // A slow batch of many users says nothing about one of them.
            !self.deliverer.takes_many_lanes()
                && self.reader.parked.may_look_ahead_of_slow(*slow, blocked, &self.reader.window, now)
        };
        let look_ahead = possible.filter(may_look_ahead);
        let is_slow_for_all = possible.is_some() && look_ahead.is_none();
        let Deliverer { lanes, paces, .. } = &self.deliverer;
        let is_slow =
            |lane: &LaneView<'_>| is_lane_slow(paces, &self.context.breaker.lock(), lane, is_slow_for_all, now);
        let is_any_unclear = || lanes.each_ready_of(Standing::Doubtful).any(|id| !is_slow(&lanes.view(id)));
        if (newcomers_wait && look_ahead.is_none()) || (is_slow_for_all && is_any_unclear()) {
            return self.reader.parked.does_not_relieve(now);
        }
        // Lanes that leave memory are not looked at later.
        if self.deliverer.lanes.next_stuck_at().is_some_and(|at| at <= now) {
            self.report_health(now);
        }
        let Deliverer { lanes, paces, .. } = &mut self.deliverer;
        let is_slow =
            |lane: &LaneView<'_>| is_lane_slow(paces, &self.context.breaker.lock(), lane, is_slow_for_all, now);
        let (parked, mut memory) = self.reader.parking(lanes, &mut self.committer);
        let newly_parked = match look_ahead {
            Some(slow) => parked.look_ahead_of_slow(slow, blocked, is_slow, &mut memory, now),
            None => parked.relieve(blocked, is_slow, &mut memory, now),
        };
        self.report_parked(newly_parked);
    }

    /// How slow users may make room, if the destination is slow for every user now.
    fn look_ahead_of_slow(&mut self, now: Moment) -> Option<SlowLookAhead> {
        self.deliverer.look_at_old_attempts(&self.context.breaker, now);
        let since = self.context.breaker.lock().slow_for_all_since(now)?;
        Some(self.slow_look_ahead(since, false))
    }

    /// How slow users and newcomers may make room, if slow attempts keep newcomers from a slot, and reading waits.
    fn look_ahead_of_newcomers(&mut self, now: Moment) -> Option<SlowLookAhead> {
        if !self.deliverer.slots.slow_attempts_stop_newcomers() {
            return None;
        }
        let (blocked, window) = (self.reader.blocked(), &self.reader.window);
        let since = self.reader.parked.newcomers_wait_since(blocked, window, now)?;
        Some(self.slow_look_ahead(since, true))
    }

    fn slow_look_ahead(&self, since: Moment, newcomers: bool) -> SlowLookAhead {
        let counted_since = self.context.breaker.lock().last_quick_at().unwrap_or_default();
        SlowLookAhead { since, counted_since, users_max: self.context.throttle.share(LOOK_AHEAD_USERS_MAX), newcomers }
    }

    /// Parks users that hold the watermark, takes others off the list, and counts.
    fn tick_parking(&mut self, now: Moment) {
        let is_closed = matches!(self.context.breaker.lock().gate(now), Gate::Closed);
        let is_paused = self.committer.control().paused.is_some();
        let offsets_max = i64::try_from(self.context.config.window_events).unwrap_or(i64::MAX);
        let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, &mut self.committer);
        let newly_parked = parked.tick(offsets_max, is_closed && !is_paused, &mut memory, now);
        let is_full = parked.take_list_is_full();
        self.report_parked(newly_parked);
        if is_full && let Some(suppressed) = self.log.allows("list of parked users") {
            tracing::warn!(
                destination = self.log.destination,
                partition = self.partition,
                parked = self.reader.parked.users(),
                suppressed,
                "no more users can be parked (--parked-users), so reading waits for users that fail or are slow"
            );
        }
        self.count_parking(self.reader.parked.users() as u64);
    }

    fn count_parking(&mut self, users: u64) {
        let read_again = self.reader.parked.events_read_again();
        let CountedParking { users: users_before, read_again: read_before } =
            std::mem::replace(&mut self.counted, CountedParking { users, read_again });
        self.context.tally.parked_users_changed(users_before, users);
        self.context.tally.read_again(read_again - read_before);
    }

    fn report_parked(&self, newly_parked: usize) {
        if newly_parked > 0
            && let Some(suppressed) = self.log.allows("parked")
        {
            tracing::info!(
                destination = self.log.destination,
                partition = self.partition,
                newly_parked,
                parked = self.reader.parked.users(),
                suppressed,
                "parked users that fail, are slow, or wait for slow users: their events wait in the log, and other users continue"
            );
        }
    }

    /// The users that a commit lists now.
    fn listed_users(&self) -> ListedUsers {
        let is_void = |epoch| self.context.breaker.lock().is_void(epoch);
        self.reader.parked.listed(&self.deliverer.lanes, is_void, self.context.clocks())
    }

    /// Starts every batch that may start. Returns the moment at which another one may.
    fn start_batches(&mut self, now: Moment) -> Option<Moment> {
        if self.committer.control().paused.is_some() {
            self.deliverer.slots.release_granted();
            return None;
        }
        if let Some(until) = self.control.start_is_held_until(now) {
            return Some(until);
        }
        loop {
            match self.deliverer.next_batch(&self.context, now) {
                NextBatch::Send(batch) => {
                    let destination = Arc::clone(&self.context.parts.destination);
                    // A task moves its future several times. This one is large, and there is one for each event.
                    let delivery = Box::pin(batch.deliver(destination, Arc::clone(&self.context.lease)));
                    self.tasks.spawn(async move {
                        let (runs, reports) = delivery.await;
                        Completion::BatchEnded { runs, reports }
                    });
                }
                NextBatch::Wait { until } => return until,
            }
        }
    }

    fn batch_ended(&mut self, runs: Vec<RunInFlight>, reports: Vec<Report>) -> anyhow::Result<()> {
        let (context, now) = (Arc::clone(&self.context), self.context.now());
        reports.iter().for_each(|report| context.tally.attempted(report));
        let (tries_ended, batch_failed, snapshot) = {
            let mut breaker = context.breaker.lock();
            let (gate, was_out) = (breaker.gate(now), breaker.is_out());
            let more_attempts_at = breaker.attempts_allowed_grow_at(now);
            let random = || context.random();
            let judge = Judge { breaker: &mut breaker, policy: &context.config.tries, random: &random, now };
            let (reader, committer) = (&mut self.reader, &mut self.committer);
            if reports.iter().any(|report| report.failed.is_some()) {
                committer.has_changed();
            }
            let end = self.deliverer.batch_ended(runs, reports, judge, |event| reader.settled(event, committer))?;
            let BatchEnd { tries_ended, failed_in_outage, batch_failed } = end;
            // The cause is set before the lock is released. Otherwise another worker could see the outage first, and write
            // its line without a cause.
            if let Some((verdict, answer)) = failed_in_outage {
                context.notices.failed_in_outage(verdict, &answer);
            }
            context.throttle.limit_by(&breaker, now);
            // A worker that waits for a slot must know when the breaker allows more attempts. After an outage lanes are
            // woken that failed in it, also if the breaker had closed before.
            let more_attempts = more_attempts_at != breaker.attempts_allowed_grow_at(now);
            if more_attempts || gate != breaker.gate(now) || was_out != breaker.is_out() {
                breaker.users_wait(self.partition, self.deliverer.lanes.each_user());
                context.breaker.notify_changed();
            }
            (tries_ended, batch_failed, (was_out != breaker.is_out()).then(|| breaker.snapshot(now)))
        };
        if let Some(FailedBatch { events, answer }) = batch_failed {
            context.notices.batch_failed(self.partition, events, &answer);
        }
        self.review_changed(now);
        if let Some(snapshot) = snapshot {
            context.notices.set_backlog(self.partition, self.backlog());
            context.notices.write_due_lines(&snapshot, context.throttle.owned_partitions(), now);
        }
        for ended in tries_ended {
            self.end_tries(ended);
        }
        self.write_dead_letters()
    }

    /// The first event of a lane has no further attempt. `--on-exhausted` says what follows.
    fn end_tries(&mut self, ended: TriesEnded) {
        let TriesEnded { token, decision, answer } = ended;
        match decision {
            // Not an end: the lane is attempted again.
            Decision::Retry { .. } => {}
            Decision::GiveUp(reason) => self.add_dead_letter(token, reason, answer),
            Decision::Drop(reason) => {
                let (context, now) = (&self.context, self.context.now());
                self.show_ended(token, reason, &answer, |event| context.notices.dropped(event, now));
                context.tally.drop_event();
                self.deliverer.lanes.given_up(token, |event| self.reader.settled(event, &mut self.committer));
                self.review_changed(now);
            }
            // The lane stays as it is, so nothing of this user is attempted until the worker has stopped.
            Decision::Halt(reason) => {
                self.show_ended(token, reason, &answer, |event| {
                    self.context.halt.halt(self.context.destination(), event);
                });
            }
            Decision::Hold(reason) => self.hold_exhausted(token, reason, &answer),
        }
    }

    /// Holds the user whose next event has no further try. The commit keeps the account of the tries, and the lane leaves
    /// memory.
    fn hold_exhausted(&mut self, token: Token, reason: GiveUpReason, answer: &str) {
        let (context, now) = (Arc::clone(&self.context), self.context.now());
        let (event, history) = self.deliverer.lanes.giving_up(token);
        let (event, history) = (event.clone(), history.clone());
        let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, &mut self.committer);
        match parked.hold_exhausted(token, &mut memory, now) {
            Ok(()) => {
                let id = event.id(&context.topic, self.partition);
                let held = GivenUpEvent::new(&event, &id, &history, self.partition, reason, answer);
                context.notices.held(&held, now);
            }
            Err(error) => {
                if let Some(suppressed) = self.log.allows("hold") {
                    let (destination, partition) = (context.destination(), self.partition);
                    tracing::warn!(
                        destination,
                        partition,
                        suppressed,
                        "a user cannot be held, so it is tried again: {error}"
                    );
                }
            }
        }
    }

    fn show_ended(&self, token: Token, reason: GiveUpReason, answer: &str, show: impl FnOnce(&GivenUpEvent<'_>)) {
        let (event, history) = self.deliverer.lanes.giving_up(token);
        let id = event.id(&self.context.topic, self.partition);
        show(&GivenUpEvent::new(event, &id, history, self.partition, reason, answer));
    }

    fn add_dead_letter(&mut self, token: Token, reason: GiveUpReason, answer: String) {
        self.dead_letters.add(token, reason, answer, self.context.throttle.share(WAITING_ANSWERS_BYTES_MAX));
    }

    /// Writes the dead letters that are due, as far as those in flight leave room.
    fn write_dead_letters(&mut self) -> anyhow::Result<()> {
        if !self.dead_letters.has_due() {
            return Ok(());
        }
        let bytes_max = self.context.throttle.share(DEAD_LETTER_WRITES_BYTES_MAX);
        let (lanes, clocks) = (&self.deliverer.lanes, self.context.clocks());
        while let Some((token, record)) = self.dead_letters.next_write(bytes_max, lanes, &self.log, clocks)? {
            let (context, partition) = (Arc::clone(&self.context), self.partition);
            self.tasks.spawn(async move {
                let result = match context.dead_letter_topic.get(&context.parts, &context.config).await {
                    Ok(topic) => topic.append(partition, record).await.map_err(|failure| failure.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                Completion::DeadLetterWritten { token, result }
            });
        }
        Ok(())
    }

    fn dead_letter_written(&mut self, token: Token, result: Result<(), String>) -> anyhow::Result<()> {
        let (context, lanes, now) = (&self.context, &mut self.deliverer.lanes, self.context.now());
        if let Err(detail) = result {
            let backoff = |failures| context.log_retry_delay(failures);
            self.dead_letters.write_failed(token, &detail, lanes, backoff, &self.log, now)?;
            return self.write_dead_letters();
        }
        self.dead_letters.stored(token, lanes, &self.log, |event| context.notices.gave_up(event, now))?;
        lanes.given_up(token, |event| self.reader.settled(event, &mut self.committer));
        context.tally.gave_up();
        self.review_changed(now);
        self.write_dead_letters()
    }

    /// The lanes of some parked users have changed.
    fn review_changed(&mut self, now: Moment) {
        let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, &mut self.committer);
        parked.review_changed(&mut memory, now);
    }

    /// Once each `--commit-interval`: writes log lines that are due, and commits if something changed.
    fn tick(&mut self, now: Moment) {
        if !self.committer.tick(now) {
            return;
        }
        self.tick_parking(now);
        self.report_health(now);
        if self.reader.parked.take_changes() {
            self.committer.has_changed();
        }
        let (parked, lanes, clocks) = (&self.reader.parked, &self.deliverer.lanes, self.context.clocks());
        // The lock is taken for each user that has failed, so that a long list does not keep it.
        let is_void = |epoch| self.context.breaker.lock().is_void(epoch);
        let is_caught_up = lanes.events() == 0 && parked.lists_no_user();
        let listed = || parked.listed(lanes, is_void, clocks);
        if let Some(state) = self.committer.start_commit(is_caught_up, listed, now) {
            let commit = self.commit(state.clone());
            self.tasks.spawn(async move { Completion::Committed { result: commit.await, state } });
        }
    }

    fn commit(&self, state: PartitionState) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let (group, partition) = (Arc::clone(&self.context.parts.group), self.partition);
        self.context.shared_control.held.set(partition, &state.users);
        async move { group.commit(partition, state).await }
    }

    /// Tells the breaker and the notices what waits in this partition, and writes the lines that are due.
    fn report_health(&mut self, now: Moment) {
        let context = Arc::clone(&self.context);
        context.notices.set_backlog(self.partition, self.backlog());
        let snapshot = {
            let mut breaker = context.breaker.lock();
            breaker.users_wait(self.partition, self.deliverer.lanes.each_user());
            breaker.snapshot(now)
        };
        context.notices.write_due_lines(&snapshot, context.throttle.owned_partitions(), now);
        self.look_at_log_end(snapshot.out_since.is_some(), now);
        if snapshot.open.is_none() && self.committer.control().paused.is_none() {
            self.report_stuck_users(snapshot.since, now);
        }
    }

    /// Looks at the end of the log if it is not known, or in an outage. Log lines show how much waits.
    fn look_at_log_end(&mut self, is_outage: bool, now: Moment) {
        if self.reader.start_log_end_look(is_outage, now) {
            let (log, partition) = (Arc::clone(&self.context.parts.log), self.partition);
            self.tasks.spawn(async move { Completion::LogEndSeen(log.latest(partition).await) });
        }
    }

    /// Writes a line for users whose next event keeps failing while the breaker is closed, which it has been since
    /// `closed_since`.
    fn report_stuck_users(&mut self, closed_since: Moment, now: Moment) {
        let context = &*self.context;
        let mut stuck_users = Vec::new();
        {
            let breaker = context.breaker.lock();
            self.deliverer.lanes.look_at_stuck(STUCK_USERS_LOOK_MAX, now, |event, history, user, next_try| {
                // After an outage every user that waited gets an attempt first. If no other user is served, nothing shows
                // that the failures are the user's own, so there is a minute for that attempt.
                let others_are_served = breaker.is_suspect(user);
                let had_its_chance = others_are_served || now >= closed_since.saturating_add(LOG_REMINDER_INTERVAL);
                let is_stuck = history.has_failed_since(closed_since) && had_its_chance;
                if is_stuck && context.notices.allows_stuck_user(now) {
                    let id = event.id(&context.topic, self.partition);
                    stuck_users.push(StuckUser::new(event, &id, history, next_try, others_are_served, now));
                }
            });
        }
        // The lines are written while no lock is held: standard error may be slow.
        for user in &stuck_users {
            context.notices.stuck_user(self.partition, user);
        }
    }

    fn backlog(&self) -> Backlog {
        let lanes = &self.deliverer.lanes;
        Backlog { users: lanes.users(), lag: self.reader.unread_events().map(|unread| unread + lanes.events() as u64) }
    }

    fn look_for_reset(&mut self, now: Moment) {
        if self.repositioner.start_look(now) {
            let (group, partition) = (Arc::clone(&self.context.parts.group), self.partition);
            self.tasks
                .spawn(async move { Completion::ResetLooked(requested(&*group, partition, RESET_LOOK_MAX).await) });
        }
    }

    fn reset_looked(&mut self, found: Result<Option<OffsetReset>, Failure>) {
        self.repositioner.looked(found, self.committer.stored(), &self.log, self.context.now());
    }

    /// Begins the dead letters of events that an operator has given up.
    fn give_up_commanded(&mut self) {
        loop {
            let (parked, mut memory) = self.reader.parking(&mut self.deliverer.lanes, &mut self.committer);
            let Some(token) = parked.next_to_give_up(&mut memory) else { return };
            let (_, history) = self.deliverer.lanes.giving_up(token);
            let answer = history.answer.to_string();
            self.add_dead_letter(token, GiveUpReason::Operator, answer);
        }
    }

    /// Tells the parts that all partitions share what operators commanded before this worker began.
    fn share_control(&self) {
        self.context.set_control(&self.log, self.committer.control(), ChangeCauses::default());
        self.context.shared_control.held.begin(self.partition, &self.committer.stored().users);
    }

    fn look_for_commands(&mut self, now: Moment) {
        if self.control.start_look(now) {
            let (context, partition, next) = (Arc::clone(&self.context), self.partition, self.committer.control().next);
            self.tasks.spawn(async move {
                Completion::ControlLooked(control::look(context, partition, next, CONTROL_LOOK_MAX).await)
            });
        }
    }

    fn control_looked(&mut self, found: Result<FoundCommands, String>) {
        let now = self.context.now();
        ControlledPartition {
            context: &self.context,
            partition: self.partition,
            reader: &mut self.reader,
            deliverer: &mut self.deliverer,
            committer: &mut self.committer,
            log: &self.log,
        }
        .looked(&mut self.control, found, now);
    }

    /// Applies an offset reset and stores that. If the worker is told to stop meanwhile, the next owner does the rest.
    async fn apply_reset(&mut self, reset: &OffsetReset, stop: &mut watch::Receiver<bool>) -> anyhow::Result<LoopEnd> {
        let deadline = Instant::now() + self.context.config.drain;
        tokio::select! {
            biased;
            () = stopped(stop) => return self.drain_and_commit().await.map(LoopEnd::Stopped),
            ended = self.drain(deadline) => { ended?; }
        }
        // Attempts that have not ended are delivered again or left out by the reset. A late answer must not settle them.
        self.tasks.shutdown().await;
        self.deliverer.batches_aborted();
        self.abandon_probes();
        self.dead_letters.writes_aborted();
        self.committer.commit_aborted();
        let state = self.committer.apply(reset, self.listed_users());
        tokio::select! {
            biased;
            // It is unknown whether the state was stored. So what is committed at the stop is the state after the reset.
            () = stopped(stop) => {
                return Ok(LoopEnd::Stopped(self.commit_last(state.clone(), deadline, Ended::Drained).await));
            }
            stored = self.store_reset(&state) => stored?,
        }
        let (direction, to) = match reset.to {
            ResetTarget::Back(to) => ("back", to),
            ResetTarget::Ahead(to) => ("ahead", to),
        };
        let (destination, partition) = (self.context.destination(), self.partition);
        tracing::info!(destination, partition, to, "the position was moved {direction}, as was asked for");
        Ok(LoopEnd::Reset(state))
    }

    /// Gives up the probes of this partition, whose answers are not waited for any more. Others may begin one, or have the
    /// places of attempts that were cut off.
    fn abandon_probes(&mut self) {
        {
            let mut breaker = self.context.breaker.lock();
            self.deliverer.take_probes().iter().for_each(|probe| breaker.abandoned(probe));
        }
        self.context.breaker.notify_changed();
    }

    /// Commits until the state is stored, because nothing may be attempted before.
    async fn store_reset(&self, state: &PartitionState) -> Result<(), Failure> {
        let mut failures = 0;
        loop {
            match self.commit(state.clone()).await {
                Err(failure) if !is_final(&failure) => {
                    failures += 1;
                    if let Some(suppressed) = self.log.allows("offset reset") {
                        tracing::warn!(
                            destination = self.log.destination,
                            partition = self.partition,
                            suppressed,
                            "cannot store the new position yet, trying again: {failure}"
                        );
                    }
                    sleep(self.context.log_retry_delay(failures)).await;
                }
                result => return result,
            }
        }
    }

    /// Starts nothing more, and waits until the deadline for what is in flight.
    async fn drain(&mut self, deadline: Instant) -> anyhow::Result<Ended> {
        self.deliverer.slots.leave();
        while self.has_work_in_flight() || self.committer.is_committing() {
            match timeout_at(deadline, self.tasks.join_next()).await {
                Ok(Some(completion)) => self.handle(completion)?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(if self.has_work_in_flight() { Ended::WorkLeft } else { Ended::Drained })
    }

    fn has_work_in_flight(&self) -> bool {
        self.deliverer.has_batches_in_flight() || self.dead_letters.has_writes_in_flight()
    }

    /// Whether an attempt or a dead letter is under way or could begin. Users that back off are tried again when the
    /// partition is: they must not keep the reason why it cannot be read from being shown.
    fn has_something_to_do(&self) -> bool {
        self.deliverer.lanes.has_ready() || self.has_work_in_flight() || self.dead_letters.has_waiting()
    }

    /// Drains, then stores the last progress.
    async fn drain_and_commit(&mut self) -> anyhow::Result<Ended> {
        let deadline = Instant::now() + self.context.config.drain;
        let ended = self.drain(deadline).await?;
        // An attempt that is not waited for any longer would keep its slot from other partitions during the last commit.
        self.tasks.shutdown().await;
        let state = self.committer.state(self.listed_users());
        Ok(self.commit_last(state, deadline, ended).await)
    }

    /// Stores the state with which the worker ends. Returns `ended`, or that work is left if it cannot be stored.
    async fn commit_last(&mut self, state: PartitionState, deadline: Instant, ended: Ended) -> Ended {
        let (destination, partition) = (self.context.parts.group.name().to_owned(), self.partition);
        let mut failures = 0;
        while state != *self.committer.stored() {
            let commit_deadline = deadline.max(Instant::now() + LAST_COMMIT_WAIT);
            match timeout_at(commit_deadline, self.commit(state.clone())).await {
                Ok(Ok(())) => self.committer.set_stored(state.clone()),
                Ok(Err(failure))
                    if !is_final(&failure) && Instant::now() < deadline && failures + 1 < LAST_COMMIT_TRIES_MAX =>
                {
                    failures += 1;
                    tracing::warn!(destination, partition, "the last commit failed, trying again: {failure}");
                    sleep(self.context.log_retry_delay(failures)).await;
                }
                Ok(Err(failure)) => {
                    tracing::error!(destination, partition, "stopped without the last commit: {failure}");
                    return Ended::WorkLeft;
                }
                Err(_) => return Ended::WorkLeft,
            }
        }
        ended
    }
}

/// The list with which a worker begins at this state.
fn parked_users(context: &DispatchContext, lanes: &Lanes, state: &PartitionState) -> ParkedUsers {
    let (clocks, tries) = (context.clocks(), &context.config.tries);
    let limits = context.config.parking;
    let limits = ParkingLimits { users_max: context.throttle.share(limits.users_max), ..limits };
    let healthy_time = {
        let mut breaker = context.breaker.lock();
        // Otherwise they would be newcomers, which are probed before users that have failed.
        let failed = state.users.iter().filter(|(_, user)| user.failed.is_some());
        failed.for_each(|(key, _)| breaker.had_failed(lanes.user(key.as_deref())));
        breaker.healthy_time(clocks.moment)
    };
    let restore = |stored: &_| {
        let history = FailureHistory::restored(stored, healthy_time, tries.delay_max(), clocks);
        (history, tries.next_try(stored, clocks))
    };
    let run_events_max = context.parts.destination.limits().run_events_max;
    ParkedUsers::new(limits, run_events_max, state, restore, clocks.moment)
}

/// Ready when the worker is told to stop, or when the owner that could tell it is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _gone = stop.wait_for(|stop| *stop).await;
}

impl Drop for Worker {
    /// Gives back what others wait for: probes whose answers are not waited for any more, and what the destination holds
    /// for this partition.
    fn drop(&mut self) {
        self.context.parts.destination.released(self.partition);
        self.context.notices.remove_backlog(self.partition);
        self.context.forget_control(self.partition);
        self.count_parking(0);
        self.context.breaker.lock().released(self.partition);
        self.abandon_probes();
    }
}
