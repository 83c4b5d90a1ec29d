//! What a run is allowed to take, and where it keeps its files.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may need until it listens.
pub(crate) const START_WITHIN: Duration = Duration::from_secs(10);

/// The size of a run: every time and count of it is bounded here.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Rounds of each case; the median counts.
    pub(crate) rounds: usize,
    /// Load before the measured time.
    pub(crate) warm_up: Duration,
    /// The measured time of a load.
    pub(crate) load_for: Duration,
    /// Events that a drain delivers.
    pub(crate) drain_events: u64,
    /// Events of drains where one user's events, one behind the other, set the pace.
    pub(crate) paced_events: u64,
    /// Events of a log that a replay only counts.
    pub(crate) counted_events: u64,
    /// A drain that takes longer has failed.
    pub(crate) drain_within: Duration,
    /// How long an idle process is watched.
    pub(crate) idle_for: Duration,
    /// Where the children's log lines go.
    pub(crate) log: PathBuf,
}

impl Run {
    /// The run whose figures count, and a short one that shows whether everything works.
    pub(crate) fn new(quick: bool, log: PathBuf) -> Self {
        let seconds = Duration::from_secs_f64;
        if quick {
            Self {
                rounds: 1,
                warm_up: seconds(0.2),
                load_for: seconds(1.0),
                drain_events: 50_000,
                paced_events: 5_000,
                counted_events: 50_000,
                drain_within: seconds(60.0),
                idle_for: seconds(3.0),
                log,
            }
        } else {
            Self {
                rounds: 3,
                warm_up: seconds(0.5),
                load_for: seconds(5.0),
                drain_events: 300_000,
                paced_events: 30_000,
                counted_events: 1_000_000,
                drain_within: seconds(120.0),
                idle_for: seconds(10.0),
                log,
            }
        }
    }
}

/// An address of this machine where nobody listens. Another program could take it before our child does; the child
/// says so then.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}
