//! A full window in which every user has failed, while the breaker is open, or in which every user is slow.

use super::super::look_ahead::{HIDDEN_AFTER, PUT_OFF, SLOW_AFTER, SlowLookAhead};
use super::*;
use crate::core::breaker::{ProbeRank, ProbeRanks};

const OUTAGE: Moment = Duration::from_secs(7);

/// A moment at which the failed heads below may be tried again.
const DUE: Moment = Duration::from_secs(1);

/// Asks for room, and returns the number of users that were parked for it.
fn look_ahead(model: &mut Model, outage: Moment, users_max: usize) -> usize {
    let blocked = model.owner.blocked();
    model.owner.parked.look_ahead((outage, users_max), blocked, memory!(model.owner), model.now)
}

/// Four users have failed, and all may be tried again. What else is in the log waits for room.
fn full_of_failing_users(log: &[usize], window_events: usize) -> Model {
    let mut model = with_failing_heads(fixed(log, window_events, &PartitionState::at(0)), 4, DUE);
    // The destination gets few attempts, so most of the lanes are ready and wait for one.
    model.now = DUE;
    model.owner.wake(DUE);
    model
}

fn users_in_memory(model: &Model) -> BTreeSet<UserKey> {
    model.owner.lanes.each_lane().map(|id| model.owner.lanes.view(id).head.record.key().map(Into::into)).collect()
}

#[test]
fn users_with_several_events_keep_the_next_one_and_the_reader_finds_others() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4, 1, 2, 3, 4, 5], 8);
    assert!(!users_in_memory(&model).contains(&key(5)), "the window is full");
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 4);
    assert_eq!((model.owner.window.events(), model.owner.lanes.users()), (4, 4));
    model.owner.read(&model.log, 10);
    assert!(users_in_memory(&model).contains(&key(5)));
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn the_user_that_is_probed_last_leaves_memory_and_is_put_off() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4, 5], 4);
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 1);
    assert_eq!(users_in_memory(&model), [1, 2, 3].map(key).into());
    assert_eq!(model.owner.lanes.each_user().count(), 4, "it still counts as a user that waits");
    model.owner.read(&model.log, 10);
    assert!(users_in_memory(&model).contains(&key(5)));
    let until = DUE + PUT_OFF;
    assert_eq!(model.owner.parked.next_wakeup(model.now), Some(until));
    model.now = until - Duration::from_millis(1);
    model.owner.wake(model.now);
    assert!(!model.owner.sweep(&model.log, 10, model.now), "nothing is read for it before");
    model.check_state().unwrap();
    model.drain().unwrap();
    assert_eq!(model.owner.lanes.each_user().count(), 0);
}

#[test]
fn a_user_that_has_made_room_and_is_held_does_not_count_as_one_that_waits() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4, 5], 4);
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 1);
    assert_eq!(users_in_memory(&model), [1, 2, 3].map(key).into());
    model.step(Step::Hold { user: 4 }).unwrap();
    assert_eq!(model.owner.lanes.each_user().count(), 3);
    model.drain().unwrap();
}

#[test]
fn no_user_makes_room_while_one_has_not_failed_yet() {
    let log = [1, 2, 3, 4, 5, 5];
    let mut model = with_failing_heads(fixed(&log, 5, &PartitionState::at(0)), 4, DUE);
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 0, "user 5 was not tried");
    model.start().unwrap();
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 0, "its attempt is in flight");
    model.finish(0, 0, 7);
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 2);
}

#[test]
fn in_a_long_outage_users_make_room_that_were_not_probed_yet() {
    let log = [1, 2, 3, 4, 5, 6, 6, 0];
    let mut model = with_failing_heads(fixed(&log, 7, &PartitionState::at(0)), 4, DUE);
    let (no_probe, rank) = (ProbeRanks::new(|_| false), ProbeRank::Newcomer);
    assert!(model.owner.lanes.next_probe(no_probe, |_| rank, &mut Vec::new()).is_none());
    let outage = model.now;
    assert_eq!(look_ahead(&mut model, outage, 10), 0, "the outage has just begun");
    model.now += HIDDEN_AFTER;
    model.owner.wake(model.now);
    assert!(look_ahead(&mut model, outage, 10) > 0);
    model.owner.read(&model.log, 1);
    assert!(users_in_memory(&model).contains(&key(0)), "the user behind them is found");
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn no_user_makes_room_while_the_window_has_some() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4], 5);
    assert_eq!(look_ahead(&mut model, OUTAGE, 10), 0);
}

#[test]
fn in_each_outage_a_bounded_number_of_users_makes_room() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4, 1, 2, 3, 4, 1, 5], 8);
    assert_eq!(look_ahead(&mut model, OUTAGE, 1), 1);
    model.owner.read(&model.log, 10);
    assert_eq!(model.owner.window.events(), 8, "the window is full again");
    assert_eq!(look_ahead(&mut model, OUTAGE, 1), 0);
    assert_eq!(look_ahead(&mut model, OUTAGE + Duration::from_secs(60), 1), 1, "the count begins anew");
    model.check_state().unwrap();
    model.drain().unwrap();
}

/// Tries every lane that is ready, and all fail.
fn fail_all(model: &mut Model) {
    for _ in 0..model.owner.lanes.users() {
        model.start().unwrap();
    }
    while !model.owner.in_flight.is_empty() {
        model.finish(0, 0, 7);
    }
}

#[test]
fn users_that_are_due_wait_until_one_in_memory_was_tried() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4, 5, 0], 4);
    for _ in 0..2 {
        assert_eq!(look_ahead(&mut model, OUTAGE, 3), 1);
        model.owner.read(&model.log, 10);
        fail_all(&mut model);
        model.now += Duration::from_secs(2);
        model.owner.wake(model.now);
    }
    assert_eq!(look_ahead(&mut model, OUTAGE, 3), 1);
    let cold: BTreeSet<UserKey> = model.owner.parked.users.keys().cloned().collect();
    assert_eq!((cold.len(), model.owner.lanes.users()), (3, 3));
    model.now += PUT_OFF;
    model.owner.wake(model.now);
    assert!(!model.owner.sweep(&model.log, 10, model.now), "the window has room for two of them");
    let in_memory = users_in_memory(&model);
    for _ in 0..100 {
        assert_eq!(look_ahead(&mut model, OUTAGE, 3), 0);
        model.owner.wake(model.now);
        assert!(!model.owner.sweep(&model.log, 10, model.now), "reading again would be for nothing");
    }
    assert_eq!(users_in_memory(&model), in_memory, "the users that came back were not tried yet");
    fail_all(&mut model);
    assert_eq!(look_ahead(&mut model, OUTAGE, 3), 0);
    assert!(model.owner.sweep(&model.log, 10, model.now));
    let came_back = &cold - &in_memory;
    assert!(came_back.len() == 1 && came_back.is_subset(&users_in_memory(&model)), "another user takes its place");
    model.check_state().unwrap();
    model.drain().unwrap();
}

/// The destination has been slow for every user `since` then. Asks for room, and returns the number of users that were
/// parked for it.
fn look_ahead_of_slow(model: &mut Model, since: Moment, users_max: usize) -> usize {
    let slow = SlowLookAhead { since, counted_since: since, users_max, newcomers: false };
    look_ahead_in(model, slow, true)
}

fn look_ahead_in(model: &mut Model, slow: SlowLookAhead, is_slow: bool) -> usize {
    let blocked = model.owner.blocked();
    let may = model.owner.parked.may_look_ahead_of_slow(slow, blocked, &model.owner.window, model.now);
    if !may {
        return 0;
    }
    model.owner.parked.look_ahead_of_slow(slow, blocked, |_| is_slow, memory!(model.owner), model.now)
}

/// The attempts of four users are in flight until now, and fill the window with those that wait after them.
fn full_of_slow_users(log: &[usize], window_events: usize) -> Model {
    let mut model = fixed(log, window_events, &PartitionState::at(0));
    model.owner.read(&model.log, model.log.len());
    for _ in 0..4 {
        model.start().unwrap();
    }
    model.now = SLOW_AFTER;
    model.owner.wake(model.now);
    model
}

#[test]
fn users_that_are_slow_for_long_make_room_for_those_behind_them() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 1, 2, 3, 4, 5], 8);
    assert_eq!(look_ahead_of_slow(&mut model, Duration::from_millis(1), 10), 0, "not for long enough");
    assert!(look_ahead_of_slow(&mut model, Moment::ZERO, 10) > 0);
    model.owner.read(&model.log, 10);
    assert!(users_in_memory(&model).contains(&key(5)));
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn no_slow_user_makes_room_while_reading_continues() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 1, 2, 3], 8);
    assert!(model.owner.window.is_half_full());
    assert_eq!(look_ahead_of_slow(&mut model, Moment::ZERO, 10), 0);
}

#[test]
fn a_bounded_number_of_slow_users_makes_room_until_one_is_served_quickly() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5, 5, 5, 5], 12);
    for parked in [1, 0, 0] {
        assert_eq!(look_ahead_of_slow(&mut model, Moment::ZERO, 1), parked);
        model.owner.read(&model.log, 10);
        model.now += Duration::from_millis(50);
        model.owner.wake(model.now);
    }
    assert_eq!(model.owner.window.events(), 12, "the window is full again");
    assert!(!model.owner.parked.take_list_is_full(), "the list has room");
    let quick_at = model.now;
    model.now += SLOW_AFTER;
    model.owner.wake(model.now);
    assert_eq!(look_ahead_of_slow(&mut model, quick_at, 1), 1, "the count begins anew");
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn an_outage_leaves_its_number_of_users_to_a_slow_time_that_began_before_it() {
    let mut model = full_of_failing_users(&[1, 2, 3, 4, 1, 2, 3, 4, 1, 5], 8);
    assert_eq!(look_ahead(&mut model, OUTAGE, 1), 1);
    model.owner.read(&model.log, 10);
    assert_eq!((model.owner.window.events(), look_ahead(&mut model, OUTAGE, 1)), (8, 0));
    // The breaker closes, and every attempt is slow.
    model.now = OUTAGE + SLOW_AFTER;
    model.owner.wake(model.now);
    assert_eq!(look_ahead_of_slow(&mut model, DUE, 1), 1);
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn a_slow_user_that_has_left_the_list_does_not_count_any_more() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5, 5, 5, 5], 12);
    assert_eq!(look_ahead_of_slow(&mut model, Moment::ZERO, 1), 1);
    // All events of the parked user are delivered, while the attempts of the others take long.
    let parked: UserKey = model.owner.parked.users.keys().next().unwrap().clone();
    for _ in 0..20 {
        let is_of_parked = |events: &[Event]| events[0].record.key() == parked.as_deref();
        if let Some(place) = model.owner.in_flight.iter().position(|(_, events)| is_of_parked(events)) {
            model.finish(place, 1, 9);
        }
        model.owner.sweep(&model.log, 20, model.now);
        model.start().unwrap();
        model.step(Step::Wait { ms: 1_000 }).unwrap();
        model.step(Step::Tick { may_park: false }).unwrap();
    }
    assert_eq!((model.owner.parked.users(), model.owner.in_flight.len()), (0, 3));
    model.owner.read(&model.log, 20);
    assert_eq!(model.owner.window.events(), 12, "the window is full again");
    assert_eq!(look_ahead_of_slow(&mut model, Moment::ZERO, 1), 1);
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn newcomers_that_wait_for_slow_attempts_make_room_the_longest_first() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 5, 5, 5, 5, 6, 6, 0, 0, 0, 6], 13);
    model.owner.lanes.sort_ready(10, |_| Standing::Newcomer);
    let events = |model: &Model| {
        let of = |user| model.owner.lanes.find(key(user).as_deref()).map_or(0, |id| model.owner.lanes.view(id).events);
        [of(5), of(6), of(0)]
    };
    let slow = |since, users_max, newcomers| SlowLookAhead { since, counted_since: Moment::ZERO, users_max, newcomers };
    let since = model.now;
    assert_eq!(look_ahead_in(&mut model, slow(since, 10, true), false), 0, "not for long enough");
    model.now += SLOW_AFTER;
    model.owner.wake(model.now);
    assert_eq!(
        look_ahead_in(&mut model, slow(since, 10, false), false),
        0,
        "no attempt waits for a slot of another user"
    );
    model.now += Duration::from_millis(50);
    assert_eq!(look_ahead_in(&mut model, slow(since, 1, true), false), 1);
    assert_eq!(events(&model), [1, 2, 3]);
    model.owner.read(&model.log, 1);
    assert_eq!(events(&model), [1, 3, 3], "reading continues");
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn newcomers_with_one_event_leave_memory_until_the_reader_has_room() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 5, 6, 0, 0], 6);
    model.owner.lanes.sort_ready(10, |_| Standing::Newcomer);
    let since = model.now;
    model.now += SLOW_AFTER;
    model.owner.wake(model.now);
    let slow = SlowLookAhead { since, counted_since: Moment::ZERO, users_max: 10, newcomers: true };
    assert_eq!(look_ahead_in(&mut model, slow, false), 2);
    assert_eq!(users_in_memory(&model), [1, 2, 3, 4].map(key).into(), "the attempts of the others are in flight");
    model.owner.read(&model.log, 1);
    assert!(users_in_memory(&model).contains(&key(0)), "the user behind them is found");
    model.check_state().unwrap();
    model.drain().unwrap();
}

#[test]
fn newcomers_wait_since_they_were_first_seen_to_unless_a_while_ago() {
    let mut model = full_of_slow_users(&[1, 2, 3, 4, 5, 5, 5, 5, 6], 8);
    let (blocked, began) = (model.owner.blocked(), model.now);
    let mut since = |after: u64| {
        let owner = &mut model.owner;
        owner.parked.newcomers_wait_since(blocked, &owner.window, began + Duration::from_secs(after))
    };
    assert_eq!([since(0), since(4), since(8)], [Some(began); 3]);
    assert_eq!(since(13), Some(began + Duration::from_secs(13)), "they were not seen for 5 s");
    let owner = &mut model.owner;
    assert_eq!(owner.parked.newcomers_wait_since(Blocked::default(), &Window::new(100, 10_000), began), None);
}
