//! Each rule of the breaker as one test.

mod outages;
mod probes;
mod refusals;
mod tries_and_health;

use super::*;

const RETRY: Verdict = Verdict::Retry { after: None };
const BUSY: Verdict = Verdict::Busy { after: None };

fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

/// A breaker and its clock, which moves on by 1 ms with each step.
#[derive(Default)]
struct TestBreaker {
    breaker: Breaker,
    now: Moment,
}

impl TestBreaker {
    fn begin(&mut self, user: u64) -> Attempt {
        self.now += ms(1);
        self.breaker.begin(user, self.now)
    }

    fn end(&mut self, attempt: &Attempt, verdict: Verdict) -> TryJudgement {
        self.now += ms(1);
        self.breaker.failed(attempt, verdict, self.now)
    }

    fn fail(&mut self, user: u64, verdict: Verdict) -> TryJudgement {
        let attempt = self.begin(user);
        self.end(&attempt, verdict)
    }

    fn deliver(&mut self, users: impl IntoIterator<Item = u64>) {
        for user in users {
            let attempt = self.begin(user);
            self.breaker.delivered(&attempt, self.now);
        }
    }

    /// Waits until this user may be attempted, and begins the attempt.
    fn begin_when_allowed(&mut self, user: u64) -> Attempt {
        let rank = self.breaker.probe_rank(user);
        loop {
            let until = match self.gate() {
                Gate::Closed => break,
                Gate::HalfOpen { ranks, .. } if ranks.contains(rank) => break,
                Gate::HalfOpen { until, .. } | Gate::Open { until } => until,
            };
            self.now = until.expect("a probe is in flight already");
        }
        self.breaker.begin(user, self.now)
    }

    /// Waits until this user may be probed, and begins the probe.
    fn probe(&mut self, user: u64) -> Attempt {
        let attempt = self.begin_when_allowed(user);
        assert!(attempt.probe, "{:?}", self.gate());
        attempt
    }

    /// Lets so much time pass that earlier deliveries do not show any more that the destination is well.
    fn long_after_the_last_delivery(&mut self) {
        self.now += OUTAGE_AFTER;
    }

    fn is_open(&self) -> bool {
        self.open().is_some()
    }

    /// The record of an attempt that was refused just now.
    fn refusal(&self, attempt: &Attempt) -> Refusal {
        self.breaker.refusal(attempt, self.now)
    }

    fn gate(&self) -> Gate {
        self.breaker.gate(self.now)
    }

    fn open(&self) -> Option<OpenCause> {
        self.breaker.snapshot(self.now).open
    }

    fn health(&self) -> Health {
        self.breaker.snapshot(self.now).health
    }

    /// A breaker that five failed users have opened.
    fn opened_by_answers() -> Self {
        let mut test = Self::default();
        for user in 1..=5 {
            test.fail(user, RETRY);
        }
        assert_eq!(test.breaker.snapshot(test.now).open, Some(OpenCause::NoUserDelivered));
        test
    }

    /// A breaker that one unreachable attempt has opened.
    fn unreachable() -> Self {
        let mut test = Self::default();
        test.fail(1, Verdict::Unreachable);
        test
    }
}
