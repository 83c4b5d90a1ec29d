//! Compares lanes with a model that keeps one plain list for each user.

use super::*;
use crate::core::backoff::Backoff;
use crate::core::breaker::{Breaker, Gate};
use crate::core::event::Record;
use crate::core::tries::{GiveUpReason, OnExhausted, TryPolicy};
use crate::core::verdict::{Failed, Verdict};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const GIVE_UP: Decision = Decision::GiveUp(GiveUpReason::Exhausted);

fn event(offset: i64, user: &str) -> Event {
    Event { offset, record: Record::new(Some(user.as_bytes()), Some(b"payload"), &[], 0) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Any,
    Probe,
    Of(Standing),
}

#[derive(Debug, Clone)]
enum Step {
    Admit { user: u8 },
    Start { run: usize, how: Start },
    Sort { lanes_max: usize, standings: u8 },
    Report { which: usize, delivered: usize, next: u8 },
    GivenUp { which: usize },
    Wait { ms: u64 },
}

fn start() -> impl Strategy<Value = Start> {
    let of = (0..Standing::ALL.len()).prop_map(|standing| Start::Of(Standing::ALL[standing]));
    prop_oneof![Just(Start::Any), Just(Start::Probe), of]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..6).prop_map(|user| Step::Admit { user }),
        3 => (1usize..5, start()).prop_map(|(run, how)| Step::Start { run, how }),
        2 => (1usize..5, any::<u8>()).prop_map(|(lanes_max, standings)| Step::Sort { lanes_max, standings }),
        3 => (0usize..9, 0usize..5, 0u8..3).prop_map(|(which, delivered, next)| Step::Report { which, delivered, next }),
        1 => (0usize..9).prop_map(|which| Step::GivenUp { which }),
        1 => (0u64..30).prop_map(|ms| Step::Wait { ms }),
    ];
    proptest::collection::vec(step, 0..250)
}

/// A run of one user that is in flight, in the model.
#[derive(Debug)]
struct ModelRun {
    token: Token,
    user: u8,
    offsets: Vec<i64>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn a_users_attempts_are_in_order_and_one_at_a_time_and_nothing_is_lost(steps in steps()) {
        let mut lanes = Lanes::new(3, 0);
        let mut unsettled: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
        let (mut in_flight, mut giving_up): (Vec<ModelRun>, Vec<ModelRun>) = (Vec::new(), Vec::new());
        let (mut now, mut offset, mut tries) = (Duration::ZERO, 0i64, BTreeMap::<i64, u32>::new());
        for step in steps {
            match step {
                Step::Admit { user } => {
                    lanes.admit(event(offset, &user.to_string()));
                    unsettled.entry(user).or_default().push(offset);
                    offset += 1;
                }
                Step::Sort { lanes_max, standings } => {
                    let is_sorted = lanes.sort_ready(lanes_max, |user| Standing::ALL[((user >> 7) ^ u64::from(standings)) as usize % 3]);
                    let has_sorted = lanes.ready_standings().next().is_some();
                    prop_assert!(!is_sorted || has_sorted == lanes.has_ready());
                }
                Step::Start { run, how } => {
                    let mut out = Vec::new();
                    let is_ready = match how {
                        Start::Any | Start::Probe => lanes.has_ready(),
                        Start::Of(standing) => lanes.ready_standings().any(|ready| ready == standing),
                    };
                    let started = match how {
                        Start::Any => lanes.next(run, usize::MAX, &mut out),
                        Start::Probe => {
                            let rank = |user| ProbeRank::ALL[user as usize % ProbeRank::ALL.len()];
                            lanes.next_probe(ProbeRanks::new(|_| true), rank, &mut out)
                        }
                        Start::Of(standing) => lanes.next_of(standing, run, usize::MAX, &mut out),
                    };
                    prop_assert_eq!(started.is_some(), is_ready);
                    let Some(started) = started else { continue };
                    let user: u8 = std::str::from_utf8(out[0].record.key().unwrap()).unwrap().parse().unwrap();
                    let busy = in_flight.iter().chain(&giving_up).any(|run| run.user == user);
                    prop_assert!(!busy, "two attempts of user {} at once", user);
                    let offsets: Vec<i64> = out.iter().map(|event| event.offset).collect();
                    prop_assert_eq!(&offsets[..], &unsettled[&user][..offsets.len()], "not the oldest of the user");
                    prop_assert!(offsets.len() <= run && (offsets.len() == 1 || how != Start::Probe));
                    prop_assert_eq!(started.attempt, tries.get(&offsets[0]).copied().unwrap_or(0) + 1);
                    in_flight.push(ModelRun { token: started.token, user, offsets });
                }
                Step::Report { which, delivered, next } => {
                    if in_flight.is_empty() { continue }
                    let mut run = in_flight.remove(which % in_flight.len());
                    let delivered = delivered.min(run.offsets.len());
                    let mut seen = Vec::new();
                    let give_up = next == 0;
                    lanes.settle(run.token, delivered, |event| seen.push(event.offset), |head, history| {
                        history.add_failure(now, now);
                        assert_eq!(head.offset, run.offsets[delivered]);
                        *tries.entry(head.offset).or_default() += 1;
                        if give_up { GIVE_UP } else { Decision::Retry { at: now + Duration::from_millis(u64::from(next) * 7) } }
                    });
                    prop_assert_eq!(&seen[..], &run.offsets[..delivered]);
                    unsettled.get_mut(&run.user).unwrap().drain(..delivered);
                    if delivered < run.offsets.len() && give_up {
                        run.offsets.drain(..delivered);
                        giving_up.push(run);
                    }
                }
                Step::GivenUp { which } => {
                    if giving_up.is_empty() { continue }
                    let run = giving_up.remove(which % giving_up.len());
                    prop_assert_eq!(lanes.giving_up(run.token).0.offset, run.offsets[0]);
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
            prop_assert_eq!(lanes.stuck.len(), failing.count(), "every lane whose head has failed is in `stuck` once");
            prop_assert_eq!(lanes.in_flight_events(), in_flight.iter().map(|run| run.offsets.len()).sum::<usize>());
        }
        // Nothing is lost: when every attempt ends and every timer runs out, all remaining events come out in order.
        for run in in_flight {
            lanes.settle(run.token, run.offsets.len(), |_| (), |_, _| unreachable!());
            unsettled.get_mut(&run.user).unwrap().drain(..run.offsets.len());
        }
        for run in giving_up {
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
        prop_assert_eq!((lanes.events(), lanes.by_user.len(), lanes.stuck.len()), (0, 0, 0), "an idle user costs nothing");
    }
}

#[test]
fn the_memory_of_ended_lanes_is_used_again_however_many_users_there_were() {
    let mut lanes = Lanes::new(10, 0);
    let mut out = Vec::new();
    for offset in 0..100_000 {
        lanes.admit(event(offset, &offset.to_string()));
        let started = lanes.next(10, usize::MAX, &mut out).unwrap();
        lanes.settle(started.token, 1, |_| (), |_, _| unreachable!());
        out.clear();
    }
    assert_eq!((lanes.lanes.len(), lanes.has_ready(), lanes.timers.len()), (1, false, 0));
}

#[test]
fn an_event_after_a_dead_letter_says_so_until_one_is_delivered() {
    let mut lanes = Lanes::new(10, 0);
    let mut out = Vec::new();
    for offset in 0..3 {
        lanes.admit(event(offset, "user-1"));
    }
    let first = lanes.next(1, usize::MAX, &mut out).unwrap();
    assert!(!first.after_dead_letter);
    lanes.settle(first.token, 0, |_| (), |_, _| GIVE_UP);
    assert_eq!(lanes.next(1, usize::MAX, &mut out), None, "nothing starts while the dead letter is written");
    lanes.given_up(first.token, |_| ());
    let second = lanes.next(1, usize::MAX, &mut out).unwrap();
    assert!(second.after_dead_letter);
    lanes.settle(second.token, 0, |_| (), |_, _| Decision::Retry { at: Duration::ZERO });
    lanes.wake(Duration::ZERO);
    let again = lanes.next(1, usize::MAX, &mut out).unwrap();
    assert!(again.after_dead_letter && again.attempt == 1, "{again:?}");
    lanes.settle(again.token, 1, |_| (), |_, _| unreachable!());
    assert!(!lanes.next(1, usize::MAX, &mut out).unwrap().after_dead_letter);
}

#[test]
fn a_lane_whose_head_keeps_failing_is_shown_once_a_minute_until_it_is_settled() {
    let mut lanes = Lanes::new(10, 0);
    let (mut out, at) = (Vec::new(), Duration::from_secs);
    lanes.admit(event(0, "stuck"));
    lanes.admit(event(1, "stuck"));
    lanes.admit(event(2, "well"));
    let shown = |lanes: &mut Lanes, now| {
        let mut shown = Vec::new();
        lanes.look_at_stuck(10, at(now), |event, history, _, _| shown.push((event.offset, history.failures)));
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
                history.add_failure(at(now), at(now));
                Decision::Retry { at: at(now + 5) }
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
fn an_event_with_a_lower_offset_than_its_lane_is_a_panic() {
    let mut lanes = Lanes::new(10, 0);
    lanes.admit(event(5, "user-1"));
    lanes.admit(event(4, "user-1"));
}

#[test]
#[should_panic(expected = "reported once")]
fn a_run_that_is_reported_twice_is_a_panic() {
    let mut lanes = Lanes::new(10, 0);
    let mut out = Vec::new();
    lanes.admit(event(1, "user-1"));
    lanes.admit(event(2, "user-1"));
    let first = lanes.next(1, usize::MAX, &mut out).unwrap();
    lanes.settle(first.token, 1, |_| (), |_, _| unreachable!());
    lanes.next(1, usize::MAX, &mut out).unwrap();
    lanes.settle(first.token, 1, |_| (), |_, _| unreachable!());
}

/// The offset of the next probe of these lanes. The users of the given offsets have this rank, and all others have failed.
fn probe(lanes: &mut Lanes, worst: ProbeRank, ranks: &[(i64, ProbeRank)]) -> Option<i64> {
    let allowed = ProbeRanks::new(|rank| rank <= worst);
    let users: Vec<(u64, ProbeRank)> = ranks.iter().map(|(offset, rank)| (user_of(lanes, *offset), *rank)).collect();
    let rank = |user| users.iter().find(|(other, _)| *other == user).map_or(ProbeRank::Failed, |(_, rank)| *rank);
    let mut out = Vec::new();
    lanes.next_probe(allowed, rank, &mut out).map(|_| out[0].offset)
}

fn user_of(lanes: &Lanes, offset: i64) -> u64 {
    lanes.lanes.iter().flatten().find(|lane| lane.head.offset == offset).map_or(0, |lane| lane.user)
}

#[test]
fn probes_find_a_served_user_and_a_newcomer_behind_ten_thousand_others_and_leave_these_in_order() {
    let mut lanes = Lanes::new(10, 0);
    for offset in 0..10_002 {
        lanes.admit(event(offset, &offset.to_string()));
    }
    let ranks = [(10_000, ProbeRank::Newcomer), (10_001, ProbeRank::Served)];
    assert_eq!(probe(&mut lanes, ProbeRank::Failed, &ranks), Some(10_001));
    assert_eq!(probe(&mut lanes, ProbeRank::Served, &ranks), None);
    assert_eq!(probe(&mut lanes, ProbeRank::Newcomer, &ranks), Some(10_000));
    assert_eq!(probe(&mut lanes, ProbeRank::Newcomer, &ranks), None);
    assert_eq!(probe(&mut lanes, ProbeRank::Failed, &ranks), Some(0));
    lanes.admit(event(20_000, "a newcomer"));
    let mut out = Vec::new();
    while lanes.next(1, usize::MAX, &mut out).is_some() {}
    let offsets: Vec<i64> = out.iter().map(|event| event.offset).collect();
    let expected: Vec<i64> = (1..10_000).chain([20_000]).collect();
    assert_eq!(offsets, expected, "first come, first served");
}

#[test]
fn a_user_whose_rank_has_changed_since_it_was_ranked_is_probed_by_its_new_rank() {
    let mut lanes = Lanes::new(10, 7);
    for offset in 0..3 {
        lanes.admit(event(offset, &offset.to_string()));
    }
    let [interrupted, all] = [ProbeRank::Interrupted, ProbeRank::Failed];
    let both = [(0, interrupted), (1, interrupted)];
    assert_eq!(probe(&mut lanes, ProbeRank::Served, &both), None);
    assert_eq!(probe(&mut lanes, interrupted, &both[1..]), Some(1), "user 0 is suspect now");
    assert_eq!(probe(&mut lanes, interrupted, &[]), None);
    assert_eq!(
        [probe(&mut lanes, all, &[]), probe(&mut lanes, all, &[])],
        [Some(0), Some(2)],
        "in the order in which they became ready"
    );
}

#[test]
fn after_an_outage_the_lanes_that_failed_in_it_are_ready_unless_they_were_asked_to_wait() {
    let mut lanes = Lanes::new(10, 0);
    let (started, asked) = (Duration::from_secs(100), Verdict::Busy { after: Some(Duration::from_secs(60)) });
    const RETRY: Verdict = Verdict::Retry { after: None };
    let failures = [(99, Verdict::Unreachable), (100, Verdict::Unreachable), (101, asked), (102, RETRY), (103, RETRY)];
    let policy = TryPolicy {
        attempts_max: None,
        give_up_after: None,
        on_exhausted: OnExhausted::DeadLetter,
        backoff: Backoff::new(Duration::from_secs(50), Duration::from_secs(50), false).unwrap(),
        retry_after_max: Duration::from_secs(300),
    };
    let mut out = Vec::new();
    for (offset, (second, verdict)) in (0..).zip(failures) {
        lanes.admit(event(offset, &offset.to_string()));
        let started = lanes.next(1, usize::MAX, &mut out).unwrap();
        let mut breaker = Breaker::new();
        let attempt = breaker.begin(started.user, Duration::from_secs(second));
        lanes.settle(
            started.token,
            0,
            |_| (),
            |_, history| {
                let failed = Failed::new(verdict, "");
                policy.judge(&mut breaker, &attempt, &failed, history, Duration::from_secs(second), 0)
            },
        );
    }
    out.clear();
    lanes.wake_failed_during(&Recovery { number: 1, failing_since: started, ended_at: Duration::from_secs(103) });
    while lanes.next(1, usize::MAX, &mut out).is_some() {}
    assert_eq!(out.iter().map(|event| event.offset).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(lanes.next_wakeup(), Some(Duration::from_secs(104)), "at most 5 s after a failure in an outage");
}

#[test]
fn the_standing_of_the_lane_that_has_been_ready_longest_comes_first() {
    let mut lanes = Lanes::new(3, 0);
    for (offset, user) in (0..).zip(["a", "b", "c", "d"]) {
        lanes.admit(event(offset, user));
    }
    let mut standings = [Standing::Doubtful, Standing::Served, Standing::Doubtful].into_iter();
    assert!(!lanes.sort_ready(3, |_| standings.next().unwrap()));
    assert!(lanes.sort_ready(3, |_| Standing::Newcomer));
    let mut order = Vec::new();
    while let Some(standing) = lanes.ready_standings().next() {
        let mut out = Vec::new();
        lanes.next_of(standing, 1, usize::MAX, &mut out).unwrap();
        order.push(out[0].offset);
    }
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn lanes_are_removed_from_any_place_in_the_order_of_the_others() {
    for is_probing in [false, true] {
        let mut lanes = Lanes::new(3, 7);
        let names: Vec<String> = (0..100).map(|user| user.to_string()).collect();
        let ids: Vec<LaneId> = (0..).zip(&names).map(|(offset, user)| lanes.admit(event(offset, user))).collect();
        lanes.sort_ready(50, |_| Standing::Doubtful);
        let mut out = Vec::new();
        if is_probing {
            lanes.next_probe(ProbeRanks::new(|_| true), |_| ProbeRank::Served, &mut out).unwrap();
        }
        let first = usize::from(is_probing);
        for id in ids[first..].iter().filter(|id| id.0 % 3 != 0) {
            lanes.remove_idle(*id);
        }
        while lanes.next(1, usize::MAX, &mut out).is_some() {}
        let order: Vec<i64> = out.iter().map(|event| event.offset).collect();
        assert_eq!(order, (0..100).filter(|offset| offset % 3 == 0).collect::<Vec<_>>());
        assert!(!lanes.has_ready());
    }
}

/// With a search through all ready lanes for each of them, this would take minutes.
#[test]
fn many_ready_lanes_are_removed_in_one_go() {
    let mut lanes = Lanes::new(3, 7);
    let ids: Vec<LaneId> = (0..200_000).map(|offset| lanes.admit(event(offset, &offset.to_string()))).collect();
    for id in ids.into_iter().rev() {
        lanes.remove_idle(id);
    }
    assert_eq!((lanes.users(), lanes.events(), lanes.has_ready()), (0, 0, false));
}

/// The breaker belongs to the process. The lanes are new each time that a partition begins again, for example after a rewind.
#[test]
fn the_breaker_knows_the_users_of_lanes_that_begin_again() {
    let (mut breaker, mut now) = (Breaker::new(), Moment::ZERO);
    for life in 0..5 {
        let mut lanes = Lanes::new(10, 7);
        ["a", "b", "c"].into_iter().zip(0..).for_each(|(user, offset)| _ = lanes.admit(event(offset, user)));
        while let Some(started) = lanes.next(1, usize::MAX, &mut Vec::new()) {
            let attempt = breaker.begin(started.user, now);
            now += Duration::from_secs(1);
            breaker.failed(&attempt, Verdict::Retry { after: None }, now);
        }
        assert_eq!(breaker.gate(now), Gate::Closed, "3 users cannot show an outage, in life {life}");
    }
    let users: BTreeSet<u64> = (0..100).map(|seed| Lanes::new(1, seed).user(Some(b"a"))).collect();
    assert_eq!(users.len(), 100, "each seed gives other names");
}
