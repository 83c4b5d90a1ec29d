//! The command line of the benchmark.

use crate::run::Size;
use anyhow::{Context as _, bail, ensure};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Steady load of the cases of isolation, if `--rate` is not given.
const EVENTS_A_SECOND: u32 = 2_000;

/// What to measure.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Whether to run the peer next to eventd, instead of the usual cases.
    pub(crate) compare: bool,
    pub(crate) size: Size,
    /// Patterns of names. Without a pattern, every case is measured.
    pub(crate) only: Vec<String>,
    engines: Vec<String>,
    /// How often each case of isolation is measured. The cases alternate.
    pub(crate) rounds: usize,
    /// Events per second of the cases of isolation.
    pub(crate) rate: u32,
    /// How long each case of isolation lasts, instead of its own time.
    pub(crate) lasting: Option<Duration>,
    /// `--window` of eventd in the cases of isolation, instead of its default.
    pub(crate) window: Option<u32>,
    /// The folder that gets the pictures.
    pub(crate) pictures: PathBuf,
}

const USAGE: &str = "[compare] [--quick] [--engine sqlite|kafka]… [--only PATTERN]…, and for the cases of isolation \
    [--rate EVENTS_A_SECOND] [--seconds N] [--rounds N] [--window EVENTS] [--pictures FOLDER]";

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let mut options = Self {
            compare: false,
            size: Size::Full,
            only: Vec::new(),
            engines: Vec::new(),
            rounds: 1,
            rate: EVENTS_A_SECOND,
            lasting: None,
            window: None,
            pictures: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value = || rest.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "compare" => options.compare = true,
                "--quick" => options.size = Size::Quick,
                "--only" => options.only.push(value()?.clone()),
                "--engine" => match value()?.as_str() {
                    engine @ ("sqlite" | "kafka") => options.engines.push(engine.to_owned()),
                    other => bail!("--engine is sqlite or kafka, and not {other:?}"),
                },
                "--rounds" => options.rounds = number(argument, value()?)?,
                "--rate" => options.rate = number(argument, value()?)?,
                "--seconds" => options.lasting = Some(Duration::from_secs(number(argument, value()?)?)),
                "--window" => options.window = Some(number(argument, value()?)?),
                "--pictures" => options.pictures = PathBuf::from(value()?),
                // Cargo passes this flag to every benchmark.
                "--bench" => {}
                other => bail!("unknown option {other:?}: {USAGE}"),
            }
        }
        Ok(options)
    }

    /// Whether this engine is measured. Without `--engine`, both are.
    pub(crate) fn wants(&self, engine: &str) -> bool {
        self.engines.is_empty() || self.engines.iter().any(|wanted| wanted == engine)
    }

    /// Whether `--only` selects this case.
    pub(crate) fn selects(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| name.contains(pattern.as_str()))
    }
}

/// A number from 1 on.
fn number<T: FromStr + PartialOrd + From<u8>>(flag: &str, text: &str) -> anyhow::Result<T> {
    let number = text.parse().ok().filter(|number| *number >= T::from(1));
    ensure!(number.is_some(), "{flag} is a whole number from 1 on, and not {text:?}");
    number.context("a number")
}
