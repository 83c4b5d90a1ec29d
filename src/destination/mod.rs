//! A place where events are delivered: one attempt at a time, a verdict for each run. Retries, order and settling are
//! the business of `dispatch`.
//!
//! ```text
//!  dispatch ── HandOver { runs of many lanes } ──▶ Destination::deliver ──▶ one Report a run, in the same order
//! ```

use crate::BoxFuture;
use crate::core::event::Event;
use crate::core::verdict::Report;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

/// One destination, opened. It answers for every run that it is given, by the deadline of the hand-over.
pub trait Destination: Send + Sync + fmt::Debug {
    /// How much it takes at once.
    fn limits(&self) -> HandOverLimits;

    /// Tries to deliver each run, in the order of its events, up to the first that is not delivered. Exactly one report
    /// a run, in their order. Dropping the future may leave any of it done.
    fn deliver(&self, hand_over: HandOver) -> BoxFuture<'_, Vec<Report>>;
}

/// What a destination takes in one hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandOverLimits {
    /// Runs (each of another lane) in one hand-over.
    pub runs_max: usize,
    /// Events in one run.
    pub run_events_max: usize,
    /// Bytes in one run, unless its first event alone is larger.
    pub run_bytes_max: usize,
}

/// Events of one partition that are handed out together. Runs are independent of each other.
#[derive(Debug, Clone)]
pub struct HandOver {
    pub topic: Arc<str>,
    pub partition: u32,
    pub runs: Vec<Run>,
    /// The events of all runs, one run behind the other.
    pub events: Vec<Event>,
    /// The answer is due by then.
    pub deadline: Instant,
}

impl HandOver {
    /// The events of one run.
    pub fn events_of(&self, run: &Run) -> &[Event] {
        &self.events[run.events.clone()]
    }
}

/// One or more consecutive events of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where they stand in [`HandOver::events`]; never empty.
    pub events: Range<usize>,
    /// How often the first one is tried with this attempt, counted by this owner: 1 at first. The others' is 1.
    pub attempt: u32,
    /// An earlier event of this user was given up, and this is the next one that is attempted.
    pub gap: bool,
}
