//! Whether a slow attempt is its user's own, or the destination is slow for every user.
//!
//! ```text
//!  attempt of A   ├──────────────────────── 1 s or more ───────▶         A is slow
//!  attempt of B           ├── delivered ──┤                      B took at most half as long: A is slow alone
//!                 ├ 250 ms ┤
//! ```
//!
//! The attempt of B must have begun well after that of A. If the destination becomes slow for all users at one moment,
//! attempts that began just before the last quick deliveries are slow, too.
//!
//! The attempt of B must have taken less than a second, and at most half of the time that A has taken up to now. So a
//! destination that usually answers within 0.7 s shows after 1.4 s that A is slow alone. But a destination whose
//! answers all take about a second shows this by none of them.
//!
//! Users that are slow and of whom this was not seen are counted. If there are at least as many of them as are needed to
//! judge the health of a destination, it is slow for every user. A few such users may be slow alone: nothing tells.
//!
//! ```text
//!  quick deliveries         5 users are slow          5 users are slow
//!  ────────────────┤        ├───────────────┤  < 5 s  ├───────────────
//!                    idle   └ the slow time began here
//! ```

use super::health::DECIDING_USERS_MIN;
use crate::core::Moment;
use crate::core::slots::OLD_AFTER;
use std::collections::VecDeque;
use std::time::Duration;

/// A delivery that took longer than this does not end the time in which no user was served quickly. It is at most half
/// of the time that any slow attempt takes.
const QUICK_MAX: Duration = Duration::from_millis(500);

/// How much later than a slow attempt another one must have begun.
const BEGAN_AFTER_MIN: Duration = Duration::from_millis(250);

/// How long a slow user counts that was not seen since. Attempts in flight are seen again and again while users might be
/// parked.
const SEEN_LATELY: Duration = Duration::from_secs(5);

/// The deliveries and the slow users of a destination that were seen last.
#[derive(Debug, Default)]
pub(super) struct RecentPaces {
    /// The two deliveries of different users that began last, and were not slow. For any user, one of them is of
    /// another user.
    not_slow: [Option<ShortDelivery>; 2],
    /// The last users that were slow, and not seen to be slow alone, with the time when they were seen: at most
    /// [`DECIDING_USERS_MIN`].
    slow: VecDeque<(u64, Moment)>,
    /// The present time in which the destination is slow for every user, or the last one.
    slow_time: Option<SlowTime>,
    /// When the last quick delivery ended.
    last_quick_at: Option<Moment>,
}

/// A time in which there were always enough slow users to find that the destination is slow for every user, or again
/// within [`SEEN_LATELY`]. A single user that is not slow once does not end it.
#[derive(Debug, Clone, Copy)]
struct SlowTime {
    began: Moment,
    last_seen_at: Moment,
}

/// A delivery that took less than [`OLD_AFTER`].
#[derive(Debug, Clone, Copy)]
struct ShortDelivery {
    user: u64,
    began: Moment,
    took: Duration,
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
        if is_delivered {
            self.seen_short(ShortDelivery { user, began, took });
            if took <= QUICK_MAX {
                self.last_quick_at = Some(now);
            }
        }
    }

    fn seen_short(&mut self, delivery: ShortDelivery) {
        let [first, second] = &mut self.not_slow;
        match first {
            Some(known) if known.user == delivery.user => {
                if known.began <= delivery.began {
                    *known = delivery;
                }
            }
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
        if self.is_slow_alone(user, began, now) {
            return;
        }
        self.slow.push_back((user, now));
        if self.slow.len() > DECIDING_USERS_MIN {
            self.slow.pop_front();
        }
        if self.is_slow_for_all(now) {
            let present = self.slow_time.filter(|time| now < time.last_seen_at.saturating_add(SEEN_LATELY));
            let began = present.map_or(now, |time| time.began);
            self.slow_time = Some(SlowTime { began, last_seen_at: now });
        }
    }

    /// Whether another user was served far more quickly while this slow attempt was in flight.
    pub(super) fn is_slow_alone(&self, user: u64, began: Moment, now: Moment) -> bool {
        let (began_min, age) = (began.saturating_add(BEGAN_AFTER_MIN), now.saturating_sub(began));
        let is_far_quicker = |other: &ShortDelivery| {
            other.user != user && other.began >= began_min && other.took.saturating_mul(2) <= age
        };
        self.not_slow.iter().flatten().any(is_far_quicker)
    }

    /// Whether enough users were slow lately, and not seen to be slow alone.
    fn is_slow_for_all(&self, now: Moment) -> bool {
        let is_recent = |(_, at): &&(u64, Moment)| now < at.saturating_add(SEEN_LATELY);
        self.slow.iter().filter(is_recent).count() >= DECIDING_USERS_MIN
    }

    /// When the last quick delivery ended.
    pub(super) fn last_quick_at(&self) -> Option<Moment> {
        self.last_quick_at
    }

    /// If the destination is slow for every user, as far as was seen lately: since when this is so and no user was
    /// served quickly. The last quick delivery alone does not tell, because the destination may have had nothing to do
    /// after it.
    pub(super) fn slow_for_all_since(&self, now: Moment) -> Option<Moment> {
        let began = self.slow_time.filter(|_| self.is_slow_for_all(now))?.began;
        Some(self.last_quick_at.map_or(began, |at| at.max(began)))
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
            assert!(!paces.is_slow_alone(user, ms(50), ms(1_300)));
        }
        assert_eq!(paces.slow_for_all_since(ms(1_300)), Some(ms(1_300)), "the fifth slow user");
        paces.seen_slow(4, ms(1_300), ms(2_400));
        assert_eq!(paces.slow_for_all_since(ms(6_300)), None, "only one was seen lately");
    }

    #[test]
    fn users_that_are_slow_while_another_one_is_quick_are_slow_alone() {
        let mut paces = RecentPaces::default();
        paces.ended(99, ms(500), true, ms(510));
        for user in 0..20 {
            paces.ended(user, ms(200), true, ms(2_000));
            assert!(paces.is_slow_alone(user, ms(200), ms(2_000)));
        }
        assert_eq!(paces.slow_for_all_since(ms(2_000)), None);
        assert!(!paces.is_slow_alone(99, ms(200), ms(2_000)), "its own delivery shows nothing about it");
        paces.ended(98, ms(100), true, ms(2_000));
        paces.ended(98, ms(2_100), true, ms(2_110));
        assert!(paces.is_slow_alone(99, ms(200), ms(2_110)));
    }

    #[test]
    fn users_that_take_twice_as_long_as_the_others_are_slow_alone_although_no_user_is_quick() {
        let mut paces = RecentPaces::default();
        for healthy in 90..100 {
            paces.ended(healthy, ms(300), true, ms(1_000));
        }
        for user in 0..20 {
            assert!(!paces.is_slow_alone(user, ms(0), ms(1_399)), "700 ms are more than half of its time");
            paces.ended(user, ms(0), true, ms(2_000));
            assert!(paces.is_slow_alone(user, ms(0), ms(2_000)));
        }
        assert_eq!(paces.slow_for_all_since(ms(2_000)), None);
    }

    #[test]
    fn a_slow_time_begins_with_the_fifth_slow_user_or_the_last_quick_delivery_after_it() {
        let mut paces = RecentPaces::default();
        paces.ended(9, ms(0), true, ms(10));
        // Nothing happens for ten minutes.
        for user in 0..5 {
            paces.ended(user, ms(600_000), true, ms(601_000 + user));
        }
        assert_eq!(paces.slow_for_all_since(ms(601_010)), Some(ms(601_004)));
        paces.ended(4, ms(601_004), true, ms(601_904));
        assert_eq!(paces.slow_for_all_since(ms(601_904)), None, "900 ms are not slow");
        paces.seen_slow(5, ms(602_000), ms(603_000));
        assert_eq!(paces.slow_for_all_since(ms(603_000)), Some(ms(601_004)), "the slow time has not ended");
        paces.ended(9, ms(603_000), true, ms(603_010));
        assert_eq!(paces.slow_for_all_since(ms(603_010)), Some(ms(603_010)));
        for user in 0..5 {
            paces.seen_slow(user, ms(607_000), ms(608_000));
        }
        assert_eq!(paces.slow_for_all_since(ms(608_000)), Some(ms(608_000)), "none was seen for 5 s");
    }

    #[test]
    fn a_destination_that_takes_about_a_second_is_not_found_to_be_quick() {
        let mut paces = RecentPaces::default();
        for user in 0..10 {
            let took = if user % 2 == 0 { 900 } else { 1_200 };
            paces.ended(user, ms(300 * user), true, ms(300 * user + took));
        }
        assert!(paces.slow_for_all_since(ms(3_900)).is_some());
    }

    #[test]
    fn a_slow_user_that_is_quick_or_slow_alone_later_does_not_count() {
        let mut paces = RecentPaces::default();
        for user in 0..5 {
            paces.seen_slow(user, ms(0), ms(1_000));
        }
        assert_eq!(paces.slow_for_all_since(ms(1_000)), Some(ms(1_000)), "the fifth slow user");
        paces.ended(3, ms(1_000), true, ms(1_600));
        assert_eq!(paces.slow_for_all_since(ms(1_600)), None, "600 ms is not slow, and not quick");
        paces.seen_slow(3, ms(1_600), ms(2_600));
        assert_eq!(paces.slow_for_all_since(ms(2_600)), Some(ms(1_000)));
        paces.ended(9, ms(2_600), true, ms(2_610));
        paces.seen_slow(2, ms(1_000), ms(2_700));
        assert_eq!(paces.slow_for_all_since(ms(2_700)), None);
    }
}
