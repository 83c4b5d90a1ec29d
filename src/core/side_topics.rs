//! The names of side topics and of the groups that eventd uses besides a destination's own. This is the only place that
//! knows their suffixes.
//!
//! ```text
//!  orders                    the main topic
//!  orders.crm.dead           dead letters of the destination `crm`
//!  orders.crm.state          large progress of the destination `crm` (only on Kafka)
//!  orders.crm.control        commands of operators to the owners of the destination `crm`
//!  orders.audit              what replays did, and which destinations sign their requests
//!
//!  crm                       the group of the destination `crm`
//!  crm.rewind                its offset resets
//!  crm.dead                  its redrive of dead letters
//!  crm.replay.ID             one replay
//! ```

/// The suffix of topics with dead letters, and of the groups that redrive them.
pub const DEAD: &str = ".dead";

/// The suffix of topics with progress that is too large for a commit.
pub const STATE: &str = ".state";

/// The suffix of topics with commands of operators.
pub const CONTROL: &str = ".control";

/// The suffix of topics with audit records.
pub const AUDIT: &str = ".audit";

/// The suffix of groups with requested offset resets.
pub const REWIND: &str = ".rewind";

/// Between the destination's name and the id in the name of a replay's group.
pub const REPLAY_INFIX: &str = ".replay.";

/// The suffixes of side topics. A main topic with such a name could be taken for the side topic of another one.
const TOPIC_SUFFIXES: [&str; 4] = [DEAD, STATE, CONTROL, AUDIT];

/// Characters of the longest suffix of the side topics that a delivery writes. (Nothing depends on the topic of commands.
/// If its name is too long, `eventd control` says so.)
pub const TOPIC_SUFFIX_CHARS_MAX: usize = STATE.len();

/// The suffixes that a destination's name must not have: its group or its side topics could be those of another one.
pub const DESTINATION_SUFFIXES: [&str; 3] = [DEAD, REWIND, STATE];

/// The topic with the dead letters of a destination.
pub fn dead_letter_topic(topic: &str, destination: &str) -> String {
    format!("{topic}.{destination}{DEAD}")
}

/// The topic with the progress of a group that is too large for a commit.
pub fn state_topic(topic: &str, group: &str) -> String {
    format!("{topic}.{group}{STATE}")
}

/// The topic with the commands of operators to the owners of a destination.
pub fn control_topic(topic: &str, destination: &str) -> String {
    format!("{topic}.{destination}{CONTROL}")
}

/// The topic with the audit records of all destinations.
pub fn audit_topic(topic: &str) -> String {
    format!("{topic}{AUDIT}")
}

/// The group with the requested offset resets of a destination.
pub fn rewind_group(destination: &str) -> String {
    format!("{destination}{REWIND}")
}

/// The group that redrives the dead letters of a destination.
pub fn dead_letter_group(destination: &str) -> String {
    format!("{destination}{DEAD}")
}

/// The group with the progress of one replay.
pub fn replay_group(destination: &str, id: &str) -> String {
    format!("{destination}{REPLAY_INFIX}{id}")
}

/// The destination of a side topic of this topic. `None`: it belongs to another topic, or to no destination.
pub fn destination_of<'n>(topic: &str, side_topic: &'n str) -> Option<&'n str> {
    let name = side_topic.strip_prefix(topic)?.strip_prefix('.')?;
    let destination = [DEAD, STATE, CONTROL].into_iter().find_map(|suffix| name.strip_suffix(suffix))?;
    is_destination(destination).then_some(destination)
}

/// Whether a group is that of a destination, and not one of eventd's own.
pub fn is_destination(group: &str) -> bool {
    !group.contains(REPLAY_INFIX) && !DESTINATION_SUFFIXES.iter().any(|suffix| group.ends_with(suffix))
}

/// Whether this is the name of a side topic.
pub fn is_side_topic(name: &str) -> bool {
    suffix_of(name).is_some()
}

fn suffix_of(name: &str) -> Option<&'static str> {
    TOPIC_SUFFIXES.into_iter().find(|suffix| name.ends_with(suffix))
}

/// Refuses the name of a side topic as the name of a main topic.
///
/// # Errors
/// Names the suffix and says what to do.
pub fn check_main_topic(name: &str) -> Result<(), String> {
    match suffix_of(name) {
        Some(suffix) => {
            Err(format!("topic names that end with {suffix:?} are reserved for eventd's side topics: use another name"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_side_topics_and_groups_are_told_from_those_of_topics_and_destinations() {
        let (dead, state, control) =
            (dead_letter_topic("orders", "crm"), state_topic("orders", "crm"), control_topic("orders", "crm"));
        for name in [dead, state, control, audit_topic("orders")] {
            let error = check_main_topic(&name).unwrap_err();
            assert!(error.contains("reserved"), "{name}: {error}");
        }
        for name in [dead_letter_topic("orders", "crm"), state_topic("orders", "crm"), control_topic("orders", "crm")] {
            assert_eq!(destination_of("orders", &name), Some("crm"), "{name}");
        }
        let replay = replay_group("crm", "1");
        for name in [audit_topic("orders"), state_topic("orders", &replay), dead_letter_topic("other", "crm")] {
            assert_eq!(destination_of("orders", &name), None, "{name}");
        }
        assert!(is_destination("crm") && !is_destination(&rewind_group("crm")) && !is_destination(&replay));
        for name in ["orders", "dead", "orders.dead-letters", "state.orders", "audit"] {
            assert_eq!(check_main_topic(name), Ok(()), "{name}");
        }
    }
}
