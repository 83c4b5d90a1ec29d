//! Moves the destination's own position: back, so that dispatch delivers everything from there on again, in order with
//! what comes new; or ahead, so that it skips what stands before.
//!
//! ```text
//!  --rewind       ✓ ✓ ✓ ✓ ✓ ✓ · ✓ · ·      --fast-forward  ✓ ✓ · · ✓ · · · ·
//!  from ─────────────┘                     to ────────────────────────┘
//!  after          ✓ ✓ ✓ · · · · · · ·      after           ✓ ✓ ✓ ✓ ✓ ✓ ✓ · ·
//! ```
//!
//! It is asked for in one write, under the group `<dest>.rewind`, and applied by who owns each partition, within a second
//! or at its next start: a handover to oneself, whose commit holds the id of the request (`dispatch`, `moving`). Where
//! nobody owns them it is applied here, in the same way. So it is applied once, whoever dies, and a command that was cut
//! off behind the request needs not be given again.

use super::audit::{Audit, Outcome, Started, What};
use super::place::Place;
use super::plan::{Leg, Progressed};
use super::range::{self, Outside, Range, Stretch, TimeAsEnd, Times};
use super::select::Selection;
use super::{Config, Planned, Refused, Surroundings, prepare, show};
use crate::BoxFuture;
use crate::clock::now_ms;
use crate::core::outcome::Ended;
use crate::core::progress::{OffsetReset, PartitionState, ResetTarget};
use crate::group::JoinError;
use crate::limits;
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// Which way, and where to.
#[derive(Debug, Clone)]
pub enum Way {
    Back(Place),
    Ahead(Place),
}

/// Asks for the new position of each partition that has a part in the plan, and waits until it is there.
pub(super) async fn apply(
    around: &Surroundings,
    config: &Config,
    way: &Way,
    planned: Planned,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let (name, id) = (&around.spec.name, super::new_id());
    let Planned { what, plan, selection, legs, .. } = planned;
    let states = patiently(|| around.groups.committed(name, &around.log)).await?;
    let standing = patiently(|| around.groups.requested(name, &around.log)).await?;
    let (number, events, unreadable) = (new_number(&states, &standing), plan.events, plan.unreadable);
    let target = |stretch: &Stretch| match way {
        Way::Back(_) => ResetTarget::Back(stretch.from),
        Way::Ahead(_) => ResetTarget::Ahead(stretch.until),
    };
    let moves =
        legs.iter().map(|Leg { stretch, .. }| (stretch.partition, OffsetReset { id: number, to: target(stretch) }));
    let moves: BTreeMap<u32, OffsetReset> = moves.collect();
    let audit = Audit::open(&*around.engine, &*around.log).await?;
    let started = Started { to: around.spec.to_string(), what: what.clone(), selection, plan, moves: true };
    audit.write(&id, name, What::ReplayStarted(Box::new(started))).await?;
    let asked = async {
        // Whether it was stored may be unknown: the same once more changes nothing.
        let asked = patiently(|| around.groups.request(name, &around.log, &moves)).await;
        asked.context("what was asked for may stand all the same: give the command again to be sure")?;
        tokio::select! {
            biased;
            applied = applied(around, config, &moves) => applied.map(|()| true),
            () = stop => Ok(false),
        }
    };
    let asked: anyhow::Result<bool> = asked.await;
    let (outcome, why) = match &asked {
        Ok(true) => (Outcome::Finished, String::new()),
        Ok(false) => (Outcome::Stopped, "stopped by a signal: what was asked for stands, and dispatch does it".into()),
        Err(error) => (Outcome::Failed, format!("{error:#}")),
    };
    audit.write(&id, name, What::ReplayEnded { outcome, counts: Progressed::default(), why: why.clone() }).await?;
    if !asked? {
        show::note(around, config, &why);
        return Ok(Ended::WorkLeft);
    }
    let then = match way {
        Way::Back(_) => "delivers again",
        Way::Ahead(_) => "leaves out",
    };
    let besides = match unreadable {
        0 => String::new(),
        unreadable => format!(" and {unreadable} offsets that cannot be read"),
    };
    show::note(around, config, &format!("moved: dispatch {then} {events} events{besides} ({what})"));
    Ok(Ended::Drained)
}

/// Higher than that of every move that was applied or asked for, also by a machine whose clock is ahead.
fn new_number(states: &[Option<PartitionState>], standing: &[Option<OffsetReset>]) -> u64 {
    let now = u64::try_from(now_ms()).unwrap_or_default() << RANDOM_BITS;
    let random = Uuid::now_v7().as_u128() as u64 & ((1 << RANDOM_BITS) - 1);
    let applied = states.iter().flatten().filter_map(|state| state.moved);
    let highest = applied.chain(standing.iter().flatten().map(|wanted| wanted.id)).max();
    (now | random).max(highest.map_or(0, |highest| highest.saturating_add(1)))
}

/// Two commands of one millisecond differ in these.
const RANDOM_BITS: u32 = 20;

/// Ready once every partition has moved.
async fn applied(around: &Surroundings, config: &Config, moves: &BTreeMap<u32, OffsetReset>) -> anyhow::Result<()> {
    let name = &around.spec.name;
    let digest = around.spec.digest();
    let mut told_at = None::<Instant>;
    loop {
        let owned = !patiently(|| around.groups.apply_unowned(name, &around.log, &digest, moves)).await?;
        // In this order: what was applied, and then had its place taken, is applied.
        let standing = patiently(|| around.groups.requested(name, &around.log)).await?;
        let states = patiently(|| around.groups.committed(name, &around.log)).await?;
        let mut waiting = Vec::new();
        for (partition, wanted) in moves {
            let moved = states.get(*partition as usize).and_then(Option::as_ref).and_then(|state| state.moved);
            if moved != Some(wanted.id) {
                let stands = standing.get(*partition as usize).copied().flatten();
                ensure!(
                    moved < Some(wanted.id) && stands == Some(*wanted),
                    "another rewind or fast-forward of {name:?} took the place of this one in partition {partition}"
                );
                waiting.push(*partition);
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        match told_at {
            None if owned => {
                show::note(around, config, "dispatch is running: its processes move their positions now");
                told_at = Some(Instant::now());
            }
            Some(at) if at.elapsed() >= limits::REPLAY_LOG_INTERVAL => {
                tracing::info!(partitions = ?waiting, "waiting for the owners to move their positions");
                told_at = Some(Instant::now());
            }
            _ => {}
        }
        sleep(limits::REPLAY_READ_AGAIN_AFTER).await;
    }
}

/// Asks again while it may work later, a bounded number of times.
async fn patiently<'a, T>(ask: impl Fn() -> BoxFuture<'a, Result<T, JoinError>>) -> Result<T, JoinError> {
    let mut failures = 0;
    loop {
        match ask().await {
            Err(JoinError::Unavailable(failure)) if failures < limits::REPLAY_READ_TRIES_MAX => {
                tracing::debug!("asking again: {failure}");
                failures += 1;
                sleep(limits::REPLAY_READ_AGAIN_AFTER).await;
            }
            answer => return answer,
        }
    }
}

/// Finds the partitions in which the move passes over unsettled events that retention has removed. For each: how many
/// these are, and the earliest offset that is left.
async fn gaps_before(
    around: &Surroundings,
    place: &Place,
    known: &[Option<PartitionState>],
) -> anyhow::Result<BTreeMap<u32, (u64, i64)>> {
    let mut gaps = BTreeMap::new();
    for (state, partition) in known.iter().zip(0u32..) {
        let Some(state) = state else { continue };
        let earliest = around.log.earliest(partition).await?;
        let passes = match place {
            Place::Offset(to) => *to >= earliest,
            Place::Offsets(offsets) | Place::OldOffsets(offsets) => {
                offsets.get(&partition).is_some_and(|to| *to >= earliest)
            }
            // A time means an event that is there.
            Place::Time(_) | Place::Ago(_) => true,
        };
        if state.watermark >= earliest || !passes {
            continue;
        }
        let settled: i64 = state.settled.iter().map(|range| (range.end.min(earliest) - range.start).max(0)).sum();
        let unsettled = earliest - state.watermark - settled;
        gaps.insert(partition, (unsettled.unsigned_abs(), earliest));
    }
    Ok(gaps)
}

/// What the move means: each leg is what dispatch will deliver again, or leave out.
pub(super) async fn plan(around: &Surroundings, wanted: &Way) -> anyhow::Result<Planned> {
    let name = &around.spec.name;
    let known = around.groups.committed(name, &around.log).await?;
    prepare::ensure_known(around, &known)?;
    let (range, what) = match wanted {
        Way::Back(place) => (
            Range { from: Some(place.clone()), until: None },
            format!("{}, by a rewind of {name} to {place}", around.log.topic()),
        ),
        Way::Ahead(place) => (
            Range { from: None, until: Some(place.clone()) },
            format!("{}, left out by a fast-forward of {name} to {place}", around.log.topic()),
        ),
    };
    let now_ms = now_ms();
    let gaps = match wanted {
        Way::Ahead(place) => gaps_before(around, place, &known).await?,
        Way::Back(_) => BTreeMap::new(),
    };
    let mut stretches = match range::resolve(&*around.log, &range, now_ms, TimeAsEnd::Position).await? {
        // The log has no records left before the place: only the gap is passed.
        Err(Outside::NothingThere(_)) if !gaps.is_empty() => Vec::new(),
        found => found.map_err(|outside| Refused::outside(outside.into_why()))?,
    };
    for (partition, (_, earliest)) in &gaps {
        if !stretches.iter().any(|stretch| stretch.partition == *partition) {
            stretches.push(Stretch { partition: *partition, from: *earliest, until: *earliest, removed: 0 });
        }
    }
    let mut legs = Vec::new();
    for stretch in stretches {
        let Some(state) = known.get(stretch.partition as usize).cloned().flatten() else { continue };
        let Stretch { from, until, .. } = stretch;
        let state = match wanted {
            Way::Back(_) => state.inverted(from..until),
            Way::Ahead(_) => state.within(from..until),
        };
        legs.push(Leg { stretch, state });
    }
    // Whatever is behind the place is delivered again, and what came from a replay is no exception.
    let selection = Selection { again: true, ..Selection::default() };
    let source = Arc::clone(&around.log);
    let is_ahead = matches!(wanted, Way::Ahead(_));
    // A fast-forward leaves everything out, also what cannot be read: passing that is what it is for.
    let skip_damaged = is_ahead || prepare::skips_damaged(around);
    let (mut plan, _) = prepare::count(around, &*source, &mut legs, &selection, None, skip_damaged).await?;
    if is_ahead {
        // Settled already: nothing of theirs changes.
        plan.on_their_way = 0;
        plan.unreadable += gaps.values().map(|(unsettled, _)| unsettled).sum::<u64>();
    }
    plan.earlier = earlier_behind(around, wanted, &known, &legs, now_ms).await?;
    Ok(Planned { id: None, source, what, selection, legs, plan })
}

/// How many events after the new position were accepted before the time that was asked for: times need not be in order,
/// and a position is one offset. A rewind has them delivered again too, and a fast-forward does not leave them out.
async fn earlier_behind(
    around: &Surroundings,
    wanted: &Way,
    known: &[Option<PartitionState>],
    legs: &[Leg],
    now_ms: i64,
) -> anyhow::Result<u64> {
    let (Way::Back(place) | Way::Ahead(place)) = wanted;
    let Some(until_ms) = place.moment_ms(now_ms) else { return Ok(0) };
    let mut behind = Vec::new();
    for leg in legs {
        let Stretch { partition, until, .. } = leg.stretch;
        behind.push(match wanted {
            Way::Back(_) => leg.clone(),
            Way::Ahead(_) => {
                let end = around.log.latest(partition).await?.max(until);
                let state = known.get(partition as usize).cloned().flatten().unwrap_or_default();
                let stretch = Stretch { partition, from: until, until: end, removed: 0 };
                Leg { stretch, state: state.within(until..end) }
            }
        });
    }
    let times = Times { from_ms: None, until_ms: Some(until_ms) };
    let skip_damaged = matches!(wanted, Way::Ahead(_)) || prepare::skips_damaged(around);
    let selection = Selection { again: true, times, ..Selection::default() };
    let (found, _) = prepare::count(around, &*around.log, &mut behind, &selection, None, skip_damaged).await?;
    Ok(found.events)
}
