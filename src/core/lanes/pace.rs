//! How many events of a lane were delivered in the last seconds.

use crate::core::Moment;
use std::time::Duration;

/// The time that one count covers.
const COUNT_TIME: Duration = Duration::from_secs(1);

/// A lane that is younger has no pace: its first attempts say little.
const AGE_MIN: Duration = Duration::from_millis(500);

/// Deliveries in the present second and in the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct LanePace {
    /// When the lane began.
    began: Moment,
    /// When the present count began.
    counts_from: Moment,
    present: u32,
    previous: u32,
}

impl LanePace {
    /// The pace of a lane that begins now.
    pub(super) fn from(now: Moment) -> Self {
        Self { began: now, counts_from: now, present: 0, previous: 0 }
    }

    /// Counts events that were delivered now.
    pub(super) fn add(&mut self, events: usize, now: Moment) {
        self.turn(now);
        self.present = self.present.saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
    }

    /// Events a second. `None`: the lane is too young.
    pub(super) fn events_per_s(mut self, now: Moment) -> Option<usize> {
        if now.saturating_sub(self.began) < AGE_MIN {
            return None;
        }
        self.turn(now);
        let before = if self.counts_from > self.began { COUNT_TIME } else { Duration::ZERO };
        let counted = before + now.saturating_sub(self.counts_from);
        let events = u64::from(self.present) + u64::from(self.previous);
        usize::try_from(events * 1_000 / (counted.as_millis() as u64).max(1)).ok()
    }

    fn turn(&mut self, now: Moment) {
        let counted = now.saturating_sub(self.counts_from);
        if counted < COUNT_TIME {
            return;
        }
        self.previous = if counted < 2 * COUNT_TIME { self.present } else { 0 };
        self.present = 0;
        self.counts_from = if counted < 2 * COUNT_TIME { self.counts_from + COUNT_TIME } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_that_of_the_last_one_to_two_seconds_and_unknown_at_first() {
        let at = Duration::from_millis;
        let mut pace = LanePace::from(at(10_000));
        pace.add(50, at(10_200));
        assert_eq!(pace.events_per_s(at(10_499)), None);
        assert_eq!(pace.events_per_s(at(10_500)), Some(100));
        for tenth in 0..20 {
            pace.add(20, at(11_000 + tenth * 100));
        }
        assert_eq!(pace.events_per_s(at(13_000)), Some(200));
        assert_eq!(pace.events_per_s(at(13_999)), Some(100));
        assert_eq!(pace.events_per_s(at(20_000)), Some(0), "nothing was delivered lately");
    }
}
