//! The figures that each case should reach on each engine, and how the table shows whether they were reached.

use crate::report::{Measured, thousands};

/// The figures that a case should reach.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Target {
    events_s_min: Option<f64>,
    ratio_min: Option<f64>,
    ratio_max: Option<f64>,
    p50_ms_max: Option<f64>,
    p99_ms_max: Option<f64>,
    memory_mb_max: Option<f64>,
    core_share_max: Option<f64>,
    seconds_max: Option<f64>,
}

impl Target {
    /// The figures for this case on this engine.
    pub(crate) fn of(engine: &str, case: &str) -> Self {
        match (engine, case) {
            (_, "idle") => Self { core_share_max: Some(0.01), memory_mb_max: Some(30.0), ..Self::default() },
            (_, "cpu/1m-users") => Self { ratio_max: Some(2.0), ..Self::default() },
            (_, "replay/null" | "replay/file") => Self { ratio_min: Some(0.8), ..Self::default() },
            (_, "replay/5000-a-second") => Self { ratio_min: Some(0.98), ratio_max: Some(1.02), ..Self::default() },
            (_, "replay/plan-1000000") => Self { seconds_max: Some(3.0), ..Self::default() },
            (_, "latency/beside-replay") => Self { ratio_min: Some(0.98), p99_ms_max: Some(15.0), ..Self::default() },
            ("sqlite", case) => Self::on_sqlite(case),
            ("kafka", case) => Self::on_kafka(case),
            _ => Self::default(),
        }
    }

    fn on_sqlite(case: &str) -> Self {
        match case {
            "ingest/1" => Self { ratio_min: Some(0.4), p99_ms_max: Some(15.0), ..Self::at_least(25e3) },
            "ingest/100" => Self { ratio_min: Some(0.5), ..Self::at_least(130e3) },
            "drain/null/1k-users" => Self::at_least(400e3),
            "drain/file/1k-users" => Self { memory_mb_max: Some(150.0), ..Self::at_least(250e3) },
            "drain/file/one-user" => Self::at_least(200e3),
            "drain/http-0ms/1k-users" => Self { ratio_min: Some(0.6), ..Self::at_least(50e3) },
            "drain/http-0ms/zipf" => Self::at_least(25e3),
            "drain/http-0ms/one-user" => Self::at_least(6e3),
            "drain/http-10ms/1k-users" => Self::at_least(40e3),
            _ => Self::default(),
        }
    }

    fn on_kafka(case: &str) -> Self {
        match case {
            "ingest/1" => Self { p99_ms_max: Some(15.0), ..Self::at_least(32e3) },
            "ingest/10" => Self { p99_ms_max: Some(15.0), ..Self::at_least(180e3) },
            "ingest/100" => Self { p99_ms_max: Some(15.0), ..Self::at_least(400e3) },
            "drain/null/1k-users" => Self { ratio_min: Some(0.4), ..Self::default() },
            "drain/file/1k-users" => Self { memory_mb_max: Some(150.0), ..Self::at_least(300e3) },
            "drain/file/one-user" => Self::at_least(200e3),
            "drain/http-0ms/1k-users" => Self::at_least(52e3),
            "drain/http-0ms/zipf" => Self::at_least(25e3),
            "drain/http-0ms/one-user" => Self::at_least(6e3),
            "drain/http-10ms/1k-users" => Self::at_least(40e3),
            "members/three" => Self { ratio_min: Some(2.7), ..Self::default() },
            "latency/2000-a-second" => Self { p50_ms_max: Some(4.0), p99_ms_max: Some(15.0), ..Self::default() },
            _ => Self::default(),
        }
    }

    fn at_least(events_s: f64) -> Self {
        Self { events_s_min: Some(events_s), ..Self::default() }
    }

    /// The figures in words and the verdict, which names each figure that was missed.
    pub(crate) fn cell(&self, measured: &Measured) -> String {
        let mut parts = Vec::new();
        let mut figure = |text: String, reached: Option<bool>| {
            parts.push(if reached == Some(true) { format!("{text} ✓") } else { format!("{text} **missed**") });
        };
        if let Some(min) = self.events_s_min {
            figure(format!("≥ {}/s", thousands(min)), measured.events_s.map(|v| v >= min));
        }
        if let Some(min) = self.ratio_min {
            figure(format!("ratio ≥ {min}"), measured.ratio.map(|v| v >= min));
        }
        if let Some(max) = self.ratio_max {
            figure(format!("ratio ≤ {max}"), measured.ratio.map(|v| v <= max));
        }
        if let Some(max) = self.p50_ms_max {
            figure(format!("p50 < {max} ms"), measured.p50_ms.map(|v| v < max));
        }
        if let Some(max) = self.p99_ms_max {
            figure(format!("p99 < {max} ms"), measured.p99_ms.map(|v| v < max));
        }
        if let Some(max) = self.memory_mb_max {
            figure(format!("< {max} MB"), measured.memory_mb.map(|v| v < max));
        }
        if let Some(max) = self.core_share_max {
            figure(format!("< {:.0} % of a core", max * 100.0), measured.core_share.map(|v| v < max));
        }
        if let Some(max) = self.seconds_max {
            let seconds = measured.events.zip(measured.events_s).map(|(events, events_s)| events / events_s);
            figure(format!("< {max} s"), seconds.map(|v| v < max));
        }
        parts.join(", ")
    }
}
