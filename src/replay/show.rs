//! What people and programs are shown: the plan, the question, the summary, the list.

use super::audit::{self, Audit, Outcome, Story};
use super::place::show_ms;
use super::plan::{Pace, Part, Plan, Progressed};
use super::run::End;
use super::{Config, Planned, Surroundings, Wanted};
use crate::core::outcome::Ended;
use crate::core::pace::Rate;
use crate::core::text::{escaped, escaped_json};
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
pub struct Process;

impl Streams for Process {
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
    let stories = match Audit::open_existing(engine, topic).await? {
        Some(audit) => audit.stories().await?,
        None => BTreeMap::new(),
    };
    let wanted = |story: &Story| destination.is_none_or(|name| story.destination == name);
    let mut listed: Vec<_> = stories.iter().filter(|(_, story)| wanted(story)).collect();
    listed.sort_by_key(|(_, story)| story.started_ms);
    let mut out = io::stdout().lock();
    for (id, story) in listed {
        if json {
            out.write_all(json_line(&Listed::of(id, story))?.as_bytes())?;
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
    /// The plan of a rewind or fast-forward, which moves the position. `None`: the replay delivers.
    #[serde(skip)]
    moves: Option<&'s Plan>,
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
            moves: story.started.moves.then_some(&story.started.plan),
        }
    }
}

impl fmt::Display for Listed<'_> {
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
                let part =
                    |Part { partition, from, until, .. }: &Part| format!("p{partition} from {from} until {until}");
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

pub(super) fn show(around: &Surroundings, config: &Config, planned: &Planned) -> anyhow::Result<()> {
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
        json_line(&shown)?
    } else {
        let pace = match (&config.what, config.rate) {
            (Wanted::OffsetReset(_), _) => Pace::Moved,
            (Wanted::New { .. } | Wanted::Rest { .. }, None) => Pace::Unlimited,
            (Wanted::New { .. } | Wanted::Rest { .. }, Some(rate)) => Pace::Limited(rate),
        };
        format!("{}\n", plan.text(what, &to, pace))
    };
    say(around, config.execute, &text)
}

/// One line of JSON that a terminal may show.
fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(escaped_json(&serde_json::to_string(value)?).into_owned() + "\n")
}

/// Where the events go to standard output, everything else goes to the other one.
fn say(around: &Surroundings, delivers: bool, text: &str) -> anyhow::Result<()> {
    match delivers && matches!(around.spec.target, Target::Stdout) {
        true => around.streams.err(text)?,
        false => around.streams.out(text)?,
    }
    Ok(())
}

/// For people; programs read the plan.
pub(super) fn note(around: &Surroundings, config: &Config, text: &str) {
    if !config.json {
        // Nobody may be looking any more.
        around.streams.err(&format!("{}\n", escaped(text))).unwrap_or_default();
    }
}

/// Whether to deliver: by the flag, or by a person who was asked.
pub(super) async fn agree(around: &Surroundings, config: &Config, planned: &Planned) -> anyhow::Result<bool> {
    if config.execute {
        return Ok(true);
    }
    if config.json || !io::stdin().is_terminal() || !around.streams.has_terminal() {
        return Ok(false);
    }
    let events = planned.plan.events;
    let name = &around.spec.name;
    let question = match config.what {
        Wanted::OffsetReset(_) => format!("move the position of {name} over these {events} events?"),
        Wanted::New { .. } | Wanted::Rest { .. } => format!("deliver these {events} events to {name} now?"),
    };
    around.streams.err(&format!("{question} [y/N] "))?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    Ok(matches!(answer.await??.trim(), "y" | "Y" | "yes"))
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

pub(super) fn conclude(
    around: &Surroundings,
    config: &Config,
    id: &str,
    events: u64,
    end: End,
) -> anyhow::Result<Ended> {
    let End { outcome, counts, why, error } = end;
    let left = if outcome == Outcome::Finished { 0 } else { events.saturating_sub(counts.settled()) };
    let Progressed { delivered, given_up, failed } = counts;
    if config.json {
        let summary = Summary { id, outcome, counts, left, why: &why };
        say(around, true, &json_line(&summary)?)?;
    } else {
        let attempts = if failed > 0 { format!("; {failed} attempts failed") } else { String::new() };
        let kept = if given_up > 0 { format!(", {given_up} given up and kept as dead letters") } else { String::new() };
        let rest = if left > 0 { format!(", {left} left") } else { String::new() };
        say(around, true, &format!("replay {id}: {delivered} delivered{kept}{rest}{attempts}\n"))?;
    }
    match (outcome, error) {
        (Outcome::Finished, _) => Ok(Ended::Drained),
        (Outcome::Failed, Some(error)) => Err(error.context(format!("replay {id} failed, --resume {id} goes on"))),
        (Outcome::Failed, None) => Err(anyhow!("replay {id} failed: {why}")),
        (Outcome::Stopped, _) => {
            let Spec { name, .. } = &around.spec;
            tracing::warn!(
                "{why}: eventd replay --dest {name}={} --resume {id} --execute (with the same --url, --topic and secrets) \
                 delivers what is left",
                around.spec
            );
            Ok(Ended::WorkLeft)
        }
    }
}
