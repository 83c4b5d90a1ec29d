//! Delivers a topic to one destination: joins the log, the group, the lanes and the destination.
//!
//! ```text
//!  group ── Assigned / Revoked / Lost ──▶ owners ──▶ one worker for each partition ──▶ destination
//!                                                      │
//!                                                      └─ they share a context: breaker, slots, dead letter topic
//!
//!  worker:   reader ──▶ deliverer (lanes) ──▶ destination
//!               ▲           │  └── given up ──▶ dead letter writer ──▶ <topic>.<dest>.dead
//!               │           ▼                          │
//!               └─ room ─ settled ◀────────────────────┘
//!                           └──▶ committer ──▶ group
//!            repositioner: an offset reset, asked for from outside, begins the worker again at another offset
//!            control: commands of operators, from <topic>.<dest>.control
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `owners` | the workers of the partitions that this process owns |
//! | `stopped` | one partition: runs its worker, and waits if the worker stops with an error |
//! | `worker` | the loop of one partition, which joins the parts below |
//! | `reader` | the positions in the log, the window, which users are parked |
//! | `cursor` | one position: its fetch, and the events that were fetched and do not fit yet |
//! | `deliverer` | the lanes, the slots, and the delivery batches in flight |
//! | `committer` | what is settled, and what of it is stored |
//! | `dead_letters` | dead letters that are being written (`dead_letter`: their format, `dead_letter_topic`: their topic) |
//! | `repositioner` | offset resets |
//! | `control` | applies commands of operators to the partition (`commands`: their records and their topic) |
//! | `rate_limit` | how many attempts a second this process may make |
//! | `slots` | the slots of `--concurrency`, which all partitions share |
//! | `halt` | the end of a destination by `--on-exhausted halt` |
//! | `context` | what the workers of one destination share |
//! | `notices`, `outage_lines`, `tally` | log lines and counters |
//!
//! A worker stops with an error if a record is damaged, events are missing or an invariant is broken. Then only its
//! partition stops. It stays owned and can continue later.

pub mod commands;
mod committer;
mod context;
mod control;
mod cursor;
pub mod dead_letter;
pub mod dead_letter_topic;
mod dead_letters;
mod deliverer;
mod halt;
mod notices;
mod outage_lines;
mod owners;
mod partition_log;
mod rate_limit;
mod reader;
mod repositioner;
mod slots;
mod stopped;
mod tally;
mod worker;

pub(crate) use self::halt::is_halted;
pub(crate) use self::stopped::is_recreated;
pub use self::tally::Tally;

use self::commands::HeldUsersReminder;
use self::context::DispatchContext;
use self::owners::Owners;
use self::stopped::STOPPED_INTERVAL;
use crate::clock::WallClock;
use crate::core::outcome::Ended;
use crate::core::parking::ParkingLimits;
use crate::core::token_bucket::Rate;
use crate::core::tries::TryPolicy;
use crate::destination::Destination;
use crate::group::Group;
use crate::log::{Engine, Log};
use anyhow::Context as _;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The checked configuration of one destination's delivery.
#[derive(Debug, Clone)]
pub struct Config {
    /// When events are tried again, and what ends their tries.
    pub tries: TryPolicy,
    pub attempt_timeout: Duration,
    /// Delivery batches in flight.
    pub concurrency: usize,
    /// Events of these batches, in this process.
    pub in_flight_events: usize,
    /// Most events that are attempted in a time, of all processes of the destination together.
    pub rate: Option<Rate>,
    /// Events in memory and not settled.
    pub window_events: usize,
    /// Bytes of these events.
    pub window_bytes: usize,
    pub parking: ParkingLimits,
    pub commit_interval: Duration,
    pub start: Start,
    pub on_gap: OnGap,
    pub when_stopped: WhenStopped,
    /// How long a stop waits for attempts in flight.
    pub drain: Duration,
    /// How long dead letters are kept.
    pub dead_retention: Duration,
    /// Seeds the jitter.
    pub seed: u64,
}

/// The offset at which a destination without a commit starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Earliest,
    Latest,
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Earliest => "earliest",
            Self::Latest => "latest",
        })
    }
}

/// What to do if retention has removed events that were not delivered, or a record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGap {
    Stop,
    Skip,
}

/// What to do with a partition that stops with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenStopped {
    /// The partition stays owned, a log line says every minute why it is stopped, and it continues as soon as it can. If
    /// its topic was deleted and created again, it ends: only a new start opens the new topic.
    Stay,
    /// The partition ends. [`run`] ends with its error once all partitions have ended.
    End,
}

/// The parts that dispatch joins.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Creates the side topics.
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn Log>,
    pub group: Arc<dyn Group>,
    pub destination: Arc<dyn Destination>,
    pub wall_clock: WallClock,
}

/// Delivers until `shutdown` is ready. Then waits up to `--drain` for attempts in flight, commits, releases the partitions
/// and leaves the group. If the future is dropped, delivery stops at once.
///
/// # Errors
/// The membership ended, the topic was deleted and created again, an event halted the destination
/// ([`OnExhausted::Halt`](crate::core::tries::OnExhausted::Halt)), or a partition is stopped at the shutdown. A partition
/// that stops before that is an error in the log, and the others continue. With [`WhenStopped::End`], `run` also ends
/// once every partition has stopped.
pub async fn run(parts: Parts, config: Config, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<Ended> {
    run_as(DispatchRole::Live, parts, config, Arc::default(), shutdown).await
}

/// What a dispatch is: the delivery of a destination, or a replay.
#[derive(Debug, Clone, Copy)]
enum DispatchRole {
    /// Operators command it. Its rate is [`Config::rate`].
    Live,
    /// It has a rate of its own, and ends with its work.
    Replay { rate: Option<Rate> },
}

/// Like [`run`], for a replay: with a rate of its own, with progress counters, and without commands of operators.
pub async fn run_counted(
    parts: Parts,
    config: Config,
    rate: Option<Rate>,
    tally: Arc<Tally>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    run_as(DispatchRole::Replay { rate }, parts, config, tally, shutdown).await
}

async fn run_as(
    role: DispatchRole,
    parts: Parts,
    config: Config,
    tally: Arc<Tally>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let group = Arc::clone(&parts.group);
    let context = Arc::new(DispatchContext::new(parts, config, role, tally));
    let mut owners = Owners::new(Arc::clone(&context));
    let mut shutdown = std::pin::pin!(shutdown);
    let mut remind_at = Instant::now() + STOPPED_INTERVAL;
    let mut held_users = {
        let context = Arc::clone(&context);
        HeldUsersReminder::start(group.name(), move || {
            let context = Arc::clone(&context);
            async move { context.remind_of_held_users().await }
        })
    };
    let halted = loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break None,
            halted = context.halt.halted() => break Some(halted),
            Some(task) = owners.next_ended() => {
                owners.worker_ended(task).await;
                if let Some(error) = owners.take_error_if_all_ended() {
                    held_users.shutdown().await;
                    group.leave().await;
                    return Err(error);
                }
            }
            change = group.changed() => owners.apply(change.context("the membership of the group ended")?).await,
            never = held_users.keep_running() => match never {},
            () = sleep_until(remind_at) => {
                remind_at = Instant::now() + STOPPED_INTERVAL;
                owners.log_stopped_partitions();
                owners.log_pause();
            }
        }
    };
    held_users.shutdown().await;
    let ended = owners.drain().await;
    group.leave().await;
    halted.map_or(ended, |halted| Err(halted.into()))
}
