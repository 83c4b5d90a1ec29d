//! Names of topics, groups and destinations, by Kafka's rule.

/// Whether the character may stand in a name: ASCII letters and digits, `.`, `_` and `-`.
pub fn may_hold(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// Whether this is a name of at most `chars_max` characters. `.` and `..` are none: they would be folders.
pub fn is_valid(name: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&name.len()) && name.chars().all(may_hold) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kafka_takes_for_topics() {
        for name in ["a", "user-events", "user-events.file-1.dead", "A_0", "..."] {
            assert!(is_valid(name, 249), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250)] {
            assert!(!is_valid(name, 249), "{name}");
        }
    }
}
