//! Commands of operators in the simulation, and what they promise:
//!
//! - Each command is applied once in each partition, in the order of the commands, also around crashes.
//! - The state that is committed has exactly the effects of the commands before its offset.
//! - From the commit of a pause to a later resume, no attempt starts in the partition. A user that is held is not
//!   attempted either.
//! - A user that an operator holds is held until an operator releases it. So is one that `--on-exhausted hold` holds,
//!   which it does only if the tries of the user's next event have ended.
//! - From the commit of a rate to the next command, no process attempts more events than the rate and its burst.
//! - A commit gives up events of a user only below the offset of a command that it covers. (The oracle judges which of
//!   them become dead letters.)
//! - After the faults every command is applied.

use crate::dispatch::oracle::{ControlView, Oracle, TriesEnded, User};
use eventd::core::control::{ControlCommand, ControlRecord, UserAction};
use eventd::core::event::Record;
use eventd::core::progress::{ParkedUser, PartitionState};
use eventd::dispatch::commands::record::encode;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// The topic of the commands.
pub(crate) const CONTROL: &str = "user-events.file-1.control";

/// A command as an operator gives it to all partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Given {
    Pause,
    Resume,
    /// Events an hour.
    Rate(Option<u64>),
    Probe,
    /// A record that is not a command.
    Garbage,
    /// The number of the user in the scenario.
    User {
        user: usize,
        action: UserAction,
    },
}

impl Given {
    /// The record that `eventd control` would write.
    pub(crate) fn record(self, number: u64, at_ms: i64, users: &[User], topic: &str, destination: &str) -> Record {
        let command = match self {
            Self::Pause => ControlCommand::Pause,
            Self::Resume => ControlCommand::Resume,
            Self::Rate(per_hour) => ControlCommand::Rate { per_hour },
            Self::Probe => ControlCommand::Probe,
            Self::Garbage => return Record::new(None, Some(b"not a command"), &[], at_ms),
            Self::User { user, action } => {
                ControlCommand::User { user: users[user].clone().unwrap_or_default().into(), action }
            }
        };
        let (id, by) = (format!("command-{number}").into(), "ann@ops".into());
        let record = ControlRecord { id, at_ms, by, reason: "".into(), command };
        encode(&record, topic, destination).expect("users of the simulation are UTF-8")
    }
}

/// What was commanded, and what of it is committed.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    partitions: Vec<CommandedPartition>,
    pub(crate) given: u64,
    pub(crate) applied: u64,
    /// The number of times that a user was held because the tries of its event had ended.
    pub(crate) held_by_policy: u64,
}

#[derive(Debug, Default)]
struct CommandedPartition {
    records: Vec<(i64, Given)>,
    /// When each of them was given.
    given_at: Vec<Duration>,
    committed: PartitionState,
    /// Whether the partition was paused at its first commit, and its rate then. `None`: there was no commit.
    began: Option<(bool, Option<u64>)>,
    /// Whether a user was held at any time.
    has_held: bool,
}

impl CommandedPartition {
    /// The commands at these offsets that hold or release this user.
    fn decisions(&self, user: usize, offsets: Range<i64>) -> impl Iterator<Item = UserAction> {
        self.records.iter().filter(move |(offset, _)| offsets.contains(offset)).filter_map(
            move |(_, given)| match given {
                Given::User { action: UserAction::GiveUp { .. }, .. } => None,
                Given::User { user: of, action } if *of == user => Some(*action),
                _ => None,
            },
        )
    }

    /// The commands before this offset that give up events: the number of the user, and the offset that ends them.
    fn give_ups(&self, next: i64) -> impl Iterator<Item = (usize, i64)> {
        self.records.iter().filter(move |(offset, _)| *offset < next).filter_map(|(_, given)| match given {
            Given::User { user, action: UserAction::GiveUp { below } } => Some((*user, *below)),
            _ => None,
        })
    }
}

/// Whether the destination is paused after these commands, and its rate.
fn folded(began: (bool, Option<u64>), commands: impl Iterator<Item = Given>) -> (bool, Option<u64>) {
    commands.fold(began, |(paused, rate), given| match given {
        Given::Pause => (true, rate),
        Given::Resume => (false, rate),
        Given::Rate(rate) => (paused, rate),
        Given::Probe | Given::Garbage | Given::User { .. } => (paused, rate),
    })
}

impl Commands {
    pub(crate) fn new(partitions: u32) -> Self {
        Self { partitions: (0..partitions).map(|_| CommandedPartition::default()).collect(), ..Self::default() }
    }

    pub(crate) fn given(&mut self, partition: u32, offset: i64, given: Given, now: Duration) {
        self.given += 1;
        let part = &mut self.partitions[partition as usize];
        part.records.push((offset, given));
        part.given_at.push(now);
    }

    /// Tells the oracle what holds in a partition now, for its rules about time. `before` is the number of commands that an
    /// earlier commit covered.
    pub(crate) fn tell(&self, partition: u32, oracle: &mut Oracle, before: i64, users: &[User], now: Duration) {
        let part = &self.partitions[partition as usize];
        if part.records.is_empty() && !part.has_held {
            return;
        }
        let next = part.committed.control.next;
        let records = || part.records.iter().zip(&part.given_at);
        let is_paused = part.committed.control.paused.is_some();
        let may_wait = |given: &Given| match given {
            Given::User { action: UserAction::GiveUp { .. }, .. } => true,
            Given::User { action: UserAction::Hold, .. } => is_paused,
            _ => false,
        };
        let waits_for_reading = records().any(|((offset, given), _)| *offset >= next && may_wait(given));
        let pending_since = records().find(|((offset, _), _)| *offset >= next).map(|(_, at)| *at);
        let held = users.iter().filter(|user| is_held(&part.committed, user)).cloned().collect();
        let rate_per_hour = part.committed.control.rate_per_hour;
        let mut given_up_below = BTreeMap::new();
        for (user, below) in part.give_ups(i64::MAX) {
            let highest = given_up_below.entry(users[user].clone()).or_insert(below);
            *highest = below.max(*highest);
        }
        let view = ControlView { pending_since, waits_for_reading, is_paused, rate_per_hour, held, given_up_below };
        oracle.controlled(partition, view, now);
        let has_failed = |offset: i64| part.committed.control.failed.iter().any(|failed| failed.offset == offset);
        for ((offset, given), at) in records().filter(|((offset, _), _)| *offset >= before) {
            let Given::User { user, action } = given else { continue };
            let (user, is_covered) = (&users[*user], *offset < next);
            match action {
                UserAction::Retry | UserAction::Release if is_covered || *at == now => {
                    oracle.loosened(partition, user, (action, *at), now);
                }
                UserAction::GiveUp { below } if is_covered && !has_failed(*offset) => {
                    oracle.give_up_stored(partition, user, *below);
                }
                UserAction::GiveUp { below } if !is_covered => oracle.give_up_commanded(partition, user, *below),
                _ => {}
            }
        }
    }

    /// The commands that a commit covers.
    pub(crate) fn covered(&self, partition: u32) -> i64 {
        self.partitions[partition as usize].committed.control.next
    }

    /// A commit was stored. `ended` says for each user whether `--on-exhausted hold` may hold it, or must. Returns what is
    /// wrong with the commit.
    pub(crate) fn committed(
        &mut self,
        partition: u32,
        state: &PartitionState,
        users: &[User],
        ended: &[TriesEnded],
    ) -> Result<(), String> {
        let of_state = (state.control.paused.is_some(), state.control.rate_per_hour);
        // A new partition begins with what partition 0 was commanded until a moment before.
        let may_begin = |began| {
            let first = &self.partitions[0].records;
            let prefixes = (0..=first.len()).map(|many| &first[..many]);
            partition == 0
                || prefixes
                    .map(|some| folded((false, None), some.iter().map(|(_, given)| *given)))
                    .any(|at| at == began)
        };
        if self.partitions[partition as usize].began.is_none() && state.control.next == 0 && !may_begin(of_state) {
            return Err(format!("partition {partition} begins with {:?}, as no operator commanded", state.control));
        }
        let part = &mut self.partitions[partition as usize];
        let began = *part.began.get_or_insert(if state.control.next == 0 { of_state } else { (false, None) });
        let (before, next) = (part.committed.control.next, state.control.next);
        let stored_before = std::mem::replace(&mut part.committed, state.clone());
        part.has_held |= users.iter().any(|user| is_held(state, user));
        if next < before {
            return Err(format!("a commit of partition {partition} goes back from command {before} to {next}"));
        }
        self.applied += part.records.iter().filter(|(offset, _)| (before..next).contains(offset)).count() as u64;
        let done = || part.records.iter().filter(|(offset, _)| *offset < next).map(|(_, given)| *given);
        if of_state != folded(began, done()) {
            let (paused, rate) = folded(began, done());
            return Err(format!(
                "a commit of partition {partition} up to command {next} says {:?}, but the commands say paused: {paused}, \
                 rate: {rate:?}",
                state.control
            ));
        }
        for (number, user) in users.iter().enumerate() {
            // A command that waited may have been applied before or after the tries ended.
            let waited = part.records.iter().any(|(offset, _)| *offset >= before);
            let actions = part.decisions(number, i64::MIN..next);
            let is_released = part.decisions(number, before..next).any(|action| action != UserAction::Hold);
            let is_commanded = actions.last() == Some(UserAction::Hold);
            let stays = is_held(&stored_before, user) && !is_released;
            let TriesEnded { possibly, certainly } = ended[number];
            let (is_held, must_be) = (is_held(state, user), is_commanded || stays || (certainly && !waited));
            if is_held && !must_be && !possibly || !is_held && must_be {
                return Err(format!(
                    "a commit of partition {partition} up to command {next} says that {user:?} is held: {is_held}. The \
                     commands hold it: {is_commanded}, it was held: {stays}, its tries have ended: {:?}",
                    ended[number]
                ));
            }
            self.held_by_policy += u64::from(is_held && !is_commanded && !stays);
            let given_up_below = parked(state, user).and_then(|parked| parked.give_up_below);
            if let Some(below) = given_up_below
                && part.give_ups(next).all(|given_up| given_up != (number, below))
            {
                return Err(format!(
                    "a commit of partition {partition} up to command {next} gives up the events of {user:?} below {below}, \
                     and no command says so"
                ));
            }
        }
        Ok(())
    }

    /// An attempt of these users starts. Returns why it must not.
    pub(crate) fn started<'a>(
        &self,
        partition: u32,
        keys: impl Iterator<Item = Option<&'a [u8]>>,
        users: &[User],
    ) -> Result<(), String> {
        let part = &self.partitions[partition as usize];
        let later = || part.records.iter().filter(|(offset, _)| *offset >= part.committed.control.next);
        if part.committed.control.paused.is_some() && !later().any(|(_, given)| *given == Given::Resume) {
            return Err(format!("an attempt starts in partition {partition}, which is paused"));
        }
        for key in keys {
            let user = key.map(<[u8]>::to_vec);
            let releases = |given: &Given| match given {
                Given::User { user: number, action: UserAction::Release | UserAction::Retry } => users[*number] == user,
                _ => false,
            };
            if is_held(&part.committed, &user) && !later().any(|(_, given)| releases(given)) {
                return Err(format!("an attempt of {user:?} starts in partition {partition}, although it is held"));
            }
        }
        Ok(())
    }

    /// Whether the last commit of this partition holds this user.
    pub(crate) fn holds(&self, partition: u32, user: &User) -> bool {
        is_held(&self.partitions[partition as usize].committed, user)
    }

    /// The users that some partition may hold because of a command.
    pub(crate) fn held_users(&self) -> Vec<usize> {
        let all = self.partitions.iter().flat_map(|part| &part.records);
        let held = all.filter_map(|(_, given)| match given {
            Given::User { user, action: UserAction::Hold } => Some(*user),
            _ => None,
        });
        let mut held: Vec<usize> = held.collect();
        held.sort_unstable();
        held.dedup();
        held
    }

    /// A partition that has not applied all commands.
    pub(crate) fn unfinished(&self) -> Option<String> {
        let mut parts = (0..).zip(&self.partitions);
        let waits = |part: &CommandedPartition| {
            part.records.last().is_some_and(|(offset, _)| part.committed.control.next <= *offset)
        };
        let (partition, part): (u32, _) = parts.find(|(_, part)| waits(part))?;
        Some(format!("partition {partition} has not applied the commands from {} on", part.committed.control.next))
    }
}

fn is_held(state: &PartitionState, user: &User) -> bool {
    parked(state, user).is_some_and(|parked| parked.held)
}

fn parked(state: &PartitionState, user: &User) -> Option<ParkedUser> {
    let key = user.as_deref().map(Into::into);
    state.users.get(&key).and_then(|user| user.parked)
}
