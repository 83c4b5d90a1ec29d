//! A place where events are delivered: one attempt at a time, a verdict for each run. Retries, order and settling are
//! the business of `dispatch`.
//!
//! ```text
//!  dispatch ── DeliveryBatch { runs of many lanes } ──▶ Destination::deliver ──▶ one Report a run, in the same order
//! ```
//!
//! ```text
//!  spec ─▶ open ─▶ http ── webhook (headers, signature, Retry-After)
//!                  file ──┬─ writer (one thread a file: write, sync once, answer)
//!                  stdout ┘    └─ line (an event as JSON)    disk (open, lock, cut, sync)
//!                  null
//!                  faulty (in front of any of them: the drill of --reliability)
//! ```
//!
//! A *configuration* fault is an error of [`open`]. An *outage* never is, not even there: it is the verdict
//! [`Unreachable`](crate::core::verdict::Verdict::Unreachable) of every attempt while it lasts.

mod disk;
mod failure_words;
mod faulty;
mod file;
mod http;
mod line;
mod null;
pub mod spec;
mod stdout;
pub mod webhook;
mod writer;

use crate::BoxFuture;
use crate::core::event::Event;
use crate::core::verdict::{Failed, Report, Verdict};
use spec::{Spec, Target};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How many connections an http destination has at most with this `--concurrency`.
pub fn http_connections_max(concurrency: usize) -> usize {
    http::connections_max(concurrency)
}

/// Whether the destination writes one file for each partition, each of which is kept open.
pub fn has_partition_files(target: &Target) -> bool {
    matches!(target, Target::File(path) if file::is_pattern(path))
}

/// One destination, opened. It answers for every run that it is given, by the deadline of the hand-over.
pub trait Destination: Send + Sync + fmt::Debug {
    /// How much it takes at once.
    fn limits(&self) -> BatchLimits;

    /// Tries to deliver each run, in the order of its events, up to the first that is not delivered. Exactly one report
    /// a run, in their order. Dropping the future may leave any of it done.
    fn deliver(&self, hand_over: DeliveryBatch) -> BoxFuture<'_, Vec<Report>>;

    /// Opens again, before the next hand-over, what may have been moved away (`SIGHUP`). Nothing to do for most.
    fn reopen(&self) {}

    /// Where it is, for log lines: `host:port`, or a file; never a secret.
    fn address(&self) -> Option<String> {
        None
    }

    /// This process does not own the partition any more: what was held for it alone is let go, for the next owner.
    fn released(&self, _partition: u32) {}

    /// Waits until it can deliver nothing any more because of a defect, and says why: it has to be opened anew.
    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::pending())
    }

    /// How many attempts were sent a second time inside the same attempt, since their connection closed before a byte
    /// of the answer; since start, for metrics.
    fn resent(&self) -> u64 {
        0
    }
}

/// What a destination takes in one hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Runs (each of another lane) in one hand-over.
    pub runs_max: usize,
    /// Events in one run.
    pub run_events_max: usize,
    /// Bytes in one run, unless its first event alone is larger.
    pub run_bytes_max: usize,
}

/// Events of one partition that are handed out together. Runs are independent of each other.
#[derive(Debug, Clone)]
pub struct DeliveryBatch {
    pub topic: Arc<str>,
    pub partition: u32,
    pub runs: Vec<Run>,
    /// The events of all runs, one run behind the other.
    pub events: Vec<Event>,
    /// The answer is due by then.
    pub deadline: Deadline,
}

/// When the answer to a hand-over is due, and until when its owner may begin anything at all: that may move meanwhile.
#[derive(Clone)]
pub struct Deadline {
    pub at: Instant,
    lease: Option<Arc<LeaseDeadline>>,
}

/// Until when the owner may begin something, as far as is known now. `None`: no limit.
pub type LeaseDeadline = dyn Fn() -> Option<Instant> + Send + Sync;

impl Deadline {
    pub fn within_lease(at: Instant, lease: Arc<LeaseDeadline>) -> Self {
        Self { at, lease: Some(lease) }
    }

    /// Nothing of the hand-over may be begun any more: no resend, no line.
    pub fn is_over(&self) -> bool {
        let now = Instant::now();
        self.at <= now || self.lease.as_ref().and_then(|lease| lease()).is_some_and(|lease| lease <= now)
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Self { at, lease: None }
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

impl DeliveryBatch {
    /// The events of one run.
    pub fn events_of(&self, run: &Run) -> &[Event] {
        &self.events[run.events.clone()]
    }
}

/// One or more consecutive events of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where they stand in [`DeliveryBatch::events`]; never empty.
    pub events: Range<usize>,
    /// How often the first one is tried with this attempt, counted by this owner: 1 at first. The others' is 1.
    pub attempt: u32,
    /// An earlier event of this user was given up, and this is the next one that is attempted.
    pub gap: bool,
}

/// What a destination needs to know besides its [`Spec`].
#[derive(Clone)]
pub struct Settings {
    /// The whole of one attempt; connecting may take no longer either.
    pub attempt_timeout: Duration,
    /// The most of a `Retry-After` that is believed.
    pub retry_after_max: Duration,
    /// Attempts in flight: so many connections are kept.
    pub concurrency: usize,
    /// Signs every webhook; decoded, see [`webhook::parse_secret`].
    pub secret: Option<Vec<u8>>,
    /// A PEM file with the authorities that https destinations are held to, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Permissions of the files that are made for `file` destinations. The umask may take some away.
    pub file_mode: u32,
    /// The fault drill of `--reliability`.
    pub drill: Option<FaultDrill>,
}

impl Default for Settings {
    /// The defaults of the flags.
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(15),
            retry_after_max: Duration::from_secs(300),
            concurrency: 256,
            secret: None,
            ca_file: None,
            file_mode: 0o600,
            drill: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("attempt_timeout", &self.attempt_timeout)
            .field("retry_after_max", &self.retry_after_max)
            .field("concurrency", &self.concurrency)
            .field("signed", &self.secret.is_some())
            .field("ca_file", &self.ca_file)
            .field("file_mode", &format_args!("{:04o}", self.file_mode))
            .field("drill", &self.drill)
            .finish()
    }
}

/// A fault drill: one in so many events fails before it reaches the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultDrill {
    /// 2 or more.
    pub one_in: u32,
    /// The same seed, the same faults.
    pub seed: u64,
}

/// Somebody has to change something: what and where, a lower-case fragment for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigurationError(pub String);

impl fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigurationError {}

/// Opens a destination. Fails where the configuration is at fault (a missing directory, a path that cannot be written
/// or that another process holds); never for an outage. Looks at files, so it may block for as long as they do.
pub fn open(spec: &Spec, settings: &Settings) -> Result<Arc<dyn Destination>, ConfigurationError> {
    let of_destination = |ConfigurationError(why)| ConfigurationError(format!("destination {}: {why}", spec.name));
    let destination: Arc<dyn Destination> = match &spec.target {
        Target::File(path) => Arc::new(file::File::open(path, settings.file_mode).map_err(of_destination)?),
        Target::Http(target) => Arc::new(http::Http::open(target, settings).map_err(of_destination)?),
        Target::Stdout => Arc::new(stdout::Stdout::open().map_err(of_destination)?),
        Target::Null => Arc::new(null::Null),
    };
    match settings.drill {
        Some(drill) if drill.one_in < 2 => Err(of_destination(ConfigurationError(
            "--reliability is 0 (off), or 2 and more: with 1 nothing ever gets through".into(),
        ))),
        Some(drill) => Ok(Arc::new(faulty::Faulty::new(destination, drill))),
        None => Ok(destination),
    }
}

/// What destinations that write many events at once take.
const MANY: BatchLimits = BatchLimits {
    runs_max: crate::limits::IN_FLIGHT_EVENTS_MAX,
    run_events_max: crate::limits::RUN_EVENTS_MAX,
    run_bytes_max: crate::limits::RUN_BYTES_MAX,
};

/// The report for each of `runs` runs of which nothing got through.
fn none_delivered(runs: usize, verdict: Verdict, answer: &str) -> Vec<Report> {
    vec![Report { delivered: 0, failed: Some(Failed::new(verdict, answer)) }; runs]
}
