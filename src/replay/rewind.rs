//! Moves the destination's own position: back, so that dispatch delivers everything from there on again, in order with
//! what comes new; or ahead, so that it skips what stands before.
//!
//! ```text
//!  --rewind       ✓ ✓ ✓ ✓ ✓ ✓ · ✓ · ·      --fast-forward  ✓ ✓ · · ✓ · · · ·
//!  from ─────────────┘                     to ────────────────────────┘
//!  after          ✓ ✓ ✓ · · · · · · ·      after           ✓ ✓ ✓ ✓ ✓ ✓ ✓ · ·
//! ```
//!
//! Nobody may be delivering to it meanwhile: its place is taken first, and one that is held is an error that names the
//! holder. Each partition is one commit, and says the same if it is written again: a move that was cut off is made whole
//! by the same command.

use super::audit::{Audit, Outcome, Started, What};
use super::plan::{Leg, Progressed};
use super::range::{Place, Range, Stretch};
use super::select::Selection;
use super::{Config, Planned, Surroundings, prepare, show};
use crate::dispatch::Ended;
use std::sync::Arc;

/// Which way, and where to.
#[derive(Debug, Clone)]
pub enum Move {
    Back(Place),
    Ahead(Place),
}

/// Writes the new position of each partition that has a part in the plan.
pub(super) async fn apply(
    around: &Surroundings,
    config: &Config,
    wanted: &Move,
    planned: Planned,
) -> anyhow::Result<Ended> {
    let (name, id) = (&around.spec.name, super::new_id());
    // Held until everything is written.
    let place = around.groups.join(name, &around.log, &around.spec.digest()).await?;
    let audit = Audit::open(&*around.engine, &*around.log).await?;
    let Planned { what, plan, selection, legs, .. } = planned;
    let (to, events) = (around.spec.to_string(), plan.events);
    let started = Started { to, what: what.clone(), selection, plan, moves: true };
    audit.write(&id, name, What::ReplayStarted(Box::new(started))).await?;
    for Leg { stretch: Stretch { partition, from, until, .. }, .. } in legs {
        // As it is now, and not as it was planned with: dispatch may have gone on until its place was taken.
        if let Some(state) = place.committed(partition).await? {
            let moved = match wanted {
                Move::Back(_) => state.rewound(from),
                Move::Ahead(_) => state.settled_below(until),
            };
            super::commit(&*place, partition, &moved).await?;
        }
    }
    place.leave().await;
    let (outcome, counts) = (Outcome::Finished, Progressed::default());
    audit.write(&id, name, What::ReplayEnded { outcome, counts, why: String::new() }).await?;
    let then = match wanted {
        Move::Back(_) => "delivers again",
        Move::Ahead(_) => "leaves out",
    };
    show::note(config, &format!("moved: from its next start on, dispatch {then} {events} events ({what})"));
    Ok(Ended::Drained)
}

/// What the move means: each leg is what dispatch will deliver again, or leave out.
pub(super) async fn plan(around: &Surroundings, wanted: &Move) -> anyhow::Result<Planned> {
    let name = &around.spec.name;
    let known = around.groups.committed(name, &around.log).await?;
    prepare::ensure_known(around, &known)?;
    let (range, what) = match wanted {
        Move::Back(place) => (
            Range { from: Some(place.clone()), until: None },
            format!("{}, by a rewind of {name} to {place}", around.log.topic()),
        ),
        Move::Ahead(place) => (
            Range { from: None, until: Some(place.clone()) },
            format!("{}, left out by a fast-forward of {name} to {place}", around.log.topic()),
        ),
    };
    let stretches = prepare::stretches(&*around.log, &range).await?;
    let mut legs = Vec::new();
    for stretch in stretches {
        let Some(state) = known.get(stretch.partition as usize).cloned().flatten() else { continue };
        let Stretch { from, until, .. } = stretch;
        let state = match wanted {
            Move::Back(_) => state.inverted(from..until),
            Move::Ahead(_) => state.within(from..until),
        };
        legs.push(Leg { stretch, state });
    }
    // Whatever is behind the place is delivered again, and what came from a replay is no exception.
    let selection = Selection { again: true, ..Selection::default() };
    let source = Arc::clone(&around.log);
    let (mut plan, _) = prepare::count(around, &*source, &mut legs, &selection, None).await?;
    if matches!(wanted, Move::Ahead(_)) {
        // Settled already: nothing of theirs changes.
        plan.on_their_way = 0;
    }
    Ok(Planned { id: None, source, what, selection, legs, plan })
}
