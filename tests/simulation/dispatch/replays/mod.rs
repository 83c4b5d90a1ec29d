//! The replays of one simulation: the request of each, what it has read, and from these what it has to deliver.
//!
//! ```text
//!  asked for ┐
//!  told      ├─ first commit under its own name ─▶ expected ─▶ an oracle of its own ◀─ everything that it does then
//!  the log   ┘                                                       ▲
//!                                           audit: started, finished ┘ nothing is delivered before, nothing left after
//! ```

mod expected;

use crate::dispatch::memory_log::{DEAD_LETTERS, TOPIC};
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

/// What an operator requests.
#[derive(Debug, Clone)]
pub(crate) enum RequestedReplay {
    Deliver { range: Range, selection: Selection, limit: Option<u64> },
    OffsetReset(Reposition),
}

impl RequestedReplay {
    pub(crate) fn is_of_dead_letters(&self) -> bool {
        matches!(self, Self::Deliver { selection, .. } if selection.dead)
    }
}

/// The request of one replay process, and what it has read so far.
#[derive(Debug)]
struct Run {
    request: usize,
    /// With `--resume`, the id on the command line.
    resumes: Option<String>,
    /// The id of the replay that it delivers.
    id: Option<String>,
    known: Vec<Option<PartitionState>>,
    /// Where each partition of its source ended when it asked.
    ends: BTreeMap<(String, u32), i64>,
}

/// One replay, from its first commit on.
#[derive(Debug)]
struct Replay {
    id: String,
    request: usize,
    oracle: Oracle,
    is_started: bool,
    is_finished: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Replays {
    requests: Vec<RequestedReplay>,
    runs: BTreeMap<Life, Run>,
    /// The replays in the order in which they began. Their ids may sort in another order.
    replays: Vec<Replay>,
}

impl Replays {
    pub(crate) fn set_requests(&mut self, requests: Vec<RequestedReplay>) {
        self.requests = requests;
    }

    /// A process starts with the request of this number.
    pub(crate) fn begins(&mut self, life: Life, request: usize, resumes: Option<String>) {
        self.runs.insert(life, Run { request, resumes, id: None, known: Vec::new(), ends: BTreeMap::new() });
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

    /// Whether the request names a partition that holds no events there, which is an error.
    fn names_missing_offsets(&self, life: Life) -> bool {
        let run = &self.runs[&life];
        let RequestedReplay::Deliver { range: Range { from: Some(Position::Offsets(from)), .. }, .. } =
            &self.requests[run.request]
        else {
            return false;
        };
        let end = |partition: u32| run.ends.get(&(TOPIC.to_owned(), partition)).copied().unwrap_or(0);
        from.iter().any(|(partition, from)| *from >= end(*partition))
    }

    /// The recorded replay of this request, and whether it is recorded as finished.
    pub(crate) fn written(&self, request: usize) -> Option<(&str, bool)> {
        let written = || self.replays.iter().filter(|replay| replay.request == request && replay.is_started);
        // A record that was stored late may belong to an attempt that another one has replaced.
        let replay = written().find(|replay| replay.is_finished).or_else(|| written().next_back())?;
        Some((&replay.id, replay.is_finished))
    }

    /// Whether this life has committed anything for a replay.
    pub(crate) fn has_begun(&self, life: Life) -> bool {
        self.runs.get(&life).is_some_and(|run| run.id.is_some())
    }

    pub(crate) fn oracle_of(&mut self, life: Life) -> Option<&mut Oracle> {
        let id = self.runs.get(&life)?.id.as_ref()?;
        self.replays.iter_mut().find(|replay| replay.id == *id).map(|replay| &mut replay.oracle)
    }

    /// The oracle for a dead letter that a replay wrote.
    pub(crate) fn oracle_of_dead_letter(&mut self, letter: &Record) -> Option<&mut Oracle> {
        let id = letter.header_text("eventd-replay")?;
        self.replays.iter_mut().find(|replay| replay.id == id).map(|replay| &mut replay.oracle)
    }

    pub(crate) fn oracles(&mut self) -> impl Iterator<Item = &mut Oracle> {
        self.replays.iter_mut().map(|replay| &mut replay.oracle)
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.replays.iter().find_map(|replay| replay.oracle.violation())
    }

    /// What the first unfinished recorded replay has left to do.
    pub(crate) fn unfinished(&self) -> Option<(u32, i64, &'static str)> {
        let at_work = self.replays.iter().filter(|replay| replay.is_started && !replay.is_finished);
        at_work.map(|replay| &replay.oracle).find_map(Oracle::unfinished)
    }

    pub(crate) fn trimmed(&mut self, partition: u32, earliest: i64, now: Duration) {
        for oracle in self.oracles().filter(|oracle| !oracle.is_of_dead_letters()) {
            // a late replay continues from there, which may be after its end.
            oracle.passed(partition, earliest);
            oracle.trimmed(partition, earliest, now);
        }
    }

    /// Whether a replay has redriven this dead letter.
    pub(crate) fn has_redriven(&self, partition: u32, letter: i64) -> bool {
        let oracles = self.replays.iter().map(|replay| &replay.oracle);
        oracles.filter(|oracle| oracle.is_of_dead_letters()).any(|oracle| oracle.has_settled(partition, letter))
    }

    /// An attempt begins. A replay that delivers must be recorded before, and has nothing left once it is recorded as
    /// finished.
    pub(crate) fn attempts(&mut self, life: Life) {
        let Some(id) = self.runs.get(&life).and_then(|run| run.id.clone()) else { return };
        let Some(replay) = self.replays.iter_mut().find(|replay| replay.id == id) else { return };
        if !replay.is_started {
            replay.oracle.fail(format!("life {life} delivers a replay without an audit record"));
        }
        if replay.is_finished {
            replay.oracle.fail(format!("life {life} delivers a replay that has finished"));
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
    /// For each partition, what a replay with this life's request has to deliver, based on what the life has read.
    pub(crate) fn expected(&self, life: Life) -> Vec<BTreeMap<i64, Record>> {
        let run = &self.replays.runs[&life];
        let RequestedReplay::Deliver { range, selection, limit } = &self.replays.requests[run.request] else {
            return Vec::new();
        };
        let redriven = self.groups.committed(crate::dispatch::memory_groups::REDRIVEN);
        expected(self, range, selection, *limit, &run.known, &run.ends, &redriven)
    }

    /// Whether the request itself is an error: resuming a finished replay, or a range without events.
    pub(crate) fn may_be_refused(&self, life: Life) -> bool {
        match &self.replays.runs[&life].resumes {
            Some(id) => self.replays.replays.iter().any(|replay| replay.id == *id && replay.is_finished),
            None => {
                let is_empty = self.expected(life).iter().all(BTreeMap::is_empty);
                is_empty || self.replays.names_missing_offsets(life)
            }
        }
    }

    /// A life knows its replay's start, and commits for the first time or again.
    pub(crate) fn replay_begins(&mut self, life: Life, id: &str, rules: &Rules, now: Duration) {
        let is_new = !self.replays.replays.iter().any(|replay| replay.id == id);
        let run = &self.replays.runs[&life];
        if run.id.is_some() {
            return;
        }
        let RequestedReplay::Deliver { selection, .. } = &self.replays.requests[run.request] else { return };
        let (request, dead, again) = (run.request, selection.dead, selection.again);
        if is_new {
            let expected = self.expected(life);
            let latest = |partition: u32| match dead {
                true => self.replays.runs[&life].ends.get(&(DEAD_LETTERS.to_owned(), partition)).copied().unwrap_or(0),
                false => self.topics.latest(partition),
            };
            let ends: Vec<i64> = (0..expected.len() as u32).map(latest).collect();
            let oracle = Oracle::of_replay(rules.clone(), id, dead, &expected, &ends, &self.oracle, now);
            let replay = Replay { id: id.to_owned(), request, oracle, is_started: false, is_finished: false };
            self.replays.replays.push(replay);
        }
        if let Some(run) = self.replays.runs.get_mut(&life) {
            run.id = Some(id.to_owned());
        }
        let redriven = self.groups.committed(crate::dispatch::memory_groups::REDRIVEN);
        let partitions = self.topics.partitions(TOPIC) as u32;
        let Some(oracle) = self.replays.oracle_of(life) else { return };
        for partition in 0..partitions {
            oracle.assigned(life, partition, now);
            if dead
                && !again
                && let Some(Some(state)) = redriven.get(partition as usize)
            {
                oracle.redriven_elsewhere(partition, |offset| claims(state, offset), now);
            }
        }
    }
}
