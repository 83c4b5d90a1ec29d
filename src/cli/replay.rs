//! Flags of `eventd replay`. The command line alone says what to replay, so these flags have no environment variables:
//! a variable that was forgotten in the environment must not start or change a replay.

use super::delivery::DELIVERY;
use super::{DeliveryFlags, LogFlags, ProcessFlags, defaults, values};
use crate::core::tries::OnExhausted;
use crate::replay::position::Position;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args};

const SELECTION: &str = "What to replay";
const EXECUTION: &str = "How to replay";
const REPOSITION: &str = "Move the position instead";

/// The group of flags that select events. `--resume` excludes them.
const SELECTION_GROUP: &str = "selection";

/// Flags that the command for `--resume` has anyway, or that do not fit it.
const NOT_REPEATED: [&str; 9] =
    ["destination", "name", "url", "topic", "resume", "execute", "list", "rewind", "fast_forward"];

/// Flags of `eventd replay`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new(SELECTION_GROUP).multiple(true)))]
pub struct ReplayFlags {
    /// Destination to deliver to, written as for dispatch
    ///
    /// The events are those that dispatch delivered, or tried to deliver, under this name. NAME=DEST delivers the events of
    /// NAME to somewhere else.
    #[arg(long = "dest", value_name = "[NAME=]DEST", env = "EVENTD_DEST", hide_env_values = true, help_heading = DELIVERY, required_unless_present = "list")]
    pub destination: Option<String>,

    /// Start of the range: an offset, a time or an age [default: the start of the log]
    ///
    /// An offset is 480 (for every partition) or p0:480,p2:17 (for each partition). A time is 2026-01-02T10:30:00Z, or
    /// local: 2026-01-02 10:30, or 10:30 for today, or @1767350000 for seconds since 1970. An age is 2h.
    ///
    /// A range by time contains every event that was accepted in it, even if the log does not store events in the order of
    /// time.
    #[arg(long, value_name = "POSITION", value_parser = values::position, group = SELECTION_GROUP, help_heading = SELECTION)]
    pub from: Option<Position>,

    /// End of the range, written like --from; it is not part of the range [default: the end of the log]
    #[arg(long, value_name = "POSITION", value_parser = values::position, group = SELECTION_GROUP, help_heading = SELECTION)]
    pub until: Option<Position>,

    /// Replay the destination's dead letters that were not replayed yet, and not the topic
    #[arg(long, conflicts_with_all = ["from", "until"], group = SELECTION_GROUP, help_heading = SELECTION)]
    pub dead: bool,

    /// With --dead, only dead letters with this reason: exhausted, refused or operator
    #[arg(long = "reason", value_name = "REASON", value_parser = ["exhausted", "refused", "operator"], requires = "dead", conflicts_with_all = ["from", "until"], group = SELECTION_GROUP, help_heading = SELECTION)]
    pub reasons: Vec<String>,

    /// With --dead, only dead letters written since this time or age
    #[arg(long, value_name = "POSITION", value_parser = values::moment, requires = "dead", conflicts_with_all = ["from", "until"], group = SELECTION_GROUP, help_heading = SELECTION)]
    pub since: Option<Position>,

    /// Only events of this user. Can be repeated; @FILE names a file with one user on each line
    #[arg(long = "user", value_name = "USER|@FILE", group = SELECTION_GROUP, help_heading = SELECTION)]
    pub users: Vec<String>,

    /// Only the event with this id. Can be repeated; @FILE names a file with one id on each line
    #[arg(long = "id", value_name = "ID|@FILE", group = SELECTION_GROUP, help_heading = SELECTION)]
    pub ids: Vec<String>,

    /// At most this many events
    ///
    /// The first events of the lowest partition come first, then those of the next partition.
    #[arg(long, value_name = "N", value_parser = values::from_one, group = SELECTION_GROUP, help_heading = SELECTION)]
    pub limit: Option<u64>,

    /// Include what was replayed before: events that came from a replay, or dead letters that were replayed
    #[arg(long, group = SELECTION_GROUP, help_heading = SELECTION)]
    pub again: bool,

    /// Continue the replay with this ID where it stopped; --list shows the IDs
    #[arg(long, value_name = "ID", value_parser = values::replay_id, conflicts_with = "selection", help_heading = SELECTION)]
    pub resume: Option<String>,

    /// Show past replays
    #[arg(long, conflicts_with_all = ["selection", "resume", "execute"], help_heading = SELECTION)]
    pub list: bool,

    /// Execute the plan. Without this flag the plan is shown, and at a terminal eventd asks whether to execute it
    #[arg(long, help_heading = EXECUTION)]
    pub execute: bool,

    /// Stop after this many failed attempts in a row; 0 is never
    #[arg(long, value_name = "N", env = "EVENTD_STOP_AFTER_FAILURES", default_value = defaults::STOP_AFTER_FAILURES, value_parser = values::failures, help_heading = EXECUTION)]
    pub stop_after_failures: u64,

    /// Send requests without a signature
    ///
    /// Without this flag, a replay that has no --webhook-secret-file is refused if dispatch signs the destination's
    /// requests.
    #[arg(long, help_heading = EXECUTION)]
    pub unsigned: bool,

    /// Print plan, summary and list as JSON, one object on each line
    #[arg(long, help_heading = EXECUTION)]
    pub json: bool,

    /// Move the destination's position back to --from, so that dispatch delivers everything from there again
    ///
    /// The replay itself delivers nothing. dispatch may be running or stopped.
    #[arg(long, requires = "from", conflicts_with_all = ["until", "users", "ids", "limit", "again", "dead", "resume", "list", "rate"], help_heading = REPOSITION)]
    pub rewind: bool,

    /// Move the destination's position forward to POSITION, so that dispatch never delivers what is before it
    ///
    /// The replay itself delivers nothing. dispatch may be running or stopped. 0s skips everything up to now.
    #[arg(long, value_name = "POSITION", value_parser = values::position, conflicts_with_all = ["selection", "resume", "list", "rate", "rewind"], help_heading = REPOSITION)]
    pub fast_forward: Option<Position>,

    #[command(flatten)]
    pub delivery: DeliveryFlags,
    #[command(flatten)]
    pub log: LogFlags,
    #[command(flatten)]
    pub process: ProcessFlags,

    /// The flags of the command line that a command for `--resume` repeats, one word each. Variables are not among them.
    #[arg(skip)]
    pub repeated: Vec<String>,

    /// The value of `EVENTD_ON_EXHAUSTED`, if it was replaced by `dead-letter`: `hold` or `drop`.
    #[arg(skip)]
    pub ignored_policy: Option<OnExhausted>,
}

impl ReplayFlags {
    /// Adds what only the parser knows: which flags were typed, and which come from variables.
    pub(super) fn complete(&mut self, parser: &clap::Command, typed: &ArgMatches) {
        let source = |id: &str| typed.value_source(id);
        // The variable is probably meant for dispatch. It must not keep an operator from a replay, nor make a replay discard
        // the events that it is to save.
        let on_exhausted = &mut self.delivery.retries.on_exhausted;
        let is_unfit = matches!(on_exhausted, OnExhausted::Hold | OnExhausted::Drop);
        if source("on_exhausted") == Some(ValueSource::EnvVariable) && is_unfit {
            self.ignored_policy = Some(std::mem::replace(on_exhausted, OnExhausted::DeadLetter));
        }
        let selects = |flag: &Arg| {
            let groups = parser.get_groups().filter(|group| group.get_id() == SELECTION_GROUP);
            groups.flat_map(clap::ArgGroup::get_args).any(|id| id == flag.get_id())
        };
        let is_repeated = |flag: &&Arg| {
            let id = flag.get_id().as_str();
            source(id) == Some(ValueSource::CommandLine) && !NOT_REPEATED.contains(&id) && !selects(flag)
        };
        self.repeated = parser.get_arguments().filter(is_repeated).flat_map(|flag| words(flag, typed)).collect();
    }
}

/// The flag as it was typed, with its values.
fn words(flag: &Arg, typed: &ArgMatches) -> Vec<String> {
    let name = format!("--{}", flag.get_long().unwrap_or_default());
    if !flag.get_action().takes_values() {
        return vec![name];
    }
    let values = typed.get_raw(flag.get_id().as_str()).into_iter().flatten();
    let with_value = |value: &std::ffi::OsStr| {
        let value = value.to_string_lossy();
        match flag.is_require_equals_set() || value.starts_with('-') {
            true => vec![format!("{name}={value}")],
            false => vec![name.clone(), value.into_owned()],
        }
    };
    values.flat_map(with_value).collect()
}
