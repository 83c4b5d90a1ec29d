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

use super::audit::{AuditEvent, AuditLog, ReplayOutcome, ReplayStart};
use super::plan::{DeliveryCounts, PartitionPlan};
use super::position::Position;
use super::range::{self, OffsetRange, Range, RangeError, TimeRange, UntilTime};
use super::select::Selection;
use super::{Config, PreparedReplay, ReplayContext, ReplayRefused, prepare, show};
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
pub enum Reposition {
    Rewind(Position),
    FastForward(Position),
}

/// Asks for the new position of each partition that has a part in the plan, and waits until it is there.
pub(super) async fn apply(
    context: &ReplayContext,
    config: &Config,
    way: &Reposition,
    planned: PreparedReplay,
    stop: impl Future<Output = ()> + Send,
) -> anyhow::Result<Ended> {
    let (name, id) = (&context.spec.name, super::new_id());
    let PreparedReplay { what, plan, selection, legs, .. } = planned;
    let states = patiently(|| context.groups.committed(name, &context.log)).await?;
    let standing = patiently(|| context.groups.requested_resets(name, &context.log)).await?;
    let (number, events, unreadable) = (new_number(&states, &standing), plan.events, plan.unreadable);
    let target = |stretch: &OffsetRange| match way {
        Reposition::Rewind(_) => ResetTarget::Back(stretch.from),
        Reposition::FastForward(_) => ResetTarget::Ahead(stretch.until),
    };
    let moves = legs
        .iter()
        .map(|PartitionPlan { stretch, .. }| (stretch.partition, OffsetReset { id: number, to: target(stretch) }));
    let moves: BTreeMap<u32, OffsetReset> = moves.collect();
    let audit = AuditLog::open(&*context.engine, &*context.log).await?;
    let started = ReplayStart { to: context.spec.to_string(), what: what.clone(), selection, plan, moves: true };
    audit.write(&id, name, AuditEvent::ReplayStarted(Box::new(started))).await?;
    let asked = async {
        // Whether it was stored may be unknown: the same once more changes nothing.
        let asked = patiently(|| context.groups.request_resets(name, &context.log, &moves)).await;
        asked.context("what was asked for may stand all the same: give the command again to be sure")?;
        tokio::select! {
            biased;
            applied = applied(context, config, &moves) => applied.map(|()| true),
            () = stop => Ok(false),
        }
    };
    let asked: anyhow::Result<bool> = asked.await;
    let (outcome, why) = match &asked {
        Ok(true) => (ReplayOutcome::Finished, String::new()),
        Ok(false) => {
            (ReplayOutcome::Stopped, "stopped by a signal: what was asked for stands, and dispatch does it".into())
        }
        Err(error) => (ReplayOutcome::Failed, format!("{error:#}")),
    };
    audit
        .write(&id, name, AuditEvent::ReplayEnded { outcome, counts: DeliveryCounts::default(), why: why.clone() })
        .await?;
    if !asked? {
        show::note(context, config, &why);
        return Ok(Ended::WorkLeft);
    }
    let then = match way {
        Reposition::Rewind(_) => "delivers again",
        Reposition::FastForward(_) => "leaves out",
    };
    let besides = match unreadable {
        0 => String::new(),
        unreadable => format!(" and {unreadable} offsets that cannot be read"),
    };
    show::note(context, config, &format!("moved: dispatch {then} {events} events{besides} ({what})"));
    Ok(Ended::Drained)
}

/// Higher than that of every move that was applied or asked for, also by a machine whose clock is ahead.
fn new_number(states: &[Option<PartitionState>], standing: &[Option<OffsetReset>]) -> u64 {
    let now = u64::try_from(now_ms()).unwrap_or_default() << RANDOM_BITS;
    let random = Uuid::now_v7().as_u128() as u64 & ((1 << RANDOM_BITS) - 1);
    let applied = states.iter().flatten().filter_map(|state| state.last_reset);
    let highest = applied.chain(standing.iter().flatten().map(|wanted| wanted.id)).max();
    (now | random).max(highest.map_or(0, |highest| highest.saturating_add(1)))
}

/// Two commands of one millisecond differ in these.
const RANDOM_BITS: u32 = 20;

/// Ready once every partition has moved.
async fn applied(context: &ReplayContext, config: &Config, moves: &BTreeMap<u32, OffsetReset>) -> anyhow::Result<()> {
    let name = &context.spec.name;
    let digest = context.spec.digest();
    let mut told_at = None::<Instant>;
    loop {
        let owned = !patiently(|| context.groups.apply_resets_if_unowned(name, &context.log, &digest, moves)).await?;
        // In this order: what was applied, and then had its place taken, is applied.
        let standing = patiently(|| context.groups.requested_resets(name, &context.log)).await?;
        let states = patiently(|| context.groups.committed(name, &context.log)).await?;
        let mut waiting = Vec::new();
        for (partition, wanted) in moves {
            let moved = states.get(*partition as usize).and_then(Option::as_ref).and_then(|state| state.last_reset);
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
                show::note(context, config, "dispatch is running: its processes move their positions now");
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
    context: &ReplayContext,
    place: &Position,
    known: &[Option<PartitionState>],
) -> anyhow::Result<BTreeMap<u32, (u64, i64)>> {
    let mut gaps = BTreeMap::new();
    for (state, partition) in known.iter().zip(0u32..) {
        let Some(state) = state else { continue };
        let earliest = context.log.earliest(partition).await?;
        let passes = match place {
            Position::Offset(to) => *to >= earliest,
            Position::Offsets(offsets) | Position::DeprecatedOffsets(offsets) => {
                offsets.get(&partition).is_some_and(|to| *to >= earliest)
            }
            // A time means an event that is there.
            Position::Time(_) | Position::Ago(_) => true,
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
pub(super) async fn plan(context: &ReplayContext, wanted: &Reposition) -> anyhow::Result<PreparedReplay> {
    let name = &context.spec.name;
    let known = context.groups.committed(name, &context.log).await?;
    prepare::ensure_known(context, &known)?;
    let (range, what) = match wanted {
        Reposition::Rewind(place) => (
            Range { from: Some(place.clone()), until: None },
            format!("{}, by a rewind of {name} to {place}", context.log.topic()),
        ),
        Reposition::FastForward(place) => (
            Range { from: None, until: Some(place.clone()) },
            format!("{}, left out by a fast-forward of {name} to {place}", context.log.topic()),
        ),
    };
    let now_ms = now_ms();
    let gaps = match wanted {
        Reposition::FastForward(place) => gaps_before(context, place, &known).await?,
        Reposition::Rewind(_) => BTreeMap::new(),
    };
    let mut stretches = match range::resolve(&*context.log, &range, now_ms, UntilTime::Position).await? {
        // The log has no records left before the place: only the gap is passed.
        Err(RangeError::NothingThere(_)) if !gaps.is_empty() => Vec::new(),
        found => found.map_err(|outside| ReplayRefused::outside(outside.into_why()))?,
    };
    for (partition, (_, earliest)) in &gaps {
        if !stretches.iter().any(|stretch| stretch.partition == *partition) {
            stretches.push(OffsetRange { partition: *partition, from: *earliest, until: *earliest, removed: 0 });
        }
    }
    let mut legs = Vec::new();
    for stretch in stretches {
        let Some(state) = known.get(stretch.partition as usize).cloned().flatten() else { continue };
        let OffsetRange { from, until, .. } = stretch;
        let state = match wanted {
            Reposition::Rewind(_) => state.complement_in(from..until),
            Reposition::FastForward(_) => state.within(from..until),
        };
        legs.push(PartitionPlan { stretch, state });
    }
    // Whatever is behind the place is delivered again, and what came from a replay is no exception.
    let selection = Selection { again: true, ..Selection::default() };
    let source = Arc::clone(&context.log);
    let is_ahead = matches!(wanted, Reposition::FastForward(_));
    // A fast-forward leaves everything out, also what cannot be read: passing that is what it is for.
    let skip_damaged = is_ahead || prepare::skips_damaged(context);
    let (mut plan, _) = prepare::count(context, &*source, &mut legs, &selection, None, skip_damaged).await?;
    if is_ahead {
        // Settled already: nothing of theirs changes.
        plan.on_their_way = 0;
        plan.unreadable += gaps.values().map(|(unsettled, _)| unsettled).sum::<u64>();
    }
    plan.earlier = earlier_behind(context, wanted, &known, &legs, now_ms).await?;
    Ok(PreparedReplay { id: None, source, what, selection, legs, plan })
}

/// How many events after the new position were accepted before the time that was asked for: times need not be in order,
/// and a position is one offset. A rewind has them delivered again too, and a fast-forward does not leave them out.
async fn earlier_behind(
    context: &ReplayContext,
    wanted: &Reposition,
    known: &[Option<PartitionState>],
    legs: &[PartitionPlan],
    now_ms: i64,
) -> anyhow::Result<u64> {
    let (Reposition::Rewind(place) | Reposition::FastForward(place)) = wanted;
    let Some(until_ms) = place.moment_ms(now_ms) else { return Ok(0) };
    let mut behind = Vec::new();
    for leg in legs {
        let OffsetRange { partition, until, .. } = leg.stretch;
        behind.push(match wanted {
            Reposition::Rewind(_) => leg.clone(),
            Reposition::FastForward(_) => {
                let end = context.log.latest(partition).await?.max(until);
                let state = known.get(partition as usize).cloned().flatten().unwrap_or_default();
                let stretch = OffsetRange { partition, from: until, until: end, removed: 0 };
                PartitionPlan { stretch, state: state.within(until..end) }
            }
        });
    }
    let times = TimeRange { from_ms: None, until_ms: Some(until_ms) };
    let skip_damaged = matches!(wanted, Reposition::FastForward(_)) || prepare::skips_damaged(context);
    let selection = Selection { again: true, times, ..Selection::default() };
    let (found, _) = prepare::count(context, &*context.log, &mut behind, &selection, None, skip_damaged).await?;
    Ok(found.events)
}
