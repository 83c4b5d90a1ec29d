//! The size of a run, its time limits, and where it keeps its files.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may need until it listens.
pub(crate) const START_WITHIN: Duration = Duration::from_secs(10);

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// The run whose figures count.
    Full,
    /// A short run, which shows whether everything works.
    Quick,
}

/// The sizes of a run. They bound every time and every count.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// The number of rounds of each case. Their median counts.
    pub(crate) rounds: usize,
    /// How long the load runs before the measured time.
    pub(crate) warm_up: Duration,
    /// The measured time of a load.
    pub(crate) load_for: Duration,
    /// The number of events that a drain delivers.
    pub(crate) drain_events: u64,
    /// The number of events in drains whose speed is limited by one user's events, which go one by one.
    pub(crate) paced_events: u64,
    /// The number of events in a log that a replay only counts.
    pub(crate) counted_events: u64,
    /// A drain that takes longer has failed.
    pub(crate) drain_within: Duration,
    /// How long an idle process is watched.
    pub(crate) idle_for: Duration,
    /// The file for the children's logs.
    pub(crate) log: PathBuf,
}

impl Run {
    pub(crate) fn new(size: Size, log: PathBuf) -> Self {
        let seconds = Duration::from_secs_f64;
        match size {
            Size::Quick => Self {
                rounds: 1,
                warm_up: seconds(0.2),
                load_for: seconds(1.0),
                drain_events: 50_000,
                paced_events: 5_000,
                counted_events: 50_000,
                drain_within: seconds(60.0),
                idle_for: seconds(3.0),
                log,
            },
            Size::Full => Self {
                rounds: 3,
                warm_up: seconds(0.5),
                load_for: seconds(5.0),
                drain_events: 300_000,
                paced_events: 30_000,
                counted_events: 1_000_000,
                drain_within: seconds(120.0),
                idle_for: seconds(10.0),
                log,
            },
        }
    }
}

/// An unused address of this machine. If another program takes it before the child does, the child reports an error.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
