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
//! The rooms: `range` (words to offsets), `select` (which events), `plan` (count them), `view` (what dispatch sees),
//! `run` (let it run, watch it, stop it), `audit` (who did what).

pub mod audit;
pub mod plan;
pub mod range;
mod run;
pub mod select;
mod view;

use self::audit::{Audit, Outcome, Started, Story, What};
use self::plan::{Leg, Plan, Progressed, Unseen};
use self::range::{Outside, Range, Stretch, show_ms};
use self::run::{End, Ready};
use self::select::Selection;
use self::view::Taken;
use crate::BoxFuture;
use crate::clock::now_ms;
use crate::core::outcome::Failure;
use crate::core::pace::Rate;
use crate::core::progress::State;
use crate::destination::spec::Spec;
use crate::dispatch::{Ended, OnGap, dead_letter};
use crate::group::{Group, JoinError, is_final};
use crate::log::{Engine, Log, OpenError};
use crate::{destination, dispatch, limits};
use anyhow::{Context, anyhow, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use uuid::Uuid;

/// Groups by their names, whichever engine they are in.
pub trait Groups: Send + Sync + fmt::Debug {
    /// What the group last committed in each partition of the log, without joining it.
    fn committed<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
    ) -> BoxFuture<'a, Result<Vec<Option<State>>, JoinError>>;

    /// Takes its place; one that is held is an error.
    fn join<'a>(
        &'a self,
        name: &'a str,
        log: &'a Arc<dyn Log>,
        digest: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Group>, JoinError>>;

    /// Lets go of everything that is kept of a group whose work is done, as far as the engine can.
    fn forget<'a>(&'a self, name: &'a str, log: &'a Arc<dyn Log>) -> BoxFuture<'a, Result<(), Failure>>;
}

/// What a replay works with.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub engine: Arc<dyn Engine>,
    /// The topic.
    pub log: Arc<dyn Log>,
    pub groups: Arc<dyn Groups>,
    pub spec: Spec,
    pub settings: destination::Settings,
    pub dispatch: dispatch::Config,
}

/// The checked configuration of one replay.
#[derive(Debug, Clone)]
pub struct Config {
    pub what: Wanted,
    /// Deliver. Else the plan is all, unless a person at a terminal says yes.
    pub execute: bool,
    /// Plan and summary as JSON, a line each.
    pub json: bool,
    pub rate: Option<Rate>,
    /// Failures in a row after which it stops; 0: never.
    pub stop_after_failures: u64,
}

/// What is replayed.
#[derive(Debug, Clone)]
pub enum Wanted {
    New {
        range: Range,
        selection: Selection,
        limit: Option<u64>,
        /// Users were typed one by one, so each has to be there; those of a file need not.
        every_user: bool,
    },
    /// What is left of the replay with this id.
    Rest { id: String },
}

/// A person asked for what cannot be: a name, an id or a place that is not there.
#[derive(Debug)]
pub struct Refused {
    why: String,
    /// The flags are at fault, and not what the log holds at the moment.
    pub is_usage: bool,
}

impl Refused {
    fn usage(why: impl Into<String>) -> anyhow::Error {
        Self { why: why.into(), is_usage: true }.into()
    }

    fn outside(why: impl Into<String>) -> anyhow::Error {
        Self { why: why.into(), is_usage: false }.into()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refused {}

/// A plan with everything that executing it needs.
struct Planned {
    /// Absent: a new one.
    id: Option<String>,
    /// Where the events are.
    source: Arc<dyn Log>,
    /// As a person reads it.
    what: String,
    selection: Selection,
    legs: Vec<Leg>,
    plan: Plan,
}

/// Plans, shows the plan, and where that was asked for delivers, until `stop` is ready.
pub async fn run(around: Surroundings, config: Config, stop: impl Future<Output = ()> + Send) -> anyhow::Result<Ended> {
    let mut stop = std::pin::pin!(stop);
    let planned = tokio::select! {
        planned = plan_it(&around, &config.what) => planned?,
        () = &mut stop => return Ok(Ended::Drained),
    };
    show(&around, &config, &planned)?;
    if planned.plan.events == 0 && planned.id.is_none() {
        note(&config, "there is nothing to replay");
        return Ok(Ended::Drained);
    }
    let agreed = tokio::select! {
        agreed = agree(&around, &config, &planned) => agreed?,
        () = &mut stop => false,
    };
    if !agreed {
        note(&config, "nothing was delivered: --execute does it");
        return Ok(Ended::Drained);
    }
    execute(&around, &config, planned, stop).await
}

/// What was replayed so far, by id, of every destination or of one.
pub async fn list(engine: &dyn Engine, topic: &str, destination: Option<&str>, json: bool) -> anyhow::Result<()> {
    let stories = match Audit::open_existing(engine, topic).await? {
        Some(audit) => audit.stories().await?,
        None => BTreeMap::new(),
    };
    let mut out = std::io::stdout().lock();
    for (id, story) in stories.iter().filter(|(_, story)| destination.is_none_or(|name| story.destination == name)) {
        if json {
            writeln!(out, "{}", serde_json::to_string(&Listed::of(id, story))?)?;
        } else {
            write!(out, "{}", Listed::of(id, story))?;
        }
    }
    if stories.is_empty() && !json {
        writeln!(out, "nothing of {topic:?} was replayed yet")?;
    }
    Ok(())
}

/// One replay in a list.
#[derive(Debug, Serialize)]
struct Listed<'s> {
    id: &'s str,
    destination: &'s str,
    started_ms: i64,
    by: &'s audit::By,
    to: &'s str,
    what: &'s str,
    events: u64,
    counts: Progressed,
    /// `running-or-cut-off`, or how it ended.
    state: &'static str,
    ended_ms: Option<i64>,
    why: &'s str,
}

impl<'s> Listed<'s> {
    fn of(id: &'s str, story: &'s Story) -> Self {
        let (state, ended_ms, why) = match &story.ended {
            None => ("running-or-cut-off", None, ""),
            Some((at, outcome, why)) => {
                let state = match outcome {
                    Outcome::Finished => "finished",
                    Outcome::Stopped => "stopped",
                    Outcome::Failed => "failed",
                };
                (state, Some(*at), why.as_str())
            }
        };
        Self {
            id,
            destination: &story.destination,
            started_ms: story.started_ms,
            by: &story.by,
            to: &story.started.to,
            what: &story.started.what,
            events: story.started.plan.events,
            counts: story.counts,
            state,
            ended_ms,
            why,
        }
    }
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, destination, what, events, counts, state, by, why, .. } = self;
        writeln!(f, "{id}  {destination}  {state}")?;
        writeln!(f, "    {} by {}@{}: {what}", show_ms(self.started_ms), by.user, by.host)?;
        writeln!(f, "    {} of {events} delivered, {} given up", counts.delivered, counts.given_up)?;
        if !why.is_empty() {
            writeln!(f, "    {why}")?;
        }
        Ok(())
    }
}

async fn plan_it(around: &Surroundings, wanted: &Wanted) -> anyhow::Result<Planned> {
    match wanted {
        Wanted::New { range, selection, limit, every_user } => {
            plan_new(around, range, selection, *limit, *every_user).await
        }
        Wanted::Rest { id } => plan_rest(around, id).await,
    }
}

async fn plan_new(
    around: &Surroundings,
    range: &Range,
    selection: &Selection,
    limit: Option<u64>,
    every_user: bool,
) -> anyhow::Result<Planned> {
    let name = &around.spec.name;
    let known = around.groups.committed(name, &around.log).await?;
    ensure_known(around, &known)?;
    let source = source(around, selection.dead).await?;
    let stretches = match range::resolve(&*source, range, now_ms()).await? {
        Ok(stretches) => stretches,
        Err(Outside(why)) => return Err(Refused::outside(why)),
    };
    let redriven = match selection.dead && !selection.again {
        true => around.groups.committed(&dead_group(name), &source).await?,
        false => Vec::new(),
    };
    let leg = |stretch: Stretch| {
        let of = |states: &[Option<State>]| states.get(stretch.partition as usize).cloned().flatten();
        let all = stretch.from..stretch.until;
        let state = match (selection.dead, of(&redriven)) {
            // Letters: all but those that were redriven.
            (true, None) => State::at(stretch.from),
            (true, Some(redriven)) => redriven.within(all),
            // Events: those that are settled, which is none where there is no commit.
            (false, _) => of(&known).unwrap_or_else(|| State::at(stretch.from)).inverted(all),
        };
        Leg { stretch, state }
    };
    let mut legs: Vec<Leg> = stretches.into_iter().map(leg).collect();
    let (mut plan, unseen) = count(around, &*source, &mut legs, selection, limit).await?;
    if selection.dead {
        // Not on their way: redriven already.
        plan.redriven = std::mem::take(&mut plan.on_their_way);
    }
    check_seen(unseen, every_user, limit.is_some())?;
    let what = describe(around, range, selection, limit);
    Ok(Planned { id: None, source, what, selection: selection.clone(), legs, plan })
}

/// What is left of a replay, by its own commits.
async fn plan_rest(around: &Surroundings, id: &str) -> anyhow::Result<Planned> {
    let story = find(around, id).await?;
    let Started { selection, plan, what, .. } = story.started;
    let source = source(around, selection.dead).await?;
    let group = replay_group(&around.spec.name, id);
    let states = around.groups.committed(&group, &source).await?;
    let mut legs = Vec::new();
    for part in &plan.partitions {
        let stretch = Stretch { partition: part.partition, from: part.from, until: part.until, removed: 0 };
        let state = states.get(part.partition as usize).cloned().flatten();
        let state =
            state.with_context(|| format!("the progress of {group:?} in partition {} is gone", part.partition))?;
        // What is settled need not be read again.
        let from = state.watermark.clamp(stretch.from, stretch.until);
        legs.push(Leg { stretch: Stretch { from, ..stretch }, state });
    }
    let (mut plan, _) = count(around, &*source, &mut legs, &selection, None).await?;
    // Settled by this replay, or never to be taken.
    plan.on_their_way = 0;
    Ok(Planned { id: Some(id.to_owned()), source, what: format!("{what}, the rest of {id}"), selection, legs, plan })
}

async fn count(
    around: &Surroundings,
    source: &dyn Log,
    legs: &mut [Leg],
    selection: &Selection,
    limit: Option<u64>,
) -> anyhow::Result<(Plan, Unseen)> {
    let skip_damaged = around.dispatch.on_gap == OnGap::Skip;
    plan::count(source, around.log.topic(), legs, selection, limit, skip_damaged).await
}

async fn find(around: &Surroundings, id: &str) -> anyhow::Result<Story> {
    let unknown = || Refused::usage(format!("there is no replay {id:?}: --list shows those that there are"));
    let audit = Audit::open_existing(&*around.engine, around.log.topic()).await?.ok_or_else(unknown)?;
    let story = audit.stories().await?.remove(id).ok_or_else(unknown)?;
    if story.destination != around.spec.name {
        let (theirs, ours) = (&story.destination, &around.spec.name);
        return Err(Refused::usage(format!("replay {id} is of destination {theirs:?}, and --dest is {ours:?}")));
    }
    if let Some((at_ms, Outcome::Finished, _)) = &story.ended {
        return Err(Refused::usage(format!("replay {id} has finished already, at {}", show_ms(*at_ms))));
    }
    Ok(story)
}

/// A name that nobody ever delivered under is a mistyped one.
fn ensure_known(around: &Surroundings, states: &[Option<State>]) -> anyhow::Result<()> {
    if states.iter().any(Option::is_some) {
        return Ok(());
    }
    Err(Refused::usage(format!(
        "nothing of {:?} was ever delivered under the name {:?}: write --dest NAME=DEST with the name that dispatch has",
        around.log.topic(),
        around.spec.name
    )))
}

/// Where the events are.
async fn source(around: &Surroundings, dead: bool) -> anyhow::Result<Arc<dyn Log>> {
    if !dead {
        return Ok(Arc::clone(&around.log));
    }
    let topic = dead_letter::topic_of(around.log.topic(), &around.spec.name);
    match around.engine.open(&topic, None).await {
        Ok(log) => {
            dead_letter::ensure_own(&*log, around.log.topic(), &around.spec.name).await?;
            Ok(log)
        }
        Err(OpenError::Missing { .. }) => {
            Err(Refused::outside(format!("{:?} has no dead letters: nothing was ever given up", around.spec.name)))
        }
        Err(error) => Err(error.into()),
    }
}

fn check_seen(unseen: Unseen, every_user: bool, limited: bool) -> anyhow::Result<()> {
    // A plan that was cut short says nothing of what is behind the cut.
    if limited {
        return Ok(());
    }
    let first = |names: &std::collections::BTreeSet<String>| {
        let shown: Vec<&str> = names.iter().take(10).map(String::as_str).collect();
        let more = names.len() - shown.len();
        shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    };
    if !unseen.ids.is_empty() {
        return Err(Refused::outside(format!("no event in the range has the id {}", first(&unseen.ids))));
    }
    if !unseen.users.is_empty() {
        let why = format!("the range has no event of the user {}", first(&unseen.users));
        ensure!(!every_user, Refused { why, is_usage: false });
        tracing::warn!("{why}");
    }
    Ok(())
}

/// What is replayed, in the words of the flags.
fn describe(around: &Surroundings, range: &Range, selection: &Selection, limit: Option<u64>) -> String {
    let mut words = vec![match selection.dead {
        true => format!("the dead letters of {}", around.spec.name),
        false => format!("{} for {}", around.log.topic(), around.spec.name),
    }];
    let named = |names: &std::collections::BTreeSet<String>, one: &str| match names.len() {
        0 => None,
        1 => names.first().map(|name| format!("{one} {name}")),
        n => Some(format!("{n} {one}s")),
    };
    let from = if selection.dead { "since" } else { "from" };
    words.extend(range.from.as_ref().map(|place| format!("{from} {place}")));
    words.extend(range.until.as_ref().map(|until| format!("until {until}")));
    words.extend(named(&selection.users, "user"));
    words.extend(named(&selection.ids, "id"));
    words.extend(selection.reasons.iter().cloned());
    words.extend(limit.map(|limit| format!("at most {limit}")));
    words.extend(selection.again.then(|| "also what was replayed before".to_owned()));
    words.join(", ")
}

fn replay_group(destination: &str, id: &str) -> String {
    format!("{destination}.replay.{id}")
}

fn dead_group(destination: &str) -> String {
    format!("{destination}.dead")
}

/// Sorts by time, and no two are the same.
fn new_id() -> String {
    let now = jiff::Timestamp::from_millisecond(now_ms()).unwrap_or_default();
    format!("{}-{:06x}", now.strftime("%Y%m%d-%H%M%S"), Uuid::now_v7().as_u128() & 0xff_ffff)
}

/// The plan as programs read it.
#[derive(Debug, Serialize)]
struct Shown<'p> {
    topic: &'p str,
    destination: &'p str,
    to: String,
    what: &'p str,
    resumes: Option<&'p str>,
    rate_per_sec: Option<f64>,
    estimate_secs: Option<f64>,
    #[serde(flatten)]
    plan: &'p Plan,
}

fn show(around: &Surroundings, config: &Config, planned: &Planned) -> anyhow::Result<()> {
    let Planned { id, what, plan, .. } = planned;
    let (destination, to) = (&around.spec.name, around.spec.to_string());
    let text = if config.json {
        let shown = Shown {
            topic: around.log.topic(),
            destination,
            to,
            what,
            resumes: id.as_deref(),
            rate_per_sec: config.rate.map(Rate::per_sec),
            estimate_secs: config.rate.map(|rate| rate.time_of(plan.events).as_secs_f64()),
            plan,
        };
        serde_json::to_string(&shown)? + "\n"
    } else {
        format!("{}\n", plan.text(what, &to, config.rate))
    };
    say(config.execute && matches!(around.spec.target, destination::spec::Target::Stdout), &text)
}

/// Where the events go to standard output, everything else goes to the other one.
fn say(on_stderr: bool, text: &str) -> anyhow::Result<()> {
    match on_stderr {
        true => std::io::stderr().write_all(text.as_bytes())?,
        false => std::io::stdout().write_all(text.as_bytes())?,
    }
    Ok(())
}

/// For people; programs read the plan.
fn note(config: &Config, text: &str) {
    if !config.json {
        // Nobody may be looking any more.
        writeln!(std::io::stderr(), "{text}").unwrap_or_default();
    }
}

/// Whether to deliver: by the flag, or by a person who was asked.
async fn agree(around: &Surroundings, config: &Config, planned: &Planned) -> anyhow::Result<bool> {
    if config.execute {
        return Ok(true);
    }
    if config.json || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(false);
    }
    let events = planned.plan.events;
    write!(std::io::stderr(), "deliver these {events} events to {} now? [y/N] ", around.spec.name)?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    Ok(matches!(answer.await??.trim(), "y" | "Y" | "yes"))
}

async fn execute(
    around: &Surroundings,
    config: &Config,
    planned: Planned,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let Planned { id: resumed, source, what, selection, legs, plan } = planned;
    let id = resumed.clone().unwrap_or_else(new_id);
    let (name, dead) = (&around.spec.name, selection.dead);
    let own = replay_group(name, &id);
    let digest = around.spec.digest();
    // Before anything is written: a destination that cannot be opened leaves nothing behind.
    let destination = run::open_destination(around, dead).await?;
    let group = around.groups.join(&own, &source, &digest).await?;
    let taken = match dead {
        true => Some(Arc::new(join_dead(around, &source, &digest).await?)),
        false => None,
    };
    let audit = Audit::open(&*around.engine, &*around.log).await?;
    let left = plan.events;
    let beginning = match resumed {
        Some(_) => What::ReplayResumed { left },
        None => {
            for leg in &legs {
                commit(&*group, leg.stretch.partition, &leg.state).await?;
            }
            let (to, selection) = (around.spec.to_string(), selection.clone());
            What::ReplayStarted(Box::new(Started { to, what, selection, plan }))
        }
    };
    audit.write(&id, name, beginning).await?;
    tracing::info!(replay = id, destination = %name, events = left, "replaying; --resume {id} goes on where it stops");
    let ready = Ready {
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
    let end = run::run(around, ready, stop).await;
    let ended = What::ReplayEnded { outcome: end.outcome, counts: end.counts, why: end.why.clone() };
    audit.write(&id, name, ended).await?;
    if end.outcome == Outcome::Finished
        && let Err(failure) = around.groups.forget(&own, &source).await
    {
        tracing::warn!(replay = id, "its progress is kept though nobody needs it any more: {failure}");
    }
    conclude(around, config, &id, left, end)
}

/// Marks letters as redriven, under a group of its own: two who redrive the same ones at once are one too many.
async fn join_dead(around: &Surroundings, source: &Arc<dyn Log>, digest: &str) -> anyhow::Result<Taken> {
    let group = around.groups.join(&dead_group(&around.spec.name), source, digest).await?;
    let mut redriven = BTreeMap::new();
    for partition in 0..source.partitions().await? {
        let state = match group.committed(partition).await? {
            Some(state) => state,
            None => State::at(source.earliest(partition).await?),
        };
        redriven.insert(partition, state);
    }
    Ok(Taken::new(group, &redriven))
}

async fn commit(group: &dyn Group, partition: u32, state: &State) -> anyhow::Result<()> {
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

/// The summary as programs read it.
#[derive(Debug, Serialize)]
struct Summary<'s> {
    id: &'s str,
    outcome: Outcome,
    #[serde(flatten)]
    counts: Progressed,
    left: u64,
    why: &'s str,
}

fn conclude(around: &Surroundings, config: &Config, id: &str, events: u64, end: End) -> anyhow::Result<Ended> {
    let End { outcome, counts, why, error } = end;
    let left = if outcome == Outcome::Finished { 0 } else { events.saturating_sub(counts.settled()) };
    let Progressed { delivered, given_up, failed } = counts;
    let to_stderr = matches!(around.spec.target, destination::spec::Target::Stdout);
    if config.json {
        let summary = Summary { id, outcome, counts, left, why: &why };
        say(to_stderr, &(serde_json::to_string(&summary)? + "\n"))?;
    } else {
        let attempts = if failed > 0 { format!("; {failed} attempts failed") } else { String::new() };
        let kept = if given_up > 0 { format!(", {given_up} given up and kept as dead letters") } else { String::new() };
        let rest = if left > 0 { format!(", {left} left") } else { String::new() };
        say(to_stderr, &format!("replay {id}: {delivered} delivered{kept}{rest}{attempts}\n"))?;
    }
    match (outcome, error) {
        (Outcome::Finished, _) => Ok(Ended::Drained),
        (Outcome::Failed, Some(error)) => Err(error.context(format!("replay {id} failed, --resume {id} goes on"))),
        (Outcome::Failed, None) => Err(anyhow!("replay {id} failed: {why}")),
        (Outcome::Stopped, _) => {
            tracing::warn!("{why}: eventd replay --dest … --resume {id} --execute delivers what is left");
            Ok(Ended::WorkLeft)
        }
    }
}
