//! What people and programs are shown: the plan, the question, the summary, the list.

use super::audit::{self, AuditLog, ReplayHistory, ReplayOutcome};
use super::plan::{DeliveryCounts, Pace, Plan, PlannedPartition};
use super::position::show_ms;
use super::run::RunResult;
use super::{Config, PreparedReplay, ReplayContext, ReplayRequest};
use crate::core::outcome::Ended;
use crate::core::text::{escaped, escaped_json};
use crate::core::token_bucket::Rate;
use crate::destination::spec::{Spec, Target};
use crate::log::Engine;
use crate::stderr;
use anyhow::anyhow;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Where a replay tells what it does.
pub trait Streams: Send + Sync + fmt::Debug {
    /// For programs, and for people who asked for it: the plan, the summary.
    fn out(&self, text: &str) -> io::Result<()>;

    /// For people alone.
    fn err(&self, text: &str) -> io::Result<()>;

    /// Whether a person looks at what goes to `err`.
    fn has_terminal(&self) -> bool;
}

/// The streams of the process.
#[derive(Debug, Clone, Copy)]
pub struct StandardStreams;

impl Streams for StandardStreams {
    fn out(&self, text: &str) -> io::Result<()> {
        // At a terminal, what was written to the other stream before has to appear above it.
        stderr::flush(stderr::FLUSH_MAX);
        io::stdout().write_all(text.as_bytes())
    }

    fn err(&self, text: &str) -> io::Result<()> {
        stderr::write(text.as_bytes());
        Ok(())
    }

    fn has_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }
}

/// What was replayed so far, of every destination or of one, in the order in which it began.
pub async fn list(engine: &dyn Engine, topic: &str, destination: Option<&str>, json: bool) -> anyhow::Result<()> {
    let histories = match AuditLog::open_existing(engine, topic).await? {
        Some(audit) => audit.histories().await?,
        None => BTreeMap::new(),
    };
    let wanted = |history: &ReplayHistory| destination.is_none_or(|name| history.destination == name);
    let mut listed: Vec<_> = histories.iter().filter(|(_, history)| wanted(history)).collect();
    listed.sort_by_key(|(_, history)| history.started_ms);
    let mut out = io::stdout().lock();
    for (id, history) in listed {
        if json {
            out.write_all(json_line(&ListedReplay::of(id, history))?.as_bytes())?;
        } else {
            write!(out, "{}", ListedReplay::of(id, history))?;
        }
    }
    if histories.is_empty() && !json {
        writeln!(out, "nothing of {topic:?} was replayed yet")?;
    }
    Ok(())
}

/// One replay in a list.
#[derive(Debug, Serialize)]
struct ListedReplay<'s> {
    id: &'s str,
    destination: &'s str,
    started_ms: i64,
    by: &'s audit::Operator,
    to: &'s str,
    what: &'s str,
    events: u64,
    counts: DeliveryCounts,
    /// `running-or-cut-off`, or how it ended.
    state: &'static str,
    ended_ms: Option<i64>,
    why: &'s str,
    /// The plan of a rewind or fast-forward, which moves the position. `None`: the replay delivers.
    #[serde(skip)]
    moves: Option<&'s Plan>,
}

impl<'s> ListedReplay<'s> {
    fn of(id: &'s str, history: &'s ReplayHistory) -> Self {
        let (state, ended_ms, why) = match &history.ended {
            None => ("running-or-cut-off", None, ""),
            Some((at, outcome, why)) => {
                let state = match outcome {
                    ReplayOutcome::Finished => "finished",
                    ReplayOutcome::Stopped => "stopped",
                    ReplayOutcome::Failed => "failed",
                };
                (state, Some(*at), why.as_str())
            }
        };
        Self {
            id,
            destination: &history.destination,
            started_ms: history.started_ms,
            by: &history.by,
            to: &history.started.to,
            what: &history.started.what,
            events: history.started.plan.events,
            counts: history.counts,
            state,
            ended_ms,
            why,
            moves: history.started.moves.then_some(&history.started.plan),
        }
    }
}

impl fmt::Display for ListedReplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, destination, what, events, counts, state, by, why, .. } = self;
        let (by_user, by_host, why) = (escaped(&by.user), escaped(&by.host), escaped(why));
        writeln!(f, "{}  {}  {state}", escaped(id), escaped(destination))?;
        writeln!(f, "    {} by {by_user}@{by_host}: {}", show_ms(self.started_ms), escaped(what))?;
        match self.moves {
            None => writeln!(f, "    {} of {events} delivered, {} given up", counts.delivered, counts.given_up)?,
            Some(Plan { partitions, unreadable, .. }) => {
                let besides = match unreadable {
                    0 => String::new(),
                    unreadable => format!(" and {unreadable} offsets that cannot be read"),
                };
                let part = |PlannedPartition { partition, from, until, .. }: &PlannedPartition| {
                    format!("p{partition} from {from} until {until}")
                };
                let parts: Vec<String> = partitions.iter().map(part).collect();
                writeln!(f, "    moves the position over {events} events{besides} ({})", parts.join("; "))?;
            }
        }
        if !why.is_empty() {
            writeln!(f, "    {why}")?;
        }
        Ok(())
    }
}

/// The plan as programs read it.
#[derive(Debug, Serialize)]
struct PlanJson<'p> {
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

pub(super) fn show(context: &ReplayContext, config: &Config, planned: &PreparedReplay) -> anyhow::Result<()> {
    let PreparedReplay { id, what, plan, .. } = planned;
    let (destination, to) = (&context.spec.name, context.spec.to_string());
    let text = if config.json {
        let shown = PlanJson {
            topic: context.log.topic(),
            destination,
            to,
            what,
            resumes: id.as_deref(),
            rate_per_sec: config.rate.map(Rate::per_sec),
            estimate_secs: config.rate.map(|rate| rate.time_of(plan.events).as_secs_f64()),
            plan,
        };
        json_line(&shown)?
    } else {
        let pace = match (&config.what, config.rate) {
            (ReplayRequest::Reposition(_), _) => Pace::Moved,
            (ReplayRequest::New { .. } | ReplayRequest::Resume { .. }, None) => Pace::Unlimited,
            (ReplayRequest::New { .. } | ReplayRequest::Resume { .. }, Some(rate)) => Pace::Limited(rate),
        };
        format!("{}\n", plan.text(what, &to, pace))
    };
    say(context, config.execute, &text)
}

/// One line of JSON that a terminal may show.
fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(escaped_json(&serde_json::to_string(value)?).into_owned() + "\n")
}

/// Where the events go to standard output, everything else goes to the other one.
fn say(context: &ReplayContext, delivers: bool, text: &str) -> anyhow::Result<()> {
    match delivers && matches!(context.spec.target, Target::Stdout) {
        true => context.streams.err(text)?,
        false => context.streams.out(text)?,
    }
    Ok(())
}

/// For people; programs read the plan.
pub(super) fn note(context: &ReplayContext, config: &Config, text: &str) {
    if !config.json {
        // Nobody may be looking any more.
        context.streams.err(&format!("{}\n", escaped(text))).unwrap_or_default();
    }
}

/// Whether to deliver: by the flag, or by a person who was asked.
pub(super) async fn agree(context: &ReplayContext, config: &Config, planned: &PreparedReplay) -> anyhow::Result<bool> {
    if config.execute {
        return Ok(true);
    }
    if config.json || !io::stdin().is_terminal() || !context.streams.has_terminal() {
        return Ok(false);
    }
    let events = planned.plan.events;
    let name = &context.spec.name;
    let question = match config.what {
        ReplayRequest::Reposition(_) => format!("move the position of {name} over these {events} events?"),
        ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => {
            format!("deliver these {events} events to {name} now?")
        }
    };
    context.streams.err(&format!("{question} [y/N] "))?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    Ok(matches!(answer.await??.trim(), "y" | "Y" | "yes"))
}

/// The summary as programs read it.
#[derive(Debug, Serialize)]
struct SummaryJson<'s> {
    id: &'s str,
    outcome: ReplayOutcome,
    #[serde(flatten)]
    counts: DeliveryCounts,
    left: u64,
    why: &'s str,
}

pub(super) fn conclude(
    context: &ReplayContext,
    config: &Config,
    id: &str,
    events: u64,
    end: RunResult,
) -> anyhow::Result<Ended> {
    let RunResult { outcome, counts, why, error } = end;
    let left = if outcome == ReplayOutcome::Finished { 0 } else { events.saturating_sub(counts.settled()) };
    let DeliveryCounts { delivered, given_up, failed } = counts;
    if config.json {
        let summary = SummaryJson { id, outcome, counts, left, why: &why };
        say(context, true, &json_line(&summary)?)?;
    } else {
        let attempts = if failed > 0 { format!("; {failed} attempts failed") } else { String::new() };
        let kept = if given_up > 0 { format!(", {given_up} given up and kept as dead letters") } else { String::new() };
        let rest = if left > 0 { format!(", {left} left") } else { String::new() };
        say(context, true, &format!("replay {id}: {delivered} delivered{kept}{rest}{attempts}\n"))?;
    }
    match (outcome, error) {
        (ReplayOutcome::Finished, _) => Ok(Ended::Drained),
        (ReplayOutcome::Failed, Some(error)) => {
            Err(error.context(format!("replay {id} failed, --resume {id} goes on")))
        }
        (ReplayOutcome::Failed, None) => Err(anyhow!("replay {id} failed: {why}")),
        (ReplayOutcome::Stopped, _) => {
            let Spec { name, .. } = &context.spec;
            tracing::warn!(
                "{why}: eventd replay --dest {name}={} --resume {id} --execute (with the same --url, --topic and secrets) \
                 delivers what is left",
                context.spec
            );
            Ok(Ended::WorkLeft)
        }
    }
}
