//! Whether a slow attempt is its user's own, or the destination is slow for every user.
//!
//! ```text
//!  attempt of A   ├──────────────────────── 1 s ───────▶         A is slow
//!  attempt of B           ├── delivered ──┤                      B was served quickly meanwhile: A is slow alone
//!                 ├ 250 ms ┤
//! ```
//!
//! The attempt of B must have begun well after that of A. If the destination becomes slow for all users at one moment,
//! attempts that began just before the last quick deliveries are slow, too.
//!
//! Users that are slow and of whom this was not seen are counted. If there are at least as many of them as are needed to
//! judge the health of a destination, it is slow for every user. A few such users may be slow alone: nothing tells.

use super::health::DECIDING_USERS_MIN;
use crate::core::Moment;
use crate::core::slots::OLD_AFTER;
use std::collections::VecDeque;
use std::time::Duration;

/// A delivery that took longer than this does not show that the destination is quick. It is far below [`OLD_AFTER`], so that
/// a destination whose answers take about that long is not found to be quick by some of them.
const QUICK_MAX: Duration = Duration::from_millis(500);

/// How much later than a slow attempt another one must have begun.
const BEGAN_AFTER_MIN: Duration = Duration::from_millis(250);

/// How long a slow user counts that was not seen since. Attempts in flight are seen again and again while users might be
/// parked.
const SEEN_LATELY: Duration = Duration::from_secs(5);

/// The quick deliveries and the slow users of a destination that were seen last.
#[derive(Debug, Default)]
pub(super) struct RecentPaces {
    /// The two quick deliveries of different users that began last. For any user, one of them is of another user.
    quick: [Option<QuickDelivery>; 2],
    /// The last users that were slow, and not seen to be slow alone, with the time when they were seen: at most
    /// [`DECIDING_USERS_MIN`].
    slow: VecDeque<(u64, Moment)>,
    /// When the last quick delivery ended. If there was none yet, when the first slow user was seen.
    no_quick_since: Option<Moment>,
}

#[derive(Debug, Clone, Copy)]
struct QuickDelivery {
    user: u64,
    began: Moment,
}

impl RecentPaces {
    /// Notes an attempt that began at this time and has ended with an answer, or without one in time.
    pub(super) fn ended(&mut self, user: u64, began: Moment, is_delivered: bool, now: Moment) {
        let took = now.saturating_sub(began);
        if took >= OLD_AFTER {
            self.seen_slow(user, began, now);
            return;
        }
        self.slow.retain(|(slow, _)| *slow != user);
        if is_delivered && took <= QUICK_MAX {
            self.seen_quick(QuickDelivery { user, began });
            self.no_quick_since = Some(now);
        }
    }

    fn seen_quick(&mut self, delivery: QuickDelivery) {
        let [first, second] = &mut self.quick;
        match first {
            Some(known) if known.user == delivery.user => known.began = known.began.max(delivery.began),
            Some(known) if known.began > delivery.began => {
                if second.is_none_or(|known| known.began < delivery.began) {
                    *second = Some(delivery);
                }
            }
            _ => *second = first.replace(delivery),
        }
    }

    /// Notes that an attempt has taken [`OLD_AFTER`], whether it has ended or not.
    pub(super) fn seen_slow(&mut self, user: u64, began: Moment, now: Moment) {
        self.slow.retain(|(slow, _)| *slow != user);
        if !self.is_slow_alone(user, began) {
            self.no_quick_since.get_or_insert(now);
            self.slow.push_back((user, now));
            if self.slow.len() > DECIDING_USERS_MIN {
                self.slow.pop_front();
            }
        }
    }

    /// Whether another user was served quickly while this slow attempt was in flight.
    pub(super) fn is_slow_alone(&self, user: u64, began: Moment) -> bool {
        let of_others = self.quick.iter().flatten().filter(|delivery| delivery.user != user);
        of_others.map(|delivery| delivery.began).max().is_some_and(|at| at >= began.saturating_add(BEGAN_AFTER_MIN))
    }

    /// If the destination is slow for every user, as far as was seen lately: since when no user was served quickly.
    pub(super) fn slow_for_all_since(&self, now: Moment) -> Option<Moment> {
        let is_recent = |(_, at): &&(u64, Moment)| now < at.saturating_add(SEEN_LATELY);
        let is_slow_for_all = self.slow.iter().filter(is_recent).count() >= DECIDING_USERS_MIN;
        self.no_quick_since.filter(|_| is_slow_for_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Moment {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_destination_is_slow_for_all_if_five_users_are_slow_and_none_was_quick_meanwhile() {
        let mut paces = RecentPaces::default();
        for user in 0..10 {
            paces.ended(user, ms(10 + user), true, ms(40));
        }
        for user in 0..5 {
            assert_eq!(paces.slow_for_all_since(ms(1_300)), None);
            paces.ended(user, ms(50), true, ms(1_300));
            assert!(!paces.is_slow_alone(user, ms(50)));
        }
        assert_eq!(paces.slow_for_all_since(ms(1_300)), Some(ms(40)), "the last quick delivery");
        paces.seen_slow(4, ms(1_300), ms(2_400));
        assert_eq!(paces.slow_for_all_since(ms(6_300)), None, "only one was seen lately");
    }

    #[test]
    fn users_that_are_slow_while_another_one_is_quick_are_slow_alone() {
        let mut paces = RecentPaces::default();
        paces.ended(99, ms(500), true, ms(510));
        for user in 0..20 {
            paces.ended(user, ms(200), true, ms(2_000));
            assert!(paces.is_slow_alone(user, ms(200)));
        }
        assert_eq!(paces.slow_for_all_since(ms(2_000)), None);
        assert!(!paces.is_slow_alone(99, ms(200)), "its own delivery shows nothing about it");
        paces.ended(98, ms(100), true, ms(2_000));
        paces.ended(98, ms(2_100), true, ms(2_110));
        assert!(paces.is_slow_alone(99, ms(200)));
    }

    #[test]
    fn a_slow_user_that_is_quick_or_slow_alone_later_does_not_count() {
        let mut paces = RecentPaces::default();
        for user in 0..5 {
            paces.seen_slow(user, ms(0), ms(1_000));
        }
        assert_eq!(paces.slow_for_all_since(ms(1_000)), Some(ms(1_000)), "the first slow user");
        paces.ended(3, ms(1_000), true, ms(1_600));
        assert_eq!(paces.slow_for_all_since(ms(1_600)), None, "600 ms is not slow, and not quick");
        paces.seen_slow(3, ms(1_600), ms(2_600));
        assert_eq!(paces.slow_for_all_since(ms(2_600)), Some(ms(1_000)));
        paces.ended(9, ms(2_600), true, ms(2_610));
        paces.seen_slow(2, ms(1_000), ms(2_700));
        assert_eq!(paces.slow_for_all_since(ms(2_700)), None);
    }
}
