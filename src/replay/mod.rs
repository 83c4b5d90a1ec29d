//! `eventd replay`: delivers again what a destination had settled, after an incident.
//!
//! ```text
//!  range, selection ─▶ offsets ─▶ what the destination has settled of them ─▶ plan ── without --execute: the end
//!                                                                              │
//!       <topic>.audit ◀─ started ── progress group D.replay.ID, one state a partition ◀─┘
//!             ▲                        │
//!             │ ended                  ▼
//!             └──────────── dispatch over a filtered log: same lanes, retries, destination ─▶ receiver
//! ```
//!
//! # Which events are delivered
//!
//! Only events that the destination had settled when the plan was made. Dispatch delivers the others. The choice is
//! stored once, as the first state of the replay's own group: every event that must *not* be delivered counts as settled
//! in it. From then on the replay is a dispatch under another name. What its state has not settled is what is left,
//! whichever process crashes. `--resume` needs only that state and the selection, which the audit record holds.
//!
//! # Order
//!
//! Events of one user are delivered in order, at least once, as dispatch does. A replay is a stream of its own in
//! addition to the live one: the receiver sees old events of a user between new ones. It can tell them apart by the
//! header `eventd-replay`, and drop repeats by `webhook-id`.
//!
//! # Order of writes
//!
//! A replay first writes the states of all partitions, then the audit record that names the replay, and only then
//! delivers. If it is killed before the audit record, it has delivered nothing and leaves no trace that matters. If it
//! is killed after the audit record, it can be resumed.
//!
//! # Dead letters
//!
//! With `--dead` the source is `<topic>.<dest>.dead`, and the group `<dest>.dead` says which dead letters were redriven
//! before. They count as settled in the first state. The replay marks each dead letter there when it is settled. An event
//! that fails again becomes a new dead letter at the end of the same topic, with its history.
//!
//! # Modules
//!
//! | module | what it does |
//! |---|---|
//! | [`position`], [`range`], [`select`] | what the operator typed, as offsets, times and conditions |
//! | `prepare`, [`plan`], [`count`] | find the events and count them |
//! | `execute`, `run` | deliver the plan, watch it, stop it |
//! | `replay_log`, `replay_group`, `redrive` | show dispatch only the events of the replay |
//! | [`rewind`] | reset the offsets of the destination instead of delivering |
//! | [`audit`], [`signing`] | who replayed what, and whether requests must be signed |
//! | `show`, `streams` | print the plan, the question, the summary and the list |

pub mod audit;
pub mod count;
mod execute;
pub mod ids;
pub mod plan;
pub mod position;
mod prepare;
pub mod range;
mod redrive;
mod replay_group;
mod replay_log;
pub mod rewind;
mod run;
pub mod select;
mod show;
pub mod signing;
mod streams;

pub(crate) use self::rewind::retry_group_call;
pub use self::show::list;
pub use self::streams::{StandardStreams, Streams};

use self::ids::IdSource;
use self::plan::{PartitionPlan, Plan};
use self::position::Reposition;
use self::range::Range;
use self::select::Selection;
use self::signing::Signature;
use crate::BoxFuture;
use crate::clock::WallClock;
use crate::core::outcome::Ended;
use crate::core::token_bucket::Rate;
use crate::core::tries::OnExhausted;
use crate::destination::spec::Spec;
use crate::destination::{self, Destination};
use crate::dispatch;
use crate::group::Groups;
use crate::log::{Engine, Log};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How often a replay tries again if the log or a group is not available, and how long it waits before each retry.
const RETRIES_MAX: u32 = 20;
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// How often a replay logs its progress if there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The parts of the program that a replay uses.
#[derive(Debug, Clone)]
pub struct ReplayContext {
    pub engine: Arc<dyn Engine>,
    /// The main topic.
    pub log: Arc<dyn Log>,
    pub groups: Arc<dyn Groups>,
    pub spec: Spec,
    pub opener: Arc<dyn DestinationOpener>,
    pub dispatch: dispatch::Config,
    pub streams: Arc<dyn Streams>,
    pub wall_clock: WallClock,
    pub ids: Arc<dyn IdSource>,
}

/// Opens the destination. A replay does this only if there is something to deliver.
pub trait DestinationOpener: Send + Sync + fmt::Debug {
    fn open<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, anyhow::Result<Arc<dyn Destination>>>;
}

impl DestinationOpener for destination::DestinationSettings {
    fn open<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, anyhow::Result<Arc<dyn Destination>>> {
        let (spec, settings) = (spec.clone(), self.clone());
        // Opening a file destination reads files, which may block.
        Box::pin(async move { Ok(tokio::task::spawn_blocking(move || destination::open(&spec, &settings)).await??) })
    }
}

/// The checked configuration of one replay.
#[derive(Debug, Clone)]
pub struct Config {
    pub request: ReplayRequest,
    /// Execute the plan without asking. Otherwise only an operator who answers yes at a terminal executes it.
    pub execute: bool,
    /// Print plan and summary as JSON, one line each.
    pub json: bool,
    pub rate: Option<Rate>,
    /// Stop after this many failed attempts in a row. 0 is never.
    pub stop_after_failures: u64,
    /// The flags of a command that resumes this replay.
    pub repeated: RepeatedFlags,
    /// The value of `EVENTD_ON_EXHAUSTED` that this replay does not follow. Its dispatch configuration has dead letters
    /// instead.
    pub ignored_policy: Option<OnExhausted>,
    /// Whether this replay signs its requests.
    pub signature: Signature,
}

/// The flags that a command for `--resume` repeats, quoted for a shell and without secrets.
#[derive(Debug, Clone, Default)]
pub struct RepeatedFlags {
    /// `--url` and `--topic`.
    pub log: String,
    /// The other flags of the command line, with a space before each word.
    pub others: String,
    /// The command needs secrets that it does not show.
    pub needs_secrets: bool,
}

/// What the operator asks for.
#[derive(Debug, Clone)]
pub enum ReplayRequest {
    /// Deliver the selected events of a range.
    New {
        range: Range,
        selection: Selection,
        limit: Option<u64>,
        /// A user without events in the range is an error. Set if the users were typed one by one, and not read from a
        /// file.
        users_must_exist: bool,
    },
    /// Deliver what is left of the replay with this id.
    Resume { id: String },
    /// Reset the destination's offsets, and deliver nothing.
    Reposition(Reposition),
}

impl ReplayRequest {
    fn deprecation_warnings(&self) -> Vec<String> {
        match self {
            Self::New { range, .. } => range.deprecation_warnings().collect(),
            Self::Reposition(reposition) => reposition.position().deprecation_warning().into_iter().collect(),
            Self::Resume { .. } => Vec::new(),
        }
    }
}

/// The operator asked for something that cannot be done. Holds the message.
#[derive(Debug, thiserror::Error)]
pub enum ReplayRefused {
    /// The flags are wrong, for example an unknown name or id.
    #[error("{0}")]
    Usage(String),
    /// The flags are right, but the log does not hold what they name.
    #[error("{0}")]
    NotInLog(String),
}

impl ReplayRefused {
    /// Whether the operator has to change the flags.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }

    fn usage(why: impl Into<String>) -> anyhow::Error {
        Self::Usage(why.into()).into()
    }

    fn not_in_log(why: impl Into<String>) -> anyhow::Error {
        Self::NotInLog(why.into()).into()
    }
}

/// A plan with everything that its execution needs.
struct PreparedReplay {
    /// The replay that is resumed. `None` for a new one.
    id: Option<String>,
    /// The log that holds the events: the main topic, or the one of dead letters.
    source: Arc<dyn Log>,
    /// What is replayed, in words for the operator.
    title: String,
    selection: Selection,
    partitions: Vec<PartitionPlan>,
    plan: Plan,
}

impl PreparedReplay {
    /// Whether executing the plan changes nothing.
    fn is_empty(&self, request: &ReplayRequest) -> bool {
        // A fast-forward past offsets that cannot be read has no events, but it lets a stopped partition continue.
        let passes_unreadable =
            matches!(request, ReplayRequest::Reposition(Reposition::FastForward(_))) && self.plan.unreadable > 0;
        self.plan.events == 0 && !passes_unreadable && self.id.is_none()
    }
}

/// Makes the plan and shows it. Executes it if that was asked for, until `stop` is ready.
pub async fn run(
    context: ReplayContext,
    config: Config,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let mut stop = std::pin::pin!(stop);
    for warning in config.request.deprecation_warnings() {
        tracing::warn!("{warning}");
    }
    let preparing = async {
        match &config.request {
            ReplayRequest::New { range, selection, limit, users_must_exist } => {
                prepare::prepare_new(&context, range, selection, *limit, *users_must_exist).await
            }
            ReplayRequest::Resume { id } => prepare::prepare_resume(&context, id).await,
            ReplayRequest::Reposition(reposition) => rewind::prepare(&context, reposition).await,
        }
    };
    let prepared = tokio::select! {
        biased;
        prepared = preparing => prepared?,
        () = &mut stop => {
            show::note(&context, &config, "stopped before the plan was complete: nothing was delivered");
            return Ok(Ended::WorkLeft);
        }
    };
    show::show_plan(&context, &config, &prepared)?;
    if prepared.is_empty(&config.request) {
        show::note(&context, &config, "there is nothing to replay");
        return Ok(Ended::Drained);
    }
    if let Some(why) = missing_signature(&context, &config).await? {
        if config.execute {
            return Err(ReplayRefused::usage(why));
        }
        show::note(&context, &config, &format!("nothing was delivered: {why}"));
        return Ok(Ended::Drained);
    }
    let is_confirmed = tokio::select! {
        biased;
        is_confirmed = show::confirm(&context, &config, &prepared) => is_confirmed?,
        () = &mut stop => false,
    };
    if !is_confirmed {
        let what = match config.request {
            ReplayRequest::Reposition(_) => "the position was not moved: add --execute to move it",
            ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => {
                "nothing was delivered: add --execute to deliver these events"
            }
        };
        show::note(&context, &config, what);
        return Ok(Ended::Drained);
    }
    match &config.request {
        ReplayRequest::Reposition(reposition) => rewind::execute(&context, &config, reposition, prepared, stop).await,
        ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => {
            execute::execute(&context, &config, prepared, stop).await
        }
    }
}

/// Why this replay must not deliver: dispatch signs its requests, and the replay has no secret.
async fn missing_signature(context: &ReplayContext, config: &Config) -> anyhow::Result<Option<String>> {
    let name = &context.spec.name;
    let delivers = matches!(config.request, ReplayRequest::New { .. } | ReplayRequest::Resume { .. });
    if !delivers || config.signature != Signature::Missing {
        return Ok(None);
    }
    let was_signed = signing::was_signed(&*context.engine, context.log.topic(), name).await?;
    Ok(was_signed.then(|| {
        format!(
            "dispatch signs the requests to {name}, and this replay has no secret. Add --webhook-secret-file to sign them, \
             or --unsigned to send them without a signature"
        )
    }))
}
