//! How much of the window slow users keep.

use super::*;
use crate::core::lanes::LaneView;

/// A model with a window of so many events, and of that many events of user 1 in bytes.
fn with_window(users: &[usize], window_events: usize, window_of_user_1: usize) -> Model {
    let mut model = fixed(users, window_events, &PartitionState::at(0));
    model.sizes.window_bytes = event(0, 1).record.window_bytes() * window_of_user_1;
    model.owner = Owner::new(&model.stored, Sizes { backlog: 100, ..model.sizes }, model.now);
    model.owner.read(&model.log, model.log.len());
    model
}

/// The first attempts of so many users are in flight for so long.
fn start(model: &mut Model, users: usize, ms: u64) {
    for _ in 0..users {
        model.start().unwrap();
    }
    model.step(Step::Wait { ms }).unwrap();
}

fn events_of(model: &Model, user: usize) -> usize {
    let lanes = &model.owner.lanes;
    lanes.find(key(user).as_deref()).map_or(0, |id| lanes.view(id).events)
}

#[test]
fn a_slow_user_in_flight_keeps_no_more_than_an_eighth_of_the_window() {
    let mut model = with_window(&[1; 20], 1_000, 24);
    start(&mut model, 1, 3_000);
    model.step(Step::Relieve { is_slow: false }).unwrap();
    assert_eq!((events_of(&model, 1), model.owner.parked.users()), (20, 0), "its slowness is not its own");
    model.step(Step::Wait { ms: 50 }).unwrap();
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert_eq!(events_of(&model, 1), 3);
    model.log.push(2);
    model.owner.read(&model.log, 20);
    assert_eq!(events_of(&model, 2), 1, "reading continues");
    model.drain().unwrap();
}

#[test]
fn many_slow_users_in_flight_keep_their_runs() {
    let users: Vec<usize> = (0..40).map(|place| 1 + place % 5).collect();
    let mut model = with_window(&users, 70, 10_000);
    start(&mut model, 5, 3_000);
    model.step(Step::Relieve { is_slow: true }).unwrap();
    // Some are cut first, and then there is room enough.
    let events: Vec<usize> = (1..6).map(|user| events_of(&model, user)).collect();
    assert!(events.contains(&1) && !model.owner.window.is_above_three_eighths(), "{events:?}");
    model.drain().unwrap();
}

#[test]
fn users_below_their_threshold_whose_attempts_are_quick_are_not_parked_however_many_events_they_have() {
    let users: Vec<usize> = (0..60).map(|place| 1 + place % 5).collect();
    let mut model = with_window(&users, 100, 10_000);
    start(&mut model, 5, 3_000);
    let blocked = Blocked { read: Some(1), swept: None };
    // Only its pace, which is less than its events in a second, is known of each of them.
    let by_pace = |lane: &LaneView<'_>| lane.events_per_s.is_some();
    let owner = &mut model.owner;
    assert!(owner.window.is_half_full());
    assert_eq!(owner.parked.relieve(blocked, by_pace, memory!(*owner), model.now), 0);
    assert_eq!((1..6).map(|user| events_of(&model, user)).collect::<Vec<_>>(), [12; 5]);
    model.drain().unwrap();
}

#[test]
fn an_event_that_hangs_leaves_the_others_their_half_whatever_its_size() {
    // The window has room for 9,000 bytes, and half of it for 4,500.
    for bytes in [6_000, 8_500, 12_000] {
        let mut model = fixed(&[1, 2, 2, 2], 1_000, &PartitionState::at(0));
        model.owner.window.resize(1_000, 9_000);
        let owner = &mut model.owner;
        owner.parked.read(large_event(0, 1, bytes), memory!(*owner)).unwrap();
        start(&mut model, 1, 3_000);
        for offset in 1..3 {
            let next = large_event(offset, 2, 1_500);
            let owner = &mut model.owner;
            if let Err(NotAdmitted::NoRoom(next)) = owner.parked.read(next, memory!(*owner)) {
                let blocked = Blocked { read: Some(next.record.window_bytes()), swept: None };
                owner.parked.relieve(blocked, |_| true, memory!(*owner), model.now);
                owner.parked.read(next, memory!(*owner)).expect("reading continues");
            }
            // It is delivered before the next one is read.
            model.start().unwrap();
            model.finish(1, 1, 9);
            model.step(Step::Wait { ms: 50 }).unwrap();
        }
    }
}

#[test]
fn room_is_made_down_to_three_eighths_and_a_look_that_frees_little_is_not_repeated_at_once() {
    let users: Vec<usize> = (0..70).map(|place| 1 + place / 2 % 5).collect();
    let mut model = with_failing_heads(with_window(&users, 100, 10_000), 5, Duration::from_secs(60));
    assert!(model.owner.window.is_half_full());
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert!(!model.owner.window.is_above_three_eighths(), "{} events", model.owner.window.events());
    let mut model = with_failing_heads(
        with_window(&[[1; 2].as_slice(), &[2; 60]].concat(), 100, 10_000),
        1,
        Duration::from_secs(60),
    );
    model.step(Step::Relieve { is_slow: false }).unwrap();
    assert_eq!(events_of(&model, 1), 1, "one of a hundred events was freed");
    assert_eq!(model.owner.parked.next_wakeup(model.now), Some(model.now + Duration::from_millis(50)));
}

#[test]
fn under_pressure_the_sweep_brings_a_slow_user_few_events() {
    let mut model = with_window(&[1; 60], 100, 10_000);
    start(&mut model, 1, 3_000);
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert_eq!(events_of(&model, 1), 12);
    model.log.extend([2; 60]);
    model.owner.read(&model.log, 200);
    let before = model.owner.parked.events_read_again();
    for _ in 0..5 {
        model.step(Step::Wait { ms: 50 }).unwrap();
        model.step(Step::Relieve { is_slow: true }).unwrap();
        assert!(model.owner.window.is_half_full());
        while model.owner.sweep(&model.log, 60, model.now) {}
        assert_eq!(events_of(&model, 1), 2, "its run, and the next one");
    }
    assert_eq!(model.owner.parked.events_read_again(), before, "nothing is read again and again");
    model.drain().unwrap();
}

#[test]
fn parked_slow_users_get_no_event_again_and_again_because_they_are_cut() {
    // Four users are slow, and have a long backlog. A fifth one keeps a few events in memory.
    let users: Vec<usize> = (0..400).map(|place| 1 + place % 4).collect();
    let mut model = with_window(&users, 100, 10_000);
    start(&mut model, 4, 3_000);
    let is_slow = |lane: &LaneView<'_>| lane.head.record.key() != key(5).as_deref();
    let make_room = |model: &mut Model| {
        let blocked = model.owner.blocked();
        model.owner.parked.relieve(blocked, is_slow, memory!(model.owner), model.now);
    };
    make_room(&mut model);
    model.log.extend([5; 4]);
    model.owner.read(&model.log, 400);
    model.owner.read(&model.log, 400);
    assert_eq!(events_of(&model, 5), 4);
    let mut read_again = Vec::new();
    for _ in 0..20 {
        while model.owner.sweep(&model.log, 400, model.now) {}
        make_room(&mut model);
        read_again.push(model.owner.parked.events_read_again());
    }
    // The lanes were filled, and perhaps cut once.
    assert_eq!(read_again[1], read_again[19], "{read_again:?}");
    assert!((1..5).all(|user| events_of(&model, user) >= 2));
    model.drain().unwrap();
}

#[test]
fn under_pressure_the_next_event_of_a_slow_user_costs_a_small_fetch() {
    let mut model = with_window(&[1; 60], 100, 50_000);
    start(&mut model, 1, 3_000);
    model.log.extend([2; 60]);
    model.owner.read(&model.log, 200);
    model.step(Step::Relieve { is_slow: true }).unwrap();
    assert_eq!(events_of(&model, 1), 2);
    model.owner.read(&model.log, 200);
    assert!(model.owner.window.is_half_full());
    model.finish(0, 1, 9);
    // The event is not found for a while. Each fetch reads only offsets of other users.
    let mut sizes = Vec::new();
    for _ in 0..7 {
        let request = model.owner.parked.next_sweep(memory!(model.owner), model.now).unwrap();
        sizes.push(request.max_bytes / 1024);
        model.owner.parked.swept(request.from + 1, memory!(model.owner), model.now);
    }
    assert_eq!(sizes, [32, 64, 128, 256, 512, 1024, 1024]);
}

#[test]
fn users_whose_dead_letter_cannot_be_written_keep_their_next_event() {
    let users: Vec<usize> = (0..60).map(|place| 1 + place % 5).collect();
    let mut model = with_window(&users, 100, 10_000);
    start(&mut model, 5, 0);
    for _ in 0..5 {
        model.finish(0, 0, 0);
    }
    assert_eq!(model.owner.giving_up.len(), 5);
    model.step(Step::Wait { ms: 600 }).unwrap();
    model.step(Step::Relieve { is_slow: false }).unwrap();
    assert!(!model.owner.window.is_above_three_eighths(), "{} events", model.owner.window.events());
    model.drain().unwrap();
}
