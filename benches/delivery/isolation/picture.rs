//! The pictures of the results, as SVG.

use super::outcome::Outcome;
use super::table::Row;
use std::fmt::Write as _;

const COLOURS: [&str; 4] = ["#1b6ca8", "#58a55c", "#d98324", "#b03a2e"];

/// Places in a picture, in pixels.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 50.0;

/// The logarithmic axis of the waiting times, in milliseconds.
const LEAST_MS: f64 = 0.5;
const MOST_MS: f64 = 100_000.0;

/// One diagram with a logarithmic vertical axis.
struct Diagram {
    text: String,
    top: f64,
    bottom: f64,
}

impl Diagram {
    fn new(height: f64, title: &str, series: &[String]) -> Self {
        let mut text = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">"#
        );
        text.push('\n');
        let _ = writeln!(text, r##"<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>"##);
        let _ = writeln!(text, r#"<text x="{LEFT}" y="20" font-size="15">{title}</text>"#);
        let mut x = LEFT;
        for (name, colour) in series.iter().zip(COLOURS) {
            let _ = writeln!(text, r#"<rect x="{x}" y="31" width="12" height="12" fill="{colour}"/>"#);
            let _ = writeln!(text, r#"<text x="{}" y="42">{name}</text>"#, x + 18.0);
            x += 40.0 + name.len() as f64 * 7.5;
        }
        Self { text, top: TOP, bottom: TOP }
    }

    /// Begins a panel with its axis.
    fn panel(&mut self, top: f64, height: f64) {
        (self.top, self.bottom) = (top, top + height);
        let mut value = 1.0;
        while value <= MOST_MS {
            let (y, label) =
                (self.y(value), if value < 1000.0 { format!("{value} ms") } else { format!("{} s", value / 1000.0) });
            let right = WIDTH - RIGHT;
            let _ =
                writeln!(self.text, r##"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="#dddddd"/>"##);
            let _ =
                writeln!(self.text, r#"<text x="{}" y="{:.1}" text-anchor="end">{label}</text>"#, LEFT - 6.0, y + 4.0);
            value *= 10.0;
        }
    }

    fn y(&self, value_ms: f64) -> f64 {
        let share = (value_ms.clamp(LEAST_MS, MOST_MS) / LEAST_MS).ln() / (MOST_MS / LEAST_MS).ln();
        self.bottom - share * (self.bottom - self.top)
    }

    fn end(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// The consumers in the order of the table.
fn series(rows: &[Row]) -> Vec<String> {
    let mut series: Vec<String> = Vec::new();
    for row in rows {
        if !series.contains(&row.series) {
            series.push(row.series.clone());
        }
    }
    series
}

/// The cases in the order of the table, each with its rows.
fn cases(rows: &[Row]) -> Vec<(String, Vec<&Row>)> {
    let mut cases: Vec<(String, Vec<&Row>)> = Vec::new();
    for row in rows {
        let name = row.case.to_string();
        match cases.iter_mut().find(|(case, _)| *case == name) {
            Some((_, of_case)) => of_case.push(row),
            None => cases.push((name, vec![row])),
        }
    }
    cases
}

/// A bar for the p99 of each case and consumer. If healthy users' events stopped, the bar says when.
pub(super) fn bars(rows: &[Row]) -> String {
    let (series, cases) = (series(rows), cases(rows));
    let mut diagram = Diagram::new(400.0, "p99 of healthy users; for an incident, the time after its end", &series);
    diagram.panel(TOP, 400.0 - TOP - BOTTOM);
    let group = (WIDTH - LEFT - RIGHT) / cases.len().max(1) as f64;
    let bar = group * 0.8 / series.len().max(1) as f64;
    for (index, (case, of_case)) in cases.iter().enumerate() {
        let left = LEFT + group * (index as f64 + 0.1);
        let _ = writeln!(
            diagram.text,
            r#"<text x="{:.1}" y="{}" text-anchor="middle" font-size="11">{}</text>"#,
            left + group * 0.4,
            diagram.bottom + 20.0,
            case.replace("-percent-", " % ")
        );
        for row in of_case {
            let Some(outcome) = row.outcome() else { continue };
            let at = series.iter().position(|name| *name == row.series).unwrap_or(0);
            let (value_ms, label) = bar_of(&outcome);
            let (x, y, colour) = (left + bar * at as f64, diagram.y(value_ms), COLOURS[at % COLOURS.len()]);
            let height = diagram.bottom - y;
            let _ = writeln!(
                diagram.text,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}" fill="{colour}"/>"#,
                bar * 0.9
            );
            let (middle, low) = (x + bar * 0.45, diagram.bottom - 6.0);
            // A long label is written along its bar.
            if label.len() > 6 {
                let _ = writeln!(
                    diagram.text,
                    r#"<text transform="translate({:.1} {low:.1}) rotate(-90)" font-size="11" fill="white">{label}</text>"#,
                    middle + 4.0
                );
            } else {
                let _ = writeln!(
                    diagram.text,
                    r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle" font-size="11">{label}</text>"#,
                    y - 4.0
                );
            }
        }
    }
    diagram.end()
}

/// The height of a bar in milliseconds, and what is written at it.
fn bar_of(outcome: &Outcome) -> (f64, String) {
    let stopped = outcome.stopped_after_s.map(|seconds| format!("stopped after {seconds:.0} s"));
    match (outcome.waiting, outcome.caught_up_s.or(outcome.restart_s)) {
        (Some(waiting), _) if waiting.p99_ms.is_infinite() => (MOST_MS, stopped.unwrap_or("never".into())),
        (Some(waiting), _) => (waiting.p99_ms, stopped.unwrap_or(format!("{:.1}", waiting.p99_ms))),
        (None, Some(seconds)) if seconds.is_finite() => (seconds * 1e3, format!("{seconds:.1} s after it")),
        _ => (MOST_MS, "not all delivered".into()),
    }
}

/// A panel for each case: the p99 of the events of each second, over the time. A line ends where events never arrived.
pub(super) fn lines(rows: &[Row]) -> String {
    const PANEL: f64 = 150.0;
    const BETWEEN: f64 = 55.0;
    let (series, cases) = (series(rows), cases(rows));
    let height = TOP + cases.len() as f64 * (PANEL + BETWEEN);
    let mut diagram =
        Diagram::new(height, "p99 of healthy users in each second; a cross: events never arrived", &series);
    for (index, (case, of_case)) in cases.iter().enumerate() {
        diagram.panel(TOP + 15.0 + index as f64 * (PANEL + BETWEEN), PANEL);
        let runs: Vec<_> = of_case.iter().filter_map(|row| Some((*row, row.runs.first()?))).collect();
        let seconds = runs.iter().map(|(_, run)| run.p99_each_second_ms.len()).max().unwrap_or(0).max(1);
        let x = |second: usize| LEFT + (WIDTH - LEFT - RIGHT) * second as f64 / seconds as f64;
        let _ = writeln!(diagram.text, r#"<text x="{LEFT}" y="{:.1}">{case}, {seconds} s</text>"#, diagram.top - 5.0);
        for (row, run) in runs {
            let at = series.iter().position(|name| *name == row.series).unwrap_or(0);
            let colour = COLOURS[at % COLOURS.len()];
            let (mut points, mut never) = (String::new(), None);
            for (second, p99_ms) in run.p99_each_second_ms.iter().enumerate() {
                if p99_ms.is_infinite() {
                    never = never.or(Some(second));
                } else {
                    let _ = write!(points, "{:.1},{:.1} ", x(second), diagram.y(*p99_ms));
                }
            }
            let _ = writeln!(
                diagram.text,
                r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#
            );
            if let Some(second) = never {
                let _ = writeln!(
                    diagram.text,
                    r#"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{colour}" font-size="16">×</text>"#,
                    x(second),
                    diagram.top + 14.0
                );
            }
        }
    }
    diagram.end()
}
