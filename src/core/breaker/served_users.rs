//! The users that were served lately: a bounded memory that forgets the oldest half at once.

use crate::limits::SERVED_USERS_MAX;
use hashbrown::HashTable;

/// Remembers at least the last half, and at most the last [`SERVED_USERS_MAX`] users.
#[derive(Debug, Default)]
pub(super) struct ServedUsers {
    latest: HashTable<u64>,
    /// Full, and forgotten as a whole when `latest` is full.
    earlier: HashTable<u64>,
}

impl ServedUsers {
    pub(super) fn contains(&self, user: u64) -> bool {
        has(&self.latest, user) || has(&self.earlier, user)
    }

    pub(super) fn insert(&mut self, user: u64) {
        if has(&self.latest, user) {
            return;
        }
        if self.latest.len() >= SERVED_USERS_MAX / 2 {
            std::mem::swap(&mut self.latest, &mut self.earlier);
            self.latest.clear();
        }
        // A user is a hash already, so it needs no other one.
        self.latest.insert_unique(user, user, |user| *user);
    }
}

fn has(users: &HashTable<u64>, user: u64) -> bool {
    users.find(user, |other| *other == user).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::random;

    #[test]
    fn the_last_users_are_remembered_and_their_number_is_bounded() {
        let mut served = ServedUsers::default();
        let user = |number: usize| random::mix(number as u64);
        for number in 0..2 * SERVED_USERS_MAX {
            served.insert(user(number));
            served.insert(user(number));
        }
        assert!(served.latest.len() + served.earlier.len() <= SERVED_USERS_MAX);
        let remembered = |range: std::ops::Range<usize>| range.filter(|number| served.contains(user(*number))).count();
        assert_eq!(remembered(3 * SERVED_USERS_MAX / 2..2 * SERVED_USERS_MAX), SERVED_USERS_MAX / 2);
        assert_eq!(remembered(0..SERVED_USERS_MAX), 0);
    }
}
