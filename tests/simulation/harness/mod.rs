//! What both simulations share: random numbers that a seed repeats, the run over many seeds, and the check that a seed
//! repeats its trace. The simulation of dispatch is a test of its own, and the one of group members is a part of the
//! library's tests, because it needs private items. Both include this module.
//!
//! ```text
//!  EVENTD_SIM_FIRST, EVENTD_SIM_SEEDS ─▶ seeds ─▶ simulate(seed) on two threads ─▶ totals, printed and checked
//!                                                     └─▶ a violation: the end of its trace, and how to replay it
//! ```

mod random;

pub(crate) use random::Random;

use std::fmt::Debug;
use std::time::{Duration, Instant};

const THREADS: u64 = 2;

/// How many lines of a failing seed's trace are printed.
const TRACE_LINES: usize = 100;

/// How many lines of two traces are printed before and after the first difference.
const LINES_BEFORE_DIFFERENCE: usize = 30;
const LINES_AFTER_DIFFERENCE: usize = 10;

/// In a run of this many seeds, everything that is counted has to occur often enough.
const SEEDS_COUNTED_MIN: u64 = 100;

/// The seeds of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeds {
    first: u64,
    count: u64,
}

impl Seeds {
    /// `EVENTD_SIM_FIRST` and `EVENTD_SIM_SEEDS`, or this many seeds from 0.
    pub(crate) fn from_environment(count: u64) -> Self {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
            Err(_) => default,
        };
        Self { first: number("EVENTD_SIM_FIRST", 0), count: number("EVENTD_SIM_SEEDS", count) }
    }

    /// Simulates each seed. `Err` is a violation with its trace: it is printed with the command that replays the seed.
    /// `test` is how cargo selects the test, without the test's name.
    pub(crate) fn run<T: Send>(self, test: &str, simulate: impl Fn(u64) -> Result<T, String> + Sync) -> Run<T> {
        let begun = Instant::now();
        let run = |thread: u64| -> Vec<T> {
            let own = (self.first..self.first + self.count).filter(|seed| seed % THREADS == thread);
            own.map(|seed| simulate(seed).unwrap_or_else(|violation| fail(seed, test, &violation))).collect()
        };
        let run = &run;
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || run(thread))).collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Result<Vec<_>, _>>().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        Run { seeds: self.count, took: begun.elapsed(), outcomes: outcomes.into_iter().flatten().collect() }
    }
}

/// The outcomes of all seeds of a run that found no violation.
#[derive(Debug)]
pub(crate) struct Run<T> {
    seeds: u64,
    took: Duration,
    outcomes: Vec<T>,
}

impl<T> Run<T> {
    /// One of the counts, added up over all seeds.
    pub(crate) fn sum(&self, count: impl Fn(&T) -> u64) -> u64 {
        self.outcomes.iter().map(count).sum()
    }

    /// Prints the counts. Fails if something hardly occurred, because the run then shows nothing about it.
    pub(crate) fn report(&self, name: &str, counts: &[(&str, u64)]) {
        let seeds = self.seeds;
        println!("# {name}: {seeds} seeds in {:?}: {counts:?}", self.took);
        if seeds >= SEEDS_COUNTED_MIN {
            for (what, count) in counts {
                assert!(*count > seeds / 20, "a run with {count} {what} in {seeds} seeds proves nothing about them");
            }
        }
    }
}

fn fail(seed: u64, test: &str, violation: &str) -> ! {
    eprintln!("{violation}");
    panic!("replay: EVENTD_SIM_FIRST={seed} EVENTD_SIM_SEEDS=1 cargo test {test}thousands_of_seeds")
}

/// The last lines of a trace, and the violation that ended it.
pub(crate) fn end_of_trace(trace: &[String], violation: Option<&str>) -> String {
    let from = trace.len().saturating_sub(TRACE_LINES);
    format!("{}\n{}", trace[from..].join("\n"), violation.unwrap_or("no violation"))
}

/// Simulates each of the first seeds twice. Fails at the first line in which the two traces differ, and prints both
/// traces around it.
pub(crate) fn assert_repeatable<T: PartialEq + Debug>(seeds: u64, simulate: impl Fn(u64) -> (Vec<String>, T)) {
    for seed in 0..seeds {
        let ((one, one_counts), (two, two_counts)) = (simulate(seed), simulate(seed));
        if let Some(line) = first_difference(&one, &two) {
            let (one, two) = (around(&one, line), around(&two, line));
            panic!("seed {seed} gives two traces, from line {line} on:\n{one}\n\nand in the second run:\n{two}");
        }
        assert_eq!(one_counts, two_counts, "seed {seed} counts differently in its second run");
    }
}

/// The first line in which two traces differ, or at which only one of them continues.
fn first_difference(one: &[String], two: &[String]) -> Option<usize> {
    let common = one.iter().zip(two).take_while(|(one, two)| one == two).count();
    (common < one.len().max(two.len())).then_some(common)
}

/// The lines of a trace around this one.
fn around(trace: &[String], line: usize) -> String {
    let (from, to) = (line.saturating_sub(LINES_BEFORE_DIFFERENCE), line + LINES_AFTER_DIFFERENCE);
    trace[from.min(trace.len())..to.min(trace.len())].join("\n")
}
