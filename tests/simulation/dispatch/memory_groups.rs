//! Groups by name, as a replay uses them: the destination's own group, whose position is read and reset from outside,
//! and groups that one process holds alone (a replay's progress, the marks of its dead letters).

use crate::dispatch::memory_group::{NAME, finish_write};
use crate::dispatch::oracle::{Life, Rules, claims};
use crate::dispatch::world::{Call, Handle, State as WorldState};
use eventd::BoxFuture;
use eventd::core::outcome::{Failure, FailureCode};
use eventd::core::progress::{OffsetReset, PartitionState};
use eventd::group::{Change, Group, Groups, JoinError, JoinOptions, PastCommits};
use eventd::log::Log;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// The group that records which dead letters were redriven.
pub(crate) const REDRIVEN: &str = "file-1.dead";
/// The prefix of the name of a replay's own group. The id of the replay follows.
const REPLAY: &str = "file-1.replay.";

/// The groups that one process holds alone.
#[derive(Debug, Default)]
pub(crate) struct ExclusiveGroups {
    groups: BTreeMap<String, Held>,
}

#[derive(Debug, Default)]
struct Held {
    holder: Option<Life>,
    committed: BTreeMap<u32, PartitionState>,
}

impl ExclusiveGroups {
    /// What is stored for each partition.
    pub(crate) fn committed(&self, name: &str) -> Vec<Option<PartitionState>> {
        let Some(held) = self.groups.get(name) else { return Vec::new() };
        let partitions = held.committed.keys().last().map_or(0, |last| last + 1);
        (0..partitions).map(|partition| held.committed.get(&partition).cloned()).collect()
    }

    /// A process has ended.
    pub(crate) fn forget(&mut self, life: Life) {
        for held in self.groups.values_mut().filter(|held| held.holder == Some(life)) {
            held.holder = None;
        }
    }

    fn holds(&self, name: &str, life: Life) -> bool {
        self.groups.get(name).is_some_and(|held| held.holder == Some(life))
    }
}

/// All groups as one life of a replay sees them.
#[derive(Debug)]
pub(crate) struct MemoryGroups {
    pub(crate) handle: Handle,
    pub(crate) rules: Rules,
}

fn unavailable() -> JoinError {
    JoinError::Unavailable(Failure::refused(FailureCode::GroupUnavailable, "no answer from the group"))
}

impl MemoryGroups {
    /// Makes one write, which may fail in one of the ways of writes.
    async fn write<T>(&self, call: Call, effect: impl FnOnce(&mut WorldState) -> T) -> Result<T, JoinError> {
        let (handle, world) = (&self.handle, &self.handle.world);
        let way = handle.begin(call).await;
        let (before, after, fault) = {
            let mut state = world.lock();
            let percent = state.rates.commit_fails;
            (state.delay(), state.delay(), state.write_fault(way, percent, false))
        };
        handle.sleep(before).await;
        let written = finish_write(handle, fault, after, || Ok(effect(&mut world.lock())));
        written.await.map_err(JoinError::Unavailable)
    }
}

impl Groups for MemoryGroups {
    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<PartitionState>>, JoinError>> {
        Box::pin(async move {
            if !self.handle.is_answered(Call::Known).await {
                return Err(unavailable());
            }
            let mut state = self.handle.world.lock();
            let mut found = if name == NAME { state.members.committed() } else { state.groups.committed(name) };
            found.resize(state.topics.partitions(log.topic()), None);
            if name == NAME {
                state.replays.saw_known(self.handle.life, &found);
            }
            Ok(found)
        })
    }

    fn past_commits<'a>(
        &'a self,
        _name: &'a str,
        _log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<PastCommits, JoinError>> {
        unreachable!("a replay knows the name of its destination")
    }

    fn join<'a>(
        &'a self,
        _name: &'a str,
        _log: &'a Arc<dyn Log>,
        _options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        unreachable!("a replay joins its own groups, and no group of a destination")
    }

    fn is_owned<'a>(&'a self, _name: &'a str, _log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<bool, JoinError>> {
        unreachable!("only the wait of a command asks for it")
    }

    fn assigns_at_join(&self) -> bool {
        true
    }

    fn join_alone<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        _options: &'a JoinOptions,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>> {
        Box::pin(async move {
            if !self.handle.is_answered(Call::Join).await {
                return Err(unavailable());
            }
            let partitions = {
                let mut state = self.handle.world.lock();
                let held = state.groups.groups.entry(name.to_owned()).or_default();
                if held.holder.is_some() {
                    return Err(JoinError::Held { name: name.to_owned(), holder: None });
                }
                held.holder = Some(self.handle.life);
                state.topics.partitions(log.topic()) as u32
            };
            let group = HeldGroup {
                handle: self.handle.clone(),
                name: name.to_owned(),
                rules: self.rules.clone(),
                changes: Mutex::new((0..partitions).map(Change::Assigned).collect()),
            };
            self.handle.end().await;
            Ok(Arc::new(group) as Arc<dyn Group>)
        })
    }

    fn request_resets<'a>(
        &'a self,
        _name: &'a str,
        _log: &'a Arc<dyn Log>,
        moves: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<(), JoinError>> {
        Box::pin(self.write(Call::Request, move |state| {
            for (partition, wanted) in moves {
                if state.members.request_reset(*partition, *wanted) {
                    state.oracle.reset_requested(*partition, *wanted);
                }
            }
        }))
    }

    fn requested_resets<'a>(
        &'a self,
        _name: &'a str,
        _log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<OffsetReset>>, JoinError>> {
        Box::pin(async move {
            if !self.handle.is_answered(Call::Standing).await {
                return Err(unavailable());
            }
            Ok(self.handle.world.lock().members.requested())
        })
    }

    fn apply_resets_if_unowned<'a>(
        &'a self,
        _name: &'a str,
        _log: &'a Arc<dyn Log>,
        _digest: &'a str,
        moves: &'a BTreeMap<u32, OffsetReset>,
    ) -> BoxFuture<'a, Result<bool, JoinError>> {
        Box::pin(async move {
            let world = &self.handle.world;
            let applied = self.write(Call::Apply, |state| {
                let is_unowned = state.members.is_empty();
                for (partition, wanted) in moves.iter().filter(|_| is_unowned) {
                    if let Some(moved) = state.members.apply(*partition, *wanted) {
                        state.oracle.committed(None, *partition, &moved, world.now());
                    }
                }
                is_unowned
            });
            applied.await
        })
    }

    fn forget<'a>(&'a self, name: &'a str, _log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let forgotten = self.write(Call::Forget, |state| {
                if let Some(held) = state.groups.groups.get_mut(name) {
                    held.committed.clear();
                }
            });
            forgotten.await.map_err(|_| Failure::refused(FailureCode::GroupUnavailable, "no answer from the group"))
        })
    }
}

/// A group of which this life holds every partition.
#[derive(Debug)]
struct HeldGroup {
    handle: Handle,
    name: String,
    rules: Rules,
    changes: Mutex<VecDeque<Change>>,
}

impl HeldGroup {
    fn release(&self) {
        let mut state = self.handle.world.lock();
        if let Some(held) = state.groups.groups.get_mut(&self.name)
            && held.holder == Some(self.handle.life)
        {
            held.holder = None;
        }
    }

    /// Stores a commit if this life still holds the group.
    fn store(&self, partition: u32, commit: &PartitionState) -> Result<(), Failure> {
        let (life, now) = (self.handle.life, self.handle.world.now());
        let mut guard = self.handle.world.lock();
        let state = &mut *guard;
        if !state.groups.holds(&self.name, life) {
            return Err(Failure::refused(FailureCode::GroupUnavailable, "the group has another holder"));
        }
        if self.name == REDRIVEN {
            let before = state.groups.committed(REDRIVEN).get(partition as usize).cloned().flatten();
            let is_new =
                |offset: &i64| claims(commit, *offset) && !before.as_ref().is_some_and(|old| claims(old, *offset));
            let marked: Vec<i64> =
                state.topics.dead_letters(partition).map(|(offset, _)| offset).filter(is_new).collect();
            let wrong = marked.into_iter().find(|offset| !state.replays.has_redriven(partition, *offset));
            if let Some(offset) = wrong {
                state
                    .oracle
                    .fail(format!("life {life} marks the dead letter {offset} of {partition}, which was not redriven"));
            }
        } else if let Some(oracle) = state.replays.oracle_of(life) {
            oracle.committed(Some(life), partition, commit, now);
        }
        let held = state.groups.groups.entry(self.name.clone()).or_default();
        held.committed.insert(partition, commit.clone());
        Ok(())
    }
}

impl Drop for HeldGroup {
    fn drop(&mut self) {
        self.release();
    }
}

impl Group for HeldGroup {
    fn name(&self) -> &str {
        &self.name
    }

    fn changed(&self) -> BoxFuture<'_, Result<Change, Failure>> {
        Box::pin(async move {
            let Handle { world, life } = &self.handle;
            let way = self.handle.begin(Call::Changed).await;
            if world.lock().membership_ends(*life, way) {
                self.release();
                let now = world.now();
                if let Some(oracle) = world.lock().oracle_of(*life) {
                    oracle.lost_all(*life, now);
                }
                return Err(Failure::refused(FailureCode::GroupUnavailable, "the group no longer has this member"));
            }
            let next = self.changes.lock().expect("no thread panics while it holds the changes").pop_front();
            match next {
                Some(change) => Ok(change),
                None => std::future::pending().await,
            }
        })
    }

    fn released(&self, partition: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.handle.end().await;
            let (life, now) = (self.handle.life, self.handle.world.now());
            if let Some(oracle) = self.handle.world.lock().oracle_of(life) {
                oracle.released(life, partition, false, now);
            }
        })
    }

    fn committed(&self, partition: u32) -> BoxFuture<'_, Result<Option<PartitionState>, Failure>> {
        Box::pin(async move {
            if !self.handle.is_answered(Call::Committed).await {
                return Err(Failure::refused(FailureCode::GroupUnavailable, "no answer from the group"));
            }
            let (life, now) = (self.handle.life, self.handle.world.now());
            let mut state = self.handle.world.lock();
            let committed = state.groups.committed(&self.name).get(partition as usize).cloned().flatten();
            if self.name != REDRIVEN
                && let Some(oracle) = state.oracle_of(life)
            {
                oracle.began_with(life, partition, committed.clone(), now);
            }
            Ok(committed)
        })
    }

    fn commit(&self, partition: u32, commit: PartitionState) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let Handle { world, life } = &self.handle;
            let way = self.handle.begin(Call::Commit).await;
            let now = world.now();
            let (before, after, fault) = {
                let mut guard = world.lock();
                let state = &mut *guard;
                if let Some(id) = self.name.strip_prefix(REPLAY) {
                    state.replay_begins(*life, id, &self.rules, now);
                    if let Some(oracle) = state.oracle_of(*life) {
                        oracle.commit_tried(*life, partition, now);
                    }
                }
                let what = if self.name == REDRIVEN { "marks dead letters" } else { "commits its progress" };
                let PartitionState { watermark, settled, .. } = &commit;
                state.note(now, *life, format_args!("{what} in {partition}: {watermark} {settled:?}"));
                let percent = state.rates.commit_fails;
                (state.delay(), state.delay(), state.write_fault(way, percent, false))
            };
            self.handle.sleep(before).await;
            finish_write(&self.handle, fault, after, || self.store(partition, &commit)).await
        })
    }

    fn requested_reset(&self, _partition: u32) -> BoxFuture<'_, Result<Option<OffsetReset>, Failure>> {
        unreachable!("the position of a replay is never reset")
    }

    fn lease_deadline(&self) -> Option<Instant> {
        None
    }

    fn drain(&self) {}

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.handle.end().await;
            self.release();
        })
    }
}
