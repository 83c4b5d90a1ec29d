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
//! Nothing is attempted before the first commit is stored, and what is committed is what this owner knows to be
//! settled at that moment. A panic of anything outside, or of the lanes, ends the partition with its message.

use super::dead_letter::{self, Letter};
use super::shared::Shared;
use super::{Ended, OnGap, Start, policy};
use crate::core::Moment;
use crate::core::breaker::{Attempt, Gate};
use crate::core::event::Event;
use crate::core::lanes::{Lanes, Started, Token};
use crate::core::outcome::Failure;
use crate::core::progress::{Progress, State};
use crate::core::verdict::{Failed, Report, Verdict};
use crate::core::window::Window;
use crate::destination::{HandOver, HandOverLimits, Run};
use crate::limits;
use crate::log::{FetchError, Fetched};
use crate::quiet::Quiet;
use anyhow::{Context as _, anyhow, ensure};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, watch};
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
        state: State,
        result: Result<(), Failure>,
    },
    Letter {
        token: Token,
        result: Result<(), String>,
    },
    /// A slot of `--concurrency` became free.
    Slot(OwnedSemaphorePermit),
}

/// One run on its way.
struct Flight {
    started: Started,
    attempt: Attempt,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    partition: u32,
    limits: HandOverLimits,
    outside: JoinSet<Happening>,
    lanes: Lanes,
    window: Window,
    progress: Progress,
    /// The next offset to fetch.
    position: i64,
    /// Events below it may be settled already: those of the state that this owner began with.
    settled_until: i64,
    /// Fetched and not yet admitted: at most one fetch.
    pending: VecDeque<Event>,
    fetching: bool,
    fetch_at: Moment,
    fetch_failures: u32,
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
    committed: State,
    committed_at: Moment,
    committing: bool,
    dirty: bool,
    tick_at: Moment,
    quiet: Quiet,
}

impl Worker {
    /// Reads where the partition stands and stores it, so that "no commit" means "new group" from then on. Waits while
    /// the group or the log does not answer.
    pub(super) async fn begin(shared: Arc<Shared>, partition: u32) -> anyhow::Result<Self> {
        let quiet = Quiet::default();
        let mut failures = 0;
        let state = loop {
            match first_state(&shared, partition).await {
                Ok(state) => break state,
                Err(failure) if is_final(&failure) => return Err(failure.into()),
                Err(failure) => {
                    failures += 1;
                    if let Some(more) = quiet.allows("begin") {
                        tracing::warn!(partition, more, "cannot begin, trying again: {failure}");
                    }
                    let delay = shared.config.backoff.delay(failures, shared.random());
                    tokio::time::sleep(delay).await;
                }
            }
        };
        let progress = Progress::new(&state);
        let now = shared.now();
        let worker = Self {
            limits: shared.parts.destination.limits(),
            outside: JoinSet::new(),
            lanes: Lanes::new(shared.share(limits::GAPS_REMEMBERED_MAX)),
            window: Window::new(1, 1),
            position: progress.watermark(),
            settled_until: state.settled.last().map_or(0, |range| range.end),
            progress,
            pending: VecDeque::new(),
            fetching: false,
            fetch_at: now,
            fetch_failures: 0,
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
            quiet,
            partition,
            shared,
        };
        Ok(worker)
    }

    /// Delivers until `stop` says true; then hands over: lets attempts in flight end within `--drain`, and commits.
    pub(super) async fn run(mut self, stop: watch::Receiver<bool>) -> anyhow::Result<Ended> {
        let ended = self.work(stop).await;
        // What was cut off is really gone before the partition is released: its next owner begins at once.
        self.outside.shutdown().await;
        ended
    }

    async fn work(&mut self, mut stop: watch::Receiver<bool>) -> anyhow::Result<Ended> {
        let shared = Arc::clone(&self.shared);
        while !*stop.borrow_and_update() {
            // Hears of every move from here on, before the gate is looked at. (A `watch` with several receivers wakes
            // them in an order drawn at random, which no simulation repeats.)
            let breaker_moved = shared.breaker_moved.notified();
            let now = self.shared.now();
            self.lanes.wake(now);
            self.tick(now);
            self.retry_letters(now)?;
            self.read(now);
            let probe_at = self.start(now);
            if self.unreadable.is_some() && self.pending.is_empty() && self.lanes.events() == 0 {
                break;
            }
            let next = [self.lanes.next_wakeup(), Some(self.tick_at), probe_at, self.next_fetch(), self.next_letter()];
            let next = next.into_iter().flatten().min().unwrap_or(self.tick_at);
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
                () = breaker_moved => {}
                () = sleep_until(self.shared.instant(next)) => {}
            }
        }
        let ended = self.hand_over().await?;
        self.unreadable.take().map_or(Ok(ended), Err)
    }

    async fn hand_over(&mut self) -> anyhow::Result<Ended> {
        self.slot = None;
        let deadline = Instant::now() + self.shared.config.drain;
        while self.hand_overs > 0 || self.letters_writing > 0 || self.committing {
            match timeout_at(deadline, self.outside.join_next()).await {
                Ok(Some(happening)) => self.handle(happening.context("a part of dispatch panicked")?)?,
                Ok(None) | Err(_) => break,
            }
            // Nothing is started any more: a slot that comes late is for the partitions that go on.
            self.slot = None;
        }
        let ended = if self.hand_overs == 0 && self.letters_writing == 0 { Ended::Drained } else { Ended::WorkLeft };
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
                        if let Some(more) = self.quiet.allows("commit") {
                            tracing::warn!(
                                partition = self.partition,
                                more,
                                "a commit failed, the next one tells: {failure}"
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
        }
    }

    // ---- reading

    fn next_fetch(&self) -> Option<Moment> {
        let may = !self.fetching && self.unreadable.is_none() && self.pending.is_empty();
        (may && self.window.room_bytes() > 0).then_some(self.fetch_at)
    }

    /// Admits what fits, and fetches more while there is room.
    fn read(&mut self, now: Moment) {
        let config = &self.shared.config;
        self.window.resize(self.shared.share(config.window_events), self.shared.share(config.window_bytes));
        while let Some(event) = self.pending.front() {
            let bytes = event.record.window_bytes();
            if !self.window.admits(bytes) {
                return;
            }
            self.window.add(bytes);
            if let Some(event) = self.pending.pop_front() {
                self.lanes.admit(event);
            }
        }
        let room = self.window.room_bytes();
        if self.fetching || self.unreadable.is_some() || room == 0 || now < self.fetch_at {
            return;
        }
        self.fetching = true;
        let (log, partition, from) = (Arc::clone(&self.shared.parts.log), self.partition, self.position);
        let max_bytes = room.min(limits::FETCH_BYTES_MAX);
        self.outside.spawn(async move {
            Happening::Fetched(log.fetch(partition, from, max_bytes, limits::FETCH_WAIT_MAX).await)
        });
    }

    fn fetched(&mut self, fetched: Result<Fetched, FetchError>) -> anyhow::Result<()> {
        self.fetching = false;
        let error = match fetched {
            Ok(fetched) => {
                self.fetch_failures = 0;
                let mut at = self.position;
                for event in fetched.events {
                    ensure!(event.offset >= at, "the log gave offset {} where {at} was to come", event.offset);
                    self.progress.settle(at..event.offset);
                    at = event.offset + 1;
                    if event.offset >= self.settled_until || !self.progress.is_settled(event.offset) {
                        self.pending.push_back(event);
                    }
                }
                self.progress.settle(at..fetched.next);
                self.dirty |= fetched.next > at;
                self.position = fetched.next.max(at);
                return Ok(());
            }
            Err(error) => error,
        };
        let skip_to = match &error {
            FetchError::Unavailable(detail) => {
                self.fetch_failures = self.fetch_failures.saturating_add(1);
                let delay = self.shared.config.backoff.delay(self.fetch_failures, self.shared.random());
                self.fetch_at = self.shared.now().saturating_add(delay);
                if let Some(more) = self.quiet.allows("fetch") {
                    tracing::warn!(partition = self.partition, more, "cannot read the log, trying again: {detail}");
                }
                return Ok(());
            }
            FetchError::OutOfRange { from, earliest, .. } if from < earliest => *earliest,
            FetchError::OutOfRange { from, .. } => *from,
            FetchError::Corrupt { offset, .. } => *offset + 1,
        };
        if skip_to == self.position || self.shared.config.on_gap == OnGap::Stop {
            let what_to_do = match skip_to == self.position {
                true => "the log was made again or cut: give the destination another --name to begin anew",
                false => "--on-gap skip goes on behind it, and those events are lost",
            };
            self.unreadable = Some(anyhow!("partition {}: {error}; {what_to_do}", self.partition));
            return Ok(());
        }
        tracing::error!(
            partition = self.partition,
            from = self.position,
            to = skip_to,
            "skipped, by --on-gap: {error}"
        );
        self.progress.settle(self.position..skip_to);
        self.position = skip_to;
        self.dirty = true;
        Ok(())
    }

    // ---- attempts

    /// Starts what may start. Answers with the moment at which the breaker may be asked again, if it said no.
    fn start(&mut self, now: Moment) -> Option<Moment> {
        let many = self.limits.runs_max > 1;
        let events_max = self.shared.share(limits::IN_FLIGHT_EVENTS_MAX);
        while self.lanes.has_ready() && self.lanes.in_flight_events() < events_max {
            if many && self.hand_overs >= limits::HAND_OVERS_OF_MANY_MAX {
                break;
            }
            if self.shared.parts.group.fence().is_some_and(|fence| fence <= Instant::now()) {
                self.slot = None;
                return Some(now + limits::FENCE_LOOK_INTERVAL);
            }
            let Some(slot) = self.slot.take().or_else(|| Arc::clone(&self.shared.slots).try_acquire_owned().ok())
            else {
                self.want_slot();
                break;
            };
            // Two hand-overs take turns: while one is written, the other one fills.
            if let Err(until) = self.launch(slot, (events_max / 2).max(1), now) {
                self.slot = None;
                return until;
            }
        }
        self.slot = None;
        None
    }

    fn want_slot(&mut self) {
        if !std::mem::replace(&mut self.slot_wanted, true) {
            let slots = Arc::clone(&self.shared.slots);
            self.outside.spawn(async move {
                Happening::Slot(slots.acquire_owned().await.expect("the slots of a destination are never closed"))
            });
        }
    }

    /// Hands out what is ready, if the breaker lets it. `Err`: nothing may start, until then or until it moves.
    fn launch(&mut self, slot: OwnedSemaphorePermit, events_max: usize, now: Moment) -> Result<(), Option<Moment>> {
        let (mut events, mut flights, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        {
            // Asked and begun under one lock: two owners never both begin the one probe.
            let mut breaker = self.shared.breaker();
            let probe = match breaker.gate(now) {
                Gate::Closed => false,
                Gate::HalfOpen => true,
                Gate::Open { until } => return Err(until),
            };
            let anybody_at = breaker.any_user_probes_at().filter(|at| probe && *at > now);
            while flights.len() < self.limits.runs_max && events.len() < events_max {
                let run_max = self.limits.run_events_max.min(events_max - events.len());
                let started = if probe {
                    let wanted = |user| breaker.prefers_as_probe(user);
                    self.lanes.next_preferred(limits::PROBE_LOOK_MAX, wanted, anybody_at.is_none(), &mut events)
                } else {
                    self.lanes.next(run_max, self.limits.run_bytes_max, &mut events)
                };
                let Some(started) = started else { break };
                runs.push(Run { events: started.events.clone(), attempt: started.attempt, gap: started.gap });
                let attempt = breaker.begin(started.user, now);
                flights.push(Flight { attempt, started });
                if probe {
                    self.probing = Some(attempt);
                    break;
                }
            }
            if flights.is_empty() {
                return Err(anybody_at);
            }
        }
        self.hand_overs += 1;
        let mut deadline = Instant::now() + self.shared.config.attempt_timeout;
        let mut abandoned_at = deadline + limits::ATTEMPT_ABANDON_AFTER;
        if let Some(fence) = self.shared.parts.group.fence() {
            // At the fence the next owner may begin: nothing is waited for beyond it.
            (deadline, abandoned_at) = (deadline.min(fence), abandoned_at.min(fence));
        }
        let destination = Arc::clone(&self.shared.parts.destination);
        let topic = Arc::clone(&self.shared.topic);
        let hand_over = HandOver { topic, partition: self.partition, runs, events, deadline };
        self.outside.spawn(async move {
            let count = hand_over.runs.len();
            let answer = timeout_at(abandoned_at, destination.deliver(hand_over)).await;
            drop(slot);
            let reports = answer.unwrap_or_else(|_| {
                let failed = Failed::new(Verdict::Retry { after: None }, "no answer within --attempt-timeout");
                vec![Report { delivered: 0, failed: Some(failed) }; count]
            });
            Happening::Attempted { flights, reports }
        });
        Ok(())
    }

    fn attempted(&mut self, flights: Vec<Flight>, reports: Vec<Report>) -> anyhow::Result<()> {
        self.hand_overs -= 1;
        ensure!(flights.len() == reports.len(), "{} runs got {} reports", flights.len(), reports.len());
        let now = self.shared.now();
        let shared = Arc::clone(&self.shared);
        let mut breaker = shared.breaker();
        let before = breaker.gate(now);
        // What was delivered is told first: runs that failed beside it did not fail in an outage.
        let delivered = flights.iter().zip(&reports).filter(|(_, report)| report.delivered > 0);
        let delivered: Vec<Attempt> = delivered.map(|(flight, _)| flight.attempt).collect();
        breaker.delivered_many(&delivered, now);
        let mut letters = Vec::new();
        for (flight, report) in flights.into_iter().zip(reports) {
            let Flight { started, attempt } = flight;
            ensure!(
                report.failed.is_some() == (report.delivered < started.events.len()),
                "a run of {} events reported {} delivered and {:?}",
                started.events.len(),
                report.delivered,
                report.failed
            );
            self.dirty |= report.delivered > 0;
            let (window, progress) = (&mut self.window, &mut self.progress);
            let mut reason = None;
            self.lanes.settle(
                started.token,
                report.delivered,
                |event| {
                    window.remove(event.record.window_bytes());
                    progress.settle(event.offset..event.offset + 1);
                },
                |_, trouble| {
                    let verdict = report.failed.as_ref().map_or(Verdict::Drilled, |failed| failed.verdict);
                    let (next, why) =
                        policy::judge(&shared.config, &mut breaker, &attempt, verdict, trouble, now, shared.random());
                    reason = why;
                    next
                },
            );
            if self.probing.as_ref().is_some_and(|probe| *probe == attempt) {
                self.probing = None;
            }
            if let (Some(reason), Some(failed)) = (reason, report.failed) {
                letters.push((started.token, Letter { reason, answer: failed.answer, failed_at: now, failures: 0 }));
            }
        }
        let after = breaker.gate(now);
        if before != after {
            shared.breaker_moved.notify_waiters();
        }
        drop(breaker);
        self.say_health(before, after);
        for (token, letter) in letters {
            self.giving_up.insert(token, letter);
            self.write_letter(token)?;
        }
        Ok(())
    }

    fn say_health(&mut self, before: Gate, after: Gate) {
        let (destination, waiting) = (self.shared.parts.group.name(), self.lanes.events());
        let (opened, closed) = (after != Gate::Closed, before != Gate::Closed);
        let about = if opened { "opened" } else { "closed" };
        if opened == closed {
            return;
        }
        // Where some connections work and some do not, it opens and closes with every answer.
        let Some(more) = self.quiet.allows(about) else { return };
        match opened {
            true => {
                let why = self.shared.breaker().snapshot(self.shared.now());
                tracing::warn!(
                    destination,
                    ?why,
                    waiting,
                    more,
                    "the destination takes nothing: probing, nothing is given up"
                );
            }
            false => tracing::info!(destination, more, "the destination takes events again"),
        }
    }

    // ---- dead letters

    fn write_letter(&mut self, token: Token) -> anyhow::Result<()> {
        let letter = self.giving_up.get(&token).context("a dead letter without its story")?;
        let (event, trouble) = self.lanes.settling(token);
        let record = dead_letter::record(&self.shared.parts, self.partition, event, trouble, letter, self.shared.now());
        let (shared, partition) = (Arc::clone(&self.shared), self.partition);
        self.letters_writing += 1;
        self.outside.spawn(async move {
            let result = match shared.dead_letters().await {
                Ok(log) => log.append(partition, vec![record]).await.map(drop).map_err(|failure| failure.to_string()),
                Err(error) => Err(error.to_string()),
            };
            Happening::Letter { token, result }
        });
        Ok(())
    }

    fn letter_written(&mut self, token: Token, result: Result<(), String>) -> anyhow::Result<()> {
        self.letters_writing -= 1;
        let now = self.shared.now();
        let letter = self.giving_up.get_mut(&token).context("a dead letter without its story")?;
        let Err(detail) = result else {
            let (window, progress) = (&mut self.window, &mut self.progress);
            let (reason, answer) = (letter.reason.as_str(), letter.answer.as_str());
            let (partition, destination) = (self.partition, self.shared.parts.group.name());
            let more = self.quiet.allows("gave up");
            self.lanes.given_up(token, |event| {
                window.remove(event.record.window_bytes());
                progress.settle(event.offset..event.offset + 1);
                if let Some(more) = more {
                    let offset = event.offset;
                    tracing::warn!(
                        destination,
                        partition,
                        offset,
                        reason,
                        answer,
                        more,
                        "gave up: kept as a dead letter"
                    );
                }
            });
            self.giving_up.remove(&token);
            self.dirty = true;
            return Ok(());
        };
        // Refused or unknown: it is written again, and readers fold the two. Its user waits, nobody else.
        letter.failures = letter.failures.saturating_add(1);
        let at = now.saturating_add(self.shared.config.backoff.delay(letter.failures, self.shared.random()));
        self.letters_due.insert((at, token));
        if let Some(more) = self.quiet.allows("letter") {
            let (partition, waiting) = (self.partition, self.letters_due.len());
            tracing::warn!(partition, waiting, more, "a dead letter cannot be written, its user waits: {detail}");
        }
        Ok(())
    }

    fn next_letter(&self) -> Option<Moment> {
        self.letters_due.first().map(|(at, _)| *at)
    }

    fn retry_letters(&mut self, now: Moment) -> anyhow::Result<()> {
        while let Some(&(at, token)) = self.letters_due.first()
            && at <= now
        {
            self.letters_due.pop_first();
            self.write_letter(token)?;
        }
        Ok(())
    }

    // ---- commits

    fn tick(&mut self, now: Moment) {
        if now < self.tick_at {
            return;
        }
        self.tick_at = now + self.shared.config.commit_interval;
        let stale = now.saturating_sub(self.committed_at) >= limits::COMMIT_UNCHANGED_INTERVAL;
        if self.committing || !(self.dirty || stale) {
            return;
        }
        (self.dirty, self.committing) = (false, true);
        let state = self.progress.state();
        let commit = self.commit(state.clone());
        self.outside.spawn(async move { Happening::Committed { result: commit.await, state } });
    }

    fn commit(&self, state: State) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let (group, partition) = (Arc::clone(&self.shared.parts.group), self.partition);
        async move { group.commit(partition, state).await }
    }
}

/// Whether a commit can never succeed: somebody else owns the place by now, or it lies outside the log.
fn is_final(failure: &Failure) -> bool {
    matches!(failure.code, "commit-fenced" | "commit-past-end")
}

/// Where the partition stands: what was committed, or where `--start` says, stored before anything is attempted.
async fn first_state(shared: &Shared, partition: u32) -> Result<State, Failure> {
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
        group.commit(partition, State::at(first)).await?;
        // Only from its commit on a group holds retention back: it may have passed the place just before.
        let earliest = log.earliest(partition).await?;
        if earliest <= first {
            return Ok(State::at(first));
        }
        first = earliest;
    }
}

impl Drop for Worker {
    /// A probe that nobody waits for any more is given back, so that another owner may probe.
    fn drop(&mut self) {
        if let Some(probe) = self.probing.take() {
            self.shared.breaker().abandoned(&probe);
            self.shared.breaker_moved.notify_waiters();
        }
    }
}
