//! What one run of a case has shown, computed from what was sent and what arrived.

use super::case::{Case, Incident, Times};
use super::load::{Sent, Stamp};
use super::sink::Arrival;
use crate::store::Commits;
use std::time::Duration;

/// The first events are left out, because programs, caches and connections are not warm yet.
pub(crate) const WARM_UP: Duration = Duration::from_secs(5);

/// A time without any arrival of a healthy user that counts as a standstill.
const STANDSTILL: Duration = Duration::from_secs(3);

/// How long healthy users' events waited: from the intended send time to the first arrival, in milliseconds. It is
/// infinite for events that did not arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
}

/// Events of healthy users that did not arrive exactly once and in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Faults {
    pub(crate) missing: u64,
    pub(crate) duplicates: u64,
    /// Arrivals before an earlier event of the same user.
    pub(crate) out_of_order: u64,
}

/// What the process that delivers has used and committed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) commits: Commits,
    pub(crate) resident_mb: f64,
    pub(crate) peak_mb: f64,
}

/// What was seen during a run.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) samples: Vec<Sample>,
    /// When the process that delivers had ended and was started again, in nanoseconds since the Unix epoch.
    pub(crate) restarted_ns: Option<u64>,
    /// Records that were read a second time, because their users were parked.
    pub(crate) read_again: u64,
}

/// What one run of a case has shown.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// `None` for a case with an incident, in which all events wait.
    pub(crate) waiting: Option<Waiting>,
    /// The p99 of the events that were due in each second, in milliseconds.
    pub(crate) p99_each_second_ms: Vec<f64>,
    pub(crate) faults: Faults,
    /// When healthy users' events stopped arriving, in seconds after the first event.
    pub(crate) stopped_after_s: Option<f64>,
    /// The time from the sink's return until all earlier events had arrived. Infinite if some did not.
    pub(crate) caught_up_s: Option<f64>,
    /// The time from the start of another process to its first delivery for a healthy user.
    pub(crate) restart_s: Option<f64>,
    pub(crate) commit_lag_max: u64,
    pub(crate) parked_users_max: u64,
    pub(crate) read_again: u64,
    pub(crate) peak_mb: f64,
    /// The mean memory of the last fifth of the samples, less that of the second fifth.
    pub(crate) growth_mb: f64,
}

impl Outcome {
    pub(crate) fn of(case: Case, times: Times, sent: &Sent, arrivals: &[Arrival], watched: &Watched) -> Self {
        let healthy = FirstArrivals::of(case, arrivals);
        let waits = |stamp: &Stamp| healthy.wait_ms(stamp);
        let warm_ns = sent.started_ns + nanoseconds(WARM_UP);
        let warm: Vec<f64> = sent.healthy.iter().filter(|stamp| stamp.intended_ns >= warm_ns).map(waits).collect();
        let missing = sent.healthy.iter().filter(|stamp| waits(stamp).is_infinite()).count() as u64;
        let is_steady = times.incident.is_none();
        let caught_up_s = match times.incident {
            Some(Incident::Away(_, returns)) => Some(caught_up(sent, sent.started_ns + nanoseconds(returns), waits)),
            _ => None,
        };
        let samples = &watched.samples;
        Self {
            waiting: is_steady.then(|| waiting(warm)),
            p99_each_second_ms: each_second(sent, waits),
            faults: Faults { missing, ..healthy.faults },
            stopped_after_s: is_steady.then(|| standstill(case, sent, arrivals)).flatten(),
            caught_up_s,
            restart_s: watched.restarted_ns.map(|restarted_ns| first_after(case, restarted_ns, arrivals)),
            commit_lag_max: samples.iter().map(|sample| sample.commits.lag).max().unwrap_or(0),
            parked_users_max: samples.iter().map(|sample| sample.commits.parked_users).max().unwrap_or(0),
            read_again: watched.read_again,
            peak_mb: samples.iter().map(|sample| sample.peak_mb).fold(0.0, f64::max),
            growth_mb: growth(samples),
        }
    }

    /// The median of each number over several runs, but the worst of what must not happen in any of them.
    pub(crate) fn median(runs: &[Self]) -> Option<Self> {
        let middle = |pick: &dyn Fn(&Self) -> Option<f64>| median(runs.iter().filter_map(pick).collect());
        let first = runs.first()?;
        let waiting = first.waiting.and_then(|_| {
            Some(Waiting {
                p50_ms: middle(&|run| Some(run.waiting?.p50_ms))?,
                p99_ms: middle(&|run| Some(run.waiting?.p99_ms))?,
                p999_ms: middle(&|run| Some(run.waiting?.p999_ms))?,
            })
        });
        let most = |pick: fn(&Faults) -> u64| runs.iter().map(|run| pick(&run.faults)).max().unwrap_or(0);
        Some(Self {
            waiting,
            p99_each_second_ms: first.p99_each_second_ms.clone(),
            faults: Faults {
                missing: most(|faults| faults.missing),
                duplicates: most(|faults| faults.duplicates),
                out_of_order: most(|faults| faults.out_of_order),
            },
            stopped_after_s: runs.iter().filter_map(|run| run.stopped_after_s).min_by(f64::total_cmp),
            caught_up_s: middle(&|run| run.caught_up_s),
            restart_s: middle(&|run| run.restart_s),
            commit_lag_max: runs.iter().map(|run| run.commit_lag_max).max().unwrap_or(0),
            parked_users_max: runs.iter().map(|run| run.parked_users_max).max().unwrap_or(0),
            read_again: runs.iter().map(|run| run.read_again).max().unwrap_or(0),
            peak_mb: runs.iter().map(|run| run.peak_mb).fold(0.0, f64::max),
            growth_mb: middle(&|run| Some(run.growth_mb))?,
        })
    }
}

/// When each event of a healthy user arrived first.
struct FirstArrivals {
    /// By user and number. 0 if the event did not arrive.
    arrived_ns: Vec<Vec<u64>>,
    faults: Faults,
}

impl FirstArrivals {
    fn of(case: Case, arrivals: &[Arrival]) -> Self {
        let (mut arrived_ns, mut faults) = (Vec::<Vec<u64>>::new(), Faults::default());
        for arrival in arrivals.iter().filter(|arrival| case.is_healthy(arrival.stamp.user)) {
            let (user, number) = (arrival.stamp.user as usize, arrival.stamp.number as usize);
            if arrived_ns.len() <= user {
                arrived_ns.resize(user + 1, Vec::new());
            }
            let of_user = &mut arrived_ns[user];
            faults.out_of_order += u64::from(number > of_user.len());
            if of_user.len() <= number {
                of_user.resize(number + 1, 0);
            }
            match &mut of_user[number] {
                first @ 0 => *first = arrival.arrived_ns,
                _ => faults.duplicates += 1,
            }
        }
        Self { arrived_ns, faults }
    }

    fn wait_ms(&self, stamp: &Stamp) -> f64 {
        let arrived_ns =
            self.arrived_ns.get(stamp.user as usize).and_then(|of_user| of_user.get(stamp.number as usize));
        match arrived_ns {
            None | Some(0) => f64::INFINITY,
            Some(arrived_ns) => arrived_ns.saturating_sub(stamp.intended_ns) as f64 / 1e6,
        }
    }
}

fn waiting(mut waits_ms: Vec<f64>) -> Waiting {
    waits_ms.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (waits_ms.len() as f64 * share) as usize;
        waits_ms.get(index.min(waits_ms.len().saturating_sub(1))).copied().unwrap_or(f64::INFINITY)
    };
    Waiting { p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999) }
}

fn each_second(sent: &Sent, waits: impl Fn(&Stamp) -> f64) -> Vec<f64> {
    let mut seconds = Vec::<Vec<f64>>::new();
    for stamp in &sent.healthy {
        let second = ((stamp.intended_ns - sent.started_ns) / 1_000_000_000) as usize;
        if seconds.len() <= second {
            seconds.resize(second + 1, Vec::new());
        }
        seconds[second].push(waits(stamp));
    }
    seconds.into_iter().map(|waits_ms| waiting(waits_ms).p99_ms).collect()
}

/// The time from the sink's return until every event that was due before it has arrived.
fn caught_up(sent: &Sent, returned_ns: u64, waits_ms: impl Fn(&Stamp) -> f64) -> f64 {
    let earlier = sent.healthy.iter().filter(|stamp| stamp.intended_ns <= returned_ns);
    let after_s = |stamp: &Stamp| waits_ms(stamp) / 1e3 - (returned_ns - stamp.intended_ns) as f64 / 1e9;
    earlier.map(after_s).fold(0.0, f64::max)
}

/// The time from this moment to the next arrival of a healthy user's event. Infinite if none arrived.
fn first_after(case: Case, moment_ns: u64, arrivals: &[Arrival]) -> f64 {
    let later =
        arrivals.iter().filter(|arrival| arrival.arrived_ns >= moment_ns && case.is_healthy(arrival.stamp.user));
    later.map(|arrival| (arrival.arrived_ns - moment_ns) as f64 / 1e9).fold(f64::INFINITY, f64::min)
}

/// The start of the first standstill during the load, after the first arrival.
fn standstill(case: Case, sent: &Sent, arrivals: &[Arrival]) -> Option<f64> {
    let of_healthy = arrivals.iter().filter(|arrival| case.is_healthy(arrival.stamp.user));
    let mut last_ns = of_healthy.clone().next().map_or(sent.started_ns, |arrival| arrival.arrived_ns);
    // Arrivals after the load do not count, but the end of the load does.
    let times = of_healthy.map(|arrival| arrival.arrived_ns.min(sent.ended_ns)).chain([sent.ended_ns]);
    for arrived_ns in times {
        if arrived_ns.saturating_sub(last_ns) >= nanoseconds(STANDSTILL) {
            return Some((last_ns - sent.started_ns) as f64 / 1e9);
        }
        last_ns = last_ns.max(arrived_ns);
    }
    None
}

fn growth(samples: &[Sample]) -> f64 {
    let fifth = samples.len() / 5;
    let mean = |part: &[Sample]| part.iter().map(|sample| sample.resident_mb).sum::<f64>() / part.len().max(1) as f64;
    mean(&samples[samples.len() - fifth..]) - mean(&samples[fifth..2 * fifth])
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
