//! What the log says about a destination, in scenarios that last minutes of simulated time.

use crate::dispatch::driver::{Outcome, simulate};
use crate::dispatch::end_of;
use crate::dispatch::memory_destination::{Behaviour, Outage};
use crate::dispatch::scenario::{Action, Scenario, fixed};
use eventd::core::tries::OnExhausted;
use eventd::destination::BatchLimits;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One process, one partition, six users, and only the faults that a test adds.
pub(crate) fn calm() -> Scenario {
    let mut scenario = fixed();
    (scenario.slots, scenario.partitions, scenario.session) = (1, 1, None);
    scenario.behaviour = Behaviour { latency_ms_max: 5, ..Behaviour::default() };
    scenario.config.tries.attempts_max = Some(10);
    scenario.plan.clear();
    scenario
}

/// One event every second, from these users in turn.
fn traffic(scenario: &mut Scenario, seconds: u64, users: std::ops::Range<usize>) {
    let event = |second| Action::Append { user: users.start + second as usize % users.len(), many: 1, bytes: 10 };
    scenario.plan.extend((0..seconds).map(|second| (Duration::from_secs(second), event(second))));
    scenario.plan.sort_by_key(|(at, _)| *at);
}

/// Runs a scenario and returns its log lines.
fn lines_of(scenario: &Scenario) -> (Vec<String>, Outcome) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber =
        tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(move || writer.clone()).finish();
    let outcome = tracing::subscriber::with_default(subscriber, || simulate(scenario));
    assert_eq!(outcome.violation, None, "{}", end_of(&outcome));
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (text.lines().map(str::to_owned).collect(), outcome)
}

fn with<'a>(lines: &'a [String], what: &str) -> Vec<&'a String> {
    lines.iter().filter(|line| line.contains(what)).collect()
}

/// The number in a field of a log line.
fn number(line: &str, field: &str) -> f64 {
    let text = line.split(&format!(" {field}=")).nth(1).unwrap_or_else(|| panic!("no {field} in {line}"));
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn an_outage_is_logged_at_its_start_each_minute_and_at_its_end() {
    let mut scenario = calm();
    traffic(&mut scenario, 320, 0..6);
    for (second, outage) in [(10, Some(Outage::Unreachable)), (160, Some(Outage::Fails)), (290, None)] {
        scenario.plan.push((Duration::from_secs(second), Action::Outage(outage)));
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
    let (lines, outcome) = lines_of(&scenario);
    let lines_about_it: Vec<&String> = with(&lines, "the destination ");
    let began = lines_about_it[0];
    assert!(began.contains("WARN") && began.contains("cannot be reached; its events wait"), "{began}");
    let (last, reminders) = lines_about_it[1..].split_last().unwrap();
    assert!((4..=5).contains(&reminders.len()), "one line a minute: {lines_about_it:#?}");
    for (reminder, minute) in reminders.iter().zip(1..) {
        assert!(reminder.contains("the destination still") && reminder.contains("WARN"), "{lines_about_it:#?}");
        assert!((number(reminder, "out_s") - f64::from(minute) * 60.0).abs() <= 10.0, "{lines_about_it:#?}");
        assert!(number(reminder, "users") >= 1.0 && number(reminder, "lag") >= 10.0, "{lines_about_it:#?}");
    }
    assert!(reminders[0].contains("cannot be reached"), "{lines_about_it:#?}");
    assert!(reminders[reminders.len() - 1].contains("fails for every user; its events wait"), "{lines_about_it:#?}");
    assert!(
        reminders[reminders.len() - 1].contains("503 try later"),
        "the cause is the latest answer: {lines_about_it:#?}"
    );
    assert!(last.contains("INFO") && last.contains("takes events again"), "{lines_about_it:#?}");
    assert!(number(last, "out_s") >= 279.0, "the answers of 500 belong to the same outage: {last}");
    assert!(with(&lines, "Snapshot").is_empty(), "{lines:#?}");
    assert_eq!(outcome.counts.dead_letters, 0, "an outage is not the event's fault");
}

#[test]
fn a_user_that_always_gets_busy_has_one_log_line_a_minute() {
    let mut scenario = calm();
    scenario.behaviour.busy_users = vec![scenario.users[0].clone()];
    traffic(&mut scenario, 150, 1..6);
    scenario.plan.insert(0, (Duration::ZERO, Action::Append { user: 0, many: 2, bytes: 10 }));
    let (lines, _) = lines_of(&scenario);
    let stuck = with(&lines, "a user is stuck");
    assert_eq!(stuck.len(), 2, "one line after one minute and one after two: {stuck:#?}");
    for (line, minute) in stuck.iter().zip([60.0, 120.0]) {
        assert!(line.contains("user=\"user-0\"") && line.contains(" id="), "{line}");
        assert!(line.contains("503 try later"), "{line}");
        assert!(number(line, "attempts") > 10.0 && number(line, "tries") == 0.0, "{line}");
        assert!((number(line, "failing_s") - minute).abs() < 5.0, "{line}");
    }
    assert!(with(&lines, "the destination ").is_empty(), "this is not an outage: {lines:#?}");
}

#[test]
fn users_that_get_busy_are_logged_even_if_no_user_is_served() {
    for users in [1, 4] {
        let mut scenario = calm();
        scenario.behaviour.busy_users = scenario.users[..users].to_vec();
        for second in [0, 150] {
            let event = |user| (Duration::from_secs(second), Action::Append { user, many: 1, bytes: 10 });
            scenario.plan.extend((0..users).map(event));
        }
        let (lines, _) = lines_of(&scenario);
        let stuck = with(&lines, "a user is stuck: its next event keeps failing");
        assert!(with(&lines, "while other users are served").is_empty(), "{lines:#?}");
        assert_eq!(stuck.len(), users * 2, "one line after one minute and one after two: {lines:#?}");
        for line in stuck {
            assert!(line.contains("503 try later") && number(line, "tries") == 0.0, "{line}");
            assert!((number(line, "failing_s") % 60.0) < 5.0, "{line}");
        }
    }
}

/// The first user has 32 events, each of which fails once and is not tried again.
fn with_exhausted_events(on_exhausted: OnExhausted) -> Scenario {
    let mut scenario = calm();
    (scenario.config.tries.attempts_max, scenario.config.tries.on_exhausted) = (Some(1), on_exhausted);
    scenario.behaviour.failing_users = scenario.users[..1].to_vec();
    traffic(&mut scenario, 150, 1..6);
    for second in [3, 4, 5, 6] {
        scenario.plan.push((Duration::from_secs(second), Action::Append { user: 0, many: 8, bytes: 10 }));
    }
    scenario.plan.sort_by_key(|(at, _)| *at);
    scenario
}

#[test]
fn given_up_events_are_logged_by_name_and_beyond_a_limit_counted() {
    let (lines, outcome) = lines_of(&with_exhausted_events(OnExhausted::DeadLetter));
    let named = with(&lines, "gave up an event");
    assert!(named.iter().all(|line| line.contains("user=\"user-0\"") && line.contains(" id=")), "{named:#?}");
    assert_eq!(named.len(), 10, "{named:#?}");
    let counted = with(&lines, "gave up more events");
    assert_eq!(counted.len(), 1, "logged once, although no other line follows: {lines:#?}");
    assert_eq!(number(counted[0], "suppressed") as u64 + 10, outcome.counts.dead_letters);
}

#[test]
fn dropped_events_are_logged_by_name_and_beyond_a_limit_counted() {
    let (lines, outcome) = lines_of(&with_exhausted_events(OnExhausted::Drop));
    let named = with(&lines, "gave up an event: it is dropped and will never be delivered");
    assert!(
        named.iter().all(|line| line.contains("user=\"user-0\"") && line.contains("reason=\"exhausted\"")),
        "{named:#?}"
    );
    assert_eq!(named.len(), 10, "{named:#?}");
    let counted = with(&lines, "they are dropped and will never be delivered");
    assert_eq!(counted.len(), 1, "logged once, although no other line follows: {lines:#?}");
    assert_eq!((number(counted[0], "suppressed") as u64 + 10, outcome.counts.dropped), (32, 32));
    assert_eq!((outcome.counts.dead_letters, with(&lines, "dead letter").len()), (0, 0), "{lines:#?}");
}

#[test]
fn a_user_that_is_held_because_its_tries_have_ended_is_logged_and_no_other_user_waits() {
    let mut scenario = calm();
    (scenario.config.tries.attempts_max, scenario.config.tries.on_exhausted) = (Some(3), OnExhausted::Hold);
    scenario.config.parking.may_park = true;
    scenario.behaviour.failing_users = scenario.users[..1].to_vec();
    scenario.others_wait_max = Some(Duration::from_secs(1));
    traffic(&mut scenario, 150, 1..6);
    scenario.plan.insert(0, (Duration::ZERO, Action::Append { user: 0, many: 5, bytes: 10 }));
    let (lines, outcome) = lines_of(&scenario);
    let held = with(&lines, "a user is held, because the tries of its next event have ended");
    assert!(held.iter().all(|line| line.contains("user=\"user-0\"") && line.contains("503 try later")), "{held:#?}");
    // After the faults an operator releases it twice, and then gives its events up.
    assert_eq!((held.len() as u64, outcome.held_by_policy), (3, 3), "{held:#?}");
    let reminders = with(&lines, "1 user is held: \"user-0\" by --on-exhausted hold");
    assert!((2..=3).contains(&reminders.len()), "one line a minute: {lines:#?}");
    assert_eq!((outcome.counts.given_up_by_operators, outcome.counts.dead_letters), (5, 5), "{lines:#?}");
}

#[test]
fn a_stopped_partition_continues_after_a_reset_of_its_offset() {
    let mut reset_in_time = 0;
    for seed in 0..40 {
        let mut scenario = calm();
        scenario.seed = seed;
        scenario.rates.reads_fail = 50;
        // The partition stops within some seconds, starts again a minute later, and then needs as long again to read
        // anything.
        scenario.plan.push((Duration::ZERO, Action::Damage { partition: 0, from_end: 2 }));
        traffic(&mut scenario, 150, 0..6);
        let at = Duration::from_millis(61_000 + seed * 250);
        scenario.plan.push((at, Action::Reposition { partition: 0, percent: 100, ahead: true }));
        scenario.plan.sort_by_key(|(at, _)| *at);
        // A process with a stopped partition ends with an error, which is a violation once everything can be read.
        let (lines, _) = lines_of(&scenario);
        let place = |what: &str| lines.iter().position(|line| line.contains(what));
        let (moved, continues) = (place("the position was moved"), place("this partition is not stopped any more"));
        reset_in_time += u64::from(moved.is_some() && moved < continues);
    }
    assert!(reset_in_time > 0, "no partition was reset before it could read again");
}

#[test]
fn a_destination_that_takes_no_batches_is_not_in_an_outage() {
    let mut scenario = calm();
    scenario.limits = BatchLimits { runs_max: 1, run_events_max: 8, run_bytes_max: 1 << 20 };
    scenario.whole_runs_max = Some(1);
    for user in 0..scenario.users.len() {
        scenario.plan.push((Duration::ZERO, Action::Append { user, many: 20, bytes: 10 }));
    }
    let (lines, outcome) = lines_of(&scenario);
    assert_eq!((outcome.counts.failed, outcome.counts.dead_letters), (0, 0));
    // Six users with 20 events each: three batches until a run has one event, then one batch for 1, 2, 4 … 64 deliveries.
    let failed_batches = outcome.counts.failed_batches;
    assert!((6..=6 * 3 + 8).contains(&failed_batches), "{failed_batches} batches failed");
    assert_eq!(with(&lines, "a batch failed as a whole").len(), 1, "{lines:#?}");
    for wrong in ["fails for every user", "delivers nothing", "takes events again", "is stuck"] {
        assert_eq!(with(&lines, wrong).len(), 0, "{lines:#?}");
    }
}
