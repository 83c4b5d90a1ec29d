//! Commands that operators give to running processes.

use super::{Action, Scenario};
use crate::dispatch::commands::Given;
use crate::harness::Random;
use eventd::core::control::UserAction;
use eventd::core::tries::OnExhausted;
use std::time::Duration;

/// Adds commands of operators, also several at one moment, and crashes soon after some of them.
pub(super) fn commands(scenario: &mut Scenario, random: &mut Random) {
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at) + Duration::from_secs(3);
    let named = named_users(scenario);
    // If the list of parked users may be full, a user cannot always be held.
    let can_hold = scenario.config.parking.may_park && scenario.config.parking.users_max > scenario.users.len();
    let can_name_users = can_hold && !named.is_empty();
    let about_user = |random: &mut Random| {
        let action = random.pick(&[UserAction::Hold, UserAction::Hold, UserAction::Release, UserAction::Retry]);
        Given::User { user: random.pick(&named), action }
    };
    for _ in 0..random.between(1, 5) {
        let mut at = random.millis(0, until.as_millis() as u64);
        for _ in 0..random.between(1, 3) {
            let given = match random.below(if can_name_users { 20 } else { 10 }) {
                10.. => about_user(random),
                0..=3 => Given::Pause,
                4 | 5 => Given::Resume,
                6 => Given::Rate(Some(random.pick(&[5, 50, 1_000]) * 3600)),
                7 => Given::Rate(None),
                8 => Given::Probe,
                _ => Given::Garbage,
            };
            scenario.plan.push((at, Action::Command(given)));
            at += random.pick(&[Duration::ZERO, Duration::from_millis(300), Duration::from_secs(2)]);
        }
        if random.chance(50) {
            let slot = random.below(scenario.slots as u64) as usize;
            scenario.plan.push((at, Action::CrashWithin { slot, steps: random.between(1, 60) }));
        }
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// The users that a command can name.
fn named_users(scenario: &Scenario) -> Vec<usize> {
    let users = scenario.users.iter().enumerate();
    users.filter(|(_, user)| user.as_ref().is_some_and(|id| !id.is_empty())).map(|(n, _)| n).collect()
}

/// Adds commands that give up events, mostly of users whose events fail, and crashes soon after some of them.
pub(super) fn give_ups(scenario: &mut Scenario, random: &mut Random) {
    // A partition that parks no user cannot note what is given up.
    (scenario.config.parking.may_park, scenario.config.parking.users_max) = (true, 1_000_000);
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at);
    let named = named_users(scenario);
    if named.is_empty() {
        return;
    }
    if random.chance(50) {
        scenario.behaviour.failing_users = vec![scenario.users[named[0]].clone()];
    }
    for _ in 0..random.between(1, 5) {
        let at = random.millis(0, until.as_millis() as u64);
        let user = if random.chance(50) { named[0] } else { random.pick(&named) };
        if random.chance(50) {
            scenario.plan.push((at, Action::Append { user, many: random.between(2, 6), bytes: 20 }));
        }
        if random.chance(20) {
            let action = random.pick(&[UserAction::Hold, UserAction::Release, UserAction::Retry]);
            scenario.plan.push((at + random.millis(0, 500), Action::Command(Given::User { user, action })));
        }
        let at = at + random.millis(0, 1_500);
        scenario.plan.push((at, Action::GiveUp { user, percent: random.pick(&[0, 0, 50, 100]) }));
        if random.chance(50) {
            let slot = random.below(scenario.slots as u64) as usize;
            let action = Action::CrashWithin { slot, steps: random.between(1, 60) };
            scenario.plan.push((at + random.millis(0, 2_500), action));
        }
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Ends the tries of events in another way than with dead letters. An operator releases held users, or gives up their
/// events.
pub(super) fn policies(scenario: &mut Scenario, random: &mut Random) {
    let named = named_users(scenario);
    // Events without a user are held, too, but no command can name them. So nothing could release them.
    if random.chance(50) || named.len() < scenario.users.len() {
        scenario.config.tries.on_exhausted = OnExhausted::Drop;
        return;
    }
    scenario.config.tries.on_exhausted = OnExhausted::Hold;
    (scenario.config.parking.may_park, scenario.config.parking.users_max) = (true, 1_000_000);
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at) + Duration::from_secs(3);
    for _ in 0..random.below(6) {
        let at = random.millis(0, until.as_millis() as u64);
        let user = random.pick(&named);
        let of_user = |action| Action::Command(Given::User { user, action });
        let action = match random.below(4) {
            0 => of_user(UserAction::Retry),
            1 => Action::GiveUp { user, percent: random.pick(&[0, 50, 100]) },
            _ => of_user(UserAction::Release),
        };
        scenario.plan.push((at, action));
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Adds low rates while many events wait, and crashes soon after some of them: the next owner must know the rate. A few are
/// not as low, and one user has many events. So its runs have several events, as far as the destination takes them.
pub(super) fn rates(scenario: &mut Scenario, random: &mut Random) {
    let until = scenario.plan.last().map_or(Duration::from_secs(5), |(at, _)| *at);
    for _ in 0..random.between(1, 2) {
        let at = random.millis(0, until.as_millis() as u64);
        let has_long_runs = random.chance(30);
        let per_s = if has_long_runs { random.pick(&[40, 200]) } else { random.pick(&[1, 2, 4, 8]) };
        scenario.plan.push((at, Action::Command(Given::Rate(Some(per_s * 3600)))));
        if has_long_runs {
            let user = random.below(scenario.users.len() as u64) as usize;
            let later = at + random.millis(1_500, 3_000);
            scenario.plan.push((later, Action::Append { user, many: random.between(40, 120), bytes: 20 }));
        }
        for _ in 0..random.between(3, 12) {
            let user = random.below(scenario.users.len() as u64) as usize;
            let later = at + random.millis(0, 4_000);
            scenario.plan.push((later, Action::Append { user, many: random.between(1, 5), bytes: 20 }));
        }
        if random.chance(60) {
            let slot = random.below(scenario.slots as u64) as usize;
            let action = match random.chance(50) {
                true => Action::Stop { slot },
                false => Action::CrashWithin { slot, steps: random.between(1, 60) },
            };
            scenario.plan.push((at + random.millis(1_500, 4_000), action));
        }
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
}
