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
//! member claims it. Of two that have the same number the one that is to let nothing go keeps it: while several let go,
//! one after another, nothing is decided anew. A member that drains gets nothing: what it lets go is shared by the
//! others, and what it has yet to let go waits for it.

use super::subscription::Claims;
use std::collections::BTreeMap;

/// A member, as its subscription tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: String,
    /// Of two that claim one partition, the one with the later generation has it. Else one that was cut off for a while
    /// could take back what has long been somebody else's.
    pub(super) claims: Claims,
}

impl Member {
    fn all(&self) -> impl Iterator<Item = &u32> {
        self.claims.staying.iter().chain(&self.claims.leaving)
    }
}

/// Gives every partition that nobody else claims to one member that does not drain; the numbers of any two of these
/// differ by one at most, once those that have too many have let go.
pub(super) fn assign(members: &[Member], partitions: u32) -> BTreeMap<String, Vec<u32>> {
    let mut members: Vec<&Member> = members.iter().collect();
    members.sort_by(|a, b| a.id.cmp(&b.id));
    let mut claimed: BTreeMap<u32, &Member> = BTreeMap::new();
    for member in &members {
        for partition in member.all().filter(|partition| **partition < partitions) {
            let holder = claimed.entry(*partition).or_insert(member);
            if holder.claims.generation < member.claims.generation {
                *holder = member;
            }
        }
    }
    let mut has: BTreeMap<&str, Has> = members.iter().map(|member| (member.id.as_str(), Has::default())).collect();
    for (partition, member) in &claimed {
        let has = has.entry(&member.id).or_default();
        let leaves = member.claims.leaving.contains(partition);
        if leaves { has.leaving.push(*partition) } else { has.staying.push(*partition) }
    }
    // Those that have most get the larger shares: fewer partitions move.
    let takers = members.iter().filter(|member| !member.claims.draining);
    let mut order: Vec<&str> = takers.map(|member| member.id.as_str()).collect();
    order.sort_by_key(|id| std::cmp::Reverse((has[id].staying.len(), has[id].leaving.len())));
    let count = u32::try_from(order.len()).unwrap_or(u32::MAX).max(1);
    let (share, larger) = (partitions / count, partitions % count);
    let mut free = (0..partitions).filter(|partition| !claimed.contains_key(partition)).collect::<Vec<_>>().into_iter();
    let mut assigned = BTreeMap::new();
    for (place, id) in (0u32..).zip(order) {
        let share = (share + u32::from(place < larger)) as usize;
        let has = has.remove(id).unwrap_or_default();
        let mut own = [has.staying, has.leaving].concat();
        own.truncate(share);
        let more = share - own.len();
        own.extend(free.by_ref().take(more));
        own.sort_unstable();
        assigned.insert(id.to_owned(), own);
    }
    assigned
}

/// What a member has, and nobody else claims with more right.
#[derive(Debug, Default)]
struct Has {
    staying: Vec<u32>,
    leaving: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn member(id: &str, generation: i32, claims: &[u32]) -> Member {
        letting_go(id, generation, claims, &[])
    }

    fn letting_go(id: &str, generation: i32, staying: &[u32], leaving: &[u32]) -> Member {
        let claims = Claims { staying: staying.to_vec(), leaving: leaving.to_vec(), generation, draining: false };
        Member { id: id.into(), claims }
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
                    let latest = members.iter().filter(|m| m.all().any(|claimed| claimed == partition))
                        .map(|m| m.claims.generation).max();
                    let mine = members.iter().find(|m| m.id == *id).unwrap();
                    prop_assert!(latest.is_none() || (mine.all().any(|claimed| claimed == partition)
                        && Some(mine.claims.generation) == latest));
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

    /// Each lets go in its own time, and joins again once it has.
    #[test]
    fn who_lets_go_first_is_not_asked_for_more_and_nobody_is_given_back_what_it_lets_go() {
        let (a, b) = (member("b", 1, &[0, 1, 2, 3]), member("a", 1, &[4, 5, 6]));
        let first = assign(&[a, b, member("c", -1, &[])], 7);
        assert_eq!((&first["b"], &first["a"]), (&vec![0, 1, 2], &vec![4, 5]));
        let (a, b) = (member("b", 2, &[0, 1, 2]), letting_go("a", 2, &[4, 5], &[6]));
        let second = assign(&[a, b, member("c", 2, &[])], 7);
        assert_eq!((&second["b"], &second["a"], &second["c"]), (&vec![0, 1, 2], &vec![4, 5], &vec![3]));
        // What it lets go comes back where it is needed there again.
        let third = assign(&[letting_go("a", 2, &[4, 5], &[6])], 7);
        assert_eq!(third["a"], [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_draining_member_gets_nothing_and_the_others_share_what_it_lets_go() {
        let draining = |leaving: &[u32]| {
            let mut member = letting_go("a", 4, &[], leaving);
            member.claims.draining = true;
            member
        };
        let others = [member("b", 4, &[3, 4]), member("c", 4, &[5])];
        let first = assign(&[&[draining(&[2])], &others[..]].concat(), 6);
        assert_eq!((first.get("a"), &first["b"], &first["c"]), (None, &vec![0, 3, 4], &vec![1, 5]));
        let second = assign(&[draining(&[]), member("b", 5, &[0, 3, 4]), member("c", 5, &[1, 5])], 6);
        assert_eq!((&second["b"], &second["c"]), (&vec![0, 3, 4], &vec![1, 2, 5]));
        assert!(assign(&[draining(&[2])], 6).is_empty(), "there is no other member to have it");
    }

    #[test]
    fn who_was_cut_off_does_not_take_back_what_is_somebody_elses() {
        let assigned = assign(&[member("late", 3, &[0, 1]), member("owner", 5, &[0, 1])], 2);
        assert_eq!((&assigned["late"], &assigned["owner"]), (&vec![], &vec![0]));
    }
}
