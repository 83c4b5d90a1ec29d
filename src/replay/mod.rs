//! `eventd replay`: delivers again what a destination had settled, after an incident.
//!
//! ```text
//!  range, selection ─▶ offsets ─▶ what the destination has settled of them ─▶ plan ── without --execute: the end
//!                                                                              │
//!       <topic>.audit ◀─ started ── progress group D.replay.ID, one state a partition ◀─┘
//!             ▲                        │
//!             │ ended                  ▼
//!             └──────────── dispatch over a view of the log: same lanes, retries, destination ─▶ receiver
//! ```
//!
//! # What is taken
//!
//! Only what the destination had settled when the plan was made: the rest is on its way, and dispatch delivers it. That
//! is written down once, as the first state of the replay's own group, in which everything *not* to be taken counts as
//! settled. From there on the replay is a dispatch with another name: what its state does not settle is what is left,
//! whoever dies meanwhile, and `--resume` needs nothing else but the selection, which the audit record holds.
//!
//! # Order
//!
//! In order per user, at least once, as dispatch. Beside the live traffic it is a stream of its own: the receiver sees
//! old events of a user between new ones, and tells them apart by `eventd-replay`, and repeats by `webhook-id`.
//!
//! # What is written, in this order
//!
//! The states of all partitions, then the audit record that names the replay, then events are delivered. Killed before
//! the record, a replay has delivered nothing and nobody knows of it; killed behind it, it can be resumed.
//!
//! # Dead letters
//!
//! The source is then `<topic>.<dest>.dead`, and what counts as settled at the beginning is what the group `<dest>.dead`
//! says was redriven before. Letters are marked there as they are settled. One that fails again becomes a letter again,
//! at the end of the same topic, of the same event, with its history.
//!
//! The rooms: `place` (words), `range` (to offsets and times), `select` (which events), `prepare` and `plan` (find and
//! count them), `view` (what dispatch sees), `run` (let it run, watch it, stop it), `audit` (who did what), `show` (tell
//! people), `rewind` (move the destination's own position instead), `signing` (whether a secret is needed).

pub mod audit;
pub mod plan;
pub mod position;
mod prepare;
pub mod range;
pub mod rewind;
mod run;
pub mod select;
mod show;
pub mod signing;
mod view;

pub use self::show::{StandardStreams, Streams, list};

use self::audit::{AuditEvent, AuditLog, ReplayOutcome, ReplayStart};
use self::plan::{PartitionPlan, Plan};
use self::range::{OffsetRange, Range};
use self::rewind::Reposition;
use self::run::ReplayRun;
use self::select::Selection;
use self::signing::Signature;
use self::view::RedriveMarker;
use crate::BoxFuture;
use crate::clock::now_ms;
use crate::core::outcome::Ended;
use crate::core::progress::PartitionState;
use crate::core::side_topics::{dead_letter_group, replay_group};
use crate::core::token_bucket::Rate;
use crate::destination::spec::Spec;
use crate::destination::{self, Destination};
use crate::group::{Group, Groups, is_final};
use crate::log::{Engine, Log};
use crate::{dispatch, limits};
use anyhow::Context;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// What a replay works with.
#[derive(Debug, Clone)]
pub struct ReplayContext {
    pub engine: Arc<dyn Engine>,
    /// The topic.
    pub log: Arc<dyn Log>,
    pub groups: Arc<dyn Groups>,
    pub spec: Spec,
    pub opener: Arc<dyn DestinationOpener>,
    pub dispatch: dispatch::Config,
    pub streams: Arc<dyn Streams>,
}

/// Opens the destination, once there is something to deliver.
pub trait DestinationOpener: Send + Sync + fmt::Debug {
    fn open<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, anyhow::Result<Arc<dyn Destination>>>;
}

impl DestinationOpener for destination::DestinationSettings {
    fn open<'a>(&'a self, spec: &'a Spec) -> BoxFuture<'a, anyhow::Result<Arc<dyn Destination>>> {
        let (spec, settings) = (spec.clone(), self.clone());
        // It looks at files, and blocks for as long as they do.
        Box::pin(async move { Ok(tokio::task::spawn_blocking(move || destination::open(&spec, &settings)).await??) })
    }
}

/// The checked configuration of one replay.
#[derive(Debug, Clone)]
pub struct Config {
    pub what: ReplayRequest,
    /// Deliver. Else the plan is all, unless a person at a terminal says yes.
    pub execute: bool,
    /// Plan and summary as JSON, a line each.
    pub json: bool,
    pub rate: Option<Rate>,
    /// Failures in a row after which it stops; 0: never.
    pub stop_after_failures: u64,
    /// Whether requests have to be signed, and are.
    pub signature: Signature,
}

/// What is replayed.
#[derive(Debug, Clone)]
pub enum ReplayRequest {
    New {
        range: Range,
        selection: Selection,
        limit: Option<u64>,
        /// Users were typed one by one, so each has to be there; those of a file need not.
        every_user: bool,
    },
    /// What is left of the replay with this id.
    Resume { id: String },
    /// Nothing: dispatch does it, from another position.
    Reposition(Reposition),
}

impl ReplayRequest {
    /// What a person is to be told who used a deprecated form.
    fn deprecations(&self) -> Vec<String> {
        match self {
            Self::New { range, .. } => range.deprecations().collect(),
            Self::Reposition(Reposition::Rewind(place) | Reposition::FastForward(place)) => {
                place.deprecation().into_iter().collect()
            }
            Self::Resume { .. } => Vec::new(),
        }
    }
}

/// A person asked for what cannot be: a name, an id or a place that is not there.
#[derive(Debug)]
pub struct ReplayRefused {
    why: String,
    /// The flags are at fault, and not what the log holds at the moment.
    pub is_usage: bool,
}

impl ReplayRefused {
    fn usage(why: impl Into<String>) -> anyhow::Error {
        Self { why: why.into(), is_usage: true }.into()
    }

    fn outside(why: impl Into<String>) -> anyhow::Error {
        Self { why: why.into(), is_usage: false }.into()
    }
}

impl fmt::Display for ReplayRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for ReplayRefused {}

/// A plan with everything that executing it needs.
struct PreparedReplay {
    /// Absent: a new one.
    id: Option<String>,
    /// Where the events are.
    source: Arc<dyn Log>,
    /// As a person reads it.
    what: String,
    selection: Selection,
    legs: Vec<PartitionPlan>,
    plan: Plan,
}

/// Plans, shows the plan, and where that was asked for delivers, until `stop` is ready.
pub async fn run(
    context: ReplayContext,
    config: Config,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let mut stop = std::pin::pin!(stop);
    for deprecation in config.what.deprecations() {
        tracing::warn!("{deprecation}");
    }
    let planning = async {
        match &config.what {
            ReplayRequest::New { range, selection, limit, every_user } => {
                prepare::plan_new(&context, range, selection, *limit, *every_user).await
            }
            ReplayRequest::Resume { id } => prepare::plan_resume(&context, id).await,
            ReplayRequest::Reposition(wanted) => rewind::plan(&context, wanted).await,
        }
    };
    let planned = tokio::select! {
        biased;
        planned = planning => planned?,
        () = &mut stop => {
            show::note(&context, &config, "stopped before the plan was made: nothing was delivered");
            return Ok(Ended::WorkLeft);
        }
    };
    show::show(&context, &config, &planned)?;
    // A fast-forward has something to do also where nothing can be read.
    let passes =
        matches!(config.what, ReplayRequest::Reposition(Reposition::FastForward(_))) && planned.plan.unreadable > 0;
    if planned.plan.events == 0 && !passes && planned.id.is_none() {
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
    let agreed = tokio::select! {
        biased;
        agreed = show::agree(&context, &config, &planned) => agreed?,
        () = &mut stop => false,
    };
    if !agreed {
        let what = match config.what {
            ReplayRequest::Reposition(_) => "nothing was moved: --execute moves the position",
            ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => "nothing was delivered: --execute does it",
        };
        show::note(&context, &config, what);
        return Ok(Ended::Drained);
    }
    match &config.what {
        ReplayRequest::Reposition(wanted) => rewind::apply(&context, &config, wanted, planned, stop).await,
        ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => execute(&context, &config, planned, stop).await,
    }
}

/// Why a replay must not deliver without the secret that dispatch has.
async fn missing_signature(context: &ReplayContext, config: &Config) -> anyhow::Result<Option<String>> {
    let name = &context.spec.name;
    let delivers = matches!(config.what, ReplayRequest::New { .. } | ReplayRequest::Resume { .. });
    if !delivers || config.signature != Signature::Missing {
        return Ok(None);
    }
    let was_signed = signing::was_signed(&*context.engine, context.log.topic(), name).await?;
    Ok(was_signed.then(|| {
        format!(
            "dispatch signs the requests to {name}, and this replay has no secret: give it --webhook-secret-file, or \
             --unsigned to send requests without a signature"
        )
    }))
}

/// Sorts by time, and no two are the same.
fn new_id() -> String {
    let now = jiff::Timestamp::from_millisecond(now_ms()).unwrap_or_default();
    format!("{}-{:06x}", now.strftime("%Y%m%d-%H%M%S"), Uuid::now_v7().as_u128() & 0xff_ffff)
}

async fn execute(
    context: &ReplayContext,
    config: &Config,
    planned: PreparedReplay,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let PreparedReplay { id: resumed, source, what, selection, mut legs, plan } = planned;
    let id = resumed.clone().unwrap_or_else(new_id);
    let (name, dead) = (&context.spec.name, selection.dead);
    let digest = context.spec.digest();
    // Before anything is written: a destination that cannot be opened leaves nothing behind.
    let destination = run::open_destination(context, dead).await?;
    let group = context.groups.join_alone(&replay_group(name, &id), &source, &digest).await?;
    let taken = match dead {
        true => {
            let (marks, redriven) = join_dead(context, &source, &digest).await?;
            for PartitionPlan { stretch: OffsetRange { partition, from, until, .. }, state } in &mut legs {
                // Another replay may have sent some of them since the plan was made, or since this one stopped.
                if let Some(redriven) = redriven.get(partition).filter(|_| !selection.again) {
                    *state = state.union(&redriven.within(*from..*until));
                }
            }
            Some(Arc::new(marks))
        }
        false => None,
    };
    let audit = AuditLog::open(&*context.engine, &*context.log).await?;
    let left = plan.events;
    for PartitionPlan { stretch: OffsetRange { partition, .. }, state } in &mut legs {
        if resumed.is_some() {
            // It may have gone on between the plan and the moment when its place was taken. What has finished is forgotten,
            // and that somebody looked leaves nothing behind.
            let Some(committed) = group.committed(*partition).await? else {
                group.leave().await;
                forget(context, &id, &source).await;
                return Err(ReplayRefused::usage(format!("replay {id} has finished meanwhile: --list shows how")));
            };
            *state = state.union(&committed);
        }
        commit(&*group, *partition, state).await?;
    }
    let beginning = match resumed {
        Some(_) => AuditEvent::ReplayResumed { left },
        None => {
            let (to, selection) = (context.spec.to_string(), selection.clone());
            AuditEvent::ReplayStarted(Box::new(ReplayStart { to, what, selection, plan, moves: false }))
        }
    };
    audit.write(&id, name, beginning).await?;
    tracing::info!(replay = id, destination = %name, events = left, "replaying; --resume {id} goes on where it stops");
    let ready = ReplayRun {
        id: id.clone(),
        source: Arc::clone(&source),
        selection,
        legs,
        group,
        taken,
        destination,
        events: left,
        rate: config.rate,
        stop_after_failures: config.stop_after_failures,
    };
    let end = run::run(context, ready, stop).await;
    let ended = AuditEvent::ReplayEnded { outcome: end.outcome, counts: end.counts, why: end.why.clone() };
    audit.write(&id, name, ended).await?;
    if end.outcome == ReplayOutcome::Finished {
        forget(context, &id, &source).await;
    }
    show::conclude(context, config, &id, left, end)
}

/// Lets go of the progress of a replay that has finished.
async fn forget(context: &ReplayContext, id: &str, source: &Arc<dyn Log>) {
    if let Err(failure) = context.groups.forget(&replay_group(&context.spec.name, id), source).await {
        tracing::warn!(replay = id, "its progress is kept though nobody needs it any more: {failure}");
    }
}

/// Marks letters as redriven, under a group of its own: two who redrive the same ones at once are one too many.
async fn join_dead(
    context: &ReplayContext,
    source: &Arc<dyn Log>,
    digest: &str,
) -> anyhow::Result<(RedriveMarker, BTreeMap<u32, PartitionState>)> {
    let group = context.groups.join_alone(&dead_letter_group(&context.spec.name), source, digest).await?;
    let mut redriven = BTreeMap::new();
    for partition in 0..source.partitions().await? {
        let state = match group.committed(partition).await? {
            Some(state) => state,
            None => PartitionState::at(source.earliest(partition).await?),
        };
        redriven.insert(partition, state);
    }
    Ok((RedriveMarker::new(group, &redriven), redriven))
}

async fn commit(group: &dyn Group, partition: u32, state: &PartitionState) -> anyhow::Result<()> {
    let mut failures = 0;
    while let Err(failure) = group.commit(partition, state.clone()).await {
        failures += 1;
        if is_final(&failure) || failures > limits::REPLAY_READ_TRIES_MAX {
            return Err(failure).context("the beginning of the replay cannot be written down: nothing was delivered");
        }
        tokio::time::sleep(limits::REPLAY_READ_AGAIN_AFTER).await;
    }
    Ok(())
}
