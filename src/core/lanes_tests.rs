//! Lanes against a model that keeps one plain list a user.

use super::*;
use crate::core::event::Record;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

fn event(offset: i64, user: &str) -> Event {
    Event { offset, record: Record::new(Some(user.as_bytes()), Some(b"payload"), &[], 0) }
}

#[derive(Debug, Clone)]
enum Step {
    Admit { user: u8 },
    Start { run: usize, probe: bool },
    Report { which: usize, delivered: usize, next: u8 },
    GivenUp { which: usize },
    Wait { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..6).prop_map(|user| Step::Admit { user }),
        3 => (1usize..5, any::<bool>()).prop_map(|(run, probe)| Step::Start { run, probe }),
        3 => (0usize..9, 0usize..5, 0u8..3).prop_map(|(which, delivered, next)| Step::Report { which, delivered, next }),
        1 => (0usize..9).prop_map(|which| Step::GivenUp { which }),
        1 => (0u64..30).prop_map(|ms| Step::Wait { ms }),
    ];
    proptest::collection::vec(step, 0..250)
}

/// What a user has in flight, in the model.
#[derive(Debug)]
struct Run {
    token: Token,
    user: u8,
    offsets: Vec<i64>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn a_users_attempts_are_in_order_and_one_at_a_time_and_nothing_is_lost(steps in steps()) {
        let mut lanes = Lanes::new(3);
        let mut unsettled: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
        let (mut flying, mut settling): (Vec<Run>, Vec<Run>) = (Vec::new(), Vec::new());
        let (mut now, mut offset, mut tries) = (Duration::ZERO, 0i64, BTreeMap::<i64, u32>::new());
        for step in steps {
            match step {
                Step::Admit { user } => {
                    lanes.admit(event(offset, &user.to_string()));
                    unsettled.entry(user).or_default().push(offset);
                    offset += 1;
                }
                Step::Start { run, probe } => {
                    let mut out = Vec::new();
                    let started = if probe {
                        lanes.next_preferred(4, |_| false, true, &mut out)
                    } else {
                        lanes.next(run, usize::MAX, &mut out)
                    };
                    let Some(started) = started else { prop_assert!(!lanes.has_ready()); continue };
                    let user: u8 = std::str::from_utf8(out[0].record.key().unwrap()).unwrap().parse().unwrap();
                    let busy = flying.iter().chain(&settling).any(|run| run.user == user);
                    prop_assert!(!busy, "two attempts of user {} at once", user);
                    let offsets: Vec<i64> = out.iter().map(|event| event.offset).collect();
                    prop_assert_eq!(&offsets[..], &unsettled[&user][..offsets.len()], "not the oldest of the user");
                    prop_assert!(offsets.len() <= run.max(1) || probe);
                    prop_assert_eq!(started.attempt, tries.get(&offsets[0]).copied().unwrap_or(0) + 1);
                    flying.push(Run { token: started.token, user, offsets });
                }
                Step::Report { which, delivered, next } => {
                    if flying.is_empty() { continue }
                    let mut run = flying.remove(which % flying.len());
                    let delivered = delivered.min(run.offsets.len());
                    let mut seen = Vec::new();
                    let give_up = next == 0;
                    lanes.settle(run.token, delivered, |event| seen.push(event.offset), |head, history| {
                        history.failures += 1;
                        assert_eq!(head.offset, run.offsets[delivered]);
                        *tries.entry(head.offset).or_default() += 1;
                        if give_up { Next::GiveUp } else { Next::Retry { at: now + Duration::from_millis(u64::from(next) * 7) } }
                    });
                    prop_assert_eq!(&seen[..], &run.offsets[..delivered]);
                    unsettled.get_mut(&run.user).unwrap().drain(..delivered);
                    if delivered < run.offsets.len() && give_up {
                        run.offsets.drain(..delivered);
                        settling.push(run);
                    }
                }
                Step::GivenUp { which } => {
                    if settling.is_empty() { continue }
                    let run = settling.remove(which % settling.len());
                    prop_assert_eq!(lanes.settling(run.token).0.offset, run.offsets[0]);
                    lanes.given_up(run.token, |event| assert_eq!(event.offset, run.offsets[0]));
                    prop_assert_eq!(unsettled.get_mut(&run.user).unwrap().remove(0), run.offsets[0]);
                }
                Step::Wait { ms } => {
                    now += Duration::from_millis(ms);
                    lanes.wake(now);
                    prop_assert!(lanes.next_wakeup().is_none_or(|at| at > now));
                }
            }
            prop_assert_eq!(lanes.events(), unsettled.values().map(Vec::len).sum::<usize>());
            prop_assert_eq!(lanes.users(), unsettled.values().filter(|events| !events.is_empty()).count());
            let failing = unsettled.values().filter_map(|events| events.first()).filter(|head| tries.contains_key(head));
            prop_assert_eq!(lanes.stuck.len(), failing.count(), "every lane whose head failed is watched, once");
            prop_assert_eq!(lanes.in_flight_events(), flying.iter().map(|run| run.offsets.len()).sum::<usize>());
        }
        // Nothing is lost: when everything that stands is let go, all comes out, in order.
        for run in flying {
            lanes.settle(run.token, run.offsets.len(), |_| (), |_, _| unreachable!());
            unsettled.get_mut(&run.user).unwrap().drain(..run.offsets.len());
        }
        for run in settling {
            lanes.given_up(run.token, |_| ());
            unsettled.get_mut(&run.user).unwrap().remove(0);
        }
        lanes.wake(Duration::MAX);
        let mut out = Vec::new();
        while let Some(started) = lanes.next(3, usize::MAX, &mut out) {
            lanes.settle(started.token, started.events.len(), |event| {
                let user: u8 = std::str::from_utf8(event.record.key().unwrap()).unwrap().parse().unwrap();
                assert_eq!(unsettled.get_mut(&user).unwrap().remove(0), event.offset);
            }, |_, _| unreachable!());
        }
        prop_assert!(unsettled.values().all(Vec::is_empty), "lost: {:?}", unsettled);
        prop_assert_eq!((lanes.events(), lanes.places.len(), lanes.stuck.len()), (0, 0, 0), "an idle lane costs nothing");
    }
}

#[test]
fn the_memory_of_idle_lanes_is_used_again_however_many_users_there_were() {
    let mut lanes = Lanes::new(10);
    let mut out = Vec::new();
    for offset in 0..100_000 {
        lanes.admit(event(offset, &offset.to_string()));
        let started = lanes.next(10, usize::MAX, &mut out).unwrap();
        lanes.settle(started.token, 1, |_| (), |_, _| unreachable!());
        out.clear();
    }
    assert_eq!((lanes.lanes.len(), lanes.ready.len(), lanes.timers.len()), (1, 0, 0));
}

#[test]
fn the_next_event_after_one_that_was_given_up_says_so_until_it_is_settled() {
    let mut lanes = Lanes::new(10);
    let mut out = Vec::new();
    for offset in 0..3 {
        lanes.admit(event(offset, "user-1"));
    }
    let first = lanes.next(1, usize::MAX, &mut out).unwrap();
    assert!(!first.gap);
    lanes.settle(first.token, 0, |_| (), |_, _| Next::GiveUp);
    assert_eq!(lanes.next(1, usize::MAX, &mut out), None, "nothing starts while the dead letter is written");
    lanes.given_up(first.token, |_| ());
    let second = lanes.next(1, usize::MAX, &mut out).unwrap();
    assert!(second.gap);
    lanes.settle(second.token, 0, |_| (), |_, _| Next::Retry { at: Duration::ZERO });
    lanes.wake(Duration::ZERO);
    let again = lanes.next(1, usize::MAX, &mut out).unwrap();
    assert!(again.gap && again.attempt == 1, "{again:?}");
    lanes.settle(again.token, 1, |_| (), |_, _| unreachable!());
    assert!(!lanes.next(1, usize::MAX, &mut out).unwrap().gap);
}

#[test]
fn a_lane_whose_head_keeps_failing_is_shown_once_a_minute_until_it_is_settled() {
    let mut lanes = Lanes::new(10);
    let (mut out, at) = (Vec::new(), Duration::from_secs);
    lanes.admit(event(0, "stuck"));
    lanes.admit(event(1, "stuck"));
    lanes.admit(event(2, "well"));
    let shown = |lanes: &mut Lanes, now| {
        let mut shown = Vec::new();
        lanes.look_at_stuck(10, at(now), |event, history, _| shown.push((event.offset, history.failures)));
        shown
    };
    let mut fail = |lanes: &mut Lanes, now| {
        lanes.wake(at(now));
        let started = lanes.next(1, usize::MAX, &mut out).unwrap();
        lanes.settle(
            started.token,
            0,
            |_| (),
            |_, history| {
                if history.failures == 0 {
                    history.first_failure = at(now);
                }
                history.failures += 1;
                Next::Retry { at: at(now + 5) }
            },
        );
    };
    fail(&mut lanes, 7);
    let well = lanes.next(1, usize::MAX, &mut Vec::new()).unwrap();
    lanes.settle(well.token, 1, |_| (), |_, _| unreachable!());
    fail(&mut lanes, 12);
    assert_eq!(shown(&mut lanes, 66), []);
    assert_eq!(shown(&mut lanes, 67), [(0, 2)], "a minute after the first failure, not after the last");
    assert_eq!(shown(&mut lanes, 126), []);
    assert_eq!(shown(&mut lanes, 127), [(0, 2)]);
    lanes.wake(at(128));
    let started = lanes.next(1, usize::MAX, &mut Vec::new()).unwrap();
    lanes.settle(started.token, 1, |_| (), |_, _| unreachable!());
    assert_eq!(shown(&mut lanes, 1_000), [], "the next event has not failed");
}

#[test]
#[should_panic(expected = "order of a lane")]
fn an_event_that_is_older_than_its_lane_stops_everything() {
    let mut lanes = Lanes::new(10);
    lanes.admit(event(5, "user-1"));
    lanes.admit(event(4, "user-1"));
}

#[test]
#[should_panic(expected = "reported once")]
fn a_run_that_is_reported_twice_stops_everything() {
    let mut lanes = Lanes::new(10);
    let mut out = Vec::new();
    lanes.admit(event(1, "user-1"));
    lanes.admit(event(2, "user-1"));
    let first = lanes.next(1, usize::MAX, &mut out).unwrap();
    lanes.settle(first.token, 1, |_| (), |_, _| unreachable!());
    lanes.next(1, usize::MAX, &mut out).unwrap();
    lanes.settle(first.token, 1, |_| (), |_, _| unreachable!());
}

proptest! {
    #[test]
    fn gaps_are_bounded_and_never_hold_who_was_forgotten(
        max in 1usize..4,
        steps in proptest::collection::vec((any::<bool>(), 0u8..6), 0..80),
    ) {
        let mut gaps = Gaps::new(max);
        let mut model = BTreeSet::new();
        for (remember, user) in steps {
            if remember {
                model.insert(user);
                gaps.remember(Some(&[user]));
                prop_assert!(gaps.holds(Some(&[user])), "the newest is remembered");
            } else {
                model.remove(&user);
                gaps.forget(Some(&[user]));
            }
            prop_assert!(gaps.order.len() <= 2 * max && gaps.users.len() <= max);
            let held = (0..6).filter(|user| gaps.holds(Some(&[*user]))).count();
            prop_assert!((0..6).all(|user| !gaps.holds(Some(&[user])) || model.contains(&user)));
            prop_assert!(held == gaps.users.len(), "every one is found");
        }
    }
}

#[test]
fn the_gap_that_is_oldest_is_forgotten_first() {
    let mut gaps = Gaps::new(2);
    for user in [b"a", b"b", b"c"] {
        gaps.remember(Some(user));
    }
    assert_eq!([b"a", b"b", b"c"].map(|user| gaps.holds(Some(user))), [false, true, true]);
}

#[test]
fn gaps_of_users_with_long_ids_are_bounded_in_bytes() {
    let mut gaps = Gaps::new(100);
    for number in 0..1_000 {
        let user = format!("{number:01024}");
        gaps.remember(Some(user.as_bytes()));
        assert!(gaps.holds(Some(user.as_bytes())), "the newest is remembered");
        assert!(gaps.bytes <= 2 * 100 * GAP_BYTES_MAX, "{} bytes", gaps.bytes);
        assert_eq!(gaps.bytes, gaps.order.len() * (1024 + GAP_OVERHEAD_BYTES));
    }
    assert_eq!(gaps.users.len(), 23);
    gaps.remember(None);
    let users: Vec<_> = gaps.users.keys().cloned().collect();
    users.iter().for_each(|user| gaps.forget(user.as_deref()));
    assert_eq!((gaps.bytes, gaps.order.len()), (0, 0));
}
