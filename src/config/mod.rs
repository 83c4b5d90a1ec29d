//! The checked configuration of each command, built once from its flags.
//!
//! ```text
//!  cli: flags as typed ──▶ config: checked, all values known ──▶ commands: open the log, run
//! ```
//!
//! Every mistake that can be found without opening the log or a destination is found here, before anything is created.
//! The process then ends with exit code 2. The code after this module never looks at a flag again.

mod control;
mod delivery;
mod ingest;
mod log;
mod replay;
mod retries;
mod secrets;

pub use self::control::ControlConfig;
pub use self::delivery::DeliveryConfig;
pub use self::ingest::EndpointConfig;
pub use self::log::{EngineConfig, LogConfig, is_default_broker};
pub use self::replay::{ReplayAction, ReplayConfig};

use crate::cli::{DispatchFlags, IngestFlags, RetryPreset, UpFlags};
use crate::log::url::LogUrl;
use anyhow::{Context, ensure};

/// The configuration of `eventd up`.
#[derive(Debug, Clone)]
pub struct UpConfig {
    pub log: LogConfig,
    pub endpoint: EndpointConfig,
    /// The destinations. No two of them have the same name.
    pub deliveries: Vec<DeliveryConfig>,
}

/// The configuration of `eventd ingest`.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    pub log: LogConfig,
    pub endpoint: EndpointConfig,
}

/// The configuration of `eventd dispatch`.
#[derive(Debug, Clone)]
pub struct DispatchConfig {
    pub log: LogConfig,
    pub delivery: DeliveryConfig,
    /// Whether to wait if another process holds the destination.
    pub standby: bool,
}

impl UpConfig {
    /// Checks the flags and fills in the defaults.
    ///
    /// # Errors
    /// A flag has a wrong value, or two flags contradict each other.
    pub fn new(flags: &UpFlags) -> anyhow::Result<Self> {
        // Ingest drains first, and the destinations after it. With half of the time each, both together keep to `--drain`.
        let drain = flags.process.drain / 2;
        let url = log::url(&flags.log.place, log::embedded_log)?;
        let preset = RetryPreset::Patient;
        let deliveries = delivery::deliveries(&flags.destinations, &flags.delivery, &flags.log, &url, drain, preset)?;
        delivery::check_batch(&flags.delivery, &deliveries)?;
        Ok(Self {
            log: LogConfig::new(&flags.log, &url, log::HasIngest::Yes)?,
            endpoint: EndpointConfig::new(&flags.endpoint, drain)?,
            deliveries,
        })
    }
}

impl IngestConfig {
    /// Checks the flags and fills in the defaults.
    ///
    /// # Errors
    /// A flag has a wrong value, or two flags contradict each other.
    pub fn new(flags: &IngestFlags) -> anyhow::Result<Self> {
        let url = log::url(&flags.log.place, log::local_broker)?;
        Ok(Self {
            log: LogConfig::new(&flags.log, &url, log::HasIngest::Yes)?,
            endpoint: EndpointConfig::new(&flags.endpoint, flags.process.drain)?,
        })
    }
}

impl DispatchConfig {
    /// Checks the flags and fills in the defaults.
    ///
    /// # Errors
    /// A flag has a wrong value, or two flags contradict each other.
    pub fn new(flags: &DispatchFlags) -> anyhow::Result<Self> {
        let url = log::url(&flags.log.place, log::local_broker)?;
        ensure!(
            !flags.standby || matches!(url, LogUrl::Sqlite(_)),
            "--standby waits for the lock of a database, so it needs --url sqlite:PATH. On Kafka the processes of a \
             destination share its partitions: leave the flag out"
        );
        // A variable that was written for `up` may have several lines.
        ensure!(
            !flags.destination.contains('\n'),
            "--dest: dispatch takes one destination, but the value has several lines: write one destination"
        );
        let typed = std::slice::from_ref(&flags.destination);
        let (drain, preset) = (flags.process.drain, RetryPreset::Patient);
        let deliveries = delivery::deliveries(typed, &flags.delivery, &flags.log, &url, drain, preset)?;
        delivery::check_batch(&flags.delivery, &deliveries)?;
        Ok(Self {
            log: LogConfig::new(&flags.log, &url, log::HasIngest::No)?,
            delivery: deliveries.into_iter().next().context("--dest is missing")?,
            standby: flags.standby,
        })
    }
}
