//! Users whose last settled event was given up: their next attempt carries the header `eventd-gap`.
//!
//! The dead letter is the record of what is missing. This is only a hint for the receiver, so it is bounded: beyond the
//! limit the user that was added first is forgotten.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Bytes that an entry of the queue may take on average, with the user's id. Usual ids take less. If all ids are very
/// long, fewer users are remembered.
const ENTRY_BYTES_MAX: usize = 128;

/// Bytes of an entry without the user's id.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The users after a dead letter, oldest first. Removing a user leaves its entry in the queue, so that it takes constant
/// time. The entry is stale then: its number is not that of the user any more.
#[derive(Debug)]
pub(super) struct UsersAfterDeadLetter {
    users_max: usize,
    /// User → the number of its entry in `order`.
    users: HashMap<Option<Arc<[u8]>>, u64>,
    order: VecDeque<(u64, Option<Arc<[u8]>>)>,
    /// Bytes that the entries in `order` take.
    bytes: usize,
    last_number: u64,
}

impl UsersAfterDeadLetter {
    pub(super) fn new(users_max: usize) -> Self {
        Self { users_max, users: HashMap::new(), order: VecDeque::new(), bytes: 0, last_number: 0 }
    }

    fn entry_bytes(user: Option<&[u8]>) -> usize {
        ENTRY_OVERHEAD_BYTES + user.map_or(0, <[u8]>::len)
    }

    /// Whether this user's last settled event was given up. The set is nearly always empty, and then no key is copied.
    pub(super) fn contains(&self, user: Option<&[u8]>) -> bool {
        !self.users.is_empty() && self.users.contains_key(&user.map(Arc::from))
    }

    /// An event of this user was given up.
    pub(super) fn insert(&mut self, user: Option<&[u8]>) {
        let user: Option<Arc<[u8]>> = user.map(Arc::from);
        if self.users.contains_key(&user) {
            return;
        }
        self.last_number += 1;
        self.bytes += Self::entry_bytes(user.as_deref());
        self.users.insert(user.clone(), self.last_number);
        self.order.push_back((self.last_number, user));
        self.forget_oldest();
    }

    /// Changes how many users are remembered.
    pub(super) fn set_users_max(&mut self, users_max: usize) {
        if self.users_max != users_max {
            self.users_max = users_max;
            self.forget_oldest();
        }
    }

    /// Forgets those that were added first, until the others are within the bounds.
    fn forget_oldest(&mut self) {
        // Stale entries count too: twice as many entries as users keeps both the queue and the work to clean it small.
        let entries_max = self.users_max.saturating_mul(2);
        let bytes_max = entries_max.saturating_mul(ENTRY_BYTES_MAX);
        // The newest user stays, however long its id is.
        while self.users.len() > self.users_max
            || self.order.len() > entries_max
            || (self.bytes > bytes_max && self.order.len() > 1)
        {
            let Some((number, oldest)) = self.order.pop_front() else { break };
            self.bytes -= Self::entry_bytes(oldest.as_deref());
            if self.users.get(&oldest) == Some(&number) {
                self.users.remove(&oldest);
            }
        }
    }

    /// An event of this user was delivered.
    pub(super) fn remove(&mut self, user: Option<&[u8]>) {
        if !self.users.is_empty() {
            self.users.remove(&user.map(Arc::from));
            if self.users.is_empty() {
                self.order.clear();
                self.bytes = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn the_set_is_bounded_and_never_holds_a_user_that_was_removed(
            users_max in 1usize..4,
            steps in proptest::collection::vec((any::<bool>(), 0u8..6), 0..80),
        ) {
            let mut set = UsersAfterDeadLetter::new(users_max);
            let mut model = BTreeSet::new();
            for (insert, user) in steps {
                if insert {
                    model.insert(user);
                    set.insert(Some(&[user]));
                    prop_assert!(set.contains(Some(&[user])), "the newest user is remembered");
                } else {
                    model.remove(&user);
                    set.remove(Some(&[user]));
                }
                prop_assert!(set.order.len() <= 2 * users_max && set.users.len() <= users_max);
                let held = (0..6).filter(|user| set.contains(Some(&[*user]))).count();
                prop_assert!((0..6).all(|user| !set.contains(Some(&[user])) || model.contains(&user)));
                prop_assert!(held == set.users.len(), "every user in the set is found");
            }
        }
    }

    #[test]
    fn the_user_that_was_added_first_is_forgotten_first() {
        let mut set = UsersAfterDeadLetter::new(2);
        for user in [b"a", b"b", b"c"] {
            set.insert(Some(user));
        }
        assert_eq!([b"a", b"b", b"c"].map(|user| set.contains(Some(user))), [false, true, true]);
        set.set_users_max(1);
        assert_eq!([b"a", b"b", b"c"].map(|user| set.contains(Some(user))), [false, false, true]);
    }

    #[test]
    fn users_with_long_ids_are_bounded_in_bytes() {
        let mut set = UsersAfterDeadLetter::new(100);
        for number in 0..1_000 {
            let user = format!("{number:01024}");
            set.insert(Some(user.as_bytes()));
            assert!(set.contains(Some(user.as_bytes())), "the newest user is remembered");
            assert!(set.bytes <= 2 * 100 * ENTRY_BYTES_MAX, "{} bytes", set.bytes);
            assert_eq!(set.bytes, set.order.len() * (1024 + ENTRY_OVERHEAD_BYTES));
        }
        assert_eq!(set.users.len(), 23);
        set.insert(None);
        let users: Vec<_> = set.users.keys().cloned().collect();
        users.iter().for_each(|user| set.remove(user.as_deref()));
        assert_eq!((set.bytes, set.order.len()), (0, 0));
    }
}
