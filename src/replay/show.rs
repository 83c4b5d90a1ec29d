//! Prints the plan, the question before execution, the summary and the list of replays.

use super::audit::{AuditLog, Operator, ReplayEnd, ReplayHistory, ReplayOutcome};
use super::plan::{DeliveryCounts, DeliveryTerms, Plan, PlanKind, PlannedPartition};
use super::position::Reposition;
use super::run::RunResult;
use super::{Config, PreparedReplay, RepeatedFlags, ReplayContext, ReplayRequest};
use crate::clock::show_ms;
use crate::core::outcome::Ended;
use crate::core::text::{escaped, escaped_json, shell_flag};
use crate::core::token_bucket::Rate;
use crate::core::tries::OnExhausted;
use crate::destination::spec::{Spec, Target};
use crate::log::Engine;
use anyhow::anyhow;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Prints every replay of the topic, or only those of one destination, in the order in which they started.
pub async fn list(engine: &dyn Engine, topic: &str, destination: Option<&str>, json: bool) -> anyhow::Result<()> {
    let histories = match AuditLog::open_existing(engine, topic).await? {
        Some(audit) => audit.histories().await?,
        None => BTreeMap::new(),
    };
    let is_wanted = |history: &ReplayHistory| destination.is_none_or(|name| history.destination == name);
    let mut listed: Vec<_> = histories.iter().filter(|(_, history)| is_wanted(history)).collect();
    listed.sort_by_key(|(_, history)| history.started_ms);
    let mut out = io::stdout().lock();
    for (id, history) in listed {
        if json {
            out.write_all(json_line(&ListedReplay::new(id, history))?.as_bytes())?;
        } else {
            write!(out, "{}", ListedReplay::new(id, history))?;
        }
    }
    if histories.is_empty() && !json {
        writeln!(out, "nothing of topic {topic:?} was replayed yet")?;
    }
    Ok(())
}

/// One replay in the list.
#[derive(Debug, Serialize)]
struct ListedReplay<'s> {
    id: &'s str,
    destination: &'s str,
    started_ms: i64,
    #[serde(rename = "by")]
    operator: &'s Operator,
    to: &'s str,
    #[serde(rename = "what")]
    title: &'s str,
    events: u64,
    counts: DeliveryCounts,
    settled_by_killed_runs: u64,
    redriven_meanwhile: u64,
    /// `running-or-cut-off`, or how it ended.
    state: &'static str,
    ended_ms: Option<i64>,
    why: &'s str,
    /// The plan of a rewind or fast-forward. `None` for a replay that delivers.
    #[serde(skip)]
    moved: Option<&'s Plan>,
}

impl<'s> ListedReplay<'s> {
    fn new(id: &'s str, history: &'s ReplayHistory) -> Self {
        let (state, ended_ms, why) = match &history.ended {
            // The audit log cannot tell which.
            None => ("running-or-cut-off", None, ""),
            Some(ReplayEnd { at_ms, outcome, why }) => {
                let state = match outcome {
                    ReplayOutcome::Finished => "finished",
                    ReplayOutcome::Stopped => "stopped",
                    ReplayOutcome::Failed => "failed",
                };
                (state, Some(*at_ms), why.as_str())
            }
        };
        Self {
            id,
            destination: &history.destination,
            started_ms: history.started_ms,
            operator: &history.operator,
            to: &history.started.to,
            title: &history.started.title,
            events: history.started.plan.events,
            counts: history.counts,
            settled_by_killed_runs: history.settled_by_killed,
            redriven_meanwhile: history.redriven_meanwhile,
            state,
            ended_ms,
            why,
            moved: history.started.moves.then_some(&history.started.plan),
        }
    }
}

impl fmt::Display for ListedReplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, destination, to, title, events, counts, operator, why, .. } = self;
        let state = if self.ended_ms.is_some() { self.state } else { "running, or killed" };
        let (user, host, why) = (escaped(&operator.user), escaped(&operator.host), escaped(why));
        writeln!(f, "{}  {}  {state}", escaped(id), escaped(destination))?;
        writeln!(f, "    {} by {user}@{host}: {}", show_ms(self.started_ms), escaped(title))?;
        match self.moved {
            None => {
                writeln!(f, "    to {}", escaped(to))?;
                let DeliveryCounts { delivered, given_up, dropped, .. } = *counts;
                let (by_killed, by_others) = (self.settled_by_killed_runs, self.redriven_meanwhile);
                if self.ended_ms.is_some() {
                    write!(f, "    {delivered} of {events} delivered, {given_up} given up")?;
                    let others = [
                        (dropped, "dropped"),
                        (by_killed, "settled by runs that were killed"),
                        (by_others, "redriven meanwhile"),
                    ];
                    for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
                        write!(f, ", {count} {what}")?;
                    }
                    writeln!(f)?;
                } else {
                    let settled = counts.settled() + by_killed + by_others;
                    if settled > 0 {
                        writeln!(f, "    {settled} of {events} settled before its last run")?;
                    }
                    let id = escaped(id);
                    writeln!(
                        f,
                        "    {events} events in all; `--resume {id}` without --execute shows how many are left"
                    )?;
                }
            }
            Some(plan) => {
                let range =
                    |part: &PlannedPartition| format!("p{} from {} until {}", part.partition, part.from, part.until);
                let ranges: Vec<String> = plan.partitions.iter().map(range).collect();
                writeln!(f, "    moves the position over {} ({})", plan.describe_events(), ranges.join("; "))?;
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
    #[serde(rename = "what")]
    title: &'p str,
    resumes: Option<&'p str>,
    rate_per_sec: Option<f64>,
    estimate_secs: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(flatten)]
    plan: &'p Plan,
}

/// Prints the plan.
pub(super) fn show_plan(context: &ReplayContext, config: &Config, prepared: &PreparedReplay) -> anyhow::Result<()> {
    let PreparedReplay { id, source, title, selection, plan, .. } = prepared;
    let terms = DeliveryTerms {
        rate: config.rate,
        dead_letter_topic: selection.dead.then(|| source.topic()),
        is_resumed: id.is_some(),
        ignored_policy: config.ignored_policy,
        drops: context.dispatch.tries.on_exhausted == OnExhausted::Drop,
    };
    let kind = match &config.request {
        ReplayRequest::Reposition(Reposition::Rewind(_)) => PlanKind::Rewind,
        ReplayRequest::Reposition(Reposition::FastForward(_)) => PlanKind::FastForward,
        ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => PlanKind::Deliver(terms),
    };
    let (destination, to) = (&context.spec.name, context.spec.to_string());
    let text = if config.json {
        let plan = PlanJson {
            topic: context.log.topic(),
            destination,
            to,
            title,
            resumes: id.as_deref(),
            rate_per_sec: config.rate.map(Rate::per_sec),
            estimate_secs: config.rate.map(|rate| rate.time_of(plan.events).as_secs_f64()),
            notes: if let PlanKind::Deliver(terms) = kind { terms.notes() } else { Vec::new() },
            plan,
        };
        json_line(&plan)?
    } else {
        format!("{}\n", plan.text(title, destination, &to, kind))
    };
    print(context, config.execute, &text)
}

/// One line of JSON that is safe to show on a terminal.
fn json_line(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(escaped_json(&serde_json::to_string(value)?).into_owned() + "\n")
}

/// Prints on standard output, unless the events themselves are delivered there.
fn print(context: &ReplayContext, delivers: bool, text: &str) -> anyhow::Result<()> {
    match delivers && matches!(context.spec.target, Target::Stdout) {
        true => context.streams.err(text)?,
        false => context.streams.out(text)?,
    }
    Ok(())
}

/// Prints a message for the operator. With `--json` it prints nothing: programs read the plan and the summary.
pub(super) fn note(context: &ReplayContext, config: &Config, text: &str) {
    if !config.json {
        // If the terminal is gone, the replay continues without the message.
        context.streams.err(&format!("{}\n", escaped(text))).unwrap_or_default();
    }
}

/// Whether to execute the plan: `--execute` was given, or the operator answers yes.
pub(super) async fn confirm(
    context: &ReplayContext,
    config: &Config,
    prepared: &PreparedReplay,
) -> anyhow::Result<bool> {
    if config.execute {
        return Ok(true);
    }
    if config.json || !io::stdin().is_terminal() || !context.streams.has_terminal() {
        return Ok(false);
    }
    let (name, what) = (&context.spec.name, prepared.plan.describe_events());
    let question = match config.request {
        ReplayRequest::Reposition(Reposition::Rewind(_)) => {
            format!("move the position of {name} back, so that dispatch delivers {what} again?")
        }
        ReplayRequest::Reposition(Reposition::FastForward(_)) => {
            format!("move the position of {name} ahead, so that {what} will NEVER be delivered?")
        }
        ReplayRequest::New { .. } | ReplayRequest::Resume { .. } => {
            format!("deliver {what} to {name} ({}) now?", escaped(&context.spec.public_target()))
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
    redriven_meanwhile: u64,
    left: u64,
    why: &'s str,
}

/// What a run had to deliver.
pub(super) struct Planned {
    pub(super) events: u64,
    /// Dead letters that were part of the replay, and that were redriven before this run. Usually another replay has redriven
    /// them.
    pub(super) redriven_meanwhile: u64,
    pub(super) earlier: EarlierRuns,
}

/// What earlier runs of a replay came to. A new replay has none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EarlierRuns {
    counts: DeliveryCounts,
    settled_by_killed: u64,
}

impl EarlierRuns {
    pub(super) fn of(history: &ReplayHistory) -> Self {
        Self { counts: history.counts, settled_by_killed: history.settled_by_killed }
    }

    /// The sum with the last run, if it is certain that no run delivered an event and that events have failed. What a killed
    /// run settled may have been delivered.
    fn without_delivery(self, last: DeliveryCounts) -> Option<DeliveryCounts> {
        let sum = self.counts.and(last);
        (sum.delivered == 0 && self.settled_by_killed == 0 && sum.not_delivered() > 0).then_some(sum)
    }
}

/// Prints the summary, and answers with what the process ends with.
pub(super) fn conclude(
    context: &ReplayContext,
    config: &Config,
    id: &str,
    planned: Planned,
    result: RunResult,
) -> anyhow::Result<Ended> {
    let RunResult { outcome, counts, why, error } = result;
    let Planned { events, redriven_meanwhile, earlier } = planned;
    let left = if outcome == ReplayOutcome::Finished { 0 } else { events.saturating_sub(counts.settled()) };
    if config.json {
        let summary = SummaryJson { id, outcome, counts, redriven_meanwhile, left, why: &why };
        print(context, true, &json_line(&summary)?)?;
    } else {
        print(context, true, &format!("replay {id}: {}\n", summarize(counts, redriven_meanwhile, left)))?;
    }
    match (outcome, error) {
        (ReplayOutcome::Finished, _) => match earlier.without_delivery(counts) {
            Some(sum) => Err(anyhow!("replay {id} delivered no event: {}", nothing_delivered(sum))),
            None => Ok(Ended::Drained),
        },
        (ReplayOutcome::Failed, Some(error)) => {
            Err(error.context(format!("replay {id} failed. Continue it with --resume {id}")))
        }
        (ReplayOutcome::Failed, None) => Err(anyhow!("replay {id} failed: {why}")),
        (ReplayOutcome::Stopped, _) => {
            tracing::warn!("{why}. {}", how_to_resume(context, config, id));
            Ok(Ended::WorkLeft)
        }
    }
}

/// The command that continues a replay, with the flags of this command line. It shows no secret.
fn how_to_resume(context: &ReplayContext, config: &Config, id: &str) -> String {
    let Spec { name, .. } = &context.spec;
    let destination = format!("{name}={}", context.spec);
    let RepeatedFlags { log, others, needs_secrets } = &config.repeated;
    format!(
        "To deliver the events that are left, run: eventd replay {log} {} --resume {id} --execute{others}{}",
        shell_flag("--dest", &destination),
        if *needs_secrets { " (with the same secrets)" } else { "" }
    )
}

/// Says how to resume the replay if its work is dropped before the summary. A second signal does that.
pub(super) struct ResumeAdvice<'r> {
    context: &'r ReplayContext,
    config: &'r Config,
    id: &'r str,
    is_needed: bool,
}

impl<'r> ResumeAdvice<'r> {
    pub(super) fn new(context: &'r ReplayContext, config: &'r Config, id: &'r str) -> Self {
        Self { context, config, id, is_needed: true }
    }

    /// Says nothing any more, because a summary follows.
    pub(super) fn disarm(mut self) {
        self.is_needed = false;
    }
}

impl Drop for ResumeAdvice<'_> {
    fn drop(&mut self) {
        if self.is_needed {
            let Self { context, config, id, .. } = self;
            tracing::warn!("replay {id} was cut short. {}", how_to_resume(context, config, id));
        }
    }
}

/// What became of the events of a replay that delivered none, and what to do.
fn nothing_delivered(counts: DeliveryCounts) -> String {
    let DeliveryCounts { given_up, dropped, .. } = counts;
    let cause = "Correct the cause (see the answers in the lines above)";
    match (given_up, dropped) {
        (given_up, 0) => format!("all {given_up} were given up again. {cause}, then replay the dead letters"),
        (0, dropped) => format!(
            "all {dropped} were dropped (--on-exhausted drop). {cause}, then replay the same events without that flag; if \
             they are dead letters, with --again"
        ),
        (given_up, dropped) => format!(
            "{given_up} were given up again, and {dropped} dropped (--on-exhausted drop). {cause}, then replay the dead \
             letters. Replay the events that were dropped by their --id, which the lines above show"
        ),
    }
}

fn summarize(counts: DeliveryCounts, redriven_meanwhile: u64, left: u64) -> String {
    let DeliveryCounts { delivered, given_up, dropped, failed } = counts;
    let mut parts = vec![format!("{delivered} delivered")];
    parts.extend((given_up > 0).then(|| format!("{given_up} given up and kept as dead letters")));
    parts.extend((dropped > 0).then(|| format!("{dropped} dropped")));
    parts.extend((redriven_meanwhile > 0).then(|| format!("{redriven_meanwhile} redriven meanwhile")));
    parts.extend((left > 0).then(|| format!("{left} left")));
    parts.extend((failed > 0).then(|| format!("{failed} attempts failed")));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(delivered: u64, given_up: u64, dropped: u64) -> DeliveryCounts {
        DeliveryCounts { delivered, given_up, dropped, failed: 9 }
    }

    #[test]
    fn a_replay_has_delivered_nothing_only_if_no_run_of_it_has() {
        let runs = |counts, settled_by_killed| EarlierRuns { counts, settled_by_killed };
        let none = DeliveryCounts::default();
        for (earlier, last, without_delivery) in [
            (runs(none, 0), counts(0, 5, 0), true),
            (runs(none, 0), counts(0, 0, 5), true),
            (runs(counts(0, 3, 0), 0), none, true),
            (runs(none, 0), counts(1, 5, 5), false),
            (runs(none, 0), none, false),
            (runs(counts(1, 0, 0), 0), counts(0, 5, 0), false),
            (runs(none, 1), counts(0, 5, 0), false),
        ] {
            assert_eq!(earlier.without_delivery(last).is_some(), without_delivery, "{earlier:?} and {last:?}");
        }
    }

    #[test]
    fn a_replay_without_a_delivery_says_what_became_of_its_events() {
        for (counts, says) in [
            (counts(0, 7, 0), "all 7 were given up again. "),
            (counts(0, 0, 7), "all 7 were dropped (--on-exhausted drop). "),
            (counts(0, 2, 5), "2 were given up again, and 5 dropped"),
        ] {
            let text = nothing_delivered(counts);
            assert!(text.starts_with(says) && text.contains("Correct the cause"), "{text}");
        }
    }
}
