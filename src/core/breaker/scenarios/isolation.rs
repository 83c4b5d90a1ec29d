//! Users whose events always fail, next to users that are served.

use super::*;

const LATENCY: Duration = Duration::from_millis(5);
/// Users from this one on always fail.
const BAD: u32 = 1_000_000;

fn fails_bad_users(verdict: Verdict) -> impl FnMut(u32, Moment) -> (Option<Verdict>, Duration) {
    move |user, _| ((user >= BAD).then_some(verdict), LATENCY)
}

#[test]
fn the_time_for_which_served_users_stand_still_does_not_depend_on_the_number_of_users_with_a_refused_event() {
    for bad in [40, 200, 2_000] {
        let mut arrivals = steady(0..20, 100, seconds(0)..seconds(60));
        arrivals.extend(burst(BAD..BAD + bad, seconds(10)));
        let measured = Scenario::new(arrivals, fails_bad_users(Verdict::Refused)).run(seconds(90));
        let waited = measured.longest_wait(0..BAD, seconds(0)..seconds(60));
        println!("# {bad} users with a refused event: served users wait {waited:?} at most");
        // While the breaker is closed, the bad users that came first are attempted first, once.
        let queue = LATENCY * bad / 64;
        assert!(waited < 2 * queue + ms(200), "with {bad} bad users a served user waited {waited:?}");
        assert_eq!(measured.given_up.len(), bad as usize);
    }
}

#[test]
fn after_a_start_in_which_all_users_are_newcomers_the_healthy_ones_wait_until_the_bad_ones_had_one_probe() {
    for bad in [40, 200, 2_000] {
        let mut arrivals = burst(BAD..BAD + bad, seconds(0));
        arrivals.extend(steady(0..20, 100, ms(1)..seconds(60)));
        let measured = Scenario::new(arrivals, fails_bad_users(Verdict::Refused)).run(seconds(90));
        let waited = measured.longest_wait(0..BAD, seconds(0)..seconds(60));
        println!("# {bad} refused events first in the log: the others wait {waited:?} at most");
        assert!(waited < LATENCY * bad / 3 + ms(300), "with {bad} bad users another user waited {waited:?}");
        assert_eq!(measured.given_up.len(), bad as usize);
    }
}

#[test]
fn five_hundred_users_that_fail_for_ever_do_not_delay_one_healthy_event_a_second_and_use_up_their_tries() {
    for verdict in [RETRY, Verdict::Refused] {
        let mut arrivals = steady(0..1, 1, seconds(0)..seconds(600));
        for second in 0..5 {
            arrivals.extend(burst(BAD..BAD + 500, seconds(100 * second)));
        }
        let scenario = Scenario {
            attempts_max: Some(10),
            backoff_max: seconds(2),
            ..Scenario::new(arrivals, fails_bad_users(verdict))
        };
        let measured = scenario.run(seconds(700));
        let waited = measured.longest_wait(0..1, seconds(0)..seconds(600));
        println!("# 500 users fail with {verdict:?}: the healthy one waits {waited:?} at most");
        assert!(waited < ms(200), "{verdict:?}: {waited:?}");
        assert_eq!(measured.given_up.len(), 2_500, "{verdict:?}");
    }
}

#[test]
fn forty_users_that_hang_do_not_keep_a_served_user_waiting() {
    let mut arrivals = steady(0..20, 100, seconds(0)..seconds(60));
    arrivals.extend(burst(BAD..BAD + 40, seconds(10)));
    let scenario = Scenario::new(arrivals, |user, _| match user {
        BAD.. => (Some(RETRY), seconds(15)),
        _ => (None, LATENCY),
    });
    let measured = scenario.run(seconds(90));
    let waited = measured.longest_wait(0..BAD, seconds(0)..seconds(60));
    println!("# 40 users hang: served users wait {waited:?} at most");
    assert!(waited < ms(200), "{waited:?}");
}

#[test]
fn half_of_the_users_that_begin_to_fail_for_ever_do_not_close_the_destination_to_the_others() {
    let broken_at = seconds(20);
    let arrivals = steady(0..200, 400, seconds(0)..seconds(120));
    let scenario =
        Scenario::new(arrivals, move |user, now| ((user % 2 == 0 && now >= broken_at).then_some(RETRY), LATENCY));
    let measured = scenario.run(seconds(150));
    let healthy = measured.events.iter().filter(|(user, _, _)| user % 2 == 1);
    let waited = healthy.map(|(_, at, delivered)| delivered.unwrap() - *at).max().unwrap();
    println!("# half of 200 users begin to fail: the others wait {waited:?} at most");
    assert!(waited < ms(500), "{waited:?}");
}

#[test]
fn an_outage_of_two_seconds_ends_soon_for_the_users_that_were_served_however_many_others_hang() {
    for hanging in [10, 100, 400] {
        let mut arrivals = steady(0..50, 100, seconds(0)..seconds(60));
        arrivals.extend(burst(BAD..BAD + hanging, seconds(4)));
        let outage = seconds(21)..seconds(23);
        let scenario = Scenario::new(arrivals, move |user, now| match user {
            BAD.. => (Some(RETRY), seconds(15)),
            _ => (outage.contains(&now).then_some(RETRY), LATENCY),
        });
        // When the outage begins, most of the users that hang are ready and wait for a slot.
        let measured = Scenario { concurrency: 1_000, suspects_max: 64, ..scenario }.run(seconds(120));
        let waited = measured.longest_wait(0..BAD, seconds(0)..seconds(60));
        println!("# an outage of 2 s while {hanging} users hang: the others wait {waited:?} at most");
        assert!(waited < seconds(6), "while {hanging} users hang, another one waited {waited:?}");
    }
}
