//! A destination that is away, or fails for all users.

use super::*;

const LATENCY: Duration = Duration::from_millis(5);

#[test]
fn one_user_and_a_destination_that_is_away_for_six_hours_lose_no_try_and_continue_within_seconds() {
    let (from, to) = (seconds(10), seconds(6 * 3600));
    let arrivals = steady(0..1, 1, seconds(0)..to + seconds(60)).into_iter().step_by(30).collect();
    let scenario =
        Scenario::new(arrivals, move |_, now| ((from..to).contains(&now).then_some(Verdict::Unreachable), LATENCY));
    let measured = Scenario { attempts_max: Some(10), ..scenario }.run(to + seconds(120));
    assert_eq!((measured.tries(0..1), measured.given_up.len()), (0, 0));
    let first = measured.events.iter().filter_map(|(_, _, delivered)| delivered.filter(|at| *at > from)).min().unwrap();
    println!("# away for six hours: {} probes, delivered again after {:?}", measured.probes, first - to);
    assert!(first - to < seconds(6), "{:?} after its return", first - to);
    assert!(measured.probes < 6 * 3600 / 5 + 20);
    assert_eq!(measured.longest_wait(0..1, to + seconds(30)..to + seconds(60)), LATENCY);
}

#[test]
fn the_answers_to_one_single_user_count_as_its_own() {
    let scenario = Scenario::new(burst(0..1, seconds(1)), |_, _| (Some(RETRY), LATENCY));
    let measured = Scenario { attempts_max: Some(10), ..scenario }.run(seconds(3_600));
    assert_eq!((measured.given_up.len(), measured.attempts.len()), (1, 10));
}

#[test]
fn a_bad_deploy_that_refuses_all_makes_no_dead_letters_and_all_is_delivered_after_it() {
    for users in [5, 10, 50] {
        let (from, to) = (seconds(30), seconds(330));
        let arrivals = steady(0..users, u64::from(users), seconds(0)..to + seconds(90));
        let scenario =
            Scenario::new(arrivals, move |_, now| ((from..to).contains(&now).then_some(Verdict::Refused), LATENCY));
        let measured = Scenario { attempts_max: Some(10), ..scenario }.run(seconds(800));
        assert_eq!(measured.given_up.len(), 0, "{users} users");
        let waited = measured.longest_wait(0..users, seconds(0)..to + seconds(90));
        println!(
            "# 422 to {users} users for five minutes: {} probes, the last event waits {waited:?}",
            measured.probes
        );
        assert!(waited < to - from + seconds(20), "{users} users: {waited:?}");
        assert!(measured.longest_wait(0..users, to + seconds(70)..to + seconds(90)) < ms(100));
    }
}

/// Most users have an attempt in flight when the deploy begins. Some of these attempts began before the last delivery did.
#[test]
fn a_bad_deploy_that_meets_attempts_in_flight_uses_no_try_after_its_fifth_user() {
    for (seed, verdict) in (0..20).flat_map(|seed| [(seed, Verdict::Refused), (seed, RETRY)]) {
        let (from, to, users) = (seconds(30), seconds(330), 12);
        let arrivals = steady(0..users, 60, seconds(0)..to + seconds(30));
        let mut attempts = seed * 1_000_000;
        let destination = move |_, now| {
            attempts += 1;
            // The longer an attempt takes, the later it is answered by the new version.
            let latency = ms(5 + random::mix(attempts) % 800);
            ((from..to).contains(&(now + latency)).then_some(verdict), latency)
        };
        let measured = Scenario { attempts_max: Some(10), ..Scenario::new(arrivals, destination) }.run(seconds(500));
        assert_eq!(measured.given_up, [0u32; 0], "seed {seed}, {verdict:?}");
        let in_deploy = measured.failures.iter().filter(|(at, _, _)| *at >= from);
        let mut users = BTreeSet::new();
        let fifth = in_deploy.clone().find(|(_, user, _)| users.insert(*user) && users.len() == 5).unwrap().0;
        let late = in_deploy.filter(|(at, _, counts)| *counts && *at > fifth).count();
        assert_eq!(late, 0, "seed {seed}, {verdict:?}: tries after the fifth user failed at {fifth:?}");
    }
}

#[test]
fn a_destination_that_was_away_for_a_minute_is_not_hit_by_all_at_once_and_soon_gets_everything() {
    for verdict in [Verdict::Unreachable, RETRY] {
        let (from, to) = (seconds(10), seconds(70));
        let arrivals = steady(0..5_000, 2_000, seconds(5)..seconds(75));
        let scenario = Scenario::new(arrivals, move |_, now| ((from..to).contains(&now).then_some(verdict), LATENCY));
        let measured = Scenario { concurrency: 256, attempts_max: Some(10), ..scenario }.run(seconds(120));
        assert_eq!((measured.given_up.len(), measured.delivered(seconds(0)..seconds(120))), (0, 140_000));
        let first =
            measured.events.iter().filter_map(|(_, _, delivered)| delivered.filter(|at| *at >= to)).min().unwrap();
        let soon = measured.attempts.iter().filter(|at| (first..first + ms(200)).contains(*at)).count();
        let behind = measured.events.iter().filter(|(_, at, delivered)| delivered.unwrap() - *at > ms(50));
        let level = behind.map(|(_, _, delivered)| delivered.unwrap()).max().unwrap() - to;
        println!(
            "# {verdict:?} for a minute at 2,000/s: first delivery after {:?}, {soon} attempts in 200 ms, level after {level:?}",
            first - to
        );
        assert!(first - to < seconds(6) && level < seconds(20));
        assert!(soon < 256, "{soon} attempts at once");
    }
}

#[test]
fn a_destination_that_can_be_reached_again_is_found_although_a_user_that_hangs_is_probed_first() {
    let (users, away) = (50, seconds(10)..seconds(20));
    let mut arrivals = steady(0..users, 100, seconds(0)..away.start);
    let hangs = users;
    arrivals.extend([(seconds(15), hangs); 3]);
    // The user that hangs is the only one that waits, so its probe has been in flight for at least a second.
    let tried = away.end + seconds(6);
    arrivals.extend(burst(0..users, tried));
    let scenario = Scenario::new(arrivals, move |user, now| match user {
        _ if away.contains(&now) => (Some(Verdict::Unreachable), LATENCY),
        _ if user == hangs => (Some(RETRY), seconds(15)),
        _ => (None, LATENCY),
    });
    let measured = scenario.run(seconds(90));
    let waited = measured.longest_wait(0..users, tried..seconds(90));
    println!("# a user hangs after the return of the destination: the others wait {waited:?} at most");
    assert!(waited < seconds(2), "{waited:?}");
}

#[test]
fn a_destination_whose_connections_hang_gets_few_probes_at_once() {
    let from = seconds(10);
    let arrivals = steady(0..100, 100, seconds(0)..seconds(30));
    let scenario = Scenario::new(arrivals, move |_, now| match now < from {
        true => (None, LATENCY),
        false => (Some(Verdict::Unreachable), seconds(30)),
    });
    let measured = scenario.run(seconds(600));
    // Those that were in flight when the first of them showed the outage are not probes.
    let probes: Vec<Moment> = measured.attempts.into_iter().filter(|at| *at >= from + seconds(30)).collect();
    let at_once = |at: &Moment| probes.iter().filter(|begun| (*at..*at + seconds(30)).contains(begun)).count();
    let most = probes.iter().map(at_once).max().unwrap();
    println!("# connections hang for 30 s: {most} probes at once at most, {} in all", probes.len());
    assert!(most <= crate::limits::PROBES_IN_FLIGHT_MAX, "{most}");
}
