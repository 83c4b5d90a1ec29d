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

    /// Waits until a probe is due, and begins it.
    fn probe(&mut self, user: u64) -> Attempt {
        if let Gate::Open { until } = self.breaker.gate(self.now) {
            self.now = until.expect("a probe is in flight already");
        }
        let attempt = self.breaker.begin(user, self.now);
        assert!(attempt.probe, "{:?}", self.breaker.gate(self.now));
        attempt
    }

    /// The record of an attempt that was refused just now.
    fn refusal(&self, attempt: &Attempt) -> Refusal {
        Refusal { attempt: *attempt, at: self.now, health_epoch: self.breaker.health_epoch() }
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
