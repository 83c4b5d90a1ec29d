//! Which users are quick and which are slow, by their last attempts.

use super::{OLD_AFTER, Standing};
use hashbrown::HashMap;
use std::time::Duration;

/// The pace of the users that were attempted last.
///
/// Users are remembered in two generations. If the newer one is full, the older one is forgotten, and the newer one takes
/// its place. So at least the last `users_max` users are remembered, and at most twice as many.
#[derive(Debug)]
pub struct UserPaces {
    users_max: usize,
    newer: HashMap<u64, Pace>,
    older: HashMap<u64, Pace>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// An attempt delivered within [`OLD_AFTER`], and none was slow since.
    Quick,
    /// The last attempt took longer.
    Slow,
    /// The last attempt took longer, and this one or an earlier one showed that others were served quickly meanwhile.
    SlowAlone,
}

impl UserPaces {
    /// Remembers at least this many users.
    pub fn new(users_max: usize) -> Self {
        Self { users_max: users_max.max(1), newer: HashMap::new(), older: HashMap::new() }
    }

    /// Changes how many users are remembered. If there are more, they are forgotten when others are remembered.
    pub fn set_users_max(&mut self, users_max: usize) {
        self.users_max = users_max.max(1);
    }

    /// Notes an attempt of the user that took this long.
    ///
    /// A quick failure ends what is known of a slow user, and says nothing new about another one.
    pub fn attempted(&mut self, user: u64, took: Duration, is_delivered: bool) {
        let pace = if took >= OLD_AFTER { Some(Pace::Slow) } else { is_delivered.then_some(Pace::Quick) };
        match (pace, self.pace(user)) {
            (Some(Pace::Slow), Some(Pace::SlowAlone)) => {}
            (Some(pace), known) if known != Some(pace) => self.remember(user, pace),
            (None, Some(Pace::Slow | Pace::SlowAlone)) => _ = self.newer.remove(&user),
            _ => {}
        }
    }

    /// Notes that an attempt of this user is slow while others are served quickly.
    pub fn found_slow_alone(&mut self, user: u64) {
        if self.pace(user) != Some(Pace::SlowAlone) {
            self.remember(user, Pace::SlowAlone);
        }
    }

    /// Whether the last attempt of this user was slow.
    pub fn is_slow(&self, user: u64) -> bool {
        matches!(self.known(user), Some(Pace::Slow | Pace::SlowAlone))
    }

    /// Whether this user is slow, and [others were served quickly](Self::found_slow_alone) meanwhile.
    pub fn is_slow_alone(&self, user: u64) -> bool {
        self.known(user) == Some(Pace::SlowAlone)
    }

    fn known(&self, user: u64) -> Option<Pace> {
        self.newer.get(&user).or_else(|| self.older.get(&user)).copied()
    }

    /// The standing of a user as far as its pace tells.
    pub fn standing(&mut self, user: u64) -> Standing {
        match self.pace(user) {
            Some(Pace::Quick) => Standing::Served,
            Some(Pace::Slow | Pace::SlowAlone) => Standing::Doubtful,
            None => Standing::Newcomer,
        }
    }

    /// The pace of a user, which is in the newer generation from now on.
    fn pace(&mut self, user: u64) -> Option<Pace> {
        if let Some(pace) = self.newer.get(&user) {
            return Some(*pace);
        }
        let pace = self.older.remove(&user)?;
        self.remember(user, pace);
        Some(pace)
    }

    fn remember(&mut self, user: u64, pace: Pace) {
        if self.newer.len() >= self.users_max && !self.newer.contains_key(&user) {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(user, pace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Doubtful, Newcomer, Served};

    const QUICK: Duration = Duration::from_millis(5);
    const SLOW: Duration = Duration::from_secs(5);

    #[test]
    fn the_last_attempt_decides_and_a_quick_failure_says_little() {
        let mut paces = UserPaces::new(10);
        assert_eq!(paces.standing(1), Newcomer);
        for (took, is_delivered, expected) in [
            (QUICK, false, Newcomer),
            (QUICK, true, Served),
            (QUICK, false, Served),
            (SLOW, true, Doubtful),
            (QUICK, false, Newcomer),
            (SLOW, false, Doubtful),
            (QUICK, true, Served),
        ] {
            paces.attempted(1, took, is_delivered);
            assert_eq!(paces.standing(1), expected, "after {took:?}, delivered: {is_delivered}");
        }
    }

    #[test]
    fn a_user_that_was_slow_alone_stays_so_until_it_is_quick_or_fails_quickly() {
        for (took, is_delivered) in [(QUICK, true), (QUICK, false)] {
            let mut paces = UserPaces::new(10);
            paces.attempted(1, SLOW, true);
            assert!(paces.is_slow(1) && !paces.is_slow_alone(1));
            paces.found_slow_alone(1);
            paces.attempted(1, SLOW, false);
            assert!(paces.is_slow(1) && paces.is_slow_alone(1));
            assert_eq!(paces.standing(1), Doubtful);
            paces.attempted(1, took, is_delivered);
            assert!(!paces.is_slow(1) && !paces.is_slow_alone(1));
        }
    }

    #[test]
    fn memory_is_bounded_and_users_that_are_seen_stay() {
        let mut paces = UserPaces::new(100);
        paces.attempted(0, SLOW, false);
        for user in 1..10_000 {
            paces.attempted(user, QUICK, true);
            assert_eq!(paces.standing(0), Doubtful, "user 0 is looked at all the time");
            assert!(paces.newer.len() <= 100 && paces.older.len() <= 100);
        }
        assert_eq!((paces.standing(9_950), paces.standing(9_000)), (Served, Newcomer));
        paces.set_users_max(10);
        for user in 10_000..10_025 {
            paces.attempted(user, QUICK, true);
        }
        assert!(paces.newer.len() <= 10 && paces.older.len() <= 10, "a smaller share");
    }
}
