//! Flags of `eventd control`. The command line alone says what to do, so these flags have no environment variables.

use super::{KafkaFlags, LogPlaceFlags, ProcessFlags, defaults, values};
use clap::{Args, ValueEnum};
use std::time::Duration;

const COMMAND: &str = "Command";

/// Flags of `eventd control`.
#[derive(Debug, Args)]
pub struct ControlFlags {
    /// What the processes that deliver to the destination are to do
    #[arg(value_enum, value_name = "COMMAND", help_heading = COMMAND)]
    pub command: ControlVerb,

    /// With rate: the most events that are attempted in a time, for example 500/s or 30/m, or off
    #[arg(value_name = "RATE", help_heading = COMMAND)]
    pub rate: Option<String>,

    /// Name of the destination. NAME=DEST, as for dispatch, is fine too: only the name counts
    #[arg(long = "dest", value_name = "NAME", help_heading = COMMAND)]
    pub destination: String,

    /// With retry, hold, release and give-up: the user, as in the events
    #[arg(long, value_name = "USER", allow_hyphen_values = true, value_parser = values::user, help_heading = COMMAND)]
    pub user: Option<String>,

    /// With give-up: partition and offset of the last event to give up [default: the user's next event]
    #[arg(long, value_name = "PARTITION:OFFSET", value_parser = values::partition_offset, help_heading = COMMAND)]
    pub offset: Option<(u32, i64)>,

    /// Why. The text is stored with the command, and shown in log lines
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = values::reason, help_heading = COMMAND)]
    pub reason: String,

    /// How long to wait until every process that delivers has applied the command; 0s does not wait
    #[arg(long, value_name = "DURATION", default_value = defaults::CONTROL_WAIT, value_parser = values::duration, help_heading = COMMAND)]
    pub wait: Duration,

    /// Print what the command does and its result as JSON, one object on each line
    #[arg(long, help_heading = COMMAND)]
    pub json: bool,

    #[command(flatten)]
    pub log: LogPlaceFlags,
    #[command(flatten)]
    pub kafka: KafkaFlags,
    #[command(flatten)]
    pub process: ProcessFlags,
}

/// The commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ControlVerb {
    /// Start no attempt from now on, also after a restart
    Pause,
    /// End a pause
    Resume,
    /// Limit the events that are attempted in a time
    Rate,
    /// Try one event now if the destination is in an outage
    Probe,
    /// Try the next event of a user now, and release the user if it is held
    Retry,
    /// Do not try a user until it is released; its events wait in the log
    Hold,
    /// Deliver the events of a held user again, in their order
    Release,
    /// Turn the next event of a user, or all up to --offset, into dead letters
    GiveUp,
}
