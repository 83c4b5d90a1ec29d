//! What a replay has to deliver, derived from its request and the log without the code of replay.

use crate::dispatch::memory_log::DEAD_LETTERS;
use crate::dispatch::oracle::{claims, claims_event};
use crate::dispatch::world::State as WorldState;
use eventd::core::event::Record;
use eventd::core::progress::PartitionState;
use eventd::replay::position::Position;
use eventd::replay::range::Range;
use eventd::replay::select::Selection;
use std::collections::BTreeMap;

/// The expected events by partition and offset. `known` is what the destination had committed, `ends` is where the
/// source partitions ended, and `redriven` contains the marked dead letters.
pub(super) fn expected(
    world: &WorldState,
    range: &Range,
    selection: &Selection,
    limit: Option<u64>,
    known: &[Option<PartitionState>],
    ends: &BTreeMap<(String, u32), i64>,
    redriven: &[Option<PartitionState>],
) -> Vec<BTreeMap<i64, Record>> {
    let mut left = limit.unwrap_or(u64::MAX);
    let mut all = Vec::new();
    for (state, partition) in known.iter().zip(0u32..) {
        let mut expected = BTreeMap::new();
        let records_left: Vec<(i64, &Record)> = match selection.dead {
            false => world.oracle.records_left(partition).collect(),
            true => {
                let end = ends.get(&(DEAD_LETTERS.to_owned(), partition)).copied().unwrap_or(0);
                world.topics.dead_letters(partition).filter(|(offset, _)| *offset < end).collect()
            }
        };
        let marked = redriven.get(partition as usize).and_then(Option::as_ref);
        for (offset, record) in &records_left {
            let is_due = match selection.dead {
                true => selection.again || !marked.is_some_and(|state| claims(state, *offset)),
                false => state.as_ref().is_some_and(|state| claims_event(state, record.key(), *offset)),
            };
            let is_inside = begins(&range.from, partition, *offset, record)
                && range.until.as_ref().is_none_or(|until| ends_before(until, partition, *offset, record));
            let user = record.key().map(String::from_utf8_lossy);
            let is_users = selection.users.is_empty() || user.is_some_and(|user| selection.users.contains(&*user));
            if is_due && is_inside && is_users && left > 0 {
                left -= 1;
                expected.insert(*offset, (*record).clone());
            }
        }
        all.push(expected);
    }
    all
}

fn begins(from: &Option<Position>, partition: u32, offset: i64, record: &Record) -> bool {
    match from {
        None => true,
        Some(Position::Offset(from)) => offset >= *from,
        Some(Position::Offsets(from) | Position::DeprecatedOffsets(from)) => {
            from.get(&partition).is_some_and(|from| offset >= *from)
        }
        Some(Position::Time(ms)) => record.timestamp_ms >= *ms,
        Some(Position::Ago(_)) => unreachable!("no scenario uses a position that depends on the real time"),
    }
}

fn ends_before(until: &Position, partition: u32, offset: i64, record: &Record) -> bool {
    match until {
        Position::Offset(until) => offset < *until,
        Position::Offsets(until) | Position::DeprecatedOffsets(until) => {
            until.get(&partition).is_some_and(|until| offset < *until)
        }
        Position::Time(ms) => record.timestamp_ms < *ms,
        Position::Ago(_) => unreachable!("no scenario uses a position that depends on the real time"),
    }
}
