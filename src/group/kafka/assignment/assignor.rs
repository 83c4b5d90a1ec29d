//! Which partition each member gets: sticky and cooperative. Pure: for the same members every leader decides the same.
//!
//! ```text
//!  owned       A: 0 1 2 3    B: –          B is new
//!  1st join    A: 0 1        B: –          B is to get 2 and 3, but A still owns them
//!  A releases 2 and 3, and joins again as the owner of 0 and 1
//!  2nd join    A: 0 1        B: 2 3
//! ```
//!
//! - A partition stays with its member, unless that member has more than its share.
//! - A partition that a member owns or has yet to release is assigned to no other member.
//! - If two members have equally many partitions, the one that is revoking fewer of them gets the larger share. Members
//!   release at different times, and each release leads to a new assignment. So an assignment in between repeats the
//!   decision of the one before it.
//! - A draining member gets nothing. What it has released is shared by the others; what it has yet to release waits.

use super::messages::OwnedPartitions;
use std::collections::BTreeMap;

/// A member among which partitions are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignee {
    pub(super) id: String,
    /// What its subscription says that it owns. If two members claim the same partition, it belongs to the one with the
    /// later generation. Otherwise a member that was cut off for a while would take back what another one now owns.
    pub(super) partitions: OwnedPartitions,
}

impl Assignee {
    fn claimed(&self) -> impl Iterator<Item = &u32> {
        self.partitions.owned.iter().chain(&self.partitions.revoking)
    }
}

/// The partitions of a member that no other member claims with a later generation.
#[derive(Debug, Default)]
struct Holdings {
    owned: Vec<u32>,
    revoking: Vec<u32>,
}

/// Assigns every partition that no other member owns to one member that does not drain. When the members that own too
/// many have released them, the numbers of any two members differ by one at most.
pub(super) fn assign(members: &[Assignee], partition_count: u32) -> BTreeMap<String, Vec<u32>> {
    let mut members: Vec<&Assignee> = members.iter().collect();
    members.sort_by(|a, b| a.id.cmp(&b.id));
    let mut owners: BTreeMap<u32, &Assignee> = BTreeMap::new();
    for member in &members {
        for partition in member.claimed().filter(|partition| **partition < partition_count) {
            let owner = owners.entry(*partition).or_insert(member);
            if owner.partitions.generation < member.partitions.generation {
                *owner = member;
            }
        }
    }
    let empty = || members.iter().map(|member| (member.id.as_str(), Holdings::default()));
    let mut holdings: BTreeMap<&str, Holdings> = empty().collect();
    for (partition, member) in &owners {
        let holdings = holdings.entry(&member.id).or_default();
        let is_revoking = member.partitions.revoking.contains(partition);
        if is_revoking { holdings.revoking.push(*partition) } else { holdings.owned.push(*partition) }
    }
    // If the partitions cannot be divided evenly, the members that own most get one more: then fewer partitions move.
    let receivers = members.iter().filter(|member| !member.partitions.draining);
    let mut order: Vec<&str> = receivers.map(|member| member.id.as_str()).collect();
    order.sort_by_key(|id| std::cmp::Reverse((holdings[id].owned.len(), holdings[id].revoking.len())));
    let count = u32::try_from(order.len()).unwrap_or(u32::MAX).max(1);
    let (share, larger_shares) = (partition_count / count, partition_count % count);
    let unowned: Vec<u32> = (0..partition_count).filter(|partition| !owners.contains_key(partition)).collect();
    let mut unowned = unowned.into_iter();
    let mut assigned = BTreeMap::new();
    for (place, id) in (0u32..).zip(order) {
        let share = (share + u32::from(place < larger_shares)) as usize;
        let holdings = holdings.remove(id).unwrap_or_default();
        // What the member is revoking comes last: it is assigned again only if the member has too few without it.
        let mut partitions = [holdings.owned, holdings.revoking].concat();
        partitions.truncate(share);
        let missing = share - partitions.len();
        partitions.extend(unowned.by_ref().take(missing));
        partitions.sort_unstable();
        assigned.insert(id.to_owned(), partitions);
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn member(id: &str, generation: i32, owned: &[u32]) -> Assignee {
        revoking_member(id, generation, owned, &[])
    }

    fn revoking_member(id: &str, generation: i32, owned: &[u32], revoking: &[u32]) -> Assignee {
        let (owned, revoking) = (owned.to_vec(), revoking.to_vec());
        Assignee { id: id.into(), partitions: OwnedPartitions { owned, revoking, generation, draining: false } }
    }

    proptest! {
        #[test]
        fn no_member_gets_what_another_one_owns_and_in_the_end_all_partitions_are_shared_evenly(
            owned in proptest::collection::vec((0i32..5, proptest::collection::btree_set(0u32..20, 0..20)), 1..7),
            partition_count in 1u32..18,
        ) {
            let members: Vec<Assignee> = owned.iter().enumerate().map(|(place, (generation, owned))| {
                member(&format!("m{place}"), *generation, &owned.iter().copied().collect::<Vec<_>>())
            }).collect();
            let first = assign(&members, partition_count);
            let mut assigned = BTreeSet::new();
            for (id, partitions) in &first {
                for partition in partitions {
                    prop_assert!(*partition < partition_count, "{partition} does not exist: {first:?}");
                    prop_assert!(assigned.insert(*partition), "{partition} is assigned twice: {first:?}");
                    // A claimed partition belongs to the member that claims it in the latest generation.
                    let claims = |member: &Assignee| member.claimed().any(|claimed| claimed == partition);
                    let latest = members.iter().filter(|m| claims(m)).map(|m| m.partitions.generation).max();
                    let mine = members.iter().find(|m| m.id == *id).unwrap();
                    prop_assert!(latest.is_none() || claims(mine) && Some(mine.partitions.generation) == latest);
                }
            }
            // Every member releases what it was not assigned, and joins again.
            let again: Vec<Assignee> = first.iter().map(|(id, partitions)| member(id, 9, partitions)).collect();
            let second = assign(&again, partition_count);
            let sizes: Vec<usize> = second.values().map(Vec::len).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), partition_count as usize);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", second);
            for (id, partitions) in &first {
                let stays = partitions.iter().all(|partition| second[id].contains(partition));
                prop_assert!(stays, "what was assigned first stays: {first:?}, {second:?}");
            }
            // The order of the members does not matter, and nothing moves without a reason.
            let mut reversed: Vec<Assignee> = second.iter().map(|(id, own)| member(id, 10, own)).collect();
            reversed.reverse();
            prop_assert_eq!(&assign(&reversed, partition_count), &second);
        }
    }

    #[test]
    fn a_partition_moves_only_after_it_was_released() {
        let alone = member("a", 1, &[0, 1, 2, 3]);
        let first = assign(&[alone, member("b", -1, &[])], 4);
        assert_eq!((&first["a"], &first["b"]), (&vec![0, 1], &vec![]));
        let second = assign(&[member("a", 2, &[0, 1]), member("b", 2, &[])], 4);
        assert_eq!((&second["a"], &second["b"]), (&vec![0, 1], &vec![2, 3]));
    }

    /// Each member releases in its own time, and joins again when it has.
    #[test]
    fn the_first_to_release_is_not_asked_for_more_and_a_revoked_partition_is_not_given_back() {
        let (a, b) = (member("b", 1, &[0, 1, 2, 3]), member("a", 1, &[4, 5, 6]));
        let first = assign(&[a, b, member("c", -1, &[])], 7);
        assert_eq!((&first["b"], &first["a"]), (&vec![0, 1, 2], &vec![4, 5]));
        let (a, b) = (member("b", 2, &[0, 1, 2]), revoking_member("a", 2, &[4, 5], &[6]));
        let second = assign(&[a, b, member("c", 2, &[])], 7);
        assert_eq!((&second["b"], &second["a"], &second["c"]), (&vec![0, 1, 2], &vec![4, 5], &vec![3]));
        // If the member needs more partitions than it owns, it gets those that it is revoking again.
        let third = assign(&[revoking_member("a", 2, &[4, 5], &[6])], 7);
        assert_eq!(third["a"], [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_draining_member_gets_nothing_and_the_others_share_what_it_released() {
        let draining = |revoking: &[u32]| {
            let mut member = revoking_member("a", 4, &[], revoking);
            member.partitions.draining = true;
            member
        };
        let others = [member("b", 4, &[3, 4]), member("c", 4, &[5])];
        let first = assign(&[&[draining(&[2])], &others[..]].concat(), 6);
        assert_eq!((first.get("a"), &first["b"], &first["c"]), (None, &vec![0, 3, 4], &vec![1, 5]));
        let second = assign(&[draining(&[]), member("b", 5, &[0, 3, 4]), member("c", 5, &[1, 5])], 6);
        assert_eq!((&second["b"], &second["c"]), (&vec![0, 3, 4], &vec![1, 2, 5]));
        assert!(assign(&[draining(&[2])], 6).is_empty(), "the group has only a draining member");
    }

    #[test]
    fn a_member_that_was_cut_off_does_not_take_back_what_another_one_owns_now() {
        let assigned = assign(&[member("late", 3, &[0, 1]), member("owner", 5, &[0, 1])], 2);
        assert_eq!((&assigned["late"], &assigned["owner"]), (&vec![], &vec![0]));
    }
}
