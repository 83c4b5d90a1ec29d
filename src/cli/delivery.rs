//! Flags of delivery, for `up`, `dispatch` and `replay`.

use super::retries::RetryFlags;
use super::{defaults, values};
use crate::core::token_bucket::Rate;
use crate::dispatch::{OnGap, Start};
use clap::Args;
use std::time::Duration;

pub(super) const DELIVERY: &str = "Delivery";
const BOUNDS: &str = "Concurrency and memory";
const GROUP: &str = "Consumer group (Kafka)";
const DRILL: &str = "Fault drill";

/// How events are delivered. `up` applies the flags to each of its destinations.
#[derive(Debug, Args)]
#[command(next_help_heading = DELIVERY)]
pub struct DeliveryFlags {
    /// Name of the only destination [default: derived from --dest]
    ///
    /// The log stores the progress of a destination under its name. Keep the name, and the destination continues where it
    /// stopped. A new name starts at --start. With several destinations, write --dest NAME=DEST.
    #[arg(long, env = "EVENTD_NAME")]
    pub name: Option<String>,

    /// Where a new destination starts in the log: earliest or latest [default: earliest]
    ///
    /// A destination that has committed progress continues there. On Kafka, a destination whose commit is gone, or whose
    /// topic was deleted and created again, does not start without this flag.
    #[arg(long, value_name = "WHERE", env = "EVENTD_START", value_parser = values::start)]
    pub start: Option<Start>,

    /// What to do if the log no longer has the next event, or cannot read it: stop or skip
    ///
    /// stop: the partition stops and says so in the log; the other partitions continue. skip: delivery continues at the
    /// next event that can be read, and the skipped events are never delivered.
    #[arg(long, value_name = "ACTION", env = "EVENTD_ON_GAP", default_value = defaults::ON_GAP, value_parser = values::on_gap)]
    pub on_gap: OnGap,

    /// How often progress is committed, for example 200ms
    ///
    /// After a crash, events that were delivered since the last commit are delivered again. After a stop by a signal, none
    /// are.
    #[arg(long, value_name = "DURATION", env = "EVENTD_COMMIT_INTERVAL", default_value = defaults::COMMIT_INTERVAL, value_parser = values::above_zero)]
    pub commit_interval: Duration,

    /// File with the secret (whsec_…) that signs http requests. Can be repeated, with NAME= for one destination
    ///
    /// Signatures follow Standard Webhooks. The file has one line with at least 16 bytes. With several destinations, PATH
    /// is for each http destination that has no NAME=PATH of its own.
    ///
    /// EVENTD_WEBHOOK_SECRET_FILE has one value on each line. Without this flag, the variable EVENTD_WEBHOOK_SECRET can
    /// hold the secret itself.
    #[arg(
        long = "webhook-secret-file",
        value_name = "[NAME=]PATH",
        env = "EVENTD_WEBHOOK_SECRET_FILE",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub webhook_secret_files: Vec<String>,

    /// Permissions of a file that eventd creates for a destination, in octal
    ///
    /// The default lets only the owner read the events. An existing file keeps the permissions that it has.
    #[arg(long, value_name = "MODE", env = "EVENTD_FILE_MODE", default_value = defaults::FILE_MODE, value_parser = values::file_mode)]
    pub file_mode: u32,

    #[command(flatten)]
    pub retries: RetryFlags,

    /// Most attempts at the same time, for each destination
    ///
    /// Two events of one user are never attempted at the same time. Attempts to an http destination that take longer than
    /// 1s do not count, and as many of them may be in flight.
    #[arg(long, value_name = "N", env = "EVENTD_CONCURRENCY", default_value = defaults::CONCURRENCY, value_parser = values::count, help_heading = BOUNDS)]
    pub concurrency: usize,

    /// Most events of one user in one request to an http destination
    ///
    /// With 2 or more, waiting events of a user are sent together, as a batch of CloudEvents. The receiver must accept the
    /// media type application/cloudevents-batch+json. An answer 2xx means that it has taken all of them.
    #[arg(long, value_name = "N", env = "EVENTD_BATCH", default_value = defaults::BATCH, value_parser = values::batch, help_heading = BOUNDS)]
    pub batch: usize,

    /// Most events that are attempted in a time, for each destination, for example 500/s or 30/m [default: as many as it accepts]
    ///
    /// Several processes of one destination share the rate: each has the share of its partitions. `eventd control rate`
    /// sets another rate while they run, and `eventd control rate off` returns to this one. A replay has a rate of its own.
    #[arg(long, value_name = "RATE", env = "EVENTD_RATE", value_parser = values::rate, help_heading = BOUNDS)]
    pub rate: Option<Rate>,

    /// Most events that are read and not yet settled, for each destination
    ///
    /// A user whose event fails holds back later events of that user. The window bounds how many events are in memory
    /// while other users continue.
    #[arg(long, value_name = "N", env = "EVENTD_WINDOW", default_value = defaults::WINDOW, value_parser = values::count, help_heading = BOUNDS)]
    pub window: usize,

    /// Most bytes of these events, for all destinations together
    ///
    /// An event counts as user, payload, headers and 128 bytes. In `up`, destinations share the bytes equally, and each has
    /// at least 1MiB.
    #[arg(long, value_name = "SIZE", env = "EVENTD_WINDOW_BYTES", default_value = defaults::WINDOW_BYTES, value_parser = values::size, help_heading = BOUNDS)]
    pub window_bytes: usize,

    /// Events of one user that stay in memory when the window is half full
    ///
    /// A user that is slow or fails is parked then: its other events wait in the log, and are read again later, in order.
    /// Other users continue.
    #[arg(long, value_name = "N", env = "EVENTD_USER_BACKLOG", default_value = defaults::USER_BACKLOG, value_parser = values::count, help_heading = BOUNDS)]
    pub user_backlog: usize,

    /// Most parked users, for each destination
    ///
    /// When as many are parked, reading waits for users that are slow or fail. Each parked user takes about 200 bytes of
    /// memory.
    #[arg(long, value_name = "N", env = "EVENTD_PARKED_USERS", default_value = defaults::PARKED_USERS, value_parser = values::count, help_heading = BOUNDS)]
    pub parked_users: usize,

    /// How long after its last heartbeat a process counts as gone, so that other processes take its partitions
    #[arg(long, value_name = "DURATION", env = "EVENTD_SESSION_TIMEOUT", default_value = defaults::SESSION_TIMEOUT, value_parser = values::session_timeout, help_heading = GROUP)]
    pub session_timeout: Duration,

    /// Name of this process in the group that stays the same after a restart (static membership)
    ///
    /// A process that restarts within --session-timeout gets its own partitions back at once.
    #[arg(long, value_name = "ID", env = "EVENTD_INSTANCE_ID", value_parser = values::instance_id, help_heading = GROUP)]
    pub instance_id: Option<String>,

    /// With --instance-id, do not leave the group at a stop, so that a rolling restart moves no partitions
    #[arg(long, env = "EVENTD_KEEP_MEMBERSHIP", requires = "instance_id", value_parser = values::switch, help_heading = GROUP)]
    pub keep_membership: bool,

    /// Make about one in N attempts fail before they reach the destination; 0 is off
    ///
    /// A drill shows how retries, dead letters and alerts work, without breaking a destination.
    #[arg(long, value_name = "N", env = "EVENTD_RELIABILITY", default_value = defaults::RELIABILITY, value_parser = values::one_in, help_heading = DRILL)]
    pub reliability: u32,

    /// Seed of an earlier fault drill, to repeat it. Each drill logs its seed at start [default: another one at each start]
    #[arg(long, value_name = "SEED", env = "EVENTD_RELIABILITY_SEED", value_parser = values::seed, help_heading = DRILL)]
    pub reliability_seed: Option<u64>,
}
