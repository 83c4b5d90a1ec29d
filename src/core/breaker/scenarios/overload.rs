//! A destination that takes a part of the attempts only: a brownout, or a limited rate.

use super::*;

const LATENCY: Duration = Duration::from_millis(5);

/// Answers 503 to this percentage of all attempts, at random.
fn brownout(percent: u64, time: Range<Moment>) -> impl FnMut(u32, Moment) -> (Option<Verdict>, Duration) {
    let mut attempts = 0;
    move |_, now| {
        attempts += 1;
        let fails = time.contains(&now) && random::mix(attempts) % 100 < percent;
        (fails.then_some(RETRY), LATENCY)
    }
}

/// Takes so many events a second and answers 503 to the others.
fn limited_to(per_second: u64) -> impl FnMut(u32, Moment) -> (Option<Verdict>, Duration) {
    let (mut tokens, mut at) = (0.0f64, Moment::ZERO);
    move |_, now| {
        // It has room for what comes in 50 ms.
        let room = (per_second as f64 / 20.0).max(1.0);
        tokens = (tokens + (now - at).as_secs_f64() * per_second as f64).min(room);
        at = now;
        if tokens < 1.0 {
            return (Some(RETRY), LATENCY);
        }
        tokens -= 1.0;
        (None, LATENCY)
    }
}

#[test]
fn in_a_brownout_of_95_percent_tries_do_not_count_and_nothing_is_given_up() {
    let (from, to) = (seconds(30), seconds(150));
    let arrivals = steady(0..200, 100, seconds(0)..seconds(200));
    let scenario = Scenario { attempts_max: Some(10), ..Scenario::new(arrivals, brownout(95, from..to)) };
    let measured = scenario.run(seconds(300));
    let (tries, failed) = (measured.tries(0..200), measured.attempts.len().saturating_sub(measured.events.len()));
    println!("# a brownout of 95 %: {tries} tries of {failed} failures, {} given up", measured.given_up.len());
    assert_eq!(measured.given_up.len(), 0);
    assert!(u64::from(tries) * 50 < failed as u64, "{tries} tries of {failed} failures");
    let waited = measured.longest_wait(0..200, to + seconds(20)..seconds(200));
    assert!(waited < seconds(1), "20 s after the brownout a user waits {waited:?}");
}

#[test]
fn a_destination_that_fails_two_of_five_attempts_at_random_keeps_nearly_all_slots() {
    let mut fails = brownout(40, seconds(0)..seconds(120));
    let arrivals = steady(0..2_000, 1_000, seconds(0)..seconds(60));
    let destination = move |user, now| (fails(user, now).0, ms(100));
    let measured = Scenario { concurrency: 256, ..Scenario::new(arrivals, destination) }.run(seconds(120));
    // 1,667 attempts a second of 100 ms each need 167 of the 256 slots.
    let in_time = measured.delivered(seconds(10)..seconds(60));
    println!("# two of five fail at random: {in_time} of 50,000 events are delivered as they come");
    assert!(in_time > 45_000, "{in_time}");
}

#[test]
fn a_destination_with_a_limited_rate_gets_at_least_nine_tenths_of_it() {
    let all_at_once =
        |per_second: u64, users| (0..per_second as u32 * 30).map(move |event| (Moment::ZERO, event % users));
    for (users, per_second, concurrency) in
        [(100, 100, 64), (20, 100, 64), (1_000, 100, 64), (1_000, 100, 256), (1_000, 1_000, 64), (10_000, 500, 64)]
    {
        let twice_as_many = steady(0..users, per_second * 2, seconds(0)..seconds(20));
        for arrivals in [all_at_once(per_second, users).collect(), twice_as_many] {
            let scenario = Scenario { concurrency, ..Scenario::new(arrivals, limited_to(per_second)) };
            let measured = scenario.run(seconds(20));
            let delivered = measured.delivered(seconds(0)..seconds(20)) as u64 * 100 / (20 * per_second);
            let attempts = measured.attempts.len() as u64 / 20;
            println!(
                "# {per_second}/s to {users} users, --concurrency {concurrency}: {delivered} % get through, {attempts} attempts/s"
            );
            assert!(delivered >= 90, "{delivered} % of {per_second}/s");
        }
    }
}
