//! The owner of one partition. It alone holds the lanes, the window and the progress, and handles one happening at a
//! time; attempts, fetches, commits and dead letters run outside and report back.
//!
//! ```text
//!            fetch ──▶ pending ─ admit ─▶ lanes ─ next ─▶ hand-over ──▶ destination
//!              ▲          (window)          ▲                              │ reports
//!              └── room ◀── settle ◀────────┴── policy: retry, give up ◀───┘
//!                             └──▶ progress ── tick ──▶ commit
//! ```
//!
//! This file has its state, its loop, the drain and the commits. The rest is in `reading` (fetch and admit), `attempts`
//! (hand out, judge, settle), `letters` (dead letters), `moving` (offset resets) and `telling` (log lines).
//!
//! Nothing is attempted before the first commit is stored, and what is committed is what this owner knows to be
//! settled at that moment. A panic of anything outside, or of the lanes, ends the partition with its message.

mod attempts;
mod letters;
mod moving;
mod reading;
mod telling;

pub(super) use self::moving::requested;
pub(super) use self::reading::Unreadable;

use super::dead_letter::Letter;
use super::shared::Shared;
use super::{Ended, Start};
use crate::core::Moment;
use crate::core::breaker::Attempt;
use crate::core::event::Event;
use crate::core::lanes::{Lanes, Started, Token};
use crate::core::outcome::Failure;
use crate::core::progress::{OffsetReset, PartitionState, Progress};
use crate::core::verdict::Report;
use crate::core::window::Window;
use crate::destination::BatchLimits;
use crate::group::is_final;
use crate::limits;
use crate::log::{FetchError, Fetched};
use crate::log_limiter::LogLimiter;
use anyhow::Context as _;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// What ran outside and came back.
enum Happening {
    Attempted {
        flights: Vec<Flight>,
        reports: Vec<Report>,
    },
    Fetched(Result<Fetched, FetchError>),
    Committed {
        state: PartitionState,
        result: Result<(), Failure>,
    },
    Letter {
        token: Token,
        result: Result<(), String>,
    },
    /// A slot of `--concurrency` became free.
    Slot(OwnedSemaphorePermit),
    /// Where the log ends.
    Latest(Result<i64, Failure>),
    /// What is asked for of the position.
    Looked(Result<Option<OffsetReset>, Failure>),
}

/// Why a worker's loop ended.
enum Left {
    /// It was told to, or has nothing more to do.
    Stopped(Ended),
    /// Its position is another one: it begins anew from there.
    Moved(PartitionState),
}

/// One run on its way.
struct Flight {
    started: Started,
    attempt: Attempt,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    partition: u32,
    limits: BatchLimits,
    outside: JoinSet<Happening>,
    lanes: Lanes,
    window: Window,
    progress: Progress,
    /// The next offset to fetch.
    position: i64,
    /// Events below it may be settled already: those of the state that this owner began with.
    settled_until: i64,
    /// Where the log ends, as far as is known, and when that was looked at; `None`: that is under way.
    latest: i64,
    latest_at: Option<Moment>,
    /// Fetched and not yet admitted: at most one fetch.
    pending: VecDeque<Event>,
    fetching: bool,
    fetch_at: Moment,
    fetch_failures: u32,
    /// Told of every fetch that was answered, also after an offset reset.
    has_read: Arc<Notify>,
    hand_overs: usize,
    /// The attempt that probes a destination which takes nothing, if it is ours.
    probing: Option<Attempt>,
    slot: Option<OwnedSemaphorePermit>,
    slot_wanted: bool,
    /// Why reading has ended for good: what was read before is delivered and committed first.
    unreadable: Option<anyhow::Error>,
    giving_up: HashMap<Token, Letter>,
    /// Dead letters whose writing failed, and when it is tried again.
    letters_due: BTreeSet<(Moment, Token)>,
    letters_writing: usize,
    committed: PartitionState,
    committed_at: Moment,
    committing: bool,
    dirty: bool,
    tick_at: Moment,
    /// A move that is to be applied, and when the next one is looked for; `None`: that is under way.
    wanted: Option<OffsetReset>,
    look_at: Option<Moment>,
    log_limiter: LogLimiter,
}

impl Worker {
    /// Reads where the partition stands and stores it, so that "no commit" means "new group" from then on. Waits while
    /// the group or the log does not answer.
    pub(super) async fn begin(shared: Arc<Shared>, partition: u32) -> anyhow::Result<Self> {
        let log_limiter = LogLimiter::default();
        let mut failures = 0;
        let state = loop {
            match first_state(&shared, partition).await {
                Ok(state) => break state,
                Err(failure) if is_final(&failure) => return Err(failure.into()),
                Err(failure) => {
                    failures += 1;
                    if let Some(suppressed) = log_limiter.allows("begin") {
                        tracing::warn!(partition, suppressed, "cannot begin, trying again: {failure}");
                    }
                    let delay = shared.config.backoff.delay(failures, shared.random());
                    tokio::time::sleep(delay).await;
                }
            }
        };
        let found = requested(&*shared.parts.group, partition, limits::MOVES_LOOK_INTERVAL).await;
        let mut worker = Self::anew(shared, partition, state);
        // What was asked for while nobody was there comes before anything is attempted.
        worker.looked(found);
        Ok(worker)
    }

    /// From a state that is stored.
    fn anew(shared: Arc<Shared>, partition: u32, state: PartitionState) -> Self {
        let progress = Progress::new(&state);
        let now = shared.now();
        Self {
            limits: shared.parts.destination.limits(),
            outside: JoinSet::new(),
            lanes: Lanes::new(shared.share(limits::GAPS_REMEMBERED_MAX)),
            window: Window::new(1, 1),
            position: progress.watermark(),
            latest: progress.watermark(),
            latest_at: Some(now),
            settled_until: state.settled.last().map_or(0, |range| range.end),
            progress,
            pending: VecDeque::new(),
            fetching: false,
            fetch_at: now,
            fetch_failures: 0,
            has_read: Arc::default(),
            hand_overs: 0,
            probing: None,
            slot: None,
            slot_wanted: false,
            unreadable: None,
            giving_up: HashMap::new(),
            letters_due: BTreeSet::new(),
            letters_writing: 0,
            committed: state,
            committed_at: now,
            committing: false,
            dirty: false,
            tick_at: now + shared.config.commit_interval,
            wanted: None,
            look_at: Some(now),
            log_limiter: LogLimiter::default(),
            partition,
            shared,
        }
    }

    /// What is told once the log could be read.
    pub(super) fn has_read(&self) -> Arc<Notify> {
        Arc::clone(&self.has_read)
    }

    /// Delivers until `stop` says true; then hands over: lets attempts in flight end within `--drain`, and commits.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<Ended> {
        loop {
            let left = self.work(&mut stop).await;
            // What was cut off is really gone before the partition is released: its next owner begins at once.
            self.outside.shutdown().await;
            match left? {
                Left::Stopped(ended) => return Ok(ended),
                Left::Moved(state) => {
                    let mut moved = Self::anew(Arc::clone(&self.shared), self.partition, state);
                    moved.has_read = Arc::clone(&self.has_read);
                    self = moved;
                }
            }
        }
    }

    async fn work(&mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<Left> {
        let shared = Arc::clone(&self.shared);
        while !*stop.borrow_and_update() {
            if let Some(wanted) = self.wanted.take() {
                return self.apply(&wanted, stop).await;
            }
            // Hears of every move from here on, before the gate is looked at. (A `watch` with several receivers wakes
            // them in an order drawn at random, which no simulation repeats.)
            let breaker_moved = shared.breaker_moved.notified();
            let now = self.shared.now();
            self.lanes.wake(now);
            self.tick(now);
            self.look(now);
            self.retry_letters(now)?;
            self.read(now);
            let probe_at = self.start(now);
            if self.unreadable.is_some() && self.pending.is_empty() && self.lanes.events() == 0 {
                break;
            }
            let next = [self.lanes.next_wakeup(), probe_at, self.next_fetch(), self.next_letter(), self.look_at];
            let next = next.into_iter().flatten().fold(self.tick_at, Moment::min);
            tokio::select! {
                biased;
                changed = stop.changed() => if changed.is_err() { break },
                Some(happening) = self.outside.join_next() => {
                    self.handle(happening.context("a part of dispatch panicked")?)?;
                    // Others that are ready too, in their order, before anything is started again.
                    for _ in 1..limits::HAPPENINGS_IN_A_ROW_MAX {
                        let Some(happening) = self.outside.try_join_next() else { break };
                        self.handle(happening.context("a part of dispatch panicked")?)?;
                    }
                }
                () = breaker_moved => self.shared.breaker().users_wait(self.partition, self.lanes.each_user()),
                () = sleep_until(self.shared.instant(next)) => {}
            }
        }
        let ended = self.hand_over().await?;
        self.unreadable.take().map_or(Ok(Left::Stopped(ended)), Err)
    }

    /// Starts nothing any more, and lets what is under way end until the deadline.
    async fn let_end(&mut self, deadline: Instant) -> anyhow::Result<Ended> {
        self.slot = None;
        while self.hand_overs > 0 || self.letters_writing > 0 || self.committing {
            match timeout_at(deadline, self.outside.join_next()).await {
                Ok(Some(happening)) => self.handle(happening.context("a part of dispatch panicked")?)?,
                Ok(None) | Err(_) => break,
            }
            // A slot that comes late is for the partitions that go on.
            self.slot = None;
        }
        Ok(if self.hand_overs == 0 && self.letters_writing == 0 { Ended::Drained } else { Ended::WorkLeft })
    }

    async fn hand_over(&mut self) -> anyhow::Result<Ended> {
        let deadline = Instant::now() + self.shared.config.drain;
        let ended = self.let_end(deadline).await?;
        let state = self.progress.state();
        let mut failures = 0;
        while state != self.committed {
            match timeout_at(deadline.max(Instant::now() + limits::LAST_COMMIT_WAIT), self.commit(state.clone())).await
            {
                Ok(Ok(())) => self.committed = state.clone(),
                Ok(Err(failure)) if !is_final(&failure) && Instant::now() < deadline && failures < 10 => {
                    failures += 1;
                    tracing::warn!(partition = self.partition, "the last commit failed, trying again: {failure}");
                    tokio::time::sleep(self.shared.config.backoff.delay(failures, self.shared.random())).await;
                }
                Ok(Err(failure)) => {
                    tracing::error!(partition = self.partition, "stopped without the last commit: {failure}");
                    return Ok(Ended::WorkLeft);
                }
                Err(_) => return Ok(Ended::WorkLeft),
            }
        }
        Ok(ended)
    }

    fn handle(&mut self, happening: Happening) -> anyhow::Result<()> {
        match happening {
            Happening::Attempted { flights, reports } => self.attempted(flights, reports),
            Happening::Fetched(fetched) => self.fetched(fetched),
            Happening::Committed { state, result } => {
                self.committing = false;
                match result {
                    Ok(()) => (self.committed, self.committed_at) = (state, self.shared.now()),
                    Err(failure) if is_final(&failure) => return Err(failure.into()),
                    Err(failure) => {
                        self.dirty = true;
                        if let Some(suppressed) = self.log_limiter.allows("commit") {
                            tracing::warn!(
                                destination = self.shared.parts.group.name(),
                                partition = self.partition,
                                suppressed,
                                "a commit failed; the next commit includes this progress: {failure}"
                            );
                        }
                    }
                }
                Ok(())
            }
            Happening::Letter { token, result } => self.letter_written(token, result),
            Happening::Slot(permit) => {
                (self.slot, self.slot_wanted) = (Some(permit), false);
                Ok(())
            }
            Happening::Latest(found) => {
                // It only shows in log lines: what is not known now is asked again.
                self.latest = found.unwrap_or(self.latest);
                self.latest_at = Some(self.shared.now());
                Ok(())
            }
            Happening::Looked(found) => {
                self.looked(found);
                Ok(())
            }
        }
    }

    fn tick(&mut self, now: Moment) {
        if now < self.tick_at {
            return;
        }
        self.tick_at = now + self.shared.config.commit_interval;
        self.tell(now);
        let stale = now.saturating_sub(self.committed_at) >= limits::COMMIT_UNCHANGED_INTERVAL;
        if self.committing || !(self.dirty || stale) {
            return;
        }
        (self.dirty, self.committing) = (false, true);
        let state = self.progress.state();
        let commit = self.commit(state.clone());
        self.outside.spawn(async move { Happening::Committed { result: commit.await, state } });
    }

    fn commit(&self, state: PartitionState) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let (group, partition) = (Arc::clone(&self.shared.parts.group), self.partition);
        async move { group.commit(partition, state).await }
    }
}

/// Where the partition stands: what was committed, or where `--start` says, stored before anything is attempted.
async fn first_state(shared: &Shared, partition: u32) -> Result<PartitionState, Failure> {
    let group = &shared.parts.group;
    if let Some(state) = group.committed(partition).await? {
        group.commit(partition, state.clone()).await?;
        return Ok(state);
    }
    let log = &shared.parts.log;
    let mut first = match shared.config.start {
        Start::Earliest => log.earliest(partition).await?,
        Start::Latest => log.latest(partition).await?,
    };
    loop {
        group.commit(partition, PartitionState::at(first)).await?;
        // Only from its commit on a group holds retention back: it may have passed the place just before.
        let earliest = log.earliest(partition).await?;
        if earliest <= first {
            return Ok(PartitionState::at(first));
        }
        first = earliest;
    }
}

impl Drop for Worker {
    /// A probe that nobody waits for any more is given back, so that another owner may probe; so is what the destination
    /// holds for this partition.
    fn drop(&mut self) {
        self.shared.parts.destination.released(self.partition);
        self.shared.notices.waits(self.partition, None);
        let mut breaker = self.shared.breaker();
        breaker.released(self.partition);
        if let Some(probe) = self.probing.take() {
            breaker.abandoned(&probe);
            drop(breaker);
            self.shared.breaker_moved.notify_waiters();
        }
    }
}
