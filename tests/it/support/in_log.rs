//! Compares the log with what the clients of a [`Load`](super::load::Load) were answered. Every event must be at the
//! offset in its answer, no more often than its answers allow, and the events of a user must be in order.

use super::load::Answered;
use crate::conformance::{payload, read_all};
use eventd::log::Log;
use std::collections::{BTreeMap, HashSet};

/// What the comparison found.
#[derive(Debug)]
pub(crate) struct InLog {
    /// Partition and offset of every record.
    pub(crate) places: HashSet<(u32, i64)>,
    /// Extra copies of events. An event may have one for each sending whose outcome was unknown.
    pub(crate) repeats: usize,
    /// Extra copies that come after the offset in the final answer.
    pub(crate) late: usize,
}

/// Reads the whole log. Fails if it does not agree with the answers.
pub(crate) async fn judge(log: &dyn Log, answered: &Answered) -> InLog {
    let mut found = InLog { places: HashSet::new(), repeats: 0, late: 0 };
    // For each user and event number, all places of that event in the log.
    let mut places_of: BTreeMap<&str, Vec<Vec<(u32, i64)>>> =
        answered.events.keys().map(|user| (user.as_str(), Vec::new())).collect();
    for partition in 0..log.partitions().await.unwrap() {
        for (offset, record) in read_all(log, partition, log.earliest(partition).await.unwrap()).await {
            let user = std::str::from_utf8(record.key().unwrap()).unwrap();
            let places_of =
                places_of.get_mut(user).unwrap_or_else(|| panic!("no client sent events of this user: {user}"));
            let number: usize = payload(&record).parse().unwrap();
            let next = places_of.len();
            assert!(number <= next, "{user}: {number} at {partition}:{offset} comes before {next}");
            if number == next {
                places_of.push(Vec::new());
            }
            places_of[number].push((partition, offset));
            found.places.insert((partition, offset));
        }
    }
    for (user, told) in &answered.events {
        let places_of = &places_of[user.as_str()];
        assert_eq!(places_of.len(), told.len(), "{user}: events in the log, and events that were answered");
        for (number, (told, places)) in told.iter().zip(places_of).enumerate() {
            assert!(
                places.contains(&(told.partition, told.offset)),
                "{user}.{number} is lost: it is at {places:?}, and its client was answered {told:?}"
            );
            assert!(
                places.len() as u64 <= 1 + told.unknown,
                "{user}.{number} is at {places:?}, and its client was answered {told:?}"
            );
            found.repeats += places.len() - 1;
            found.late += places.iter().filter(|place| **place > (told.partition, told.offset)).count();
        }
    }
    found
}
