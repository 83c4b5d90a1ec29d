//! Who gets which partition: sticky and cooperative. Pure: every leader of the same members decides the same.
//!
//! ```text
//!  claims      A: 0 1 2 3    B: –          (B is new)
//!  1st round   A: 0 1        B: –          2 and 3 are B's, but A has yet to let them go
//!  A lets go, and joins again with the claims 0 1
//!  2nd round   A: 0 1        B: 2 3
//! ```
//!
//! A partition stays where it is, as long as nobody has more than a share; and it is given to nobody while another
//! member claims it.

use std::collections::BTreeMap;

/// A member, as its subscription tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: String,
    /// The partitions that it has.
    pub(super) claims: Vec<u32>,
    /// The generation in which it got them: of two that claim one partition, the later one has it. Else one that was cut
    /// off for a while could take back what has long been somebody else's.
    pub(super) generation: i32,
}

/// Gives every partition that nobody else claims to one member; the numbers of any two differ by one at most, once
/// those that have too many have let go.
pub(super) fn assign(members: &[Member], partitions: u32) -> BTreeMap<String, Vec<u32>> {
    let mut members: Vec<&Member> = members.iter().collect();
    members.sort_by(|a, b| a.id.cmp(&b.id));
    let mut claimed: BTreeMap<u32, &Member> = BTreeMap::new();
    for member in &members {
        for partition in member.claims.iter().filter(|partition| **partition < partitions) {
            let holder = claimed.entry(*partition).or_insert(member);
            if holder.generation < member.generation {
                *holder = member;
            }
        }
    }
    let mut has: BTreeMap<&str, Vec<u32>> = members.iter().map(|member| (member.id.as_str(), Vec::new())).collect();
    for (partition, member) in &claimed {
        has.entry(&member.id).or_default().push(*partition);
    }
    // Those that have most get the larger shares: fewer partitions move.
    let mut order: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
    order.sort_by_key(|id| std::cmp::Reverse(has[id].len()));
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
    let (share, larger) = (partitions / count, partitions % count);
    let mut free = (0..partitions).filter(|partition| !claimed.contains_key(partition)).collect::<Vec<_>>().into_iter();
    let mut assigned = BTreeMap::new();
    for (place, id) in (0u32..).zip(order) {
        let share = (share + u32::from(place < larger)) as usize;
        let mut own = has.remove(id).unwrap_or_default();
        own.truncate(share);
        let more = share - own.len();
        own.extend(free.by_ref().take(more));
        own.sort_unstable();
        assigned.insert(id.to_owned(), own);
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn member(id: &str, generation: i32, claims: &[u32]) -> Member {
        Member { id: id.into(), claims: claims.to_vec(), generation }
    }

    proptest! {
        #[test]
        fn nobody_gets_what_another_claims_and_in_the_end_all_is_shared(
            claims in proptest::collection::vec((0i32..5, proptest::collection::btree_set(0u32..20, 0..20)), 1..7),
            partitions in 1u32..18,
        ) {
            let members: Vec<Member> = claims.iter().enumerate().map(|(place, (generation, claims))| {
                member(&format!("m{place}"), *generation, &claims.iter().copied().collect::<Vec<_>>())
            }).collect();
            let first = assign(&members, partitions);
            let mut given = BTreeSet::new();
            for (id, own) in &first {
                for partition in own {
                    prop_assert!(*partition < partitions && given.insert(*partition), "{partition} twice: {first:?}");
                    // Who claims it in the latest generation has it, or nobody gets it now.
                    let latest = members.iter().filter(|m| m.claims.contains(partition)).map(|m| m.generation).max();
                    let mine = members.iter().find(|m| m.id == *id).unwrap();
                    prop_assert!(latest.is_none() || (mine.claims.contains(partition) && Some(mine.generation) == latest));
                }
            }
            // Everybody lets go of what it was not given, and joins again.
            let again: Vec<Member> = first.iter().map(|(id, own)| member(id, 9, own)).collect();
            let second = assign(&again, partitions);
            let sizes: Vec<usize> = second.values().map(Vec::len).collect();
            prop_assert_eq!(sizes.iter().sum::<usize>(), partitions as usize);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{:?}", second);
            for (id, own) in &first {
                prop_assert!(own.iter().all(|partition| second[id].contains(partition)), "what was given stays");
            }
            // The order in which members are listed does not matter, and nothing moves without a reason.
            let mut backwards: Vec<Member> = second.iter().map(|(id, own)| member(id, 10, own)).collect();
            backwards.reverse();
            prop_assert_eq!(&assign(&backwards, partitions), &second);
        }
    }

    #[test]
    fn a_partition_moves_only_after_it_was_let_go() {
        let alone = member("a", 1, &[0, 1, 2, 3]);
        let first = assign(&[alone, member("b", -1, &[])], 4);
        assert_eq!((&first["a"], &first["b"]), (&vec![0, 1], &vec![]));
        let second = assign(&[member("a", 2, &[0, 1]), member("b", 2, &[])], 4);
        assert_eq!((&second["a"], &second["b"]), (&vec![0, 1], &vec![2, 3]));
    }

    #[test]
    fn who_was_cut_off_does_not_take_back_what_is_somebody_elses() {
        let assigned = assign(&[member("late", 3, &[0, 1]), member("owner", 5, &[0, 1])], 2);
        assert_eq!((&assigned["late"], &assigned["owner"]), (&vec![], &vec![0]));
    }
}
