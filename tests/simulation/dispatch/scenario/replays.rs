//! Replays that an operator starts, stops and starts again.

use super::{Action, Request, Scenario};
use crate::dispatch::commands::Given;
use crate::dispatch::replays::RequestedReplay;
use crate::harness::Random;
use eventd::dispatch::OnGap;
use eventd::replay::position::Position;
use eventd::replay::range::Range;
use eventd::replay::rewind::Reposition;
use eventd::replay::select::Selection;
use std::time::Duration;

/// Adds one or two replays. Each may crash, be stopped, and be started again while it runs.
pub(super) fn replays(scenario: &mut Scenario, random: &mut Random) {
    // A replay does not read the list of parked users yet.
    scenario.config.parking.may_park = false;
    // So no user can be held.
    let is_about_user = |action: &Action| matches!(action, Action::Command(Given::User { .. }));
    scenario.plan.retain(|(_, action)| !is_about_user(action));
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at) + Duration::from_secs(10);
    let is_moved = scenario.plan.iter().any(|(_, action)| matches!(action, Action::Reposition { .. }));
    let (mut moves_left, mut first) = (u32::from(!is_moved), None);
    for number in 0..random.between(1, 2) as usize {
        let request = match random.below(10) {
            0 | 1 if moves_left > 0 => {
                moves_left -= 1;
                let place = place(scenario, random);
                RequestedReplay::OffsetReset(if random.chance(50) {
                    Reposition::Rewind(place)
                } else {
                    Reposition::FastForward(place)
                })
            }
            n => {
                let same_letters = scenario.replays.first().is_some_and(|request| request.request.is_of_dead_letters());
                let dead = n > if same_letters { 2 } else { 5 };
                let ends = |random: &mut Random| (!dead && random.chance(50)).then(|| place(scenario, random));
                let (from, until) = (ends(random), ends(random));
                let users = match scenario.users[random.below(scenario.users.len() as u64) as usize].as_deref() {
                    Some(user) if random.chance(20) => [String::from_utf8_lossy(user).into_owned()].into(),
                    _ => [].into(),
                };
                let selection = Selection { dead, users, again: random.chance(20), ..Selection::default() };
                // Events that retention removes between plan and delivery still count towards a limit.
                let may_be_limited = !dead && scenario.config.on_gap == OnGap::Stop;
                let limit = (may_be_limited && random.chance(20)).then(|| random.between(1, 30));
                RequestedReplay::Deliver { range: Range { from, until }, selection, limit }
            }
        };
        let rate = random.chance(30).then(|| random.pick(&["5/s", "50/s", "600/m"]).parse().expect("a rate"));
        let stop_after_failures = if random.chance(30) { random.between(1, 10) } else { 0 };
        scenario.replays.push(Request { request, rate, stop_after_failures });
        // Two replays that find the same dead letters, and a command that is repeated at the very end.
        let begins = match first {
            Some(first) if random.chance(40) => first + random.millis(0, 100),
            // A replay of dead letters that another one has redriven.
            Some(first) if are_of_dead_letters(&scenario.replays) && random.chance(50) => {
                first + random.millis(1_000, 10_000)
            }
            _ => random.millis(500, until.as_millis() as u64),
        };
        first = Some(begins);
        let is_impatient = random.chance(30);
        let asked_again = (1..=40).take_while(|_| is_impatient).map(|n| begins + Duration::from_millis(n * 230));
        let times = std::iter::once(begins).chain(asked_again);
        scenario.plan.extend(times.map(|at| (at, Action::Replay { number })));
        for _ in 0..random.below(4) {
            let at = begins + random.millis(0, 4_000);
            let action = match random.below(4) {
                0 => Action::Replay { number },
                1 => Action::StopReplay { number },
                _ => Action::CrashReplayWithin { number, steps: random.between(1, 120) },
            };
            scenario.plan.push((at, action));
        }
    }
    scenario.clocks_apart_ms = random.pick(&[0, 20, 3_000]);
    scenario.plan.sort_by_key(|(at, _)| *at);
}

fn are_of_dead_letters(replays: &[Request]) -> bool {
    replays.iter().all(|replay| replay.request.is_of_dead_letters())
}

/// One end of a range: an offset, an offset in some partitions, or a time.
fn place(scenario: &Scenario, random: &mut Random) -> Position {
    match random.below(3) {
        0 => Position::Offset(random.between(0, 40) as i64),
        1 => {
            let partitions = (0..scenario.partitions).filter(|_| random.chance(70)).collect::<Vec<_>>();
            Position::Offsets(
                partitions.into_iter().map(|partition| (partition, random.between(0, 40) as i64)).collect(),
            )
        }
        _ => Position::Time(random.between(0, 12_000) as i64),
    }
}
