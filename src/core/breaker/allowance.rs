//! How many attempts may be in flight: all of `--concurrency`, or a part of it in bad health and after an outage.
//!
//! ```text
//!  all ────── health is bad ──────▶ half ── a second later, still bad ──▶ a quarter ──▶ …, 1/64
//!   ▲                                │
//!   └── doubled every 500 ms ◀───────┴── health is not bad any more
//!
//!  an outage ends ──▶ 1/64 ── doubled every 250 ms ──▶ all, after 1.5 s
//! ```
//!
//! A destination that answers 503 because it gets too much recovers only if it gets less. Halving and doubling bring the
//! rate near what it takes, from any distance, within seconds.

use crate::core::Moment;
use std::time::Duration;

/// In bad health, the attempts in flight are halved this often.
const HALVED_EVERY: Duration = Duration::from_secs(1);
/// After bad health, the attempts in flight are doubled this often. It is shorter than [`HALVED_EVERY`], so that a
/// destination which takes a certain rate gets more than that most of the time, and less seldom.
const DOUBLED_EVERY: Duration = Duration::from_millis(500);
/// After an outage, the attempts in flight are doubled this often.
const RAMP_DOUBLED_EVERY: Duration = Duration::from_millis(250);
/// The number is halved at most this often: to 1 of 64, which is also where it begins after an outage. With more it would
/// take too long until all attempts are allowed again.
const HALVINGS_MAX: u32 = 6;

/// The part of `--concurrency` that may be in flight.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct AttemptAllowance {
    /// How often the whole number was halved at `since`.
    halvings: u32,
    since: Moment,
    /// The time before `since` that counts for the next doubling.
    gained: Duration,
    change: AllowanceChange,
    last_halved: Option<Moment>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum AllowanceChange {
    /// The number stays: the whole at first, and in bad health what is left of it.
    #[default]
    Fixed,
    /// The number doubles each time that this much time has passed.
    Doubling(Duration),
}

impl AttemptAllowance {
    /// An outage has ended.
    pub(super) fn ramp_up(&mut self, now: Moment) {
        *self = Self {
            halvings: HALVINGS_MAX,
            since: now,
            gained: Duration::ZERO,
            change: AllowanceChange::Doubling(RAMP_DOUBLED_EVERY),
            last_halved: self.last_halved,
        };
    }

    /// Health is bad at this moment. The time that health was better before still counts, because the health of a
    /// destination that fails some attempts at random is bad for moments.
    pub(super) fn health_is_bad(&mut self, now: Moment) {
        let halvings = self.halvings_at(now);
        let halves = self.last_halved.is_none_or(|at| now >= at.saturating_add(HALVED_EVERY));
        let gained = match self.change {
            AllowanceChange::Doubling(DOUBLED_EVERY) if halvings > 0 => {
                self.gained_at(now).saturating_sub(DOUBLED_EVERY * (self.halvings - halvings))
            }
            AllowanceChange::Doubling(_) => Duration::ZERO,
            AllowanceChange::Fixed => self.gained,
        };
        *self = Self {
            halvings: (halvings + u32::from(halves)).min(HALVINGS_MAX),
            since: now,
            gained,
            change: AllowanceChange::Fixed,
            last_halved: if halves { Some(now) } else { self.last_halved },
        };
    }

    /// Health is not bad any more.
    pub(super) fn health_is_better(&mut self, now: Moment) {
        if self.change == AllowanceChange::Fixed {
            (self.since, self.change) = (now, AllowanceChange::Doubling(DOUBLED_EVERY));
        }
    }

    /// How many of `whole` attempts may be in flight now: at least 1.
    pub(super) fn part_of(&self, whole: usize, now: Moment) -> usize {
        (whole >> self.halvings_at(now)).max(1)
    }

    /// When [`part_of`](Self::part_of) grows next. `None`: it is the whole, or health is bad.
    pub(super) fn grows_at(&self, now: Moment) -> Option<Moment> {
        let AllowanceChange::Doubling(every) = self.change else { return None };
        let left = self.halvings_at(now);
        (left > 0).then(|| self.since.saturating_add(every * (self.halvings - left + 1) - self.gained))
    }

    fn halvings_at(&self, now: Moment) -> u32 {
        let doublings = match self.change {
            AllowanceChange::Fixed => 0,
            AllowanceChange::Doubling(every) => self.gained_at(now).as_millis() / every.as_millis(),
        };
        self.halvings.saturating_sub(u32::try_from(doublings).unwrap_or(u32::MAX))
    }

    /// The time that counts for doublings while the number doubles.
    fn gained_at(&self, now: Moment) -> Duration {
        self.gained + now.saturating_sub(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Moment {
        Duration::from_millis(ms)
    }

    #[test]
    fn after_an_outage_the_attempts_in_flight_reach_their_full_number_in_a_second_and_a_half() {
        let mut allowance = AttemptAllowance::default();
        assert_eq!((allowance.part_of(256, ms(0)), allowance.grows_at(ms(0))), (256, None));
        allowance.ramp_up(ms(1_000));
        let parts: Vec<usize> = (0..8).map(|step| allowance.part_of(256, ms(1_000 + 250 * step))).collect();
        assert_eq!(parts, [4, 8, 16, 32, 64, 128, 256, 256]);
        assert_eq!(allowance.part_of(10, ms(1_000)), 1, "at least one");
        assert_eq!(allowance.grows_at(ms(1_260)), Some(ms(1_500)));
        assert_eq!(allowance.grows_at(ms(2_500)), None);
    }

    #[test]
    fn bad_health_halves_the_attempts_in_flight_once_a_second_and_better_health_doubles_them() {
        let mut allowance = AttemptAllowance::default();
        let parts: Vec<usize> = (0..=5)
            .map(|step| {
                allowance.health_is_bad(ms(step * 500));
                allowance.part_of(64, ms(step * 500))
            })
            .collect();
        assert_eq!(parts, [32, 32, 16, 16, 8, 8]);
        assert_eq!(allowance.grows_at(ms(2_500)), None);
        allowance.health_is_better(ms(3_000));
        allowance.health_is_better(ms(3_200));
        assert_eq!((allowance.part_of(64, ms(3_499)), allowance.part_of(64, ms(3_500))), (8, 16));
        assert_eq!((allowance.grows_at(ms(3_500)), allowance.part_of(64, ms(9_000))), (Some(ms(4_000)), 64));
        allowance.health_is_bad(ms(9_000));
        assert_eq!(allowance.part_of(64, ms(9_000)), 32);
    }

    #[test]
    fn health_that_is_bad_for_moments_does_not_keep_the_attempts_in_flight_down() {
        let mut allowance = AttemptAllowance::default();
        let mut parts = Vec::new();
        // Bad for 10 of each 100 ms.
        for step in 0..600 {
            let now = ms(step * 10);
            if step % 10 == 0 {
                allowance.health_is_bad(now)
            } else {
                allowance.health_is_better(now)
            }
            parts.push(allowance.part_of(256, now));
        }
        assert!(parts.iter().all(|part| *part >= 64), "{parts:?}");
        assert!(parts.iter().filter(|part| **part == 256).count() > 200, "{parts:?}");
    }

    #[test]
    fn however_long_health_is_bad_a_sixty_fourth_of_the_attempts_may_be_in_flight() {
        let mut allowance = AttemptAllowance::default();
        for second in 0..100 {
            allowance.health_is_bad(Duration::from_secs(second));
        }
        assert_eq!([10, 10_000].map(|whole| allowance.part_of(whole, Duration::from_secs(100))), [1, 156]);
    }
}
