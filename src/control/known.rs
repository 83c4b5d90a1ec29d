//! The destinations of a topic, for the message that a name is unknown.

use super::CommandContext;
use crate::core::side_topics::{destination_of, is_destination};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;

/// How long the look may take.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// The most destinations that the message names.
const SHOWN_MAX: usize = 10;

/// The end of the message: the names that exist. Empty if none is known. Kafka lists no commits of a topic, so there the
/// names are those of side topics.
pub(super) async fn known_destinations(context: &CommandContext) -> String {
    let looking = async { tokio::join!(context.groups.names(&context.log), context.engine.topics()) };
    let Ok((groups, topics)) = timeout(LOOK_MAX, looking).await else { return String::new() };
    let (groups, topics) = (groups.unwrap_or_default(), topics.unwrap_or_default());
    let of_topics = topics.iter().filter_map(|name| destination_of(context.log.topic(), name));
    let of_groups = groups.iter().map(String::as_str).filter(|name| is_destination(name));
    listed(&of_topics.chain(of_groups).collect())
}

fn listed(names: &BTreeSet<&str>) -> String {
    if names.is_empty() {
        return String::new();
    }
    let shown: Vec<&str> = names.iter().take(SHOWN_MAX).copied().collect();
    let more = if names.len() > SHOWN_MAX { ", …" } else { "" };
    format!(". Destinations of this topic: {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_are_listed() {
        assert_eq!(listed(&BTreeSet::new()), "");
        assert_eq!(listed(&["hook", "crm"].into()), ". Destinations of this topic: crm, hook");
        let names: Vec<String> = (0..20).map(|number| format!("d{number:02}")).collect();
        let shown = listed(&names.iter().map(String::as_str).collect());
        assert!(shown.ends_with("d08, d09, …"), "{shown}");
    }
}
