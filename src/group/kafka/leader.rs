//! What the leader of a generation decides: who is welcome, and who gets what. Pure.

use super::assignor::{self, Member};
use super::subscription::{Assignment, Subscription};

/// What each member for this topic gets.
pub(super) fn share(
    group: &str,
    topic: &str,
    members: &[(String, Subscription)],
    partitions: u32,
) -> Vec<(String, Assignment)> {
    // Who has been here longest is right; among new ones, the first.
    let rank = |(id, said): &&(String, Subscription)| (said.claims.generation, std::cmp::Reverse(id.clone()));
    let digest = members.iter().max_by_key(rank).map(|(_, said)| said.digest.as_str()).unwrap_or_default();
    let welcome: Vec<Member> = members
        .iter()
        .filter(|(_, said)| said.digest == digest)
        .map(|(id, said)| Member { id: id.clone(), claims: said.claims.clone() })
        .collect();
    let mut assigned = assignor::assign(&welcome, partitions);
    let tell = |(id, said): &(String, Subscription)| {
        let refusal = match said.digest == digest {
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
    members.iter().map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::kafka::subscription::Claims;

    fn member(id: &str, digest: &str, generation: i32, claims: &[u32]) -> (String, Subscription) {
        let (topic, digest) = ("orders".to_owned(), digest.to_owned());
        (
            id.to_owned(),
            Subscription {
                topic,
                claims: Claims { staying: claims.to_vec(), leaving: Vec::new(), generation, draining: false },
                digest,
            },
        )
    }

    #[test]
    fn another_destination_under_the_name_is_refused_and_those_who_were_there_go_on() {
        let members = [member("a", "new", -1, &[]), member("b", "old", 7, &[0, 1]), member("c", "old", -1, &[])];
        let told = share("crm", "orders", &members, 3);
        let of = |id: &str| &told.iter().find(|(member, _)| member == id).unwrap().1;
        let refusal = &of("a").refusal;
        for word in ["same --dest", "older eventd", "Another --name", "--start"] {
            assert!(refusal.contains(word), "{word} is not in: {refusal}");
        }
        assert!(of("a").partitions.is_empty(), "{:?}", of("a"));
        assert_eq!((of("b").refusal.as_str(), of("b").partitions.as_slice()), ("", &[0, 1][..]));
        assert_eq!((of("c").refusal.as_str(), of("c").partitions.as_slice()), ("", &[2][..]));
    }

    #[test]
    fn among_members_that_are_all_new_the_leader_does_not_matter() {
        let mut members = vec![member("b", "two", -1, &[]), member("a", "one", -1, &[])];
        let welcome = |members: &[(String, Subscription)]| -> Vec<String> {
            let told = share("crm", "orders", members, 2);
            told.into_iter().filter(|(_, told)| told.refusal.is_empty()).map(|(id, _)| id).collect()
        };
        assert_eq!(welcome(&members), ["a"]);
        members.reverse();
        assert_eq!(welcome(&members), ["a"]);
    }
}
