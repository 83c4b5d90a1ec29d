//! The oracle of one replay: the same promises, for the events of the replay.
//!
//! A replay is a dispatch under another name. So its oracle is another [`Oracle`], whose log contains only the events
//! that the replay must deliver. An event that it should not try is then "not in the log", and one that it leaves out
//! is "not settled". Dead letters have their own offsets in this log, and are delivered with the offsets of their
//! events.

use super::deliveries::source;
use super::{DeliveredRun, Entry, Life, Oracle, Rules, claims};
use eventd::core::event::Record;
use std::collections::BTreeMap;
use std::time::Duration;

const REPLAY: &str = "eventd-replay";
const ID: &str = "eventd-id";
const ATTEMPTS: &str = "eventd-attempts";

/// How the events of a replay look.
#[derive(Debug)]
pub(super) struct ReplayView {
    id: String,
    /// Whether they are dead letters.
    dead: bool,
    /// For dead letters: the letters of each event, by the place of the event.
    letters: BTreeMap<(u32, i64), Vec<i64>>,
}

impl Oracle {
    /// The oracle of a replay with these events in each partition, whose source partitions end at `ends`.
    pub(crate) fn of_replay(
        rules: Rules,
        id: &str,
        dead: bool,
        expected: &[BTreeMap<i64, Record>],
        ends: &[i64],
        live: &Self,
        now: Duration,
    ) -> Self {
        let mut oracle = Self::new(Rules { start_latest: false, ..rules }, expected.len() as u32);
        let mut letters: BTreeMap<(u32, i64), Vec<i64>> = BTreeMap::new();
        for ((expected, end), partition) in expected.iter().zip(ends).zip(0u32..) {
            for (offset, record) in expected {
                oracle.appended(partition, *offset, record, now);
                if let Some((_, event)) = source(record).ok().filter(|_| dead) {
                    letters.entry((partition, event)).or_default().push(*offset);
                }
            }
            oracle.passed(partition, *end);
        }
        oracle.health = live.health.of_newcomer();
        oracle.timing = None;
        oracle.replay_view = Some(ReplayView { id: id.to_owned(), dead, letters });
        oracle
    }

    /// The events that are left in the partition, with their offsets.
    pub(crate) fn records_left(&self, partition: u32) -> impl Iterator<Item = (i64, &Record)> {
        let entries = self.partitions[partition as usize].entries.iter();
        entries.filter(|(_, entry)| !entry.trimmed).map(|(offset, entry)| (*offset, &entry.record))
    }

    pub(crate) fn is_of_dead_letters(&self) -> bool {
        self.replay_view.as_ref().is_some_and(|replay_view| replay_view.dead)
    }

    /// Whether this is one of its events, and settled.
    pub(crate) fn has_settled(&self, partition: u32, offset: i64) -> bool {
        self.entry(partition, offset).is_some_and(|entry| entry.settled.is_some())
    }

    /// Another replay has redriven these dead letters, so they are no longer part of this one.
    pub(crate) fn redriven_elsewhere(&mut self, partition: u32, is_redriven: impl Fn(i64) -> bool, now: Duration) {
        let entries = self.partitions[partition as usize].entries.keys();
        let redriven: Vec<i64> = entries.copied().filter(|offset| is_redriven(*offset)).collect();
        for offset in redriven {
            self.settle(partition, offset, now);
        }
    }

    fn entry(&self, partition: u32, offset: i64) -> Option<&Entry> {
        self.partitions.get(partition as usize)?.entries.get(&offset)
    }

    /// Replaces each event's offset with its offset in this oracle's log.
    pub(crate) fn in_place(&self, life: Life, partition: u32, mut runs: Vec<DeliveredRun>) -> Vec<DeliveredRun> {
        for run in &mut runs {
            let mut used = Vec::new();
            for event in &mut run.events {
                event.offset = self.place(life, partition, event.offset, &used);
                used.push(event.offset);
            }
        }
        runs
    }

    /// The dead letter of the event at `offset` that its owner works on: the first that it has not done. In all other
    /// cases the offset itself.
    pub(super) fn place(&self, life: Life, partition: u32, offset: i64, used: &[i64]) -> i64 {
        let Some(replay_view) = self.replay_view.as_ref().filter(|replay_view| replay_view.dead) else { return offset };
        let Some(letters) = replay_view.letters.get(&(partition, offset)) else { return -1 };
        let owned = self.owned.get(&(life, partition));
        let is_done = |letter: &i64| {
            used.contains(letter)
                || owned.is_some_and(|owned| {
                    owned.done.contains_key(letter)
                        || owned.began_with.as_ref().is_some_and(|state| claims(state, *letter))
                })
        };
        let last = letters.last().copied().unwrap_or(-1);
        letters.iter().copied().find(|letter| !is_done(letter)).unwrap_or(last)
    }

    /// The event that a dead letter about the one at `offset` gives up. `None` if this cannot be known.
    pub(super) fn given_up_at(&self, partition: u32, offset: i64) -> Option<i64> {
        let Some(replay_view) = self.replay_view.as_ref().filter(|replay_view| replay_view.dead) else {
            return Some(offset);
        };
        let letters = replay_view.letters.get(&(partition, offset))?;
        let owners = || self.owned.iter().filter(|((_, of), _)| *of == partition).map(|(_, owned)| owned);
        let is_given_up =
            |letter: &i64| owners().any(|owned| owned.gave_up.contains(letter) && !owned.done.contains_key(letter));
        letters.iter().copied().find(is_given_up)
    }

    /// Whether the sent record is the stored one, apart from what a replay adds.
    pub(super) fn is_faithful(&self, stored: &Record, sent: &Record) -> bool {
        let Some(replay_view) = &self.replay_view else { return stored == sent };
        let same = (stored.key(), stored.value()) == (sent.key(), sent.value());
        let kept = stored.headers().filter(|(name, _)| *name != REPLAY);
        let added = |name: &str| name == REPLAY || (replay_view.dead && name == ID && stored.header(ID).is_none());
        let rest = sent.headers().filter(|(name, _)| !added(name));
        let marks: Vec<_> = sent.headers().filter(|(name, _)| *name == REPLAY).map(|(_, value)| value).collect();
        same && kept.eq(rest) && marks == [Some(replay_view.id.as_bytes())]
    }

    /// The headers of an event that its dead letter has too. A dead letter of a dead letter has its own history.
    pub(super) fn headers_kept<'r>(
        &self,
        stored: &'r Record,
    ) -> impl Iterator<Item = (&'r str, Option<&'r [u8]>)> + use<'r> {
        let is_replay = self.replay_view.is_some();
        let is_replaced = move |name: &str| is_replay && name.starts_with("eventd-") && name != ID;
        stored.headers().filter(move |(name, _)| !is_replaced(name))
    }

    /// The number of attempts that its earlier dead letter records.
    pub(super) fn tries_before(&self, stored: &Record) -> u32 {
        let attempts = || stored.header_text(ATTEMPTS)?.parse().ok();
        if self.is_of_dead_letters() { attempts().unwrap_or(0) } else { 0 }
    }
}
