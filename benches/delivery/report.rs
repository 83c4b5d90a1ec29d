//! The measured values, and the table with one group of columns for each engine and one row for each case.

use crate::figures::Target;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The value at this share of sorted numbers, or 0 if there are none.
pub(crate) fn percentile(sorted: &[u32], share: f64) -> u32 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// What one round of a case measured. `None` if the case has no such number.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    pub(crate) events: Option<f64>,
    pub(crate) events_s: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) cpu_s: Option<f64>,
    /// The most memory at once. For `idle`, the memory that is resident at the end.
    pub(crate) memory_mb: Option<f64>,
    /// The used share of one core over the measured time.
    pub(crate) core_share: Option<f64>,
    /// The ratio to the limit of the same run.
    pub(crate) ratio: Option<f64>,
}

impl Measured {
    /// The median of each number by itself.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let of = |pick: fn(&Self) -> Option<f64>| {
            let mut values: Vec<f64> = rounds.iter().filter_map(pick).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Self {
            events: of(|m| m.events),
            events_s: of(|m| m.events_s),
            p50_ms: of(|m| m.p50_ms),
            p99_ms: of(|m| m.p99_ms),
            cpu_s: of(|m| m.cpu_s),
            memory_mb: of(|m| m.memory_mb),
            core_share: of(|m| m.core_share),
            ratio: of(|m| m.ratio),
        }
    }

    /// The processor time of one event.
    pub(crate) fn cpu_us_an_event(&self) -> Option<f64> {
        Some(self.cpu_s? * 1e6 / self.events?)
    }
}

/// One case: its name, the limit of its ratio, and what each engine gave.
#[derive(Debug)]
struct Row {
    case: String,
    limit: String,
    /// The figures of the case, by the name of the engine. `Err` says why there is none.
    measured: BTreeMap<&'static str, Result<Measured, String>>,
}

/// The table of a run.
#[derive(Debug, Default)]
pub(crate) struct Table {
    engines: Vec<&'static str>,
    rows: Vec<Row>,
}

impl Table {
    /// Adds what one engine gave for one case. Cases keep the order in which they were first added.
    pub(crate) fn add(&mut self, engine: &'static str, case: &str, limit: &str, measured: Result<Measured, String>) {
        if !self.engines.contains(&engine) {
            self.engines.push(engine);
        }
        let index = self.rows.iter().position(|row| row.case == case).unwrap_or_else(|| {
            let row = Row { case: case.to_owned(), limit: limit.to_owned(), measured: BTreeMap::new() };
            self.rows.push(row);
            self.rows.len() - 1
        });
        self.rows[index].measured.insert(engine, measured);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What an engine gave for a case, if it has a figure.
    pub(crate) fn measured(&self, engine: &str, case: &str) -> Option<Measured> {
        let row = self.rows.iter().find(|row| row.case == case)?;
        row.measured.get(engine)?.as_ref().ok().copied()
    }

    /// The table in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let (mut head, mut rule) = (String::from("| case |"), String::from("|---|"));
        for engine in &self.engines {
            for column in ["events", "events/s", "p50 ms", "p99 ms", "CPU s", "CPU µs/event", "memory MB", "ratio"] {
                let _ = write!(head, " {engine}: {column} |");
                rule.push_str("---:|");
            }
            let _ = write!(head, " {engine}: to reach |");
            rule.push_str("---|");
        }
        head.push_str(" ratio to |\n");
        rule.push_str("---|\n");
        let mut text = head + &rule;
        for row in &self.rows {
            let _ = write!(text, "| {} |", row.case);
            for engine in &self.engines {
                match row.measured.get(engine) {
                    None => text.push_str(" | | | | | | | | |"),
                    Some(Err(why)) => {
                        let _ = write!(text, " | failed: {} | | | | | | | |", why.replace(['|', '\n'], " "));
                    }
                    Some(Ok(measured)) => text.push_str(&cells(measured, &Target::of(engine, &row.case))),
                }
            }
            let _ = writeln!(text, " {} |", row.limit);
        }
        text
    }
}

fn cells(measured: &Measured, target: &Target) -> String {
    let number = |value: Option<f64>, digits: usize| value.map(|v| format!("{v:.digits$}")).unwrap_or_default();
    let whole = |value: Option<f64>| value.map(thousands).unwrap_or_default();
    let cpu = match measured.core_share {
        Some(share) => format!("{} ({:.2} % of a core)", number(measured.cpu_s, 2), share * 100.0),
        None => number(measured.cpu_s, 2),
    };
    let columns = [
        whole(measured.events),
        whole(measured.events_s),
        number(measured.p50_ms, 2),
        number(measured.p99_ms, 2),
        cpu,
        number(measured.cpu_us_an_event(), 2),
        number(measured.memory_mb, 0),
        number(measured.ratio, 2),
        target.cell(measured),
    ];
    columns.iter().fold(String::new(), |text, column| text + " " + column + " |")
}

/// Formats 1234567.8 as `1,234,568`.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
