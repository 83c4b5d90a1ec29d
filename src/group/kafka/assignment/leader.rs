//! What the leader of a generation decides: which members it refuses, and what the others are assigned. Pure.

use super::assignor::{self, Assignee};
use super::messages::{Assignment, Subscription};

/// Assigns the partitions of `topic` to the members that subscribe to it, given as member id and subscription.
pub(in crate::group::kafka) fn assign_members(
    group: &str,
    topic: &str,
    members: &[(String, Subscription)],
    partition_count: u32,
) -> Vec<(String, Assignment)> {
    // If the members disagree about the destination, the member that has been here longest is right. Among new members it
    // is the one with the first id, so that the choice does not depend on which of them leads.
    let seniority =
        |(id, subscription): &&(String, Subscription)| (subscription.owned.generation, std::cmp::Reverse(id.clone()));
    let senior = members.iter().max_by_key(seniority);
    let digest = senior.map(|(_, subscription)| subscription.digest.as_str()).unwrap_or_default();
    let accepted: Vec<Assignee> = members
        .iter()
        .filter(|(_, subscription)| subscription.digest == digest)
        .map(|(id, subscription)| Assignee { id: id.clone(), partitions: subscription.owned.clone() })
        .collect();
    let mut assigned = assignor::assign(&accepted, partition_count);
    let assignment = |(id, subscription): &(String, Subscription)| {
        let refusal = match subscription.digest == digest {
            true => String::new(),
            false => {
                format!(
                    "the group {group:?} belongs to another destination of topic {topic:?}. Check first that all \
                     processes of this name deliver to the same --dest. If one of them runs an older eventd, stop it: \
                     that may count the same URL as another destination. Another --name is a new destination, which \
                     starts at --start"
                )
            }
        };
        let partitions = assigned.remove(id).unwrap_or_default();
        (id.clone(), Assignment { topic: topic.to_owned(), partitions, refusal })
    };
    members.iter().map(assignment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::kafka::assignment::OwnedPartitions;

    fn member(id: &str, digest: &str, generation: i32, owned: &[u32]) -> (String, Subscription) {
        let (topic, digest) = ("orders".to_owned(), digest.to_owned());
        let owned = OwnedPartitions { owned: owned.to_vec(), revoking: Vec::new(), generation, draining: false };
        (id.to_owned(), Subscription { topic, owned, digest })
    }

    #[test]
    fn another_destination_under_the_same_name_is_refused_and_the_members_that_were_there_continue() {
        let members = [member("a", "new", -1, &[]), member("b", "old", 7, &[0, 1]), member("c", "old", -1, &[])];
        let assigned = assign_members("crm", "orders", &members, 3);
        let of = |id: &str| &assigned.iter().find(|(member, _)| member == id).unwrap().1;
        let refusal = &of("a").refusal;
        for word in ["same --dest", "older eventd", "Another --name", "--start"] {
            assert!(refusal.contains(word), "{word} is not in: {refusal}");
        }
        assert!(of("a").partitions.is_empty(), "a refused member got {:?}", of("a"));
        assert_eq!((of("b").refusal.as_str(), of("b").partitions.as_slice()), ("", &[0, 1][..]));
        assert_eq!((of("c").refusal.as_str(), of("c").partitions.as_slice()), ("", &[2][..]));
    }

    #[test]
    fn which_of_several_new_members_is_accepted_does_not_depend_on_their_order() {
        let mut members = vec![member("b", "two", -1, &[]), member("a", "one", -1, &[])];
        let accepted = |members: &[(String, Subscription)]| -> Vec<String> {
            let assigned = assign_members("crm", "orders", members, 2);
            assigned.into_iter().filter(|(_, assignment)| assignment.refusal.is_empty()).map(|(id, _)| id).collect()
        };
        assert_eq!(accepted(&members), ["a"]);
        members.reverse();
        assert_eq!(accepted(&members), ["a"]);
    }
}
