use super::{Moment, verdict::Verdict};
#[derive(Debug, Default)]
pub struct Breaker {
    seq: u64,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    seq: u64,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Closed,
    HalfOpen,
    Open { until: Option<Moment> },
}
#[derive(Debug, Clone, Copy)]
pub struct Judgement {
    pub counts: bool,
    pub good_mark: u64,
}
impl Breaker {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn gate(&self, _now: Moment) -> Gate {
        Gate::Closed
    }
    pub fn begin(&mut self, _user: u64, _now: Moment) -> Attempt {
        self.seq += 1;
        Attempt { seq: self.seq }
    }
    pub fn delivered(&mut self, _a: &Attempt, _now: Moment) {}
    pub fn failed(&mut self, _a: &Attempt, v: Verdict, _now: Moment) -> Judgement {
        Judgement { counts: matches!(v, Verdict::Retry { .. } | Verdict::Drilled | Verdict::Refused), good_mark: 0 }
    }
    pub fn abandoned(&mut self, _a: &Attempt) {}
    pub fn prefers_as_probe(&self, _u: u64) -> bool {
        true
    }
    pub fn is_void(&self, m: u64) -> bool {
        m == u64::MAX
    }
    pub fn refused_acts(&self, _a: &Attempt, _f: Moment, _n: Moment) -> bool {
        true
    }
    pub fn snapshot(&self) -> String {
        String::new()
    }
}
