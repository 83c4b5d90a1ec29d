//! The command line exactly as typed: each flag with its environment variable, its default and its help.
//!
//! Checks of a single value are made here (a unit, a zero that makes no sense), so that clap's error names the flag. Checks
//! that concern several flags are made in [`config`](crate::config). Both end the process with exit code 2.
//!
//! A flag wins over its environment variable, and the variable wins over the default. A variable that is set but empty is
//! an error, unless its flag is given: the value was more often forgotten than left empty on purpose.

mod control;
pub(crate) mod defaults;
mod delivery;
mod help;
mod ingest;
mod log;
mod redact;
mod replay;
mod retries;
mod values;

pub use self::control::{ControlFlags, ControlVerb};
pub use self::delivery::DeliveryFlags;
pub use self::ingest::EndpointFlags;
pub use self::log::{KafkaFlags, LogFlags, LogPlaceFlags, ProcessFlags};
pub use self::redact::without_secrets;
pub use self::replay::ReplayFlags;
pub use self::retries::{GiveUpAfter, RetryFlags, RetryPreset};

use self::delivery::DELIVERY;
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::collections::BTreeSet;
use std::ffi::OsString;

/// Take events in over HTTP, keep them in a durable log, and deliver them to destinations.
///
/// Events of one user are delivered in order and at least once. Each destination and each user is isolated from the others:
/// a failure of one delays no other one.
#[derive(Debug, Parser)]
#[command(name = "eventd", version, max_term_width = 100, after_help = help::PROGRAM)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take events in and deliver them to any number of destinations, in one process
    ///
    /// The log is a database file by default, so this command needs no other program.
    #[command(after_help = help::UP, after_long_help = help::UP_LONG)]
    Up(UpFlags),

    /// Take events in over HTTP (POST /events) and write them to the log
    #[command(after_help = help::INGEST, after_long_help = help::INGEST_LONG)]
    Ingest(IngestFlags),

    /// Deliver the events of the log to one destination
    ///
    /// Events of one user are delivered in order and at least once. Progress is stored in the log under the name of the
    /// destination, so that a restart continues there.
    #[command(after_help = help::DISPATCH, after_long_help = help::DISPATCH_LONG)]
    Dispatch(DispatchFlags),

    /// Deliver events to a destination again, for example after an incident
    ///
    /// Shows a plan first, and delivers nothing without --execute.
    #[command(after_help = help::REPLAY, after_long_help = help::REPLAY_LONG)]
    Replay(ReplayFlags),

    /// Command the processes that deliver to a destination: pause, limit, hold a user, and more
    ///
    /// The command is stored in the log. So it reaches the processes on whatever machine they run, and stays in force after
    /// a restart. It says first what it will do, and then waits until it is applied.
    #[command(after_help = help::CONTROL, after_long_help = help::CONTROL_LONG)]
    Control(ControlFlags),
}

/// Flags of `eventd up`.
#[derive(Debug, Args)]
pub struct UpFlags {
    /// Where to deliver: a file, an http(s) URL, - for standard output, or null:. Can be repeated
    ///
    /// file-1, out/log.jsonl or file:out/log.jsonl is a file that gets one line of JSON for each event; its directory has
    /// to exist. http://… or https://… gets one POST request for each event. null: discards events, for measurements.
    ///
    /// NAME= before it names the destination, for example billing=http://… or audit=file:audit.jsonl. Without it the name is
    /// derived. The log stores the progress of a destination under its name.
    ///
    /// EVENTD_DEST has one destination on each line. Empty lines do not count.
    #[arg(long = "dest", value_name = "[NAME=]DEST", env = "EVENTD_DEST", hide_env_values = true, value_delimiter = '\n', help_heading = DELIVERY)]
    pub destinations: Vec<String>,

    #[command(flatten)]
    pub delivery: DeliveryFlags,
    #[command(flatten)]
    pub endpoint: EndpointFlags,
    #[command(flatten)]
    pub log: LogFlags,
    #[command(flatten)]
    pub process: ProcessFlags,
}

/// Flags of `eventd ingest`.
#[derive(Debug, Args)]
pub struct IngestFlags {
    #[command(flatten)]
    pub endpoint: EndpointFlags,
    #[command(flatten)]
    pub log: LogFlags,
    #[command(flatten)]
    pub process: ProcessFlags,
}

/// Flags of `eventd dispatch`.
#[derive(Debug, Args)]
pub struct DispatchFlags {
    /// Where to deliver: a file, an http(s) URL, - for standard output, or null:
    ///
    /// file-1, out/log.jsonl or file:out/log.jsonl is a file that gets one line of JSON for each event; its directory has
    /// to exist. http://… or https://… gets one POST request for each event. null: discards events, for measurements.
    ///
    /// NAME= before it names the destination, for example billing=http://… or audit=file:audit.jsonl. Without it the name is
    /// derived. The log stores the progress of a destination under its name.
    #[arg(long = "dest", value_name = "[NAME=]DEST", env = "EVENTD_DEST", hide_env_values = true, help_heading = DELIVERY)]
    pub destination: String,

    /// If another process holds this destination, wait for it instead of failing
    ///
    /// Only for a database. On Kafka, the processes of a destination share its partitions.
    #[arg(long, env = "EVENTD_STANDBY", value_parser = values::switch, help_heading = DELIVERY)]
    pub standby: bool,

    #[command(flatten)]
    pub delivery: DeliveryFlags,
    #[command(flatten)]
    pub log: LogFlags,
    #[command(flatten)]
    pub process: ProcessFlags,
}

impl Cli {
    /// Reads the arguments (the program's name first) and the environment.
    ///
    /// # Errors
    /// clap's result if there is nothing to run, which includes the texts of `--help` and `--version`; or an environment
    /// variable is empty.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let mut empty = Vec::new();
        // clap would take an empty variable for an empty value, and its error would not name the variable. So clap does
        // not see empty variables, and this function refuses them if their flag is not given.
        let mut parser = Self::command().mut_subcommands(|command| {
            let name = command.get_name().to_owned();
            command.mut_args(|flag| {
                let flag = with_values_that_begin_with_a_hyphen(flag);
                match is_empty_in_environment(&flag) {
                    true => {
                        empty.push((name.clone(), flag.clone()));
                        flag.env(Resettable::Reset)
                    }
                    false => flag,
                }
            })
        });
        let matches = match parser.try_get_matches_from_mut(&arguments) {
            Ok(matches) => matches,
            // The required flag may be missing because its variable is empty.
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
                let is_used = |command: &str| arguments.iter().skip(1).any(|word| word == command);
                return Err(match empty.iter().find(|(command, _)| is_used(command)) {
                    Some((_, flag)) => empty_variable(&mut parser, flag),
                    None => error,
                });
            }
            Err(error) => return Err(error),
        };
        if let Some((command, typed)) = matches.subcommand() {
            let is_typed = |flag: &Arg| typed.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine);
            if let Some((_, flag)) = empty.iter().find(|(of, flag)| of == command && !is_typed(flag)) {
                return Err(empty_variable(&mut parser, flag));
            }
        }
        let mut cli = Self::from_arg_matches(&matches)?;
        if let Some((name, typed)) = matches.subcommand() {
            cli.command.trim_variables(typed);
            if let (Command::Replay(replay), Some(parser)) = (&mut cli.command, parser.find_subcommand(name)) {
                replay.complete(parser, typed);
            }
        }
        Ok(cli)
    }

    /// The environment variables of all flags of all commands.
    pub fn variables() -> BTreeSet<String> {
        let cli = Self::command();
        let flags = cli.get_subcommands().flat_map(clap::Command::get_arguments);
        flags.filter_map(Arg::get_env).map(|name| name.to_string_lossy().into_owned()).collect()
    }
}

/// The names of values that are numbers, or begin with one.
const NUMBERS: [&str; 8] = ["N", "DURATION", "SIZE", "POSITION", "RATE", "MODE", "SEED", "PARTITION:OFFSET"];

/// Lets the value of a flag for a number begin with a hyphen. Otherwise clap's error about `--attempts -1` would not name
/// the flag. The flag's own check refuses the value.
fn with_values_that_begin_with_a_hyphen(flag: Arg) -> Arg {
    let names = flag.get_value_names().unwrap_or_default();
    let is_number = flag.get_long().is_some() && names.iter().any(|name| NUMBERS.contains(&name.as_str()));
    if is_number { flag.allow_hyphen_values(true) } else { flag }
}

/// Whether the flag's variable is set, but has nothing except white space.
fn is_empty_in_environment(flag: &Arg) -> bool {
    let value = flag.get_env().and_then(std::env::var_os);
    value.is_some_and(|value| value.to_str().is_some_and(|value| value.trim().is_empty()))
}

fn empty_variable(parser: &mut clap::Command, flag: &Arg) -> clap::Error {
    let (variable, flag) = (flag.get_env().unwrap_or_default().display(), flag.get_long().unwrap_or_default());
    let message = format!("the variable {variable}, which sets --{flag}, is empty: give it a value, or unset it");
    parser.error(ErrorKind::InvalidValue, message)
}

impl Command {
    /// Removes line breaks around values that came from a variable, and empty lines of lists. Most ways to write a
    /// variable down add a line break at its end. On the command line nothing is removed.
    fn trim_variables(&mut self, typed: &ArgMatches) {
        let from_variable = |id: &str| typed.value_source(id) == Some(ValueSource::EnvVariable);
        let trim = |text: &mut String| *text = text.trim_matches(['\r', '\n']).to_owned();
        let trim_lines = |list: &mut Vec<String>| {
            list.iter_mut().for_each(trim);
            list.retain(|line| !line.is_empty());
        };
        let delivery = match self {
            Self::Ingest(_) | Self::Control(_) => return,
            Self::Up(up) => {
                if from_variable("destinations") {
                    trim_lines(&mut up.destinations);
                }
                &mut up.delivery
            }
            Self::Dispatch(dispatch) => {
                if from_variable("destination") {
                    trim(&mut dispatch.destination);
                }
                &mut dispatch.delivery
            }
            Self::Replay(replay) => {
                if from_variable("destination") {
                    replay.destination.iter_mut().for_each(trim);
                }
                &mut replay.delivery
            }
        };
        if from_variable("webhook_secret_files") {
            trim_lines(&mut delivery.webhook_secret_files);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_of_all_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_tells_the_defaults_that_depend_on_the_command_or_the_log() {
        let cli = Cli::command();
        let up = cli.find_subcommand("up").unwrap();
        for (flag, default) in [
            ("url", defaults::BROKER.to_owned()),
            ("url", format!("sqlite:{}", defaults::UP_DATABASE)),
            ("partitions", defaults::PARTITIONS.to_string()),
            ("retention", format!("{}d", defaults::RETENTION.as_secs() / 86_400)),
            ("dead_retention", format!("{}d", defaults::DEAD_RETENTION.as_secs() / 86_400)),
            ("max_db_bytes", format!("{}GiB", defaults::MAX_DB_BYTES >> 30)),
            ("max_connections", defaults::MAX_CONNECTIONS.to_string()),
        ] {
            let argument = up.get_arguments().find(|argument| argument.get_id() == flag).unwrap();
            let help = argument.get_help().unwrap().to_string();
            let (_, told) = help.split_once("[default: ").unwrap_or_else(|| panic!("--{flag}: {help}"));
            assert!(told.contains(&default), "--{flag} has the default {default}, but its help says {told}");
        }
    }

    #[test]
    fn the_help_of_the_presets_tells_their_values() {
        let cli = Cli::command();
        let up = cli.find_subcommand("up").unwrap();
        let argument = up.get_arguments().find(|argument| argument.get_id() == "retries").unwrap();
        let help = argument.get_long_help().unwrap().to_string();
        for (name, preset) in [("patient", defaults::PATIENT), ("quick", defaults::QUICK)] {
            let time = |time| humantime::format_duration(time).to_string().replace("1day", "24h");
            let told = format!(
                "{name}: --attempts {} --give-up-after {} --backoff {} --backoff-max {}{}.",
                preset.attempts_max.unwrap_or(0),
                preset.give_up_after.map_or("never".to_owned(), time),
                time(preset.backoff),
                time(preset.backoff_max),
                if preset.jitter { " --jitter" } else { "" },
            );
            assert!(help.contains(&told), "{told:?} is not in {help:?}");
        }
    }

    #[test]
    fn every_flag_has_a_short_help_of_one_sentence() {
        for command in Cli::command().get_subcommands() {
            for flag in command.get_arguments() {
                let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(
                    !help.is_empty() && help.chars().count() <= 130,
                    "{} {}: {help:?}",
                    command.get_name(),
                    flag.get_id()
                );
            }
        }
    }
}
