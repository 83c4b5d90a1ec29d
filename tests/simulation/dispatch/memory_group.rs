//! A group in memory that keeps the contract of `eventd::group`. Partitions move in order (`Revoked`, `released`,
//! `Assigned`) or are lost with a session. Commits are fenced by the ownership under which they were sent, and may fail
//! in every way. The lease of a session ends before the next owner starts.

use crate::dispatch::oracle::{Life, TriesEnded};
use crate::dispatch::world::{Call, Handle, State as WorldState, World, WriteFault};
use eventd::BoxFuture;
use eventd::core::outcome::{Failure, FailureCode};
use eventd::core::progress::{OffsetReset, PartitionState};
use eventd::group::{Change, Group};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long a look for an offset reset takes if timers are far apart: just within the time that it may take.
const FAR_LOOK: Duration = Duration::from_secs(28);

/// The group's name: the destination's.
pub(crate) const NAME: &str = "file-1";

#[derive(Debug, Default)]
struct Partition {
    owner: Option<Life>,
    /// Grows with every owner. It fences commits of earlier ones.
    epoch: u64,
    /// The life that should own it.
    wanted: Option<Life>,
    revoked: bool,
    committed: Option<PartitionState>,
    requested: Option<OffsetReset>,
    /// Commits share one connection, so a commit that was sent later is never stored earlier.
    stored_until: Duration,
    commits_sent: u64,
    last_stored: u64,
    /// Whether a commit of this owner failed since the partition was revoked or the life was told to stop.
    commit_failed: bool,
}

#[derive(Debug, Default)]
struct Member {
    changes: VecDeque<(Change, Instant)>,
    session: Option<Duration>,
    /// The end of the session if the member cannot reach the group any more.
    cut_off: Option<Instant>,
    stopping: bool,
}

/// All members of the group, and the stored commits.
#[derive(Debug)]
pub(crate) struct Members {
    partitions: Vec<Partition>,
    members: BTreeMap<Life, Member>,
}

impl Members {
    pub(crate) fn new(partitions: u32) -> Self {
        Self { partitions: (0..partitions).map(|_| Partition::default()).collect(), members: BTreeMap::new() }
    }

    /// A process joins. With a session, its attempts are bounded by a lease.
    pub(crate) fn join(&mut self, life: Life, session: Option<Duration>) {
        self.members.insert(life, Member { session, ..Member::default() });
    }

    /// The session ended, or the member left: its partitions are free. The member learns it after `told_after`.
    pub(crate) fn lose(&mut self, life: Life, told_after: Duration) {
        let at = Instant::now() + told_after;
        let Some(member) = self.members.get_mut(&life) else { return };
        for (part, number) in self.partitions.iter_mut().zip(0u32..) {
            if part.owner == Some(life) {
                (part.owner, part.revoked) = (None, false);
                member.changes.push_back((Change::Lost(number), at));
            }
        }
    }

    /// A process has ended.
    pub(crate) fn forget(&mut self, life: Life) {
        self.lose(life, Duration::ZERO);
        self.members.remove(&life);
    }

    /// No heartbeat arrives from now on. Returns the end of the session.
    pub(crate) fn cut_off(&mut self, life: Life) -> Option<Instant> {
        let member = self.members.get_mut(&life)?;
        member.cut_off = Some(Instant::now() + member.session?);
        member.cut_off
    }

    /// Heartbeats arrive again.
    pub(crate) fn reconnect(&mut self, life: Life) {
        if let Some(member) = self.members.get_mut(&life) {
            member.cut_off = None;
        }
    }

    /// The life drains. From now on it matters whether its commits fail.
    pub(crate) fn stopping(&mut self, life: Life) {
        if let Some(member) = self.members.get_mut(&life) {
            member.stopping = true;
        }
        for part in self.partitions.iter_mut().filter(|part| part.owner == Some(life) && !part.revoked) {
            part.commit_failed = false;
        }
    }

    /// Stores a requested offset reset. Returns false if it was already applied.
    pub(crate) fn request_reset(&mut self, partition: u32, wanted: OffsetReset) -> bool {
        self.partitions[partition as usize].requested.replace(wanted) != Some(wanted)
    }

    /// Applies a reset if the partition has no owner. Returns the resulting state.
    pub(crate) fn apply(&mut self, partition: u32, wanted: OffsetReset) -> Option<PartitionState> {
        let part = &mut self.partitions[partition as usize];
        let is_empty = part.owner.is_none();
        let state = part.committed.as_mut().filter(|state| is_empty && state.lacks(&wanted))?;
        *state = state.with_reset(&wanted);
        Some(state.clone())
    }

    /// What is stored for each partition.
    pub(crate) fn committed(&self) -> Vec<Option<PartitionState>> {
        self.partitions.iter().map(|part| part.committed.clone()).collect()
    }

    /// The last requested reset of each partition.
    pub(crate) fn requested(&self) -> Vec<Option<OffsetReset>> {
        self.partitions.iter().map(|part| part.requested).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The end of this life's lease. `None` if it is not a member or has no session.
    pub(crate) fn lease_deadline(&self, life: Life) -> Option<Instant> {
        let member = self.members.get(&life)?;
        Some(member.cut_off.unwrap_or(Instant::now() + member.session?))
    }

    pub(crate) fn has_committed(&self, partition: u32) -> bool {
        self.partitions[partition as usize].committed.is_some()
    }

    pub(crate) fn set_owner(&mut self, partition: u32, life: Option<Life>) {
        self.partitions[partition as usize].wanted = life;
    }

    /// Whether every partition is owned by the life that should own it.
    pub(crate) fn is_balanced(&self) -> bool {
        self.partitions.iter().all(|part| part.owner.is_some() && part.owner == part.wanted)
    }

    /// Revokes partitions from lives that should not own them, and assigns the free ones. Returns the number of revoked
    /// partitions.
    pub(crate) fn balance(&mut self) -> u64 {
        let now = Instant::now();
        let mut revoked = 0;
        for (part, number) in self.partitions.iter_mut().zip(0u32..) {
            match (part.owner, part.wanted) {
                (Some(owner), wanted) if wanted != Some(owner) => {
                    if let Some(member) = self.members.get_mut(&owner)
                        && !std::mem::replace(&mut part.revoked, true)
                    {
                        part.commit_failed = false;
                        member.changes.push_back((Change::Revoked(number), now));
                        revoked += 1;
                    }
                }
                (None, Some(wanted)) => {
                    let member = self.members.get_mut(&wanted);
                    if let Some(member) = member.filter(|member| member.cut_off.is_none() && !member.stopping) {
                        part.owner = Some(wanted);
                        part.epoch += 1;
                        (part.revoked, part.commit_failed) = (false, false);
                        member.changes.push_back((Change::Assigned(number), now));
                    }
                }
                _ => {}
            }
        }
        revoked
    }
}

/// The group as one life of dispatch sees it.
#[derive(Debug)]
pub(crate) struct MemoryGroup(pub(crate) Handle);

/// A commit in flight. If its caller drops it, it may be stored all the same; this was decided before.
struct PendingWrite<'a> {
    handle: &'a Handle,
    partition: u32,
    sent: SentCommit,
    state: Option<PartitionState>,
}

/// How a commit was sent.
#[derive(Debug, Clone, Copy)]
struct SentCommit {
    /// The ownership under which it was sent.
    epoch: u64,
    number: u64,
    at: Duration,
}

impl Drop for PendingWrite<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            let now = self.handle.world.now();
            let mut world = self.handle.world.lock();
            if self.sent.number > world.members.partitions[self.partition as usize].last_stored {
                // Refused or stored: the caller no longer waits for the answer.
                let _not_awaited = store(&mut world, self.handle.life, self.partition, self.sent, state, now);
            }
        }
    }
}

/// Tells the oracle when a commit ends, however it ends.
struct CommitInFlight<'a> {
    handle: &'a Handle,
    partition: u32,
}

impl Drop for CommitInFlight<'_> {
    fn drop(&mut self) {
        let now = self.handle.world.now();
        self.handle.world.lock().oracle.commit_ended(self.handle.life, self.partition, now);
    }
}

/// Ends a write to a group: stores it unless it is lost, and answers as its fault says.
pub(super) async fn finish_write<T>(
    handle: &Handle,
    fault: Option<WriteFault>,
    after: Duration,
    store: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let unknown = || Failure::unknown(FailureCode::GroupUnavailable, "no answer from the group");
    match fault {
        Some(WriteFault::Refused) => {
            Err(Failure::refused(FailureCode::GroupUnavailable, "the group accepts no commits now"))
        }
        Some(WriteFault::UnknownLost | WriteFault::UnknownLate) => Err(unknown()),
        Some(WriteFault::UnknownStored) => {
            store()?;
            Err(unknown())
        }
        None => {
            let stored = store()?;
            handle.sleep(after).await;
            handle.end().await;
            Ok(stored)
        }
    }
}

/// Leaves out the number of the reset, which depends on the real time.
fn shown(state: &PartitionState) -> String {
    let PartitionState { watermark, settled, last_reset, .. } = state;
    format!("{watermark} {settled:?}{}", if last_reset.is_some() { " moved" } else { "" })
}

fn store(
    world: &mut WorldState,
    life: Life,
    partition: u32,
    sent: SentCommit,
    state: PartitionState,
    now: Duration,
) -> Result<(), Failure> {
    let end = state.settled.last().map_or(state.watermark, |range| range.end);
    if end > world.topics.latest(partition) {
        world.oracle.fail(format!("life {life} commits {state:?} of partition {partition}, past the end"));
        return Err(Failure::refused(FailureCode::CommitPastEnd, "the commit is past the end of the log"));
    }
    let part = &mut world.members.partitions[partition as usize];
    if part.owner != Some(life) || part.epoch != sent.epoch {
        return Err(Failure::refused(FailureCode::GroupUnavailable, "the partition has another owner"));
    }
    // Before the oracle knows the commit: it may begin the ownership anew.
    let ended = |user| world.oracle.tries_ended(life, partition, user, sent.at);
    let ended: Vec<TriesEnded> = world.users.iter().map(ended).collect();
    world.oracle.committed(Some(life), partition, &state, now);
    let parked_users = state.users.values().filter(|user| user.parked.is_some()).count();
    world.parked_users_max = world.parked_users_max.max(parked_users);
    let covered = world.commands.covered(partition);
    if let Err(wrong) = world.commands.committed(partition, &state, &world.users, &ended) {
        world.oracle.fail(format!("life {life}: {wrong}"));
    }
    world.commands.tell(partition, &mut world.oracle, covered, &world.users, now);
    part.committed = Some(state);
    part.last_stored = sent.number;
    Ok(())
}

impl Group for MemoryGroup {
    fn name(&self) -> &str {
        NAME
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(async move {
            let Handle { world, life } = &self.0;
            let way = self.0.begin(Call::Changed).await;
            if world.lock().membership_ends(*life, way) {
                let now = world.now();
                let mut state = world.lock();
                state.members.forget(*life);
                state.oracle.lost_all(*life, now);
                world.happened.notify_one();
                return Err(Failure::refused(FailureCode::GroupUnavailable, "the group no longer has this member"));
            }
            loop {
                let moved = world.members_changed.notified();
                let next = world.lock().members.members.get(life).and_then(|member| member.changes.front().copied());
                match next {
                    Some((_, at)) if at > Instant::now() => tokio::time::sleep_until(at).await,
                    Some((change, _)) => {
                        self.0.end().await;
                        let now = world.now();
                        let mut guard = world.lock();
                        let state = &mut *guard;
                        if let Some(member) = state.members.members.get_mut(life) {
                            member.changes.pop_front();
                        }
                        state.note(now, *life, format_args!("{change:?}"));
                        match change {
                            Change::Assigned(partition) => state.oracle.assigned(*life, partition, now),
                            Change::Lost(partition) => state.oracle.lost(*life, partition, now),
                            Change::Revoked(partition) => state.oracle.revoked(*life, partition, now),
                        }
                        return Ok(change);
                    }
                    None => moved.await,
                }
            }
        })
    }

    fn released(&self, partition: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.0.end().await;
            let Handle { world, life } = &self.0;
            let now = world.now();
            let mut guard = world.lock();
            let state = &mut *guard;
            state.note(now, *life, format_args!("releases {partition}"));
            let part = &mut state.members.partitions[partition as usize];
            if part.owner == Some(*life) {
                state.oracle.released(*life, partition, !part.commit_failed, now);
                (part.owner, part.revoked) = (None, false);
                state.members.balance();
            }
            drop(guard);
            world.members_changed.notify_waiters();
        })
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        Box::pin(async move {
            let Handle { world, life } = &self.0;
            if !self.0.is_answered(Call::Committed).await {
                return Err(Failure::refused(FailureCode::GroupUnavailable, "no answer from the group"));
            }
            let mut state = world.lock();
            let committed = state.members.partitions[partition as usize].committed.clone();
            state.beginning.insert((*life, partition));
            state.oracle.began_with(*life, partition, committed.clone(), world.now());
            Ok(committed)
        })
    }

    fn commit(&self, partition: u32, state: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let Handle { world, life } = &self.0;
            let way = self.0.begin(Call::Commit).await;
            let now = world.now();
            let (before, after, fault, mut on_its_way) = {
                let mut guard = world.lock();
                let world = &mut *guard;
                world.oracle.commit_tried(*life, partition, now);
                world.note(now, *life, format_args!("commits in {partition}: {}", shown(&state)));
                let percent = world.rates.commit_fails;
                let fault = world.write_fault(way, percent, false);
                let (before, after, kept) = (world.delay(), world.delay(), world.random.chance(50));
                let part = &mut world.members.partitions[partition as usize];
                part.commit_failed |= fault.is_some();
                part.stored_until = part.stored_until.max(now + before);
                let before = part.stored_until - now;
                part.commits_sent += 1;
                let on_its_way = PendingWrite {
                    handle: &self.0,
                    partition,
                    sent: SentCommit { epoch: part.epoch, number: part.commits_sent, at: now },
                    state: kept.then(|| state.clone()),
                };
                (before, after, fault, on_its_way)
            };
            let _in_flight = CommitInFlight { handle: &self.0, partition };
            self.0.sleep(before).await;
            on_its_way.state = None;
            let sent = on_its_way.sent;
            finish_write(&self.0, fault, after, || store(&mut world.lock(), *life, partition, sent, state, world.now()))
                .await
        })
    }

    fn requested_reset(&self, partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        Box::pin(async move {
            if !self.0.is_answered(Call::Requested).await {
                return Err(Failure::refused(FailureCode::GroupUnavailable, "no answer from the group"));
            }
            let (found, waits) = {
                let state = self.0.world.lock();
                (state.members.partitions[partition as usize].requested, state.rates.far_timers)
            };
            self.0.sleep(if waits { FAR_LOOK } else { Duration::ZERO }).await;
            self.0.end().await;
            Ok(found)
        })
    }

    fn lease_deadline(&self) -> Option<Instant> {
        self.0.world.lock().members.lease_deadline(self.0.life)
    }

    /// The driver revokes the partitions of a process that it stops.
    fn drain(&self) {}

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.0.end().await;
            let Handle { world, life } = &self.0;
            let now = world.now();
            let mut state = world.lock();
            state.note(now, *life, format_args!("leaves"));
            state.members.forget(*life);
            drop(state);
            world.happened.notify_one();
        })
    }
}

impl World {
    /// Revokes and assigns partitions as wanted. Returns the number of revocations.
    pub(crate) fn balance(&self) -> u64 {
        let revoked = self.lock().members.balance();
        self.members_changed.notify_waiters();
        revoked
    }
}
