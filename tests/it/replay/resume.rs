//! Replays that are stopped, killed or refused by their destination, and then resumed.

use super::*;
use std::collections::HashSet;

#[test]
fn a_signal_stops_a_replay_and_resume_delivers_only_the_rest() {
    let delivered = Delivered::new(600);
    let careful =
        ["--rate", "200/s", "--attempts", "3", "--on-exhausted", "halt", "--stop-after-failures", "7", "--jitter"];
    let replay = delivered.replaying(&[&["--from", "0", "--limit", "600", "--execute"], &careful[..]].concat());
    delivered.receiver.wait_for(40);
    let ending = replay.stop();
    assert_eq!(ending.code(), 3, "{}", ending.said);
    let id = delivered.id();
    let resume = format!("run: eventd replay --url sqlite:log.db --dest hook={} --resume {id}", delivered.receiver.url);
    let (_, command) = ending.said.split_once(&resume).unwrap_or_else(|| panic!("{resume}: {}", ending.said));
    let command = command.lines().next().unwrap().trim_end_matches('"');
    // What selects events is not repeated, and no secret is needed.
    let mut flags: Vec<&str> = command.split_once(" --execute ").unwrap().1.split(" --").collect();
    flags[0] = flags[0].trim_start_matches("--");
    flags.sort_unstable();
    let repeated = ["attempts 3", "jitter=on", "on-exhausted halt", "rate 200/s", "stop-after-failures 7"];
    assert_eq!(flags, repeated, "{command}");
    let listed = &delivered.listed()[0];
    assert_eq!((listed["state"].as_str(), listed["why"].as_str()), (Some("stopped"), Some("stopped by a signal")));
    let first = delivered.receiver.count();

    let plan = delivered.plan(&["--resume", &id]);
    assert_eq!((plan["events"].as_u64(), plan["resumes"].as_str()), (Some(600 - first as u64), Some(id.as_str())));
    assert_eq!(delivered.receiver.count(), first, "a plan delivers nothing");
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let hooks = delivered.receiver.take();
    assert_eq!(bodies(&hooks), delivered.sent, "every event once, in order");
    assert!(hooks.iter().all(|hook| hook.replay() == id));
    let listed = &delivered.listed()[0];
    assert_eq!((listed["state"].as_str(), &listed["counts"]["delivered"]), (Some("finished"), &600.into()), "{listed}");

    let again = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(again.code(), 2, "{}", again.said);
    assert!(again.said.contains("has finished already"), "{}", again.said);
    println!("# {first} of 600 events before the signal, the rest after it");
}

#[test]
fn sigkill_during_a_replay_loses_nothing_and_repeats_only_uncommitted_events() {
    const ROUNDS: usize = 6;
    let delivered = Delivered::new(2_400);
    let mut hooks = Vec::new();
    let mut id = None;
    for round in 0..ROUNDS {
        let resume = id.as_ref().map(|id: &String| vec!["--resume", id.as_str()]);
        let arguments = [resume.unwrap_or(vec!["--from", "0"]), vec!["--execute", "--rate", "1000/s"]].concat();
        let replay = delivered.replaying(&arguments);
        delivered.receiver.wait_for(100 + 40 * round);
        replay.kill();
        id = Some(delivered.id());
        hooks.extend(delivered.receiver.take());
    }
    let id = id.unwrap();
    assert_eq!(delivered.listed()[0]["state"], "running-or-cut-off");
    let said = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list"]).said;
    assert!(said.contains(&format!("`--resume {id}` without --execute shows how many are left")), "{said}");
    assert!(!said.contains(" 0 of 2400"), "how many are delivered is not known: {said}");
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let listed = &delivered.listed()[0];
    let count = |number: &Value| number.as_u64().unwrap();
    let (in_last, by_killed) = (count(&listed["counts"]["delivered"]), count(&listed["settled_by_killed_runs"]));
    assert!(by_killed > 0 && in_last + by_killed == 2_400, "{listed}");
    let said = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list"]).said;
    let line = format!("{in_last} of 2400 delivered, 0 given up, {by_killed} settled by runs that were killed");
    assert!(said.contains(&line), "{said}");
    hooks.extend(delivered.receiver.take());
    assert_eq!(without_repeats(&hooks), delivered.sent, "no event is missing");
    assert_in_order(&hooks);
    let repeated = hooks.len() - 2_400;
    // Only what was delivered between the last commit and the kill may be repeated.
    assert!(repeated > 0 && repeated < ROUNDS * 1_000, "{repeated} repeats in {ROUNDS} rounds");
    println!("# {ROUNDS} kills in a replay of 2400 events: {repeated} were delivered again");
}

#[test]
fn a_replay_cannot_run_twice_at_the_same_time() {
    let delivered = Delivered::new(240);
    delivered.receiver.answers(|_| 503);
    let first = delivered.replaying(&["--from", "0", "--execute"]);
    first.wait_for(&["replaying"]);
    let id = delivered.id();
    let second = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(second.code(), 1, "{}", second.said);
    assert!(
        second.said.contains(&format!("replay {id} is already running in process {}", first.id())),
        "{}",
        second.said
    );
    delivered.receiver.answers(|_| 200);
    let ending = first.end();
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), delivered.sent);
}

#[test]
fn a_destination_that_refuses_everything_stops_the_replay_and_loses_nothing() {
    let delivered = Delivered::new(240);
    delivered.receiver.answers(|_| 422);
    let ending = delivered.replay(&["--from", "0", "--execute", "--stop-after-failures", "15"]);
    assert_eq!(ending.code(), 3, "{}", ending.said);
    assert!(ending.said.contains("failures in a row (--stop-after-failures)"), "{}", ending.said);
    assert!(delivered.receiver.refused() >= 15, "{}", delivered.receiver.refused());
    let id = delivered.id();
    let listed = &delivered.listed()[0];
    assert_eq!((listed["state"].as_str(), &listed["counts"]["given_up"]), (Some("stopped"), &0.into()), "{listed}");
    delivered.receiver.answers(|_| 200);
    let ending = delivered.replay(&["--resume", &id, "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), delivered.sent);
}

#[test]
fn events_that_fail_again_become_dead_letters_and_delay_no_other_user() {
    let delivered = Delivered::new(240);
    delivered.receiver.answers(|hook| if hook.user() == "user-3" { 500 } else { 200 });
    let quickly = ["--attempts", "2", "--backoff", "1ms"];
    let ending = delivered.replay(&[&["--from", "0", "--execute", "--json"], &quickly[..]].concat());
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let summary = json_lines(&ending).pop().unwrap();
    assert_eq!((&summary["delivered"], &summary["given_up"]), (&220.into(), &20.into()), "{summary}");
    let mut others = delivered.sent.clone();
    others.remove("user-3");
    assert_eq!(bodies(&delivered.receiver.take()), others);
    let database = rusqlite::Connection::open(delivered.folder().join("log.db")).unwrap();
    let letters = "SELECT count(DISTINCT r.partition || ':' || r.offset) FROM records r JOIN topics t ON t.id = r.topic
                   WHERE t.name = 'user-events.hook.dead'";
    let letters: i64 = database.query_row(letters, [], |row| row.get(0)).unwrap();
    assert_eq!(letters, 20, "together with dispatch's dead letters, under the destination's name");
}

#[test]
fn events_after_the_plan_are_not_part_of_it_however_late_it_is_resumed() {
    let mut delivered = Delivered::new(240);
    delivered.receiver.answers(|_| 503);
    let replay = delivered.replaying(&["--from", "0", "--execute", "--stop-after-failures", "5"]);
    assert_eq!(replay.end().code(), 3);
    delivered.receiver.answers(|_| 200);
    let old = delivered.sent.clone();
    let up = delivered.up();
    delivered.post(&up, 240..480);
    delivered.receiver.wait_for(240);
    assert_eq!(up.stop().code(), 0);
    delivered.receiver.take();
    let ending = delivered.replay(&["--resume", &delivered.id(), "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    assert_eq!(bodies(&delivered.receiver.take()), old);
}

#[test]
fn replays_are_listed_with_their_operator_and_outcome() {
    let delivered = Delivered::new(60);
    for user in ["user-1", "user-2"] {
        assert_eq!(delivered.replay(&["--user", user, "--execute"]).code(), 0);
    }
    let listed = delivered.listed();
    let ids: HashSet<&str> = listed.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{listed:?}");
    let of_user = |user: &str| listed.iter().any(|one| one["what"].as_str().unwrap().contains(&format!("user {user}")));
    assert!(of_user("user-1") && of_user("user-2"), "{listed:?}");
    let for_people = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list", "--dest", "null:"]);
    assert_eq!(
        (for_people.code(), for_people.said.contains("finished")),
        (0, false),
        "of another: {}",
        for_people.said
    );
    let for_people = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list"]);
    assert_eq!(for_people.said.matches("finished").count(), 2, "{}", for_people.said);
}

#[test]
fn a_command_that_resumes_needs_the_secrets_that_it_does_not_show() {
    let delivered = Delivered::new(60);
    delivered.receiver.answers(|_| 503);
    let url = delivered.receiver.url.replace("http://", "http://ada:s3cret@");
    let mut command = command(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--from", "0", "--execute"]);
    command.args(["--dest", &format!("hook={url}"), "--stop-after-failures", "3"]);
    let ending = Program::spawn(command, "replay with a password").end();
    assert_eq!(ending.code(), 3, "{}", ending.said);
    assert!(ending.said.contains("--stop-after-failures 3 (with the same secrets)"), "{}", ending.said);
    assert!(!ending.said.contains("s3cret"), "{}", ending.said);
}

#[test]
fn hold_of_a_variable_does_not_keep_an_operator_from_a_replay_but_the_flag_is_refused() {
    let delivered = with_a_failing_user();
    let replay = |more: &[&str]| replay_with_variable(&delivered, "hold", more);
    let destination = delivered.destination();
    let ending = replay(&["--dest", &destination, "--from", "0", "--execute"]);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let says = ["EVENTD_ON_EXHAUSTED=hold has no effect: ", "55 delivered, 5 given up and kept as dead letters"];
    assert!(says.iter().all(|what| ending.said.contains(what)), "{}", ending.said);
    assert_eq!(replay(&["--list"]).code(), 0);
    let flag = ["--dest", &destination, "--on-exhausted", "hold"];
    assert_eq!(replay(&[&["--list"], &flag[..]].concat()).code(), 0, "the list delivers nothing");
    let refused = replay(&[&["--from", "0"], &flag[..]].concat());
    assert!(refused.code() == 2 && refused.said.contains("--on-exhausted hold"), "{}", refused.said);
}

/// 60 events, all delivered. From now on the receiver answers 500 to the 5 events of one user.
fn with_a_failing_user() -> Delivered {
    let delivered = Delivered::new(60);
    delivered.receiver.answers(|hook| if hook.user() == "user-3" { 500 } else { 200 });
    delivered
}

/// Runs a replay to its end, with `EVENTD_ON_EXHAUSTED` and one attempt for each event.
fn replay_with_variable(delivered: &Delivered, on_exhausted: &str, more: &[&str]) -> Ending {
    let arguments = [&["replay", "--url", "sqlite:log.db", "--attempts", "1"], more].concat();
    let mut command = command(delivered.folder(), &arguments);
    command.env("EVENTD_ON_EXHAUSTED", on_exhausted);
    Program::spawn(command, "replay with a policy in its environment").end()
}

#[test]
fn drop_of_a_variable_discards_no_event_of_a_replay() {
    let delivered = with_a_failing_user();
    let arguments = ["--dest", &delivered.destination(), "--from", "0", "--execute"];
    let ending = replay_with_variable(&delivered, "drop", &arguments);
    assert_eq!(ending.code(), 0, "{}", ending.said);
    let says = ["EVENTD_ON_EXHAUSTED=drop has no effect: ", "55 delivered, 5 given up and kept as dead letters"];
    assert!(says.iter().all(|what| ending.said.contains(what)), "{}", ending.said);
    assert_eq!(delivered.plan(&["--dead"])["events"], 5);
}

#[test]
fn a_replay_that_drops_events_says_so_before_and_counts_them() {
    let delivered = with_a_failing_user();
    let drop = ["--from", "0", "--on-exhausted", "drop", "--attempts", "1"];
    let plan = delivered.plan(&drop);
    assert!(plan["notes"][0].as_str().is_some_and(|note| note.starts_with("--on-exhausted drop: ")), "{plan}");
    let ending = delivered.replay(&[&drop[..], &["--execute"]].concat());
    assert_eq!(ending.code(), 0, "{}", ending.said);
    for says in ["note      --on-exhausted drop: ", "55 delivered, 5 dropped, "] {
        assert!(ending.said.contains(says), "{says}: {}", ending.said);
    }
    let ending = delivered.replay(&[&drop[..], &["--execute", "--json", "--user", "user-3"]].concat());
    assert_eq!(ending.code(), 1, "{}", ending.said);
    assert!(ending.said.contains("delivered no event: all 5 were dropped"), "{}", ending.said);
    let summary = json_lines(&ending).pop().unwrap();
    assert_eq!((&summary["dropped"], &summary["left"]), (&5.into(), &0.into()), "{summary}");
    let counts: Vec<Value> = delivered.listed().into_iter().map(|replay| replay["counts"]["dropped"].clone()).collect();
    assert_eq!(counts, [5, 5]);
    let list = run(delivered.folder(), &["replay", "--url", "sqlite:log.db", "--list"]).said;
    assert!(list.contains("    55 of 60 delivered, 0 given up, 5 dropped\n"), "{list}");
}

#[test]
fn a_resumed_replay_is_judged_by_all_of_its_runs() {
    let delivered = with_a_failing_user();
    let two_users = ["--from", "0", "--user", "user-3", "--user", "user-4"];
    let replay = delivered.replaying(&[&two_users[..], &["--attempts", "0", "--execute"]].concat());
    delivered.receiver.wait_for(5);
    assert_eq!(replay.stop().code(), 3);
    let rest = ["--resume", &delivered.id(), "--execute", "--attempts", "1", "--backoff", "1ms"];
    let ending = delivered.replay(&rest);
    assert!(ending.said.contains("0 delivered, 5 given up and kept as dead letters"), "{}", ending.said);
    assert_eq!(ending.code(), 0, "the first run delivered the events of user-4: {}", ending.said);
    assert_eq!(delivered.listed()[0]["counts"]["delivered"], 5);
}
