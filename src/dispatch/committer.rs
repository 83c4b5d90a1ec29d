//! The progress of one partition, and how much of it is stored in the group.
//!
//! ```text
//!  settled offsets ──▶ Progress ── each tick, if something changed ──▶ group.commit ──▶ stored
//!                                                                           └─ failed: the next commit includes it
//! ```
//!
//! Every commit stores the whole state of one moment: the watermark, the settled map, and the listed users. One commit runs
//! at a time. The larger the state is, the longer is the time between two commits, so that commits take a bounded share of
//! what the log and the group can do.

use super::Start;
use super::commands::initial_control;
use super::context::DispatchContext;
use super::partition_log::PartitionLog;
use crate::core::Moment;
use crate::core::control::{ControlEffect, ControlRecord};
use crate::core::outcome::Failure;
use crate::core::parking::listed_bytes;
use crate::core::progress::{CommandFailure, ControlState, ListedUsers, OffsetReset, PartitionState, Progress};
use crate::group::is_final;
use crate::limits::COMMIT_UNCHANGED_INTERVAL;
use std::ops::Range;
use std::time::Duration;

/// A state of more bytes than this is committed at most once a second. It does not fit into the metadata of a commit on
/// Kafka.
const SMALL_STATE_BYTES: usize = 4_096;

/// The time between two commits of a larger state, for each of its MB, and at least.
const COMMIT_INTERVAL_PER_MB: Duration = Duration::from_secs(1);

/// About how many bytes a range of the settled map takes.
const RANGE_BYTES: usize = 5;

/// What is settled in one partition, and what of it is stored.
pub(super) struct Committer {
    progress: Progress,
    /// The last state that is known to be stored.
    stored: PartitionState,
    stored_at: Moment,
    is_committing: bool,
    /// Something was settled since the last commit began, or that commit failed.
    has_changes: bool,
    interval: Duration,
    next_tick_at: Moment,
    /// No commit begins before.
    next_commit_at: Moment,
}

impl Committer {
    /// Continues from a state that is stored.
    pub(super) fn new(stored: PartitionState, interval: Duration, now: Moment) -> Self {
        let mut progress = Progress::new(&stored);
        // The reader keeps the list, and passes it to each commit.
        progress.take_users();
        Self {
            progress,
            stored,
            stored_at: now,
            is_committing: false,
            has_changes: false,
            interval,
            next_tick_at: now + interval,
            next_commit_at: now,
        }
    }

    /// Something changed that a commit has to store.
    pub(super) fn has_changed(&mut self) {
        self.has_changes = true;
    }

    /// What is settled. After a change, call [`has_changed`](Self::has_changed).
    pub(super) fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// Settles these offsets: events that were delivered or given up, or offsets without an event.
    pub(super) fn settle(&mut self, offsets: Range<i64>) {
        self.has_changes |= !offsets.is_empty();
        self.progress.settle(offsets);
    }

    /// The state that a commit would store now, with these listed users.
    pub(super) fn state(&self, users: ListedUsers) -> PartitionState {
        PartitionState { users, ..self.progress.state() }
    }

    /// The last state that is known to be stored.
    pub(super) fn stored(&self) -> &PartitionState {
        &self.stored
    }

    /// What of the control topic has been applied.
    pub(super) fn control(&self) -> &ControlState {
        self.progress.control()
    }

    /// Applies the command at this offset of the control topic. The next commit stores that it was applied.
    pub(super) fn apply_command(&mut self, offset: i64, command: &ControlRecord) -> ControlEffect {
        self.has_changes = true;
        self.progress.control_mut().apply(offset, command)
    }

    /// The command at this offset of the control topic is passed without its effect. The next commit says so.
    pub(super) fn fail_command(&mut self, offset: i64, why: CommandFailure) {
        self.has_changes = true;
        self.progress.control_mut().fail(offset, why);
    }

    /// There are no more commands before this offset of the control topic.
    pub(super) fn pass_commands(&mut self, next: i64) {
        if next != self.control().next {
            self.has_changes = true;
            self.progress.control_mut().pass(next);
        }
    }

    pub(super) fn is_committing(&self) -> bool {
        self.is_committing
    }

    pub(super) fn next_tick_at(&self) -> Moment {
        self.next_tick_at
    }

    /// Whether a tick is due. The next one is due an interval later.
    pub(super) fn tick(&mut self, now: Moment) -> bool {
        let is_due = now >= self.next_tick_at;
        if is_due {
            self.next_tick_at = now + self.interval;
        }
        is_due
    }

    /// The state to commit now, if a commit is needed and none is running. An unchanged state is stored again once an
    /// hour, because brokers forget groups that do not commit. `users` returns the listed users.
    ///
    /// `is_caught_up`: everything that was read is settled. If the settled map is small too, the state is small, however large
    /// the last one was.
    pub(super) fn start_commit(
        &mut self,
        is_caught_up: bool,
        users: impl FnOnce() -> ListedUsers,
        now: Moment,
    ) -> Option<PartitionState> {
        let is_old = now.saturating_sub(self.stored_at) >= COMMIT_UNCHANGED_INTERVAL;
        let is_small = is_caught_up && settled_bytes(self.progress.settled_ranges()) <= SMALL_STATE_BYTES;
        let is_too_early = now < self.next_commit_at && !is_small;
        if self.is_committing || is_too_early || !(self.has_changes || is_old) {
            return None;
        }
        (self.has_changes, self.is_committing) = (false, true);
        let state = self.state(users());
        self.next_commit_at = now + commit_interval(&state);
        Some(state)
    }

    /// Takes the result of the commit that [`start_commit`](Self::start_commit) began.
    ///
    /// # Errors
    /// No later commit can succeed.
    pub(super) fn commit_ended(
        &mut self,
        state: PartitionState,
        result: Result<(), Failure>,
        log: &PartitionLog,
        now: Moment,
    ) -> Result<(), Failure> {
        self.is_committing = false;
        match result {
            Ok(()) => {
                self.set_stored(state);
                self.stored_at = now;
            }
            Err(failure) if is_final(&failure) => return Err(failure),
            Err(failure) => {
                self.has_changes = true;
                if let Some(suppressed) = log.allows("commit") {
                    tracing::warn!(
                        destination = log.destination,
                        partition = log.partition,
                        suppressed,
                        "a commit failed; the next commit includes this progress: {failure}"
                    );
                }
            }
        }
        Ok(())
    }

    /// This state is stored.
    pub(super) fn set_stored(&mut self, state: PartitionState) {
        self.stored = state;
    }

    /// The commit in flight was cut off. It may be stored or not.
    pub(super) fn commit_aborted(&mut self) {
        self.is_committing = false;
    }

    /// Applies an offset reset to the progress. It is not stored yet.
    pub(super) fn apply(&mut self, reset: &OffsetReset, users: ListedUsers) -> PartitionState {
        let state = self.state(users).with_reset(reset);
        self.progress = Progress::new(&state);
        state
    }
}

/// About how many bytes the settled map takes.
fn settled_bytes(ranges: usize) -> usize {
    ranges.saturating_mul(RANGE_BYTES)
}

/// The shortest time between this commit and the next one. It grows with the bytes that the state takes, about.
fn commit_interval(state: &PartitionState) -> Duration {
    let bytes = settled_bytes(state.settled.len()).saturating_add(listed_bytes(&state.users));
    if bytes <= SMALL_STATE_BYTES {
        return Duration::ZERO;
    }
    COMMIT_INTERVAL_PER_MB.saturating_mul(u32::try_from(bytes >> 20).unwrap_or(u32::MAX).max(1))
}

/// The state at which the partition begins: what was committed, or what `--start` says. Either is stored before the first
/// attempt, so from then on "no commit" means "new group".
pub(super) async fn initial_state(context: &DispatchContext, partition: u32) -> Result<PartitionState, Failure> {
    let group = &context.parts.group;
    if let Some(state) = group.committed(partition).await? {
        // Storing it again shows that this process may commit before it delivers anything.
        group.commit(partition, state.clone()).await?;
        return Ok(state);
    }
    let log = &context.parts.log;
    let mut first = match context.config.start {
        Start::Earliest => log.earliest(partition).await?,
        Start::Latest => log.latest(partition).await?,
    };
    let control = match context.is_controlled {
        true => initial_control(&context.parts, &context.shared_control, partition).await?,
        false => ControlState::default(),
    };
    loop {
        let state = PartitionState { control: control.clone(), ..PartitionState::at(first) };
        group.commit(partition, state.clone()).await?;
        // A group holds back retention only from its first commit. Retention may have passed this offset just before it.
        let earliest = log.earliest(partition).await?;
        if earliest <= first {
            return Ok(state);
        }
        first = earliest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::outcome::FailureCode;
    use crate::core::progress::{ParkedUser, UserState};

    const INTERVAL: Duration = Duration::from_millis(200);

    fn committer() -> Committer {
        Committer::new(PartitionState::at(10), INTERVAL, Moment::ZERO)
    }

    fn log() -> PartitionLog {
        PartitionLog::new("dest", "events".into(), 0)
    }

    #[test]
    fn nothing_is_committed_while_nothing_changes_until_an_hour_has_passed() {
        let mut committer = committer();
        committer.settle(12..12);
        assert_eq!(committer.start_commit(false, ListedUsers::new, INTERVAL), None);
        let an_hour = COMMIT_UNCHANGED_INTERVAL;
        assert_eq!(committer.start_commit(false, ListedUsers::new, an_hour), Some(PartitionState::at(10)));
        committer.commit_ended(PartitionState::at(10), Ok(()), &log(), an_hour).unwrap();
        assert_eq!(committer.start_commit(false, ListedUsers::new, an_hour + INTERVAL), None);
    }

    #[test]
    fn one_commit_runs_at_a_time_and_the_next_one_includes_what_was_settled_meanwhile() {
        let mut committer = committer();
        committer.settle(10..11);
        let state = committer.start_commit(false, ListedUsers::new, INTERVAL).unwrap();
        assert_eq!(state, PartitionState::at(11));
        committer.settle(11..12);
        assert_eq!(committer.start_commit(false, ListedUsers::new, INTERVAL), None, "one commit runs");
        committer.commit_ended(state, Ok(()), &log(), INTERVAL).unwrap();
        assert_eq!(committer.stored(), &PartitionState::at(11));
        assert_eq!(committer.start_commit(false, ListedUsers::new, INTERVAL), Some(PartitionState::at(12)));
    }

    #[test]
    fn progress_of_a_failed_commit_is_in_the_next_one() {
        let mut committer = committer();
        committer.settle(10..11);
        let state = committer.start_commit(false, ListedUsers::new, INTERVAL).unwrap();
        let failure = Failure::unknown(FailureCode::GroupUnavailable, "no answer");
        committer.commit_ended(state, Err(failure), &log(), INTERVAL).unwrap();
        assert_eq!(committer.stored(), &PartitionState::at(10));
        assert_eq!(committer.start_commit(false, ListedUsers::new, INTERVAL), Some(PartitionState::at(11)));
    }

    #[test]
    fn a_large_state_is_committed_less_often() {
        let interval = |users: u32| {
            let user = |n: u32| {
                (
                    Some(n.to_be_bytes().as_slice().into()),
                    UserState { parked: Some(ParkedUser::default()), failed: None },
                )
            };
            let state = PartitionState { users: (0..users).map(user).collect(), ..PartitionState::at(0) };
            commit_interval(&state).as_secs()
        };
        assert_eq!([0, 10, 1_000, 100_000].map(interval), [0, 0, 1, 3]);
        let mut committer = committer();
        let users = || {
            (0..1_000u32)
                .map(|n| {
                    (
                        Some(n.to_be_bytes().as_slice().into()),
                        UserState { parked: Some(ParkedUser::default()), failed: None },
                    )
                })
                .collect()
        };
        committer.settle(10..11);
        let state = committer.start_commit(false, users, INTERVAL).unwrap();
        committer.commit_ended(state, Ok(()), &log(), INTERVAL).unwrap();
        committer.settle(11..12);
        assert_eq!(committer.start_commit(false, users, 4 * INTERVAL), None);
        assert!(committer.start_commit(true, ListedUsers::new, 4 * INTERVAL).is_some(), "it is small now");
        committer.commit_aborted();
        committer.settle(12..13);
        assert!(committer.start_commit(false, users, 10 * INTERVAL).is_some());
    }

    #[test]
    fn a_large_settled_map_is_committed_less_often_even_if_nothing_is_in_memory() {
        let mut committer = committer();
        for n in 0..1_000 {
            committer.settle(12 + 2 * n..13 + 2 * n);
        }
        let state = committer.start_commit(true, ListedUsers::new, INTERVAL).unwrap();
        committer.commit_ended(state, Ok(()), &log(), INTERVAL).unwrap();
        committer.settle(3_000..3_001);
        assert_eq!(committer.start_commit(true, ListedUsers::new, 4 * INTERVAL), None);
        committer.settle(10..3_000);
        assert!(committer.start_commit(true, ListedUsers::new, 4 * INTERVAL).is_some(), "it is small now");
    }

    #[test]
    fn a_tick_is_due_once_an_interval() {
        let mut committer = committer();
        assert!(!committer.tick(INTERVAL / 2));
        assert!(committer.tick(INTERVAL) && !committer.tick(INTERVAL));
        assert_eq!(committer.next_tick_at(), 2 * INTERVAL);
    }
}
