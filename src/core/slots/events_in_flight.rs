//! How many events a run may have, if the destination takes one user at a time and several of its events at once
//! (`--batch`). Users that hang must not use up the events that may be in flight.
//!
//! Half of these events are divided among the slots of the destination. The other half is for longer runs, and is divided
//! among the partitions:
//!
//! ```text
//!  ├────────── for the slots: E/2 ──────────┼───────── for longer runs: E/2 ─────────┤
//!    every run may have E/4C events,           newcomers, doubtful     only served
//!    whatever else is in flight                users, and old runs     users
//! ```
//!
//! E is the limit of the destination, and C is `--concurrency`.
//!
//! - A user that has a slot never waits here. Its run may be shorter.
//! - Users that hang, or may hang, leave at least half of the longer runs to served users. These are newcomers, doubtful
//!   users, and the runs that have taken [`OLD_AFTER`]. Served users that begin to hang can take all of it until their
//!   attempts end. Then the others have the events of their slots.
//! - A run takes at most half of what is left for its user. So a few users do not take everything, and each of several slow
//!   users still has runs of some length.
//!
//! The doubtful users have C slots, and so at most E/2 events in flight. The pace of a user does not limit its runs: if an
//! answer takes the same time for a batch of any length, that would make each run shorter than the one before.

use super::{OLD_AFTER, Standing, attempts_max};
use crate::core::Moment;
use std::collections::BTreeMap;

/// The limits on the runs of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunLimits {
    /// Events that every run may have.
    of_slot: usize,
    /// Events of all runs together in addition to these.
    longer: usize,
}

/// What the longer runs of one partition have in flight, beyond the events of their slots.
#[derive(Debug, Default)]
pub struct EventsInFlight {
    last_number: u64,
    /// The young runs of served users, by their number: when they began, and their events.
    served: BTreeMap<u64, (Moment, usize)>,
    served_events: usize,
    /// Events of all other runs.
    other_events: usize,
}

/// The events of one run beyond those of its slot. They must be given back with [`EventsInFlight::end`].
#[derive(Debug)]
#[must_use = "events that are not given back are lost"]
pub struct LongerRun {
    number: u64,
    events: usize,
}

impl RunLimits {
    /// The limits if the destination may have this many events in flight. `share` returns the share that the partition has
    /// of a number.
    pub fn new(in_flight_events: usize, concurrency: usize, share: impl FnOnce(usize) -> usize) -> Self {
        let half = in_flight_events / 2;
        Self { of_slot: (half / attempts_max(concurrency).max(1)).max(1), longer: share(half) }
    }

    /// Events that every run may have, also if nothing is known of its user.
    pub fn of_slot(self) -> usize {
        self.of_slot
    }
}

impl EventsInFlight {
    /// The most events of a run that begins now: at least 1.
    pub fn run_max(&mut self, standing: Standing, limits: RunLimits, now: Moment) -> usize {
        self.find_old(now);
        let left = limits.longer.saturating_sub(self.served_events + self.other_events);
        let left = match standing {
            Standing::Served => left,
            Standing::Newcomer | Standing::Doubtful => left.min((limits.longer / 2).saturating_sub(self.other_events)),
        };
        limits.of_slot + left / 2
    }

    /// A run of so many events begins.
    pub fn begin(&mut self, standing: Standing, events: usize, limits: RunLimits, now: Moment) -> LongerRun {
        let events = events.saturating_sub(limits.of_slot);
        self.last_number += 1;
        if standing == Standing::Served && events > 0 {
            self.served.insert(self.last_number, (now, events));
            self.served_events += events;
        } else {
            self.other_events += events;
        }
        LongerRun { number: self.last_number, events }
    }

    /// The run has ended.
    pub fn end(&mut self, run: LongerRun) {
        match self.served.remove(&run.number) {
            Some((_, events)) => self.served_events -= events,
            None => self.other_events -= run.events,
        }
    }

    /// Runs of served users that have become old count as those of the others.
    fn find_old(&mut self, now: Moment) {
        while let Some(first) = self.served.first_entry()
            && now.saturating_sub(first.get().0) >= OLD_AFTER
        {
            let (_, events) = first.remove();
            self.served_events -= events;
            self.other_events += events;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Doubtful, Newcomer, Served};
    use proptest::prelude::*;

    /// One partition of a destination that may have 1,000 events in flight: 500 for 50 slots, and 500 for longer runs.
    fn limits() -> RunLimits {
        RunLimits::new(1_000, 25, |events| events)
    }

    /// Begins a run that is as long as it may be, and returns its length.
    fn begin(runs: &mut EventsInFlight, standing: Standing, run_max: usize, now: Moment) -> (usize, LongerRun) {
        let events = runs.run_max(standing, limits(), now).min(run_max);
        (events, runs.begin(standing, events, limits(), now))
    }

    #[test]
    fn hanging_users_leave_half_of_the_longer_runs_to_served_users() {
        for hanging in [Newcomer, Doubtful] {
            let mut runs = EventsInFlight::default();
            let hung: Vec<_> = (0..25).map(|_| begin(&mut runs, hanging, 1_000, Moment::ZERO)).collect();
            let lengths: Vec<usize> = hung.iter().map(|(events, _)| *events).collect();
            assert_eq!(lengths[..6], [135, 72, 41, 26, 18, 14]);
            assert!(lengths.iter().all(|events| *events >= 10), "no run is shorter than its slot allows: {lengths:?}");
            assert!(lengths.iter().sum::<usize>() <= 500, "{hanging:?} have half of all events: {lengths:?}");
            assert_eq!(begin(&mut runs, Served, 1_000, Moment::ZERO).0, 10 + 125);
            hung.into_iter().for_each(|(_, run)| runs.end(run));
        }
    }

    #[test]
    fn runs_of_served_users_that_become_old_leave_no_longer_runs_to_doubtful_users() {
        let mut runs = EventsInFlight::default();
        let (events, first) = begin(&mut runs, Served, 1_000, Moment::ZERO);
        assert_eq!(events, 10 + 250);
        assert_eq!(runs.run_max(Doubtful, limits(), OLD_AFTER / 2), 10 + 125);
        assert_eq!(runs.run_max(Doubtful, limits(), OLD_AFTER), 10, "the old run has all that they may have");
        assert_eq!(runs.run_max(Served, limits(), OLD_AFTER), 10 + 125);
        runs.end(first);
        assert_eq!(runs.run_max(Doubtful, limits(), OLD_AFTER), 10 + 125);
    }

    #[test]
    fn the_slots_of_many_partitions_share_one_half() {
        assert_eq!(RunLimits::new(10_000, 256, |events| events), RunLimits { of_slot: 9, longer: 5_000 });
        assert_eq!(RunLimits::new(10_000, 256, |events| events / 100), RunLimits { of_slot: 9, longer: 50 });
        assert_eq!(RunLimits::new(10, 256, |events| events), RunLimits { of_slot: 1, longer: 5 });
    }

    proptest! {
        #[test]
        fn events_in_flight_are_bounded_and_a_run_of_one_event_always_begins(
            steps in proptest::collection::vec((0usize..3, 1usize..1_000, 0u64..400, any::<bool>()), 0..300),
        ) {
            let (mut runs, mut held, mut now) = (EventsInFlight::default(), Vec::new(), Moment::ZERO);
            for (standing, run_max, pause_ms, begins) in steps {
                now += Moment::from_millis(pause_ms);
                let standing = Standing::ALL[standing];
                if begins && held.len() < attempts_max(25) {
                    let (events, run) = begin(&mut runs, standing, run_max, now);
                    prop_assert!((1..=run_max).contains(&events));
                    held.push((standing, events, run));
                } else if !held.is_empty() {
                    let (_, _, run) = held.swap_remove(run_max % held.len());
                    runs.end(run);
                }
                let sum = |of: &dyn Fn(Standing) -> bool| {
                    held.iter().filter(|(standing, ..)| of(*standing)).map(|(_, events, _)| *events).sum::<usize>()
                };
                prop_assert!(sum(&|_| true) <= 1_000);
                let others = held.iter().filter(|(standing, ..)| *standing != Served).count();
                prop_assert!(sum(&|standing| standing != Served) <= others * 10 + 250);
            }
            held.into_iter().for_each(|(.., run)| runs.end(run));
            prop_assert_eq!((runs.served_events, runs.other_events, runs.served.len()), (0, 0, 0));
        }
    }
}
