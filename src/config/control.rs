//! Which command to give to which destination.

use super::log::{self, LogConfig};
use crate::cli::{ControlFlags, ControlVerb};
use crate::control::{self, RequestedCommand};
use crate::core::names;
use crate::core::token_bucket::Rate;
use crate::destination::spec::Spec;
use anyhow::{Context, ensure};

/// The text for a rate without a limit.
const RATE_OFF: &str = "off";

/// The configuration of `eventd control`.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Neither the database nor the topic is created.
    pub log: LogConfig,
    /// Only its name counts.
    pub spec: Spec,
    pub control: control::Config,
}

impl ControlConfig {
    /// Checks the flags and fills in the defaults.
    ///
    /// # Errors
    /// A flag has a wrong value, or does not fit the command.
    pub fn new(flags: &ControlFlags) -> anyhow::Result<Self> {
        let url = log::url(&flags.log, log::local_broker)?;
        let log = LogConfig::existing(&flags.log, &flags.kafka, &url)?;
        let control = control::Config {
            command: command(flags)?,
            reason: flags.reason.clone(),
            wait: flags.wait,
            json: flags.json,
        };
        Ok(Self { log, spec: named(&flags.destination)?, control })
    }
}

/// The destination with this name. A bare word is a name here, also if it would be a file elsewhere.
fn named(text: &str) -> anyhow::Result<Spec> {
    let is_name = names::is_valid(text, usize::MAX) && text.chars().any(char::is_alphanumeric);
    let spec = if is_name { Spec::parse(&format!("{text}=null:")) } else { Spec::parse(text) };
    spec.context("--dest")
}

fn command(flags: &ControlFlags) -> anyhow::Result<RequestedCommand> {
    let verb = flags.command;
    ensure!(
        flags.rate.is_none() || verb == ControlVerb::Rate,
        "{:?} after the command: only `rate` has a value",
        flags.rate.as_deref().unwrap_or_default()
    );
    ensure!(flags.offset.is_none() || verb == ControlVerb::GiveUp, "--offset is only for give-up: leave it out");
    let is_about_user =
        matches!(verb, ControlVerb::Retry | ControlVerb::Hold | ControlVerb::Release | ControlVerb::GiveUp);
    ensure!(
        flags.user.is_none() || is_about_user,
        "--user is only for retry, hold, release and give-up: the other commands concern the whole destination"
    );
    let user = || flags.user.clone().context("--user is missing: this command concerns one user");
    Ok(match verb {
        ControlVerb::Pause => RequestedCommand::Pause,
        ControlVerb::Resume => RequestedCommand::Resume,
        ControlVerb::Probe => RequestedCommand::Probe,
        ControlVerb::Rate => {
            let rate =
                flags.rate.as_deref().context("the rate is missing: write for example `rate 500/s` or `rate off`")?;
            let parsed = || rate.parse::<Rate>().map_err(|why| anyhow::anyhow!("{rate:?}: {why}, or `rate off`"));
            RequestedCommand::Rate(if rate == RATE_OFF { None } else { Some(parsed()?) })
        }
        ControlVerb::Retry => RequestedCommand::Retry { user: user()? },
        ControlVerb::Hold => RequestedCommand::Hold { user: user()? },
        ControlVerb::Release => RequestedCommand::Release { user: user()? },
        ControlVerb::GiveUp => RequestedCommand::GiveUp { user: user()?, until: flags.offset },
    })
}
