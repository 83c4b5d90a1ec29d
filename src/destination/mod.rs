//! Destinations: the places to which events are delivered. A destination makes one attempt at a time and reports the
//! verdict. Retries, order and settling are the work of `dispatch`.
//!
//! ```text
//!  dispatch ── DeliveryBatch { runs of many lanes } ──▶ Destination::deliver ──▶ one Report for each run, in order
//! ```
//!
//! ```text
//!  spec::Spec ─▶ open ─┬─ http        one POST for each event, or for several of one user (--batch)
//!                      ├─ file    ─┐  batch_writer: one thread writes, syncs once for all waiting batches, and answers
//!                      ├─ stdout  ─┘    └─ json_line: an event as one line of JSON
//!                      ├─ null        accepts and discards everything
//!                      └─ fault_drill wraps any of them: some attempts fail on purpose (--reliability)
//! ```
//!
//! An error in the *configuration* is an error of [`open`]. An *outage* never is an error, not even while opening. It is
//! the verdict [`Unreachable`](crate::core::verdict::Verdict::Unreachable) of every attempt while it lasts.

mod batch_writer;
mod fault_drill;
mod file;
mod http;
mod json_line;
mod null;
pub mod spec;
mod stdout;

pub use self::http::webhook;

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

/// Events of one lane in one run of a destination that writes many events at once.
const RUN_EVENTS_MAX: usize = 1_000;

/// The limits of destinations that write many events at once.
const LINE_WRITER_LIMITS: BatchLimits = BatchLimits {
    runs_max: crate::limits::IN_FLIGHT_EVENTS_MAX,
    run_events_max: RUN_EVENTS_MAX,
    run_bytes_max: crate::limits::RUN_BYTES_MAX,
};

/// The maximum number of connections that an http destination has open with this `--concurrency`.
pub fn http_connections_max(concurrency: usize) -> usize {
    http::connections_max(concurrency)
}

/// Whether the destination writes one file for each partition and keeps each of them open.
pub fn has_partition_files(target: &Target) -> bool {
    matches!(target, Target::File(path) if file::is_pattern(path))
}

/// An open destination. It reports on every run of a [`DeliveryBatch`] by the batch's deadline.
pub trait Destination: Send + Sync + fmt::Debug {
    /// The largest batch that [`deliver`](Self::deliver) accepts.
    fn limits(&self) -> BatchLimits;

    /// Tries to deliver each run: its events in order, up to the first that fails. Returns exactly one report for each
    /// run, in the order of the runs.
    ///
    /// If the caller drops the future, any part of the batch may have been delivered.
    fn deliver(&self, batch: DeliveryBatch) -> BoxFuture<'_, Vec<Report>>;

    /// Opens files again before the next batch, because an operator may have moved them away (`SIGHUP`). Most
    /// destinations have nothing to do.
    fn reopen(&self) {}

    /// The address for log lines: `host:port`, or a path. It never contains a secret.
    fn address(&self) -> Option<String> {
        None
    }

    /// Releases what is held for this partition alone, because its next owner may be another process.
    fn released(&self, _partition: u32) {}

    /// Completes with the reason if a defect makes all further deliveries impossible. The caller must then open the
    /// destination again. Otherwise it never completes.
    fn lost(&self) -> BoxFuture<'_, String> {
        Box::pin(std::future::pending())
    }
}

/// The largest [`DeliveryBatch`] that a destination accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Runs in one batch. Each run is of another lane.
    pub runs_max: usize,
    /// Events in one run.
    pub run_events_max: usize,
    /// Bytes in one run. A single event may be larger.
    pub run_bytes_max: usize,
}

/// Events of one partition that are delivered together. Its runs are independent of each other.
#[derive(Debug, Clone)]
pub struct DeliveryBatch {
    pub topic: Arc<str>,
    pub partition: u32,
    pub runs: Vec<Run>,
    /// The events of all runs, in the order of the runs.
    pub events: Vec<Event>,
    /// When the reports are due.
    pub deadline: Deadline,
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
    /// The position of the events in [`DeliveryBatch::events`]; never empty.
    pub events: Range<usize>,
    /// The number of this attempt of the first event, from 1 on, as counted by this owner of the partition. All further
    /// events of the run are attempted for the first time.
    pub attempt: u32,
    /// Whether this is the user's first event after a dead letter, so that the receiver can be told about the gap.
    pub after_dead_letter: bool,
}

/// When the reports of a batch are due, and until when its events may be sent.
///
/// Both are needed: the due time is fixed when the batch is made, but a member's lease may be extended or lost while the
/// batch is in flight. After the lease has ended, another owner may deliver the same events, so nothing more may be sent.
#[derive(Clone)]
pub struct Deadline {
    pub at: Instant,
    lease: Option<Arc<LeaseDeadline>>,
}

/// Returns the time at which the partition's lease ends, as far as is known now. `None` means that it does not end.
pub type LeaseDeadline = dyn Fn() -> Option<Instant> + Send + Sync;

impl Deadline {
    pub fn within_lease(at: Instant, lease: Arc<LeaseDeadline>) -> Self {
        Self { at, lease: Some(lease) }
    }

    /// Whether it is too late to start anything for this batch: no request, no second try of a request, no line.
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

/// How a destination is opened, in addition to its [`Spec`].
#[derive(Clone)]
pub struct DestinationSettings {
    /// The time for one whole attempt, including connecting.
    pub attempt_timeout: Duration,
    /// A `Retry-After` that is longer counts as this long.
    pub retry_after_max: Duration,
    /// Attempts in flight at the same time. An http destination keeps this many unused connections.
    pub concurrency: usize,
    /// Events of one user that an http destination sends in one request, at most.
    pub batch_events_max: usize,
    /// The decoded secret that signs every webhook; see [`webhook::parse_secret`].
    pub secret: Option<Vec<u8>>,
    /// A PEM file with the certificate authorities that https destinations trust. `None` means the system's.
    pub ca_file: Option<PathBuf>,
    /// Permissions of files that a `file` destination creates. The umask may remove some.
    pub file_mode: u32,
    /// The fault drill of `--reliability`.
    pub drill: Option<FaultDrill>,
}

impl Default for DestinationSettings {
    /// The defaults of the command line flags.
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(15),
            retry_after_max: Duration::from_secs(300),
            concurrency: 256,
            batch_events_max: 1,
            secret: None,
            ca_file: None,
            file_mode: 0o600,
            drill: None,
        }
    }
}

impl fmt::Debug for DestinationSettings {
    /// Does not show the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestinationSettings")
            .field("attempt_timeout", &self.attempt_timeout)
            .field("retry_after_max", &self.retry_after_max)
            .field("concurrency", &self.concurrency)
            .field("batch_events_max", &self.batch_events_max)
            .field("signed", &self.secret.is_some())
            .field("ca_file", &self.ca_file)
            .field("file_mode", &format_args!("{:04o}", self.file_mode))
            .field("drill", &self.drill)
            .finish()
    }
}

/// A fault drill (`--reliability N`): about one in N attempts fails before it reaches the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultDrill {
    /// 2 or more.
    pub one_in: u32,
    /// Drills with the same seed fail the same attempts.
    pub seed: u64,
}

/// An error that an operator has to correct. The text is a lower-case fragment that says what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigurationError(pub String);

/// A defect makes all further deliveries impossible: what [`Destination::lost`] reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the destination cannot be used any more: {0}")]
pub struct LostDestination(pub String);

/// Opens a destination. It reads and locks files, so it may block.
///
/// # Errors
/// The configuration is wrong: for example, a directory is missing, a path cannot be written, or another process holds
/// the file. An outage is not an error.
pub fn open(spec: &Spec, settings: &DestinationSettings) -> Result<Arc<dyn Destination>, ConfigurationError> {
    let with_name = |ConfigurationError(why)| ConfigurationError(format!("destination {}: {why}", spec.name));
    let destination: Arc<dyn Destination> = match &spec.target {
        Target::File(path) => Arc::new(file::FileDestination::open(path, settings.file_mode).map_err(with_name)?),
        Target::Http(target) => Arc::new(http::HttpDestination::open(target, settings).map_err(with_name)?),
        Target::Stdout => Arc::new(stdout::StdoutDestination::open().map_err(with_name)?),
        Target::Null => Arc::new(null::NullDestination),
    };
    match settings.drill {
        Some(drill) if drill.one_in < 2 => Err(with_name(ConfigurationError(format!(
            "--reliability {} is not possible: use 0 to switch the drill off, or 2 or more. With 1 every attempt would fail",
            drill.one_in
        )))),
        Some(drill) => Ok(Arc::new(fault_drill::DrilledDestination::new(destination, drill))),
        None => Ok(destination),
    }
}

/// One report for each of `runs` runs, none of which was delivered.
fn none_delivered(runs: usize, verdict: Verdict, answer: &str) -> Vec<Report> {
    vec![Report { delivered: 0, failed: Some(Failed::new(verdict, answer)) }; runs]
}
