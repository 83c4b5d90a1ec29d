//! A clock that runs only while the breaker is closed and the health is not bad. Events age by it: the time of an outage
//! does not count towards `--give-up-after`.

use crate::core::Moment;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct HealthyClock {
    /// The time up to the last stop.
    elapsed: Duration,
    /// When the clock started again. `None`: it stands still.
    running_since: Option<Moment>,
}

impl Default for HealthyClock {
    /// A clock that runs since the start of the process, because a new breaker is closed.
    fn default() -> Self {
        Self { elapsed: Duration::ZERO, running_since: Some(Moment::ZERO) }
    }
}

impl HealthyClock {
    pub(super) fn read(&self, now: Moment) -> Duration {
        self.elapsed + self.running_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// Starts or stops the clock. If it runs or stands still already, nothing changes.
    pub(super) fn set_running(&mut self, runs: bool, now: Moment) {
        if runs != self.running_since.is_some() {
            self.elapsed = self.read(now);
            self.running_since = runs.then_some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_between_a_stop_and_a_start() {
        let (mut clock, at) = (HealthyClock::default(), Duration::from_secs);
        assert_eq!(clock.read(at(5)), at(5));
        clock.set_running(false, at(5));
        clock.set_running(false, at(6));
        assert_eq!(clock.read(at(100)), at(5));
        clock.set_running(true, at(100));
        clock.set_running(true, at(101));
        assert_eq!(clock.read(at(102)), at(7));
        assert_eq!(clock.read(at(90)), at(5), "an older moment never moves it back below its last stop");
    }
}
