//! Which names topics, groups and destinations may have. The rule is Kafka's.

/// Whether a name may contain the character: ASCII letters and digits, `.`, `_` and `-`.
pub fn may_contain(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-')
}

/// Whether this is a valid name of at most `chars_max` characters. `.` and `..` are not valid, because they would be
/// directories.
pub fn is_valid(name: &str, chars_max: usize) -> bool {
    (1..=chars_max).contains(&name.len()) && name.chars().all(may_contain) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_accepts_for_topics_are_valid_and_others_are_not() {
        for name in ["a", "user-events", "user-events.file-1.dead", "A_0", "..."] {
            assert!(is_valid(name, 249), "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250)] {
            assert!(!is_valid(name, 249), "{name}");
        }
    }
}
