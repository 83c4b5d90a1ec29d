//! The oracle of one replay: the same promises, held to the events that are its own.
//!
//! A replay is a dispatch under another name. So its oracle is another [`Oracle`], in whose log there is nothing but what
//! the replay is to take: what else it tries is "not in the log", and what it leaves out is "not settled". Dead letters
//! are kept under the offsets that they have as letters, and go out under those of their events.

use super::deliveries::source;
use super::{Entry, Handed, Life, Oracle, Rules, claims};
use eventd::core::event::Record;
use std::collections::BTreeMap;
use std::time::Duration;

const REPLAY: &str = "eventd-replay";
const ID: &str = "eventd-id";
const ATTEMPTS: &str = "eventd-attempts";

/// How the events of a replay look.
#[derive(Debug)]
pub(super) struct Guise {
    id: String,
    /// They are dead letters.
    dead: bool,
    /// Of dead letters: the letters of each event, by its place.
    letters: BTreeMap<(u32, i64), Vec<i64>>,
}

impl Oracle {
    /// Of a replay that takes these events of each partition, and of whose source each partition ends there.
    pub(crate) fn of_replay(
        rules: Rules,
        id: &str,
        dead: bool,
        taken: &[BTreeMap<i64, Record>],
        ends: &[i64],
        live: &Self,
        now: Duration,
    ) -> Self {
        let mut oracle = Self::new(Rules { start_latest: false, ..rules }, taken.len() as u32);
        let mut letters: BTreeMap<(u32, i64), Vec<i64>> = BTreeMap::new();
        for ((taken, end), partition) in taken.iter().zip(ends).zip(0u32..) {
            for (offset, record) in taken {
                oracle.appended(partition, *offset, record, now);
                if let Some((_, event)) = source(record).ok().filter(|_| dead) {
                    letters.entry((partition, event)).or_default().push(*offset);
                }
            }
            oracle.passed(partition, *end);
        }
        oracle.health = live.health.of_newcomer();
        oracle.guise = Some(Guise { id: id.to_owned(), dead, letters });
        oracle
    }

    /// What can be taken of the partition: what is there, with its offset.
    pub(crate) fn there(&self, partition: u32) -> impl Iterator<Item = (i64, &Record)> {
        let entries = self.partitions[partition as usize].entries.iter();
        entries.filter(|(_, entry)| !entry.trimmed).map(|(offset, entry)| (*offset, &entry.record))
    }

    pub(crate) fn is_of_letters(&self) -> bool {
        self.guise.as_ref().is_some_and(|guise| guise.dead)
    }

    /// Whether it is among its events, and settled.
    pub(crate) fn has_settled(&self, partition: u32, offset: i64) -> bool {
        self.entry(partition, offset).is_some_and(|entry| entry.settled.is_some())
    }

    /// Another replay has redriven these letters: they are not its own any more.
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

    /// What was handed out, each event under the offset that it has in the log of this oracle.
    pub(crate) fn in_place(&self, life: Life, partition: u32, mut runs: Vec<Handed>) -> Vec<Handed> {
        for run in &mut runs {
            let mut used = Vec::new();
            for event in &mut run.events {
                event.offset = self.place(life, partition, event.offset, &used);
                used.push(event.offset);
            }
        }
        runs
    }

    /// Which letter of the event at `offset` its owner is at: of several, the first that it has not done. For everybody
    /// else the offset itself.
    pub(super) fn place(&self, life: Life, partition: u32, offset: i64, used: &[i64]) -> i64 {
        let Some(guise) = self.guise.as_ref().filter(|guise| guise.dead) else { return offset };
        let Some(letters) = guise.letters.get(&(partition, offset)) else { return -1 };
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

    /// Which of its events somebody has given up with a letter about the one at `offset`; `None`: nobody can tell.
    pub(super) fn given_up_at(&self, partition: u32, offset: i64) -> Option<i64> {
        let Some(guise) = self.guise.as_ref().filter(|guise| guise.dead) else { return Some(offset) };
        let letters = guise.letters.get(&(partition, offset))?;
        let owners = || self.owned.iter().filter(|((_, of), _)| *of == partition).map(|(_, owned)| owned);
        let is_given_up =
            |letter: &i64| owners().any(|owned| owned.gave_up.contains(letter) && !owned.done.contains_key(letter));
        letters.iter().copied().find(is_given_up)
    }

    /// Whether what went out is what was stored, and nothing else but what a replay adds.
    pub(super) fn is_faithful(&self, stored: &Record, sent: &Record) -> bool {
        let Some(guise) = &self.guise else { return stored == sent };
        let same = (stored.key(), stored.value()) == (sent.key(), sent.value());
        let kept = stored.headers().filter(|(name, _)| *name != REPLAY);
        let added = |name: &str| name == REPLAY || (guise.dead && name == ID && stored.header(ID).is_none());
        let rest = sent.headers().filter(|(name, _)| !added(name));
        let marks: Vec<_> = sent.headers().filter(|(name, _)| *name == REPLAY).map(|(_, value)| value).collect();
        same && kept.eq(rest) && marks == [Some(guise.id.as_bytes())]
    }

    /// The headers of an event that its dead letter has too. One about a letter has a story of its own.
    pub(super) fn headers_kept<'r>(
        &self,
        stored: &'r Record,
    ) -> impl Iterator<Item = (&'r str, Option<&'r [u8]>)> + use<'r> {
        let is_replay = self.guise.is_some();
        let told_anew = move |name: &str| is_replay && name.starts_with("eventd-") && name != ID;
        stored.headers().filter(move |(name, _)| !told_anew(name))
    }

    /// The attempts that its earlier letter tells of.
    pub(super) fn tries_before(&self, stored: &Record) -> u32 {
        let told = || stored.header_text(ATTEMPTS)?.parse().ok();
        if self.is_of_letters() { told().unwrap_or(0) } else { 0 }
    }
}
