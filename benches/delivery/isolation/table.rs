//! The table of the cases of isolation, with the figures to reach.

use super::case::Case;
use super::consumer::{self, Consumer};
use super::outcome::{Outcome, Waiting};
use crate::options::Options;
use crate::report::thousands;
use std::fmt::Write as _;

/// The window of eventd, in events, if `--window` is not given. The commit must not be further behind than the window and
/// what one commit interval adds.
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

/// How soon after a start a healthy user must be served, and how long a broker keeps the session of a killed member.
const RESTART_S_MAX: f64 = 2.0;
const SESSION_S: f64 = 10.0;

/// The most memory with a stuck backlog.
const BACKLOG_MB_MAX: f64 = 200.0;

/// Attempts at the same time, which is the default of `--concurrency`, and the longest time between two commits.
const CONCURRENCY: u32 = 256;
const COMMIT_INTERVAL_S: u32 = 1;

/// The runs of one case with one consumer.
#[derive(Debug)]
pub(crate) struct Row {
    pub(super) case: Case,
    /// The consumer and the engine.
    pub(super) series: String,
    is_peer: bool,
    is_on_kafka: bool,
    window: u32,
    /// Events that may be settled or appended between two commits.
    settled_max: u32,
    pub(super) runs: Vec<Outcome>,
}

impl Row {
    pub(super) fn new(case: Case, consumer: Consumer, engine: &str, options: &Options) -> Self {
        let is_peer = matches!(consumer, Consumer::Peer(_));
        let series = if is_peer { consumer.to_string() } else { format!("{consumer} on {engine}") };
        let settled_max = COMMIT_INTERVAL_S * options.rate;
        let window = consumer::window(options).unwrap_or(WINDOW);
        Self { case, series, is_peer, is_on_kafka: engine == "kafka", window, settled_max, runs: Vec::new() }
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

const COLUMNS: [&str; 12] = [
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "commit lag",
    "memory MB",
    "growth MB",
    "parked",
    "read again",
    "missing",
    "duplicates",
    "out of order",
    "note",
];

/// The table in Markdown.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = format!(
        "| case | consumer | {} | to reach |\n|---|---|{}---|---|\n",
        COLUMNS.join(" | "),
        "---:|".repeat(COLUMNS.len() - 1)
    );
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
    let restart = outcome.restart_s.map(|seconds| {
        if seconds.is_finite() {
            format!("first delivery {seconds:.1} s after the restart")
        } else {
            "none after the restart".into()
        }
    });
    vec![
        waiting(|waiting| waiting.p50_ms),
        waiting(|waiting| waiting.p99_ms),
        waiting(|waiting| waiting.p999_ms),
        thousands(outcome.commit_lag_max as f64),
        format!("{:.0}", outcome.peak_mb),
        format!("{:+.0}", outcome.growth_mb),
        thousands(outcome.parked_users_max as f64),
        thousands(outcome.read_again as f64),
        thousands(outcome.faults.missing as f64),
        thousands(outcome.faults.duplicates as f64),
        thousands(outcome.faults.out_of_order as f64),
        [stopped, caught_up, restart].into_iter().flatten().collect::<Vec<_>>().join(", "),
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
        let most = u64::from(row.window + row.settled_max);
        figure(format!("commit lag ≤ {}", thousands(most as f64)), outcome.commit_lag_max <= most);
        figure(format!("growth ≤ {GROWTH_MB_MAX} MB"), outcome.growth_mb <= GROWTH_MB_MAX);
    }
    if let Some(seconds) = outcome.restart_s {
        let most = match row.case {
            // A broker gives the partitions of a killed member to another one after the session's time.
            Case::Killed if row.is_on_kafka => SESSION_S + RESTART_S_MAX,
            _ => RESTART_S_MAX,
        };
        figure(format!("first delivery ≤ {most} s after the restart"), seconds <= most);
    }
    match row.case {
        Case::Killed => {
            let most = u64::from(CONCURRENCY + row.settled_max);
            figure(format!("duplicates ≤ {}", thousands(most as f64)), outcome.faults.duplicates <= most);
        }
        Case::Backlog(_) => figure(format!("memory < {BACKLOG_MB_MAX} MB"), outcome.peak_mb < BACKLOG_MB_MAX),
        _ => {}
    }
    if row.case == Case::Away {
        figure("no user parked".into(), outcome.parked_users_max == 0);
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
