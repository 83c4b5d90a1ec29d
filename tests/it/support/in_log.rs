//! What the log holds, against what the clients of a [`Load`](super::load::Load) were told: every event stands where the
//! answer said, as often as it may, and those of a user in their order.

use super::load::Answered;
use crate::conformance::{payload, read_all};
use eventd::log::Log;
use std::collections::{BTreeMap, HashSet};

/// What was found.
#[derive(Debug)]
pub(crate) struct InLog {
    /// Partition and offset of every record.
    pub(crate) places: HashSet<(u32, i64)>,
    /// Records of events that stand there once more: a sending of theirs was told to be unknown.
    pub(crate) repeats: usize,
    /// Of these, the ones behind the place that was answered in the end.
    pub(crate) late: usize,
}

/// Fails where the log and the answers do not agree.
pub(crate) async fn judge(log: &dyn Log, answered: &Answered) -> InLog {
    let mut found = InLog { places: HashSet::new(), repeats: 0, late: 0 };
    // Of each user's events, where they stand.
    let mut standing: BTreeMap<&str, Vec<Vec<(u32, i64)>>> =
        answered.events.keys().map(|user| (user.as_str(), Vec::new())).collect();
    for partition in 0..log.partitions().await.unwrap() {
        for (offset, record) in read_all(log, partition, log.earliest(partition).await.unwrap()).await {
            let user = std::str::from_utf8(record.key().unwrap()).unwrap();
            let standing = standing.get_mut(user).unwrap_or_else(|| panic!("a user whom nobody sent: {user}"));
            let number: usize = payload(&record).parse().unwrap();
            let next = standing.len();
            assert!(number <= next, "{user}: {number} at {partition}:{offset} came before {next}");
            if number == next {
                standing.push(Vec::new());
            }
            standing[number].push((partition, offset));
            found.places.insert((partition, offset));
        }
    }
    for (user, told) in &answered.events {
        let standing = &standing[user.as_str()];
        assert_eq!(standing.len(), told.len(), "{user}: so many of its events are there, and were answered");
        for (number, (told, places)) in told.iter().zip(standing).enumerate() {
            assert!(
                places.contains(&(told.partition, told.offset)),
                "{user}.{number} is lost: it stands at {places:?}, and its client was told {told:?}"
            );
            assert!(
                places.len() as u64 <= 1 + told.unknown,
                "{user}.{number} stands at {places:?}, and its client was told {told:?}"
            );
            found.repeats += places.len() - 1;
            found.late += places.iter().filter(|place| **place > (told.partition, told.offset)).count();
        }
    }
    found
}
