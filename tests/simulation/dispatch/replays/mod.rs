//! What is known of the replays in one simulation: what each was asked for, what it was told, and from these what it has
//! to deliver.
//!
//! ```text
//!  asked for ┐
//!  told      ├─ first commit under its own name ─▶ expected ─▶ an oracle of its own ◀─ everything that it does then
//!  the log   ┘                                                       ▲
//!                                           audit: started, finished ┘ nothing is delivered before, nothing left after
//! ```

mod expected;

use crate::dispatch::memory_log::{LETTERS, TOPIC};
use crate::dispatch::oracle::{Life, Oracle, Rules, claims};
use crate::dispatch::world::State as WorldState;
use eventd::core::event::Record;
use eventd::core::progress::PartitionState;
use eventd::replay::position::Position;
use eventd::replay::range::Range;
use eventd::replay::rewind::Reposition;
use eventd::replay::select::Selection;
use expected::expected;
use std::collections::BTreeMap;
use std::time::Duration;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Deliver { range: Range, selection: Selection, limit: Option<u64> },
    OffsetReset(Reposition),
}

impl Asked {
    pub(crate) fn is_of_letters(&self) -> bool {
        matches!(self, Self::Deliver { selection, .. } if selection.dead)
    }
}

/// What one process of a replay was asked for and has been told.
#[derive(Debug)]
struct Run {
    asked: usize,
    /// With `--resume`: the id that was given.
    resumes: Option<String>,
    /// Of the replay that it delivers.
    id: Option<String>,
    known: Vec<Option<PartitionState>>,
    /// Where each partition of its source was said to end.
    ends: BTreeMap<(String, u32), i64>,
}

/// One replay, from its first commit on.
#[derive(Debug)]
struct Replay {
    id: String,
    asked: usize,
    oracle: Oracle,
    is_started: bool,
    is_finished: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Replays {
    asked: Vec<Asked>,
    runs: BTreeMap<Life, Run>,
    /// In the order in which they began: their ids are made of the real time.
    replays: Vec<Replay>,
}

impl Replays {
    pub(crate) fn ask(&mut self, asked: Vec<Asked>) {
        self.asked = asked;
    }

    /// A process begins with the request of this number.
    pub(crate) fn begins(&mut self, life: Life, asked: usize, resumes: Option<String>) {
        self.runs.insert(life, Run { asked, resumes, id: None, known: Vec::new(), ends: BTreeMap::new() });
    }

    pub(crate) fn saw_end(&mut self, life: Life, topic: &str, partition: u32, latest: i64) {
        if let Some(run) = self.runs.get_mut(&life) {
            run.ends.insert((topic.to_owned(), partition), latest);
        }
    }

    pub(crate) fn saw_known(&mut self, life: Life, known: &[Option<PartitionState>]) {
        if let Some(run) = self.runs.get_mut(&life) {
            run.known = known.to_vec();
        }
    }

    /// Whether a partition was asked for by its number from where it holds nothing: that is a mistake.
    fn names_what_is_not_there(&self, life: Life) -> bool {
        let run = &self.runs[&life];
        let Asked::Deliver { range: Range { from: Some(Position::Offsets(from)), .. }, .. } = &self.asked[run.asked]
        else {
            return false;
        };
        let end = |partition: u32| run.ends.get(&(TOPIC.to_owned(), partition)).copied().unwrap_or(0);
        from.iter().any(|(partition, from)| *from >= end(*partition))
    }

    /// The replay of this request that is written down, and whether that it is finished is too.
    pub(crate) fn written(&self, asked: usize) -> Option<(&str, bool)> {
        let written = || self.replays.iter().filter(|replay| replay.asked == asked && replay.is_started);
        // A record that was stored late may tell of one that was given up for another.
        let replay = written().find(|replay| replay.is_finished).or_else(|| written().next_back())?;
        Some((&replay.id, replay.is_finished))
    }

    /// Whether it has committed anything of a replay.
    pub(crate) fn has_begun(&self, life: Life) -> bool {
        self.runs.get(&life).is_some_and(|run| run.id.is_some())
    }

    pub(crate) fn oracle_of(&mut self, life: Life) -> Option<&mut Oracle> {
        let id = self.runs.get(&life)?.id.as_ref()?;
        self.replays.iter_mut().find(|replay| replay.id == *id).map(|replay| &mut replay.oracle)
    }

    /// Who judges a dead letter that a replay wrote.
    pub(crate) fn oracle_of_letter(&mut self, letter: &Record) -> Option<&mut Oracle> {
        let id = letter.header_text("eventd-replay")?;
        self.replays.iter_mut().find(|replay| replay.id == id).map(|replay| &mut replay.oracle)
    }

    pub(crate) fn oracles(&mut self) -> impl Iterator<Item = &mut Oracle> {
        self.replays.iter_mut().map(|replay| &mut replay.oracle)
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.replays.iter().find_map(|replay| replay.oracle.violation())
    }

    /// What the first of those that are written down has left to do.
    pub(crate) fn unfinished(&self) -> Option<(u32, i64, &'static str)> {
        let at_work = self.replays.iter().filter(|replay| replay.is_started && !replay.is_finished);
        at_work.map(|replay| &replay.oracle).find_map(Oracle::unfinished)
    }

    pub(crate) fn trimmed(&mut self, partition: u32, earliest: i64, now: Duration) {
        for oracle in self.oracles().filter(|oracle| !oracle.is_of_letters()) {
            // Who is behind goes on from there, which may be past the end of the replay.
            oracle.passed(partition, earliest);
            oracle.trimmed(partition, earliest, now);
        }
    }

    /// Whether some replay has redriven this letter.
    pub(crate) fn has_redriven(&self, partition: u32, letter: i64) -> bool {
        let oracles = self.replays.iter().map(|replay| &replay.oracle);
        oracles.filter(|oracle| oracle.is_of_letters()).any(|oracle| oracle.has_settled(partition, letter))
    }

    /// An attempt begins: what delivers something is written down.
    pub(crate) fn attempts(&mut self, life: Life) {
        let Some(id) = self.runs.get(&life).and_then(|run| run.id.clone()) else { return };
        for replay in self.replays.iter_mut().filter(|replay| replay.id == id && !replay.is_started) {
            replay.oracle.fail(format!("life {life} delivers a replay that no audit record tells of"));
        }
    }

    /// An audit record is stored.
    pub(crate) fn audited(&mut self, record: &Record) {
        let value = record.value().unwrap_or_default();
        let entry: serde_json::Value = serde_json::from_slice(value).expect("an audit record is JSON");
        let Some(replay) = self.replays.iter_mut().find(|replay| entry["id"] == replay.id.as_str()) else { return };
        match (entry["event"].as_str(), entry["outcome"].as_str()) {
            (Some("replay-started"), _) => replay.is_started = true,
            (Some("replay-ended"), Some("finished")) => {
                if let Some((partition, offset, wrong)) = replay.oracle.unfinished() {
                    replay.oracle.fail(format!("finished, and {offset} of partition {partition} is {wrong}"));
                }
                replay.is_finished = true;
            }
            _ => {}
        }
    }
}

impl WorldState {
    /// What a replay with the request of this life has to deliver, by partition, as far as it was told.
    pub(crate) fn expected(&self, life: Life) -> Vec<BTreeMap<i64, Record>> {
        let run = &self.replays.runs[&life];
        let Asked::Deliver { range, selection, limit } = &self.replays.asked[run.asked] else { return Vec::new() };
        let redriven = self.groups.committed(crate::dispatch::memory_groups::REDRIVEN);
        expected(self, range, selection, *limit, &run.known, &run.ends, &redriven)
    }

    /// Whether a person asked for what cannot be: the rest of what is finished, or a range with nothing in it.
    pub(crate) fn may_be_refused(&self, life: Life) -> bool {
        match &self.replays.runs[&life].resumes {
            Some(id) => self.replays.replays.iter().any(|replay| replay.id == *id && replay.is_finished),
            None => {
                let is_empty = self.expected(life).iter().all(BTreeMap::is_empty);
                is_empty || self.replays.names_what_is_not_there(life)
            }
        }
    }

    /// A life has its replay's place, and commits for the first time, or once more.
    pub(crate) fn replay_begins(&mut self, life: Life, id: &str, rules: &Rules, now: Duration) {
        let is_new = !self.replays.replays.iter().any(|replay| replay.id == id);
        let run = &self.replays.runs[&life];
        if run.id.is_some() {
            return;
        }
        let Asked::Deliver { selection, .. } = &self.replays.asked[run.asked] else { return };
        let (asked, dead, again) = (run.asked, selection.dead, selection.again);
        if is_new {
            let taken = self.expected(life);
            let latest = |partition: u32| match dead {
                true => self.replays.runs[&life].ends.get(&(LETTERS.to_owned(), partition)).copied().unwrap_or(0),
                false => self.topics.latest(partition),
            };
            let ends: Vec<i64> = (0..taken.len() as u32).map(latest).collect();
            let oracle = Oracle::of_replay(rules.clone(), id, dead, &taken, &ends, &self.oracle, now);
            let replay = Replay { id: id.to_owned(), asked, oracle, is_started: false, is_finished: false };
            self.replays.replays.push(replay);
        }
        if let Some(run) = self.replays.runs.get_mut(&life) {
            run.id = Some(id.to_owned());
        }
        let redriven = self.groups.committed(crate::dispatch::memory_groups::REDRIVEN);
        let partitions = self.topics.partitions(TOPIC) as u32;
        let Some(oracle) = self.replays.oracle_of(life) else { return };
        for partition in 0..partitions {
            oracle.given(life, partition);
            if dead
                && !again
                && let Some(Some(state)) = redriven.get(partition as usize)
            {
                oracle.redriven_elsewhere(partition, |offset| claims(state, offset), now);
            }
        }
    }
}
