//! The table of the cases of isolation, with the figures to reach.

use super::case::Case;
use super::consumer::{self, Consumer};
use super::outcome::{Outcome, Waiting};
use crate::options::Options;
use crate::report::thousands;
use std::fmt::Write as _;

/// The window of eventd, in events, if `--window` is not given. The commit must never be further behind.
const WINDOW: u32 = 100_000;

/// Memory that may be added during a case. What grows with the backlog grows by more.
const GROWTH_MB_MAX: f64 = 5.0;

/// How much later than without trouble the events may arrive.
const P99_RATIO_MAX: f64 = 1.2;
const P99_MORE_MS_MAX: f64 = 2.0;

const P50_MS_MAX: f64 = 2.0;
const P99_MS_MAX: f64 = 6.0;

/// How soon after the sink's return everything must have arrived.
const CAUGHT_UP_S_MAX: f64 = 20.0;

/// The runs of one case with one consumer.
#[derive(Debug)]
pub(crate) struct Row {
    pub(super) case: Case,
    /// The consumer and the engine.
    pub(super) series: String,
    is_peer: bool,
    window: u32,
    pub(super) runs: Vec<Outcome>,
}

impl Row {
    pub(super) fn new(case: Case, consumer: Consumer, engine: &str, options: &Options) -> Self {
        let is_peer = matches!(consumer, Consumer::Peer(_));
        let series = if is_peer { consumer.to_string() } else { format!("{consumer} on {engine}") };
        Self { case, series, is_peer, window: consumer::window(options).unwrap_or(WINDOW), runs: Vec::new() }
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        Outcome::median(&self.runs)
    }

    /// The last run in one line.
    pub(super) fn line(&self) -> String {
        let Some(run) = self.runs.last() else { return "no result".into() };
        cells(run)
            .into_iter()
            .zip(COLUMNS)
            .map(|(cell, column)| format!("{column} {cell}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

const COLUMNS: [&str; 10] = [
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "commit lag",
    "memory MB",
    "growth MB",
    "missing",
    "duplicates",
    "out of order",
    "note",
];

/// The table in Markdown.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text =
        format!("| case | consumer | {} | to reach |\n|---|---|{}---|---|\n", COLUMNS.join(" | "), "---:|".repeat(9));
    for row in rows {
        let (cells, figures) = match row.outcome() {
            None => (vec!["failed".into()], String::new()),
            Some(outcome) => (cells(&outcome), figures(row, &outcome, rows)),
        };
        let _ = writeln!(text, "| {} | {} | {} | {figures} |", row.case, row.series, cells.join(" | "));
    }
    text
}

fn cells(outcome: &Outcome) -> Vec<String> {
    let waiting = |pick: fn(&Waiting) -> f64| {
        outcome.waiting.as_ref().map_or(String::new(), |waiting| milliseconds(pick(waiting)))
    };
    let stopped = outcome.stopped_after_s.map(|seconds| format!("stopped after {seconds:.0} s"));
    let caught_up = outcome.caught_up_s.map(|seconds| {
        if seconds.is_finite() {
            format!("all delivered {seconds:.1} s after its return")
        } else {
            "not all delivered".into()
        }
    });
    vec![
        waiting(|waiting| waiting.p50_ms),
        waiting(|waiting| waiting.p99_ms),
        waiting(|waiting| waiting.p999_ms),
        thousands(outcome.commit_lag_max as f64),
        format!("{:.0}", outcome.peak_mb),
        format!("{:+.0}", outcome.growth_mb),
        thousands(outcome.faults.missing as f64),
        thousands(outcome.faults.duplicates as f64),
        thousands(outcome.faults.out_of_order as f64),
        [stopped, caught_up].into_iter().flatten().collect::<Vec<_>>().join(", "),
    ]
}

fn milliseconds(value: f64) -> String {
    if value.is_infinite() { "never".into() } else { format!("{value:.1}") }
}

/// The figures to reach in words, each with its verdict.
fn figures(row: &Row, outcome: &Outcome, rows: &[Row]) -> String {
    if row.is_peer {
        return String::new();
    }
    let mut parts = Vec::new();
    let mut figure = |text: String, reached: bool| {
        parts.push(if reached { format!("{text} ✓") } else { format!("{text} **missed**") });
    };
    if let Some(waiting) = outcome.waiting {
        if row.case == Case::Failing(0) {
            figure(format!("p50 < {P50_MS_MAX} ms"), waiting.p50_ms < P50_MS_MAX);
            figure(format!("p99 < {P99_MS_MAX} ms"), waiting.p99_ms < P99_MS_MAX);
        } else if let Some(undisturbed) = undisturbed(row, rows) {
            let most = (undisturbed.p99_ms * P99_RATIO_MAX).max(undisturbed.p99_ms + P99_MORE_MS_MAX);
            figure(format!("p99 ≤ {most:.1} ms"), waiting.p99_ms <= most);
        }
        figure(format!("commit lag ≤ {}", thousands(row.window.into())), outcome.commit_lag_max <= row.window.into());
        figure(format!("growth ≤ {GROWTH_MB_MAX} MB"), outcome.growth_mb <= GROWTH_MB_MAX);
    }
    if let Some(seconds) = outcome.caught_up_s {
        figure(format!("all delivered ≤ {CAUGHT_UP_S_MAX} s after its return"), seconds <= CAUGHT_UP_S_MAX);
    }
    figure("none missing".into(), outcome.faults.missing == 0);
    figure("in order".into(), outcome.faults.out_of_order == 0);
    parts.join(", ")
}

/// The waiting time of this consumer without trouble, in the runs of this table.
fn undisturbed(row: &Row, rows: &[Row]) -> Option<Waiting> {
    rows.iter().find(|other| other.case == Case::Failing(0) && other.series == row.series)?.outcome()?.waiting
}
